//! A real pool below the targets: each core has its storage as the program has it, and disks in memory end what they are
//! asked for in any order. What is between a target and its storage here is in `pollux/src/node.rs` there: the order in
//! which requests, what is given up, and barriers leave a core is the same.

use crate::sim::chance::Chance;
use crate::sim::disk::{Disk, Faults};
use crate::sim::lines::{Arrival, Class, Lines};
use crate::world::{BLOCK, Event, Floor, lun_config};
use bdev::geometry::Geometry;
use bdev::io::{BdevId, Io, Op, PIECE_BYTES, Tag};
use bdev::lent::Lent;
use bdev::pool::control::{
    Against, Answer, Answered, NewMember, PoolInfo, Provisioning, Request, VolumeSpec,
};
use bdev::pool::format::JOURNALS_AT;
use bdev::pool::shard::POOL_BUFS;
use bdev::pool::{CHECKPOINT_PERCENT, CreateOptions, FoldWhen, Member, OpenOptions, Rule};
use bdev::router::Router;
use bdev::shard::{self, POOL_MARK, Shard, VOLUMES_FROM, pool_of};
use bdev::storage::{COPY_BUFS, CopyIo, Outgoing, RangeStatus, Storage};
use iscsi::keep::Keep;
use iscsi::target::{self, Below};
use reactor::Core;
use reactor::buf::{BUF_BYTES_MAX, Pool, PoolConfig};
use reactor::clock::Time;
use reactor::disk::FileId;
use std::any::Any;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use vaai::change::Applied;
use vaai::lun::LunConfig;
use vaai::sense::Sense;

/// Bytes before a pool's data: fixed places, journals, maps.
const METADATA_BYTES: u64 = 8 << 20;
const JOURNAL_BYTES: u64 = 1 << 20;
const BEFORE_DATA: u64 = JOURNALS_AT + JOURNAL_BYTES + METADATA_BYTES + (2 << 20);
/// Rounds in which a pool answers what it is asked while nothing else goes on.
const ROUNDS_MAX: u32 = 20_000;

/// What a core's storage takes.
const SIDE_BUFS: u32 = POOL_BUFS as u32 + COPY_BUFS as u32;
/// The tag of what looks at a device's content.
const LOOK: Tag = Tag(0x0100_0000);

/// What cores say to each other.
#[derive(Debug)]
enum Mail {
    Storage(shard::Mail),
    Abandon(Vec<(BdevId, Tag)>),
    Target(target::Mail),
    Seen,
}

#[derive(Debug)]
struct Side {
    storage: Storage,
    /// What was given up and is still to be told, by core.
    abandoned: Vec<Vec<(BdevId, Tag)>>,
    more: bool,
}

/// A volume as it is attached.
#[derive(Clone, Debug)]
pub(crate) struct Attached {
    pub(crate) bdev: BdevId,
    pub(crate) geometry: Geometry,
    pub(crate) uuid: [u8; 16],
    pub(crate) reservations: Vec<u8>,
}

impl Attached {
    /// The unit that shows it.
    pub(crate) fn unit(&self, lun: u16) -> LunConfig {
        LunConfig {
            bdev: self.bdev,
            geometry: self.geometry,
            id: self.uuid,
            reservations: Some(self.reservations.clone()),
            ..lun_config(lun)
        }
    }
}

/// What a seed chooses.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Nature {
    pub(crate) cores: u16,
    pub(crate) data_bytes: u64,
    pub(crate) credits: u32,
    pub(crate) folds: bool,
    pub(crate) checkpoints: bool,
    pub(crate) names_max: u32,
}

/// All cores' storage, its disks, and what is between the cores.
#[derive(Debug)]
pub(crate) struct Pools {
    nature: Nature,
    disks: Vec<Disk>,
    sides: Vec<Side>,
    /// Whose call is being served.
    caller: Core,
    lines: Lines<Mail>,
    events: VecDeque<(usize, Event)>,
    answers: BTreeMap<u64, Answered>,
    /// Tickets of what is to be kept, and the target's.
    keeps: BTreeMap<u64, u64>,
    kept: VecDeque<(u64, Applied)>,
    tickets: u64,
    chance: Chance,
    /// For looking at what is there.
    bufs: Pool,
    /// Of each core's storage. Behind all that may have some of them.
    side_bufs: Vec<Pool>,
}

