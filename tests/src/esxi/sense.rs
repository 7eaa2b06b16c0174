//! Status and sense data as a host reads them, and what ESXi makes of each.
//!
//! The codes are written down here once more rather than taken from the target: a wrong one there must not be right here.

use std::fmt;

/// Statuses (SAM-5 §5.3.1).
pub const GOOD: u8 = 0x00;
/// There is sense data.
pub const CHECK_CONDITION: u8 = 0x02;
/// Not now.
pub const BUSY: u8 = 0x08;
/// Another nexus has it.
pub const RESERVATION_CONFLICT: u8 = 0x18;
/// Too many commands.
pub const TASK_SET_FULL: u8 = 0x28;
/// Another nexus has aborted it.
pub const TASK_ABORTED: u8 = 0x40;

/// SENSE KEY, ADDITIONAL SENSE CODE and its qualifier.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Code(pub u8, pub u8, pub u8);

impl Code {
    /// 5h 20h/00h.
    pub const INVALID_OPCODE: Code = Code(0x5, 0x20, 0x00);
    /// 5h 21h/00h.
    pub const LBA_OUT_OF_RANGE: Code = Code(0x5, 0x21, 0x00);
    /// 5h 24h/00h.
    pub const INVALID_FIELD_IN_CDB: Code = Code(0x5, 0x24, 0x00);
    /// 5h 25h/00h.
    pub const LOGICAL_UNIT_NOT_SUPPORTED: Code = Code(0x5, 0x25, 0x00);
    /// 5h 26h/08h.
    pub const TOO_MANY_SEGMENTS: Code = Code(0x5, 0x26, 0x08);
    /// 6h 29h/00h.
    pub const POWER_ON: Code = Code(0x6, 0x29, 0x00);
    /// 6h 29h/03h.
    pub const BUS_DEVICE_RESET: Code = Code(0x6, 0x29, 0x03);
    /// 6h 29h/07h.
    pub const NEXUS_LOSS: Code = Code(0x6, 0x29, 0x07);
    /// 7h 27h/07h.
    pub const SPACE_ALLOCATION_FAILED: Code = Code(0x7, 0x27, 0x07);
    /// Ah 0Dh/02h.
    pub const COPY_TARGET_NOT_REACHABLE: Code = Code(0xA, 0x0D, 0x02);
    /// Eh 1Dh/00h.
    pub const MISCOMPARE: Code = Code(0xE, 0x1D, 0x00);
    /// The key of a copy that ended before all of it was done.
    pub const COPY_ABORTED_KEY: u8 = 0xA;
}

