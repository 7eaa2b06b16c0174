//! What people made: volumes, snapshots, roots and mappings. One core owns it; changes are transactions, each one record
//! of that core's journal, and the whole is in its checkpoints.
//!
//! Ids are taken from one counter, are durable before they are used, and are never used again. A root that is another's
//! parent is never written to any more, so what a root began as is known for ever: its parent's end.

use super::codec::{Malformed, Reader, Writer};
use super::control::{Mapping, Provisioning, RESERVATIONS_BYTES_MAX};
use super::map::RootId;
use std::collections::BTreeMap;
use tracing::warn;

/// Bytes of reservations in one edit: with the rest of its transaction it fits a block of the journal.
const PART_BYTES: usize = 3072;

/// A volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// Its id.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// Its UUID.
    pub uuid: [u8; 16],
    /// Its size.
    pub bytes: u64,
    /// Logical block.
    pub block_bytes: u32,
    /// Physical block.
    pub physical_block_bytes: u32,
    /// Thin or thick.
    pub provisioning: Provisioning,
    /// Whether zeroes in writes become map state.
    pub zero_detect: bool,
    /// Acknowledge before it is durable.
    pub write_cache: bool,
    /// What it reads and writes through.
    pub root: RootId,
    /// The snapshot it was cloned from.
    pub origin: u64,
}

/// A snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Its id.
    pub id: u64,
    /// Of which volume.
    pub volume: u64,
    /// Its own name.
    pub name: String,
    /// What it reads through.
    pub root: RootId,
    /// The volume's size then.
    pub bytes: u64,
    /// Seconds since 1970.
    pub created: u64,
}

/// Where a root comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RootOrigin {
    /// What it began as; 0: zeroes.
    pub parent: RootId,
    /// Of that, only so many bytes.
    pub truncated: u64,
    /// It goes: its content is nobody's any more.
    pub dead: bool,
    /// A part of its map was lost: whatever is read through it can't be trusted, also when what is left was written anew.
    pub damaged: bool,
}

/// What is reserved of a volume, in its transport's words. It may be longer than a record, so it comes in parts; what was
/// there before holds until the last of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reserved {
    /// What holds.
    whole: Vec<u8>,
    /// What has come of the next. `None`: nothing, and what is no first part belongs to nothing.
    coming: Option<Vec<u8>>,
}

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Catalog {
    /// Counts transactions.
    pub sequence: u64,
    /// The next id.
    pub next_id: u64,
    /// By id.
    pub volumes: BTreeMap<u64, Volume>,
    /// By id.
    pub snapshots: BTreeMap<u64, Snapshot>,
    /// Also dead ones, until no checkpoint needs them.
    pub roots: BTreeMap<RootId, RootOrigin>,
    /// By target and number.
    pub mappings: BTreeMap<(String, u16), Mapping>,
    /// By the volume's id.
    pub reservations: BTreeMap<u64, Reserved>,
}

/// A step of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "each does what it is called")]
pub enum Edit {
    NextId(u64),
    PutVolume(Volume),
    RemoveVolume(u64),
    PutSnapshot(Snapshot),
    RemoveSnapshot(u64),
    PutRoot(RootId, RootOrigin),
    RemoveRoot(RootId),
    PutMapping(Mapping),
    RemoveMapping(String, u16),
    PutReservations { volume: u64, first: bool, last: bool, part: Vec<u8> },
}

fn write_flags(volume: &Volume) -> u8 {
    u8::from(volume.provisioning == Provisioning::Thick)
        | u8::from(volume.zero_detect) << 1
        | u8::from(volume.write_cache) << 2
}

impl Edit {
    /// The edits, each for a transaction of its own, after which these are a volume's reservations.
    pub fn put_reservations(volume: u64, bytes: &[u8]) -> Vec<Edit> {
        let count = bytes.len().div_ceil(PART_BYTES).max(1);
        let part = |at: usize| bytes.chunks(PART_BYTES).nth(at).unwrap_or_default().to_vec();
        (0..count)
            .map(|at| Edit::PutReservations { volume, first: at == 0, last: at + 1 == count, part: part(at) })
            .collect()
    }

