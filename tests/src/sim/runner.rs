//! Runs seeds, several at a time, each in one thread; says of the first that fails what failed and how to see it again.

use crate::sim::actions::KINDS;
use crate::sim::stats::Stats;
use crate::sim::subject::Subject;
use crate::sim::trace::Trace;
use crate::sim::world::{CORES_MAX, World};
use reactor::buf::{Pool, PoolConfig};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Mutex;
use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering};

/// A seed that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Which.
    pub seed: u64,
    /// What was wrong.
    pub what: String,
}

thread_local! {
    /// A world runs on this thread: what it says when it panics is kept.
    static IN_WORLD: Cell<bool> = const { Cell::new(false) };
    static SAID: RefCell<String> = const { RefCell::new(String::new()) };
}

static QUIET: Once = Once::new();

/// Panics in worlds are what this is for, so they are told once, and by us.
fn be_quiet() {
    QUIET.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if IN_WORLD.get() {
                let trace = if std::env::var_os("SIM_BACKTRACE").is_some() {
                    format!("\n{}", std::backtrace::Backtrace::force_capture())
                } else {
                    String::new()
                };
                SAID.set(format!("{info}{trace}"));
            } else {
                before(info);
            }
        }));
    });
}

/// The buffers of a thread's worlds, one after the other.
fn bufs() -> Vec<Pool> {
    let config = |arena| PoolConfig { counts: [128, 64, 160], arena };
    (0..CORES_MAX as u16).map(|arena| Pool::new(config(arena)).expect("memory for buffers")).collect()
}

/// The actions that `SIM_MUTE` leaves out, by their bits.
fn muted() -> u32 {
    let names = std::env::var("SIM_MUTE").unwrap_or_default();
    let bit = |name: &str| {
        let place = KINDS.iter().position(|kind| *kind == name);
        1 << place.unwrap_or_else(|| panic!("SIM_MUTE has {name}; choose from {KINDS:?}"))
    };
    names.split(',').filter(|name| !name.is_empty()).map(bit).fold(0, |all, bit| all | bit)
}

/// Runs one seed.
fn run_one<S: Subject>(
    make: &impl Fn(u64) -> S,
    seed: u64,
    bufs: &mut [Pool],
    trace: Trace,
) -> Result<Stats, Failure> {
    be_quiet();
    let mute = muted();
    IN_WORLD.set(true);
    let world = || World::new(make(seed), bufs, seed, mute, trace).run();
    let result = panic::catch_unwind(AssertUnwindSafe(world));
    IN_WORLD.set(false);
    result.map_err(|_| Failure { seed, what: SAID.take() })
}

/// Runs one seed and prints each step.
///
/// # Errors
/// What was wrong.
pub fn replay<S: Subject>(make: impl Fn(u64) -> S, seed: u64) -> Result<Stats, Failure> {
    run_one(&make, seed, &mut bufs(), Trace::Print)
}

/// Runs these seeds until one fails. What happened, or the lowest that is known to fail.
///
/// # Errors
/// What was wrong.
pub fn run<S: Subject>(
    make: impl Fn(u64) -> S + Sync,
    seeds: RangeInclusive<u64>,
    threads: usize,
) -> Result<Stats, Failure> {
    let next = AtomicU64::new(*seeds.start());
    let end = AtomicU64::new(*seeds.end());
    let sum = Mutex::new((Stats::default(), None::<Failure>));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut own = bufs();
                let mut stats = Stats::default();
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed > end.load(Ordering::Relaxed) {
                        break;
                    }
                    match run_one(&make, seed, &mut own, Trace::Off) {
                        Ok(seen) => {
                            stats.merge(&seen);
                            stats.count("seed");
                        }
                        Err(failure) => {
                            // Those below it still run: the first failure is the same whatever the threads do.
                            end.fetch_min(seed, Ordering::Relaxed);
                            own = bufs();
                            let failed = &mut sum.lock().expect("nobody panics here").1;
                            if failed.as_ref().is_none_or(|known| known.seed > seed) {
                                *failed = Some(failure);
                            }
                        }
                    }
                }
                sum.lock().expect("nobody panics here").0.merge(&stats);
            });
        }
    });
    let (stats, failed) = sum.into_inner().expect("nobody panicked");
    failed.map_or(Ok(stats), Err)
}

/// Runs all of these seeds and says of each kind of failure, by where it was noticed, which they were.
pub fn survey<S: Subject>(
    make: impl Fn(u64) -> S + Sync,
    seeds: RangeInclusive<u64>,
    threads: usize,
) -> Survey {
    let next = AtomicU64::new(*seeds.start());
    let sum = Mutex::new(Survey::default());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut own = bufs();
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed > *seeds.end() {
                        return;
                    }
                    match run_one(&make, seed, &mut own, Trace::Off) {
                        Ok(seen) => sum.lock().expect("nobody panics here").stats.merge(&seen),
                        Err(Failure { seed, what }) => {
                            own = bufs();
                            let place = what.lines().next().unwrap_or_default().to_owned();
                            let failures = &mut sum.lock().expect("nobody panics here").failures;
                            failures.entry(place).or_default().push((seed, what));
                        }
                    }
                }
            });
        }
    });
    sum.into_inner().expect("nobody panicked")
}

/// See [`survey`].
#[derive(Debug, Default)]
pub struct Survey {
    /// Of the seeds that passed.
    pub stats: Stats,
    /// By place: seeds and what was wrong.
    pub failures: BTreeMap<String, Vec<(u64, String)>>,
}

/// Which seeds are to run: `SEED`, `SEEDS=first..last`, `SIM_SEEDS=count`, `--long` of `tests/run`, or `usual` many.
pub fn seeds(usual: u64) -> RangeInclusive<u64> {
    let number = |name: &str| {
        let text = std::env::var(name).ok()?;
        Some(text.parse::<u64>().unwrap_or_else(|_| panic!("{name} has to be a number, not {text}")))
    };
    if let Ok(text) = std::env::var("SEEDS") {
        let parsed = text
            .split_once("..")
            .and_then(|(first, last)| Some(first.parse().ok()?..=last.trim_start_matches('=').parse().ok()?));
        return parsed.unwrap_or_else(|| panic!("SEEDS has to be first..last, not {text}"));
    }
    let long = std::env::var_os("POLLUX_TEST_LONG").map(|_| 20_000);
    1..=number("SIM_SEEDS").or(long).unwrap_or(usual)
}

/// The one seed that is to be replayed.
pub fn replayed() -> Option<u64> {
    std::env::var("SEED").ok().map(|text| text.parse().unwrap_or_else(|_| panic!("SEED={text} is no number")))
}

/// Runs what the environment asks for as the test of this name, and says how to see a failure again.
///
/// # Panics
/// When a seed fails.
pub fn test<S: Subject>(name: &str, make: impl Fn(u64) -> S + Sync, usual: u64) -> Stats {
    if let Some(seed) = replayed() {
        return replay(make, seed).unwrap_or_else(|failure| panic!("seed {seed}: {}", failure.what));
    }
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    let seeds = seeds(usual);
    match run(&make, seeds, threads) {
        Ok(stats) => stats,
        Err(Failure { seed, what }) => {
            let last = Trace::Last(std::collections::VecDeque::new());
            let again = run_one(&make, seed, &mut bufs(), last).is_err();
            let again =
                if again { "" } else { "\n(it passes when it runs again: something is left to chance)" };
            panic!(
                "seed {seed}: {what}{again}\nreplay: SEED={seed} cargo test -p tests --test sim {name} -- --nocapture"
            );
        }
    }
}
