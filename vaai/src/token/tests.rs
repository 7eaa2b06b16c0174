//! Token based copies as an initiator meets them.

use super::wire::{self, zero_token};
use super::*;
use crate::change::UnitChange;
use crate::harness::{
    Answer, NEXUS, OTHER, Offer, World, geometry, info, lun_config, pattern, server_config,
};
use crate::limits::{TOKEN_BYTES_MAX, TOKEN_TIMEOUT_MAX_S, TOKENS_INITIATOR_MAX, TOKENS_MAX};
use crate::lun::{LunConfig, lun_field};
use crate::sense::Status;
use bdev::geometry::Geometry;
use bdev::shard::VOLUMES_FROM;
use proptest::prelude::*;
use reactor::Core;
use reactor::buf::BUF_BYTES_MAX;
use reactor::clock::Time;
use std::time::Duration;

/// In the CDB; byte; bit.
type Pointer = Option<(bool, u16, Option<u8>)>;

const SECOND: Duration = Duration::from_secs(1);

/// Volumes 0 and 1 of a pool, 2 with blocks of 4096 bytes, and unit 3, which is none. They share the disk.
fn units() -> Vec<LunConfig> {
    let pooled = Geometry { pooled: true, ..geometry() };
    let volume =
        |lun, geometry| LunConfig { bdev: BdevId(VOLUMES_FROM + 1 + lun), ..lun_config(lun, geometry) };
    let large = Geometry { block_bytes: 4096, blocks: 600, ..pooled };
    vec![volume(0, pooled), volume(1, pooled), volume(2, large), lun_config(3, geometry())]
}

/// Whose disk is full of something.
fn world() -> World {
    let mut world = World::of(units());
    world.disk = pattern(world.disk.len(), 5);
    world
}

fn cdb(opcode: u8, action: u8, id: u32, length: usize) -> Vec<u8> {
    let mut cdb = vec![0; 16];
    (cdb[0], cdb[1]) = (opcode, action);
    let at = if opcode == 0x83 && action != 0x1C { 6 } else { 2 };
    cdb[at..at + 4].copy_from_slice(&id.to_be_bytes());
    cdb[10..14].copy_from_slice(&(length as u32).to_be_bytes());
    cdb
}

fn with_ranges(mut header: Vec<u8>, ranges: &[(u64, u32)]) -> Vec<u8> {
    let bytes = ranges.len() * 16;
    let at = header.len() - 2;
    header[at..].copy_from_slice(&(bytes as u16).to_be_bytes());
    let length = header.len() + bytes - 2;
    header[..2].copy_from_slice(&(length as u16).to_be_bytes());
    for (lba, blocks) in ranges {
        header.extend(lba.to_be_bytes());
        header.extend(blocks.to_be_bytes());
        header.extend([0; 4]);
    }
    header
}

fn populate_list(timeout: u32, ranges: &[(u64, u32)]) -> Vec<u8> {
    let mut list = vec![0; 16];
    list[4..8].copy_from_slice(&timeout.to_be_bytes());
    with_ranges(list, ranges)
}

fn write_list(token: &[u8], offset: u64, ranges: &[(u64, u32)]) -> Vec<u8> {
    let mut list = vec![0; 536];
    list[8..16].copy_from_slice(&offset.to_be_bytes());
    list[16..528].copy_from_slice(token);
    with_ranges(list, ranges)
}

fn put(world: &mut World, (nexus, lun): (NexusId, u16), action: u8, list: &[u8]) -> Answer {
    world.run_as(nexus, lun, &cdb(0x83, action, 7, list.len()), 0, list)
}

fn information(world: &mut World, nexus: NexusId) -> Vec<u8> {
    world.run_as(nexus, 0, &cdb(0x84, RECEIVE_INFORMATION, 7, 1024), 1024, &[]).good().data
}

/// A token of these ranges of unit 0.
fn token_of(world: &mut World, timeout: u32, ranges: &[(u64, u32)]) -> Vec<u8> {
    token_from(world, 0, &populate_list(timeout, ranges))
}

fn token_of_unit(world: &mut World, lun: u16, ranges: &[(u64, u32)]) -> Vec<u8> {
    token_from(world, lun, &populate_list(0, ranges))
}

fn token_from(world: &mut World, lun: u16, list: &[u8]) -> Vec<u8> {
    put(world, (NEXUS, lun), POPULATE, list).good();
    let told = information(world, NEXUS);
    assert_eq!((told.len(), told[5]), (32 + 4 + 2 + 512, 1));
    told[38..].to_vec()
}

fn use_token(world: &mut World, token: &[u8], offset: u64, ranges: &[(u64, u32)]) -> Answer {
    put(world, (OTHER, 1), WRITE_USING, &write_list(token, offset, ranges))
}

fn pass(world: &mut World, now: &mut Time, seconds: u64) {
    for _ in 0..seconds * 5 {
        *now = *now + SECOND / 5;
        for change in world.server.tick(*now) {
            world.decree(&change).unwrap();
        }
        world.free_tokens();
    }
}

fn assert_nothing_left(world: &World) {
    assert_eq!((world.server.tokens.len(), world.server.tokens.places_taken()), (0, 0));
    assert!(world.store.is_empty());
}

