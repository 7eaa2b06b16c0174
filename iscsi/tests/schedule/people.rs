//! Who looks after the pool: takes snapshots, makes clones of them, lets them go, gives the pool more disks, and changes
//! unit 1. One request of each kind at a time, as the program has it.

use crate::host::{Host, Window};
use crate::pools::{Attached, Pools};
use crate::{Image, Stage};
use bdev::io::BdevId;
use bdev::pool::control::{Against, Answer, Answered, Request};
use iscsi::units::UnitChangeError;
use reactor::clock::Time;
use std::collections::BTreeMap;
use vaai::change::UnitChange;
use vaai::lun::LunConfig;

/// Snapshots, and clones, at once.
const SNAPSHOTS_MAX: usize = 3;
const CLONES_MAX: usize = 2;
/// Disks that are added while hosts are at work.
const GROWS_MAX: u32 = 2;
const GROW_BYTES: u64 = 6 << 20;

/// What one unit was at some moment: of each host what its window has seen.
#[derive(Clone, Debug)]
struct Frozen {
    lun: u8,
    windows: Vec<Window>,
}

#[derive(Debug)]
enum Wish {
    Snapshot { name: String, lun: u8, window: u64 },
    SnapshotDelete,
    Clone { snapshot: String, name: String },
    CloneDelete,
    Grow,
}

/// See the module.
pub(crate) struct People {
    volumes: [Attached; 2],
    /// They take snapshots at all.
    shares: bool,
    has_unit: bool,
    change: Option<UnitChange>,
    asked: Option<(u64, Wish)>,
    snapshots: BTreeMap<String, Frozen>,
    clones: BTreeMap<String, Frozen>,
    names: u64,
    grown: u32,
}

fn volume(lun: u8) -> String {
    format!("v{lun}")
}

impl People {
    pub(crate) fn new(volumes: [Attached; 2], shares: bool) -> People {
        People {
            volumes,
            shares,
            has_unit: true,
            change: None,
            asked: None,
            snapshots: BTreeMap::new(),
            clones: BTreeMap::new(),
            names: 0,
            grown: 0,
        }
    }

    /// Hears what was answered, and now and then wants something.
    pub(crate) fn act(&mut self, stage: &mut Stage, hosts: &mut [Host]) {
        self.look(stage, hosts);
        if stage.random.one_in(4) {
            self.change_unit(stage);
        }
        if self.asked.is_none() && stage.random.one_in(2) {
            self.wish(stage, hosts);
        }
    }

    fn look(&mut self, stage: &mut Stage, hosts: &mut [Host]) {
        self.look_at_unit(stage);
        let Some((ticket, wish)) = self.asked.take() else { return };
        let answered = stage.pools().and_then(|(pools, _)| pools.answer(ticket));
        match answered {
            None => self.asked = Some((ticket, wish)),
            Some(answered) => self.answered(stage, hosts, wish, answered),
        }
    }

    fn wish(&mut self, stage: &mut Stage, hosts: &mut [Host]) {
        self.names += 1;
        let nth = stage.random.below(8) as usize;
        let lun = stage.random.one_in(2).into();
        let is_full = stage.world.disk.full;
        let (wish, request) = match stage.random.below(10) {
            0..4 if self.shares && self.snapshots.len() < SNAPSHOTS_MAX => {
                let (own, window) = (format!("s{}", self.names), self.names);
                for host in hosts {
                    host.open_all(window, lun);
                }
                let name = format!("{}@{own}", volume(lun));
                let request = Request::SnapshotCreate { volume: volume(lun), name: own };
                (Wish::Snapshot { name, lun, window }, request)
            }
            4 if self.clones.len() < CLONES_MAX => {
                let Some(snapshot) = self.snapshots.keys().nth(nth).cloned() else { return };
                let name = format!("c{}", self.names);
                let (of, provisioning) = (snapshot.clone(), None);
                let request = Request::VolumeClone { snapshot: of, name: name.clone(), provisioning };
                (Wish::Clone { snapshot, name }, request)
            }
            5..7 => {
                let Some(name) = self.snapshots.keys().nth(nth).cloned() else { return };
                self.snapshots.remove(&name);
                (Wish::SnapshotDelete, Request::SnapshotDelete { snapshot: name })
            }
            7 => {
                let Some(volume) = self.clones.keys().nth(nth).cloned() else { return };
                self.clones.remove(&volume);
                (Wish::CloneDelete, Request::VolumeDelete { volume, force: false })
            }
            _ if is_full && self.grown < GROWS_MAX && stage.random.one_in(3) => {
                self.grown += 1;
                let Some((pools, _)) = stage.pools() else { return };
                (Wish::Grow, pools.another_disk(GROW_BYTES))
            }
            _ => return,
        };
        let ticket = stage.pools().map(|(pools, _)| pools.ask(request));
        self.asked = ticket.map(|ticket| (ticket, wish));
    }

