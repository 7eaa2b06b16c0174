//! A pool on two cores over a disk in memory, in one thread: what the layers do together. Schedules, faults and crashes
//! are the simulator's part, in `tests`.
#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

use bdev::error::IoError;
use bdev::io::{BdevId, Io, Op, Tag};
use bdev::pool::Medium;
use bdev::pool::control::{
    Against, Answer, MemberSize, NewMember, PoolInfo, Provisioning, Request, VolumeSpec,
};
use bdev::pool::{
    CHECKPOINT_PERCENT, CreateOptions, FoldWhen, Member, NAMES_MAX, OpenOptions, check, create, open,
    usage_of,
};
use bdev::router::Router;
use bdev::shard::{POOL_MARK, Shard, VOLUMES_FROM, tokens_of};
use bdev::storage::{COPY_BUFS, Copied, CopyIo, Storage};
use reactor::Core;
use reactor::buf::{BUF_BYTES_MAX, Pool, PoolConfig};
use reactor::clock::Time;
use reactor::disk::{DiskAction, DiskDone, DiskOp, FileId};
use std::sync::{Arc, Mutex};

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
    second: Option<Memory>,
    cores: Vec<Storage>,
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
        World { disk: disk.clone(), sparse: None, second: None, cores, bufs, now: 0, tags: 0 }
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
        for core in 0..self.cores.len() {
            self.cores[core].turn(Time(self.now));
            while let Some(out) = self.cores[core].poll_mail() {
                let to = &mut self.cores[out.to.index()];
                if out.reply {
                    to.on_reply(Core(core as u16), out.mail);
                } else {
                    to.on_request(Core(core as u16), out.mail);
                }
            }
            while let Some(op) = self.cores[core].poll_disk() {
                let disk = if op.file == FileId(0) { &self.disk } else { self.second.as_ref().unwrap() };
                let taken = self.sparse.as_mut().map_or(Ok(()), |sparse| sparse.takes(&op));
                let done = match taken {
                    Ok(()) => disk.perform(op),
                    Err(errno) => DiskDone { user: op.user, result: Err(errno), buf: op.buf },
                };
                self.cores[core].complete(done);
            }
        }
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
        let io = Io { tag, from, bdev, op, fua, heartbeat, more_parts, lba, blocks, buf, scratch };
        self.cores[usize::from(core)].submit(io);
        for _ in 0..10_000 {
            self.step();
            if let Some(done) = self.cores[usize::from(core)].poll_done() {
                assert_eq!((done.io.tag, done.io.heartbeat), (tag, false), "{op:?} {lba}+{blocks}");
                return done.result.map(|()| done.io.buf.map_or_else(Vec::new, |buf| buf.to_vec()));
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
            let io = Io { tag, from, bdev, op, fua, heartbeat, more_parts, lba, blocks, buf, scratch };
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

/// Goal: what is written is read, by either core, before and after reopening with another number of cores; what nobody
/// wrote is zeroes; space comes back. Method: writes of all shapes over stripes of both cores.
#[test]
fn keeps_what_is_written() {
    let disk = World::create(96 << 20);
    let mut world = World::open(&disk, 2);
    let before = world.free();
    let a = world.volume("a", Provisioning::Thin);
    assert_eq!(world.read(a, 100, 8), vec![0; 4096]);
    let shapes = [(0, 128), (8192 + 3, 5), (16384 + 7, 2), (24576, 8), (9, 1)];
    for (byte, &(lba, blocks)) in (1..).zip(&shapes) {
        world.io(byte as u16 % 2, a, Op::Write, lba, blocks, byte);
    }
    let look = |world: &mut World| {
        let first = world.read(a, 0, 128);
        assert!(first[..9 * 512].iter().all(|&b| b == 1) && first[9 * 512..10 * 512].iter().all(|&b| b == 5));
        assert!(first[10 * 512..].iter().all(|&b| b == 1));
        assert_eq!(world.read(a, 8192, 3), vec![0; 3 * 512]);
        assert_eq!(world.read(a, 8195, 5), vec![2; 5 * 512]);
        assert_eq!(world.read(a, 16390, 4)[512..1536], vec![3; 1024]);
        assert_eq!(world.read(a, 24576, 16), [vec![4; 4096], vec![0; 4096]].concat());
    };
    look(&mut world);
    for cores in [2, 3, 1] {
        let mut world = World::open(&disk, cores);
        assert_eq!(world.attach("a"), a);
        look(&mut world);
        let report = check(&members(&disk)).unwrap();
        assert_eq!(report.problems, []);
        assert_eq!(report.volumes[0].1, 64 * 1024 + 4 * 4096);
    }
    let mut world = World::open(&disk, 2);
    world.attach("a");
    world.io(0, a, Op::Unmap, 0, (1 << 30) / 512, 0);
    look_zero(&mut world, a);
    assert_eq!(world.free(), before);
}

fn look_zero(world: &mut World, bdev: BdevId) {
    for lba in [0, 8192, 16384, 24576] {
        assert_eq!(world.read(bdev, lba, 128), vec![0; 65536]);
    }
}

/// Goal: snapshots stay what they were, clones go their own way, roll back brings it back, deleting gives space back;
/// also after reopening at each step.
#[test]
fn snapshots_and_clones() {
    let disk = World::create(96 << 20);
    let mut world = World::open(&disk, 2);
    let before = world.free();
    let a = world.volume("a", Provisioning::Thin);
    world.io(0, a, Op::Write, 0, 128, 1);
    for name in ["s1", "s2", "s3"] {
        world.ask(Request::SnapshotCreate { volume: "a".into(), name: name.into() }).unwrap();
        let byte = name.as_bytes()[1] - b'0' + 1;
        world.io(1, a, Op::Write, u64::from(byte) * 8, 8, byte);
    }
    world
        .ask(Request::VolumeClone { snapshot: "a@s2".into(), name: "c".into(), provisioning: None })
        .unwrap();
    let expect = |changed: &[u8]| {
        let mut bytes = vec![1u8; 65536];
        for &byte in changed {
            bytes[usize::from(byte) * 4096..][..4096].fill(byte);
        }
        bytes
    };
    for reopened in [false, true] {
        if reopened {
            world = World::open(&disk, 2);
            world.attach("a");
        }
        let c = world.attach("c");
        assert_eq!(world.read(a, 0, 128), expect(&[2, 3, 4]));
        assert_eq!(world.read(c, 0, 128), expect(&[2]));
    }
    let c = world.attach("c");
    world.io(0, c, Op::Write, 72, 8, 9);
    assert_eq!(world.read(c, 0, 128), expect(&[2, 9]));
    assert_eq!(world.read(a, 0, 128), expect(&[2, 3, 4]));
    let Answer::Diff(diff) =
        world.ask(Request::SnapshotDiff { from: "a@s1".into(), to: "a@s3".into(), from_bytes: 0 }).unwrap()
    else {
        panic!("a diff")
    };
    assert_eq!((diff.extents, diff.next_bytes), (vec![(2 * 4096, 2 * 4096)], None));
    let roll = |force| Request::VolumeRollback { volume: "a".into(), snapshot: "s1".into(), force };
    assert!(world.ask(roll(false)).is_err());
    world.ask(roll(true)).unwrap();
    assert_eq!(world.read(a, 0, 128), expect(&[]));
    world = World::open(&disk, 1);
    world.attach("a");
    assert_eq!(world.read(a, 0, 128), expect(&[]));
    for name in ["s2", "s1", "s3"] {
        world.ask(Request::SnapshotDelete { snapshot: format!("a@{name}") }).unwrap();
    }
    let c = world.attach("c");
    assert_eq!(world.read(c, 0, 128), expect(&[2, 9]));
    for name in ["a", "c"] {
        world.ask(Request::VolumeDelete { volume: name.into(), force: true }).unwrap();
    }
    assert_eq!(world.free(), before);
    assert_eq!(check(&members(&disk)).unwrap().problems, []);
}

/// Goal: what is mapped is told run by run, over stripes of both cores. Method: one block, a gap, a whole slot.
#[test]
fn tells_what_is_mapped() {
    let disk = World::create(96 << 20);
    let mut world = World::open(&disk, 2);
    let a = world.volume("a", Provisioning::Thin);
    world.io(0, a, Op::Write, 8, 8, 1);
    world.io(0, a, Op::Write, 128, 128, 1);
    world.io(0, a, Op::Write, 8192, 8, 1);
    let (mut at, mut runs) = (0u64, Vec::new());
    while at < 5 << 20 {
        world.cores[0].status(Tag(5), a, at, (5 << 20) - at);
        let told = loop {
            world.step();
            if let Some(told) = world.cores[0].poll_status() {
                break told;
            }
        };
        assert_eq!(told.from_bytes, at);
        runs.push((told.mapped, told.bytes));
        at += told.bytes;
    }
    let stripe = 4 << 20;
    let rest = (stripe - 131_072, (1 << 20) - 4096);
    assert_eq!(
        runs,
        [
            (false, 4096),
            (true, 4096),
            (false, 65536 - 8192),
            (true, 65536),
            (false, rest.0),
            (true, 4096),
            (false, rest.1)
        ]
    );
}

/// Goal: damage of each kind is found by a check, by name, and none makes opening panic; a second copy is taken where
/// there is one; a damaged volume is set aside and the others serve. Method: one byte changed at a time.
#[test]
fn damage_is_found() {
    use bdev::pool::format::{HEADERS_AT, JOURNALS_AT, SUPERBLOCK_AT};
    let disk = World::create(96 << 20);
    let mut world = World::open(&disk, 1);
    let a = world.volume("a", Provisioning::Thin);
    let b = world.volume("b", Provisioning::Thin);
    for piece in 0..40u64 {
        world.io(0, a, Op::Write, piece * 8192, 8, 1);
        world.io(0, b, Op::Write, piece * 8192, 8, 2);
    }
    let whole = disk.0.lock().unwrap().clone();
    let restore = || disk.0.lock().unwrap().copy_from_slice(&whole);
    let flip = |at: u64| disk.0.lock().unwrap()[at as usize] ^= 0x40;
    let problems =
        || check(&members(&disk)).map_or_else(|error| error.to_string(), |r| format!("{:?}", r.problems));
    assert_eq!(problems(), "[]");
    for at in SUPERBLOCK_AT {
        flip(at + 100);
        assert!(problems().contains("superblock"), "{}", problems());
        World::open(&disk, 1);
        restore();
    }
    for at in SUPERBLOCK_AT {
        flip(at + 100);
    }
    assert!(problems().contains("checksum is wrong"), "{}", problems());
    restore();
    // A block in the middle of the journal: what was acknowledged behind it would be lost in silence.
    flip(JOURNALS_AT + 2 * 4096 + 60);
    assert!(problems().contains("damaged journal"), "{}", problems());
    let refused = open(members(&disk), &OPTIONS).unwrap_err();
    assert!(refused.cure.contains("--repair"), "{refused}");
    bdev::pool::repair(&members(&disk)).unwrap();
    assert_eq!(problems(), "[]");
    World::open(&disk, 1);
    restore();
    // Opened by another number of cores, all is in images.
    drop(World::open(&disk, 2));
    assert_eq!(problems(), "[]");
    let images = disk.0.lock().unwrap().clone();
    let first_segment = (JOURNALS_AT + (4 << 20)) as usize;
    let mut found = std::collections::BTreeSet::new();
    for at in (first_segment..first_segment + (8 << 20)).step_by(64) {
        if images[at..at + 64].iter().all(|&byte| byte == 0) {
            continue;
        }
        flip(at as u64 + 9);
        let said = problems();
        found.extend(
            ["damaged map", "no checkpoint of core", "damaged volume"]
                .into_iter()
                .filter(|k| said.contains(k)),
        );
        if said.contains("damaged volume") && !(said.contains("volume a") && said.contains("volume b")) {
            let mut world = World::open(&disk, 2);
            let refused = if said.contains("volume a") { "a" } else { "b" };
            let other = if refused == "a" { "b" } else { "a" };
            let answer = world.ask(Request::Attach { volume: refused.into() });
            assert!(answer.unwrap_err().what.contains("set aside"));
            let bdev = world.attach(other);
            assert_eq!(world.read(bdev, 0, 8), vec![if other == "a" { 1 } else { 2 }; 4096]);
        }
        disk.0.lock().unwrap().copy_from_slice(&images);
    }
    assert_eq!(found.len(), 3, "{found:?}");
    for nth in 0..4u64 {
        flip(HEADERS_AT + nth * 4096 + 20);
    }
    let _ = problems();
    disk.0.lock().unwrap().copy_from_slice(&images);
}

const OPTIONS: OpenOptions = OpenOptions {
    cores: 1,
    map_memory_max_bytes: 1 << 30,
    first_bdev: BdevId(VOLUMES_FROM),
    mark: POOL_MARK,
    window_clusters: 2,
    punch_after: None,
    break_rule: None,
    folds: FoldWhen::Quiet,
    checkpoint_percent: CHECKPOINT_PERCENT,
    names_max: NAMES_MAX,
};

/// Goal: what people did does not pile up: dead roots are forgotten once checkpoints can do without them, and a volume
/// with more mappings than one record holds can go.
#[test]
fn nothing_piles_up() {
    let disk = World::create(96 << 20);
    let mut world = World::open(&disk, 2);
    let a = world.volume("a", Provisioning::Thin);
    for round in 0..20 {
        let name = format!("s{round}");
        world.ask(Request::SnapshotCreate { volume: "a".into(), name: name.clone() }).unwrap();
        world.io(round % 2, a, Op::Write, u64::from(round) * 8192, 8, 1);
        world.ask(Request::SnapshotDelete { snapshot: format!("a@{name}") }).unwrap();
    }
    let roots = |world: &World| format!("{:?}", world.cores[0]).matches("dead: true").count();
    assert!(roots(&world) >= 20);
    // Each step is a millisecond: dead roots are looked at every five seconds, and checkpoints come as journals fill.
    for round in 0..6_000u64 {
        world.io(round as u16 % 2, a, Op::Write, round % 64 * 1024, 8, 2);
        world.io(round as u16 % 2, a, Op::Unmap, round % 64 * 1024, 8, 0);
        if round % 100 == 0 {
            world.now += 6_000_000_000;
        }
    }
    assert!(roots(&world) < 3, "{} dead roots", roots(&world));
    for lun in 0..300 {
        let mapping = bdev::pool::control::Mapping {
            target: format!("iqn.{}", "x".repeat(219)),
            lun,
            volume: "a".into(),
            read_only: false,
            removable: false,
        };
        world.ask(Request::MappingPut(mapping)).unwrap();
    }
    world.ask(Request::VolumeDelete { volume: "a".into(), force: true }).unwrap();
    assert_eq!(world.ask(Request::Mappings).unwrap(), Answer::Mappings(Vec::new()));
}

/// Goal: what is reserved of a volume is there after another opening, by another number of cores too, whether a checkpoint
/// or the journal has it; it goes with its volume, and what is too much is refused.
#[test]
fn reservations_are_remembered() {
    let disk = World::create(96 << 20);
    let mut world = World::open(&disk, 1);
    let reservations =
        |world: &mut World, name: &str| match world.ask(Request::Attach { volume: name.into() }) {
            Ok(Answer::Attached { reservations, .. }) => reservations,
            other => panic!("{other:?}"),
        };
    let bdev = world.volume("a", Provisioning::Thin);
    let other = world.volume("b", Provisioning::Thin);
    assert_eq!(reservations(&mut world, "a"), []);
    let long: Vec<u8> = (0..60_000).map(|at| at as u8).collect();
    world.ask(Request::ReservationsPut { bdev, bytes: long.clone() }).unwrap();
    world.ask(Request::ReservationsPut { bdev: other, bytes: vec![5; 10] }).unwrap();
    for cores in [2, 3, 1] {
        world = World::open(&disk, cores);
        assert_eq!(reservations(&mut world, "a"), long);
        assert_eq!(reservations(&mut world, "b"), [5; 10]);
    }
    let bdev = world.attach("a");
    for bytes in [vec![7; 64 << 10], vec![8; 20], Vec::new(), vec![9; 30]] {
        world.ask(Request::ReservationsPut { bdev, bytes: bytes.clone() }).unwrap();
        assert_eq!(reservations(&mut world, "a"), bytes);
    }
    let put = |bdev, bytes| Request::ReservationsPut { bdev, bytes: vec![0; bytes] };
    assert_eq!(world.ask(put(bdev, (64 << 10) + 1)).unwrap_err().against, Against::NoSpace);
    assert_eq!(world.ask(put(BdevId(bdev.0 + 100), 1)).unwrap_err().against, Against::NotFound);
    world.ask(Request::VolumeDelete { volume: "a".into(), force: true }).unwrap();
    world = World::open(&disk, 1);
    world.volume("a", Provisioning::Thin);
    assert_eq!((reservations(&mut world, "a"), reservations(&mut world, "b")), (vec![], vec![5; 10]));
}

/// Goal: zeroes over nothing take no memory for maps.
#[test]
fn zeroes_take_no_nodes() {
    let disk = World::create(96 << 20);
    let mut world = World::open(&disk, 1);
    let a = world.volume("a", Provisioning::Thin);
    let memory = |world: &mut World| match world.ask(Request::Pool).unwrap() {
        Answer::Pool(info) => info.map_memory_bytes,
        other => panic!("{other:?}"),
    };
    let before = memory(&mut world);
    for stripe in 0..256 {
        world.io(0, a, Op::Write, stripe * 8192, 128, 0);
    }
    assert_eq!(memory(&mut world), before);
}

/// Goal: growing by a member that is cut short after any write leaves a pool that opens: without the new member as long as
/// no other speaks of it, with it from then on. Method: the writes of superblocks, one more each time.
#[test]
fn growing_can_be_cut_short() {
    let whole = World::create(96 << 20);
    let (mut without, mut with) = (0, 0);
    for cut in 0..5 {
        let disk = Memory(Arc::new(Mutex::new(whole.0.lock().unwrap().clone())));
        let second = Memory(Arc::new(Mutex::new(vec![0; 64 << 20])));
        let mut world = World { second: Some(second.clone()), ..World::open(&disk, 1) };
        let added = NewMember {
            path: "second".into(),
            file: FileId(1),
            align_bytes: 512,
            punch: false,
            bytes: 64 << 20,
            mark: [3; 16],
        };
        world.cores[0].ask(0, 1, Request::Grow { sizes: Vec::new(), added: vec![added] }, 0);
        for _ in 0..cut {
            world.cores[0].turn(Time(1));
            if let Some(op) = world.cores[0].poll_disk() {
                let place = if op.file == FileId(0) { &disk } else { &second };
                let done = place.perform(op);
                world.cores[0].complete(done);
            }
        }
        drop(world);
        let mut both = members(&disk);
        let medium = Arc::new(second.clone());
        both.push(Member { path: "second".into(), file: FileId(1), align_bytes: 512, punch: false, medium });
        let opens_without = open(members(&disk), &OPTIONS).is_ok();
        let knows = bdev::pool::pool_on(&both[1]).is_some();
        if opens_without {
            without += 1;
        } else {
            assert!(knows, "after {cut} writes it needs a member that does not know of it");
            open(both, &OPTIONS).unwrap();
            with += 1;
        }
    }
    assert!(without > 0 && with > 0, "{without} {with}");
}

/// Goal: what was found damaged stays set aside, also when checkpoints have written out what was left of its map. Method:
/// one image damaged, then openings with work that makes checkpoints, on the other volume.
#[test]
fn damage_is_not_forgotten() {
    let disk = World::create(96 << 20);
    let mut world = World::open(&disk, 2);
    let (a, b) = (world.volume("a", Provisioning::Thin), world.volume("b", Provisioning::Thin));
    for piece in 0..8u64 {
        world.io(0, a, Op::Write, piece * 8192, 8, 1);
        world.io(0, b, Op::Write, piece * 8192, 8, 2);
    }
    drop(World::open(&disk, 1));
    let before = disk.0.lock().unwrap().clone();
    let first_segment = (bdev::pool::format::JOURNALS_AT + (4 << 20)) as usize;
    let mut tried = 0;
    for at in (first_segment..first_segment + (1 << 20)).step_by(16) {
        if before[at..at + 16] == [0; 16] {
            continue;
        }
        disk.0.lock().unwrap()[at + 9] ^= 0x40;
        let said =
            check(&members(&disk)).map_or_else(|_| String::new(), |report| format!("{:?}", report.problems));
        if said.contains("volume a") && !said.contains("volume b") {
            tried += 1;
            let damaged = disk.0.lock().unwrap().clone();
            for round in 0..3 {
                let mut world = World::open(&disk, 1);
                let refused = world.ask(Request::Attach { volume: "a".into() }).unwrap_err();
                assert!(refused.what.contains("set aside"), "opening {round}: {refused}");
                let bdev = world.attach("b");
                for nth in 0..1200u64 {
                    world.io(0, bdev, Op::Write, nth % 8 * 8192 + 64, 8, 3);
                    world.io(0, bdev, Op::Unmap, nth % 8 * 8192 + 64, 8, 0);
                }
            }
            let Answer::Pool(info) = World::open(&disk, 1).ask(Request::Pool).unwrap() else { panic!() };
            assert_eq!(info.damaged.len(), 1);
            assert_ne!(*disk.0.lock().unwrap(), damaged);
            if tried == 2 {
                return;
            }
        }
        disk.0.lock().unwrap().copy_from_slice(&before);
    }
    assert!(tried > 0, "no image of one volume alone was found");
}

/// Goal: a chunk with as many names as copies may make is copied as bytes, in whatever order an overlap asks for; that is
/// counted, and names that go make room again. Method: three names may be, and copies inside a volume and to another.
#[test]
fn full_counts_are_copied_as_bytes() {
    let disk = World::create(160 << 20);
    let mut world = World::open_as(&disk, members(&disk), &OpenOptions { cores: 2, names_max: 3, ..OPTIONS });
    let (a, b) = (world.volume("a", Provisioning::Thin), world.volume("b", Provisioning::Thin));
    let mut array = vec![0u8; 4 << 20];
    for piece in 0..16u64 {
        world.io((piece % 2) as u16, a, Op::Write, piece * 128, 128, piece as u8 + 1);
        array[piece as usize * 65536..][..65536].fill(piece as u8 + 1);
    }
    let (length, half) = (1u64 << 20, 1usize << 19);
    let moved = |copied: Copied| (copied.moved.shared_bytes, copied.moved.count_full_bytes);
    assert_eq!(moved(world.copy((a, 0), (b, 0), length)), (length, 0));
    assert_eq!(moved(world.copy((a, 0), (b, length), length)), (length, 0));
    assert_eq!(moved(world.copy((a, 0), (b, 2 * length), length)), (0, length));
    assert!(world.bytes(b, 3 * length) == array[..1 << 20].repeat(3));
    // Over itself, to behind and to before: only from one end is right.
    assert_eq!(moved(world.copy((a, 0), (a, half as u64), length)), (0, length));
    array.copy_within(..1 << 20, half);
    assert!(world.bytes(a, 4 << 20) == array);
    world.io(0, b, Op::Unmap, 0, 8192, 0);
    world.copy((a, 4096), (a, length), length - 4096);
    array.copy_within(4096..1 << 20, 1 << 20);
    world.copy((a, half as u64), (a, 0), length);
    array.copy_within(half..half + (1 << 20), 0);
    assert!(world.bytes(a, 4 << 20) == array);
    let Answer::Pool(info) = world.ask(Request::Pool).unwrap() else { panic!() };
    let counts = info.counts;
    assert!(counts.copy_count_full_bytes >= 2 * length, "{counts:?}");
    // Where one of the three has gone there is room for one again.
    let before = world.bytes(b, 4 << 20);
    world.io(0, b, Op::Unmap, 4096, 2048, 0);
    assert_eq!(moved(world.copy((b, 2 * length), (b, 0), length)), (length, 0));
    let after = world.bytes(b, 4 << 20);
    assert!(after[..1 << 20] == before[2 << 20..3 << 20] && after[3 << 20..] == before[3 << 20..]);
    assert_eq!(check(&members(&disk)).unwrap().problems, []);
    let mut world = World::open(&disk, 3);
    let (a, b) = (world.attach("a"), world.attach("b"));
    assert!(world.bytes(a, 4 << 20) == array && world.bytes(b, 4 << 20) == after);
}

/// Goal: a copy that lines up moves pointers only, one that doesn't moves bytes, overlapping ones do as memmove does;
/// the copy goes its own way.
#[test]
fn copies() {
    let disk = World::create(160 << 20);
    let mut world = World::open(&disk, 2);
    let a = world.volume("a", Provisioning::Thin);
    let b = world.volume("b", Provisioning::Thin);
    let mut array = vec![0u8; 16 << 20];
    for piece in 0..128u64 {
        let byte = piece as u8 + 1;
        world.io((piece % 2) as u16, a, Op::Write, piece * 128, 128, byte);
        array[piece as usize * 65536..][..65536].fill(byte);
    }
    let free = world.free();
    let copy = |world: &mut World, to: BdevId, from_bytes: u64, to_bytes: u64, bytes: u64| {
        world.copy((a, from_bytes), (to, to_bytes), bytes)
    };
    let copied = copy(&mut world, b, 0, 0, 8 << 20);
    assert_eq!((copied.moved.shared_bytes, copied.moved.copied_bytes()), (8 << 20, 0));
    assert_eq!(world.free(), free);
    assert!(world.bytes(b, 8 << 20) == array[..8 << 20]);
    world.io(0, b, Op::Write, 8, 8, 0xFE);
    assert_eq!(world.read(a, 0, 128), vec![1; 65536]);
    let copied = copy(&mut world, a, 512, (5 << 20) + 512, 3 << 20);
    array.copy_within(512..512 + (3 << 20), (5 << 20) + 512);
    assert_eq!(copied.moved.copied_bytes(), 4096);
    let copied = copy(&mut world, a, 0, 65536 * 3, 6 << 20);
    array.copy_within(0..6 << 20, 65536 * 3);
    assert_eq!(copied.moved.copied_bytes(), 0);
    copy(&mut world, a, 1 << 20, 0, 6 << 20);
    array.copy_within(1 << 20..7 << 20, 0);
    let copied = copy(&mut world, a, 4096, 65536 * 2 + 8192, 1 << 20);
    array.copy_within(4096..4096 + (1 << 20), 65536 * 2 + 8192);
    assert_eq!(copied.moved.shared_bytes, 0);
    match world.ask(Request::Pool).unwrap() {
        Answer::Pool(info) => {
            assert_eq!((info.counts.copy_edge_bytes, info.counts.copy_misaligned_bytes), (4096, 1 << 20));
            assert_eq!(info.counts.copy_shared_bytes, ((8 + 3 + 6 + 6) << 20) - 4096);
        }
        other => panic!("{other:?}"),
    }
    assert!(world.bytes(a, 16 << 20) == array);
    let mut world = World::open(&disk, 3);
    world.attach("a");
    world.attach("b");
    assert!(world.bytes(a, 16 << 20) == array);
    assert_eq!(check(&members(&disk)).unwrap().problems, []);
}

/// Goal: many checkpoints, with the journal going round, lose nothing; a full pool says so and goes on when space is
/// given back.
#[test]
fn goes_round_and_fills_up() {
    let disk = World::create(256 << 20);
    let mut world = World::open(&disk, 2);
    let a = world.volume("a", Provisioning::Thin);
    for round in 0..6u64 {
        world.ask(Request::SnapshotCreate { volume: "a".into(), name: format!("r{round}") }).unwrap();
        for block in 0..400u64 {
            world.io(
                (block % 2) as u16,
                a,
                Op::Write,
                block * 8 * 33 % 65536 * 8,
                8,
                (round * 40 + block % 40) as u8 + 1,
            );
        }
        if round > 2 {
            world.ask(Request::SnapshotDelete { snapshot: format!("a@r{}", round - 3) }).unwrap();
        }
    }
    let Answer::Pool(info) = world.ask(Request::Pool).unwrap() else { panic!() };
    assert!(info.counts.checkpoints > 0, "{info:?}");
    let mut bytes = Vec::new();
    for block in 0..400u64 {
        bytes.push(world.read(a, block * 8 * 33 % 65536 * 8, 8)[0]);
    }
    for cores in [2, 1] {
        let mut world = World::open(&disk, cores);
        world.attach("a");
        for block in 0..400u64 {
            assert_eq!(world.read(a, block * 8 * 33 % 65536 * 8, 8)[0], bytes[block as usize]);
        }
        assert_eq!(check(&members(&disk)).unwrap().problems, []);
    }
}

/// Goal: zeroes over what is zero already change nothing, and are answered all the same.
#[test]
fn zeroes_over_zeroes() {
    let disk = World::create(96 << 20);
    let mut world = World::open(&disk, 1);
    let a = world.volume("a", Provisioning::Thin);
    world.io(0, a, Op::Write, 8, 16, 0);
    world.io(0, a, Op::Write, 8, 8, 7);
    world.io(0, a, Op::Write, 8, 16, 0);
    world.io(0, a, Op::Unmap, 0, 1024, 0);
    assert_eq!(world.read(a, 0, 128), vec![0; 65536]);
}

/// Goal: a thousand writes of one logical block at once, eight to each block of the map, all end, and each is there.
#[test]
fn small_writes_at_once() {
    let disk = World::create(96 << 20);
    let mut world = World::open(&disk, 2);
    let a = world.volume("a", Provisioning::Thin);
    for round in 0..4u64 {
        for nth in 0..256u64 {
            let mut buf = world.bufs.take(512).unwrap();
            buf.fill(nth as u8 ^ round as u8);
            let (tag, from) = (Tag(1000 + nth), Core(0));
            world.cores[0].submit(Io {
                tag,
                from,
                bdev: a,
                op: Op::Write,
                fua: false,
                heartbeat: false,
                more_parts: 0,
                lba: nth,
                blocks: 1,
                buf: Some(buf),
                scratch: None,
            });
        }
        let mut ended = 0;
        for _ in 0..2000 {
            world.step();
            while let Some(done) = world.cores[0].poll_done() {
                assert_eq!(done.result, Ok(()));
                ended += 1;
            }
        }
        assert_eq!(ended, 256, "round {round}");
        for nth in 0..256u64 {
            assert_eq!(world.read(a, nth, 1), vec![nth as u8 ^ round as u8; 512]);
        }
    }
}

/// Goal: a pool grows while it is open, by a longer member and by a new one; what is there is found after it, also when
/// it is opened again; a member that is missing is refused by name.
#[test]
fn grows() {
    let disk = World::create(96 << 20);
    let mut world = World::open(&disk, 2);
    let before = world.free();
    let a = world.volume("a", Provisioning::Thin);
    world.io(0, a, Op::Write, 0, 128, 1);
    disk.0.lock().unwrap().resize(128 << 20, 0xEE);
    let sizes = vec![MemberSize { member: 0, bytes: 128 << 20 }];
    world.ask(Request::Grow { sizes, added: Vec::new() }).unwrap();
    assert_eq!(world.free(), before + (32 << 20) - 65536);
    let second = Memory(Arc::new(Mutex::new(vec![0xEE; 64 << 20])));
    world.second = Some(second.clone());
    let added = NewMember {
        path: "second".into(),
        file: FileId(1),
        align_bytes: 512,
        punch: false,
        bytes: 64 << 20,
        mark: [3; 16],
    };
    world.ask(Request::Grow { sizes: Vec::new(), added: vec![added] }).unwrap();
    assert_eq!(world.free(), before + (32 << 20) + (60 << 20) - 65536);
    for piece in 0..2000u64 {
        world.io(piece as u16 % 2, a, Op::Write, piece * 128, 128, piece as u8 | 1);
    }
    let both = || {
        let mut members = members(&disk);
        let medium = Arc::new(second.clone());
        members.push(Member {
            path: "second".into(),
            file: FileId(1),
            align_bytes: 512,
            punch: false,
            medium,
        });
        members
    };
    let mut world =
        World { second: Some(second.clone()), ..World::open_members(&disk, both(), 2, FoldWhen::Quiet) };
    world.attach("a");
    for piece in 0..2000u64 {
        assert_eq!(world.read(a, piece * 128, 128), vec![piece as u8 | 1; 65536]);
    }
    assert_eq!(check(&both()).unwrap().problems, []);
    let missing = check(&members(&disk)).unwrap_err();
    assert!(missing.what.contains("member 1 of 2 is missing"), "{missing}");
}

/// Goal: a volume that is written in sequence, many writes at once, has its stripes in one piece each, also where snapshots
/// had them in pieces. Method: what the map says of itself.
#[test]
fn what_is_written_in_sequence_is_one_piece() {
    let disk = World::create(512 << 20);
    let mut world = World::open(&disk, 1);
    let a = world.volume("a", Provisioning::Thin);
    let runs = |world: &World| {
        let text = format!("{:?}", world.cores[0]);
        (text.matches("Run {").count(), text.matches("Dense(").count())
    };
    let all = |world: &mut World| {
        let (mut next, mut ended) = (0u64, 0u64);
        while ended < 1024 {
            while next < 1024 && next - ended < 32 {
                let mut buf = world.bufs.take(65536).unwrap();
                buf.fill(7);
                world.cores[0].submit(Io {
                    tag: Tag(1000 + next),
                    from: Core(0),
                    bdev: a,
                    op: Op::Write,
                    fua: false,
                    heartbeat: false,
                    more_parts: 0,
                    lba: next * 128,
                    blocks: 128,
                    buf: Some(buf),
                    scratch: None,
                });
                next += 1;
            }
            world.step();
            while let Some(done) = world.cores[0].poll_done() {
                assert_eq!(done.result, Ok(()));
                ended += 1;
            }
        }
    };
    all(&mut world);
    assert_eq!(runs(&world), (16, 0));
    for round in 0..60 {
        world.ask(Request::SnapshotCreate { volume: "a".into(), name: format!("s{round}") }).unwrap();
        world.io(0, a, Op::Write, (round * 5003 * 8) % 131_072, 8, 1);
    }
    world.ask(Request::SnapshotCreate { volume: "a".into(), name: "end".into() }).unwrap();
    assert_eq!(runs(&world), (16, 60));
    all(&mut world);
    assert_eq!(runs(&world), (32, 60));
}

/// Goal: stripes in one piece and slots in many are copied, snapshotted, folded and found again as any others. Method:
/// random stripes written whole, small writes, copies that line up, snapshots taken and dropped, time in which folds may
/// happen, and openings, against an array for each volume and snapshot; the walk finds nothing wrong, and folding gave
/// space back.
#[test]
fn runs_and_pieces() {
    const CHUNK: u64 = 65536;
    const BYTES: u64 = 12 << 20;
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = move |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    let disk = World::create(400 << 20);
    let open = |cores| World::open_members(&disk, members(&disk), cores, FoldWhen::Quiet);
    let mut world = open(2);
    let mut bdevs = [world.volume("a", Provisioning::Thin), world.volume("b", Provisioning::Thin)];
    let mut arrays = [vec![0u8; BYTES as usize], vec![0u8; BYTES as usize]];
    let mut snapshots: Vec<(String, Vec<u8>)> = Vec::new();
    let (mut folds, mut shared) = (0, 0);
    let read_all = |world: &mut World, bdev: BdevId| {
        (0..BYTES / CHUNK).flat_map(|piece| world.read(bdev, piece * 128, 128)).collect::<Vec<u8>>()
    };
    let folds_of = |world: &mut World| match world.ask(Request::Pool).unwrap() {
        Answer::Pool(info) => info.counts.folds,
        other => panic!("{other:?}"),
    };
    for round in 0..400u64 {
        let which = random(2) as usize;
        let core = random(world.cores.len() as u64) as u16;
        match random(12) {
            0 => {
                let (stripe, byte) = (random(3), round as u8 | 1);
                for piece in stripe * 64..(stripe + 1) * 64 {
                    world.io(core, bdevs[which], Op::Write, piece * 128, 128, byte);
                }
                arrays[which][(stripe << 22) as usize..((stripe + 1) << 22) as usize].fill(byte);
            }
            1..=3 => {
                let to = random(2) as usize;
                let bytes = if random(2) == 0 { 4 << 20 } else { (1 + random(80)) * CHUNK };
                let unit = if bytes == 4 << 20 { 4 << 20 } else { CHUNK };
                let mut place = || random((BYTES - bytes) / unit + 1) * unit;
                let (from_bytes, to_bytes) = (place(), place());
                world.cores[usize::from(core)].copy(CopyIo {
                    tag: Tag(7),
                    source: bdevs[which],
                    source_bytes: from_bytes,
                    destination: bdevs[to],
                    destination_bytes: to_bytes,
                    bytes,
                });
                let copied = (0..10_000)
                    .find_map(|_| {
                        world.step();
                        world.cores[usize::from(core)].poll_copied()
                    })
                    .unwrap();
                assert_eq!((copied.result, copied.moved.copied_bytes()), (Ok(()), 0));
                shared += copied.moved.shared_bytes;
                let moved = arrays[which][from_bytes as usize..][..bytes as usize].to_vec();
                arrays[to][to_bytes as usize..][..bytes as usize].copy_from_slice(&moved);
            }
            4 if snapshots.len() < 4 => {
                let name = format!("s{round}");
                let volume = ["a", "b"][which].to_owned();
                world.ask(Request::SnapshotCreate { volume: volume.clone(), name: name.clone() }).unwrap();
                snapshots.push((format!("{volume}@{name}"), arrays[which].clone()));
            }
            5 if !snapshots.is_empty() => {
                let place = random(snapshots.len() as u64) as usize;
                let (snapshot, content) = snapshots.swap_remove(place);
                let (name, provisioning) = ("clone".to_owned(), Some(Provisioning::Thin));
                world.ask(Request::VolumeClone { snapshot: snapshot.clone(), name, provisioning }).unwrap();
                let clone = world.attach("clone");
                assert!(read_all(&mut world, clone) == content, "{snapshot} in round {round}");
                world.ask(Request::VolumeDelete { volume: "clone".into(), force: true }).unwrap();
                world.ask(Request::SnapshotDelete { snapshot }).unwrap();
            }
            6 => {
                // Folds begin while nobody asks for anything, and a snapshot may come in the middle of one.
                for _ in 0..1000 + random(100) {
                    world.step();
                }
            }
            7 if round % 4 == 0 => {
                folds += folds_of(&mut world);
                world = open(1 + random(3) as u16);
                bdevs = [world.attach("a"), world.attach("b")];
            }
            _ => {
                // Few places, so that one slot comes to have blocks of many times.
                let (block, byte) = (random(3) * 1024 + random(40), round as u8 | 1);
                world.io(core, bdevs[which], Op::Write, block * 8, 8, byte);
                arrays[which][block as usize * 4096..][..4096].fill(byte);
            }
        }
    }
    for (bdev, array) in bdevs.iter().zip(&arrays) {
        assert!(read_all(&mut world, *bdev) == *array);
    }
    while let Some((snapshot, _)) = snapshots.pop() {
        world.ask(Request::SnapshotDelete { snapshot }).unwrap();
    }
    // Checkpoints and quiet: all pieces of what snapshots had are brought together.
    let before = world.free();
    let mut last = u64::MAX;
    while last != folds_of(&mut world) {
        last = folds_of(&mut world);
        for _ in 0..62_000 {
            world.step();
        }
    }
    folds += last;
    assert!(folds >= 8 && shared > 100 << 20, "{folds} folds, {shared} bytes shared");
    assert!(world.free() >= before, "folding has taken space");
    for (bdev, array) in bdevs.iter().zip(&arrays) {
        assert!(read_all(&mut world, *bdev) == *array);
    }
    assert_eq!(check(&members(&disk)).unwrap().problems, []);
    let mut world = open(2);
    for (name, array) in ["a", "b"].into_iter().zip(&arrays) {
        let bdev = world.attach(name);
        assert!(read_all(&mut world, bdev) == *array);
    }
}

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

/// Goal: what a walk says is unique and what is shared is what all maps together say, for slots of any kind and nodes with
/// two parents; and unique is what deleting gives back. Method: random histories on one to three cores, at each stop a
/// walk against the medium, in the end volume after volume deleted. Two clusters a window: several windows.
#[test]
fn tells_what_is_whose() {
    for (cores, seed) in [(1, 1), (2, 2), (3, 3), (2, 4), (3, 5)] {
        let disk = World::create(160 << 20);
        let mut world = World::open(&disk, cores);
        let mut dice = Dice(seed);
        let mut volumes = vec![("a".to_owned(), world.volume("a", Provisioning::Thin))];
        volumes.push(("b".to_owned(), world.volume("b", Provisioning::Thin)));
        let mut snapshots: Vec<String> = Vec::new();
        let (mut fragments, mut both) = (0, 0);
        for step in 1..=300u64 {
            let (name, bdev) = volumes[dice.below(volumes.len() as u64) as usize].clone();
            // Few places, so that histories meet there: chunks at both ends of three stripes.
            let slot = dice.below(3) * 64 + [0, 1, 2, 62, 63][dice.below(5) as usize];
            match dice.below(20) {
                0 if snapshots.len() < 8 => {
                    let own = format!("s{step}");
                    world.ask(Request::SnapshotCreate { volume: name.clone(), name: own.clone() }).unwrap();
                    snapshots.push(format!("{name}@{own}"));
                }
                1 if !snapshots.is_empty() && volumes.len() < 5 => {
                    let snapshot = snapshots[dice.below(snapshots.len() as u64) as usize].clone();
                    let clone = format!("c{step}");
                    let request = Request::VolumeClone { snapshot, name: clone.clone(), provisioning: None };
                    world.ask(request).unwrap();
                    let bdev = world.attach(&clone);
                    volumes.push((clone, bdev));
                }
                2 if !snapshots.is_empty() => {
                    let place = dice.below(snapshots.len() as u64) as usize;
                    let snapshot = snapshots.remove(place);
                    world.ask(Request::SnapshotDelete { snapshot }).unwrap();
                }
                3 | 4 => {
                    let to = volumes[dice.below(volumes.len() as u64) as usize].1;
                    let to_slot = dice.below(3) * 64 + dice.below(64);
                    let blocks = dice.below(40) + 1;
                    world.copy((bdev, slot << 16), (to, to_slot << 16), blocks << 12);
                }
                5 => drop(world.io(0, bdev, Op::Unmap, slot * 128, (dice.below(40) + 1) * 8, 0)),
                6 => {
                    for slot in 0..64 {
                        world.io(0, bdev, Op::Write, slot * 128, 128, step as u8 | 1);
                    }
                }
                _ => {
                    let (first, blocks) = (dice.below(15), dice.below(3) + 1);
                    let blocks = blocks.min(16 - first);
                    let core = dice.below(u64::from(cores)) as u16;
                    world.io(core, bdev, Op::Write, slot * 128 + first * 8, blocks * 8, step as u8 | 1);
                }
            }
            if step % 25 != 0 {
                continue;
            }
            for _ in 0..600 {
                world.step();
            }
            let (found, exact) = world.usage();
            assert!(exact, "step {step}: {found:?}");
            let whole = usage_of(&members(&disk)).unwrap();
            assert_eq!(found.len(), whole.len());
            for (name, (unique, shared)) in found {
                let expected = whole[&name];
                let shared_is = shared.map(|_| expected.1);
                assert_eq!(
                    (unique, shared),
                    (expected.0, shared_is),
                    "{name} at step {step}, {cores} cores, seed {seed}"
                );
                both += u32::from(unique > 0 && shared > Some(0));
            }
            fragments += u32::from(format!("{:?}", world.cores[0]).contains("fragment: Some"));
        }
        assert!(fragments > 0 && both > 5, "{fragments} {both}");
        for snapshot in snapshots {
            let (found, _) = world.usage();
            let unique = found.iter().find(|(name, _)| *name == snapshot).unwrap().1.0;
            let free = world.free();
            world.ask(Request::SnapshotDelete { snapshot: snapshot.clone() }).unwrap();
            for _ in 0..600 {
                world.step();
            }
            assert_eq!(world.free() - free, unique, "{snapshot}");
        }
        while let Some((volume, _)) = volumes.pop() {
            let (found, _) = world.usage();
            let unique = found.iter().find(|(name, _)| *name == volume).unwrap().1.0;
            let free = world.free();
            world.ask(Request::VolumeDelete { volume: volume.clone(), force: true }).unwrap();
            for _ in 0..600 {
                world.step();
            }
            assert_eq!(world.free() - free, unique, "{volume}");
        }
    }
}

/// Goal: a walk comes by itself when something has changed, stays away when nothing has, says when a figure is overtaken,
/// and a write during it makes it inexact at most. Method: time passes.
#[test]
fn walks_by_itself() {
    let disk = World::create(96 << 20);
    let mut world = World::open(&disk, 2);
    let a = world.volume("a", Provisioning::Thin);
    let usage = |world: &mut World| match world.ask(Request::Volumes).unwrap() {
        Answer::Volumes(volumes) => volumes[0].usage,
        other => panic!("{other:?}"),
    };
    world.io(0, a, Op::Write, 0, 128, 1);
    assert_eq!(usage(&mut world), None);
    let pass = |world: &mut World| {
        world.now += 31_000_000_000;
        (0..2000).for_each(|_| world.step());
    };
    pass(&mut world);
    let first = usage(&mut world).unwrap();
    assert_eq!((first.unique_bytes, first.shared_bytes, first.exact), (65536, Some(0), true));
    pass(&mut world);
    let again = usage(&mut world).unwrap();
    assert_eq!(bdev::pool::control::Usage { at_seconds: first.at_seconds, ..again }, first);
    // What is written where it was changes nothing.
    world.io(0, a, Op::Write, 0, 8, 2);
    assert!(usage(&mut world).unwrap().exact);
    world.io(0, a, Op::Write, 8192, 8, 2);
    let overtaken = usage(&mut world).unwrap();
    assert_eq!((overtaken.unique_bytes, overtaken.exact), (65536, false));
    pass(&mut world);
    let second = usage(&mut world).unwrap();
    assert_eq!((second.unique_bytes, second.exact), (2 * 65536, true));
    world.cores[0].ask(0, 2, Request::UsageWalk, 1_700_000_000);
    for piece in 2..40 {
        world.io(piece as u16 % 2, a, Op::Write, piece * 8192, 8, 3);
    }
    while world.cores[0].poll_answer().is_none() {
        world.step();
    }
    let during = usage(&mut world).unwrap();
    assert!(!during.exact && during.unique_bytes <= 40 * 65536, "{during:?}");
}

/// Goal: a file system that is full below a sparse pool is a pool that is full: only what needs a block that was never
/// written fails, with OUT OF SPACE; nothing is lost, set aside or broken; no chunk leaks; when there is space the same
/// write goes through. Method: a disk with so many blocks, ENOSPC and EDQUOT, with and without a write cache.
#[test]
fn a_full_file_system_is_a_full_pool() {
    for (errno, write_cache, cores) in [(28, false, 1), (122, true, 2)] {
        let disk = World::create(96 << 20);
        let mut world = World::open(&disk, cores);
        let a = world.volume("a", Provisioning::Thin);
        let spec = VolumeSpec {
            name: "b".into(),
            bytes: 1 << 30,
            block_bytes: 512,
            physical_block_bytes: 4096,
            provisioning: Provisioning::Thin,
            zero_detect: true,
            write_cache,
        };
        world.ask(Request::VolumeCreate(spec)).unwrap();
        let b = world.attach("b");
        world.sparse = Some(Sparse::new(errno, 20 * 16));
        let on = |piece: u64| if piece.is_multiple_of(2) { a } else { b };
        let mut written = 0u64;
        while world.try_io(0, on(written), Op::Write, written * 128, 128, written as u8 + 1).0.is_ok() {
            written += 1;
        }
        assert_eq!(written, 20);
        // Records that nobody waits for are durable half a second later.
        let wait = |world: &mut World| (0..600).for_each(|_| world.step());
        wait(&mut world);
        let free = world.free();
        // Some that fail at once, in parts of blocks and over the edges of chunks, too.
        for nth in 0..60u64 {
            let (result, _) = world.try_io(nth as u16 % cores, a, Op::Write, (100 + nth) * 128 + 3, 9, 1);
            assert_eq!(result, Err(IoError::OutOfSpace));
        }
        wait(&mut world);
        assert_eq!(world.free(), free);
        assert!(world.sparse.as_ref().unwrap().refused > 60);
        // What has its blocks goes on, and so does what needs none.
        for piece in 0..20u64 {
            world.io(0, on(piece), Op::Write, piece * 128 + 8, 8, 0xB0);
            assert_eq!(world.read(on(piece), piece * 128, 8), vec![piece as u8 + 1; 4096]);
        }
        world.io(0, a, Op::Flush, 0, 0, 0);
        world.io(0, a, Op::Unmap, 100 * 128, 1000, 0);
        world.ask(Request::SnapshotCreate { volume: "a".into(), name: "s".into() }).unwrap();
        // Now the next write to a needs space, and to b does not.
        assert_eq!(world.try_io(0, a, Op::Write, 0, 8, 7).0, Err(IoError::OutOfSpace));
        world.io(0, b, Op::Write, 128, 8, 0xB1);
        world.ask(Request::SnapshotDelete { snapshot: "a@s".into() }).unwrap();
        wait(&mut world);
        let named = check(&members(&disk)).unwrap();
        assert_eq!((named.problems, named.chunks - named.named_chunks), (Vec::new(), world.free() / 65536));
        world.sparse.as_mut().unwrap().left = 16;
        world.io(0, a, Op::Write, 200 * 128, 128, 0xC0);
        assert_eq!(world.read(a, 200 * 128, 128), vec![0xC0; 65536]);
        world.io(0, b, Op::Flush, 0, 0, 0);
        let mut world = World::open(&disk, cores);
        world.attach("a");
        world.attach("b");
        assert_eq!(world.read(a, 200 * 128, 128), vec![0xC0; 65536]);
        for piece in 2..20u64 {
            let data = world.read(on(piece), piece * 128, 16);
            assert_eq!(data, [vec![piece as u8 + 1; 4096], vec![0xB0; 4096]].concat());
        }
    }
}

/// Goal: the space of what is free goes back to the file system, of freed chunks and of what a former life has left, and
/// nothing else does; it does so while requests go on, too; a member that can't is left alone. Method: a disk that
/// knows which blocks it has given, over deletes, UNMAP and reopening.
#[test]
fn free_chunks_are_punched() {
    let disk = World::create(160 << 20);
    let mut world = World::open(&disk, 2);
    world.sparse = Some(Sparse::new(28, usize::MAX / 2));
    let idle = |world: &mut World| (0..3000).for_each(|_| world.step());
    let punched = |world: &mut World| match world.ask(Request::Pool).unwrap() {
        Answer::Pool(info) => (info.counts.punched_bytes, info.free_bytes, info.pending_bytes),
        other => panic!("{other:?}"),
    };
    idle(&mut world);
    // It was full of 0xEE: all free chunks were punched, whole clusters at once.
    let (bytes, free, pending) = punched(&mut world);
    assert_eq!((bytes, pending), (free, 0));
    assert_eq!(world.sparse.as_ref().unwrap().punches as u64, free.div_ceil(4 << 20));
    assert!(disk.0.lock().unwrap()[DATA_AT as usize..].iter().all(|&byte| byte == 0));
    let a = world.volume("a", Provisioning::Thin);
    for piece in 0..300u64 {
        world.io(piece as u16 % 2, a, Op::Write, piece * 128, 128, piece as u8 | 1);
    }
    let given = |world: &World| world.sparse.as_ref().unwrap().given.len();
    assert_eq!(given(&world), 300 * 16);
    world.ask(Request::SnapshotCreate { volume: "a".into(), name: "s".into() }).unwrap();
    for piece in 0..300u64 {
        world.io(0, a, Op::Write, piece * 128, 8, piece as u8 | 1);
    }
    world.ask(Request::SnapshotDelete { snapshot: "a@s".into() }).unwrap();
    world.io(0, a, Op::Unmap, 0, 150 * 128, 0);
    idle(&mut world);
    // Every chunk that is still named was written: one of own blocks and one below it for each slot.
    let named = (160 << 20) - DATA_AT - world.free();
    let used = named / 65536;
    assert!((150..=300).contains(&used), "{used}");
    assert!(given(&world) as u64 <= used * 16 && given(&world) >= 150 * 16, "{} of {used}", given(&world));
    // Somebody is always busy, and still it goes back.
    world.io(0, a, Op::Unmap, 150 * 128, 150 * 128, 0);
    for round in 0..3000u64 {
        world.io(round as u16 % 2, a, Op::Write, 299 * 128 + round % 16 * 8, 8, 7);
    }
    assert!(given(&world) <= 2 * 16, "{}", given(&world));
    // What can't be punched is tried once by each core.
    world.io(0, a, Op::Write, 0, 128, 1);
    let before = {
        let sparse = world.sparse.as_mut().unwrap();
        sparse.punch_errno = Some(95);
        sparse.punches
    };
    for piece in 0..4u64 {
        world.io(0, a, Op::Unmap, piece * 8192, 128, 0);
        world.io(0, a, Op::Write, piece * 8192 + 8192, 128, 1);
        idle(&mut world);
    }
    assert!(world.sparse.as_ref().unwrap().punches - before <= 2);
    let free = world.free();
    let mut world = World::open(&disk, 1);
    world.attach("a");
    idle(&mut world);
    assert_eq!(world.free(), free);
    assert_eq!(world.read(a, 4 * 8192, 128), vec![1; 65536]);
    assert_eq!(check(&members(&disk)).unwrap().problems, []);
    // The last chunks of a pool are found although they are being punched.
    world.io(0, a, Op::Unmap, 0, (1 << 30) / 512, 0);
    world.free();
    let pieces = match world.ask(Request::Pool).unwrap() {
        Answer::Pool(info) => (info.free_bytes - info.heartbeat_reserve_bytes) / 65536,
        other => panic!("{other:?}"),
    };
    for round in 0..3u8 {
        for piece in 0..pieces {
            world.io(0, a, Op::Write, piece * 128, 128, round + 1);
        }
        assert_eq!(world.try_io(0, a, Op::Write, pieces * 128, 128, 1).0, Err(IoError::OutOfSpace));
        world.io(0, a, Op::Unmap, 0, (1 << 30) / 512, 0);
        (0..50).for_each(|_| world.step());
    }
}

/// Goal: on a pool that is full after a snapshot, locks can still be taken: COMPARE AND WRITE, and small writes to blocks that
/// it has used, find space that nobody else gets; what is given back is theirs first; growing and reopening keep it so.
/// Method: a pool written full, with locks dense and sparse, by both cores.
#[test]
fn locks_find_space_on_a_full_pool() {
    let disk = World::create(96 << 20);
    let mut world = World::open(&disk, 2);
    let a = world.volume("a", Provisioning::Thin);
    let kept = world.info().heartbeat_reserve_bytes;
    assert_eq!(kept, (76 << 20) / 64 / 65536 * 65536);
    let chunks = kept / 65536;
    let write = |world: &mut World, lba, blocks| {
        let core = (lba / 8192 % 2) as u16;
        world.attempt(core, a, Op::Write, lba, blocks, (1, 0)).map(|_| ())
    };
    let mut filled = 0;
    while write(&mut world, filled * 128, 128).is_ok() {
        filled += 1;
    }
    let info = world.info();
    assert_eq!((info.free_bytes, info.heartbeat_reserve_bytes), (kept, kept), "the rest is for heartbeats");
    world.ask(Request::SnapshotCreate { volume: "a".into(), name: "s".into() }).unwrap();
    let full = Err(IoError::OutOfSpace);
    assert_eq!(write(&mut world, 0, 1), full);
    let swap =
        |world: &mut World, lba, new| world.attempt(0, a, Op::CompareAndWrite, lba, 1, (new, 1)).map(|_| ());
    // What differs uses nothing; what is equal finds space, and so does what is written beside it.
    assert_eq!(
        world.attempt(0, a, Op::CompareAndWrite, 8, 1, (2, 9)),
        Err(IoError::Miscompare { offset_bytes: 0 })
    );
    assert_eq!(write(&mut world, 9, 1), full);
    assert_eq!(swap(&mut world, 8, 2), Ok(()));
    assert_eq!(write(&mut world, 9, 1), Ok(()));
    assert_eq!(write(&mut world, 7, 1), full);
    assert_eq!(write(&mut world, 8, 16), full);
    world.ask(Request::SnapshotCreate { volume: "a".into(), name: "t".into() }).unwrap();
    // 16 locks share a chunk, however far they lie apart; the last ones of the cores may have room left.
    let mut locks = 0;
    while swap(&mut world, 128 + locks * 136, 3).is_ok() {
        locks += 1;
    }
    assert!((chunks - 2) * 16 <= locks && locks < chunks * 16, "{locks} locks in {chunks} chunks");
    assert_eq!(write(&mut world, 0, 8), full);
    assert_eq!(world.info().heartbeat_reserve_bytes, 0);
    for lock in 0..locks {
        assert_eq!(world.read(a, 128 + lock * 136, 1), vec![3; 512]);
    }
    // Less than it takes: all of that is the heartbeats'.
    for snapshot in ["a@s", "a@t"] {
        world.ask(Request::SnapshotDelete { snapshot: snapshot.into() }).unwrap();
    }
    let left = world.info().heartbeat_reserve_bytes / 65536;
    for slot in 0..chunks - left - 1 {
        world.io(0, a, Op::Unmap, (filled - 1 - slot) * 128, 128, 0);
    }
    assert_eq!(world.info().heartbeat_reserve_bytes, kept - 65536);
    assert_eq!(write(&mut world, (filled - 1) * 128, 8), full);
    world.io(0, a, Op::Unmap, (filled - 1 - chunks) * 128, 128, 0);
    assert_eq!(world.info().heartbeat_reserve_bytes, kept);
    assert_eq!(write(&mut world, (filled - 1) * 128, 8), full);
    world.io(0, a, Op::Unmap, (filled - 2 - chunks) * 128, 128, 0);
    assert_eq!(write(&mut world, (filled - 1) * 128, 8), Ok(()));
    let before = world.info();
    assert_eq!((before.free_bytes, before.heartbeat_reserve_bytes), (kept, kept));
    drop(world);
    assert_eq!(check(&members(&disk)).unwrap().problems, []);
    let mut world = World::open(&disk, 3);
    let info = world.info();
    assert_eq!((info.free_bytes, info.heartbeat_reserve_bytes), (kept, kept));
}

/// Goal: a compare and write of any length is one step wherever it lies: in a piece, over pieces, over the edge between two
/// cores' stripes; a difference is told where it is and nothing is written; one given up does nothing; past the end it is
/// refused. Method: lengths and places, with the only difference in each half; all of it from both cores.
#[test]
fn swaps_of_any_length_are_one_step() {
    for cores in [1, 2, 3] {
        let disk = World::create(96 << 20);
        let mut world = World::open(&disk, cores);
        let a = world.volume("a", Provisioning::Thin);
        let mut now = 0;
        for (lba, blocks) in
            [(0, 1), (100, 28), (127, 2), (8191, 2), (8188, 8), (8000, 255), (8192, 255), (16_300, 200)]
        {
            for core in 0..cores {
                let bytes = blocks * 512;
                let is = |world: &mut World| {
                    let read: Vec<u8> =
                        (lba..lba + blocks as u64).flat_map(|lba| world.read(a, lba, 1)).collect();
                    read
                };
                let before = is(&mut world);
                for at in [0, bytes / 2, bytes - 1] {
                    let mut wrong = before.clone();
                    wrong[at] ^= 1;
                    let differs = IoError::Miscompare { offset_bytes: at as u32 };
                    assert_eq!(world.swap(core, a, lba, &wrong, 99), Err(differs), "{lba}+{blocks}");
                    assert_eq!(is(&mut world), before);
                }
                now += 1;
                assert_eq!(world.swap(core, a, lba, &before, now), Ok(()));
                assert_eq!(is(&mut world), vec![now; bytes]);
            }
        }
        assert_eq!(world.swap(0, a, (1 << 21) - 100, &vec![0; 200 * 512], 1), Err(IoError::OutOfRange));
        // Given up: before it has begun anywhere, and then at each step on its way.
        for steps in 0..8 {
            let before: Vec<u8> = (8188..8196).flat_map(|lba| world.read(a, lba, 1)).collect();
            let tag = world.swap_begin(0, a, 8188, &before, 200 + steps);
            (0..steps).for_each(|_| world.step());
            let (storage, mut told) = (&mut world.cores[0], Vec::new());
            storage.router.abandon(tag.0, |core, bdev, tag| told.push((core, bdev, tag)));
            (0..cores).for_each(|core| world.cores[usize::from(core)].shard.abandon(Core(0), a, tag.0));
            let result = loop {
                if let Some(result) = world.swap_end(0, tag) {
                    break result;
                }
                world.step();
            };
            let after: Vec<u8> = (8188..8196).flat_map(|lba| world.read(a, lba, 1)).collect();
            match result {
                Ok(()) => assert_eq!(after, vec![200 + steps; 8 * 512]),
                Err(IoError::ABANDONED) => assert_eq!(after, before),
                other => panic!("{other:?}"),
            }
        }
        drop(world);
        assert_eq!(check(&members(&disk)).unwrap().problems, []);
    }
}

/// Goal: when memory for maps is short, what gives nodes back still works, an UNMAP that would take one leaves its blocks and
/// says how many, zeroing that would is refused, and what is mapped already is written and read. Method: a volume of runs,
/// opened again with no memory at all.
#[test]
fn goes_on_without_memory_for_maps() {
    let disk = World::create(160 << 20);
    let mut world = World::open(&disk, 2);
    let a = world.volume("a", Provisioning::Thin);
    for piece in 0..256u64 {
        world.io(0, a, Op::Write, piece * 128, 128, 1);
    }
    let free = world.free();
    let mut world = World::open_within(&disk, members(&disk), 2, FoldWhen::Never, 0);
    let a = world.attach("a");
    let left = |world: &mut World| match world.ask(Request::Pool).unwrap() {
        Answer::Pool(info) => info.counts.unmap_left_blocks,
        other => panic!("{other:?}"),
    };
    // Half of the second stripe, all of the third, and a little of the fourth.
    world.io(0, a, Op::Unmap, 12 << 10, (12 << 10) + 128, 0);
    assert_eq!(left(&mut world), 512 + 16);
    for (stripe, byte) in [(0, 1), (1, 1), (2, 0), (3, 1)] {
        assert_eq!(world.read(a, (stripe << 13) + 8064, 128), vec![byte; 65536], "stripe {stripe}");
    }
    assert_eq!(world.free(), free + (4 << 20));
    world.io(0, a, Op::WriteZeroes, 0, 8192, 0);
    assert_eq!(world.try_io(0, a, Op::WriteZeroes, 8192, 128, 0).0, Err(IoError::OutOfSpace));
    assert_eq!(world.try_io(0, a, Op::Write, 0, 8, 3).0, Err(IoError::OutOfSpace));
    world.io(1, a, Op::Write, 8192, 8, 3);
    assert_eq!(world.read(a, 8192, 128), [vec![3; 4096], vec![1; 61440]].concat());
    world.ask(Request::VolumeDelete { volume: "a".into(), force: true }).unwrap();
    (0..100).for_each(|_| world.step());
    assert_eq!(world.free(), free + (16 << 20));
    assert_eq!(check(&members(&disk)).unwrap().problems, []);
}

/// Goal: what tokens hold is what was copied to it, also after its source has changed; it counts as nobody's; and at the next
/// opening nothing of it is left, whichever way the program ended and however many cores there are then: its chunks are
/// free, a check finds nothing wrong, and what is made later has nothing of it. Method: several lives, with checkpoints
/// between and without, each ended without a word; volumes of every life are compared with what they were.
#[test]
fn tokens_end_with_the_program() {
    const LENGTH: u64 = 9 << 20;
    let disk = World::create(160 << 20);
    let open = |cores, checkpoint_percent| {
        let options = OpenOptions { cores, checkpoint_percent, folds: FoldWhen::Always, ..OPTIONS };
        World::open_as(&disk, members(&disk), &options)
    };
    let mut world = open(2, CHECKPOINT_PERCENT);
    let mut checkpoints = 0;
    let empty = world.free();
    let source = world.volume("source", Provisioning::Thin);
    assert_ne!(tokens_of(source), Some(source), "a number of its own");
    for (life, (cores, percent)) in (0u8..).zip([(2, CHECKPOINT_PERCENT), (2, 1), (3, 1), (1, 50), (2, 1)]) {
        let source = world.attach("source");
        let store = tokens_of(source).unwrap();
        for piece in 0..LENGTH / 65536 {
            world.io(0, source, Op::Write, piece * 128, 128, 10 + life);
        }
        // Neither end is the end of a block.
        let (first, bytes, place) = (512 * 3, LENGTH - 512 * 5, (5 << 30) + 512 * 3);
        let populated = world.copy((source, first), (store, place), bytes).moved;
        assert_eq!((populated.edge_bytes, populated.misaligned_bytes), (4096 - 512 * 3 + 4096 - 512 * 2, 0));
        assert_eq!(world.info().token_bytes, LENGTH);
        for piece in 0..LENGTH / 65536 {
            world.io(0, source, Op::Write, piece * 128, 128, 90);
        }
        let name = format!("copy{life}");
        let copy = world.volume(&name, Provisioning::Thin);
        let used = world.copy((store, place), (copy, first), bytes).moved;
        assert_eq!(used.shared_bytes, populated.shared_bytes);
        // Another token, which ends before the program does.
        world.copy((source, 0), (store, 9 << 30), 4 << 20);
        let last = world.cores.len() as u16 - 1;
        world.io(last, store, Op::Unmap, (9 << 30) / 512, (4 << 20) / 512, 0);
        assert_eq!(world.info().token_bytes, LENGTH);
        let is_right = |world: &mut World, name: &str, byte: u8| {
            let volume = world.attach(name);
            let bytes = world.bytes(volume, LENGTH);
            let inside = &bytes[first as usize..(first + LENGTH - 512 * 5) as usize];
            assert!(inside.iter().all(|&found| found == byte), "{name}");
            assert!(bytes[..first as usize].iter().all(|&found| found == 0), "{name}");
        };
        is_right(&mut world, &name, 10 + life);
        let report = check(&members(&disk)).unwrap();
        assert_eq!(report.problems, []);
        checkpoints += world.info().counts.checkpoints;
        world = open(cores, percent);
        assert_eq!(check(&members(&disk)).unwrap().problems, []);
        assert_eq!(world.info().token_bytes, 0);
        assert_eq!(world.io(0, store, Op::Read, place / 512, 64, 1), vec![0; 64 * 512]);
        for life in 0..=life {
            is_right(&mut world, &format!("copy{life}"), 10 + life);
        }
        let fresh = world.volume("fresh", Provisioning::Thin);
        assert!(world.bytes(fresh, 1 << 20).iter().all(|&byte| byte == 0));
        world.ask(Request::VolumeDelete { volume: "fresh".into(), force: true }).unwrap();
    }
    for name in ["source", "copy0", "copy1", "copy2", "copy3", "copy4"] {
        world.ask(Request::VolumeDelete { volume: name.into(), force: true }).unwrap();
    }
    for _ in 0..1000 {
        world.step();
    }
    assert_eq!(world.free(), empty, "nothing of any token is left");
    assert!(checkpoints > 2, "{checkpoints} checkpoints");
    assert_eq!(world.info().volumes, 0);
}

/// Goal: a copy between devices whose blocks differ is refused where a block of the one begins within one of the other.
#[test]
fn blocks_of_other_lengths() {
    let disk = World::create(96 << 20);
    let mut world = World::open(&disk, 2);
    let small = world.volume("small", Provisioning::Thin);
    let spec = VolumeSpec {
        name: "large".into(),
        bytes: 1 << 30,
        block_bytes: 4096,
        physical_block_bytes: 4096,
        provisioning: Provisioning::Thin,
        zero_detect: true,
        write_cache: false,
    };
    world.ask(Request::VolumeCreate(spec)).unwrap();
    let large = world.attach("large");
    for (source_bytes, destination_bytes, bytes, is_exact) in [
        (512, 0, 96 << 10, false),
        (4096, 8192, 96 << 10, true),
        (0, 0, 512, false),
        (4608, 4096, 4096, false),
    ] {
        let (tag, source, destination) = (Tag(7), small, large);
        let io = CopyIo { tag, source, source_bytes, destination, destination_bytes, bytes };
        world.cores[0].copy(io);
        let copied = (0..10_000).find_map(|_| {
            world.step();
            world.cores[0].poll_copied()
        });
        let expected = if is_exact { Ok(()) } else { Err(IoError::OutOfRange) };
        assert_eq!(copied.unwrap().result, expected, "{io:?}");
    }
}
