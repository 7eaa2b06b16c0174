//! The running target behind the control API: questions to its reactors, and the list of units.

use super::answer::{ANSWER_TIMEOUT, NotTaken, wait_all, wait_one};
use super::backend::{Backend, Change, Failure, NewUnit, Outcome, Unit};
use crate::below::Below;
use crate::config::Config;
use crate::mistake::Mistake;
use crate::node::Message;
use crate::pools::{self, Known};
use crate::space::THRESHOLD_PERCENT;
use crate::spec::Device;
use bdev::pool::Member;
use bdev::pool::control::{Against, Answer, MemberInfo, MemberSize, NewMember, Refusal, Request};
use bdev::storage::CopyCounts;
use iscsi::units::UnitChangeError;
use reactor::disk::FileId;
use reactor::mesh::Remote;
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use tracing::warn;
use vaai::change::{PoolSpace, UnitChange};
use vaai::lun::LunConfig;

/// See the module.
#[derive(Debug)]
pub struct Live {
    data: PathBuf,
    /// It is gone when the program ends.
    forgets: bool,
    /// See [`pools::member`].
    discard: Option<bool>,
    target: String,
    remotes: Vec<Remote<Message>>,
    /// In percent, by pool, where it is not the default.
    thresholds: BTreeMap<String, u8>,
    /// By their places.
    pools: Mutex<Vec<String>>,
    /// As they were when a pool last told.
    members: Mutex<BTreeMap<String, Vec<PathBuf>>>,
    units: Mutex<Vec<Unit>>,
    locks: Mutex<Vec<Arc<OwnedFd>>>,
}

fn refused<T>(against: Against, what: impl Into<String>, cure: impl Into<String>) -> Outcome<T> {
    Err(Failure::Refused(Refusal::new(against, what, cure)))
}

impl Live {
    /// A target of this configuration whose reactors are reached by `remotes`, with these pools open, by their places.
    pub fn new(config: &Config, target: String, remotes: Vec<Remote<Message>>, pools: Vec<String>) -> Live {
        Live {
            data: config.data.clone(),
            forgets: config.data_memory.is_some(),
            discard: config.discard,
            target,
            remotes,
            thresholds: config.thresholds.clone(),
            pools: Mutex::new(pools),
            members: Mutex::default(),
            units: Mutex::default(),
            locks: Mutex::default(),
        }
    }

    /// A unit is served from now on, or was from the beginning.
    pub fn note(&self, unit: Unit) {
        let mut units = self.units.lock().unwrap_or_else(PoisonError::into_inner);
        units.push(unit);
        units.sort_by_key(|unit| unit.lun);
    }

    /// The pools that have told what they are made of.
    pub fn members(&self) -> BTreeMap<String, Vec<PathBuf>> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// At how many percent of its space the hosts of a pool are told.
    pub fn threshold_percent(&self, pool: &str) -> u8 {
        self.thresholds.get(pool).copied().unwrap_or(THRESHOLD_PERCENT)
    }

    /// These units' pool has this space now.
    ///
    /// # Errors
    /// Nobody answers.
    pub fn tell_space(&self, luns: Vec<u16>, space: PoolSpace) -> Outcome<()> {
        self.change(UnitChange::Space { luns, space })
    }

    fn open_pools(&self) -> Vec<String> {
        self.pools.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Makes a file known to every core's ring, under the same number.
    fn add_file(&self, file: OwnedFd) -> Outcome<FileId> {
        let file = Arc::new(file);
        let who = |core: usize| format!("core {core}");
        let added = wait_all(self.remotes.len(), ANSWER_TIMEOUT, who, |core, reply| {
            self.remotes[core].post(Message::AddFile(Arc::clone(&file), reply)).map_err(|_| NotTaken)
        })?;
        let mut number = None;
        for answer in added {
            match answer {
                Ok(file) if number.is_none_or(|known| known == file) => number = Some(file),
                Ok(_) => {
                    let cure = "start pollux again: its rings do not agree on their files";
                    return refused(Against::Device, "the file has different numbers on two cores", cure);
                }
                Err(error) => return refused(Against::NoSpace, error, "start pollux again with fewer files"),
            }
        }
        // The lock lives with the descriptor: it is kept as long as the program runs.
        self.locks.lock().unwrap_or_else(PoisonError::into_inner).push(file);
        number.map_or_else(|| refused(Against::Device, "there is no core", "report this"), Ok)
    }

    fn change(&self, change: UnitChange) -> Outcome<()> {
        let made = wait_one("core 0", 2 * ANSWER_TIMEOUT, |reply| {
            self.remotes[0].post(Message::Unit(change, reply)).map_err(|_| NotTaken)
        })?;
        match made {
            Ok(()) => Ok(()),
            Err(UnitChangeError::Refused(error)) => {
                refused(Against::Exists, error.to_string(), "`pollux lun list` shows what is served")
            }
            Err(error @ UnitChangeError::Stuck) => Err(Failure::Unanswered(error.to_string())),
        }
    }

    /// The unit as all cores serve it.
    pub fn config(unit: &NewUnit, id: [u8; 16]) -> LunConfig {
        if let Err(error) = vaai::reservation::check_kept(&unit.reservations) {
            warn!(lun = unit.lun, volume = ?unit.volume, "it begins without reservations: {error}");
        }
        LunConfig {
            lun: unit.lun,
            bdev: unit.bdev,
            geometry: unit.geometry,
            id,
            serial: crate::boot::hex(&id),
            read_only: unit.read_only,
            removable: unit.removable,
            reservations: Some(unit.reservations.clone()),
        }
    }

    /// As [`Backend::unit_add`], with another identity than the volume's.
    ///
    /// # Errors
    /// As there.
    pub fn add(
        &self,
        unit: &NewUnit,
        id: [u8; 16],
        source: super::backend::Source,
        spec: String,
    ) -> Outcome<()> {
        self.change(UnitChange::Add(Box::new(Live::config(unit, id))))?;
        let naa = crate::boot::hex(&vaai::identity::naa(&id));
        self.note(Unit {
            target: unit.target.clone(),
            lun: unit.lun,
            source,
            volume: Some(unit.volume.clone()),
            spec,
            bytes: unit.geometry.bytes(),
            block_bytes: unit.geometry.block_bytes,
            physical_block_bytes: unit.geometry.physical_block_bytes,
            read_only: unit.read_only,
            removable: unit.removable,
            id,
            name: format!("naa.{naa}"),
        });
        Ok(())
    }
}

fn as_refusal(mistake: &Mistake) -> Failure {
    Failure::Refused(Refusal::new(Against::Invalid, mistake.what.clone(), mistake.cure.clone()))
}

impl Backend for Live {
    fn pools(&self) -> Vec<String> {
        let mut names = self.open_pools();
        names.sort();
        names
    }

