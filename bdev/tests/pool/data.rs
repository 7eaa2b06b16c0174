//! What is written is read: data, zeroes, and compare and write.

use super::*;

/// Goal: what is written is read, by either core, before and after reopening with another number of cores; what nobody
/// wrote is zeroes; space comes back. Method: writes of all shapes over stripes of both cores.
#[test]
fn keeps_what_is_written() {
    let disk = World::create(96 << 20);
    let mut world = World::open(&disk, 2);
    let before = world.free();
    let a = world.volume("a", Provisioning::Thin);
    assert_eq!(world.read(a, 100, 8), vec![0; 4096]);
    let shapes = [(0, 128), (8192 + 3, 5), (16384 + 7, 2), (24576, 8), (9, 1)];
    for (byte, &(lba, blocks)) in (1..).zip(&shapes) {
        world.io(byte as u16 % 2, a, Op::Write, lba, blocks, byte);
    }
    let look = |world: &mut World| {
        let first = world.read(a, 0, 128);
        assert!(first[..9 * 512].iter().all(|&b| b == 1) && first[9 * 512..10 * 512].iter().all(|&b| b == 5));
        assert!(first[10 * 512..].iter().all(|&b| b == 1));
        assert_eq!(world.read(a, 8192, 3), vec![0; 3 * 512]);
        assert_eq!(world.read(a, 8195, 5), vec![2; 5 * 512]);
        assert_eq!(world.read(a, 16390, 4)[512..1536], vec![3; 1024]);
        assert_eq!(world.read(a, 24576, 16), [vec![4; 4096], vec![0; 4096]].concat());
    };
    look(&mut world);
    for cores in [2, 3, 1] {
        let mut world = World::open(&disk, cores);
        assert_eq!(world.attach("a"), a);
        look(&mut world);
        let report = check(&members(&disk)).unwrap();
        assert_eq!(report.problems, []);
        assert_eq!(report.volumes[0].1, 64 * 1024 + 4 * 4096);
    }
    let mut world = World::open(&disk, 2);
    world.attach("a");
    world.io(0, a, Op::Unmap, 0, (1 << 30) / 512, 0);
    look_zero(&mut world, a);
    assert_eq!(world.free(), before);
}

/// Goal: where a range is said to lie it has what a read finds, and what lies apart, is another core's or of a volume that is
/// gone is not said to lie anywhere. Method: blocks written and unmapped one by one over a snapshot, on two cores, and ranges
/// of every shape in their slots.
#[test]
fn tells_where_bytes_lie() {
    let disk = World::create(96 << 20);
    let mut world = World::open(&disk, 2);
    let a = world.volume("a", Provisioning::Thin);
    let slots = [0, 8192];
    for first in slots {
        world.io(0, a, Op::Write, first, 128, 1);
        world.io(0, a, Op::Write, first + 256, 64, 2);
    }
    world.ask(Request::SnapshotCreate { volume: "a".into(), name: "s".into() }).unwrap();
    for first in slots {
        for (nth, block) in [3, 4, 9, 15].into_iter().enumerate() {
            world.io(1, a, Op::Write, first + block * 8, 8, 10 + nth as u8);
        }
        world.io(1, a, Op::Unmap, first + 8 * 6, 8, 0);
    }
    let (mut together, mut zeroes) = (0, 0);
    for (core, first) in [(0, 0), (0, 8192), (1, 0), (1, 8192)] {
        for (lba, blocks) in (0..384).flat_map(|lba| [1, 3, 8, 16, 29, 128].map(|blocks| (lba, blocks))) {
            let (lba, bytes) = (first + lba, blocks * 512);
            let Some(place) = world.cores[core].place_now(a, lba, bytes) else { continue };
            let found = match place {
                Place::Zeroes => vec![0; bytes],
                Place::File { file, offset_bytes } => {
                    assert_eq!(file, FileId(0));
                    together += 1;
                    disk.0.lock().unwrap()[offset_bytes as usize..][..bytes].to_vec()
                }
            };
            zeroes += usize::from(place == Place::Zeroes);
            assert!(found == world.read(a, lba, blocks as u64), "{lba}+{blocks}");
        }
    }
    assert!(together > 500 && zeroes > 100, "{together} {zeroes}");
    let own: Vec<bool> = (0..2).map(|core| world.cores[core].place_now(a, 0, 512).is_some()).collect();
    assert_eq!(own.iter().filter(|&&own| own).count(), 1, "a stripe has one owner");
    assert_eq!(world.cores[0].place_now(BdevId(VOLUMES_FROM + 99), 0, 512), None);
}

