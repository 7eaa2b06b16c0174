//! COMPARE AND WRITE: VAAI's Atomic Test and Set (SBC-3 §5.2).
//!
//! The checks, the data of both instances, and one request: comparing and writing is one step of the device's, atomic for
//! all who overlap. A range that is too long for that or crosses a piece is one step all the same, of several parts; their
//! data come as a part of the first instance each, and then of the second, and are put together here.

use crate::cdb::{BlockRange, view};
use crate::command::{Buffers, Effect};
use crate::limits::COMPARE_AND_WRITE_BLOCKS_MAX;
use crate::sense::Sense;
use crate::task::{End, Head, Moves, Request, Spent, Step, Work};
use bdev::io::{Done, Op, PIECE_BYTES, SWAP_PART_BYTES};
use reactor::buf::Buf;
use smallvec::SmallVec;
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

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The data are to be asked for.
    Ask,
    /// The data are on their way, or here and without memory to read the medium into.
    Await,
    /// The parts are being handed out: this one is the next.
    Out(usize),
    /// All are back.
    Back(Result<(), Sense>),
}

/// A part of the range, and its data.
#[derive(Debug)]
struct Part {
    /// From the range's start.
    offset: u32,
    bytes: u32,
    /// What must be there, and behind it what replaces it.
    data: Option<Buf>,
    /// What replaces it, when it comes by itself, until there is memory to put it behind the other.
    new: Option<Buf>,
    /// Memory to read the medium into.
    scratch: Option<Buf>,
}

/// A COMPARE AND WRITE under way.
#[derive(Debug)]
pub(crate) struct CompareAndWrite {
    phase: Phase,
    lba: u64,
    /// Of one instance.
    bytes: u32,
    /// Data-out that has come.
    come: u32,
    /// One that lies in a piece, with both instances in a buffer, as most do; or cut as the device wants it.
    parts: SmallVec<[Part; 1]>,
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
    let bytes = data_bytes / 2;
    let first = range.lba * u64::from(geometry.block_bytes);
    Ok(Work::CompareAndWrite(CompareAndWrite {
        phase: Phase::Ask,
        lba: range.lba,
        bytes,
        come: 0,
        parts: cut(first, bytes),
    }))
}

/// The parts of a range that begins at byte `first` of the device.
fn cut(first: u64, bytes: u32) -> SmallVec<[Part; 1]> {
    let part = |offset, bytes| Part { offset, bytes, data: None, new: None, scratch: None };
    let mut parts = SmallVec::new();
    if first % PIECE_BYTES + u64::from(bytes) <= PIECE_BYTES && u64::from(bytes) <= SWAP_PART_BYTES {
        parts.push(part(0, bytes));
        return parts;
    }
    let mut offset = 0;
    while offset < bytes {
        let room = SWAP_PART_BYTES - (first + u64::from(offset)) % SWAP_PART_BYTES;
        let length = room.min(u64::from(bytes - offset)) as u32;
        parts.push(part(offset, length));
        offset += length;
    }
    parts
}

impl CompareAndWrite {
    pub(crate) fn poll(&mut self, head: &mut Head, spent: &mut Spent, buffers: &mut impl Buffers) -> Step {
        match self.phase {
            Phase::Ask => {
                self.phase = Phase::Await;
                Step::Effect(Effect::WantData { bytes: 2 * self.bytes })
            }
            Phase::Await => {
                for part in &mut self.parts {
                    if !part.join(spent, buffers) {
                        return Step::Wait;
                    }
                }
                if self.come < 2 * self.bytes {
                    return Step::Wait;
                }
                for part in &mut self.parts {
                    if part.scratch.is_none() {
                        let Some(scratch) = buffers.take(part.bytes as usize) else { return Step::Wait };
                        part.scratch = Some(scratch);
                    }
                }
                self.phase = Phase::Out(0);
                self.submit(head, 0)
            }
            Phase::Out(next) if next < self.parts.len() => self.submit(head, next),
            Phase::Out(_) => Step::Wait,
            Phase::Back(result) => {
                Step::End(End { result, moves: Moves::Out, transfer_bytes: 2 * u64::from(self.bytes) })
            }
        }
    }

    /// FUA whatever the bit says: hosts make locks of it, and one that power loss undid in a write cache would be held
    /// twice.
    fn submit(&mut self, head: &mut Head, nth: usize) -> Step {
        self.phase = Phase::Out(nth + 1);
        let more_parts = (self.parts.len() - 1 - nth) as u8;
        let part = &mut self.parts[nth];
        let lba = self.lba + u64::from(part.offset / head.block_bytes);
        let blocks = u64::from(part.bytes / head.block_bytes);
        let (data, scratch) = (part.data.take(), part.scratch.take());
        head.submit_part(Op::CompareAndWrite, true, lba, blocks, (data, scratch), more_parts)
    }

    /// Where the piece of data-out ends that `offset` lies in: a part of one instance, or both of the only one.
    pub(crate) fn piece_end(&self, offset: u32) -> u32 {
        if self.parts.len() == 1 {
            return (2 * self.bytes).max(offset);
        }
        let (instance, within) = (offset / self.bytes * self.bytes, offset % self.bytes);
        let part = self.parts.iter().find(|part| within < part.offset + part.bytes);
        part.map_or(offset, |part| instance + part.offset + part.bytes).min(2 * self.bytes).max(offset)
    }

