//! Goal: the target keeps to RFC 7143 as an initiator sees it. Method: an initiator made of hand-built PDUs talks to
//! one core's target through memory; a plain array, which can be told to get stuck, is the disk.
#![allow(clippy::unwrap_used, reason = "a test program")]

mod world;

use iscsi::target::TICK;
use std::io::IoSlice;
use std::time::Duration;
use world::{Asks, BLOCK, Initiator, LARGE_BUFFERS, Pdu, World, cdb16, data_out_header, pattern};

/// Goal: writes arrive whole and reads come back whole in all four combinations of ImmediateData and InitialR2T, with
/// digests and without, whatever the lengths. Method: sizes around every boundary.
#[test]
fn data_survive_every_combination() {
    for bits in 0..8u8 {
        let mut world = World::new();
        let asks = Asks {
            initial_r2t: bits & 1 != 0,
            immediate_data: bits & 2 != 0,
            digests: bits & 4 != 0,
            outstanding_r2t: 1 + u32::from(bits),
            ..Asks::default()
        };
        let mut initiator = world.login_as(1, asks);
        initiator.test_ready(&mut world);
        for (seed, blocks) in
            [1, 15, 16, 17, 31, 32, 33, 128, 129, 255, 256, 257, 1000].into_iter().enumerate()
        {
            let lba = 100 + seed as u32 * 3;
            let data = pattern(blocks * BLOCK, seed as u8);
            let response = initiator.write(&mut world, lba, &data);
            assert_eq!((response.bhs[1], response.bhs[2], response.bhs[3]), (0x80, 0, 0), "{bits} {blocks}");
            let at = lba as usize * BLOCK;
            assert!(world.disk.bytes[at..at + data.len()] == data, "{bits} {blocks}");
            assert!(initiator.read(&mut world, lba, blocks as u32) == data, "{bits} {blocks}");
        }
    }
}

/// Goal: a 256 MiB transfer needs bounded memory. Method: read and write far more than all buffers together hold.
#[test]
fn long_transfers_stream() {
    let mut world = World::new();
    let asks = Asks { max_burst: 1 << 20, segment: 256 << 10, ..Asks::default() };
    let mut initiator = world.login_as(1, asks);
    initiator.test_ready(&mut world);
    let blocks = (48 << 20) / BLOCK;
    let data = pattern(blocks * BLOCK, 9);
    assert!(data.len() > 8 * LARGE_BUFFERS as usize * 65536);
    assert_eq!(initiator.write(&mut world, 64, &data).bhs[3], 0);
    assert!(initiator.read(&mut world, 64, blocks as u32) == data);
}

/// Goal: with a stuck disk pings, task management of reads, and other logins are answered at once; an abort of a write
/// that the disk holds waits for it, and what it aborted is never answered.
#[test]
fn a_stuck_disk_sticks_to_itself() {
    let mut world = World::new();
    let mut initiator = world.login();
    initiator.test_ready(&mut world);
    world.disk.stuck = true;
    let read = initiator.command(0, &cdb16(0x88, 0, 8), 0xc0, 4096);
    let read_itt = u32::from_be_bytes(read[16..20].try_into().unwrap());
    let frame = initiator.frame(read, &[]);
    initiator.send(&mut world, &frame);
    let write = initiator.command(0, &cdb16(0x8a, 8, 8), 0xa0, 4096);
    let write_itt = u32::from_be_bytes(write[16..20].try_into().unwrap());
    let frame = initiator.frame(write, &pattern(4096, 1));
    initiator.send(&mut world, &frame);
    assert!(initiator.hear(&mut world).is_empty());

    let itt = initiator.ping(&mut world, b"are you there");
    let pong = initiator.hear(&mut world);
    assert_eq!((pong[0].opcode(), pong[0].itt(), &pong[0].data[..]), (0x20, itt, &b"are you there"[..]));

    let itt = initiator.tmf(&mut world, 1, 0, read_itt);
    let answer = initiator.hear(&mut world);
    assert_eq!((answer[0].opcode(), answer[0].itt(), answer[0].bhs[2]), (0x22, itt, 0));
    assert_eq!(world.disk.abandoned.len(), 1);

    let mut other = world.login_as(2, Asks::default());
    let itt = other.ping(&mut world, b"");
    assert_eq!(other.hear(&mut world)[0].itt(), itt);

    let itt = initiator.tmf(&mut world, 1, 0, write_itt);
    assert!(initiator.hear(&mut world).is_empty(), "the disk has the write");
    world.disk.stuck = false;
    world.settle();
    let answer = initiator.hear(&mut world);
    assert_eq!(answer.len(), 1, "{answer:?}");
    assert_eq!((answer[0].opcode(), answer[0].itt(), answer[0].bhs[2]), (0x22, itt, 0));
    // All buffers are home.
    assert_eq!(world.free(), [64, 64, LARGE_BUFFERS as usize]);
}

