//! Pools: thin and thick volumes, snapshots and clones over the space of one or more files or block devices.
//!
//! Read `slot` first, then `map`, then `shard`. A request's way: `shard` → `read`, `write` or `range` →
//! `map` and `space` → `device`, and for what changes the map `journal`. `copy` moves pointers between shards,
//! `checkpoint` writes maps out, `open` reads all of it back, `owner` does what people ask for in `control`.

pub mod catalog;
mod checkpoint;
pub mod codec;
pub mod control;
mod copy;
pub mod device;
pub mod format;
mod heartbeat;
pub mod journal;
pub mod mail;
pub mod map;
pub mod medium;
pub mod open;
pub mod owner;
mod range;
mod read;
pub mod record;
pub mod rule;
pub mod shard;
pub mod slot;
pub mod space;
mod write;
mod writeout;

pub use medium::Medium;
pub use open::{
    CheckReport, CreateOptions, Member, OpenOptions, Opened, PoolError, Problem, check, create, open,
    pool_on, repair,
};
pub use rule::Rule;
pub use shard::PoolShard;
