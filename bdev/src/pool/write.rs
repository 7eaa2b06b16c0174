//! Writes. One that finds its blocks private goes to where they are; any other goes to blocks of the slot's own, and a
//! record says so when the data are there. Blocks that are written in part are read first and written whole, unless they
//! are private and the member can write as little.
//!
//! Two writes into one block are ordered by the volume's gate: what is redirected or merged has its blocks alone.

use super::map::{RootId, SlotNo};
use super::rule::Rule;
use super::shard::{Fragment, PoolShard, SPACE_PATIENCE, Task, User};
use super::slot::{ALL, BLOCK_BYTES, CHUNK_BYTES, Chunk, Place, SLOT_BLOCKS, mask_of};
use super::space::CLUSTER_CHUNKS;
use super::stage::Shown;
use crate::error::IoError;
use crate::io::{BdevId, Done, Io, Op, Tag};
use crate::zero_detect::zero_blocks;
use reactor::buf::Buf;
use reactor::clock::Time;
use reactor::disk::DiskAction;
use reactor::slots::Slot;

/// The longest write, in blocks, that goes to a shared fragment chunk.
const FRAGMENT_BLOCKS_MAX: u32 = 8;

/// Where the data come from.
#[derive(Debug)]
pub(super) enum Source {
    /// A request's buffer.
    Io(Io),
    /// Zeroes, for the end of this range.
    Zeroes(Slot),
    /// What is there: the slot's blocks are brought together.
    Fold,
    /// It has ended.
    Nothing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// At the gate, or for space, a buffer, or room in the journal.
    Waiting,
    /// A block at an end is read into the bounce buffer, this one; of a fold, blocks up to this one.
    Reading(u32),
    /// The data are on their way to where the blocks are.
    InPlace,
    /// The data are on their way to new blocks.
    Redirected,
    /// The record is on its way.
    Recorded,
    /// The data are there, and the record waits for those of other parts.
    Staged,
}

/// Where a write's data may go, and when its record is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum How {
    /// To where its blocks are, if they are private.
    Plain,
    /// To new blocks: it is there whole or not at all.
    Elsewhere,
    /// The same, and the record is written with those of other parts of this name.
    Staged(Tag),
}

/// A write on its way.
#[derive(Debug)]
pub(super) struct Write {
    source: Source,
    bdev: BdevId,
    slot: SlotNo,
    /// Bytes within the slot.
    first: u32,
    end: u32,
    durable: bool,
    how: How,
    state: State,
    exclusive: bool,
    hold: Option<Slot>,
    epoch: Option<u64>,
    bounce: Option<Buf>,
    merged: bool,
    /// Blocks of zeroes that become map state.
    zeroes: u16,
    /// Where the first block goes.
    target: Option<Place>,
    /// The target is a fragment chunk.
    fragment: bool,
    /// The target is a chunk that was taken for this write, and no slot names it before the record.
    alone: bool,
    /// Its record is due.
    due: bool,
    /// A chunk was claimed.
    claimed: bool,
    /// A chunk was claimed of what is kept for heartbeats.
    drawn: bool,
    /// The record that it waits for before it goes to its slot's own chunk.
    awaits: Option<u64>,
    waiting_since: Option<Time>,
}

impl Write {
    fn first_block(&self) -> u32 {
        self.first / BLOCK_BYTES as u32
    }

    fn blocks(&self) -> u32 {
        self.end.div_ceil(BLOCK_BYTES as u32) - self.first_block()
    }

    fn mask(&self) -> u16 {
        mask_of(self.first_block(), self.blocks())
    }

    fn is_aligned(&self) -> bool {
        (self.first | self.end).is_multiple_of(BLOCK_BYTES as u32)
    }
}

impl Write {
    /// A whole chunk's data, if they are as they came in a buffer that need not come back.
    pub(super) fn take_disposable(&mut self) -> Option<Buf> {
        let is_whole = self.end - self.first == CHUNK_BYTES as u32 && !self.merged && self.how == How::Plain;
        match &mut self.source {
            Source::Io(io) if is_whole && io.disposable => {
                io.buf.take_if(|buf| buf.len() as u64 == CHUNK_BYTES && buf.capacity() as u64 == CHUNK_BYTES)
            }
            _ => None,
        }
    }

    /// It has a claim and waits for the chunk.
    pub(super) fn wants_chunk(&self) -> bool {
        self.claimed || self.drawn
    }
}

enum Target {
    At(Place, bool),
    Wait,
    Full(IoError),
}

impl PoolShard {
    pub(super) fn submit_write(&mut self, io: Io) {
        let Some(volume) = self.volume(io.bdev) else { unreachable!("looked up by the caller") };
        let geometry = volume.attached.geometry;
        let zero_detect = volume.attached.zero_detect;
        let (first, bytes) =
            (io.lba * u64::from(geometry.block_bytes), io.blocks * u64::from(geometry.block_bytes));
        let in_slot = (first % CHUNK_BYTES) as u32;
        let durable = io.fua || !geometry.write_cache;
        let bdev = io.bdev;
        let how = match io.op {
            Op::WriteAtomic => How::Elsewhere,
            Op::Stage => {
                self.note_part(bdev, io.tag);
                How::Staged(io.tag)
            }
            _ => How::Plain,
        };
        if io.heartbeat {
            let (block, end) =
                (in_slot / BLOCK_BYTES as u32, (in_slot + bytes as u32).div_ceil(BLOCK_BYTES as u32));
            self.heartbeats.note(bdev, SlotNo(first / CHUNK_BYTES), mask_of(block, end - block));
        }
        self.counts.host_write_bytes += bytes;
        let zeroes = match &io.buf {
            Some(buf) if zero_detect => zero_blocks(buf, in_slot),
            _ => 0,
        };
        self.counts.zero_blocks_detected += u64::from(zeroes.count_ones());
        let slot = SlotNo(first / CHUNK_BYTES);
        self.begin_write(Source::Io(io), bdev, slot, in_slot, in_slot + bytes as u32, durable, zeroes, how);
    }

