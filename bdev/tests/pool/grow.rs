//! Growing that fails, or that others meet halfway, and what is made of it at the next opening.

use super::*;
use bdev::pool::format::{Extent, SUPERBLOCK_AT, SUPERBLOCK_BYTES, Superblock};
use bdev::pool::mail::{Ask, What};
use bdev::pool::pool_on;
use bdev::shard::Mail;

/// Pieces that volume `a` has from the start, on both members.
const PIECES: u64 = 160;
/// Space for data of each disk.
const DISK_DATA: u64 = 8 << 20;

fn member(file: u16, disk: &Memory) -> Member {
    let (path, medium) = (format!("disk{file}"), Arc::new(disk.clone()));
    Member { path, file: FileId(file), align_bytes: 512, punch: false, medium }
}

fn members_of(disks: &[Memory], files: &[u16]) -> Vec<Member> {
    files.iter().map(|&file| member(file, &disks[usize::from(file)])).collect()
}

fn grow(disks: &[Memory], files: &[u16]) -> Request {
    let new = |&file: &u16| NewMember {
        path: format!("disk{file}"),
        file: FileId(file),
        align_bytes: 512,
        punch: false,
        bytes: disks[usize::from(file)].bytes(),
        mark: [file as u8; 16],
    };
    Request::Grow { sizes: Vec::new(), added: files.iter().map(new).collect() }
}

fn opened(disks: &[Memory], files: &[u16]) -> World {
    let world = World::open_members(&disks[0], members_of(disks, files), 2, FoldWhen::Never);
    World { more: disks[1..].to_vec(), ..world }
}

fn write(world: &mut World, a: BdevId, piece: u64) {
    world.io((piece / 64 % 2) as u16, a, Op::Write, piece * 128, 8, piece as u8 | 1);
}

fn assert_has(world: &mut World, a: BdevId, pieces: impl IntoIterator<Item = u64>) {
    for piece in pieces {
        assert_eq!(world.read(a, piece * 128, 8), vec![piece as u8 | 1; 4096], "piece {piece}");
    }
}

/// Disks of which the first two are a pool that has a volume `a`.
fn pool_of_two() -> Vec<Memory> {
    let first = DATA_AT + DISK_DATA;
    let disks = [first, 12 << 20, 12 << 20, 12 << 20];
    let disks = disks.map(|bytes| Memory(Arc::new(Mutex::new(vec![0xEE; bytes as usize])))).to_vec();
    let options = CreateOptions {
        name: "p".into(),
        uuid: [9; 16],
        journal_bytes: Some(4 << 20),
        metadata_bytes: Some(8 << 20),
    };
    create(&members_of(&disks, &[0, 1]), &options).unwrap();
    let mut world = opened(&disks, &[0, 1]);
    let a = world.volume("a", Provisioning::Thin);
    (0..PIECES).for_each(|piece| write(&mut world, a, piece));
    disks
}

fn copy_of(disks: &[Memory]) -> Vec<Memory> {
    disks.iter().map(|disk| Memory(Arc::new(Mutex::new(disk.0.lock().unwrap().clone())))).collect()
}

/// Goal: a growth that fails changes nothing, whichever superblock it was and whether it is there or not; a write that fails
/// then does not meet what it has left; no other growth begins before the pool is opened again, which makes of it the one or
/// the other. Method: each superblock fails once, then everything that meets the members, then an opening of those devices
/// that say that they are of a pool, as the program does it.
#[test]
fn a_growth_that_fails_waits_for_an_opening() {
    let whole = pool_of_two();
    for case in 0..24u32 {
        let (fails, lands, by_size) = (case / 4, case % 4 / 2 == 1, case % 2 == 1);
        let disks = copy_of(&whole);
        let mut world = opened(&disks, &[0, 1]);
        let a = world.attach("a");
        let before = world.info();
        world.super_fault = Some((fails, lands));
        let refused = world.ask(grow(&disks, &[2])).unwrap_err();
        assert!(
            refused.against == Against::Device && refused.cure.contains("start pollux again"),
            "{refused:?}"
        );

        world.sparse = Some(Sparse::new(5, 0));
        assert!(world.try_io(0, a, Op::Write, 0, 8, 1).0.is_err());
        world.sparse = None;
        write(&mut world, a, 0);

        let again = if by_size {
            disks[1].0.lock().unwrap().resize(16 << 20, 0xEE);
            let sizes = vec![MemberSize { member: 1, bytes: 16 << 20 }];
            Request::Grow { sizes, added: Vec::new() }
        } else {
            grow(&disks, &[3])
        };
        let refused = world.ask(again).unwrap_err();
        assert!(refused.what.contains("growing has failed"), "{refused:?}");
        let after = world.info();
        assert_eq!((after.data_bytes, after.members), (before.data_bytes, before.members));
        assert_eq!(after.grow_refused, Some(refused));
        let more = 320..360;
        more.clone().for_each(|piece| write(&mut world, a, piece));
        assert_has(&mut world, a, (0..PIECES).chain(more.clone()));
        assert!(disks[2].0.lock().unwrap()[1 << 20..].iter().all(|&byte| byte == 0xEE), "no data went there");
        assert!(disks[3].0.lock().unwrap().iter().all(|&byte| byte == 0xEE), "nothing went there");
        drop(world);

        let is_member = pool_on(&member(2, &disks[2])).is_some();
        assert_eq!(is_member, fails > 0 || lands);
        let without = check(&members_of(&disks, &[0, 1])).map_err(|error| error.what);
        let is_known = fails > 2 || fails == 2 && lands;
        assert_eq!(without.is_err(), is_known, "case {case}: {without:?}");
        let mut files = vec![0, 1];
        files.extend(is_member.then_some(2));
        let backwards: Vec<u16> = files.iter().rev().copied().collect();
        let found = [&files, &backwards].map(|files| check(&members_of(&disks, files)).unwrap().chunks);
        let chunks = (before.data_bytes + if is_member { DISK_DATA } else { 0 }) / 65536;
        assert_eq!(found, [chunks; 2], "case {case}");

        for round in 0..2 {
            let mut world = opened(&disks, &files);
            let a = world.attach("a");
            assert_has(&mut world, a, (0..PIECES).chain(more.clone()));
            if round == 1 {
                assert_has(&mut world, a, 400..500);
                continue;
            }
            assert_eq!((world.info().data_bytes / 65536, world.info().grow_refused), (chunks, None));
            world.ask(grow(&disks, &[3])).unwrap();
            files.push(3);
            assert_eq!(world.info().data_bytes / 65536, chunks + DISK_DATA / 65536);
            (400..500).for_each(|piece| write(&mut world, a, piece));
            assert_has(&mut world, a, (0..PIECES).chain(more.clone()).chain(400..500));
            drop(world);
            assert_eq!(check(&members_of(&disks, &files)).unwrap().problems, []);
        }
    }
}

