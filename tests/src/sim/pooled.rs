//! The subject that matters: pools, as the program has them.

use crate::sim::disk::Disk;
use crate::sim::subject::{Able, CopyAsk, CopyEnd, CreateAs, Letter, OpenAs, Report, Side, Subject};
use bdev::io::{BdevId, Done, Io, Op, Tag};
use bdev::pool::control::{Answered, Request};
use bdev::pool::slot::Chunk;
use bdev::pool::{
    CHECKPOINT_PERCENT, CheckReport, CreateOptions, FoldWhen, Member, OpenOptions, PoolShard, Rule, check,
    create, open, usage_of,
};
use bdev::router::Router;
use bdev::shard::{POOL_MARK, Shard, VOLUMES_FROM};
use bdev::storage::{COPY_BUFS, CopyIo, Storage};
use bdev::zero_detect::is_zero;
use reactor::Core;
use reactor::buf::{BUF_BYTES_MAX, Pool};
use reactor::clock::Time;
use reactor::disk::{DiskDone, DiskOp};
use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// What cores say to each other.
#[derive(Debug)]
pub enum Mail {
    /// Storage's own.
    Storage(bdev::shard::Mail),
    /// The asker gave up.
    Abandon(BdevId, Tag),
    /// It was heard.
    Abandoned,
}

/// One core's part.
#[derive(Debug)]
pub struct PooledSide {
    core: Core,
    cores: u16,
    storage: Storage,
    letters: VecDeque<Letter<Mail>>,
    /// What chunks in memory held when the power went.
    kept: Option<Kept>,
    /// Requests that were done as they came.
    done: VecDeque<Done>,
}

/// What chunks in memory hold while nobody has the pool open: memory here outlives the power, or nothing that was promised
/// could be looked for after a crash.
type Kept = Rc<RefCell<BTreeMap<Chunk, Box<[u8]>>>>;

impl Drop for PooledSide {
    fn drop(&mut self) {
        let Some(kept) = &self.kept else { return };
        let mut kept = kept.borrow_mut();
        for (chunk, data) in self.storage.shard.pools.iter().flat_map(PoolShard::chunks_in_memory) {
            // What is all zeroes is so in new memory.
            if is_zero(data) {
                kept.remove(&chunk);
            } else {
                kept.insert(chunk, data.into());
            }
        }
    }
}

impl PooledSide {
    /// Does a request as it comes, where the program would and chance wants it.
    fn is_done_now(&mut self, io: &mut Io) -> bool {
        if self.kept.is_none() || io.tag.0.is_multiple_of(3) {
            return false;
        }
        match (io.op, &mut io.buf) {
            (Op::Read, Some(buf)) => {
                if io.tag.0 % 3 == 1
                    && let Some(lent) = self.storage.lend_now(io.bdev, io.lba, buf.len())
                {
                    buf.copy_from_slice(&lent);
                    return true;
                }
                self.storage.read_now(io.bdev, io.lba, buf)
            }
            (Op::Write, Some(buf)) => self.storage.write_now(io.bdev, io.lba, buf),
            _ => false,
        }
    }
}

impl Side for PooledSide {
    type Mail = Mail;

    fn submit(&mut self, mut io: Io) {
        if self.is_done_now(&mut io) {
            self.done.push_back(Done { io, result: Ok(()) });
        } else {
            self.storage.submit(io);
        }
    }

    fn copy(&mut self, ask: CopyAsk) {
        let CopyAsk { tag, source, destination, blocks } = ask;
        let block_bytes = |bdev| {
            let geometry = self.storage.router.geometry(bdev);
            geometry.map_or(512, |geometry| u64::from(geometry.block_bytes))
        };
        self.storage.copy(CopyIo {
            tag,
            source: source.0,
            source_bytes: source.1 * block_bytes(source.0),
            destination: destination.0,
            destination_bytes: destination.1 * block_bytes(destination.0),
            bytes: blocks * block_bytes(destination.0),
        });
    }

