//! The SCSI device server: CDB to block operations to status and sense. No sockets here.
//!
//! A transport makes a [`server::DeviceServer`] a core, hands it a [`command::Command`], and carries out what the
//! [`task::Task`] it gets wants, one [`command::Effect`] at a time.

mod capacity;
mod cdb;
pub mod change;
pub mod command;
mod compare_and_write;
mod copy;
#[cfg(test)]
mod harness;
pub mod identity;
mod inquiry;
mod lba_status;
pub mod limits;
mod log;
pub mod lun;
mod medium;
mod mode;
mod mode_select;
#[cfg(test)]
mod model;
mod opcodes;
mod reply;
mod report;
pub mod reservation;
mod rw;
pub mod sense;
pub mod server;
mod settle;
pub mod task;
pub mod token;
mod transfer;
mod units;
mod unmap;
mod write_atomic;
mod write_same;
