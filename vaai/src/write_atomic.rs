//! WRITE ATOMIC(16) (SBC-4 §5.50): all blocks or none, for whoever looks and whenever the power goes.
//!
//! The checks, all of the data, and one request: of several pieces, it is one step of the device's all the same, so no piece
//! goes there before the last one has come.

use crate::cdb::{BlockRange, view};
use crate::command::Effect;
use crate::sense::Sense;
use crate::task::{End, Head, Moves, Request, Spent, Step, Work};
use bdev::geometry::Geometry;
use bdev::io::{ATOMIC_GRANULE_BYTES, Done, Op, PIECE_BYTES};
use reactor::buf::Buf;
use smallvec::SmallVec;
use zerocopy::byteorder::big_endian::{U16, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// WRITE ATOMIC(16) CDB.
///
/// Counts are logical blocks. Zero blocks is a legal no-op.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct WriteAtomicCdb {
    opcode: u8,
    /// WRPROTECT, DPO, FUA.
    flags: u8,
    logical_block_address: U64,
    /// Cuts the range in several writes that are atomic each. MAXIMUM ATOMIC BOUNDARY SIZE is 0, and so is this: the table
    /// of commands has no bits for it.
    atomic_boundary: U16,
    transfer_length: U16,
    group_number: u8,
    control: u8,
}

const _: () = assert!(size_of::<WriteAtomicCdb>() == 16);

/// Where LOGICAL BLOCK ADDRESS and TRANSFER LENGTH are.
const ADDRESS_BYTE: u16 = 2;
const LENGTH_BYTE: u16 = 12;

/// The limits of the block limits page (SBC-4 §6.6.4), in logical blocks. All are 0 where there is no such command.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct AtomicLimits {
    /// MAXIMUM ATOMIC TRANSFER LENGTH.
    pub(crate) blocks_max: u32,
    /// ATOMIC ALIGNMENT and ATOMIC TRANSFER LENGTH GRANULARITY: what a pool's map tells apart. 0 is "no restriction", as is 1.
    pub(crate) granule_blocks: u32,
}

impl AtomicLimits {
    pub(crate) fn of(geometry: &Geometry) -> AtomicLimits {
        if geometry.atomic_bytes == 0 {
            return AtomicLimits::default();
        }
        AtomicLimits {
            blocks_max: geometry.atomic_bytes / geometry.block_bytes,
            granule_blocks: ATOMIC_GRANULE_BYTES / geometry.block_bytes,
        }
    }
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The data are to be asked for.
    Ask,
    /// The data are on their way.
    Await,
    /// The pieces are being handed out: this one is the next.
    Out(usize),
    /// All are back.
    Back(Result<(), Sense>),
}

/// A WRITE ATOMIC under way.
#[derive(Debug)]
pub(crate) struct WriteAtomic {
    phase: Phase,
    lba: u64,
    fua: bool,
    /// Of the device, where it begins.
    first: u64,
    bytes: u32,
    cdb_bytes: u64,
    /// Data-out that has come.
    come: u32,
    /// In order; each is given away when it goes to the device.
    pieces: SmallVec<[Option<Buf>; 1]>,
}

/// WRITE ATOMIC. A part of the data is no atomic write, so an initiator that has less than it says is refused.
pub(crate) fn write_atomic(request: &Request<'_>) -> Result<Work, Sense> {
    let geometry = request.unit()?.geometry();
    let cdb: &WriteAtomicCdb = view(&request.command.cdb);
    let range = BlockRange {
        flags: cdb.flags,
        lba: cdb.logical_block_address.get(),
        blocks: u64::from(cdb.transfer_length.get()),
        length_byte: LENGTH_BYTE,
    };
    range.check_on(geometry)?;
    let limits = AtomicLimits::of(geometry);
    range.check_length(u64::from(limits.blocks_max))?;
    let granule = u64::from(limits.granule_blocks);
    if !range.lba.is_multiple_of(granule) && range.blocks != 0 {
        return Err(Sense::INVALID_FIELD_IN_CDB.cdb_byte(ADDRESS_BYTE));
    }
    if !range.blocks.is_multiple_of(granule) {
        return Err(Sense::INVALID_FIELD_IN_CDB.cdb_byte(LENGTH_BYTE));
    }
    let cdb_bytes = range.blocks * u64::from(geometry.block_bytes);
    if u64::from(request.command.data_out_bytes) < cdb_bytes {
        let result = Err(Sense::INVALID_FIELD_IN_COMMAND_INFORMATION_UNIT);
        return Ok(Work::End(End { result, moves: Moves::Out, transfer_bytes: cdb_bytes }));
    }
    if cdb_bytes == 0 {
        return Ok(Work::End(End { result: Ok(()), moves: Moves::Out, transfer_bytes: 0 }));
    }
    Ok(Work::WriteAtomic(WriteAtomic {
        phase: Phase::Ask,
        lba: range.lba,
        fua: range.fua(),
        first: range.lba * u64::from(geometry.block_bytes),
        bytes: cdb_bytes as u32,
        cdb_bytes,
        come: 0,
        pieces: SmallVec::new(),
    }))
}

