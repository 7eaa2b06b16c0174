//! A unit whose every block says which write it is from, and what the unit may hold after a crash.
//!
//! Invariant: at most one command is under way on a block, so what a block may hold is what was answered last, or what
//! was sent after that and not answered. Times are counts of what has been sent and heard; they order both.

use crate::initiator::{Initiator, Pdu, cdb16};
use std::io;
use std::ops::Range;
use std::time::Duration;

/// No answer has come.
pub const NEVER: u64 = u64::MAX;
/// Zeroes: never written, or unmapped.
pub const ZEROES: u64 = 0;
/// A block with parts of several writes, or with what nobody has written there.
pub const TORN: u64 = u64::MAX;

/// What fits into a write's first burst.
pub const COMMAND_BYTES_MAX: u32 = 64 << 10;

const STRETCHES: u64 = 16;
const STRETCH_BYTES: u64 = 1 << 20;
/// From one stretch to the next; odd, so that they begin in different places of the stripes.
const STRIDE_BYTES: u64 = 61 << 20;
const FIRST_BYTES: u64 = 512 << 10;

/// What a unit needs at least.
pub const UNIT_BYTES: u64 = 1 << 30;

const _: () = assert!(FIRST_BYTES + (STRETCHES - 1) * STRIDE_BYTES + STRETCH_BYTES <= UNIT_BYTES);

const LIMIT: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, Debug)]
struct Version {
    stamp: u64,
    sent: u64,
    heard: u64,
}

/// The unit, and all that its blocks have been since [`Stamped::settle`].
#[derive(Debug)]
pub struct Stamped {
    /// Its number.
    pub lun: u8,
    /// Its logical blocks.
    pub block_bytes: u32,
    places: Vec<Vec<Version>>,
    busy: Vec<bool>,
}

impl Stamped {
    /// A unit whose blocks have these stamps.
    pub fn holding(lun: u8, block_bytes: u32, stamps: &[u64]) -> Stamped {
        assert_eq!(stamps.len(), places(block_bytes), "a stamp for each block");
        let places = stamps.iter().map(|&stamp| vec![Version { stamp, sent: 0, heard: 0 }]).collect();
        Stamped { lun, block_bytes, places, busy: vec![false; stamps.len()] }
    }

    /// A unit that nobody has written to.
    pub fn empty(lun: u8, block_bytes: u32) -> Stamped {
        Stamped::holding(lun, block_bytes, &vec![ZEROES; places(block_bytes)])
    }

    /// How many blocks of it are used.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// At most `count` places from `from` on that one command may use: idle, and neighbours on the unit.
    pub fn idle(&self, from: usize, count: usize) -> Range<usize> {
        let stretch_end = (from / per_stretch(self.block_bytes) + 1) * per_stretch(self.block_bytes);
        let end = stretch_end.min(from + count);
        let busy = self.busy[from..end].iter().position(|&busy| busy);
        from..busy.map_or(end, |busy| from + busy)
    }

    /// A read of these places is on its way.
    pub fn read_sent(&mut self, range: &Range<usize>) {
        self.busy[range.clone()].fill(true);
    }

    /// It was put off.
    pub fn read_put_off(&mut self, range: &Range<usize>) {
        self.busy[range.clone()].fill(false);
    }

    /// It has brought `data`. Says what is wrong with them.
    pub fn read_heard(&mut self, range: &Range<usize>, data: &[u8]) -> Option<String> {
        self.busy[range.clone()].fill(false);
        let found = stamps_of(data, self.block_bytes, self.lba(range.start));
        if found.len() != range.len() {
            return Some(format!("unit {}: {} of {} blocks came", self.lun, found.len(), range.len()));
        }
        range.clone().zip(found).find_map(|(place, found)| {
            let held = self.places[place].last().map_or(ZEROES, |version| version.stamp);
            (found != held).then(|| self.told(place, found, &format!("{held} was written")))
        })
    }

