//! Ranges that become zeroes: WRITE ZEROES and UNMAP are map state here. Parts of blocks at the ends are written.

use super::map::{LEAF_SLOTS, RootId, SlotNo};
use super::record;
use super::shard::{PoolShard, Task};
use super::slot::{ALL, BLOCK_BYTES, CHUNK_BYTES, Chunk, SLOT_BLOCKS, mask_of};
use super::write::{How, Source};
use crate::error::IoError;
use crate::io::{BdevId, Done, Io, Op};
use reactor::slots::Slot;
use smallvec::SmallVec;
use std::ops::Range as Span;

/// Blocks of the journal that the records of the longest range take: 512 runs.
const RECORD_BLOCKS_MAX: u64 = 4;

/// A range on its way.
#[derive(Debug)]
pub(super) struct Range {
    io: Io,
    bdev: BdevId,
    /// The whole blocks.
    blocks: Span<u64>,
    hold: Option<Slot>,
    durable: bool,
    /// The ends that are being written, and the middle.
    parts: u32,
    failed: Option<IoError>,
}

impl PoolShard {
    pub(super) fn submit_range(&mut self, io: Io) {
        let Some(volume) = self.volume(io.bdev) else { unreachable!("looked up by the caller") };
        let geometry = volume.attached.geometry;
        let block_bytes = u64::from(geometry.block_bytes);
        let (first, end) = (io.lba * block_bytes, (io.lba + io.blocks) * block_bytes);
        let durable = io.fua || !geometry.write_cache;
        let bdev = io.bdev;
        let (first_whole, end_whole) = (first.next_multiple_of(BLOCK_BYTES), end - end % BLOCK_BYTES);
        let mut ends: smallvec::SmallVec<[Span<u64>; 2]> = smallvec::SmallVec::new();
        if first_whole > end_whole {
            ends.push(first..end);
        } else {
            ends.extend([first..first_whole, end_whole..end].into_iter().filter(|end| !end.is_empty()));
        }
        let middle = first_whole < end_whole;
        let blocks = first_whole / BLOCK_BYTES..end_whole.max(first_whole) / BLOCK_BYTES;
        let parts = ends.len() as u32 + u32::from(middle);
        let range = Range { io, bdev, blocks: blocks.clone(), hold: None, durable, parts, failed: None };
        let Ok(task) = self.tasks.insert(Task::Range(range)) else { panic!("the shard bounds its requests") };
        for end in ends {
            let slot = SlotNo(end.start / CHUNK_BYTES);
            let in_slot = (end.start % CHUNK_BYTES) as u32;
            let bytes = (end.end - end.start) as u32;
            self.begin_write(
                Source::Zeroes(task),
                bdev,
                slot,
                in_slot,
                in_slot + bytes,
                durable,
                0,
                How::Plain,
            );
        }
        if middle {
            let (hold, admitted) = self.enter(bdev, task, blocks, true);
            if let Some(Task::Range(range)) = self.tasks.get_mut(task) {
                range.hold = Some(hold);
            }
            if admitted {
                self.start_range(task);
            }
        }
    }

    /// The gate is open, or the journal has room.
    pub(super) fn start_range(&mut self, task: Slot) {
        let may = self.work_left > 0 && self.journal_has_room(RECORD_BLOCKS_MAX);
        if !may && self.broken.is_none() {
            return self.parked.push_back(task);
        }
        let Some(Task::Range(range)) = self.tasks.get_mut(task) else { return };
        let (bdev, blocks, durable) = (range.bdev, range.blocks.clone(), range.durable);
        let hold = range.hold.take();
        if let Some(error) = self.broken {
            range.failed = Some(error);
        } else {
            let may_leave = range.io.op == Op::Unmap;
            let zeroed = self.zero_blocks_of(bdev, blocks, durable, may_leave);
            if let (Err(error), Some(Task::Range(range))) = (zeroed, self.tasks.get_mut(task)) {
                range.failed = Some(error);
            }
        }
        if durable && self.broken.is_none() {
            // Also where nothing has changed: it was zero by a record that may still be on its way.
            let record = self.journal.appended();
            self.journal.wanted = true;
            self.wait_for(record, task);
        } else {
            self.range_part_done(task, Ok(()));
        }
        if let Some(hold) = hold {
            self.leave(bdev, hold);
        }
    }

