//! Chunks: which are free, how often each is named, and what is promised.
//!
//! Each core counts the chunks of the clusters that it owns (4 MiB of the pool each, dealt like stripes). Counts are never
//! on the medium: they are what the maps say, added up at open. A chunk's count is how many slots name it, plus one for
//! each message or write under way that holds it.
//!
//! What is promised is one number for the whole pool, [`Promises`]: claimed before a chunk is looked for, so that a
//! claim that went through finds one, here or with another core.

use super::slot::{CHUNK_BYTES, Chunk, SLOT_BLOCKS};
use crate::stripe::{Deal, STRIPE_BYTES};
use reactor::Core;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

/// Chunks of a cluster.
pub const CLUSTER_CHUNKS: u32 = (STRIPE_BYTES / CHUNK_BYTES) as u32;

const _: () = assert!(CLUSTER_CHUNKS == 64);

/// Clusters of a window, usually: what a walk has a table for at a time, 32 GiB of a core's own.
pub const WINDOW_CLUSTERS: u32 = 8192;

/// The most chunks that are kept for heartbeats: 8 hosts with 4,096 locks each, and 16 blocks to a chunk. As many do whether
/// the locks lie one beside the other, where those of a slot share its new chunk, or each by itself, where they share
/// fragment chunks.
pub const HEARTBEAT_CHUNKS_MAX: i64 = 8 * 4096 / SLOT_BLOCKS as i64;

/// Of a small pool no more than this part is kept for heartbeats.
pub const HEARTBEAT_SHARE: i64 = 64;

/// How many of a pool's chunks are kept for heartbeats.
pub fn heartbeat_chunks(chunks: u32) -> i64 {
    (i64::from(chunks) / HEARTBEAT_SHARE).min(HEARTBEAT_CHUNKS_MAX)
}

/// What all cores draw on. Everything is in chunks.
///
/// The heartbeats' own is no number beside the others but the last of `unpromised`, which only they may claim: so it is
/// filled up before anybody else gets anything, by whoever gives, and two who give at once can't overfill it.
#[derive(Debug, Default)]
pub struct Promises {
    /// Free chunks that are promised to nobody, the heartbeats' own among them. Below zero for a moment where a reservation
    /// was taken before the chunk that it stands for came back.
    pub unpromised: AtomicI64,
    /// Set aside for thick volumes.
    pub reserved: AtomicI64,
    /// How many of `unpromised` are the heartbeats' own, if there are as many.
    pub heartbeat: AtomicI64,
    /// Names that were dropped but still wait for their record, or for a core to hear of them.
    pub pending: AtomicI64,
    /// A core takes no more writes: what it gave up does not come back before the pool is opened again.
    pub broken: AtomicBool,
}

impl Promises {
    /// Takes `chunks` from what is promised to nobody; all or nothing.
    pub fn claim(&self, chunks: i64) -> bool {
        self.claim_above(chunks, self.heartbeat.load(Ordering::Acquire))
    }

    /// How many chunks may be taken out of what is free for a while: half of it, with what has been taken out before.
    pub fn half_of_free(&self) -> u32 {
        let free = self.unpromised.load(Ordering::Acquire) - self.heartbeat.load(Ordering::Acquire);
        let pending = self.pending.load(Ordering::Acquire);
        u32::try_from((free - pending) / 2).unwrap_or(0)
    }

    /// Takes one chunk from the heartbeats' own.
    pub fn claim_heartbeat(&self) -> bool {
        self.claim_above(1, 0)
    }

