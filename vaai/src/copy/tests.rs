//! EXTENDED COPY and its family as an initiator meets them.

use super::list::{BLOCK_TO_BLOCK_OFFSET, Segment, parse};
use super::*;
use crate::harness::{Answer, NEXUS, OTHER, Offer, World, geometry, lun_config, pattern};
use crate::identity::naa;
use crate::limits::{COPIES_KEPT_MAX, COPY_CSCDS_MAX, COPY_SEGMENTS_MAX};
use crate::lun::{LunConfig, lun_field};
use crate::sense::Status;
use bdev::geometry::Geometry;
use bdev::io::Op;
use proptest::prelude::*;

/// In the CDB; byte; bit.
type Pointer = Option<(bool, u16, Option<u8>)>;

/// Two units of 512-byte blocks, and one of 4096.
fn world() -> World {
    let large = Geometry { block_bytes: 4096, blocks: 600, ..geometry() };
    World::of(vec![lun_config(0, geometry()), lun_config(1, geometry()), lun_config(2, large)])
}

fn cscd(lun: u16, block_bytes: u32) -> Vec<u8> {
    let mut bytes = vec![0; 32];
    bytes[0] = 0xE4;
    (bytes[4], bytes[5], bytes[7]) = (1, 3, 16);
    bytes[8..24].copy_from_slice(&naa(&lun_config(lun, geometry()).id));
    bytes[29..].copy_from_slice(&block_bytes.to_be_bytes()[1..]);
    bytes
}

fn segment(flags: u8, ends: (u16, u16), blocks: u16, from: u64, to: u64) -> Vec<u8> {
    let mut bytes = vec![0x02, flags, 0, 0x18];
    bytes.extend(ends.0.to_be_bytes());
    bytes.extend(ends.1.to_be_bytes());
    bytes.extend([0, 0]);
    bytes.extend(blocks.to_be_bytes());
    bytes.extend(from.to_be_bytes());
    bytes.extend(to.to_be_bytes());
    bytes
}

fn with_offset(ends: (u16, u16), amount: u32, from: (u64, u16), to: (u64, u16)) -> Vec<u8> {
    let mut bytes = vec![BLOCK_TO_BLOCK_OFFSET, 0, 0, 0x1C];
    bytes.extend(ends.0.to_be_bytes());
    bytes.extend(ends.1.to_be_bytes());
    bytes.extend(amount.to_be_bytes());
    bytes.extend(from.0.to_be_bytes());
    bytes.extend(to.0.to_be_bytes());
    bytes.extend(from.1.to_be_bytes());
    bytes.extend(to.1.to_be_bytes());
    bytes
}

/// A list for LID1: identifier, usage.
fn list(id: u8, usage: u8, cscds: &[Vec<u8>], segments: &[Vec<u8>]) -> Vec<u8> {
    let (cscds, segments) = (cscds.concat(), segments.concat());
    let mut bytes = vec![id, usage << 3];
    bytes.extend((cscds.len() as u16).to_be_bytes());
    bytes.extend([0; 4]);
    bytes.extend((segments.len() as u32).to_be_bytes());
    bytes.extend([0; 4]);
    [bytes, cscds, segments].concat()
}

fn list4(id: u32, cscds: &[Vec<u8>], segments: &[Vec<u8>]) -> Vec<u8> {
    let (cscds, segments) = (cscds.concat(), segments.concat());
    let mut bytes = vec![0; 48];
    (bytes[0], bytes[3], bytes[16]) = (1, 0x20, 0xFF);
    bytes[20..24].copy_from_slice(&id.to_be_bytes());
    bytes[42..44].copy_from_slice(&(cscds.len() as u16).to_be_bytes());
    bytes[44..46].copy_from_slice(&(segments.len() as u16).to_be_bytes());
    [bytes, cscds, segments].concat()
}

