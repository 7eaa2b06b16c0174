//! What must be true of every answer, whatever the order of events: the dullest model there is, an array for each volume
//! and snapshot ([`Table`]), and who may have written what there.
//!
//! What it demands of one unit is [`crate::sim::table`]'s; here is what it demands of several: what comes to a block at
//! once is not seen in part of it, what is one step is not seen in part of a read, what happens whole or not at all over
//! a crash did, and a snapshot has with each write every write that was acknowledged before that one was asked for.
//!
//! Whatever is wrong is a panic that says what was found and what may have been.

use crate::sim::content::{
    BLOCK_UNITS, CHUNK_UNITS, Content, Contents, Fill, NOBODY, OpId, UNIT_BYTES, ZERO,
};
use crate::sim::control::{Pending, Unanswered};
use crate::sim::stats::Stats;
use crate::sim::table::{Block, Bring, Moment, NEVER, Seen, Table, parts};
use bdev::error::IoError;
use bdev::geometry::Geometry;
use bdev::io::{BdevId, Op};
use bdev::pool::control::VolumeSpec;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write;
use std::rc::Rc;

/// Something that changes a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// A write.
    Write,
    /// Zeroes to a range, or its space given back.
    Range,
    /// An OR.
    Or,
    /// A compare and write.
    Swap,
    /// A copy.
    Copy,
    /// An atomic write: whole or not at all, to all who look and whenever the power goes.
    Atomic,
    /// A roll back, a shrinking or a delete: whole or not at all.
    Whole,
}

/// One of those.
#[derive(Clone, Debug)]
pub struct Record {
    /// Which kind.
    pub what: What,
    /// Of which volume.
    pub state: u32,
    /// Its range in units.
    pub range: (usize, usize),
    /// When it was asked for.
    pub asked: Moment,
    /// When it was over.
    pub ended: Moment,
    /// It went well.
    pub good: bool,
    /// Seen somewhere, and seen not to be somewhere, since it was over.
    pub(crate) sides: (bool, bool),
    /// Seen in part while it was under way and a disk had failed: it has to fail, too.
    pub(crate) torn: bool,
}

impl Record {
    /// It has happened, or has not: then nobody may have seen a part of it.
    fn check_end(&self, op: OpId) {
        assert!(!self.torn, "#{} was seen in part and has not failed: {self:?}", op.0);
    }
}

/// A snapshot's place among the writes of its volume.
#[derive(Debug)]
pub struct Cut {
    volume: u32,
    asked: Moment,
    answered: Moment,
    /// The write in it that was asked for last.
    last_in: (Moment, OpId),
    /// The write not in it that was acknowledged first.
    first_out: (Moment, OpId),
    sides: BTreeMap<OpId, (bool, bool)>,
}

/// A volume's or a snapshot's own.
#[derive(Debug)]
pub enum Kind {
    /// A volume.
    Volume {
        /// As it was made.
        spec: VolumeSpec,
        /// The snapshot it was cloned from.
        origin: Option<u32>,
        /// It is a device.
        attached: Option<(BdevId, Geometry)>,
    },
    /// A snapshot of that volume.
    Snapshot {
        /// Of that volume.
        of: u32,
    },
}

/// A volume or a snapshot.
#[derive(Debug)]
pub struct State {
    /// A snapshot's own name, without its volume's.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// The pool's number for it, once it was seen.
    pub id: Option<u64>,
    /// Its size. The table is as long as it ever was.
    pub bytes: u64,
    /// Its content.
    pub table: Table,
    /// The snapshots whose consistency can be seen in it.
    cuts: Vec<usize>,
    /// It is to be deleted.
    pub dying: bool,
    /// Something about it was asked for and is not answered.
    pub busy: bool,
    /// When its size was last about to change.
    pub changed: Moment,
    /// When it was last rolled back, or about to be: to what a snapshot may have otherwise than it had.
    pub(crate) rolled: Moment,
}

