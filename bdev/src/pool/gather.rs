//! When a commit is worth a moment's wait.
//!
//! Who is answered asks again. What brings no data (a copy, UNMAP, zeroes) is back after a round trip to the initiator,
//! which is a fraction of what a commit takes. A commit that begins as soon as the one before has ended finds none of
//! those, only what came meanwhile: with a fixed number of requests out, half of them are in a commit and half wait for
//! it. So the next waits until as many have gathered as were there: as long as a commit takes for the first to come, and as
//! they keep coming for half of that after each, up to two commits' time. When that was in vain, the next ones do not wait, ever more
//! of them.

use reactor::clock::Time;
use std::time::Duration;

/// The part of a commit's time that the next may wait for each of those who were answered, after another.
const GAP_SHARE: u32 = 2;
/// So many commits' time is waited for all of them.
const LONGEST_COMMITS: u32 = 2;
/// However slow the device is, the next waits no longer.
const LONGEST: Duration = Duration::from_millis(1);
/// At most so many commits begin at once after one that has waited in vain.
const RESTS_MAX: u32 = 255;
/// A commit's time is an average, of which the last one is this part.
const WEIGHT: u32 = 8;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Gather {
    begun: Option<Time>,
    /// What commits take; zero as long as none was seen.
    takes: Duration,
    /// A commit has ended and the clock was not looked at since.
    has_ended: bool,
    /// Somebody has waited for this commit.
    has_held: bool,
    wait: Option<Wait>,
    /// How many of the next commits don't wait, and how many after the next one in vain.
    rests: u32,
    doubt: u32,
}

#[derive(Clone, Copy, Debug)]
struct Wait {
    /// How many were answered, and how many there are with them.
    answered: usize,
    expected: usize,
    /// How many there were when it was last looked.
    there: usize,
    /// Until when somebody has to have come, and all. Known from the next turn on.
    until: Time,
    latest: Time,
}

impl Gather {
    /// A commit begins, and none is under way.
    pub(super) fn begin(&mut self, now: Time) {
        self.begun = Some(now);
    }

    /// A commit has ended, and none is under way: `answered` requests that may be back at once, while `waiting` wait for
    /// the next.
    pub(super) fn end(&mut self, answered: usize, waiting: usize) {
        self.has_ended = true;
        self.has_held = false;
        self.wait = None;
        if answered == 0 {
            return;
        }
        if let Some(rests) = self.rests.checked_sub(1) {
            self.rests = rests;
            return;
        }
        let expected = answered + waiting;
        self.wait =
            Some(Wait { answered, expected, there: waiting, until: Time::NEVER, latest: Time::NEVER });
    }

    /// The time of this turn.
    pub(super) fn turn(&mut self, now: Time) {
        if !std::mem::take(&mut self.has_ended) {
            return;
        }
        if let Some(begun) = self.begun.take() {
            let took = now.since(begun);
            self.takes =
                if self.takes.is_zero() { took } else { (self.takes * (WEIGHT - 1) + took) / WEIGHT };
        }
        if let Some(wait) = &mut self.wait {
            wait.until = now + self.takes.min(LONGEST);
            wait.latest = now + (LONGEST_COMMITS * self.takes).min(LONGEST);
        }
    }

