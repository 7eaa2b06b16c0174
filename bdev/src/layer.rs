//! The trait of every layer.

use crate::edge::SwapEvent;
use crate::geometry::Geometry;
use crate::io::{Done, Io};
use crate::lent::Lent;
use reactor::disk::{DiskDone, DiskOp, FileId};
use std::collections::VecDeque;

/// What a layer wants to happen: operations for the disks, and requests that have ended. The shard empties both
/// every turn; both are bounded by the number of requests that the shard has let in.
#[derive(Debug, Default)]
pub struct Effects {
    /// For the ring, in order.
    pub disk: VecDeque<DiskOp>,
    /// For the pool that a volume is of.
    pub pool: VecDeque<Io>,
    /// For the askers.
    pub done: VecDeque<Done>,
    /// Names of changes that are not requests and whose range is theirs now: see [`crate::atomic::Atomic::enter_change`].
    pub changes: VecDeque<u64>,
    /// What has come of parts of a compare and write: see [`crate::atomic::Atomic::enter_swap`].
    pub swaps: VecDeque<SwapEvent>,
}

/// Where bytes of a device are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Nowhere: they are zeroes.
    Zeroes,
    /// Together in a file.
    File {
        /// Which.
        file: FileId,
        /// Where they begin there.
        offset_bytes: u64,
    },
}

/// A block device, or a layer over one. It takes an owned [`Io`], gives it back in a [`Done`], and never blocks.
/// How many it may hold at once is the shard's to bound, so a layer never refuses.
pub trait Bdev {
    /// The device as the layer above sees it.
    fn geometry(&self) -> &Geometry;

    /// Takes a request, already checked against [`Bdev::geometry`] and cut to one shard.
    fn submit(&mut self, io: Io, effects: &mut Effects);

    /// Fills `buf`, whole blocks within one piece, from block `lba` on, where that can be done here and now with nobody to
    /// wait for. False: nothing was done, it is for [`Bdev::submit`].
    fn read_now(&mut self, lba: u64, buf: &mut [u8]) -> bool {
        let _ = (lba, buf);
        false
    }

    /// What [`Bdev::read_now`] would copy, lent: it stays as it is now for as long as somebody holds it.
    fn lend_now(&mut self, lba: u64, bytes: usize) -> Option<Lent> {
        let _ = (lba, bytes);
        None
    }

    /// Where the same bytes are, for whoever can read them there at once. [`None`]: in several places, or not now.
    fn place_now(&mut self, lba: u64, bytes: usize) -> Option<Place> {
        let _ = (lba, bytes);
        None
    }

    /// Writes `data`, as [`Bdev::read_now`] reads; durable, as this device has it.
    fn write_now(&mut self, lba: u64, data: &[u8]) -> bool {
        let _ = (lba, data);
        false
    }

    /// Hints that these bytes, within one piece, will be read or written soon. Nothing need be done.
    fn expect(&self, lba: u64, bytes: usize) {
        let _ = (lba, bytes);
    }

    /// A disk operation of this device has ended.
    fn complete(&mut self, done: DiskDone, effects: &mut Effects);

    /// One bounded step of work that goes on by itself: the next part of a long range, a retry. Called once a
    /// turn. Whether there is more, so that the reactor must not go to sleep.
    fn turn(&mut self, effects: &mut Effects) -> bool {
        let _ = effects;
        false
    }
}