/// A request under way.
#[derive(Clone, Debug)]
pub struct Open {
    /// `None`: a copy.
    pub op: Option<Op>,
    /// Whose.
    pub core: usize,
    /// Of what.
    pub state: u32,
    /// First unit.
    pub first: usize,
    /// How many.
    pub units: usize,
    /// Where a copy reads.
    pub source: Option<(u32, usize)>,
    /// When.
    pub asked: Moment,
    /// As a change, if it is one.
    pub by: OpId,
    /// It is durable when it ends.
    pub durable: bool,
    /// It was given up.
    pub abandoned: bool,
}

impl Open {
    /// Whether it is about this volume.
    pub fn meets(&self, state: u32) -> bool {
        self.state == state || self.source.is_some_and(|(source, _)| source == state)
    }
}

/// What may go wrong in this world without being wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tolerance {
    /// Disks fail.
    pub errors: bool,
    /// Space may be short.
    pub space: bool,
    /// Maps were damaged: volumes and snapshots may have been set aside, but what is served is right.
    pub damage: bool,
    /// Everything is written in place, so anything can be torn.
    pub in_place: bool,
    /// Memory for maps may be short: an UNMAP may leave blocks mapped, and thick volumes may miss a node.
    pub maps: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Oracle {
    /// What each write wrote.
    pub contents: Contents,
    /// Counts what happens.
    pub now: Moment,
    /// All changes, by [`OpId`].
    pub records: Vec<Record>,
    /// Volumes and snapshots, by our own number.
    pub states: BTreeMap<u32, State>,
    /// Requests under way, by tag.
    pub open: BTreeMap<u64, Open>,
    /// What people asked for and was not answered, by ticket.
    pub pending: BTreeMap<u64, Pending>,
    /// What was refused because a disk failed, so that it may have happened when the pool is opened again.
    pub(crate) doubtful: Unanswered,
    /// Pool's numbers that were seen: none is used twice.
    pub ids: BTreeSet<u64>,
    /// See [`Tolerance`].
    pub tolerance: Tolerance,
    /// What happened.
    pub stats: Stats,
    pub(crate) next_state: u32,
    pub(crate) zero: Rc<Block>,
    cuts: Vec<Cut>,
    /// What was one step to all who overlap need not be one to the power.
    pub(crate) last_crash: Moment,
    /// When a disk operation failed last.
    pub(crate) disk_failed: Moment,
}

impl Oracle {
    /// Of an empty pool.
    pub fn new(tolerance: Tolerance) -> Oracle {
        let nobody = Record {
            what: What::Write,
            state: 0,
            range: (0, 0),
            asked: 0,
            ended: 0,
            good: true,
            sides: (false, false),
            torn: false,
        };
        Oracle {
            contents: Contents::default(),
            now: 1,
            records: vec![nobody],
            states: BTreeMap::new(),
            open: BTreeMap::new(),
            pending: BTreeMap::new(),
            doubtful: Vec::new(),
            ids: BTreeSet::new(),
            tolerance,
            stats: Stats::default(),
            next_state: 1,
            zero: Rc::new(Block::zero()),
            cuts: Vec::new(),
            last_crash: 0,
            disk_failed: 0,
        }
    }

    /// The next moment.
    pub fn tick(&mut self) -> Moment {
        self.now += 1;
        self.now
    }

    /// A state that is there.
    ///
    /// # Panics
    /// If it isn't.
    pub fn state(&self, number: u32) -> &State {
        &self.states[&number]
    }

    /// As it is named to the pool.
    pub fn name(&self, number: u32) -> String {
        match self.states.get(&number) {
            None => format!("state {number}, which is gone"),
            Some(State { kind: Kind::Snapshot { of }, name, .. }) => {
                let volume = self.states.get(of).map_or("?", |volume| &volume.name);
                format!("{volume}@{name}")
            }
            Some(State { name, .. }) => name.clone(),
        }
    }

    /// Whoever was asked before that may still see what was gone since.
    pub(crate) fn oldest(&self) -> Moment {
        let open = self.open.values().map(|open| open.asked);
        open.chain(self.pending.values().map(|pending| pending.asked)).min().unwrap_or(self.now)
    }

    pub(crate) fn record(&mut self, what: What, state: u32, range: (usize, usize)) -> OpId {
        let asked = self.tick();
        let op = OpId(self.records.len() as u32);
        self.records.push(Record {
            what,
            state,
            range,
            asked,
            ended: NEVER,
            good: false,
            sides: (false, false),
            torn: false,
        });
        op
    }

