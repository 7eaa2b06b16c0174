//! The pool's owner, on core 0: takes what people ask for one at a time and does it in stages, each on all cores.
//!
//! What a snapshot is: writes are held at admission on every core, those admitted come back, every core's share of the
//! root forks, the catalog says so durably, and then writes go on, to the new root. So a snapshot lies between the
//! writes, and no write to a new root is answered before the catalog knows of it.

use super::catalog::{Catalog, Edit, RootOrigin, Snapshot, Volume};
use super::control::{
    Against, Answer, Answered, DIFF_EXTENTS_MAX, DiffPart, MemberInfo, NAME_CHARS, NewMember, PoolCounts,
    PoolInfo, Provisioning, RESERVATIONS_BYTES_MAX, RESERVATIONS_POOL_BYTES_MAX, Refusal, Request,
    SNAPSHOTS_MAX, SnapshotInfo, VOLUME_BYTES_MAX, VOLUMES_MAX, VolumeInfo, is_name,
};
use super::device::MemberFile;
use super::format::{DATA_AT, EXTENTS_MAX, Extent, MEMBERS_MAX, SUPERBLOCK_AT, Superblock};
use super::mail::{Attached, Status, Tell, What};
use super::map::{LEAF_SLOTS, RootId};
use super::record;
use super::rule::Rule;
use super::shard::{Asked, PoolShard, User};
use super::slot::{BLOCK_BYTES, CHUNK_BYTES, SLOT_BLOCKS};
use super::usage::Walks;
use crate::error::IoError;
use crate::geometry::Geometry;
use crate::io::{ATOMIC_BYTES_MAX, BdevId};
use crate::stripe::STRIPE_BYTES;
use reactor::Core;
use reactor::buf::Buf;
use reactor::clock::Time;
use reactor::disk::DiskAction;
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::Ordering;
use std::time::Duration;

/// The owner's own: nobody hears of the answer.
const OWN_TICKET: u64 = u64::MAX;
/// How often dead roots are looked at.
const BURY_EVERY: Duration = Duration::from_secs(5);
/// More dead roots than this have a checkpoint made for them.
const DEAD_MANY: usize = 256;

/// Mappings that one record takes back: each may have the longest target name, of 223 bytes.
const MAPPINGS_A_RECORD: usize = 16;
/// Roots that one record changes.
const ROOTS_A_RECORD: usize = 128;

/// Requests that wait for their turn.
pub const REQUESTS_MAX: usize = 1024;
/// How long writes are held for a snapshot before they are let go and it is tried again.
const HOLD_MAX: Duration = Duration::from_millis(100);
/// How often it is tried.
const HOLD_TRIES: u32 = 5;
/// Device numbers of a pool: that of what tokens hold, and one for each volume.
pub const POOL_BDEVS: u16 = 1 + VOLUMES_MAX as u16;
/// The place among them of what tokens hold; volumes come behind it.
pub const TOKENS_PLACE: u16 = 0;

#[derive(Debug)]
enum Stage {
    Hold(BdevId),
    Release(BdevId),
    Flush,
    Fork {
        from: RootId,
        to: RootId,
        truncated: u64,
        bdev: Option<BdevId>,
    },
    /// Reserves what a thick volume's sharing takes; refused when there isn't as much.
    ReservePrivate(RootId),
    /// Gives back what a thick volume of so many slots has reserved.
    Unreserve(RootId, i64),
    /// Not yet durable when nothing was appended.
    Commit(Vec<Edit>),
    Attach(BdevId, Attached),
    Detach(BdevId),
    Drop(RootId),
    /// The catalog knows what is damaged: checkpoints may write anew what is left.
    DamageNoted,
    /// Nobody takes writes any more: what roots they go to will not be found again.
    Break,
    /// Writes superblocks to all members, those that are new too.
    Superblocks(Box<Superblock>, Vec<MemberFile>),
    /// All cores know the members, and where chunks are.
    Grow(Box<Superblock>, Vec<MemberFile>, Vec<String>),
    /// The pool has so many chunks more from now on. Not before all know where they are: who is granted one by another
    /// core would look for it in the extents that it knows.
    GrowSpace(i64),
    Status(Vec<RootId>, Report),
    Diff {
        a: RootId,
        b: RootId,
        from_bytes: u64,
        end_stripe: u64,
    },
    Answer(Box<Answer>),
}

#[derive(Clone, Debug)]
enum Report {
    Pool,
    Volumes,
    Snapshots(Option<u64>),
}

#[derive(Debug)]
struct Current {
    ticket: u64,
    stages: VecDeque<Stage>,
    /// Answers that the stage waits for.
    left: u32,
    gathered: Vec<(Core, Tell)>,
    /// The record that the stage waits for.
    record: Option<(u64, Vec<Edit>)>,
    held: Option<BdevId>,
    held_since: Time,
    /// A volume goes by a root that the catalog does not have yet, or the next opening may find that it goes by another or is gone.
    is_forked: bool,
    tries: u32,
    refused: Option<Refusal>,
    reserved: i64,
    /// Its record does not fit into the journal before a checkpoint ends.
    waits_for_room: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Owner {
    pub(super) catalog: Catalog,
    /// What tokens hold, which the catalog doesn't know.
    tokens: RootId,
    pub(super) damage: BTreeMap<RootId, String>,
    /// Damage that the catalog does not know of yet.
    unnoted: Vec<Edit>,
    /// Superblocks of the next generation are written in part: it is taken, and what the members say only an opening tells.
    grow_refused: Option<Refusal>,
    queue: VecDeque<(u64, Request)>,
    current: Option<Current>,
    answers: VecDeque<(u64, Answered)>,
    bdevs: BTreeMap<u64, BdevId>,
    /// Roots that are dropped everywhere, and how many checkpoints each core had ended then.
    dead: Vec<(RootId, Option<Vec<u64>>)>,
    /// Drops that are under way: how many cores have not said so.
    dropping: BTreeMap<RootId, u32>,
    buried_at: Time,
    /// Seconds since 1970, as the program said with the last request, and when that was.
    wall_seconds: u64,
    pub(super) wall_at: Option<Time>,
    pub(super) walks: Walks,
}

impl Owner {
    pub(super) fn new(mut catalog: Catalog, tokens: RootId, damage: Vec<(RootId, String)>) -> Owner {
        let unnoted: Vec<Edit> = damage
            .iter()
            .filter_map(|&(root, _)| Some((root, *catalog.roots.get(&root)?)))
            .filter(|(_, origin)| !origin.damaged)
            .map(|(root, origin)| Edit::PutRoot(root, RootOrigin { damaged: true, ..origin }))
            .collect();
        for edit in &unnoted {
            if let Edit::PutRoot(id, origin) = edit {
                catalog.roots.insert(*id, *origin);
            }
        }
        let dead =
            catalog.roots.iter().filter(|(_, origin)| origin.dead).map(|(&root, _)| (root, None)).collect();
        Owner {
            catalog,
            tokens,
            damage: damage.into_iter().collect(),
            unnoted,
            grow_refused: None,
            queue: VecDeque::new(),
            current: None,
            answers: VecDeque::new(),
            bdevs: BTreeMap::new(),
            dead,
            dropping: BTreeMap::new(),
            buried_at: Time::ZERO,
            wall_seconds: 0,
            wall_at: None,
            walks: Walks::default(),
        }
    }

    /// Seconds since 1970, about.
    pub(super) fn wall_seconds(&self, now: Time) -> u64 {
        self.wall_seconds + self.wall_at.map_or(0, |then| now.since(then).as_secs())
    }

    /// Answers who asked.
    pub(super) fn answer(&mut self, ticket: u64, answer: Answered) {
        self.answers.push_back((ticket, answer));
    }

