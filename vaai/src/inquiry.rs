//! INQUIRY: standard data and vital product data pages (SPC-4 §6.6, §7.8; SBC-3 §6.6). All limits come from
//! `limits`, everything else from the unit's geometry and configuration.

use crate::cdb::{InquiryCdb, view};
use crate::identity::{PRODUCT, REVISION, VENDOR};
use crate::limits::{
    TRANSFER_BLOCKS_MAX, TRANSFER_BYTES_GRANULARITY, TRANSFER_BYTES_OPTIMAL, UNMAP_BLOCKS_MAX,
    UNMAP_DESCRIPTORS_MAX, WRITE_SAME_BLOCKS_MAX,
};
use crate::lun::{LogicalUnit, REPORT_LUNS_WELL_KNOWN};
use crate::reply::{Out, ParameterData, Reply};
use crate::sense::Sense;
use crate::server::DeviceServer;
use crate::task::{Head, Request, Work};
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
const PAGES: [u8; 7] = [0x00, 0x80, 0x83, 0x86, 0xB0, 0xB1, 0xB2];

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
        flags_5: TPGS_IMPLICIT,
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
        (0xB0, Some(unit)) => out.put(&block_limits(unit.geometry())),
        (0xB1, Some(unit)) => block_device_characteristics(unit.geometry(), out),
        (_, Some(unit)) => logical_block_provisioning(unit.geometry(), out),
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
        // LUICLR: what a lost nexus leaves behind is cleared for the units it has to be.
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
    reserved: [u8; 8],
}

const _: () = assert!(size_of::<BlockLimits>() == 0x3C);

/// UGAVALID with an alignment of 0: granules are counted from LBA 0.
const GRANULES_FROM_ZERO: u32 = 0x8000_0000;

fn block_limits(geometry: &Geometry) -> BlockLimits {
    let granularity_bytes = TRANSFER_BYTES_GRANULARITY.max(geometry.physical_block_bytes);
    let thin = |value: u32| U32::new(if geometry.is_thin() { value } else { 0 });
    BlockLimits {
        flags: 0,
        maximum_compare_and_write_length: 0,
        optimal_transfer_length_granularity: U16::new((granularity_bytes / geometry.block_bytes) as u16),
        maximum_transfer_length: U32::new(TRANSFER_BLOCKS_MAX),
        optimal_transfer_length: U32::new(TRANSFER_BYTES_OPTIMAL / geometry.block_bytes),
        maximum_prefetch_length: U32::ZERO,
        maximum_unmap_lba_count: thin(UNMAP_BLOCKS_MAX),
        maximum_unmap_block_descriptor_count: thin(UNMAP_DESCRIPTORS_MAX),
        optimal_unmap_granularity: thin(geometry.unmap_granularity_bytes / geometry.block_bytes),
        unmap_granularity_alignment: thin(GRANULES_FROM_ZERO),
        maximum_write_same_length: U64::new(WRITE_SAME_BLOCKS_MAX),
        maximum_atomic_transfer_length: U32::ZERO,
        atomic_alignment: U32::ZERO,
        atomic_transfer_length_granularity: U32::ZERO,
        reserved: [0; 8],
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

/// Page B2h (SBC-3 §6.6.4). No thresholds: the exponent is 0.
fn logical_block_provisioning(geometry: &Geometry, out: &mut Out<'_>) {
    if geometry.is_thin() {
        // LBPU, LBPWS, LBPWS10, LBPRZ; thin provisioned.
        out.bytes(&[0, 0xE0 | 0x04, 0x02, 0]);
    } else {
        out.zeroes(4);
    }
}
