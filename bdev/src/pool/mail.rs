//! What the shards of a pool say to each other. An [`Ask`] is answered by exactly one [`Tell`] with its token, now or
//! later; the way of both is the caller's.
//!
//! What one core sends to another arrives in the order it was sent; between different pairs there is no order, and
//! nothing here needs one: a chunk's further names are counted, and that is confirmed, before a pointer to it leaves.

use super::control::PoolCounts;
use super::device::MemberFile;
use super::format::Superblock;
use super::map::{LEAF_SLOTS, LeafId, RootId, SlotNo};
use super::slot::{BLOCK_BYTES, CHUNK_BYTES, Chunk, Place, SLOT_BLOCKS, Slot};
use crate::error::IoError;
use crate::geometry::Geometry;
use crate::io::BdevId;
use reactor::Core;
use reactor::buf::Buf;

/// A slot's pointers on their way: which blocks, and where they are (`None`: zeroes).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Carried {
    /// The slot that gets them.
    pub slot: SlotNo,
    /// Which of its blocks.
    pub mask: u16,
    /// Where those are.
    pub pointers: Pointers,
}

impl Carried {
    /// The first block that gets a pointer, counted from the volume's beginning.
    pub fn first_block(&self) -> u64 {
        self.slot.0 * u64::from(SLOT_BLOCKS) + u64::from(self.mask.trailing_zeros())
    }

    /// The block behind the last one that does.
    pub fn end_block(&self) -> u64 {
        let further = match self.pointers {
            Pointers::Run(_, count) => u64::from(count) - 1,
            Pointers::Leaf(_) => LEAF_SLOTS as u64 - 1,
            Pointers::Slot(_) | Pointers::Many(_) => 0,
        };
        (self.slot.0 + further) * u64::from(SLOT_BLOCKS) + u64::from(u16::BITS - self.mask.leading_zeros())
    }
}

/// Pointers of a slot, or of several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pointers {
    /// At their own places in one chunk or two, or zeroes: frozen, and nothing else than the mask's blocks.
    Slot(Slot),
    /// Each by itself.
    Many(Box<[Option<Place>; SLOT_BLOCKS as usize]>),
    /// All blocks of so many slots, from this one on, in neighbouring chunks.
    Run(Chunk, u32),
    /// A whole stripe's, as a hold of the leaf, from a core to itself alone; nothing is mapped there if there is none, from
    /// whomever. By itself.
    Leaf(Option<LeafId>),
}

/// A name for what stands in leaves: those that have the same are alike, on whatever core. It is given by a core whose leaf is
/// copied to another, lost by a leaf that changes, never used again, and on no medium.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Edition(pub u64);

/// A volume as a shard has to know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attached {
    /// What it reads and writes through.
    pub root: RootId,
    /// Its shape.
    pub geometry: Geometry,
    /// Whether zeroes in writes become map state.
    pub zero_detect: bool,
    /// Space is reserved for it.
    pub thick: bool,
}

/// What a copy asks of its source's shard: within one stripe of the source and one of the destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// From which volume.
    pub source: BdevId,
    /// Its first block of 4 KiB.
    pub source_block: u64,
    /// To which volume.
    pub destination: BdevId,
    /// Its first block of 4 KiB: at the same place in its chunk.
    pub destination_block: u64,
    /// How many blocks of 4 KiB.
    pub blocks: u32,
    /// The asker's core is the destination's: of a whole stripe it may be told the edition ([`Tell::Named`]), and sees to the
    /// rest itself.
    pub by_name: bool,
}

/// Chunks that a leaf names and that are neighbours, all of one cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NamedRun {
    /// The first.
    pub first: Chunk,
    /// How many.
    pub chunks: u8,
    /// Nobody but the root that is walked reaches the leaf.
    pub sole: bool,
}

/// A root's part of a walk for what is unique and what is shared: see `usage`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UsagePass {
    /// Which root.
    pub root: RootId,
    /// Only what is unique is asked for.
    pub only_sole: bool,
    /// Chunks that are named more than once are counted where they are of this window of their cores.
    pub window: u32,
    /// Chunks that are named once are counted, too.
    pub once: bool,
}

/// A request.
#[derive(Debug)]
pub struct Ask {
    /// For the answer.
    pub token: u64,
    /// What.
    pub what: What,
}

