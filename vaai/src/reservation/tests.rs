//! Reservations as initiators meet them: every sense code, the lists' forms, and the table of conflicts.

use super::list::to_transport_id;
use super::{ItNexus, KEPT_BYTES_MAX, check_kept};
use crate::change::Change;
use crate::command::NexusId;
use crate::harness::{Answer, NEXUS, OTHER, World, cdb10, geometry, lun_config, versatile};
use crate::limits::REGISTRATIONS_MAX;
use crate::lun::LunConfig;
use crate::opcodes;
use crate::reservation::Access;
use crate::sense::{Sense, Status};
use crate::server::NexusInfo;
use proptest::prelude::*;

pub(super) const RESERVE_6: [u8; 6] = [0x16, 0, 0, 0, 0, 0];
pub(super) const RELEASE_6: [u8; 6] = [0x17, 0, 0, 0, 0, 0];
const READY: [u8; 6] = [0; 6];
const THIRD: NexusId = NexusId(3);

/// Type 1 to 8.
const WE: u8 = 1;
const EA: u8 = 3;
const WE_RO: u8 = 5;
const EA_RO: u8 = 6;
const WE_AR: u8 = 7;
const EA_AR: u8 = 8;

/// NEXUS and OTHER are of one initiator at ports 1 and 3; the third is another's at port 1.
fn world() -> World {
    world_of(None)
}

fn world_of(reservations: Option<Vec<u8>>) -> World {
    let mut world = World::of(vec![LunConfig { reservations, ..versatile(0) }]);
    open(&mut world, THIRD, "iqn.2026-11.test:third", [2, 0x3D, 0, 0, 0, 0xAB], 1);
    world
}

fn open(world: &mut World, nexus: NexusId, name: &str, isid: [u8; 6], relative_port: u16) {
    let initiator_name = name.to_owned();
    world.server.open_nexus(nexus, NexusInfo { initiator_name, isid, relative_port, after_loss: false });
    world.hear(nexus);
}

fn third(relative_port: u16) -> ItNexus {
    let initiator_name = "iqn.2026-11.test:third".to_owned();
    ItNexus { initiator_name, isid: [2, 0x3D, 0, 0, 0, 0xAB], relative_port }
}

/// The 24 bytes.
pub(super) fn list(key: u64, action_key: u64, flags: u8) -> Vec<u8> {
    let mut list = [key.to_be_bytes(), action_key.to_be_bytes(), [0; 8]].concat();
    list[20] = flags;
    list
}

pub(super) fn out(
    world: &mut World,
    nexus: NexusId,
    service_action: u8,
    scope_and_type: u8,
    list: &[u8],
) -> Answer {
    let [a, b, c, d] = (list.len() as u32).to_be_bytes();
    let cdb = [0x5F, service_action, scope_and_type, 0, 0, a, b, c, d, 0];
    world.run_as(nexus, 0, &cdb, 0, list)
}

fn register(world: &mut World, nexus: NexusId, key: u64) {
    out(world, nexus, 6, 0, &list(0, key, 0)).good();
}

pub(super) fn ask(world: &mut World, service_action: u8) -> Vec<u8> {
    world.run_as(NEXUS, 0, &[0x5E, service_action, 0, 0, 0, 0, 0, 0xFF, 0xFF, 0], 65_536, &[]).good().data
}

fn keys(world: &mut World) -> Vec<u64> {
    let data = ask(world, 0);
    assert_eq!(data.len() - 8, u32::from_be_bytes([data[4], data[5], data[6], data[7]]) as usize);
    data[8..].chunks(8).map(|key| u64::from_be_bytes(key.try_into().unwrap())).collect()
}

fn generation(world: &mut World) -> u32 {
    u32::from_be_bytes(ask(world, 0)[..4].try_into().unwrap())
}

/// Key and type of the reservation.
fn held(world: &mut World) -> Option<(u64, u8)> {
    let data = ask(world, 1);
    (data.len() > 8).then(|| (u64::from_be_bytes(data[8..16].try_into().unwrap()), data[21]))
}

pub(super) trait Conflicts {
    fn conflict(self);
}

impl Conflicts for Answer {
    #[track_caller]
    fn conflict(self) {
        assert_eq!((self.status, &self.sense[..]), (Status::ReservationConflict, &[][..]), "{self:02X?}");
        assert_eq!(self.ios, []);
    }
}

/// INVALID FIELD IN PARAMETER LIST, pointing there.
#[track_caller]
fn bad_list(answer: Answer, byte: u16, bit: Option<u8>) {
    assert_eq!(answer.pointer(), Some((false, byte, bit)), "{answer:02X?}");
    answer.bad(0x5_2600);
}

