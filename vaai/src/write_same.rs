//! WRITE SAME(10) and (16): VAAI's Block Zeroing (SBC-3 §5.38).
//!
//! Zeroes, sent or meant (NDOB or UNMAP), are one range request, however long; any other pattern is really written,
//! a window of pieces at a time, each filled with it.

use crate::cdb::BlockRange;
use crate::command::{Buffers, Effect};
use crate::limits::{QUIET_WINDOW, WRITE_SAME_BLOCKS_MAX};
use crate::sense::Sense;
use crate::task::{End, Head, Moves, Request, Spent, Step, Work};
use bdev::io::{Done, Op, PIECE_BYTES};
use reactor::buf::Buf;

const ANCHOR: u8 = 0x10;
const UNMAP: u8 = 0x08;
const NDOB: u8 = 0x01;

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The block is to be asked for.
    Ask,
    /// The block is on its way.
    Await,
    /// All zeroes: one request for all.
    Range,
    /// The request is out or back.
    RangeOut,
    /// Pieces of the pattern are written.
    Fill,
}

/// A WRITE SAME under way.
#[derive(Debug)]
pub(crate) struct WriteSame {
    phase: Phase,
    lba: u64,
    blocks: u64,
    /// How zeroes are written.
    zeroes: Op,
    unmap: bool,
    /// Blocks that have begun.
    next: u64,
    failed: Option<Sense>,
    pattern: Option<Buf>,
    /// A written piece, still full of the pattern.
    filled: Option<Buf>,
    /// Data-out bytes by the CDB.
    cdb_bytes: u64,
}

/// WRITE SAME(10) and (16).
pub(crate) fn write_same(request: &Request<'_>) -> Result<Work, Sense> {
    let geometry = request.unit()?.geometry();
    let range = BlockRange::of(&request.command.cdb);
    range.check_on(geometry)?;
    let to_end = range.or_to_end(geometry);
    to_end.check_length(WRITE_SAME_BLOCKS_MAX)?;
    let (unmap, anchor) = (range.flags & UNMAP != 0, range.flags & ANCHOR != 0);
    if anchor {
        // With UNMAP=0 it is wrong anyway, with UNMAP=1 for want of ANC_SUP.
        return Err(Sense::INVALID_FIELD_IN_CDB.cdb_bit(1, 4));
    }
    if unmap && !geometry.is_thin() {
        return Err(Sense::INVALID_FIELD_IN_CDB.cdb_bit(1, 3));
    }
    // Bit 0 is NDOB in the 16-byte CDB only; the opcode table lets it through nowhere else.
    let no_data = range.flags & NDOB != 0;
    if !no_data && request.command.data_out_bytes != geometry.block_bytes {
        return Err(Sense::INVALID_FIELD_IN_CDB);
    }
    if to_end.blocks == 0 {
        return Ok(Work::End(End::GOOD));
    }
    Ok(Work::WriteSame(WriteSame {
        phase: if no_data { Phase::Range } else { Phase::Ask },
        lba: to_end.lba,
        blocks: to_end.blocks,
        // A pool unmaps zeroes anyway, and an UNMAP only if that takes no memory: this has to read as zeroes.
        zeroes: if unmap && !geometry.pooled { Op::Unmap } else { Op::WriteZeroes },
        unmap,
        next: 0,
        failed: None,
        pattern: None,
        filled: None,
        cdb_bytes: if no_data { 0 } else { u64::from(geometry.block_bytes) },
    }))
}

impl WriteSame {
    pub(crate) fn poll(&mut self, head: &mut Head, spent: &mut Spent, buffers: &mut impl Buffers) -> Step {
        if self.phase == Phase::Await
            && let Some(pattern) = &self.pattern
        {
            self.phase = Phase::Fill;
            // With UNMAP=1 the blocks are unmapped and, LBPRZ being 1, read as zeroes, whatever the pattern; see
            // docs/decisions/0007.
            if self.unmap || is_zero(pattern) {
                self.phase = Phase::Range;
                spent.extend(self.pattern.take());
            }
        }
        match self.phase {
            Phase::Ask => {
                self.phase = Phase::Await;
                Step::Effect(Effect::WantData { bytes: head.block_bytes })
            }
            Phase::Range => {
                self.phase = Phase::RangeOut;
                self.next = self.blocks;
                head.submit(self.zeroes, false, self.lba, self.blocks, None, None)
            }
            Phase::RangeOut | Phase::Fill if self.next == self.blocks || self.failed.is_some() => {
                if head.ios_out != 0 {
                    return Step::Wait;
                }
                self.release(spent);
                let result = self.failed.map_or(Ok(()), Err);
                Step::End(End { result, moves: Moves::Out, transfer_bytes: self.cdb_bytes })
            }
            Phase::Fill if head.ios_out < QUIET_WINDOW => self.write_piece(head, spent, buffers),
            Phase::Await | Phase::RangeOut | Phase::Fill => Step::Wait,
        }
    }

