//! Block device stacks under seeds: `tests::sim`. See `docs/simulation.md`.
//!
//! `SEED=17` replays one with every step, `SEEDS=1..20000` runs those, `SIM_MUTE=copy,or` leaves actions out.

use tests::sim::chance::mix;
use tests::sim::fake::{Fake, Lie};
use tests::sim::plain::Plain;
use tests::sim::pooled::Pooled;
use tests::sim::runner;

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
    let stats = runner::test("pools", |_| Pooled::default(), 500);
    println!("{stats}");
}

/// Goal: to see what fails, by kinds. Method: all seeds, whether or not one before failed.
#[test]
#[ignore = "for people who look for causes"]
fn survey() {
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    let survey = runner::survey(|_| Pooled::default(), runner::seeds(500), threads);
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
