//! A pool as it should be, in memory and without a disk, and one [`Lie`] of it at a time: what proves that the oracle
//! sees each kind of wrong, and sees none where there is none.
//!
//! A request goes to the core of its stripe, waits there, and is done in one step at a moment of the seed's choice; its
//! answer waits until what it did is durable. Invariant: `effects` is what volumes have and would lose with the power.

use crate::sim::chance::Chance;
use crate::sim::disk::Disk;
use crate::sim::fake_control::control;
use crate::sim::subject::{Able, CopyAsk, CopyEnd, CreateAs, Letter, OpenAs, Report, Side, Subject};
use bdev::error::IoError;
use bdev::io::{BdevId, Done, Io, Op, Tag};
use bdev::pool::control::{Answered, Provisioning, Request, VolumeSpec};
use bdev::stripe::STRIPE_BYTES;
use reactor::Core;
use reactor::buf::Pool;
use reactor::clock::Time;
use reactor::disk::{DiskDone, DiskOp};
use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

/// What all data are kept in.
pub const BLOCK: usize = 4096;
/// What volumes may map in all.
pub const CAPACITY_BLOCKS: usize = 12 << 8;
/// How often a lie is told.
const ONE_IN: u64 = 12;

/// Something wrong, to be found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "each is what it is called")]
pub enum Lie {
    LosesAcknowledged,
    TearsAtCrash,
    ReadsStale,
    ReadsForeign,
    SnapshotInTwo,
    SnapshotMisses,
    SnapshotDrifts,
    SwapInTwo,
    SwapFindsAnything,
    CopyForward,
    CopyShort,
    CopyStale,
    RollbackHalf,
    GrowShowsOld,
    NewShowsOld,
    UnmapKeeps,
    OrOverwrites,
    DiffMisses,
    DiffInvents,
    MappedWrong,
    FreeWrong,
    LateWrite,
    FlushDoesNothing,
    FuaDoesNothing,
    DoneTwice,
    Forgets,
    DeletedComesBack,
    SnapshotGone,
    IdAgain,
    FullForThick,
    CloneOfNow,
    ReadInTwo,
    FlipFlops,
}

impl Lie {
    /// All of them.
    pub const ALL: [Lie; 33] = [
        Lie::LosesAcknowledged,
        Lie::TearsAtCrash,
        Lie::ReadsStale,
        Lie::ReadsForeign,
        Lie::SnapshotInTwo,
        Lie::SnapshotMisses,
        Lie::SnapshotDrifts,
        Lie::SwapInTwo,
        Lie::SwapFindsAnything,
        Lie::CopyForward,
        Lie::CopyShort,
        Lie::CopyStale,
        Lie::RollbackHalf,
        Lie::GrowShowsOld,
        Lie::NewShowsOld,
        Lie::UnmapKeeps,
        Lie::OrOverwrites,
        Lie::DiffMisses,
        Lie::DiffInvents,
        Lie::MappedWrong,
        Lie::FreeWrong,
        Lie::LateWrite,
        Lie::FlushDoesNothing,
        Lie::FuaDoesNothing,
        Lie::DoneTwice,
        Lie::Forgets,
        Lie::DeletedComesBack,
        Lie::SnapshotGone,
        Lie::IdAgain,
        Lie::FullForThick,
        Lie::CloneOfNow,
        Lie::ReadInTwo,
        Lie::FlipFlops,
    ];
}

/// Mapped blocks.
pub type Blocks = BTreeMap<usize, Rc<[u8; BLOCK]>>;

/// A volume.
#[derive(Clone, Debug)]
pub struct Volume {
    /// As it was made, with the size it has.
    pub spec: VolumeSpec,
    /// Its number.
    pub id: u64,
    /// What it has.
    pub now: Blocks,
    /// What it would have without the effects.
    pub durable: Blocks,
    /// Its device.
    pub bdev: Option<BdevId>,
    /// The snapshot it was cloned from.
    pub origin: Option<u64>,
}

/// A snapshot.
#[derive(Clone, Debug)]
pub struct Shot {
    /// Its volume's number.
    pub of: u64,
    /// Its own name.
    pub name: String,
    /// Its number.
    pub id: u64,
    /// Its volume's size then.
    pub bytes: u64,
    /// What it has.
    pub blocks: Blocks,
}

