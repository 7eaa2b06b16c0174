//! A file or block device, by operations for the core's io_uring. Sans-IO: [`DiskOp`]s out, [`DiskDone`]s in; the
//! kernel is met in [`crate::base::open`] and in the reactor.
//!
//! Write-through unless the device has a write cache: each write is durable by itself. Ranges are durable when their
//! request says `fua` (the router knows when): the range's operation, then a sync of the file. What the file system
//! can't do is done with what it can: a hole becomes a zeroed range, that becomes zeroes written from buffers that
//! were taken at start, and what was refused once is not tried again.
//!
//! Short reads and writes are continued, interrupted ones tried again a bounded number of times.
//!
//! Invariant: each task in `tasks` has exactly one operation at the disk or stands in `retry`, but for ranges being
//! filled, which have as many as they have windows out.

use crate::error::IoError;
use crate::geometry::Geometry;
use crate::io::{BdevId, Done, Io, Op};
use crate::layer::{Bdev, Effects, Place};
use crate::shard::USER_BDEV_SHIFT;
use reactor::buf::Buf;
use reactor::disk::{DiskAction, DiskDone, DiskOp, FileId};
use reactor::slots::{Slot, Slots};
use std::collections::VecDeque;

/// The longest hole punched at once: metadata of this much take a file system a few milliseconds.
pub const UNMAP_STEP_BYTES: u64 = 256 << 20;

/// The longest range zeroed at once: a block device without the command writes as much.
pub const ZEROES_STEP_BYTES: u64 = 32 << 20;

/// How often an operation is tried again without having moved a byte. A turn lies between two tries.
const TRIES_MAX: u16 = 1000;

/// How many operations are tried again in one turn.
const RETRIES_A_TURN: usize = 64;

/// Linux error numbers, as they stand in completions.
mod errno {
    pub(super) const INTR: i32 = 4;
    pub(super) const IO: i32 = 5;
    pub(super) const AGAIN: i32 = 11;
    pub(super) const NOSPC: i32 = 28;
    pub(super) const NOSYS: i32 = 38;
    pub(super) const NODATA: i32 = 61;
    pub(super) const BADMSG: i32 = 74;
    pub(super) const ILSEQ: i32 = 84;
    pub(super) const OPNOTSUPP: i32 = 95;
    pub(super) const REMOTEIO: i32 = 121;
    pub(super) const DQUOT: i32 = 122;
}

/// What [`Uring`] has to know of its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UringConfig {
    /// Whose operations these are.
    pub bdev: BdevId,
    /// The file, as the rings know it.
    pub file: FileId,
    /// Offsets and lengths of reads and writes are multiples of this.
    pub align_bytes: u32,
    /// Holes can be punched.
    pub punch_hole: bool,
    /// Ranges can be zeroed without writing.
    pub zero_range: bool,
}

/// A data request.
#[derive(Debug)]
struct Transfer {
    io: Io,
    /// Moved so far, a multiple of the alignment.
    moved_bytes: u32,
    tries: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Punch,
    Zero,
    /// Windows of zeroes are written.
    Fill {
        cut_bytes: u64,
        out: u32,
        failed: Option<IoError>,
    },
    Sync,
}

/// A range or flush request.
#[derive(Debug)]
struct Span {
    io: Io,
    phase: Phase,
    tries: u16,
}

/// Part of a range that is filled with zeroes.
#[derive(Debug)]
struct Window {
    span: Slot,
    offset_bytes: u64,
    bytes: u32,
    moved_bytes: u32,
    tries: u16,
    /// Here while it is not at the disk.
    buf: Option<Buf>,
}

#[derive(Debug)]
enum Task {
    Transfer(Transfer),
    Span(Span),
    Window(Window),
}

/// See the module.
#[derive(Debug)]
pub struct Uring {
    geometry: Geometry,
    config: UringConfig,
    tasks: Slots<Task>,
    /// The name of each place's last guest.
    names: Vec<Slot>,
    /// Buffers full of zeroes that are not at the disk.
    zeroes: Vec<Buf>,
    /// Ranges that have windows to write, served in turns.
    filling: VecDeque<Slot>,
    retry: VecDeque<Slot>,
}

