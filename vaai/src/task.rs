//! A command's life: what it wants next, one effect at a time, until it is finished or aborted.
//!
//! Invariants: at most one [`Effect::WantData`], one [`Effect::Answer`] and one [`Effect::Finish`]; nothing after `Finish` or
//! [`Task::abort`]; no `Finish` while an IO is out; every buffer that came in (from `Buffers`, as data-out, back with
//! an IO) is either handed on in an effect, or given back by `poll` or `release`.

use crate::change::{Applied, Change};
use crate::command::{Buffers, Command, Effect, NexusId, Outcome, TaskAttribute};
use crate::compare_and_write::CompareAndWrite;
use crate::copy::ExtendedCopy;
use crate::copy::results::CopyRecords;
use crate::lba_status::LbaStatus;
use crate::lun::{LogicalUnit, REPORT_LUNS_WELL_KNOWN, lun_number};
use crate::mode_select::ModeSelect;
use crate::opcodes::{self, Reach};
use crate::reply::ParameterData;
use crate::reservation::Reserve;
use crate::sense::{Sense, Status};
use crate::server::DeviceServer;
use crate::settle::Settle;
use crate::token::TokenCopy;
use crate::transfer::Transfer;
use crate::unmap::Unmap;
use crate::write_atomic::WriteAtomic;
use crate::write_same::WriteSame;
use bdev::io::{BdevId, Done, Io, Op, PIECE_BYTES, Tag};
use bdev::storage::{Copied, CopyIo};
use reactor::Core;
use reactor::buf::Buf;
use smallvec::SmallVec;

/// Buffers that wait for the next `poll` to give them back.
pub(crate) type Spent = SmallVec<[Buf; 2]>;

/// What every kind of work needs to know of its command, and the count of its IOs.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) nexus: NexusId,
    /// The number that the LUN field names, whether there is such a unit or not.
    pub(crate) lun: Option<u16>,
    core: Core,
    pub(crate) bdev: BdevId,
    pub(crate) block_bytes: u32,
    pub(crate) data_in_bytes: u32,
    pub(crate) data_out_bytes: u32,
    pub(crate) ios_out: u32,
    writes_out: u32,
    aborted: bool,
    finished: bool,
}

impl Head {
    /// A request for the router, counted.
    pub(crate) fn submit(
        &mut self,
        op: Op,
        fua: bool,
        lba: u64,
        blocks: u64,
        buf: Option<Buf>,
        scratch: Option<Buf>,
    ) -> Step {
        self.submit_part(op, fua, lba, blocks, (buf, scratch), 0)
    }

    /// A part of one; see [`Io::more_parts`].
    pub(crate) fn submit_part(
        &mut self,
        op: Op,
        fua: bool,
        lba: u64,
        blocks: u64,
        (buf, scratch): (Option<Buf>, Option<Buf>),
        more_parts: u8,
    ) -> Step {
        self.ios_out += 1;
        self.writes_out += u32::from(op.writes());
        let (bdev, from) = (self.bdev, self.core);
        let (tag, heartbeat) = (Tag(0), false);
        Step::Effect(Effect::Submit(Io {
            tag,
            from,
            bdev,
            op,
            fua,
            heartbeat,
            disposable: false,
            more_parts,
            lba,
            blocks,
            buf,
            scratch,
        }))
    }

    /// A copy for the layer below, counted as something that writes.
    pub(crate) fn copy(&mut self, io: CopyIo) -> Step {
        self.ios_out += 1;
        self.writes_out += 1;
        Step::Effect(Effect::Copy(io))
    }

    /// A question to the map, counted as an IO that changes nothing.
    pub(crate) fn ask_status(&mut self, from_bytes: u64, bytes: u64) -> Step {
        self.ios_out += 1;
        Step::Effect(Effect::Status { bdev: self.bdev, from_bytes, bytes })
    }

    /// Bytes that were moved, as the residual is to count them: none, if the initiator offered the other direction
    /// (RFC 7143 §11.4.5 counts what was expected in the direction that was announced).
    fn transferred(&self, moves: Moves, bytes: u64) -> u64 {
        let is_other_way = match moves {
            Moves::Nothing => true,
            Moves::In => self.data_in_bytes == 0 && self.data_out_bytes != 0,
            Moves::Out => self.data_out_bytes == 0 && self.data_in_bytes != 0,
        };
        if is_other_way { 0 } else { bytes }
    }
}

