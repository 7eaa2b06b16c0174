//! What people ask of [`crate::sim::fake`], each in one step.

use crate::sim::fake::{BLOCK, Blocks, CAPACITY_BLOCKS, Lie, Memory, Shot, Volume};
use bdev::geometry::Geometry;
use bdev::io::BdevId;
use bdev::pool::control::{
    Against, Answer, Answered, DiffPart, PoolCounts, PoolInfo, Refusal, Request, SnapshotInfo, VolumeInfo,
    VolumeSpec, is_name,
};
use std::rc::Rc;

fn refuse(against: Against, what: &str) -> Refusal {
    Refusal::new(against, what, "ask something else")
}

impl Memory {
    fn volume(&self, name: &str) -> Result<usize, Refusal> {
        let place = self.volumes.iter().position(|volume| volume.spec.name == name);
        place.ok_or_else(|| refuse(Against::NotFound, name))
    }

    fn shot(&self, full: &str) -> Result<usize, Refusal> {
        let named = full.split_once('@').and_then(|(volume, name)| {
            let id = self.volumes[self.volume(volume).ok()?].id;
            self.shots.iter().position(|shot| shot.of == id && shot.name == name)
        });
        named.ok_or_else(|| refuse(Against::NotFound, full))
    }

    fn shot_name(&self, shot: &Shot) -> String {
        let volume = self.volumes.iter().find(|volume| volume.id == shot.of);
        format!("{}@{}", volume.map_or("?", |volume| &volume.spec.name), shot.name)
    }

    fn add(&mut self, spec: VolumeSpec, blocks: Blocks, origin: Option<u64>) -> Result<Answer, Refusal> {
        if self.volume(&spec.name).is_ok() {
            return Err(refuse(Against::Exists, &spec.name));
        }
        if !is_name(&spec.name) {
            return Err(refuse(Against::Invalid, &spec.name));
        }
        if !self.lies(Lie::IdAgain) {
            self.next_id += 1;
        }
        let id = self.next_id;
        self.volumes.push(Volume { spec, id, now: blocks.clone(), durable: blocks, bdev: None, origin });
        Ok(Answer::Done)
    }

    fn resize(&mut self, volume: &str, bytes: u64, shrink: bool) -> Result<Answer, Refusal> {
        let index = self.volume(volume)?;
        if !bytes.is_multiple_of(4096) || bytes == 0 || bytes < self.volumes[index].spec.bytes && !shrink {
            return Err(refuse(Against::Invalid, volume));
        }
        self.commit();
        let keeps = self.lie == Some(Lie::GrowShowsOld);
        let volume = &mut self.volumes[index];
        volume.spec.bytes = bytes;
        if !keeps {
            volume.now.retain(|&block, _| ((block * BLOCK) as u64) < bytes);
        }
        volume.durable = volume.now.clone();
        Ok(Answer::Done)
    }

    fn roll_back(&mut self, volume: &str, snapshot: &str) -> Result<Answer, Refusal> {
        let index = self.volume(volume)?;
        let Shot { bytes, blocks, .. } = self.shots[self.shot(&format!("{volume}@{snapshot}"))?].clone();
        self.commit();
        let half = self.lie == Some(Lie::RollbackHalf);
        let volume = &mut self.volumes[index];
        volume.spec.bytes = bytes;
        volume.now = blocks;
        let durable = std::mem::replace(&mut volume.durable, volume.now.clone());
        if half {
            let odd = |block: &usize| block % 2 == 1;
            volume.durable.retain(|block, _| !odd(block));
            volume.durable.extend(durable.into_iter().filter(|(block, _)| odd(block)));
        }
        Ok(Answer::Done)
    }

    fn snapshot(&mut self, volume: &str, name: &str) -> Result<Answer, Refusal> {
        let index = self.volume(volume)?;
        if !is_name(name) {
            return Err(refuse(Against::Invalid, name));
        }
        if self.shot(&format!("{volume}@{name}")).is_ok() {
            return Err(refuse(Against::Exists, name));
        }
        let misses = self.lies(Lie::SnapshotMisses);
        let before = self.volumes[index].durable.clone();
        self.commit();
        self.next_id += 1;
        let Volume { id, now, spec, .. } = &self.volumes[index];
        let blocks = if misses { before } else { now.clone() };
        let shot = Shot { of: *id, name: name.to_owned(), id: self.next_id, bytes: spec.bytes, blocks };
        self.shots.push(shot);
        Ok(Answer::Done)
    }

