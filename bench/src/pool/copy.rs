//! Copies within a volume that move pointers, journal included: 64 GiB in steps of 4 MiB, 32 at once.

use super::rows::{Bar, Row};
use super::shuffle::Shuffle;
use super::world::{Pace, World};
use super::{rows, scaled};
use crate::args::PoolArgs;
use crate::cpu;
use crate::failure::Failure;

const CHUNK: u64 = 64 << 10;
const STEP: u64 = 4 << 20;
const DEPTH: usize = 32;

/// The case.
///
/// # Errors
/// The pool refuses or fails something.
pub(super) fn measure(args: &PoolArgs) -> Result<Vec<Row>, Failure> {
    let chunks = scaled(args, (64 << 30) / CHUNK).next_multiple_of(STEP / CHUNK);
    let mut measured = Vec::new();
    for (source, is_random, bar) in [("in sequence", false, 4e6), ("in random pieces", true, 1e6)] {
        let disk = World::create(1 << 40)?;
        let mut world = World::open(&disk, Pace::Even)?;
        let bdev = world.volume("v", 256 << 30, false)?;
        let shuffle = Shuffle::new(chunks, 3);
        let order = |nth| if is_random { shuffle.at(nth) } else { nth };
        world.write(bdev, CHUNK, DEPTH, (0..chunks).map(|nth| order(nth) * CHUNK))?;
        let (before, then) = (world.info()?.counts, cpu::thread_time());
        let steps = chunks * CHUNK / STEP;
        world.copy(bdev, STEP, DEPTH, (0..steps).map(|nth| (nth * STEP, (128 << 30) + nth * STEP)))?;
        let spent = cpu::thread_time().saturating_sub(then).as_secs_f64();
        let after = world.info()?.counts;
        let moved =
            after.data_read_bytes - before.data_read_bytes + after.data_write_bytes - before.data_write_bytes;
        let journal = (after.journal_write_bytes - before.journal_write_bytes) as f64 / chunks as f64;
        let checkpoints =
            (after.checkpoint_write_bytes - before.checkpoint_write_bytes) as f64 / chunks as f64;
        measured.push(Row {
            case: "copy".into(),
            what: format!("chunks a second of CPU, source written {source}"),
            value: chunks as f64 / spent,
            unit: "/s",
            bar: Bar::Least(bar),
            because: format!(
                "{chunks} chunks in {} s; {} journal and {} checkpoint bytes a chunk; data read or written: {moved}",
                rows::digits(spent),
                rows::digits(journal),
                rows::digits(checkpoints),
            ),
        });
    }
    Ok(measured)
}