/// Goal: RESERVE and RELEASE as SPC-2 has them, from both CDBs; obsolete forms are refused.
#[test]
fn reserve_keeps_others_out_until_it_is_released() {
    let mut world = world();
    for (take, give) in [(&RESERVE_6[..], &RELEASE_6[..]), (&[0x56; 1], &[0x57; 1])] {
        let full = |cdb: &[u8]| [cdb, &[0; 10][cdb.len()..]].concat();
        world.get(&full(take), 0).good();
        world.get(&full(take), 0).good();
        world.run_as(OTHER, 0, &full(take), 0, &[]).conflict();
        world.run_as(OTHER, 0, &full(give), 0, &[]).good();
        world.run_as(OTHER, 0, &cdb10(0x2A, 0, 0, 1), 0, &[0; 512]).conflict();
        world.run_as(OTHER, 0, &[0x1A, 0, 0x3F, 0, 255, 0], 255, &[]).conflict();
        world.run_as(OTHER, 0, &READY, 0, &[]).good();
        world.put(&cdb10(0x2A, 0, 0, 1), &[0; 512]).good();
        world.get(&full(give), 0).good();
        world.run_as(OTHER, 0, &cdb10(0x2A, 0, 0, 1), 0, &[0; 512]).good();
        world.get(&full(give), 0).good();
        assert_eq!((world.hear(NEXUS), world.hear(OTHER)), (vec![], vec![]));
    }
    world.get(&[0x16, 0x01, 0, 0, 0, 0], 0).bad_field(1, Some(7));
    world.get(&[0x56, 0x10, 0, 0, 0, 0, 0, 0, 0, 0], 0).bad_field(1, Some(7));
}

/// Goal: RESERVE ends with the nexus and with a reset; what is registered does not.
#[test]
fn what_ends_with_the_nexus() {
    let mut world = world();
    let ends = [Change::NexusLost { nexus: NEXUS }, Change::LunReset { lun: 0, by: OTHER }];
    for end in &ends {
        world.get(&RESERVE_6, 0).good();
        world.server.apply(&Change::NexusLost { nexus: OTHER }).unwrap();
        world.run_as(OTHER, 0, &RESERVE_6, 0, &[]).conflict();
        world.server.apply(end).unwrap();
        world.hear(OTHER);
        world.hear(NEXUS);
        world.run_as(OTHER, 0, &RESERVE_6, 0, &[]).good();
        world.run_as(OTHER, 0, &RELEASE_6, 0, &[]).good();
    }
    register(&mut world, NEXUS, 7);
    out(&mut world, NEXUS, 1, EA, &list(7, 0, 0)).good();
    for end in &ends {
        world.server.apply(end).unwrap();
    }
    world.hear(NEXUS);
    assert_eq!((keys(&mut world), held(&mut world)), (vec![7], Some((7, EA))));
    // The same ports in a new session.
    let info = world.server.nexuses[&NEXUS].info.clone();
    world.server.close_nexus(NEXUS);
    let again = NexusId(9);
    open(&mut world, again, &info.initiator_name, info.isid, info.relative_port);
    world.run_as(again, 0, &cdb10(0x2A, 0, 0, 1), 0, &[0; 512]).good();
    open(&mut world, NEXUS, &info.initiator_name, info.isid, 2);
    world.run_as(NEXUS, 0, &cdb10(0x2A, 0, 0, 1), 0, &[0; 512]).conflict();
}

/// Goal: RESERVE beside registrants changes nothing: good for who may write, a conflict for all others. RESERVE excludes
/// PERSISTENT RESERVE OUT, also for its own nexus.
#[test]
fn the_two_kinds_never_meet() {
    let mut world = world();
    world.get(&RESERVE_6, 0).good();
    out(&mut world, NEXUS, 0, 0, &list(0, 7, 0)).conflict();
    out(&mut world, OTHER, 0, 0, &list(0, 7, 0)).conflict();
    world.run_as(OTHER, 0, &[0x5E, 0, 0, 0, 0, 0, 0, 0, 8, 0], 8, &[]).conflict();
    world.get(&RELEASE_6, 0).good();
    register(&mut world, NEXUS, 7);
    register(&mut world, OTHER, 8);
    for nexus in [NEXUS, OTHER, THIRD] {
        world.run_as(nexus, 0, &RESERVE_6, 0, &[]).conflict();
        world.run_as(nexus, 0, &RELEASE_6, 0, &[]).good();
    }
    for (kind, other_may) in [(WE, false), (WE_RO, true), (EA_AR, true)] {
        out(&mut world, NEXUS, 1, kind, &list(7, 0, 0)).good();
        world.get(&RESERVE_6, 0).good();
        let answer = world.run_as(OTHER, 0, &RESERVE_6, 0, &[]);
        assert_eq!(answer.status == Status::Good, other_may);
        world.run_as(THIRD, 0, &RESERVE_6, 0, &[]).conflict();
        out(&mut world, NEXUS, 2, kind, &list(7, 0, 0)).good();
        world.hear(OTHER);
    }
    assert_eq!(world.server.units[0].reservations.reserved_by, None);
}

