//! The topmost layer of every stack: requests that are one step for all who overlap them, and long ones that are
//! many steps.
//!
//! [`Op::Compare`] and [`Op::OrWrite`] are made of reads and writes of the layer below, ordered by a [`Gate`]; the
//! same gate fences requests that were given up. [`Op::WriteZeroes`] and [`Op::Unmap`] of any length go down a step
//! at a time, and hold a step's range at a time, so that nobody waits behind more than one step.
//!
//! Invariant: `guests[i]` is there exactly while the gate's hold with index `i` is. A request is in one place: with
//! its guest, in `ready`, or below under its hold's name as tag.

use crate::error::IoError;
use crate::gate::{Gate, Mode};
use crate::geometry::Geometry;
use crate::io::{Done, Io, Op, Tag};
use crate::layer::{Bdev, Effects};
use reactor::Core;
use reactor::buf::Buf;
use reactor::disk::DiskDone;
use reactor::slots::Slot;
use std::collections::VecDeque;

/// The longest range that goes down at once, for each kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Steps {
    /// For [`Op::WriteZeroes`].
    pub zeroes_bytes: u64,
    /// For [`Op::Unmap`].
    pub unmap_bytes: u64,
}

/// A range request on its way through its steps.
#[derive(Debug)]
struct Long {
    io: Io,
    done_blocks: u64,
    /// The step that is out.
    step_blocks: u64,
    abandoned: bool,
}

#[derive(Debug)]
enum Work {
    /// Below as it came but for the tag.
    Pass,
    /// Waits at the gate.
    Parked(Io),
    /// Below as a read into the scratch memory, which stands in the buffer's place.
    Compare,
    /// The same; then it is written back.
    OrRead,
    /// Below as a write of the scratch memory.
    OrWrite,
    /// A step of a range is below.
    Step(Long),
    /// A step of a range waits at the gate.
    ParkedStep(Long),
}

#[derive(Debug)]
struct Guest {
    from: Core,
    tag: Tag,
    work: Work,
}

/// The layer. See the module.
#[derive(Debug)]
pub struct Atomic<B> {
    below: B,
    steps: Steps,
    gate: Gate,
    guests: Vec<Option<Guest>>,
    /// Ranges whose next step is to be taken, one a turn.
    ready: VecDeque<Long>,
    lower: Effects,
}

impl<B: Bdev> Atomic<B> {
    /// The layer over `below`, for at most `capacity` requests at once.
    pub fn over(below: B, steps: Steps, capacity: usize) -> Atomic<B> {
        assert!(steps.zeroes_bytes >= u64::from(below.geometry().block_bytes));
        assert!(steps.unmap_bytes >= u64::from(below.geometry().block_bytes));
        Atomic {
            below,
            steps,
            gate: Gate::new(capacity),
            guests: Vec::new(),
            ready: VecDeque::new(),
            lower: Effects::default(),
        }
    }

    /// Gives up the requests of `from` with this tag: what waits here ends at once, ranges take no further step, and
    /// what the layer below has already is fenced until it comes back.
    pub fn abandon(&mut self, from: Core, tag: Tag, effects: &mut Effects) {
        let is_it = |io: &Io| io.from == from && io.tag == tag;
        let mut kept = VecDeque::with_capacity(self.ready.len());
        while let Some(long) = self.ready.pop_front() {
            if is_it(&long.io) {
                effects.done.push_back(Done { io: long.io, result: Err(IoError::ABANDONED) });
            } else {
                kept.push_back(long);
            }
        }
        self.ready = kept;
        let known: Vec<Slot> = self.gate.slots().collect();
        for slot in known {
            let place = &mut self.guests[slot.index()];
            let Some(guest) = place.as_mut().filter(|guest| guest.from == from && guest.tag == tag) else {
                continue;
            };
            if let Work::Step(long) = &mut guest.work {
                long.abandoned = true;
            }
            match &guest.work {
                Work::Parked(_) | Work::ParkedStep(_) => {
                    let parked = place.take();
                    // One that was admitted this moment is resumed before anybody can come here.
                    assert!(self.gate.withdraw(slot));
                    if let Some(Work::Parked(io) | Work::ParkedStep(Long { io, .. })) = parked.map(|p| p.work)
                    {
                        effects.done.push_back(Done { io, result: Err(IoError::ABANDONED) });
                    }
                }
                Work::Pass | Work::Compare | Work::OrRead | Work::OrWrite | Work::Step(_) => {
                    self.gate.fence(slot);
                }
            }
        }
        self.resume_admitted();
        self.settle(effects);
    }

