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
