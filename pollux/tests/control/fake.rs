//! A target in memory, with what the API's operations need of pools and reactors, and with whatever goes wrong that a
//! test wants: a step refused, a step unanswered, a crash.

use bdev::geometry::Geometry;
use bdev::io::BdevId;
use bdev::pool::control::{
    Against, Answer, DiffPart, Mapping, MemberInfo, PoolCounts, PoolInfo, Provisioning, Refusal, Request,
    SnapshotInfo, Usage, VolumeInfo, VolumeSpec,
};
use pollux::below::Below;
use pollux::control::backend::{Backend, Change, Failure, NewUnit, Outcome, Source, Unit, VolumeName};
use pollux::spec::Device;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::Duration;

pub(crate) const TARGET: &str = "iqn.2026-11.io.pollux:demo";

/// What survives a crash.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Catalog {
    pub(crate) volumes: Vec<VolumeInfo>,
    pub(crate) snapshots: Vec<SnapshotInfo>,
    pub(crate) mappings: Vec<Mapping>,
    pub(crate) members: Vec<MemberInfo>,
}

/// What a crash takes.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Running {
    pub(crate) attached: BTreeSet<VolumeName>,
    pub(crate) units: Vec<Unit>,
    pub(crate) sessions: BTreeMap<u16, u32>,
}

#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) pools: BTreeMap<String, Catalog>,
    pub(crate) running: Running,
    /// Of every pool's files.
    pub(crate) below: Option<Below>,
    /// Every changing step, in order.
    pub(crate) steps: Vec<String>,
    /// How many changing steps are let through, and what the next gets.
    pub(crate) fail_after: Option<(usize, Failure)>,
    /// A step that is unanswered was carried out nevertheless.
    pub(crate) carried_out: bool,
    next_id: u64,
    held: bool,
    /// Steps that wait to be released.
    waiting: usize,
}

/// The target.
#[derive(Debug, Default)]
pub(crate) struct Fake {
    state: Mutex<State>,
    released: Condvar,
    arrived: Condvar,
}

fn refuse<T>(against: Against, what: String) -> Outcome<T> {
    Err(Failure::Refused(Refusal::new(against, what, "do otherwise")))
}

fn not_found<T>(what: &str) -> Outcome<T> {
    refuse(Against::NotFound, format!("there is no {what}"))
}

/// `volume@snapshot` in two.
fn cut(name: &str) -> (String, String) {
    let (volume, snapshot) = name.split_once('@').unwrap_or((name, ""));
    (volume.to_owned(), snapshot.to_owned())
}

impl Fake {
    /// With one pool, `p`, and LUN 0 of the configuration.
    pub(crate) fn new() -> Fake {
        let fake = Fake::default();
        let unit = Unit {
            target: TARGET.to_owned(),
            lun: 0,
            source: Source::Configuration,
            volume: None,
            spec: "ram:1G".to_owned(),
            bytes: 1 << 30,
            block_bytes: 512,
            physical_block_bytes: 4096,
            read_only: false,
            removable: false,
            id: [9; 16],
            name: "naa.609".to_owned(),
        };
        let mut state = fake.state();
        let member = MemberInfo { path: "/dev/fake".to_owned(), bytes: 1 << 40 };
        state.pools.insert("p".to_owned(), Catalog { members: vec![member], ..Catalog::default() });
        state.running.units.push(unit);
        drop(state);
        fake
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Every further step waits until the guard goes.
    pub(crate) fn hold(&self) -> Held<'_> {
        self.state().held = true;
        Held(self)
    }

    /// Everything but the steps' record.
    pub(crate) fn snapshot(&self) -> (BTreeMap<String, Catalog>, Running) {
        let state = self.state();
        (state.pools.clone(), state.running.clone())
    }

    /// The process ends and starts again: units are what the configuration and the catalogs say.
    pub(crate) fn crash(&self) {
        let mut state = self.state();
        state.fail_after = None;
        state.running.units.retain(|unit| unit.source == Source::Configuration);
        state.running.attached.clear();
        let mappings: Vec<(String, Mapping)> = state
            .pools
            .iter()
            .flat_map(|(pool, catalog)| {
                catalog.mappings.iter().map(|mapping| (pool.clone(), mapping.clone()))
            })
            .collect();
        for (pool, mapping) in mappings {
            let name = VolumeName { pool, volume: mapping.volume.clone() };
            let info = state.volume(&name).unwrap().clone();
            state.running.attached.insert(name.clone());
            let unit =
                unit_of(&mapping.target, mapping.lun, name, &info, mapping.read_only, mapping.removable);
            state.running.units.push(unit);
        }
    }