    /// Brings a slot's blocks together. Nobody waits for its record.
    pub(super) fn begin_fold(&mut self, bdev: BdevId, slot: SlotNo) {
        self.begin_write(Source::Fold, bdev, slot, 0, CHUNK_BYTES as u32, false, 0, How::Plain);
    }

    #[allow(clippy::too_many_arguments, reason = "a write's facts")]
    pub(super) fn begin_write(
        &mut self,
        source: Source,
        bdev: BdevId,
        slot: SlotNo,
        first: u32,
        end: u32,
        durable: bool,
        zeroes: u16,
        how: How,
    ) {
        let write = Write {
            source,
            bdev,
            slot,
            first,
            end,
            durable,
            how,
            state: State::Waiting,
            exclusive: false,
            hold: None,
            epoch: None,
            bounce: None,
            merged: false,
            zeroes,
            target: None,
            fragment: false,
            alone: false,
            due: false,
            claimed: false,
            drawn: false,
            awaits: None,
            waiting_since: None,
        };
        let place = self.in_place(&write);
        let write = match self.spare_writes.pop() {
            Some(mut spare) => {
                *spare = write;
                spare
            }
            None => Box::new(write),
        };
        let Ok(task) = self.tasks.insert(Task::Write(write)) else { panic!("the shard bounds its requests") };
        self.enter_write(task, place);
    }

    /// `place`: where it goes if nothing is in its way now.
    fn enter_write(&mut self, task: Slot, place: Option<Place>) {
        let Some(Task::Write(write)) = self.tasks.get_mut(task) else { return };
        let exclusive = place.is_none();
        write.exclusive = exclusive;
        let (bdev, first) =
            (write.bdev, write.slot.0 * u64::from(SLOT_BLOCKS) + u64::from(write.first_block()));
        let blocks = first..first + u64::from(write.blocks());
        let (hold, admitted) = self.enter(bdev, task, blocks, exclusive);
        if let Some(Task::Write(write)) = self.tasks.get_mut(task) {
            write.hold = Some(hold);
        }
        if admitted {
            match place.filter(|_| self.broken.is_none()) {
                Some(place) => self.write_in_place(task, place),
                None => self.start_write(task),
            }
        }
    }

    fn write_in_place(&mut self, task: Slot, place: Place) {
        let epoch = self.epochs.begin();
        let Some(Task::Write(write)) = self.tasks.get_mut(task) else { return };
        write.state = State::InPlace;
        write.epoch = Some(epoch);
        let (lead, bytes) = (write.first % BLOCK_BYTES as u32, write.end - write.first);
        self.counts.writes_in_place += 1;
        self.write_data(task, place, lead, bytes);
    }

    /// Where a write's blocks are, if it may go there as it is.
    fn in_place(&self, write: &Write) -> Option<Place> {
        let root = self.volume(write.bdev)?.attached.root;
        let (slot, private) = self.map.slot(root, write.slot);
        if write.how != How::Plain && !self.breaks(Rule::AtomicGoesElsewhere) {
            return None;
        }
        if write.zeroes != 0 || !(private || self.breaks(Rule::SharedIsFrozen)) {
            return None;
        }
        let first = self.map.explosions.pointer(slot, write.first_block())?;
        if self.map.explosions.private_chunk(slot) == Some(first.chunk) && write.mask() & !slot_own(slot) == 0
        {
            return Some(first).filter(|_| self.fits(write, first));
        }
        for nth in 0..write.blocks() {
            let place = self.map.explosions.pointer(slot, write.first_block() + nth)?;
            let private = place.private || self.breaks(Rule::SharedIsFrozen);
            if !private
                || place.chunk != first.chunk
                || u32::from(place.block) != u32::from(first.block) + nth
            {
                return None;
            }
        }
        Some(first).filter(|_| self.fits(write, first))
    }

    /// Whether the member can write as little.
    fn fits(&self, write: &Write, place: Place) -> bool {
        let (member, _) = self.chunk_at(place.chunk);
        let align = self.data_align_bytes(member);
        matches!(write.source, Source::Io(_)) && (write.first | write.end).is_multiple_of(align)
    }

    /// The gate is open, or something that it waited for may have come.
    pub(super) fn start_write(&mut self, task: Slot) {
        let Some(Task::Write(write)) = self.tasks.get(task) else { return };
        if let Some(error) = self.broken {
            return self.finish_write(task, Err(error));
        }
        if !write.merged
            && let Some(place) = self.in_place(write)
        {
            return self.write_in_place(task, place);
        }
        let has_room = match (write.how, write.bdev) {
            (How::Staged(tag), bdev) => self.has_room_for_part(bdev, tag),
            _ => self.journal_has_room(1),
        };
        if !has_room {
            return self.parked.push_back(task);
        }
        let Some(Task::Write(write)) = self.tasks.get(task) else { return };
        if !write.exclusive {
            // What it was when it came has changed while it waited.
            let (bdev, hold) = (write.bdev, write.hold);
            if let Some(hold) = hold {
                self.leave(bdev, hold);
            }
            return self.enter_write(task, None);
        }
        let is_fold = matches!(write.source, Source::Fold);
        if is_fold && !write.merged && !self.is_worth_folding(write.bdev, write.slot) {
            return self.finish_write(task, Ok(()));
        }
        if (is_fold || !write.is_aligned()) && !write.merged {
            return self.merge(task);
        }
        self.redirect(task);
    }

