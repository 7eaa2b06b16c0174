//! What is looked at when a world stands still: every volume and snapshot, what the pool says of itself, and what stands
//! on its disks.

use crate::sim::actions::Device;
use crate::sim::content::{Fill, UNIT_BYTES};
use crate::sim::control::Wish;
use crate::sim::oracle::{Kind, State};
use crate::sim::subject::{Report, Subject};
use crate::sim::world::World;
use bdev::io::{Op, PIECE_BYTES};
use bdev::pool::control::{Answer, PoolInfo, Provisioning, SnapshotInfo, VolumeInfo, VolumeSpec};
use bdev::pool::space::heartbeat_chunks;
use std::collections::BTreeMap;
use std::time::Duration;

/// Seconds in which a pool comes to rest: one fold each.
const QUIET_SECONDS_MAX: usize = 2000;
const PIECE_UNITS: usize = PIECE_BYTES as usize / UNIT_BYTES;

impl<S: Subject> World<'_, S> {
    /// Nothing is under way any more; with `look`, all that is there is looked at, and then what is on the disks.
    pub(crate) fn stop(&mut self, look: bool) {
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
        // Nor do records that nobody waits for, in a while; and what is better folded is, meanwhile.
        let mut folds = u64::MAX;
        let (volumes, snapshots, pool) = (0..QUIET_SECONDS_MAX)
            .find_map(|_| {
                self.pass(Duration::from_secs(1));
                self.settle();
                let walked = self.demand(Wish::UsageWalk);
                assert!(walked.is_ok(), "{walked:?}");
                self.settle();
                let (volumes, snapshots) = self.lists();
                let pool = match self.demand(Wish::Pool) {
                    Ok(Answer::Pool(pool)) => *pool,
                    other => panic!("{other:?}"),
                };
                self.settle();
                let quiet = folds == pool.counts.folds && pool.pending_bytes == 0;
                folds = pool.counts.folds;
                // One that a disk has failed while it was looked at may keep what no record gives up any more.
                let failed = self.errors_at_open != self.errors();
                (quiet || failed).then_some((volumes, snapshots, pool))
            })
            .expect("a pool that nobody asks for anything comes to rest");
        self.oracle.check_lists(&volumes, &snapshots);
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
    pub(crate) fn check_report(
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
        if self.able.disk_bytes.is_empty() {
            let kept =
                heartbeat_chunks((pool.data_bytes / pool.chunk_bytes) as u32) as u64 * pool.chunk_bytes;
            let most = pool.free_bytes.saturating_sub(pool.reserved_bytes).min(kept);
            assert_eq!(
                pool.heartbeat_reserve_bytes, most,
                "heartbeats have theirs before all others: {pool:?}"
            );
        }
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
        let usage: BTreeMap<&str, (u64, u64)> =
            report.usage.iter().map(|(name, usage)| (name.as_str(), *usage)).collect();
        let said = volumes.iter().map(|info| (info.name.clone(), info.usage));
        let shots = snapshots.iter().map(|info| (format!("{}@{}", info.volume, info.name), info.usage));
        for (name, said) in said.chain(shots) {
            let Some(&(unique, shared)) = usage.get(name.as_str()) else { continue };
            let Some(said) = said else { panic!("nobody has counted what is whose of {name}") };
            assert!(said.exact, "nothing is under way, but of {name} it is said: {said:?}");
            let shared = said.shared_bytes.map(|_| shared);
            assert_eq!(
                (said.unique_bytes, said.shared_bytes),
                (unique, shared),
                "unique and shared bytes of {name}: as it says, by walking"
            );
            self.oracle.stats.count("usage compared");
            self.oracle.stats.add("usage: unique and shared", u64::from(unique > 0 && shared > Some(0)));
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

    pub(crate) fn count(&mut self, pool: &PoolInfo) {
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
            ("pool: KiB copied for full counts", counts.copy_count_full_bytes >> 10),
            ("pool: KiB copied for want of space", counts.copy_refused_bytes >> 10),
            ("pool: folds", counts.folds),
            ("pool: messages about chunks", counts.chunk_messages),
            ("pool: blocks left by unmap", counts.unmap_left_blocks),
            ("pool: KiB punched", counts.punched_bytes >> 10),
        ] {
            stats.add(name, count);
        }
    }

    /// Every volume becomes a device.
    pub(crate) fn attach_all(&mut self) {
        let apart = |(&number, state): (&u32, &State)| {
            matches!(state.kind, Kind::Volume { attached: None, .. }).then_some(number)
        };
        let numbers: Vec<u32> = self.oracle.states.iter().filter_map(apart).collect();
        for number in numbers {
            // Where disks fail the pool may take no more changes; what else may stand against it the oracle has checked.
            let _ = self.demand(Wish::Attach(number));
        }
    }

    /// Reads all that was ever written, and some of what was not.
    pub(crate) fn read_all(&mut self) {
        for device in self.devices() {
            self.read_device(device);
        }
    }

    pub(crate) fn read_device(&mut self, device: Device) {
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
    pub(crate) fn read_snapshots(&mut self) {
        let is_snapshot =
            |(&number, state): (&u32, &State)| matches!(state.kind, Kind::Snapshot { .. }).then_some(number);
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

    fn wait(&mut self) {
        for _ in 0..40_000 {
            if self.oracle.open.is_empty() {
                return;
            }
            self.round();
        }
        panic!("no end: {:?}", self.oracle.open);
    }

    /// Fills the pool and gives half of that back: as much can be written at once, whoever owns it, though the pool is
    /// still giving it up.
    pub(crate) fn squeeze(&mut self) {
        let blocks = self.chance.of(&[512, 4096]);
        let spec = VolumeSpec {
            bytes: 24 << 20,
            block_bytes: blocks,
            provisioning: Provisioning::Thin,
            zero_detect: false,
            write_cache: false,
            ..self.spec()
        };
        if self.demand(Wish::Create(spec)).is_err() {
            return;
        }
        let number = *self.oracle.states.keys().next_back().expect("it was made just now");
        let _ = self.demand(Wish::Attach(number));
        if let Some(device) = self.devices().into_iter().find(|device| device.state == number) {
            let full = |world: &Self| world.oracle.stats.get("out of space");
            let before = full(self);
            let pieces = (24 << 20) / PIECE_BYTES as usize;
            let mut filled = 0;
            while filled < pieces && full(self) == before {
                for piece in filled..(filled + 8).min(pieces) {
                    self.submit(device, Op::Write, piece * PIECE_UNITS, PIECE_UNITS, Fill::Stamp);
                }
                filled += 8;
                self.wait();
            }
            if full(self) != before && filled >= 16 {
                let half = (filled - 8) / 2;
                self.submit(device, Op::Unmap, 0, half * PIECE_UNITS, Fill::Stamp);
                let unmap = *self.oracle.open.keys().next_back().expect("it was asked just now");
                // Whoever reads holds up what is given back.
                for piece in half..half + 4 {
                    self.submit(device, Op::Read, piece * PIECE_UNITS, PIECE_UNITS, Fill::Stamp);
                }
                for _ in 0..100_000 {
                    if self.oracle.open.contains_key(&unmap) {
                        self.event();
                    }
                }
                let before = full(self);
                for piece in 0..half {
                    self.submit(device, Op::Write, piece * PIECE_UNITS, PIECE_UNITS, Fill::Stamp);
                    self.event();
                }
                self.wait();
                assert_eq!(full(self), before, "{half} chunks were given back, and then the pool was full");
                self.oracle.stats.count("squeeze");
                self.beat(device, filled);
            }
        }
        let of_it = |(&shot, state): (&u32, &State)| {
            matches!(state.kind, Kind::Snapshot { of } if of == number).then_some(shot)
        };
        let shots: Vec<u32> = self.oracle.states.iter().filter_map(of_it).collect();
        for shot in shots {
            let _ = self.demand(Wish::SnapshotDelete(shot));
        }
        let _ = self.demand(Wish::Delete(number));
        self.settle();
    }

    /// Locks are taken on a pool that is full, after a snapshot: each takes a chunk at most, so as many as are kept for that
    /// find one. Small writes to the same blocks after another snapshot do, too.
    fn beat(&mut self, device: Device, filled: usize) {
        let full = |world: &Self| world.oracle.stats.get("out of space");
        let pieces = device.geometry.bytes() as usize / PIECE_BYTES as usize;
        let before = full(self);
        for piece in (0..pieces).rev() {
            if full(self) == before {
                self.submit(device, Op::Write, piece * PIECE_UNITS, PIECE_UNITS, Fill::Stamp);
                self.wait();
            }
        }
        let pool = match self.demand(Wish::Pool) {
            Ok(Answer::Pool(pool)) => *pool,
            other => panic!("{other:?}"),
        };
        let kept = heartbeat_chunks((pool.data_bytes / pool.chunk_bytes) as u32);
        let left = (pool.heartbeat_reserve_bytes / pool.chunk_bytes) as i64;
        assert_eq!(left, kept, "whoever filled the pool has left the heartbeats' own: {pool:?}");
        if full(self) == before || kept < 2 {
            return;
        }
        let mut locks: Vec<usize> = (0..(kept as usize / 2).min(filled)).collect();
        let units = device.geometry.block_bytes as usize / UNIT_BYTES;
        for op in [Op::CompareAndWrite, Op::Write] {
            let name = format!("s{}", self.fresh_name());
            if self.demand(Wish::Snapshot { state: device.state, name }).is_err() {
                return;
            }
            let before = full(self);
            for &lock in &locks {
                self.submit(device, op, lock * PIECE_UNITS, units, Fill::Stamp);
                self.event();
                if self.oracle.open.len() >= 8 {
                    self.wait();
                }
            }
            self.wait();
            assert_eq!(full(self), before, "{op:?} has not found one of {kept} chunks that are kept for it");
            self.oracle.stats.add("locks on a full pool", locks.len() as u64);
            // Where there was something else than it was to be nothing was taken.
            locks.retain(|&lock| {
                let done = self.oracle.stats.get("compare and write done");
                self.submit(device, Op::CompareAndWrite, lock * PIECE_UNITS, units, Fill::Stamp);
                self.wait();
                self.oracle.stats.get("compare and write done") > done
            });
        }
    }

    /// Damages what maps there are while nobody has the pool open. Whatever is served afterwards is right; the rest is
    /// reported.
    pub(crate) fn damage(&mut self) {
        let written = self.disks[0].written(self.maps.clone());
        if written.is_empty() {
            return;
        }
        let unanswered = self.oracle.crashed();
        self.power_off();
        // Most of what is there is out of date, so that a few pages seldom mean something.
        for _ in 0..self.chance.of(&[1, 3, 10, 40]) {
            let (at, other) =
                (written[self.chance.index(written.len())], written[self.chance.index(written.len())]);
            self.trace.line(|| format!("damaged: {at:#x}"));
            self.disks[0].damage(at, other);
        }
        self.oracle.tolerance.damage = true;
        self.oracle.stats.count("damage");
        let report = self.subject.walk(&self.disks);
        self.trace.line(|| format!("  {report:?}"));
        let reported = report.as_ref().map_or(true, |report| !report.problems.is_empty());
        if let Err(reason) = self.open_as_it_is() {
            assert!(reported, "the walk finds nothing, but it can't be opened: {reason}");
            self.oracle.stats.count("damage refused");
            return;
        }
        let (volumes, snapshots) = self.lists();
        self.oracle.found(unanswered, &volumes, &snapshots);
        let aside = volumes.iter().filter(|info| info.damage.is_some()).count();
        assert!(reported || aside == 0, "the walk finds nothing, but volumes are set aside: {volumes:?}");
        self.oracle.stats.add("volumes set aside", aside as u64);
        self.attach_all();
        self.read_all();
        self.read_snapshots();
    }
}