    /// Makes whole blocks zeroes in the map. Where memory for maps is short, a stripe of which something is left may not take
    /// a node more: an UNMAP leaves it as it is, anything else ends there.
    fn zero_blocks_of(
        &mut self,
        bdev: BdevId,
        blocks: Span<u64>,
        durable: bool,
        may_leave: bool,
    ) -> Result<(), IoError> {
        let Some(volume) = self.volume(bdev) else { return Ok(()) };
        let is_short = !self.has_map_memory();
        let mut result = Ok(());
        let (root, thick) = (volume.attached.root, volume.attached.thick);
        let slot_blocks = u64::from(SLOT_BLOCKS);
        let (mut at, mut run): (u64, Option<(SlotNo, u64)>) = (blocks.start, None);
        let mut dropped = Vec::new();
        let mut zeroed = SmallVec::<[u64; 16]>::new();
        while at < blocks.end {
            let slot_no = SlotNo(at / slot_blocks);
            let stripe = slot_no.stripe();
            let Some((leaf, private)) = self.map.leaf_and_private(root, stripe) else {
                at = (stripe + 1) * LEAF_SLOTS as u64 * slot_blocks;
                continue;
            };
            let stripe_end = ((stripe + 1) * LEAF_SLOTS as u64 * slot_blocks).min(blocks.end);
            let whole = stripe_end - at == LEAF_SLOTS as u64 * slot_blocks;
            if is_short && !whole && (!private || self.map.run_of(leaf).is_some()) {
                if !may_leave {
                    result = Err(IoError::OutOfSpace);
                    break;
                }
                self.counts.unmap_left_blocks += stripe_end - at;
                at = stripe_end;
                continue;
            }
            if whole {
                let (before, count) = (dropped.len(), LEAF_SLOTS as u64);
                let private = self.map.put_leaf(root, stripe, None, &mut dropped);
                if thick {
                    self.promises.reserve_again(private as i64);
                }
                self.spend(1 + (dropped.len() - before) as u32 / 4);
                at = stripe_end;
                zeroed.push(stripe);
                self.zero_run(&mut run, slot_no, count, root, durable);
                continue;
            }
            let mut leaf = None;
            while at < stripe_end {
                let slot_no = SlotNo(at / slot_blocks);
                let first = (at % slot_blocks) as u32;
                let until = stripe_end.min((slot_no.0 + 1) * slot_blocks);
                let mask = mask_of(first, (until - at) as u32);
                at = until;
                let (slot, _) = self.map.slot(root, slot_no);
                if slot.is_empty() || self.map.explosions.mapped_mask(slot) & mask == 0 && mask != ALL {
                    continue;
                }
                let leaf = *leaf.get_or_insert_with(|| {
                    let mut named = std::mem::take(&mut self.named);
                    let leaf = self.map.leaf_for_write(root, stripe, &mut named);
                    self.named = named;
                    leaf
                });
                self.count_named();
                self.spend(1);
                let slot = self.map.slot_at(leaf, slot_no.index());
                let had = self.map.explosions.private_chunk(slot).is_some();
                let was_mapped = self.map.explosions.mapped_mask(slot) & mask != 0;
                let is_plain = mask == ALL && slot.exploded_index().is_none();
                if is_plain && slot.private_chunk().is_none_or(|own| !self.pins.contains_key(&own.0)) {
                    // Most of what long ranges meet, and nothing of it is kept.
                    dropped.extend(self.map.clear(root, leaf, slot_no.index()).dropped);
                    if thick && had {
                        self.promises.reserve_again(1);
                    }
                    if was_mapped {
                        self.zero_run(&mut run, slot_no, 1, root, durable);
                    }
                    continue;
                }
                let mut pointers = self.map.explosions.pointers(slot);
                for (block, place) in pointers.iter_mut().enumerate() {
                    if mask >> block & 1 == 1 {
                        *place = None;
                    }
                }
                let own = self.own_after(slot, &pointers, None);
                let changed =
                    self.map.change(root, leaf, slot_no.index(), &pointers, own.unwrap_or(Chunk::NONE));
                if thick && had && own.is_none() {
                    self.promises.reserve_again(1);
                }
                dropped.extend(changed.dropped);
                if !was_mapped {
                    continue;
                }
                if mask == ALL {
                    self.zero_run(&mut run, slot_no, 1, root, durable);
                } else {
                    self.append(durable, |out, _| record::write_zero(out, root, slot_no, mask));
                }
            }
            if let Some(leaf) = leaf {
                zeroed.push(stripe);
                self.map.tidy(root, stripe, leaf);
            }
        }
        if let Some((first, count)) = run {
            self.append(durable, |out, _| record::write_zero_run(out, root, first, count));
        }
        let record = self.journal.appended();
        for stripe in zeroed {
            self.zeroed.insert((root, stripe), record);
        }
        self.give_up(dropped.into_iter());
        result
    }

    /// Slots that became zeroes are one run with those before them, or what is before them is recorded.
    fn zero_run(
        &mut self,
        run: &mut Option<(SlotNo, u64)>,
        slot: SlotNo,
        count: u64,
        root: RootId,
        durable: bool,
    ) {
        match run {
            Some((first, before)) if first.0 + *before == slot.0 => *before += count,
            _ => {
                if let Some((first, count)) = run.replace((slot, count)) {
                    self.append(durable, |out, _| record::write_zero_run(out, root, first, count));
                }
            }
        }
    }

    /// A part of a range has ended.
    pub(super) fn range_part_done(&mut self, task: Slot, result: Result<(), IoError>) {
        let has_memory = self.has_map_memory();
        let Some(Task::Range(range)) = self.tasks.get_mut(task) else { return };
        range.parts -= 1;
        match result {
            Err(IoError::OutOfSpace) if range.io.op == Op::Unmap && !has_memory => {
                self.counts.unmap_left_blocks += 1;
            }
            Err(error) => {
                range.failed.get_or_insert(error);
            }
            Ok(()) => {}
        }
        if range.parts > 0 {
            return;
        }
        if let Some(Task::Range(Range { io, failed, .. })) = self.tasks.remove(task) {
            self.done.push_back(Done { io, result: failed.map_or(Ok(()), Err) });
        }
    }
}
