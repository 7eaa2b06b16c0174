//! Which blocks COMPARE AND WRITE has used lately: small writes there may draw on what a pool keeps for heartbeats, too.
//! Hosts take a lock by COMPARE AND WRITE and may write what stands in it, or beside it, by plain writes afterwards.
//!
//! A fixed table, in which one slot of one volume has one place. Whoever comes to a place that another has makes that one
//! be forgotten: then its plain writes have to find space like any other's, and its next COMPARE AND WRITE brings it back.

use super::map::SlotNo;
use crate::io::BdevId;

/// Slots whose blocks are remembered by a core: as many as 65,536 locks of 4 KiB take that lie one beside the other.
pub(super) const HEARTBEAT_SLOTS: usize = 4096;

/// One slot's.
#[derive(Clone, Copy, Debug, Default)]
struct Used {
    slot: u64,
    bdev: u16,
    /// Its blocks. None: nobody's.
    mask: u16,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Heartbeats {
    used: Box<[Used]>,
}

impl Heartbeats {
    pub(super) fn new() -> Heartbeats {
        Heartbeats { used: vec![Used::default(); HEARTBEAT_SLOTS].into() }
    }

    /// Neighbours get different places, so that a file of locks doesn't forget itself.
    fn place(bdev: BdevId, slot: SlotNo) -> usize {
        slot.0.wrapping_add(u64::from(bdev.0).wrapping_mul(977)) as usize % HEARTBEAT_SLOTS
    }

    /// A COMPARE AND WRITE uses these blocks of a slot.
    pub(super) fn note(&mut self, bdev: BdevId, slot: SlotNo, mask: u16) {
        let used = &mut self.used[Heartbeats::place(bdev, slot)];
        if (used.slot, used.bdev) != (slot.0, bdev.0) {
            *used = Used { slot: slot.0, bdev: bdev.0, mask: 0 };
        }
        used.mask |= mask;
    }

    /// Whether one has used all of these blocks, as far as is remembered.
    pub(super) fn has(&self, bdev: BdevId, slot: SlotNo, mask: u16) -> bool {
        let used = &self.used[Heartbeats::place(bdev, slot)];
        (used.slot, used.bdev) == (slot.0, bdev.0) && mask & !used.mask == 0
    }

    /// What is a volume's number now may be another's later.
    pub(super) fn forget(&mut self, bdev: BdevId) {
        self.used.iter_mut().filter(|used| used.bdev == bdev.0).for_each(|used| used.mask = 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: blocks are remembered by volume and slot, a file of locks whole, others make room, and detached volumes are
    /// forgotten.
    #[test]
    fn remembers_blocks() {
        let mut heartbeats = Heartbeats::new();
        let (a, b) = (BdevId(0x4000), BdevId(0x4001));
        for slot in 0..HEARTBEAT_SLOTS as u64 {
            assert!(!heartbeats.has(a, SlotNo(slot), 1));
            heartbeats.note(a, SlotNo(slot), 1);
            heartbeats.note(a, SlotNo(slot), 4);
        }
        for slot in 0..HEARTBEAT_SLOTS as u64 {
            let has = [1, 4, 5, 2, 7].map(|mask| heartbeats.has(a, SlotNo(slot), mask));
            assert_eq!(has, [true, true, true, false, false]);
            assert!(!heartbeats.has(b, SlotNo(slot), 1) && !heartbeats.has(a, SlotNo(slot + 4096), 1));
        }
        heartbeats.note(a, SlotNo(4096), 2);
        assert!(heartbeats.has(a, SlotNo(4096), 2) && !heartbeats.has(a, SlotNo(0), 1));
        heartbeats.note(b, SlotNo(9), 1);
        heartbeats.forget(a);
        assert!(!heartbeats.has(a, SlotNo(1), 1) && heartbeats.has(b, SlotNo(9), 1));
    }
}