/// What comes of one step of some work.
#[derive(Debug)]
pub(crate) enum Step {
    /// Hand this out.
    Effect(Effect),
    /// Something has to happen first.
    Wait,
    /// The command is through for its initiator; the work goes on.
    Answer(End),
    /// The command is through.
    End(End),
}

/// How a command ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct End {
    pub(crate) result: Result<(), Sense>,
    /// Data by the CDB go this way.
    pub(crate) moves: Moves,
    /// As [`Outcome::transfer_bytes`], had the initiator offered the right direction.
    pub(crate) transfer_bytes: u64,
}

/// Direction of a command's data by its CDB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moves {
    /// No data.
    Nothing,
    /// To the initiator.
    In,
    /// From the initiator.
    Out,
}

/// A READ or WRITE that is blocks and nothing else; see [`Task::straight`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Straight {
    /// It is a WRITE.
    pub writes: bool,
    /// On which device.
    pub bdev: BdevId,
    /// First logical block.
    pub lba: u64,
    /// Of one.
    pub block_bytes: u32,
    /// Whole blocks, as many as the initiator expects to move; of a WRITE within one piece.
    pub bytes: u32,
}

impl Straight {
    /// First block and bytes of what of it lies in one piece, from `from` bytes on.
    #[inline]
    pub fn piece(&self, from: u32) -> (u64, u32) {
        let lba = self.lba + u64::from(from / self.block_bytes);
        let left = PIECE_BYTES - lba * u64::from(self.block_bytes) % PIECE_BYTES;
        (lba, left.min(u64::from(self.bytes - from)) as u32)
    }
}

impl End {
    pub(crate) const GOOD: End = End { result: Ok(()), moves: Moves::Nothing, transfer_bytes: 0 };

    /// Refused or failed, with nothing moved.
    pub(crate) const fn of(result: Result<(), Sense>) -> End {
        End { result, moves: Moves::Nothing, transfer_bytes: 0 }
    }
}

/// What a command is about, after its checks.
#[derive(Debug)]
pub(crate) enum Work {
    /// Nothing is left but to say how it ended.
    End(End),
    /// Parameter data for the initiator.
    Reply(ParameterData),
    /// GET LBA STATUS.
    LbaStatus(LbaStatus),
    /// Blocks between the initiator and the medium, or compared between them.
    Transfer(Transfer),
    /// COMPARE AND WRITE.
    CompareAndWrite(CompareAndWrite),
    /// WRITE ATOMIC.
    WriteAtomic(WriteAtomic),
    /// WRITE SAME.
    WriteSame(WriteSame),
    /// UNMAP.
    Unmap(Unmap),
    /// EXTENDED COPY.
    Copy(Box<ExtendedCopy>),
    /// POPULATE TOKEN, WRITE USING TOKEN.
    Token(Box<TokenCopy>),
    /// COPY OPERATION ABORT.
    StopCopy {
        /// LIST IDENTIFIER.
        id: u32,
        /// The transport knows.
        is_told: bool,
    },
    /// MODE SELECT.
    ModeSelect(ModeSelect),
    /// RESERVE, RELEASE, PERSISTENT RESERVE OUT.
    Reserve(Reserve),
    /// A flush, a change that all cores make, or one after the other.
    Settle(Settle),
}

/// A command being executed.
#[derive(Debug)]
pub struct Task {
    head: Head,
    work: Work,
    spent: Spent,
}

/// What a handler makes its [`Work`] of. Everything was checked that the opcode table can say.
pub(crate) struct Request<'a> {
    pub(crate) nexus: NexusId,
    /// Which unit; `None`: a well-known unit, or none.
    pub(crate) unit: Option<&'a LogicalUnit>,
    /// For REQUEST SENSE: what the nexus is told with it.
    pub(crate) attention: Option<Sense>,
    /// The nexus' copies.
    pub(crate) copies: Option<&'a CopyRecords>,
    pub(crate) command: &'a Command,
}

