//! ROD tokens (SPC-4), and the parameter lists of POPULATE TOKEN and WRITE USING TOKEN (SBC-3), as bytes.

use crate::cdb::check_range;
use crate::limits::{TOKEN_BYTES_MAX, TOKEN_RANGES_MAX, TOKEN_TIMEOUT_MAX_S, TOKEN_TIMEOUT_S};
use crate::sense::Sense;
use crate::token::table::{Token, TokenId};
use bdev::geometry::Geometry;
use smallvec::SmallVec;
use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// ROD types: data as they were at a point in time, which nobody else's writes change.
pub(crate) const POINT_IN_TIME: u32 = 0x0080_0000;
/// Any kind of those: asked for, never given.
const ANY_POINT_IN_TIME: u32 = 0x0080_FFFF;
/// Zeroes, as many as are asked for.
pub(crate) const ZEROES: u32 = 0xFFFF_0001;

/// Bytes of a token.
pub(crate) const TOKEN_BYTES: usize = 512;

/// Of these a ROD management token has the first, which let nobody use the data (SPC-4 §6.27).
pub(crate) const MANAGEMENT_TOKEN_BYTES: usize = 96;

/// A ROD token.
#[derive(Clone, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
#[allow(clippy::struct_field_names, reason = "the standard's words")]
pub(crate) struct RodToken {
    rod_type: U32,
    reserved_4: [u8; 2],
    rod_token_length: U16,
    copy_manager_rod_token_identifier: U64,
    /// The unit that it was made of, as an identification descriptor CSCD descriptor.
    creator_logical_unit_descriptor: [u8; 32],
    number_of_bytes_represented_high: U64,
    number_of_bytes_represented: U64,
    reserved_64: [u8; 32],
    /// From READ CAPACITY(16): block length, protection, exponents, provisioning.
    capacity: [u8; 8],
    reserved_104: [u8; 24],
    /// A designation descriptor of the target, padded.
    target_device_descriptor: [u8; 232],
    reserved_360: [u8; 120],
    /// Ours: what can't be guessed.
    secret: [u8; 32],
}

const _: () = assert!(size_of::<RodToken>() == TOKEN_BYTES);

impl std::fmt::Debug for RodToken {
    /// Without what nobody is to see.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RodToken({:?})", self.id())
    }
}

impl RodToken {
    /// As it goes to the initiator.
    pub(crate) fn of(token: &Token, target_name: &str) -> RodToken {
        let mut creator = [0; 32];
        (creator[0], creator[4], creator[5], creator[7]) = (0xE4, 1, 3, 16);
        creator[8..24].copy_from_slice(&token.naa);
        creator[29..].copy_from_slice(&token.block_bytes.to_be_bytes()[1..]);
        RodToken {
            rod_type: U32::new(POINT_IN_TIME),
            reserved_4: [0; 2],
            rod_token_length: U16::new(TOKEN_BYTES as u16 - 8),
            copy_manager_rod_token_identifier: U64::new(token.id.to_bits()),
            creator_logical_unit_descriptor: creator,
            number_of_bytes_represented_high: U64::new(0),
            number_of_bytes_represented: U64::new(token.bytes()),
            reserved_64: [0; 32],
            capacity: token.capacity,
            reserved_104: [0; 24],
            target_device_descriptor: target_descriptor(target_name),
            reserved_360: [0; 120],
            secret: *token.secret.bytes(),
        }
    }

    pub(crate) fn is_zeroes(&self) -> bool {
        self.rod_type.get() == ZEROES
    }

    /// # Errors
    /// It is no token as this target makes them.
    pub(crate) fn check_kind(&self) -> Result<(), Sense> {
        if self.rod_type.get() != POINT_IN_TIME {
            return Err(Sense::UNSUPPORTED_TOKEN_TYPE);
        }
        self.check_length()
    }

    /// # Errors
    /// Its length is not said to be what it is.
    pub(crate) fn check_length(&self) -> Result<(), Sense> {
        if usize::from(self.rod_token_length.get()) != TOKEN_BYTES - 8 {
            return Err(Sense::INVALID_TOKEN_LENGTH);
        }
        Ok(())
    }

    pub(crate) fn id(&self) -> TokenId {
        TokenId::from_bits(self.copy_manager_rod_token_identifier.get())
    }

