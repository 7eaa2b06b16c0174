//! What a host asks for: commands as the model knows them, and their bytes.

use crate::orders::Access;
use crate::tokens::{Made, Rod};
use crate::world::{BLOCK, World, cdb16};
use bdev::io::{BdevId, Op};
use bdev::storage::CopyIo;
use reactor::clock::Time;
use std::collections::BTreeSet;
use vaai::identity::naa;

#[derive(Debug)]
pub(crate) enum Kind {
    Read {
        at: u64,
        blocks: u64,
        data: Vec<u8>,
    },
    /// WRITE, and WRITE SAME of a block that is not zero.
    Write {
        at: u64,
        blocks: u64,
        stamp: u64,
    },
    /// WRITE SAME of zeroes, and UNMAP. What may have been in the blocks before.
    Zero {
        at: u64,
        blocks: u64,
        before: Vec<BTreeSet<u64>>,
        unmap: bool,
    },
    /// COMPARE AND WRITE of own blocks.
    Swap {
        at: u64,
        expected: Vec<u64>,
        stamp: u64,
    },
    /// COMPARE AND WRITE of blocks that all hosts share.
    SharedSwap {
        at: u64,
        blocks: u64,
        stamp: u64,
    },
    /// To the unit that has the command, from it or from the other one.
    Copy {
        source: u8,
        from: u64,
        to: u64,
        blocks: u64,
        before: Vec<BTreeSet<u64>>,
    },
    /// POPULATE TOKEN: its window knows what it may be.
    Populate {
        made: Made,
        window: u64,
    },
    /// RECEIVE ROD TOKEN INFORMATION.
    Receive {
        rod: Rod,
        data: Vec<u8>,
    },
    /// WRITE USING TOKEN of this one of the stage's.
    Use {
        token: usize,
        offset: usize,
        to: u64,
        before: Vec<BTreeSet<u64>>,
        deletes: bool,
        sent: Time,
        /// It was certainly gone.
        is_late: bool,
    },
    /// About unit 0's reservations.
    Order(u32),
    /// REQUEST SENSE.
    Sense,
    /// Moves nothing.
    Other,
}

#[derive(Debug)]
pub(crate) struct Task {
    pub(crate) lun: u8,
    pub(crate) kind: Kind,
    /// Data-out.
    pub(crate) out: Vec<u8>,
    /// What the disk had refused for want of space when this was sent.
    pub(crate) refused_before: usize,
}

/// Whether two ranges of this many blocks have none in common.
pub(crate) fn apart(at: u64, blocks: u64, other: u64, others: u64) -> bool {
    at + blocks <= other || other + others <= at
}

impl Kind {
    /// The host's blocks that it touches, when a unit has it: unit, first block, blocks.
    pub(crate) fn touches(&self, lun: u8) -> Vec<(u8, u64, u64)> {
        match *self {
            Kind::Read { at, blocks, .. } => vec![(lun, at, blocks)],
            Kind::Copy { source, from, to, blocks, .. } => vec![(source, from, blocks), (lun, to, blocks)],
            _ => self.changes().into_iter().map(|(at, blocks)| (lun, at, blocks)).collect(),
        }
    }

    /// The value that it writes.
    pub(crate) fn stamp(&self) -> Option<u64> {
        match *self {
            Kind::Write { stamp, .. } | Kind::Swap { stamp, .. } | Kind::SharedSwap { stamp, .. } => {
                Some(stamp)
            }
            _ => None,
        }
    }

    /// The host's blocks that it changes.
    pub(crate) fn changes(&self) -> Option<(u64, u64)> {
        match *self {
            Kind::Write { at, blocks, .. } | Kind::Zero { at, blocks, .. } => Some((at, blocks)),
            Kind::Swap { at, ref expected, .. } => Some((at, expected.len() as u64)),
            Kind::Copy { to, blocks, .. } => Some((to, blocks)),
            Kind::Use { to, ref before, .. } => Some((to, before.len() as u64)),
            _ => None,
        }
    }
}

/// A command as it is to be sent.
pub(crate) struct Wish {
    pub(crate) lun: u8,
    pub(crate) attribute: u8,
    pub(crate) cdb: Vec<u8>,
    pub(crate) kind: Kind,
    pub(crate) access: Access,
    pub(crate) out: Vec<u8>,
    pub(crate) room: usize,
}