fn cdb(opcode: u8, service_action: u8, id: u32, length: u32) -> Vec<u8> {
    let mut cdb = vec![opcode, service_action, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    if service_action == 0x05 || service_action == 0x06 || service_action == ABORT {
        cdb[2..6].copy_from_slice(&id.to_be_bytes());
    } else {
        cdb[2] = id as u8;
    }
    cdb[10..14].copy_from_slice(&length.to_be_bytes());
    cdb
}

fn copy(world: &mut World, list: &[u8]) -> Answer {
    world.put(&cdb(0x83, LID1, 0, list.len() as u32), list)
}

fn receive(world: &mut World, service_action: u8, id: u32) -> Answer {
    world.get(&cdb(0x84, service_action, id, 512), 512)
}

/// As ESXi sends it: two CSCDs, one segment, no identifier.
fn plain(segments: &[Vec<u8>]) -> Vec<u8> {
    list(0, 3, &[cscd(0, 512), cscd(1, 512)], segments)
}

/// Goal: what is asked for is what the layer below is asked for, in bytes. Method: each form of a segment.
#[test]
fn segments_are_copied() {
    let mut world = world();
    let data = pattern(world.disk.len(), 3);
    let cases = [
        (segment(0, (0, 1), 8, 16, 100), (8192, 51_200, 4096)),
        (segment(0, (0, 0xFFFF), 5, 3, 1000), (1536, 512_000, 2560)),
        (segment(0x02, (0, 2), 2, 8, 7), (4096, 28_672, 8192)),
        (segment(0, (2, 0), 1, 9, 40), (36_864, 20_480, 4096)),
        (with_offset((0, 1), 1024, (4, 512), (10, 1024)), (2560, 6144, 1024)),
    ];
    for (descriptor, (from, to, bytes)) in cases {
        world.disk.copy_from_slice(&data);
        let list = list(0, 3, &[cscd(0, 512), cscd(1, 0), cscd(2, 4096)], &[descriptor]);
        copy(&mut world, &list).good();
        let mut expected = data.clone();
        expected.copy_within(from..from + bytes, to);
        assert!(world.disk == expected, "{from} to {to}");
    }
    let nothing = world.disk.clone();
    copy(&mut world, &plain(&[segment(0, (0, 1), 0, 0, 0)])).good();
    copy(&mut world, &plain(&[])).good();
    copy(&mut world, &list(0, 3, &[], &[])).good();
    world.put(&cdb(0x83, LID1, 0, 0), &[]).good();
    assert!(world.disk == nothing);
    let moved = copy(&mut world, &plain(&[segment(0, (0, 1), 1, 0, 9)])).good();
    assert_eq!(moved.transfer_bytes, 16 + 64 + 28);
}

/// Goal: each mistake has its own sense code and pointer, and nothing is copied. Method: one of each.
#[test]
fn mistakes_are_named() {
    let mut world = world();
    let change = |at: usize, byte: u8| {
        let mut list = plain(&[segment(0, (0, 1), 8, 0, 100)]);
        list[at] = byte;
        list
    };
    let wrong = |at: u16| Some((false, at, None));
    let cases: Vec<(Vec<u8>, u32, Pointer)> = vec![
        (change(1, 0b01 << 3), 0x5_2600, Some((false, 1, Some(4)))),
        (change(0, 9), 0x5_2600, wrong(0)),
        (change(3, 33), 0x5_2600, wrong(2)),
        (change(15, 1), 0x5_260B, wrong(12)),
        (change(11, 29), 0x5_1A00, None),
        (change(11, 27), 0x5_1A00, None),
        (change(3, 96), 0x5_1A00, None),
        (change(16, 0xE0), 0x5_2607, wrong(16)),
        (change(48, 0xE1), 0x5_2607, wrong(48)),
        (change(17, 5), 0x5_2600, wrong(17)),
        (change(20, 2), 0x5_2600, wrong(20)),
        (change(21, 2), 0x5_2600, wrong(21)),
        (change(23, 8), 0x5_2600, wrong(23)),
        (change(47, 1), 0x5_2600, wrong(45)),
        (change(80, 0x00), 0x5_2609, wrong(80)),
        (change(83, 0x14), 0x5_2600, wrong(82)),
        (change(30, 0xEE), 0xA_0D02, None),
        (change(85, 7), 0xA_0804, None),
        (change(87, 2), 0xA_0804, None),
    ];
    let before = world.disk.clone();
    for (list, code, pointer) in cases {
        let answer = copy(&mut world, &list).bad(code);
        if pointer.is_some() {
            assert_eq!(answer.pointer(), pointer, "{list:02X?}");
        }
    }
    let many = list(0, 3, &vec![cscd(0, 512); usize::from(COPY_CSCDS_MAX) + 1], &[]);
    copy(&mut world, &many).bad(0x5_2606);
    let one = segment(0, (0, 1), 0, 0, 0);
    let most = vec![one.clone(); usize::from(COPY_SEGMENTS_MAX)];
    let cscds =
        [vec![cscd(0, 512), cscd(1, 512)], vec![cscd(0, 0); usize::from(COPY_CSCDS_MAX) - 2]].concat();
    copy(&mut world, &list(0, 3, &cscds, &most)).good();
    copy(&mut world, &list(0, 3, &cscds, &[most.clone(), vec![one.clone()]].concat())).bad(0x5_2608);
    let long = list(0, 3, &cscds, &vec![one; 140]);
    copy(&mut world, &long).bad(0x5_1A00);
    let short = plain(&[]);
    world.put(&cdb(0x83, LID1, 0, 15), &short[..15]).bad(0x5_1A00);
    world.put(&cdb(0x83, LID1, 0, 16 + COPY_DESCRIPTOR_BYTES_MAX + 1), &short).bad(0x5_1A00);
    world.put(&cdb(0x83, LID1, 0, 80), &short[..40]).bad(0x5_0E03);
    assert!(world.disk == before);
}

/// Goal: the longest segment is copied, one that is longer is not. Method: units of large blocks, which can say it.
#[test]
fn segments_have_a_longest() {
    let large = |lun| {
        let geometry = Geometry { block_bytes: 4096, blocks: 2 * 4096 + 1, ..geometry() };
        lun_config(lun, geometry)
    };
    let mut world = World::of(vec![large(0), large(1)]);
    let two = [cscd(0, 4096), cscd(1, 4096)];
    copy(&mut world, &list(0, 3, &two, &[segment(0, (0, 1), 4096, 0, 4096)])).good();
    let longer = copy(&mut world, &list(0, 3, &two, &[segment(0, (0, 1), 4097, 0, 4096)])).bad(0x5_2600);
    assert_eq!(longer.pointer(), Some((false, 16 + 64 + 10, None)));
    let most = COPY_SEGMENT_BYTES_MAX;
    copy(&mut world, &list(0, 3, &two, &[with_offset((0, 1), most, (0, 0), (4096, 0))])).good();
    let longer = list(0, 3, &two, &[with_offset((0, 1), most + 4096, (0, 0), (4096, 0))]);
    copy(&mut world, &longer).bad(0x5_2600);
}

/// Goal: what can't be followed ends with COPY ABORTED, names the segment and its field, and carries what the unit said.
/// Method: the second of two segments is wrong; the bytes of fixed and of descriptor sense.
#[test]
fn segments_that_fail_are_told() {
    let mut world = world();
    let good = segment(0, (0, 1), 1, 0, 9);
    let fails = |world: &mut World, bad: Vec<u8>, code| {
        let list = list(0, 3, &[cscd(0, 512), cscd(1, 512), cscd(2, 4096)], &[good.clone(), bad]);
        copy(world, &list).bad(code).sense
    };
    let sense = fails(&mut world, segment(0, (0, 1), 2, 4999, 0), 0xA_0000);
    assert_eq!(sense[8..12], [18, 0, 0, 1], "the source's sense begins at byte 18; segment 1");
    assert_eq!(sense[15..18], [0xA0, 0, 12]);
    assert_eq!((sense[7] as usize + 8, sense[18], sense[19 + 2], sense[19 + 12]), (sense.len(), 2, 5, 0x21));
    let sense = fails(&mut world, segment(0, (0, 1), 2, 0, 4999), 0xA_0000);
    assert_eq!((&sense[8..12], &sense[15..18]), (&[0, 18, 0, 1][..], &[0xA0, 0, 20][..]));
    let sense = fails(&mut world, segment(0, (0, 1), 1, 0, u64::MAX), 0xA_0000);
    assert_eq!(sense[9], 18);
    assert_eq!(fails(&mut world, segment(0, (0, 2), 1, 0, 0), 0xA_260A)[15..18], [0xA0, 0, 10]);
    assert_eq!(fails(&mut world, segment(0, (0, 2), 8, 1, 0), 0xA_260A)[15..18], [0xA0, 0, 12]);
    let odd = with_offset((0, 1), 512, (0, 100), (0, 0));
    assert_eq!(fails(&mut world, odd, 0xA_260A)[15..18], [0xA0, 0, 28]);
    let odd = with_offset((0, 2), 4096, (0, 0), (0, 512));
    assert_eq!(fails(&mut world, odd, 0xA_260A)[15..18], [0xA0, 0, 30]);
    let first = world.disk.clone();
    assert!(first == vec![0; first.len()], "what is wrong is found before anything is copied");
    world.disk[..512].fill(7);
    world.faults = vec![(Op::Read, 51_200..51_201, IoError::Unread { errno: 5 })];
    let sense = fails(&mut world, segment(0, (0, 1), 1, 100, 200), 0xA_0D01);
    assert_eq!((sense[8], sense[18], sense[21], sense[31]), (18, 2, 3, 0x11));
    assert_eq!(world.disk[9 * 512], 7, "the segment before stays copied");
    world.faults = vec![(Op::Write, 51_200..51_201, IoError::Medium { errno: 5 })];
    let sense = fails(&mut world, segment(0, (0, 1), 1, 0, 100), 0xA_0D01);
    assert_eq!((sense[9], sense[21], sense[31]), (18, 3, 0x0C));
    world.faults = vec![(Op::Write, 51_200..51_201, IoError::OutOfSpace)];
    fails(&mut world, segment(0, (0, 1), 1, 0, 100), 0x7_2707);
    world.faults = vec![(Op::Write, 51_200..51_201, IoError::GONE)];
    fails(&mut world, segment(0, (0, 1), 1, 0, 100), 0xA_0D02);
    let described = Sense::COPY_ABORTED
        .in_segment(3)
        .segment_byte(20)
        .forwarding(Sense::LBA_OUT_OF_RANGE, true)
        .to_bytes(true);
    assert_eq!(described[7] as usize + 8, described.len());
    assert_eq!(described[8..20], [1, 10, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0]);
    assert_eq!(described[20..28], [2, 6, 0, 0, 0xA0, 0, 20, 0]);
    assert_eq!(described[28..35], [0x0C, 20, 2, 2, 0x70, 0, 5]);
}

/// Goal: a protected destination and one without a medium are told as theirs; a source may be protected.
#[test]
fn units_are_asked() {
    let with = |make: fn(&mut LunConfig)| {
        let mut config = lun_config(1, geometry());
        make(&mut config);
        World::of(vec![lun_config(0, geometry()), config])
    };
    let there = segment(0, (0, 1), 1, 0, 9);
    let back = segment(0, (1, 0), 1, 0, 9);
    let mut world = with(|unit| unit.read_only = true);
    let sense = copy(&mut world, &plain(std::slice::from_ref(&there))).bad(0xA_0D01).sense;
    assert_eq!((sense[9], sense[21], sense[31], sense[32]), (18, 7, 0x27, 0));
    copy(&mut world, &plain(std::slice::from_ref(&back))).good();
    let mut world = with(|unit| unit.removable = true);
    world.run_as(NEXUS, 1, &[0x1B, 0, 0, 0, 0x02, 0], 0, &[]).good();
    for (list, place) in [(there, 9), (back, 8)] {
        let sense = copy(&mut world, &plain(&[list])).bad(0xA_0D01).sense;
        assert_eq!((sense[place], sense[21], sense[31]), (18, 2, 0x3A));
    }
}

/// Goal: segments that meet go in order, those that don't at once. Method: a copy of a copy of a copy.
#[test]
fn segments_that_meet_go_in_order() {
    let mut world = world();
    world.disk[..512].fill(9);
    let chain: Vec<Vec<u8>> = (0..20).map(|at| segment(0, (0, 1), 1, at, at + 1)).collect();
    copy(&mut world, &list(0, 3, &[cscd(0, 512), cscd(0, 512)], &chain)).good();
    assert!(world.disk[..21 * 512].iter().all(|&byte| byte == 9));
}

/// Goal: what has become of a copy is told to its nexus, once, and to no other.
#[test]
fn results_are_kept_for_the_nexus() {
    let mut world = world();
    let two = [cscd(0, 512), cscd(1, 512)];
    let good = segment(0, (0, 1), 4, 0, 9);
    receive(&mut world, 0x00, 1).bad_field(2, None);
    copy(&mut world, &list(1, 0, &two, &[good.clone(), good.clone()])).good();
    let other = cdb(0x84, 0x00, 1, 512);
    world.run_as(OTHER, 0, &other, 512, &[]).bad_field(2, None);
    assert_eq!(receive(&mut world, 0x00, 1).good().data, [0, 0, 0, 8, 1, 0, 2, 0, 0, 0, 16, 0]);
    receive(&mut world, 0x00, 1).bad_field(2, None);
    copy(&mut world, &list(1, 2, &two, std::slice::from_ref(&good))).good();
    assert_eq!(receive(&mut world, 0x01, 1).good().data, [0, 0, 0, 0], "no data are held");
    copy(&mut world, &list(1, 0, &two, std::slice::from_ref(&good))).good();
    assert_eq!(receive(&mut world, 0x04, 1).good().data, [0, 0, 0, 0]);
    world.faults = vec![(Op::Write, 51_200..51_201, IoError::Medium { errno: 5 })];
    let bad = segment(0, (0, 1), 1, 0, 100);
    let sense = copy(&mut world, &list(7, 0, &two, &[good.clone(), bad.clone()])).bad(0xA_0D01).sense;
    let details = receive(&mut world, 0x04, 7).good().data;
    assert_eq!(details[..4], (56 + sense.len() as u32).to_be_bytes());
    assert_eq!((details[56], &details[58..60], &details[60..]), (2, &[0, sense.len() as u8][..], &sense[..]));
    copy(&mut world, &list(7, 0, &two, &[good.clone(), bad.clone()])).bad(0xA_0D01);
    assert_eq!(receive(&mut world, 0x00, 7).good().data[4..7], [2, 0, 1]);
    copy(&mut world, &list(0, 3, &two, std::slice::from_ref(&good))).good();
    receive(&mut world, 0x00, 0).bad_field(2, None);
    for id in 0..=COPIES_KEPT_MAX as u8 {
        copy(&mut world, &list(id, 0, &two, std::slice::from_ref(&good))).good();
    }
    receive(&mut world, 0x00, 0).bad_field(2, None);
    receive(&mut world, 0x00, 1).good();
}

/// Goal: LID4's header is read and checked, its status has 32 bytes and the sense data.
#[test]
fn four_byte_identifiers_work() {
    let mut world = world();
    let two = [cscd(0, 512), cscd(1, 512)];
    let good = list4(0xDEAD_BEEF, &two, &[segment(0, (0, 1), 8, 0, 9)]);
    let put = |world: &mut World, list: &[u8]| world.put(&cdb(0x83, LID4, 0, list.len() as u32), list);
    put(&mut world, &good).good();
    let status = receive(&mut world, 0x05, 0xDEAD_BEEF).good().data;
    assert_eq!((status.len(), &status[..6]), (32, &[0, 0, 0, 28, 1, 1][..]));
    assert_eq!((&status[16..24], &status[24..26]), (&4096u64.to_be_bytes()[..], &[0, 1][..]));
    receive(&mut world, 0x05, 0xDEAD_BEEF).bad_field(2, None);
    for (at, byte, place, bit) in [(0, 0, 0, None), (3, 0x1F, 2, None), (16, 0xE4, 16, None)] {
        let mut list = good.clone();
        list[at] = byte;
        let answer = put(&mut world, &list).bad(0x5_2600);
        assert_eq!(answer.pointer(), Some((false, place, bit)));
    }
    world.put(&cdb(0x83, LID4, 0, 47), &good[..47]).bad(0x5_1A00);
    world.faults = vec![(Op::Write, 0..9000, IoError::Medium { errno: 5 })];
    let sense = put(&mut world, &good).bad(0xA_0D01).sense;
    let status = receive(&mut world, 0x05, 0xDEAD_BEEF).good().data;
    assert_eq!((status[5], status[12], status[14]), (2, 2, sense.len() as u8));
    assert_eq!(status[32..], sense);
}

/// IMMED=1.
fn in_background(mut list: Vec<u8>) -> Vec<u8> {
    list[15] |= 0x02;
    list
}

/// What the nexus sends in between.
fn between(cdb: Vec<u8>, data: Vec<u8>) -> Offer<'static> {
    let data: &'static [u8] = data.leak();
    let room = if data.is_empty() { 512 } else { 0 };
    Offer { lun: lun_field(0), cdb, room, data, data_bytes: data.len() as u32 }
}

