//! Operations on the pool's members, continued where they were cut short and tried again where that helps.
//!
//! Invariant: each operation in `ops` is at the disk or stands in `retry`.

use crate::base::uring::translate;
use crate::error::IoError;
use crate::shard::USER_BDEV_SHIFT;
use reactor::buf::Buf;
use reactor::disk::{DiskAction, DiskDone, DiskOp, FileId};
use reactor::slots::{Slot, Slots};
use std::collections::VecDeque;

const TRIES_MAX: u16 = 1000;
const RETRIES_A_TURN: usize = 64;
const INTERRUPTED: i32 = 4;
const AGAIN: i32 = 11;
const IO: i32 = 5;

/// A member, as the rings know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemberFile {
    /// Its file.
    pub file: FileId,
    /// Offsets and lengths are multiples of this.
    pub align_bytes: u32,
    /// Free chunks are punched.
    pub punch: bool,
}

/// What is asked of a member.
#[derive(Debug)]
pub struct Ask {
    /// Which.
    pub member: u16,
    /// What.
    pub action: DiskAction,
    /// From where.
    pub at: u64,
    /// How much.
    pub bytes: u64,
    /// The memory.
    pub buf: Option<Buf>,
    /// Where in it.
    pub buf_offset: u32,
}

#[derive(Debug)]
struct Op<U> {
    user: U,
    member: u16,
    action: DiskAction,
    at: u64,
    bytes: u64,
    moved: u64,
    buf_offset: u32,
    tries: u16,
    buf: Option<Buf>,
}

/// An operation's end.
#[derive(Debug)]
pub struct Finished<U> {
    /// Whose it was.
    pub user: U,
    /// On which member.
    pub member: u16,
    /// How it went: all of it was moved.
    pub result: Result<(), IoError>,
    /// Its memory.
    pub buf: Option<Buf>,
}

/// See the module. `U` is what the asker finds again.
#[derive(Debug)]
pub struct Devices<U> {
    pub(super) members: Vec<MemberFile>,
    /// For the operations' user data.
    mark: u64,
    ops: Slots<Op<U>>,
    retry: VecDeque<Slot>,
}

impl<U> Devices<U> {
    /// The members. `mark` is what the shard finds this pool by.
    pub fn new(members: Vec<MemberFile>, mark: u16, capacity: usize) -> Devices<U> {
        Devices {
            members,
            mark: u64::from(mark) << USER_BDEV_SHIFT,
            ops: Slots::with_capacity(capacity),
            retry: VecDeque::new(),
        }
    }

    /// Operations that have not ended.
    pub fn in_flight(&self) -> usize {
        self.ops.len()
    }

    /// Begins one.
    pub fn issue(&mut self, user: U, ask: Ask, disk: &mut VecDeque<DiskOp>) {
        let Ask { member, action, at, bytes, buf, buf_offset } = ask;
        let op = Op { user, member, action, at, bytes, moved: 0, buf_offset, tries: 0, buf };
        let Ok(slot) = self.ops.insert(op) else { panic!("the shard bounds its requests") };
        self.push(slot, disk);
    }

    fn push(&mut self, slot: Slot, disk: &mut VecDeque<DiskOp>) {
        let mark = self.mark;
        let Some(op) = self.ops.get_mut(slot) else { return };
        // 16 bits of the generation have room: it only has to catch what can't happen.
        let user = mark | (slot.to_bits() >> 32 & 0xffff) << 32 | slot.index() as u64;
        disk.push_back(DiskOp {
            user,
            file: self.members[usize::from(op.member)].file,
            action: op.action,
            offset_bytes: op.at + op.moved,
            bytes: op.bytes - op.moved,
            buf: op.buf.take(),
            buf_offset: op.buf_offset + op.moved as u32,
        });
    }

    /// The disk has ended one; `None` if it goes on.
    pub fn complete(&mut self, done: DiskDone, disk: &mut VecDeque<DiskOp>) -> Option<Finished<U>> {
        let index = done.user as u32 as usize;
        let slot = self.ops.slot_at(index)?;
        if slot.to_bits() >> 32 & 0xffff != done.user >> 32 & 0xffff {
            debug_assert!(false, "a completion of nothing");
            return None;
        }
        let align = u64::from(self.members[usize::from(self.ops.get(slot)?.member)].align_bytes);
        let op = self.ops.get_mut(slot)?;
        op.buf = done.buf;
        let moves = matches!(op.action, DiskAction::Read | DiskAction::Write { .. });
        let result = match done.result {
            Ok(_) if !moves => Ok(()),
            Ok(moved) => {
                let reached = op.moved + u64::from(moved);
                if reached == op.bytes {
                    Ok(())
                } else if reached > op.bytes || (moved == 0 && op.action == DiskAction::Read) {
                    Err(IO)
                } else {
                    let aligned = reached - reached % align;
                    if aligned > op.moved {
                        op.moved = aligned;
                        op.tries = 0;
                        self.push(slot, disk);
                        return None;
                    }
                    Err(AGAIN)
                }
            }
            Err(errno) => Err(errno),
        };
        let op = self.ops.get_mut(slot)?;
        if matches!(result, Err(AGAIN | INTERRUPTED)) && op.tries < TRIES_MAX {
            op.tries += 1;
            self.retry.push_back(slot);
            return None;
        }
        let op = self.ops.remove(slot)?;
        Some(Finished { user: op.user, member: op.member, result: result.map_err(translate), buf: op.buf })
    }

    /// Tries again what was refused for the moment. Whether something is left to try.
    pub fn turn(&mut self, disk: &mut VecDeque<DiskOp>) -> bool {
        for _ in 0..self.retry.len().min(RETRIES_A_TURN) {
            if let Some(slot) = self.retry.pop_front() {
                self.push(slot, disk);
            }
        }
        !self.retry.is_empty()
    }
}
