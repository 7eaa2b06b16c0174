//! What people ask of the pool and what must come of it: at the answer, and after a crash that came before the answer.

use crate::sim::content::{BLOCK_UNITS, Contents, OpId, UNIT_BYTES, ZERO};
use crate::sim::oracle::{Kind, Oracle, State, What};
use crate::sim::table::{Block, Bring, Moment, NEVER, Table};
use bdev::io::Op;
use bdev::pool::control::{
    Against, Answer, Answered, DiffPart, Request, SnapshotInfo, VolumeInfo, VolumeSpec,
};
use std::collections::BTreeSet;
use std::rc::Rc;

/// Bytes of a block.
const BLOCK_BYTES: u64 = (BLOCK_UNITS * UNIT_BYTES) as u64;
/// Blocks of a chunk.
const CHUNK_BLOCKS: usize = 16;

/// Something to be asked of a pool; volumes and snapshots by our own numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wish {
    /// A new volume.
    Create(VolumeSpec),
    /// Another size.
    Resize {
        /// Of which.
        state: u32,
        /// The new one.
        bytes: u64,
    },
    /// A new volume from a snapshot.
    Clone {
        /// Which.
        snapshot: u32,
        /// Its volume, whose nature it inherits.
        of: u32,
        /// What it will be.
        spec: VolumeSpec,
    },
    /// Back to a snapshot.
    Rollback {
        /// Which volume.
        state: u32,
        /// To what.
        snapshot: u32,
    },
    /// The end of a volume.
    Delete(u32),
    /// A snapshot.
    Snapshot {
        /// Of what.
        state: u32,
        /// Its name.
        name: String,
    },
    /// The end of a snapshot.
    SnapshotDelete(u32),
    /// Zero-detect on or off.
    ZeroDetect(u32, bool),
    /// A volume becomes a device.
    Attach(u32),
    /// And ceases to be one.
    Detach(u32),
    /// What differs.
    Diff {
        /// A snapshot.
        from: u32,
        /// A snapshot or a volume.
        to: u32,
        /// Where to go on.
        from_bytes: u64,
    },
    /// What there is.
    Pool,
    /// What there is.
    Volumes,
    /// What there is.
    Snapshots,
    /// What is whose is to be looked at anew.
    UsageWalk,
    /// Something that must be refused for this reason.
    Wrong(Request, Against),
}

/// A wish that was not answered yet.
#[derive(Clone, Debug)]
pub struct Pending {
    /// What.
    pub wish: Wish,
    /// When.
    pub asked: Moment,
    /// As a change of a volume, if it is one.
    pub by: Option<OpId>,
}

/// What was under way at a crash, with what snapshots would have.
pub type Unanswered = Vec<(Pending, Option<State>)>;

impl Wish {
    /// Whose matters it touches.
    pub fn states(&self) -> Vec<u32> {
        match *self {
            Wish::Resize { state, .. }
            | Wish::Delete(state)
            | Wish::Snapshot { state, .. }
            | Wish::SnapshotDelete(state)
            | Wish::ZeroDetect(state, _)
            | Wish::Attach(state)
            | Wish::Detach(state) => vec![state],
            Wish::Clone { snapshot, of, .. } => vec![snapshot, of],
            Wish::Rollback { state, snapshot } => vec![state, snapshot],
            Wish::Diff { from, to, .. } => vec![from, to],
            Wish::Create(_)
            | Wish::Pool
            | Wish::Volumes
            | Wish::Snapshots
            | Wish::UsageWalk
            | Wish::Wrong(..) => Vec::new(),
        }
    }
}

impl Wish {
    /// The volume whose size it changes, or which ends.
    pub fn changes(&self) -> Option<u32> {
        match *self {
            Wish::Rollback { state, .. } | Wish::Delete(state) | Wish::Resize { state, .. } => Some(state),
            _ => None,
        }
    }
}

