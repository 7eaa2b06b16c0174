//! The raw ceiling's server: the bytes of iSCSI on plain TCP sockets, and nothing else that a target does.
//!
//! A request is 48 bytes, with data behind it if it writes; the answer is 48 bytes, with data behind them if it
//! read. Data comes from and goes to one piece of memory at the address that the request names, so that caches are
//! as cold as a target's. There is no login, no window, no check, no queue. One thread on one CPU. Called by
//! `ceiling` and `compare`.

use crate::failure::{Context, Failure};
use crate::load::outbox::Outbox;
use crate::load::session::DEPTH_MAX;
use crate::load::wire::{self, BHS_BYTES, Bhs, TAG_NONE, get_u32, opcode, put_data_bytes, put_u32};
use rustix::event::epoll;
use std::io::{self, ErrorKind, IoSliceMut, Read};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Room for one receive.
const RECEIVE_BYTES: usize = 256 * 1024;
/// Turns between looks at the stop flag.
const TURNS_PER_CHECK: u32 = 1024;
/// Sockets told by one epoll call.
const EVENTS_MAX: usize = 64;
const ACCEPT_PAUSE: Duration = Duration::from_millis(1);

/// How the server learns that bytes came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loop {
    /// It asks each socket in turn.
    Nonblocking,
    /// It asks epoll, without waiting.
    Epoll,
}

impl Loop {
    /// Both, in the order of the tables.
    pub const ALL: [Loop; 2] = [Loop::Nonblocking, Loop::Epoll];

    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Loop::Nonblocking => "non-blocking",
            Loop::Epoll => "epoll",
        }
    }
}

/// A running server. It ends when it is dropped, or when all its connections are closed.
#[derive(Debug)]
pub struct RawServer {
    /// Where it listens.
    pub address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<(), Failure>>>,
}

impl RawServer {
    /// Starts a server for `sessions` connections over `memory_bytes` bytes, all of them touched, on `cpu`.
    ///
    /// # Errors
    /// No port is free.
    pub fn start(cpu: usize, memory_bytes: u64, how: Loop, sessions: usize) -> Result<RawServer, Failure> {
        let listener = TcpListener::bind("127.0.0.1:0").doing("opening the raw server's port")?;
        listener.set_nonblocking(true).doing("making the listener non-blocking")?;
        let address = listener.local_addr().doing("asking for the raw server's port")?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let (ready, is_ready) = channel();
        let thread = thread::spawn(move || {
            crate::cpu::pin(cpu)?;
            // Ones, not zeroes: the pages must be there.
            let memory = vec![1; memory_bytes as usize].into();
            // Who waits has gone only if nobody wants the server any more.
            let _ = ready.send(());
            let connections = accept(&listener, sessions, &stopped)?;
            Server { connections, memory, buffer: vec![0; RECEIVE_BYTES].into() }.serve(how, &stopped)
        });
        // Or a client's short window would begin with waiting for that; the thread's own error is told at its end.
        let _ = is_ready.recv();
        Ok(RawServer { address, stop, thread: Some(thread) })
    }

    /// Ends the server.
    ///
    /// # Errors
    /// What went wrong in it.
    pub fn finish(mut self) -> Result<(), Failure> {
        self.end()
    }

    fn end(&mut self) -> Result<(), Failure> {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.take().map(JoinHandle::join) {
            None => Ok(()),
            Some(Ok(outcome)) => outcome.map_err(|failure| failure.at("raw server")),
            Some(Err(_)) => Err(Failure::new("the raw server panicked")),
        }
    }
}

impl Drop for RawServer {
    fn drop(&mut self) {
        // Whoever drops it without `finish` has an error of its own to tell.
        let _ = self.end();
    }
}

fn accept(listener: &TcpListener, sessions: usize, stop: &AtomicBool) -> Result<Vec<Connection>, Failure> {
    let mut connections = Vec::new();
    while connections.len() < sessions && !stop.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((socket, _)) => connections.push(Connection::new(socket)?),
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(ACCEPT_PAUSE),
            Err(error) => return Err(Failure::new(format!("accepting: {error}"))),
        }
    }
    Ok(connections)
}

