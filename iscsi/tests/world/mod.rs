//! A world in memory for tests: one or more cores' targets, a plain array as the disk, and an initiator made of
//! hand-built PDUs.
#![allow(dead_code, reason = "each test program uses a part")]
#![allow(clippy::unwrap_used, reason = "a test program")]

use bdev::error::IoError;
use bdev::geometry::Geometry;
use bdev::io::{BdevId, Done, Io, Op, Tag};
use bdev::lent::{Lent, Shelf};
use bdev::shard::{VOLUMES_FROM, tokens_of};
use bdev::storage::{Copied, CopyIo, Moved};
use iscsi::access::{Access, Availability, Target as TargetRule};
use iscsi::admission::Settings;
use iscsi::digest::Crc;
use iscsi::keep::Keep;
use iscsi::name::IscsiName;
use iscsi::negotiate;
use iscsi::receive::Feed;
use iscsi::target::{Below, Env, Mail, TICK, Target};
use reactor::Core;
use reactor::buf::{BUF_BYTES_MAX, Buf, Pool, PoolConfig};
use reactor::clock::Time;
use reactor::slots::Slot;
use std::any::Any;
use std::collections::{BTreeMap, HashSet, VecDeque};
use std::io::IoSlice;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use vaai::change::Applied;
use vaai::lun::LunConfig;
use vaai::server::{DeviceServer, PortConfig, ServerConfig};

pub(crate) const BLOCK: usize = 512;
pub(crate) const BLOCKS: u64 = 64 << 11;
pub(crate) const INITIATOR: &str = "iqn.2026-11.io.pollux:initiator";
pub(crate) const TARGET: &str = "iqn.2026-11.io.pollux:test";
pub(crate) const LARGE_BUFFERS: u32 = 64;

/// A request with the disk.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) core: usize,
    pub(crate) io: Io,
    /// Of the first block that it writes, where its data are elsewhere.
    pub(crate) stamp: u64,
    /// The device has it: giving it up comes too late.
    pub(crate) begun: bool,
}

/// The disk, as all shards together are: whoever overlaps one that came before comes behind it.
pub(crate) struct Disk {
    pub(crate) bytes: Vec<u8>,
    pub(crate) waiting: VecDeque<Request>,
    pub(crate) stuck: bool,
    /// About what is mapped: core, tag, first byte, bytes.
    pub(crate) questions: VecDeque<(usize, Tag, u64, u64)>,
    /// Requests are begun as they come.
    pub(crate) begins: bool,
    pub(crate) abandoned: Vec<Tag>,
    /// Copies under way, of which core, and whether they were given up.
    pub(crate) copies: VecDeque<(usize, CopyIo, bool)>,
    /// Blocks of the pool's volume for tokens.
    pub(crate) store: BTreeMap<u64, Vec<u8>>,
    /// Writes with these stamps were answered as aborted: they must not be carried out any more.
    pub(crate) dead: HashSet<u64>,
    /// Reads and writes of one piece that meet nobody are done as they come.
    pub(crate) at_once: bool,
    /// And what is read so is lent.
    pub(crate) lends: bool,
    /// Where that is, and the place for the next.
    pub(crate) shelf: (Rc<Shelf>, Rc<Buf>, Pool),
    /// There is no space for what is written.
    pub(crate) full: bool,
    /// Zeroes take space, too.
    pub(crate) zeroes_take_space: bool,
    /// What found no space: the stamp of its first block, 0 if it has none; first block, blocks.
    pub(crate) refused: Vec<(u64, u64, u64)>,
}

/// What a block says of who wrote it.
pub(crate) fn stamp_of(block: &[u8]) -> u64 {
    u64::from_le_bytes(block[..8].try_into().unwrap())
}

/// A unit as large as the disk.
pub(crate) fn lun_config(lun: u16) -> LunConfig {
    LunConfig {
        lun,
        bdev: BdevId(lun),
        geometry: Geometry {
            block_bytes: BLOCK as u32,
            physical_block_bytes: 4096,
            blocks: BLOCKS,
            unmap_granularity_bytes: 4096,
            write_zeroes: true,
            write_cache: false,
            read_only: false,
            rotational: false,
            pooled: false,
            atomic_bytes: 0,
        },
        id: [lun as u8 + 1; 16],
        serial: format!("serial{lun}"),
        read_only: false,
        removable: false,
        reservations: Some(Vec::new()),
    }
}

/// The same as a volume of a pool.
pub(crate) fn volume_config(lun: u16) -> LunConfig {
    let unit = lun_config(lun);
    let geometry = Geometry { pooled: true, ..unit.geometry };
    LunConfig { bdev: BdevId(VOLUMES_FROM + 1 + lun), geometry, ..unit }
}

/// What comes up from below for a core's target.
#[derive(Debug)]
pub(crate) enum Event {
    Done(Done),
    Copied(Copied),
    Status { tag: Tag, bytes: u64, mapped: bool },
    Mail { from: Core, mail: Mail },
}

/// What may stand in the disk's place: it has the mail between the cores, too, as some of it may not pass requests. The
/// disk's `waiting` and `copies` then only say what is under way there, without its data.
pub(crate) trait Floor {
    /// What a core's target wants.
    fn below(&mut self, core: usize) -> &mut dyn Below;
    /// A core's own turn.
    fn turn(&mut self, core: usize, now: Time);
    /// One thing that is under way happens.
    fn step(&mut self, now: Time, stuck: bool);
    /// All that is under way happens, once. Whether there is more.
    fn round(&mut self, now: Time, stuck: bool) -> bool;
    /// The next that has come, and for which core.
    fn poll(&mut self) -> Option<(usize, Event)>;
    /// Itself, for who knows what it is.
    fn any(&mut self) -> &mut dyn Any;
    /// Keeps what is reserved of a device.
    fn keep(&mut self, keep: Keep);
    /// The next that is kept.
    fn poll_kept(&mut self) -> Option<(u64, Applied)>;
}

