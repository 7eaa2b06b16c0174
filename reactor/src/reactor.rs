//! One core's loop: mailbox, completions, timers, the service's own turn, then out with what has gathered.
//!
//! Each source has a budget, so none starves another. In [`PollMode::Adaptive`] a core that found nothing for a
//! while sleeps in the kernel; what ends the sleep is IO, a message, a timer or a stop, and none can be missed:
//! sockets are watched by level, and messages by the rule of the sleeping flag in [`crate::mailbox`].

use crate::Core;
use crate::buf::Pool;
use crate::clock::Time;
use crate::durable::SYNC_LATE;
use crate::mailbox::{Batch, Envelope, Mailbox};
use crate::mesh::Outbox;
use crate::ring::{Completion, Ring};
use crate::service::{Activity, Cx, Service};
use crate::timer::Timers;
use crate::trace::{self, Counters, Published};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use tracing::warn;

/// Messages taken in a turn, give or take a batch.
pub const MESSAGES_PER_TURN: usize = 256;

/// How many messages ahead of the one that it handles a service is told what to expect.
const EXPECTED: usize = 2;

/// Completions taken from the ring in a turn.
pub const COMPLETIONS_PER_TURN: usize = 256;

/// A turn takes this part of the disk operations that are under way, even if its service would have fewer: of many, a few
/// more don't hold the first answers up.
const COMPLETION_SHARE: usize = 8;

/// Timers that expire in a turn.
pub const TIMERS_PER_TURN: usize = 64;

/// How old the published counters of a busy core may be.
const PUBLISH_EVERY: Duration = Duration::from_millis(1);

/// How long a core sleeps that has messages for a mailbox without room: about one turn of its owner.
const BLOCKED_NAP: Duration = Duration::from_micros(20);

/// Disk operations that don't come back for so long may wait for this CPU.
const YIELD_AFTER: Duration = Duration::from_micros(20);

/// A core that keeps waking soon after it slept spins up to so many times longer before the next sleep.
const SPIN_STRETCH: u32 = 4;

/// A core with disk operations under way spins so many times as long: they come back within what sleeping and waking cost on
/// a virtual machine, some hundred microseconds, and somebody waits for them.
const SPIN_BESIDE_A_DISK: u32 = 16;

/// What a core does when it finds nothing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PollMode {
    /// Looks again, for ever. The lowest latency for a whole CPU.
    Busy,
    /// Looks again for `spin`, then sleeps in the kernel. Sleeping and waking cost the next request some
    /// microseconds, so `spin` should be longer than the gaps of a peer that sends the next request when it has
    /// the answer to the last one. Where gaps turn out a little longer, spinning stretches up to four times, and while disk
    /// operations are under way it is sixteen times as long.
    Adaptive {
        /// How long to look for more since there was something last.
        spin: Duration,
    },
}

impl Default for PollMode {
    fn default() -> PollMode {
        PollMode::Adaptive { spin: Duration::from_micros(50) }
    }
}

/// How the cores agree to end: after a stop was requested, and all are done.
#[derive(Debug)]
pub(crate) struct Stop {
    requested: AtomicBool,
    done: AtomicUsize,
    cores: usize,
}

impl Stop {
    pub(crate) fn new(cores: usize) -> Stop {
        Stop { requested: AtomicBool::new(false), done: AtomicUsize::new(0), cores }
    }

    /// Whoever calls this rings every doorbell after it.
    pub(crate) fn request(&self) {
        self.requested.store(true, Ordering::Release);
    }

    fn is_requested(&self) -> bool {
        self.requested.load(Ordering::Acquire)
    }

    /// True for the last core.
    fn is_last_done(&self) -> bool {
        self.done.fetch_add(1, Ordering::AcqRel) + 1 == self.cores
    }

    fn are_all_done(&self) -> bool {
        self.done.load(Ordering::Acquire) == self.cores
    }
}

/// What a service reaches through [`Cx`].
pub(crate) struct Own<M> {
    pub(crate) core: Core,
    pub(crate) now: Time,
    pub(crate) pool: Pool,
    pub(crate) timers: Timers,
    pub(crate) ring: Ring,
    pub(crate) outbox: Outbox<M>,
    pub(crate) counters: Counters,
}

impl<M> Own<M> {
    fn cx(&mut self) -> Cx<'_, M> {
        Cx {
            core: self.core,
            now: self.now,
            pool: &mut self.pool,
            timers: &mut self.timers,
            ring: &mut self.ring,
            outbox: &mut self.outbox,
            counters: &mut self.counters,
        }
    }
}