impl WriteAtomic {
    pub(crate) fn poll(&mut self, head: &mut Head) -> Step {
        match self.phase {
            Phase::Ask => {
                self.phase = Phase::Await;
                Step::Effect(Effect::WantData { bytes: self.bytes })
            }
            Phase::Await if self.come < self.bytes => Step::Wait,
            Phase::Await => self.submit(head, 0),
            Phase::Out(next) if next < self.pieces.len() => self.submit(head, next),
            Phase::Out(_) => Step::Wait,
            Phase::Back(result) => {
                Step::End(End { result, moves: Moves::Out, transfer_bytes: self.cdb_bytes })
            }
        }
    }

    fn submit(&mut self, head: &mut Head, nth: usize) -> Step {
        self.phase = Phase::Out(nth + 1);
        let more_parts = (self.pieces.len() - 1 - nth) as u8;
        let offset = if nth == 0 { 0 } else { nth as u64 * PIECE_BYTES - self.first % PIECE_BYTES };
        let buf = self.pieces[nth].take();
        let block_bytes = u64::from(head.block_bytes);
        let blocks = buf.as_ref().map_or(0, |buf| buf.len() as u64) / block_bytes;
        let lba = self.lba + offset / block_bytes;
        head.submit_part(Op::WriteAtomic, self.fua, lba, blocks, (buf, None), more_parts)
    }

    /// Where the piece of data-out ends that `offset` lies in: where pieces end on the device.
    pub(crate) fn piece_end(&self, offset: u32) -> u32 {
        let left = PIECE_BYTES - (self.first + u64::from(offset)) % PIECE_BYTES;
        (u64::from(offset) + left).min(u64::from(self.bytes)).max(u64::from(offset)) as u32
    }

    /// Takes the next piece of the data; gives it back if it is not wanted.
    pub(crate) fn data_out(&mut self, offset: u32, buf: Buf) -> Option<Buf> {
        if self.phase != Phase::Await || self.come == self.bytes {
            return Some(buf);
        }
        assert!(
            offset == self.come && self.piece_end(offset) - offset == buf.len() as u32,
            "the transport delivers whole pieces in ascending order"
        );
        self.come += buf.len() as u32;
        self.pieces.push(Some(buf));
        None
    }

    pub(crate) fn io_done(&mut self, head: &Head, spent: &mut Spent, done: Done) {
        let Done { io, result } = done;
        spent.extend(io.buf);
        if head.ios_out == 0 && self.phase == Phase::Out(self.pieces.len()) {
            self.phase = Phase::Back(result.map_err(|error| Sense::of_io(error, io.op, self.lba)));
        }
    }

