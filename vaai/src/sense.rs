//! Status and sense data (SPC-4 §4.5): what went wrong as a value, and the value as bytes.

use bdev::error::IoError;
use bdev::io::Op;
use smallvec::SmallVec;

/// SAM-5 §5.3.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// Done.
    Good = 0x00,
    /// See the sense data.
    CheckCondition = 0x02,
    /// Try again.
    Busy = 0x08,
    /// Somebody else's.
    ReservationConflict = 0x18,
    /// Too many commands.
    TaskSetFull = 0x28,
    /// Aborted by another nexus (TAS=1).
    TaskAborted = 0x40,
}

/// Sense data as they go on the wire.
pub type SenseBytes = SmallVec<[u8; 36]>;

/// SPC-4 table 48.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum SenseKey {
    /// Nothing to say.
    NoSense = 0x0,
    /// Not accessible, e.g. no medium.
    NotReady = 0x2,
    /// The medium failed.
    MediumError = 0x3,
    /// The device failed.
    HardwareError = 0x4,
    /// The command is wrong.
    IllegalRequest = 0x5,
    /// Something happened that this nexus has to know first.
    UnitAttention = 0x6,
    /// The blocks are protected, or have no space.
    DataProtect = 0x7,
    /// A third-party copy ended before all of it was done.
    CopyAborted = 0xA,
    /// Try again.
    AbortedCommand = 0xB,
    /// Data differ from the medium.
    Miscompare = 0xE,
}

/// Which byte and bit of the CDB or the parameter list is wrong (SPC-4 §4.5.2.4.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FieldPointer {
    /// In the CDB; otherwise in the parameter list.
    pub in_cdb: bool,
    /// The field's first byte.
    pub byte: u16,
    /// The field's leftmost bit, if it does not begin with its byte.
    pub bit: Option<u8>,
}

/// Where a third-party copy failed (SPC-4 §6.4.3.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyFailure {
    /// The segment descriptor that was being worked on, from 0.
    pub segment: u16,
    /// The byte of that descriptor that could not be followed: SENSE KEY SPECIFIC with SD=1.
    pub field: Option<u16>,
    /// What a source or a destination said.
    pub forwarded: Option<Forwarded>,
}

/// CHECK CONDITION of a unit that a copy reads or writes, as the copy's own sense data carries it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forwarded {
    /// It is the destination's; otherwise the source's.
    pub of_destination: bool,
    /// SENSE KEY.
    pub key: SenseKey,
    /// ADDITIONAL SENSE CODE and its qualifier.
    pub asc: [u8; 2],
}

/// Why a command did not end in GOOD.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sense {
    /// CHECK CONDITION, or RESERVATION CONFLICT, which has no sense data.
    pub status: Status,
    /// SENSE KEY.
    pub key: SenseKey,
    /// ADDITIONAL SENSE CODE.
    pub asc: u8,
    /// ADDITIONAL SENSE CODE QUALIFIER.
    pub ascq: u8,
    /// INFORMATION: an LBA or a byte offset, by what went wrong.
    pub information: Option<u64>,
    /// SENSE KEY SPECIFIC, with ILLEGAL REQUEST.
    pub pointer: Option<FieldPointer>,
    /// With COPY ABORTED.
    pub copy: Option<CopyFailure>,
}

