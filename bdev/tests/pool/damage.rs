//! What is damaged or cut short is found, and the rest serves.

use super::*;

/// Goal: damage of each kind is found by a check, by name, and none makes opening panic; a second copy is taken where
/// there is one; a damaged volume is set aside and the others serve. Method: one byte changed at a time.
#[test]
fn damage_is_found() {
    use bdev::pool::format::{HEADERS_AT, JOURNALS_AT, SUPERBLOCK_AT};
    let disk = World::create(96 << 20);
    let mut world = World::open(&disk, 1);
    let a = world.volume("a", Provisioning::Thin);
    let b = world.volume("b", Provisioning::Thin);
    for piece in 0..40u64 {
        world.io(0, a, Op::Write, piece * 8192, 8, 1);
        world.io(0, b, Op::Write, piece * 8192, 8, 2);
    }
    let whole = disk.0.lock().unwrap().clone();
    let restore = || disk.0.lock().unwrap().copy_from_slice(&whole);
    let flip = |at: u64| disk.0.lock().unwrap()[at as usize] ^= 0x40;
    let problems =
        || check(&members(&disk)).map_or_else(|error| error.to_string(), |r| format!("{:?}", r.problems));
    assert_eq!(problems(), "[]");
    for at in SUPERBLOCK_AT {
        flip(at + 100);
        assert!(problems().contains("superblock"), "{}", problems());
        World::open(&disk, 1);
        restore();
    }
    for at in SUPERBLOCK_AT {
        flip(at + 100);
    }
    assert!(problems().contains("checksum is wrong"), "{}", problems());
    restore();
    // A block in the middle of the journal: what was acknowledged behind it would be lost in silence.
    flip(JOURNALS_AT + 2 * 4096 + 60);
    assert!(problems().contains("damaged journal"), "{}", problems());
    let refused = open(members(&disk), &OPTIONS).unwrap_err();
    assert!(refused.cure.contains("--repair"), "{refused}");
    bdev::pool::repair(&members(&disk)).unwrap();
    assert_eq!(problems(), "[]");
    World::open(&disk, 1);
    restore();
    // Opened by another number of cores, all is in images.
    drop(World::open(&disk, 2));
    assert_eq!(problems(), "[]");
    let images = disk.0.lock().unwrap().clone();
    let first_segment = (JOURNALS_AT + (4 << 20)) as usize;
    let mut found = std::collections::BTreeSet::new();
    for at in (first_segment..first_segment + (8 << 20)).step_by(64) {
        if images[at..at + 64].iter().all(|&byte| byte == 0) {
            continue;
        }
        flip(at as u64 + 9);
        let said = problems();
        found.extend(
            ["damaged map", "no checkpoint of core", "damaged volume"]
                .into_iter()
                .filter(|k| said.contains(k)),
        );
        if said.contains("damaged volume") && !(said.contains("volume a") && said.contains("volume b")) {
            let mut world = World::open(&disk, 2);
            let refused = if said.contains("volume a") { "a" } else { "b" };
            let other = if refused == "a" { "b" } else { "a" };
            let answer = world.ask(Request::Attach { volume: refused.into() });
            assert!(answer.unwrap_err().what.contains("set aside"));
            let bdev = world.attach(other);
            assert_eq!(world.read(bdev, 0, 8), vec![if other == "a" { 1 } else { 2 }; 4096]);
        }
        disk.0.lock().unwrap().copy_from_slice(&images);
    }
    assert_eq!(found.len(), 3, "{found:?}");
    for nth in 0..4u64 {
        flip(HEADERS_AT + nth * 4096 + 20);
    }
    let _ = problems();
    disk.0.lock().unwrap().copy_from_slice(&images);
}

