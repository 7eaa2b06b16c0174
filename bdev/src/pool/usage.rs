//! What is unique to a volume and what it shares: a walk beside requests, in small steps.
//!
//! A chunk is unique to a root if all slots that name it are in leaves that nobody but this root reaches: a chunk below a
//! node with two parents is shared though its count is one, and one that a volume names twice is unique though it is
//! two. So for each root every core walks its leaves and names their chunks to the chunks' cores, with whether the leaf is
//! the root's alone; those compare with the counts that they have. Each chunk is counted once for a root.
//!
//! What a core remembers of chunks that are named more than once is a table of one window of its clusters. Where there
//! are more windows, a root is walked once for each in which something is named twice. One message of names to each core
//! is on its way at a time. Core 0 says what comes next; if anything changes who names what meanwhile, the figures are
//! no lie about the space, only about the moment, and say so.

use super::catalog::Catalog;
use super::control::{Against, Answer, Refusal, Usage};
use super::mail::{NamedRun, Tell, UsagePass, UsageWatch, What};
use super::map::{Cursor, LEAF_SLOTS, LeafId, Map, RootId};
use super::open::{Member, PoolError, Recovered, recover_whole};
use super::owner::REQUESTS_MAX;
use super::shard::{Asked, PoolShard, Task};
use super::slot::{CHUNK_BYTES, Chunk};
use super::space::CLUSTER_CHUNKS;
use reactor::Core;
use reactor::clock::Time;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::Duration;

/// From one walk's end to the next, if anything has changed.
const WALK_EVERY: Duration = Duration::from_secs(30);
/// Places of tables looked at in one turn.
const LOOKS_A_TURN: u32 = 1024;
/// Runs of names found in one turn, and those of one more leaf.
const RUNS_A_TURN: usize = 256;
/// Chunks in one message, and those of one more leaf.
const CHUNKS_A_MESSAGE: u32 = 1024;
/// Entries of the table that are forgotten in one turn.
const FORGET_A_TURN: usize = 16_384;

/// In the table: somebody else names it, too.
const SHARED: u32 = u32::MAX;
/// Of a leaf with several parents: others reach it, too.
const OTHERS: u32 = u32::MAX;
/// In the table: all its names were seen.
const UNIQUE: u32 = u32::MAX - 1;

/// Names for another core.
#[derive(Debug, Default)]
struct Batch {
    runs: Vec<NamedRun>,
    chunks: u32,
    /// One is on its way.
    out: bool,
}

/// Naming the chunks of a root.
#[derive(Clone, Copy, Debug)]
struct Naming {
    from: Core,
    token: u64,
    /// `None`: all leaves were seen.
    at: Option<Cursor>,
}

/// One core's part in a walk.
#[derive(Debug, Default)]
pub(super) struct Walker {
    pass: Option<UsagePass>,
    /// How many names of each chunk of the window were seen, or [`SHARED`] or [`UNIQUE`].
    table: Vec<u32>,
    /// Entries that may not be zero.
    touched: bool,
    /// Who waits until it is forgotten, and how much of it is.
    forgetting: Option<(Core, u64, usize)>,
    unique: u64,
    shared: u64,
    naming: Option<Naming>,
    batches: Vec<Batch>,
    /// Leaves with several parents that the root reaches: by how many of them, if by none below a table of others.
    several: BTreeMap<LeafId, u32>,
    /// The program ends.
    stopped: bool,
}

/// A volume's or a snapshot's turn.
#[derive(Clone, Copy, Debug)]
struct Todo {
    id: u64,
    root: RootId,
    snapshot: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Begin,
    Pass,
    Names,
    Sum,
    End,
}

/// A walk under way.
#[derive(Debug)]
struct Walk {
    tickets: Vec<u64>,
    step: Step,
    /// Cores that have not answered the step.
    left: u32,
    changes: u64,
    moving: bool,
    sequence: u64,
    /// Beside the first.
    windows: BTreeSet<u32>,
    window: u32,
    todo: VecDeque<Todo>,
    sum: (u64, u64),
    found: BTreeMap<u64, (u64, Option<u64>)>,
}

/// What the last walk has found.
#[derive(Debug)]
struct Found {
    changes: u64,
    exact: bool,
    /// The catalog's, when it began.
    sequence: u64,
    at_seconds: u64,
    /// By the id of a volume or snapshot: unique and shared chunks.
    figures: BTreeMap<u64, (u64, Option<u64>)>,
}

