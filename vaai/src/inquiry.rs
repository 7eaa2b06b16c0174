//! INQUIRY: standard data and vital product data pages (SPC-4 §6.6, §7.8; SBC-3 §6.6). All limits come from
//! `limits`, everything else from the unit's geometry and configuration.

use crate::cdb::{InquiryCdb, view};
use crate::copy::results;
use crate::identity::{PRODUCT, REVISION, VENDOR};
use crate::limits::{
    COMPARE_AND_WRITE_BLOCKS_MAX, TRANSFER_BLOCKS_MAX, TRANSFER_BYTES_GRANULARITY, TRANSFER_BYTES_OPTIMAL,
    UNMAP_BLOCKS_MAX, UNMAP_DESCRIPTORS_MAX, WRITE_SAME_BLOCKS_MAX,
};
use crate::lun::{LogicalUnit, REPORT_LUNS_WELL_KNOWN};
use crate::reply::{Out, ParameterData, Reply};
use crate::sense::Sense;
use crate::server::DeviceServer;
use crate::task::{Head, Request, Work};
use crate::write_atomic::AtomicLimits;
use bdev::geometry::Geometry;
use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{Immutable, IntoBytes, Unaligned};

/// Peripheral qualifier and device type of a direct access block device.
const DIRECT_ACCESS: u8 = 0x00;
/// Of a well-known logical unit.
const WELL_KNOWN: u8 = 0x1E;
/// Of no unit: qualifier 011b, type 1Fh.
const NO_UNIT: u8 = 0x7F;

/// The pages there are, as page 00h lists them.
const PAGES: [u8; 8] = [0x00, 0x80, 0x83, 0x86, 0x8F, 0xB0, 0xB1, 0xB2];

/// Standard INQUIRY data (SPC-4 §6.6.2).
#[derive(IntoBytes, Immutable, Unaligned)]
#[repr(C)]
struct StandardInquiryData {
    peripheral: u8,
    /// RMB in bit 7.
    removable: u8,
    version: u8,
    /// NORMACA, HISUP, RESPONSE DATA FORMAT.
    response_data_format: u8,
    additional_length: u8,
    /// SCCS, TPGS, 3PC, PROTECT.
    flags_5: u8,
    /// ENCSERV, MULTIP.
    flags_6: u8,
    /// CMDQUE.
    flags_7: u8,
    t10_vendor_identification: [u8; 8],
    product_identification: [u8; 16],
    product_revision_level: [u8; 4],
    vendor_specific: [u8; 20],
    reserved_56: [u8; 2],
    version_descriptors: [U16; 8],
    reserved_74: [u8; 22],
}

const _: () = assert!(size_of::<StandardInquiryData>() == 96);

/// SPC-4. SPC-5 (07h) is refused by the public test suite.
const VERSION: u8 = 0x06;

/// SAM-5, SPC-4, SBC-3, iSCSI; no version claimed of any (SPC-4 table 142).
const VERSION_DESCRIPTORS: [U16; 8] = [
    U16::new(0x00A0),
    U16::new(0x0460),
    U16::new(0x04C0),
    U16::new(0x0960),
    U16::ZERO,
    U16::ZERO,
    U16::ZERO,
    U16::ZERO,
];

/// Implicit asymmetric logical unit access (TPGS=01b).
const TPGS_IMPLICIT: u8 = 0x10;
/// 3PC.
const THIRD_PARTY_COPY: u8 = 0x08;

/// INQUIRY.
pub(crate) fn inquiry(request: &Request<'_>) -> Result<Work, Sense> {
    let cdb: &InquiryCdb = view(&request.command.cdb);
    let reply = match (cdb.flags & 0x01 != 0, cdb.page_code) {
        (false, 0) => Reply::StandardInquiry,
        // Units show all pages, others the list of pages alone.
        (true, page) if PAGES.contains(&page) && (request.unit.is_some() || page == 0) => {
            Reply::VitalProductData { page }
        }
        _ => return Err(Sense::INVALID_FIELD_IN_CDB.cdb_byte(2)),
    };
    Ok(ParameterData::work(reply, u32::from(cdb.allocation_length.get())))
}

/// PERIPHERAL QUALIFIER and PERIPHERAL DEVICE TYPE of what a LUN field names.
fn peripheral(lun: Option<u16>, unit: Option<&LogicalUnit>) -> u8 {
    match (unit, lun) {
        (Some(_), _) => DIRECT_ACCESS,
        (None, Some(REPORT_LUNS_WELL_KNOWN)) => WELL_KNOWN,
        (None, _) => NO_UNIT,
    }
}