impl Oracle {
    /// A wish is about to be asked, under this ticket.
    pub fn wish(&mut self, ticket: u64, wish: Wish) -> Request {
        let request = self.request_of(&wish);
        for state in wish.states() {
            self.states.get_mut(&state).expect("wishes are about what is there").busy = true;
        }
        let by = match wish {
            Wish::Rollback { state, snapshot } => {
                let table = self.states[&snapshot].table.clone();
                let zero = Rc::clone(&self.zero);
                self.states.get_mut(&state).expect("it is there").table.grow(table.len(), &zero);
                Some(self.begin_whole(state, 0, table.len(), Some(&table)))
            }
            Wish::Delete(state) => {
                let blocks = self.states[&state].table.len();
                self.states.get_mut(&state).expect("it is there").dying = true;
                Some(self.begin_whole(state, 0, blocks, None))
            }
            Wish::Resize { state, bytes } => {
                let blocks = (bytes / BLOCK_BYTES) as usize;
                let zero = Rc::clone(&self.zero);
                let here = self.states.get_mut(&state).expect("it is there");
                let old = (here.bytes / BLOCK_BYTES) as usize;
                here.table.grow(blocks, &zero);
                (blocks < old).then(|| self.begin_whole(state, blocks, old - blocks, None))
            }
            Wish::SnapshotDelete(state) => {
                self.states.get_mut(&state).expect("it is there").dying = true;
                self.states.values_mut().for_each(|state| state.table.unshared());
                None
            }
            _ => None,
        };
        let asked = match by {
            Some(by) => self.records[by.index()].asked,
            None => self.tick(),
        };
        self.changes(&wish);
        self.pending.insert(ticket, Pending { wish, asked, by });
        request
    }

    /// Whoever asked before may find the volume changed.
    fn changes(&mut self, wish: &Wish) {
        let now = self.tick();
        if let Some(state) = wish.changes().and_then(|state| self.states.get_mut(&state)) {
            state.changed = now;
        }
    }

    fn request_of(&self, wish: &Wish) -> Request {
        match wish {
            Wish::Create(spec) => Request::VolumeCreate(spec.clone()),
            Wish::Resize { state, bytes } => Request::VolumeResize {
                volume: self.name(*state),
                bytes: *bytes,
                shrink: *bytes < self.states[state].bytes,
                force: true,
            },
            Wish::Clone { snapshot, spec, .. } => Request::VolumeClone {
                snapshot: self.name(*snapshot),
                name: spec.name.clone(),
                provisioning: Some(spec.provisioning),
            },
            Wish::Rollback { state, snapshot } => Request::VolumeRollback {
                volume: self.name(*state),
                snapshot: self.states[snapshot].name.clone(),
                force: true,
            },
            Wish::Delete(state) => Request::VolumeDelete { volume: self.name(*state), force: true },
            Wish::Snapshot { state, name } => {
                Request::SnapshotCreate { volume: self.name(*state), name: name.clone() }
            }
            Wish::SnapshotDelete(state) => Request::SnapshotDelete { snapshot: self.name(*state) },
            Wish::ZeroDetect(state, on) => Request::VolumeSet { volume: self.name(*state), zero_detect: *on },
            Wish::Attach(state) => Request::Attach { volume: self.name(*state) },
            Wish::Detach(state) => Request::Detach { volume: self.name(*state) },
            Wish::Diff { from, to, from_bytes } => {
                Request::SnapshotDiff { from: self.name(*from), to: self.name(*to), from_bytes: *from_bytes }
            }
            Wish::Pool => Request::Pool,
            Wish::Volumes => Request::Volumes,
            Wish::Snapshots => Request::Snapshots { volume: None },
            Wish::UsageWalk => Request::UsageWalk,
            Wish::Wrong(request, _) => request.clone(),
        }
    }

    /// All of a range of blocks becomes what `from` has there, or zeroes.
    fn begin_whole(&mut self, state: u32, first: usize, blocks: usize, from: Option<&Table>) -> OpId {
        // What is behind the end of what it was becomes zeroes, too.
        let all = if from.is_some() { self.states[&state].table.len() } else { blocks };
        let op = self.record(What::Whole, state, (first * BLOCK_UNITS, all * BLOCK_UNITS));
        self.note_roll_back(state, from.is_some());
        let bring = Bring { op, asked: self.records[op.index()].asked, range: from.is_none() };
        let none = BTreeSet::new();
        for block in first..first + all {
            let at = block * BLOCK_UNITS;
            let runs = match from {
                Some(from) if block < from.len() => from.runs(at, BLOCK_UNITS),
                _ => vec![(at, BLOCK_UNITS, ZERO)],
            };
            for (first, units, content) in runs {
                self.bring(state, bring, (first, units), content, &none);
            }
        }
        op
    }