    fn answered(&mut self, stage: &mut Stage, hosts: &mut [Host], wish: Wish, answered: Answered) {
        match (wish, answered) {
            (Wish::Snapshot { name, lun, window }, answered) => {
                let close = |host: &mut Host| host.windows.remove(&window).expect("it was opened");
                let windows = hosts.iter_mut().map(close).collect();
                match answered {
                    Ok(_) => {
                        stage.saw("a snapshot");
                        self.snapshots.insert(name, Frozen { lun, windows });
                    }
                    // The disk was stuck for too long, or there is no space for maps.
                    Err(refusal) => {
                        assert!(matches!(refusal.against, Against::Busy | Against::NoSpace), "{refusal:?}");
                        stage.saw("a snapshot that is refused");
                    }
                }
            }
            (Wish::Clone { snapshot, name }, Ok(_)) => {
                stage.saw("a clone");
                let frozen = self.snapshots[&snapshot].clone();
                self.clones.insert(name, frozen);
            }
            (Wish::SnapshotDelete, Ok(_)) => {
                stage.saw("a snapshot's end");
                stage.world.disk.full = false;
            }
            (Wish::CloneDelete, Ok(_)) => stage.world.disk.full = false,
            (Wish::Grow, Ok(_)) => {
                stage.saw("a pool that grows");
                stage.world.disk.full = false;
            }
            (wish, Err(refusal)) => panic!("{wish:?}: {refusal:?}"),
        }
    }

    fn change_unit(&mut self, stage: &mut Stage) {
        if self.change.is_some() {
            return;
        }
        let change = match (self.has_unit, stage.random.below(4)) {
            (false, _) => UnitChange::Add(Box::new(self.volumes[1].unit(1))),
            (true, 0) => UnitChange::Remove { lun: 1 },
            (true, 1) => UnitChange::ContentsChanged { lun: 1 },
            (true, _) => return,
        };
        assert!(stage.world.env(0, |target, env| target.propose_unit_change(1, change.clone(), env)));
        stage.removals[1].asked += u32::from(matches!(change, UnitChange::Remove { .. }));
        self.change = Some(change);
    }

    /// When all cores have let a unit go, its device has nothing to do for it any more.
    fn look_at_unit(&mut self, stage: &mut Stage) {
        let Some((_, made)) = stage.world.target().poll_unit_change() else { return };
        let change = self.change.take().expect("one at a time");
        let bdev = self.volumes[1].bdev;
        match (change, made) {
            (UnitChange::Remove { .. }, made) => {
                self.has_unit = false;
                stage.removals[1].done += 1;
                stage.saw("a unit goes");
                let is_its = stage.world.disk.waiting.iter().any(|request| request.io.bdev == bdev);
                assert!(
                    !is_its || made == Err(UnitChangeError::Stuck),
                    "late: {:?}",
                    stage.world.disk.waiting
                );
            }
            (UnitChange::Add(_), Ok(())) => {
                self.has_unit = true;
                stage.saw("a unit comes");
            }
            (_, Ok(()) | Err(UnitChangeError::Stuck)) => {}
            (change, Err(error)) => panic!("{change:?}: {error:?}"),
        }
    }

