//! A device in memory. Each core's instance holds the stripes that this core owns and no others, so it needs no lock
//! and its pages lie on that core's node. Everything is done before `submit` returns.

use crate::geometry::Geometry;
use crate::io::{Done, Io, Op, PIECE_BYTES};
use crate::layer::{Bdev, Effects};
use crate::lent::Lent;
use crate::pieces::{self, Pieces};
use crate::stripe::{Deal, STRIPE_BYTES};
use reactor::Core;
use reactor::buf::{BUF_BYTES_MAX, PAGE_BYTES};
use reactor::disk::DiskDone;

/// Space is given back by zeroing it: the unit only tells initiators what is worth unmapping.
pub const UNMAP_GRANULARITY_BYTES: u32 = PAGE_BYTES as u32;

/// The longest range zeroed in one step: some 25 µs of a core.
pub const STEP_BYTES: u64 = 256 << 10;

/// See the module. Invariant: `pieces` has one for each piece of each stripe of `core`, in order.
pub struct Ram {
    geometry: Geometry,
    deal: Deal,
    core: Core,
    pieces: Pieces,
}

/// Memory that an instance takes for `bytes` of the device.
pub fn instance_bytes(bytes: u64) -> u64 {
    pieces::memory_bytes(bytes.div_ceil(PIECE_BYTES))
}

impl Ram {
    /// The part of a device of this shape that `core` owns. To be called on that core's thread.
    ///
    /// # Errors
    /// When there isn't as much memory.
    pub fn new(geometry: Geometry, deal: Deal, core: Core) -> std::io::Result<Ram> {
        let bytes = deal.stripes_of(core, geometry.bytes()) * STRIPE_BYTES;
        Ok(Ram { geometry, deal, core, pieces: Pieces::new(bytes / PIECE_BYTES)? })
    }

    /// The piece that a device byte is in.
    #[inline]
    fn piece(&self, offset_bytes: u64) -> usize {
        debug_assert_eq!(self.deal.owner(offset_bytes), self.core);
        let piece = self.deal.local_stripe(offset_bytes) * (STRIPE_BYTES / PIECE_BYTES)
            + offset_bytes % STRIPE_BYTES / PIECE_BYTES;
        piece as usize
    }

    /// The memory of `bytes` device bytes within one piece, to be read.
    #[inline]
    fn at(&self, offset_bytes: u64, bytes: usize) -> &[u8] {
        self.pieces.at(self.piece(offset_bytes), (offset_bytes % PIECE_BYTES) as usize, bytes)
    }

    /// The same to be written: what is lent of the piece stays as it is.
    #[inline]
    fn at_mut(&mut self, offset_bytes: u64, bytes: usize) -> &mut [u8] {
        self.pieces.at_mut(self.piece(offset_bytes), (offset_bytes % PIECE_BYTES) as usize, bytes)
    }

    fn zero(&mut self, mut offset_bytes: u64, end_bytes: u64) {
        // At most a step of `Atomic` long, so a few pieces.
        while offset_bytes < end_bytes {
            let part_end = (offset_bytes + 1).next_multiple_of(PIECE_BYTES).min(end_bytes);
            self.at_mut(offset_bytes, (part_end - offset_bytes) as usize).fill(0);
            offset_bytes = part_end;
        }
    }