    fn enter(&mut self, io: Io) {
        let mode = if io.op == Op::OrWrite { Mode::Exclusive } else { Mode::Shared };
        let (slot, admitted) = self.gate.enter(io.lba..io.lba + io.blocks, mode);
        if admitted {
            self.begin(slot, io);
        } else {
            self.seat(slot, io.from, io.tag, Work::Parked(io));
        }
    }

    fn begin(&mut self, slot: Slot, mut io: Io) {
        let work = match io.op {
            Op::Read | Op::Write | Op::Flush => Work::Pass,
            Op::Compare => Work::Compare,
            Op::OrWrite => Work::OrRead,
            Op::WriteZeroes | Op::Unmap => unreachable!("ranges go down in steps"),
        };
        if let Work::Compare | Work::OrRead = work {
            std::mem::swap(&mut io.buf, &mut io.scratch);
            io.op = Op::Read;
        }
        self.seat(slot, io.from, io.tag, work);
        io.tag = Tag(slot.to_bits());
        self.below.submit(io, &mut self.lower);
    }

    /// Asks for the range of a long request's next step.
    fn enter_step(&mut self, mut long: Long) {
        let step_bytes = match long.io.op {
            Op::WriteZeroes => self.steps.zeroes_bytes,
            _ => self.steps.unmap_bytes,
        };
        let most = step_bytes / u64::from(self.geometry().block_bytes);
        let first = long.io.lba + long.done_blocks;
        // Steps end at multiples of their length, so that only a range's own ends can be unaligned.
        long.step_blocks = (most - first % most).min(long.io.blocks - long.done_blocks);
        let (slot, admitted) = self.gate.enter(first..first + long.step_blocks, Mode::Shared);
        if admitted {
            self.begin_step(slot, long);
        } else {
            self.seat(slot, long.io.from, long.io.tag, Work::ParkedStep(long));
        }
    }

    fn begin_step(&mut self, slot: Slot, long: Long) {
        let last = long.done_blocks + long.step_blocks == long.io.blocks;
        let step = Io {
            tag: Tag(slot.to_bits()),
            from: long.io.from,
            bdev: long.io.bdev,
            op: long.io.op,
            // A base makes ranges durable by a flush of the whole file, so the last one's covers all.
            fua: long.io.fua && last,
            lba: long.io.lba + long.done_blocks,
            blocks: long.step_blocks,
            buf: None,
            scratch: None,
        };
        self.seat(slot, long.io.from, long.io.tag, Work::Step(long));
        self.below.submit(step, &mut self.lower);
    }

    fn seat(&mut self, slot: Slot, from: Core, tag: Tag, work: Work) {
        if slot.index() >= self.guests.len() {
            self.guests.resize_with(slot.index() + 1, || None);
        }
        self.guests[slot.index()] = Some(Guest { from, tag, work });
    }

    /// Handles what the layer below said, until it has said all.
    #[inline]
    fn settle(&mut self, effects: &mut Effects) {
        loop {
            if !self.lower.disk.is_empty() {
                effects.disk.append(&mut self.lower.disk);
            }
            let Some(done) = self.lower.done.pop_front() else {
                return;
            };
            self.ended(done, effects);
            self.resume_admitted();
        }
    }

