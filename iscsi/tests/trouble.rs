//! Goal: sessions that come, go and reset each other while devices are stuck and peers are slow keep to RFC 7143 and
//! harm nobody. Method: as in `conversation`, over one core or two, with mail between cores carried by hand.
#![allow(clippy::unwrap_used, reason = "a test program")]

mod world;

use iscsi::target::TICK;
use std::io::IoSlice;
use std::time::Duration;
use world::{Asks, BLOCK, Initiator, LARGE_BUFFERS, Pdu, World, cdb16, data_out_header, pattern};

const ALL_FREE: [usize; 3] = [64, 64, LARGE_BUFFERS as usize];

fn itt_of(bhs: &[u8; 48]) -> u32 {
    u32::from_be_bytes(bhs[16..20].try_into().unwrap())
}

/// A READ or WRITE with all its data in the command; says its tag.
fn begin(world: &mut World, initiator: &mut Initiator, opcode: u8, lba: u32, blocks: u32) -> u32 {
    let bytes = blocks as usize * BLOCK;
    let (flags, data) = if opcode == 0x8a { (0xa0, pattern(bytes, 1)) } else { (0xc0, Vec::new()) };
    let bhs = initiator.command(0, &cdb16(opcode, lba, blocks), flags, bytes);
    let frame = initiator.frame(bhs, &data);
    initiator.send(world, &frame);
    itt_of(&bhs)
}

fn kinds(pdus: &[Pdu]) -> Vec<(u8, u32)> {
    pdus.iter().map(|pdu| (pdu.opcode(), pdu.itt())).collect()
}

/// Goal: of two logins of one initiator port that are under way at once, exactly one becomes a session: the later in the
/// order of decrees, wherever it is. Method: both orders of mail, both ways round.
#[test]
fn one_of_two_newcomers_enters() {
    for (first, second) in [(0, 1), (1, 0), (0, 0), (1, 1)] {
        for hurried in [false, true] {
            let mut world = World::of(2);
            let mut newcomers = [first, second].map(|core| world.connect_to(core));
            for newcomer in &mut newcomers {
                let request = newcomer.login_request(7, Asks::default());
                newcomer.push(&mut world, &request);
                if hurried {
                    // Its proposal is with core 0 before the other's, and no further.
                    world.env(newcomer.core, iscsi::target::Target::turn);
                    while world.deliver(newcomer.core * 2) {}
                }
            }
            world.settle();
            let finished = [0, 1].map(|which| {
                let Initiator { core, slot, .. } = newcomers[which];
                !world.nodes[core].target.has_connection(slot) || world.nodes[core].target.is_finished(slot)
            });
            assert_eq!(
                finished.iter().filter(|finished| **finished).count(),
                1,
                "{first} {second} {hurried}"
            );
            let sessions: usize = world.nodes.iter().map(|node| node.target.sessions()).sum();
            assert_eq!(sessions, 1);
        }
    }
}

/// Goal: `sessions_max` is of all cores together. Method: more than half of it on one core, the rest on the other.
#[test]
fn sessions_are_counted_over_all_cores() {
    let mut world = World::with(2, [64, 64, 512]);
    let mut statuses = Vec::new();
    for number in 0..70 {
        let mut initiator = world.connect_to(usize::from(number >= 40));
        let request = initiator.login_request(number, Asks::default());
        initiator.send(&mut world, &request);
        statuses.push(initiator.hear(&mut world)[0].word(36) >> 16);
    }
    assert!(statuses[..64].iter().all(|status| *status == 0), "{statuses:?}");
    assert!(statuses[64..].iter().all(|status| *status == 0x0302), "{statuses:?}");
}