/// One core: a service and all that it owns.
pub(crate) struct Reactor<S: Service> {
    service: S,
    own: Own<S::Message>,
    mailbox: Mailbox<S::Message>,
    poll: PollMode,
    sleep_max: Duration,
    stop: Arc<Stop>,
    published: Arc<Published>,
    /// This core has said that it is done.
    done: bool,
    /// Whether the last turn did anything, for the accounts.
    worked: bool,
    published_at: Time,
    /// Disk completions when last looked, and when there was one last or nothing was under way.
    disk_seen: u64,
    disk_moved_at: Time,
    /// When there was something to do last, timers aside: they say nothing about what peers do next.
    active_at: Time,
    /// How long to spin now.
    spin: Duration,
}

impl<S: Service> Reactor<S> {
    pub(crate) fn new(
        service: S,
        own: Own<S::Message>,
        mailbox: Mailbox<S::Message>,
        poll: PollMode,
        sleep_max: Duration,
        stop: Arc<Stop>,
        published: Arc<Published>,
    ) -> Reactor<S> {
        let now = own.now;
        let spin = match poll {
            PollMode::Busy => Duration::ZERO,
            PollMode::Adaptive { spin } => spin,
        };
        Reactor {
            service,
            own,
            mailbox,
            poll,
            sleep_max,
            stop,
            published,
            done: false,
            worked: true,
            published_at: now,
            disk_seen: 0,
            disk_moved_at: now,
            active_at: now,
            spin,
        }
    }

    /// Turns until all cores are done.
    pub(crate) fn run(&mut self) {
        self.service.start(&mut self.own.cx());
        loop {
            self.tick();
            let active = self.turn();
            if self.stopping() {
                break;
            }
            if active {
                self.active_at = self.own.now;
                continue;
            }
            match self.poll {
                PollMode::Adaptive { spin } if self.own.now.since(self.active_at) >= self.patience(spin) => {
                    self.sleep(spin);
                }
                PollMode::Adaptive { .. } | PollMode::Busy => std::hint::spin_loop(),
            }
        }
        self.publish();
    }

    /// How long there has to be nothing before this core sleeps.
    fn patience(&self, spin: Duration) -> Duration {
        if self.own.ring.disk_in_flight() > 0 { self.spin.max(SPIN_BESIDE_A_DISK * spin) } else { self.spin }
    }

    /// Reads the clock, once a turn, and books the time since the last one.
    fn tick(&mut self) {
        let now = Time::now();
        let elapsed = now.since(self.own.now).as_nanos() as u64;
        if self.worked {
            self.own.counters.busy_ns += elapsed;
        } else {
            self.own.counters.idle_ns += elapsed;
        }
        self.own.counters.turns += 1;
        self.own.now = now;
        trace::set_now(now);
        if now.since(self.published_at) >= PUBLISH_EVERY {
            self.publish();
        }
    }

    /// One turn. True if there was something to do, timers aside.
    fn turn(&mut self) -> bool {
        let messages = self.turn_messages();
        let completions = self.turn_completions();
        let timers = self.turn_timers();
        let activity = self.service.turn(&mut self.own.cx());
        self.own.outbox.push();
        self.own.ring.submit();
        self.let_workers_run();
        let active = messages > 0 || completions > 0 || activity == Activity::Busy;
        self.worked = active || timers > 0;
        active
    }

    /// Gives the CPU away for a moment when disk operations don't come back. Where a file system has no way to begin them
    /// without blocking (tmpfs, durable writes), the kernel's workers for them run on this CPU, too, and would wait for as long
    /// as the scheduler lets a thread run that never sleeps: milliseconds.
    fn let_workers_run(&mut self) {
        let now = self.own.now;
        if self.own.ring.disk_in_flight() == 0 || self.own.counters.disk_completions != self.disk_seen {
            self.disk_seen = self.own.counters.disk_completions;
            self.disk_moved_at = now;
        } else if self.own.ring.is_syncing() || now.since(self.disk_moved_at) >= YIELD_AFTER {
            std::thread::yield_now();
        }
    }