    /// Nothing that was asked for is open any more.
    pub(crate) fn settle(&mut self, stage: &mut Stage, hosts: &mut [Host]) {
        for _ in 0..10 {
            stage.world.settle();
            self.look(stage, hosts);
        }
        assert!(self.asked.is_none() && self.change.is_none(), "{:?} {:?}", self.asked, self.change);
        if !self.has_unit {
            let change = UnitChange::Add(Box::new(self.volumes[1].unit(1)));
            assert!(stage.world.env(0, |target, env| target.propose_unit_change(1, change.clone(), env)));
            self.change = Some(change);
            stage.world.settle();
            self.look(stage, hosts);
            assert!(self.has_unit);
        }
    }

    /// Whether nothing that they want is under way.
    pub(crate) fn is_idle(&self) -> bool {
        self.asked.is_none() && self.change.is_none()
    }

    /// The units, after the pool was opened again.
    pub(crate) fn attach_again(&mut self, pools: &mut Pools, now: &mut Time) -> Vec<LunConfig> {
        self.volumes = [0, 1].map(|lun| pools.attach(now, &volume(lun)));
        self.has_unit = true;
        (0..).zip(&self.volumes).map(|(lun, volume)| volume.unit(lun)).collect()
    }

    pub(crate) fn devices(&self) -> [BdevId; 2] {
        self.volumes.each_ref().map(|volume| volume.bdev)
    }

    /// More space than anybody needs.
    pub(crate) fn grow(stage: &mut Stage) {
        let Some((pools, now)) = stage.pools() else { return };
        let request = pools.another_disk(64 << 20);
        assert_eq!(pools.demand(now, request), Ok(Answer::Done));
    }

    /// Units, snapshots and clones have what they may have, and the pool's books are right.
    pub(crate) fn check_end(&mut self, stage: &mut Stage, hosts: &[Host]) {
        for lun in [0, 1] {
            let image = stage.image_of(self.volumes[usize::from(lun)].bdev);
            for host in hosts {
                host.check(lun, &image);
            }
            stage.chains[usize::from(lun)].check(&image);
        }
        for (name, frozen) in std::mem::take(&mut self.clones) {
            People::check_frozen(stage, hosts, &name, &frozen);
        }
        for (name, frozen) in std::mem::take(&mut self.snapshots) {
            let Some((pools, now)) = stage.pools() else { return };
            let request =
                Request::VolumeClone { snapshot: name, name: "look".to_owned(), provisioning: None };
            assert_eq!(pools.demand(now, request), Ok(Answer::Done));
            People::check_frozen(stage, hosts, "look", &frozen);
        }
        let Some((pools, _)) = stage.pools() else { return };
        let problems = pools.problems();
        assert!(problems.is_empty(), "{problems:?}");
    }

    /// What a clone shows; then it goes.
    fn check_frozen(stage: &mut Stage, hosts: &[Host], name: &str, frozen: &Frozen) {
        let Some((pools, now)) = stage.pools() else { return };
        let device = pools.attach(now, name).bdev;
        let image: Image = stage.image_of(device);
        for (host, window) in hosts.iter().zip(&frozen.windows) {
            host.check_window(window, &image, name);
        }
        let chain = &stage.chains[usize::from(frozen.lun)];
        for at in chain.blocks() {
            assert!(chain.may_have(at, image[&at]), "{} at {at} of {name}", image[&at]);
        }
        let Some((pools, now)) = stage.pools() else { return };
        for request in [
            Request::Detach { volume: name.to_owned() },
            Request::VolumeDelete { volume: name.to_owned(), force: false },
        ] {
            assert_eq!(pools.demand(now, request), Ok(Answer::Done));
        }
    }
}
