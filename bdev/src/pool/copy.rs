//! Copies that move pointers. The source's shard freezes the slots, has every further name counted and that confirmed, and
//! sends the pointers to the destination's, which installs them like a write. A message of pointers ends in exactly one
//! way: each name it carries is installed or given up by its receiver. A whole stripe that goes to one of the same core
//! goes as its leaf, which gets one parent more and whose chunks get no name.

use super::changes::Told;
use super::mail::{Carried, Edition, Pointers, Share, Tell, What};
use super::map::{LEAF_SLOTS, LeafId, RootId, SlotNo};
use super::record;
use super::rule::Rule;
use super::shard::{Asked, PoolShard, Task};
use super::slot::{Chunk, Explosions, Place, Pointer, SLOT_BLOCKS, Slot as MapSlot, mask_of};
use super::space::CLUSTER_CHUNKS;
use crate::error::IoError;
use crate::io::BdevId;
use crate::storage::AsBytes;
use reactor::Core;
use reactor::slots::Slot;

const BLOCKS: u64 = SLOT_BLOCKS as u64;
pub(super) const STRIPE_BLOCKS: u64 = LEAF_SLOTS as u64 * BLOCKS;
/// What a whole leaf counts for in a turn's work, in slots: what its record takes.
const LEAF_WORK: u32 = 2;
/// The same for a whole stripe's slots that become a leaf.
const STRIPE_WORK: u32 = 8;
/// So many slots that are not exploded are captured in the time that one takes to be changed.
const WHOLE_SLOTS: u32 = 4;

#[derive(Debug)]
enum State {
    /// At the source's gate.
    Capturing { share: Share, hold: Option<Slot> },
    /// The destination's core is asked to take its own leaf of the edition of this one, which is held meanwhile.
    Offered { share: Share, leaf: LeafId },
    /// The further names are being counted elsewhere. `held`: they are of that leaf, all of it.
    Counting {
        share: Share,
        carried: Vec<Carried>,
        held: Option<LeafId>,
        left: u32,
        failed: Option<Unshared>,
    },
    /// With the destination.
    Away,
    /// At the destination's gate, or waiting for room in the journal.
    Installing { bdev: BdevId, carried: Vec<Carried>, edition: Option<Edition>, hold: Option<Slot> },
    /// The record is on its way.
    Recorded,
}

/// What is carried, and of its chunks those that each core counts.
struct Named {
    carried: Vec<Carried>,
    elsewhere: Vec<Vec<Chunk>>,
    /// No count of this core's is full.
    within: bool,
}

/// Why pointers don't leave.
#[derive(Clone, Copy, Debug)]
enum Unshared {
    /// What they lead to could not be made durable.
    Failed(IoError),
    /// A chunk has as many names as copies may make.
    CountFull,
}

/// A copy's part on this core.
#[derive(Debug)]
pub(super) struct Copying {
    from: Core,
    token: u64,
    state: State,
}

impl Carried {
    /// Where a block is; of one slot.
    fn pointer(&self, block: u32) -> Pointer {
        match &self.pointers {
            Pointers::Slot(slot) => slot.pointer(block),
            Pointers::Many(pointers) => pointers[block as usize],
            Pointers::Run(..) | Pointers::Leaf(_) => {
                debug_assert!(false, "runs are taken apart, leaves installed whole");
                None
            }
        }
    }

    /// The distinct chunks that it names.
    fn names(&self) -> smallvec::SmallVec<[Chunk; 4]> {
        match &self.pointers {
            Pointers::Slot(slot) => {
                [slot.own_chunk(), slot.base_chunk()].into_iter().filter(|name| name.is_some()).collect()
            }
            Pointers::Leaf(_) => smallvec::SmallVec::new(),
            Pointers::Run(first, count) => (first.0..first.0 + count).map(Chunk).collect(),
            Pointers::Many(pointers) => {
                let mut names = smallvec::SmallVec::new();
                for place in pointers.iter().flatten() {
                    if !names.contains(&place.chunk) {
                        names.push(place.chunk);
                    }
                }
                names
            }
        }
    }
}

