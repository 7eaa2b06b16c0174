//! The control API over a target in memory: the order of steps, HTTP, and the commands.
#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests, outside of the functions that clippy knows as tests"
)]

mod commands;
mod fake;
mod operations;
mod server;