impl Uring {
    /// The device's part of one core, for at most `capacity` requests at once. `zeroes` are the buffers that zeroes
    /// are written from; at least one, unless the device is read-only.
    pub fn new(geometry: Geometry, config: UringConfig, mut zeroes: Vec<Buf>, capacity: usize) -> Uring {
        assert!(geometry.read_only || !zeroes.is_empty());
        for buf in &mut zeroes {
            buf.set_len(buf.capacity());
            buf.fill(0);
        }
        Uring {
            geometry,
            config,
            tasks: Slots::with_capacity(capacity + zeroes.len()),
            names: Vec::new(),
            zeroes,
            filling: VecDeque::new(),
            retry: VecDeque::new(),
        }
    }

    fn insert(&mut self, task: Task) -> Slot {
        let slot = self.tasks.insert(task).expect("the shard bounds its requests");
        if slot.index() == self.names.len() {
            self.names.push(slot);
        }
        self.names[slot.index()] = slot;
        slot
    }

    /// A task's operation names the device, the place, and as much of the generation as there is room for: an
    /// operation comes back once, so this only has to catch what can't happen.
    fn user(&self, slot: Slot) -> u64 {
        let generation = slot.to_bits() >> 32 & 0xffff;
        u64::from(self.config.bdev.0) << USER_BDEV_SHIFT | generation << 32 | slot.index() as u64
    }

    fn find(&self, user: u64) -> Option<Slot> {
        let slot = *self.names.get(user as u32 as usize)?;
        (self.user(slot) == user && self.tasks.get(slot).is_some()).then_some(slot)
    }

    /// Hands the task's next operation to the disk.
    fn issue(&mut self, slot: Slot, effects: &mut Effects) {
        let user = self.user(slot);
        let Geometry { block_bytes, write_cache, .. } = self.geometry;
        let file = self.config.file;
        let task = self.tasks.get_mut(slot).expect("the caller has it");
        let op = match task {
            Task::Transfer(Transfer { io, moved_bytes, .. }) => {
                let buf = io.buf.take().expect("the router checked the buffer");
                let action = match io.op {
                    Op::Read => DiskAction::Read,
                    _ => DiskAction::Write { durable: io.fua || !write_cache },
                };
                DiskOp {
                    user,
                    file,
                    action,
                    offset_bytes: io.lba * u64::from(block_bytes) + u64::from(*moved_bytes),
                    bytes: buf.len() as u64 - u64::from(*moved_bytes),
                    buf: Some(buf),
                    buf_offset: *moved_bytes,
                }
            }
            Task::Span(Span { io, phase, .. }) => {
                let (action, offset_bytes, bytes) = match phase {
                    Phase::Punch => (DiskAction::PunchHole, io.lba, io.blocks),
                    Phase::Zero => (DiskAction::ZeroRange, io.lba, io.blocks),
                    Phase::Sync => (DiskAction::Sync, 0, 0),
                    Phase::Fill { .. } => {
                        self.filling.push_back(slot);
                        return self.fill(effects);
                    }
                };
                let offset_bytes = offset_bytes * u64::from(block_bytes);
                let bytes = bytes * u64::from(block_bytes);
                DiskOp { user, file, action, offset_bytes, bytes, buf: None, buf_offset: 0 }
            }
            Task::Window(window) => DiskOp {
                user,
                file,
                // The range's own sync follows where it must be durable.
                action: DiskAction::Write { durable: false },
                offset_bytes: window.offset_bytes + u64::from(window.moved_bytes),
                bytes: u64::from(window.bytes - window.moved_bytes),
                buf: window.buf.take(),
                buf_offset: window.moved_bytes,
            },
        };
        effects.disk.push_back(op);
    }

    /// How a range is begun, by what the file system can do.
    fn first_phase(&self, op: Op) -> Phase {
        match op {
            Op::Flush => Phase::Sync,
            Op::Unmap if self.config.punch_hole => Phase::Punch,
            _ if self.config.zero_range => Phase::Zero,
            _ => Phase::Fill { cut_bytes: 0, out: 0, failed: None },
        }
    }

