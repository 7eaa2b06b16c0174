//! All of the crate against an array, for tests: routers and shards of several cores over one faulty disk, in one
//! thread, every order of events chosen by a seed.
//!
//! The array holds for each block the values it may have. A write's value may be there from its submission on; once
//! the write has ended well, what had ended before it was submitted is not there any more.

use crate::align::Align;
use crate::atomic::{Atomic, Steps};
use crate::base::ram::{self, Ram};
use crate::base::uring::{Uring, UringConfig};
use crate::error::IoError;
use crate::geometry::Geometry;
use crate::io::{BdevId, Done, Io, Op, PIECE_BYTES, Tag};
use crate::router::Router;
use crate::shard::{Mail, Shard};
use crate::stack::Stack;
use crate::stripe::{Deal, STRIPE_BYTES};
use proptest::prelude::*;
use reactor::Core;
use reactor::buf::{BUF_BYTES_MAX, Buf, Pool, PoolConfig};
use reactor::disk::{DiskAction, DiskDone, DiskOp, FileId};

/// xorshift64: the seed's choices.
#[derive(Debug)]
pub(crate) struct Chance(u64);

impl Chance {
    pub(crate) fn new(seed: u64) -> Chance {
        Chance(seed | 1)
    }

    pub(crate) fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as usize % end
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

/// A file whose writes are lost with power until they are synced, and which fails as it is told to.
#[derive(Debug)]
pub(crate) struct Disk {
    /// What reads see.
    pub(crate) seen: Vec<u8>,
    /// What survives power loss.
    pub(crate) medium: Vec<u8>,
    pub(crate) align_bytes: u64,
    pub(crate) punch_hole: bool,
    pub(crate) zero_range: bool,
    /// One operation in this many is cut short, told to try again, or, a tenth as often, fails. 0: never.
    pub(crate) faults: usize,
    pub(crate) chance: Chance,
}

impl Disk {
    pub(crate) fn new(bytes: u64, align_bytes: u64, seed: u64) -> Disk {
        Disk {
            seen: vec![0; bytes as usize],
            medium: vec![0; bytes as usize],
            align_bytes,
            punch_hole: true,
            zero_range: true,
            faults: 0,
            chance: Chance::new(seed),
        }
    }

    /// Performs an operation as a kernel would.
    pub(crate) fn perform(&mut self, mut op: DiskOp) -> DiskDone {
        let result = self.result(&mut op);
        DiskDone { user: op.user, result, buf: op.buf }
    }

