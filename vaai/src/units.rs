//! Units that come, go and change while nexuses are open: what each [`UnitChange`] does to a replica, and what the
//! nexuses of this core are to be told of it.
//!
//! Invariant: after each change the units obey [`crate::server::ServerConfig::check`], and every nexus has attentions
//! for each of them, in their order.

use crate::change::UnitChange;
use crate::limits::LUNS_MAX;
use crate::lun::{LogicalUnit, LunConfig, UnitAttention, UnitAttentions};
use crate::server::{ConfigError, DeviceServer, check_unit, has_showable_geometry};
use bdev::geometry::Geometry;

impl DeviceServer {
    /// Makes a change of the units, on every core in one order with [`DeviceServer::apply`]'s. `Some`: the transport
    /// aborts all tasks that this number names, whoever's, and the change is made when none of them has a request out.
    ///
    /// # Errors
    /// Which rule would be broken; nothing has changed. The same on every core.
    pub fn apply_to_units(&mut self, change: &UnitChange) -> Result<Option<u16>, ConfigError> {
        match *change {
            UnitChange::Add(ref config) => {
                self.add_unit(config)?;
                Ok(None)
            }
            UnitChange::Remove { lun } => {
                let index = self.unit_to_change(lun)?;
                self.units.remove(index);
                self.tokens.revoke(lun);
                for nexus in self.nexuses.values_mut() {
                    nexus.attentions.remove(index);
                }
                self.post_luns_changed();
                Ok(Some(lun))
            }
            UnitChange::Resize { lun, blocks } => self.resize_unit(lun, blocks),
            UnitChange::Space { ref luns, space } => {
                for &lun in luns {
                    let Some(index) = self.unit_index(lun) else { continue };
                    let unit = &mut self.units[index];
                    let can_be_short =
                        unit.has_thresholds() && !unit.config.read_only && !unit.geometry().read_only;
                    if can_be_short && unit.set_space(space) {
                        self.post(index, UnitAttention::SoftThresholdReached, None);
                    }
                }
                Ok(None)
            }
            UnitChange::ContentsChanged { lun } => {
                let index = self.unit_to_change(lun)?;
                self.post(index, UnitAttention::MediumMayHaveChanged, None);
                Ok(None)
            }
        }
    }

    fn add_unit(&mut self, config: &LunConfig) -> Result<(), ConfigError> {
        let lun = config.lun;
        if self.units.len() >= LUNS_MAX {
            return Err(ConfigError::TooManyLuns);
        }
        check_unit(config)?;
        let Err(index) = self.units.binary_search_by_key(&lun, |unit| unit.config.lun) else {
            return Err(ConfigError::LunTwice { lun });
        };
        let unit = LogicalUnit::new(config.clone());
        if self.units.iter().any(|other| other.naa == unit.naa) {
            return Err(ConfigError::IdTwice { lun });
        }
        // To the others: the new unit has only been switched on, as each is for a new nexus (SAM-5 §5.14).
        self.post_luns_changed();
        self.units.insert(index, unit);
        let mut attentions = UnitAttentions::default();
        attentions.post(UnitAttention::PowerOn);
        for nexus in self.nexuses.values_mut() {
            nexus.attentions.insert(index, attentions);
        }
        Ok(())
    }

    fn resize_unit(&mut self, lun: u16, blocks: u64) -> Result<Option<u16>, ConfigError> {
        let index = self.unit_to_change(lun)?;
        let before = *self.units[index].geometry();
        if !has_showable_geometry(&Geometry { blocks, ..before }) {
            return Err(ConfigError::Geometry { lun });
        }
        if self.units[index].resize(blocks) {
            self.post(index, UnitAttention::CapacityDataHasChanged, None);
        }
        Ok((blocks < before.blocks).then_some(lun))
    }

    fn unit_to_change(&self, lun: u16) -> Result<usize, ConfigError> {
        self.unit_index(lun).ok_or(ConfigError::NoSuchLun { lun })
    }

