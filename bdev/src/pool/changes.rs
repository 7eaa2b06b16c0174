//! Which stripes of a pool change, told to all cores at once: who was told what a stripe is like ([`super::mail::Tell::Named`])
//! sees here that it still is, and need not ask.
//!
//! Each core counts the changes of its own stripes, each before it is made and so before anybody is answered that it was. A
//! count that is what it was means that nothing has changed that anybody could know of: what is made of the stripe then is
//! made before the next change. A count stands for all stripes that fall on its place, so it may grow in vain, never the
//! other way round.

use super::mail::Edition;
use super::map::RootId;
use reactor::Core;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counts of a core: of its stripes of 128 GiB each, at 8 bytes.
const COUNTS: usize = 32 << 10;
/// Stripes of other cores that a core knows: 32 GiB of them, at 32 bytes each.
const KNOWN: usize = 8192;
const _: () = assert!(COUNTS.is_power_of_two() && KNOWN.is_power_of_two());

/// Spreads roots over a table in which a root's stripes are neighbours.
fn place(root: RootId, stripe: u64, places: usize) -> usize {
    stripe.wrapping_add(root.0.wrapping_mul(0x9e37)) as usize & (places - 1)
}

/// One core's counts. Only that core changes them.
#[derive(Debug)]
struct Counts {
    stripes: Box<[AtomicU64]>,
    /// Changes of whole roots.
    roots: AtomicU64,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Changes {
    cores: Box<[Counts]>,
}

fn grow(count: &AtomicU64) {
    // One writer: nothing gets lost between the two.
    count.store(count.load(Ordering::Relaxed).wrapping_add(1), Ordering::Release);
}

impl Changes {
    /// Of a pool on so many cores; one has nobody to tell.
    pub(super) fn new(cores: u16) -> Changes {
        let counts = |_| Counts {
            stripes: (0..COUNTS).map(|_| AtomicU64::new(0)).collect(),
            roots: AtomicU64::new(0),
        };
        Changes { cores: (0..if cores > 1 { cores } else { 0 }).map(counts).collect() }
    }

    /// This core is about to change a stripe of its own.
    #[inline]
    pub(super) fn note(&self, core: Core, root: RootId, stripe: u64) {
        if let Some(counts) = self.cores.get(core.index()) {
            grow(&counts.stripes[place(root, stripe, COUNTS)]);
        }
    }

    /// The same of all stripes of a root.
    pub(super) fn note_root(&self, core: Core) {
        if let Some(counts) = self.cores.get(core.index()) {
            grow(&counts.roots);
        }
    }

    /// How often what decides about a core's stripe has changed.
    #[inline]
    pub(super) fn count(&self, core: Core, root: RootId, stripe: u64) -> u64 {
        // Neither ever shrinks, so the sum is what it was only if both are.
        self.cores.get(core.index()).map_or(0, |counts| {
            let stripes = counts.stripes[place(root, stripe, COUNTS)].load(Ordering::Acquire);
            stripes.wrapping_add(counts.roots.load(Ordering::Acquire))
        })
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    /// 0: there is none.
    root: u64,
    stripe: u64,
    edition: Option<Edition>,
    count: u64,
}

/// What a core was told that a stripe is like: all of an edition, or nothing mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Told(pub(crate) Option<Edition>);

/// What a core was told of other cores' stripes. A place stands for every stripe that falls on it.
#[derive(Debug, Default)]
pub(super) struct Known {
    places: Box<[Entry]>,
}

impl Known {
    /// For a pool on so many cores.
    pub(super) fn new(cores: u16) -> Known {
        Known { places: vec![Entry::default(); if cores > 1 { KNOWN } else { 0 }].into() }
    }

    /// A stripe is of this edition, or nothing is mapped there, at this count.
    pub(super) fn put(&mut self, root: RootId, stripe: u64, edition: Option<Edition>, count: u64) {
        if let Some(place) = self.places.get_mut(place(root, stripe, KNOWN)) {
            *place = Entry { root: root.0, stripe, edition, count };
        }
    }

    /// The same, if the count is still that.
    #[inline]
    pub(super) fn get(&self, root: RootId, stripe: u64, count: u64) -> Option<Told> {
        let entry = self.places.get(place(root, stripe, KNOWN))?;
        (entry.root == root.0 && entry.stripe == stripe && entry.count == count)
            .then_some(Told(entry.edition))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: RootId = RootId(7);

    /// Goal: what was told holds until its own core changes that stripe or any root, and for no other stripe or root. Method: one
    /// stripe told, then each kind of change, on both cores.
    #[test]
    fn what_is_known_ends_with_a_change() {
        let changes = Changes::new(2);
        let mut known = Known::new(2);
        let (here, there) = (Core(0), Core(1));
        let told = |known: &mut Known| {
            known.put(ROOT, 5, Some(Edition(9)), changes.count(there, ROOT, 5));
        };
        let ask = |known: &Known, root, stripe| known.get(root, stripe, changes.count(there, root, stripe));
        assert_eq!(ask(&known, ROOT, 5), None);
        told(&mut known);
        assert_eq!(ask(&known, ROOT, 5), Some(Told(Some(Edition(9)))));
        assert_eq!(ask(&known, ROOT, 6), None);
        assert_eq!(ask(&known, RootId(8), 5), None);
        changes.note(here, ROOT, 5);
        changes.note_root(here);
        changes.note(there, ROOT, 6);
        assert_eq!(ask(&known, ROOT, 5), Some(Told(Some(Edition(9)))), "others' changes");
        changes.note(there, ROOT, 5);
        assert_eq!(ask(&known, ROOT, 5), None, "its own");
        told(&mut known);
        changes.note_root(there);
        assert_eq!(ask(&known, ROOT, 5), None, "a root's");
        told(&mut known);
        known.put(ROOT, 5 + KNOWN as u64, None, changes.count(there, ROOT, 5 + KNOWN as u64));
        assert_eq!(ask(&known, ROOT, 5), None, "another has the place");
        assert_eq!(ask(&known, ROOT, 5 + KNOWN as u64), Some(Told(None)));
    }

    /// Goal: a pool on one core, which nobody asks, takes nothing for it.
    #[test]
    fn one_core_knows_nothing() {
        let mut known = Known::new(1);
        known.put(ROOT, 5, None, 0);
        assert_eq!(known.get(ROOT, 5, 0), None);
        assert_eq!(Changes::new(1).count(Core(0), ROOT, 5), 0);
    }
}