/// What one core's target sees below it.
pub(crate) struct Lower<'a> {
    pub(crate) core: usize,
    pub(crate) disk: &'a mut Disk,
    pub(crate) mail: &'a mut [VecDeque<Mail>],
    pub(crate) floor: Option<&'a mut dyn Below>,
}

impl Below for Lower<'_> {
    fn submit(&mut self, io: Io) {
        assert_eq!(io.from.index(), self.core);
        let (core, begun) = (self.core, self.disk.begins);
        let Some(floor) = &mut self.floor else {
            return self.disk.waiting.push_back(Request { core, io, stamp: 0, begun });
        };
        let stamp = written(&io, BLOCK).chunks(BLOCK).next().map_or(0, stamp_of);
        let (buf, scratch) = (None, None);
        self.disk.waiting.push_back(Request { core, io: Io { buf, scratch, ..io }, stamp, begun });
        floor.submit(io);
    }

    fn read_now(&mut self, _: BdevId, lba: u64, buf: &mut [u8]) -> bool {
        let is_free = self.floor.is_none() && self.disk.is_free(lba, buf.len());
        if is_free {
            buf.copy_from_slice(&self.disk.bytes[lba as usize * BLOCK..][..buf.len()]);
        }
        is_free
    }

    fn lend_now(&mut self, _: BdevId, lba: u64, bytes: usize) -> Option<Lent> {
        if !self.disk.lends || self.floor.is_some() || !self.disk.is_free(lba, bytes) {
            return None;
        }
        let Disk { shelf: (shelf, piece, _), bytes: all, .. } = &mut *self.disk;
        if Rc::get_mut(piece).is_none() {
            shelf.replace(piece, false);
        }
        Rc::get_mut(piece).unwrap()[..bytes].copy_from_slice(&all[lba as usize * BLOCK..][..bytes]);
        shelf.lend(piece, 0, bytes)
    }

    fn write_now(&mut self, _: BdevId, lba: u64, data: &[u8]) -> bool {
        let is_free = self.floor.is_none() && self.disk.is_free(lba, data.len());
        if is_free {
            self.disk.assert_alive(data);
            self.disk.bytes[lba as usize * BLOCK..][..data.len()].copy_from_slice(data);
        }
        is_free
    }

    fn status(&mut self, tag: Tag, bdev: BdevId, from_bytes: u64, bytes: u64) {
        match &mut self.floor {
            Some(floor) => floor.status(tag, bdev, from_bytes, bytes),
            None => self.disk.questions.push_back((self.core, tag, from_bytes, bytes)),
        }
    }

    fn abandon(&mut self, bdev: BdevId, tag: Tag) {
        if let Some(floor) = &mut self.floor {
            return floor.abandon(bdev, tag);
        }
        self.disk.abandoned.push(tag);
        for request in &mut self.disk.waiting {
            if request.core == self.core && request.io.tag == tag && !request.begun {
                // Ends without having been anything.
                request.io.blocks = 0;
            }
        }
    }

    fn copy(&mut self, io: CopyIo) {
        self.disk.copies.push_back((self.core, io, false));
        if let Some(floor) = &mut self.floor {
            floor.copy(io);
        }
    }

    fn abandon_copies(&mut self, tag: Tag) {
        if let Some(floor) = &mut self.floor {
            return floor.abandon_copies(tag);
        }
        for (core, io, given_up) in &mut self.disk.copies {
            *given_up |= *core == self.core && io.tag == tag;
        }
    }

    fn post(&mut self, to: Core, mail: Mail) {
        assert_ne!(to.index(), self.core, "a target keeps its mail to itself");
        if let Some(floor) = &mut self.floor {
            return floor.post(to, mail);
        }
        let cores = self.mail.len().isqrt();
        self.mail[self.core * cores + to.index()].push_back(mail);
    }
}

/// What a request wants written.
pub(crate) fn written(io: &Io, block: usize) -> &[u8] {
    match (io.op, &io.buf) {
        (Op::Write | Op::WriteAtomic, Some(buf)) => buf,
        (Op::CompareAndWrite, Some(buf)) => &buf[io.blocks as usize * block..],
        _ => &[],
    }
}

impl Disk {
    /// Whether a request of so many bytes may be done as it comes.
    fn is_free(&self, lba: u64, bytes: usize) -> bool {
        let end = lba + (bytes / BLOCK) as u64;
        let meets = |request: &Request| {
            let io = &request.io;
            io.lba < end && lba < io.lba + io.blocks
        };
        let is_open = self.at_once && !self.stuck && !self.full && self.copies.is_empty();
        is_open && !self.waiting.iter().any(meets)
    }

    /// Writes whose end was answered are not carried out.
    fn assert_alive(&self, written: &[u8]) {
        if !self.dead.is_empty() {
            for stamp in written.chunks(BLOCK).map(stamp_of) {
                assert!(!self.dead.contains(&stamp), "write {stamp} is late: its end was answered");
            }
        }
    }