    fn note_roll_back(&mut self, state: u32, is_one: bool) {
        let now = self.now;
        if let Some(state) = self.states.get_mut(&state).filter(|_| is_one) {
            state.rolled = now;
        }
    }

    /// A whole change is done: where nothing came between, the block is what it was made from.
    fn whole_done(&mut self, op: OpId, from: Option<u32>) {
        let now = self.now;
        self.change_succeeded(op, now, true);
        let record = self.records[op.index()].clone();
        self.note_roll_back(record.state, from.is_some());
        let zero = Rc::clone(&self.zero);
        for block in record.range.0 / BLOCK_UNITS..(record.range.0 + record.range.1) / BLOCK_UNITS {
            let source = from.map(|from| &self.states[&from].table);
            let source =
                source.filter(|source| block < source.len()).map_or(&zero, |source| source.block(block));
            let source = Rc::clone(source);
            let Some(state) = self.states.get_mut(&record.state) else { return };
            if state.table.block(block).values.iter().all(|value| value.op == op) {
                state.table.set_block(block, source);
            }
        }
    }

    /// A wish was answered. What it was.
    ///
    /// # Panics
    /// If that can't be the answer.
    pub fn answered(&mut self, ticket: u64, answered: &Answered) -> Wish {
        let Some(Pending { wish, asked, by }) = self.pending.remove(&ticket) else {
            panic!("ticket {ticket} was answered with {answered:?}, but it is not under way");
        };
        self.changes(&wish);
        for state in wish.states() {
            self.states.get_mut(&state).expect("what was busy is there").busy = false;
        }
        let answer = match (answered, &wish) {
            (Err(refusal), Wish::Wrong(request, against)) => {
                let broken = self.tolerance.errors && refusal.against == Against::Device;
                assert!(
                    broken || refusal.against == *against,
                    "{request:?} was refused, but so: {refusal:?}"
                );
                return wish;
            }
            (Ok(answer), Wish::Wrong(request, _)) => panic!("{request:?} was not refused: {answer:?}"),
            (Err(refusal), _) => {
                let fine = match refusal.against {
                    Against::Busy => true,
                    // A thick volume is not rolled back to another size.
                    Against::Invalid => matches!(wish, Wish::Rollback { .. }),
                    Against::NoSpace => self.tolerance.space || self.tolerance.maps,
                    Against::Device => self.tolerance.errors,
                    Against::Damaged => self.tolerance.damage,
                    _ => false,
                };
                assert!(fine, "{wish:?} was refused: {refusal:?}");
                self.stats.count("control refused");
                if refusal.against == Against::Device {
                    self.doubt(Pending { wish: wish.clone(), asked, by });
                } else {
                    self.undo(&wish, by);
                }
                return wish;
            }
            (Ok(answer), _) => answer,
        };
        match (&wish, answer) {
            (Wish::Pool, Answer::Pool(_))
            | (Wish::Volumes, Answer::Volumes(_))
            | (Wish::Snapshots, Answer::Snapshots(_)) => {}
            (Wish::Attach(state), Answer::Attached { bdev, geometry, .. }) => {
                let state = self.states.get_mut(state).expect("it is there");
                let Kind::Volume { spec, attached, .. } = &mut state.kind else { panic!("{wish:?}") };
                assert_eq!(
                    (geometry.bytes(), geometry.block_bytes),
                    (state.bytes, spec.block_bytes),
                    "{wish:?}"
                );
                assert_eq!(geometry.write_cache, spec.write_cache, "{wish:?}");
                *attached = Some((*bdev, *geometry));
            }
            (Wish::Diff { from, to, from_bytes }, Answer::Diff(part)) => {
                self.check_diff((*from, *to), *from_bytes, part, asked);
            }
            (_, Answer::Done) => {
                self.stats.count(stat_of(&wish));
                self.done(&wish, asked, by);
            }
            (_, answer) => panic!("{answer:?} is no answer to {wish:?}"),
        }
        wish
    }

    /// A disk has failed on the way: the record may stand there or not, and what was done before it was done.
    fn doubt(&mut self, pending: Pending) {
        let now = self.now;
        if let Some(by) = pending.by {
            self.failed(by, now);
        }
        if let Some(state) = pending.wish.changes().and_then(|state| self.states.get_mut(&state)) {
            state.changed = NEVER;
        }
        if let Wish::Delete(state) = pending.wish
            && let Some(State { kind: Kind::Volume { attached, .. }, .. }) = self.states.get_mut(&state)
        {
            // It has ceased to be a device first, and its number may be another's.
            *attached = None;
        }
        let made = self.made(&pending);
        self.doubtful.push((pending, made));
    }