    fn diff(&mut self, from: &str, to: &str, from_bytes: u64) -> Result<Answer, Refusal> {
        let left = self.shots[self.shot(from)?].blocks.clone();
        let right = match self.shot(to) {
            Ok(shot) => self.shots[shot].blocks.clone(),
            Err(_) => self.volumes[self.volume(to)?].now.clone(),
        };
        let mut blocks: Vec<usize> = left.keys().chain(right.keys()).copied().collect();
        blocks.sort_unstable();
        blocks.dedup();
        blocks.retain(|block| match (left.get(block), right.get(block)) {
            (Some(left), Some(right)) => !Rc::ptr_eq(left, right),
            (left, right) => left.is_some() != right.is_some(),
        });
        if self.lies(Lie::DiffMisses) {
            blocks.pop();
        }
        if self.lies(Lie::DiffInvents) && blocks.first() != Some(&0) {
            blocks.insert(0, 0);
        }
        let extents = blocks.iter().map(|&block| ((block * BLOCK) as u64, BLOCK as u64));
        let mut part =
            DiffPart { extents: extents.filter(|&(at, _)| at >= from_bytes).collect(), next_bytes: None };
        if part.extents.len() > 20 {
            part.extents.truncate(20);
            part.next_bytes = part.extents.last().map(|&(at, bytes)| at + bytes);
        }
        Ok(Answer::Diff(part))
    }

    fn attach(&mut self, volume: &str) -> Result<Answer, Refusal> {
        let index = self.volume(volume)?;
        self.next_bdev += 1;
        let next = BdevId(self.next_bdev);
        let Volume { spec, bdev, id, .. } = &mut self.volumes[index];
        let bdev = *bdev.get_or_insert(next);
        let geometry = Geometry {
            block_bytes: spec.block_bytes,
            physical_block_bytes: spec.physical_block_bytes,
            blocks: spec.bytes / u64::from(spec.block_bytes),
            unmap_granularity_bytes: 4096,
            write_zeroes: true,
            write_cache: spec.write_cache,
            read_only: false,
            rotational: false,
            pooled: true,
            atomic_bytes: 0,
        };
        Ok(Answer::Attached { bdev, geometry, uuid: [*id as u8; 16], reservations: Vec::new() })
    }

    fn infos(&mut self) -> Vec<VolumeInfo> {
        let wrong = u64::from(self.lies(Lie::MappedWrong)) * 4096;
        let info = |volume: &Volume| {
            let origin = volume.origin.and_then(|id| self.shots.iter().find(|shot| shot.id == id));
            VolumeInfo {
                name: volume.spec.name.clone(),
                id: volume.id,
                uuid: [0; 16],
                bytes: volume.spec.bytes,
                block_bytes: volume.spec.block_bytes,
                physical_block_bytes: volume.spec.physical_block_bytes,
                provisioning: volume.spec.provisioning,
                zero_detect: volume.spec.zero_detect,
                write_cache: volume.spec.write_cache,
                mapped_bytes: (volume.now.len() * BLOCK) as u64 + wrong,
                reserved_bytes: 0,
                usage: None,
                snapshots: self.shots.iter().filter(|shot| shot.of == volume.id).count() as u64,
                origin: origin.map(|shot| self.shot_name(shot)),
                attached: volume.bdev.is_some(),
                damage: None,
            }
        };
        self.volumes.iter().map(info).collect()
    }

    fn shot_infos(&self) -> Vec<SnapshotInfo> {
        let info = |shot: &Shot| SnapshotInfo {
            volume: self.shot_name(shot).split('@').next().unwrap_or_default().to_owned(),
            name: shot.name.clone(),
            id: shot.id,
            bytes: shot.bytes,
            mapped_bytes: (shot.blocks.len() * BLOCK) as u64,
            usage: None,
            created_seconds: 0,
            clones: self.volumes.iter().filter(|volume| volume.origin == Some(shot.id)).count() as u64,
        };
        self.shots.iter().map(info).collect()
    }

    fn info(&mut self) -> PoolInfo {
        self.commit();
        let wrong = u64::from(self.lies(Lie::FreeWrong)) * 4096;
        PoolInfo {
            name: "fake".to_owned(),
            uuid: [0; 16],
            members: Vec::new(),
            chunk_bytes: 65536,
            data_bytes: (CAPACITY_BLOCKS * BLOCK) as u64,
            free_bytes: self.free_bytes() - wrong,
            reserved_bytes: 0,
            heartbeat_reserve_bytes: 0,
            pending_bytes: 0,
            token_bytes: 0,
            metadata_bytes: 0,
            metadata_used_bytes: 0,
            map_memory_bytes: 0,
            map_memory_max_bytes: 0,
            volumes: self.volumes.len() as u64,
            snapshots: self.shots.len() as u64,
            damaged: Vec::new(),
            grow_refused: None,
            counts: PoolCounts::default(),
        }
    }
}

