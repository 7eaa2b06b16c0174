//! Overwrites under many snapshots, and what a snapshot every so many writes makes the device write.

use super::rows::{Bar, Row};
use super::world::{Pace, World};
use super::{made_of, mib, rows, scaled};
use crate::args::PoolArgs;
use crate::cases::median;
use crate::cpu;
use crate::failure::Failure;
use crate::load::pattern::Random;
use bdev::io::BdevId;

const CHUNK: u64 = 64 << 10;
const BLOCK: u64 = 4096;
/// The volume that gets many snapshots.
const BYTES: u64 = 4 << 30;
/// Random writes between two of them.
const BETWEEN: u64 = 4;
/// Snapshots under writes, those before the figures count included.
const SNAPSHOTS: u64 = 200;
const WARMUP: u64 = 20;

/// The case.
///
/// # Errors
/// The pool refuses or fails something.
pub(super) fn measure(args: &PoolArgs) -> Result<Vec<Row>, Failure> {
    let mut measured = overwrites(args)?;
    measured.extend(under_writes(args)?);
    Ok(measured)
}

/// A volume with so many snapshots, all of it written since the last.
fn with_snapshots(snapshots: u64) -> Result<(World, BdevId), Failure> {
    let disk = World::create(2 << 40)?;
    let mut world = World::open(&disk, Pace::Even)?;
    let bdev = world.volume("v", BYTES, false)?;
    world.write(bdev, CHUNK, 32, (0..BYTES / CHUNK).map(|nth| nth * CHUNK))?;
    let mut random = Random::new(9);
    for nth in 0..snapshots {
        world.snapshot(format!("s{nth}"))?;
        world.write(bdev, BLOCK, 32, (0..BETWEEN).map(|_| random.below(BYTES / BLOCK) * BLOCK))?;
    }
    world.write(bdev, CHUNK, 32, (0..BYTES / CHUNK).map(|nth| nth * CHUNK))?;
    Ok((world, bdev))
}

/// By CPU time: the disk is the same for all.
fn overwrites(args: &PoolArgs) -> Result<Vec<Row>, Failure> {
    let writes = scaled(args, 1_000_000);
    let counts = [0, scaled(args, 1_000), scaled(args, 10_000)];
    let mut worlds = Vec::new();
    for count in counts {
        worlds.push(with_snapshots(count)?);
    }
    let mut rates = vec![Vec::new(); counts.len()];
    for round in 0..args.rounds.max(1) {
        for ((world, bdev), rates) in worlds.iter_mut().zip(&mut rates) {
            let mut random = Random::new(round as u64);
            let then = cpu::thread_time();
            world.write(*bdev, BLOCK, 32, (0..writes).map(|_| random.below(BYTES / BLOCK) * BLOCK))?;
            rates.push(writes as f64 / cpu::thread_time().saturating_sub(then).as_secs_f64());
        }
    }
    let base = median(&rates[0]);
    let mut measured = Vec::new();
    for ((count, rates), (world, _)) in counts.iter().zip(&rates).zip(&mut worlds).skip(1) {
        let info = world.info()?;
        measured.push(Row {
            case: "snapshots".into(),
            what: format!("overwrites with {count} snapshots against none"),
            value: median(rates) / base,
            unit: "",
            bar: Bar::Least(0.95),
            because: format!(
                "{} k against {} k a second of CPU, no disk; maps take {} MiB, and {} on the medium",
                rows::digits(median(rates) / 1e3),
                rows::digits(base / 1e3),
                rows::digits(mib(info.map_memory_bytes)),
                rows::digits(mib(info.metadata_used_bytes)),
            ),
        });
    }
    Ok(measured)
}

fn under_writes(args: &PoolArgs) -> Result<Vec<Row>, Failure> {
    let (bytes, writes) = (args.volume, scaled(args, args.writes));
    let disk = World::create(1 << 40)?;
    let mut world = World::open(&disk, Pace::Spread)?;
    let bdev = world.volume("v", bytes, false)?;
    world.write(bdev, CHUNK, 32, (0..bytes / CHUNK).map(|nth| nth * CHUNK))?;
    let mut random = Random::new(11);
    let mut start = None;
    for nth in 0..SNAPSHOTS {
        if nth == WARMUP {
            start = Some((world.info()?.counts, disk.traffic()));
        }
        world.snapshot(format!("s{nth}"))?;
        world.write(bdev, BLOCK, 32, (0..writes).map(|_| random.below(bytes / BLOCK) * BLOCK))?;
    }
    let (before, device) = start.unwrap_or_default();
    let (info, now) = (world.info()?, disk.traffic());
    let host = info.counts.host_write_bytes - before.host_write_bytes;
    Ok(vec![
        Row {
            case: "snapshots".into(),
            what: format!("device bytes a host byte, {SNAPSHOTS} snapshots, one every {writes} writes"),
            value: (now.write_bytes - device.write_bytes) as f64 / host as f64,
            unit: "",
            bar: Bar::Most(1.3),
            because: format!(
                "{}; maps take {} MiB, {} on the medium, for a volume of {} MiB",
                made_of(&before, &info.counts),
                rows::digits(mib(info.map_memory_bytes)),
                rows::digits(mib(info.metadata_used_bytes)),
                rows::digits(mib(bytes)),
            ),
        },
        Row {
            case: "snapshots".into(),
            what: "bytes read for that".into(),
            value: (now.read_bytes - device.read_bytes) as f64,
            unit: "",
            bar: Bar::Most(0.0),
            because: format!(
                "by the pool's own count {}",
                info.counts.data_read_bytes - before.data_read_bytes
            ),
        },
    ])
}