/// Goal: registering by key: what matches, what conflicts, what counts.
#[test]
fn keys_have_to_match() {
    let mut world = world();
    out(&mut world, NEXUS, 0, 0, &list(1, 7, 0)).conflict();
    out(&mut world, NEXUS, 0, 0, &list(0, 0, 0)).good();
    assert_eq!((keys(&mut world), generation(&mut world)), (vec![], 1));
    out(&mut world, NEXUS, 0, 0, &list(0, 7, 0)).good();
    out(&mut world, NEXUS, 0, 0, &list(8, 9, 0)).conflict();
    out(&mut world, NEXUS, 0, 0, &list(7, 9, 0)).good();
    out(&mut world, OTHER, 6, 0, &list(0xAA, 9, 0)).good();
    assert_eq!((keys(&mut world), generation(&mut world)), (vec![9, 9], 4));
    for service_action in 1..=5 {
        out(&mut world, THIRD, service_action, WE, &list(0, 9, 0)).conflict();
        out(&mut world, NEXUS, service_action, WE, &list(7, 9, 0)).conflict();
    }
    out(&mut world, NEXUS, 1, WE, &list(9, 0, 0)).good();
    out(&mut world, NEXUS, 1, WE, &list(9, 0, 0)).good();
    out(&mut world, NEXUS, 1, EA, &list(9, 0, 0)).conflict();
    out(&mut world, OTHER, 1, WE, &list(9, 0, 0)).conflict();
    out(&mut world, OTHER, 2, WE, &list(9, 0, 0)).good();
    assert_eq!(held(&mut world), Some((9, WE)));
    out(&mut world, NEXUS, 2, EA, &list(9, 0, 0)).bad(0x5_2604);
    out(&mut world, NEXUS, 2, WE, &list(9, 0, 0)).good();
    assert_eq!((held(&mut world), generation(&mut world)), (None, 4));
    out(&mut world, NEXUS, 3, 0, &list(9, 0, 0)).good();
    assert_eq!((keys(&mut world), generation(&mut world)), (vec![], 5));
    assert_eq!((world.hear(NEXUS), world.hear(OTHER)), (vec![], vec![0x2A03]));
}

/// Goal: who is told what when a reservation goes, by every way and type; never the one who asked, nor who is no registrant.
#[test]
fn others_are_told_and_nobody_else() {
    for kind in [WE, EA, WE_RO, EA_RO, WE_AR, EA_AR] {
        let is_for_registrants = kind >= WE_RO;
        let is_all = kind >= WE_AR;
        let released = if is_for_registrants { vec![0x2A04] } else { vec![] };
        let prepared = || {
            let mut world = world();
            register(&mut world, NEXUS, 7);
            register(&mut world, OTHER, 8);
            out(&mut world, NEXUS, 1, kind, &list(7, 0, 0)).good();
            assert_eq!(held(&mut world), Some((if is_all { 0 } else { 7 }, kind)));
            world
        };
        let told = |mut world: World, expected: Vec<u16>| {
            assert_eq!(world.hear(NEXUS), [], "type {kind}");
            assert_eq!(world.hear(OTHER), expected, "type {kind}");
            assert_eq!(world.hear(THIRD), [], "type {kind}");
        };
        let mut world = prepared();
        out(&mut world, NEXUS, 2, kind, &list(7, 0, 0)).good();
        told(world, released.clone());
        // The holder's registration goes. One of all registrants lives on with the others.
        let mut world = prepared();
        out(&mut world, NEXUS, 0, 0, &list(7, 0, 0)).good();
        assert_eq!(held(&mut world), is_all.then_some((0, kind)));
        told(world, if is_all { vec![] } else { released.clone() });
        let mut world = prepared();
        out(&mut world, NEXUS, 3, 0, &list(7, 0, 0)).good();
        assert_eq!((keys(&mut world), held(&mut world)), (vec![], None));
        told(world, vec![0x2A03]);
        let mut world = prepared();
        out(&mut world, NEXUS, 4, kind, &list(7, 8, 0)).good();
        assert_eq!((keys(&mut world), held(&mut world).is_some()), (vec![7], true));
        told(world, vec![0x2A05]);
        // Its own reservation under another type.
        let other_kind = if kind == EA_RO { WE_RO } else { EA_RO };
        let mut world = prepared();
        out(&mut world, NEXUS, 4, other_kind, &list(7, if is_all { 0 } else { 7 }, 0)).good();
        assert_eq!(held(&mut world), Some((7, other_kind)));
        told(world, if is_all { vec![0x2A05] } else { vec![0x2A04] });
        // By who does not hold it.
        let mut world = prepared();
        out(&mut world, OTHER, 5, EA, &list(8, 7, 0)).good();
        assert_eq!((world.hear(OTHER), world.hear(NEXUS)), (vec![], vec![0x2A05]));
        assert_eq!(world.server.take_preempted(), [NEXUS]);
        assert_eq!(held(&mut world), Some(if is_all { (0, kind) } else { (8, EA) }));
    }
}

