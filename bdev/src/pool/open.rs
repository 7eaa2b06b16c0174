//! Creating, opening and checking pools. Reads the superblocks, each core's last checkpoint and its journal from there
//! on, and makes of them what the shards begin with. Counts and free space are added up from the maps.

use super::catalog::{Catalog, RootOrigin};
use super::changes::Changes;
use super::codec::{Reader, crc_of, read_slots};
use super::format::{
    CORES_MAX, DATA_AT, Extent, HEADER_BYTES, Header, IMAGE_HEAD_BYTES, JOURNAL_BLOCK_BYTES, JOURNALS_AT,
    JournalHead, MEMBERS_MAX, SEGMENT_BYTES, SUPERBLOCK_AT, SUPERBLOCK_BYTES, Superblock, open_image,
};
use super::journal::COMMITS_MAX;
use super::map::{Home, LEAF_SLOTS, LEVELS, LeafId, Map, RootId, SlotNo, TableId};
use super::medium::Medium;
use super::memory::Memory;
use super::record::{self, Record};
use super::rule::Rule;
use super::shard::{Common, POOL_BUFS, PoolShard, Seed};
use super::slot::{BLOCK_BYTES, CHUNK_BYTES, CHUNKS_MAX, Chunk, Place, SLOT_BLOCKS};
use super::space::{Promises, Space};
use super::stage::{Board, Inherited, Sent, Standing};
use crate::io::BdevId;
use crate::stripe::{Deal, STRIPE_BYTES};
use ahash::{HashMap, HashMapExt as _};
use crossbeam_channel::Receiver;
use reactor::Core;
use reactor::buf::{BUF_BYTES_MAX, Buf, Pool as Bufs};
use reactor::disk::FileId;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

/// A member to be part of a pool.
#[derive(Clone, Debug)]
pub struct Member {
    /// For people.
    pub path: String,
    /// As the rings know it.
    pub file: FileId,
    /// What direct IO is aligned to there.
    pub align_bytes: u32,
    /// Its free chunks are to be punched, if [`OpenOptions::punch_after`] says so.
    pub punch: bool,
    /// To read and write it now.
    pub medium: Arc<dyn Medium>,
}

/// A pool to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreateOptions {
    /// Its name.
    pub name: String,
    /// Random.
    pub uuid: [u8; 16],
    /// All cores' journals; `None`: by the pool's size.
    pub journal_bytes: Option<u64>,
    /// Space for maps; `None`: by the pool's size.
    pub metadata_bytes: Option<u64>,
}

/// When slots in many pieces are brought together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FoldWhen {
    /// When nobody asks for anything, or space is short, where it frees as much as it takes.
    #[default]
    Quiet,
    /// Never: for tests that count.
    Never,
    /// At once, and also where it gains nothing: for tests.
    Always,
}

/// How a pool is to be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenOptions {
    /// Cores that it is dealt to.
    pub cores: u16,
    /// What maps and counts may take on each core.
    pub map_memory_max_bytes: u64,
    /// What a walk for what is whose remembers at a time: [`super::space::WINDOW_CLUSTERS`], but in tests.
    pub window_clusters: u32,
    /// Free chunks of members that are to be punched are when a core has been idle for so long; `None`: never.
    pub punch_after: Option<std::time::Duration>,
    /// The first device number for its volumes.
    pub first_bdev: BdevId,
    /// What completions are found by: a device number that no device has.
    pub mark: u16,
    /// What chunks hold is in memory and gone with the shards: members have the journals and the maps alone.
    pub in_memory: bool,
    /// A test breaks this rule.
    pub break_rule: Option<Rule>,
    /// When slots in many pieces are brought together.
    pub folds: FoldWhen,
    /// How full a journal is when a checkpoint begins: [`super::CHECKPOINT_PERCENT`], but in tests.
    pub checkpoint_percent: u64,
    /// How many names of a chunk copies may make; what would need more is copied as bytes. [`super::NAMES_MAX`], but in
    /// tests.
    pub names_max: u32,
}

/// Why a pool can't be made or opened: where, what is wrong, what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolError {
    /// The pool or the member.
    pub place: String,
    /// What.
    pub what: String,
    /// The cure.
    pub cure: String,
}

impl PoolError {
    fn new(place: &str, what: impl Into<String>, cure: impl Into<String>) -> PoolError {
        PoolError { place: place.to_owned(), what: what.into(), cure: cure.into() }
    }
}

impl fmt::Display for PoolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; {}", self.place, self.what, self.cure)
    }
}

impl std::error::Error for PoolError {}

/// An opened pool, for each core to take its shard of.
#[derive(Debug)]
pub struct Opened {
    common: Common,
    /// Each core's, in a queue of one: taken once.
    seeds: Vec<Receiver<Seed>>,
}

impl Opened {
    /// A core's shard, once. Takes [`POOL_BUFS`] large buffers for good.
    ///
    /// # Errors
    /// Buffers are short, or it was taken already.
    pub fn shard(&self, core: Core, bufs: &mut Bufs) -> Result<PoolShard, PoolError> {
        let name = &self.common.superblock.name;
        let taken: Vec<Buf> = (0..POOL_BUFS).map_while(|_| bufs.take(BUF_BYTES_MAX)).collect();
        if taken.len() < POOL_BUFS {
            return Err(PoolError::new(
                name,
                "no buffers are left for the pool",
                "give each core more buffer memory",
            ));
        }
        let seed = self.seeds.get(core.index()).and_then(|seed| seed.try_recv().ok());
        let Some(seed) = seed else {
            return Err(PoolError::new(name, "a core's share was taken twice", "report this"));
        };
        let mut memory = None;
        if self.common.in_memory {
            let (deal, chunks) = (Deal::among(self.common.cores), self.common.superblock.chunks());
            let made = Memory::new(core, deal, chunks).map_err(|error| {
                let what = format!("no memory for {chunks} chunks of {CHUNK_BYTES} bytes: {error}");
                PoolError::new(name, what, "make it smaller, or use a file")
            })?;
            memory = Some(made);
        }
        Ok(PoolShard::new(core, self.common.clone(), seed, taken, memory, crate::shard::SHARD_IOS_MAX))
    }

    /// The pool's name.
    pub fn name(&self) -> &str {
        &self.common.superblock.name
    }
}

/// Space for journals and maps of a pool of this size, by default.
fn areas(bytes: u64, options: &CreateOptions) -> (u64, u64) {
    let journal = options.journal_bytes.unwrap_or((bytes / 16_384).clamp(16 << 20, 512 << 20));
    // A quarter of it can be live at a time, and a pool of random pieces has 1/10,000 of live images, snapshots not counted.
    let metadata = options.metadata_bytes.unwrap_or((bytes / 1024).clamp(16 << 20, 64 << 30));
    (journal.next_multiple_of(SEGMENT_BYTES), metadata.next_multiple_of(SEGMENT_BYTES))
}

