//! A pool on two cores over a disk in memory, in one thread: what the layers do together. Schedules, faults and crashes
//! are the simulator's part, in `tests`.
#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

use bdev::error::IoError;
use bdev::io::{BdevId, Io, Op, Tag};
use bdev::layer::Place;
use bdev::pool::Medium;
use bdev::pool::control::{
    Against, Answer, MemberSize, NewMember, PoolInfo, Provisioning, Request, VolumeSpec,
};
use bdev::pool::format::HEADERS_AT;
use bdev::pool::{
    CHECKPOINT_PERCENT, CreateOptions, FoldWhen, Member, NAMES_MAX, OpenOptions, check, create, open,
    usage_of,
};
use bdev::router::Router;
use bdev::shard::{POOL_MARK, Shard, VOLUMES_FROM, tokens_of};
use bdev::storage::{COPY_BUFS, Copied, CopyIo, Outgoing, Storage};
use reactor::Core;
use reactor::buf::{BUF_BYTES_MAX, Pool, PoolConfig};
use reactor::clock::Time;
use reactor::disk::{DiskAction, DiskDone, DiskOp, FileId};
use std::sync::{Arc, Mutex};

mod atomic;
mod catalog;
mod damage;
mod data;
mod grow;
mod memory;
mod sharing;
mod space;
mod usage;

#[derive(Clone, Debug)]
struct Memory(Arc<Mutex<Vec<u8>>>);

