//! Space: full, grown, given back, and memory for maps.

use super::*;

/// Goal: zeroes over nothing take no memory for maps.
#[test]
fn zeroes_take_no_nodes() {
    let disk = World::create(96 << 20);
    let mut world = World::open(&disk, 1);
    let a = world.volume("a", Provisioning::Thin);
    let memory = |world: &mut World| match world.ask(Request::Pool).unwrap() {
        Answer::Pool(info) => info.map_memory_bytes,
        other => panic!("{other:?}"),
    };
    let before = memory(&mut world);
    for stripe in 0..256 {
        world.io(0, a, Op::Write, stripe * 8192, 128, 0);
    }
    assert_eq!(memory(&mut world), before);
}

/// Goal: many checkpoints, with the journal going round, lose nothing; a full pool says so and goes on when space is
/// given back.
#[test]
fn goes_round_and_fills_up() {
    let disk = World::create(256 << 20);
    let mut world = World::open(&disk, 2);
    let a = world.volume("a", Provisioning::Thin);
    for round in 0..6u64 {
        world.ask(Request::SnapshotCreate { volume: "a".into(), name: format!("r{round}") }).unwrap();
        for block in 0..400u64 {
            world.io(
                (block % 2) as u16,
                a,
                Op::Write,
                block * 8 * 33 % 65536 * 8,
                8,
                (round * 40 + block % 40) as u8 + 1,
            );
        }
        if round > 2 {
            world.ask(Request::SnapshotDelete { snapshot: format!("a@r{}", round - 3) }).unwrap();
        }
    }
    let Answer::Pool(info) = world.ask(Request::Pool).unwrap() else { panic!() };
    assert!(info.counts.checkpoints > 0, "{info:?}");
    let mut bytes = Vec::new();
    for block in 0..400u64 {
        bytes.push(world.read(a, block * 8 * 33 % 65536 * 8, 8)[0]);
    }
    for cores in [2, 1] {
        let mut world = World::open(&disk, cores);
        world.attach("a");
        for block in 0..400u64 {
            assert_eq!(world.read(a, block * 8 * 33 % 65536 * 8, 8)[0], bytes[block as usize]);
        }
        assert_eq!(check(&members(&disk)).unwrap().problems, []);
    }
}

/// Goal: a pool grows while it is open, by a longer member and by a new one; what is there is found after it, also when
/// it is opened again; a member that is missing is refused by name.
#[test]
fn grows() {
    let disk = World::create(96 << 20);
    let mut world = World::open(&disk, 2);
    let before = world.free();
    let a = world.volume("a", Provisioning::Thin);
    world.io(0, a, Op::Write, 0, 128, 1);
    disk.0.lock().unwrap().resize(128 << 20, 0xEE);
    let sizes = vec![MemberSize { member: 0, bytes: 128 << 20 }];
    world.ask(Request::Grow { sizes, added: Vec::new() }).unwrap();
    assert_eq!(world.free(), before + (32 << 20) - 65536);
    let second = Memory(Arc::new(Mutex::new(vec![0xEE; 64 << 20])));
    world.more = vec![second.clone()];
    let added = NewMember {
        path: "second".into(),
        file: FileId(1),
        align_bytes: 512,
        punch: false,
        bytes: 64 << 20,
        mark: [3; 16],
    };
    world.ask(Request::Grow { sizes: Vec::new(), added: vec![added] }).unwrap();
    assert_eq!(world.free(), before + (32 << 20) + (60 << 20) - 65536);
    for piece in 0..2000u64 {
        world.io(piece as u16 % 2, a, Op::Write, piece * 128, 128, piece as u8 | 1);
    }
    let both = || {
        let mut members = members(&disk);
        let medium = Arc::new(second.clone());
        members.push(Member {
            path: "second".into(),
            file: FileId(1),
            align_bytes: 512,
            punch: false,
            medium,
        });
        members
    };
    let mut world =
        World { more: vec![second.clone()], ..World::open_members(&disk, both(), 2, FoldWhen::Quiet) };
    world.attach("a");
    for piece in 0..2000u64 {
        assert_eq!(world.read(a, piece * 128, 128), vec![piece as u8 | 1; 65536]);
    }
    assert_eq!(check(&both()).unwrap().problems, []);
    let missing = check(&members(&disk)).unwrap_err();
    assert!(missing.what.contains("member 1 of 2 is missing"), "{missing}");
}