pub(crate) fn standard(lun: Option<u16>, unit: Option<&LogicalUnit>, out: &mut Out<'_>) {
    out.put(&StandardInquiryData {
        peripheral: peripheral(lun, unit),
        removable: if unit.is_some_and(|unit| unit.config.removable) { 0x80 } else { 0 },
        version: VERSION,
        response_data_format: 0x12,
        additional_length: (size_of::<StandardInquiryData>() - 5) as u8,
        flags_5: TPGS_IMPLICIT | THIRD_PARTY_COPY,
        flags_6: 0x10,
        flags_7: 0x02,
        t10_vendor_identification: *VENDOR,
        product_identification: *PRODUCT,
        product_revision_level: REVISION,
        vendor_specific: [0; 20],
        reserved_56: [0; 2],
        version_descriptors: VERSION_DESCRIPTORS,
        reserved_74: [0; 22],
    });
}

pub(crate) fn vital_product_data(
    page: u8,
    server: &DeviceServer,
    head: &Head,
    unit: Option<&LogicalUnit>,
    out: &mut Out<'_>,
) {
    out.bytes(&[peripheral(head.lun, unit), page, 0, 0]);
    match (page, unit) {
        (0x00, Some(_)) => out.bytes(&PAGES),
        (_, None) => out.bytes(&[0x00]),
        (0x80, Some(unit)) => serial_number(unit, out),
        (0x83, Some(unit)) => device_identification(server, head, unit, out),
        (0x86, Some(unit)) => extended_inquiry_data(unit.geometry(), out),
        (0x8F, Some(unit)) => results::third_party_copy_page(unit, out),
        (0xB0, Some(unit)) => out.put(&block_limits(unit.geometry())),
        (0xB1, Some(unit)) => block_device_characteristics(unit.geometry(), out),
        (_, Some(unit)) => logical_block_provisioning(unit, out),
    }
    let page_length = (out.len() - 4) as u16;
    out.patch(2, &page_length.to_be_bytes());
}

/// Page 80h (SPC-4 §7.8.10): the same through every port.
fn serial_number(unit: &LogicalUnit, out: &mut Out<'_>) {
    if unit.config.serial.is_empty() {
        out.bytes(&unit.id_digits());
    } else {
        out.bytes(unit.config.serial.as_bytes());
    }
}

/// CODE SET.
const BINARY: u8 = 1;
const ASCII: u8 = 2;
const UTF_8: u8 = 3;
/// PROTOCOL IDENTIFIER iSCSI, for designators with PIV.
const ISCSI: u8 = 0x50;
/// PIV and ASSOCIATION.
const LOGICAL_UNIT: u8 = 0x00;
const TARGET_PORT: u8 = 0x90;
const TARGET_DEVICE: u8 = 0xA0;

/// Page 83h (SPC-4 §7.8.6). The NAA id comes first; initiators that take the highest binary type find nothing else.
fn device_identification(server: &DeviceServer, head: &Head, unit: &LogicalUnit, out: &mut Out<'_>) {
    designator(out, BINARY, LOGICAL_UNIT | 3, &[&unit.naa]);
    designator(out, ASCII, LOGICAL_UNIT | 1, &[VENDOR, &unit.id_digits()]);
    let port = server.port_of(head.nexus);
    designator(out, ISCSI | BINARY, TARGET_PORT | 4, &[&[0, 0], &port.relative_port.to_be_bytes()]);
    designator(out, ISCSI | BINARY, TARGET_PORT | 5, &[&[0, 0], &port.group.to_be_bytes()]);
    let name = server.target_name.as_bytes();
    let tag = hexadecimal(port.tpgt);
    designator(out, ISCSI | UTF_8, TARGET_PORT | 8, &[name, b",t,0x", &tag, b"\0"]);
    designator(out, ISCSI | UTF_8, TARGET_DEVICE | 8, &[name, b"\0"]);
}

/// One designation descriptor. SCSI names are padded with NULs to a multiple of four (SPC-4 §7.8.6.11).
fn designator(out: &mut Out<'_>, protocol_and_code_set: u8, association_and_type: u8, parts: &[&[u8]]) {
    let bytes: usize = parts.iter().map(|part| part.len()).sum();
    let padded = if association_and_type & 0x0F == 8 { bytes.next_multiple_of(4) } else { bytes };
    // At most 223 bytes of name and 11 of port: a byte can say it.
    out.bytes(&[protocol_and_code_set, association_and_type, 0, padded as u8]);
    for part in parts {
        out.bytes(part);
    }
    out.zeroes(padded - bytes);
}