/// Goal: a task that is already done is "function complete", and its response, if it has not left, is withdrawn.
#[test]
fn an_abort_of_what_is_done_is_complete() {
    let mut world = World::new();
    let mut initiator = world.login();
    initiator.test_ready(&mut world);
    let bhs = initiator.command(0, &[0; 6], 0x80, 0);
    let itt = u32::from_be_bytes(bhs[16..20].try_into().unwrap());
    let frame = initiator.frame(bhs, &[]);
    initiator.send(&mut world, &frame);
    let tmf = initiator.tmf(&mut world, 1, 0, itt);
    let heard = initiator.hear(&mut world);
    assert_eq!(heard.len(), 1, "the response was withdrawn: {heard:?}");
    assert_eq!((heard[0].opcode(), heard[0].itt(), heard[0].bhs[2]), (0x22, tmf, 0));
}

/// Goal: a LUN reset clears other initiators' tasks, who are told TASK ABORTED, and nobody else's units.
#[test]
fn a_reset_reaches_everybody() {
    let mut world = World::new();
    let mut one = world.login_as(1, Asks::default());
    let mut two = world.login_as(2, Asks::default());
    one.test_ready(&mut world);
    two.test_ready(&mut world);
    world.disk.stuck = true;
    for lun in 0..2 {
        let read = two.command(lun, &cdb16(0x88, 0, 1), 0xc0, 512);
        let frame = two.frame(read, &[]);
        two.send(&mut world, &frame);
    }
    let itt = one.tmf(&mut world, 5, 0, u32::MAX);
    let answer = one.hear(&mut world);
    assert_eq!((answer[0].opcode(), answer[0].itt(), answer[0].bhs[2]), (0x22, itt, 0));
    let told = two.hear(&mut world);
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!((told[0].opcode(), told[0].bhs[3]), (0x21, 0x40));
    world.disk.stuck = false;
    world.settle();
    let rest = two.hear(&mut world);
    assert_eq!((rest.len(), rest[0].opcode()), (1, 0x25), "the other unit's read goes on");
}

/// Goal: a new login of the same name and ISID ends the old session at once, and buffers of stuck requests stay out
/// until the disk gives them back.
#[test]
fn a_session_is_reinstated_while_the_disk_is_stuck() {
    let mut world = World::new();
    let mut old = world.login();
    old.test_ready(&mut world);
    world.disk.stuck = true;
    let write = old.command(0, &cdb16(0x8a, 8, 8), 0xa0, 4096);
    let frame = old.frame(write, &pattern(4096, 1));
    old.send(&mut world, &frame);
    let mut new = world.login();
    assert!(!world.target().has_connection(old.slot));
    assert_eq!(world.target().sessions(), 2, "the old one waits for its write");
    let itt = new.ping(&mut world, b"x");
    assert_eq!(new.hear(&mut world)[0].itt(), itt);
    world.disk.stuck = false;
    world.settle();
    assert_eq!(world.target().sessions(), 1);
    let bhs = new.command(0, &[0; 6], 0x80, 0);
    let frame = new.frame(bhs, &[]);
    new.send(&mut world, &frame);
    let answer = &new.hear(&mut world)[0];
    assert_eq!((answer.bhs[3], answer.data[2 + 2] & 0xf), (2, 6), "a unit attention tells of the loss");
}

