//! One core's shard of a pool: its share of every map, the chunks it counts, its journal, and the requests on their way.
//!
//! The order of a write that leaves its place: data, record, map, answer. The map is changed when the record is appended,
//! so that one order holds for both; the answer waits until the record is durable. A name that a record drops is given
//! up when that record is durable and every IO begun before the drop has come back.

use super::catalog::Catalog;
use super::changes::{Changes, Known};
use super::checkpoint::{Checkpointer, OwnSegments};
use super::control::{PoolCounts, VOLUME_BYTES_MAX};
use super::device::{Ask as DeviceAsk, Devices, Finished};
use super::fold::Folding;
use super::format::Superblock;
use super::gather::Gather;
use super::heartbeat::Heartbeats;
use super::journal::{COMMITS_MAX, Journal};
use super::mail::{Answer, Ask, Attached, Outgoing, Status, Tell, What};
use super::map::{Map, RootId, SlotNo};
use super::memory::Memory;
use super::owner::{Owner, TOKENS_PLACE};
use super::punch::Puncher;
use super::range::Range;
use super::read::Read;
use super::rule::Rule;
use super::slot::{BLOCK_BYTES, CHUNK_BYTES, Chunk};
use super::space::{Promises, Space};
use super::stage::{Board, Decree, Inherited, Staging};
use super::usage::Walker;
use super::write::Write;
use crate::error::IoError;
use crate::gate::Gate;
use crate::geometry::Geometry;
use crate::io::{BdevId, Done, Io, Op};
use crate::stripe::Deal;
use ahash::HashMap;
use reactor::Core;
use reactor::buf::Buf;
use reactor::clock::Time;
use reactor::disk::{DiskAction, DiskDone, DiskOp};
use reactor::slots::{Slot, Slots};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

/// Nodes of dropped roots that go in one turn.
const DROPS_A_TURN: usize = 256;
/// Parked requests tried again in one turn.
const PARKED_A_TURN: usize = 256;
/// Slots that copies, UNMAP and WRITE SAME may change in one turn, give or take a step: some 30 µs. What is more waits, so that
/// short requests that come meanwhile, and locks above all, wait no longer than that.
const WORK_A_TURN: u32 = 64;
/// Above this the journal is left to requests under way.
const JOURNAL_FULL_PERCENT: u64 = 80;
/// Blocks of the journal that are left to the catalog's records.
const JOURNAL_SPARE_BLOCKS: u64 = 2;
/// Records that nobody waits for are committed after this.
const LAZY: Duration = Duration::from_millis(500);
/// How long a fragment chunk that is another core's is filled.
const FRAGMENT_LENT: Duration = Duration::from_millis(500);
/// How long a write waits for space that is about to come back.
pub(super) const SPACE_PATIENCE: Duration = Duration::from_secs(5);

/// Whose an operation on a member is.
#[derive(Clone, Copy, Debug)]
pub(super) enum User {
    Task(Slot),
    /// The journal's position where it begins.
    Commit(u64),
    Sync,
    Image,
    Header,
    Super,
    /// The first chunk, and how many.
    Punch(Chunk, u8),
}

/// A request on its way.
#[derive(Debug)]
pub(super) enum Task {
    Read(Read),
    Write(Box<Write>),
    Range(Range),
    Flush(Waiter),
    Copy(Box<super::copy::Copying>),
    /// The entry of an atomic write, by the asker's name for it.
    Commit {
        name: u64,
        decree: Option<Decree>,
    },
    /// The entry that obeys another core's decree.
    Obeyed {
        from: u16,
        number: u64,
    },
}

/// Who is told at the end.
#[derive(Debug)]
pub(super) enum Waiter {
    Io(Io),
    Ask(Core, u64),
}

/// A volume of this core.
#[derive(Debug)]
pub(super) struct Volume {
    pub(super) attached: Attached,
    /// In blocks of 4 KiB.
    pub(super) gate: Gate,
    /// By the index of the hold.
    pub(super) holders: Vec<Slot>,
}

/// IO begun and not ended, by when it began.
#[derive(Debug, Default)]
pub(super) struct Epochs {
    first: u64,
    ended: VecDeque<bool>,
}

impl Epochs {
    pub(super) fn begin(&mut self) -> u64 {
        self.ended.push_back(false);
        self.first + self.ended.len() as u64 - 1
    }

    pub(super) fn end(&mut self, epoch: u64) {
        if let Some(ended) = self.ended.get_mut((epoch - self.first) as usize) {
            *ended = true;
        }
        while self.ended.front() == Some(&true) {
            self.ended.pop_front();
            self.first += 1;
        }
    }

    /// How many have begun.
    pub(super) fn next(&self) -> u64 {
        self.first + self.ended.len() as u64
    }
}

#[derive(Clone, Copy, Debug)]
struct GivenUp {
    chunk: Chunk,
    record: u64,
    epoch: u64,
}

/// Counts that another core has to hear of.
#[derive(Debug, Default)]
struct Delta {
    named: Vec<Chunk>,
    dropped: Vec<Chunk>,
    out: bool,
}

/// A chunk that small redirected writes share.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fragment {
    pub(super) chunk: Chunk,
    pub(super) next: u32,
    pub(super) pins: u32,
    pub(super) opened: Time,
}

/// What an answer of another core is for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Asked {
    Counts(Core),
    Grant,
    /// A copy's counts, or its installation.
    Copy(Slot),
    Owner,
    Drop(RootId),
    /// A step of a walk.
    Walk,
    /// Names that a walk has found.
    Named(Core),
    /// Data of a chunk that another core has in memory.
    Data(User),
    /// The answer says nothing.
    Nothing,
}

/// What a shard is made of when a pool is opened.
#[derive(Debug)]
pub struct Seed {
    pub(super) map: Map,
    pub(super) space: Space,
    pub(super) replay_from: u64,
    pub(super) head: u64,
    pub(super) checkpoint: u64,
    pub(super) segment_sequences: Vec<(u32, u64)>,
    pub(super) index_segments: Vec<u32>,
    /// Segments that would be this core's, but others use; ascending.
    pub(super) lent: Vec<u32>,
    pub(super) catalog: Option<Catalog>,
    pub(super) damage: Vec<(RootId, String)>,
    pub(super) inherited: Inherited,
}

