//! A COMPARE AND WRITE or an atomic write of several parts: one step over one shard, or over the two on both sides of a
//! stripe's edge.
//!
//! The shard of the lower stripe has it in hand. It asks the upper one to hold its part and to look, looks at its own,
//! writes its own if both are as they should be, and says then whether the upper one writes, too. Each holds its part alone
//! from its look to the end, so nobody finds one half without the other, and a difference is of one moment.
//!
//! Nothing is held by anybody who waits for a credit: all that is said while something is held answers what was asked
//! before.
//!
//! ```text
//! lower                        upper
//!   ── Reach: the parts ────────►     answered at the end, with the parts
//!   ◄──────────────────── Seat ──     answered with the decision
//!   ── Go ──────────────────────►     holds and looks; answered with what it saw
//!   ◄─────────────────── (Saw) ──
//!   holds, looks, writes
//!   ── (Decided) ───────────────►     writes or not, and lets go
//!   ◄────────────────── (Ended) ──
//!   lets go
//! ```
//!
//! Whoever holds something waits for shards of lower stripes only, so there is no circle. A write that fails takes back what
//! was written before it, as well as it can.
//!
//! An atomic write goes the same way. In place of looking its parts are staged: their data are brought to where nobody sees
//! them. In place of writing they are committed: one entry of the journal shows them all. Over an edge the upper shard sends
//! what its records would say with what it saw, and the lower one's entry has that, too: it is the only one that decides.
//! When that is durable the upper shard commits, with a record that the lower one's word was taken (`pool::stage`).

use crate::error::IoError;
use crate::io::{BdevId, Io, Op, Tag};
use crate::pool::Rule;
use crate::pool::stage::{Beyond, Decree};
use crate::shard::{Mail, SHARD_IOS_MAX, Shard, pool_of};
use reactor::Core;
use reactor::slots::{Slot, Slots};
use std::collections::VecDeque;

/// How many of them a shard has in hand; the others wait in order, bounded by the credits they came with. With as many on
/// each of 255 other cores, what these ask for has its place among the [`SHARD_IOS_MAX`].
pub const SWAPS_MAX: usize = 32;

const _: () = assert!(SWAPS_MAX * 255 < SHARD_IOS_MAX);

/// Set in the names of upper parts.
const UPPER: u64 = 1 << 31;

/// A COMPARE AND WRITE or an atomic write of several parts, as the router sends it to the lower stripe's shard.
#[derive(Debug)]
pub struct Swap {
    /// Its parts by address.
    pub parts: Vec<Io>,
    /// Whose those are from this index on, if not the receiver's.
    pub upper: Option<(Core, usize)>,
}

impl Swap {
    fn is_of(&self, from: Core, bdev: BdevId, tag: Tag) -> bool {
        self.parts.first().is_some_and(|part| (part.from, part.bdev, part.tag) == (from, bdev, tag))
    }
}

/// What a shard asks another.
#[derive(Debug)]
pub enum EdgeAsk {
    /// Have these parts; they come back with [`EdgeTell::Ended`].
    Reach {
        /// The asker's name for it.
        swap: u64,
        /// Upper parts.
        parts: Vec<Io>,
    },
    /// I have; tell me what to do with them, by [`EdgeTell::Decided`].
    Seat {
        /// As it came with them.
        swap: u64,
        /// The asker's name for it.
        seat: u64,
    },
    /// Hold them and look; [`EdgeTell::Saw`] answers.
    Go {
        /// As it was told.
        seat: u64,
    },
}

/// The answers.
#[derive(Debug)]
pub enum EdgeTell {
    /// To [`EdgeAsk::Reach`].
    Ended {
        /// As it was asked.
        swap: u64,
        /// As they came.
        parts: Vec<Io>,
        /// How it went.
        result: Result<(), IoError>,
    },
    /// To [`EdgeAsk::Seat`].
    Decided {
        /// As it was asked.
        seat: u64,
        /// What is to be done with them.
        decision: Decision,
    },
    /// To [`EdgeAsk::Go`].
    Saw {
        /// The asker's name for it.
        swap: u64,
        /// What is there is what should be.
        result: Result<(), IoError>,
        /// Of an atomic write: what this shard's records would say.
        records: Vec<u8>,
    },
}

