//! Block devices and a pool on one real reactor with its ring, driven by a list of steps from inside: what a disk makes
//! of them, without sockets.
//!
//! The reactor does one step after the other and hands back what came out of each; a step that fails ends the list.

use super::shuffle::Shuffle;
use super::world::io;
use crate::failure::{Context, Failure};
use crate::load::pattern::Random;
use bdev::io::{BdevId, Done, Op};
use bdev::pool::control::{Answer, PoolInfo, Request};
use bdev::router::Router;
use bdev::shard::Shard;
use bdev::stack::Opened;
use bdev::storage::Storage;
use hdrhistogram::Histogram;
use reactor::Core;
use reactor::buf::Buf;
use reactor::clock::Time;
use reactor::disk::DiskDone;
use reactor::reactor::PollMode;
use reactor::ring::{Ready, RingConfig};
use reactor::service::{Activity, Cx, Service};
use reactor::start::{Mesh, MeshConfig};
use std::collections::VecDeque;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// A step.
#[derive(Clone, Debug)]
pub enum Step {
    /// Ask the pool; what is attached is known as `Target::Volume` of its place among those.
    Ask(Request),
    /// The pool's figures.
    Info,
    /// Requests, so many at once.
    Load(Load),
    /// The whole range is given up.
    Unmap(Target, u64),
    /// Nothing.
    Rest(Duration),
}

/// On what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The bare file.
    Base,
    /// The volume attached at this place.
    Volume(usize),
}

/// In which order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Random, the same again and again.
    Random,
    /// Random, each once.
    Once,
    /// One after the other, each once.
    Sequence,
}

/// Requests of one kind.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Where.
    pub target: Target,
    /// [`Op::Read`] or [`Op::Write`].
    pub op: Op,
    /// Bytes of each.
    pub bytes: u64,
    /// The range, from the start on.
    pub range_bytes: u64,
    /// Order.
    pub order: Order,
    /// How many at once.
    pub depth: usize,
    /// For so long, or until all are done that are to be done once.
    pub time: Duration,
    /// Of the order.
    pub seed: u64,
}

/// What came out of a step.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// Done.
    Done,
    /// Of [`Step::Info`].
    Info(Box<PoolInfo>),
    /// Of [`Step::Load`].
    Load {
        /// How many ended.
        ios: u64,
        /// In how long.
        seconds: f64,
        /// Half of them took no longer, in microseconds.
        median_us: f64,
        /// The mean.
        mean_us: f64,
    },
}

/// Runs `steps` on a reactor on `cpu` with these devices and this pool.
///
/// # Errors
/// The reactor doesn't start, or a step fails.
pub fn run(
    cpu: usize,
    mut devices: Opened,
    pool: bdev::pool::Opened,
    steps: Vec<Step>,
) -> Result<Vec<Outcome>, Failure> {
    let files = devices.take_files();
    let (sender, receiver) = channel();
    let steps = Mutex::new(Some((steps, sender)));
    let parts = Arc::new((devices, pool));
    let config = MeshConfig {
        files,
        ring: RingConfig { operations_max: OPERATIONS_MAX, ..RingConfig::default() },
        poll: PollMode::default(),
        ..MeshConfig::new(vec![cpu])
    };
    let running = Mesh::start(config, move |_| {
        let (steps, outcomes) =
            steps.lock().unwrap_or_else(PoisonError::into_inner).take().expect("one core makes one service");
        Driver {
            parts: Arc::clone(&parts),
            storage: None,
            steps: steps.into(),
            outcomes,
            results: Vec::new(),
            volumes: Vec::new(),
            at: At::Between,
            bufs: Vec::new(),
        }
    })
    .doing("starting a reactor")?;
    let outcome = receiver.recv().unwrap_or_else(|_| Err(Failure::new("the reactor ended early")));
    running.stop();
    running.join();
    outcome
}

/// Longer ones count as this.
const LATENCY_MAX_NS: u64 = 60_000_000_000;
/// Operations that the ring takes at once.
const OPERATIONS_MAX: usize = 4096;

#[derive(Debug)]
enum At {
    Between,
    Asking,
    Loading(Box<Loading>),
    Unmapping,
    Resting(Time),
    Ended,
}

