//! Where the blocks of volumes and snapshots are: one core's share of every map, as trees that share nodes.
//!
//! A *root* is what a volume or a snapshot reads through. Below it: a table of slices, two levels of tables of a slice's
//! stripes, and *leaves*, each with the 64 slots of one stripe. A node that more than one parent names is shared, and so is
//! everything below it; who writes copies the shared nodes on the way. Copying a leaf freezes every slot, in the
//! original and in the copy, and gives each chunk that it names one name more.
//!
//! A copy of a whole stripe is one more parent for its leaf, also below the same root, if both are this core's. A leaf
//! may therefore be reached from several stripes.
//!
//! Memory: 32 bytes for a leaf whose 64 chunks are neighbours, 800 for any other.

use super::changes::Changes;
use super::format::IMAGE_HEAD_BYTES;
use super::mail::Edition;
use super::slot::{CHUNK_BYTES, Chunk, Explosions, Names, Pointer, SLOT_BLOCKS, Slot, SlotWord};
use crate::stripe::{SLICES, STRIPE_BYTES};
use ahash::HashMap;
use reactor::Core;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Slots of a leaf.
pub const LEAF_SLOTS: usize = (STRIPE_BYTES / CHUNK_BYTES) as usize;
/// Children of a table.
pub const TABLE_CHILDREN: usize = 256;
/// Levels of tables above the leaves.
pub const LEVELS: u8 = 3;

const _: () = assert!(SLICES as usize == TABLE_CHILDREN && LEAF_SLOTS == 64);

/// A root's name in the whole pool: never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RootId(pub u64);

/// A slot of a volume: its first byte over [`CHUNK_BYTES`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotNo(pub u64);

impl SlotNo {
    /// The stripe that it is in.
    #[inline]
    pub fn stripe(self) -> u64 {
        self.0 / LEAF_SLOTS as u64
    }

    /// Its place in the stripe's leaf.
    #[inline]
    pub fn index(self) -> usize {
        (self.0 % LEAF_SLOTS as u64) as usize
    }
}

/// A child: 0 is none, otherwise an index and one.
type Ref = u32;

/// A leaf's place in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeafId(u32);

/// A table's place in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TableId(u32);

impl LeafId {
    /// For [`Map::load_table`].
    pub fn index(self) -> u32 {
        self.0
    }
}

impl TableId {
    /// For [`Map::load_table`].
    pub fn index(self) -> u32 {
        self.0
    }
}

/// Where a node's last image is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Home {
    /// The segment; [`Home::NOWHERE`]'s has none.
    pub segment: u32,
    /// In units of 16 bytes.
    pub offset: u16,
    /// In units of 16 bytes.
    pub size: u16,
}

impl Home {
    /// There is no image.
    pub const NOWHERE: Home = Home { segment: u32::MAX, offset: 0, size: 0 };

    /// Whether there is an image.
    pub fn is_somewhere(self) -> bool {
        self.segment != u32::MAX
    }
}

#[derive(Debug)]
enum Body {
    Free,
    /// All blocks own, in neighbouring chunks.
    Run {
        first: u32,
        frozen: bool,
    },
    /// Each slot whole or empty: a third of what others take.
    Whole(Box<[SlotWord; LEAF_SLOTS]>),
    Dense(Box<[Slot; LEAF_SLOTS]>),
}

impl Body {
    /// These slots, in the shortest form.
    fn of(slots: Box<[Slot; LEAF_SLOTS]>) -> Body {
        if let Some((first, frozen)) = run_in(&slots) {
            return Body::Run { first: first.0, frozen };
        }
        match words_of(&slots) {
            Some(words) => Body::Whole(Box::new(words)),
            None => Body::Dense(slots),
        }
    }

    /// It has something for each slot.
    fn is_list(&self) -> bool {
        matches!(self, Body::Whole(_) | Body::Dense(_))
    }

    /// Memory of its own.
    fn bytes(&self) -> usize {
        const HEAP_BYTES: usize = 16;
        match self {
            Body::Free | Body::Run { .. } => 0,
            Body::Whole(_) => size_of::<[SlotWord; LEAF_SLOTS]>() + HEAP_BYTES,
            Body::Dense(_) => size_of::<[Slot; LEAF_SLOTS]>() + HEAP_BYTES,
        }
    }
}

#[derive(Debug)]
struct Leaf {
    refs: u32,
    home: Home,
    dirty: bool,
    /// Of the root for which slots are private; for any other they are frozen, whatever they say. [`NOBODY`]'s once it
    /// was shared or copied from while it was: privacy then comes back by freezing all of it first.
    stamp: u16,
    body: Body,
}

const _: () = assert!(size_of::<Leaf>() <= 32);

#[derive(Debug)]
struct Table {
    refs: u32,
    home: Home,
    dirty: bool,
    /// 3: slices. 2 and 1: of a slice. A child of level 1 is a leaf.
    level: u8,
    children: Vec<Ref>,
}

const LEAVES_A_SLAB: usize = 1024;
/// Lists that are kept for the next, of each kind: 64 KiB.
const SPARES_MAX: usize = 64;
/// What images of leaves take at most, none of their slots exploded and with their heads: 64 slots of two chunks each.
const LEAF_IMAGE_BYTES_MOST: u64 = (IMAGE_HEAD_BYTES + 1 + LEAF_SLOTS * 13).next_multiple_of(16) as u64;
/// Of those that are a run.
const RUN_IMAGE_BYTES_MOST: u64 = (IMAGE_HEAD_BYTES + 7).next_multiple_of(16) as u64;
/// What an exploded slot takes there.
const EXPLODED_IMAGE_BYTES_MOST: u64 = 1 + SLOT_BLOCKS as u64 * 5;
/// What a table's image takes for a child. What a table takes beside its children is more than its image does.
const CHILD_IMAGE_BYTES: u64 = 9;
/// Parents of a leaf that copies may make: half of what can be counted, the others are for tables that are copied.
const PARENTS_MAX: u32 = 1 << 31;

/// A root's share of one core.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Root {
    top: Ref,
    /// Blocks that are not zeroes.
    pub mapped_blocks: u64,
    /// Slots whose next write needs no chunk: they have a private one. Counted for thick volumes' reservations.
    pub private_slots: u64,
}

/// What a change of a slot did to its chunks.
#[derive(Debug, Default)]
pub struct Changed {
    /// Named before and not now: the caller gives the names up, in due time.
    pub dropped: Names,
    /// Named now and not before: the caller has counted them already.
    pub added: Names,
}

/// Where walks from a root to a stripe's leaf ended, so that the stripes in use need none. A place stands for every stripe
/// that falls on it.
///
/// Invariant: what is here is what a walk would find, but for privacy, which may have come meanwhile: whoever takes a leaf
/// from a root or gives it another says so here.
#[derive(Default)]
struct Paths {
    places: Box<[Cell<Path>]>,
}

/// A walk's end. Root 0 is none.
#[derive(Clone, Copy, Default)]
struct Path {
    root: u64,
    stripe: u32,
    leaf: u32,
}

/// The walks remembered: of 32 GiB in use on one core, at 16 bytes each.
const PATHS: usize = 8192;
const PRIVATE: u32 = 1 << 31;
const _: () = assert!(PATHS.is_power_of_two());

impl Paths {
    fn new() -> Paths {
        Paths { places: vec![Cell::default(); PATHS].into() }
    }

    #[inline]
    fn place(&self, root: RootId, stripe: u64) -> Option<&Cell<Path>> {
        self.places.get((stripe.wrapping_add(root.0.wrapping_mul(0x9e37)) as usize) & (PATHS - 1))
    }

    #[inline]
    fn get(&self, root: RootId, stripe: u64) -> Option<(LeafId, bool)> {
        let path = self.place(root, stripe)?.get();
        (path.root == root.0 && u64::from(path.stripe) == stripe)
            .then_some((LeafId(path.leaf & !PRIVATE), path.leaf & PRIVATE != 0))
    }

    fn put(&self, root: RootId, stripe: u64, leaf: LeafId, private: bool) {
        if let Some(place) = self.place(root, stripe)
            && leaf.0 < PRIVATE
            && let Ok(stripe) = u32::try_from(stripe)
        {
            let leaf = leaf.0 | if private { PRIVATE } else { 0 };
            place.set(Path { root: root.0, stripe, leaf });
        }
    }

