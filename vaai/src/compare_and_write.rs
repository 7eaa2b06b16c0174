//! COMPARE AND WRITE: VAAI's Atomic Test and Set (SBC-3 §5.2).
//!
//! The checks, the data of both instances in one buffer, and one request: comparing and writing is one step of the
//! device's, atomic for all who overlap.

use crate::cdb::{BlockRange, view};
use crate::command::{Buffers, Effect};
use crate::limits::COMPARE_AND_WRITE_BLOCKS_MAX;
use crate::sense::Sense;
use crate::task::{End, Head, Moves, Request, Spent, Step, Work};
use bdev::io::{Done, Op};
use reactor::buf::Buf;
use zerocopy::byteorder::big_endian::U64;
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// COMPARE AND WRITE CDB.
///
/// Counts are logical blocks. The data-out buffer holds `number_of_logical_blocks` twice: what must be there, then
/// what replaces it. Zero blocks is a legal no-op.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct CompareAndWriteCdb {
    opcode: u8,
    /// WRPROTECT, DPO, FUA.
    flags: u8,
    logical_block_address: U64,
    reserved: [u8; 3],
    number_of_logical_blocks: u8,
    group_number: u8,
    control: u8,
}

const _: () = assert!(size_of::<CompareAndWriteCdb>() == 16);

/// Where NUMBER OF LOGICAL BLOCKS is.
const LENGTH_BYTE: u16 = 13;

// Of any block size, both instances fit one buffer and the range lies within one piece.
const _: () = assert!(COMPARE_AND_WRITE_BLOCKS_MAX == 1);

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The data are to be asked for.
    Ask,
    /// The data are on their way, or here and without memory to read the medium into.
    Await,
    /// The request is out.
    Out,
    /// It came back.
    Back(Result<(), Sense>),
}

/// A COMPARE AND WRITE under way.
#[derive(Debug)]
pub(crate) struct CompareAndWrite {
    phase: Phase,
    lba: u64,
    blocks: u64,
    /// Both instances.
    data_bytes: u32,
    data: Option<Buf>,
}

/// COMPARE AND WRITE. Write protection was asked about before; so nothing of the data is looked at on such a unit.
pub(crate) fn compare_and_write(request: &Request<'_>) -> Result<Work, Sense> {
    let geometry = request.unit()?.geometry();
    let cdb: &CompareAndWriteCdb = view(&request.command.cdb);
    let range = BlockRange {
        flags: cdb.flags,
        lba: cdb.logical_block_address.get(),
        blocks: u64::from(cdb.number_of_logical_blocks),
        length_byte: LENGTH_BYTE,
    };
    range.check_on(geometry)?;
    range.check_length(u64::from(COMPARE_AND_WRITE_BLOCKS_MAX))?;
    let data_bytes = 2 * range.blocks as u32 * geometry.block_bytes;
    if request.command.data_out_bytes != data_bytes {
        // Where the one instance ends and the other begins would be a guess. With zero blocks, too: 256 of them are
        // 0 in the CDB's byte, and GOOD would lose them in silence.
        return Err(Sense::INVALID_FIELD_IN_CDB);
    }
    if range.blocks == 0 {
        return Ok(Work::End(End::GOOD));
    }
    Ok(Work::CompareAndWrite(CompareAndWrite {
        phase: Phase::Ask,
        lba: range.lba,
        blocks: range.blocks,
        data_bytes,
        data: None,
    }))
}

impl CompareAndWrite {
    pub(crate) fn poll(&mut self, head: &mut Head, buffers: &mut impl Buffers) -> Step {
        match self.phase {
            Phase::Ask => {
                self.phase = Phase::Await;
                Step::Effect(Effect::WantData { bytes: self.data_bytes })
            }
            Phase::Await if self.data.is_some() => {
                let Some(scratch) = buffers.take(self.data_bytes as usize / 2) else { return Step::Wait };
                self.phase = Phase::Out;
                // FUA whatever the bit says: hosts make locks of it, and one that power loss undid in a write cache
                // would be held twice.
                head.submit(Op::CompareAndWrite, true, self.lba, self.blocks, self.data.take(), Some(scratch))
            }
            Phase::Await | Phase::Out => Step::Wait,
            Phase::Back(result) => {
                Step::End(End { result, moves: Moves::Out, transfer_bytes: u64::from(self.data_bytes) })
            }
        }
    }