/// Goal: a write that fails while the pool grows doesn't stop it. Method: a superblock of the new member is kept back until it has.
#[test]
fn a_write_fails_while_a_pool_grows() {
    let disks = pool_of_two();
    let mut world = opened(&disks, &[0, 1]);
    let a = world.attach("a");
    world.cores[0].ask(0, 1, grow(&disks, &[2]), 0);
    world.cores[0].turn(Time(world.now));
    let kept = world.cores[0].poll_disk().unwrap();
    assert_eq!((kept.file, kept.offset_bytes), (FileId(2), SUPERBLOCK_AT[0]));
    world.sparse = Some(Sparse::new(5, 0));
    assert!(world.try_io(0, a, Op::Write, 0, 8, 1).0.is_err());
    world.sparse = None;
    write(&mut world, a, 0);
    world.cores[0].complete(disks[2].perform(kept));
    let answer = (0..10_000).find_map(|_| {
        world.step();
        world.cores[0].poll_answer()
    });
    assert_eq!(answer.unwrap().1, Ok(Answer::Done));
    (320..440).for_each(|piece| write(&mut world, a, piece));
    assert_has(&mut world, a, (0..PIECES).chain(320..440));
}

/// Goal: nobody is granted a chunk of a member that it does not know yet: it would look for it on another. Method: a core that
/// has none of its own left hears of the growth late, and writes before.
#[test]
fn new_space_is_granted_when_all_know_it() {
    let disks = pool_of_two();
    let mut world = opened(&disks, &[0, 1]);
    let a = world.attach("a");
    // Odd stripes are core 1's.
    let full = (192..256).chain(320..330);
    full.clone().take(64).for_each(|piece| write(&mut world, a, piece));
    world.keeps_mail =
        |out| out.to == Core(1) && matches!(&out.mail, Mail::PoolAsk(_, Ask { what: What::Grow { .. }, .. }));
    world.cores[0].ask(0, 1, grow(&disks, &[2]), 0);
    (0..50).for_each(|_| world.step());
    assert_eq!(world.kept_mail.len(), 1);
    full.clone().skip(64).for_each(|piece| write(&mut world, a, piece));
    assert_has(&mut world, a, (0..PIECES).chain(full.clone()));
    world.keeps_mail = |_| false;
    for (core, out) in std::mem::take(&mut world.kept_mail) {
        world.deliver(core, out);
    }
    let answer = (0..10_000).find_map(|_| {
        world.step();
        world.cores[0].poll_answer()
    });
    assert_eq!(answer.unwrap().1, Ok(Answer::Done));
    let more = 448..512;
    more.clone().for_each(|piece| write(&mut world, a, piece));
    assert_has(&mut world, a, (0..PIECES).chain(full).chain(more));
}

