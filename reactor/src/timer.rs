//! A core's timers: a binary heap that knows where each timer stands, so that cancelling is exact.
//!
//! Invariant: `heap` is ordered by time (ties by the order they were set), and `places` maps each live timer to
//! its index in it. Called by the reactor once a turn, and by services through [`crate::service::Cx`].

use crate::clock::Time;
use crate::slots::{Slot, Slots};

/// A timer that was set. It names nothing once it has expired or was cancelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TimerId(Slot);

#[derive(Clone, Copy, Debug)]
struct Entry {
    at: Time,
    /// Sets equal times in the order they were asked for.
    order: u64,
    slot: Slot,
    token: u64,
}

impl Entry {
    fn is_before(&self, other: &Entry) -> bool {
        (self.at, self.order) < (other.at, other.order)
    }
}

/// The timers of one core, at most `capacity` at a time. Grows while warming up, then allocates nothing.
#[derive(Debug)]
pub struct Timers {
    heap: Vec<Entry>,
    places: Slots<usize>,
    orders: u64,
}

impl Timers {
    /// No timer is set. `capacity` is the most that the service sets at once.
    pub fn with_capacity(capacity: usize) -> Timers {
        Timers { heap: Vec::new(), places: Slots::with_capacity(capacity), orders: 0 }
    }

    /// Calls [`crate::service::Service::on_timer`] with `token` in the first turn at or after `at`, once.
    ///
    /// # Panics
    /// When more than the configured number of timers are set: the service bounds what it waits for.
    pub fn set(&mut self, at: Time, token: u64) -> TimerId {
        let index = self.heap.len();
        let Ok(slot) = self.places.insert(index) else {
            panic!("over {index} timers are set; the service's bound is too low");
        };
        self.heap.push(Entry { at, order: self.orders, slot, token });
        self.orders += 1;
        self.sift_up(index);
        TimerId(slot)
    }

    /// Forgets a timer. False if it has expired or was cancelled before.
    pub fn cancel(&mut self, timer: TimerId) -> bool {
        match self.places.get(timer.0) {
            Some(&index) => {
                self.remove(index);
                true
            }
            None => false,
        }
    }

    /// When the next timer expires; [`Time::NEVER`] when none is set.
    pub fn deadline(&self) -> Time {
        self.heap.first().map_or(Time::NEVER, |entry| entry.at)
    }

    /// Takes out the earliest timer if its time has come, and gives its token.
    pub fn expire(&mut self, now: Time) -> Option<u64> {
        let first = self.heap.first()?;
        if first.at > now {
            return None;
        }
        let token = first.token;
        self.remove(0);
        Some(token)
    }

    /// How many are set.
    pub fn len(&self) -> usize {
        self.heap.len()
    }

    /// Whether none is set.
    pub fn is_empty(&self) -> bool {
        self.heap.is_empty()
    }

    fn remove(&mut self, index: usize) {
        let gone = self.heap.swap_remove(index);
        self.places.remove(gone.slot);
        if index < self.heap.len() {
            self.note(index);
            self.sift_down(index);
            self.sift_up(index);
        }
    }

    fn sift_up(&mut self, mut index: usize) {
        while index > 0 {
            let parent = (index - 1) / 2;
            if !self.heap[index].is_before(&self.heap[parent]) {
                return;
            }
            self.swap(index, parent);
            index = parent;
        }
    }

    fn sift_down(&mut self, mut index: usize) {
        loop {
            let left = 2 * index + 1;
            if left >= self.heap.len() {
                return;
            }
            let right = left + 1;
            let child = if right < self.heap.len() && self.heap[right].is_before(&self.heap[left]) {
                right
            } else {
                left
            };
            if !self.heap[child].is_before(&self.heap[index]) {
                return;
            }
            self.swap(index, child);
            index = child;
        }
    }

    fn swap(&mut self, a: usize, b: usize) {
        self.heap.swap(a, b);
        self.note(a);
        self.note(b);
    }

    fn note(&mut self, index: usize) {
        if let Some(place) = self.places.get_mut(self.heap[index].slot) {
            *place = index;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Step {
        Set(u64),
        Cancel(usize),
        Expire(u64),
    }

    fn any_step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0u64..50).prop_map(Step::Set),
            any::<usize>().prop_map(Step::Cancel),
            (0u64..60).prop_map(Step::Expire),
        ]
    }

    proptest! {
        /// Goal: any mix of setting, cancelling and expiring. Method: against a list searched from the front.
        #[test]
        fn expires_like_a_sorted_list(steps in prop::collection::vec(any_step(), 1..200)) {
            let mut timers = Timers::with_capacity(200);
            let mut list: Vec<(u64, u64, TimerId)> = Vec::new();
            let mut gone: Vec<TimerId> = Vec::new();
            for (token, step) in (0u64..).zip(steps) {
                match step {
                    Step::Set(at) => {
                        let timer = timers.set(Time(at), token);
                        list.push((at, token, timer));
                    }
                    Step::Cancel(nth) if !list.is_empty() => {
                        let (_, _, timer) = list.remove(nth % list.len());
                        prop_assert!(timers.cancel(timer));
                        gone.push(timer);
                    }
                    Step::Cancel(_) => {}
                    Step::Expire(now) => {
                        list.sort_by_key(|&(at, token, _)| (at, token));
                        while let Some(token) = timers.expire(Time(now)) {
                            let (at, expected, timer) = list.remove(0);
                            prop_assert!(at <= now);
                            prop_assert_eq!(token, expected);
                            gone.push(timer);
                        }
                        prop_assert!(list.first().is_none_or(|&(at, _, _)| at > now));
                    }
                }
                let next = list.iter().map(|&(at, _, _)| Time(at)).min().unwrap_or(Time::NEVER);
                prop_assert_eq!(timers.deadline(), next);
                prop_assert_eq!(timers.len(), list.len());
            }
            for timer in gone {
                prop_assert!(!timers.cancel(timer));
            }
        }
    }

    /// Goal: no allocation once the tables have seen their fullest. Method: capacities before and after a churn.
    #[test]
    fn allocates_nothing_after_warming_up() {
        let mut timers = Timers::with_capacity(64);
        let churn = |timers: &mut Timers| {
            let set: Vec<TimerId> = (0..64).map(|n| timers.set(Time(n * 7 % 64), n)).collect();
            for timer in &set[..32] {
                timers.cancel(*timer);
            }
            while timers.expire(Time::NEVER).is_some() {}
        };
        churn(&mut timers);
        let before = timers.heap.capacity();
        for _ in 0..10 {
            churn(&mut timers);
        }
        assert_eq!(timers.heap.capacity(), before);
        assert!(timers.is_empty());
    }
}
