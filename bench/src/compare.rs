//! `bench compare`: targets side by side, in one run, alternating, so that the machine's noise cancels in
//! ratios, which are taken repeat by repeat.
//!
//! For each case and repeat, each target in turn: start to end of one measurement is a few seconds, so all see the
//! same machine. Targets stay up for the whole run, pinned on one CPU: a busy-polling one would steal from the
//! others, so the program under measurement runs alone and the others are stopped (SIGSTOP) meanwhile.

mod bars;
mod report;
pub mod target;

use crate::args::{CompareArgs, LoginArgs, Url, positive_seconds, seconds};
use crate::cases::{self, Case};
use crate::ceiling::server::Loop;
use crate::ceiling::{self, Setup, rate, unit};
use crate::failure::{Context, Failure};
use crate::load::pattern::Pattern;
use crate::load::report::all_latencies;
use crate::load::{self, Outcome, Peer, Workload};
use crate::pool::rows;
use crate::process::{self, Served};
use crate::{cpu, machine};
use report::{Cell, Said, to_json, to_table};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use std::process::ExitCode;
use std::time::Duration;
use target::{Target, What};

/// What runs in one column.
#[derive(Debug)]
enum Kind {
    /// The ceiling, started anew for each measurement.
    Raw,
    /// A target.
    Iscsi(Served),
}

#[derive(Debug)]
struct Contestant {
    name: String,
    kind: Kind,
}

/// The subcommand.
///
/// # Errors
/// A target doesn't start or a measurement fails; commands that end with an error only count. They, and a bar that is
/// missed, make the exit code tell.
pub fn run(args: &CompareArgs) -> Result<ExitCode, Failure> {
    let comparison = Comparison::new(args)?;
    target::check_names(&args.targets)?;
    let cases = cases::matching(&args.case);
    if cases.is_empty() {
        return Err(Failure::new(format!("no case's name has the words {:?}", args.case)));
    }
    let machine_before = machine::facts();
    let mut contestants = comparison.start(&args.targets)?;
    let mut measured: Vec<(Case, Vec<Cell>)> = Vec::new();
    for case in cases {
        let mut cells: Vec<Cell> = contestants.iter().map(|_| Cell::default()).collect();
        for repeat in 0..args.repeats.max(1) {
            for (contestant, cell) in contestants.iter_mut().zip(&mut cells) {
                let outcome = comparison
                    .measure(contestant, &case, cell)
                    .map_err(|failure| failure.at(format!("{}, {}", contestant.name, case.name())))?;
                eprintln!(
                    "{}, {}, repeat {}: {:.0} {}, {} errors",
                    case.name(),
                    contestant.name,
                    repeat + 1,
                    rate(&case, &outcome),
                    unit(&case),
                    outcome.tally.errors
                );
            }
        }
        measured.push((case, cells));
    }
    let names: Vec<&str> = contestants.iter().map(|contestant| contestant.name.as_str()).collect();
    let bars = bars::rows(args, &measured);
    let errors: u64 = measured.iter().flat_map(|(_, cells)| cells).map(|cell| cell.errors).sum();
    if args.timing.json {
        let value = json!({
            "compared": to_json(&names, &measured),
            "bars": rows::to_json(&bars),
            "range_bytes": args.range,
            "machine_before": machine_before,
            "machine": machine::facts(),
        });
        println!("{value:#}");
    } else {
        println!("{}", to_table(&names, &measured));
        if !bars.is_empty() {
            println!("{}", rows::to_table(&bars));
        }
        println!("{}", machine::sentence());
    }
    let good = errors == 0 && bars.iter().all(rows::Row::is_met);
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

struct Comparison<'a> {
    args: &'a CompareArgs,
    login: &'a LoginArgs,
    warmup: Duration,
    time: Duration,
    timeout: Duration,
}

