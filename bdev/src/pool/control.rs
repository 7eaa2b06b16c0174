//! What people ask of a pool, and what they are told: values, so that the program's API, the tests and the
//! benchmarks say the same things. The pool's owner (core 0) takes each [`Request`] in order and answers it once.

use crate::geometry::Geometry;
use crate::io::BdevId;
use reactor::disk::FileId;
use std::fmt;

/// Volumes and snapshots are named by people in these characters.
pub const NAME_CHARS: &str = "letters, digits and . _ - : (not first . or -)";
/// The longest name, in bytes.
pub const NAME_BYTES_MAX: usize = 63;
/// Volumes of a pool.
pub const VOLUMES_MAX: usize = 4096;
/// Snapshots of a pool.
pub const SNAPSHOTS_MAX: usize = 65_536;
/// The largest volume.
pub const VOLUME_BYTES_MAX: u64 = 64 << 40;
/// What is remembered of one volume's reservations.
pub const RESERVATIONS_BYTES_MAX: usize = 64 << 10;
/// The same of all volumes of a pool: it is in every checkpoint.
pub const RESERVATIONS_POOL_BYTES_MAX: usize = 2 << 20;
/// Changed extents in one answer to [`Request::SnapshotDiff`].
pub const DIFF_EXTENTS_MAX: usize = 4096;

/// Whether `name` can name a volume or a snapshot.
pub fn is_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    let first = bytes.next().is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_');
    first
        && name.len() <= NAME_BYTES_MAX
        && bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b':'))
}

/// How a volume's space is promised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Provisioning {
    /// Space is taken as it is written.
    Thin,
    /// All of it is set aside when the volume is made, and stays so over snapshots and clones.
    Thick,
}

/// A volume to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeSpec {
    /// Its name.
    pub name: String,
    /// Its size, a multiple of 4096.
    pub bytes: u64,
    /// Logical block: 512 or 4096.
    pub block_bytes: u32,
    /// Physical block to be reported: 512 or 4096, at least the logical one.
    pub physical_block_bytes: u32,
    /// Thin or thick.
    pub provisioning: Provisioning,
    /// Whether whole blocks of zeroes in writes become map state.
    pub zero_detect: bool,
    /// Acknowledge writes before they are on the medium (WCE=1).
    pub write_cache: bool,
}

