//! One core's node: its shard of every device, its router, its portal, and the mail between nodes.
//!
//! This is the only place where the crates meet. A request goes portal → router → shard (here or, by mail, on the
//! owner's core) → ring, and comes back the same way; see `docs/architecture.md`.

use crate::control::answer::Reply;
use bdev::io::{BdevId, Done, Io, Tag};
use bdev::layer::Place;
use bdev::lent::Lent;
use bdev::pool::control::{Against, Answered, Request};
use bdev::router::Router;
use bdev::shard::{self, Shard};
use bdev::stack::Opened;
use bdev::storage::{COPY_BUFS, CopyCounts, CopyIo, Outgoing, RangeStatus, Storage};
use iscsi::admission::Settings;
use iscsi::keep::Keep;
use iscsi::portal::Portal;
use iscsi::target::{self, Below, Env, TICK, Target};
use iscsi::units::UnitChangeError;
use reactor::Core;
use reactor::clock::Time;
use reactor::disk::{DiskDone, FileId};
use reactor::mesh::Outbox;
use reactor::net::{Listener, Stream};
use reactor::reactor::COMPLETIONS_PER_TURN;
use reactor::ring::{MemoryFiles, Ready, Ring};
use reactor::service::{Activity, Cx, Service};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::time::{Duration, SystemTime};
use tracing::warn;
use vaai::change::UnitChange;
use vaai::sense::Sense;
use vaai::server::{DeviceServer, ServerConfig};

/// How long sessions may take to log out when the target stops; the rest are closed.
pub const DRAIN: Duration = Duration::from_secs(5);

/// How long requests that are stuck in a device may hold up the end besides.
const DRAIN_STUCK: Duration = Duration::from_secs(5);

/// Rounds of passing requests on within one turn.
const ROUNDS_MAX: usize = 16;

/// Completions of disks in a turn for each socket that it looks at. Answers to four make one send worth its price, and the initiator
/// makes the next commands of them while the others are on their way.
const COMPLETIONS_A_SOCKET: usize = 4;

/// The tick's timer.
const TICK_TOKEN: u64 = 0;

/// What nodes say to each other.
#[derive(Debug)]
pub enum Message {
    /// Requests of one core for another's shard, and their answers.
    Bdev(shard::Mail),
    /// The asker wants no more of the requests with these tags, each of its device.
    Abandon(Vec<(BdevId, Tag)>),
    /// Between the targets.
    Target(target::Mail),
    /// A connection, accepted elsewhere, for the receiver to serve.
    Adopt(Stream),
    /// The answer to what needs none but to be counted.
    Seen,
    /// From outside: every device is ready, let them in.
    Open(Vec<Listener>),
    /// From outside: new settings.
    Reload(Arc<Settings>),
    /// From outside, to core 0: something is asked of a pool, by its place.
    Ask(usize, Request, Reply<Answered>),
    /// From outside, to core 0: a change of the units.
    Unit(UnitChange, Reply<Result<(), UnitChangeError>>),
    /// From outside: a file that a pool is to use; answered with its number, the same on every core.
    AddFile(Arc<OwnedFd>, Reply<Result<FileId, String>>),
    /// From outside: this core's share of a pool that was just opened, at the next place.
    AddPool(Arc<bdev::pool::Opened>, Reply<Result<(), String>>),
    /// From outside: how many sessions are there?
    Sessions(Reply<usize>),
    /// From outside: what was copied to a unit?
    Copies(u16, Reply<CopyCounts>),
}

/// How much each core has to do: where a new session goes. Written by each core for itself, read by the one that
/// accepts.
#[derive(Debug)]
pub struct Loads(Box<[Load]>);

#[derive(Debug, Default)]
#[repr(align(128))]
struct Load {
    connections: AtomicU64,
    busy_permille: AtomicU64,
}

impl Loads {
    /// For `cores` cores.
    pub fn new(cores: usize) -> Loads {
        Loads((0..cores).map(|_| Load::default()).collect())
    }