    fn forget(&self, root: RootId, stripe: u64) {
        if self.get(root, stripe).is_some()
            && let Some(place) = self.place(root, stripe)
        {
            place.set(Path::default());
        }
    }

    fn forget_all(&self) {
        self.places.iter().for_each(|place| place.set(Path::default()));
    }
}

impl std::fmt::Debug for Paths {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Paths")
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct Map {
    paths: Paths,
    tables: Vec<Option<Table>>,
    free_tables: Vec<u32>,
    leaves: Vec<Vec<Leaf>>,
    free_leaves: Vec<u32>,
    leaf_count: usize,
    /// Leaves with something for each slot, and what all bodies take.
    list_count: usize,
    body_bytes: usize,
    /// Memory of lists that were given up, for the next: a leaf whose slots fill up and are emptied changes its form each time.
    #[allow(clippy::vec_box, reason = "it is their boxes that are kept")]
    spare_slots: Vec<Box<[Slot; LEAF_SLOTS]>>,
    #[allow(clippy::vec_box, reason = "as above")]
    spare_words: Vec<Box<[SlotWord; LEAF_SLOTS]>>,
    /// Leaves that have to be written out.
    dirty_count: usize,
    table_bytes: usize,
    /// Slots that two chunks don't do for.
    pub explosions: Explosions,
    /// This core's share of every root.
    pub roots: HashMap<RootId, Root>,
    /// Bytes of images that are nodes' last, by segment, in units of 16.
    pub live: Vec<u32>,
    /// Subtrees to be dropped, and their level (0: a leaf).
    dropping: Vec<(u8, Ref)>,
    /// Images of nodes are being written.
    pub frozen_drops: bool,
    /// Grows whenever other chunks are named, or by other roots.
    pub(super) changes: u64,
    /// Leaves that other cores may have twins of, or are such: nobody's all of them. Both ways, as many as have been copied
    /// between cores and not changed since.
    editions: HashMap<LeafId, Edition>,
    twins: HashMap<Edition, LeafId>,
    next_edition: u64,
    /// For a test that breaks this on purpose: a leaf that changes keeps its edition.
    pub(super) keeps_editions: bool,
    /// Where other cores see that a stripe of this one changes.
    told: Option<(Arc<Changes>, Core)>,
}

/// Where a walk of a root's leaves goes on: places in its tables, from the top down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cursor([usize; LEVELS as usize]);

/// What an edition takes in a table, about.
const EDITION_BYTES: usize = size_of::<(Edition, LeafId)>() + 1;

/// No root's stamp.
const NOBODY: u16 = 0;

/// The first chunk of what is one run of neighbours, and whether they are frozen.
fn run_in(slots: &[Slot; LEAF_SLOTS]) -> Option<(Chunk, bool)> {
    let (first, frozen) = slots[0].whole_chunk()?;
    let is_next = |(slot, index): (&Slot, u32)| *slot == Slot::whole(Chunk(first.0 + index), frozen);
    slots.iter().zip(0u32..).all(is_next).then_some((first, frozen))
}

/// The same of a leaf whose slots are whole.
fn run_of_words(words: &[SlotWord; LEAF_SLOTS]) -> Option<(Chunk, bool)> {
    let (first, frozen) = words[0].slot().whole_chunk()?;
    let is_next =
        |(word, index): (&SlotWord, u32)| word.slot() == Slot::whole(Chunk(first.0 + index), frozen);
    words.iter().zip(0u32..).all(is_next).then_some((first, frozen))
}

/// The slots' words, if each has one.
fn words_of(slots: &[Slot; LEAF_SLOTS]) -> Option<[SlotWord; LEAF_SLOTS]> {
    let mut words = [SlotWord::EMPTY; LEAF_SLOTS];
    for (word, slot) in words.iter_mut().zip(slots) {
        *word = slot.word()?;
    }
    Some(words)
}

/// What leaves of a root carry. Two roots with one stamp are 65,535 ids apart; a leaf that met both without being
/// written to would be counted wrong for one of them, and nothing else: whether it is shared is not told by this, and
/// from a shared leaf nothing is copied that leaves it with a root's stamp.
fn stamp_of(root: RootId) -> u16 {
    (root.0 % u64::from(u16::MAX)) as u16 + 1
}

#[inline]
fn path(stripe: u64) -> [usize; LEVELS as usize] {
    let nth = stripe / SLICES;
    [(stripe % SLICES) as usize, (nth >> 8) as usize, (nth & 255) as usize]
}

impl Map {
    /// An empty map, for images in so many segments.
    pub fn with_segments(segments: u32) -> Map {
        Map { live: vec![0; segments as usize], paths: Paths::new(), ..Map::default() }
    }

    /// Memory that it takes.
    pub fn memory_bytes(&self) -> u64 {
        (self.leaves.len() * LEAVES_A_SLAB * size_of::<Leaf>()
            + self.body_bytes
            + self.table_bytes
            + size_of_val(&*self.paths.places)
            + self.editions.capacity() * 2 * EDITION_BYTES
            + self.explosions.memory_bytes()) as u64
    }

    /// About what images of all of it take.
    pub fn image_bytes_guess(&self) -> u64 {
        (self.nodes() * 32 + self.list_count * 320 + self.explosions.len() * 88) as u64
    }

    /// No more than this do images of all that has to be written out take, of as many `leaves` more, and of all tables.
    pub fn unwritten_bytes_most(&self, leaves: u64) -> u64 {
        let dense = (self.list_count as u64 + leaves).min(self.dirty_count as u64 + leaves);
        let runs = (self.dirty_count as u64 + leaves) - dense;
        dense * LEAF_IMAGE_BYTES_MOST + runs * RUN_IMAGE_BYTES_MOST + self.other_bytes_most()
    }

    /// The same of all there is.
    pub fn image_bytes_most(&self) -> u64 {
        let (dense, runs) = (self.list_count as u64, (self.leaf_count - self.list_count) as u64);
        dense * LEAF_IMAGE_BYTES_MOST + runs * RUN_IMAGE_BYTES_MOST + self.other_bytes_most()
    }

    /// The same of all tables, and of what slots that are exploded take beside others.
    fn other_bytes_most(&self) -> u64 {
        let exploded = self.explosions.len() as u64 * EXPLODED_IMAGE_BYTES_MOST;
        let tables = self.table_bytes as u64 / size_of::<Ref>() as u64 * CHILD_IMAGE_BYTES;
        exploded + tables
    }

    /// Whether any leaf has to be written out.
    pub fn has_dirty_leaves(&self) -> bool {
        self.dirty_count > 0
    }

    /// How many leaves and tables there are.
    pub fn nodes(&self) -> usize {
        self.leaf_count + self.tables.len() - self.free_tables.len()
    }

    #[inline]
    fn leaf_at(&self, leaf: LeafId) -> &Leaf {
        &self.leaves[leaf.0 as usize / LEAVES_A_SLAB][leaf.0 as usize % LEAVES_A_SLAB]
    }

    #[inline]
    fn leaf_at_mut(&mut self, leaf: LeafId) -> &mut Leaf {
        &mut self.leaves[leaf.0 as usize / LEAVES_A_SLAB][leaf.0 as usize % LEAVES_A_SLAB]
    }

    fn table(&self, index: u32) -> &Table {
        self.tables[index as usize].as_ref().expect("a parent names its tables")
    }

    fn table_mut(&mut self, index: u32) -> &mut Table {
        self.tables[index as usize].as_mut().expect("a parent names its tables")
    }

    fn new_leaf(&mut self, body: Body, stamp: u16) -> LeafId {
        self.leaf_count += 1;
        self.list_count += usize::from(body.is_list());
        self.body_bytes += body.bytes();
        self.dirty_count += 1;
        let leaf = Leaf { refs: 1, home: Home::NOWHERE, dirty: true, stamp, body };
        if let Some(index) = self.free_leaves.pop() {
            *self.leaf_at_mut(LeafId(index)) = leaf;
            return LeafId(index);
        }
        if self.leaves.last().is_none_or(|slab| slab.len() == LEAVES_A_SLAB) {
            self.leaves.push(Vec::with_capacity(LEAVES_A_SLAB));
        }
        let slabs = self.leaves.len();
        let slab = self.leaves.last_mut().expect("pushed just now");
        slab.push(leaf);
        LeafId(((slabs - 1) * LEAVES_A_SLAB + slab.len() - 1) as u32)
    }

