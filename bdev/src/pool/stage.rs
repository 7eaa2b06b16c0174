//! Atomic writes of several parts: nobody sees one of them before all are there, and no crash leaves a part of them.
//!
//! A part is written as any other, but never where its blocks are, and its map stays as it is: it is *staged*. When all parts
//! are, one entry of the journal shows them, and an entry is whole or not there.
//!
//! Over a stripe's edge there are two journals, so one of them decides: the lower shard's entry has the upper one's records,
//! too (a *decree*, with a number of the lower shard's). When it is durable the upper shard makes the same records its own
//! (it *obeys*), in an entry that has the number. A crash between the two leaves a decree that was not obeyed; the next opening
//! obeys it, behind all else that the upper journal has. That is its place: the upper shard holds the range from before the
//! decree until it has obeyed, so nothing in its journal is later.
//!
//! How far a shard has obeyed is one number for each other, since decrees arrive in the order of their numbers. It is in every
//! checkpoint's index. A decree that is not known to be obeyed durably is written anew behind the cut of each checkpoint.
//!
//! Invariant: `sent` has every decree of this shard that may not be obeyed durably, and of each the data are durable, at a
//! place that nobody else gets, since before the decree was written.

use super::codec::{Malformed, Reader, Writer};
use super::map::{RootId, SlotNo};
use super::record;
use super::rule::Rule;
use super::shard::{PoolShard, Task};
use super::slot::{Names, Place};
use crate::edge::Committed;
use crate::error::IoError;
use crate::io::{BdevId, Done, Io, Tag};
use reactor::Core;
use reactor::slots::Slot;
use smallvec::SmallVec;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Parts of an atomic write: pieces of the longest, wherever it begins.
pub(super) const PARTS_MAX: usize =
    (crate::io::ATOMIC_BYTES_MAX as u64 / crate::io::PIECE_BYTES) as usize + 1;

/// Decrees of a shard that may not be obeyed durably, and of a small journal fewer. Those that are more wait: a checkpoint
/// writes all of them anew.
const SENT_MAX: u64 = 64;

/// What the upper shard of an atomic write is to show.
#[derive(Debug)]
pub struct Beyond {
    /// Which it is.
    pub core: Core,
    /// As its records would say it.
    pub records: Vec<u8>,
}

/// What a shard's journal says that another is to obey.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decree {
    /// Whose.
    pub from: Core,
    /// Counted by that one.
    pub number: u64,
    /// Its journal has failed, so only the next opening can tell whether it is there.
    pub is_doubtful: bool,
}

/// How far each shard has obeyed each other, durably.
#[derive(Debug)]
pub(super) struct Board {
    cores: usize,
    numbers: Box<[AtomicU64]>,
    /// Cores that obey nothing any more.
    broken: Box<[AtomicBool]>,
}

impl Board {
    pub(super) fn new(cores: u16) -> Board {
        let cores = usize::from(cores);
        let numbers = (0..cores * cores).map(|_| AtomicU64::new(0)).collect();
        Board { cores, numbers, broken: (0..cores).map(|_| AtomicBool::new(false)).collect() }
    }

    pub(super) fn note_broken(&self, core: Core) {
        self.broken[core.index()].store(true, Ordering::Release);
    }

    fn is_broken(&self, core: Core) -> bool {
        self.broken[core.index()].load(Ordering::Acquire)
    }

    fn number(&self, who: Core, whom: Core) -> &AtomicU64 {
        &self.numbers[who.index() * self.cores + whom.index()]
    }
}

/// A decree that may not be obeyed durably.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sent {
    pub(super) number: u64,
    pub(super) core: u16,
    pub(super) records: Vec<u8>,
}

/// What a checkpoint's index and a journal say of it: of this layout.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Standing {
    /// The last number of this shard's.
    pub(super) number: u64,
    /// How far it has obeyed others, by core.
    pub(super) obeyed: Vec<(u16, u64)>,
}

impl Standing {
    pub(super) fn write(&self, out: &mut Writer) {
        out.u64(self.number).u16(self.obeyed.len() as u16);
        for &(core, number) in &self.obeyed {
            out.u16(core).u64(number);
        }
    }

    /// Of an index that may be of version 1, which has none.
    pub(super) fn read(from: &mut Reader<'_>) -> Result<Standing, Malformed> {
        if from.is_empty() {
            return Ok(Standing::default());
        }
        let (number, count) = (from.u64()?, from.u16()?);
        let obeyed = (0..count).map(|_| Ok((from.u16()?, from.u64()?))).collect::<Result<_, Malformed>>()?;
        Ok(Standing { number, obeyed })
    }