/// Makes a pool of members that hold none. What they held is gone.
///
/// # Errors
/// They are too small, hold a pool already, or can't be written.
pub fn create(members: &[Member], options: &CreateOptions) -> Result<(), PoolError> {
    let name = &options.name;
    if members.is_empty() || members.len() > MEMBERS_MAX {
        return Err(PoolError::new(
            name,
            format!("{} members", members.len()),
            format!("name 1 to {MEMBERS_MAX}"),
        ));
    }
    for member in members {
        if let Ok(found) = read_superblock(member) {
            let what = format!("it is a member of the pool {:?} already", found.name);
            return Err(PoolError::new(
                &member.path,
                what,
                "name another, or wipe its first MiB if that pool is not needed",
            ));
        }
    }
    let total: u64 = members.iter().map(|member| member.medium.bytes()).sum();
    let (journal_bytes, metadata_bytes) = areas(total, options);
    let mut extents = Vec::new();
    let mut first_chunk = 0u64;
    for (number, member) in members.iter().enumerate() {
        let at = if number == 0 { JOURNALS_AT + journal_bytes + metadata_bytes } else { DATA_AT };
        let at = at.next_multiple_of(STRIPE_BYTES);
        let chunks = member.medium.bytes().saturating_sub(at) / CHUNK_BYTES;
        if chunks < 16 {
            let what = format!("{} bytes are too few", member.medium.bytes());
            return Err(PoolError::new(
                &member.path,
                what,
                format!("make it at least {} bytes large", at + (1 << 20)),
            ));
        }
        if first_chunk + chunks > u64::from(CHUNKS_MAX) {
            return Err(PoolError::new(name, "more than 128 TiB", "take fewer or smaller members"));
        }
        extents.push(Extent {
            member: number as u16,
            at,
            first_chunk: first_chunk as u32,
            chunks: chunks as u32,
        });
        first_chunk += chunks;
    }
    let mark = |number: usize| {
        let mut mark = options.uuid;
        mark[15] ^= number as u8;
        mark[14] ^= 0xa5;
        mark
    };
    let superblock = Superblock {
        uuid: options.uuid,
        name: name.clone(),
        generation: 1,
        member: 0,
        members: members.iter().enumerate().map(|(n, m)| (mark(n), m.medium.bytes())).collect(),
        cores: 1,
        layout: 0,
        journal_bytes,
        metadata_bytes,
        extents,
    };
    // Written, so that the file system has given the space and nothing of a former life is found there.
    let zeroes = vec![0u8; 1 << 20];
    let medium = &members[0].medium;
    let failed = |path: &str| {
        let path = path.to_owned();
        move |error: std::io::Error| {
            PoolError::new(&path, format!("can't write: {error}"), "make it writable, with space")
        }
    };
    let end = JOURNALS_AT + journal_bytes + metadata_bytes;
    let mut at = 0;
    while at < end {
        let now = (end - at).min(zeroes.len() as u64);
        medium.write(at, &zeroes[..now as usize]).map_err(failed(&members[0].path))?;
        at += now;
    }
    medium.sync().map_err(failed(&members[0].path))?;
    write_superblocks(members, &superblock)
}

fn write_superblocks(members: &[Member], superblock: &Superblock) -> Result<(), PoolError> {
    for at in SUPERBLOCK_AT {
        for (number, member) in members.iter().enumerate() {
            let bytes = Superblock { member: number as u16, ..superblock.clone() }.encode();
            let written = member.medium.write(at, &bytes).and_then(|()| member.medium.sync());
            written.map_err(|error| {
                PoolError::new(
                    &member.path,
                    format!("can't write its superblock: {error}"),
                    "make it writable",
                )
            })?;
        }
    }
    Ok(())
}

/// The name of the pool that a file or device is a member of, if it is one.
pub fn pool_on(member: &Member) -> Option<String> {
    read_superblock(member).ok().map(|superblock| superblock.name)
}

/// The newer of a member's two superblocks.
fn read_superblock(member: &Member) -> Result<Superblock, &'static str> {
    let mut best: Result<Superblock, &'static str> = Err("it can't be read");
    for at in SUPERBLOCK_AT {
        let mut bytes = vec![0; SUPERBLOCK_BYTES as usize];
        if member.medium.bytes() < at + SUPERBLOCK_BYTES || member.medium.read(at, &mut bytes).is_err() {
            continue;
        }
        match (Superblock::decode(&bytes), &best) {
            (Ok(found), Ok(known)) if found.generation <= known.generation => {}
            (Ok(found), _) => best = Ok(found),
            (Err(why), Err(_)) => best = Err(why),
            (Err(_), Ok(_)) => {}
        }
    }
    best
}

/// Puts the members in their order and finds what they agree on, and whether all of them say so.
fn assemble(members: Vec<Member>) -> Result<(Superblock, Vec<Member>, bool), PoolError> {
    let mut found: Vec<(Superblock, Member)> = Vec::new();
    for member in members {
        let superblock = read_superblock(&member).map_err(|why| {
            PoolError::new(
                &member.path,
                why,
                "name a member of a pool, or create one with `pollux pool create`",
            )
        })?;
        if let Some((other, known)) = found.first() {
            if other.uuid != superblock.uuid {
                let what = format!(
                    "it belongs to the pool {:?}, and {} to {:?}",
                    superblock.name, known.path, other.name
                );
                return Err(PoolError::new(&member.path, what, "name the members of one pool only"));
            }
            if let Some((other, twin)) = found.iter().find(|(other, _)| other.member == superblock.member) {
                if other.mark() != superblock.mark() {
                    let what = format!(
                        "it and {} both say that they are member {}, at the generations {} and {}: one of the two was to be it and never was",
                        twin.path, superblock.member, superblock.generation, other.generation
                    );
                    let cure = "name the one that the pool has grown by";
                    return Err(PoolError::new(&member.path, what, cure));
                }
                let what = format!("it and {} are the same member: one is a copy of the other", twin.path);
                return Err(PoolError::new(&member.path, what, "name the original only"));
            }
        }
        found.push((superblock, member));
    }
    found.sort_by_key(|(superblock, _)| superblock.member);
    // Of several that are newest the first, which is the less likely to be one that was to be added and never was.
    let newest = found.iter().rev().max_by_key(|(superblock, _)| superblock.generation);
    let Some((newest, speaker)) = newest.map(|(newest, member)| (newest.clone(), member.path.clone())) else {
        return Err(PoolError::new("pool", "no member is named", "name its files or devices"));
    };
    for (superblock, member) in &found {
        goes_with(superblock, member, &newest, &speaker)?;
    }
    let is_there =
        |number: &usize| found.iter().any(|(superblock, _)| usize::from(superblock.member) == *number);
    if let Some(number) = (0..newest.members.len()).find(|number| !is_there(number)) {
        return Err(missing(number, &newest, &found));
    }
    let agree = found.iter().all(|(superblock, _)| superblock.generation == newest.generation);
    Ok((newest, found.into_iter().map(|(_, member)| member).collect(), agree))
}

