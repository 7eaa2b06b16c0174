//! Pools: thin and thick volumes, snapshots and clones over the space of one or more files or block devices.
//!
//! Read `slot` first, then `map`, then `shard`. A request's way: `shard` → `read`, `write` or `range` →
//! `map` and `space` → `device`, and for what changes the map `journal`. `copy` moves pointers between shards,
//! `stage` makes one of what is written in parts, `checkpoint` writes maps out, `open` reads all of it back, `owner` does what people ask for in `control`, `usage` counts
//! beside requests what is whose, `punch` gives the space of free chunks back.

pub mod catalog;
mod changes;
mod checkpoint;
pub mod codec;
pub mod control;
mod copy;
pub mod device;
mod fold;
pub mod format;
mod gather;
mod heartbeat;
pub mod journal;
pub mod mail;
pub mod map;
pub mod medium;
pub mod memory;
pub mod open;
pub mod owner;
mod punch;
mod range;
mod read;
pub mod record;
pub mod rule;
pub mod shard;
pub mod slot;
pub mod space;
pub mod stage;
mod straight;
mod usage;
mod write;
mod writeout;

pub(crate) use changes::Told;
pub use checkpoint::CHECKPOINT_PERCENT;

/// Names of a chunk that copies may make: half of what can be counted. The others are for nodes that are copied, which can't
/// be refused; a count that is full all the same stays full until the next opening, and its chunk is not free before.
pub const NAMES_MAX: u32 = 1 << 31;

pub use medium::Medium;
pub use open::{
    CheckReport, CreateOptions, FoldWhen, Member, OpenOptions, Opened, PoolError, Problem, check, create,
    open, pool_on, repair,
};
pub use punch::PUNCH_AFTER;
pub use rule::Rule;
pub use shard::PoolShard;
pub use usage::usage_of;