/// Goal: PREEMPT refuses what names nobody.
#[test]
fn preempting_needs_somebody() {
    let mut world = world();
    register(&mut world, NEXUS, 7);
    bad_list(out(&mut world, NEXUS, 4, WE, &list(7, 0, 0)), 8, None);
    out(&mut world, NEXUS, 4, WE, &list(7, 8, 0)).conflict();
    out(&mut world, NEXUS, 4, 2, &list(7, 8, 0)).bad_field(2, Some(3));
    out(&mut world, NEXUS, 4, 0x11, &list(7, 8, 0)).bad_field(2, Some(7));
    out(&mut world, NEXUS, 1, 0, &list(7, 0, 0)).bad_field(2, Some(3));
    out(&mut world, NEXUS, 1, WE_AR, &list(7, 0, 0)).good();
    out(&mut world, NEXUS, 4, EA, &list(7, 8, 0)).conflict();
    // Its own key, without holding by it.
    out(&mut world, NEXUS, 4, EA, &list(7, 7, 0)).good();
    assert_eq!((keys(&mut world), held(&mut world), world.hear(NEXUS)), (vec![], None, vec![]));
}

fn move_list(key: u64, action_key: u64, flags: u8, to: &ItNexus) -> Vec<u8> {
    let id = to_transport_id(to);
    let mut list = list(key, action_key, 0);
    list[17] = flags;
    list[18..20].copy_from_slice(&to.relative_port.to_be_bytes());
    list[20..24].copy_from_slice(&(id.len() as u32).to_be_bytes());
    list.extend(id);
    list
}

/// Goal: REGISTER AND MOVE: who may, where to, what is left; nobody is told.
#[test]
fn reservations_are_moved() {
    let mut world = world();
    let to = third(1);
    out(&mut world, NEXUS, 7, 0, &move_list(0, 5, 0, &to)).conflict();
    register(&mut world, NEXUS, 7);
    out(&mut world, NEXUS, 7, 0, &move_list(7, 5, 0, &to)).bad_field(1, Some(4));
    out(&mut world, NEXUS, 1, WE_AR, &list(7, 0, 0)).good();
    out(&mut world, NEXUS, 7, 0, &move_list(7, 5, 0, &to)).conflict();
    out(&mut world, NEXUS, 4, EA, &list(7, 0, 0)).good();
    register(&mut world, OTHER, 8);
    out(&mut world, OTHER, 7, 0, &move_list(8, 5, 0, &to)).conflict();
    bad_list(out(&mut world, NEXUS, 7, 0, &move_list(7, 0, 0, &to)), 8, None);
    bad_list(out(&mut world, NEXUS, 7, 0, &move_list(7, 5, 1, &to)), 17, Some(0));
    bad_list(out(&mut world, NEXUS, 7, 0, &move_list(7, 5, 0, &third(99))), 18, None);
    let own = world.server.it_nexus(NEXUS).unwrap();
    bad_list(out(&mut world, NEXUS, 7, 0, &move_list(7, 5, 0, &own)), 24, None);
    let before = generation(&mut world);
    out(&mut world, NEXUS, 7, 0, &move_list(7, 5, 0, &to)).good();
    assert_eq!((held(&mut world), generation(&mut world)), (Some((5, EA)), before + 1));
    world.put(&cdb10(0x2A, 0, 0, 1), &[0; 512]).conflict();
    world.run_as(THIRD, 0, &cdb10(0x2A, 0, 0, 1), 0, &[0; 512]).good();
    out(&mut world, THIRD, 7, 0, &move_list(5, 6, 2, &own)).good();
    assert_eq!((held(&mut world), keys(&mut world)), (Some((6, EA)), vec![6, 8]));
    assert_eq!([NEXUS, OTHER, THIRD].map(|nexus| world.hear(nexus)), [const { vec![] }; 3]);
}

