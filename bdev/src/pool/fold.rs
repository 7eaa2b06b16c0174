//! Slots that more than two chunks have blocks of are brought together again in one, beside requests: reads of them are
//! one operation then, their pointers take no memory, and chunks of which little is still in use become free.
//!
//! It reads and writes what nobody asked for, so it is done when nobody asks for anything, or when space is short, one slot
//! at a time; and only where it gains space: pieces that snapshots share would be there twice.
//!
//! A volume whose slot is under way keeps its root: what changes that waits, for one read and one write.

use super::mail::{Ask, Attached, What};
use super::map::{LEAF_SLOTS, LeafId, RootId, SlotNo};
use super::open::FoldWhen;
use super::owner::TOKENS_PLACE;
use super::shard::PoolShard;
use crate::error::IoError;
use crate::io::BdevId;
use crate::stripe::STRIPE_BYTES;
use reactor::Core;
use reactor::clock::Time;
use std::collections::VecDeque;
use std::time::Duration;

/// Nobody has asked for anything for so long.
const IDLE: Duration = Duration::from_secs(1);
/// Between two folds, and between two looks for one: 6.4 MiB/s on each core at the most.
const EVERY: Duration = Duration::from_millis(10);
/// When all was looked at and nothing found.
const REST: Duration = Duration::from_secs(60);
/// Stripes looked at in one turn.
const LOOKS: usize = 256;
/// One in so many chunks is free, or less: space is short, and folding does not wait for quiet.
const SHORT: i64 = 16;
/// A chunk, in the units that gains are counted in.
const CHUNK_GAIN: u64 = 64;

/// Where folding is.
#[derive(Debug, Default)]
pub(super) struct Folding {
    /// A slot of this volume is under way.
    pub(super) volume: Option<BdevId>,
    /// Asks that wait for it.
    behind: VecDeque<(Core, Ask)>,
    /// The next look: at the volume with this index, at this stripe.
    at: (usize, u64),
    /// Something was found since the first volume was begun with.
    found: bool,
    not_before: Time,
    when: FoldWhen,
    /// When somebody asked for something last.
    pub(super) asked_at: Time,
}

impl Folding {
    pub(super) fn new(when: FoldWhen) -> Folding {
        Folding { when, ..Folding::default() }
    }
}

impl PoolShard {
    /// Whether an ask has to wait for the fold under way; then it is taken.
    pub(super) fn waits_for_fold(&mut self, from: Core, ask: Ask) -> Option<Ask> {
        let volume = match &ask.what {
            What::Attach { bdev, .. } | What::Detach { bdev } => Some(*bdev),
            What::Fork { bdev, .. } => *bdev,
            _ => None,
        };
        if volume.is_some() && volume == self.folding.volume {
            self.folding.behind.push_back((from, ask));
            return None;
        }
        Some(ask)
    }

    fn is_short_of_space(&self) -> bool {
        self.folding.when == FoldWhen::Always
            || self.promises.free() < i64::from(self.superblock.chunks()) / SHORT
    }

    fn may_fold(&self) -> bool {
        self.folding.volume.is_none()
            && self.folding.when != FoldWhen::Never
            && !self.map.explosions.is_empty()
            && self.broken.is_none()
            && (self.tasks.is_empty() || self.is_short_of_space())
    }

    /// When [`PoolShard::fold_turn`] has something to do, if nothing else happens.
    pub(super) fn fold_deadline(&self) -> Time {
        if !self.may_fold() {
            return Time::NEVER;
        }
        let quiet = if self.is_short_of_space() { Time::ZERO } else { self.folding.asked_at + IDLE };
        quiet.max(self.folding.not_before)
    }

    /// Looks for a slot to fold, in bounded steps.
    pub(super) fn fold_turn(&mut self) {
        if self.now < self.fold_deadline() {
            return;
        }
        self.folding.not_before =
            if self.folding.when == FoldWhen::Always { self.now } else { self.now + EVERY };
        for _ in 0..LOOKS {
            let (index, stripe) = self.folding.at;
            if index >= self.volumes.len() {
                let found = std::mem::take(&mut self.folding.found);
                self.folding.at = (0, 0);
                if !found {
                    self.folding.not_before = self.now + REST;
                }
                return;
            }
            let volume = self.volumes[index].as_ref().map(|volume| volume.attached);
            // What tokens hold is gone before it would pay.
            let may_fold = |v: &Attached| {
                !v.thick && index != usize::from(TOKENS_PLACE) && stripe * STRIPE_BYTES < v.geometry.bytes()
            };
            let Some(attached) = volume.filter(may_fold) else {
                self.folding.at = (index + 1, 0);
                continue;
            };
            let bdev = BdevId(self.first_bdev + index as u16);
            let first = SlotNo(stripe * LEAF_SLOTS as u64);
            let found = self
                .map
                .leaf_and_private(attached.root, stripe)
                .filter(|&(_, private)| private)
                .and_then(|(leaf, _)| (0..LEAF_SLOTS).find(|&index| self.gains(leaf, index)));
            self.folding.at = (index, stripe + 1);
            if let Some(place) = found {
                // The same stripe again: it may have more.
                self.folding.at = (index, stripe);
                self.folding.found = true;
                self.folding.volume = Some(bdev);
                return self.begin_fold(bdev, SlotNo(first.0 + place as u64));
            }
        }
    }

    /// Whether a slot is still as it was when it was found.
    pub(super) fn is_worth_folding(&self, bdev: BdevId, slot: SlotNo) -> bool {
        let root = self.volume(bdev).map_or(RootId(0), |volume| volume.attached.root);
        let leaf = self.map.leaf_and_private(root, slot.stripe());
        leaf.is_some_and(|(leaf, private)| private && self.gains(leaf, slot.index()))
    }

    /// Whether folding a slot frees as much as it takes, on average: leaving a chunk that `n` slots name frees an `n`th of it.
    fn gains(&self, leaf: LeafId, index: usize) -> bool {
        let slot = self.map.slot_at(leaf, index);
        if slot.exploded_index().is_none() || self.folding.when == FoldWhen::Always {
            return slot.exploded_index().is_some();
        }
        let gain = |name| match self.space.owner(name) {
            owner if owner == self.core => CHUNK_GAIN / u64::from(self.space.count(name).max(1)),
            // Its count is another core's to tell.
            _ => CHUNK_GAIN / 2,
        };
        self.map.explosions.names(slot).into_iter().map(gain).sum::<u64>() >= CHUNK_GAIN
    }

    pub(super) fn fold_ended(&mut self, result: Result<(), IoError>) {
        self.folding.volume = None;
        if result.is_ok() {
            self.counts.folds += 1;
        } else {
            // Not the same one again and again, and where there is no space not the next one either.
            let (index, stripe) = self.folding.at;
            self.folding.at = (index, stripe + 1);
            self.folding.not_before = self.now + REST;
        }
        while let Some((from, ask)) = self.folding.behind.pop_front() {
            self.on_ask(from, ask);
        }
    }
}
