//! EXTENDED COPY: VAAI's Full Copy (SPC-4 §6.4). Of a pool's volumes the layer below moves pointers; of all else, and of
//! what does not line up, bytes. Segments that have nothing to do with each other are worked on at once; those that have go
//! in order, so that the outcome is that of one after the other.
//!
//! A source or a destination is a unit that this nexus can see, or there is no copy.

mod list;
pub(crate) mod results;
#[cfg(test)]
mod tests;

use crate::cdb::be32;
use crate::command::{Effect, NexusId};
use crate::copy::list::{Amount, CopyList, ListUse, THIS_UNIT};
use crate::copy::results::{CopyKind, CopyState};
use crate::limits::{COPY_DESCRIPTOR_BYTES_MAX, COPY_SEGMENT_BYTES_MAX, COPY_WINDOW};
use crate::lun::LogicalUnit;
use crate::reservation::Access;
use crate::sense::Sense;
use crate::server::DeviceServer;
use crate::task::{End, Head, Moves, Request, Spent, Step, Work};
use bdev::error::IoError;
use bdev::io::Tag;
use bdev::storage::{Copied, CopyIo};
use reactor::buf::Buf;
use smallvec::SmallVec;

/// Service actions of EXTENDED COPY.
pub(crate) const LID1: u8 = 0x00;
pub(crate) const LID4: u8 = 0x01;
pub(crate) const ABORT: u8 = 0x1C;

/// A third-party copy under way.
#[derive(Debug)]
pub(crate) struct ExtendedCopy {
    list_bytes: u32,
    four_byte_id: bool,
    asked: bool,
    data: Option<Buf>,
    plan: Option<CopyList>,
    /// IMMED=1, and its initiator has had its answer.
    answered: bool,
    /// The identifier under which the nexus can ask about it, once it has begun.
    named: Option<u32>,
    /// Segments that have begun.
    next: usize,
    out: SmallVec<[Out; COPY_WINDOW]>,
    /// Segments that are through.
    through: u16,
    bytes: u64,
    /// Of the first segment that failed.
    failed: Option<(u16, Sense)>,
}

/// A segment that is being worked on.
#[derive(Clone, Copy, Debug)]
struct Out {
    segment: u16,
    io: CopyIo,
    /// Of the source and the destination.
    luns: [u16; 2],
}

/// EXTENDED COPY(LID1) and (LID4).
pub(crate) fn extended_copy(request: &Request<'_>) -> Result<Work, Sense> {
    let cdb = &request.command.cdb;
    let four_byte_id = cdb[1] & 0x1F == LID4;
    let list_bytes = be32(cdb, 10);
    let header_bytes = if four_byte_id { list::LID4_HEADER_BYTES } else { list::LID1_HEADER_BYTES } as u32;
    if list_bytes == 0 {
        return Ok(Work::End(End::GOOD));
    }
    if list_bytes < header_bytes || list_bytes > header_bytes + COPY_DESCRIPTOR_BYTES_MAX {
        return Err(Sense::PARAMETER_LIST_LENGTH_ERROR.cdb_byte(10));
    }
    if request.command.data_out_bytes < list_bytes {
        return Err(Sense::INVALID_FIELD_IN_COMMAND_INFORMATION_UNIT);
    }
    Ok(Work::Copy(Box::new(ExtendedCopy {
        list_bytes,
        four_byte_id,
        asked: false,
        data: None,
        plan: None,
        answered: false,
        named: None,
        next: 0,
        out: SmallVec::new(),
        through: 0,
        bytes: 0,
        failed: None,
    })))
}

/// COPY OPERATION ABORT.
pub(crate) fn copy_operation_abort(request: &Request<'_>) -> Result<Work, Sense> {
    let id = be32(&request.command.cdb, 2);
    if request.copies.is_none_or(|copies| !copies.is_under_way(id)) {
        return Err(Sense::INVALID_FIELD_IN_CDB.cdb_byte(2));
    }
    Ok(Work::StopCopy { id, is_told: false })
}