    /// A changing step: noted, refused, or let through.
    fn step(&self, name: String, act: impl FnOnce(&mut State) -> Outcome<Answer>) -> Outcome<Answer> {
        let mut state = self.state();
        while state.held {
            state.waiting += 1;
            self.arrived.notify_all();
            state = self.released.wait(state).unwrap();
            state.waiting -= 1;
        }
        state.steps.push(name);
        match &mut state.fail_after {
            Some((0, failure)) => {
                let failure = failure.clone();
                if matches!(failure, Failure::Refused(_)) {
                    // Once: the way back is open.
                    state.fail_after = None;
                } else if state.carried_out {
                    let _ = act(&mut state);
                }
                return Err(failure);
            }
            Some((left, _)) => *left -= 1,
            None => {}
        }
        act(&mut state)
    }

    fn unit_step(&self, name: String, act: impl FnOnce(&mut State) -> Outcome<()>) -> Outcome<()> {
        self.step(name, |state| act(state).map(|()| Answer::Done)).map(|_| ())
    }
}

impl Held<'_> {
    /// Until a step waits.
    pub(crate) fn wait(&self) {
        let Fake { arrived, .. } = self.0;
        let waited =
            arrived.wait_timeout_while(self.0.state(), Duration::from_secs(60), |state| state.waiting == 0);
        assert!(!waited.unwrap().1.timed_out(), "no step came");
    }
}

/// See [`Fake::hold`].
pub(crate) struct Held<'a>(&'a Fake);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.state().held = false;
        self.0.released.notify_all();
    }
}

fn unit_of(
    target: &str,
    lun: u16,
    volume: VolumeName,
    info: &VolumeInfo,
    read_only: bool,
    removable: bool,
) -> Unit {
    Unit {
        target: target.to_owned(),
        lun,
        source: Source::Catalog,
        spec: format!("thin:{}", info.bytes),
        volume: Some(volume),
        bytes: info.bytes,
        block_bytes: info.block_bytes,
        physical_block_bytes: info.physical_block_bytes,
        read_only,
        removable,
        id: info.uuid,
        name: format!("naa.6{:02}", info.id),
    }
}

impl State {
    fn catalog(&mut self, pool: &str) -> Outcome<&mut Catalog> {
        self.pools.get_mut(pool).map_or_else(|| not_found(&format!("pool {pool}")), Ok)
    }

    fn volume(&mut self, name: &VolumeName) -> Outcome<&mut VolumeInfo> {
        let found = self.catalog(&name.pool)?.volumes.iter_mut().find(|info| info.name == name.volume);
        found.map_or_else(|| not_found(&format!("volume {}", name.volume)), Ok)
    }

    fn add_volume(&mut self, pool: &str, spec: VolumeSpec, origin: Option<String>) -> Outcome<()> {
        self.next_id += 1;
        let id = self.next_id;
        let catalog = self.catalog(pool)?;
        if catalog.volumes.iter().any(|info| info.name == spec.name) {
            return refuse(Against::Exists, format!("volume {} is there already", spec.name));
        }
        catalog.volumes.push(VolumeInfo {
            name: spec.name,
            id,
            uuid: [id as u8; 16],
            bytes: spec.bytes,
            block_bytes: spec.block_bytes,
            physical_block_bytes: spec.physical_block_bytes,
            provisioning: spec.provisioning,
            zero_detect: spec.zero_detect,
            write_cache: spec.write_cache,
            mapped_bytes: 0,
            reserved_bytes: if spec.provisioning == Provisioning::Thick { spec.bytes } else { 0 },
            usage: None,
            snapshots: 0,
            origin,
            attached: false,
            damage: None,
        });
        Ok(())
    }

    fn info(&mut self, pool: &str) -> Outcome<PoolInfo> {
        let catalog = self.catalog(pool)?;
        let data_bytes: u64 = catalog.members.iter().map(|member| member.bytes).sum();
        Ok(PoolInfo {
            name: pool.to_owned(),
            uuid: [7; 16],
            members: catalog.members.clone(),
            chunk_bytes: 65_536,
            data_bytes,
            free_bytes: data_bytes,
            reserved_bytes: 0,
            heartbeat_reserve_bytes: 0,
            pending_bytes: 0,
            token_bytes: 0,
            metadata_bytes: 1 << 20,
            metadata_used_bytes: 4096,
            map_memory_bytes: 0,
            map_memory_max_bytes: 1 << 20,
            volumes: catalog.volumes.len() as u64,
            snapshots: catalog.snapshots.len() as u64,
            damaged: Vec::new(),
            grow_refused: None,
            counts: PoolCounts::default(),
        })
    }