/// The owner's part.
#[derive(Debug, Default)]
pub(super) struct Walks {
    waiting: Vec<u64>,
    running: Option<Walk>,
    ended_at: Time,
    found: Option<Found>,
}

impl Walks {
    /// Takes who wants a walk, if there is room.
    pub(super) fn want(&mut self, ticket: u64) -> Result<(), Refusal> {
        if self.waiting.len() >= REQUESTS_MAX {
            return Err(Refusal::new(Against::Busy, "too many wait for a walk", "try again in a moment"));
        }
        self.waiting.push(ticket);
        Ok(())
    }

    /// What is known of a volume or a snapshot, where the cores' changes are this many now.
    pub(super) fn usage(&self, id: u64, changes: u64) -> Option<Usage> {
        let found = self.found.as_ref()?;
        let &(unique, shared) = found.figures.get(&id)?;
        Some(Usage {
            unique_bytes: unique * CHUNK_BYTES,
            shared_bytes: shared.map(|chunks| chunks * CHUNK_BYTES),
            at_seconds: found.at_seconds,
            exact: found.exact && found.changes == changes,
        })
    }
}

/// Volumes and snapshots that are whole.
fn all_of(catalog: &Catalog, is_damaged: impl Fn(RootId) -> bool) -> VecDeque<Todo> {
    let volumes =
        catalog.volumes.values().map(|volume| Todo { id: volume.id, root: volume.root, snapshot: false });
    let snapshots = catalog.snapshots.values().map(|snapshot| Todo {
        id: snapshot.id,
        root: snapshot.root,
        snapshot: true,
    });
    volumes.chain(snapshots).filter(|todo| !is_damaged(todo.root)).collect()
}

/// A leaf's names as runs.
fn runs_of(map: &Map, leaf: LeafId, sole: bool, runs: &mut Vec<NamedRun>) {
    if map.parents_of(leaf).is_none() {
        // It went while it was put aside.
        return;
    }
    let before = runs.len();
    let goes_on = |run: &NamedRun, name: Chunk| {
        run.first.0 + u32::from(run.chunks) == name.0 && !name.0.is_multiple_of(CLUSTER_CHUNKS)
    };
    for index in 0..LEAF_SLOTS {
        for name in map.explosions.names(map.slot_at(leaf, index)) {
            // Own chunks and bases take turns.
            let start = before.max(runs.len().saturating_sub(2));
            match runs[start..].iter_mut().find(|run| goes_on(run, name)) {
                Some(run) => run.chunks += 1,
                None => runs.push(NamedRun { first: name, chunks: 1, sole }),
            }
        }
    }
}

impl PoolShard {
    /// Grows with whatever changes who names what.
    pub(super) fn usage_changes(&self) -> u64 {
        self.map.changes + self.space.changes
    }

    /// See [`UsageWatch`].
    pub(super) fn usage_watch(&self) -> UsageWatch {
        let is_copy = |(_, task): (_, &Task)| matches!(task, Task::Copy(_));
        let moving = self.names_are_moving() || self.map.is_dropping() || self.tasks.iter().any(is_copy);
        UsageWatch { changes: self.usage_changes(), moving, windows: self.space.shared_windows().collect() }
    }

    /// Gets ready for a pass.
    pub(super) fn usage_pass(&mut self, from: Core, token: u64, pass: UsagePass) {
        let chunks = self.space.window_chunks(pass.window);
        let walker = &mut *self.walker;
        (walker.unique, walker.shared) = (0, 0);
        walker.pass = Some(pass);
        if walker.touched {
            walker.forgetting = Some((from, token, 0));
            return;
        }
        walker.table.resize(chunks, 0);
        self.tell(from, token, Tell::Done);
    }

    /// Begins to name the chunks of the pass's root.
    pub(super) fn usage_names(&mut self, from: Core, token: u64) {
        let cores = usize::from(self.cores);
        self.walker.batches.resize_with(cores, Batch::default);
        self.walker.several.clear();
        self.walker.naming = Some(Naming { from, token, at: Some(Cursor::default()) });
    }

    /// What was counted in the pass.
    pub(super) fn usage_sum(&self) -> Tell {
        Tell::UsageSum { unique: self.walker.unique, shared: self.walker.shared }
    }