    /// The core with the least to do: by how busy it was lately, in steps of a tenth, then by its connections.
    /// The connection is counted there at once, so that a burst spreads.
    fn take_least_busy(&self) -> Core {
        let score = |load: &Load| {
            let connections = load.connections.load(Ordering::Relaxed);
            (load.busy_permille.load(Ordering::Relaxed) / 100 + connections, connections)
        };
        let least = (0..self.0.len()).min_by_key(|&core| score(&self.0[core])).unwrap_or(0);
        self.0[least].connections.fetch_add(1, Ordering::Relaxed);
        Core(least as u16)
    }
}

/// What every node is made from, the same for all cores.
#[derive(Debug)]
pub struct Recipe {
    /// The devices, opened.
    pub devices: Opened,
    /// The pools, opened.
    pub pools: Vec<bdev::pool::Opened>,
    /// The units.
    pub server: ServerConfig,
    /// The target.
    pub settings: Arc<Settings>,
    /// All cores' loads.
    pub loads: Arc<Loads>,
    /// How many cores there are.
    pub cores: u16,
    /// Operations that a ring takes at once.
    pub disk_operations_max: usize,
    /// Told once by each core: it is ready, or why it can't be.
    pub ready: Sender<Result<Core, String>>,
}

/// What a node has once it has started.
#[derive(Debug)]
struct Parts {
    storage: Storage,
    portal: Portal,
    abandoned: Abandoned,
    /// What was asked from outside, by ticket.
    asked: BTreeMap<u64, Reply<Answered>>,
    units: BTreeMap<u64, Reply<Result<(), UnitChangeError>>>,
    /// What pools keep for the target, by ticket; and its ticket.
    keeps: BTreeMap<u64, u64>,
    tickets: u64,
    /// Commands that were done at once, as of the last turn.
    straight: u64,
    /// Files that are read at once.
    memory: MemoryFiles,
}

/// What was given up and is still to be told to other cores, by core. It leaves once a turn, and before a barrier: a
/// reset or a lost session gives up hundreds of tasks at once, and each may have requests with every core.
type Abandoned = Box<[Vec<(BdevId, Tag)>]>;

/// One core's service.
#[derive(Debug)]
pub struct Node {
    recipe: Arc<Recipe>,
    /// `None` before the start, and if the core's share of a device could not be made.
    parts: Option<Parts>,
    /// Busy time when the load was last looked at, and when that was.
    busy_ns: u64,
    looked_at: Time,
    stopping: Option<Time>,
    closed: bool,
}

impl Node {
    /// A node about to start.
    pub fn new(recipe: Arc<Recipe>) -> Node {
        Node { recipe, parts: None, busy_ns: 0, looked_at: Time::ZERO, stopping: None, closed: false }
    }

    /// On the core's own thread, so that its memory lies on its node.
    fn make_parts(&self, cx: &mut Cx<'_, Message>) -> Result<Parts, String> {
        let Recipe { devices, pools, server, settings, cores, .. } = &*self.recipe;
        let stacks = devices.stacks_for(cx.core, *cores, cx.pool).map_err(|error| error.to_string())?;
        let mut shard = Shard::new(cx.core, stacks);
        let mut copy_bufs = Vec::new();
        for pool in pools {
            shard.add_pool(pool.shard(cx.core, cx.pool).map_err(|error| error.to_string())?);
        }
        // Not more than sessions can do without; without any nothing could be copied as bytes.
        let count = COPY_BUFS.min(cx.pool.free()[2] / 4).max(1);
        copy_bufs.extend((0..count).map_while(|_| cx.pool.take(reactor::buf::BUF_BYTES_MAX)));
        let [.., large_buffers] = cx.pool.free();
        let server = DeviceServer::new(cx.core, server.clone());
        let target = Target::new(cx.core, *cores, Arc::clone(settings), server, large_buffers as u32);
        let router = Router::new(cx.core, *cores, devices.geometries());
        Ok(Parts {
            storage: Storage::new(cx.core, *cores, router, shard, copy_bufs),
            portal: Portal::new(target),
            abandoned: (0..*cores).map(|_| Vec::new()).collect(),
            asked: BTreeMap::new(),
            units: BTreeMap::new(),
            keeps: BTreeMap::new(),
            tickets: 0,
            straight: 0,
            memory: cx.ring.memory_files(),
        })
    }

