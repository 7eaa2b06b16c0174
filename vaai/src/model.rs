//! Property tests of the whole server: against an array, against nonsense, and against aborts.

use crate::harness::{
    Answer, BUFFERS_MAX, NEXUS, OTHER, Offer, World, cdb10, cdb12, cdb16, geometry, lun_config, pattern,
};
use crate::limits::COMPARE_AND_WRITE_BLOCKS_MAX;
use crate::lun::LunConfig;
use crate::opcodes;
use crate::sense::Status;
use bdev::error::IoError;
use bdev::geometry::Geometry;
use bdev::io::Op;
use proptest::collection::vec;
use proptest::prelude::*;

const BLOCKS: u64 = 700;

fn world(block_bytes: u32) -> World {
    let shape = Geometry { block_bytes, blocks: BLOCKS, ..geometry() };
    World::of(vec![LunConfig { removable: true, ..lun_config(0, shape) }])
}

/// A command that reads, writes or compares blocks.
#[derive(Clone, Copy, Debug)]
enum Step {
    Read,
    Write,
    OrWrite,
    Verify,
    VerifyPattern,
    WriteAndVerify,
    CompareAndWrite { equal: bool },
    WriteSame,
    WriteSameZeroes { unmap: bool, no_data: bool },
    Unmap,
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        Just(Step::Read),
        Just(Step::Write),
        Just(Step::OrWrite),
        Just(Step::Verify),
        Just(Step::VerifyPattern),
        Just(Step::WriteAndVerify),
        any::<bool>().prop_map(|equal| Step::CompareAndWrite { equal }),
        Just(Step::WriteSame),
        (any::<bool>(), any::<bool>()).prop_map(|(unmap, no_data)| Step::WriteSameZeroes { unmap, no_data }),
        Just(Step::Unmap),
    ]
}

/// A range of the medium, and what to make the data of.
fn any_range() -> impl Strategy<Value = (u64, u64, u8)> {
    (0..BLOCKS).prop_flat_map(|lba| (Just(lba), 1..=BLOCKS - lba, any::<u8>()))
}

/// Runs a step, and on the array. What the command answers has to be what the array says.
fn run_step(
    world: &mut World,
    array: &mut [u8],
    block: usize,
    step: Step,
    (lba, blocks, seed): (u64, u64, u8),
) {
    let range = lba as usize * block..(lba + blocks) as usize * block;
    let data = pattern(range.len(), seed);
    let one = &data[..block];
    let (short, count) = (lba as u32, blocks as u16);
    let good = |answer: Answer| assert_eq!(answer.status, Status::Good, "{answer:02X?}");
    match step {
        Step::Read => {
            let answer = world.get(&cdb12(0xA8, 0, short, blocks as u32), range.len() as u32);
            assert_eq!(answer.data, array[range.clone()]);
        }
        Step::Write => {
            good(world.put(&cdb10(0x2A, 0, short, count), &data));
            array[range.clone()].copy_from_slice(&data);
        }
        Step::OrWrite => {
            good(world.put(&cdb16(0x8B, 0, lba, blocks as u32), &data));
            array[range.clone()].iter_mut().zip(&data).for_each(|(to, from)| *to |= from);
        }
        Step::Verify => {
            let answer = world.put(&cdb10(0x2F, 0x02, short, count), &data);
            let want = array[range.clone()].iter().zip(&data).position(|(a, b)| a != b);
            assert_eq!(answer.information(), want.map(|at| at as u32));
            let same = array[range.clone()].to_vec();
            good(world.put(&cdb10(0x2F, 0x02, short, count), &same));
        }
        Step::VerifyPattern => {
            let answer = world.put(&cdb16(0x8F, 0x06, lba, blocks as u32), one);
            let is_same = array[range.clone()].chunks_exact(block).all(|medium| medium == one);
            assert_eq!(answer.status == Status::Good, is_same);
        }
        Step::WriteAndVerify => {
            good(world.put(&cdb16(0x8E, 0x02, lba, blocks as u32), &data));
            array[range.clone()].copy_from_slice(&data);
        }
        Step::CompareAndWrite { equal } => {
            // With few buffers a long one never begins.
            let most = if world.share.out_max == BUFFERS_MAX { COMPARE_AND_WRITE_BLOCKS_MAX } else { 1 };
            let blocks = blocks.min(u64::from(most));
            let bytes = blocks as usize * block;
            let medium = &mut array[range.start..][..bytes];
            let expected = if equal { medium.to_vec() } else { data[..bytes].to_vec() };
            let new = pattern(bytes, seed.wrapping_add(1));
            let answer = world.put(&compare_and_write(lba, blocks as u8), &[&expected[..], &new].concat());
            let want = medium.iter().zip(&expected).position(|(a, b)| a != b);
            assert_eq!(answer.information(), want.map(|at| at as u32));
            assert_eq!(answer.code(), if want.is_some() { 0xE_1D00 } else { 0 });
            if want.is_none() {
                medium.copy_from_slice(&new);
            }
        }
        Step::WriteSame => {
            good(world.put(&cdb10(0x41, 0, short, count), one));
            array[range.clone()].chunks_exact_mut(block).for_each(|medium| medium.copy_from_slice(one));
        }
        Step::WriteSameZeroes { unmap, no_data } => {
            let flags = u8::from(unmap) << 3 | u8::from(no_data);
            let zeroes = vec![0; if no_data { 0 } else { block }];
            good(world.put(&cdb16(0x93, flags, lba, blocks as u32), &zeroes));
            array[range.clone()].fill(0);
        }
        Step::Unmap => {
            let mut list = vec![0, 22, 0, 16, 0, 0, 0, 0];
            list.extend_from_slice(&lba.to_be_bytes());
            list.extend_from_slice(&(blocks as u32).to_be_bytes());
            list.extend_from_slice(&[0; 4]);
            good(world.put(&[0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0], &list));
            array[range.clone()].fill(0);
        }
    }
    assert!(world.disk == array, "{step:?} {range:?}");
}

