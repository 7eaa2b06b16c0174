//! What the sessions of one thread share: what to do next, and what has been measured.
//!
//! Called by `session` for each command, and by `worker`. Allocates nothing after [`Ledger::new`], but for the
//! texts of the first few errors.

use super::pace::Pace;
use super::pattern::{Op, Picker};
use super::verify::Verifier;
use crate::failure::Failure;
use crate::pool::shuffle::Shuffle;
use hdrhistogram::Histogram;
use reactor::clock::Time;
use std::time::Duration;

/// Latencies above this are counted as this: one minute, in nanoseconds.
const LATENCY_NS_MAX: u64 = 60_000_000_000;
/// Three digits: a percentile is right within 0.1 %.
const LATENCY_DIGITS: u8 = 3;
/// A command of an open loop counts as late when it is sent more than this after its intended start. A turn over some
/// dozens of sessions takes less, so what is later has waited for the window, the depth, or a generator without its CPU.
pub const LATE_AFTER: Duration = Duration::from_micros(100);
/// Errors kept word for word; the others are only counted.
const ERRORS_KEPT_MAX: usize = 8;

/// A histogram of nanoseconds.
pub fn latencies() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_NS_MAX, LATENCY_DIGITS).expect("the bounds are constants that fit")
}

/// One direction's results.
#[derive(Debug, Clone)]
pub struct Side {
    /// Nanoseconds to the receive that brought the status. In a closed loop from the turn that built the command, for
    /// those that ended in the window; in an open loop from the intended start, for those to be started in it.
    pub latencies: Histogram<u64>,
    /// Commands that ended GOOD inside the window.
    pub ios: u64,
    /// Their data, in bytes.
    pub bytes: u64,
}

impl Side {
    fn new() -> Side {
        Side { latencies: latencies(), ios: 0, bytes: 0 }
    }

    fn add(&mut self, other: &Side) {
        self.latencies += &other.latencies;
        self.ios += other.ios;
        self.bytes += other.bytes;
    }
}

/// How far an open loop was behind its schedule; of the commands that were to start inside the measured window.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lateness {
    /// Commands sent more than [`LATE_AFTER`] after their intended start, and those never sent.
    pub late: u64,
    /// Those never sent: the run was over before there was room for them.
    pub unsent: u64,
    /// The longest that one waited to be sent, late or not; for one never sent, until the run was over.
    pub longest: Duration,
}

impl Lateness {
    fn add(&mut self, other: &Lateness) {
        self.late += other.late;
        self.unsent += other.unsent;
        self.longest = self.longest.max(other.longest);
    }
}

/// All results of one thread, or of several added up.
#[derive(Debug, Clone)]
pub struct Tally {
    /// Reads that ended GOOD.
    pub reads: Side,
    /// The same, for writes.
    pub writes: Side,
    /// Commands that ended inside the measured window, GOOD or not.
    pub ended: u64,
    /// Zero in a closed loop, which has no schedule to be behind.
    pub lateness: Lateness,
    /// Commands that ended otherwise, also outside the window: bad status, residual, short or wrong data.
    pub errors: u64,
    /// The first of them in words.
    pub first_errors: Vec<String>,
    /// Reads whose content was known and right.
    pub checked: u64,
    /// Reads under --verify of blocks whose content wasn't known.
    pub unchecked: u64,
    /// Gathered sends and receives that moved bytes, in the whole run.
    pub sends: u64,
    /// Receives that brought bytes.
    pub receives: u64,
}

impl Tally {
    /// Nothing yet.
    pub fn new() -> Tally {
        Tally {
            reads: Side::new(),
            writes: Side::new(),
            ended: 0,
            lateness: Lateness::default(),
            errors: 0,
            first_errors: Vec::new(),
            checked: 0,
            unchecked: 0,
            sends: 0,
            receives: 0,
        }
    }

    /// Adds another thread's results.
    pub fn add(&mut self, other: &Tally) {
        self.reads.add(&other.reads);
        self.writes.add(&other.writes);
        self.ended += other.ended;
        self.lateness.add(&other.lateness);
        self.errors += other.errors;
        let room = ERRORS_KEPT_MAX.saturating_sub(self.first_errors.len());
        self.first_errors.extend(other.first_errors.iter().take(room).cloned());
        self.checked += other.checked;
        self.unchecked += other.unchecked;
        self.sends += other.sends;
        self.receives += other.receives;
    }