    /// Takes the request at `place` out, or one before it that it must not pass, and carries it out.
    pub(crate) fn finish(&mut self, place: usize) -> (usize, Done) {
        let range = |io: &Io| io.lba..io.lba + io.blocks;
        let mut place = place;
        while let Some(earlier) = (0..place).find(|&earlier| {
            let (one, two) = (range(&self.waiting[earlier].io), range(&self.waiting[place].io));
            one.start < two.end && two.start < one.end
        }) {
            place = earlier;
        }
        let Request { core, mut io, .. } = self.waiting.remove(place).unwrap();
        let is_abandoned = io.op.has_data() && io.blocks == 0;
        let result = if is_abandoned { Err(IoError::ABANDONED) } else { self.carry_out(&mut io) };
        (core, Done { io, result })
    }

    /// A request that the floor had is back.
    fn ended(&mut self, core: usize, done: &Done) {
        let io = &done.io;
        let is_it = |request: &Request| {
            let other = &request.io;
            request.core == core && (other.tag, other.bdev, other.lba) == (io.tag, io.bdev, io.lba)
        };
        let place = self.waiting.iter().position(is_it).expect("it was asked for");
        let Request { stamp, .. } = self.waiting.remove(place).unwrap();
        if done.result == Err(IoError::OutOfSpace) {
            self.full = true;
            self.refused.push((stamp, io.lba, io.blocks));
        }
    }

    fn copy_ended(&mut self, core: usize, copied: &Copied) {
        let place = self.copies.iter().position(|(of, io, _)| (*of, *io) == (core, copied.io));
        self.copies.remove(place.expect("it was asked for"));
        if copied.result == Err(IoError::OutOfSpace) {
            self.full = true;
            let (at, bytes) = (copied.io.destination_bytes, copied.io.bytes);
            self.refused.push((0, at / BLOCK as u64, bytes / BLOCK as u64));
        }
    }

    /// Carries out the oldest copy, unless it was given up.
    pub(crate) fn finish_copy(&mut self) -> (usize, Copied) {
        let (core, io, given_up) = self.copies.pop_front().unwrap();
        if given_up {
            return (core, Copied { io, result: Err(IoError::ABANDONED), moved: Moved::default() });
        }
        if self.full {
            self.refused.push((0, io.destination_bytes / BLOCK as u64, io.bytes / BLOCK as u64));
            return (core, Copied { io, result: Err(IoError::OutOfSpace), moved: Moved::default() });
        }
        let (from, to) = (io.source_bytes as usize, io.destination_bytes as usize);
        let is_store = |bdev| tokens_of(bdev) == Some(bdev);
        let blocks = |first: usize| (first / BLOCK) as u64..((first + io.bytes as usize) / BLOCK) as u64;
        let data = if is_store(io.source) {
            blocks(from).flat_map(|block| self.store[&block].clone()).collect()
        } else {
            self.bytes[from..from + io.bytes as usize].to_vec()
        };
        if is_store(io.destination) {
            self.store.extend(blocks(to).zip(data.chunks(BLOCK).map(<[u8]>::to_vec)));
        } else {
            self.bytes[to..to + data.len()].copy_from_slice(&data);
        }
        let moved = Moved { shared_bytes: io.bytes, ..Moved::default() };
        (core, Copied { io, result: Ok(()), moved })
    }

    pub(crate) fn carry_out(&mut self, io: &mut Io) -> Result<(), IoError> {
        if tokens_of(io.bdev) == Some(io.bdev) {
            assert_eq!(io.op, Op::Unmap);
            self.store.retain(|block, _| !(io.lba..io.lba + io.blocks).contains(block));
            return Ok(());
        }
        let at = io.lba as usize * BLOCK;
        let end = at + io.blocks as usize * BLOCK;
        let written = written(io, BLOCK);
        self.assert_alive(written);
        let range = &mut self.bytes[at..end];
        let takes_space = match io.op {
            Op::Write | Op::OrWrite | Op::WriteAtomic => true,
            Op::Stage => unreachable!("no asker's"),
            Op::CompareAndWrite => io.buf.as_ref().unwrap()[..range.len()] == *range,
            Op::WriteZeroes => self.zeroes_take_space,
            Op::Read | Op::Compare | Op::Unmap | Op::Flush => false,
        };
        if self.full && takes_space && io.blocks > 0 {
            self.refused.push((written.chunks(BLOCK).next().map_or(0, stamp_of), io.lba, io.blocks));
            return Err(IoError::OutOfSpace);
        }
        match io.op {
            Op::Read => io.buf.as_mut().unwrap().copy_from_slice(range),
            Op::Write | Op::WriteAtomic => range.copy_from_slice(io.buf.as_ref().unwrap()),
            Op::Stage => unreachable!("no asker's"),
            Op::WriteZeroes | Op::Unmap => range.fill(0),
            Op::Flush => {}
            Op::Compare => {
                let differs = io.buf.as_ref().unwrap().iter().zip(&*range).position(|(a, b)| a != b);
                if let Some(offset) = differs {
                    return Err(IoError::Miscompare { offset_bytes: offset as u32 });
                }
            }
            Op::OrWrite => range.iter_mut().zip(io.buf.as_ref().unwrap().iter()).for_each(|(a, b)| *a |= b),
            Op::CompareAndWrite => {
                let (expected, new) = io.buf.as_ref().unwrap().split_at(range.len());
                if let Some(offset) = expected.iter().zip(&*range).position(|(a, b)| a != b) {
                    return Err(IoError::Miscompare { offset_bytes: offset as u32 });
                }
                range.copy_from_slice(new);
            }
        }
        Ok(())
    }
}