/// Whether a member is of the pool that the newest superblock, which `speaker` has, is of.
fn goes_with(
    superblock: &Superblock,
    member: &Member,
    newest: &Superblock,
    speaker: &str,
) -> Result<(), PoolError> {
    let number = usize::from(superblock.member);
    let Some(&(mark, bytes)) = newest.members.get(number) else {
        let what = format!(
            "it says that it is member {number}, but {speaker} that the pool {:?} has {} members and none of this number",
            newest.name,
            newest.members.len()
        );
        let cure = "if the pool failed to grow by it, name the pool without it; if the others are older copies, name those that went on";
        return Err(PoolError::new(&member.path, what, cure));
    };
    // A crash in the middle of writing them leaves one generation between them.
    if newest.generation - superblock.generation > 1 {
        let what = format!(
            "it was left behind at generation {}, the pool {:?} is at {}: an old copy, or a disk that was away",
            superblock.generation, newest.name, newest.generation
        );
        return Err(PoolError::new(&member.path, what, "name the member that went on with the pool"));
    }
    // A growth that has failed leaves its generation to a later opening without the device that it was for: two of one
    // generation, or of two that follow on each other, are still not of one pool by that.
    let agree = if superblock.generation == newest.generation {
        *superblock == Superblock { member: superblock.member, ..newest.clone() }
    } else {
        superblock.leads_to(newest)
    };
    if !agree || superblock.mark() != Some(mark) {
        let what = format!(
            "its generation {} of the pool {:?} contradicts generation {} on {speaker}: one of the two did not go on with the pool, or never came to it",
            superblock.generation, newest.name, newest.generation
        );
        let cure = "name the members that went on with the pool, without what it failed to grow by";
        return Err(PoolError::new(&member.path, what, cure));
    }
    if member.medium.bytes() < bytes {
        let what = format!("it has {} bytes and had {bytes}", member.medium.bytes());
        return Err(PoolError::new(
            &member.path,
            what,
            "give it its length again: data at its end are missing",
        ));
    }
    Ok(())
}

/// A member isn't there.
fn missing(number: usize, newest: &Superblock, found: &[(Superblock, Member)]) -> PoolError {
    let what = format!("member {number} of {} is missing", newest.members.len());
    let cure = "name all members of the pool";
    // Those that the pool had before a growth don't know of the new ones until all of these do: without one, it is without all.
    let before = found.iter().map(|(superblock, _)| superblock.members.len()).min().unwrap_or_default();
    let (new, old): (Vec<_>, Vec<_>) =
        found.iter().partition(|(superblock, _)| usize::from(superblock.member) >= before);
    let is_unknown = old.iter().all(|(superblock, _)| superblock.members.len() == before);
    if number < before || !is_unknown || old.is_empty() || new.is_empty() {
        return PoolError::new(&newest.name, what, cure);
    }
    let new: Vec<&str> = new.iter().map(|(_, member)| &*member.path).collect();
    let cure = format!("{cure}; if growing it has failed, name it without {}", new.join(" and "));
    PoolError::new(&newest.name, what, cure)
}

/// What a core's checkpoint and journal said.
#[derive(Debug, Default)]
struct CoreState {
    checkpoint: u64,
    replay_from: u64,
    head: u64,
    index_segments: Vec<u32>,
    segments: Vec<(u32, u64)>,
    /// Those of them in which an image stands that the checkpoint reaches.
    reached: Vec<u32>,
    /// Root, home of its top, mapped blocks.
    roots: Vec<(RootId, Home, u64)>,
    /// What the journal's blocks have behind their heads, one behind the other.
    journal: Vec<u8>,
    /// Entries in it.
    records: u64,
    /// How far it has come with decrees, and those of its own that were not obeyed.
    standing: Standing,
    sent: Vec<Sent>,
    /// Decrees that it has yet to obey, and whose.
    to_obey: Vec<(u16, Sent)>,
    /// Of the last block that was read.
    last_generation: u64,
}

/// All that the medium says.
pub(super) struct Recovered {
    superblock: Superblock,
    pub(super) catalog: Catalog,
    /// One a core: nothing is shared between cores.
    pub(super) maps: Vec<Map>,
    cores: Vec<CoreState>,
    /// Roots that reach what can't be read.
    damage: BTreeMap<RootId, String>,
    problems: Vec<Problem>,
}

/// Something that is wrong with a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// What kind, in a word or two.
    pub kind: &'static str,
    /// Where.
    pub place: String,
    /// What it means.
    pub what: String,
}

struct Loader<'a> {
    superblock: &'a Superblock,
    medium: &'a dyn Medium,
    map: &'a mut Map,
    check: bool,
    sequences: HashMap<u32, u64>,
    segments: HashMap<u32, Rc<Vec<u8>>>,
    tables: HashMap<(u32, u16), Option<TableId>>,
    leaves: HashMap<(u32, u16), Option<LeafId>>,
    problems: &'a mut Vec<Problem>,
    chunks: u32,
    /// The first segment that couldn't be read. (One that can, with something else in it, is damage.)
    failed: Option<PoolError>,
}

impl Loader<'_> {
    fn segment(&mut self, segment: u32) -> Rc<Vec<u8>> {
        let (superblock, medium, at) = (self.superblock, self.medium, self.superblock.segment_at(segment));
        let failed = &mut self.failed;
        let read = || {
            let mut bytes = vec![0; SEGMENT_BYTES as usize];
            if let Err(error) = medium.read(at, &mut bytes) {
                bytes.fill(0);
                failed.get_or_insert_with(|| unreadable(superblock, "a part of a map", at, &error));
            }
            Rc::new(bytes)
        };
        Rc::clone(self.segments.entry(segment).or_insert_with(read))
    }

    /// A node's image: the segment that it is in, and where.
    fn image(&mut self, home: Home) -> Option<(Rc<Vec<u8>>, Range<usize>)> {
        let sequence = *self.sequences.get(&home.segment)?;
        let (tag, check) = (self.superblock.tag(), self.check);
        let bytes = self.segment(home.segment);
        let content = match open_image(tag, home.segment, home.offset, sequence, &bytes) {
            Some(content) => {
                let first = usize::from(home.offset) * 16 + IMAGE_HEAD_BYTES;
                Some(first..first + content.len())
            }
            None if !check => unchecked_image(&bytes, home),
            None => None,
        };
        if content.is_none() {
            let at = self.superblock.segment_at(home.segment) + u64::from(home.offset) * 16;
            self.problems.push(Problem {
                kind: "damaged map",
                place: format!("member 0, byte {at}"),
                what: "an image of a map's node is torn, lost or written elsewhere".to_owned(),
            });
        }
        content.map(|content| (bytes, content))
    }

    /// A table and all below it; whether all of it could be read.
    fn table(&mut self, home: Home, expected: u8, whole: &mut bool) -> Option<TableId> {
        let key = (home.segment, home.offset);
        if let Some(known) = self.tables.get(&key) {
            *whole &= known.is_some();
            return *known;
        }
        let mut mine = true;
        let table = self.load_table(home, expected, &mut mine);
        if !mine {
            *whole = false;
        }
        // A table with something missing below is loaded anew for each parent, so that each hears of it.
        if mine {
            self.tables.insert(key, table);
        }
        table
    }

    fn load_table(&mut self, home: Home, expected: u8, whole: &mut bool) -> Option<TableId> {
        let Some((bytes, content)) = self.image(home) else {
            *whole = false;
            return None;
        };
        let mut from = Reader(&bytes[content]);
        let (Ok(level), Ok(count)) = (from.u8(), from.u16()) else {
            *whole = false;
            return None;
        };
        // A table somewhere else in a tree would be taken for what it is not, or lead back to itself.
        if level != expected {
            *whole = false;
            return None;
        }
        let mut children = Vec::new();
        for _ in 0..count {
            let (Ok(place), Ok(segment), Ok(offset), Ok(size)) =
                (from.u8(), from.u32(), from.u16(), from.u16())
            else {
                *whole = false;
                break;
            };
            let below = Home { segment, offset, size };
            let child = match level {
                1 => self.leaf(below, whole).map(LeafId::index),
                2 | 3 => self.table(below, level - 1, whole).map(TableId::index),
                _ => None,
            };
            match child {
                Some(child) => children.push((place, child)),
                None => *whole = false,
            }
        }
        Some(self.map.load_table(level, &children, home))
    }

    fn leaf(&mut self, home: Home, whole: &mut bool) -> Option<LeafId> {
        let key = (home.segment, home.offset);
        if let Some(known) = self.leaves.get(&key) {
            *whole &= known.is_some();
            return *known;
        }
        let content = self.image(home);
        let slots = content.and_then(|(bytes, content)| {
            let mut from = Reader(&bytes[content]);
            let kind = from.u8().ok()?;
            let slots = read_slots(&mut from, LEAF_SLOTS, &mut self.map.explosions).ok()?;
            let in_pool = |chunk: Chunk| chunk.0 < self.chunks || !chunk.is_some();
            let sane = slots.iter().all(|&slot| match slot.exploded_index() {
                Some(_) => self.map.explosions.names(slot).into_iter().all(in_pool),
                None => in_pool(slot.own_chunk()) && in_pool(slot.base_chunk()),
            });
            (kind == 0 && sane).then_some(slots)
        });
        let leaf = slots
            .and_then(|slots| <Box<[super::slot::Slot; LEAF_SLOTS]>>::try_from(slots.into_boxed_slice()).ok())
            .map(|slots| self.map.load_leaf(slots, home));
        *whole &= leaf.is_some();
        self.leaves.insert(key, leaf);
        leaf
    }
}