/// COMPARE AND WRITE of one block.
fn compare_and_write(lba: u64, blocks: u8) -> Vec<u8> {
    let mut cdb = cdb16(0x89, 0, lba, 0);
    cdb[13] = blocks;
    cdb
}

/// A CDB that is mostly a real command's: nonsense would be stopped at the door.
fn any_cdb() -> impl Strategy<Value = [u8; 16]> {
    let rows: Vec<[u8; 16]> = opcodes::all().map(opcodes::Opcode::usage_data).collect();
    let near = (proptest::sample::select(rows), any::<[u8; 16]>(), any::<[u8; 16]>(), 0..8_u8);
    let near = near.prop_map(|(usage, bytes, sparse, sparsity)| {
        let mut cdb = usage;
        for (at, byte) in cdb.iter_mut().enumerate().skip(1) {
            // High bytes of addresses and lengths mostly zero, so that many ranges are there.
            let keep = sparse[at] % 8 > sparsity;
            let masked = bytes[at] & *byte;
            *byte = if keep || at % 4 > 1 && sparsity < 6 { masked } else { 0 };
        }
        // The service action, where there is one, is in the usage data.
        cdb[1] |= usage[1] & if matches!(usage[0], 0x9E | 0xA3) { 0x1F } else { 0 };
        cdb[15] = 0;
        cdb
    });
    prop_oneof![9 => near, 1 => any::<[u8; 16]>()]
}

fn any_offer() -> impl Strategy<Value = (usize, u32)> {
    prop_oneof![
        Just((0, 0)),
        (0..200_000_usize, Just(0)),
        (Just(0), 0..400_000_u32),
        Just((512, 0)),
        Just((1024, 0)),
        Just((4096, 0)),
        Just((24, 0)),
        (0..300_usize, 0..300_u32),
    ]
}

