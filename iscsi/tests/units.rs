//! Goal: units come, go, grow, shrink and change while sessions are there, and every initiator hears of it as SAM and SPC
//! say. Method: as in `conversation`, over two cores, with changes that the program proposes on core 0.
#![allow(clippy::unwrap_used, reason = "a test program")]

mod world;

use iscsi::target::Target;
use iscsi::units::{UNIT_CHANGES_MAX, UnitChangeError};
use std::time::Duration;
use vaai::change::UnitChange;
use vaai::server::ConfigError;
use world::{Asks, BLOCK, BLOCKS, Initiator, LARGE_BUFFERS, Pdu, World, cdb16, lun_config, pattern};

const READY: [u8; 6] = [0; 6];
const TASK_ABORTED: u8 = 0x40;

fn add(lun: u16) -> UnitChange {
    UnitChange::Add(Box::new(lun_config(lun)))
}

fn propose(world: &mut World, ticket: u64, change: UnitChange) {
    assert!(world.env(0, |target, env| target.propose_unit_change(ticket, change, env)));
}

/// Proposes on core 0 and waits for the outcome.
fn change(world: &mut World, change: UnitChange) -> Result<(), UnitChangeError> {
    propose(world, 77, change);
    world.settle();
    let (ticket, made) = world.target().poll_unit_change().expect("nothing holds it up");
    assert_eq!((ticket, world.target().poll_unit_change()), (77, None));
    made
}

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

/// Status and, in fixed sense data, key, ASC and ASCQ as one number.
fn code(pdu: &Pdu) -> (u8, u32) {
    let at = |index: usize| pdu.data.get(2 + index).map_or(0, |&byte| u32::from(byte));
    (pdu.bhs[3], (at(2) & 0xf) << 16 | at(12) << 8 | at(13))
}

/// Sends a command; says its tag.
fn begin(world: &mut World, initiator: &mut Initiator, lun: u8, cdb: &[u8], room: usize) -> u32 {
    let bhs = initiator.command(lun, cdb, if room > 0 { 0xc0 } else { 0x80 }, room);
    let frame = initiator.frame(bhs, &[]);
    initiator.send(world, &frame);
    initiator.next_itt
}

/// Sends a WRITE of eight blocks with its data.
fn begin_write(world: &mut World, initiator: &mut Initiator, lun: u8, lba: u32) -> u32 {
    let bhs = initiator.command(lun, &cdb16(0x8a, lba, 8), 0xa0, 8 * BLOCK);
    let frame = initiator.frame(bhs, &pattern(8 * BLOCK, 3));
    initiator.send(world, &frame);
    initiator.next_itt
}

/// Runs a command: its data, or what its response says.
fn ask(
    world: &mut World,
    initiator: &mut Initiator,
    lun: u8,
    cdb: &[u8],
    room: usize,
) -> Result<Vec<u8>, u32> {
    let itt = begin(world, initiator, lun, cdb, room);
    let mut data = Vec::new();
    for pdu in initiator.hear(world) {
        assert_eq!(pdu.itt(), itt, "{pdu:?}");
        if pdu.opcode() == 0x21 {
            return if pdu.bhs[3] == 0 { Ok(data) } else { Err(code(&pdu).1) };
        }
        data.extend_from_slice(&pdu.data);
        if pdu.bhs[1] & 1 != 0 {
            return Ok(data);
        }
    }
    panic!("no answer to {cdb:02x?}");
}

fn ready(world: &mut World, initiator: &mut Initiator, lun: u8) -> u32 {
    ask(world, initiator, lun, &READY, 0).err().unwrap_or(0)
}

fn listed(world: &mut World, initiator: &mut Initiator) -> Vec<u8> {
    let data = ask(world, initiator, 0, &[0xa0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0], 256).unwrap();
    data[8..].chunks(8).map(|field| field[1]).collect()
}

/// READ CAPACITY(16)'s number of blocks.
fn blocks(world: &mut World, initiator: &mut Initiator, lun: u8) -> u64 {
    let data =
        ask(world, initiator, lun, &[0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0], 32).unwrap();
    u64::from_be_bytes(data[..8].try_into().unwrap()) + 1
}

fn answers(pdus: &[Pdu]) -> Vec<(u8, u32, u8)> {
    pdus.iter()
        .map(|pdu| (pdu.opcode(), pdu.itt(), pdu.bhs[if pdu.opcode() == 0x22 { 2 } else { 3 }]))
        .collect()
}

fn leave(world: &mut World, initiators: &[&Initiator]) {
    for initiator in initiators {
        world.env(initiator.core, |target, env| target.close_connection(initiator.slot, env));
    }
    world.settle();
    world.assert_clean();
}

