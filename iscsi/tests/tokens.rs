//! Goal: a token that one session gets can be used in any other, on any core, and what it holds is given back when it ends
//! and nobody uses it. Method: as in `copies`, over two cores; the volume for tokens is a part of the disk.
#![allow(clippy::unwrap_used, reason = "a test program")]

mod world;

use iscsi::target::Target;
use std::time::Duration;
use vaai::change::UnitChange;
use world::{Asks, BLOCK, Initiator, Pdu, World, pattern};

const POPULATE: u8 = 0x10;
const WRITE_USING: u8 = 0x11;
const ABORT_TASK: u8 = 1;
const LUN_RESET: u8 = 5;

fn cdb(opcode: u8, action: u8, length: usize) -> [u8; 16] {
    let mut cdb = [0; 16];
    (cdb[0], cdb[1]) = (opcode, action);
    cdb[if opcode == 0x83 { 9 } else { 5 }] = 7;
    cdb[10..14].copy_from_slice(&(length as u32).to_be_bytes());
    cdb
}

fn with_range(mut list: Vec<u8>, lba: u64) -> Vec<u8> {
    let length = list.len() + 16;
    list[..2].copy_from_slice(&(length as u16 - 2).to_be_bytes());
    list[length - 17] = 16;
    list.extend(lba.to_be_bytes());
    list.extend([0, 0, 0, 8, 0, 0, 0, 0]);
    list
}

/// Eight blocks; the token is kept for a second.
fn populate_list(lba: u64) -> Vec<u8> {
    let mut list = vec![0; 16];
    list[7] = 1;
    with_range(list, lba)
}

fn write_list(token: &[u8], flags: u8, lba: u64) -> Vec<u8> {
    let mut list = vec![0; 536];
    list[2] = flags;
    list[16..528].copy_from_slice(token);
    with_range(list, lba)
}

/// Sends it; says its tag.
fn begin(world: &mut World, initiator: &mut Initiator, lun: u8, action: u8, list: &[u8]) -> u32 {
    let bhs = initiator.command(lun, &cdb(0x83, action, list.len()), 0xa0, list.len());
    let frame = initiator.frame(bhs, list);
    initiator.send(world, &frame);
    initiator.next_itt
}

/// Status, and the additional sense code with its qualifier.
fn ending(pdu: &Pdu) -> (u8, u16) {
    assert_eq!(pdu.opcode(), 0x21);
    let code = pdu.data.get(14..16).map_or(0, |code| u16::from_be_bytes([code[0], code[1]]));
    (pdu.bhs[3], code)
}

fn run(world: &mut World, initiator: &mut Initiator, lun: u8, action: u8, list: &[u8]) -> (u8, u16) {
    begin(world, initiator, lun, action, list);
    world.settle();
    ending(&initiator.hear(world)[0])
}

fn token_of(world: &mut World, initiator: &mut Initiator, lba: u64) -> Vec<u8> {
    assert_eq!(run(world, initiator, 0, POPULATE, &populate_list(lba)), (0, 0));
    let bhs = initiator.command(0, &cdb(0x84, 0x07, 1024), 0xc0, 1024);
    let frame = initiator.frame(bhs, &[]);
    initiator.send(world, &frame);
    let told = initiator.hear(world)[0].data.clone();
    assert_eq!((told.len(), told[5]), (550, 1));
    told[38..].to_vec()
}

/// Two cores, with a session on each.
fn world() -> (World, [Initiator; 2]) {
    let mut world = World::of_volumes(2);
    world.disk.bytes[..64 * BLOCK].copy_from_slice(&pattern(64 * BLOCK, 9));
    let sessions = [0, 1].map(|core| {
        let mut initiator = world.connect_to(core);
        initiator.login(&mut world, core as u8 + 1, Asks::default());
        initiator.test_ready(&mut world);
        initiator
    });
    (world, sessions)
}

fn blocks(world: &World, lba: usize) -> Vec<u8> {
    world.disk.bytes[lba * BLOCK..(lba + 8) * BLOCK].to_vec()
}

