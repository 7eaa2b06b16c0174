//! Block device stacks under seeds: `tests::sim`. See `docs/simulation.md`.
//!
//! `SEED=17` replays one with every step, `SEEDS=1..20000` runs those, `SIM_MUTE=copy,or` leaves actions out.

use bdev::pool::Rule;
use tests::sim::chance::mix;
use tests::sim::fake::{Fake, Lie};
use tests::sim::plain::Plain;
use tests::sim::pooled::Pooled;
use tests::sim::runner;

/// What has to happen in a few hundred seeds, so that none of it passes by not being tried.
const HAPPENS: [&str; 65] = [
    "compare",
    "compare and write",
    "compare and write differed",
    "compare and write done",
    "compare and write of parts",
    "compare and write of parts done",
    "control refused",
    "copy",
    "copy done",
    "copy failed",
    "crash",
    "crash in open",
    "crashed before it happened",
    "crashed, but it had happened",
    "damage",
    "damage refused",
    "detach",
    "diff",
    "diff extents",
    "disk cut short",
    "disk failed",
    "disk operations",
    "disk refused for now",
    "flush",
    "given up",
    "locks on a full pool",
    "open",
    "or-write",
    "out of space",
    "pool: KiB copied by sharing",
    "pool: KiB copied for full counts",
    "pool: KiB copied misaligned",
    "pool: bytes copied at edges",
    "pool: KiB punched",
    "pool: checkpoints",
    "pool: commits",
    "pool: folds",
    "pool: messages about chunks",
    "pool: records",
    "pool: writes in place",
    "pool: writes merged",
    "pool: writes redirected",
    "pool: zero blocks detected",
    "read",
    "sectors lost by crashes",
    "snapshot create",
    "snapshot delete",
    "snapshot read",
    "squeeze",
    "stripes offered by name",
    "stripes offered in vain",
    "under way at a crash",
    "unmap",
    "usage compared",
    "usage walk",
    "usage: unique and shared",
    "volume clone",
    "volume create",
    "volume delete",
    "volume resize",
    "volume rollback",
    "volumes set aside",
    "walk",
    "writes lost by failed syncs",
    "writes torn by crashes",
];

/// Seeds that have to find a broken rule.
const MUTATION_SEEDS: u64 = 2000;

/// Goal: files and the layers over them answer as arrays would, whatever the order of events, and keep over a crash what
/// they have promised. Method: see `tests::sim`.
#[test]
fn files() {
    let stats = runner::test("files", |seed| Plain { seed: mix(seed) }, 100);
    println!("{stats}");
}

/// Goal: the oracle has nothing against a pool that is as it should be. Method: the fake one.
#[test]
fn honest() {
    let stats = runner::test("honest", |seed| Fake::new(seed, None), 100);
    println!("{stats}");
}

/// Goal: the oracle finds each kind of wrong. Method: the fake pool tells one lie at a time.
#[test]
#[ignore = "takes a minute or two; run by `tests/run --long` and by people who change the oracle"]
fn lies() {
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    let mut missed = Vec::new();
    let only = std::env::var("LIE").ok();
    for lie in Lie::ALL.into_iter().filter(|lie| only.as_ref().is_none_or(|only| *only == format!("{lie:?}")))
    {
        match runner::run(|seed| Fake::new(seed, Some(lie)), 1..=2000, threads) {
            Ok(_) => missed.push(lie),
            Err(failure) => println!("{lie:?}: seed {}: {:.300}", failure.seed, failure.what),
        }
    }
    // What the oracle does not see is known, and said in docs/simulation.md.
    missed.retain(|lie| *lie != Lie::CopyStale);
    assert!(missed.is_empty(), "nobody saw {missed:?}");
}

/// Goal: a pool's volumes, snapshots and clones are what an array for each would be, whatever the order of events, and
/// what was promised is there after any crash. Method: see `tests::sim`.
#[test]
fn pools() {
    let breaks = broken();
    let stats = runner::test("pools", |seed| Pooled::of(seed, breaks), 500);
    println!("{stats}");
    if stats.get("seed") >= 300 {
        let missing = stats.missing(&HAPPENS);
        assert!(missing.is_empty(), "these never happened: {missing:?}");
        // Else no core has had what was offered to it.
        assert!(stats.get("stripes offered by name") > stats.get("stripes offered in vain"));
    }
}

/// Goal: what is promised of a pool holds where disks fail, too: in all of these worlds, and what a failed sync was for may be
/// lost. Method: as `pools`.
#[test]
fn failing() {
    let stats = runner::test("failing", Pooled::failing, 200);
    println!("{stats}");
}

/// Goal: what was found once stays mended. Method: seeds beyond those of `pools` that failed.
#[test]
fn found_before() {
    for seed in [
        1326, 2080, 4749, 4753, 5800, 6393, 6656, 7510, 7490, 8213, 8281, 11_537, 13_268, 15_301, 16_606,
        16_682, 17_249, 18_932, 19_397, 11_567, 12_025,
    ] {
        let run = runner::run(|_| Pooled::default(), seed..=seed, 1);
        assert!(run.is_ok(), "{:?}", run.err());
    }
    for seed in [1462, 2907] {
        let run = runner::run(Pooled::failing, seed..=seed, 1);
        assert!(run.is_ok(), "{:?}", run.err());
    }
}

/// Goal: a seed is a whole history. Method: some run twice.
#[test]
fn a_seed_is_a_history() {
    let once =
        || runner::run(|_| Pooled::default(), 1..=20, 2).unwrap_or_else(|failure| panic!("{failure:?}"));
    assert_eq!(once(), once());
}

/// The rule that `RULE` names, to be broken.
fn broken() -> Option<Rule> {
    let name = std::env::var("RULE").ok()?;
    let found = Rule::ALL.into_iter().find(|rule| format!("{rule:?}") == name);
    Some(found.unwrap_or_else(|| panic!("RULE={name} is none of {:?}", Rule::ALL)))
}

/// Goal: to see what fails, by kinds. Method: all seeds, whether or not one before failed.
#[test]
#[ignore = "for people who look for causes"]
fn survey() {
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    let breaks = broken();
    let survey = runner::survey(|seed| Pooled::of(seed, breaks), runner::seeds(500), threads);
    println!("{}", survey.stats);
    for (place, failures) in &survey.failures {
        let seeds: Vec<u64> = failures.iter().map(|(seed, _)| *seed).collect();
        println!(
            "{} times {place}\n  {:?}\n  {:.600}",
            seeds.len(),
            &seeds[..seeds.len().min(12)],
            failures[0].1
        );
    }
    assert!(survey.failures.is_empty());
}

/// Goal: the simulator would notice if a rule of the pool were broken. Method: each is broken on purpose, and the first
/// seed that finds it is shown.
#[test]
#[ignore = "takes minutes; run by `tests/run --long` and by people who change the pool's rules"]
fn mutations() {
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    let only = broken();
    let mut missed = Vec::new();
    for rule in Rule::ALL.into_iter().filter(|&rule| only.is_none_or(|only| only == rule)) {
        let pool = |_| Pooled::on_disks(Some(rule));
        match runner::run(pool, 1..=MUTATION_SEEDS, threads) {
            Ok(_) => missed.push(rule),
            Err(failure) => {
                let what: String = failure.what.lines().take(2).collect::<Vec<_>>().join(" ");
                println!("{rule:?}: seed {}: {what:.240}", failure.seed);
            }
        }
    }
    assert!(missed.is_empty(), "no seed up to {MUTATION_SEEDS} finds {missed:?} broken");
}
