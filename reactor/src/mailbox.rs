//! One bounded mailbox a core, into which all others put batches, and the doorbell that wakes its sleeping owner.
//!
//! One queue per receiver, shared by all senders: what one core pushed before another learnt of it is seen in
//! that order here. Invariant: the places in the channel are dealt out beforehand ([`BATCH_WINDOW`] to each core,
//! [`REMOTE_PLACES`] to the outside), so a full mailbox is a mistake of ours and never a state to handle.

use crate::Core;
use crossbeam_channel::{Receiver, Sender, TrySendError};
use rustix::event::{EventfdFlags, eventfd};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering, fence};

/// Messages that one channel operation carries at most.
pub const BATCH_MESSAGES: usize = 16;

/// Batches that a core has for another, in its mailbox or being filled. More messages wait until one has come back empty.
pub const BATCH_WINDOW: u32 = 8;

/// Messages from outside the mesh that a mailbox keeps places for.
pub const REMOTE_PLACES: u32 = 32;

/// Which requests a credit is for. Urgent ones have credits of their own, so that an abort or a decree gets
/// through when ordinary requests hold all others, perhaps stuck behind a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    Ordinary,
    Urgent,
}

impl Class {
    pub(crate) const ALL: [Class; 2] = [Class::Ordinary, Class::Urgent];

    pub(crate) fn index(self) -> usize {
        match self {
            Class::Ordinary => 0,
            Class::Urgent => 1,
        }
    }
}

/// What a message does to the credits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Request(Class),
    Reply(Class),
    /// From a [`crate::mesh::Remote`].
    Outside,
}

#[derive(Debug)]
pub(crate) struct Envelope<M> {
    pub(crate) kind: Kind,
    pub(crate) message: M,
}

/// Memory for [`BATCH_MESSAGES`]: the sender writes them there and the receiver reads them there, and then it goes back to be
/// used again. What goes over a channel is where it is.
pub(crate) type Messages<M> = Vec<Envelope<M>>;

/// What goes over a channel in one operation.
#[derive(Debug)]
pub(crate) struct Batch<M> {
    pub(crate) from: Core,
    pub(crate) messages: Messages<M>,
}

/// The flag's memory operations, so that loom checks the protocol that the cores run and not a copy of it.
pub(crate) trait Flag {
    /// Relaxed.
    fn set(&self);
    /// Relaxed.
    fn clear(&self);
    /// Relaxed, and writes only if it was set; whether it was.
    fn take(&self) -> bool;
    /// Relaxed.
    fn is_set(&self) -> bool;
    /// Sequentially consistent.
    fn fence();
}

impl Flag for AtomicBool {
    fn set(&self) {
        self.store(true, Ordering::Relaxed);
    }

    fn clear(&self) {
        self.store(false, Ordering::Relaxed);
    }

