//! Logical blocks smaller than what the disk writes in one piece: a 512-byte block on a disk of 4,096 is read with
//! its neighbours, changed and written back.
//!
//! Writes that touch one physical block are ordered: one that must merge holds the blocks it touches alone among
//! writes, so no neighbour's write is undone by it. Reads don't wait: whatever they meet, the neighbours' bytes are
//! the same before and after. Merging needs a buffer; there is a fixed number, taken at start, and who finds none
//! waits in order. A buffer's holder never waits for a range, so this can't lock up.
//!
//! Invariant: a guest that merges has a hold in `gate`; `guest_of[hold]` is its guest.

use crate::error::IoError;
use crate::gate::{Gate, Mode};
use crate::geometry::Geometry;
use crate::io::{Done, Io, Op, PIECE_BYTES, Tag};
use crate::layer::{Bdev, Effects};
use reactor::buf::{BUF_BYTES_MAX, Buf};
use reactor::disk::DiskDone;
use reactor::slots::{Slot, Slots};
use std::collections::VecDeque;

#[derive(Debug)]
enum Work {
    /// Below as it came but for the tag.
    Pass,
    /// A buffer around the range is being read for it.
    Read(Io),
    /// A buffer around the range is being read, to be changed.
    MergeRead(Io),
    /// The changed buffer is being written.
    MergeWrite(Io),
    /// The aligned middle of a range is below.
    Middle(Io),
    /// All parts of a range are done; a flush makes them durable.
    Flush(Io),
    /// For a moment, or while it waits at the gate or for a buffer: what it is to do then stands in `next`.
    Parked(Io, Next),
}

/// What a parked guest waits to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Pass,
    Read,
    Merge,
    Middle,
}

#[derive(Debug)]
struct Guest {
    tag: Tag,
    hold: Option<Slot>,
    /// The part of a range request that is being done; for data the whole.
    first: u64,
    end: u64,
    work: Work,
}

/// See the module.
#[derive(Debug)]
pub struct Align<B> {
    below: B,
    /// Blocks in one physical block: a power of two.
    unit_blocks: u64,
    guests: Slots<Guest>,
    gate: Gate,
    guest_of: Vec<Slot>,
    bounces: Vec<Buf>,
    /// Who waits for a buffer.
    waiting: VecDeque<Slot>,
    lower: Effects,
}

impl<B: Bdev> Align<B> {
    /// The layer over a device that must be read and written in multiples of `align_bytes`. `bounces` are buffers of
    /// the largest size, at least one.
    pub fn over(below: B, align_bytes: u32, mut bounces: Vec<Buf>, capacity: usize) -> Align<B> {
        let block_bytes = below.geometry().block_bytes;
        assert!(align_bytes.is_power_of_two() && align_bytes > block_bytes);
        assert!(u64::from(align_bytes) <= PIECE_BYTES);
        let unit_blocks = u64::from(align_bytes / block_bytes);
        assert!(
            below.geometry().blocks.is_multiple_of(unit_blocks),
            "the device ends with a whole physical block"
        );
        assert!(!bounces.is_empty() && bounces.iter().all(|buf| buf.capacity() == BUF_BYTES_MAX));
        for buf in &mut bounces {
            buf.set_len(BUF_BYTES_MAX);
        }
        Align {
            below,
            unit_blocks,
            guests: Slots::with_capacity(capacity),
            gate: Gate::new(capacity, crate::stripe::STRIPE_BYTES / u64::from(block_bytes)),
            guest_of: Vec::new(),
            bounces,
            waiting: VecDeque::new(),
            lower: Effects::default(),
        }
    }

    fn is_aligned(&self, first: u64, end: u64) -> bool {
        (first | end).is_multiple_of(self.unit_blocks)
    }

    /// The physical blocks that a range touches.
    fn around(&self, first: u64, end: u64) -> (u64, u64) {
        (first - first % self.unit_blocks, end.next_multiple_of(self.unit_blocks))
    }