    /// A request is about to be submitted. `fill` is what a write writes. As a change, if it is one.
    pub fn ask(&mut self, tag: u64, mut open: Open, fill: Fill) -> OpId {
        let what = match open.op {
            None => What::Copy,
            Some(Op::Write) => What::Write,
            Some(Op::WriteZeroes | Op::Unmap) => What::Range,
            Some(Op::OrWrite) => What::Or,
            Some(Op::CompareAndWrite) => What::Swap,
            Some(Op::WriteAtomic) => What::Atomic,
            Some(Op::Stage) => unreachable!("no asker's"),
            Some(Op::Read | Op::Compare | Op::Flush) => {
                open.asked = self.tick();
                self.open.insert(tag, open);
                return NOBODY;
            }
        };
        let range = (open.first, open.units);
        let by = self.record(what, open.state, range);
        open.by = by;
        open.asked = self.records[by.index()].asked;
        let Open { state, first, units, source, asked, .. } = open;
        // What it takes now it takes as what is there now; what others write later is added as they come.
        let runs = match (what, source) {
            (What::Copy, Some((source, source_first))) => {
                let runs = self.states[&source].table.runs(source_first, units);
                runs.into_iter()
                    .map(|(at, length, content)| (at - source_first + first, length, content))
                    .collect()
            }
            (What::Or, _) => {
                let mut runs = self.states[&state].table.runs(first, units);
                runs.retain_mut(|(_, _, content)| {
                    self.contents.with_or(*content, by).map(|with| *content = with).is_some()
                });
                runs
            }
            (What::Range, _) => vec![(first, units, ZERO)],
            _ => {
                self.contents.remember(by, fill, state, first as u32);
                vec![(first, units, Content { write: by, unit: 0, ors: 0 })]
            }
        };
        let fresh: BTreeSet<usize> = match what {
            What::Copy => BTreeSet::new(),
            What::Atomic => parts(first, units).map(|(block, ..)| block).collect(),
            _ if self.tolerance.in_place => BTreeSet::new(),
            // If one part fails what was in the others is put back in place.
            What::Swap if first / CHUNK_UNITS != (first + units - 1) / CHUNK_UNITS => BTreeSet::new(),
            // Where it covers a block it is the map that changes.
            _ => parts(first, units)
                .filter(|&(block, _, length)| {
                    what == What::Range && length == BLOCK_UNITS || self.is_fresh(state, block)
                })
                .map(|(block, _, _)| block)
                .collect(),
        };
        self.open.insert(tag, open);
        let bring = Bring { op: by, asked, range: what == What::Range };
        for (first, units, content) in runs {
            self.bring(state, bring, (first, units), content, &fresh);
        }
        by
    }

    /// Whether a write to this block must go elsewhere: nothing is there, or a snapshot has it, too.
    fn is_fresh(&self, state: u32, block: usize) -> bool {
        let here = self.states[&state].table.block(block);
        let shares = |other: &State| {
            matches!(other.kind, Kind::Snapshot { .. })
                && !other.dying
                && block < other.table.len()
                && Rc::ptr_eq(other.table.block(block), here)
        };
        here.is_unmapped() && !self.tolerance.maps || here.is_firm() && self.states.values().any(shares)
    }

    /// From now on `content` may stand in these units, and what others under way make of it may, too.
    pub(crate) fn bring(
        &mut self,
        state: u32,
        bring: Bring,
        (first, units): (usize, usize),
        content: Content,
        fresh: &BTreeSet<usize>,
    ) {
        let mut todo = VecDeque::from([(state, bring, first, units, content)]);
        while let Some((state, what, first, units, content)) = todo.pop_front() {
            // A copy's destination may have been deleted since.
            let Some(State { table, .. }) = self.states.get_mut(&state) else { continue };
            let mut at = first;
            for (block, _, length) in parts(first, units) {
                let atomic = what.op == bring.op && fresh.contains(&block);
                let part = content.behind((at - first) as i32);
                if table.bring(what, at, length, part, atomic) {
                    followers(&self.open, &mut self.contents, (state, what.op, at, length, part), &mut todo);
                }
                at += length;
            }
        }
    }