/// Goal: a file system that is full below a sparse pool is a pool that is full: only what needs a block that was never
/// written fails, with OUT OF SPACE; nothing is lost, set aside or broken; no chunk leaks; when there is space the same
/// write goes through. Method: a disk with so many blocks, ENOSPC and EDQUOT, with and without a write cache.
#[test]
fn a_full_file_system_is_a_full_pool() {
    for (errno, write_cache, cores) in [(28, false, 1), (122, true, 2)] {
        let disk = World::create(96 << 20);
        let mut world = World::open(&disk, cores);
        let a = world.volume("a", Provisioning::Thin);
        let spec = VolumeSpec {
            name: "b".into(),
            bytes: 1 << 30,
            block_bytes: 512,
            physical_block_bytes: 4096,
            provisioning: Provisioning::Thin,
            zero_detect: true,
            write_cache,
        };
        world.ask(Request::VolumeCreate(spec)).unwrap();
        let b = world.attach("b");
        world.sparse = Some(Sparse::new(errno, 20 * 16));
        let on = |piece: u64| if piece.is_multiple_of(2) { a } else { b };
        let mut written = 0u64;
        while world.try_io(0, on(written), Op::Write, written * 128, 128, written as u8 + 1).0.is_ok() {
            written += 1;
        }
        assert_eq!(written, 20);
        // Records that nobody waits for are durable half a second later.
        let wait = |world: &mut World| (0..600).for_each(|_| world.step());
        wait(&mut world);
        let free = world.free();
        // Some that fail at once, in parts of blocks and over the edges of chunks, too.
        for nth in 0..60u64 {
            let (result, _) = world.try_io(nth as u16 % cores, a, Op::Write, (100 + nth) * 128 + 3, 9, 1);
            assert_eq!(result, Err(IoError::OutOfSpace));
        }
        wait(&mut world);
        assert_eq!(world.free(), free);
        assert!(world.sparse.as_ref().unwrap().refused > 60);
        // What has its blocks goes on, and so does what needs none.
        for piece in 0..20u64 {
            world.io(0, on(piece), Op::Write, piece * 128 + 8, 8, 0xB0);
            assert_eq!(world.read(on(piece), piece * 128, 8), vec![piece as u8 + 1; 4096]);
        }
        world.io(0, a, Op::Flush, 0, 0, 0);
        world.io(0, a, Op::Unmap, 100 * 128, 1000, 0);
        world.ask(Request::SnapshotCreate { volume: "a".into(), name: "s".into() }).unwrap();
        // Now the next write to a needs space, and to b does not.
        assert_eq!(world.try_io(0, a, Op::Write, 0, 8, 7).0, Err(IoError::OutOfSpace));
        world.io(0, b, Op::Write, 128, 8, 0xB1);
        world.ask(Request::SnapshotDelete { snapshot: "a@s".into() }).unwrap();
        wait(&mut world);
        let named = check(&members(&disk)).unwrap();
        assert_eq!((named.problems, named.chunks - named.named_chunks), (Vec::new(), world.free() / 65536));
        world.sparse.as_mut().unwrap().left = 16;
        world.io(0, a, Op::Write, 200 * 128, 128, 0xC0);
        assert_eq!(world.read(a, 200 * 128, 128), vec![0xC0; 65536]);
        world.io(0, b, Op::Flush, 0, 0, 0);
        let mut world = World::open(&disk, cores);
        world.attach("a");
        world.attach("b");
        assert_eq!(world.read(a, 200 * 128, 128), vec![0xC0; 65536]);
        for piece in 2..20u64 {
            let data = world.read(on(piece), piece * 128, 16);
            assert_eq!(data, [vec![piece as u8 + 1; 4096], vec![0xB0; 4096]].concat());
        }
    }
}

