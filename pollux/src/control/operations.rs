//! What the API's requests do: the order of their steps, and the way back when a step is refused.
//!
//! The rules, so that a crash between two steps leaves something consistent:
//!
//! - The catalog is the truth, units follow from it at every start. So a mapping is remembered before its unit is
//!   shown, and forgotten before its unit goes.
//! - A step that is **refused** has changed nothing: the steps before it are undone, last first. A step that stays
//!   **unanswered** may have happened: nothing is undone, the operation ends there. Every operation can be given
//!   again, and goes on from whatever it finds.
//! - A volume is attached as long as a unit shows it. One that stayed attached without is let go of by the next
//!   operation that minds.
//!
//! The caller sees to it that changes come one at a time.

use super::api::{self, Lun};
use super::backend::{Backend, Change, Failure, NewUnit, Outcome, Source, Unit, VolumeName};
use crate::config::LUN_NUMBER_MAX;
use crate::mistake::Mistake;
use crate::spec::{Device, Size, check_capacity};
use bdev::pool::control::{
    Against, Answer, DiffPart, Mapping, NAME_BYTES_MAX, NAME_CHARS, PoolInfo, Provisioning, Refusal, Request,
    SnapshotInfo, VolumeInfo, VolumeSpec, is_name,
};
use std::sync::Arc;

/// Open pools: each has tables of its own on every core.
pub const POOLS_MAX: usize = bdev::shard::POOLS_MAX;
/// Devices named in one command: a command line, not a rack's inventory.
pub const DEVICES_MAX: usize = 64;

/// A volume to be shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Map {
    /// Which.
    pub volume: VolumeName,
    /// By which target. `None`: the only one.
    pub target: Option<String>,
    /// Under which number. `None`: the lowest that is free.
    pub lun: Option<u16>,
    /// Writes are refused.
    pub read_only: bool,
    /// The medium can be ejected.
    pub removable: bool,
}

/// How a volume is shown in one place.
struct Shown {
    mapping: Mapping,
    /// The catalog has the mapping.
    remembered: bool,
    /// There is a unit.
    served: bool,
}

/// All that can be asked for.
#[derive(Clone)]
pub struct Operations {
    backend: Arc<dyn Backend>,
}

fn refused<T>(against: Against, what: impl Into<String>, cure: impl Into<String>) -> Outcome<T> {
    Err(Failure::Refused(Refusal::new(against, what, cure)))
}

fn invalid(mistake: Mistake) -> Failure {
    Failure::Refused(Refusal::new(Against::Invalid, mistake.what, mistake.cure))
}

fn check_name(of: &str, name: &str) -> Outcome<()> {
    if is_name(name) {
        return Ok(());
    }
    let cure = format!("use 1 to {NAME_BYTES_MAX} of these: {NAME_CHARS}");
    refused(Against::Invalid, format!("{name:?} is no name for a {of}"), cure)
}

fn check_blocks(spec: &VolumeSpec) -> Outcome<()> {
    let (block, physical) = (spec.block_bytes, spec.physical_block_bytes);
    if [block, physical].iter().all(|bytes| matches!(bytes, 512 | 4096)) && block <= physical {
        return Ok(());
    }
    let what = format!("a volume can't have blocks of {block} bytes on {physical}");
    refused(Against::Invalid, what, "use 512 on 4096, 512 on 512, or 4096 on 4096")
}

fn check_devices(devices: &[Device]) -> Outcome<()> {
    if devices.len() > DEVICES_MAX {
        let what = format!("{} devices are named", devices.len());
        return refused(Against::Invalid, what, format!("name at most {DEVICES_MAX} at a time"));
    }
    for (index, device) in devices.iter().enumerate() {
        let path = device.path.display();
        if !device.path.is_absolute() {
            return refused(
                Against::Invalid,
                format!("\"{path}\" is no absolute path"),
                "write the whole path from / on",
            );
        }
        if devices[..index].iter().any(|earlier| earlier.path == device.path) {
            return refused(Against::Invalid, format!("{path} is named twice"), "name each device once");
        }
    }
    Ok(())
}

/// An answer that doesn't fit its request is a mistake of ours.
macro_rules! answer {
    ($outcome:expr, $pattern:pat => $value:expr) => {
        match $outcome? {
            $pattern => Ok($value),
            other => panic!("a pool answered a request with {other:?}"),
        }
    };
}