#[derive(Debug)]
struct Server {
    connections: Vec<Connection>,
    memory: Box<[u8]>,
    buffer: Box<[u8]>,
}

impl Server {
    fn serve(mut self, how: Loop, stop: &AtomicBool) -> Result<(), Failure> {
        let polled = match how {
            Loop::Nonblocking => None,
            Loop::Epoll => Some(self.watch()?),
        };
        let mut events = Vec::with_capacity(EVENTS_MAX);
        while !stop.load(Ordering::Relaxed) && self.connections.iter().any(|connection| connection.open) {
            for _ in 0..TURNS_PER_CHECK {
                match &polled {
                    None => (0..self.connections.len()).try_for_each(|index| self.turn(index))?,
                    Some(polled) => self.turn_polled(polled, &mut events)?,
                }
            }
        }
        Ok(())
    }

    fn watch(&self) -> Result<rustix::fd::OwnedFd, Failure> {
        let polled = epoll::create(epoll::CreateFlags::CLOEXEC).doing("epoll_create")?;
        for (index, connection) in self.connections.iter().enumerate() {
            let data = epoll::EventData::new_u64(index as u64);
            epoll::add(&polled, &connection.socket, data, epoll::EventFlags::IN).doing("epoll_ctl")?;
        }
        Ok(polled)
    }

    fn turn_polled(
        &mut self,
        polled: &rustix::fd::OwnedFd,
        events: &mut Vec<epoll::Event>,
    ) -> Result<(), Failure> {
        const AT_ONCE: rustix::event::Timespec = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        events.clear();
        match epoll::wait(polled, rustix::buffer::spare_capacity(events), Some(&AT_ONCE)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(Failure::new(format!("epoll_wait: {error}"))),
        }
        for event in events.iter() {
            self.turn(event.data.u64() as usize)?;
        }
        for connection in &mut self.connections {
            // What a full socket left over.
            connection.send(&self.memory)?;
        }
        Ok(())
    }

    fn turn(&mut self, index: usize) -> Result<(), Failure> {
        let connection = &mut self.connections[index];
        if connection.open {
            connection.receive(&mut self.buffer, &mut self.memory)?;
            connection.send(&self.memory)?;
        }
        Ok(())
    }
}

/// Where in the stream a connection is.
#[derive(Debug, Clone, Copy)]
enum Stage {
    /// That many bytes of the next header are in `bhs`.
    Header { filled: usize },
    /// Data of the write in `bhs` goes to `at`, `left` bytes are to come.
    Data { at: usize, left: usize },
}

#[derive(Debug)]
struct Connection {
    socket: TcpStream,
    open: bool,
    outbox: Outbox,
    stage: Stage,
    bhs: Bhs,
    stat_sn: u32,
}

impl Connection {
    fn new(socket: TcpStream) -> Result<Connection, Failure> {
        socket.set_nodelay(true).doing("setting TCP_NODELAY")?;
        socket.set_nonblocking(true).doing("making the socket non-blocking")?;
        let stage = Stage::Header { filled: 0 };
        let outbox = Outbox::new(DEPTH_MAX, BHS_BYTES);
        Ok(Connection { socket, open: true, outbox, stage, bhs: [0; BHS_BYTES], stat_sn: 1 })
    }

    fn send(&mut self, memory: &[u8]) -> Result<(), Failure> {
        match self.outbox.send(&mut self.socket, memory) {
            Ok(_) => Ok(()),
            Err(error) => self.close(&error),
        }
    }