/// For a test that leaves checksums unchecked.
fn unchecked_image(bytes: &[u8], home: Home) -> Option<Range<usize>> {
    let mut from = Reader(bytes.get(usize::from(home.offset) * 16 + 4..)?);
    let length = from.u32().ok()? as usize;
    let first = bytes.len() - from.0.len();
    (length <= from.0.len()).then_some(first..first + length)
}

/// What can't be read now may be there: to go on without it would be to forget it.
fn unreadable(superblock: &Superblock, what: &str, at: u64, error: &std::io::Error) -> PoolError {
    let what = format!("{what} at member 0, byte {at} can't be read: {error}");
    PoolError::new(
        &superblock.name,
        what,
        "look at the device; nothing was changed, so open it again when it can be read",
    )
}

fn read_headers(superblock: &Superblock, medium: &dyn Medium, core: u16) -> Result<Vec<Header>, PoolError> {
    let mut found = Vec::new();
    for nth in 0..2 {
        let at = superblock.header_at(core, nth);
        let mut bytes = vec![0; HEADER_BYTES as usize];
        medium
            .read(at, &mut bytes)
            .map_err(|error| unreadable(superblock, "a checkpoint header", at, &error))?;
        found.extend(Header::decode(superblock.tag(), superblock.layout, core, &bytes));
    }
    found.sort_by_key(|header| std::cmp::Reverse(header.checkpoint));
    Ok(found)
}

fn read_core(
    superblock: &Superblock,
    medium: &dyn Medium,
    core: u16,
    problems: &mut Vec<Problem>,
) -> Result<(CoreState, Option<Vec<u8>>), PoolError> {
    let mut state = CoreState::default();
    let mut catalog = None;
    let headers = read_headers(superblock, medium, core)?;
    let had_headers = !headers.is_empty();
    for header in headers {
        let mut index = Vec::new();
        for &segment in &header.index_segments {
            let mut bytes = vec![0; SEGMENT_BYTES as usize];
            if segment < superblock.segments() {
                let at = superblock.segment_at(segment);
                medium
                    .read(at, &mut bytes)
                    .map_err(|error| unreadable(superblock, "a checkpoint's index", at, &error))?;
                index.extend(bytes);
            }
        }
        index.truncate(header.index_bytes as usize);
        if index.len() as u64 != header.index_bytes || crc_of(&index) != header.index_crc {
            problems.push(Problem {
                kind: "damaged checkpoint",
                place: format!("core {core}, checkpoint {}", header.checkpoint),
                what: "its index is torn or lost: the one before it is taken".to_owned(),
            });
            continue;
        }
        let parsed = (|| {
            let mut from = Reader(&index);
            let count = from.u32()?;
            let mut roots = Vec::new();
            for _ in 0..count {
                let (id, segment, offset, size) =
                    (RootId(from.u64()?), from.u32()?, from.u16()?, from.u16()?);
                roots.push((id, Home { segment, offset, size }, from.u64()?));
            }
            let count = from.u32()?;
            let segments =
                (0..count).map(|_| Ok((from.u32()?, from.u64()?))).collect::<Result<Vec<_>, _>>()?;
            let length = from.u32()?;
            let catalog = from.bytes(length as usize)?.to_vec();
            Ok::<_, super::codec::Malformed>((roots, segments, catalog, Standing::read(&mut from)?))
        })();
        let Ok((roots, segments, bytes, standing)) = parsed else { continue };
        state.standing = standing;
        state.checkpoint = header.checkpoint;
        state.replay_from = header.replay_from;
        state.index_segments = header.index_segments;
        state.last_generation = header.generation;
        state.segments =
            segments.into_iter().filter(|&(segment, _)| segment < superblock.segments()).collect();
        state.roots = roots;
        catalog = (!bytes.is_empty()).then_some(bytes);
        break;
    }
    if state.checkpoint == 0 && (had_headers || superblock.layout > 0) {
        // A pool begins without one; ever since it was dealt anew, or has written one, there is one.
        let what = format!("no checkpoint of core {core} is whole");
        return Err(PoolError::new(
            &superblock.name,
            what,
            "run `pollux check` on its members, and bring back an older copy of member 0",
        ));
    }
    read_journal(superblock, medium, core, &mut state)?;
    if let Some(position) = block_behind(superblock, medium, core, &state) {
        let (at, blocks) = superblock.journal_of(core);
        problems.push(Problem {
            kind: DAMAGED_JOURNAL,
            place: format!("member 0, byte {}", at + state.head % blocks * JOURNAL_BLOCK_BYTES as u64),
            what: format!(
                "core {core}'s journal breaks off at block {} although block {position} is whole: what was acknowledged \
                 in between is lost",
                state.head
            ),
        });
    }
    Ok((state, catalog))
}

/// Segments that a core needs to go from one checkpoint to the next.
const CORE_SEGMENTS_MIN: u32 = 8;

const DAMAGED_JOURNAL: &str = "damaged journal";

/// How far behind the end of a journal it is looked for more.
const LOOK_BEHIND_BLOCKS: u64 = 1024;

