//! Gives the space of free chunks back to what is below the pool: holes in files, discards on devices.
//!
//! A chunk that becomes free is free at once, and remembered as one where data may stand; after opening, so are the free
//! chunks where the medium says that some do. When a core has been idle for a while it takes runs of those out of what
//! is free, punches them, and puts them back when the punch has come back; never more than half of what is free, so that a
//! disk that is long about it makes no pool look full. So no write waits for it but the last ones of a pool, what is wanted again soon is never punched, and nobody uses a chunk while a punch is on its way to it.
//!
//! What is punched need not be durable: a free chunk's content is nobody's. File systems let no direct IO to the file pass
//! while they punch it, which is why a core that is never idle punches so rarely.

use super::format::Superblock;
use super::medium::Medium;
use super::rule::Rule;
use super::shard::{PoolShard, User};
use super::slot::{CHUNK_BYTES, Chunk};
use crate::error::IoError;
use reactor::clock::Time;
use reactor::disk::DiskAction;
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// How long a core has to be idle before it punches, usually.
pub const PUNCH_AFTER: Duration = Duration::from_millis(100);
/// Punches of a core on their way.
const PUNCHES_MAX: u32 = 4;
/// Clusters looked at in one turn.
const LOOKS_A_TURN: u32 = 256;
/// A core that is never idle punches once in so many times the wait for idleness.
const BUSY_WAITS: u32 = 100;
/// Parts of clusters are left alone for so many times the wait since the last chunk became free: the rest may follow.
const PART_WAITS: u32 = 10;
/// Ranges of data that a medium is asked for at opening; what is behind them is taken for data.
const RANGES_MAX: u32 = 1 << 20;

/// One core's punching.
#[derive(Debug)]
pub(super) struct Puncher {
    /// How long a core has to be idle; `None`: nothing is punched.
    wait: Option<Duration>,
    /// Members where it failed once.
    unable: Vec<u16>,
    out: u32,
    /// Free chunks that nobody may use before their punch comes back.
    pub(super) held_chunks: u64,
    /// When IO was last begun or under way, and how much had been begun then.
    busy_at: Time,
    begun: u64,
    /// When the last punch was begun.
    last_at: Time,
    /// There was nothing to punch: not before this is it looked for again.
    look_at: Time,
    /// When the last chunk became free.
    pub(super) freed_at: Time,
}

impl Puncher {
    pub(super) fn new(wait: Option<Duration>) -> Puncher {
        Puncher {
            wait,
            unable: Vec::new(),
            out: 0,
            held_chunks: 0,
            busy_at: Time::ZERO,
            begun: 0,
            last_at: Time::ZERO,
            look_at: Time::ZERO,
            freed_at: Time::ZERO,
        }
    }
}

/// Tells the chunks of a member where its medium says that data stand.
pub(super) fn note_data(
    superblock: &Superblock,
    member: u16,
    medium: &dyn Medium,
    mut note: impl FnMut(Range<u32>),
) {
    let mut asked = 0;
    for extent in superblock.extents.iter().filter(|extent| extent.member == member) {
        let end = extent.at + u64::from(extent.chunks) * CHUNK_BYTES;
        let mut at = extent.at;
        while at < end {
            asked += 1;
            // What can't be told is taken for data.
            let all = Some(at..end);
            let found = if asked > RANGES_MAX { all } else { medium.next_data(at).unwrap_or(all) };
            let Some(data) = found else { break };
            let (first, behind) = (data.start.max(at), data.end.min(end));
            if first < behind {
                let chunk = |byte: u64| extent.first_chunk + ((byte - extent.at) / CHUNK_BYTES) as u32;
                note(chunk(first)..chunk(behind - 1) + 1);
            }
            at = data.end.max(at + 1);
        }
    }
}