    pub(super) fn obeyed(&self, core: u16) -> u64 {
        self.obeyed.iter().find(|&&(from, _)| from == core).map_or(0, |&(_, number)| number)
    }

    pub(super) fn obey(&mut self, core: u16, number: u64) {
        match self.obeyed.iter_mut().find(|(from, _)| *from == core) {
            Some((_, last)) => *last = number.max(*last),
            None => self.obeyed.push((core, number)),
        }
    }
}

/// What an opening found: for the shard to go on from.
#[derive(Debug, Default)]
pub(super) struct Inherited {
    pub(super) standing: Standing,
    pub(super) sent: Vec<Sent>,
    /// Decrees of other shards that this one's map has obeyed, and its journal not.
    pub(super) to_record: Vec<(u16, Sent)>,
}

#[derive(Debug)]
struct Group {
    bdev: BdevId,
    tag: Tag,
    parts: SmallVec<[Slot; PARTS_MAX]>,
    /// There is room in the journal for its entry.
    due: bool,
}

#[derive(Debug)]
struct Wish {
    bdev: BdevId,
    tag: Tag,
    name: u64,
    beyond: Option<Beyond>,
}

/// A shard's atomic writes.
#[derive(Debug)]
pub(super) struct Staging {
    groups: Vec<Group>,
    /// They wait for decrees before them to be obeyed.
    waiting: VecDeque<Wish>,
    committed: VecDeque<Committed>,
    pub(super) standing: Standing,
    sent: VecDeque<Sent>,
}

impl Staging {
    pub(super) fn new(inherited: Inherited) -> (Staging, Vec<(u16, Sent)>) {
        let Inherited { standing, sent, to_record } = inherited;
        let staging = Staging {
            groups: Vec::new(),
            waiting: VecDeque::new(),
            committed: VecDeque::new(),
            standing,
            sent: sent.into(),
        };
        (staging, to_record)
    }
}

/// What a write shows: its map is changed, and its record is to say this.
#[derive(Debug)]
pub(super) struct Shown {
    pub(super) root: RootId,
    pub(super) slot: SlotNo,
    /// Blocks with data, and those that are zeroes.
    pub(super) written: u16,
    pub(super) zeroes: u16,
    pub(super) target: Option<Place>,
    /// The first block.
    pub(super) first: u32,
    /// Blocks of the private chunk that nothing leads to any more.
    pub(super) vacated: u16,
    pub(super) dropped: Names,
}

impl PoolShard {
    fn group(&mut self, bdev: BdevId, tag: Tag) -> Option<&mut Group> {
        self.staging.groups.iter_mut().find(|group| (group.bdev, group.tag) == (bdev, tag))
    }

    /// A part is about to be staged.
    pub(super) fn note_part(&mut self, bdev: BdevId, tag: Tag) {
        if self.group(bdev, tag).is_none() {
            self.staging.groups.push(Group { bdev, tag, parts: SmallVec::new(), due: false });
        }
    }

    /// Whether there is room in the journal for a part's entry: all of them have one.
    pub(super) fn has_room_for_part(&mut self, bdev: BdevId, tag: Tag) -> bool {
        if self.group(bdev, tag).is_none_or(|group| group.due) {
            return true;
        }
        let has_room = self.journal_has_room(1);
        if has_room && let Some(group) = self.group(bdev, tag) {
            group.due = true;
            self.records_due += 1;
        }
        has_room
    }

    /// A part's data are where they should be.
    pub(super) fn staged(&mut self, task: Slot, tag: Tag, io: Option<Io>) {
        let Some(io) = io else { unreachable!("a part is a request") };
        if let Some(group) = self.group(io.bdev, tag) {
            group.parts.push(task);
        }
        self.done.push_back(Done { io, result: Ok(()) });
    }

    fn take_group(&mut self, bdev: BdevId, tag: Tag) -> SmallVec<[Slot; PARTS_MAX]> {
        let found = self.staging.groups.iter().position(|group| (group.bdev, group.tag) == (bdev, tag));
        let Some(Group { mut parts, due, .. }) = found.map(|at| self.staging.groups.swap_remove(at)) else {
            return SmallVec::new();
        };
        self.records_due -= u64::from(due);
        // One history gives one medium.
        parts.sort_unstable_by_key(|&task| self.write_place(task));
        parts
    }