    fn abandon(&mut self, bdev: BdevId, tag: Tag) {
        // What was asked before it goes first.
        while let Some(out) = self.storage.poll_mail() {
            let mail = Mail::Storage(out.mail);
            self.letters.push_back(Letter { to: out.to, reply: out.reply, mail });
        }
        self.storage.abandon_copies(tag);
        let mut told = Vec::new();
        self.storage.router.abandon(tag, |core, bdev, tag| told.push((core, bdev, tag)));
        // Who asked knows where a request for data went; here everybody is told.
        told.extend((0..self.cores).map(|core| (Core(core), bdev, tag)));
        for (to, bdev, tag) in told {
            if to == self.core {
                self.storage.shard.abandon(self.core, bdev, tag);
            } else {
                self.letters.push_back(Letter { to, reply: false, mail: Mail::Abandon(bdev, tag) });
            }
        }
    }

    fn receive(&mut self, from: Core, letter: Letter<Mail>) {
        match letter.mail {
            Mail::Storage(mail) if letter.reply => self.storage.on_reply(from, mail),
            Mail::Storage(bdev::shard::Mail::Submit(mut io)) => {
                if self.kept.is_some() && self.storage.perform_now(&mut io) {
                    let mail = bdev::shard::Mail::Done(Done { io, result: Ok(()) });
                    self.letters.push_back(Letter { to: from, reply: true, mail: Mail::Storage(mail) });
                } else {
                    self.storage.on_request(from, bdev::shard::Mail::Submit(io));
                }
            }
            Mail::Storage(mail) => self.storage.on_request(from, mail),
            Mail::Abandon(bdev, tag) => {
                self.storage.shard.abandon(from, bdev, tag);
                self.letters.push_back(Letter { to: from, reply: true, mail: Mail::Abandoned });
            }
            Mail::Abandoned => {}
        }
    }

    fn counted(letter: &Letter<Mail>) -> Option<&'static str> {
        use bdev::pool::mail::{Tell, What};
        match &letter.mail {
            Mail::Storage(bdev::shard::Mail::PoolAsk(_, ask)) => {
                matches!(ask.what, What::InstallTwin { .. }).then_some("stripes offered by name")
            }
            Mail::Storage(bdev::shard::Mail::PoolTell(_, answer)) => {
                matches!(answer.tell, Tell::Unknown).then_some("stripes offered in vain")
            }
            _ => None,
        }
    }

    fn poll_letter(&mut self) -> Option<Letter<Mail>> {
        self.letters.pop_front().or_else(|| {
            let out = self.storage.poll_mail()?;
            Some(Letter { to: out.to, reply: out.reply, mail: Mail::Storage(out.mail) })
        })
    }

    fn poll_disk(&mut self) -> Option<DiskOp> {
        self.storage.poll_disk()
    }

    fn complete(&mut self, done: DiskDone) {
        self.storage.complete(done);
    }

    fn poll_done(&mut self) -> Option<Done> {
        self.done.pop_front().or_else(|| self.storage.poll_done())
    }

    fn poll_copied(&mut self) -> Option<CopyEnd> {
        self.storage.poll_copied().map(|copied| CopyEnd { tag: copied.io.tag, result: copied.result })
    }

    fn ask(&mut self, ticket: u64, request: Request) {
        self.storage.ask(0, ticket, request, 1_700_000_000);
    }

    fn poll_answer(&mut self) -> Option<(u64, Answered)> {
        self.storage.poll_answer()
    }

    fn turn(&mut self, now: Time) -> bool {
        self.storage.turn(now)
    }

    fn check(&self) -> Result<(), String> {
        Ok(())
    }
}

/// Pools, perhaps with a rule broken.
#[derive(Clone, Debug, Default)]
pub struct Pooled {
    /// Which.
    pub breaks: Option<Rule>,
    /// All disks fail.
    fails: bool,
    /// Their chunks are in memory.
    kept: Option<Kept>,
}

impl Pooled {
    /// With all chunks on disks: what finds a broken rule must not hang on which seeds have theirs in memory.
    pub fn on_disks(breaks: Option<Rule>) -> Pooled {
        Pooled { breaks, ..Pooled::default() }
    }

