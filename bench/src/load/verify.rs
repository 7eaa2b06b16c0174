//! Knows what every block must hold, so that reads can be checked.
//!
//! A block that is written carries, in every 8 bytes, a hash of its place, its generation and this run. One command
//! at a time has a block (invariant: `busy` holds exactly the blocks of the commands under way), so there is always
//! one right answer. Blocks this run hasn't written, or whose last write failed, have none and aren't checked.

use super::pattern::mix;
use crate::failure::Failure;

/// Blocks whose state is held: four bytes each and a bit, so half a GiB.
pub const BLOCKS_MAX: u64 = 1 << 27;

/// The generations of one thread's part of the range.
#[derive(Debug)]
pub struct Verifier {
    run: u64,
    first_block: u64,
    /// Zero: unknown content.
    generations: Vec<u32>,
    busy: Vec<u64>,
    /// Reads whose content was known and right.
    pub checked: u64,
    /// Reads of blocks with unknown content.
    pub unchecked: u64,
}

impl Verifier {
    /// Over `blocks` blocks (at most [`BLOCKS_MAX`]) from `first_block`; `run` tells this run's data from older data.
    pub fn new(first_block: u64, blocks: u64, run: u64) -> Verifier {
        assert!(blocks <= BLOCKS_MAX);
        Verifier {
            run,
            first_block,
            generations: vec![0; blocks as usize],
            busy: vec![0; blocks.div_ceil(64) as usize],
            checked: 0,
            unchecked: 0,
        }
    }

    /// Takes `block`, or the next free one after it, for one command. `None` if all are taken.
    pub fn claim(&mut self, block: u64) -> Option<u64> {
        let blocks = self.generations.len() as u64;
        let wanted = block - self.first_block;
        let free = (0..blocks).map(|step| (wanted + step) % blocks).find(|&at| !self.is_busy(at))?;
        self.busy[(free / 64) as usize] |= 1 << (free % 64);
        Some(self.first_block + free)
    }

    fn is_busy(&self, at: u64) -> bool {
        self.busy[(at / 64) as usize] & (1 << (at % 64)) != 0
    }

    /// Fills `data` with what the next generation of the claimed `block` is to hold.
    pub fn stamp(&mut self, block: u64, data: &mut [u8]) {
        let at = (block - self.first_block) as usize;
        self.generations[at] = self.generations[at].wrapping_add(1).max(1);
        fill(data, block, self.generations[at], self.run);
    }

    /// The write of the claimed `block` ended.
    pub fn wrote(&mut self, block: u64, good: bool) {
        let at = block - self.first_block;
        if !good {
            self.generations[at as usize] = 0;
        }
        self.release(at);
    }

    /// The read of the claimed `block` brought `data`, or failed.
    ///
    /// # Errors
    /// The data isn't what was written last.
    pub fn read(&mut self, block: u64, data: Option<&[u8]>) -> Result<(), Failure> {
        let at = block - self.first_block;
        self.release(at);
        let generation = self.generations[at as usize];
        let Some(data) = data else {
            return Ok(());
        };
        if generation == 0 {
            self.unchecked += 1;
            return Ok(());
        }
        self.checked += 1;
        match first_difference(data, block, generation, self.run) {
            None => Ok(()),
            Some(offset) => Err(self.explain(block, data, offset)),
        }
    }

    /// Whether this run knows what `block` holds.
    pub fn knows(&self, block: u64) -> bool {
        self.generations[(block - self.first_block) as usize] != 0
    }

    fn release(&mut self, at: u64) {
        self.busy[(at / 64) as usize] &= !(1 << (at % 64));
    }

    fn explain(&self, block: u64, data: &[u8], offset: usize) -> Failure {
        let generation = self.generations[(block - self.first_block) as usize];
        let found = &data[offset..(offset + 8).min(data.len())];
        let index = offset as u64 / 8;
        let older = (generation.saturating_sub(16).max(1)..generation)
            .rev()
            .find(|&older| word(block, older, self.run, index).to_le_bytes().starts_with(found));
        let guess = match older {
            Some(older) => format!("that is generation {older}: a lost or stale write"),
            None if found.iter().all(|byte| *byte == 0) => "zeroes".to_owned(),
            None => "of no recent generation of this block".to_owned(),
        };
        Failure::new(format!(
            "wrong data in block {block} (of {} bytes) at byte {offset}: found {found:02x?}, {guess}; generation \
             {generation} is due",
            data.len()
        ))
    }
}

fn word(block: u64, generation: u32, run: u64, index: u64) -> u64 {
    mix(mix(block ^ run) ^ (u64::from(generation) << 32) ^ index)
}

fn fill(data: &mut [u8], block: u64, generation: u32, run: u64) {
    for (index, bytes) in data.chunks_mut(8).enumerate() {
        let length = bytes.len();
        bytes.copy_from_slice(&word(block, generation, run, index as u64).to_le_bytes()[..length]);
    }
}

fn first_difference(data: &[u8], block: u64, generation: u32, run: u64) -> Option<usize> {
    let differs = |(index, bytes): (usize, &[u8])| {
        bytes != &word(block, generation, run, index as u64).to_le_bytes()[..bytes.len()]
    };
    data.chunks(8).enumerate().position(differs).map(|index| index * 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: right data passes; stale, foreign, shifted and zeroed data don't. Method: one block, each mistake.
    #[test]
    fn wrong_data_is_told_from_right() {
        let mut verifier = Verifier::new(10, 4, 99);
        let mut old = [0; 4096];
        let mut new = [0; 4096];
        for data in [&mut old, &mut new] {
            let block = verifier.claim(12).unwrap();
            verifier.stamp(block, data);
            verifier.wrote(block, true);
        }
        let mut check = |data: &[u8]| {
            let block = verifier.claim(12).unwrap();
            verifier.read(block, Some(data))
        };
        assert_eq!(check(&new), Ok(()));
        assert!(check(&old).unwrap_err().to_string().contains("generation 1: a lost or stale write"));
        assert!(check(&[0; 4096]).unwrap_err().to_string().contains("zeroes"));
        let mut torn = new;
        torn[2048..].copy_from_slice(&old[2048..]);
        assert!(check(&torn).unwrap_err().to_string().contains("at byte 2048"));
        let mut shifted = new;
        shifted.rotate_left(512);
        assert!(check(&shifted).is_err());
    }

    /// Goal: one command a block. Method: claim the same block until none is free, then give one back.
    #[test]
    fn a_block_has_one_command() {
        let mut verifier = Verifier::new(0, 3, 1);
        let claimed: Vec<_> = (0..3).map(|_| verifier.claim(1).unwrap()).collect();
        assert_eq!(claimed, [1, 2, 0]);
        assert_eq!(verifier.claim(1), None);
        verifier.wrote(2, true);
        assert_eq!(verifier.claim(1), Some(2));
    }

    /// Goal: content that is unknown isn't judged. Method: never written; and a write that failed.
    #[test]
    fn unknown_content_is_not_checked() {
        let mut verifier = Verifier::new(0, 2, 1);
        verifier.claim(0).unwrap();
        assert_eq!(verifier.read(0, Some(&[1; 512])), Ok(()));
        verifier.claim(0).unwrap();
        verifier.stamp(0, &mut [0; 512]);
        verifier.wrote(0, false);
        assert!(!verifier.knows(0));
        assert_eq!((verifier.checked, verifier.unchecked), (0, 1));
    }
}
