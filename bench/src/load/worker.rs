//! One thread of the generator: pinned, polling its sessions, never waiting in the kernel.
//!
//! A turn goes over all sessions: receive once, take in what came, refill, send once. The bytes received land in one
//! buffer for the whole thread, which is therefore warm in the cache: the generator stands for an initiator that
//! doesn't look at its data. Called by `load`, which starts the threads and adds up what they return.

use super::ledger::{Ledger, Tally};
use super::pace::{Deal, Pace};
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
/// How long after the window an open loop sends what was due in it. Enough for a stall across the end; and a
/// target that is too slow for the rate, which may need longer than the run took, doesn't hold up the report.
const CATCH_UP_MAX: Duration = Duration::from_secs(1);

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
    /// An open loop: when commands start, from the warm-up to the end of the window. Everything else, and all without
    /// it, is a closed loop: a command starts when there is room.
    pub deal: Option<Deal>,
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

    /// Warm-up and the measured window, both counted from `start`, which is now for all threads of the run; then, when
    /// verifying, a read of all that was written.
    ///
    /// # Errors
    /// A session ended, the target broke the protocol, or a command took longer than the time-out.
    pub fn run(mut self, start: Time) -> Result<(Vec<Session>, Tally), Failure> {
        self.now = Time::now();
        self.busy_at = self.now;
        let from = start + self.schedule.warmup;
        let to = from + self.schedule.time;
        match self.schedule.deal {
            None => self.ledger.measure(from, to),
            Some(deal) => {
                self.ledger.measure_by_start(from, to);
                for (index, session) in self.sessions.iter_mut().enumerate() {
                    session.set_pace(deal.pace(index, start, to));
                }
            }
        }
        while self.now < to {
            self.turn(true)?;
        }
        self.catch_up(to + CATCH_UP_MAX)?;
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

    /// Sends what the schedules still have, until `deadline`, and gives up the rest. Nothing to do in a closed loop.
    fn catch_up(&mut self, deadline: Time) -> Result<(), Failure> {
        let behind = |session: &Session| session.pace().is_some_and(|pace| !pace.is_over());
        while self.now < deadline && self.sessions.iter().any(behind) {
            self.turn(true)?;
        }
        for session in &mut self.sessions {
            if let Some(pace) = session.take_pace() {
                self.ledger.give_up(self.now, &pace);
            }
        }
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
        // In an open loop nothing waits for the window until a command is due.
        let due = self.sessions.iter().filter_map(Session::pace).map(Pace::next_at).min();
        if self.now.since(self.busy_at.max(due.unwrap_or(Time::ZERO))) > self.schedule.timeout {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::RAW_TERMS;
    use crate::load::pace::Rate;
    use crate::load::pattern::{Pattern, Picker};
    use crate::load::session::{Serials, Task};
    use std::net::{TcpListener, TcpStream};

    /// Goal: at a low rate having nothing under way for longer than the time-out is no failure, but a command that is
    /// due and for which the window stays closed is. Method: a closed window, one command after 10 s, a time-out of
    /// 1 s, and a clock that is set.
    #[test]
    fn an_open_loop_may_have_nothing_to_do() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let task = Task {
            lun: 0,
            block_bytes: 4096,
            logical_block_bytes: 512,
            depth: 1,
            keeps_data: false,
            writes: false,
        };
        let serials = Serials { cmd_sn: 1, max_cmd_sn: 0, exp_stat_sn: 1 };
        let mut session = Session::new(0, socket, RAW_TERMS, serials, task);
        let deal = Deal { rate: Rate::new(1).unwrap(), thread: 0, threads: 1, sessions: 1 };
        let seconds = |seconds: f64| Time::ZERO + Duration::from_secs_f64(seconds);
        session.set_pace(deal.pace(0, seconds(10.0), seconds(10.5)));
        let ledger = Ledger::new(Picker::new(Pattern::Randread, 50, 0, 8, 1, 1), None, 0, 8);
        let schedule = Schedule {
            warmup: Duration::ZERO,
            time: Duration::from_secs(1),
            timeout: Duration::from_secs(1),
            precondition: false,
            deal: Some(deal),
        };
        let mut worker = Worker::new(vec![session], ledger, schedule);
        worker.busy_at = Time::ZERO;
        for now in [9.0, 10.0, 10.9] {
            worker.now = seconds(now);
            assert_eq!(worker.check_time_out(), Ok(()), "{now} s");
        }
        worker.now = seconds(11.1);
        let failure = worker.check_time_out().unwrap_err().to_string();
        assert!(failure.contains("command window closed"), "{failure}");
        // In a closed loop there is always something to do.
        assert!(worker.sessions[0].take_pace().is_some());
        worker.now = seconds(1.1);
        assert!(worker.check_time_out().is_err());
    }
}
