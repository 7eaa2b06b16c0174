//! A datastore is made: partition table, metadata, locks in blocks that nobody has written, and the old way to lock.

use super::command::{BLOCK_BYTES, Command, MIB};
use super::image::stamped;
use super::sense::{Code, RESERVATION_CONFLICT};
use super::session::Session;
use super::{Rig, THIN, note};

/// Where what VMFS keeps its locks in begins.
const LOCKS: u64 = 12 * MIB;

/// Probe, GPT at both ends, metadata of many sizes; all is taken whole, and read again.
pub fn datastore(session: &mut Session, rig: &Rig) -> String {
    // What is it? Nothing yet.
    for lba in (0..MIB).step_by(128) {
        let read = session.run(Command::read(THIN, lba, 128)).good();
        read.check(read.data.iter().all(|&byte| byte == 0), "a new volume is zeroes");
    }
    let blocks = rig.units[usize::from(THIN)].blocks;
    let mut written = Vec::new();
    let mut stamp = 0x0F00;
    let mut write = |session: &mut Session, lba: u64, count: u64| {
        stamp += 1;
        // A residual that is wrong for what went through R2Ts made formatting fail with another target.
        session.run(Command::write(THIN, lba, stamped(stamp, lba, count))).good();
        written.push((lba, count, stamp));
    };
    // Protective MBR, GPT header and entries, and their copies at the end.
    for (lba, count) in [(0, 1), (1, 1), (2, 32), (blocks - 33, 32), (blocks - 1, 1)] {
        write(session, lba, count);
    }
    // Metadata: from a block to 4 MiB, in and out of line with physical blocks, bursts and stripes.
    let mut lba = MIB;
    for count in [1, 8, 16, 127, 128, 129, 255, 256, 512, 513, 1024, 2048, 4096, 8192] {
        write(session, lba, count);
        lba += count + 1;
    }
    let bytes: u64 = written.iter().map(|(_, count, _)| count * u64::from(BLOCK_BYTES)).sum();
    for (lba, count, stamp) in written {
        let read = session.run(Command::read(THIN, lba, count as u32)).good();
        if read.data != stamped(stamp, lba, count) {
            read.fail("other data than were written");
        }
    }
    // Blocks that nobody has written are compared with zeroes, as VMFS does when it makes its locks.
    for lba in LOCKS..LOCKS + 32 {
        session.run(Command::compare_and_write(THIN, lba, &[0; 512], &stamped(stamp, lba, 1))).good();
    }
    format!("{} KiB of metadata, 32 locks", bytes >> 10)
}

/// RESERVE(6) and RELEASE(6), where they are offered.
pub fn reservations(session: &mut Session, other: &mut Session, rig: &Rig) -> String {
    let is_offered = [0x16, 0x17].iter().all(|&opcode| {
        let answer = session.run(Command::supported(THIN, opcode, 0)).good();
        answer.data[1] & 0x07 == 0x03
    });
    if !is_offered {
        session.run(Command::reserve(THIN)).bad(Code::INVALID_OPCODE);
        note("reservations not offered");
        return "RESERVE(6) is refused as REPORT SUPPORTED OPERATION CODES says".to_owned();
    }
    let lba = LOCKS + 64;
    let write = || Command::write(THIN, lba, stamped(0x5E, lba, 1));
    let is_refused = |session: &mut Session, command: Command| {
        let answer = session.run(command);
        answer.check(answer.status == RESERVATION_CONFLICT, "another nexus has reserved the unit");
    };
    session.run(Command::reserve(THIN)).good();
    session.run(Command::reserve(THIN)).good();
    session.run(write()).good();
    is_refused(other, Command::reserve(THIN));
    is_refused(other, write());
    is_refused(other, Command::read(THIN, lba, 1));
    is_refused(other, Command::compare_and_write(THIN, lba, &[0; 512], &[1; 512]));
    // Who is not the holder releases nothing, and is told nothing.
    other.run(Command::release(THIN)).good();
    is_refused(other, write());
    for answer in [other.run(Command::inquiry(THIN)), other.run(Command::report_luns(THIN, 4096))] {
        answer.good();
    }
    session.run(Command::release(THIN)).good();
    other.run(write()).good();
    // The holder goes without a word: so does what it held.
    let mut third = rig.host(40, 0);
    third.run(Command::reserve(THIN)).good();
    is_refused(other, write());
    third.cut();
    let mut third = rig.host(40, 0);
    other.run(write()).good();
    third.run(write()).good();
    "held, refused to others, released, gone with its holder".to_owned()
}
