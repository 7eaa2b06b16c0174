//! What a volume or a snapshot may hold: for each unit the values that may stand there, kept by blocks of 4 KiB.
//!
//! A value is there from its write's submission on. When a write has ended well, what had ended before it was submitted
//! is *gone*: no read that is asked from then on may see it. It is *lost* when it can't come back with a crash either:
//! when what took its place is durable. Reads that are asked when nothing is under way decide between what is left.
//!
//! Invariant: `loose` has exactly the blocks that are not firm, see [`Block::is_firm`]. Blocks that are the same in two
//! tables are one `Rc`, so what is found out about the one is known of the other.

use crate::sim::content::{BLOCK_UNITS, Content, Contents, NOBODY, OpId, UNIT_BYTES, ZERO};
use std::collections::BTreeSet;
use std::rc::Rc;

/// When something happened, counted in things that happened.
pub type Moment = u64;
/// Not yet.
pub const NEVER: Moment = u64::MAX;

/// One bit a unit.
pub type Mask = u8;
const ALL: Mask = 0xff;

/// What may stand in some units of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Value {
    /// Whose doing.
    pub op: OpId,
    /// In which units.
    pub mask: Mask,
    /// What, counted from the block's first unit.
    pub content: Content,
    /// When that was asked for.
    pub asked: Moment,
    /// When it was over, one way or another.
    pub ended: Moment,
    /// Whoever asks from then on must not see it.
    pub gone: Moment,
    /// It can't be there after a crash.
    pub lost: bool,
    /// It will be there after a crash, if it is there now.
    pub durable: bool,
    /// It comes to all its units of this block or to none.
    pub atomic: bool,
    /// It is zeroes by the map alone.
    pub unmapped: bool,
    /// A compare and write found it and took its place.
    pub taken: bool,
    /// Its write has failed: it may be seen and still not be durable, whatever is promised of the volume.
    pub failed: bool,
    /// It is gone only in so far as what a failed write left was seen in its place.
    pub doubted: bool,
    /// It is a compare and write's: whoever was asked after this came after it, though it was not over.
    pub before: Moment,
}

/// What may stand in eight units.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Block {
    /// In the order of asking.
    pub values: Vec<Value>,
}

/// A state of a volume.
#[derive(Clone, Debug)]
pub struct Table {
    blocks: Vec<Rc<Block>>,
    loose: BTreeSet<u32>,
}

/// What a write brings to a table.
#[derive(Clone, Copy, Debug)]
pub struct Bring {
    /// Whose doing.
    pub op: OpId,
    /// When that was asked for.
    pub asked: Moment,
    /// It is map state alone, where it covers a block.
    pub range: bool,
}

/// A block's units that a read has seen.
#[derive(Debug, Default)]
pub struct Seen {
    /// For each value of the block, where it was seen.
    pub hits: Vec<Mask>,
    /// Units that were looked at.
    pub looked: Mask,
}

impl Block {
    /// Nothing but zeroes since ever.
    pub fn zero() -> Block {
        let value = Value {
            op: NOBODY,
            mask: ALL,
            content: ZERO,
            asked: 0,
            ended: 0,
            gone: NEVER,
            lost: false,
            durable: true,
            atomic: false,
            unmapped: true,
            taken: false,
            failed: false,
            doubted: false,
            before: NEVER,
        };
        Block { values: vec![value] }
    }

    /// Each unit has one value, whose write is over and which nothing has replaced.
    pub fn is_firm(&self) -> bool {
        let mut mask = 0;
        self.values.iter().all(|value| {
            let apart = mask & value.mask == 0;
            mask |= value.mask;
            apart && value.ended != NEVER && value.gone == NEVER
        })
    }

    /// Whether a write to it goes elsewhere because nothing is mapped here.
    pub fn is_unmapped(&self) -> bool {
        matches!(self.values[..], [Value { unmapped: true, mask: ALL, ended, gone: NEVER, .. }] if ended != NEVER)
    }

    /// Cuts `mask` out of the value at `index`, so that it can be changed alone: its new place.
    fn split(&mut self, index: usize, mask: Mask) -> usize {
        if self.values[index].mask & !mask == 0 {
            return index;
        }
        let mut part = self.values[index];
        part.mask &= mask;
        self.values[index].mask &= !mask;
        self.values.insert(index + 1, part);
        index + 1
    }

