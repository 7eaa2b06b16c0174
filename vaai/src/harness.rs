//! For tests: a device server with an array for a disk, and an initiator that says what it has and has room for.
//! Every run checks what no command may break: pieces, offsets, and that each buffer comes home.

use crate::change::{Applied, Change};
use crate::command::{Buffers, Command, Effect, NexusId, TaskAttribute};
use crate::lun::{LunConfig, lun_field};
use crate::sense::Status;
use crate::server::{DeviceServer, NexusInfo, PortConfig, ServerConfig};
use crate::task::Task;
use bdev::error::IoError;
use bdev::geometry::Geometry;
use bdev::io::{ATOMIC_BYTES_MAX, BdevId, Done, Io, Op, PIECE_BYTES};
use bdev::shard::{VOLUMES_FROM, tokens_of};
use bdev::storage::{Copied, CopyIo, Moved};
use reactor::Core;
use reactor::buf::{Buf, Pool, PoolConfig};
use std::collections::BTreeMap;
use std::ops::Range;

/// Buffers of a session, unless a test wants fewer. There are so many of the largest class that one is never missing
/// for another reason.
pub(crate) const BUFFERS_MAX: usize = 72;

/// The nexus that most tests speak for.
pub(crate) const NEXUS: NexusId = NexusId(1);
/// Another one.
pub(crate) const OTHER: NexusId = NexusId(2);

/// A session's buffers: a pool, and how many may be out.
pub(crate) struct Share {
    pool: Pool,
    pub(crate) out: usize,
    pub(crate) out_max: usize,
}

impl Buffers for Share {
    fn take(&mut self, bytes: usize) -> Option<Buf> {
        if self.out == self.out_max {
            return None;
        }
        let buf = self.pool.take(bytes)?;
        self.out += 1;
        Some(buf)
    }

    fn give(&mut self, buf: Buf) {
        self.out -= 1;
        self.pool.give(buf);
    }
}

/// What a command came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: Status,
    pub(crate) sense: Vec<u8>,
    pub(crate) data: Vec<u8>,
    pub(crate) transfer_bytes: u64,
    /// Data-out that was asked for.
    pub(crate) wanted: u32,
    /// Operation, FUA, first block, number of blocks.
    pub(crate) ios: Vec<(Op, bool, u64, u64)>,
}

impl Answer {
    /// Sense key, ASC and ASCQ as one number, e.g. 0x52400; 0 without sense. Either format.
    pub(crate) fn code(&self) -> u32 {
        let at = |index: usize| u32::from(self.sense[index]);
        match self.sense.first() {
            None => 0,
            Some(0x72) => at(1) << 16 | at(2) << 8 | at(3),
            Some(_) => (at(2) & 0xF) << 16 | at(12) << 8 | at(13),
        }
    }

    /// Of fixed sense: C/D, field pointer and, if valid, bit pointer.
    pub(crate) fn pointer(&self) -> Option<(bool, u16, Option<u8>)> {
        let flags = *self.sense.get(15)?;
        let bit = (flags & 0x08 != 0).then_some(flags & 0x07);
        (flags & 0x80 != 0)
            .then(|| (flags & 0x40 != 0, u16::from_be_bytes([self.sense[16], self.sense[17]]), bit))
    }

    /// Of fixed sense: INFORMATION, if valid.
    pub(crate) fn information(&self) -> Option<u32> {
        let bytes = self.sense.get(3..7)?.try_into().ok()?;
        (self.sense[0] & 0x80 != 0).then(|| u32::from_be_bytes(bytes))
    }

    #[track_caller]
    pub(crate) fn good(self) -> Answer {
        assert_eq!(self.status, Status::Good, "{self:02X?}");
        self
    }

    #[track_caller]
    pub(crate) fn bad(self, code: u32) -> Answer {
        assert_eq!((self.status, self.code()), (Status::CheckCondition, code), "{self:02X?}");
        self
    }

