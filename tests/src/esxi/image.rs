//! Contents whose every block says what it is and where it was first written, so that a copy shows where it is from.

use super::Outcome;
use super::command::{BLOCK_BYTES, Command, MIB};
use super::session::Session;

/// Blocks of one READ or WRITE here.
const EACH: u64 = MIB;
/// READs and WRITEs at once.
const DEPTH: usize = 4;

/// Blocks with a stamp: zeroes where it is 0.
pub fn stamped(stamp: u64, lba: u64, blocks: u64) -> Vec<u8> {
    let mut data = Vec::with_capacity((blocks * u64::from(BLOCK_BYTES)) as usize);
    for block in lba..lba + blocks {
        push_block(&mut data, stamp, block);
    }
    data
}

fn push_block(data: &mut Vec<u8>, stamp: u64, lba: u64) {
    if stamp == 0 {
        data.resize(data.len() + BLOCK_BYTES as usize, 0);
        return;
    }
    data.extend(stamp.to_le_bytes());
    data.extend(lba.to_le_bytes());
    let mut state = stamp.rotate_left(32) ^ lba;
    for _ in 2..BLOCK_BYTES / 8 {
        // SplitMix64.
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        data.extend((mixed ^ (mixed >> 31)).to_le_bytes());
    }
}

/// What a block that is not as it should be holds.
fn told(block: &[u8]) -> String {
    let word = |at: usize| u64::from_le_bytes(block[at..at + 8].try_into().expect("eight bytes"));
    match (word(0), word(8)) {
        (0, 0) => "zeroes".to_owned(),
        (stamp, lba) => format!("stamp {stamp:#x} of block {lba}"),
    }
}

/// Which contents a block may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum May {
    /// Those from before.
    BeOld,
    /// Those from before, or those written since.
    BeEither,
    /// Those written since.
    BeNew,
}

/// What a range of a unit holds, and what it held before somebody wrote to it.
#[derive(Clone, Debug)]
pub struct Image {
    /// Where it was written first.
    pub lba: u64,
    old: Vec<u64>,
    new: Vec<u64>,
}

impl Image {
    /// Of so many blocks, each with what `stamp` says of its place: 0 for zeroes.
    pub fn new(lba: u64, blocks: u64, stamp: impl Fn(u64) -> u64) -> Image {
        let stamps: Vec<u64> = (0..blocks).map(stamp).collect();
        Image { lba, new: stamps.clone(), old: stamps }
    }

    /// How long it is.
    pub fn blocks(&self) -> u64 {
        self.old.len() as u64
    }

    /// Somebody writes another stamp to these places: the command.
    pub fn rewrite(&mut self, lun: u8, place: u64, blocks: u64, stamp: u64) -> Command {
        self.new[place as usize..(place + blocks) as usize].fill(stamp);
        Command::write(lun, self.lba + place, stamped(stamp, self.lba + place, blocks))
    }

    /// Writes it, but for its holes.
    #[track_caller]
    pub fn write(&self, session: &mut Session, lun: u8) {
        let commands = (0..self.blocks()).step_by(EACH as usize).filter_map(|place| {
            let count = EACH.min(self.blocks() - place);
            let stamps = &self.new[place as usize..(place + count) as usize];
            stamps.iter().any(|&stamp| stamp != 0).then(|| {
                let mut data = Vec::with_capacity((count * u64::from(BLOCK_BYTES)) as usize);
                for (&stamp, block) in stamps.iter().zip(self.lba + place..) {
                    push_block(&mut data, stamp, block);
                }
                Command::write(lun, self.lba + place, data)
            })
        });
        session.run_all(DEPTH, commands, |answer| {
            answer.good();
        });
    }

    /// Reads it at `at`, where it is or was copied to. Says how many blocks are new.
    #[track_caller]
    pub fn verify(&self, session: &mut Session, lun: u8, at: u64, may: May) -> u64 {
        let mut new = 0;
        let reads = (0..self.blocks()).step_by(EACH as usize);
        let reads = reads.map(|place| Command::read(lun, at + place, EACH.min(self.blocks() - place) as u32));
        let mut seen = 0;
        session.run_all(DEPTH, reads, |answer| {
            let answer = answer.good();
            let first =
                u64::from(u32::from_be_bytes(answer.command.cdb[2..6].try_into().expect("four bytes")));
            let place = first - at;
            let mut want = Vec::new();
            for (block, place) in answer.data.chunks_exact(BLOCK_BYTES as usize).zip(place..) {
                let mut is = |stamp: u64| {
                    want.clear();
                    push_block(&mut want, stamp, self.lba + place);
                    want == block
                };
                let (old, later) = (self.old[place as usize], self.new[place as usize]);
                let is_new = old != later && may != May::BeOld && is(later);
                new += u64::from(is_new);
                let is_right = is_new
                    || match may {
                        May::BeOld | May::BeEither => is(old),
                        May::BeNew => is(later),
                    };
                if !is_right {
                    let what = told(block);
                    answer
                        .fail(format!("block {} has {what}; {old:#x} or {later:#x} was written", at + place));
                }
                seen += 1;
            }
        });
        assert_eq!(seen, self.blocks(), "blocks were read");
        new
    }
}

impl Outcome for Image {
    fn told(&self) -> String {
        let holes = self.new.iter().filter(|&&stamp| stamp == 0).count() as u64;
        format!("{} MiB, {} of them holes", self.blocks() / MIB, holes / MIB)
    }
}