    /// Carries requests and their answers as far as they go now. Whether anything moved.
    fn carry(&mut self, cx: &mut Cx<'_, Message>) -> bool {
        let mut any = false;
        for _ in 0..ROUNDS_MAX {
            let mut moved = false;
            let Some(Parts { storage, portal, abandoned, memory, .. }) = &mut self.parts else {
                return false;
            };
            moved |= Lower { storage, abandoned, outbox: cx.outbox, memory, core: cx.core }.carry();
            while cx.ring.disk_in_flight() < self.recipe.disk_operations_max
                && let Some(op) = storage.poll_disk()
            {
                moved = true;
                cx.ring.disk(op);
            }
            while let Some(done) = storage.poll_done() {
                moved = true;
                cx.counters.ios += 1;
                let mut lower = Lower { storage, abandoned, outbox: cx.outbox, memory, core: cx.core };
                portal.target.io_done(done, &mut env(cx.now, cx.pool, &mut lower));
            }
            while let Some(copied) = storage.poll_copied() {
                moved = true;
                let mut lower = Lower { storage, abandoned, outbox: cx.outbox, memory, core: cx.core };
                portal.target.copy_done(&copied, &mut env(cx.now, cx.pool, &mut lower));
            }
            while let Some(RangeStatus { tag, bytes, mapped, .. }) = storage.poll_status() {
                moved = true;
                let mut lower = Lower { storage, abandoned, outbox: cx.outbox, memory, core: cx.core };
                portal.target.status_done(tag, bytes, mapped, &mut env(cx.now, cx.pool, &mut lower));
            }
            if !moved {
                return any;
            }
            any = true;
        }
        any
    }

    fn with_portal<R>(
        &mut self,
        cx: &mut Cx<'_, Message>,
        act: impl FnOnce(&mut Portal, &mut Env<'_>, &mut Ring) -> R,
    ) -> R
    where
        R: Default,
    {
        let Some(Parts { storage, portal, abandoned, memory, .. }) = &mut self.parts else {
            return R::default();
        };
        let mut lower = Lower { storage, abandoned, outbox: cx.outbox, memory, core: cx.core };
        act(portal, &mut env(cx.now, cx.pool, &mut lower), cx.ring)
    }

    fn publish_load(&mut self, cx: &Cx<'_, Message>) {
        let passed = cx.now.since(self.looked_at).as_nanos() as u64;
        if let (Some(load), Some(parts)) = (self.recipe.loads.0.get(cx.core.index()), &self.parts) {
            let busy = cx.counters.busy_ns - self.busy_ns;
            load.busy_permille.store((busy * 1000).checked_div(passed).unwrap_or(0), Ordering::Relaxed);
            load.connections.store(parts.portal.target.load() as u64, Ordering::Relaxed);
        }
        self.busy_ns = cx.counters.busy_ns;
        self.looked_at = cx.now;
    }
}

fn env<'a>(now: Time, pool: &'a mut reactor::buf::Pool, below: &'a mut dyn Below) -> Env<'a> {
    Env { now, pool, below }
}

/// Takes what is reserved of volumes to their pools. Whether there was something.
fn keep_reservations(
    portal: &mut Portal,
    storage: &mut Storage,
    keeps: &mut BTreeMap<u64, u64>,
    tickets: &mut u64,
) -> bool {
    let mut any = false;
    while let Some(Keep { ticket, bdev, bytes }) = portal.target.poll_keep() {
        any = true;
        *tickets += 1;
        keeps.insert(*tickets, ticket);
        let Some((pool, _)) = shard::pool_of(bdev) else { unreachable!("only volumes have them kept") };
        storage.ask(pool, *tickets, Request::ReservationsPut { bdev, bytes }, wall_seconds());
    }
    any
}

fn wall_seconds() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// How a pool's answer is told to the nexus whose reservations it was to keep.
fn as_kept(answer: Answered) -> Result<(), Sense> {
    match answer {
        Ok(_) => Ok(()),
        Err(refusal) => {
            warn!("reservations could not be kept: {}", refusal.what);
            match refusal.against {
                Against::NoSpace => Err(Sense::INSUFFICIENT_REGISTRATION_RESOURCES),
                _ => Err(Sense::INTERNAL_TARGET_FAILURE),
            }
        }
    }
}

/// What the target calls when it wants something of the layers below, or of other cores.
struct Lower<'a> {
    storage: &'a mut Storage,
    abandoned: &'a mut Abandoned,
    outbox: &'a mut Outbox<Message>,
    memory: &'a MemoryFiles,
    core: Core,
}