impl PoolShard {
    /// Begins a punch, if it is time. Whether there is more to do at once.
    pub(super) fn punch_turn(&mut self) -> bool {
        let Some(wait) = self.puncher.wait else { return false };
        let (now, begun) = (self.now, self.epochs.next());
        let puncher = &mut *self.puncher;
        if begun != puncher.begun || !self.tasks.is_empty() {
            (puncher.busy_at, puncher.begun) = (now, begun);
        }
        if now < puncher.look_at || puncher.out >= PUNCHES_MAX {
            return false;
        }
        let is_idle = now.since(puncher.busy_at) >= wait;
        let is_due = is_idle || now.since(puncher.last_at) >= wait * BUSY_WAITS;
        let parts = now.since(puncher.freed_at) >= wait * PART_WAITS;
        if !is_due || self.broken.is_some() || self.is_stopping() {
            return false;
        }
        let Some((first, chunks)) = self.space.next_stale(parts, LOOKS_A_TURN) else {
            self.puncher.look_at = now + wait;
            return false;
        };
        let chunks = self.neighbours(first, chunks);
        let (member, at) = self.chunk_at(first);
        if !self.devices.members[usize::from(member)].punch || self.puncher.unable.contains(&member) {
            self.space.begin_punch(first, chunks, false);
            return is_idle;
        }
        let hold = !self.breaks(Rule::ReuseAfterPunch);
        let chunks = chunks.min(self.promises.half_of_free());
        if chunks == 0 {
            // It will be written to soon, or is set aside to be.
            self.puncher.look_at = now + wait;
            return false;
        }
        if hold {
            if !self.promises.claim(i64::from(chunks)) {
                self.puncher.look_at = now + wait;
                return false;
            }
            // Who finds the pool full meanwhile waits for them.
            self.promises.pending.fetch_add(i64::from(chunks), Ordering::AcqRel);
            self.puncher.held_chunks += u64::from(chunks);
        }
        self.space.begin_punch(first, chunks, hold);
        self.puncher.out += 1;
        self.puncher.last_at = now;
        let bytes = u64::from(chunks) * CHUNK_BYTES;
        self.issue(User::Punch(first, chunks as u8), member, DiskAction::PunchHole, at, bytes, None, 0);
        is_idle && self.puncher.out < PUNCHES_MAX
    }

    /// How many of these chunks stand one behind the other on one member.
    fn neighbours(&self, first: Chunk, chunks: u32) -> u32 {
        let (member, at) = self.chunk_at(first);
        let follows =
            |nth: &u32| self.chunk_at(Chunk(first.0 + nth)) == (member, at + u64::from(*nth) * CHUNK_BYTES);
        1 + (1..chunks).take_while(follows).count() as u32
    }

    /// A punch has come back, well or not: the chunks may be used again.
    pub(super) fn punched(&mut self, first: Chunk, chunks: u8, member: u16, result: Result<(), IoError>) {
        self.puncher.out -= 1;
        match result {
            Ok(()) => self.counts.punched_bytes += u64::from(chunks) * CHUNK_BYTES,
            Err(IoError::OutOfSpace) => {
                // A hole may take a block to say where it is. Later, perhaps.
                self.space.note_stale(first.0..first.0 + u32::from(chunks));
                self.puncher.look_at = self.now + self.puncher.wait.unwrap_or_default() * PART_WAITS;
            }
            Err(error) => {
                if !self.puncher.unable.contains(&member) {
                    tracing::warn!(
                        pool = %self.superblock.name, core = self.core.0, member, ?error,
                        "free space can't be given back to what is below the pool: it stays as it is"
                    );
                    self.puncher.unable.push(member);
                }
            }
        }
        if self.breaks(Rule::ReuseAfterPunch) {
            return;
        }
        let chunks = u32::from(chunks);
        self.puncher.held_chunks -= u64::from(chunks);
        self.space.end_punch(first, chunks);
        self.promises.give(i64::from(chunks));
        self.promises.pending.fetch_sub(i64::from(chunks), Ordering::AcqRel);
    }
}
