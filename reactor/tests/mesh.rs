//! Whole reactors on real threads: messages, sleep, disks, sockets, start and end.
//!
//! CPUs are dealt out as there are, so two reactors share one where the machine has no more.

#![allow(clippy::unwrap_used, reason = "a test program")]

use reactor::Core;
use reactor::buf::{Buf, PAGE_BYTES};
use reactor::disk::{DiskAction, DiskDone, DiskOp, FileId};
use reactor::mesh::RemoteFull;
use reactor::net::{Listener, Moved, SocketConfig, Stream};
use reactor::pin::allowed_cpus;
use reactor::reactor::PollMode;
use reactor::ring::{Interest, Ready, WatchId};
use reactor::service::{Activity, Cx, Service};
use reactor::start::{Mesh, MeshConfig, Running};
use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

/// Longer than any test takes on a machine that does much else besides.
const LIMIT: Duration = Duration::from_secs(300);

/// `count` reactors on the CPUs that there are, with little memory.
fn config(count: usize, poll: PollMode) -> MeshConfig {
    let allowed = allowed_cpus().unwrap();
    let mut config = MeshConfig::new(allowed.into_iter().cycle().take(count).collect());
    config.poll = poll;
    // A wake-up that is missed must show, and not end by itself.
    config.sleep_max = Duration::from_secs(3600);
    config.buffer_bytes = 1 << 20;
    config
}

fn adaptive(spin_us: u64) -> PollMode {
    PollMode::Adaptive { spin: Duration::from_micros(spin_us) }
}

fn end<M>(running: Running<M>) {
    running.stop();
    running.join();
}

#[derive(Debug)]
enum Ask {
    Question(u64),
    Answer(u64),
    UrgentQuestion,
    UrgentAnswer,
}

/// Asks every core, itself included, so many questions, so many at a time, and answers whatever it is asked.
struct Asker {
    questions: u64,
    window: u64,
    asked: Vec<u64>,
    answered: Vec<u64>,
    urgent: bool,
    report: Sender<Core>,
    reported: bool,
}

impl Asker {
    fn make(
        questions: u64,
        window: u64,
        urgent: bool,
    ) -> (impl Fn(Core) -> Asker + Send + Sync + 'static, Receiver<Core>) {
        let (report, reports) = channel();
        let make = move |_| Asker {
            questions,
            window,
            asked: Vec::new(),
            answered: Vec::new(),
            urgent,
            report: report.clone(),
            reported: false,
        };
        (make, reports)
    }

    fn ask(&mut self, cx: &mut Cx<'_, Ask>, to: usize) {
        while self.asked[to] < self.questions && self.asked[to] - self.answered[to] < self.window {
            let number = self.asked[to];
            self.asked[to] += 1;
            if self.urgent && number.is_multiple_of(3) {
                cx.outbox.request_urgent(Core(to as u16), Ask::UrgentQuestion);
            } else {
                cx.outbox.request(Core(to as u16), Ask::Question(number));
            }
        }
    }

    fn answer(&mut self, cx: &mut Cx<'_, Ask>, from: Core) {
        self.answered[from.index()] += 1;
        self.ask(cx, from.index());
        if !self.reported && self.answered.iter().all(|&count| count == self.questions) {
            self.reported = true;
            let _ = self.report.send(cx.core);
        }
    }
}

impl Service for Asker {
    type Message = Ask;

    fn start(&mut self, cx: &mut Cx<'_, Ask>) {
        self.asked = vec![0; cx.outbox.cores()];
        self.answered = vec![0; cx.outbox.cores()];
        for to in 0..cx.outbox.cores() {
            self.ask(cx, to);
        }
    }

    fn on_message(&mut self, cx: &mut Cx<'_, Ask>, from: Core, message: Ask) {
        match message {
            Ask::Question(number) => cx.outbox.reply(from, Ask::Answer(number)),
            Ask::UrgentQuestion => cx.outbox.reply_urgent(from, Ask::UrgentAnswer),
            Ask::Answer(number) => {
                assert!(self.urgent || number == self.answered[from.index()], "answers come in order");
                self.answer(cx, from);
            }
            Ask::UrgentAnswer => self.answer(cx, from),
        }
    }

