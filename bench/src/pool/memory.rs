//! A TiB mapped, in sequence and in random pieces: memory for its maps, what a snapshot of it costs, and how long
//! opening takes after a crash at the worst moment.

use super::rows::{Bar, Row};
use super::shuffle::Shuffle;
use super::world::{self, LATENCY, Pace, World};
use super::{made_of, mib, rows, scaled};
use crate::args::PoolArgs;
use crate::cases::median;
use crate::cpu;
use crate::failure::Failure;
use bdev::io::BdevId;
use bdev::pool::control::PoolCounts;
use std::time::Instant;

const CHUNK: u64 = 64 << 10;
const DEPTH: usize = 32;
/// Requests at once that fill the journal's blocks best.
const CHURN_DEPTH: usize = 128;
/// Pieces between two looks at how full it is.
const CHURN: u64 = 2048;
/// A little more than is mapped: what is free takes memory, too.
const POOL_BYTES: u64 = 1100 << 30;
/// Snapshots whose median counts.
const SNAPSHOTS: u64 = 21;
/// A checkpoint begins when 40 % of the journal is full; just short of that an opening has the most to replay.
const WORST_FULL: f64 = 0.38;

/// The case.
///
/// # Errors
/// The pool refuses or fails something.
pub(super) fn measure(args: &PoolArgs) -> Result<Vec<Row>, Failure> {
    let chunks = scaled(args, (1 << 40) / CHUNK);
    let mut measured = Vec::new();
    for (name, is_random, bar) in [("in sequence", false, 16.0), ("in random 64 KiB pieces", true, 400.0)] {
        let disk = World::create(POOL_BYTES)?;
        let mut world = World::open(&disk, Pace::Even)?;
        let bdev = world.volume("v", chunks * CHUNK, false)?;
        let shuffle = Shuffle::new(chunks, 3);
        let order = |nth| if is_random { shuffle.at(nth) } else { nth };
        let (before, then) = (world.info()?, cpu::thread_time());
        world.write(bdev, CHUNK, DEPTH, (0..chunks).map(|nth| order(nth) * CHUNK))?;
        let spent = cpu::thread_time().saturating_sub(then).as_secs_f64();
        let info = world.info()?;
        measured.push(Row {
            case: "memory".into(),
            what: format!("maps of {} GiB written {name}", (chunks * CHUNK) >> 30),
            value: mib(info.map_memory_bytes),
            unit: "MiB",
            bar: Bar::Most(if args.quick { bar / 10.0 } else { bar }),
            because: format!(
                "{} before; {} MiB on the medium; {} µs of CPU a write; {}",
                rows::digits(mib(before.map_memory_bytes)),
                rows::digits(mib(info.metadata_used_bytes)),
                rows::digits(spent * 1e6 / chunks as f64),
                made_of(&before.counts, &info.counts),
            ),
        });
        if is_random {
            let records = fill_journal(&mut world, bdev, shuffle, chunks)?;
            drop(world);
            let (row, opened) = open_again(&disk, records)?;
            measured.push(row);
            world = opened;
            world.attach("v")?;
        }
        measured.extend(snapshots(&mut world, bdev, name)?);
    }
    Ok(measured)
}

/// What taking a snapshot costs, with a write between two.
fn snapshots(world: &mut World, bdev: BdevId, name: &str) -> Result<[Row; 2], Failure> {
    let (mut spent, mut trips) = (Vec::new(), Vec::new());
    for nth in 0..SNAPSHOTS {
        world.write(bdev, CHUNK, 1, [nth << 20])?;
        let (then, asked) = (cpu::thread_time(), world.now());
        world.snapshot(format!("s{nth}"))?;
        spent.push(cpu::thread_time().saturating_sub(then).as_secs_f64() * 1e3);
        trips.push(((world.now() - asked) / LATENCY) as f64);
    }
    let most = |values: &[f64]| rows::digits(values.iter().copied().fold(0.0, f64::max));
    Ok([
        Row {
            case: "snapshots".into(),
            what: format!("CPU for one, mapped {name}"),
            value: median(&spent),
            unit: "ms",
            bar: Bar::Most(0.3),
            because: format!(
                "{} of them, at most {} ms; all turns of the core meanwhile",
                spent.len(),
                most(&spent)
            ),
        },
        Row {
            case: "snapshots".into(),
            what: format!("device round trips for one, mapped {name}"),
            value: median(&trips),
            unit: "",
            bar: Bar::Most(3.0),
            because: format!("at most {}", most(&trips)),
        },
    ])
}

/// Gives up and writes pieces anew until a checkpoint has just ended, and then until the next is about to begin. How many
/// records an opening has to replay, at the least.
fn fill_journal(world: &mut World, bdev: BdevId, shuffle: Shuffle, chunks: u64) -> Result<u64, Failure> {
    let journal = world::superblock(&world.disk)?.journal_bytes as f64;
    let mut nth = 0;
    let mut churn = |world: &mut World, count: u64| -> Result<PoolCounts, Failure> {
        let pieces: Vec<u64> = (nth..nth + count).map(|nth| shuffle.at(nth % chunks) * CHUNK).collect();
        nth += count;
        world.unmap(bdev, CHUNK, CHURN_DEPTH, pieces.iter().copied())?;
        world.write(bdev, CHUNK, CHURN_DEPTH, pieces)?;
        Ok(world.info()?.counts)
    };
    let first = churn(world, 64)?;
    let mut ended = first;
    while ended.checkpoints == first.checkpoints {
        ended = churn(world, CHURN)?;
    }
    loop {
        let now = churn(world, CHURN)?;
        if now.journal_write_bytes - ended.journal_write_bytes >= (journal * WORST_FULL) as u64
            || now.checkpoints != ended.checkpoints
        {
            return Ok(now.records - ended.records);
        }
    }
}

fn open_again(disk: &super::disk::Disk, records: u64) -> Result<(Row, World), Failure> {
    let (then, start) = (cpu::thread_time(), Instant::now());
    let mut world = World::open(disk, Pace::Even)?;
    let (spent, passed) =
        (cpu::thread_time().saturating_sub(then).as_secs_f64(), start.elapsed().as_secs_f64());
    let memory = world.info()?.map_memory_bytes;
    let row = Row {
        case: "memory".into(),
        what: "opening after a crash, written in random pieces".into(),
        value: spent,
        unit: "s",
        bar: Bar::Most(3.0),
        because: format!(
            "CPU; {} s by the clock; {records} records replayed; maps take {} MiB",
            rows::digits(passed),
            rows::digits(mib(memory)),
        ),
    };
    Ok((row, world))
}
