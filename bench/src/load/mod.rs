//! `bench load`: keeps a target's queues full, or sends at a fixed rate, and measures what comes back.
//!
//! `run` logs in, starts one pinned [`worker`] a CPU, waits for all and adds up. The raw ceiling and the
//! comparisons call it too, so that every figure comes from the same loop.

pub mod inbox;
pub mod ledger;
pub mod link;
pub mod login;
pub mod outbox;
pub mod pace;
pub mod pattern;
pub mod report;
pub mod session;
pub mod verify;
pub mod wire;
pub mod worker;

use crate::failure::{Context, Failure};
use ledger::{Ledger, Tally};
use link::Link;
use login::{Door, Terms};
use pace::{Deal, Rate};
use pattern::{Pattern, Picker};
use reactor::clock::Time;
use session::{DEPTH_MAX, Serials, Session, Task};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Barrier, OnceLock};
use std::thread;
use std::time::Duration;
use verify::Verifier;
use worker::{Schedule, Worker};

/// Unit attentions and starting-up answers that are let pass before a run.
const READY_TRIES_MAX: usize = 50;
const READY_PAUSE: Duration = Duration::from_millis(100);
/// The part of the asked rate below which a run is called saturated.
pub const REACHED_MIN: f64 = 0.99;

/// Whom to load.
#[derive(Debug, Clone)]
pub enum Peer {
    /// An iSCSI target's logical unit.
    Iscsi {
        /// Where and how to log in.
        door: Door,
        /// Which unit.
        lun: u16,
    },
    /// The raw ceiling's server: no login, data always with the command.
    Raw {
        /// Where it listens.
        address: SocketAddr,
        /// Its memory, in bytes.
        bytes: u64,
    },
}

/// What to do to it.
#[derive(Debug, Clone)]
pub struct Workload {
    /// Bytes of one command.
    pub block_bytes: u32,
    /// Where and which way.
    pub pattern: Pattern,
    /// Percent of reads in `Randrw`.
    pub mix: u8,
    /// Commands under way in each session.
    pub depth: usize,
    /// Sessions, dealt to the CPUs in turn.
    pub sessions: usize,
    /// Commands a second over all sessions, at fixed times: an open loop. Without it commands start as others end.
    pub rate: Option<Rate>,
    /// Before anything is counted.
    pub warmup: Duration,
    /// The measured window.
    pub time: Duration,
    /// A command that takes longer ends the run.
    pub timeout: Duration,
    /// Bytes of the unit to use, from its start; all if absent.
    pub range_bytes: Option<u64>,
    /// Check what is read against what was written.
    pub verify: bool,
    /// Write the whole range once first.
    pub precondition: bool,
    /// In an order that looks random.
    pub shuffled: bool,
    /// Of the sequence of blocks.
    pub seed: u64,
    /// One thread each.
    pub cpus: Vec<usize>,
}

/// What came of it.
#[derive(Debug)]
pub struct Outcome {
    /// All threads' results.
    pub tally: Tally,
    /// What was agreed at login; of the first session.
    pub terms: Terms,
    /// The unit's size, in bytes.
    pub capacity_bytes: u64,
    /// The unit's block, in bytes.
    pub logical_block_bytes: u32,
    /// Bytes that were used.
    pub range_bytes: u64,
    /// The measured window.
    pub time: Duration,
    /// What was asked for, in an open loop.
    pub rate: Option<Rate>,
}

impl Outcome {
    /// Commands that ended GOOD in the window, a second.
    pub fn iops(&self) -> f64 {
        (self.tally.reads.ios + self.tally.writes.ios) as f64 / self.time.as_secs_f64()
    }

    /// Commands that ended in the window, a second; those with an error, too, for they kept up with the schedule.
    pub fn reached(&self) -> f64 {
        self.tally.ended as f64 / self.time.as_secs_f64()
    }

    /// Whether the rate that was asked for was too much: less than [`REACHED_MIN`] of it was reached, or commands were
    /// left over that couldn't be sent even after the window. Never in a closed loop.
    pub fn is_saturated(&self) -> bool {
        let Some(rate) = self.rate else {
            return false;
        };
        let asked = rate.per_second() as f64 * self.time.as_secs_f64();
        // One command may fall out at the window's edges: that is the grid, not the target.
        let is_short = self.tally.ended as f64 + 1.0 < asked * REACHED_MIN;
        is_short || self.tally.lateness.unsent > 0
    }

