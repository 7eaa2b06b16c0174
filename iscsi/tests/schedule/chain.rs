//! COMPARE AND WRITE on blocks that all hosts share. Every one writes a value that nobody else writes, so whose value
//! stands there in the end says which came before it, and so on to the zeroes at the beginning: one chain.

use crate::Image;
use std::collections::BTreeMap;

/// Shared blocks.
pub(crate) const BLOCKS: u64 = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Aborted, or not answered.
    Unknown,
    /// The same, and the program ended meanwhile: of those that lie over an edge either side alone may be there.
    Cut,
    Good,
    Refused,
}

#[derive(Debug)]
struct Swap {
    at: u64,
    expected: Vec<u64>,
    fate: Fate,
}

/// All of them of one unit.
#[derive(Debug)]
pub(crate) struct Chain {
    /// The first of the blocks.
    pub(crate) first: u64,
    /// By the value that each writes.
    swaps: BTreeMap<u64, Swap>,
    /// What was written there last, as far as one knows.
    last: [u64; BLOCKS as usize],
}

impl Chain {
    pub(crate) fn new(first: u64) -> Chain {
        Chain { first, swaps: BTreeMap::new(), last: [0; BLOCKS as usize] }
    }

    pub(crate) fn blocks(&self) -> std::ops::Range<u64> {
        self.first..self.first + BLOCKS
    }

    /// What a block may have.
    pub(crate) fn guess(&self, at: u64) -> u64 {
        self.last[(at - self.first) as usize]
    }

    /// What a block certainly may have: zeroes, or what a swap wanted to write there.
    pub(crate) fn may_have(&self, at: u64, stamp: u64) -> bool {
        let covers = |swap: &Swap| (swap.at..swap.at + swap.expected.len() as u64).contains(&at);
        stamp == 0 || self.swaps.get(&stamp).is_some_and(|swap| swap.fate != Fate::Refused && covers(swap))
    }

    pub(crate) fn begin(&mut self, stamp: u64, at: u64, expected: Vec<u64>) {
        self.swaps.insert(stamp, Swap { at, expected, fate: Fate::Unknown });
    }

    /// The program has ended, and with it all that was not answered.
    pub(crate) fn cut(&mut self) {
        let unknown = self.swaps.values_mut().filter(|swap| swap.fate == Fate::Unknown);
        unknown.for_each(|swap| swap.fate = Fate::Cut);
    }

    pub(crate) fn end(&mut self, stamp: u64, fate: Fate) {
        let Some(swap) = self.swaps.get_mut(&stamp) else { return };
        swap.fate = fate;
        if fate == Fate::Good {
            let first = (swap.at - self.first) as usize;
            self.last[first..first + swap.expected.len()].fill(stamp);
        }
    }

    /// Any value that somebody wanted to write.
    pub(crate) fn any(&self, nth: u64) -> Option<u64> {
        self.swaps.keys().nth(nth as usize % self.swaps.len().max(1)).copied()
    }

    /// Every success is a link, wholly, nothing else but what is unknown is one, and nothing is torn.
    pub(crate) fn check(&self, image: &Image) {
        let mut links: BTreeMap<u64, usize> = BTreeMap::new();
        for at in self.blocks() {
            let mut stamp = image[&at];
            while stamp != 0 {
                let swap = self.swaps.get(&stamp).unwrap_or_else(|| panic!("{stamp} at {at} is nobody's"));
                assert_ne!(swap.fate, Fate::Refused, "{stamp} at {at}: {swap:?}");
                *links.entry(stamp).or_default() += 1;
                stamp = swap.expected[(at - swap.at) as usize];
            }
        }
        for (stamp, swap) in &self.swaps {
            let is_link = match links.get(stamp) {
                None => false,
                Some(&blocks) => {
                    let is_whole = blocks == swap.expected.len();
                    assert!(is_whole || swap.fate == Fate::Cut, "torn: {stamp} {swap:?}");
                    true
                }
            };
            assert!(is_link || swap.fate != Fate::Good, "lost: {stamp} {swap:?}");
        }
    }
}