impl Sense {
    /// No sense data, but RESERVATION CONFLICT.
    pub const RESERVATION_CONFLICT: Sense = Sense { status: Status::ReservationConflict, ..Sense::NO_SENSE };
    /// 0h 00h/00h.
    pub const NO_SENSE: Sense = Sense::new(SenseKey::NoSense, 0x00, 0x00);
    /// 2h 3Ah/00h.
    pub const MEDIUM_NOT_PRESENT: Sense = Sense::new(SenseKey::NotReady, 0x3A, 0x00);
    /// 3h 0Ch/00h.
    pub const WRITE_ERROR: Sense = Sense::new(SenseKey::MediumError, 0x0C, 0x00);
    /// 3h 11h/00h.
    pub const UNRECOVERED_READ_ERROR: Sense = Sense::new(SenseKey::MediumError, 0x11, 0x00);
    /// 4h 44h/00h.
    pub const INTERNAL_TARGET_FAILURE: Sense = Sense::new(SenseKey::HardwareError, 0x44, 0x00);
    /// 5h 0Eh/03h.
    pub const INVALID_FIELD_IN_COMMAND_INFORMATION_UNIT: Sense =
        Sense::new(SenseKey::IllegalRequest, 0x0E, 0x03);
    /// 5h 1Ah/00h.
    pub const PARAMETER_LIST_LENGTH_ERROR: Sense = Sense::new(SenseKey::IllegalRequest, 0x1A, 0x00);
    /// 5h 20h/00h.
    pub const INVALID_COMMAND_OPERATION_CODE: Sense = Sense::new(SenseKey::IllegalRequest, 0x20, 0x00);
    /// 5h 21h/00h.
    pub const LBA_OUT_OF_RANGE: Sense = Sense::new(SenseKey::IllegalRequest, 0x21, 0x00);
    /// 5h 24h/00h.
    pub const INVALID_FIELD_IN_CDB: Sense = Sense::new(SenseKey::IllegalRequest, 0x24, 0x00);
    /// 5h 25h/00h.
    pub const LOGICAL_UNIT_NOT_SUPPORTED: Sense = Sense::new(SenseKey::IllegalRequest, 0x25, 0x00);
    /// 5h 26h/00h.
    pub const INVALID_FIELD_IN_PARAMETER_LIST: Sense = Sense::new(SenseKey::IllegalRequest, 0x26, 0x00);
    /// 5h 26h/04h.
    pub const INVALID_RELEASE_OF_PERSISTENT_RESERVATION: Sense =
        Sense::new(SenseKey::IllegalRequest, 0x26, 0x04);
    /// 5h 39h/00h.
    pub const SAVING_PARAMETERS_NOT_SUPPORTED: Sense = Sense::new(SenseKey::IllegalRequest, 0x39, 0x00);
    /// 5h 49h/00h.
    pub const INVALID_MESSAGE_ERROR: Sense = Sense::new(SenseKey::IllegalRequest, 0x49, 0x00);
    /// 5h 53h/02h.
    pub const MEDIUM_REMOVAL_PREVENTED: Sense = Sense::new(SenseKey::IllegalRequest, 0x53, 0x02);
    /// 5h 55h/03h.
    pub const INSUFFICIENT_RESOURCES: Sense = Sense::new(SenseKey::IllegalRequest, 0x55, 0x03);
    /// 5h 55h/04h.
    pub const INSUFFICIENT_REGISTRATION_RESOURCES: Sense = Sense::new(SenseKey::IllegalRequest, 0x55, 0x04);
    /// 5h 55h/0Dh.
    pub const INSUFFICIENT_RESOURCES_FOR_TOKEN: Sense = Sense::new(SenseKey::IllegalRequest, 0x55, 0x0D);
    /// 5h 23h/01h.
    pub const UNSUPPORTED_TOKEN_TYPE: Sense = Sense::new(SenseKey::IllegalRequest, 0x23, 0x01);
    /// 5h 23h/02h.
    pub const REMOTE_TOKEN_USAGE_NOT_SUPPORTED: Sense = Sense::new(SenseKey::IllegalRequest, 0x23, 0x02);
    /// 5h 23h/04h.
    pub const TOKEN_UNKNOWN: Sense = Sense::new(SenseKey::IllegalRequest, 0x23, 0x04);
    /// 5h 23h/05h.
    pub const TOKEN_CORRUPT: Sense = Sense::new(SenseKey::IllegalRequest, 0x23, 0x05);
    /// 5h 23h/06h.
    pub const TOKEN_REVOKED: Sense = Sense::new(SenseKey::IllegalRequest, 0x23, 0x06);
    /// 5h 23h/07h.
    pub const TOKEN_EXPIRED: Sense = Sense::new(SenseKey::IllegalRequest, 0x23, 0x07);
    /// 5h 23h/09h.
    pub const TOKEN_DELETED: Sense = Sense::new(SenseKey::IllegalRequest, 0x23, 0x09);
    /// 5h 23h/0Ah.
    pub const INVALID_TOKEN_LENGTH: Sense = Sense::new(SenseKey::IllegalRequest, 0x23, 0x0A);
    /// 7h 27h/00h.
    pub const WRITE_PROTECTED: Sense = Sense::new(SenseKey::DataProtect, 0x27, 0x00);
    /// 7h 27h/02h.
    pub const LOGICAL_UNIT_SOFTWARE_WRITE_PROTECTED: Sense = Sense::new(SenseKey::DataProtect, 0x27, 0x02);
    /// 7h 27h/07h: ESXi stuns the virtual machine and lets it go on when there is space again.
    pub const SPACE_ALLOCATION_FAILED: Sense = Sense::new(SenseKey::DataProtect, 0x27, 0x07);
    /// 5h 00h/16h.
    pub const OPERATION_IN_PROGRESS: Sense = Sense::new(SenseKey::IllegalRequest, 0x00, 0x16);
    /// 5h 26h/06h.
    pub const TOO_MANY_TARGET_DESCRIPTORS: Sense = Sense::new(SenseKey::IllegalRequest, 0x26, 0x06);
    /// 5h 26h/07h.
    pub const UNSUPPORTED_TARGET_DESCRIPTOR_TYPE_CODE: Sense =
        Sense::new(SenseKey::IllegalRequest, 0x26, 0x07);
    /// 5h 26h/08h.
    pub const TOO_MANY_SEGMENT_DESCRIPTORS: Sense = Sense::new(SenseKey::IllegalRequest, 0x26, 0x08);
    /// 5h 26h/09h.
    pub const UNSUPPORTED_SEGMENT_DESCRIPTOR_TYPE_CODE: Sense =
        Sense::new(SenseKey::IllegalRequest, 0x26, 0x09);
    /// 5h 26h/0Bh.
    pub const INLINE_DATA_LENGTH_EXCEEDED: Sense = Sense::new(SenseKey::IllegalRequest, 0x26, 0x0B);
    /// Ah 00h/00h.
    pub const COPY_ABORTED: Sense = Sense::new(SenseKey::CopyAborted, 0x00, 0x00);
    /// Ah 08h/04h.
    pub const UNREACHABLE_COPY_TARGET: Sense = Sense::new(SenseKey::CopyAborted, 0x08, 0x04);
    /// Ah 0Dh/01h.
    pub const THIRD_PARTY_DEVICE_FAILURE: Sense = Sense::new(SenseKey::CopyAborted, 0x0D, 0x01);
    /// Ah 0Dh/02h.
    pub const COPY_TARGET_DEVICE_NOT_REACHABLE: Sense = Sense::new(SenseKey::CopyAborted, 0x0D, 0x02);
    /// Ah 26h/0Ah.
    pub const UNEXPECTED_INEXACT_SEGMENT: Sense = Sense::new(SenseKey::CopyAborted, 0x26, 0x0A);
    /// Eh 1Dh/00h.
    pub const MISCOMPARE: Sense = Sense::new(SenseKey::Miscompare, 0x1D, 0x00);

