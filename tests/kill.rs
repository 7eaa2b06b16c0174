//! kill -9 under load, again and again, on one data directory.
//!
//! Goal: after each restart every answered write is there, every block is old or new, snapshots and clones are whole
//! or absent, and the pool is whole. Method: the real program, with thin units of both block sizes and a clone;
//! commands at depth whose blocks say which write they are from; a snapshot, its clone and a LUN made meanwhile. What
//! the kill leaves is compared with what was sent and answered.
//! The kernel lives on: what a power cut takes is the matter of the models in `bdev`.

use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use tests::initiator::Initiator;
use tests::process::is_long_run;
use tests::stamped::{COMMAND_BYTES_MAX, NEVER, Stamped, UNIT_BYTES, ZEROES, is_put_off, read_back};
use tests::target::{Commands, Pollux, Setup, check};

const LIMIT: Duration = Duration::from_secs(30);
/// Commands under way.
const DEPTH: usize = 24;
/// LUN of the clones made in odd and even rounds, and of those that only look at a snapshot.
const CLONE_LUNS: [u8; 2] = [11, 10];
const LOOK_LUN: u8 = 9;
/// How much of what is wrong a failure shows.
const WRONG_SHOWN: usize = 20;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// A command under way.
struct Under {
    unit: usize,
    range: Range<usize>,
    is_read: bool,
}

/// What a load has done.
#[derive(Debug, Default)]
struct Did {
    writes: u64,
    zeroes: u64,
    reads: u64,
    put_off: u64,
    unanswered: usize,
}

/// Sends commands until the connection ends.
struct Writer<'a> {
    initiator: Initiator,
    units: &'a mut [Stamped],
    random: Random,
    /// Counts what was sent and heard.
    clock: &'a AtomicU64,
    under: HashMap<u32, Under>,
    next_stamp: &'a mut u64,
    did: Did,
}

impl Writer<'_> {
    fn run(mut self) -> (Did, io::Error) {
        loop {
            let step = if self.under.len() < DEPTH { self.send() } else { Ok(false) };
            let step = match step {
                Ok(true) => Ok(()),
                Ok(false) => self.hear(),
                Err(error) => Err(error),
            };
            if let Err(error) = step {
                self.did.unanswered = self.under.len();
                return (self.did, error);
            }
        }
    }

    /// Sends one command; `false`: its place is taken.
    fn send(&mut self) -> io::Result<bool> {
        let unit = self.random.below(self.units.len() as u64) as usize;
        let target = &mut self.units[unit];
        let most = u64::from(COMMAND_BYTES_MAX / target.block_bytes);
        // Small ones mostly, of any alignment.
        let bound = if self.random.below(3) == 0 { most } else { most.div_ceil(8) };
        let count = 1 + self.random.below(bound) as usize;
        let from = self.random.below(target.len() as u64) as usize;
        let range = target.idle(from, count);
        if range.is_empty() {
            return Ok(false);
        }
        let now = self.clock.fetch_add(1, Ordering::SeqCst) + 1;
        let kind = self.random.below(16);
        let lun = target.lun;
        let itt = match kind {
            0..4 => {
                target.read_sent(&range);
                let (cdb, bytes) = target.read_cdb(&range);
                self.initiator.command(lun, &cdb, &[], bytes)
            }
            4 => {
                target.write_sent(&range, ZEROES, now);
                self.initiator.command(lun, &target.zero_cdb(&range), &[], 0)
            }
            5 => {
                target.write_sent(&range, ZEROES, now);
                let (cdb, list) = target.unmap_cdb(&range);
                self.initiator.command(lun, &cdb, &list, 0)
            }
            _ => {
                *self.next_stamp += 1;
                target.write_sent(&range, *self.next_stamp, now);
                let (cdb, data) = target.write_cdb(&range, *self.next_stamp);
                self.initiator.command(lun, &cdb, &data, 0)
            }
        }?;
        match kind {
            0..4 => self.did.reads += 1,
            4..6 => self.did.zeroes += 1,
            _ => self.did.writes += 1,
        }
        self.under.insert(itt, Under { unit, range, is_read: kind < 4 });
        Ok(true)
    }

    fn hear(&mut self) -> io::Result<()> {
        let answer = self.initiator.next_answer(LIMIT)?;
        let now = self.clock.fetch_add(1, Ordering::SeqCst) + 1;
        let Some(Under { unit, range, is_read }) = self.under.remove(&answer.itt()) else {
            return Err(io::Error::other(format!("an answer to nothing: {answer:02x?}")));
        };
        let done = answer.bhs[3] == 0;
        if !done {
            self.did.put_off += 1;
            assert!(is_put_off(&answer), "unit {}: a command failed: {answer:02x?}", self.units[unit].lun);
        }
        let target = &mut self.units[unit];
        if !is_read {
            target.write_heard(&range, done, now);
        } else if done {
            let wrong = target.read_heard(&range, &answer.data);
            assert!(wrong.is_none(), "a read under load: {}", wrong.unwrap_or_default());
        } else {
            target.read_put_off(&range);
        }
        Ok(())
    }
}

