//! When each command of an open loop is to start: at a fixed rate, whatever the target does.
//!
//! Command n of the whole run starts n / rate after the run does, and sessions take them in turn, so that they are
//! evenly spread over all sessions of all threads. Invariant: a command's start is a function of its number alone.
//! What can't be sent when it is due waits here and keeps its start, and nothing that the target does moves another
//! command. No clock of its own, nothing on the heap. `worker` makes one [`Pace`] a session, `session` asks it.

use crate::failure::Failure;
use reactor::clock::Time;

/// Commands a second at most: a hundred threads of this generator, and still ten nanoseconds from one to the next.
pub const RATE_MAX: u64 = 100_000_000;
const NS_PER_SECOND: u64 = 1_000_000_000;

/// Commands a second over all sessions of a run: 1 to [`RATE_MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate(u64);

impl Rate {
    /// That many commands a second.
    ///
    /// # Errors
    /// None at all, or more than [`RATE_MAX`].
    pub fn new(per_second: u64) -> Result<Rate, Failure> {
        match per_second {
            0 => Err(Failure::new(format!(
                "0 commands a second are no load: give 1 to {RATE_MAX}, or leave --rate out to send as fast as \
                 the target answers"
            ))),
            1..=RATE_MAX => Ok(Rate(per_second)),
            _ => Err(Failure::new(format!(
                "{per_second} commands a second are more than anybody can send: give 1 to {RATE_MAX}, or leave \
                 --rate out to send as fast as the target answers"
            ))),
        }
    }

    /// Commands a second.
    pub fn per_second(self) -> u64 {
        self.0
    }

    /// Nanoseconds from the start of the run to the start of command `number`, rounded down. From the number and
    /// not from the command before, so that roundings don't add up.
    fn offset_ns(self, number: u64) -> u64 {
        // Both products fit: a run has at most two days, and a rate at most `RATE_MAX`.
        number / self.0 * NS_PER_SECOND + number % self.0 * NS_PER_SECOND / self.0
    }

    /// Commands that start less than `ns` nanoseconds after the run does.
    fn commands_before(self, ns: u64) -> u64 {
        let commands = (u128::from(ns) * u128::from(self.0)).div_ceil(u128::from(NS_PER_SECOND));
        u64::try_from(commands).unwrap_or(u64::MAX)
    }
}

/// Which of a run's commands the sessions of one thread send. Sessions are dealt to threads in turn, too.
#[derive(Debug, Clone, Copy)]
pub struct Deal {
    /// Of the whole run.
    pub rate: Rate,
    /// The thread's number, from zero.
    pub thread: usize,
    /// All threads.
    pub threads: usize,
    /// All sessions of all threads.
    pub sessions: usize,
}

impl Deal {
    /// The schedule of the thread's session `index`, from `start` to `end`. Threads that agree on `start` are
    /// staggered among each other.
    pub fn pace(self, index: usize, start: Time, end: Time) -> Pace {
        let first = index * self.threads + self.thread;
        assert!(first < self.sessions);
        let mut pace = Pace {
            rate: self.rate,
            first: first as u64,
            step: self.sessions as u64,
            start,
            next: 0,
            next_at: Time::NEVER,
            end: 0,
        };
        pace.end = pace.commands_before(end);
        pace.next_at = pace.start_of(0);
        pace
    }
}

/// One session's commands: when the next one is to start, and how many are left. Invariant: `next <= end`.
#[derive(Debug, Clone)]
pub struct Pace {
    rate: Rate,
    /// The session's first command among all of the run, and how many from one of its commands to the next.
    first: u64,
    step: u64,
    start: Time,
    /// Counts this session's commands.
    next: u64,
    next_at: Time,
    end: u64,
}

impl Pace {
    /// When the next command is to start, or was; [`Time::NEVER`] when there is none.
    pub fn next_at(&self) -> Time {
        self.next_at
    }

    /// The intended start of the command to send at `now`; `None` when it is too early, or when there is none. The
    /// same until [`Pace::advance`].
    pub fn due(&self, now: Time) -> Option<Time> {
        (self.next < self.end && self.next_at <= now).then_some(self.next_at)
    }

    /// The command that [`Pace::due`] told of is on its way.
    pub fn advance(&mut self) {
        assert!(self.next < self.end, "`due` told of a command");
        self.next += 1;
        self.next_at = self.start_of(self.next);
    }

    /// Whether all have been sent.
    pub fn is_over(&self) -> bool {
        self.next == self.end
    }

    /// Of the commands that haven't been sent: how many were to start at `from` or later, and when the first of
    /// them was. `None` when there are none.
    pub fn left_from(&self, from: Time) -> Option<(u64, Time)> {
        let next = self.next.max(self.commands_before(from));
        (next < self.end).then(|| (self.end - next, self.start_of(next)))
    }

    /// The start of this session's command `index`.
    fn start_of(&self, index: u64) -> Time {
        if index >= self.end {
            return Time::NEVER;
        }
        Time(self.start.0 + self.rate.offset_ns(self.first + index * self.step))
    }