/// Goal: what is written is what the source was when the token was made, by another nexus to another unit, as often as it
/// is asked for, in parts too. Method: ranges that lie differently, an offset, and a source that is overwritten.
#[test]
fn a_token_is_a_point_in_time() {
    let mut world = world();
    let before = world.disk.clone();
    let token = token_of(&mut world, 0, &[(10, 20), (0, 0), (301, 300), (5, 1)]);
    let data =
        [&before[10 * 512..30 * 512], &before[301 * 512..601 * 512], &before[5 * 512..6 * 512]].concat();
    world.disk.fill(0xEE);
    use_token(&mut world, &token, 0, &[(2000, 321)]).good();
    assert!(world.disk[2000 * 512..][..data.len()] == data);
    use_token(&mut world, &token, 19, &[(1000, 2), (1100, 299), (0, 1)]).good();
    assert!(world.disk[1000 * 512..][..1024] == data[19 * 512..21 * 512]);
    assert!(world.disk[1100 * 512..][..299 * 512] == data[21 * 512..320 * 512]);
    assert!(world.disk[..512] == data[320 * 512..]);
    let told = information(&mut world, OTHER);
    assert_eq!((told.len(), told[4], told[5], told[15]), (36, WRITE_USING, 1, 0xF1));
    assert_eq!(told[16..24], 302u64.to_be_bytes());
    // Nothing at all is no mistake.
    use_token(&mut world, &token, 0, &[(0, 0)]).good();
}

/// Goal: a unit that is no volume can be written with a token of a volume, but has none of its own.
#[test]
fn other_units_take_tokens() {
    let mut world = world();
    let token = token_of(&mut world, 0, &[(8, 8)]);
    put(&mut world, (NEXUS, 3), WRITE_USING, &write_list(&token, 0, &[(100, 8)])).good();
    assert!(world.disk[100 * 512..108 * 512] == world.disk[8 * 512..16 * 512]);
    put(&mut world, (NEXUS, 3), POPULATE, &populate_list(0, &[(8, 8)])).bad_field(1, Some(4));
}

/// Goal: a token of 512-byte blocks is written to a unit of 4096-byte blocks where its data are whole blocks there, and the
/// other way round always; lengths and offsets count the blocks of the unit that is written. Method: ranges that line up, and
/// that don't; one of two that together would be a block.
#[test]
fn tokens_fit_units_of_other_blocks() {
    let mut world = world();
    let before = world.disk.clone();
    let at = |block: usize, blocks: usize| block * 512..(block + blocks) * 512;
    let write = |world: &mut World, lun, token: &[u8], offset, ranges: &[(u64, u32)]| {
        put(world, (NEXUS, lun), WRITE_USING, &write_list(token, offset, ranges))
    };
    // 25 small blocks are three large ones, and a rest.
    let token = token_of(&mut world, 0, &[(8, 25)]);
    write(&mut world, 2, &token, 1, &[(100, 1), (90, 1)]).good();
    assert!(world.disk[at(800, 8)] == before[at(16, 8)] && world.disk[at(720, 8)] == before[at(24, 8)]);
    let told = information(&mut world, NEXUS);
    assert_eq!((told[5], told[15], &told[16..24]), (1, 0xF1, &2u64.to_be_bytes()[..]));
    write(&mut world, 2, &token, 0, &[(110, 3)]).good();
    assert!(world.disk[at(880, 24)] == before[at(8, 24)]);
    let large = token_of_unit(&mut world, 2, &[(50, 2), (60, 1)]);
    write(&mut world, 1, &large, 3, &[(1, 5), (1000, 16)]).good();
    assert!(world.disk[at(1, 5)] == before[at(403, 5)]);
    assert!(world.disk[at(1000, 8)] == before[at(408, 8)] && world.disk[at(1008, 8)] == before[at(480, 8)]);
    // What is refused writes nothing.
    let disk = world.disk.clone();
    let small = token_of(&mut world, 0, &[(8, 7)]);
    let within = token_of(&mut world, 0, &[(3, 8)]);
    let over_two = token_of(&mut world, 0, &[(8, 4), (16, 4)]);
    let cases = [
        (&token, 3, (110, 1), 534),
        (&token, 4, (110, 1), 8),
        (&token, 1, (110, 3), 534),
        (&token, u64::MAX, (110, 1), 8),
        (&small, 0, (110, 1), 534),
        (&within, 0, (110, 1), 16),
        (&over_two, 0, (110, 1), 16),
    ];
    for (token, offset, range, place) in cases {
        let wrong = write(&mut world, 2, token, offset, &[range]).bad(0x5_2600);
        assert_eq!(wrong.pointer(), Some((false, place, None)), "{offset} {range:?}");
    }
    assert!(world.disk == disk);
}