/// Goal: a unit that is added is there for sessions of all cores when the program is told so, not before; each hears of
/// it once, by any of the old units or REPORT LUNS, and of its power on by itself.
#[test]
fn an_added_unit_is_heard_of_once() {
    let (mut world, mut near, mut far) = two();
    propose(&mut world, 5, add(2));
    world.env(0, Target::turn);
    assert_eq!(world.target().poll_unit_change(), None, "the other core has not even heard of it");
    world.settle();
    assert_eq!(world.target().poll_unit_change(), Some((5, Ok(()))));

    assert_eq!(ready(&mut world, &mut far, 1), 0x6_3f0e);
    assert_eq!([0, 1].map(|lun| ready(&mut world, &mut far, lun)), [0, 0]);
    assert_eq!(listed(&mut world, &mut near), [0, 1, 2]);
    assert_eq!([0, 1].map(|lun| ready(&mut world, &mut near, lun)), [0, 0]);
    let mut late = login(&mut world, 1, 3);
    assert_eq!(ready(&mut world, &mut late, 0), 0);
    for initiator in [&mut near, &mut far, &mut late] {
        assert_eq!([(), ()].map(|()| ready(&mut world, initiator, 2)), [0x6_2900, 0]);
        let data = ask(&mut world, initiator, 2, &cdb16(0x88, 0, 8), 8 * BLOCK).unwrap();
        assert_eq!(data.len(), 8 * BLOCK);
    }
    leave(&mut world, &[&near, &far, &late]);
}

/// Goal: a unit that grows shows it, tells it to every nexus, and serves what is behind its old end and nothing behind the
/// new one.
#[test]
fn a_unit_grows() {
    let (mut world, mut near, mut far) = two();
    let old = BLOCKS as u32;
    let read = |lba, blocks| cdb16(0x88, lba, blocks);
    assert_eq!(ask(&mut world, &mut far, 0, &read(old, 1), BLOCK), Err(0x5_2100));
    world.disk.bytes.resize((BLOCKS as usize + 100) * BLOCK, 9);
    assert_eq!(change(&mut world, UnitChange::Resize { lun: 0, blocks: BLOCKS + 100 }), Ok(()));
    for initiator in [&mut near, &mut far] {
        assert_eq!(ready(&mut world, initiator, 1), 0);
        assert_eq!(ready(&mut world, initiator, 0), 0x6_2a09);
        assert_eq!(blocks(&mut world, initiator, 0), BLOCKS + 100);
        assert_eq!(
            ask(&mut world, initiator, 0, &read(old - 1, 101), 101 * BLOCK).unwrap()[BLOCK..],
            vec![9; 100 * BLOCK]
        );
        assert_eq!(ask(&mut world, initiator, 0, &read(old + 99, 2), 2 * BLOCK), Err(0x5_2100));
        assert_eq!(blocks(&mut world, initiator, 1), BLOCKS);
    }
    leave(&mut world, &[&near, &far]);
}

/// Goal: when the program hears that a unit has shrunk, its device has nothing that reaches past the new end, reads
/// included. Method: a read that the disk holds, on the other core.
#[test]
fn a_unit_shrinks() {
    let (mut world, mut near, mut far) = two();
    world.disk.stuck = true;
    let read = begin(&mut world, &mut far, 0, &cdb16(0x88, 1000, 8), 8 * BLOCK);
    propose(&mut world, 1, UnitChange::Resize { lun: 0, blocks: 1000 });
    world.settle();
    assert_eq!(answers(&far.hear(&mut world)), [(0x21, read, TASK_ABORTED)], "a read changes nothing");
    assert_eq!(world.target().poll_unit_change(), None);
    world.disk.stuck = false;
    world.settle();
    assert_eq!(world.target().poll_unit_change(), Some((1, Ok(()))));
    for initiator in [&mut near, &mut far] {
        assert_eq!(ready(&mut world, initiator, 0), 0x6_2a09);
        assert_eq!(blocks(&mut world, initiator, 0), 1000);
        assert_eq!(ask(&mut world, initiator, 0, &cdb16(0x88, 999, 2), 2 * BLOCK), Err(0x5_2100));
        assert_eq!(ask(&mut world, initiator, 0, &cdb16(0x88, 999, 1), BLOCK).unwrap().len(), BLOCK);
    }
    leave(&mut world, &[&near, &far]);
}