    fn resume_admitted(&mut self) {
        while let Some(slot) = self.gate.next_admitted() {
            let guest = self.guests[slot.index()].take().expect("a hold has its guest");
            match guest.work {
                Work::Parked(io) => self.begin(slot, io),
                Work::ParkedStep(long) => self.begin_step(slot, long),
                _ => unreachable!("only those wait"),
            }
        }
    }

    fn ended(&mut self, done: Done, effects: &mut Effects) {
        let Done { mut io, result } = done;
        let slot = Slot::from_bits(io.tag.0);
        let guest = self.guests[slot.index()].take().expect("what comes back went down");
        io.tag = guest.tag;
        let result = match guest.work {
            Work::Pass => result,
            Work::Compare => {
                std::mem::swap(&mut io.buf, &mut io.scratch);
                io.op = Op::Compare;
                result.and_then(|()| compare(io.buf.as_ref(), io.scratch.as_ref()))
            }
            Work::OrRead if result.is_ok() => {
                // Still in each other's places: what the medium has is in `buf`.
                or_into(io.buf.as_mut(), io.scratch.as_ref());
                io.op = Op::Write;
                self.seat(slot, io.from, io.tag, Work::OrWrite);
                io.tag = Tag(slot.to_bits());
                self.below.submit(io, &mut self.lower);
                return;
            }
            Work::OrRead | Work::OrWrite => {
                std::mem::swap(&mut io.buf, &mut io.scratch);
                io.op = Op::OrWrite;
                result
            }
            Work::Step(mut long) => {
                self.gate.leave(slot);
                long.done_blocks += long.step_blocks;
                let result = match result {
                    Ok(()) if long.done_blocks == long.io.blocks => Ok(()),
                    Ok(()) if long.abandoned => Err(IoError::ABANDONED),
                    Ok(()) => return self.ready.push_back(long),
                    Err(error) => Err(error),
                };
                effects.done.push_back(Done { io: long.io, result });
                return;
            }
            Work::Parked(_) | Work::ParkedStep(_) => unreachable!("those are not below"),
        };
        self.gate.leave(slot);
        effects.done.push_back(Done { io, result });
    }
}

impl<B: Bdev> Bdev for Atomic<B> {
    fn geometry(&self) -> &Geometry {
        self.below.geometry()
    }

    #[inline]
    fn submit(&mut self, io: Io, effects: &mut Effects) {
        match io.op {
            Op::Read | Op::Write | Op::Flush | Op::Compare | Op::OrWrite => self.enter(io),
            Op::WriteZeroes | Op::Unmap => {
                self.enter_step(Long { io, done_blocks: 0, step_blocks: 0, abandoned: false });
            }
        }
        self.settle(effects);
    }

    fn complete(&mut self, done: DiskDone, effects: &mut Effects) {
        self.below.complete(done, &mut self.lower);
        self.settle(effects);
    }

    fn turn(&mut self, effects: &mut Effects) -> bool {
        let more = self.below.turn(&mut self.lower);
        self.settle(effects);
        if let Some(long) = self.ready.pop_front() {
            self.enter_step(long);
            self.settle(effects);
        }
        more || !self.ready.is_empty()
    }
}

fn compare(expected: Option<&Buf>, found: Option<&Buf>) -> Result<(), IoError> {
    let (expected, found) = (bytes_of(expected), bytes_of(found));
    if expected == found {
        return Ok(());
    }
    let same = expected.iter().zip(found).take_while(|(left, right)| left == right).count();
    Err(IoError::Miscompare { offset_bytes: same as u32 })
}

fn or_into(medium: Option<&mut Buf>, mask: Option<&Buf>) {
    let medium = medium.map_or(&mut [] as &mut [u8], |buf| &mut **buf);
    for (byte, mask) in medium.iter_mut().zip(bytes_of(mask)) {
        *byte |= mask;
    }
}

fn bytes_of(buf: Option<&Buf>) -> &[u8] {
    buf.map_or(&[], |buf| &**buf)
}
