//! What is asked of a disk, and what comes back: owned values, so that a buffer is never lent to the kernel
//! while somebody else can touch it. `ring` carries them to io_uring, the simulator to its own disks.

use crate::buf::Buf;

/// A file or block device registered with every reactor's ring, by its place there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileId(pub u16);

/// What is to be done with `bytes` bytes from `offset_bytes` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskAction {
    /// Fill `buf[buf_offset..][..bytes]`.
    Read,
    /// Write `buf[buf_offset..][..bytes]`; with `durable`, complete only when it is on the medium (RWF_DSYNC).
    Write {
        /// Complete only when the data (and what is needed to find them) are on the medium.
        durable: bool,
    },
    /// fdatasync of the whole file. Of the rings that share a file each has every failed sync of it, also of its durable writes and in
    /// another ring, end one of these with the error.
    Sync,
    /// The range reads as zeroes and its space may be given back (FALLOC_FL_PUNCH_HOLE).
    PunchHole,
    /// The range reads as zeroes and keeps its space (FALLOC_FL_ZERO_RANGE).
    ZeroRange,
}

/// One operation for a disk.
#[derive(Debug)]
pub struct DiskOp {
    /// The asker's; comes back untouched.
    pub user: u64,
    /// On which file.
    pub file: FileId,
    /// What to do.
    pub action: DiskAction,
    /// Where on the file. A multiple of the file's direct-IO alignment.
    pub offset_bytes: u64,
    /// How much; 0 for [`DiskAction::Sync`]. At most `u32::MAX` for reads and writes.
    pub bytes: u64,
    /// The memory for a read or write.
    pub buf: Option<Buf>,
    /// Where in `buf` the bytes begin.
    pub buf_offset: u32,
}

/// A [`DiskOp`]'s end.
#[derive(Debug)]
pub struct DiskDone {
    /// As in the operation.
    pub user: u64,
    /// Bytes moved (may be fewer than asked), or a positive errno.
    pub result: Result<u32, i32>,
    /// The operation's buffer.
    pub buf: Option<Buf>,
}
