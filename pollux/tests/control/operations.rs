//! The order of steps: what is there after a step was refused, after a step stayed unanswered, after a crash.

use crate::fake::{Fake, TARGET};
use bdev::pool::control::{Against, Provisioning, Refusal, VolumeSpec};
use pollux::control::backend::{Failure, Outcome, Source, VolumeName};
use pollux::control::operations::{Map, Operations};
use pollux::spec::Device;
use std::path::PathBuf;
use std::sync::Arc;

fn name(volume: &str) -> VolumeName {
    VolumeName { pool: "p".to_owned(), volume: volume.to_owned() }
}

fn spec(name: &str) -> VolumeSpec {
    VolumeSpec {
        name: name.to_owned(),
        bytes: 1 << 30,
        block_bytes: 512,
        physical_block_bytes: 4096,
        provisioning: Provisioning::Thin,
        zero_detect: true,
        write_cache: false,
    }
}

fn map(volume: &str, lun: Option<u16>) -> Map {
    Map { volume: name(volume), target: None, lun, read_only: false, removable: false }
}

/// A target with volumes `a` and `b`; `b` is LUN 5, which two sessions have, and has a snapshot.
fn target() -> (Arc<Fake>, Operations) {
    let fake = Arc::new(Fake::new());
    let operations = Operations::new(fake.clone());
    for volume in ["a", "b"] {
        operations.volume_create("p", spec(volume)).unwrap();
    }
    operations.lun_map(&map("b", Some(5))).unwrap();
    operations.snapshot_create(&name("b"), "s").unwrap();
    let mut state = fake.state();
    state.running.sessions.insert(5, 2);
    state.steps.clear();
    drop(state);
    (fake, operations)
}

fn against<T: std::fmt::Debug>(outcome: Outcome<T>) -> (Against, String) {
    match outcome {
        Err(Failure::Refused(Refusal { against, what, cure })) => (against, format!("{what}; {cure}")),
        other => panic!("not refused: {other:?}"),
    }
}

/// What must hold whenever nothing is under way.
fn assert_consistent(fake: &Fake) {
    let (pools, running) = fake.snapshot();
    for unit in running.units.iter().filter(|unit| unit.source == Source::Catalog) {
        let volume = unit.volume.as_ref().unwrap();
        let catalog = &pools[&volume.pool];
        assert!(running.attached.contains(volume), "{unit:?} over nothing");
        let info = catalog.volumes.iter().find(|info| info.name == volume.volume);
        assert_eq!(info.map(|info| info.bytes), Some(unit.bytes), "{unit:?}");
        let remembered = |mapping: &&bdev::pool::control::Mapping| {
            mapping.lun == unit.lun && mapping.volume == volume.volume
        };
        assert!(
            catalog.mappings.iter().any(|mapping| remembered(&mapping)),
            "{unit:?} is forgotten at a restart"
        );
    }
    for catalog in pools.values() {
        for mapping in &catalog.mappings {
            assert!(catalog.volumes.iter().any(|info| info.name == mapping.volume), "{mapping:?} of nothing");
        }
    }
    for volume in &running.attached {
        assert!(
            running.units.iter().any(|unit| unit.volume.as_ref() == Some(volume)),
            "{volume:?} is held by nobody"
        );
    }
}

type Act = fn(&Operations) -> Outcome<()>;

/// Every operation of several steps.
const ACTS: [(&str, Act, &[&str]); 6] = [
    (
        "map",
        |operations| operations.lun_map(&map("a", None)).map(drop),
        &["Attach", "MappingPut", "unit_add"],
    ),
    (
        "unmap",
        |operations| operations.lun_unmap(None, 5, true).map(drop),
        &["MappingRemove", "unit_remove", "Detach"],
    ),
    (
        "delete",
        |operations| {
            let snapshots = operations.snapshots("p", Some("b".to_owned()))?;
            if !snapshots.is_empty() {
                operations.snapshot_delete("p", "b@s".to_owned())?;
            }
            operations.volume_delete(&name("b"), true)
        },
        &["SnapshotDelete", "MappingRemove", "unit_remove", "Detach", "VolumeDelete"],
    ),
    (
        "grow",
        |operations| operations.volume_resize(&name("b"), 2 << 30, false, false).map(drop),
        &["VolumeResize", "unit_changed Capacity(2147483648)"],
    ),
    (
        "shrink",
        |operations| operations.volume_resize(&name("b"), 1 << 29, true, true).map(drop),
        &["VolumeResize", "unit_changed Capacity(536870912)"],
    ),
    (
        "roll back",
        |operations| operations.volume_rollback(&name("b"), "s".to_owned(), true).map(drop),
        &["VolumeRollback", "unit_changed Contents"],
    ),
];