    /// Whether a volume is ceasing to be a device.
    pub fn is_detaching(&self, state: u32) -> bool {
        self.pending.values().any(|pending| pending.wish == crate::sim::control::Wish::Detach(state))
    }

    /// Whether nobody has written to these units, ever.
    pub fn is_untouched(&self, state: u32, first: usize, units: usize) -> bool {
        let table = &self.states[&state].table;
        parts(first, units).all(|(block, _, _)| Rc::ptr_eq(table.block(block), &self.zero))
    }

    /// How many blocks are mapped at least and at most, by what was written.
    pub fn mapped_blocks(&self, state: u32) -> (u64, u64) {
        let state = &self.states[&state];
        let (mut least, mut most) = (0, 0);
        for block in 0..(state.bytes / (BLOCK_UNITS * UNIT_BYTES) as u64) as usize {
            let values = &state.table.block(block).values;
            if state.table.block(block).is_unmapped() && !self.tolerance.maps {
                continue;
            }
            most += 1;
            let zero = |k: usize| {
                let here = values.iter().filter(|value| value.mask >> k & 1 == 1);
                here.map(|value| (value.content, k))
                    .any(|(content, k)| self.contents.is(content, k, &[0; UNIT_BYTES]))
            };
            least += u64::from(!(0..BLOCK_UNITS).all(zero));
        }
        (least, most)
    }

    /// Gives a request up.
    pub fn abandoned(&mut self, tag: u64) {
        if let Some(open) = self.open.get_mut(&tag) {
            open.abandoned = true;
        }
    }

    /// A request has ended, with its buffers. What it was.
    ///
    /// # Panics
    /// If that can't be.
    pub fn ended(
        &mut self,
        tag: u64,
        result: Result<(), IoError>,
        buf: Option<&[u8]>,
        scratch: Option<&[u8]>,
    ) -> Open {
        let Some(open) = self.open.remove(&tag) else {
            panic!("request {tag} was answered with {result:?}, but it is not under way");
        };
        let now = self.tick();
        if let Err(error) = result {
            self.check_error(&open, error);
        }
        let (state, first) = (open.state, open.first);
        match (open.op, result) {
            (Some(Op::Read), Ok(())) => {
                let bytes = buf.expect("a read brings its buffer back");
                self.check_read(state, first, &bytes[..open.units * UNIT_BYTES], open.asked);
            }
            (Some(Op::Compare), Ok(()) | Err(IoError::Miscompare { .. })) => {
                let found = scratch.expect("a compare brings its memory back");
                let expected = buf.expect("a compare brings its buffer back");
                check_difference(tag, expected, found, result);
                self.check_read(state, first, found, open.asked);
            }
            (Some(Op::CompareAndWrite), Err(IoError::Miscompare { .. })) => {
                self.never(open.by);
                let found = scratch.expect("a compare and write brings its memory back");
                let expected = buf.expect("a compare and write brings its buffer back");
                check_difference(tag, &expected[..found.len()], found, result);
                self.check_read(state, first, found, open.asked);
                self.stats.count("compare and write differed");
            }
            (Some(Op::CompareAndWrite), Err(IoError::ABANDONED | IoError::Unread { .. })) => {
                self.never(open.by);
            }
            (Some(Op::WriteAtomic), Err(IoError::ABANDONED | IoError::OutOfSpace)) => self.never(open.by),
            (Some(Op::CompareAndWrite), Ok(())) => {
                let expected = buf.expect("a compare and write brings its buffer back");
                let found = self.swapped(&open, &expected[..open.units * UNIT_BYTES], now);
                self.succeeded(&open, now);
                self.swapped_when(&open, &found, now);
                self.stats.count("compare and write done");
            }
            (Some(Op::Flush), Ok(())) => {
                let oldest = self.oldest();
                // Without a write cache each answer has promised all there is: what failed was promised by none.
                if let Some(State { table, kind: Kind::Volume { spec, .. }, .. }) =
                    self.states.get_mut(&state)
                    && spec.write_cache
                {
                    table.flushed(open.asked, oldest);
                }
            }
            _ if open.by == NOBODY => {}
            (Some(op), Err(IoError::OutOfRange)) if op.has_data() => self.never(open.by),
            // An UNMAP that leaves blocks mapped when memory for maps is short.
            (Some(Op::Unmap), Ok(())) if self.tolerance.maps => self.failed(open.by, now),
            (_, Ok(())) => self.succeeded(&open, now),
            (_, Err(_)) => self.failed(open.by, now),
        }
        open
    }