/// See the module.
#[derive(Debug)]
pub struct PoolShard {
    pub(super) core: Core,
    pub(super) cores: u16,
    pub(super) superblock: Superblock,
    pub(super) tag: u64,
    pub(super) first_bdev: u16,
    pub(super) paths: Vec<String>,
    pub(super) devices: Devices<User>,
    pub(super) disk: VecDeque<DiskOp>,
    /// This core's chunks, of a pool in memory.
    pub(super) memory: Option<Memory>,
    pub(super) map: Map,
    pub(super) space: Space,
    pub(super) promises: Arc<Promises>,
    pub(super) journal: Journal,
    /// Records that will be appended when data are where they should be.
    pub(super) records_due: u64,
    /// Members that a flush is waited for of.
    syncing: u32,
    /// Flushes of the members, also of none because nothing was written.
    syncs_begun: u64,
    syncs_ended: u64,
    /// Records up to which the flush under way covers the data, and those of which the data are durable.
    sync_covers: u64,
    covered: u64,
    pub(super) sync_asked: bool,
    unsynced: Vec<bool>,
    /// The flush that covers the last data that nobody was promised to find durable: a fold's, or what a write that failed left.
    loose_until: u64,
    pub(super) volumes: Vec<Option<Volume>>,
    pub(super) tasks: Slots<Task>,
    commit_waiters: VecDeque<(u64, Slot)>,
    /// Each with the flush of the members and the record that it needs.
    flush_waiters: Vec<(u64, u64, Slot)>,
    pub(super) parked: VecDeque<Slot>,
    /// See [`WORK_A_TURN`].
    pub(super) work_left: u32,
    pub(super) epochs: Epochs,
    given_up: VecDeque<GivenUp>,
    deltas: Vec<Delta>,
    pub(super) pins: HashMap<u32, u32>,
    /// Slots that a record has given a new place and is not durable: who writes there in place waits for it, too.
    pub(super) moved: HashMap<(RootId, SlotNo), u64>,
    /// The same of stripes to which pointers were copied.
    pub(super) copied: HashMap<(RootId, u64), u64>,
    /// Blocks of slots' own chunks that a record vacates which may not be durable: a crash would bring back what leads there.
    pub(super) vacated: HashMap<(RootId, SlotNo), (u16, u64)>,
    /// The same of stripes of which ranges became zeroes.
    pub(super) zeroed: HashMap<(RootId, u64), u64>,
    /// The same of all: the last record from which roots go on, or before which a slot was frozen that is not any more.
    pub(super) vacated_all: u64,
    pub(super) staging: Staging,
    pub(super) board: Arc<Board>,
    /// See [`PoolShard::known`].
    pub(super) known: Known,
    pub(super) changes: Arc<Changes>,
    pub(super) folding: Folding,
    /// Memory of writes that have ended, for those to come. As many as were under way at once.
    #[allow(clippy::vec_box, reason = "the boxes are what is kept")]
    pub(super) spare_writes: Vec<Box<Write>>,
    pub(super) fragment: Option<Fragment>,
    pub(super) old_fragments: Vec<Fragment>,
    /// As `fragment`, of what is kept for heartbeats: nobody else's blocks go there.
    pub(super) heartbeat_fragment: Option<Fragment>,
    pub(super) heartbeats: Heartbeats,
    pub(super) granted: Vec<Chunk>,
    grants_asked: u32,
    grant_from: u16,
    pub(super) bounces: Vec<Buf>,
    pub(super) waiting_reads: VecDeque<Io>,
    pub(super) out: VecDeque<Outgoing>,
    pub(super) done: VecDeque<Done>,
    pub(super) asked: Slots<Asked>,
    drops: Vec<(Core, u64)>,
    pub(super) counts: PoolCounts,
    pub(super) checkpointer: Checkpointer,
    /// Images that wait for the buffer: where on member 0, and what.
    pub(super) image_queue: VecDeque<(u64, Vec<u8>)>,
    pub(super) sync_buf: Option<Buf>,
    /// Superblocks that wait to be written, one after the other: member, place, bytes.
    pub(super) super_queue: VecDeque<(u16, u64, Vec<u8>)>,
    pub(super) super_out: bool,
    admitting: bool,
    to_admit: VecDeque<BdevId>,
    pub(super) owner: Option<Box<Owner>>,
    pub(super) broken: Option<IoError>,
    pub(super) rule: Option<Rule>,
    pub(super) now: Time,
    gather: Gather,
    /// The next commit waits for more; see [`Gather`].
    is_holding: bool,
    lazy_since: Option<Time>,
    pub(super) map_memory_max_bytes: u64,
    pub(super) named: Vec<Chunk>,
    pub(super) read_lists: Vec<super::read::Pieces>,
    record: Vec<u8>,
    pub(super) walker: Box<Walker>,
    pub(super) puncher: Box<Puncher>,
}

/// What every shard of an open pool is made with.
#[derive(Clone, Debug)]
pub(super) struct Common {
    pub(super) cores: u16,
    pub(super) superblock: Superblock,
    pub(super) first_bdev: u16,
    pub(super) mark: u16,
    pub(super) members: Vec<super::device::MemberFile>,
    pub(super) paths: Vec<String>,
    pub(super) in_memory: bool,
    pub(super) promises: Arc<Promises>,
    pub(super) map_memory_max_bytes: u64,
    pub(super) window_clusters: u32,
    pub(super) punch_after: Option<Duration>,
    pub(super) rule: Option<Rule>,
    pub(super) folds: super::open::FoldWhen,
    pub(super) checkpoint_percent: u64,
    pub(super) names_max: u32,
    /// What tokens hold: a root of this life only.
    pub(super) tokens: RootId,
    /// Something is damaged, and the catalog does not know it: nothing is written anew before it does.
    pub(super) hold_checkpoints: bool,
    pub(super) board: Arc<Board>,
    pub(super) changes: Arc<Changes>,
}

/// Buffers that a core gives a pool for good.
pub const POOL_BUFS: usize = COMMITS_MAX + 1 + BOUNCES;
/// Of them, for writes that read first.
pub(super) const BOUNCES: usize = 8;

/// Drops notes that are of no use any more, once they take half of their table: whoever finds an old one compares it with
/// what is durable. So a commit doesn't pay for a walk through the table.
fn prune<K: Eq + std::hash::Hash, V>(notes: &mut HashMap<K, V>, is_of_use: impl Fn(&V) -> bool) {
    if notes.len() > notes.capacity() / 2 {
        notes.retain(|_, note| is_of_use(note));
    }
}