/// Goal: the steps come in the order that a crash wants, and leave something consistent.
#[test]
fn steps_have_their_order() {
    for (what, act, steps) in ACTS {
        let (fake, operations) = target();
        act(&operations).unwrap();
        assert_eq!(fake.state().steps, steps, "{what}");
        assert_consistent(&fake);
    }
}

/// Goal: an operation that is refused on its way has changed nothing. Method: refuse each step of each operation; the
/// exceptions are those where the pool has made its change and hosts can't be told, and the separate command before a
/// delete, which are told as such.
#[test]
fn a_refused_step_is_undone() {
    for (what, act, steps) in ACTS {
        for (failing, &step) in steps.iter().enumerate() {
            let (fake, operations) = target();
            let before = fake.snapshot();
            let refusal = Refusal::new(Against::Busy, "the step was refused", "try again");
            fake.state().fail_after = Some((failing, Failure::Refused(refusal)));
            let (_, told) = against(act(&operations));
            assert!(told.contains("the step was refused"), "{what}: {told}");
            if step.starts_with("unit_changed") {
                assert!(
                    told.contains("has not heard of it") && told.contains("same command again"),
                    "{what}: {told}"
                );
                act(&operations).unwrap();
                assert_consistent(&fake);
                continue;
            }
            if step == "Detach" && what == "unmap" {
                // The unit is gone, as was asked for; the volume is let go of by whoever minds.
                operations.snapshot_delete("p", "b@s".to_owned()).unwrap();
                operations.volume_delete(&name("b"), false).unwrap();
                assert_consistent(&fake);
                continue;
            }
            assert_consistent(&fake);
            let (mut pools, mut running) = fake.snapshot();
            if what == "delete" && failing > 0 {
                let was = &before.0["p"];
                let catalog = pools.get_mut("p").unwrap();
                catalog.snapshots.clone_from(&was.snapshots);
                catalog.volumes.clone_from(&was.volumes);
            }
            // Sessions end with their unit.
            running.sessions.clone_from(&before.1.sessions);
            assert_eq!((pools, running), before, "{what}, {step}");
        }
    }
}

/// Goal: a crash between two steps leaves something consistent, and the same command afterwards does what it should.
/// Method: let each step of each operation go unanswered, carried out or not, then start again from the catalog.
#[test]
fn a_crash_leaves_something_consistent() {
    for (what, act, steps) in ACTS {
        for failing in 0..steps.len() {
            for carried_out in [false, true] {
                let (fake, operations) = target();
                let mut state = fake.state();
                state.fail_after = Some((failing, Failure::Unanswered("core 0".to_owned())));
                state.carried_out = carried_out;
                drop(state);
                let ended = act(&operations);
                assert_eq!(ended, Err(Failure::Unanswered("core 0".to_owned())), "{what}");
                assert_eq!(fake.state().steps, steps[..=failing], "{what}: nothing after an unanswered step");
                fake.crash();
                assert_consistent(&fake);
                // Either it is done, or it can be done.
                if let Err(failure) = act(&operations) {
                    let Failure::Refused(Refusal { against, .. }) = failure else { panic!("{failure:?}") };
                    assert!(matches!(against, Against::NotFound | Against::Exists), "{what}: {against:?}");
                }
                assert_consistent(&fake);
            }
        }
    }
}