/// With as many spares as the device lends.
fn shelf() -> (Rc<Shelf>, Rc<Buf>, Pool) {
    const LENDS: u32 = 24;
    let mut pool = Pool::new(PoolConfig { counts: [0, 0, LENDS + 1], arena: u16::MAX }).unwrap();
    let mut take = || Rc::new(pool.take(BUF_BYTES_MAX).unwrap());
    let piece = take();
    let spare = (0..LENDS).map(|_| take()).collect();
    (Shelf::new(LENDS as usize, spare), piece, pool)
}

/// One core.
pub(crate) struct Node {
    pub(crate) target: Target,
    pub(crate) pool: Pool,
}

/// Cores that share a disk. Mail between them is carried by hand, in order from each to each.
pub(crate) struct World {
    pub(crate) buffers: [u32; 3],
    pub(crate) nodes: Vec<Node>,
    pub(crate) disk: Disk,
    /// From core `f` to core `t` at `f * cores + t`.
    pub(crate) mail: Vec<VecDeque<Mail>>,
    pub(crate) now: Time,
    /// In the disk's and the mail's place.
    pub(crate) floor: Option<Box<dyn Floor>>,
}

/// What an initiator asks for in its login.
#[derive(Clone, Copy)]
pub(crate) struct Asks {
    pub(crate) initial_r2t: bool,
    pub(crate) immediate_data: bool,
    pub(crate) digests: bool,
    pub(crate) first_burst: u32,
    pub(crate) max_burst: u32,
    pub(crate) outstanding_r2t: u32,
    pub(crate) segment: u32,
}

impl Default for Asks {
    fn default() -> Asks {
        Asks {
            initial_r2t: false,
            immediate_data: true,
            digests: false,
            first_burst: 16 << 10,
            max_burst: 128 << 10,
            outstanding_r2t: 4,
            segment: 8 << 10,
        }
    }
}

impl World {
    pub(crate) fn new() -> World {
        World::of(1)
    }

    pub(crate) fn of(cores: u16) -> World {
        World::with(cores, [64, 64, LARGE_BUFFERS])
    }

    /// `cores` cores with so many buffers of each class.
    pub(crate) fn with(cores: u16, buffers: [u32; 3]) -> World {
        World::of_units(cores, buffers, vec![lun_config(0), lun_config(1)])
    }

    /// Whose units are volumes of one pool.
    pub(crate) fn of_volumes(cores: u16) -> World {
        World::of_units(cores, [64, 64, LARGE_BUFFERS], vec![volume_config(0), volume_config(1)])
    }

    /// With so many portals, each a target port of one group.
    pub(crate) fn of_portals(cores: u16, portals: u16) -> World {
        let luns = vec![lun_config(0), lun_config(1)];
        World::of_units_at(cores, [64, 64, LARGE_BUFFERS], luns, portals)
    }

    pub(crate) fn of_units(cores: u16, buffers: [u32; 3], luns: Vec<LunConfig>) -> World {
        World::of_units_at(cores, buffers, luns, 1)
    }

    fn of_units_at(cores: u16, buffers: [u32; 3], luns: Vec<LunConfig>, portals: u16) -> World {
        let port = |relative_port| PortConfig { relative_port, tpgt: 1, group: 1 };
        let server =
            ServerConfig { target_name: TARGET.to_owned(), ports: (1..=portals).map(port).collect(), luns };
        let settings = Settings {
            access: Access {
                targets: vec![TargetRule {
                    name: IscsiName::parse(TARGET).unwrap(),
                    alias: None,
                    availability: Availability::Online,
                }],
                ..Access::default()
            },
            negotiation: negotiate::Settings::default(),
            portals: (0..portals).map(portal).collect(),
            portal_group: 1,
            login_timeout: Duration::from_secs(15),
            ping_interval: Duration::from_secs(15),
            ping_timeout: Duration::from_secs(10),
            half_open_max: 8,
            sessions_max: 64,
        };
        let settings = Arc::new(settings);
        let node = |core: u16| Node {
            target: Target::new(
                Core(core),
                cores,
                Arc::clone(&settings),
                DeviceServer::new(Core(core), server.clone()),
                buffers[2],
            ),
            pool: Pool::new(PoolConfig { counts: buffers, arena: core }).unwrap(),
        };
        World {
            buffers,
            nodes: (0..cores).map(node).collect(),
            disk: Disk {
                bytes: vec![0; BLOCKS as usize * BLOCK],
                waiting: VecDeque::new(),
                stuck: false,
                questions: VecDeque::new(),
                begins: true,
                abandoned: Vec::new(),
                copies: VecDeque::new(),
                store: BTreeMap::new(),
                dead: HashSet::new(),
                at_once: false,
                lends: false,
                shelf: shelf(),
                full: false,
                zeroes_take_space: false,
                refused: Vec::new(),
            },
            mail: (0..cores * cores).map(|_| VecDeque::new()).collect(),
            now: Time(1),
            floor: None,
        }
    }

    /// The first core's target.
    pub(crate) fn target(&mut self) -> &mut Target {
        &mut self.nodes[0].target
    }

    /// The first core's free buffers.
    pub(crate) fn free(&mut self) -> [usize; 3] {
        self.nodes[0].pool.free()
    }

