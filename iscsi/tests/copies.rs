//! Goal: third-party copies are carried out, and end as all commands do when they are aborted, stopped, or lose a unit.
//! Method: as in `conversation`, with copies that the disk holds until it is told.
#![allow(clippy::unwrap_used, reason = "a test program")]

mod world;

use vaai::change::UnitChange;
use vaai::identity::naa;
use world::{Asks, BLOCK, Initiator, Pdu, World, lun_config, pattern};

const TASK_ABORTED: u8 = 0x40;
const ABORT_TASK: u8 = 1;
const ABORT_TASK_SET: u8 = 2;
const CLEAR_TASK_SET: u8 = 4;
const LUN_RESET: u8 = 5;

fn cscd(lun: u16) -> Vec<u8> {
    let mut bytes = vec![0; 32];
    (bytes[0], bytes[4], bytes[5], bytes[7]) = (0xe4, 1, 3, 16);
    bytes[8..24].copy_from_slice(&naa(&lun_config(lun).id));
    bytes
}

/// A list of four-byte identifier: eight blocks from block 0 of LUN 1 to `to` of LUN 0.
fn list(id: u32, to: u64) -> Vec<u8> {
    let mut bytes = vec![0; 48];
    (bytes[0], bytes[3], bytes[16]) = (1, 0x20, 0xff);
    bytes[20..24].copy_from_slice(&id.to_be_bytes());
    (bytes[43], bytes[45]) = (64, 28);
    bytes.extend([cscd(0), cscd(1)].concat());
    bytes.extend([0x02, 0, 0, 0x18, 0, 1, 0, 0, 0, 0, 0, 8]);
    bytes.extend(0u64.to_be_bytes());
    bytes.extend(to.to_be_bytes());
    bytes
}

fn cdb(opcode: u8, action: u8, id: u32, length: usize) -> [u8; 16] {
    let mut cdb = [0; 16];
    (cdb[0], cdb[1]) = (opcode, action);
    cdb[2..6].copy_from_slice(&id.to_be_bytes());
    cdb[10..14].copy_from_slice(&(length as u32).to_be_bytes());
    cdb
}

/// Sends EXTENDED COPY(LID4) to LUN 0; says its tag.
fn begin(world: &mut World, initiator: &mut Initiator, id: u32, to: u64) -> u32 {
    let list = list(id, to);
    let mut cdb = cdb(0x83, 0x01, 0, list.len());
    cdb[2..6].fill(0);
    let bhs = initiator.command(0, &cdb, 0xa0, list.len());
    let frame = initiator.frame(bhs, &list);
    initiator.send(world, &frame);
    initiator.next_itt
}

/// The same with IMMED=1.
fn begin_in_background(world: &mut World, initiator: &mut Initiator, id: u32, to: u64) -> u32 {
    let list = immediate(list(id, to));
    let mut cdb = cdb(0x83, 0x01, 0, list.len());
    cdb[2..6].fill(0);
    let bhs = initiator.command(0, &cdb, 0xa0, list.len());
    let frame = initiator.frame(bhs, &list);
    initiator.send(world, &frame);
    initiator.next_itt
}

fn immediate(mut list: Vec<u8>) -> Vec<u8> {
    list[15] |= 0x02;
    list
}

fn ask(world: &mut World, initiator: &mut Initiator, cdb: &[u8; 16], room: usize) -> u32 {
    let bhs = initiator.command(0, cdb, if room > 0 { 0xc0 } else { 0x80 }, room);
    let frame = initiator.frame(bhs, &[]);
    initiator.send(world, &frame);
    initiator.next_itt
}

fn answers(pdus: &[Pdu]) -> Vec<(u8, u32, u8)> {
    pdus.iter()
        .map(|pdu| (pdu.opcode(), pdu.itt(), pdu.bhs[if pdu.opcode() == 0x22 { 2 } else { 3 }]))
        .collect()
}