/// Goal: with IMMED=1 a copy whose list is right is answered before anything is copied, can be asked about while it goes on,
/// and its result is kept, a failure's too. Method: the nexus asks between the answer and the first segment.
#[test]
fn copies_go_on_in_the_background() {
    let mut world = world();
    let two = [cscd(0, 512), cscd(1, 512)];
    let put = |world: &mut World, list: &[u8]| world.put(&cdb(0x83, LID4, 0, list.len() as u32), list);
    world.disk[..4096].fill(7);
    let right = in_background(list4(0x0102_0304, &two, &[segment(0, (0, 1), 8, 0, 100)]));
    world.ask_between = Some(between(cdb(0x84, 0x05, 0x0102_0304, 512), Vec::new()));
    let answer = put(&mut world, &right).good();
    assert_eq!(answer.transfer_bytes, right.len() as u64);
    let told = world.told_between.pop().unwrap().good().data;
    assert_eq!((told[5], told[12], &told[16..26]), (0x12, 0, &[0; 10][..]), "in progress, in the background");
    assert!(world.disk[51_200..55_296].iter().all(|&byte| byte == 7));
    let told = receive(&mut world, 0x05, 0x0102_0304).good().data;
    assert_eq!((told[5], &told[16..24], told[25]), (1, &4096u64.to_be_bytes()[..], 1));
    // Its identifier is taken as long as it goes on.
    world.ask_between = Some(between(cdb(0x83, LID4, 0, right.len() as u32), right.clone()));
    put(&mut world, &right).good();
    world.told_between.pop().unwrap().bad(0x5_0016);
    // What is wrong with the list is said at once; what fails later is kept.
    put(&mut world, &in_background(list4(9, &two, &[segment(0, (0, 1), 8, 4999, 0)]))).bad(0xA_0000);
    receive(&mut world, 0x05, 9).bad_field(2, None);
    world.faults = vec![(Op::Write, 102_400..102_401, IoError::Medium { errno: 5 })];
    let fails = [segment(0, (0, 1), 1, 0, 9), segment(0, (0, 1), 1, 0, 200)];
    put(&mut world, &in_background(list4(9, &two, &fails))).good();
    let told = receive(&mut world, 0x05, 9).good().data;
    assert_eq!((told[5], told[12], told[25]), (2, Status::CheckCondition as u8, 1));
    assert_eq!(
        (told[32 + 2], told[32 + 12], told[32 + 11]),
        (0xA, 0x0D, 1),
        "as the command would have said it"
    );
    // Nobody could ask about it.
    let mut unnamed = in_background(list4(0, &two, &fails));
    unnamed[1] = 3 << 3;
    let wrong = put(&mut world, &unnamed).bad(0x5_2600);
    assert_eq!(wrong.pointer(), Some((false, 15, Some(1))));
    put(&mut world, &in_background(list4(10, &two, &[]))).good();
    assert_eq!(receive(&mut world, 0x05, 10).good().data[5], 1);
}