    fn claim_above(&self, chunks: i64, kept: i64) -> bool {
        self.unpromised
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |free| {
                (free - chunks >= kept).then_some(free - chunks)
            })
            .is_ok()
    }

    /// Gives back what was claimed, or a chunk that became free.
    pub fn give(&self, chunks: i64) {
        self.unpromised.fetch_add(chunks, Ordering::AcqRel);
    }

    /// Reserves `chunks` for a thick volume; all or nothing.
    pub fn reserve(&self, chunks: i64) -> bool {
        let claimed = self.claim(chunks);
        if claimed {
            self.reserved.fetch_add(chunks, Ordering::AcqRel);
        }
        claimed
    }

    /// Gives a reservation up.
    pub fn unreserve(&self, chunks: i64) {
        self.reserved.fetch_sub(chunks, Ordering::AcqRel);
        self.give(chunks);
    }

    /// A chunk is written out of a reservation.
    pub fn use_reserved(&self, chunks: i64) {
        self.reserved.fetch_sub(chunks, Ordering::AcqRel);
    }

    /// A thick volume's chunk is shared or gone: the next write will need one again.
    pub fn reserve_again(&self, chunks: i64) {
        self.reserved.fetch_add(chunks, Ordering::AcqRel);
        self.unpromised.fetch_sub(chunks, Ordering::AcqRel);
    }

    /// How many anybody may claim.
    pub fn free(&self) -> i64 {
        self.unpromised.load(Ordering::Acquire) - self.heartbeat.load(Ordering::Acquire)
    }

    /// What is left of the heartbeats' own.
    pub fn heartbeat_left(&self) -> i64 {
        self.unpromised.load(Ordering::Acquire).clamp(0, self.heartbeat.load(Ordering::Acquire))
    }
}

/// 64 chunks. All that are named are named once, unless there are `counts`.
#[derive(Debug, Default)]
struct Cluster {
    used: u64,
    counts: Option<Box<[u32; CLUSTER_CHUNKS as usize]>>,
}

/// So many bits from one on.
fn mask_of(bit: u32, chunks: u32) -> u64 {
    debug_assert!(chunks >= 1 && bit + chunks <= CLUSTER_CHUNKS);
    u64::MAX >> (CLUSTER_CHUNKS - chunks) << bit
}

/// A set of small numbers that finds its next member fast.
#[derive(Debug, Default)]
struct Set {
    words: Vec<u64>,
    /// A bit a word that isn't zero.
    summary: Vec<u64>,
}

impl Set {
    fn resize(&mut self, length: usize) {
        self.words.resize(length.div_ceil(64), 0);
        self.summary.resize(self.words.len().div_ceil(64), 0);
    }

    fn set(&mut self, index: usize, member: bool) {
        let word = &mut self.words[index / 64];
        if member {
            *word |= 1 << (index % 64);
        } else {
            *word &= !(1 << (index % 64));
        }
        let bit = 1 << (index / 64 % 64);
        if *word == 0 {
            self.summary[index / 64 / 64] &= !bit;
        } else {
            self.summary[index / 64 / 64] |= bit;
        }
    }

    /// The first member from `from` on, round the end.
    fn next(&self, from: usize) -> Option<usize> {
        self.next_before_end(from).or_else(|| self.next_before_end(0))
    }

    fn next_before_end(&self, from: usize) -> Option<usize> {
        let word = from / 64;
        let rest = self.words.get(word)? & (u64::MAX << (from % 64));
        if rest != 0 {
            return Some(word * 64 + rest.trailing_zeros() as usize);
        }
        let (mut group, mut mask) = ((word + 1) / 64, u64::MAX << ((word + 1) % 64));
        while let Some(summary) = self.summary.get(group) {
            let found = summary & mask;
            if found != 0 {
                let word = group * 64 + found.trailing_zeros() as usize;
                return Some(word * 64 + self.words[word].trailing_zeros() as usize);
            }
            (group, mask) = (group + 1, u64::MAX);
        }
        None
    }
}

/// Free chunks where data may stand that nobody needs.
#[derive(Debug, Default)]
struct Stale {
    /// By cluster; what is used is no longer meant.
    chunks: Vec<u64>,
    /// Clusters that may have some.
    clusters: Set,
    cursor: usize,
}

/// One core's chunks.
#[derive(Debug)]
pub struct Space {
    core: Core,
    deal: Deal,
    chunks: u32,
    clusters: Vec<Cluster>,
    /// Local cluster → the pool's cluster.
    numbers: Vec<u32>,
    /// Clusters where nothing is used.
    empty: Set,
    /// Clusters where something is free.
    partial: Set,
    /// Free chunks here.
    free: u64,
    cursor: usize,
    /// Memory for counts.
    memory_bytes: u64,
    window_clusters: u32,
    /// Clusters of each window in which something is named twice.
    shared: Vec<u32>,
    /// Grows whenever something is named once more or once less.
    pub(super) changes: u64,
    /// `None`: nobody wants to know.
    stale: Option<Box<Stale>>,
    /// A chunk with more names than this is not to be shared further.
    pub(super) names_max: u32,
}

