//! CDBs: the figures of the standards, and the fields the handlers want of them. No checks but of form; which bits
//! may be set at all is in `opcodes`.

use crate::sense::Sense;
use bdev::geometry::Geometry;
use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// A CDB, zero-padded.
pub(crate) type Cdb = [u8; 16];

/// READ(6), WRITE(6) (SBC-3 §5.10, §5.32).
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct BlockCdb6 {
    opcode: u8,
    /// 21 bits.
    logical_block_address: [u8; 3],
    /// 0: 256 blocks.
    transfer_length: u8,
    control: u8,
}

const _: () = assert!(size_of::<BlockCdb6>() == 6);

/// READ(10) and all that are laid out like it (SBC-3 §5.11).
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct BlockCdb10 {
    opcode: u8,
    flags: u8,
    logical_block_address: U32,
    group_number: u8,
    transfer_length: U16,
    control: u8,
}

const _: () = assert!(size_of::<BlockCdb10>() == 10);

/// READ(12) and all that are laid out like it (SBC-3 §5.12).
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct BlockCdb12 {
    opcode: u8,
    flags: u8,
    logical_block_address: U32,
    transfer_length: U32,
    group_number: u8,
    control: u8,
}

const _: () = assert!(size_of::<BlockCdb12>() == 12);

/// READ(16) and all that are laid out like it (SBC-3 §5.13).
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct BlockCdb16 {
    opcode: u8,
    flags: u8,
    logical_block_address: U64,
    transfer_length: U32,
    group_number: u8,
    control: u8,
}

const _: () = assert!(size_of::<BlockCdb16>() == 16);

/// INQUIRY (SPC-4 §6.6).
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct InquiryCdb {
    opcode: u8,
    /// EVPD in bit 0.
    pub(crate) flags: u8,
    pub(crate) page_code: u8,
    pub(crate) allocation_length: U16,
    control: u8,
}

const _: () = assert!(size_of::<InquiryCdb>() == 6);

/// MODE SENSE(6) (SPC-4 §6.13).
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct ModeSense6Cdb {
    opcode: u8,
    /// DBD in bit 3.
    pub(crate) flags: u8,
    /// PC in bits 7 and 6, page code below.
    pub(crate) page: u8,
    pub(crate) subpage_code: u8,
    pub(crate) allocation_length: u8,
    control: u8,
}

const _: () = assert!(size_of::<ModeSense6Cdb>() == 6);

/// MODE SENSE(10) (SPC-4 §6.14).
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct ModeSense10Cdb {
    opcode: u8,
    /// LLBAA in bit 4, DBD in bit 3.
    pub(crate) flags: u8,
    /// PC in bits 7 and 6, page code below.
    pub(crate) page: u8,
    pub(crate) subpage_code: u8,
    reserved: [u8; 3],
    pub(crate) allocation_length: U16,
    control: u8,
}

const _: () = assert!(size_of::<ModeSense10Cdb>() == 10);

/// LOG SENSE (SPC-4 §6.8).
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct LogSenseCdb {
    opcode: u8,
    /// SP in bit 0.
    pub(crate) flags: u8,
    /// PC in bits 7 and 6, page code below.
    pub(crate) page: u8,
    pub(crate) subpage_code: u8,
    reserved: u8,
    pub(crate) parameter_pointer: U16,
    pub(crate) allocation_length: U16,
    control: u8,
}

const _: () = assert!(size_of::<LogSenseCdb>() == 10);

/// REPORT SUPPORTED OPERATION CODES (SPC-4 §6.35).
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct ReportSupportedOperationCodesCdb {
    opcode: u8,
    service_action: u8,
    /// RCTD in bit 7, REPORTING OPTIONS in bits 2 to 0.
    pub(crate) options: u8,
    pub(crate) requested_operation_code: u8,
    pub(crate) requested_service_action: U16,
    pub(crate) allocation_length: U32,
    reserved: u8,
    control: u8,
}

const _: () = assert!(size_of::<ReportSupportedOperationCodesCdb>() == 12);

/// A CDB seen as one of the figures.
pub(crate) fn view<T: FromBytes + KnownLayout + Immutable + Unaligned>(cdb: &Cdb) -> &T {
    let Ok((figure, _)) = T::ref_from_prefix(cdb) else {
        unreachable!("no figure is longer than a CDB, and all are unaligned");
    };
    figure
}

/// A two-byte field of a CDB.
pub(crate) fn be16(cdb: &Cdb, at: usize) -> u32 {
    u32::from(u16::from_be_bytes([cdb[at], cdb[at + 1]]))
}

/// A four-byte field of a CDB.
pub(crate) fn be32(cdb: &Cdb, at: usize) -> u32 {
    u32::from_be_bytes([cdb[at], cdb[at + 1], cdb[at + 2], cdb[at + 3]])
}

/// CDB length by group code, the upper three bits of the opcode (SPC-4 §4.3.3); only the groups of block commands.
fn cdb_bytes(opcode: u8) -> usize {
    match opcode >> 5 {
        0 => 6,
        1 | 2 => 10,
        5 => 12,
        _ => 16,
    }
}

/// The fields that all block commands have, whatever their length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BlockRange {
    /// Byte 1; 0 for the 6-byte commands, where it is part of the LBA.
    pub(crate) flags: u8,
    pub(crate) lba: u64,
    pub(crate) blocks: u64,
    /// Where the length field begins.
    pub(crate) length_byte: u16,
}

/// The FUA bit of byte 1.
const FUA: u8 = 0x08;