    /// Reads what a write of parts of blocks leaves as it is.
    fn merge(&mut self, task: Slot) {
        let Some(mut bounce) = self.bounces.pop() else {
            return self.parked.push_back(task);
        };
        let Some(Task::Write(write)) = self.tasks.get_mut(task) else { return };
        bounce.set_len((write.blocks() * BLOCK_BYTES as u32) as usize);
        bounce.fill(0);
        write.bounce = Some(bounce);
        write.zeroes = 0;
        let epoch = self.epochs.begin();
        if let Some(Task::Write(write)) = self.tasks.get_mut(task) {
            write.epoch = Some(epoch);
        }
        self.counts.writes_merged += 1;
        self.merge_from(task, 0);
    }

    /// Reads the next end, from the `nth` on: 0 the first block, 1 the last.
    fn merge_from(&mut self, task: Slot, nth: u32) {
        let Some(Task::Write(write)) = self.tasks.get(task) else { return };
        let Some(volume) = self.volume(write.bdev) else { return };
        let (slot, _) = self.map.slot(volume.attached.root, write.slot);
        if matches!(write.source, Source::Fold) {
            return self.gather_from(task, slot, nth);
        }
        let (first, last) = (write.first_block(), write.first_block() + write.blocks() - 1);
        let ends = [
            (
                first,
                !write.first.is_multiple_of(BLOCK_BYTES as u32) || (first == last && !write.is_aligned()),
            ),
            (last, first != last && !write.end.is_multiple_of(BLOCK_BYTES as u32)),
        ];
        for (which, &(block, partial)) in (0u32..).zip(&ends).skip(nth as usize) {
            if partial && let Some(place) = self.map.explosions.pointer(slot, block) {
                let (member, base) = self.chunk_at(place.chunk);
                let at = base + u64::from(place.block) * BLOCK_BYTES;
                let Some(Task::Write(write)) = self.tasks.get_mut(task) else { return };
                write.state = State::Reading(which);
                let (buf, offset) = (write.bounce.take(), (block - first) * BLOCK_BYTES as u32);
                self.counts.data_read_bytes += BLOCK_BYTES;
                return self.issue(User::Task(task), member, DiskAction::Read, at, BLOCK_BYTES, buf, offset);
            }
        }
        let Some(Task::Write(write)) = self.tasks.get_mut(task) else { return };
        let (lead, bytes) = ((write.first % BLOCK_BYTES as u32) as usize, (write.end - write.first) as usize);
        if let Some(bounce) = &mut write.bounce {
            match &write.source {
                Source::Io(Io { buf: Some(buf), .. }) => bounce[lead..lead + bytes].copy_from_slice(buf),
                _ => bounce[lead..lead + bytes].fill(0),
            }
        }
        self.merged(task);
    }

    fn merged(&mut self, task: Slot) {
        let Some(Task::Write(write)) = self.tasks.get_mut(task) else { return };
        write.merged = true;
        write.state = State::Waiting;
        let epoch = write.epoch.take();
        if let Some(epoch) = epoch {
            self.epochs.end(epoch);
        }
        self.start_write(task);
    }

    /// Reads a slot's blocks from this one on, neighbours at once.
    fn gather_from(&mut self, task: Slot, slot: super::slot::Slot, block: u32) {
        let pointers = self.map.explosions.pointers(slot);
        let mapped = self.map.explosions.mapped_mask(slot);
        let Some(first) = (block..SLOT_BLOCKS).find(|&block| pointers[block as usize].is_some()) else {
            if let Some(Task::Write(write)) = self.tasks.get_mut(task) {
                write.zeroes = !mapped;
            }
            return self.merged(task);
        };
        let Some(place) = pointers[first as usize] else { return };
        let follows = |nth: &u32| {
            pointers[(first + nth) as usize].is_some_and(|next| {
                next.chunk == place.chunk && u32::from(next.block) == u32::from(place.block) + nth
            })
        };
        let count = 1 + (1..SLOT_BLOCKS - first).take_while(follows).count() as u32;
        let (member, base) = self.chunk_at(place.chunk);
        let at = base + u64::from(place.block) * BLOCK_BYTES;
        let Some(Task::Write(write)) = self.tasks.get_mut(task) else { return };
        write.state = State::Reading(first + count - 1);
        let (buf, bytes) = (write.bounce.take(), u64::from(count) * BLOCK_BYTES);
        self.counts.data_read_bytes += bytes;
        self.issue(User::Task(task), member, DiskAction::Read, at, bytes, buf, first * BLOCK_BYTES as u32);
    }