    fn change(&mut self, pool: &str, request: Request) -> Outcome<Answer> {
        let named = |volume: &str| VolumeName { pool: pool.to_owned(), volume: volume.to_owned() };
        match request {
            Request::VolumeCreate(spec) => self.add_volume(pool, spec, None)?,
            Request::VolumeResize { volume, bytes, shrink, force } => {
                let attached = self.running.attached.contains(&named(&volume));
                let info = self.volume(&named(&volume))?;
                if bytes < info.bytes && (!shrink || attached && !force) {
                    return refuse(Against::InUse, format!("volume {volume} may not shrink"));
                }
                info.bytes = bytes;
            }
            Request::VolumeClone { snapshot, name, provisioning } => {
                let (volume, own) = cut(&snapshot);
                let of = self.volume(&named(&volume))?.clone();
                let snapshots = &mut self.catalog(pool)?.snapshots;
                let Some(from) = snapshots.iter_mut().find(|info| info.volume == volume && info.name == own)
                else {
                    return not_found(&snapshot);
                };
                from.clones += 1;
                let spec = VolumeSpec {
                    name,
                    bytes: from.bytes,
                    block_bytes: of.block_bytes,
                    physical_block_bytes: of.physical_block_bytes,
                    provisioning: provisioning.unwrap_or(of.provisioning),
                    zero_detect: of.zero_detect,
                    write_cache: of.write_cache,
                };
                self.add_volume(pool, spec, Some(snapshot))?;
            }
            Request::VolumeRollback { volume, snapshot, force } => {
                let attached = self.running.attached.contains(&named(&volume));
                let all = &self.catalog(pool)?.snapshots;
                let Some(to) = all.iter().find(|info| info.volume == volume && info.name == snapshot) else {
                    return not_found(&format!("{volume}@{snapshot}"));
                };
                if attached && !force {
                    return refuse(Against::InUse, format!("volume {volume} is mapped"));
                }
                let bytes = to.bytes;
                self.volume(&named(&volume))?.bytes = bytes;
            }
            Request::VolumeDelete { volume, force } => {
                if self.running.attached.contains(&named(&volume)) && !force {
                    return refuse(Against::InUse, format!("volume {volume} is mapped"));
                }
                self.volume(&named(&volume))?;
                self.catalog(pool)?.volumes.retain(|info| info.name != volume);
            }
            Request::VolumeSet { volume, zero_detect } => {
                self.volume(&named(&volume))?.zero_detect = zero_detect;
            }
            Request::SnapshotCreate { volume, name } => {
                let info = self.volume(&named(&volume))?;
                info.snapshots += 1;
                let bytes = info.bytes;
                self.next_id += 1;
                let id = self.next_id;
                self.catalog(pool)?.snapshots.push(SnapshotInfo {
                    volume,
                    name,
                    id,
                    bytes,
                    mapped_bytes: 0,
                    usage: None,
                    created_seconds: 1_795_592_571,
                    clones: 0,
                });
            }
            Request::SnapshotDelete { snapshot } => {
                let (volume, own) = cut(&snapshot);
                let catalog = self.catalog(pool)?;
                let before = catalog.snapshots.len();
                catalog.snapshots.retain(|info| info.volume != volume || info.name != own);
                if catalog.snapshots.len() == before {
                    return not_found(&snapshot);
                }
                self.volume(&named(&volume))?.snapshots -= 1;
            }
            Request::Attach { volume } => {
                let info = self.volume(&named(&volume))?.clone();
                self.running.attached.insert(named(&volume));
                let geometry = Geometry {
                    block_bytes: info.block_bytes,
                    physical_block_bytes: info.physical_block_bytes,
                    blocks: info.bytes / u64::from(info.block_bytes),
                    unmap_granularity_bytes: 65_536,
                    write_zeroes: true,
                    write_cache: false,
                    read_only: false,
                    rotational: false,
                    pooled: true,
                    atomic_bytes: 0,
                };
                let (bdev, reservations) = (BdevId(info.id as u16), Vec::new());
                return Ok(Answer::Attached { bdev, geometry, uuid: info.uuid, reservations });
            }
            Request::Detach { volume } => {
                self.running.attached.remove(&named(&volume));
            }
            Request::MappingPut(mapping) => {
                let mappings = &mut self.catalog(pool)?.mappings;
                mappings.retain(|known| known.target != mapping.target || known.lun != mapping.lun);
                mappings.push(mapping);
            }
            Request::MappingRemove { target, lun } => {
                self.catalog(pool)?.mappings.retain(|known| known.target != target || known.lun != lun);
            }
            other => panic!("{other:?} changes nothing"),
        }
        Ok(Answer::Done)
    }
}

/// A request's first word.
fn word(request: &Request) -> String {
    let text = format!("{request:?}");
    text.split(['(', ' ', '{']).next().unwrap_or_default().to_owned()
}

impl Backend for Fake {
    fn pools(&self) -> Vec<String> {
        self.state().pools.keys().cloned().collect()
    }

    fn below(&self, _: &[MemberInfo]) -> Option<Below> {
        self.state().below
    }