    /// A transaction is appended and not applied yet.
    pub(super) fn is_committing(&self) -> bool {
        self.current.as_ref().is_some_and(|current| current.record.is_some())
    }

    fn find(&self, name: &str) -> Result<&Volume, Refusal> {
        let Some(volume) = self.catalog.volume(name) else {
            let cure = "`pollux volume list` shows those there are";
            return Err(Refusal::new(Against::NotFound, format!("there is no volume {name:?}"), cure));
        };
        if let Some(damage) = self.damage.get(&volume.root) {
            let what = format!("volume {name:?} was set aside: {damage}");
            return Err(Refusal::new(
                Against::Damaged,
                what,
                "roll it back to a snapshot that is whole, or delete it",
            ));
        }
        Ok(volume)
    }

    fn find_snapshot(&self, name: &str) -> Result<&Snapshot, Refusal> {
        self.catalog.snapshot(name).ok_or_else(|| {
            let cure = "name it as volume@snapshot; `pollux snapshot list` shows those there are";
            Refusal::new(Against::NotFound, format!("there is no snapshot {name:?}"), cure)
        })
    }

    fn new_name(&self, name: &str) -> Result<(), Refusal> {
        if !is_name(name) {
            let cure = format!("use up to {} {NAME_CHARS}", super::control::NAME_BYTES_MAX);
            return Err(Refusal::new(Against::Invalid, format!("{name:?} can't be a name"), cure));
        }
        if self.catalog.volume(name).is_some() {
            return Err(Refusal::new(
                Against::Exists,
                format!("there is a volume {name:?} already"),
                "take another name",
            ));
        }
        if self.catalog.volumes.len() >= VOLUMES_MAX {
            let what = format!("the pool has {VOLUMES_MAX} volumes");
            return Err(Refusal::new(Against::NoSpace, what, "delete one that is not needed"));
        }
        Ok(())
    }

    fn refuse_mapped(&self, volume: &Volume, force: bool, what: &str) -> Result<(), Refusal> {
        if self.bdevs.contains_key(&volume.id) && !force {
            let what = format!("hosts have volume {:?}: {what} would change it under them", volume.name);
            return Err(Refusal::new(
                Against::InUse,
                what,
                "unmap it first, or force it if the hosts can take that",
            ));
        }
        Ok(())
    }
}

/// Whether a request needs the catalog to be written.
fn changes(request: &Request) -> bool {
    match request {
        Request::Pool
        | Request::Volumes
        | Request::UsageWalk
        | Request::Snapshots { .. }
        | Request::SnapshotDiff { .. }
        | Request::Attach { .. }
        | Request::Detach { .. }
        | Request::Mappings => false,
        Request::VolumeCreate(_)
        | Request::VolumeResize { .. }
        | Request::VolumeClone { .. }
        | Request::VolumeRollback { .. }
        | Request::VolumeDelete { .. }
        | Request::VolumeSet { .. }
        | Request::SnapshotCreate { .. }
        | Request::SnapshotDelete { .. }
        | Request::MappingPut(_)
        | Request::MappingRemove { .. }
        | Request::ReservationsPut { .. }
        | Request::Grow { .. } => true,
    }
}

fn check_size(bytes: u64) -> Result<(), Refusal> {
    if bytes == 0 || !bytes.is_multiple_of(BLOCK_BYTES) || bytes > VOLUME_BYTES_MAX {
        let what = format!("a volume can't have {bytes} bytes");
        let cure = format!("give a multiple of {BLOCK_BYTES} from that up to {VOLUME_BYTES_MAX}");
        return Err(Refusal::new(Against::Invalid, what, cure));
    }
    Ok(())
}

fn no_space(bytes: u64) -> Refusal {
    let what = format!(
        "{bytes} bytes can't be reserved: the pool has not as much that is free and promised to nobody"
    );
    Refusal::new(Against::NoSpace, what, "grow the pool, delete something, or make it thin")
}

fn slots_of(bytes: u64) -> i64 {
    bytes.div_ceil(CHUNK_BYTES) as i64
}

/// What hosts see of a volume.
fn geometry(volume: &Volume) -> Geometry {
    Geometry {
        block_bytes: volume.block_bytes,
        physical_block_bytes: volume.physical_block_bytes,
        blocks: volume.bytes / u64::from(volume.block_bytes),
        unmap_granularity_bytes: CHUNK_BYTES as u32,
        write_zeroes: true,
        write_cache: volume.write_cache,
        read_only: false,
        rotational: false,
        pooled: true,
        // It goes to a second place for its blocks, which nothing is reserved for.
        atomic_bytes: match volume.provisioning {
            Provisioning::Thin => ATOMIC_BYTES_MAX,
            Provisioning::Thick => 0,
        },
    }
}

fn attached(volume: &Volume) -> Attached {
    Attached {
        root: volume.root,
        geometry: geometry(volume),
        zero_detect: volume.zero_detect,
        thick: volume.provisioning == Provisioning::Thick,
    }
}

impl PoolShard {
    /// Asks the owner for something; only on core 0. Answered once, under the same ticket.
    pub fn request(&mut self, ticket: u64, request: Request, wall_seconds: u64) {
        let Some(owner) = &mut self.owner else { unreachable!("core 0 has the owner") };
        (owner.wall_seconds, owner.wall_at) = (wall_seconds, None);
        if request == Request::UsageWalk {
            if let Err(refusal) = owner.walks.want(ticket) {
                owner.answer(ticket, Err(refusal));
            }
            return;
        }
        if owner.queue.len() >= REQUESTS_MAX {
            let refusal =
                Refusal::new(Against::Busy, "too many requests wait for the pool", "try again in a moment");
            return owner.answers.push_back((ticket, Err(refusal)));
        }
        owner.queue.push_back((ticket, request));
    }

    /// The next answer.
    pub fn poll_answer(&mut self) -> Option<(u64, Answered)> {
        self.owner.as_mut()?.answers.pop_front()
    }

    fn owner(&mut self) -> &mut Owner {
        self.owner.as_mut().expect("core 0 has the owner")
    }

