//! PDUs on the wire: their figures (`bhs`), bytes to values (`decode`), values to bytes (`encode`).
//!
//! Here are the facts that the framing needs before anything is decoded: how much follows a basic header
//! segment. All are read from the 48 bytes alone and bounded by the width of their fields, so a receive path
//! can compare them with its limits first (RFC 7143 §11.1, §11.2).

pub mod bhs;
pub mod decode;
pub mod encode;

/// A basic header segment as it lies on the wire.
pub type Bhs = [u8; BHS_BYTES];

/// Length of every basic header segment (RFC 7143 §11.2.1).
pub const BHS_BYTES: usize = 48;

/// Length of a header or data digest (RFC 7143 §11.2.3).
pub const DIGEST_BYTES: usize = 4;

/// The longest additional header segments that a header can announce: 255 words of 4 bytes.
pub const AHS_BYTES_MAX: usize = 255 * 4;

/// The longest header with all that precedes its data segment.
pub const HEADER_BYTES_MAX: usize = BHS_BYTES + AHS_BYTES_MAX + DIGEST_BYTES;

/// Bytes of the additional header segments, always a multiple of 4 (RFC 7143 §11.2.1.5).
pub fn ahs_bytes(bhs: &Bhs) -> usize {
    usize::from(bhs[4]) * 4
}

/// Bytes from the start of the PDU to its data segment: basic header, additional headers and, if `digest`,
/// the header digest. At most [`HEADER_BYTES_MAX`].
pub fn header_bytes(bhs: &Bhs, digest: bool) -> usize {
    BHS_BYTES + ahs_bytes(bhs) + usize::from(digest) * DIGEST_BYTES
}

/// Bytes of the data segment, padding and digest not counted (RFC 7143 §11.2.1.6). Below 2^24.
pub fn data_bytes(bhs: &Bhs) -> usize {
    u32::from_be_bytes([0, bhs[5], bhs[6], bhs[7]]) as usize
}

/// Zero bytes that make a segment of `bytes` a whole number of 4-byte words (RFC 7143 §11.1).
pub fn padding(bytes: usize) -> usize {
    bytes.wrapping_neg() % 4
}

/// Bytes behind the data segment: its padding and, if there are data and `digest`, the data digest.
/// An empty data segment has neither (RFC 7143 §11.2.3).
pub fn trailer_bytes(data_bytes: usize, digest: bool) -> usize {
    if data_bytes == 0 { 0 } else { padding(data_bytes) + usize::from(digest) * DIGEST_BYTES }
}

/// What a PDU is: the low six bits of its first byte (RFC 7143 §11.2.1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Opcode {
    /// Ping, or the answer to ours.
    NopOut = 0x00,
    /// A CDB and perhaps immediate data.
    ScsiCommand = 0x01,
    /// Task management function request.
    TaskManagementRequest = 0x02,
    /// Login request.
    LoginRequest = 0x03,
    /// Text request.
    TextRequest = 0x04,
    /// Write data.
    DataOut = 0x05,
    /// Logout request.
    LogoutRequest = 0x06,
    /// Asks to send something again; only above ErrorRecoveryLevel 0.
    SnackRequest = 0x10,
    /// Ping, or the answer to the initiator's.
    NopIn = 0x20,
    /// A command's status and sense.
    ScsiResponse = 0x21,
    /// Task management function response.
    TaskManagementResponse = 0x22,
    /// Login response.
    LoginResponse = 0x23,
    /// Text response.
    TextResponse = 0x24,
    /// Read data.
    DataIn = 0x25,
    /// Logout response.
    LogoutResponse = 0x26,
    /// Ready to transfer.
    R2t = 0x31,
    /// Asynchronous message.
    AsyncMessage = 0x32,
    /// A PDU was not understood.
    Reject = 0x3f,
}

impl Opcode {
    /// The opcode of a header; `None` if RFC 7143 gives it no meaning.
    pub fn of(bhs: &Bhs) -> Option<Opcode> {
        Some(match bhs[0] & bhs::OPCODE_MASK {
            0x00 => Opcode::NopOut,
            0x01 => Opcode::ScsiCommand,
            0x02 => Opcode::TaskManagementRequest,
            0x03 => Opcode::LoginRequest,
            0x04 => Opcode::TextRequest,
            0x05 => Opcode::DataOut,
            0x06 => Opcode::LogoutRequest,
            0x10 => Opcode::SnackRequest,
            0x20 => Opcode::NopIn,
            0x21 => Opcode::ScsiResponse,
            0x22 => Opcode::TaskManagementResponse,
            0x23 => Opcode::LoginResponse,
            0x24 => Opcode::TextResponse,
            0x25 => Opcode::DataIn,
            0x26 => Opcode::LogoutResponse,
            0x31 => Opcode::R2t,
            0x32 => Opcode::AsyncMessage,
            0x3f => Opcode::Reject,
            _ => return None,
        })
    }
}

/// The Initiator Task Tag or Target Transfer Tag of a PDU (RFC 7143 §11.2.1.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TaskTag(pub u32);

impl TaskTag {
    /// The value that names nothing: no answer wanted, no transfer asked for.
    pub const RESERVED: TaskTag = TaskTag(0xffff_ffff);

    /// Whether it names nothing.
    pub fn is_reserved(self) -> bool {
        self == TaskTag::RESERVED
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Goal: lengths follow from the header alone, in bounds. Method: any header against plain arithmetic.
        #[test]
        fn lengths_are_bounded(bhs in proptest::array::uniform32(any::<u8>()), digest: bool) {
            let mut header = [0; BHS_BYTES];
            header[..32].copy_from_slice(&bhs);
            let bytes = header_bytes(&header, digest);
            prop_assert_eq!(bytes, 48 + 4 * usize::from(bhs[4]) + if digest { 4 } else { 0 });
            prop_assert!(bytes <= HEADER_BYTES_MAX);
            let data = data_bytes(&header);
            prop_assert!(data < 1 << 24);
            prop_assert_eq!((data + padding(data)) % 4, 0);
            prop_assert!(padding(data) < 4);
        }

        /// Goal: an opcode known by its number is known by its name. Method: every first byte.
        #[test]
        fn opcodes_keep_their_numbers(first: u8) {
            let mut header = [0; BHS_BYTES];
            header[0] = first;
            if let Some(opcode) = Opcode::of(&header) {
                prop_assert_eq!(opcode as u8, first & 0x3f);
            }
        }
    }

    /// Goal: no data, no digest behind them.
    #[test]
    fn an_empty_segment_has_no_trailer() {
        assert_eq!(trailer_bytes(0, true), 0);
        assert_eq!(trailer_bytes(1, true), 7);
        assert_eq!(trailer_bytes(4, true), 4);
        assert_eq!(trailer_bytes(5, false), 3);
    }
}