    fn new_table(&mut self, level: u8, children: Vec<Ref>) -> u32 {
        self.table_bytes += size_of::<Option<Table>>() + children.capacity() * size_of::<Ref>();
        let table = Some(Table { refs: 1, home: Home::NOWHERE, dirty: true, level, children });
        if let Some(index) = self.free_tables.pop() {
            self.tables[index as usize] = table;
            index
        } else {
            self.tables.push(table);
            self.tables.len() as u32 - 1
        }
    }

    fn lose_home(&mut self, home: Home) {
        if home.is_somewhere() {
            self.live[home.segment as usize] -= u32::from(home.size);
        }
    }

    /// Gives a leaf another body, or another form of the same.
    fn set_body(&mut self, leaf: LeafId, body: Body) {
        let (list, bytes) = (body.is_list(), body.bytes());
        let before = std::mem::replace(&mut self.leaf_at_mut(leaf).body, body);
        self.list_count = self.list_count + usize::from(list) - usize::from(before.is_list());
        self.body_bytes = self.body_bytes + bytes - before.bytes();
        match before {
            Body::Dense(slots) if self.spare_slots.len() < SPARES_MAX => self.spare_slots.push(slots),
            Body::Whole(words) if self.spare_words.len() < SPARES_MAX => self.spare_words.push(words),
            _ => {}
        }
    }

    /// A list of these slots.
    fn dense(&mut self, slots: &[Slot; LEAF_SLOTS]) -> Body {
        Body::Dense(match self.spare_slots.pop() {
            Some(mut spare) => {
                *spare = *slots;
                spare
            }
            None => Box::new(*slots),
        })
    }

    /// A list of these slots, each whole or empty.
    fn whole(&mut self, words: [SlotWord; LEAF_SLOTS]) -> Body {
        Body::Whole(match self.spare_words.pop() {
            Some(mut spare) => {
                *spare = words;
                spare
            }
            None => Box::new(words),
        })
    }

    fn free_leaf(&mut self, leaf: LeafId) {
        let home = self.leaf_at(leaf).home;
        self.lose_home(home);
        self.leaf_count -= 1;
        self.set_body(leaf, Body::Free);
        if self.leaf_at(leaf).stamp == NOBODY || self.keeps_editions {
            self.forget_edition(leaf);
        }
        self.dirty_count -= usize::from(std::mem::take(&mut self.leaf_at_mut(leaf).dirty));
        self.leaf_at_mut(leaf).home = Home::NOWHERE;
        self.free_leaves.push(leaf.0);
    }

    fn free_table(&mut self, index: u32) -> Table {
        let table = self.tables[index as usize].take().expect("freed once");
        self.table_bytes -= size_of::<Option<Table>>() + table.children.capacity() * size_of::<Ref>();
        self.lose_home(table.home);
        self.free_tables.push(index);
        table
    }

    /// The leaf of a stripe, and whether nobody but this root reaches it.
    #[inline]
    fn find(&self, root: &Root, stripe: u64) -> Option<(LeafId, bool)> {
        let mut at = root.top;
        let mut private = true;
        for step in path(stripe) {
            let table = self.table(at.checked_sub(1)?);
            private &= table.refs == 1;
            at = *table.children.get(step)?;
        }
        let leaf = LeafId(at.checked_sub(1)?);
        Some((leaf, private && self.leaf_at(leaf).refs == 1))
    }

    /// The same, without a walk if one was made before.
    #[inline]
    fn look_up(&self, root: RootId, stripe: u64) -> Option<(LeafId, bool)> {
        if let Some((leaf, private)) = self.paths.get(root, stripe) {
            debug_assert!(
                self.roots
                    .get(&root)
                    .and_then(|root| self.find(root, stripe))
                    .is_some_and(|(found, is_private)| found == leaf && (is_private || !private)),
                "a walk ends elsewhere now"
            );
            return Some((leaf, private));
        }
        let found = self.find(self.roots.get(&root)?, stripe);
        // What is nobody's may get one parent more from where this root and stripe are not known.
        let found = found.map(|(leaf, private)| (leaf, private && self.leaf_at(leaf).stamp != NOBODY));
        if let Some((leaf, private)) = found {
            self.paths.put(root, stripe, leaf, private);
        }
        found
    }

    /// The leaf of a stripe.
    #[inline]
    pub fn leaf(&self, root: RootId, stripe: u64) -> Option<LeafId> {
        self.look_up(root, stripe).map(|(leaf, _)| leaf)
    }

    /// The leaf of a stripe, and whether it is this root's alone, with what is private there.
    #[inline]
    pub fn leaf_and_private(&self, root: RootId, stripe: u64) -> Option<(LeafId, bool)> {
        let (leaf, private) = self.look_up(root, stripe)?;
        Some((leaf, private && self.leaf_at(leaf).stamp == stamp_of(root)))
    }

    /// A slot, and whether its leaf is this root's alone.
    #[inline]
    pub fn slot(&self, root: RootId, slot: SlotNo) -> (Slot, bool) {
        let found = self.leaf_and_private(root, slot.stripe());
        found.map_or((Slot::EMPTY, true), |(leaf, private)| (self.slot_at(leaf, slot.index()), private))
    }

    /// A slot of a leaf.
    #[inline]
    pub fn slot_at(&self, leaf: LeafId, index: usize) -> Slot {
        match &self.leaf_at(leaf).body {
            Body::Run { first, frozen } => Slot::whole(Chunk(first + index as u32), *frozen),
            Body::Whole(words) => words[index].slot(),
            Body::Dense(slots) => slots[index],
            Body::Free => unreachable!("a parent names its leaves"),
        }
    }

    /// The first chunk and whether all is frozen, if the leaf is one run.
    pub fn run_of(&self, leaf: LeafId) -> Option<(Chunk, bool)> {
        match self.leaf_at(leaf).body {
            Body::Run { first, frozen } => Some((Chunk(first), frozen)),
            _ => None,
        }
    }

    /// The leaf of a stripe, made if there is none and made this root's alone. Chunks whose leaf was copied have one name
    /// more each, which is put into `named`.
    pub fn leaf_for_write(&mut self, root: RootId, stripe: u64, named: &mut Vec<Chunk>) -> LeafId {
        let (table, step) = self.place_for_write(root, stripe);
        let at = self.table(table).children[step];
        let leaf = match at.checked_sub(1) {
            None => {
                let body = self.dense(&[Slot::EMPTY; LEAF_SLOTS]);
                self.new_leaf(body, stamp_of(root))
            }
            Some(index) if self.leaf_at(LeafId(index)).refs > 1 => {
                self.copy_leaf(LeafId(index), stamp_of(root), named)
            }
            Some(index) => LeafId(index),
        };
        self.table_mut(table).children[step] = leaf.0 + 1;
        if self.leaf_at(leaf).stamp != stamp_of(root) {
            // It was shared once. Who shared it is gone, but what was private then was not counted since.
            self.freeze_all(leaf);
            self.leaf_at_mut(leaf).stamp = stamp_of(root);
            // It is about to change.
            if !self.keeps_editions {
                self.forget_edition(leaf);
            }
        }
        self.dirty_count += usize::from(!std::mem::replace(&mut self.leaf_at_mut(leaf).dirty, true));
        self.paths.put(root, stripe, leaf, true);
        leaf
    }

    /// All slots of a run, as [`Map::freeze`] does.
    pub fn freeze_run(&mut self, root: RootId, leaf: LeafId) {
        if let Body::Run { frozen, .. } = &mut self.leaf_at_mut(leaf).body
            && !std::mem::replace(frozen, true)
        {
            let state = self.roots.entry(root).or_default();
            state.private_slots = state.private_slots.saturating_sub(LEAF_SLOTS as u64);
        }
    }

