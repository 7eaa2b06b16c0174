//! Goal: reservations over sessions of two cores: the right nexus is stopped, told and aborted, whatever ends a session
//! ends what it should, and what is to outlive the program is kept before it is answered. Method: as in `conversation`.
#![allow(clippy::unwrap_used, reason = "a test program")]

mod world;

use std::time::Duration;
use vaai::sense::Sense;
use world::{Asks, BLOCK, Initiator, Pdu, World, cdb16, pattern};

const READY: [u8; 6] = [0; 6];
const RESERVE: [u8; 6] = [0x16, 0, 0, 0, 0, 0];
const RELEASE: [u8; 6] = [0x17, 0, 0, 0, 0, 0];
const CONFLICT: u8 = 0x18;
const TASK_ABORTED: u8 = 0x40;

fn login(world: &mut World, core: usize, isid: u8) -> Initiator {
    let mut initiator = world.connect_to(core);
    initiator.login(world, isid, Asks::default());
    initiator.test_ready(world);
    initiator
}

/// Two cores, and a session on each.
fn two() -> (World, Initiator, Initiator) {
    let mut world = World::of(2);
    let near = login(&mut world, 0, 1);
    let far = login(&mut world, 1, 2);
    (world, near, far)
}

fn begin(world: &mut World, initiator: &mut Initiator, lun: u8, cdb: &[u8], data: &[u8]) -> u32 {
    let bhs = initiator.command(lun, cdb, if data.is_empty() { 0x80 } else { 0xa0 }, data.len());
    let frame = initiator.frame(bhs, data);
    initiator.send(world, &frame);
    initiator.next_itt
}

fn begin_write(world: &mut World, initiator: &mut Initiator, lun: u8, lba: u32) -> u32 {
    begin(world, initiator, lun, &cdb16(0x8a, lba, 1), &pattern(BLOCK, 3))
}

/// PERSISTENT RESERVE OUT: its tag, and the bytes to send.
fn frame_out(
    initiator: &mut Initiator,
    action: u8,
    (kind, key, action_key): (u8, u64, u64),
    aptpl: bool,
) -> (u32, Vec<u8>) {
    let mut list = [key.to_be_bytes(), action_key.to_be_bytes(), [0; 8]].concat();
    list[20] = u8::from(aptpl);
    let bhs = initiator.command(0, &[0x5f, action, kind, 0, 0, 0, 0, 0, 24, 0], 0xa0, 24);
    (initiator.next_itt, initiator.frame(bhs, &list))
}

fn begin_out(
    world: &mut World,
    initiator: &mut Initiator,
    action: u8,
    what: (u8, u64, u64),
    aptpl: bool,
) -> u32 {
    let (itt, frame) = frame_out(initiator, action, what, aptpl);
    initiator.send(world, &frame);
    itt
}

/// Tag and status of each response.
fn ends(pdus: &[Pdu]) -> Vec<(u32, u8)> {
    let mut ends: Vec<_> =
        pdus.iter().filter(|pdu| pdu.opcode() == 0x21).map(|pdu| (pdu.itt(), pdu.bhs[3])).collect();
    ends.sort_unstable();
    ends
}

/// The status of a command that moves nothing to the initiator, and its sense code.
fn status(world: &mut World, initiator: &mut Initiator, cdb: &[u8], data: &[u8]) -> (u8, u16) {
    let itt = begin(world, initiator, 0, cdb, data);
    let heard = initiator.hear(world);
    let end = heard.iter().find(|pdu| pdu.itt() == itt && pdu.opcode() == 0x21).unwrap();
    let at = |at: usize| end.data.get(at).copied().unwrap_or(0);
    (end.bhs[3], u16::from_be_bytes([at(14), at(15)]))
}

fn out(world: &mut World, initiator: &mut Initiator, action: u8, what: (u8, u64, u64)) -> u8 {
    let itt = begin_out(world, initiator, action, what, false);
    let ends = ends(&initiator.hear(world));
    assert_eq!((ends.len(), ends[0].0), (1, itt));
    ends[0].1
}