    /// Counts an error.
    pub fn error(&mut self, what: impl FnOnce() -> String) {
        self.errors += 1;
        if self.first_errors.len() < ERRORS_KEPT_MAX {
            self.first_errors.push(what());
        }
    }
}

impl Default for Tally {
    fn default() -> Tally {
        Tally::new()
    }
}

/// A pass over all blocks in order, besides the measured pattern.
#[derive(Debug, Clone, Copy)]
struct Pass {
    op: Op,
    next: u64,
    end: u64,
}

/// What a finished command was.
#[derive(Debug, Clone, Copy)]
pub struct Finished<'a> {
    /// Its direction.
    pub op: Op,
    /// Its block.
    pub block: u64,
    /// Its data, in bytes.
    pub bytes: u32,
    /// Where its latency begins: when it was built, in an open loop when it was to be sent.
    pub start: Time,
    /// What came in; empty unless reads are verified.
    pub data: &'a [u8],
}

/// One thread's book.
#[derive(Debug)]
pub struct Ledger {
    /// The results so far.
    pub tally: Tally,
    picker: Picker,
    verifier: Option<Verifier>,
    first_block: u64,
    blocks: u64,
    pass: Option<Pass>,
    shuffle: Option<Shuffle>,
    measured_from: Time,
    measured_to: Time,
    by_start: bool,
}

impl Ledger {
    /// For one thread's `blocks` blocks from `first_block`. Nothing is measured before [`Ledger::measure`].
    pub fn new(picker: Picker, verifier: Option<Verifier>, first_block: u64, blocks: u64) -> Ledger {
        Ledger {
            tally: Tally::new(),
            picker,
            verifier,
            first_block,
            blocks,
            pass: None,
            shuffle: None,
            measured_from: Time::NEVER,
            measured_to: Time::NEVER,
            by_start: false,
        }
    }

    /// Counts what ends from `from` on and before `to`.
    pub fn measure(&mut self, from: Time, to: Time) {
        self.measured_from = from;
        self.measured_to = to;
    }

    /// For an open loop: as [`Ledger::measure`], but latencies are those of the commands that were to start in that
    /// time, whenever they end. Else a stall across its end would hide all that it holds up.
    pub fn measure_by_start(&mut self, from: Time, to: Time) {
        self.measure(from, to);
        self.by_start = true;
    }

    fn is_measured(&self, time: Time) -> bool {
        (self.measured_from..self.measured_to).contains(&time) && self.pass.is_none()
    }

    /// From now on [`Ledger::next`] goes once over all blocks, then says there is no more.
    pub fn start_pass(&mut self, op: Op) {
        self.pass = Some(Pass { op, next: self.first_block, end: self.first_block + self.blocks });
    }

    /// Passes go over the blocks in an order that looks random. Not for a run that verifies.
    pub fn shuffle_passes(&mut self, seed: u64) {
        assert!(self.verifier.is_none(), "a pass that verifies goes in order");
        self.shuffle = Some(Shuffle::new(self.blocks, seed));
    }

    /// Whether the pass has handed out all it has.
    pub fn pass_is_over(&self) -> bool {
        self.pass.is_none_or(|pass| pass.next >= pass.end)
    }

    /// Back to the pattern.
    pub fn end_pass(&mut self) {
        self.pass = None;
    }

    /// Whether data must be kept and checked.
    pub fn verifies(&self) -> bool {
        self.verifier.is_some()
    }

    /// The next command of `session`; the block is its own until [`Ledger::finish`] or [`Ledger::fail`]. `None`
    /// when there is nothing to do.
    pub fn next(&mut self, session: usize) -> Option<(Op, u64)> {
        let Some(pass) = &mut self.pass else {
            let (op, block) = self.picker.next(session);
            return match &mut self.verifier {
                None => Some((op, block)),
                Some(verifier) => verifier.claim(block).map(|block| (op, block)),
            };
        };
        let Some(verifier) = &mut self.verifier else {
            let block = pass.next;
            pass.next = (block + 1).min(pass.end);
            let (first, shuffle) = (self.first_block, self.shuffle);
            let shuffled = |block| shuffle.map_or(block, |shuffle| first + shuffle.at(block - first));
            return (block < pass.end).then(|| (pass.op, shuffled(block)));
        };
        // Nothing is under way when a pass starts, and a pass takes each block once: the block is free.
        let wanted = (pass.next..pass.end).find(|&block| pass.op == Op::Write || verifier.knows(block));
        pass.next = wanted.map_or(pass.end, |block| block + 1);
        let claimed = verifier.claim(wanted?);
        assert_eq!(claimed, wanted);
        claimed.map(|block| (pass.op, block))
    }

