//! The API's JSON, as both ends read and write it: snake case, sizes in bytes, UUIDs as text. Scripts rely on the
//! names; a field is added, never changed. What a request doesn't know it refuses, what an answer doesn't know is
//! passed over.

use super::backend;
use crate::below::Below;
use crate::config::LunId;
use crate::spec::{Device, provisioning_word};
use bdev::pool::control::{
    Against, DiffPart, PoolCounts, PoolInfo, Provisioning, Refusal, SnapshotInfo, VolumeInfo,
};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// The version in every path.
pub const VERSION: &str = "v1";

/// Who answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// `pollux`.
    pub program: String,
    /// The program's version.
    pub version: String,
    /// The targets' names.
    pub targets: Vec<String>,
}

/// A refusal's body.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// It.
    pub error: ApiError,
}

/// What is wrong and what to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiError {
    /// For programs.
    pub against: Kind,
    /// For people: a sentence with the names in it.
    pub what: String,
    /// For people: what to do.
    pub cure: String,
}

impl ApiError {
    /// An error.
    pub fn new(against: Kind, what: impl Into<String>, cure: impl Into<String>) -> ApiError {
        ApiError { against, what: what.into(), cure: cure.into() }
    }
}

impl From<backend::Failure> for ApiError {
    fn from(failure: backend::Failure) -> ApiError {
        match failure {
            backend::Failure::Refused(Refusal { against, what, cure }) => {
                ApiError { against: against.into(), what, cure }
            }
            backend::Failure::Unanswered(who) => ApiError::new(
                Kind::Unanswered,
                format!("{who} did not answer in time: the change may be made, or be made later"),
                "look with the list commands what has become of it; if it stays so, the log says what it waits for",
            ),
        }
    }
}

/// What stands against a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
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
    /// Something else is under way, or too many ask.
    Busy,
    /// A device failed.
    Device,
    /// A reactor did not answer: the outcome isn't known.
    Unanswered,
    /// The path has no such method.
    Method,
    /// The request is too large.
    TooLarge,
    /// The request did not arrive in time.
    Slow,
    /// A mistake of ours.
    Internal,
}

impl From<Against> for Kind {
    fn from(against: Against) -> Kind {
        match against {
            Against::NotFound => Kind::NotFound,
            Against::Exists => Kind::Exists,
            Against::InUse => Kind::InUse,
            Against::NoSpace => Kind::NoSpace,
            Against::Invalid => Kind::Invalid,
            Against::Damaged => Kind::Damaged,
            Against::Busy => Kind::Busy,
            Against::Device => Kind::Device,
        }
    }
}

/// 16 bytes as UUIDs are written.
pub fn uuid(bytes: &[u8; 16]) -> String {
    LunId(*bytes).to_string()
}

/// How a volume's space is promised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Provision {
    /// Taken as it is written.
    Thin,
    /// Set aside.
    Thick,
}

impl From<Provisioning> for Provision {
    fn from(provisioning: Provisioning) -> Provision {
        match provisioning {
            Provisioning::Thin => Provision::Thin,
            Provisioning::Thick => Provision::Thick,
        }
    }
}

impl From<Provision> for Provisioning {
    fn from(provision: Provision) -> Provisioning {
        match provision {
            Provision::Thin => Provisioning::Thin,
            Provision::Thick => Provisioning::Thick,
        }
    }
}

impl Provision {
    /// `thin` or `thick`.
    pub fn word(self) -> &'static str {
        provisioning_word(self.into())
    }
}

// Requests.

/// A device of a pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceSpec {
    /// Absolute.
    pub path: PathBuf,
    /// How much of it is used; all of it if left out. A file that isn't there is made this large.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
}

impl From<&DeviceSpec> for Device {
    fn from(spec: &DeviceSpec) -> Device {
        Device { path: spec.path.clone(), bytes: spec.size_bytes }
    }
}

/// A pool to be made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PoolCreate {
    /// Its name.
    pub name: String,
    /// Of what.
    pub devices: Vec<DeviceSpec>,
}

/// What a pool grows by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PoolGrow {
    /// New members, or members with a new size; none: whatever the members have grown by.
    #[serde(default)]
    pub devices: Vec<DeviceSpec>,
}

