//! What a write leaves in each 512 bytes: bytes that say which write it was, of which volume and place, so that none
//! can be taken for another's. And what may stand in a unit, as a value: which write's bytes, and what was ORed to them.

use crate::sim::chance::mix;
use std::collections::BTreeMap;
use std::fmt;

/// What everything is counted in: the smaller of the logical blocks, and what a disk tears at.
pub const UNIT_BYTES: usize = 512;
/// Units of a block that is mapped as one.
pub const BLOCK_UNITS: usize = 8;
/// Units of a chunk: a request's parts lie in one each.
pub const CHUNK_UNITS: usize = 128;

/// Something that changes or captures volumes, in the order of asking. 0: nobody.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OpId(pub u32);

/// Nobody's: what was there before all else.
pub const NOBODY: OpId = OpId(0);

impl OpId {
    /// As an index into the table of all.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// What the bytes of a write look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// Every unit says whose it is.
    Stamp,
    /// Zeroes.
    Zeroes,
    /// By blocks: stamps, zeroes, zeroes and one byte, a few stamps among zeroes.
    Mixed,
}

#[derive(Clone, Copy, Debug)]
struct Pattern {
    fill: Fill,
    volume: u32,
    first_unit: u32,
}

/// What may stand in a unit, and by `unit + k` in the k-th one behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Content {
    /// Whose bytes. [`NOBODY`]: zeroes.
    pub write: OpId,
    /// Which of its units; of what begins within a block those before it count backwards.
    pub unit: i32,
    /// What was ORed to it: a set of [`Contents`].
    pub ors: u16,
}

/// Zeroes.
pub const ZERO: Content = Content { write: NOBODY, unit: 0, ors: 0 };

impl Content {
    /// What stands `units` behind it.
    pub fn behind(self, units: i32) -> Content {
        if self.write == NOBODY { self } else { Content { unit: self.unit + units, ..self } }
    }
}

/// What each write wrote.
#[derive(Debug)]
pub struct Contents {
    patterns: Vec<Option<Pattern>>,
    sets: Vec<Vec<OpId>>,
    known: BTreeMap<Vec<OpId>, u16>,
}

impl Default for Contents {
    fn default() -> Contents {
        Contents {
            patterns: vec![None],
            sets: vec![Vec::new()],
            known: std::iter::once((Vec::new(), 0)).collect(),
        }
    }
}

/// A word that stands in the stamps of `write`: the first says which unit it is.
fn stamp(write: OpId, unit: i32) -> u64 {
    u64::from(write.0) << 32 | u64::from(unit as u16) << 16 | 0x5a5a
}

impl Contents {
    /// The bytes of a write: it goes to `first_unit` of `volume`.
    pub fn remember(&mut self, write: OpId, fill: Fill, volume: u32, first_unit: u32) {
        if self.patterns.len() <= write.index() {
            self.patterns.resize(write.index() + 1, None);
        }
        self.patterns[write.index()] = Some(Pattern { fill, volume, first_unit });
    }

    /// `content` after `write`'s mask was ORed to it. `None`: it has it already.
    pub fn with_or(&mut self, content: Content, write: OpId) -> Option<Content> {
        let set = &self.sets[usize::from(content.ors)];
        let place = set.binary_search(&write).err()?;
        let mut set = set.clone();
        set.insert(place, write);
        let next = u16::try_from(self.sets.len()).expect("few things are ORed in one history");
        let ors = *self.known.entry(set.clone()).or_insert_with(|| {
            self.sets.push(set);
            next
        });
        Some(Content { ors, ..content })
    }

    /// The mask that `write` ORs to each unit.
    pub fn mask(write: OpId, into: &mut [u8]) {
        into.fill(0);
        for unit in into.chunks_exact_mut(UNIT_BYTES) {
            or_mask(write, unit);
        }
    }

    /// The bytes of the unit `k` behind the one that `content` is of.
    pub fn fill(&self, content: Content, k: usize, into: &mut [u8]) {
        let unit = content.unit + k as i32;
        match self.patterns[content.write.index()] {
            None => into.fill(0),
            Some(pattern) => pattern.fill(content.write, unit, into),
        }
        for &write in &self.sets[usize::from(content.ors)] {
            or_mask(write, into);
        }
    }

