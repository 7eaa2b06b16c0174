//! Goal: whatever the order of things, no buffer is lost, no task leaks, nothing is answered or written after its abort
//! was answered, every command of a session that lives is answered, and what was acknowledged is there; reservations stop
//! whom they have to and nobody else; COMPARE AND WRITE is one step for all; a full pool refuses what it has no space for
//! and nothing else. Method: several initiators do random things to one or two cores' targets in random steps, over a disk
//! that answers in random order, sometimes late; each has blocks of its own and knows what may be in them. Meanwhile one
//! of the units goes and comes again, shrinks and grows; the other is reserved, and the model knows every state in which
//! that may be. What is worth checking is counted, and has to happen. A failure names its seed; docs/simulation.md says
//! more.
#![allow(clippy::unwrap_used, reason = "a test program")]

mod chain;
mod host;
mod orders;
mod people;
mod pools;
mod sim;
mod task;
mod tokens;
#[path = "../world/mod.rs"]
mod world;

use bdev::edge::SWAPS_MAX;
use bdev::io::BdevId;
use bdev::pool::NAMES_MAX;
use bdev::stripe::STRIPE_BYTES;
use chain::Chain;
use host::{Host, State};
use iscsi::units::UnitChangeError;
use orders::{HOSTS, Orders, SeenReservations};
use people::People;
use pools::{Nature, Pools};
use reactor::clock::Time;
use reactor::slots::Slot;
use std::collections::BTreeMap;
use std::time::Duration;
use tokens::{Removals, Token};
use vaai::change::UnitChange;
use world::{Asks, BLOCK, BLOCKS, Initiator, World, lun_config};

/// Blocks of each initiator.
const REGION: u64 = 600;

const STEPS: usize = 700;

/// In a volume the hosts' blocks lie over a stripe's edge, and so that neighbours share a block of the pool's.
const REGIONS_FROM: u64 = STRIPE_BYTES / BLOCK as u64 - 900;
/// And the blocks that all share over another one.
const CHAIN_FROM: u64 = 3 * STRIPE_BYTES / BLOCK as u64 - 1;
/// Each swap over an edge has two requests with the other core at once, of which one ends with it: with fewer credits than
/// for all of these nobody could go on.
const CREDITS_MIN: u32 = 2 * SWAPS_MAX as u32 + 1;
const VOLUME_BYTES: u64 = 16 << 20;

/// Each of these has to happen in a run, or it checks less than it says.
const MUST_HAPPEN: &[&str] = &[
    "REGISTER",
    "RESERVE",
    "RELEASE",
    "CLEAR",
    "PREEMPT",
    "PREEMPT AND ABORT",
    "RESERVE(6)",
    "RELEASE(6)",
    "a command that a reservation has to stop",
    "a preempted host's task under way",
    "an order that is aborted",
    "TASK ABORTED",
    "reservations that are looked at",
    "reservations preempted",
    "reservations released",
    "registrations preempted",
    "COMPARE AND WRITE",
    "COMPARE AND WRITE of shared blocks",
    "a swap that miscompares",
    "a shared swap that miscompares",
    "a shared swap that is aborted",
    "WRITE",
    "WRITE SAME",
    "WRITE SAME of zeroes",
    "UNMAP",
    "EXTENDED COPY",
    "a write without space",
    "zeroes without space",
    "a swap or copy without space",
    "a shared swap without space",
    "a command that ends well while there is no space",
    "an abort while there is no space",
    "a write that found space again",
    "what is done at once",
];