/// Goal: the token and what is told of it, byte by byte.
#[test]
fn tokens_look_as_in_the_standard() {
    let mut world = world();
    let answer = put(&mut world, (NEXUS, 0), POPULATE, &populate_list(600, &[(0, 16)])).good();
    assert_eq!((answer.transfer_bytes, answer.wanted), (32, 32));
    let told = information(&mut world, NEXUS);
    assert_eq!(told[..4], (told.len() as u32 - 4).to_be_bytes());
    assert_eq!((told[4], told[5], &told[8..16]), (POPULATE, 1, &[0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 0, 0xF1][..]));
    assert_eq!(told[16..24], 16u64.to_be_bytes());
    assert_eq!((&told[32..36], &told[36..38]), (&514u32.to_be_bytes()[..], &[0, 0][..]));
    let token = &told[38..];
    assert_eq!(token[..8], [0, 0x80, 0, 0, 0, 0, 1, 0xF8]);
    assert_eq!((token[16], &token[20..24]), (0xE4, &[1, 3, 0, 16][..]));
    assert_eq!(token[24..40], crate::identity::naa(&units()[0].id));
    assert_eq!((&token[48..56], &token[56..64]), (&[0; 8][..], &8192u64.to_be_bytes()[..]));
    assert_eq!(token[96..104], [0, 0, 2, 0, 0, 3, 0xC0, 0]);
    assert_eq!(token[128..132], [0x53, 0xA8, 0, 28]);
    assert_eq!(&token[132..158], b"iqn.2026-11.io.pollux:test");
    assert_ne!(token[480..], [0; 32]);
    // Told again, and as much of it as there is room for; the list is nobody else's.
    let cut = world.run_as(NEXUS, 0, &cdb(0x84, RECEIVE_INFORMATION, 7, 40), 40, &[]).good().data;
    assert_eq!(cut, told[..40]);
    world.run_as(OTHER, 0, &cdb(0x84, RECEIVE_INFORMATION, 7, 1024), 1024, &[]).bad_field(2, None);
    let status = world.run_as(NEXUS, 0, &cdb(0x84, 0x05, 7, 1024), 1024, &[]).good().data;
    assert_eq!((status.len(), status[4], &status[16..24]), (32, POPULATE, &8192u64.to_be_bytes()[..]));
}

/// Goal: with IMMED=1 both commands are answered when their list is found right, are in progress then, and end as they would
/// have. Method: the nexus asks between the answer and the first range.
#[test]
fn token_copies_go_on_in_the_background() {
    let mut world = world();
    let ask = || {
        let cdb = cdb(0x84, RECEIVE_INFORMATION, 7, 1024);
        Some(Offer { lun: lun_field(0), cdb, room: 1024, data: &[], data_bytes: 0 })
    };
    let mut list = populate_list(0, &[(0, 16)]);
    list[2] = 0x01;
    world.ask_between = ask();
    put(&mut world, (NEXUS, 0), POPULATE, &list).good();
    let told = world.told_between.pop().unwrap().good().data;
    assert_eq!((told.len(), told[5], &told[16..24]), (36, 0x12, &[0; 8][..]), "no token yet");
    let told = information(&mut world, NEXUS);
    assert_eq!((told.len(), told[5], told[23]), (550, 1, 16));
    let token = told[38..].to_vec();
    let mut list = write_list(&token, 0, &[(100, 16)]);
    list[2] = 0x01;
    world.ask_between = ask();
    put(&mut world, (NEXUS, 0), WRITE_USING, &list).good();
    assert_eq!(world.told_between.pop().unwrap().good().data[5], 0x12);
    assert_eq!(information(&mut world, NEXUS)[5], 1);
    assert!(world.disk[100 * 512..116 * 512] == world.disk[..16 * 512]);
    world.faults = vec![(Op::Write, 51_200..51_201, IoError::OutOfSpace)];
    put(&mut world, (NEXUS, 0), WRITE_USING, &list).good();
    let told = information(&mut world, NEXUS);
    assert_eq!((told[5], told[12], told[14], told[32 + 2], told[32 + 12]), (2, 2, 18, 7, 0x27));
    // A token that is none is no list that is right.
    list[16 + 511] ^= 1;
    put(&mut world, (NEXUS, 0), WRITE_USING, &list).bad(0x5_2304);
}

/// Goal: two tokens of the same blocks have nothing in common that could be guessed.
#[test]
fn secrets_differ() {
    let mut world = world();
    let [one, two] = [0, 0].map(|_| token_of(&mut world, 0, &[(0, 1)]));
    assert_ne!(one[480..], two[480..]);
    assert_ne!(one[8..16], two[8..16]);
}