/// `failure` as it is told when taking back what came before it went like `undone`.
fn after_undoing(failure: Failure, undone: Outcome<()>) -> Failure {
    let still = match undone {
        Ok(()) => return failure,
        Err(Failure::Refused(Refusal { what, .. })) => what,
        Err(Failure::Unanswered(who)) => format!("{who} did not answer"),
    };
    match failure {
        Failure::Refused(Refusal { against, what, cure }) => Failure::Refused(Refusal {
            against,
            what: format!("{what}; and what was done before it could not be taken back: {still}"),
            cure: format!("{cure}; see with `pollux lun list` what is there now"),
        }),
        Failure::Unanswered(who) => Failure::Unanswered(who),
    }
}

fn shows(unit: &Unit, volume: &VolumeName) -> bool {
    unit.volume.as_ref() == Some(volume)
}

fn lun_text(target: &str, lun: u16) -> String {
    format!("LUN {lun} of {target}")
}

impl Operations {
    /// Over `backend`.
    pub fn new(backend: Arc<dyn Backend>) -> Operations {
        Operations { backend }
    }

    /// The targets' names.
    pub fn targets(&self) -> Vec<String> {
        self.backend.targets()
    }

    fn done(&self, pool: &str, request: Request) -> Outcome<()> {
        answer!(self.backend.ask(pool, request), Answer::Done => ())
    }

    // Pools.

    /// All pools.
    ///
    /// # Errors
    /// As the backend's.
    pub fn pools(&self) -> Outcome<Vec<PoolInfo>> {
        self.backend.pools().iter().map(|pool| self.pool(pool)).collect()
    }