    /// Finds blocks for a write and sends its data there.
    fn redirect(&mut self, task: Slot) {
        let Some(Task::Write(write)) = self.tasks.get(task) else { return };
        let (bdev, slot) = (write.bdev, write.slot);
        if write.zeroes == write.mask() {
            return self.data_written(task);
        }
        if !self.has_map_memory() {
            return self.finish_write(task, Err(IoError::OutOfSpace));
        }
        let Some(volume) = self.volume(bdev) else { return self.finish_write(task, Err(IoError::GONE)) };
        let root = volume.attached.root;
        let mut named = std::mem::take(&mut self.named);
        let leaf = self.map.leaf_for_write(root, slot.stripe(), &mut named);
        self.named = named;
        self.count_named();
        // Nobody else names it any more, though somebody did: it may be written in place again.
        let now = self.map.slot_at(leaf, slot.index());
        if now.exploded_index().is_none()
            && now.is_frozen()
            && now.own_chunk().is_some()
            && self.space.owner(now.own_chunk()) == self.core
            && self.space.count(now.own_chunk()) == 1
        {
            self.map.thaw(root, leaf, slot.index());
            // What its own blocks were left for while it was frozen nobody noted.
            self.vacated_all = self.journal.appended();
            if self.volume(bdev).is_some_and(|volume| volume.attached.thick) {
                self.promises.unreserve(1);
            }
        }
        match self.target(task, leaf) {
            Target::At(place, fragment) => {
                let epoch = self.epochs.begin();
                let Some(Task::Write(write)) = self.tasks.get_mut(task) else { return };
                write.target = Some(place);
                write.fragment = fragment;
                write.state = State::Redirected;
                write.epoch = Some(epoch);
                let is_staged = matches!(write.how, How::Staged(_));
                if !is_staged {
                    write.due = true;
                    self.records_due += 1;
                }
                let bytes = write.blocks() * BLOCK_BYTES as u32;
                self.counts.writes_redirected += 1;
                if self.breaks(Rule::DataBeforeRecord) && !is_staged {
                    self.record(task);
                }
                self.write_data(task, place, 0, bytes);
            }
            Target::Wait => {
                // Its chunk is on the way from another core, unless that is where it stays.
                let now = self.now;
                let broken = self.promises.broken.load(std::sync::atomic::Ordering::Acquire);
                let Some(Task::Write(write)) = self.tasks.get_mut(task) else { return };
                let since = *write.waiting_since.get_or_insert(now);
                if broken && now.since(since) >= SPACE_PATIENCE {
                    self.finish_write(task, Err(IoError::Medium { errno: 5 }));
                } else {
                    self.parked.push_back(task);
                }
            }
            Target::Full(error) => {
                if self.breaks(Rule::FullWaitsForPending) {
                    return self.finish_write(task, Err(error));
                }
                let now = self.now;
                let pending = self.promises.pending.load(std::sync::atomic::Ordering::Acquire);
                let Some(Task::Write(write)) = self.tasks.get_mut(task) else { return };
                let since = *write.waiting_since.get_or_insert(now);
                if pending > 0 && now.since(since) < SPACE_PATIENCE {
                    self.parked.push_back(task);
                } else {
                    self.finish_write(task, Err(error));
                }
            }
        }
    }

    /// Blocks that a write may go to: the slot's own chunk, a new one, or a piece of a fragment chunk.
    fn target(&mut self, task: Slot, leaf: super::map::LeafId) -> Target {
        let Some(Task::Write(write)) = self.tasks.get(task) else { return Target::Wait };
        let Some(volume) = self.volume(write.bdev) else { return Target::Full(IoError::GONE) };
        let (root, thick, bdev) = (volume.attached.root, volume.attached.thick, write.bdev);
        let (slot_no, mask, count) = (write.slot, write.mask(), write.blocks());
        let first = write.first_block();
        let (claimed, drawn, how) = (write.claimed, write.drawn, write.how);
        let slot = self.map.slot_at(leaf, slot_no.index());
        let own = self.map.explosions.private_chunk(slot).or_else(|| {
            let unfilled = self.breaks(Rule::SharedIsNotFilled) && slot.exploded_index().is_none();
            unfilled.then(|| slot.own_chunk()).filter(|own| own.is_some())
        });
        if let Some(own) = own {
            let leads_there = |block: u32| {
                mask >> block & 1 == 1
                    && self.map.explosions.pointer(slot, block).is_some_and(|place| place.chunk == own)
            };
            if how != How::Plain && (0..SLOT_BLOCKS).any(leads_there) {
                return self.target_elsewhere(task, first, count);
            }
            // What was there before a record that is not durable comes back with a crash: then what others have written
            // whole must not be there in part, taken along by this one.
            let record = self.vacated_by(root, slot_no, mask);
            if !self.is_durable(record) {
                if how != How::Plain {
                    return self.target_elsewhere(task, first, count);
                }
                // Nothing vacates these blocks from now on, since they are held.
                let Some(Task::Write(write)) = self.tasks.get_mut(task) else { return Target::Wait };
                let awaited = *write.awaits.get_or_insert(record);
                if !self.is_durable(awaited) {
                    self.journal.wanted = true;
                    return Target::Wait;
                }
            }
            *self.pins.entry(own.0).or_default() += 1;
            return Target::At(Place { chunk: own, block: first as u8, private: true }, false);
        }
        let pointers = self.map.explosions.pointers(slot);
        let mut rest: smallvec::SmallVec<[Chunk; 4]> = smallvec::SmallVec::new();
        for (block, place) in pointers.iter().enumerate() {
            if let Some(place) = place
                && mask >> block & 1 == 0
                && !rest.contains(&place.chunk)
            {
                rest.push(place.chunk);
            }
        }
        let is_exploded = slot.exploded_index().is_some();
        if (rest.len() > 1 || (is_exploded && !rest.is_empty()))
            && count <= FRAGMENT_BLOCKS_MAX
            && !thick
            && let Some(place) = self.take_fragment(count)
        {
            return Target::At(place, true);
        }
        if !claimed {
            if thick {
                self.promises.use_reserved(1);
            } else if drawn || !self.promises.claim(1) {
                let may_draw =
                    matches!(self.tasks.get(task), Some(Task::Write(write)) if self.may_draw(write));
                return if may_draw {
                    self.heartbeat_target(task, count)
                } else {
                    Target::Full(IoError::OutOfSpace)
                };
            }
            if let Some(Task::Write(write)) = self.tasks.get_mut(task) {
                write.claimed = true;
            }
        }
        // Behind the chunk before, also where that one's slot has more than two until its write is through.
        let near = slot_no.index().checked_sub(1).map(|before| self.map.slot_at(leaf, before));
        let near = near.and_then(|slot| match slot.exploded_index() {
            Some(_) => self.map.explosions.private_chunk(slot),
            None => Some(slot.own_chunk()).filter(|own| own.is_some()),
        });
        let near = near.map(|own| Chunk(own.0 + 1));
        let Some(chunk) = self.take_chunk(near, slot_no.index() as u32 % CLUSTER_CHUNKS) else {
            if self.cores == 1 {
                debug_assert!(false, "a claim finds its chunk");
            }
            return Target::Wait;
        };
        if let Some(Task::Write(write)) = self.tasks.get_mut(task) {
            write.claimed = false;
        }
        let mut pointers = pointers;
        if self.breaks(Rule::UnwrittenIsZero) {
            for (block, place) in pointers.iter_mut().enumerate() {
                place.get_or_insert(Place { chunk, block: block as u8, private: true });
            }
        }
        let changed = self.map.change(root, leaf, slot_no.index(), &pointers, chunk);
        debug_assert!(changed.dropped.is_empty());
        *self.pins.entry(chunk.0).or_default() += 1;
        let _ = bdev;
        Target::At(Place { chunk, block: first as u8, private: true }, false)
    }