    /// The program ends: whoever waits for names is told at once.
    pub(super) fn stop_walk(&mut self) {
        self.walker.stopped = true;
    }

    /// Whether the program ends.
    pub(super) fn is_stopping(&self) -> bool {
        self.walker.stopped
    }

    /// A step of this core's part. Whether there is more to do at once.
    pub(super) fn usage_turn(&mut self) -> bool {
        if let Some((from, token, done)) = self.walker.forgetting {
            return self.forget(from, token, done);
        }
        let Some(Naming { from, token, at }) = self.walker.naming else { return false };
        if self.walker.stopped {
            self.walker.naming = None;
            self.tell(from, token, Tell::Done);
            return false;
        }
        self.send_names();
        let is_full = self.walker.batches.iter().any(|batch| batch.chunks >= CHUNKS_A_MESSAGE);
        let (Some(at), Some(pass)) = (at, self.walker.pass) else {
            if self.name_left_leaves() {
                return true;
            }
            if self.walker.batches.iter().all(|batch| batch.runs.is_empty() && !batch.out) {
                self.walker.naming = None;
                self.tell(from, token, Tell::Done);
            }
            return false;
        };
        if is_full {
            // What is on its way comes back as a message.
            return false;
        }
        let mut runs = Vec::new();
        let (map, several) = (&self.map, &mut self.walker.several);
        let next = map.walk(pass.root, at, pass.only_sole, LOOKS_A_TURN, |leaf, parents, sole| {
            if parents > 1 {
                let seen = several.entry(leaf).or_default();
                *seen = if sole { seen.saturating_add(1) } else { OTHERS };
                if *seen != parents {
                    return true;
                }
                several.remove(&leaf);
            }
            runs_of(map, leaf, sole, &mut runs);
            runs.len() < RUNS_A_TURN
        });
        self.count_runs(runs, pass);
        if let Some(naming) = &mut self.walker.naming {
            naming.at = next;
        }
        self.send_names();
        true
    }

    /// A step through leaves that have several parents, of which the root reached some and not all: they are shared. False:
    /// none is left, or no more can be sent now.
    fn name_left_leaves(&mut self) -> bool {
        let Some(pass) = self.walker.pass.filter(|pass| !pass.only_sole) else { return false };
        let is_full = self.walker.batches.iter().any(|batch| batch.chunks >= CHUNKS_A_MESSAGE);
        if is_full || self.walker.several.is_empty() {
            return false;
        }
        let mut runs = Vec::new();
        while runs.len() < RUNS_A_TURN
            && let Some((leaf, _)) = self.walker.several.pop_first()
        {
            runs_of(&self.map, leaf, false, &mut runs);
        }
        self.count_runs(runs, pass);
        self.send_names();
        true
    }

    fn count_runs(&mut self, runs: Vec<NamedRun>, pass: UsagePass) {
        for run in runs {
            let (window, _) = self.space.window_of(run.first);
            if !pass.once && window != pass.window {
                continue;
            }
            let owner = self.space.owner(run.first);
            if owner == self.core {
                self.count_run(run);
            } else {
                let batch = &mut self.walker.batches[owner.index()];
                batch.chunks += u32::from(run.chunks);
                batch.runs.push(run);
            }
        }
    }

    /// Sends what is full, or all when there is no more to come.
    fn send_names(&mut self) {
        let ends = matches!(self.walker.naming, Some(Naming { at: None, .. }));
        for core in 0..self.cores {
            let Some(batch) = self.walker.batches.get_mut(usize::from(core)) else { return };
            let due = batch.chunks >= CHUNKS_A_MESSAGE || ends && !batch.runs.is_empty();
            if batch.out || !due {
                continue;
            }
            (batch.out, batch.chunks) = (true, 0);
            let runs = std::mem::take(&mut batch.runs);
            self.ask(Core(core), Asked::Named(Core(core)), What::UsageCount { runs });
        }
    }

    /// A core has counted what it was named.
    pub(super) fn names_counted(&mut self, core: Core) {
        if let Some(batch) = self.walker.batches.get_mut(core.index()) {
            batch.out = false;
        }
    }

    fn forget(&mut self, from: Core, token: u64, done: usize) -> bool {
        let walker = &mut *self.walker;
        let until = walker.table.len().min(done + FORGET_A_TURN);
        walker.table[done..until].fill(0);
        if until < walker.table.len() {
            walker.forgetting = Some((from, token, until));
            return true;
        }
        (walker.forgetting, walker.touched) = (None, false);
        let chunks = walker.pass.as_ref().map_or(0, |pass| self.space.window_chunks(pass.window));
        walker.table.resize(chunks, 0);
        self.tell(from, token, Tell::Done);
        false
    }