    pub(crate) fn release(&mut self, spent: &mut Spent) {
        spent.extend(self.pieces.drain(..).flatten());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::{Answer, World, geometry, pattern};
    use bdev::error::IoError;

    fn atomic(block_bytes: u32) -> Geometry {
        Geometry {
            block_bytes,
            physical_block_bytes: 4096,
            atomic_bytes: 1 << 20,
            blocks: 5000,
            ..geometry()
        }
    }

    fn cdb(flags: u8, lba: u64, boundary: u16, blocks: u16) -> Vec<u8> {
        let mut cdb = vec![0x9C, flags];
        cdb.extend(lba.to_be_bytes());
        cdb.extend(boundary.to_be_bytes());
        cdb.extend(blocks.to_be_bytes());
        cdb.extend([0, 0]);
        cdb
    }

    fn write(world: &mut World, block: usize, lba: u64, blocks: u16, seed: u8) -> Answer {
        world.put(&cdb(0, lba, 0, blocks), &pattern(usize::from(blocks) * block, seed))
    }

    /// Goal: ranges of one piece and of several, wherever they begin, are one step in parts that end at pieces, with
    /// FUA as it is asked for. Method: both block lengths, the ends of the unit, the longest.
    #[test]
    fn a_range_is_one_step() {
        for block_bytes in [512, 4096] {
            let block = block_bytes as usize;
            let granule = 4096 / u64::from(block_bytes);
            let mut world = World::new(atomic(block_bytes));
            let longest = (1 << 20) / u64::from(block_bytes);
            for (seed, (lba, blocks)) in (1..).zip([
                (0, granule),
                (granule, 15 * granule),
                (15 * granule, 2 * granule),
                (5000 - granule, granule),
                (3 * granule, longest),
            ]) {
                let before = world.disk.clone();
                let data = pattern(blocks as usize * block, seed);
                let answer = world.put(&cdb(0x08, lba, 0, blocks as u16), &data).good();
                assert_eq!(answer.transfer_bytes, data.len() as u64);
                let at = lba as usize * block;
                assert_eq!(&world.disk[at..at + data.len()], &data[..]);
                assert_eq!(world.disk[..at], before[..at]);
                assert_eq!(world.disk[at + data.len()..], before[at + data.len()..]);
                let mut next = lba;
                for &(op, fua, lba, blocks) in &answer.ios {
                    assert_eq!((op, fua, lba), (Op::WriteAtomic, true, next));
                    next += blocks;
                    let ends = next * u64::from(block_bytes) % PIECE_BYTES == 0;
                    assert!(ends || next == answer.ios[0].2 + data.len() as u64 / u64::from(block_bytes));
                }
                assert_eq!(next, lba + blocks);
            }
        }
    }

    /// Goal: the range comes first, then the length, the alignment and the granularity, each with its
    /// field; no blocks are nothing to do. Method: the limits, and one more or less.
    #[test]
    fn limits_are_enforced() {
        let mut world = World::new(atomic(512));
        for (lba, blocks) in [(5000, 8), (4992, 16), (u64::MAX, 8), (1 << 63, 0), (5001, 0), (4996, 2048)] {
            write(&mut world, 512, lba, blocks, 1).bad(0x5_2100);
        }
        world.put(&cdb(0, 0, 8, 8), &[1; 4096]).bad_field(11, Some(7));
        write(&mut world, 512, 0, 2049, 1).bad_field(12, None);
        write(&mut world, 512, 0, 2056, 1).bad_field(12, None);
        write(&mut world, 512, 1, 8, 1).bad_field(2, None);
        write(&mut world, 512, 8, 1, 1).bad_field(12, None);
        for (lba, blocks) in [(0, 0), (3, 0), (5000, 0)] {
            assert!(write(&mut world, 512, lba, blocks, 1).good().ios.is_empty());
        }
        assert!(world.disk.iter().all(|&byte| byte == 0));
        let mut world = World::new(atomic(4096));
        write(&mut world, 4096, 7, 256, 1).good();
        write(&mut world, 4096, 7, 257, 1).bad_field(12, None);
    }

    /// Goal: less than all data are refused and nothing is written; of more, what is asked for.
    #[test]
    fn a_part_of_the_data_is_none() {
        let mut world = World::new(atomic(512));
        let answer = world.put(&cdb(0, 0, 0, 16), &[7; 4096]).bad(0x5_0E03);
        assert!(answer.ios.is_empty() && world.disk.iter().all(|&byte| byte == 0));
        world.put(&cdb(0, 0, 0, 8), &[7; 8192]).good();
        assert_eq!((world.disk[4095], world.disk[4096]), (7, 0));
    }

    /// Goal: a failure is the command's, and buffers come home.
    #[test]
    fn failures_are_told() {
        let mut world = World::new(atomic(512));
        world.faults.push((Op::WriteAtomic, 70_000..70_001, IoError::OutOfSpace));
        write(&mut world, 512, 120, 240, 1).bad(0x7_2707);
        assert!(world.disk.iter().all(|&byte| byte == 0));
    }

    /// Goal: a unit that can't has no such command.
    #[test]
    fn not_everywhere() {
        let mut world = World::new(geometry());
        write(&mut world, 512, 0, 8, 1).bad(0x5_2000);
    }
}
