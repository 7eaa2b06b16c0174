//! READ, WRITE, VERIFY, WRITE AND VERIFY, ORWRITE, PRE-FETCH: what each checks, and which [`Transfer`] it is.

use crate::cdb::BlockRange;
use crate::limits::TRANSFER_BLOCKS_MAX;
use crate::sense::Sense;
use crate::task::{End, Moves, Request, Work};
use crate::transfer::{Kind, Transfer};
use bdev::io::PIECE_BYTES;

/// The checks that all have: the range, then the length (SBC-3 §4.18.1; `conformance.md` has the order).
fn check(request: &Request<'_>) -> Result<(BlockRange, u64), Sense> {
    let geometry = request.unit()?.geometry();
    let range = BlockRange::of(&request.command.cdb);
    range.check_on(geometry)?;
    range.check_length(u64::from(TRANSFER_BLOCKS_MAX))?;
    Ok((range, range.blocks * u64::from(geometry.block_bytes)))
}

/// READ(6), (10), (12), (16) (SBC-3 §5.10). An initiator without room for all gets what it has room for.
pub(crate) fn read(request: &Request<'_>) -> Result<Work, Sense> {
    let (range, cdb_bytes) = check(request)?;
    let room = cdb_bytes.min(u64::from(request.command.data_in_bytes)) as u32;
    if room == 0 {
        return Ok(Work::End(End { result: Ok(()), moves: Moves::In, transfer_bytes: cdb_bytes }));
    }
    let bytes = room.next_multiple_of(request.unit()?.geometry().block_bytes);
    Ok(Work::Transfer(Transfer::new(Kind::Read, &range, range.fua(), bytes, cdb_bytes).with_room(room)))
}

/// Data from the initiator: as many whole blocks as it has, up to what the CDB says. Part of a block is refused,
/// and then nothing is written: what would the rest of it be?
fn from_initiator(request: &Request<'_>, kind: Kind, fua: bool) -> Result<Work, Sense> {
    let (range, cdb_bytes) = check(request)?;
    let block_bytes = request.unit()?.geometry().block_bytes;
    let offered = u64::from(request.command.data_out_bytes);
    let bytes = cdb_bytes.min(offered) as u32;
    if !bytes.is_multiple_of(block_bytes) {
        let result = Err(Sense::INVALID_FIELD_IN_COMMAND_INFORMATION_UNIT);
        return Ok(Work::End(End { result, moves: Moves::Out, transfer_bytes: cdb_bytes }));
    }
    if bytes == 0 {
        return Ok(Work::End(End { result: Ok(()), moves: Moves::Out, transfer_bytes: cdb_bytes }));
    }
    Ok(Work::Transfer(Transfer::new(kind, &range, fua, bytes, cdb_bytes)))
}

/// WRITE(6), (10), (12), (16) (SBC-3 §5.32).
pub(crate) fn write(request: &Request<'_>) -> Result<Work, Sense> {
    let fua = BlockRange::of(&request.command.cdb).fua();
    from_initiator(request, Kind::Write, fua)
}

/// ORWRITE(16) (SBC-3 §5.6).
pub(crate) fn or_write(request: &Request<'_>) -> Result<Work, Sense> {
    let fua = BlockRange::of(&request.command.cdb).fua();
    from_initiator(request, Kind::OrWrite, fua)
}

/// BYTCHK of VERIFY and WRITE AND VERIFY.
fn byte_check(cdb: &crate::cdb::Cdb) -> u8 {
    cdb[1] >> 1 & 0x03
}

/// The leftmost bit of BYTCHK.
const BYTE_CHECK_BIT: u8 = 2;