/// Goal: COPY OPERATION ABORT ends a copy that was answered, and its record says so.
#[test]
fn background_copies_are_stopped() {
    let mut world = world();
    world.disk[..512].fill(7);
    let before = world.disk.clone();
    let data = in_background(list4(5, &[cscd(0, 512), cscd(1, 512)], &[segment(0, (0, 1), 1, 0, 100)]));
    world.ask_between = Some(between(cdb(0x83, ABORT, 5, 0), Vec::new()));
    world.put(&cdb(0x83, LID4, 0, data.len() as u32), &data).good();
    world.told_between.pop().unwrap().good();
    assert!(world.disk == before);
    let told = receive(&mut world, 0x05, 5).good().data;
    assert_eq!((told.len(), told[5]), (32, 0x60));
}

/// Goal: an aborted copy's record says so, and its identifier is free again.
#[test]
fn aborted_copies_are_known_as_such() {
    let mut world = world();
    let two = [cscd(0, 512), cscd(1, 512)];
    let chain: Vec<Vec<u8>> = (0..20).map(|at| segment(0, (0, 1), 1, at, at + 1)).collect();
    let data = list4(5, &two, &chain);
    let in_background = in_background(data.clone());
    for (steps, data) in (0..40).flat_map(|steps| [(steps, &data), (steps, &in_background)]) {
        let offer = Offer {
            lun: lun_field(0),
            cdb: cdb(0x83, LID4, 0, data.len() as u32),
            room: 0,
            data,
            data_bytes: data.len() as u32,
        };
        world.run_until(NEXUS, &offer, steps);
        let answer = receive(&mut world, 0x05, 5);
        if answer.sense.is_empty() {
            let told = answer.good().data[5];
            assert!(told == 0x60 || told == 0x01 && steps > 20, "{steps}");
        }
    }
    world.put(&cdb(0x83, ABORT, 5, 0), &[]).bad_field(2, None);
}