/// Goal: SPEC_I_PT and ALL_TG_PT register others and other ports, all or nobody.
#[test]
fn others_are_registered() {
    let mut world = world();
    let with = |ids: &[u8]| {
        let mut list = list(0, 7, 0x08);
        list.extend((ids.len() as u32).to_be_bytes());
        list.extend(ids);
        list
    };
    let id = to_transport_id(&third(1));
    out(&mut world, NEXUS, 0, 0, &with(&[&id[..], &id[..]].concat())).good();
    assert_eq!(keys(&mut world), [7, 7]);
    bad_list(out(&mut world, NEXUS, 0, 0, &[&list(7, 8, 0x08)[..], &[0; 4]].concat()), 20, Some(3));
    bad_list(out(&mut world, OTHER, 6, 0, &list(0, 8, 0x08)), 20, Some(3));
    // At the port of the command; those who are there keep their keys.
    let mut mine = with(&id);
    for key in [9, 3] {
        mine[15] = key;
        out(&mut world, OTHER, 0, 0, &mine).good();
        assert_eq!(keys(&mut world), [7, 9, 7, u64::from(key)]);
        out(&mut world, OTHER, 0, 0, &list(u64::from(key), 0, 0)).good();
    }
    register(&mut world, OTHER, 9);
    out(&mut world, NEXUS, 0, 0, &list(7, 0, 0x04)).good();
    assert_eq!((keys(&mut world), world.hear(OTHER)), (vec![7, 9], vec![]), "all ports of that initiator");
    out(&mut world, NEXUS, 0, 0, &list(0, 4, 0x04)).good();
    assert_eq!(keys(&mut world), [7, 9, 4, 4, 4]);
    let status = ask(&mut world, 3);
    let names: Vec<_> = status[8..].windows(11).filter(|name| name == b"iqn.test:i,").collect();
    assert_eq!(names.len(), 3);
    let first = &status[8..];
    let id = to_transport_id(&third(1));
    assert_eq!(first[..8], 7_u64.to_be_bytes());
    assert_eq!(first[8..24], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, id.len() as u8]);
    assert_eq!(first[24..24 + id.len()], id);
    assert_eq!(&id[..4], [0x45, 0, 0, id.len() as u8 - 4]);
    assert!(id.starts_with(b"\x45\0\0\x28iqn.2026-11.test:third,i,0x023d000000ab\0"), "{id:02X?}");
}

/// Goal: registrations are bounded, and one too many registers nobody.
#[test]
fn registrations_are_bounded() {
    let mut world = world();
    let mut list = list(0, 7, 0x08);
    let ids: Vec<u8> = (0..REGISTRATIONS_MAX as u16)
        .flat_map(|number| {
            let [high, low] = number.to_be_bytes();
            to_transport_id(&ItNexus { isid: [0, 0, 0, 1, high, low], ..third(1) })
        })
        .collect();
    let id_bytes = ids.len() / REGISTRATIONS_MAX;
    list.extend((ids.len() as u32).to_be_bytes());
    list.extend(&ids);
    out(&mut world, NEXUS, 0, 0, &list).bad(0x5_5504);
    assert_eq!((keys(&mut world), generation(&mut world)), (vec![], 0));
    list.truncate(list.len() - id_bytes);
    let length = (ids.len() - id_bytes) as u32;
    list[24..28].copy_from_slice(&length.to_be_bytes());
    out(&mut world, NEXUS, 0, 0, &list).good();
    assert_eq!(keys(&mut world).len(), REGISTRATIONS_MAX);
    out(&mut world, OTHER, 6, 0, &super::tests::list(0, 1, 0)).bad(0x5_5504);
    out(&mut world, NEXUS, 1, EA, &super::tests::list(7, 0, 0)).good();
    out(&mut world, NEXUS, 7, 0, &move_list(7, 9, 0, &third(3))).bad(0x5_5504);
    out(&mut world, NEXUS, 7, 0, &move_list(7, 9, 2, &third(3))).good();
    // READ FULL STATUS of all is cut at what an allocation length can say.
    let status = ask(&mut world, 3);
    assert!(status.len() <= 65_535 && status.len() > REGISTRATIONS_MAX * 60);
}