    /// Whether these are the bytes of the unit `k` behind the one that `content` is of.
    pub fn is(&self, content: Content, k: usize, bytes: &[u8]) -> bool {
        let plain = content.ors == 0;
        match self.patterns[content.write.index()] {
            None | Some(Pattern { fill: Fill::Zeroes, .. }) if plain => is_zero(bytes),
            Some(Pattern { fill: Fill::Stamp, .. })
                if bytes[..8] != stamp(content.write, content.unit + k as i32).to_le_bytes() =>
            {
                false
            }
            _ => {
                let mut expected = [0; UNIT_BYTES];
                self.fill(content, k, &mut expected);
                expected == bytes
            }
        }
    }

    /// Whose bytes these seem to be, in words.
    pub fn whose(&self, bytes: &[u8]) -> String {
        if is_zero(bytes) {
            return "zeroes".to_owned();
        }
        let word = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes"));
        let (write, unit) = (OpId((word >> 32) as u32), (word >> 16) as u16 as i32);
        let known = self.patterns.get(write.index()).copied().flatten();
        match known {
            Some(pattern) if word == stamp(write, unit) => {
                let mut expected = [0; UNIT_BYTES];
                pattern.fill(write, unit, &mut expected);
                let differs = expected.iter().zip(bytes).position(|(a, b)| a != b);
                let how = differs.map_or_else(String::new, |at| format!(", but differs from byte {at} on"));
                let Pattern { volume, first_unit, .. } = pattern;
                format!(
                    "#{} unit {unit} (written to volume {volume}, unit {first_unit}+{unit}){how}",
                    write.0
                )
            }
            _ => {
                let at = bytes.iter().position(|&byte| byte != 0).unwrap_or_default();
                format!("nobody's bytes: {:02x?} at byte {at}", &bytes[at..bytes.len().min(at + 16)])
            }
        }
    }

    /// A content in words.
    pub fn name(&self, content: Content, k: usize) -> Name<'_> {
        Name { contents: self, content, k }
    }
}

/// See [`Contents::name`].
#[derive(Debug)]
pub struct Name<'a> {
    contents: &'a Contents,
    content: Content,
    k: usize,
}

impl fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.contents.patterns[self.content.write.index()] {
            None => write!(f, "zeroes")?,
            Some(_) => write!(f, "#{} unit {}", self.content.write.0, self.content.unit + self.k as i32)?,
        }
        for write in &self.contents.sets[usize::from(self.content.ors)] {
            write!(f, " OR #{}", write.0)?;
        }
        Ok(())
    }
}

impl Pattern {
    fn fill(self, write: OpId, unit: i32, into: &mut [u8]) {
        let place = u64::from(self.first_unit).wrapping_add(unit as u64);
        let (block, within) = (place / BLOCK_UNITS as u64, place % BLOCK_UNITS as u64);
        let dice = mix(u64::from(write.0) << 32 | block);
        match (self.fill, dice % 4) {
            (Fill::Stamp, _) | (Fill::Mixed, 0) => self.stamp(write, unit, place, into),
            (Fill::Zeroes, _) | (Fill::Mixed, 1) => into.fill(0),
            (Fill::Mixed, 2) => {
                into.fill(0);
                let at = (dice >> 8) as usize % (BLOCK_UNITS * UNIT_BYTES);
                if at / UNIT_BYTES == within as usize {
                    into[at % UNIT_BYTES] = (dice >> 32) as u8 | 1;
                }
            }
            (Fill::Mixed, _) => {
                if dice >> (8 + within) & 1 == 0 {
                    into.fill(0);
                } else {
                    self.stamp(write, unit, place, into);
                }
            }
        }
    }

    fn stamp(self, write: OpId, unit: i32, place: u64, into: &mut [u8]) {
        let first = stamp(write, unit);
        for (index, word) in into.chunks_exact_mut(8).enumerate() {
            let value = match index {
                0 => first,
                1 => u64::from(self.volume) << 40 | place,
                _ => (first ^ index as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15),
            };
            word.copy_from_slice(&value.to_le_bytes());
        }
    }
}

/// One bit of a unit, behind its stamp.
fn or_mask(write: OpId, unit: &mut [u8]) {
    let bit = 128 + write.0 as usize % (UNIT_BYTES * 8 - 128);
    unit[bit / 8] |= 1 << (bit % 8);
}

/// Whether all of it is zero.
pub fn is_zero(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<16>();
    words.iter().all(|word| u128::from_ne_bytes(*word) == 0) && rest.iter().all(|&byte| byte == 0)
}