impl Request<'_> {
    /// The unit of a command that only units know.
    ///
    /// # Errors
    /// LOGICAL UNIT NOT SUPPORTED.
    pub(crate) fn unit(&self) -> Result<&LogicalUnit, Sense> {
        self.unit.ok_or(Sense::LOGICAL_UNIT_NOT_SUPPORTED)
    }
}

impl Task {
    pub(crate) fn begin(server: &mut DeviceServer, nexus: NexusId, command: &Command) -> Task {
        let lun = lun_number(command.lun);
        let index = lun.and_then(|lun| server.unit_index(lun));
        let work = prepare(server, nexus, lun, index, command)
            .unwrap_or_else(|sense| Work::End(End::of(Err(sense))));
        let config = index.map(|index| &server.units[index].config);
        let head = Head {
            nexus,
            lun,
            core: server.core,
            bdev: config.map_or(BdevId(0), |config| config.bdev),
            block_bytes: config.map_or(512, |config| config.geometry.block_bytes),
            data_in_bytes: command.data_in_bytes,
            data_out_bytes: command.data_out_bytes,
            ios_out: 0,
            writes_out: 0,
            aborted: false,
            finished: false,
        };
        Task { head, work, spent: Spent::new() }
    }

    /// What the command is, if that is all: blocks to or from an initiator that expects just these. Whoever can
    /// have them moved at once ([`bdev::storage::Storage::read_now`]) answers GOOD and forgets the task, which holds nothing yet
    /// and was not polled.
    #[inline]
    pub fn straight(&self) -> Option<Straight> {
        let Work::Transfer(transfer) = &self.work else { return None };
        transfer.straight(&self.head)
    }

    /// The next thing the task wants. `None`: it waits for data-out, an IO, a decree or a buffer, or it has finished
    /// or was aborted. To be called until `None` after each call of another method, and after `None` for want of a
    /// buffer when some have come back.
    pub fn poll(&mut self, server: &mut DeviceServer, buffers: &mut impl Buffers) -> Option<Effect> {
        self.release_spent(buffers);
        if self.head.aborted || self.head.finished {
            return None;
        }
        let mut step = self.step(server, buffers);
        while !self.spent.is_empty() {
            self.release_spent(buffers);
            if matches!(step, Step::Wait) {
                // What it gave back just now may be what it waits for.
                step = self.step(server, buffers);
            }
        }
        match step {
            Step::Effect(effect) => Some(effect),
            Step::Wait => None,
            Step::Answer(end) => Some(Effect::Answer(self.outcome(server, end))),
            Step::End(end) => {
                assert!(self.head.ios_out == 0, "a task ends when its last IO is back");
                self.head.finished = true;
                self.release(buffers);
                Some(Effect::Finish(self.outcome(server, end)))
            }
        }
    }

    fn step(&mut self, server: &mut DeviceServer, buffers: &mut impl Buffers) -> Step {
        let Task { head, work, spent } = self;
        match work {
            Work::End(end) => Step::End(*end),
            Work::Reply(reply) => reply.poll(head, server, buffers),
            Work::LbaStatus(status) => status.poll(head, server, buffers),
            Work::Transfer(transfer) => transfer.poll(head, buffers),
            Work::CompareAndWrite(swap) => swap.poll(head, spent, buffers),
            Work::WriteAtomic(write) => write.poll(head),
            Work::WriteSame(write_same) => write_same.poll(head, spent, buffers),
            Work::Unmap(unmap) => unmap.poll(head, spent),
            Work::Copy(copy) => copy.poll(head, spent, server),
            Work::Token(copy) => copy.poll(head, spent, server),
            Work::StopCopy { is_told: true, .. } => Step::End(End::GOOD),
            Work::StopCopy { id, is_told } => {
                if !server.copies_mut(head.nexus).is_some_and(|copies| copies.stop(*id)) {
                    return Step::End(End::of(Err(Sense::INVALID_FIELD_IN_CDB.cdb_byte(2))));
                }
                *is_told = true;
                Step::Effect(Effect::StopCopy { id: *id })
            }
            Work::ModeSelect(select) => select.poll(head, spent, server),
            Work::Reserve(reserve) => reserve.poll(head, spent, server),
            Work::Settle(settle) => settle.poll(head),
        }
    }