/// VERIFY(10), (12), (16) (SBC-3 §5.26).
pub(crate) fn verify(request: &Request<'_>) -> Result<Work, Sense> {
    match byte_check(&request.command.cdb) {
        0 => {
            let (range, cdb_bytes) = check(request)?;
            Ok(verify_medium(&range, cdb_bytes))
        }
        1 => from_initiator(request, Kind::Verify, false),
        3 => {
            let (range, cdb_bytes) = check(request)?;
            let block_bytes = request.unit()?.geometry().block_bytes;
            if cdb_bytes == 0 {
                return Ok(Work::End(End::GOOD));
            }
            if request.command.data_out_bytes != block_bytes {
                return Err(Sense::INVALID_FIELD_IN_CDB);
            }
            let pattern_bytes = u64::from(block_bytes);
            let bytes = cdb_bytes as u32;
            Ok(Work::Transfer(Transfer::new(Kind::VerifyPattern, &range, false, bytes, pattern_bytes)))
        }
        _ => Err(Sense::INVALID_FIELD_IN_CDB.cdb_bit(1, BYTE_CHECK_BIT)),
    }
}

/// Reads the range and forgets it. Over at once if it is empty.
fn verify_medium(range: &BlockRange, bytes: u64) -> Work {
    if bytes == 0 {
        return Work::End(End::GOOD);
    }
    Work::Transfer(Transfer::new(Kind::VerifyMedium, range, false, bytes as u32, 0))
}

/// WRITE AND VERIFY(10), (12), (16) (SBC-3 §5.36). It is on the medium, so FUA, before it is read from there.
pub(crate) fn write_and_verify(request: &Request<'_>) -> Result<Work, Sense> {
    match byte_check(&request.command.cdb) {
        0 => from_initiator(request, Kind::WriteAndRead, true),
        1 => from_initiator(request, Kind::WriteAndCompare, true),
        _ => Err(Sense::INVALID_FIELD_IN_CDB.cdb_bit(1, BYTE_CHECK_BIT)),
    }
}

/// PRE-FETCH(10), (16) (SBC-3 §5.8). There is no cache of ours to fetch into, which GOOD says (CONDITION MET would
/// promise that all of it is there).
pub(crate) fn pre_fetch(request: &Request<'_>) -> Result<Work, Sense> {
    BlockRange::of(&request.command.cdb).check_on(request.unit()?.geometry())?;
    Ok(Work::End(End::GOOD))
}

