//! What the catalog keeps.

use super::*;

/// Goal: what people did does not pile up: dead roots are forgotten once checkpoints can do without them, and a volume
/// with more mappings than one record holds can go.
#[test]
fn nothing_piles_up() {
    let disk = World::create(96 << 20);
    let mut world = World::open(&disk, 2);
    let a = world.volume("a", Provisioning::Thin);
    for round in 0..20 {
        let name = format!("s{round}");
        world.ask(Request::SnapshotCreate { volume: "a".into(), name: name.clone() }).unwrap();
        world.io(round % 2, a, Op::Write, u64::from(round) * 8192, 8, 1);
        world.ask(Request::SnapshotDelete { snapshot: format!("a@{name}") }).unwrap();
    }
    let roots = |world: &World| format!("{:?}", world.cores[0]).matches("dead: true").count();
    assert!(roots(&world) >= 20);
    // Each step is a millisecond: dead roots are looked at every five seconds, and checkpoints come as journals fill.
    for round in 0..6_000u64 {
        world.io(round as u16 % 2, a, Op::Write, round % 64 * 1024, 8, 2);
        world.io(round as u16 % 2, a, Op::Unmap, round % 64 * 1024, 8, 0);
        if round % 100 == 0 {
            world.now += 6_000_000_000;
        }
    }
    assert!(roots(&world) < 3, "{} dead roots", roots(&world));
    for lun in 0..300 {
        let mapping = bdev::pool::control::Mapping {
            target: format!("iqn.{}", "x".repeat(219)),
            lun,
            volume: "a".into(),
            read_only: false,
            removable: false,
        };
        world.ask(Request::MappingPut(mapping)).unwrap();
    }
    world.ask(Request::VolumeDelete { volume: "a".into(), force: true }).unwrap();
    assert_eq!(world.ask(Request::Mappings).unwrap(), Answer::Mappings(Vec::new()));
}

/// Goal: what is reserved of a volume is there after another opening, by another number of cores too, whether a checkpoint
/// or the journal has it; it goes with its volume, and what is too much is refused.
#[test]
fn reservations_are_remembered() {
    let disk = World::create(96 << 20);
    let mut world = World::open(&disk, 1);
    let reservations =
        |world: &mut World, name: &str| match world.ask(Request::Attach { volume: name.into() }) {
            Ok(Answer::Attached { reservations, .. }) => reservations,
            other => panic!("{other:?}"),
        };
    let bdev = world.volume("a", Provisioning::Thin);
    let other = world.volume("b", Provisioning::Thin);
    assert_eq!(reservations(&mut world, "a"), []);
    let long: Vec<u8> = (0..60_000).map(|at| at as u8).collect();
    world.ask(Request::ReservationsPut { bdev, bytes: long.clone() }).unwrap();
    world.ask(Request::ReservationsPut { bdev: other, bytes: vec![5; 10] }).unwrap();
    for cores in [2, 3, 1] {
        world = World::open(&disk, cores);
        assert_eq!(reservations(&mut world, "a"), long);
        assert_eq!(reservations(&mut world, "b"), [5; 10]);
    }
    let bdev = world.attach("a");
    for bytes in [vec![7; 64 << 10], vec![8; 20], Vec::new(), vec![9; 30]] {
        world.ask(Request::ReservationsPut { bdev, bytes: bytes.clone() }).unwrap();
        assert_eq!(reservations(&mut world, "a"), bytes);
    }
    let put = |bdev, bytes| Request::ReservationsPut { bdev, bytes: vec![0; bytes] };
    assert_eq!(world.ask(put(bdev, (64 << 10) + 1)).unwrap_err().against, Against::NoSpace);
    assert_eq!(world.ask(put(BdevId(bdev.0 + 100), 1)).unwrap_err().against, Against::NotFound);
    world.ask(Request::VolumeDelete { volume: "a".into(), force: true }).unwrap();
    world = World::open(&disk, 1);
    world.volume("a", Provisioning::Thin);
    assert_eq!((reservations(&mut world, "a"), reservations(&mut world, "b")), (vec![], vec![5; 10]));
}

/// Goal: a pool that takes no more writes says what is in it, also when a deleted root could have been forgotten with the
/// answer. Method: a snapshot goes, checkpoints come, and then no record can be written any more.
#[test]
fn a_pool_that_is_broken_says_what_is_in_it() {
    let disk = World::create(96 << 20);
    let mut world = World::open_as(&disk, members(&disk), &OpenOptions { checkpoint_percent: 1, ..OPTIONS });
    let a = world.volume("a", Provisioning::Thin);
    world.io(0, a, Op::Write, 0, 8, 1);
    world.ask(Request::SnapshotCreate { volume: "a".into(), name: "s".into() }).unwrap();
    world.io(0, a, Op::Write, 0, 8, 2);
    world.ask(Request::SnapshotDelete { snapshot: "a@s".into() }).unwrap();
    let checkpoints = world.info().counts.checkpoints;
    for nth in 1..60 {
        world.io(0, a, Op::Write, nth * 128, 8, 3);
    }
    world.journal_fails = true;
    assert!(world.try_io(0, a, Op::Write, 100 * 128, 8, 4).0.is_err());
    let info = world.info();
    assert!(info.counts.checkpoints >= checkpoints + 2, "{:?}", info.counts);
    let Answer::Volumes(volumes) = world.ask(Request::Volumes).unwrap() else { panic!("volumes") };
    assert_eq!(volumes.len(), 1);
    assert!(world.ask(Request::VolumeDelete { volume: "a".into(), force: true }).is_err());
}