    /// Takes hold of a leaf beside those who have it: it stays what it is until it is handed on by [`Map::put_leaf`], or
    /// let go by [`Map::release_leaf`]. False: it may not be shared, as something is only granted to it, or has as many
    /// parents as can be counted.
    pub fn hold_leaf(&mut self, root: RootId, stripe: u64, leaf: LeafId) -> bool {
        let granted = match &self.leaf_at(leaf).body {
            Body::Dense(slots) => slots.iter().any(|&slot| self.explosions.has_grant(slot)),
            _ => false,
        };
        if granted || self.leaf_at(leaf).refs >= PARENTS_MAX {
            return false;
        }
        let is_sole = self.leaf_and_private(root, stripe).is_some_and(|(_, private)| private);
        let private = if is_sole { self.private_slots_in(leaf) } else { 0 };
        let state = self.roots.entry(root).or_default();
        state.private_slots = state.private_slots.saturating_sub(private);
        self.leaf_at_mut(leaf).refs += 1;
        self.paths.forget(root, stripe);
        self.changes += 1;
        true
    }

    /// Editions are this core's from now on.
    pub(super) fn number_editions(&mut self, core: Core) {
        self.next_edition = u64::from(core.0) << 48;
    }

    /// Other cores are told of all changes from now on.
    pub(super) fn tell_changes(&mut self, core: Core, changes: Arc<Changes>) {
        self.told = Some((changes, core));
    }

    /// A stripe is about to change: what other cores know of it holds no longer.
    pub(super) fn note_change(&self, root: RootId, stripe: u64) {
        if let Some((changes, core)) = &self.told {
            changes.note(*core, root, stripe);
        }
    }

    /// How often a stripe of this core has changed, as other cores see it.
    pub(super) fn changes_of(&self, root: RootId, stripe: u64) -> u64 {
        self.told.as_ref().map_or(0, |(changes, core)| changes.count(*core, root, stripe))
    }

    /// The edition of a leaf that is held and nobody's, so that it does not change before both are over. `None`: it has slots
    /// that don't fit into [`Map::make_leaf`], or no further parent is counted.
    pub fn edition_of(&mut self, leaf: LeafId) -> Option<Edition> {
        debug_assert_eq!(self.leaf_at(leaf).stamp, NOBODY);
        if let Some(&edition) = self.editions.get(&leaf) {
            return Some(edition);
        }
        if let Body::Dense(slots) = &self.leaf_at(leaf).body
            && slots.iter().any(|slot| slot.exploded_index().is_some())
        {
            return None;
        }
        self.next_edition += 1;
        let edition = Edition(self.next_edition);
        self.set_edition(leaf, edition);
        Some(edition)
    }

    /// A leaf that is nobody's is like those that have this edition.
    pub fn set_edition(&mut self, leaf: LeafId, edition: Edition) {
        debug_assert_eq!(self.leaf_at(leaf).stamp, NOBODY);
        self.editions.insert(leaf, edition);
        if let Some(before) = self.twins.insert(edition, leaf) {
            self.editions.remove(&before);
        }
    }

    fn forget_edition(&mut self, leaf: LeafId) {
        if let Some(edition) = self.editions.remove(&leaf) {
            self.twins.remove(&edition);
        }
    }

    /// A hold of this core's leaf of an edition, as of [`Map::hold_leaf`].
    pub fn hold_twin(&mut self, edition: Edition) -> Option<LeafId> {
        let leaf = *self.twins.get(&edition)?;
        if self.leaf_at(leaf).refs >= PARENTS_MAX {
            return None;
        }
        debug_assert!(self.keeps_editions || self.leaf_at(leaf).stamp == NOBODY);
        self.leaf_at_mut(leaf).refs += 1;
        self.changes += 1;
        Some(leaf)
    }

    /// A leaf of slots that are frozen and whose names are counted, for [`Map::put_leaf`]. It is nobody's yet.
    pub fn make_leaf(&mut self, slots: [Slot; LEAF_SLOTS]) -> LeafId {
        debug_assert!(slots.iter().all(|slot| slot.exploded_index().is_none()));
        self.new_leaf(Body::of(Box::new(slots)), NOBODY)
    }

    /// Nothing in it is private to a root any more that doesn't freeze all of it first.
    pub fn disown(&mut self, leaf: LeafId) {
        self.leaf_at_mut(leaf).stamp = NOBODY;
    }

    /// Lets go of a leaf. If nobody else has it, its names are put into `dropped`.
    pub fn release_leaf(&mut self, leaf: LeafId, dropped: &mut Vec<Chunk>) {
        self.changes += 1;
        self.leaf_at_mut(leaf).refs -= 1;
        if self.leaf_at(leaf).refs > 0 {
            return;
        }
        for index in 0..LEAF_SLOTS {
            let slot = self.slot_at(leaf, index);
            self.explosions.each_name(slot, |name| dropped.push(name));
            self.explosions.release(slot);
        }
        self.free_leaf(leaf);
    }

    /// Gives a stripe this leaf, of which the caller has a hold and hands it on, or none. What it had is let go of, as
    /// [`Map::release_leaf`] does; how many slots of that were private.
    pub fn put_leaf(
        &mut self,
        root: RootId,
        stripe: u64,
        leaf: Option<LeafId>,
        dropped: &mut Vec<Chunk>,
    ) -> u64 {
        let before = self.leaf_and_private(root, stripe);
        if before.is_none() && leaf.is_none() {
            return 0;
        }
        let private = before.filter(|&(_, private)| private).map_or(0, |(old, _)| self.private_slots_in(old));
        let mapped_before = before.map_or(0, |(old, _)| self.mapped_blocks_in(old));
        let mapped = leaf.map_or(0, |leaf| self.mapped_blocks_in(leaf));
        let (table, step) = self.place_for_write(root, stripe);
        let child = leaf.map_or(0, |leaf| leaf.0 + 1);
        let old = std::mem::replace(&mut self.table_mut(table).children[step], child);
        match leaf {
            Some(leaf) => self.paths.put(root, stripe, leaf, false),
            None => self.paths.forget(root, stripe),
        }
        if let Some(old) = old.checked_sub(1) {
            self.release_leaf(LeafId(old), dropped);
        }
        self.changes += 1;
        let state = self.roots.entry(root).or_default();
        state.mapped_blocks = state.mapped_blocks.wrapping_add(mapped).wrapping_sub(mapped_before);
        state.private_slots = state.private_slots.saturating_sub(private);
        private
    }

    fn mapped_blocks_in(&self, leaf: LeafId) -> u64 {
        match &self.leaf_at(leaf).body {
            Body::Run { .. } => LEAF_SLOTS as u64 * u64::from(SLOT_BLOCKS),
            Body::Whole(words) => {
                let mapped = words.iter().filter(|&&word| word != SlotWord::EMPTY).count();
                mapped as u64 * u64::from(SLOT_BLOCKS)
            }
            Body::Dense(slots) => {
                slots.iter().map(|&slot| u64::from(self.explosions.mapped_blocks(slot))).sum()
            }
            Body::Free => 0,
        }
    }

    /// Slots that have a private chunk, if the leaf is its root's alone.
    fn private_slots_in(&self, leaf: LeafId) -> u64 {
        match &self.leaf_at(leaf).body {
            Body::Run { frozen, .. } => {
                if *frozen {
                    0
                } else {
                    LEAF_SLOTS as u64
                }
            }
            Body::Whole(words) => {
                words.iter().filter(|word| word.slot().private_chunk().is_some()).count() as u64
            }
            Body::Dense(slots) => {
                slots.iter().filter(|&&slot| self.explosions.private_chunk(slot).is_some()).count() as u64
            }
            Body::Free => 0,
        }
    }

    /// Whether a leaf is there, and how many parents and holders it has.
    pub fn parents_of(&self, leaf: LeafId) -> Option<u32> {
        let leaf = self.leaves.get(leaf.0 as usize / LEAVES_A_SLAB)?.get(leaf.0 as usize % LEAVES_A_SLAB)?;
        (!matches!(leaf.body, Body::Free)).then_some(leaf.refs)
    }

