//! Checkpoints: what changed in the maps since the last one is written out beside requests, in small steps, so that the
//! journal before it can be forgotten.
//!
//! Images of nodes fill segments in order; a table's image says where its children's are, so children go first. An image
//! may be newer than the checkpoint's beginning: replaying the journal from there gives the same, since a record says
//! what a slot is and not how it changes. So a checkpoint is good only when every record that it may have seen is durable.
//!
//! Segments fill up with images that are out of date. Those with the least left are emptied by writing what is left
//! again. A segment that nothing needs any more is free when a checkpoint that began after that is durable.

use super::codec::{Writer, crc_of, write_slots};
use super::format::{
    HEADER_BYTES, Header, IMAGE_HEAD_BYTES, INDEX_SEGMENTS_MAX, SEGMENT_BYTES, Superblock, seal_image,
};
use super::map::{Home, LeafId, Map, RootId, TableId};
use super::rule::Rule;
use super::shard::{PoolShard, User};
use super::stage::Standing;
use crate::error::IoError;
use reactor::Core;
use reactor::buf::{BUF_BYTES_MAX, Buf};
use reactor::disk::DiskAction;
use std::collections::VecDeque;

/// A checkpoint begins when the journal is so full.
pub const CHECKPOINT_PERCENT: u64 = 40;
/// Nodes looked at, and written, in one turn.
const LOOKS_A_TURN: usize = 2048;
const IMAGES_A_TURN: usize = 64;
/// What the index takes for a root and for a segment.
const ROOT_BYTES: usize = 24;
const SEGMENT_ENTRY_BYTES: usize = 12;
/// Fewer free segments than this have others emptied, however few there are: a checkpoint takes two at least, and what it
/// empties is free when the next one has taken two more.
const FREE_MIN: usize = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Idle,
    /// Leaves, from this index on.
    Leaves(usize),
    /// Tables of this level, from this index on.
    Tables(u8, usize),
    /// The index is written, from this byte on.
    Index(usize),
    /// What was seen becomes durable, up to this record.
    Journal(u64),
    Sync,
    Header,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Checkpointer {
    phase: Phase,
    /// Checkpoints of this layout, the one under way included.
    number: u64,
    pub(super) ended: u64,
    /// Since the start.
    pub(super) wanted: bool,
    /// Not before it is known what is damaged: what is left of a map would be written out as if it were all.
    pub(super) held: bool,
    cut: u64,
    roots: Vec<RootId>,
    catalog: Vec<u8>,
    /// What each segment was last filled by; 0: free.
    sequences: Vec<u64>,
    mine: Vec<u32>,
    free: VecDeque<u32>,
    victims: Vec<u32>,
    /// Free when this one is durable.
    to_free: Vec<u32>,
    index_segments: Vec<u32>,
    new_index_segments: Vec<u32>,
    index: Vec<u8>,
    standing: Standing,
    /// The segment being filled, and how much of it is.
    filling: Option<(u32, usize)>,
    /// What is gathered for it: begins at `filling`'s offset.
    gathered: Vec<u8>,
    buf: Option<Buf>,
    pub(super) drops: Vec<(Core, u64, RootId)>,
    room: bool,
    /// About what images of all that there is take, as of the last look.
    all_bytes: u64,
    looks: u32,
    /// Segments that the index may take.
    index_most: u64,
    /// How full the journal is when one begins.
    begin_percent: u64,
}

/// What the last checkpoint says of a core's segments.
pub(super) struct OwnSegments {
    /// Those in use, each with the checkpoint that filled it last.
    pub(super) used: Vec<(u32, u64)>,
    /// Those of the index, which doesn't name them.
    pub(super) index: Vec<u32>,
    /// Those that would be this core's, but others use; ascending.
    pub(super) lent: Vec<u32>,
}

