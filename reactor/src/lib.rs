//! Pinned, polled-mode reactors: one thread a core, which shares nothing with the others but mailboxes.
//!
//! A [`reactor`] turns: mailbox, io_uring, timers, sockets, each with a budget. It is generic over the message
//! and drives one [`service::Service`]; [`start::Mesh`] starts them all. The kernel is met in `ring`, `net`, `pin`
//! and `clock` (besides `buf`'s mapping, `mailbox`'s doorbell and what `limits` reads), so that everything above
//! runs unchanged under the simulator.

pub mod buf;
pub mod clock;
pub mod disk;
mod durable;
pub mod limits;
pub mod mailbox;
pub mod mesh;
pub mod net;
pub mod pin;
pub mod reactor;
pub mod ring;
pub mod service;
pub mod slots;
pub mod start;
pub mod timer;
pub mod trace;

/// A reactor's place in the mesh: 0 for the first CPU of the list, and so on. Not the CPU's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Core(pub u16);

impl Core {
    /// As an index into per-core tables.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}