    fn result(&mut self, op: &mut DiskOp) -> Result<u32, i32> {
        const EINTR: i32 = 4;
        const EIO: i32 = 5;
        const EAGAIN: i32 = 11;
        const EOPNOTSUPP: i32 = 95;
        let (at, end) = (op.offset_bytes as usize, (op.offset_bytes + op.bytes) as usize);
        assert!(end <= self.seen.len());
        if matches!(op.action, DiskAction::Read | DiskAction::Write { .. }) {
            assert!((op.offset_bytes | op.bytes | u64::from(op.buf_offset)).is_multiple_of(self.align_bytes));
        }
        let mut bytes = op.bytes as usize;
        if self.faults != 0 && self.chance.one_in(self.faults) {
            match self.chance.below(10) {
                0 => return Err(EIO),
                1..=3 => return Err(EAGAIN),
                4 => return Err(EINTR),
                // A read of nothing would be the end of the file.
                _ if bytes > 4 => bytes = 4 + self.chance.below(bytes / 4 - 1) * 4,
                _ => {}
            }
        }
        let memory = op.buf_offset as usize..op.buf_offset as usize + bytes;
        match op.action {
            DiskAction::Read => {
                op.buf.as_mut().unwrap()[memory].copy_from_slice(&self.seen[at..at + bytes]);
                return Ok(bytes as u32);
            }
            DiskAction::Write { durable } => {
                self.seen[at..at + bytes].copy_from_slice(&op.buf.as_ref().unwrap()[memory]);
                if durable {
                    self.medium[at..at + bytes].copy_from_slice(&self.seen[at..at + bytes]);
                }
                return Ok(bytes as u32);
            }
            DiskAction::Sync => self.medium.copy_from_slice(&self.seen),
            DiskAction::PunchHole if !self.punch_hole => return Err(EOPNOTSUPP),
            DiskAction::ZeroRange if !self.zero_range => return Err(EOPNOTSUPP),
            DiskAction::PunchHole | DiskAction::ZeroRange => self.seen[at..end].fill(0),
        }
        Ok(0)
    }
}

/// A shape for tests.
pub(crate) fn geometry(block_bytes: u32, bytes: u64) -> Geometry {
    Geometry {
        block_bytes,
        physical_block_bytes: 4096,
        blocks: bytes / u64::from(block_bytes),
        unmap_granularity_bytes: 4096,
        write_zeroes: true,
        write_cache: false,
        read_only: false,
        rotational: false,
        pooled: false,
        atomic_bytes: 0,
    }
}

/// A request of core 0 for device 0.
pub(crate) fn io(tag: u64, op: Op, lba: u64, blocks: u64, buf: Option<Buf>) -> Io {
    let scratch = None;
    let (from, bdev) = (Core(0), BdevId(0));
    let (fua, heartbeat, more_parts) = (false, false, 0);
    Io {
        tag: Tag(tag),
        from,
        bdev,
        op,
        fua,
        heartbeat,
        disposable: false,
        more_parts,
        lba,
        blocks,
        buf,
        scratch,
    }
}

#[derive(Clone, Copy, Debug)]
struct Value {
    word: u32,
    ended: Option<u64>,
    /// It is not there any more since then.
    gone: u64,
    /// The write it is of.
    tag: u64,
    /// A compare and write found it and put its own in its place.
    taken: bool,
}

const NEVER: u64 = u64::MAX;

struct Asked {
    tag: Tag,
    core: usize,
    submitted: u64,
    op: Op,
    lba: u64,
    blocks: u64,
}

/// How compare and writes ended, so that a test can tell that it tried something.
#[derive(Clone, Copy, Debug, Default)]
struct Swaps {
    done: u32,
    differed: u32,
    given_up: u32,
}

#[derive(Clone, Copy, Debug)]
enum Base {
    Ram,
    File { align_bytes: u32, punch_hole: bool, zero_range: bool, write_cache: bool, faults: usize },
}

struct World {
    geometry: Geometry,
    base: Base,
    routers: Vec<Router>,
    shards: Vec<Shard>,
    /// To a core.
    mail: Vec<(usize, Mail)>,
    at_disk: Vec<(usize, DiskOp)>,
    disk: Disk,
    pool: Pool,
    array: Vec<Vec<Value>>,
    asked: Vec<Asked>,
    now: u64,
    chance: Chance,
    swaps: Swaps,
}

const DEVICE_BYTES: u64 = 2 * STRIPE_BYTES + 3 * STRIPE_BYTES / 4;

impl World {
    fn new(cores: u16, block_bytes: u32, base: Base, seed: u64) -> World {
        let mut geometry = geometry(block_bytes, DEVICE_BYTES);
        let mut pool = Pool::new(PoolConfig { counts: [0, 0, 256], arena: 0 }).unwrap();
        let mut disk = Disk::new(DEVICE_BYTES, 1, seed);
        if let Base::File { align_bytes, punch_hole, zero_range, write_cache, faults } = base {
            geometry.write_cache = write_cache;
            disk = Disk { align_bytes: u64::from(align_bytes), punch_hole, zero_range, faults, ..disk };
        }
        let deal = Deal::among(cores);
        let shard = |core| {
            let mut bufs = |count| (0..count).map(|_| pool.take(BUF_BYTES_MAX).unwrap()).collect();
            let steps = Steps { zeroes_bytes: 1 << 20, unmap_bytes: 3 << 20 };
            let stack = match base {
                Base::Ram => {
                    let steps = Steps { zeroes_bytes: ram::STEP_BYTES, unmap_bytes: ram::STEP_BYTES };
                    Stack::Ram(Atomic::over(Ram::new(geometry, deal, core).unwrap(), steps, 512))
                }
                Base::File { align_bytes, .. } => {
                    let (bdev, file) = (BdevId(0), FileId(0));
                    // What the file system can't do comes out when it is asked to.
                    let config = UringConfig { bdev, file, align_bytes, punch_hole: true, zero_range: true };
                    let uring = Uring::new(geometry, config, bufs(2), 512);
                    if align_bytes <= block_bytes {
                        Stack::File(Atomic::over(uring, steps, 512))
                    } else {
                        let align = Align::over(uring, align_bytes, bufs(2), 512);
                        Stack::SmallBlocks(Atomic::over(align, steps, 512))
                    }
                }
            };
            Shard::new(core, vec![stack])
        };
        let shards = (0..cores).map(Core).map(shard).collect();
        let routers = (0..cores).map(|core| Router::new(Core(core), cores, [geometry].into())).collect();
        let first = Value { word: 0, ended: Some(0), gone: NEVER, tag: u64::MAX, taken: false };
        World {
            geometry,
            base,
            routers,
            shards,
            mail: Vec::new(),
            at_disk: Vec::new(),
            disk,
            pool,
            array: vec![vec![first]; geometry.blocks as usize],
            asked: Vec::new(),
            now: 1,
            chance: Chance::new(seed.rotate_left(17)),
            swaps: Swaps::default(),
        }
    }

