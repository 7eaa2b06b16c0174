//! What the sessions of one thread share: what to do next, and what has been measured.
//!
//! Called by `session` for each command, and by `worker`. Allocates nothing after [`Ledger::new`], but for the
//! texts of the first few errors.

use super::pattern::{Op, Picker};
use super::verify::Verifier;
use crate::failure::Failure;
use hdrhistogram::Histogram;
use reactor::clock::Time;

/// Latencies above this are counted as this: one minute, in nanoseconds.
const LATENCY_NS_MAX: u64 = 60_000_000_000;
/// Three digits: a percentile is right within 0.1 %.
const LATENCY_DIGITS: u8 = 3;
/// Errors kept word for word; the others are only counted.
const ERRORS_KEPT_MAX: usize = 8;

/// A histogram of nanoseconds.
pub fn latencies() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_NS_MAX, LATENCY_DIGITS).expect("the bounds are constants that fit")
}

/// One direction's results.
#[derive(Debug, Clone)]
pub struct Side {
    /// Nanoseconds from the turn that built the command to the receive that brought its status.
    pub latencies: Histogram<u64>,
    /// Data carried, in bytes.
    pub bytes: u64,
}

impl Side {
    fn new() -> Side {
        Side { latencies: latencies(), bytes: 0 }
    }

    fn add(&mut self, other: &Side) {
        self.latencies += &other.latencies;
        self.bytes += other.bytes;
    }
}

/// All results of one thread, or of several added up.
#[derive(Debug, Clone)]
pub struct Tally {
    /// Commands that ended GOOD inside the measured window.
    pub reads: Side,
    /// The same, for writes.
    pub writes: Side,
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
    /// When it was built.
    pub issued: Time,
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
    measured_from: Time,
    measured_to: Time,
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
            measured_from: Time::NEVER,
            measured_to: Time::NEVER,
        }
    }

    /// Counts what ends from `from` on and before `to`.
    pub fn measure(&mut self, from: Time, to: Time) {
        self.measured_from = from;
        self.measured_to = to;
    }

    /// From now on [`Ledger::next`] goes once over all blocks, then says there is no more.
    pub fn start_pass(&mut self, op: Op) {
        self.pass = Some(Pass { op, next: self.first_block, end: self.first_block + self.blocks });
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
            return (block < pass.end).then_some((pass.op, block));
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

    /// A command ended GOOD with all its data at `now`.
    pub fn finish(&mut self, now: Time, command: Finished<'_>) {
        if let Some(verifier) = &mut self.verifier
            && let Err(failure) = verify(verifier, command)
        {
            self.tally.error(|| failure.to_string());
            return;
        }
        if now < self.measured_from || now >= self.measured_to || self.pass.is_some() {
            return;
        }
        let side = match command.op {
            Op::Read => &mut self.tally.reads,
            Op::Write => &mut self.tally.writes,
        };
        side.latencies.saturating_record((now - command.issued).as_nanos() as u64);
        side.bytes += u64::from(command.bytes);
    }

    /// A command ended otherwise.
    pub fn fail(&mut self, op: Op, block: u64, what: impl FnOnce() -> String) {
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
    use crate::load::pattern::Pattern;

    fn finished(issued: u64) -> Finished<'static> {
        Finished { op: Op::Read, block: 0, bytes: 4096, issued: Time(issued), data: &[] }
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
        assert_eq!(side.bytes, 409_600);
        let near = |quantile: f64, ns: u64| {
            let found = side.latencies.value_at_quantile(quantile);
            assert!(found.abs_diff(ns) <= ns / 1000 + 1, "{quantile}: {found}");
        };
        near(0.5, 50_000);
        near(0.99, 99_000);
        near(1.0, 100_000);
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
        ledger.fail(Op::Write, 20, || "lost".into());
        assert_eq!(ledger.next(0), Some((Op::Read, 20)));
    }
}
