//! A thin volume of a pool on a file against a file alone, in turns on one reactor: what the pool costs.

use super::live::{self, Load, Order, Outcome, Step, Target};
use super::rows::{Bar, Row};
use super::world::{MAP_MEMORY_BYTES, spec};
use super::{made_of, rows, scaled};
use crate::args::{PoolArgs, positive_seconds};
use crate::cases::{median, spread_percent};
use crate::failure::{Context, Failure};
use crate::load::pattern::Random;
use bdev::base::open::FileMedium;
use bdev::io::{BdevId, Op};
use bdev::pool::control::{PoolCounts, Request};
use bdev::pool::{self, CreateOptions, FoldWhen, Medium, Member, OpenOptions};
use bdev::shard::{POOL_MARK, VOLUMES_FROM};
use bdev::stack::{self, BdevConfig, BdevKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

const BLOCK: u64 = 4096;
const CHUNK: u64 = 64 << 10;
/// What a pool has beside its volumes' data.
const SPARE_BYTES: u64 = 512 << 20;
/// What a durable write may take more than the disk needs for it.
const ALLOWANCE_US: f64 = 20.0;

/// Files that go with this value.
struct Files(Vec<PathBuf>);

impl Drop for Files {
    fn drop(&mut self) {
        for path in &self.0 {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// One comparison: the same load on both, or the other's own.
struct Pair {
    what: &'static str,
    base: Load,
    pool: Load,
    /// The volume is emptied before each round.
    fresh: bool,
}

/// The case.
///
/// # Errors
/// The files can't be made, the pool refuses or fails something.
pub(super) fn measure(args: &PoolArgs) -> Result<Vec<Row>, Failure> {
    let bytes = scaled(args, args.size).next_multiple_of(4 << 20);
    let pool_path = args
        .file
        .clone()
        .unwrap_or_else(|| std::env::temp_dir().join(format!("pollux-bench-{}.pool", std::process::id())));
    let base_path = PathBuf::from(format!("{}.base", pool_path.display()));
    for path in [&pool_path, &base_path] {
        if path.exists() {
            return Err(Failure::new(format!("{} is there already; name a file that isn't", path.display())));
        }
    }
    let _files = Files(vec![pool_path.clone(), base_path.clone()]);
    write_once(&base_path, bytes)?;
    write_once(&pool_path, 2 * bytes + SPARE_BYTES)?;
    let devices = stack::open(&[BdevConfig {
        kind: BdevKind::File { path: base_path, bytes: None },
        block_bytes: 512,
        physical_block_bytes: 4096,
        read_only: false,
        write_cache: false,
    }]);
    let mut devices = devices.doing("opening the bare file")?;
    let pool = open_pool(&pool_path, &mut devices, 1)?;
    let time = positive_seconds("--time", args.time)?.mul_f64(if args.quick { 0.1 } else { 1.0 });
    let pairs = pairs(bytes, time);
    let rounds = args.rounds.max(1);
    let mut steps = Vec::new();
    for name in ["mapped", "fresh"] {
        steps.push(Step::Ask(Request::VolumeCreate(spec(name, bytes, false))));
        steps.push(Step::Ask(Request::Attach { volume: name.into() }));
    }
    steps.push(Step::Load(Load {
        target: Target::Volume(0),
        op: Op::Write,
        bytes: CHUNK,
        range_bytes: bytes,
        order: Order::Sequence,
        depth: 32,
        time: Duration::from_secs(3600),
        seed: 0,
    }));
    let before = steps.len();
    for pair in &pairs {
        for round in 0..rounds as u64 {
            if pair.fresh {
                steps.push(Step::Unmap(pair.pool.target, bytes));
                steps.push(Step::Rest(Duration::from_millis(700)));
            }
            let mut sides = [
                Step::Load(Load { seed: round + 1, ..pair.base }),
                Step::Load(Load { seed: round + 1, ..pair.pool }),
            ];
            if round % 2 == 1 {
                sides.reverse();
            }
            steps.extend([Step::Info]);
            steps.extend(sides);
            steps.extend([Step::Info]);
        }
    }
    let outcomes = live::run(args.cpu, devices, pool, steps)?;
    let mut outcomes = outcomes.into_iter().skip(before);
    let mut measured = Vec::new();
    for pair in &pairs {
        let mut rates = [Vec::new(), Vec::new()];
        let mut latencies = [Vec::new(), Vec::new()];
        let mut infos: Vec<PoolCounts> = Vec::new();
        for round in 0..rounds {
            let mut side = round % 2;
            while infos.len() < 2 * (round + 1) {
                match outcomes.next() {
                    Some(Outcome::Info(info)) => infos.push(info.counts),
                    Some(Outcome::Load { ios, seconds, mean_us, .. }) => {
                        rates[side].push(ios as f64 / seconds);
                        latencies[side].push(mean_us);
                        side = 1 - side;
                    }
                    Some(Outcome::Done) => {}
                    None => return Err(Failure::new("the reactor did less than it was told")),
                }
            }
        }
        let last = infos.len() - 2;
        measured.push(row(pair, &rates, &latencies, &made_of(&infos[last], &infos[last + 1])));
    }
    Ok(measured)
}

fn pairs(bytes: u64, time: Duration) -> Vec<Pair> {
    let load = |target, op, order, depth| Load {
        target,
        op,
        bytes: BLOCK,
        range_bytes: bytes,
        order,
        depth,
        time,
        seed: 0,
    };
    let (mapped, fresh) = (Target::Volume(0), Target::Volume(1));
    let same = |what, op| Pair {
        what,
        base: load(Target::Base, op, Order::Random, 32),
        pool: load(mapped, op, Order::Random, 32),
        fresh: false,
    };
    let first = |what, depth| Pair {
        what,
        base: load(Target::Base, Op::Write, Order::Random, depth),
        pool: load(fresh, Op::Write, Order::Once, depth),
        fresh: true,
    };
    vec![
        same("reads, depth 32", Op::Read),
        same("overwrites, depth 32", Op::Write),
        first("first writes, depth 32", 32),
        first("first writes, depth 1", 1),
    ]
}

fn row(pair: &Pair, rates: &[Vec<f64>; 2], latencies: &[Vec<f64>; 2], made_of: &str) -> Row {
    let rate = |side: usize| median(&rates[side]);
    let rounds: Vec<f64> = rates[0].iter().zip(&rates[1]).map(|(base, pool)| pool / base).collect();
    let rated = format!(
        "{} against {} k/s, median of {} rounds, spread {} and {} %",
        rows::digits(rate(1) / 1e3),
        rows::digits(rate(0) / 1e3),
        rounds.len(),
        rows::digits(spread_percent(&rates[1])),
        rows::digits(spread_percent(&rates[0])),
    );
    if pair.base.depth == 1 {
        // The data, and then the record that says where they are.
        let needed: Vec<f64> =
            latencies[0].iter().zip(&latencies[1]).map(|(base, pool)| pool - 2.0 * base).collect();
        return Row {
            case: "file".into(),
            what: format!("{}: over two durable writes", pair.what),
            value: median(&needed),
            unit: "µs",
            bar: Bar::Most(ALLOWANCE_US),
            because: format!(
                "{} µs against {} µs for one, means; {rated}; {made_of}",
                rows::digits(median(&latencies[1])),
                rows::digits(median(&latencies[0])),
            ),
        };
    }
    Row {
        case: "file".into(),
        what: format!("{}, against the file alone", pair.what),
        value: median(&rounds),
        unit: "",
        bar: Bar::Least(if pair.fresh { 0.45 } else { 0.95 }),
        because: format!("{rated}; {made_of}"),
    }
}

/// A file of `bytes` that is not sparse: every block was written.
fn write_once(path: &Path, bytes: u64) -> Result<(), Failure> {
    let doing = || format!("writing {}", path.display());
    drop(std::fs::File::create_new(path).doing(doing())?);
    let medium = FileMedium::open(path, bytes, false).doing(doing())?;
    let mut random = Random::new(1);
    let mut piece = vec![0; 4 << 20];
    piece.chunks_exact_mut(8).for_each(|word| word.copy_from_slice(&random.draw().to_le_bytes()));
    let mut at = 0;
    while at < bytes {
        let now = (bytes - at).min(piece.len() as u64);
        medium.write(at, &piece[..now as usize]).doing(doing())?;
        at += now;
    }
    medium.sync().doing(doing())
}

/// A new pool on a file that is there, for so many cores.
///
/// # Errors
/// The file or the pool refuses.
pub(crate) fn open_pool(
    path: &Path,
    devices: &mut stack::Opened,
    cores: u16,
) -> Result<pool::Opened, Failure> {
    let backing = bdev::base::open::open(path, None, false).doing("opening the pool's file")?;
    let medium = FileMedium::open(path, backing.bytes, false).doing("opening the pool's file")?;
    let member = Member {
        path: path.display().to_string(),
        file: devices.add_file(backing.file),
        align_bytes: backing.align_bytes,
        // What was written once stays so: file systems are not what is measured.
        punch: false,
        medium: Arc::new(medium),
    };
    let options =
        CreateOptions { name: "bench".into(), uuid: [7; 16], journal_bytes: None, metadata_bytes: None };
    pool::create(std::slice::from_ref(&member), &options).doing("making the pool")?;
    let options = OpenOptions {
        cores,
        map_memory_max_bytes: MAP_MEMORY_BYTES,
        first_bdev: BdevId(VOLUMES_FROM),
        mark: POOL_MARK,
        window_clusters: bdev::pool::space::WINDOW_CLUSTERS,
        punch_after: None,
        in_memory: false,
        break_rule: None,
        folds: FoldWhen::Quiet,
        checkpoint_percent: pool::CHECKPOINT_PERCENT,
        names_max: pool::NAMES_MAX,
    };
    pool::open(vec![member], &options).doing("opening the pool")
}