    pub(crate) fn data_bytes(&self) -> u32 {
        self.data_bytes
    }

    /// Takes the data; gives them back if they are not wanted.
    pub(crate) fn data_out(&mut self, buf: Buf) -> Option<Buf> {
        if self.phase == Phase::Await && self.data.is_none() { self.data.replace(buf) } else { Some(buf) }
    }

    /// INFORMATION of a miscompare counts from the start of the data-out, as the device's offset does.
    pub(crate) fn io_done(&mut self, spent: &mut Spent, done: Done) {
        let Done { io, result } = done;
        spent.extend(io.buf);
        spent.extend(io.scratch);
        self.phase = Phase::Back(result.map_err(|error| Sense::of_io(error, io.op, io.lba)));
    }

    pub(crate) fn release(&mut self, spent: &mut Spent) {
        spent.extend(self.data.take());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::{Answer, NEXUS, Offer, World, geometry, lun_config, pattern};
    use crate::lun::LunConfig;
    use bdev::error::IoError;
    use bdev::geometry::Geometry;

    const BLOCK: usize = 512;
    const LAST: u64 = 4999;

    fn filled() -> World {
        let mut world = World::new(geometry());
        world.disk = pattern(world.disk.len(), 3);
        world
    }

    fn cdb(flags: u8, lba: u64, blocks: u8) -> Vec<u8> {
        let mut cdb = vec![0x89, flags];
        cdb.extend_from_slice(&lba.to_be_bytes());
        cdb.extend_from_slice(&[0, 0, 0, blocks, 0, 0]);
        cdb
    }

    /// One block at `lba`, which has to be `expected`, becomes `new`.
    fn swap(world: &mut World, lba: u64, expected: &[u8], new: &[u8]) -> Answer {
        world.put(&cdb(0, lba, 1), &[expected, new].concat())
    }

    fn block(world: &World, lba: u64) -> Vec<u8> {
        world.disk[lba as usize * BLOCK..][..BLOCK].to_vec()
    }

    /// Goal: what compares equal is replaced, at both ends of the unit, and nothing beside it; the same again differs.
    /// Unwritten blocks compare as zeroes.
    #[test]
    fn equal_blocks_are_replaced() {
        let mut world = filled();
        for lba in [0, 128, LAST] {
            let before = world.disk.clone();
            let (expected, new) = (block(&world, lba), pattern(BLOCK, 77));
            let answer = swap(&mut world, lba, &expected, &new).good();
            assert_eq!((answer.wanted, answer.transfer_bytes), (1024, 1024));
            assert_eq!(answer.ios, [(Op::CompareAndWrite, true, lba, 1)]);
            let mut after = before;
            after[lba as usize * BLOCK..][..BLOCK].copy_from_slice(&new);
            assert!(world.disk == after);
            swap(&mut world, lba, &expected, &new).bad(0xE_1D00);
        }
        let mut empty = World::new(geometry());
        swap(&mut empty, 9, &[0; BLOCK], &pattern(BLOCK, 1)).good();
        assert_eq!(block(&empty, 9), pattern(BLOCK, 1));
    }

    /// Goal: a difference is told by its place in the data-out, in both formats of sense, and nothing is written.
    #[test]
    fn a_difference_is_told_by_its_place() {
        let mut world = filled();
        let before = world.disk.clone();
        for at in [0, 1, 300, BLOCK - 1] {
            let mut expected = block(&world, 7);
            expected[at..].iter_mut().for_each(|byte| *byte ^= 0x40);
            let answer = swap(&mut world, 7, &expected, &[9; BLOCK]).bad(0xE_1D00);
            let offset = (at as u32).to_be_bytes();
            assert_eq!(answer.sense[..8], [0xF0, 0, 0x0E, offset[0], offset[1], offset[2], offset[3], 10]);
            assert_eq!(answer.transfer_bytes, 1024);
        }
        assert!(world.disk == before);
        // D_SENSE of the control page.
        let mut list = world.get(&[0x1A, 0x08, 0x0A, 0, 255, 0], 255).good().data;
        list[..4].fill(0);
        list[6] |= crate::mode::D_SENSE;
        world.put(&[0x15, 0x10, 0, 0, 16, 0], &list).good();
        let answer = swap(&mut world, 7, &[0; BLOCK], &[9; BLOCK]).bad(0xE_1D00);
        assert_eq!(answer.sense[..12], [0x72, 0x0E, 0x1D, 0, 0, 0, 0, 12, 0, 10, 0x80, 0]);
        assert!(world.disk == before);
    }

    /// Goal: MAXIMUM COMPARE AND WRITE LENGTH is the limit. Method: the limit, one more, and the most, with as much
    /// data as they say.
    #[test]
    fn length_limit_holds() {
        let mut world = filled();
        let data = pattern(2 * 255 * BLOCK, 4);
        let max = COMPARE_AND_WRITE_BLOCKS_MAX;
        for blocks in [max + 1, 255] {
            let bytes = 2 * usize::from(blocks) * BLOCK;
            let answer = world.put(&cdb(0, 0, blocks), &data[..bytes]).bad_field(13, None);
            assert_eq!((answer.wanted, answer.ios.len()), (0, 0));
        }
        let as_is = world.disk[..usize::from(max) * BLOCK].repeat(2);
        world.put(&cdb(0, 0, max), &as_is).good();
    }

    /// Goal: zero blocks do nothing and end in GOOD, up to the end and no further. Data with them are refused: they are
    /// of an initiator that meant 256.
    #[test]
    fn zero_blocks_are_nothing() {
        let mut world = filled();
        let before = world.disk.clone();
        let data = world.disk[..256 * BLOCK].repeat(2);
        for lba in [0, LAST, LAST + 1] {
            let answer = world.put(&cdb(0, lba, 0), &[]).good();
            assert_eq!((answer.wanted, answer.transfer_bytes, answer.ios.len()), (0, 0, 0));
            let answer = world.put(&cdb(0, lba, 0), &data).bad(0x5_2400);
            assert_eq!((answer.pointer(), answer.wanted), (None, 0));
        }
        world.put(&cdb(0, LAST + 2, 0), &[]).bad(0x5_2100);
        assert!(world.disk == before);
    }

    /// Goal: any other data-out than both instances is refused and nothing is written, though the blocks would match.
    #[test]
    fn data_are_two_blocks() {
        let mut world = filled();
        let before = world.disk.clone();
        let data = world.disk[..BLOCK].repeat(4);
        for bytes in [0, 1, 511, 512, 1023, 1025, 1536, 2048] {
            let answer = world.put(&cdb(0, 0, 1), &data[..bytes]).bad(0x5_2400);
            assert_eq!((answer.pointer(), answer.wanted, answer.ios.len()), (None, 0, 0));
        }
        // With the R bit.
        world.get(&cdb(0, 0, 1), 1024).bad(0x5_2400);
        assert!(world.disk == before);
    }

    /// Goal: a range past the end is refused, without wrapping.
    #[test]
    fn ranges_end_with_the_medium() {
        let mut world = filled();
        for lba in [LAST + 1, 1 << 63, u64::MAX] {
            let answer = world.put(&cdb(0, lba, 1), &[0; 1024]).bad(0x5_2100);
            assert_eq!((answer.pointer(), answer.wanted), (Some((true, 2, None)), 0));
            assert_eq!(answer.information(), u32::try_from(lba).ok());
        }
    }

    /// Goal: without a medium and on a protected unit that is all that is said, whatever else is wrong.
    #[test]
    fn medium_and_protection_come_first() {
        let wrong = [cdb(0, 0, 1), cdb(0, LAST + 1, 1), cdb(0, 0, 200)];
        for cdb in &wrong {
            let config = || lun_config(0, geometry());
            let mut protected = World::of(vec![LunConfig { read_only: true, ..config() }]);
            assert_eq!(protected.put(cdb, &[0; 1024]).bad(0x7_2700).wanted, 0);
            assert_eq!(protected.put(cdb, &[1; 512]).bad(0x7_2700).ios, []);
            let mut removable = World::of(vec![LunConfig { removable: true, ..config() }]);
            removable.get(&[0x1B, 0, 0, 0, 2, 0], 0).good();
            assert_eq!(removable.put(cdb, &[0; 1024]).bad(0x2_3A00).wanted, 0);
        }
    }

    /// Goal: DPO and FUA are taken, and the write is on the medium with or without; protection is not there.
    #[test]
    fn flags_are_heeded() {
        let mut world = World::new(geometry());
        for flags in [0x00, 0x08, 0x10, 0x18] {
            let answer = world.put(&cdb(flags, 0, 1), &[0; 1024]).good();
            assert_eq!(answer.ios, [(Op::CompareAndWrite, true, 0, 1)]);
        }
        for protect in 1..8 {
            world.put(&cdb(protect << 5, 0, 1), &[0; 1024]).bad_field(1, Some(7));
        }
        let mut reserved = cdb(0, 0, 1);
        reserved[12] = 1;
        world.put(&reserved, &[0; 1024]).bad_field(12, Some(7));
    }

    /// Goal: what fails below is told in SCSI's words: the read from the write.
    #[test]
    fn failures_are_told() {
        let errors = [
            (IoError::Unread { errno: 5 }, 0x3_1100),
            (IoError::Medium { errno: 5 }, 0x3_0C00),
            (IoError::OutOfSpace, 0x7_2707),
            (IoError::Device { errno: 19 }, 0x4_4400),
            (IoError::WRITE_PROTECTED, 0x7_2700),
        ];
        for (error, code) in errors {
            let mut world = World::new(geometry());
            world.faults.push((Op::CompareAndWrite, 5 * 512..5 * 512 + 1, error));
            let answer = swap(&mut world, 5, &[0; BLOCK], &[1; BLOCK]).bad(code);
            assert_eq!(answer.information(), (code >> 16 == 3).then_some(5));
        }
    }

    /// Goal: large blocks count as such, and two buffers are enough.
    #[test]
    fn large_blocks_and_few_buffers_work() {
        let mut world = World::new(Geometry { block_bytes: 4096, blocks: 600, ..geometry() });
        world.share.out_max = 2;
        let data = [vec![0; 4096], pattern(4096, 5)].concat();
        world.put(&cdb(0, 599, 1), &data[..1024]).bad(0x5_2400);
        world.put(&cdb(0, 599, 1), &data).good();
        assert!(world.disk[599 * 4096..] == data[4096..]);
        assert_eq!(world.put(&cdb(0, 599, 1), &data).bad(0xE_1D00).information(), Some(0));
    }

    /// Goal: an abort at any moment leaves no buffer and no request behind.
    #[test]
    fn aborts_lose_nothing() {
        for steps in 0..8 {
            let mut world = World::new(geometry());
            let data = [[0; BLOCK], [1; BLOCK]].concat();
            let cdb = cdb(0, 3, 1);
            let offer = Offer { lun: [0; 8], cdb, room: 0, data: &data, data_bytes: 1024 };
            world.run_until(NEXUS, &offer, steps);
            world.get(&[0; 6], 0).good();
        }
    }
}