    /// INVALID FIELD IN CDB, pointing there.
    #[track_caller]
    pub(crate) fn bad_field(self, byte: u16, bit: Option<u8>) -> Answer {
        assert_eq!(self.pointer(), Some((true, byte, bit)), "{self:02X?}");
        self.bad(0x5_2400)
    }
}

/// A command, its direction and the room or data that the initiator offers.
#[derive(Debug, Clone)]
pub(crate) struct Offer<'a> {
    pub(crate) lun: [u8; 8],
    pub(crate) cdb: Vec<u8>,
    pub(crate) room: u32,
    pub(crate) data: &'a [u8],
    /// EDTL of the data, when it is not all there is.
    pub(crate) data_bytes: u32,
}

pub(crate) struct World {
    pub(crate) server: DeviceServer,
    pub(crate) disk: Vec<u8>,
    pub(crate) share: Share,
    /// IOs of this operation that touch this byte range fail.
    pub(crate) faults: Vec<(Op, Range<u64>, IoError)>,
    /// Reservations that were to be kept, and how that goes.
    pub(crate) kept: Vec<Vec<u8>>,
    pub(crate) keeps: Applied,
    /// What was decreed, and how that went.
    pub(crate) changes: Vec<(Change, Applied)>,
    /// Blocks of 512 bytes in the volume for tokens.
    pub(crate) store: BTreeMap<u64, Vec<u8>>,
    /// Bytes that the map says are deallocated.
    pub(crate) deallocated: Vec<Range<u64>>,
    /// Picks which IO comes back next.
    pub(crate) order: u64,
    /// A command that [`NEXUS`] sends when its next one is answered and goes on, and what that came to.
    pub(crate) ask_between: Option<Offer<'static>>,
    pub(crate) told_between: Vec<Answer>,
    block_bytes: u32,
}

/// 512-byte blocks on 4096-byte ones, thin, about 2.5 MiB: whole pieces and a rest.
pub(crate) fn geometry() -> Geometry {
    Geometry {
        block_bytes: 512,
        physical_block_bytes: 4096,
        blocks: 5000,
        unmap_granularity_bytes: 4096,
        write_zeroes: true,
        write_cache: true,
        read_only: false,
        rotational: false,
        pooled: false,
        atomic_bytes: 0,
    }
}

pub(crate) fn lun_config(lun: u16, geometry: Geometry) -> LunConfig {
    let mut id = *b"\x11\x22\x33\x44\x55\x66\x47\x88\x99\xAA\xBB\xCC\xDD\xEE\xFF\x00";
    id[14..].copy_from_slice(&lun.to_be_bytes());
    let serial = format!("SN{lun}");
    LunConfig {
        lun,
        bdev: BdevId(lun),
        geometry,
        id,
        serial,
        read_only: false,
        removable: false,
        reservations: None,
    }
}

/// A unit that knows every command: a volume whose medium can be ejected.
pub(crate) fn versatile(lun: u16) -> LunConfig {
    let geometry = Geometry { atomic_bytes: ATOMIC_BYTES_MAX, ..geometry() };
    LunConfig { removable: true, bdev: BdevId(VOLUMES_FROM + 1 + lun), ..lun_config(lun, geometry) }
}

pub(crate) fn server_config(luns: Vec<LunConfig>) -> ServerConfig {
    ServerConfig {
        target_name: "iqn.2026-11.io.pollux:test".to_owned(),
        ports: vec![
            PortConfig { relative_port: 1, tpgt: 1, group: 1 },
            PortConfig { relative_port: 2, tpgt: 2, group: 1 },
            PortConfig { relative_port: 3, tpgt: 0xABC, group: 7 },
        ],
        luns,
    }
}

pub(crate) fn info(relative_port: u16, after_loss: bool) -> NexusInfo {
    NexusInfo { initiator_name: "iqn.test:i".to_owned(), isid: [0; 6], relative_port, after_loss }
}