    /// The logical unit inventory has changed: every unit tells every nexus (SPC-4 §6.33).
    fn post_luns_changed(&mut self) {
        for nexus in self.nexuses.values_mut() {
            for attentions in &mut nexus.attentions {
                attentions.post(UnitAttention::ReportedLunsDataHasChanged);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::{Change, PoolSpace};
    use crate::command::{Buffers, Command, Effect, NexusId, TaskAttribute};
    use crate::harness::{
        NEXUS, OTHER, World, cdb10, cdb16, geometry, info, lun_config, pattern, server_config,
    };
    use crate::limits::LUN_MAX;
    use crate::lun::lun_field;
    use crate::sense::{Sense, Status};
    use bdev::io::BdevId;
    use proptest::prelude::*;
    use reactor::Core;
    use std::collections::{BTreeMap, BTreeSet};

    const READY: [u8; 6] = [0; 6];
    const REPORT_LUNS: [u8; 12] = [0xA0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0];
    const READ_CAPACITY: [u8; 10] = [0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0];

    fn world(luns: &[u16]) -> World {
        World::of(luns.iter().map(|&lun| lun_config(lun, geometry())).collect())
    }

    fn add(lun: u16) -> UnitChange {
        UnitChange::Add(Box::new(lun_config(lun, geometry())))
    }

    fn listed(world: &mut World, nexus: NexusId) -> Vec<u16> {
        let data = world.run_as(nexus, 0, &REPORT_LUNS, 256, &[]).good().data;
        data[8..].chunks(8).map(|field| u16::from_be_bytes([field[0], field[1]])).collect()
    }

    /// Goal: a unit that came says so itself with power on, and the others once for each nexus; then it works. Method:
    /// one nexus hears it in a command of some unit, the other from REPORT LUNS.
    #[test]
    fn an_added_unit_is_heard_of_once() {
        let mut world = world(&[0, 1, 9]);
        assert_eq!(world.server.apply_to_units(&add(5)), Ok(None));
        world.run_as(NEXUS, 9, &READY, 0, &[]).bad(0x6_3F0E);
        for lun in [0, 1, 9] {
            world.run_as(NEXUS, lun, &READY, 0, &[]).good();
        }
        world.run_as(NEXUS, 5, &READY, 0, &[]).bad(0x6_2900);
        world.run_as(NEXUS, 5, &cdb10(0x28, 0, 0, 1), 512, &[]).good();
        assert_eq!(listed(&mut world, OTHER), [0, 1, 5, 9]);
        assert_eq!(world.hear(OTHER), [0x2900], "REPORT LUNS takes its own attention and no other");
    }

    /// Goal: attentions stay with their units, whichever come and go before them.
    #[test]
    fn attentions_stay_with_their_units() {
        let mut world = world(&[1, 3]);
        world.server.apply(&Change::LunReset { lun: 3, by: NEXUS }).unwrap();
        world.server.apply_to_units(&add(2)).unwrap();
        world.server.apply_to_units(&UnitChange::Remove { lun: 1 }).unwrap();
        world.server.apply_to_units(&add(0)).unwrap();
        listed(&mut world, NEXUS);
        assert_eq!(world.hear(NEXUS), [0x2900, 0x2900, 0x2903]);
        world.server.open_nexus(NEXUS, info(1, false));
        assert_eq!(world.hear(NEXUS), [0x2900; 3]);
    }

    /// Goal: a refused REPORT LUNS clears nothing; one that has no room for a byte does.
    #[test]
    fn report_luns_clears_when_it_reports() {
        let mut world = world(&[0, 1]);
        world.server.apply_to_units(&UnitChange::Remove { lun: 1 }).unwrap();
        world.get(&[0xA0, 0, 3, 0, 0, 0, 0, 0, 1, 0, 0, 0], 256).bad(0x5_2400);
        world.get(&READY, 0).bad(0x6_3F0E);
        world.run_as(OTHER, 0, &REPORT_LUNS, 0, &[]).good();
        assert_eq!(world.hear(OTHER), []);
    }

    /// Goal: a removed unit is no unit any more, the others tell of it, and its number is free for another.
    #[test]
    fn a_removed_unit_is_gone() {
        let mut world = world(&[0, 1]);
        assert_eq!(world.server.apply_to_units(&UnitChange::Remove { lun: 1 }), Ok(Some(1)));
        for cdb in [READY.to_vec(), cdb10(0x28, 0, 0, 1), READ_CAPACITY.to_vec()] {
            world.run_as(NEXUS, 1, &cdb, 512, &[]).bad(0x5_2500);
        }
        assert_eq!(world.run_as(NEXUS, 1, &[0x12, 0, 0, 0, 36, 0], 36, &[]).good().data[0], 0x7F);
        let lost = world.server.apply(&Change::LunReset { lun: 1, by: NEXUS });
        assert_eq!(lost, Err(Sense::LOGICAL_UNIT_NOT_SUPPORTED));
        assert_eq!((world.hear(NEXUS), world.hear(OTHER)), (vec![0x3F0E], vec![0x3F0E]));
        let mut other = lun_config(1, geometry());
        (other.id, other.bdev) = ([0xEE; 16], BdevId(77));
        world.server.apply_to_units(&UnitChange::Add(Box::new(other))).unwrap();
        assert_eq!(world.hear(OTHER), [0x3F0E, 0x2900]);
        let page = world.run_as(OTHER, 1, &[0x12, 1, 0x83, 0, 255, 0], 255, &[]).good().data;
        assert_eq!(page[8..24], crate::identity::naa(&[0xEE; 16]));
    }

    /// Goal: all units can go, LUN 0 too, and come again: INQUIRY and REPORT LUNS are answered all the time.
    #[test]
    fn there_may_be_no_unit() {
        let mut world = world(&[0]);
        world.server.apply_to_units(&UnitChange::Remove { lun: 0 }).unwrap();
        assert_eq!(listed(&mut world, NEXUS), [0; 0]);
        assert_eq!(world.get(&[0x12, 0, 0, 0, 36, 0], 36).good().data[0], 0x7F);
        world.get(&READY, 0).bad(0x5_2500);
        world.server.apply_to_units(&add(0)).unwrap();
        assert_eq!(world.hear(NEXUS), [0x2900]);
        world.get(&READY, 0).good();
    }

    /// Goal: another capacity is shown, holds, and is told to every nexus; the same one is no change.
    #[test]
    fn a_resized_unit_ends_elsewhere() {
        let mut world = world(&[0, 1]);
        let last = |world: &mut World| {
            let data = world.get(&READ_CAPACITY, 8).good().data;
            u32::from_be_bytes([data[0], data[1], data[2], data[3]])
        };
        world.get(&cdb10(0x28, 0, 5000, 1), 512).bad(0x5_2100);
        world.disk.resize(6000 * 512, 7);
        let resize = |blocks| UnitChange::Resize { lun: 0, blocks };
        assert_eq!(world.server.apply_to_units(&resize(6000)), Ok(None), "its tasks go on");
        world.get(&cdb10(0x28, 0, 5000, 1), 512).bad(0x6_2A09);
        assert_eq!((world.hear(NEXUS), world.hear(OTHER)), (vec![], vec![0x2A09]));
        assert_eq!(last(&mut world), 5999);
        let data = pattern(1000 * 512, 1);
        world.put(&cdb10(0x2A, 0, 5000, 1000), &data).good();
        assert_eq!(world.get(&cdb10(0x28, 0, 5000, 1000), 1000 * 512).good().data, data);
        world.get(&cdb10(0x28, 0, 5999, 2), 1024).bad(0x5_2100);
        assert_eq!(world.server.apply_to_units(&resize(6000)), Ok(None));
        assert_eq!(world.hear(OTHER), []);
        assert_eq!(world.server.apply_to_units(&resize(100)), Ok(Some(0)), "its tasks end");
        assert_eq!(world.hear(NEXUS), [0x2A09]);
        assert_eq!(last(&mut world), 99);
        world.get(&cdb10(0x28, 0, 99, 2), 1024).bad(0x5_2100);
    }

    /// Goal: changed contents are told by their unit to every nexus.
    #[test]
    fn changed_contents_are_told() {
        let mut world = world(&[0, 1]);
        assert_eq!(world.server.apply_to_units(&UnitChange::ContentsChanged { lun: 1 }), Ok(None));
        world.get(&READY, 0).good();
        world.run_as(NEXUS, 1, &cdb10(0x28, 0, 0, 1), 512, &[]).bad(0x6_2800);
        assert_eq!((world.hear(NEXUS), world.hear(OTHER)), (vec![], vec![0x2800]));
    }

    /// Goal: a soft threshold is told once to each nexus of each thin unit that can be written, and again only after space
    /// has really come back; modes, logs and VPD show it. Method: a pool that fills, empties a little, then enough.
    #[test]
    fn a_soft_threshold_is_told_once() {
        let pooled = Geometry { pooled: true, ..geometry() };
        let thin = |lun| lun_config(lun, pooled);
        let mut luns = vec![thin(0), thin(1), thin(2), lun_config(3, geometry()), thin(4)];
        luns[2].read_only = true;
        luns[4].geometry.unmap_granularity_bytes = 0;
        let mut world = World::of(luns);
        let say = |world: &mut World, used: u64| {
            let space = PoolSpace {
                used_bytes: used << 30,
                available_bytes: (100 - used) << 30,
                threshold_percent: 80,
            };
            let change = UnitChange::Space { luns: vec![0, 1, 2, 3, 4, 99], space };
            assert_eq!(world.server.apply_to_units(&change), Ok(None));
        };
        let heard = |world: &mut World| (world.hear(NEXUS), world.hear(OTHER));
        for (used, is_told) in [
            (10, 0),
            (79, 0),
            (80, 2),
            (81, 0),
            (100, 0),
            (79, 0),
            (80, 0),
            (78, 0),
            (80, 0),
            (77, 0),
            (80, 2),
            (95, 0),
        ] {
            say(&mut world, used);
            assert_eq!(heard(&mut world), (vec![0x3807; is_told], vec![0x3807; is_told]), "{used}");
        }
        say(&mut world, 10);
        say(&mut world, 90);
        world.get(&READY, 0).bad(0x6_3807);
        world.get(&READY, 0).good();
        // 1 MiB sets: 10 and 90 GiB, of 100 the fifth as a threshold.
        let page = world.get(&[0x4D, 0, 0x4C, 0, 0, 0, 0, 0, 255, 0], 255).good().data;
        let counts = [0, 1, 3, 8, 0, 0, 0x28, 0, 2, 0, 0, 0, 0, 2, 3, 8, 0, 1, 0x68, 0, 2, 0, 0, 0];
        assert_eq!(page, [&[0x0C, 0, 0, 24][..], &counts].concat());
        let second = world.get(&[0x4D, 0, 0x4C, 0, 0, 0, 2, 0, 255, 0], 255).good().data;
        assert_eq!(second[4..], counts[12..]);
        world.get(&[0x4D, 0, 0x4C, 0, 0, 0, 3, 0, 255, 0], 255).bad_field(5, None);
        assert_eq!(world.get(&[0x4D, 0, 0x40, 0, 0, 0, 0, 0, 255, 0], 255).good().data[4..], [0, 0x0C, 0x2F]);
        let mode = world.get(&[0x1A, 0x08, 0x1C, 2, 255, 0], 255).good().data;
        let mut wanted = vec![0x5C, 2, 0, 0x14];
        wanted.extend([0; 12]);
        wanted.extend([0x80, 1, 0, 0, 0, 0, 0x50, 0]);
        assert_eq!(mode[4..], wanted);
        let changeable = world.get(&[0x1A, 0x08, 0x5C, 2, 255, 0], 255).good().data;
        assert!(changeable[8..].iter().all(|&byte| byte == 0));
        assert_eq!(world.get(&[0x12, 1, 0xB2, 0, 255, 0], 255).good().data[4..], [11, 0xE4, 2, 0]);
        for lun in [3, 4] {
            world.run_as(NEXUS, lun, &[0x4D, 0, 0x4C, 0, 0, 0, 0, 0, 255, 0], 255, &[]).bad_field(2, Some(5));
            world.run_as(NEXUS, lun, &[0x1A, 0x08, 0x1C, 2, 255, 0], 255, &[]).bad_field(3, None);
            assert_eq!(world.run_as(NEXUS, lun, &[0x12, 1, 0xB2, 0, 255, 0], 255, &[]).good().data[4], 0);
        }
    }

    /// Goal: what would break a rule is refused, changes nothing and is told to nobody.
    #[test]
    fn rules_are_kept() {
        let mut world = world(&[0, 1]);
        let with = |make: fn(&mut LunConfig)| {
            let mut config = lun_config(2, geometry());
            make(&mut config);
            UnitChange::Add(Box::new(config))
        };
        let resize = |blocks| UnitChange::Resize { lun: 1, blocks };
        for (change, error) in [
            (add(1), ConfigError::LunTwice { lun: 1 }),
            (with(|unit| unit.id = lun_config(0, geometry()).id), ConfigError::IdTwice { lun: 2 }),
            (with(|unit| unit.lun = LUN_MAX + 1), ConfigError::LunTooLarge { lun: LUN_MAX + 1 }),
            (with(|unit| unit.serial = "\n".to_owned()), ConfigError::Serial { lun: 2 }),
            (with(|unit| unit.geometry.block_bytes = 520), ConfigError::Geometry { lun: 2 }),
            (UnitChange::Remove { lun: 2 }, ConfigError::NoSuchLun { lun: 2 }),
            (UnitChange::Resize { lun: 2, blocks: 1 }, ConfigError::NoSuchLun { lun: 2 }),
            (UnitChange::ContentsChanged { lun: 2 }, ConfigError::NoSuchLun { lun: 2 }),
            (resize(0), ConfigError::Geometry { lun: 1 }),
            (resize(u64::MAX), ConfigError::Geometry { lun: 1 }),
        ] {
            assert_eq!(world.server.apply_to_units(&change), Err(error), "{change:?}");
        }
        assert_eq!(world.server.luns(), [0, 1]);
        assert_eq!(world.hear(NEXUS), []);
        let luns = (0..LUNS_MAX as u16).map(|lun| lun_config(lun, geometry())).collect();
        let mut full = DeviceServer::new(Core(0), server_config(luns));
        assert_eq!(full.apply_to_units(&add(LUN_MAX)), Err(ConfigError::TooManyLuns));
        full.apply_to_units(&UnitChange::Remove { lun: 7 }).unwrap();
        assert_eq!(full.apply_to_units(&add(LUN_MAX)), Ok(None));
    }

    /// Goal: a task that its transport has not aborted ends when its unit is gone, or another. Method: every reply, begun
    /// while the unit was there and still without a buffer.
    #[test]
    fn replies_end_without_their_unit() {
        let cdbs: [(&[u8], bool); 10] = [
            (&[0x12, 0, 0, 0, 255, 0], true),
            (&[0x12, 1, 0x00, 0, 255, 0], true),
            (&[0x12, 1, 0xB0, 0, 255, 0], false),
            (&[0x25], false),
            (&[0x9E, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32], false),
            (&[0x9E, 0x12, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 32], false),
            (&[0x1A, 0, 0x3F, 0, 255, 0], false),
            (&[0xA3, 0x0A, 0, 0, 0, 0, 0, 0, 0, 255], false),
            (&[0xA0, 0, 0, 0, 0, 0, 0, 0, 0, 255], true),
            (&[0x03, 0, 0, 0, 255, 0], true),
        ];
        for change in [UnitChange::Remove { lun: 0 }, UnitChange::Resize { lun: 0, blocks: 1 }] {
            for (bytes, needs_no_unit) in cdbs {
                let mut world = world(&[0]);
                let mut cdb = [0; 16];
                cdb[..bytes.len()].copy_from_slice(bytes);
                let command = Command {
                    lun: lun_field(0),
                    cdb,
                    attribute: TaskAttribute::Simple,
                    data_out_bytes: 0,
                    data_in_bytes: 255,
                };
                let mut task = world.server.begin(NEXUS, &command);
                let all = std::mem::replace(&mut world.share.out_max, 0);
                if let Some(effect) = task.poll(&mut world.server, &mut world.share) {
                    assert!(matches!(effect, Effect::Status { bytes: 1.., .. }), "{effect:?}");
                    task.status_done(512, true);
                }
                world.server.apply_to_units(&change).unwrap();
                world.share.out_max = all;
                let mut status = None;
                while let Some(effect) = task.poll(&mut world.server, &mut world.share) {
                    match effect {
                        Effect::DataIn { buf, .. } => world.share.give(buf),
                        Effect::Status { bytes, .. } => task.status_done(bytes, true),
                        Effect::Finish(outcome) => status = Some(outcome.status),
                        other => panic!("{other:?}"),
                    }
                }
                let is_good = needs_no_unit || matches!(change, UnitChange::Resize { .. });
                let expected = if is_good { Status::Good } else { Status::CheckCondition };
                assert_eq!(status, Some(expected), "{bytes:02X?} {change:?}");
                assert_eq!(world.share.out, 0);
            }
        }
    }

    /// Goal: a list that came while its REPORT LUNS waited for a buffer is in its data, and is not told again.
    #[test]
    fn a_waiting_report_luns_is_up_to_date() {
        let mut world = world(&[0]);
        let mut cdb = [0; 16];
        cdb[..12].copy_from_slice(&REPORT_LUNS);
        let command = Command {
            lun: lun_field(0),
            cdb,
            attribute: TaskAttribute::Simple,
            data_out_bytes: 0,
            data_in_bytes: 256,
        };
        let mut task = world.server.begin(NEXUS, &command);
        let all = std::mem::replace(&mut world.share.out_max, 0);
        assert!(task.poll(&mut world.server, &mut world.share).is_none());
        world.server.apply_to_units(&add(1)).unwrap();
        world.share.out_max = all;
        let Some(Effect::DataIn { buf, .. }) = task.poll(&mut world.server, &mut world.share) else {
            panic!("a list");
        };
        assert_eq!(buf.len(), 8 + 2 * 8);
        world.share.give(buf);
        assert_eq!(world.hear(NEXUS), [0x2900]);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Add { lun: u16, id: u8 },
        Remove { lun: u16 },
        Resize { lun: u16, blocks: u64 },
        Contents { lun: u16 },
        Luns,
        Ready { lun: u16 },
    }

    fn step() -> impl Strategy<Value = Step> {
        let lun = 0..5_u16;
        prop_oneof![
            (lun.clone(), 0..6_u8).prop_map(|(lun, id)| Step::Add { lun, id }),
            lun.clone().prop_map(|lun| Step::Remove { lun }),
            (lun.clone(), 0..3_u64).prop_map(|(lun, blocks)| Step::Resize { lun, blocks }),
            lun.clone().prop_map(|lun| Step::Contents { lun }),
            Just(Step::Luns),
            lun.prop_map(|lun| Step::Ready { lun }),
        ]
    }

    /// What a nexus can hear here, in the order of telling.
    const CODES: [u32; 4] = [0x6_2900, 0x6_2800, 0x6_2A09, 0x6_3F0E];

    /// By LUN: the id, the capacity, and what the nexus has not heard.
    struct Model(BTreeMap<u16, ([u8; 16], u64, BTreeSet<usize>)>);

    impl Model {
        fn tell(&mut self, lun: u16, code: usize) -> bool {
            self.0.get_mut(&lun).map(|unit| unit.2.insert(code)).is_some()
        }

        fn luns_changed(&mut self, is_to_be_told: bool) {
            for unit in self.0.values_mut() {
                if is_to_be_told {
                    unit.2.insert(3);
                } else {
                    unit.2.remove(&3);
                }
            }
        }

        /// Whether the change can be made.
        fn make(&mut self, change: &UnitChange) -> bool {
            match *change {
                UnitChange::Add(ref config) => {
                    let is_new =
                        !self.0.contains_key(&config.lun) && self.0.values().all(|(id, ..)| *id != config.id);
                    if is_new {
                        self.luns_changed(true);
                        self.0.insert(config.lun, (config.id, config.geometry.blocks, BTreeSet::from([0])));
                    }
                    is_new
                }
                UnitChange::Remove { lun } => {
                    let was_there = self.0.remove(&lun).is_some();
                    if was_there {
                        self.luns_changed(true);
                    }
                    was_there
                }
                UnitChange::Resize { blocks: 0, .. } => false,
                UnitChange::Resize { lun, blocks } => match self.0.get_mut(&lun) {
                    None => false,
                    Some(unit) => {
                        unit.1 == blocks || {
                            unit.1 = blocks;
                            self.tell(lun, 2)
                        }
                    }
                },
                UnitChange::ContentsChanged { lun } => self.tell(lun, 1),
                UnitChange::Space { .. } => true,
            }
        }

        fn ready(&mut self, lun: u16) -> u32 {
            let Some(unit) = self.0.get_mut(&lun) else { return 0x5_2500 };
            let Some(code) = unit.2.pop_first() else { return 0 };
            if code == 3 {
                self.luns_changed(false);
            }
            CODES[code]
        }
    }

    proptest! {
        /// Goal: whatever comes and goes, outcomes, lists and attentions are those of the dullest model, and a replica
        /// without nexuses agrees. Method: one nexus does commands all the time, another looks at the end.
        #[test]
        fn units_are_as_in_the_model(steps in proptest::collection::vec(step(), 1..60)) {
            let mut world = world(&[0]);
            let mut replica = DeviceServer::new(Core(1), server_config(vec![lun_config(0, geometry())]));
            let mut model = Model(BTreeMap::from([(0, (lun_config(0, geometry()).id, 5000, BTreeSet::new()))]));
            for step in steps {
                let change = match step {
                    Step::Add { lun, id } => {
                        let config = LunConfig { id: [id + 1; 16], ..lun_config(lun, geometry()) };
                        UnitChange::Add(Box::new(config))
                    }
                    Step::Remove { lun } => UnitChange::Remove { lun },
                    Step::Resize { lun, blocks } => UnitChange::Resize { lun, blocks },
                    Step::Contents { lun } => UnitChange::ContentsChanged { lun },
                    Step::Luns => {
                        let luns: Vec<u16> = model.0.keys().copied().collect();
                        prop_assert_eq!(listed(&mut world, NEXUS), luns);
                        model.luns_changed(false);
                        continue;
                    }
                    Step::Ready { lun } => {
                        let code = world.run_as(NEXUS, lun, &READY, 0, &[]).code();
                        prop_assert_eq!(code, model.ready(lun));
                        continue;
                    }
                };
                let outcome = world.server.apply_to_units(&change);
                prop_assert_eq!(outcome.is_ok(), model.make(&change));
                prop_assert_eq!(replica.apply_to_units(&change), outcome);
            }
            prop_assert_eq!(world.server.luns(), replica.luns());
            world.hear(OTHER);
            let capacities: Vec<(u16, u64)> = model.0.iter().map(|(&lun, unit)| (lun, unit.1)).collect();
            for (lun, blocks) in capacities {
                for _ in 0..=CODES.len() {
                    let code = world.run_as(NEXUS, lun, &READY, 0, &[]).code();
                    prop_assert_eq!(code, model.ready(lun));
                }
                let capacity = world.run_as(OTHER, lun, &cdb16(0x9E, 0x10, 0, 32), 32, &[]).good();
                prop_assert_eq!(&capacity.data[..8], &(blocks - 1).to_be_bytes());
            }
        }
    }
}