impl Lower<'_> {
    /// Carries what the storage has for other cores to them. Whether there was something.
    fn carry(&mut self) -> bool {
        let mut any = false;
        while let Some(Outgoing { to, reply, mail }) = self.storage.poll_mail() {
            any = true;
            if reply {
                self.outbox.reply(to, Message::Bdev(mail));
            } else {
                self.outbox.request(to, Message::Bdev(mail));
            }
        }
        any
    }

    /// Tells a core what was given up, behind the requests that it is about.
    fn tell_abandoned(&mut self, to: Core) {
        let tags = &mut self.abandoned[to.index()];
        if !tags.is_empty() {
            let tags = std::mem::take(tags);
            self.outbox.request(to, Message::Abandon(tags));
        }
    }

    fn tell_all_abandoned(&mut self) {
        for to in 0..self.abandoned.len() {
            self.tell_abandoned(Core(to as u16));
        }
    }
}

impl Below for Lower<'_> {
    fn submit(&mut self, io: Io) {
        self.storage.submit(io);
    }

    fn read_now(&mut self, bdev: BdevId, lba: u64, buf: &mut [u8]) -> bool {
        if self.storage.read_now(bdev, lba, buf) {
            return true;
        }
        // Where files lie in memory, reading is a call that doesn't wait.
        if self.memory.is_empty() {
            return false;
        }
        match self.storage.place_now(bdev, lba, buf.len()) {
            Some(Place::Zeroes) => buf.fill(0),
            Some(Place::File { file, offset_bytes }) if self.memory.read(file, offset_bytes, buf) => {
                self.storage.count_read(bdev, buf.len());
            }
            _ => return false,
        }
        true
    }

    fn lend_now(&mut self, bdev: BdevId, lba: u64, bytes: usize) -> Option<Lent> {
        self.storage.lend_now(bdev, lba, bytes)
    }

    fn write_now(&mut self, bdev: BdevId, lba: u64, data: &[u8]) -> bool {
        self.storage.write_now(bdev, lba, data)
    }

    fn status(&mut self, tag: Tag, bdev: BdevId, from_bytes: u64, bytes: u64) {
        self.storage.status(tag, bdev, from_bytes, bytes);
    }

    fn abandon(&mut self, bdev: BdevId, tag: Tag) {
        // A request that is still here would reach its shard behind the word that nobody wants it, and be carried out.
        self.carry();
        let (abandoned, core) = (&mut *self.abandoned, self.core);
        let Storage { router, shard, .. } = &mut *self.storage;
        let mut tell = |to: Core, bdev: BdevId, tag: Tag| {
            if to == core {
                shard.abandon(core, bdev, tag);
            } else {
                abandoned[to.index()].push((bdev, tag));
            }
        };
        router.abandon(tag, &mut tell);
        // Its data requests go under its own tag, and may be with any shard.
        for to in 0..self.outbox.cores() {
            tell(Core(to as u16), bdev, tag);
        }
    }

    fn copy(&mut self, io: CopyIo) {
        self.storage.copy(io);
    }

    fn abandon_copies(&mut self, tag: Tag) {
        self.storage.abandon_copies(tag);
    }

    fn post(&mut self, to: Core, mail: target::Mail) {
        match mail {
            // In one line with the requests and abandonments that they are to follow.
            target::Mail::Barrier { .. } => {
                self.carry();
                self.tell_abandoned(to);
                self.outbox.request(to, Message::Target(mail));
            }
            target::Mail::BarrierPassed { .. } => self.outbox.reply(to, Message::Target(mail)),
            _ => self.outbox.request_urgent(to, Message::Target(mail)),
        }
    }
}