    /// A write of `stamp` to these places is on its way.
    pub fn write_sent(&mut self, range: &Range<usize>, stamp: u64, now: u64) {
        for place in range.clone() {
            self.busy[place] = true;
            self.places[place].push(Version { stamp, sent: now, heard: NEVER });
        }
    }

    /// It was answered; if not `done`, with the word that nothing was.
    pub fn write_heard(&mut self, range: &Range<usize>, done: bool, now: u64) {
        for place in range.clone() {
            self.busy[place] = false;
            if !done {
                self.places[place].pop();
            } else if let Some(version) = self.places[place].last_mut() {
                version.heard = now;
            }
        }
    }

    /// Whether the unit may hold `found` after a crash: each block what was answered last, or sent after that. From then
    /// on it holds that.
    pub fn settle(&mut self, found: &[u64]) -> Vec<String> {
        let mut wrong = Vec::new();
        for (place, &stamp) in found.iter().enumerate() {
            let versions = &self.places[place];
            let answered = versions.iter().rposition(|version| version.heard != NEVER).unwrap_or(0);
            let allowed: Vec<u64> = versions[answered..].iter().map(|version| version.stamp).collect();
            if !allowed.contains(&stamp) {
                wrong.push(self.told(place, stamp, &format!("{allowed:?} may be")));
            }
            self.places[place] = vec![Version { stamp, sent: 0, heard: 0 }];
            self.busy[place] = false;
        }
        wrong
    }

    /// Whether a snapshot may hold `found` that was asked for at `from` and there at `to`: one moment between the two.
    /// To be asked before [`Stamped::settle`].
    pub fn fits_snapshot(&self, found: &[u64], from: u64, to: u64) -> Vec<String> {
        let mut wrong = Vec::new();
        // The moment is after the sending of all that is in it, and before the answer to all that isn't.
        let (mut after, mut before) = ((0, 0), (NEVER, 0));
        for (place, &stamp) in found.iter().enumerate() {
            let versions = &self.places[place];
            let overwritten = |at: usize| versions.get(at + 1).map_or(NEVER, |version| version.heard);
            let fits = |at: &usize| {
                versions[*at].stamp == stamp && versions[*at].sent <= to && overwritten(*at) >= from
            };
            let Some(at) = (0..versions.len()).rev().find(fits) else {
                wrong.push(self.told(place, stamp, &format!("{versions:?} between {from} and {to}")));
                continue;
            };
            // Which of several moments of zeroes it is, nobody can say.
            if stamp != ZEROES {
                after = after.max((versions[at].sent, place));
                before = before.min((overwritten(at), place));
            }
        }
        if after.0 > before.0 {
            wrong.push(format!(
                "unit {}: place {} is from after {}, and place {} from before {}: no one moment",
                self.lun, after.1, after.0, before.1, before.0
            ));
        }
        wrong
    }

    /// Reads all of it.
    ///
    /// # Errors
    /// The socket's, or a read that fails.
    pub fn read_back(&self, initiator: &mut Initiator) -> io::Result<Vec<u64>> {
        read_back(initiator, self.lun, self.block_bytes)
    }

    /// READ(16) of these places, and how many bytes it brings.
    pub fn read_cdb(&self, range: &Range<usize>) -> ([u8; 16], u32) {
        let count = range.len() as u32;
        (cdb16(0x88, self.lba(range.start), count), count * self.block_bytes)
    }

    /// WRITE(16) of these places, and its data.
    pub fn write_cdb(&self, range: &Range<usize>, stamp: u64) -> ([u8; 16], Vec<u8>) {
        let lba = self.lba(range.start);
        let count = range.len() as u32;
        let words = self.block_bytes / 16;
        let mut data = Vec::with_capacity((count * self.block_bytes) as usize);
        for block in lba..lba + count {
            for word in 0..words {
                data.extend(stamp.to_le_bytes());
                data.extend((u64::from(block) << 32 | u64::from(word)).to_le_bytes());
            }
        }
        (cdb16(0x8a, lba, count), data)
    }

