//! Who may touch a range now: shared and exclusive holds in order of arrival.
//!
//! A hold conflicts with an earlier one that overlaps it if either is exclusive, or if the earlier one was fenced
//! before the later one came. It is admitted when all that it conflicts with have left, whether those were
//! admitted or still waiting themselves: nobody overtakes within a range, so nobody starves, and holds that do
//! not overlap never meet. While nothing is exclusive or fenced a hold costs a place in a table and no search; else it searches
//! only if somebody is in the same part of the device.
//!
//! Invariant: `waiting` holds exactly the entries with `blockers != 0`, in order of arrival; `blockers` is the
//! number of entries that came before and conflict. `parts` counts the entries that touch each part, by its number modulo `PARTS`,
//! and `wide` those that touch too many to count.

use reactor::slots::{Slot, Slots};
use std::collections::VecDeque;
use std::ops::Range;

/// What a hold tolerates beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Other shared holds.
    Shared,
    /// Nothing that overlaps.
    Exclusive,
}

#[derive(Debug)]
struct Hold {
    first: u64,
    end: u64,
    exclusive: bool,
    /// When it came, counted in holds.
    arrived: u64,
    /// What comes from this count on waits for it. `NOT_FENCED`: nothing does for that reason.
    fenced_at: u64,
    blockers: u32,
}

const NOT_FENCED: u64 = u64::MAX;
/// Parts of a device that are told apart.
const PARTS: usize = 1024;

impl Hold {
    /// Whether `later` has to wait for this one.
    fn blocks(&self, later: &Hold) -> bool {
        self.first < later.end
            && later.first < self.end
            && (self.exclusive || later.exclusive || self.fenced_at <= later.arrived)
    }
}

/// The parts of 2 to the power of `shift` that a hold touches; `None`: more than are told apart.
fn parts_of(hold: &Hold, shift: u32) -> Option<Range<u64>> {
    if hold.first >= hold.end {
        return Some(0..0);
    }
    let parts = hold.first >> shift..((hold.end - 1) >> shift) + 1;
    (parts.end - parts.start <= PARTS as u64).then_some(parts)
}

/// The holds on one device's ranges, in whatever unit the owner counts.
#[derive(Debug)]
pub struct Gate {
    holds: Slots<Hold>,
    waiting: VecDeque<Slot>,
    admitted: VecDeque<Slot>,
    arrivals: u64,
    /// How many holds are exclusive or fenced. 0: whoever comes is admitted without a look.
    strict: usize,
    parts: Box<[u16; PARTS]>,
    wide: usize,
    /// A part's length is 2 to the power of this.
    part_shift: u32,
}

impl Gate {
    /// A gate for at most `capacity` holds at once. Few of them should touch more than one part of `part_units`, a power of two.
    pub fn new(capacity: usize, part_units: u64) -> Gate {
        assert!(part_units.is_power_of_two());
        assert!(u16::try_from(capacity).is_ok(), "what is counted in a part");
        Gate {
            holds: Slots::with_capacity(capacity),
            waiting: VecDeque::new(),
            admitted: VecDeque::new(),
            arrivals: 0,
            strict: 0,
            parts: Box::new([0; PARTS]),
            wide: 0,
            part_shift: part_units.ilog2(),
        }
    }

    /// Asks for a range; an empty one conflicts with nothing. The hold's name, and whether it is admitted at once.
    /// Otherwise it comes out of [`Gate::next_admitted`] later.
    ///
    /// # Panics
    /// When there are more holds than promised: the shard bounds its requests.
    pub fn enter(&mut self, range: Range<u64>, mode: Mode) -> (Slot, bool) {
        let exclusive = mode == Mode::Exclusive;
        let (first, end) = if range.is_empty() { (u64::MAX, 0) } else { (range.start, range.end) };
        let mut hold =
            Hold { first, end, exclusive, arrived: self.arrivals, fenced_at: NOT_FENCED, blockers: 0 };
        self.arrivals += 1;
        let company = self.count_in(&hold);
        if company && (exclusive || self.strict != 0) {
            hold.blockers = self.holds.iter().filter(|(_, earlier)| earlier.blocks(&hold)).count() as u32;
        }
        self.strict += usize::from(exclusive);
        let admitted = hold.blockers == 0;
        let slot = self.holds.insert(hold).expect("the shard bounds its requests");
        if !admitted {
            self.waiting.push_back(slot);
        }
        (slot, admitted)
    }

