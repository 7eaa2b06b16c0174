//! Pools whose chunks are in memory.

use super::*;
use bdev::lent::Lent;
use bdev::stripe::Deal;

/// What of each volume is looked at: stripes of all cores.
const LENGTH: usize = 13 << 20;

fn in_memory(disk: &Memory, cores: u16, folds: FoldWhen) -> World {
    let punch_after = Some(std::time::Duration::from_millis(5));
    let options =
        OpenOptions { cores, folds, punch_after, in_memory: true, checkpoint_percent: 1, ..OPTIONS };
    World::open_as(disk, members(disk), &options)
}

/// One write at once, by the core that has the block. Whether it was done.
fn write_now(world: &mut World, bdev: BdevId, lba: u64, data: &[u8]) -> bool {
    let owner = Deal::among(world.cores.len() as u16).owner(lba * 512);
    world.cores[owner.index()].write_now(bdev, lba, data)
}

/// Goal: volumes of a pool in memory keep what is written, whatever is shared with whom and whichever core has the chunks;
/// what is lent stays as it was; nothing of it is ever at a member; and reads and writes are done at once where the rules let
/// them. Method: writes of every shape, at once where that is possible, whole pieces whose buffers are kept, UNMAPs, zeroes,
/// copies within a core and over cores, snapshots and clones of them, held against arrays; some reads are held on to.
#[test]
fn keeps_what_is_written() {
    for (cores, folds) in [(1, FoldWhen::Never), (2, FoldWhen::Always), (3, FoldWhen::Never)] {
        let disk = World::create(192 << 20);
        let mut world = in_memory(&disk, cores, folds);
        let before = world.free();
        let names = ["a", "b"];
        let mut arrays = [vec![0u8; LENGTH], vec![0u8; LENGTH]];
        let bdevs = names.map(|name| world.volume(name, Provisioning::Thin));
        let mut dice = Dice(u64::from(cores));
        let (mut at_once, mut lent_once, mut read_once, mut snapshots) = (0, 0, 0, 0u32);
        let mut taken = Vec::new();
        let mut held: Vec<(Lent, Vec<u8>)> = Vec::new();
        for round in 0..4000u64 {
            let which = dice.below(2) as usize;
            let (bdev, core) = (bdevs[which], dice.below(u64::from(cores)) as u16);
            // Few pieces, so that they meet.
            let piece = dice.below(LENGTH as u64 / 65536 / 4) * 4 + dice.below(2);
            let blocks = [1, 3, 8, 16, 64, 128][dice.below(6) as usize];
            let first = dice.below((128 - blocks) / 8 + 1) * 8 + if blocks < 8 { dice.below(5) } else { 0 };
            let (lba, bytes) = (piece * 128 + first, blocks as usize * 512);
            let range = lba as usize * 512..lba as usize * 512 + bytes;
            let byte = 1 + (round % 250) as u8;
            match dice.below(16) {
                0..=4 => {
                    let op = if blocks < 64 && dice.below(8) == 0 { Op::OrWrite } else { Op::Write };
                    world.io(core, bdev, op, lba, blocks, byte);
                    let or = op == Op::OrWrite;
                    arrays[which][range]
                        .iter_mut()
                        .for_each(|have| *have = if or { *have | byte } else { byte });
                }
                5..=8 => {
                    if write_now(&mut world, bdev, lba, &vec![byte; bytes]) {
                        at_once += 1;
                        arrays[which][range].fill(byte);
                    }
                }
                9 => {
                    world.io(core, bdev, Op::Unmap, lba, blocks, 0);
                    arrays[which][range].fill(0);
                }
                10 => {
                    assert!(!write_now(&mut world, bdev, lba / 8 * 8, &[0; 4096]), "zeroes become map state");
                    world.io(core, bdev, Op::Write, lba, blocks, 0);
                    arrays[which][range].fill(0);
                }
                11 => {
                    let mut buf = world.bufs.take(BUF_BYTES_MAX).unwrap();
                    buf.fill(byte);
                    let io = Io {
                        tag: Tag(1 << 20),
                        from: Core(core),
                        bdev,
                        op: Op::Write,
                        fua: false,
                        heartbeat: false,
                        disposable: true,
                        more_parts: 0,
                        lba: piece * 128,
                        blocks: 128,
                        buf: Some(buf),
                        scratch: None,
                    };
                    world.cores[usize::from(core)].submit(io);
                    let done = (0..10_000).find_map(|_| {
                        world.step();
                        world.cores[usize::from(core)].poll_done()
                    });
                    let done = done.unwrap();
                    assert!(done.result.is_ok());
                    world.bufs.give(done.io.buf.unwrap());
                    arrays[which][piece as usize * 65536..][..65536].fill(byte);
                }
                12 => {
                    let to = dice.below(LENGTH as u64 / 65536 / 4) * 4;
                    let from = piece & !1;
                    let count = [1, 2, 64][dice.below(3) as usize];
                    let shift = if dice.below(4) == 0 { 4096 } else { 0 };
                    let (from, to, count) = (from * 65536, to * 65536 + shift, count * 65536);
                    if from.max(to) + count <= LENGTH as u64 {
                        let other = bdevs[1 - which];
                        world.copy((bdev, from), (other, to), count);
                        let copied = arrays[which][from as usize..(from + count) as usize].to_vec();
                        arrays[1 - which][to as usize..(to + count) as usize].copy_from_slice(&copied);
                    }
                }
                13 if round % 7 == 0 && snapshots < 20 => {
                    snapshots += 1;
                    let volume = names[which].to_owned();
                    let snapshot = format!("{volume}@s{snapshots}");
                    world.ask(Request::SnapshotCreate { volume, name: format!("s{snapshots}") }).unwrap();
                    taken.push(snapshot);
                    if taken.len() > 3 {
                        let snapshot = taken.swap_remove(dice.below(3) as usize);
                        world.ask(Request::SnapshotDelete { snapshot }).unwrap();
                    }
                }
                _ => {
                    let owner = usize::from(Deal::among(cores).owner(lba * 512).0);
                    let expected = &arrays[which][range];
                    if let Some(lent) = world.cores[owner].lend_now(bdev, lba, bytes) {
                        lent_once += 1;
                        assert!(*lent == *expected, "round {round}: lent {lba}+{blocks}");
                        held.push((lent, expected.to_vec()));
                        if held.len() > 12 {
                            held.swap_remove(dice.below(12) as usize);
                        }
                    }
                    let mut found = vec![0xee; bytes];
                    if world.cores[owner].read_now(bdev, lba, &mut found) {
                        read_once += 1;
                        assert!(found == *expected, "round {round}: read {lba}+{blocks}");
                    }
                }
            }
            assert!(held.iter().all(|(lent, expected)| **lent == **expected), "round {round}");
            if round % 500 == 499 {
                for (bdev, array) in bdevs.iter().zip(&arrays) {
                    assert!(world.bytes(*bdev, LENGTH as u64) == *array, "round {round} on {cores} cores");
                }
            }
        }
        assert!(at_once > 100 && lent_once > 200 && read_once > 200, "{at_once} {lent_once} {read_once}");
        let data = &disk.0.lock().unwrap()[DATA_AT as usize..].to_vec();
        assert!(data.iter().all(|&byte| byte == 0xee), "nobody writes chunks to a member");
        assert_eq!(check(&members(&disk)).unwrap().problems, []);
        for snapshot in taken {
            world.ask(Request::SnapshotDelete { snapshot }).unwrap();
        }
        for name in names {
            world.ask(Request::VolumeDelete { volume: name.into(), force: true }).unwrap();
        }
        for _ in 0..1000 {
            world.step();
        }
        assert_eq!(world.free(), before, "space comes back");
        assert!(held.iter().all(|(lent, expected)| **lent == **expected));
    }
}