    pub(super) fn owner_turn(&mut self) -> bool {
        if self.owner.is_none() {
            return false;
        }
        let now = self.now;
        if !self.super_queue.is_empty() && !self.super_out {
            self.write_superblock();
        }
        if self.owner().current.is_none() && !self.owner().unnoted.is_empty() && self.broken.is_none() {
            let edits = std::mem::take(&mut self.owner().unnoted);
            let mut stages: VecDeque<Stage> =
                edits.chunks(ROOTS_A_RECORD).map(|edits| Stage::Commit(edits.to_vec())).collect();
            stages.extend([Stage::DamageNoted, Stage::Answer(Box::new(Answer::Done))]);
            self.begin_stages(OWN_TICKET, stages);
            return true;
        }
        if self.owner().current.is_none()
            && self.owner().queue.is_empty()
            && !self.owner().dead.is_empty()
            && now.since(self.owner().buried_at) >= BURY_EVERY
            && self.broken.is_none()
        {
            self.owner().buried_at = now;
            let many = self.owner().dead.len() > DEAD_MANY;
            if many {
                for core in 0..self.cores {
                    self.ask(Core(core), Asked::Nothing, What::Checkpoint);
                }
            }
            self.owner().queue.push_back((OWN_TICKET, Request::Snapshots { volume: None }));
        }
        if self.owner().current.is_none() {
            let is_change = self.owner().queue.front().is_some_and(|(_, request)| changes(request));
            if is_change && self.broken.is_none() && !self.journal_has_room(1) {
                // Better now than with a volume held.
                self.checkpointer.wanted = true;
                return false;
            }
            let Some((ticket, request)) = self.owner().queue.pop_front() else { return false };
            if let Some(error) = self.broken
                && changes(&request)
            {
                let what = format!("the pool takes no more changes: {error:?}");
                let refusal =
                    Refusal::new(Against::Device, what, "look at the log, repair the device, start again");
                self.owner().answers.push_back((ticket, Err(refusal)));
                return true;
            }
            match self.stages(request) {
                Ok(stages) => self.begin_stages(ticket, stages),
                Err(refusal) => self.owner().answers.push_back((ticket, Err(refusal))),
            }
            return true;
        }
        let broken = self.broken;
        let durable = self.journal.durable();
        let Some(current) = &mut self.owner().current else { return false };
        if current.waits_for_room {
            if broken.is_none() && !self.journal_has_room_for_catalog() {
                return false;
            }
            if let Some(current) = &mut self.owner().current {
                current.waits_for_room = false;
            }
            self.next_stage();
            return true;
        }
        if let Some((record, _)) = &current.record {
            if durable >= *record {
                let (_, edits) = current.record.take().expect("looked at just now");
                current.is_forked = false;
                self.apply_edits(&edits);
                self.stage_done();
                return true;
            }
            if broken.is_some() {
                let (_, edits) = current.record.take().expect("looked at just now");
                if edits.iter().all(|edit| matches!(edit, Edit::RemoveRoot(_))) {
                    // What it buries on the way stays dead: who asked for a list gets it.
                    self.stage_done();
                    return true;
                }
                let may_move = edits.iter().any(|edit| self.moves_a_volume(edit));
                let Some(current) = &mut self.owner().current else { return false };
                current.is_forked |= may_move;
                let what = "the catalog could not be written";
                current.refused = Some(Refusal::new(
                    Against::Device,
                    what,
                    "look at the log, repair the device, start again",
                ));
                self.end_current();
                return true;
            }
        }
        // Held for too long: a write is stuck. Let go, and try again.
        let cores = u32::from(self.cores);
        let Some(current) = &mut self.owner().current else { return false };
        if let Some(bdev) = current.held
            && matches!(current.stages.front(), Some(Stage::Hold(_)))
            && current.left > 0
            && now.since(current.held_since) > HOLD_MAX
        {
            current.tries += 1;
            let again = current.tries < HOLD_TRIES;
            if !again {
                current.refused = Some(Refusal::new(
                    Against::Busy,
                    "a write to the volume did not come back in time",
                    "look at the devices below the pool, then try again",
                ));
                current.stages = VecDeque::from([Stage::Answer(Box::new(Answer::Done))]);
            }
            current.held = None;
            // The answers to the hold come before the release's.
            current.left += cores;
            self.broadcast_only(|| What::Release { bdev });
            return true;
        }
        false
    }

    fn begin_stages(&mut self, ticket: u64, stages: VecDeque<Stage>) {
        let now = self.now;
        self.owner().current = Some(Current {
            ticket,
            stages,
            left: 0,
            gathered: Vec::new(),
            record: None,
            held: None,
            held_since: now,
            is_forked: false,
            tries: 0,
            refused: None,
            reserved: 0,
            waits_for_room: false,
        });
        self.next_stage();
    }

    fn broadcast_only(&mut self, what: impl Fn() -> What) {
        for core in 0..self.cores {
            self.ask(Core(core), Asked::Owner, what());
        }
    }

    fn broadcast(&mut self, what: impl Fn() -> What) {
        let cores = u32::from(self.cores);
        if let Some(current) = &mut self.owner().current {
            current.left = cores;
            current.gathered.clear();
        }
        self.broadcast_only(what);
    }

    /// A core has answered.
    pub(super) fn owner_told(&mut self, from: Core, tell: Tell) {
        let Some(current) = &mut self.owner().current else { return };
        current.gathered.push((from, tell));
        current.left -= 1;
        if current.left == 0 {
            self.stage_done();
        }
    }

    /// A core has dropped its share of a root.
    pub(super) fn owner_dropped(&mut self, root: RootId) {
        let owner = self.owner();
        if let Some(left) = owner.dropping.get_mut(&root) {
            *left -= 1;
            if *left == 0 {
                owner.dropping.remove(&root);
                owner.dead.push((root, None));
            }
        }
    }

    /// Begins the stage at the front.
    fn next_stage(&mut self) {
        let now = self.now;
        let Some(current) = &mut self.owner().current else { return };
        let Some(stage) = current.stages.front_mut() else { return self.end_current() };
        match stage {
            Stage::Hold(bdev) => {
                let bdev = *bdev;
                current.held = Some(bdev);
                current.held_since = now;
                if self.breaks(Rule::HoldBeforeFreeze) {
                    if let Some(current) = &mut self.owner().current {
                        current.held = None;
                    }
                    return self.stage_done();
                }
                self.broadcast(|| What::Hold { bdev });
            }
            Stage::Release(bdev) => {
                let bdev = *bdev;
                current.held = None;
                if self.breaks(Rule::HoldBeforeFreeze) {
                    return self.stage_done();
                }
                self.broadcast(|| What::Release { bdev });
            }
            Stage::Flush => self.broadcast(|| What::Flush),
            Stage::Fork { from, to, truncated, bdev } => {
                let (from, to, truncated, bdev) = (*from, *to, *truncated, *bdev);
                current.is_forked |= bdev.is_some();
                self.broadcast(|| What::Fork { from, to, truncated, bdev });
            }
            Stage::ReservePrivate(root) | Stage::Unreserve(root, _) => {
                let root = *root;
                self.broadcast(|| What::Private { root });
            }
            Stage::Commit(edits) => {
                let edits = std::mem::take(edits);
                if self.broken.is_none() && !self.journal_has_room_for_catalog() {
                    // Core 0's checkpoint has its catalog with it, so whatever that says is known with what it writes.
                    self.checkpointer.held = false;
                    self.checkpointer.wanted = true;
                    if let Some(current) = &mut self.owner().current {
                        current.stages[0] = Stage::Commit(edits);
                        current.waits_for_room = true;
                    }
                    return;
                }
                let sequence = self.owner().catalog.sequence + 1;
                let transaction = Catalog::encode_transaction(sequence, &edits);
                let record = self.append(true, |out, _| record::write_catalog(out, &transaction));
                let at_once = self.breaks(Rule::CatalogBeforeRelease);
                if let Some(current) = &mut self.owner().current {
                    current.record = Some((if at_once { 0 } else { record }, edits));
                }
                self.pump();
            }
            Stage::Attach(bdev, volume) => {
                let (bdev, volume) = (*bdev, *volume);
                self.broadcast(|| What::Attach { bdev, volume });
            }
            Stage::Detach(bdev) => {
                let bdev = *bdev;
                self.broadcast(|| What::Detach { bdev });
            }
            Stage::Drop(root) => {
                let root = *root;
                let cores = u32::from(self.cores);
                self.owner().dropping.insert(root, cores);
                for core in 0..self.cores {
                    self.ask(Core(core), Asked::Drop(root), What::Drop { root });
                }
                self.stage_done();
            }
            Stage::Superblocks(superblock, members) => {
                // Here first: they are written through these. Nothing is granted of them yet.
                let (superblock, members) = (superblock.clone(), members.clone());
                let known = self.superblock.members.len() as u16;
                self.devices.members = members;
                // The new ones whole before any other speaks of them: until then the pool is what it was without them.
                let all = superblock.members.len() as u16;
                let places = |members: std::ops::Range<u16>| {
                    SUPERBLOCK_AT
                        .into_iter()
                        .flat_map(move |at| members.clone().map(move |member| (member, at)))
                };
                for (member, at) in places(known..all).chain(places(0..known)) {
                    let bytes = Superblock { member, ..(*superblock).clone() }.encode();
                    self.super_queue.push_back((member, at, bytes));
                }
                self.write_superblock();
            }
            Stage::Grow(superblock, members, paths) => {
                let (superblock, members, paths) = (superblock.clone(), members.clone(), paths.clone());
                self.broadcast(|| What::Grow {
                    superblock: superblock.clone(),
                    members: members.clone(),
                    paths: paths.clone(),
                });
            }
            Stage::GrowSpace(_) => self.broadcast(|| What::GrowSpace),
            Stage::Status(roots, _) => {
                let roots = roots.clone();
                self.broadcast(|| What::Status { roots: roots.clone() });
            }
            Stage::Diff { a, b, from_bytes, end_stripe } => {
                let (a, b, from_stripe, end_stripe) = (*a, *b, *from_bytes / STRIPE_BYTES, *end_stripe);
                self.broadcast(|| What::Diff { a, b, from_stripe, end_stripe });
            }
            Stage::DamageNoted => self.broadcast(|| What::DamageNoted),
            Stage::Break => self.broadcast(|| What::Break),
            Stage::Answer(_) => self.stage_done(),
        }
    }