/// The same over pools.
const POOLS_MUST_HAPPEN: &[&str] = &[
    "REGISTER AND MOVE",
    "a restart",
    "reservations that outlive the program",
    "PREEMPT AND ABORT",
    "a command that a reservation has to stop",
    "a preempted host's task under way",
    "TASK ABORTED",
    "COMPARE AND WRITE",
    "COMPARE AND WRITE of shared blocks",
    "a swap that miscompares",
    "a shared swap that miscompares",
    "a shared swap that is aborted",
    "WRITE",
    "WRITE SAME",
    "WRITE SAME of zeroes",
    "UNMAP",
    "EXTENDED COPY",
    "EXTENDED COPY between units",
    "a write without space",
    "a swap or copy without space",
    "a command that ends well while there is no space",
    "an abort while there is no space",
    "a write that found space again",
    "POPULATE TOKEN",
    "RECEIVE ROD TOKEN INFORMATION",
    "WRITE USING TOKEN",
    "WRITE USING TOKEN that deletes",
    "a token that has expired",
    "a token that is deleted",
    "a token whose unit is gone",
    "a snapshot",
    "a clone",
    "a snapshot's end",
    "a pool that grows",
    "a unit goes",
    "a unit comes",
];

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % bound
    }

    fn one_in(&mut self, bound: u64) -> bool {
        self.below(bound) == 0
    }
}

/// A block as write `stamp` leaves it; 0: as nobody has written it.
fn block(stamp: u64) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    block.chunks_exact_mut(8).for_each(|word| word.copy_from_slice(&stamp.to_le_bytes()));
    block
}

/// What each block of a device has.
type Image = BTreeMap<u64, u64>;

/// Blocks from `first` on with these bytes.
fn image(first: u64, bytes: &[u8]) -> Image {
    let stamp = |(at, bytes): (u64, &[u8])| {
        let stamp = world::stamp_of(bytes);
        assert!(bytes == block(stamp), "torn at {at}");
        (at, stamp)
    };
    (first..).zip(bytes.chunks(BLOCK)).map(stamp).collect()
}

/// How often what happened, by name.
type Seen = BTreeMap<&'static str, u64>;

/// All but the hosts and the operator.
struct Stage {
    world: World,
    random: Random,
    orders: Orders,
    /// Hosts change reservations: 0 none, 1 by RESERVE, 2 by both kinds, more by PERSISTENT RESERVE OUT.
    orders_of: u64,
    /// Sessions mostly stay, and functions are few.
    is_calm: bool,
    /// Of the unit, or of all units that show the same.
    chains: [Chain; 2],
    /// What initiators know units by.
    ids: [[u8; 16]; 2],
    /// The units' devices, if these have blocks of their own.
    devices: Option<[BdevId; 2]>,
    /// Units have what they share: copies and snapshots.
    shares: bool,
    /// All tokens that anybody was told.
    tokens: Vec<Token>,
    /// Of each unit.
    removals: [Removals; 2],
    /// Nothing may be refused for want of space.
    has_space: bool,
    stamps: u64,
    /// Who was preempted with its tasks, and since when: not looked after yet.
    preempted: Vec<(u8, u64)>,
    seen: Seen,
}

impl Stage {
    fn next_stamp(&mut self) -> u64 {
        self.stamps += 1;
        self.stamps
    }

    /// Chance of what ends a session: one in so many, or less where they mostly stay.
    fn is_rare(&mut self, usually: u64) -> bool {
        let bound = if self.is_calm { 8 * usually } else { usually };
        self.random.one_in(bound)
    }

    /// The device whose blocks only this unit shows.
    fn device(&self, lun: u8) -> Option<BdevId> {
        self.devices.map(|devices| devices[usize::from(lun)])
    }

    /// What is in a block of the plain disk.
    fn look(&self, at: u64) -> Option<u64> {
        let bytes = self.devices.is_none().then(|| &self.world.disk.bytes[at as usize * BLOCK..][..BLOCK])?;
        Some(image(at, bytes)[&at])
    }

    /// The pool below, if there is one.
    fn pools(&mut self) -> Option<(&mut Pools, &mut Time)> {
        let floor = self.world.floor.as_mut()?.any().downcast_mut()?;
        Some((floor, &mut self.world.now))
    }

    /// What all hosts' blocks of a device have.
    fn image_of(&mut self, device: BdevId) -> Image {
        let Some((pools, now)) = self.pools() else { panic!("no pool") };
        let mut all = image(REGIONS_FROM, &pools.read(now, device, REGIONS_FROM, HOSTS as u64 * REGION));
        all.extend(image(CHAIN_FROM, &pools.read(now, device, CHAIN_FROM, chain::BLOCKS)));
        all
    }