/// What several slots get from one on, all of their blocks.
fn whole(slot: SlotNo, pointers: Pointers) -> Carried {
    Carried { slot, mask: mask_of(0, SLOT_BLOCKS), pointers }
}

/// Runs taken apart into their slots.
fn apart(carried: &[Carried]) -> Vec<Carried> {
    let slots = |one: &Carried| -> Vec<Carried> {
        match one.pointers {
            Pointers::Run(first, count) => (0..count)
                .map(|nth| Carried {
                    slot: SlotNo(one.slot.0 + u64::from(nth)),
                    mask: one.mask,
                    pointers: Pointers::Slot(MapSlot::whole(Chunk(first.0 + nth), true)),
                })
                .collect(),
            _ => vec![one.clone()],
        }
    };
    carried.iter().flat_map(slots).collect()
}

/// The slots of a whole stripe, if none of them is exploded.
fn whole_stripe(carried: &[Carried]) -> Option<[MapSlot; LEAF_SLOTS]> {
    if let [Carried { pointers: Pointers::Run(first, count), .. }] = *carried
        && count as usize == LEAF_SLOTS
    {
        return Some(std::array::from_fn(|nth| MapSlot::whole(Chunk(first.0 + nth as u32), true)));
    }
    let mut slots = [MapSlot::EMPTY; LEAF_SLOTS];
    if carried.len() != LEAF_SLOTS {
        return None;
    }
    for (place, one) in slots.iter_mut().zip(carried) {
        match one.pointers {
            Pointers::Slot(slot) if one.mask == u16::MAX => *place = slot,
            _ => return None,
        }
    }
    Some(slots)
}

/// Records have a longest length: as many slots as surely fit, exploded or not.
fn record_slots_max(slots: &[MapSlot]) -> usize {
    if slots.iter().any(|slot| slot.exploded_index().is_some()) { 40 } else { LEAF_SLOTS }
}

impl PoolShard {
    /// So much was copied to this pool as bytes.
    pub(crate) fn count_copied_bytes(&mut self, why: AsBytes, bytes: u64) {
        match why {
            AsBytes::Edge => self.counts.copy_edge_bytes += bytes,
            AsBytes::CountFull => self.counts.copy_count_full_bytes += bytes,
            AsBytes::Misaligned | AsBytes::Apart => self.counts.copy_misaligned_bytes += bytes,
        }
    }

    /// Begins a copy, of which the source is this core's.
    pub(super) fn share(&mut self, from: Core, token: u64, share: Share) {
        if self.volume(share.source).is_none() {
            return self.tell(from, token, Tell::Failed(IoError::GONE));
        }
        let state = State::Capturing { share, hold: None };
        let Ok(task) = self.tasks.insert(Task::Copy(Box::new(Copying { from, token, state }))) else {
            panic!("the shard bounds its requests")
        };
        let blocks = share.source_block..share.source_block + u64::from(share.blocks);
        // Slots are frozen whole, so writes to any block of them have to be through.
        let whole = blocks.start - blocks.start % BLOCKS..blocks.end.next_multiple_of(BLOCKS);
        let (hold, admitted) = self.enter(share.source, task, whole, true);
        if let Some(Task::Copy(copy)) = self.tasks.get_mut(task)
            && let State::Capturing { hold: place, .. } = &mut copy.state
        {
            *place = Some(hold);
        }
        if admitted {
            self.capture(task);
        }
    }

    pub(super) fn resume_copy(&mut self, task: Slot) {
        let Some(Task::Copy(copy)) = self.tasks.get(task) else { return };
        match &copy.state {
            State::Capturing { .. } => self.capture(task),
            State::Installing { .. } => self.start_install(task),
            _ => {}
        }
    }