    /// Starts a request, or the next part of a range.
    fn admit(&mut self, io: Io, from_block: u64) {
        let end = io.lba + io.blocks;
        let (tag, first) = (io.tag, from_block);
        let (end, next, mode) = match io.op {
            Op::Flush => (end, Next::Pass, None),
            Op::Read if self.is_aligned(first, end) => (end, Next::Pass, None),
            Op::Read => (end, Next::Read, None),
            Op::Write if self.is_aligned(first, end) => (end, Next::Pass, Some(Mode::Shared)),
            Op::Write => (end, Next::Merge, Some(Mode::Exclusive)),
            Op::WriteZeroes | Op::Unmap => {
                let (block, block_end) = self.around(first, first + 1);
                if block != first || block_end > end {
                    // What is in the first physical block.
                    (block_end.min(end), Next::Merge, Some(Mode::Exclusive))
                } else {
                    (end - end % self.unit_blocks, Next::Middle, Some(Mode::Shared))
                }
            }
            Op::Compare | Op::OrWrite | Op::CompareAndWrite => {
                unreachable!("the layer above makes reads and writes of it")
            }
            Op::WriteAtomic | Op::Stage => unreachable!("the geometry says that there is none"),
        };
        let guest = Guest { tag, hold: None, first, end, work: Work::Parked(io, next) };
        let slot = self.guests.insert(guest).expect("the shard bounds its requests");
        let Some(mode) = mode else {
            return self.begin(slot);
        };
        let (first, end) = self.around(first, end);
        let (hold, admitted) = self.gate.enter(first..end, mode);
        if hold.index() >= self.guest_of.len() {
            self.guest_of.resize(hold.index() + 1, slot);
        }
        self.guest_of[hold.index()] = slot;
        self.guests.get_mut(slot).expect("inserted just now").hold = Some(hold);
        if admitted {
            self.begin(slot);
        }
    }

    /// Does what a parked guest waited for; it may still have to wait for a buffer.
    fn begin(&mut self, slot: Slot) {
        let tag = Tag(slot.to_bits());
        let unit_blocks = self.unit_blocks;
        let block_bytes = u64::from(self.below.geometry().block_bytes);
        let guest = self.guests.get_mut(slot).expect("the caller has it");
        let Work::Parked(_, next) = &guest.work else {
            unreachable!("begun once");
        };
        let next = *next;
        let bounce = if let Next::Read | Next::Merge = next {
            match self.bounces.pop() {
                Some(bounce) => Some(bounce),
                None => return self.waiting.push_back(slot),
            }
        } else {
            None
        };
        let Work::Parked(mut io, _) = std::mem::replace(&mut guest.work, Work::Pass) else {
            unreachable!("looked at just now");
        };
        let below = match (next, bounce) {
            (Next::Read | Next::Merge, Some(mut bounce)) => {
                let first = guest.first - guest.first % unit_blocks;
                let blocks = guest.end.next_multiple_of(unit_blocks) - first;
                bounce.set_len((blocks * block_bytes) as usize);
                let read = child(&io, tag, Op::Read, first, blocks, Some(bounce));
                guest.work = if next == Next::Read { Work::Read(io) } else { Work::MergeRead(io) };
                read
            }
            (Next::Middle, _) => {
                let middle = child(&io, tag, io.op, guest.first, guest.end - guest.first, None);
                guest.work = Work::Middle(io);
                middle
            }
            (Next::Pass, _) => {
                io.tag = tag;
                io
            }
            (Next::Read | Next::Merge, None) => unreachable!("taken above"),
        };
        self.below.submit(below, &mut self.lower);
    }

    fn settle(&mut self, effects: &mut Effects) {
        loop {
            if !self.lower.disk.is_empty() {
                effects.disk.append(&mut self.lower.disk);
            }
            let Some(done) = self.lower.done.pop_front() else {
                return;
            };
            self.ended(done, effects);
            while let Some(hold) = self.gate.next_admitted() {
                self.begin(self.guest_of[hold.index()]);
            }
        }
    }