/// What one round makes while it writes: a snapshot, a clone of it, and a LUN of that.
struct Made {
    /// The unit it is of.
    source: usize,
    snapshot: String,
    clone: String,
    lun: u8,
    /// How many of the steps were answered.
    answered: usize,
    /// When the snapshot was asked for, and when it was there.
    from: u64,
    to: u64,
}

impl Made {
    fn new(round: usize) -> Made {
        Made {
            source: round % 2,
            snapshot: format!("lun{}@snap-{round}", round % 2),
            clone: format!("clone-{round}"),
            lun: CLONE_LUNS[round % 2],
            answered: 0,
            from: NEVER,
            to: NEVER,
        }
    }

    fn steps(&self) -> [String; 3] {
        let Made { snapshot, clone, lun, .. } = self;
        [
            format!("snapshot create {snapshot}"),
            format!("volume clone {snapshot} {clone}"),
            format!("lun map {clone} --lun {lun}"),
        ]
    }

    /// Goes through the steps until one fails, which only a kill may bring about.
    fn make(&mut self, commands: &Commands, clock: &AtomicU64, killed: &AtomicBool) {
        for (place, step) in self.steps().iter().enumerate() {
            if place == 0 {
                self.from = clock.load(Ordering::SeqCst);
            }
            let finished = commands.run(step);
            if !finished.end.is_success() {
                assert!(killed.load(Ordering::SeqCst), "pollux {step}: {}", finished.text);
                return;
            }
            if place == 0 {
                self.to = clock.load(Ordering::SeqCst);
            }
            self.answered += 1;
        }
    }

    /// After the restart: what was answered is there. Makes what is missing, unless the snapshot is, which is then
    /// absent as a whole. Says whether it is there.
    fn complete(&self, commands: &Commands) -> bool {
        let name = self.snapshot.split('@').next_back().unwrap_or_default();
        let lists = [("snapshot list", name), ("volume list", &self.clone), ("lun list", &self.clone)];
        let there = lists.map(|(list, name)| {
            commands.run_well(&format!("{list} --json")).contains(&format!("\"{name}\""))
        });
        let steps = self.steps();
        for (place, there) in there.iter().enumerate() {
            assert!(*there || self.answered <= place, "answered, and not there: {}", steps[place]);
        }
        assert!(there.is_sorted_by(|a, b| a >= b), "{steps:?}: a later one is there without the one before");
        if there[0] {
            for (step, _) in steps.iter().zip(there).filter(|(_, there)| !there) {
                commands.run_well(step);
            }
        }
        there[0]
    }
}

/// A snapshot that an earlier round has made and looked at.
struct Kept {
    snapshot: String,
    clone: String,
    clone_lun: u8,
    block_bytes: u32,
    stamps: Vec<u64>,
}

impl Kept {
    /// It is what it was, whatever its volume and its clone have become. Then both go.
    fn look_and_remove(self, pollux: &Pollux) {
        let commands = pollux.commands();
        commands.run_well(&format!("volume clone {} look", self.snapshot));
        commands.run_well(&format!("lun map look --lun {LOOK_LUN}"));
        let mut initiator = login(pollux, &[LOOK_LUN]);
        let found = read_back(&mut initiator, LOOK_LUN, self.block_bytes).expect("the snapshot's clone");
        let changed = found.iter().zip(&self.stamps).filter(|(found, stamp)| found != stamp).count();
        assert!(changed == 0, "{}: {changed} of {} blocks have changed", self.snapshot, found.len());
        drop(initiator);
        commands.run_well("volume delete look --force");
        let listed = commands.run_well("lun list --json");
        assert!(listed.contains(&format!("\"{}\"", self.clone)), "LUN {} is gone", self.clone_lun);
        commands.run_well(&format!("volume delete {} --force", self.clone));
        commands.run_well(&format!("snapshot delete {}", self.snapshot));
    }
}

fn login(pollux: &Pollux, luns: &[u8]) -> Initiator {
    let address = pollux.addresses()[0].parse().expect("the harness knows its own addresses");
    let mut initiator = Initiator::login(address, "iqn.2026-11.io.pollux:writer", 1, LIMIT).expect("a login");
    for &lun in luns {
        initiator.test_ready(lun, LIMIT).unwrap_or_else(|error| panic!("unit {lun}: {error}"));
    }
    initiator
}

fn assert_right(what: &str, wrong: &[String]) {
    let shown = &wrong[..wrong.len().min(WRONG_SHOWN)];
    assert!(wrong.is_empty(), "{what}: {} things are wrong:\n{}", wrong.len(), shown.join("\n"));
}

