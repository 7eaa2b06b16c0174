//! What can go wrong below SCSI, in block terms.

/// Why a request failed. `vaai` makes sense data of it, once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoError {
    /// The range ends past the device.
    OutOfRange,
    /// The write needs space and there is none.
    OutOfSpace,
    /// [`crate::io::Op::Compare`] found a difference, first at this byte of the buffer.
    Miscompare {
        /// Counted from the buffer's first byte.
        offset_bytes: u32,
    },
    /// The medium could not be read or written.
    Medium {
        /// The kernel's reason.
        errno: i32,
    },
    /// The device is gone, read-only below us, or failed otherwise.
    Device {
        /// The kernel's reason.
        errno: i32,
    },
}