/// Answers a request. `None`: it was done in part, and is to be asked again.
pub fn control(memory: &mut Memory, request: &Request) -> Option<Answered> {
    if let (Request::SnapshotCreate { volume, name }, Some(Lie::SnapshotInTwo)) = (request, memory.lie) {
        return in_two(memory, volume, name);
    }
    Some(answer(memory, request))
}

/// The first stripe now, the others at the second time.
fn in_two(memory: &mut Memory, volume: &str, name: &str) -> Option<Answered> {
    let again = memory.shot(&format!("{volume}@{name}"));
    let Ok(place) = again else {
        let made = memory.snapshot(volume, name);
        return made.is_err().then_some(made);
    };
    if memory.chance.one_in(2) {
        return None;
    }
    let id = memory.shots[place].of;
    memory.commit();
    let now = memory.volumes.iter().find(|volume| volume.id == id).map(|volume| volume.now.clone());
    let first = |block: &usize| block * BLOCK < 4 << 20;
    let blocks = &mut memory.shots[place].blocks;
    blocks.retain(|block, _| first(block));
    blocks.extend(now.unwrap_or_default().into_iter().filter(|(block, _)| !first(block)));
    Some(Ok(Answer::Done))
}

fn answer(memory: &mut Memory, request: &Request) -> Answered {
    match request {
        Request::Pool => Ok(Answer::Pool(Box::new(memory.info()))),
        Request::Volumes => Ok(Answer::Volumes(memory.infos())),
        Request::UsageWalk => Ok(Answer::Done),
        Request::Snapshots { .. } => Ok(Answer::Snapshots(memory.shot_infos())),
        Request::VolumeCreate(spec) => {
            let old = if memory.lies(Lie::NewShowsOld) { memory.old.clone() } else { Blocks::new() };
            memory.add(spec.clone(), old, None)
        }
        Request::VolumeResize { volume, bytes, shrink, .. } => memory.resize(volume, *bytes, *shrink),
        Request::VolumeClone { snapshot, name, .. } => {
            let Shot { of, bytes, mut blocks, id, .. } = memory.shots[memory.shot(snapshot)?].clone();
            let volume = memory.volumes.iter().find(|volume| volume.id == of);
            let volume = volume.ok_or_else(|| refuse(Against::NotFound, snapshot))?.clone();
            if memory.lies(Lie::CloneOfNow) {
                blocks = volume.durable;
            }
            let provisioning = bdev::pool::control::Provisioning::Thin;
            memory.add(
                VolumeSpec { name: name.clone(), bytes, provisioning, ..volume.spec },
                blocks,
                Some(id),
            )
        }
        Request::VolumeRollback { volume, snapshot, .. } => memory.roll_back(volume, snapshot),
        Request::VolumeDelete { volume, .. } => {
            let index = memory.volume(volume)?;
            let id = memory.volumes[index].id;
            if memory.shots.iter().any(|shot| shot.of == id) {
                return Err(refuse(Against::InUse, volume));
            }
            memory.old = memory.volumes.remove(index).now;
            Ok(Answer::Done)
        }
        Request::VolumeSet { volume, zero_detect } => {
            let index = memory.volume(volume)?;
            memory.volumes[index].spec.zero_detect = *zero_detect;
            Ok(Answer::Done)
        }
        Request::SnapshotCreate { volume, name } => {
            if memory.lies(Lie::SnapshotDrifts)
                && let Some(shot) = memory.shots.first_mut()
                && let Some(volume) = memory.volumes.iter().find(|volume| volume.id == shot.of)
            {
                shot.blocks = volume.durable.clone();
            }
            memory.snapshot(volume, name)
        }
        Request::SnapshotDelete { snapshot } => {
            let place = memory.shot(snapshot)?;
            let shot = memory.shots.remove(place);
            if memory.lies(Lie::DeletedComesBack) {
                memory.grave = Some(shot);
            }
            Ok(Answer::Done)
        }
        Request::SnapshotDiff { from, to, from_bytes } => memory.diff(from, to, *from_bytes),
        Request::Attach { volume } => memory.attach(volume),
        Request::Detach { volume } => {
            let index = memory.volume(volume)?;
            memory.volumes[index].bdev = None;
            Ok(Answer::Done)
        }
        Request::MappingPut(_)
        | Request::MappingRemove { .. }
        | Request::Mappings
        | Request::ReservationsPut { .. }
        | Request::Grow { .. } => Err(refuse(Against::Invalid, "a fake has none")),
    }
}