impl PoolShard {
    pub(super) fn new(
        core: Core,
        common: Common,
        seed: Seed,
        mut bufs: Vec<Buf>,
        memory: Option<Memory>,
        capacity: usize,
    ) -> PoolShard {
        assert!(bufs.len() == POOL_BUFS, "a pool's shard has its buffers from the start");
        let Common {
            cores,
            superblock,
            first_bdev,
            mark,
            members,
            paths,
            in_memory: _,
            promises,
            map_memory_max_bytes,
            window_clusters,
            punch_after,
            rule,
            folds,
            checkpoint_percent,
            names_max,
            tokens,
            hold_checkpoints,
            board,
            changes,
        } = common;
        let tag = superblock.tag();
        let mut take = || bufs.pop().expect("counted above");
        let journal_bufs = (0..COMMITS_MAX).map(|_| take()).collect();
        let image_buf = take();
        let ring = superblock.journal_of(core.0);
        let journal = Journal::new(
            tag,
            superblock.layout,
            core.0,
            superblock.generation,
            ring,
            seed.replay_from,
            seed.head,
            journal_bufs,
        );
        let mut checkpointer = Checkpointer::new(
            &superblock,
            core,
            seed.checkpoint,
            OwnSegments { used: seed.segment_sequences, index: seed.index_segments, lent: seed.lent },
            image_buf,
            checkpoint_percent,
        );
        checkpointer.held = hold_checkpoints;
        let mut space = seed.space;
        space.set_window(window_clusters);
        space.names_max = names_max;
        let owner = seed.catalog.map(|catalog| Box::new(Owner::new(catalog, tokens, seed.damage)));
        let mut map = seed.map;
        map.number_editions(core);
        if cores > 1 && rule != Some(Rule::ChangesAreTold) {
            map.tell_changes(core, Arc::clone(&changes));
        }
        map.keeps_editions = rule == Some(Rule::EditionEndsWithAChange);
        map.load_root(tokens, None, 0);
        let (staging, to_record) = Staging::new(seed.inherited);
        let mut shard = PoolShard {
            core,
            cores,
            tag,
            first_bdev,
            paths,
            unsynced: vec![false; members.len()],
            devices: Devices::new(members, mark, 4 * capacity),
            superblock,
            disk: VecDeque::new(),
            memory,
            map,
            space,
            promises,
            journal,
            records_due: 0,
            syncing: 0,
            syncs_begun: 0,
            syncs_ended: 0,
            sync_covers: 0,
            covered: 0,
            sync_asked: false,
            loose_until: 0,
            volumes: Vec::new(),
            tasks: Slots::with_capacity(4 * capacity),
            commit_waiters: VecDeque::new(),
            flush_waiters: Vec::new(),
            parked: VecDeque::new(),
            work_left: WORK_A_TURN,
            epochs: Epochs::default(),
            given_up: VecDeque::new(),
            deltas: (0..cores).map(|_| Delta::default()).collect(),
            pins: HashMap::default(),
            moved: HashMap::default(),
            copied: HashMap::default(),
            vacated: HashMap::default(),
            zeroed: HashMap::default(),
            vacated_all: 0,
            staging,
            board,
            known: Known::new(cores),
            changes,
            folding: Folding::new(folds),
            spare_writes: Vec::new(),
            fragment: None,
            old_fragments: Vec::new(),
            heartbeat_fragment: None,
            heartbeats: Heartbeats::new(),
            granted: Vec::new(),
            grants_asked: 0,
            grant_from: core.0,
            bounces: bufs,
            waiting_reads: VecDeque::new(),
            out: VecDeque::new(),
            done: VecDeque::new(),
            // What others are asked for is a few things a task, and one where its data are another core's.
            asked: Slots::with_capacity(8 * capacity),
            drops: Vec::new(),
            counts: PoolCounts::default(),
            checkpointer,
            image_queue: VecDeque::new(),
            sync_buf: None,
            super_queue: VecDeque::new(),
            super_out: false,
            admitting: false,
            to_admit: VecDeque::new(),
            owner,
            broken: None,
            rule,
            now: Time::ZERO,
            gather: Gather::default(),
            is_holding: false,
            lazy_since: None,
            map_memory_max_bytes,
            named: Vec::new(),
            read_lists: Vec::new(),
            record: Vec::new(),
            walker: Box::default(),
            puncher: Box::new(Puncher::new(punch_after)),
        };
        let (bdev, geometry) = shard.tokens();
        shard.attach(bdev, Attached { root: tokens, geometry, zero_detect: false, thick: false });
        shard.record_inherited(to_record);
        shard
    }

    /// Where what tokens hold is found, and its shape. It is written through: what is copied on from it has to be durable.
    pub fn tokens(&self) -> (BdevId, Geometry) {
        let block_bytes = 512;
        let geometry = Geometry {
            block_bytes,
            physical_block_bytes: BLOCK_BYTES as u32,
            blocks: VOLUME_BYTES_MAX / u64::from(block_bytes),
            unmap_granularity_bytes: CHUNK_BYTES as u32,
            write_zeroes: true,
            write_cache: false,
            read_only: false,
            rotational: false,
            pooled: true,
            atomic_bytes: 0,
        };
        (BdevId(self.first_bdev + TOKENS_PLACE), geometry)
    }

    /// Whether a test broke this rule.
    pub(crate) fn breaks(&self, rule: Rule) -> bool {
        self.rule == Some(rule)
    }

    pub(super) fn volume(&self, bdev: BdevId) -> Option<&Volume> {
        self.volumes.get(usize::from(bdev.0.checked_sub(self.first_bdev)?))?.as_ref()
    }

    pub(super) fn volume_mut(&mut self, bdev: BdevId) -> Option<&mut Volume> {
        self.volumes.get_mut(usize::from(bdev.0.checked_sub(self.first_bdev)?))?.as_mut()
    }

    /// Takes a request for one of the pool's volumes, of which all is this core's. It ends in [`PoolShard::poll_done`].
    pub fn submit(&mut self, io: Io) {
        if self.volume(io.bdev).is_none() {
            return self.done.push_back(Done { io, result: Err(IoError::GONE) });
        }
        if let Some(error) = self.broken
            && io.op.writes()
        {
            return self.done.push_back(Done { io, result: Err(error) });
        }
        self.folding.asked_at = self.now;
        match io.op {
            Op::Read => self.submit_read(io),
            Op::Write | Op::WriteAtomic | Op::Stage => self.submit_write(io),
            Op::WriteZeroes | Op::Unmap => self.submit_range(io),
            Op::Flush => self.flush(Waiter::Io(io)),
            Op::Compare | Op::OrWrite | Op::CompareAndWrite => {
                unreachable!("the layer above makes reads and writes of it")
            }
        }
    }

    /// A disk operation of this pool has ended.
    pub fn complete(&mut self, done: DiskDone) {
        let Some(finished) = self.devices.complete(done, &mut self.disk) else { return };
        let Finished { user, member, result, buf } = finished;
        self.ended(user, member, result, buf);
    }

