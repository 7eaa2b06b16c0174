//! Who is where: the cores' mailboxes, and each core's [`Outbox`] with its credits for the others.
//!
//! Messages are pairs of request and reply. A request is sent only against a credit for its receiver; the credit
//! comes back with the reply and is at the same time the reply's place in the receiver's outbox. So what a core
//! has to keep for another is bounded by the credits that it gave, replies never wait for credits, and draining a
//! mailbox never depends on sending. Invariant of a lane: `credits + requests under way == credits at start`.

use crate::Core;
use crate::mailbox::{BATCH_MESSAGES, BATCH_WINDOW, Batch, Class, Envelope, Kind, Messages, Post};
use std::collections::VecDeque;

/// How many requests a core may have with others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CreditConfig {
    /// Requests that a core may have under way with each other core.
    pub ordinary: u32,
    /// The same for urgent requests.
    pub urgent: u32,
    /// Requests that a core may have in all, under way or waiting for a credit, of each class. The service's own
    /// bound on what it has outstanding, asserted.
    pub requests_max: usize,
}

impl Default for CreditConfig {
    fn default() -> CreditConfig {
        CreditConfig { ordinary: 256, urgent: 32, requests_max: 16_384 }
    }
}

impl CreditConfig {
    fn of(&self, class: Class) -> u32 {
        match class {
            Class::Ordinary => self.ordinary,
            Class::Urgent => self.urgent,
        }
    }

    /// Memory that one core's outbox can grow to, in bytes.
    pub(crate) fn outbox_bytes<M>(&self, cores: usize) -> usize {
        let credits = (self.ordinary + self.urgent) as usize;
        2 * credits * cores * size_of::<Envelope<M>>() + 2 * self.requests_max * size_of::<M>()
    }
}

/// Requests of one class to, and owed to, one core.
#[derive(Debug)]
struct Account<M> {
    /// Requests that may still be sent.
    credits: u32,
    /// Requests of theirs that we have not answered.
    owed: u32,
    /// Requests without a credit, in order.
    waiting: VecDeque<M>,
}

/// What stands between one core and one other. No atomics, no channel: loom and the tests use it as it is.
#[derive(Debug)]
struct Lane<M> {
    accounts: [Account<M>; 2],
    /// What may go, in order: the batch that is being filled; without memory while all of it is with the receiver.
    open: Messages<M>,
    /// And what found no place in it.
    ready: VecDeque<Envelope<M>>,
    /// Batches that there is memory for so far. It is made as it is first needed.
    made: u32,
    window: u32,
}

impl<M> Lane<M> {
    fn new(credits: &CreditConfig, window: u32) -> Lane<M> {
        let accounts =
            Class::ALL.map(|class| Account { credits: credits.of(class), owed: 0, waiting: VecDeque::new() });
        Lane { accounts, open: Vec::new(), ready: VecDeque::new(), made: 0, window }
    }

    /// How many may go.
    fn unsent(&self) -> usize {
        self.open.len() + self.ready.len()
    }

    #[inline]
    fn put(&mut self, kind: Kind, message: M) {
        let envelope = Envelope { kind, message };
        if self.open.len() < self.open.capacity().min(BATCH_MESSAGES) && self.ready.is_empty() {
            self.open.push(envelope);
        } else {
            self.ready.push_back(envelope);
        }
    }

    /// Nothing more has a place in the batch.
    fn is_full(&self) -> bool {
        self.open.len() >= BATCH_MESSAGES
    }

    fn request(&mut self, class: Class, message: M) {
        let account = &mut self.accounts[class.index()];
        if account.credits == 0 {
            account.waiting.push_back(message);
        } else {
            debug_assert!(account.waiting.is_empty(), "who waits goes first");
            account.credits -= 1;
            self.put(Kind::Request(class), message);
        }
    }

    fn reply(&mut self, class: Class, message: M) {
        let account = &mut self.accounts[class.index()];
        assert!(account.owed > 0, "a reply answers one request of its class, once");
        account.owed -= 1;
        self.put(Kind::Reply(class), message);
    }