    /// What is there if this has happened.
    fn made(&mut self, pending: &Pending) -> Option<State> {
        match &pending.wish {
            Wish::Create(spec) => Some(self.begin(&spec.name, spec.clone(), None)),
            Wish::Clone { snapshot, spec, .. } => Some(self.begin(&spec.name, spec.clone(), Some(*snapshot))),
            Wish::Snapshot { state, name } => Some(self.capture(*state, name, pending.asked)),
            _ => None,
        }
    }

    /// It was refused and has changed nothing.
    fn undo(&mut self, wish: &Wish, by: Option<OpId>) {
        if let Some(by) = by {
            self.never(by);
        }
        match wish {
            Wish::Delete(state) | Wish::SnapshotDelete(state) => {
                self.states.get_mut(state).expect("it is there").dying = false;
            }
            _ => {}
        }
    }

    fn done(&mut self, wish: &Wish, asked: Moment, by: Option<OpId>) {
        match wish {
            Wish::Create(spec) => {
                let state = self.begin(&spec.name, spec.clone(), None);
                self.settle(state);
            }
            Wish::Clone { snapshot, spec, .. } => {
                let state = self.begin(&spec.name, spec.clone(), Some(*snapshot));
                self.settle(state);
            }
            Wish::Snapshot { state, name } => {
                let state = self.capture(*state, name, asked);
                self.settle(state);
            }
            Wish::Resize { state, bytes } => {
                if let Some(by) = by {
                    self.whole_done(by, None);
                }
                self.resized(*state, *bytes);
            }
            Wish::Rollback { state, snapshot } => {
                self.whole_done(by.expect("it is a change"), Some(*snapshot));
                let bytes = self.states[snapshot].bytes;
                self.resized(*state, bytes);
            }
            Wish::Delete(state) | Wish::SnapshotDelete(state) => {
                self.states.remove(state);
            }
            Wish::ZeroDetect(state, on) => {
                if let Kind::Volume { spec, .. } = &mut self.states.get_mut(state).expect("it is there").kind
                {
                    spec.zero_detect = *on;
                }
            }
            Wish::Detach(state) => {
                if let Kind::Volume { attached, .. } =
                    &mut self.states.get_mut(state).expect("it is there").kind
                {
                    *attached = None;
                }
            }
            Wish::UsageWalk => {}
            Wish::Attach(_)
            | Wish::Diff { .. }
            | Wish::Pool
            | Wish::Volumes
            | Wish::Snapshots
            | Wish::Wrong(..) => {
                panic!("Done is no answer to {wish:?}")
            }
        }
    }

    /// It is there from now on.
    pub(crate) fn settle(&mut self, state: State) {
        self.states.insert(self.next_state, state);
        self.next_state += 1;
    }

    fn resized(&mut self, state: u32, bytes: u64) {
        let state = self.states.get_mut(&state).expect("it is there");
        state.bytes = bytes;
        if let Kind::Volume { attached: Some((_, geometry)), .. } = &mut state.kind {
            geometry.blocks = bytes / u64::from(geometry.block_bytes);
        }
    }

    fn check_diff(&mut self, (from, to): (u32, u32), from_bytes: u64, part: &DiffPart, asked: Moment) {
        let name = format!("the diff from {} to {}", self.name(from), self.name(to));
        let (from, to) = (&self.states[&from], &self.states[&to]);
        let end_bytes = part.next_bytes.unwrap_or(from.bytes.max(to.bytes)).max(from_bytes);
        let mut at = from_bytes;
        let mut told = vec![false; (end_bytes / BLOCK_BYTES) as usize];
        for &(first, bytes) in &part.extents {
            let whole = (first | bytes).is_multiple_of(BLOCK_BYTES) && bytes != 0;
            assert!(whole && first >= at && first + bytes <= end_bytes, "{name} from {from_bytes}: {part:?}");
            at = first + bytes;
            told[(first / BLOCK_BYTES) as usize..(at / BLOCK_BYTES) as usize].fill(true);
        }
        assert!(part.next_bytes.is_none_or(|next| next > from_bytes), "{name} goes nowhere: {part:?}");
        let common = (from.bytes.min(to.bytes) / BLOCK_BYTES) as usize;
        for (block, told) in told.iter().enumerate().skip((from_bytes / BLOCK_BYTES) as usize) {
            if block >= common {
                continue;
            }
            let (left, right) = (from.table.block(block), to.table.block(block));
            if !told && !Rc::ptr_eq(left, right) {
                let unit = (0..BLOCK_UNITS).find(|&k| differs(&self.contents, (left, right), k, asked));
                assert!(unit.is_none(), "{name} misses block {block}, unit {unit:?}: {left:?} {right:?}");
            }
            let chunk = block - block % CHUNK_BLOCKS;
            let same = |b: usize| b >= common || Rc::ptr_eq(from.table.block(b), to.table.block(b));
            let untouched = *told && (chunk..chunk + CHUNK_BLOCKS).all(same);
            assert!(
                !untouched,
                "{name} has block {block}, in a chunk that nobody has written between: {part:?}"
            );
        }
        self.stats.count("diff");
        self.stats.add("diff extents", part.extents.len() as u64);
    }