impl World {
    /// LUN 0 of this shape, and two nexuses that have been told of power on.
    pub(crate) fn new(geometry: Geometry) -> World {
        World::of(vec![lun_config(0, geometry)])
    }

    /// All units share the disk of the first one's size.
    pub(crate) fn of(luns: Vec<LunConfig>) -> World {
        let geometry = luns[0].geometry;
        let server = DeviceServer::new(Core(0), server_config(luns));
        let pool = Pool::new(PoolConfig { counts: [8, 4, BUFFERS_MAX as u32], arena: 0 })
            .expect("memory for a test");
        let mut world = World {
            server,
            disk: vec![0; geometry.bytes() as usize],
            share: Share { pool, out: 0, out_max: BUFFERS_MAX },
            faults: Vec::new(),
            kept: Vec::new(),
            keeps: Ok(()),
            changes: Vec::new(),
            store: BTreeMap::new(),
            deallocated: Vec::new(),
            order: 0,
            ask_between: None,
            told_between: Vec::new(),
            block_bytes: geometry.block_bytes,
        };
        for (nexus, port) in [(NEXUS, 1), (OTHER, 3)] {
            world.server.open_nexus(nexus, info(port, false));
            world.hear(nexus);
        }
        world
    }

    /// Makes a change, and remembers it for a replica.
    pub(crate) fn decree(&mut self, change: &Change) -> Applied {
        let applied = self.server.apply(change);
        self.changes.push((change.clone(), applied));
        applied
    }

    /// Takes the pending unit attentions of all units; their ASC and ASCQ.
    pub(crate) fn hear(&mut self, nexus: NexusId) -> Vec<u16> {
        let mut heard = Vec::new();
        for lun in self.server.luns() {
            loop {
                let answer = self.run_as(nexus, lun, &[0x03, 0, 0, 0, 18, 0], 18, &[]);
                let code = u16::from_be_bytes([answer.data[12], answer.data[13]]);
                if code == 0 {
                    break;
                }
                assert_eq!(answer.data[2], 6);
                heard.push(code);
            }
        }
        heard
    }

    /// Runs a command of [`NEXUS`] on LUN 0 with `room` bytes for data-in.
    pub(crate) fn get(&mut self, cdb: &[u8], room: u32) -> Answer {
        self.run_as(NEXUS, 0, cdb, room, &[])
    }

    /// Runs a command of [`NEXUS`] on LUN 0 with data-out.
    pub(crate) fn put(&mut self, cdb: &[u8], data: &[u8]) -> Answer {
        self.run_as(NEXUS, 0, cdb, 0, data)
    }

    pub(crate) fn run_as(&mut self, nexus: NexusId, lun: u16, cdb: &[u8], room: u32, data: &[u8]) -> Answer {
        let offer =
            Offer { lun: lun_field(lun), cdb: cdb.to_vec(), room, data, data_bytes: data.len() as u32 };
        self.run(nexus, &offer)
    }

    pub(crate) fn run(&mut self, nexus: NexusId, offer: &Offer<'_>) -> Answer {
        self.run_until(nexus, offer, usize::MAX).expect("a command that is not aborted ends")
    }