/// Goal: RESERVE on one core stops the session on the other, until it is released, or its session or a reset ends it; the
/// conflict has no sense data.
#[test]
fn reserve_ends_with_its_session() {
    let (mut world, mut near, mut far) = two();
    let write = cdb16(0x8a, 0, 1);
    let data = pattern(BLOCK, 1);
    for way in 0..4 {
        assert_eq!(status(&mut world, &mut near, &RESERVE, &[]), (0, 0));
        assert_eq!(status(&mut world, &mut far, &write, &data), (CONFLICT, 0));
        assert_eq!(status(&mut world, &mut far, &RESERVE, &[]), (CONFLICT, 0));
        assert_eq!(status(&mut world, &mut far, &RELEASE, &[]), (0, 0));
        assert_eq!(status(&mut world, &mut far, &READY, &[]), (0, 0));
        match way {
            0 => assert_eq!(status(&mut world, &mut near, &RELEASE, &[]), (0, 0)),
            1 => {
                let request = near.logout_request();
                near.send(&mut world, &request);
                near.hear(&mut world);
                world.env(near.core, |target, env| target.close_connection(near.slot, env));
                world.settle();
                near = login(&mut world, 0, 1);
            }
            2 => {
                world.env(near.core, |target, env| target.close_connection(near.slot, env));
                world.settle();
                near = login(&mut world, 0, 1);
            }
            _ => {
                far.tmf(&mut world, 5, 0, u32::MAX);
                far.hear(&mut world);
                for initiator in [&mut near, &mut far] {
                    assert_eq!(status(&mut world, initiator, &READY, &[]), (2, 0x2903));
                }
            }
        }
        assert_eq!(status(&mut world, &mut far, &write, &data), (0, 0), "way {way}");
    }
}

/// Goal: a registrant that logs in again, on another core, is that registrant; nobody but the others is told.
#[test]
fn registrants_outlive_their_sessions() {
    let (mut world, mut near, mut far) = two();
    assert_eq!(out(&mut world, &mut near, 0, (0, 0, 7)), 0);
    assert_eq!(out(&mut world, &mut near, 1, (5, 7, 0)), 0);
    let write = cdb16(0x8a, 0, 1);
    let data = pattern(BLOCK, 1);
    assert_eq!(status(&mut world, &mut far, &write, &data).0, CONFLICT);
    world.env(near.core, |target, env| target.close_connection(near.slot, env));
    world.settle();
    assert_eq!(status(&mut world, &mut far, &write, &data).0, CONFLICT);
    let mut near = login(&mut world, 1, 1);
    assert_eq!(status(&mut world, &mut near, &write, &data), (0, 0));
    assert_eq!(out(&mut world, &mut far, 0, (0, 0, 8)), 0);
    assert_eq!(status(&mut world, &mut far, &write, &data), (0, 0));
    assert_eq!(out(&mut world, &mut near, 2, (5, 7, 0)), 0);
    assert_eq!(status(&mut world, &mut near, &READY, &[]), (0, 0));
    assert_eq!(status(&mut world, &mut far, &READY, &[]), (2, 0x2a04));
    assert_eq!(status(&mut world, &mut far, &READY, &[]), (0, 0));
}