    fn capture(&mut self, task: Slot) {
        if self.work_left == 0 {
            return self.parked.push_back(task);
        }
        let Some(Task::Copy(copy)) = self.tasks.get_mut(task) else { return };
        let State::Capturing { share, ref mut hold } = copy.state else { return };
        let hold = hold.take();
        let (from, token) = (copy.from, copy.token);
        let Some(volume) = self.volume(share.source) else {
            self.tasks.remove(task);
            return self.tell(from, token, Tell::Failed(IoError::GONE));
        };
        let (root, thick) = (volume.attached.root, volume.attached.thick);
        let (first, end) = (share.source_block, share.source_block + u64::from(share.blocks));
        let (first_slot, end_slot) = (first / BLOCKS, end.div_ceil(BLOCKS));
        let (leaf, sole) = self
            .map
            .leaf_and_private(root, SlotNo(first_slot).stripe())
            .map_or((None, true), |(leaf, sole)| (Some(leaf), sole));
        let mut private = 0;
        if thick
            && sole
            && let Some(leaf) = leaf
        {
            for slot in (first_slot..end_slot).map(SlotNo) {
                let slot = self.map.slot_at(leaf, slot.index());
                let explosions = &self.map.explosions;
                private += i64::from(explosions.private_chunk(slot).is_some() && !explosions.has_grant(slot));
            }
        }
        if (thick && !self.promises.reserve(private)) || !self.has_map_memory() {
            if let Some(hold) = hold {
                self.leave(share.source, hold);
            }
            self.tasks.remove(task);
            self.counts.copy_refused_bytes += u64::from(share.blocks) * super::slot::BLOCK_BYTES;
            return self.tell(from, token, Tell::Failed(IoError::OutOfSpace));
        }
        let owner = self.deal().owner(share.destination_block * super::slot::BLOCK_BYTES);
        if let Some(pointers) = self.hold_stripe(root, leaf, share, owner) {
            if let Some(hold) = hold {
                self.leave(share.source, hold);
            }
            self.spend(LEAF_WORK);
            if share.by_name
                && owner == from
                && owner != self.core
                && let Some(named) = self.name_stripe(root, SlotNo(first_slot).stripe(), &pointers)
            {
                self.tasks.remove(task);
                return self.tell(from, token, named);
            }
            let (slot, destination) = (SlotNo(share.destination_block / BLOCKS), share.destination);
            let (state, what) = match pointers {
                Pointers::Leaf(Some(leaf)) if owner != self.core => {
                    let Some(edition) = self.map.edition_of(leaf) else {
                        return self.send_slots(task, share, leaf);
                    };
                    let what = What::InstallTwin { destination, slot, edition: Some(edition) };
                    (State::Offered { share, leaf }, what)
                }
                pointers => {
                    self.counts.copy_shared_bytes += u64::from(share.blocks) * super::slot::BLOCK_BYTES;
                    let carried = vec![whole(slot, pointers)];
                    (State::Away, What::Install { destination, carried, edition: None })
                }
            };
            if let Some(Task::Copy(copy)) = self.tasks.get_mut(task) {
                copy.state = state;
            }
            return self.ask(owner, Asked::Copy(task), what);
        }
        if let (Some(leaf), false) = (leaf, sole || self.breaks(Rule::SharedLeafIsNobodys)) {
            // Its slots stay as they are: should it become this root's alone, they are frozen first.
            self.map.disown(leaf);
        }
        let may_freeze = sole && !self.breaks(Rule::FlagBoth);
        let named = self.name_slots(share, leaf, may_freeze.then_some(root));
        if let Some(hold) = hold {
            self.leave(share.source, hold);
        }
        self.count_elsewhere(task, share, named, None);
    }