    /// Runs a command up to its `steps`th event (effect, piece of data, IO back), and then aborts it.
    pub(crate) fn run_until(&mut self, nexus: NexusId, offer: &Offer<'_>, steps: usize) -> Option<Answer> {
        let out_before = self.share.out;
        let mut cdb = [0; 16];
        cdb[..offer.cdb.len()].copy_from_slice(&offer.cdb);
        let command = Command {
            lun: offer.lun,
            cdb,
            attribute: TaskAttribute::Simple,
            data_out_bytes: offer.data_bytes,
            data_in_bytes: offer.room,
        };
        let mut task = self.server.begin(nexus, &command);
        let mut run = Run {
            offer,
            answer: None,
            answered: false,
            over: false,
            data: BTreeMap::new(),
            ios: Vec::new(),
            copies: Vec::new(),
            question: None,
            wanted: 0,
            sent: 0,
            log: Vec::new(),
        };
        let mut aborted = false;
        for step in 0..10_000_000 {
            if step == steps && !aborted {
                task.abort(&mut self.server);
                aborted = true;
            }
            if !self.step(&mut task, &mut run, aborted) {
                break;
            }
            assert!(step < 9_999_999, "the command does not end: {offer:02X?}");
        }
        assert_eq!((task.ios_out(), task.writes_out()), (0, 0));
        assert!(task.poll(&mut self.server, &mut self.share).is_none(), "nothing comes after the end");
        task.release(&mut self.share);
        if let Some(change) = task.take_last_change(&mut self.server) {
            self.decree(&change).expect("nobody could answer for it");
        }
        self.free_tokens();
        assert_eq!(self.share.out, out_before, "a buffer is lost");
        run.answer
    }

    /// One event. Whether there may be more.
    fn step(&mut self, task: &mut Task, run: &mut Run<'_>, aborted: bool) -> bool {
        if let Some(effect) = task.poll(&mut self.server, &mut self.share) {
            assert!(!aborted, "an aborted task wants nothing");
            self.on_effect(task, run, effect);
            return !run.over;
        }
        if run.sent < run.wanted && !aborted {
            let end = task.piece_end(run.sent);
            assert!(end > run.sent && end <= run.wanted);
            // As the transport does: data leave the last buffer to the task.
            let has_headroom = self.share.out + 1 < self.share.out_max;
            let buf = has_headroom.then(|| self.share.take((end - run.sent) as usize)).flatten();
            if let Some(mut buf) = buf {
                buf.copy_from_slice(&run.offer.data[run.sent as usize..end as usize]);
                task.data_out(run.sent, buf);
                run.sent = end;
                return true;
            }
        }
        if !run.copies.is_empty() {
            let copied = self.copy(run.copies.remove(0));
            task.copy_done(&mut self.server, &copied);
            return true;
        }
        if let Some((from, bytes)) = run.question.take() {
            let (bytes, mapped) = self.ask_map(from, bytes);
            task.status_done(bytes, mapped);
            return true;
        }
        if run.ios.is_empty() {
            assert!(aborted, "the command stands still: {:02X?}", run.offer);
            return false;
        }
        self.order =
            self.order.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let io = run.ios.remove((self.order >> 33) as usize % run.ios.len());
        if !io.op.has_parts() {
            let done = self.carry_out(io);
            task.io_done(done);
            return true;
        }
        // A command has one, and all parts of it are one step.
        let op = io.op;
        let mut parts = vec![io];
        parts.extend(run.ios.extract_if(.., |io| io.op == op));
        parts.sort_by_key(|io| io.lba);
        let more = parts.iter().rev().map(|io| usize::from(io.more_parts));
        assert!(aborted || more.eq(0..parts.len()), "parts follow each other");
        let result = match op {
            Op::WriteAtomic => self.write_atomic(&parts),
            _ => self.swap(&parts),
        };
        for io in parts {
            task.io_done(Done { io, result });
        }
        true
    }