fn bufs_of(large: u32, arena: u16) -> Pool {
    Pool::new(PoolConfig { counts: [0, 0, large], arena }).unwrap()
}

fn member(disk: &Disk) -> Member {
    Member {
        path: format!("disk{}", disk.file.0),
        file: disk.file,
        align_bytes: disk.align_bytes() as u32,
        punch: disk.file.0 != 1,
        medium: Arc::new(disk.clone()),
    }
}

/// A rule of the pool that is broken on purpose: `RULE=SharedIsFrozen`.
fn broken_rule() -> Option<Rule> {
    let name = std::env::var("RULE").ok()?;
    Rule::ALL.into_iter().find(|rule| format!("{rule:?}") == name)
}

impl Pools {
    /// A new pool.
    pub(crate) fn create(nature: Nature, seed: u64) -> Pools {
        let mut chance = Chance::new(seed);
        let align_bytes = chance.of(&[512, 4096]);
        let faults =
            Faults { short: chance.of(&[0, 0, 200]), again: chance.of(&[0, 0, 200]), error: 0, loses: false };
        let bytes = BEFORE_DATA + nature.data_bytes;
        let disk = Disk::new(FileId(0), bytes, align_bytes, Faults::default(), chance.branch());
        let options = CreateOptions {
            name: "sim".to_owned(),
            uuid: [7; 16],
            journal_bytes: Some(JOURNAL_BYTES),
            metadata_bytes: Some(METADATA_BYTES),
        };
        bdev::pool::create(&[member(&disk)], &options).unwrap();
        let mut pools = Pools {
            nature,
            disks: vec![disk],
            sides: Vec::new(),
            caller: Core(0),
            lines: Lines::new(0, [0; 2]),
            events: VecDeque::new(),
            answers: BTreeMap::new(),
            keeps: BTreeMap::new(),
            kept: VecDeque::new(),
            tickets: 0,
            chance,
            bufs: bufs_of(1, 63),
            side_bufs: (0..nature.cores).map(|core| bufs_of(SIDE_BUFS, 32 + core)).collect(),
        };
        pools.open();
        pools.disks.iter().for_each(|disk| disk.set_faults(faults));
        pools
    }

    /// Opens what is on the disks.
    pub(crate) fn open(&mut self) {
        let Nature { cores, credits, folds, checkpoints, names_max, .. } = self.nature;
        let options = OpenOptions {
            cores,
            map_memory_max_bytes: 64 << 20,
            first_bdev: BdevId(VOLUMES_FROM),
            mark: POOL_MARK,
            window_clusters: u32::from(cores),
            punch_after: self.chance.one_in(2).then_some(Duration::from_micros(100)),
            in_memory: false,
            break_rule: broken_rule(),
            folds: if folds { FoldWhen::Always } else { FoldWhen::Quiet },
            checkpoint_percent: if checkpoints { 1 } else { CHECKPOINT_PERCENT },
            names_max,
        };
        let opened = bdev::pool::open(self.disks.iter().map(member).collect(), &options).unwrap();
        let side = |(core, bufs): (u16, &mut Pool)| {
            let core = Core(core);
            let mut shard = Shard::new(core, Vec::new());
            shard.add_pool(opened.shard(core, bufs).unwrap());
            let copy_bufs = (0..COPY_BUFS).map_while(|_| bufs.take(BUF_BYTES_MAX)).collect();
            let storage = Storage::new(core, cores, Router::new(core, cores, [].into()), shard, copy_bufs);
            Side { storage, abandoned: vec![Vec::new(); usize::from(cores)], more: true }
        };
        self.sides = (0..cores).zip(&mut self.side_bufs).map(side).collect();
        self.lines = Lines::new(usize::from(cores), [credits, 8]);
        (0..self.sides.len()).for_each(|core| self.collect(core));
    }

    /// The program is gone, and the power with it if so.
    pub(crate) fn stop(&mut self, power: bool) {
        self.sides.clear();
        self.lines = Lines::new(0, [0; 2]);
        self.events.clear();
        self.answers.clear();
        self.keeps.clear();
        self.kept.clear();
        for disk in &self.disks {
            if power {
                disk.crash();
            } else {
                // What the kernel was asked for it does.
                while disk.in_flight() > 0 {
                    disk.end(self.chance.index(disk.in_flight()));
                }
            }
        }
    }