    /// How many of this session's commands start before `time`.
    fn commands_before(&self, time: Time) -> u64 {
        let all = self.rate.commands_before(time.0.saturating_sub(self.start.0));
        all.saturating_sub(self.first).div_ceil(self.step)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const START: Time = Time(5_000_000_123);

    fn deal(rate: u64, sessions: usize) -> Deal {
        Deal { rate: Rate::new(rate).unwrap(), thread: 0, threads: 1, sessions }
    }

    /// All intended starts, as somebody sees them whose clock is always there in time.
    fn starts(mut pace: Pace) -> Vec<Time> {
        let mut starts = Vec::new();
        while let Some(start) = pace.due(pace.next_at()) {
            starts.push(start);
            pace.advance();
        }
        starts
    }

    /// Goal: the spacing is fixed and no command comes early. Method: 1,000 a second, the nanosecond before each
    /// and the one of it.
    #[test]
    fn commands_are_due_at_a_fixed_spacing() {
        let mut pace = deal(1000, 1).pace(0, START, Time(START.0 + 10_000_000));
        for command in 0..10 {
            let at = START.0 + command * 1_000_000;
            assert_eq!(pace.due(Time(at - 1)), None);
            assert_eq!(pace.due(Time(at)), Some(Time(at)));
            pace.advance();
        }
        assert!(pace.is_over());
        assert_eq!((pace.due(Time::NEVER), pace.next_at()), (None, Time::NEVER));
    }

    /// Goal: roundings don't add up. Method: rates that divide no second, after a day.
    #[test]
    fn a_rate_does_not_drift() {
        const DAY: u64 = 86_400;
        for rate in [3, 7, 999_983, RATE_MAX - 11, RATE_MAX] {
            let rate = Rate::new(rate).unwrap();
            let commands = DAY * rate.per_second();
            assert_eq!(rate.offset_ns(commands), DAY * NS_PER_SECOND);
            assert_eq!(rate.commands_before(DAY * NS_PER_SECOND), commands);
            assert!(rate.offset_ns(commands - 1) < DAY * NS_PER_SECOND);
        }
    }

    /// Goal: sessions of several threads are staggered by one spacing each, in turn. Method: four sessions on two
    /// threads, 400 a second.
    #[test]
    fn sessions_and_threads_are_staggered() {
        let end = Time(START.0 + 20_000_000);
        let starts_us = |thread, index| {
            let dealt = Deal { thread, threads: 2, ..deal(400, 4) }.pace(index, START, end);
            starts(dealt).iter().map(|at| (at.0 - START.0) / 1000).collect::<Vec<u64>>()
        };
        assert_eq!(starts_us(0, 0), [0, 10_000]);
        assert_eq!(starts_us(1, 0), [2_500, 12_500]);
        assert_eq!(starts_us(0, 1), [5_000, 15_000]);
        assert_eq!(starts_us(1, 1), [7_500, 17_500]);
    }

    /// Goal: what waited keeps its intended start, and so does all that comes after. Method: a clock that stands
    /// still for five spacings, then a command a spacing and a half.
    #[test]
    fn a_backlog_keeps_its_intended_starts() {
        let mut pace = deal(1000, 1).pace(0, Time::ZERO, Time(20_000_000));
        let mut now = Time(5_500_000);
        for command in 0..=5 {
            assert_eq!(pace.due(now), Some(Time(command * 1_000_000)), "late, all at once");
            pace.advance();
        }
        assert_eq!(pace.due(now), None, "the sixth is caught up with");
        for command in 6..20 {
            now = Time(now.0 + 1_500_000);
            assert_eq!(pace.due(now), Some(Time(command * 1_000_000)), "further behind each time");
            pace.advance();
        }
    }

    proptest! {
        /// Goal: all sessions together send each command of the run once, at its time, and know what is left.
        /// Method: against the list of all commands, for random rates, threads, lengths and windows.
        #[test]
        fn the_sessions_share_one_schedule(
            rate in 1_u64..5000,
            threads in 1_usize..4,
            more in 0_usize..6,
            length_ns in 0_u64..300_000_000,
            sent in 0_usize..20,
            from_ns in 0_u64..300_000_000,
        ) {
            let sessions = threads + more;
            let end = Time(START.0 + length_ns);
            let from = Time(START.0 + from_ns);
            let mut expected = Vec::new();
            for number in 0_u64.. {
                let at = Time(START.0 + (u128::from(number) * 1_000_000_000 / u128::from(rate)) as u64);
                if at >= end {
                    break;
                }
                expected.push(at);
            }
            let mut found = Vec::new();
            for session in 0..sessions {
                let dealt = Deal { thread: session % threads, threads, ..deal(rate, sessions) };
                let mut pace = dealt.pace(session / threads, START, end);
                let mine = starts(pace.clone());
                for &start in mine.iter().take(sent) {
                    prop_assert_eq!(pace.due(end), Some(start));
                    pace.advance();
                }
                let left: Vec<Time> = mine.iter().copied().skip(sent).filter(|&at| at >= from).collect();
                prop_assert_eq!(pace.left_from(from), left.first().map(|&first| (left.len() as u64, first)));
                prop_assert_eq!(pace.is_over(), mine.len() <= sent);
                found.extend(mine);
            }
            found.sort();
            prop_assert_eq!(found, expected);
        }
    }

    /// Goal: a rate that can't be is told with what to do. Method: both ends and one beyond each.
    #[test]
    fn rates_that_cannot_be_are_refused() {
        assert!(Rate::new(1).is_ok() && Rate::new(RATE_MAX).is_ok());
        for bad in [0, RATE_MAX + 1, u64::MAX] {
            let failure = Rate::new(bad).unwrap_err().to_string();
            assert!(
                failure.contains(&bad.to_string()) && failure.contains("give 1 to 100000000"),
                "{failure}"
            );
        }
    }
}