/// A whole block behind where the journal breaks off that can't be of the last commits: then what is between was not
/// torn by a crash, but damaged after it was durable.
fn block_behind(superblock: &Superblock, medium: &dyn Medium, core: u16, state: &CoreState) -> Option<u64> {
    let (at, blocks) = superblock.journal_of(core);
    let first = state.head + (COMMITS_MAX * BUF_BYTES_MAX / JOURNAL_BLOCK_BYTES) as u64;
    let end = (first + LOOK_BEHIND_BLOCKS).min(state.replay_from + blocks);
    (first..end).find(|&position| {
        let mut block = vec![0; JOURNAL_BLOCK_BYTES];
        let read = medium.read(at + position % blocks * JOURNAL_BLOCK_BYTES as u64, &mut block);
        read.is_ok()
            && JournalHead::open(superblock.tag(), superblock.layout, core, position, &block)
                .is_some_and(|(head, _)| head.generation >= state.last_generation)
    })
}

/// The longest whole prefix of a journal behind the checkpoint.
fn read_journal(
    superblock: &Superblock,
    medium: &dyn Medium,
    core: u16,
    state: &mut CoreState,
) -> Result<(), PoolError> {
    let (at, blocks) = superblock.journal_of(core);
    // What stands there from an opening before the checkpoint's was cut off by a crash, and is not to come back.
    let (mut position, mut generation) = (state.replay_from, state.last_generation);
    let mut window: (u64, Vec<u8>) = (u64::MAX, Vec::new());
    let window_blocks = 256u64;
    'blocks: while position < state.replay_from + blocks {
        let nth = position % blocks;
        if window.0 == u64::MAX || nth < window.0 || nth >= window.0 + window_blocks {
            let count = window_blocks.min(blocks - nth);
            let mut bytes = vec![0; count as usize * JOURNAL_BLOCK_BYTES];
            let from = at + nth * JOURNAL_BLOCK_BYTES as u64;
            medium
                .read(from, &mut bytes)
                .map_err(|error| unreadable(superblock, "a journal", from, &error))?;
            window = (nth, bytes);
        }
        let from = (nth - window.0) as usize * JOURNAL_BLOCK_BYTES;
        let Some(block) = window.1.get(from..from + JOURNAL_BLOCK_BYTES) else {
            window.0 = u64::MAX;
            continue;
        };
        let opened = JournalHead::open(superblock.tag(), superblock.layout, core, position, block);
        let Some((head, records)) = opened.filter(|(head, _)| head.generation >= generation) else { break };
        generation = head.generation;
        let mut count = 0;
        let whole = record::entries(records, |entry| {
            count += 1;
            record::read(entry, |_| {})
        });
        if whole.is_err() {
            break 'blocks;
        }
        state.records += count;
        state.journal.extend_from_slice(records);
        position += 1;
    }
    state.head = position;
    state.last_generation = generation;
    Ok(())
}

fn recover(superblock: Superblock, members: &[Member], rule: Option<Rule>) -> Result<Recovered, PoolError> {
    let medium = &*members[0].medium;
    let name = superblock.name.clone();
    let mut problems = Vec::new();
    let mut cores = Vec::new();
    let mut catalog = Catalog { next_id: 1, ..Catalog::default() };
    for core in 0..superblock.cores {
        let (state, image) = read_core(&superblock, medium, core, &mut problems)?;
        if let Some(image) = image {
            catalog = Catalog::decode(&image).map_err(|_| {
                PoolError::new(
                    &name,
                    "its catalog is of another version, or malformed",
                    "run `pollux check` on its members",
                )
            })?;
        }
        cores.push(state);
    }
    let mut result = Ok(());
    records_of(&cores[0].journal, |record| {
        if let Record::Catalog(transaction) = record
            && result.is_ok()
        {
            result = catalog.replay(&transaction);
        }
    });
    result.map_err(|_| {
        PoolError::new(&name, "a transaction of its catalog is missing", "run `pollux check` on its members")
    })?;
    find_decrees(&mut cores);
    // An id that a fork was given before the catalog had it is not given again.
    for core in &cores {
        for &(root, ..) in &core.roots {
            catalog.next_id = catalog.next_id.max(root.0 + 2);
        }
    }
    let mut damage = BTreeMap::new();
    let chunks = superblock.chunks();
    let (mut maps, mut reached) = (Vec::new(), Vec::new());
    for core in &cores {
        let mut torn = BTreeSet::new();
        let mut map = Map::with_segments(superblock.segments());
        let mut loader = Loader {
            superblock: &superblock,
            medium,
            map: &mut map,
            check: rule != Some(Rule::ChecksumsAreChecked),
            sequences: core.segments.iter().copied().collect(),
            segments: HashMap::new(),
            tables: HashMap::new(),
            leaves: HashMap::new(),
            problems: &mut problems,
            chunks,
            failed: None,
        };
        let mut tops = Vec::new();
        for &(root, home, mapped) in &core.roots {
            if !catalog.roots.contains_key(&root) {
                continue;
            }
            let mut whole = true;
            let top = if home.is_somewhere() { loader.table(home, LEVELS, &mut whole) } else { None };
            if !whole {
                torn.insert(root);
            }
            tops.push((root, top, mapped));
        }
        if let Some(error) = loader.failed {
            return Err(error);
        }
        for (root, top, mapped) in tops {
            map.load_root(root, top, mapped);
        }
        // What this core's checkpoint doesn't have begins here as its parent is here, with what that has lost. Parents are
        // older, so they come first.
        for (&root, origin) in &catalog.roots {
            if torn.contains(&origin.parent) && !core.roots.iter().any(|&(id, ..)| id == root) {
                torn.insert(root);
            }
        }
        damage.extend(torn.into_iter().map(|root| (root, "a part of its map can't be read".to_owned())));
        reached.push((0..superblock.segments()).filter(|&segment| map.live[segment as usize] > 0).collect());
        maps.push(map);
    }
    for (core, reached) in cores.iter_mut().zip(reached) {
        core.reached = reached;
    }
    for (map, state) in maps.iter_mut().zip(&mut cores) {
        replay(chunks, &catalog, map, state, &mut problems);
    }
    for (&root, _) in catalog.roots.iter().filter(|(_, origin)| origin.damaged && !origin.dead) {
        damage.entry(root).or_insert_with(|| "a part of its map was found lost before".to_owned());
    }
    Ok(Recovered { superblock, catalog, maps, cores, damage, problems })
}

/// Which decrees of one core another has not obeyed.
fn find_decrees(cores: &mut [CoreState]) {
    // Those that a checkpoint has written anew are there more than once.
    let mut decrees = BTreeMap::new();
    for (from, state) in (0..).zip(&mut *cores) {
        let standing = &mut state.standing;
        records_of(&state.journal, |record| match record {
            Record::Decree { number, core, records } => {
                standing.number = standing.number.max(number);
                decrees.insert((from, number), Sent { number, core, records });
            }
            Record::Obeyed { core, number } => standing.obey(core, number),
            _ => {}
        });
    }
    for ((from, number), sent) in decrees {
        let Some(to) = cores.get_mut(usize::from(sent.core)) else { continue };
        if to.standing.obeyed(from) < number {
            to.to_obey.push((from, sent.clone()));
            cores[usize::from(from)].sent.push(sent);
        }
    }
}

/// Every record of journal blocks that were found whole when they were read.
fn records_of(journal: &[u8], mut each: impl FnMut(Record)) {
    let _ = record::entries(journal, |entry| record::read(entry, &mut each));
}

