//! Goal: several portals are several paths to the same units: each says which it is, all say the same of all, and one that dies
//! takes nothing with it that was answered. Method: as in `conversation`, with a session of one host by each portal, on cores of
//! their own.
#![allow(clippy::unwrap_used, reason = "a test program")]

mod world;

use std::collections::BTreeMap;
use world::{Asks, BLOCK, Initiator, World, cdb16, pattern};

/// A session by this portal.
fn login(world: &mut World, place: u16) -> Initiator {
    let mut initiator = world.connect_at(usize::from(place), place);
    initiator.login(world, 1 + place as u8, Asks::default());
    initiator.test_ready(world);
    initiator
}

fn get(world: &mut World, initiator: &mut Initiator, lun: u8, cdb: &[u8], room: usize) -> Vec<u8> {
    let bhs = initiator.command(lun, cdb, 0xc0, room);
    let frame = initiator.frame(bhs, &[]);
    initiator.send(world, &frame);
    let heard = initiator.hear(world);
    assert_eq!((heard.len(), heard[0].opcode(), heard[0].bhs[1] & 1, heard[0].bhs[3]), (1, 0x25, 1, 0));
    heard[0].data.clone()
}

/// Descriptors of page 83h: association and type, and what they say.
fn designators(page: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let mut rest = &page[4..4 + usize::from(u16::from_be_bytes([page[2], page[3]]))];
    let mut found = Vec::new();
    while let [_, kind, _, length, more @ ..] = rest {
        let (bytes, behind) = more.split_at(usize::from(*length));
        found.push((kind & 0x3f, bytes.to_vec()));
        rest = behind;
    }
    found
}

/// Goal: through every portal REPORT TARGET PORT GROUPS lists all ports, active and optimized, and page 83h says which of them, and
/// of which group, this path is; the unit's names are the same on all.
#[test]
fn each_portal_says_which_port_it_is() {
    let mut world = World::of_portals(3, 3);
    for lun in 0..2 {
        let mut names = Vec::new();
        for place in 0..3 {
            let mut path = login(&mut world, place);
            let groups = get(&mut world, &mut path, lun, &[0xa3, 0x0a, 0, 0, 0, 0, 0, 0, 0, 64, 0, 0], 64);
            assert_eq!(groups[..4], 20u32.to_be_bytes());
            // Active/optimized and nothing else; group 1, three ports.
            assert_eq!(groups[4..12], [0, 1, 0, 1, 0, 0, 0, 3]);
            assert_eq!(groups[12..], [0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3]);
            let page = get(&mut world, &mut path, lun, &[0x12, 1, 0x83, 2, 0, 0], 512);
            let said = designators(&page);
            let of = |kind: u8| said.iter().find(|(is, _)| *is == kind).unwrap().1.clone();
            assert_eq!(of(0x14), (u32::from(place) + 1).to_be_bytes(), "relative target port identifier");
            assert_eq!(of(0x15), 1u32.to_be_bytes(), "target port group");
            let own: Vec<_> = said.iter().filter(|(kind, _)| kind >> 4 == 0).cloned().collect();
            assert!(!own.is_empty());
            names.push(own);
            world.env(path.core, |target, env| target.close_connection(path.slot, env));
            world.settle();
        }
        assert!(names.windows(2).all(|two| two[0] == two[1]), "LUN {lun} is one unit on all paths");
    }
    world.assert_clean();
}

/// Numbers that differ with the seed.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

const PLACES: u64 = 40;

/// Writes a block by a path, and does not wait for the answer.
fn write(world: &mut World, path: &mut Initiator, at: u64, stamp: u64) -> u32 {
    let mut data = pattern(BLOCK, stamp as u8);
    data[..8].copy_from_slice(&stamp.to_be_bytes());
    let bhs = path.command(0, &cdb16(0x8a, at as u32, 1), 0xa0, BLOCK);
    let frame = path.frame(bhs, &data);
    path.push(world, &frame);
    path.next_itt
}

/// Goal: a path that dies under write load loses no write that was answered, of those that were not each is done whole or not
/// at all, and the other path goes on. Method: two paths write to places of their own, the disk answers as it likes; one dies
/// at any moment, all is read back by the other, the places are dealt anew, and the path comes back.
#[test]
fn a_dead_portal_loses_no_acknowledged_write() {
    for seed in 0..40 {
        let mut random = Random(seed);
        let mut world = World::of_portals(2, 2);
        let mut paths = [login(&mut world, 0), login(&mut world, 1)];
        // What each place may hold: the last that was answered, or any that was not.
        let mut may_be: Vec<Vec<u64>> = vec![vec![0]; PLACES as usize];
        let mut stamp = 0;
        let mut lost = 0;
        for round in 0..6 {
            world.disk.stuck = true;
            // By tag, of each path.
            let mut under_way: [BTreeMap<u32, (u64, u64)>; 2] = Default::default();
            let events = 20 + random.below(60);
            for _ in 0..events {
                let side = random.below(2) as usize;
                match random.below(4) {
                    0 | 1 => {
                        // Each path has its places in this round: every other one.
                        let at = random.below(PLACES / 2) * 2 + (side as u64 + round) % 2;
                        let is_busy = under_way[side].values().any(|&(busy, _)| busy == at);
                        if !is_busy && under_way[side].len() < 12 {
                            stamp += 1;
                            let itt = write(&mut world, &mut paths[side], at, stamp);
                            under_way[side].insert(itt, (at, stamp));
                            may_be[at as usize].push(stamp);
                            world.turn();
                        }
                    }
                    2 if !world.disk.waiting.is_empty() => {
                        let nth = random.below(world.disk.waiting.len() as u64) as usize;
                        let (core, done) = world.disk.finish(nth);
                        world.env(core, |target, env| target.io_done(done, env));
                        world.turn();
                    }
                    _ => {
                        for pdu in paths[side].hear(&mut world) {
                            assert_eq!((pdu.opcode(), pdu.bhs[3]), (0x21, 0));
                            let (at, stamp) = under_way[side].remove(&pdu.itt()).unwrap();
                            may_be[at as usize] = vec![stamp];
                        }
                    }
                }
            }
            let dead = random.below(2) as usize;
            let (core, slot) = (paths[dead].core, paths[dead].slot);
            world.env(core, |target, env| target.close_connection(slot, env));
            lost += under_way[dead].len();
            world.disk.stuck = false;
            world.settle();
            let alive = 1 - dead;
            for pdu in paths[alive].hear(&mut world) {
                let (at, stamp) = under_way[alive].remove(&pdu.itt()).unwrap();
                assert_eq!((pdu.opcode(), pdu.bhs[3]), (0x21, 0));
                may_be[at as usize] = vec![stamp];
            }
            assert!(under_way[alive].is_empty(), "seed {seed}: the other path goes on");
            for (at, may_be) in may_be.iter_mut().enumerate() {
                let data = paths[alive].read(&mut world, at as u32, 1);
                let found = u64::from_be_bytes(data[..8].try_into().unwrap());
                assert!(may_be.contains(&found), "seed {seed}, block {at}: {found} of {may_be:?}");
                let mut whole = pattern(BLOCK, found as u8);
                whole[..8].copy_from_slice(&found.to_be_bytes());
                assert!(found == 0 || data == whole, "seed {seed}: block {at} is torn");
                *may_be = vec![found];
            }
            paths[dead] = login(&mut world, dead as u16);
        }
        assert!(lost > 0, "seed {seed}: nothing was under way on the path that died");
        for path in paths {
            world.env(path.core, |target, env| target.close_connection(path.slot, env));
        }
        world.settle();
        world.assert_clean();
    }
}