    #[inline]
    fn perform(&mut self, io: &mut Io) {
        let block_bytes = u64::from(self.geometry.block_bytes);
        let first_bytes = io.lba * block_bytes;
        match (io.op, io.buf.as_mut()) {
            (Op::Read, Some(buf)) => {
                let bytes = buf.len();
                buf.copy_from_slice(self.at(first_bytes, bytes));
            }
            (Op::Write, Some(buf)) if io.disposable && buf.len() == BUF_BYTES_MAX => {
                self.pieces.swap(self.piece(first_bytes), buf);
            }
            (Op::Write, Some(buf)) => {
                self.at_mut(first_bytes, buf.len()).copy_from_slice(buf);
            }
            (Op::WriteZeroes | Op::Unmap, _) => self.zero(first_bytes, first_bytes + io.blocks * block_bytes),
            (Op::Flush, _) => {}
            (Op::Read | Op::Write, None) => unreachable!("the router checked the buffer"),
            (Op::Compare | Op::OrWrite | Op::CompareAndWrite, _) => {
                unreachable!("the layer above makes reads and writes of it")
            }
            (Op::WriteAtomic | Op::Stage, _) => unreachable!("the geometry says that there is none"),
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

    #[inline]
    fn read_now(&mut self, lba: u64, buf: &mut [u8]) -> bool {
        let bytes = buf.len();
        buf.copy_from_slice(self.at(lba * u64::from(self.geometry.block_bytes), bytes));
        true
    }

    #[inline]
    fn lend_now(&mut self, lba: u64, bytes: usize) -> Option<Lent> {
        let first_bytes = lba * u64::from(self.geometry.block_bytes);
        self.pieces.lend(self.piece(first_bytes), (first_bytes % PIECE_BYTES) as usize, bytes)
    }

    #[inline]
    fn write_now(&mut self, lba: u64, data: &[u8]) -> bool {
        self.at_mut(lba * u64::from(self.geometry.block_bytes), data.len()).copy_from_slice(data);
        true
    }

    #[inline]
    fn expect(&self, lba: u64, bytes: usize) {
        let first_bytes = lba * u64::from(self.geometry.block_bytes);
        self.pieces.expect(self.piece(first_bytes), (first_bytes % PIECE_BYTES) as usize, bytes);
    }

    fn complete(&mut self, _: DiskDone, _: &mut Effects) {
        debug_assert!(false, "it asks no disk for anything");
    }
}

impl std::fmt::Debug for Ram {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ram").field("core", &self.core).field("pieces", &self.pieces).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{geometry, io};
    use crate::pieces::SPARES_MIN;
    use reactor::buf::{Pool, PoolConfig};

    /// Goal: each core's instance holds its own stripes, the last and shorter one included, apart from each other;
    /// zeroing ends where it should. Method: fill the first and last block of each stripe of two of 255 cores (one
    /// owns neighbours: 255 and 256) with the place's number, zero a stripe but its ends, read everything back.
    #[test]
    fn stripes_are_apart() {
        let deal = Deal::among(255);
        let shape = geometry(4096, 512 * STRIPE_BYTES + 8192);
        let mut pool = Pool::new(PoolConfig { counts: [1, 0, 0], arena: 0 }).unwrap();
        let mut effects = Effects::default();
        let mut rams = [0, 1].map(|core| Ram::new(shape, deal, Core(core)).unwrap());
        let blocks_a_stripe = STRIPE_BYTES / 4096;
        let places: Vec<u64> = (0..512)
            .filter(|&stripe| deal.owner(stripe * STRIPE_BYTES) < Core(2))
            .flat_map(|stripe| [stripe * blocks_a_stripe, (stripe + 1) * blocks_a_stripe - 1])
            .chain([512 * blocks_a_stripe, 512 * blocks_a_stripe + 1])
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
            access(&mut rams, Op::Write, lba, index as u8);
        }
        for (index, &lba) in places.iter().enumerate() {
            assert_eq!(access(&mut rams, Op::Read, lba, 0xff), index as u8, "block {lba}");
        }
        let mut effects = Effects::default();
        let first = 255 * blocks_a_stripe;
        assert_eq!(places[4..8], [first, first + 1023, first + 1024, first + 2047]);
        rams[0].submit(io(2, Op::Unmap, first + 1, 2 * blocks_a_stripe - 2, None), &mut effects);
        assert!(effects.done.pop_front().unwrap().result.is_ok());
        let mut read = |lba| access(&mut rams, Op::Read, lba, 0xff);
        assert_eq!([0, 1023, 1024, 2047].map(|block| read(first + block)), [4, 0, 0, 7]);
        assert_eq!([0, 1023].map(&mut read), [0, 1], "another stripe of the same core");
    }

    /// Goal: what was lent stays as it was, whatever is written there, and what is read afterwards is what was written; a
    /// whole piece that need not come back takes the place of the old one. Method: more writes than there are spares.
    #[test]
    fn what_is_lent_stays() {
        let shape = geometry(4096, STRIPE_BYTES);
        let mut ram = Ram::new(shape, Deal::among(1), Core(0)).unwrap();
        let mut pool = Pool::new(PoolConfig { counts: [0, 0, 2], arena: 0 }).unwrap();
        let (mut effects, mut found) = (Effects::default(), [0; 4096]);
        for round in 0..3 * SPARES_MIN as u8 {
            assert!(ram.write_now(17, &[round; 4096]));
            let lent = ram.lend_now(17, 4096).unwrap();
            assert!(ram.write_now(17, &[0xaa; 4096]) && ram.read_now(17, &mut found));
            assert_eq!((lent[4095], found[0]), (round, 0xaa));
            ram.submit(io(1, Op::WriteZeroes, 16, 16, None), &mut effects);
            let mut buf = pool.take(BUF_BYTES_MAX).unwrap();
            buf.fill(0x55);
            let memory = buf.as_ptr();
            let write = Io { disposable: true, ..io(2, Op::Write, 16, 16, Some(buf)) };
            let again = ram.lend_now(31, 4096).unwrap();
            ram.submit(write, &mut effects);
            let done = effects.done.pop_back().unwrap();
            let other = done.io.buf.unwrap();
            assert!(other.len() == BUF_BYTES_MAX && other.as_ptr() != memory);
            assert_eq!(ram.pieces.at(1, 0, 1).as_ptr(), memory);
            assert!(ram.read_now(20, &mut found) && found == [0x55; 4096]);
            assert_eq!((lent[0], again[0]), (round, 0));
            pool.give(other);
        }
        assert_eq!(ram.pieces.lent(), 0);
        // A part of a piece, or one that is to come back, is copied.
        for (lba, blocks, disposable) in [(17, 15, true), (16, 16, false)] {
            let mut buf = pool.take(blocks as usize * 4096).unwrap();
            buf.fill(0x77);
            let memory = buf.as_ptr();
            ram.submit(Io { disposable, ..io(2, Op::Write, lba, blocks, Some(buf)) }, &mut effects);
            let buf = effects.done.pop_back().unwrap().io.buf.unwrap();
            assert!(buf.as_ptr() == memory && buf.iter().all(|&byte| byte == 0x77));
            pool.give(buf);
        }
        let lents: Vec<Lent> = std::iter::from_fn(|| ram.lend_now(0, 4096)).collect();
        assert_eq!(lents.len() as u64, SPARES_MIN, "no more than can be replaced");
    }

    /// Goal: more memory than there can be comes back as an error.
    #[test]
    fn too_much_memory_is_an_error() {
        assert!(Ram::new(geometry(4096, 1 << 55), Deal::among(1), Core(0)).is_err());
    }
}