/// Goal: more long writes than a session has buffers for end well, and what comes unasked behind data that were asked for
/// finds its buffer: the connection never stands still. Method: all commands with a part of their data first, then what is
/// asked for, in order.
#[test]
fn long_writes_wait_for_their_turn() {
    const LONG: usize = 1 << 20;
    let mut world = World::with(1, [64, 64, 1024]);
    let asks = Asks { first_burst: 8 << 10, max_burst: 1 << 20, ..Asks::default() };
    let mut initiator = world.login_as(1, asks);
    initiator.test_ready(&mut world);
    let (mut data, mut left) = (std::collections::BTreeMap::new(), 60u32);
    for number in 0..left {
        let bytes = pattern(LONG, number as u8);
        let bhs = initiator.command(0, &cdb16(0x8a, number * 2048, 2048), 0xa0, LONG);
        let frame = initiator.frame(bhs, &bytes[..8 << 10]);
        initiator.push(&mut world, &frame);
        assert!(initiator.carry.is_empty(), "it stands still at command {number}");
        data.insert(itt_of(&bhs), bytes);
    }
    while left > 0 {
        let heard = initiator.hear(&mut world);
        assert!(!heard.is_empty());
        for pdu in heard {
            if pdu.opcode() == 0x21 {
                assert_eq!(pdu.bhs[3], 0);
                left -= 1;
                continue;
            }
            let (ttt, offset, bytes) = (pdu.word(20), pdu.word(40) as usize, pdu.word(44) as usize);
            let itt = pdu.itt();
            initiator.data_out(&mut world, itt, ttt, offset, &data[&itt][..offset + bytes]);
        }
    }
    assert_eq!(world.target().counters.starved, 0);
    for (number, bytes) in data.values().enumerate() {
        assert!(world.disk.bytes[number * LONG..][..LONG] == bytes[..]);
    }
    world.env(0, |target, env| target.close_connection(initiator.slot, env));
    world.settle();
    world.assert_clean();
}

/// Goal: a reset does not swallow commands of its own session that came behind it. Method: two cores, so that the decree
/// takes its time; a read before the reset and one behind it.
#[test]
fn what_comes_behind_a_reset_is_answered() {
    let mut world = World::of(2);
    let mut initiator = world.connect_to(1);
    initiator.login(&mut world, 1, Asks::default());
    initiator.test_ready(&mut world);
    world.disk.stuck = true;
    begin(&mut world, &mut initiator, 0x88, 0, 1);
    let reset = initiator.tmf_request(5, 0, u32::MAX);
    let behind = initiator.command(0, &cdb16(0x88, 8, 1), 0xc0, BLOCK);
    let bytes = [reset.clone(), initiator.frame(behind, &[])].concat();
    initiator.send(&mut world, &bytes);
    let reset = itt_of(reset.first_chunk().unwrap());
    assert_eq!(kinds(&initiator.hear(&mut world)), [(0x22, reset)]);
    world.disk.stuck = false;
    world.settle();
    assert_eq!(kinds(&initiator.hear(&mut world)), [(0x25, itt_of(&behind))]);
}

/// Goal: functions that wait for a device are bounded and harm nobody. Method: thousands of resets and aborts for
/// immediate delivery while a write is stuck; then another initiator logs in, and the first is dropped at last.
#[test]
fn a_flood_of_functions_is_rejected() {
    let mut world = World::of(2);
    let mut initiator = world.login();
    initiator.test_ready(&mut world);
    world.disk.stuck = true;
    let write = begin(&mut world, &mut initiator, 0x8a, 0, 8);
    let mut rejected = 0;
    for round in 0..3000 {
        initiator.tmf(&mut world, if round % 2 == 0 { 5 } else { 1 }, 0, write);
        for pdu in initiator.hear(&mut world) {
            assert_eq!((pdu.opcode(), pdu.bhs[2]), (0x22, 255), "{pdu:?}");
            rejected += 1;
        }
    }
    assert!(rejected > 2500, "{rejected}");
    let mut other = world.connect_to(1);
    other.login(&mut world, 9, Asks::default());
    world.pass(Duration::from_secs(31));
    assert!(world.target().is_finished(initiator.slot));
}