    fn check_error(&mut self, open: &Open, error: IoError) {
        let state = self.states.get(&open.state);
        let bytes = state.map_or(0, |state| state.bytes);
        let end_bytes = ((open.first + open.units) * UNIT_BYTES) as u64;
        let involved = [Some(open.state), open.source.map(|(source, _)| source)];
        let changes = involved.into_iter().flatten().any(|number| {
            let state = self.states.get(&number);
            state.is_none_or(|state| state.dying || state.changed > open.asked)
                || self.pending.values().any(|pending| pending.wish.changes() == Some(number))
        });
        let thick = matches!(
            state.map(|state| &state.kind),
            Some(Kind::Volume {
                spec: VolumeSpec { provisioning: bdev::pool::control::Provisioning::Thick, .. },
                ..
            })
        );
        let fine = match error {
            IoError::Miscompare { .. } => matches!(open.op, Some(Op::Compare | Op::CompareAndWrite)),
            IoError::ABANDONED => open.abandoned || changes,
            IoError::OutOfRange => end_bytes > bytes || changes,
            IoError::OutOfSpace => {
                self.stats.count("out of space");
                self.tolerance.maps || self.tolerance.space && (!thick || open.op.is_none()) || changes
            }
            IoError::Medium { .. } | IoError::Unread { .. } | IoError::Device { .. } => {
                self.tolerance.errors || changes
            }
        };
        assert!(fine, "{error:?} is no answer to {open:?} of {} with {bytes} bytes", self.name(open.state));
    }

    fn succeeded(&mut self, open: &Open, now: Moment) {
        self.change_succeeded(open.by, now, open.durable);
    }

    pub(crate) fn change_succeeded(&mut self, op: OpId, now: Moment, durable: bool) {
        let oldest = self.oldest();
        let record = &mut self.records[op.index()];
        (record.ended, record.good) = (now, true);
        record.check_end(op);
        let Record { state, asked, range, .. } = *record;
        if let Some(state) = self.states.get_mut(&state) {
            state.table.succeeded(op, asked, range, now, durable, oldest);
        }
    }

    pub(crate) fn failed(&mut self, op: OpId, now: Moment) {
        let record = &mut self.records[op.index()];
        record.ended = now;
        if let Some(state) = self.states.get_mut(&record.state) {
            state.table.failed(op, record.range, now, record.what == What::Swap);
        }
    }

    pub(crate) fn never(&mut self, op: OpId) {
        let now = self.now;
        let record = &mut self.records[op.index()];
        record.ended = now;
        record.check_end(op);
        if let Some(state) = self.states.get_mut(&record.state) {
            state.table.never(op, record.range);
        }
    }

    /// A compare and write ended well: what it expected was there, and is not any more. Where that can only have been
    /// one write, its unit and end.
    fn swapped(&mut self, open: &Open, expected: &[u8], now: Moment) -> Vec<(usize, Moment)> {
        let Some(state) = self.states.get(&open.state) else { return Vec::new() };
        let mut taken = Vec::new();
        let mut found = Vec::new();
        for (unit, bytes) in (open.first..).zip(expected.chunks_exact(UNIT_BYTES)) {
            let (block, k) = (unit / BLOCK_UNITS, unit % BLOCK_UNITS);
            let is = |content: Content| self.contents.is(content, k, bytes);
            let values = state.table.block(block).values.iter().enumerate();
            let here = values.filter(|(_, v)| v.mask >> k & 1 == 1 && v.op != open.by && is(v.content));
            let equal: Vec<_> = here.collect();
            let seen = equal.iter().any(|(_, value)| value.gone > open.asked);
            assert!(
                seen || state.dying,
                "request {open:?} claims to have found {} in unit {unit} of {}; {}",
                self.contents.whose(bytes),
                self.name(open.state),
                self.values_at(state.table.block(block), k, open.asked)
            );
            if let [(index, value)] = equal[..]
                && value.content.write != NOBODY
            {
                let whose = self.contents.whose(bytes);
                assert!(!value.taken, "two have found {whose} in unit {unit} of {}", self.name(open.state));
                taken.push((block, k, index, value.content));
                found.push((unit, value.ended));
            }
        }
        let state = self.states.get_mut(&open.state).expect("it was there");
        for (block, k, index, content) in taken {
            // Splitting moves those behind, not those before.
            let values = &state.table.block(block).values;
            let index =
                (index..values.len()).find(|&i| values[i].mask >> k & 1 == 1 && values[i].content == content);
            state.table.take(block, k, index.expect("it was there"), now, open.durable);
        }
        found
    }