impl Space {
    /// The chunks of a pool with `chunks` chunks that `core` owns; all free.
    pub fn new(core: Core, deal: Deal, chunks: u32) -> Space {
        let mut space = Space {
            core,
            deal,
            chunks: 0,
            clusters: Vec::new(),
            numbers: Vec::new(),
            empty: Set::default(),
            partial: Set::default(),
            free: 0,
            cursor: 0,
            memory_bytes: 0,
            window_clusters: WINDOW_CLUSTERS,
            shared: Vec::new(),
            changes: 0,
            stale: None,
            names_max: super::NAMES_MAX,
        };
        space.extend(chunks);
        space
    }

    /// The pool has `chunks` chunks from now on.
    pub fn extend(&mut self, chunks: u32) {
        let first = self.chunks / CLUSTER_CHUNKS;
        let end = chunks.div_ceil(CLUSTER_CHUNKS);
        let before = self.chunks;
        self.chunks = chunks;
        for number in first..end {
            if self.deal.owner(u64::from(number) * STRIPE_BYTES) != self.core {
                continue;
            }
            let local = self.deal.local_stripe(u64::from(number) * STRIPE_BYTES) as usize;
            if local == self.clusters.len() {
                self.clusters.push(Cluster { used: u64::MAX, counts: None });
                self.numbers.push(number);
                self.empty.resize(local + 1);
                self.partial.resize(local + 1);
            }
            // What is past the end is used for ever.
            let there = (chunks - number * CLUSTER_CHUNKS).min(CLUSTER_CHUNKS);
            let known = before.saturating_sub(number * CLUSTER_CHUNKS).min(CLUSTER_CHUNKS);
            for bit in known..there {
                self.clusters[local].used &= !(1 << bit);
                self.free += 1;
            }
            self.note(local);
        }
        if let Some(stale) = &mut self.stale {
            stale.chunks.resize(self.clusters.len(), 0);
            stale.clusters.resize(self.clusters.len());
        }
        self.shared.resize(self.clusters.len().div_ceil(self.window_clusters as usize), 0);
    }

    /// Who counts a chunk.
    #[inline]
    pub fn owner(&self, chunk: Chunk) -> Core {
        self.deal.owner(u64::from(chunk.0) * CHUNK_BYTES)
    }

    /// Free chunks of this core.
    pub fn free(&self) -> u64 {
        self.free
    }

    /// Memory that it takes.
    pub fn memory_bytes(&self) -> u64 {
        self.memory_bytes + (self.clusters.len() * (size_of::<Cluster>() + 4)) as u64
    }

    fn local(&self, chunk: Chunk) -> (usize, u32) {
        debug_assert_eq!(self.owner(chunk), self.core);
        let local = self.deal.local_stripe(u64::from(chunk.0) * CHUNK_BYTES) as usize;
        (local, chunk.0 % CLUSTER_CHUNKS)
    }

    fn note(&mut self, local: usize) {
        let used = self.clusters[local].used;
        self.partial.set(local, used != u64::MAX);
        let whole = used == 0;
        self.empty.set(local, whole);
    }

    /// How often a chunk of this core is named.
    pub fn count(&self, chunk: Chunk) -> u32 {
        let (local, bit) = self.local(chunk);
        let cluster = &self.clusters[local];
        match &cluster.counts {
            Some(counts) => counts[bit as usize],
            None => (cluster.used >> bit & 1) as u32,
        }
    }

    /// Windows have so many clusters from now on.
    pub(super) fn set_window(&mut self, clusters: u32) {
        self.window_clusters = clusters.max(1);
        let windows = self.clusters.chunks(self.window_clusters as usize);
        self.shared = windows
            .map(|window| window.iter().filter(|cluster| cluster.counts.is_some()).count() as u32)
            .collect();
    }