    /// What the asker is told of a stripe that is held, which is let go of. `None`: it has no name, and is held as before.
    fn name_stripe(&mut self, root: RootId, stripe: u64, pointers: &Pointers) -> Option<Tell> {
        let count = self.map.changes_of(root, stripe);
        match *pointers {
            Pointers::Leaf(Some(leaf)) => {
                let edition = Some(self.map.edition_of(leaf)?);
                self.release(leaf);
                Some(Tell::Named { root, edition, count })
            }
            _ => Some(Tell::Named { root, edition: None, count }),
        }
    }

    /// What another core's stripe of a volume is like, if this core was told and it has not changed since.
    pub(crate) fn known(&self, source: BdevId, block: u64) -> Option<Told> {
        let (root, stripe) = self.root_and_stripe(source, block)?;
        let owner = self.deal().owner(block * super::slot::BLOCK_BYTES);
        self.known.get(root, stripe, self.changes.count(owner, root, stripe))
    }

    /// This core was told what another core's stripe is like, of the root that the volume had there; see [`Tell::Named`].
    pub(crate) fn note_known(&mut self, root: RootId, block: u64, edition: Option<Edition>, count: u64) {
        self.known.put(root, SlotNo(block / BLOCKS).stripe(), edition, count);
    }

    fn root_and_stripe(&self, bdev: BdevId, block: u64) -> Option<(RootId, u64)> {
        Some((self.volume(bdev)?.attached.root, SlotNo(block / BLOCKS).stripe()))
    }

    /// The destination's core has no leaf like the one that is held for it: it gets the slots.
    fn send_slots(&mut self, task: Slot, share: Share, leaf: LeafId) {
        let named = self.name_slots(share, Some(leaf), None);
        self.count_elsewhere(task, share, named, Some(leaf));
    }

    /// What a copy carries of a leaf slot by slot, with one more name for each of its chunks that this core counts.
    /// `freezes`: in the leaf of that root, whose alone it is, the slots are frozen.
    fn name_slots(&mut self, share: Share, leaf: Option<LeafId>, freezes: Option<RootId>) -> Named {
        let (first, end) = (share.source_block, share.source_block + u64::from(share.blocks));
        let (first_slot, end_slot) = (first / BLOCKS, end.div_ceil(BLOCKS));
        let shift = share.destination_block / BLOCKS;
        let mut elsewhere: Vec<Vec<Chunk>> = vec![Vec::new(); usize::from(self.cores)];
        let mut within = true;
        let count = (end_slot - first_slot) as u32;
        let run =
            leaf.filter(|_| (first | end).is_multiple_of(BLOCKS)).and_then(|leaf| self.map.run_of(leaf));
        let mut carried = Vec::new();
        if let (Some(leaf), Some((chunk, frozen))) = (leaf, run)
            && (frozen || count as usize == LEAF_SLOTS)
        {
            if let (Some(root), false) = (freezes, frozen) {
                self.map.freeze_run(root, leaf);
            }
            self.spend(1);
            let chunk = Chunk(chunk.0 + SlotNo(first_slot).index() as u32);
            within = self.name_run(chunk, count, &mut elsewhere);
            let pointers = Pointers::Run(chunk, count);
            carried.push(whole(SlotNo(shift), pointers));
        } else {
            let mut exploded = 0;
            carried.reserve_exact(count as usize);
            for number in first_slot..end_slot {
                let slot_no = SlotNo(number);
                let from_block = first.max(number * BLOCKS) - number * BLOCKS;
                let until = end.min((number + 1) * BLOCKS) - number * BLOCKS;
                let mask = mask_of(from_block as u32, (until - from_block) as u32);
                let mut slot = MapSlot::EMPTY;
                if let Some(leaf) = leaf {
                    if let Some(root) = freezes {
                        self.map.freeze(root, leaf, slot_no.index());
                    }
                    slot = self.map.slot_at(leaf, slot_no.index());
                }
                let pointers = self.carry(slot, mask);
                exploded += u32::from(matches!(pointers, Pointers::Many(_)));
                let one = Carried { slot: SlotNo(shift + number - first_slot), mask, pointers };
                for name in one.names() {
                    let owner = self.space.owner(name);
                    if owner == self.core {
                        within &= self.space.increment(name);
                    } else {
                        elsewhere[owner.index()].push(name);
                    }
                }
                carried.push(one);
            }
            self.spend(exploded + (count - exploded).div_ceil(WHOLE_SLOTS));
        }
        Named { carried, elsewhere, within }
    }