    fn on_effect(&mut self, task: &mut Task, run: &mut Run<'_>, effect: Effect) {
        match effect {
            Effect::WantData { bytes } => {
                assert!(run.wanted == 0 && bytes > 0 && bytes <= run.offer.data_bytes);
                run.wanted = bytes;
            }
            Effect::Submit(io) => {
                self.check_io(&io);
                run.log.push((io.op, io.fua, io.lba, io.blocks));
                run.ios.push(io);
                let writes = run.ios.iter().filter(|io| io.op.writes()).count();
                assert_eq!((task.ios_out(), task.writes_out()), (run.ios.len() as u32, writes as u32));
            }
            Effect::Copy(io) => run.copies.push(io),
            Effect::StopCopy { .. } => {}
            Effect::Status { from_bytes, bytes, .. } => {
                assert!(from_bytes + bytes <= self.disk.len() as u64 && bytes > 0);
                assert!(from_bytes.is_multiple_of(u64::from(self.block_bytes)));
                assert!(run.question.replace((from_bytes, bytes)).is_none());
                assert_eq!((task.ios_out(), task.writes_out()), (1, 0));
            }
            Effect::DataIn { offset, buf } => {
                assert!(!buf.is_empty() && u64::from(offset) + buf.len() as u64 <= u64::from(run.offer.room));
                assert!(run.data.insert(offset, buf.to_vec()).is_none());
                self.share.give(buf);
            }
            Effect::Propose(change) => {
                task.decreed(self.decree(&change));
            }
            Effect::Keep { lun } => {
                let (_, bytes) = self.server.reservations_to_keep(lun).expect("a unit that is there");
                self.kept.push(bytes);
                task.kept(self.keeps);
            }
            Effect::Answer(outcome) => {
                assert!(!std::mem::replace(&mut run.answered, true) && run.data.is_empty());
                run.answer = Some(Answer {
                    status: outcome.status,
                    sense: outcome.sense.map_or_else(Vec::new, |sense| sense.to_vec()),
                    data: Vec::new(),
                    transfer_bytes: outcome.transfer_bytes,
                    wanted: run.wanted,
                    ios: std::mem::take(&mut run.log),
                });
                if let Some(ask) = self.ask_between.take() {
                    // The nexus asks while the work goes on.
                    let answer = self.run(NEXUS, &ask);
                    self.told_between.push(answer);
                }
            }
            Effect::Finish(_) if run.answered => {
                assert!(run.ios.is_empty() && run.copies.is_empty());
                run.over = true;
            }
            Effect::Finish(outcome) => {
                run.over = true;
                assert!(run.ios.is_empty() && run.copies.is_empty());
                let mut data = Vec::new();
                for (&offset, piece) in &run.data {
                    // Pieces behind one that failed may have been quicker; they are not delivered.
                    if outcome.status != Status::Good && offset as usize != data.len() {
                        break;
                    }
                    assert_eq!(offset as usize, data.len(), "data-in has a hole");
                    data.extend_from_slice(piece);
                }
                run.answer = Some(Answer {
                    status: outcome.status,
                    sense: outcome.sense.map_or_else(Vec::new, |sense| sense.to_vec()),
                    data,
                    transfer_bytes: outcome.transfer_bytes,
                    wanted: run.wanted,
                    ios: std::mem::take(&mut run.log),
                });
            }
        }
    }

    /// What a pool's map would say: at most to the end of the stripe.
    fn ask_map(&self, from: u64, bytes: u64) -> (u64, bool) {
        let end = (from + bytes).min((from / (256 << 10) + 1) * (256 << 10));
        let mapped = |at: u64| !self.deallocated.iter().any(|range| range.contains(&at));
        let step = u64::from(self.block_bytes);
        let same = (from..end).step_by(step as usize).take_while(|&at| mapped(at) == mapped(from)).count();
        (same as u64 * step, mapped(from))
    }

    fn check_io(&self, io: &Io) {
        let piece_blocks = PIECE_BYTES / u64::from(self.block_bytes);
        assert!((io.lba + io.blocks) * u64::from(self.block_bytes) <= self.disk.len() as u64);
        if io.op.has_data() {
            assert!(io.blocks > 0 && io.lba / piece_blocks == (io.lba + io.blocks - 1) / piece_blocks);
            let bytes = (io.blocks * u64::from(self.block_bytes)) as usize;
            let buf_bytes = io.op.buf_bytes(bytes as u64) as usize;
            assert_eq!(io.buf.as_ref().map(|buf| buf.len()), Some(buf_bytes));
            assert_eq!(io.scratch.as_ref().map(|buf| buf.len()), io.op.needs_scratch().then_some(bytes));
        } else {
            assert!(io.buf.is_none() && io.scratch.is_none() && (io.op == Op::Flush) == (io.blocks == 0));
        }
    }