    /// Changes the part of each value in `mask` that `which` wants changed.
    fn change(&mut self, mask: Mask, which: impl Fn(&Value) -> bool, change: impl Fn(&mut Value)) {
        let mut index = 0;
        while index < self.values.len() {
            let value = self.values[index];
            if value.mask & mask != 0 && which(&value) {
                index = self.split(index, mask);
                change(&mut self.values[index]);
            }
            index += 1;
        }
    }

    /// Forgets what nobody can see any more.
    fn prune(&mut self, oldest: Moment) {
        self.values.retain(|value| !(value.lost && value.gone <= oldest));
    }

    /// Which values the bytes of a read from unit `first` on are, of those it may see.
    ///
    /// # Errors
    /// The first unit that is none of them.
    pub fn see(&self, first: usize, bytes: &[u8], asked: Moment, contents: &Contents) -> Result<Seen, usize> {
        let mut seen = Seen { hits: vec![0; self.values.len()], looked: 0 };
        for (k, unit) in (first..).zip(bytes.chunks_exact(UNIT_BYTES)) {
            let bit = 1 << k;
            seen.looked |= bit;
            let mut found = false;
            for (value, hits) in self.values.iter().zip(&mut seen.hits) {
                if value.mask & bit != 0 && value.gone > asked && contents.is(value.content, k, unit) {
                    *hits |= bit;
                    found = true;
                }
            }
            if !found {
                return Err(k);
            }
        }
        Ok(seen)
    }
}

impl Table {
    /// Zeroes.
    pub fn new(blocks: usize, zero: &Rc<Block>) -> Table {
        Table { blocks: vec![Rc::clone(zero); blocks], loose: BTreeSet::new() }
    }