    /// A pool.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn pool(&self, pool: &str) -> Outcome<PoolInfo> {
        answer!(self.backend.ask(pool, Request::Pool), Answer::Pool(info) => *info)
    }

    /// A pool as it is told: with what the file systems below it can give.
    pub fn told(&self, info: PoolInfo) -> api::Pool {
        let below = self.backend.below(&info.members);
        api::Pool::of(info, below)
    }

    /// Makes a pool.
    ///
    /// # Errors
    /// A name or devices that can't be used.
    pub fn pool_create(&self, name: &str, devices: &[Device]) -> Outcome<PoolInfo> {
        check_name("pool", name)?;
        let pools = self.backend.pools();
        if pools.iter().any(|pool| pool == name) {
            let cure = "choose another name; `pollux pool list` shows those that are taken";
            return refused(Against::Exists, format!("there is a pool {name} already"), cure);
        }
        if pools.len() >= POOLS_MAX {
            let cure = "grow a pool instead: `pollux pool grow NAME DEVICE`";
            return refused(Against::NoSpace, format!("{POOLS_MAX} pools are open"), cure);
        }
        if devices.is_empty() {
            let cure = "name at least one: `pollux pool create NAME DEVICE[:SIZE]`";
            return refused(Against::Invalid, "a pool of no devices", cure);
        }
        check_devices(devices)?;
        self.backend.pool_create(name, devices)?;
        self.pool(name)
    }

    /// Grows a pool.
    ///
    /// # Errors
    /// No such pool, or devices that can't be used.
    pub fn pool_grow(&self, name: &str, devices: &[Device]) -> Outcome<PoolInfo> {
        check_devices(devices)?;
        self.pool(name)?;
        self.backend.pool_grow(name, devices)?;
        self.pool(name)
    }

    /// Deletes a pool, with `force` also one that has volumes; never one of which units show something.
    ///
    /// # Errors
    /// It is in use, or isn't there.
    pub fn pool_delete(&self, name: &str, force: bool) -> Outcome<()> {
        let info = self.pool(name)?;
        let units = self.backend.units()?;
        let shown = units.iter().find(|unit| unit.volume.as_ref().is_some_and(|volume| volume.pool == name));
        if let Some(unit) = shown {
            let what =
                format!("pool {name} is in use: {} shows a volume of it", lun_text(&unit.target, unit.lun));
            let cure = match unit.source {
                Source::Catalog => format!("unmap it first: `pollux lun unmap {}`", unit.lun),
                Source::Configuration => "take the LUN out of the configuration and restart first".to_owned(),
            };
            return refused(Against::InUse, what, cure);
        }
        if info.volumes > 0 && !force {
            let what = format!("pool {name} has {} volumes", info.volumes);
            return refused(Against::InUse, what, "delete them first, or give --force to lose them");
        }
        for volume in self.volumes(name)?.into_iter().filter(|volume| volume.attached) {
            self.done(name, Request::Detach { volume: volume.name })?;
        }
        self.backend.pool_delete(name)
    }

    // Volumes.

    /// A pool's volumes.
    ///
    /// # Errors
    /// No such pool.
    pub fn volumes(&self, pool: &str) -> Outcome<Vec<VolumeInfo>> {
        answer!(self.backend.ask(pool, Request::Volumes), Answer::Volumes(volumes) => volumes)
    }

    /// A pool's volumes, after a walk for what is unique and what is shared. Where that takes too long, with the figures of
    /// the last one, which say of when they are.
    ///
    /// # Errors
    /// No such pool, or too many wait for a walk.
    pub fn volumes_walked(&self, pool: &str) -> Outcome<Vec<VolumeInfo>> {
        match self.backend.ask(pool, Request::UsageWalk) {
            Ok(_) | Err(Failure::Unanswered(_)) => self.volumes(pool),
            Err(failure) => Err(failure),
        }
    }

    /// A volume.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn volume(&self, name: &VolumeName) -> Outcome<VolumeInfo> {
        let found = self.volumes(&name.pool)?.into_iter().find(|volume| volume.name == name.volume);
        found.map_or_else(
            || {
                let what = format!("pool {} has no volume {}", name.pool, name.volume);
                refused(Against::NotFound, what, "`pollux volume list` shows those that are there")
            },
            Ok,
        )
    }

    /// Makes a volume.
    ///
    /// # Errors
    /// It can't be meant, or the pool refuses.
    pub fn volume_create(&self, pool: &str, spec: VolumeSpec) -> Outcome<VolumeInfo> {
        check_name("volume", &spec.name)?;
        check_capacity(spec.bytes).map_err(invalid)?;
        check_blocks(&spec)?;
        let name = VolumeName { pool: pool.to_owned(), volume: spec.name.clone() };
        self.done(pool, Request::VolumeCreate(spec))?;
        self.volume(&name)
    }

    /// Changes a volume's size and lets its hosts know; the same size again lets them know again.
    ///
    /// # Errors
    /// It shrinks and may not, or sessions have it and `force` isn't given.
    pub fn volume_resize(
        &self,
        name: &VolumeName,
        bytes: u64,
        shrink: bool,
        force: bool,
    ) -> Outcome<VolumeInfo> {
        check_capacity(bytes).map_err(invalid)?;
        let before = self.volume(name)?;
        let units = self.units_of(name)?;
        if bytes < before.bytes && !shrink {
            let what =
                format!("volume {} has {} bytes, and {} would be less", name.volume, before.bytes, bytes);
            let cure = "give --shrink to lose what is behind the new end";
            return refused(Against::Invalid, what, cure);
        }
        if bytes < before.bytes {
            self.check_sessions(name, &units, force)?;
        }
        let volume = name.volume.clone();
        self.done(&name.pool, Request::VolumeResize { volume, bytes, shrink, force: true })?;
        self.tell(name, &units, &[Change::Capacity(bytes)])?;
        self.volume(name)
    }

    /// Makes the volume what the snapshot is, and lets its hosts know.
    ///
    /// # Errors
    /// Sessions have it and `force` isn't given, or there is no such snapshot.
    pub fn volume_rollback(&self, name: &VolumeName, snapshot: String, force: bool) -> Outcome<VolumeInfo> {
        let before = self.volume(name)?;
        let units = self.units_of(name)?;
        self.check_sessions(name, &units, force)?;
        let volume = name.volume.clone();
        self.done(&name.pool, Request::VolumeRollback { volume, snapshot, force: true })?;
        let after = self.volume(name)?;
        let mut changes = vec![Change::Contents];
        if after.bytes != before.bytes {
            changes.insert(0, Change::Capacity(after.bytes));
        }
        self.tell(name, &units, &changes)?;
        Ok(after)
    }

    /// Makes a volume that begins as `snapshot` (`volume@snapshot`) is.
    ///
    /// # Errors
    /// A name that can't be used, or the pool refuses.
    pub fn volume_clone(
        &self,
        pool: &str,
        snapshot: String,
        name: String,
        provisioning: Option<Provisioning>,
    ) -> Outcome<VolumeInfo> {
        check_name("volume", &name)?;
        let made = VolumeName { pool: pool.to_owned(), volume: name.clone() };
        self.done(pool, Request::VolumeClone { snapshot, name, provisioning })?;
        self.volume(&made)
    }

    /// Switches zero-detect.
    ///
    /// # Errors
    /// No such volume.
    pub fn volume_set(&self, name: &VolumeName, zero_detect: bool) -> Outcome<VolumeInfo> {
        let volume = name.volume.clone();
        self.done(&name.pool, Request::VolumeSet { volume, zero_detect })?;
        self.volume(name)
    }

    /// Deletes a volume; with `force` also one that is mapped, whose units go first.
    ///
    /// # Errors
    /// It has snapshots, is mapped and `force` isn't given, or stands in the configuration.
    pub fn volume_delete(&self, name: &VolumeName, force: bool) -> Outcome<()> {
        let info = self.volume(name)?;
        if info.snapshots > 0 {
            let what = format!("volume {} has {} snapshots", name.volume, info.snapshots);
            let cure = format!("delete them first: `pollux snapshot list {}`", name.volume);
            return refused(Against::InUse, what, cure);
        }
        let units = self.units_of(name)?;
        if let Some(unit) = units.iter().find(|unit| unit.source == Source::Configuration) {
            return refuse_configured(unit);
        }
        let mut shown: Vec<Shown> = Vec::new();
        for mapping in
            self.mappings_in(&name.pool)?.into_iter().filter(|mapping| mapping.volume == name.volume)
        {
            let served = units.iter().any(|unit| is_at(unit, &mapping));
            shown.push(Shown { mapping, remembered: true, served });
        }
        // Units whose mappings were forgotten by an earlier try.
        for unit in &units {
            if !shown.iter().any(|shown| is_at(unit, &shown.mapping)) {
                shown.push(Shown { mapping: mapping_of(unit, name), remembered: false, served: true });
            }
        }
        if let Some(Shown { mapping, .. }) = shown.first().filter(|_| !force) {
            let place = lun_text(&mapping.target, mapping.lun);
            let sessions = self.sessions(&units)?;
            let what = format!("volume {} is {place}, and {sessions} sessions have it", name.volume);
            let cure = format!("unmap it first: `pollux lun unmap {}`; or give --force", mapping.lun);
            return refused(Against::InUse, what, cure);
        }
        let mut taken = Vec::new();
        let deleted = shown
            .into_iter()
            .try_for_each(|shown| {
                self.take_away(&name.pool, &shown)?;
                taken.push(shown);
                Ok(())
            })
            .and_then(|()| self.let_go(name))
            .and_then(|()| {
                self.done(&name.pool, Request::VolumeDelete { volume: name.volume.clone(), force: true })
            });
        match deleted {
            Err(failure @ Failure::Refused(_)) => {
                let back = taken.iter().rev().try_for_each(|shown| self.bring_back(&name.pool, shown));
                Err(after_undoing(failure, back))
            }
            other => other,
        }
    }

    // Snapshots.

    /// A pool's snapshots, or one volume's.
    ///
    /// # Errors
    /// No such pool or volume.
    pub fn snapshots(&self, pool: &str, volume: Option<String>) -> Outcome<Vec<SnapshotInfo>> {
        answer!(self.backend.ask(pool, Request::Snapshots { volume }), Answer::Snapshots(all) => all)
    }

    /// Takes a snapshot.
    ///
    /// # Errors
    /// A name that can't be used, or the pool refuses.
    pub fn snapshot_create(&self, volume: &VolumeName, name: &str) -> Outcome<SnapshotInfo> {
        check_name("snapshot", name)?;
        let of = volume.volume.clone();
        self.done(&volume.pool, Request::SnapshotCreate { volume: of.clone(), name: name.to_owned() })?;
        let all = self.snapshots(&volume.pool, Some(of))?;
        let gone = || {
            let what = format!("snapshot {}@{name} was made, and is gone again", volume.volume);
            Failure::Refused(Refusal::new(Against::NotFound, what, "somebody else deleted it: make it again"))
        };
        all.into_iter().find(|snapshot| snapshot.name == name).ok_or_else(gone)
    }

    /// Deletes a snapshot, `volume@snapshot`.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn snapshot_delete(&self, pool: &str, snapshot: String) -> Outcome<()> {
        self.done(pool, Request::SnapshotDelete { snapshot })
    }

    /// A part of the extents in which two states of a volume differ.
    ///
    /// # Errors
    /// They aren't of one volume, or aren't there.
    pub fn diff(&self, pool: &str, from: String, to: String, from_bytes: u64) -> Outcome<DiffPart> {
        let request = Request::SnapshotDiff { from, to, from_bytes };
        answer!(self.backend.ask(pool, request), Answer::Diff(part) => part)
    }

    // Units.

    /// All units, and mappings whose units aren't served; by target and number.
    ///
    /// # Errors
    /// As the backend's.
    pub fn luns(&self) -> Outcome<Vec<Lun>> {
        let units = self.backend.units()?;
        let mut luns = Vec::with_capacity(units.len());
        for (pool, mapping) in self.mappings()? {
            if !units.iter().any(|unit| is_at(unit, &mapping)) {
                luns.push(Lun::unserved(&pool, mapping));
            }
        }
        for unit in units {
            let sessions = self.backend.unit_sessions(&unit.target, unit.lun)?;
            let copies = self.backend.unit_copies(&unit.target, unit.lun)?;
            luns.push(Lun::of(unit, sessions, copies));
        }
        luns.sort_by(|one, other| (&one.target, one.lun).cmp(&(&other.target, other.lun)));
        Ok(luns)
    }

    /// Shows a volume: attaches it, remembers the mapping, adds the unit. A mapping that is remembered and not served
    /// is served by it.
    ///
    /// # Errors
    /// The number is taken, the target shows the volume already, or a step is refused.
    pub fn lun_map(&self, map: &Map) -> Outcome<Lun> {
        let target = self.target(map.target.as_deref())?;
        let units = self.backend.units()?;
        let mappings = self.mappings()?;
        let here = units.iter().find(|unit| unit.target == target && shows(unit, &map.volume));
        let earlier = mappings.iter().find(|(pool, mapping)| {
            *pool == map.volume.pool && mapping.volume == map.volume.volume && mapping.target == target
        });
        let at = here.map(|unit| unit.lun).or(earlier.map(|(_, mapping)| mapping.lun));
        if let Some(at) = at.filter(|&at| here.is_some() || map.lun.is_some_and(|lun| lun != at)) {
            let what = format!("volume {} is {} already", map.volume.volume, lun_text(&target, at));
            let cure = format!("use it there, or unmap it first: `pollux lun unmap {at}`");
            return refused(Against::Exists, what, cure);
        }
        let taken = |lun: u16| {
            units.iter().any(|unit| unit.target == target && unit.lun == lun)
                || mappings.iter().any(|(_, mapping)| mapping.target == target && mapping.lun == lun)
        };
        let lun = match (at, map.lun) {
            (Some(at), _) => at,
            (None, Some(lun)) if lun > LUN_NUMBER_MAX => {
                let cure = format!("choose one from 0 to {LUN_NUMBER_MAX}");
                return refused(Against::Invalid, format!("{lun} is no LUN number"), cure);
            }
            (None, Some(lun)) if taken(lun) => {
                let what = format!("{} is there already", lun_text(&target, lun));
                return refused(
                    Against::Exists,
                    what,
                    "leave --lun out to take the lowest number that is free",
                );
            }
            (None, Some(lun)) => lun,
            (None, None) => (0..=LUN_NUMBER_MAX).find(|&lun| !taken(lun)).map_or_else(
                || refused(Against::NoSpace, format!("{target} has no LUN number left"), "unmap a LUN first"),
                Ok,
            )?,
        };
        let mapping = Mapping {
            target: target.clone(),
            lun,
            volume: map.volume.volume.clone(),
            read_only: map.read_only,
            removable: map.removable,
        };
        let before = earlier.map(|(_, mapping)| mapping.clone());
        self.map(&map.volume.pool, &mapping, before)?;
        self.lun(&target, lun)
    }

    /// The steps of [`Operations::lun_map`]. `before`: what the catalog had there.
    fn map(&self, pool: &str, mapping: &Mapping, before: Option<Mapping>) -> Outcome<()> {
        let Mapping { target, lun, volume, .. } = mapping;
        let name = VolumeName { pool: pool.to_owned(), volume: volume.clone() };
        let attach = Request::Attach { volume: volume.clone() };
        let attached = self.backend.ask(pool, attach)?;
        let put = self.done(pool, Request::MappingPut(mapping.clone()));
        let added = match &put {
            Ok(()) => self.add(&name, mapping, &attached),
            Err(_) => put.clone(),
        };
        let Err(failure @ Failure::Refused(_)) = added else { return added };
        let forgotten = match (put, before) {
            (Ok(()), Some(before)) => self.done(pool, Request::MappingPut(before)),
            (Ok(()), None) => self.done(pool, Request::MappingRemove { target: target.clone(), lun: *lun }),
            (Err(_), _) => Ok(()),
        };
        Err(after_undoing(failure, forgotten.and_then(|()| self.let_go(&name))))
    }

    fn add(&self, volume: &VolumeName, mapping: &Mapping, attached: &Answer) -> Outcome<()> {
        let Answer::Attached { bdev, geometry, uuid, reservations } = attached else {
            panic!("a pool answered an attach with {attached:?}");
        };
        self.backend.unit_add(&NewUnit {
            target: mapping.target.clone(),
            lun: mapping.lun,
            volume: volume.clone(),
            bdev: *bdev,
            geometry: *geometry,
            uuid: *uuid,
            read_only: mapping.read_only,
            removable: mapping.removable,
            reservations: reservations.clone(),
        })
    }

    /// Takes a unit away: forgets the mapping, removes the unit, detaches the volume. Says what it was.
    ///
    /// # Errors
    /// Sessions have it and `force` isn't given, it isn't there, or stands in the configuration.
    pub fn lun_unmap(&self, target: Option<&str>, lun: u16, force: bool) -> Outcome<Lun> {
        let target = self.target(target)?;
        let shown = self.lun(&target, lun)?;
        let units = self.backend.units()?;
        let unit = units.iter().find(|unit| unit.target == target && unit.lun == lun);
        if let Some(unit) = unit.filter(|unit| unit.source == Source::Configuration) {
            return refuse_configured(unit);
        }
        if let Some(sessions) = shown.sessions.filter(|&sessions| sessions > 0 && !force) {
            let what = format!("{sessions} sessions have {}", lun_text(&target, lun));
            let cure = "let the hosts let go of it first, or give --force: they lose it in mid-use then";
            return refused(Against::InUse, what, cure);
        }
        let mappings = self.mappings()?;
        let found = mappings.into_iter().find(|(_, mapping)| mapping.target == target && mapping.lun == lun);
        match (found, unit) {
            (Some((pool, mapping)), unit) => {
                let name = VolumeName { pool, volume: mapping.volume.clone() };
                self.take_away(&name.pool, &Shown { mapping, remembered: true, served: unit.is_some() })?;
                self.let_go(&name)?;
            }
            // Its mapping was forgotten by an earlier try.
            (None, Some(unit)) => {
                self.backend.unit_remove(&target, lun)?;
                unit.volume.as_ref().map_or(Ok(()), |volume| self.let_go(volume))?;
            }
            (None, None) => {}
        }
        Ok(shown)
    }

    /// Forgets a mapping and removes its unit, or changes nothing.
    fn take_away(&self, pool: &str, shown: &Shown) -> Outcome<()> {
        let Mapping { target, lun, .. } = &shown.mapping;
        if shown.remembered {
            self.done(pool, Request::MappingRemove { target: target.clone(), lun: *lun })?;
        }
        let removed = if shown.served { self.backend.unit_remove(target, *lun) } else { Ok(()) };
        match removed {
            Err(failure @ Failure::Refused(_)) if shown.remembered => {
                let back = self.done(pool, Request::MappingPut(shown.mapping.clone()));
                Err(after_undoing(failure, back))
            }
            other => other,
        }
    }

    /// Remembers and serves again what was taken away.
    fn bring_back(&self, pool: &str, shown: &Shown) -> Outcome<()> {
        let mapping = &shown.mapping;
        let attached = if shown.served {
            Some(self.backend.ask(pool, Request::Attach { volume: mapping.volume.clone() })?)
        } else {
            None
        };
        if shown.remembered {
            self.done(pool, Request::MappingPut(mapping.clone()))?;
        }
        let name = VolumeName { pool: pool.to_owned(), volume: mapping.volume.clone() };
        attached.map_or(Ok(()), |attached| self.add(&name, mapping, &attached))
    }

    /// Detaches the volume, if it is attached and no unit shows it.
    fn let_go(&self, name: &VolumeName) -> Outcome<()> {
        if !self.units_of(name)?.is_empty() || !self.volume(name)?.attached {
            return Ok(());
        }
        self.done(&name.pool, Request::Detach { volume: name.volume.clone() })
    }

    fn lun(&self, target: &str, lun: u16) -> Outcome<Lun> {
        let found = self.luns()?.into_iter().find(|found| found.target == target && found.lun == lun);
        found.map_or_else(
            || {
                let what = format!("there is no {}", lun_text(target, lun));
                refused(Against::NotFound, what, "`pollux lun list` shows those that are there")
            },
            Ok,
        )
    }

    /// The target of that name, or the only one.
    fn target(&self, name: Option<&str>) -> Outcome<String> {
        let targets = self.backend.targets();
        match (name, &targets[..]) {
            (None, [only]) => Ok(only.clone()),
            (None, _) => {
                let what = format!("there are {} targets", targets.len());
                refused(Against::Invalid, what, format!("say which with --target: {}", targets.join(", ")))
            }
            (Some(name), _) => {
                let found = targets.iter().find(|target| target.eq_ignore_ascii_case(name));
                found.cloned().map_or_else(
                    || {
                        let cure = format!("name one that is there: {}", targets.join(", "));
                        refused(Against::NotFound, format!("there is no target {name}"), cure)
                    },
                    Ok,
                )
            }
        }
    }

    /// All pools' mappings, with their pools' names.
    fn mappings(&self) -> Outcome<Vec<(String, Mapping)>> {
        let mut all = Vec::new();
        for pool in self.backend.pools() {
            all.extend(self.mappings_in(&pool)?.into_iter().map(|mapping| (pool.clone(), mapping)));
        }
        Ok(all)
    }

    fn mappings_in(&self, pool: &str) -> Outcome<Vec<Mapping>> {
        answer!(self.backend.ask(pool, Request::Mappings), Answer::Mappings(mappings) => mappings)
    }

    fn units_of(&self, volume: &VolumeName) -> Outcome<Vec<Unit>> {
        Ok(self.backend.units()?.into_iter().filter(|unit| shows(unit, volume)).collect())
    }

    fn sessions(&self, units: &[Unit]) -> Outcome<u32> {
        units.iter().try_fold(0, |sum: u32, unit| {
            Ok(sum.saturating_add(self.backend.unit_sessions(&unit.target, unit.lun)?))
        })
    }

    /// Refuses what pulls the ground from under hosts, unless that is wanted.
    fn check_sessions(&self, name: &VolumeName, units: &[Unit], force: bool) -> Outcome<()> {
        let sessions = if force { 0 } else { self.sessions(units)? };
        if sessions == 0 {
            return Ok(());
        }
        let what = format!("{sessions} sessions have volume {}", name.volume);
        let cure = "let the hosts let go of it first, or give --force: it changes under them then";
        refused(Against::InUse, what, cure)
    }

    /// Lets the hosts of all these units know. All are told, whether or not one can't be.
    fn tell(&self, name: &VolumeName, units: &[Unit], changes: &[Change]) -> Outcome<()> {
        let mut told = Ok(());
        for unit in units {
            for &change in changes {
                let outcome = self.backend.unit_changed(&unit.target, unit.lun, change);
                if told.is_ok() && outcome.is_err() {
                    told = outcome.map_err(|failure| not_told(name, unit, change, failure));
                }
            }
        }
        told
    }
}

