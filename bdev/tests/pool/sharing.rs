//! Snapshots, clones and copies.

use super::*;
use bdev::pool::mail::{self, Tell};
use bdev::shard::Mail;
use bdev::stripe::Deal;

/// Goal: snapshots stay what they were, clones go their own way, roll back brings it back, deleting gives space back;
/// also after reopening at each step.
#[test]
fn snapshots_and_clones() {
    let disk = World::create(96 << 20);
    let mut world = World::open(&disk, 2);
    let before = world.free();
    let a = world.volume("a", Provisioning::Thin);
    world.io(0, a, Op::Write, 0, 128, 1);
    for name in ["s1", "s2", "s3"] {
        world.ask(Request::SnapshotCreate { volume: "a".into(), name: name.into() }).unwrap();
        let byte = name.as_bytes()[1] - b'0' + 1;
        world.io(1, a, Op::Write, u64::from(byte) * 8, 8, byte);
    }
    world
        .ask(Request::VolumeClone { snapshot: "a@s2".into(), name: "c".into(), provisioning: None })
        .unwrap();
    let expect = |changed: &[u8]| {
        let mut bytes = vec![1u8; 65536];
        for &byte in changed {
            bytes[usize::from(byte) * 4096..][..4096].fill(byte);
        }
        bytes
    };
    for reopened in [false, true] {
        if reopened {
            world = World::open(&disk, 2);
            world.attach("a");
        }
        let c = world.attach("c");
        assert_eq!(world.read(a, 0, 128), expect(&[2, 3, 4]));
        assert_eq!(world.read(c, 0, 128), expect(&[2]));
    }
    let c = world.attach("c");
    world.io(0, c, Op::Write, 72, 8, 9);
    assert_eq!(world.read(c, 0, 128), expect(&[2, 9]));
    assert_eq!(world.read(a, 0, 128), expect(&[2, 3, 4]));
    let Answer::Diff(diff) =
        world.ask(Request::SnapshotDiff { from: "a@s1".into(), to: "a@s3".into(), from_bytes: 0 }).unwrap()
    else {
        panic!("a diff")
    };
    assert_eq!((diff.extents, diff.next_bytes), (vec![(2 * 4096, 2 * 4096)], None));
    let roll = |force| Request::VolumeRollback { volume: "a".into(), snapshot: "s1".into(), force };
    assert!(world.ask(roll(false)).is_err());
    world.ask(roll(true)).unwrap();
    assert_eq!(world.read(a, 0, 128), expect(&[]));
    world = World::open(&disk, 1);
    world.attach("a");
    assert_eq!(world.read(a, 0, 128), expect(&[]));
    for name in ["s2", "s1", "s3"] {
        world.ask(Request::SnapshotDelete { snapshot: format!("a@{name}") }).unwrap();
    }
    let c = world.attach("c");
    assert_eq!(world.read(c, 0, 128), expect(&[2, 9]));
    for name in ["a", "c"] {
        world.ask(Request::VolumeDelete { volume: name.into(), force: true }).unwrap();
    }
    assert_eq!(world.free(), before);
    assert_eq!(check(&members(&disk)).unwrap().problems, []);
}