    /// Writes windows of zeroes while there are buffers, a window of each range in turn.
    fn fill(&mut self, effects: &mut Effects) {
        let block_bytes = u64::from(self.geometry.block_bytes);
        while let Some(&slot) = self.filling.front() {
            let Some(Task::Span(Span { io, phase: Phase::Fill { cut_bytes, out, failed }, .. })) =
                self.tasks.get_mut(slot)
            else {
                unreachable!("what is filled is a range");
            };
            let total_bytes = io.blocks * block_bytes;
            if failed.is_some() || *cut_bytes == total_bytes {
                self.filling.pop_front();
                continue;
            }
            let Some(buf) = self.zeroes.pop() else {
                return;
            };
            let bytes = (buf.len() as u64).min(total_bytes - *cut_bytes);
            let offset_bytes = io.lba * block_bytes + *cut_bytes;
            *cut_bytes += bytes;
            *out += 1;
            let window = Window {
                span: slot,
                offset_bytes,
                bytes: bytes as u32,
                moved_bytes: 0,
                tries: 0,
                buf: Some(buf),
            };
            self.filling.rotate_left(1);
            let window = self.insert(Task::Window(window));
            self.issue(window, effects);
        }
    }

    fn finish(&mut self, slot: Slot, result: Result<(), IoError>, effects: &mut Effects) {
        match self.tasks.remove(slot) {
            Some(Task::Transfer(Transfer { io, .. }) | Task::Span(Span { io, .. })) => {
                effects.done.push_back(Done { io, result });
            }
            Some(Task::Window(window)) => self.window_ended(window, result, effects),
            None => unreachable!("the caller has it"),
        }
    }

    fn window_ended(&mut self, window: Window, result: Result<(), IoError>, effects: &mut Effects) {
        self.zeroes.extend(window.buf);
        let slot = window.span;
        let block_bytes = u64::from(self.geometry.block_bytes);
        let Some(Task::Span(Span { io, phase: Phase::Fill { cut_bytes, out, failed }, .. })) =
            self.tasks.get_mut(slot)
        else {
            unreachable!("a range waits for its windows");
        };
        *out -= 1;
        if let Err(error) = result {
            failed.get_or_insert(error);
        }
        let over = *out == 0 && (failed.is_some() || *cut_bytes == io.blocks * block_bytes);
        let failed = *failed;
        if over {
            // It may stand there still, if its last window failed.
            self.filling.retain(|&filling| filling != slot);
            match failed {
                Some(error) => self.finish(slot, Err(error), effects),
                None => self.span_reads_as_zeroes(slot, effects),
            }
        }
        self.fill(effects);
    }

    /// The range is zero; now durable, if it has to be.
    fn span_reads_as_zeroes(&mut self, slot: Slot, effects: &mut Effects) {
        let Some(Task::Span(span)) = self.tasks.get_mut(slot) else {
            unreachable!("the caller has it");
        };
        if span.io.fua {
            span.phase = Phase::Sync;
            span.tries = 0;
            self.issue(slot, effects);
        } else {
            self.finish(slot, Ok(()), effects);
        }
    }

    /// A range's operation has ended.
    fn span_ended(&mut self, slot: Slot, result: Result<u32, i32>, effects: &mut Effects) {
        let Some(Task::Span(span)) = self.tasks.get_mut(slot) else {
            unreachable!("the caller has it");
        };
        match (result, span.phase) {
            (Ok(_), Phase::Sync) => self.finish(slot, Ok(()), effects),
            (Ok(_), _) => self.span_reads_as_zeroes(slot, effects),
            (Err(errno::OPNOTSUPP | errno::NOSYS), Phase::Punch | Phase::Zero) => {
                if span.phase == Phase::Punch {
                    self.config.punch_hole = false;
                } else {
                    self.config.zero_range = false;
                }
                tracing::warn!(
                    bdev = self.config.bdev.0,
                    punch_hole = self.config.punch_hole,
                    zero_range = self.config.zero_range,
                    "the file system refuses to free or zero space; zeroes are written instead"
                );
                let op = span.io.op;
                let phase = self.first_phase(op);
                if let Some(Task::Span(span)) = self.tasks.get_mut(slot) {
                    span.phase = phase;
                    span.tries = 0;
                }
                self.issue(slot, effects);
            }
            (Err(errno), _) => self.failed(slot, errno, effects),
        }
    }