    fn buf(&mut self, blocks: u64, word: u32) -> Option<Buf> {
        let bytes = (blocks * u64::from(self.geometry.block_bytes)) as usize;
        let mut buf = self.pool.take(bytes)?;
        buf.chunks_exact_mut(4).for_each(|four| four.copy_from_slice(&word.to_ne_bytes()));
        Some(buf)
    }

    /// For a compare and write: each block's youngest value or, now and then, an older one, and then the new one.
    fn swap_buf(&mut self, lba: u64, blocks: u64, new: u32) -> Option<Buf> {
        let mut buf = self.buf(2 * blocks, new)?;
        let block_bytes = self.geometry.block_bytes as usize;
        for (block, values) in
            buf.chunks_exact_mut(block_bytes).zip(&self.array[lba as usize..][..blocks as usize])
        {
            let back = if self.chance.one_in(16) { self.chance.below(values.len()) } else { 0 };
            let word = values[values.len() - 1 - back].word;
            block.chunks_exact_mut(4).for_each(|four| four.copy_from_slice(&word.to_ne_bytes()));
        }
        Some(buf)
    }

    /// Submits a request of the seed's choice, mostly where others are.
    fn submit(&mut self) {
        let block_bytes = u64::from(self.geometry.block_bytes);
        let op = match self.chance.below(20) {
            0..=4 => Op::Read,
            5..=9 => Op::Write,
            10 => Op::WriteZeroes,
            11 => Op::Unmap,
            12 => Op::Flush,
            13 => Op::Compare,
            14 | 15 => Op::OrWrite,
            _ => Op::CompareAndWrite,
        };
        // Around stripe edges, in a few pieces.
        let place = self.chance.below(3) as u64 * STRIPE_BYTES;
        let piece = (place + self.chance.below(2) as u64 * PIECE_BYTES).saturating_sub(PIECE_BYTES);
        let piece_blocks = PIECE_BYTES / block_bytes;
        let most = if self.chance.one_in(4) { piece_blocks } else { 20 };
        let within = self.chance.below(most.min(piece_blocks) as usize) as u64;
        let mut lba = piece / block_bytes + within;
        let mut blocks = 1 + self.chance.below((piece_blocks - within) as usize) as u64;
        if !self.chance.one_in(4) {
            blocks = blocks.min(9);
        }
        match op {
            Op::Flush => (lba, blocks) = (0, 0),
            // Both halves have to fit a buffer.
            Op::CompareAndWrite => blocks = blocks.min(piece_blocks / 2),
            Op::WriteZeroes | Op::Unmap if self.chance.one_in(3) => {
                blocks = 1 + self.chance.below((self.geometry.blocks - lba) as usize) as u64;
            }
            _ => {}
        }
        let tag = self.now;
        let mut buf = None;
        let mut scratch = None;
        if op.has_data() {
            let word = match op {
                Op::Write => tag as u32,
                // ORing nothing changes nothing, unless it undoes a write that came between.
                Op::OrWrite | Op::Read => 0,
                _ => self.array[lba as usize].last().unwrap().word,
            };
            buf = match op {
                Op::CompareAndWrite => self.swap_buf(lba, blocks, tag as u32),
                _ => self.buf(blocks, word),
            };
            if op.needs_scratch() {
                scratch = self.buf(blocks, 0xdead_beef);
            }
            if buf.is_none() || (op.needs_scratch() && scratch.is_none()) {
                return;
            }
        }
        let core = self.chance.below(self.routers.len());
        self.now += 1;
        if matches!(op, Op::Write | Op::WriteZeroes | Op::Unmap | Op::CompareAndWrite) {
            let word = if matches!(op, Op::Write | Op::CompareAndWrite) { tag as u32 } else { 0 };
            for values in &mut self.array[lba as usize..(lba + blocks) as usize] {
                values.push(Value { word, ended: None, gone: NEVER, tag, taken: false });
            }
        }
        let fua = self.chance.one_in(8);
        self.asked.push(Asked { tag: Tag(tag), core, submitted: tag, op, lba, blocks });
        let from = Core(core as u16);
        self.routers[core].submit(Io {
            tag: Tag(tag),
            from,
            bdev: BdevId(0),
            op,
            fua,
            heartbeat: false,
            disposable: false,
            more_parts: 0,
            lba,
            blocks,
            buf,
            scratch,
        });
        self.carry(core);
    }