    /// The last record that may have left these blocks of the slot's own chunk, if it may not be durable.
    fn vacated_by(&self, root: RootId, slot: SlotNo, mask: u16) -> u64 {
        let vacated = self.vacated.get(&(root, slot)).filter(|(blocks, _)| blocks & mask != 0);
        let stripe = (root, slot.stripe());
        let of_stripe = [self.copied.get(&stripe), self.zeroed.get(&stripe)];
        let record = vacated.map_or(0, |&(_, record)| record).max(self.vacated_all);
        of_stripe.into_iter().flatten().fold(record, |last, &record| last.max(record))
    }

    /// Blocks for a write that may not go to where its slot's own are: a piece of a fragment chunk, or a chunk.
    fn target_elsewhere(&mut self, task: Slot, first: u32, count: u32) -> Target {
        let claimed = matches!(self.tasks.get(task), Some(Task::Write(write)) if write.claimed);
        if !claimed {
            if count <= FRAGMENT_BLOCKS_MAX
                && let Some(place) = self.take_fragment(count)
            {
                return Target::At(place, true);
            }
            if !self.promises.claim(1) {
                return Target::Full(IoError::OutOfSpace);
            }
            if let Some(Task::Write(write)) = self.tasks.get_mut(task) {
                write.claimed = true;
            }
        }
        let Some(chunk) = self.take_chunk(None, 0) else { return Target::Wait };
        if let Some(Task::Write(write)) = self.tasks.get_mut(task) {
            (write.claimed, write.alone) = (false, true);
        }
        Target::At(Place { chunk, block: first as u8, private: true }, false)
    }

    /// Whether a write may draw on what is kept for heartbeats: a COMPARE AND WRITE's, or a small one to blocks that one
    /// has used.
    fn may_draw(&self, write: &Write) -> bool {
        match &write.source {
            Source::Io(io) => {
                io.heartbeat
                    || write.blocks() <= FRAGMENT_BLOCKS_MAX
                        && self.heartbeats.has(write.bdev, write.slot, write.mask())
            }
            Source::Zeroes(_) | Source::Fold | Source::Nothing => false,
        }
    }

    /// A place for a write that draws on what is kept for heartbeats. As many as possible share a chunk, whatever their
    /// slots: the next free one may be long in coming.
    fn heartbeat_target(&mut self, task: Slot, count: u32) -> Target {
        let Some(Task::Write(write)) = self.tasks.get_mut(task) else { return Target::Wait };
        if let Some(place) = room(&mut self.heartbeat_fragment, count) {
            if std::mem::take(&mut write.drawn) {
                self.promises.give(1);
            }
            return Target::At(place, true);
        }
        if !write.drawn && !self.promises.claim_heartbeat() {
            return Target::Full(IoError::OutOfSpace);
        }
        write.drawn = true;
        let Some(chunk) = self.take_chunk(None, 0) else { return Target::Wait };
        if let Some(Task::Write(write)) = self.tasks.get_mut(task) {
            write.drawn = false;
        }
        let open =
            self.heartbeat_fragment.replace(Fragment { chunk, next: count, pins: 1, opened: self.now });
        self.close_fragment(open);
        Target::At(Place { chunk, block: 0, private: true }, true)
    }

