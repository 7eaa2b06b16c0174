//! `bench disk`: a LUN on a file, beside what fio reaches on the same file of this machine without any target.
//!
//! fio runs on the target's CPU with io_uring and O_DIRECT, its writes durable (O_DSYNC) as the LUN's are; meanwhile a thread spins on the
//! generator's CPU, so that both see a machine of which one CPU never sleeps. They take turns, the target being stopped (SIGSTOP), and
//! figures are ratios of pairs.

use crate::args::{DEFAULT_INITIATOR, DiskArgs, positive_seconds};
use crate::cases::{Case, quartiles};
use crate::compare::stop_or_go;
use crate::failure::{Context, Failure};
use crate::fio::{OFFER, Said, parse};
use crate::load::login::Door;
use crate::load::pattern::Pattern;
use crate::load::report::all_latencies;
use crate::load::{self, Peer, Workload};
use crate::pool::rows::{self, Bar, Row};
use crate::process::{self, PolluxOptions, Scratch, Served};
use crate::{cpu, machine};
use rustix::process::Signal;
use serde_json::json;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// The bars: reads and writes, at this depth.
const BAR_DEPTH: usize = 32;
const BARS: [f64; 2] = [0.90, 0.85];

/// Before each measurement.
const WARMUP: Duration = Duration::from_millis(200);

const TIMEOUT: Duration = Duration::from_secs(10);

/// The subcommand.
///
/// # Errors
/// There is no fio, the file can't be written, the target doesn't start, an IO failed.
pub fn run(args: &DiskArgs) -> Result<ExitCode, Failure> {
    let time = positive_seconds("--time", args.time)?;
    let dir = args.dir.clone().unwrap_or_else(std::env::temp_dir);
    let scratch = Scratch::new(&dir)?;
    let file = scratch.path().join("lun");
    fill(&file, args.size)?;
    let mut served = process::start_pollux(&PolluxOptions {
        path: args.pollux.clone(),
        cpu: args.target_cpu,
        poll: args.pollux_poll.clone(),
        lun: format!("file:{}", file.display()),
        data: None,
        dir: None,
    })?;
    let door = Door {
        portal: served.portal,
        target: served.target.clone(),
        initiator: DEFAULT_INITIATOR.to_owned(),
        chap: None,
        offer: OFFER,
    };
    process::wait_for_login(&mut served, &door)?;
    stop_or_go(&served, Signal::STOP)?;
    let peer = Peer::Iscsi { door, lun: served.lun };
    let (mut rows, mut all) = (Vec::new(), Vec::new());
    for &depth in &args.qd {
        for (pattern, bar) in [Pattern::Randread, Pattern::Randwrite].into_iter().zip(BARS) {
            let case = Case { block_bytes: 4096, pattern, depth, sessions: 1 };
            let mut pairs = Vec::new();
            for _ in 0..args.repeats.max(1) {
                let local = local(args, &file, &case, time)?;
                let (rate, p50_us, p99_us) = remote(args, &served, &peer, &case, time)?;
                eprintln!(
                    "{}: {rate:.0} IOPS, p50 {p50_us:.0} µs; fio {:.0}, {:.0} µs",
                    case.name(),
                    local.iops,
                    local.p50_us
                );
                pairs.push((rate, p50_us, p99_us, local));
            }
            rows.extend(row(&case, bar, &pairs));
            all.push(json!({
                "case": case.name(),
                "iops": pairs.iter().map(|pair| pair.0).collect::<Vec<_>>(),
                "p50_us": pairs.iter().map(|pair| pair.1).collect::<Vec<_>>(),
                "p99_us": pairs.iter().map(|pair| pair.2).collect::<Vec<_>>(),
                "fio_iops": pairs.iter().map(|pair| pair.3.iops).collect::<Vec<_>>(),
                "fio_p50_us": pairs.iter().map(|pair| pair.3.p50_us).collect::<Vec<_>>(),
                "fio_p99_us": pairs.iter().map(|pair| pair.3.p99_us).collect::<Vec<_>>(),
            }));
        }
    }
    if args.json {
        println!("{:#}", json!({ "disk": all, "bars": rows::to_json(&rows), "machine": machine::facts() }));
    } else {
        rows::print(&rows, false);
    }
    Ok(if rows.iter().all(Row::is_met) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The ratio of the pairs, and what each came to.
fn row(case: &Case, bar: f64, pairs: &[(f64, f64, f64, Said)]) -> Option<Row> {
    let of =
        |value: fn(&(f64, f64, f64, Said)) -> f64| quartiles(&pairs.iter().map(value).collect::<Vec<_>>());
    let ratio = of(|pair| if pair.3.iops > 0.0 { pair.0 / pair.3.iops } else { 0.0 })?;
    let middle = |value| of(value).map_or(0.0, |quartiles| quartiles.median);
    let because = format!(
        "{:.2} to {:.2}; {:.0} k/s, p50 {:.0}, p99 {:.0} µs; fio {:.0} k/s, {:.0}, {:.0} µs",
        ratio.first,
        ratio.third,
        middle(|pair| pair.0) / 1e3,
        middle(|pair| pair.1),
        middle(|pair| pair.2),
        middle(|pair| pair.3.iops) / 1e3,
        middle(|pair| pair.3.p50_us),
        middle(|pair| pair.3.p99_us),
    );
    Some(Row {
        case: case.name().into(),
        what: "IOPS ÷ fio's on the same file".into(),
        value: ratio.median,
        unit: "",
        // At other depths there is no bar to miss.
        bar: Bar::Least(if case.depth == BAR_DEPTH { bar } else { 0.0 }),
        because,
    })
}

/// A file that has all its blocks, so that no write has to find any.
fn fill(path: &Path, bytes: u64) -> Result<(), Failure> {
    let at = || format!("writing {}", path.display());
    let mut file = File::create(path).doing(at())?;
    let some = vec![0x5a; 1 << 20];
    let mut left = bytes;
    while left > 0 {
        let part = left.min(some.len() as u64);
        file.write_all(&some[..part as usize]).doing(at())?;
        left -= part;
    }
    file.sync_all().doing(at())?;
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).doing(at())
}

/// fio on the file, beside a thread that spins.
fn local(args: &DiskArgs, file: &Path, case: &Case, time: Duration) -> Result<Said, Failure> {
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let spinner = scope.spawn(|| {
            let pinned = cpu::pin(args.cpu);
            while pinned.is_ok() && !ended.load(Ordering::Relaxed) {
                std::hint::spin_loop();
            }
            pinned
        });
        let said = fio(args, file, case, time);
        ended.store(true, Ordering::Relaxed);
        match spinner.join() {
            Ok(pinned) => pinned.and(said),
            Err(_) => Err(Failure::new("the thread that spins has died")),
        }
    })
}

