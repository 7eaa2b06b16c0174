//! RFC 7143 target: protocol state machines without IO, and the portal that drives them.

pub mod access;
pub mod chap;
pub mod digest;
pub mod discovery;
pub mod login;
pub mod name;
pub mod negotiate;
pub mod pdu;
pub mod serial;
pub mod text;