    fn ask(&self, pool: &str, request: Request) -> Outcome<Answer> {
        let Some(place) = self.open_pools().iter().position(|name| name == pool) else {
            let cure = "`pollux pool list` shows those that are open";
            return refused(Against::NotFound, format!("there is no open pool {pool:?}"), cure);
        };
        let answer = wait_one(&format!("the owner of pool {pool}"), ANSWER_TIMEOUT, |reply| {
            self.remotes[0].post(Message::Ask(place, request, reply)).map_err(|_| NotTaken)
        })?;
        if let Ok(Answer::Pool(info)) = &answer {
            let paths = info.members.iter().map(|member| PathBuf::from(&member.path)).collect();
            self.members.lock().unwrap_or_else(PoisonError::into_inner).insert(pool.to_owned(), paths);
        }
        answer.map_err(Failure::Refused)
    }

    fn below(&self, members: &[MemberInfo]) -> Option<Below> {
        Below::of(members.iter().map(|member| Path::new(&member.path)))
    }

    fn pool_create(&self, name: &str, devices: &[Device]) -> Outcome<()> {
        if self.forgets {
            let what =
                "with --data ram:SIZE nothing is remembered, and a pool would be lost with the program";
            return refused(Against::Invalid, what, "start pollux with a data directory");
        }
        let mut known = pools::known(&self.data).map_err(|mistake| as_refusal(&mistake))?;
        let open = self.open_pools();
        let mut names = open.iter().chain(known.iter().map(|pool| &pool.name));
        if names.any(|taken| taken == name) {
            return refused(
                Against::Exists,
                format!("there is a pool {name:?} already"),
                "take another name",
            );
        }
        pools::create(name, devices).map_err(|mistake| as_refusal(&mistake))?;
        known.push(Known {
            name: name.to_owned(),
            devices: devices.iter().map(|device| device.path.clone()).collect(),
        });
        let place = self.open_pools().len();
        let mut members = Vec::new();
        for device in devices {
            let (member, lock) = pools::member(&device.path, None, false, self.discard)
                .map_err(|mistake| as_refusal(&mistake))?;
            let file = self.add_file(lock)?;
            members.push(Member { file, ..member });
        }
        let opened = pools::open_at(place, members, self.remotes.len() as u16);
        let opened = Arc::new(opened.map_err(|mistake| as_refusal(&mistake))?);
        let who = |core: usize| format!("core {core}");
        let made = wait_all(self.remotes.len(), ANSWER_TIMEOUT, who, |core, reply| {
            self.remotes[core].post(Message::AddPool(Arc::clone(&opened), reply)).map_err(|_| NotTaken)
        })?;
        if let Some(Err(error)) = made.into_iter().find(Result::is_err) {
            return refused(Against::NoSpace, error, "give each core more buffer memory and start again");
        }
        self.pools.lock().unwrap_or_else(PoisonError::into_inner).push(name.to_owned());
        pools::remember(&self.data, &known).map_err(|mistake| as_refusal(&mistake))
    }