    fn saw(&mut self, what: &'static str) {
        *self.seen.entry(what).or_default() += 1;
    }
}

/// The program: it changes unit 1, one change after the other.
struct Operator {
    /// Its device and capacity, while it is there.
    unit: Option<(BdevId, u64)>,
    /// Devices there have been; 0 is the other unit's.
    devices: u16,
    under_way: Option<UnitChange>,
}

impl Operator {
    /// Wants something.
    fn propose(&mut self, world: &mut World, random: &mut Random) {
        if self.under_way.is_some() {
            return;
        }
        let change = match (self.unit, random.below(4)) {
            (None, _) => {
                self.devices += 1;
                let mut config = lun_config(1);
                (config.bdev, config.id) = (BdevId(self.devices), [self.devices as u8 + 1; 16]);
                UnitChange::Add(Box::new(config))
            }
            (Some(_), 0) => UnitChange::Remove { lun: 1 },
            (Some(_), 1) => UnitChange::ContentsChanged { lun: 1 },
            (Some(_), _) => UnitChange::Resize { lun: 1, blocks: 1 + random.below(4 * REGION) },
        };
        assert!(world.env(0, |target, env| target.propose_unit_change(1, change.clone(), env)));
        self.under_way = Some(change);
    }

    /// When all cores have made a change, the device has nothing that it should not have.
    fn look(&mut self, world: &mut World) {
        let Some((_, made)) = world.target().poll_unit_change() else { return };
        let change = self.under_way.take().expect("one at a time");
        let was = self.unit;
        self.unit = match change {
            UnitChange::Add(config) => Some((config.bdev, config.geometry.blocks)),
            UnitChange::Remove { .. } => None,
            UnitChange::Resize { blocks, .. } => was.map(|(bdev, _)| (bdev, blocks)),
            UnitChange::ContentsChanged { .. } | UnitChange::Space { .. } => was,
        };
        match made {
            Err(UnitChangeError::Stuck) => {}
            Err(UnitChangeError::Refused(error)) => panic!("{error}"),
            Ok(()) => {
                let blocks = self.unit.map_or(0, |(_, blocks)| blocks);
                for io in world.disk.waiting.iter().map(|request| &request.io) {
                    let is_ours = was.is_some_and(|(bdev, _)| io.bdev == bdev);
                    assert!(!is_ours || self.unit.is_some() && io.lba + io.blocks <= blocks, "late: {io:?}");
                }
                for (_, io, _) in &world.disk.copies {
                    let is_ours = was.is_some_and(|(bdev, _)| io.source == bdev || io.destination == bdev);
                    let end = (io.source_bytes.max(io.destination_bytes) + io.bytes) / BLOCK as u64;
                    assert!(!is_ours || self.unit.is_some() && end <= blocks, "late: {io:?}");
                }
            }
        }
    }
}

fn itt_of(bhs: &[u8; 48]) -> u32 {
    u32::from_be_bytes(bhs[16..20].try_into().unwrap())
}

/// Where a request waits that the first copy must not pass.
fn before_copy(world: &World) -> Option<usize> {
    let (_, io, given_up) = world.disk.copies.front()?;
    let block = BLOCK as u64;
    let meets = |first_byte: u64, lba: u64, blocks: u64| {
        !task::apart(first_byte / block, io.bytes / block, lba, blocks) && blocks > 0 && !given_up
    };
    world.disk.waiting.iter().position(|request| {
        let (lba, blocks) = (request.io.lba, request.io.blocks);
        meets(io.source_bytes, lba, blocks) || meets(io.destination_bytes, lba, blocks)
    })
}

/// A request or two of the disk begins or ends.
fn disk_step(world: &mut World, random: &mut Random) {
    if !world.disk.stuck && !world.disk.copies.is_empty() && random.one_in(2) {
        let place = random.below(world.disk.copies.len() as u64) as usize;
        world.disk.copies.swap(0, place);
        // What a device had begun of a session that is gone comes before a copy that overlaps it.
        if let Some(earlier) = before_copy(world) {
            let (core, done) = world.disk.finish(earlier);
            return world.env(core, |target, env| target.io_done(done, env));
        }
        let (core, copied) = world.disk.finish_copy();
        return world.env(core, |target, env| target.copy_done(&copied, env));
    }
    let count = world.disk.waiting.len() as u64;
    if count == 0 {
        return;
    }
    let place = random.below(count) as usize;
    world.disk.waiting[place].begun = true;
    if !world.disk.stuck {
        let place = random.below(count) as usize;
        let (core, done) = world.disk.finish(place);
        world.env(core, |target, env| target.io_done(done, env));
    }
}