    /// The table above a stripe's leaf and the leaf's place in it, made this root's alone all the way down. Every change of what a
    /// stripe is like begins here.
    fn place_for_write(&mut self, root: RootId, stripe: u64) -> (u32, usize) {
        self.note_change(root, stripe);
        let mut parent: Option<(u32, usize)> = None;
        let mut at = self.roots.entry(root).or_default().top;
        for (step, level) in path(stripe).into_iter().zip((1..=LEVELS).rev()) {
            let mine = match at.checked_sub(1) {
                None => self.new_table(level, Vec::new()),
                Some(index) if self.table(index).refs > 1 => self.copy_table(index),
                Some(index) => index,
            };
            if at != mine + 1 {
                self.set_child(root, parent, mine + 1);
            }
            let table = self.table_mut(mine);
            table.dirty = true;
            if table.children.len() <= step {
                let before = table.children.capacity();
                table.children.resize(step + 1, 0);
                let grown = table.children.capacity() - before;
                self.table_bytes += grown * size_of::<Ref>();
            }
            parent = Some((mine, step));
            at = self.table(mine).children[step];
        }
        parent.expect("there are levels")
    }

    fn freeze_all(&mut self, leaf: LeafId) {
        let mut body = std::mem::replace(&mut self.leaf_at_mut(leaf).body, Body::Free);
        match &mut body {
            Body::Run { frozen, .. } => *frozen = true,
            Body::Whole(words) => words.iter_mut().for_each(SlotWord::freeze),
            Body::Dense(slots) => slots.iter_mut().for_each(|slot| self.explosions.freeze(slot)),
            Body::Free => {}
        }
        self.leaf_at_mut(leaf).body = body;
    }

    fn set_child(&mut self, root: RootId, parent: Option<(u32, usize)>, child: Ref) {
        match parent {
            None => self.roots.entry(root).or_default().top = child,
            Some((table, step)) => self.table_mut(table).children[step] = child,
        }
    }

    fn copy_table(&mut self, index: u32) -> u32 {
        self.changes += 1;
        let Table { level, ref children, .. } = *self.table(index);
        let children = children.clone();
        for &child in children.iter().filter(|&&child| child != 0) {
            if level == 1 {
                self.leaf_at_mut(LeafId(child - 1)).refs += 1;
            } else {
                self.table_mut(child - 1).refs += 1;
            }
        }
        self.table_mut(index).refs -= 1;
        self.new_table(level, children)
    }

    fn copy_leaf(&mut self, leaf: LeafId, stamp: u16, named: &mut Vec<Chunk>) -> LeafId {
        self.changes += 1;
        let mut body = std::mem::replace(&mut self.leaf_at_mut(leaf).body, Body::Free);
        let copy = match &mut body {
            Body::Run { first, frozen } => {
                *frozen = true;
                named.extend((0..LEAF_SLOTS as u32).map(|index| Chunk(*first + index)));
                Body::Run { first: *first, frozen: true }
            }
            Body::Whole(words) => {
                words.iter_mut().for_each(SlotWord::freeze);
                let chunks = words.iter().map(|word| word.slot().own_chunk());
                named.extend(chunks.filter(|chunk| chunk.is_some()));
                Body::Whole(words.clone())
            }
            Body::Dense(slots) => {
                let mut twins = Box::new([Slot::EMPTY; LEAF_SLOTS]);
                for (slot, twin) in slots.iter_mut().zip(twins.iter_mut()) {
                    if !slot.is_empty() {
                        self.explosions.freeze(slot);
                        *twin = self.explosions.twin(*slot);
                        named.extend(self.explosions.names(*twin));
                    }
                }
                Body::Dense(twins)
            }
            Body::Free => unreachable!("a parent names its leaves"),
        };
        let original = self.leaf_at_mut(leaf);
        original.body = body;
        original.refs -= 1;
        self.new_leaf(copy, stamp)
    }

    /// Puts a slot into a leaf that is this root's alone, which takes the form that it needs for that.
    fn set_slot(&mut self, leaf: LeafId, index: usize, slot: Slot) {
        match (&mut self.leaf_at_mut(leaf).body, slot.word()) {
            (Body::Dense(slots), _) => slots[index] = slot,
            (Body::Whole(words), Some(word)) => words[index] = word,
            (body, word) => {
                debug_assert!(!matches!(body, Body::Free), "a parent names its leaves");
                let mut slots = self.slots_of(leaf);
                slots[index] = slot;
                let body = match word.and_then(|_| words_of(&slots)) {
                    Some(words) => self.whole(words),
                    None => self.dense(&slots),
                };
                self.set_body(leaf, body);
            }
        }
    }

    /// Gives a slot new pointers. `leaf` is from [`Map::leaf_for_write`] of this root and the slot's stripe.
    pub fn change(
        &mut self,
        root: RootId,
        leaf: LeafId,
        index: usize,
        pointers: &[Pointer; SLOT_BLOCKS as usize],
        own: Chunk,
    ) -> Changed {
        let before = self.slot_at(leaf, index);
        let names_before = self.explosions.names(before);
        let mapped_before = self.explosions.mapped_blocks(before);
        let private_before = self.explosions.private_chunk(before).is_some();
        let mut slot = before;
        self.explosions.set(&mut slot, pointers, own);
        if slot != before {
            self.set_slot(leaf, index, slot);
        }
        let names = self.explosions.names(slot);
        let mapped = pointers.iter().flatten().count() as u32;
        let state = self.roots.entry(root).or_default();
        // While records are replayed over newer images the sum may be off; it is counted anew behind them.
        state.mapped_blocks =
            state.mapped_blocks.wrapping_add(u64::from(mapped)).wrapping_sub(u64::from(mapped_before));
        // Privacy that came back when others went was not counted; see `recount`.
        state.private_slots =
            (state.private_slots + u64::from(own.is_some())).saturating_sub(u64::from(private_before));
        let dropped: Names = names_before.iter().copied().filter(|name| !names.contains(name)).collect();
        let added: Names = names.iter().copied().filter(|name| !names_before.contains(name)).collect();
        self.changes += u64::from(!dropped.is_empty() || !added.is_empty());
        Changed { dropped, added }
    }

    /// Makes a slot that is not exploded all zeroes, without a chunk to fill. `leaf` as for [`Map::change`].
    pub fn clear(&mut self, root: RootId, leaf: LeafId, index: usize) -> Changed {
        let before = self.slot_at(leaf, index);
        self.set_slot(leaf, index, Slot::EMPTY);
        let dropped = self.explosions.names(before);
        let state = self.roots.entry(root).or_default();
        state.mapped_blocks = state.mapped_blocks.wrapping_sub(u64::from(before.mapped_mask().count_ones()));
        let private = before.private_chunk().is_some();
        state.private_slots = state.private_slots.saturating_sub(u64::from(private));
        self.changes += u64::from(!dropped.is_empty());
        Changed { dropped, added: Names::new() }
    }

    /// Gives an empty slot what a copy brings, whose names are counted. `leaf` as for [`Map::change`].
    pub fn fill(&mut self, root: RootId, leaf: LeafId, index: usize, slot: Slot) {
        debug_assert!(self.slot_at(leaf, index).is_empty() && slot.exploded_index().is_none());
        self.set_slot(leaf, index, slot);
        let state = self.roots.entry(root).or_default();
        state.mapped_blocks = state.mapped_blocks.wrapping_add(u64::from(slot.mapped_mask().count_ones()));
        self.changes += 1;
    }

    /// Nobody writes in place to what the slot names any more; what is granted to it alone stays so.
    pub fn freeze(&mut self, root: RootId, leaf: LeafId, index: usize) {
        let mut slot = self.slot_at(leaf, index);
        let (before, private) = (slot, self.explosions.private_chunk(slot).is_some());
        self.explosions.freeze(&mut slot);
        if slot != before {
            self.set_slot(leaf, index, slot);
        }
        if private && self.explosions.private_chunk(slot).is_none() {
            let state = self.roots.entry(root).or_default();
            state.private_slots = state.private_slots.saturating_sub(1);
        }
    }

