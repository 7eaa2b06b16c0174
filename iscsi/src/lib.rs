//! RFC 7143 target: protocol state machines without IO, and the portal that drives them.
#![forbid(unsafe_code)]

pub mod access;
pub mod admission;
pub mod chap;
pub mod connection;
pub mod decree;
pub mod digest;
pub mod discovery;
pub mod inbound;
pub mod keep;
pub mod login;
pub mod name;
pub mod negotiate;
pub mod pdu;
pub mod portal;
pub mod quota;
pub mod receive;
pub mod reply;
pub mod serial;
pub mod session;
pub mod spare;
pub mod target;
pub mod task_management;
pub mod tasks;
pub mod text;
pub mod transfer;
pub mod transmit;
pub mod units;