/// Applies a core's records, makes the roots that its checkpoint does not have, and drops those that are dead.
fn replay(chunks: u32, catalog: &Catalog, map: &mut Map, state: &mut CoreState, problems: &mut Vec<Problem>) {
    let mut scratch = Vec::new();
    let mut redo = |record: Record, scratch: &mut Vec<Chunk>| {
        let root = match &record {
            Record::Set { root, .. }
            | Record::Zero { root, .. }
            | Record::ZeroRun { root, .. }
            | Record::Install { root, .. } => *root,
            Record::Catalog(_) | Record::Decree { .. } | Record::Obeyed { .. } => return,
        };
        if catalog.roots.contains_key(&root) {
            ensure(map, catalog, root, scratch);
            apply(map, chunks, root, &record, scratch, problems);
        }
    };
    records_of(&std::mem::take(&mut state.journal), |record| redo(record, &mut scratch));
    // Whoever was to obey held the range from before the decree on, so these are the last records of it.
    for (_, Sent { records, .. }) in &state.to_obey {
        // They were whole when they were read.
        let _ = record::read(records, |record| redo(record, &mut scratch));
    }
    for &root in catalog.roots.keys() {
        ensure(map, catalog, root, &mut scratch);
    }
    for (&root, _) in catalog.roots.iter().filter(|(_, origin)| origin.dead) {
        map.drop_root(root);
    }
    let mut nothing = Vec::new();
    while map.is_dropping() {
        map.drop_step(usize::MAX, &mut nothing);
    }
    // Images may be newer than the sums beside them.
    let roots: Vec<RootId> = map.roots.keys().copied().collect();
    for root in roots {
        map.recount(root);
    }
}

/// Makes a root that isn't there of what it began as.
fn ensure(map: &mut Map, catalog: &Catalog, root: RootId, scratch: &mut Vec<Chunk>) {
    if map.roots.contains_key(&root) {
        return;
    }
    // From the oldest that is missing on. Parents are older, so this ends.
    let mut missing = vec![root];
    while let Some(RootOrigin { parent, .. }) = missing.last().and_then(|last| catalog.roots.get(last))
        && parent.0 != 0
        && catalog.roots.contains_key(parent)
        && !map.roots.contains_key(parent)
    {
        missing.push(*parent);
    }
    while let Some(next) = missing.pop() {
        let Some(origin) = catalog.roots.get(&next) else { continue };
        if origin.parent.0 == 0 {
            map.load_root(next, None, 0);
            continue;
        }
        map.fork(origin.parent, next);
        if origin.truncated != u64::MAX {
            let end = SlotNo(origin.truncated / CHUNK_BYTES);
            let block = (origin.truncated % CHUNK_BYTES / BLOCK_BYTES) as u32;
            map.truncate(next, end, block, scratch, &mut Vec::new());
            scratch.clear();
        }
    }
}

fn apply(
    map: &mut Map,
    chunks: u32,
    root: RootId,
    record: &Record,
    scratch: &mut Vec<Chunk>,
    problems: &mut Vec<Problem>,
) {
    let mut change = |map: &mut Map, slot: SlotNo, mask: u16, place: &dyn Fn(u32) -> Option<Place>| {
        let leaf = map.leaf_for_write(root, slot.stripe(), scratch);
        scratch.clear();
        let mut pointers = map.explosions.pointers(map.slot_at(leaf, slot.index()));
        for block in 0..SLOT_BLOCKS {
            if mask >> block & 1 == 1 {
                pointers[block as usize] = place(block);
            }
        }
        map.change(root, leaf, slot.index(), &pointers, Chunk::NONE);
        map.tidy(root, slot.stripe(), leaf);
    };
    let mut outside = |chunk: Chunk| {
        let is_outside = chunk.0 >= chunks;
        if is_outside {
            problems.push(Problem {
                kind: "impossible chunk",
                place: format!("chunk {}", chunk.0),
                what: "a record names a chunk that the pool does not have".to_owned(),
            });
        }
        is_outside
    };
    match *record {
        Record::Set { slot, mask, chunk, at, first, .. } => {
            if !outside(chunk) {
                change(map, slot, mask, &|block| {
                    let block = (u32::from(at) + block - u32::from(first)) as u8;
                    Some(Place { chunk, block, private: false })
                });
            }
        }
        Record::Zero { slot, mask, .. } => change(map, slot, mask, &|_| None),
        Record::ZeroRun { slot, count, .. } => {
            let mut at = slot.0;
            while at < slot.0 + count {
                if map.leaf(root, SlotNo(at).stripe()).is_some() {
                    change(map, SlotNo(at), u16::MAX, &|_| None);
                    at += 1;
                } else {
                    at = (SlotNo(at).stripe() + 1) * LEAF_SLOTS as u64;
                }
            }
        }
        Record::Install { slot, ref masks, ref pointers, .. } => {
            for ((nth, &mask), pointers) in (0u64..).zip(masks).zip(pointers) {
                if !pointers.iter().flatten().any(|place| outside(place.chunk)) {
                    change(map, SlotNo(slot.0 + nth), mask, &|block| pointers[block as usize]);
                }
            }
        }
        Record::Catalog(_) | Record::Decree { .. } | Record::Obeyed { .. } => {}
    }
}