    /// The own chunk is named by nobody else any more: it may be written in place again.
    pub fn thaw(&mut self, root: RootId, leaf: LeafId, index: usize) {
        let slot = self.slot_at(leaf, index);
        if slot.exploded_index().is_none() && slot.is_frozen() {
            let thawed =
                Slot::of(slot.own_chunk(), false, slot.own_mask(), slot.base_chunk(), slot.base_mask());
            self.set_slot(leaf, index, thawed);
            self.roots.entry(root).or_default().private_slots += 1;
        }
    }

    /// Shortens what can be shortened after changes: a run is one again, a leaf without a chunk goes.
    pub fn tidy(&mut self, root: RootId, stripe: u64, leaf: LeafId) {
        let (words, is_dense) = match &self.leaf_at(leaf).body {
            Body::Free | Body::Run { .. } => return,
            Body::Whole(words) => (**words, false),
            Body::Dense(slots) => match words_of(slots) {
                Some(words) => (words, true),
                None => return,
            },
        };
        if let Some((first, frozen)) = run_of_words(&words) {
            self.set_body(leaf, Body::Run { first: first.0, frozen });
        } else if words.iter().any(|&word| word != SlotWord::EMPTY) {
            if is_dense {
                let body = self.whole(words);
                self.set_body(leaf, body);
            }
        } else {
            let mut at = self.roots.get(&root).map_or(0, |root| root.top);
            let [slice, middle, last] = path(stripe);
            for step in [slice, middle] {
                at = self.table(at - 1).children[step];
            }
            self.table_mut(at - 1).children[last] = 0;
            self.paths.forget(root, stripe);
            self.free_leaf(leaf);
        }
    }

    /// A new root that is what `parent` is now. Both are shared from now on.
    pub fn fork(&mut self, parent: RootId, root: RootId) {
        self.changes += 1;
        let state = self.roots.get(&parent).copied().unwrap_or_default();
        if let Some(index) = state.top.checked_sub(1) {
            self.table_mut(index).refs += 1;
        }
        self.roots.insert(root, Root { private_slots: 0, ..state });
        // What was the parent's alone isn't any more.
        self.paths.forget_all();
        if let Some(parent) = self.roots.get_mut(&parent) {
            parent.private_slots = 0;
        }
    }

    /// Forgets a root; what only it reached is dropped by [`Map::drop_step`].
    pub fn drop_root(&mut self, root: RootId) {
        if let Some((changes, core)) = &self.told {
            changes.note_root(*core);
        }
        self.paths.forget_all();
        self.changes += 1;
        if let Some(Root { top, .. }) = self.roots.remove(&root)
            && top != 0
        {
            self.dropping.push((LEVELS, top));
        }
    }

    /// Forgets what a root has from `end` on; of the slot there, the blocks from `block` on. Everything dropped is
    /// put where [`Map::drop_step`] and `dropped` find it.
    pub fn truncate(
        &mut self,
        root: RootId,
        end: SlotNo,
        block: u32,
        named: &mut Vec<Chunk>,
        dropped: &mut Vec<Chunk>,
    ) {
        let stripes: Vec<u64> = self.stripes(root).filter(|&stripe| stripe >= end.stripe()).collect();
        for stripe in stripes {
            let leaf = self.leaf_for_write(root, stripe, named);
            for index in 0..LEAF_SLOTS {
                let slot = SlotNo(stripe * LEAF_SLOTS as u64 + index as u64);
                if slot < end || self.slot_at(leaf, index).is_empty() {
                    continue;
                }
                let mut pointers = self.explosions.pointers(self.slot_at(leaf, index));
                let first = if slot == end { block as usize } else { 0 };
                pointers[first..].fill(None);
                let own = match self.explosions.private_chunk(self.slot_at(leaf, index)) {
                    Some(own) if pointers.iter().flatten().any(|place| place.chunk == own) => own,
                    _ => Chunk::NONE,
                };
                let changed = self.change(root, leaf, index, &pointers, own);
                dropped.extend(changed.dropped);
            }
            self.tidy(root, stripe, leaf);
        }
    }

    /// Whether subtrees wait to be dropped.
    pub fn is_dropping(&self) -> bool {
        !self.dropping.is_empty()
    }

    /// Drops up to `nodes` nodes of what nobody reaches any more; the names of its leaves are given up.
    pub fn drop_step(&mut self, mut nodes: usize, dropped: &mut Vec<Chunk>) {
        if self.frozen_drops {
            return;
        }
        self.changes += 1;
        while nodes > 0
            && let Some((level, at)) = self.dropping.pop()
        {
            nodes -= 1;
            if level == 0 {
                self.release_leaf(LeafId(at - 1), dropped);
                continue;
            }
            self.table_mut(at - 1).refs -= 1;
            if self.table(at - 1).refs > 0 {
                continue;
            }
            let table = self.free_table(at - 1);
            let below = level - 1;
            self.dropping
                .extend(table.children.into_iter().filter(|&child| child != 0).map(|child| (below, child)));
        }
    }

    /// The stripes in which a root has leaves; in no order.
    pub fn stripes(&self, root: RootId) -> impl Iterator<Item = u64> {
        self.leaves_of(root).into_iter().map(|(stripe, _)| stripe)
    }

    /// Every leaf of a root with its stripe; in no order.
    pub fn leaves_of(&self, root: RootId) -> Vec<(u64, LeafId)> {
        let mut found = Vec::new();
        let Some(top) = self.roots.get(&root).and_then(|root| root.top.checked_sub(1)) else { return found };
        for (slice, &middles) in self.table(top).children.iter().enumerate() {
            let Some(middles) = middles.checked_sub(1) else { continue };
            for (high, &lasts) in self.table(middles).children.iter().enumerate() {
                let Some(lasts) = lasts.checked_sub(1) else { continue };
                for (low, &leaf) in self.table(lasts).children.iter().enumerate() {
                    if let Some(leaf) = leaf.checked_sub(1) {
                        let nth = (high << 8 | low) as u64;
                        found.push((nth * SLICES + slice as u64, LeafId(leaf)));
                    }
                }
            }
        }
        found
    }

    /// Hands out a root's leaves from `at` on, and of each how many parents it has, and whether nobody but this root reaches
    /// the tables above it; with `only_sole` no others. Ends after `looks` places of tables, or when `each` says so. Where to go on; `None` at the end.
    pub fn walk(
        &self,
        root: RootId,
        at: Cursor,
        only_sole: bool,
        mut looks: u32,
        mut each: impl FnMut(LeafId, u32, bool) -> bool,
    ) -> Option<Cursor> {
        let top = self.table(self.roots.get(&root)?.top.checked_sub(1)?);
        let Cursor([first, mut second, mut third]) = at;
        for slice in first..top.children.len() {
            let (from, start) = (std::mem::take(&mut second), std::mem::take(&mut third));
            looks = looks.saturating_sub(1);
            if looks == 0 {
                return Some(Cursor([slice, from, start]));
            }
            let Some(middle) = top.children[slice].checked_sub(1).map(|index| self.table(index)) else {
                continue;
            };
            let sole = top.refs == 1 && middle.refs == 1;
            if only_sole && !sole {
                continue;
            }
            third = start;
            for high in from..middle.children.len() {
                let start = std::mem::take(&mut third);
                looks = looks.saturating_sub(1);
                if looks == 0 {
                    return Some(Cursor([slice, high, start]));
                }
                let Some(last) = middle.children[high].checked_sub(1).map(|index| self.table(index)) else {
                    continue;
                };
                let sole = sole && last.refs == 1;
                if only_sole && !sole {
                    continue;
                }
                for low in start..last.children.len() {
                    looks = looks.saturating_sub(1);
                    if looks == 0 {
                        return Some(Cursor([slice, high, low]));
                    }
                    let Some(leaf) = last.children[low].checked_sub(1).map(LeafId) else { continue };
                    if !each(leaf, self.leaf_at(leaf).refs, sole) {
                        return Some(Cursor([slice, high, low + 1]));
                    }
                }
            }
            third = 0;
        }
        None
    }

