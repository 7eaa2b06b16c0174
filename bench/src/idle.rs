//! `bench idle`: what a target costs while nobody wants anything, alone and with many idle sessions.

use crate::args::{DEFAULT_INITIATOR, DEFAULT_TARGET, IdleArgs, positive_seconds};
use crate::failure::{Context, Failure};
use crate::load::link::Link;
use crate::load::login::{self, Door, Offer};
use crate::process::{self, PolluxOptions, Program};
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
    tell(args, &alone, &crowded, login_seconds);
    Ok(ExitCode::SUCCESS)
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

fn tell(args: &IdleArgs, alone: &State, crowded: &State, login_seconds: f64) {
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
        "{table}\nresident KiB a session: {:.1}; {} logins took {login_seconds:.2} s\n{}",
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