/// Goal: growing by a member that is cut short after any write leaves a pool that opens: without the new member as long as
/// no other speaks of it, with it from then on. Method: the writes of superblocks, one more each time.
#[test]
fn growing_can_be_cut_short() {
    let whole = World::create(96 << 20);
    let (mut without, mut with) = (0, 0);
    for cut in 0..5 {
        let disk = Memory(Arc::new(Mutex::new(whole.0.lock().unwrap().clone())));
        let second = Memory(Arc::new(Mutex::new(vec![0; 64 << 20])));
        let mut world = World { more: vec![second.clone()], ..World::open(&disk, 1) };
        let added = NewMember {
            path: "second".into(),
            file: FileId(1),
            align_bytes: 512,
            punch: false,
            bytes: 64 << 20,
            mark: [3; 16],
        };
        world.cores[0].ask(0, 1, Request::Grow { sizes: Vec::new(), added: vec![added] }, 0);
        for _ in 0..cut {
            world.cores[0].turn(Time(1));
            if let Some(op) = world.cores[0].poll_disk() {
                let place = if op.file == FileId(0) { &disk } else { &second };
                let done = place.perform(op);
                world.cores[0].complete(done);
            }
        }
        drop(world);
        let mut both = members(&disk);
        let medium = Arc::new(second.clone());
        both.push(Member { path: "second".into(), file: FileId(1), align_bytes: 512, punch: false, medium });
        let opens_without = open(members(&disk), &OPTIONS).is_ok();
        let knows = bdev::pool::pool_on(&both[1]).is_some();
        if opens_without {
            without += 1;
        } else {
            assert!(knows, "after {cut} writes it needs a member that does not know of it");
            open(both, &OPTIONS).unwrap();
            with += 1;
        }
    }
    assert!(without > 0 && with > 0, "{without} {with}");
}

/// Goal: what was found damaged stays set aside, also when checkpoints have written out what was left of its map. Method:
/// one image damaged, then openings with work that makes checkpoints, on the other volume.
#[test]
fn damage_is_not_forgotten() {
    let disk = World::create(96 << 20);
    let mut world = World::open(&disk, 2);
    let (a, b) = (world.volume("a", Provisioning::Thin), world.volume("b", Provisioning::Thin));
    for piece in 0..8u64 {
        world.io(0, a, Op::Write, piece * 8192, 8, 1);
        world.io(0, b, Op::Write, piece * 8192, 8, 2);
    }
    drop(World::open(&disk, 1));
    let before = disk.0.lock().unwrap().clone();
    let first_segment = (bdev::pool::format::JOURNALS_AT + (4 << 20)) as usize;
    let mut tried = 0;
    for at in (first_segment..first_segment + (1 << 20)).step_by(16) {
        if before[at..at + 16] == [0; 16] {
            continue;
        }
        disk.0.lock().unwrap()[at + 9] ^= 0x40;
        let said =
            check(&members(&disk)).map_or_else(|_| String::new(), |report| format!("{:?}", report.problems));
        if said.contains("volume a") && !said.contains("volume b") {
            tried += 1;
            let damaged = disk.0.lock().unwrap().clone();
            for round in 0..3 {
                let mut world = World::open(&disk, 1);
                let refused = world.ask(Request::Attach { volume: "a".into() }).unwrap_err();
                assert!(refused.what.contains("set aside"), "opening {round}: {refused}");
                let bdev = world.attach("b");
                for nth in 0..1200u64 {
                    world.io(0, bdev, Op::Write, nth % 8 * 8192 + 64, 8, 3);
                    world.io(0, bdev, Op::Unmap, nth % 8 * 8192 + 64, 8, 0);
                }
            }
            let Answer::Pool(info) = World::open(&disk, 1).ask(Request::Pool).unwrap() else { panic!() };
            assert_eq!(info.damaged.len(), 1);
            assert_ne!(*disk.0.lock().unwrap(), damaged);
            if tried == 2 {
                return;
            }
        }
        disk.0.lock().unwrap().copy_from_slice(&before);
    }
    assert!(tried > 0, "no image of one volume alone was found");
}