impl Checkpointer {
    pub(super) fn new(
        superblock: &Superblock,
        core: Core,
        number: u64,
        OwnSegments { used, index: index_segments, lent }: OwnSegments,
        buf: Buf,
        begin_percent: u64,
    ) -> Checkpointer {
        let mut sequences = vec![0; superblock.segments() as usize];
        for (segment, sequence) in used {
            sequences[segment as usize] = sequence;
        }
        // The index does not name its own segments, but needs them until there is another.
        for &segment in &index_segments {
            sequences[segment as usize] = number;
        }
        let is_mine = |segment: &u32| {
            let would_be = segment % u32::from(superblock.cores) == u32::from(core.0);
            sequences[*segment as usize] != 0 || would_be && lent.binary_search(segment).is_err()
        };
        let mine: Vec<u32> = (0..superblock.segments()).filter(is_mine).collect();
        let free = mine.iter().copied().filter(|&segment| sequences[segment as usize] == 0).collect();
        Checkpointer {
            phase: Phase::Idle,
            number,
            ended: 0,
            wanted: false,
            held: false,
            cut: 0,
            roots: Vec::new(),
            catalog: Vec::new(),
            sequences,
            mine,
            free,
            victims: Vec::new(),
            to_free: Vec::new(),
            index_segments,
            new_index_segments: Vec::new(),
            index: Vec::new(),
            standing: Standing::default(),
            filling: None,
            gathered: Vec::new(),
            buf: Some(buf),
            drops: Vec::new(),
            room: true,
            all_bytes: 0,
            looks: 0,
            index_most: 1,
            begin_percent,
        }
    }

    pub(super) fn is_running(&self) -> bool {
        self.phase != Phase::Idle
    }

    /// Whether maps may grow: their images have to fit three times.
    pub(super) fn has_room(&self, _: &Map) -> bool {
        self.room
    }

    fn look_at_room(&mut self, map: &Map) {
        let capacity = self.mine.len() as u64 * SEGMENT_BYTES;
        let live: u64 = self.mine.iter().map(|&segment| u64::from(map.live[segment as usize]) * 16).sum();
        self.all_bytes = live.max(map.image_bytes_guess());
        // Three generations of all of it can be there at once: the last, the one before, and the one being written.
        self.room = self.all_bytes * 100 < capacity * 28;
    }

    /// Whether the one under way may not find the segments that it needs, or leave what the next one needs, if more is changed
    /// before all is written: what is changed where it has been is written once more. `due` leaves will be changed in any case.
    /// Before one begins: whether the next one may not find them.
    pub(super) fn is_short(&self, map: &Map, due: u64) -> bool {
        match self.phase {
            Phase::Idle => return self.has_to_begin(map, due),
            Phase::Leaves(_) | Phase::Tables(..) => {}
            _ => return false,
        }
        let rest = self.filling.map_or(0, |(_, at)| SEGMENT_BYTES - (at + self.gathered.len()) as u64);
        // One more: what is left of each segment is less than the next image.
        let kept = (self.index_most + 1) * SEGMENT_BYTES;
        let comes_free = (self.to_free.len() + self.victims.len()) as u64 * SEGMENT_BYTES;
        let next = (self.all_bytes / 4 * 5).saturating_sub(comes_free);
        self.free.len() as u64 * SEGMENT_BYTES + rest < map.unwritten_bytes_most(due) + kept + next
    }

    /// Whether what has been changed takes all that is free but what emptying segments may take. How much all of it takes is known
    /// only when it has been written, so maps may be larger by then than three generations of them have room for.
    fn has_to_begin(&self, map: &Map, due: u64) -> bool {
        let kept = (self.index_most + 1) * SEGMENT_BYTES;
        let free = self.free.len() as u64 * SEGMENT_BYTES;
        !self.held && map.has_dirty_leaves() && free - free / 4 < map.unwritten_bytes_most(due) + kept
    }