/// A block that changed.
#[derive(Debug)]
struct Effect {
    volume: u64,
    block: usize,
    now: Option<Rc<[u8; BLOCK]>>,
}

/// A volume, a block of it, and what was there.
type Flipped = (u64, usize, Option<Rc<[u8; BLOCK]>>);

/// All that a pool knows.
#[derive(Debug)]
pub struct Memory {
    /// Its volumes.
    pub volumes: Vec<Volume>,
    /// Its snapshots.
    pub shots: Vec<Shot>,
    effects: Vec<Effect>,
    /// Effects that became durable so far.
    committed: u64,
    /// The next number.
    pub next_id: u64,
    /// The next device.
    pub next_bdev: u16,
    /// Its choices.
    pub chance: Chance,
    /// What it lies about.
    pub lie: Option<Lie>,
    /// Something that was to go.
    pub grave: Option<Shot>,
    /// What was once there.
    pub old: Blocks,
    flipped: Option<Flipped>,
}

impl Memory {
    /// Whether to tell this lie now.
    pub fn lies(&mut self, lie: Lie) -> bool {
        self.lie == Some(lie) && self.chance.one_in(ONE_IN)
    }

    fn device(&self, bdev: BdevId) -> Option<usize> {
        self.volumes.iter().position(|volume| volume.bdev == Some(bdev))
    }

    /// Everything becomes durable.
    pub fn commit(&mut self) {
        for effect in std::mem::take(&mut self.effects) {
            self.committed += 1;
            if self.lies(Lie::LosesAcknowledged) {
                continue;
            }
            if let Some(volume) = self.volumes.iter_mut().find(|volume| volume.id == effect.volume) {
                set(&mut volume.durable, effect.block, effect.now);
            }
        }
    }

    /// What the power leaves.
    fn crash(&mut self) {
        for effect in std::mem::take(&mut self.effects) {
            let Some(index) = self.volumes.iter().position(|volume| volume.id == effect.volume) else {
                continue;
            };
            if self.chance.one_in(2) {
                continue;
            }
            let mut now = effect.now;
            if self.lie == Some(Lie::TearsAtCrash) {
                let mut torn = bytes(self.volumes[index].durable.get(&effect.block));
                let new = bytes(now.as_ref());
                for unit in (0..BLOCK).step_by(512).filter(|_| self.chance.one_in(2)) {
                    torn[unit..unit + 512].copy_from_slice(&new[unit..unit + 512]);
                }
                now = Some(Rc::new(torn));
            }
            set(&mut self.volumes[index].durable, effect.block, now);
        }
        for volume in &mut self.volumes {
            volume.now = volume.durable.clone();
            volume.bdev = None;
        }
        if self.lies(Lie::SnapshotGone) {
            self.shots.pop();
        }
        self.shots.extend(self.grave.take());
        self.shots.sort_by_key(|shot| shot.id);
    }

    fn read(&mut self, index: usize, at: usize, into: &mut [u8]) {
        let stale = self.lies(Lie::ReadsStale);
        let foreign = self.lies(Lie::ReadsForeign).then(|| self.chance.index(self.volumes.len()));
        let volume = &self.volumes[foreign.unwrap_or(index)];
        copy_out(if stale { &volume.durable } else { &volume.now }, at, into);
    }

    /// Changes some bytes; `None`: they are zero from now on.
    fn write(&mut self, index: usize, at: usize, length: usize, from: Option<&[u8]>) {
        let (id, detects) = (self.volumes[index].id, self.volumes[index].spec.zero_detect);
        let mut cursor = at;
        while cursor < at + length {
            let (block, within) = (cursor / BLOCK, cursor % BLOCK);
            let part = (BLOCK - within).min(at + length - cursor);
            let old = self.volumes[index].now.get(&block);
            let data = from.map(|from| &from[cursor - at..][..part]);
            cursor += part;
            let now = match data {
                None if part == BLOCK || old.is_none() => None,
                Some(data) if detects && part == BLOCK && data.iter().all(|&byte| byte == 0) => None,
                _ => {
                    let mut new = bytes(old);
                    match data {
                        Some(data) => new[within..within + part].copy_from_slice(data),
                        None => new[within..within + part].fill(0),
                    }
                    Some(Rc::new(new))
                }
            };
            if self.lie == Some(Lie::FlipFlops) && self.chance.one_in(4 * ONE_IN) {
                self.flipped = Some((id, block, old.cloned()));
            }
            set(&mut self.volumes[index].now, block, now.clone());
            self.effects.push(Effect { volume: id, block, now });
        }
    }