/// Goal: the space of what is free goes back to the file system, of freed chunks and of what a former life has left, and
/// nothing else does; it does so while requests go on, too; a member that can't is left alone. Method: a disk that
/// knows which blocks it has given, over deletes, UNMAP and reopening.
#[test]
fn free_chunks_are_punched() {
    let disk = World::create(160 << 20);
    let mut world = World::open(&disk, 2);
    world.sparse = Some(Sparse::new(28, usize::MAX / 2));
    let idle = |world: &mut World| (0..3000).for_each(|_| world.step());
    let punched = |world: &mut World| match world.ask(Request::Pool).unwrap() {
        Answer::Pool(info) => (info.counts.punched_bytes, info.free_bytes, info.pending_bytes),
        other => panic!("{other:?}"),
    };
    idle(&mut world);
    // It was full of 0xEE: all free chunks were punched, whole clusters at once.
    let (bytes, free, pending) = punched(&mut world);
    assert_eq!((bytes, pending), (free, 0));
    assert_eq!(world.sparse.as_ref().unwrap().punches as u64, free.div_ceil(4 << 20));
    assert!(disk.0.lock().unwrap()[DATA_AT as usize..].iter().all(|&byte| byte == 0));
    let a = world.volume("a", Provisioning::Thin);
    for piece in 0..300u64 {
        world.io(piece as u16 % 2, a, Op::Write, piece * 128, 128, piece as u8 | 1);
    }
    let given = |world: &World| world.sparse.as_ref().unwrap().given.len();
    assert_eq!(given(&world), 300 * 16);
    world.ask(Request::SnapshotCreate { volume: "a".into(), name: "s".into() }).unwrap();
    for piece in 0..300u64 {
        world.io(0, a, Op::Write, piece * 128, 8, piece as u8 | 1);
    }
    world.ask(Request::SnapshotDelete { snapshot: "a@s".into() }).unwrap();
    world.io(0, a, Op::Unmap, 0, 150 * 128, 0);
    idle(&mut world);
    // Every chunk that is still named was written: one of own blocks and one below it for each slot.
    let named = (160 << 20) - DATA_AT - world.free();
    let used = named / 65536;
    assert!((150..=300).contains(&used), "{used}");
    assert!(given(&world) as u64 <= used * 16 && given(&world) >= 150 * 16, "{} of {used}", given(&world));
    // Somebody is always busy, and still it goes back.
    world.io(0, a, Op::Unmap, 150 * 128, 150 * 128, 0);
    for round in 0..3000u64 {
        world.io(round as u16 % 2, a, Op::Write, 299 * 128 + round % 16 * 8, 8, 7);
    }
    assert!(given(&world) <= 2 * 16, "{}", given(&world));
    // What can't be punched is tried once by each core.
    world.io(0, a, Op::Write, 0, 128, 1);
    let before = {
        let sparse = world.sparse.as_mut().unwrap();
        sparse.punch_errno = Some(95);
        sparse.punches
    };
    for piece in 0..4u64 {
        world.io(0, a, Op::Unmap, piece * 8192, 128, 0);
        world.io(0, a, Op::Write, piece * 8192 + 8192, 128, 1);
        idle(&mut world);
    }
    assert!(world.sparse.as_ref().unwrap().punches - before <= 2);
    let free = world.free();
    let mut world = World::open(&disk, 1);
    world.attach("a");
    idle(&mut world);
    assert_eq!(world.free(), free);
    assert_eq!(world.read(a, 4 * 8192, 128), vec![1; 65536]);
    assert_eq!(check(&members(&disk)).unwrap().problems, []);
    // The last chunks of a pool are found although they are being punched.
    world.io(0, a, Op::Unmap, 0, (1 << 30) / 512, 0);
    world.free();
    let pieces = match world.ask(Request::Pool).unwrap() {
        Answer::Pool(info) => (info.free_bytes - info.heartbeat_reserve_bytes) / 65536,
        other => panic!("{other:?}"),
    };
    for round in 0..3u8 {
        for piece in 0..pieces {
            world.io(0, a, Op::Write, piece * 128, 128, round + 1);
        }
        assert_eq!(world.try_io(0, a, Op::Write, pieces * 128, 128, 1).0, Err(IoError::OutOfSpace));
        world.io(0, a, Op::Unmap, 0, (1 << 30) / 512, 0);
        (0..50).for_each(|_| world.step());
    }
}