    /// Appends it.
    pub fn encode(&self, out: &mut Writer) {
        match self {
            Edit::NextId(id) => out.u8(0).u64(*id),
            Edit::PutVolume(v) => {
                out.u8(1).u64(v.id).text(&v.name).bytes(&v.uuid).u64(v.bytes).u32(v.block_bytes);
                out.u32(v.physical_block_bytes).u8(write_flags(v)).u64(v.root.0).u64(v.origin)
            }
            Edit::RemoveVolume(id) => out.u8(2).u64(*id),
            Edit::PutSnapshot(s) => {
                out.u8(3).u64(s.id).u64(s.volume).text(&s.name).u64(s.root.0).u64(s.bytes).u64(s.created)
            }
            Edit::RemoveSnapshot(id) => out.u8(4).u64(*id),
            Edit::PutRoot(id, origin) => {
                let flags = u8::from(origin.dead) | u8::from(origin.damaged) << 1;
                out.u8(5).u64(id.0).u64(origin.parent.0).u64(origin.truncated).u8(flags)
            }
            Edit::RemoveRoot(id) => out.u8(6).u64(id.0),
            Edit::PutMapping(m) => {
                let flags = u8::from(m.read_only) | u8::from(m.removable) << 1;
                out.u8(7).text(&m.target).u16(m.lun).text(&m.volume).u8(flags)
            }
            Edit::RemoveMapping(target, lun) => out.u8(8).text(target).u16(*lun),
            Edit::PutReservations { volume, first, last, part } => {
                let flags = u8::from(*first) | u8::from(*last) << 1;
                out.u8(9).u64(*volume).u8(flags).u16(part.len() as u16).bytes(part)
            }
        };
    }

    fn decode(from: &mut Reader<'_>) -> Result<Edit, Malformed> {
        Ok(match from.u8()? {
            0 => Edit::NextId(from.u64()?),
            1 => {
                let (id, name, uuid, bytes) = (from.u64()?, from.text()?, from.uuid()?, from.u64()?);
                let (block_bytes, physical_block_bytes, flags) = (from.u32()?, from.u32()?, from.u8()?);
                if !matches!(block_bytes, 512 | 4096) || bytes == 0 {
                    return Err(Malformed);
                }
                Edit::PutVolume(Volume {
                    id,
                    name,
                    uuid,
                    bytes,
                    block_bytes,
                    physical_block_bytes,
                    provisioning: if flags & 1 != 0 { Provisioning::Thick } else { Provisioning::Thin },
                    zero_detect: flags & 2 != 0,
                    write_cache: flags & 4 != 0,
                    root: RootId(from.u64()?),
                    origin: from.u64()?,
                })
            }
            2 => Edit::RemoveVolume(from.u64()?),
            3 => {
                let (id, volume, name, root) = (from.u64()?, from.u64()?, from.text()?, RootId(from.u64()?));
                Edit::PutSnapshot(Snapshot {
                    id,
                    volume,
                    name,
                    root,
                    bytes: from.u64()?,
                    created: from.u64()?,
                })
            }
            4 => Edit::RemoveSnapshot(from.u64()?),
            5 => {
                let (id, parent, truncated) = (RootId(from.u64()?), RootId(from.u64()?), from.u64()?);
                if parent >= id {
                    return Err(Malformed);
                }
                let flags = from.u8()?;
                let (dead, damaged) = (flags & 1 != 0, flags & 2 != 0);
                Edit::PutRoot(id, RootOrigin { parent, truncated, dead, damaged })
            }
            6 => Edit::RemoveRoot(RootId(from.u64()?)),
            7 => {
                let (target, lun, volume, flags) = (from.text()?, from.u16()?, from.text()?, from.u8()?);
                let (read_only, removable) = (flags & 1 != 0, flags & 2 != 0);
                Edit::PutMapping(Mapping { target, lun, volume, read_only, removable })
            }
            8 => Edit::RemoveMapping(from.text()?, from.u16()?),
            9 => {
                let (volume, flags, length) = (from.u64()?, from.u8()?, from.u16()?);
                let part = from.bytes(usize::from(length))?.to_vec();
                Edit::PutReservations { volume, first: flags & 1 != 0, last: flags & 2 != 0, part }
            }
            _ => return Err(Malformed),
        })
    }
}

impl Reserved {
    /// What makes it from nothing.
    fn edits(&self, volume: u64) -> Vec<Edit> {
        let mut edits = Edit::put_reservations(volume, &self.whole);
        if let Some(coming) = &self.coming {
            let coming = Edit::put_reservations(volume, coming).into_iter().map(|edit| match edit {
                Edit::PutReservations { volume, first, part, .. } => {
                    Edit::PutReservations { volume, first, last: false, part }
                }
                other => other,
            });
            edits.extend(coming);
        }
        edits
    }
}