    fn take(&self) -> bool {
        self.compare_exchange(true, false, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    fn is_set(&self) -> bool {
        self.load(Ordering::Relaxed)
    }

    fn fence() {
        fence(Ordering::SeqCst);
    }
}

/// The rule by which a sleeper misses nothing. The sleeper says that it sleeps and *then* looks whether something
/// has come; a sender puts something in and *then* looks whether the receiver sleeps. With a fence between each
/// pair at least one of them sees the other.
#[derive(Debug, Default)]
#[repr(align(128))] // every sender reads the flag after every push: keep it off lines that are written
pub(crate) struct Sleeper<F>(F);

impl<F: Flag> Sleeper<F> {
    /// Whether the owner may sleep now. If so, it calls [`Sleeper::end`] when it is awake again.
    pub(crate) fn begin(&self, nothing_came: impl FnOnce() -> bool) -> bool {
        self.0.set();
        F::fence();
        if nothing_came() {
            return true;
        }
        self.0.clear();
        false
    }

    pub(crate) fn end(&self) {
        self.0.clear();
    }

    /// For a sender, after its push: whether it has to ring. Of several senders one does.
    pub(crate) fn must_ring(&self) -> bool {
        F::fence();
        self.0.is_set() && self.0.take()
    }
}

/// Wakes one core. Its eventfd is watched by that core's ring.
#[derive(Debug)]
pub(crate) struct Doorbell {
    sleeper: Sleeper<AtomicBool>,
    bell: OwnedFd,
}

impl Doorbell {
    pub(crate) fn new() -> io::Result<Doorbell> {
        let bell = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        Ok(Doorbell { sleeper: Sleeper::default(), bell })
    }

    /// As [`Sleeper::begin`].
    pub(crate) fn begin_sleep(&self, nothing_came: impl FnOnce() -> bool) -> bool {
        self.sleeper.begin(nothing_came)
    }

    pub(crate) fn end_sleep(&self) {
        self.sleeper.end();
    }

    /// Called after something was made visible to the owner: wakes it if it sleeps.
    pub(crate) fn ring_if_asleep(&self) {
        if self.sleeper.must_ring() {
            // It fails only when 2^64 rings went unheard, and then the bell is ringing already.
            let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
        }
    }

    /// Silences the bell once it was heard.
    pub(crate) fn silence(&self) {
        // EAGAIN: silent already.
        let _ = rustix::io::read(&self.bell, &mut [0u8; 8]);
    }
}

impl AsFd for Doorbell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}

/// A number on cache lines of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Lone(AtomicU32);

/// Both ends of the way on which batches' memory goes back.
type Emptied<M> = (Sender<Messages<M>>, Receiver<Messages<M>>);

/// What senders and receiver of one mailbox share besides the channel.
#[derive(Debug)]
pub(crate) struct Shared<M> {
    pub(crate) doorbell: Doorbell,
    /// By sending core: the memory of its batches, on its way back to it.
    emptied: Box<[Emptied<M>]>,
    /// Places left for messages from outside.
    remote_places: Lone,
}

/// The senders' end.
#[derive(Debug)]
pub(crate) struct Post<M> {
    channel: Sender<Batch<M>>,
    pub(crate) shared: Arc<Shared<M>>,
}

impl<M> Clone for Post<M> {
    fn clone(&self) -> Post<M> {
        Post { channel: self.channel.clone(), shared: Arc::clone(&self.shared) }
    }
}

impl<M> Post<M> {
    /// The memory of a batch of `from`'s that the receiver is done with.
    pub(crate) fn emptied(&self, from: Core) -> Option<Messages<M>> {
        self.shared.emptied[from.index()].1.try_recv().ok()
    }

    /// Puts a batch in and wakes the receiver if it sleeps. The sender is within its window.
    pub(crate) fn push(&self, batch: Batch<M>) {
        match self.channel.try_send(batch) {
            Ok(()) => self.shared.doorbell.ring_if_asleep(),
            Err(TrySendError::Full(_)) => panic!("every batch has its place in the mailbox"),
            // The mesh has stopped, and the receiver was done with everything.
            Err(TrySendError::Disconnected(_)) => {}
        }
    }

    /// Puts one message from outside in, if there is a place left for it.
    pub(crate) fn push_outside(&self, to: Core, message: M) -> Result<(), M> {
        let places = &self.shared.remote_places.0;
        let take = |places: u32| places.checked_sub(1);
        if places.fetch_update(Ordering::Acquire, Ordering::Relaxed, take).is_err() {
            return Err(message);
        }
        self.push(Batch { from: to, messages: vec![Envelope { kind: Kind::Outside, message }] });
        Ok(())
    }
}

/// The receiver's end.
#[derive(Debug)]
pub(crate) struct Mailbox<M> {
    channel: Receiver<Batch<M>>,
    pub(crate) shared: Arc<Shared<M>>,
}

impl<M> Mailbox<M> {
    /// The next batch. What is left of it when its messages are out goes to [`Mailbox::emptied`].
    pub(crate) fn take(&mut self) -> Option<Batch<M>> {
        let batch = self.channel.try_recv().ok()?;
        if let [Envelope { kind: Kind::Outside, .. }] = batch.messages[..] {
            // Release, and after the receive: who sees the place sees that the channel has it.
            self.shared.remote_places.0.fetch_add(1, Ordering::Release);
        }
        Some(batch)
    }