    /// Without information or pointer.
    pub const fn new(key: SenseKey, asc: u8, ascq: u8) -> Sense {
        Sense { status: Status::CheckCondition, key, asc, ascq, information: None, pointer: None, copy: None }
    }

    /// With the segment descriptor that a copy failed in.
    pub const fn in_segment(self, segment: u16) -> Sense {
        Sense { copy: Some(CopyFailure { segment, field: None, forwarded: None }), ..self }
    }

    /// With the byte of that descriptor that could not be followed.
    pub const fn segment_byte(self, byte: u16) -> Sense {
        match self.copy {
            Some(copy) => Sense { copy: Some(CopyFailure { field: Some(byte), ..copy }), ..self },
            None => self,
        }
    }

    /// With what a source or a destination of the copy said.
    pub const fn forwarding(self, said: Sense, of_destination: bool) -> Sense {
        match self.copy {
            Some(copy) => {
                let asc = [said.asc, said.ascq];
                let forwarded = Some(Forwarded { of_destination, key: said.key, asc });
                Sense { copy: Some(CopyFailure { forwarded, ..copy }), ..self }
            }
            None => self,
        }
    }

    /// With the INFORMATION field.
    pub const fn at(self, information: u64) -> Sense {
        Sense { information: Some(information), ..self }
    }

    /// Pointing at a whole byte, or at the first byte of a field, of the CDB.
    pub const fn cdb_byte(self, byte: u16) -> Sense {
        Sense { pointer: Some(FieldPointer { in_cdb: true, byte, bit: None }), ..self }
    }

    /// Pointing at a field that begins with `bit` of a CDB byte.
    pub const fn cdb_bit(self, byte: u16, bit: u8) -> Sense {
        Sense { pointer: Some(FieldPointer { in_cdb: true, byte, bit: Some(bit) }), ..self }
    }

