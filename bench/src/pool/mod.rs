//! `bench pool`: the pool in this process, against the file below it and against the bars it was built for.
//!
//! What is a rate of a disk runs on a reactor ([`live`]); what counts bytes, memory and CPU time runs in a [`world`].

mod clone;
mod copy;
pub mod disk;
pub(crate) mod file;
pub mod live;
mod memory;
pub mod rows;
pub mod shuffle;
mod snapshots;
pub mod world;
mod zero;

use crate::args::{PoolArgs, PoolCase};
use crate::cpu;
use crate::failure::Failure;
use rows::Row;
use std::process::ExitCode;

/// The subcommand.
///
/// # Errors
/// The pool refuses or fails something.
pub fn run(args: &PoolArgs) -> Result<ExitCode, Failure> {
    let all = [
        PoolCase::File,
        PoolCase::Zero,
        PoolCase::Copy,
        PoolCase::Clone,
        PoolCase::Snapshots,
        PoolCase::Memory,
    ];
    let mut rows: Vec<Row> = Vec::new();
    for case in all.into_iter().filter(|case| args.cases.is_empty() || args.cases.contains(case)) {
        if case != PoolCase::File {
            cpu::pin(args.cpu)?;
        }
        let measured = match case {
            PoolCase::File => file::measure(args)?,
            PoolCase::Snapshots => snapshots::measure(args)?,
            PoolCase::Clone => clone::measure(args)?,
            PoolCase::Memory => memory::measure(args)?,
            PoolCase::Copy => copy::measure(args)?,
            PoolCase::Zero => zero::measure(args)?,
        };
        for row in &measured {
            let (value, unit) = (rows::digits(row.value), row.unit);
            eprintln!("{} {}: {value} {unit}; {}", row.case, row.what, row.because);
        }
        rows.extend(measured);
    }
    rows::print(&rows, args.json);
    Ok(ExitCode::SUCCESS)
}

/// `full`, or a tenth of it.
fn scaled(args: &PoolArgs, full: u64) -> u64 {
    if args.quick { full / 10 } else { full }
}

/// Bytes as MiB.
fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// What a pool did between two looks at its figures, in words.
fn made_of(before: &bdev::pool::control::PoolCounts, after: &bdev::pool::control::PoolCounts) -> String {
    let host = (after.host_write_bytes - before.host_write_bytes).max(1) as f64;
    let share = |now: u64, then: u64| rows::digits((now - then) as f64 / host);
    let commits = (after.commits - before.commits).max(1);
    format!(
        "data {}, journal {}, checkpoints {} a host byte; {} records a commit, {} redirected, {} in place, {} checkpoints",
        share(after.data_write_bytes, before.data_write_bytes),
        share(after.journal_write_bytes, before.journal_write_bytes),
        share(after.checkpoint_write_bytes, before.checkpoint_write_bytes),
        rows::digits((after.records - before.records) as f64 / commits as f64),
        after.writes_redirected - before.writes_redirected,
        after.writes_in_place - before.writes_in_place,
        after.checkpoints - before.checkpoints,
    )
}