    fn on_disk(&mut self, _: &mut Cx<'_, Ask>, _: DiskDone) {}
    fn on_ready(&mut self, _: &mut Cx<'_, Ask>, _: u64, _: Ready) {}
    fn on_timer(&mut self, _: &mut Cx<'_, Ask>, _: u64) {}

    fn turn(&mut self, _: &mut Cx<'_, Ask>) -> Activity {
        Activity::Idle
    }

    fn before_sleep(&mut self, _: &mut Cx<'_, Ask>) {}

    fn stopped(&mut self, cx: &mut Cx<'_, Ask>) -> bool {
        cx.outbox.outstanding() == 0
    }
}

fn ask_all(mut config: MeshConfig, questions: u64, window: u64, urgent: bool) -> Running<Ask> {
    let cores = config.cpus.len();
    config.credits.ordinary = 16;
    config.credits.urgent = 2;
    let (make, reports) = Asker::make(questions, window, urgent);
    let running = Mesh::start(config, make).unwrap();
    for _ in 0..cores {
        reports.recv_timeout(LIMIT).expect("every core has all its answers within the limit");
    }
    running
}

/// Goal: everybody's questions are answered, in order, in each poll mode, also where reactors share a CPU and
/// ask more than they have credits for.
#[test]
fn all_cores_ask_all() {
    for (cores, poll) in [(1, adaptive(50)), (2, PollMode::Busy), (2, adaptive(50)), (4, adaptive(0))] {
        let running = ask_all(config(cores, poll), 2000, 100, true);
        std::thread::sleep(Duration::from_millis(20));
        let counters = running.counters();
        let sent: u64 = counters.iter().map(|counters| counters.messages_sent).sum();
        let received: u64 = counters.iter().map(|counters| counters.messages_received).sum();
        let all = 2 * 2000 * (cores * cores) as u64;
        assert_eq!((sent, received), (all, all), "{cores} cores, {poll:?}");
        assert!(counters.iter().all(|counters| counters.batches_sent < counters.messages_sent), "batches");
        end(running);
    }
}

/// Goal: no wake-up is missed. Method: a million messages between cores that sleep whenever they find nothing, in
/// small windows, so that sleeping and sending meet in every way they can.
#[test]
fn a_million_messages_wake_whoever_sleeps() {
    let mut messages = 0;
    let mut sleeps = 0;
    for (questions, window) in [(10_000, 1), (40_000, 3), (75_000, 24)] {
        let running = ask_all(config(2, adaptive(0)), questions, window, false);
        std::thread::sleep(Duration::from_millis(20));
        for counters in running.counters() {
            messages += counters.messages_received;
            sleeps += counters.sleeps;
        }
        end(running);
    }
    assert!(messages >= 1_000_000, "{messages}");
    assert!(sleeps >= 10_000, "{sleeps} sleeps: the cores were meant to sleep");
}

/// Goal: a stop reaches sleeping cores, and a sleeping core hears the outside, up to its quota and no further.
#[test]
fn the_outside_and_a_stop_reach_sleepers() {
    struct Echo {
        report: Sender<(Core, Core, u64)>,
    }
    impl Service for Echo {
        type Message = u64;
        fn start(&mut self, _: &mut Cx<'_, u64>) {}
        fn on_message(&mut self, cx: &mut Cx<'_, u64>, from: Core, message: u64) {
            let _ = self.report.send((cx.core, from, message));
        }
        fn on_disk(&mut self, _: &mut Cx<'_, u64>, _: DiskDone) {}
        fn on_ready(&mut self, _: &mut Cx<'_, u64>, _: u64, _: Ready) {}
        fn on_timer(&mut self, _: &mut Cx<'_, u64>, _: u64) {}
        fn turn(&mut self, _: &mut Cx<'_, u64>) -> Activity {
            Activity::Idle
        }
        fn before_sleep(&mut self, _: &mut Cx<'_, u64>) {}
        fn stopped(&mut self, _: &mut Cx<'_, u64>) -> bool {
            true
        }
    }
    let (report, reports) = channel();
    let running = Mesh::start(config(2, adaptive(10)), move |_| Echo { report: report.clone() }).unwrap();
    for number in 0..200 {
        let to = Core((number % 2) as u16);
        if number % 10 == 0 {
            std::thread::sleep(Duration::from_millis(2));
        }
        let mut message = number;
        while let Err(RemoteFull(back)) = running.remote(to).post(message) {
            message = back;
            std::thread::yield_now();
        }
        assert_eq!(reports.recv_timeout(LIMIT).unwrap(), (to, to, number));
    }
    std::thread::sleep(Duration::from_millis(50));
    assert!(running.counters().iter().all(|counters| counters.sleeps > 0 && counters.wakes > 0));
    let before = Instant::now();
    end(running);
    assert!(before.elapsed() < Duration::from_secs(20));
}

/// Goal: a timer ends the sleep in time, neither before nor much after, and a cancelled one doesn't.
#[test]
fn timers_wake_a_sleeper() {
    struct Alarm {
        report: Sender<(u64, Duration)>,
        started: reactor::clock::Time,
    }
    impl Service for Alarm {
        type Message = ();
        fn start(&mut self, cx: &mut Cx<'_, ()>) {
            self.started = cx.now;
            for ms in [40u64, 20, 60] {
                let timer = cx.timers.set(cx.now + Duration::from_millis(ms), ms);
                if ms == 40 {
                    assert!(cx.timers.cancel(timer));
                }
            }
        }
        fn on_message(&mut self, _: &mut Cx<'_, ()>, _: Core, (): ()) {}
        fn on_disk(&mut self, _: &mut Cx<'_, ()>, _: DiskDone) {}
        fn on_ready(&mut self, _: &mut Cx<'_, ()>, _: u64, _: Ready) {}
        fn on_timer(&mut self, cx: &mut Cx<'_, ()>, token: u64) {
            let _ = self.report.send((token, cx.now.since(self.started)));
        }
        fn turn(&mut self, _: &mut Cx<'_, ()>) -> Activity {
            Activity::Idle
        }
        fn before_sleep(&mut self, _: &mut Cx<'_, ()>) {}
        fn stopped(&mut self, _: &mut Cx<'_, ()>) -> bool {
            true
        }
    }
    let (report, reports) = channel();
    let make = move |_| Alarm { report: report.clone(), started: reactor::clock::Time::ZERO };
    let running = Mesh::start(config(1, adaptive(50)), make).unwrap();
    for ms in [20, 60] {
        let (token, after) = reports.recv_timeout(LIMIT).unwrap();
        assert_eq!(token, ms);
        assert!(after >= Duration::from_millis(ms), "{after:?}");
    }
    end(running);
}

/// A buffer on its way: written to the disk by another core than it came from, and read back by a third way.
enum Parcel {
    Write(Buf, u64),
    Written(Buf, u64),
}

/// Core 0 sends buffers of its own pool to core 1, which writes them with its ring and sends them back; core 0
/// reads the pages and compares.
struct Courier {
    pages: u64,
    verified: u64,
    report: Sender<u64>,
}

impl Service for Courier {
    type Message = Parcel;

    fn start(&mut self, cx: &mut Cx<'_, Parcel>) {
        if cx.core == Core(0) {
            assert!(cx.ring.buffers_registered(), "as this machine's limits allow");
            for page in 0..self.pages {
                let mut buf = cx.pool.take(PAGE_BYTES).unwrap();
                buf.fill(page as u8 ^ 0x5a);
                cx.outbox.request(Core(1), Parcel::Write(buf, page));
            }
        }
    }

    fn on_message(&mut self, cx: &mut Cx<'_, Parcel>, _: Core, message: Parcel) {
        let (action, buf, page) = match message {
            Parcel::Write(buf, page) => (DiskAction::Write { durable: page % 2 == 0 }, buf, page),
            Parcel::Written(mut buf, page) => {
                buf.fill(0);
                (DiskAction::Read, buf, page)
            }
        };
        cx.ring.disk(DiskOp {
            user: page,
            file: FileId(0),
            action,
            offset_bytes: page * PAGE_BYTES as u64,
            bytes: PAGE_BYTES as u64,
            buf: Some(buf),
            buf_offset: 0,
        });
    }

    fn on_disk(&mut self, cx: &mut Cx<'_, Parcel>, done: DiskDone) {
        let buf = done.buf.unwrap();
        assert_eq!(done.result, Ok(PAGE_BYTES as u32));
        if cx.core == Core(1) {
            cx.outbox.reply(Core(0), Parcel::Written(buf, done.user));
            return;
        }
        assert!(buf.iter().all(|&byte| byte == done.user as u8 ^ 0x5a));
        self.verified += 1;
        if self.verified == self.pages {
            let _ = self.report.send(self.verified);
        }
    }

    fn on_ready(&mut self, _: &mut Cx<'_, Parcel>, _: u64, _: Ready) {}
    fn on_timer(&mut self, _: &mut Cx<'_, Parcel>, _: u64) {}

    fn turn(&mut self, _: &mut Cx<'_, Parcel>) -> Activity {
        Activity::Idle
    }

    fn before_sleep(&mut self, _: &mut Cx<'_, Parcel>) {}

    fn stopped(&mut self, cx: &mut Cx<'_, Parcel>) -> bool {
        cx.ring.disk_in_flight() == 0
    }
}

/// Goal: a buffer of one core works in another core's ring, and finds its way home.
#[test]
fn buffers_cross_cores() {
    let program = std::env::current_exe().unwrap();
    let file = tempfile::tempfile_in(program.parent().unwrap()).unwrap();
    file.set_len(64 * PAGE_BYTES as u64).unwrap();
    let (report, reports) = channel();
    for poll in [PollMode::Busy, adaptive(20)] {
        let mut config = config(2, poll);
        config.buffer_bytes = 4 << 20;
        config.files = vec![OwnedFd::from(file.try_clone().unwrap())];
        let report = report.clone();
        let make = move |_| Courier { pages: 64, verified: 0, report: report.clone() };
        let running = Mesh::start(config, make).unwrap();
        assert_eq!(reports.recv_timeout(LIMIT).unwrap(), 64);
        std::thread::sleep(Duration::from_millis(20));
        let disk_ops: u64 = running.counters().iter().map(|counters| counters.disk_completions).sum();
        assert_eq!(disk_ops, 128);
        end(running);
    }
}

/// Core 0 listens and hands each connection to core 1, which sends back what it receives. A connection that was
/// silent for a turn before a sleep is watched, and polled again once it is ready.
struct Echo {
    address: Sender<SocketAddr>,
    listener: Option<Listener>,
    listener_watch: Option<WatchId>,
    connections: Vec<Option<Connection>>,
}

struct Connection {
    stream: Stream,
    watch: Option<WatchId>,
    unsent: Vec<u8>,
}

const LISTENER: u64 = u64::MAX;

impl Service for Echo {
    type Message = Option<Stream>;

    fn start(&mut self, cx: &mut Cx<'_, Option<Stream>>) {
        if cx.core == Core(0) {
            let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), SocketConfig::default()).unwrap();
            let _ = self.address.send(listener.local_addr().unwrap());
            self.listener = Some(listener);
        }
    }

    fn on_message(&mut self, cx: &mut Cx<'_, Option<Stream>>, from: Core, message: Option<Stream>) {
        if let Some(stream) = message {
            self.connections.push(Some(Connection { stream, watch: None, unsent: Vec::new() }));
            cx.outbox.reply(from, None);
        }
    }

    fn on_disk(&mut self, _: &mut Cx<'_, Option<Stream>>, _: DiskDone) {}

    fn on_ready(&mut self, _: &mut Cx<'_, Option<Stream>>, token: u64, _: Ready) {
        if token == LISTENER {
            self.listener_watch = None;
        } else if let Some(connection) = &mut self.connections[token as usize] {
            connection.watch = None;
        }
    }

    fn on_timer(&mut self, _: &mut Cx<'_, Option<Stream>>, _: u64) {}

    fn turn(&mut self, cx: &mut Cx<'_, Option<Stream>>) -> Activity {
        let mut activity = Activity::Idle;
        if let Some(listener) = &self.listener
            && self.listener_watch.is_none()
        {
            let accepted = listener.accept(4, |stream| cx.outbox.request(Core(1), Some(stream))).unwrap();
            if accepted.count > 0 {
                activity = Activity::Busy;
            }
        }
        for place in &mut self.connections {
            let Some(connection) = place else { continue };
            if connection.watch.is_some() {
                continue;
            }
            let mut bytes = [0u8; 4096];
            if connection.unsent.is_empty() {
                match connection.stream.recv(&mut [IoSliceMut::new(&mut bytes)]) {
                    Ok(Moved::Bytes(count)) => {
                        connection.unsent.extend_from_slice(&bytes[..count]);
                        cx.counters.bytes_received += count as u64;
                    }
                    Ok(Moved::Blocked) => continue,
                    Ok(Moved::End) | Err(_) => {
                        *place = None;
                        continue;
                    }
                }
            }
            activity = Activity::Busy;
            match connection.stream.send(&[IoSlice::new(&connection.unsent)]) {
                Ok(Moved::Bytes(count)) => drop(connection.unsent.drain(..count)),
                Ok(_) => {}
                Err(_) => *place = None,
            }
        }
        activity
    }

    fn before_sleep(&mut self, cx: &mut Cx<'_, Option<Stream>>) {
        if let Some(listener) = &self.listener
            && self.listener_watch.is_none()
        {
            self.listener_watch = cx.ring.watch(listener, LISTENER, Interest::Readable);
        }
        for (token, place) in (0u64..).zip(&mut self.connections) {
            if let Some(connection) = place
                && connection.watch.is_none()
            {
                let interest =
                    if connection.unsent.is_empty() { Interest::Readable } else { Interest::Writable };
                connection.watch = cx.ring.watch(&connection.stream, token, interest);
            }
        }
    }

    fn stopped(&mut self, _: &mut Cx<'_, Option<Stream>>) -> bool {
        true
    }
}

/// Goal: connections made on one core are served by another, whether it polls or sleeps, and watching and
/// polling lose nothing between them.
#[test]
fn echoes_over_tcp() {
    for poll in [PollMode::Busy, adaptive(0), adaptive(50)] {
        let (address, addresses) = channel();
        let make = move |_| Echo {
            address: address.clone(),
            listener: None,
            listener_watch: None,
            connections: Vec::new(),
        };
        let running = Mesh::start(config(2, poll), make).unwrap();
        let address = addresses.recv_timeout(LIMIT).unwrap();
        std::thread::scope(|scope| {
            for client in 0..3u8 {
                scope.spawn(move || {
                    let mut peer = TcpStream::connect(address).unwrap();
                    peer.set_nodelay(true).unwrap();
                    peer.set_read_timeout(Some(LIMIT)).unwrap();
                    for round in 0..300usize {
                        if round % 100 == 0 {
                            std::thread::sleep(Duration::from_millis(3));
                        }
                        let sent = vec![client ^ round as u8; 1 + round * 37 % 9000];
                        peer.write_all(&sent).unwrap();
                        let mut received = vec![0; sent.len()];
                        peer.read_exact(&mut received).unwrap();
                        assert!(received == sent);
                    }
                });
            }
        });
        end(running);
    }
}

/// Goal: what can't start says which CPU or limit is in the way, and leaves no thread behind.
#[test]
fn a_start_that_fails_says_why() {
    let threads = || {
        let names = std::fs::read_dir("/proc/self/task").unwrap();
        let is_ours = |name: Vec<u8>| name.starts_with(b"pollux-");
        names
            .filter(|task| {
                is_ours(std::fs::read(task.as_ref().unwrap().path().join("comm")).unwrap_or_default())
            })
            .count()
    };
    let start = |config| {
        let (make, _reports) = Asker::make(0, 0, false);
        Mesh::start(config, make).unwrap_err().to_string()
    };
    let mut outside = config(1, PollMode::Busy);
    outside.cpus = vec![1023];
    let error = start(outside);
    assert!(error.contains("CPU 1023") && error.contains("cpuset"), "{error}");
    let mut none = config(1, PollMode::Busy);
    none.cpus.clear();
    assert!(start(none).contains("CPU list is empty"));
    let mut files = config(2, PollMode::Busy);
    files.ring.files_max = (1 << 20) + 1;
    let error = start(files);
    assert!(error.contains("reactor ") && error.contains("files"), "{error}");
    // Other tests of this program run reactors, too; it is only that none of ours stay for ever.
    let deadline = Instant::now() + LIMIT;
    while threads() > 0 {
        assert!(Instant::now() < deadline, "threads were left behind");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Goal: a reactor that panics takes the process with it, loudly. Method: in a process of its own.
#[test]
fn a_panic_takes_the_process_down() {
    const CHILD: &str = "REACTOR_TEST_PANIC";
    if std::env::var_os(CHILD).is_some() {
        let running = Mesh::start(config(2, adaptive(50)), |core| {
            assert_ne!(core, Core(1), "on purpose");
            Asker::make(0, 0, false).0(core)
        });
        running.unwrap().join();
        return;
    }
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_panic_takes_the_process_down", "--nocapture"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&child.stderr);
    assert!(!child.status.success());
    assert!(text.contains("on purpose") && text.contains("reactor 1 panicked"), "{text}");
}

/// Goal: the memory that a configuration takes is said before it is taken, and grows as it should.
#[test]
fn memory_is_stated() {
    let small = MeshConfig::new(vec![0]).memory::<Ask>();
    let large = MeshConfig::new(vec![0, 1, 2, 3]).memory::<Ask>();
    assert!(small.buffers <= 64 << 20 && small.buffers > 63 << 20);
    assert!(large.total() >= 4 * small.total());
    assert!(large.mailbox < 1 << 20 && large.ring < 4 << 20 && large.outbox_max < 8 << 20, "{large}");
    assert!(large.to_string().contains("4 reactors"));
}