    /// An operation on a member, or on data in memory, has ended.
    pub(super) fn ended(&mut self, user: User, member: u16, result: Result<(), IoError>, buf: Option<Buf>) {
        match user {
            User::Task(slot) => self.task_io_done(slot, result, buf),
            User::Commit(position) => self.commit_done(position, result, buf),
            User::Sync => self.sync_done(member, result),
            User::Image | User::Header => self.checkpoint_io_done(result, buf),
            User::Super => self.super_done(member, result, buf),
            User::Punch(first, chunks) => self.punched(first, chunks, member, result),
        }
    }

    fn task_io_done(&mut self, slot: Slot, result: Result<(), IoError>, buf: Option<Buf>) {
        match self.tasks.get(slot) {
            Some(Task::Read(_)) => self.read_done(slot, result, buf),
            Some(Task::Write(_)) => self.write_io_done(slot, result, buf),
            _ => debug_assert!(false, "only reads and writes have operations"),
        }
    }

    /// One bounded step of all that goes on by itself. Whether there is more.
    pub fn turn(&mut self, now: Time) -> bool {
        self.now = now;
        self.gather.turn(now);
        self.work_left = WORK_A_TURN;
        let mut more = self.devices.turn(&mut self.disk);
        self.release_given_up();
        for _ in 0..self.parked.len().min(PARKED_A_TURN) {
            if let Some(slot) = self.parked.pop_front() {
                self.resume(slot);
            }
        }
        if self.map.is_dropping() {
            let mut dropped = Vec::new();
            self.map.drop_step(DROPS_A_TURN, &mut dropped);
            self.give_up(dropped.drain(..));
            if !self.map.is_dropping() {
                self.promises.pending.fetch_sub(1, std::sync::atomic::Ordering::AcqRel);
            }
            more = true;
        }
        if !self.bounces.is_empty()
            && let Some(io) = self.waiting_reads.pop_front()
        {
            self.submit_read(io);
        }
        if !self.map.is_dropping() {
            while let Some((core, token)) = self.drops.pop() {
                self.tell(core, token, Tell::Done);
            }
        }
        // A fragment chunk whose blocks nobody has any more is space like any other.
        for nth in 0..2 {
            let open = if nth == 0 { &mut self.fragment } else { &mut self.heartbeat_fragment };
            if let Some(Fragment { chunk, pins: 0, opened, .. }) = *open
                && if self.space.owner(chunk) == self.core {
                    self.space.count(chunk) == 1
                } else {
                    // Who has blocks there only its owner knows, so it isn't kept for long.
                    now.since(opened) >= FRAGMENT_LENT
                }
            {
                let open = open.take();
                self.close_fragment(open);
            }
        }
        self.send_deltas();
        self.ask_for_grants();
        more |= self.commit_turn();
        more |= self.checkpoint_turn();
        more |= self.owner_turn();
        self.fold_turn();
        self.walks_turn();
        more |= self.usage_turn();
        more |= self.punch_turn();
        self.settle_memory();
        if self.journal.has_pending() && !self.journal.wanted {
            match self.lazy_since {
                None => self.lazy_since = Some(now),
                Some(since) if now.since(since) >= LAZY => self.journal.wanted = true,
                Some(_) => {}
            }
        } else {
            self.lazy_since = None;
        }
        self.pump();
        more || !self.parked.is_empty() || self.is_holding
    }

    /// When [`PoolShard::turn`] wants to be called at the latest although nothing happens.
    pub fn deadline(&self) -> Time {
        self.lazy_since.map_or(Time::NEVER, |since| since + LAZY).min(self.fold_deadline())
    }

    /// The next operation for this core's ring.
    pub fn poll_disk(&mut self) -> Option<DiskOp> {
        if self.disk.is_empty() {
            // Only now, so that all that has come together is in one commit.
            self.pump();
        }
        self.disk.pop_front()
    }

    /// The next request that has ended.
    pub fn poll_done(&mut self) -> Option<Done> {
        self.settle_memory();
        self.done.pop_front()
    }

    /// The next message for another core's shard of this pool.
    pub fn poll_out(&mut self) -> Option<Outgoing> {
        self.out.pop_front()
    }

    /// Requests and work that has not ended.
    pub fn in_flight(&self) -> usize {
        self.tasks.len() + self.waiting_reads.len() + self.devices.in_flight()
    }

    /// The program ends: what is acknowledged becomes durable. Whether it is.
    pub fn wind_down(&mut self) -> bool {
        self.stop_walk();
        if self.broken.is_some() {
            return true;
        }
        let idle = self.syncing == 0 && !self.journal.is_busy();
        let quiet = idle && !self.journal.has_pending() && !self.unsynced.contains(&true);
        if !quiet && idle {
            self.sync_asked = true;
            self.journal.wanted |= self.journal.has_pending();
            self.pump();
        }
        quiet
    }

    /// So many slots were changed for something that may wait.
    pub(super) fn spend(&mut self, slots: u32) {
        self.work_left = self.work_left.saturating_sub(slots);
    }

    /// A task that was parked is tried again.
    fn resume(&mut self, slot: Slot) {
        match self.tasks.get(slot) {
            Some(Task::Write(_)) => self.start_write(slot),
            Some(Task::Range(_)) => self.start_range(slot),
            Some(Task::Copy(_)) => self.resume_copy(slot),
            _ => {}
        }
    }

    /// Who waited at a volume's gate is let in.
    pub(super) fn admit(&mut self, bdev: BdevId) {
        // Who is let in may leave at once and let in the next: one after the other, not one inside the other.
        if self.admitting {
            return self.to_admit.push_back(bdev);
        }
        self.admitting = true;
        self.admit_all(bdev);
        while let Some(next) = self.to_admit.pop_front() {
            self.admit_all(next);
        }
        self.admitting = false;
    }

    fn admit_all(&mut self, bdev: BdevId) {
        while let Some(volume) = self.volume_mut(bdev)
            && let Some(hold) = volume.gate.next_admitted()
        {
            let slot = volume.holders[hold.index()];
            self.resume(slot);
        }
    }

    /// Asks for a range of blocks; whether it is there at once.
    pub(super) fn enter(
        &mut self,
        bdev: BdevId,
        task: Slot,
        blocks: std::ops::Range<u64>,
        exclusive: bool,
    ) -> (Slot, bool) {
        let exclusive = exclusive && !self.breaks(Rule::BlocksAreOrdered);
        let mode = if exclusive { crate::gate::Mode::Exclusive } else { crate::gate::Mode::Shared };
        let Some(volume) = self.volume_mut(bdev) else { unreachable!("looked up by the caller") };
        let (hold, admitted) = volume.gate.enter(blocks, mode);
        if hold.index() >= volume.holders.len() {
            volume.holders.resize(hold.index() + 1, task);
        }
        volume.holders[hold.index()] = task;
        (hold, admitted)
    }