/// What becomes of the upper parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// They stay as they are.
    Leave,
    /// They are written.
    Write,
    /// They are shown: the lower shard's entry says so.
    Commit(Decree),
}

/// What a stack says of parts that it has.
#[derive(Debug)]
pub enum SwapEvent {
    /// It looked, or wrote, and goes on holding them.
    Paused {
        /// As they were given to it.
        name: u64,
        /// How that went.
        result: Result<(), IoError>,
    },
    /// It has let go.
    Ended {
        /// As they were given to it.
        name: u64,
        /// As they were given to it.
        parts: Vec<Io>,
        /// It let go before it had looked.
        result: Result<(), IoError>,
    },
}

/// What a pool says of a commit that it was asked for.
#[derive(Debug)]
pub struct Committed {
    /// As it was asked.
    pub name: u64,
    /// How it went.
    pub result: Result<(), IoError>,
    /// What the entry has for the upper shard, if there is one. `None` with an error: nothing was written.
    pub decree: Option<Decree>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The upper parts are on their way.
    Reaching,
    /// The upper shard is to look.
    Asking,
    /// The stack is to look.
    Looking,
    /// The stack is writing.
    Writing,
    /// The upper shard is writing.
    Deciding,
    /// All is decided; parts are on their way back.
    Ending,
}

#[derive(Debug)]
struct Upper {
    /// The upper shard's name for it, until it was told what to do.
    seat: Option<u64>,
    core: Core,
    /// The parts are there.
    away: bool,
    parts: Vec<Io>,
    saw: Result<(), IoError>,
    records: Vec<u8>,
}

/// One in hand.
#[derive(Debug)]
struct Lower {
    from: Core,
    tag: Tag,
    bdev: BdevId,
    is_atomic: bool,
    state: State,
    hold: Option<Slot>,
    /// The stack has the parts.
    away: bool,
    parts: Vec<Io>,
    bytes: u32,
    upper: Option<Upper>,
    abandoned: bool,
    result: Result<(), IoError>,
}

/// Upper parts of one that another shard has in hand.
#[derive(Debug)]
struct Seat {
    core: Core,
    swap: u64,
    bdev: BdevId,
    is_atomic: bool,
    state: State,
    hold: Option<Slot>,
    parts: Vec<Io>,
    result: Result<(), IoError>,
}

/// A shard's COMPARE AND WRITEs and atomic writes of several parts.
#[derive(Debug)]
pub(crate) struct Edges {
    swaps: Slots<Lower>,
    seats: Slots<Seat>,
    waiting: VecDeque<Swap>,
    reached: VecDeque<(Core, u64, Vec<Io>)>,
    out: VecDeque<(Core, bool, Mail)>,
}

impl Edges {
    pub(crate) fn new() -> Edges {
        Edges {
            swaps: Slots::with_capacity(SWAPS_MAX),
            seats: Slots::with_capacity(SHARD_IOS_MAX),
            waiting: VecDeque::new(),
            reached: VecDeque::new(),
            out: VecDeque::new(),
        }
    }

    /// How many wait for a place.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.len() + self.reached.len()
    }

    /// Whether the next one waits for nothing but a place.
    pub(crate) fn wants_place(&self) -> bool {
        !self.reached.is_empty() || !self.waiting.is_empty() && !self.swaps.is_full()
    }

    fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.reached.is_empty()
    }

    fn ask(&mut self, to: Core, ask: EdgeAsk) {
        self.out.push_back((to, false, Mail::Edge(Box::new(ask))));
    }

    fn tell(&mut self, to: Core, tell: EdgeTell) {
        self.out.push_back((to, true, Mail::EdgeTold(Box::new(tell))));
    }
}

impl Shard {
    /// Takes one of those of several parts that a router sent here.
    pub fn submit_swap(&mut self, swap: Swap) {
        self.edges.waiting.push_back(swap);
    }

    /// The next mail to another core, or to this one, and whether it is a reply.
    #[inline]
    pub fn poll_edge(&mut self) -> Option<(Core, bool, Mail)> {
        self.take_commits();
        if self.edges.is_idle() && self.effects.swaps.is_empty() {
            return self.edges.out.pop_front();
        }
        self.begin_swaps();
        while let Some(event) = self.effects.swaps.pop_front() {
            self.swap_event(event);
        }
        self.edges.out.pop_front()
    }