fn on() -> bool {
    true
}

fn thin() -> Provision {
    Provision::Thin
}

fn block() -> u32 {
    512
}

fn physical_block() -> u32 {
    4096
}

/// A volume to be made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeCreate {
    /// Its name.
    pub name: String,
    /// A multiple of 4096.
    pub size_bytes: u64,
    /// Thin unless said otherwise.
    #[serde(default = "thin")]
    pub provisioning: Provision,
    /// 512 unless said otherwise, or 4096.
    #[serde(default = "block")]
    pub block_bytes: u32,
    /// 4096 unless said otherwise, or 512.
    #[serde(default = "physical_block")]
    pub physical_block_bytes: u32,
    /// On unless said otherwise.
    #[serde(default = "on")]
    pub zero_detect: bool,
    /// Off unless said otherwise.
    #[serde(default)]
    pub write_cache: bool,
}

/// A volume's new size.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeResize {
    /// A multiple of 4096.
    pub size_bytes: u64,
    /// Data may go.
    #[serde(default)]
    pub shrink: bool,
    /// Also while sessions have it.
    #[serde(default)]
    pub force: bool,
}

/// What a volume goes back to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeRollback {
    /// The snapshot's own name.
    pub snapshot: String,
    /// Also while sessions have it.
    #[serde(default)]
    pub force: bool,
}

/// What changes of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeSet {
    /// Whether whole blocks of zeroes in writes become map state.
    pub zero_detect: bool,
}

/// A snapshot to be made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotCreate {
    /// Its own name.
    pub name: String,
}

/// A volume to be made from a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotClone {
    /// The new volume's name.
    pub name: String,
    /// As the snapshot's volume if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provisioning: Option<Provision>,
}

/// A volume to be shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LunMap {
    /// The volume's pool.
    pub pool: String,
    /// The volume.
    pub volume: String,
    /// By which target; may be left out where there is only one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Under which number; the lowest that is free if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lun: Option<u16>,
    /// Writes are refused.
    #[serde(default)]
    pub read_only: bool,
    /// The medium can be ejected.
    #[serde(default)]
    pub removable: bool,
}

// Answers.

/// Something is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deleted {
    /// What: `pool`, `volume` or `snapshot`, and its name.
    pub deleted: String,
}

/// All pools.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pools {
    /// By name.
    pub pools: Vec<Pool>,
}

/// A pool; see [`PoolInfo`], whose fields these are but for what is free.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "as in PoolInfo")]
pub struct Pool {
    pub name: String,
    pub uuid: String,
    pub members: Vec<Member>,
    pub chunk_bytes: u64,
    pub data_bytes: u64,
    /// What can be written yet: in chunks that nothing names, or what the file systems below can give if that is less.
    pub free_bytes: u64,
    /// In chunks that nothing names, reserved ones included. Exact.
    pub free_chunk_bytes: u64,
    /// What the file systems below can still give; `null` if no member is a file.
    pub file_system_free_bytes: Option<u64>,
    pub reserved_bytes: u64,
    pub heartbeat_reserve_bytes: u64,
    pub pending_bytes: u64,
    pub token_bytes: u64,
    pub metadata_bytes: u64,
    pub metadata_used_bytes: u64,
    pub map_memory_bytes: u64,
    pub map_memory_max_bytes: u64,
    pub volumes: u64,
    pub snapshots: u64,
    pub damaged: Vec<Damage>,
    pub counts: Counts,
}

/// A member of a pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Where it is.
    pub path: String,
    /// Its length, as used.
    pub size_bytes: u64,
}

/// A volume that was set aside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Damage {
    /// Which.
    pub volume: String,
    /// What is wrong with it.
    pub what: String,
}