    fn ask(&self, pool: &str, request: Request) -> Outcome<Answer> {
        let mut state = self.state();
        match request {
            Request::Pool => state.info(pool).map(|info| Answer::Pool(Box::new(info))),
            Request::UsageWalk => {
                for info in &mut state.catalog(pool)?.volumes {
                    let (unique_bytes, shared_bytes) = (3 << 16, Some(5 << 16));
                    let exact = info.provisioning == Provisioning::Thin;
                    info.usage = Some(Usage { unique_bytes, shared_bytes, at_seconds: 1_795_592_571, exact });
                }
                Ok(Answer::Done)
            }
            Request::Volumes => {
                let attached = state.running.attached.clone();
                let mut volumes = state.catalog(pool)?.volumes.clone();
                for info in &mut volumes {
                    let name = VolumeName { pool: pool.to_owned(), volume: info.name.clone() };
                    info.attached = attached.contains(&name);
                }
                Ok(Answer::Volumes(volumes))
            }
            Request::Snapshots { volume } => {
                let mut snapshots = state.catalog(pool)?.snapshots.clone();
                snapshots.retain(|info| volume.as_ref().is_none_or(|volume| *volume == info.volume));
                Ok(Answer::Snapshots(snapshots))
            }
            // Three parts: two extents, none, one.
            Request::SnapshotDiff { from_bytes, .. } => Ok(Answer::Diff(match from_bytes {
                0 => DiffPart { extents: vec![(0, 4096), (8192, 4096)], next_bytes: Some(1 << 20) },
                1_048_576 => DiffPart { extents: Vec::new(), next_bytes: Some(1 << 30) },
                _ => DiffPart { extents: vec![(1 << 30, 65_536)], next_bytes: None },
            })),
            Request::Mappings => Ok(Answer::Mappings(state.catalog(pool)?.mappings.clone())),
            request => {
                drop(state);
                self.step(word(&request), |state| state.change(pool, request))
            }
        }
    }

    fn pool_create(&self, name: &str, devices: &[Device]) -> Outcome<()> {
        self.unit_step("pool_create".to_owned(), |state| {
            let member = |device: &Device| MemberInfo {
                path: device.path.display().to_string(),
                bytes: device.bytes.unwrap_or(1 << 40),
            };
            let members = devices.iter().map(member).collect();
            state.pools.insert(name.to_owned(), Catalog { members, ..Catalog::default() });
            Ok(())
        })
    }

    fn pool_grow(&self, name: &str, devices: &[Device]) -> Outcome<()> {
        self.unit_step("pool_grow".to_owned(), |state| {
            for device in devices {
                let path = device.path.display().to_string();
                state
                    .catalog(name)?
                    .members
                    .push(MemberInfo { path, bytes: device.bytes.unwrap_or(1 << 40) });
            }
            Ok(())
        })
    }

    fn pool_delete(&self, name: &str) -> Outcome<()> {
        self.unit_step("pool_delete".to_owned(), |state| {
            state.pools.remove(name);
            Ok(())
        })
    }

    fn targets(&self) -> Vec<String> {
        vec![TARGET.to_owned()]
    }

    fn units(&self) -> Outcome<Vec<Unit>> {
        Ok(self.state().running.units.clone())
    }

    fn unit_add(&self, unit: &NewUnit) -> Outcome<()> {
        self.unit_step("unit_add".to_owned(), |state| {
            assert!(state.running.attached.contains(&unit.volume), "a unit over nothing");
            let info = state.volume(&unit.volume)?.clone();
            let name = unit.volume.clone();
            let made = unit_of(&unit.target, unit.lun, name, &info, unit.read_only, unit.removable);
            state.running.units.push(made);
            Ok(())
        })
    }

    fn unit_remove(&self, target: &str, lun: u16) -> Outcome<()> {
        self.unit_step("unit_remove".to_owned(), |state| {
            state.running.units.retain(|unit| unit.target != target || unit.lun != lun);
            state.running.sessions.remove(&lun);
            Ok(())
        })
    }

    fn unit_sessions(&self, _: &str, lun: u16) -> Outcome<u32> {
        Ok(self.state().running.sessions.get(&lun).copied().unwrap_or(0))
    }

    fn unit_copies(&self, _: &str, _: u16) -> Outcome<bdev::storage::CopyCounts> {
        Ok(bdev::storage::CopyCounts::default())
    }

    fn unit_changed(&self, _: &str, lun: u16, change: Change) -> Outcome<()> {
        self.unit_step(format!("unit_changed {change:?}"), |state| {
            for unit in state.running.units.iter_mut().filter(|unit| unit.lun == lun) {
                if let Change::Capacity(bytes) = change {
                    unit.bytes = bytes;
                    unit.spec = format!("thin:{bytes}");
                }
            }
            Ok(())
        })
    }
}
