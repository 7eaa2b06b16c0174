//! What a world drives: one core's part of a block device stack, and how such parts are made over disks. The pool is the
//! subject that matters; the others are there to prove the disk and the oracle.

use crate::sim::chance::Chance;
use crate::sim::disk::Disk;
use bdev::error::IoError;
use bdev::io::{BdevId, Done, Io, Tag};
use bdev::pool::control::{Answered, Request, VolumeSpec};
use reactor::Core;
use reactor::buf::Pool;
use reactor::clock::Time;
use reactor::disk::{DiskDone, DiskOp};
use std::fmt::Debug;

/// A copy to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyAsk {
    /// The asker's name for it.
    pub tag: Tag,
    /// Where from: first logical block.
    pub source: (BdevId, u64),
    /// Where to.
    pub destination: (BdevId, u64),
    /// How many.
    pub blocks: u64,
}

/// A copy's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyEnd {
    /// As it was asked.
    pub tag: Tag,
    /// How it went.
    pub result: Result<(), IoError>,
}

/// What leaves a core for another.
#[derive(Debug)]
pub struct Letter<M> {
    /// To whom.
    pub to: Core,
    /// It answers one that came from there.
    pub reply: bool,
    /// What.
    pub mail: M,
}

/// One core's part.
pub trait Side: Debug {
    /// What its like say to each other.
    type Mail: Debug;

    /// Takes a request of this core.
    fn submit(&mut self, io: Io);
    /// Takes a copy of this core.
    fn copy(&mut self, ask: CopyAsk);
    /// Gives up what this core asked of a device under this tag.
    fn abandon(&mut self, bdev: BdevId, tag: Tag);
    /// A letter has come.
    fn receive(&mut self, from: Core, letter: Letter<Self::Mail>);
    /// What a letter is counted as, if it is.
    fn counted(_: &Letter<Self::Mail>) -> Option<&'static str> {
        None
    }
    /// The next letter to be carried off.
    fn poll_letter(&mut self) -> Option<Letter<Self::Mail>>;
    /// The next operation for a disk.
    fn poll_disk(&mut self) -> Option<DiskOp>;
    /// One of those has ended.
    fn complete(&mut self, done: DiskDone);
    /// The next request of this core that has ended.
    fn poll_done(&mut self) -> Option<Done>;
    /// The next copy of this core that has ended.
    fn poll_copied(&mut self) -> Option<CopyEnd>;
    /// Takes what people ask; on core 0 only.
    fn ask(&mut self, ticket: u64, request: Request);
    /// The next answer to that.
    fn poll_answer(&mut self) -> Option<(u64, Answered)>;
    /// Goes on with its own work. Whether there is more.
    fn turn(&mut self, now: Time) -> bool;
    /// Looks at itself.
    ///
    /// # Errors
    /// What is wrong.
    fn check(&self) -> Result<(), String>;
}

/// What a full walk of the disks has found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// What is wrong.
    pub problems: Vec<String>,
    /// Bytes in chunks that nothing names.
    pub free_bytes: u64,
    /// Mapped bytes of each volume and `volume@snapshot`.
    pub mapped_bytes: Vec<(String, u64)>,
    /// What is unique to each of those, and what it shares.
    pub usage: Vec<(String, (u64, u64))>,
}

/// What a subject can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Able {
    /// Snapshots, clones, roll backs, deletes.
    pub control: bool,
    /// Copies.
    pub copy: bool,
    /// Compare and writes of several parts.
    pub parts: bool,
    /// Its space can run out.
    pub space: bool,
    /// What is not mapped, or shared, is never written in place, so that a crash doesn't tear it.
    pub redirects: bool,
    /// Its disks fail in all worlds, not in some, and lose what a failed sync was for.
    pub fails: bool,
    /// Disks, each with so many bytes; empty: the world chooses.
    pub disk_bytes: &'static [u64],
}

/// How a stack is to be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenAs {
    /// How many cores.
    pub cores: u16,
    /// The first device's number.
    pub first_bdev: BdevId,
    /// Memory for maps.
    pub map_memory_max_bytes: u64,
    /// Slots in pieces are brought together, all the time; otherwise never.
    pub folds: bool,
    /// There is hardly a time without a checkpoint under way; otherwise when journals fill.
    pub checkpoints: bool,
    /// Names of a chunk that copies may make.
    pub names_max: u32,
}

/// How a stack is to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CreateAs {
    /// Its UUID.
    pub uuid: [u8; 16],
    /// Journals of all cores.
    pub journal_bytes: u64,
    /// Maps.
    pub metadata_bytes: u64,
}

/// Makes sides over disks.
pub trait Subject {
    /// One core's part.
    type Side: Side;

    /// What it can do.
    fn able(&self) -> Able;

    /// The volumes it has from the start.
    fn fixed_volumes(&self) -> Vec<VolumeSpec> {
        Vec::new()
    }

    /// Makes an empty one.
    ///
    /// # Errors
    /// Why it can't.
    fn create(&mut self, disks: &[Disk], how: CreateAs) -> Result<(), String>;

    /// Opens what is there; a side for each core, whose buffers are `bufs`.
    ///
    /// # Errors
    /// Why it can't.
    fn open(&mut self, disks: &[Disk], how: OpenAs, bufs: &mut [Pool]) -> Result<Vec<Self::Side>, String>;

    /// Walks all of it, while nobody has it open.
    ///
    /// # Errors
    /// Why it can't.
    fn walk(&mut self, disks: &[Disk]) -> Result<Report, String>;

    /// The power goes: whatever it keeps that is not on the disks.
    fn crash(&mut self, chance: &mut Chance) {
        let _ = chance;
    }
}