fn fio(args: &DiskArgs, file: &Path, case: &Case, time: Duration) -> Result<Said, Failure> {
    let mut command = Command::new(&args.fio);
    command
        .args(["--name=local", "--ioengine=io_uring", "--direct=1", "--bs=4k", "--time_based"])
        .args(["--output-format=json", &format!("--rw={}", case.pattern.name())])
        .arg(format!("--filename={}", file.display().to_string().replace(':', "\\:")))
        .arg(format!("--size={}", args.size))
        .arg(format!("--iodepth={}", case.depth))
        .arg(format!("--ramp_time={}us", WARMUP.as_micros()))
        .arg(format!("--runtime={}us", time.as_micros()))
        .arg(format!("--cpus_allowed={}", args.target_cpu));
    if case.pattern == Pattern::Randwrite {
        command.arg("--sync=dsync");
    }
    let output = command
        .stdin(Stdio::null())
        .output()
        .doing(format!("running {} (--fio names another)", args.fio.display()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let last = said.lines().rfind(|line| !line.trim().is_empty());
        return Err(Failure::new(format!("fio: {}", last.unwrap_or("it failed without a word"))));
    }
    parse(&String::from_utf8_lossy(&output.stdout))
}

/// The LUN: commands a second, p50 and p99.
fn remote(
    args: &DiskArgs,
    served: &Served,
    peer: &Peer,
    case: &Case,
    time: Duration,
) -> Result<(f64, f64, f64), Failure> {
    stop_or_go(served, Signal::CONT)?;
    let workload: Workload = case.workload(args.cpu, args.size, WARMUP, time, TIMEOUT);
    let outcome = load::run(peer, &workload);
    stop_or_go(served, Signal::STOP)?;
    let outcome = outcome?;
    if let Some(error) = outcome.tally.first_errors.first() {
        return Err(Failure::new(format!("{}: {error}", case.name())));
    }
    let latencies = all_latencies(&outcome);
    let us = |quantile: f64| latencies.value_at_quantile(quantile) as f64 / 1e3;
    Ok((outcome.iops(), us(0.5), us(0.99)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: figures are those of pairs, held to the bar of their depth and kind. Method: three pairs of a machine that slows down.
    #[test]
    fn ratios_are_of_pairs() {
        let said = |iops| Said {
            iops,
            megabytes: 0.0,
            p50_us: 300.0,
            p99_us: 400.0,
            p999_us: 0.0,
            cpu_percent: 0.0,
        };
        let pairs =
            [(91.0, 1.0, 2.0, said(100.0)), (44.0, 1.0, 2.0, said(50.0)), (18.4, 1.0, 2.0, said(20.0))];
        let case = |depth| Case { block_bytes: 4096, pattern: Pattern::Randread, depth, sessions: 1 };
        let at_bar = row(&case(BAR_DEPTH), BARS[0], &pairs).unwrap();
        assert!((at_bar.value - 0.91).abs() < 1e-9 && at_bar.is_met());
        assert!(!row(&case(BAR_DEPTH), 0.92, &pairs).unwrap().is_met());
        assert!(row(&case(1), 0.92, &pairs).unwrap().is_met(), "no bar there");
        assert!(row(&case(1), 0.92, &[]).is_none());
    }
}