/// TEST UNIT READY, REQUEST SENSE, SYNCHRONIZE CACHE, MODE SELECT of nothing.
pub(crate) fn other(lun: u8, attribute: u8, which: u64) -> Wish {
    let (cdb, kind, access, room) = match which {
        0 => (vec![0; 6], Kind::Other, Access::Nothing, 0),
        1 => (vec![3, 0, 0, 0, 18, 0], Kind::Sense, Access::Nothing, 18),
        2 => (vec![0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0], Kind::Other, Access::Write, 0),
        _ => (vec![0x15, 0x10, 0, 0, 0, 0], Kind::Other, Access::Write, 0),
    };
    Wish { lun, attribute, cdb, kind, access, out: Vec::new(), room }
}

/// EXTENDED COPY's list: one segment within the unit, or from another one, by these units' identities.
pub(crate) fn copy_list(from: u64, to: u64, blocks: u64, units: Option<[[u8; 16]; 2]>) -> Vec<u8> {
    let cscds: Vec<u8> = units.iter().flatten().flat_map(cscd).collect();
    let mut list = vec![0, 3 << 3, 0, cscds.len() as u8, 0, 0, 0, 0, 0, 0, 0, 28, 0, 0, 0, 0];
    list.extend(&cscds);
    list.extend([0x02, 0, 0, 0x18]);
    list.extend(if units.is_some() { [0, 0, 0, 1, 0, 0] } else { [0xff, 0xff, 0xff, 0xff, 0, 0] });
    list.extend((blocks as u16).to_be_bytes());
    list.extend(from.to_be_bytes());
    list.extend(to.to_be_bytes());
    list
}

/// A unit's identification descriptor.
fn cscd(id: &[u8; 16]) -> [u8; 32] {
    let mut bytes = [0; 32];
    (bytes[0], bytes[4], bytes[5], bytes[7], bytes[30]) = (0xe4, 1, 3, 16, (BLOCK >> 8) as u8);
    bytes[8..24].copy_from_slice(&naa(id));
    bytes
}

/// COMPARE AND WRITE.
pub(crate) fn swap_cdb(lba: u64, blocks: u64) -> Vec<u8> {
    let mut cdb = cdb16(0x89, lba as u32, 0);
    cdb[13] = blocks as u8;
    cdb.to_vec()
}

/// WRITE SAME(16) with these flags.
pub(crate) fn same_cdb(flags: u8, lba: u64, blocks: u64) -> Vec<u8> {
    let mut cdb = cdb16(0x93, lba as u32, blocks as u32);
    cdb[1] = flags;
    cdb.to_vec()
}

/// UNMAP of a range in two descriptors: its CDB and list.
pub(crate) fn unmap(lba: u64, blocks: u64) -> (Vec<u8>, Vec<u8>) {
    let mut list = vec![0, 38, 0, 32, 0, 0, 0, 0];
    let half = blocks / 2;
    for (first, count) in [(lba, half), (lba + half, blocks - half)] {
        list.extend(first.to_be_bytes());
        list.extend((count as u32).to_be_bytes());
        list.extend([0; 4]);
    }
    (vec![0x42, 0, 0, 0, 0, 0, 0, 0, list.len() as u8, 0], list)
}

/// Whether the disk has a copy to here that nobody has given up. `on`: which device's blocks these are; `None`: all
/// devices show the same.
pub(crate) fn copies_to(world: &World, on: Option<BdevId>, block: u64) -> bool {
    let is_it = |&(_, io, given_up): &(usize, CopyIo, bool)| {
        !given_up && is_on(on, io.destination) && io.destination_bytes == block * BLOCK as u64
    };
    world.disk.copies.iter().any(is_it)
}

fn is_on(on: Option<BdevId>, bdev: BdevId) -> bool {
    on.is_none_or(|on| on == bdev)
}

/// Requests for zeroes that the disk has for this range, by core and tag.
pub(crate) fn zeroes_in(world: &World, on: Option<BdevId>, first: u64, blocks: u64) -> Vec<(usize, u64)> {
    let is_it = |io: &bdev::io::Io| {
        matches!(io.op, Op::WriteZeroes | Op::Unmap)
            && is_on(on, io.bdev)
            && io.blocks > 0
            && !apart(first, blocks, io.lba, io.blocks)
    };
    let waiting = world.disk.waiting.iter().filter(|request| is_it(&request.io));
    waiting.map(|request| (request.core, request.io.tag.0)).collect()
}
