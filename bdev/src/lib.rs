//! Block devices as layers: a request enters with its buffer and comes back with it.
//!
//! No SCSI here, no sockets, and no kernel: base devices hand [`reactor::disk::DiskOp`]s down.

pub mod error;
pub mod geometry;
pub mod io;
pub mod layer;
