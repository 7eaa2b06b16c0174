//! The program's parts: configuration, identity, start-up text, log, signals. `main` strings them together.
#![forbid(unsafe_code)]

pub mod args;
pub mod banner;
pub mod below;
pub mod boot;
pub mod check;
pub mod client;
pub mod config;
pub mod control;
pub mod identity;
pub mod logging;
pub mod mistake;
pub mod node;
pub mod pools;
pub mod signals;
pub mod space;
pub mod spec;
