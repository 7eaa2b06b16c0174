//! Sessions that keep commands of any kind under way, all polled by one thread. Every command must end GOOD; one
//! that doesn't, or none that ends in time, ends the run. Data that is read is dropped where it arrives. The thread polls
//! while there is something, and sleeps else.

use super::encode::Command;
use crate::failure::{Context, Failure};
use crate::load::link::{advances_stat_sn, unexpected};
use crate::load::login::{Door, Terms, login};
use crate::load::wire::{self, BHS_BYTES, Bhs, TAG_NONE, get_u32, opcode, put_data_bytes, put_u32};
use hdrhistogram::Histogram;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use std::collections::VecDeque;
use std::io::{ErrorKind, IoSlice, Read, Write};
use std::net::TcpStream;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

const INBOX_BYTES: usize = 128 << 10;
/// The longest segment that is looked at: sense data. Others are dropped as they come.
const KEPT_BYTES_MAX: usize = 16 << 10;
const SLICES: usize = 32;
/// Without anything for so long the thread sleeps until something comes. On a disk soon: the kernel completes its operations
/// on this CPU, too, and a client that never rests would starve them. In memory nobody else wants the CPU, and a client
/// that sleeps has the target wake it up.
const SPIN_BESIDE_A_DISK: Duration = Duration::from_micros(20);
const SPIN: Duration = Duration::from_millis(5);

enum Piece {
    Header(Bhs),
    Data(Arc<[u8]>, Range<usize>),
}

struct Task {
    start: Instant,
    command: Command,
    received: u32,
}

pub(super) struct Session {
    socket: TcpStream,
    terms: Terms,
    lun: u16,
    cmd_sn: u32,
    exp_stat_sn: u32,
    max_cmd_sn: u32,
    tasks: Vec<Option<Task>>,
    under_way: usize,
    inbox: Vec<u8>,
    filled: usize,
    /// Bytes of Data-In yet to be dropped.
    skip: usize,
    outbox: VecDeque<Piece>,
    /// Bytes of its first piece that are sent.
    sent: usize,
    last_progress: Instant,
}

/// What comes next for one session.
pub(super) type Source<'a> = Box<dyn FnMut() -> Option<Command> + 'a>;

/// One session's part of a run.
pub(super) struct Lane<'a> {
    pub(super) depth: usize,
    pub(super) source: Source<'a>,
    pub(super) latency: Histogram<u64>,
    pub(super) ended: u64,
    dry: bool,
}

impl<'a> Lane<'a> {
    pub(super) fn new(
        depth: usize,
        source: impl FnMut() -> Option<Command> + 'a,
    ) -> Result<Lane<'a>, Failure> {
        let latency = Histogram::new(3).doing("making a histogram")?;
        Ok(Lane { depth, source: Box::new(source), latency, ended: 0, dry: false })
    }
}

/// Runs until each source is dry and all has ended; returns how long that took. No wait is longer than `timeout`.
pub(super) fn run(
    sessions: &mut [Session],
    lanes: &mut [Lane<'_>],
    timeout: Duration,
    in_memory: bool,
) -> Result<Duration, Failure> {
    let spin = if in_memory { SPIN } else { SPIN_BESIDE_A_DISK };
    let start = Instant::now();
    for session in sessions.iter_mut() {
        session.last_progress = start;
    }
    let mut moved_at = start;
    loop {
        let (mut busy, mut moved) = (false, false);
        for (session, lane) in sessions.iter_mut().zip(lanes.iter_mut()) {
            moved |= session.turn(lane, timeout)?;
            busy |= !lane.dry || session.under_way > 0;
        }
        if !busy {
            return Ok(start.elapsed());
        }
        if moved {
            moved_at = Instant::now();
        } else if moved_at.elapsed() > spin {
            wait(sessions)?;
            moved_at = Instant::now();
        }
    }
}

/// Until a socket has or takes something, or a while has passed.
fn wait(sessions: &[Session]) -> Result<(), Failure> {
    let flags = |session: &Session| {
        if session.outbox.is_empty() { PollFlags::IN } else { PollFlags::IN | PollFlags::OUT }
    };
    let mut sockets: Vec<PollFd<'_>> =
        sessions.iter().map(|session| PollFd::new(&session.socket, flags(session))).collect();
    let limit = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
    match poll(&mut sockets, Some(&limit)) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(Failure::new(format!("waiting for sockets: {error}"))),
    }
}