/// Goal: on a pool that is full after a snapshot, locks can still be taken: COMPARE AND WRITE, and small writes to blocks that
/// it has used, find space that nobody else gets; what is given back is theirs first; growing and reopening keep it so.
/// Method: a pool written full, with locks dense and sparse, by both cores.
#[test]
fn locks_find_space_on_a_full_pool() {
    let disk = World::create(96 << 20);
    let mut world = World::open(&disk, 2);
    let a = world.volume("a", Provisioning::Thin);
    let kept = world.info().heartbeat_reserve_bytes;
    assert_eq!(kept, (76 << 20) / 64 / 65536 * 65536);
    let chunks = kept / 65536;
    let write = |world: &mut World, lba, blocks| {
        let core = (lba / 8192 % 2) as u16;
        world.attempt(core, a, Op::Write, lba, blocks, (1, 0)).map(|_| ())
    };
    let mut filled = 0;
    while write(&mut world, filled * 128, 128).is_ok() {
        filled += 1;
    }
    let info = world.info();
    assert_eq!((info.free_bytes, info.heartbeat_reserve_bytes), (kept, kept), "the rest is for heartbeats");
    world.ask(Request::SnapshotCreate { volume: "a".into(), name: "s".into() }).unwrap();
    let full = Err(IoError::OutOfSpace);
    assert_eq!(write(&mut world, 0, 1), full);
    let swap =
        |world: &mut World, lba, new| world.attempt(0, a, Op::CompareAndWrite, lba, 1, (new, 1)).map(|_| ());
    // What differs uses nothing; what is equal finds space, and so does what is written beside it.
    assert_eq!(
        world.attempt(0, a, Op::CompareAndWrite, 8, 1, (2, 9)),
        Err(IoError::Miscompare { offset_bytes: 0 })
    );
    assert_eq!(write(&mut world, 9, 1), full);
    assert_eq!(swap(&mut world, 8, 2), Ok(()));
    assert_eq!(write(&mut world, 9, 1), Ok(()));
    assert_eq!(write(&mut world, 7, 1), full);
    assert_eq!(write(&mut world, 8, 16), full);
    world.ask(Request::SnapshotCreate { volume: "a".into(), name: "t".into() }).unwrap();
    // 16 locks share a chunk, however far they lie apart; the last ones of the cores may have room left.
    let mut locks = 0;
    while swap(&mut world, 128 + locks * 136, 3).is_ok() {
        locks += 1;
    }
    assert!((chunks - 2) * 16 <= locks && locks < chunks * 16, "{locks} locks in {chunks} chunks");
    assert_eq!(write(&mut world, 0, 8), full);
    assert_eq!(world.info().heartbeat_reserve_bytes, 0);
    for lock in 0..locks {
        assert_eq!(world.read(a, 128 + lock * 136, 1), vec![3; 512]);
    }
    // Less than it takes: all of that is the heartbeats'.
    for snapshot in ["a@s", "a@t"] {
        world.ask(Request::SnapshotDelete { snapshot: snapshot.into() }).unwrap();
    }
    let left = world.info().heartbeat_reserve_bytes / 65536;
    for slot in 0..chunks - left - 1 {
        world.io(0, a, Op::Unmap, (filled - 1 - slot) * 128, 128, 0);
    }
    assert_eq!(world.info().heartbeat_reserve_bytes, kept - 65536);
    assert_eq!(write(&mut world, (filled - 1) * 128, 8), full);
    world.io(0, a, Op::Unmap, (filled - 1 - chunks) * 128, 128, 0);
    assert_eq!(world.info().heartbeat_reserve_bytes, kept);
    assert_eq!(write(&mut world, (filled - 1) * 128, 8), full);
    world.io(0, a, Op::Unmap, (filled - 2 - chunks) * 128, 128, 0);
    assert_eq!(write(&mut world, (filled - 1) * 128, 8), Ok(()));
    let before = world.info();
    assert_eq!((before.free_bytes, before.heartbeat_reserve_bytes), (kept, kept));
    drop(world);
    assert_eq!(check(&members(&disk)).unwrap().problems, []);
    let mut world = World::open(&disk, 3);
    let info = world.info();
    assert_eq!((info.free_bytes, info.heartbeat_reserve_bytes), (kept, kept));
}