    /// Books a message from that core. True if it ended a request of ours.
    fn received(&mut self, kind: Kind) -> bool {
        match kind {
            Kind::Request(class) => {
                self.accounts[class.index()].owed += 1;
                false
            }
            Kind::Reply(class) => {
                let account = &mut self.accounts[class.index()];
                match account.waiting.pop_front() {
                    // The credit goes on to whoever waited longest.
                    Some(message) => self.put(Kind::Request(class), message),
                    None => account.credits += 1,
                }
                true
            }
            Kind::Outside => false,
        }
    }

    /// The next batch, if there is one and memory for it. `emptied` gives that of one which the receiver is done with.
    fn next_batch(
        &mut self,
        from: Core,
        mut emptied: impl FnMut() -> Option<Messages<M>>,
    ) -> Option<Batch<M>> {
        if self.open.is_empty() && (self.ready.is_empty() || !self.refill(&mut emptied)) {
            return None;
        }
        let messages = std::mem::take(&mut self.open);
        self.refill(&mut emptied);
        Some(Batch { from, messages })
    }

    /// Sees to an empty batch's memory and puts into it what waits for it. False: there is none.
    fn refill(&mut self, emptied: &mut impl FnMut() -> Option<Messages<M>>) -> bool {
        if self.open.capacity() == 0 {
            match emptied() {
                Some(messages) => self.open = messages,
                None if self.made < self.window => {
                    self.made += 1;
                    self.open = Vec::with_capacity(BATCH_MESSAGES);
                }
                None => return false,
            }
        }
        let count = self.ready.len().min(BATCH_MESSAGES);
        self.open.extend(self.ready.drain(..count));
        true
    }
}

/// One core's way to all others, and to itself. Messages leave as they fill a batch, so that the receiver may begin, the others
/// of a turn at its end; those to one receiver in order: requests among each other, and replies among each other; a reply may
/// pass requests that wait for credits.
#[derive(Debug)]
pub struct Outbox<M> {
    core: Core,
    lanes: Box<[(Lane<M>, Post<M>)]>,
    /// Requests waiting or under way, by class.
    outstanding: [usize; 2],
    requests_max: usize,
    /// Messages in all `ready` queues.
    unsent: usize,
    pub(crate) messages_sent: u64,
    pub(crate) batches_sent: u64,
}

impl<M> Outbox<M> {
    pub(crate) fn new(core: Core, posts: Vec<Post<M>>, credits: &CreditConfig) -> Outbox<M> {
        let lanes = posts.into_iter().map(|post| (Lane::new(credits, BATCH_WINDOW), post)).collect();
        Outbox {
            core,
            lanes,
            outstanding: [0; 2],
            requests_max: credits.requests_max,
            unsent: 0,
            messages_sent: 0,
            batches_sent: 0,
        }
    }

    /// How many cores there are.
    pub fn cores(&self) -> usize {
        self.lanes.len()
    }

    /// Asks `to` for something: it answers with one [`Outbox::reply`]. Without a credit the request waits here.
    ///
    /// # Panics
    /// When over [`CreditConfig::requests_max`] requests are outstanding: the service bounds what it asks.
    pub fn request(&mut self, to: Core, message: M) {
        self.send_request(to, Class::Ordinary, message);
    }

    /// As [`Outbox::request`], with credits that ordinary requests can't use up: for aborts, decrees and what
    /// else must get through while ordinary requests are stuck. Answered with [`Outbox::reply_urgent`].
    ///
    /// # Panics
    /// As [`Outbox::request`].
    pub fn request_urgent(&mut self, to: Core, message: M) {
        self.send_request(to, Class::Urgent, message);
    }

    /// Answers one ordinary request of `to`. It always has its place.
    ///
    /// # Panics
    /// When `to` has no unanswered request here: each is answered once.
    pub fn reply(&mut self, to: Core, message: M) {
        self.send_reply(to, Class::Ordinary, message);
    }

