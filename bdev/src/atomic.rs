//! The topmost layer of every stack: requests that are one step for all who overlap them, and long ones that are
//! many steps.
//!
//! [`Op::Compare`], [`Op::OrWrite`] and [`Op::CompareAndWrite`] are made of reads and writes of the layer below, ordered
//! by a [`Gate`]; the same gate fences requests that were given up. One that is given up while it still reads writes
//! nothing. [`Op::WriteZeroes`] and [`Op::Unmap`] of any length go down a step at a time, and hold a step's range at a
//! time, so that nobody waits behind more than one step.
//!
//! Invariant: `guests[i]` is there exactly while the gate's hold with index `i` is. A request is in one place: with
//! its guest, in `ready`, or below under its hold's name as tag.

use crate::edge::SwapEvent;
use crate::error::IoError;
use crate::gate::{Gate, Mode};
use crate::geometry::Geometry;
use crate::io::{Done, Io, Op, Tag};
use crate::layer::{Bdev, Effects, Place};
use crate::lent::Lent;
use crate::zero_detect::is_zero;
use reactor::Core;
use reactor::buf::Buf;
use reactor::disk::DiskDone;
use reactor::slots::Slot;
use std::collections::VecDeque;
use std::ops::Range;

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
}

/// What is done with the parts of a compare and write, one after the other, or of an atomic write, all at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// They are looked at; those of an atomic write are brought to where nobody sees them.
    Look,
    /// They are written.
    Change,
    /// What was written is taken back.
    Undo,
    /// Nothing, until somebody says how to go on.
    Held,
}

/// Parts of a compare and write that this layer holds together. Those that were below go to the end, so that all are in
/// order again when none is left.
#[derive(Debug)]
struct Swap {
    name: u64,
    phase: Phase,
    parts: VecDeque<Io>,
    /// Parts, from the front on, that this phase has not done; of an atomic write, those that are below.
    left: usize,
    is_atomic: bool,
    /// Bytes that are as they should be.
    equal_bytes: u32,
    /// Parts that may have been written.
    written: usize,
    /// What the part below has for its data, while zeroes need none, and its FUA.
    aside: Option<(Option<Buf>, Option<Buf>, bool)>,
    result: Result<(), IoError>,
}

impl Swap {
    /// A part was read.
    fn look_at(&mut self, part: &Io) {
        let found = part.scratch.as_deref().unwrap_or_default();
        let expected = part.buf.as_deref().unwrap_or_default();
        match compare(&expected[..found.len()], found) {
            Err(IoError::Miscompare { offset_bytes }) => {
                self.result = Err(IoError::Miscompare { offset_bytes: self.equal_bytes + offset_bytes });
            }
            result => self.result = result,
        }
        self.equal_bytes += found.len() as u32;
    }
}

#[derive(Debug)]
enum Work {
    /// Below as it came but for the tag.
    Pass,
    /// Waits at the gate.
    Parked(Io),
    /// Below as a read into the scratch memory, which stands in the buffer's place, for this operation.
    Look(Op),
    /// Below as a write of the scratch memory, which has what that operation makes of the range.
    Change(Op),
    /// A step of a range is below.
    Step(Long),
    /// A step of a range waits at the gate.
    ParkedStep(Long),
    /// Parts of a compare and write wait at the gate.
    ParkedSwap(Box<Swap>),
    /// They are held.
    Swap(Box<Swap>),
    /// Something below changes the range that is not a request.
    Beside,
    /// It waits at the gate, under this name.
    ParkedBeside(u64),
}

/// Who asks for what is not a request: no core.
const NO_CORE: Core = Core(u16::MAX);