#[derive(Debug)]
struct Loading {
    load: Load,
    random: Random,
    shuffle: Shuffle,
    begun: u64,
    out: usize,
    started: Time,
    last: Time,
    ended: u64,
    latencies: Histogram<u64>,
    /// When each was begun, by its tag.
    begins: Vec<Time>,
    free: Vec<usize>,
}

impl Loading {
    fn new(load: Load, now: Time) -> Loading {
        Loading {
            load,
            random: Random::new(load.seed),
            shuffle: Shuffle::new(load.range_bytes / load.bytes, load.seed),
            begun: 0,
            out: 0,
            started: now,
            last: now,
            ended: 0,
            latencies: Histogram::new_with_bounds(1, LATENCY_MAX_NS, 3)
                .expect("bounds and digits are possible"),
            begins: vec![now; load.depth],
            free: (0..load.depth).collect(),
        }
    }

    /// The next offset, unless it is over.
    fn next(&mut self, now: Time) -> Option<u64> {
        let count = self.load.range_bytes / self.load.bytes;
        if now.since(self.started) >= self.load.time
            || (self.load.order != Order::Random && self.begun == count)
        {
            return None;
        }
        let nth = match self.load.order {
            Order::Random => self.random.below(count),
            Order::Once => self.shuffle.at(self.begun),
            Order::Sequence => self.begun,
        };
        self.begun += 1;
        Some(nth * self.load.bytes)
    }
}

/// See the module.
struct Driver {
    parts: Arc<(Opened, bdev::pool::Opened)>,
    storage: Option<Storage>,
    steps: VecDeque<Step>,
    outcomes: Sender<Result<Vec<Outcome>, Failure>>,
    results: Vec<Outcome>,
    volumes: Vec<BdevId>,
    at: At,
    bufs: Vec<Buf>,
}

impl Driver {
    fn make(&self, cx: &mut Cx<'_, ()>) -> Result<Storage, Failure> {
        let (devices, pool) = &*self.parts;
        let stacks = devices.stacks_for(cx.core, 1, cx.pool).doing("making the devices")?;
        let mut shard = Shard::new(cx.core, stacks);
        shard.add_pool(pool.shard(cx.core, cx.pool).doing("taking the pool's shard")?);
        let router = Router::new(cx.core, 1, devices.geometries());
        Ok(Storage::new(cx.core, 1, router, shard, Vec::new()))
    }

    fn end(&mut self, failure: Option<Failure>) {
        self.at = At::Ended;
        let results = std::mem::take(&mut self.results);
        // Nobody listening means that nobody wants to know.
        let _ = self.outcomes.send(failure.map_or(Ok(results), Err));
    }

    fn stepped(&mut self, outcome: Outcome) {
        self.results.push(outcome);
        self.at = At::Between;
    }

    fn begin(&mut self, cx: &mut Cx<'_, ()>) {
        let Some(step) = self.steps.pop_front() else { return self.end(None) };
        let bdev = |target| match target {
            Target::Base => Some(BdevId(0)),
            Target::Volume(place) => self.volumes.get(place).copied(),
        };
        let Some(storage) = &mut self.storage else { return };
        self.at = match step {
            Step::Ask(request) => {
                storage.ask(0, 1, request, 1_700_000_000);
                At::Asking
            }
            Step::Info => {
                storage.ask(0, 1, Request::Pool, 1_700_000_000);
                At::Asking
            }
            Step::Rest(time) => At::Resting(cx.now + time),
            Step::Unmap(target, bytes) => {
                let Some(bdev) = bdev(target) else { return self.end(Some(Failure::new("no such volume"))) };
                storage.submit(io(bdev, Op::Unmap, 0, bytes, None));
                At::Unmapping
            }
            Step::Load(load) => {
                self.bufs.clear();
                for seed in 0..load.depth as u64 {
                    let Some(mut buf) = cx.pool.take(load.bytes as usize) else {
                        return self.end(Some(Failure::new("too few buffers for the depth")));
                    };
                    let mut random = Random::new(seed + 1);
                    buf.chunks_exact_mut(8)
                        .for_each(|word| word.copy_from_slice(&random.draw().to_le_bytes()));
                    self.bufs.push(buf);
                }
                At::Loading(Box::new(Loading::new(load, Time::now())))
            }
        };
    }