    /// Answers one urgent request of `to`. It always has its place.
    ///
    /// # Panics
    /// As [`Outbox::reply`].
    pub fn reply_urgent(&mut self, to: Core, message: M) {
        self.send_reply(to, Class::Urgent, message);
    }

    /// Requests to `to` that wait for a credit: not even a push would bring them there now.
    pub fn waiting(&self, to: Core) -> usize {
        self.lanes[to.index()].0.accounts.iter().map(|account| account.waiting.len()).sum()
    }

    /// Requests of this core that are waiting or unanswered, ordinary and urgent.
    pub fn outstanding(&self) -> usize {
        self.outstanding.iter().sum()
    }

    /// Puts into the mailboxes what may go. The reactor does it at each turn's end; a service does it before
    /// that only where something must be in one mailbox before another thing is in a second. True if nothing
    /// that has a credit is left behind.
    pub fn push(&mut self) -> bool {
        if self.unsent == 0 {
            return true;
        }
        for to in 0..self.lanes.len() {
            while self.push_batch(to) {}
        }
        self.unsent == 0
    }

    /// Puts a batch into a mailbox, if there is one that may go.
    fn push_batch(&mut self, to: usize) -> bool {
        let (lane, post) = &mut self.lanes[to];
        let Some(batch) = lane.next_batch(self.core, || post.emptied(self.core)) else { return false };
        self.unsent -= batch.messages.len();
        self.messages_sent += batch.messages.len() as u64;
        self.batches_sent += 1;
        post.push(batch);
        true
    }

    /// Wakes every core that sleeps, for news that no message carries.
    pub(crate) fn wake_all(&self) {
        for (_, post) in &self.lanes {
            post.shared.doorbell.ring_if_asleep();
        }
    }

    fn send_request(&mut self, to: Core, class: Class, message: M) {
        let outstanding = &mut self.outstanding[class.index()];
        assert!(*outstanding < self.requests_max, "the service bounds the requests that it has outstanding");
        *outstanding += 1;
        let lane = &mut self.lanes[to.index()].0;
        let unsent = lane.unsent();
        lane.request(class, message);
        self.unsent += lane.unsent() - unsent;
        self.push_full(to);
    }

    fn send_reply(&mut self, to: Core, class: Class, message: M) {
        self.lanes[to.index()].0.reply(class, message);
        self.unsent += 1;
        self.push_full(to);
    }

    /// What fills a batch need not wait for the turn's end.
    #[inline]
    fn push_full(&mut self, to: Core) {
        if self.lanes[to.index()].0.is_full() {
            self.push_batch(to.index());
        }
    }

    /// Books a message that has arrived.
    pub(crate) fn received(&mut self, from: Core, kind: Kind) {
        let lane = &mut self.lanes[from.index()].0;
        let unsent = lane.unsent();
        if lane.received(kind)
            && let Kind::Reply(class) = kind
        {
            self.outstanding[class.index()] -= 1;
        }
        self.unsent += lane.unsent() - unsent;
    }
}

/// A way into a core from threads that are not reactors: to stop, to reload, to ask. Cheap to clone.
#[derive(Debug)]
pub struct Remote<M> {
    to: Core,
    post: Post<M>,
}

impl<M> Clone for Remote<M> {
    fn clone(&self) -> Remote<M> {
        Remote { to: self.to, post: self.post.clone() }
    }
}

/// All places for messages from outside are taken; the message comes back. Try again when the core had a turn.
#[derive(Debug)]
pub struct RemoteFull<M>(pub M);

impl<M> Remote<M> {
    pub(crate) fn new(to: Core, post: Post<M>) -> Remote<M> {
        Remote { to, post }
    }

    /// The core that it leads to.
    pub fn core(&self) -> Core {
        self.to
    }