impl Medium for Memory {
    fn bytes(&self) -> u64 {
        self.0.lock().unwrap().len() as u64
    }
    fn read(&self, at: u64, into: &mut [u8]) -> std::io::Result<()> {
        into.copy_from_slice(&self.0.lock().unwrap()[at as usize..at as usize + into.len()]);
        Ok(())
    }
    fn write(&self, at: u64, from: &[u8]) -> std::io::Result<()> {
        self.0.lock().unwrap()[at as usize..at as usize + from.len()].copy_from_slice(from);
        Ok(())
    }
    fn sync(&self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Memory {
    fn perform(&self, mut op: DiskOp) -> DiskDone {
        let mut bytes = self.0.lock().unwrap();
        let (at, end) = (op.offset_bytes as usize, (op.offset_bytes + op.bytes) as usize);
        let memory = op.buf_offset as usize..op.buf_offset as usize + op.bytes as usize;
        match (op.action, op.buf.as_mut()) {
            (DiskAction::Read, Some(buf)) => buf[memory].copy_from_slice(&bytes[at..end]),
            (DiskAction::Write { .. }, Some(buf)) => bytes[at..end].copy_from_slice(&buf[memory]),
            (DiskAction::PunchHole, None) => bytes[at..end].fill(0),
            _ => {}
        }
        DiskDone { user: op.user, result: Ok(op.bytes as u32), buf: op.buf }
    }
}

/// A file system below the first disk that runs out.
#[derive(Debug)]
struct Sparse {
    /// What is told when it has.
    errno: i32,
    /// Blocks of 4 KiB that it can still give.
    left: usize,
    /// Those that it has given. What creating a pool has written is given.
    given: std::collections::BTreeSet<u64>,
    refused: usize,
    punches: usize,
    punch_errno: Option<i32>,
}

impl Sparse {
    fn new(errno: i32, left: usize) -> Sparse {
        let given = std::collections::BTreeSet::new();
        Sparse { errno, left, given, refused: 0, punches: 0, punch_errno: None }
    }

    fn takes(&mut self, op: &DiskOp) -> Result<(), i32> {
        let blocks = op.offset_bytes / 4096..(op.offset_bytes + op.bytes).div_ceil(4096);
        if op.action == DiskAction::PunchHole {
            assert!(op.offset_bytes >= DATA_AT, "what is no chunk is never punched");
            self.punches += 1;
            if let Some(errno) = self.punch_errno {
                return Err(errno);
            }
            let before = self.given.len();
            self.given.retain(|block| !blocks.contains(block));
            self.left += before - self.given.len();
            return Ok(());
        }
        if !matches!(op.action, DiskAction::Write { .. }) || op.offset_bytes < DATA_AT {
            return Ok(());
        }
        let new: Vec<u64> = blocks.filter(|block| !self.given.contains(block)).collect();
        if new.len() > self.left {
            self.refused += 1;
            return Err(self.errno);
        }
        self.left -= new.len();
        self.given.extend(new);
        Ok(())
    }
}

/// Where data begin on the first disk: behind 4 MiB of journals and 8 of maps.
const DATA_AT: u64 = (bdev::pool::format::JOURNALS_AT + (12 << 20)).next_multiple_of(4 << 20);

struct World {
    disk: Memory,
    sparse: Option<Sparse>,
    /// Further disks, from file 1 on.
    more: Vec<Memory>,
    /// After so many superblocks one can't be written; whether it is there all the same, as when its flush fails.
    super_fault: Option<(u32, bool)>,
    /// Mail that says so is kept back, for a core.
    keeps_mail: fn(&Outgoing) -> bool,
    kept_mail: Vec<(usize, Outgoing)>,
    /// Records can't be written any more.
    journal_fails: bool,
    /// So many steps images of maps take, and those on their way: since when, and whose.
    image_steps: u64,
    images: Vec<(u64, usize, DiskOp)>,
    cores: Vec<Storage>,
    /// What cores have said to each other so far.
    mails: u64,
    bufs: Pool,
    now: u64,
    tags: u64,
}

fn members(disk: &Memory) -> Vec<Member> {
    vec![Member {
        path: "disk".into(),
        file: FileId(0),
        align_bytes: 512,
        punch: true,
        medium: Arc::new(disk.clone()),
    }]
}

impl World {
    fn create(bytes: usize) -> Memory {
        let disk = Memory(Arc::new(Mutex::new(vec![0xEE; bytes])));
        let (journal, metadata) = (Some(4 << 20), Some(8 << 20));
        let options = CreateOptions {
            name: "p".into(),
            uuid: [9; 16],
            journal_bytes: journal,
            metadata_bytes: metadata,
        };
        create(&members(&disk), &options).unwrap();
        disk
    }

    fn open(disk: &Memory, cores: u16) -> World {
        World::open_members(disk, members(disk), cores, FoldWhen::Never)
    }

    fn open_members(disk: &Memory, members: Vec<Member>, cores: u16, folds: FoldWhen) -> World {
        World::open_within(disk, members, cores, folds, 1 << 30)
    }

    fn open_within(
        disk: &Memory,
        members: Vec<Member>,
        cores: u16,
        folds: FoldWhen,
        map_memory_max_bytes: u64,
    ) -> World {
        let punch_after = Some(std::time::Duration::from_millis(5));
        World::open_as(
            disk,
            members,
            &OpenOptions { cores, folds, map_memory_max_bytes, punch_after, ..OPTIONS },
        )
    }

    fn open_as(disk: &Memory, members: Vec<Member>, options: &OpenOptions) -> World {
        let cores = options.cores;
        let mut bufs = Pool::new(PoolConfig { counts: [300, 0, 128], arena: 0 }).unwrap();
        let opened = open(members, options).unwrap();
        let cores = (0..cores)
            .map(|core| {
                let mut shard = Shard::new(Core(core), Vec::new());
                shard.add_pool(opened.shard(Core(core), &mut bufs).unwrap());
                let copy_bufs = (0..COPY_BUFS).map(|_| bufs.take(BUF_BYTES_MAX).unwrap()).collect();
                Storage::new(Core(core), cores, Router::new(Core(core), cores, [].into()), shard, copy_bufs)
            })
            .collect();
        let (sparse, super_fault, images) = (None, None, Vec::new());
        World {
            disk: disk.clone(),
            sparse,
            more: Vec::new(),
            super_fault,
            keeps_mail: |_| false,
            kept_mail: Vec::new(),
            journal_fails: false,
            image_steps: 0,
            images,
            cores,
            mails: 0,
            bufs,
            now: 0,
            tags: 0,
        }
    }

    /// A copy that the last core is asked for, and its end; places are in bytes.
    fn copy(&mut self, from: (BdevId, u64), to: (BdevId, u64), bytes: u64) -> Copied {
        let ((source, source_bytes), (destination, destination_bytes)) = (from, to);
        let asked = self.cores.len() - 1;
        self.cores[asked].copy(CopyIo {
            tag: Tag(7),
            source,
            source_bytes,
            destination,
            destination_bytes,
            bytes,
        });
        for _ in 0..10_000 {
            self.step();
            if let Some(copied) = self.cores[asked].poll_copied() {
                assert_eq!(copied.result, Ok(()));
                return copied;
            }
        }
        panic!("the copy never ends");
    }

    /// What a device of blocks of 512 bytes begins with.
    fn bytes(&mut self, bdev: BdevId, bytes: u64) -> Vec<u8> {
        (0..bytes / 65536).flat_map(|piece| self.read(bdev, piece * 128, 128)).collect()
    }

    fn step(&mut self) {
        self.now += 1_000_000;
        let due = self.now.saturating_sub(self.image_steps * 1_000_000);
        for (_, core, op) in self.images.extract_if(.., |&mut (since, ..)| since <= due) {
            self.cores[core].complete(self.disk.perform(op));
        }
        for core in 0..self.cores.len() {
            self.cores[core].turn(Time(self.now));
            while let Some(out) = self.cores[core].poll_mail() {
                self.mails += 1;
                if (self.keeps_mail)(&out) {
                    self.kept_mail.push((core, out));
                } else {
                    self.deliver(core, out);
                }
            }
            while let Some(op) = self.cores[core].poll_disk() {
                let is_image = op.action == DiskAction::Write { durable: false } && op.offset_bytes < DATA_AT;
                if is_image && self.image_steps > 0 {
                    self.images.push((self.now, core, op));
                    continue;
                }
                if self.loses_superblock(&op) {
                    self.cores[core].complete(DiskDone { user: op.user, result: Err(5), buf: op.buf });
                    continue;
                }
                let is_record = op.action == DiskAction::Write { durable: true } && op.offset_bytes < DATA_AT;
                if is_record && self.journal_fails {
                    self.cores[core].complete(DiskDone { user: op.user, result: Err(5), buf: op.buf });
                    continue;
                }
                let taken = self.sparse.as_mut().map_or(Ok(()), |sparse| sparse.takes(&op));
                let done = match taken {
                    Ok(()) => self.disk_of(&op).perform(op),
                    Err(errno) => DiskDone { user: op.user, result: Err(errno), buf: op.buf },
                };
                self.cores[core].complete(done);
            }
        }
    }

    fn deliver(&mut self, from: usize, out: Outgoing) {
        let to = &mut self.cores[out.to.index()];
        if out.reply {
            to.on_reply(Core(from as u16), out.mail);
        } else {
            to.on_request(Core(from as u16), out.mail);
        }
    }

    fn disk_of(&self, op: &DiskOp) -> &Memory {
        op.file.0.checked_sub(1).map_or(&self.disk, |nth| &self.more[usize::from(nth)])
    }

    /// Whether this is the superblock that can't be written.
    fn loses_superblock(&mut self, op: &DiskOp) -> bool {
        let is_super = matches!(op.action, DiskAction::Write { .. }) && op.offset_bytes < HEADERS_AT;
        let Some((left, lands)) = self.super_fault.filter(|_| is_super) else { return false };
        self.super_fault = left.checked_sub(1).map(|left| (left, lands));
        if left == 0 && lands {
            let (at, bytes) = (op.offset_bytes as usize, op.bytes as usize);
            let buf = op.buf.as_ref().unwrap();
            self.disk_of(op).0.lock().unwrap()[at..at + bytes].copy_from_slice(&buf[..bytes]);
        }
        left == 0
    }

    fn ask(&mut self, request: Request) -> Result<Answer, bdev::pool::control::Refusal> {
        self.cores[0].ask(0, 1, request, 1_700_000_000);
        for _ in 0..10_000 {
            self.step();
            if let Some((_, answer)) = self.cores[0].poll_answer() {
                return answer;
            }
        }
        panic!("no answer");
    }

    fn io(&mut self, core: u16, bdev: BdevId, op: Op, lba: u64, blocks: u64, byte: u8) -> Vec<u8> {
        self.attempt(core, bdev, op, lba, blocks, (byte, 0))
            .unwrap_or_else(|error| panic!("{op:?} {lba}+{blocks}: {error:?}"))
    }

    fn try_io(
        &mut self,
        core: u16,
        bdev: BdevId,
        op: Op,
        lba: u64,
        blocks: u64,
        byte: u8,
    ) -> (Result<(), IoError>, Vec<u8>) {
        match self.attempt(core, bdev, op, lba, blocks, (byte, 0)) {
            Ok(data) => (Ok(()), data),
            Err(error) => (Err(error), Vec::new()),
        }
    }

    /// `bytes`: what is written, and for a compare and write what has to be there.
    fn attempt(
        &mut self,
        core: u16,
        bdev: BdevId,
        op: Op,
        lba: u64,
        blocks: u64,
        bytes: (u8, u8),
    ) -> Result<Vec<u8>, IoError> {
        self.tags += 1;
        let tag = Tag(self.tags);
        let range_bytes = blocks * 512;
        let buf = op.has_data().then(|| {
            let mut buf = self.bufs.take(op.buf_bytes(range_bytes) as usize).unwrap();
            buf.fill(bytes.0);
            if op == Op::CompareAndWrite {
                buf[..range_bytes as usize].fill(bytes.1);
            }
            buf
        });
        let scratch = op.needs_scratch().then(|| self.bufs.take(range_bytes as usize).unwrap());
        let (from, fua, heartbeat, more_parts) = (Core(core), false, false, 0);
        let io = Io {
            tag,
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
        };
        self.cores[usize::from(core)].submit(io);
        for _ in 0..10_000 {
            self.step();
            if let Some(done) = self.cores[usize::from(core)].poll_done() {
                assert_eq!((done.io.tag, done.io.heartbeat), (tag, false), "{op:?} {lba}+{blocks}");
                let data = done.io.buf.as_deref().map_or_else(Vec::new, <[u8]>::to_vec);
                // It may be another's by now.
                done.io.buf.into_iter().for_each(|buf| self.bufs.give(buf));
                return done.result.map(|()| data);
            }
        }
        panic!("{op:?} never ends");
    }

    /// A compare and write of any length: `expected` becomes full of `new`.
    fn swap(&mut self, core: u16, bdev: BdevId, lba: u64, expected: &[u8], new: u8) -> Result<(), IoError> {
        let tag = self.swap_begin(core, bdev, lba, expected, new);
        for _ in 0..10_000 {
            self.step();
            if let Some(result) = self.swap_end(core, tag) {
                return result;
            }
        }
        panic!("it never ends");
    }

    fn swap_begin(&mut self, core: u16, bdev: BdevId, lba: u64, expected: &[u8], new: u8) -> (Tag, u8) {
        self.tags += 1;
        let (mut parts, mut at, mut rest) = (Vec::new(), lba, expected);
        while !rest.is_empty() {
            let blocks = (64 - at % 64).min(rest.len() as u64 / 512);
            let (part, behind) = rest.split_at(blocks as usize * 512);
            parts.push((at, blocks, part));
            (at, rest) = (at + blocks, behind);
        }
        let mut more_parts = parts.len() as u8;
        let count = more_parts;
        for (lba, blocks, expected) in parts {
            more_parts -= 1;
            let mut buf = self.bufs.take(2 * expected.len()).unwrap();
            buf.fill(new);
            buf[..expected.len()].copy_from_slice(expected);
            let scratch = self.bufs.take(expected.len());
            let (from, fua, heartbeat, op) = (Core(core), false, false, Op::CompareAndWrite);
            let (tag, buf) = (Tag(self.tags), Some(buf));
            let io = Io {
                tag,
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
            };
            self.cores[usize::from(core)].submit(io);
        }
        (Tag(self.tags), count)
    }

    /// All parts come back at once, with one result.
    fn swap_end(&mut self, core: u16, (tag, parts): (Tag, u8)) -> Option<Result<(), IoError>> {
        let done = self.cores[usize::from(core)].poll_done()?;
        for left in (1..parts).rev() {
            let part = self.cores[usize::from(core)].poll_done().unwrap();
            assert_eq!((part.io.tag, part.io.more_parts, part.result), (tag, left - 1, done.result));
        }
        assert_eq!((done.io.tag, done.io.more_parts), (tag, parts - 1));
        Some(done.result)
    }

    fn read(&mut self, bdev: BdevId, lba: u64, blocks: u64) -> Vec<u8> {
        self.io(0, bdev, Op::Read, lba, blocks, 0xAA)
    }

    fn volume(&mut self, name: &str, provisioning: Provisioning) -> BdevId {
        let spec = VolumeSpec {
            name: name.into(),
            bytes: 1 << 30,
            block_bytes: 512,
            physical_block_bytes: 4096,
            provisioning,
            zero_detect: true,
            write_cache: false,
        };
        self.ask(Request::VolumeCreate(spec)).unwrap();
        self.attach(name)
    }

    fn attach(&mut self, name: &str) -> BdevId {
        match self.ask(Request::Attach { volume: name.into() }).unwrap() {
            Answer::Attached { bdev, .. } => bdev,
            other => panic!("{other:?}"),
        }
    }

    fn free(&mut self) -> u64 {
        self.info().free_bytes
    }

    fn info(&mut self) -> PoolInfo {
        for _ in 0..50 {
            self.step();
        }
        match self.ask(Request::Pool).unwrap() {
            Answer::Pool(info) => *info,
            other => panic!("{other:?}"),
        }
    }
}

fn look_zero(world: &mut World, bdev: BdevId) {
    for lba in [0, 8192, 16384, 24576] {
        assert_eq!(world.read(bdev, lba, 128), vec![0; 65536]);
    }
}

const OPTIONS: OpenOptions = OpenOptions {
    cores: 1,
    map_memory_max_bytes: 1 << 30,
    first_bdev: BdevId(VOLUMES_FROM),
    mark: POOL_MARK,
    window_clusters: 2,
    punch_after: None,
    in_memory: false,
    break_rule: None,
    folds: FoldWhen::Quiet,
    checkpoint_percent: CHECKPOINT_PERCENT,
    names_max: NAMES_MAX,
};

/// A sequence of numbers that is the same every time.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }
}

/// A name and what a walk has found: unique and, of volumes, shared bytes.
type Found = (String, (u64, Option<u64>));

impl World {
    /// Walks, and says what was found, and whether all of it is exact.
    fn usage(&mut self) -> (Vec<Found>, bool) {
        self.ask(Request::UsageWalk).unwrap();
        let Ok(Answer::Volumes(volumes)) = self.ask(Request::Volumes) else { panic!("volumes") };
        let Ok(Answer::Snapshots(snapshots)) = self.ask(Request::Snapshots { volume: None }) else {
            panic!()
        };
        let volumes = volumes.into_iter().map(|info| (info.name, info.usage));
        let snapshots =
            snapshots.into_iter().map(|info| (format!("{}@{}", info.volume, info.name), info.usage));
        let all: Vec<_> = volumes.chain(snapshots).map(|(name, usage)| (name, usage.unwrap())).collect();
        let exact = all.iter().all(|(_, usage)| usage.exact);
        (
            all.into_iter().map(|(name, usage)| (name, (usage.unique_bytes, usage.shared_bytes))).collect(),
            exact,
        )
    }
}