    /// What is staged will not be shown.
    pub(crate) fn forget_staged(&mut self, bdev: BdevId, tag: Tag) {
        for task in self.take_group(bdev, tag) {
            self.finish_write(task, Err(IoError::ABANDONED));
        }
    }

    /// What the records of all that is staged will say.
    pub(crate) fn staged_records(&mut self, bdev: BdevId, tag: Tag) -> Vec<u8> {
        let mut parts = self.group(bdev, tag).map(|group| group.parts.clone()).unwrap_or_default();
        parts.sort_unstable_by_key(|&task| self.write_place(task));
        let mut out = Writer::default();
        for task in parts {
            self.say_staged(task, &mut out);
        }
        out.0
    }

    /// Shows all that is staged, at once, and says so by `name` when it is as durable as it should be:
    /// [`PoolShard::poll_committed`]. `beyond` is what the upper shard is to show.
    pub(crate) fn commit_staged(&mut self, bdev: BdevId, tag: Tag, name: u64, beyond: Option<Beyond>) {
        self.staging.waiting.push_back(Wish { bdev, tag, name, beyond });
        self.commit_turn();
    }

    /// What was shown, or could not be.
    pub(crate) fn poll_committed(&mut self) -> Option<Committed> {
        self.staging.committed.pop_front()
    }

    /// Commits that wait go on, as far as they can. Whether some don't.
    pub(super) fn commit_turn(&mut self) -> bool {
        if !self.staging.sent.is_empty() {
            // Each takes its place in the journal until it is known to be obeyed.
            self.prune_sent();
        }
        while let Some(wish) = self.staging.waiting.front() {
            let most = (self.journal.blocks() / 8).clamp(1, SENT_MAX) as usize;
            let is_full = wish.beyond.is_some() && self.staging.sent.len() >= most;
            // A core that takes no more writes obeys nothing either.
            let is_stuck =
                is_full && self.staging.sent.iter().any(|sent| self.board.is_broken(Core(sent.core)));
            let refused = self.broken.or(is_stuck.then_some(IoError::Medium { errno: 5 }));
            if is_full && refused.is_none() {
                return true;
            }
            let Some(Wish { bdev, tag, name, beyond }) = self.staging.waiting.pop_front() else { break };
            match refused {
                Some(error) => {
                    self.forget_staged(bdev, tag);
                    self.staging.committed.push_back(Committed { name, result: Err(error), decree: None });
                }
                None => self.commit(bdev, tag, name, beyond),
            }
        }
        false
    }

    fn commit(&mut self, bdev: BdevId, tag: Tag, name: u64, beyond: Option<Beyond>) {
        let parts = self.take_group(bdev, tag);
        let durable = beyond.is_some() || parts.iter().any(|&task| self.is_durable_write(task));
        let decree = beyond.as_ref().map(|_| {
            self.staging.standing.number += 1;
            Decree { from: self.core, number: self.staging.standing.number, is_doubtful: false }
        });
        let record = self.show_parts(&parts, durable, |out| {
            if let (Some(beyond), Some(decree)) = (&beyond, &decree) {
                record::write_decree(out, decree.number, beyond.core.0, &beyond.records);
            }
        });
        if let (Some(beyond), Some(decree)) = (beyond, decree) {
            let Beyond { core, records } = beyond;
            self.staging.sent.push_back(Sent { number: decree.number, core: core.0, records });
        }
        if durable && !self.is_durable(record) {
            self.wait_as(Task::Commit { name, decree }, record);
        } else {
            self.staging.committed.push_back(Committed { name, result: Ok(()), decree });
        }
    }

    /// Changes the maps of all parts and appends one entry that says so, with what `more` has to say; its number.
    fn show_parts(&mut self, parts: &[Slot], durable: bool, more: impl FnOnce(&mut Writer)) -> u64 {
        let mut shown: SmallVec<[Shown; PARTS_MAX]> = SmallVec::new();
        for &task in parts {
            shown.extend(self.show(task));
        }
        if self.breaks(Rule::AtomicIsOneEntry) {
            for part in &shown {
                self.append(durable, |out, _| part.say(out));
                self.journal.cut();
            }
            shown.iter_mut().for_each(|part| (part.written, part.zeroes) = (0, 0));
        }
        let record = self.append(durable, |out, _| {
            shown.iter().for_each(|part| part.say(out));
            more(out);
        });
        for part in shown {
            self.note_shown(part, record);
        }
        for &task in parts {
            self.finish_write(task, Ok(()));
        }
        record
    }