    /// Puts a message into the core's mailbox, where it arrives as from that core itself, and wakes it. Needs no
    /// reply: an answer goes by whatever the message carries for it.
    ///
    /// # Errors
    /// [`RemoteFull`] with the message, when [`crate::mailbox::REMOTE_PLACES`] others wait there.
    pub fn post(&self, message: M) -> Result<(), RemoteFull<M>> {
        self.post.push_outside(self.to, message).map_err(RemoteFull)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mailbox::{mailbox, places};
    use proptest::prelude::*;

    const CREDITS: CreditConfig = CreditConfig { ordinary: 2, urgent: 1, requests_max: 64 };

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Message {
        Ask(u32),
        Answer(u32),
    }

    /// Goal: two cores that each owe the other never fill a mailbox and never wait for each other for ever, on
    /// every schedule. Method: loom, with the real lanes, one credit each, and mailboxes of exactly the
    /// computed size (2), in which a push without room fails.
    #[test]
    fn two_cores_that_owe_each_other_never_block() {
        use loom::sync::{Arc, Mutex};

        const WINDOW: u32 = 1;
        const REQUESTS: u32 = 2;

        struct Box2 {
            queue: Mutex<VecDeque<Batch<Message>>>,
            emptied: Mutex<Vec<Messages<Message>>>,
        }

        fn run(me: usize, boxes: &[Box2; 2]) {
            let credits = CreditConfig { ordinary: 1, urgent: 0, requests_max: 8 };
            let mut lane: Lane<Message> = Lane::new(&credits, WINDOW);
            for number in 0..REQUESTS {
                lane.request(Class::Ordinary, Message::Ask(number));
            }
            let (mut answered, mut asked) = (0, 0);
            loop {
                let peer = &boxes[1 - me];
                let emptied = || peer.emptied.lock().unwrap().pop();
                if let Some(batch) = lane.next_batch(Core(me as u16), emptied) {
                    let mut queue = peer.queue.lock().unwrap();
                    assert!(queue.len() < places(2, WINDOW, 0), "a mailbox is full");
                    queue.push_back(batch);
                }
                if answered == REQUESTS && asked == REQUESTS && lane.unsent() == 0 {
                    return;
                }
                let batch = boxes[me].queue.lock().unwrap().pop_front();
                let Some(Batch { mut messages, .. }) = batch else {
                    loom::thread::yield_now();
                    continue;
                };
                for envelope in messages.drain(..) {
                    lane.received(envelope.kind);
                    match envelope.message {
                        Message::Ask(number) => {
                            asked += 1;
                            lane.reply(Class::Ordinary, Message::Answer(number));
                        }
                        Message::Answer(number) => {
                            assert_eq!(number, answered);
                            answered += 1;
                        }
                    }
                }
                boxes[me].emptied.lock().unwrap().push(messages);
            }
        }

        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(|| {
            let boxes = Arc::new(
                [0, 1].map(|_| Box2 { queue: Mutex::new(VecDeque::new()), emptied: Mutex::new(Vec::new()) }),
            );
            let other = {
                let boxes = Arc::clone(&boxes);
                loom::thread::spawn(move || run(1, &boxes))
            };
            run(0, &boxes);
            other.join().unwrap();
        });
    }

    proptest! {
        /// Goal: whatever a core asks, no more than its credits are under way, order holds within each class,
        /// and urgent requests pass ordinary ones that are stuck. Method: random steps of two outboxes over
        /// real mailboxes, against counters.
        #[test]
        fn credits_bound_what_is_under_way(steps in prop::collection::vec(0u8..6, 1..200)) {
            let (post, mut inbox) = mailbox::<Message>(2).unwrap();
            let (back, mut answers) = mailbox::<Message>(2).unwrap();
            let mut asker = Outbox::new(Core(0), vec![back.clone(), post.clone()], &CREDITS);
            let mut owner = Outbox::new(Core(1), vec![back, post], &CREDITS);
            let mut asked = [0u32; 2];
            let mut seen = [0u32; 2];
            let mut held: Vec<(Class, u32)> = Vec::new();
            let mut answered = [0u32; 2];
            for step in steps {
                match step {
                    0 if asker.outstanding[0] < CREDITS.requests_max => {
                        asker.request(Core(1), Message::Ask(asked[0]));
                        asked[0] += 1;
                    }
                    1 if asker.outstanding[1] < CREDITS.requests_max => {
                        asker.request_urgent(Core(1), Message::Ask(asked[1]));
                        asked[1] += 1;
                    }
                    2 => {
                        asker.push();
                    }
                    3 => {
                        while let Some(batch) = inbox.take() {
                            for Envelope { kind, message } in batch.messages {
                                owner.received(batch.from, kind);
                                let (Kind::Request(class), Message::Ask(number)) = (kind, message) else {
                                    panic!("the asker sends requests only");
                                };
                                prop_assert_eq!(number, seen[class.index()]);
                                seen[class.index()] += 1;
                                held.push((class, number));
                            }
                        }
                        let urgent = held.iter().filter(|(class, _)| *class == Class::Urgent).count();
                        prop_assert!(urgent <= CREDITS.urgent as usize);
                        prop_assert!(held.len() - urgent <= CREDITS.ordinary as usize);
                    }
                    4 if !held.is_empty() => {
                        match held.remove(0) {
                            (Class::Ordinary, number) => owner.reply(Core(0), Message::Answer(number)),
                            (Class::Urgent, number) => owner.reply_urgent(Core(0), Message::Answer(number)),
                        }
                    }
                    _ => {
                        owner.push();
                        while let Some(batch) = answers.take() {
                            for Envelope { kind, message } in batch.messages {
                                asker.received(batch.from, kind);
                                let (Kind::Reply(class), Message::Answer(number)) = (kind, message) else {
                                    panic!("the owner sends replies only");
                                };
                                prop_assert_eq!(number, answered[class.index()]);
                                answered[class.index()] += 1;
                            }
                        }
                    }
                }
                for class in [0, 1] {
                    prop_assert_eq!(asker.outstanding[class] as u32, asked[class] - answered[class]);
                }
            }
        }
    }

    /// Goal: what fills a batch is with the receiver before the turn ends, the rest when it does; batches' memory is made as it
    /// is needed, used again, and bounds what lies there; nothing is lost or changes its order. Method: more requests than
    /// the window holds, taken at last.
    #[test]
    fn a_full_batch_leaves_at_once() {
        let (post, mut inbox) = mailbox::<Message>(1).unwrap();
        let room = BATCH_WINDOW as usize * BATCH_MESSAGES;
        let credits = CreditConfig { ordinary: 4 * room as u32, urgent: 0, requests_max: 4 * room };
        let mut outbox = Outbox::new(Core(0), vec![post], &credits);
        let mut asked = 0;
        let mut ask = |outbox: &mut Outbox<Message>, count: usize| {
            for _ in 0..count {
                outbox.request(Core(0), Message::Ask(asked));
                asked += 1;
            }
        };
        // The first finds no memory yet, so that is made at the turn's end.
        ask(&mut outbox, 1);
        assert!(inbox.is_empty() && outbox.push() && !inbox.is_empty());
        ask(&mut outbox, BATCH_MESSAGES);
        assert_eq!((outbox.batches_sent, outbox.unsent), (2, 0));
        ask(&mut outbox, BATCH_MESSAGES - 1);
        assert_eq!((outbox.batches_sent, outbox.push()), (2, true));
        ask(&mut outbox, 2 * room);
        assert!(!outbox.push());
        assert_eq!(outbox.batches_sent, u64::from(BATCH_WINDOW));
        let mut seen = 0;
        while seen < asked {
            while let Some(Batch { from, mut messages }) = inbox.take() {
                for Envelope { message, .. } in messages.drain(..) {
                    assert_eq!(message, Message::Ask(seen));
                    seen += 1;
                }
                inbox.emptied(from, messages);
            }
            outbox.push();
        }
        assert!(outbox.push());
        assert_eq!(outbox.lanes[0].0.made, BATCH_WINDOW);
    }

    /// Goal: a reply that nobody waits for is our mistake and is caught where it is made.
    #[test]
    #[should_panic(expected = "a reply answers one request")]
    fn a_reply_without_a_request_is_caught() {
        let (post, _inbox) = mailbox::<Message>(1).unwrap();
        Outbox::new(Core(0), vec![post], &CREDITS).reply(Core(0), Message::Answer(0));
    }
}