/// Goal: the second ABORT TASK of one write is not complete before the write is back either.
#[test]
fn a_second_abort_waits_too() {
    let mut world = World::new();
    let mut initiator = world.login();
    initiator.test_ready(&mut world);
    world.disk.stuck = true;
    let write = begin(&mut world, &mut initiator, 0x8a, 0, 8);
    let aborts = [(); 2].map(|()| initiator.tmf(&mut world, 1, 0, write));
    assert!(initiator.hear(&mut world).is_empty());
    world.disk.stuck = false;
    world.settle();
    assert_eq!(kinds(&initiator.hear(&mut world)), aborts.map(|itt| (0x22, itt)));
}

/// Goal: GET LBA STATUS tells what the map says, question by question; aborted with one out, it is not answered, its tag is
/// free, and the late answer harms nobody. Method: a map that answers at once, and one that doesn't.
#[test]
fn questions_to_the_map_can_be_aborted() {
    let mut world = World::new();
    let mut initiator = world.login();
    initiator.test_ready(&mut world);
    let mut cdb = cdb16(0x9e, 4, 56);
    cdb[1] = 0x12;
    let ask = |world: &mut World, initiator: &mut Initiator| {
        let bhs = initiator.command(0, &cdb, 0xc0, 56);
        let bytes = initiator.frame(bhs, &[]);
        initiator.send(world, &bytes);
        itt_of(&bhs)
    };
    ask(&mut world, &mut initiator);
    let heard = initiator.hear(&mut world);
    assert_eq!(heard.len(), 1);
    let told: Vec<(u8, u8)> = heard[0].data[8..].chunks(16).map(|one| (one[11], one[12])).collect();
    assert_eq!(told, [(4, 0), (8, 1), (8, 0)]);
    world.disk.stuck = true;
    let itt = ask(&mut world, &mut initiator);
    assert_eq!(world.disk.questions.len(), 1);
    let abort = initiator.tmf(&mut world, 1, 0, itt);
    assert_eq!(kinds(&initiator.hear(&mut world)), [(0x22, abort)]);
    let lost = ask(&mut world, &mut initiator);
    let reset = initiator.tmf(&mut world, 5, 0, u32::MAX);
    assert_eq!(kinds(&initiator.hear(&mut world)), [(0x22, reset)]);
    assert_ne!(lost, itt);
    world.disk.stuck = false;
    world.settle();
    assert!(initiator.hear(&mut world).is_empty());
}

/// Goal: aborting what a stuck device holds, and asking again, fills no table. Method: SYNCHRONIZE CACHE would wait for
/// its abort, so reads do; buffers are not what bounds them.
#[test]
fn aborted_reads_are_bounded() {
    let mut world = World::with(1, [4096, 64, 64]);
    let mut initiator = world.login();
    initiator.test_ready(&mut world);
    world.disk.stuck = true;
    let mut full = 0;
    for _ in 0..2000 {
        let read = begin(&mut world, &mut initiator, 0x88, 0, 1);
        let heard = initiator.hear(&mut world);
        if heard.iter().any(|pdu| pdu.opcode() == 0x21 && pdu.bhs[3] == 0x28) {
            full += 1;
            continue;
        }
        initiator.tmf(&mut world, 1, 0, read);
        assert_eq!(initiator.hear(&mut world)[0].bhs[2], 0);
    }
    assert!(full > 900, "{full}");
    world.disk.stuck = false;
    world.settle();
    begin(&mut world, &mut initiator, 0x88, 0, 1);
    assert_eq!(initiator.hear(&mut world)[0].opcode(), 0x25);
}

/// Goal: sessions that wait for a stuck device keep neither their initiator nor others out. Method: an initiator that
/// comes back a hundred times, each time with a read that gets stuck.
#[test]
fn lost_sessions_keep_nobody_out() {
    let mut world = World::with(1, [512, 64, 16]);
    world.disk.stuck = true;
    for _ in 0..100 {
        let mut initiator = world.login();
        begin(&mut world, &mut initiator, 0x88, 0, 1);
        initiator.test_ready(&mut world);
        begin(&mut world, &mut initiator, 0x88, 0, 1);
    }
    assert_eq!(world.target().sessions(), 100);
    let mut other = world.login_as(2, Asks::default());
    let itt = other.ping(&mut world, b"x");
    assert_eq!(other.hear(&mut world)[0].itt(), itt);
    world.disk.stuck = false;
    world.settle();
    assert_eq!(world.target().sessions(), 2);
}