    /// Gives up one of the requests under way.
    fn abandon(&mut self) {
        if self.asked.is_empty() {
            return;
        }
        let Asked { core, tag, op, lba, .. } = self.asked[self.chance.below(self.asked.len())];
        let from = Core(core as u16);
        if op.has_data() {
            let owner =
                Deal::among(self.routers.len() as u16).owner(lba * u64::from(self.geometry.block_bytes));
            self.shards[owner.index()].abandon(from, BdevId(0), tag);
        } else {
            let mut told = Vec::new();
            self.routers[core].abandon(tag, |core, bdev, tag| told.push((core, bdev, tag)));
            for (core, bdev, tag) in told {
                self.shards[core.index()].abandon(from, bdev, tag);
            }
        }
        (0..self.routers.len()).for_each(|core| self.carry(core));
    }

    /// What a core's router and shard have to say.
    fn carry(&mut self, core: usize) {
        while let Some((to, io)) = self.routers[core].poll_send() {
            self.mail.push((to.index(), Mail::Submit(io)));
        }
        while let Some(op) = self.shards[core].poll_disk() {
            self.at_disk.push((core, op));
        }
        while let Some(done) = self.shards[core].poll_done() {
            self.mail.push((done.io.from.index(), Mail::Done(done)));
        }
        while let Some(done) = self.routers[core].poll_done() {
            self.ended(&done);
        }
    }

    /// One event: a letter arrives, a disk operation ends, or a core takes a turn.
    fn step(&mut self) {
        let events = self.mail.len() + self.at_disk.len();
        let event = self.chance.below(events + self.shards.len());
        let core = if event < self.mail.len() {
            let (core, mail) = self.mail.swap_remove(event);
            match mail {
                Mail::Submit(io) => self.shards[core].submit(io),
                Mail::Done(done) => self.routers[core].answered(done),
                Mail::PoolAsk(..) | Mail::PoolTell(..) | Mail::PoolData(..) | Mail::PoolDataDone(..) => {
                    unreachable!("there is no pool")
                }
                Mail::Swap(_) | Mail::Swapped(..) | Mail::Edge(_) | Mail::EdgeTold(_) => {
                    unreachable!("nothing has parts here; the simulator's has")
                }
            }
            core
        } else if event < events {
            let (core, op) = self.at_disk.swap_remove(event - self.mail.len());
            let done = self.disk.perform(op);
            self.shards[core].complete(done);
            core
        } else {
            self.shards[event - events].turn(reactor::clock::Time(self.now));
            event - events
        };
        self.carry(core);
    }