    /// Asks the pool; the answer is told later.
    pub(crate) fn ask(&mut self, request: Request) -> u64 {
        self.tickets += 1;
        self.sides[0].storage.ask(0, self.tickets, request, 1_700_000_000);
        self.collect(0);
        self.tickets
    }

    /// An answer, once.
    pub(crate) fn answer(&mut self, ticket: u64) -> Option<Answered> {
        self.answers.remove(&ticket)
    }

    /// Asks, and lets everything happen until there is an answer.
    pub(crate) fn demand(&mut self, now: &mut Time, request: Request) -> Answered {
        let ticket = self.ask(request);
        for _ in 0..ROUNDS_MAX {
            if let Some(answered) = self.answer(ticket) {
                return answered;
            }
            *now = *now + Duration::from_micros(200);
            (0..self.sides.len()).for_each(|core| Floor::turn(self, core, *now));
            self.round(*now, false);
        }
        panic!("the pool does not answer");
    }

    /// Makes a thin volume.
    pub(crate) fn make_volume(&mut self, now: &mut Time, name: &str, bytes: u64) {
        let spec = VolumeSpec {
            name: name.to_owned(),
            bytes,
            block_bytes: 512,
            physical_block_bytes: 4096,
            provisioning: Provisioning::Thin,
            zero_detect: self.chance.one_in(2),
            write_cache: false,
        };
        self.demand(now, Request::VolumeCreate(spec)).unwrap();
    }

    pub(crate) fn attach(&mut self, now: &mut Time, name: &str) -> Attached {
        attached(self.demand(now, Request::Attach { volume: name.to_owned() }))
    }

    pub(crate) fn info(&mut self, now: &mut Time) -> PoolInfo {
        match self.demand(now, Request::Pool) {
            Ok(Answer::Pool(info)) => *info,
            other => panic!("no figures of a pool: {other:?}"),
        }
    }

    /// What stands in a piece of a device now.
    fn read_piece(&mut self, now: &mut Time, bdev: BdevId, lba: u64, blocks: u64) -> Vec<u8> {
        let mut buf = self.bufs.take(BUF_BYTES_MAX).unwrap();
        buf.set_len(blocks as usize * BLOCK);
        let core = self.chance.index(self.sides.len());
        self.caller = Core(core as u16);
        self.submit(Io {
            tag: LOOK,
            from: self.caller,
            bdev,
            op: Op::Read,
            fua: false,
            heartbeat: false,
            disposable: false,
            more_parts: 0,
            lba,
            blocks,
            buf: Some(buf),
            scratch: None,
        });
        let is_it = |(_, event): &(usize, Event)| matches!(event, Event::Done(done) if done.io.tag == LOOK);
        for _ in 0..ROUNDS_MAX {
            if let Some(place) = self.events.iter().position(is_it) {
                let Some((_, Event::Done(done))) = self.events.remove(place) else { unreachable!() };
                assert_eq!(done.result, Ok(()), "{:?}", done.io);
                let bytes = done.io.buf.as_ref().unwrap().to_vec();
                self.bufs.give(done.io.buf.unwrap());
                return bytes;
            }
            *now = *now + Duration::from_micros(200);
            (0..self.sides.len()).for_each(|core| Floor::turn(self, core, *now));
            self.round(*now, false);
        }
        panic!("a look has no end");
    }

    /// What stands in a range of a device now.
    pub(crate) fn read(&mut self, now: &mut Time, bdev: BdevId, lba: u64, blocks: u64) -> Vec<u8> {
        let piece = PIECE_BYTES / BLOCK as u64;
        let (mut at, end, mut bytes) = (lba, lba + blocks, Vec::new());
        while at < end {
            let count = (piece - at % piece).min(end - at);
            bytes.extend(self.read_piece(now, bdev, at, count));
            at += count;
        }
        bytes
    }

    /// A further disk for the pool, and the request that takes it in.
    pub(crate) fn another_disk(&mut self, bytes: u64) -> Request {
        let file = FileId(self.disks.len() as u16);
        let disk = Disk::new(file, bytes, 4096, Faults::default(), self.chance.branch());
        let Member { path, file, align_bytes, punch, .. } = member(&disk);
        self.disks.push(disk);
        let mark = [file.0 as u8; 16];
        Request::Grow {
            sizes: Vec::new(),
            added: vec![NewMember { path, file, align_bytes, punch, bytes, mark }],
        }
    }