/// A world whose first blocks have something, and a session that both units have told of their power on.
fn world() -> (World, Initiator) {
    let mut world = World::of(2);
    world.disk.bytes[..8 * BLOCK].copy_from_slice(&pattern(8 * BLOCK, 9));
    let mut initiator = world.connect_to(1);
    initiator.login(&mut world, 1, Asks::default());
    initiator.test_ready(&mut world);
    world.disk.stuck = true;
    (world, initiator)
}

fn finish(world: &mut World) {
    let (core, copied) = world.disk.finish_copy();
    world.env(core, |target, env| target.copy_done(&copied, env));
    world.turn();
}

fn is_copied(world: &World, to: usize) -> bool {
    world.disk.bytes[to * BLOCK..][..8 * BLOCK] == world.disk.bytes[..8 * BLOCK]
}

/// Goal: a copy between units is answered when it is done.
#[test]
fn copies_are_carried_out() {
    let (mut world, mut initiator) = world();
    let itt = begin(&mut world, &mut initiator, 7, 100);
    world.turn();
    assert!(initiator.hear(&mut world).is_empty() && !is_copied(&world, 100));
    finish(&mut world);
    assert_eq!(answers(&initiator.hear(&mut world)), [(0x21, itt, 0)]);
    assert!(is_copied(&world, 100));
}

/// Goal: the abort of a copy is answered when the copy is back, and nothing of it comes later.
#[test]
fn aborts_wait_for_the_copy() {
    let (mut world, mut initiator) = world();
    let itt = begin(&mut world, &mut initiator, 7, 100);
    world.turn();
    let request = initiator.tmf_request(ABORT_TASK, 0, itt);
    initiator.send(&mut world, &request);
    world.turn();
    assert!(initiator.hear(&mut world).is_empty(), "it is under way");
    assert!(world.disk.copies[0].2, "and given up");
    finish(&mut world);
    let heard = answers(&initiator.hear(&mut world));
    assert_eq!(
        heard.iter().map(|&(opcode, _, response)| (opcode, response)).collect::<Vec<_>>(),
        [(0x22, 0)]
    );
    assert!(!is_copied(&world, 100) && world.disk.copies.is_empty());
}

/// Goal: COPY OPERATION ABORT ends the copy that it names, and no other, and the copy's record says so.
#[test]
fn copies_are_stopped_by_their_identifier() {
    let (mut world, mut initiator) = world();
    let [one, two] = [(7, 100), (8, 200)].map(|(id, to)| begin(&mut world, &mut initiator, id, to));
    world.turn();
    let stop = ask(&mut world, &mut initiator, &cdb(0x83, 0x1c, 7, 0), 0);
    world.turn();
    assert_eq!(world.disk.copies.iter().map(|copy| copy.2).collect::<Vec<_>>(), [true, false]);
    finish(&mut world);
    finish(&mut world);
    let mut heard = initiator.hear(&mut world);
    heard.sort_by_key(Pdu::itt);
    assert_eq!(answers(&heard), [(0x21, one, 2), (0x21, two, 0), (0x21, stop, 0)]);
    assert_eq!(heard[0].data[2 + 2] & 0xf, 0xa, "COPY ABORTED");
    assert!(!is_copied(&world, 100) && is_copied(&world, 200));
    ask(&mut world, &mut initiator, &cdb(0x84, 0x05, 7, 512), 512);
    assert_eq!(initiator.hear(&mut world)[0].data[5], 0x60);
    let gone = ask(&mut world, &mut initiator, &cdb(0x83, 0x1c, 7, 0), 0);
    assert_eq!(answers(&initiator.hear(&mut world)), [(0x21, gone, 2)]);
}