impl Catalog {
    /// Applies edits as one transaction.
    pub fn apply(&mut self, edits: &[Edit]) {
        self.sequence += 1;
        for edit in edits {
            match edit.clone() {
                Edit::NextId(id) => self.next_id = id,
                Edit::PutVolume(volume) => drop(self.volumes.insert(volume.id, volume)),
                Edit::RemoveVolume(id) => {
                    self.volumes.remove(&id);
                    self.reservations.remove(&id);
                }
                Edit::PutSnapshot(snapshot) => drop(self.snapshots.insert(snapshot.id, snapshot)),
                Edit::RemoveSnapshot(id) => drop(self.snapshots.remove(&id)),
                Edit::PutRoot(id, origin) => drop(self.roots.insert(id, origin)),
                Edit::RemoveRoot(id) => drop(self.roots.remove(&id)),
                Edit::PutMapping(mapping) => {
                    self.mappings.insert((mapping.target.clone(), mapping.lun), mapping);
                }
                Edit::RemoveMapping(target, lun) => drop(self.mappings.remove(&(target, lun))),
                Edit::PutReservations { volume, first, last, part } => {
                    self.put_reservations(volume, (first, last), &part);
                }
            }
        }
    }

    fn put_reservations(&mut self, volume: u64, (first, last): (bool, bool), part: &[u8]) {
        let reserved = self.reservations.entry(volume).or_default();
        if first {
            reserved.coming = Some(Vec::new());
        }
        if let Some(coming) = &mut reserved.coming {
            coming.extend_from_slice(part);
            if coming.len() > RESERVATIONS_BYTES_MAX {
                // Nobody writes that many; a pool is not to stay closed for it.
                warn!(volume, "reservations that are too long were set aside");
                *reserved = Reserved::default();
            } else if last {
                reserved.whole = std::mem::take(coming);
                reserved.coming = None;
            }
        }
        if *reserved == Reserved::default() {
            self.reservations.remove(&volume);
        }
    }

    /// What is reserved of a volume.
    pub fn reservations_of(&self, volume: u64) -> &[u8] {
        self.reservations.get(&volume).map_or(&[], |reserved| &reserved.whole)
    }

    /// How many bytes that are, of all volumes.
    pub fn reservations_bytes(&self) -> usize {
        self.reservations.values().map(|reserved| reserved.whole.len()).sum()
    }

    /// A transaction's record: its number and the edits.
    pub fn encode_transaction(sequence: u64, edits: &[Edit]) -> Vec<u8> {
        let mut out = Writer::default();
        out.u64(sequence).u16(edits.len() as u16);
        for edit in edits {
            edit.encode(&mut out);
        }
        out.0
    }

    /// Applies a transaction's record, unless it is in already.
    ///
    /// # Errors
    /// It can't be one, or one before it is missing.
    pub fn replay(&mut self, record: &[u8]) -> Result<(), Malformed> {
        let mut from = Reader(record);
        let (sequence, count) = (from.u64()?, from.u16()?);
        let edits = (0..count).map(|_| Edit::decode(&mut from)).collect::<Result<Vec<_>, _>>()?;
        if sequence <= self.sequence {
            return Ok(());
        }
        if sequence != self.sequence + 1 {
            return Err(Malformed);
        }
        self.apply(&edits);
        Ok(())
    }

