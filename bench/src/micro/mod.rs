//! `bench micro`: the hot parts of the target by themselves, each in time an operation.
//!
//! They say what a part costs when nothing else is in its way: its code and data are in the cache, where an IO finds
//! them only in part. What a target makes of them is `load`'s and `compare`'s to say.

mod codec;
mod commit;
pub(crate) mod mailbox;
mod map;
pub mod round;
pub mod rows;
mod zero;

use crate::args::{MicroArgs, MicroCase, positive_seconds};
use crate::cpu;
use crate::failure::Failure;
use clap::ValueEnum;
use round::Plan;
use rows::Row;
use std::process::ExitCode;

/// The subcommand.
///
/// # Errors
/// A CPU, a file or the reactors can't be had.
pub fn run(args: &MicroArgs) -> Result<ExitCode, Failure> {
    let plan = Plan { rounds: args.rounds as usize, time: positive_seconds("--time", args.time)? };
    let mut rows: Vec<Row> = Vec::new();
    for &case in MicroCase::value_variants() {
        if !args.cases.is_empty() && !args.cases.contains(&case) {
            continue;
        }
        let measured = measure(case, args, plan)?;
        for row in &measured {
            eprintln!("{}; {}", row.sentence(), row.because);
        }
        rows.extend(measured);
    }
    rows::print(&rows, args.json);
    Ok(ExitCode::SUCCESS)
}

fn measure(case: MicroCase, args: &MicroArgs, plan: Plan) -> Result<Vec<Row>, Failure> {
    match case {
        MicroCase::Codec => pinned(args.cpu, || codec::measure(plan)),
        MicroCase::Map => pinned(args.cpu, || map::measure(plan, args.volume)),
        MicroCase::Mailbox => mailbox::measure(plan, args.cpu, args.peer_cpu),
        MicroCase::Zero => pinned(args.cpu, || zero::measure(plan)),
        MicroCase::Commit => {
            let dir = args.dir.clone().unwrap_or_else(std::env::temp_dir);
            pinned(args.cpu, || commit::measure(plan, &dir))
        }
    }
}

/// Measures on a thread of its own that is tied to `cpu`: tied itself, the caller could start no reactor elsewhere.
fn pinned(
    cpu: usize,
    measure: impl FnOnce() -> Result<Vec<Row>, Failure> + Send,
) -> Result<Vec<Row>, Failure> {
    let pin_and_measure = || {
        cpu::pin(cpu)?;
        measure()
    };
    std::thread::scope(|scope| scope.spawn(pin_and_measure).join())
        .unwrap_or_else(|_| Err(Failure::new("a measurement ended early")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Cli, Command};
    use clap::Parser;
    use std::time::Duration;

    fn parse(line: &[&str]) -> MicroArgs {
        match Cli::try_parse_from([&["bench", "micro"], line].concat()).unwrap().command {
            Command::Micro(args) => args,
            _ => unreachable!("micro was asked for"),
        }
    }

    /// Goal: each case runs and all its rows have all their rounds, none of them without time. Method: tiny rounds, a
    /// tiny volume.
    #[test]
    fn each_case_runs() {
        let cpu = reactor::pin::allowed_cpus().unwrap()[0].to_string();
        let args = parse(&["--cpu", &cpu, "--volume", "8M"]);
        let plan = Plan { rounds: 2, time: Duration::from_millis(1) };
        for (case, count) in [
            (MicroCase::Codec, 5),
            (MicroCase::Map, 2),
            (MicroCase::Mailbox, 1),
            (MicroCase::Zero, 6),
            (MicroCase::Commit, 3),
        ] {
            let rows = measure(case, &args, plan).unwrap();
            assert_eq!(rows.len(), count, "{case:?}");
            for row in &rows {
                assert_eq!(row.rounds_ns.len(), 2, "{row:?}");
                assert!(row.rounds_ns.iter().all(|&ns| ns > 0.0), "{row:?}");
            }
        }
        assert_eq!(MicroCase::value_variants().len(), 5);
    }

    /// Goal: a CPU or a directory that isn't there is told, not met with a panic.
    #[test]
    fn what_is_not_there_is_told() {
        let plan = Plan { rounds: 1, time: Duration::from_millis(1) };
        assert!(measure(MicroCase::Codec, &parse(&["--cpu", "1000"]), plan).is_err());
        assert!(measure(MicroCase::Mailbox, &parse(&["--peer-cpu", "1000"]), plan).is_err());
        let cpu = reactor::pin::allowed_cpus().unwrap()[0].to_string();
        let nowhere = parse(&["--cpu", &cpu, "--dir", "/there/is/no/such/directory"]);
        assert!(measure(MicroCase::Commit, &nowhere, plan).is_err());
    }
}