    /// In one step it found what a write had left and put its own there. So whoever asked after that write's end came after
    /// this, too, and not between.
    fn swapped_when(&mut self, open: &Open, found: &[(usize, Moment)], now: Moment) {
        let Some(state) = self.states.get_mut(&open.state) else { return };
        for &(unit, ended) in found.iter().filter(|(_, ended)| *ended != NEVER) {
            let (block, k) = (unit / BLOCK_UNITS, unit % BLOCK_UNITS);
            let later = |value: &&crate::sim::table::Value| {
                // What was asked for before the power went may have come before this, and been lost.
                let is_later = value.asked > ended.max(self.last_crash);
                value.mask >> k & 1 == 1 && value.op != open.by && !value.taken && is_later
            };
            let over: Vec<OpId> =
                state.table.block(block).values.iter().filter(later).map(|value| value.op).collect();
            let over = over.iter().any(|op| self.records[op.index()].good);
            state.table.set_when(block, k, open.by, ended, over.then_some(now));
        }
    }

    /// Checks what a read has seen that was asked at `asked`, and learns from it.
    ///
    /// # Panics
    /// If it can't have been there.
    pub fn check_read(&mut self, number: u32, first: usize, bytes: &[u8], asked: Moment) {
        if !self.states.contains_key(&number) {
            return;
        }
        let mut steps: BTreeMap<OpId, (bool, bool)> = BTreeMap::new();
        let mut at = 0;
        for (block, within, length) in parts(first, bytes.len() / UNIT_BYTES) {
            let here = &bytes[at..at + length * UNIT_BYTES];
            at += length * UNIT_BYTES;
            let entry = Rc::clone(self.states[&number].table.block(block));
            let seen = match entry.see(within, here, asked, &self.contents) {
                Ok(seen) => seen,
                Err(k) => {
                    let unit = &here[(k - within) * UNIT_BYTES..][..UNIT_BYTES];
                    panic!(
                        "{} reads {} in unit {} (asked at {asked}); {}",
                        self.name(number),
                        self.contents.whose(unit),
                        block * BLOCK_UNITS + k,
                        self.values_at(&entry, k, asked)
                    );
                }
            };
            if entry.is_firm() {
                continue;
            }
            self.classify(number, block, &entry, &seen, asked, &mut steps);
            let oldest = self.oldest().min(asked);
            if let Some(narrowed) = self.states[&number].table.narrow(block, &seen, asked, oldest) {
                let narrowed = Rc::new(narrowed);
                for state in self.states.values_mut() {
                    if block < state.table.len() && Rc::ptr_eq(state.table.block(block), &entry) {
                        state.table.set_block(block, Rc::clone(&narrowed));
                    }
                }
            }
        }
        for (op, (inn, out)) in steps {
            let record = &self.records[op.index()];
            // When a disk fails it, what it wrote is taken back as well as that disk lets, and then others are let in: before the
            // answer comes, which has to say so.
            let may_be_failing = record.ended == NEVER && record.asked <= self.disk_failed;
            if inn && out && may_be_failing && record.what != What::Atomic {
                self.records[op.index()].torn = true;
                continue;
            }
            assert!(
                !(inn && out),
                "{} units {first}+{} reads a part of #{}, {record:?}, and in another part what was before",
                self.name(number),
                bytes.len() / UNIT_BYTES,
                op.0
            );
        }
    }