impl Service for Node {
    type Message = Message;

    fn start(&mut self, cx: &mut Cx<'_, Message>) {
        self.looked_at = cx.now;
        cx.timers.set(cx.now + TICK, TICK_TOKEN);
        let made = self.make_parts(cx).map(|parts| self.parts = Some(parts));
        // Nobody listening any more means that the start was given up: a stop is on its way.
        let _ = self.recipe.ready.send(made.map(|()| cx.core));
    }

    fn expect(&mut self, message: &Message) {
        if let (Message::Bdev(mail), Some(parts)) = (message, &self.parts) {
            parts.storage.expect(mail);
        }
    }

    fn on_message(&mut self, cx: &mut Cx<'_, Message>, from: Core, message: Message) {
        let Some(parts) = &mut self.parts else { return };
        match message {
            Message::Bdev(shard::Mail::Submit(mut io)) => {
                if parts.storage.perform_now(&mut io) {
                    let done = shard::Mail::Done(Done { io, result: Ok(()) });
                    cx.outbox.reply(from, Message::Bdev(done));
                } else {
                    parts.storage.on_request(from, shard::Mail::Submit(io));
                }
            }
            Message::Bdev(
                mail @ (shard::Mail::Swap(_)
                | shard::Mail::Edge(_)
                | shard::Mail::PoolAsk(..)
                | shard::Mail::PoolData(..)),
            ) => {
                parts.storage.on_request(from, mail);
            }
            Message::Bdev(
                mail @ (shard::Mail::Done(_)
                | shard::Mail::Swapped(..)
                | shard::Mail::EdgeTold(_)
                | shard::Mail::PoolTell(..)
                | shard::Mail::PoolDataDone(..)),
            ) => {
                parts.storage.on_reply(from, mail);
            }
            Message::Abandon(tags) => {
                for (bdev, tag) in tags {
                    parts.storage.shard.abandon(from, bdev, tag);
                }
                cx.outbox.reply(from, Message::Seen);
            }
            Message::Target(mail) => {
                let is_barrier =
                    matches!(mail, target::Mail::Barrier { .. } | target::Mail::BarrierPassed { .. });
                if !is_barrier {
                    cx.outbox.reply_urgent(from, Message::Seen);
                }
                self.with_portal(cx, |portal, env, _| portal.target.on_mail(from, mail, env));
            }
            Message::Adopt(stream) => {
                cx.outbox.reply_urgent(from, Message::Seen);
                self.with_portal(cx, |portal, env, ring| portal.adopt(stream, env, ring));
            }
            Message::Seen => {}
            Message::Open(listeners) => parts.portal.open(listeners, cx.ring),
            Message::Reload(settings) => parts.portal.target.settings = settings,
            Message::Ask(pool, request, reply) => {
                parts.tickets += 1;
                let ticket = parts.tickets;
                parts.asked.insert(ticket, reply);
                parts.storage.ask(pool, ticket, request, wall_seconds());
            }
            Message::Unit(change, reply) => {
                parts.tickets += 1;
                let ticket = parts.tickets;
                let proposed = self
                    .with_portal(cx, |portal, env, _| portal.target.propose_unit_change(ticket, change, env));
                // Not proposed: too many are under way. The asker hears nothing, and says so in time.
                if let (true, Some(parts)) = (proposed, &mut self.parts) {
                    parts.units.insert(ticket, reply);
                }
            }
            Message::AddFile(file, reply) => {
                reply.send(cx.ring.add_file(&*file).map_err(|error| error.to_string()));
            }
            Message::AddPool(opened, reply) => {
                let made = opened.shard(cx.core, cx.pool).map(|pool| parts.storage.add_pool(pool));
                reply.send(made.map_err(|error| error.to_string()));
            }
            Message::Sessions(reply) => reply.send(parts.portal.target.sessions()),
            Message::Copies(lun, reply) => {
                let counts = parts.portal.target.bdev_of(lun).map(|bdev| parts.storage.copy_counts(bdev));
                reply.send(counts.unwrap_or_default());
            }
        }
    }

