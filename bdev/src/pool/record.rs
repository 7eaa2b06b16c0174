//! What stands in the journal, one record behind the other.

use super::codec::{Malformed, Reader, Writer, read_slots};
use super::control::VOLUME_BYTES_MAX;
use super::map::{RootId, SlotNo};
use super::slot::{CHUNK_BYTES, Chunk, Explosions, Place, Pointer, SLOT_BLOCKS, Slot};

const SET: u8 = 1;
const ZERO: u8 = 2;
const ZERO_RUN: u8 = 3;
const INSTALL: u8 = 4;
const CATALOG: u8 = 5;
const DECREE: u8 = 6;
const OBEYED: u8 = 7;

/// A change that the journal has.
#[derive(Debug)]
#[allow(missing_docs, reason = "each field is what it is called")]
pub enum Record {
    /// The blocks in `mask` are in `chunk`, the slot's block `first` at block `at` there and so on.
    Set { root: RootId, slot: SlotNo, mask: u16, chunk: Chunk, at: u8, first: u8 },
    /// They are zeroes.
    Zero { root: RootId, slot: SlotNo, mask: u16 },
    /// All of so many slots.
    ZeroRun { root: RootId, slot: SlotNo, count: u64 },
    /// The blocks in each mask are where the slots say.
    Install { root: RootId, slot: SlotNo, masks: Vec<u16>, pointers: Vec<[Pointer; SLOT_BLOCKS as usize]> },
    /// A transaction of the catalog.
    Catalog(Vec<u8>),
    /// That core is to make these records its own, see [`super::stage`].
    Decree { number: u64, core: u16, records: Vec<u8> },
    /// That core's decrees up to this one are obeyed here: what stands before this in the entry is the last one's.
    Obeyed { core: u16, number: u64 },
}

/// See [`Record::Set`].
pub fn write_set(out: &mut Writer, root: RootId, slot: SlotNo, mask: u16, target: Place, first: u32) {
    out.u8(SET).u64(root.0).u64(slot.0).u16(mask).u32(target.chunk.0).u8(target.block).u8(first as u8);
}

/// See [`Record::Zero`].
pub fn write_zero(out: &mut Writer, root: RootId, slot: SlotNo, mask: u16) {
    out.u8(ZERO).u64(root.0).u64(slot.0).u16(mask);
}

/// See [`Record::ZeroRun`].
pub fn write_zero_run(out: &mut Writer, root: RootId, slot: SlotNo, count: u64) {
    out.u8(ZERO_RUN).u64(root.0).u64(slot.0).u64(count);
}

/// See [`Record::Install`]. `slots` only have what `masks` name.
pub fn write_install(
    out: &mut Writer,
    root: RootId,
    slot: SlotNo,
    masks: &[u16],
    slots: &[Slot],
    explosions: &Explosions,
) {
    out.u8(INSTALL).u64(root.0).u64(slot.0).u8(masks.len() as u8);
    let all = masks.iter().all(|&mask| mask == u16::MAX);
    out.u8(u8::from(all));
    if !all {
        for &mask in masks {
            out.u16(mask);
        }
    }
    super::codec::write_slots(out, slots, explosions);
}

/// See [`Record::Catalog`].
pub fn write_catalog(out: &mut Writer, transaction: &[u8]) {
    out.u8(CATALOG).u16(transaction.len() as u16).bytes(transaction);
}

/// See [`Record::Decree`].
pub fn write_decree(out: &mut Writer, number: u64, core: u16, records: &[u8]) {
    out.u8(DECREE).u64(number).u16(core).u16(records.len() as u16).bytes(records);
}

/// See [`Record::Obeyed`].
pub fn write_obeyed(out: &mut Writer, core: u16, number: u64) {
    out.u8(OBEYED).u16(core).u64(number);
}

/// Slots of the largest volume.
const SLOTS_MAX: u64 = VOLUME_BYTES_MAX / CHUNK_BYTES;

/// A slot with `count` slots from it on.
fn within(slot: u64, count: u64) -> Result<SlotNo, Malformed> {
    let end = slot.checked_add(count).ok_or(Malformed)?;
    if end <= SLOTS_MAX { Ok(SlotNo(slot)) } else { Err(Malformed) }
}