    /// Whether volumes have no room for so many more blocks.
    fn is_full(&mut self, index: usize, blocks: usize) -> bool {
        if self.volumes[index].spec.provisioning == Provisioning::Thick {
            return self.lies(Lie::FullForThick);
        }
        self.volumes.iter().map(|volume| volume.now.len()).sum::<usize>() + blocks > CAPACITY_BLOCKS
    }
}

/// Changes a block.
pub fn set(blocks: &mut Blocks, block: usize, now: Option<Rc<[u8; BLOCK]>>) {
    match now {
        Some(now) => blocks.insert(block, now),
        None => blocks.remove(&block),
    };
}

fn bytes(block: Option<&Rc<[u8; BLOCK]>>) -> [u8; BLOCK] {
    block.map_or([0; BLOCK], |block| **block)
}

fn copy_out(blocks: &Blocks, at: usize, into: &mut [u8]) {
    let mut cursor = at;
    while cursor < at + into.len() {
        let (block, within) = (cursor / BLOCK, cursor % BLOCK);
        let part = (BLOCK - within).min(at + into.len() - cursor);
        let here = &mut into[cursor - at..][..part];
        match blocks.get(&block) {
            Some(data) => here.copy_from_slice(&data[within..within + part]),
            None => here.fill(0),
        }
        cursor += part;
    }
}

/// Something to be done.
#[derive(Debug)]
pub enum Job {
    /// A request; `true`: its first half was done.
    Io(Io, bool),
    /// A copy, of that core.
    Copy(Core, CopyAsk),
}

/// What cores say to each other.
#[derive(Debug)]
pub enum Mail {
    /// For the owner.
    Job(Job),
    /// Its end.
    Done(Done),
    /// Its end.
    Copied(CopyEnd),
}

#[derive(Debug)]
enum End {
    Done(Done),
    Copied(Core, CopyEnd),
}

/// One core's part.
#[derive(Debug)]
pub struct FakeSide {
    core: Core,
    cores: u16,
    memory: Rc<RefCell<Memory>>,
    jobs: Vec<Job>,
    /// Ends that wait until so many effects are durable.
    waiting: Vec<(u64, End)>,
    letters: VecDeque<Letter<Mail>>,
    done: VecDeque<Done>,
    copied: VecDeque<CopyEnd>,
    asked: VecDeque<(u64, Request)>,
    answers: VecDeque<(u64, Answered)>,
}

impl FakeSide {
    fn route(&mut self, at_bytes: u64, job: Job) {
        let to = Core((at_bytes / STRIPE_BYTES % u64::from(self.cores)) as u16);
        if to == self.core {
            self.jobs.push(job);
        } else {
            self.letters.push_back(Letter { to, reply: false, mail: Mail::Job(job) });
        }
    }

    fn leave(&mut self, end: End) {
        let to = match &end {
            End::Done(done) => done.io.from,
            End::Copied(core, _) => *core,
        };
        match end {
            End::Done(done) if to == self.core => self.done.push_back(done),
            End::Copied(_, end) if to == self.core => self.copied.push_back(end),
            End::Done(done) => self.letters.push_back(Letter { to, reply: true, mail: Mail::Done(done) }),
            End::Copied(_, end) => {
                self.letters.push_back(Letter { to, reply: true, mail: Mail::Copied(end) });
            }
        }
    }

