//! The commands that the offloads are made of, as CDB and parameter list. SBC-4 and SPC-4; written apart from the
//! target's own codec on purpose. And the ranges that a stream of them goes over.

use crate::load::wire;
use std::sync::Arc;

/// The LUN's blocks.
pub(super) const BLOCK_BYTES: u64 = 512;

/// One command.
#[derive(Debug, Clone)]
pub(super) struct Command {
    pub(super) cdb: [u8; 16],
    /// Data-Out; shared, so that large ones aren't copied.
    pub(super) data: Arc<[u8]>,
    /// Data-In at most.
    pub(super) read_bytes: u32,
}

fn with_lba(operation_code: u8, offset: u64, data: Arc<[u8]>) -> Command {
    let mut cdb = [0; 16];
    cdb[0] = operation_code;
    cdb[2..10].copy_from_slice(&(offset / BLOCK_BYTES).to_be_bytes());
    Command { cdb, data, read_bytes: 0 }
}

fn blocks(bytes: u64) -> [u8; 4] {
    ((bytes / BLOCK_BYTES) as u32).to_be_bytes()
}

pub(super) fn test_unit_ready() -> Command {
    Command { cdb: [0; 16], data: Arc::from([]), read_bytes: 0 }
}

pub(super) fn read(offset: u64, bytes: u32) -> Command {
    let mut command = with_lba(wire::READ_16, offset, Arc::from([]));
    command.cdb[10..14].copy_from_slice(&blocks(bytes.into()));
    command.read_bytes = bytes;
    command
}

pub(super) fn write(offset: u64, data: Arc<[u8]>) -> Command {
    let bytes = data.len() as u64;
    let mut command = with_lba(wire::WRITE_16, offset, data);
    command.cdb[10..14].copy_from_slice(&blocks(bytes));
    command
}

/// WRITE SAME (16) with `block`, one block; neither UNMAP nor NDOB, as ESXi sends it.
pub(super) fn write_same(offset: u64, bytes: u64, block: Arc<[u8]>) -> Command {
    let mut command = with_lba(0x93, offset, block);
    command.cdb[10..14].copy_from_slice(&blocks(bytes));
    command
}

/// UNMAP of one range. SBC-4 §5.35.
pub(super) fn unmap(offset: u64, bytes: u64) -> Command {
    let mut list = [0; 24];
    list[0..2].copy_from_slice(&22_u16.to_be_bytes());
    list[2..4].copy_from_slice(&16_u16.to_be_bytes());
    list[8..16].copy_from_slice(&(offset / BLOCK_BYTES).to_be_bytes());
    list[16..20].copy_from_slice(&blocks(bytes));
    let mut cdb = [0; 16];
    cdb[0] = 0x42;
    cdb[8] = 24;
    Command { cdb, data: Arc::from(list), read_bytes: 0 }
}

/// COMPARE AND WRITE of one block: `expected`, then `wanted`.
pub(super) fn compare_and_write(offset: u64, expected: &[u8; 512], wanted: &[u8; 512]) -> Command {
    let mut command = with_lba(0x89, offset, Arc::from([&expected[..], &wanted[..]].concat()));
    command.cdb[13] = 1;
    command
}

/// EXTENDED COPY (LID1) within the unit named `naa`: `segments` of `segment_bytes`, one behind the other. List
/// identifier 0 with usage 11b; two CSCD descriptors, as ESXi sends them. SPC-4 §6.4.
pub(super) fn extended_copy(
    naa: &[u8; 16],
    from: u64,
    to: u64,
    segment_bytes: u64,
    segments: u64,
) -> Command {
    let mut list = vec![0; 16];
    list[1] = 0x18;
    list[2..4].copy_from_slice(&64_u16.to_be_bytes());
    list[8..12].copy_from_slice(&(28 * segments as u32).to_be_bytes());
    for _ in 0..2 {
        let mut cscd = [0; 32];
        cscd[0] = 0xE4;
        cscd[4] = 1;
        cscd[5] = 3;
        cscd[7] = 16;
        cscd[8..24].copy_from_slice(naa);
        cscd[29..32].copy_from_slice(&(BLOCK_BYTES as u32).to_be_bytes()[1..]);
        list.extend(cscd);
    }
    for index in 0..segments {
        let mut segment = [0; 28];
        segment[0] = 0x02;
        segment[1] = 0x02;
        segment[3] = 24;
        segment[7] = 1;
        segment[10..12].copy_from_slice(&((segment_bytes / BLOCK_BYTES) as u16).to_be_bytes());
        let at = index * segment_bytes;
        segment[12..20].copy_from_slice(&((from + at) / BLOCK_BYTES).to_be_bytes());
        segment[20..28].copy_from_slice(&((to + at) / BLOCK_BYTES).to_be_bytes());
        list.extend(segment);
    }
    let mut cdb = [0; 16];
    cdb[0] = 0x83;
    cdb[10..14].copy_from_slice(&(list.len() as u32).to_be_bytes());
    Command { cdb, data: Arc::from(list), read_bytes: 0 }
}