/// Goal: a chunk with as many names as copies may make is copied as bytes, in whatever order an overlap asks for; that is
/// counted, and names that go make room again. Method: three names may be, and copies inside a volume and to another.
#[test]
fn full_counts_are_copied_as_bytes() {
    let disk = World::create(160 << 20);
    let mut world = World::open_as(&disk, members(&disk), &OpenOptions { cores: 2, names_max: 3, ..OPTIONS });
    let (a, b) = (world.volume("a", Provisioning::Thin), world.volume("b", Provisioning::Thin));
    let mut array = vec![0u8; 4 << 20];
    for piece in 0..16u64 {
        world.io((piece % 2) as u16, a, Op::Write, piece * 128, 128, piece as u8 + 1);
        array[piece as usize * 65536..][..65536].fill(piece as u8 + 1);
    }
    let (length, half) = (1u64 << 20, 1usize << 19);
    let moved = |copied: Copied| (copied.moved.shared_bytes, copied.moved.count_full_bytes);
    assert_eq!(moved(world.copy((a, 0), (b, 0), length)), (length, 0));
    assert_eq!(moved(world.copy((a, 0), (b, length), length)), (length, 0));
    assert_eq!(moved(world.copy((a, 0), (b, 2 * length), length)), (0, length));
    assert!(world.bytes(b, 3 * length) == array[..1 << 20].repeat(3));
    // Over itself, to behind and to before: only from one end is right.
    assert_eq!(moved(world.copy((a, 0), (a, half as u64), length)), (0, length));
    array.copy_within(..1 << 20, half);
    assert!(world.bytes(a, 4 << 20) == array);
    world.io(0, b, Op::Unmap, 0, 8192, 0);
    world.copy((a, 4096), (a, length), length - 4096);
    array.copy_within(4096..1 << 20, 1 << 20);
    world.copy((a, half as u64), (a, 0), length);
    array.copy_within(half..half + (1 << 20), 0);
    assert!(world.bytes(a, 4 << 20) == array);
    let Answer::Pool(info) = world.ask(Request::Pool).unwrap() else { panic!() };
    let counts = info.counts;
    assert!(counts.copy_count_full_bytes >= 2 * length, "{counts:?}");
    // Where one of the three has gone there is room for one again.
    let before = world.bytes(b, 4 << 20);
    world.io(0, b, Op::Unmap, 4096, 2048, 0);
    assert_eq!(moved(world.copy((b, 2 * length), (b, 0), length)), (length, 0));
    let after = world.bytes(b, 4 << 20);
    assert!(after[..1 << 20] == before[2 << 20..3 << 20] && after[3 << 20..] == before[3 << 20..]);
    assert_eq!(check(&members(&disk)).unwrap().problems, []);
    let mut world = World::open(&disk, 3);
    let (a, b) = (world.attach("a"), world.attach("b"));
    assert!(world.bytes(a, 4 << 20) == array && world.bytes(b, 4 << 20) == after);
}

/// Goal: a copy that lines up moves pointers only, one that doesn't moves bytes, overlapping ones do as memmove does;
/// the copy goes its own way.
#[test]
fn copies() {
    let disk = World::create(160 << 20);
    let mut world = World::open(&disk, 2);
    let a = world.volume("a", Provisioning::Thin);
    let b = world.volume("b", Provisioning::Thin);
    let mut array = vec![0u8; 16 << 20];
    for piece in 0..128u64 {
        let byte = piece as u8 + 1;
        world.io((piece % 2) as u16, a, Op::Write, piece * 128, 128, byte);
        array[piece as usize * 65536..][..65536].fill(byte);
    }
    let free = world.free();
    let copy = |world: &mut World, to: BdevId, from_bytes: u64, to_bytes: u64, bytes: u64| {
        world.copy((a, from_bytes), (to, to_bytes), bytes)
    };
    let copied = copy(&mut world, b, 0, 0, 8 << 20);
    assert_eq!((copied.moved.shared_bytes, copied.moved.copied_bytes()), (8 << 20, 0));
    assert_eq!(world.free(), free);
    assert!(world.bytes(b, 8 << 20) == array[..8 << 20]);
    world.io(0, b, Op::Write, 8, 8, 0xFE);
    assert_eq!(world.read(a, 0, 128), vec![1; 65536]);
    let copied = copy(&mut world, a, 512, (5 << 20) + 512, 3 << 20);
    array.copy_within(512..512 + (3 << 20), (5 << 20) + 512);
    assert_eq!(copied.moved.copied_bytes(), 4096);
    let copied = copy(&mut world, a, 0, 65536 * 3, 6 << 20);
    array.copy_within(0..6 << 20, 65536 * 3);
    assert_eq!(copied.moved.copied_bytes(), 0);
    copy(&mut world, a, 1 << 20, 0, 6 << 20);
    array.copy_within(1 << 20..7 << 20, 0);
    let copied = copy(&mut world, a, 4096, 65536 * 2 + 8192, 1 << 20);
    array.copy_within(4096..4096 + (1 << 20), 65536 * 2 + 8192);
    assert_eq!(copied.moved.shared_bytes, 0);
    match world.ask(Request::Pool).unwrap() {
        Answer::Pool(info) => {
            assert_eq!((info.counts.copy_edge_bytes, info.counts.copy_misaligned_bytes), (4096, 1 << 20));
            assert_eq!(info.counts.copy_shared_bytes, ((8 + 3 + 6 + 6) << 20) - 4096);
        }
        other => panic!("{other:?}"),
    }
    assert!(world.bytes(a, 16 << 20) == array);
    let mut world = World::open(&disk, 3);
    world.attach("a");
    world.attach("b");
    assert!(world.bytes(a, 16 << 20) == array);
    assert_eq!(check(&members(&disk)).unwrap().problems, []);
}