/// Goal: PREEMPT AND ABORT is answered when nothing of the preempted nexus can touch the unit any more, which is told TASK
/// ABORTED; its tasks on other units go on, and so do others' on this one. Method: writes that the disk holds.
#[test]
fn preempting_aborts() {
    let (mut world, mut near, mut far) = two();
    let mut third = login(&mut world, 1, 3);
    assert_eq!(out(&mut world, &mut near, 0, (0, 0, 7)), 0);
    assert_eq!(out(&mut world, &mut far, 0, (0, 0, 8)), 0);
    assert_eq!(out(&mut world, &mut far, 1, (5, 8, 0)), 0);
    assert_eq!(out(&mut world, &mut third, 0, (0, 0, 9)), 0);
    world.disk.stuck = true;
    let held = begin_write(&mut world, &mut far, 0, 1);
    let other_unit = begin_write(&mut world, &mut far, 1, 2);
    let others = begin_write(&mut world, &mut third, 0, 3);
    let own = begin_write(&mut world, &mut near, 0, 4);
    // Both at once: the one that is ordered first is made, the other is a task of who is preempted.
    let (preempt, frame) = frame_out(&mut near, 5, (1, 7, 8), false);
    let (back, back_frame) = frame_out(&mut far, 5, (1, 8, 7), false);
    near.push(&mut world, &frame);
    far.push(&mut world, &back_frame);
    world.settle();
    assert_eq!((ends(&near.hear(&mut world)), ends(&third.hear(&mut world))), (vec![], vec![]));
    assert_eq!(ends(&far.hear(&mut world)), [(back, TASK_ABORTED)]);
    world.disk.stuck = false;
    world.settle();
    assert_eq!(ends(&near.hear(&mut world)), [(own, 0), (preempt, 0)]);
    assert_eq!(ends(&far.hear(&mut world)), [(held, TASK_ABORTED), (other_unit, 0)]);
    assert_eq!(ends(&third.hear(&mut world)), [(others, 0)]);
    assert_eq!(status(&mut world, &mut near, &READY, &[]), (0, 0));
    assert_eq!(status(&mut world, &mut far, &READY, &[]), (2, 0x2a05));
    assert_eq!(status(&mut world, &mut third, &READY, &[]), (2, 0x2a04), "the type has changed");
    let data = pattern(BLOCK, 1);
    assert_eq!(status(&mut world, &mut far, &cdb16(0x8a, 0, 1), &data).0, CONFLICT);
    assert_eq!(status(&mut world, &mut third, &cdb16(0x8a, 0, 1), &data).0, CONFLICT);
    for initiator in [&near, &far, &third] {
        world.env(initiator.core, |target, env| target.close_connection(initiator.slot, env));
    }
    world.settle();
    world.assert_clean();
}

/// Goal: PREEMPT AND ABORT with the key of who sends it ends its own tasks only if it ends its registration: who holds the
/// reservation keeps both, and of others with the same key both end; who does not hold it loses its registration, and what it
/// had sent before as TASK ABORTED, but neither the command itself nor what comes behind.
#[test]
fn preempting_oneself() {
    for holds in [true, false] {
        let (mut world, mut near, mut far) = two();
        let mut third = login(&mut world, 1, 3);
        for initiator in [&mut near, &mut far] {
            assert_eq!(out(&mut world, initiator, 0, (0, 0, 7)), 0);
        }
        assert_eq!(out(&mut world, &mut third, 0, (0, 0, 9)), 0);
        let (holder, key) = if holds { (&mut near, 7) } else { (&mut third, 9) };
        // Write exclusive, registrants only.
        assert_eq!(out(&mut world, holder, 1, (5, key, 0)), 0);
        world.disk.stuck = true;
        let own = begin_write(&mut world, &mut near, 0, 1);
        let own_elsewhere = begin_write(&mut world, &mut near, 1, 1);
        let same_key = begin_write(&mut world, &mut far, 0, 2);
        let others = begin_write(&mut world, &mut third, 0, 3);
        let preempt = begin_out(&mut world, &mut near, 5, (5, 7, 7), false);
        let behind = begin(&mut world, &mut near, 0, &READY, &[]);
        world.settle();
        let first = ends(&near.hear(&mut world));
        assert_eq!(first, [(behind, 0)], "{holds}: the preemption waits for what it ends");
        world.disk.stuck = false;
        world.settle();
        let mut told = vec![(own_elsewhere, 0), (preempt, 0)];
        told.insert(0, (own, if holds { 0 } else { TASK_ABORTED }));
        assert_eq!(ends(&near.hear(&mut world)), told);
        assert_eq!(ends(&far.hear(&mut world)), [(same_key, TASK_ABORTED)]);
        assert_eq!(ends(&third.hear(&mut world)), [(others, 0)]);
        // Its own registration: as long as it has one it can change it.
        assert_eq!(out(&mut world, &mut near, 0, (0, 7, 8)), if holds { 0 } else { CONFLICT });
        assert_eq!(status(&mut world, &mut far, &READY, &[]), (2, 0x2a05));
        assert_eq!(status(&mut world, &mut near, &READY, &[]), (0, 0), "who did it is not told");
        for initiator in [&near, &far, &third] {
            world.env(initiator.core, |target, env| target.close_connection(initiator.slot, env));
        }
        world.settle();
        world.assert_clean();
    }
}