/// What a pool has done since the start; see [`PoolCounts`], whose fields these are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "as in PoolCounts")]
pub struct Counts {
    pub writes_in_place: u64,
    pub writes_redirected: u64,
    pub writes_merged: u64,
    pub host_write_bytes: u64,
    pub data_write_bytes: u64,
    pub data_read_bytes: u64,
    pub journal_write_bytes: u64,
    pub checkpoint_write_bytes: u64,
    pub commits: u64,
    pub records: u64,
    pub checkpoints: u64,
    pub zero_blocks_detected: u64,
    pub copy_shared_bytes: u64,
    pub copy_misaligned_bytes: u64,
    pub copy_edge_bytes: u64,
    pub copy_count_full_bytes: u64,
    pub copy_refused_bytes: u64,
    pub folds: u64,
    pub chunk_messages: u64,
    pub unmap_left_blocks: u64,
    pub punched_bytes: u64,
}

impl Pool {
    /// A pool, and what stands below its files.
    pub fn of(info: PoolInfo, below: Option<Below>) -> Pool {
        let member =
            |member: bdev::pool::control::MemberInfo| Member { path: member.path, size_bytes: member.bytes };
        Pool {
            name: info.name,
            uuid: uuid(&info.uuid),
            members: info.members.into_iter().map(member).collect(),
            chunk_bytes: info.chunk_bytes,
            data_bytes: info.data_bytes,
            free_bytes: below.map_or(info.free_bytes, |below| below.usable(info.free_bytes)),
            free_chunk_bytes: info.free_bytes,
            file_system_free_bytes: below.map(|below| below.free_bytes),
            reserved_bytes: info.reserved_bytes,
            heartbeat_reserve_bytes: info.heartbeat_reserve_bytes,
            pending_bytes: info.pending_bytes,
            token_bytes: info.token_bytes,
            metadata_bytes: info.metadata_bytes,
            metadata_used_bytes: info.metadata_used_bytes,
            map_memory_bytes: info.map_memory_bytes,
            map_memory_max_bytes: info.map_memory_max_bytes,
            volumes: info.volumes,
            snapshots: info.snapshots,
            damaged: info.damaged.into_iter().map(|(volume, what)| Damage { volume, what }).collect(),
            counts: info.counts.into(),
        }
    }
}

impl From<PoolCounts> for Counts {
    fn from(counts: PoolCounts) -> Counts {
        // Taken apart whole, so that a count that is added there is missed here.
        let PoolCounts {
            writes_in_place,
            writes_redirected,
            writes_merged,
            host_write_bytes,
            data_write_bytes,
            data_read_bytes,
            journal_write_bytes,
            checkpoint_write_bytes,
            commits,
            records,
            checkpoints,
            zero_blocks_detected,
            copy_shared_bytes,
            copy_misaligned_bytes,
            copy_edge_bytes,
            copy_count_full_bytes,
            copy_refused_bytes,
            folds,
            chunk_messages,
            unmap_left_blocks,
            punched_bytes,
        } = counts;
        Counts {
            writes_in_place,
            writes_redirected,
            writes_merged,
            host_write_bytes,
            data_write_bytes,
            data_read_bytes,
            journal_write_bytes,
            checkpoint_write_bytes,
            commits,
            records,
            checkpoints,
            zero_blocks_detected,
            copy_shared_bytes,
            copy_misaligned_bytes,
            copy_edge_bytes,
            copy_count_full_bytes,
            copy_refused_bytes,
            folds,
            chunk_messages,
            unmap_left_blocks,
            punched_bytes,
        }
    }
}

/// A pool's volumes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volumes {
    /// In the order of their making.
    pub volumes: Vec<Volume>,
}

/// A volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Its pool's name.
    pub pool: String,
    /// Its name.
    pub name: String,
    /// Its id in the pool, never used again.
    pub id: u64,
    /// Its UUID.
    pub uuid: String,
    /// Its size: provisioned.
    pub size_bytes: u64,
    /// Logical block.
    pub block_bytes: u32,
    /// Physical block.
    pub physical_block_bytes: u32,
    /// Thin or thick.
    pub provisioning: Provision,
    /// Whether whole blocks of zeroes in writes become map state.
    pub zero_detect: bool,
    /// Writes are acknowledged before they are on the medium.
    pub write_cache: bool,
    /// Bytes that are mapped. Exact.
    pub mapped_bytes: u64,
    /// Bytes set aside for it. Exact.
    pub reserved_bytes: u64,
    /// From the last walk; `null` before the first.
    pub usage: Option<Usage>,
    /// How many snapshots it has.
    pub snapshots: u64,
    /// `volume@snapshot` that it was cloned from, if that is still there.
    pub origin: Option<String>,
    /// Units show it.
    pub attached: bool,
    /// What is wrong with it, if it was set aside.
    pub damage: Option<String>,
}