fn hexadecimal(value: u16) -> [u8; 4] {
    [12, 8, 4, 0].map(|shift| b"0123456789ABCDEF"[usize::from(value >> shift & 0xF)])
}

/// Page 86h (SPC-4 §7.8.7).
fn extended_inquiry_data(geometry: &Geometry, out: &mut Out<'_>) {
    out.bytes(&[
        0,
        // HEADSUP, ORDSUP, SIMPSUP.
        0x07,
        // V_SUP: a volatile cache.
        u8::from(geometry.write_cache),
        // LUICLR: REPORTED LUNS DATA HAS CHANGED, told by one unit, is cleared in all.
        0x01,
    ]);
    out.zeroes(0x3C - 4);
}

/// Page B0h, behind its header (SBC-3 §6.6.3).
#[derive(IntoBytes, Immutable, Unaligned)]
#[repr(C)]
struct BlockLimits {
    /// WSNZ in bit 0.
    flags: u8,
    maximum_compare_and_write_length: u8,
    optimal_transfer_length_granularity: U16,
    maximum_transfer_length: U32,
    optimal_transfer_length: U32,
    maximum_prefetch_length: U32,
    maximum_unmap_lba_count: U32,
    maximum_unmap_block_descriptor_count: U32,
    optimal_unmap_granularity: U32,
    /// UGAVALID in bit 31.
    unmap_granularity_alignment: U32,
    maximum_write_same_length: U64,
    maximum_atomic_transfer_length: U32,
    atomic_alignment: U32,
    atomic_transfer_length_granularity: U32,
    /// MAXIMUM ATOMIC TRANSFER LENGTH WITH ATOMIC BOUNDARY, MAXIMUM ATOMIC BOUNDARY SIZE: none.
    atomic_boundary: [u8; 8],
}

const _: () = assert!(size_of::<BlockLimits>() == 0x3C);

/// UGAVALID with an alignment of 0: granules are counted from LBA 0.
const GRANULES_FROM_ZERO: u32 = 0x8000_0000;

fn block_limits(geometry: &Geometry) -> BlockLimits {
    let granularity_bytes = TRANSFER_BYTES_GRANULARITY.max(geometry.physical_block_bytes);
    let thin = |value: u32| U32::new(if geometry.is_thin() { value } else { 0 });
    let atomic = AtomicLimits::of(geometry);
    BlockLimits {
        flags: 0,
        maximum_compare_and_write_length: COMPARE_AND_WRITE_BLOCKS_MAX,
        optimal_transfer_length_granularity: U16::new((granularity_bytes / geometry.block_bytes) as u16),
        maximum_transfer_length: U32::new(TRANSFER_BLOCKS_MAX),
        optimal_transfer_length: U32::new(TRANSFER_BYTES_OPTIMAL / geometry.block_bytes),
        maximum_prefetch_length: U32::ZERO,
        maximum_unmap_lba_count: thin(UNMAP_BLOCKS_MAX),
        maximum_unmap_block_descriptor_count: thin(UNMAP_DESCRIPTORS_MAX),
        optimal_unmap_granularity: thin(geometry.unmap_granularity_bytes / geometry.block_bytes),
        unmap_granularity_alignment: thin(GRANULES_FROM_ZERO),
        maximum_write_same_length: U64::new(WRITE_SAME_BLOCKS_MAX),
        maximum_atomic_transfer_length: U32::new(atomic.blocks_max),
        atomic_alignment: U32::new(atomic.granule_blocks),
        atomic_transfer_length_granularity: U32::new(atomic.granule_blocks),
        atomic_boundary: [0; 8],
    }
}

/// Page B1h (SBC-3 §6.6.2).
fn block_device_characteristics(geometry: &Geometry, out: &mut Out<'_>) {
    // MEDIUM ROTATION RATE: 0001h does not turn, 0000h is not reported.
    out.bytes(&u16::from(!geometry.rotational).to_be_bytes());
    // FUAB: FUA and SYNCHRONIZE CACHE as in SBC-3. VBULS: VERIFY compares unmapped blocks, too.
    out.bytes(&[0, 0, 0x03]);
    out.zeroes(0x3C - 5);
}