/// Goal: a copy with IMMED=1 is answered at once, its tag is free, and neither ABORT TASK nor ABORT TASK SET nor CLEAR TASK
/// SET ends what they do not name; its nexus hears how it stands.
#[test]
fn background_copies_are_no_tasks() {
    let (mut world, mut initiator) = world();
    let itt = begin_in_background(&mut world, &mut initiator, 7, 100);
    assert_eq!(answers(&initiator.hear(&mut world)), [(0x21, itt, 0)], "answered, though the disk holds it");
    for (function, names) in [(ABORT_TASK, itt), (ABORT_TASK_SET, u32::MAX), (CLEAR_TASK_SET, u32::MAX)] {
        let request = initiator.tmf_request(function, 0, names);
        initiator.send(&mut world, &request);
        let heard = answers(&initiator.hear(&mut world));
        assert_eq!(heard.iter().map(|heard| (heard.0, heard.2)).collect::<Vec<_>>(), [(0x22, 0)]);
    }
    // Another command with the same tag has nothing to do with it: neither one whose answer has not left yet, ...
    initiator.next_itt = itt - 1;
    let bhs = initiator.command(0, &[0; 6], 0x80, 0);
    let (ready, abort) = (initiator.frame(bhs, &[]), initiator.tmf_request(ABORT_TASK, 0, itt));
    initiator.send(&mut world, &[ready, abort].concat());
    assert_eq!(answers(&initiator.hear(&mut world)).iter().map(|heard| heard.0).collect::<Vec<_>>(), [0x22]);
    assert_eq!(world.disk.copies.iter().map(|copy| copy.2).collect::<Vec<_>>(), [false]);
    // ... nor one that is under way.
    initiator.next_itt = itt - 1;
    let other = begin(&mut world, &mut initiator, 8, 200);
    assert_eq!(other, itt);
    world.turn();
    let request = initiator.tmf_request(ABORT_TASK, 0, itt);
    initiator.send(&mut world, &request);
    world.turn();
    assert_eq!(world.disk.copies.iter().map(|copy| copy.2).collect::<Vec<_>>(), [false, true]);
    ask(&mut world, &mut initiator, &cdb(0x84, 0x05, 7, 512), 512);
    let told = initiator.hear(&mut world);
    assert_eq!(told[0].data[5], 0x12, "in progress, in the background");
    finish(&mut world);
    finish(&mut world);
    let heard = answers(&initiator.hear(&mut world));
    assert_eq!(heard.iter().map(|heard| (heard.0, heard.2)).collect::<Vec<_>>(), [(0x22, 0)]);
    assert!(is_copied(&world, 100) && !is_copied(&world, 200));
    ask(&mut world, &mut initiator, &cdb(0x84, 0x05, 7, 512), 512);
    let told = initiator.hear(&mut world);
    assert_eq!((told[0].data[5], &told[0].data[16..24]), (1, &(8 * BLOCK as u64).to_be_bytes()[..]));
    world.env(1, |target, env| target.close_connection(initiator.slot, env));
    world.settle();
    world.assert_clean();
}

/// Goal: what is to end a copy in the background ends it, and is answered when it is back: a reset, the removal of a unit, a
/// logout, COPY OPERATION ABORT; of these copies nobody is told TASK ABORTED.
#[test]
fn background_copies_end_with_what_they_hang_on() {
    for case in 0..4 {
        let (mut world, mut initiator) = world();
        let itt = begin_in_background(&mut world, &mut initiator, 7, 100);
        assert_eq!(answers(&initiator.hear(&mut world)), [(0x21, itt, 0)]);
        let last = match case {
            0 => {
                let request = initiator.tmf_request(LUN_RESET, 0, u32::MAX);
                initiator.send(&mut world, &request);
                vec![(0x22, 0)]
            }
            1 => {
                let removal = UnitChange::Remove { lun: 1 };
                assert!(world.env(0, |target, env| target.propose_unit_change(3, removal, env)));
                vec![]
            }
            2 => {
                let request = initiator.logout_request();
                initiator.send(&mut world, &request);
                vec![(0x26, 0)]
            }
            _ => {
                ask(&mut world, &mut initiator, &cdb(0x83, 0x1c, 7, 0), 0);
                world.turn();
                assert_eq!(initiator.hear(&mut world).len(), 1, "answered at once: nothing begins behind it");
                vec![]
            }
        };
        world.turn();
        assert!(initiator.hear(&mut world).is_empty(), "{case}: it is under way");
        assert_eq!(world.target().poll_unit_change(), None);
        assert!(world.disk.copies[0].2, "{case}: it is given up");
        finish(&mut world);
        world.settle();
        let heard = answers(&initiator.hear(&mut world));
        assert_eq!(heard.iter().map(|heard| (heard.0, heard.2)).collect::<Vec<_>>(), last, "{case}");
        assert!(!is_copied(&world, 100) && world.disk.copies.is_empty());
        if case == 1 {
            assert_eq!(world.target().poll_unit_change(), Some((3, Ok(()))));
        }
        if case == 3 {
            ask(&mut world, &mut initiator, &cdb(0x84, 0x05, 7, 512), 512);
            assert_eq!(initiator.hear(&mut world)[0].data[5], 0x60);
        }
        world.env(1, |target, env| target.close_connection(initiator.slot, env));
        world.settle();
        world.assert_clean();
    }
}