/// What is asked of a pool. Snapshots are named `volume@snapshot`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// The pool itself. [`Answer::Pool`].
    Pool,
    /// [`Answer::Volumes`].
    Volumes,
    /// Looks anew at what is unique and what is shared. Others' requests go on meanwhile; told when a walk that began
    /// after this has ended. [`Answer::Done`].
    UsageWalk,
    /// [`Answer::Done`].
    VolumeCreate(VolumeSpec),
    /// Changes the size; to a smaller one only with `shrink`, by which the data behind it go. Smaller while hosts have
    /// it only with `force`. [`Answer::Done`].
    VolumeResize {
        /// Which.
        volume: String,
        /// A multiple of 4096.
        bytes: u64,
        /// Data may go.
        shrink: bool,
        /// Also while it is mapped.
        force: bool,
    },
    /// A writable volume that begins as a snapshot is. [`Answer::Done`].
    VolumeClone {
        /// `volume@snapshot`.
        snapshot: String,
        /// The new volume's name.
        name: String,
        /// Of the new volume; `None`: as the snapshot's volume.
        provisioning: Option<Provisioning>,
    },
    /// The volume becomes what the snapshot is. [`Answer::Done`].
    VolumeRollback {
        /// Which.
        volume: String,
        /// The snapshot's own name, without the volume's.
        snapshot: String,
        /// Also while it is mapped.
        force: bool,
    },
    /// The volume goes; refused while it has snapshots. Its space comes back in the background. [`Answer::Done`].
    VolumeDelete {
        /// Which.
        volume: String,
        /// Also while it is mapped.
        force: bool,
    },
    /// Switches zero-detect. [`Answer::Done`].
    VolumeSet {
        /// Which.
        volume: String,
        /// Whether whole blocks of zeroes in writes become map state.
        zero_detect: bool,
    },
    /// [`Answer::Snapshots`].
    Snapshots {
        /// Of this volume only.
        volume: Option<String>,
    },
    /// [`Answer::Done`].
    SnapshotCreate {
        /// Of what.
        volume: String,
        /// Its own name.
        name: String,
    },
    /// Refused while nothing but it... never: snapshots go in any order; clones of it stay. [`Answer::Done`].
    SnapshotDelete {
        /// `volume@snapshot`.
        snapshot: String,
    },
    /// The extents in which two states of one volume differ, from `from_bytes` on. [`Answer::Diff`].
    SnapshotDiff {
        /// `volume@snapshot`; the older, usually.
        from: String,
        /// `volume@snapshot`, or `volume` for what it is now.
        to: String,
        /// Where to go on: 0, then [`DiffPart::next_bytes`].
        from_bytes: u64,
    },
    /// Makes the volume a device of every core, if it isn't one yet, so that a unit can show it. It counts as mapped until
    /// it is detached. [`Answer::Attached`].
    Attach {
        /// Which.
        volume: String,
    },
    /// [`Answer::Done`].
    Detach {
        /// Which.
        volume: String,
    },
    /// Remembers a mapping in the catalog, in the place of one with the same target and LUN. [`Answer::Done`].
    MappingPut(Mapping),
    /// [`Answer::Done`].
    MappingRemove {
        /// The target's name.
        target: String,
        /// The unit's number.
        lun: u16,
    },
    /// [`Answer::Mappings`].
    Mappings,
    /// Remembers what is reserved of an attached volume, in the place of what was; nothing, if it is empty.
    /// [`Answer::Done`].
    ReservationsPut {
        /// The volume's device.
        bdev: BdevId,
        /// The transport's own words; at most [`RESERVATIONS_BYTES_MAX`].
        bytes: Vec<u8>,
    },
    /// Takes new members, and what members have become larger by. After one that a device has failed the next opening tells
    /// whether the pool has grown; until then all further ones are refused. [`Answer::Done`].
    Grow {
        /// Members' lengths, as they are now; smaller ones are refused.
        sizes: Vec<MemberSize>,
        /// Open and known to every core's ring; they hold no pool.
        added: Vec<NewMember>,
    },
}

/// A file or device that becomes a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewMember {
    /// For people.
    pub path: String,
    /// As the rings know it, the same on every core.
    pub file: FileId,
    /// What direct IO is aligned to there.
    pub align_bytes: u32,
    /// Its free chunks are to be punched.
    pub punch: bool,
    /// Its length.
    pub bytes: u64,
    /// Random: tells it from others at this place.
    pub mark: [u8; 16],
}

/// A member's size, as the kernel says it now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemberSize {
    /// Its place among the pool's members.
    pub member: u16,
    /// Its length in bytes.
    pub bytes: u64,
}

/// A unit that shows a volume: kept in the catalog.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// The target's name.
    pub target: String,
    /// The unit's number.
    pub lun: u16,
    /// The volume's name.
    pub volume: String,
    /// Writes are refused.
    pub read_only: bool,
    /// The medium can be ejected.
    pub removable: bool,
}

/// How a request went.
pub type Answered = Result<Answer, Refusal>;

/// The answer to a [`Request`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is done, and will be found so after any crash.
    Done,
    /// See [`Request::Pool`].
    Pool(Box<PoolInfo>),
    /// In the order of their making.
    Volumes(Vec<VolumeInfo>),
    /// In the order of their making.
    Snapshots(Vec<SnapshotInfo>),
    /// See [`Request::SnapshotDiff`].
    Diff(DiffPart),
    /// See [`Request::Attach`].
    Attached {
        /// The device.
        bdev: BdevId,
        /// Its shape.
        geometry: Geometry,
        /// The volume's UUID: the unit's identity is made of it.
        uuid: [u8; 16],
        /// What [`Request::ReservationsPut`] said last.
        reservations: Vec<u8>,
    },
    /// In the order of target and LUN.
    Mappings(Vec<Mapping>),
}

