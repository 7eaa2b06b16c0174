//! The chunks of a pool in memory. Each core has those that it counts, so nothing is shared; what another core's slots have in
//! them is asked for by mail, with the buffer, and done there as it comes.
//!
//! Nothing is durable, so everything is as soon as it is written; journals, maps and superblocks stand in members as of any
//! pool. What is done at once comes back in order, by a queue: nobody's answer comes from inside of their asking.

use super::mail::{Data, Outgoing};
use super::shard::{Asked, PoolShard, Task, User};
use super::slot::{CHUNK_BYTES, Chunk};
use super::space::CLUSTER_CHUNKS;
use crate::lent::Lent;
use crate::pieces::{self, Pieces};
use crate::stripe::{Deal, STRIPE_BYTES};
use reactor::Core;
use reactor::buf::Buf;
use reactor::disk::DiskAction;
use reactor::slots::Slot;
use std::collections::VecDeque;

/// One core's chunks. Invariant: `pieces` has one for each chunk of each cluster that is `core`'s, in order, and one of zeroes
/// behind them.
#[derive(Debug)]
pub(super) struct Memory {
    deal: Deal,
    core: Core,
    pieces: Pieces,
    zeroes: usize,
    /// What is done and has not come back; bounded by the tasks.
    done: VecDeque<(User, Option<Buf>)>,
}

/// Memory that the chunks of a pool of `bytes` take on all of so many cores.
pub fn memory_bytes(bytes: u64, cores: u16) -> u64 {
    let deal = Deal::among(cores);
    let of = |core| pieces::memory_bytes(deal.stripes_of(Core(core), bytes) * u64::from(CLUSTER_CHUNKS) + 1);
    (0..cores).map(of).sum()
}

impl Memory {
    /// The chunks of a core, all zeroes. To be called on that core's thread.
    ///
    /// # Errors
    /// When there isn't as much memory.
    pub(super) fn new(core: Core, deal: Deal, chunks: u32) -> std::io::Result<Memory> {
        let stripes = deal.stripes_of(core, u64::from(chunks) * CHUNK_BYTES);
        let zeroes = stripes * (STRIPE_BYTES / CHUNK_BYTES);
        let pieces = Pieces::new(zeroes + 1)?;
        Ok(Memory { deal, core, pieces, zeroes: zeroes as usize, done: VecDeque::new() })
    }

    /// Which core has a chunk.
    #[inline]
    fn owner(&self, chunk: Chunk) -> Core {
        self.deal.owner(u64::from(chunk.0) * CHUNK_BYTES)
    }

    /// The piece of a chunk. `None`: it is another core's.
    #[inline]
    fn piece(&self, chunk: Chunk) -> Option<usize> {
        let at = u64::from(chunk.0) * CHUNK_BYTES;
        let is_own = self.deal.owner(at) == self.core;
        is_own.then(|| {
            (self.deal.local_stripe(at) * u64::from(CLUSTER_CHUNKS)) as usize
                + (chunk.0 % CLUSTER_CHUNKS) as usize
        })
    }

    /// Lends bytes of a chunk, or zeroes. `None`: it is another core's, or they have to be copied.
    #[inline]
    pub(super) fn lend(&self, chunk: Option<Chunk>, first: u32, bytes: usize) -> Option<Lent> {
        let piece = chunk.map_or(Some(self.zeroes), |chunk| self.piece(chunk))?;
        self.pieces.lend(piece, first as usize, bytes)
    }

    /// Bytes of a chunk of this core, to be read.
    #[inline]
    pub(super) fn at(&self, chunk: Chunk, first: u32, bytes: usize) -> Option<&[u8]> {
        Some(self.pieces.at(self.piece(chunk)?, first as usize, bytes))
    }

    /// Bytes of a chunk of this core, all to be written.
    #[inline]
    pub(super) fn at_mut(&mut self, chunk: Chunk, first: u32, bytes: usize) -> Option<&mut [u8]> {
        Some(self.pieces.at_mut(self.piece(chunk)?, first as usize, bytes))
    }

    /// A hint that these bytes of a chunk will be needed soon.
    #[inline]
    pub(super) fn expect(&self, chunk: Chunk, first: u32, bytes: usize) {
        if let Some(piece) = self.piece(chunk) {
            self.pieces.expect(piece, first as usize, bytes);
        }
    }

    /// Does what is asked, of a chunk of this core.
    fn perform(&mut self, data: &mut Data) {
        let (bytes, from) = (data.bytes as usize, data.buf_offset as usize);
        let Some(buf) = data.buf.as_mut() else { unreachable!("data come in a buffer, and go in one") };
        let part = &mut buf[from..from + bytes];
        if data.writes {
            match self.at_mut(data.chunk, data.first, bytes) {
                Some(memory) => memory.copy_from_slice(part),
                None => unreachable!("it was sent to who has the chunk"),
            }
        } else {
            match self.at(data.chunk, data.first, bytes) {
                Some(memory) => part.copy_from_slice(memory),
                None => unreachable!("it was sent to who has the chunk"),
            }
        }
    }
}

