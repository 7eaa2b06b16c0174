//! The parameter list of EXTENDED COPY (SPC-4 §6.3.2, §6.4.1): what it asks for, once its form is right. Nothing here knows
//! which units there are.

use crate::limits::{COPY_CSCDS_MAX, COPY_DESCRIPTOR_BYTES_MAX, COPY_SEGMENTS_MAX};
use crate::sense::Sense;
use smallvec::SmallVec;
use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// Header of EXTENDED COPY(LID1).
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Lid1Header {
    list_identifier: u8,
    /// STR, LIST ID USAGE, PRIORITY.
    flags: u8,
    cscd_descriptor_list_length: U16,
    reserved: [u8; 4],
    segment_descriptor_list_length: U32,
    inline_data_length: U32,
}

const _: () = assert!(size_of::<Lid1Header>() == LID1_HEADER_BYTES);

/// Header of EXTENDED COPY(LID4).
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Lid4Header {
    parameter_list_format: u8,
    /// STR, LIST ID USAGE, PRIORITY.
    flags: u8,
    header_cscd_descriptor_list_length: U16,
    reserved_4: [u8; 11],
    /// IMMED, G_SENSE.
    flags_15: u8,
    header_cscd_descriptor_type_code: u8,
    reserved_17: [u8; 3],
    list_identifier: U32,
    reserved_24: [u8; 18],
    cscd_descriptor_list_length: U16,
    segment_descriptor_list_length: U16,
    inline_data_length: U16,
}

const _: () = assert!(size_of::<Lid4Header>() == LID4_HEADER_BYTES);

pub(crate) const LID1_HEADER_BYTES: usize = 16;
pub(crate) const LID4_HEADER_BYTES: usize = 48;

/// Identification descriptor CSCD descriptor (SPC-4 §6.4.5.4).
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct IdentificationCscd {
    descriptor_type_code: u8,
    /// LU ID TYPE and NUL, which are obsolete, and PERIPHERAL DEVICE TYPE.
    flags: u8,
    relative_initiator_port_identifier: U16,
    /// CODE SET in bits 3 to 0.
    code_set: u8,
    /// ASSOCIATION in bits 5 and 4, DESIGNATOR TYPE below.
    designator_type: u8,
    reserved: u8,
    designator_length: u8,
    designator: [u8; 20],
    /// PAD.
    device_type_specific: u8,
    disk_block_length: [u8; 3],
}

const _: () = assert!(size_of::<IdentificationCscd>() == CSCD_BYTES);
const CSCD_BYTES: usize = 32;

/// Block device to block device segment descriptor (SPC-4 §6.4.6.4).
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct BlockToBlock {
    descriptor_type_code: u8,
    /// DC, CAT.
    flags: u8,
    descriptor_length: U16,
    source_cscd: U16,
    destination_cscd: U16,
    reserved: U16,
    number_of_blocks: U16,
    source_lba: U64,
    destination_lba: U64,
}

/// Block device to block device with offset (SPC-4 §6.4.6.9).
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct BlockToBlockOffset {
    descriptor_type_code: u8,
    /// CAT.
    flags: u8,
    descriptor_length: U16,
    source_cscd: U16,
    destination_cscd: U16,
    number_of_bytes: U32,
    source_lba: U64,
    destination_lba: U64,
    source_byte_offset: U16,
    destination_byte_offset: U16,
}

/// Segment descriptor types, ascending.
pub(crate) const BLOCK_TO_BLOCK: u8 = 0x02;
pub(crate) const BLOCK_TO_BLOCK_OFFSET: u8 = 0x0A;
/// The CSCD descriptor's.
pub(crate) const IDENTIFICATION: u8 = 0xE4;
/// The CSCD that is the unit which has the command.
pub(crate) const THIS_UNIT: u16 = 0xFFFF;

/// DC of type 02h: blocks are the destination's.
const DC: u8 = 0x02;
/// IMMED of the LID4 header.
const IMMED: u8 = 0x02;

/// What a list identifier is for (SPC-4 §6.3.2.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ListUse {
    /// The copy can be asked about by this identifier.
    Named(u32),
    /// It can't.
    Unnamed,
}

/// One source or destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cscd {
    /// The unit's NAA designator.
    pub(crate) naa: [u8; 16],
    /// Length of its blocks; 0: not said.
    pub(crate) block_bytes: u32,
    /// Where in the list it stands.
    pub(crate) at: u16,
}

/// How much one segment copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Amount {
    /// Blocks of the source.
    SourceBlocks(u16),
    /// Blocks of the destination.
    DestinationBlocks(u16),
    /// Bytes, and the offsets of both ranges from their first block.
    Bytes { bytes: u32, source_offset: u16, destination_offset: u16 },
}