    /// Where each change was seen and where it was seen not to be.
    fn classify(
        &mut self,
        number: u32,
        block: usize,
        entry: &Block,
        seen: &Seen,
        asked: Moment,
        steps: &mut BTreeMap<OpId, (bool, bool)>,
    ) {
        for (index, value) in entry.values.iter().enumerate() {
            let op = value.op;
            if op == NOBODY || entry.values[..index].iter().any(|earlier| earlier.op == op) {
                continue;
            }
            let (mut own, mut other, mut newer, mut cover, mut atomic) = (0, 0, 0, 0, 0);
            for (v, hits) in entry.values.iter().zip(&seen.hits) {
                if v.op == op {
                    own |= hits;
                    cover |= if v.gone > asked { v.mask } else { 0 };
                    atomic |= if v.atomic { v.mask } else { 0 };
                } else {
                    other |= hits;
                    newer |= if v.ended < value.asked { 0 } else { *hits };
                }
            }
            let inn = own & !other;
            let out = cover & seen.looked & !own & !newer;
            let record = &self.records[op.index()];
            assert!(
                inn & atomic == 0 || out & atomic == 0,
                "{} block {block} (units {}+8) is torn: of #{}, {record:?}, units {:08b} are there, {:08b} are not; \
                 it went elsewhere and so comes whole; {}",
                self.name(number),
                block * BLOCK_UNITS,
                op.0,
                inn & atomic,
                out & atomic,
                self.values_at(entry, (inn & atomic).trailing_zeros() as usize % 8, asked)
            );
            let sides = (inn != 0, out != 0);
            if sides == (false, false) {
                continue;
            }
            let step =
                matches!(record.what, What::Or | What::Swap | What::Atomic) && record.asked > self.last_crash;
            if step && (record.good || record.ended == NEVER) {
                join(steps.entry(op).or_default(), sides);
            }
            self.learn_side(number, op, sides, asked);
        }
    }

    fn learn_side(&mut self, number: u32, op: OpId, sides: (bool, bool), asked: Moment) {
        let record = &mut self.records[op.index()];
        let is_settled = record.good || record.ended <= self.last_crash || record.what == What::Atomic;
        let cuts = &self.states[&number].cuts;
        // What began as a snapshot may have an atomic write that was under way otherwise than its volume had it.
        let is_whole = match record.what {
            What::Whole => true,
            What::Atomic => {
                let meets = |cut: &Cut| record.asked < cut.answered && record.ended > cut.asked;
                number == record.state
                    && record.asked > self.states[&number].rolled
                    && !cuts.iter().any(|&cut| meets(&self.cuts[cut]))
            }
            _ => false,
        };
        if is_whole && record.ended < asked && is_settled {
            join(&mut record.sides, sides);
            let record = &self.records[op.index()];
            assert!(
                record.sides != (true, true),
                "#{} happened in a part of {} only: {record:?}",
                op.0,
                self.name(number)
            );
        }
        let record = &self.records[op.index()];
        let data = matches!(record.what, What::Write | What::Or | What::Swap | What::Atomic);
        let is_atomic = record.what == What::Atomic && !self.tolerance.errors;
        for &cut in &self.states[&number].cuts {
            let cut = &mut self.cuts[cut];
            if cut.volume != record.state || record.asked >= cut.answered || record.ended <= cut.asked {
                continue;
            }
            if sides.0 && record.asked > cut.last_in.0 {
                cut.last_in = (record.asked, op);
            }
            if sides.1 && record.good && record.ended < cut.first_out.0 {
                cut.first_out = (record.ended, op);
            }
            join(cut.sides.entry(op).or_default(), sides);
            let split = data && (record.good || is_atomic) && cut.sides[&op] == (true, true);
            assert!(
                cut.first_out.0 >= cut.last_in.0 && !split,
                "a snapshot (asked {}, answered {}) that {} shows is no cut: it has #{}, {:?}, not #{}, {:?}; split: {split} #{}",
                cut.asked,
                cut.answered,
                self.states[&number].name,
                cut.last_in.1.0,
                self.records[cut.last_in.1.index()],
                cut.first_out.1.0,
                self.records[cut.first_out.1.index()],
                op.0
            );
        }
    }