/// Goal: a change that was proposed is made before its abort is answered. Method: MODE SELECT on a core whose mail is
/// not carried yet.
#[test]
fn an_abort_waits_for_a_change() {
    let mut world = World::of(2);
    let mut initiator = world.connect_to(1);
    initiator.login(&mut world, 1, Asks::default());
    initiator.test_ready(&mut world);
    // The control mode page, with D_SENSE.
    let sense = initiator.command(0, &[0x1a, 0x08, 0x0a, 0, 16, 0], 0xc0, 16);
    let frame = initiator.frame(sense, &[]);
    initiator.send(&mut world, &frame);
    let mut list = initiator.hear(&mut world)[0].data.clone();
    list[..4].fill(0);
    list[6] |= 0x04;
    let bhs = initiator.command(0, &[0x15, 0x10, 0, 0, 16, 0], 0xa0, 16);
    let frame = initiator.frame(bhs, &list);
    initiator.push(&mut world, &frame);
    let abort = initiator.tmf_request(1, 0, itt_of(&bhs));
    initiator.push(&mut world, &abort);
    let heard = |world: &mut World, initiator: &mut Initiator| {
        let mut slices = [IoSlice::new(&[]); 8];
        world.nodes[1].target.transmit(initiator.slot, &mut slices)
    };
    assert_eq!(heard(&mut world, &mut initiator), 0, "the change is still to be made");
    world.settle();
    let itt = itt_of(abort.first_chunk().unwrap());
    assert_eq!(kinds(&initiator.hear(&mut world)), [(0x22, itt)]);
}

/// Goal: a logout is answered when the session's writes are back.
#[test]
fn a_logout_waits_for_writes() {
    let mut world = World::new();
    let mut initiator = world.login();
    initiator.test_ready(&mut world);
    world.disk.stuck = true;
    begin(&mut world, &mut initiator, 0x8a, 0, 8);
    let logout = initiator.logout_request();
    initiator.send(&mut world, &logout);
    assert!(initiator.hear(&mut world).is_empty());
    world.disk.stuck = false;
    world.settle();
    let itt = itt_of(logout.first_chunk().unwrap());
    assert_eq!(kinds(&initiator.hear(&mut world)), [(0x26, itt)]);
    let slot = initiator.slot;
    assert!(world.target().is_finished(slot));
    world.env(0, |target, env| target.close_connection(slot, env));
    world.settle();
    world.assert_clean();
}

/// Goal: Data-Out under way when another nexus aborts their task are taken in silence, and the initiator is told TASK
/// ABORTED once.
#[test]
fn data_for_a_cleared_task_are_discarded() {
    let mut world = World::new();
    let mut one = world.login_as(1, Asks::default());
    let asks = Asks { initial_r2t: true, immediate_data: false, ..Asks::default() };
    let mut two = world.login_as(2, asks);
    one.test_ready(&mut world);
    two.test_ready(&mut world);
    // Two pieces; the first is written, and stays with the disk.
    let bhs = two.command(0, &cdb16(0x8a, 0, 256), 0xa0, 256 * BLOCK);
    let frame = two.frame(bhs, &[]);
    two.send(&mut world, &frame);
    let r2t = two.hear(&mut world)[0].clone();
    assert_eq!(r2t.word(44), 128 << 10);
    let data = pattern(128 << 10, 3);
    world.disk.stuck = true;
    for part in 0..16 {
        if part == 12 {
            one.tmf(&mut world, 5, 0, u32::MAX);
            assert!(one.hear(&mut world).is_empty(), "the disk has the first piece");
        }
        let header = data_out_header(itt_of(&bhs), r2t.word(20), part as u32, part * 8192, part == 15);
        let frame = two.frame(header, &data[part * 8192..][..8192]);
        two.send(&mut world, &frame);
    }
    assert!(two.hear(&mut world).is_empty());
    world.disk.stuck = false;
    world.settle();
    let told = two.hear(&mut world);
    assert_eq!((kinds(&told), told[0].bhs[3]), (vec![(0x21, itt_of(&bhs))], 0x40));
    assert_eq!(one.hear(&mut world)[0].bhs[2], 0);
    assert_eq!(world.free(), ALL_FREE);
}