    fn write_piece(&mut self, head: &mut Head, spent: &mut Spent, buffers: &mut impl Buffers) -> Step {
        let Some(pattern) = &self.pattern else { unreachable!("Fill begins with the pattern") };
        let lba = self.lba + self.next;
        let piece_blocks = PIECE_BYTES / u64::from(head.block_bytes);
        let blocks = (piece_blocks - lba % piece_blocks).min(self.blocks - self.next);
        let bytes = blocks as usize * pattern.len();
        let buf = match self.filled.take() {
            // Every piece begins with a whole block, so a longer one's bytes are right for a shorter one.
            Some(mut buf) if buf.len() >= bytes => {
                buf.set_len(bytes);
                buf
            }
            shorter => {
                spent.extend(shorter);
                let Some(mut buf) = buffers.take(bytes) else { return Step::Wait };
                buf.chunks_exact_mut(pattern.len()).for_each(|block| block.copy_from_slice(pattern));
                buf
            }
        };
        self.next += blocks;
        head.submit(Op::Write, false, lba, blocks, Some(buf), None)
    }

    /// Takes the block; gives it back if it is not wanted.
    pub(crate) fn data_out(&mut self, buf: Buf) -> Option<Buf> {
        if self.phase == Phase::Await { self.pattern.replace(buf) } else { Some(buf) }
    }

    pub(crate) fn io_done(&mut self, spent: &mut Spent, done: Done) {
        let Done { io, result } = done;
        if let Err(error) = result {
            self.failed.get_or_insert(Sense::of_io(error, io.op, io.lba));
        }
        let is_useful = self.failed.is_none() && self.next < self.blocks;
        spent.extend(if is_useful { std::mem::replace(&mut self.filled, io.buf) } else { io.buf });
    }

    pub(crate) fn release(&mut self, spent: &mut Spent) {
        spent.extend(self.pattern.take());
        spent.extend(self.filled.take());
    }
}