/// Goal: each mistake in a list has its own sense code and pointer, and nothing comes of it.
#[test]
fn mistakes_are_named() {
    let mut world = world();
    let token = token_of(&mut world, 0, &[(0, 10)]);
    let (before, stored) = (world.disk.clone(), world.store.clone());
    let wrong = |at: u16| Some((false, at, None));
    let changed = |list: &[u8], at: usize, byte: u8| {
        let mut list = list.to_vec();
        list[at] = byte;
        list
    };
    let populate = populate_list(0, &[(0, 1), (5, 2)]);
    let write = write_list(&token, 0, &[(0, 1), (5, 2)]);
    let many: Vec<(u64, u32)> = (0..=u64::from(TOKEN_RANGES_MAX)).map(|nth| (nth, 1)).collect();
    let of_type = |kind: u32| {
        let mut list = changed(&populate, 2, 0x02);
        list[8..12].copy_from_slice(&kind.to_be_bytes());
        list
    };
    let cases: Vec<(u8, Vec<u8>, u32, Pointer)> = vec![
        (POPULATE, changed(&populate, 1, 45), 0x5_2600, wrong(0)),
        (POPULATE, populate_list(0, &[]), 0x5_2600, wrong(14)),
        (POPULATE, populate_list(0, &[(7, 0)]), 0x5_2600, wrong(14)),
        (POPULATE, populate_list(TOKEN_TIMEOUT_MAX_S + 1, &[(0, 1)]), 0x5_2600, wrong(4)),
        (POPULATE, of_type(0x0001_0000), 0x5_2600, wrong(8)),
        (POPULATE, of_type(ZEROES), 0x5_2600, wrong(8)),
        (POPULATE, populate_list(0, &many), 0x5_2608, wrong(14)),
        (POPULATE, populate_list(0, &[(0, 5), (4, 1)]), 0x5_2600, wrong(32)),
        (POPULATE, populate_list(0, &[(0, 1), (4999, 2)]), 0x5_2100, wrong(32)),
        (POPULATE, populate_list(0, &[(u64::MAX, 1)]), 0x5_2100, wrong(16)),
        (WRITE_USING, changed(&write, 0, 0), 0x5_2600, wrong(0)),
        (WRITE_USING, write_list(&token, 0, &[]), 0x5_2600, wrong(534)),
        (WRITE_USING, write_list(&token, 0, &many), 0x5_2608, wrong(534)),
        (WRITE_USING, write_list(&token, 0, &[(0, 5), (4, 1)]), 0x5_2600, wrong(552)),
        (WRITE_USING, write_list(&token, 0, &[(5000, 1)]), 0x5_2100, wrong(536)),
        (WRITE_USING, write_list(&token, 10, &[(0, 1)]), 0x5_2600, wrong(8)),
        (WRITE_USING, write_list(&token, u64::MAX, &[(0, 1)]), 0x5_2600, wrong(8)),
        (WRITE_USING, write_list(&token, 0, &[(0, 11)]), 0x5_2600, wrong(534)),
        (WRITE_USING, write_list(&token, 9, &[(0, 2)]), 0x5_2600, wrong(534)),
        (WRITE_USING, changed(&write, 16, 1), 0x5_2301, wrong(16)),
        (WRITE_USING, changed(&write, 23, 0xF7), 0x5_230A, wrong(16)),
        (WRITE_USING, changed(&write, 16 + 15, 0xEE), 0x5_2304, wrong(16)),
        (WRITE_USING, changed(&write, 16 + 511, token[511] ^ 1), 0x5_2304, wrong(16)),
        (WRITE_USING, changed(&write, 16 + 63, 9), 0x5_2305, wrong(16)),
    ];
    for (action, list, code, pointer) in cases {
        let answer = put(&mut world, (NEXUS, 1), action, &list).bad(code);
        assert_eq!(answer.pointer(), pointer, "{action:02X}h {list:02X?}");
    }
    for (action, header) in [(POPULATE, 16), (WRITE_USING, 536)] {
        for length in [1, header - 1, header + 66 * 16] {
            let answer = world.run_as(NEXUS, 0, &cdb(0x83, action, 7, length), 0, &vec![0; length]);
            assert_eq!(answer.bad(0x5_1A00).pointer(), Some((true, 10, None)));
        }
        let short = vec![0; 15];
        world.run_as(NEXUS, 0, &cdb(0x83, action, 7, header + 16), 0, &short).bad(0x5_0E03);
        world.run_as(NEXUS, 0, &cdb(0x83, action, 7, 0), 0, &[]).good();
        // It says that it has more than it has.
        let mut list = vec![0; header];
        (list[0], list[header - 1]) = (0xFF, 32);
        put(&mut world, (NEXUS, 0), action, &list).bad(0x5_1A00);
    }
    assert!(world.disk == before && world.store == stored);
    assert_eq!((world.server.tokens.len(), world.server.tokens.places_taken()), (1, 1));
}

/// Goal: the largest token is made, one block more is not.
#[test]
fn tokens_have_a_largest() {
    let blocks = TOKEN_BYTES_MAX / 4096;
    let shape = Geometry { block_bytes: 4096, blocks: blocks + 1, pooled: true, ..geometry() };
    let list = |blocks: u64| wire::populate(&populate_list(0, &[(0, blocks as u32)]), &shape).map(|_| ());
    assert_eq!(list(blocks), Ok(()));
    assert_eq!(list(blocks + 1), Err(Sense::INVALID_FIELD_IN_PARAMETER_LIST.list_byte(14)));
}