    /// What is wrong with what is on the disks.
    pub(crate) fn problems(&self) -> Vec<String> {
        let members: Vec<Member> = self.disks.iter().map(member).collect();
        let report = bdev::pool::check(&members).unwrap();
        report.problems.iter().map(|problem| format!("{problem:?}")).collect()
    }

    /// Carries off what a core's storage has to say.
    fn collect(&mut self, core: usize) {
        let Pools { sides, lines, disks, events, answers, keeps, kept, .. } = self;
        let Side { storage, .. } = &mut sides[core];
        while let Some(Outgoing { to, reply, mail }) = storage.poll_mail() {
            if reply {
                lines.reply(Core(core as u16), to, Class::Ordinary, Mail::Storage(mail));
            } else {
                lines.request(Core(core as u16), to, Class::Ordinary, Mail::Storage(mail));
            }
        }
        while let Some(op) = storage.poll_disk() {
            disks[usize::from(op.file.0)].issue(core, op);
        }
        while let Some(done) = storage.poll_done() {
            events.push_back((core, Event::Done(done)));
        }
        while let Some(copied) = storage.poll_copied() {
            events.push_back((core, Event::Copied(copied)));
        }
        while let Some(RangeStatus { tag, bytes, mapped, .. }) = storage.poll_status() {
            events.push_back((core, Event::Status { tag, bytes, mapped }));
        }
        while let Some((ticket, answered)) = storage.poll_answer() {
            match keeps.remove(&ticket) {
                Some(keep) => kept.push_back((keep, as_kept(answered))),
                None => drop(answers.insert(ticket, answered)),
            }
        }
    }

    /// Tells a core what was given up, behind the requests that it is about.
    fn tell_abandoned(&mut self, core: usize, to: Core) {
        let tags = std::mem::take(&mut self.sides[core].abandoned[to.index()]);
        if !tags.is_empty() {
            self.lines.request(Core(core as u16), to, Class::Ordinary, Mail::Abandon(tags));
        }
    }

    fn deliver(&mut self, way: usize) {
        let Some(Arrival { from, to, reply, mail, .. }) = self.lines.take(way) else { return };
        let (from, me) = (Core(from as u16), Core(to as u16));
        let storage = &mut self.sides[to].storage;
        match mail {
            Mail::Storage(mail) if reply => storage.on_reply(from, mail),
            Mail::Storage(mail) => storage.on_request(from, mail),
            Mail::Abandon(tags) => {
                for (bdev, tag) in tags {
                    storage.shard.abandon(from, bdev, tag);
                }
                self.lines.reply(me, from, Class::Ordinary, Mail::Seen);
            }
            Mail::Target(mail) => {
                if !is_barrier(&mail) {
                    self.lines.reply(me, from, Class::Urgent, Mail::Seen);
                }
                self.events.push_back((to, Event::Mail { from, mail }));
            }
            Mail::Seen => {}
        }
        self.collect(to);
    }

    fn end(&mut self, disk: usize) {
        let place = self.chance.index(self.disks[disk].in_flight());
        let (core, done) = self.disks[disk].end(place);
        self.sides[core].storage.complete(done);
        self.collect(core);
    }
}

pub(crate) fn attached(answered: Answered) -> Attached {
    match answered {
        Ok(Answer::Attached { bdev, geometry, uuid, reservations }) => {
            Attached { bdev, geometry, uuid, reservations }
        }
        other => panic!("not attached: {other:?}"),
    }
}

fn is_barrier(mail: &target::Mail) -> bool {
    matches!(mail, target::Mail::Barrier { .. } | target::Mail::BarrierPassed { .. })
}

fn as_kept(answered: Answered) -> Applied {
    match answered {
        Ok(_) => Ok(()),
        Err(refusal) if refusal.against == Against::NoSpace => {
            Err(Sense::INSUFFICIENT_REGISTRATION_RESOURCES)
        }
        Err(_) => Err(Sense::INTERNAL_TARGET_FAILURE),
    }
}

impl Below for Pools {
    fn submit(&mut self, io: Io) {
        let core = self.caller.index();
        self.sides[core].storage.submit(io);
        self.collect(core);
    }

    /// Volumes have nothing that is done at once.
    fn read_now(&mut self, _: BdevId, _: u64, _: &mut [u8]) -> bool {
        false
    }

    fn lend_now(&mut self, _: BdevId, _: u64, _: usize) -> Option<Lent> {
        None
    }