/// Goal: lists of a wrong length, and TransportIDs that are none, are refused where they are wrong.
#[test]
fn malformed_lists_are_refused() {
    let mut world = world();
    for service_action in 0..8 {
        for bytes in [0, 1, 23] {
            out(&mut world, NEXUS, service_action, WE, &vec![0; bytes]).bad(0x5_1A00);
        }
        if service_action != 7 {
            out(&mut world, NEXUS, service_action, WE, &[0; 25]).bad(0x5_1A00);
        }
    }
    let cdb = [0x5F, 0, 0, 0, 0, 0, 1, 0, 0, 0];
    world.run_as(NEXUS, 0, &cdb, 0, &vec![0; 65_536]).bad(0x5_1A00);
    world.run_as(NEXUS, 0, &[0x5F, 0, 0, 0, 0, 0, 0, 0, 24, 0], 0, &[0; 10]).bad(0x5_0E03);
    bad_list(out(&mut world, NEXUS, 0, 0, &list(0, 7, 0x01)), 20, Some(0));

    let id = to_transport_id(&third(1));
    let with = |length: usize, ids: &[u8]| {
        let mut list = list(0, 7, 0x08);
        list.extend((length as u32).to_be_bytes());
        list.extend(ids);
        list
    };
    out(&mut world, NEXUS, 0, 0, &with(0, &[])[..26]).bad(0x5_1A00);
    out(&mut world, NEXUS, 0, 0, &with(id.len() + 4, &id)).bad(0x5_1A00);
    out(&mut world, NEXUS, 0, 0, &with(id.len() - 4, &id)).bad(0x5_1A00);
    for cut in 1..id.len() {
        let answer = out(&mut world, NEXUS, 0, 0, &with(cut, &id[..cut]));
        assert_eq!(answer.code(), 0x5_1A00, "{cut}");
    }
    let changed = |at: usize, value: u8| {
        let mut id = id.clone();
        id[at] = value;
        id
    };
    let name_end = 4 + third(1).initiator_name.len();
    for (at, value, pointed) in [
        (0, 0x05, 28), // A name without a port.
        (0, 0x46, 28), // SAS.
        (0, 0xC5, 28),
        (2, 0xFF, 0),             // Longer than the list.
        (3, 0x11, 30),            // No whole words.
        (3, 0x08, 30),            // Too short.
        (4, 0xFF, 32),            // No UTF-8.
        (4, 0, 32),               // No name.
        (name_end, b'x', 32),     // No separator.
        (name_end + 5, b'g', 32), // No digit.
        (id.len() - 1, b'1', 32),
    ] {
        let answer = out(&mut world, NEXUS, 0, 0, &with(id.len(), &changed(at, value)));
        match pointed {
            0 => drop(answer.bad(0x5_1A00)),
            pointed => bad_list(answer, pointed, None),
        }
    }
    // The second of two is wrong.
    let both = [&id[..], &changed(0, 0x00)[..]].concat();
    bad_list(out(&mut world, NEXUS, 0, 0, &with(both.len(), &both)), 28 + id.len() as u16, None);
    assert_eq!((keys(&mut world), generation(&mut world)), (vec![], 0));

    register(&mut world, NEXUS, 7);
    out(&mut world, NEXUS, 1, WE, &list(7, 0, 0)).good();
    let right = move_list(7, 5, 0, &third(1));
    out(&mut world, NEXUS, 7, 0, &right[..right.len() - 1]).bad(0x5_1A00);
    out(&mut world, NEXUS, 7, 0, &[&right[..], &[0]].concat()).bad(0x5_1A00);
    let mut two = [&right[..], &id[..]].concat();
    two[20..24].copy_from_slice(&(2 * id.len() as u32).to_be_bytes());
    bad_list(out(&mut world, NEXUS, 7, 0, &two), 20, None);
}

/// Goal: PERSISTENT RESERVE IN: full lengths whatever the allocation length, capabilities as they are, unknown service
/// actions refused.
#[test]
fn what_is_told_of_it() {
    let mut world = world();
    register(&mut world, NEXUS, 7);
    register(&mut world, OTHER, 8);
    let short = world.get(&[0x5E, 0, 0, 0, 0, 0, 0, 0, 8, 0], 8).good();
    assert_eq!((short.data, short.transfer_bytes), (vec![0, 0, 0, 2, 0, 0, 0, 16], 8));
    assert_eq!(ask(&mut world, 2), [0, 8, 0x1C, 0x80, 0xEA, 0x01, 0, 0]);
    assert_eq!(ask(&mut world, 1), [0, 0, 0, 2, 0, 0, 0, 0]);
    for service_action in 4..32 {
        world.get(&[0x5E, service_action, 0, 0, 0, 0, 0, 0, 8, 0], 8).bad_field(1, Some(4));
    }
    for service_action in 8..32 {
        world.get(&[0x5F, service_action, 0, 0, 0, 0, 0, 0, 24, 0], 0).bad_field(1, Some(4));
    }
    out(&mut world, NEXUS, 1, EA_AR, &list(7, 0, 0)).good();
    let status = ask(&mut world, 3);
    assert_eq!(&status[..8], [0, 0, 0, 2, 0, 0, 0, status.len() as u8 - 8]);
    assert_eq!(status[8 + 12..8 + 14], [1, EA_AR], "all registrants hold it");
}

/// Goal: with APTPL a unit's reservations are kept before the answer, come back with another unit, and are dropped when
/// APTPL is. A failure to keep them is told.
#[test]
fn kept_reservations_come_back() {
    let mut world = world_of(Some(Vec::new()));
    assert_eq!(ask(&mut world, 2)[2..4], [0x1D, 0x80]);
    register(&mut world, OTHER, 8);
    assert_eq!(world.kept, Vec::<Vec<u8>>::new(), "nobody asked for it yet");
    out(&mut world, NEXUS, 0, 0, &list(0, 7, 0x01)).good();
    out(&mut world, NEXUS, 1, EA_RO, &list(7, 0, 0)).good();
    assert_eq!((world.kept.len(), &ask(&mut world, 2)[2..4]), (2, &[0x1D, 0x81][..]));
    let kept = world.kept.pop().unwrap();
    assert_eq!(check_kept(&kept), Ok(()));

    let mut again = world_of(Some(kept.clone()));
    assert_eq!((keys(&mut again), held(&mut again)), (vec![7, 8], Some((7, EA_RO))));
    assert_eq!((generation(&mut again), &ask(&mut again, 2)[2..4]), (0, &[0x1D, 0x81][..]));
    again.put(&cdb10(0x2A, 0, 0, 1), &[0; 512]).good();
    again.run_as(THIRD, 0, &cdb10(0x28, 0, 0, 1), 512, &[]).conflict();
    assert_eq!(again.hear(OTHER), []);
    out(&mut again, OTHER, 0, 0, &list(8, 9, 0)).good();
    assert_eq!((again.kept.pop(), ask(&mut again, 2)[3]), (Some(Vec::new()), 0x80));
    again.keeps = Err(Sense::INTERNAL_TARGET_FAILURE);
    out(&mut again, OTHER, 0, 0, &list(9, 8, 0x01)).bad(0x4_4400);
    out(&mut again, OTHER, 1, WE, &list(8, 0, 0)).conflict();

    // Damaged ones are left out.
    for at in 0..kept.len() {
        let cut = kept[..at].to_vec();
        assert_eq!(check_kept(&cut).is_ok(), at == 0);
        let mut world = world_of(Some(cut));
        assert_eq!((keys(&mut world), ask(&mut world, 2)[2]), (vec![], 0x1D));
    }
    assert!(check_kept(&[&kept[..], &[0]].concat()).is_err());
    assert!(check_kept(&vec![1; KEPT_BYTES_MAX + 1]).is_err());
}