    /// Gives a batch's memory back to who sent it, which may fill it again.
    pub(crate) fn emptied(&self, from: Core, messages: Messages<M>) {
        debug_assert!(messages.is_empty());
        if messages.capacity() >= BATCH_MESSAGES {
            // From outside comes less, and is nobody's. Of a core's there is a place for each.
            let _ = self.shared.emptied[from.index()].0.try_send(messages);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.channel.is_empty()
    }
}

/// Places in each mailbox of a mesh.
pub(crate) fn places(cores: usize, window: u32, remote: u32) -> usize {
    cores * window as usize + remote as usize
}

/// Memory of one mailbox, in bytes.
pub(crate) fn mailbox_bytes<M>(cores: usize) -> usize {
    let channels =
        2 * places(cores, BATCH_WINDOW, REMOTE_PLACES) * (size_of::<Batch<M>>() + size_of::<usize>());
    channels + cores * BATCH_WINDOW as usize * BATCH_MESSAGES * size_of::<Envelope<M>>()
}

/// A mailbox for a mesh of `cores`.
///
/// # Errors
/// When there is no file descriptor left for the bell.
pub(crate) fn mailbox<M>(cores: usize) -> io::Result<(Post<M>, Mailbox<M>)> {
    let (sender, receiver) = crossbeam_channel::bounded(places(cores, BATCH_WINDOW, REMOTE_PLACES));
    let shared = Arc::new(Shared {
        doorbell: Doorbell::new()?,
        emptied: (0..cores).map(|_| crossbeam_channel::bounded(BATCH_WINDOW as usize)).collect(),
        remote_places: Lone(AtomicU32::new(REMOTE_PLACES)),
    });
    Ok((Post { channel: sender, shared: Arc::clone(&shared) }, Mailbox { channel: receiver, shared }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use loom::sync::atomic as model;

    impl Flag for model::AtomicBool {
        fn set(&self) {
            self.store(true, Ordering::Relaxed);
        }

        fn clear(&self) {
            self.store(false, Ordering::Relaxed);
        }

        fn take(&self) -> bool {
            self.compare_exchange(true, false, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        }

        fn is_set(&self) -> bool {
            self.load(Ordering::Relaxed)
        }

        fn fence() {
            model::fence(Ordering::SeqCst);
        }
    }

    /// Goal: no wake-up is missed, under every interleaving and reordering that the memory model allows.
    /// Method: two senders push with relaxed stores (weaker than the channel's), the receiver sleeps on a
    /// bell that loom models; a missed wake-up is a deadlock, which loom reports.
    #[test]
    fn no_wake_up_is_missed() {
        struct World {
            sleeper: Sleeper<model::AtomicBool>,
            pushed: [model::AtomicBool; 2],
            bell: loom::sync::Notify,
        }
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(|| {
            let world = loom::sync::Arc::new(World {
                sleeper: Sleeper(model::AtomicBool::new(false)),
                pushed: [model::AtomicBool::new(false), model::AtomicBool::new(false)],
                bell: loom::sync::Notify::new(),
            });
            let senders = [0, 1].map(|sender| {
                let world = loom::sync::Arc::clone(&world);
                loom::thread::spawn(move || {
                    world.pushed[sender].store(true, Ordering::Relaxed);
                    if world.sleeper.must_ring() {
                        world.bell.notify();
                    }
                })
            });
            let mut seen = [false; 2];
            let look = |seen: &mut [bool; 2]| {
                let before = *seen;
                for (seen, pushed) in seen.iter_mut().zip(&world.pushed) {
                    *seen |= pushed.load(Ordering::Relaxed);
                }
                *seen != before
            };
            while seen != [true; 2] {
                if !look(&mut seen) && world.sleeper.begin(|| !look(&mut seen)) {
                    world.bell.wait();
                    world.sleeper.end();
                }
            }
            for sender in senders {
                sender.join().unwrap();
            }
        });
    }

    /// Goal: batches arrive in the order they were pushed, and their memory comes back to who pushed them.
    #[test]
    fn keeps_order_and_gives_memory_back() {
        let (post, mut mailbox) = mailbox::<u32>(2).unwrap();
        let from = Core(1);
        for number in 0..BATCH_WINDOW {
            let mut messages = Vec::with_capacity(BATCH_MESSAGES);
            messages.push(Envelope { kind: Kind::Request(Class::Ordinary), message: number });
            post.push(Batch { from, messages });
        }
        assert!(post.emptied(from).is_none());
        for number in 0..BATCH_WINDOW {
            let Batch { from, mut messages } = mailbox.take().unwrap();
            assert_eq!(messages.pop().unwrap().message, number);
            mailbox.emptied(from, messages);
        }
        assert!(mailbox.take().is_none() && mailbox.is_empty());
        let back = std::iter::from_fn(|| post.emptied(from)).filter(Vec::is_empty).count();
        assert_eq!((back as u32, post.emptied(Core(0)).is_none()), (BATCH_WINDOW, true));
    }

    /// Goal: the outside can't take more than its places, and gets its message back.
    #[test]
    fn the_outside_has_a_quota() {
        let (post, mut mailbox) = mailbox::<u32>(1).unwrap();
        for number in 0..REMOTE_PLACES {
            post.push_outside(Core(0), number).unwrap();
        }
        assert_eq!(post.push_outside(Core(0), 99), Err(99));
        assert_eq!(mailbox.take().unwrap().messages[0].message, 0);
        post.push_outside(Core(0), 99).unwrap();
    }
}