    /// Gives an admitted range back.
    ///
    /// # Panics
    /// When the hold is not one that was admitted.
    pub fn leave(&mut self, slot: Slot) {
        let left = self.holds.remove(slot).expect("holds leave once");
        assert!(left.blockers == 0);
        let company = self.count_out(&left);
        self.strict -= usize::from(left.exclusive || left.fenced_at != NOT_FENCED);
        if company && !self.waiting.is_empty() {
            self.unblock(&left);
        }
    }

    /// Takes back a hold that still waits, so that those behind it need not. False: it is admitted already.
    pub fn withdraw(&mut self, slot: Slot) -> bool {
        let Some(place) = self.waiting.iter().position(|&waiting| waiting == slot) else {
            return false;
        };
        self.waiting.remove(place);
        let left = self.holds.remove(slot).expect("what waits is in the table");
        if self.count_out(&left) {
            self.unblock(&left);
        }
        self.strict -= usize::from(left.exclusive || left.fenced_at != NOT_FENCED);
        true
    }

    /// From now on whoever overlaps this hold waits until it leaves.
    pub fn fence(&mut self, slot: Slot) {
        let Some(hold) = self.holds.get_mut(slot) else {
            return;
        };
        if hold.fenced_at == NOT_FENCED {
            hold.fenced_at = self.arrivals;
            self.strict += usize::from(!hold.exclusive);
        }
    }

    /// A hold that waited and is admitted now.
    pub fn next_admitted(&mut self) -> Option<Slot> {
        self.admitted.pop_front()
    }

    /// Every hold, admitted or waiting.
    pub fn slots(&self) -> impl Iterator<Item = Slot> {
        self.holds.iter().map(|(slot, _)| slot)
    }

    /// Whether whoever comes and is shared is admitted, whatever the range.
    #[inline]
    pub fn is_open(&self) -> bool {
        self.strict == 0
    }

    /// How many are waiting.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Whether nobody holds or waits.
    pub fn is_empty(&self) -> bool {
        self.holds.is_empty()
    }

    /// Counts a hold that comes. Whether others touch a part that it does, as far as parts are told apart.
    fn count_in(&mut self, hold: &Hold) -> bool {
        let Some(parts) = parts_of(hold, self.part_shift) else {
            self.wide += 1;
            return true;
        };
        let mut company = self.wide > 0;
        for part in parts {
            let count = &mut self.parts[part as usize % PARTS];
            company |= *count > 0;
            *count += 1;
        }
        company
    }

    /// Counts a hold that goes. Whether others touch a part that it did.
    fn count_out(&mut self, hold: &Hold) -> bool {
        let Some(parts) = parts_of(hold, self.part_shift) else {
            self.wide -= 1;
            return true;
        };
        let mut company = self.wide > 0;
        for part in parts {
            let count = &mut self.parts[part as usize % PARTS];
            *count -= 1;
            company |= *count > 0;
        }
        company
    }