/// Goal: a session that ends takes its copies in the background with it.
#[test]
fn background_copies_end_with_their_session() {
    let (mut world, mut initiator) = world();
    begin_in_background(&mut world, &mut initiator, 7, 100);
    world.turn();
    world.env(1, |target, env| target.close_connection(initiator.slot, env));
    world.turn();
    assert!(world.disk.copies[0].2);
    finish(&mut world);
    world.settle();
    assert!(!is_copied(&world, 100));
    world.assert_clean();
}

/// Goal: ABORT TASK that comes before the answer has left takes the answer back, and the copy with it.
#[test]
fn withdrawn_answers_end_their_copies() {
    let (mut world, mut initiator) = world();
    let (itt, list) = (initiator.next_itt + 1, immediate(list(7, 100)));
    let mut cdb = cdb(0x83, 0x01, 0, list.len());
    cdb[2..6].fill(0);
    let bhs = initiator.command(0, &cdb, 0xa0, list.len());
    let both = [initiator.frame(bhs, &list), initiator.tmf_request(ABORT_TASK, 0, itt)].concat();
    initiator.send(&mut world, &both);
    world.turn();
    assert!(world.disk.copies[0].2, "given up");
    finish(&mut world);
    let heard = answers(&initiator.hear(&mut world));
    assert_eq!(heard.iter().map(|heard| (heard.0, heard.2)).collect::<Vec<_>>(), [(0x22, 0)]);
    assert!(!is_copied(&world, 100));
}

/// Goal: when a copy's source is removed the copy is given up, though its command went to another unit, and the removal
/// is made when it is back.
#[test]
fn removed_sources_end_their_copies() {
    let (mut world, mut initiator) = world();
    let itt = begin(&mut world, &mut initiator, 7, 100);
    world.turn();
    let removal = UnitChange::Remove { lun: 1 };
    assert!(world.env(0, |target, env| target.propose_unit_change(3, removal, env)));
    world.turn();
    assert_eq!(world.target().poll_unit_change(), None);
    finish(&mut world);
    world.settle();
    assert_eq!(world.target().poll_unit_change(), Some((3, Ok(()))));
    assert_eq!(answers(&initiator.hear(&mut world)), [(0x21, itt, TASK_ABORTED)]);
    assert!(!is_copied(&world, 100));
    let again = begin(&mut world, &mut initiator, 7, 100);
    let heard = initiator.hear(&mut world);
    assert_eq!(answers(&heard), [(0x21, again, 2)], "REPORTED LUNS DATA HAS CHANGED first");
    begin(&mut world, &mut initiator, 7, 100);
    let sense = &initiator.hear(&mut world)[0].data[2..];
    assert_eq!((sense[2] & 0xf, sense[12], sense[13]), (0xa, 0x0d, 0x02), "a unit that nobody sees");
}

/// Goal: a session that ends gives its copies up and leaves nothing.
#[test]
fn lost_sessions_leave_nothing() {
    let (mut world, mut initiator) = world();
    begin(&mut world, &mut initiator, 7, 100);
    world.turn();
    world.env(1, |target, env| target.close_connection(initiator.slot, env));
    world.turn();
    assert!(world.disk.copies[0].2);
    finish(&mut world);
    world.settle();
    world.assert_clean();
}
