//! Goal: what a device can do at once is done and answered as it comes, and is the same to its initiator as what becomes a
//! task; whatever is not plain becomes one. Method: as in `conversation`, over a disk that does at once what meets nobody,
//! and counts of what was done so.
#![allow(clippy::unwrap_used, reason = "a test program")]

mod world;

use world::{Asks, BLOCK, Initiator, Pdu, World, cdb16, data_out_header, pattern};

/// An initiator that is ready for anything, in a world that does at once what it can.
fn begin(asks: Asks) -> (World, Initiator) {
    let mut world = World::new();
    let mut initiator = world.login_as(1, asks);
    initiator.test_ready(&mut world);
    world.disk.at_once = true;
    (world, initiator)
}

fn straight(world: &mut World) -> u64 {
    world.target().counters.straight
}

/// The bytes of a WRITE with its data, and its tag.
fn write(initiator: &mut Initiator, lba: u32, data: &[u8]) -> (Vec<u8>, u32) {
    let cdb = cdb16(0x8a, lba, (data.len() / BLOCK) as u32);
    let bhs = initiator.command(0, &cdb, 0xa0, data.len());
    (initiator.frame(bhs, data), initiator.next_itt)
}

/// Hands in bytes, however many the target takes at a time.
fn feed(world: &mut World, initiator: &Initiator, bytes: &[u8], part: usize) {
    for bytes in bytes.chunks(part) {
        world.env(0, |target, env| target.feed(initiator.slot, bytes, env));
    }
}

fn only(pdus: &[Pdu]) -> &Pdu {
    assert_eq!(pdus.len(), 1, "{pdus:?}");
    &pdus[0]
}

/// Goal: reads and writes that come whole are straight, with digests and without, next to each other and one by one; they
/// are answered without a turn, leave no task and count as commands.
#[test]
fn whole_commands_are_straight() {
    for digests in [false, true] {
        let (mut world, mut initiator) = begin(Asks { digests, ..Asks::default() });
        let before = world.target().counters;
        let mut all = Vec::new();
        for (lba, blocks) in [(7, 1), (8, 8), (120, 8)] {
            let (frame, _) = write(&mut initiator, lba, &pattern(blocks * BLOCK, lba as u8));
            all.extend(frame);
            let bhs = initiator.command(0, &cdb16(0x88, lba, blocks as u32), 0xc0, blocks * BLOCK);
            all.extend(initiator.frame(bhs, &[]));
        }
        feed(&mut world, &initiator, &all, all.len());
        assert!(world.disk.waiting.is_empty());
        let heard = initiator.hear(&mut world);
        let shapes: Vec<(u8, u8, u8)> =
            heard.iter().map(|pdu| (pdu.opcode(), pdu.bhs[1], pdu.bhs[3])).collect();
        assert_eq!(shapes, [(0x21, 0x80, 0), (0x25, 0x81, 0)].repeat(3));
        for (pdu, (lba, blocks)) in heard.iter().skip(1).step_by(2).zip([(7, 1), (8, 8), (120, 8)]) {
            assert_eq!(pdu.data, pattern(blocks * BLOCK, lba));
            assert_eq!((pdu.word(36), pdu.word(40), pdu.word(44)), (0, 0, 0), "DataSN, offset, residual");
        }
        let now = world.target().counters;
        assert_eq!((now.straight - before.straight, now.commands - before.commands), (6, 6));
        let bytes = 17 * BLOCK as u64;
        assert_eq!(
            (now.read_bytes - before.read_bytes, now.written_bytes - before.written_bytes),
            (bytes, bytes)
        );
        world.env(0, |target, env| target.close_connection(initiator.slot, env));
        world.settle();
        world.assert_clean();
    }
}

/// Goal: however the bytes of a write arrive, it is written once and whole. Method: parts of every length that tells
/// something; what does not come behind its header in one part becomes a task.
#[test]
fn parts_of_any_length() {
    for digests in [false, true] {
        let (mut world, mut initiator) = begin(Asks { digests, ..Asks::default() });
        for part in [1, 47, 48, 52, 53, 600, 48 + 1024, 52 + 1024, 1 << 20] {
            let data = pattern(2 * BLOCK, part as u8);
            let (frame, itt) = write(&mut initiator, 40, &data);
            let before = straight(&mut world);
            feed(&mut world, &initiator, &frame, part);
            assert_eq!(straight(&mut world) - before, u64::from(part >= frame.len()));
            world.settle();
            let heard = initiator.hear(&mut world);
            assert_eq!((only(&heard).itt(), only(&heard).bhs[3]), (itt, 0));
            assert!(world.disk.bytes[40 * BLOCK..][..data.len()] == data);
        }
    }
}