/// Goal: what RECEIVE COPY OPERATING PARAMETERS and page 8Fh say is what is checked.
#[test]
fn parameters_are_the_limits() {
    let mut world = world();
    let data = receive(&mut world, 0x03, 0).good().data;
    assert_eq!((data.len(), &data[..5]), (47, &[0, 0, 0, 43, 1][..]));
    assert_eq!(data[8..10], COPY_CSCDS_MAX.to_be_bytes());
    assert_eq!(data[10..12], COPY_SEGMENTS_MAX.to_be_bytes());
    assert_eq!(data[12..16], COPY_DESCRIPTOR_BYTES_MAX.to_be_bytes());
    assert_eq!(data[16..20], COPY_SEGMENT_BYTES_MAX.to_be_bytes());
    assert_eq!(data[37], 9);
    assert_eq!(data[43..], [3, 0x02, 0x0A, 0xE4]);
    let cut = world.get(&cdb(0x84, 0x03, 0, 20), 20).good().data;
    assert_eq!(cut, data[..20]);
    let page = world.get(&[0x12, 1, 0x8F, 4, 0, 0], 1024).good().data;
    assert_eq!(page[..2], [0, 0x8F]);
    assert_eq!(page.len(), 4 + usize::from(u16::from_be_bytes([page[2], page[3]])));
    let mut at = 4;
    let mut kinds = Vec::new();
    while at < page.len() {
        kinds.push(u16::from_be_bytes([page[at], page[at + 1]]));
        let length = usize::from(u16::from_be_bytes([page[at + 2], page[at + 3]]));
        assert!(length.is_multiple_of(4));
        at += 4 + length;
    }
    assert_eq!(kinds, [0x0000, 0x0001, 0x0004, 0x0008, 0x000C, 0x0106, 0x0108, 0x8001]);
    assert_eq!(page[44..][..7], [16, 0x83, 4, 0, 1, 0x11, 0x1C], "no volume of a pool");
    assert_eq!(world.get(&[0x12, 0, 0, 0, 96, 0], 96).good().data[5] & 0x08, 0x08, "3PC");
}