/// Goal: where one of two new members was not reached, the pool is refused with both ways out of it, and opens by either.
/// Method: the second one's first superblock fails.
#[test]
fn a_growth_by_two_is_cut_short() {
    let disks = pool_of_two();
    let mut world = opened(&disks, &[0, 1]);
    world.super_fault = Some((1, false));
    world.ask(grow(&disks, &[2, 3])).unwrap_err();
    drop(world);
    assert!(pool_on(&member(3, &disks[3])).is_none());
    let refused = check(&members_of(&disks, &[0, 1, 2])).unwrap_err();
    assert!(refused.what.contains("member 3 of 4 is missing"), "{refused}");
    assert!(refused.cure.contains("without disk2"), "{refused}");
    assert_eq!(check(&members_of(&disks, &[0, 1])).unwrap().problems, []);
    // A member that the pool has always had is another matter.
    let refused = check(&members_of(&disks, &[0, 2])).unwrap_err();
    assert!(
        refused.what.contains("member 1 of 4 is missing") && !refused.cure.contains("without"),
        "{refused}"
    );
}

fn put(disk: &Memory, superblock: &Superblock) {
    for at in SUPERBLOCK_AT {
        disk.write(at, &superblock.encode()).unwrap();
    }
}

/// Goal: superblocks that are not of one pool's life are refused, in any order, with the generation the same or the next, and
/// nothing that one says makes opening panic. Method: what three members say, put there as if by different growths.
#[test]
fn members_that_contradict_are_refused() {
    let disks = pool_of_two();
    disks[1].0.lock().unwrap().resize(13 << 20, 0xEE);
    let mut bytes = vec![0; SUPERBLOCK_BYTES as usize];
    disks[0].read(SUPERBLOCK_AT[0], &mut bytes).unwrap();
    let now = Superblock::decode(&bytes).unwrap();
    let later = |superblock: &Superblock, by: u64| Superblock {
        generation: superblock.generation + by,
        ..superblock.clone()
    };
    // By a third member of this mark.
    let grown = |mark: u8| {
        let mut grown = later(&now, 1);
        grown.members.push(([mark; 16], 12 << 20));
        let extent = Extent { member: 2, at: 4 << 20, first_chunk: now.chunks(), chunks: 128 };
        grown.extents.push(extent);
        grown
    };
    let changed = |superblock: &Superblock, change: fn(&mut Superblock)| {
        let mut changed = superblock.clone();
        change(&mut changed);
        changed
    };
    let two = grown(2);
    let larger = changed(&later(&now, 1), |superblock| {
        superblock.members[1].1 += 1 << 20;
        superblock.extents[1].chunks += 16;
    });
    let cases = [
        ("", "cut short", [now.clone(), now.clone(), two.clone()]),
        ("", "cut short later", [two.clone(), now.clone(), two.clone()]),
        ("", "grown", [two.clone(), two.clone(), two.clone()]),
        ("none of this number", "opened twice without it", [later(&now, 2), later(&now, 2), two.clone()]),
        ("none of this number", "opened without it", [later(&now, 1), later(&now, 1), two.clone()]),
        ("none of this number", "another growth", [larger.clone(), larger, two.clone()]),
        ("contradicts", "another growth's place", [later(&grown(3), 1), later(&grown(3), 1), two.clone()]),
        ("contradicts", "two growths", [grown(3), grown(3), two.clone()]),
        (
            "contradicts",
            "another length",
            [two.clone(), two.clone(), changed(&two, |superblock| superblock.members[0].1 -= 1 << 20)],
        ),
        (
            "contradicts",
            "other extents",
            [two.clone(), changed(&two, |superblock| superblock.extents[1].at += 65536), two.clone()],
        ),
        (
            "contradicts",
            "other extents before",
            [two.clone(), changed(&now, |superblock| superblock.extents[1].at += 65536), two.clone()],
        ),
        (
            "contradicts",
            "other cores",
            [two.clone(), changed(&two, |superblock| superblock.cores = 3), two.clone()],
        ),
        (
            "contradicts",
            "another name before",
            [changed(&now, |superblock| superblock.name = "q".into()), two.clone(), two.clone()],
        ),
        ("none of this number", "long ago", [later(&now, 7), later(&now, 7), two.clone()]),
        ("left behind", "an old copy", [later(&two, 7), later(&two, 7), two.clone()]),
        (
            "malformed",
            "the last generation",
            [later(&now, u64::MAX - now.generation), two.clone(), two.clone()],
        ),
    ];
    let orders: [[u16; 3]; 6] = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
    for (expected, what, superblocks) in cases {
        for (member, superblock) in (0..).zip(superblocks) {
            put(&disks[usize::from(member)], &Superblock { member, ..superblock });
        }
        for order in orders {
            match check(&members_of(&disks, &order)) {
                Ok(_) => assert_eq!(expected, "", "{what} {order:?}"),
                Err(refused) => {
                    let is_expected = !expected.is_empty() && refused.to_string().contains(expected);
                    assert!(is_expected, "{what} {order:?}: {refused}");
                }
            }
        }
    }
    // Two that were to be the same one, of different growths.
    put(&disks[0], &now);
    put(&disks[1], &Superblock { member: 1, ..now.clone() });
    put(&disks[2], &Superblock { member: 2, ..grown(2) });
    put(&disks[3], &Superblock { member: 2, ..grown(3) });
    let refused = check(&members_of(&disks, &[0, 1, 2, 3])).unwrap_err();
    assert!(!refused.what.contains("copy") && refused.what.contains("disk2"), "{refused}");
}