    fn perform(&mut self, job: Job) {
        let memory = Rc::clone(&self.memory);
        let mut memory = memory.borrow_mut();
        let (end, durable) = match job {
            Job::Io(io, half) => {
                let index = memory.device(io.bdev);
                let cached = index.is_some_and(|index| memory.volumes[index].spec.write_cache);
                let fua = io.fua && !memory.lies(Lie::FuaDoesNothing);
                let mut durable = !cached || fua || io.op == Op::Flush;
                if io.op == Op::Flush && memory.lie == Some(Lie::FlushDoesNothing) {
                    durable = false;
                }
                match perform(&mut memory, index, io, half) {
                    Ok(done) => (End::Done(done), durable),
                    Err(io) => return self.jobs.push(Job::Io(io, true)),
                }
            }
            Job::Copy(core, ask) => {
                let end = CopyEnd { tag: ask.tag, result: copy(&mut memory, ask) };
                (End::Copied(core, end), true)
            }
        };
        let until = memory.committed + memory.effects.len() as u64;
        if memory.lies(Lie::Forgets) {
            return;
        }
        if memory.lies(Lie::DoneTwice)
            && let End::Done(Done { io, result }) = &end
        {
            let again = Io { buf: None, scratch: None, ..*io };
            self.waiting.push((until, End::Done(Done { io: again, result: *result })));
        }
        drop(memory);
        if durable {
            self.waiting.push((until, end));
        } else {
            self.leave(end);
        }
    }
}

/// Does a request. Gives it back if it was done in half.
fn perform(memory: &mut Memory, index: Option<usize>, mut io: Io, half: bool) -> Result<Done, Io> {
    let Some(index) = index else {
        return Ok(Done { io, result: Err(IoError::Device { errno: 6 }) });
    };
    let block_bytes = memory.volumes[index].spec.block_bytes as usize;
    let (at, length) = (io.lba as usize * block_bytes, io.blocks as usize * block_bytes);
    if at + length > memory.volumes[index].spec.bytes as usize {
        return Ok(Done { io, result: Err(IoError::OutOfRange) });
    }
    if matches!(io.op, Op::Write | Op::OrWrite | Op::CompareAndWrite)
        && memory.is_full(index, length.div_ceil(BLOCK) + 1)
    {
        return Ok(Done { io, result: Err(IoError::OutOfSpace) });
    }
    let (mut buf, mut scratch) = (io.buf.take(), io.scratch.take());
    let mut result = Ok(());
    let mut again = false;
    match (io.op, &mut buf, &mut scratch) {
        (Op::Read, Some(buf), _) => {
            let middle = length / 2;
            if half {
                memory.read(index, at + middle, &mut buf[middle..]);
            } else if memory.lie == Some(Lie::ReadInTwo) && length > 4096 {
                memory.read(index, at, &mut buf[..middle]);
                again = true;
            } else {
                memory.read(index, at, buf);
            }
        }
        (Op::Write, Some(buf), _) => memory.write(index, at, length, Some(buf)),
        (Op::WriteZeroes | Op::Unmap, ..) => {
            let keeps = io.op == Op::Unmap && memory.lies(Lie::UnmapKeeps) && length > BLOCK;
            memory.write(index, at, length - if keeps { BLOCK } else { 0 }, None);
        }
        (Op::Compare, Some(buf), Some(scratch)) => {
            memory.read(index, at, scratch);
            result = compare(buf, scratch);
        }
        (Op::OrWrite, Some(buf), Some(scratch)) => {
            if memory.lies(Lie::OrOverwrites) {
                scratch.copy_from_slice(buf);
            } else {
                memory.read(index, at, scratch);
                scratch.iter_mut().zip(buf.iter()).for_each(|(byte, mask)| *byte |= mask);
            }
            memory.write(index, at, length, Some(scratch));
        }
        (Op::CompareAndWrite, Some(buf), Some(scratch)) => {
            if !half {
                memory.read(index, at, scratch);
            }
            if !memory.lies(Lie::SwapFindsAnything) {
                result = compare(&buf[..length], scratch);
            }
            again = result.is_ok() && !half && memory.lie == Some(Lie::SwapInTwo);
            if result.is_ok() && !again {
                memory.write(index, at, length, Some(&buf[length..]));
            }
        }
        _ => {}
    }
    (io.buf, io.scratch) = (buf, scratch);
    if again { Err(io) } else { Ok(Done { io, result }) }
}

fn compare(expected: &[u8], found: &[u8]) -> Result<(), IoError> {
    match expected.iter().zip(found).position(|(left, right)| left != right) {
        Some(at) => Err(IoError::Miscompare { offset_bytes: at as u32 }),
        None => Ok(()),
    }
}

