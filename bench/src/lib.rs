//! Measures targets: an iSCSI load generator, the raw-socket ceiling it is compared with, and the runs that
//! put both side by side; the pool below them, without sockets; and the target's hot parts by themselves.
//!
//! Nothing but [`micro`] and [`instructions`], which measure it, shares protocol code with the target: a wrong encoder must not be
//! cancelled by the same wrong decoder.

pub mod args;
pub mod cases;
pub mod ceiling;
pub mod compare;
pub mod cpu;
pub mod disk;
pub mod failure;
pub mod fio;
pub mod idle;
pub mod instructions;
pub mod load;
pub mod machine;
pub mod micro;
pub mod offload;
pub mod plot;
pub mod pool;
pub mod process;
pub mod stack;