    fn outcome(&self, server: &DeviceServer, end: End) -> Outcome {
        let transfer_bytes = self.head.transferred(end.moves, end.transfer_bytes);
        let Err(sense) = end.result else {
            return Outcome { status: Status::Good, sense: None, transfer_bytes };
        };
        let unit = self.head.lun.and_then(|lun| server.unit(lun));
        let is_told = sense.status == Status::CheckCondition;
        let bytes = is_told.then(|| sense.to_bytes(unit.is_some_and(|unit| unit.mode.descriptor_sense)));
        Outcome { status: sense.status, sense: bytes, transfer_bytes }
    }

    /// Where the piece of data-out that `offset` lies in ends; both in bytes from the start of the data-out. Pieces of
    /// blocks end at multiples of `PIECE_BYTES` on the device, each instance's of a COMPARE AND WRITE of several parts with
    /// these; a parameter list, and both instances of any other COMPARE AND WRITE, are one piece. Data that the task does
    /// not want end where they begin.
    pub fn piece_end(&self, offset: u32) -> u32 {
        match &self.work {
            Work::Transfer(transfer) => transfer.data_out_piece_end(&self.head, offset),
            Work::CompareAndWrite(swap) => swap.piece_end(offset),
            Work::WriteAtomic(write) => write.piece_end(offset),
            Work::WriteSame(_) => self.head.block_bytes.max(offset),
            Work::Unmap(unmap) => unmap.list_bytes().max(offset),
            Work::Copy(copy) => copy.list_bytes().max(offset),
            Work::Token(copy) => copy.list_bytes().max(offset),
            Work::ModeSelect(select) => select.list_bytes().max(offset),
            Work::Reserve(reserve) => reserve.list_bytes().max(offset),
            Work::End(_) | Work::Reply(_) | Work::StopCopy { .. } | Work::LbaStatus(_) | Work::Settle(_) => {
                offset
            }
        }
    }

    /// A whole piece of data-out has come. Pieces come in ascending order, each once.
    pub fn data_out(&mut self, offset: u32, buf: Buf) {
        let Task { head, work, spent } = self;
        let refused = match work {
            _ if head.aborted || head.finished => Some(buf),
            Work::Transfer(transfer) => transfer.data_out(head, offset, buf),
            Work::CompareAndWrite(swap) => swap.data_out(offset, buf),
            Work::WriteAtomic(write) => write.data_out(offset, buf),
            Work::WriteSame(write_same) => write_same.data_out(buf),
            Work::Unmap(unmap) => unmap.data_out(buf),
            Work::Copy(copy) => copy.data_out(buf),
            Work::Token(copy) => copy.data_out(buf),
            Work::ModeSelect(select) => select.data_out(buf),
            Work::Reserve(reserve) => reserve.data_out(buf),
            Work::End(_) | Work::Reply(_) | Work::StopCopy { .. } | Work::LbaStatus(_) | Work::Settle(_) => {
                Some(buf)
            }
        };
        spent.extend(refused);
    }

    /// An IO that [`Effect::Submit`] began has come back.
    pub fn io_done(&mut self, done: Done) {
        let Task { head, work, spent } = self;
        head.ios_out -= 1;
        head.writes_out -= u32::from(done.io.op.writes());
        if head.aborted {
            spent.extend(done.io.buf);
            spent.extend(done.io.scratch);
            return;
        }
        match work {
            Work::Transfer(transfer) => transfer.io_done(head, spent, done),
            Work::CompareAndWrite(swap) => swap.io_done(head, spent, done),
            Work::WriteAtomic(write) => write.io_done(head, spent, done),
            Work::WriteSame(write_same) => write_same.io_done(spent, done),
            Work::Unmap(unmap) => unmap.io_done(&done),
            Work::Token(copy) => copy.io_done(&done),
            Work::Settle(settle) => settle.io_done(&done),
            Work::End(_)
            | Work::Reply(_)
            | Work::LbaStatus(_)
            | Work::ModeSelect(_)
            | Work::Reserve(_)
            | Work::Copy(_)
            | Work::StopCopy { .. } => {
                unreachable!("work that begins no IO gets none back")
            }
        }
    }