    /// The next stripe of a root from `from` on that differs from `other`'s by more than sharing: of both, in ascending
    /// order of stripes, bounded by looking at `looks` stripes. The stripe where to go on.
    pub fn next_difference(
        &self,
        a: RootId,
        b: RootId,
        from: u64,
        end: u64,
        looks: u64,
    ) -> (Option<u64>, u64) {
        let find = |root: RootId, stripe| {
            self.roots.get(&root).and_then(|root| self.find(root, stripe)).map(|(l, _)| l)
        };
        for stripe in from..end.min(from + looks) {
            if find(a, stripe) != find(b, stripe) {
                return (Some(stripe), stripe + 1);
            }
        }
        (None, end.min(from + looks))
    }

    // What checkpoints and recovery need.

    /// Every leaf that has to be written out.
    pub fn is_dirty_leaf(&self, index: usize) -> Option<LeafId> {
        let leaf = self.leaves.get(index / LEAVES_A_SLAB)?.get(index % LEAVES_A_SLAB)?;
        (leaf.dirty && !matches!(leaf.body, Body::Free)).then_some(LeafId(index as u32))
    }

    /// One past the last index that [`Map::is_dirty_leaf`] can be asked for.
    pub fn leaves_end(&self) -> usize {
        self.leaves.last().map_or(0, |last| (self.leaves.len() - 1) * LEAVES_A_SLAB + last.len())
    }

    /// One past the last index of a table.
    pub fn tables_end(&self) -> usize {
        self.tables.len()
    }

    /// A table of this level that has to be written out.
    pub fn is_dirty_table(&self, index: usize, level: u8) -> Option<TableId> {
        let table = self.tables.get(index)?.as_ref()?;
        (table.dirty && table.level == level).then_some(TableId(index as u32))
    }

    /// All slots of a leaf.
    pub fn slots_of(&self, leaf: LeafId) -> [Slot; LEAF_SLOTS] {
        match &self.leaf_at(leaf).body {
            Body::Run { first, frozen } => {
                std::array::from_fn(|index| Slot::whole(Chunk(first + index as u32), *frozen))
            }
            Body::Whole(words) => words.map(SlotWord::slot),
            Body::Dense(slots) => **slots,
            Body::Free => unreachable!("a parent names its leaves"),
        }
    }

    /// A table's children that have to be written out before it: leaves, or tables.
    pub fn dirty_children(&self, table: TableId) -> Vec<Result<LeafId, TableId>> {
        let Table { level, ref children, .. } = *self.table(table.0);
        let children = children.iter().filter(|&&child| child != 0).map(|child| child - 1);
        if level == 1 {
            children.filter(|&leaf| self.leaf_at(LeafId(leaf)).dirty).map(|leaf| Ok(LeafId(leaf))).collect()
        } else {
            children.filter(|&below| self.table(below).dirty).map(|below| Err(TableId(below))).collect()
        }
    }

    /// A table's level, and its children's homes by their places.
    pub fn children_homes(&self, table: TableId) -> (u8, Vec<(u8, Home)>) {
        let Table { level, ref children, .. } = *self.table(table.0);
        let homes = children.iter().enumerate().filter(|&(_, &child)| child != 0).map(|(place, &child)| {
            let home =
                if level == 1 { self.leaf_at(LeafId(child - 1)).home } else { self.table(child - 1).home };
            (place as u8, home)
        });
        (level, homes.collect())
    }

    /// A leaf's image stands there now.
    pub fn leaf_written(&mut self, leaf: LeafId, home: Home) {
        let before = self.leaf_at(leaf).home;
        self.lose_home(before);
        self.live[home.segment as usize] += u32::from(home.size);
        let leaf = self.leaf_at_mut(leaf);
        let was_dirty = std::mem::take(&mut leaf.dirty);
        leaf.home = home;
        self.dirty_count -= usize::from(was_dirty);
    }

    /// A table's image stands there now.
    pub fn table_written(&mut self, table: TableId, home: Home) {
        let before = self.table(table.0).home;
        self.lose_home(before);
        self.live[home.segment as usize] += u32::from(home.size);
        let table = self.table_mut(table.0);
        (table.home, table.dirty) = (home, false);
    }

    /// Every node whose image is in a segment that `is_victim`, and every table above one, has to be written out again.
    pub fn dirty_in(&mut self, is_victim: impl Fn(u32) -> bool) {
        let in_victim = |home: Home| home.is_somewhere() && is_victim(home.segment);
        for leaf in self.leaves.iter_mut().flatten() {
            if !leaf.dirty && !matches!(leaf.body, Body::Free) && in_victim(leaf.home) {
                leaf.dirty = true;
                self.dirty_count += 1;
            }
        }
        for level in 1..=LEVELS {
            for index in 0..self.tables.len() {
                let Some(table) = &self.tables[index] else { continue };
                if table.level != level || table.dirty {
                    continue;
                }
                let dirty = in_victim(table.home) || !self.dirty_children(TableId(index as u32)).is_empty();
                self.table_mut(index as u32).dirty = dirty;
            }
        }
    }

    /// Where a root's top is; `None` for a root of zeroes.
    pub fn top_home(&self, root: RootId) -> Option<Home> {
        let top = self.roots.get(&root)?.top.checked_sub(1)?;
        Some(self.table(top).home)
    }

    /// A root's top, if it has to be written out.
    pub fn dirty_top(&self, root: RootId) -> Option<TableId> {
        let top = self.roots.get(&root)?.top.checked_sub(1)?;
        self.table(top).dirty.then_some(TableId(top))
    }

    /// A leaf as it was read back.
    pub fn load_leaf(&mut self, slots: Box<[Slot; LEAF_SLOTS]>, home: Home) -> LeafId {
        let leaf = self.new_leaf(Body::of(slots), NOBODY);
        self.leaf_at_mut(leaf).refs = 0;
        if home.is_somewhere() {
            self.leaf_written(leaf, home);
        }
        leaf
    }

    /// A table as it was read back; its children have one reference more each.
    pub fn load_table(&mut self, level: u8, children: &[(u8, u32)], home: Home) -> TableId {
        let length = children.iter().map(|&(place, _)| usize::from(place) + 1).max().unwrap_or(0);
        let mut refs = vec![0; length];
        for &(place, child) in children {
            refs[usize::from(place)] = child + 1;
            if level == 1 {
                self.leaf_at_mut(LeafId(child)).refs += 1;
            } else {
                self.table_mut(child).refs += 1;
            }
        }
        let table = TableId(self.new_table(level, refs));
        self.table_mut(table.0).refs = 0;
        if home.is_somewhere() {
            self.table_written(table, home);
        }
        table
    }

    /// A root as it was read back.
    pub fn load_root(&mut self, root: RootId, top: Option<TableId>, mapped_blocks: u64) {
        if let Some(top) = top {
            self.table_mut(top.0).refs += 1;
        }
        let top = top.map_or(0, |top| top.0 + 1);
        self.roots.insert(root, Root { top, mapped_blocks, private_slots: 0 });
    }

    /// All roots of these cores' maps, dealt to `cores` cores. What slices share they go on to share; nothing has an
    /// image.
    pub fn redeal(maps: &[Map], cores: u16, segments: u32) -> Vec<Map> {
        let mut dealt: Vec<Map> = (0..cores).map(|_| Map::with_segments(segments)).collect();
        // Where a node of a map has gone, by its new core: one leaf may be reached from stripes of several.
        let mut known: Vec<BTreeMap<(u8, Ref), u32>> = vec![BTreeMap::new(); maps.len() * usize::from(cores)];
        let roots: std::collections::BTreeSet<RootId> =
            maps.iter().flat_map(|map| map.roots.keys().copied()).collect();
        for root in roots {
            let mut tops: Vec<Vec<(u8, u32)>> = vec![Vec::new(); usize::from(cores)];
            let mut mapped = 0;
            for (map, known) in maps.iter().zip(known.chunks_mut(usize::from(cores))) {
                let Some(state) = map.roots.get(&root) else { continue };
                mapped += state.mapped_blocks;
                let Some(top) = state.top.checked_sub(1) else { continue };
                for (slice, &child) in
                    map.table(top).children.iter().enumerate().filter(|&(_, &child)| child != 0)
                {
                    let core = slice % usize::from(cores);
                    let moved = map.copy_below(&mut dealt[core], LEVELS - 1, child, &mut known[core]);
                    tops[core].push((slice as u8, moved));
                }
            }
            for (map, children) in dealt.iter_mut().zip(tops) {
                let top = (!children.is_empty()).then(|| map.load_table(LEVELS, &children, Home::NOWHERE));
                map.load_root(root, top, mapped);
                map.recount(root);
            }
        }
        dealt
    }