/// Goal: Data-Out that is out of sequence or of the wrong length never ends in GOOD and changes nothing.
#[test]
fn bad_data_out_fails_the_task() {
    let offsets_and_numbers = [(0usize, 1u32), (0, 27), (0, u32::MAX), (512, 0)];
    for (offset, data_sn) in offsets_and_numbers {
        let mut world = World::new();
        let mut initiator =
            world.login_as(1, Asks { initial_r2t: true, immediate_data: false, ..Asks::default() });
        initiator.test_ready(&mut world);
        let bhs = initiator.command(0, &cdb16(0x8a, 0, 8), 0xa0, 4096);
        let frame = initiator.frame(bhs, &[]);
        initiator.send(&mut world, &frame);
        let r2t = &initiator.hear(&mut world)[0];
        assert_eq!(r2t.opcode(), 0x31);
        let bhs = data_out_header(r2t.itt(), r2t.word(20), data_sn, offset, true);
        let frame = initiator.frame(bhs, &pattern(4096, 3));
        initiator.send(&mut world, &frame);
        let heard = initiator.hear(&mut world);
        assert!(heard.iter().any(|pdu| pdu.opcode() == 0x3f), "{heard:?}");
        assert!(heard.iter().all(|pdu| pdu.opcode() != 0x21 || pdu.bhs[3] == 2), "{heard:?}");
        assert!(world.disk.bytes.iter().all(|&byte| byte == 0));
        assert_eq!(world.free(), [64, 64, LARGE_BUFFERS as usize]);
    }
}

/// Goal: a wrong data digest on Data-Out rejects the PDU and fails the task; on a command it ends the connection; a wrong
/// header digest ends it at once.
#[test]
fn wrong_digests() {
    let asks = Asks { digests: true, ..Asks::default() };
    let mut world = World::new();
    let mut initiator = world.login_as(1, asks);
    initiator.test_ready(&mut world);
    let bhs = initiator.command(0, &cdb16(0x8a, 0, 32), 0x20, 16384);
    let itt = u32::from_be_bytes(bhs[16..20].try_into().unwrap());
    let frame = initiator.frame(bhs, &pattern(8192, 1));
    initiator.send(&mut world, &frame);
    let mut frame = initiator.frame(data_out_header(itt, u32::MAX, 0, 8192, true), &pattern(8192, 2));
    *frame.last_mut().unwrap() ^= 1;
    initiator.send(&mut world, &frame);
    let heard = initiator.hear(&mut world);
    assert_eq!((heard[0].opcode(), heard[0].bhs[2]), (0x3f, 2), "{heard:?}");
    assert_eq!((heard[1].opcode(), heard[1].bhs[3]), (0x21, 2));
    assert_eq!((heard[1].data[2 + 2] & 0xf, heard[1].data[2 + 12], heard[1].data[2 + 13]), (0xb, 0x47, 5));
    assert!(!world.target().is_finished(initiator.slot));

    let bhs = initiator.command(0, &cdb16(0x8a, 0, 8), 0xa0, 4096);
    let mut frame = initiator.frame(bhs, &pattern(4096, 1));
    *frame.last_mut().unwrap() ^= 1;
    initiator.send(&mut world, &frame);
    let heard = initiator.hear(&mut world);
    assert_eq!((heard[0].opcode(), heard[0].bhs[2]), (0x3f, 2));
    assert!(world.target().is_finished(initiator.slot));
    assert!(world.disk.bytes[..4096].iter().all(|&byte| byte == 0));

    let mut third = world.login_as(3, asks);
    let bhs = third.command(0, &[0; 6], 0x80, 0);
    let mut frame = third.frame(bhs, &[]);
    frame[50] ^= 1;
    third.send(&mut world, &frame);
    assert!(world.target().is_finished(third.slot));
}

