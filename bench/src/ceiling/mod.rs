//! `bench ceiling`: what sockets alone carry on this machine, by the same client loop as `bench load`.
//!
//! Two server loops, alternating, each case several times; the better median is the ceiling.

pub mod server;

use crate::args::{CeilingArgs, positive_seconds, seconds};
use crate::cases::{self, Case};
use crate::failure::Failure;
use crate::load::report::{all_latencies, us};
use crate::load::{self, Outcome, Peer};
use crate::machine;
use comfy_table::{Table, presets};
use serde_json::{Value, json};
use server::{Loop, RawServer};
use std::process::ExitCode;
use std::time::Duration;

/// Where and how long the raw sockets are measured.
#[derive(Debug, Clone, Copy)]
pub struct Setup {
    /// The server's CPU.
    pub server_cpu: usize,
    /// The generator's CPU.
    pub cpu: usize,
    /// The server's memory, in bytes.
    pub memory_bytes: u64,
    /// Before anything is counted.
    pub warmup: Duration,
    /// The measured window.
    pub time: Duration,
    /// A request that takes longer ends the run.
    pub timeout: Duration,
}

/// One measurement of `case` with one server loop.
///
/// # Errors
/// A CPU isn't there, a socket failed.
pub fn measure(setup: &Setup, case: &Case, how: Loop) -> Result<Outcome, Failure> {
    let server = RawServer::start(setup.server_cpu, setup.memory_bytes, how, case.sessions)?;
    let peer = Peer::Raw { address: server.address, bytes: setup.memory_bytes };
    let workload = case.workload(setup.cpu, setup.memory_bytes, setup.warmup, setup.time, setup.timeout);
    let outcome = load::run(&peer, &workload);
    let ended = server.finish();
    // The server's own error is the cause of the client's.
    ended?;
    outcome
}

/// One loop's results in one case.
#[derive(Debug)]
struct Measured {
    how: Loop,
    rates: Vec<f64>,
    p50_us: Vec<f64>,
    p99_us: Vec<f64>,
    p999_us: Vec<f64>,
}

impl Measured {
    fn new(how: Loop) -> Measured {
        Measured { how, rates: Vec::new(), p50_us: Vec::new(), p99_us: Vec::new(), p999_us: Vec::new() }
    }

    fn add(&mut self, case: &Case, outcome: &Outcome) {
        self.rates.push(rate(case, outcome));
        let latencies = all_latencies(outcome);
        self.p50_us.push(us(latencies.value_at_quantile(0.5)));
        self.p99_us.push(us(latencies.value_at_quantile(0.99)));
        self.p999_us.push(us(latencies.value_at_quantile(0.999)));
    }

    fn json(&self, case: &Case) -> Value {
        json!({
            "case": case.name(),
            "loop": self.how.name(),
            "unit": unit(case),
            "rates": self.rates,
            "median": cases::median(&self.rates),
            "spread_percent": cases::spread_percent(&self.rates),
            "p50_us": cases::median(&self.p50_us),
            "p99_us": cases::median(&self.p99_us),
            "p99.9_us": cases::median(&self.p999_us),
        })
    }
}

/// A case's figure: commands a second, for large ones 10^6 bytes a second.
pub fn rate(case: &Case, outcome: &Outcome) -> f64 {
    if case.is_large() { outcome.bytes_per_second() / 1e6 } else { outcome.iops() }
}

/// The unit of [`rate`].
pub fn unit(case: &Case) -> &'static str {
    if case.is_large() { "MB/s" } else { "IOPS" }
}

/// The subcommand.
///
/// # Errors
/// An option makes no sense, or a measurement failed.
pub fn run(args: &CeilingArgs) -> Result<ExitCode, Failure> {
    let setup = Setup {
        server_cpu: args.server_cpu,
        cpu: args.cpu,
        memory_bytes: args.memory,
        warmup: seconds("--warmup", args.timing.warmup)?,
        time: positive_seconds("--time", args.timing.time)?,
        timeout: positive_seconds("--timeout", args.timing.timeout)?,
    };
    let mut rows = Vec::new();
    for case in cases::matching(&args.case) {
        let mut loops = Loop::ALL.map(Measured::new);
        for repeat in 0..args.repeats.max(1) {
            for measured in &mut loops {
                let outcome = measure(&setup, &case, measured.how)
                    .map_err(|failure| failure.at(format!("{}, {}", case.name(), measured.how.name())))?;
                measured.add(&case, &outcome);
                eprintln!(
                    "{}, {}, repeat {}: {:.0} {}",
                    case.name(),
                    measured.how.name(),
                    repeat + 1,
                    rate(&case, &outcome),
                    unit(&case)
                );
            }
        }
        rows.push((case, loops));
    }
    if rows.is_empty() {
        return Err(Failure::new(format!("no case's name has the words {:?}", args.case)));
    }
    if args.timing.json {
        let measured: Vec<Value> =
            rows.iter().flat_map(|(case, loops)| loops.iter().map(|measured| measured.json(case))).collect();
        println!("{:#}", json!({ "ceiling": measured, "machine": machine::facts() }));
    } else {
        println!("{}\n{}", table(&rows), machine::sentence());
    }
    Ok(ExitCode::SUCCESS)
}

fn table(rows: &[(Case, [Measured; 2])]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    table.set_header([
        "case",
        "unit",
        "non-blocking",
        "epoll",
        "ceiling",
        "spread %",
        "p50 µs",
        "p99 µs",
        "p99.9 µs",
    ]);
    for (case, loops) in rows {
        let [first, second] = loops;
        let better = if cases::median(&first.rates) >= cases::median(&second.rates) { first } else { second };
        table.add_row([
            case.name(),
            unit(case).to_owned(),
            format!("{:.0}", cases::median(&first.rates)),
            format!("{:.0}", cases::median(&second.rates)),
            format!("{:.0}", cases::median(&better.rates)),
            format!("{:.1}", cases::spread_percent(&better.rates)),
            format!("{:.1}", cases::median(&better.p50_us)),
            format!("{:.1}", cases::median(&better.p99_us)),
            format!("{:.1}", cases::median(&better.p999_us)),
        ]);
    }
    table
}