    /// The segments to be emptied by writing again what is left there: none as long as enough are free for all that there is to
    /// be written twice, by this one and by the next, which is the first to have free what this one makes out of date. Those
    /// with the least left go first, until half of all will be free.
    fn choose_victims(&self, map: &Map) -> Vec<u32> {
        let all = self.all_bytes;
        let free = self.free.len() as u64;
        let enough = (FREE_MIN as u64)
            .max((self.mine.len() as u64).div_ceil(4))
            .max((2 * all).div_ceil(SEGMENT_BYTES) + 2 + self.index_most);
        if free >= enough {
            return Vec::new();
        }
        let mut used: Vec<(u32, u32)> = self
            .mine
            .iter()
            .filter(|&&segment| self.sequences[segment as usize] != 0 && map.live[segment as usize] != 0)
            .map(|&segment| (map.live[segment as usize], segment))
            .filter(|&(live, _)| u64::from(live) * 16 < SEGMENT_BYTES / 4 * 3)
            .collect();
        used.sort_unstable();
        // No choice makes more than all of it, as it was and what has been changed since.
        let most = (all / 4 * 5).max(map.image_bytes_most().min(all + map.unwritten_bytes_most(0)));
        let fits_all = free * SEGMENT_BYTES >= most + (self.index_most + 1) * SEGMENT_BYTES;
        let mut room = if fits_all { u64::MAX } else { free * SEGMENT_BYTES / 4 };
        let half = (self.mine.len() as u64 / 2).max(3 * FREE_MIN as u64);
        let mut wanted = half.saturating_sub(free + self.to_free.len() as u64);
        let mut victims = Vec::new();
        for (live, segment) in used {
            let bytes = u64::from(live) * 16;
            if bytes > room || wanted == 0 && fits_all {
                break;
            }
            room -= bytes;
            wanted = wanted.saturating_sub(1);
            victims.push(segment);
        }
        victims
    }
}

impl PoolShard {
    /// A step of a checkpoint, or the beginning of one. Whether there is more to do at once.
    pub(super) fn checkpoint_turn(&mut self) -> bool {
        if self.broken.is_some() {
            return false;
        }
        self.checkpointer.looks += 1;
        if self.checkpointer.looks.is_multiple_of(256)
            || self.checkpointer.phase == Phase::Idle && self.checkpointer.wanted
        {
            self.checkpointer.look_at_room(&self.map);
        }
        match self.checkpointer.phase {
            Phase::Idle => {
                let full = self.journal.full_percent() >= self.checkpointer.begin_percent;
                let c = &self.checkpointer;
                let due = self.records_due + self.decrees_due();
                if c.held || (!full && !c.wanted && !c.has_to_begin(&self.map, due)) {
                    return false;
                }
                // Its record would lie before the checkpoint, and the catalog in it not have it yet.
                if self.owner.as_ref().is_some_and(|owner| owner.is_committing()) {
                    return false;
                }
                self.begin_checkpoint();
                true
            }
            _ if self.checkpointer.buf.is_none() => false,
            Phase::Leaves(from) => self.checkpoint_leaves(from),
            Phase::Tables(level, from) => self.checkpoint_tables(level, from),
            Phase::Index(from) => self.checkpoint_index(from),
            Phase::Journal(record) => {
                if self.journal.durable() >= record || self.breaks(Rule::CheckpointAfterJournal) {
                    self.checkpointer.phase = Phase::Sync;
                    self.issue(User::Image, 0, DiskAction::Sync, 0, 0, None, 0);
                    // Nothing else goes on meanwhile: the buffer marks that.
                    self.checkpointer.filling = None;
                    let buf = self.checkpointer.buf.take();
                    self.checkpointer.gathered.clear();
                    self.sync_buf = buf;
                } else {
                    self.journal.wanted = true;
                    self.pump();
                }
                false
            }
            Phase::Sync | Phase::Header => false,
        }
    }

    /// A checkpoint that doesn't wait for the journal keeps it waiting, for a test that breaks this on purpose.
    pub(super) fn overtakes_journal(&self) -> bool {
        self.breaks(Rule::CheckpointAfterJournal) && !matches!(self.checkpointer.phase, Phase::Idle)
    }

    /// Nothing is written any more, so this checkpoint won't be: who waits for its end goes on.
    pub(super) fn give_up_checkpoint(&mut self) {
        self.checkpointer.phase = Phase::Idle;
        self.image_queue.clear();
        self.map.frozen_drops = false;
        for (from, token, root) in std::mem::take(&mut self.checkpointer.drops) {
            self.on_ask(from, super::mail::Ask { token, what: super::mail::What::Drop { root } });
        }
    }