    /// A compare and write of these parts.
    fn swap(&mut self, parts: &[Io]) -> Result<(), IoError> {
        let block_bytes = self.block_bytes as usize;
        let mut equal = 0;
        for io in parts {
            let bytes = io.lba * block_bytes as u64..(io.lba + io.blocks) * block_bytes as u64;
            let is_it = |(op, range, _): &&(Op, Range<u64>, IoError)| {
                *op == io.op && range.start < bytes.end && bytes.start < range.end
            };
            if let Some(&(_, _, error)) = self.faults.iter().find(is_it) {
                return Err(error);
            }
            let medium = &self.disk[bytes.start as usize..bytes.end as usize];
            let expected = &io.buf.as_ref().expect("it has data")[..medium.len()];
            if let Some(at) = medium.iter().zip(expected).position(|(a, b)| a != b) {
                return Err(IoError::Miscompare { offset_bytes: (equal + at) as u32 });
            }
            equal += medium.len();
        }
        for io in parts {
            let new = io.buf.as_ref().expect("it has data");
            let medium = &mut self.disk[io.lba as usize * block_bytes..][..new.len() / 2];
            medium.copy_from_slice(&new[new.len() / 2..]);
        }
        Ok(())
    }

    /// A copy on the one disk that all units share.
    fn copy(&mut self, io: CopyIo) -> Copied {
        let (from, to) = (io.source_bytes..io.source_bytes + io.bytes, io.destination_bytes);
        let meets = |range: &Range<u64>, at: &Range<u64>| range.start < at.end && at.start < range.end;
        let fault = |(op, range, _): &&(Op, Range<u64>, IoError)| match op {
            Op::Read => meets(range, &from),
            Op::Write => meets(range, &(to..to + io.bytes)),
            _ => false,
        };
        if let Some(&(_, _, error)) = self.faults.iter().find(fault) {
            return Copied { io, result: Err(error), moved: Moved::default() };
        }
        let is_store = |bdev| tokens_of(bdev) == Some(bdev);
        let blocks = |first: u64| first / 512..(first + io.bytes) / 512;
        let data: Vec<u8> = if is_store(io.source) {
            let stored = blocks(from.start).map(|block| self.store.get(&block));
            stored.flat_map(|stored| stored.cloned().unwrap_or_else(|| vec![0; 512])).collect()
        } else {
            self.disk[from.start as usize..from.end as usize].to_vec()
        };
        if is_store(io.destination) {
            self.store.extend(blocks(to).zip(data.chunks(512).map(<[u8]>::to_vec)));
        } else {
            self.disk[to as usize..][..data.len()].copy_from_slice(&data);
        }
        Copied { io, result: Ok(()), moved: Moved { shared_bytes: io.bytes, ..Moved::default() } }
    }

    /// What tokens that ended held is given back.
    pub(crate) fn free_tokens(&mut self) {
        while let Some(io) = self.server.poll_free() {
            assert_eq!((io.op, tokens_of(io.bdev)), (Op::Unmap, Some(io.bdev)));
            self.store.retain(|block, _| !(io.lba..io.lba + io.blocks).contains(block));
            assert!(self.server.poll_free().is_none(), "one after the other");
            self.server.free_done(&Done { io, result: Ok(()) });
        }
    }

    fn bytes_of(&self, io: &Io) -> std::ops::Range<u64> {
        let block_bytes = u64::from(self.block_bytes);
        io.lba * block_bytes..(io.lba + io.blocks) * block_bytes
    }