/// Goal: what is mapped is told run by run, over stripes of both cores. Method: one block, a gap, a whole slot.
#[test]
fn tells_what_is_mapped() {
    let disk = World::create(96 << 20);
    let mut world = World::open(&disk, 2);
    let a = world.volume("a", Provisioning::Thin);
    world.io(0, a, Op::Write, 8, 8, 1);
    world.io(0, a, Op::Write, 128, 128, 1);
    world.io(0, a, Op::Write, 8192, 8, 1);
    let (mut at, mut runs) = (0u64, Vec::new());
    while at < 5 << 20 {
        world.cores[0].status(Tag(5), a, at, (5 << 20) - at);
        let told = loop {
            world.step();
            if let Some(told) = world.cores[0].poll_status() {
                break told;
            }
        };
        assert_eq!(told.from_bytes, at);
        runs.push((told.mapped, told.bytes));
        at += told.bytes;
    }
    let stripe = 4 << 20;
    let rest = (stripe - 131_072, (1 << 20) - 4096);
    assert_eq!(
        runs,
        [
            (false, 4096),
            (true, 4096),
            (false, 65536 - 8192),
            (true, 65536),
            (false, rest.0),
            (true, 4096),
            (false, rest.1)
        ]
    );
}

/// Goal: zeroes over what is zero already change nothing, and are answered all the same.
#[test]
fn zeroes_over_zeroes() {
    let disk = World::create(96 << 20);
    let mut world = World::open(&disk, 1);
    let a = world.volume("a", Provisioning::Thin);
    world.io(0, a, Op::Write, 8, 16, 0);
    world.io(0, a, Op::Write, 8, 8, 7);
    world.io(0, a, Op::Write, 8, 16, 0);
    world.io(0, a, Op::Unmap, 0, 1024, 0);
    assert_eq!(world.read(a, 0, 128), vec![0; 65536]);
}

/// Goal: a thousand writes of one logical block at once, eight to each block of the map, all end, and each is there.
#[test]
fn small_writes_at_once() {
    let disk = World::create(96 << 20);
    let mut world = World::open(&disk, 2);
    let a = world.volume("a", Provisioning::Thin);
    for round in 0..4u64 {
        for nth in 0..256u64 {
            let mut buf = world.bufs.take(512).unwrap();
            buf.fill(nth as u8 ^ round as u8);
            let (tag, from) = (Tag(1000 + nth), Core(0));
            world.cores[0].submit(Io {
                tag,
                from,
                bdev: a,
                op: Op::Write,
                fua: false,
                heartbeat: false,
                disposable: false,
                more_parts: 0,
                lba: nth,
                blocks: 1,
                buf: Some(buf),
                scratch: None,
            });
        }
        let mut ended = 0;
        for _ in 0..2000 {
            world.step();
            while let Some(done) = world.cores[0].poll_done() {
                assert_eq!(done.result, Ok(()));
                ended += 1;
            }
        }
        assert_eq!(ended, 256, "round {round}");
        for nth in 0..256u64 {
            assert_eq!(world.read(a, nth, 1), vec![nth as u8 ^ round as u8; 512]);
        }
    }
}

