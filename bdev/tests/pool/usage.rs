//! What is whose.

use super::*;

/// Goal: what a walk says is unique and what is shared is what all maps together say, for slots of any kind and nodes with
/// two parents; and unique is what deleting gives back. Method: random histories on one to three cores, at each stop a
/// walk against the medium, in the end volume after volume deleted. Two clusters a window: several windows.
#[test]
fn tells_what_is_whose() {
    for (cores, seed) in [(1, 1), (2, 2), (3, 3), (2, 4), (3, 5)] {
        let disk = World::create(160 << 20);
        let mut world = World::open(&disk, cores);
        let mut dice = Dice(seed);
        let mut volumes = vec![("a".to_owned(), world.volume("a", Provisioning::Thin))];
        volumes.push(("b".to_owned(), world.volume("b", Provisioning::Thin)));
        let mut snapshots: Vec<String> = Vec::new();
        let (mut fragments, mut both) = (0, 0);
        for step in 1..=300u64 {
            let (name, bdev) = volumes[dice.below(volumes.len() as u64) as usize].clone();
            // Few places, so that histories meet there: chunks at both ends of three stripes.
            let slot = dice.below(3) * 64 + [0, 1, 2, 62, 63][dice.below(5) as usize];
            match dice.below(20) {
                0 if snapshots.len() < 8 => {
                    let own = format!("s{step}");
                    world.ask(Request::SnapshotCreate { volume: name.clone(), name: own.clone() }).unwrap();
                    snapshots.push(format!("{name}@{own}"));
                }
                1 if !snapshots.is_empty() && volumes.len() < 5 => {
                    let snapshot = snapshots[dice.below(snapshots.len() as u64) as usize].clone();
                    let clone = format!("c{step}");
                    let request = Request::VolumeClone { snapshot, name: clone.clone(), provisioning: None };
                    world.ask(request).unwrap();
                    let bdev = world.attach(&clone);
                    volumes.push((clone, bdev));
                }
                2 if !snapshots.is_empty() => {
                    let place = dice.below(snapshots.len() as u64) as usize;
                    let snapshot = snapshots.remove(place);
                    world.ask(Request::SnapshotDelete { snapshot }).unwrap();
                }
                3 | 4 => {
                    let to = volumes[dice.below(volumes.len() as u64) as usize].1;
                    let to_slot = dice.below(3) * 64 + dice.below(64);
                    let blocks = dice.below(40) + 1;
                    world.copy((bdev, slot << 16), (to, to_slot << 16), blocks << 12);
                }
                5 => drop(world.io(0, bdev, Op::Unmap, slot * 128, (dice.below(40) + 1) * 8, 0)),
                6 => {
                    for slot in 0..64 {
                        world.io(0, bdev, Op::Write, slot * 128, 128, step as u8 | 1);
                    }
                }
                _ => {
                    let (first, blocks) = (dice.below(15), dice.below(3) + 1);
                    let blocks = blocks.min(16 - first);
                    let core = dice.below(u64::from(cores)) as u16;
                    world.io(core, bdev, Op::Write, slot * 128 + first * 8, blocks * 8, step as u8 | 1);
                }
            }
            if step % 25 != 0 {
                continue;
            }
            for _ in 0..600 {
                world.step();
            }
            let (found, exact) = world.usage();
            assert!(exact, "step {step}: {found:?}");
            let whole = usage_of(&members(&disk)).unwrap();
            assert_eq!(found.len(), whole.len());
            for (name, (unique, shared)) in found {
                let expected = whole[&name];
                let shared_is = shared.map(|_| expected.1);
                assert_eq!(
                    (unique, shared),
                    (expected.0, shared_is),
                    "{name} at step {step}, {cores} cores, seed {seed}"
                );
                both += u32::from(unique > 0 && shared > Some(0));
            }
            fragments += u32::from(format!("{:?}", world.cores[0]).contains("fragment: Some"));
        }
        assert!(fragments > 0 && both > 5, "{fragments} {both}");
        for snapshot in snapshots {
            let (found, _) = world.usage();
            let unique = found.iter().find(|(name, _)| *name == snapshot).unwrap().1.0;
            let free = world.free();
            world.ask(Request::SnapshotDelete { snapshot: snapshot.clone() }).unwrap();
            for _ in 0..600 {
                world.step();
            }
            assert_eq!(world.free() - free, unique, "{snapshot}");
        }
        while let Some((volume, _)) = volumes.pop() {
            let (found, _) = world.usage();
            let unique = found.iter().find(|(name, _)| *name == volume).unwrap().1.0;
            let free = world.free();
            world.ask(Request::VolumeDelete { volume: volume.clone(), force: true }).unwrap();
            for _ in 0..600 {
                world.step();
            }
            assert_eq!(world.free() - free, unique, "{volume}");
        }
    }
}

/// Goal: a walk comes by itself when something has changed, stays away when nothing has, says when a figure is overtaken,
/// and a write during it makes it inexact at most. Method: time passes.
#[test]
fn walks_by_itself() {
    let disk = World::create(96 << 20);
    let mut world = World::open(&disk, 2);
    let a = world.volume("a", Provisioning::Thin);
    let usage = |world: &mut World| match world.ask(Request::Volumes).unwrap() {
        Answer::Volumes(volumes) => volumes[0].usage,
        other => panic!("{other:?}"),
    };
    world.io(0, a, Op::Write, 0, 128, 1);
    assert_eq!(usage(&mut world), None);
    let pass = |world: &mut World| {
        world.now += 31_000_000_000;
        (0..2000).for_each(|_| world.step());
    };
    pass(&mut world);
    let first = usage(&mut world).unwrap();
    assert_eq!((first.unique_bytes, first.shared_bytes, first.exact), (65536, Some(0), true));
    pass(&mut world);
    let again = usage(&mut world).unwrap();
    assert_eq!(bdev::pool::control::Usage { at_seconds: first.at_seconds, ..again }, first);
    // What is written where it was changes nothing.
    world.io(0, a, Op::Write, 0, 8, 2);
    assert!(usage(&mut world).unwrap().exact);
    world.io(0, a, Op::Write, 8192, 8, 2);
    let overtaken = usage(&mut world).unwrap();
    assert_eq!((overtaken.unique_bytes, overtaken.exact), (65536, false));
    pass(&mut world);
    let second = usage(&mut world).unwrap();
    assert_eq!((second.unique_bytes, second.exact), (2 * 65536, true));
    world.cores[0].ask(0, 2, Request::UsageWalk, 1_700_000_000);
    for piece in 2..40 {
        world.io(piece as u16 % 2, a, Op::Write, piece * 8192, 8, 3);
    }
    while world.cores[0].poll_answer().is_none() {
        world.step();
    }
    let during = usage(&mut world).unwrap();
    assert!(!during.exact && during.unique_bytes <= 40 * 65536, "{during:?}");
}
