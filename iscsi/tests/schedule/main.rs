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
mod task;
#[path = "../world/mod.rs"]
mod world;

use bdev::io::BdevId;
use chain::Chain;
use host::{Host, State};
use iscsi::units::UnitChangeError;
use orders::{HOSTS, Orders, SeenReservations};
use reactor::slots::Slot;
use std::collections::BTreeMap;
use std::time::Duration;
use vaai::change::UnitChange;
use world::{Asks, BLOCK, BLOCKS, Initiator, World, lun_config};

/// Blocks of each initiator.
const REGION: u64 = 600;

const STEPS: usize = 700;

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
    chain: Chain,
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

/// A seed's world.
struct Run {
    stage: Stage,
    hosts: Vec<Host>,
    operator: Operator,
    /// Connections that their initiators have left for others, which the target does not know yet.
    left: Vec<(usize, Slot)>,
}

impl Run {
    fn new(seed: u64) -> Run {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let buffers = if seed.is_multiple_of(3) { [4, 4, 9] } else { [64, 64, 64] };
        let mut world = World::with(1 + (seed % 2) as u16, buffers);
        world.disk.begins = false;
        world.disk.zeroes_take_space = random.one_in(2);
        let hosts = (0..HOSTS as u8)
            .map(|number| {
                let asks = Asks {
                    initial_r2t: random.one_in(2),
                    immediate_data: random.one_in(2),
                    digests: random.one_in(2),
                    outstanding_r2t: 1 + random.below(4) as u32,
                    ..Asks::default()
                };
                Host::new(number, asks, world.connect())
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
            chain: Chain::default(),
            stamps: 0,
            preempted: Vec::new(),
            seen: Seen::new(),
        };
        let operator = Operator { unit: Some((BdevId(1), BLOCKS)), devices: 1, under_way: None };
        Run { stage, hosts, operator, left: Vec::new() }
    }

    fn step(&mut self) {
        let Run { stage, hosts, operator, left } = self;
        let which = stage.random.below(hosts.len() as u64) as usize;
        let host = &mut hosts[which];
        match stage.random.below(43) {
            0..10 => host.command(stage),
            10 if stage.is_calm && !stage.random.one_in(4) => host.command(stage),
            10 => host.function(stage),
            11..14 => host.pay(stage),
            14..20 => host.move_bytes(stage),
            20..30 => disk_step(&mut stage.world, &mut stage.random),
            30..33 => {
                let way = stage.random.below(stage.world.mail.len() as u64) as usize;
                stage.world.deliver(way);
            }
            33..36 => {
                let core = stage.random.below(stage.world.nodes.len() as u64) as usize;
                stage.world.env(core, iscsi::target::Target::turn);
            }
            36 => stage.world.disk.stuck = stage.random.one_in(3),
            37 => {
                if stage.random.one_in(6) {
                    stage.world.now = stage.world.now + Duration::from_millis(stage.random.below(9000));
                }
                stage.world.tick();
            }
            38 => {
                operator.look(&mut stage.world);
                if stage.random.one_in(3) {
                    operator.propose(&mut stage.world, &mut stage.random);
                }
            }
            39 => {
                if host.state == State::Gone {
                    host.connect(stage);
                } else if host.can_send() && stage.is_rare(4) {
                    host.log_out(stage);
                }
            }
            40 => stage.world.disk.full = stage.random.one_in(3),
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

    fn check_end(&mut self) {
        let disk = &self.stage.world.disk.bytes;
        self.hosts.iter().for_each(|host| host.check(disk));
        self.stage.chain.check(disk);
        self.operator.look(&mut self.stage.world);
        assert_eq!(self.operator.under_way, None);
        self.stage.world.assert_clean();
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

/// Runs one seed. What happened.
fn run(seed: u64) -> Seen {
    let mut run = Run::new(seed);
    for host in &mut run.hosts {
        host.log_in(&mut run.stage);
    }
    for _ in 0..STEPS {
        run.step();
    }
    run.come_to_rest();
    run.look_at_reservations(false);
    run.close_all();
    run.look_at_reservations(true);
    run.check_end();
    run.stage.seen
}

/// Which seeds: `SEED` alone, or so many as `SCHEDULE_SEEDS` says.
fn seeds() -> std::ops::Range<u64> {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let usual = if std::env::var_os("POLLUX_TEST_LONG").is_some() { 10_000 } else { 1000 };
    number("SEED").map_or(0..number("SCHEDULE_SEEDS").unwrap_or(usual), |seed| seed..seed + 1)
}

#[test]
fn any_schedule_keeps_its_promises() {
    let mut seen = Seen::new();
    let seeds = seeds();
    // In fewer seeds something may be missing.
    let is_whole = seeds.end - seeds.start >= 1000;
    for seed in seeds {
        let result = std::panic::catch_unwind(|| run(seed));
        let Ok(one) = result else { panic!("replay: SEED={seed} cargo test -p iscsi --test schedule") };
        for (what, count) in one {
            *seen.entry(what).or_default() += count;
        }
    }
    println!("{seen:#?}");
    for what in MUST_HAPPEN {
        assert!(!is_whole || seen.contains_key(what), "never seen: {what}");
    }
}
