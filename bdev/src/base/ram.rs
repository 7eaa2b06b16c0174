//! A device in memory. Each core's instance holds the stripes that this core owns and no others, so it needs no lock
//! and its pages lie on that core's node. Everything is done before `submit` returns.

use crate::geometry::Geometry;
use crate::io::{Done, Io, Op};
use crate::layer::{Bdev, Effects};
use crate::stripe::{Deal, STRIPE_BYTES, next_stripe};
use reactor::Core;
use reactor::buf::{Buf, PAGE_BYTES};
use reactor::disk::DiskDone;
use std::collections::TryReserveError;

/// Space is given back by zeroing it: the unit only tells initiators what is worth unmapping.
pub const UNMAP_GRANULARITY_BYTES: u32 = PAGE_BYTES as u32;

/// The longest range zeroed in one step: some 25 µs of a core.
pub const STEP_BYTES: u64 = 256 << 10;

/// What one core's instance touches at start, so that no write to it pays for a page fault. What is beyond gets its
/// pages from the kernel at its first write: touching it all would keep a large device from starting for seconds.
const TOUCHED_BYTES_MAX: usize = 1 << 30;

/// See the module. Invariant: `memory` has [`STRIPE_BYTES`] for each stripe of `core`, in order.
pub struct Ram {
    geometry: Geometry,
    deal: Deal,
    core: Core,
    memory: Vec<u8>,
}

impl Ram {
    /// The part of a device of this shape that `core` owns. To be called on that core's thread.
    ///
    /// # Errors
    /// When there isn't as much memory.
    pub fn new(geometry: Geometry, deal: Deal, core: Core) -> Result<Ram, TryReserveError> {
        let bytes = memory_bytes(&geometry, deal, core);
        can_allocate(bytes)?;
        // Zeroed by the kernel, page by page as they are touched; hidden from the optimiser, who knows that too.
        let mut memory = std::hint::black_box(vec![0; bytes]);
        memory.iter_mut().take(TOUCHED_BYTES_MAX).step_by(PAGE_BYTES).for_each(|byte| *byte = 0);
        Ok(Ram { geometry, deal, core, memory })
    }

    /// Where a device's byte lies in our memory.
    #[inline]
    fn at(&self, offset_bytes: u64) -> usize {
        debug_assert_eq!(self.deal.owner(offset_bytes), self.core);
        (self.deal.local_stripe(offset_bytes) * STRIPE_BYTES + offset_bytes % STRIPE_BYTES) as usize
    }

    fn zero(&mut self, mut offset_bytes: u64, end_bytes: u64) {
        // At most a step of `Atomic` long, so a few stripes at most.
        while offset_bytes < end_bytes {
            let part_end = next_stripe(offset_bytes).min(end_bytes);
            let at = self.at(offset_bytes);
            self.memory[at..][..(part_end - offset_bytes) as usize].fill(0);
            offset_bytes = part_end;
        }
    }

    #[inline]
    fn perform(&mut self, io: &mut Io) {
        let block_bytes = u64::from(self.geometry.block_bytes);
        let first_bytes = io.lba * block_bytes;
        match (io.op, io.buf.as_mut()) {
            (Op::Read, Some(buf)) => {
                let at = self.at(first_bytes);
                let bytes = buf.len();
                buf.copy_from_slice(&self.memory[at..][..bytes]);
            }
            (Op::Write, Some(buf)) => {
                let at = self.at(first_bytes);
                let buf: &Buf = buf;
                self.memory[at..][..buf.len()].copy_from_slice(buf);
            }
            (Op::WriteZeroes | Op::Unmap, _) => self.zero(first_bytes, first_bytes + io.blocks * block_bytes),
            (Op::Flush, _) => {}
            (Op::Read | Op::Write, None) => unreachable!("the router checked the buffer"),
            (Op::Compare | Op::OrWrite, _) => unreachable!("the layer above makes reads and writes of it"),
        }
    }
}

impl Bdev for Ram {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    #[inline]
    fn submit(&mut self, mut io: Io, effects: &mut Effects) {
        self.perform(&mut io);
        effects.done.push_back(Done { io, result: Ok(()) });
    }

    fn complete(&mut self, _: DiskDone, _: &mut Effects) {
        debug_assert!(false, "it asks no disk for anything");
    }
}