    /// Atomic writes that pools have shown go on.
    fn take_commits(&mut self) {
        for pool in 0..self.pools.len() {
            while let Some(committed) = self.pools[pool].poll_committed() {
                self.lower_committed(committed);
                self.settle_pools();
            }
        }
    }

    /// What another core's shard asks.
    pub fn on_edge(&mut self, from: Core, ask: EdgeAsk) {
        match ask {
            EdgeAsk::Reach { swap, parts } => {
                self.edges.reached.push_back((from, swap, parts));
            }
            EdgeAsk::Seat { swap, seat } => {
                let Some(lower) = self.edges.swaps.get_mut(Slot::from_bits(swap)) else {
                    debug_assert!(false, "a seat of nothing");
                    return;
                };
                if let Some(upper) = &mut lower.upper {
                    upper.seat = Some(seat);
                }
                if lower.abandoned {
                    lower.result = Err(IoError::ABANDONED);
                    self.decide(swap, Decision::Leave);
                    return self.end_swap(swap);
                }
                lower.state = State::Asking;
                self.edges.ask(from, EdgeAsk::Go { seat });
            }
            EdgeAsk::Go { seat } => {
                let Some(there) = self.edges.seats.get_mut(Slot::from_bits(seat)) else {
                    debug_assert!(false, "word for nothing");
                    return;
                };
                there.state = State::Looking;
                let parts = std::mem::take(&mut there.parts);
                match self.enter_swap(parts, seat | UPPER) {
                    Ok(hold) => {
                        if let Some(there) = self.edges.seats.get_mut(Slot::from_bits(seat)) {
                            there.hold = Some(hold);
                        }
                    }
                    Err(parts) => self.upper_ended(seat, parts, Err(IoError::GONE)),
                }
            }
        }
        self.settle_pools();
    }

    /// What another core's shard answers.
    pub fn on_edge_told(&mut self, tell: EdgeTell) {
        match tell {
            EdgeTell::Saw { swap, result, records } => {
                let Some(lower) = self.edges.swaps.get_mut(Slot::from_bits(swap)) else { return };
                if let Some(upper) = &mut lower.upper {
                    (upper.saw, upper.records) = (result, records);
                }
                match result {
                    Ok(()) | Err(IoError::Miscompare { .. }) => self.look(swap),
                    Err(_) => {
                        (lower.state, lower.result) = (State::Ending, result);
                        self.decide(swap, Decision::Leave);
                        self.end_swap(swap);
                    }
                }
            }
            EdgeTell::Decided { seat, decision } => self.decided(seat, decision),
            EdgeTell::Ended { swap, parts, result } => {
                let Some(lower) = self.edges.swaps.get_mut(Slot::from_bits(swap)) else { return };
                if let Some(upper) = &mut lower.upper {
                    (upper.parts, upper.away) = (parts, false);
                }
                if lower.state == State::Deciding {
                    lower.state = State::Ending;
                    if !lower.is_atomic {
                        lower.result = result;
                    }
                    let undo = lower.result.is_err() && !lower.is_atomic;
                    let (bdev, hold) = (lower.bdev, lower.hold);
                    self.let_go(bdev, hold, undo);
                }
                self.end_swap(swap);
            }
        }
        self.settle_pools();
    }

    /// The asker wants none of those with this tag to begin. What the stacks have they hear of themselves.
    pub(crate) fn abandon_swaps(&mut self, from: Core, bdev: BdevId, tag: Tag) {
        while let Some(place) = self.edges.waiting.iter().position(|swap| swap.is_of(from, bdev, tag)) {
            let Some(swap) = self.edges.waiting.remove(place) else { break };
            self.answer_swap(from, swap.parts, Err(IoError::ABANDONED));
        }
        for (_, lower) in self.edges.swaps.iter_mut() {
            lower.abandoned |= (lower.from, lower.bdev, lower.tag) == (from, bdev, tag);
        }
    }

    fn answer_swap(&mut self, from: Core, parts: Vec<Io>, result: Result<(), IoError>) {
        let swap = Box::new(Swap { parts, upper: None });
        self.edges.out.push_back((from, true, Mail::Swapped(swap, result)));
    }

