//! One message from one reactor to another and back, over the mesh that cores of a target talk by: half of what that takes
//! is a hop.
//!
//! Both are whole reactors, so a hop has all that a turn has: clock, mailbox, ring and timers are looked at, the message is
//! moved into a batch, through the channel and out again. Rounds are counted by the turns' own time.

use super::round::{Plan, each_ns};
use super::rows::{Per, Row, Unit};
use crate::failure::{Context, Failure};
use bdev::io::{BdevId, Done, Op};
use bdev::shard::Mail;
use reactor::Core;
use reactor::buf::PAGE_BYTES;
use reactor::clock::Time;
use reactor::disk::DiskDone;
use reactor::pin;
use reactor::reactor::PollMode;
use reactor::ring::Ready;
use reactor::service::{Activity, Cx, Service};
use reactor::start::{Mesh, MeshConfig};
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

/// Buffers of each reactor: one is used.
const BUFFER_BYTES: usize = 1 << 20;
/// Reactors that have nothing to tell so long after they should have are given up.
const PATIENCE: Duration = Duration::from_secs(30);

const ASKER: Core = Core(0);
const OWNER: Core = Core(1);

/// The case, from `cpu` to `peer`; unless told to the first other CPU that there is.
///
/// # Errors
/// The reactors don't start, or stop answering.
pub(super) fn measure(plan: Plan, cpu: usize, peer: Option<usize>) -> Result<Vec<Row>, Failure> {
    let allowed = pin::allowed_cpus().doing("asking which CPUs there are")?;
    let peer = peer.unwrap_or_else(|| other_than(cpu, &allowed));
    let rounds_ns = hops(plan, cpu, peer)?;
    let message = size_of::<Mail>();
    Ok(vec![Row {
        case: "mailbox",
        what: what(cpu, peer),
        rounds_ns,
        unit: Unit::Ns,
        per: Per::Operation,
        because: if cpu == peer {
            format!(
                "ONE CPU FOR BOTH THREADS: each hop is a sleep, a wake-up and a switch; a message has {message} bytes"
            )
        } else {
            format!(
                "round trip over two; both threads poll; a message has {message} bytes; a turn of the receiver is in it"
            )
        },
    }])
}

fn what(cpu: usize, peer: usize) -> String {
    if cpu == peer {
        format!("hop between two reactors that share CPU {cpu}")
    } else {
        format!("hop between reactors on CPUs {cpu} and {peer}")
    }
}

/// The first CPU of `allowed` that isn't `cpu`; the same one if there is no other.
fn other_than(cpu: usize, allowed: &[usize]) -> usize {
    allowed.iter().copied().find(|&other| other != cpu).unwrap_or(cpu)
}

/// Nanoseconds of a hop, of each round.
///
/// # Errors
/// As [`measure`].
pub(crate) fn hops(plan: Plan, cpu: usize, peer: usize) -> Result<Vec<f64>, Failure> {
    let (sender, receiver) = channel();
    // Two that poll on one CPU would each wait for the other's time slice to end: there they sleep at once instead.
    let poll = if cpu == peer { PollMode::Adaptive { spin: Duration::ZERO } } else { PollMode::Busy };
    let config = MeshConfig { poll, buffer_bytes: BUFFER_BYTES, ..MeshConfig::new(vec![cpu, peer]) };
    let running = Mesh::start(config, move |_| Player {
        plan,
        outcome: sender.clone(),
        rounds_ns: Vec::new(),
        is_warm: false,
        trips: 0,
        begun: Time::now(),
        is_ending: false,
    })
    .doing("starting two reactors")?;
    let longest = plan.time * (plan.rounds as u32 + 1) * 2 + PATIENCE;
    let outcome = receiver.recv_timeout(longest).doing("waiting for two reactors");
    running.stop();
    // One that hangs would let us hang, too.
    if outcome.is_ok() {
        running.join();
    }
    outcome
}

/// One of the two: core 0 asks, core 1 answers.
struct Player {
    plan: Plan,
    outcome: Sender<Vec<f64>>,
    rounds_ns: Vec<f64>,
    /// The first round is behind us, which doesn't count.
    is_warm: bool,
    /// Round trips of this round.
    trips: u64,
    begun: Time,
    /// All rounds are done, or somebody wants an end: nothing is asked any more.
    is_ending: bool,
}

impl Player {
    /// The message is back.
    fn returned(&mut self, cx: &mut Cx<'_, Mail>, done: Done) {
        self.trips += 1;
        let spent = cx.now.since(self.begun);
        if spent >= self.plan.time {
            if self.is_warm {
                self.rounds_ns.push(each_ns(spent, 2 * self.trips));
            }
            (self.is_warm, self.trips, self.begun) = (true, 0, cx.now);
        }
        if self.rounds_ns.len() >= self.plan.rounds && !self.is_ending {
            self.is_ending = true;
            // Nobody listening means that nobody wants to know.
            let _ = self.outcome.send(std::mem::take(&mut self.rounds_ns));
        }
        if !self.is_ending {
            cx.outbox.request(OWNER, Mail::Submit(done.io));
        }
    }
}

impl Service for Player {
    type Message = Mail;

    fn start(&mut self, cx: &mut Cx<'_, Mail>) {
        self.begun = cx.now;
        if cx.core == ASKER {
            let buf = cx.pool.take(PAGE_BYTES);
            let io = crate::pool::world::io(BdevId(0), Op::Write, 0, PAGE_BYTES as u64, buf);
            cx.outbox.request(OWNER, Mail::Submit(io));
        }
    }

    fn on_message(&mut self, cx: &mut Cx<'_, Mail>, from: Core, message: Mail) {
        match message {
            Mail::Submit(io) => cx.outbox.reply(from, Mail::Done(Done { io, result: Ok(()) })),
            Mail::Done(done) => self.returned(cx, done),
            other => unreachable!("nobody sent {other:?}"),
        }
    }

    fn on_disk(&mut self, _: &mut Cx<'_, Mail>, _: DiskDone) {}

    fn on_ready(&mut self, _: &mut Cx<'_, Mail>, _: u64, _: Ready) {}

    fn on_timer(&mut self, _: &mut Cx<'_, Mail>, _: u64) {}

    fn turn(&mut self, _: &mut Cx<'_, Mail>) -> Activity {
        Activity::Idle
    }

    fn before_sleep(&mut self, _: &mut Cx<'_, Mail>) {}

    fn stopped(&mut self, cx: &mut Cx<'_, Mail>) -> bool {
        self.is_ending = true;
        cx.outbox.outstanding() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the other CPU, where there is one; a row says when there is none. Method: by hand.
    #[test]
    fn the_peer_is_another_cpu_if_there_is_one() {
        assert_eq!(other_than(0, &[0, 1, 2]), 1);
        assert_eq!(other_than(1, &[0, 1]), 0);
        assert_eq!(other_than(3, &[3]), 3);
        assert!(what(3, 3).contains("share CPU 3") && what(0, 1).contains("CPUs 0 and 1"));
    }

    /// Goal: two threads on one CPU get through, too, and the row says so. Method: a tiny run.
    #[test]
    fn one_cpu_does() {
        let cpu = pin::allowed_cpus().unwrap()[0];
        let plan = Plan { rounds: 2, time: Duration::from_millis(2) };
        let rows = measure(plan, cpu, Some(cpu)).unwrap();
        assert_eq!((rows.len(), rows[0].rounds_ns.len()), (1, 2));
        assert!(rows[0].because.contains("ONE CPU") && rows[0].value() > 0.0, "{rows:?}");
    }
}