/// Goal: a volume that is written in sequence, many writes at once, has its stripes in one piece each, also where snapshots
/// had them in pieces. Method: what the map says of itself.
#[test]
fn what_is_written_in_sequence_is_one_piece() {
    let disk = World::create(512 << 20);
    let mut world = World::open(&disk, 1);
    let a = world.volume("a", Provisioning::Thin);
    let runs = |world: &World| {
        let text = format!("{:?}", world.cores[0]);
        (text.matches("Run {").count(), text.matches("Dense(").count() + text.matches("Whole(").count())
    };
    let all = |world: &mut World| {
        let (mut next, mut ended) = (0u64, 0u64);
        while ended < 1024 {
            while next < 1024 && next - ended < 32 {
                let mut buf = world.bufs.take(65536).unwrap();
                buf.fill(7);
                world.cores[0].submit(Io {
                    tag: Tag(1000 + next),
                    from: Core(0),
                    bdev: a,
                    op: Op::Write,
                    fua: false,
                    heartbeat: false,
                    disposable: false,
                    more_parts: 0,
                    lba: next * 128,
                    blocks: 128,
                    buf: Some(buf),
                    scratch: None,
                });
                next += 1;
            }
            world.step();
            while let Some(done) = world.cores[0].poll_done() {
                assert_eq!(done.result, Ok(()));
                ended += 1;
            }
        }
    };
    all(&mut world);
    assert_eq!(runs(&world), (16, 0));
    for round in 0..60 {
        world.ask(Request::SnapshotCreate { volume: "a".into(), name: format!("s{round}") }).unwrap();
        world.io(0, a, Op::Write, (round * 5003 * 8) % 131_072, 8, 1);
    }
    world.ask(Request::SnapshotCreate { volume: "a".into(), name: "end".into() }).unwrap();
    assert_eq!(runs(&world), (16, 60));
    all(&mut world);
    assert_eq!(runs(&world), (32, 60));
}

/// Goal: a compare and write of any length is one step wherever it lies: in a piece, over pieces, over the edge between two
/// cores' stripes; a difference is told where it is and nothing is written; one given up does nothing; past the end it is
/// refused. Method: lengths and places, with the only difference in each half; all of it from both cores.
#[test]
fn swaps_of_any_length_are_one_step() {
    for cores in [1, 2, 3] {
        let disk = World::create(96 << 20);
        let mut world = World::open(&disk, cores);
        let a = world.volume("a", Provisioning::Thin);
        let mut now = 0;
        for (lba, blocks) in
            [(0, 1), (100, 28), (127, 2), (8191, 2), (8188, 8), (8000, 255), (8192, 255), (16_300, 200)]
        {
            for core in 0..cores {
                let bytes = blocks * 512;
                let is = |world: &mut World| {
                    let read: Vec<u8> =
                        (lba..lba + blocks as u64).flat_map(|lba| world.read(a, lba, 1)).collect();
                    read
                };
                let before = is(&mut world);
                for at in [0, bytes / 2, bytes - 1] {
                    let mut wrong = before.clone();
                    wrong[at] ^= 1;
                    let differs = IoError::Miscompare { offset_bytes: at as u32 };
                    assert_eq!(world.swap(core, a, lba, &wrong, 99), Err(differs), "{lba}+{blocks}");
                    assert_eq!(is(&mut world), before);
                }
                now += 1;
                assert_eq!(world.swap(core, a, lba, &before, now), Ok(()));
                assert_eq!(is(&mut world), vec![now; bytes]);
            }
        }
        assert_eq!(world.swap(0, a, (1 << 21) - 100, &vec![0; 200 * 512], 1), Err(IoError::OutOfRange));
        // Given up: before it has begun anywhere, and then at each step on its way.
        for steps in 0..8 {
            let before: Vec<u8> = (8188..8196).flat_map(|lba| world.read(a, lba, 1)).collect();
            let tag = world.swap_begin(0, a, 8188, &before, 200 + steps);
            (0..steps).for_each(|_| world.step());
            let (storage, mut told) = (&mut world.cores[0], Vec::new());
            storage.router.abandon(tag.0, |core, bdev, tag| told.push((core, bdev, tag)));
            (0..cores).for_each(|core| world.cores[usize::from(core)].shard.abandon(Core(0), a, tag.0));
            let result = loop {
                if let Some(result) = world.swap_end(0, tag) {
                    break result;
                }
                world.step();
            };
            let after: Vec<u8> = (8188..8196).flat_map(|lba| world.read(a, lba, 1)).collect();
            match result {
                Ok(()) => assert_eq!(after, vec![200 + steps; 8 * 512]),
                Err(IoError::ABANDONED) => assert_eq!(after, before),
                other => panic!("{other:?}"),
            }
        }
        drop(world);
        assert_eq!(check(&members(&disk)).unwrap().problems, []);
    }
}