/// Goal: a write is done at once only where the ordinary one would be in place and answered: not before the record is durable
/// that brought the slot there, not where it is shared or frozen, held by a snapshot, unwritten, read-only or gone, nor
/// beside one who has blocks alone. Method: each in turn, with a core's disk that is asked for nothing meanwhile.
#[test]
fn writes_at_once_where_it_may() {
    let disk = World::create(96 << 20);
    let mut world = in_memory(&disk, 2, FoldWhen::Never);
    let a = world.volume("a", Provisioning::Thin);
    let data = [7u8; 4096];
    assert!(!write_now(&mut world, a, 0, &data), "nothing is there");
    let zeroes = world.cores[0].lend_now(a, 0, 65536).unwrap();
    assert!(zeroes.len() == 65536 && zeroes.iter().all(|&byte| byte == 0), "zeroes are lent");
    assert!(world.cores[1].lend_now(a, 0, 4096).is_none(), "another core's");
    world.io(0, a, Op::Write, 0, 128, 1);
    world.io(0, a, Op::Write, 8192, 128, 1);
    let before = world.info().counts;
    assert!(write_now(&mut world, a, 8, &data) && write_now(&mut world, a, 3, &data[..512]));
    assert!(write_now(&mut world, a, 8192 + 120, &data));
    let after = world.info().counts;
    assert_eq!(after.writes_in_place, before.writes_in_place + 3);
    assert_eq!(after.host_write_bytes, before.host_write_bytes + 2 * 4096 + 512);
    assert_eq!(after.records, before.records, "nothing but data");
    // The record that brings a slot to its place is on its way.
    let mut buf = world.bufs.take(4096).unwrap();
    buf.fill(3);
    let io = Io {
        tag: Tag(77),
        from: Core(0),
        bdev: a,
        op: Op::Write,
        fua: false,
        heartbeat: false,
        disposable: false,
        more_parts: 0,
        lba: 256,
        blocks: 8,
        buf: Some(buf),
        scratch: None,
    };
    world.cores[0].submit(io);
    let commit = (0..100).find_map(|_| {
        world.now += 1_000_000;
        world.cores[0].turn(Time(world.now));
        world.cores[0].poll_disk()
    });
    let commit = commit.unwrap();
    assert!(world.cores[0].poll_done().is_none() && commit.offset_bytes < DATA_AT);
    assert_eq!(world.cores[0].lend_now(a, 256, 4096).unwrap()[0], 3, "what is not durable is read");
    assert!(!write_now(&mut world, a, 256, &data), "a crash would take the slot back");
    assert!(write_now(&mut world, a, 0, &data), "another slot's is durable");
    let done = world.disk.perform(commit);
    world.cores[0].complete(done);
    assert_eq!(world.cores[0].poll_done().unwrap().io.tag, Tag(77));
    assert!(write_now(&mut world, a, 256, &data));
    // Shared.
    world.copy((a, 0), (a, 64 << 20), 65536);
    assert!(!write_now(&mut world, a, 0, &data), "shared with its copy");
    world.ask(Request::SnapshotCreate { volume: "a".into(), name: "s".into() }).unwrap();
    assert!(!write_now(&mut world, a, 8192, &data), "the snapshot's, too");
    world.io(0, a, Op::Write, 8192, 8, 9);
    assert!(write_now(&mut world, a, 8192, &data), "on blocks of its own again");
    assert!(!write_now(&mut world, a, 8200, &data), "its neighbours shine through");
    assert!(!write_now(&mut world, a, 8192, &vec![1; 8192]));
    let lent = world.cores[1].lend_now(a, 8192, 4096).unwrap();
    assert_eq!(lent[0], 7);
    assert!(world.cores[1].lend_now(a, 8192, 8192).is_none(), "in two places");
    let mut both = [0; 8192];
    assert!(world.cores[1].read_now(a, 8192, &mut both) && (both[0], both[8191]) == (7, 1));
    // A hold, as of a snapshot, lets no write through.
    world.cores[1].router.hold(a, 99);
    assert!(!write_now(&mut world, a, 8192, &data) && world.cores[1].read_now(a, 8192, &mut both));
    world.cores[1].router.release(a);
    assert!(write_now(&mut world, a, 8192, &data));
    // The pool takes what is larger, or more of it, from its start on only.
    let sizes = vec![MemberSize { member: 0, bytes: 512 << 20 }];
    let refusal = world.ask(Request::Grow { sizes, added: Vec::new() }).unwrap_err();
    assert_eq!(refusal.against, Against::Invalid);
    world.ask(Request::SnapshotDelete { snapshot: "a@s".into() }).unwrap();
    world.ask(Request::VolumeDelete { volume: "a".into(), force: true }).unwrap();
    assert!(!write_now(&mut world, a, 8192, &data) && !world.cores[1].read_now(a, 8192, &mut both));
    assert!(world.cores[1].lend_now(a, 8192, 4096).is_none());
}