    /// All cores have answered the stage at the front.
    fn stage_done(&mut self) {
        let Some(current) = &mut self.owner().current else { return };
        if let Some((_, Tell::Failed(error))) =
            current.gathered.iter().find(|(_, tell)| matches!(tell, Tell::Failed(_)))
        {
            let what = format!("a device failed: {error:?}");
            current.refused =
                Some(Refusal::new(Against::Device, what, "look at the log, repair the device, try again"));
            return self.end_current();
        }
        if current.held.is_none()
            && matches!(current.stages.front(), Some(Stage::Hold(_)))
            && !self.breaks(Rule::HoldBeforeFreeze)
        {
            // Released after waiting too long: once more from the beginning.
            return self.next_stage();
        }
        let Some(current) = &mut self.owner().current else { return };
        let Some(stage) = current.stages.pop_front() else { return self.end_current() };
        let gathered = std::mem::take(&mut current.gathered);
        let private: i64 = gathered
            .iter()
            .map(|(_, tell)| if let Tell::Private(slots) = tell { *slots as i64 } else { 0 })
            .sum();
        match stage {
            Stage::ReservePrivate(_) => {
                if self.promises.reserve(private) {
                    if let Some(current) = &mut self.owner().current {
                        current.reserved += private;
                    }
                } else {
                    if let Some(current) = &mut self.owner().current {
                        current.refused = Some(no_space(private as u64 * CHUNK_BYTES));
                    }
                    return self.end_current();
                }
            }
            Stage::GrowSpace(chunks) => {
                if !self.breaks(Rule::HeartbeatsHaveTheirOwn) {
                    let kept = super::space::heartbeat_chunks(self.superblock.chunks());
                    self.promises.heartbeat.store(kept, Ordering::Release);
                }
                self.promises.give(chunks);
            }
            Stage::Detach(bdev) => self.owner().bdevs.retain(|_, known| *known != bdev),
            Stage::Unreserve(_, slots) => self.promises.unreserve(slots - private),
            Stage::Status(roots, report) => {
                // Behind what burying puts in front.
                let answer = self.report(&roots, &report, &gathered);
                if let Some(current) = &mut self.owner().current {
                    current.stages.push_back(Stage::Answer(Box::new(answer)));
                }
            }
            Stage::Diff { from_bytes, end_stripe, .. } => {
                let answer = merge_diff(gathered, from_bytes, end_stripe);
                if let Some(current) = &mut self.owner().current {
                    current.stages.push_front(Stage::Answer(Box::new(Answer::Diff(answer))));
                }
            }
            Stage::Answer(answer) => {
                let Some(current) = self.owner().current.take() else { return };
                let answer = current.refused.map_or(Ok(*answer), Err);
                if current.ticket != OWN_TICKET {
                    self.owner().answers.push_back((current.ticket, answer));
                }
                return;
            }
            _ => {}
        }
        self.next_stage();
    }

    /// Ends what is under way with its refusal; whoever is held is let go.
    fn end_current(&mut self) {
        let Some(current) = &mut self.owner().current else { return };
        current.stages.clear();
        current.gathered.clear();
        if current.refused.is_some() && current.reserved > 0 {
            let reserved = std::mem::take(&mut current.reserved);
            self.promises.unreserve(reserved);
        }
        let Some(current) = &mut self.owner().current else { return };
        current.stages.push_back(Stage::Answer(Box::new(Answer::Done)));
        if let Some(bdev) = current.held {
            current.stages.push_front(Stage::Release(bdev));
        }
        if std::mem::take(&mut current.is_forked) {
            // Before anyone is let go: a core that heard of it later would acknowledge a write that nobody finds again.
            current.stages.push_front(Stage::Break);
        }
        self.next_stage();
    }

    /// Whether what is written to a volume from now on is in vain if this is found on the medium: also to one that is no device
    /// now, and becomes one again.
    fn moves_a_volume(&mut self, edit: &Edit) -> bool {
        let volumes = &self.owner().catalog.volumes;
        match edit {
            Edit::PutVolume(volume) => volumes.get(&volume.id).is_some_and(|old| old.root != volume.root),
            Edit::RemoveVolume(_) => true,
            _ => false,
        }
    }

    fn apply_edits(&mut self, edits: &[Edit]) {
        let dead: Vec<RootId> = edits
            .iter()
            .filter_map(|edit| match edit {
                Edit::RemoveRoot(root) => Some(*root),
                _ => None,
            })
            .collect();
        let owner = self.owner();
        owner.catalog.apply(edits);
        owner.dead.retain(|(root, _)| !dead.contains(root));
    }