    /// The power went. What was under way may have happened; what it may have made is kept until the pool says.
    pub fn crashed(&mut self) -> Unanswered {
        let now = self.tick();
        // A compare and write of which a part has failed may have put back zeroes as data where nothing was mapped.
        let undone: Vec<OpId> = self
            .open
            .values()
            .filter(|open| open.op == Some(Op::CompareAndWrite) && self.tolerance.errors)
            .map(|open| open.by)
            .collect();
        for by in undone {
            self.failed(by, now);
        }
        let before = std::mem::replace(&mut self.last_crash, now);
        let pending = std::mem::take(&mut self.pending);
        let mut unanswered = std::mem::take(&mut self.doubtful);
        for pending in pending.into_values() {
            let made = self.made(&pending);
            unanswered.push((pending, made));
        }
        self.open.clear();
        for record in &mut self.records {
            record.ended = record.ended.min(now);
            if record.what == What::Atomic && record.ended > before {
                // What was seen may be gone with all the rest, if it was not durable, and what was not seen be there.
                record.sides = (false, false);
            }
        }
        for state in self.states.values_mut() {
            state.busy = false;
            state.changed = 0;
            match &mut state.kind {
                Kind::Volume { attached, .. } => *attached = None,
                Kind::Snapshot { .. } => {}
            }
            // Of a snapshot nothing is lost but what a failed write had left.
            state.table.crashed(now);
        }
        unanswered
    }

    /// What the pool says that there is, after a crash: what was answered is, what was under way is whole or not at all.
    ///
    /// # Panics
    /// If it isn't.
    pub fn found(&mut self, unanswered: Unanswered, volumes: &[VolumeInfo], snapshots: &[SnapshotInfo]) {
        let now = self.tick();
        let volume = |name: &str| volumes.iter().find(|info| info.name == name);
        let snapshot =
            |full: &str| snapshots.iter().find(|info| format!("{}@{}", info.volume, info.name) == full);
        for (Pending { wish, by, .. }, made) in unanswered {
            let happened = match &wish {
                Wish::Create(spec) | Wish::Clone { spec, .. } => volume(&spec.name).is_some(),
                Wish::Snapshot { state, name } => {
                    snapshot(&format!("{}@{name}", self.name(*state))).is_some()
                }
                Wish::Delete(state) => volume(&self.name(*state)).is_none(),
                Wish::SnapshotDelete(state) => snapshot(&self.name(*state)).is_none(),
                Wish::Resize { state, bytes } => {
                    volume(&self.name(*state)).is_some_and(|info| info.bytes == *bytes)
                }
                Wish::ZeroDetect(state, on) => {
                    volume(&self.name(*state)).is_some_and(|info| info.zero_detect == *on)
                }
                _ => false,
            };
            self.stats.count(if happened {
                "crashed, but it had happened"
            } else {
                "crashed before it happened"
            });
            match (&wish, made) {
                (_, Some(state)) if happened => {
                    self.settle(state);
                }
                (Wish::Rollback { state, snapshot }, _) => {
                    self.failed(by.expect("it is a change"), now);
                    let bytes = volume(&self.name(*state)).map_or(0, |info| info.bytes);
                    // The snapshot may have been deleted since, with the size that it had.
                    if self.states.get(snapshot).is_none_or(|snapshot| bytes == snapshot.bytes) {
                        self.resized(*state, bytes);
                    }
                }
                _ if happened => self.done(&wish, now, by),
                (Wish::Delete(_) | Wish::SnapshotDelete(_) | Wish::Resize { .. }, _) => self.undo(&wish, by),
                _ => {}
            }
        }
        self.check_lists(volumes, snapshots);
    }