    fn fault_of(&self, io: &Io) -> Option<IoError> {
        let bytes = self.bytes_of(io);
        let is_hit = |range: &std::ops::Range<u64>| range.start < bytes.end && bytes.start < range.end;
        let fault = self.faults.iter().find(|(op, range, _)| *op == io.op && is_hit(range));
        fault.map(|&(_, _, error)| error)
    }

    fn write_atomic(&mut self, parts: &[Io]) -> Result<(), IoError> {
        if let Some(error) = parts.iter().find_map(|part| self.fault_of(part)) {
            return Err(error);
        }
        for part in parts {
            let bytes = self.bytes_of(part);
            let data = part.buf.as_deref().expect("it brings its data");
            self.disk[bytes.start as usize..bytes.end as usize].copy_from_slice(data);
        }
        Ok(())
    }

    fn carry_out(&mut self, mut io: Io) -> Done {
        let bytes = self.bytes_of(&io);
        if let Some(error) = self.fault_of(&io) {
            return Done { io, result: Err(error) };
        }
        let medium = &mut self.disk[bytes.start as usize..bytes.end as usize];
        let mut result = Ok(());
        match (io.op, io.buf.as_deref_mut()) {
            (Op::Read, Some(buf)) => buf.copy_from_slice(medium),
            (Op::Write, Some(buf)) => medium.copy_from_slice(buf),
            (Op::OrWrite, Some(buf)) => medium.iter_mut().zip(buf.iter()).for_each(|(to, from)| *to |= from),
            (Op::Compare, Some(buf)) => {
                if let Some(at) = medium.iter().zip(buf.iter()).position(|(a, b)| a != b) {
                    result = Err(IoError::Miscompare { offset_bytes: at as u32 });
                }
            }
            (Op::WriteZeroes | Op::Unmap, None) => medium.fill(0),
            (Op::Flush, None) => {}
            (op, _) => panic!("{op:?} with the wrong buffers"),
        }
        Done { io, result }
    }
}

/// A command on its way.
struct Run<'a> {
    offer: &'a Offer<'a>,
    answer: Option<Answer>,
    /// It was answered, and goes on.
    answered: bool,
    /// It is through.
    over: bool,
    data: BTreeMap<u32, Vec<u8>>,
    ios: Vec<Io>,
    copies: Vec<CopyIo>,
    /// To the map: first byte, bytes.
    question: Option<(u64, u64)>,
    wanted: u32,
    sent: u32,
    log: Vec<(Op, bool, u64, u64)>,
}

/// Bytes that tell their place.
pub(crate) fn pattern(bytes: usize, seed: u8) -> Vec<u8> {
    (0..bytes)
        .map(|at| (at as u8).wrapping_mul(31).wrapping_add((at >> 8) as u8).wrapping_add(seed) | 1)
        .collect()
}

/// A 10-byte block CDB.
pub(crate) fn cdb10(opcode: u8, flags: u8, lba: u32, blocks: u16) -> Vec<u8> {
    let mut cdb = vec![opcode, flags];
    cdb.extend_from_slice(&lba.to_be_bytes());
    cdb.push(0);
    cdb.extend_from_slice(&blocks.to_be_bytes());
    cdb.push(0);
    cdb
}

/// A 16-byte block CDB.
pub(crate) fn cdb16(opcode: u8, flags: u8, lba: u64, blocks: u32) -> Vec<u8> {
    let mut cdb = vec![opcode, flags];
    cdb.extend_from_slice(&lba.to_be_bytes());
    cdb.extend_from_slice(&blocks.to_be_bytes());
    cdb.extend_from_slice(&[0, 0]);
    cdb
}

/// A 12-byte block CDB.
pub(crate) fn cdb12(opcode: u8, flags: u8, lba: u32, blocks: u32) -> Vec<u8> {
    let mut cdb = vec![opcode, flags];
    cdb.extend_from_slice(&lba.to_be_bytes());
    cdb.extend_from_slice(&blocks.to_be_bytes());
    cdb.extend_from_slice(&[0, 0]);
    cdb
}