/// Goal: stripes in one piece and slots in many are copied, snapshotted, folded and found again as any others. Method:
/// random stripes written whole, small writes, copies that line up, snapshots taken and dropped, time in which folds may
/// happen, and openings, against an array for each volume and snapshot; the walk finds nothing wrong, and folding gave
/// space back.
#[test]
fn runs_and_pieces() {
    const CHUNK: u64 = 65536;
    const BYTES: u64 = 12 << 20;
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = move |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    let disk = World::create(400 << 20);
    let open = |cores| World::open_members(&disk, members(&disk), cores, FoldWhen::Quiet);
    let mut world = open(2);
    let mut bdevs = [world.volume("a", Provisioning::Thin), world.volume("b", Provisioning::Thin)];
    let mut arrays = [vec![0u8; BYTES as usize], vec![0u8; BYTES as usize]];
    let mut snapshots: Vec<(String, Vec<u8>)> = Vec::new();
    let (mut folds, mut shared) = (0, 0);
    let read_all = |world: &mut World, bdev: BdevId| {
        (0..BYTES / CHUNK).flat_map(|piece| world.read(bdev, piece * 128, 128)).collect::<Vec<u8>>()
    };
    let folds_of = |world: &mut World| match world.ask(Request::Pool).unwrap() {
        Answer::Pool(info) => info.counts.folds,
        other => panic!("{other:?}"),
    };
    for round in 0..600u64 {
        let which = random(2) as usize;
        let core = random(world.cores.len() as u64) as u16;
        match random(12) {
            0 => {
                let (stripe, byte) = (random(3), round as u8 | 1);
                for piece in stripe * 64..(stripe + 1) * 64 {
                    world.io(core, bdevs[which], Op::Write, piece * 128, 128, byte);
                }
                arrays[which][(stripe << 22) as usize..((stripe + 1) << 22) as usize].fill(byte);
            }
            1..=3 => {
                let to = random(2) as usize;
                let bytes = if random(2) == 0 { 4 << 20 } else { (1 + random(80)) * CHUNK };
                let unit = if bytes == 4 << 20 { 4 << 20 } else { CHUNK };
                let mut place = || random((BYTES - bytes) / unit + 1) * unit;
                let (from_bytes, to_bytes) = (place(), place());
                world.cores[usize::from(core)].copy(CopyIo {
                    tag: Tag(7),
                    source: bdevs[which],
                    source_bytes: from_bytes,
                    destination: bdevs[to],
                    destination_bytes: to_bytes,
                    bytes,
                });
                let copied = (0..10_000)
                    .find_map(|_| {
                        world.step();
                        world.cores[usize::from(core)].poll_copied()
                    })
                    .unwrap();
                assert_eq!((copied.result, copied.moved.copied_bytes()), (Ok(()), 0));
                shared += copied.moved.shared_bytes;
                let moved = arrays[which][from_bytes as usize..][..bytes as usize].to_vec();
                arrays[to][to_bytes as usize..][..bytes as usize].copy_from_slice(&moved);
            }
            4 if snapshots.len() < 4 => {
                let name = format!("s{round}");
                let volume = ["a", "b"][which].to_owned();
                world.ask(Request::SnapshotCreate { volume: volume.clone(), name: name.clone() }).unwrap();
                snapshots.push((format!("{volume}@{name}"), arrays[which].clone()));
            }
            5 if !snapshots.is_empty() => {
                let place = random(snapshots.len() as u64) as usize;
                let (snapshot, content) = snapshots.swap_remove(place);
                let (name, provisioning) = ("clone".to_owned(), Some(Provisioning::Thin));
                world.ask(Request::VolumeClone { snapshot: snapshot.clone(), name, provisioning }).unwrap();
                let clone = world.attach("clone");
                assert!(read_all(&mut world, clone) == content, "{snapshot} in round {round}");
                world.ask(Request::VolumeDelete { volume: "clone".into(), force: true }).unwrap();
                world.ask(Request::SnapshotDelete { snapshot }).unwrap();
            }
            6 => {
                // Folds begin while nobody asks for anything, and a snapshot may come in the middle of one.
                for _ in 0..1000 + random(100) {
                    world.step();
                }
            }
            7 if round % 4 == 0 => {
                folds += folds_of(&mut world);
                world = open(1 + random(3) as u16);
                bdevs = [world.attach("a"), world.attach("b")];
            }
            _ => {
                // Few places, so that one slot comes to have blocks of many times.
                let (block, byte) = (random(3) * 1024 + random(40), round as u8 | 1);
                world.io(core, bdevs[which], Op::Write, block * 8, 8, byte);
                arrays[which][block as usize * 4096..][..4096].fill(byte);
            }
        }
    }
    for (bdev, array) in bdevs.iter().zip(&arrays) {
        assert!(read_all(&mut world, *bdev) == *array);
    }
    while let Some((snapshot, _)) = snapshots.pop() {
        world.ask(Request::SnapshotDelete { snapshot }).unwrap();
    }
    // Checkpoints and quiet: all pieces of what snapshots had are brought together.
    let before = world.free();
    let mut last = u64::MAX;
    while last != folds_of(&mut world) {
        last = folds_of(&mut world);
        for _ in 0..62_000 {
            world.step();
        }
    }
    folds += last;
    // What both volumes have as one leaf isn't folded.
    assert!(folds >= 8 && shared > 100 << 20, "{folds} folds, {shared} bytes shared");
    assert!(world.free() >= before, "folding has taken space");
    for (bdev, array) in bdevs.iter().zip(&arrays) {
        assert!(read_all(&mut world, *bdev) == *array);
    }
    assert_eq!(check(&members(&disk)).unwrap().problems, []);
    let mut world = open(2);
    for (name, array) in ["a", "b"].into_iter().zip(&arrays) {
        let bdev = world.attach(name);
        assert!(read_all(&mut world, bdev) == *array);
    }
}