/// Goal: commands outside the window, or seen before, are ignored in silence.
#[test]
fn commands_outside_the_window_are_ignored() {
    let mut world = World::new();
    let mut initiator = world.login();
    initiator.test_ready(&mut world);
    let window = initiator.max_cmd_sn.wrapping_sub(initiator.cmd_sn) + 1;
    assert!(window >= 128, "{window}");
    for cmd_sn in [initiator.max_cmd_sn + 1, initiator.cmd_sn - 1] {
        let due = initiator.cmd_sn;
        initiator.cmd_sn = cmd_sn;
        let bhs = initiator.command(0, &[0; 6], 0x80, 0);
        initiator.cmd_sn = due;
        let frame = initiator.frame(bhs, &[]);
        initiator.send(&mut world, &frame);
        assert!(initiator.hear(&mut world).is_empty());
    }
    let bhs = initiator.command(0, &[0; 6], 0x80, 0);
    let frame = initiator.frame(bhs, &[]);
    initiator.send(&mut world, &frame);
    assert_eq!(initiator.hear(&mut world)[0].bhs[3], 0);
}

/// Goal: a writer that asks and never sends loses its buffers at the deadline, and is told.
#[test]
fn a_stalled_writer_holds_nothing_for_long() {
    let mut world = World::new();
    let mut initiator =
        world.login_as(1, Asks { initial_r2t: true, immediate_data: false, ..Asks::default() });
    initiator.test_ready(&mut world);
    for _ in 0..20 {
        let bhs = initiator.command(0, &cdb16(0x8a, 0, 256), 0xa0, 256 * BLOCK);
        let frame = initiator.frame(bhs, &[]);
        initiator.send(&mut world, &frame);
    }
    initiator.hear(&mut world);
    assert!(world.free()[2] < LARGE_BUFFERS as usize);
    for _ in 0..25 {
        world.pass(Duration::from_secs(1));
        initiator.ping(&mut world, b"");
        initiator.hear(&mut world);
    }
    world.pass(Duration::from_secs(1));
    initiator.hear(&mut world);
    assert_eq!(world.free(), [64, 64, LARGE_BUFFERS as usize]);
}

/// Goal: when a stuck disk has eaten a session's buffers, further writes are refused with TASK SET FULL and a ping
/// behind them is answered within a second.
#[test]
fn a_ping_gets_through_behind_writes_without_buffers() {
    let mut world = World::new();
    let mut initiator = world.login();
    initiator.test_ready(&mut world);
    world.disk.stuck = true;
    for _ in 0..120 {
        let bhs = initiator.command(0, &cdb16(0x8a, 0, 16), 0xa0, 8192);
        let frame = initiator.frame(bhs, &pattern(8192, 5));
        initiator.send(&mut world, &frame);
    }
    for _ in 0..100 {
        let bhs = initiator.command(0, &cdb16(0x88, 0, 128), 0xc0, 65536);
        let frame = initiator.frame(bhs, &[]);
        initiator.send(&mut world, &frame);
    }
    let itt = initiator.ping(&mut world, b"!");
    let began = world.now;
    loop {
        world.pass(TICK);
        initiator.retry(&mut world);
        if initiator.hear(&mut world).iter().any(|pdu| pdu.opcode() == 0x20 && pdu.itt() == itt) {
            break;
        }
        assert!(world.now.since(began) < Duration::from_secs(1), "no answer to the ping");
    }
}

/// Goal: idle half-open connections neither stay nor keep others out.
#[test]
fn half_open_connections_harm_nobody() {
    let mut world = World::new();
    let idle: Vec<Initiator> = (0..1000).map(|_| world.connect()).collect();
    assert!(world.target().load() <= 8);
    let mut initiator = world.login();
    initiator.test_ready(&mut world);
    world.pass(Duration::from_secs(16));
    let left = idle.iter().filter(|idle| world.target().has_connection(idle.slot)).count();
    let finished = idle.iter().filter(|idle| world.target().is_finished(idle.slot)).count();
    assert_eq!((left > 8, finished), (false, 1000));
}

