//! What people ask of the pool while it works.

use crate::sim::control::Wish;
use crate::sim::oracle::{Kind, State};
use crate::sim::subject::Subject;
use crate::sim::world::World;
use bdev::pool::control::{Against, Provisioning, Request, VolumeSpec};

/// Volumes at once.
const VOLUMES_MAX: usize = 6;
/// Snapshots at once.
const SNAPSHOTS_MAX: usize = 8;
/// Wishes at once.
const PENDING_MAX: usize = 3;

impl<S: Subject> World<'_, S> {
    pub(crate) fn spec(&mut self) -> VolumeSpec {
        let name = format!("v{}", self.fresh_name());
        let block_bytes = self.chance.of(&[512, 512, 4096]);
        let bytes = match self.chance.below(4) {
            0 => self.chance.between(1, 64) << 14,
            1 => 4 << 20,
            _ if self.nature.twins => 12 << 20,
            _ => self.chance.between(1 << 10, 12 << 8) << 12,
        };
        VolumeSpec {
            name,
            bytes,
            block_bytes,
            physical_block_bytes: 4096,
            provisioning: if self.chance.one_in(4) { Provisioning::Thick } else { Provisioning::Thin },
            zero_detect: self.chance.one_in(2),
            write_cache: self.chance.one_in(3),
        }
    }

    pub(crate) fn clone_spec(&mut self, snapshot: u32) -> (u32, VolumeSpec) {
        let state = self.oracle.state(snapshot);
        let Kind::Snapshot { of } = state.kind else { panic!("a volume is no snapshot") };
        let bytes = state.bytes;
        let Kind::Volume { spec, .. } = &self.oracle.state(of).kind else {
            panic!("a snapshot has a volume")
        };
        let mut spec = VolumeSpec { bytes, ..spec.clone() };
        spec.name = format!("c{}", self.fresh_name());
        spec.provisioning = Provisioning::Thin;
        (of, spec)
    }

    pub(crate) fn create(&mut self) {
        let spec = self.spec();
        let _ = self.demand(Wish::Create(spec));
    }

    /// Somebody asks something of the pool.
    pub(crate) fn control(&mut self) {
        if self.oracle.pending.len() >= PENDING_MAX {
            return;
        }
        let free = |state: &State| !state.busy && !state.dying;
        let is_volume = |state: &State| matches!(state.kind, Kind::Volume { .. });
        let (mut volumes, mut snapshots) = (Vec::new(), Vec::new());
        for (&number, state) in self.oracle.states.iter().filter(|(_, state)| free(state)) {
            if is_volume(state) { volumes.push(number) } else { snapshots.push(number) }
        }
        let all_volumes = self.oracle.states.values().filter(|state| is_volume(state)).count();
        let all_snapshots = self.oracle.states.len() - all_volumes;
        let (Some(&volume), Some(snapshot)) = (
            volumes.get(self.chance.index(volumes.len().max(1))),
            Some(snapshots.get(self.chance.index(snapshots.len().max(1))).copied()),
        ) else {
            if all_volumes == 0 {
                let spec = self.spec();
                self.wish(Wish::Create(spec));
            }
            return;
        };
        let attached = matches!(self.oracle.state(volume).kind, Kind::Volume { attached: Some(_), .. });
        let wish = match (self.chance.below(24), snapshot) {
            (0, _) if all_volumes < VOLUMES_MAX => Wish::Create(self.spec()),
            (1..=6, _) if all_snapshots < SNAPSHOTS_MAX => {
                let name = format!("s{}", self.fresh_name());
                Wish::Snapshot { state: volume, name }
            }
            (7 | 8, Some(snapshot)) if all_volumes < VOLUMES_MAX => {
                let (of, spec) = self.clone_spec(snapshot);
                if !volumes.contains(&of) {
                    return;
                }
                Wish::Clone { snapshot, of, spec }
            }
            (9 | 10, Some(snapshot)) => Wish::SnapshotDelete(snapshot),
            (11 | 12, Some(snapshot)) => {
                let Kind::Snapshot { of } = self.oracle.state(snapshot).kind else { return };
                if !volumes.contains(&of) {
                    return;
                }
                Wish::Rollback { state: of, snapshot }
            }
            (13, _) => {
                let own = |state: &State| matches!(state.kind, Kind::Snapshot { of } if of == volume);
                if self.oracle.states.values().any(|state| own(state) && (state.busy || state.dying)) {
                    return;
                }
                if self.oracle.states.values().any(own) {
                    let request = Request::VolumeDelete { volume: self.oracle.name(volume), force: true };
                    Wish::Wrong(request, Against::InUse)
                } else {
                    Wish::Delete(volume)
                }
            }
            (14 | 15, _) => {
                let bytes = self.oracle.state(volume).bytes;
                let bytes = match self.chance.below(3) {
                    0 => bytes + (self.chance.between(1, 512) << 12),
                    1 => self.chance.between(1, bytes >> 12) << 12,
                    _ => bytes.next_multiple_of(4 << 20),
                };
                if bytes == self.oracle.state(volume).bytes || bytes > 24 << 20 {
                    return;
                }
                Wish::Resize { state: volume, bytes }
            }
            (16, _) => Wish::ZeroDetect(volume, self.chance.one_in(2)),
            (17..=19, Some(from)) => {
                let Kind::Snapshot { of } = self.oracle.state(from).kind else { return };
                let of_same = |&other: &u32| matches!(self.oracle.state(other).kind, Kind::Snapshot { of: other } if other == of);
                let mut others: Vec<u32> = snapshots.iter().copied().filter(of_same).collect();
                others.extend(volumes.contains(&of).then_some(of));
                let to = others[self.chance.index(others.len())];
                if to == from {
                    return;
                }
                Wish::Diff { from, to, from_bytes: self.chance.of(&[0, 0, 4096 * 16]) }
            }
            (20, _) if attached && !self.oracle.open.values().any(|open| open.meets(volume)) => {
                Wish::Detach(volume)
            }
            (20, _) if !attached => Wish::Attach(volume),
            (21, _) if self.chance.one_in(2) => Wish::UsageWalk,
            (21, _) => Wish::Pool,
            (22, _) => self.mistake(volume),
            _ => return,
        };
        self.wish(wish);
    }

    /// Something that nobody should ask.
    pub(crate) fn mistake(&mut self, volume: u32) -> Wish {
        let name = self.oracle.name(volume);
        let missing = "nobody".to_owned();
        let (request, against) = match self.chance.below(6) {
            0 => (Request::VolumeDelete { volume: missing, force: true }, Against::NotFound),
            1 => (Request::VolumeCreate(VolumeSpec { name, ..self.spec() }), Against::Exists),
            2 => (Request::SnapshotCreate { volume: missing, name }, Against::NotFound),
            3 => (Request::SnapshotDelete { snapshot: format!("{name}@nobody") }, Against::NotFound),
            4 => (Request::SnapshotCreate { volume: name, name: "-x y".to_owned() }, Against::Invalid),
            _ => {
                let bytes = self.oracle.state(volume).bytes / 2 + 1;
                let (shrink, force) = (true, true);
                (Request::VolumeResize { volume: name, bytes, shrink, force }, Against::Invalid)
            }
        };
        Wish::Wrong(request, against)
    }
}
