//! A world's history from its first volume to its last check: what people ask of the pool, crashes, and what is looked at
//! after each.

use crate::sim::content::{Fill, UNIT_BYTES};
use crate::sim::control::Wish;
use crate::sim::oracle::Kind;
use crate::sim::stats::Stats;
use crate::sim::subject::{Report, Side as _, Subject};
use crate::sim::world::World;
use bdev::io::{Op, PIECE_BYTES};
use bdev::pool::control::{
    Against, Answer, PoolInfo, Provisioning, Request, SnapshotInfo, VolumeInfo, VolumeSpec,
};
use std::collections::BTreeMap;
use std::time::Duration;

const PIECE_UNITS: usize = PIECE_BYTES as usize / UNIT_BYTES;
/// Volumes at once.
const VOLUMES_MAX: usize = 6;
/// Snapshots at once.
const SNAPSHOTS_MAX: usize = 8;
/// Wishes at once.
const PENDING_MAX: usize = 3;

impl<S: Subject> World<'_, S> {
    /// All of it. What happened.
    pub fn run(mut self) -> Stats {
        let free: Vec<_> = self.bufs.iter_mut().map(reactor::buf::Pool::free).collect();
        self.open();
        for spec in self.subject.fixed_volumes() {
            self.oracle.settle(self.oracle.begin(&spec.name, spec.clone(), None));
        }
        if self.able.control {
            (0..self.chance.between(1, 3)).for_each(|_| self.create());
        }
        let epochs = self.chance.between(1, 5);
        for _ in 0..epochs {
            self.attach_all();
            let steps = self.chance.of(&[60, 300, 800, 2000]);
            for _ in 0..steps {
                self.step();
            }
            match self.chance.below(6) {
                0 => self.stop(true),
                1 => self.stop(false),
                _ => {}
            }
            self.crash(&free);
        }
        for disk in &self.disks {
            disk.set_faults(crate::sim::disk::Faults::default());
        }
        self.nature.faults = crate::sim::disk::Faults::default();
        self.attach_all();
        self.stop(true);
        for _ in 0..200 {
            self.step();
        }
        self.crash(&free);
        self.attach_all();
        self.stop(true);
        self.power_off();
        self.sum_up()
    }

    fn sum_up(&mut self) -> Stats {
        for disk in &self.disks {
            let counts = disk.counts();
            let stats = &mut self.oracle.stats;
            stats.add("disk operations", counts.operations);
            stats.add("disk cut short", counts.short);
            stats.add("disk refused for now", counts.again);
            stats.add("disk failed", counts.errors);
            stats.add("sectors lost by crashes", counts.lost_sectors);
            stats.add("writes torn by crashes", counts.torn_writes);
        }
        std::mem::take(&mut self.oracle.stats)
    }

    /// The power goes, and comes back.
    fn crash(&mut self, free: &[[usize; 3]]) {
        self.trace.line(|| "the power goes".to_owned());
        self.oracle.stats.count("crash");
        self.oracle.stats.add("under way at a crash", self.oracle.open.len() as u64);
        let unanswered = self.oracle.crashed();
        self.power_off();
        let home: Vec<_> = self.bufs.iter_mut().map(reactor::buf::Pool::free).collect();
        assert_eq!(home, free, "buffers came home");
        self.open();
        let (volumes, snapshots) = self.lists();
        self.oracle.found(unanswered, &volumes, &snapshots);
        if self.chance.one_in(4) {
            self.attach_all();
            self.read_all();
        }
    }

    fn lists(&mut self) -> (Vec<VolumeInfo>, Vec<SnapshotInfo>) {
        let volumes = match self.demand(Wish::Volumes) {
            Ok(Answer::Volumes(volumes)) => volumes,
            other => panic!("{other:?}"),
        };
        match self.demand(Wish::Snapshots) {
            Ok(Answer::Snapshots(snapshots)) => (volumes, snapshots),
            other => panic!("{other:?}"),
        }
    }

    /// Nothing is under way any more; with `look`, all that is there is looked at, and then what is on the disks.
    fn stop(&mut self, look: bool) {
        self.settle();
        if !look {
            return;
        }
        self.read_all();
        // A pool that could not write its records knows more than stands on the disks.
        if !self.able.control || self.errors_at_open != self.errors() {
            return;
        }
        self.read_snapshots();
        // What is on the disks is what the cores know only when all of it is durable.
        for device in self.devices() {
            self.submit(device, Op::Flush, 0, 0, Fill::Stamp);
        }
        self.settle();
        // Nor do records that nobody waits for, in a while.
        self.pass(Duration::from_secs(1));
        self.settle();
        let (volumes, snapshots) = self.lists();
        self.oracle.check_lists(&volumes, &snapshots);
        let pool = match self.demand(Wish::Pool) {
            Ok(Answer::Pool(pool)) => *pool,
            other => panic!("{other:?}"),
        };
        self.settle();
        self.dump();
        self.trace.line(|| "stopped to be walked".to_owned());
        let unanswered = self.oracle.crashed();
        self.power_off();
        let report =
            self.subject.walk(&self.disks).unwrap_or_else(|reason| panic!("can't be walked: {reason}"));
        assert!(report.problems.is_empty(), "the walk finds {:#?}", report.problems);
        if self.errors_at_open == self.errors() {
            self.check_report(&report, &pool, &volumes, &snapshots);
        }
        self.oracle.stats.count("walk");
        self.count(&pool);
        self.open();
        let (volumes, snapshots) = self.lists();
        self.oracle.found(unanswered, &volumes, &snapshots);
        self.attach_all();
    }

    /// What the pool said of itself against what is on the disks, and against what was written.
    fn check_report(
        &mut self,
        report: &Report,
        pool: &PoolInfo,
        volumes: &[VolumeInfo],
        snapshots: &[SnapshotInfo],
    ) {
        assert!(report.problems.is_empty(), "the walk finds {:#?}", report.problems);
        assert_eq!(
            report.free_bytes, pool.free_bytes,
            "free space: by walking, and as the pool says: {pool:?}"
        );
        assert_eq!(pool.pending_bytes, 0, "nothing is under way: {pool:?}");
        let walked: BTreeMap<&str, u64> =
            report.mapped_bytes.iter().map(|(name, bytes)| (name.as_str(), *bytes)).collect();
        let said = volumes.iter().map(|info| (info.name.clone(), info.mapped_bytes));
        let shots =
            snapshots.iter().map(|info| (format!("{}@{}", info.volume, info.name), info.mapped_bytes));
        for (name, bytes) in said.chain(shots) {
            assert_eq!(
                walked.get(name.as_str()),
                Some(&bytes),
                "mapped bytes of {name}: by walking, as it says"
            );
        }
        for &number in self.oracle.states.keys() {
            let (least, most) = self.oracle.mapped_blocks(number);
            let name = self.oracle.name(number);
            let mapped = walked.get(name.as_str()).map_or(0, |bytes| bytes / 4096);
            assert!(
                (least..=most).contains(&mapped),
                "{name} has {mapped} blocks mapped, but by what was written {least} to {most}"
            );
        }
    }

    fn count(&mut self, pool: &PoolInfo) {
        let counts = &pool.counts;
        let stats = &mut self.oracle.stats;
        for (name, count) in [
            ("pool: writes in place", counts.writes_in_place),
            ("pool: writes redirected", counts.writes_redirected),
            ("pool: writes merged", counts.writes_merged),
            ("pool: commits", counts.commits),
            ("pool: records", counts.records),
            ("pool: checkpoints", counts.checkpoints),
            ("pool: zero blocks detected", counts.zero_blocks_detected),
            ("pool: KiB copied by sharing", counts.copy_shared_bytes >> 10),
            ("pool: KiB copied misaligned", counts.copy_misaligned_bytes >> 10),
            ("pool: bytes copied at edges", counts.copy_edge_bytes),
            ("pool: KiB copied for want of space", counts.copy_refused_bytes >> 10),
            ("pool: folds", counts.folds),
            ("pool: messages about chunks", counts.chunk_messages),
            ("pool: blocks left by unmap", counts.unmap_left_blocks),
        ] {
            stats.add(name, count);
        }
    }

    /// Every volume becomes a device.
    fn attach_all(&mut self) {
        let apart = |(&number, state): (&u32, &crate::sim::oracle::State)| {
            matches!(state.kind, Kind::Volume { attached: None, .. }).then_some(number)
        };
        let numbers: Vec<u32> = self.oracle.states.iter().filter_map(apart).collect();
        for number in numbers {
            // Where disks fail the pool may take no more changes; what else may stand against it the oracle has checked.
            let _ = self.demand(Wish::Attach(number));
        }
    }

    /// Reads all that was ever written, and some of what was not.
    fn read_all(&mut self) {
        for device in self.devices() {
            self.read_device(device);
        }
    }

    fn read_device(&mut self, device: crate::sim::actions::Device) {
        let units = (device.geometry.bytes() / UNIT_BYTES as u64) as usize;
        let thorough = self.chance.one_in(8);
        for first in (0..units).step_by(PIECE_UNITS) {
            let length = PIECE_UNITS.min(units - first);
            if !thorough && self.oracle.is_untouched(device.state, first, length) && !self.chance.one_in(8) {
                continue;
            }
            self.submit(device, Op::Read, first, length, Fill::Stamp);
            while self.oracle.open.len() >= 16 {
                self.round();
            }
        }
        for _ in 0..20_000 {
            if self.oracle.open.is_empty() {
                return;
            }
            self.round();
        }
        panic!("reads don't end: {:?}", self.oracle.open);
    }

    /// Reads each snapshot, through a clone of it.
    fn read_snapshots(&mut self) {
        let is_snapshot = |(&number, state): (&u32, &crate::sim::oracle::State)| {
            matches!(state.kind, Kind::Snapshot { .. }).then_some(number)
        };
        let snapshots: Vec<u32> = self.oracle.states.iter().filter_map(is_snapshot).collect();
        for snapshot in snapshots {
            let (of, spec) = self.clone_spec(snapshot);
            let before = self.oracle.states.len();
            let answer = self.demand(Wish::Clone { snapshot, of, spec });
            if answer.is_err() {
                continue;
            }
            assert_eq!(self.oracle.states.len(), before + 1);
            let clone = *self.oracle.states.keys().next_back().expect("it was made just now");
            let _ = self.demand(Wish::Attach(clone));
            if let Some(device) = self.devices().into_iter().find(|device| device.state == clone) {
                self.read_device(device);
            }
            let _ = self.demand(Wish::Delete(clone));
            self.oracle.stats.count("snapshot read");
        }
    }

    fn spec(&mut self) -> VolumeSpec {
        let name = format!("v{}", self.fresh_name());
        let block_bytes = self.chance.of(&[512, 512, 4096]);
        let bytes = match self.chance.below(4) {
            0 => self.chance.between(1, 64) << 14,
            1 => 4 << 20,
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

    fn clone_spec(&mut self, snapshot: u32) -> (u32, VolumeSpec) {
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

    fn create(&mut self) {
        let spec = self.spec();
        let _ = self.demand(Wish::Create(spec));
    }

    /// Somebody asks something of the pool.
    pub(crate) fn control(&mut self) {
        if self.oracle.pending.len() >= PENDING_MAX {
            return;
        }
        let free = |state: &crate::sim::oracle::State| !state.busy && !state.dying;
        let is_volume = |state: &crate::sim::oracle::State| matches!(state.kind, Kind::Volume { .. });
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
                let own = |state: &crate::sim::oracle::State| matches!(state.kind, Kind::Snapshot { of } if of == volume);
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
            (21, _) => Wish::Pool,
            (22, _) => self.mistake(volume),
            _ => return,
        };
        self.wish(wish);
    }

    /// Something that nobody should ask.
    fn mistake(&mut self, volume: u32) -> Wish {
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

    /// Whether a core finds something wrong with itself.
    pub fn check_sides(&mut self) {
        for core in 0..self.cores() {
            self.side(core).check().unwrap_or_else(|what| panic!("{what}"));
        }
    }
}
