//! The simulator: block device stacks in one thread under a seed, over disks as bad as they may be, against the dullest
//! model. See `docs/simulation.md`.
//!
//! [`runner`] gives each seed a [`world`]; what it does there is [`actions`]' and [`history`]'s, what its disks do is
//! [`disk`]'s, and what must come of it [`oracle`]'s.

pub mod actions;
pub mod chance;
pub mod content;
pub mod control;
pub mod disk;
pub mod fake;
pub mod fake_control;
pub mod history;
pub mod lines;
pub mod look;
pub mod oracle;
pub mod plain;
pub mod pooled;
pub mod runner;
pub mod stats;
pub mod subject;
pub mod table;
pub mod trace;
pub mod wishes;
pub mod world;