fn finish(world: &mut World) {
    let (core, copied) = world.disk.finish_copy();
    world.env(core, |target, env| target.copy_done(&copied, env));
    world.turn();
}

/// The time of a token that nobody uses is over: nothing of it is left.
fn assert_ends(world: &mut World) {
    assert!(!world.disk.store.is_empty());
    world.disk.stuck = false;
    world.settle();
    world.pass(Duration::from_secs(2));
    assert!(world.disk.store.is_empty());
}

/// Goal: a token that was made on either core writes on the other what its source was then, and after its time is told as
/// expired on both.
#[test]
fn tokens_are_known_to_all_cores() {
    for maker in [0, 1] {
        let (mut world, mut sessions) = world();
        let data = blocks(&world, 3);
        let token = token_of(&mut world, &mut sessions[maker], 3);
        world.disk.bytes[..64 * BLOCK].fill(0xee);
        let user = &mut sessions[1 - maker];
        assert_eq!(run(&mut world, user, 1, WRITE_USING, &write_list(&token, 0, 100)), (0, 0));
        assert!(blocks(&world, 100) == data);
        assert_ends(&mut world);
        for user in &mut sessions {
            assert_eq!(run(&mut world, user, 1, WRITE_USING, &write_list(&token, 0, 200)), (2, 0x2307));
        }
        assert!(blocks(&world, 200) == vec![0; 8 * BLOCK]);
    }
}

/// Goal: a token is known when POPULATE TOKEN is answered, and not sooner. Method: the mail between the cores waits.
#[test]
fn tokens_are_known_before_they_are_told() {
    let (mut world, [mut maker, _]) = world();
    world.disk.stuck = true;
    begin(&mut world, &mut maker, 0, POPULATE, &populate_list(3));
    world.turn();
    let (core, copied) = world.disk.finish_copy();
    world.env(core, |target, env| target.copy_done(&copied, env));
    for _ in 0..3 {
        world.env(0, Target::turn);
    }
    let says = |world: &mut World| {
        let mut slices = [std::io::IoSlice::new(&[]); 7];
        world.nodes[0].target.transmit(maker.slot, &mut slices)
    };
    assert_eq!(says(&mut world), 0, "the other core does not know it yet");
    world.turn();
    assert!(says(&mut world) > 0);
}

/// Goal: what is in use stays, although the token was deleted by another command meanwhile; then it goes.
#[test]
fn tokens_in_use_keep_their_data() {
    let (mut world, [mut one, mut two]) = world();
    let data = blocks(&world, 3);
    let token = token_of(&mut world, &mut one, 3);
    world.disk.stuck = true;
    begin(&mut world, &mut two, 1, WRITE_USING, &write_list(&token, 0, 100));
    world.turn();
    let slow = world.disk.copies.pop_front().unwrap();
    begin(&mut world, &mut one, 0, WRITE_USING, &write_list(&token, 0x02, 200));
    world.turn();
    finish(&mut world);
    assert_eq!(ending(&one.hear(&mut world)[0]), (0, 0));
    world.disk.stuck = false;
    assert_eq!(run(&mut world, &mut one, 0, WRITE_USING, &write_list(&token, 0, 300)), (2, 0x2309));
    world.pass(Duration::from_secs(3));
    assert!(!world.disk.store.is_empty(), "somebody reads it");
    world.disk.copies.push_back(slow);
    world.settle();
    assert_eq!(ending(&two.hear(&mut world)[0]), (0, 0));
    assert!(blocks(&world, 100) == data && blocks(&world, 200) == data);
    world.settle();
    world.tick();
    world.settle();
    assert!(world.disk.store.is_empty());
}