/// Goal: whatever byte of a token is changed, nothing is written.
#[test]
fn forged_tokens_are_refused() {
    let mut world = world();
    let token = token_of(&mut world, 0, &[(0, 10)]);
    let before = world.disk.clone();
    for at in 0..512 {
        let mut forged = token.clone();
        forged[at] ^= 0x10;
        let answer = use_token(&mut world, &forged, 0, &[(100, 10)]);
        assert_eq!((answer.status, answer.code() >> 8), (Status::CheckCondition, 0x523), "{at}");
    }
    let mut of_others = token.clone();
    (of_others[8], of_others[140]) = (9, b'x');
    use_token(&mut world, &of_others, 0, &[(100, 10)]).bad(0x5_2302);
    assert!(world.disk == before);
    use_token(&mut world, &token, 0, &[(100, 10)]).good();
}

/// Goal: the zero token writes zeroes, on units of any kind, needs no token to be made and is never used up.
#[test]
fn zeroes_have_a_token() {
    let mut world = world();
    let zeroes = zero_token().as_bytes().to_vec();
    for lun in [0, 3] {
        world.disk.fill(1);
        let answer =
            put(&mut world, (NEXUS, lun), WRITE_USING, &write_list(&zeroes, 77, &[(3, 9), (100, 1)]));
        assert_eq!(answer.good().ios.len(), 2);
        let is_zero = |block: usize| world.disk[block * 512..][..512].iter().all(|&byte| byte == 0);
        let zero: Vec<usize> = (0..200).filter(|&block| is_zero(block)).collect();
        assert_eq!(zero, [3, 4, 5, 6, 7, 8, 9, 10, 11, 100]);
        let told = information(&mut world, NEXUS);
        assert_eq!((told[5], &told[16..24]), (1, &10u64.to_be_bytes()[..]));
    }
    let mut list = write_list(&zeroes, 0, &[(0, 1)]);
    list[23] = 0;
    put(&mut world, (NEXUS, 0), WRITE_USING, &list).bad(0x5_230A);
    world.faults = vec![(Op::WriteZeroes, 0..512, IoError::OutOfSpace)];
    put(&mut world, (NEXUS, 0), WRITE_USING, &write_list(&zeroes, 0, &[(5, 1), (0, 1)])).bad(0x7_2707);
    let told = information(&mut world, NEXUS);
    assert_eq!((told[5], told[12], told[14]), (2, 2, 18));
    assert_nothing_left(&world);
}

/// Goal: a token that nobody uses ends after its time, is told as expired, and leaves nothing; one that is used stays.
#[test]
fn tokens_expire() {
    let mut world = world();
    let mut now = Time(1);
    let [long, short, normal] = [600, 1, 0].map(|timeout| token_of(&mut world, timeout, &[(0, 10)]));
    pass(&mut world, &mut now, 2);
    use_token(&mut world, &short, 0, &[(100, 10)]).bad(0x5_2307);
    for _ in 0..3 {
        pass(&mut world, &mut now, 50);
        use_token(&mut world, &normal, 0, &[(100, 10)]).good();
    }
    pass(&mut world, &mut now, 62);
    use_token(&mut world, &normal, 0, &[(100, 10)]).bad(0x5_2307);
    use_token(&mut world, &long, 0, &[(100, 10)]).good();
    pass(&mut world, &mut now, 602);
    use_token(&mut world, &long, 0, &[(100, 10)]).bad(0x5_2307);
    assert_nothing_left(&world);
}

/// Goal: an end that was proposed and overtaken by a use does not come.
#[test]
fn uses_overtake_the_end() {
    let mut world = world();
    let token = token_of(&mut world, 1, &[(0, 10)]);
    world.server.tick(Time(1));
    let proposed = world.server.tick(Time(1) + 2 * SECOND);
    assert_eq!(proposed.len(), 1);
    assert!(world.server.tick(Time(1) + 3 * SECOND).is_empty(), "once is enough");
    use_token(&mut world, &token, 0, &[(100, 10)]).good();
    world.decree(&proposed[0]).unwrap();
    use_token(&mut world, &token, 0, &[(100, 10)]).good();
    let mut now = Time(1) + 3 * SECOND;
    pass(&mut world, &mut now, 3);
    assert_nothing_left(&world);
}

/// Goal: DEL_TKN ends the token when its command has done its work, and not when that failed.
#[test]
fn tokens_are_deleted() {
    let mut world = world();
    let token = token_of(&mut world, 0, &[(0, 10)]);
    let mut list = write_list(&token, 0, &[(100, 10)]);
    list[2] = 0x02;
    world.faults = vec![(Op::Write, 51_200..51_201, IoError::Medium { errno: 5 })];
    put(&mut world, (OTHER, 1), WRITE_USING, &list).bad(0x3_0C00);
    assert_eq!(information(&mut world, OTHER)[5], 2);
    world.faults.clear();
    put(&mut world, (OTHER, 1), WRITE_USING, &list).good();
    assert_nothing_left(&world);
    put(&mut world, (OTHER, 1), WRITE_USING, &list).bad(0x5_2309);
}