    /// Bytes were moved, perhaps not all.
    fn moved(&mut self, slot: Slot, bytes: u32, effects: &mut Effects) {
        let align_bytes = self.config.align_bytes;
        let (moved_bytes, tries, total_bytes, reads) = match self.tasks.get_mut(slot) {
            Some(Task::Transfer(Transfer { io, moved_bytes, tries })) => {
                let total_bytes = io.buf.as_ref().map_or(0, |buf| buf.len() as u32);
                (moved_bytes, tries, total_bytes, io.op == Op::Read)
            }
            Some(Task::Window(window)) => (&mut window.moved_bytes, &mut window.tries, window.bytes, false),
            Some(Task::Span(_)) | None => unreachable!("the caller has it"),
        };
        let reached = moved_bytes.saturating_add(bytes);
        if reached == total_bytes {
            return self.finish(slot, Ok(()), effects);
        }
        // Past what was asked is no answer at all, and a read of nothing is past the end: the file was cut short.
        if reached > total_bytes || (reads && bytes == 0) {
            return self.finish(slot, Err(IoError::Device { errno: errno::IO }), effects);
        }
        // Direct IO goes on at a multiple of the alignment only.
        let aligned = reached - reached % align_bytes;
        if aligned > *moved_bytes {
            *moved_bytes = aligned;
            *tries = 0;
            self.issue(slot, effects);
        } else {
            self.failed(slot, errno::AGAIN, effects);
        }
    }

    /// An operation failed, or moved too little to count.
    fn failed(&mut self, slot: Slot, errno: i32, effects: &mut Effects) {
        let Some(
            Task::Transfer(Transfer { tries, .. })
            | Task::Span(Span { tries, .. })
            | Task::Window(Window { tries, .. }),
        ) = self.tasks.get_mut(slot)
        else {
            unreachable!("the caller has it");
        };
        if matches!(errno, errno::AGAIN | errno::INTR) && *tries < TRIES_MAX {
            *tries += 1;
            self.retry.push_back(slot);
        } else {
            self.finish(slot, Err(translate(errno)), effects);
        }
    }
}

impl Bdev for Uring {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    #[inline]
    fn submit(&mut self, io: Io, effects: &mut Effects) {
        let task = match io.op {
            Op::Read | Op::Write => {
                let block_bytes = u64::from(self.geometry.block_bytes);
                let align_bytes = u64::from(self.config.align_bytes);
                debug_assert!((io.lba * block_bytes).is_multiple_of(align_bytes));
                debug_assert!((io.blocks * block_bytes).is_multiple_of(align_bytes));
                Task::Transfer(Transfer { io, moved_bytes: 0, tries: 0 })
            }
            Op::WriteZeroes | Op::Unmap | Op::Flush => {
                Task::Span(Span { phase: self.first_phase(io.op), io, tries: 0 })
            }
            Op::Compare | Op::OrWrite | Op::CompareAndWrite => {
                unreachable!("the layer above makes reads and writes of it")
            }
            Op::WriteAtomic | Op::Stage => unreachable!("the geometry says that there is none"),
        };
        let slot = self.insert(task);
        self.issue(slot, effects);
    }

    fn place_now(&mut self, lba: u64, _: usize) -> Option<Place> {
        let offset_bytes = lba * u64::from(self.geometry.block_bytes);
        Some(Place::File { file: self.config.file, offset_bytes })
    }

    fn complete(&mut self, done: DiskDone, effects: &mut Effects) {
        let Some(slot) = self.find(done.user) else {
            debug_assert!(false, "a completion of nothing");
            return;
        };
        match self.tasks.get_mut(slot) {
            Some(Task::Transfer(transfer)) => transfer.io.buf = done.buf,
            Some(Task::Window(window)) => window.buf = done.buf,
            Some(Task::Span(_)) => return self.span_ended(slot, done.result, effects),
            None => unreachable!("found just now"),
        }
        match done.result {
            Ok(bytes) => self.moved(slot, bytes, effects),
            Err(errno) => self.failed(slot, errno, effects),
        }
    }

