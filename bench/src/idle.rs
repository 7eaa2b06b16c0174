//! `bench idle`: what a target costs while nobody wants anything, alone and with many idle sessions; and what idle
//! sessions cost a busy one, by turns without and with them.

use crate::args::{DEFAULT_INITIATOR, DEFAULT_TARGET, IdleArgs, positive_seconds};
use crate::cases::{self, Quartiles};
use crate::failure::{Context, Failure};
use crate::load::link::Link;
use crate::load::login::{self, Door, Offer};
use crate::load::{self, Peer};
use crate::pool::rows::{self, Bar, Row};
use crate::process::{self, PolluxOptions, Program, Served};
use crate::{cpu, machine};
use comfy_table::{Table, presets};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

/// Between looks at the idle sessions for pings. A target that gets no answer would drop them.
const PING_PAUSE: Duration = Duration::from_millis(500);
/// After start and after the last login, before counting.
const SETTLE: Duration = Duration::from_secs(1);
/// Descriptors of this program and the target, besides one a session.
const FILES_BESIDES: u64 = 256;

/// The load that is measured beside idle sessions, for how long, and what it touches.
const LOAD: &str = "4k randread qd32";
const LOAD_TIME: Duration = Duration::from_millis(400);
const LOAD_WARMUP: Duration = Duration::from_millis(100);
const LOAD_BYTES: u64 = 64 << 20;

/// Bars: a resting target's CPU time, an idle session's memory, what a load reaches beside them.
const CPU_PERCENT_MOST: f64 = 1.0;
const SESSION_KIB_MOST: f64 = 256.0;
const LOAD_LEAST: f64 = 0.97;

/// One state of the target.
#[derive(Debug)]
struct State {
    sessions: usize,
    cpu_percent: f64,
    resident_bytes: u64,
    pings: usize,
}

