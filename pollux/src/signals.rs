//! Signals become values that the main thread waits for. A thread of their own takes them from the handler;
//! what waits is one of each kind at most, so neither a burst of HUPs nor a main thread that is stuck fills anything.
//!
//! TERM or INT: drain and leave. Another one: leave at once, from this thread, since whoever drains may be stuck.
//! HUP: read the configuration again.

use crate::mistake::Mistake;
use signal_hook::consts::signal::{SIGHUP, SIGINT, SIGTERM};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// The exit status after the second TERM or INT: what shells report for one that INT ended.
pub const EXIT_AT_ONCE: i32 = 130;

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// Take no new commands, end those there are, leave. Comes once.
    Drain,
    /// Read the configuration again.
    Reload,
}

/// The signals that have come and not been taken.
#[derive(Debug)]
pub struct Signals {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    /// A TERM or INT has come; the next one leaves.
    draining: bool,
    drain: bool,
    reload: bool,
}

impl Signals {
    /// Begins to listen, for the rest of the process's life.
    ///
    /// # Errors
    /// The handlers or the thread can't be made.
    pub fn watch() -> Result<Signals, Mistake> {
        let failed = |error: std::io::Error| {
            let cure = "allow sigaction(2) and one more thread (ulimit -u)";
            Mistake::new(format!("can't listen to signals: {error}"), cure)
        };
        let mut handler = signal_hook::iterator::Signals::new([SIGTERM, SIGINT, SIGHUP]).map_err(failed)?;
        let signals = Signals { shared: Arc::default() };
        let shared = Arc::clone(&signals.shared);
        std::thread::Builder::new()
            .name("pollux-signals".to_owned())
            .spawn(move || {
                for signal in handler.forever() {
                    if !shared.on_signal(signal) {
                        std::process::exit(EXIT_AT_ONCE);
                    }
                }
            })
            .map_err(failed)?;
        Ok(signals)
    }

    /// The next signal, or `None` when `limit` has passed without one.
    pub fn next(&self, limit: Duration) -> Option<Signal> {
        let waiting = self.shared.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let nothing = |waiting: &mut Waiting| !waiting.drain && !waiting.reload;
        let woken = self.shared.changed.wait_timeout_while(waiting, limit, nothing);
        woken.unwrap_or_else(PoisonError::into_inner).0.take()
    }
}

impl Shared {
    /// Keeps what the signal asks for. `false`: leave at once.
    fn on_signal(&self, signal: i32) -> bool {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        match signal {
            SIGHUP => waiting.reload = true,
            _ if waiting.draining => return false,
            _ => (waiting.draining, waiting.drain) = (true, true),
        }
        self.changed.notify_one();
        true
    }
}

impl Waiting {
    fn take(&mut self) -> Option<Signal> {
        if std::mem::take(&mut self.drain) {
            return Some(Signal::Drain);
        }
        std::mem::take(&mut self.reload).then_some(Signal::Reload)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(signals: &Signals) -> Option<Signal> {
        signals.next(Duration::ZERO)
    }

    /// Goal: the first TERM drains before any reload, the second leaves, whatever came between.
    #[test]
    fn second_one_leaves() {
        let signals = Signals { shared: Arc::default() };
        assert!(signals.shared.on_signal(SIGHUP));
        assert!(signals.shared.on_signal(SIGINT));
        assert_eq!((next(&signals), next(&signals)), (Some(Signal::Drain), Some(Signal::Reload)));
        assert!(signals.shared.on_signal(SIGHUP));
        assert!(!signals.shared.on_signal(SIGTERM));
    }

    /// Goal: a burst is one, and nobody has to be there to take it.
    #[test]
    fn bursts_are_one() {
        let signals = Signals { shared: Arc::default() };
        assert!((0..100).all(|_| signals.shared.on_signal(SIGHUP)));
        assert_eq!((next(&signals), next(&signals)), (Some(Signal::Reload), None));
    }

    /// Goal: who waits is woken. Method: a waiter with a limit that the test would not outlive.
    #[test]
    fn wakes_the_waiter() {
        let signals = Signals { shared: Arc::default() };
        let shared = Arc::clone(&signals.shared);
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| signals.next(Duration::from_secs(600)));
            assert!(shared.on_signal(SIGTERM));
            assert_eq!(waiter.join().unwrap(), Some(Signal::Drain));
        });
    }
}
