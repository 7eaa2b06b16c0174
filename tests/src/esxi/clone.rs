//! XCOPY: what Clone does with images, and what it does when it can't.

use super::answer::Answer;
use super::command::{BLOCK_BYTES, Command, MIB, Segment};
use super::image::{Image, May};
use super::sense::Code;
use super::session::Session;
use super::{RAM, Rig, THIN, THIN_TOO};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

/// The image that is cloned: 64 MiB, every fifth of them never written.
const IMAGE: u64 = 32 * MIB;
const IMAGE_BLOCKS: u64 = 64 * MIB;
/// Where its clones go on the same unit.
const CLONE_OF_4: u64 = 128 * MIB;
const CLONE_OF_1: u64 = 192 * MIB;
const CLONE_OF_LIVE: u64 = 256 * MIB;
const CLONE_BY_MANY: u64 = 320 * MIB;
const CLONE_OF_RAM: u64 = 384 * MIB;
const SPOILED: u64 = 440 * MIB;
/// ESXi's MaxHWTransferSize, and a block of VMFS.
const LARGE: u16 = 4 * MIB as u16;
const SMALL: u16 = MIB as u16;
/// Copies at once.
const DEPTH: usize = 8;
/// As RECEIVE COPY OPERATING PARAMETERS may say.
const SEGMENTS_WANTED: u64 = 64;

/// Writes the image.
pub fn make_image(session: &mut Session) -> Image {
    let image =
        Image::new(IMAGE, IMAGE_BLOCKS, |place| if place / MIB % 5 == 4 { 0 } else { 0x1000 + place / MIB });
    image.write(session, THIN);
    image
}

/// From a unit's block on.
#[derive(Clone, Copy)]
struct Place {
    lun: u8,
    lba: u64,
}

/// Copies an image in pieces, each with its own command.
fn copy(session: &mut Session, rig: &Rig, [from, to]: [Place; 2], blocks: u64, each: u16) {
    let commands = (0..blocks).step_by(usize::from(each)).map(|place| {
        let count = u64::from(each).min(blocks - place) as u16;
        let segment = Segment { from: from.lba + place, to: to.lba + place, blocks: count };
        Command::extended_copy(to.lun, rig.naa(from.lun), rig.naa(to.lun), &[segment])
    });
    session.run_all(DEPTH, commands, |answer| {
        answer.good();
    });
}

fn on(lun: u8, lba: u64) -> Place {
    Place { lun, lba }
}

/// A clone on the same datastore: of 4 MiB at a time for thick disks, of 1 MiB for thin ones.
pub fn same_unit(session: &mut Session, rig: &Rig, image: &Image) {
    for (at, each) in [(CLONE_OF_4, LARGE), (CLONE_OF_1, SMALL)] {
        copy(session, rig, [on(THIN, image.lba), on(THIN, at)], image.blocks(), each);
        image.verify(session, THIN, at, May::BeOld);
    }
    image.verify(session, THIN, image.lba, May::BeOld);
}

/// A clone while the virtual machine goes on writing: each block is of before or of after, and clone and source go apart.
pub fn live_source(session: &mut Session, other: &mut Session, rig: &Rig, image: &mut Image) -> String {
    // Every sixth physical block, holes among them, all over the image.
    let count = image.blocks() / 48;
    let places = (0..count).map(|number| number * 7919 % count * 48);
    let writes: Vec<Command> = places.map(|place| image.rewrite(THIN, place, 8, 0x2000)).collect();
    let written = AtomicU64::new(0);
    thread::scope(|scope| {
        let writer = scope.spawn(|| {
            other.run_all(4, writes, |answer| {
                answer.good();
                written.fetch_add(1, Ordering::Relaxed);
            });
        });
        // The clone is to fall into the middle of it.
        while written.load(Ordering::Relaxed) < count / 3 && !writer.is_finished() {
            thread::sleep(Duration::from_millis(1));
        }
        copy(session, rig, [on(THIN, image.lba), on(THIN, CLONE_OF_LIVE)], image.blocks(), LARGE);
        writer.join().expect("the virtual machine");
    });
    image.verify(session, THIN, image.lba, May::BeNew);
    let new = image.verify(session, THIN, CLONE_OF_LIVE, May::BeEither);
    // What was cloned before has not changed with its source.
    image.verify(session, THIN, CLONE_OF_4, May::BeOld);
    format!("{new} of {} rewritten blocks are new in the clone", count * 8)
}

/// From one datastore to another: of one pool, from memory, into memory.
pub fn between_units(session: &mut Session, rig: &Rig, image: &Image) {
    let blocks = image.blocks();
    copy(session, rig, [on(THIN, image.lba), on(THIN_TOO, 3 * MIB)], blocks, LARGE);
    image.verify(session, THIN_TOO, 3 * MIB, May::BeNew);
    let of_memory =
        Image::new(8 * MIB, 16 * MIB, |place| if place / 64 % 9 == 3 { 0 } else { 0x3000 + place / 64 });
    of_memory.write(session, RAM);
    copy(session, rig, [on(RAM, of_memory.lba), on(THIN, CLONE_OF_RAM)], of_memory.blocks(), LARGE);
    of_memory.verify(session, THIN, CLONE_OF_RAM, May::BeNew);
    copy(session, rig, [on(THIN, CLONE_OF_RAM), on(RAM, 100 * MIB)], of_memory.blocks(), SMALL);
    of_memory.verify(session, RAM, 100 * MIB, May::BeNew);
    of_memory.verify(session, RAM, of_memory.lba, May::BeNew);
}

