//! A request's life in values: [`Io`] goes down with its buffer, [`Done`] comes back with it.

use crate::error::IoError;
use reactor::Core;
use reactor::buf::{BUF_BYTES_MAX, Buf};

/// A bdev, by its place in the configuration; the same on every core.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BdevId(pub u16);

/// Whatever the asker wants to find again in the answer. Nobody below looks inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tag(pub u64);

/// No single data request crosses a multiple of this on the device: it is the pool's chunk, so a piece lies in
/// one chunk, one stripe and one shard, and no layer below has to cut or join data.
pub const PIECE_BYTES: u64 = BUF_BYTES_MAX as u64;

/// What to do with a range of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Fill `buf` from the range.
    Read,
    /// Write `buf` to the range.
    Write,
    /// The range reads as zeroes from now on and keeps its space if it has any. No buffer; any length.
    WriteZeroes,
    /// The range reads as zeroes from now on and its space may be given back. No buffer; any length.
    Unmap,
    /// All that was acknowledged is on the medium when this comes back. No range, no buffer.
    Flush,
    /// Read the range into `scratch` and compare it with `buf`: [`IoError::Miscompare`] at the first difference.
    Compare,
    /// The range becomes itself OR `buf`, as one step for all who overlap. `scratch` is as long as `buf`.
    OrWrite,
}

impl Op {
    /// Whether it may change the medium: what an abort has to wait for.
    pub fn writes(self) -> bool {
        match self {
            Op::Read | Op::Compare => false,
            Op::Write | Op::WriteZeroes | Op::Unmap | Op::Flush | Op::OrWrite => true,
        }
    }

    /// Whether it moves data, so that a buffer goes with it and the range must lie within one piece.
    pub fn has_data(self) -> bool {
        match self {
            Op::Read | Op::Write | Op::Compare | Op::OrWrite => true,
            Op::WriteZeroes | Op::Unmap | Op::Flush => false,
        }
    }
}

/// A request. Invariant for data operations: `buf.len() == blocks * block_bytes`, and the range does not cross a
/// multiple of [`PIECE_BYTES`].
#[derive(Debug)]
pub struct Io {
    /// The asker's name for it.
    pub tag: Tag,
    /// The core that asked and gets the answer.
    pub from: Core,
    /// On which device.
    pub bdev: BdevId,
    /// What to do.
    pub op: Op,
    /// Force unit access: on the medium before it comes back, whatever the write cache says. Below the router it also
    /// tells which zeroed or unmapped ranges have to be: without a write cache the asker may count on all of them.
    pub fua: bool,
    /// First logical block.
    pub lba: u64,
    /// Number of logical blocks.
    pub blocks: u64,
    /// Data of a data operation.
    pub buf: Option<Buf>,
    /// Memory that [`Op::Compare`] and [`Op::OrWrite`] need besides.
    pub scratch: Option<Buf>,
}

/// A request's end.
#[derive(Debug)]
pub struct Done {
    /// As it went in, buffers included.
    pub io: Io,
    /// How it went.
    pub result: Result<(), IoError>,
}