    /// Fills in what is to be written to `block`; leaves `data` alone unless the run verifies.
    pub fn stamp(&mut self, block: u64, data: &mut [u8]) {
        if let Some(verifier) = &mut self.verifier {
            verifier.stamp(block, data);
        }
    }

    /// A command of an open loop was built at `now` that was to be sent at `start`.
    pub fn sent(&mut self, now: Time, start: Time) {
        if self.is_measured(start) {
            let waited = now.since(start);
            self.tally.lateness.late += u64::from(waited > LATE_AFTER);
            self.tally.lateness.longest = self.tally.lateness.longest.max(waited);
        }
    }

    /// What `pace` has left at `now` won't be sent.
    pub fn give_up(&mut self, now: Time, pace: &Pace) {
        if let Some((unsent, oldest)) = pace.left_from(self.measured_from) {
            self.tally.lateness.late += unsent;
            self.tally.lateness.unsent += unsent;
            self.tally.lateness.longest = self.tally.lateness.longest.max(now.since(oldest));
        }
    }

    /// A command ended GOOD with all its data at `now`.
    pub fn finish(&mut self, now: Time, command: Finished<'_>) {
        let ended_in_time = self.is_measured(now);
        self.tally.ended += u64::from(ended_in_time);
        if let Some(verifier) = &mut self.verifier
            && let Err(failure) = verify(verifier, command)
        {
            self.tally.error(|| failure.to_string());
            return;
        }
        let is_timed = if self.by_start { self.is_measured(command.start) } else { ended_in_time };
        let side = match command.op {
            Op::Read => &mut self.tally.reads,
            Op::Write => &mut self.tally.writes,
        };
        if is_timed {
            side.latencies.saturating_record((now - command.start).as_nanos() as u64);
        }
        if ended_in_time {
            side.ios += 1;
            side.bytes += u64::from(command.bytes);
        }
    }

    /// A command ended otherwise at `now`.
    pub fn fail(&mut self, now: Time, op: Op, block: u64, what: impl FnOnce() -> String) {
        self.tally.ended += u64::from(self.is_measured(now));
        if let Some(verifier) = &mut self.verifier {
            match op {
                Op::Read => drop(verifier.read(block, None)),
                Op::Write => verifier.wrote(block, false),
            }
        }
        self.tally.error(what);
    }

    /// The results, complete.
    pub fn into_tally(mut self) -> Tally {
        if let Some(verifier) = &self.verifier {
            self.tally.checked = verifier.checked;
            self.tally.unchecked = verifier.unchecked;
        }
        self.tally
    }
}