fn any_lun() -> impl Strategy<Value = [u8; 8]> {
    prop_oneof![
        8 => Just([0; 8]),
        1 => Just([0xC1, 1, 0, 0, 0, 0, 0, 0]),
        1 => any::<[u8; 8]>(),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Goal: reads, writes and their kin do to the medium what they do to an array, whatever order IOs come back in
    /// and however few buffers there are.
    #[test]
    fn medium_is_an_array(
        steps in vec((any_step(), any_range()), 1..24),
        order: u64,
        large_blocks: bool,
        out_max in prop_oneof![2..6_usize, Just(BUFFERS_MAX)],
    ) {
        let block = if large_blocks { 4096 } else { 512 };
        let mut world = world(block);
        world.order = order;
        world.share.out_max = out_max;
        let mut array = world.disk.clone();
        for (step, range) in steps {
            run_step(&mut world, &mut array, block as usize, step, range);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Goal: no CDB, data or fault below panics; every command ends once, and no buffer is lost. The harness
    /// checks the rest.
    #[test]
    fn nonsense_always_ends(
        commands in vec((any_lun(), any_cdb(), any_offer(), any::<u8>(), any::<bool>()), 1..40),
        order: u64,
        fault in proptest::option::of((0..300_000_u64, 0..4_usize)),
    ) {
        let mut world = world(512);
        world.order = order;
        if let Some((at, kind)) = fault {
            let errno = 5;
            let error = [
                IoError::OutOfSpace,
                IoError::Medium { errno },
                IoError::Unread { errno },
                IoError::Device { errno },
            ][kind];
            let ops = [
                Op::Read,
                Op::Write,
                Op::Compare,
                Op::OrWrite,
                Op::CompareAndWrite,
                Op::WriteZeroes,
                Op::Unmap,
            ];
            for op in ops {
                world.faults.push((op, at..at + 1, error));
            }
        }
        for (lun, cdb, (data_bytes, room), seed, other) in commands {
            let data = if seed < 32 { vec![0; data_bytes] } else { pattern(data_bytes, seed) };
            let offer = Offer { lun, cdb: cdb.to_vec(), room, data: &data, data_bytes: data_bytes as u32 };
            world.run(if other { OTHER } else { NEXUS }, &offer);
        }
    }

    /// Goal: an abort at any point leaves nothing behind: no effect, no buffer, no IO.
    #[test]
    fn aborts_lose_nothing(
        step in any_step(),
        (lba, blocks, seed) in any_range(),
        at in 0..60_usize,
        order: u64,
        out_max in prop_oneof![2..6_usize, Just(BUFFERS_MAX)],
    ) {
        let mut world = world(512);
        world.order = order;
        world.share.out_max = out_max;
        let data = pattern(blocks as usize * 512, seed);
        // With few buffers a long one never begins.
        let most = if out_max == BUFFERS_MAX { COMPARE_AND_WRITE_BLOCKS_MAX } else { 1 };
        let swapped = blocks.min(u64::from(most));
        let both = pattern(2 * 512 * swapped as usize, seed);
        let (cdb, data) = match step {
            Step::Read => (cdb16(0x88, 0, lba, blocks as u32), &[][..]),
            Step::Write => (cdb16(0x8A, 0, lba, blocks as u32), &data[..]),
            Step::OrWrite => (cdb16(0x8B, 0, lba, blocks as u32), &data[..]),
            Step::Verify => (cdb16(0x8F, 0x02, lba, blocks as u32), &data[..]),
            Step::VerifyPattern => (cdb16(0x8F, 0x06, lba, blocks as u32), &data[..512]),
            Step::WriteAndVerify => (cdb16(0x8E, 0x02, lba, blocks as u32), &data[..]),
            Step::CompareAndWrite { .. } => (compare_and_write(lba, swapped as u8), &both[..]),
            Step::WriteSame => (cdb16(0x93, 0, lba, blocks as u32), &data[..512]),
            Step::WriteSameZeroes { .. } => (cdb16(0x93, 0x01, lba, blocks as u32), &[][..]),
            Step::Unmap => (vec![0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0], &[0, 22, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 9, 0, 0, 0, 0][..]),
        };
        let room = if data.is_empty() { blocks as u32 * 512 } else { 0 };
        let offer = Offer { lun: [0; 8], cdb, room, data, data_bytes: data.len() as u32 };
        world.run_until(NEXUS, &offer, at);
        // The unit is as good as before.
        world.get(&[0; 6], 0).good();
    }
}

/// Goal: a task stays small, since every command makes one and moves it into a table.
#[test]
fn tasks_are_small() {
    let bytes = size_of::<crate::task::Task>();
    assert!(bytes <= 512, "{bytes}");
}