    fn turn(&mut self, effects: &mut Effects) -> bool {
        for _ in 0..self.retry.len().min(RETRIES_A_TURN) {
            let Some(slot) = self.retry.pop_front() else { break };
            self.issue(slot, effects);
        }
        !self.retry.is_empty()
    }
}

/// The kernel's reason in block terms.
pub(crate) fn translate(errno: i32) -> IoError {
    match errno {
        errno::NOSPC | errno::DQUOT => IoError::OutOfSpace,
        errno::IO | errno::NODATA | errno::BADMSG | errno::ILSEQ | errno::REMOTEIO => {
            IoError::Medium { errno }
        }
        errno => IoError::Device { errno },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Disk, geometry, io};
    use reactor::buf::{Pool, PoolConfig};

    struct Rig {
        uring: Uring,
        effects: Effects,
        disk: Disk,
        pool: Pool,
    }

    const BYTES: u64 = 1 << 20;

    fn rig(write_cache: bool) -> Rig {
        let mut pool = Pool::new(PoolConfig { counts: [8, 0, 0], arena: 0 }).unwrap();
        let zeroes = vec![pool.take(4096).unwrap(), pool.take(4096).unwrap()];
        let config = UringConfig {
            bdev: BdevId(3),
            file: FileId(9),
            align_bytes: 512,
            punch_hole: true,
            zero_range: true,
        };
        let shape = Geometry { write_cache, ..geometry(512, BYTES) };
        Rig {
            uring: Uring::new(shape, config, zeroes, 16),
            effects: Effects::default(),
            disk: Disk::new(BYTES, 512, 1),
            pool,
        }
    }

    impl Rig {
        fn submit(&mut self, op: Op, fua: bool, blocks: u64) {
            let buf = op.has_data().then(|| self.pool.take(blocks as usize * 512).unwrap());
            self.uring.submit(Io { fua, ..io(7, op, 8, blocks, buf) }, &mut self.effects);
        }

        /// Answers the operation at the front with this result, and says what it was.
        fn answer(&mut self, result: Result<u32, i32>) -> (DiskAction, u64, u64, u32) {
            let op = self.effects.disk.pop_front().expect("an operation");
            assert_eq!((op.file, op.user >> USER_BDEV_SHIFT), (FileId(9), 3));
            let was = (op.action, op.offset_bytes, op.bytes, op.buf_offset);
            self.uring.complete(DiskDone { user: op.user, result, buf: op.buf }, &mut self.effects);
            was
        }

        fn result(&mut self) -> Option<Result<(), IoError>> {
            self.effects.done.pop_front().map(|done| {
                assert_eq!(done.io.op.has_data(), done.io.buf.is_some());
                done.result
            })
        }
    }

    /// Goal: without a write cache each write is durable by itself; with one, those with fua.
    #[test]
    fn writes_are_durable_when_promised() {
        for (write_cache, fua, durable) in
            [(false, false, true), (false, true, true), (true, false, false), (true, true, true)]
        {
            let mut rig = rig(write_cache);
            rig.submit(Op::Write, fua, 1);
            assert_eq!(rig.answer(Ok(512)), (DiskAction::Write { durable }, 4096, 512, 0));
            assert_eq!(rig.result(), Some(Ok(())));
        }
    }

    /// Goal: what was cut short goes on from a multiple of the alignment, and ends when all is there.
    #[test]
    fn short_transfers_go_on() {
        let mut rig = rig(false);
        rig.submit(Op::Read, false, 8);
        assert_eq!(rig.answer(Ok(1000)), (DiskAction::Read, 4096, 4096, 0));
        assert_eq!(rig.answer(Ok(2048)), (DiskAction::Read, 4608, 3584, 512));
        assert_eq!(rig.result(), None);
        assert_eq!(rig.answer(Ok(1536)), (DiskAction::Read, 6656, 1536, 2560));
        assert_eq!(rig.result(), Some(Ok(())));
    }

    /// Goal: a file that was cut short meanwhile is an error, and so is a kernel that claims more than was asked.
    #[test]
    fn no_end_of_file_inside() {
        for bytes in [0, 5000, u32::MAX] {
            let mut rig = rig(false);
            rig.submit(Op::Read, false, 8);
            rig.answer(Ok(bytes));
            assert_eq!(rig.result(), Some(Err(IoError::Device { errno: 5 })));
        }
    }

    /// Goal: errors are told apart, and temporary ones tried again a bounded number of times, a turn apart.
    #[test]
    fn errors_in_block_terms() {
        for (errno, error) in [
            (5, IoError::Medium { errno: 5 }),
            (28, IoError::OutOfSpace),
            (122, IoError::OutOfSpace),
            (6, IoError::Device { errno: 6 }),
        ] {
            let mut rig = rig(false);
            rig.submit(Op::Write, false, 1);
            rig.answer(Err(errno));
            assert_eq!(rig.result(), Some(Err(error)));
        }
        let mut rig = rig(false);
        rig.submit(Op::Write, false, 2);
        // A write of nothing, or of less than can be continued from, counts like one that was interrupted.
        for answer in [Err(11), Err(4), Ok(0), Ok(511)].into_iter().cycle().take(usize::from(TRIES_MAX)) {
            rig.answer(answer);
            assert!(rig.effects.disk.is_empty());
            rig.uring.turn(&mut rig.effects);
        }
        assert_eq!(rig.result(), None);
        rig.answer(Err(11));
        assert_eq!(rig.result(), Some(Err(IoError::Device { errno: 11 })));
        assert!(!rig.uring.turn(&mut rig.effects));
    }

    /// Goal: a range is durable when it must be: its operation, then a sync.
    #[test]
    fn ranges_are_synced_when_promised() {
        let mut rig = rig(false);
        rig.submit(Op::Unmap, true, 100);
        assert_eq!(rig.answer(Ok(0)), (DiskAction::PunchHole, 4096, 51200, 0));
        assert_eq!(rig.result(), None);
        assert_eq!(rig.answer(Ok(0)), (DiskAction::Sync, 0, 0, 0));
        assert_eq!(rig.result(), Some(Ok(())));
        rig.submit(Op::WriteZeroes, false, 100);
        assert_eq!(rig.answer(Ok(0)).0, DiskAction::ZeroRange);
        assert_eq!(rig.result(), Some(Ok(())));
        rig.submit(Op::Flush, false, 0);
        assert_eq!(rig.answer(Err(5)).0, DiskAction::Sync);
        assert_eq!(rig.result(), Some(Err(IoError::Medium { errno: 5 })));
    }

    /// Goal: what the file system refuses is done by what it can do, and is not tried again. Method: refuse holes and
    /// zeroing; the zeroes must be written, whole, at most two windows at once, and synced.
    #[test]
    fn zeroes_are_written_where_nothing_else_helps() {
        let mut rig = rig(false);
        rig.submit(Op::Unmap, true, 21);
        assert_eq!(rig.answer(Err(95)).0, DiskAction::PunchHole);
        assert_eq!(rig.answer(Err(95)).0, DiskAction::ZeroRange);
        rig.disk.seen.fill(7);
        for (offset_bytes, bytes) in [(4096, 4096), (8192, 4096), (12288, 2560)] {
            assert!(rig.effects.disk.len() <= 2);
            let op = rig.effects.disk.pop_front().unwrap();
            assert_eq!((op.offset_bytes, op.bytes), (offset_bytes, bytes));
            let done = rig.disk.perform(op);
            rig.uring.complete(done, &mut rig.effects);
        }
        assert_eq!(rig.answer(Ok(0)).0, DiskAction::Sync);
        assert_eq!(rig.result(), Some(Ok(())));
        let zeroed = 4096..4096 + 21 * 512;
        for (at, &byte) in rig.disk.seen.iter().enumerate() {
            assert_eq!(byte, if zeroed.contains(&at) { 0 } else { 7 });
        }
        rig.submit(Op::WriteZeroes, false, 1);
        assert_eq!(rig.answer(Err(28)).0, DiskAction::Write { durable: false });
        assert_eq!(rig.result(), Some(Err(IoError::OutOfSpace)));
        // Both buffers are back.
        rig.submit(Op::Unmap, false, 1000);
        assert_eq!(rig.effects.disk.len(), 2);
    }
}