    fn stages(&mut self, request: Request) -> Result<VecDeque<Stage>, Refusal> {
        let first_bdev = self.first_bdev;
        let promises = std::sync::Arc::clone(&self.promises);
        let owner = self.owner();
        let id = owner.catalog.next_id;
        let mut stages = VecDeque::new();
        let done = Stage::Answer(Box::new(Answer::Done));
        match request {
            Request::Pool | Request::Volumes => {
                let report = if request == Request::Pool { Report::Pool } else { Report::Volumes };
                let roots = owner.catalog.volumes.values().map(|volume| volume.root);
                stages.push_back(Stage::Status(roots.chain([owner.tokens]).collect(), report));
            }
            // It has been put with those that wait for a walk.
            Request::UsageWalk => stages.push_back(done),
            Request::Snapshots { volume } => {
                let volume = volume.map(|name| owner.find(&name).map(|volume| volume.id)).transpose()?;
                let roots = owner.catalog.snapshots.values().map(|snapshot| snapshot.root).collect();
                stages.push_back(Stage::Status(roots, Report::Snapshots(volume)));
            }
            Request::VolumeCreate(spec) => {
                owner.new_name(&spec.name)?;
                check_size(spec.bytes)?;
                let sizes_fit = matches!(spec.block_bytes, 512 | 4096)
                    && matches!(spec.physical_block_bytes, 512 | 4096)
                    && spec.physical_block_bytes >= spec.block_bytes;
                if !sizes_fit {
                    let what =
                        format!("blocks of {} on {} bytes", spec.block_bytes, spec.physical_block_bytes);
                    return Err(Refusal::new(
                        Against::Invalid,
                        what,
                        "choose 512 or 4096, the physical one not smaller",
                    ));
                }
                if spec.provisioning == Provisioning::Thick && !promises.reserve(slots_of(spec.bytes)) {
                    return Err(no_space(spec.bytes));
                }
                let root = RootId(id);
                let volume = Volume {
                    id: id + 1,
                    name: spec.name,
                    uuid: uuid_of(&self.superblock.uuid, id + 1),
                    bytes: spec.bytes,
                    block_bytes: spec.block_bytes,
                    physical_block_bytes: spec.physical_block_bytes,
                    provisioning: spec.provisioning,
                    zero_detect: spec.zero_detect,
                    write_cache: spec.write_cache,
                    root,
                    origin: 0,
                };
                let origin =
                    RootOrigin { parent: RootId(0), truncated: u64::MAX, dead: false, damaged: false };
                stages.push_back(Stage::Commit(vec![
                    Edit::NextId(id + 2),
                    Edit::PutRoot(root, origin),
                    Edit::PutVolume(volume),
                ]));
                stages.push_back(done);
            }
            Request::VolumeSet { volume, zero_detect } => {
                let volume = Volume { zero_detect, ..owner.find(&volume)?.clone() };
                let bdev = owner.bdevs.get(&volume.id).copied();
                stages.push_back(Stage::Commit(vec![Edit::PutVolume(volume.clone())]));
                stages.extend(bdev.map(|bdev| Stage::Attach(bdev, attached(&volume))));
                stages.push_back(done);
            }
            Request::VolumeResize { volume, bytes, shrink, force } => {
                check_size(bytes)?;
                let old = owner.find(&volume)?.clone();
                let bdev = owner.bdevs.get(&old.id).copied();
                let thick = old.provisioning == Provisioning::Thick;
                let mut new = Volume { bytes, ..old.clone() };
                if bytes >= old.bytes {
                    if thick && !promises.reserve(slots_of(bytes) - slots_of(old.bytes)) {
                        return Err(no_space(bytes - old.bytes));
                    }
                    stages.push_back(Stage::Commit(vec![Edit::PutVolume(new.clone())]));
                    stages.extend(bdev.map(|bdev| Stage::Attach(bdev, attached(&new))));
                } else {
                    if !shrink {
                        let what = format!(
                            "volume {volume:?} has {} bytes: what is behind {bytes} would go",
                            old.bytes
                        );
                        return Err(Refusal::new(
                            Against::Invalid,
                            what,
                            "say that data may go, with --shrink",
                        ));
                    }
                    owner.refuse_mapped(&old, force, "a smaller size")?;
                    new.root = RootId(id);
                    stages.extend(bdev.map(Stage::Hold));
                    if thick {
                        // All of the new size is shared with what is being dropped: it is reserved anew.
                        let gone = slots_of(old.bytes) - slots_of(bytes);
                        stages.push_back(Stage::Unreserve(old.root, gone));
                    }
                    stages.push_back(Stage::Flush);
                    stages.push_back(Stage::Fork { from: old.root, to: new.root, truncated: bytes, bdev });
                    stages.push_back(Stage::Commit(vec![
                        Edit::NextId(id + 1),
                        Edit::PutRoot(
                            new.root,
                            RootOrigin { parent: old.root, truncated: bytes, dead: false, damaged: false },
                        ),
                        Edit::PutRoot(old.root, dead(&owner.catalog, old.root)),
                        Edit::PutVolume(new.clone()),
                    ]));
                    stages.extend(bdev.map(|bdev| Stage::Attach(bdev, attached(&new))));
                    stages.extend(bdev.map(Stage::Release));
                    stages.push_back(Stage::Drop(old.root));
                }
                stages.push_back(done);
            }
            Request::VolumeClone { snapshot, name, provisioning } => {
                owner.new_name(&name)?;
                let snapshot = owner.find_snapshot(&snapshot)?.clone();
                if let Some(damage) = owner.damage.get(&snapshot.root) {
                    let what = format!("the snapshot was set aside: {damage}");
                    return Err(Refusal::new(Against::Damaged, what, "take another snapshot"));
                }
                let Some(of) = owner.catalog.volumes.get(&snapshot.volume) else {
                    return Err(Refusal::new(
                        Against::NotFound,
                        "the snapshot's volume is gone",
                        "report this",
                    ));
                };
                let provisioning = provisioning.unwrap_or(of.provisioning);
                if provisioning == Provisioning::Thick && !promises.reserve(slots_of(snapshot.bytes)) {
                    return Err(no_space(snapshot.bytes));
                }
                let root = RootId(id);
                let volume = Volume {
                    id: id + 1,
                    name,
                    bytes: snapshot.bytes,
                    provisioning,
                    root,
                    origin: snapshot.id,
                    ..of.clone()
                };
                stages.push_back(Stage::Fork {
                    from: snapshot.root,
                    to: root,
                    truncated: u64::MAX,
                    bdev: None,
                });
                let uuid = uuid_of(&self.superblock.uuid, id + 1);
                stages.push_back(Stage::Commit(vec![
                    Edit::NextId(id + 2),
                    Edit::PutRoot(
                        root,
                        RootOrigin {
                            parent: snapshot.root,
                            truncated: u64::MAX,
                            dead: false,
                            damaged: false,
                        },
                    ),
                    Edit::PutVolume(Volume { uuid, ..volume }),
                ]));
                stages.push_back(done);
            }
            Request::VolumeRollback { volume, snapshot, force } => {
                let Some(old) = owner.catalog.volume(&volume).cloned() else {
                    return Err(owner.find(&volume).err().unwrap_or_else(|| no_space(0)));
                };
                let snapshot = owner.find_snapshot(&format!("{volume}@{snapshot}"))?.clone();
                owner.refuse_mapped(&old, force, "a roll back")?;
                if old.provisioning == Provisioning::Thick && old.bytes != snapshot.bytes {
                    let what = "a thick volume of another size can't be rolled back";
                    return Err(Refusal::new(Against::Invalid, what, "give it the snapshot's size first"));
                }
                let bdev = owner.bdevs.get(&old.id).copied();
                let new = Volume { root: RootId(id), bytes: snapshot.bytes, ..old.clone() };
                stages.extend(bdev.map(Stage::Hold));
                if old.provisioning == Provisioning::Thick {
                    stages.push_back(Stage::ReservePrivate(old.root));
                }
                stages.push_back(Stage::Flush);
                stages.push_back(Stage::Fork {
                    from: snapshot.root,
                    to: new.root,
                    truncated: u64::MAX,
                    bdev,
                });
                stages.push_back(Stage::Commit(vec![
                    Edit::NextId(id + 1),
                    Edit::PutRoot(
                        new.root,
                        RootOrigin {
                            parent: snapshot.root,
                            truncated: u64::MAX,
                            dead: false,
                            damaged: false,
                        },
                    ),
                    Edit::PutRoot(old.root, dead(&owner.catalog, old.root)),
                    Edit::PutVolume(new.clone()),
                ]));
                stages.extend(bdev.map(|bdev| Stage::Attach(bdev, attached(&new))));
                stages.extend(bdev.map(Stage::Release));
                stages.push_back(Stage::Drop(old.root));
                owner.damage.remove(&old.root);
                stages.push_back(done);
            }
            Request::VolumeDelete { volume, force } => {
                let Some(old) = owner.catalog.volume(&volume).cloned() else {
                    return Err(owner.find(&volume).err().unwrap_or_else(|| no_space(0)));
                };
                let snapshots =
                    owner.catalog.snapshots.values().filter(|snapshot| snapshot.volume == old.id).count();
                if snapshots > 0 {
                    let what = format!("volume {volume:?} has {snapshots} snapshots");
                    return Err(Refusal::new(Against::InUse, what, "delete them first"));
                }
                owner.refuse_mapped(&old, force, "deleting it")?;
                if let Some(bdev) = owner.bdevs.get(&old.id).copied() {
                    stages.push_back(Stage::Hold(bdev));
                    stages.push_back(Stage::Detach(bdev));
                    stages.push_back(Stage::Release(bdev));
                }
                if old.provisioning == Provisioning::Thick {
                    stages.push_back(Stage::Unreserve(old.root, slots_of(old.bytes)));
                }
                let mapped = owner.catalog.mappings.values().filter(|mapping| mapping.volume == volume);
                let unmap: Vec<Edit> =
                    mapped.map(|mapping| Edit::RemoveMapping(mapping.target.clone(), mapping.lun)).collect();
                stages.extend(unmap.chunks(MAPPINGS_A_RECORD).map(|edits| Stage::Commit(edits.to_vec())));
                stages.push_back(Stage::Commit(vec![
                    Edit::RemoveVolume(old.id),
                    Edit::PutRoot(old.root, dead(&owner.catalog, old.root)),
                ]));
                stages.push_back(Stage::Drop(old.root));
                stages.push_back(done);
            }
            Request::SnapshotCreate { volume, name } => {
                let volume = owner.find(&volume)?.clone();
                if !is_name(&name) {
                    let cure = format!("use up to {} {NAME_CHARS}", super::control::NAME_BYTES_MAX);
                    return Err(Refusal::new(Against::Invalid, format!("{name:?} can't be a name"), cure));
                }
                if owner.catalog.snapshots.values().any(|s| s.volume == volume.id && s.name == name) {
                    let what = format!("there is a snapshot {:?} already", format!("{}@{name}", volume.name));
                    return Err(Refusal::new(Against::Exists, what, "take another name"));
                }
                if owner.catalog.snapshots.len() >= SNAPSHOTS_MAX {
                    let what = format!("the pool has {SNAPSHOTS_MAX} snapshots");
                    return Err(Refusal::new(Against::NoSpace, what, "delete one that is not needed"));
                }
                let bdev = owner.bdevs.get(&volume.id).copied();
                let new = RootId(id);
                let snapshot = Snapshot {
                    id: id + 1,
                    volume: volume.id,
                    name,
                    root: volume.root,
                    bytes: volume.bytes,
                    created: owner.wall_seconds,
                };
                stages.extend(bdev.map(Stage::Hold));
                if volume.provisioning == Provisioning::Thick {
                    stages.push_back(Stage::ReservePrivate(volume.root));
                }
                if volume.write_cache {
                    stages.push_back(Stage::Flush);
                }
                stages.push_back(Stage::Fork { from: volume.root, to: new, truncated: u64::MAX, bdev });
                stages.push_back(Stage::Commit(vec![
                    Edit::NextId(id + 2),
                    Edit::PutRoot(
                        new,
                        RootOrigin { parent: volume.root, truncated: u64::MAX, dead: false, damaged: false },
                    ),
                    Edit::PutSnapshot(snapshot),
                    Edit::PutVolume(Volume { root: new, ..volume }),
                ]));
                stages.extend(bdev.map(Stage::Release));
                stages.push_back(done);
            }
            Request::SnapshotDelete { snapshot } => {
                let snapshot = owner.find_snapshot(&snapshot)?.clone();
                stages.push_back(Stage::Commit(vec![
                    Edit::RemoveSnapshot(snapshot.id),
                    Edit::PutRoot(snapshot.root, dead(&owner.catalog, snapshot.root)),
                ]));
                stages.push_back(Stage::Drop(snapshot.root));
                stages.push_back(done);
            }
            Request::SnapshotDiff { from, to, from_bytes } => {
                let a = owner.find_snapshot(&from)?.clone();
                let (b, bytes) = if to.contains('@') {
                    let to = owner.find_snapshot(&to)?;
                    (to.root, to.bytes)
                } else {
                    let to = owner.find(&to)?;
                    (to.root, to.bytes)
                };
                let end_stripe = bytes.max(a.bytes).div_ceil(STRIPE_BYTES);
                stages.push_back(Stage::Diff { a: a.root, b, from_bytes, end_stripe });
            }
            Request::Attach { volume } => {
                let volume = owner.find(&volume)?.clone();
                let free = |bdev: &u16| !owner.bdevs.values().any(|used| used.0 == *bdev);
                let bdev = match owner.bdevs.get(&volume.id) {
                    Some(&bdev) => bdev,
                    None => (first_bdev + TOKENS_PLACE + 1..first_bdev + POOL_BDEVS)
                        .find(free)
                        .map(BdevId)
                        .ok_or_else(|| {
                        Refusal::new(Against::NoSpace, "too many volumes are mapped", "unmap one")
                    })?,
                };
                if owner.bdevs.insert(volume.id, bdev).is_none() {
                    stages.push_back(Stage::Attach(bdev, attached(&volume)));
                }
                let (geometry, uuid) = (geometry(&volume), volume.uuid);
                let reservations = owner.catalog.reservations_of(volume.id).to_vec();
                let attached = Answer::Attached { bdev, geometry, uuid, reservations };
                stages.push_back(Stage::Answer(Box::new(attached)));
            }
            Request::Detach { volume } => {
                let Some(volume) = owner.catalog.volume(&volume).cloned() else {
                    return Err(owner.find(&volume).err().unwrap_or_else(|| no_space(0)));
                };
                if let Some(bdev) = owner.bdevs.get(&volume.id).copied() {
                    stages.push_back(Stage::Hold(bdev));
                    stages.push_back(Stage::Detach(bdev));
                    stages.push_back(Stage::Release(bdev));
                }
                stages.push_back(done);
            }
            Request::MappingPut(mapping) => {
                owner.find(&mapping.volume)?;
                stages.push_back(Stage::Commit(vec![Edit::PutMapping(mapping)]));
                stages.push_back(done);
            }
            Request::MappingRemove { target, lun } => {
                stages.push_back(Stage::Commit(vec![Edit::RemoveMapping(target, lun)]));
                stages.push_back(done);
            }
            Request::Mappings => {
                let mappings = owner.catalog.mappings.values().cloned().collect();
                stages.push_back(Stage::Answer(Box::new(Answer::Mappings(mappings))));
            }
            Request::ReservationsPut { bdev, bytes } => {
                let of = owner.bdevs.iter().find(|(_, known)| **known == bdev).map(|(&volume, _)| volume);
                let Some(volume) = of else {
                    let what = format!("device {} shows no volume of this pool", bdev.0);
                    return Err(Refusal::new(Against::NotFound, what, "map it again"));
                };
                let before = owner.catalog.reservations_of(volume);
                let others = owner.catalog.reservations_bytes() - before.len();
                if bytes.len() > RESERVATIONS_BYTES_MAX || others + bytes.len() > RESERVATIONS_POOL_BYTES_MAX
                {
                    let what = "the pool has no room for more reservations that outlive a restart";
                    return Err(Refusal::new(
                        Against::NoSpace,
                        what,
                        "register fewer paths, or without APTPL",
                    ));
                }
                if before != bytes {
                    let edits = Edit::put_reservations(volume, &bytes);
                    stages.extend(edits.into_iter().map(|edit| Stage::Commit(vec![edit])));
                }
                stages.push_back(done);
            }
            Request::Grow { sizes, added } => {
                if let Some(refusal) = &owner.grow_refused {
                    return Err(refusal.clone());
                }
                let (superblock, members, paths, more) = self.grown(&sizes, &added)?;
                let superblock = Box::new(superblock);
                stages.push_back(Stage::Superblocks(superblock.clone(), members.clone()));
                stages.push_back(Stage::Grow(superblock, members, paths));
                stages.push_back(Stage::GrowSpace(more));
                stages.push_back(done);
            }
        }
        Ok(stages)
    }

