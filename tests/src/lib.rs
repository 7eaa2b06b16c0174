//! What the tests of the whole stand on: programs they start, targets under test, the peers, and the readers of
//! what those say.
//!
//! Names every other crate; nothing names it. `tidy.rs` checks the tree in every `cargo test`; `conformance.rs`,
//! `initiators.rs`, `crowd.rs`, `kill.rs`, `esxi.rs`, `full.rs` and `linux.rs` want real peers or the real program, so they
//! are ignored there and run by `tests/run`.

pub mod esxi;
pub mod expected;
pub mod guest;
pub mod initiator;
pub mod peers;
pub mod process;
pub mod rust_code;
pub mod sim;
pub mod stamped;
pub mod suite;
pub mod target;
pub mod tree;