impl<'a> Comparison<'a> {
    fn new(args: &'a CompareArgs) -> Result<Comparison<'a>, Failure> {
        Ok(Comparison {
            args,
            login: &args.login,
            warmup: seconds("--warmup", args.timing.warmup)?,
            time: positive_seconds("--time", args.timing.time)?,
            timeout: positive_seconds("--timeout", args.timing.timeout)?,
        })
    }

    /// Starts and fills all; each that this program started is stopped until its turn.
    fn start(&self, targets: &[Target]) -> Result<Vec<Contestant>, Failure> {
        let mut contestants = Vec::new();
        for target in targets {
            let at = |failure: Failure| failure.at(format!("target {}", target.name));
            let kind = match &target.what {
                What::Raw => Kind::Raw,
                What::Tgt => {
                    Kind::Iscsi(process::start_tgt(self.args.target_cpu, self.args.range).map_err(at)?)
                }
                What::Pollux(pollux) => {
                    Kind::Iscsi(process::start_pollux(&pollux.options(self.args)).map_err(at)?)
                }
                What::Running(url) => Kind::Iscsi(running(url)),
            };
            let mut contestant = Contestant { name: target.name.clone(), kind };
            let is_thin = matches!(&target.what, What::Pollux(pollux) if pollux.is_thin(self.args));
            self.fill(&mut contestant, is_thin).map_err(at)?;
            contestants.push(contestant);
        }
        Ok(contestants)
    }

    /// Writes the whole range once: memory that nobody wrote may be no memory at all. Of a thin unit of a pool in memory all
    /// is written before, in pieces of 64 KiB in random order, so that those of the range lie where they came to be among the
    /// others.
    fn fill(&self, contestant: &mut Contestant, is_thin: bool) -> Result<(), Failure> {
        let Kind::Iscsi(served) = &mut contestant.kind else {
            return Ok(());
        };
        if is_thin && let Some(error) = self.write_once(served, true)? {
            return Err(Failure::new(format!("filling the unit piece by piece: {error}")));
        }
        let error = self.write_once(served, false)?;
        stop_or_go(served, Signal::STOP)?;
        match error {
            None => Ok(()),
            Some(error) => Err(Failure::new(format!("filling the unit: {error}"))),
        }
    }

    /// Writes the range in order, or all of the unit piece by piece. The first error.
    fn write_once(&self, served: &mut Served, pieces: bool) -> Result<Option<String>, Failure> {
        let block_bytes = if pieces { 64 << 10 } else { 256 << 10 };
        let fill = Case { block_bytes, pattern: Pattern::Write, depth: 8, sessions: 1 };
        let door = self.login.door(served.portal, served.target.clone(), None, fill.block_bytes);
        process::wait_for_login(served, &door)?;
        let peer = Peer::Iscsi { door, lun: served.lun };
        let (all, moment) = (self.args.range, Duration::from_millis(10));
        let mut workload = Workload {
            precondition: true,
            shuffled: pieces,
            ..fill.workload(self.args.cpu, all, Duration::ZERO, moment, self.timeout)
        };
        if pieces {
            workload.range_bytes = None;
        }
        Ok(load::run(&peer, &workload)?.tally.first_errors.into_iter().next())
    }

    fn measure(&self, contestant: &mut Contestant, case: &Case, cell: &mut Cell) -> Result<Outcome, Failure> {
        let outcome = match &mut contestant.kind {
            Kind::Raw => self.measure_raw(case)?,
            Kind::Iscsi(served) => {
                stop_or_go(served, Signal::CONT)?;
                let outcome = self.measure_served(served, case, cell);
                stop_or_go(served, Signal::STOP)?;
                outcome?
            }
        };
        let latencies = all_latencies(&outcome);
        let us = |quantile: f64| latencies.value_at_quantile(quantile) as f64 / 1e3;
        let (p50_us, p99_us, p999_us) = (us(0.5), us(0.99), us(0.999));
        cell.said.push(Said { rate: rate(case, &outcome), p50_us, p99_us, p999_us });
        cell.errors += outcome.tally.errors;
        Ok(outcome)
    }

    /// Both server loops; the better one is the ceiling.
    fn measure_raw(&self, case: &Case) -> Result<Outcome, Failure> {
        let setup = Setup {
            server_cpu: self.args.target_cpu,
            cpu: self.args.cpu,
            memory_bytes: self.args.range,
            warmup: self.warmup,
            time: self.time,
            timeout: self.timeout,
        };
        let [nonblocking, epoll] = Loop::ALL.map(|how| ceiling::measure(&setup, case, how));
        let (nonblocking, epoll) = (nonblocking?, epoll?);
        Ok(if nonblocking.iops() >= epoll.iops() { nonblocking } else { epoll })
    }

    fn measure_served(&self, served: &Served, case: &Case, cell: &mut Cell) -> Result<Outcome, Failure> {
        let door = self.login.door(served.portal, served.target.clone(), None, case.block_bytes);
        let peer = Peer::Iscsi { door, lun: served.lun };
        let workload = case.workload(self.args.cpu, self.args.range, self.warmup, self.time, self.timeout);
        let pid = served.program.as_ref().map(process::Program::pid);
        let before = pid.map(cpu::time_of).transpose()?;
        let outcome = load::run(&peer, &workload)?;
        if let (Some(pid), Some(before)) = (pid, before) {
            let used = cpu::time_of(pid)?.saturating_sub(before);
            let loaded = self.warmup + self.time;
            cell.cpu_percent.push(used.as_secs_f64() / loaded.as_secs_f64() * 100.0);
        }
        Ok(outcome)
    }
}

/// A target that somebody else runs.
fn running(url: &Url) -> Served {
    Served { program: None, portal: url.portal, target: url.target.clone(), lun: url.lun, socket: None }
}

/// Pauses a program of ours, or lets it go on; one that somebody else runs is left alone.
pub(crate) fn stop_or_go(served: &Served, signal: Signal) -> Result<(), Failure> {
    let Some(program) = &served.program else {
        return Ok(());
    };
    match i32::try_from(program.pid()).ok().and_then(Pid::from_raw) {
        Some(pid) => kill_process(pid, signal).doing("pausing a target"),
        None => Err(Failure::new("a process id that is none")),
    }
}