/// What a background walk has found of a volume or a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Bytes in chunks that no other volume or snapshot names: what deleting this one alone would give back.
    pub unique_bytes: u64,
    /// Bytes in chunks that another one names, too; `null` of snapshots.
    pub shared_bytes: Option<u64>,
    /// When the walk ended, in seconds since 1970.
    pub at_seconds: u64,
    /// Nothing that is named has changed since the walk began.
    pub exact: bool,
}

impl From<bdev::pool::control::Usage> for Usage {
    fn from(usage: bdev::pool::control::Usage) -> Usage {
        let bdev::pool::control::Usage { unique_bytes, shared_bytes, at_seconds, exact } = usage;
        Usage { unique_bytes, shared_bytes, at_seconds, exact }
    }
}

impl Volume {
    /// A volume of that pool.
    pub fn of(pool: &str, info: VolumeInfo) -> Volume {
        Volume {
            pool: pool.to_owned(),
            name: info.name,
            id: info.id,
            uuid: uuid(&info.uuid),
            size_bytes: info.bytes,
            block_bytes: info.block_bytes,
            physical_block_bytes: info.physical_block_bytes,
            provisioning: info.provisioning.into(),
            zero_detect: info.zero_detect,
            write_cache: info.write_cache,
            mapped_bytes: info.mapped_bytes,
            reserved_bytes: info.reserved_bytes,
            usage: info.usage.map(Usage::from),
            snapshots: info.snapshots,
            origin: info.origin,
            attached: info.attached,
            damage: info.damage,
        }
    }
}

/// A pool's snapshots.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshots {
    /// In the order of their making.
    pub snapshots: Vec<Snapshot>,
}

/// A snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Its pool's name.
    pub pool: String,
    /// Its volume's name.
    pub volume: String,
    /// Its own name.
    pub name: String,
    /// Its id in the pool, never used again.
    pub id: u64,
    /// The size that the volume had.
    pub size_bytes: u64,
    /// Bytes that are mapped in it. Exact.
    pub mapped_bytes: u64,
    /// From the last walk; `null` before the first.
    pub usage: Option<Usage>,
    /// When it was made, in seconds since 1970.
    pub created_seconds: u64,
    /// Volumes that were cloned from it and are there.
    pub clones: u64,
}

impl Snapshot {
    /// A snapshot of that pool.
    pub fn of(pool: &str, info: SnapshotInfo) -> Snapshot {
        Snapshot {
            pool: pool.to_owned(),
            volume: info.volume,
            name: info.name,
            id: info.id,
            size_bytes: info.bytes,
            mapped_bytes: info.mapped_bytes,
            usage: info.usage.map(Usage::from),
            created_seconds: info.created_seconds,
            clones: info.clones,
        }
    }
}

/// A part of the extents in which two states differ.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diff {
    /// Ascending.
    pub extents: Vec<Extent>,
    /// Where the next part begins: ask again with it as `from_bytes`. `null` at the end.
    pub next_bytes: Option<u64>,
}

/// A piece of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// Its first byte.
    pub offset_bytes: u64,
    /// How many.
    pub length_bytes: u64,
}

impl From<DiffPart> for Diff {
    fn from(part: DiffPart) -> Diff {
        let extent = |(offset_bytes, length_bytes)| Extent { offset_bytes, length_bytes };
        Diff { extents: part.extents.into_iter().map(extent).collect(), next_bytes: part.next_bytes }
    }
}

/// All units.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Luns {
    /// By target and number.
    pub luns: Vec<Lun>,
}