/// Page B2h (SBC-3 §6.6.4). Without thresholds the exponent is 0.
fn logical_block_provisioning(unit: &LogicalUnit, out: &mut Out<'_>) {
    if unit.geometry().is_thin() {
        let exponent = if unit.has_thresholds() { unit.threshold_exponent() } else { 0 };
        // LBPU, LBPWS, LBPWS10, LBPRZ; thin provisioned.
        out.bytes(&[exponent, 0xE0 | 0x04, 0x02, 0]);
    } else {
        out.zeroes(4);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::{NEXUS, OTHER, Offer, World, geometry, info, lun_config};
    use crate::lun::LunConfig;

    fn page(world: &mut World, page: u8) -> Vec<u8> {
        world.get(&[0x12, 1, page, 0x10, 0, 0], 4096).good().data
    }

    fn be(bytes: &[u8]) -> u64 {
        bytes.iter().fold(0, |value, &byte| value << 8 | u64::from(byte))
    }

    /// Goal: the standard data, byte by byte where initiators and the public suite look.
    #[test]
    fn standard_data_are_spc_4() {
        let mut world = World::new(geometry());
        let data = world.get(&[0x12, 0, 0, 1, 0, 0], 256).good().data;
        assert_eq!(data[..8], [0, 0, 6, 0x12, 91, 0x18, 0x10, 0x02]);
        assert_eq!(&data[8..32], b"POLLUX  VIRTUAL-DISK    ");
        assert!(data[32..36].iter().all(|byte| (0x20..=0x7E).contains(byte)));
        assert_eq!(data[58..66], [0x00, 0xA0, 0x04, 0x60, 0x04, 0xC0, 0x09, 0x60]);
        assert_eq!((data.len(), usize::from(data[4])), (96, 91));
        let mut removable = World::of(vec![LunConfig { removable: true, ..lun_config(0, geometry()) }]);
        assert_eq!(removable.get(&[0x12, 0, 0, 0, 36, 0], 36).good().data[1], 0x80);
    }

    /// Goal: allocation lengths of two bytes cut and never fail.
    #[test]
    fn allocation_length_cuts() {
        let mut world = World::new(geometry());
        let whole = world.get(&[0x12, 0, 0, 2, 0, 0], 512).good().data;
        for length in 0..=511_u16 {
            let [high, low] = length.to_be_bytes();
            let answer = world.get(&[0x12, 0, 0, high, low, 0], u32::from(length)).good();
            let want = &whole[..whole.len().min(usize::from(length))];
            assert_eq!((&answer.data[..], answer.transfer_bytes), (want, want.len() as u64));
        }
        // Less room than allocation length: the residual tells.
        let answer = world.get(&[0x12, 0, 0, 0, 96, 0], 10).good();
        assert_eq!((answer.data.len(), answer.transfer_bytes), (10, 96));
    }

    /// Goal: every listed page is there with a true length, no other is, codes ascend.
    #[test]
    fn listed_pages_are_there() {
        let mut world = World::new(geometry());
        let list = page(&mut world, 0)[4..].to_vec();
        assert!(list.is_sorted());
        for code in 0..=255 {
            if list.contains(&code) {
                let data = page(&mut world, code);
                assert_eq!((data[1], be(&data[2..4]) as usize), (code, data.len() - 4));
            } else {
                world.get(&[0x12, 1, code, 0, 255, 0], 255).bad_field(2, None);
            }
        }
        world.get(&[0x12, 0, 0x80, 0, 255, 0], 255).bad_field(2, None);
        world.get(&[0x12, 2, 0, 0, 255, 0], 255).bad_field(1, Some(7));
    }

    /// Goal: page 83h names the unit first, then the port that was asked through.
    #[test]
    fn designators_are_in_order() {
        let mut world = World::new(geometry());
        world.server.open_nexus(OTHER, info(3, false));
        let data = world.run_as(OTHER, 0, &[0x12, 1, 0x83, 4, 0, 0], 1024, &[]).good().data;
        let mut designators = Vec::new();
        let mut rest = &data[4..];
        while let [a, b, _, length, tail @ ..] = rest {
            let (designator, behind) = tail.split_at(usize::from(*length));
            designators.push((*a, *b, designator));
            rest = behind;
        }
        let naa = [0x67, 0x25, 0x07, 0x81, 0x12, 0x23, 0x34, 0x45, 0x99, 0xAA, 0xBB, 0xCC, 0xDD, 0xEE, 0, 0];
        assert_eq!(designators.len(), 6);
        assert_eq!(designators[0], (0x01, 0x03, &naa[..]));
        assert_eq!(designators[1], (0x02, 0x01, &b"POLLUX  112233445566478899aabbccddee0000"[..]));
        assert_eq!(designators[2], (0x51, 0x94, &[0, 0, 0, 3][..]));
        assert_eq!(designators[3], (0x51, 0x95, &[0, 0, 0, 7][..]));
        assert_eq!(designators[4], (0x53, 0x98, &b"iqn.2026-11.io.pollux:test,t,0x0ABC\0"[..]));
        assert_eq!(designators[5], (0x53, 0xA8, &b"iqn.2026-11.io.pollux:test\0\0"[..]));
    }

    /// Goal: serial numbers are as configured, or the id.
    #[test]
    fn serial_number_is_there() {
        let mut world = World::new(geometry());
        assert_eq!(&page(&mut world, 0x80)[4..], b"SN0");
        let config = LunConfig { serial: String::new(), ..lun_config(0, geometry()) };
        let data = page(&mut World::of(vec![config]), 0x80);
        assert_eq!(&data[4..], b"112233445566478899aabbccddee0000");
    }

    /// Goal: the limits shown are the limits checked (their own tests send each and one more), in this unit's blocks.
    #[test]
    fn limits_are_the_constants() {
        for (block_bytes, thin) in [(512, true), (4096, true), (512, false)] {
            let unmap_granularity_bytes = if thin { 1 << 16 } else { 0 };
            let shape = Geometry { block_bytes, unmap_granularity_bytes, ..geometry() };
            let mut world = World::new(Geometry { blocks: 600, ..shape });
            let limits = page(&mut world, 0xB0);
            assert_eq!(limits.len(), 0x40);
            assert_eq!(limits[4..6], [0, COMPARE_AND_WRITE_BLOCKS_MAX]);
            assert_eq!(be(&limits[6..8]), 4096 / u64::from(block_bytes));
            assert_eq!(be(&limits[8..12]), u64::from(TRANSFER_BLOCKS_MAX));
            assert_eq!(be(&limits[12..16]), (1 << 20) / u64::from(block_bytes));
            let unmap =
                if thin { [0xFFFF_FFFF, 256, 65_536 / u64::from(block_bytes), 0x8000_0000] } else { [0; 4] };
            for (index, want) in unmap.into_iter().enumerate() {
                assert_eq!(be(&limits[20 + 4 * index..][..4]), want);
            }
            assert_eq!(be(&limits[36..44]), WRITE_SAME_BLOCKS_MAX);
            assert!(limits[44..].iter().all(|&byte| byte == 0));
            assert_eq!(page(&mut world, 0xB1)[4..9], [0, 1, 0, 0, 3]);
            let provisioning = if thin { [0, 0xE4, 2, 0] } else { [0; 4] };
            assert_eq!(page(&mut world, 0xB2)[4..], provisioning);
        }
    }

    /// Goal: where no unit is, INQUIRY says so with GOOD; the well-known unit says what it is.
    #[test]
    fn absent_units_answer() {
        let mut world = World::of(vec![lun_config(5, geometry())]);
        let mut ask = |lun: [u8; 8], cdb: &[u8]| {
            world.run(NEXUS, &Offer { lun, cdb: cdb.to_vec(), room: 255, data: &[], data_bytes: 0 })
        };
        let absent = [0; 8];
        assert_eq!(ask(absent, &[0x12, 0, 0, 0, 255, 0]).good().data[0], 0x7F);
        assert_eq!(ask(absent, &[0x12, 1, 0, 0, 255, 0]).good().data, [0x7F, 0, 0, 1, 0]);
        ask(absent, &[0x12, 1, 0x83, 0, 255, 0]).bad_field(2, None);
        assert_eq!(ask([0xFF; 8], &[0x12, 0, 0, 0, 255, 0]).good().data[0], 0x7F);
        ask(absent, &[0x00, 0, 0, 0, 0, 0]).bad(0x5_2500);
        ask(absent, &[0xFF, 0, 0, 0, 0, 0]).bad(0x5_2500);
        let well_known = [0xC1, 1, 0, 0, 0, 0, 0, 0];
        assert_eq!(ask(well_known, &[0x12, 0, 0, 0, 255, 0]).good().data[0], 0x1E);
        ask(well_known, &[0x00, 0, 0, 0, 0, 0]).good();
        ask(well_known, &[0x28, 0, 0, 0, 0, 0, 0, 0, 0, 0]).bad(0x5_2000);
    }
}
