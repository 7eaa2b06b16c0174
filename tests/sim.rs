//! Block device stacks under seeds: `tests::sim`. See `docs/simulation.md`.
//!
//! `SEED=17` replays one with every step, `SEEDS=1..20000` runs those, `SIM_MUTE=copy,or` leaves actions out.

use tests::sim::chance::mix;
use tests::sim::plain::Plain;
use tests::sim::runner;

/// Goal: files and the layers over them answer as arrays would, whatever the order of events, and keep over a crash what
/// they have promised. Method: see `tests::sim`.
#[test]
fn files() {
    let stats = runner::test("files", |seed| Plain { seed: mix(seed) }, 100);
    println!("{stats}");
}