    /// How often each chunk of this one's cluster is named; `None`: none more than once.
    pub(super) fn counts_at(&self, chunk: Chunk) -> Option<&[u32; CLUSTER_CHUNKS as usize]> {
        let (local, _) = self.local(chunk);
        self.clusters[local].counts.as_deref()
    }

    /// The window of a chunk of any core, and its place there.
    pub(super) fn window_of(&self, chunk: Chunk) -> (u32, usize) {
        let local = self.deal.local_stripe(u64::from(chunk.0) * CHUNK_BYTES) as u32;
        let place = local % self.window_clusters * CLUSTER_CHUNKS + chunk.0 % CLUSTER_CHUNKS;
        (local / self.window_clusters, place as usize)
    }

    /// Windows of this core in which something is named more than once.
    pub(super) fn shared_windows(&self) -> impl Iterator<Item = u32> {
        (0u32..).zip(&self.shared).filter(|&(_, &clusters)| clusters > 0).map(|(window, _)| window)
    }

    /// Chunks of a window of this core, those past its end included.
    pub(super) fn window_chunks(&self, window: u32) -> usize {
        let clusters = self.clusters.len().saturating_sub((window * self.window_clusters) as usize);
        clusters.min(self.window_clusters as usize) * CLUSTER_CHUNKS as usize
    }

    /// Whether it can be a chunk of this pool.
    pub fn is_chunk(&self, chunk: Chunk) -> bool {
        chunk.0 < self.chunks
    }

    /// One more names it. False: it counts, but that is more than [`OpenOptions::names_max`]; who has a choice doesn't share.
    ///
    /// [`OpenOptions::names_max`]: super::open::OpenOptions::names_max
    pub fn increment(&mut self, chunk: Chunk) -> bool {
        let (local, bit) = self.local(chunk);
        self.changes += 1;
        let cluster = &mut self.clusters[local];
        if cluster.used >> bit & 1 == 0 {
            cluster.used |= 1 << bit;
            if let Some(counts) = &mut cluster.counts {
                counts[bit as usize] = 1;
            }
            self.free -= 1;
            self.note(local);
            return true;
        }
        let names_max = self.names_max;
        let count = &mut self.counts_of(local)[bit as usize];
        *count = count.saturating_add(1);
        *count <= names_max
    }

    /// The counts of a cluster, which has some from now on.
    fn counts_of(&mut self, local: usize) -> &mut [u32; CLUSTER_CHUNKS as usize] {
        let cluster = &mut self.clusters[local];
        let (used, memory) = (cluster.used, &mut self.memory_bytes);
        let shared = &mut self.shared[local / self.window_clusters as usize];
        cluster.counts.get_or_insert_with(|| {
            *memory += size_of::<[u32; CLUSTER_CHUNKS as usize]>() as u64;
            *shared += 1;
            Box::new(std::array::from_fn(|bit| (used >> bit & 1) as u32))
        })
    }

    /// One more names it: [`Space::increment`] for the many names of an opening. [`Space::counted`] ends that.
    #[inline]
    pub fn count_at_open(&mut self, chunk: Chunk) {
        let (local, bit) = self.local(chunk);
        let cluster = &mut self.clusters[local];
        if cluster.used >> bit & 1 == 0 {
            cluster.used |= 1 << bit;
            if let Some(counts) = &mut cluster.counts {
                counts[bit as usize] = 1;
            }
        } else {
            self.increment_run(chunk, 1);
        }
    }

    /// Finds out what is free behind [`Space::count_at_open`].
    pub fn counted(&mut self) {
        self.free = self.clusters.iter().map(|cluster| u64::from(cluster.used.count_zeros())).sum();
        (0..self.clusters.len()).for_each(|local| self.note(local));
    }

    /// Whether a chunk that is named is named once.
    #[inline]
    pub fn is_named_once(&self, chunk: Chunk) -> bool {
        let (local, bit) = self.local(chunk);
        self.clusters[local].counts.as_ref().is_none_or(|counts| counts[bit as usize] == 1)
    }