/// Goal: without a crash, too, the same command again finishes what an unanswered step left. Method: as above, with
/// the running state kept.
#[test]
fn an_unanswered_step_can_be_made_good() {
    for (what, act, steps) in ACTS {
        for failing in 0..steps.len() {
            for carried_out in [false, true] {
                let (fake, operations) = target();
                let mut state = fake.state();
                state.fail_after = Some((failing, Failure::Unanswered("core 0".to_owned())));
                state.carried_out = carried_out;
                drop(state);
                act(&operations).unwrap_err();
                fake.state().fail_after = None;
                let again = act(&operations);
                if let Err(failure) = again {
                    let Failure::Refused(Refusal { against, .. }) = failure else { panic!("{failure:?}") };
                    assert!(matches!(against, Against::NotFound | Against::Exists), "{what}: {against:?}");
                }
                if what == "unmap" && failing > 0 {
                    // Nothing is left that an unmap could name; the volume is let go of by whoever minds.
                    operations.lun_map(&map("b", Some(5))).unwrap();
                    operations.lun_unmap(None, 5, true).unwrap();
                }
                assert_consistent(&fake);
            }
        }
    }
}

/// Goal: what sessions have is not pulled from under them, unless that is said. Method: each such operation without
/// force, then with nobody there.
#[test]
fn sessions_are_spared() {
    let acts: [(&str, Act); 4] = [
        ("unmap", |operations| operations.lun_unmap(None, 5, false).map(drop)),
        ("delete", |operations| operations.volume_delete(&name("b"), false)),
        ("shrink", |operations| operations.volume_resize(&name("b"), 1 << 29, true, false).map(drop)),
        ("roll back", |operations| operations.volume_rollback(&name("b"), "s".to_owned(), false).map(drop)),
    ];
    for (what, act) in acts {
        let (fake, operations) = target();
        if what == "delete" {
            operations.snapshot_delete("p", "b@s".to_owned()).unwrap();
        }
        let before = fake.snapshot();
        let (against, told) = against(act(&operations));
        assert_eq!(against, Against::InUse, "{what}");
        assert!(told.contains("2 sessions have") && told.contains("--force"), "{what}: {told}");
        assert_eq!(fake.snapshot(), before, "{what}");
        fake.state().running.sessions.clear();
        match what {
            // A volume that is a LUN is deleted only on purpose.
            "delete" => assert_eq!(self::against(act(&operations)).0, Against::InUse),
            _ => act(&operations).unwrap(),
        }
    }
}

/// Goal: LUN numbers are given out and refused as they should. Method: a table of wishes.
#[test]
fn numbers_are_given_once() {
    let (fake, operations) = target();
    assert_eq!(operations.lun_map(&map("a", None)).unwrap().lun, 1, "0 is the configuration's");
    for (wish, kind, says) in [
        (map("a", None), Against::Exists, "volume a is LUN 1"),
        (map("a", Some(3)), Against::Exists, "unmap it first: `pollux lun unmap 1`"),
        (map("none", None), Against::NotFound, "volume none"),
        (Map { target: Some("iqn.x".to_owned()), ..map("a", None) }, Against::NotFound, TARGET),
    ] {
        let (against, told) = against(operations.lun_map(&wish));
        assert_eq!(against, kind, "{told}");
        assert!(told.contains(says), "{told}");
    }
    operations.volume_create("p", spec("c")).unwrap();
    for (lun, kind) in [(0, Against::Exists), (5, Against::Exists), (16_384, Against::Invalid)] {
        assert_eq!(against(operations.lun_map(&map("c", Some(lun)))).0, kind);
    }
    let upper = Map { target: Some(TARGET.to_uppercase()), read_only: true, ..map("c", Some(16_383)) };
    let lun = operations.lun_map(&upper).unwrap();
    assert_eq!((lun.lun, lun.read_only, lun.target.as_str()), (16_383, true, TARGET));
    let (kind, told) = against(operations.lun_unmap(None, 0, true));
    assert_eq!(kind, Against::Invalid);
    assert!(told.contains("stands in the configuration"), "{told}");
    assert_eq!(against(operations.lun_unmap(None, 99, true)).0, Against::NotFound);
    assert_consistent(&fake);
}