impl PoolShard {
    /// Whether data stand in memory.
    pub(super) fn is_in_memory(&self) -> bool {
        self.memory.is_some()
    }

    /// What offsets and lengths of data on a member have to be multiples of.
    #[inline]
    pub(super) fn data_align_bytes(&self, member: u16) -> u32 {
        if self.is_in_memory() { 1 } else { self.devices.members[usize::from(member)].align_bytes }
    }

    /// The chunk that stands at a place of a member, and where in it that is.
    fn chunk_of(&self, member: u16, at: u64) -> Option<(Chunk, u32)> {
        let holds = |extent: &&super::format::Extent| {
            extent.member == member
                && at >= extent.at
                && at - extent.at < u64::from(extent.chunks) * CHUNK_BYTES
        };
        let extent = self.superblock.extents.iter().find(holds)?;
        let within = at - extent.at;
        Some((Chunk(extent.first_chunk + (within / CHUNK_BYTES) as u32), (within % CHUNK_BYTES) as u32))
    }

    /// Takes an operation, if it is one of data in memory: it is done at once, or by the core that has the chunk. Gives the
    /// buffer back if it is not.
    pub(super) fn issue_in_memory(
        &mut self,
        user: User,
        (member, action): (u16, DiskAction),
        (at, bytes): (u64, u64),
        buf: Option<Buf>,
        buf_offset: u32,
    ) -> Result<(), Option<Buf>> {
        if self.memory.is_none() {
            return Err(buf);
        }
        let Some((chunk, first)) = self.chunk_of(member, at) else { return Err(buf) };
        let writes = match action {
            DiskAction::Read => false,
            DiskAction::Write { .. } => true,
            // Journals and maps are elsewhere, and chunks in memory are not punched.
            DiskAction::Sync | DiskAction::PunchHole | DiskAction::ZeroRange => return Err(buf),
        };
        let Some(memory) = &mut self.memory else { return Err(buf) };
        let owner = memory.owner(chunk);
        let mut data = Data { token: 0, chunk, first, bytes: bytes as u32, writes, buf_offset, buf };
        if owner == self.core {
            memory.perform(&mut data);
            memory.done.push_back((user, data.buf));
        } else {
            let Ok(slot) = self.asked.insert(Asked::Data(user)) else {
                panic!("the shard bounds what it asks")
            };
            data.token = slot.to_bits();
            self.counts.chunk_messages += 1;
            self.out.push_back(Outgoing::Data(owner, data));
        }
        Ok(())
    }

    /// A whole chunk of this core is written from a buffer that need not come back: another does. False: nothing was done.
    pub(super) fn swap_in_memory(&mut self, task: Slot, chunk: Chunk) -> bool {
        let Some(Task::Write(write)) = self.tasks.get_mut(task) else { return false };
        let Some(memory) = &mut self.memory else { return false };
        let Some(piece) = memory.piece(chunk) else { return false };
        let Some(mut buf) = write.take_disposable() else { return false };
        memory.pieces.swap(piece, &mut buf);
        memory.done.push_back((User::Task(task), Some(buf)));
        true
    }

    /// Another core asks for data in a chunk of this one.
    pub(crate) fn on_data(&mut self, data: &mut Data) {
        if let Some(memory) = &mut self.memory {
            memory.perform(data);
        }
    }

    /// Another core has done what was asked of it.
    pub(crate) fn on_data_done(&mut self, data: Data) {
        match self.asked.remove(Slot::from_bits(data.token)) {
            Some(Asked::Data(user)) => self.ended(user, 0, Ok(()), data.buf),
            _ => debug_assert!(false, "an answer to nothing"),
        }
    }

    /// The chunks of this core that are in memory, with what is in them: for tests in which memory outlives the shards, as that of
    /// a device would that keeps what it has.
    pub fn chunks_in_memory(&self) -> impl Iterator<Item = (Chunk, &[u8])> {
        let chunks = (0..self.superblock.chunks()).map(Chunk);
        chunks.filter_map(|chunk| Some((chunk, self.memory.as_ref()?.at(chunk, 0, CHUNK_BYTES as usize)?)))
    }

    /// Puts into a chunk what was in it before; nothing, if it is another core's. As [`PoolShard::chunks_in_memory`].
    pub fn restore_in_memory(&mut self, chunk: Chunk, data: &[u8]) {
        if let Some(memory) = self.memory.as_mut().and_then(|memory| memory.at_mut(chunk, 0, data.len())) {
            memory.copy_from_slice(data);
        }
    }

    /// Goes on with what was done in memory, and what is then.
    pub(super) fn settle_memory(&mut self) {
        while let Some((user, buf)) = self.memory.as_mut().and_then(|memory| memory.done.pop_front()) {
            self.ended(user, 0, Ok(()), buf);
        }
    }
}