    pub(crate) fn env<R>(&mut self, core: usize, act: impl FnOnce(&mut Target, &mut Env<'_>) -> R) -> R {
        let Node { target, pool } = &mut self.nodes[core];
        let floor = self.floor.as_mut().map(|floor| floor.below(core));
        let mut lower = Lower { core, disk: &mut self.disk, mail: &mut self.mail, floor };
        let mut env = Env { now: self.now, pool, below: &mut lower };
        act(target, &mut env)
    }

    /// Hands what has come from the floor to the targets. Whether something had.
    pub(crate) fn absorb(&mut self) -> bool {
        let mut any = false;
        while let Some((core, event)) = self.floor.as_mut().and_then(|floor| floor.poll()) {
            any = true;
            match event {
                Event::Done(done) => {
                    self.disk.ended(core, &done);
                    self.env(core, |target, env| target.io_done(done, env));
                }
                Event::Copied(copied) => {
                    self.disk.copy_ended(core, &copied);
                    self.env(core, |target, env| target.copy_done(&copied, env));
                }
                Event::Status { tag, bytes, mapped } => {
                    self.env(core, |target, env| target.status_done(tag, bytes, mapped, env));
                }
                Event::Mail { from, mail } => self.env(core, |target, env| target.on_mail(from, mail, env)),
            }
        }
        while self.floor.is_some()
            && let Some(keep) = self.nodes[0].target.poll_keep()
        {
            any = true;
            self.floor.iter_mut().for_each(|floor| floor.keep(keep.clone()));
        }
        while let Some((ticket, kept)) = self.floor.as_mut().and_then(|floor| floor.poll_kept()) {
            any = true;
            self.env(0, |target, env| target.kept(ticket, kept, env));
        }
        any
    }

    /// A core's turn, as its node has it.
    pub(crate) fn turn_of(&mut self, core: usize) {
        let now = self.now;
        self.floor.iter_mut().for_each(|floor| floor.turn(core, now));
        self.absorb();
        self.env(core, Target::turn);
        self.floor.iter_mut().for_each(|floor| floor.turn(core, now));
        self.absorb();
    }

    /// One thing that is under way on the floor happens.
    pub(crate) fn floor_step(&mut self) {
        let (now, stuck) = (self.now, self.disk.stuck);
        self.floor.iter_mut().for_each(|floor| floor.step(now, stuck));
        self.absorb();
    }

    /// All that is under way on the floor happens, until nothing does.
    fn settle_floor(&mut self) {
        // Background work is bounded: more rounds are no end.
        for _ in 0..20_000 {
            self.now = self.now + Duration::from_micros(200);
            let (now, stuck) = (self.now, self.disk.stuck);
            let mut more = false;
            for core in 0..self.nodes.len() {
                self.turn_of(core);
            }
            more |= self.floor.as_mut().is_some_and(|floor| floor.round(now, stuck));
            more |= self.absorb();
            if !more {
                return;
            }
        }
        panic!("no end: {:?} {:?}", self.disk.waiting, self.disk.copies);
    }

    /// Delivers the oldest mail on one of the ways. Whether there was one.
    pub(crate) fn deliver(&mut self, way: usize) -> bool {
        let cores = self.nodes.len();
        let Some(mail) = self.mail[way].pop_front() else { return false };
        self.env(way % cores, |target, env| target.on_mail(Core((way / cores) as u16), mail, env));
        true
    }

    /// Lets all cores do what they can, and carries all their mail. Whether anything moved.
    pub(crate) fn turn(&mut self) -> bool {
        let mut any = false;
        loop {
            for core in 0..self.nodes.len() {
                self.env(core, Target::turn);
            }
            let mut moved = false;
            for way in 0..self.mail.len() {
                while self.deliver(way) {
                    moved = true;
                }
            }
            if !moved {
                return any;
            }
            any = true;
        }
    }

    /// Until nothing moves.
    pub(crate) fn settle(&mut self) {
        if self.floor.is_some() {
            return self.settle_floor();
        }
        loop {
            self.turn();
            let is_idle = self.disk.waiting.is_empty() && self.disk.questions.is_empty();
            if self.disk.stuck || is_idle && self.disk.copies.is_empty() {
                return;
            }
            // Every other 4 KiB is mapped.
            while let Some((core, tag, from, bytes)) = self.disk.questions.pop_front() {
                let bytes = bytes.min(4096 - from % 4096);
                let mapped = (from / 4096).is_multiple_of(2);
                self.env(core, |target, env| target.status_done(tag, bytes, mapped, env));
            }
            // Backwards: nothing may depend on the order in which a disk answers.
            while !self.disk.waiting.is_empty() {
                let (core, done) = self.disk.finish(self.disk.waiting.len() - 1);
                self.env(core, |target, env| target.io_done(done, env));
            }
            while !self.disk.copies.is_empty() {
                let (core, copied) = self.disk.finish_copy();
                self.env(core, |target, env| target.copy_done(&copied, env));
            }
        }
    }

    pub(crate) fn tick(&mut self) {
        self.now = self.now + TICK;
        for core in 0..self.nodes.len() {
            self.env(core, Target::tick);
        }
    }

    pub(crate) fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.tick();
            self.settle();
        }
    }

    /// Everything was given back and forgotten on every core.
    pub(crate) fn assert_clean(&mut self) {
        for Node { target, pool } in &mut self.nodes {
            assert_eq!(pool.free(), self.buffers.map(|count| count as usize));
            assert_eq!(target.leftovers(), None);
        }
    }

    pub(crate) fn connect(&mut self) -> Initiator {
        self.connect_to(0)
    }

    pub(crate) fn connect_to(&mut self, core: usize) -> Initiator {
        self.connect_at(core, 0)
    }

    /// By the portal in this place of the list.
    pub(crate) fn connect_at(&mut self, core: usize, place: u16) -> Initiator {
        let here = portal(place);
        let there = "127.0.0.1:40000".parse().unwrap();
        if let Some(oldest) = self.nodes[core].target.half_open_over_bound() {
            self.env(core, |target, env| target.close_connection(oldest, env));
        }
        let slot = self.nodes[core].target.accept(here, there, self.now).unwrap();
        Initiator {
            core,
            slot,
            cmd_sn: 1,
            exp_stat_sn: 0,
            max_cmd_sn: 1,
            digests: false,
            asks: Asks::default(),
            received: Vec::new(),
            carry: Vec::new(),
            next_itt: 1,
        }
    }

    pub(crate) fn login_as(&mut self, isid: u8, asks: Asks) -> Initiator {
        let mut initiator = self.connect();
        initiator.login(self, isid, asks);
        initiator
    }

    pub(crate) fn login(&mut self) -> Initiator {
        self.login_as(1, Asks::default())
    }
}

