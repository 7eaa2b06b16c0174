//! The control API over a target in memory: the order of steps, and HTTP.
#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests, outside of the functions that clippy knows as tests"
)]

mod fake;
mod operations;
mod server;