/// A pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolInfo {
    /// Its name.
    pub name: String,
    /// Its UUID.
    pub uuid: [u8; 16],
    /// What it is made of.
    pub members: Vec<MemberInfo>,
    /// Bytes of a chunk.
    pub chunk_bytes: u64,
    /// Space for data, in all. Exact.
    pub data_bytes: u64,
    /// Of it, in chunks that nothing names, reserved ones included. Exact.
    pub free_bytes: u64,
    /// Of the free, set aside for thick volumes. Exact.
    pub reserved_bytes: u64,
    /// Of the free, what is left of the part that only compare-and-write, and small writes to its blocks, may use. Exact.
    pub heartbeat_reserve_bytes: u64,
    /// Waiting to become free: deletes under way, records not durable yet.
    pub pending_bytes: u64,
    /// Mapped bytes that tokens hold, shared with volumes or not.
    pub token_bytes: u64,
    /// Space for maps and journals on the medium.
    pub metadata_bytes: u64,
    /// Of the space for maps, in use.
    pub metadata_used_bytes: u64,
    /// Memory that the maps take.
    pub map_memory_bytes: u64,
    /// What they may take.
    pub map_memory_max_bytes: u64,
    /// How many there are.
    pub volumes: u64,
    /// How many there are.
    pub snapshots: u64,
    /// Volumes that were set aside: name and what is wrong.
    pub damaged: Vec<(String, String)>,
    /// Why it can't be grown before it is opened again, if it can't.
    pub grow_refused: Option<Refusal>,
    /// What has been done, summed over all cores.
    pub counts: PoolCounts,
}

/// A member of a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberInfo {
    /// Where it is.
    pub path: String,
    /// Its length, as used.
    pub bytes: u64,
}

/// What a pool's layers have done since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolCounts {
    /// Writes that went to where their blocks were.
    pub writes_in_place: u64,
    /// Writes that took new space or left a shared chunk.
    pub writes_redirected: u64,
    /// Writes smaller than a block that had to read it first.
    pub writes_merged: u64,
    /// Bytes that hosts wrote.
    pub host_write_bytes: u64,
    /// Bytes of data written to members.
    pub data_write_bytes: u64,
    /// Bytes read from members.
    pub data_read_bytes: u64,
    /// Bytes of journal written.
    pub journal_write_bytes: u64,
    /// Bytes of checkpoints written.
    pub checkpoint_write_bytes: u64,
    /// Journal writes.
    pub commits: u64,
    /// Records in them.
    pub records: u64,
    /// Checkpoints that ended well.
    pub checkpoints: u64,
    /// 4 KiB blocks of zeroes that writes had and that became map state.
    pub zero_blocks_detected: u64,
    /// Bytes copied by sharing.
    pub copy_shared_bytes: u64,
    /// Bytes copied as bytes because source and destination stand differently in their chunks, or come from elsewhere.
    pub copy_misaligned_bytes: u64,
    /// Bytes copied as bytes at the ends of a range, within a 4 KiB block.
    pub copy_edge_bytes: u64,
    /// Bytes copied as bytes because a chunk has as many names as copies may make.
    pub copy_count_full_bytes: u64,
    /// Bytes whose sharing was refused because space or memory for maps was short: their copy failed there.
    pub copy_refused_bytes: u64,
    /// Slots that were folded in the background.
    pub folds: u64,
    /// Messages about chunks between cores.
    pub chunk_messages: u64,
    /// Blocks that an UNMAP left mapped because memory for maps was short.
    pub unmap_left_blocks: u64,
    /// Bytes of free chunks that were given back to what is below the pool.
    pub punched_bytes: u64,
}