/// Goal: who copies is checked for both units by what it does with them.
#[test]
fn access_is_told_for_other_units() {
    let mut world = World::of(vec![lun_config(0, geometry()), lun_config(1, geometry())]);
    register(&mut world, NEXUS, 7);
    out(&mut world, NEXUS, 1, WE, &list(7, 0, 0)).good();
    let may = |world: &World, lun, access| world.server.check_access(OTHER, lun, access);
    assert_eq!(may(&world, 0, Access::Read), Ok(()));
    assert_eq!(may(&world, 0, Access::Write), Err(Sense::RESERVATION_CONFLICT));
    assert_eq!(may(&world, 1, Access::Write), Ok(()));
    assert_eq!(may(&world, 2, Access::Read), Err(Sense::LOGICAL_UNIT_NOT_SUPPORTED));
    world.run_as(NEXUS, 1, &RESERVE_6, 0, &[]).good();
    assert_eq!(may(&world, 1, Access::Read), Err(Sense::RESERVATION_CONFLICT));
    assert_eq!(world.server.check_access(NEXUS, 1, Access::Write), Ok(()));
}

/// Goal: a unit attention comes before a conflict and is not lost by it.
#[test]
fn attentions_come_first() {
    let mut world = world();
    world.get(&RESERVE_6, 0).good();
    world.server.apply(&Change::LunReset { lun: 0, by: NEXUS }).unwrap();
    world.hear(NEXUS);
    world.get(&RESERVE_6, 0).good();
    world.run_as(OTHER, 0, &cdb10(0x2A, 0, 0, 1), 0, &[0; 512]).bad(0x6_2903);
    world.run_as(OTHER, 0, &cdb10(0x2A, 0, 0, 1), 0, &[0; 512]).conflict();
    // The opcode is looked at first, a field of the CDB only by who may.
    world.run_as(OTHER, 0, &[0xFF; 6], 0, &[]).bad(0x5_2000);
    world.run_as(OTHER, 0, &[0x2A, 0xFF, 0, 0, 0, 0, 0, 0, 0, 0], 0, &[]).conflict();
}

/// The standard's table: under RESERVE of another, and for who is no registrant, under write exclusive and under exclusive
/// access. `false`: RESERVATION CONFLICT.
#[allow(clippy::match_same_arms, reason = "the standard's rows, one by one")]
fn table(cdb: &[u8]) -> [bool; 3] {
    match (cdb[0], cdb[1] & 0x1F) {
        (0x00 | 0x03 | 0x12 | 0xA0 | 0x25 | 0x4D | 0x17 | 0x57 | 0xA3, _) | (0x9E, 0x10) => [true; 3],
        (0x16 | 0x56, _) => [false; 3],
        // The service actions of PERSISTENT RESERVE OUT see to themselves.
        (0x5E | 0x84, _) | (0x5F, 0x00 | 0x06) => [false, true, true],
        // POPULATE TOKEN reads.
        (0x83, 0x10) => [false, true, false],
        (0x5F | 0x83, _) => [false; 3],
        (0x08 | 0x28 | 0x88 | 0xA8 | 0x2F | 0x8F | 0xAF | 0x34 | 0x90 | 0x37 | 0xB7 | 0x1A | 0x5A, _)
        | (0x9E, 0x12) => [false, true, false],
        (
            0x0A | 0x2A | 0x8A | 0xAA | 0x2E | 0x8E | 0xAE | 0x8B | 0x89 | 0x9C | 0x41 | 0x93 | 0x42 | 0x35
            | 0x91 | 0x15 | 0x55 | 0x1D,
            _,
        ) => [false; 3],
        (0x1B, _) => {
            if cdb[4] == 1 {
                [false, true, true]
            } else {
                [false; 3]
            }
        }
        (0x1E, _) => [cdb[4] == 0; 3],
        (opcode, service_action) => {
            panic!("{opcode:02X}h/{service_action:02X}h: what does a reservation do?")
        }
    }
}