impl ExtendedCopy {
    pub(crate) fn poll(&mut self, head: &mut Head, spent: &mut Spent, server: &mut DeviceServer) -> Step {
        if !self.asked {
            self.asked = true;
            return Step::Effect(Effect::WantData { bytes: self.list_bytes });
        }
        if self.plan.is_none() {
            let Some(data) = self.data.take() else { return Step::Wait };
            let plan = list::parse(&data, self.four_byte_id);
            spent.push(data);
            if let Err(sense) = plan.and_then(|plan| self.begin(plan, head, server)) {
                return self.end(head, server, Err(sense));
            }
        }
        let Some(plan) = &self.plan else { return Step::Wait };
        if plan.immediate && !self.answered {
            self.answered = true;
            return Step::Answer(End {
                result: Ok(()),
                moves: Moves::Out,
                transfer_bytes: u64::from(self.list_bytes),
            });
        }
        while self.failed.is_none()
            && self.next < plan.segments.len()
            && self.out.len() < COPY_WINDOW
            && self.goes_on(head.nexus, server)
        {
            match resolve(server, head, plan, self.next) {
                Ok(None) => {
                    self.next += 1;
                    self.through += 1;
                }
                Ok(Some(out)) if self.out.iter().all(|other| is_apart(&out.io, &other.io)) => {
                    self.out.push(out);
                    self.next += 1;
                    return head.copy(out.io);
                }
                Ok(Some(_)) => break,
                Err(sense) => self.failed = Some((self.next as u16, sense)),
            }
        }
        if !self.out.is_empty() {
            return Step::Wait;
        }
        let result = match self.failed {
            Some((_, sense)) => Err(sense),
            None if self.next < plan.segments.len() => Err(Sense::COPY_ABORTED.in_segment(self.next as u16)),
            None => Ok(()),
        };
        self.end(head, server, result)
    }

    /// The list is right in itself: whether it can be followed is looked at before the first segment begins.
    fn begin(&mut self, plan: CopyList, head: &Head, server: &mut DeviceServer) -> Result<(), Sense> {
        for segment in 0..plan.segments.len() {
            resolve(server, head, &plan, segment)?;
        }
        if let ListUse::Named(id) = plan.list {
            let kind = CopyKind { action: LID4, block_bytes: 1, is_background: plan.immediate };
            server.copies_mut(head.nexus).map_or(Ok(()), |copies| copies.begin(id, kind))?;
            self.named = Some(id);
        }
        self.plan = Some(plan);
        Ok(())
    }

    fn goes_on(&self, nexus: NexusId, server: &mut DeviceServer) -> bool {
        let Some(id) = self.named else { return true };
        server.copies_mut(nexus).is_none_or(|copies| copies.goes_on(id))
    }

    fn end(&mut self, head: &Head, server: &mut DeviceServer, result: Result<(), Sense>) -> Step {
        if let (Some(id), Some(copies)) = (self.named.take(), server.copies_mut(head.nexus)) {
            copies.advance(id, self.through, self.bytes);
            // What COPY OPERATION ABORT made of it is an abort, also where it met a segment that was being worked on.
            let state = match result {
                Ok(()) => CopyState::Done,
                Err(_) if self.failed.is_none() || !copies.goes_on(id) => CopyState::Aborted,
                Err(sense) => CopyState::failed(sense),
            };
            copies.end(id, state);
        }
        Step::End(End { result, moves: Moves::Out, transfer_bytes: u64::from(self.list_bytes) })
    }

    /// The task is aborted: the record says so.
    pub(crate) fn abort(&mut self, nexus: NexusId, server: &mut DeviceServer) {
        if let (Some(id), Some(copies)) = (self.named.take(), server.copies_mut(nexus)) {
            copies.end(id, CopyState::Aborted);
        }
    }

    pub(crate) fn list_bytes(&self) -> u32 {
        self.list_bytes
    }

    /// The identifier under which it is known, while it is under way.
    pub(crate) fn named(&self) -> Option<u32> {
        self.named
    }

    /// Whether it reads or writes this unit now.
    pub(crate) fn uses(&self, lun: u16) -> bool {
        self.out.iter().any(|out| out.luns.contains(&lun))
    }

