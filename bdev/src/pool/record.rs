//! What stands in the journal, one record behind the other.

use super::codec::{Malformed, Reader, Writer, read_slots};
use super::map::{RootId, SlotNo};
use super::slot::{Chunk, Explosions, Place, Pointer, SLOT_BLOCKS, Slot};

const SET: u8 = 1;
const ZERO: u8 = 2;
const ZERO_RUN: u8 = 3;
const INSTALL: u8 = 4;
const CATALOG: u8 = 5;

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

/// All records of one journal entry.
///
/// # Errors
/// It can't be what was written.
pub fn read(entry: &[u8], mut each: impl FnMut(Record)) -> Result<(), Malformed> {
    let mut from = Reader(entry);
    while !from.is_empty() {
        let record = match from.u8()? {
            SET => {
                let (root, slot, mask) = (RootId(from.u64()?), SlotNo(from.u64()?), from.u16()?);
                let (chunk, at, first) = (Chunk(from.u32()?), from.u8()?, from.u8()?);
                let last = 15 - mask.leading_zeros().min(15) as u8;
                if mask == 0 || mask.trailing_zeros() < u32::from(first) || at + (last - first) > 15 {
                    return Err(Malformed);
                }
                Record::Set { root, slot, mask, chunk, at, first }
            }
            ZERO => Record::Zero { root: RootId(from.u64()?), slot: SlotNo(from.u64()?), mask: from.u16()? },
            ZERO_RUN => {
                Record::ZeroRun { root: RootId(from.u64()?), slot: SlotNo(from.u64()?), count: from.u64()? }
            }
            INSTALL => {
                let (root, slot) = (RootId(from.u64()?), SlotNo(from.u64()?));
                let (count, all) = (usize::from(from.u8()?), from.u8()?);
                let masks = match all {
                    0 => (0..count).map(|_| from.u16()).collect::<Result<Vec<_>, _>>()?,
                    _ => vec![u16::MAX; count],
                };
                let mut explosions = Explosions::default();
                let slots = read_slots(&mut from, count, &mut explosions)?;
                let pointers = slots.iter().map(|&slot| explosions.pointers(slot)).collect();
                Record::Install { root, slot, masks, pointers }
            }
            CATALOG => {
                let length = from.u16()?;
                Record::Catalog(from.bytes(usize::from(length))?.to_vec())
            }
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