/// Goal: what tokens hold is what was copied to it, also after its source has changed; it counts as nobody's; and at the next
/// opening nothing of it is left, whichever way the program ended and however many cores there are then: its chunks are
/// free, a check finds nothing wrong, and what is made later has nothing of it. Method: several lives, with checkpoints
/// between and without, each ended without a word; volumes of every life are compared with what they were.
#[test]
fn tokens_end_with_the_program() {
    const LENGTH: u64 = 9 << 20;
    let disk = World::create(160 << 20);
    let open = |cores, checkpoint_percent| {
        let options = OpenOptions { cores, checkpoint_percent, folds: FoldWhen::Always, ..OPTIONS };
        World::open_as(&disk, members(&disk), &options)
    };
    let mut world = open(2, CHECKPOINT_PERCENT);
    let mut checkpoints = 0;
    let empty = world.free();
    let source = world.volume("source", Provisioning::Thin);
    assert_ne!(tokens_of(source), Some(source), "a number of its own");
    for (life, (cores, percent)) in (0u8..).zip([(2, CHECKPOINT_PERCENT), (2, 1), (3, 1), (1, 50), (2, 1)]) {
        let source = world.attach("source");
        let store = tokens_of(source).unwrap();
        for piece in 0..LENGTH / 65536 {
            world.io(0, source, Op::Write, piece * 128, 128, 10 + life);
        }
        // Neither end is the end of a block.
        let (first, bytes, place) = (512 * 3, LENGTH - 512 * 5, (5 << 30) + 512 * 3);
        let populated = world.copy((source, first), (store, place), bytes).moved;
        assert_eq!((populated.edge_bytes, populated.misaligned_bytes), (4096 - 512 * 3 + 4096 - 512 * 2, 0));
        assert_eq!(world.info().token_bytes, LENGTH);
        for piece in 0..LENGTH / 65536 {
            world.io(0, source, Op::Write, piece * 128, 128, 90);
        }
        let name = format!("copy{life}");
        let copy = world.volume(&name, Provisioning::Thin);
        let used = world.copy((store, place), (copy, first), bytes).moved;
        assert_eq!(used.shared_bytes, populated.shared_bytes);
        // Another token, which ends before the program does.
        world.copy((source, 0), (store, 9 << 30), 4 << 20);
        let last = world.cores.len() as u16 - 1;
        world.io(last, store, Op::Unmap, (9 << 30) / 512, (4 << 20) / 512, 0);
        assert_eq!(world.info().token_bytes, LENGTH);
        let is_right = |world: &mut World, name: &str, byte: u8| {
            let volume = world.attach(name);
            let bytes = world.bytes(volume, LENGTH);
            let inside = &bytes[first as usize..(first + LENGTH - 512 * 5) as usize];
            assert!(inside.iter().all(|&found| found == byte), "{name}");
            assert!(bytes[..first as usize].iter().all(|&found| found == 0), "{name}");
        };
        is_right(&mut world, &name, 10 + life);
        let report = check(&members(&disk)).unwrap();
        assert_eq!(report.problems, []);
        checkpoints += world.info().counts.checkpoints;
        world = open(cores, percent);
        assert_eq!(check(&members(&disk)).unwrap().problems, []);
        assert_eq!(world.info().token_bytes, 0);
        assert_eq!(world.io(0, store, Op::Read, place / 512, 64, 1), vec![0; 64 * 512]);
        for life in 0..=life {
            is_right(&mut world, &format!("copy{life}"), 10 + life);
        }
        let fresh = world.volume("fresh", Provisioning::Thin);
        assert!(world.bytes(fresh, 1 << 20).iter().all(|&byte| byte == 0));
        world.ask(Request::VolumeDelete { volume: "fresh".into(), force: true }).unwrap();
    }
    for name in ["source", "copy0", "copy1", "copy2", "copy3", "copy4"] {
        world.ask(Request::VolumeDelete { volume: name.into(), force: true }).unwrap();
    }
    for _ in 0..1000 {
        world.step();
    }
    assert_eq!(world.free(), empty, "nothing of any token is left");
    assert!(checkpoints > 2, "{checkpoints} checkpoints");
    assert_eq!(world.info().volumes, 0);
}