    /// A seed's, on disks that fail.
    pub fn failing(seed: u64) -> Pooled {
        Pooled { fails: true, ..Pooled::of(seed, None) }
    }

    /// A seed's; of some seeds in memory.
    pub fn of(seed: u64, breaks: Option<Rule>) -> Pooled {
        Pooled { breaks, kept: seed.is_multiple_of(6).then(Kept::default), ..Pooled::default() }
    }
}

fn members(disks: &[Disk]) -> Vec<Member> {
    let member = |disk: &Disk| Member {
        path: format!("disk{}", disk.file.0),
        file: disk.file,
        align_bytes: disk.align_bytes() as u32,
        punch: disk.file.0 != 2,
        medium: Arc::new(disk.clone()),
    };
    disks.iter().map(member).collect()
}

impl Subject for Pooled {
    type Side = PooledSide;

    fn able(&self) -> Able {
        Able {
            control: true,
            copy: true,
            parts: true,
            space: true,
            redirects: true,
            fails: self.fails,
            disk_bytes: &[],
        }
    }

    fn create(&mut self, disks: &[Disk], how: CreateAs) -> Result<(), String> {
        let options = CreateOptions {
            name: "sim".to_owned(),
            uuid: how.uuid,
            journal_bytes: Some(how.journal_bytes),
            metadata_bytes: Some(how.metadata_bytes),
        };
        create(&members(disks), &options).map_err(|error| error.to_string())
    }

    fn open(&mut self, disks: &[Disk], how: OpenAs, bufs: &mut [Pool]) -> Result<Vec<PooledSide>, String> {
        let options = OpenOptions {
            cores: how.cores,
            map_memory_max_bytes: how.map_memory_max_bytes,
            first_bdev: BdevId(VOLUMES_FROM),
            mark: POOL_MARK,
            // Small ones, so that there are several.
            window_clusters: u32::from(how.cores),
            // Not all of the time, or nothing else would find a place.
            punch_after: (how.cores != 3).then_some(Duration::from_micros(100)),
            in_memory: self.kept.is_some(),
            break_rule: self.breaks,
            folds: if how.folds { FoldWhen::Always } else { FoldWhen::Never },
            checkpoint_percent: if how.checkpoints { 1 } else { CHECKPOINT_PERCENT },
            names_max: how.names_max,
        };
        let opened = open(members(disks), &options).map_err(|error| error.to_string())?;
        let side = |(core, bufs): (u16, &mut Pool)| {
            let core = Core(core);
            let mut shard = Shard::new(core, Vec::new());
            let mut pool = opened.shard(core, bufs).map_err(|error| error.to_string())?;
            if let Some(kept) = &self.kept {
                kept.borrow().iter().for_each(|(&chunk, data)| pool.restore_in_memory(chunk, data));
            }
            shard.add_pool(pool);
            let copy_bufs = (0..COPY_BUFS).map_while(|_| bufs.take(BUF_BYTES_MAX)).collect();
            let router = Router::new(core, how.cores, [].into());
            let storage = Storage::new(core, how.cores, router, shard, copy_bufs);
            let (cores, kept) = (how.cores, self.kept.clone());
            let (letters, done) = (VecDeque::new(), VecDeque::new());
            Ok(PooledSide { core, cores, storage, letters, kept, done })
        };
        (0..how.cores).zip(bufs).map(side).collect()
    }

    fn walk(&mut self, disks: &[Disk]) -> Result<Report, String> {
        let CheckReport { problems, chunks, named_chunks, volumes, snapshots, .. } =
            check(&members(disks)).map_err(|error| error.to_string())?;
        Ok(Report {
            problems: problems.iter().map(|problem| format!("{problem:?}")).collect(),
            free_bytes: (chunks - named_chunks) << 16,
            mapped_bytes: volumes.into_iter().chain(snapshots).collect(),
            usage: usage_of(&members(disks)).map_err(|error| error.to_string())?.into_iter().collect(),
        })
    }
}