/// Code, its name, and what ESXi does when it hears it.
#[rustfmt::skip]
const KNOWN: [(Code, &str, &str); 18] = [
    (Code::INVALID_OPCODE, "INVALID COMMAND OPERATION CODE", "takes the command as unsupported; of a VAAI primitive until the next rescan"),
    (Code::LBA_OUT_OF_RANGE, "LOGICAL BLOCK ADDRESS OUT OF RANGE", "fails the IO of the virtual machine"),
    (Code::INVALID_FIELD_IN_CDB, "INVALID FIELD IN CDB", "takes the page or primitive as unsupported"),
    (Code::LOGICAL_UNIT_NOT_SUPPORTED, "LOGICAL UNIT NOT SUPPORTED", "declares permanent device loss (PDL) if all paths say so, and ends virtual machines"),
    (Code(0x5, 0x26, 0x00), "INVALID FIELD IN PARAMETER LIST", "copies with its own data mover"),
    (Code::TOO_MANY_SEGMENTS, "TOO MANY SEGMENT DESCRIPTORS", "copies with its own data mover"),
    (Code::POWER_ON, "POWER ON, RESET, OR BUS DEVICE RESET OCCURRED", "takes note and sends the command again"),
    (Code::BUS_DEVICE_RESET, "BUS DEVICE RESET FUNCTION OCCURRED", "takes note and sends the command again"),
    (Code::NEXUS_LOSS, "I_T NEXUS LOSS OCCURRED", "takes note and sends the command again"),
    (Code(0x6, 0x2A, 0x09), "CAPACITY DATA HAS CHANGED", "reads the capacity again"),
    (Code(0x6, 0x3F, 0x0E), "REPORTED LUNS DATA HAS CHANGED", "scans the target again"),
    (Code(0x2, 0x04, 0x0A), "NOT READY, TRANSITION", "waits and tries again, on another path too"),
    (Code(0x4, 0x44, 0x00), "INTERNAL TARGET FAILURE", "fails the IO, without another try"),
    (Code::SPACE_ALLOCATION_FAILED, "SPACE ALLOCATION FAILED WRITE PROTECT", "stuns the virtual machine and asks: retry or cancel"),
    (Code(0xA, 0x00, 0x00), "COPY ABORTED", "copies with its own data mover"),
    (Code::COPY_TARGET_NOT_REACHABLE, "COPY TARGET DEVICE NOT REACHABLE", "copies with its own data mover"),
    (Code(0xA, 0x0D, 0x01), "THIRD PARTY DEVICE FAILURE", "copies with its own data mover"),
    (Code::MISCOMPARE, "MISCOMPARE DURING VERIFY OPERATION", "reads the lock again: another host has it, or its own heartbeat is lost"),
];

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Code(key, asc, ascq) = self;
        write!(f, "{key:X}h/{asc:02X}h/{ascq:02X}h")?;
        match KNOWN.iter().find(|(code, ..)| code == self) {
            Some((_, name, _)) => write!(f, " {name}"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What sense data say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sense {
    /// What went wrong.
    pub code: Code,
    /// INFORMATION, if VALID.
    pub information: Option<u64>,
    /// With COPY ABORTED: the segment.
    pub segment: Option<u16>,
}

impl Sense {
    /// Reads fixed or descriptor format (SPC-4 §4.5).
    pub fn parse(bytes: &[u8]) -> Option<Sense> {
        let number = |bytes: &[u8]| bytes.iter().fold(0, |value, &byte| value << 8 | u64::from(byte));
        match bytes.first()? & 0x7F {
            0x70 if bytes.len() >= 14 => {
                let code = Code(bytes[2] & 0xF, bytes[12], bytes[13]);
                let is_copy = code.0 == Code::COPY_ABORTED_KEY;
                Some(Sense {
                    code,
                    information: (bytes[0] & 0x80 != 0).then(|| number(&bytes[3..7])),
                    segment: is_copy.then(|| number(&bytes[10..12]) as u16),
                })
            }
            0x72 if bytes.len() >= 8 => {
                let mut sense = Sense {
                    code: Code(bytes[1] & 0xF, bytes[2], bytes[3]),
                    information: None,
                    segment: None,
                };
                let mut rest = &bytes[8..];
                while let [kind, length, tail @ ..] = rest {
                    let (body, behind) = tail.split_at_checked(usize::from(*length))?;
                    match kind {
                        0x00 if body.len() >= 10 => sense.information = Some(number(&body[2..10])),
                        0x01 if body.len() >= 10 => sense.segment = Some(number(&body[4..6]) as u16),
                        _ => {}
                    }
                    rest = behind;
                }
                Some(sense)
            }
            _ => None,
        }
    }
}

/// A status's name.
pub fn status_name(status: u8) -> &'static str {
    match status {
        GOOD => "GOOD",
        CHECK_CONDITION => "CHECK CONDITION",
        BUSY => "BUSY",
        RESERVATION_CONFLICT => "RESERVATION CONFLICT",
        TASK_SET_FULL => "TASK SET FULL",
        TASK_ABORTED => "TASK ABORTED",
        _ => "an unknown status",
    }
}

/// What ESXi does with an answer to this opcode.
pub fn esxi_would(opcode: u8, status: u8, code: Option<Code>) -> &'static str {
    let known = code.and_then(|code| KNOWN.iter().find(|(known, ..)| *known == code));
    match (status, opcode, known) {
        (GOOD, 0x83, _) => "takes the copy as whole: if it is not, the virtual machine has a damaged disk",
        (GOOD, 0x89, _) => "takes the lock as its own",
        (GOOD, ..) => "goes on",
        (BUSY | TASK_SET_FULL, ..) => "tries again, and sends less at once (QFullSampleSize)",
        (RESERVATION_CONFLICT, ..) => "waits for the other host's RELEASE and tries again",
        (TASK_ABORTED, ..) => "tries again",
        (_, _, Some((_, _, reaction))) => reaction,
        (_, 0x89, _) => "takes ATS as unsupported: new datastores lock with RESERVE, ATS-only ones are lost",
        (_, 0x83 | 0x84, _) => "takes Clone as unsupported and copies with its own data mover",
        (_, 0x93, _) => "takes Zero as unsupported and writes zeroes itself",
        (_, 0x42, _) => "takes Delete as unsupported: no space comes back",
        _ => "fails the IO, or tries another path",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: both formats say the same. Method: a miscompare at byte 77, and a copy that failed in segment 3.
    #[test]
    fn both_formats_are_read() {
        let fixed = [0xF0, 0, 0x0E, 0, 0, 0, 77, 10, 0, 0, 0, 0, 0x1D, 0, 0, 0, 0, 0];
        let descriptor = [0x72, 0x0E, 0x1D, 0, 0, 0, 0, 12, 0, 10, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 77];
        let want = Sense { code: Code::MISCOMPARE, information: Some(77), segment: None };
        assert_eq!((Sense::parse(&fixed), Sense::parse(&descriptor)), (Some(want), Some(want)));
        let copy = [0x70, 0, 0x0A, 0, 0, 0, 0, 10, 0, 0, 0, 3, 0x0D, 2, 0, 0, 0, 0];
        let want = Sense { code: Code::COPY_TARGET_NOT_REACHABLE, information: None, segment: Some(3) };
        assert_eq!(Sense::parse(&copy), Some(want));
        assert_eq!(Sense::parse(&[]), None);
        assert_eq!(Code::MISCOMPARE.to_string(), "Eh/1Dh/00h MISCOMPARE DURING VERIFY OPERATION");
    }
}