    fn write_now(&mut self, _: BdevId, _: u64, _: &[u8]) -> bool {
        false
    }

    fn status(&mut self, tag: Tag, bdev: BdevId, from_bytes: u64, bytes: u64) {
        let core = self.caller.index();
        self.sides[core].storage.status(tag, bdev, from_bytes, bytes);
        self.collect(core);
    }

    fn abandon(&mut self, bdev: BdevId, tag: Tag) {
        let core = self.caller.index();
        // What was asked before it goes first.
        self.collect(core);
        let Side { storage, abandoned, .. } = &mut self.sides[core];
        let mut told = Vec::new();
        storage.router.abandon(tag, |to, bdev, tag| told.push((to, bdev, tag)));
        told.extend((0..abandoned.len()).map(|to| (Core(to as u16), bdev, tag)));
        for (to, bdev, tag) in told {
            if to == self.caller {
                storage.shard.abandon(to, bdev, tag);
            } else {
                abandoned[to.index()].push((bdev, tag));
            }
        }
        self.collect(core);
    }

    fn copy(&mut self, io: CopyIo) {
        let core = self.caller.index();
        self.sides[core].storage.copy(io);
        self.collect(core);
    }

    fn abandon_copies(&mut self, tag: Tag) {
        let core = self.caller.index();
        self.sides[core].storage.abandon_copies(tag);
        self.collect(core);
    }

    fn post(&mut self, to: Core, mail: target::Mail) {
        let core = self.caller;
        match &mail {
            // In one line with the requests and what was given up that they are to follow.
            target::Mail::Barrier { .. } => {
                self.collect(core.index());
                self.tell_abandoned(core.index(), to);
                self.lines.request(core, to, Class::Ordinary, Mail::Target(mail));
            }
            target::Mail::BarrierPassed { .. } => {
                self.lines.reply(core, to, Class::Ordinary, Mail::Target(mail));
            }
            _ => drop(self.lines.request(core, to, Class::Urgent, Mail::Target(mail))),
        }
    }
}

impl Floor for Pools {
    fn below(&mut self, core: usize) -> &mut dyn Below {
        self.caller = Core(core as u16);
        self
    }

    fn turn(&mut self, core: usize, now: Time) {
        self.sides[core].more = self.sides[core].storage.turn(now);
        self.collect(core);
        for to in 0..self.sides.len() {
            self.tell_abandoned(core, Core(to as u16));
        }
    }

    fn step(&mut self, now: Time, stuck: bool) {
        let busy: Vec<usize> =
            (0..self.disks.len()).filter(|&disk| self.disks[disk].in_flight() > 0).collect();
        let ways: Vec<usize> = (0..self.lines.ways()).filter(|&way| self.lines.ready(way) > 0).collect();
        match self.chance.below(5) {
            0..2 if !stuck && !busy.is_empty() => {
                let disk = busy[self.chance.index(busy.len())];
                self.end(disk);
            }
            2..4 if !ways.is_empty() => {
                let way = ways[self.chance.index(ways.len())];
                self.deliver(way);
            }
            _ => {
                let core = self.chance.index(self.sides.len());
                Floor::turn(self, core, now);
            }
        }
    }

    fn round(&mut self, _: Time, stuck: bool) -> bool {
        let mut any = false;
        for way in 0..self.lines.ways() {
            for _ in 0..self.lines.ready(way) {
                any = true;
                self.deliver(way);
            }
        }
        for disk in 0..self.disks.len() {
            for _ in 0..if stuck { 0 } else { self.disks[disk].in_flight() } {
                any = true;
                self.end(disk);
            }
        }
        any || self.sides.iter().any(|side| side.more) || !self.lines.is_idle()
    }

    fn any(&mut self) -> &mut dyn Any {
        self
    }

    fn poll(&mut self) -> Option<(usize, Event)> {
        self.events.pop_front()
    }

    fn keep(&mut self, keep: Keep) {
        let Keep { ticket, bdev, bytes } = keep;
        assert_eq!(pool_of(bdev).map(|(pool, _)| pool), Some(0), "only volumes have them kept");
        self.keeps.insert(self.tickets + 1, ticket);
        self.ask(Request::ReservationsPut { bdev, bytes });
    }

    fn poll_kept(&mut self) -> Option<(u64, Applied)> {
        self.kept.pop_front()
    }
}