/// One PDU from the target.
#[derive(Clone, Debug)]
pub(crate) struct Pdu {
    pub(crate) bhs: [u8; 48],
    pub(crate) data: Vec<u8>,
}

impl Pdu {
    pub(crate) fn opcode(&self) -> u8 {
        self.bhs[0] & 0x3f
    }

    pub(crate) fn word(&self, at: usize) -> u32 {
        u32::from_be_bytes(self.bhs[at..at + 4].try_into().unwrap())
    }

    pub(crate) fn itt(&self) -> u32 {
        self.word(16)
    }
}

pub(crate) struct Initiator {
    pub(crate) core: usize,
    pub(crate) slot: Slot,
    pub(crate) cmd_sn: u32,
    pub(crate) exp_stat_sn: u32,
    pub(crate) max_cmd_sn: u32,
    pub(crate) digests: bool,
    pub(crate) asks: Asks,
    pub(crate) received: Vec<u8>,
    /// Sent, and not yet taken by the target.
    pub(crate) carry: Vec<u8>,
    pub(crate) next_itt: u32,
}

fn portal(place: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 3260 + place))
}

pub(crate) fn digest(bytes: &[u8]) -> [u8; 4] {
    let mut crc = Crc::new();
    crc.update(bytes);
    crc.finish()
}

impl Initiator {
    /// A PDU's bytes.
    pub(crate) fn frame(&self, mut bhs: [u8; 48], data: &[u8]) -> Vec<u8> {
        bhs[5..8].copy_from_slice(&(data.len() as u32).to_be_bytes()[1..]);
        let mut bytes = bhs.to_vec();
        if self.digests {
            bytes.extend(digest(&bhs));
        }
        let mut padded = data.to_vec();
        padded.resize(data.len().next_multiple_of(4), 0);
        bytes.extend(&padded);
        if self.digests && !data.is_empty() {
            bytes.extend(digest(&padded));
        }
        bytes
    }

    pub(crate) fn send(&mut self, world: &mut World, bytes: &[u8]) {
        self.carry.extend_from_slice(bytes);
        self.retry(world);
    }

    /// Hands in what the target has not taken yet, in two parts, and lets it work.
    pub(crate) fn retry(&mut self, world: &mut World) {
        self.push(world, &[]);
        world.settle();
    }

    /// Hands in what the target has not taken yet and these bytes behind it, in two parts.
    pub(crate) fn push(&mut self, world: &mut World, bytes: &[u8]) {
        self.carry.extend_from_slice(bytes);
        let bytes = std::mem::take(&mut self.carry);
        let middle = bytes.len() / 3;
        let mut rest = 0;
        for end in [middle, bytes.len()] {
            let slot = self.slot;
            match world.env(self.core, |target, env| target.feed(slot, &bytes[rest..end], env)) {
                Feed::Done => rest = end,
                Feed::Stalled { taken } => {
                    rest += taken;
                    break;
                }
            }
        }
        self.carry = bytes[rest..].to_vec();
    }

    /// All that the target has to say now.
    pub(crate) fn hear(&mut self, world: &mut World) -> Vec<Pdu> {
        loop {
            let slot = self.slot;
            let bytes: Vec<u8> = {
                let mut slices = [IoSlice::new(&[]); 7];
                let count = world.nodes[self.core].target.transmit(slot, &mut slices);
                // As if the socket took a part only.
                slices[..count].iter().flat_map(|slice| slice.iter().copied()).take(3000).collect()
            };
            if bytes.is_empty() {
                break;
            }
            self.received.extend_from_slice(&bytes);
            world.env(self.core, |target, env| target.sent(slot, bytes.len(), env));
            world.settle();
        }
        self.take_pdus()
    }

    /// The PDUs that have been received whole.
    pub(crate) fn take_pdus(&mut self) -> Vec<Pdu> {
        let mut pdus = Vec::new();
        while let Some(bhs) = self.received.first_chunk::<48>().copied() {
            let data_bytes = u32::from_be_bytes([0, bhs[5], bhs[6], bhs[7]]) as usize;
            let is_login = bhs[0] & 0x3f == 0x23;
            let digests = self.digests && !is_login;
            let header = 48 + if digests { 4 } else { 0 };
            let padded = data_bytes.next_multiple_of(4);
            let whole = header + padded + if digests && data_bytes > 0 { 4 } else { 0 };
            if self.received.len() < whole {
                break;
            }
            let bytes: Vec<u8> = self.received.drain(..whole).collect();
            if digests {
                assert_eq!(bytes[48..52], digest(&bytes[..48]));
                if data_bytes > 0 {
                    assert_eq!(bytes[whole - 4..], digest(&bytes[header..header + padded]));
                }
            }
            let pdu = Pdu { bhs, data: bytes[header..header + data_bytes].to_vec() };
            self.note(&pdu);
            pdus.push(pdu);
        }
        pdus
    }