    /// Whether a commit for those who wait should begin later.
    pub(super) fn holds(&mut self, now: Time, waiting: usize) -> bool {
        let Some(wait) = &mut self.wait else { return false };
        if waiting > wait.there {
            wait.there = waiting;
            if wait.latest != Time::NEVER {
                wait.until = wait.until.max(now + self.takes / GAP_SHARE).min(wait.latest);
            }
        }
        let Wait { answered, expected, until, .. } = *wait;
        if waiting < expected && now < until {
            self.has_held = true;
            return true;
        }
        self.wait = None;
        if !std::mem::take(&mut self.has_held) && waiting < expected {
            // Nobody was there to wait, and now it is too late to: that says nothing about who comes back.
            return false;
        }
        // Half of those who were answered are worth it.
        if (expected - waiting.min(expected)) * 2 > answered {
            self.doubt = (2 * self.doubt + 1).min(RESTS_MAX);
            self.rests = self.doubt;
        } else {
            self.doubt = 0;
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: u64 = 200_000;

    /// A commit that begins at `at`, ends, and is seen to have.
    fn commit(gather: &mut Gather, at: u64, answered: usize, waiting: usize) -> u64 {
        gather.begin(Time(at));
        gather.end(answered, waiting);
        gather.turn(Time(at + COMMIT));
        at + COMMIT
    }

    #[test]
    fn the_next_waits_for_those_who_were_answered() {
        let mut gather = Gather::default();
        let now = commit(&mut gather, 0, 8, 8);
        assert!(gather.holds(Time(now), 8));
        assert!(gather.holds(Time(now + 40_000), 15));
        assert!(!gather.holds(Time(now + 41_000), 16));
        // It has begun, and waits no more.
        assert!(!gather.holds(Time(now + 41_000), 1));
    }

    #[test]
    fn not_before_the_clock_was_looked_at() {
        let mut gather = Gather::default();
        gather.begin(Time(0));
        gather.end(8, 8);
        assert!(gather.holds(Time(0), 8));
    }

    #[test]
    fn no_longer_than_a_commit() {
        let mut gather = Gather::default();
        let now = commit(&mut gather, 0, 8, 8);
        assert!(gather.holds(Time(now + COMMIT - 1), 8));
        assert!(!gather.holds(Time(now + COMMIT), 8));
        let mut slow = Gather::default();
        slow.begin(Time(0));
        slow.end(8, 8);
        slow.turn(Time(1_000_000_000));
        assert!(slow.holds(Time(1_000_999_999), 12));
        assert!(!slow.holds(Time(1_001_000_000), 12));
    }

    #[test]
    fn as_long_as_they_keep_coming() {
        let mut gather = Gather::default();
        let now = commit(&mut gather, 0, 16, 0);
        for come in 0..15 {
            assert!(gather.holds(Time(now + 190_000 + 7_000 * come), come as usize), "{come}");
        }
        assert!(!gather.holds(Time(now + 295_000), 16));
        // Who comes no more is not waited for, and nobody for longer than two commits.
        let now = commit(&mut gather, now + 2 * COMMIT, 16, 0);
        assert!(gather.holds(Time(now + 190_000), 4));
        assert!(gather.holds(Time(now + 289_000), 4));
        assert!(!gather.holds(Time(now + 290_000), 4));
        let mut steady = Gather::default();
        let now = commit(&mut steady, 0, 100, 0);
        for come in 0..19 {
            assert!(steady.holds(Time(now + 20_000 * (1 + come)), 60 + come as usize));
        }
        assert!(!steady.holds(Time(now + 2 * COMMIT), 80));
    }

    #[test]
    fn who_is_alone_never_waits() {
        let mut gather = Gather::default();
        let mut now = 0;
        for _ in 0..10 {
            now = commit(&mut gather, now, 1, 0);
            assert!(!gather.holds(Time(now), 1));
        }
    }

    #[test]
    fn quick_commits_are_waited_with_as_briefly() {
        let mut gather = Gather::default();
        gather.begin(Time(0));
        gather.end(8, 8);
        gather.turn(Time(4_000));
        assert!(gather.holds(Time(7_999), 8));
        assert!(!gather.holds(Time(8_000), 8));
    }

    #[test]
    fn writes_with_data_are_not_waited_for() {
        let mut gather = Gather::default();
        let now = commit(&mut gather, 0, 0, 8);
        assert!(!gather.holds(Time(now), 8));
    }

    #[test]
    fn a_pause_is_no_wait_in_vain() {
        let mut gather = Gather::default();
        let mut now = 0;
        for _ in 0..100 {
            now = commit(&mut gather, now, 8, 0) + 10 * COMMIT;
            assert!(!gather.holds(Time(now), 1));
        }
        now = commit(&mut gather, now, 8, 4);
        assert!(gather.holds(Time(now), 4));
    }

    #[test]
    fn what_was_in_vain_is_done_ever_more_rarely() {
        let mut gather = Gather::default();
        let (mut now, mut waits) = (0, Vec::new());
        for nth in 0..1000 {
            now = commit(&mut gather, now, 8, 4);
            if gather.holds(Time(now), 4) {
                waits.push(nth);
                assert!(!gather.holds(Time(now + 2 * COMMIT), 5));
            }
        }
        assert_eq!(waits, [0, 2, 6, 14, 30, 62, 126, 254, 510, 766]);
        // Once they come back, every commit waits again.
        let mut held = 0;
        for _ in 0..300 {
            now = commit(&mut gather, now, 8, 4);
            held += usize::from(gather.holds(Time(now), 4));
            assert!(!gather.holds(Time(now), 12));
        }
        assert!(held > 40, "{held}");
    }
}