impl Session {
    pub(super) fn open(door: &Door, lun: u16, number: u32, timeout: Duration) -> Result<Session, Failure> {
        let (mut link, terms) = login(door, number, timeout)?;
        // A new nexus has unit attentions.
        for _ in 0..8 {
            if link.command(lun, &[0; 6], 0)?.status == 0 {
                break;
            }
        }
        let (cmd_sn, exp_stat_sn, max_cmd_sn) = (link.cmd_sn, link.exp_stat_sn, link.max_cmd_sn);
        Ok(Session {
            socket: link.into_socket()?,
            terms,
            lun,
            cmd_sn,
            exp_stat_sn,
            max_cmd_sn,
            tasks: Vec::new(),
            under_way: 0,
            inbox: vec![0; INBOX_BYTES],
            filled: 0,
            skip: 0,
            outbox: VecDeque::new(),
            sent: 0,
            last_progress: Instant::now(),
        })
    }

    /// Whether something came.
    fn turn(&mut self, lane: &mut Lane<'_>, timeout: Duration) -> Result<bool, Failure> {
        let moved = self.receive(lane)?;
        while !lane.dry && self.under_way < lane.depth && wire::serial_le(self.cmd_sn, self.max_cmd_sn) {
            match (lane.source)() {
                Some(command) => self.start(command),
                None => lane.dry = true,
            }
        }
        self.send()?;
        if self.under_way > 0 && self.last_progress.elapsed() > timeout {
            return Err(Failure::new(format!("no command ended within {timeout:?}")));
        }
        Ok(moved)
    }

    fn start(&mut self, command: Command) {
        let bytes = command.data.len();
        let flags = match (bytes, command.read_bytes) {
            (0, 0) => 0,
            (0, _) => wire::READ,
            _ => wire::WRITE,
        };
        let expected = if bytes > 0 { bytes as u32 } else { command.read_bytes };
        let mut bhs = wire::scsi_command(self.lun, flags, expected, &command.cdb);
        let slot = self.tasks.iter().position(Option::is_none).unwrap_or_else(|| {
            self.tasks.push(None);
            self.tasks.len() - 1
        });
        put_u32(&mut bhs, 16, slot as u32);
        put_u32(&mut bhs, 24, self.cmd_sn);
        put_u32(&mut bhs, 28, self.exp_stat_sn);
        self.cmd_sn = self.cmd_sn.wrapping_add(1);
        let allowed =
            if self.terms.immediate_data { self.terms.first_burst.min(self.terms.max_send) } else { 0 };
        self.push(bhs, &command.data, 0..bytes.min(allowed as usize));
        self.tasks[slot] = Some(Task { start: Instant::now(), command, received: 0 });
        self.under_way += 1;
    }

    fn push(&mut self, mut bhs: Bhs, data: &Arc<[u8]>, range: Range<usize>) {
        // All data here is a multiple of four bytes: no padding.
        assert!(range.len().is_multiple_of(4));
        put_data_bytes(&mut bhs, range.len() as u32);
        self.outbox.push_back(Piece::Header(bhs));
        if !range.is_empty() {
            self.outbox.push_back(Piece::Data(Arc::clone(data), range));
        }
    }