    /// Pointing at a whole byte, or at the first byte of a field, of the parameter list.
    pub const fn list_byte(self, byte: u16) -> Sense {
        Sense { pointer: Some(FieldPointer { in_cdb: false, byte, bit: None }), ..self }
    }

    /// Pointing at a field that begins with `bit` of a parameter list byte.
    pub const fn list_bit(self, byte: u16, bit: u8) -> Sense {
        Sense { pointer: Some(FieldPointer { in_cdb: false, byte, bit: Some(bit) }), ..self }
    }

    /// What an IO's failure is in SCSI's terms: the operation tells a read error from a write error, and the
    /// LBA is where the medium failed.
    pub fn of_io(error: IoError, op: Op, lba: u64) -> Sense {
        match error {
            IoError::Medium { errno: _ } if op.writes() => Sense::WRITE_ERROR.at(lba),
            IoError::Medium { errno: _ } | IoError::Unread { errno: _ } => Sense::from(error).at(lba),
            _ => Sense::from(error),
        }
    }

    /// The bytes: fixed format (SPC-4 §4.5.3) or, if the control page's D_SENSE asks for it, descriptor format
    /// (§4.5.2).
    pub fn to_bytes(self, descriptor: bool) -> SenseBytes {
        if descriptor { self.to_descriptor() } else { self.to_fixed() }
    }

    /// 18 bytes. An information over 32 bits can't be said and is left out (VALID=0).
    fn to_fixed(self) -> SenseBytes {
        let mut bytes = [0; 18];
        bytes[0] = 0x70;
        bytes[2] = self.key as u8;
        if let Some(information) = self.information.and_then(|information| u32::try_from(information).ok()) {
            bytes[0] |= 0x80;
            bytes[3..7].copy_from_slice(&information.to_be_bytes());
        }
        bytes[7] = 10;
        bytes[12] = self.asc;
        bytes[13] = self.ascq;
        if let Some(pointer) = self.pointer {
            bytes[15..18].copy_from_slice(&pointer.to_bytes());
        }
        let Some(copy) = self.copy else { return SenseBytes::from_slice(&bytes) };
        // COMMAND-SPECIFIC INFORMATION: where the source's, and the destination's, status and sense data begin.
        bytes[10..12].copy_from_slice(&copy.segment.to_be_bytes());
        if let Some(field) = copy.field {
            bytes[15..18].copy_from_slice(&copy_field(field));
        }
        let mut bytes = SenseBytes::from_slice(&bytes);
        if let Some(forwarded) = copy.forwarded {
            bytes[8 + usize::from(forwarded.of_destination)] = bytes.len() as u8;
            bytes.push(Status::CheckCondition as u8);
            bytes.extend_from_slice(&forwarded.to_fixed());
            bytes[7] = bytes.len() as u8 - 8;
        }
        bytes
    }

    fn to_descriptor(self) -> SenseBytes {
        let mut bytes = SenseBytes::from_slice(&[0x72, self.key as u8, self.asc, self.ascq, 0, 0, 0, 0]);
        if let Some(information) = self.information {
            bytes.extend_from_slice(&[0x00, 0x0A, 0x80, 0x00]);
            bytes.extend_from_slice(&information.to_be_bytes());
        }
        if let Some(pointer) = self.pointer {
            bytes.extend_from_slice(&[0x02, 0x06, 0x00, 0x00]);
            bytes.extend_from_slice(&pointer.to_bytes());
            bytes.push(0);
        }
        if let Some(copy) = self.copy {
            let [high, low] = copy.segment.to_be_bytes();
            bytes.extend_from_slice(&[0x01, 0x0A, 0x00, 0x00, 0, 0, high, low, 0, 0, 0, 0]);
            if let Some(field) = copy.field {
                bytes.extend_from_slice(&[0x02, 0x06, 0x00, 0x00]);
                bytes.extend_from_slice(&copy_field(field));
                bytes.push(0);
            }
            if let Some(forwarded) = copy.forwarded {
                let said = forwarded.to_fixed();
                let source = 1 + u8::from(forwarded.of_destination);
                bytes.extend_from_slice(&[0x0C, said.len() as u8 + 2, source, Status::CheckCondition as u8]);
                bytes.extend_from_slice(&said);
            }
        }
        bytes[7] = bytes.len() as u8 - 8;
        bytes
    }
}

/// SKSV, SD=1 and the field pointer of a segment descriptor (SPC-4 §4.5.2.4.4).
fn copy_field(byte: u16) -> [u8; 3] {
    let [high, low] = byte.to_be_bytes();
    [0xA0, high, low]
}