/// One range to be copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    /// Index of a CSCD, or [`THIS_UNIT`].
    pub(crate) source: u16,
    pub(crate) destination: u16,
    pub(crate) amount: Amount,
    pub(crate) source_lba: u64,
    pub(crate) destination_lba: u64,
    /// Where in the list it stands.
    pub(crate) at: u16,
}

impl Segment {
    /// The byte of the descriptor with the amount.
    pub(crate) fn amount_byte(&self) -> u16 {
        if matches!(self.amount, Amount::Bytes { .. }) { 8 } else { 10 }
    }
}

/// All that is asked for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct CopyList {
    pub(crate) list: ListUse,
    /// The command is answered when the list is found right, and the copy goes on in the background.
    pub(crate) immediate: bool,
    pub(crate) cscds: SmallVec<[Cscd; 2]>,
    pub(crate) segments: SmallVec<[Segment; 1]>,
}

/// Reads a parameter list.
///
/// # Errors
/// The first thing that is wrong with its form, in the order that initiators expect.
pub(crate) fn parse(list: &[u8], four_byte_id: bool) -> Result<CopyList, Sense> {
    let header = if four_byte_id { lid4_header(list)? } else { lid1_header(list)? };
    let Header { bytes, flags, immediate, id, cscd_bytes, segment_bytes, inline_bytes, at } = header;
    let list_use = match flags >> 3 & 3 {
        0b00 | 0b10 => ListUse::Named(id),
        0b11 if id != 0 => return Err(Sense::INVALID_FIELD_IN_PARAMETER_LIST.list_byte(at.id)),
        // Nobody could ask how it ended (SPC-4 §6.4.3).
        0b11 if immediate => return Err(Sense::INVALID_FIELD_IN_PARAMETER_LIST.list_bit(15, 1)),
        0b11 => ListUse::Unnamed,
        _ => return Err(Sense::INVALID_FIELD_IN_PARAMETER_LIST.list_bit(1, 4)),
    };
    let descriptor_bytes = u64::from(cscd_bytes) + u64::from(segment_bytes);
    if descriptor_bytes > u64::from(COPY_DESCRIPTOR_BYTES_MAX) {
        return Err(Sense::PARAMETER_LIST_LENGTH_ERROR);
    }
    if inline_bytes != 0 {
        return Err(Sense::INLINE_DATA_LENGTH_EXCEEDED.list_byte(at.inline));
    }
    if !(cscd_bytes as usize).is_multiple_of(CSCD_BYTES) {
        return Err(Sense::INVALID_FIELD_IN_PARAMETER_LIST.list_byte(at.cscds));
    }
    if cscd_bytes as usize / CSCD_BYTES > usize::from(COPY_CSCDS_MAX) {
        return Err(Sense::TOO_MANY_TARGET_DESCRIPTORS.list_byte(at.cscds));
    }
    let rest = &list[bytes..];
    if rest.len() < descriptor_bytes as usize {
        return Err(Sense::PARAMETER_LIST_LENGTH_ERROR);
    }
    let (cscds, rest) = rest.split_at(cscd_bytes as usize);
    let cscds = cscds.chunks_exact(CSCD_BYTES).enumerate();
    let cscds = cscds.map(|(index, cscd)| parse_cscd(cscd, (bytes + index * CSCD_BYTES) as u16));
    let cscds = cscds.collect::<Result<_, _>>()?;
    let mut segments = SmallVec::new();
    let mut left = &rest[..segment_bytes as usize];
    let mut place = bytes + cscd_bytes as usize;
    while !left.is_empty() {
        if segments.len() == usize::from(COPY_SEGMENTS_MAX) {
            return Err(Sense::TOO_MANY_SEGMENT_DESCRIPTORS.list_byte(at.segments));
        }
        let (segment, used) = parse_segment(left, place as u16)?;
        segments.push(segment);
        left = &left[used..];
        place += used;
    }
    Ok(CopyList { list: list_use, immediate, cscds, segments })
}

/// Where the headers have their fields.
struct Places {
    id: u16,
    cscds: u16,
    segments: u16,
    inline: u16,
}

/// What both headers say.
struct Header {
    bytes: usize,
    flags: u8,
    immediate: bool,
    id: u32,
    cscd_bytes: u32,
    segment_bytes: u32,
    inline_bytes: u32,
    at: Places,
}

fn lid1_header(list: &[u8]) -> Result<Header, Sense> {
    let Ok((header, _)) = Lid1Header::ref_from_prefix(list) else {
        return Err(Sense::PARAMETER_LIST_LENGTH_ERROR);
    };
    Ok(Header {
        bytes: LID1_HEADER_BYTES,
        flags: header.flags,
        immediate: false,
        id: u32::from(header.list_identifier),
        cscd_bytes: u32::from(header.cscd_descriptor_list_length.get()),
        segment_bytes: header.segment_descriptor_list_length.get(),
        inline_bytes: header.inline_data_length.get(),
        at: Places { id: 0, cscds: 2, segments: 8, inline: 12 },
    })
}