/// Goal: what is being received for a task holds no buffers once the task is aborted. Method: a command whose data stop in
/// the middle of a PDU, aborted by another session.
#[test]
fn an_abort_frees_what_is_being_received() {
    let mut world = World::new();
    let mut one = world.login_as(1, Asks::default());
    let mut two = world.login_as(2, Asks::default());
    one.test_ready(&mut world);
    two.test_ready(&mut world);
    let bhs = two.command(0, &cdb16(0x8a, 0, 16), 0xa0, 8192);
    let frame = two.frame(bhs, &pattern(8192, 1));
    two.send(&mut world, &frame[..5000]);
    assert_ne!(world.free(), ALL_FREE);
    one.tmf(&mut world, 5, 0, u32::MAX);
    assert_eq!(world.free(), ALL_FREE);
    two.send(&mut world, &frame[5000..]);
    let itt = two.ping(&mut world, b"");
    assert_eq!(kinds(&two.hear(&mut world)), [(0x21, itt_of(&bhs)), (0x20, itt)]);
}

/// Takes a little of what the target has to say.
fn sip(world: &mut World, initiator: &mut Initiator, bytes: usize) {
    let slot = initiator.slot;
    let sip: Vec<u8> = {
        let mut slices = [IoSlice::new(&[]); 8];
        let count = world.target().transmit(slot, &mut slices);
        slices[..count].iter().flat_map(|slice| slice.iter().copied()).take(bytes).collect()
    };
    initiator.received.extend_from_slice(&sip);
    let now = world.now;
    world.env(0, |target, env| target.sent(slot, sip.len(), env));
    world.target().blocked(slot, now);
    world.settle();
}

/// Goal: an initiator that reads slowly gets all of a long READ, and a ping that stands behind its data ends nothing.
/// Method: a minute for a read of more than all buffers hold.
#[test]
fn a_slow_reader_is_served() {
    let mut world = World::new();
    let mut initiator = world.login_as(1, Asks { segment: 256 << 10, ..Asks::default() });
    initiator.test_ready(&mut world);
    let blocks = (12 << 20) / BLOCK as u32;
    let read = begin(&mut world, &mut initiator, 0x88, 0, blocks);
    let mut bytes = 0;
    for _ in 0..300 {
        world.pass(TICK);
        sip(&mut world, &mut initiator, 48 << 10);
        for pdu in initiator.take_pdus() {
            assert!(!world.target().is_finished(initiator.slot));
            if pdu.opcode() == 0x25 {
                assert_eq!(pdu.itt(), read);
                bytes += pdu.data.len();
            } else {
                assert_eq!((pdu.opcode(), pdu.itt()), (0x20, u32::MAX), "{pdu:?}");
            }
        }
    }
    assert_eq!(bytes, 12 << 20);
}

/// Goal: of two commands that both want more than there is, each gets its part. Method: one is first in line with a long
/// read, the other's is short; their session has few buffers, and its initiator reads all the time.
#[test]
fn the_first_in_line_does_not_take_all() {
    let mut world = World::with(1, [0, 0, 8]);
    let mut initiator = world.login_as(1, Asks { segment: 256 << 10, ..Asks::default() });
    initiator.test_ready(&mut world);
    begin(&mut world, &mut initiator, 0x88, 0, (40 << 20) / BLOCK as u32);
    let modest = begin(&mut world, &mut initiator, 0x88, 0, (1 << 20) / BLOCK as u32);
    let (mut bytes, mut others) = (0, 0);
    while bytes < 1 << 20 {
        sip(&mut world, &mut initiator, 64 << 10);
        for pdu in initiator.take_pdus() {
            *if pdu.itt() == modest { &mut bytes } else { &mut others } += pdu.data.len();
        }
        assert!(others < 20 << 20, "{bytes} against {others}");
    }
}