/// Goal: a mapping whose unit isn't served is shown as such, and can be served or removed. Method: take the unit away
/// behind the operations' back, as a failed attach at the start would.
#[test]
fn an_unserved_mapping_is_shown() {
    let (fake, operations) = target();
    fake.state().running.units.retain(|unit| unit.lun != 5);
    let luns = operations.luns().unwrap();
    assert_eq!(luns.iter().map(|lun| (lun.lun, lun.served)).collect::<Vec<_>>(), [(0, true), (5, false)]);
    assert_eq!((luns[1].volume.as_deref(), luns[1].sessions), (Some("b"), None));
    let other = against(operations.lun_map(&map("b", Some(6))));
    assert!(other.1.contains("volume b is LUN 5"), "{other:?}");
    assert!(operations.lun_map(&map("b", None)).unwrap().served);
    fake.state().running.units.retain(|unit| unit.lun != 5);
    operations.lun_unmap(None, 5, false).unwrap();
    assert_consistent(&fake);
    assert_eq!(operations.luns().unwrap().len(), 1);
}

/// Goal: pools are made of what can be meant, and go when nothing hangs on them. Method: tables.
#[test]
fn pools_come_and_go() {
    let (fake, operations) = target();
    let device = |path: &str| Device { path: PathBuf::from(path), bytes: None };
    for (pool, devices, kind, says) in [
        ("p", vec![device("/a")], Against::Exists, "there is a pool p already"),
        (".p", vec![device("/a")], Against::Invalid, "no name for a pool"),
        ("q", vec![], Against::Invalid, "name at least one"),
        ("q", vec![device("a")], Against::Invalid, "no absolute path"),
        ("q", vec![device("/a"), device("/a")], Against::Invalid, "named twice"),
        ("q", (0..65).map(|n| device(&format!("/{n}"))).collect(), Against::Invalid, "at most 64"),
    ] {
        let (against, told) = against(operations.pool_create(pool, &devices));
        assert_eq!(against, kind, "{told}");
        assert!(told.contains(says), "{told}");
    }
    assert_eq!(operations.pool_create("q", &[device("/a")]).unwrap().members.len(), 1);
    assert_eq!(operations.pool_grow("q", &[device("/b")]).unwrap().members.len(), 2);
    assert_eq!(against(operations.pool_grow("r", &[])).0, Against::NotFound);
    let (kind, told) = against(operations.pool_delete("p", true));
    assert_eq!(kind, Against::InUse);
    assert!(told.contains("LUN 5") && told.contains("pollux lun unmap 5"), "{told}");
    operations.lun_unmap(None, 5, true).unwrap();
    let (_, told) = against(operations.pool_delete("p", false));
    assert!(told.contains("2 volumes") && told.contains("--force"), "{told}");
    operations.pool_delete("p", true).unwrap();
    operations.pool_delete("q", false).unwrap();
    assert!(fake.state().pools.is_empty());
}

/// Goal: what can't be meant doesn't reach the pool. Method: a table of volumes; a volume with snapshots.
#[test]
fn volumes_are_checked() {
    let (fake, operations) = target();
    for (spec, says) in [
        (VolumeSpec { name: "a b".to_owned(), ..spec("x") }, "letters, digits"),
        (VolumeSpec { bytes: 4096, ..spec("x") }, "from 1M to 64T"),
        (VolumeSpec { bytes: (1 << 30) + 1, ..spec("x") }, "multiple of 4096"),
        (VolumeSpec { block_bytes: 4096, physical_block_bytes: 512, ..spec("x") }, "4096 on 4096"),
        (VolumeSpec { block_bytes: 1024, ..spec("x") }, "512 on 4096"),
    ] {
        let (against, told) = against(operations.volume_create("p", spec));
        assert_eq!(against, Against::Invalid);
        assert!(told.contains(says), "{told}");
    }
    assert!(against(operations.volume_resize(&name("a"), 1 << 20, false, false)).1.contains("--shrink"));
    assert!(against(operations.volume_delete(&name("b"), true)).1.contains("1 snapshots"));
    assert!(fake.state().steps.is_empty());
}
