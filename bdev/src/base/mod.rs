//! The devices at the bottom of a stack: memory, nothing, and files or block devices.

pub mod null;
pub mod open;
pub mod ram;
pub mod uring;