impl PoolCounts {
    /// Adds another's.
    pub fn add(&mut self, other: &PoolCounts) {
        self.writes_in_place += other.writes_in_place;
        self.writes_redirected += other.writes_redirected;
        self.writes_merged += other.writes_merged;
        self.host_write_bytes += other.host_write_bytes;
        self.data_write_bytes += other.data_write_bytes;
        self.data_read_bytes += other.data_read_bytes;
        self.journal_write_bytes += other.journal_write_bytes;
        self.checkpoint_write_bytes += other.checkpoint_write_bytes;
        self.commits += other.commits;
        self.records += other.records;
        self.checkpoints += other.checkpoints;
        self.zero_blocks_detected += other.zero_blocks_detected;
        self.copy_shared_bytes += other.copy_shared_bytes;
        self.copy_misaligned_bytes += other.copy_misaligned_bytes;
        self.copy_edge_bytes += other.copy_edge_bytes;
        self.copy_count_full_bytes += other.copy_count_full_bytes;
        self.copy_refused_bytes += other.copy_refused_bytes;
        self.folds += other.folds;
        self.chunk_messages += other.chunk_messages;
        self.unmap_left_blocks += other.unmap_left_blocks;
        self.punched_bytes += other.punched_bytes;
    }
}

/// A volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeInfo {
    /// Its name.
    pub name: String,
    /// Its id in the pool, never used again.
    pub id: u64,
    /// Its UUID.
    pub uuid: [u8; 16],
    /// Its size: provisioned.
    pub bytes: u64,
    /// Logical block.
    pub block_bytes: u32,
    /// Physical block.
    pub physical_block_bytes: u32,
    /// Thin or thick.
    pub provisioning: Provisioning,
    /// See [`VolumeSpec::zero_detect`].
    pub zero_detect: bool,
    /// See [`VolumeSpec::write_cache`].
    pub write_cache: bool,
    /// Bytes that are mapped, in blocks of 4 KiB. Exact.
    pub mapped_bytes: u64,
    /// Bytes set aside for it. Exact.
    pub reserved_bytes: u64,
    /// From the last walk; `None` before the first, and of what was set aside.
    pub usage: Option<Usage>,
    /// How many snapshots it has.
    pub snapshots: u64,
    /// The snapshot it was cloned from, if that is still there.
    pub origin: Option<String>,
    /// It is a device that units show.
    pub attached: bool,
    /// It was set aside for what was found on the medium.
    pub damage: Option<String>,
}

/// What a background walk has found of a volume or a snapshot, as it is without its snapshots.
///
/// A chunk counts once, however often the volume names it, and whole, however few blocks of it are in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Bytes in chunks that no other volume or snapshot names: what deleting this one alone would give back.
    pub unique_bytes: u64,
    /// Bytes in chunks that another one names, too; `None` where they are not counted, of snapshots.
    pub shared_bytes: Option<u64>,
    /// When the walk ended, in seconds since 1970.
    pub at_seconds: u64,
    /// Nothing that is named has changed since the walk began.
    pub exact: bool,
}

/// A snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// Its volume's name.
    pub volume: String,
    /// Its own name.
    pub name: String,
    /// Its id in the pool, never used again.
    pub id: u64,
    /// The size that the volume had.
    pub bytes: u64,
    /// Bytes that are mapped in it. Exact.
    pub mapped_bytes: u64,
    /// From the last walk, as for volumes; without what is shared.
    pub usage: Option<Usage>,
    /// When it was made, in seconds since 1970.
    pub created_seconds: u64,
    /// Volumes that were cloned from it and are there.
    pub clones: u64,
}

/// A part of a diff.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiffPart {
    /// In ascending order: first byte and length, in multiples of 4096.
    pub extents: Vec<(u64, u64)>,
    /// Where the next part begins; `None` at the end.
    pub next_bytes: Option<u64>,
}

/// What stands against a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Against {
    /// There is no such thing.
    NotFound,
    /// The name is taken.
    Exists,
    /// Hosts have it, or something depends on it.
    InUse,
    /// Space, memory for maps, or places are short.
    NoSpace,
    /// It can't be meant.
    Invalid,
    /// It was set aside.
    Damaged,
    /// Try again: something else is under way.
    Busy,
    /// A device failed.
    Device,
}

/// A request that was refused and has changed nothing: what, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Why, for programs.
    pub against: Against,
    /// What is wrong, with the names in it.
    pub what: String,
    /// What to do.
    pub cure: String,
}

impl Refusal {
    /// A refusal.
    pub fn new(against: Against, what: impl Into<String>, cure: impl Into<String>) -> Refusal {
        Refusal { against, what: what.into(), cure: cure.into() }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.what, self.cure)
    }
}

impl std::error::Error for Refusal {}