    /// Their data, in bytes a second.
    pub fn bytes_per_second(&self) -> f64 {
        (self.tally.reads.bytes + self.tally.writes.bytes) as f64 / self.time.as_secs_f64()
    }
}

/// A logical unit's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Capacity {
    blocks: u64,
    block_bytes: u32,
}

/// Runs `workload` against `peer`.
///
/// # Errors
/// The workload doesn't fit the unit, login fails, a session ends early, a command takes too long. Commands that
/// end with an error are no failure of the run: see [`Tally::errors`].
pub fn run(peer: &Peer, workload: &Workload) -> Result<Outcome, Failure> {
    workload.check()?;
    let mut connected = Vec::new();
    for index in 0..workload.sessions {
        connected.push(connect(peer, index, workload.timeout)?);
    }
    let (_, terms, _, capacity) = connected[0];
    let blocks = workload.blocks(capacity)?;
    let task = Task {
        lun: if let Peer::Iscsi { lun, .. } = peer { *lun } else { 0 },
        block_bytes: workload.block_bytes,
        logical_block_bytes: capacity.block_bytes,
        depth: workload.depth,
        keeps_data: workload.verify,
        writes: workload.precondition || workload.pattern.read_percent(workload.mix) < 100,
    };
    let mut dealt: Vec<Vec<Session>> = workload.cpus.iter().map(|_| Vec::new()).collect();
    for (index, (socket, terms, serials, _)) in connected.into_iter().enumerate() {
        let sessions = &mut dealt[index % workload.cpus.len()];
        sessions.push(Session::new(sessions.len(), socket, terms, serials, task));
    }
    let workers: Vec<Worker> = dealt
        .into_iter()
        .enumerate()
        .map(|(thread, sessions)| workload.worker(thread, sessions, blocks))
        .collect();
    let mut tally = Tally::new();
    for outcome in run_threads(workers, &workload.cpus) {
        let (sessions, theirs) = outcome?;
        tally.add(&theirs);
        if matches!(peer, Peer::Iscsi { .. }) {
            for session in sessions {
                session.into_link(workload.timeout)?.logout().map_err(|failure| failure.at("logging out"))?;
            }
        }
    }
    Ok(Outcome {
        tally,
        terms,
        capacity_bytes: capacity.blocks * u64::from(capacity.block_bytes),
        logical_block_bytes: capacity.block_bytes,
        range_bytes: blocks * u64::from(workload.block_bytes),
        time: workload.time,
        rate: workload.rate,
    })
}

type Threaded = Result<(Vec<Session>, Tally), Failure>;

/// One pinned thread a worker; all measure from the same moment on.
fn run_threads(workers: Vec<Worker>, cpus: &[usize]) -> Vec<Threaded> {
    let ready = Barrier::new(workers.len());
    let ready = &ready;
    // One start for all: the schedule of an open loop is staggered over threads.
    let start = &OnceLock::new();
    thread::scope(|scope| {
        let running: Vec<_> = workers
            .into_iter()
            .zip(cpus)
            .map(|(mut worker, &cpu)| {
                scope.spawn(move || {
                    let prepared = crate::cpu::pin(cpu).and_then(|()| worker.precondition());
                    // Every thread comes here, also one that failed, or the others would wait for ever.
                    ready.wait();
                    let start = *start.get_or_init(Time::now);
                    prepared.and_then(|()| worker.run(start))
                })
            })
            .collect();
        let join = |thread: thread::ScopedJoinHandle<'_, Threaded>| {
            thread.join().unwrap_or_else(|_| Err(Failure::new("a generator thread panicked")))
        };
        running.into_iter().map(join).collect()
    })
}

impl Workload {
    fn check(&self) -> Result<(), Failure> {
        let wrong = |what: String| Err(Failure::new(what));
        if self.depth == 0 || self.depth > DEPTH_MAX {
            return wrong(format!("--qd {} is not between 1 and {DEPTH_MAX}", self.depth));
        }
        if self.cpus.is_empty() || self.sessions < self.cpus.len() {
            return wrong(format!(
                "{} sessions for {} CPUs: each CPU needs at least one, raise --sessions",
                self.sessions,
                self.cpus.len()
            ));
        }
        if let Some(rate) = self.rate
            && rate.per_second() < self.sessions as u64
        {
            return wrong(format!(
                "--rate {} is less than one command a second for each of the {} sessions: raise --rate to {} or \
                 lower --sessions",
                rate.per_second(),
                self.sessions,
                self.sessions
            ));
        }
        if self.block_bytes == 0 || self.block_bytes > wire::SEGMENT_BYTES_MAX {
            return wrong(format!("--bs {} is not between 512 and 16M less one", self.block_bytes));
        }
        if self.verify && self.pattern.read_percent(self.mix) == 100 && !self.precondition {
            return wrong("--verify with reads alone has nothing to check: add --precondition".into());
        }
        Ok(())
    }