    /// Takes the next piece of the data; gives it back if it is not wanted.
    pub(crate) fn data_out(&mut self, offset: u32, buf: Buf) -> Option<Buf> {
        if self.phase != Phase::Await || self.come == 2 * self.bytes {
            return Some(buf);
        }
        assert!(
            offset == self.come && self.piece_end(offset) - offset == buf.len() as u32,
            "the transport delivers whole pieces in ascending order"
        );
        self.come += buf.len() as u32;
        let within = offset % self.bytes;
        let Some(part) = self.parts.iter_mut().find(|part| part.offset == within) else { return Some(buf) };
        let place = if offset < self.bytes { &mut part.data } else { &mut part.new };
        place.replace(buf)
    }

    /// INFORMATION of a miscompare counts from the start of the data-out, as the device's offset does.
    pub(crate) fn io_done(&mut self, head: &Head, spent: &mut Spent, done: Done) {
        let Done { io, result } = done;
        spent.extend(io.buf);
        spent.extend(io.scratch);
        if head.ios_out == 0 && self.phase == Phase::Out(self.parts.len()) {
            self.phase = Phase::Back(result.map_err(|error| Sense::of_io(error, io.op, self.lba)));
        }
    }

    pub(crate) fn release(&mut self, spent: &mut Spent) {
        for part in &mut self.parts {
            spent.extend(part.data.take());
            spent.extend(part.new.take());
            spent.extend(part.scratch.take());
        }
    }
}

impl Part {
    /// Puts both instances of a part into one buffer, when they have come. False: there is none.
    fn join(&mut self, spent: &mut Spent, buffers: &mut impl Buffers) -> bool {
        let (Some(expected), Some(new)) = (&self.data, &self.new) else { return true };
        let Some(mut both) = buffers.take(expected.len() + new.len()) else { return false };
        let (first, second) = both.split_at_mut(expected.len());
        first.copy_from_slice(expected);
        second.copy_from_slice(new);
        spent.extend(self.data.replace(both));
        spent.extend(self.new.take());
        true
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

    /// Goal: MAXIMUM COMPARE AND WRITE LENGTH is all that the CDB can say, and so much works wherever it begins: what is
    /// equal is replaced, a difference is told by its place in the data-out and nothing is written. Method: places among
    /// parts and pieces, small and large blocks, differences at the edges of parts.
    #[test]
    fn as_long_as_the_cdb_can_say() {
        assert_eq!(COMPARE_AND_WRITE_BLOCKS_MAX, 255);
        for (block, blocks, lbas) in
            [(512_usize, 5000, [0, 1, 63, 100, 128, 4745]), (4096, 600, [0, 1, 7, 9, 16, 345])]
        {
            let mut world = World::new(Geometry { block_bytes: block as u32, blocks, ..geometry() });
            world.disk = pattern(world.disk.len(), 3);
            for lba in lbas {
                let before = world.disk.clone();
                let range = lba as usize * block..(lba as usize + 255) * block;
                let (expected, new) = (before[range.clone()].to_vec(), pattern(255 * block, 50 + lba as u8));
                for at in [0, 1, 255 * block - 1, 100 * block, 32_768, 65_535] {
                    let mut wrong = expected.clone();
                    wrong[at..].iter_mut().for_each(|byte| *byte ^= 0x40);
                    let answer = world.put(&cdb(0, lba, 255), &[wrong, new.clone()].concat()).bad(0xE_1D00);
                    assert_eq!(answer.information(), Some(at as u32));
                    assert!(world.disk == before);
                }
                let answer = world.put(&cdb(0, lba, 255), &[expected.clone(), new.clone()].concat()).good();
                assert_eq!(u64::from(answer.wanted), answer.transfer_bytes);
                assert_eq!(answer.transfer_bytes, 2 * 255 * block as u64);
                assert_eq!(answer.ios.iter().map(|io| io.3).sum::<u64>(), 255);
                let mut after = before;
                after[range].copy_from_slice(&new);
                assert!(world.disk == after);
            }
        }
    }

    /// Goal: a range that crosses a piece is one request of several parts; one that doesn't is one.
    #[test]
    fn parts_end_with_their_pieces() {
        let mut world = World::new(geometry());
        let cases = [
            (0, 64, &[(0, 64)][..]),
            (64, 64, &[(64, 64)]),
            (32, 64, &[(32, 64)]),
            (127, 2, &[(127, 1), (128, 1)]),
            (0, 65, &[(0, 64), (64, 1)]),
            (100, 130, &[(100, 28), (128, 64), (192, 38)]),
        ];
        for (lba, blocks, parts) in cases {
            let data = vec![0; 2 * usize::from(blocks) * BLOCK];
            let answer = world.put(&cdb(0, lba, blocks), &data).good();
            let parts = parts.iter().map(|&(lba, blocks)| (Op::CompareAndWrite, true, lba, blocks));
            assert_eq!(answer.ios, parts.collect::<Vec<_>>());
        }
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
        for (blocks, step) in (0..40).map(|step| (1, step)).chain((0..40).map(|step| (100, step))) {
            let mut world = World::new(geometry());
            let bytes = usize::from(blocks) * BLOCK;
            let data = [vec![0; bytes], vec![1; bytes]].concat();
            let cdb = cdb(0, 120, blocks);
            let offer = Offer { lun: [0; 8], cdb, room: 0, data: &data, data_bytes: data.len() as u32 };
            world.run_until(NEXUS, &offer, step);
            world.get(&[0; 6], 0).good();
        }
    }
}