    fn ended(&mut self, done: Done, effects: &mut Effects) {
        let Done { io: mut below, result } = done;
        let slot = Slot::from_bits(below.tag.0);
        let guest = self.guests.get_mut(slot).expect("what comes back went down");
        match std::mem::replace(&mut guest.work, Work::Pass) {
            Work::Pass => {
                below.tag = guest.tag;
                self.leave(slot);
                effects.done.push_back(Done { io: below, result });
            }
            Work::Read(mut io) => {
                if let (Ok(()), Some(buf), Some(bounce)) = (result, io.buf.as_mut(), below.buf.as_ref()) {
                    let at = (guest.first - below.lba) as usize * (bounce.len() / below.blocks as usize);
                    let bytes = buf.len();
                    buf.copy_from_slice(&bounce[at..at + bytes]);
                }
                self.give_bounce(below.buf);
                self.leave(slot);
                effects.done.push_back(Done { io, result });
            }
            Work::MergeRead(io) if result.is_ok() => {
                if let Some(bounce) = below.buf.as_mut() {
                    let block_bytes = bounce.len() / below.blocks as usize;
                    let at = (guest.first - below.lba) as usize * block_bytes;
                    let part = &mut bounce[at..][..(guest.end - guest.first) as usize * block_bytes];
                    match io.buf.as_ref() {
                        Some(buf) => part.copy_from_slice(buf),
                        None => part.fill(0),
                    }
                }
                below.op = Op::Write;
                below.fua = io.fua && io.op == Op::Write;
                guest.work = Work::MergeWrite(io);
                self.below.submit(below, &mut self.lower);
            }
            Work::MergeRead(io) | Work::MergeWrite(io) => {
                self.give_bounce(below.buf);
                self.part_ended(slot, io, result, effects);
            }
            Work::Middle(io) => self.part_ended(slot, io, result, effects),
            Work::Flush(io) => {
                self.leave(slot);
                effects.done.push_back(Done { io, result });
            }
            Work::Parked(..) => unreachable!("those are not below"),
        }
    }

    /// A merge or the middle of a range has ended: on to the rest.
    fn part_ended(&mut self, slot: Slot, io: Io, result: Result<(), IoError>, effects: &mut Effects) {
        let end = self.leave(slot);
        if result.is_ok() && end < io.lba + io.blocks {
            self.admit(io, end);
        } else if result.is_ok() && io.fua && !io.op.has_data() {
            self.flush(io);
        } else {
            effects.done.push_back(Done { io, result });
        }
    }

    /// Behind the parts of a range that must be durable: those before it on their way down, too, rely on this one's
    /// flush, and a merge alone makes only itself durable.
    fn flush(&mut self, io: Io) {
        let flush = child(&io, io.tag, Op::Flush, 0, 0, None);
        let guest = Guest { tag: io.tag, hold: None, first: 0, end: 0, work: Work::Flush(io) };
        let slot = self.guests.insert(guest).expect("a place was freed just now");
        self.below.submit(Io { tag: Tag(slot.to_bits()), ..flush }, &mut self.lower);
    }

    /// Forgets a guest. Where it had got to.
    fn leave(&mut self, slot: Slot) -> u64 {
        let guest = self.guests.remove(slot).expect("the caller has it");
        if let Some(hold) = guest.hold {
            self.gate.leave(hold);
        }
        guest.end
    }

    fn give_bounce(&mut self, bounce: Option<Buf>) {
        self.bounces.extend(bounce);
        if let Some(slot) = self.waiting.pop_front() {
            self.begin(slot);
        }
    }
}

/// A request of our own on behalf of `io`.
fn child(io: &Io, tag: Tag, op: Op, lba: u64, blocks: u64, buf: Option<Buf>) -> Io {
    let (from, bdev, heartbeat) = (io.from, io.bdev, io.heartbeat);
    Io {
        tag,
        from,
        bdev,
        op,
        fua: false,
        heartbeat,
        disposable: false,
        more_parts: 0,
        lba,
        blocks,
        buf,
        scratch: None,
    }
}

impl<B: Bdev> Bdev for Align<B> {
    fn geometry(&self) -> &Geometry {
        self.below.geometry()
    }

    fn submit(&mut self, io: Io, effects: &mut Effects) {
        let first = io.lba;
        self.admit(io, first);
        self.settle(effects);
    }

    fn complete(&mut self, done: DiskDone, effects: &mut Effects) {
        self.below.complete(done, &mut self.lower);
        self.settle(effects);
    }

    fn turn(&mut self, effects: &mut Effects) -> bool {
        let more = self.below.turn(&mut self.lower);
        self.settle(effects);
        more
    }
}