/// Goal: a roll back is told to every nexus, once, and ends nothing.
#[test]
fn changed_contents_are_told() {
    let (mut world, mut near, mut far) = two();
    world.disk.stuck = true;
    let read = begin(&mut world, &mut far, 0, &cdb16(0x88, 0, 1), BLOCK);
    assert_eq!(change(&mut world, UnitChange::ContentsChanged { lun: 0 }), Ok(()));
    world.disk.stuck = false;
    world.settle();
    assert_eq!(answers(&far.hear(&mut world)), [(0x25, read, 0)]);
    for initiator in [&mut near, &mut far] {
        assert_eq!([(), ()].map(|()| ready(&mut world, initiator, 0)), [0x6_2800, 0]);
        assert_eq!(ready(&mut world, initiator, 1), 0);
    }
    leave(&mut world, &[&near, &far]);
}

/// Goal: a unit can go whatever is under way on it: all is told TASK ABORTED once it is quiet, later commands and
/// functions find no unit, the other unit goes on, and the program hears when the device has nothing any more. Method:
/// on both cores a read and a write that the disk holds, a write that waits for data, and an ORDERED command behind.
#[test]
fn a_unit_goes_while_it_is_busy() {
    let (mut world, mut near, mut far) = two();
    world.disk.stuck = true;
    let mut told = Vec::new();
    for (initiator, lba) in [(&mut near, 0), (&mut far, 100)] {
        let read = begin(&mut world, initiator, 1, &cdb16(0x88, lba, 8), 8 * BLOCK);
        let write = begin_write(&mut world, initiator, 1, lba + 50);
        let bhs = initiator.command(1, &cdb16(0x8a, lba + 70, 64), 0x20, 64 * BLOCK);
        let frame = initiator.frame(bhs, &pattern(8192, 1));
        initiator.send(&mut world, &frame);
        let owed = initiator.next_itt;
        let mut bhs = initiator.command(1, &READY, 0x80, 0);
        bhs[1] = bhs[1] & !7 | 2;
        let frame = initiator.frame(bhs, &[]);
        initiator.send(&mut world, &frame);
        told.push(([read, owed, initiator.next_itt], write));
        assert_eq!(initiator.hear(&mut world).len(), 0);
    }
    let other = begin_write(&mut world, &mut far, 0, 200);
    propose(&mut world, 9, UnitChange::Remove { lun: 1 });
    world.settle();
    for (initiator, (early, _)) in [&mut near, &mut far].into_iter().zip(&told) {
        let mut heard = answers(&initiator.hear(&mut world));
        heard.sort_unstable();
        assert_eq!(heard, early.map(|itt| (0x21, itt, TASK_ABORTED)));
        assert_eq!(ready(&mut world, initiator, 1), 0x5_2500);
        let function = initiator.tmf(&mut world, 5, 1, u32::MAX);
        assert_eq!(answers(&initiator.hear(&mut world)), [(0x22, function, 2)]);
        assert_eq!(ready(&mut world, initiator, 0), 0x6_3f0e);
    }
    // All writes first: reads are waited for, too.
    while let Some(place) = world.disk.waiting.iter().position(|request| request.io.op.writes()) {
        let (core, done) = world.disk.finish(place);
        world.env(core, |target, env| target.io_done(done, env));
    }
    world.settle();
    assert_eq!(answers(&near.hear(&mut world)), [(0x21, told[0].1, TASK_ABORTED)]);
    let mut heard = answers(&far.hear(&mut world));
    heard.sort_unstable();
    assert_eq!(heard, [(0x21, told[1].1, TASK_ABORTED), (0x21, other, 0)]);
    assert_eq!(world.target().poll_unit_change(), None, "its reads are still with the disk");
    world.disk.stuck = false;
    world.settle();
    assert_eq!(world.target().poll_unit_change(), Some((9, Ok(()))));
    assert_eq!((near.hear(&mut world).len(), far.hear(&mut world).len()), (0, 0));
    assert_eq!(world.free(), [64, 64, LARGE_BUFFERS as usize]);
    leave(&mut world, &[&near, &far]);
}

/// Goal: a number can go to another unit: its id is the new one's, and nothing of the old one is left to hear.
#[test]
fn a_number_is_used_again() {
    let (mut world, mut near, mut far) = two();
    let page = [0x12, 1, 0x83, 0, 255, 0];
    let before = ask(&mut world, &mut far, 1, &page, 255).unwrap();
    assert_eq!(change(&mut world, UnitChange::ContentsChanged { lun: 1 }), Ok(()));
    assert_eq!(change(&mut world, UnitChange::Remove { lun: 1 }), Ok(()));
    assert_eq!(listed(&mut world, &mut near), [0]);
    let mut other = lun_config(1);
    other.id = [0x99; 16];
    assert_eq!(change(&mut world, UnitChange::Add(Box::new(other))), Ok(()));
    for initiator in [&mut near, &mut far] {
        assert_eq!([(), ()].map(|()| ready(&mut world, initiator, 0)), [0x6_3f0e, 0]);
        assert_eq!([(), ()].map(|()| ready(&mut world, initiator, 1)), [0x6_2900, 0]);
        let after = ask(&mut world, initiator, 1, &page, 255).unwrap();
        assert_eq!(after[8..24], vaai::identity::naa(&[0x99; 16]));
        assert_ne!(after[8..24], before[8..24]);
    }
    leave(&mut world, &[&near, &far]);
}