    /// All of it.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::default();
        out.u64(self.sequence);
        let edits = [Edit::NextId(self.next_id)]
            .into_iter()
            .chain(self.volumes.values().cloned().map(Edit::PutVolume))
            .chain(self.snapshots.values().cloned().map(Edit::PutSnapshot))
            .chain(self.roots.iter().map(|(&id, &origin)| Edit::PutRoot(id, origin)))
            .chain(self.mappings.values().cloned().map(Edit::PutMapping))
            .chain(self.reservations.iter().flat_map(|(&volume, reserved)| reserved.edits(volume)));
        for edit in edits {
            edit.encode(&mut out);
        }
        out.0
    }

    /// From what [`Catalog::encode`] wrote.
    ///
    /// # Errors
    /// It can't be one.
    pub fn decode(bytes: &[u8]) -> Result<Catalog, Malformed> {
        let mut from = Reader(bytes);
        let sequence = from.u64()?;
        let mut catalog = Catalog::default();
        while !from.is_empty() {
            let edit = Edit::decode(&mut from)?;
            catalog.apply(&[edit]);
        }
        catalog.sequence = sequence;
        Ok(catalog)
    }

    /// A volume by its name.
    pub fn volume(&self, name: &str) -> Option<&Volume> {
        self.volumes.values().find(|volume| volume.name == name)
    }

    /// A snapshot by `volume@snapshot`.
    pub fn snapshot(&self, name: &str) -> Option<&Snapshot> {
        let (volume, own) = name.split_once('@')?;
        let volume = self.volume(volume)?.id;
        self.snapshots.values().find(|snapshot| snapshot.volume == volume && snapshot.name == own)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: reservations longer than a record come whole or as they were, wherever their transactions are cut and whatever
    /// is in between; too long ones are set aside; they go with their volume. Method: every cut, by records and by image.
    #[test]
    fn reservations_come_whole_or_not_at_all() {
        let (old, new) = (vec![1; 10], (0..10_000).map(|at| at as u8).collect::<Vec<u8>>());
        let mut catalog = Catalog::default();
        for edit in Edit::put_reservations(7, &old) {
            catalog.apply(&[edit]);
        }
        let edits = Edit::put_reservations(7, &new);
        assert_eq!(edits.len(), 4);
        for cut in 0..=edits.len() {
            let mut catalog = catalog.clone();
            for edit in &edits[..cut] {
                let record = Catalog::encode_transaction(catalog.sequence + 1, std::slice::from_ref(edit));
                assert!(record.len() <= super::super::journal::RECORD_BYTES_MAX - 3);
                catalog.replay(&record).unwrap();
                catalog = Catalog::decode(&catalog.encode()).unwrap();
            }
            let expected = if cut == edits.len() { &new } else { &old };
            assert_eq!(catalog.reservations_of(7), expected);
            // Another state after a crash in the middle.
            for edit in Edit::put_reservations(7, &old[1..]) {
                catalog.apply(&[edit]);
            }
            assert_eq!(catalog.reservations_of(7), &old[1..]);
            catalog.apply(&[Edit::RemoveVolume(7)]);
            assert!(catalog.reservations.is_empty());
        }
        for bytes in [RESERVATIONS_BYTES_MAX + 1, 2 * RESERVATIONS_BYTES_MAX] {
            catalog.apply(&Edit::put_reservations(7, &old));
            for edit in Edit::put_reservations(7, &vec![2; bytes]) {
                catalog.apply(&[edit]);
            }
            assert_eq!((catalog.reservations.len(), catalog.reservations_bytes()), (0, 0));
        }
        catalog.apply(&Edit::put_reservations(7, &old));
        catalog.apply(&Edit::put_reservations(7, &[]));
        assert_eq!((catalog.reservations.len(), catalog.reservations_bytes()), (0, 0));
    }

    /// Goal: a catalog survives the medium, by its image and by its records, also with records that it has already.
    #[test]
    fn comes_back() {
        let volume = Volume {
            id: 2,
            name: "a".into(),
            uuid: [7; 16],
            bytes: 1 << 40,
            block_bytes: 512,
            physical_block_bytes: 4096,
            provisioning: Provisioning::Thick,
            zero_detect: true,
            write_cache: false,
            root: RootId(1),
            origin: 0,
        };
        let snapshot =
            Snapshot { id: 3, volume: 2, name: "s".into(), root: RootId(1), bytes: 1 << 40, created: 9 };
        let origin = RootOrigin { parent: RootId(1), truncated: u64::MAX, dead: false, damaged: true };
        let mapping =
            Mapping { target: "iqn.x".into(), lun: 3, volume: "a".into(), read_only: true, removable: false };
        let transactions = [
            vec![Edit::NextId(4), Edit::PutVolume(volume)],
            vec![Edit::PutSnapshot(snapshot), Edit::PutRoot(RootId(4), origin), Edit::PutMapping(mapping)],
            vec![Edit::RemoveMapping("iqn.y".into(), 3)],
        ];
        let mut catalog = Catalog::default();
        let mut records = Vec::new();
        for edits in &transactions {
            records.push(Catalog::encode_transaction(catalog.sequence + 1, edits));
            catalog.apply(edits);
        }
        assert_eq!(Catalog::decode(&catalog.encode()), Ok(catalog.clone()));
        let mut replayed = Catalog::default();
        for record in records.iter().chain(&records) {
            replayed.replay(record).unwrap();
        }
        assert_eq!(replayed, catalog);
        assert!(catalog.snapshot("a@s").is_some() && catalog.snapshot("a@t").is_none());
        assert_eq!(Catalog::default().replay(&records[1]), Err(Malformed));
    }
}