/// Whether all bytes are zero.
fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().fold(0, |all, &byte| all | byte) == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::{BUFFERS_MAX, World, cdb10, cdb16, geometry, pattern};
    use bdev::error::IoError;
    use bdev::geometry::Geometry;

    const BLOCK: usize = 512;

    fn filled() -> World {
        let mut world = World::new(geometry());
        world.disk = pattern(world.disk.len(), 3);
        world
    }

    /// Goal: any pattern lands in every block of the range and nowhere else, also when pieces fill up unevenly.
    #[test]
    fn pattern_fills_the_range() {
        for (lba, blocks) in [(0, 1), (0, 128), (127, 2), (100, 2000), (4999, 1), (3, 4997)] {
            for out_max in [2, BUFFERS_MAX] {
                let mut world = filled();
                world.share.out_max = out_max;
                let before = world.disk.clone();
                let block = pattern(BLOCK, 77);
                let answer = world.put(&cdb10(0x41, 0, lba, blocks), &block).good();
                assert_eq!((answer.wanted, answer.transfer_bytes), (512, 512));
                let (start, end) = (lba as usize * BLOCK, (lba as usize + usize::from(blocks)) * BLOCK);
                assert!(world.disk[start..end].chunks_exact(BLOCK).all(|written| written == block));
                assert_eq!(world.disk[..start], before[..start]);
                assert_eq!(world.disk[end..], before[end..]);
            }
        }
    }

    /// Goal: zeroes are one request, unmapped only if that is asked for; NDOB needs no data.
    #[test]
    fn zeroes_are_one_request() {
        let zeroes = [0; BLOCK];
        for (flags, data, op) in [
            (0x00, &zeroes[..], Op::WriteZeroes),
            (0x08, &zeroes, Op::Unmap),
            (0x01, &[], Op::WriteZeroes),
            (0x09, &[], Op::Unmap),
            (0x09, &zeroes, Op::Unmap),
        ] {
            let mut world = filled();
            let answer = world.put(&cdb16(0x93, flags, 5, 3000), data).good();
            assert_eq!(answer.ios, [(op, false, 5, 3000)]);
            assert!(world.disk[5 * BLOCK..3005 * BLOCK].iter().all(|&byte| byte == 0));
            assert_eq!(world.disk[..5 * BLOCK], pattern(5 * BLOCK, 3));
        }
        // UNMAP wins over a pattern, in both CDBs.
        let block = pattern(BLOCK, 1);
        let mut world = filled();
        assert_eq!(world.put(&cdb16(0x93, 0x08, 0, 2), &block).good().ios, [(Op::Unmap, false, 0, 2)]);
        assert_eq!(world.put(&cdb10(0x41, 0x08, 0, 2), &block).good().ios, [(Op::Unmap, false, 0, 2)]);
        assert!(world.put(&cdb16(0x93, 0x00, 0, 2), &block).good().ios.iter().all(|io| io.0 == Op::Write));
    }

    /// Goal: zero blocks is "to the end", where the limit counts; the range comes first. Method: a unit of one block
    /// more than the limit.
    #[test]
    fn length_limit_holds() {
        let zeroes = [0; BLOCK];
        let limit = WRITE_SAME_BLOCKS_MAX as u32;
        let end = WRITE_SAME_BLOCKS_MAX + 1;
        let mut world = World::new(Geometry { blocks: end, ..geometry() });
        let mut put = |lba, blocks| world.put(&cdb16(0x93, 0, lba, blocks), &zeroes);
        for (lba, blocks, zeroed) in
            [(0, limit - 1, limit - 1), (0, limit, limit), (1, 0, limit), (2, 0, limit - 1), (end - 2, 0, 2)]
        {
            let want = [(Op::WriteZeroes, false, lba, u64::from(zeroed))];
            assert_eq!(put(lba, blocks).good().ios, want);
        }
        put(0, limit + 1).bad_field(10, None);
        put(0, 0).bad_field(10, None);
        assert_eq!(put(end, 0).good().ios, []);
        for lba in [end + 1, 1 << 63, u64::MAX] {
            put(lba, 0).bad(0x5_2100);
        }
        put(end - 1, 2).bad(0x5_2100);
        put(end - 1, u32::MAX).bad(0x5_2100);
        world.put(&cdb10(0x41, 0, 0, 0), &zeroes).bad_field(7, None);
    }

    /// Goal: wrong flags and wrong data lengths are refused and nothing is written.
    #[test]
    fn wrong_requests_change_nothing() {
        let mut world = filled();
        let before = world.disk.clone();
        let block = [0; BLOCK];
        for cdb in [|flags| cdb10(0x41, flags, 0, 1), |flags| cdb16(0x93, flags, 0, 1)] {
            world.put(&cdb(0x10), &block).bad_field(1, Some(4));
            world.put(&cdb(0x18), &block).bad_field(1, Some(4));
            world.put(&cdb(0x20), &block).bad_field(1, Some(7));
            world.put(&cdb(0x04), &block).bad_field(1, Some(2));
            for bytes in [0, 256, 513, 1024] {
                for flags in [0x00, 0x08] {
                    assert_eq!(world.put(&cdb(flags), &vec![0; bytes]).bad(0x5_2400).wanted, 0);
                }
            }
        }
        world.put(&cdb10(0x41, 0x01, 0, 1), &block).bad_field(1, Some(2));
        assert_eq!(world.disk, before);
        let mut thick = World::new(Geometry { unmap_granularity_bytes: 0, ..geometry() });
        thick.put(&cdb16(0x93, 0x08, 0, 1), &block).bad_field(1, Some(3));
        thick.put(&cdb16(0x93, 0x00, 0, 1), &block).good();
    }

    /// Goal: failures end the command, with every buffer home.
    #[test]
    fn failures_are_told() {
        let mut world = filled();
        world.faults.push((Op::Write, 300_000..300_001, IoError::OutOfSpace));
        world.put(&cdb16(0x93, 0, 0, 4000), &pattern(BLOCK, 1)).bad(0x7_2707);
        world.faults = vec![(Op::Unmap, 0..1, IoError::Device { errno: 5 })];
        world.put(&cdb16(0x93, 0x09, 0, 4000), &[]).bad(0x4_4400);
    }
}