/// Goal: whichever way a command ends before its time, and at whatever point, what it has of tokens comes back: the use of
/// one, or the place of one that is not made. Method: ABORT TASK, LUN reset and the loss of the session, while it copies
/// and while it waits for the other core.
#[test]
fn commands_that_are_ended_leave_nothing() {
    for action in [POPULATE, WRITE_USING] {
        for how in 0..3 {
            for point in 0..3 {
                let (mut world, [mut maker, mut user]) = world();
                let token = token_of(&mut world, &mut maker, 3);
                let list = if action == POPULATE { populate_list(20) } else { write_list(&token, 0, 100) };
                world.disk.stuck = true;
                let bhs = user.command(1, &cdb(0x83, action, list.len()), 0xa0, list.len());
                let frame = user.frame(bhs, &list);
                let itt = user.next_itt;
                user.push(&mut world, &frame);
                if point > 0 {
                    world.turn();
                    assert_eq!(world.disk.copies.len(), 1);
                }
                if point > 1 {
                    // Its data are there, and the other core does not know.
                    let (core, copied) = world.disk.finish_copy();
                    world.env(core, |target, env| target.copy_done(&copied, env));
                }
                match how {
                    0 => {
                        let request = user.tmf_request(ABORT_TASK, 1, itt);
                        user.push(&mut world, &request);
                    }
                    1 => {
                        let request = maker.tmf_request(LUN_RESET, 1, u32::MAX);
                        maker.push(&mut world, &request);
                    }
                    _ => world.env(1, |target, env| target.close_connection(user.slot, env)),
                }
                world.turn();
                while !world.disk.copies.is_empty() {
                    finish(&mut world);
                }
                assert_ends(&mut world);
                let is_written = blocks(&world, 100) != vec![0; 8 * BLOCK];
                assert_eq!(is_written, action == WRITE_USING && point > 1, "{how}");
                for initiator in [maker, user] {
                    world.env(initiator.core, |target, env| target.close_connection(initiator.slot, env));
                }
                world.settle();
                world.assert_clean();
            }
        }
    }
}

/// Goal: COPY OPERATION ABORT ends a token based copy, and its record says so.
#[test]
fn copies_are_stopped_by_their_identifier() {
    let (mut world, [mut maker, mut user]) = world();
    let token = token_of(&mut world, &mut maker, 3);
    world.disk.stuck = true;
    begin(&mut world, &mut user, 1, WRITE_USING, &write_list(&token, 0, 100));
    world.turn();
    let mut stop = cdb(0x83, 0x1c, 0);
    (stop[9], stop[5]) = (0, 7);
    let bhs = user.command(1, &stop, 0x80, 0);
    let frame = user.frame(bhs, &[]);
    user.send(&mut world, &frame);
    world.turn();
    assert!(world.disk.copies[0].2, "it is given up");
    finish(&mut world);
    let mut heard = user.hear(&mut world);
    heard.sort_by_key(Pdu::itt);
    assert_eq!((heard[0].bhs[3], heard[0].data[2 + 2] & 0xf, heard[1].bhs[3]), (2, 0xa, 0));
    let bhs = user.command(1, &cdb(0x84, 0x07, 1024), 0xc0, 1024);
    let frame = user.frame(bhs, &[]);
    user.send(&mut world, &frame);
    assert_eq!(user.hear(&mut world)[0].data[5], 0x60);
    assert!(blocks(&world, 100) == vec![0; 8 * BLOCK]);
    assert_ends(&mut world);
}

/// Goal: with its unit a token ends on every core.
#[test]
fn tokens_end_with_their_unit() {
    let (mut world, [mut maker, mut user]) = world();
    let token = token_of(&mut world, &mut maker, 3);
    let removal = UnitChange::Remove { lun: 0 };
    assert!(world.env(0, |target, env| target.propose_unit_change(3, removal, env)));
    world.settle();
    assert_eq!(world.target().poll_unit_change(), Some((3, Ok(()))));
    assert_eq!(run(&mut world, &mut user, 1, WRITE_USING, &write_list(&token, 0, 100)).0, 2, "told of it");
    assert_eq!(run(&mut world, &mut user, 1, WRITE_USING, &write_list(&token, 0, 100)), (2, 0x2306));
    world.tick();
    world.settle();
    assert!(world.disk.store.is_empty());
}
