//! Which commands a reservation stops (SPC-4 §5.13.1, table 45; SBC-3 §4.18, table 13): one row an opcode, and none by
//! default. The table of commands takes a command's class from here, so one that has no row here does not compile.

use crate::cdb::Cdb;

/// How a command stands to other nexuses' reservations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// No reservation stops it. RESERVE, RELEASE and their likes are here, too: what they may is decided where they
    /// are carried out, in one order for all cores.
    Never,
    /// RESERVE stops it, a persistent reservation does not.
    Reserve,
    /// It learns what is on the medium: only exclusive access stops it.
    Read,
    /// It changes what is on the medium or how the unit works.
    Write,
    /// START STOP UNIT: to start the unit is no change of it.
    StartStop,
    /// PREVENT ALLOW MEDIUM REMOVAL: to allow it stops nobody.
    Prevent,
}

/// What a command has to be allowed of a unit that others have reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Access {
    /// Nothing of the medium.
    Status,
    /// To learn what is on the medium.
    Read,
    /// To change it.
    Write,
}

impl Class {
    /// The class of a command. `service_action` matters only where an opcode's differ.
    ///
    /// # Panics
    /// When it has no row: that is when the table of commands is compiled.
    #[allow(clippy::match_same_arms, reason = "the standard's rows, one by one")]
    pub(crate) const fn of(opcode: u8, service_action: Option<u8>) -> Class {
        match (opcode, service_action) {
            // INQUIRY, REPORT LUNS, REQUEST SENSE.
            (0x12 | 0xA0 | 0x03, _) => Class::Never,
            // Looking for paths: TEST UNIT READY, READ CAPACITY, REPORT TARGET PORT GROUPS and the like. Where SPC-2 leaves
            // it open, a host on another path is not to take the unit for lost.
            (0x00 | 0x25, _) | (0x9E, Some(0x10)) => Class::Never,
            (0xA3, Some(0x05 | 0x0A | 0x0C | 0x0D | 0x0F)) => Class::Never,
            // LOG SENSE.
            (0x4D, _) => Class::Never,
            // RESERVE and RELEASE.
            (0x16 | 0x17 | 0x56 | 0x57, _) => Class::Never,
            // PERSISTENT RESERVE IN and OUT.
            (0x5E | 0x5F, _) => Class::Reserve,
            // RECEIVE COPY STATUS and its likes, RECEIVE ROD TOKEN INFORMATION, REPORT ALL ROD TOKENS.
            (0x84, _) => Class::Reserve,
            // READ, VERIFY, PRE-FETCH, READ DEFECT DATA, GET LBA STATUS.
            (0x08 | 0x28 | 0x88 | 0xA8 | 0x2F | 0x8F | 0xAF | 0x34 | 0x90 | 0x37 | 0xB7, _) => Class::Read,
            (0x9E, Some(0x12)) => Class::Read,
            // POPULATE TOKEN.
            (0x83, Some(0x10)) => Class::Read,
            // MODE SENSE.
            (0x1A | 0x5A, _) => Class::Read,
            // WRITE, WRITE AND VERIFY, ORWRITE, COMPARE AND WRITE, WRITE ATOMIC, WRITE SAME, UNMAP.
            (0x0A | 0x2A | 0x8A | 0xAA | 0x2E | 0x8E | 0xAE | 0x8B | 0x89 | 0x9C | 0x41 | 0x93 | 0x42, _) => {
                Class::Write
            }
            // SYNCHRONIZE CACHE.
            (0x35 | 0x91, _) => Class::Write,
            // EXTENDED COPY, WRITE USING TOKEN, COPY OPERATION ABORT; the copy asks for both of its units besides.
            (0x83, Some(_)) => Class::Write,
            // MODE SELECT, LOG SELECT, SEND DIAGNOSTIC, WRITE BUFFER, SET TARGET PORT GROUPS.
            (0x15 | 0x55 | 0x4C | 0x1D | 0x3B, _) | (0xA4, Some(0x0A)) => Class::Write,
            (0x1B, _) => Class::StartStop,
            (0x1E, _) => Class::Prevent,
            _ => panic!("a command without a class: what does a reservation do to it?"),
        }
    }

    /// What this command needs of a unit under a persistent reservation.
    pub(crate) fn access(self, cdb: &Cdb) -> Access {
        match self {
            Class::Never | Class::Reserve => Access::Status,
            Class::Read => Access::Read,
            // START=1 with POWER CONDITION=0.
            Class::StartStop if cdb[4] & 0xF1 == 0x01 => Access::Status,
            Class::Prevent if matches!(cdb[4] & 0x03, 0x00) => Access::Status,
            Class::Write | Class::StartStop | Class::Prevent => Access::Write,
        }
    }

    /// Whether another nexus' RESERVE stops this command.
    pub(crate) fn stopped_by_reserve(self, cdb: &Cdb) -> bool {
        match self {
            Class::Never => false,
            Class::Prevent => self.access(cdb) != Access::Status,
            Class::Reserve | Class::Read | Class::Write | Class::StartStop => true,
        }
    }
}