#[derive(Debug)]
struct Guest {
    from: Core,
    tag: Tag,
    /// The asker wants no more of it to begin.
    abandoned: bool,
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
        let part_blocks = crate::stripe::STRIPE_BYTES / u64::from(below.geometry().block_bytes);
        assert!(steps.zeroes_bytes >= u64::from(below.geometry().block_bytes));
        assert!(steps.unmap_bytes >= u64::from(below.geometry().block_bytes));
        Atomic {
            below,
            steps,
            gate: Gate::new(capacity, part_blocks),
            guests: Vec::new(),
            ready: VecDeque::new(),
            lower: Effects::default(),
        }
    }

    /// Gives up the requests of `from` with this tag: what waits here ends at once, ranges take no further step, who
    /// was to write after a read does not, and what the layer below has already is fenced until it comes back.
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
            guest.abandoned = true;
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
                Work::ParkedSwap(_) => {
                    let parked = place.take();
                    assert!(self.gate.withdraw(slot));
                    if let Some(Work::ParkedSwap(swap)) = parked.map(|p| p.work) {
                        let Swap { name, parts, .. } = *swap;
                        let result = Err(IoError::ABANDONED);
                        effects.swaps.push_back(SwapEvent::Ended { name, parts: parts.into(), result });
                    }
                }
                // It is alone there as it is.
                Work::Swap(_) => {}
                Work::Pass | Work::Look(_) | Work::Change(_) | Work::Step(_) => {
                    self.gate.fence(slot);
                }
                Work::Beside | Work::ParkedBeside(_) => unreachable!("no core has asked for it"),
            }
        }
        self.resume_admitted();
        self.settle(effects);
    }

    /// Asks for a range for a change of the layer below that is not a request, as a write would. Its hold, and whether it
    /// is admitted at once; otherwise `name` comes out of [`Effects::changes`] when it is.
    pub fn enter_change(&mut self, blocks: Range<u64>, name: u64) -> (Slot, bool) {
        let (slot, admitted) = self.gate.enter(blocks, Mode::Shared);
        let work = if admitted { Work::Beside } else { Work::ParkedBeside(name) };
        self.seat(slot, NO_CORE, Tag(name), work);
        (slot, admitted)
    }

    /// The change is made, or will not be.
    pub fn leave_change(&mut self, slot: Slot, effects: &mut Effects) {
        self.guests[slot.index()] = None;
        self.gate.leave(slot);
        self.resume_admitted();
        self.settle(effects);
    }

    /// Holds parts of a compare and write, alone, and looks at them: [`Effects::swaps`] says by `name` what it saw. They go
    /// on being held until [`Atomic::end_swap`]. Their hold.
    ///
    /// Those of an atomic write go below as [`Op::Stage`], with that hold as their tag.
    pub fn enter_swap(&mut self, parts: Vec<Io>, name: u64, effects: &mut Effects) -> Slot {
        let (Some(first), Some(last)) = (parts.first(), parts.last()) else {
            unreachable!("parts of something")
        };
        let (from, tag) = (first.from, first.tag);
        let (slot, admitted) = self.gate.enter(first.lba..last.lba + last.blocks, Mode::Exclusive);
        let swap = Box::new(Swap {
            name,
            phase: Phase::Look,
            left: parts.len(),
            is_atomic: first.op == Op::WriteAtomic,
            parts: parts.into(),
            equal_bytes: 0,
            written: 0,
            aside: None,
            result: Ok(()),
        });
        let work = if admitted { Work::Swap(swap) } else { Work::ParkedSwap(swap) };
        self.seat(slot, from, tag, work);
        if admitted {
            self.next_part(slot);
        }
        self.settle(effects);
        slot
    }

    /// Writes held parts that were as they should be; [`Effects::swaps`] says how that went.
    pub fn write_swap(&mut self, slot: Slot, effects: &mut Effects) {
        let Some(swap) = self.held(slot) else { return };
        (swap.phase, swap.left) = (Phase::Change, swap.parts.len());
        self.next_part(slot);
        self.settle(effects);
    }

    /// Lets held parts go, which come out of [`Effects::swaps`]; with `undo` it takes back first what it wrote.
    pub fn end_swap(&mut self, slot: Slot, undo: bool, effects: &mut Effects) {
        let Some(swap) = self.held(slot) else { return };
        swap.written = if undo { swap.written } else { 0 };
        (swap.phase, swap.left) = (Phase::Undo, swap.written);
        self.next_part(slot);
        self.settle(effects);
    }

    fn held(&mut self, slot: Slot) -> Option<&mut Swap> {
        let Some(Some(Guest { work: Work::Swap(swap), .. })) = self.guests.get_mut(slot.index()) else {
            debug_assert!(false, "only what is held goes on");
            return None;
        };
        debug_assert_eq!(swap.phase, Phase::Held);
        Some(swap)
    }

    /// The next part goes down; after the last one it is said what came of it.
    fn next_part(&mut self, slot: Slot) {
        let (zeroes, cached) = (self.below.geometry().write_zeroes, self.below.geometry().write_cache);
        let Some(Guest { work: Work::Swap(swap), abandoned, .. }) = &mut self.guests[slot.index()] else {
            unreachable!("the caller has it")
        };
        if *abandoned && swap.phase == Phase::Look && swap.result.is_ok() {
            swap.result = Err(IoError::ABANDONED);
        }
        if swap.is_atomic && swap.phase == Phase::Look && swap.result.is_ok() {
            // It waits for no answer between them.
            for mut io in swap.parts.drain(..) {
                (io.op, io.tag) = (Op::Stage, Tag(slot.to_bits()));
                self.below.submit(io, &mut self.lower);
            }
            return;
        }
        if swap.result.is_err() && swap.phase != Phase::Undo {
            swap.parts.rotate_left(swap.left);
            swap.left = 0;
        }
        if swap.left > 0
            && let Some(mut io) = swap.parts.pop_front()
        {
            io.op = Op::Read;
            std::mem::swap(&mut io.buf, &mut io.scratch);
            if let (Phase::Change | Phase::Undo, Some(memory), Some(asked)) =
                (swap.phase, &mut io.buf, &io.scratch)
            {
                let (expected, new) = asked.split_at(memory.len());
                memory.copy_from_slice(if swap.phase == Phase::Change { new } else { expected });
                (io.op, io.heartbeat) = (Op::Write, true);
                swap.written += usize::from(swap.phase == Phase::Change);
                if swap.phase == Phase::Undo && is_zero(memory) && zeroes {
                    // Where space is short nothing is to be mapped that was not.
                    swap.aside = Some((io.buf.take(), io.scratch.take(), io.fua));
                    (io.op, io.heartbeat, io.fua) = (Op::WriteZeroes, false, io.fua || !cached);
                }
            }
            io.tag = Tag(slot.to_bits());
            return self.below.submit(io, &mut self.lower);
        }
        let (name, result) = (swap.name, swap.result);
        if swap.phase != Phase::Undo {
            swap.phase = Phase::Held;
            return self.lower.swaps.push_back(SwapEvent::Paused { name, result });
        }
        swap.parts.rotate_left(swap.parts.len() - swap.written);
        let parts = std::mem::take(&mut swap.parts).into();
        self.lower.swaps.push_back(SwapEvent::Ended { name, parts, result: Ok(()) });
        self.guests[slot.index()] = None;
        self.gate.leave(slot);
        self.resume_admitted();
    }

    /// Whether whoever comes and is shared is let in.
    pub fn is_open(&self) -> bool {
        self.gate.is_open()
    }

    /// The layer below.
    pub fn below_mut(&mut self) -> &mut B {
        &mut self.below
    }

    /// A request has come back from where the layer below handed it to.
    pub fn returned(&mut self, done: Done, effects: &mut Effects) {
        self.lower.done.push_back(done);
        self.settle(effects);
    }

    fn enter(&mut self, io: Io) {
        let mode = match io.op {
            Op::OrWrite | Op::CompareAndWrite | Op::WriteAtomic => Mode::Exclusive,
            _ => Mode::Shared,
        };
        let (slot, admitted) = self.gate.enter(io.lba..io.lba + io.blocks, mode);
        if admitted {
            self.begin(slot, io);
        } else {
            self.seat(slot, io.from, io.tag, Work::Parked(io));
        }
    }

    fn begin(&mut self, slot: Slot, mut io: Io) {
        let work = match io.op {
            Op::Read | Op::Write | Op::Flush | Op::WriteAtomic => Work::Pass,
            op @ (Op::Compare | Op::OrWrite | Op::CompareAndWrite) => Work::Look(op),
            Op::WriteZeroes | Op::Unmap => unreachable!("ranges go down in steps"),
            Op::Stage => unreachable!("parts go down together"),
        };
        if let Work::Look(_) = work {
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
            heartbeat: false,
            disposable: false,
            more_parts: 0,
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
        self.guests[slot.index()] = Some(Guest { from, tag, abandoned: false, work });
    }

    /// Handles what the layer below said, until it has said all.
    #[inline]
    fn settle(&mut self, effects: &mut Effects) {
        loop {
            if !self.lower.disk.is_empty() {
                effects.disk.append(&mut self.lower.disk);
            }
            if !self.lower.pool.is_empty() {
                effects.pool.append(&mut self.lower.pool);
            }
            if !self.lower.changes.is_empty() {
                effects.changes.append(&mut self.lower.changes);
            }
            if !self.lower.swaps.is_empty() {
                effects.swaps.append(&mut self.lower.swaps);
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
                Work::ParkedSwap(swap) => {
                    self.seat(slot, guest.from, guest.tag, Work::Swap(swap));
                    self.next_part(slot);
                }
                Work::ParkedBeside(name) => {
                    self.seat(slot, NO_CORE, Tag(name), Work::Beside);
                    self.lower.changes.push_back(name);
                }
                _ => unreachable!("only those wait"),
            }
        }
    }

    fn ended(&mut self, done: Done, effects: &mut Effects) {
        let Done { mut io, result } = done;
        let slot = Slot::from_bits(io.tag.0);
        let place = &mut self.guests[slot.index()];
        if let Some(Guest { tag, work: Work::Pass, .. }) = place {
            io.tag = *tag;
            *place = None;
            self.gate.leave(slot);
            effects.done.push_back(Done { io, result });
            return;
        }
        let guest = place.take().expect("what comes back went down");
        io.tag = guest.tag;
        let result = match guest.work {
            Work::Look(op) => {
                // Still in each other's places: what the medium has is in `buf`.
                let looked = match result {
                    Ok(()) if op.writes() && guest.abandoned => Err(IoError::ABANDONED),
                    Ok(()) => make(op, io.buf.as_mut(), io.scratch.as_ref()),
                    Err(IoError::Medium { errno }) if op.writes() => Err(IoError::Unread { errno }),
                    Err(error) => Err(error),
                };
                if looked.is_ok() && op.writes() {
                    io.op = Op::Write;
                    io.heartbeat = op == Op::CompareAndWrite;
                    self.seat(slot, io.from, io.tag, Work::Change(op));
                    io.tag = Tag(slot.to_bits());
                    self.below.submit(io, &mut self.lower);
                    return;
                }
                give_back(&mut io, op);
                looked
            }
            Work::Change(op) => {
                give_back(&mut io, op);
                result
            }
            Work::Swap(mut swap) if io.op == Op::Stage => {
                io.op = Op::WriteAtomic;
                swap.result = swap.result.and(result);
                swap.left -= 1;
                let place = swap.parts.partition_point(|part| part.lba < io.lba);
                swap.parts.insert(place, io);
                let all = swap.left == 0;
                if all {
                    swap.phase = Phase::Held;
                    let (name, result) = (swap.name, swap.result);
                    self.lower.swaps.push_back(SwapEvent::Paused { name, result });
                }
                self.guests[slot.index()] = Some(Guest { work: Work::Swap(swap), ..guest });
                return;
            }
            Work::Swap(mut swap) => {
                if let Some((buf, scratch, fua)) = swap.aside.take() {
                    (io.buf, io.scratch, io.fua) = (buf, scratch, fua);
                }
                give_back(&mut io, Op::CompareAndWrite);
                match (swap.phase, result) {
                    (Phase::Look, Ok(())) => swap.look_at(&io),
                    (Phase::Look, Err(IoError::Medium { errno })) => {
                        swap.result = Err(IoError::Unread { errno });
                    }
                    (Phase::Undo, _) => {}
                    (_, result) => swap.result = result,
                }
                swap.left -= 1;
                swap.parts.push_back(io);
                self.guests[slot.index()] = Some(Guest { work: Work::Swap(swap), ..guest });
                return self.next_part(slot);
            }
            Work::Step(mut long) => {
                self.gate.leave(slot);
                long.done_blocks += long.step_blocks;
                let result = match result {
                    Ok(()) if long.done_blocks == long.io.blocks => Ok(()),
                    Ok(()) if guest.abandoned => Err(IoError::ABANDONED),
                    Ok(()) => return self.ready.push_back(long),
                    Err(error) => Err(error),
                };
                effects.done.push_back(Done { io: long.io, result });
                return;
            }
            Work::Pass => unreachable!("handled above"),
            Work::Parked(_)
            | Work::ParkedStep(_)
            | Work::ParkedSwap(_)
            | Work::Beside
            | Work::ParkedBeside(_) => {
                unreachable!("those are not below")
            }
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
            Op::Read | Op::Write | Op::Flush | Op::Compare | Op::OrWrite | Op::CompareAndWrite => {
                self.enter(io);
            }
            Op::WriteAtomic => self.enter(io),
            Op::Stage => unreachable!("this layer's own"),
            Op::WriteZeroes | Op::Unmap => {
                self.enter_step(Long { io, done_blocks: 0, step_blocks: 0 });
            }
        }
        self.settle(effects);
    }

    /// As a hold that comes and leaves at once.
    #[inline]
    fn read_now(&mut self, lba: u64, buf: &mut [u8]) -> bool {
        self.gate.is_open() && self.below.read_now(lba, buf)
    }

    #[inline]
    fn lend_now(&mut self, lba: u64, bytes: usize) -> Option<Lent> {
        if self.gate.is_open() { self.below.lend_now(lba, bytes) } else { None }
    }

    #[inline]
    fn place_now(&mut self, lba: u64, bytes: usize) -> Option<Place> {
        if self.gate.is_open() { self.below.place_now(lba, bytes) } else { None }
    }

    #[inline]
    fn write_now(&mut self, lba: u64, data: &[u8]) -> bool {
        self.gate.is_open() && self.below.write_now(lba, data)
    }

    #[inline]
    fn expect(&self, lba: u64, bytes: usize) {
        self.below.expect(lba, bytes);
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

/// The buffers back in their places, as the asker knows the request.
fn give_back(io: &mut Io, op: Op) {
    std::mem::swap(&mut io.buf, &mut io.scratch);
    io.op = op;
    io.heartbeat = false;
}

/// Makes of what the medium has what `op` wants there; for [`Op::Compare`] it stays.
fn make(op: Op, medium: Option<&mut Buf>, asked: Option<&Buf>) -> Result<(), IoError> {
    let medium = medium.map_or(&mut [] as &mut [u8], |buf| &mut **buf);
    let asked = asked.map_or(&[] as &[u8], |buf| &**buf);
    match op {
        Op::OrWrite => medium.iter_mut().zip(asked).for_each(|(byte, mask)| *byte |= mask),
        Op::CompareAndWrite => {
            let (expected, new) = asked.split_at(medium.len());
            compare(expected, medium)?;
            medium.copy_from_slice(new);
        }
        Op::Compare => compare(asked, medium)?,
        Op::Read | Op::Write | Op::WriteZeroes | Op::Unmap | Op::Flush | Op::WriteAtomic | Op::Stage => {
            unreachable!("those look at nothing first")
        }
    }
    Ok(())
}

fn compare(expected: &[u8], found: &[u8]) -> Result<(), IoError> {
    if expected == found {
        return Ok(());
    }
    let same = expected.iter().zip(found).take_while(|(left, right)| left == right).count();
    Err(IoError::Miscompare { offset_bytes: same as u32 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::uring::{Uring, UringConfig};
    use crate::io::BdevId;
    use crate::model::{Disk, geometry, io};
    use reactor::buf::{Pool, PoolConfig};
    use reactor::disk::{DiskAction, FileId};

    const STEPS: Steps = Steps { zeroes_bytes: 64 << 10, unmap_bytes: 64 << 10 };

    struct Rig {
        layer: Atomic<Uring>,
        effects: Effects,
        disk: Disk,
        pool: Pool,
    }

    fn rig() -> Rig {
        let mut pool = Pool::new(PoolConfig { counts: [64, 0, 0], arena: 0 }).unwrap();
        let zeroes = vec![pool.take(4096).unwrap()];
        let config = UringConfig {
            bdev: BdevId(0),
            file: FileId(0),
            align_bytes: 512,
            punch_hole: true,
            zero_range: true,
        };
        let uring = Uring::new(geometry(512, 1 << 20), config, zeroes, 64);
        Rig {
            layer: Atomic::over(uring, STEPS, 64),
            effects: Effects::default(),
            disk: Disk::new(1 << 20, 512, 1),
            pool,
        }
    }

    impl Rig {
        fn submit(&mut self, tag: u64, op: Op, lba: u64, blocks: u64, byte: u8) {
            let mut buf = |byte| {
                let mut buf = self.pool.take(blocks as usize * 512).unwrap();
                buf.fill(byte);
                buf
            };
            let mut io = io(tag, op, lba, blocks, op.has_data().then(|| buf(byte)));
            io.scratch = op.needs_scratch().then(|| buf(0xee));
            self.layer.submit(io, &mut self.effects);
        }

        /// [`Op::CompareAndWrite`] of blocks full of `expected`, to be full of `new`.
        fn compare_and_write(&mut self, tag: u64, lba: u64, blocks: u64, expected: u8, new: u8) {
            let bytes = blocks as usize * 512;
            let mut buf = self.pool.take(2 * bytes).unwrap();
            buf[..bytes].fill(expected);
            buf[bytes..].fill(new);
            let mut io = io(tag, Op::CompareAndWrite, lba, blocks, Some(buf));
            io.scratch = self.pool.take(bytes);
            self.layer.submit(io, &mut self.effects);
        }

        /// Lets the disk perform the operation at this place of its queue.
        fn disk(&mut self, place: usize) -> DiskAction {
            let op = self.effects.disk.remove(place).unwrap();
            let action = op.action;
            let done = self.disk.perform(op);
            self.layer.complete(done, &mut self.effects);
            action
        }

        fn tags(&mut self) -> Vec<(u64, Result<(), IoError>)> {
            self.effects.done.drain(..).map(|done| (done.io.tag.0, done.result)).collect()
        }
    }

    /// Goal: nobody is let past who holds something alone, or a fence. Method: over memory, with a part of a compare and
    /// write that is held.
    #[test]
    fn at_once_only_while_the_gate_is_open() {
        let shape = geometry(512, 1 << 20);
        let ram = crate::base::ram::Ram::new(shape, crate::stripe::Deal::among(1), Core(0)).unwrap();
        let mut layer = Atomic::over(ram, STEPS, 64);
        let (mut effects, mut found) = (Effects::default(), [0; 512]);
        assert!(layer.write_now(9, &[7; 512]) && layer.read_now(9, &mut found));
        assert_eq!(found, [7; 512]);
        let mut pool = Pool::new(PoolConfig { counts: [4, 0, 0], arena: 0 }).unwrap();
        let mut part = io(1, Op::CompareAndWrite, 0, 1, pool.take(1024));
        part.buf.as_mut().unwrap().fill(0);
        part.scratch = pool.take(512);
        let hold = layer.enter_swap(vec![part], 5, &mut effects);
        assert!(!layer.write_now(9, &[8; 512]) && !layer.read_now(9, &mut found));
        layer.end_swap(hold, false, &mut effects);
        assert!(layer.read_now(9, &mut found) && found == [7; 512], "what was refused was not done");
    }

    /// Goal: ORs into one block are each one step. Method: eight at once, each with its own bit, the disk serving the
    /// youngest first; all bits must be there, and the askers' buffers as they were.
    #[test]
    fn or_writes_lose_no_bit() {
        let mut rig = rig();
        for bit in 0..8 {
            rig.submit(bit, Op::OrWrite, 5, 1, 1 << bit);
        }
        while !rig.effects.disk.is_empty() {
            assert_eq!(rig.effects.disk.len(), 1, "one at a time");
            rig.disk(0);
        }
        assert!(rig.disk.medium[5 * 512..6 * 512].iter().all(|&byte| byte == 0xff));
        for done in rig.effects.done.drain(..) {
            assert_eq!((done.io.op, done.result), (Op::OrWrite, Ok(())));
            assert!(done.io.buf.unwrap().iter().all(|&byte| byte == 1 << done.io.tag.0));
        }
        assert!(rig.layer.gate.is_empty());
    }

    /// Goal: beside an OR others go on, behind it they wait in order.
    #[test]
    fn only_who_overlaps_waits() {
        let mut rig = rig();
        rig.submit(1, Op::OrWrite, 0, 8, 1);
        rig.submit(2, Op::Write, 7, 1, 2);
        rig.submit(3, Op::Read, 7, 1, 0);
        rig.submit(4, Op::Write, 8, 1, 4);
        assert_eq!(rig.effects.disk.len(), 2);
        rig.disk(1);
        assert_eq!(rig.tags(), [(4, Ok(()))]);
        rig.disk(0);
        rig.disk(0);
        assert_eq!(rig.tags(), [(1, Ok(()))]);
        assert_eq!(rig.effects.disk.len(), 2, "both were behind the OR, neither behind the other");
        rig.disk(0);
        rig.disk(0);
        assert_eq!(rig.tags(), [(2, Ok(())), (3, Ok(()))]);
    }

    /// Goal: a compare says where the first difference is, and gives both buffers back in their places.
    #[test]
    fn compare_finds_the_first_difference() {
        let mut rig = rig();
        rig.disk.seen[..1024].fill(7);
        rig.disk.seen[700] = 8;
        rig.submit(1, Op::Compare, 0, 2, 7);
        rig.disk(0);
        let done = rig.effects.done.pop_front().unwrap();
        assert_eq!(done.result, Err(IoError::Miscompare { offset_bytes: 700 }));
        assert_eq!(done.io.op, Op::Compare);
        assert!(done.io.buf.unwrap().iter().all(|&byte| byte == 7));
        assert_eq!(done.io.scratch.unwrap()[700], 8);
        rig.submit(2, Op::Compare, 0, 1, 7);
        rig.disk(0);
        assert_eq!(rig.tags(), [(2, Ok(()))]);
    }

    /// Goal: of those who expect the same in one block exactly one has it its way, and the others learn where it differs.
    /// Method: eight at once, each with its own value; the buffers must come back as they went.
    #[test]
    fn one_compare_and_write_wins() {
        let mut rig = rig();
        for tag in 1..=8 {
            rig.compare_and_write(tag, 5, 1, 0, tag as u8);
        }
        while !rig.effects.disk.is_empty() {
            assert_eq!(rig.effects.disk.len(), 1, "one at a time");
            rig.disk(0);
        }
        for done in rig.effects.done.drain(..) {
            let tag = done.io.tag.0;
            let differs = Err(IoError::Miscompare { offset_bytes: 0 });
            assert_eq!(done.result, if tag == 1 { Ok(()) } else { differs });
            assert_eq!(done.io.op, Op::CompareAndWrite);
            let (buf, scratch) = (done.io.buf.unwrap(), done.io.scratch.unwrap());
            assert!(buf[..512].iter().all(|&byte| byte == 0) && buf.len() == 1024);
            assert!(buf[512..].iter().all(|&byte| u64::from(byte) == tag));
            assert_eq!(scratch.len(), 512);
        }
        assert!(rig.disk.medium[5 * 512..6 * 512].iter().all(|&byte| byte == 1));
        assert!(rig.layer.gate.is_empty());
    }

    /// Goal: a difference is told by its place, and nothing is written; nor is it where the read fails, which is told
    /// from a failed write. Method: a difference in the last byte of two blocks, then a disk that fails.
    #[test]
    fn a_miscompare_writes_nothing() {
        let mut rig = rig();
        rig.disk.seen[..1024].fill(7);
        rig.disk.seen[1023] = 8;
        let before = rig.disk.seen.clone();
        rig.compare_and_write(1, 0, 2, 7, 9);
        assert_eq!(rig.disk(0), DiskAction::Read);
        assert_eq!(rig.tags(), [(1, Err(IoError::Miscompare { offset_bytes: 1023 }))]);
        let fail = |rig: &mut Rig| {
            let op = rig.effects.disk.pop_front().unwrap();
            let done = DiskDone { user: op.user, result: Err(5), buf: op.buf };
            rig.layer.complete(done, &mut rig.effects);
            rig.tags()
        };
        for op in [Op::CompareAndWrite, Op::OrWrite] {
            match op {
                Op::OrWrite => rig.submit(2, op, 0, 1, 9),
                _ => rig.compare_and_write(2, 0, 1, 7, 9),
            }
            assert_eq!(fail(&mut rig), [(2, Err(IoError::Unread { errno: 5 }))]);
        }
        assert!(rig.effects.disk.is_empty());
        assert_eq!(rig.disk.seen, before);
        rig.compare_and_write(3, 0, 1, 7, 9);
        rig.disk(0);
        assert_eq!(fail(&mut rig), [(3, Err(IoError::Medium { errno: 5 }))]);
        assert!(rig.layer.gate.is_empty());
    }

    /// Goal: a compare and write is behind one step of a long range at most, and beside it behind none. Method: zeroes
    /// over ten steps; while the first is at the disk one compares in its range, one in a later step's range and one
    /// behind the whole. They must all be done while the second step has not begun.
    #[test]
    fn compare_and_write_waits_for_one_step_at_most() {
        let mut rig = rig();
        let blocks_a_step = STEPS.zeroes_bytes / 512;
        rig.submit(1, Op::WriteZeroes, 0, 10 * blocks_a_step, 0);
        rig.compare_and_write(2, blocks_a_step - 1, 1, 0, 2);
        rig.compare_and_write(3, blocks_a_step, 1, 0, 3);
        rig.compare_and_write(4, 10 * blocks_a_step, 1, 0, 4);
        assert_eq!(rig.effects.disk.len(), 3, "the step and those that it does not touch");
        for expected in [(3, Ok(())), (4, Ok(()))] {
            assert_eq!(rig.disk(1), DiskAction::Read);
            let written = rig.effects.disk.len() - 1;
            assert_eq!(rig.disk(written), DiskAction::Write { durable: true });
            assert_eq!(rig.tags(), [expected]);
        }
        assert_eq!(rig.disk(0), DiskAction::ZeroRange);
        assert_eq!(rig.disk(0), DiskAction::Read);
        // The second step is asked for now, and does not stand in the way of a write that has begun beside it.
        rig.layer.turn(&mut rig.effects);
        assert_eq!(rig.effects.disk.len(), 2);
        assert_eq!(rig.disk(0), DiskAction::Write { durable: true });
        assert_eq!(rig.tags(), [(2, Ok(()))]);
        while !rig.effects.disk.is_empty() {
            rig.disk(0);
            rig.layer.turn(&mut rig.effects);
        }
        assert_eq!(rig.tags(), [(1, Ok(()))]);
        let byte = |block: u64| rig.disk.seen[block as usize * 512];
        assert_eq!([byte(blocks_a_step - 1), byte(blocks_a_step), byte(10 * blocks_a_step)], [2, 0, 4]);
    }

    /// Goal: who is given up before its write begins writes nothing; once the write is at the disk it is done, and fenced
    /// until then. Method: each kind, given up while it reads and while it writes.
    #[test]
    fn given_up_before_the_write_is_not_written() {
        for op in [Op::CompareAndWrite, Op::OrWrite] {
            let mut rig = rig();
            let begin = |rig: &mut Rig, tag| match op {
                Op::OrWrite => rig.submit(tag, op, 0, 1, 9),
                _ => rig.compare_and_write(tag, 0, 1, 0, 9),
            };
            begin(&mut rig, 1);
            rig.layer.abandon(Core(0), Tag(1), &mut rig.effects);
            begin(&mut rig, 2);
            assert_eq!(rig.effects.disk.len(), 1, "it is waited for");
            assert_eq!(rig.disk(0), DiskAction::Read);
            assert_eq!(rig.tags(), [(1, Err(IoError::ABANDONED))]);
            assert!(rig.disk.seen[..512].iter().all(|&byte| byte == 0));
            assert_eq!(rig.disk(0), DiskAction::Read);
            rig.layer.abandon(Core(0), Tag(2), &mut rig.effects);
            rig.submit(3, Op::Read, 0, 1, 0);
            assert_eq!(rig.effects.disk.len(), 1);
            assert_eq!(rig.disk(0), DiskAction::Write { durable: true });
            assert_eq!(rig.tags(), [(2, Ok(()))]);
            rig.disk(0);
            let done = rig.effects.done.pop_front().unwrap();
            assert!(done.io.buf.unwrap().iter().all(|&byte| byte == 9));
            assert!(rig.layer.gate.is_empty());
        }
    }

    /// Goal: parts of a compare and write are looked at, written and taken back as one step, whatever comes between; a
    /// difference is counted over all of them, and what is given up at the gate never begins. Method: two parts, of which the
    /// second can't be written.
    #[test]
    fn parts_are_one_step() {
        let mut rig = rig();
        let parts = |rig: &mut Rig, expected: [u8; 2]| -> Vec<Io> {
            let part = |lba: u64| {
                let mut buf = rig.pool.take(1024).unwrap();
                buf[..512].fill(expected[lba as usize]);
                buf[512..].fill(7 + lba as u8);
                let (more_parts, scratch) = (1 - lba as u8, rig.pool.take(512));
                Io { more_parts, scratch, ..io(9, Op::CompareAndWrite, lba, 1, Some(buf)) }
            };
            [0, 1].map(part).into()
        };
        rig.submit(1, Op::Write, 1, 1, 3);
        rig.disk(0);
        assert_eq!(rig.tags(), [(1, Ok(()))]);
        // The second one differs from its third byte on.
        let mut wrong = parts(&mut rig, [0, 3]);
        wrong[1].buf.as_mut().unwrap()[2..].fill(4);
        let hold = rig.layer.enter_swap(wrong, 5, &mut rig.effects);
        assert_eq!([rig.disk(0), rig.disk(0)], [DiskAction::Read; 2]);
        let told = rig.effects.swaps.pop_front();
        let differs = Err(IoError::Miscompare { offset_bytes: 514 });
        assert!(matches!(told, Some(SwapEvent::Paused { name: 5, result }) if result == differs));
        rig.layer.end_swap(hold, false, &mut rig.effects);
        assert!(matches!(
            rig.effects.swaps.pop_front(),
            Some(SwapEvent::Ended { name: 5, result: Ok(()), .. })
        ));
        let right = parts(&mut rig, [0, 3]);
        let hold = rig.layer.enter_swap(right, 6, &mut rig.effects);
        rig.submit(2, Op::Read, 1, 1, 0);
        let behind = parts(&mut rig, [0, 3]);
        rig.layer.enter_swap(behind, 7, &mut rig.effects);
        assert_eq!([rig.disk(0), rig.disk(0)], [DiskAction::Read; 2]);
        let told = rig.effects.swaps.pop_front();
        assert!(matches!(told, Some(SwapEvent::Paused { name: 6, result: Ok(()) })));
        assert!(rig.effects.disk.is_empty(), "it is held");
        rig.layer.write_swap(hold, &mut rig.effects);
        assert_eq!(rig.disk(0), DiskAction::Write { durable: true });
        assert!(rig.disk.seen[..512].iter().all(|&byte| byte == 7));
        let op = rig.effects.disk.pop_front().unwrap();
        rig.layer.complete(DiskDone { user: op.user, result: Err(5), buf: op.buf }, &mut rig.effects);
        let told = rig.effects.swaps.pop_front();
        assert!(matches!(
            told,
            Some(SwapEvent::Paused { name: 6, result: Err(IoError::Medium { errno: 5 }) })
        ));
        rig.layer.end_swap(hold, true, &mut rig.effects);
        let undone = [rig.disk(0), rig.disk(0), rig.disk(0)];
        assert_eq!(undone, [DiskAction::ZeroRange, DiskAction::Sync, DiskAction::Write { durable: true }]);
        let Some(SwapEvent::Ended { name: 6, parts: back, .. }) = rig.effects.swaps.pop_front() else {
            panic!("it has let go")
        };
        assert_eq!(
            back.iter().map(|io| (io.op, io.lba, io.heartbeat)).collect::<Vec<_>>(),
            [0, 1].map(|lba| (Op::CompareAndWrite, lba, false))
        );
        assert_eq!((back[0].tag, back[1].buf.as_ref().unwrap()[..512].to_vec()), (Tag(9), vec![3; 512]));
        assert!(rig.disk.seen[..512].iter().all(|&byte| byte == 0), "what was written is taken back");
        assert_eq!(rig.disk(0), DiskAction::Read);
        assert_eq!(rig.tags(), [(2, Ok(()))]);
        assert_eq!(rig.effects.disk.len(), 1, "the next one looks");
        let last = parts(&mut rig, [0, 3]);
        rig.layer.enter_swap(last, 8, &mut rig.effects);
        rig.layer.abandon(Core(0), Tag(9), &mut rig.effects);
        let told = rig.effects.swaps.pop_front();
        let given_up = Err(IoError::ABANDONED);
        assert!(matches!(told, Some(SwapEvent::Ended { name: 8, result, .. }) if result == given_up));
        assert_eq!(rig.disk(0), DiskAction::Read);
        let told = rig.effects.swaps.pop_front();
        assert!(matches!(told, Some(SwapEvent::Paused { name: 7, result }) if result == given_up));
    }

    /// Goal: a long range goes down a step at a time, and who overlaps waits for one step only. Method: an OR that
    /// arrives at the second step's range during the first is done before that step begins.
    #[test]
    fn long_ranges_yield() {
        let mut rig = rig();
        let blocks_a_step = STEPS.unmap_bytes / 512;
        rig.submit(1, Op::Unmap, 0, 3 * blocks_a_step, 0);
        rig.submit(2, Op::OrWrite, blocks_a_step, 1, 1);
        assert_eq!(rig.disk(0), DiskAction::PunchHole);
        assert!(!rig.layer.turn(&mut rig.effects), "the next step waits at the gate");
        assert_eq!(rig.disk(0), DiskAction::Read);
        assert_eq!(rig.effects.disk.len(), 1);
        assert_eq!(rig.disk(0), DiskAction::Write { durable: true });
        assert_eq!(rig.tags(), [(2, Ok(()))]);
        assert_eq!(rig.disk(0), DiskAction::PunchHole);
        assert!(rig.effects.disk.is_empty(), "one step a turn");
        rig.layer.turn(&mut rig.effects);
        assert_eq!(rig.disk(0), DiskAction::PunchHole);
        assert_eq!(rig.tags(), [(1, Ok(()))]);
    }

    /// Goal: of what was given up nothing more begins, and what is at the disk holds later ones back until it ends.
    #[test]
    fn what_is_given_up_is_fenced() {
        let mut rig = rig();
        rig.submit(1, Op::Write, 0, 1, 1);
        rig.submit(2, Op::OrWrite, 0, 1, 2);
        rig.submit(3, Op::Unmap, 256, 400, 0);
        for tag in 1..=3 {
            rig.layer.abandon(Core(0), Tag(tag), &mut rig.effects);
        }
        assert_eq!(rig.tags(), [(2, Err(IoError::ABANDONED))]);
        rig.submit(4, Op::Write, 0, 1, 4);
        rig.submit(5, Op::Read, 256, 1, 0);
        rig.submit(6, Op::Read, 500, 1, 0);
        assert_eq!(rig.effects.disk.len(), 3, "the write, the first step, and what overlaps neither");
        rig.disk(1);
        assert_eq!(rig.tags(), [(3, Err(IoError::ABANDONED))]);
        rig.disk(0);
        assert_eq!(rig.tags(), [(1, Ok(()))]);
        while !rig.effects.disk.is_empty() {
            rig.disk(0);
        }
        assert_eq!(rig.tags().len(), 3);
        assert!(rig.disk.medium[..512].iter().all(|&byte| byte == 4));
        assert!(!rig.layer.turn(&mut rig.effects) && rig.layer.gate.is_empty());
    }
}