    pub(crate) fn secret(&self) -> &[u8; 32] {
        &self.secret
    }

    /// Whether this target may have made it.
    pub(crate) fn is_of(&self, target_name: &str) -> bool {
        self.target_device_descriptor == target_descriptor(target_name)
    }
}

/// SCSI name string of the target device: binary zeroes behind it.
fn target_descriptor(target_name: &str) -> [u8; 232] {
    let mut descriptor = [0; 232];
    // 223 bytes at the most, and a NUL at least.
    let length = (target_name.len() + 1).next_multiple_of(4).min(228);
    (descriptor[0], descriptor[1], descriptor[3]) = (0x53, 0xA8, length as u8);
    for (to, from) in descriptor[4..4 + length].iter_mut().zip(target_name.bytes()) {
        *to = from;
    }
    descriptor
}

/// POPULATE TOKEN parameter list, without its descriptors. The data length counts what follows it.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct PopulateTokenList {
    populate_token_data_length: U16,
    /// RTV, IMMED.
    flags: u8,
    reserved_3: u8,
    inactivity_timeout: U32,
    rod_type: U32,
    reserved_12: [u8; 2],
    block_device_range_descriptor_list_length: U16,
}

pub(crate) const POPULATE_HEADER_BYTES: usize = 16;
const _: () = assert!(size_of::<PopulateTokenList>() == POPULATE_HEADER_BYTES);

/// WRITE USING TOKEN parameter list, without its descriptors.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct WriteUsingTokenList {
    write_using_token_data_length: U16,
    /// DEL_TKN, IMMED.
    flags: u8,
    reserved_3: [u8; 5],
    offset_into_rod: U64,
    rod_token: RodToken,
    reserved_528: [u8; 6],
    block_device_range_descriptor_list_length: U16,
}

pub(crate) const WRITE_HEADER_BYTES: usize = 536;
const _: () = assert!(size_of::<WriteUsingTokenList>() == WRITE_HEADER_BYTES);

/// Block device range descriptor.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RangeDescriptor {
    logical_block_address: U64,
    number_of_logical_blocks: U32,
    reserved: [u8; 4],
}

const RANGE_BYTES: usize = size_of::<RangeDescriptor>();
const _: () = assert!(RANGE_BYTES == 16);

/// The longest list that is looked at: one range too many is told apart from too long a list.
pub(crate) const RANGES_BYTES_MAX: usize = (TOKEN_RANGES_MAX as usize + 1) * RANGE_BYTES;

/// RTV: a ROD type is asked for. DEL_TKN is at the same place.
const RTV: u8 = 0x02;
/// IMMED of both lists: the command is answered when its list is found right.
const IMMED: u8 = 0x01;
const DEL_TKN: u8 = 0x02;

/// A range of blocks that are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) lba: u64,
    pub(crate) blocks: u64,
}

/// None is empty, and no two overlap.
pub(crate) type Ranges = SmallVec<[Range; 1]>;

/// What POPULATE TOKEN asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Populate {
    pub(crate) immediate: bool,
    pub(crate) timeout_s: u32,
    pub(crate) ranges: Ranges,
}

/// What WRITE USING TOKEN asks for.
#[derive(Debug)]
pub(crate) struct WriteUsing<'a> {
    pub(crate) immediate: bool,
    pub(crate) deletes: bool,
    /// In blocks.
    pub(crate) offset: u64,
    pub(crate) token: &'a RodToken,
    pub(crate) ranges: Ranges,
}

/// # Errors
/// The first thing that is wrong with the list.
pub(crate) fn populate(list: &[u8], geometry: &Geometry) -> Result<Populate, Sense> {
    let Ok((header, rest)) = PopulateTokenList::ref_from_prefix(list) else {
        return Err(Sense::PARAMETER_LIST_LENGTH_ERROR);
    };
    let wrong = Sense::INVALID_FIELD_IN_PARAMETER_LIST;
    let range_bytes = header.block_device_range_descriptor_list_length.get();
    check_lengths(header.populate_token_data_length.get(), range_bytes, POPULATE_HEADER_BYTES)?;
    let timeout_s = match header.inactivity_timeout.get() {
        0 => TOKEN_TIMEOUT_S,
        timeout if timeout > TOKEN_TIMEOUT_MAX_S => return Err(wrong.list_byte(4)),
        timeout => timeout,
    };
    if header.flags & RTV != 0 && !matches!(header.rod_type.get(), POINT_IN_TIME | ANY_POINT_IN_TIME) {
        return Err(wrong.list_byte(8));
    }
    let ranges = ranges(rest, range_bytes, POPULATE_HEADER_BYTES, geometry)?;
    if ranges.is_empty() {
        // A token stands for something.
        return Err(wrong.list_byte(14));
    }
    Ok(Populate { immediate: header.flags & IMMED != 0, timeout_s, ranges })
}

