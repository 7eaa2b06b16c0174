//! What can go wrong below SCSI, in block terms.

/// Why a request failed. `vaai` makes sense data of it, once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoError {
    /// The range ends past the device.
    OutOfRange,
    /// The write needs space and there is none.
    OutOfSpace,
    /// [`crate::io::Op::Compare`] or [`crate::io::Op::CompareAndWrite`] found a difference, first at this byte of the
    /// buffer.
    Miscompare {
        /// Counted from the buffer's first byte.
        offset_bytes: u32,
    },
    /// The medium could not be read or written.
    Medium {
        /// The kernel's reason.
        errno: i32,
    },
    /// The medium could not be read, and so was not written as it was to be after the read.
    Unread {
        /// The kernel's reason.
        errno: i32,
    },
    /// The device is gone, read-only below us, or failed otherwise.
    Device {
        /// The kernel's reason.
        errno: i32,
    },
}

/// Linux's ECANCELED.
const CANCELED: i32 = 125;
/// Linux's ENODEV.
const NO_DEVICE: i32 = 19;
/// Linux's EROFS.
const READ_ONLY: i32 = 30;

impl IoError {
    /// The asker gave the request up before all of it was done; some of it may be.
    pub const ABANDONED: IoError = IoError::Device { errno: CANCELED };

    /// A write to a device that is open for reading only. Whoever knows about write protection asks before.
    pub const WRITE_PROTECTED: IoError = IoError::Device { errno: READ_ONLY };

    /// The device was taken away.
    pub const GONE: IoError = IoError::Device { errno: NO_DEVICE };

    /// Whether something went wrong: a difference is what the asker wanted to know, and giving up is its own doing.
    pub fn is_failure(self) -> bool {
        match self {
            IoError::Miscompare { .. } | IoError::ABANDONED => false,
            IoError::OutOfRange
            | IoError::OutOfSpace
            | IoError::Medium { .. }
            | IoError::Unread { .. }
            | IoError::Device { .. } => true,
        }
    }
}