    /// Chunks of this core that a leaf names.
    pub(super) fn count_run(&mut self, run: NamedRun) {
        let Some(pass) = &self.walker.pass else { return };
        let (window, place) = self.space.window_of(run.first);
        let (once, here) = (pass.once, window == pass.window);
        let chunks = u64::from(run.chunks);
        let walker = &mut *self.walker;
        let one = if run.sole { &mut walker.unique } else { &mut walker.shared };
        let Some(counts) = self.space.counts_at(run.first) else {
            *one += if once { chunks } else { 0 };
            return;
        };
        for nth in 0..u32::from(run.chunks) {
            let chunk = Chunk(run.first.0 + nth);
            let mut count = counts[(chunk.0 % CLUSTER_CHUNKS) as usize];
            // The chunk that small writes share has a name of this core's own, which goes when nobody else has one.
            let open = self.fragment.iter().chain(&self.heartbeat_fragment).chain(&self.old_fragments);
            let held = open.into_iter().any(|held| held.chunk == chunk);
            count -= u32::from(held && count > 0);
            if count <= 1 {
                let one = if run.sole { &mut walker.unique } else { &mut walker.shared };
                *one += u64::from(once);
                continue;
            }
            let Some(seen) = walker.table.get_mut(place + nth as usize).filter(|_| here) else { continue };
            walker.touched = true;
            match *seen {
                SHARED | UNIQUE => {}
                before => {
                    walker.shared += u64::from(before == 0);
                    *seen = if run.sole { (before + 1).min(UNIQUE - 1) } else { SHARED };
                    if run.sole && *seen >= count {
                        *seen = UNIQUE;
                        walker.shared -= 1;
                        walker.unique += 1;
                    }
                }
            }
        }
    }

    // The owner's part.

    /// Begins a walk if one is due.
    pub(super) fn walks_turn(&mut self) {
        let (now, is_stopped) = (self.now, self.walker.stopped);
        let Some(owner) = &mut self.owner else { return };
        // A request's time is known here at the latest a turn later.
        owner.wall_at.get_or_insert(now);
        let walks = &mut owner.walks;
        let is_due = !walks.waiting.is_empty() || now.since(walks.ended_at) >= WALK_EVERY;
        if walks.running.is_some() || !is_due || is_stopped {
            return;
        }
        walks.running = Some(Walk {
            tickets: std::mem::take(&mut walks.waiting),
            step: Step::Begin,
            left: 0,
            changes: 0,
            moving: false,
            sequence: owner.catalog.sequence,
            windows: BTreeSet::new(),
            window: 0,
            todo: VecDeque::new(),
            sum: (0, 0),
            found: BTreeMap::new(),
        });
        self.ask_cores(Step::Begin, || What::UsageWatch);
    }

    fn ask_cores(&mut self, step: Step, what: impl Fn() -> What) {
        let cores = self.cores;
        if let Some(walk) = self.owner.as_mut().and_then(|owner| owner.walks.running.as_mut()) {
            (walk.step, walk.left) = (step, u32::from(cores));
        }
        for core in 0..cores {
            self.ask(Core(core), Asked::Walk, what());
        }
    }

    /// A core has done its part of a step.
    pub(super) fn walk_told(&mut self, tell: Tell) {
        let Some(walk) = self.owner.as_mut().and_then(|owner| owner.walks.running.as_mut()) else { return };
        match tell {
            Tell::UsageWatch(UsageWatch { changes, moving, windows }) => {
                let sum = walk.sum.0 + changes;
                walk.sum.0 = sum;
                walk.moving |= moving;
                walk.windows.extend(windows);
            }
            Tell::UsageSum { unique, shared } => {
                walk.sum.0 += unique;
                walk.sum.1 += shared;
            }
            _ => {}
        }
        walk.left -= 1;
        if walk.left == 0 {
            self.walk_on();
        }
    }

