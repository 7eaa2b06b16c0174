//! READ CAPACITY(10) and (16) (SBC-3 §5.15, §5.16).

use crate::cdb::view;
use crate::lun::LogicalUnit;
use crate::reply::{Out, ParameterData, Reply};
use crate::sense::Sense;
use crate::task::{Request, Work};
use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// READ CAPACITY(10) CDB.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct ReadCapacity10Cdb {
    opcode: u8,
    reserved_1: u8,
    /// Obsolete; with PMI.
    logical_block_address: U32,
    reserved_6: [u8; 2],
    /// PMI in bit 0, obsolete.
    pmi: u8,
    control: u8,
}

const _: () = assert!(size_of::<ReadCapacity10Cdb>() == 10);

/// READ CAPACITY(16) CDB.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct ReadCapacity16Cdb {
    opcode: u8,
    service_action: u8,
    /// Obsolete; with PMI.
    logical_block_address: U64,
    allocation_length: U32,
    /// PMI in bit 0, obsolete.
    pmi: u8,
    control: u8,
}

const _: () = assert!(size_of::<ReadCapacity16Cdb>() == 16);

/// READ CAPACITY(16) parameter data.
#[derive(IntoBytes, Immutable, Unaligned)]
#[repr(C)]
struct ReadCapacity16Data {
    returned_logical_block_address: U64,
    logical_block_length: U32,
    /// P_TYPE, PROT_EN.
    protection: u8,
    /// P_I_EXPONENT, LOGICAL BLOCKS PER PHYSICAL BLOCK EXPONENT.
    exponents: u8,
    /// LBPME, LBPRZ, LOWEST ALIGNED LOGICAL BLOCK ADDRESS.
    provisioning: U16,
    reserved: [u8; 16],
}

const _: () = assert!(size_of::<ReadCapacity16Data>() == 32);

/// LBPME and LBPRZ.
const THIN_AND_ZERO: u16 = 0xC000;

/// A medium that turned a corner at some LBA was PMI's business; without it the LBA has to be 0.
fn check_partial_medium(pmi: u8, lba: u64) -> Result<(), Sense> {
    if pmi & 0x01 == 0 && lba != 0 {
        return Err(Sense::INVALID_FIELD_IN_CDB.cdb_byte(2));
    }
    Ok(())
}

/// READ CAPACITY(10).
pub(crate) fn read_capacity_10(request: &Request<'_>) -> Result<Work, Sense> {
    let cdb: &ReadCapacity10Cdb = view(&request.command.cdb);
    check_partial_medium(cdb.pmi, u64::from(cdb.logical_block_address.get()))?;
    // No allocation length: the CDB says eight bytes.
    Ok(ParameterData::work(Reply::Capacity10, 8))
}

/// READ CAPACITY(16).
pub(crate) fn read_capacity_16(request: &Request<'_>) -> Result<Work, Sense> {
    let cdb: &ReadCapacity16Cdb = view(&request.command.cdb);
    check_partial_medium(cdb.pmi, cdb.logical_block_address.get())?;
    Ok(ParameterData::work(Reply::Capacity16, cdb.allocation_length.get()))
}

pub(crate) fn capacity10(unit: &LogicalUnit, out: &mut Out<'_>) {
    let geometry = unit.geometry();
    // FFFFFFFFh: more than fits, ask READ CAPACITY(16).
    let last = u32::try_from(geometry.blocks - 1).unwrap_or(u32::MAX);
    out.bytes(&last.to_be_bytes());
    out.bytes(&geometry.block_bytes.to_be_bytes());
}

pub(crate) fn capacity16(unit: &LogicalUnit, out: &mut Out<'_>) {
    let geometry = unit.geometry();
    out.put(&ReadCapacity16Data {
        returned_logical_block_address: U64::new(geometry.blocks - 1),
        logical_block_length: U32::new(geometry.block_bytes),
        protection: 0,
        exponents: (geometry.physical_block_bytes / geometry.block_bytes).trailing_zeros() as u8,
        provisioning: U16::new(if geometry.is_thin() { THIN_AND_ZERO } else { 0 }),
        reserved: [0; 16],
    });
}

#[cfg(test)]
mod tests {
    use crate::harness::{World, geometry};
    use bdev::geometry::Geometry;

    fn capacity_16(world: &mut World, length: u8) -> Vec<u8> {
        let cdb = [0x9E, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, length, 0, 0];
        world.get(&cdb, u32::from(length)).good().data
    }

    /// Goal: size, blocks and provisioning are the geometry's, for every kind of unit.
    #[test]
    fn capacity_is_the_geometrys() {
        for (block_bytes, physical_block_bytes, thin, byte_13) in
            [(512, 512, true, 0), (512, 4096, true, 3), (4096, 4096, false, 0)]
        {
            let unmap_granularity_bytes = if thin { 4096 } else { 0 };
            let mut world = World::new(Geometry {
                block_bytes,
                physical_block_bytes,
                unmap_granularity_bytes,
                blocks: 0x0506,
                ..geometry()
            });
            let data = capacity_16(&mut world, 32);
            assert_eq!(data[..8], [0, 0, 0, 0, 0, 0, 5, 5]);
            assert_eq!(data[8..12], block_bytes.to_be_bytes());
            assert_eq!(data[12..16], [0, byte_13, if thin { 0xC0 } else { 0 }, 0]);
            assert!(data[16..].iter().all(|&byte| byte == 0));
            for length in 0..32 {
                assert_eq!(capacity_16(&mut world, length), data[..usize::from(length)]);
            }
            let ten = world.get(&[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0], 8).good().data;
            assert_eq!((&ten[..4], &ten[4..]), (&data[4..8], &data[8..12]));
        }
    }

    /// Goal: the obsolete PMI is taken, an LBA without it is not.
    #[test]
    fn partial_medium_is_taken() {
        let mut world = World::new(geometry());
        world.get(&[0x25, 0, 0, 0, 0, 0, 0, 0, 1, 0], 8).good();
        world.get(&[0x25, 0, 0, 0, 0, 9, 0, 0, 1, 0], 8).good();
        world.get(&[0x25, 0, 0, 0, 0, 9, 0, 0, 0, 0], 8).bad_field(2, None);
        world.get(&[0x9E, 0x10, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 32, 0, 0], 32).bad_field(2, None);
    }
}