    /// One more names each of `count` neighbours, all of this core and named already. False: as [`Space::increment`], of
    /// any of them.
    pub fn increment_run(&mut self, first: Chunk, count: u32) -> bool {
        let (names_max, mut within) = (self.names_max, true);
        let (mut at, end) = (first.0, first.0 + count);
        while at < end {
            let (local, bit) = self.local(Chunk(at));
            let many = (CLUSTER_CHUNKS - bit).min(end - at);
            let used = self.clusters[local].used;
            debug_assert!((bit..bit + many).all(|bit| used >> bit & 1 == 1));
            self.changes += u64::from(many);
            for count in &mut self.counts_of(local)[bit as usize..(bit + many) as usize] {
                *count = count.saturating_add(1);
                within &= *count <= names_max;
            }
            at += many;
        }
        within
    }

    /// One less names it. True: it is free now.
    ///
    /// # Panics
    /// When nobody names it: a name was given up twice.
    pub fn decrement(&mut self, chunk: Chunk) -> bool {
        let (local, bit) = self.local(chunk);
        self.changes += 1;
        let cluster = &mut self.clusters[local];
        assert!(cluster.used >> bit & 1 == 1, "chunk {} is given up by nobody", chunk.0);
        if let Some(counts) = &mut cluster.counts {
            if counts[bit as usize] == u32::MAX {
                // Nobody knows any more how many there are: it stays until the next opening counts.
                return false;
            }
            counts[bit as usize] -= 1;
            if counts[bit as usize] > 0 {
                if counts.iter().all(|&count| count <= 1) {
                    cluster.counts = None;
                    self.memory_bytes -= size_of::<[u32; CLUSTER_CHUNKS as usize]>() as u64;
                    self.shared[local / self.window_clusters as usize] -= 1;
                }
                return false;
            }
        }
        cluster.used &= !(1 << bit);
        self.free += 1;
        self.note(local);
        if let Some(stale) = &mut self.stale {
            stale.chunks[local] |= 1 << bit;
            stale.clusters.set(local, true);
        }
        true
    }

    /// From now on it is remembered where data may stand that nobody needs.
    pub(super) fn watch_stale(&mut self) {
        let mut stale = Stale { chunks: vec![0; self.clusters.len()], ..Stale::default() };
        stale.clusters.resize(self.clusters.len());
        self.stale = Some(Box::new(stale));
    }

    /// Data stand in these chunks of any core.
    pub(super) fn note_stale(&mut self, chunks: std::ops::Range<u32>) {
        let mut from = chunks.start;
        while from < chunks.end {
            let end = (from / CLUSTER_CHUNKS + 1) * CLUSTER_CHUNKS;
            if self.owner(Chunk(from)) == self.core {
                let (local, bit) = self.local(Chunk(from));
                let mask = mask_of(bit, end.min(chunks.end) - from);
                if let Some(stale) = &mut self.stale {
                    stale.chunks[local] |= mask;
                    stale.clusters.set(local, true);
                }
            }
            from = end;
        }
    }

    /// Free chunks behind each other where data may stand: in a cluster that is free as a whole, or with `parts` in any. Looks
    /// at `looks` clusters at most.
    pub(super) fn next_stale(&mut self, parts: bool, looks: u32) -> Option<(Chunk, u32)> {
        let stale = self.stale.as_mut()?;
        for _ in 0..looks {
            let local = stale.clusters.next(stale.cursor)?;
            stale.cursor = local;
            let used = self.clusters[local].used;
            let there = stale.chunks[local] & !used;
            let first = self.numbers[local] * CLUSTER_CHUNKS;
            if there == 0 {
                // They are in use again; when they are free once more they come back.
                stale.clusters.set(local, false);
            } else if used == 0 {
                // What is a hole already costs nothing, and one operation does for all.
                let bit = there.trailing_zeros();
                return Some((Chunk(first + bit), CLUSTER_CHUNKS - bit));
            } else if parts {
                let bit = there.trailing_zeros();
                return Some((Chunk(first + bit), (there >> bit).trailing_ones()));
            } else {
                stale.cursor = local + 1;
            }
        }
        None
    }