    /// All cores have done a step.
    fn walk_on(&mut self) {
        let (now, is_stopped) = (self.now, self.walker.stopped);
        let Some(owner) = &mut self.owner else { return };
        let wall_seconds = owner.wall_seconds(now);
        let Some(walk) = &mut owner.walks.running else { return };
        let sum = walk.sum;
        match walk.step {
            Step::Begin => {
                (walk.changes, walk.sum) = (sum.0, (0, 0));
                walk.windows.remove(&0);
                if let Some(found) = &mut owner.walks.found
                    && (found.changes, found.exact, found.sequence) == (sum.0, !walk.moving, walk.sequence)
                    && found.exact
                {
                    found.at_seconds = wall_seconds;
                    return self.end_walk();
                }
                walk.todo = all_of(&owner.catalog, |root| owner.damage.contains_key(&root));
                self.next_pass();
            }
            Step::Pass => self.ask_cores(Step::Names, || What::UsageNames),
            Step::Names => self.ask_cores(Step::Sum, || What::UsageSum),
            Step::Sum => {
                let next = walk.windows.range(walk.window + 1..).next().copied();
                if is_stopped {
                    walk.todo.clear();
                } else if let Some(window) = next {
                    walk.window = window;
                } else if let Some(Todo { id, snapshot, .. }) = walk.todo.pop_front() {
                    walk.found.insert(id, (sum.0, (!snapshot).then_some(sum.1)));
                }
                if next.is_none() || is_stopped {
                    (walk.sum, walk.window) = ((0, 0), 0);
                }
                self.next_pass();
            }
            Step::End => {
                let Some(walk) = owner.walks.running.as_mut() else { return };
                owner.walks.found = Some(Found {
                    changes: walk.changes,
                    exact: !walk.moving && sum.0 == walk.changes && !is_stopped,
                    sequence: walk.sequence,
                    at_seconds: wall_seconds,
                    figures: std::mem::take(&mut walk.found),
                });
                self.end_walk();
            }
        }
    }

    /// The next window of the root at the front, or the end.
    fn next_pass(&mut self) {
        let Some(walk) = self.owner.as_ref().and_then(|owner| owner.walks.running.as_ref()) else { return };
        match walk.todo.front() {
            Some(&Todo { root, snapshot, .. }) => {
                let window = walk.window;
                let pass = UsagePass { root, only_sole: snapshot, window, once: window == 0 };
                self.ask_cores(Step::Pass, || What::UsagePass(pass));
            }
            None => self.ask_cores(Step::End, || What::UsageWatch),
        }
    }

    fn end_walk(&mut self) {
        let now = self.now;
        let Some(owner) = &mut self.owner else { return };
        owner.walks.ended_at = now;
        let Some(walk) = owner.walks.running.take() else { return };
        for ticket in walk.tickets {
            owner.answer(ticket, Ok(Answer::Done));
        }
    }
}

/// Unique and shared bytes of every volume and snapshot of a pool that nobody has open, by looking at all of them at
/// once: what a walk is compared with. Takes memory for every chunk.
///
/// # Errors
/// The pool can't be assembled.
pub fn usage_of(members: &[Member]) -> Result<BTreeMap<String, (u64, u64)>, PoolError> {
    let Recovered { catalog, maps, .. } = recover_whole(members)?;
    let volume = |id: &u64| catalog.volumes.get(id).map_or("?", |volume| volume.name.as_str());
    let volumes = catalog.volumes.values().map(|volume| (volume.name.clone(), volume.root));
    let snapshots = catalog.snapshots.values();
    let snapshots =
        snapshots.map(|snapshot| (format!("{}@{}", volume(&snapshot.volume), snapshot.name), snapshot.root));
    let mut namers: HashMap<Chunk, BTreeSet<RootId>> = HashMap::new();
    let all: Vec<(String, RootId)> = volumes.chain(snapshots).collect();
    for &(_, root) in &all {
        for map in &maps {
            for (_, leaf) in map.leaves_of(root) {
                for slot in map.slots_of(leaf) {
                    for name in map.explosions.names(slot) {
                        namers.entry(name).or_default().insert(root);
                    }
                }
            }
        }
    }
    let count = |root: RootId| {
        let of = namers.values().filter(|roots| roots.contains(&root));
        let (unique, shared): (Vec<_>, Vec<_>) = of.partition(|roots| roots.len() == 1);
        (unique.len() as u64 * CHUNK_BYTES, shared.len() as u64 * CHUNK_BYTES)
    };
    Ok(all.into_iter().map(|(name, root)| (name, count(root))).collect())
}