    fn ended(&mut self, done: &Done) {
        self.now += 1;
        let io = &done.io;
        let place =
            self.asked.iter().position(|asked| asked.tag == io.tag).expect("asked once, answered once");
        let asked = self.asked.swap_remove(place);
        assert_eq!(
            (io.op, io.lba, io.blocks, io.from.index()),
            (asked.op, asked.lba, asked.blocks, asked.core)
        );
        let range = asked.lba as usize..(asked.lba + asked.blocks) as usize;
        let acceptable = |world: &World, buf: &Buf| {
            let words = buf.chunks_exact(4).map(|four| u32::from_ne_bytes(four.try_into().unwrap()));
            let words_a_block = world.geometry.block_bytes as usize / 4;
            for (index, word) in words.enumerate() {
                let values = &world.array[range.start + index / words_a_block];
                let there = values.iter().any(|value| value.word == word && value.gone > asked.submitted);
                assert!(there, "block {} reads {word}: {values:?}", range.start + index / words_a_block);
            }
        };
        match (io.op, done.result) {
            (Op::Read, Ok(())) => acceptable(self, io.buf.as_ref().unwrap()),
            (Op::Compare, Ok(()) | Err(IoError::Miscompare { .. })) => {
                let (expected, found) = (io.buf.as_ref().unwrap(), io.scratch.as_ref().unwrap());
                acceptable(self, found);
                let differs = expected.iter().zip(found.iter()).position(|(left, right)| left != right);
                let result =
                    differs.map_or(Ok(()), |at| Err(IoError::Miscompare { offset_bytes: at as u32 }));
                assert_eq!(done.result, result);
            }
            (Op::CompareAndWrite, Err(IoError::Miscompare { offset_bytes })) => {
                let (asked, found) = (io.buf.as_ref().unwrap(), io.scratch.as_ref().unwrap());
                acceptable(self, found);
                let differs = asked.iter().zip(found.iter()).position(|(left, right)| left != right);
                assert_eq!(differs, Some(offset_bytes as usize));
                self.swaps.differed += 1;
                self.never_written(io);
            }
            // Given up before its write, or the read failed.
            (Op::CompareAndWrite, Err(IoError::ABANDONED | IoError::Unread { .. })) => {
                self.swaps.given_up += 1;
                self.never_written(io);
            }
            (Op::Write | Op::WriteZeroes | Op::Unmap | Op::CompareAndWrite, result) => {
                if io.op == Op::CompareAndWrite && result.is_ok() {
                    self.swapped(io, asked.submitted);
                }
                let now = self.now;
                for values in &mut self.array[range] {
                    for value in values.iter_mut() {
                        if value.tag == io.tag.0 {
                            value.ended = Some(now);
                        } else if result.is_ok() && value.ended.is_some_and(|ended| ended < asked.submitted) {
                            value.gone = value.gone.min(now);
                        }
                    }
                }
            }
            _ => {}
        }
        if io.op.writes() && io.op != Op::Flush && done.result.is_ok() {
            self.check_medium(asked.lba, asked.blocks, io.fua, asked.submitted);
        }
        match done.result {
            Ok(())
            | Err(
                IoError::Miscompare { .. }
                | IoError::Medium { .. }
                | IoError::Unread { .. }
                | IoError::ABANDONED,
            ) => {}
            Err(error) => panic!("{error:?} for {io:?}"),
        }
    }

    /// A compare and write ended well: what it expected was there, and is not any more. Values but zero are written once,
    /// so nobody else can have found it.
    fn swapped(&mut self, io: &Io, submitted: u64) {
        self.swaps.done += 1;
        let blocks = io.buf.as_ref().unwrap().chunks_exact(self.geometry.block_bytes as usize);
        for (block, values) in blocks.zip(&mut self.array[io.lba as usize..][..io.blocks as usize]) {
            let word = u32::from_ne_bytes(block[..4].try_into().unwrap());
            assert!(
                values.iter().any(|value| value.word == word && value.gone > submitted),
                "{word}: {values:?}"
            );
            for value in values.iter_mut().filter(|value| value.word == word && word != 0) {
                assert!(!value.taken, "two found {word}");
                value.taken = true;
                value.gone = value.gone.min(self.now);
            }
        }
    }

    /// A write ended without having begun: whoever reads its value from now on is wrong.
    fn never_written(&mut self, io: &Io) {
        for values in &mut self.array[io.lba as usize..][..io.blocks as usize] {
            values.retain(|value| value.tag != io.tag.0);
        }
    }

    /// Until nothing is under way any more.
    fn drain(&mut self) {
        for _ in 0..2_000_000 {
            if self.asked.is_empty() {
                assert!(self.mail.is_empty() && self.at_disk.is_empty());
                assert!(self.shards.iter().all(|shard| shard.in_flight() == 0));
                assert!(self.routers.iter().all(|router| router.ranges() == 0));
                return;
            }
            self.step();
        }
        panic!("stuck with {} requests", self.asked.len());
    }