    /// How many blocks it has.
    pub fn len(&self) -> usize {
        self.blocks.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// Becomes at least so long.
    pub fn grow(&mut self, blocks: usize, zero: &Rc<Block>) {
        if blocks > self.blocks.len() {
            self.blocks.resize(blocks, Rc::clone(zero));
        }
    }

    /// One of its blocks.
    pub fn block(&self, block: usize) -> &Rc<Block> {
        &self.blocks[block]
    }

    /// Puts another in its place.
    pub fn set_block(&mut self, block: usize, with: Rc<Block>) {
        self.blocks[block] = with;
        self.mark(block);
    }

    /// Blocks of which something is not known, or under way.
    pub fn loose(&self) -> impl Iterator<Item = usize> {
        self.loose.iter().map(|&block| block as usize)
    }

    fn mark(&mut self, block: usize) {
        if self.blocks[block].is_firm() {
            self.loose.remove(&(block as u32));
        } else {
            self.loose.insert(block as u32);
        }
    }

    /// From now on `content` may stand in these units, which lie in one block; `atomic` says whether all of it comes at
    /// once. Whether that is news.
    pub fn bring(
        &mut self,
        bring: Bring,
        first: usize,
        units: usize,
        content: Content,
        atomic: bool,
    ) -> bool {
        let (block, within) = (first / BLOCK_UNITS, first % BLOCK_UNITS);
        let mask = mask_of(within, units);
        let content = content.behind(-(within as i32));
        let known = |value: &Value| value.op == bring.op && value.content == content;
        let there: Mask =
            self.blocks[block].values.iter().filter(|value| known(value)).fold(0, |all, v| all | v.mask);
        if mask & !there == 0 {
            return false;
        }
        let entry = Rc::make_mut(&mut self.blocks[block]);
        // Two writes under way may come one after the other, and the second goes to where the first went. What comes to a
        // block that was zeroed goes to where its data were, which a crash brings back if the zeroing is not durable.
        let open = |value: &Value| value.ended == NEVER || value.unmapped && !value.durable;
        let under_way = |value: &Value| open(value) && value.op != bring.op;
        // So it is with what was asked for before these zeroes and comes after them: with it, zeroes are written there.
        let unmapped = bring.range && mask == ALL && content == ZERO;
        let atomic = atomic && !(unmapped && entry.values.iter().any(|v| v.ended == NEVER && under_way(v)));
        entry.change(ALL, under_way, |value| value.atomic = false);
        entry.values.push(Value {
            op: bring.op,
            mask: mask & !there,
            content,
            asked: bring.asked,
            ended: NEVER,
            gone: NEVER,
            lost: false,
            durable: false,
            atomic,
            unmapped,
            taken: false,
            failed: false,
            doubted: false,
            before: NEVER,
        });
        self.loose.insert(block as u32);
        true
    }

    /// What may be seen now in these units: first unit, length and content of each run, and whether it is map state.
    pub fn runs(&self, first: usize, units: usize) -> Vec<(usize, usize, Content)> {
        let mut runs = Vec::new();
        for (block, within, length) in parts(first, units) {
            let asked = mask_of(within, length);
            for value in self.blocks[block].values.iter().filter(|value| value.gone == NEVER) {
                let mut rest = value.mask & asked;
                while rest != 0 {
                    let k = rest.trailing_zeros() as usize;
                    let length = (rest >> k).trailing_ones() as usize;
                    runs.push((block * BLOCK_UNITS + k, length, value.content.behind(k as i32)));
                    rest &= !mask_of(k, length);
                }
            }
        }
        runs
    }

    /// `op`, asked for at `asked`, has ended well in these units: what was over before is gone.
    pub fn succeeded(
        &mut self,
        op: OpId,
        asked: Moment,
        (first, units): (usize, usize),
        now: Moment,
        durable: bool,
        oldest: Moment,
    ) {
        for (block, within, length) in parts(first, units) {
            let entry = Rc::make_mut(&mut self.blocks[block]);
            let mask = mask_of(within, length);
            entry.change(
                mask,
                |value| value.op != op && value.ended.min(value.before) < asked,
                |value| {
                    value.gone = value.gone.min(now);
                    value.lost |= durable;
                },
            );
            for value in entry.values.iter_mut().filter(|value| value.op == op) {
                value.ended = now;
                value.durable |= durable;
            }
            entry.prune(oldest);
            self.mark(block);
        }
    }

    /// `op` has ended somehow: its values may be there or not. A compare and write that failed in one part has written
    /// back what was in the others, zeroes that had not been mapped, too (`is_swap`).
    pub fn failed(&mut self, op: OpId, (first, units): (usize, usize), now: Moment, is_swap: bool) {
        for (block, _, _) in parts(first, units) {
            let entry = Rc::make_mut(&mut self.blocks[block]);
            if is_swap {
                entry.values.iter_mut().for_each(|value| value.unmapped = false);
            }
            for value in entry.values.iter_mut().filter(|value| value.op == op) {
                value.ended = now;
                value.failed = true;
            }
            self.mark(block);
        }
    }

    /// `op` has not happened.
    pub fn never(&mut self, op: OpId, (first, units): (usize, usize)) {
        for (block, _, _) in parts(first, units) {
            let entry = Rc::make_mut(&mut self.blocks[block]);
            entry.values.retain(|value| value.op != op);
            self.mark(block);
        }
    }

    /// What shared blocks with these is going: what is under way may go where it was.
    pub fn unshared(&mut self) {
        for block in self.loose.clone() {
            let entry = Rc::make_mut(&mut self.blocks[block as usize]);
            let under_way = entry.values.iter_mut().filter(|value| value.ended == NEVER && !value.unmapped);
            under_way.for_each(|value| value.atomic = false);
        }
    }

    /// A compare and write has found this value and replaced it.
    pub fn take(&mut self, block: usize, k: usize, index: usize, now: Moment, durable: bool) {
        let entry = Rc::make_mut(&mut self.blocks[block]);
        let index = entry.split(index, 1 << k);
        let value = &mut entry.values[index];
        value.taken = true;
        value.gone = value.gone.min(now);
        value.lost |= durable;
        self.mark(block);
    }

    /// In this unit whoever was asked after `before` came after `op`, and it is gone by `gone`.
    pub fn set_when(&mut self, block: usize, k: usize, op: OpId, before: Moment, gone: Option<Moment>) {
        let entry = Rc::make_mut(&mut self.blocks[block]);
        entry.change(
            1 << k,
            |value| value.op == op,
            |value| {
                value.before = before;
                value.gone = value.gone.min(gone.unwrap_or(NEVER));
            },
        );
        self.mark(block);
    }

    /// All that had ended by `asked` is durable now, and what was gone by then is lost.
    pub fn flushed(&mut self, asked: Moment, oldest: Moment) {
        for block in self.loose.clone() {
            let block = block as usize;
            let entry = Rc::make_mut(&mut self.blocks[block]);
            for value in &mut entry.values {
                value.lost |= value.gone <= asked;
                value.durable |= value.ended <= asked;
            }
            entry.prune(oldest);
            self.mark(block);
        }
    }

    /// The power went: what was not lost may be there, and it will stay.
    pub fn crashed(&mut self, now: Moment) {
        for block in self.loose.clone() {
            let block = block as usize;
            let entry = Rc::make_mut(&mut self.blocks[block]);
            entry.values.retain(|value| !value.lost);
            for value in &mut entry.values {
                value.ended = value.ended.min(now);
                value.gone = NEVER;
                value.durable = true;
                value.taken = false;
                value.failed = false;
                value.doubted = false;
                value.before = NEVER;
            }
            self.mark(block);
        }
    }

    /// What may have been seen between `asked` and now, for a state that will not change.
    pub fn capture(&self, asked: Moment, now: Moment) -> Table {
        let mut captured = self.clone();
        for block in self.loose.clone() {
            let block = block as usize;
            let mut copy = (*captured.blocks[block]).clone();
            copy.values.retain(|value| value.gone > asked || value.doubted && !value.lost);
            for value in &mut copy.values {
                value.ended = value.ended.min(now);
                value.gone = if value.gone > asked { NEVER } else { value.gone };
                value.lost = false;
                value.durable = !value.failed;
                value.taken = false;
                value.before = NEVER;
                // Which of two it is to be was open, so where it went is, too.
                value.atomic = false;
            }
            // What was under way may have come before the cut here and after it there: the two are decided apart.
            let under_way = self.block(block).values.iter().any(|value| value.ended > asked);
            if under_way || copy != **self.block(block) {
                captured.blocks[block] = Rc::new(copy);
            }
            captured.mark(block);
        }
        captured
    }

    /// What a read of these units, asked at `asked`, has seen decides between what may be there. The new block, if
    /// anything was found out.
    pub fn narrow(&self, block: usize, seen: &Seen, asked: Moment, oldest: Moment) -> Option<Block> {
        let entry = &self.blocks[block];
        if entry.is_firm() {
            return None;
        }
        let under_way =
            entry.values.iter().filter(|value| value.ended >= asked).fold(0, |all, v| all | v.mask);
        let decided = seen.looked & !under_way;
        let (mut all_durable, mut failed) = (decided, 0);
        for (value, hits) in entry.values.iter().zip(&seen.hits) {
            if !value.durable {
                all_durable &= !hits;
            }
            if value.failed {
                failed |= hits;
            }
        }
        let mut narrowed = Block::default();
        let mut news = false;
        for (value, hits) in entry.values.iter().zip(&seen.hits) {
            let out = value.mask & decided & !hits;
            let mut add = |mask: Mask, out: bool, lost: bool, doubted: bool| {
                if mask != 0 {
                    let gone = if out { value.gone.min(asked) } else { value.gone };
                    let (lost, doubted) = (value.lost || lost, value.doubted || doubted);
                    news |= gone != value.gone || lost != value.lost;
                    narrowed.values.push(Value { mask, gone, lost, doubted, ..*value });
                }
            };
            // A failed write's record may stand in a journal that nobody writes to any more.
            let settled = if value.failed { 0 } else { all_durable };
            let doubted = if value.failed { ALL } else { failed };
            add(value.mask & !out, false, false, false);
            add(out & !settled & !doubted, true, false, false);
            add(out & !settled & doubted, true, false, true);
            add(out & settled, true, true, false);
        }
        narrowed.prune(oldest);
        (news || narrowed.values.len() < entry.values.len()).then_some(narrowed)
    }
}

/// The units from `first` on, of one block.
pub fn mask_of(first: usize, units: usize) -> Mask {
    debug_assert!(first + units <= BLOCK_UNITS);
    (((1u16 << units) - 1) << first) as Mask
}

/// A range by blocks: which, first unit in it, how many.
pub fn parts(first: usize, units: usize) -> impl Iterator<Item = (usize, usize, usize)> {
    let end = first + units;
    let mut at = first;
    std::iter::from_fn(move || {
        if at == end {
            return None;
        }
        let (block, within) = (at / BLOCK_UNITS, at % BLOCK_UNITS);
        let length = (BLOCK_UNITS - within).min(end - at);
        at += length;
        Some((block, within, length))
    })
}
