//! A pool on one core over a [`Disk`], in one thread and in its own time: what counts bytes, messages and CPU time, and
//! nothing else that goes on in the machine.
//!
//! Operations of the disk take [`LATENCY`], or between half and one and a half of it; what ended within `TURN` comes
//! back in one turn, as it does in a reactor that had something to do meanwhile.

use super::disk::Disk;
use crate::failure::{Context, Failure};
use crate::load::pattern::Random;
use bdev::io::{BdevId, Io, Op, Tag};
use bdev::pool::control::{Answer, PoolInfo, Provisioning, Request, VolumeSpec};
use bdev::pool::format::{SUPERBLOCK_BYTES, Superblock};
use bdev::pool::{self, CreateOptions, FoldWhen, Medium, Member, OpenOptions};
use bdev::router::Router;
use bdev::shard::{POOL_MARK, Shard, VOLUMES_FROM};
use bdev::storage::{COPY_BUFS, CopyIo, Storage};
use reactor::Core;
use reactor::buf::{BUF_BYTES_MAX, Buf, Pool, PoolConfig};
use reactor::clock::Time;
use reactor::disk::{DiskDone, FileId};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;

/// What an operation of the disk takes, in nanoseconds.
pub const LATENCY: u64 = 50_000;
/// What a turn takes, in nanoseconds.
const TURN: u64 = 2_000;
/// A turn of a world that waits for nothing but time.
const IDLE: u64 = 1_000_000;
/// Turns without anything to do after which it does.
const IDLE_AFTER: u32 = 16;
/// What maps may take: a target's own figure.
pub const MAP_MEMORY_BYTES: u64 = 2 << 30;

/// Space for maps on the medium: more than any case needs, so that none ends for want of it. What it uses is told.
const METADATA_BYTES: u64 = 16 << 30;

/// How long the disk takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// Always the same.
    Even,
    /// Between half and one and a half of it.
    Spread,
}

/// See the module.
pub struct World {
    /// Outlives a crash.
    pub disk: Disk,
    storage: Storage,
    bufs: Pool,
    now: u64,
    pace: Pace,
    random: Random,
    idle_turns: u32,
    /// When, and which of `flying`.
    events: BinaryHeap<Reverse<(u64, usize)>>,
    flying: Vec<Option<DiskDone>>,
    free: Vec<usize>,
}

fn members(disk: &Disk) -> Vec<Member> {
    let medium = Arc::new(disk.clone());
    vec![Member { path: "memory".into(), file: FileId(0), align_bytes: 512, punch: false, medium }]
}

impl World {
    /// A disk of `bytes` with a new pool, whose data are forgotten.
    ///
    /// # Errors
    /// It can't be made.
    pub fn create(bytes: u64) -> Result<Disk, Failure> {
        let disk = World::create_kept(bytes)?;
        disk.forget_from(superblock(&disk)?.extents.first().map_or(bytes, |data| data.at));
        Ok(disk)
    }

    /// As [`World::create`], with data: a disk in memory.
    ///
    /// # Errors
    /// It can't be made.
    pub fn create_kept(bytes: u64) -> Result<Disk, Failure> {
        let disk = Disk::new(bytes);
        let metadata_bytes = Some(METADATA_BYTES.min(bytes / 8));
        let options =
            CreateOptions { name: "bench".into(), uuid: [7; 16], journal_bytes: None, metadata_bytes };
        pool::create(&members(&disk), &options).doing("making the pool")?;
        Ok(disk)
    }

    /// Opens a disk's pool on one core.
    ///
    /// # Errors
    /// It can't be opened.
    pub fn open(disk: &Disk, pace: Pace) -> Result<World, Failure> {
        let options = OpenOptions {
            cores: 1,
            map_memory_max_bytes: MAP_MEMORY_BYTES,
            first_bdev: BdevId(VOLUMES_FROM),
            mark: POOL_MARK,
            window_clusters: bdev::pool::space::WINDOW_CLUSTERS,
            punch_after: None,
            in_memory: false,
            break_rule: None,
            folds: FoldWhen::Quiet,
            checkpoint_percent: pool::CHECKPOINT_PERCENT,
            names_max: pool::NAMES_MAX,
        };
        let opened = pool::open(members(disk), &options).doing("opening the pool")?;
        let mut bufs = Pool::new(PoolConfig { counts: [0, 0, 512], arena: 0 }).doing("taking buffers")?;
        let mut shard = Shard::new(Core(0), Vec::new());
        shard.add_pool(opened.shard(Core(0), &mut bufs).doing("taking the pool's shard")?);
        let copy_bufs = (0..COPY_BUFS).map_while(|_| bufs.take(BUF_BYTES_MAX)).collect();
        Ok(World {
            disk: disk.clone(),
            storage: Storage::new(Core(0), 1, Router::new(Core(0), 1, [].into()), shard, copy_bufs),
            bufs,
            now: 0,
            pace,
            random: Random::new(1),
            idle_turns: 0,
            events: BinaryHeap::new(),
            flying: Vec::new(),
            free: Vec::new(),
        })
    }