/// Opens a pool: from now on it is this process's alone, which is the caller's to make sure of by its locks.
///
/// # Errors
/// What is in the way.
pub fn open(members: Vec<Member>, options: &OpenOptions) -> Result<Opened, PoolError> {
    assert!(options.cores >= 1 && options.cores <= CORES_MAX);
    let (superblock, members, agree) = assemble(members)?;
    let most = superblock.segments() / CORE_SEGMENTS_MIN;
    if u32::from(options.cores) > most {
        let what = format!("its space for maps does for {most} reactors and not for {}", options.cores);
        return Err(PoolError::new(
            &superblock.name,
            what,
            "start with fewer reactors, or make a larger pool",
        ));
    }
    if !agree {
        // Who was left behind by a crash in the middle of this is brought along first: however often that happens, one
        // generation is the most that lies between two members.
        write_superblocks(&members, &superblock)?;
    }
    let Recovered { superblock, mut catalog, maps, cores, damage, problems } =
        recover(superblock, &members, options.break_rule)?;
    if let Some(lost) = problems.iter().find(|problem| problem.kind == DAMAGED_JOURNAL) {
        let what = format!("{}: {}", lost.place, lost.what);
        let cure = "restore the device, or give up what is lost with `pollux check --repair`";
        return Err(PoolError::new(&superblock.name, what, cure));
    }
    for problem in &problems {
        tracing::error!(pool = %superblock.name, at = %problem.place, "{}: {}", problem.kind, problem.what);
    }
    let same_layout = superblock.cores == options.cores;
    let mut next = Superblock { generation: superblock.generation + 1, ..superblock.clone() };
    let mut seeds = if same_layout {
        split_same(&superblock, maps, cores)
    } else if let Some((root, what)) = damage.first_key_value() {
        // Written out anew, what is missing would look as if it had never been there.
        let what = format!(
            "root {} is damaged ({what}), so the pool can't be dealt to {} reactors",
            root.0, options.cores
        );
        let cure = format!(
            "start with {} reactors as before, and delete or roll back what is damaged",
            superblock.cores
        );
        return Err(PoolError::new(&superblock.name, what, cure));
    } else {
        next.cores = options.cores;
        next.layout += 1;
        relayout(&next, &catalog, &maps, &cores, &*members[0].medium)?
    };
    write_superblocks(&members, &next)?;
    let promises = Arc::new(Promises::default());
    let named = count_names(&next, &mut seeds);
    if options.punch_after.is_some() && !options.in_memory && members.iter().any(|member| member.punch) {
        for seed in &mut seeds {
            seed.space.watch_stale();
        }
        for (number, member) in (0..).zip(&members).filter(|(_, member)| member.punch) {
            super::punch::note_data(&next, number, &*member.medium, |chunks| {
                for seed in &mut seeds {
                    seed.space.note_stale(chunks.clone());
                }
            });
        }
    }
    let damaged: Vec<(RootId, String)> = damage.into_iter().collect();
    let hold_checkpoints =
        damaged.iter().any(|(root, _)| catalog.roots.get(root).is_some_and(|origin| !origin.damaged));
    let total = i64::from(next.chunks());
    let mut reserved = 0i64;
    for volume in catalog.volumes.values().filter(|v| v.provisioning == super::control::Provisioning::Thick) {
        let slots = volume.bytes.div_ceil(CHUNK_BYTES) as i64;
        let mut private = 0;
        for seed in &mut seeds {
            seed.map.recount(volume.root);
            private += seed.map.roots.get(&volume.root).map_or(0, |root| root.private_slots as i64);
        }
        reserved += slots - private;
    }
    promises.reserved.store(reserved, std::sync::atomic::Ordering::Release);
    promises.unpromised.store(total - named as i64 - reserved, std::sync::atomic::Ordering::Release);
    if options.break_rule != Some(Rule::HeartbeatsHaveTheirOwn) {
        let kept = super::space::heartbeat_chunks(next.chunks());
        promises.heartbeat.store(kept, std::sync::atomic::Ordering::Release);
    }
    // What tokens hold has a root that the catalog never names: the next opening leaves out what its records and images
    // say, and its chunks are free. Nothing that people make gets its id.
    let tokens = RootId(catalog.next_id);
    catalog.next_id += 2;
    seeds[0].catalog = Some(catalog);
    seeds[0].damage = damaged;
    let common = Common {
        cores: options.cores,
        superblock: next,
        first_bdev: options.first_bdev.0,
        mark: options.mark,
        members: members
            .iter()
            .map(|member| super::device::MemberFile {
                file: member.file,
                align_bytes: member.align_bytes,
                punch: member.punch && !options.in_memory,
            })
            .collect(),
        in_memory: options.in_memory,
        paths: members.iter().map(|member| member.path.clone()).collect(),
        promises,
        map_memory_max_bytes: options.map_memory_max_bytes,
        window_clusters: options.window_clusters,
        punch_after: options.punch_after,
        rule: options.break_rule,
        folds: options.folds,
        checkpoint_percent: options.checkpoint_percent,
        names_max: options.names_max,
        tokens,
        hold_checkpoints,
        board: Arc::new(Board::new(options.cores)),
        changes: Arc::new(Changes::new(options.cores)),
    };
    let queue = |seed| {
        let (sender, receiver) = crossbeam_channel::bounded(1);
        // There is room for one.
        let _ = sender.try_send(seed);
        receiver
    };
    Ok(Opened { common, seeds: seeds.into_iter().map(queue).collect() })
}

/// Each core goes on with its journal and its images.
fn split_same(superblock: &Superblock, maps: Vec<Map>, cores: Vec<CoreState>) -> Vec<Seed> {
    let deal = Deal::among(superblock.cores);
    let seed = |(core, (map, state)): (u16, (Map, CoreState))| Seed {
        map,
        space: Space::new(Core(core), deal, superblock.chunks()),
        replay_from: state.replay_from,
        head: state.head,
        checkpoint: state.checkpoint,
        segment_sequences: state.segments,
        index_segments: state.index_segments,
        lent: Vec::new(),
        catalog: None,
        damage: Vec::new(),
        inherited: Inherited { standing: state.standing, sent: state.sent, to_record: state.to_obey },
    };
    let mut seeds: Vec<Seed> = (0..).zip(maps.into_iter().zip(cores)).map(seed).collect();
    note_lent(&mut seeds);
    seeds
}

/// Tells cores which of the segments that would be theirs others use, since an opening that had too few for them;
/// ascending.
fn note_lent(seeds: &mut [Seed]) {
    let cores = seeds.len();
    for user in 0..cores {
        let Seed { segment_sequences, index_segments, .. } = &seeds[user];
        let used =
            segment_sequences.iter().map(|&(segment, _)| segment).chain(index_segments.iter().copied());
        let foreign: Vec<u32> = used.filter(|&segment| segment as usize % cores != user).collect();
        for segment in foreign {
            seeds[segment as usize % cores].lent.push(segment);
        }
    }
    for seed in seeds {
        seed.lent.sort_unstable();
    }
}

/// The number of cores has changed: slices go to other cores, and everything is written out for them before the
/// superblock says so.
fn relayout(
    new: &Superblock,
    catalog: &Catalog,
    maps: &[Map],
    cores: &[CoreState],
    medium: &dyn Medium,
) -> Result<Vec<Seed>, PoolError> {
    let mut free = vec![Vec::new(); usize::from(new.cores)];
    let mut is_used = vec![false; new.segments() as usize];
    // The others may be written to: until the superblocks say so this checkpoint counts, and it doesn't read them.
    for &segment in cores.iter().flat_map(|core| core.reached.iter().chain(&core.index_segments)) {
        is_used[segment as usize] = true;
    }
    for segment in (0..new.segments()).rev().filter(|&segment| !is_used[segment as usize]) {
        free[segment as usize % usize::from(new.cores)].push(segment);
    }
    let deal = Deal::among(new.cores);
    let mut seeds = Vec::new();
    for (core, mut map) in (0..).zip(Map::redeal(maps, new.cores, new.segments())) {
        let catalog = if core == 0 { catalog.encode() } else { Vec::new() };
        let written = super::writeout::write_out(new, core, &mut map, &catalog, &mut free, medium);
        let (segments, index_segments) = written.map_err(|what| {
            PoolError::new(
                &new.name,
                format!("its maps can't be written for {} reactors: {what}", new.cores),
                format!("start with {} reactors as before", cores.len()),
            )
        })?;
        seeds.push(Seed {
            map,
            space: Space::new(Core(core), deal, new.chunks()),
            replay_from: 0,
            head: 0,
            checkpoint: 1,
            segment_sequences: segments,
            index_segments,
            lent: Vec::new(),
            catalog: None,
            damage: Vec::new(),
            inherited: Inherited::default(),
        });
    }
    note_lent(&mut seeds);
    Ok(seeds)
}