    /// Whoever waits begins, as far as there are places.
    fn begin_swaps(&mut self) {
        while self.has_place()
            && let Some((core, swap, parts)) = self.edges.reached.pop_front()
        {
            let (bdev, op) =
                parts.first().map_or((BdevId(0), Op::CompareAndWrite), |part| (part.bdev, part.op));
            let seat = Seat {
                core,
                swap,
                bdev,
                is_atomic: op == Op::WriteAtomic,
                state: State::Reaching,
                hold: None,
                parts,
                result: Ok(()),
            };
            let Ok(seat) = self.edges.seats.insert(seat) else { unreachable!("as many as places") };
            self.take_place();
            self.edges.ask(core, EdgeAsk::Seat { swap, seat: seat.to_bits() });
        }
        while self.has_place()
            && !self.edges.swaps.is_full()
            && let Some(Swap { mut parts, upper }) = self.edges.waiting.pop_front()
        {
            let Some(&Io { from, tag, bdev, op, .. }) = parts.first() else { continue };
            let upper = upper.map(|(core, at)| (core, parts.split_off(at)));
            let bytes = bytes_of(&parts);
            let lower = Lower {
                from,
                tag,
                bdev,
                is_atomic: op == Op::WriteAtomic,
                state: State::Reaching,
                hold: None,
                away: false,
                parts,
                bytes,
                upper: upper.as_ref().map(|&(core, _)| Upper {
                    seat: None,
                    core,
                    away: true,
                    parts: Vec::new(),
                    saw: Ok(()),
                    records: Vec::new(),
                }),
                abandoned: false,
                result: Ok(()),
            };
            let Ok(slot) = self.edges.swaps.insert(lower) else { unreachable!("looked at just now") };
            self.take_place();
            match upper {
                Some((core, parts)) => {
                    self.edges.ask(core, EdgeAsk::Reach { swap: slot.to_bits(), parts });
                }
                None => self.look(slot.to_bits()),
            }
        }
        self.fill_places();
        self.settle_pools();
    }

    /// Holds the lower parts and looks at them.
    fn look(&mut self, swap: u64) {
        let Some(lower) = self.edges.swaps.get_mut(Slot::from_bits(swap)) else { return };
        lower.state = State::Looking;
        let parts = std::mem::take(&mut lower.parts);
        if lower.abandoned {
            return self.lower_ended(swap, parts, Err(IoError::ABANDONED));
        }
        match self.enter_swap(parts, swap) {
            Ok(hold) => {
                if let Some(lower) = self.edges.swaps.get_mut(Slot::from_bits(swap)) {
                    (lower.hold, lower.away) = (Some(hold), true);
                }
            }
            Err(parts) => self.lower_ended(swap, parts, Err(IoError::GONE)),
        }
    }

    fn enter_swap(&mut self, parts: Vec<Io>, name: u64) -> Result<Slot, Vec<Io>> {
        let Some((bdev, op)) = parts.first().map(|part| (part.bdev, part.op)) else { return Err(parts) };
        if let Some(counts) = self.counts.get_mut(usize::from(bdev.0)) {
            counts.submitted(op, bytes_of(&parts).into());
        }
        let mut effects = std::mem::take(&mut self.effects);
        let entered = match self.stack_mut(bdev) {
            Some(stack) => Ok(stack.enter_swap(parts, name, &mut effects)),
            None => Err(parts),
        };
        self.effects = effects;
        entered
    }

    fn write_parts(&mut self, bdev: BdevId, hold: Option<Slot>) {
        let mut effects = std::mem::take(&mut self.effects);
        if let (Some(stack), Some(hold)) = (self.stack_mut(bdev), hold) {
            stack.write_swap(hold, &mut effects);
        }
        self.effects = effects;
    }

    fn let_go(&mut self, bdev: BdevId, hold: Option<Slot>, undo: bool) {
        let mut effects = std::mem::take(&mut self.effects);
        if let (Some(stack), Some(hold)) = (self.stack_mut(bdev), hold) {
            stack.end_swap(hold, undo, &mut effects);
        }
        self.effects = effects;
    }

    fn swap_event(&mut self, event: SwapEvent) {
        match event {
            SwapEvent::Paused { name, result } if name & UPPER != 0 => {
                self.upper_paused(name & !UPPER, result);
            }
            SwapEvent::Paused { name, result } => self.lower_paused(name, result),
            SwapEvent::Ended { name, parts, result } if name & UPPER != 0 => {
                self.upper_ended(name & !UPPER, parts, result);
            }
            SwapEvent::Ended { name, parts, result } => self.lower_ended(name, parts, result),
        }
        self.settle_pools();
    }