/// Goal: when memory for maps is short, what gives nodes back still works, an UNMAP that would take one leaves its blocks and
/// says how many, zeroing that would is refused, and what is mapped already is written and read. Method: a volume of runs,
/// opened again with no memory at all.
#[test]
fn goes_on_without_memory_for_maps() {
    let disk = World::create(160 << 20);
    let mut world = World::open(&disk, 2);
    let a = world.volume("a", Provisioning::Thin);
    for piece in 0..256u64 {
        world.io(0, a, Op::Write, piece * 128, 128, 1);
    }
    let free = world.free();
    let mut world = World::open_within(&disk, members(&disk), 2, FoldWhen::Never, 0);
    let a = world.attach("a");
    let left = |world: &mut World| match world.ask(Request::Pool).unwrap() {
        Answer::Pool(info) => info.counts.unmap_left_blocks,
        other => panic!("{other:?}"),
    };
    // Half of the second stripe, all of the third, and a little of the fourth.
    world.io(0, a, Op::Unmap, 12 << 10, (12 << 10) + 128, 0);
    assert_eq!(left(&mut world), 512 + 16);
    for (stripe, byte) in [(0, 1), (1, 1), (2, 0), (3, 1)] {
        assert_eq!(world.read(a, (stripe << 13) + 8064, 128), vec![byte; 65536], "stripe {stripe}");
    }
    assert_eq!(world.free(), free + (4 << 20));
    world.io(0, a, Op::WriteZeroes, 0, 8192, 0);
    assert_eq!(world.try_io(0, a, Op::WriteZeroes, 8192, 128, 0).0, Err(IoError::OutOfSpace));
    assert_eq!(world.try_io(0, a, Op::Write, 0, 8, 3).0, Err(IoError::OutOfSpace));
    world.io(1, a, Op::Write, 8192, 8, 3);
    assert_eq!(world.read(a, 8192, 128), [vec![3; 4096], vec![1; 61440]].concat());
    world.ask(Request::VolumeDelete { volume: "a".into(), force: true }).unwrap();
    (0..100).for_each(|_| world.step());
    assert_eq!(world.free(), free + (16 << 20));
    assert_eq!(check(&members(&disk)).unwrap().problems, []);
}

/// Goal: however long copies change maps that the area for them holds, no checkpoint finds it full, and none of them fails.
/// Method: a volume of leaves without runs whose images are a sixth of the area, and for a long time copies to anywhere in it, many
/// at once, on a disk on which images take a while.
#[test]
fn checkpoints_always_find_their_segments() {
    const COPIES: usize = 600_000;
    for cores in [1, 2] {
        let disk = World::create(96 << 20);
        let mut world = World::open(&disk, cores);
        let spec = VolumeSpec {
            name: "a".into(),
            bytes: 12 << 30,
            block_bytes: 512,
            physical_block_bytes: 4096,
            provisioning: Provisioning::Thin,
            zero_detect: true,
            write_cache: false,
        };
        world.ask(Request::VolumeCreate(spec)).unwrap();
        let a = world.attach("a");
        let (sources, stripes, stripe_bytes) = (4u64, 3072u64, 4u64 << 20);
        for chunk in 0..sources * 64 {
            world.io(0, a, Op::Write, chunk * 128 + chunk % 16 * 8, 8, chunk as u8 | 1);
        }
        world.image_steps = 20;
        let mut dice = Dice(u64::from(cores));
        let (mut asked, mut out) = (0, 0);
        while asked < COPIES || out > 0 {
            while asked < COPIES && out < 64 {
                let fills = sources + (asked as u64) < stripes;
                let to = if fills { asked as u64 } else { dice.below(stripes - sources) } + sources;
                // Less than a whole stripe is never shared as one, and a little of it is enough to make it another.
                let (at, chunks) = if fills { (0, 63) } else { (dice.below(63), 1) };
                world.cores[asked % usize::from(cores)].copy(CopyIo {
                    tag: Tag(7),
                    source: a,
                    source_bytes: dice.below(sources) * stripe_bytes + (at << 16),
                    destination: a,
                    destination_bytes: to * stripe_bytes + (at << 16),
                    bytes: chunks << 16,
                });
                (asked, out) = (asked + 1, out + 1);
            }
            world.step();
            for core in &mut world.cores {
                while let Some(copied) = core.poll_copied() {
                    assert_eq!(copied.result, Ok(()), "after {asked} copies on {cores} cores");
                    out -= 1;
                }
            }
        }
        let info = world.info();
        assert!(info.counts.checkpoints > 20, "{:?}", info.counts);
        for stripe in [sources, stripes - 1] {
            assert_ne!(world.read(a, stripe * 8192, 8192 / 64).len(), 0);
        }
        assert_eq!(check(&members(&disk)).unwrap().problems, []);
    }
}