    /// WRITE SAME(16) of zeroes that may unmap, without data.
    pub fn zero_cdb(&self, range: &Range<usize>) -> [u8; 16] {
        let mut cdb = cdb16(0x93, self.lba(range.start), range.len() as u32);
        cdb[1] = 0x09;
        cdb
    }

    /// UNMAP of these places, and its parameter list.
    pub fn unmap_cdb(&self, range: &Range<usize>) -> ([u8; 10], [u8; 24]) {
        let mut list = [0; 24];
        list[1] = 22;
        list[3] = 16;
        list[12..16].copy_from_slice(&self.lba(range.start).to_be_bytes());
        list[16..20].copy_from_slice(&(range.len() as u32).to_be_bytes());
        ([0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0], list)
    }

    fn lba(&self, place: usize) -> u32 {
        lba(self.block_bytes, place)
    }

    fn told(&self, place: usize, found: u64, why: &str) -> String {
        let found = if found == TORN { "a torn block".to_owned() } else { found.to_string() };
        format!("unit {}, block {}: {found}, but {why}", self.lun, self.lba(place))
    }
}

/// The stamps of all used blocks of a unit, as they are now.
///
/// # Errors
/// The socket's, or a read that fails.
pub fn read_back(initiator: &mut Initiator, lun: u8, block_bytes: u32) -> io::Result<Vec<u64>> {
    let each = (COMMAND_BYTES_MAX / block_bytes) as usize;
    let mut stamps = Vec::with_capacity(places(block_bytes));
    for place in (0..places(block_bytes)).step_by(each) {
        let from = lba(block_bytes, place);
        let itt = initiator.command(lun, &cdb16(0x88, from, each as u32), &[], COMMAND_BYTES_MAX)?;
        let answer = initiator.answer(itt, LIMIT)?;
        if answer.bhs[3] != 0 || answer.data.len() != COMMAND_BYTES_MAX as usize {
            return Err(io::Error::other(format!("unit {lun}: the read at {from} failed: {answer:02x?}")));
        }
        stamps.extend(stamps_of(&answer.data, block_bytes, from));
    }
    Ok(stamps)
}

/// Whether a command was refused before anything was done: BUSY, TASK SET FULL, or a unit attention.
pub fn is_put_off(answer: &Pdu) -> bool {
    // Sense, behind its length: fixed format has the key in its third byte, descriptor format in its second.
    let key = match answer.data.get(2).map(|code| code & 0x7f) {
        Some(0x70) => answer.data.get(4),
        Some(0x72) => answer.data.get(3),
        _ => None,
    };
    let unit_attention = key.is_some_and(|key| key & 0x0f == 6);
    matches!((answer.bhs[3], unit_attention), (0x08 | 0x28, _) | (0x02, true))
}

fn per_stretch(block_bytes: u32) -> usize {
    (STRETCH_BYTES / u64::from(block_bytes)) as usize
}

fn places(block_bytes: u32) -> usize {
    per_stretch(block_bytes) * STRETCHES as usize
}

fn lba(block_bytes: u32, place: usize) -> u32 {
    let (stretch, within) = (place / per_stretch(block_bytes), place % per_stretch(block_bytes));
    let begin = FIRST_BYTES + stretch as u64 * STRIDE_BYTES;
    (begin / u64::from(block_bytes)) as u32 + within as u32
}