/// Goal: a copy between devices whose blocks differ is refused where a block of the one begins within one of the other.
#[test]
fn blocks_of_other_lengths() {
    let disk = World::create(96 << 20);
    let mut world = World::open(&disk, 2);
    let small = world.volume("small", Provisioning::Thin);
    let spec = VolumeSpec {
        name: "large".into(),
        bytes: 1 << 30,
        block_bytes: 4096,
        physical_block_bytes: 4096,
        provisioning: Provisioning::Thin,
        zero_detect: true,
        write_cache: false,
    };
    world.ask(Request::VolumeCreate(spec)).unwrap();
    let large = world.attach("large");
    for (source_bytes, destination_bytes, bytes, is_exact) in [
        (512, 0, 96 << 10, false),
        (4096, 8192, 96 << 10, true),
        (0, 0, 512, false),
        (4608, 4096, 4096, false),
    ] {
        let (tag, source, destination) = (Tag(7), small, large);
        let io = CopyIo { tag, source, source_bytes, destination, destination_bytes, bytes };
        world.cores[0].copy(io);
        let copied = (0..10_000).find_map(|_| {
            world.step();
            world.cores[0].poll_copied()
        });
        let expected = if is_exact { Ok(()) } else { Err(IoError::OutOfRange) };
        assert_eq!(copied.unwrap().result, expected, "{io:?}");
    }
}