/// Goal: with its unit a token ends, whoever uses it meanwhile; a unit of the same number has nothing to do with it.
#[test]
fn tokens_end_with_their_unit() {
    let mut world = world();
    let token = token_of(&mut world, 0, &[(0, 10)]);
    let id = *world.server.tokens.find(&parsed(&token), TARGET).map(|token| &token.id).unwrap();
    world.decree(&Change::TokenUse { id }).unwrap();
    world.server.apply_to_units(&UnitChange::Remove { lun: 0 }).unwrap();
    world.hear(OTHER);
    use_token(&mut world, &token, 0, &[(100, 10)]).bad(0x5_2306);
    assert!(!world.store.is_empty(), "it is in use");
    world.decree(&Change::TokenRelease { id }).unwrap();
    world.free_tokens();
    assert_nothing_left(&world);
    world.server.apply_to_units(&UnitChange::Add(Box::new(units()[0].clone()))).unwrap();
    world.hear(OTHER);
    use_token(&mut world, &token, 0, &[(100, 10)]).bad(0x5_2306);
}

const TARGET: &str = "iqn.2026-11.io.pollux:test";

fn parsed(token: &[u8]) -> RodToken {
    zerocopy::FromBytes::read_from_bytes(token).unwrap()
}

/// Goal: tokens are counted: one more than there may be is refused before anything is copied, and the first that ends
/// makes room.
#[test]
fn tokens_are_bounded() {
    let mut world = world();
    let first = token_of(&mut world, 0, &[(0, 1)]);
    for _ in 1..TOKENS_INITIATOR_MAX {
        token_of(&mut world, 0, &[(0, 1)]);
    }
    let stored = world.store.len();
    let list = populate_list(0, &[(0, 1)]);
    put(&mut world, (NEXUS, 0), POPULATE, &list).bad(0x5_550D);
    assert_eq!(world.store.len(), stored);
    let mut delete = write_list(&first, 0, &[(9, 1)]);
    delete[2] = 0x02;
    put(&mut world, (NEXUS, 0), WRITE_USING, &delete).good();
    put(&mut world, (NEXUS, 0), POPULATE, &list).good();
}

/// Goal: all tokens that can be used are told, by what lets nobody use them; as many as fit a buffer, the asker's own first; and
/// that this is so is in REPORT SUPPORTED OPERATION CODES and page 8Fh.
#[test]
fn all_tokens_are_reported() {
    let mut world = world();
    let all = |world: &mut World, nexus, room: u32| {
        let cdb = cdb(0x84, REPORT_ALL, 0, room as usize);
        world.run_as(nexus, 3, &cdb, room, &[]).good()
    };
    assert_eq!(all(&mut world, NEXUS, 4096).data, [0, 0, 0, 4, 0, 0, 0, 0]);
    let [one, two] = [9, 30].map(|blocks| token_of(&mut world, 0, &[(0, blocks)]));
    let told = all(&mut world, OTHER, 4096).data;
    assert_eq!((told.len(), &told[..8]), (8 + 192, &[0, 0, 0, 196, 0, 0, 0, 0][..]));
    assert_eq!((&told[8..104], &told[104..]), (&one[..96], &two[..96]));
    let cut = all(&mut world, NEXUS, 50);
    assert_eq!((&cut.data[..], cut.transfer_bytes), (&told[..50], 50));
    let mut delete = write_list(&one, 0, &[(9, 1)]);
    delete[2] = 0x02;
    put(&mut world, (NEXUS, 0), WRITE_USING, &delete).good();
    assert_eq!(all(&mut world, NEXUS, 4096).data[8..], two[..96]);
    // Those of others, with smaller names.
    let mut token = world.server.tokens.usable().next().unwrap().clone();
    let own = world.server.tokens.usable().count();
    assert_eq!(token.initiator, info(1, false).initiator_name);
    for nth in 0..TOKENS_MAX - own {
        token.initiator = format!("iqn.test:other{}", nth / TOKENS_INITIATOR_MAX);
        token.id = TokenId::from_bits(nth as u64);
        world.server.tokens.make(&token).unwrap();
    }
    let told = all(&mut world, NEXUS, 0x2_0000).data;
    assert_eq!(told.len(), 8 + TOKENS_REPORTED_MAX * 96);
    assert_eq!(told[..4], (told.len() as u32 - 4).to_be_bytes());
    assert!(told.len() <= BUF_BYTES_MAX && told.len() + 96 > BUF_BYTES_MAX);
    assert_eq!(told[8..104], two[..96], "its own");
    let supported = world.get(&[0xA3, 0x0C, 0x02, 0x84, 0, REPORT_ALL, 0, 0, 0, 64, 0, 0], 64).good().data;
    assert_eq!((supported[1] & 7, &supported[4..6]), (3, &[0x84, REPORT_ALL][..]));
    world
        .run_as(NEXUS, 0, &[0x84, REPORT_ALL, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0], 256, &[])
        .bad_field(2, Some(7));
}

