//! Reads: the map says where each block is, neighbours are one operation, zeroes are none.

use super::shard::{PoolShard, Task, User};
use super::slot::{BLOCK_BYTES, CHUNK_BYTES};
use crate::error::IoError;
use crate::io::{BdevId, Done, Io};
use crate::layer::Place;
use crate::pool::map::SlotNo;
use reactor::buf::Buf;
use reactor::disk::DiskAction;
use reactor::slots::Slot;
use smallvec::SmallVec;

/// Neighbours on a member, and where they go in the buffer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    member: u16,
    at: u64,
    bytes: u32,
    buf_offset: u32,
}

/// The pieces of a read: one or two, but for what small writes have left in many places.
pub(super) type Pieces = SmallVec<[Piece; 2]>;

/// Lists of more pieces that are kept for the next reads that need one.
const LISTS_KEPT: usize = 256;

/// Memory for whole blocks, where the member can't read less than the range has.
#[derive(Debug)]
enum Bounce {
    /// The asker's buffer does.
    Unneeded,
    /// Here.
    Here(Buf),
    /// With the disk.
    Away,
}

/// A read on its way: its pieces one after the other.
#[derive(Debug)]
pub(super) struct Read {
    io: Io,
    pieces: Pieces,
    next: usize,
    epoch: u64,
    /// Whole blocks are read into this where the member can't read less; the range begins so many bytes in.
    bounce: Bounce,
    lead: u32,
}

impl PoolShard {
    /// Where bytes of a volume lie, if they lie together. What a read finds that begins now, and is over before anything else
    /// happens: nothing has to be kept from being given away meanwhile.
    pub(crate) fn place(&mut self, bdev: BdevId, first: u64, bytes: usize) -> Option<Place> {
        if self.is_in_memory() {
            // No file has them.
            return None;
        }
        let root = self.volume(bdev)?.attached.root;
        let (slot, _) = self.map.slot(root, SlotNo(first / CHUNK_BYTES));
        self.folding.asked_at = self.now;
        let in_slot = (first % CHUNK_BYTES) as u32;
        let end = in_slot + bytes as u32;
        let block_of = |at: u32| at / BLOCK_BYTES as u32;
        let mut together: Option<Place> = None;
        for block in block_of(in_slot)..=block_of(end - 1) {
            let at = in_slot.max(block * BLOCK_BYTES as u32);
            let found = if slot.is_empty() { None } else { self.map.explosions.pointer(slot, block) };
            let place = match found {
                None => Place::Zeroes,
                Some(place) => {
                    let (member, base) = self.chunk_at(place.chunk);
                    let within = u64::from(place.block) * BLOCK_BYTES + u64::from(at) % BLOCK_BYTES;
                    let file = self.devices.members[usize::from(member)].file;
                    Place::File { file, offset_bytes: base + within }
                }
            };
            let goes_on = match (together, place) {
                (None, _) | (Some(Place::Zeroes), Place::Zeroes) => true,
                (
                    Some(Place::File { file, offset_bytes }),
                    Place::File { file: next, offset_bytes: from },
                ) => file == next && offset_bytes + u64::from(at - in_slot) == from,
                _ => false,
            };
            if !goes_on {
                return None;
            }
            together.get_or_insert(place);
        }
        together
    }

    /// See [`crate::shard::Shard::count_read`].
    pub(crate) fn count_read(&mut self, bytes: u64) {
        self.counts.data_read_bytes += bytes;
    }