fn verify(verifier: &mut Verifier, command: Finished<'_>) -> Result<(), Failure> {
    match command.op {
        Op::Read => verifier.read(command.block, Some(command.data)),
        Op::Write => {
            verifier.wrote(command.block, true);
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::pace::{Deal, Rate};
    use crate::load::pattern::Pattern;

    fn finished(start: u64) -> Finished<'static> {
        Finished { op: Op::Read, block: 0, bytes: 4096, start: Time(start), data: &[] }
    }

    /// Goal: only what ends inside the window counts, and percentiles are the histogram's. Method: latencies of 1
    /// to 100 µs inside, others outside.
    #[test]
    fn the_window_decides_what_counts() {
        let picker = Picker::new(Pattern::Randread, 50, 0, 8, 1, 1);
        let mut ledger = Ledger::new(picker, None, 0, 8);
        ledger.measure(Time(1_000_000), Time(2_000_000));
        ledger.finish(Time(999_999), finished(0));
        ledger.finish(Time(2_000_000), finished(0));
        for us in 1..=100 {
            ledger.finish(Time(1_500_000), finished(1_500_000 - us * 1000));
        }
        let side = ledger.into_tally().reads;
        assert_eq!(side.latencies.len(), 100);
        assert_eq!((side.ios, side.bytes), (100, 409_600));
        let near = |quantile: f64, ns: u64| {
            let found = side.latencies.value_at_quantile(quantile);
            assert!(found.abs_diff(ns) <= ns / 1000 + 1, "{quantile}: {found}");
        };
        near(0.5, 50_000);
        near(0.99, 99_000);
        near(1.0, 100_000);
    }

    /// Goal: in an open loop the intended start decides whose latency counts, and the end what the rate is. Method:
    /// commands across both edges of the window; one fails.
    #[test]
    fn an_open_loop_counts_latencies_by_their_start() {
        let picker = Picker::new(Pattern::Randread, 50, 0, 8, 1, 1);
        let mut ledger = Ledger::new(picker, None, 0, 8);
        ledger.measure_by_start(Time(1_000_000), Time(2_000_000));
        ledger.finish(Time(1_000_500), finished(999_999));
        ledger.finish(Time(1_000_500), finished(1_000_000));
        ledger.finish(Time(9_000_000), finished(1_999_999));
        ledger.finish(Time(9_000_000), finished(2_000_000));
        ledger.fail(Time(1_500_000), Op::Read, 0, || "lost".into());
        ledger.fail(Time(2_500_000), Op::Read, 0, || "lost".into());
        let tally = ledger.into_tally();
        assert_eq!((tally.reads.ios, tally.ended, tally.errors), (2, 3, 2));
        assert_eq!((tally.reads.latencies.len(), tally.reads.latencies.min()), (2, 500));
        assert!(tally.reads.latencies.max() >= 7_000_000, "the stall that goes on after the window shows");
    }

    /// Goal: late commands are counted, those of the warm-up and those in time are not, and what is never sent is
    /// late, too. Method: one of each, then a schedule with commands left over.
    #[test]
    fn lateness_is_told() {
        let picker = Picker::new(Pattern::Randread, 50, 0, 8, 1, 1);
        let mut ledger = Ledger::new(picker, None, 0, 8);
        ledger.measure_by_start(Time(1_000_000), Time(5_000_000));
        ledger.sent(Time(900_000), Time(0));
        ledger.sent(Time(1_100_000), Time(1_000_000));
        assert_eq!(
            ledger.tally.lateness,
            Lateness { late: 0, unsent: 0, longest: Duration::from_micros(100) }
        );
        ledger.sent(Time(1_100_001), Time(1_000_000));
        let deal = Deal { rate: Rate::new(1000).unwrap(), thread: 0, threads: 1, sessions: 1 };
        ledger.give_up(Time(9_000_000), &deal.pace(0, Time::ZERO, Time(5_000_000)));
        let expected = Lateness { late: 5, unsent: 4, longest: Duration::from_millis(8) };
        assert_eq!(ledger.tally.lateness, expected);
        let mut both = ledger.tally.clone();
        both.add(&ledger.tally);
        assert_eq!(both.lateness, Lateness { late: 10, unsent: 8, ..expected });
    }

    /// Goal: a pass takes each block once, then there is nothing to do until it is ended. Method: eight blocks.
    #[test]
    fn a_pass_takes_each_block_once() {
        let picker = Picker::new(Pattern::Randread, 50, 16, 8, 1, 1);
        let mut ledger = Ledger::new(picker, Some(Verifier::new(16, 8, 1)), 16, 8);
        ledger.start_pass(Op::Write);
        let taken: Vec<u64> = std::iter::from_fn(|| ledger.next(0)).map(|(_, block)| block).collect();
        assert_eq!(taken, (16..24).collect::<Vec<u64>>());
        ledger.end_pass();
        assert!(ledger.next(0).is_none(), "all blocks still have a command");
        ledger.fail(Time::ZERO, Op::Write, 20, || "lost".into());
        assert_eq!(ledger.next(0), Some((Op::Read, 20)));
        let picker = Picker::new(Pattern::Randread, 50, 16, 8, 1, 1);
        let mut ledger = Ledger::new(picker, None, 16, 8);
        ledger.shuffle_passes(1);
        ledger.start_pass(Op::Write);
        let mut taken: Vec<u64> = std::iter::from_fn(|| ledger.next(0)).map(|(_, block)| block).collect();
        assert!(!taken.is_sorted());
        taken.sort_unstable();
        assert_eq!(taken, (16..24).collect::<Vec<u64>>(), "each once, in another order");
    }
}