    /// Gives a range back.
    pub(super) fn leave(&mut self, bdev: BdevId, hold: Slot) {
        if let Some(volume) = self.volume_mut(bdev) {
            volume.gate.leave(hold);
        }
        self.admit(bdev);
    }

    // The journal.

    /// Whether a request whose records take so many blocks may begin: not while a checkpoint is short of segments, and else if
    /// they fit into the journal. A commit may be of one record, so those that are due
    /// take a block each: otherwise the ring could be full before the checkpoint that empties it is durable.
    pub(super) fn journal_has_room(&self, blocks: u64) -> bool {
        let due = self.records_due + self.decrees_due();
        if self.checkpointer.is_short(&self.map, due) {
            return false;
        }
        let need = due + blocks.min(self.journal.blocks() / 4).max(1) + JOURNAL_SPARE_BLOCKS;
        self.journal.full_percent() < JOURNAL_FULL_PERCENT && self.journal.room() >= need
    }

    /// Whether a record of the catalog fits, beside those that are due.
    pub(super) fn journal_has_room_for_catalog(&self) -> bool {
        self.journal.room() > self.records_due + self.decrees_due()
    }

    /// Appends a record made by `make`; its number. `wait`: somebody waits for it.
    pub(super) fn append(&mut self, wait: bool, make: impl FnOnce(&mut super::codec::Writer, &Map)) -> u64 {
        let mut writer = super::codec::Writer(std::mem::take(&mut self.record));
        writer.0.clear();
        make(&mut writer, &self.map);
        self.record = writer.0;
        self.counts.records += 1;
        self.journal.wanted |= wait;
        self.journal.append(&self.record)
    }

    /// The task goes on when the record is durable; at once, if it is.
    pub(super) fn wait_for(&mut self, record: u64, slot: Slot) {
        if self.is_durable(record) {
            return self.record_durable(slot);
        }
        if let Some(error) = self.broken {
            return self.record_failed(slot, error);
        }
        self.commit_waiters.push_back((record, slot));
    }

    /// The record that a task waits for will never be durable.
    fn record_failed(&mut self, slot: Slot, error: IoError) {
        match self.tasks.get(slot) {
            Some(Task::Write(_)) => self.finish_write(slot, Err(error)),
            Some(Task::Range(_)) => self.range_part_done(slot, Err(error)),
            Some(Task::Copy(_)) => self.finish_install(slot, Err(error)),
            Some(&Task::Commit { name, decree }) => {
                self.tasks.remove(slot);
                self.committed(name, decree, Err(error));
            }
            Some(Task::Obeyed { .. }) => {
                self.tasks.remove(slot);
            }
            _ => {}
        }
    }

    /// Whether everything up to the record is durable.
    pub(super) fn is_durable(&self, record: u64) -> bool {
        self.journal.durable() >= record
    }

    /// Data were written that are not durable yet.
    pub(super) fn note_unsynced(&mut self, member: u16) {
        self.unsynced[usize::from(member)] |= !self.is_in_memory();
    }

    /// The same of whichever member it was. While the pool grows, core 0 has further devices to write superblocks to, and
    /// none of them has data.
    pub(super) fn note_all_unsynced(&mut self) {
        let written = !self.is_in_memory();
        self.unsynced.iter_mut().for_each(|member| *member |= written);
    }

    /// Data that are not durable may be in any volume now, also in one without a write cache. This core's own records wait for a
    /// flush as they always do; another core's don't, so what leads to such data is flushed before it goes there.
    pub(super) fn note_loose(&mut self) {
        self.loose_until = self.syncs_begun + 1;
    }

    /// Whether slots may lead to such data: see [`PoolShard::note_loose`].
    pub(super) fn has_loose_data(&self) -> bool {
        self.syncs_ended < self.loose_until && !self.is_in_memory()
    }

    /// Everything acknowledged becomes durable, then the waiter is told.
    pub(super) fn flush(&mut self, waiter: Waiter) {
        let Ok(slot) = self.tasks.insert(Task::Flush(waiter)) else {
            panic!("the shard bounds its requests")
        };
        if let Some(error) = self.broken {
            return self.flush_done(slot, Err(error));
        }
        self.flush_waiters.push((self.syncs_begun + 1, self.journal.appended(), slot));
        self.sync_asked = true;
        self.journal.wanted |= self.journal.has_pending();
    }

    /// Begins a flush of the members and commits, if they are wanted and it is time for them.
    pub(super) fn pump(&mut self) {
        self.is_holding = false;
        if self.overtakes_journal() {
            return;
        }
        let wanted = self.journal.wanted && self.journal.has_pending();
        let flushes = self.sync_asked || !self.flush_waiters.is_empty();
        if wanted && !flushes && !self.journal.is_busy() && self.syncing == 0 {
            self.is_holding = self.gather.holds(self.now, self.commit_waiters.len());
            if self.is_holding {
                return;
            }
        }
        while self.broken.is_none() && self.syncing == 0 {
            let wanted = self.journal.wanted && self.journal.has_pending();
            if self.sync_asked || (wanted && self.covered < self.journal.appended()) {
                if !self.begin_sync() {
                    return;
                }
            } else if !wanted || !self.journal.is_ripe() || !self.begin_commit() {
                return;
            }
        }
    }

    /// Flushes members that have data which aren't durable; whether there were none.
    fn begin_sync(&mut self) -> bool {
        if self.unsynced.contains(&true) && self.journal.is_busy() {
            // One flush for all that gathers behind the commit.
            return false;
        }
        self.sync_asked = false;
        self.syncs_begun += 1;
        // What is appended from now on may name data that this flush does not cover.
        self.sync_covers = self.journal.appended();
        for member in 0..self.unsynced.len() {
            if std::mem::take(&mut self.unsynced[member]) {
                if member > 0 && self.breaks(Rule::FlushEveryMember) {
                    continue;
                }
                self.syncing += 1;
                self.issue(User::Sync, member as u16, DiskAction::Sync, 0, 0, None, 0);
            }
        }
        if self.syncing > 0 {
            self.journal.cut();
            return false;
        }
        self.synced();
        true
    }

    fn synced(&mut self) {
        self.covered = self.sync_covers;
        self.syncs_ended = self.syncs_begun;
        self.settle(false);
    }

    fn sync_done(&mut self, member: u16, result: Result<(), IoError>) {
        if let Err(error) = result {
            return self.break_down(error, &format!("can't flush member {member}"));
        }
        self.syncing -= 1;
        if self.syncing == 0 {
            self.synced();
        }
    }