    fn begin_checkpoint(&mut self) {
        let cut = self.journal.cut();
        let standing = self.renew_decrees();
        let catalog = self.owner.as_ref().map(|owner| owner.catalog.encode()).unwrap_or_default();
        let mut roots: Vec<RootId> = self.map.roots.keys().copied().collect();
        // One history gives one medium.
        roots.sort_unstable();
        let map = &mut self.map;
        let c = &mut self.checkpointer;
        c.wanted = false;
        c.number += 1;
        c.cut = cut;
        c.standing = standing;
        c.catalog = catalog;
        c.roots = roots;
        map.frozen_drops = true;
        c.to_free = c
            .mine
            .iter()
            .copied()
            .filter(|&segment| c.sequences[segment as usize] != 0 && map.live[segment as usize] == 0)
            .filter(|segment| !c.index_segments.contains(segment))
            .collect();
        let index = c.catalog.len() + c.roots.len() * ROOT_BYTES + c.mine.len() * SEGMENT_ENTRY_BYTES + 3 * 4;
        let mut standing = Writer::default();
        c.standing.write(&mut standing);
        c.index_most = ((index + standing.0.len()) as u64).div_ceil(SEGMENT_BYTES).max(1);
        c.look_at_room(map);
        c.victims = c.choose_victims(map);
        if !c.victims.is_empty() {
            map.dirty_in(|segment| c.victims.contains(&segment));
        }
        c.phase = Phase::Leaves(0);
    }

    fn checkpoint_leaves(&mut self, from: usize) -> bool {
        let end = self.map.leaves_end();
        let mut images = 0;
        for index in from..end.min(from + LOOKS_A_TURN) {
            if let Some(leaf) = self.map.is_dirty_leaf(index) {
                if images == IMAGES_A_TURN || self.checkpointer.buf.is_none() {
                    self.checkpointer.phase = Phase::Leaves(index);
                    return self.checkpointer.buf.is_some();
                }
                images += 1;
                if !self.image_leaf(leaf) {
                    return false;
                }
            }
        }
        self.checkpointer.phase =
            if from + LOOKS_A_TURN < end { Phase::Leaves(from + LOOKS_A_TURN) } else { Phase::Tables(1, 0) };
        true
    }

    fn checkpoint_tables(&mut self, level: u8, from: usize) -> bool {
        let end = self.map.tables_end();
        let mut images = 0;
        for index in from..end.min(from + LOOKS_A_TURN) {
            if let Some(table) = self.map.is_dirty_table(index, level) {
                if images >= IMAGES_A_TURN || self.checkpointer.buf.is_none() {
                    self.checkpointer.phase = Phase::Tables(level, index);
                    return self.checkpointer.buf.is_some();
                }
                images += 1;
                if !self.image_table(table) {
                    return false;
                }
            }
        }
        self.checkpointer.phase = match (from + LOOKS_A_TURN < end, level) {
            (true, _) => Phase::Tables(level, from + LOOKS_A_TURN),
            (false, super::map::LEVELS) => {
                // A root that was written to meanwhile has a new top, which the scan may have passed by.
                for root in self.checkpointer.roots.clone() {
                    let there = self.map.top_home(root).is_none_or(Home::is_somewhere);
                    if !there
                        && let Some(top) = self.map.dirty_top(root)
                        && !self.image_table(top)
                    {
                        return false;
                    }
                }
                self.make_index();
                Phase::Index(0)
            }
            (false, _) => Phase::Tables(level + 1, 0),
        };
        true
    }

    fn image_leaf(&mut self, leaf: LeafId) -> bool {
        let mut out = Writer::default();
        out.u8(0);
        write_slots(&mut out, &self.map.slots_of(leaf), &self.map.explosions);
        match self.put_image(&out.0) {
            Some(home) => {
                self.map.leaf_written(leaf, home);
                true
            }
            None => false,
        }
    }

    fn image_table(&mut self, table: TableId) -> bool {
        for child in self.map.dirty_children(table) {
            let written = match child {
                Ok(leaf) => self.image_leaf(leaf),
                Err(below) => self.image_table(below),
            };
            if !written {
                return false;
            }
        }
        let (level, homes) = self.map.children_homes(table);
        let mut out = Writer::default();
        out.u8(level).u16(homes.len() as u16);
        for (place, home) in homes {
            out.u8(place).u32(home.segment).u16(home.offset).u16(home.size);
        }
        match self.put_image(&out.0) {
            Some(home) => {
                self.map.table_written(table, home);
                true
            }
            None => false,
        }
    }