/// Goal: a command that fails in its data phase is answered when its writes are back, not before. Method: the first piece
/// is with a stuck disk when data come out of sequence.
#[test]
fn a_failed_write_is_answered_when_it_is_over() {
    let mut world = World::new();
    let asks = Asks { initial_r2t: true, immediate_data: false, ..Asks::default() };
    let mut initiator = world.login_as(1, asks);
    initiator.test_ready(&mut world);
    let bhs = initiator.command(0, &cdb16(0x8a, 0, 256), 0xa0, 256 * BLOCK);
    let frame = initiator.frame(bhs, &[]);
    initiator.send(&mut world, &frame);
    let r2t = initiator.hear(&mut world)[0].clone();
    let data = pattern(128 << 10, 3);
    world.disk.stuck = true;
    for part in 0..10 {
        let data_sn = if part == 9 { 77 } else { part as u32 };
        let header = data_out_header(itt_of(&bhs), r2t.word(20), data_sn, part * 8192, false);
        let frame = initiator.frame(header, &data[part * 8192..][..8192]);
        initiator.send(&mut world, &frame);
    }
    assert_eq!(world.disk.waiting.len(), 1);
    let heard = initiator.hear(&mut world);
    assert_eq!((heard.len(), heard[0].opcode()), (1, 0x3f), "{heard:?}");
    world.disk.stuck = false;
    world.settle();
    let heard = initiator.hear(&mut world);
    assert_eq!((kinds(&heard), heard[0].bhs[3]), (vec![(0x21, itt_of(&bhs))], 2));
    assert_eq!(world.free(), ALL_FREE);
}

/// Goal: a discovery session has a command window that moves. Method: text requests that are not immediate, one after
/// the other, each within what the last answer offered.
#[test]
fn a_discovery_session_has_a_window() {
    let mut world = World::new();
    let mut initiator = world.connect();
    let mut bhs = [0; 48];
    bhs[..2].copy_from_slice(&[0x43, 0x87]);
    bhs[8..14].copy_from_slice(&[0, 2, 0x3d, 0, 0, 1]);
    bhs[24..28].copy_from_slice(&1u32.to_be_bytes());
    let frame = initiator.frame(bhs, b"InitiatorName=iqn.2026-11.io.pollux:i\0SessionType=Discovery\0");
    initiator.send(&mut world, &frame);
    assert_eq!(initiator.hear(&mut world)[0].bhs[36], 0);
    for cmd_sn in 1..40u32 {
        assert!(initiator.max_cmd_sn >= cmd_sn, "{} {cmd_sn}", initiator.max_cmd_sn);
        let mut bhs = [0; 48];
        bhs[..2].copy_from_slice(&[0x04, 0x80]);
        bhs[16..20].copy_from_slice(&cmd_sn.to_be_bytes());
        bhs[20..24].fill(0xff);
        bhs[24..28].copy_from_slice(&cmd_sn.to_be_bytes());
        let frame = initiator.frame(bhs, b"SendTargets=All\0");
        initiator.send(&mut world, &frame);
        let answer = &initiator.hear(&mut world)[0];
        assert_eq!((answer.opcode(), answer.word(28)), (0x24, cmd_sn + 1));
    }
}

/// Goal: idle discovery sessions do not fill the table.
#[test]
fn discovery_sessions_make_room() {
    let mut world = World::new();
    for _ in 0..100 {
        let mut initiator = world.connect();
        let mut bhs = [0; 48];
        bhs[..2].copy_from_slice(&[0x43, 0x87]);
        let frame = initiator.frame(bhs, b"InitiatorName=iqn.2026-11.io.pollux:i\0SessionType=Discovery\0");
        initiator.send(&mut world, &frame);
        initiator.hear(&mut world);
    }
    assert!(world.target().load() <= 8);
}