/// See [`Ask`].
#[derive(Debug)]
#[allow(missing_docs, reason = "each does what it is called")]
pub enum What {
    /// Chunks of the receiver are named once more, and once less; the further names first.
    Counts {
        named: Vec<Chunk>,
        dropped: Vec<Chunk>,
    },
    /// Free chunks, for a core that has none of its own left.
    Grant {
        chunks: u32,
    },
    /// See [`Share`].
    Share(Share),
    /// The pointers of a copy, counted already. If they are all of a leaf, of which edition.
    Install {
        destination: BdevId,
        carried: Vec<Carried>,
        edition: Option<Edition>,
    },
    /// A copy of a whole stripe, of whose edition the receiver may have a leaf. If it hasn't: [`Tell::Unknown`]. Of none if
    /// nothing is mapped in it.
    InstallTwin {
        destination: BdevId,
        slot: SlotNo,
        edition: Option<Edition>,
    },
    /// No write to the device begins until it is released; told when none is under way.
    Hold {
        bdev: BdevId,
    },
    Release {
        bdev: BdevId,
    },
    Attach {
        bdev: BdevId,
        volume: Attached,
    },
    Detach {
        bdev: BdevId,
    },
    /// `to` begins as `from` is now, of which nothing changes any more; the device goes on with `to`.
    Fork {
        from: RootId,
        to: RootId,
        truncated: u64,
        bdev: Option<BdevId>,
    },
    /// Everything acknowledged becomes durable.
    Flush,
    /// Nobody reads through the root any more; told when its nodes are gone.
    Drop {
        root: RootId,
    },
    /// See [`Status`].
    Status {
        roots: Vec<RootId>,
    },
    /// Bytes in which two roots differ in the stripes of this core.
    Diff {
        a: RootId,
        b: RootId,
        from_stripe: u64,
        end_stripe: u64,
    },
    /// The pool has these members and extents from now on. Nobody has a chunk of what is new yet.
    Grow {
        superblock: Box<Superblock>,
        members: Vec<MemberFile>,
        paths: Vec<String>,
    },
    /// All cores know where the new chunks are: they are free.
    GrowSpace,
    /// What a volume's map says of its blocks from one on, all in one stripe.
    Extent {
        bdev: BdevId,
        from_block: u64,
        blocks: u64,
    },
    /// The catalog knows what is damaged.
    DamageNoted,
    /// A checkpoint is to be made soon.
    Checkpoint,
    /// The catalog can't be written: nothing is, any more.
    Break,
    /// The counts of this core's private slots.
    Private {
        root: RootId,
    },
    /// See [`UsageWatch`].
    UsageWatch,
    /// Gets ready to count chunks of this core that are named. Told when the last pass is forgotten.
    UsagePass(UsagePass),
    /// Names all chunks of the pass's root to their cores; told when they have counted them.
    UsageNames,
    /// Chunks of the receiver that are named.
    UsageCount {
        runs: Vec<NamedRun>,
    },
    /// What has been counted.
    UsageSum,
}

impl What {
    /// If it brings a copy to a volume: which, and its bytes there.
    pub fn installs(&self) -> Option<(BdevId, std::ops::Range<u64>)> {
        match self {
            What::Install { destination, carried, .. } => {
                let (first, last) = (carried.first()?, carried.last()?);
                Some((*destination, first.first_block() * BLOCK_BYTES..last.end_block() * BLOCK_BYTES))
            }
            What::InstallTwin { destination, slot, .. } => {
                let at = slot.0 * CHUNK_BYTES;
                Some((*destination, at..at + LEAF_SLOTS as u64 * CHUNK_BYTES))
            }
            _ => None,
        }
    }
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    /// The request's.
    pub token: u64,
    /// What.
    pub tell: Tell,
}

/// See [`Answer`].
#[derive(Debug)]
#[allow(missing_docs, reason = "each answers what it is called after")]
pub enum Tell {
    Done,
    /// Counted, but a chunk has more names now than copies may make; or nothing was copied for that.
    CountFull,
    /// The receiver has no leaf of that edition: nothing was done.
    Unknown,
    /// What is to be copied is of this edition, or nothing at all, for as long as its core's count of the changes of that stripe of
    /// that root is this. The volume may have had another root when the asker hears of it. It is for the asker to install.
    Named {
        root: RootId,
        edition: Option<Edition>,
        count: u64,
    },
    Failed(IoError),
    Granted(Vec<Chunk>),
    Status(Box<Status>),
    Diff {
        extents: Vec<(u64, u64)>,
        next_stripe: u64,
    },
    Private(u64),
    UsageWatch(UsageWatch),
    /// Chunks.
    UsageSum {
        unique: u64,
        shared: u64,
    },
    /// So many blocks are all mapped, or all not.
    Extent {
        mapped: bool,
        blocks: u64,
    },
}

/// Whether what is named changes, as one core sees it.
#[derive(Clone, Debug, Default)]
pub struct UsageWatch {
    /// Grows with whatever changes who names what.
    pub changes: u64,
    /// Names are on their way.
    pub moving: bool,
    /// Windows in which something is named more than once.
    pub windows: Vec<u32>,
}

/// What one core says of itself.
#[derive(Clone, Debug, Default)]
pub struct Status {
    /// Chunks that nothing names.
    pub free_chunks: u64,
    /// Names waiting to be given up.
    pub pending: u64,
    /// Memory for maps and counts.
    pub memory_bytes: u64,
    /// Bytes of live images.
    pub metadata_used_bytes: u64,
    /// Mapped blocks of each root asked for.
    pub mapped_blocks: Vec<u64>,
    /// Slots of each root that need no chunk for their next write.
    pub private_slots: Vec<u64>,
    /// What has been done.
    pub counts: PoolCounts,
    /// Checkpoints that ended, since the start.
    pub checkpoints: u64,
    /// As in [`UsageWatch`].
    pub changes: u64,
}

/// Data of a chunk in memory, which is the receiver's. It comes back as it was, with what was read in the buffer.
#[derive(Debug)]
pub struct Data {
    /// For the answer.
    pub token: u64,
    /// Of which chunk.
    pub chunk: Chunk,
    /// From which of its bytes on.
    pub first: u32,
    /// How many.
    pub bytes: u32,
    /// They are written.
    pub writes: bool,
    /// Where they are in the buffer.
    pub buf_offset: u32,
    /// The memory.
    pub buf: Option<Buf>,
}

/// To be carried.
#[derive(Debug)]
pub enum Outgoing {
    /// To the core that has the chunk; answered with the same by exactly one.
    Data(Core, Data),
    /// To that core's shard.
    Ask(Core, Ask),
    /// To the asker.
    Tell(Core, Answer),
}