    /// Commands' worths of bytes in the range.
    fn blocks(&self, capacity: Capacity) -> Result<u64, Failure> {
        if !self.block_bytes.is_multiple_of(capacity.block_bytes) {
            return Err(Failure::new(format!(
                "--bs {} is no multiple of the unit's block of {} bytes",
                self.block_bytes, capacity.block_bytes
            )));
        }
        let size = capacity.blocks.saturating_mul(u64::from(capacity.block_bytes));
        let range = self.range_bytes.unwrap_or(size);
        if range > size {
            return Err(Failure::new(format!("--range {range} is larger than the unit's {size} bytes")));
        }
        let blocks = range / u64::from(self.block_bytes);
        let threads = self.cpus.len() as u64;
        let least = if self.verify { (self.sessions * self.depth) as u64 * 4 } else { self.sessions as u64 };
        if blocks / threads < least.div_ceil(threads).max(1) {
            return Err(Failure::new(format!(
                "the range of {range} bytes has {blocks} blocks of {}, and this run needs {least}",
                self.block_bytes
            )));
        }
        if self.verify && blocks / threads > verify::BLOCKS_MAX {
            return Err(Failure::new(format!(
                "{blocks} blocks are too many to verify: take a --range of at most {} blocks",
                verify::BLOCKS_MAX * threads
            )));
        }
        Ok(blocks)
    }

    fn worker(&self, thread: usize, sessions: Vec<Session>, blocks: u64) -> Worker {
        let threads = self.cpus.len() as u64;
        let part = blocks / threads;
        // Threads share nothing: each verifies its own part. Unverified, all go over the whole range.
        let alone =
            self.verify || self.precondition || matches!(self.pattern, Pattern::Read | Pattern::Write);
        let (first, blocks) = if alone { (part * thread as u64, part) } else { (0, blocks) };
        let seed = self.seed.wrapping_add(thread as u64);
        let picker = Picker::new(self.pattern, self.mix, first, blocks, sessions.len(), seed);
        let run = pattern::mix(Time::now().0 ^ u64::from(std::process::id()));
        let verifier = self.verify.then(|| Verifier::new(first, blocks, run));
        let schedule = Schedule {
            warmup: self.warmup,
            time: self.time,
            timeout: self.timeout,
            precondition: self.precondition,
            deal: self.rate.map(|rate| Deal {
                rate,
                thread,
                threads: self.cpus.len(),
                sessions: self.sessions,
            }),
        };
        let mut ledger = Ledger::new(picker, verifier, first, blocks);
        if self.shuffled {
            ledger.shuffle_passes(seed);
        }
        Worker::new(sessions, ledger, schedule)
    }
}

fn connect(
    peer: &Peer,
    index: usize,
    timeout: Duration,
) -> Result<(TcpStream, Terms, Serials, Capacity), Failure> {
    match peer {
        Peer::Iscsi { door, lun } => {
            let (mut link, terms) = login::login(door, index as u32, timeout)?;
            let capacity = get_ready(&mut link, *lun)
                .map_err(|failure| failure.at(format!("LUN {lun} of {}", door.target)))?;
            let serials =
                Serials { cmd_sn: link.cmd_sn, max_cmd_sn: link.max_cmd_sn, exp_stat_sn: link.exp_stat_sn };
            Ok((link.into_socket()?, terms, serials, capacity))
        }
        Peer::Raw { address, bytes } => {
            let socket = Link::connect(*address, timeout)?.into_socket()?;
            let serials = Serials { cmd_sn: 1, max_cmd_sn: DEPTH_MAX as u32, exp_stat_sn: 1 };
            Ok((socket, RAW_TERMS, serials, Capacity { blocks: bytes / 512, block_bytes: 512 }))
        }
    }
}