    /// A copy that [`Effect::Copy`] began has ended.
    pub fn copy_done(&mut self, server: &mut DeviceServer, copied: &Copied) {
        let Task { head, work, .. } = self;
        head.ios_out -= 1;
        head.writes_out -= 1;
        match work {
            _ if head.aborted => {}
            Work::Copy(copy) => copy.copy_done(head, server, copied),
            Work::Token(copy) => copy.copy_done(head, server, copied),
            _ => unreachable!("work that begins no copy gets none back"),
        }
    }

    /// The identifier of the third-party copy that the task is, if it has one and is under way.
    pub fn copy_id(&self) -> Option<u32> {
        match &self.work {
            Work::Copy(copy) if !self.head.aborted => copy.named(),
            Work::Token(copy) if !self.head.aborted => copy.named(),
            _ => None,
        }
    }

    /// Whether the task reads or writes this unit as a source or destination of a copy, whichever unit has the command.
    pub fn copies_on(&self, lun: u16) -> bool {
        matches!(&self.work, Work::Copy(copy) if copy.uses(lun))
    }

    /// All cores have made the change that [`Effect::Propose`] asked for.
    pub fn decreed(&mut self, applied: Applied) {
        match &mut self.work {
            Work::ModeSelect(select) => select.decreed(applied),
            Work::Reserve(reserve) => reserve.decreed(applied),
            Work::Settle(settle) => settle.decreed(applied),
            Work::Token(copy) => copy.decreed(applied),
            Work::End(_)
            | Work::Reply(_)
            | Work::LbaStatus(_)
            | Work::Transfer(_)
            | Work::CompareAndWrite(_)
            | Work::WriteAtomic(_)
            | Work::WriteSame(_)
            | Work::Copy(_)
            | Work::StopCopy { .. }
            | Work::Unmap(_) => {
                unreachable!("work that proposes nothing has nothing decreed")
            }
        }
    }

    /// The same where tasks that were to end with it are stuck: that is no success. What all cores have made is there all the
    /// same, and is to be kept.
    ///
    /// # Errors
    /// INTERNAL TARGET FAILURE where nothing is to be kept first.
    pub fn stuck(&mut self, applied: Option<Applied>) -> Applied {
        match (&mut self.work, applied) {
            (Work::Reserve(reserve), Some(Ok(()))) => {
                reserve.stuck();
                Ok(())
            }
            _ => Err(Sense::INTERNAL_TARGET_FAILURE),
        }
    }

    /// The same, of a task that was aborted meanwhile: it does nothing more, but may have to give something back. The unit
    /// whose reservations are to be kept all the same: others see what it has changed.
    pub fn decreed_in_vain(&mut self, applied: Applied, server: &DeviceServer) -> Option<u16> {
        match &mut self.work {
            Work::Token(copy) => copy.decreed(applied),
            Work::Reserve(reserve) if applied.is_ok() => return reserve.to_keep(&self.head, server),
            _ => {}
        }
        None
    }

    /// The task goes, with nothing of it out: a change that all cores are to make then, which nobody waits for.
    pub fn take_last_change(&mut self, server: &mut DeviceServer) -> Option<Change> {
        match &mut self.work {
            Work::Token(copy) => copy.give_back(server),
            _ => None,
        }
    }

    /// The answer to [`Effect::Status`]: so many bytes are alike.
    pub fn status_done(&mut self, bytes: u64, mapped: bool) {
        self.head.ios_out -= 1;
        match &mut self.work {
            _ if self.head.aborted => {}
            Work::LbaStatus(status) => status.answered(bytes, mapped),
            _ => unreachable!("only GET LBA STATUS asks"),
        }
    }

    /// What [`Effect::Keep`] asked for is durable, or why it is not.
    pub fn kept(&mut self, kept: Applied) {
        match &mut self.work {
            Work::Reserve(reserve) => reserve.kept(kept),
            _ => unreachable!("work that has nothing kept hears of nothing kept"),
        }
    }

    /// Nothing more is wanted, and nothing is answered. What is out comes back by [`Task::io_done`] and
    /// [`Task::copy_done`].
    pub fn abort(&mut self, server: &mut DeviceServer) {
        self.head.aborted = true;
        match &mut self.work {
            Work::Copy(copy) => copy.abort(self.head.nexus, server),
            Work::Token(copy) => copy.abort(self.head.nexus, server),
            _ => {}
        }
    }