#[test]
#[ignore = "needs an optimised pollux: run by tests/run"]
fn a_kill_takes_nothing_that_was_answered() {
    let rounds = if is_long_run() { 50 } else { 8 };
    let seed = match std::env::var("POLLUX_TEST_SEED") {
        Ok(seed) => seed.parse().expect("POLLUX_TEST_SEED is a number"),
        Err(_) => u64::from(std::process::id()),
    };
    println!("POLLUX_TEST_SEED={seed} repeats what is sent, if not when");
    let mut random = Random(seed);
    let cpus = pollux::config::usable_cpus();
    let one = cpus[0].to_string();
    let all = cpus.iter().take(2).map(u16::to_string).collect::<Vec<_>>().join(",");

    let luns = [
        format!("thin:{UNIT_BYTES},block=512,physical=4096"),
        format!("thin:{UNIT_BYTES},block=4096,physical=4096"),
    ];
    let mut pollux =
        Pollux::start(Setup { reactors: one.clone(), ..Setup::with_luns(&[&luns[0], &luns[1]]) });
    let mut units = vec![Stamped::empty(0, 512), Stamped::empty(1, 4096)];
    let mut next_stamp = ZEROES;
    let mut kept: Option<Kept> = None;
    for round in 0..rounds {
        let served = check(&pollux.pool_file());
        assert!(
            !served.end.is_success() && served.text.contains("in use"),
            "a check of a pool that is served: {served:?}"
        );

        let numbers: Vec<u8> = units.iter().map(|unit| unit.lun).collect();
        let initiator = login(&pollux, &numbers);
        let (clock, killed) = (AtomicU64::new(0), AtomicBool::new(false));
        let mut made = Made::new(round);
        let wait = 300 + random.below(1200);
        // Every other round the kill falls into the making, which takes some tens of milliseconds.
        let pause = if round % 4 < 2 { wait - random.below(100) } else { random.below(wait) };
        let writer = Writer {
            initiator,
            units: &mut units,
            random: Random(random.next()),
            clock: &clock,
            under: HashMap::new(),
            next_stamp: &mut next_stamp,
            did: Did::default(),
        };
        let (did, end) = thread::scope(|scope| {
            let writer = scope.spawn(move || writer.run());
            let (commands, clock, killed, made) = (pollux.commands(), &clock, &killed, &mut made);
            scope.spawn(move || {
                thread::sleep(Duration::from_millis(pause));
                made.make(&commands, clock, killed);
            });
            thread::sleep(Duration::from_millis(wait));
            let early = writer.is_finished();
            killed.store(true, Ordering::SeqCst);
            pollux.kill();
            let (did, end) = writer.join().expect("the writer has found nothing wrong");
            assert!(!early, "the target ended the session before it was killed: {end}");
            (did, end)
        });

        let left = check(&pollux.pool_file());
        assert!(left.end.is_success(), "what the kill left, {end}: {}", left.text);

        let reactors = if round % 2 == 0 { &all } else { &one };
        pollux.set_reactors(reactors);
        let began = Instant::now();
        pollux.start_again();
        let restart = began.elapsed();

        let is_made = made.complete(&pollux.commands());
        let mut initiator = login(&pollux, &numbers);
        let mut clone = None;
        if is_made {
            initiator.test_ready(made.lun, LIMIT).expect("the clone's unit");
            let source = &units[made.source];
            let found = read_back(&mut initiator, made.lun, source.block_bytes).expect("the clone");
            let wrong = source.fits_snapshot(&found, made.from, made.to);
            assert_right(&format!("round {round}, {}", made.snapshot), &wrong);
            clone = Some((source.block_bytes, found));
        }
        for unit in &mut units {
            let found = unit.read_back(&mut initiator).expect("the unit can be read");
            assert_right(&format!("round {round}, unit {}", unit.lun), &unit.settle(&found));
        }
        drop(initiator);
        println!(
            "round {round}: killed after {wait} ms, {did:?}; {} of 3 steps answered, snapshot {}; {} reactors, {restart:?}",
            made.answered,
            if is_made { "whole" } else { "absent" },
            1 + reactors.matches(',').count(),
        );

        units.truncate(2);
        if let Some(kept) = kept.take() {
            kept.look_and_remove(&pollux);
        }
        if let Some((block_bytes, stamps)) = clone {
            units.push(Stamped::holding(made.lun, block_bytes, &stamps));
            let (snapshot, clone, clone_lun) = (made.snapshot, made.clone, made.lun);
            kept = Some(Kept { snapshot, clone, clone_lun, block_bytes, stamps });
        }
    }
    pollux.stop();
    let left = check(&pollux.pool_file());
    assert!(left.end.is_success(), "{}", left.text);
    pollux.start_again();
    let mut initiator = login(&pollux, &[0, 1]);
    for unit in &mut units[..2] {
        let found = unit.read_back(&mut initiator).expect("the unit can be read");
        assert_right(&format!("unit {} after a stop", unit.lun), &unit.settle(&found));
    }
    drop(initiator);
    pollux.stop();
}