    fn receive(&mut self, buffer: &mut [u8], memory: &mut [u8]) -> Result<(), Failure> {
        // Each 48 bytes may be a request that wants an answer; what can't be answered isn't received.
        let room = (self.outbox.room(BHS_BYTES) * BHS_BYTES).min(buffer.len());
        if room == 0 {
            return Ok(());
        }
        let outcome = match self.stage {
            Stage::Header { .. } => self.socket.read(&mut buffer[..room]),
            // Straight to its place, and what comes behind it into the buffer.
            Stage::Data { at, left } => {
                let place = IoSliceMut::new(&mut memory[at..at + left]);
                self.socket.read_vectored(&mut [place, IoSliceMut::new(&mut buffer[..room])])
            }
        };
        let received = match outcome {
            Ok(0) => {
                self.open = false;
                return Ok(());
            }
            Ok(received) => received,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                return Ok(());
            }
            Err(error) => return self.close(&error),
        };
        let mut in_place = 0;
        if let Stage::Data { at, left } = self.stage {
            in_place = received.min(left);
            self.stage = Stage::Data { at: at + in_place, left: left - in_place };
            self.end_data();
        }
        self.take(&buffer[..received - in_place], memory)
    }

    fn take(&mut self, mut bytes: &[u8], memory: &mut [u8]) -> Result<(), Failure> {
        while !bytes.is_empty() {
            match self.stage {
                Stage::Header { filled } => {
                    let taken = (BHS_BYTES - filled).min(bytes.len());
                    self.bhs[filled..filled + taken].copy_from_slice(&bytes[..taken]);
                    bytes = &bytes[taken..];
                    self.stage = Stage::Header { filled: filled + taken };
                    if filled + taken == BHS_BYTES {
                        self.begin(memory.len())?;
                    }
                }
                Stage::Data { at, left } => {
                    let taken = left.min(bytes.len());
                    memory[at..at + taken].copy_from_slice(&bytes[..taken]);
                    bytes = &bytes[taken..];
                    self.stage = Stage::Data { at: at + taken, left: left - taken };
                    self.end_data();
                }
            }
        }
        Ok(())
    }

    /// A whole request is in `bhs`.
    fn begin(&mut self, memory_bytes: usize) -> Result<(), Failure> {
        let bytes = get_u32(&self.bhs, 20) as usize;
        let at = wire::lba_of(&self.bhs) as usize * 512;
        if at.checked_add(bytes).is_none_or(|end| end > memory_bytes) {
            return Err(Failure::new(format!("a request for {bytes} bytes at {at}, out of the memory")));
        }
        if self.bhs[1] & wire::WRITE != 0 {
            self.stage = Stage::Data { at, left: bytes };
            self.end_data();
            return Ok(());
        }
        let mut answer = self.answer(opcode::DATA_IN, wire::FINAL | wire::STATUS_PRESENT);
        put_data_bytes(&mut answer, bytes as u32);
        self.outbox.push_fixed(&answer);
        self.outbox.push_payload(at, bytes);
        self.stage = Stage::Header { filled: 0 };
        Ok(())
    }

    fn end_data(&mut self) {
        if let Stage::Data { left: 0, .. } = self.stage {
            let answer = self.answer(opcode::SCSI_RESPONSE, wire::FINAL);
            self.outbox.push_fixed(&answer);
            self.stage = Stage::Header { filled: 0 };
        }
    }

    fn answer(&mut self, opcode: u8, flags: u8) -> Bhs {
        let mut answer = [0; BHS_BYTES];
        answer[0] = opcode;
        answer[1] = flags;
        answer[16..20].copy_from_slice(&self.bhs[16..20]);
        put_u32(&mut answer, 20, TAG_NONE);
        put_u32(&mut answer, 24, self.stat_sn);
        self.stat_sn = self.stat_sn.wrapping_add(1);
        let exp_cmd_sn = get_u32(&self.bhs, 24).wrapping_add(1);
        put_u32(&mut answer, 28, exp_cmd_sn);
        put_u32(&mut answer, 32, exp_cmd_sn.wrapping_add(DEPTH_MAX as u32 - 1));
        answer
    }

    /// The client leaves without a word; that is how a run ends.
    fn close(&mut self, error: &io::Error) -> Result<(), Failure> {
        self.open = false;
        match error.kind() {
            ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => Ok(()),
            _ => Err(Failure::new(format!("socket: {error}"))),
        }
    }
}