    fn lower_paused(&mut self, swap: u64, result: Result<(), IoError>) {
        let Some(lower) = self.edges.swaps.get_mut(Slot::from_bits(swap)) else { return };
        let (bdev, hold) = (lower.bdev, lower.hold);
        let was_writing = lower.state == State::Writing;
        let result = match (result, &lower.upper) {
            (Ok(()), _) if lower.abandoned && !was_writing => Err(IoError::ABANDONED),
            (Ok(()), Some(Upper { saw: Err(IoError::Miscompare { offset_bytes }), .. })) => {
                Err(IoError::Miscompare { offset_bytes: offset_bytes + lower.bytes })
            }
            (Ok(()), Some(upper)) => upper.saw,
            (result, _) => result,
        };
        lower.result = result;
        if result.is_ok() && !was_writing {
            lower.state = State::Writing;
            if lower.is_atomic {
                return self.commit_lower(swap);
            }
            return self.write_parts(bdev, hold);
        }
        if result.is_ok() && lower.upper.is_some() {
            // They go on being held here until they are written there.
            lower.state = State::Deciding;
            return self.decide(swap, Decision::Write);
        }
        lower.state = State::Ending;
        if lower.is_atomic {
            self.forget_staged(bdev, hold);
        }
        self.decide(swap, Decision::Leave);
        self.let_go(bdev, hold, was_writing && result.is_err());
    }

    /// Shows the lower parts of an atomic write, with what the upper shard is to show.
    fn commit_lower(&mut self, swap: u64) {
        let Some(lower) = self.edges.swaps.get_mut(Slot::from_bits(swap)) else { return };
        let beyond = lower
            .upper
            .as_mut()
            .map(|upper| Beyond { core: upper.core, records: std::mem::take(&mut upper.records) });
        let (bdev, hold) = (lower.bdev, lower.hold);
        if let (Some((pool, _)), Some(hold)) = (pool_of(bdev), hold)
            && let Some(pool) = self.pools.get_mut(pool)
        {
            pool.commit_staged(bdev, Tag(hold.to_bits()), swap, beyond);
        }
    }

    /// The lower parts are shown, or can't be.
    fn lower_committed(&mut self, Committed { name, result, decree }: Committed) {
        let Some(lower) = self.edges.swaps.get_mut(Slot::from_bits(name)) else { return };
        lower.result = result;
        let (bdev, hold) = (lower.bdev, lower.hold);
        if let Some(decree) = decree {
            lower.state = State::Deciding;
            return self.decide(name, Decision::Commit(decree));
        }
        lower.state = State::Ending;
        self.decide(name, Decision::Leave);
        self.let_go(bdev, hold, false);
    }

    /// What is staged of an atomic write will not be shown.
    fn forget_staged(&mut self, bdev: BdevId, hold: Option<Slot>) {
        if let (Some((pool, _)), Some(hold)) = (pool_of(bdev), hold)
            && let Some(pool) = self.pools.get_mut(pool)
        {
            pool.forget_staged(bdev, Tag(hold.to_bits()));
        }
    }

    fn lower_ended(&mut self, swap: u64, parts: Vec<Io>, result: Result<(), IoError>) {
        let Some(lower) = self.edges.swaps.get_mut(Slot::from_bits(swap)) else { return };
        (lower.parts, lower.away) = (parts, false);
        if lower.state == State::Looking {
            // It was not even looked at.
            lower.result = result;
            lower.state = State::Ending;
            self.decide(swap, Decision::Leave);
        }
        self.end_swap(swap);
    }

    /// Tells the upper shard what to do.
    fn decide(&mut self, swap: u64, decision: Decision) {
        let Some(lower) = self.edges.swaps.get_mut(Slot::from_bits(swap)) else { return };
        if let Some(Upper { seat, core, .. }) = &mut lower.upper
            && let (Some(seat), core) = (seat.take(), *core)
        {
            self.edges.tell(core, EdgeTell::Decided { seat, decision });
        }
    }