    fn report(&mut self, roots: &[RootId], report: &Report, gathered: &[(Core, Tell)]) -> Answer {
        let statuses: Vec<&Status> = gathered
            .iter()
            .filter_map(|(_, tell)| if let Tell::Status(status) = tell { Some(&**status) } else { None })
            .collect();
        let mapped: BTreeMap<RootId, u64> = roots
            .iter()
            .enumerate()
            .map(|(nth, &root)| {
                (root, statuses.iter().filter_map(|s| s.mapped_blocks.get(nth)).sum::<u64>() * BLOCK_BYTES)
            })
            .collect();
        let private: BTreeMap<RootId, u64> = roots
            .iter()
            .enumerate()
            .map(|(nth, &root)| (root, statuses.iter().filter_map(|s| s.private_slots.get(nth)).sum::<u64>()))
            .collect();
        let changes: u64 = statuses.iter().map(|status| status.changes).sum();
        self.bury(&statuses);
        let superblock = self.superblock.clone();
        let (reserved, heartbeat) =
            (self.promises.reserved.load(Ordering::Acquire), self.promises.heartbeat_left());
        let paths = self.paths.clone();
        let map_memory_max_bytes = self.map_memory_max_bytes * u64::from(self.cores);
        let owner = self.owner();
        let snapshots_of =
            |volume: u64| owner.catalog.snapshots.values().filter(|s| s.volume == volume).count() as u64;
        match report {
            Report::Pool => {
                let sum = |what: fn(&Status) -> u64| statuses.iter().map(|status| what(status)).sum::<u64>();
                let mut counts = PoolCounts::default();
                for status in &statuses {
                    counts.add(&status.counts);
                }
                let damaged = owner.catalog.volumes.values().filter_map(|volume| {
                    owner.damage.get(&volume.root).map(|what| (volume.name.clone(), what.clone()))
                });
                Answer::Pool(Box::new(PoolInfo {
                    name: superblock.name.clone(),
                    uuid: superblock.uuid,
                    members: paths
                        .into_iter()
                        .zip(&superblock.members)
                        .map(|(path, &(_, bytes))| MemberInfo { path, bytes })
                        .collect(),
                    chunk_bytes: CHUNK_BYTES,
                    data_bytes: u64::from(superblock.chunks()) * CHUNK_BYTES,
                    free_bytes: sum(|status| status.free_chunks) * CHUNK_BYTES,
                    reserved_bytes: reserved.max(0) as u64 * CHUNK_BYTES,
                    heartbeat_reserve_bytes: heartbeat.max(0) as u64 * CHUNK_BYTES,
                    pending_bytes: sum(|status| status.pending) * CHUNK_BYTES,
                    token_bytes: mapped.get(&owner.tokens).copied().unwrap_or(0),
                    metadata_bytes: superblock.metadata_bytes,
                    metadata_used_bytes: sum(|status| status.metadata_used_bytes),
                    map_memory_bytes: sum(|status| status.memory_bytes),
                    map_memory_max_bytes,
                    volumes: owner.catalog.volumes.len() as u64,
                    snapshots: owner.catalog.snapshots.len() as u64,
                    damaged: damaged.collect(),
                    grow_refused: owner.grow_refused.clone(),
                    counts,
                }))
            }
            Report::Volumes => {
                let info = |volume: &Volume| VolumeInfo {
                    name: volume.name.clone(),
                    id: volume.id,
                    uuid: volume.uuid,
                    bytes: volume.bytes,
                    block_bytes: volume.block_bytes,
                    physical_block_bytes: volume.physical_block_bytes,
                    provisioning: volume.provisioning,
                    zero_detect: volume.zero_detect,
                    write_cache: volume.write_cache,
                    mapped_bytes: mapped.get(&volume.root).copied().unwrap_or(0),
                    reserved_bytes: match volume.provisioning {
                        Provisioning::Thin => 0,
                        Provisioning::Thick => {
                            let private = private.get(&volume.root).copied().unwrap_or(0);
                            (slots_of(volume.bytes) as u64).saturating_sub(private) * CHUNK_BYTES
                        }
                    },
                    usage: owner.walks.usage(volume.id, changes),
                    snapshots: snapshots_of(volume.id),
                    origin: owner.catalog.snapshots.get(&volume.origin).map(|snapshot| {
                        let of = owner.catalog.volumes.get(&snapshot.volume).map_or("?", |v| v.name.as_str());
                        format!("{of}@{}", snapshot.name)
                    }),
                    attached: owner.bdevs.contains_key(&volume.id),
                    damage: owner.damage.get(&volume.root).cloned(),
                };
                Answer::Volumes(owner.catalog.volumes.values().map(info).collect())
            }
            Report::Snapshots(of) => {
                let wanted =
                    owner.catalog.snapshots.values().filter(|s| of.is_none_or(|volume| s.volume == volume));
                let info = |snapshot: &Snapshot| SnapshotInfo {
                    volume: owner
                        .catalog
                        .volumes
                        .get(&snapshot.volume)
                        .map_or_else(String::new, |v| v.name.clone()),
                    name: snapshot.name.clone(),
                    id: snapshot.id,
                    bytes: snapshot.bytes,
                    mapped_bytes: mapped.get(&snapshot.root).copied().unwrap_or(0),
                    usage: owner.walks.usage(snapshot.id, changes),
                    created_seconds: snapshot.created,
                    clones: owner.catalog.volumes.values().filter(|v| v.origin == snapshot.id).count() as u64,
                };
                Answer::Snapshots(wanted.map(info).collect())
            }
        }
    }