    fn turn_messages(&mut self) -> usize {
        let mut count = 0;
        while count < MESSAGES_PER_TURN
            && let Some(batch) = self.mailbox.take()
        {
            count += batch.messages.len();
            let Batch { from, mut messages } = batch;
            messages.iter().take(EXPECTED).for_each(|next| self.service.expect(&next.message));
            let mut rest = messages.drain(..);
            while let Some(Envelope { kind, message }) = rest.next() {
                if let Some(next) = rest.as_slice().get(EXPECTED - 1) {
                    self.service.expect(&next.message);
                }
                self.own.outbox.received(from, kind);
                self.service.on_message(&mut self.own.cx(), from, message);
            }
            drop(rest);
            self.mailbox.emptied(from, messages);
        }
        self.own.counters.messages_received += count as u64;
        count
    }

    fn turn_completions(&mut self) -> usize {
        let (mut count, mut from_disks) = (0, 0);
        let share = self.own.ring.disk_in_flight() / COMPLETION_SHARE;
        let disks_max = self.service.completions_per_turn().max(share);
        while count < COMPLETIONS_PER_TURN {
            let at_once = self.own.ring.is_done_at_once();
            if !at_once && from_disks >= disks_max {
                break;
            }
            let Some(completion) = self.own.ring.next() else { break };
            count += 1;
            from_disks += usize::from(!at_once && matches!(completion, Completion::Disk(_)));
            match completion {
                Completion::Disk(done) => {
                    self.own.counters.disk_completions += 1;
                    self.service.on_disk(&mut self.own.cx(), done);
                }
                Completion::Ready(token, ready) => {
                    self.own.counters.ready_events += 1;
                    self.service.on_ready(&mut self.own.cx(), token, ready);
                }
                Completion::Doorbell => {
                    self.own.counters.wakes += 1;
                    self.mailbox.shared.doorbell.silence();
                }
            }
        }
        count
    }

    fn turn_timers(&mut self) -> usize {
        let mut count = 0;
        while count < TIMERS_PER_TURN
            && let Some(token) = self.own.timers.expire(self.own.now)
        {
            count += 1;
            self.service.on_timer(&mut self.own.cx(), token);
        }
        self.own.counters.timers_expired += count as u64;
        count
    }

    /// Asks the service whether it is done, if it should be. True when all cores are.
    fn stopping(&mut self) -> bool {
        if !self.stop.is_requested() {
            return false;
        }
        if !self.done && self.service.stopped(&mut self.own.cx()) {
            self.done = true;
            // What it said last must go even if nobody is there to say more.
            self.own.outbox.push();
            self.own.ring.submit();
            if self.stop.is_last_done() {
                self.own.outbox.wake_all();
            }
        }
        self.stop.are_all_done()
    }

    /// Sleeps until there is something to do, unless there already is.
    fn sleep(&mut self, spin: Duration) {
        self.service.before_sleep(&mut self.own.cx());
        let pushed = self.own.outbox.push();
        self.own.ring.arm_doorbell(&self.mailbox.shared.doorbell);
        self.publish();
        let (mailbox, stop, asked, done) = (&self.mailbox, &self.stop, self.stop.is_requested(), self.done);
        let nothing_came =
            || mailbox.is_empty() && stop.is_requested() == asked && !(done && stop.are_all_done());
        if !mailbox.shared.doorbell.begin_sleep(nothing_came) {
            return;
        }
        let before = Time::now();
        let longest = if pushed { self.sleep_max } else { BLOCKED_NAP };
        self.own.ring.wait(self.own.timers.deadline().since(before).min(longest));
        self.mailbox.shared.doorbell.end_sleep();
        self.own.counters.sleeps += 1;
        self.worked = false;
        // A short sleep was not worth its price: spin longer before the next. A long one: no need to.
        let slept = Time::now().since(before);
        self.spin = if slept < 2 * spin { (2 * self.spin).min(SPIN_STRETCH * spin) } else { spin };
    }

    fn publish(&mut self) {
        if let Some((file, writes)) = self.own.ring.late_sync(self.own.now) {
            let (core, seconds) = (self.own.core.0, SYNC_LATE.as_secs());
            warn!(
                core,
                file = file.0,
                writes,
                seconds,
                "a sync does not come back: the file's durable writes wait for it"
            );
        }
        let counters = &mut self.own.counters;
        counters.messages_sent = self.own.outbox.messages_sent;
        counters.batches_sent = self.own.outbox.batches_sent;
        counters.disk_ops = self.own.ring.disk_ops;
        counters.ring_enters = self.own.ring.enters;
        self.published.publish(counters);
        self.published_at = self.own.now;
    }
}