    /// Takes the list; gives it back if it is not wanted.
    pub(crate) fn data_out(&mut self, buf: Buf) -> Option<Buf> {
        if self.asked && self.data.is_none() && self.plan.is_none() {
            self.data.replace(buf)
        } else {
            Some(buf)
        }
    }

    pub(crate) fn copy_done(&mut self, head: &Head, server: &mut DeviceServer, copied: &Copied) {
        let is_it = |out: &Out| CopyIo { tag: copied.io.tag, ..out.io } == copied.io;
        let Some(place) = self.out.iter().position(is_it) else {
            debug_assert!(false, "what comes back went down");
            return;
        };
        let segment = self.out.remove(place).segment;
        self.bytes += copied.moved.bytes();
        match copied.result {
            Ok(()) => self.through += 1,
            Err(error) if self.failed.is_none_or(|(first, _)| segment < first) => {
                self.failed = Some((segment, sense_of(error, segment)));
            }
            Err(_) => {}
        }
        if let (Some(id), Some(copies)) = (self.named, server.copies_mut(head.nexus)) {
            copies.advance(id, self.through, self.bytes);
        }
    }

    pub(crate) fn release(&mut self, spent: &mut Spent) {
        spent.extend(self.data.take());
    }
}

/// Why a segment failed.
fn sense_of(error: IoError, segment: u16) -> Sense {
    let failure = Sense::THIRD_PARTY_DEVICE_FAILURE.in_segment(segment);
    match error {
        // As any write that finds no space: the virtual machine is to pause.
        IoError::OutOfSpace => Sense::SPACE_ALLOCATION_FAILED,
        IoError::ABANDONED => Sense::COPY_ABORTED.in_segment(segment),
        IoError::GONE => Sense::COPY_TARGET_DEVICE_NOT_REACHABLE.in_segment(segment),
        IoError::Unread { errno: _ } => failure.forwarding(Sense::UNRECOVERED_READ_ERROR, false),
        IoError::Medium { errno: _ } => failure.forwarding(Sense::WRITE_ERROR, true),
        IoError::OutOfRange => {
            Sense::COPY_ABORTED.in_segment(segment).forwarding(Sense::LBA_OUT_OF_RANGE, true)
        }
        error => failure.forwarding(Sense::from(error), true),
    }
}

/// Whether the outcome is the same whichever of two copies goes first, and of both at once.
fn is_apart(one: &CopyIo, other: &CopyIo) -> bool {
    let meet = |a, from: u64, b, to: u64| {
        a == b && from < to.saturating_add(other.bytes) && to < from.saturating_add(one.bytes)
    };
    let (source, destination) = ((one.source, one.source_bytes), (one.destination, one.destination_bytes));
    let (others_source, others) =
        ((other.source, other.source_bytes), (other.destination, other.destination_bytes));
    !meet(destination.0, destination.1, others.0, others.1)
        && !meet(destination.0, destination.1, others_source.0, others_source.1)
        && !meet(source.0, source.1, others.0, others.1)
}