    /// Has the names counted that other cores count. The pointers go when they have.
    fn count_elsewhere(&mut self, task: Slot, share: Share, named: Named, held: Option<LeafId>) {
        let Named { carried, elsewhere, within } = named;
        let mut left = elsewhere.iter().filter(|names| !names.is_empty()).count() as u32;
        let owner = self.deal().owner(share.destination_block * super::slot::BLOCK_BYTES);
        let write_cache =
            self.volume(share.source).is_some_and(|volume| volume.attached.geometry.write_cache);
        if write_cache || owner != self.core && self.has_loose_data() {
            // Nobody else's record may name data that are not durable.
            left += 1;
            self.ask(self.core, Asked::Copy(task), What::Flush);
        }
        for (core, named) in elsewhere.into_iter().enumerate() {
            if !named.is_empty() {
                self.counts.chunk_messages += 1;
                self.ask(Core(core as u16), Asked::Copy(task), What::Counts { named, dropped: Vec::new() });
            }
        }
        let Some(Task::Copy(copy)) = self.tasks.get_mut(task) else { return };
        let failed = (!within).then_some(Unshared::CountFull);
        copy.state = State::Counting { share, carried, held, left, failed };
        if left == 0 || self.breaks(Rule::CountBeforePointer) {
            self.send_pointers(task);
        }
    }

    /// A hold of the leaf of a stripe that is copied whole to one of `owner`, or of none if nothing is mapped there. `None`: it is
    /// copied slot by slot.
    fn hold_stripe(
        &mut self,
        root: RootId,
        leaf: Option<LeafId>,
        share: Share,
        owner: Core,
    ) -> Option<Pointers> {
        let Share { source, source_block, destination_block, blocks, .. } = share;
        let is_whole = u64::from(blocks) == STRIPE_BLOCKS
            && (source_block | destination_block).is_multiple_of(STRIPE_BLOCKS);
        // A leaf that may change is nothing to tell another core of.
        let disowns = !self.breaks(Rule::SharedLeafIsNobodys);
        if !is_whole || owner != self.core && !disowns {
            return None;
        }
        let Some(leaf) = leaf else { return Some(Pointers::Leaf(None)) };
        // What is not durable yet is flushed on the way of names.
        let write_cache = self.volume(source).is_none_or(|volume| volume.attached.geometry.write_cache);
        let has_loose_data = owner != self.core && self.has_loose_data();
        if write_cache
            || has_loose_data
            || !self.map.hold_leaf(root, SlotNo(source_block / BLOCKS).stripe(), leaf)
        {
            return None;
        }
        if disowns {
            self.map.disown(leaf);
        }
        Some(Pointers::Leaf(Some(leaf)))
    }

    /// One more name for each of `count` neighbours; those of other cores are put into `elsewhere`. False: a count is full.
    fn name_run(&mut self, first: Chunk, count: u32, elsewhere: &mut [Vec<Chunk>]) -> bool {
        let mut within = true;
        let (mut at, end) = (first.0, first.0 + count);
        while at < end {
            let until = (at / CLUSTER_CHUNKS + 1).saturating_mul(CLUSTER_CHUNKS).min(end);
            let owner = self.space.owner(Chunk(at));
            if owner == self.core {
                within &= self.space.increment_run(Chunk(at), until - at);
            } else {
                elsewhere[owner.index()].extend((at..until).map(Chunk));
            }
            at = until;
        }
        within
    }

