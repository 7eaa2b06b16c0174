//! What a reactor runs: a [`Service`], told of everything that happens on its core, one thing at a time.
//!
//! A service never blocks: it does a little, asks for more through [`Cx`], and returns.

use crate::Core;
use crate::buf::Pool;
use crate::clock::Time;
use crate::disk::DiskDone;
use crate::mesh::Outbox;
use crate::ring::{Ready, Ring};
use crate::timer::Timers;
use crate::trace::Counters;

/// One core's part of the program. Made on its core's thread and never leaves it.
pub trait Service {
    /// What cores say to each other.
    type Message: Send + 'static;

    /// The first call, on the service's own pinned thread, when all cores are up.
    fn start(&mut self, cx: &mut Cx<'_, Self::Message>);

    /// A message will be handed to [`Service::on_message`] when some before it have been: a chance to have memory fetched that
    /// it will need. Nothing else is to be done.
    fn expect(&mut self, message: &Self::Message) {
        let _ = message;
    }

    /// A message has come. A request is answered once, now or later, with [`Outbox::reply`] (or
    /// [`Outbox::reply_urgent`] if it came so). Messages from outside the mesh come `from` the core itself.
    fn on_message(&mut self, cx: &mut Cx<'_, Self::Message>, from: Core, message: Self::Message);

    /// A disk operation has ended.
    fn on_disk(&mut self, cx: &mut Cx<'_, Self::Message>, done: DiskDone);

    /// A watched socket is ready. Once a watch: watch again to hear again.
    fn on_ready(&mut self, cx: &mut Cx<'_, Self::Message>, token: u64, ready: Ready);

    /// A timer has expired.
    fn on_timer(&mut self, cx: &mut Cx<'_, Self::Message>, token: u64);

    /// How many disk operations at most come back in a turn, of those that took their time. Few where their answers bring the next
    /// requests: a disk that has given back all that it had waits for the first of those.
    fn completions_per_turn(&self) -> usize {
        crate::reactor::COMPLETIONS_PER_TURN
    }

    /// Called once a turn, after the above: polls the sockets that are hot, and does what has gathered.
    fn turn(&mut self, cx: &mut Cx<'_, Self::Message>) -> Activity;

    /// The reactor is about to sleep: whatever the service would otherwise poll must be watched when this
    /// returns. It sleeps unless a message has come or a watch was refused; what became ready before ends the
    /// sleep at once. Not called when polling busily.
    fn before_sleep(&mut self, cx: &mut Cx<'_, Self::Message>);

    /// Asked every turn once a stop was requested: whether this core is done with all of its own. From the first
    /// call on it should wind down. The core goes on turning, and answering others, until all have said true;
    /// having said it, a service must not ask others for anything any more.
    fn stopped(&mut self, cx: &mut Cx<'_, Self::Message>) -> bool;
}

/// Whether a turn found something to do. A core that found nothing for a while may sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activity {
    /// It did.
    Busy,
    /// It did not.
    Idle,
}

/// What a service may use during a call.
#[derive(Debug)]
pub struct Cx<'a, M> {
    /// Where it runs.
    pub core: Core,
    /// This turn's time.
    pub now: Time,
    /// This core's buffers.
    pub pool: &'a mut Pool,
    /// This core's timers.
    pub timers: &'a mut Timers,
    /// This core's disks and watches.
    pub ring: &'a mut Ring,
    /// The way to the other cores.
    pub outbox: &'a mut Outbox<M>,
    /// This core's counters, for those that the service counts.
    pub counters: &'a mut Counters,
}
