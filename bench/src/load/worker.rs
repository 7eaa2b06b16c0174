//! One thread of the generator: pinned, polling its sessions, never waiting in the kernel.
//!
//! A turn goes over all sessions: receive once, take in what came, refill, send once. The bytes received land in one
//! buffer for the whole thread, which is therefore warm in the cache: the generator stands for an initiator that
//! doesn't look at its data. Called by `load`, which starts the threads and adds up what they return.

use super::ledger::{Ledger, Tally};
use super::pattern::Op;
use super::session::Session;
use crate::failure::Failure;
use reactor::clock::Time;
use std::time::Duration;

/// Room for one receive. Larger buffers fall out of the cache, smaller ones cost calls: of 32 to 256 KiB this was
/// best or equal in every case.
const RECEIVE_BYTES: usize = 128 * 1024;
/// Turns without bytes before the clock is read again.
const IDLE_TURNS_MAX: u32 = 256;
/// How often commands under way are checked against the time-out.
const CHECK_EVERY: Duration = Duration::from_millis(100);

/// How long each part of a run is.
#[derive(Debug, Clone, Copy)]
pub struct Schedule {
    /// Before anything is counted.
    pub warmup: Duration,
    /// The measured window.
    pub time: Duration,
    /// A command that takes longer ends the run.
    pub timeout: Duration,
    /// Write every block once first.
    pub precondition: bool,
}

/// A thread's sessions and its book.
#[derive(Debug)]
pub struct Worker {
    sessions: Vec<Session>,
    ledger: Ledger,
    schedule: Schedule,
    buffer: Box<[u8]>,
    now: Time,
    check_at: Time,
    /// When commands were last seen under way.
    busy_at: Time,
    idle_turns: u32,
}

impl Worker {
    /// Sessions are logged in, `ledger` is for exactly these.
    pub fn new(sessions: Vec<Session>, ledger: Ledger, schedule: Schedule) -> Worker {
        Worker {
            sessions,
            ledger,
            schedule,
            buffer: vec![0; RECEIVE_BYTES].into(),
            now: Time::now(),
            check_at: Time::ZERO,
            busy_at: Time::now(),
            idle_turns: 0,
        }
    }

    /// Writes every block of this thread's part once, if that is wanted.
    ///
    /// # Errors
    /// As [`Worker::run`].
    pub fn precondition(&mut self) -> Result<(), Failure> {
        if self.schedule.precondition {
            self.pass(Op::Write)?;
        }
        Ok(())
    }

    /// Warm-up and the measured window, both counted from now; then, when verifying, a read of all that was written.
    ///
    /// # Errors
    /// A session ended, the target broke the protocol, or a command took longer than the time-out.
    pub fn run(mut self) -> Result<(Vec<Session>, Tally), Failure> {
        self.now = Time::now();
        self.busy_at = self.now;
        let from = self.now + self.schedule.warmup;
        let to = from + self.schedule.time;
        self.ledger.measure(from, to);
        while self.now < to {
            self.turn(true)?;
        }
        self.drain()?;
        if self.ledger.verifies() {
            self.pass(Op::Read)?;
        }
        Ok((self.sessions, self.ledger.into_tally()))
    }

    /// Once over all blocks in order.
    fn pass(&mut self, op: Op) -> Result<(), Failure> {
        self.ledger.start_pass(op);
        while self.under_way() > 0 || !self.ledger.pass_is_over() {
            self.turn(true)?;
        }
        self.ledger.end_pass();
        Ok(())
    }

    fn drain(&mut self) -> Result<(), Failure> {
        while self.under_way() > 0 {
            self.turn(false)?;
        }
        Ok(())
    }

    fn under_way(&self) -> usize {
        self.sessions.iter().map(Session::under_way).sum()
    }

    fn turn(&mut self, issues: bool) -> Result<(), Failure> {
        let mut moved = false;
        for (index, session) in self.sessions.iter_mut().enumerate() {
            let received = session.receive(&mut self.buffer).map_err(|failure| blame(failure, index))?;
            if received > 0 {
                self.now = Time::now();
                self.ledger.tally.receives += 1;
                session
                    .handle_bytes(self.now, &self.buffer[..received], &mut self.ledger)
                    .map_err(|failure| blame(failure, index))?;
                moved = true;
            } else if issues && session.wants_commands() {
                self.now = Time::now();
            }
            session.fill(self.now, issues, &mut self.ledger);
            if session.send().map_err(|failure| blame(failure, index))? > 0 {
                self.ledger.tally.sends += 1;
                moved = true;
            }
        }
        self.idle_turns = if moved { 0 } else { self.idle_turns + 1 };
        if self.idle_turns == IDLE_TURNS_MAX {
            self.idle_turns = 0;
            self.now = Time::now();
        }
        if self.now >= self.check_at {
            self.check_at = self.now + CHECK_EVERY;
            self.check_time_out()?;
        }
        Ok(())
    }

    fn check_time_out(&mut self) -> Result<(), Failure> {
        if self.under_way() > 0 {
            self.busy_at = self.now;
        }
        if self.now.since(self.busy_at) > self.schedule.timeout {
            return Err(Failure::new(
                "the target has kept the command window closed for longer than --timeout",
            ));
        }
        for (index, session) in self.sessions.iter().enumerate() {
            let waited = session.oldest().map_or(Duration::ZERO, |issued| self.now.since(issued));
            if waited > self.schedule.timeout {
                let what = format!(
                    "no end after {:.1} s (--timeout): {}",
                    waited.as_secs_f64(),
                    session.describe_oldest()
                );
                return Err(blame(Failure::new(what), index));
            }
        }
        Ok(())
    }
}

fn blame(failure: Failure, session: usize) -> Failure {
    failure.at(format!("session {session}"))
}