/// Goal: a core that was told what another core's stripe is like copies it to its own ones without a word until that changes, and
/// never copies what was there before. Method: copies from one core's stripe to the other's, counted, before and after each kind of
/// change.
#[test]
fn what_is_known_is_not_asked_for() {
    let disk = World::create(160 << 20);
    let mut world = World::open(&disk, 2);
    let a = world.volume("a", Provisioning::Thin);
    let deal = Deal::among(2);
    let (stripe_bytes, stripe_blocks) = (4u64 << 20, 8192);
    let of = |core| (0..200u64).filter(move |stripe| deal.owner(stripe * stripe_bytes) == Core(core));
    let sources: Vec<u64> = of(0).take(2).collect();
    let mut destinations = of(1);
    world.io(0, a, Op::Write, sources[0] * stripe_blocks, 8, 1);
    world.io(0, a, Op::Write, sources[1] * stripe_blocks, 8, 2);
    // How much was said for a copy of the first source, of which the first block is all `byte`.
    let mut copy = |world: &mut World, byte: u8| {
        let (to, before) = (destinations.next().unwrap(), world.mails);
        world.copy((a, sources[0] * stripe_bytes), (a, to * stripe_bytes), stripe_bytes);
        let said = world.mails - before;
        assert!(world.read(a, to * stripe_blocks, 8) == [byte; 4096], "stripe {to} is not all {byte}");
        said
    };
    // By name, and if there is no twin yet by its slots; then it is there.
    let mut settle = |world: &mut World, byte: u8, change: &str| {
        assert!(copy(world, byte) > 0, "behind {change}");
        copy(world, byte);
        assert_eq!((copy(world, byte), copy(world, byte)), (0, 0), "of what is known");
    };
    settle(&mut world, 1, "nothing");
    world.io(1, a, Op::Write, sources[0] * stripe_blocks, 8, 3);
    settle(&mut world, 3, "a write");
    world.io(0, a, Op::Unmap, sources[0] * stripe_blocks, 8, 0);
    settle(&mut world, 0, "an UNMAP of a block");
    world.io(0, a, Op::Write, sources[0] * stripe_blocks, 8, 5);
    world.io(0, a, Op::Unmap, sources[0] * stripe_blocks, stripe_blocks, 0);
    settle(&mut world, 0, "an UNMAP of all");
    world.copy((a, sources[1] * stripe_bytes), (a, sources[0] * stripe_bytes), stripe_bytes);
    settle(&mut world, 2, "a copy to it");
    world.ask(Request::SnapshotCreate { volume: "a".into(), name: "s".into() }).unwrap();
    settle(&mut world, 2, "a snapshot");
    world.io(1, a, Op::Write, sources[0] * stripe_blocks, 8, 4);
    settle(&mut world, 4, "a write under a snapshot");
    world.ask(Request::VolumeRollback { volume: "a".into(), snapshot: "s".into(), force: true }).unwrap();
    settle(&mut world, 2, "a roll back");
}

/// Goal: what another core's stripe was like under the root that its volume had is not taken for what it is like under the next one.
/// Method: the answer about it comes when a snapshot has given the volume a new root; then it is written to until its count is
/// what the answer's was.
#[test]
fn what_was_known_of_one_root_is_of_no_other() {
    for writes in 1..=8u8 {
        let disk = World::create(160 << 20);
        let mut world = World::open(&disk, 2);
        let (a, b) = (world.volume("a", Provisioning::Thin), world.volume("b", Provisioning::Thin));
        let deal = Deal::among(2);
        let stripe_bytes = 4u64 << 20;
        // The core of the destinations is the owner's, which hears of a new root first.
        let of = |core| (0..200u64).filter(move |stripe| deal.owner(stripe * stripe_bytes) == Core(core));
        let (source, mut destinations) = (of(1).next().unwrap() * stripe_bytes, of(0));
        let io = |to: u64| CopyIo {
            tag: Tag(7),
            source: a,
            source_bytes: source,
            destination: b,
            destination_bytes: to,
            bytes: stripe_bytes,
        };
        let copy = |world: &mut World, to: u64| {
            world.cores[0].copy(io(to));
            let copied = (0..10_000).find_map(|_| {
                world.step();
                world.cores[0].poll_copied()
            });
            assert_eq!(copied.unwrap().result, Ok(()));
        };
        let mut next = || destinations.next().unwrap() * stripe_bytes;
        world.io(0, a, Op::Write, source / 512, 8, 1);
        // A twin is made, and then the stripe changes, so that the next copy asks.
        (0..2).for_each(|_| copy(&mut world, next()));
        world.io(0, a, Op::Write, source / 512, 8, 2);
        copy(&mut world, next());
        world.io(0, a, Op::Write, source / 512, 8, 3);
        world.keeps_mail =
            |out| matches!(&out.mail, Mail::PoolTell(_, mail::Answer { tell: Tell::Named { .. }, .. }));
        world.cores[0].copy(io(next()));
        (0..20).for_each(|_| world.step());
        let kept = std::mem::take(&mut world.kept_mail);
        assert_eq!(kept.len(), 1, "the copy asks by name");
        world.keeps_mail = |_| false;
        world.ask(Request::SnapshotCreate { volume: "a".into(), name: "s".into() }).unwrap();
        for (core, out) in kept {
            world.deliver(core, out);
        }
        (0..20).for_each(|_| world.step());
        assert!(world.cores[0].poll_copied().is_some());
        // Each write to another block counts, so one of these numbers is that with which the counts are alike.
        for write in 0..writes {
            world.io(1, a, Op::Write, source / 512 + 8 * u64::from(write), 8, 10 + write);
        }
        let to = next();
        copy(&mut world, to);
        for write in 0..writes {
            let found = world.read(b, to / 512 + 8 * u64::from(write), 8);
            assert!(found == [10 + write; 4096], "{writes} writes, of them {write}");
        }
    }
}

