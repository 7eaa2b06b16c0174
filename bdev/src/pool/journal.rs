//! One core's journal: records gather while commits are on their way, and go with the next.
//!
//! A ring of blocks on member 0, each sealed by itself. Up to [`COMMITS_MAX`] commits are under way at a time; what counts,
//! now and after a crash, is the longest whole prefix, so one that is written before an earlier one waits for it. Before a
//! commit the members are flushed if they have data that are not durable and that one of its records may name.
//!
//! A second commit at a time costs a block for few records, but spares them half the wait: with one, a record waits half a
//! commit's time on average before its own begins.
//!
//! Invariant: `pending` has whole blocks, the last of them open; `ends[i]` is the number of the last record in block `i`.

use super::format::{JOURNAL_BLOCK_BYTES, JOURNAL_HEAD_BYTES, JournalHead};
use reactor::buf::{BUF_BYTES_MAX, Buf};
use std::collections::VecDeque;

/// The longest record.
pub const RECORD_BYTES_MAX: usize = JOURNAL_BLOCK_BYTES - JOURNAL_HEAD_BYTES - 2;

/// Commits of a core that are under way at a time. Part of the format: a damaged journal is told from one that a crash cut
/// by it.
pub const COMMITS_MAX: usize = 2;

/// Records that are worth a commit beside another.
const RECORDS_BESIDE: u64 = 12;

/// What goes to the disk next for the journal.
#[derive(Debug)]
pub struct Commit {
    /// Its first block's position.
    pub position: u64,
    /// Where on member 0.
    pub at: u64,
    /// Sealed blocks.
    pub buf: Buf,
}

#[derive(Clone, Copy, Debug)]
struct UnderWay {
    position: u64,
    blocks: u64,
    last_record: u64,
    is_written: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Journal {
    tag: u64,
    layout: u32,
    core: u16,
    generation: u64,
    /// Where the ring is, and its blocks.
    at: u64,
    blocks: u64,
    /// The first position that is not durable.
    head: u64,
    /// The first that a replay needs.
    tail: u64,
    pending: Vec<u8>,
    ends: VecDeque<u64>,
    /// Bytes of records in the open block.
    open_used: usize,
    appended: u64,
    durable: u64,
    /// In order; the first is not written.
    under_way: VecDeque<UnderWay>,
    bufs: Vec<Buf>,
    /// Somebody waits for a commit.
    pub wanted: bool,
}

impl Journal {
    /// A journal that goes on at `head`, with [`COMMITS_MAX`] buffers.
    #[allow(clippy::too_many_arguments, reason = "facts, each once")]
    pub fn new(
        tag: u64,
        layout: u32,
        core: u16,
        generation: u64,
        ring: (u64, u64),
        tail: u64,
        head: u64,
        bufs: Vec<Buf>,
    ) -> Journal {
        Journal {
            tag,
            layout,
            core,
            generation,
            at: ring.0,
            blocks: ring.1,
            head,
            tail,
            pending: Vec::new(),
            ends: VecDeque::new(),
            open_used: 0,
            appended: 0,
            durable: 0,
            under_way: VecDeque::with_capacity(COMMITS_MAX),
            bufs,
            wanted: false,
        }
    }

    /// Takes a record; its number.
    ///
    /// # Panics
    /// When it is longer than [`RECORD_BYTES_MAX`].
    pub fn append(&mut self, record: &[u8]) -> u64 {
        assert!(record.len() <= RECORD_BYTES_MAX);
        let need = record.len() + 2;
        if self.ends.is_empty() || self.open_used + need > JOURNAL_BLOCK_BYTES - JOURNAL_HEAD_BYTES {
            self.pending.resize(self.pending.len() + JOURNAL_BLOCK_BYTES, 0);
            self.ends.push_back(0);
            self.open_used = 0;
        }
        let start = self.pending.len() - JOURNAL_BLOCK_BYTES;
        let at = start + JOURNAL_HEAD_BYTES + self.open_used;
        self.pending[at..at + 2].copy_from_slice(&(record.len() as u16).to_le_bytes());
        self.pending[at + 2..at + need].copy_from_slice(record);
        self.open_used += need;
        // The head's place holds how much is used until the block is sealed.
        self.pending[start..start + 2].copy_from_slice(&(self.open_used as u16).to_le_bytes());
        self.appended += 1;
        if let Some(end) = self.ends.back_mut() {
            *end = self.appended;
        }
        self.appended
    }