    /// Writes what is pending to the journal; false: there is no room for it until a checkpoint ends, or no buffer before
    /// another commit has.
    fn begin_commit(&mut self) -> bool {
        let is_first = !self.journal.is_busy();
        let Some(commit) = self.journal.commit(self.covered) else { return false };
        if is_first {
            self.gather.begin(self.now);
        }
        if !self.journal.has_pending() {
            self.journal.wanted = false;
        }
        let bytes = commit.buf.len() as u64;
        self.counts.commits += 1;
        self.counts.journal_write_bytes += bytes;
        let action = DiskAction::Write { durable: true };
        self.issue(User::Commit(commit.position), 0, action, commit.at, bytes, Some(commit.buf), 0);
        true
    }

    fn commit_done(&mut self, position: u64, result: Result<(), IoError>, buf: Option<Buf>) {
        let Some(buf) = buf else { unreachable!("a write brings its buffer back") };
        if let Err(error) = result {
            self.journal.failed(buf);
            return self.break_down(error, "can't write the journal");
        }
        let in_order = !self.breaks(Rule::JournalIsAPrefix);
        self.journal.committed(position, buf, in_order);
        self.settle(true);
    }

    /// Goes on with what waited for records and flushes that have ended. `is_commit`: because a commit has.
    fn settle(&mut self, is_commit: bool) {
        let mut back_at_once = 0;
        while let Some(&(record, slot)) = self.commit_waiters.front()
            && self.journal.durable() >= record
        {
            self.commit_waiters.pop_front();
            back_at_once += usize::from(matches!(self.tasks.get(slot), Some(Task::Range(_) | Task::Copy(_))));
            self.record_durable(slot);
        }
        if is_commit && !self.journal.is_busy() {
            self.gather.end(back_at_once, self.commit_waiters.len());
        }
        let (ended, durable) = (self.syncs_ended, self.journal.durable());
        if durable == self.journal.appended() {
            self.moved.clear();
            self.copied.clear();
            self.vacated.clear();
            self.zeroed.clear();
        } else {
            prune(&mut self.moved, |record| *record > durable);
            prune(&mut self.copied, |record| *record > durable);
            prune(&mut self.vacated, |(_, record)| *record > durable);
            prune(&mut self.zeroed, |record| *record > durable);
        }
        let mut ready = Vec::new();
        self.flush_waiters.retain(|&(sync, record, slot)| {
            let is_ready = ended >= sync && durable >= record;
            if is_ready {
                ready.push(slot);
            }
            !is_ready
        });
        if !self.flush_waiters.is_empty() {
            self.sync_asked |= self.flush_waiters.iter().any(|&(sync, ..)| sync > self.syncs_begun);
            self.journal.wanted |= self.journal.has_pending();
        }
        for slot in ready {
            self.flush_done(slot, Ok(()));
        }
        self.release_given_up();
    }

    fn flush_done(&mut self, slot: Slot, result: Result<(), IoError>) {
        match self.tasks.remove(slot) {
            Some(Task::Flush(Waiter::Io(io))) => self.done.push_back(Done { io, result }),
            Some(Task::Flush(Waiter::Ask(core, token))) => {
                self.tell(core, token, result.map_or_else(Tell::Failed, |()| Tell::Done));
            }
            _ => debug_assert!(false, "a flush waits as one"),
        }
    }

    fn record_durable(&mut self, slot: Slot) {
        match self.tasks.get(slot) {
            Some(Task::Write(_)) => self.finish_write(slot, Ok(())),
            Some(Task::Range(_)) => self.range_part_done(slot, Ok(())),
            Some(Task::Copy(_)) => self.finish_install(slot, Ok(())),
            Some(&Task::Commit { name, decree }) => {
                self.tasks.remove(slot);
                self.committed(name, decree, Ok(()));
            }
            Some(&Task::Obeyed { from, number }) => {
                self.tasks.remove(slot);
                self.obeyed(from, number);
            }
            _ => debug_assert!(false, "what waits for a record is one of these"),
        }
    }

    /// Metadata can't be written any more: nothing that needs it succeeds from now on.
    pub(super) fn break_down(&mut self, error: IoError, what: &str) {
        tracing::error!(pool = %self.superblock.name, core = self.core.0, ?error, "{what}: the pool takes no more writes");
        self.broken.get_or_insert(error);
        self.promises.broken.store(true, std::sync::atomic::Ordering::Release);
        self.board.note_broken(self.core);
        let waiters: Vec<Slot> = self.commit_waiters.drain(..).map(|(_, slot)| slot).collect();
        for slot in waiters {
            self.record_failed(slot, error);
        }
        let flushes: Vec<Slot> = self.flush_waiters.drain(..).map(|(_, _, slot)| slot).collect();
        for slot in flushes {
            self.flush_done(slot, Err(error));
        }
        self.give_up_checkpoint();
    }

    #[allow(clippy::too_many_arguments, reason = "an operation's facts")]
    pub(super) fn issue(
        &mut self,
        user: User,
        member: u16,
        action: DiskAction,
        at: u64,
        bytes: u64,
        buf: Option<Buf>,
        buf_offset: u32,
    ) {
        let buf = match self.issue_in_memory(user, (member, action), (at, bytes), buf, buf_offset) {
            Ok(()) => return,
            Err(buf) => buf,
        };
        let ask = DeviceAsk { member, action, at, bytes, buf, buf_offset };
        self.devices.issue(user, ask, &mut self.disk);
    }

    // Chunks.

    /// Where a chunk is.
    #[inline]
    pub(super) fn chunk_at(&self, chunk: Chunk) -> (u16, u64) {
        let extents = &self.superblock.extents;
        let place = if extents.len() == 1 {
            0
        } else {
            extents.partition_point(|extent| extent.first_chunk <= chunk.0).saturating_sub(1)
        };
        let extent = &extents[place];
        (extent.member, extent.at + u64::from(chunk.0 - extent.first_chunk) * CHUNK_BYTES)
    }

    /// Counts what was named by copying leaves.
    pub(super) fn count_named(&mut self) {
        let mut named = std::mem::take(&mut self.named);
        if self.breaks(Rule::CountsAreExact) {
            named.clear();
        }
        for chunk in named.drain(..) {
            self.name(chunk);
        }
        self.named = named;
    }

    /// One more names it.
    pub(super) fn name(&mut self, chunk: Chunk) {
        let owner = self.space.owner(chunk);
        if owner == self.core {
            self.space.increment(chunk);
        } else {
            self.deltas[owner.index()].named.push(chunk);
        }
    }