    /// Copies a subtree of one slice to another map; its index there.
    fn copy_below(&self, to: &mut Map, level: u8, at: Ref, known: &mut BTreeMap<(u8, Ref), u32>) -> u32 {
        if let Some(&index) = known.get(&(level, at)) {
            return index;
        }
        let index = if level == 0 {
            let slots = self.slots_of(LeafId(at - 1)).map(|slot| match slot.exploded_index() {
                Some(_) => {
                    let mut moved = Slot::EMPTY;
                    to.explosions.set(&mut moved, &self.explosions.pointers(slot), Chunk::NONE);
                    moved
                }
                None => slot.without_grant(),
            });
            to.load_leaf(Box::new(slots), Home::NOWHERE).0
        } else {
            let children: Vec<(u8, Ref)> = (0u8..=255)
                .zip(&self.table(at - 1).children)
                .filter(|&(_, &child)| child != 0)
                .map(|(place, &child)| (place, child))
                .collect();
            let moved: Vec<(u8, u32)> = children
                .into_iter()
                .map(|(place, child)| (place, self.copy_below(to, level - 1, child, known)))
                .collect();
            to.load_table(level, &moved, Home::NOWHERE).0
        };
        known.insert((level, at), index);
        index
    }

    /// Every leaf there is, once, however often it is reached.
    pub fn leaf_ids(&self) -> impl Iterator<Item = LeafId> {
        (0..self.leaves_end())
            .map(|index| LeafId(index as u32))
            .filter(|&leaf| !matches!(self.leaf_at(leaf).body, Body::Free))
    }

    /// Makes a loaded leaf's slots private where `sole` says that nobody else names the chunk.
    pub fn make_private(&mut self, leaf: LeafId, sole: impl Fn(Chunk) -> bool) {
        match &self.leaf_at(leaf).body {
            Body::Run { first, .. } => {
                let first = *first;
                if (0..LEAF_SLOTS as u32).all(|index| sole(Chunk(first + index))) {
                    self.leaf_at_mut(leaf).body = Body::Run { first, frozen: false };
                }
            }
            Body::Whole(_) => {
                let Body::Whole(words) = &mut self.leaf_at_mut(leaf).body else { return };
                for word in words.iter_mut().filter(|word| **word != SlotWord::EMPTY) {
                    let slot = word.slot();
                    if sole(slot.own_chunk()) {
                        *word = slot.thawed().word().unwrap_or(*word);
                    }
                }
            }
            Body::Dense(_) => {
                let Body::Dense(slots) = &mut self.leaf_at_mut(leaf).body else { return };
                for slot in slots.iter_mut().filter(|slot| slot.exploded_index().is_none()) {
                    let (own, base) = (slot.own_chunk(), slot.base_chunk());
                    if own.is_some() && sole(own) {
                        *slot = slot.thawed();
                    } else if base.is_some() && sole(base) {
                        *slot = slot.swapped().thawed();
                    }
                }
            }
            Body::Free => {}
        }
    }

    /// Counts a root's private slots and mapped blocks anew, by its leaves.
    pub fn recount(&mut self, root: RootId) {
        let (mut mapped, mut private_slots) = (0u64, 0u64);
        for (stripe, leaf) in self.leaves_of(root) {
            let state = self.roots.get(&root);
            let private =
                state.and_then(|state| self.find(state, stripe)).is_some_and(|(_, private)| private);
            if private {
                self.leaf_at_mut(leaf).stamp = stamp_of(root);
            }
            for index in 0..LEAF_SLOTS {
                let slot = self.slot_at(leaf, index);
                mapped += u64::from(self.explosions.mapped_mask(slot).count_ones());
                private_slots += u64::from(private && self.explosions.private_chunk(slot).is_some());
            }
        }
        if let Some(state) = self.roots.get_mut(&root) {
            (state.mapped_blocks, state.private_slots) = (mapped, private_slots);
        }
    }

    /// A leaf's image, if it has one that is up to date.
    pub fn leaf_home(&self, leaf: LeafId) -> Home {
        self.leaf_at(leaf).home
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ROOT: RootId = RootId(1);

    /// A slot of each kind, of chunks that are nobody else's.
    fn slot(kind: u8, index: usize, frozen: bool) -> Slot {
        let chunk = Chunk(index as u32 + if kind == 1 { 1000 } else { 0 });
        match kind {
            0 | 1 => Slot::whole(chunk, frozen),
            2 => Slot::of(chunk, frozen, 0x00ff, Chunk::NONE, 0),
            _ => Slot::of(chunk, frozen, 0x00ff, Chunk(5000 + index as u32), 0xff00),
        }
    }

    proptest! {
        /// Goal: a leaf says what was put into it, whatever form it has taken for that, and what bodies take is counted. Method:
        /// slots of all kinds put, frozen, thawed and cleared at random places, tidied now and then, beside a table.
        #[test]
        fn a_leaf_is_what_was_put_into_it(
            whole in any::<bool>(),
            steps in prop::collection::vec((0u8..8, 0..LEAF_SLOTS, 0u8..4, any::<bool>()), 1..400),
        ) {
            let mut map = Map::with_segments(1);
            let mut model = [Slot::EMPTY; LEAF_SLOTS];
            if whole {
                model = std::array::from_fn(|index| slot(0, index, false));
            }
            let mut leaf = map.leaf_for_write(ROOT, 0, &mut Vec::new());
            for (index, &slot) in model.iter().enumerate().filter(|(_, slot)| !slot.is_empty()) {
                map.fill(ROOT, leaf, index, slot);
            }
            for (what, index, kind, frozen) in steps {
                match what {
                    0..=3 => {
                        map.clear(ROOT, leaf, index);
                        model[index] = slot(if what < 2 { 0 } else { kind }, index, frozen);
                        map.fill(ROOT, leaf, index, model[index]);
                    }
                    4 => {
                        map.clear(ROOT, leaf, index);
                        model[index] = Slot::EMPTY;
                    }
                    5 => {
                        map.freeze(ROOT, leaf, index);
                        model[index].freeze();
                    }
                    6 => {
                        map.thaw(ROOT, leaf, index);
                        model[index] = model[index].thawed();
                    }
                    _ => {
                        map.tidy(ROOT, 0, leaf);
                        leaf = map.leaf_for_write(ROOT, 0, &mut Vec::new());
                    }
                }
                prop_assert_eq!(map.slots_of(leaf), model);
                let mapped: u32 = model.iter().map(|slot| map.explosions.mapped_blocks(*slot)).sum();
                prop_assert_eq!(map.mapped_blocks_in(leaf), u64::from(mapped));
                let private = model.iter().filter(|slot| slot.private_chunk().is_some()).count();
                prop_assert_eq!(map.private_slots_in(leaf), private as u64);
            }
            map.tidy(ROOT, 0, leaf);
            let words = words_of(&model);
            if let Some(leaf) = map.leaf(ROOT, 0) {
                let body = &map.leaf_at(leaf).body;
                prop_assert_eq!(matches!(body, Body::Run { .. }), run_in(&model).is_some());
                prop_assert_eq!(matches!(body, Body::Dense(_)), words.is_none());
                prop_assert_eq!(map.body_bytes, body.bytes());
                prop_assert_eq!(map.list_count, usize::from(body.is_list()));
                // And what another root would get of it.
                let mut named = Vec::new();
                let copy = map.copy_leaf(leaf, stamp_of(RootId(2)), &mut named);
                let frozen = model.map(|mut slot| {
                    slot.freeze();
                    slot.without_grant()
                });
                prop_assert_eq!(map.slots_of(copy), frozen);
                let names: usize = frozen.iter().map(|&slot| map.explosions.names(slot).len()).sum();
                prop_assert_eq!(named.len(), names);
            } else {
                prop_assert!(model.iter().all(|slot| slot.is_empty()));
                prop_assert_eq!((map.body_bytes, map.list_count), (0, 0));
            }
        }
    }
}