/// Goal: whole stripes that are copied again and again to other cores' are one leaf there, with no further names and hardly any
/// memory, for as long as their source does not change; each copy is what its source was, also after it, the source, or the
/// leaf on the way has changed, or gone, and after reopening. Method: copies of two stripes, of pieces and of a run, to all of
/// four cores, with writes between them.
#[test]
fn stripes_are_shared_between_cores() {
    let disk = World::create(160 << 20);
    let mut world = World::open(&disk, 4);
    let empty = world.info().free_bytes;
    let a = world.volume("a", Provisioning::Thin);
    let stripe_bytes = 4u64 << 20;
    let mut expected: Vec<Vec<u8>> = vec![Vec::new(); 100];
    for stripe in 0..2u64 {
        expected[stripe as usize] = vec![0; 4 << 20];
        for chunk in 0..64u64 {
            // Of the first a block of each chunk, of the second all.
            let (at, blocks, byte) = if stripe == 0 { (chunk % 16, 8, 1) } else { (0, 128, 2) };
            let byte = byte + chunk as u8;
            world.io(0, a, Op::Write, stripe * 8192 + chunk * 128 + at * 8, blocks, byte);
            let from = (chunk as usize * 16 + at as usize) * 4096;
            expected[stripe as usize][from..from + blocks as usize * 512].fill(byte);
        }
    }
    let copy = |world: &mut World, expected: &mut Vec<Vec<u8>>, from: usize, to: usize| {
        let copied = world.copy((a, from as u64 * stripe_bytes), (a, to as u64 * stripe_bytes), stripe_bytes);
        assert_eq!(copied.moved.shared_bytes, stripe_bytes);
        expected[to] = expected[from].clone();
    };
    let look = |world: &mut World, expected: &[Vec<u8>]| {
        for (stripe, expected) in expected.iter().enumerate().filter(|(_, expected)| !expected.is_empty()) {
            for piece in 0..64 {
                let found = world.read(a, stripe as u64 * 8192 + piece * 128, 128);
                let from = piece as usize * 65536;
                assert!(found == expected[from..from + 65536], "stripe {stripe}, piece {piece}");
            }
        }
    };
    // Each core gets its own of each, and once it has it no chunk is named any more.
    (2..20).for_each(|to| copy(&mut world, &mut expected, to % 2, to));
    let before = world.info();
    (20..60).for_each(|to| copy(&mut world, &mut expected, to % 2, to));
    let after = world.info();
    assert_eq!(after.counts.chunk_messages, before.counts.chunk_messages);
    assert!(after.map_memory_bytes < before.map_memory_bytes + 24_576, "{after:?}");
    look(&mut world, &expected);
    // On from a copy, back to where it came from, and to itself.
    for (from, to) in [(21, 60), (60, 61), (22, 62), (62, 0), (63, 64), (1, 63), (61, 1), (25, 25)] {
        if !expected[from].is_empty() {
            copy(&mut world, &mut expected, from, to);
        }
    }
    // Whoever changes is alone with it, at either end, and goes on from there.
    for (nth, stripe) in [0usize, 33, 1, 0, 40].into_iter().enumerate() {
        let byte = 0xC0 + nth as u8;
        world.io(1, a, Op::Write, stripe as u64 * 8192 + 3 * 128, 8, byte);
        expected[stripe][3 * 65536..3 * 65536 + 4096].fill(byte);
        (70..75).for_each(|to| copy(&mut world, &mut expected, stripe, to + 5 * nth));
        look(&mut world, &expected);
    }
    // Nothing mapped is a stripe like any other.
    expected[99] = vec![0; 4 << 20];
    (2..6).for_each(|to| copy(&mut world, &mut expected, 99, to));
    world.io(0, a, Op::Unmap, 0, 8192, 0);
    expected[0] = vec![0; 4 << 20];
    look(&mut world, &expected);
    assert_eq!(check(&members(&disk)).unwrap().problems, []);
    for cores in [3, 1] {
        world = World::open(&disk, cores);
        world.attach("a");
        look(&mut world, &expected);
    }
    world.io(0, a, Op::Unmap, 0, 100 * 8192, 0);
    (0..100).for_each(|_| world.step());
    assert_eq!(world.info().free_bytes, empty);
}