fn copy(memory: &mut Memory, ask: CopyAsk) -> Result<(), IoError> {
    let (Some(from), Some(to)) = (memory.device(ask.source.0), memory.device(ask.destination.0)) else {
        return Err(IoError::Device { errno: 6 });
    };
    let block_bytes = u64::from(memory.volumes[to].spec.block_bytes);
    let (source, destination) =
        ((ask.source.1 * block_bytes) as usize, (ask.destination.1 * block_bytes) as usize);
    let mut length = (ask.blocks * block_bytes) as usize;
    let fits = |index: usize, at: usize| at + length <= memory.volumes[index].spec.bytes as usize;
    if !fits(from, source) || !fits(to, destination) {
        return Err(IoError::OutOfRange);
    }
    if memory.is_full(to, length.div_ceil(BLOCK) + 1) {
        return Err(IoError::OutOfSpace);
    }
    if memory.lies(Lie::CopyShort) {
        length -= length.min(512);
    }
    if memory.lie == Some(Lie::CopyForward) {
        for at in (0..length).step_by(512) {
            let mut data = vec![0; 512.min(length - at)];
            memory.read(from, source + at, &mut data);
            memory.write(to, destination + at, data.len(), Some(&data));
        }
        return Ok(());
    }
    let mut data = vec![0; length];
    if memory.lies(Lie::CopyStale) {
        copy_out(&memory.volumes[from].durable.clone(), source, &mut data);
    } else {
        memory.read(from, source, &mut data);
    }
    memory.write(to, destination, length, Some(&data));
    Ok(())
}

impl Side for FakeSide {
    type Mail = Mail;

    fn submit(&mut self, io: Io) {
        let block_bytes = {
            let memory = self.memory.borrow();
            memory.device(io.bdev).map_or(512, |index| memory.volumes[index].spec.block_bytes)
        };
        self.route(io.lba * u64::from(block_bytes), Job::Io(io, false));
    }

    fn copy(&mut self, ask: CopyAsk) {
        self.route(ask.destination.1 * 512, Job::Copy(self.core, ask));
    }

    fn abandon(&mut self, bdev: BdevId, tag: Tag) {
        let is_it = |job: &Job| matches!(job, Job::Io(io, false) if io.bdev == bdev && io.tag == tag && io.from == self.core);
        if let Some(place) = self.jobs.iter().position(is_it)
            && let Job::Io(mut io, _) = self.jobs.swap_remove(place)
        {
            if io.op == Op::Write && self.memory.borrow_mut().lies(Lie::LateWrite) {
                let late = Io { buf: io.buf.take(), scratch: None, from: Core(9), ..io };
                self.jobs.push(Job::Io(late, false));
            }
            self.done.push_back(Done { io, result: Err(IoError::ABANDONED) });
        }
    }

    fn receive(&mut self, _: Core, letter: Letter<Mail>) {
        match letter.mail {
            Mail::Job(job) => self.jobs.push(job),
            Mail::Done(done) => self.done.push_back(done),
            Mail::Copied(end) => self.copied.push_back(end),
        }
    }

    fn poll_letter(&mut self) -> Option<Letter<Mail>> {
        self.letters.pop_front()
    }

    fn poll_disk(&mut self) -> Option<DiskOp> {
        None
    }

    fn complete(&mut self, done: DiskDone) {
        unreachable!("there is no disk: {done:?}")
    }

    fn poll_done(&mut self) -> Option<Done> {
        self.done.pop_front()
    }

    fn poll_copied(&mut self) -> Option<CopyEnd> {
        self.copied.pop_front()
    }

    fn ask(&mut self, ticket: u64, request: Request) {
        self.asked.push_back((ticket, request));
    }

    fn poll_answer(&mut self) -> Option<(u64, Answered)> {
        self.answers.pop_front()
    }