    fn carry(&self, slot: MapSlot, mask: u16) -> Pointers {
        if slot.exploded_index().is_none() {
            return Pointers::Slot(slot.only(mask));
        }
        let mut pointers = self.map.explosions.pointers(slot);
        for (block, place) in pointers.iter_mut().enumerate() {
            *place = place.filter(|_| mask >> block & 1 == 1).map(|place| Place { private: false, ..place });
        }
        Pointers::Many(Box::new(pointers))
    }

    fn send_pointers(&mut self, task: Slot) {
        let Some(Task::Copy(copy)) = self.tasks.get_mut(task) else { return };
        let State::Counting { share, carried, held, failed, .. } =
            std::mem::replace(&mut copy.state, State::Away)
        else {
            return;
        };
        let (from, token) = (copy.from, copy.token);
        // While it is held it does not change: what is carried is its edition.
        let edition = held.and_then(|leaf| self.map.edition_of(leaf));
        if let Some(leaf) = held {
            self.release(leaf);
        }
        if let Some(why) = failed {
            self.tasks.remove(task);
            self.drop_carried(&carried);
            let tell = match why {
                Unshared::Failed(error) => Tell::Failed(error),
                Unshared::CountFull => Tell::CountFull,
            };
            return self.tell(from, token, tell);
        }
        let owner = self.deal().owner(share.destination_block * super::slot::BLOCK_BYTES);
        self.counts.copy_shared_bytes += u64::from(share.blocks) * super::slot::BLOCK_BYTES;
        let what = What::Install { destination: share.destination, carried, edition };
        self.ask(owner, Asked::Copy(task), what);
    }

    /// Lets go of a leaf that was held.
    fn release(&mut self, leaf: LeafId) {
        let mut names = Vec::new();
        self.map.release_leaf(leaf, &mut names);
        self.give_up(names.into_iter());
    }

    /// Counted, or installed.
    pub(super) fn copy_told(&mut self, task: Slot, tell: &Tell) {
        let Some(Task::Copy(copy)) = self.tasks.get_mut(task) else { return };
        match &mut copy.state {
            State::Counting { left, failed, .. } => {
                *left -= 1;
                match tell {
                    Tell::Failed(error) => *failed = Some(Unshared::Failed(*error)),
                    Tell::CountFull => _ = failed.get_or_insert(Unshared::CountFull),
                    _ => {}
                }
                if *left == 0 {
                    self.send_pointers(task);
                }
            }
            &mut State::Offered { share, leaf } if matches!(tell, Tell::Unknown) => {
                self.send_slots(task, share, leaf);
            }
            State::Offered { .. } | State::Away => {
                let (from, token) = (copy.from, copy.token);
                if let Some(Task::Copy(copy)) = self.tasks.remove(task)
                    && let State::Offered { share, leaf } = copy.state
                {
                    self.release(leaf);
                    self.counts.copy_shared_bytes += u64::from(share.blocks) * super::slot::BLOCK_BYTES;
                }
                let tell = match tell {
                    Tell::Failed(error) => Tell::Failed(*error),
                    _ => Tell::Done,
                };
                self.tell(from, token, tell);
            }
            _ => {}
        }
    }

    /// A stripe is to become what a leaf of this core is, if there is one of that edition.
    pub(super) fn install_twin(
        &mut self,
        from: Core,
        token: u64,
        bdev: BdevId,
        slot: SlotNo,
        edition: Option<Edition>,
    ) {
        let leaf = match edition.map(|edition| self.map.hold_twin(edition)) {
            Some(None) => return self.tell(from, token, Tell::Unknown),
            Some(held) => held,
            None => None,
        };
        if from == self.core {
            // Nobody else will have counted it.
            self.counts.copy_shared_bytes += STRIPE_BLOCKS * super::slot::BLOCK_BYTES;
        }
        self.install(from, token, bdev, vec![whole(slot, Pointers::Leaf(leaf))], None);
    }

