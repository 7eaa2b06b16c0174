//! Tokens: what POPULATE TOKEN was told of, and what they may be. A token is its source at one moment between the command
//! and its answer: of each block it has what may have been there meanwhile. It may end by time, by DEL_TKN, and with its
//! unit, and is certainly gone when one of the last two was answered.

use reactor::clock::Time;
use std::collections::BTreeSet;
use std::time::Duration;

/// How often a unit was taken away: asked for, and done. One removal is under way at a time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Removals {
    pub(crate) asked: u32,
    pub(crate) done: u32,
}

/// What a POPULATE TOKEN is about.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Made {
    pub(crate) lun: u8,
    /// The list's identifier.
    pub(crate) id: u32,
    pub(crate) timeout: Duration,
    pub(crate) sent: Time,
    /// Its unit's removals when it was sent.
    pub(crate) before: Removals,
}

/// One that is made and was not asked for yet.
#[derive(Clone, Debug)]
pub(crate) struct Rod {
    pub(crate) made: Made,
    /// Its unit's removals when it was answered.
    pub(crate) after: Removals,
    pub(crate) may_be: Vec<BTreeSet<u64>>,
}

#[derive(Clone, Debug)]
pub(crate) struct Token {
    pub(crate) bytes: Vec<u8>,
    pub(crate) rod: Rod,
    /// When something was sent that has certainly used it.
    used: Time,
    may_be_deleted: bool,
    is_deleted: bool,
}

impl Token {
    pub(crate) fn new(bytes: Vec<u8>, rod: Rod) -> Token {
        let used = rod.made.sent;
        Token { bytes, rod, used, may_be_deleted: false, is_deleted: false }
    }

    /// A use of it is about to be sent. Whether it is certainly gone.
    pub(crate) fn begin_use(&mut self, deletes: bool, removals: Removals) -> bool {
        let is_gone = self.is_deleted || removals.done > self.rod.after.asked;
        self.may_be_deleted |= deletes;
        is_gone
    }

    /// A use was answered with GOOD.
    pub(crate) fn used(&mut self, sent: Time, deletes: bool) {
        self.used = self.used.max(sent);
        self.is_deleted |= deletes;
    }

    /// A use was refused because it is gone.
    pub(crate) fn refused(&self, code: u16, now: Time, removals: Removals) -> &'static str {
        match code {
            0x2307 => {
                assert!(now.since(self.used) > self.rod.made.timeout, "expired too soon: {self:?}");
                "a token that has expired"
            }
            0x2309 => {
                assert!(self.may_be_deleted, "nobody has deleted it: {self:?}");
                "a token that is deleted"
            }
            0x2306 => {
                assert!(removals.asked > self.rod.made.before.done, "its unit is there: {self:?}");
                "a token whose unit is gone"
            }
            _ => panic!("{code:#x}: {self:?}"),
        }
    }
}

/// POPULATE TOKEN and WRITE USING TOKEN, and RECEIVE ROD TOKEN INFORMATION.
pub(crate) fn cdb(opcode: u8, action: u8, id: u32, length: usize) -> Vec<u8> {
    let mut cdb = vec![0; 16];
    (cdb[0], cdb[1]) = (opcode, action);
    let at = if opcode == 0x83 { 6 } else { 2 };
    cdb[at..at + 4].copy_from_slice(&id.to_be_bytes());
    cdb[10..14].copy_from_slice(&(length as u32).to_be_bytes());
    cdb
}

fn with_range(mut list: Vec<u8>, lba: u64, blocks: u64) -> Vec<u8> {
    let length = list.len() + 16;
    list[..2].copy_from_slice(&(length as u16 - 2).to_be_bytes());
    list[length - 17] = 16;
    list.extend(lba.to_be_bytes());
    list.extend((blocks as u32).to_be_bytes());
    list.extend([0; 4]);
    list
}

pub(crate) fn populate_list(timeout: Duration, lba: u64, blocks: u64) -> Vec<u8> {
    let mut list = vec![0; 16];
    list[4..8].copy_from_slice(&(timeout.as_secs() as u32).to_be_bytes());
    with_range(list, lba, blocks)
}

pub(crate) fn write_list(token: &[u8], deletes: bool, offset: u64, lba: u64, blocks: u64) -> Vec<u8> {
    let mut list = vec![0; 536];
    list[2] = if deletes { 2 } else { 0 };
    list[8..16].copy_from_slice(&offset.to_be_bytes());
    list[16..528].copy_from_slice(token);
    with_range(list, lba, blocks)
}