    /// The world's own time, in nanoseconds.
    pub fn now(&self) -> u64 {
        self.now
    }

    fn step(&mut self) {
        self.storage.turn(Time(self.now));
        while let Some(op) = self.storage.poll_disk() {
            let takes = match self.pace {
                Pace::Even => LATENCY,
                Pace::Spread => LATENCY / 2 + self.random.below(LATENCY),
            };
            let done = self.disk.perform(op);
            let place = self.free.pop().unwrap_or_else(|| {
                self.flying.push(None);
                self.flying.len() - 1
            });
            self.flying[place] = Some(done);
            self.events.push(Reverse((self.now + takes, place)));
        }
        let Some(&Reverse((first, _))) = self.events.peek() else {
            self.idle_turns += 1;
            self.now += if self.idle_turns > IDLE_AFTER { IDLE } else { TURN };
            return;
        };
        self.idle_turns = 0;
        self.now = (self.now + TURN).max(first);
        while let Some(&Reverse((at, place))) = self.events.peek()
            && at <= self.now
        {
            self.events.pop();
            self.free.push(place);
            if let Some(done) = self.flying[place].take() {
                self.storage.complete(done);
            }
        }
    }

    /// Asks the pool for something and waits for the answer.
    ///
    /// # Errors
    /// It refuses.
    pub fn ask(&mut self, request: Request) -> Result<Answer, Failure> {
        self.storage.ask(0, 1, request, 1_700_000_000);
        loop {
            self.step();
            if let Some((_, answer)) = self.storage.poll_answer() {
                return answer.doing("asking the pool");
            }
        }
    }

    /// The pool's own figures.
    ///
    /// # Errors
    /// It has none.
    pub fn info(&mut self) -> Result<PoolInfo, Failure> {
        match self.ask(Request::Pool)? {
            Answer::Pool(info) => Ok(*info),
            other => Err(Failure::new(format!("no figures of a pool: {other:?}"))),
        }
    }

    /// Makes a thin volume and attaches it.
    ///
    /// # Errors
    /// The pool refuses.
    pub fn volume(&mut self, name: &str, bytes: u64, zero_detect: bool) -> Result<BdevId, Failure> {
        let spec = spec(name, bytes, zero_detect);
        self.ask(Request::VolumeCreate(spec))?;
        self.attach(name)
    }

    /// Attaches a volume that there is.
    ///
    /// # Errors
    /// The pool refuses.
    pub fn attach(&mut self, name: &str) -> Result<BdevId, Failure> {
        match self.ask(Request::Attach { volume: name.into() })? {
            Answer::Attached { bdev, .. } => Ok(bdev),
            other => Err(Failure::new(format!("not attached: {other:?}"))),
        }
    }

    /// Takes a snapshot of volume `v`.
    ///
    /// # Errors
    /// The pool refuses.
    pub fn snapshot(&mut self, name: impl Into<String>) -> Result<(), Failure> {
        self.ask(Request::SnapshotCreate { volume: "v".into(), name: name.into() }).map(drop)
    }

    /// Writes `bytes` at each of `offsets`, `depth` at once.
    ///
    /// # Errors
    /// One fails.
    pub fn write(
        &mut self,
        bdev: BdevId,
        bytes: u64,
        depth: usize,
        offsets: impl IntoIterator<Item = u64>,
    ) -> Result<(), Failure> {
        let mut bufs: Vec<Buf> = (0..depth).filter_map(|_| self.bufs.take(bytes as usize)).collect();
        for (seed, buf) in (1..).zip(&mut bufs) {
            let mut random = Random::new(seed);
            buf.chunks_exact_mut(8).for_each(|word| word.copy_from_slice(&random.draw().to_le_bytes()));
        }
        self.run(bdev, Op::Write, bytes, depth, bufs, offsets)
    }