/// Adds up the counts of all chunks over all cores' maps, and lets slots write in place what nobody else names.
fn count_names(superblock: &Superblock, seeds: &mut [Seed]) -> u64 {
    let deal = Deal::among(superblock.cores);
    let owner = |chunk: Chunk| deal.owner(u64::from(chunk.0) * CHUNK_BYTES).index();
    // A core's map is taken out while all cores' counts are looked at.
    for core in 0..seeds.len() {
        let map = std::mem::take(&mut seeds[core].map);
        for leaf in map.leaf_ids() {
            for index in 0..LEAF_SLOTS {
                map.explosions.each_name(map.slot_at(leaf, index), |name| {
                    seeds[owner(name)].space.count_at_open(name);
                });
            }
        }
        seeds[core].map = map;
    }
    for seed in seeds.iter_mut() {
        seed.space.counted();
    }
    for core in 0..seeds.len() {
        let mut map = std::mem::take(&mut seeds[core].map);
        for leaf in map.leaf_ids().collect::<Vec<LeafId>>() {
            map.make_private(leaf, |chunk| seeds[owner(chunk)].space.is_named_once(chunk));
        }
        seeds[core].map = map;
    }
    let free: u64 = seeds.iter().map(|seed| seed.space.free()).sum();
    u64::from(superblock.chunks()) - free
}

/// What stands on the members of a pool that nobody has open.
pub(super) fn recover_whole(members: &[Member]) -> Result<Recovered, PoolError> {
    let (superblock, members, _) = assemble(members.to_vec())?;
    recover(superblock, &members, None)
}

/// What a check has found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// The pool's name.
    pub pool: String,
    /// Its UUID.
    pub uuid: [u8; 16],
    /// Everything that is wrong.
    pub problems: Vec<Problem>,
    /// Chunks of the pool.
    pub chunks: u64,
    /// Chunks that something names.
    pub named_chunks: u64,
    /// Chunks that more than one slot names.
    pub shared_chunks: u64,
    /// Volumes: name and mapped bytes.
    pub volumes: Vec<(String, u64)>,
    /// Snapshots: `volume@snapshot` and mapped bytes.
    pub snapshots: Vec<(String, u64)>,
    /// Journal records that an opening would replay.
    pub records: u64,
}

/// Reads every map of a pool that nobody has open and proves what can be proved without changing anything.
///
/// # Errors
/// It can't be assembled at all.
pub fn check(members: &[Member]) -> Result<CheckReport, PoolError> {
    let (superblock, members, _) = assemble(members.to_vec())?;
    let mut problems = Vec::new();
    for (number, member) in members.iter().enumerate() {
        for at in SUPERBLOCK_AT {
            let mut bytes = vec![0; SUPERBLOCK_BYTES as usize];
            let decoded = member.medium.read(at, &mut bytes).map_err(|_| "it can't be read");
            let decoded = decoded.and_then(|()| Superblock::decode(&bytes));
            match decoded {
                Ok(found) if usize::from(found.member) == number && found.uuid == superblock.uuid => {}
                Ok(_) => problems.push(Problem {
                    kind: "superblock",
                    place: format!("{}, byte {at}", member.path),
                    what: "it is another member's".to_owned(),
                }),
                Err(why) => problems.push(Problem {
                    kind: "superblock",
                    place: format!("{}, byte {at}", member.path),
                    what: why.to_owned(),
                }),
            }
        }
    }
    let recovered = recover(superblock, &members, None)?;
    let Recovered { superblock, catalog, mut maps, cores, damage, problems: found } = recovered;
    problems.extend(found);
    for (root, what) in damage {
        let name = catalog
            .volumes
            .values()
            .find(|v| v.root == root)
            .map(|v| format!("volume {}", v.name))
            .or_else(|| {
                catalog.snapshots.values().find(|s| s.root == root).map(|s| format!("snapshot {}", s.name))
            });
        problems.push(Problem {
            kind: "damaged volume",
            place: name.unwrap_or_else(|| format!("root {}", root.0)),
            what,
        });
    }
    let mut counts: HashMap<Chunk, u64> = HashMap::new();
    for map in &maps {
        for leaf in map.leaf_ids() {
            for slot in map.slots_of(leaf) {
                for name in map.explosions.names(slot) {
                    *counts.entry(name).or_default() += 1;
                }
            }
        }
    }
    let mut mapped = |root: RootId| -> u64 {
        let blocks = maps.iter_mut().map(|map| {
            map.recount(root);
            map.roots.get(&root).map_or(0, |root| root.mapped_blocks)
        });
        blocks.sum::<u64>() * BLOCK_BYTES
    };
    let volumes = catalog.volumes.values().map(|v| (v.name.clone(), mapped(v.root))).collect();
    let snapshots = catalog.snapshots.values().map(|s| {
        let volume = catalog.volumes.get(&s.volume).map_or("?", |v| v.name.as_str());
        (format!("{volume}@{}", s.name), mapped(s.root))
    });
    let snapshots = snapshots.collect();
    for volume in catalog.volumes.values() {
        if catalog.roots.get(&volume.root).is_none_or(|root| root.dead) {
            problems.push(Problem {
                kind: "catalog",
                place: format!("volume {}", volume.name),
                what: "its root is gone".to_owned(),
            });
        }
    }
    Ok(CheckReport {
        pool: superblock.name.clone(),
        uuid: superblock.uuid,
        problems,
        chunks: u64::from(superblock.chunks()),
        named_chunks: counts.len() as u64,
        shared_chunks: counts.values().filter(|&&count| count > 1).count() as u64,
        volumes,
        snapshots,
        records: cores.iter().map(|core| core.records).sum(),
    })
}

/// Writes superblocks anew where one of a member's two is damaged. What was put right.
///
/// # Errors
/// The pool can't be assembled, or a member not be written.
pub fn repair(members: &[Member]) -> Result<Vec<Problem>, PoolError> {
    let (superblock, members, _) = assemble(members.to_vec())?;
    let mut repaired = Vec::new();
    for (number, member) in members.iter().enumerate() {
        let right = Superblock { member: number as u16, ..superblock.clone() }.encode();
        for at in SUPERBLOCK_AT {
            let mut bytes = vec![0; SUPERBLOCK_BYTES as usize];
            if member.medium.read(at, &mut bytes).is_ok() && bytes == right {
                continue;
            }
            let written = member.medium.write(at, &right).and_then(|()| member.medium.sync());
            written.map_err(|error| {
                PoolError::new(
                    &member.path,
                    format!("its superblock can't be written: {error}"),
                    "make it writable",
                )
            })?;
            repaired.push(Problem {
                kind: "superblock",
                place: format!("{}, byte {at}", member.path),
                what: "it was damaged or out of date".to_owned(),
            });
        }
    }
    let medium = &*members[0].medium;
    for core in 0..superblock.cores {
        let (state, _) = read_core(&superblock, medium, core, &mut Vec::new())?;
        let (at, blocks) = superblock.journal_of(core);
        while let Some(position) = block_behind(&superblock, medium, core, &state) {
            let place = at + position % blocks * JOURNAL_BLOCK_BYTES as u64;
            let written = medium.write(place, &[0; JOURNAL_BLOCK_BYTES]).and_then(|()| medium.sync());
            written.map_err(|error| {
                PoolError::new(
                    &members[0].path,
                    format!("its journal can't be written: {error}"),
                    "make it writable",
                )
            })?;
            repaired.push(Problem {
                kind: DAMAGED_JOURNAL,
                place: format!("member 0, byte {place}"),
                what: format!(
                    "block {position} of core {core}'s journal stood behind damage: it is given up"
                ),
            });
        }
    }
    Ok(repaired)
}