    /// What the device holds now must be what it may hold.
    fn check_all(&mut self) {
        self.disk.faults = 0;
        let piece_blocks = PIECE_BYTES / u64::from(self.geometry.block_bytes);
        for lba in (0..self.geometry.blocks).step_by(piece_blocks as usize) {
            let tag = Tag(self.now);
            self.now += 1;
            let buf = self.buf(piece_blocks, 0);
            self.asked.push(Asked {
                tag,
                core: 0,
                submitted: tag.0,
                op: Op::Read,
                lba,
                blocks: piece_blocks,
            });
            self.routers[0].submit(io(tag.0, Op::Read, lba, piece_blocks, buf));
            self.carry(0);
            self.drain();
        }
        if self.geometry.write_cache {
            let tag = Tag(self.now);
            self.now += 1;
            self.asked.push(Asked { tag, core: 0, submitted: tag.0, op: Op::Flush, lba: 0, blocks: 0 });
            self.routers[0].submit(io(tag.0, Op::Flush, 0, 0, None));
            self.carry(0);
            self.drain();
        }
        self.check_medium(0, self.geometry.blocks, true, self.now);
    }

    /// What would be there after power loss, in a range that was made durable since a time.
    fn check_medium(&self, lba: u64, blocks: u64, durable: bool, since: u64) {
        match self.base {
            Base::File { write_cache, .. } if durable || !write_cache => {}
            _ => return,
        }
        let block_bytes = self.geometry.block_bytes as usize;
        for block in lba as usize..(lba + blocks) as usize {
            let values = &self.array[block];
            for four in self.disk.medium[block * block_bytes..][..block_bytes].chunks_exact(4) {
                let word = u32::from_ne_bytes(four.try_into().unwrap());
                let there = values.iter().any(|value| value.word == word && value.gone > since);
                assert!(there, "after power loss block {block} reads {word}: {values:?}");
            }
        }
    }

    fn run(mut self, events: usize) -> Swaps {
        let free = self.pool.free();
        for _ in 0..events {
            match self.chance.below(100) {
                0 => self.abandon(),
                1..=12 => self.submit(),
                _ => self.step(),
            }
        }
        self.drain();
        self.check_all();
        assert_eq!(self.pool.free(), free, "every buffer came back");
        for shard in &self.shards {
            let counts = shard.counts(BdevId(0));
            assert!(counts.reads * u64::from(self.geometry.block_bytes) <= counts.read_bytes);
        }
        self.swaps
    }
}

fn any_base() -> impl Strategy<Value = (u16, u32, Base)> {
    let file = (any::<bool>(), any::<bool>(), any::<bool>(), prop_oneof![Just(0usize), Just(3), Just(12)]);
    let file = file.prop_flat_map(|(punch_hole, zero_range, write_cache, faults)| {
        prop_oneof![Just(1u32), Just(512), Just(4096)].prop_map(move |align_bytes| Base::File {
            align_bytes,
            punch_hole,
            zero_range,
            write_cache,
            faults,
        })
    });
    let base = prop_oneof![1 => Just(Base::Ram), 4 => file];
    (prop_oneof![Just(1u16), Just(2), Just(3)], prop_oneof![Just(512u32), Just(4096)], base)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    /// Goal: whatever the order of messages and completions, whatever is cut short, refused or fails, and whatever
    /// askers give up, a read returns what an array would, what was acknowledged survives power loss (with a write
    /// cache: after a flush), everything asked is answered once, and every buffer comes home. Method: see the module.
    #[test]
    fn reads_like_an_array((cores, block_bytes, base) in any_base(), seed in any::<u64>()) {
        World::new(cores, block_bytes, base, seed).run(2000);
    }
}

/// Goal: the model's compare and writes do find what they expect, and do not, and are given up. Method: seeds that are
/// always the same.
#[test]
fn compare_and_writes_end_in_every_way() {
    let file =
        Base::File { align_bytes: 4096, punch_hole: true, zero_range: true, write_cache: false, faults: 12 };
    let mut sum = Swaps::default();
    for seed in 1..=16 {
        let swaps =
            World::new(2, 512, if seed % 4 == 0 { Base::Ram } else { file }, seed * 0x9E37_79B9).run(2000);
        sum.done += swaps.done;
        sum.differed += swaps.differed;
        sum.given_up += swaps.given_up;
    }
    assert!(sum.done > 50 && sum.differed > 50 && sum.given_up > 5, "{sum:?}");
}