impl BlockRange {
    /// Reads the fields by the layout that the opcode's group code names.
    pub(crate) fn of(cdb: &Cdb) -> BlockRange {
        match cdb_bytes(cdb[0]) {
            6 => {
                let figure: &BlockCdb6 = view(cdb);
                let [high, mid, low] = figure.logical_block_address;
                let blocks =
                    if figure.transfer_length == 0 { 256 } else { u64::from(figure.transfer_length) };
                BlockRange {
                    flags: 0,
                    lba: u64::from(u32::from_be_bytes([0, high & 0x1F, mid, low])),
                    blocks,
                    length_byte: 4,
                }
            }
            10 => {
                let figure: &BlockCdb10 = view(cdb);
                BlockRange {
                    flags: figure.flags,
                    lba: u64::from(figure.logical_block_address.get()),
                    blocks: u64::from(figure.transfer_length.get()),
                    length_byte: 7,
                }
            }
            12 => {
                let figure: &BlockCdb12 = view(cdb);
                BlockRange {
                    flags: figure.flags,
                    lba: u64::from(figure.logical_block_address.get()),
                    blocks: u64::from(figure.transfer_length.get()),
                    length_byte: 6,
                }
            }
            _ => {
                let figure: &BlockCdb16 = view(cdb);
                BlockRange {
                    flags: figure.flags,
                    lba: figure.logical_block_address.get(),
                    blocks: u64::from(figure.transfer_length.get()),
                    length_byte: 10,
                }
            }
        }
    }

    pub(crate) fn fua(&self) -> bool {
        self.flags & FUA != 0
    }

    /// Whether the range is on the medium. Zero blocks are, up to and including the end.
    ///
    /// # Errors
    /// LBA OUT OF RANGE with the first LBA that is not there (SBC-3 §4.18.1).
    pub(crate) fn check_on(&self, geometry: &Geometry) -> Result<(), Sense> {
        check_range(self.lba, self.blocks, geometry).map_err(|sense| {
            let byte = if self.length_byte == 4 { 1 } else { 2 };
            sense.cdb_byte(byte)
        })
    }

    /// # Errors
    /// INVALID FIELD IN CDB at the length field, when the range is longer than `blocks_max`.
    pub(crate) fn check_length(&self, blocks_max: u64) -> Result<(), Sense> {
        if self.blocks > blocks_max {
            return Err(Sense::INVALID_FIELD_IN_CDB.cdb_byte(self.length_byte));
        }
        Ok(())
    }

    /// For commands where zero blocks means "to the end" (SBC-3: PRE-FETCH, SYNCHRONIZE CACHE, WRITE SAME). The range
    /// has been checked.
    pub(crate) fn or_to_end(self, geometry: &Geometry) -> BlockRange {
        let blocks = if self.blocks == 0 { geometry.blocks - self.lba } else { self.blocks };
        BlockRange { blocks, ..self }
    }
}

/// Whether `blocks` blocks from `lba` on are there, without overflow for any values.
///
/// # Errors
/// LBA OUT OF RANGE with the first LBA that is not there.
pub(crate) fn check_range(lba: u64, blocks: u64, geometry: &Geometry) -> Result<(), Sense> {
    match geometry.blocks.checked_sub(lba) {
        Some(left) if blocks <= left => Ok(()),
        _ => Err(Sense::LBA_OUT_OF_RANGE.at(lba.max(geometry.blocks))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn geometry(blocks: u64) -> Geometry {
        Geometry {
            block_bytes: 512,
            physical_block_bytes: 512,
            blocks,
            unmap_granularity_bytes: 0,
            write_zeroes: false,
            write_cache: false,
            read_only: false,
            rotational: false,
            pooled: false,
            atomic_bytes: 0,
        }
    }

    /// Goal: each length's fields are where the standard has them.
    #[test]
    fn fields_are_found_in_every_length() {
        let six = BlockRange::of(&[0x08, 0xFF, 0x23, 0x45, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!((six.flags, six.lba, six.blocks), (0, 0x1F_2345, 256));
        let ten = BlockRange::of(&[0x28, 0x18, 1, 2, 3, 4, 9, 5, 6, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!((ten.flags, ten.lba, ten.blocks), (0x18, 0x0102_0304, 0x0506));
        let twelve = BlockRange::of(&[0xA8, 0x08, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 0, 0, 0, 0]);
        assert_eq!((twelve.flags, twelve.lba, twelve.blocks), (0x08, 0x0102_0304, 0x0506_0708));
        let sixteen = BlockRange::of(&[0x88, 0x10, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 0]);
        assert_eq!((sixteen.flags, sixteen.lba, sixteen.blocks), (0x10, 0x0102_0304_0506_0708, 0x090A_0B0C));
    }

    proptest! {
        /// Goal: the range check never wraps. Method: compare with arithmetic in 128 bits.
        #[test]
        fn range_check_is_exact(lba: u64, blocks in prop_oneof![0..5u64, any::<u64>()], capacity in 1..=u64::MAX) {
            let is_there = u128::from(lba) + u128::from(blocks) <= u128::from(capacity);
            prop_assert_eq!(check_range(lba, blocks, &geometry(capacity)).is_ok(), is_there);
        }
    }

    /// Goal: the edges that the suite tries: zero blocks at the end are there, one past it are not.
    #[test]
    fn zero_blocks_are_there_up_to_the_end() {
        assert_eq!(check_range(100, 0, &geometry(100)), Ok(()));
        assert_eq!(check_range(101, 0, &geometry(100)), Err(Sense::LBA_OUT_OF_RANGE.at(101)));
        assert_eq!(check_range(99, 2, &geometry(100)), Err(Sense::LBA_OUT_OF_RANGE.at(100)));
    }
}