    fn unblock(&mut self, left: &Hold) {
        let Gate { holds, waiting, admitted, .. } = self;
        waiting.retain(|&slot| {
            let hold = holds.get_mut(slot).expect("what waits is in the table");
            // One that came before cannot conflict with an admitted hold; with a withdrawn one it can.
            if hold.arrived > left.arrived && left.blocks(hold) {
                hold.blockers -= 1;
                if hold.blockers == 0 {
                    admitted.push_back(slot);
                }
            }
            hold.blockers != 0
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Goal: a shared hold behind a waiting exclusive one does not overtake it, one beside it does.
    #[test]
    fn nobody_overtakes_in_a_range() {
        let mut gate = Gate::new(8, 16);
        let (reader, admitted) = gate.enter(0..10, Mode::Shared);
        assert!(admitted);
        let (writer, admitted) = gate.enter(5..6, Mode::Exclusive);
        assert!(!admitted);
        let (late, admitted) = gate.enter(0..6, Mode::Shared);
        assert!(!admitted);
        assert!(gate.enter(6..10, Mode::Shared).1);
        gate.leave(reader);
        assert_eq!(gate.next_admitted(), Some(writer));
        assert_eq!(gate.next_admitted(), None);
        gate.leave(writer);
        assert_eq!(gate.next_admitted(), Some(late));
    }

    /// Goal: a fence holds back those who come after it and nobody else, and goes with its hold.
    #[test]
    fn a_fence_holds_back_later_ones() {
        let mut gate = Gate::new(8, 16);
        let (given_up, _) = gate.enter(0..4, Mode::Shared);
        let (before, admitted) = gate.enter(0..4, Mode::Shared);
        assert!(admitted);
        gate.fence(given_up);
        gate.fence(given_up);
        let (after, admitted) = gate.enter(3..9, Mode::Shared);
        assert!(!admitted);
        gate.leave(before);
        assert_eq!(gate.next_admitted(), None);
        gate.leave(given_up);
        assert_eq!(gate.next_admitted(), Some(after));
        assert!(gate.enter(0..9, Mode::Shared).1);
        assert_eq!(gate.strict, 0);
    }

    /// Goal: a withdrawn hold lets those behind it go.
    #[test]
    fn a_withdrawn_hold_blocks_nobody() {
        let mut gate = Gate::new(8, 16);
        let (reader, _) = gate.enter(0..4, Mode::Shared);
        let (writer, _) = gate.enter(0..4, Mode::Exclusive);
        let (behind, admitted) = gate.enter(0..4, Mode::Shared);
        assert!(!admitted);
        assert!(gate.withdraw(writer));
        assert!(!gate.withdraw(reader));
        assert_eq!(gate.next_admitted(), Some(behind));
        assert_eq!((gate.waiting(), gate.strict), (0, 0));
    }

    const PART_UNITS: u64 = 1024;
    /// In one part, over several, and over all of them.
    const LENGTHS: [u64; 4] = [1, 200, PART_UNITS, PARTS as u64 * 300];

    proptest! {
        /// Goal: what is admitted together never conflicts, nothing overtakes what it conflicts with, and
        /// everything is admitted in the end. Method: random arrivals, fences, withdrawals and departures against
        /// a list of all holds in order of arrival.
        #[test]
        fn admits_by_the_rules(scale in 0usize..4, steps in prop::collection::vec((0u8..10, 0u64..16, 1u64..6, any::<prop::sample::Index>()), 1..300)) {
            struct Known { slot: Slot, range: Range<u64>, exclusive: bool, fenced: bool, admitted: bool, behind: Vec<Slot> }
            let mut gate = Gate::new(512, PART_UNITS);
            let mut known: Vec<Known> = Vec::new();
            let settle = |gate: &mut Gate, known: &mut Vec<Known>| {
                while let Some(slot) = gate.next_admitted() {
                    let place = known.iter().position(|k| k.slot == slot).unwrap();
                    known[place].admitted = true;
                }
                // Exactly those are admitted who are behind nobody that is still there.
                let there: Vec<Slot> = known.iter().map(|k| k.slot).collect();
                for k in known.iter() {
                    assert_eq!(k.admitted, !k.behind.iter().any(|slot| there.contains(slot)));
                }
            };
            let scale = LENGTHS[scale];
            for (what, first, length, pick) in steps {
                let (first, length) = (first * scale, length * scale);
                match what {
                    0..=4 => {
                        let range = first..first + length;
                        let exclusive = what == 0;
                        let behind: Vec<Slot> = known.iter()
                            .filter(|k| k.range.start < range.end && range.start < k.range.end)
                            .filter(|k| k.exclusive || exclusive || k.fenced)
                            .map(|k| k.slot).collect();
                        let (slot, admitted) = gate.enter(range.clone(), if exclusive { Mode::Exclusive } else { Mode::Shared });
                        known.push(Known { slot, range, exclusive, fenced: false, admitted, behind });
                    }
                    5 if !known.is_empty() => {
                        let place = pick.index(known.len());
                        known[place].fenced = true;
                        gate.fence(known[place].slot);
                    }
                    6 if !known.is_empty() => {
                        let place = pick.index(known.len());
                        prop_assert_eq!(gate.withdraw(known[place].slot), !known[place].admitted);
                        if !known[place].admitted {
                            known.remove(place);
                        }
                    }
                    _ => {
                        let held: Vec<usize> = (0..known.len()).filter(|&i| known[i].admitted).collect();
                        if !held.is_empty() {
                            let gone = known.remove(held[pick.index(held.len())]);
                            gate.leave(gone.slot);
                        }
                    }
                }
                settle(&mut gate, &mut known);
            }
            while let Some(place) = known.iter().position(|k| k.admitted) {
                gate.leave(known.remove(place).slot);
                settle(&mut gate, &mut known);
            }
            prop_assert!(known.is_empty() && gate.is_empty() && gate.strict == 0);
            prop_assert!(gate.wide == 0 && gate.parts.iter().all(|&count| count == 0));
        }
    }
}