/// EXTENDED COPY(LID4) to LUN 1: eight blocks from its block 0 to LUN 0's block 100.
fn copy_between(immediate: bool) -> Vec<u8> {
    let cscd = |lun| {
        let mut bytes = vec![0; 32];
        (bytes[0], bytes[4], bytes[5], bytes[7]) = (0xe4, 1, 3, 16);
        bytes[8..24].copy_from_slice(&vaai::identity::naa(&world::lun_config(lun).id));
        bytes
    };
    let mut list = vec![0; 48];
    (list[0], list[3], list[15], list[16]) = (1, 0x20, u8::from(immediate) << 1, 0xff);
    (list[43], list[45]) = (64, 28);
    list.extend([cscd(0), cscd(1)].concat());
    list.extend([0x02, 0, 0, 0x18, 0, 1, 0, 0, 0, 0, 0, 8]);
    list.extend(0u64.to_be_bytes());
    list.extend(100u64.to_be_bytes());
    list
}

/// Goal: a copy of who is preempted that writes the unit ends, though its command went to another unit, also one in the
/// background, and PREEMPT AND ABORT is answered behind that. Method: copies that the disk holds.
#[test]
fn preempting_ends_copies_to_the_unit() {
    for immediate in [false, true] {
        let (mut world, mut near, mut far) = two();
        world.disk.bytes[..8 * BLOCK].copy_from_slice(&pattern(8 * BLOCK, 9));
        assert_eq!(out(&mut world, &mut near, 0, (0, 0, 7)), 0);
        assert_eq!(out(&mut world, &mut far, 0, (0, 0, 8)), 0);
        world.disk.stuck = true;
        let list = copy_between(immediate);
        let mut cdb = [0; 16];
        (cdb[0], cdb[1], cdb[13]) = (0x83, 1, list.len() as u8);
        let copy = begin(&mut world, &mut far, 1, &cdb, &list);
        assert_eq!(ends(&far.hear(&mut world)), if immediate { vec![(copy, 0)] } else { vec![] });
        let preempt = begin_out(&mut world, &mut near, 5, (1, 7, 8), false);
        world.settle();
        assert_eq!(ends(&near.hear(&mut world)), []);
        assert!(world.disk.copies[0].2, "given up");
        let (core, copied) = world.disk.finish_copy();
        world.env(core, |target, env| target.copy_done(&copied, env));
        world.settle();
        assert_eq!(ends(&near.hear(&mut world)), [(preempt, 0)]);
        assert_eq!(ends(&far.hear(&mut world)), if immediate { vec![] } else { vec![(copy, TASK_ABORTED)] });
        assert!(world.disk.bytes[100 * BLOCK..108 * BLOCK] != world.disk.bytes[..8 * BLOCK]);
        world.disk.stuck = false;
        for initiator in [&near, &far] {
            world.env(initiator.core, |target, env| target.close_connection(initiator.slot, env));
        }
        world.settle();
        world.assert_clean();
    }
}