    /// Puts an image behind the last. What is gathered is written when a buffer is full of it.
    fn put_image(&mut self, content: &[u8]) -> Option<Home> {
        let bytes = (IMAGE_HEAD_BYTES + content.len()).next_multiple_of(16);
        let fits = self
            .checkpointer
            .filling
            .is_some_and(|(_, at)| at + self.checkpointer.gathered.len() + bytes <= SEGMENT_BYTES as usize);
        if !fits {
            self.write_gathered(true);
            let Some(segment) = self.checkpointer.free.pop_front() else {
                self.break_down(IoError::OutOfSpace, "the metadata area is full");
                return None;
            };
            self.checkpointer.sequences[segment as usize] = self.checkpointer.number;
            self.checkpointer.filling = Some((segment, 0));
        }
        let (segment, at) = self.checkpointer.filling?;
        let offset = ((at + self.checkpointer.gathered.len()) / 16) as u16;
        let number = self.checkpointer.number;
        let size = seal_image(self.tag, segment, offset, number, content, &mut self.checkpointer.gathered);
        if self.checkpointer.gathered.len() >= BUF_BYTES_MAX {
            self.write_gathered(false);
        }
        Some(Home { segment, offset, size })
    }

    /// Sends off what is gathered, as far as a buffer takes it; at a segment's end, all of it. More than one buffer's worth waits.
    fn write_gathered(&mut self, all: bool) {
        let Some((segment, at)) = self.checkpointer.filling else { return };
        let length = self.checkpointer.gathered.len();
        if all && length > 0 {
            let bytes: Vec<u8> = std::mem::take(&mut self.checkpointer.gathered);
            self.image_queue.push_back((self.superblock.segment_at(segment) + at as u64, bytes));
            self.checkpointer.filling = Some((segment, at + length));
        } else if length >= BUF_BYTES_MAX {
            let rest = self.checkpointer.gathered.split_off(BUF_BYTES_MAX);
            let bytes = std::mem::replace(&mut self.checkpointer.gathered, rest);
            self.image_queue.push_back((self.superblock.segment_at(segment) + at as u64, bytes));
            self.checkpointer.filling = Some((segment, at + BUF_BYTES_MAX));
        }
        self.write_queued_images();
    }

    fn write_queued_images(&mut self) {
        let Some(mut buf) = self.checkpointer.buf.take() else { return };
        let Some((at, bytes)) = self.image_queue.front_mut() else {
            self.checkpointer.buf = Some(buf);
            return;
        };
        let at = *at;
        let now = bytes.len().min(BUF_BYTES_MAX);
        let whole = now.next_multiple_of(4096);
        buf.set_len(whole);
        buf[..now].copy_from_slice(&bytes[..now]);
        buf[now..].fill(0);
        if now == bytes.len() {
            self.image_queue.pop_front();
        } else {
            bytes.drain(..now);
            if let Some((place, _)) = self.image_queue.front_mut() {
                *place += now as u64;
            }
        }
        self.counts.checkpoint_write_bytes += whole as u64;
        let action = DiskAction::Write { durable: false };
        self.issue(User::Image, 0, action, at, whole as u64, Some(buf), 0);
    }

    fn make_index(&mut self) {
        self.write_gathered(true);
        self.checkpointer.filling = None;
        let mut out = Writer::default();
        let roots: Vec<RootId> = std::mem::take(&mut self.checkpointer.roots);
        out.u32(roots.len() as u32);
        for root in roots {
            let home = self.map.top_home(root).unwrap_or(Home::NOWHERE);
            let mapped = self.map.roots.get(&root).map_or(0, |root| root.mapped_blocks);
            out.u64(root.0).u32(home.segment).u16(home.offset).u16(home.size).u64(mapped);
        }
        let c = &mut self.checkpointer;
        let old: Vec<u32> = c.index_segments.iter().chain(&c.to_free).chain(&c.victims).copied().collect();
        let live: Vec<u32> = c
            .mine
            .iter()
            .copied()
            .filter(|segment| c.sequences[*segment as usize] != 0 && !old.contains(segment))
            .collect();
        out.u32(live.len() as u32);
        for segment in live {
            out.u32(segment).u64(c.sequences[segment as usize]);
        }
        out.u32(c.catalog.len() as u32).bytes(&c.catalog);
        c.standing.write(&mut out);
        c.catalog = Vec::new();
        c.index = out.0;
        c.new_index_segments.clear();
    }