/// A record of one slot's blocks.
fn read_plain(kind: u8, from: &mut Reader<'_>) -> Result<Record, Malformed> {
    let (root, slot, mask) = (RootId(from.u64()?), within(from.u64()?, 1)?, from.u16()?);
    if kind == ZERO {
        return Ok(Record::Zero { root, slot, mask });
    }
    let (chunk, at, first) = (Chunk(from.u32()?), from.u8()?, from.u8()?);
    let last = 15 - mask.leading_zeros().min(15) as u8;
    let leads_out = u32::from(at) + u32::from(last.saturating_sub(first)) >= SLOT_BLOCKS;
    if kind != SET || mask == 0 || mask.trailing_zeros() < u32::from(first) || leads_out {
        return Err(Malformed);
    }
    Ok(Record::Set { root, slot, mask, chunk, at, first })
}

/// All records of one journal entry.
///
/// # Errors
/// It can't be what was written.
pub fn read(entry: &[u8], mut each: impl FnMut(Record)) -> Result<(), Malformed> {
    let mut from = Reader(entry);
    while !from.is_empty() {
        let kind = from.u8()?;
        let record = match kind {
            SET | ZERO => read_plain(kind, &mut from)?,
            ZERO_RUN => {
                let (root, slot, count) = (RootId(from.u64()?), from.u64()?, from.u64()?);
                Record::ZeroRun { root, slot: within(slot, count)?, count }
            }
            INSTALL => {
                let (root, slot) = (RootId(from.u64()?), from.u64()?);
                let (count, all) = (usize::from(from.u8()?), from.u8()?);
                let masks = match all {
                    0 => (0..count).map(|_| from.u16()).collect::<Result<Vec<_>, _>>()?,
                    _ => vec![u16::MAX; count],
                };
                let mut explosions = Explosions::default();
                let slots = read_slots(&mut from, count, &mut explosions)?;
                let pointers = slots.iter().map(|&slot| explosions.pointers(slot)).collect();
                Record::Install { root, slot: within(slot, count as u64)?, masks, pointers }
            }
            CATALOG => {
                let length = from.u16()?;
                Record::Catalog(from.bytes(usize::from(length))?.to_vec())
            }
            DECREE => {
                let (number, core, length) = (from.u64()?, from.u16()?, from.u16()?);
                let records = from.bytes(usize::from(length))?;
                // What is in it is as plain as what an atomic write says of its own.
                let mut within = Reader(records);
                while !within.is_empty() {
                    read_plain(within.u8()?, &mut within)?;
                }
                Record::Decree { number, core, records: records.to_vec() }
            }
            OBEYED => Record::Obeyed { core: from.u16()?, number: from.u64()? },
            _ => return Err(Malformed),
        };
        each(record);
    }
    Ok(())
}

/// The entries of a journal block's records.
///
/// # Errors
/// A length leads out of it.
pub fn entries(
    mut records: &[u8],
    mut each: impl FnMut(&[u8]) -> Result<(), Malformed>,
) -> Result<(), Malformed> {
    while !records.is_empty() {
        let mut from = Reader(records);
        let length = from.u16()?;
        let entry = from.bytes(usize::from(length))?;
        each(entry)?;
        records = from.0;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Goal: whatever a checksum fits to, a record that is accepted stays within its slot, its volume and its chunk,
        /// and nothing panics. Method: a kind and random bytes, small numbers among them.
        #[test]
        fn accepts_nothing_that_leads_out(
            kind in 1u8..9,
            bytes in prop::collection::vec(prop_oneof![Just(0u8), 0u8..17, any::<u8>()], 0..64),
        ) {
            let mut entry = vec![kind];
            entry.extend(bytes);
            let _ = read(&entry, |record| match record {
                Record::Set { slot, mask, at, first, .. } => {
                    assert!(slot.0 < SLOTS_MAX && mask != 0);
                    for block in (0..SLOT_BLOCKS).filter(|block| mask >> block & 1 == 1) {
                        assert!(u32::from(at) + block - u32::from(first) < SLOT_BLOCKS);
                    }
                }
                Record::ZeroRun { slot, count, .. } => assert!(slot.0 + count <= SLOTS_MAX),
                Record::Zero { slot, .. } => assert!(slot.0 < SLOTS_MAX),
                Record::Install { slot, masks, pointers, .. } => {
                    assert!(slot.0 + masks.len() as u64 <= SLOTS_MAX && masks.len() == pointers.len());
                }
                Record::Decree { records, .. } => {
                    let plain = |record| assert!(matches!(record, Record::Set { .. } | Record::Zero { .. }));
                    assert!(read(&records, plain).is_ok());
                }
                Record::Catalog(_) | Record::Obeyed { .. } => {}
            });
        }
    }
}