    fn turn(&mut self, _: Time) -> bool {
        let shared = Rc::clone(&self.memory);
        let dice = shared.borrow_mut().chance.below(6);
        if dice < 3 && !self.jobs.is_empty() {
            let place = shared.borrow_mut().chance.index(self.jobs.len());
            let job = self.jobs.swap_remove(place);
            if let Job::Io(Io { from: Core(9), .. }, _) = &job {
                // It was answered already.
                if let Job::Io(io, _) = job {
                    let mut memory = shared.borrow_mut();
                    let index = memory.device(io.bdev);
                    let _ = perform(&mut memory, index, io, false);
                }
            } else {
                self.perform(job);
            }
        } else if dice == 3 {
            shared.borrow_mut().commit();
        } else if dice == 4 {
            let mut memory = shared.borrow_mut();
            if let Some((ticket, request)) = self.asked.pop_front() {
                match control(&mut memory, &request) {
                    Some(answered) => self.answers.push_back((ticket, answered)),
                    None => self.asked.push_front((ticket, request)),
                }
            }
            if let Some((id, block, data)) = memory.flipped.take()
                && let Some(volume) = memory.volumes.iter_mut().find(|volume| volume.id == id)
            {
                set(&mut volume.now, block, data.clone());
                set(&mut volume.durable, block, data);
            }
        }
        let committed = shared.borrow().committed;
        let mut place = 0;
        while place < self.waiting.len() {
            if self.waiting[place].0 <= committed {
                let (_, end) = self.waiting.swap_remove(place);
                self.leave(end);
            } else {
                place += 1;
            }
        }
        !(self.jobs.is_empty() && self.waiting.is_empty() && self.asked.is_empty())
    }

    fn check(&self) -> Result<(), String> {
        Ok(())
    }
}

/// See the module.
#[derive(Debug)]
pub struct Fake {
    memory: Rc<RefCell<Memory>>,
}

impl Fake {
    /// A pool of a seed, which lies about this.
    pub fn new(seed: u64, lie: Option<Lie>) -> Fake {
        let memory = Memory {
            volumes: Vec::new(),
            shots: Vec::new(),
            effects: Vec::new(),
            committed: 0,
            next_id: 1,
            next_bdev: 0,
            chance: Chance::new(seed ^ 0xfa4e),
            lie,
            grave: None,
            old: Blocks::new(),
            flipped: None,
        };
        Fake { memory: Rc::new(RefCell::new(memory)) }
    }
}

impl Subject for Fake {
    type Side = FakeSide;

    fn able(&self) -> Able {
        Able {
            control: true,
            copy: true,
            parts: false,
            space: true,
            redirects: true,
            fails: false,
            disk_bytes: &[1 << 20],
        }
    }

    fn create(&mut self, _: &[Disk], _: CreateAs) -> Result<(), String> {
        Ok(())
    }

    fn open(&mut self, _: &[Disk], how: OpenAs, _: &mut [Pool]) -> Result<Vec<FakeSide>, String> {
        let side = |core| FakeSide {
            core: Core(core),
            cores: how.cores,
            memory: Rc::clone(&self.memory),
            jobs: Vec::new(),
            waiting: Vec::new(),
            letters: VecDeque::new(),
            done: VecDeque::new(),
            copied: VecDeque::new(),
            asked: VecDeque::new(),
            answers: VecDeque::new(),
        };
        Ok((0..how.cores).map(side).collect())
    }

    fn walk(&mut self, _: &[Disk]) -> Result<Report, String> {
        let memory = self.memory.borrow();
        let mapped = |blocks: &Blocks| (blocks.len() * BLOCK) as u64;
        let volumes = memory.volumes.iter().map(|volume| (volume.spec.name.clone(), mapped(&volume.durable)));
        let shots = memory.shots.iter().filter_map(|shot| {
            let volume = memory.volumes.iter().find(|volume| volume.id == shot.of)?;
            Some((format!("{}@{}", volume.spec.name, shot.name), mapped(&shot.blocks)))
        });
        let mapped_bytes: Vec<(String, u64)> = volumes.chain(shots).collect();
        Ok(Report { problems: Vec::new(), free_bytes: memory.free_bytes(), mapped_bytes, usage: Vec::new() })
    }

    fn crash(&mut self, _: &mut Chance) {
        self.memory.borrow_mut().crash();
    }
}

impl Memory {
    /// Space that nothing names.
    pub fn free_bytes(&self) -> u64 {
        let shared = self.volumes.iter().map(|volume| volume.durable.len());
        let all = shared.chain(self.shots.iter().map(|shot| shot.blocks.len())).sum::<usize>();
        (CAPACITY_BLOCKS * 100 - all) as u64 * BLOCK as u64
    }
}