/// Each block's stamp.
fn stamps_of(data: &[u8], block_bytes: u32, first: u32) -> Vec<u64> {
    let word = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("eight bytes"));
    let stamp_of = |(block, data): (u64, &[u8])| {
        let stamp = word(&data[..8]);
        let mut words = data.chunks_exact(16).zip(0u64..);
        let whole = if stamp == ZEROES {
            data.iter().all(|&byte| byte == 0)
        } else {
            words.all(|(part, at)| word(&part[..8]) == stamp && word(&part[8..]) == block << 32 | at)
        };
        if whole { stamp } else { TORN }
    };
    (u64::from(first)..).zip(data.chunks_exact(block_bytes as usize)).map(stamp_of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: stamps are read as they were written; a block of two writes, a misplaced and a changed one are torn.
    #[test]
    fn stamps() {
        let unit = Stamped::empty(0, 512);
        let (_, data) = unit.write_cdb(&(5..8), 77);
        let first = unit.lba(5);
        assert_eq!(stamps_of(&data, 512, first), [77; 3]);
        assert_eq!(stamps_of(&data, 512, first + 1), [TORN; 3]);
        assert_eq!(stamps_of(&[0; 1024], 512, 0), [ZEROES; 2]);
        let (_, other) = unit.write_cdb(&(5..8), 78);
        let mut mixed = data.clone();
        mixed[768..].copy_from_slice(&other[768..]);
        assert_eq!(stamps_of(&mixed, 512, first), [77, TORN, 78]);
    }

    /// Goal: after a crash a block is what was answered last or sent since, and nothing else.
    #[test]
    fn what_a_crash_may_leave() {
        let written = || {
            let mut unit = Stamped::empty(0, 4096);
            unit.write_sent(&(0..2), 1, 1);
            unit.write_heard(&(0..2), true, 2);
            unit.write_sent(&(1..3), 2, 3);
            unit.write_sent(&(4..5), 3, 4);
            unit.write_heard(&(4..5), false, 5);
            unit
        };
        let allowed = |stamps: &[u64]| {
            let mut found = vec![ZEROES; written().len()];
            found[..stamps.len()].copy_from_slice(stamps);
            written().settle(&found).is_empty()
        };
        assert!(allowed(&[1, 1, 0]) && allowed(&[1, 2, 0]) && allowed(&[1, 1, 2]) && allowed(&[1, 2, 2]));
        assert!(!allowed(&[0, 1, 0]), "an answered write is lost");
        assert!(!allowed(&[1, 0, 0]), "older than what was answered");
        assert!(!allowed(&[1, 1, 0, 0, 3]), "a refused write is there");
        assert!(!allowed(&[1, TORN, 0]));
    }

    /// Goal: a snapshot is one moment between its request and its answer.
    #[test]
    fn what_a_snapshot_may_hold() {
        let mut unit = Stamped::empty(0, 4096);
        for (place, stamp, now) in [(0, 1, 1), (0, 2, 11), (1, 3, 13), (2, 4, 30)] {
            unit.write_sent(&(place..place + 1), stamp, now);
            unit.write_heard(&(place..place + 1), true, now + 1);
        }
        let fits = |stamps: &[u64]| {
            let mut found = vec![ZEROES; unit.len()];
            found[..stamps.len()].copy_from_slice(stamps);
            unit.fits_snapshot(&found, 10, 20).is_empty()
        };
        assert!(fits(&[1, 0]) && fits(&[2, 0]) && fits(&[2, 3]));
        assert!(!fits(&[0, 0]), "overwritten before the snapshot was asked for");
        assert!(!fits(&[1, 3]), "the later write without the earlier one");
        assert!(!fits(&[2, 3, 4]), "sent after the snapshot was there");
    }

    /// Goal: places of one command are neighbours and idle.
    #[test]
    fn idle_places() {
        let mut unit = Stamped::empty(0, 4096);
        assert_eq!(unit.idle(250, 16), 250..256);
        unit.read_sent(&(10..12));
        assert_eq!((unit.idle(4, 16), unit.idle(10, 3).len()), (4..10, 0));
        assert_eq!(unit.read_heard(&(10..12), &[0; 8192]), None);
        assert_eq!(unit.idle(4, 16), 4..20);
    }
}