    /// Forgets dead roots that no checkpoint needs any more: each core has begun and ended one since.
    fn bury(&mut self, statuses: &[&Status]) {
        let ended: Vec<u64> = statuses.iter().map(|status| status.checkpoints).collect();
        let owner = self.owner();
        let mut gone = Vec::new();
        for (root, since) in &mut owner.dead {
            match since {
                None => *since = Some(ended.clone()),
                Some(since) if since.iter().zip(&ended).all(|(then, now)| *now >= then + 2) => {
                    gone.push(*root);
                }
                Some(_) => {}
            }
        }
        // A dead root that a younger one began as is needed until that one is in a checkpoint, too, which it is by now.
        if let (false, Some(current)) = (gone.is_empty(), &mut owner.current) {
            gone.truncate(64);
            let edits = gone.into_iter().map(Edit::RemoveRoot).collect();
            current.stages.push_front(Stage::Commit(edits));
        }
    }

    pub(super) fn diff(&self, a: RootId, b: RootId, from_stripe: u64, end_stripe: u64) -> Tell {
        let mut extents: Vec<(u64, u64)> = Vec::new();
        let deal = self.deal();
        let (mut stripe, mut looked) = (from_stripe, 0u32);
        while stripe < end_stripe && extents.len() < DIFF_EXTENTS_MAX / 2 && looked < 65_536 {
            looked += 1;
            if deal.owner(stripe * STRIPE_BYTES) != self.core {
                stripe += 1;
                continue;
            }
            let (in_a, in_b) = (self.map.leaf(a, stripe), self.map.leaf(b, stripe));
            if in_a != in_b {
                for index in 0..LEAF_SLOTS {
                    let pointers = |leaf: Option<super::map::LeafId>| {
                        leaf.map_or([None; SLOT_BLOCKS as usize], |leaf| {
                            self.map.explosions.pointers(self.map.slot_at(leaf, index))
                        })
                    };
                    let (in_a, in_b) = (pointers(in_a), pointers(in_b));
                    for block in 0..SLOT_BLOCKS as usize {
                        let place = |p: super::slot::Pointer| p.map(|p| (p.chunk, p.block));
                        if place(in_a[block]) != place(in_b[block]) {
                            let at = stripe * STRIPE_BYTES
                                + index as u64 * CHUNK_BYTES
                                + block as u64 * BLOCK_BYTES;
                            match extents.last_mut() {
                                Some((first, bytes)) if *first + *bytes == at => *bytes += BLOCK_BYTES,
                                _ => extents.push((at, BLOCK_BYTES)),
                            }
                        }
                    }
                }
            }
            stripe += 1;
        }
        Tell::Diff { extents, next_stripe: stripe }
    }