/// The subcommand.
///
/// # Errors
/// The target doesn't start, refuses a session, or ends one.
pub fn run(args: &IdleArgs) -> Result<ExitCode, Failure> {
    let time = positive_seconds("--time", args.time)?;
    let timeout = positive_seconds("--timeout", args.timeout)?;
    allow_files(args.sessions as u64 + FILES_BESIDES)?;
    let mut served = process::start_pollux(&PolluxOptions {
        data: None,
        path: args.pollux.clone(),
        cpu: args.target_cpu,
        poll: args.poll.clone(),
        lun: args.pollux_lun.clone(),
        dir: None,
    })?;
    let door = door(served.portal);
    process::wait_for_login(&mut served, &door)?;
    let program = served.program.as_ref().ok_or_else(|| Failure::new("the target was just started"))?;
    let alone = watch(program, &mut [], time)?;
    let start = Instant::now();
    let mut links = Vec::with_capacity(args.sessions);
    for index in 0..args.sessions {
        let (link, _) = login::login(&door, index as u32, timeout)
            .map_err(|failure| failure.at(format!("session {} of {}", index + 1, args.sessions)))?;
        links.push(link);
    }
    let login_seconds = start.elapsed().as_secs_f64();
    let crowded = watch(program, &mut links, time)?;
    drop(links);
    let ratios = load_beside(args, &served, &door, timeout)?;
    let bars = bars(&alone, &crowded, &ratios);
    tell(args, &alone, &crowded, login_seconds, &bars);
    Ok(if bars.iter().all(Row::is_met) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What a load reaches beside the idle sessions, of what it reaches without, time after time.
fn load_beside(
    args: &IdleArgs,
    served: &Served,
    door: &Door,
    timeout: Duration,
) -> Result<Vec<f64>, Failure> {
    let case = cases::matching(LOAD).first().copied().ok_or_else(|| Failure::new("no such case"))?;
    let workload = case.workload(args.cpu, LOAD_BYTES, LOAD_WARMUP, LOAD_TIME, timeout);
    let measure = || {
        let peer = Peer::Iscsi { door: door.clone(), lun: served.lun };
        load::run(&peer, &workload).map(|outcome| outcome.iops())
    };
    let mut ratios = Vec::new();
    for _ in 0..args.repeats {
        let without = measure()?;
        let mut links = Vec::with_capacity(args.sessions);
        for index in 0..args.sessions {
            // The load is the session of this name that is numbered 0.
            links.push(login::login(door, index as u32 + 1, timeout)?.0);
        }
        let beside = measure()?;
        if without > 0.0 {
            ratios.push(beside / without);
        }
    }
    Ok(ratios)
}

fn bars(alone: &State, crowded: &State, ratios: &[f64]) -> Vec<Row> {
    let row = |what: String, value, unit, bar, because| Row {
        case: "idle".into(),
        what,
        value,
        unit,
        bar,
        because,
    };
    let grown = crowded.resident_bytes.saturating_sub(alone.resident_bytes) as f64 / 1024.0;
    let each = grown / crowded.sessions.max(1) as f64;
    let mut rows: Vec<Row> = [alone, crowded]
        .map(|state| {
            let what = format!("CPU time with {} idle sessions", state.sessions);
            let because = format!("{} pings answered", state.pings);
            row(what, state.cpu_percent, "%", Bar::Most(CPU_PERCENT_MOST), because)
        })
        .into();
    let because = format!("{grown:.0} KiB for {}", crowded.sessions);
    rows.push(row("memory of one".into(), each, "KiB", Bar::Most(SESSION_KIB_MOST), because));
    if let Some(Quartiles { first, median, third }) = cases::quartiles(ratios) {
        let what = format!("{LOAD} beside {} idle sessions, against none", crowded.sessions);
        let because = format!("{} pairs, quartiles {first:.2} and {third:.2}", ratios.len());
        rows.push(row(what, median, "", Bar::Least(LOAD_LEAST), because));
    }
    rows
}

/// Lets the target rest for `time`, answering its pings, and says what it used.
fn watch(program: &Program, links: &mut [Link], time: Duration) -> Result<State, Failure> {
    thread::sleep(SETTLE);
    let pid = program.pid();
    let before = cpu::time_of(pid)?;
    let start = Instant::now();
    let mut pings = 0;
    while start.elapsed() < time {
        thread::sleep(PING_PAUSE.min(time.saturating_sub(start.elapsed())));
        for (index, link) in links.iter_mut().enumerate() {
            pings +=
                link.answer_pings().map_err(|failure| failure.at(format!("idle session {}", index + 1)))?;
        }
    }
    let used = cpu::time_of(pid)?.saturating_sub(before);
    Ok(State {
        sessions: links.len(),
        cpu_percent: used.as_secs_f64() / start.elapsed().as_secs_f64() * 100.0,
        resident_bytes: cpu::resident_bytes_of(pid)?,
        pings,
    })
}

fn tell(args: &IdleArgs, alone: &State, crowded: &State, login_seconds: f64, bars: &[Row]) {
    let grown = crowded.resident_bytes.saturating_sub(alone.resident_bytes);
    let each = grown / (crowded.sessions.max(1) as u64);
    if args.json {
        let state = |state: &State| {
            json!({
                "sessions": state.sessions,
                "cpu_percent": state.cpu_percent,
                "resident_bytes": state.resident_bytes,
                "pings_answered": state.pings,
            })
        };
        let value = json!({
            "poll": args.poll,
            "seconds": args.time,
            "states": [state(alone), state(crowded)],
            "resident_bytes_per_session": each,
            "login_seconds": login_seconds,
            "bars": rows::to_json(bars),
            "machine": machine::facts(),
        });
        println!("{value:#}");
        return;
    }
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    table.set_header(["idle sessions", "CPU %", "resident KiB", "pings answered"]);
    for state in [alone, crowded] {
        table.add_row([
            state.sessions.to_string(),
            format!("{:.2}", state.cpu_percent),
            (state.resident_bytes / 1024).to_string(),
            state.pings.to_string(),
        ]);
    }
    println!(
        "{table}\n{}\nresident KiB a session: {:.1}; {} logins took {login_seconds:.2} s\n{}",
        rows::to_table(bars),
        each as f64 / 1024.0,
        crowded.sessions,
        machine::sentence()
    );
}

pub(crate) fn door(portal: SocketAddr) -> Door {
    Door {
        portal,
        target: DEFAULT_TARGET.into(),
        initiator: DEFAULT_INITIATOR.into(),
        chap: None,
        offer: Offer {
            header_digest: false,
            data_digest: false,
            immediate_data: true,
            initial_r2t: false,
            first_burst: 8192,
            max_burst: 1 << 20,
            max_receive: 65_536,
        },
    }
}

/// Raises the limit of open files to `files`, as far as the hard limit; the target inherits it.
fn allow_files(files: u64) -> Result<(), Failure> {
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= files) {
        return Ok(());
    }
    if limit.maximum.is_some_and(|maximum| maximum < files) {
        return Err(Failure::new(format!(
            "{files} open files are needed and the hard limit is {:?}: raise it (ulimit -Hn) or take fewer --sessions",
            limit.maximum
        )));
    }
    setrlimit(Resource::Nofile, Rlimit { current: Some(files), maximum: limit.maximum })
        .doing("raising the limit of open files")
}