/// What a segment comes to, as things are now; `None`: nothing is to be copied.
///
/// # Errors
/// Why it can't be followed.
fn resolve(server: &DeviceServer, head: &Head, plan: &CopyList, index: usize) -> Result<Option<Out>, Sense> {
    let segment = &plan.segments[index];
    let number = index as u16;
    let source = unit_of(server, head, plan, (segment.source, 4), number)?;
    let destination = unit_of(server, head, plan, (segment.destination, 6), number)?;
    server.check_access(head.nexus, source.config.lun, Access::Read)?;
    server.check_access(head.nexus, destination.config.lun, Access::Write)?;
    let block_bytes = |unit: &LogicalUnit| u64::from(unit.geometry().block_bytes);
    let (from_block, to_block) = (block_bytes(source), block_bytes(destination));
    let (bytes, from_offset, to_offset) = match segment.amount {
        Amount::SourceBlocks(blocks) => (u64::from(blocks) * from_block, 0, 0),
        Amount::DestinationBlocks(blocks) => (u64::from(blocks) * to_block, 0, 0),
        Amount::Bytes { bytes, source_offset, destination_offset } => {
            (u64::from(bytes), u64::from(source_offset), u64::from(destination_offset))
        }
    };
    if bytes > u64::from(COPY_SEGMENT_BYTES_MAX) {
        let field = segment.at + segment.amount_byte();
        return Err(Sense::INVALID_FIELD_IN_PARAMETER_LIST.list_byte(field));
    }
    if bytes == 0 {
        return Ok(None);
    }
    // Without CAT and PAD there are no parts of blocks.
    let inexact = Sense::UNEXPECTED_INEXACT_SEGMENT.in_segment(number);
    if !bytes.is_multiple_of(from_block) || !bytes.is_multiple_of(to_block) {
        return Err(inexact.segment_byte(segment.amount_byte()));
    }
    if !from_offset.is_multiple_of(from_block) {
        return Err(inexact.segment_byte(28));
    }
    if !to_offset.is_multiple_of(to_block) {
        return Err(inexact.segment_byte(30));
    }
    let source_bytes = place_of(source, segment.source_lba, from_offset, bytes, (number, false))?;
    let destination_bytes = place_of(destination, segment.destination_lba, to_offset, bytes, (number, true))?;
    // Nor does a block of the one begin within a block of the other.
    let larger = from_block.max(to_block);
    if source_bytes % larger != destination_bytes % larger {
        return Err(inexact.segment_byte(12));
    }
    destination
        .check_writable()
        .map_err(|said| Sense::THIRD_PARTY_DEVICE_FAILURE.in_segment(number).forwarding(said, true))?;
    let io = CopyIo {
        tag: Tag(0),
        source: source.config.bdev,
        source_bytes,
        destination: destination.config.bdev,
        destination_bytes,
        bytes,
    };
    Ok(Some(Out { segment: number, io, luns: [source.config.lun, destination.config.lun] }))
}

/// Where a range begins, in bytes; all of it is on the unit.
fn place_of(
    unit: &LogicalUnit,
    lba: u64,
    offset: u64,
    bytes: u64,
    (number, of_destination): (u16, bool),
) -> Result<u64, Sense> {
    let beyond = Sense::COPY_ABORTED
        .in_segment(number)
        .segment_byte(if of_destination { 20 } else { 12 })
        .forwarding(Sense::LBA_OUT_OF_RANGE, of_destination);
    let block_bytes = u64::from(unit.geometry().block_bytes);
    let first = lba.checked_mul(block_bytes).and_then(|first| first.checked_add(offset)).ok_or(beyond)?;
    match first.checked_add(bytes) {
        Some(end) if end <= unit.geometry().bytes() => Ok(first),
        _ => Err(beyond),
    }
}

/// The unit that a CSCD id names; `field` is where it stands in its segment descriptor.
fn unit_of<'a>(
    server: &'a DeviceServer,
    head: &Head,
    plan: &CopyList,
    (id, field): (u16, u16),
    number: u16,
) -> Result<&'a LogicalUnit, Sense> {
    let unreachable = Sense::COPY_TARGET_DEVICE_NOT_REACHABLE.in_segment(number);
    let unit = if id == THIS_UNIT {
        head.lun.and_then(|lun| server.unit(lun)).ok_or(unreachable)?
    } else {
        let cscd = plan.cscds.get(usize::from(id));
        let cscd = cscd.ok_or(Sense::UNREACHABLE_COPY_TARGET.in_segment(number).segment_byte(field))?;
        let unit = server.visible_unit(head.nexus, &cscd.naa).ok_or(unreachable)?;
        if cscd.block_bytes != 0 && cscd.block_bytes != unit.geometry().block_bytes {
            return Err(Sense::INVALID_FIELD_IN_PARAMETER_LIST.list_byte(cscd.at + 29));
        }
        unit
    };
    if !unit.medium {
        let failure = Sense::THIRD_PARTY_DEVICE_FAILURE.in_segment(number);
        return Err(failure.forwarding(Sense::MEDIUM_NOT_PRESENT, field == 6));
    }
    Ok(unit)
}