    /// Begins as many requests as are due.
    fn feed(&mut self) {
        let (At::Loading(loading), Some(storage)) = (&mut self.at, &mut self.storage) else { return };
        if self.bufs.is_empty() {
            return;
        }
        let bdev = match loading.load.target {
            Target::Base => BdevId(0),
            Target::Volume(place) => self.volumes[place],
        };
        let now = Time::now();
        while !self.bufs.is_empty()
            && let Some(offset) = loading.next(now)
        {
            let Some(tag) = loading.free.pop() else { unreachable!("as many tags as buffers") };
            loading.begins[tag] = now;
            loading.out += 1;
            let request = io(bdev, loading.load.op, offset, loading.load.bytes, self.bufs.pop());
            storage.submit(bdev::io::Io { tag: bdev::io::Tag(tag as u64), ..request });
        }
        if loading.out == 0 {
            let outcome = Outcome::Load {
                ios: loading.ended,
                seconds: loading.last.since(loading.started).as_secs_f64(),
                median_us: loading.latencies.value_at_quantile(0.5) as f64 / 1e3,
                mean_us: loading.latencies.mean() / 1e3,
            };
            self.stepped(outcome);
        }
    }

    fn ended(&mut self, done: Done) {
        if let Err(error) = done.result {
            return self
                .end(Some(Failure::new(format!("{:?} at block {}: {error:?}", done.io.op, done.io.lba))));
        }
        match &mut self.at {
            At::Loading(loading) => {
                let now = Time::now();
                let tag = done.io.tag.0 as usize;
                loading.latencies.saturating_record(now.since(loading.begins[tag]).as_nanos() as u64);
                loading.free.push(tag);
                loading.out -= 1;
                loading.ended += 1;
                loading.last = now;
                self.bufs.extend(done.io.buf);
            }
            At::Unmapping => self.stepped(Outcome::Done),
            _ => {}
        }
    }
}

impl Service for Driver {
    type Message = ();

    fn start(&mut self, cx: &mut Cx<'_, ()>) {
        match self.make(cx) {
            Ok(storage) => self.storage = Some(storage),
            Err(failure) => self.end(Some(failure)),
        }
    }

    fn on_message(&mut self, _: &mut Cx<'_, ()>, _: Core, (): ()) {}

    fn on_disk(&mut self, _: &mut Cx<'_, ()>, done: DiskDone) {
        if let Some(storage) = &mut self.storage {
            storage.complete(done);
        }
    }

    fn on_ready(&mut self, _: &mut Cx<'_, ()>, _: u64, _: Ready) {}

    fn on_timer(&mut self, _: &mut Cx<'_, ()>, _: u64) {}

    fn turn(&mut self, cx: &mut Cx<'_, ()>) -> Activity {
        if matches!(self.at, At::Between) {
            self.begin(cx);
        }
        if let At::Resting(until) = self.at
            && cx.now >= until
        {
            self.stepped(Outcome::Done);
        }
        let Some(storage) = &mut self.storage else { return Activity::Idle };
        let mut busy = storage.turn(cx.now);
        if matches!(self.at, At::Asking)
            && let Some((_, answer)) = storage.poll_answer()
        {
            match answer {
                Ok(Answer::Pool(info)) => self.stepped(Outcome::Info(info)),
                Ok(Answer::Attached { bdev, .. }) => {
                    self.volumes.push(bdev);
                    self.stepped(Outcome::Done);
                }
                Ok(_) => self.stepped(Outcome::Done),
                Err(refusal) => self.end(Some(Failure::new(refusal.to_string()))),
            }
            busy = true;
        }
        loop {
            let mut moved = false;
            self.feed();
            while let Some(done) = self.storage.as_mut().and_then(Storage::poll_done) {
                moved = true;
                self.ended(done);
            }
            let Some(storage) = &mut self.storage else { break };
            while cx.ring.disk_in_flight() < OPERATIONS_MAX
                && let Some(op) = storage.poll_disk()
            {
                moved = true;
                cx.ring.disk(op);
            }
            if !moved {
                break;
            }
            busy = true;
        }
        // Asking, resting and what lies between steps have nothing that would wake a sleeper.
        if busy || matches!(self.at, At::Between | At::Asking | At::Resting(_)) {
            Activity::Busy
        } else {
            Activity::Idle
        }
    }

    fn before_sleep(&mut self, _: &mut Cx<'_, ()>) {}

    fn stopped(&mut self, cx: &mut Cx<'_, ()>) -> bool {
        cx.ring.disk_in_flight() == 0
    }
}