    /// Names that the last record dropped: they are given up when it is durable and nobody is on the way to them.
    pub(super) fn give_up(&mut self, chunks: impl Iterator<Item = Chunk>) {
        let record = if self.breaks(Rule::ReuseAfterRecord) { 0 } else { self.journal.appended() };
        let epoch = if self.breaks(Rule::ReuseAfterReads) { 0 } else { self.epochs.next() };
        let before = self.given_up.len();
        self.given_up.extend(chunks.map(|chunk| GivenUp { chunk, record, epoch }));
        let count = (self.given_up.len() - before) as i64;
        if count == 0 {
            // All cores write to that counter.
            return;
        }
        self.promises.pending.fetch_add(count, std::sync::atomic::Ordering::AcqRel);
        if self.promises.free() < 64 {
            // Somebody may be waiting for them.
            self.journal.wanted |= self.journal.has_pending();
        }
    }

    fn release_given_up(&mut self) {
        while let Some(&GivenUp { chunk, record, epoch }) = self.given_up.front() {
            if record > self.journal.durable() || epoch > self.epochs.first {
                return;
            }
            self.given_up.pop_front();
            let owner = self.space.owner(chunk);
            if owner == self.core {
                self.unname(chunk);
            } else {
                self.deltas[owner.index()].dropped.push(chunk);
            }
        }
    }

    /// One less names a chunk of this core.
    fn unname(&mut self, chunk: Chunk) {
        if self.space.decrement(chunk) {
            self.puncher.freed_at = self.now;
            self.promises.give(1);
        }
        self.promises.pending.fetch_sub(1, std::sync::atomic::Ordering::AcqRel);
    }

    /// Chunks that small writes share and that have a name of this core's own for that.
    pub(super) fn fragments(&self) -> impl Iterator<Item = &Fragment> {
        self.fragment.iter().chain(&self.heartbeat_fragment).chain(&self.old_fragments)
    }

    /// Names that were dropped, or that other cores have to count, are on their way.
    pub(super) fn names_are_moving(&self) -> bool {
        let is_moving = |delta: &Delta| delta.out || !delta.named.is_empty() || !delta.dropped.is_empty();
        // One that another core counts has a name there that nobody there can tell from a slot's.
        let is_lent = |fragment: &Fragment| self.space.owner(fragment.chunk) != self.core;
        !self.given_up.is_empty()
            || !self.drops.is_empty()
            || self.fragments().any(is_lent)
            || !self.checkpointer.drops.is_empty()
            || self.deltas.iter().any(is_moving)
    }

    fn send_deltas(&mut self) {
        for core in 0..self.cores {
            let delta = &mut self.deltas[usize::from(core)];
            if delta.out || (delta.named.is_empty() && delta.dropped.is_empty()) {
                continue;
            }
            delta.out = true;
            let (named, dropped) = (std::mem::take(&mut delta.named), std::mem::take(&mut delta.dropped));
            self.counts.chunk_messages += 1;
            self.ask(Core(core), Asked::Counts(Core(core)), What::Counts { named, dropped });
        }
    }

    /// A free chunk for what has a claim: its own, or one that another core has granted. `None`: it has been asked for.
    pub(super) fn take_chunk(&mut self, near: Option<Chunk>, place: u32) -> Option<Chunk> {
        if let Some(chunk) = self.granted.pop() {
            return Some(chunk);
        }
        self.space.take(near, place)
    }

    fn ask_for_grants(&mut self) {
        if self.cores == 1 || self.grants_asked != 0 || self.parked.is_empty() || self.space.free() > 0 {
            return;
        }
        let wants =
            |slot: &&Slot| matches!(self.tasks.get(**slot), Some(Task::Write(write)) if write.wants_chunk());
        let wanted = self.parked.iter().filter(wants).count();
        if wanted <= self.granted.len() {
            return;
        }
        self.grant_from = (self.grant_from + 1) % self.cores;
        if self.grant_from == self.core.0 {
            self.grant_from = (self.grant_from + 1) % self.cores;
        }
        let chunks = (wanted - self.granted.len()).min(64) as u32;
        self.grants_asked = chunks;
        self.ask(Core(self.grant_from), Asked::Grant, What::Grant { chunks });
    }

    /// Whether a map may take more memory.
    pub(super) fn has_map_memory(&self) -> bool {
        self.map.memory_bytes() + self.space.memory_bytes() < self.map_memory_max_bytes
            && self.checkpointer.has_room(&self.map)
    }

    // Mail.

    pub(super) fn ask(&mut self, to: Core, why: Asked, what: What) {
        let Ok(slot) = self.asked.insert(why) else { panic!("the shard bounds what it asks") };
        self.out.push_back(Outgoing::Ask(to, Ask { token: slot.to_bits(), what }));
    }

    pub(super) fn tell(&mut self, to: Core, token: u64, tell: Tell) {
        self.out.push_back(Outgoing::Tell(to, Answer { token, tell }));
    }