    pub(crate) fn note(&mut self, pdu: &Pdu) {
        let uses_number = match pdu.opcode() {
            0x25 => pdu.bhs[1] & 1 != 0,
            0x31 => false,
            0x20 => pdu.itt() != u32::MAX,
            _ => true,
        };
        if uses_number {
            assert_eq!(pdu.word(24), self.exp_stat_sn, "StatSN of {pdu:?}");
            self.exp_stat_sn = self.exp_stat_sn.wrapping_add(1);
        }
        self.max_cmd_sn = pdu.word(32);
    }

    pub(crate) fn login_request(&mut self, isid: u8, asks: Asks) -> Vec<u8> {
        self.asks = asks;
        let yes = |yes: bool| if yes { "Yes" } else { "No" };
        let wanted = if asks.digests { "CRC32C,None" } else { "None" };
        let text = format!(
            "InitiatorName={INITIATOR}\0TargetName={TARGET}\0SessionType=Normal\0\
             HeaderDigest={wanted}\0DataDigest={wanted}\0InitialR2T={}\0ImmediateData={}\0FirstBurstLength={}\0\
             MaxBurstLength={}\0MaxOutstandingR2T={}\0MaxRecvDataSegmentLength={}\0",
            yes(asks.initial_r2t),
            yes(asks.immediate_data),
            asks.first_burst,
            asks.max_burst,
            asks.outstanding_r2t,
            asks.segment
        );
        let mut bhs = [0; 48];
        bhs[0] = 0x43;
        bhs[1] = 0x87;
        bhs[8..14].copy_from_slice(&[0, 2, 0x3d, 0, 0, isid]);
        bhs[24..28].copy_from_slice(&self.cmd_sn.to_be_bytes());
        self.frame(bhs, text.as_bytes())
    }

    pub(crate) fn login(&mut self, world: &mut World, isid: u8, asks: Asks) {
        let bytes = self.login_request(isid, asks);
        self.send(world, &bytes);
        let answer = self.hear(world);
        assert_eq!(answer.len(), 1, "{answer:?}");
        assert_eq!((answer[0].opcode(), answer[0].bhs[36]), (0x23, 0), "{answer:?}");
        let said = String::from_utf8_lossy(&answer[0].data).into_owned();
        if asks.digests {
            assert!(said.contains("HeaderDigest=CRC32C") && said.contains("DataDigest=CRC32C"), "{said}");
        }
        self.digests = asks.digests;
    }

    pub(crate) fn take_itt(&mut self) -> u32 {
        self.next_itt += 1;
        self.next_itt
    }

    pub(crate) fn command(&mut self, lun: u8, cdb: &[u8], flags: u8, edtl: usize) -> [u8; 48] {
        let mut bhs = [0; 48];
        bhs[0] = 0x01;
        bhs[1] = flags | 0x01;
        bhs[9] = lun;
        bhs[16..20].copy_from_slice(&self.take_itt().to_be_bytes());
        bhs[20..24].copy_from_slice(&(edtl as u32).to_be_bytes());
        bhs[24..28].copy_from_slice(&self.cmd_sn.to_be_bytes());
        bhs[28..32].copy_from_slice(&self.exp_stat_sn.to_be_bytes());
        bhs[32..32 + cdb.len()].copy_from_slice(cdb);
        self.cmd_sn = self.cmd_sn.wrapping_add(1);
        bhs
    }

    /// Clears the unit attentions that a new session begins with.
    pub(crate) fn test_ready(&mut self, world: &mut World) {
        for lun in 0..2 {
            for _ in 0..4 {
                let bhs = self.command(lun, &[0; 6], 0x80, 0);
                let bytes = self.frame(bhs, &[]);
                self.send(world, &bytes);
                if self.hear(world)[0].bhs[3] == 0 {
                    break;
                }
            }
        }
    }

    pub(crate) fn read(&mut self, world: &mut World, lba: u32, blocks: u32) -> Vec<u8> {
        let bytes = blocks as usize * BLOCK;
        let bhs = self.command(0, &cdb16(0x88, lba, blocks), 0xc0, bytes);
        let frame = self.frame(bhs, &[]);
        self.send(world, &frame);
        let mut data = Vec::new();
        let (mut data_sn, mut burst) = (0, 0);
        for pdu in self.hear(world) {
            assert_eq!(pdu.opcode(), 0x25, "{pdu:?}");
            assert_eq!(pdu.word(36), data_sn);
            assert_eq!(pdu.word(40) as usize, data.len());
            assert!(pdu.data.len() <= self.asks.segment as usize);
            burst += pdu.data.len();
            assert!(burst <= self.asks.max_burst as usize);
            if pdu.bhs[1] & 0x80 != 0 {
                burst = 0;
            }
            data_sn += 1;
            data.extend_from_slice(&pdu.data);
            if data.len() == bytes {
                assert_eq!(pdu.bhs[1], 0x81, "the last one is final and carries the status");
                assert_eq!(pdu.bhs[3], 0);
            }
        }
        assert_eq!(data.len(), bytes);
        data
    }

