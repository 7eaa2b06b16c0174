//! COMPARE AND WRITE on blocks that all hosts share. Every one writes a value that nobody else writes, so whose value
//! stands there in the end says which came before it, and so on to the zeroes at the beginning: one chain.

use crate::{BLOCK, block};
use std::collections::BTreeMap;

/// Shared blocks, behind those of the hosts, and all in one piece.
pub(crate) const FIRST: u64 = 1800;
pub(crate) const BLOCKS: u64 = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Aborted, or not answered.
    Unknown,
    Good,
    Refused,
}

#[derive(Debug)]
struct Swap {
    at: u64,
    expected: Vec<u64>,
    fate: Fate,
}

/// All of them, by the value that each writes.
#[derive(Debug, Default)]
pub(crate) struct Chain(BTreeMap<u64, Swap>);

/// The value in a block of the disk.
pub(crate) fn value(disk: &[u8], at: u64) -> u64 {
    let bytes = &disk[at as usize * BLOCK..][..BLOCK];
    let stamp = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    assert!(bytes == block(stamp), "torn at {at}");
    stamp
}

impl Chain {
    pub(crate) fn begin(&mut self, stamp: u64, at: u64, expected: Vec<u64>) {
        self.0.insert(stamp, Swap { at, expected, fate: Fate::Unknown });
    }

    pub(crate) fn end(&mut self, stamp: u64, fate: Fate) {
        self.0.entry(stamp).and_modify(|swap| swap.fate = fate);
    }

    /// Any value that somebody wanted to write.
    pub(crate) fn any(&self, nth: u64) -> Option<u64> {
        self.0.keys().nth(nth as usize % self.0.len().max(1)).copied()
    }

    /// Every success is a link, wholly, nothing else but what is unknown is one, and nothing is torn.
    pub(crate) fn check(&self, disk: &[u8]) {
        let mut links: BTreeMap<u64, usize> = BTreeMap::new();
        for at in FIRST..FIRST + BLOCKS {
            let mut stamp = value(disk, at);
            while stamp != 0 {
                let swap = self.0.get(&stamp).unwrap_or_else(|| panic!("{stamp} at {at} is nobody's"));
                assert_ne!(swap.fate, Fate::Refused, "{stamp} at {at}: {swap:?}");
                *links.entry(stamp).or_default() += 1;
                stamp = swap.expected[(at - swap.at) as usize];
            }
        }
        for (stamp, swap) in &self.0 {
            let is_link = match links.get(stamp) {
                None => false,
                Some(&blocks) => {
                    assert_eq!(blocks, swap.expected.len(), "torn: {stamp} {swap:?}");
                    true
                }
            };
            assert!(is_link || swap.fate != Fate::Good, "lost: {stamp} {swap:?}");
        }
    }
}