/// Who changes the units.
enum Office {
    Operator(Operator),
    /// And has a pool to look after.
    People(Box<People>),
}

/// A seed's world.
struct Run {
    stage: Stage,
    hosts: Vec<Host>,
    office: Office,
    /// Connections that their initiators have left for others, which the target does not know yet.
    left: Vec<(usize, Slot)>,
}

impl Run {
    fn new(seed: u64) -> Run {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let mut world = World::with(1 + (seed % 2) as u16, buffers_of(seed));
        world.disk.begins = false;
        world.disk.zeroes_take_space = random.one_in(2);
        let operator = Operator { unit: Some((BdevId(1), BLOCKS)), devices: 1, under_way: None };
        let ids = [0, 1].map(|lun| lun_config(lun).id);
        Run::of(world, random, ids, Office::Operator(operator))
    }

    /// Over a pool.
    fn over_pools(seed: u64) -> Run {
        let mut random = Random((seed ^ 0x5eed).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let nature = Nature {
            cores: 1 + (seed % 3) as u16,
            data_bytes: [2, 2, 4, 4, 16][random.below(5) as usize] << 20,
            credits: [CREDITS_MIN, 96, 256][random.below(3) as usize],
            folds: random.one_in(2),
            checkpoints: random.one_in(4),
            names_max: if random.one_in(4) { 1 + random.below(4) as u32 } else { NAMES_MAX },
        };
        let mut now = Time(1);
        let mut pools = Pools::create(nature, seed);
        let volumes = ["v0", "v1"].map(|name| {
            pools.make_volume(&mut now, name, VOLUME_BYTES);
            pools.attach(&mut now, name)
        });
        let luns = (0..).zip(&volumes).map(|(lun, volume)| volume.unit(lun)).collect();
        let mut world = World::of_units(nature.cores, buffers_of(seed), luns);
        world.floor = Some(Box::new(pools));
        world.now = now;
        let ids = [0, 1].map(|lun: usize| volumes[lun].uuid);
        let devices = [0, 1].map(|lun: usize| volumes[lun].bdev);
        let shares = !random.one_in(4);
        let people = People::new(volumes, shares);
        let mut run = Run::of(world, random, ids, Office::People(Box::new(people)));
        run.stage.devices = Some(devices);
        run.stage.shares = shares;
        // All blocks that anybody writes, in chunks of their own.
        run.stage.has_space = !shares && nature.data_bytes >= 4 << 20;
        run
    }

    fn of(mut world: World, mut random: Random, ids: [[u8; 16]; 2], office: Office) -> Run {
        let is_apart = world.floor.is_some();
        let (base, chain) = if is_apart { (REGIONS_FROM, CHAIN_FROM) } else { (0, 1800) };
        let hosts = (0..HOSTS as u8)
            .map(|number| {
                let asks = Asks {
                    initial_r2t: random.one_in(2),
                    immediate_data: random.one_in(2),
                    digests: random.one_in(2),
                    outstanding_r2t: 1 + random.below(4) as u32,
                    ..Asks::default()
                };
                Host::new(number, asks, world.connect(), (base, is_apart))
            })
            .collect();
        let orders_of = random.below(6);
        let is_calm = random.one_in(2);
        let stage = Stage {
            world,
            random,
            orders: Orders::new(),
            orders_of,
            is_calm,
            chains: [Chain::new(chain), Chain::new(chain)],
            ids,
            devices: None,
            shares: true,
            tokens: Vec::new(),
            removals: [Removals::default(); 2],
            has_space: false,
            stamps: 0,
            preempted: Vec::new(),
            seen: Seen::new(),
        };
        Run { stage, hosts, office, left: Vec::new() }
    }

    fn step(&mut self) {
        let Run { stage, hosts, office, left } = self;
        let which = stage.random.below(hosts.len() as u64) as usize;
        let is_pool = stage.world.floor.is_some();
        if is_pool {
            stage.world.now = stage.world.now + Duration::from_micros(stage.random.below(100));
            for _ in 0..stage.random.below(40) {
                stage.world.floor_step();
            }
        }
        let host = &mut hosts[which];
        match stage.random.below(43) {
            0..10 => host.command(stage),
            10 if stage.is_calm && !stage.random.one_in(4) => host.command(stage),
            10 => host.function(stage),
            11..14 => host.pay(stage),
            14..20 => host.move_bytes(stage),
            20..24 if is_pool => host.command(stage),
            24..33 if is_pool => stage.world.floor_step(),
            20..30 => disk_step(&mut stage.world, &mut stage.random),
            30..33 => {
                let way = stage.random.below(stage.world.mail.len() as u64) as usize;
                stage.world.deliver(way);
            }
            33..36 => {
                let core = stage.random.below(stage.world.nodes.len() as u64) as usize;
                stage.world.turn_of(core);
            }
            36 => {
                stage.world.disk.stuck = stage.random.one_in(3);
                stage.world.disk.at_once = !is_pool && stage.random.one_in(2);
                stage.world.disk.lends = stage.world.disk.at_once && stage.random.one_in(2);
            }
            37 => {
                if stage.random.one_in(6) {
                    stage.world.now = stage.world.now + Duration::from_millis(stage.random.below(9000));
                }
                stage.world.tick();
            }
            38 => match office {
                Office::People(people) => people.act(stage, hosts),
                Office::Operator(operator) => {
                    operator.look(&mut stage.world);
                    if stage.random.one_in(3) {
                        operator.propose(&mut stage.world, &mut stage.random);
                    }
                }
            },
            39 => {
                if host.state == State::Gone {
                    host.connect(stage);
                } else if host.can_send() && stage.is_rare(4) {
                    host.log_out(stage);
                }
            }
            // A pool is full when it is; what it has no space for is sent again, whether there is some or not.
            40 => stage.world.disk.full = !is_pool && stage.random.one_in(3),
            41 => host.retry(stage),
            _ => {
                // Comes back without a word: at once, or after the target has seen it go.
                if stage.is_rare(3) {
                    let (core, slot) = (host.on.core, host.on.slot);
                    if stage.random.one_in(2) {
                        stage.world.env(core, |target, env| target.close_connection(slot, env));
                    } else {
                        left.push((core, slot));
                    }
                    host.connect(stage);
                }
            }
        }
        self.look_after_preempted();
        // Sooner when something is to be there again.
        let chance = if self.stage.orders.is_kept() { 60 } else { 1500 };
        if self.stage.devices.is_some() && self.stage.random.one_in(chance) {
            self.restart();
        }
    }

    /// The program ends, in the middle of anything, and begins again over what is on the disks.
    fn restart(&mut self) {
        let Run { stage, hosts, office, left } = self;
        let Office::People(people) = office else { return };
        if !people.is_idle() || stage.orders.is_seen_early() {
            return;
        }
        stage.saw("a restart");
        if stage.orders.is_kept() {
            stage.saw("reservations that outlive the program");
        }
        let mut floor = stage.world.floor.take().expect("people have a pool");
        let mut now = stage.world.now;
        let pools: &mut Pools = floor.any().downcast_mut().expect("it is one");
        pools.stop(stage.random.one_in(2));
        pools.open();
        let luns = people.attach_again(pools, &mut now);
        let (cores, buffers) = (stage.world.nodes.len() as u16, stage.world.buffers);
        stage.world = World::of_units(cores, buffers, luns);
        stage.world.floor = Some(floor);
        stage.world.now = now;
        stage.devices = Some(people.devices());
        stage.orders.restarted();
        stage.preempted.clear();
        stage.tokens.clear();
        stage.chains.iter_mut().for_each(Chain::cut);
        left.clear();
        for host in hosts {
            host.restarted(stage);
        }
    }

    fn look_after_preempted(&mut self) {
        for (host, before) in std::mem::take(&mut self.stage.preempted) {
            self.hosts[usize::from(host)].is_preempted(&mut self.stage, before);
        }
    }

    /// From here on everything answers, and everybody who lives gets all answers.
    fn come_to_rest(&mut self) {
        self.stage.world.disk.stuck = false;
        self.stage.world.disk.full = false;
        for _ in 0..300 {
            let mut is_quiet = true;
            for host in &mut self.hosts {
                host.move_bytes(&mut self.stage);
                while host.on.carry.is_empty() && !host.owed.is_empty() {
                    host.pay(&mut self.stage);
                }
                let waits =
                    !host.tasks.is_empty() || !host.functions.is_empty() || host.state == State::LoggingIn;
                is_quiet &= host.state == State::Gone || !waits;
            }
            self.look_after_preempted();
            self.stage.world.settle();
            if is_quiet {
                return;
            }
            self.stage.world.tick();
        }
        for host in &self.hosts {
            println!("{:?} {:?} {:?}", host.state, host.tasks.keys(), host.functions);
        }
        panic!("somebody waits for ever");
    }

    /// What is reserved is the same on all cores, and what the answers say. With all sessions gone nothing keeps anybody
    /// from looking; before, there may be no room.
    fn look_at_reservations(&mut self, all_gone: bool) {
        let Stage { world, orders, seen, .. } = &mut self.stage;
        for core in 0..world.nodes.len() {
            let mut looker = world.connect_to(core);
            let request = looker.login_request(9, Asks::default());
            looker.send(world, &request);
            let is_in = looker.hear(world).iter().all(|pdu| pdu.bhs[36] == 0);
            assert!(is_in || !all_gone, "no room");
            if is_in {
                looker.test_ready(world);
                let there = reservations(world, &mut looker);
                assert!(there.is_some() || !all_gone, "RESERVE outlives its session");
                orders.check_seen(there.as_ref());
            }
            world.env(core, |target, env| target.close_connection(looker.slot, env));
            world.settle();
            if is_in && !all_gone {
                *seen.entry("reservations that are looked at").or_default() += 1;
            }
        }
    }

    fn close_all(&mut self) {
        for host in &mut self.hosts {
            host.close(&mut self.stage);
        }
        for (core, slot) in std::mem::take(&mut self.left) {
            self.stage.world.env(core, |target, env| target.close_connection(slot, env));
        }
        self.stage.world.settle();
    }

    /// When the time of all tokens is over, nothing of them is left.
    fn end_tokens(&mut self) {
        if self.stage.pools().is_none() || self.stage.tokens.is_empty() {
            return;
        }
        self.stage.world.pass(Duration::from_secs(22));
        let Some((pools, now)) = self.stage.pools() else { return };
        assert_eq!(pools.info(now).token_bytes, 0, "tokens are left");
    }

    fn check_end(&mut self) {
        match &mut self.office {
            Office::Operator(operator) => {
                let image = image(0, &self.stage.world.disk.bytes[..2000 * BLOCK]);
                self.hosts.iter().for_each(|host| host.check(0, &image));
                self.stage.chains[0].check(&image);
                operator.look(&mut self.stage.world);
                assert_eq!(operator.under_way, None);
            }
            Office::People(people) => people.check_end(&mut self.stage, &self.hosts),
        }
        self.stage.world.assert_clean();
    }

    /// With more space all that found none finds some.
    fn grow(&mut self) {
        let Office::People(people) = &mut self.office else { return };
        people.settle(&mut self.stage, &mut self.hosts);
        People::grow(&mut self.stage);
        self.stage.has_space = true;
        self.stage.world.disk.full = false;
        while self.hosts.iter().any(Host::has_retries) {
            for host in &mut self.hosts {
                if host.state == State::Gone {
                    host.connect(&mut self.stage);
                }
                host.retry(&mut self.stage);
            }
            self.come_to_rest();
        }
    }
}

/// All keys, and the reservation's key and type.
fn reservations(world: &mut World, on: &mut Initiator) -> Option<SeenReservations> {
    let keys = reserve_in(world, on, 0)?;
    let held = reserve_in(world, on, 1)?;
    let key = |bytes: &[u8]| u64::from_be_bytes(bytes.try_into().unwrap());
    let mut keys: Vec<u64> = keys[8..].chunks(8).map(key).collect();
    keys.sort_unstable();
    Some((keys, (held.len() > 8).then(|| (key(&held[8..16]), held[21]))))
}

/// PERSISTENT RESERVE IN's data; `None`: RESERVE stops it.
fn reserve_in(world: &mut World, on: &mut Initiator, action: u8) -> Option<Vec<u8>> {
    let bhs = on.command(0, &[0x5e, action, 0, 0, 0, 0, 0, 1, 0, 0], 0xc0, 256);
    let frame = on.frame(bhs, &[]);
    on.send(world, &frame);
    let heard = on.hear(world);
    let is_stopped = heard.iter().any(|pdu| pdu.opcode() == 0x21 && pdu.bhs[3] == 0x18);
    let data: Vec<u8> =
        heard.into_iter().filter(|pdu| pdu.opcode() == 0x25).flat_map(|pdu| pdu.data).collect();
    assert!(is_stopped != (data.len() >= 8), "{data:?}");
    (!is_stopped).then_some(data)
}

/// Runs one seed's world. What happened.
fn run(mut run: Run) -> Seen {
    for host in &mut run.hosts {
        host.log_in(&mut run.stage);
    }
    for _ in 0..STEPS {
        run.step();
    }
    if run.stage.world.nodes.iter().any(|node| node.target.counters.straight > 0) {
        run.stage.saw("what is done at once");
    }
    run.come_to_rest();
    run.grow();
    run.look_at_reservations(false);
    run.close_all();
    run.look_at_reservations(true);
    run.end_tokens();
    run.check_end();
    run.stage.seen
}

/// Seeds over pools in which something was found that is mended: what tokens held at their ends was not given back (0),
/// an order that was aborted when all cores had made it was not kept (597), and writes found a pool full whose free chunks were
/// all being punched by a disk that is stuck (2428).
const FOUND: &[u64] = &[597, 2428];

/// How many buffers of each class a core has.
fn buffers_of(seed: u64) -> [u32; 3] {
    if seed.is_multiple_of(3) { [4, 4, 9] } else { [64, 64, 64] }
}

/// Which seeds: `SEED` alone, or so many as `SCHEDULE_SEEDS` says.
fn seeds(usual: u64, long: u64) -> std::ops::Range<u64> {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let usual = if std::env::var_os("POLLUX_TEST_LONG").is_some() { long } else { usual };
    number("SEED").map_or(0..number("SCHEDULE_SEEDS").unwrap_or(usual), |seed| seed..seed + 1)
}

/// Runs them all. In fewer seeds than usual something may be missing.
fn run_all(usual: u64, long: u64, test: &str, make: fn(u64) -> Run, must_happen: &[&str]) {
    let mut seen = Seen::new();
    let seeds = seeds(usual, long);
    let is_whole = seeds.end - seeds.start >= usual;
    for seed in seeds {
        let result = std::panic::catch_unwind(|| run(make(seed)));
        let Ok(one) = result else {
            panic!("replay: SEED={seed} cargo test -p iscsi --test schedule {test}")
        };
        for (what, count) in one {
            *seen.entry(what).or_default() += count;
        }
    }
    println!("{seen:#?}");
    for what in must_happen {
        assert!(!is_whole || seen.contains_key(what), "never seen: {what}");
    }
}

#[test]
fn any_schedule_keeps_its_promises() {
    run_all(1000, 10_000, "promises", Run::new, MUST_HAPPEN);
}

/// The same over a pool, in which all of it ends differently: writes are redirected, copies are pointers, and space runs
/// out when it is used.
#[test]
fn any_schedule_over_pools() {
    run_all(500, 3000, "pools", Run::over_pools, POOLS_MUST_HAPPEN);
    if std::env::var_os("SEED").is_none() {
        for &seed in FOUND {
            run(Run::over_pools(seed));
        }
    }
}