    /// Nothing stands there any more, or nobody wants to know. With `hold` they are not free until
    /// [`Space::end_punch`].
    pub(super) fn begin_punch(&mut self, first: Chunk, chunks: u32, hold: bool) {
        let (local, bit) = self.local(first);
        let mask = mask_of(bit, chunks);
        if let Some(stale) = &mut self.stale {
            stale.chunks[local] &= !mask;
        }
        if hold {
            debug_assert_eq!(self.clusters[local].used & mask, 0, "only what is free is punched");
            self.clusters[local].used |= mask;
            self.free -= u64::from(chunks);
            self.note(local);
        }
    }

    /// They are free again.
    pub(super) fn end_punch(&mut self, first: Chunk, chunks: u32) {
        let (local, bit) = self.local(first);
        self.clusters[local].used &= !mask_of(bit, chunks);
        self.free += u64::from(chunks);
        self.note(local);
    }

    /// Takes a free chunk, with a count of one: behind `after` if it is given and that one is free, otherwise at
    /// `place` of a cluster where nothing is used yet, otherwise wherever.
    pub fn take(&mut self, near: Option<Chunk>, place: u32) -> Option<Chunk> {
        if self.free == 0 {
            return None;
        }
        if let Some(near) = near.filter(|&near| self.is_chunk(near) && self.owner(near) == self.core) {
            let (local, bit) = self.local(near);
            if self.clusters[local].used >> bit & 1 == 0 {
                return Some(self.take_at(local, bit));
            }
        }
        if let Some(local) = self.empty.next(self.cursor) {
            self.cursor = local;
            return Some(self.take_at(local, place % CLUSTER_CHUNKS));
        }
        let local = self.partial.next(self.cursor)?;
        self.cursor = local;
        let bit = (!self.clusters[local].used).trailing_zeros();
        Some(self.take_at(local, bit))
    }

    fn take_at(&mut self, local: usize, bit: u32) -> Chunk {
        let chunk = Chunk(self.numbers[local] * CLUSTER_CHUNKS + bit);
        self.increment(chunk);
        chunk
    }