/// A unit, or a mapping whose unit isn't served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lun {
    /// The target's name.
    pub target: String,
    /// Its number.
    pub lun: u16,
    /// Hosts can use it. A mapping whose volume couldn't be attached isn't served.
    pub served: bool,
    /// Where it comes from.
    pub source: Source,
    /// The volume's pool, if it shows a volume.
    pub pool: Option<String>,
    /// The volume, if it shows one.
    pub volume: Option<String>,
    /// What stands behind it, as a LUN SPEC; `null` if it isn't served, as with the next three.
    pub spec: Option<String>,
    /// Capacity.
    pub size_bytes: Option<u64>,
    /// Logical block.
    pub block_bytes: Option<u32>,
    /// Physical block.
    pub physical_block_bytes: Option<u32>,
    /// Writes are refused.
    pub read_only: bool,
    /// The medium can be ejected.
    pub removable: bool,
    /// Its identity, if it is served, as with the next two.
    pub id: Option<String>,
    /// The name that hosts show for it.
    pub name: Option<String>,
    /// How many sessions have it.
    pub sessions: Option<u32>,
    /// What third-party copies have done to it.
    pub copies: Option<Copies>,
}

/// What third-party copies have done to a unit since its device was there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Copies {
    /// Segments that have ended.
    pub segments: u64,
    /// Of them, that failed or were given up.
    pub failed: u64,
    /// By pointers: no data was read or written.
    pub shared_bytes: u64,
    /// Read and written: less than 4 KiB at an end of what could be shared.
    pub edge_bytes: u64,
    /// Read and written: source and destination lie differently in their chunks.
    pub misaligned_bytes: u64,
    /// Read and written: source and destination are not volumes of one pool.
    pub apart_bytes: u64,
    /// Read and written: a chunk of the source has as many names as copies may make.
    pub count_full_bytes: u64,
    /// Not copied, of segments that failed.
    pub not_moved_bytes: u64,
    /// Time of all segments together.
    pub microseconds: u64,
}

impl Copies {
    /// What was read and written.
    pub fn copied_bytes(&self) -> u64 {
        self.edge_bytes + self.misaligned_bytes + self.apart_bytes + self.count_full_bytes
    }
}

impl From<bdev::storage::CopyCounts> for Copies {
    fn from(counts: bdev::storage::CopyCounts) -> Copies {
        Copies {
            segments: counts.copies,
            failed: counts.failed,
            shared_bytes: counts.moved.shared_bytes,
            edge_bytes: counts.moved.edge_bytes,
            misaligned_bytes: counts.moved.misaligned_bytes,
            apart_bytes: counts.moved.apart_bytes,
            count_full_bytes: counts.moved.count_full_bytes,
            not_moved_bytes: counts.not_moved_bytes,
            microseconds: counts.ns / 1000,
        }
    }
}

/// Where a unit comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// The configuration or the command line.
    Configuration,
    /// A pool's catalog: it was mapped.
    Catalog,
}

impl Lun {
    /// A unit that is served.
    pub fn of(unit: backend::Unit, sessions: u32, copies: bdev::storage::CopyCounts) -> Lun {
        let (pool, volume) = unit.volume.map(|volume| (volume.pool, volume.volume)).unzip();
        Lun {
            target: unit.target,
            lun: unit.lun,
            served: true,
            source: match unit.source {
                backend::Source::Configuration => Source::Configuration,
                backend::Source::Catalog => Source::Catalog,
            },
            pool,
            volume,
            spec: Some(unit.spec),
            size_bytes: Some(unit.bytes),
            block_bytes: Some(unit.block_bytes),
            physical_block_bytes: Some(unit.physical_block_bytes),
            read_only: unit.read_only,
            removable: unit.removable,
            id: Some(uuid(&unit.id)),
            name: Some(unit.name),
            sessions: Some(sessions),
            copies: Some(copies.into()),
        }
    }

    /// A mapping whose unit isn't served.
    pub fn unserved(pool: &str, mapping: bdev::pool::control::Mapping) -> Lun {
        Lun {
            target: mapping.target,
            lun: mapping.lun,
            served: false,
            source: Source::Catalog,
            pool: Some(pool.to_owned()),
            volume: Some(mapping.volume),
            spec: None,
            size_bytes: None,
            block_bytes: None,
            physical_block_bytes: None,
            read_only: mapping.read_only,
            removable: mapping.removable,
            id: None,
            name: None,
            sessions: None,
            copies: None,
        }
    }
}

/// A unit is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unmapped {
    /// What it was.
    pub unmapped: Lun,
}