/// Goal: wherever a command is aborted, its record says so, and in the end nothing of it is left.
#[test]
fn aborted_commands_leave_nothing() {
    let mut world = world();
    let token = token_of(&mut world, 1, &[(0, 30)]);
    let ranges: Vec<(u64, u32)> = (0..20).map(|nth| (100 + nth * 3, 1)).collect();
    let lists = [(POPULATE, populate_list(1, &ranges)), (WRITE_USING, write_list(&token, 3, &ranges))];
    let immediate = |(action, mut list): (u8, Vec<u8>)| {
        list[2] |= 0x01;
        (action, list)
    };
    for (action, list) in lists.clone().into_iter().chain(lists.map(immediate)) {
        for steps in 0..100 {
            let data_bytes = list.len() as u32;
            let cdb = cdb(0x83, action, 7, list.len());
            let offer = Offer { lun: lun_field(0), cdb, room: 0, data: &list, data_bytes };
            let is_answered = world.run_until(NEXUS, &offer, steps).is_some();
            let told = world.run_as(NEXUS, 0, &self::cdb(0x84, RECEIVE_INFORMATION, 7, 1024), 1024, &[]);
            if is_answered && told.data[5] == 0x01 {
                assert!(steps > 20);
                break;
            }
            assert!(
                told.status != Status::Good || told.data[4] != action || told.data[5] == 0x60 || steps < 3
            );
        }
    }
    let mut now = Time(1);
    pass(&mut world, &mut now, 4);
    assert_nothing_left(&world);
}

/// Goal: what could not be copied is told as a READ or WRITE would, with how much was done, and leaves no token.
#[test]
fn failures_are_told() {
    let mut world = world();
    let list = populate_list(0, &[(0, 4), (100, 1), (200, 1)]);
    world.faults = vec![(Op::Read, 51_200..51_201, IoError::Unread { errno: 5 })];
    put(&mut world, (NEXUS, 0), POPULATE, &list).bad(0x3_1100);
    let told = information(&mut world, NEXUS);
    assert_eq!((told[5], &told[16..24]), (2, &4u64.to_be_bytes()[..]));
    assert_eq!((told[14], told.len(), &told[50..54]), (18, 54, &[0; 4][..]), "no token");
    world.faults = vec![(Op::Read, 51_200..51_201, IoError::OutOfSpace)];
    put(&mut world, (NEXUS, 0), POPULATE, &list).bad(0x5_550D);
    world.faults.clear();
    assert_nothing_left(&world);
    let token = token_of(&mut world, 0, &[(0, 4)]);
    world.faults = vec![(Op::Write, 51_200..51_201, IoError::OutOfSpace)];
    use_token(&mut world, &token, 0, &[(100, 4)]).bad(0x7_2707);
}

/// Goal: of what failed, was stopped or was aborted in the middle of a range it is told how much was done from its start on,
/// and that is there. Method: a range of several parts, one of which fails, or is the last before the end.
#[test]
fn what_was_done_of_a_range_is_told() {
    let blocks = 6 * PART_BYTES / 4096;
    let shape = Geometry { block_bytes: 4096, blocks: 2 * blocks, pooled: true, ..geometry() };
    let volume = LunConfig { bdev: BdevId(VOLUMES_FROM + 1), ..lun_config(0, shape) };
    let mut world = World::of(vec![volume]);
    for block in 0..2 * blocks as usize {
        world.disk[block * 4096..][..8].copy_from_slice(&(block as u64 + 1).to_be_bytes());
    }
    let part = PART_BYTES / 4096;
    // In the token's place its parts lie from the start on.
    let token = token_of(&mut world, 0, &[(part / 2, 3 * part as u32)]);
    let list = write_list(&token, 0, &[(blocks + part / 2, 3 * part as u32)]);
    let (first, after) = (blocks + part / 2, blocks + 2 * part);
    world.faults = vec![(Op::Write, after * 4096..after * 4096 + 1, IoError::OutOfSpace)];
    put(&mut world, (NEXUS, 0), WRITE_USING, &list).bad(0x7_2707);
    let told = information(&mut world, NEXUS);
    assert_eq!((told[4], told[5], told[12], told[15]), (WRITE_USING, 2, 2, 0xF1));
    let count = u64::from_be_bytes(told[16..24].try_into().unwrap());
    assert_eq!(count, part, "up to the part that failed, though the one behind it is written");
    let at = |world: &World, block: u64| world.disk[block as usize * 4096..][..8].to_vec();
    for nth in 0..count {
        assert_eq!(at(&world, first + nth), (part / 2 + nth + 1).to_be_bytes());
    }
    assert_eq!(at(&world, after), (after + 1).to_be_bytes(), "not written");
    world.faults.clear();
    // Aborted after each event: what is told is there, and nothing less than the last time.
    let (mut last, mut seen) = (0, 0);
    for steps in 4..40 {
        let cdb = cdb(0x83, WRITE_USING, 7, list.len());
        let offer = Offer { lun: lun_field(0), cdb, room: 0, data: &list, data_bytes: list.len() as u32 };
        for block in first..first + 3 * part {
            world.disk[block as usize * 4096..][..8].fill(0xEE);
        }
        if world.run_until(NEXUS, &offer, steps).is_some() {
            break;
        }
        let told = information(&mut world, NEXUS);
        let count = u64::from_be_bytes(told[16..24].try_into().unwrap());
        assert!(told[5] == 0x60 && count >= last, "{steps}");
        assert!((0..count).all(|nth| at(&world, first + nth) == (part / 2 + nth + 1).to_be_bytes()));
        seen += usize::from(count > last);
        last = count;
    }
    assert!(seen >= 2, "in the middle of the range");
}

