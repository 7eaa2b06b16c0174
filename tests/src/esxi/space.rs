//! Eager zero, and space that comes back.

use super::answer::Answer;
use super::command::{BLOCK_BYTES, Command, MIB};
use super::image::{Image, May, stamped};
use super::session::Session;
use super::{Rig, THIN, note, step_name};
use std::collections::BTreeSet;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// An eagerzeroedthick disk: 64 MiB, some of them written before.
const DISK: u64 = 770 * MIB;
const DISK_MIB: u64 = 64;
/// What is written and freed: every other MiB.
const FREED: u64 = 512 * MIB;
/// As many descriptors as the target takes.
const GRANULES: u64 = 256;
/// Space that was freed is there again.
const FREE_MAX: Duration = Duration::from_secs(15);

/// WRITE SAME(16) of 1 MiB each, sixteen at once, over what was written, what was not, and what is not aligned.
pub fn eager_zero(session: &mut Session) {
    let used =
        Image::new(DISK, DISK_MIB * MIB, |place| if place / 300 % 3 == 1 { 0x5000 + place / 300 } else { 0 });
    used.write(session, THIN);
    used.verify(session, THIN, DISK, May::BeNew);
    // The neighbours stay.
    let beside = |session: &mut Session, lba: u64, is_written: bool| {
        if is_written {
            let read = session.run(Command::read(THIN, lba, 1)).good();
            read.check(read.data == stamped(0x51, lba, 1), "a block beside the disk is as it was");
        } else {
            session.run(Command::write(THIN, lba, stamped(0x51, lba, 1))).good();
        }
    };
    let neighbours = [DISK - 1, DISK + DISK_MIB * MIB];
    for lba in neighbours {
        beside(session, lba, false);
    }
    let zeroes = (0..DISK_MIB).map(|mib| Command::write_same(THIN, DISK + mib * MIB, MIB as u32));
    session.run_all(16, zeroes, |answer| {
        answer.good();
    });
    Image::new(DISK, DISK_MIB * MIB, |_| 0).verify(session, THIN, DISK, May::BeNew);
    for lba in neighbours {
        beside(session, lba, true);
    }
}

/// What GET LBA STATUS says of a range, by MiB: `None` where it tells of several states, or not of all.
fn status_by_mib(session: &mut Session, lba: u64, count: u64) -> Vec<Option<u8>> {
    let end = lba + count * MIB;
    let mut extents: Vec<(u64, u64, u8)> = Vec::new();
    let mut next = lba;
    while next < end {
        let answer = session.run(Command::get_lba_status(THIN, next, 8 + 16 * 64)).good();
        let length = answer.number(0, 4) as usize + 4;
        answer.check(length >= 24 && (length - 8).is_multiple_of(16), "PARAMETER DATA LENGTH");
        for at in (8..length.min(answer.data.len())).step_by(16) {
            let (first, blocks, status) =
                (answer.number(at, 8), answer.number(at + 8, 4), answer.data[at + 12] & 0xF);
            answer.check(
                first == next && blocks > 0,
                "descriptors begin at the block asked for and have no gaps",
            );
            extents.push((first, first + blocks, status));
            next = first + blocks;
        }
    }
    (0..count)
        .map(|mib| (lba + mib * MIB, lba + (mib + 1) * MIB))
        .map(|(from, to)| {
            let states: BTreeSet<u8> = extents
                .iter()
                .filter(|(first, end, _)| *first < to && *end > from)
                .map(|&(_, _, status)| status)
                .collect();
            states.first().copied().filter(|_| states.len() == 1)
        })
        .collect()
}

/// Waits for the pool's free space.
fn wait_for_free(rig: &Rig, is_enough: impl Fn(u64) -> bool, what: &str) -> u64 {
    let began = Instant::now();
    loop {
        let free = rig.free_bytes();
        if is_enough(free) {
            return free;
        }
        assert!(began.elapsed() < FREE_MAX, "step `{}`: {what}: {free} bytes are free", step_name());
        sleep(Duration::from_millis(100));
    }
}

/// Files are deleted: granules of 1 MiB in one UNMAP of 256 descriptors; they read as zeroes, the others stay, and the pool
/// has the space again.
pub fn unmap(session: &mut Session, rig: &Rig) -> String {
    let before = rig.free_bytes();
    let pattern = stamped(0x6000, 7, 1);
    let written: Vec<u64> = (0..GRANULES).step_by(2).map(|mib| FREED + mib * MIB).collect();
    let writes = written.iter().map(|&lba| Command::write_same_of(THIN, lba, MIB as u32, pattern.clone()));
    session.run_all(8, writes, |answer| {
        answer.good();
    });
    let written_bytes = written.len() as u64 * (1 << 20);
    let filled =
        wait_for_free(rig, |free| before - free.min(before) >= written_bytes, "128 MiB were written");

    // First the second quarter, so that something stays to compare with.
    let quarter = GRANULES / 4;
    let range = |mib: u64| (FREED + mib * MIB, MIB as u32);
    let ranges: Vec<(u64, u32)> = (quarter..2 * quarter).map(range).collect();
    session.run(Command::unmap(THIN, &ranges)).good();
    let zeroes = vec![0; (u64::from(BLOCK_BYTES) * MIB) as usize];
    let full: Vec<u8> = pattern.repeat(MIB as usize);
    let check = |answer: Answer, is_there: bool| {
        let want = if is_there { &full } else { &zeroes };
        answer.check(
            answer.data == *want,
            if is_there { "it was not freed" } else { "freed blocks are zeroes" },
        );
    };
    for mib in [0, quarter - 2, quarter, quarter + 2, 2 * quarter - 2, 2 * quarter] {
        let answer = session.run(Command::read(THIN, range(mib).0, MIB as u32)).good();
        check(answer, !(quarter..2 * quarter).contains(&mib));
    }
    let states = status_by_mib(session, FREED, GRANULES);
    if states.iter().all(|state| *state == Some(0)) {
        note("GET LBA STATUS tells all as mapped or unknown");
    } else {
        for (mib, state) in (0..GRANULES).zip(states) {
            let is_mapped = mib % 2 == 0 && !(quarter..2 * quarter).contains(&mib);
            let is_right = if is_mapped { matches!(state, Some(0 | 3)) } else { state == Some(1) };
            assert!(is_right, "step `{}`: MiB {mib} has status {state:?}, mapped: {is_mapped}", step_name());
        }
    }
    wait_for_free(rig, |free| free >= filled + written_bytes / 4, "32 MiB were freed");
    // All of it, what is free already among it.
    session.run(Command::unmap(THIN, &(0..GRANULES).map(range).collect::<Vec<_>>())).good();
    Image::new(FREED, GRANULES * MIB, |_| 0).verify(session, THIN, FREED, May::BeNew);
    let after = wait_for_free(rig, |free| free >= filled + written_bytes, "all was freed");
    format!("{} MiB taken, {} MiB given back", (before - filled) >> 20, (after - filled) >> 20)
}
