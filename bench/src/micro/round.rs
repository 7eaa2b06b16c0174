//! Work measured in rounds: as many operations as a round is to take, again and again.
//!
//! Before the first round the work is done in growing batches until one of them has taken half a round: caches,
//! predictors and the CPU's clock are warm then, and how many operations make a round is known.

use crate::cpu;
use crate::failure::Failure;
use std::hint::black_box;
use std::time::{Duration, Instant};

/// The largest batch that is tried before the first round, for work that takes no time at all.
const BATCH_MAX: u64 = 1 << 40;

/// By what work is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// CPU time of the calling thread: for work that never waits, so that what others do on its CPU doesn't count.
    Cpu,
    /// The time that passes: for work that waits.
    Wall,
}

impl Clock {
    /// What `count` operations take.
    fn time(self, work: Work<'_>, count: u64) -> Result<Duration, Failure> {
        match self {
            Clock::Cpu => {
                let then = cpu::thread_time();
                work(count)?;
                Ok(cpu::thread_time().saturating_sub(then))
            }
            Clock::Wall => {
                let then = Instant::now();
                work(count)?;
                Ok(then.elapsed())
            }
        }
    }
}

/// Does as many operations as it is told.
pub type Work<'a> = &'a mut dyn FnMut(u64) -> Result<(), Failure>;

/// One operation, over and over. What comes out of it counts as used, so that it can't be left out.
pub fn each<T>(mut operation: impl FnMut() -> T) -> impl FnMut(u64) -> Result<(), Failure> {
    move |count| {
        for _ in 0..count {
            black_box(operation());
        }
        Ok(())
    }
}

/// How often and how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Rounds; the median counts.
    pub rounds: usize,
    /// About how long each is.
    pub time: Duration,
}

impl Plan {
    /// Nanoseconds an operation takes, of each round.
    ///
    /// # Errors
    /// The work's.
    pub fn measure(&self, clock: Clock, work: Work<'_>) -> Result<Vec<f64>, Failure> {
        self.in_turns(clock, [work]).map(|[rounds]| rounds)
    }

    /// The same of several kinds of work whose rounds take turns, every second time the other way round: whatever else
    /// goes on in the machine meets all of them.
    ///
    /// # Errors
    /// The work's.
    pub fn in_turns<const N: usize>(
        &self,
        clock: Clock,
        mut works: [Work<'_>; N],
    ) -> Result<[Vec<f64>; N], Failure> {
        let mut counts = [0; N];
        for (count, work) in counts.iter_mut().zip(&mut works) {
            *count = self.warm_up(clock, work)?;
        }
        let mut rounds = [const { Vec::new() }; N];
        for round in 0..self.rounds {
            for nth in 0..N {
                let place = if round % 2 == 0 { nth } else { N - 1 - nth };
                let spent = clock.time(works[place], counts[place])?;
                rounds[place].push(each_ns(spent, counts[place]));
            }
        }
        Ok(rounds)
    }

    /// How many operations make a round.
    fn warm_up(&self, clock: Clock, work: Work<'_>) -> Result<u64, Failure> {
        let mut count = 1;
        loop {
            let spent = clock.time(work, count)?;
            if spent >= self.time / 2 || count >= BATCH_MAX {
                return Ok(count_for(self.time, spent, count));
            }
            count *= 2;
        }
    }
}

/// Nanoseconds of each of `count` operations that took `spent` together.
pub fn each_ns(spent: Duration, count: u64) -> f64 {
    spent.as_secs_f64() * 1e9 / count.max(1) as f64
}

/// How many operations take `time`, when `count` have taken `spent`. At least one.
fn count_for(time: Duration, spent: Duration, count: u64) -> u64 {
    let share = time.as_secs_f64() / spent.as_secs_f64().max(1e-9);
    ((count as f64 * share) as u64).clamp(1, BATCH_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the arithmetic of rounds. Method: by hand.
    #[test]
    fn counts_and_times() {
        let ms = Duration::from_millis;
        assert!((each_ns(ms(3), 1000) - 3000.0).abs() < 1e-6);
        assert!(each_ns(ms(0), 0).abs() < 1e-9);
        assert_eq!(count_for(ms(100), ms(50), 7), 14);
        assert_eq!(count_for(ms(1), ms(5000), 3), 1);
        assert_eq!(count_for(ms(1000), ms(0), BATCH_MAX), BATCH_MAX);
    }

    /// Goal: every work has all its rounds, none is empty, and a failure ends all. Method: two that count themselves; one
    /// that fails.
    #[test]
    fn works_take_turns() {
        let plan = Plan { rounds: 3, time: Duration::from_micros(200) };
        let (mut quick, mut slow) = (0u64, 0u64);
        let mut count_quick = |count: u64| -> Result<(), Failure> {
            (0..count).for_each(|nth| quick += black_box(nth) & 1);
            Ok(())
        };
        let mut count_slow = |count: u64| -> Result<(), Failure> {
            (0..100 * count).for_each(|nth| slow += black_box(nth) & 1);
            Ok(())
        };
        let [quicks, slows] = plan.in_turns(Clock::Cpu, [&mut count_quick, &mut count_slow]).unwrap();
        assert_eq!((quicks.len(), slows.len()), (3, 3));
        assert!(quicks.iter().chain(&slows).all(|&ns| ns > 0.0), "{quicks:?} {slows:?}");
        assert!(quick > 0 && slow > 0);
        let failing = plan.measure(Clock::Wall, &mut |_| Err(Failure::new("no")));
        assert_eq!(failing, Err(Failure::new("no")));
    }

    /// Goal: an operation is done as often as it is told.
    #[test]
    fn each_is_done() {
        let mut done = 0;
        each(|| done += 1)(5).unwrap();
        assert_eq!(done, 5);
    }
}