/// Offsets of equal pieces of a range, in order; the range is a multiple of them.
#[derive(Debug, Clone)]
pub(super) struct Pieces {
    start: u64,
    bytes: u64,
    step: u64,
    next: u64,
    endless: bool,
}

impl Pieces {
    /// Once over the range.
    pub(super) fn once(start: u64, bytes: u64, step: u64) -> Pieces {
        assert!(step > 0 && bytes.is_multiple_of(step));
        Pieces { start, bytes, step, next: 0, endless: false }
    }

    /// Round and round, beginning `at` bytes into it.
    pub(super) fn endless(start: u64, bytes: u64, step: u64, at: u64) -> Pieces {
        assert!(at.is_multiple_of(step) && at < bytes);
        Pieces { next: at, endless: true, ..Pieces::once(start, bytes, step) }
    }
}

impl Iterator for Pieces {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        if self.next == self.bytes {
            if !self.endless {
                return None;
            }
            self.next = 0;
        }
        let offset = self.start + self.next;
        self.next += self.step;
        Some(offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: CDBs and lists have the bytes of the figures. Method: by hand.
    #[test]
    fn commands_have_the_bytes_of_the_figures() {
        let zero: Arc<[u8]> = Arc::from([0; 512]);
        let same = write_same(1 << 20, 1 << 20, zero);
        assert_eq!(same.cdb, [0x93, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 8, 0, 0, 0]);
        let unmap = unmap(1 << 20, 16 << 20);
        assert_eq!(unmap.cdb, [0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0, 0, 0, 0, 0, 0, 0]);
        let list = [0, 22, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0x80, 0, 0, 0, 0, 0];
        assert_eq!(unmap.data[..], list);
        let ats = compare_and_write(512 * 258, &[1; 512], &[2; 512]);
        assert_eq!(ats.cdb, [0x89, 0, 0, 0, 0, 0, 0, 0, 1, 2, 0, 0, 0, 1, 0, 0]);
        assert_eq!((ats.data.len(), ats.data[511], ats.data[512]), (1024, 1, 2));
        assert_eq!(read(512, 4096).cdb, [0x88, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0]);
    }

    /// Goal: so has EXTENDED COPY, with all its segments. Method: by hand, two of 4 MiB.
    #[test]
    fn extended_copy_has_the_bytes_of_the_figures() {
        let naa: [u8; 16] = std::array::from_fn(|index| 0x60 + index as u8);
        let copy = extended_copy(&naa, 0, 16 << 20, 4 << 20, 2);
        assert_eq!(copy.cdb, [0x83, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 136, 0, 0]);
        assert_eq!(copy.data[..16], [0, 0x18, 0, 64, 0, 0, 0, 0, 0, 0, 0, 56, 0, 0, 0, 0]);
        assert_eq!(copy.data[16..24], [0xE4, 0, 0, 0, 1, 3, 0, 16]);
        assert_eq!((&copy.data[24..40], &copy.data[40..48]), (&naa[..], &[0, 0, 0, 0, 0, 0, 2, 0][..]));
        assert_eq!(copy.data[16..48], copy.data[48..80]);
        let second =
            [2, 2, 0, 24, 0, 0, 0, 1, 0, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0xA0, 0];
        assert_eq!(copy.data[108..], second);
    }

    /// Goal: a range is gone over once without gaps, or for ever. Method: small ones.
    #[test]
    fn pieces_cover_their_range() {
        assert_eq!(Pieces::once(100, 30, 10).collect::<Vec<_>>(), [100, 110, 120]);
        let round: Vec<u64> = Pieces::endless(100, 30, 10, 20).take(4).collect();
        assert_eq!(round, [120, 100, 110, 120]);
    }
}