proptest! {
    /// Goal: no parameter list makes the parser or the command do more than answer. Method: right lists with a few bytes
    /// wrong, and rubbish.
    #[test]
    fn lists_are_taken_apart_with_care(
        id in any::<u8>(),
        wrong in prop::collection::vec((0usize..200, any::<u8>()), 0..6),
        cut in 0usize..200,
        four in any::<bool>(),
    ) {
        let two = [cscd(0, 512), cscd(1, 512)];
        let segments = [segment(0, (0, 1), 8, 0, 100), with_offset((1, 0), 512, (3, 0), (0, 512))];
        let mut bytes = if four { list4(u32::from(id), &two, &segments) } else { list(id, 0, &two, &segments) };
        for (at, byte) in wrong {
            let length = bytes.len();
            bytes[at % length] = byte;
        }
        bytes.truncate(cut.max(1));
        if let Ok(plan) = parse(&bytes, four) {
            let within = |segment: &Segment| usize::from(segment.at) < bytes.len();
            prop_assert!(plan.segments.iter().all(within));
        }
        let mut world = world();
        let action = if four { LID4 } else { LID1 };
        world.put(&cdb(0x83, action, 0, bytes.len() as u32), &bytes);
    }
}

/// Goal: units that another nexus has reserved are neither read nor written by a copy, whichever unit got the command.
#[test]
fn reservations_hold_for_both_units() {
    let mut world = world();
    world.disk[..512].fill(5);
    let before = world.disk.clone();
    let (there, back) = (segment(0, (0, 1), 1, 0, 9), segment(0, (1, 0), 1, 0, 9));
    world.run_as(OTHER, 1, &[0x16, 0, 0, 0, 0, 0], 0, &[]).good();
    for list in [&there, &back] {
        let answer = copy(&mut world, &plain(std::slice::from_ref(list)));
        assert_eq!(answer.status, Status::ReservationConflict);
    }
    assert!(world.disk == before);
    world.run_as(OTHER, 1, &[0x17, 0, 0, 0, 0, 0], 0, &[]).good();
    // Write exclusive: what is there may be read.
    let key = |action: u8, old: u8, new: u8| {
        let mut list = vec![0; 24];
        (list[7], list[15]) = (old, new);
        (vec![0x5F, action, 0x01, 0, 0, 0, 0, 0, 24, 0], list)
    };
    for (cdb, list) in [key(0x00, 0, 7), key(0x01, 7, 0)] {
        world.run_as(OTHER, 1, &cdb, 0, &list).good();
    }
    let answer = copy(&mut world, &plain(&[there]));
    assert_eq!(answer.status, Status::ReservationConflict);
    copy(&mut world, &plain(&[back])).good();
}