/// Goal: what breaks a rule is refused with the rule, on all cores, and told to no initiator; changes are bounded until
/// their outcomes are taken.
#[test]
fn refusals_and_bounds() {
    let (mut world, mut near, mut far) = two();
    let refused = |error| Err(UnitChangeError::Refused(error));
    assert_eq!(change(&mut world, add(1)), refused(ConfigError::LunTwice { lun: 1 }));
    let mut copy = lun_config(0);
    copy.lun = 7;
    assert_eq!(change(&mut world, UnitChange::Add(Box::new(copy))), refused(ConfigError::IdTwice { lun: 7 }));
    assert_eq!(change(&mut world, UnitChange::Remove { lun: 7 }), refused(ConfigError::NoSuchLun { lun: 7 }));
    assert_eq!(
        change(&mut world, UnitChange::Resize { lun: 0, blocks: 0 }),
        refused(ConfigError::Geometry { lun: 0 })
    );
    let error = UnitChangeError::Refused(ConfigError::LunTwice { lun: 1 });
    assert_eq!(error.to_string(), "refused: LUN 1 is configured twice");
    for initiator in [&mut near, &mut far] {
        assert_eq!([0, 1].map(|lun| ready(&mut world, initiator, lun)), [0, 0]);
    }
    let tickets: Vec<u64> = (0..UNIT_CHANGES_MAX as u64).collect();
    for &ticket in &tickets {
        propose(&mut world, ticket, UnitChange::ContentsChanged { lun: 0 });
    }
    let one_more =
        |target: &mut Target, env: &mut iscsi::target::Env<'_>| target.propose_unit_change(99, add(5), env);
    assert!(!world.env(0, one_more));
    world.settle();
    assert!(!world.env(0, one_more), "made, but not taken");
    let made: Vec<u64> =
        std::iter::from_fn(|| world.target().poll_unit_change()).map(|(ticket, _)| ticket).collect();
    assert_eq!(made, tickets, "in order");
    assert_eq!(change(&mut world, add(5)), Ok(()));
    leave(&mut world, &[&near, &far]);
}

/// Goal: a device that gives a read of a removed unit back to nobody is told to the program, which must not close it.
#[test]
fn a_stuck_device_is_told() {
    let (mut world, near, mut far) = two();
    world.disk.stuck = true;
    begin(&mut world, &mut far, 1, &cdb16(0x88, 0, 1), BLOCK);
    propose(&mut world, 3, UnitChange::Remove { lun: 1 });
    world.pass(Duration::from_secs(29));
    far.hear(&mut world);
    assert_eq!(world.target().poll_unit_change(), None);
    world.pass(Duration::from_secs(2));
    assert_eq!(world.target().poll_unit_change(), Some((3, Err(UnitChangeError::Stuck))));
    world.disk.stuck = false;
    world.settle();
    leave(&mut world, &[&near, &far]);
}

/// Goal: a change of a unit that a task asked for, and a reset, which come behind the unit's removal end in order. Method:
/// both are proposed on core 1 while core 0 has removed the unit and core 1 has not.
#[test]
fn what_comes_behind_a_removal_ends() {
    let (mut world, near, mut far) = two();
    world.disk.stuck = true;
    let read = begin(&mut world, &mut far, 1, &cdb16(0x88, 0, 1), BLOCK);
    let mut list = ask(&mut world, &mut far, 1, &[0x1a, 0x08, 0x0a, 0, 16, 0], 16).unwrap();
    list[..4].fill(0);
    list[6] |= 0x04;
    propose(&mut world, 3, UnitChange::Remove { lun: 1 });
    world.env(0, Target::turn);
    let bhs = far.command(1, &[0x15, 0x10, 0, 0, 16, 0], 0xa0, 16);
    let frame = far.frame(bhs, &list);
    far.push(&mut world, &frame);
    let select = far.next_itt;
    let reset = far.tmf_request(5, 1, u32::MAX);
    far.push(&mut world, &reset);
    let reset = far.next_itt;
    world.settle();
    let mut heard = answers(&far.hear(&mut world));
    heard.sort_unstable();
    assert_eq!(heard, [(0x21, read, TASK_ABORTED), (0x21, select, TASK_ABORTED), (0x22, reset, 2)]);
    world.disk.stuck = false;
    world.settle();
    assert_eq!(world.target().poll_unit_change(), Some((3, Ok(()))));
    leave(&mut world, &[&near, &far]);
}