    /// Writes the next superblock, when there is a buffer.
    fn write_superblock(&mut self) {
        let Some(mut buf) = self.bounces.pop() else { return };
        let Some((member, at, bytes)) = self.super_queue.pop_front() else {
            self.bounces.push(buf);
            return;
        };
        buf.set_len(bytes.len());
        buf.copy_from_slice(&bytes);
        let action = DiskAction::Write { durable: true };
        self.super_out = true;
        self.issue(User::Super, member, action, at, bytes.len() as u64, Some(buf), 0);
    }

    /// A superblock was written.
    pub(super) fn super_done(&mut self, member: u16, result: Result<(), IoError>, buf: Option<Buf>) {
        self.super_out = false;
        self.bounces.extend(buf);
        if let Err(error) = result {
            return self.grow_failed(member, error);
        }
        if self.super_queue.is_empty() {
            self.stage_done();
        } else {
            self.write_superblock();
        }
    }

    /// A superblock can't be written. What was written of them, perhaps this one, too, stays: the pool opens with those that
    /// are newest. So nothing else may be written under their generation, or members would speak of different pools.
    fn grow_failed(&mut self, member: u16, error: IoError) {
        self.super_queue.clear();
        // Who does not come in had nothing but superblocks on their way, of which this was the last.
        self.devices.members.truncate(self.superblock.members.len());
        let pool = self.superblock.name.clone();
        let owner = self.owner();
        let paths = owner.current.iter().flat_map(|current| &current.stages).find_map(|stage| match stage {
            Stage::Grow(_, _, paths) => Some(paths),
            _ => None,
        });
        let path = paths.and_then(|paths| paths.get(usize::from(member))).map_or("", String::as_str);
        let failed = format!("the superblock on {path} can't be written: {error:?}");
        tracing::error!(pool, member, "{failed}: the pool is not grown before it is opened again");
        let cure = "look at the device, then start pollux again: the pool opens grown or as it was";
        let what = format!("growing has failed, and members may know of it or not: {failed}");
        owner.grow_refused = Some(Refusal::new(Against::Device, what, cure));
        if let Some(current) = &mut owner.current {
            current.refused = Some(Refusal::new(Against::Device, failed, cure));
        }
        self.end_current();
    }

    /// Members and extents with what is added and what became larger.
    fn grown(
        &self,
        sizes: &[super::control::MemberSize],
        added: &[NewMember],
    ) -> Result<(Superblock, Vec<MemberFile>, Vec<String>, i64), Refusal> {
        let mut next = Superblock { generation: self.superblock.generation + 1, ..self.superblock.clone() };
        if self.is_in_memory() {
            let what = "the pool is in memory, which was taken at the start";
            return Err(Refusal::new(Against::Invalid, what, "start with more of it: --data ram:SIZE"));
        }
        let (mut members, mut paths) = (self.devices.members.clone(), self.paths.clone());
        let before = i64::from(next.chunks());
        let extend = |next: &mut Superblock, member: u16, at: u64, bytes: u64| {
            let chunks = bytes.saturating_sub(at) / CHUNK_BYTES;
            let first = next.chunks();
            if u64::from(first) + chunks > u64::from(super::slot::CHUNKS_MAX) {
                return Err(Refusal::new(Against::NoSpace, "more than 128 TiB", "add less"));
            }
            let goes_on = |last: &&mut Extent| {
                last.member == member && last.at + u64::from(last.chunks) * CHUNK_BYTES == at
            };
            if let Some(last) = next.extents.last_mut().filter(goes_on) {
                last.chunks += chunks as u32;
            } else if chunks > 0 {
                if next.extents.len() == EXTENTS_MAX {
                    let what = format!("the pool has grown {EXTENTS_MAX} times");
                    return Err(Refusal::new(Against::NoSpace, what, "make another pool"));
                }
                next.extents.push(Extent { member, at, first_chunk: first, chunks: chunks as u32 });
            }
            Ok(())
        };
        for size in sizes {
            let Some((_, known)) = next.members.get(usize::from(size.member)).copied() else { continue };
            if size.bytes < known {
                let what =
                    format!("{} has {} bytes and had {known}", paths[usize::from(size.member)], size.bytes);
                return Err(Refusal::new(
                    Against::Invalid,
                    what,
                    "give it its length again: data would be lost",
                ));
            }
            let end = next.extents.iter().filter(|extent| extent.member == size.member);
            let end = end
                .map(|extent| extent.at + u64::from(extent.chunks) * CHUNK_BYTES)
                .max()
                .unwrap_or(size.bytes);
            extend(&mut next, size.member, end, size.bytes)?;
            next.members[usize::from(size.member)].1 = size.bytes;
        }
        for new in added {
            if next.members.len() == MEMBERS_MAX {
                return Err(Refusal::new(
                    Against::NoSpace,
                    format!("{MEMBERS_MAX} members"),
                    "make another pool",
                ));
            }
            let member = next.members.len() as u16;
            next.members.push((new.mark, new.bytes));
            members.push(MemberFile { file: new.file, align_bytes: new.align_bytes, punch: new.punch });
            paths.push(new.path.clone());
            let before = next.chunks();
            extend(&mut next, member, DATA_AT.next_multiple_of(STRIPE_BYTES), new.bytes)?;
            if next.chunks() == before {
                return Err(Refusal::new(
                    Against::Invalid,
                    format!("{} is too small", new.path),
                    "add a larger one",
                ));
            }
        }
        let more = i64::from(next.chunks()) - before;
        Ok((next, members, paths, more))
    }
}

fn dead(catalog: &Catalog, root: RootId) -> RootOrigin {
    let origin = catalog.roots.get(&root).copied();
    let origin =
        origin.unwrap_or(RootOrigin { parent: RootId(0), truncated: u64::MAX, dead: true, damaged: false });
    RootOrigin { dead: true, ..origin }
}

/// Joins what the cores found, from where it was asked for up to where all of them have looked.
fn merge_diff(gathered: Vec<(Core, Tell)>, from_bytes: u64, end_stripe: u64) -> DiffPart {
    let mut all = Vec::new();
    let mut until = end_stripe;
    for (_, tell) in gathered {
        if let Tell::Diff { extents, next_stripe } = tell {
            all.extend(extents);
            until = until.min(next_stripe);
        }
    }
    all.sort_unstable();
    let mut extents: Vec<(u64, u64)> = Vec::new();
    for (at, bytes) in all.into_iter().filter(|&(at, _)| at < until * STRIPE_BYTES) {
        // An extent of one core may go on over a stripe that is looked at again next time.
        let end = (at + bytes).min(until * STRIPE_BYTES);
        let at = at.max(from_bytes);
        let bytes = end.saturating_sub(at);
        if bytes == 0 {
            continue;
        }
        match extents.last_mut() {
            Some((first, length)) if *first + *length == at => *length += bytes,
            _ => extents.push((at, bytes)),
        }
    }
    DiffPart { extents, next_bytes: (until < end_stripe).then_some(until * STRIPE_BYTES) }
}

/// A random-looking UUID that no other volume of any pool has: the pool's, mixed with the id.
fn uuid_of(pool: &[u8; 16], id: u64) -> [u8; 16] {
    let mut uuid = *pool;
    let [a, b] = [super::codec::crc(&[id, 1], pool), super::codec::crc(&[id, 2], pool)];
    for (byte, mix) in uuid[8..].iter_mut().zip(a.to_le_bytes().into_iter().chain(b.to_le_bytes())) {
        *byte ^= mix;
    }
    for (byte, mix) in uuid.iter_mut().zip(id.to_le_bytes()) {
        *byte ^= mix;
    }
    // Version 4, variant 1, as RFC 9562 wants of what is to be taken for random.
    uuid[6] = uuid[6] & 0x0f | 0x40;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    uuid
}