/// A claim rule with `-a -s`: as many segments a command, and as long ones, as the target says.
pub fn many_segments(session: &mut Session, rig: &Rig, image: &Image) -> String {
    let answer = session.run(Command::copy_operating_parameters(THIN)).good();
    answer.check(answer.number(0, 4) as usize + 4 == answer.data.len(), "AVAILABLE DATA");
    let (segments_max, list_max) = (answer.number(10, 2), answer.number(12, 4));
    let segment_bytes = answer.number(16, 4);
    answer.check((16..=SEGMENTS_WANTED).contains(&segments_max), "segments a command");
    answer.check(list_max >= 64 + 28 * segments_max, "MAXIMUM DESCRIPTOR LIST LENGTH has room for them");
    answer.check(answer.number(34, 2) >= 8, "eight copies at once");
    let longest = segment_bytes / u64::from(BLOCK_BYTES);
    answer.check(longest <= 65_535, "MAXIMUM SEGMENT LENGTH can be said by a segment");

    // One command for all, in small pieces; their order is not that of their addresses.
    let each = image.blocks() / segments_max;
    let segments: Vec<Segment> = (0..segments_max)
        .map(|number| number * 7 % segments_max)
        .map(|piece| Segment {
            from: image.lba + piece * each,
            to: CLONE_BY_MANY + piece * each,
            blocks: each as u16,
        })
        .collect();
    let naa = rig.naa(THIN);
    session.run(Command::extended_copy(THIN, naa, naa, &segments)).good();
    image.verify(session, THIN, CLONE_BY_MANY, May::BeNew);
    // And the longest segment.
    let blocks = longest.min(image.blocks());
    let long = Segment { from: image.lba, to: 300 * MIB, blocks: blocks as u16 };
    session.run(Command::extended_copy(THIN_TOO, naa, rig.naa(THIN_TOO), &[long])).good();
    let head = session.run(Command::read(THIN, image.lba, SMALL.into())).good().data;
    let read = session.run(Command::read(THIN_TOO, 300 * MIB, SMALL.into())).good();
    read.check(read.data == head, "the long segment's beginning");
    // One more than that.
    let mut more = segments;
    more.push(Segment { from: image.lba, to: SPOILED, blocks: 8 });
    session.run(Command::extended_copy(THIN, naa, naa, &more)).bad(Code::TOO_MANY_SEGMENTS);
    format!("{segments_max} segments, of {} MiB at most", segment_bytes >> 20)
}

/// What can't be copied is refused as the data mover expects, nothing is written, and READ and WRITE do it.
pub fn refused(session: &mut Session, rig: &Rig, image: &Image) {
    let before = Image::new(SPOILED, 4 * MIB, |_| 0x4000);
    before.write(session, THIN);
    let naa = *rig.naa(THIN);
    let mut nobody = naa;
    nobody[15] ^= 0x5A;
    nobody[9] ^= 0xFF;
    let good = Segment { from: image.lba, to: SPOILED, blocks: LARGE };
    for [from, to] in [[&nobody, &naa], [&naa, &nobody]] {
        let answer = session.run(Command::extended_copy(THIN, from, to, &[good]));
        let answer = answer.bad(Code::COPY_TARGET_NOT_REACHABLE);
        answer.check(answer.sense.and_then(|sense| sense.segment) == Some(0), "it says which segment");
    }
    let end = rig.units[usize::from(THIN)].blocks;
    let is_aborted = |answer: &Answer| {
        let key = answer.code().map(|code| code.0);
        answer.check(key == Some(Code::COPY_ABORTED_KEY), "past the end: COPY ABORTED, not ILLEGAL REQUEST");
    };
    for segment in [
        Segment { from: end - u64::from(LARGE) + 1, ..good },
        Segment { from: end, ..good },
        Segment { from: u64::MAX - 8, ..good },
        Segment { to: end - 1, ..good },
    ] {
        is_aborted(&session.run(Command::extended_copy(THIN, &naa, &naa, &[segment])));
    }
    before.verify(session, THIN, SPOILED, May::BeOld);
    // The software data mover.
    let buffer: u16 = 512;
    for place in (0..good.blocks).step_by(usize::from(buffer)) {
        let read = session.run(Command::read(THIN, image.lba + u64::from(place), u32::from(buffer))).good();
        session.run(Command::write(THIN, SPOILED + u64::from(place), read.data)).good();
    }
    let want = session.run(Command::read(THIN, image.lba, u32::from(LARGE))).good().data;
    let read = session.run(Command::read(THIN, SPOILED, u32::from(LARGE))).good();
    read.check(read.data == want, "what the software data mover has copied");
}