/// Goal: a device that holds a preempted write for good makes PREEMPT AND ABORT fail, not lie.
#[test]
fn preempting_a_stuck_write_is_no_success() {
    let (mut world, mut near, mut far) = two();
    assert_eq!(out(&mut world, &mut near, 0, (0, 0, 7)), 0);
    assert_eq!(out(&mut world, &mut far, 0, (0, 0, 8)), 0);
    world.disk.stuck = true;
    begin_write(&mut world, &mut far, 0, 1);
    let preempt = begin_out(&mut world, &mut near, 5, (1, 7, 8), false);
    world.settle();
    assert_eq!(ends(&near.hear(&mut world)), []);
    world.pass(Duration::from_secs(31));
    world.settle();
    assert_eq!(ends(&near.hear(&mut world)), [(preempt, 2)]);
    world.disk.stuck = false;
    world.settle();
}

/// Goal: what such a preemption has made of the reservations is kept all the same, before it is told to have failed: a restart
/// must not bring back who was preempted.
#[test]
fn what_a_stuck_preemption_made_is_kept() {
    let (mut world, mut near, mut far) = two();
    for (initiator, key) in [(&mut near, 7), (&mut far, 8)] {
        let register = begin_out(&mut world, initiator, 0, (0, 0, key), true);
        world.settle();
        let keep = world.target().poll_keep().unwrap();
        world.env(0, |target, env| target.kept(keep.ticket, Ok(()), env));
        world.settle();
        assert_eq!(ends(&initiator.hear(&mut world)), [(register, 0)]);
    }
    world.disk.stuck = true;
    begin_write(&mut world, &mut far, 0, 1);
    let preempt = begin_out(&mut world, &mut near, 5, (1, 7, 8), false);
    world.settle();
    world.pass(Duration::from_secs(31));
    world.settle();
    assert_eq!(ends(&near.hear(&mut world)), []);
    let keep = world.target().poll_keep().unwrap();
    world.env(0, |target, env| target.kept(keep.ticket, Ok(()), env));
    world.settle();
    assert_eq!(ends(&near.hear(&mut world)), [(preempt, 2)]);
    world.disk.stuck = false;
    world.settle();
}

/// Goal: with APTPL the answer waits for whoever keeps; what is kept is core 0's newest, in order, whichever core asked; a
/// failure is told; and an aborted task's keeping ends well.
#[test]
fn what_is_to_be_kept_is_kept_first() {
    let (mut world, mut near, mut far) = two();
    let one = begin_out(&mut world, &mut far, 0, (0, 0, 8), true);
    let two = begin_out(&mut world, &mut near, 0, (0, 0, 7), true);
    world.settle();
    assert_eq!((ends(&near.hear(&mut world)), ends(&far.hear(&mut world))), (vec![], vec![]));
    let keeps: Vec<_> = std::iter::from_fn(|| world.target().poll_keep()).collect();
    assert_eq!(keeps.len(), 2);
    assert!(keeps.iter().all(|keep| vaai::reservation::check_kept(&keep.bytes).is_ok()));
    assert!(keeps[0].bytes.len() <= keeps[1].bytes.len());
    for keep in &keeps {
        world.env(0, |target, env| target.kept(keep.ticket, Ok(()), env));
    }
    world.settle();
    assert_eq!(ends(&near.hear(&mut world)), [(two, 0)]);
    assert_eq!(ends(&far.hear(&mut world)), [(one, 0)]);

    let reserve = begin_out(&mut world, &mut far, 1, (1, 8, 0), false);
    world.settle();
    let keep = world.target().poll_keep().unwrap();
    world.env(0, |target, env| target.kept(keep.ticket, Err(Sense::INTERNAL_TARGET_FAILURE), env));
    world.settle();
    assert_eq!(ends(&far.hear(&mut world)), [(reserve, 2)]);

    begin_out(&mut world, &mut far, 2, (1, 8, 0), false);
    world.settle();
    let keep = world.target().poll_keep().unwrap();
    world.env(far.core, |target, env| target.close_connection(far.slot, env));
    world.settle();
    assert_eq!(world.env(1, |target, _| target.sessions()), 1, "its task is not gone");
    world.env(0, |target, env| target.kept(keep.ticket, Ok(()), env));
    world.settle();
    world.env(near.core, |target, env| target.close_connection(near.slot, env));
    world.settle();
    world.assert_clean();
}