    /// Writes, following what was agreed. `spoil` may change a PDU's bytes before it leaves.
    pub(crate) fn write(&mut self, world: &mut World, lba: u32, data: &[u8]) -> Pdu {
        let blocks = (data.len() / BLOCK) as u32;
        let asks = self.asks;
        let first = data.len().min(asks.first_burst as usize);
        let immediate = if asks.immediate_data { first.min(asks.segment as usize) } else { 0 };
        let unsolicited = if asks.initial_r2t { immediate } else { first };
        let is_final = unsolicited == immediate;
        let bhs = self.command(0, &cdb16(0x8a, lba, blocks), if is_final { 0xa0 } else { 0x20 }, data.len());
        let itt = u32::from_be_bytes(bhs[16..20].try_into().unwrap());
        let frame = self.frame(bhs, &data[..immediate]);
        self.send(world, &frame);
        if !is_final {
            self.data_out(world, itt, u32::MAX, immediate, &data[..unsolicited]);
        }
        for _ in 0..1000 {
            let pdus = self.hear(world);
            let r2ts: Vec<Pdu> = pdus.iter().filter(|pdu| pdu.opcode() == 0x31).cloned().collect();
            assert!(r2ts.len() <= asks.outstanding_r2t as usize);
            for r2t in &r2ts {
                let (ttt, offset, bytes) = (r2t.word(20), r2t.word(40) as usize, r2t.word(44) as usize);
                assert!(bytes <= asks.max_burst as usize);
                self.data_out(world, itt, ttt, offset, &data[..offset + bytes]);
            }
            if let Some(response) = pdus.into_iter().find(|pdu| pdu.opcode() == 0x21) {
                return response;
            }
            assert!(!r2ts.is_empty(), "neither R2T nor response");
        }
        unreachable!("no end of R2Ts");
    }

    /// Data-Out PDUs for `data[from..]`.
    pub(crate) fn data_out(&mut self, world: &mut World, itt: u32, ttt: u32, from: usize, data: &[u8]) {
        let mut at = from;
        let mut data_sn = 0u32;
        while at < data.len() {
            let end = data.len().min(at + 8192);
            let bhs = data_out_header(itt, ttt, data_sn, at, end == data.len());
            let frame = self.frame(bhs, &data[at..end]);
            self.send(world, &frame);
            at = end;
            data_sn += 1;
        }
    }

    pub(crate) fn tmf_request(&mut self, function: u8, lun: u8, referenced: u32) -> Vec<u8> {
        let mut bhs = [0; 48];
        bhs[0] = 0x42;
        bhs[1] = 0x80 | function;
        bhs[9] = lun;
        bhs[16..20].copy_from_slice(&self.take_itt().to_be_bytes());
        bhs[20..24].copy_from_slice(&referenced.to_be_bytes());
        bhs[24..28].copy_from_slice(&self.cmd_sn.to_be_bytes());
        self.frame(bhs, &[])
    }

    pub(crate) fn tmf(&mut self, world: &mut World, function: u8, lun: u8, referenced: u32) -> u32 {
        let frame = self.tmf_request(function, lun, referenced);
        self.send(world, &frame);
        self.next_itt
    }

    pub(crate) fn logout_request(&mut self) -> Vec<u8> {
        let mut bhs = [0; 48];
        bhs[0] = 0x46;
        bhs[1] = 0x80;
        bhs[16..20].copy_from_slice(&self.take_itt().to_be_bytes());
        bhs[24..28].copy_from_slice(&self.cmd_sn.to_be_bytes());
        self.frame(bhs, &[])
    }

    /// The answer to the target's ping.
    pub(crate) fn pong(&mut self, ttt: u32) -> Vec<u8> {
        let mut bhs = [0; 48];
        bhs[0] = 0x40;
        bhs[1] = 0x80;
        bhs[16..20].fill(0xff);
        bhs[20..24].copy_from_slice(&ttt.to_be_bytes());
        bhs[24..28].copy_from_slice(&self.cmd_sn.to_be_bytes());
        self.frame(bhs, &[])
    }

    pub(crate) fn ping_request(&mut self, data: &[u8]) -> Vec<u8> {
        let mut bhs = [0; 48];
        bhs[0] = 0x40;
        bhs[1] = 0x80;
        bhs[16..20].copy_from_slice(&self.take_itt().to_be_bytes());
        bhs[20..24].fill(0xff);
        bhs[24..28].copy_from_slice(&self.cmd_sn.to_be_bytes());
        self.frame(bhs, data)
    }

    pub(crate) fn ping(&mut self, world: &mut World, data: &[u8]) -> u32 {
        let frame = self.ping_request(data);
        self.send(world, &frame);
        self.next_itt
    }
}

pub(crate) fn data_out_header(itt: u32, ttt: u32, data_sn: u32, offset: usize, is_final: bool) -> [u8; 48] {
    let mut bhs = [0; 48];
    bhs[0] = 0x05;
    bhs[1] = if is_final { 0x80 } else { 0 };
    bhs[16..20].copy_from_slice(&itt.to_be_bytes());
    bhs[20..24].copy_from_slice(&ttt.to_be_bytes());
    bhs[36..40].copy_from_slice(&data_sn.to_be_bytes());
    bhs[40..44].copy_from_slice(&(offset as u32).to_be_bytes());
    bhs
}

pub(crate) fn cdb16(opcode: u8, lba: u32, blocks: u32) -> [u8; 16] {
    let mut cdb = [0; 16];
    cdb[0] = opcode;
    cdb[6..10].copy_from_slice(&lba.to_be_bytes());
    cdb[10..14].copy_from_slice(&blocks.to_be_bytes());
    cdb
}

pub(crate) fn pattern(bytes: usize, seed: u8) -> Vec<u8> {
    (0..bytes)
        .map(|at| (at as u8).wrapping_mul(31).wrapping_add((at >> 9) as u8).wrapping_add(seed))
        .collect()
}