/// How the raw ceiling is spoken to: one PDU each way, whatever the size.
const RAW_TERMS: Terms = Terms {
    header_digest: false,
    data_digest: false,
    immediate_data: true,
    initial_r2t: true,
    first_burst: wire::SEGMENT_BYTES_MAX,
    max_burst: wire::SEGMENT_BYTES_MAX,
    max_receive: wire::SEGMENT_BYTES_MAX,
    max_send: wire::SEGMENT_BYTES_MAX,
};

/// TEST UNIT READY (fixed sense, as is the default) until unit attentions are told, then READ CAPACITY (16).
fn get_ready(link: &mut Link, lun: u16) -> Result<Capacity, Failure> {
    let mut answer = link.command(lun, &[0; 6], 0)?;
    for _ in 0..READY_TRIES_MAX {
        // Sense keys 2h (not ready) and 6h (unit attention) pass; the others stay.
        let key = answer.sense.get(2).map_or(0, |byte| byte & 0x0F);
        if answer.status == 0 || !matches!(key, 0x2 | 0x6) {
            break;
        }
        thread::sleep(READY_PAUSE);
        answer = link.command(lun, &[0; 6], 0)?;
    }
    if answer.status != 0 {
        return Err(Failure::new(format!(
            "not ready: status {:02x}h, sense {:02x?}",
            answer.status, answer.sense
        )));
    }
    let mut cdb = [0; 16];
    cdb[0] = 0x9E;
    cdb[1] = 0x10;
    cdb[13] = 32;
    let answer = link.command(lun, &cdb, 32)?;
    let (Some(last), Some(block_bytes)) = (answer.data.first_chunk::<8>(), answer.data.get(8..12)) else {
        return Err(Failure::new(format!(
            "READ CAPACITY (16): status {:02x}h, sense {:02x?}",
            answer.status, answer.sense
        )));
    };
    let block_bytes: [u8; 4] = block_bytes.try_into().doing("READ CAPACITY (16)")?;
    let capacity = Capacity {
        blocks: u64::from_be_bytes(*last).saturating_add(1),
        block_bytes: u32::from_be_bytes(block_bytes),
    };
    if !capacity.block_bytes.is_power_of_two() || capacity.block_bytes < 512 {
        return Err(Failure::new(format!("a logical block of {} bytes", capacity.block_bytes)));
    }
    Ok(capacity)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ceiling::server::{Loop, RawServer};
    use std::net::TcpListener;

    const MEMORY_BYTES: u64 = 8 << 20;

    fn workload(block_bytes: u32, pattern: Pattern) -> Workload {
        let cpus = core_affinity::get_core_ids().unwrap();
        Workload {
            block_bytes,
            pattern,
            mix: 60,
            depth: 8,
            sessions: 2,
            rate: None,
            warmup: Duration::from_millis(20),
            time: Duration::from_millis(100),
            timeout: Duration::from_secs(20),
            range_bytes: None,
            verify: true,
            precondition: true,
            shuffled: false,
            seed: 1,
            cpus: vec![cpus.last().unwrap().id],
        }
    }

    /// Goal: what is written is read back, whatever its size, and everything ends in time. Method: the raw server
    /// stands for a target; verified reads and writes from 512 bytes to 256 KiB, with both of its loops.
    #[test]
    fn the_raw_server_keeps_what_is_written() {
        let cpu = core_affinity::get_core_ids().unwrap()[0].id;
        for (block_bytes, how) in
            [(512, Loop::Nonblocking), (4096, Loop::Epoll), (256 << 10, Loop::Nonblocking)]
        {
            let depth = if block_bytes > 65_536 { 2 } else { 8 };
            let server = RawServer::start(cpu, MEMORY_BYTES, how, 2).unwrap();
            let peer = Peer::Raw { address: server.address, bytes: MEMORY_BYTES };
            let outcome = run(&peer, &Workload { depth, ..workload(block_bytes, Pattern::Randrw) }).unwrap();
            server.finish().unwrap();
            assert_eq!((outcome.tally.errors, outcome.tally.unchecked), (0, 0));
            assert!(outcome.tally.checked >= MEMORY_BYTES / u64::from(block_bytes));
            assert!(!outcome.tally.writes.latencies.is_empty());
        }
    }

    /// Goal: at a fixed rate each command of the window is sent and its latency counted, or told as unsent, and what
    /// comes before and after the window is no part of the schedule. Method: the raw server, verified, 500 a second.
    #[test]
    fn an_open_loop_accounts_for_every_command() {
        let cpu = core_affinity::get_core_ids().unwrap()[0].id;
        let server = RawServer::start(cpu, MEMORY_BYTES, Loop::Epoll, 2).unwrap();
        let peer = Peer::Raw { address: server.address, bytes: MEMORY_BYTES };
        let paced = Workload {
            rate: Some(Rate::new(500).unwrap()),
            time: Duration::from_millis(200),
            ..workload(4096, Pattern::Randrw)
        };
        let outcome = run(&peer, &paced).unwrap();
        server.finish().unwrap();
        let tally = &outcome.tally;
        assert_eq!((tally.errors, tally.unchecked), (0, 0));
        assert!(tally.checked >= MEMORY_BYTES / 4096, "the read of everything at the end is a closed loop");
        let timed = tally.reads.latencies.len() + tally.writes.latencies.len();
        assert_eq!(timed + tally.lateness.unsent, 100);
    }

    /// Goal: less than 99 % of what was asked for is saturation, and so is what was never sent; one command at the
    /// edge isn't, nor errors. Method: both sides of the line.
    #[test]
    fn saturation_has_a_line() {
        let outcome = |rate: Option<u64>, ended, unsent| {
            let mut tally = Tally::new();
            tally.ended = ended;
            tally.lateness.unsent = unsent;
            Outcome {
                tally,
                terms: RAW_TERMS,
                capacity_bytes: 0,
                logical_block_bytes: 512,
                range_bytes: 0,
                time: Duration::from_secs(2),
                rate: rate.map(|rate| Rate::new(rate).unwrap()),
            }
        };
        assert!(!outcome(Some(1000), 1980, 0).is_saturated());
        assert!(outcome(Some(1000), 1978, 0).is_saturated());
        assert!(outcome(Some(1000), 2000, 1).is_saturated());
        assert!(!outcome(Some(2), 3, 0).is_saturated(), "the window's edge");
        assert!(!outcome(None, 0, 0).is_saturated());
        assert!((outcome(Some(1000), 1978, 0).reached() - 989.0).abs() < 1e-9);
    }

    /// Goal: a target that goes silent ends the run with a reason, in time. Method: a socket that takes everything
    /// and answers nothing, once in the run and once at login.
    #[test]
    fn silence_ends_the_run() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let short = Workload { timeout: Duration::from_millis(200), ..workload(4096, Pattern::Randwrite) };
        let raw = Peer::Raw { address, bytes: MEMORY_BYTES };
        let failure = run(&raw, &short).unwrap_err().to_string();
        assert!(failure.contains("no end after") && failure.contains("Write of block"), "{failure}");
        let offer = login::Offer {
            header_digest: false,
            data_digest: false,
            immediate_data: true,
            initial_r2t: false,
            first_burst: 8192,
            max_burst: 65_536,
            max_receive: 65_536,
        };
        let door = Door { portal: address, target: "t".into(), initiator: "i".into(), chap: None, offer };
        let failure = run(&Peer::Iscsi { door, lun: 0 }, &short).unwrap_err().to_string();
        assert!(failure.contains("no answer within"), "{failure}");
    }

    /// Goal: workloads that can't be are refused with the option to change. Method: one of each.
    #[test]
    fn impossible_workloads_are_refused() {
        let good = workload(4096, Pattern::Randread);
        let capacity = Capacity { blocks: 16_384, block_bytes: 512 };
        assert_eq!(good.blocks(capacity), Ok(2048));
        for (bad, option) in [
            (Workload { depth: 0, ..good.clone() }, "--qd"),
            (Workload { cpus: vec![0, 1, 2], ..good.clone() }, "--sessions"),
            (Workload { precondition: false, ..good.clone() }, "--precondition"),
            (Workload { rate: Some(Rate::new(1).unwrap()), ..good.clone() }, "raise --rate to 2"),
        ] {
            assert!(bad.check().unwrap_err().to_string().contains(option));
        }
        for (bad, option) in [
            (Workload { block_bytes: 1000, ..good.clone() }, "--bs"),
            (Workload { range_bytes: Some(1 << 40), ..good.clone() }, "--range"),
            (Workload { range_bytes: Some(65_536), ..good.clone() }, "needs 64"),
        ] {
            assert!(bad.blocks(capacity).unwrap_err().to_string().contains(option));
        }
    }
}
