//! Block devices as layers: a request enters with its buffer and comes back with it.
//!
//! No SCSI here and no sockets. The kernel is met in [`base::open`] only, at start: on the IO path base devices hand
//! [`reactor::disk::DiskOp`]s down and get [`reactor::disk::DiskDone`]s back, so all of it runs unchanged under a
//! simulator. A request's way: [`router`] → [`shard`] → [`stack`]: [`atomic`], [`align`], [`base`].
#![forbid(unsafe_code)]

pub mod align;
pub mod atomic;
pub mod base;
pub mod edge;
pub mod error;
pub mod gate;
pub mod geometry;
pub mod io;
pub mod layer;
pub mod lent;
pub mod pieces;
pub mod pool;
pub mod router;
pub mod shard;
pub mod stack;
pub mod storage;
pub mod stripe;
pub mod zero_detect;

#[cfg(test)]
mod model;