impl Forwarded {
    fn to_fixed(self) -> [u8; 18] {
        let mut bytes = [0; 18];
        (bytes[0], bytes[2], bytes[7]) = (0x70, self.key as u8, 10);
        bytes[12..14].copy_from_slice(&self.asc);
        bytes
    }
}

impl FieldPointer {
    /// SKSV, C/D, BPV, BIT POINTER, FIELD POINTER.
    fn to_bytes(self) -> [u8; 3] {
        let flags = 0x80 | u8::from(self.in_cdb) << 6 | self.bit.map_or(0, |bit| 0x08 | bit & 0x07);
        let [high, low] = self.byte.to_be_bytes();
        [flags, high, low]
    }
}

/// Linux's EROFS.
const READ_ONLY_FILE_SYSTEM: i32 = 30;

impl From<IoError> for Sense {
    fn from(error: IoError) -> Sense {
        match error {
            IoError::OutOfRange => Sense::LBA_OUT_OF_RANGE,
            IoError::OutOfSpace => Sense::SPACE_ALLOCATION_FAILED,
            IoError::Miscompare { offset_bytes } => Sense::MISCOMPARE.at(u64::from(offset_bytes)),
            IoError::Medium { errno: _ } | IoError::Unread { errno: _ } => Sense::UNRECOVERED_READ_ERROR,
            IoError::Device { errno: READ_ONLY_FILE_SYSTEM } => Sense::WRITE_PROTECTED,
            IoError::Device { errno: _ } => Sense::INTERNAL_TARGET_FAILURE,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the fixed format, byte by byte. Method: the miscompare that ESXi reads, and a field pointer.
    #[test]
    fn fixed_format_is_as_in_the_standard() {
        assert_eq!(
            Sense::MISCOMPARE.at(0x1234).to_bytes(false)[..],
            [0xF0, 0, 0x0E, 0, 0, 0x12, 0x34, 0x0A, 0, 0, 0, 0, 0x1D, 0, 0, 0, 0, 0]
        );
        assert_eq!(
            Sense::INVALID_FIELD_IN_CDB.cdb_bit(1, 7).to_bytes(false)[..],
            [0x70, 0, 5, 0, 0, 0, 0, 0x0A, 0, 0, 0, 0, 0x24, 0, 0, 0xCF, 0, 1]
        );
        assert_eq!(
            Sense::INVALID_FIELD_IN_PARAMETER_LIST.list_byte(0x102).to_bytes(false)[15..],
            [0x80, 1, 2]
        );
    }

    /// Goal: an LBA that 32 bits can't hold is left out of fixed sense and kept in descriptor sense.
    #[test]
    fn large_information_needs_the_descriptor_format() {
        let sense = Sense::UNRECOVERED_READ_ERROR.at(1 << 32);
        assert_eq!(sense.to_bytes(false)[..7], [0x70, 0, 3, 0, 0, 0, 0]);
        assert_eq!(
            sense.to_bytes(true)[..],
            [0x72, 3, 0x11, 0, 0, 0, 0, 12, 0, 10, 0x80, 0, 0, 0, 0, 1, 0, 0, 0, 0]
        );
        let both = Sense::LBA_OUT_OF_RANGE.at(7).cdb_byte(2).to_bytes(true);
        assert_eq!(both[7], 20);
        assert_eq!(both[20..], [2, 6, 0, 0, 0xC0, 0, 2, 0]);
    }

    /// Goal: a medium that fails says what failed and where.
    #[test]
    fn medium_errors_tell_reads_from_writes() {
        let error = IoError::Medium { errno: 5 };
        assert_eq!(Sense::of_io(error, Op::Read, 9), Sense::UNRECOVERED_READ_ERROR.at(9));
        assert_eq!(Sense::of_io(error, Op::Write, 9), Sense::WRITE_ERROR.at(9));
        let unread = IoError::Unread { errno: 5 };
        assert_eq!(Sense::of_io(unread, Op::CompareAndWrite, 9), Sense::UNRECOVERED_READ_ERROR.at(9));
        assert_eq!(Sense::of_io(IoError::OutOfSpace, Op::Write, 9), Sense::SPACE_ALLOCATION_FAILED);
        assert_eq!(Sense::of_io(IoError::WRITE_PROTECTED, Op::Write, 9), Sense::WRITE_PROTECTED);
    }
}
