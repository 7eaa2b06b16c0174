//! The SCSI device server: CDB to block operations to status and sense. No sockets here.

pub mod change;
pub mod command;
pub mod sense;