fn lid4_header(list: &[u8]) -> Result<Header, Sense> {
    let Ok((header, _)) = Lid4Header::ref_from_prefix(list) else {
        return Err(Sense::PARAMETER_LIST_LENGTH_ERROR);
    };
    let wrong = Sense::INVALID_FIELD_IN_PARAMETER_LIST;
    if header.parameter_list_format != 0x01 {
        return Err(wrong.list_byte(0));
    }
    if header.header_cscd_descriptor_list_length.get() != 0x20 {
        return Err(wrong.list_byte(2));
    }
    if header.header_cscd_descriptor_type_code != 0xFF {
        return Err(wrong.list_byte(16));
    }
    Ok(Header {
        bytes: LID4_HEADER_BYTES,
        flags: header.flags,
        immediate: header.flags_15 & IMMED != 0,
        id: header.list_identifier.get(),
        cscd_bytes: u32::from(header.cscd_descriptor_list_length.get()),
        segment_bytes: u32::from(header.segment_descriptor_list_length.get()),
        inline_bytes: u32::from(header.inline_data_length.get()),
        at: Places { id: 20, cscds: 42, segments: 44, inline: 46 },
    })
}

fn parse_cscd(bytes: &[u8], at: u16) -> Result<Cscd, Sense> {
    let Ok((cscd, _)) = IdentificationCscd::ref_from_prefix(bytes) else {
        return Err(Sense::PARAMETER_LIST_LENGTH_ERROR);
    };
    if cscd.descriptor_type_code != IDENTIFICATION {
        return Err(Sense::UNSUPPORTED_TARGET_DESCRIPTOR_TYPE_CODE.list_byte(at));
    }
    let wrong = |byte: u16| Err(Sense::INVALID_FIELD_IN_PARAMETER_LIST.list_byte(at + byte));
    if cscd.flags & 0x1F != 0 {
        return wrong(1);
    }
    // Binary, of the unit itself, NAA: what page 83h names units by first.
    if cscd.code_set & 0x0F != 1 {
        return wrong(4);
    }
    if cscd.designator_type & 0x3F != 3 {
        return wrong(5);
    }
    let Some((naa, _)) = cscd.designator.split_first_chunk::<16>().filter(|_| cscd.designator_length == 16)
    else {
        return wrong(7);
    };
    let [high, middle, low] = cscd.disk_block_length;
    Ok(Cscd { naa: *naa, block_bytes: u32::from_be_bytes([0, high, middle, low]), at })
}

/// The first segment descriptor, and how many bytes it has.
fn parse_segment(bytes: &[u8], at: u16) -> Result<(Segment, usize), Sense> {
    let wrong_length = Sense::INVALID_FIELD_IN_PARAMETER_LIST.list_byte(at + 2);
    let short = Sense::PARAMETER_LIST_LENGTH_ERROR;
    let (amount, ends, lbas, length, own_length) = match bytes[0] {
        BLOCK_TO_BLOCK => {
            let (segment, _) = BlockToBlock::ref_from_prefix(bytes).map_err(|_| short)?;
            let blocks = segment.number_of_blocks.get();
            let amount = match segment.flags & DC {
                0 => Amount::SourceBlocks(blocks),
                _ => Amount::DestinationBlocks(blocks),
            };
            let ends = (segment.source_cscd, segment.destination_cscd);
            let lbas = (segment.source_lba, segment.destination_lba);
            (amount, ends, lbas, segment.descriptor_length, size_of::<BlockToBlock>())
        }
        BLOCK_TO_BLOCK_OFFSET => {
            let (segment, _) = BlockToBlockOffset::ref_from_prefix(bytes).map_err(|_| short)?;
            let amount = Amount::Bytes {
                bytes: segment.number_of_bytes.get(),
                source_offset: segment.source_byte_offset.get(),
                destination_offset: segment.destination_byte_offset.get(),
            };
            let ends = (segment.source_cscd, segment.destination_cscd);
            let lbas = (segment.source_lba, segment.destination_lba);
            (amount, ends, lbas, segment.descriptor_length, size_of::<BlockToBlockOffset>())
        }
        _ => return Err(Sense::UNSUPPORTED_SEGMENT_DESCRIPTOR_TYPE_CODE.list_byte(at)),
    };
    if usize::from(length.get()) != own_length - 4 {
        return Err(wrong_length);
    }
    let segment = Segment {
        source: ends.0.get(),
        destination: ends.1.get(),
        amount,
        source_lba: lbas.0.get(),
        destination_lba: lbas.1.get(),
        at,
    };
    Ok((segment, own_length))
}