/// Goal: a write whose digest is wrong is not written, and ends its connection as any does.
#[test]
fn a_wrong_digest_writes_nothing() {
    let (mut world, mut initiator) = begin(Asks { digests: true, ..Asks::default() });
    let (mut frame, _) = write(&mut initiator, 3, &pattern(BLOCK, 9));
    *frame.last_mut().unwrap() ^= 1;
    feed(&mut world, &initiator, &frame, frame.len());
    assert_eq!(straight(&mut world), 0);
    let heard = initiator.hear(&mut world);
    assert_eq!(only(&heard).opcode(), 0x3f);
    assert!(world.disk.bytes[3 * BLOCK..][..BLOCK].iter().all(|&byte| byte == 0));
}

/// Goal: what is not plain becomes a task: data still to come, several segments or pieces, room for less or for more than
/// the command moves, the wrong direction, a rank, or one of a rank that is under way, a disk that is busy there, a unit
/// attention, another command.
#[test]
fn what_is_not_plain_is_a_task() {
    let asks = Asks { segment: 4096, ..Asks::default() };
    let (mut world, mut initiator) = begin(asks);
    let send = |world: &mut World, initiator: &mut Initiator, cdb: &[u8], flags: u8, edtl: usize| {
        let bhs = initiator.command(0, cdb, flags, edtl);
        let frame = initiator.frame(bhs, &[]);
        feed(world, initiator, &frame, frame.len());
        let itt = initiator.next_itt;
        (straight(world), itt)
    };
    // More than a segment, over the edge of a piece, room for less, room for more.
    for (lba, blocks, room) in [(0, 16, 16), (124, 8, 8), (0, 8, 7), (0, 8, 9)] {
        let (count, itt) = send(&mut world, &mut initiator, &cdb16(0x88, lba, blocks), 0xc0, room * BLOCK);
        assert_eq!(count, 0, "{lba} {blocks} {room}");
        world.settle();
        let heard = initiator.hear(&mut world);
        assert_eq!(heard.last().unwrap().itt(), itt);
        assert_eq!(heard.iter().map(|pdu| pdu.data.len()).sum::<usize>(), room.min(blocks as usize) * BLOCK);
    }
    // Ordered, and simple behind it while it is under way.
    world.disk.stuck = true;
    let bhs = {
        let mut bhs = initiator.command(0, &cdb16(0x88, 0, 8), 0xc0, 8 * BLOCK);
        bhs[1] = bhs[1] & !7 | 2;
        bhs
    };
    let frame = initiator.frame(bhs, &[]);
    feed(&mut world, &initiator, &frame, frame.len());
    world.disk.stuck = false;
    let (count, _) = send(&mut world, &mut initiator, &cdb16(0x88, 64, 8), 0xc0, 8 * BLOCK);
    assert_eq!(count, 0, "it would overtake an ordered one");
    world.settle();
    assert_eq!(initiator.hear(&mut world).len(), 2);
    // A write that is with the disk, and a read of the same blocks.
    world.disk.at_once = false;
    let (frame, _) = write(&mut initiator, 64, &pattern(BLOCK, 5));
    feed(&mut world, &initiator, &frame, frame.len());
    world.disk.at_once = true;
    assert_eq!(send(&mut world, &mut initiator, &cdb16(0x88, 60, 8), 0xc0, 8 * BLOCK).0, 0);
    world.settle();
    let heard = initiator.hear(&mut world);
    assert_eq!(heard[1].data[4 * BLOCK..][..BLOCK], pattern(BLOCK, 5));
    // Nothing to read into, a WRITE that brings nothing yet, a VERIFY.
    assert_eq!(send(&mut world, &mut initiator, &cdb16(0x88, 0, 8), 0xa0, 8 * BLOCK).0, 0);
    initiator.hear(&mut world);
    let (count, itt) = send(&mut world, &mut initiator, &cdb16(0x8a, 0, 8), 0x20, 8 * BLOCK);
    assert_eq!(count, 0);
    let bhs = data_out_header(itt, u32::MAX, 0, 0, true);
    let frame = initiator.frame(bhs, &pattern(8 * BLOCK, 6));
    feed(&mut world, &initiator, &frame, frame.len());
    assert_eq!(send(&mut world, &mut initiator, &cdb16(0x8f, 0, 8), 0x80, 0).0, 0);
    world.settle();
    initiator.hear(&mut world);
    // And after all that a plain one.
    assert_eq!(send(&mut world, &mut initiator, &cdb16(0x88, 0, 8), 0xc0, 8 * BLOCK).0, 1);
    let heard = initiator.hear(&mut world);
    assert_eq!(only(&heard).data, pattern(8 * BLOCK, 6));
}