    pub(super) fn committed(&mut self, name: u64, decree: Option<Decree>, result: Result<(), IoError>) {
        let decree = decree.map(|decree| Decree { is_doubtful: result.is_err(), ..decree });
        self.staging.committed.push_back(Committed { name, result, decree });
    }

    /// Shows what is staged because another shard's journal says so. That is durable, so this need not be when it is told.
    pub(crate) fn obey(&mut self, bdev: BdevId, tag: Tag, decree: Decree) {
        if decree.is_doubtful {
            // What it says may come true with the next opening, over whatever was written here until then.
            let what = "whether another core's journal has a part of an atomic write is not known";
            self.break_down(IoError::Medium { errno: 5 }, what);
        }
        let parts = self.take_group(bdev, tag);
        let Decree { from, number, .. } = decree;
        let is_said = !self.breaks(Rule::DecreesAreObeyedOnce);
        let record = self.show_parts(&parts, true, |out| {
            if is_said {
                record::write_obeyed(out, from.0, number);
            }
        });
        self.note_obeyed(from.0, number, record);
    }

    fn note_obeyed(&mut self, from: u16, number: u64, record: u64) {
        debug_assert!(number > self.staging.standing.obeyed(from), "decrees come in order");
        self.staging.standing.obey(from, number);
        self.wait_as(Task::Obeyed { from, number }, record);
    }

    /// An entry that obeys is durable.
    pub(super) fn obeyed(&mut self, from: u16, number: u64) {
        self.board.number(self.core, Core(from)).fetch_max(number, Ordering::AcqRel);
    }

    fn wait_as(&mut self, task: Task, record: u64) {
        let Ok(task) = self.tasks.insert(task) else { panic!("the shard bounds its requests") };
        self.wait_for(record, task);
    }

    fn prune_sent(&mut self) {
        let (board, core) = (&self.board, self.core);
        self.staging
            .sent
            .retain(|sent| board.number(Core(sent.core), core).load(Ordering::Acquire) < sent.number);
    }

    /// Decrees that a checkpoint's cut leaves behind it are written anew, those that may not be obeyed durably. What the index
    /// has to say.
    pub(super) fn renew_decrees(&mut self) -> Standing {
        self.prune_sent();
        if !self.breaks(Rule::DecreesAreRenewed) {
            let sent = std::mem::take(&mut self.staging.sent);
            for Sent { number, core, records } in &sent {
                self.append(false, |out, _| record::write_decree(out, *number, *core, records));
            }
            self.staging.sent = sent;
        }
        self.staging.standing.clone()
    }

    /// Blocks of the journal that a checkpoint may need for decrees.
    pub(super) fn decrees_due(&self) -> u64 {
        self.staging.sent.len() as u64
    }

    /// What an opening has obeyed stands in the journal before anything else does.
    pub(super) fn record_inherited(&mut self, to_record: Vec<(u16, Sent)>) {
        for (from, Sent { number, records, .. }) in to_record {
            let record = self.append(true, |out, _| {
                out.bytes(&records);
                record::write_obeyed(out, from, number);
            });
            self.note_obeyed(from, number, record);
        }
    }
}

impl Shown {
    pub(super) fn say(&self, out: &mut Writer) {
        if let Some(target) = self.target
            && self.written != 0
        {
            record::write_set(out, self.root, self.slot, self.written, target, self.first);
        }
        if self.zeroes != 0 {
            record::write_zero(out, self.root, self.slot, self.zeroes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: what an index says of decrees is read as it was written, of version 1 there is nothing, and what is cut short
    /// is refused.
    #[test]
    fn standings_are_read_as_written() {
        let mut standing = Standing { number: 7, obeyed: Vec::new() };
        for (core, number) in [(3, 5), (1, 9), (3, 8), (3, 6)] {
            standing.obey(core, number);
        }
        assert_eq!((standing.obeyed(3), standing.obeyed(1), standing.obeyed(0)), (8, 9, 0));
        let mut out = Writer::default();
        standing.write(&mut out);
        assert_eq!(Standing::read(&mut Reader(&out.0)), Ok(standing));
        assert_eq!(Standing::read(&mut Reader(&[])), Ok(Standing::default()));
        for bytes in 1..out.0.len() {
            assert_eq!(Standing::read(&mut Reader(&out.0[..bytes])), Err(Malformed));
        }
    }
}