    /// A piece of the chunk that small redirected writes share.
    fn take_fragment(&mut self, count: u32) -> Option<Place> {
        if let Some(place) = room(&mut self.fragment, count) {
            return Some(place);
        }
        if self.space.free() == 0 || !self.promises.claim(1) {
            return None;
        }
        let Some(chunk) = self.space.take(None, 0) else {
            self.promises.give(1);
            return None;
        };
        let open = self.fragment.replace(Fragment { chunk, next: count, pins: 1, opened: self.now });
        self.close_fragment(open);
        Some(Place { chunk, block: 0, private: true })
    }

    /// Nothing more goes to a fragment chunk.
    pub(super) fn close_fragment(&mut self, fragment: Option<Fragment>) {
        self.old_fragments.extend(fragment);
        self.close_fragments();
    }

    /// Full fragment chunks that no write is on its way to are their slots' alone.
    fn close_fragments(&mut self) {
        let mut closed = smallvec::SmallVec::<[Chunk; 4]>::new();
        self.old_fragments.retain(|fragment| {
            if fragment.pins == 0 {
                closed.push(fragment.chunk);
            }
            fragment.pins != 0
        });
        self.give_up(closed.into_iter());
    }

    /// Nobody is on the way to where this write was to go. A chunk that was taken for it and has nothing in it goes back.
    fn unpin(&mut self, task: Slot) {
        let Some(Task::Write(write)) = self.tasks.get_mut(task) else { return };
        self.records_due -= u64::from(std::mem::take(&mut write.due));
        let (bdev, slot) = (write.bdev, write.slot);
        let (fragment, alone) = (std::mem::take(&mut write.fragment), std::mem::take(&mut write.alone));
        let Some(target) = write.target.take() else { return };
        if alone {
            // No record has it.
            return self.give_up(std::iter::once(target.chunk));
        }
        if fragment {
            let open = self.fragment.iter_mut().chain(&mut self.heartbeat_fragment);
            let mut open = open.chain(&mut self.old_fragments);
            if let Some(fragment) = open.find(|fragment| fragment.chunk == target.chunk) {
                fragment.pins -= 1;
            }
            return self.close_fragments();
        }
        if let Some(pins) = self.pins.get_mut(&target.chunk.0) {
            *pins -= 1;
            if *pins > 0 {
                return;
            }
            self.pins.remove(&target.chunk.0);
        }
        self.take_back(bdev, slot, target.chunk);
    }

    /// Gives up a slot's private chunk if no block is in it.
    fn take_back(&mut self, bdev: BdevId, slot_no: SlotNo, chunk: Chunk) {
        let Some(volume) = self.volume(bdev) else { return };
        let (root, thick) = (volume.attached.root, volume.attached.thick);
        let (slot, private) = self.map.slot(root, slot_no);
        let pointers = self.map.explosions.pointers(slot);
        if !private
            || self.map.explosions.private_chunk(slot) != Some(chunk)
            || pointers.iter().flatten().any(|place| place.chunk == chunk)
        {
            return;
        }
        let Some(leaf) = self.map.leaf(root, slot_no.stripe()) else { return };
        let changed = self.map.change(root, leaf, slot_no.index(), &pointers, Chunk::NONE);
        if thick {
            self.promises.reserve_again(1);
        }
        self.give_up(changed.dropped.into_iter());
        self.map.tidy(root, slot_no.stripe(), leaf);
    }

    /// Sends the data to a place, `lead` bytes into its first block.
    fn write_data(&mut self, task: Slot, place: Place, lead: u32, bytes: u32) {
        if self.swap_in_memory(task, place.chunk) {
            self.counts.data_write_bytes += u64::from(bytes);
            return;
        }
        let Some(Task::Write(write)) = self.tasks.get_mut(task) else { return };
        let buf = match (&mut write.source, write.merged) {
            (Source::Io(io), false) => io.buf.take(),
            _ => write.bounce.take(),
        };
        let durable = write.durable;
        let (member, base) = self.chunk_at(place.chunk);
        let at = base + u64::from(place.block) * BLOCK_BYTES + u64::from(lead);
        self.counts.data_write_bytes += u64::from(bytes);
        self.issue(User::Task(task), member, DiskAction::Write { durable }, at, u64::from(bytes), buf, 0);
    }

    pub(super) fn write_io_done(&mut self, task: Slot, result: Result<(), IoError>, buf: Option<Buf>) {
        let Some(Task::Write(write)) = self.tasks.get_mut(task) else { return };
        match (write.state, write.merged, &mut write.source) {
            (State::Reading(_), ..) | (_, true, _) => write.bounce = buf,
            (_, false, Source::Io(io)) => io.buf = buf,
            (_, false, _) => unreachable!("zeroes come from the bounce buffer"),
        }
        let (state, durable, epoch) = (write.state, write.durable, write.epoch);
        if let State::Reading(which) = state {
            return match result {
                Ok(()) => self.merge_from(task, which + 1),
                Err(IoError::Medium { errno }) => self.finish_write(task, Err(IoError::Unread { errno })),
                Err(error) => self.finish_write(task, Err(error)),
            };
        }
        if let Some(epoch) = epoch {
            self.epochs.end(epoch);
            if let Some(Task::Write(write)) = self.tasks.get_mut(task) {
                write.epoch = None;
            }
        }
        if let Err(error) = result {
            // Something of it may be there, in place or among blocks that it filled, to be read, copied or frozen, and not
            // be durable: no record may name that, and a flush is for that, too.
            self.note_all_unsynced();
            self.note_loose();
            self.sync_asked = true;
            return self.finish_write(task, Err(error));
        }
        if !durable {
            let Some(Task::Write(write)) = self.tasks.get(task) else { return };
            let is_fold = matches!(write.source, Source::Fold);
            let chunk =
                write.target.map_or_else(|| self.in_place(write).map(|place| place.chunk), |t| Some(t.chunk));
            match chunk {
                Some(chunk) => {
                    let (member, _) = self.chunk_at(chunk);
                    self.note_unsynced(member);
                }
                None => self.note_all_unsynced(),
            }
            if is_fold {
                self.note_loose();
            }
        }
        match state {
            State::Redirected => self.data_written(task),
            _ if durable => self.written_in_place(task),
            _ => self.finish_write(task, Ok(())),
        }
    }

