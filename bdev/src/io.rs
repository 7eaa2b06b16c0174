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

/// The longest [`Op::CompareAndWrite`], in logical blocks: what its CDB can say. At most two stripes are touched.
pub const SWAP_BLOCKS_MAX: u64 = 255;

/// Parts of a [`Op::CompareAndWrite`] end at multiples of this on the device: both halves fit a buffer.
pub const SWAP_PART_BYTES: u64 = PIECE_BYTES / 2;

const _: () = assert!(SWAP_BLOCKS_MAX * PIECE_BYTES <= 4 * crate::stripe::STRIPE_BYTES);

/// The longest [`Op::WriteAtomic`], in bytes: a database's largest page several times over. At most two stripes are touched.
pub const ATOMIC_BYTES_MAX: u32 = 1 << 20;

/// An [`Op::WriteAtomic`] begins and ends at multiples of this: what a map tells apart.
pub const ATOMIC_GRANULE_BYTES: u32 = 4096;

const _: () = assert!(ATOMIC_BYTES_MAX as u64 <= crate::stripe::STRIPE_BYTES);

/// What to do with a range of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Fill `buf` from the range.
    Read,
    /// Write `buf` to the range.
    Write,
    /// The range reads as zeroes from now on and keeps its space if it has any. No buffer; any length.
    WriteZeroes,
    /// The range reads as zeroes from now on and its space may be given back; a pool that is short of memory for maps may
    /// leave blocks as they are where it would take some. No buffer; any length.
    Unmap,
    /// All that was acknowledged is on the medium when this comes back. No range, no buffer.
    Flush,
    /// Read the range into `scratch` and compare it with `buf`: [`IoError::Miscompare`] at the first difference.
    Compare,
    /// The range becomes itself OR `buf`, as one step for all who overlap. `scratch` is as long as `buf`.
    OrWrite,
    /// If the range is the first half of `buf` it becomes the second half, as one step for all who overlap. Otherwise
    /// nothing is written: [`IoError::Miscompare`] at the first difference. `buf` is twice as long as the range, so
    /// that one of half a piece is the longest; `scratch` is as long as the range.
    ///
    /// A longer range, or one that crosses a piece, is several requests, of up to [`SWAP_BLOCKS_MAX`] blocks together, each
    /// as above: one behind the other by address, submitted one behind the other, with the same tag, and each says in
    /// [`Io::more_parts`] how many follow. They are one step, and each comes back with what came of all: a difference is
    /// counted from the first byte of the first, and what lies behind the part that it is in may not have been looked at.
    /// When a write fails, those before it are taken back as well as can be.
    CompareAndWrite,
    /// Write `buf` to the range, all of it or nothing: for all who overlap, and when the power goes. Whole multiples of
    /// [`ATOMIC_GRANULE_BYTES`], where [`crate::geometry::Geometry::atomic_bytes`] says that the device can. Longer than a
    /// piece, up to [`ATOMIC_BYTES_MAX`], it is several requests which are one step, as of a [`Op::CompareAndWrite`].
    WriteAtomic,
    /// A part of a [`Op::WriteAtomic`] of several: below [`crate::atomic::Atomic`] alone. When it comes back its data are
    /// where nobody sees them, until all of them are shown or forgotten at once.
    Stage,
}

impl Op {
    /// Whether it may change the medium: what an abort has to wait for.
    pub fn writes(self) -> bool {
        match self {
            Op::Read | Op::Compare => false,
            Op::Write
            | Op::WriteZeroes
            | Op::Unmap
            | Op::Flush
            | Op::OrWrite
            | Op::CompareAndWrite
            | Op::WriteAtomic
            | Op::Stage => true,
        }
    }

    /// Whether it moves data, so that a buffer goes with it and the range must lie within one piece.
    pub fn has_data(self) -> bool {
        match self {
            Op::Read
            | Op::Write
            | Op::Compare
            | Op::OrWrite
            | Op::CompareAndWrite
            | Op::WriteAtomic
            | Op::Stage => true,
            Op::WriteZeroes | Op::Unmap | Op::Flush => false,
        }
    }

    /// How long `buf` is for a range of `range_bytes`.
    pub fn buf_bytes(self, range_bytes: u64) -> u64 {
        match self {
            Op::Read | Op::Write | Op::Compare | Op::OrWrite | Op::WriteAtomic | Op::Stage => range_bytes,
            Op::CompareAndWrite => 2 * range_bytes,
            Op::WriteZeroes | Op::Unmap | Op::Flush => 0,
        }
    }

    /// Whether it looks at the medium first, so that `scratch`, as long as the range, goes with it.
    pub fn needs_scratch(self) -> bool {
        match self {
            Op::Compare | Op::OrWrite | Op::CompareAndWrite => true,
            Op::Read | Op::Write | Op::WriteZeroes | Op::Unmap | Op::Flush | Op::WriteAtomic | Op::Stage => {
                false
            }
        }
    }

    /// Whether it may be several requests that are one step.
    pub fn has_parts(self) -> bool {
        matches!(self, Op::CompareAndWrite | Op::WriteAtomic)
    }
}

/// A request. Invariant for data operations: the buffers are as long as [`Op::buf_bytes`] and [`Op::needs_scratch`]
/// say, and the range does not cross a multiple of [`PIECE_BYTES`].
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
    /// It is the write that a [`Op::CompareAndWrite`] makes, which [`crate::atomic::Atomic`] says: it may draw on what a
    /// pool keeps for heartbeats. No asker sets it.
    pub heartbeat: bool,
    /// The asker wants memory as long as `buf` back from this write, whatever is in it: the device may keep `buf` and give
    /// another.
    pub disposable: bool,
    /// So many parts of the same [`Op::CompareAndWrite`] or [`Op::WriteAtomic`] follow this one.
    pub more_parts: u8,
    /// First logical block.
    pub lba: u64,
    /// Number of logical blocks.
    pub blocks: u64,
    /// Data of a data operation.
    pub buf: Option<Buf>,
    /// Memory for what the medium has, where [`Op::needs_scratch`].
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