    fn checkpoint_index(&mut self, from: usize) -> bool {
        if !self.image_queue.is_empty() {
            self.write_queued_images();
            return false;
        }
        let end = self.checkpointer.index.len();
        if from >= end {
            self.checkpointer.phase = Phase::Journal(self.journal.appended());
            if !self.breaks(Rule::CheckpointAfterJournal) {
                self.journal.wanted |= self.journal.has_pending();
                self.pump();
            }
            return true;
        }
        if from.is_multiple_of(SEGMENT_BYTES as usize) {
            let Some(segment) = self.checkpointer.free.pop_front() else {
                self.break_down(IoError::OutOfSpace, "the metadata area is full");
                return false;
            };
            self.checkpointer.sequences[segment as usize] = self.checkpointer.number;
            self.checkpointer.new_index_segments.push(segment);
            if self.checkpointer.new_index_segments.len() > INDEX_SEGMENTS_MAX {
                self.break_down(IoError::OutOfSpace, "the catalog is too large for a checkpoint");
                return false;
            }
        }
        let Some(&segment) = self.checkpointer.new_index_segments.last() else { return false };
        let until = end.min(from + BUF_BYTES_MAX);
        let bytes = self.checkpointer.index[from..until].to_vec();
        let at = self.superblock.segment_at(segment) + (from % SEGMENT_BYTES as usize) as u64;
        self.image_queue.push_back((at, bytes));
        self.checkpointer.phase = Phase::Index(until);
        self.write_queued_images();
        false
    }

    /// An image, the index, a flush or the header has been written.
    pub(super) fn checkpoint_io_done(&mut self, result: Result<(), IoError>, buf: Option<Buf>) {
        let buf = buf.or_else(|| self.sync_buf.take());
        self.checkpointer.buf = buf;
        if let Err(error) = result {
            return self.break_down(error, "can't write a checkpoint");
        }
        match self.checkpointer.phase {
            Phase::Sync => self.write_header(),
            Phase::Header => self.end_checkpoint(),
            _ => self.write_queued_images(),
        }
    }

    fn write_header(&mut self) {
        let c = &mut self.checkpointer;
        let header = Header {
            checkpoint: c.number,
            replay_from: c.cut,
            index_bytes: c.index.len() as u64,
            index_crc: crc_of(&c.index),
            index_segments: c.new_index_segments.clone(),
            generation: self.journal.generation(),
        };
        let bytes = header.encode(self.tag, self.superblock.layout, self.core.0);
        let Some(mut buf) = c.buf.take() else { unreachable!("the flush gave it back") };
        buf.set_len(HEADER_BYTES as usize);
        buf.copy_from_slice(&bytes);
        c.phase = Phase::Header;
        let at = self.superblock.header_at(self.core.0, c.number);
        self.counts.checkpoint_write_bytes += HEADER_BYTES;
        self.issue(User::Header, 0, DiskAction::Write { durable: true }, at, HEADER_BYTES, Some(buf), 0);
    }

    fn end_checkpoint(&mut self) {
        let c = &mut self.checkpointer;
        for segment in c.index_segments.drain(..).chain(c.to_free.drain(..)).chain(c.victims.drain(..)) {
            debug_assert_eq!(self.map.live[segment as usize], 0);
            c.sequences[segment as usize] = 0;
            c.free.push_back(segment);
        }
        c.index_segments = std::mem::take(&mut c.new_index_segments);
        c.index = Vec::new();
        c.phase = Phase::Idle;
        c.ended += 1;
        let cut = c.cut;
        let drops = std::mem::take(&mut c.drops);
        self.journal.forget_before(cut);
        self.map.frozen_drops = false;
        for (from, token, root) in drops {
            self.on_ask(from, super::mail::Ask { token, what: super::mail::What::Drop { root } });
        }
        tracing::debug!(pool = %self.superblock.name, core = self.core.0, "checkpoint");
    }
}