/// Goal: pings with much data that are not read stop the reading, not the memory.
#[test]
fn long_pings_are_bounded() {
    let mut world = World::new();
    let mut initiator = world.login_as(1, Asks { segment: 256 << 10, ..Asks::default() });
    let mut sent = 0;
    while world.target().wants_input(initiator.slot) {
        initiator.ping(&mut world, &vec![7; 200 << 10]);
        sent += 1;
        assert!(sent < 30);
    }
    let mut heard = 0;
    while heard < sent {
        let pdus = initiator.hear(&mut world);
        assert!(!pdus.is_empty());
        heard += pdus.len();
    }
    assert!(world.target().wants_input(initiator.slot));
}

/// Goal: ORDERED keeps its place among the commands of its session and unit, HEAD OF QUEUE and other units don't wait
/// (SAM-5 §8.9). Method: simple, ordered, simple, head of queue, each with its data, against a disk that answers one
/// request at a time, the youngest first.
#[test]
fn ordered_commands_wait_their_turn() {
    let mut world = World::new();
    let mut initiator = world.login();
    initiator.test_ready(&mut world);
    world.disk.stuck = true;
    let mut command = |world: &mut World, lun: u8, attribute: u8, lba: u32| {
        let mut bhs = initiator.command(lun, &cdb16(0x8a, lba, 8), 0xa0, 4096);
        bhs[1] = bhs[1] & !7 | attribute;
        let frame = initiator.frame(bhs, &pattern(4096, lba as u8));
        initiator.send(world, &frame);
    };
    for (lun, attribute, lba) in
        [(0, 1, 0), (0, 1, 8), (0, 2, 16), (0, 1, 24), (0, 2, 32), (0, 3, 40), (1, 1, 48)]
    {
        command(&mut world, lun, attribute, lba);
    }
    let mut order = Vec::new();
    let mut with_disk = Vec::new();
    while !world.disk.waiting.is_empty() {
        let lbas: Vec<u64> = world.disk.waiting.iter().map(|request| request.io.lba).collect();
        with_disk.push(lbas);
        let (core, done) = world.disk.finish(world.disk.waiting.len() - 1);
        order.push(done.io.lba);
        world.env(core, |target, env| target.io_done(done, env));
        world.turn();
    }
    assert_eq!(order, [48, 40, 8, 0, 16, 24, 32]);
    assert_eq!(with_disk[0], [0, 8, 40, 48], "{with_disk:?}");
    assert_eq!(initiator.hear(&mut world).iter().filter(|pdu| pdu.bhs[3] == 0).count(), 7);
    assert_eq!(world.free(), ALL_FREE);
    // An abort of what waits, and of what it waits for.
    world.disk.stuck = true;
    let simple = begin(&mut world, &mut initiator, 0x8a, 0, 8);
    let mut bhs = initiator.command(0, &cdb16(0x8a, 0, 8), 0xa0, 4096);
    bhs[1] = bhs[1] & !7 | 2;
    let frame = initiator.frame(bhs, &pattern(4096, 1));
    initiator.send(&mut world, &frame);
    let behind = begin(&mut world, &mut initiator, 0x88, 0, 8);
    let abort = initiator.tmf(&mut world, 1, 0, itt_of(&bhs));
    assert_eq!(kinds(&initiator.hear(&mut world)), [(0x22, abort)]);
    assert_eq!(world.disk.waiting.len(), 2, "who waited for it goes on");
    world.disk.stuck = false;
    world.settle();
    let mut ended = kinds(&initiator.hear(&mut world));
    ended.sort_unstable();
    assert_eq!(ended, [(0x21, simple), (0x25, behind)]);
    assert_eq!(world.free(), ALL_FREE);
}