    /// Gives `bytes` up at each of `offsets`, `depth` at once.
    ///
    /// # Errors
    /// One fails.
    pub fn unmap(
        &mut self,
        bdev: BdevId,
        bytes: u64,
        depth: usize,
        offsets: impl IntoIterator<Item = u64>,
    ) -> Result<(), Failure> {
        self.run(bdev, Op::Unmap, bytes, depth, Vec::new(), offsets)
    }

    /// What failed, with what the pool says of itself.
    fn failed(&mut self, what: &str) -> Failure {
        match self.info() {
            Ok(info) => Failure::new(format!("{what}; the pool: {info:?}")),
            Err(_) => Failure::new(what),
        }
    }

    fn run(
        &mut self,
        bdev: BdevId,
        op: Op,
        bytes: u64,
        depth: usize,
        mut bufs: Vec<Buf>,
        offsets: impl IntoIterator<Item = u64>,
    ) -> Result<(), Failure> {
        let (mut offsets, mut out) = (offsets.into_iter(), 0);
        loop {
            while out < depth
                && let Some(offset) = offsets.next()
            {
                out += 1;
                self.storage.submit(io(bdev, op, offset, bytes, bufs.pop()));
            }
            if out == 0 {
                return Ok(());
            }
            self.step();
            while let Some(done) = self.storage.poll_done() {
                if let Err(error) = done.result {
                    let what = format!("{op:?} at block {}: {error:?}", done.io.lba);
                    return Err(self.failed(&what));
                }
                out -= 1;
                bufs.extend(done.io.buf);
            }
        }
    }

    /// Makes copies of `bytes` within a device, from and to each pair of offsets, `depth` at once.
    ///
    /// # Errors
    /// One fails, or bytes were copied where pointers should have been.
    pub fn copy(
        &mut self,
        bdev: BdevId,
        bytes: u64,
        depth: usize,
        offsets: impl IntoIterator<Item = (u64, u64)>,
    ) -> Result<(), Failure> {
        let (mut offsets, mut out) = (offsets.into_iter(), 0);
        loop {
            while out < depth
                && let Some((source_bytes, destination_bytes)) = offsets.next()
            {
                out += 1;
                let (source, destination) = (bdev, bdev);
                self.storage.copy(CopyIo {
                    tag: Tag(1),
                    source,
                    source_bytes,
                    destination,
                    destination_bytes,
                    bytes,
                });
            }
            if out == 0 {
                return Ok(());
            }
            self.step();
            while let Some(copied) = self.storage.poll_copied() {
                out -= 1;
                copied.result.map_err(|error| Failure::new(format!("copy: {error:?}")))?;
            }
        }
    }
}

/// What a pool on a disk says of itself.
///
/// # Errors
/// There is none.
pub fn superblock(disk: &Disk) -> Result<Superblock, Failure> {
    let mut bytes = vec![0; SUPERBLOCK_BYTES as usize];
    Medium::read(disk, 0, &mut bytes).doing("reading the superblock")?;
    Superblock::decode(&bytes).doing("reading the superblock")
}

/// A thin volume of blocks of 512 bytes, written through.
pub fn spec(name: &str, bytes: u64, zero_detect: bool) -> VolumeSpec {
    VolumeSpec {
        name: name.into(),
        bytes,
        block_bytes: 512,
        physical_block_bytes: 4096,
        provisioning: Provisioning::Thin,
        zero_detect,
        write_cache: false,
    }
}

/// A request for blocks of 512 bytes.
pub fn io(bdev: BdevId, op: Op, offset: u64, bytes: u64, buf: Option<Buf>) -> Io {
    let (lba, blocks) = (offset / 512, bytes / 512);
    let (tag, from, heartbeat, more_parts) = (Tag(1), Core(0), false, 0);
    Io {
        tag,
        from,
        bdev,
        op,
        fua: false,
        heartbeat,
        disposable: false,
        more_parts,
        lba,
        blocks,
        buf,
        scratch: None,
    }
}