/// Goal: maps that grow faster than checkpoints tell how large they are, and then change everywhere at once, leave each checkpoint
/// the segments that it needs. Method: as many leaves as are taken of slots of two chunks each, and then blocks unmapped here and
/// there in all of them, many at once, on a disk on which images take a while.
#[test]
fn checkpoints_find_their_segments_after_a_sudden_growth() {
    let disk = World::create(96 << 20);
    let mut world = World::open(&disk, 1);
    let spec = VolumeSpec {
        name: "a".into(),
        bytes: 64 << 30,
        block_bytes: 512,
        physical_block_bytes: 4096,
        provisioning: Provisioning::Thin,
        zero_detect: true,
        write_cache: false,
    };
    world.ask(Request::VolumeCreate(spec)).unwrap();
    let a = world.attach("a");
    let (sources, stripe_bytes) = (4u64, 4u64 << 20);
    for half in 0..2 {
        for chunk in 0..sources * 64 {
            world.io(0, a, Op::Write, chunk * 128 + half * 64, 32, chunk as u8 | 1);
        }
        world.ask(Request::SnapshotCreate { volume: "a".into(), name: format!("s{half}") }).unwrap();
    }
    world.image_steps = 20;
    let (mut filled, mut out, mut refused) = (0, 0, false);
    while !refused || out > 0 {
        while !refused && out < 64 {
            world.cores[0].copy(CopyIo {
                tag: Tag(7),
                source: a,
                source_bytes: filled % sources * stripe_bytes,
                destination: a,
                destination_bytes: (sources + filled) * stripe_bytes,
                bytes: 63 << 16,
            });
            (filled, out) = (filled + 1, out + 1);
        }
        world.step();
        while let Some(copied) = world.cores[0].poll_copied() {
            refused |= copied.result == Err(IoError::OutOfSpace);
            assert!(copied.result.is_ok() || refused, "{:?} after {filled} copies", copied.result);
            out -= 1;
        }
    }
    let filled = filled - 64;
    let before = world.info().counts.checkpoints;
    let mut dice = Dice(1);
    for nth in 0..200_000u64 {
        let lba = (sources + dice.below(filled)) * 8192 + dice.below(63) * 128 + 8 * dice.below(4);
        world.cores[0].submit(Io {
            tag: Tag(nth),
            from: Core(0),
            bdev: a,
            op: Op::Unmap,
            fua: false,
            heartbeat: false,
            disposable: false,
            more_parts: 0,
            lba,
            blocks: 8,
            buf: None,
            scratch: None,
        });
        if nth % 64 == 63 {
            world.step();
            while let Some(done) = world.cores[0].poll_done() {
                assert_eq!(done.result, Ok(()), "after {nth}, with {filled} leaves");
            }
        }
    }
    (0..1000).for_each(|_| world.step());
    let info = world.info();
    assert!(info.counts.checkpoints > before + 3, "{:?}", info.counts);
    assert_eq!(check(&members(&disk)).unwrap().problems, []);
}