/// Goal: bytes of any kind, at any moment, end in an answer or a dropped connection, never in a panic or a lost buffer.
#[test]
fn any_bytes_do_no_harm() {
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    for round in 0..400u32 {
        let mut world = World::new();
        let mut initiator = if round % 4 == 0 {
            world.connect()
        } else {
            world.login_as(1, Asks { digests: false, ..Asks::default() })
        };
        for _ in 0..40 {
            let mut bhs = initiator.command(0, &cdb16(0x8a, 0, 16), 0xa0, 8192);
            // Mostly sound headers with a few bytes changed, so that they get further than the first check.
            for _ in 0..random() % 4 {
                bhs[(random() % 48) as usize] = random() as u8;
            }
            if random() % 3 == 0 {
                bhs[0] =
                    [0x01, 0x05, 0x02, 0x40, 0x42, 0x04, 0x06, 0x03, 0x10, 0x20][(random() % 10) as usize];
            }
            bhs[4] = if random() % 8 == 0 { random() as u8 & 7 } else { 0 };
            let data = vec![random() as u8; (random() % 9000) as usize & !3];
            let frame = initiator.frame(bhs, &data);
            let slot = initiator.slot;
            world.env(0, |target, env| target.feed(slot, &frame, env));
            world.settle();
            let mut slices = [IoSlice::new(&[]); 64];
            let count = world.target().transmit(slot, &mut slices);
            let bytes: usize = slices[..count].iter().map(|slice| slice.len()).sum();
            world.env(0, |target, env| target.sent(slot, bytes, env));
            if world.target().is_finished(slot) {
                break;
            }
        }
        let slot = initiator.slot;
        world.env(0, |target, env| target.close_connection(slot, env));
        world.settle();
        assert_eq!(world.free(), [64, 64, LARGE_BUFFERS as usize], "round {round}");
        assert_eq!(world.target().sessions(), 0);
    }
}

/// Goal: a command whose end is known early is answered when the initiator has sent what it was asked for, not before
/// (RFC 7143 §11.4.2). Method: VERIFY of data that differ in the first block, with an R2T answered in two parts; the
/// command carries an additional header besides.
#[test]
fn an_early_end_waits_for_the_data() {
    let mut world = World::new();
    let mut initiator = world.login();
    initiator.test_ready(&mut world);
    let data = pattern(300 * BLOCK, 1);
    let mut cdb = cdb16(0x8f, 0, 300);
    cdb[1] = 0x02;
    let mut bhs = initiator.command(0, &cdb, 0xa0, data.len());
    bhs[4] = 2;
    let itt = u32::from_be_bytes(bhs[16..20].try_into().unwrap());
    // BidirectionalReadExpectedDataTransferLength of 0: allowed, of no effect.
    let mut frame = initiator.frame(bhs, &data[..4096]);
    frame.splice(48..48, [0, 5, 2, 0, 0, 0, 0, 0]);
    initiator.send(&mut world, &frame);
    let heard = initiator.hear(&mut world);
    let r2t = heard.iter().find(|pdu| pdu.opcode() == 0x31).unwrap_or_else(|| panic!("{heard:?}")).clone();
    let rest: Vec<Pdu> = heard.into_iter().filter(|pdu| pdu.opcode() == 0x31).skip(1).collect();
    let (from, bytes) = (r2t.word(40) as usize, r2t.word(44) as usize);
    let middle = (bytes / 2) & !3;
    for (data_sn, (start, end)) in
        [(from, from + middle), (from + middle, from + bytes)].into_iter().enumerate()
    {
        let heard = initiator.hear(&mut world);
        assert!(
            heard.iter().all(|pdu| pdu.opcode() != 0x21),
            "answered before the data were there: {heard:?}"
        );
        let header = data_out_header(itt, r2t.word(20), data_sn as u32, start, end == from + bytes);
        let frame = initiator.frame(header, &data[start..end]);
        initiator.send(&mut world, &frame);
    }
    for r2t in rest {
        let (from, bytes) = (r2t.word(40) as usize, r2t.word(44) as usize);
        initiator.data_out(&mut world, itt, r2t.word(20), from, &data[..from + bytes]);
    }
    let heard = initiator.hear(&mut world);
    let response = heard.iter().find(|pdu| pdu.opcode() == 0x21).unwrap_or_else(|| panic!("{heard:?}"));
    assert_eq!((response.itt(), response.bhs[3], response.data[2 + 2] & 0xf), (itt, 2, 0xe));
    assert_eq!(world.free(), [64, 64, LARGE_BUFFERS as usize]);
    assert_eq!(initiator.read(&mut world, 0, 8).len(), 4096);
}