    /// Pointers have come for a volume of which this is the stripe's owner.
    pub(super) fn install(
        &mut self,
        from: Core,
        token: u64,
        bdev: BdevId,
        carried: Vec<Carried>,
        edition: Option<Edition>,
    ) {
        let (Some(first), Some(last)) = (carried.first(), carried.last()) else {
            return self.tell(from, token, Tell::Done);
        };
        if self.volume(bdev).is_none() {
            self.drop_carried(&carried);
            return self.tell(from, token, Tell::Failed(IoError::GONE));
        }
        let blocks = first.first_block()..last.end_block();
        let state = State::Installing { bdev, carried, edition, hold: None };
        let Ok(task) = self.tasks.insert(Task::Copy(Box::new(Copying { from, token, state }))) else {
            panic!("the shard bounds its requests")
        };
        let (hold, admitted) = self.enter(bdev, task, blocks, true);
        if let Some(Task::Copy(copy)) = self.tasks.get_mut(task)
            && let State::Installing { hold: place, .. } = &mut copy.state
        {
            *place = Some(hold);
        }
        if admitted {
            self.start_install(task);
        }
    }

    fn drop_carried(&mut self, carried: &[Carried]) {
        let mut names: Vec<Chunk> = carried.iter().flat_map(Carried::names).collect();
        if let [Carried { pointers: Pointers::Leaf(Some(leaf)), .. }] = *carried {
            self.map.release_leaf(leaf, &mut names);
        }
        self.give_up(names.into_iter());
    }

    fn start_install(&mut self, task: Slot) {
        if !self.journal_has_room(2) && self.broken.is_none() {
            return self.parked.push_back(task);
        }
        let has_memory = self.has_map_memory();
        let Some(Task::Copy(copy)) = self.tasks.get_mut(task) else { return };
        let State::Installing { bdev, carried, edition, hold } =
            std::mem::replace(&mut copy.state, State::Recorded)
        else {
            return;
        };
        let refused = match self.broken {
            Some(error) => Some(error),
            None if !has_memory => Some(IoError::OutOfSpace),
            None if self.volume(bdev).is_none() => Some(IoError::GONE),
            None => None,
        };
        if let Some(error) = refused {
            if let (IoError::OutOfSpace, Some(first), Some(last)) = (error, carried.first(), carried.last()) {
                let blocks = last.end_block() - first.first_block();
                self.counts.copy_refused_bytes += blocks * super::slot::BLOCK_BYTES;
            }
            self.drop_carried(&carried);
            self.finish_install(task, Err(error));
        } else {
            let root = self.volume(bdev).map_or(RootId(0), |volume| volume.attached.root);
            self.install_now(bdev, &carried, edition);
            let record = self.journal.appended();
            self.journal.wanted = true;
            self.copied.insert((root, carried[0].slot.stripe()), record);
            self.wait_for(record, task);
        }
        if let Some(hold) = hold {
            self.leave(bdev, hold);
        }
    }

