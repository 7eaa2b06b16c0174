//! GET LBA STATUS: which blocks have space of their own (SBC-3 §5.6).
//!
//! A raw device keeps no map: the file system or disk below knows what it gave back, and does not tell. All its blocks
//! are "mapped or unknown", which is always true. A pool's volumes have a map and will answer from it, block by block.

use crate::cdb::{check_range, view};
use crate::lun::LogicalUnit;
use crate::reply::{Out, ParameterData, Reply};
use crate::sense::Sense;
use crate::task::{Request, Work};
use zerocopy::byteorder::big_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// GET LBA STATUS CDB.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct GetLbaStatusCdb {
    opcode: u8,
    service_action: u8,
    starting_logical_block_address: U64,
    allocation_length: U32,
    reserved: u8,
    control: u8,
}

const _: () = assert!(size_of::<GetLbaStatusCdb>() == 16);

/// GET LBA STATUS parameter data with its one descriptor.
#[derive(IntoBytes, Immutable, Unaligned)]
#[repr(C)]
struct GetLbaStatusData {
    /// Counts what follows it.
    parameter_data_length: U32,
    reserved: [u8; 4],
    descriptor: LbaStatusDescriptor,
}

const _: () = assert!(size_of::<GetLbaStatusData>() == 24);

/// LBA status descriptor. Counts are logical blocks.
#[derive(IntoBytes, Immutable, Unaligned)]
#[repr(C)]
struct LbaStatusDescriptor {
    logical_block_address: U64,
    number_of_logical_blocks: U32,
    /// In bits 3 to 0.
    provisioning_status: u8,
    reserved: [u8; 3],
}

const _: () = assert!(size_of::<LbaStatusDescriptor>() == 16);

/// PROVISIONING STATUS: mapped, or the device does not know.
const MAPPED_OR_UNKNOWN: u8 = 0x0;

/// GET LBA STATUS(16). An allocation length below the 24 bytes of one descriptor cuts and is no error.
pub(crate) fn get_lba_status(request: &Request<'_>) -> Result<Work, Sense> {
    let cdb: &GetLbaStatusCdb = view(&request.command.cdb);
    let lba = cdb.starting_logical_block_address.get();
    // The block itself has to be there: nothing can be said of none.
    check_range(lba, 1, request.unit()?.geometry()).map_err(|sense| sense.cdb_byte(2))?;
    Ok(ParameterData::work(Reply::LbaStatus { lba }, cdb.allocation_length.get()))
}

/// One descriptor, from `lba` to the end, or over as many blocks as its field can say: neighbours of the same status
/// would say nothing new, and whoever wants to know of the rest asks from there on.
pub(crate) fn lba_status(lba: u64, unit: &LogicalUnit, out: &mut Out<'_>) {
    // It may have shrunk since the block was there.
    let blocks = unit.geometry().blocks.saturating_sub(lba);
    out.put(&GetLbaStatusData {
        parameter_data_length: U32::new(size_of::<GetLbaStatusData>() as u32 - 4),
        reserved: [0; 4],
        descriptor: LbaStatusDescriptor {
            logical_block_address: U64::new(lba),
            number_of_logical_blocks: U32::new(u32::try_from(blocks).unwrap_or(u32::MAX)),
            provisioning_status: MAPPED_OR_UNKNOWN,
            reserved: [0; 3],
        },
    });
}

#[cfg(test)]
mod tests {
    use crate::harness::{World, cdb16, geometry, lun_config};
    use crate::lun::LunConfig;
    use crate::reply::Out;
    use bdev::geometry::Geometry;

    /// The CDB: what `cdb16` has as a number of blocks is the allocation length.
    fn cdb(lba: u64, allocation_length: u32) -> Vec<u8> {
        cdb16(0x9E, 0x12, lba, allocation_length)
    }

    fn be(bytes: &[u8]) -> u64 {
        bytes.iter().fold(0, |value, &byte| value << 8 | u64::from(byte))
    }

    /// Goal: one descriptor, from the block asked for to the end, for thin and thick units, written or not.
    #[test]
    fn one_descriptor_covers_the_rest() {
        for unmap_granularity_bytes in [4096, 0] {
            let mut world = World::new(Geometry { unmap_granularity_bytes, ..geometry() });
            for lba in [0, 1, 77, 4999] {
                let answer = world.get(&cdb(lba, 24), 24).good();
                assert_eq!((answer.transfer_bytes, answer.ios.len()), (24, 0));
                assert_eq!(answer.data[..8], [0, 0, 0, 20, 0, 0, 0, 0]);
                assert_eq!((be(&answer.data[8..16]), be(&answer.data[16..20])), (lba, 5000 - lba));
                assert_eq!(answer.data[20..], [0; 4]);
            }
        }
    }

    /// Goal: allocation lengths cut and never fail, and long ones get no more than there is.
    #[test]
    fn allocation_length_cuts() {
        let mut world = World::new(geometry());
        let whole = world.get(&cdb(5, 4096), 4096).good().data;
        assert_eq!(whole.len(), 24);
        for length in 0..=32 {
            let answer = world.get(&cdb(5, length), 64).good();
            let want = &whole[..whole.len().min(length as usize)];
            assert_eq!((&answer.data[..], answer.transfer_bytes), (want, want.len() as u64));
        }
        let answer = world.get(&cdb(5, u32::MAX), 10).good();
        assert_eq!((answer.data.len(), answer.transfer_bytes), (10, 24));
    }

    /// Goal: a block that is not there has no status, at the edge and without wrapping.
    #[test]
    fn the_block_has_to_be_there() {
        let mut world = World::new(geometry());
        for lba in [5000, 5001, 1 << 40, u64::MAX] {
            let answer = world.get(&cdb(lba, 24), 24).bad(0x5_2100);
            assert_eq!(answer.pointer(), Some((true, 2, None)));
            assert_eq!(answer.information(), u32::try_from(lba).ok());
        }
        let mut reserved = cdb(0, 24);
        reserved[14] = 1;
        world.get(&reserved, 24).bad_field(14, Some(7));
    }

    /// Goal: a number of blocks that 32 bits can't say is said as the largest. Method: without a disk of that size.
    #[test]
    fn large_units_are_told_in_parts() {
        let max = u64::from(u32::MAX);
        for (blocks, lba, said) in [
            (1 << 37, 0, max),
            (1 << 37, (1 << 37) - max - 1, max),
            (1 << 37, (1 << 37) - max, max),
            (1 << 37, (1 << 37) - max + 1, max - 1),
            (1 << 37, (1 << 37) - 1, 1),
        ] {
            let config = lun_config(0, Geometry { blocks, ..geometry() });
            let mut data = [0xFF; 24];
            super::lba_status(lba, &crate::lun::LogicalUnit::new(config), &mut Out::new(&mut data));
            assert_eq!((be(&data[8..16]), be(&data[16..20])), (lba, said));
        }
    }

    /// Goal: a unit without a medium has no blocks to tell of; a protected one has.
    #[test]
    fn the_medium_has_to_be_there() {
        let mut removable = World::of(vec![LunConfig { removable: true, ..lun_config(0, geometry()) }]);
        removable.get(&cdb(0, 24), 24).good();
        removable.get(&[0x1B, 0, 0, 0, 2, 0], 0).good();
        removable.get(&cdb(0, 24), 24).bad(0x2_3A00);
        removable.get(&cdb(9000, 24), 24).bad(0x2_3A00);
        let mut protected = World::of(vec![LunConfig { read_only: true, ..lun_config(0, geometry()) }]);
        protected.get(&cdb(0, 24), 24).good();
    }
}