/// Goal: the table of conflicts, all of it. Method: every command as little as can be, from somebody else, under every kind
/// of reservation; and from its holder, whom none stops.
#[test]
fn every_command_meets_the_table() {
    let mut cdbs: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    for row in opcodes::all() {
        let mut cdb = vec![0; usize::from(row.cdb_bytes)];
        cdb[0] = row.opcode;
        cdb[1] = row.service_action.unwrap_or(0);
        let mut data = Vec::new();
        match row.opcode {
            0x0A => data = vec![0; 256 * 512],
            0x41 | 0x93 => data = vec![0; 512],
            0x1A | 0x5A => cdb[2] = 0x3F,
            0xA3 => cdb[9] = 8,
            0x5F => {
                data = if cdb[1] == 7 { move_list(0, 1, 0, &third(1)) } else { list(0, 0, 0) };
                (cdb[2], cdb[8]) = (WE, data.len() as u8);
            }
            _ => {}
        }
        if matches!(row.opcode, 0x1B | 0x1E) {
            let mut other = cdb.clone();
            other[4] = 1;
            cdbs.push((other, Vec::new()));
        }
        cdbs.push((cdb, data));
    }
    for kind in [0, WE, EA, WE_RO, EA_RO, WE_AR, EA_AR] {
        for (cdb, data) in &cdbs {
            let mut world = world();
            if kind == 0 {
                world.get(&RESERVE_6, 0).good();
            } else {
                register(&mut world, NEXUS, 7);
                register(&mut world, THIRD, 8);
                out(&mut world, NEXUS, 1, kind, &list(7, 0, 0)).good();
            }
            let [reserve, write_exclusive, exclusive] = table(cdb);
            let expected = match kind {
                0 => reserve,
                WE | WE_RO | WE_AR => write_exclusive,
                _ => exclusive,
            };
            let is_stopped = |answer: &Answer| answer.status == Status::ReservationConflict;
            let answer = world.run_as(OTHER, 0, cdb, 0, data);
            assert_eq!(!is_stopped(&answer), expected, "type {kind}: {cdb:02X?} {answer:02X?}");
            // A registrant without it is nobody under types 1 and 3, and let in under the others.
            let seen_to = matches!(cdb[0], 0x16 | 0x56 | 0x5F);
            if kind != 0 && !seen_to {
                let answer = world.run_as(THIRD, 0, cdb, 0, data);
                assert_eq!(!is_stopped(&answer), kind >= WE_RO || expected, "type {kind}: {cdb:02X?}");
            }
            if cdb[0] != 0x5F {
                assert!(!is_stopped(&world.run_as(NEXUS, 0, cdb, 0, data)), "type {kind}: {cdb:02X?}");
            }
        }
    }
}

proptest! {
    /// Goal: whatever comes as a list, or was kept, nothing panics, and what is refused changes nothing.
    #[test]
    fn any_list_is_survived(
        service_action in 0_u8..8,
        kind in any::<u8>(),
        head in proptest::collection::vec(prop_oneof![Just(0_u8), any::<u8>()], 24),
        rest in proptest::collection::vec(prop_oneof![Just(0_u8), Just(0x45), any::<u8>()], 0..80),
        length in prop_oneof![Just(None), (0_u32..100).prop_map(Some)],
    ) {
        let mut world = world_of(Some(Vec::new()));
        register(&mut world, NEXUS, 0);
        let before = world.server.units[0].reservations.clone();
        let mut list = head;
        list.extend_from_slice(&rest);
        if let Some(length) = length {
            let at = if service_action == 7 { 20 } else { 24 };
            if let Some(field) = list.get_mut(at..at + 4) {
                field.copy_from_slice(&length.to_be_bytes());
            }
        }
        let answer = out(&mut world, NEXUS, service_action, kind, &list);
        world.server.units[0].reservations.check_invariants();
        if answer.status != Status::Good {
            prop_assert_eq!(&world.server.units[0].reservations, &before);
        }
        let _ = check_kept(&list);
    }

    /// Goal: a TransportID comes back as it was written.
    #[test]
    fn transport_ids_come_back(name in "[a-z0-9.:-]{1,223}", isid in any::<[u8; 6]>(), port in 1_u16..4) {
        let mut world = world();
        register(&mut world, NEXUS, 7);
        out(&mut world, NEXUS, 1, EA, &list(7, 0, 0)).good();
        let to = ItNexus { initiator_name: name, isid, relative_port: port };
        out(&mut world, NEXUS, 7, 0, &move_list(7, 5, 2, &to)).good();
        prop_assert_eq!(&world.server.units[0].reservations.registrations[0].nexus, &to);
    }
}