    fn pool_grow(&self, name: &str, devices: &[Device]) -> Outcome<()> {
        let Answer::Pool(info) = self.ask(name, Request::Pool)? else {
            unreachable!("a pool is told as one");
        };
        if self.forgets {
            let what = format!("pool {name:?} is in memory, which was taken at the start");
            return refused(Against::Invalid, what, "start pollux with more: --data ram:SIZE");
        }
        if let Some(refusal) = info.grow_refused {
            // Before the list of devices is written anew: the next start needs those of the growth that has failed.
            return Err(Failure::Refused(refusal));
        }
        let (mut sizes, mut added) = (Vec::new(), Vec::new());
        let mut paths: Vec<PathBuf> = info.members.iter().map(|member| PathBuf::from(&member.path)).collect();
        for device in devices {
            if paths.contains(&device.path) {
                pools::enlarge(device).map_err(|mistake| as_refusal(&mistake))?;
                continue;
            }
            let (member, lock) = pools::member(&device.path, device.bytes, false, self.discard)
                .map_err(|mistake| as_refusal(&mistake))?;
            if let Some(pool) = bdev::pool::pool_on(&member) {
                let what = format!("{} is a member of the pool {pool:?} already", device.path.display());
                let cure = "name another, or wipe its first MiB if that pool is not needed";
                return refused(Against::Exists, what, cure);
            }
            let mut mark = [0; 16];
            if getrandom::fill(&mut mark).is_err() {
                return refused(Against::Device, "no randomness for a mark", "look at the system's log");
            }
            let (bytes, align_bytes, punch) = (member.medium.bytes(), member.align_bytes, member.punch);
            let file = self.add_file(lock)?;
            added.push(NewMember { path: member.path, file, align_bytes, punch, bytes, mark });
            paths.push(device.path.clone());
        }
        for (place, path) in (0u16..).zip(paths.iter().take(info.members.len())) {
            let bytes = pools::length(path).map_err(|mistake| as_refusal(&mistake))?;
            sizes.push(MemberSize { member: place, bytes });
        }
        if !added.is_empty() {
            // Before the pool speaks of them: what a start finds in the list and in no pool it leaves out.
            let mut known = pools::known(&self.data).map_err(|mistake| as_refusal(&mistake))?;
            known.retain(|pool| pool.name != name);
            known.push(Known { name: name.to_owned(), devices: paths });
            pools::remember(&self.data, &known).map_err(|mistake| as_refusal(&mistake))?;
        }
        self.ask(name, Request::Grow { sizes, added }).map(drop)
    }

    fn pool_delete(&self, name: &str) -> Outcome<()> {
        let mut known = pools::known(&self.data).map_err(|mistake| as_refusal(&mistake))?;
        if self.open_pools().iter().any(|open| open == name) {
            let cure = "take it out of pools.toml and start again; its devices keep what is on them";
            return refused(Against::InUse, format!("pool {name:?} is open"), cure);
        }
        let before = known.len();
        known.retain(|pool| pool.name != name);
        if known.len() == before {
            return refused(
                Against::NotFound,
                format!("there is no pool {name:?}"),
                "`pollux pool list` shows them",
            );
        }
        pools::remember(&self.data, &known).map_err(|mistake| as_refusal(&mistake))
    }

    fn targets(&self) -> Vec<String> {
        vec![self.target.clone()]
    }

    fn units(&self) -> Outcome<Vec<Unit>> {
        Ok(self.units.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    fn unit_add(&self, unit: &NewUnit) -> Outcome<()> {
        let spec = format!("volume:{}/{}", unit.volume.pool, unit.volume.volume);
        self.add(unit, unit.uuid, super::backend::Source::Catalog, spec)
    }

    fn unit_remove(&self, _: &str, lun: u16) -> Outcome<()> {
        self.change(UnitChange::Remove { lun })?;
        self.units.lock().unwrap_or_else(PoisonError::into_inner).retain(|unit| unit.lun != lun);
        Ok(())
    }

    fn unit_sessions(&self, _: &str, _: u16) -> Outcome<u32> {
        let count = self.remotes.len();
        let who = |core: usize| format!("core {core}");
        let sessions = wait_all(count, ANSWER_TIMEOUT, who, |core, reply| {
            self.remotes[core].post(Message::Sessions(reply)).map_err(|_| NotTaken)
        })?;
        Ok(sessions.into_iter().sum::<usize>() as u32)
    }

    fn unit_copies(&self, _: &str, lun: u16) -> Outcome<CopyCounts> {
        let count = self.remotes.len();
        let who = |core: usize| format!("core {core}");
        let counts = wait_all(count, ANSWER_TIMEOUT, who, |core, reply| {
            self.remotes[core].post(Message::Copies(lun, reply)).map_err(|_| NotTaken)
        })?;
        let mut sum = CopyCounts::default();
        for counts in &counts {
            sum.add(counts);
        }
        Ok(sum)
    }

    fn unit_changed(&self, _: &str, lun: u16, change: Change) -> Outcome<()> {
        let mut units = self.units.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(unit) = units.iter_mut().find(|unit| unit.lun == lun) else {
            return refused(
                Against::NotFound,
                format!("there is no LUN {lun}"),
                "`pollux lun list` shows them",
            );
        };
        match change {
            Change::Capacity(bytes) => {
                self.change(UnitChange::Resize { lun, blocks: bytes / u64::from(unit.block_bytes) })?;
                unit.bytes = bytes;
                Ok(())
            }
            Change::Contents => self.change(UnitChange::ContentsChanged { lun }),
        }
    }
}
