//! ESXi, as a target meets it: an initiator that logs in, claims units and locks, formats, clones, zeroes and frees as
//! ESXi does, and the steps that `tests/esxi.rs` plays with it.
//!
//! Invariant: a step ends within its limit, and if it fails it says which step, the command's bytes, its status, its sense
//! and what ESXi would do with that.
//!
//! | step | commands | ends that are right |
//! |---|---|---|
//! | [`claim`]: discovery, login keys, the order of the claim, VAAI status | login, text, INQUIRY, REPORT LUNS, READ CAPACITY, MODE SENSE, A3h/0Ah, A3h/0Ch, 84h/03h | GOOD; once for each nexus and unit 6h/29h/00h |
//! | [`claim`]: the poller of SMART data, units that are not there | 85h, LOG SENSE, INQUIRY, TEST UNIT READY | 5h/20h/00h, 5h/24h/00h, qualifier 7Fh, 5h/25h/00h |
//! | [`claim`]: task management | ABORT TASK, LOGICAL UNIT RESET, NOP-Out | response 0; then once for each nexus 6h/29h/03h |
//! | [`mod@format`]: partition table, metadata, locks | READ, WRITE, COMPARE AND WRITE | GOOD with a residual of 0 |
//! | [`mod@format`]: the old way to lock | RESERVE(6), RELEASE(6) | GOOD, and RESERVATION CONFLICT for others |
//! | [`ats`]: heartbeats, a lock that all want, beside bulk | COMPARE AND WRITE | GOOD; Eh/1Dh/00h with the offset, nothing written |
//! | [`clone`]: images, live sources, between units, by many segments | EXTENDED COPY(LID1) | GOOD |
//! | [`clone`]: what can't be copied | EXTENDED COPY(LID1), then READ and WRITE | Ah/0Dh/02h, Ah/xx/xx, 5h/26h/08h, nothing written |
//! | [`space`]: eager zero | WRITE SAME(16) | GOOD |
//! | [`space`]: space comes back | UNMAP, GET LBA STATUS | GOOD |
//! | [`paths`]: a path is lost and comes back | WRITE, login with the same ISID | 6h/29h/07h or 6h/29h/00h, once |
//! | [`paths`]: the target is started again | login, REPORT LUNS, TEST UNIT READY | 6h/29h/00h, once; never 5h/25h/00h |

pub mod answer;
pub mod ats;
pub mod claim;
pub mod clone;
pub mod command;
pub mod format;
pub mod image;
pub mod paths;
pub mod sense;
pub mod session;
pub mod space;

use crate::target::{Pollux, Setup};
use command::Command;
use sense::{Code, GOOD};
use session::{Port, Session};
use std::net::SocketAddr;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

static STEP: Mutex<&str> = Mutex::new("none");

/// The step that is being played.
pub fn step_name() -> &'static str {
    *STEP.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Plays a step and says that it went well, with what it found worth telling. A step that hangs ends the program: nothing
/// else would bring its threads to an end.
pub fn step<T: Outcome>(name: &'static str, limit: Duration, play: impl FnOnce() -> T) -> T {
    *STEP.lock().unwrap_or_else(PoisonError::into_inner) = name;
    let (over, is_over) = channel::<()>();
    let watch = thread::spawn(move || {
        if is_over.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
            println!("FAILED {name}: not over after {limit:?}");
            std::process::exit(101);
        }
    });
    let began = Instant::now();
    let outcome = play();
    drop(over);
    watch.join().expect("the watch only waits");
    let took = began.elapsed().as_millis();
    let told = outcome.told();
    println!("ok  {name}{}{told} ({took} ms)", if told.is_empty() { "" } else { ": " });
    outcome
}

/// What a step hands on, and what is told of it.
pub trait Outcome {
    /// In a few words; may be nothing.
    fn told(&self) -> String;
}

impl Outcome for String {
    fn told(&self) -> String {
        self.clone()
    }
}

impl Outcome for () {
    fn told(&self) -> String {
        String::new()
    }
}

/// Something that the target does not offer, so that nothing can be said of it.
pub fn note(what: &str) {
    println!("--  {what}");
}

/// A unit, as it was claimed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit {
    /// Its number.
    pub lun: u8,
    /// Its NAA designator.
    pub naa: [u8; 16],
    /// Its serial number.
    pub serial: Vec<u8>,
    /// How many blocks it has.
    pub blocks: u64,
    /// LBPME.
    pub is_thin: bool,
}

/// Two thin volumes of 512 bytes a block in one pool.
pub const THIN: u8 = 0;
/// The other of them.
pub const THIN_TOO: u8 = 1;
/// A unit in memory.
pub const RAM: u8 = 2;
/// All.
pub const LUNS: [u8; 3] = [THIN, THIN_TOO, RAM];

/// The target, and what hosts know of it.
#[derive(Debug)]
pub struct Rig {
    /// The program.
    pub pollux: Pollux,
    /// Its units, once they are claimed.
    pub units: Vec<Unit>,
}

impl Rig {
    /// Starts the target with two portals.
    pub fn start() -> Rig {
        let luns = ["thin:1G,block=512,physical=4096", "thin:1G,block=512,physical=4096", "ram:256M"];
        let pollux = Pollux::start(Setup { portals: 2, ..Setup::with_luns(&luns) });
        Rig { pollux, units: Vec::new() }
    }

    /// A portal.
    pub fn portal(&self, number: usize) -> SocketAddr {
        self.pollux.addresses()[number].parse().expect("the harness knows its own addresses")
    }

    /// A unit's NAA designator.
    pub fn naa(&self, lun: u8) -> &[u8; 16] {
        &self.units[usize::from(lun)].naa
    }

    /// A host's session through a portal, that has heard what each unit has to say first.
    #[track_caller]
    pub fn host(&self, host: u16, portal: usize) -> Session {
        let port = Port::of_host(host, portal as u16);
        let mut session = Session::login(self.portal(portal), &port)
            .unwrap_or_else(|error| panic!("step `{}`: {} can't log in: {error}", step_name(), port.name));
        for lun in LUNS {
            hear_once(&mut session, lun, &[Code::POWER_ON, Code::NEXUS_LOSS]);
        }
        session
    }

    /// The pool's free chunks, in bytes.
    pub fn free_bytes(&self) -> u64 {
        let text = self.pollux.commands().run_well("pool list --json");
        let number = |key: &str| {
            let (_, rest) = text.split_once(&format!("\"{key}\":"))?;
            let digits: String = rest.trim_start().chars().take_while(char::is_ascii_digit).collect();
            digits.parse().ok()
        };
        number("free_chunk_bytes").unwrap_or_else(|| panic!("no free_chunk_bytes in {text}"))
    }
}

/// One of these unit attentions comes, once; then the unit is ready. Says which.
#[track_caller]
pub fn hear_once(session: &mut Session, lun: u8, codes: &[Code]) -> Code {
    let answer = session.run(Command::test_unit_ready(lun));
    let Some(code) = answer.code().filter(|code| codes.contains(code)) else {
        answer.fail(format!("a new session should hear one of {codes:?} first"));
    };
    let again = session.run(Command::test_unit_ready(lun));
    again.check(again.status == GOOD, "a unit attention is told once");
    code
}