    fn on_disk(&mut self, _: &mut Cx<'_, Message>, done: DiskDone) {
        if let Some(parts) = &mut self.parts {
            parts.storage.complete(done);
        }
    }

    fn on_ready(&mut self, cx: &mut Cx<'_, Message>, token: u64, ready: Ready) {
        let mut arrived = Vec::new();
        self.with_portal(cx, |portal, env, _| {
            portal.on_ready(token, ready, env.now, |stream| arrived.push(stream));
        });
        for stream in arrived {
            let core = self.recipe.loads.take_least_busy();
            if core == cx.core {
                self.with_portal(cx, |portal, env, ring| portal.adopt(stream, env, ring));
            } else {
                cx.outbox.request_urgent(core, Message::Adopt(stream));
            }
        }
    }

    fn on_timer(&mut self, cx: &mut Cx<'_, Message>, _: u64) {
        cx.timers.set(cx.now + TICK, TICK_TOKEN);
        self.with_portal(cx, |portal, env, _| portal.target.tick(env));
        self.publish_load(cx);
    }

    fn completions_per_turn(&self) -> usize {
        let sockets = self.parts.as_ref().map_or(1, |parts| parts.portal.hot());
        (COMPLETIONS_A_SOCKET * sockets).clamp(COMPLETIONS_A_SOCKET, COMPLETIONS_PER_TURN)
    }

    fn turn(&mut self, cx: &mut Cx<'_, Message>) -> Activity {
        let mut busy = self.with_portal(cx, Portal::receive);
        busy |= self.parts.as_mut().is_some_and(|parts| parts.storage.turn(cx.now));
        busy |= self.carry(cx);
        self.with_portal(cx, |portal, env, _| portal.target.turn(env));
        busy |= self.carry(cx);
        busy |= self.with_portal(cx, Portal::send);
        if let Some(Parts { storage, portal, abandoned, asked, units, keeps, tickets, memory, .. }) =
            &mut self.parts
        {
            busy |= keep_reservations(portal, storage, keeps, tickets);
            let mut lower = Lower { storage, abandoned, outbox: cx.outbox, memory, core: cx.core };
            lower.carry();
            lower.tell_all_abandoned();
            while let Some((ticket, answer)) = storage.poll_answer() {
                if let Some(keep) = keeps.remove(&ticket) {
                    let mut lower = Lower { storage, abandoned, outbox: cx.outbox, memory, core: cx.core };
                    portal.target.kept(keep, as_kept(answer), &mut env(cx.now, cx.pool, &mut lower));
                } else if let Some(reply) = asked.remove(&ticket) {
                    reply.send(answer);
                }
            }
            while let Some((ticket, made)) = portal.target.poll_unit_change() {
                if let Some(reply) = units.remove(&ticket) {
                    reply.send(made);
                }
            }
        }
        if let Some(parts) = &mut self.parts {
            let straight = parts.portal.target.counters.straight;
            cx.counters.ios += straight - std::mem::replace(&mut parts.straight, straight);
            cx.counters.socket_ops = parts.portal.sends + parts.portal.receives;
        }
        if busy { Activity::Busy } else { Activity::Idle }
    }

    fn before_sleep(&mut self, cx: &mut Cx<'_, Message>) {
        if let Some(parts) = &mut self.parts {
            parts.portal.before_sleep(cx.ring);
        }
    }

    fn stopped(&mut self, cx: &mut Cx<'_, Message>) -> bool {
        let Some(parts) = &mut self.parts else { return true };
        let since = *self.stopping.get_or_insert_with(|| {
            parts.portal.shut(cx.ring);
            parts.portal.target.stop(DRAIN.as_secs() as u16);
            cx.now
        });
        let is_empty = parts.portal.target.load() == 0;
        let is_quiet = is_empty
            && parts.portal.target.sessions() == 0
            && parts.storage.wind_down()
            && parts.storage.in_flight() == 0
            && cx.outbox.outstanding() == 0;
        if !is_empty && !self.closed && cx.now.since(since) >= DRAIN {
            self.closed = true;
            self.with_portal(cx, Portal::close_all);
        }
        is_quiet || cx.now.since(since) >= DRAIN + DRAIN_STUCK
    }
}
