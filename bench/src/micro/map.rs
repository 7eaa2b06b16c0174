//! Where a block is: [`Map::slot`] at random addresses, of a volume that was written in sequence, whose leaves are runs, and
//! of one written in random pieces of 64 KiB, whose leaves are tables of slots.
//!
//! Each address waits for the slot before: otherwise a CPU looks up several at once, which no IO does.

use super::round::{Clock, Plan};
use super::rows::{Per, Row, Unit};
use crate::cases::median;
use crate::failure::Failure;
use crate::load::pattern::Random;
use crate::pool::rows::digits;
use crate::pool::shuffle::Shuffle;
use bdev::pool::map::{LEAF_SLOTS, Map, RootId, SlotNo};
use bdev::pool::slot::{CHUNK_BYTES, Chunk, Place};
use std::hint::black_box;

/// The volume's.
const ROOT: RootId = RootId(1);
/// The smallest volume: a stripe.
const VOLUME_BYTES_MIN: u64 = CHUNK_BYTES * LEAF_SLOTS as u64;
/// The largest: its map takes some 800 MiB.
const VOLUME_BYTES_MAX: u64 = 4 << 40;

/// The case, over volumes of so many bytes.
///
/// # Errors
/// A volume can't be as large.
pub(super) fn measure(plan: Plan, volume_bytes: u64) -> Result<Vec<Row>, Failure> {
    if !(VOLUME_BYTES_MIN..=VOLUME_BYTES_MAX).contains(&volume_bytes) {
        return Err(Failure::new(format!("--volume {volume_bytes} is not between 4M and 4T")));
    }
    let slots = volume_bytes / CHUNK_BYTES;
    let shuffle = Shuffle::new(slots, 3);
    let mut rows = Vec::new();
    for (name, is_random) in [("in sequence", false), ("in random 64 KiB pieces", true)] {
        let map = mapped(slots, |nth| if is_random { shuffle.at(nth) } else { nth });
        let mut look_up = looking_up(&map, slots);
        let mut draw = drawing(slots);
        let [rounds_ns, drawn] = plan.in_turns(Clock::Cpu, [&mut look_up, &mut draw])?;
        rows.push(Row {
            case: "map",
            what: format!("random slot of {} mapped {name}", size(volume_bytes)),
            rounds_ns,
            unit: Unit::Ns,
            per: Per::Operation,
            because: format!(
                "one after the other; {} ns of it are for drawing the address; the map takes {} MiB",
                digits(median(&drawn)),
                digits(map.memory_bytes() as f64 / f64::from(1 << 20)),
            ),
        });
    }
    Ok(rows)
}

/// In GiB if it is some of them.
fn size(bytes: u64) -> String {
    if bytes.is_multiple_of(1 << 30) {
        format!("{} GiB", bytes >> 30)
    } else {
        format!("{} MiB", bytes >> 20)
    }
}

/// The map of a volume whose slots were written in the order of `place`, each into the next chunk of an empty pool.
fn mapped(slots: u64, place: impl Fn(u64) -> u64) -> Map {
    let mut map = Map::with_segments(0);
    let mut named = Vec::new();
    for nth in 0..slots {
        let (slot, chunk) = (SlotNo(place(nth)), Chunk(nth as u32));
        let pointers = std::array::from_fn(|block| Some(Place { chunk, block: block as u8, private: true }));
        let leaf = map.leaf_for_write(ROOT, slot.stripe(), &mut named);
        map.change(ROOT, leaf, slot.index(), &pointers, chunk);
        map.tidy(ROOT, slot.stripe(), leaf);
    }
    map
}

fn looking_up(map: &Map, slots: u64) -> impl FnMut(u64) -> Result<(), Failure> {
    let mut random = Random::new(1);
    move |count| {
        // Zero, which the compiler may not know: by it an address needs the slot before, and is still what was drawn.
        let zero = black_box(0);
        let mut before = 0;
        for _ in 0..count {
            let (slot, is_sole) = map.slot(ROOT, SlotNo(random.below(slots) + before));
            let found = slot.pointer(0).map_or(0, |place| u64::from(place.chunk.0) << 1);
            before = (found + u64::from(is_sole)) & zero;
        }
        black_box(before);
        Ok(())
    }
}

/// The same without the map.
fn drawing(slots: u64) -> impl FnMut(u64) -> Result<(), Failure> {
    let mut random = Random::new(1);
    move |count| {
        let zero = black_box(0);
        let mut before = 0;
        for _ in 0..count {
            before = (random.below(slots) + before) & zero;
        }
        black_box(before);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the maps are what a pool would have: runs of one, tables of the other, every slot in its own chunk and
    /// private. Method: two stripes, in sequence and shuffled, slot by slot.
    #[test]
    fn maps_are_runs_and_tables() {
        let slots = 2 * LEAF_SLOTS as u64;
        let shuffle = Shuffle::new(slots, 3);
        for is_random in [false, true] {
            let order = |nth| if is_random { shuffle.at(nth) } else { nth };
            let map = mapped(slots, order);
            for nth in 0..slots {
                let (slot, is_sole) = map.slot(ROOT, SlotNo(order(nth)));
                assert_eq!((slot.whole_chunk(), is_sole), (Some((Chunk(nth as u32), false)), true));
            }
            for stripe in 0..2 {
                let leaf = map.leaf(ROOT, stripe).unwrap();
                assert_eq!(map.run_of(leaf).is_some(), !is_random);
            }
            looking_up(&map, slots)(1000).unwrap();
        }
    }

    /// Goal: volumes that make no map, or one too large, are refused.
    #[test]
    fn sizes_have_bounds() {
        let plan = Plan { rounds: 1, time: std::time::Duration::from_micros(10) };
        for bytes in [0, VOLUME_BYTES_MIN - 1, VOLUME_BYTES_MAX + 1, u64::MAX] {
            assert!(measure(plan, bytes).is_err(), "{bytes}");
        }
        assert_eq!((size(16 << 30).as_str(), size(8 << 20).as_str()), ("16 GiB", "8 MiB"));
    }
}
