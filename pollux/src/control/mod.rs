//! The control API: HTTP/JSON on a Unix socket, on an ordinary thread of its own. See `docs/control.md`.
//!
//! A request's way: [`server`] (connections, their bounds) → `routes` (HTTP to values) → [`operations`] (the order of
//! steps, undone where one is refused) → [`backend`], which is implemented over the reactors. Nothing here runs on a
//! reactor, and no reactor ever waits for what is here.

pub mod answer;
pub mod api;
pub mod backend;
pub mod live;
pub mod operations;
pub mod routes;
pub mod server;
pub mod socket;