    fn send(&mut self) -> Result<(), Failure> {
        while !self.outbox.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES];
            let mut skip = self.sent;
            for (slice, piece) in slices.iter_mut().zip(&self.outbox) {
                let bytes = match piece {
                    Piece::Header(bhs) => &bhs[..],
                    Piece::Data(data, range) => &data[range.clone()],
                };
                *slice = IoSlice::new(&bytes[skip..]);
                skip = 0;
            }
            let count = self.outbox.len().min(SLICES);
            match self.socket.write_vectored(&slices[..count]) {
                Ok(bytes) => self.sent += bytes,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(Failure::new(format!("sending: {error}"))),
            }
            while let Some(piece) = self.outbox.front() {
                let bytes = match piece {
                    Piece::Header(_) => BHS_BYTES,
                    Piece::Data(_, range) => range.len(),
                };
                if self.sent < bytes {
                    break;
                }
                self.sent -= bytes;
                self.outbox.pop_front();
            }
        }
        Ok(())
    }

    fn receive(&mut self, lane: &mut Lane<'_>) -> Result<bool, Failure> {
        match self.socket.read(&mut self.inbox[self.filled..]) {
            Ok(0) => return Err(Failure::new("the target closed the connection")),
            Ok(bytes) => self.filled += bytes,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                return Ok(false);
            }
            Err(error) => return Err(Failure::new(format!("receiving: {error}"))),
        }
        let mut at = 0;
        loop {
            let dropped = self.skip.min(self.filled - at);
            at += dropped;
            self.skip -= dropped;
            if self.filled - at < BHS_BYTES {
                break;
            }
            let mut bhs = [0; BHS_BYTES];
            bhs.copy_from_slice(&self.inbox[at..at + BHS_BYTES]);
            let bytes = wire::data_bytes(&bhs);
            let padded = (bytes + wire::pad_bytes(bytes)) as usize;
            let data = if wire::opcode_of(&bhs) == opcode::DATA_IN {
                self.skip = padded;
                0
            } else if padded > KEPT_BYTES_MAX {
                return Err(Failure::new(format!("a segment of {bytes} bytes that nobody asked for")));
            } else {
                padded
            };
            if self.filled - at < BHS_BYTES + data {
                break;
            }
            let sense = self.inbox[at + BHS_BYTES..at + BHS_BYTES + data].to_vec();
            at += BHS_BYTES + data;
            self.take(&bhs, &sense, lane)?;
        }
        self.inbox.copy_within(at..self.filled, 0);
        self.filled -= at;
        Ok(true)
    }

    fn take(&mut self, bhs: &Bhs, sense: &[u8], lane: &mut Lane<'_>) -> Result<(), Failure> {
        let max_cmd_sn = wire::max_cmd_sn(bhs);
        if wire::serial_le(self.max_cmd_sn, max_cmd_sn) {
            self.max_cmd_sn = max_cmd_sn;
        }
        if advances_stat_sn(bhs) {
            if wire::stat_sn(bhs) != self.exp_stat_sn {
                return Err(Failure::new(format!(
                    "StatSN {}, expected {}",
                    wire::stat_sn(bhs),
                    self.exp_stat_sn
                )));
            }
            self.exp_stat_sn = self.exp_stat_sn.wrapping_add(1);
        }
        let operation = wire::opcode_of(bhs);
        if operation == opcode::NOP_IN {
            if wire::target_transfer_tag(bhs) != TAG_NONE {
                let answer = wire::nop_out_answer(bhs, self.cmd_sn, self.exp_stat_sn);
                self.outbox.push_back(Piece::Header(answer));
            }
            return Ok(());
        }
        let slot = wire::initiator_task_tag(bhs) as usize;
        let task = self.tasks.get_mut(slot).and_then(Option::as_mut).ok_or_else(|| unexpected(bhs))?;
        let done = match operation {
            opcode::R2T => {
                let start = wire::buffer_offset(bhs) as usize;
                let end = start + wire::residual_or_desired(bhs) as usize;
                let data = Arc::clone(&task.command.data);
                if end > data.len() || start == end {
                    return Err(Failure::new(format!("R2T for {start}..{end} of {} bytes", data.len())));
                }
                let transfer_tag = wire::target_transfer_tag(bhs);
                let mut at = start;
                let mut data_sn = 0;
                while at < end {
                    let next = end.min(at + self.terms.max_send as usize);
                    let what = wire::DataOut {
                        task_tag: slot as u32,
                        transfer_tag,
                        data_sn,
                        offset: at as u32,
                        bytes: (next - at) as u32,
                        last: next == end,
                    };
                    self.push(wire::data_out(self.lun, self.exp_stat_sn, what), &data, at..next);
                    at = next;
                    data_sn += 1;
                }
                return Ok(());
            }
            opcode::DATA_IN => {
                if wire::buffer_offset(bhs) != task.received {
                    return Err(Failure::new("Data-In out of order"));
                }
                task.received += wire::data_bytes(bhs);
                bhs[1] & wire::STATUS_PRESENT != 0
            }
            opcode::SCSI_RESPONSE => true,
            _ => return Err(unexpected(bhs)),
        };
        if !done {
            return Ok(());
        }
        let cdb = task.command.cdb;
        if bhs[3] != 0 || (operation == opcode::SCSI_RESPONSE && bhs[2] != 0) {
            let (key, code, qualifier) = match sense.get(2..) {
                Some(sense) if sense.len() >= 14 => (sense[2] & 15, sense[12], sense[13]),
                _ => (0, 0, 0),
            };
            return Err(Failure::new(format!(
                "command {cdb:02x?} ended with response {:02x}h, status {:02x}h, sense {key:x}/{code:02x}/{qualifier:02x}",
                bhs[2], bhs[3]
            )));
        }
        if task.received != task.command.read_bytes || get_u32(bhs, 44) != 0 {
            return Err(Failure::new(format!("command {cdb:02x?} left a residual")));
        }
        let nanoseconds = task.start.elapsed().as_nanos() as u64;
        lane.latency.record(nanoseconds.max(1)).doing("recording a latency")?;
        lane.ended += 1;
        self.tasks[slot] = None;
        self.under_way -= 1;
        self.last_progress = Instant::now();
        Ok(())
    }
}