    /// The data are durable, but nothing leads there before the record is that has brought the slot to this place.
    fn written_in_place(&mut self, task: Slot) {
        let Some(Task::Write(write)) = self.tasks.get_mut(task) else { return };
        let (bdev, slot) = (write.bdev, write.slot);
        let root = self.volume(bdev).map(|volume| volume.attached.root);
        let moved = root.and_then(|root| {
            let copied = self.copied.get(&(root, slot.stripe())).copied();
            self.moved.get(&(root, slot)).copied().max(copied)
        });
        match moved {
            Some(record) if !self.is_durable(record) => {
                let Some(Task::Write(write)) = self.tasks.get_mut(task) else { return };
                write.state = State::Recorded;
                let hold = write.hold.take();
                self.journal.wanted = true;
                self.wait_for(record, task);
                if let Some(hold) = hold {
                    self.leave(bdev, hold);
                }
            }
            _ => self.finish_write(task, Ok(())),
        }
    }

    /// The data are where they should be: the record, the map, and then the answer.
    fn data_written(&mut self, task: Slot) {
        if let Some(error) = self.broken {
            return self.finish_write(task, Err(error));
        }
        let Some(Task::Write(write)) = self.tasks.get_mut(task) else { return };
        if let How::Staged(tag) = write.how {
            write.state = State::Staged;
            let source = std::mem::replace(&mut write.source, Source::Nothing);
            let io = if let Source::Io(io) = source { Some(io) } else { None };
            // Zeroes have changed nothing yet. When other parts are seen nobody may know this one as it was.
            let (bdev, stripe) = (write.bdev, write.slot.stripe());
            if let Some(root) = self.volume(bdev).map(|volume| volume.attached.root) {
                self.map.note_change(root, stripe);
            }
            return self.staged(task, tag, io);
        }
        if !self.breaks(Rule::DataBeforeRecord)
            || !matches!(self.tasks.get(task), Some(Task::Write(w)) if w.target.is_some())
        {
            self.record(task);
        }
        // From now on the map holds the chunk.
        self.unpin(task);
        let Some(Task::Write(write)) = self.tasks.get_mut(task) else { return };
        let durable = write.durable;
        write.state = State::Recorded;
        let (bdev, hold) = (write.bdev, write.hold.take());
        let record = self.journal.appended();
        if durable && !self.is_durable(record) && !self.breaks(Rule::AnswerAfterRecord) {
            self.journal.wanted = true;
            self.wait_for(record, task);
        } else {
            self.finish_write(task, Ok(()));
        }
        if let Some(hold) = hold {
            self.leave(bdev, hold);
        }
    }

    /// Appends the record and changes the map.
    fn record(&mut self, task: Slot) {
        let Some(Task::Write(write)) = self.tasks.get(task) else { return };
        let durable = write.durable;
        let Some(shown) = self.show(task) else { return };
        let record = self.append(durable, |out, _| shown.say(out));
        self.note_shown(shown, record);
    }

    /// Changes the map to what a write has made. `None`: that was so before.
    pub(super) fn show(&mut self, task: Slot) -> Option<Shown> {
        let Some(Task::Write(write)) = self.tasks.get_mut(task) else { return None };
        let alone = std::mem::take(&mut write.alone);
        let (slot_no, mask, zeroes, first) = (write.slot, write.mask(), write.zeroes, write.first_block());
        let (target, fragment, bdev) = (write.target, write.fragment, write.bdev);
        let volume = self.volume(bdev)?;
        let (root, thick) = (volume.attached.root, volume.attached.thick);
        if target.is_none() && self.map.explosions.mapped_mask(self.map.slot(root, slot_no).0) & mask == 0 {
            // Zeroes over zeroes: nothing changes, and no node is made for it.
            return None;
        }
        let mut named = std::mem::take(&mut self.named);
        let leaf = self.map.leaf_for_write(root, slot_no.stripe(), &mut named);
        self.named = named;
        self.count_named();
        let slot = self.map.slot_at(leaf, slot_no.index());
        let mut pointers = self.map.explosions.pointers(slot);
        let own_before = self.map.explosions.private_chunk(slot);
        let mut vacated = 0;
        for (block, place) in pointers.iter_mut().enumerate() {
            if mask >> block & 1 == 1 {
                let after = match target {
                    Some(target) if zeroes >> block & 1 == 0 => {
                        let at = u32::from(target.block) + block as u32 - first;
                        Some(Place { chunk: target.chunk, block: at as u8, private: true })
                    }
                    _ => None,
                };
                let was_own = place.is_some_and(|place| Some(place.chunk) == own_before);
                vacated |= u16::from(was_own && *place != after) << block;
                *place = after;
            }
        }
        let own = match target {
            // All of the slot is in it, so it is as if it had been granted.
            Some(target) if alone && mask == ALL => Some(target.chunk),
            _ => self.own_after(slot, &pointers, target.map(|target| target.chunk)),
        };
        if let (true, Some(target)) = (fragment, target)
            && !self.map.explosions.names(slot).contains(&target.chunk)
        {
            self.name(target.chunk);
        }
        let had = own_before.is_some();
        let changed = self.map.change(root, leaf, slot_no.index(), &pointers, own.unwrap_or(Chunk::NONE));
        if thick && had && own.is_none() {
            self.promises.reserve_again(1);
        }
        let (written, zeroes) = (mask & !zeroes, mask & zeroes);
        let dropped = changed.dropped;
        Some(Shown { root, slot: slot_no, written, zeroes, target, first, vacated, dropped })
    }

