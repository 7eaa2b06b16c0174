//! Status and sense data (SPC-4 §4.5).

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
pub type SenseBytes = smallvec::SmallVec<[u8; 36]>;
