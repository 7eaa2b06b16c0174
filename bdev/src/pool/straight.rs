//! What takes no time of a volume in memory is done as it is asked: reads of chunks that this core has, and writes to where a
//! slot's own blocks are. It is over before anything else happens, so nothing has to be kept from being given away
//! meanwhile, and nobody can have flagged a slot since it was looked at.
//!
//! The rules are those of `read` and `write`, and what they would do by another step than the next is left to them.

use super::map::SlotNo;
use super::shard::PoolShard;
use super::slot::{BLOCK_BYTES, CHUNK_BYTES, Whereabouts};
use crate::io::BdevId;
use crate::lent::Lent;
use crate::zero_detect::zero_blocks;

/// The blocks of a slot that some of its bytes are in: the first, and how many.
#[inline]
fn blocks_of(in_slot: u32, bytes: usize) -> (u32, u32) {
    let first = in_slot / BLOCK_BYTES as u32;
    (first, (in_slot + bytes as u32).div_ceil(BLOCK_BYTES as u32) - first)
}

impl PoolShard {
    /// Lends bytes of a volume, within one slot. `None`: they are not together, not this core's, or so much is lent that
    /// they have to be copied.
    #[inline]
    pub(crate) fn lend_now(&mut self, bdev: BdevId, first: u64, bytes: usize) -> Option<Lent> {
        let memory = self.memory.as_ref()?;
        let root = self.volume(bdev)?.attached.root;
        let (slot, _) = self.map.slot(root, SlotNo(first / CHUNK_BYTES));
        let in_slot = (first % CHUNK_BYTES) as u32;
        let (block, blocks) = blocks_of(in_slot, bytes);
        let lent = match slot.whereabouts(block, blocks) {
            Whereabouts::Own(chunk) | Whereabouts::Base(chunk) => {
                let lent = memory.lend(Some(chunk), in_slot, bytes)?;
                self.counts.data_read_bytes += bytes as u64;
                lent
            }
            Whereabouts::Zeroes => memory.lend(None, in_slot, bytes)?,
            Whereabouts::Apart => return None,
        };
        self.folding.asked_at = self.now;
        Some(lent)
    }

    /// Fills `buf` with bytes of a volume, within one slot. False: some are another core's; what is in `buf` means nothing.
    pub(crate) fn read_now(&mut self, bdev: BdevId, first: u64, buf: &mut [u8]) -> bool {
        let (Some(memory), Some(volume)) = (&self.memory, self.volume(bdev)) else { return false };
        let (slot, _) = self.map.slot(volume.attached.root, SlotNo(first / CHUNK_BYTES));
        let (mut in_slot, mut rest, mut read) = ((first % CHUNK_BYTES) as u32, buf, 0);
        while !rest.is_empty() {
            let (block, within) = (in_slot / BLOCK_BYTES as u32, in_slot % BLOCK_BYTES as u32);
            let bytes = (BLOCK_BYTES as usize - within as usize).min(rest.len());
            let (part, behind) = rest.split_at_mut(bytes);
            match self.map.explosions.pointer(slot, block) {
                None => part.fill(0),
                Some(place) => {
                    let at = u32::from(place.block) * BLOCK_BYTES as u32 + within;
                    let Some(data) = memory.at(place.chunk, at, bytes) else { return false };
                    part.copy_from_slice(data);
                    read += bytes as u64;
                }
            }
            (rest, in_slot) = (behind, in_slot + bytes as u32);
        }
        self.counts.data_read_bytes += read;
        self.folding.asked_at = self.now;
        true
    }

    /// Writes `data` to a volume, within one slot, if all of them go to where the slot's own blocks are, with nobody at the
    /// gate who has some alone, and nothing has to be durable first. False: nothing was done.
    #[inline]
    pub(crate) fn write_now(&mut self, bdev: BdevId, first: u64, data: &[u8]) -> bool {
        if self.memory.is_none() || self.broken.is_some() {
            return false;
        }
        let Some(volume) = self.volume(bdev).filter(|volume| volume.gate.is_open()) else { return false };
        let (root, zero_detect) = (volume.attached.root, volume.attached.zero_detect);
        let slot_no = SlotNo(first / CHUNK_BYTES);
        let (slot, private) = self.map.slot(root, slot_no);
        let in_slot = (first % CHUNK_BYTES) as u32;
        let (block, blocks) = blocks_of(in_slot, data.len());
        let Whereabouts::Own(chunk) = slot.whereabouts(block, blocks) else { return false };
        if !private || slot.is_frozen() || zero_detect && zero_blocks(data, in_slot) != 0 {
            return false;
        }
        // What brought the slot there may not be durable; who is answered waits for that.
        if !self.moved.is_empty() || !self.copied.is_empty() {
            let moved = self.moved.get(&(root, slot_no)).max(self.copied.get(&(root, slot_no.stripe())));
            if moved.is_some_and(|&record| !self.is_durable(record)) {
                return false;
            }
        }
        let bytes = data.len();
        let Some(place) = self.memory.as_mut().and_then(|memory| memory.at_mut(chunk, in_slot, bytes)) else {
            return false;
        };
        place.copy_from_slice(data);
        self.folding.asked_at = self.now;
        self.counts.host_write_bytes += bytes as u64;
        self.counts.data_write_bytes += bytes as u64;
        self.counts.writes_in_place += 1;
        true
    }

    /// Hints that bytes of a volume will be read or written soon.
    pub(crate) fn expect(&self, bdev: BdevId, first: u64, bytes: usize) {
        let (Some(memory), Some(volume)) = (&self.memory, self.volume(bdev)) else { return };
        let (slot, _) = self.map.slot(volume.attached.root, SlotNo(first / CHUNK_BYTES));
        let in_slot = (first % CHUNK_BYTES) as u32;
        if let Whereabouts::Own(chunk) | Whereabouts::Base(chunk) =
            slot.whereabouts(in_slot / BLOCK_BYTES as u32, 1)
        {
            memory.expect(chunk, in_slot, bytes);
        }
    }
}