    pub(super) fn submit_read(&mut self, mut io: Io) {
        let Some(volume) = self.volume(io.bdev) else {
            // It waited for a buffer, and the volume went meanwhile.
            return self.done.push_back(Done { io, result: Err(IoError::GONE) });
        };
        let (root, block_bytes) = (volume.attached.root, u64::from(volume.attached.geometry.block_bytes));
        let (first, bytes) = (io.lba * block_bytes, io.blocks * block_bytes);
        let slot = SlotNo(first / CHUNK_BYTES);
        let (slot, _) = self.map.slot(root, slot);
        let in_slot = (first % CHUNK_BYTES) as u32;
        let Some(buf) = io.buf.as_mut() else { unreachable!("the router checked the buffer") };
        if slot.is_empty() {
            buf.fill(0);
            return self.done.push_back(Done { io, result: Ok(()) });
        }
        let mut pieces = Pieces::new();
        let (mut at, end) = (in_slot, in_slot + bytes as u32);
        let mut fits = true;
        while at < end {
            let block = at / BLOCK_BYTES as u32;
            let until = ((block + 1) * BLOCK_BYTES as u32).min(end);
            let buf_offset = at - in_slot;
            match self.map.explosions.pointer(slot, block) {
                None => buf[buf_offset as usize..(until - in_slot) as usize].fill(0),
                Some(place) => {
                    let (member, base) = self.chunk_at(place.chunk);
                    let from = base + u64::from(place.block) * BLOCK_BYTES + u64::from(at) % BLOCK_BYTES;
                    match pieces.last_mut() {
                        Some(last)
                            if last.member == member
                                // Chunks in memory don't stand one behind the other.
                                && !(self.is_in_memory() && from.is_multiple_of(CHUNK_BYTES))
                                && last.at + u64::from(last.bytes) == from
                                && last.buf_offset + last.bytes == buf_offset =>
                        {
                            last.bytes += until - at;
                        }
                        _ => {
                            if pieces.len() == pieces.inline_size()
                                && let Some(mut longer) = self.read_lists.pop()
                            {
                                longer.append(&mut pieces);
                                pieces = longer;
                            }
                            pieces.push(Piece { member, at: from, bytes: until - at, buf_offset });
                        }
                    }
                }
            }
            at = until;
        }
        for piece in &pieces {
            let align = self.data_align_bytes(piece.member);
            fits &= (piece.at | u64::from(piece.bytes) | u64::from(piece.buf_offset))
                .is_multiple_of(u64::from(align));
        }
        if pieces.is_empty() {
            return self.done.push_back(Done { io, result: Ok(()) });
        }
        let mut bounce = Bounce::Unneeded;
        if !fits {
            let Some(mut buf) = self.bounces.pop() else {
                // All are with writes that end without needing this one: it comes round again.
                self.keep_list(pieces);
                return self.waiting_reads.push_back(io);
            };
            let lead = in_slot % BLOCK_BYTES as u32;
            let whole = u64::from(lead + bytes as u32).next_multiple_of(BLOCK_BYTES);
            buf.set_len(whole as usize);
            buf.fill(0);
            let last_whole = whole as u32;
            for piece in &mut pieces {
                let head = (piece.at % BLOCK_BYTES) as u32;
                piece.at -= u64::from(head);
                piece.buf_offset = piece.buf_offset + lead - head;
                piece.bytes = (piece.bytes + head)
                    .next_multiple_of(BLOCK_BYTES as u32)
                    .min(last_whole - piece.buf_offset);
            }
            bounce = Bounce::Here(buf);
        }
        let epoch = self.epochs.begin();
        let lead = in_slot % BLOCK_BYTES as u32;
        let read = Read { io, pieces, next: 0, epoch, bounce, lead };
        let Ok(slot) = self.tasks.insert(Task::Read(read)) else { panic!("the shard bounds its requests") };
        self.read_next(slot);
    }

    fn keep_list(&mut self, mut pieces: Pieces) {
        if pieces.spilled() && self.read_lists.len() < LISTS_KEPT {
            pieces.clear();
            self.read_lists.push(pieces);
        }
    }

    fn read_next(&mut self, slot: Slot) {
        let Some(Task::Read(read)) = self.tasks.get_mut(slot) else { return };
        let piece = read.pieces[read.next];
        read.next += 1;
        let buf = match std::mem::replace(&mut read.bounce, Bounce::Away) {
            Bounce::Unneeded => {
                read.bounce = Bounce::Unneeded;
                read.io.buf.take()
            }
            Bounce::Here(buf) => Some(buf),
            Bounce::Away => None,
        };
        self.counts.data_read_bytes += u64::from(piece.bytes);
        let Piece { member, at, bytes, buf_offset } = piece;
        self.issue(User::Task(slot), member, DiskAction::Read, at, u64::from(bytes), buf, buf_offset);
    }

    pub(super) fn read_done(&mut self, slot: Slot, result: Result<(), IoError>, buf: Option<Buf>) {
        let Some(Task::Read(read)) = self.tasks.get_mut(slot) else { return };
        match (&read.bounce, buf) {
            (Bounce::Unneeded, buf) => read.io.buf = buf,
            (_, Some(buf)) => read.bounce = Bounce::Here(buf),
            (_, None) => {}
        }
        if result.is_ok() && read.next < read.pieces.len() {
            return self.read_next(slot);
        }
        let Some(Task::Read(mut read)) = self.tasks.remove(slot) else { return };
        self.epochs.end(read.epoch);
        self.keep_list(std::mem::take(&mut read.pieces));
        if let Bounce::Here(bounce) = read.bounce {
            let lead = read.lead;
            if let Some(buf) = read.io.buf.as_mut() {
                let bytes = buf.len();
                // Blocks of zeroes were zeroed in both.
                buf.copy_from_slice(&bounce[lead as usize..lead as usize + bytes]);
            }
            self.bounces.push(bounce);
            if let Some(io) = self.waiting_reads.pop_front() {
                self.submit_read(io);
            }
        }
        self.done.push_back(Done { io: read.io, result });
    }
}