    /// The number of the last record taken.
    pub fn appended(&self) -> u64 {
        self.appended
    }

    /// Records up to this one are durable.
    pub fn durable(&self) -> u64 {
        self.durable
    }

    /// Whether a commit is on its way.
    pub fn is_busy(&self) -> bool {
        !self.under_way.is_empty()
    }

    /// Whether what is pending is worth a commit now.
    pub fn is_ripe(&self) -> bool {
        let taken = self.under_way.back().map_or(self.durable, |last| last.last_record);
        let pending = self.appended - taken;
        pending >= if self.is_busy() { RECORDS_BESIDE } else { 1 }
    }

    /// The first position that no commit has.
    fn next(&self) -> u64 {
        self.under_way.back().map_or(self.head, |last| last.position + last.blocks)
    }

    /// Whether there is something to commit.
    pub fn has_pending(&self) -> bool {
        !self.ends.is_empty()
    }

    /// The next commit, of records up to `limit`, unless as many as may be are under way or the ring is full.
    pub fn commit(&mut self, limit: u64) -> Option<Commit> {
        if self.ends.is_empty() {
            return None;
        }
        let position = self.next();
        let room = self.blocks - (position - self.tail);
        let to_end = self.blocks - position % self.blocks;
        let most = (BUF_BYTES_MAX / JOURNAL_BLOCK_BYTES) as u64;
        let within = self.ends.partition_point(|&end| end <= limit) as u64;
        let count = within.min(room).min(to_end).min(most);
        if count == 0 {
            return None;
        }
        let mut buf = self.bufs.pop()?;
        let bytes = count as usize * JOURNAL_BLOCK_BYTES;
        buf.set_len(bytes);
        buf.copy_from_slice(&self.pending[..bytes]);
        self.pending.drain(..bytes);
        let mut last = 0;
        for (block, position) in buf.chunks_exact_mut(JOURNAL_BLOCK_BYTES).zip(position..) {
            let used = u16::from_le_bytes([block[0], block[1]]);
            let head = JournalHead { generation: self.generation, position, used };
            head.seal(self.tag, self.layout, self.core, block);
            last = self.ends.pop_front().unwrap_or(last);
        }
        self.under_way.push_back(UnderWay { position, blocks: count, last_record: last, is_written: false });
        let at = self.at + position % self.blocks * JOURNAL_BLOCK_BYTES as u64;
        Some(Commit { position, at, buf })
    }

    /// The commit that begins at `position` has ended well; its records are durable when all before it have, too.
    /// `in_order`: false only where a test breaks that.
    pub fn committed(&mut self, position: u64, buf: Buf, in_order: bool) {
        self.bufs.push(buf);
        for commit in &mut self.under_way {
            if commit.position == position {
                commit.is_written = true;
                if !in_order {
                    self.durable = self.durable.max(commit.last_record);
                }
            }
        }
        while let Some(&first) = self.under_way.front()
            && first.is_written
        {
            self.durable = self.durable.max(first.last_record);
            self.head += first.blocks;
            self.under_way.pop_front();
        }
    }

    /// A commit has failed: nothing that is not durable ever is.
    pub fn failed(&mut self, buf: Buf) {
        self.bufs.push(buf);
    }

    /// The position from which on a replay has what was not appended yet: where a checkpoint begins. The open block is
    /// closed, so that what comes now stands behind it.
    pub fn cut(&mut self) -> u64 {
        self.open_used = JOURNAL_BLOCK_BYTES;
        self.next() + self.ends.len() as u64
    }

    /// The opening that its blocks say they are of.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// A checkpoint has all before `position`.
    pub fn forget_before(&mut self, position: u64) {
        debug_assert!(position >= self.tail && position <= self.head);
        self.tail = position;
    }

    /// How full the ring is, with what is pending, in percent.
    pub fn full_percent(&self) -> u64 {
        (self.blocks - self.room()) * 100 / self.blocks
    }

    /// Blocks of the ring.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Blocks of it that nothing is in or about to be.
    pub fn room(&self) -> u64 {
        let used = self.next() - self.tail + self.ends.len() as u64;
        self.blocks.saturating_sub(used)
    }
}