    /// IOs that have not come back.
    pub fn ios_out(&self) -> u32 {
        self.head.ios_out
    }

    /// Those of them that may change the medium.
    pub fn writes_out(&self) -> u32 {
        self.head.writes_out
    }

    /// The number that the command's LUN field names, whether there is such a unit or not.
    pub fn lun(&self) -> Option<u16> {
        self.head.lun
    }

    /// Gives back every buffer the task holds. Before the task is dropped, and when no IO is out.
    pub fn release(&mut self, buffers: &mut impl Buffers) {
        match &mut self.work {
            Work::Transfer(transfer) => transfer.release(&mut self.spent),
            Work::CompareAndWrite(swap) => swap.release(&mut self.spent),
            Work::WriteAtomic(write) => write.release(&mut self.spent),
            Work::WriteSame(write_same) => write_same.release(&mut self.spent),
            Work::Unmap(unmap) => unmap.release(&mut self.spent),
            Work::Copy(copy) => copy.release(&mut self.spent),
            Work::Token(copy) => copy.release(&mut self.spent),
            Work::ModeSelect(select) => select.release(&mut self.spent),
            Work::Reserve(reserve) => reserve.release(&mut self.spent),
            Work::End(_) | Work::Reply(_) | Work::StopCopy { .. } | Work::LbaStatus(_) | Work::Settle(_) => {}
        }
        self.release_spent(buffers);
    }

    fn release_spent(&mut self, buffers: &mut impl Buffers) {
        self.spent.drain(..).for_each(|buf| buffers.give(buf));
    }
}

/// Checks a command in the order that initiators expect: the unit, what the nexus has to be told first, the opcode,
/// whether somebody else has reserved the unit, the bits that may be set, the medium, its protection; then the handler's
/// own checks.
fn prepare(
    server: &mut DeviceServer,
    nexus: NexusId,
    lun: Option<u16>,
    index: Option<usize>,
    command: &Command,
) -> Result<Work, Sense> {
    let found = opcodes::find(&command.cdb);
    let reach = found.map_or(Reach::Unit, |found| found.reach);
    match (reach, index) {
        // INQUIRY, REPORT LUNS, REQUEST SENSE: answered everywhere, unit attentions stay or are data (SPC-4 §5.14).
        (Reach::Anywhere, _) => {}
        (_, Some(index)) => {
            if let Some(attention) = server.take_attention(nexus, index) {
                return Err(attention);
            }
        }
        (Reach::UnitOrWellKnown, None) if lun == Some(REPORT_LUNS_WELL_KNOWN) => {}
        (_, None) if lun == Some(REPORT_LUNS_WELL_KNOWN) => {
            return Err(Sense::INVALID_COMMAND_OPERATION_CODE);
        }
        (_, None) => return Err(Sense::LOGICAL_UNIT_NOT_SUPPORTED),
    }
    if command.attribute == TaskAttribute::Aca {
        // There is no ACA condition, since NORMACA=0 (SAM-5 §8.9.5).
        return Err(Sense::INVALID_MESSAGE_ERROR);
    }
    let entry = found?;
    if let Some(index) = index {
        let unit = &server.units[index];
        if !entry.is_for(unit) {
            return Err(entry.unknown());
        }
        unit.reservations.check(entry.class, &command.cdb, nexus, || server.port_name(nexus))?;
        entry.check_usage(&command.cdb)?;
        if entry.needs_medium && !unit.medium {
            return Err(Sense::MEDIUM_NOT_PRESENT);
        }
        if entry.writes {
            unit.check_writable()?;
        }
    } else {
        entry.check_usage(&command.cdb)?;
    }
    let attention = match index {
        Some(index) if entry.opcode == opcodes::REQUEST_SENSE => server.take_attention(nexus, index),
        _ => None,
    };
    let unit = index.map(|index| &server.units[index]);
    let copies = server.nexuses.get(&nexus).map(|nexus| &nexus.copies);
    (entry.handler)(&Request { nexus, unit, attention, copies, command })
}

/// Proposes a change and then ends as it was applied.
pub(crate) fn propose(change: Change) -> Work {
    Work::Settle(Settle::change(change))
}