    /// A write's record is appended.
    pub(super) fn note_shown(&mut self, shown: Shown, record: u64) {
        let Shown { root, slot, written, vacated, dropped, .. } = shown;
        if written != 0 {
            self.moved.insert((root, slot), record);
        }
        if vacated != 0 {
            let durable = self.journal.durable();
            let entry = self.vacated.entry((root, slot)).or_default();
            let before = if entry.1 > durable { entry.0 } else { 0 };
            *entry = (before | vacated, record);
        }
        self.give_up(dropped.into_iter());
        if let Some(leaf) = self.map.leaf(root, slot.stripe()) {
            self.map.tidy(root, slot.stripe(), leaf);
        }
    }

    /// What the record of a staged part will say.
    pub(super) fn say_staged(&self, task: Slot, out: &mut super::codec::Writer) {
        let Some(Task::Write(write)) = self.tasks.get(task) else { return };
        let Some(volume) = self.volume(write.bdev) else { return };
        let (root, slot, mask) = (volume.attached.root, write.slot, write.mask());
        // Zeroes over zeroes, too: what has made them may be a record of this core that is not durable.
        Shown {
            root,
            slot,
            written: mask & !write.zeroes,
            zeroes: mask & write.zeroes,
            target: write.target,
            first: write.first_block(),
            vacated: 0,
            dropped: super::slot::Names::new(),
        }
        .say(out);
    }

    /// Where a write is, for putting several in order.
    pub(super) fn write_place(&self, task: Slot) -> u64 {
        match self.tasks.get(task) {
            Some(Task::Write(write)) => write.slot.0,
            _ => 0,
        }
    }

    /// Whether the answer to a write promises that it is on the medium.
    pub(super) fn is_durable_write(&self, task: Slot) -> bool {
        matches!(self.tasks.get(task), Some(Task::Write(write)) if write.durable)
    }

    /// The private chunk that a slot keeps once it has these pointers: while a block is in it, or about to be.
    pub(super) fn own_after(
        &self,
        slot: super::slot::Slot,
        pointers: &[super::slot::Pointer; SLOT_BLOCKS as usize],
        about: Option<Chunk>,
    ) -> Option<Chunk> {
        let own = self.map.explosions.private_chunk(slot)?;
        let in_use = pointers.iter().flatten().any(|place| place.chunk == own);
        let pinned = self.pins.get(&own.0).copied().unwrap_or(0);
        let mine = u32::from(about == Some(own));
        (in_use || pinned > mine).then_some(own)
    }

    /// Whether it went well or not: everything it has is given back.
    pub(super) fn finish_write(&mut self, task: Slot, result: Result<(), IoError>) {
        self.unpin(task);
        let Some(Task::Write(mut write)) = self.tasks.remove(task) else { return };
        if write.drawn {
            self.promises.give(1);
        }
        if write.claimed {
            let thick = self.volume(write.bdev).is_some_and(|volume| volume.attached.thick);
            if thick {
                self.promises.reserve_again(1);
                self.promises.unpromised.fetch_add(1, std::sync::atomic::Ordering::AcqRel);
            } else {
                self.promises.give(1);
            }
        }
        if let Some(epoch) = write.epoch.take() {
            self.epochs.end(epoch);
        }
        if let Some(bounce) = write.bounce.take() {
            self.bounces.push(bounce);
        }
        let (bdev, hold) = (write.bdev, write.hold.take());
        let source = std::mem::replace(&mut write.source, Source::Nothing);
        self.spare_writes.push(write);
        match source {
            Source::Io(io) => self.done.push_back(Done { io, result }),
            Source::Zeroes(range) => self.range_part_done(range, result),
            Source::Fold => self.fold_ended(result),
            Source::Nothing => {}
        }
        if let Some(hold) = hold {
            self.leave(bdev, hold);
        }
    }
}

/// The next piece of a fragment chunk, if there is room for it.
fn room(open: &mut Option<Fragment>, count: u32) -> Option<Place> {
    let fragment = open.as_mut().filter(|fragment| fragment.next + count <= SLOT_BLOCKS)?;
    let place = Place { chunk: fragment.chunk, block: fragment.next as u8, private: true };
    fragment.next += count;
    fragment.pins += 1;
    Some(place)
}

/// The blocks that are in the slot's own chunk, for a slot that two chunks do for.
fn slot_own(slot: super::slot::Slot) -> u16 {
    if slot.exploded_index().is_some() { 0 } else { slot.own_mask() }
}
