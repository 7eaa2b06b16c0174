//! A world's history from its first volume to its last check, with the crashes between.

use crate::sim::control::Wish;
use crate::sim::disk::Faults;
use crate::sim::stats::Stats;
use crate::sim::subject::Subject;
use crate::sim::world::World;
use bdev::pool::control::{Answer, SnapshotInfo, VolumeInfo};

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
            // Now and then just when a checkpoint begins to count: what it has overtaken is lost.
            let is_cut_short = (0..steps).any(|_| {
                self.step();
                std::mem::take(&mut self.header_written) && (self.vigil || self.chance.one_in(6))
            });
            match self.chance.below(6) {
                _ if is_cut_short => {}
                0 => self.stop(true),
                1 => self.stop(false),
                _ => {}
            }
            self.crash(&free);
        }
        for disk in &self.disks {
            disk.set_faults(Faults::default());
        }
        self.nature.faults = Faults::default();
        self.attach_all();
        self.stop(true);
        for _ in 0..200 {
            self.step();
        }
        self.crash(&free);
        self.attach_all();
        if self.able.disk_bytes.is_empty() && !self.oracle.tolerance.maps && self.chance.one_in(4) {
            self.squeeze();
        }
        self.stop(true);
        if self.able.disk_bytes.is_empty() && self.chance.one_in(3) {
            self.damage();
        }
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
            stats.add("writes lost by failed syncs", counts.lost_writes);
            stats.add("sectors lost by crashes", counts.lost_sectors);
            stats.add("writes torn by crashes", counts.torn_writes);
        }
        self.oracle.stats.fingerprint = self.chance.word();
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

    pub(crate) fn lists(&mut self) -> (Vec<VolumeInfo>, Vec<SnapshotInfo>) {
        let volumes = match self.demand(Wish::Volumes) {
            Ok(Answer::Volumes(volumes)) => volumes,
            other => panic!("{other:?}"),
        };
        match self.demand(Wish::Snapshots) {
            Ok(Answer::Snapshots(snapshots)) => (volumes, snapshots),
            other => panic!("{other:?}"),
        }
    }
}