/// Goal: long reads are lent piece by piece and cut like any: segments, bursts, offsets and numbers are those that a task
/// has. Method: the same reads both ways, over lengths and limits that tell something.
#[test]
fn long_reads_are_cut_like_any() {
    let limits = [(8 << 10, 128 << 10), (64 << 10, 128 << 10), (256 << 10, 1 << 20), (24 << 10, 40 << 10)];
    for (segment, max_burst) in limits {
        let (mut world, mut initiator) = begin(Asks { max_burst, segment, ..Asks::default() });
        let bytes = world.disk.bytes.len();
        world.disk.bytes = pattern(bytes, 3);
        for (lba, blocks) in [(0, 128), (1, 128), (100, 256), (3, 2048), (0, 2048)] {
            let mut answers = [false, true].map(|lends| {
                world.disk.lends = lends;
                let before = straight(&mut world);
                let bhs = initiator.command(0, &cdb16(0x88, lba, blocks), 0xc0, blocks as usize * BLOCK);
                let frame = initiator.frame(bhs, &[]);
                feed(&mut world, &initiator, &frame, frame.len());
                assert!(!lends || straight(&mut world) - before == 1);
                world.settle();
                initiator.hear(&mut world)
            });
            for pdu in answers.iter_mut().flatten() {
                // Tags, StatSN and the command window go on.
                pdu.bhs[16..20].fill(0);
                pdu.bhs[24..36].fill(0);
            }
            let [task, lent] = answers;
            let shape = |pdus: &[Pdu]| pdus.iter().map(|pdu| (pdu.bhs, pdu.data.len())).collect::<Vec<_>>();
            assert_eq!(shape(&task), shape(&lent), "{segment} {max_burst} {lba} {blocks}");
            let at = lba as usize * BLOCK;
            let data: Vec<u8> = lent.iter().flat_map(|pdu| pdu.data.iter().copied()).collect();
            assert!(data == world.disk.bytes[at..at + blocks as usize * BLOCK]);
        }
        assert_eq!(world.disk.shelf.0.lent(), 0);
    }
}

/// Goal: what was lent is sent as it was, though it is written before it leaves.
#[test]
fn what_is_lent_leaves_as_it_was() {
    let (mut world, mut initiator) = begin(Asks::default());
    world.disk.lends = true;
    let (old, new) = (pattern(BLOCK, 1), pattern(BLOCK, 2));
    world.disk.bytes[..BLOCK].copy_from_slice(&old);
    let bhs = initiator.command(0, &cdb16(0x88, 0, 1), 0xc0, BLOCK);
    let mut all = initiator.frame(bhs, &[]);
    all.extend(write(&mut initiator, 0, &new).0);
    let bhs = initiator.command(0, &cdb16(0x88, 0, 1), 0xc0, BLOCK);
    all.extend(initiator.frame(bhs, &[]));
    feed(&mut world, &initiator, &all, all.len());
    let heard = initiator.hear(&mut world);
    assert_eq!((&heard[0].data, &heard[2].data), (&old, &new));
    // And goes with its connection.
    let bhs = initiator.command(0, &cdb16(0x88, 0, 1), 0xc0, BLOCK);
    let frame = initiator.frame(bhs, &[]);
    feed(&mut world, &initiator, &frame, frame.len());
    assert_eq!(world.disk.shelf.0.lent(), 1);
    world.env(0, |target, env| target.close_connection(initiator.slot, env));
    world.settle();
    assert_eq!(world.disk.shelf.0.lent(), 0);
    world.assert_clean();
}

/// Goal: without a buffer a read waits for one and is answered, straight or not.
#[test]
fn reads_without_a_buffer_wait() {
    let mut world = World::with(1, [0, 0, 4]);
    let mut initiator = world.login_as(1, Asks::default());
    initiator.test_ready(&mut world);
    world.disk.at_once = true;
    let mut all = Vec::new();
    for lba in 0..20 {
        let bhs = initiator.command(0, &cdb16(0x88, lba * 8, 8), 0xc0, 8 * BLOCK);
        all.extend(initiator.frame(bhs, &[]));
    }
    feed(&mut world, &initiator, &all, all.len());
    let count = straight(&mut world);
    assert!((1..20).contains(&count), "{count}");
    let mut heard = Vec::new();
    while heard.len() < 20 {
        world.settle();
        let more = initiator.hear(&mut world);
        assert!(!more.is_empty());
        heard.extend(more);
    }
    assert!(heard.iter().all(|pdu| pdu.bhs[1] == 0x81 && pdu.bhs[3] == 0 && pdu.data.len() == 8 * BLOCK));
    world.env(0, |target, env| target.close_connection(initiator.slot, env));
    world.settle();
    world.assert_clean();
}