/// Goal: a protected unit takes no token and gives one; reservations hold as for READ and WRITE.
#[test]
fn units_are_asked() {
    let mut units = units();
    units[0].read_only = true;
    let mut world = World::of(units);
    let token = token_of(&mut world, 0, &[(0, 4)]);
    let list = write_list(&token, 0, &[(10, 4)]);
    put(&mut world, (NEXUS, 0), WRITE_USING, &list).bad(0x7_2700);
    world.run_as(OTHER, 1, &[0x16, 0, 0, 0, 0, 0], 0, &[]).good();
    assert_eq!(put(&mut world, (NEXUS, 1), WRITE_USING, &list).status, Status::ReservationConflict);
    let populate = populate_list(0, &[(0, 4)]);
    assert_eq!(put(&mut world, (NEXUS, 1), POPULATE, &populate).status, Status::ReservationConflict);
    put(&mut world, (OTHER, 1), WRITE_USING, &list).good();
}

/// Goal: a replica that applies the same changes has the same tokens: another core takes them.
#[test]
fn replicas_agree() {
    let mut world = world();
    let token = token_of(&mut world, 0, &[(0, 4)]);
    use_token(&mut world, &token, 0, &[(10, 4)]).good();
    let mut other = DeviceServer::new(Core(1), server_config(units()));
    other.open_nexus(NEXUS, info(1, false));
    for (change, applied) in &world.changes {
        assert_eq!(other.apply(change), *applied);
    }
    assert_eq!(other.tokens.find(&parsed(&token), TARGET), world.server.tokens.find(&parsed(&token), TARGET));
    assert!(other.tick(Time(1) + 1000 * SECOND).is_empty(), "another core's to end");
}

/// Goal: ranges lie in a place as they do in their source, one behind the other, and within the place.
#[test]
fn ranges_line_up() {
    let range = |lba, blocks| Range { lba, blocks };
    let ranges = [range(3, 1), range(8192 + 127, 8192), range(1, 7), range(0, 128)];
    let spans = spans_of(&ranges, 512, 5 * TOKEN_PLACE_BYTES);
    let mut end = 5 * TOKEN_PLACE_BYTES;
    for (range, span) in ranges.iter().zip(&spans) {
        assert_eq!(
            (span.bytes, span.first % CHUNK_BYTES),
            (range.blocks * 512, range.lba * 512 % CHUNK_BYTES)
        );
        assert!(span.first / CHUNK_BYTES >= end.div_ceil(CHUNK_BYTES), "none shares a chunk with another");
        end = span.first + span.bytes;
    }
    assert_eq!(spans[1].first % STRIPE_BYTES, ranges[1].lba * 512 % STRIPE_BYTES);
    let most = TOKEN_BYTES_MAX / 64 / 512;
    let worst: Vec<Range> = (0..64).map(|nth| range(nth * (most + 8191) + 1, most)).collect();
    let last = *spans_of(&worst, 512, 0).last().unwrap();
    assert!(last.first + last.bytes <= TOKEN_PLACE_BYTES);
}

proptest! {
    /// Goal: what is paired is what one byte after the other would be.
    #[test]
    fn pairs_are_right(
        spans in prop::collection::vec(1u64..9, 1..6),
        ranges in prop::collection::vec(0u64..9, 1..6),
        offset in 0u64..12,
    ) {
        let mut at = 1000;
        let spans: Vec<Span> = spans.iter().map(|&blocks| {
            at += 5000;
            Span { first: at, bytes: blocks * 2 }
        }).collect();
        let ranges: Vec<Range> =
            ranges.iter().enumerate().map(|(nth, &blocks)| Range { lba: nth as u64 * 100, blocks }).collect();
        let source: Vec<u64> =
            spans.iter().flat_map(|span| span.first..span.first + span.bytes).skip(offset as usize * 2).collect();
        let target: Vec<u64> =
            ranges.iter().flat_map(|range| range.lba * 2..(range.lba + range.blocks) * 2).collect();
        let pairs = pairs_of(&spans, offset * 2, &ranges, 2);
        let found: Vec<(u64, u64)> = pairs.iter()
            .flat_map(|&(from, to, bytes)| (from..from + bytes).zip(to..to + bytes)).collect();
        let wanted: Vec<(u64, u64)> = source.into_iter().zip(target).collect();
        prop_assert_eq!(found, wanted);
    }

    /// Goal: no list makes the commands do more than answer. Method: right lists with a few bytes wrong, and cut ones.
    #[test]
    fn lists_are_taken_apart_with_care(
        populates in any::<bool>(),
        wrong in prop::collection::vec((0usize..600, any::<u8>()), 0..6),
        cut in 1usize..600,
    ) {
        let mut world = world();
        let token = token_of(&mut world, 0, &[(0, 40)]);
        let mut list = if populates {
            populate_list(9, &[(7, 3), (100, 20)])
        } else {
            write_list(&token, 2, &[(7, 3), (100, 20)])
        };
        for (at, byte) in wrong {
            let length = list.len();
            list[at % length] = byte;
        }
        list.truncate(cut);
        let action = if populates { POPULATE } else { WRITE_USING };
        put(&mut world, (NEXUS, 0), action, &list);
    }
}