    /// A request of another core's shard, or of this one. What it has to have committed goes with what the turn's other
    /// messages have, when the next operation is asked for.
    pub fn on_ask(&mut self, from: Core, ask: Ask) {
        let Some(Ask { token, what }) = self.waits_for_fold(from, ask) else { return };
        match what {
            What::Counts { named, dropped } => {
                let mut within = true;
                for chunk in named {
                    within &= self.space.increment(chunk);
                }
                for chunk in dropped {
                    self.unname(chunk);
                }
                self.tell(from, token, if within { Tell::Done } else { Tell::CountFull });
            }
            What::Grant { chunks } => {
                let mut taken: Vec<Chunk> = (0..chunks).map_while(|_| self.space.take(None, 0)).collect();
                // What was granted here and is not needed may be all that is left.
                while taken.len() < chunks as usize
                    && let Some(chunk) = self.granted.pop()
                {
                    taken.push(chunk);
                }
                self.tell(from, token, Tell::Granted(taken));
            }
            What::Share(share) => self.share(from, token, share),
            What::Install { destination, carried, edition } => {
                self.install(from, token, destination, carried, edition);
            }
            What::InstallTwin { destination, slot, edition } => {
                self.install_twin(from, token, destination, slot, edition);
            }
            What::Hold { .. } | What::Release { .. } => unreachable!("the router's"),
            What::Attach { bdev, volume } => {
                self.attach(bdev, volume);
                self.tell(from, token, Tell::Done);
            }
            What::Detach { bdev } => {
                self.heartbeats.forget(bdev);
                if let Some(volume) = self.volumes.get_mut(usize::from(bdev.0 - self.first_bdev)) {
                    *volume = None;
                }
                self.tell(from, token, Tell::Done);
            }
            What::Fork { from: root, to, truncated, bdev } => {
                self.fork(root, to, truncated, bdev);
                self.tell(from, token, Tell::Done);
            }
            What::Flush => self.flush(Waiter::Ask(from, token)),
            What::Drop { root } if self.checkpointer.is_running() => {
                // What it has may be what a newer root begins as, until the checkpoint is there.
                self.checkpointer.drops.push((from, token, root));
            }
            What::Drop { root } => {
                let was_dropping = self.map.is_dropping();
                self.map.drop_root(root);
                if self.map.is_dropping() && !was_dropping {
                    self.promises.pending.fetch_add(1, std::sync::atomic::Ordering::AcqRel);
                }
                self.drops.push((from, token));
            }
            What::Status { roots } => {
                let status = self.status(&roots);
                self.tell(from, token, Tell::Status(Box::new(status)));
            }
            What::Diff { a, b, from_stripe, end_stripe } => {
                let tell = self.diff(a, b, from_stripe, end_stripe);
                self.tell(from, token, tell);
            }
            What::Grow { superblock, members, paths } => {
                self.unsynced.resize(members.len(), false);
                (self.superblock, self.devices.members, self.paths) = (*superblock, members, paths);
                self.tell(from, token, Tell::Done);
            }
            What::GrowSpace => {
                self.space.extend(self.superblock.chunks());
                self.tell(from, token, Tell::Done);
            }
            What::Extent { bdev, from_block, blocks } => {
                let (mapped, blocks) = self.extent(bdev, from_block, blocks);
                self.tell(from, token, Tell::Extent { mapped, blocks });
            }
            What::DamageNoted => {
                self.checkpointer.held = false;
                self.tell(from, token, Tell::Done);
            }
            What::Checkpoint => {
                self.checkpointer.wanted = true;
                self.tell(from, token, Tell::Done);
            }
            What::Break => {
                self.break_down(IoError::Medium { errno: 5 }, "the catalog can't be written");
                self.tell(from, token, Tell::Done);
            }
            What::UsageWatch => {
                let watch = self.usage_watch();
                self.tell(from, token, Tell::UsageWatch(watch));
            }
            What::UsagePass(pass) => self.usage_pass(from, token, pass),
            What::UsageNames => self.usage_names(from, token),
            What::UsageCount { runs } => {
                for run in runs {
                    self.count_run(run);
                }
                self.tell(from, token, Tell::Done);
            }
            What::UsageSum => {
                let sum = self.usage_sum();
                self.tell(from, token, sum);
            }
            What::Private { root } => {
                let private = self.map.roots.get(&root).map_or(0, |root| root.private_slots);
                self.tell(from, token, Tell::Private(private));
            }
        }
    }

    /// An answer to something this shard asked.
    pub fn on_tell(&mut self, from: Core, answer: Answer) {
        let Some(why) = self.asked.remove(Slot::from_bits(answer.token)) else {
            debug_assert!(false, "an answer to nothing");
            return;
        };
        match (why, answer.tell) {
            (Asked::Counts(core), _) => {
                self.deltas[core.index()].out = false;
                self.send_deltas();
            }
            (Asked::Grant, Tell::Granted(chunks)) => {
                self.grants_asked = 0;
                self.granted.extend(chunks);
            }
            (Asked::Copy(slot), tell) => self.copy_told(slot, &tell),
            (Asked::Owner, tell) => self.owner_told(from, tell),
            (Asked::Nothing, _) => {}
            (Asked::Drop(root), _) => self.owner_dropped(root),
            (Asked::Walk, tell) => self.walk_told(tell),
            (Asked::Named(core), _) => self.names_counted(core),
            (Asked::Data(_), _) => debug_assert!(false, "data come back as they went"),
            (Asked::Grant, _) => debug_assert!(false, "a grant is answered with chunks"),
        }
    }

    fn attach(&mut self, bdev: BdevId, attached: Attached) {
        let index = usize::from(bdev.0 - self.first_bdev);
        if index >= self.volumes.len() {
            self.volumes.resize_with(index + 1, || None);
        }
        match &mut self.volumes[index] {
            Some(volume) => volume.attached = attached,
            place => {
                let gate = Gate::new(2 * crate::shard::SHARD_IOS_MAX, super::copy::STRIPE_BLOCKS);
                *place = Some(Volume { attached, gate, holders: Vec::new() });
            }
        }
    }

    fn fork(&mut self, from: RootId, to: RootId, truncated: u64, bdev: Option<BdevId>) {
        self.vacated_all = self.journal.appended();
        self.map.fork(from, to);
        if truncated != u64::MAX {
            let end = super::map::SlotNo(truncated / CHUNK_BYTES);
            let block = (truncated % CHUNK_BYTES / super::slot::BLOCK_BYTES) as u32;
            let (mut named, mut dropped) = (std::mem::take(&mut self.named), Vec::new());
            self.map.truncate(to, end, block, &mut named, &mut dropped);
            self.named = named;
            self.count_named();
            self.give_up(dropped.into_iter());
        }
        if let Some(bdev) = bdev
            && let Some(volume) = self.volume_mut(bdev)
        {
            volume.attached.root = to;
        }
    }

    fn status(&self, roots: &[RootId]) -> Status {
        let live: u64 = self.map.live.iter().map(|&units| u64::from(units) * 16).sum();
        let mut counts = self.counts;
        counts.checkpoints = self.checkpointer.ended;
        Status {
            free_chunks: self.space.free() + self.granted.len() as u64 + self.puncher.held_chunks,
            pending: self.given_up.len() as u64 + u64::from(self.map.is_dropping()),
            memory_bytes: self.map.memory_bytes() + self.space.memory_bytes(),
            metadata_used_bytes: live,
            mapped_blocks: roots
                .iter()
                .map(|id| self.map.roots.get(id).map_or(0, |r| r.mapped_blocks))
                .collect(),
            private_slots: roots
                .iter()
                .map(|id| self.map.roots.get(id).map_or(0, |r| r.private_slots))
                .collect(),
            counts,
            checkpoints: self.checkpointer.ended,
            changes: self.usage_changes(),
        }
    }

    /// How many blocks from one on are like it: mapped, or not.
    fn extent(&self, bdev: BdevId, from_block: u64, blocks: u64) -> (bool, u64) {
        let Some(root) = self.volume(bdev).map(|volume| volume.attached.root) else { return (true, blocks) };
        let slot_blocks = u64::from(super::slot::SLOT_BLOCKS);
        let is_mapped = |block: u64| {
            let (slot, _) = self.map.slot(root, super::map::SlotNo(block / slot_blocks));
            self.map.explosions.mapped_mask(slot) >> (block % slot_blocks) & 1 == 1
        };
        let mapped = is_mapped(from_block);
        let same = (1..blocks).take_while(|&nth| is_mapped(from_block + nth) == mapped).count() as u64;
        (mapped, (1 + same).min(blocks))
    }

    /// The pool's part of a device's stack on this core: who owns what there.
    pub(super) fn deal(&self) -> Deal {
        Deal::among(self.cores)
    }
}