/// What SEND DIAGNOSTIC's self-test does: the first blocks can be read.
pub(crate) fn self_test(request: &Request<'_>) -> Result<Work, Sense> {
    let geometry = request.unit()?.geometry();
    let blocks = geometry.blocks.min(PIECE_BYTES / u64::from(geometry.block_bytes));
    let range = BlockRange { flags: 0, lba: 0, blocks, length_byte: 3 };
    Ok(verify_medium(&range, blocks * u64::from(geometry.block_bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::{NEXUS, Offer, World, cdb10, cdb12, cdb16, geometry, pattern};
    use bdev::error::IoError;
    use bdev::geometry::Geometry;
    use bdev::io::Op;

    const BLOCK: usize = 512;

    fn filled() -> World {
        let mut world = World::new(geometry());
        world.disk = pattern(world.disk.len(), 3);
        world
    }

    /// A READ whose initiator expects another length.
    fn read_with_room(world: &mut World, blocks: u16, room: u32) -> crate::harness::Answer {
        world.get(&cdb10(0x28, 0, 0, blocks), room)
    }

    /// Goal: all four lengths read and write what they name, in pieces. Method: an unaligned range over several pieces.
    #[test]
    fn every_length_reads_and_writes() {
        let (lba, blocks) = (100_u32, 200_u16);
        let bytes = usize::from(blocks) * BLOCK;
        let range = lba as usize * BLOCK..lba as usize * BLOCK + bytes;
        let six = |opcode: u8| vec![opcode, 0, 0, lba as u8, blocks as u8, 0];
        let pairs = [
            (six(0x08), six(0x0A)),
            (cdb10(0x28, 0, lba, blocks), cdb10(0x2A, 0, lba, blocks)),
            (cdb12(0xA8, 0, lba, blocks.into()), cdb12(0xAA, 0, lba, blocks.into())),
            (cdb16(0x88, 0, lba.into(), blocks.into()), cdb16(0x8A, 0, lba.into(), blocks.into())),
        ];
        for (seed, (read, write)) in (10..).zip(pairs) {
            let mut world = filled();
            let before = world.disk.clone();
            let answer = world.get(&read, bytes as u32).good();
            assert_eq!(
                (answer.data.as_slice(), answer.transfer_bytes),
                (&before[range.clone()], bytes as u64)
            );
            let data = pattern(bytes, seed);
            let answer = world.put(&write, &data).good();
            assert_eq!((answer.wanted, answer.transfer_bytes), (bytes as u32, bytes as u64));
            assert_eq!(&world.disk[range.clone()], &data[..]);
            assert_eq!(&world.disk[..range.start], &before[..range.start]);
            assert_eq!(&world.disk[range.end..], &before[range.end..]);
        }
    }

    /// Goal: 0 in a 6-byte command is 256 blocks, in all others none.
    #[test]
    fn zero_length_is_256_blocks_in_six_bytes_only() {
        let mut world = filled();
        assert_eq!(world.get(&[0x08, 0, 0, 0, 0, 0], 256 * 512).good().data.len(), 256 * 512);
        for cdb in [cdb10(0x28, 0, 0, 0), cdb12(0xA8, 0, 0, 0), cdb16(0x88, 0, 0, 0)] {
            let answer = world.get(&cdb, 512).good();
            assert_eq!((answer.transfer_bytes, answer.ios.len()), (0, 0));
        }
    }

    /// Goal: a range past the end is refused before any data move, at every edge and without wrapping.
    #[test]
    fn ranges_end_with_the_medium() {
        let mut world = filled();
        let end = 5000;
        for opcode in [0x28, 0x2A, 0x2E, 0x2F, 0x34] {
            world.put(&cdb10(opcode, 0, end, 0), &[]).good();
            for (lba, blocks) in [(end + 1, 0), (end, 1), (end - 1, 2), (1 << 31, 1), (u32::MAX, 0xFFFF)] {
                let answer = world.put(&cdb10(opcode, 0, lba, blocks), &[0; BLOCK]).bad(0x5_2100);
                assert_eq!(answer.information(), Some(lba.max(end)));
                assert_eq!(answer.pointer(), Some((true, 2, None)));
                assert_eq!((answer.wanted, answer.ios.len()), (0, 0));
            }
        }
        for opcode in [0x88, 0x8A, 0x8B, 0x8E, 0x8F, 0x90] {
            world.put(&cdb16(opcode, 0, u64::from(end), 0), &[]).good();
            for (lba, blocks) in [(u64::MAX, 1), (1 << 63, 0), (u64::MAX, u32::MAX), (4999, 2)] {
                world.put(&cdb16(opcode, 0, lba, blocks), &[0; BLOCK]).bad(0x5_2100);
            }
        }
        world.get(&[0x08, 0x1F, 0xFF, 0xFF, 1, 0], 512).bad(0x5_2100);
    }

    /// Goal: MAXIMUM TRANSFER LENGTH is the limit, for all who move blocks. Method: the limit, and one more.
    #[test]
    fn transfer_length_limit_holds() {
        let blocks = u64::from(TRANSFER_BLOCKS_MAX) + 1;
        let mut world = World::new(Geometry { blocks, block_bytes: 512, ..geometry() });
        for (opcode, data) in [(0x88, 0), (0x8A, 0), (0x8B, 0), (0x8E, 0), (0x8F, 0)] {
            let flags = if opcode == 0x8F { 0x02 } else { 0 };
            let data = vec![0; data];
            world.put(&cdb16(opcode, flags, 0, TRANSFER_BLOCKS_MAX), &data).good();
            world.put(&cdb16(opcode, flags, 0, TRANSFER_BLOCKS_MAX + 1), &data).bad_field(10, None);
            world.put(&cdb12(0xA8, 0, 0, TRANSFER_BLOCKS_MAX + 1), &data).bad_field(6, None);
        }
        let answer = world.get(&cdb16(0x8F, 0, 0, TRANSFER_BLOCKS_MAX), 0).good();
        assert_eq!(answer.ios.iter().map(|io| io.3).sum::<u64>(), u64::from(TRANSFER_BLOCKS_MAX));
        // 256 MiB stream through a window, with few buffers.
        world.share.out_max = 3;
        let answer = world.get(&cdb16(0x88, 0, 0, TRANSFER_BLOCKS_MAX), TRANSFER_BLOCKS_MAX * 512).good();
        assert_eq!(answer.data.len(), 256 << 20);
    }

    /// Goal: the residual rules of READ that the public suite has: exactly the smaller number of bytes.
    #[test]
    fn reads_move_what_fits() {
        let mut world = filled();
        for (blocks, room, moved) in
            [(1, 0, 0), (1, 200, 200), (1, 10_000, 512), (2, 512, 512), (300, 70_001, 70_001)]
        {
            let answer = read_with_room(&mut world, blocks, room).good();
            assert_eq!(answer.data, &world.disk[..moved]);
            assert_eq!(answer.transfer_bytes, u64::from(blocks) * 512);
        }
        // With the W bit: nothing is moved, and all of the expected length is residual.
        let answer = world.put(&cdb10(0x28, 0, 0, 1), &[7; BLOCK]).good();
        assert_eq!((answer.transfer_bytes, answer.wanted, answer.data.len()), (0, 0, 0));
    }

    /// Goal: the residual rules of all that take blocks: whole blocks are cut short, parts of one are refused.
    #[test]
    fn writes_move_whole_blocks() {
        let cdbs = [0x2A, 0x2E].map(|opcode| move |blocks| cdb10(opcode, 0, 0, blocks));
        for cdb in cdbs {
            let cases = [(1, 0, 0), (1, 10_000, 512), (2, 512, 512), (1, 1024, 512), (9, 2048, 2048)];
            for (blocks, offered, written) in cases {
                let mut world = filled();
                let before = world.disk.clone();
                let data = pattern(offered, 99);
                let answer = world.put(&cdb(blocks), &data).good();
                assert_eq!(answer.transfer_bytes, u64::from(blocks) * 512);
                assert_eq!(world.disk[..written], data[..written]);
                assert_eq!(world.disk[written..], before[written..]);
            }
            let mut world = filled();
            let before = world.disk.clone();
            let answer = world.put(&cdb(1), &[0; 200]).bad(0x5_0E03);
            assert_eq!((answer.transfer_bytes, answer.wanted), (512, 0));
            world.put(&cdb(3), &[0; 1100]).bad(0x5_0E03);
            assert_eq!(world.disk, before);
            // With the R bit: nothing is written.
            assert_eq!(world.get(&cdb(1), 512).good().transfer_bytes, 0);
            assert_eq!(world.disk, before);
        }
    }

    /// Goal: FUA goes down with reads and writes, DPO is taken, protection is not there.
    #[test]
    fn flags_are_heeded() {
        let mut world = filled();
        for flags in [0x00, 0x08, 0x10, 0x18] {
            let fua = flags & 0x08 != 0;
            assert_eq!(world.get(&cdb10(0x28, flags, 0, 1), 512).good().ios, [(Op::Read, fua, 0, 1)]);
            assert_eq!(world.put(&cdb10(0x2A, flags, 0, 1), &[1; 512]).good().ios, [(Op::Write, fua, 0, 1)]);
            assert_eq!(
                world.put(&cdb16(0x8B, flags, 0, 1), &[1; 512]).good().ios,
                [(Op::OrWrite, fua, 0, 1)]
            );
        }
        for protect in 1..8_u8 {
            for opcode in [0x28, 0x2A, 0x2E, 0x2F] {
                world.put(&cdb10(opcode, protect << 5, 0, 1), &[1; 512]).bad_field(1, Some(7));
            }
            for opcode in [0x88, 0x8A, 0x8B, 0x8E, 0x8F] {
                world.put(&cdb16(opcode, protect << 5, 0, 1), &[1; 512]).bad_field(1, Some(7));
            }
        }
    }

    /// Goal: VERIFY compares as BYTCHK says and names the first difference, whichever piece comes back first.
    #[test]
    fn verify_finds_the_first_difference() {
        let mut world = filled();
        let blocks = 700_u16;
        let mut data = world.disk[..usize::from(blocks) * BLOCK].to_vec();
        let verify = |flags| cdb10(0x2F, flags, 0, blocks);
        let answer = world.put(&verify(0x02), &data).good();
        assert!(answer.ios.iter().all(|io| io.0 == Op::Compare));
        data[200_000] ^= 1;
        data[300_000] ^= 1;
        for order in 0..20 {
            world.order = order;
            let answer = world.put(&verify(0x02), &data).bad(0xE_1D00);
            assert_eq!(answer.information(), Some(200_000));
        }
        // BYTCHK=00b takes no data, and none is asked for.
        let answer = world.put(&verify(0), &data).good();
        assert_eq!((answer.wanted, answer.transfer_bytes), (0, 0));
        assert_eq!(answer.ios.iter().map(|io| io.3).sum::<u64>(), u64::from(blocks));
        world.put(&verify(0x04), &data).bad_field(1, Some(2));
        world.faults.push((Op::Read, 100_000..100_001, IoError::Medium { errno: 5 }));
        let answer = world.put(&verify(0), &[]).bad(0x3_1100);
        assert_eq!(answer.information(), Some(128), "the failed piece's first block");
    }

    /// Goal: BYTCHK=11b compares every block with one.
    #[test]
    fn verify_compares_many_with_one() {
        let mut world = filled();
        let block = pattern(BLOCK, 50);
        let verify = cdb16(0x8F, 0x06, 1000, 600);
        for lba in 1000..1600 {
            world.disk[lba * BLOCK..][..BLOCK].copy_from_slice(&block);
        }
        let answer = world.put(&verify, &block).good();
        assert_eq!((answer.wanted, answer.transfer_bytes), (512, 512));
        world.disk[1400 * BLOCK + 77] ^= 1;
        assert_eq!(world.put(&verify, &block).bad(0xE_1D00).information(), Some(77));
        world.put(&verify, &block[..511]).bad(0x5_2400);
        world.put(&cdb16(0x8F, 0x06, 1000, 0), &[]).good();
    }

    /// Goal: WRITE AND VERIFY has it on the medium and then looks: reads it (00b) or compares it (01b).
    #[test]
    fn write_and_verify_looks_at_the_medium() {
        for (flags, op) in [(0x00, Op::Read), (0x02, Op::Compare)] {
            let mut world = filled();
            let data = pattern(300 * BLOCK, 8);
            let answer = world.put(&cdb10(0x2E, flags, 77, 300), &data).good();
            assert_eq!(world.disk[77 * BLOCK..377 * BLOCK], data);
            let written: u64 = answer.ios.iter().filter(|io| io.0 == Op::Write && io.1).map(|io| io.3).sum();
            let looked_at: u64 = answer.ios.iter().filter(|io| io.0 == op).map(|io| io.3).sum();
            assert_eq!((written, looked_at), (300, 300));
            world.faults.push((op, 60_000..60_001, IoError::Medium { errno: 5 }));
            world.put(&cdb10(0x2E, flags, 77, 300), &data).bad(0x3_1100);
        }
        let mut world = filled();
        world.put(&cdb10(0x2E, 0x04, 0, 1), &[0; BLOCK]).bad_field(1, Some(2));
        world.put(&cdb10(0x2E, 0x06, 0, 1), &[0; BLOCK]).bad_field(1, Some(2));
    }

    /// Goal: ORWRITE ORs.
    #[test]
    fn or_write_ors() {
        let mut world = filled();
        let before = world.disk.clone();
        let data = pattern(256 * BLOCK, 0x80);
        world.put(&cdb16(0x8B, 0, 4744, 256), &data).good();
        let want: Vec<u8> = before[4744 * BLOCK..].iter().zip(&data).map(|(a, b)| a | b).collect();
        assert_eq!(world.disk[4744 * BLOCK..], want);
    }

    /// Goal: what fails below is told in SCSI's words, and a READ keeps what it had before the failure.
    #[test]
    fn failures_are_told() {
        let mut world = filled();
        world.faults.push((Op::Read, 150_000..150_001, IoError::Medium { errno: 5 }));
        for order in 0..20 {
            world.order = order;
            let answer = world.get(&cdb10(0x28, 0, 0, 600), 600 * 512).bad(0x3_1100);
            assert_eq!((answer.data.len(), answer.transfer_bytes), (131_072, 131_072));
            assert_eq!(answer.information(), Some(256));
        }
        let errors = [
            (IoError::OutOfSpace, 0x7_2707),
            (IoError::Medium { errno: 5 }, 0x3_0C00),
            (IoError::Device { errno: 19 }, 0x4_4400),
            (IoError::WRITE_PROTECTED, 0x7_2700),
        ];
        for (error, code) in errors {
            world.faults = vec![(Op::Write, 150_000..150_001, error)];
            let answer = world.put(&cdb10(0x2A, 0, 0, 600), &pattern(600 * BLOCK, 1)).bad(code);
            assert_eq!(answer.transfer_bytes, 600 * 512);
        }
    }

    /// Goal: VERIFY goes on with the fewest buffers there can be. Method: one for data, one to compare with.
    #[test]
    fn two_buffers_are_enough() {
        let mut world = filled();
        world.share.out_max = 2;
        let data = world.disk[..600 * BLOCK].to_vec();
        world.put(&cdb10(0x2F, 0x02, 0, 600), &data).good();
        world.put(&cdb10(0x2E, 0x02, 0, 600), &data).good();
        world.put(&cdb16(0x8B, 0, 0, 600), &data).good();
        world.put(&cdb10(0x2F, 0x06, 0, 600), &data[..BLOCK]).bad(0xE_1D00);
    }

    /// Goal: 4096-byte blocks count as such.
    #[test]
    fn large_blocks_work() {
        let shape = Geometry { block_bytes: 4096, blocks: 600, ..geometry() };
        let mut world = World::new(shape);
        let data = pattern(100 * 4096, 5);
        world.put(&cdb10(0x2A, 0, 9, 100), &data).good();
        assert_eq!(world.get(&cdb10(0x28, 0, 9, 100), 100 * 4096).good().data, data);
        world.put(&cdb10(0x2A, 0, 9, 4), &data[..10_000]).bad(0x5_0E03);
    }

    /// Goal: data beyond what the CDB says are not asked for, as with data the initiator does not say it has.
    #[test]
    fn pieces_of_unwanted_data_are_empty() {
        let mut world = filled();
        let cdb = cdb10(0x2A, 0, 0, 1);
        let data = pattern(4096, 1);
        let offer = Offer { lun: [0; 8], cdb: cdb.clone(), room: 0, data: &data, data_bytes: 4096 };
        let answer = world.run(NEXUS, &offer).good();
        assert_eq!(answer.wanted, 512);
    }

    /// Goal: PRE-FETCH ends in GOOD, whatever its flags.
    #[test]
    fn pre_fetch_is_good() {
        let mut world = filled();
        world.get(&cdb10(0x34, 0x02, 0, 1), 0).good();
        world.get(&cdb16(0x90, 0x02, 0, 0), 0).good();
        let mut with_group = cdb10(0x34, 0, 0, 0);
        with_group[6] = 3;
        world.get(&with_group, 0).good();
    }
}