    /// The pool's lists against ours, when nothing is under way.
    ///
    /// # Panics
    /// If they differ.
    pub fn check_lists(&mut self, volumes: &[VolumeInfo], snapshots: &[SnapshotInfo]) {
        let mut known = BTreeSet::new();
        for (&number, state) in &self.states {
            let name = self.name(number);
            match &state.kind {
                Kind::Volume { spec, attached, origin, .. } => {
                    let info = volumes.iter().find(|info| info.name == name);
                    let Some(info) = info else { panic!("volume {name} is gone: {volumes:?}") };
                    let said =
                        (info.bytes, info.block_bytes, info.provisioning, info.zero_detect, info.write_cache);
                    let is = (
                        state.bytes,
                        spec.block_bytes,
                        spec.provisioning,
                        spec.zero_detect,
                        spec.write_cache,
                    );
                    assert_eq!(said, is, "volume {name}");
                    assert!(info.damage.is_none() || self.tolerance.damage, "{info:?}");
                    // A delete that a failing disk cut short has taken it away already.
                    let is_attached = info.attached || self.tolerance.errors;
                    assert!(is_attached || attached.is_none(), "volume {name} was detached");
                    let may_be_attached = attached.is_some() || self.tolerance.errors;
                    assert!(!info.attached || may_be_attached, "volume {name} was attached");
                    let own = |other: &&State| matches!(other.kind, Kind::Snapshot { of } if of == number);
                    assert_eq!(
                        info.snapshots,
                        self.states.values().filter(own).count() as u64,
                        "volume {name}"
                    );
                    let origin = origin.filter(|origin| self.states.contains_key(origin));
                    assert_eq!(info.origin, origin.map(|origin| self.name(origin)), "volume {name}");
                    known.insert((number, info.id));
                }
                Kind::Snapshot { .. } => {
                    let info = snapshots.iter().find(|info| format!("{}@{}", info.volume, info.name) == name);
                    let Some(info) = info else { panic!("snapshot {name} is gone: {snapshots:?}") };
                    assert_eq!(info.bytes, state.bytes, "snapshot {name}");
                    known.insert((number, info.id));
                }
            }
        }
        assert_eq!(known.len(), volumes.len() + snapshots.len(), "too many: {volumes:?} {snapshots:?}");
        for (number, id) in known {
            let state = self.states.get_mut(&number).expect("it was listed just now");
            if let Some(before) = state.id {
                assert_eq!(before, id, "{} has another id", state.name);
            } else {
                assert!(self.ids.insert(id), "id {id} of {} was another's once", state.name);
                state.id = Some(id);
            }
        }
    }
}

/// Whether two blocks can't be the same in a unit.
fn differs(contents: &Contents, (left, right): (&Block, &Block), k: usize, asked: Moment) -> bool {
    let here = |block: &Block| {
        let values = block.values.iter().filter(|value| value.mask >> k & 1 == 1 && value.gone > asked);
        let bytes = values.map(|value| {
            let mut bytes = [0; UNIT_BYTES];
            contents.fill(value.content, k, &mut bytes);
            bytes
        });
        bytes.collect::<Vec<_>>()
    };
    let (left, right) = (here(left), here(right));
    !left.iter().any(|bytes| right.contains(bytes))
}

fn stat_of(wish: &Wish) -> &'static str {
    match wish {
        Wish::Create(_) => "volume create",
        Wish::Resize { .. } => "volume resize",
        Wish::Clone { .. } => "volume clone",
        Wish::Rollback { .. } => "volume rollback",
        Wish::Delete(_) => "volume delete",
        Wish::Snapshot { .. } => "snapshot create",
        Wish::SnapshotDelete(_) => "snapshot delete",
        Wish::ZeroDetect(..) => "zero-detect switched",
        Wish::Detach(_) => "detach",
        Wish::Attach(_) => "attach",
        Wish::Diff { .. } => "diff",
        Wish::Pool | Wish::Volumes | Wish::Snapshots => "lists",
        Wish::UsageWalk => "usage walk",
        Wish::Wrong(..) => "mistakes",
    }
}