    fn install_now(&mut self, bdev: BdevId, carried: &[Carried], edition: Option<Edition>) {
        let Some(volume) = self.volume(bdev) else { return };
        let (root, thick) = (volume.attached.root, volume.attached.thick);
        let stripe = carried[0].slot.stripe();
        let whole = match *carried {
            [Carried { pointers: Pointers::Leaf(leaf), .. }] => Some(leaf),
            // What comes from another core becomes a leaf at once, in place of one that is changed slot by slot.
            _ => whole_stripe(carried).map(|slots| {
                self.spend(STRIPE_WORK);
                let is_mapped = slots.iter().any(|slot| !slot.is_empty());
                is_mapped.then(|| {
                    let leaf = self.map.make_leaf(slots);
                    if let Some(edition) = edition {
                        self.map.set_edition(leaf, edition);
                    }
                    leaf
                })
            }),
        };
        if let Some(leaf) = whole {
            let slot = carried[0].slot;
            let is_nothing = leaf.is_none() && self.map.leaf(root, stripe).is_none();
            if is_nothing {
                return;
            }
            let mut dropped = Vec::new();
            let private = self.map.put_leaf(root, stripe, leaf, &mut dropped);
            if thick {
                self.promises.reserve_again(private as i64);
            }
            match leaf {
                Some(leaf) => self.append_leaf(root, slot, leaf),
                None => {
                    self.append(true, |out, _| record::write_zero_run(out, root, slot, LEAF_SLOTS as u64));
                }
            }
            return self.give_up(dropped.into_iter());
        }
        let is_run = |one: &Carried| matches!(one.pointers, Pointers::Run(..));
        let separate = if carried.iter().any(is_run) { apart(carried) } else { Vec::new() };
        let carried = if separate.is_empty() { carried } else { &separate };
        let mut named = std::mem::take(&mut self.named);
        let leaf = self.map.leaf_for_write(root, stripe, &mut named);
        self.named = named;
        self.count_named();
        self.spend(carried.len() as u32);
        let mut dropped = Vec::new();
        let mut scratch = Explosions::default();
        let mut slots = Vec::with_capacity(carried.len());
        for one in carried {
            let slot = self.map.slot_at(leaf, one.slot.index());
            if let Pointers::Slot(carried) = one.pointers
                && slot.is_empty()
            {
                if !carried.is_empty() {
                    self.map.fill(root, leaf, one.slot.index(), carried);
                }
                slots.push(carried);
                continue;
            }
            let names_before = self.map.explosions.names(slot);
            let had = self.map.explosions.private_chunk(slot).is_some();
            let mut pointers = self.map.explosions.pointers(slot);
            let mut only: [Pointer; SLOT_BLOCKS as usize] = [None; SLOT_BLOCKS as usize];
            for block in 0..SLOT_BLOCKS {
                if one.mask >> block & 1 == 1 {
                    let pointer = one.pointer(block);
                    (pointers[block as usize], only[block as usize]) = (pointer, pointer);
                }
            }
            let own = self.own_after(slot, &pointers, None);
            let changed =
                self.map.change(root, leaf, one.slot.index(), &pointers, own.unwrap_or(Chunk::NONE));
            if thick && had && own.is_none() {
                self.promises.reserve_again(1);
            }
            // Counted on the way here, but this slot named it already.
            dropped.extend(one.names().into_iter().filter(|name| names_before.contains(name)));
            dropped.extend(changed.dropped);
            let mut slot = MapSlot::EMPTY;
            scratch.set(&mut slot, &only, Chunk::NONE);
            slots.push(slot);
        }
        let most = record_slots_max(&slots);
        for (part, slots) in carried.chunks(most).zip(slots.chunks(most)) {
            let masks: Vec<u16> = part.iter().map(|one| one.mask).collect();
            let first = part[0].slot;
            self.append(true, |out, _| record::write_install(out, root, first, &masks, slots, &scratch));
        }
        self.give_up(dropped.into_iter());
        self.map.tidy(root, stripe, leaf);
    }

    /// The record of a stripe that got a leaf: what stands in it, as an image of it may be newer than the record.
    fn append_leaf(&mut self, root: RootId, first: SlotNo, leaf: LeafId) {
        let slots = self.map.slots_of(leaf);
        let most = record_slots_max(&slots);
        for (nth, slots) in (0..).step_by(most).zip(slots.chunks(most)) {
            let masks = &[u16::MAX; LEAF_SLOTS][..slots.len()];
            self.append(true, |out, map| {
                record::write_install(out, root, SlotNo(first.0 + nth), masks, slots, &map.explosions);
            });
        }
    }

    /// The copy's record is durable, or will never be.
    pub(super) fn finish_install(&mut self, task: Slot, result: Result<(), IoError>) {
        let Some(Task::Copy(copy)) = self.tasks.remove(task) else { return };
        let tell = result.map_or_else(Tell::Failed, |()| Tell::Done);
        self.tell(copy.from, copy.token, tell);
    }
}