impl std::fmt::Debug for Ram {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ram")
            .field("core", &self.core)
            .field("bytes", &self.memory.len())
            .finish_non_exhaustive()
    }
}

/// What the instance of one core takes.
fn memory_bytes(geometry: &Geometry, deal: Deal, core: Core) -> usize {
    (deal.stripes_of(core, geometry.bytes()) * STRIPE_BYTES) as usize
}

/// Whether the kernel would give this much memory in one piece. Takes none.
///
/// # Errors
/// When it would not.
pub fn can_allocate(bytes: usize) -> Result<(), TryReserveError> {
    let mut probe: Vec<u8> = Vec::new();
    probe.try_reserve_exact(bytes)?;
    // Otherwise an allocation that nobody uses is left out, and with it the answer.
    std::hint::black_box(&mut probe);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{geometry, io};
    use reactor::buf::{Pool, PoolConfig};

    /// Goal: each core's instance holds its own stripes, the last and shorter one included, apart from each other;
    /// zeroing ends where it should. Method: fill two instances' first and last blocks of each stripe with the
    /// stripe's number, zero a range over an edge of two of one owner, read everything back.
    #[test]
    fn stripes_are_apart() {
        let deal = Deal::among(2);
        let shape = geometry(4096, 520 * STRIPE_BYTES + 8192);
        let mut pool = Pool::new(PoolConfig { counts: [1, 0, 0], arena: 0 }).unwrap();
        let mut effects = Effects::default();
        let mut rams = [0, 1].map(|core| Ram { geometry: shape, deal, core: Core(core), memory: Vec::new() });
        for ram in &mut rams {
            // Not touched, as 2 GiB would be.
            ram.memory = vec![0; memory_bytes(&shape, deal, ram.core)];
        }
        let blocks_a_stripe = STRIPE_BYTES / 4096;
        let places: Vec<u64> = (0..520)
            .flat_map(|stripe| [stripe * blocks_a_stripe, (stripe + 1) * blocks_a_stripe - 1])
            .chain([520 * blocks_a_stripe, 520 * blocks_a_stripe + 1])
            .collect();
        let mut access = |rams: &mut [Ram; 2], op, lba: u64, byte| {
            let mut buf = pool.take(4096).unwrap();
            buf.fill(byte);
            rams[deal.owner(lba * 4096).index()].submit(io(1, op, lba, 1, Some(buf)), &mut effects);
            let done = effects.done.pop_front().unwrap();
            assert!(done.result.is_ok());
            done.io.buf.unwrap()[4095]
        };
        for (index, &lba) in places.iter().enumerate() {
            access(&mut rams, Op::Write, lba, (index % 251) as u8);
        }
        for (index, &lba) in places.iter().enumerate() {
            assert_eq!(access(&mut rams, Op::Read, lba, 0xff), (index % 251) as u8, "block {lba}");
        }
        let mut effects = Effects::default();
        rams[1].submit(io(2, Op::Unmap, blocks_a_stripe + 1, blocks_a_stripe - 2, None), &mut effects);
        assert!(effects.done.pop_front().unwrap().result.is_ok());
        assert_eq!(access(&mut rams, Op::Read, blocks_a_stripe, 0), 2);
        assert_eq!(access(&mut rams, Op::Read, 2 * blocks_a_stripe - 1, 0), 3);
        rams[1].submit(io(3, Op::WriteZeroes, blocks_a_stripe, blocks_a_stripe, None), &mut effects);
        assert_eq!(access(&mut rams, Op::Read, blocks_a_stripe, 0xff), 0);
        assert_eq!(access(&mut rams, Op::Read, 2 * blocks_a_stripe - 1, 0xff), 0);
        assert_eq!(access(&mut rams, Op::Read, 3 * blocks_a_stripe, 0xff), 6);
    }

    /// Goal: more memory than there is comes back as an error, not as an abort.
    #[test]
    fn too_much_memory_is_an_error() {
        assert!(can_allocate(1 << 20).is_ok());
        assert!(can_allocate(usize::MAX).is_err());
        assert!(Ram::new(geometry(4096, 1 << 55), Deal::among(1), Core(0)).is_err());
    }
}
