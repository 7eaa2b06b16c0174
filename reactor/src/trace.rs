//! What a core did: counters that anyone may read, and a ring of its last events that it keeps to itself.
//!
//! A reactor counts in plain fields ([`Counters`]) and publishes them now and then to a block of relaxed atomics
//! ([`Published`]) on cache lines of its own, so counting costs nothing and reading disturbs nobody.

use crate::clock::Time;
use std::cell::{Cell, RefCell};
use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What one reactor has done since it started. Only ever grows.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Counters {
            $($(#[$doc])* pub $name: u64,)*
        }

        /// A reactor's counters as the other threads see them: each value exact when it was published, the
        /// values among each other at most one publication apart.
        #[derive(Debug, Default)]
        #[repr(align(128))]
        pub struct Published {
            $($name: AtomicU64,)*
        }

        impl Published {
            /// Makes `counters` visible. Called by their reactor alone.
            pub fn publish(&self, counters: &Counters) {
                $(self.$name.store(counters.$name, Ordering::Relaxed);)*
            }

            /// The values last published.
            pub fn read(&self) -> Counters {
                Counters { $($name: self.$name.load(Ordering::Relaxed),)* }
            }
        }

        impl Counters {
            /// Every counter with its name, for metrics.
            pub fn named(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name),)*].into_iter()
            }
        }
    };
}

counters! {
    /// Nanoseconds of turns that found something to do.
    busy_ns,
    /// Nanoseconds of turns that found nothing, and of sleep.
    idle_ns,
    /// Turns of the loop.
    turns,
    /// Times that it slept in the kernel.
    sleeps,
    /// Sleeps that another thread's message ended.
    wakes,
    /// Messages taken from the mailbox.
    messages_received,
    /// Messages put into other mailboxes.
    messages_sent,
    /// Channel operations that carried them.
    batches_sent,
    /// Disk operations handed to the ring.
    disk_ops,
    /// Disk operations that came back.
    disk_completions,
    /// Readiness of watched sockets that was reported.
    ready_events,
    /// System calls into the ring.
    ring_enters,
    /// Timers that expired.
    timers_expired,
    /// Socket calls. The service counts.
    socket_ops,
    /// Bytes received from sockets. The service counts.
    bytes_received,
    /// Bytes sent to sockets. The service counts.
    bytes_sent,
    /// Requests of initiators that were answered. The service counts.
    ios,
}

/// Events that a core remembers.
pub const EVENTS: usize = 4096;

/// One event: when, what, and two numbers whose meaning is the code's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// The turn's time.
    pub at: Time,
    /// What happened.
    pub code: u64,
    /// First number.
    pub a: u64,
    /// Second number.
    pub b: u64,
}

thread_local! {
    static NOW: Cell<Time> = const { Cell::new(Time::ZERO) };
    static COUNT: Cell<u64> = const { Cell::new(0) };
    /// Empty on threads that are no reactors: their events go nowhere.
    static RING: RefCell<Box<[Event]>> = RefCell::new(Box::default());
}

/// Gives this thread a ring of [`EVENTS`] events.
pub fn start() {
    RING.with_borrow_mut(|ring| *ring = vec![Event::default(); EVENTS].into_boxed_slice());
    COUNT.set(0);
}

/// The time that this turn's events carry.
pub fn set_now(now: Time) {
    NOW.set(now);
}

/// Remembers an event of this core: four stores, no formatting. Nothing on a thread without a ring.
#[inline]
pub fn event(code: u64, a: u64, b: u64) {
    RING.with_borrow_mut(|ring| {
        if ring.is_empty() {
            return;
        }
        let count = COUNT.get();
        ring[count as usize % EVENTS] = Event { at: NOW.get(), code, a, b };
        COUNT.set(count + 1);
    });
}

/// This thread's last `count` events, oldest first.
pub fn last(count: usize) -> Vec<Event> {
    RING.with_borrow(|ring| {
        let newest = COUNT.get();
        let kept = newest.min(ring.len() as u64).min(count as u64);
        (newest - kept..newest).map(|number| ring[number as usize % EVENTS]).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: what a reactor publishes is what another thread reads. Method: every counter a different value.
    #[test]
    fn published_counters_read_back() {
        let counters = Counters { busy_ns: 1, wakes: 2, ios: 3, ..Counters::default() };
        let published = Published::default();
        published.publish(&counters);
        let read = std::thread::scope(|scope| scope.spawn(|| published.read()).join().unwrap());
        assert_eq!(read, counters);
        assert_eq!(read.named().filter(|&(_, value)| value > 0).count(), 3);
        assert_eq!(size_of::<Published>() % 128, 0);
    }

    /// Goal: the ring keeps the newest events in order, and a thread without one ignores them.
    #[test]
    fn keeps_the_newest_events() {
        std::thread::spawn(|| {
            event(1, 0, 0);
            assert!(last(10).is_empty());
            start();
            set_now(Time(5));
            for number in 0..EVENTS as u64 + 3 {
                event(7, number, 0);
            }
            let events = last(2);
            assert_eq!(events[1], Event { at: Time(5), code: 7, a: EVENTS as u64 + 2, b: 0 });
            assert_eq!(events[0].a + 1, events[1].a);
            assert_eq!(last(usize::MAX).len(), EVENTS);
        })
        .join()
        .unwrap();
    }
}