    /// A snapshot's state at its answer, or at a crash when it may have happened.
    pub(crate) fn capture(&mut self, volume: u32, name: &str, asked: Moment) -> State {
        let now = self.now;
        self.cuts.push(Cut {
            volume,
            asked,
            answered: now,
            last_in: (0, NOBODY),
            first_out: (NEVER, NOBODY),
            sides: BTreeMap::new(),
        });
        let of = &self.states[&volume];
        let mut cuts = of.cuts.clone();
        cuts.push(self.cuts.len() - 1);
        State {
            name: name.to_owned(),
            kind: Kind::Snapshot { of: volume },
            id: None,
            bytes: of.bytes,
            table: of.table.capture(asked, now),
            cuts,
            dying: false,
            busy: false,
            changed: 0,
            rolled: 0,
        }
    }

    /// A volume that begins as this one is, or empty.
    pub(crate) fn begin(&self, name: &str, spec: VolumeSpec, origin: Option<u32>) -> State {
        let (table, cuts) = match origin.map(|origin| &self.states[&origin]) {
            Some(origin) => (origin.table.clone(), origin.cuts.clone()),
            None => (Table::new(spec.bytes as usize / (BLOCK_UNITS * UNIT_BYTES), &self.zero), Vec::new()),
        };
        let (bytes, kind) = (spec.bytes, Kind::Volume { spec, origin, attached: None });
        State {
            name: name.to_owned(),
            kind,
            id: None,
            bytes,
            table,
            cuts,
            dying: false,
            busy: false,
            changed: 0,
            rolled: 0,
        }
    }

    /// What may stand in a unit, in words.
    fn values_at(&self, block: &Block, k: usize, asked: Moment) -> String {
        let mut text = "there may be".to_owned();
        for value in block.values.iter().filter(|value| value.mask >> k & 1 == 1) {
            let when = |moment: Moment| if moment == NEVER { "-".to_owned() } else { moment.to_string() };
            let too_late = if value.gone <= asked { " (too late)" } else { "" };
            write!(
                text,
                "; {}{too_late} of #{} asked {} ended {} gone {}{}",
                self.contents.name(value.content, k),
                value.op.0,
                value.asked,
                when(value.ended),
                when(value.gone),
                if value.lost { " lost" } else { "" },
            )
            .expect("a String takes it");
        }
        text
    }
}

/// Who is under way and makes something of what comes to these units: ORs of the same, copies from there.
fn followers(
    open: &BTreeMap<u64, Open>,
    contents: &mut Contents,
    (state, op, first, units, content): (u32, OpId, usize, usize, Content),
    todo: &mut VecDeque<(u32, Bring, usize, usize, Content)>,
) {
    let overlap = |at: usize, length: usize| {
        let (from, end) = (first.max(at), (first + units).min(at + length));
        (from < end).then_some((from, end))
    };
    for other in open.values().filter(|other| other.by != op && other.by != NOBODY) {
        let bring = Bring { op: other.by, asked: other.asked, range: false };
        if other.op == Some(Op::OrWrite)
            && other.state == state
            && let Some((from, end)) = overlap(other.first, other.units)
            && let Some(with) = contents.with_or(content.behind((from - first) as i32), other.by)
        {
            todo.push_back((state, bring, from, end - from, with));
        }
        if let Some((source, source_first)) = other.source
            && source == state
            && let Some((from, end)) = overlap(source_first, other.units)
        {
            let at = from - source_first + other.first;
            todo.push_back((other.state, bring, at, end - from, content.behind((from - first) as i32)));
        }
    }
}

fn join(sides: &mut (bool, bool), more: (bool, bool)) {
    sides.0 |= more.0;
    sides.1 |= more.1;
}

/// A difference is told where it is.
fn check_difference(tag: u64, expected: &[u8], found: &[u8], result: Result<(), IoError>) {
    let differs = expected.iter().zip(found).position(|(left, right)| left != right);
    let right = differs.map_or(Ok(()), |at| Err(IoError::Miscompare { offset_bytes: at as u32 }));
    assert_eq!(result, right, "request {tag} differs first at {differs:?}");
}