    /// Every chunk of this core that is named, with its count.
    pub fn iter(&self) -> impl Iterator<Item = (Chunk, u32)> {
        self.clusters.iter().zip(&self.numbers).flat_map(move |(cluster, &number)| {
            (0..CLUSTER_CHUNKS)
                .filter(move |bit| {
                    cluster.used >> bit & 1 == 1 && number * CLUSTER_CHUNKS + bit < self.chunks
                })
                .map(move |bit| {
                    let count = cluster.counts.as_ref().map_or(1, |counts| counts[bit as usize]);
                    (Chunk(number * CLUSTER_CHUNKS + bit), count)
                })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// In the list: on its way to be a hole.
    const PUNCHED: u32 = u32::MAX;

    /// Goal: the last chunks are the heartbeats' and nobody else's, and what is given is theirs first, also when many give and
    /// claim at once; a debt comes before them. Method: threads, and then what each of them could know.
    #[test]
    fn the_last_chunks_are_the_heartbeats() {
        let promises = Promises::default();
        promises.heartbeat.store(3, Ordering::Release);
        promises.give(5);
        assert!(promises.claim(2) && !promises.claim(1) && !promises.reserve(1));
        assert_eq!((promises.free(), promises.heartbeat_left()), (0, 3));
        assert!((0..3).all(|_| promises.claim_heartbeat()) && !promises.claim_heartbeat());
        promises.reserve_again(1);
        promises.give(1);
        assert_eq!(promises.heartbeat_left(), 0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..1000 {
                        promises.give(1);
                        if promises.claim(1) {
                            promises.give(1);
                        }
                        assert!(promises.claim_heartbeat());
                        assert!(promises.heartbeat_left() <= 3);
                    }
                });
            }
        });
        assert_eq!(promises.heartbeat_left(), 0);
        promises.give(4);
        assert_eq!((promises.free(), promises.heartbeat_left()), (1, 3));
        assert_eq!([63, 64, 131_071, 131_072, u32::MAX].map(heartbeat_chunks), [0, 1, 2047, 2048, 2048]);
    }

    proptest! {
        /// Goal: counts and free chunks are those of a plain list, on each of three cores, also when the pool grows;
        /// nothing past its end is ever taken, and nothing that is being punched; what was free once or held data is
        /// punched in the end. Method: random steps.
        #[test]
        fn counts_like_a_list(steps in prop::collection::vec((0u8..9, any::<prop::sample::Index>()), 1..300)) {
            let deal = Deal::among(3);
            let mut chunks = 70u32;
            for core in (0..3).map(Core) {
                let mut space = Space::new(core, deal, chunks);
                let mut list: Vec<u32> = vec![0; 1000];
                let mut punches: Vec<(Chunk, u32)> = Vec::new();
                let mut stale: Vec<bool> = vec![false; 1000];
                space.watch_stale();
                space.note_stale(3..50);
                stale[3..50].fill(true);
                let owned = |n: u32| deal.owner(u64::from(n) * CHUNK_BYTES) == core;
                for &(what, pick) in &steps {
                    let named: Vec<u32> = (0..chunks).filter(|&n| ![0, PUNCHED].contains(&list[n as usize])).collect();
                    match what {
                        0 | 1 => match space.take(Some(Chunk(pick.index(100) as u32)), pick.index(64) as u32) {
                            Some(chunk) => {
                                prop_assert!(chunk.0 < chunks && owned(chunk.0));
                                prop_assert_eq!(list[chunk.0 as usize], 0);
                                list[chunk.0 as usize] = 1;
                            }
                            None => prop_assert!((0..chunks).all(|n| !owned(n) || list[n as usize] > 0)),
                        },
                        2 if !named.is_empty() => {
                            let n = named[pick.index(named.len())];
                            prop_assert!(space.increment(Chunk(n)));
                            list[n as usize] += 1;
                        }
                        3 if !named.is_empty() => {
                            let n = named[pick.index(named.len())];
                            list[n as usize] -= 1;
                            prop_assert_eq!(space.decrement(Chunk(n)), list[n as usize] == 0);
                            stale[n as usize] |= list[n as usize] == 0;
                        }
                        5 | 6 => if let Some((first, count)) = space.next_stale(what == 5, 8) {
                            space.begin_punch(first, count, true);
                            for n in first.0..first.0 + count {
                                prop_assert!(n < chunks && owned(n));
                                prop_assert_eq!(list[n as usize], 0);
                                (list[n as usize], stale[n as usize]) = (PUNCHED, false);
                            }
                            punches.push((first, count));
                        },
                        7 if !punches.is_empty() => {
                            let (first, count) = punches.swap_remove(pick.index(punches.len()));
                            space.end_punch(first, count);
                            list[first.0 as usize..(first.0 + count) as usize].fill(0);
                        }
                        8 if !named.is_empty() => {
                            let n = named[pick.index(named.len())];
                            let run = (n..n + 7).take_while(|n| named.contains(n)).count() as u32;
                            space.increment_run(Chunk(n), run);
                            list[n as usize..(n + run) as usize].iter_mut().for_each(|count| *count += 1);
                        }
                        4 if chunks < 900 => {
                            chunks += 33;
                            space.extend(chunks);
                        }
                        _ => {}
                    }
                    let free = (0..chunks).filter(|&n| owned(n) && list[n as usize] == 0).count();
                    prop_assert_eq!(space.free(), free as u64);
                }
                for (first, count) in punches {
                    space.end_punch(first, count);
                    list[first.0 as usize..(first.0 + count) as usize].fill(0);
                }
                for (chunk, count) in space.iter() {
                    prop_assert_eq!(list[chunk.0 as usize], count);
                }
                while let Some((first, count)) = space.next_stale(true, 64) {
                    space.begin_punch(first, count, false);
                    prop_assert!(stale[first.0 as usize]);
                    stale[first.0 as usize..(first.0 + count) as usize].fill(false);
                }
                prop_assert!(!(0..chunks).any(|n| owned(n) && stale[n as usize] && list[n as usize] == 0));
            }
        }
    }
}