fn is_at(unit: &Unit, mapping: &Mapping) -> bool {
    unit.target == mapping.target && unit.lun == mapping.lun
}

fn mapping_of(unit: &Unit, volume: &VolumeName) -> Mapping {
    Mapping {
        target: unit.target.clone(),
        lun: unit.lun,
        volume: volume.volume.clone(),
        read_only: unit.read_only,
        removable: unit.removable,
    }
}

fn not_told(name: &VolumeName, unit: &Unit, change: Change, failure: Failure) -> Failure {
    let Failure::Refused(Refusal { against, what, .. }) = failure else { return failure };
    let volume = &name.volume;
    let now = match change {
        Change::Capacity(bytes) => format!("volume {volume} has {} bytes now", Size(bytes)),
        Change::Contents => format!("volume {volume} is rolled back"),
    };
    let what = format!("{now}, but {} has not heard of it: {what}", lun_text(&unit.target, unit.lun));
    Failure::Refused(Refusal::new(against, what, "give the same command again, and rescan on the hosts"))
}

fn refuse_configured<T>(unit: &Unit) -> Outcome<T> {
    let what = format!("{} stands in the configuration", lun_text(&unit.target, unit.lun));
    refused(Against::Invalid, what, "take it out there (--lun, or [[lun]] in the file) and restart")
}