    /// Answers if all parts are back.
    fn end_swap(&mut self, swap: u64) {
        let Some(lower) = self.edges.swaps.get(Slot::from_bits(swap)) else { return };
        if lower.away || lower.upper.as_ref().is_some_and(|upper| upper.away) {
            return;
        }
        let Some(lower) = self.edges.swaps.remove(Slot::from_bits(swap)) else { return };
        let Lower { from, bdev, mut parts, upper, result, .. } = lower;
        if result.is_err_and(IoError::is_failure)
            && let Some(counts) = self.counts.get_mut(usize::from(bdev.0))
        {
            counts.errors += 1;
        }
        parts.extend(upper.into_iter().flat_map(|upper| upper.parts));
        self.answer_swap(from, parts, result);
        self.give_place();
    }

    fn upper_paused(&mut self, seat: u64, result: Result<(), IoError>) {
        let Some(there) = self.edges.seats.get_mut(Slot::from_bits(seat)) else { return };
        there.result = result;
        let (core, swap, bdev, hold) = (there.core, there.swap, there.bdev, there.hold);
        if there.state == State::Looking {
            there.state = State::Deciding;
            let is_staged = there.is_atomic && result.is_ok();
            let records = if is_staged { self.staged_records(bdev, hold) } else { Vec::new() };
            return self.edges.tell(core, EdgeTell::Saw { swap, result, records });
        }
        there.state = State::Ending;
        self.let_go(bdev, hold, result.is_err());
    }

    fn staged_records(&mut self, bdev: BdevId, hold: Option<Slot>) -> Vec<u8> {
        match (pool_of(bdev).and_then(|(pool, _)| self.pools.get_mut(pool)), hold) {
            (Some(pool), Some(hold)) => pool.staged_records(bdev, Tag(hold.to_bits())),
            _ => Vec::new(),
        }
    }

    /// The lower shard has decided.
    fn decided(&mut self, seat: u64, decision: Decision) {
        let alone = self.breaks(Rule::EdgesDecideTogether);
        let Some(there) = self.edges.seats.get_mut(Slot::from_bits(seat)) else {
            debug_assert!(false, "a decision about nothing");
            return;
        };
        let (bdev, hold, is_atomic) = (there.bdev, there.hold, there.is_atomic);
        let write = decision == Decision::Write || alone && there.result.is_ok() && !is_atomic;
        let Some(held) = hold else { return self.leave_seat(seat) };
        if write {
            there.state = State::Writing;
            return self.write_parts(bdev, hold);
        }
        there.state = State::Ending;
        match decision {
            Decision::Commit(decree) => {
                if let Some(pool) = pool_of(bdev).and_then(|(pool, _)| self.pools.get_mut(pool)) {
                    pool.obey(bdev, Tag(held.to_bits()), decree);
                }
            }
            _ if is_atomic => self.forget_staged(bdev, hold),
            _ => {}
        }
        self.let_go(bdev, hold, false);
    }

    fn breaks(&self, rule: Rule) -> bool {
        self.pools.first().is_some_and(|pool| pool.breaks(rule))
    }

    fn upper_ended(&mut self, seat: u64, parts: Vec<Io>, result: Result<(), IoError>) {
        let Some(there) = self.edges.seats.get_mut(Slot::from_bits(seat)) else { return };
        (there.parts, there.hold) = (parts, None);
        if there.state != State::Looking {
            return self.leave_seat(seat);
        }
        // It was not even looked at.
        let (core, swap) = (there.core, there.swap);
        (there.state, there.result) = (State::Deciding, result);
        self.edges.tell(core, EdgeTell::Saw { swap, result, records: Vec::new() });
    }

    fn leave_seat(&mut self, seat: u64) {
        let Some(there) = self.edges.seats.remove(Slot::from_bits(seat)) else { return };
        let Seat { core, swap, parts, result, .. } = there;
        self.edges.tell(core, EdgeTell::Ended { swap, parts, result });
        self.give_place();
    }
}

/// Of the medium.
fn bytes_of(parts: &[Io]) -> u32 {
    let bytes = |part: &Io| match part.op {
        Op::WriteAtomic => part.buf.as_ref().map_or(0, |buf| buf.len() as u32),
        _ => part.scratch.as_ref().map_or(0, |buf| buf.len() as u32),
    };
    parts.iter().map(bytes).sum()
}