/// # Errors
/// The first thing that is wrong with the list; nothing is said of the token.
pub(crate) fn write_using<'a>(list: &'a [u8], geometry: &Geometry) -> Result<WriteUsing<'a>, Sense> {
    let Ok((header, rest)) = WriteUsingTokenList::ref_from_prefix(list) else {
        return Err(Sense::PARAMETER_LIST_LENGTH_ERROR);
    };
    let range_bytes = header.block_device_range_descriptor_list_length.get();
    check_lengths(header.write_using_token_data_length.get(), range_bytes, WRITE_HEADER_BYTES)?;
    let ranges = ranges(rest, range_bytes, WRITE_HEADER_BYTES, geometry)?;
    let (immediate, deletes) = (header.flags & IMMED != 0, header.flags & DEL_TKN != 0);
    Ok(WriteUsing {
        immediate,
        deletes,
        offset: header.offset_into_rod.get(),
        token: &header.rod_token,
        ranges,
    })
}

/// The list's own length has room for what it says it has.
fn check_lengths(data_length: u16, range_bytes: u16, header_bytes: usize) -> Result<(), Sense> {
    if usize::from(data_length) + 2 < header_bytes + usize::from(range_bytes) {
        return Err(Sense::INVALID_FIELD_IN_PARAMETER_LIST.list_byte(0));
    }
    if usize::from(range_bytes) < RANGE_BYTES {
        return Err(Sense::INVALID_FIELD_IN_PARAMETER_LIST.list_byte(header_bytes as u16 - 2));
    }
    Ok(())
}

fn ranges(bytes: &[u8], range_bytes: u16, header_bytes: usize, geometry: &Geometry) -> Result<Ranges, Sense> {
    let at_length = header_bytes as u16 - 2;
    let count = usize::from(range_bytes) / RANGE_BYTES;
    if count > usize::from(TOKEN_RANGES_MAX) {
        return Err(Sense::TOO_MANY_SEGMENT_DESCRIPTORS.list_byte(at_length));
    }
    let bytes = bytes.get(..count * RANGE_BYTES).ok_or(Sense::PARAMETER_LIST_LENGTH_ERROR)?;
    let mut ranges = Ranges::new();
    let mut total = 0u64;
    for (nth, bytes) in bytes.chunks_exact(RANGE_BYTES).enumerate() {
        let at = (header_bytes + nth * RANGE_BYTES) as u16;
        let Ok((range, _)) = RangeDescriptor::ref_from_prefix(bytes) else {
            return Err(Sense::PARAMETER_LIST_LENGTH_ERROR);
        };
        let (lba, blocks) =
            (range.logical_block_address.get(), u64::from(range.number_of_logical_blocks.get()));
        check_range(lba, blocks, geometry).map_err(|sense| sense.list_byte(at))?;
        if blocks == 0 {
            continue;
        }
        let meets = |other: &Range| lba < other.lba + other.blocks && other.lba < lba + blocks;
        if ranges.iter().any(meets) {
            return Err(Sense::INVALID_FIELD_IN_PARAMETER_LIST.list_byte(at));
        }
        total += blocks;
        ranges.push(Range { lba, blocks });
    }
    if total > TOKEN_BYTES_MAX / u64::from(geometry.block_bytes) {
        return Err(Sense::INVALID_FIELD_IN_PARAMETER_LIST.list_byte(at_length));
    }
    Ok(ranges)
}

/// The token that stands for zeroes, as an initiator makes it.
#[cfg(test)]
pub(crate) fn zero_token() -> RodToken {
    use zerocopy::FromZeros;
    let mut token = RodToken::new_zeroed();
    token.rod_type = U32::new(ZEROES);
    token.rod_token_length = U16::new(TOKEN_BYTES as u16 - 8);
    token
}
