//! The tasks of one core: from the command PDU to the response, and to the last IO of an aborted one.
//!
//! A task's entry stays until no IO of it is out, whether its initiator has been answered or not, because the
//! buffers and the blocks are in use until then. Invariant: a task in its
//! session's `tasks` is not aborted, unless its initiator is still to be told so.
//!
//! A command that is answered before its work is done (IMMED=1 of third-party copies) leaves its session's `tasks`, its tag
//! and its place in the window then, and keeps its entry: what it does is a background operation, which ends with its
//! session, by resets, PREEMPT AND ABORT, COPY OPERATION ABORT and with its unit, and by ABORT TASK only before the
//! answer has left.
//!
//! ORDERED and HEAD OF QUEUE (SAM-5 §8.9) are kept within a nexus and unit: whoever has to wait receives its data, and
//! parks the first thing it would do to the medium, or say, until those before it have ended.

use crate::connection::Connection;
use crate::decree::Decree;
use crate::pdu::TaskTag;
use crate::pdu::decode::ScsiCommand;
use crate::pdu::encode::Residual;
use crate::quota::Lender;
use crate::reply::{DataIn, Reply};
use crate::session::{ENTRIES_MAX, Session};
use crate::target::{Asker, Env, Target};
use crate::task_management::Until;
use crate::transfer::{Spares, Transfer};
use bdev::error::IoError;
use bdev::io::{BdevId, Done, Op, Tag};
use bdev::storage::{Copied, Moved};
use reactor::buf::Buf;
use reactor::clock::Time;
use reactor::slots::Slot;
use smallvec::SmallVec;
use std::collections::VecDeque;
use std::time::Duration;
use vaai::change::Applied;
use vaai::command::{Buffers, Command, Effect, Outcome, TaskAttribute};
use vaai::sense::Status;
use vaai::server::DeviceServer;
use vaai::task::Task;

/// An initiator that owes us data this long loses the command and its buffers.
pub const DATA_OUT_TIMEOUT: Duration = Duration::from_secs(20);

/// A task that gets no buffer for this long, with nothing of it under way and nothing to be sent, ends with TASK SET
/// FULL: every session has its guaranteed buffers, so it can only be waiting for its own tasks, all of which wait as well.
pub const HUNGER_TIMEOUT: Duration = Duration::from_secs(5);

/// Tasks that may be open on one core. Sessions' windows are the real bound; this one keeps tables finite.
pub const TASKS_MAX: usize = 1 << 18;

/// The tag of what is no task's: names no slot, since its generation is 0.
const FREE_TAG: Tag = Tag(1 << 29);

const _: () = assert!(TASKS_MAX < 1 << 29);

/// One task.
#[derive(Debug)]
pub struct TaskEntry {
    /// Whose.
    pub session: Slot,
    /// Initiator task tag.
    pub itt: TaskTag,
    /// The LUN field, as it came.
    pub lun: [u8; 8],
    /// Sent for immediate delivery.
    pub immediate: bool,
    /// Expected Data Transfer Length.
    pub edtl: u32,
    /// Which command of this core it was.
    pub born: u64,
    attribute: TaskAttribute,
    /// Older tasks have to end first.
    waits: bool,
    /// What it wants to do then.
    parked: Option<Box<Effect>>,
    /// A change that it proposed has not been decreed yet, or not been kept.
    proposing: bool,
    /// The device server's part.
    pub task: Task,
    /// The wire's part.
    pub transfer: Transfer,
    /// The Data-In that may be the last, and then carries the status.
    held: Option<(u32, Buf)>,
    /// It is over, and its response waits until the initiator has sent what it owes, and its writes are back.
    pub(crate) ending: Option<Outcome>,
    /// Nothing is begun any more; stays until its IOs are back.
    pub aborted: bool,
    /// Aborted by another nexus: once it is quiet its initiator is told TASK ABORTED (TAS=1, SAM-5 §5.3.1).
    /// Until then its tag stays in use.
    report_aborted: bool,
    /// It was answered, and goes on: its tag may be another task's by now.
    is_background: bool,
    /// Devices that it has asked for something.
    bdevs: SmallVec<[BdevId; 1]>,
    /// It has asked for copies.
    copies: bool,
    /// Quiesces that wait for this task, and how far.
    waiters: SmallVec<[(Slot, Until); 1]>,
    /// Waits for buffers, and since when.
    hungry_since: Option<Time>,
}

impl TaskEntry {
    /// Whether nothing of it can change anything any more.
    pub fn is_quiet(&self) -> bool {
        self.task.writes_out() == 0 && !self.proposing
    }

    /// Whether nobody who waits for this much has to wait.
    fn is_as_far_as(&self, until: Until) -> bool {
        match until {
            Until::Fenced => true,
            Until::Quiet => self.is_quiet(),
            Until::Idle => self.is_idle(),
        }
    }

    /// Whether nothing of it is under way.
    fn is_idle(&self) -> bool {
        self.task.ios_out() == 0 && !self.proposing
    }

    /// Whether it goes on after its answer.
    pub(crate) fn is_background(&self) -> bool {
        self.is_background
    }

    /// What waits for its turn never gets it.
    fn unpark(&mut self, server: &mut DeviceServer, lender: &mut Lender<'_>) {
        match self.parked.take().map(|parked| *parked) {
            Some(Effect::Copy(io)) => {
                let copied = Copied { io, result: Err(IoError::ABANDONED), moved: Moved::default() };
                self.task.copy_done(server, &copied);
            }
            Some(Effect::Submit(io)) => self.task.io_done(Done { io, result: Err(IoError::ABANDONED) }),
            Some(Effect::Status { .. }) => self.task.status_done(0, true),
            Some(Effect::DataIn { buf, .. }) => lender.give(buf),
            _ => {}
        }
    }

    fn has_rank(&self) -> bool {
        matches!(self.attribute, TaskAttribute::Ordered | TaskAttribute::HeadOfQueue)
    }
}

impl Target {
    /// Whether a command that has arrived on `session` may become a task.
    ///
    /// # Errors
    /// The tag is in use, or a table is full.
    #[inline]
    pub(crate) fn may_start(&self, session: Slot, itt: TaskTag, immediate: bool) -> Result<(), TaskRefused> {
        let Some(session) = self.sessions.get(session) else {
            unreachable!("a connection in full feature phase has a session");
        };
        if session.tasks.contains_key(&itt) {
            return Err(TaskRefused::TagInUse);
        }
        if immediate && session.immediate_tasks >= crate::session::IMMEDIATE_MAX {
            return Err(TaskRefused::TooManyImmediate);
        }
        if session.entries >= ENTRIES_MAX || self.tasks.is_full() {
            return Err(TaskRefused::TableFull);
        }
        Ok(())
    }

    /// Makes a command's task; the caller has looked whether it may be one.
    pub(crate) fn start_task(
        &mut self,
        session_slot: Slot,
        request: &ScsiCommand,
        command: &Command,
        task: Task,
        transfer: Transfer,
    ) -> Slot {
        let (itt, immediate) = (request.initiator_task_tag, request.immediate);
        let edtl = request.expected_data_transfer_bytes;
        let Some(session) = self.sessions.get_mut(session_slot) else {
            unreachable!("a connection in full feature phase has a session");
        };
        let mut entry = TaskEntry {
            session: session_slot,
            itt,
            lun: command.lun,
            immediate,
            edtl,
            born: self.counters.commands + 1,
            attribute: command.attribute,
            waits: false,
            parked: None,
            proposing: false,
            task,
            transfer,
            held: None,
            ending: None,
            aborted: false,
            report_aborted: false,
            is_background: false,
            bdevs: SmallVec::new(),
            copies: false,
            waiters: SmallVec::new(),
            hungry_since: None,
        };
        if session.ranked > 0 || entry.has_rank() {
            let others = session.tasks.values().filter_map(|other| self.tasks.get(*other));
            let mut older = others.filter(|other| !other.aborted && other.task.lun() == entry.task.lun());
            entry.waits = match entry.attribute {
                TaskAttribute::HeadOfQueue => false,
                TaskAttribute::Ordered => older.next().is_some(),
                _ => older.any(TaskEntry::has_rank),
            };
            session.ranked += u32::from(entry.has_rank());
        }
        let Ok(slot) = self.tasks.insert(entry) else { unreachable!("the table was not full") };
        session.tasks.insert(itt, slot);
        session.entries += 1;
        session.immediate_tasks += u32::from(immediate);
        self.counters.commands += 1;
        slot
    }

    /// Carries out what the task wants, until it waits for something. How many buffers it got.
    pub(crate) fn pump(&mut self, slot: Slot, env: &mut Env<'_>) -> u32 {
        let Some(entry) = self.tasks.get_mut(slot) else { return 0 };
        if entry.aborted || entry.ending.is_some() {
            return 0;
        }
        let Some(session) = self.sessions.get_mut(entry.session) else {
            unreachable!("a session outlives its tasks");
        };
        let Some(connection) = session.connection.and_then(|slot| self.connections.get_mut(slot)) else {
            unreachable!("tasks of a session that lost its connection are aborted");
        };
        let mut lender = Lender::new(env.pool, &mut self.quota, &mut session.share);
        let mut stop = None;
        let next = loop {
            let effect = match entry.parked.take() {
                Some(parked) => Some(*parked),
                None => entry.task.poll(&mut self.server, &mut lender),
            };
            match effect {
                None => break Next::Wait,
                Some(Effect::WantData { bytes }) => entry.transfer.set_want(bytes),
                Some(effect) if entry.waits => {
                    entry.parked = Some(Box::new(effect));
                    break Next::Wait;
                }
                // Its initiator still sends what nobody wants: it is answered behind that (RFC 7143 §11.4.2).
                Some(effect @ Effect::Answer(_)) if entry.transfer.is_waiting() => {
                    entry.parked = Some(Box::new(effect));
                    break Next::Wait;
                }
                Some(Effect::Submit(mut io)) => {
                    io.tag = Tag(slot.to_bits());
                    io.from = self.core;
                    if !entry.bdevs.contains(&io.bdev) {
                        entry.bdevs.push(io.bdev);
                    }
                    env.below.submit(io);
                }
                Some(Effect::Copy(mut io)) => {
                    io.tag = Tag(slot.to_bits());
                    entry.copies = true;
                    env.below.copy(io);
                }
                Some(Effect::StopCopy { id }) => stop = Some((entry.session, id)),
                Some(Effect::Status { bdev, from_bytes, bytes }) => {
                    env.below.status(Tag(slot.to_bits()), bdev, from_bytes, bytes);
                }
                Some(Effect::DataIn { offset, buf }) => {
                    entry.transfer.data_in(offset, buf, &mut self.spares);
                    while let Some(next) = entry.transfer.next_data_in() {
                        if let Some((offset, buf)) = entry.held.replace(next) {
                            connection
                                .queue_data_in(entry, DataIn { offset, buf, is_last: false, end: None });
                        }
                    }
                }
                Some(Effect::Propose(change)) => {
                    entry.proposing = true;
                    self.proposals_due.push_back((crate::decree::Decree::Scsi(change), Asker::Task(slot)));
                }
                Some(Effect::Keep { lun }) => {
                    entry.proposing = true;
                    self.keeps_due.push_back((slot, lun));
                }
                Some(Effect::Answer(outcome)) => break Next::Answer(outcome),
                Some(Effect::Finish(outcome)) => break Next::End(outcome),
            }
        };
        let mut taken = lender.taken;
        match next {
            Next::Wait => {
                if let Some((offset, buf)) = entry.held.take() {
                    connection.queue_data_in(entry, DataIn { offset, buf, is_last: false, end: None });
                }
                if !entry.waits {
                    solicit(
                        entry,
                        connection,
                        &mut lender,
                        &mut self.spares,
                        env.now,
                        session.parameters.max_outstanding_r2t.into(),
                    );
                }
                taken = lender.taken;
                if lender.refused && entry.hungry_since.is_none() {
                    entry.hungry_since = Some(env.now);
                    self.hungry.push_back(slot);
                }
                let connection = session.connection;
                self.mark_dirty(connection);
            }
            Next::Answer(outcome) => {
                self.answer(slot, outcome);
                taken += self.pump(slot, env);
            }
            Next::End(outcome) => self.end_after_data(slot, outcome, env),
        }
        if let Some((session, id)) = stop {
            self.stop_copy(session, id, env);
        }
        if !self.proposals_due.is_empty() {
            self.propose_due(env);
        }
        if !self.keeps_due.is_empty() {
            self.keep_due(env);
        }
        taken
    }

    /// What a nexus' copy has below is given up: it ends when that is back.
    fn stop_copy(&mut self, session: Slot, id: u32, env: &mut Env<'_>) {
        let Some(of) = self.sessions.get(session) else { return };
        let mut slots = of.tasks.values().copied().chain(self.background_of(session));
        let id_of = |slot: Slot| self.tasks.get(slot).and_then(|entry| entry.task.copy_id());
        if let Some(slot) = slots.find(|&slot| id_of(slot) == Some(id)) {
            env.below.abandon_copies(Tag(slot.to_bits()));
        }
    }

    /// A session's tasks that go on after their answer, aborted ones included.
    pub(crate) fn background_of(&self, session: Slot) -> Vec<Slot> {
        if self.sessions.get(session).is_none_or(|session| session.background == 0) {
            return Vec::new();
        }
        let is_its = |entry: &TaskEntry| entry.session == session && entry.is_background;
        self.tasks.iter().filter(|(_, entry)| is_its(entry)).map(|(slot, _)| slot).collect()
    }

    /// The command is answered; its task goes on.
    fn answer(&mut self, slot: Slot, outcome: Outcome) {
        let Some(entry) = self.tasks.get_mut(slot) else { return };
        let Some(session) = self.sessions.get_mut(entry.session) else { return };
        forget_tag(session, entry, &mut self.reorder);
        entry.is_background = true;
        session.background += 1;
        let (itt, edtl, connection) = (entry.itt, entry.edtl, session.connection);
        if let Some(connection) = connection {
            self.reply(connection, Reply::begun(itt, outcome, edtl, slot));
        }
    }

    /// The task is over. RFC 7143 §11.4.2: its response must wait until the sequences that are under way have
    /// ended, however early the outcome is known.
    pub(crate) fn end_after_data(&mut self, slot: Slot, outcome: Outcome, env: &mut Env<'_>) {
        let Some(entry) = self.tasks.get_mut(slot) else { return };
        if entry.aborted || entry.ending.is_some() {
            return;
        }
        entry.ending = Some(outcome);
        let is_waiting = entry.transfer.is_waiting();
        if is_waiting || !entry.is_idle() {
            self.stop_task(slot, env);
        }
        if !is_waiting {
            self.end_now(slot, env);
        }
    }

    /// Ends a task with an error of the data phase: nothing that comes for it any more is looked at.
    pub(crate) fn fail_task(&mut self, slot: Slot, outcome: Outcome, env: &mut Env<'_>) {
        let Some(entry) = self.tasks.get_mut(slot) else { return };
        let Some(session) = self.sessions.get_mut(entry.session) else { return };
        if entry.aborted {
            return;
        }
        entry.ending.get_or_insert(outcome);
        let mut lender = Lender::new(env.pool, &mut self.quota, &mut session.share);
        entry.transfer.drain(&mut lender);
        if let Some(connection) = session.connection.and_then(|slot| self.connections.get_mut(slot)) {
            connection.withdraw(entry.itt, |buf| lender.give(buf));
            connection.discard_for(slot, |buf| lender.give(buf));
        }
        self.stop_task(slot, env);
        self.end_now(slot, env);
    }

    /// Nothing more of a task that is over is to begin.
    fn stop_task(&mut self, slot: Slot, env: &mut Env<'_>) {
        let Some(entry) = self.tasks.get_mut(slot) else { return };
        let Some(session) = self.sessions.get_mut(entry.session) else { return };
        let mut lender = Lender::new(env.pool, &mut self.quota, &mut session.share);
        entry.task.abort(&mut self.server);
        entry.unpark(&mut self.server, &mut lender);
        entry.transfer.give_up(&mut lender);
        if entry.task.ios_out() > 0 {
            for &bdev in &entry.bdevs {
                env.below.abandon(bdev, Tag(slot.to_bits()));
            }
            if entry.copies {
                env.below.abandon_copies(Tag(slot.to_bits()));
            }
        }
    }

    /// Whether a task is over and only waits for data or a device.
    pub(crate) fn is_ending(&self, slot: Slot) -> bool {
        self.tasks.get(slot).is_some_and(|entry| entry.ending.is_some())
    }

    /// The initiator owes nothing to a task that is over: answers it, once nothing of it touches the medium any more.
    pub(crate) fn end_now(&mut self, slot: Slot, env: &mut Env<'_>) {
        let Some(entry) = self.tasks.get_mut(slot) else { return };
        if !entry.is_quiet() {
            return;
        }
        let Some(outcome) = entry.ending.take() else { return };
        if entry.is_idle() {
            return self.finish(slot, outcome, env);
        }
        // Reads are still out: it is answered, then treated like an aborted one.
        let (itt, edtl, session) = (entry.itt, entry.edtl, entry.session);
        self.abort_task(slot, None, false, env);
        if let Some(connection) = self.sessions.get(session).and_then(|session| session.connection) {
            self.reply(connection, Reply::ended(itt, outcome, edtl));
        }
    }

    /// Queues the response and ends the task.
    pub(crate) fn finish(&mut self, slot: Slot, outcome: Outcome, env: &mut Env<'_>) {
        let Some(entry) = self.tasks.get_mut(slot) else { return };
        debug_assert_eq!(entry.task.ios_out(), 0);
        if entry.is_background {
            return self.remove_task(slot, env);
        }
        let Some(session) = self.sessions.get_mut(entry.session) else { return };
        let Some(connection) = session.connection.and_then(|slot| self.connections.get_mut(slot)) else {
            return;
        };
        let residual = Residual::of(entry.edtl, outcome.transfer_bytes);
        match entry.held.take() {
            Some((offset, buf)) if outcome.status == Status::Good => {
                connection.queue_data_in(entry, DataIn { offset, buf, is_last: true, end: Some(residual) });
            }
            held => {
                if let Some((offset, buf)) = held {
                    connection.queue_data_in(entry, DataIn { offset, buf, is_last: true, end: None });
                }
                connection.replies.push_back(Reply::Response {
                    itt: entry.itt,
                    status: outcome.status,
                    sense: outcome.sense,
                    residual,
                    exp_data_sn: entry.transfer.data_in_sn,
                    goes_on: None,
                });
            }
        }
        let connection = session.connection;
        forget_tag(session, entry, &mut self.reorder);
        self.remove_task(slot, env);
        self.mark_dirty(connection);
    }

    /// Lets the tasks of a session go on whose turn has come: ORDERED ones when all older ones of their unit have ended,
    /// the others when all older ORDERED and HEAD OF QUEUE ones have.
    pub(crate) fn reorder_session(&mut self, session: Slot, env: &mut Env<'_>) {
        let Some(session) = self.sessions.get_mut(session) else { return };
        session.is_reorder_due = false;
        let mut tasks: Vec<(u64, Slot)> = Vec::with_capacity(session.tasks.len());
        for &slot in session.tasks.values() {
            tasks.extend(self.tasks.get(slot).filter(|entry| !entry.aborted).map(|entry| (entry.born, slot)));
        }
        tasks.sort_unstable();
        // Units with an older task, and whether one of those has a rank.
        let mut units: SmallVec<[(Option<u16>, bool); 4]> = SmallVec::new();
        let mut free: SmallVec<[Slot; 8]> = SmallVec::new();
        for (_, slot) in tasks {
            let Some(entry) = self.tasks.get_mut(slot) else { continue };
            let (unit, has_rank) = (entry.task.lun(), entry.has_rank());
            let older = units.iter_mut().find(|(of, _)| *of == unit);
            let blocked = match (&older, entry.attribute) {
                (None, _) | (_, TaskAttribute::HeadOfQueue) => false,
                (Some(_), TaskAttribute::Ordered) => true,
                (Some((_, ranked)), _) => *ranked,
            };
            if entry.waits && !blocked {
                entry.waits = false;
                free.push(slot);
            }
            match older {
                Some((_, ranked)) => *ranked |= has_rank,
                None => units.push((unit, has_rank)),
            }
        }
        for slot in free {
            self.pump(slot, env);
        }
    }

    /// Tells the initiator of a task that another nexus aborted, once nothing of it touches the medium.
    fn report_aborted_if_quiet(&mut self, slot: Slot) {
        let Some(entry) = self.tasks.get_mut(slot) else { return };
        if !entry.report_aborted || !entry.is_quiet() {
            return;
        }
        entry.report_aborted = false;
        let Some(session) = self.sessions.get_mut(entry.session) else { return };
        forget_tag(session, entry, &mut self.reorder);
        let outcome = Outcome { status: Status::TaskAborted, sense: None, transfer_bytes: 0 };
        if let Some(connection) = session.connection {
            let reply = Reply::ended(entry.itt, outcome, entry.edtl);
            self.reply(connection, reply);
        }
    }

    /// Takes a task that has no IO out from the table, and its buffers home.
    fn remove_task(&mut self, slot: Slot, env: &mut Env<'_>) {
        let Some(mut entry) = self.tasks.remove(slot) else { return };
        let Some(session) = self.sessions.get_mut(entry.session) else { return };
        let mut lender = Lender::new(env.pool, &mut self.quota, &mut session.share);
        entry.transfer.drain(&mut lender);
        entry.transfer.keep_lists(&mut self.spares);
        if let Some((_, buf)) = entry.held.take() {
            lender.give(buf);
        }
        entry.task.release(&mut lender);
        session.entries -= 1;
        session.background -= u32::from(entry.is_background);
        let session = entry.session;
        if let Some(change) = entry.task.take_last_change(&mut self.server) {
            self.propose(Decree::Scsi(change), Asker::Nobody, env);
        }
        self.end_session_if_quiet(session);
    }

    /// Aborts a task: nothing of it is answered or begun any more, and what was about to leave is withdrawn.
    /// With `report`, its initiator is told TASK ABORTED once it is quiet.
    pub(crate) fn abort_task(
        &mut self,
        slot: Slot,
        waiter: Option<(Slot, Until)>,
        report: bool,
        env: &mut Env<'_>,
    ) {
        let Some(entry) = self.tasks.get_mut(slot) else { return };
        let Some(session) = self.sessions.get_mut(entry.session) else { return };
        if entry.aborted && !report && entry.report_aborted {
            // Its own initiator, or the end of its session, has come first.
            entry.report_aborted = false;
            forget_tag(session, entry, &mut self.reorder);
        }
        if !entry.aborted {
            entry.aborted = true;
            // What was answered is nobody's to be told of, and its tag may be another's.
            entry.report_aborted = report && !entry.is_background;
            order_moves(session, entry.session, &mut self.reorder);
            if !report && !entry.is_background {
                forget_tag(session, entry, &mut self.reorder);
            }
            entry.task.abort(&mut self.server);
            let mut lender = Lender::new(env.pool, &mut self.quota, &mut session.share);
            entry.transfer.drain(&mut lender);
            if let Some((_, buf)) = entry.held.take() {
                lender.give(buf);
            }
            entry.unpark(&mut self.server, &mut lender);
            let mut withdrew = false;
            let connection = session.connection.filter(|_| !entry.is_background);
            if let Some(connection) = connection.and_then(|slot| self.connections.get_mut(slot)) {
                withdrew = connection.withdraw(entry.itt, |buf| lender.give(buf));
                connection.discard_for(slot, |buf| lender.give(buf));
            }
            if withdrew {
                let connection = session.connection;
                self.mark_dirty(connection);
            }
            self.counters.aborts += 1;
            let Some(entry) = self.tasks.get_mut(slot) else { return };
            if entry.task.ios_out() > 0 {
                for &bdev in &entry.bdevs {
                    env.below.abandon(bdev, Tag(slot.to_bits()));
                }
                if entry.copies {
                    env.below.abandon_copies(Tag(slot.to_bits()));
                }
            }
        }
        self.report_aborted_if_quiet(slot);
        let Some(entry) = self.tasks.get_mut(slot) else { return };
        if entry.is_idle() {
            self.remove_task(slot, env);
        } else if let Some((waiter, until)) = waiter
            && !entry.is_as_far_as(until)
        {
            entry.waiters.push((waiter, until));
            if let Some(quiesce) = self.quiesces.get_mut(waiter) {
                quiesce.left += 1;
            }
        }
    }

    /// An IO of a task of this core has come back.
    pub fn io_done(&mut self, done: Done, env: &mut Env<'_>) {
        if done.io.tag == FREE_TAG {
            self.server.free_done(&done);
            return self.free_tokens(env);
        }
        let slot = Slot::from_bits(done.io.tag.0);
        let Some(entry) = self.tasks.get_mut(slot) else {
            unreachable!("a task's entry stays until its last IO is back");
        };
        if done.io.op == Op::Read {
            self.counters.read_bytes += done.io.buf.as_ref().map_or(0, |buf| buf.len() as u64);
        } else if done.io.op == Op::Write {
            self.counters.written_bytes += done.io.buf.as_ref().map_or(0, |buf| buf.len() as u64);
        }
        entry.task.io_done(done);
        self.went_on(slot, env);
    }

    /// Gives back what tokens that have ended held, one after the other.
    pub(crate) fn free_tokens(&mut self, env: &mut Env<'_>) {
        if let Some(mut io) = self.server.poll_free() {
            io.tag = FREE_TAG;
            env.below.submit(io);
        }
    }

    /// The answer to a question of a task of this core: from where it asked, so many bytes are alike.
    pub fn status_done(&mut self, tag: Tag, bytes: u64, mapped: bool, env: &mut Env<'_>) {
        let slot = Slot::from_bits(tag.0);
        let Some(entry) = self.tasks.get_mut(slot) else {
            unreachable!("a task's entry stays until its last question is answered");
        };
        entry.task.status_done(bytes, mapped);
        self.went_on(slot, env);
    }

    /// Something of a task has come back.
    fn went_on(&mut self, slot: Slot, env: &mut Env<'_>) {
        let Some(entry) = self.tasks.get_mut(slot) else { return };
        if entry.aborted {
            self.settle_aborted(slot, env);
        } else if entry.ending.is_none() {
            self.pump(slot, env);
        } else if !entry.transfer.is_waiting() {
            self.end_now(slot, env);
        }
    }

    /// A copy of a task of this core has ended.
    pub fn copy_done(&mut self, copied: &Copied, env: &mut Env<'_>) {
        let slot = Slot::from_bits(copied.io.tag.0);
        let Some(entry) = self.tasks.get_mut(slot) else {
            unreachable!("a task's entry stays until its last copy is back");
        };
        entry.task.copy_done(&mut self.server, copied);
        self.went_on(slot, env);
    }

    /// The change that a task proposed has been made everywhere.
    pub(crate) fn task_decreed(&mut self, slot: Slot, applied: Option<Applied>, env: &mut Env<'_>) {
        let Some(entry) = self.tasks.get_mut(slot) else { return };
        entry.proposing = false;
        if (entry.aborted || entry.ending.is_some())
            && let Some(applied) = applied
            && let Some(lun) = entry.task.decreed_in_vain(applied, &self.server)
        {
            // A restart must not take back what others have seen: the end waits for this, too.
            entry.proposing = true;
            self.keeps_due.push_back((slot, lun));
            return self.keep_due(env);
        }
        if entry.aborted {
            return self.settle_aborted(slot, env);
        }
        if entry.ending.is_some() {
            return self.end_now(slot, env);
        }
        let Some(applied) = applied else { unreachable!("this core applies every decree, its own included") };
        entry.task.decreed(applied);
        self.pump(slot, env);
    }

    /// What a task wanted kept is durable, or why it is not.
    pub(crate) fn task_kept(&mut self, slot: Slot, kept: Applied, env: &mut Env<'_>) {
        let Some(entry) = self.tasks.get_mut(slot) else { return };
        entry.proposing = false;
        if entry.aborted {
            return self.settle_aborted(slot, env);
        }
        if entry.ending.is_some() {
            return self.end_now(slot, env);
        }
        entry.task.kept(kept);
        self.pump(slot, env);
    }

    /// Something of an aborted task has come back: tells those who wait for that, and ends it with the last.
    fn settle_aborted(&mut self, slot: Slot, env: &mut Env<'_>) {
        let Some(entry) = self.tasks.get_mut(slot) else { return };
        let (through, waiters) = std::mem::take(&mut entry.waiters)
            .into_iter()
            .partition::<SmallVec<[(Slot, Until); 1]>, _>(|(_, until)| entry.is_as_far_as(*until));
        entry.waiters = waiters;
        self.report_aborted_if_quiet(slot);
        if self.tasks.get(slot).is_some_and(TaskEntry::is_idle) {
            self.remove_task(slot, env);
        }
        for (waiter, _) in through {
            self.quiesce_step(waiter, env);
        }
    }

    /// Lets tasks that wait for buffers try again, when some have come back since they last did, each once. Who got
    /// some goes behind those who got none. Those who have got none for too long end with TASK SET FULL, so that
    /// nothing behind them waits for ever (SAM-5 §5.3.1).
    pub(crate) fn feed_hungry(&mut self, env: &mut Env<'_>) {
        let returns = Some(self.quota.returns());
        if self.hungry.is_empty() || self.fed_at == returns {
            return;
        }
        self.fed_at = returns;
        for _ in 0..self.hungry.len() {
            let Some(slot) = self.hungry.pop_front() else { break };
            let Some(entry) = self.tasks.get_mut(slot) else { continue };
            let since = entry.hungry_since.take();
            let taken = self.pump(slot, env);
            let Some(entry) = self.tasks.get_mut(slot).filter(|entry| entry.hungry_since.is_some()) else {
                continue;
            };
            // It has put itself at the end again.
            if taken > 0 {
                continue;
            }
            entry.hungry_since = since;
            let is_under_way = !entry.is_idle() || entry.transfer.is_waiting();
            // What is to be sent brings buffers back when the initiator reads it.
            // Data that its session was asked for come, or are given up in time.
            let session = self.sessions.get(entry.session);
            let awaits_data = session.is_some_and(|session| session.share.awaits_data());
            let can_wait =
                is_under_way || awaits_data || self.connection_of(slot).is_some_and(|on| !on.is_drained());
            if can_wait || since.is_none_or(|since| env.now.since(since) <= HUNGER_TIMEOUT) {
                self.hungry.pop_back();
                self.unfed.push_back(slot);
            } else {
                self.counters.starved += 1;
                self.finish(
                    slot,
                    Outcome { status: Status::TaskSetFull, sense: None, transfer_bytes: 0 },
                    env,
                );
            }
        }
        while let Some(slot) = self.unfed.pop_back() {
            self.hungry.push_front(slot);
        }
    }

    /// The connection of a task's session.
    pub(crate) fn connection_of(&self, task: Slot) -> Option<&Connection> {
        let session = self.sessions.get(self.tasks.get(task)?.session)?;
        self.connections.get(session.connection?)
    }
}

/// Why [`Target::pump`] does not go on at once.
enum Next {
    /// Something has to happen first.
    Wait,
    /// The command is to be answered; the task goes on.
    Answer(Outcome),
    /// The task is over.
    End(Outcome),
}

/// A task of the session has ended, or is as good as: others may be waiting for that.
fn order_moves(session: &mut Session, slot: Slot, reorder: &mut VecDeque<Slot>) {
    if session.ranked > 0 && !session.is_reorder_due {
        session.is_reorder_due = true;
        reorder.push_back(slot);
    }
}

/// The tag may be used again, and the command's place in the window is free.
fn forget_tag(session: &mut Session, entry: &TaskEntry, reorder: &mut VecDeque<Slot>) {
    session.tasks.remove(&entry.itt);
    session.immediate_tasks -= u32::from(entry.immediate);
    order_moves(session, entry.session, reorder);
    session.ranked -= u32::from(entry.has_rank());
}

/// Sends the R2Ts that may be sent now and whose pieces have buffers.
fn solicit(
    entry: &mut TaskEntry,
    connection: &mut Connection,
    lender: &mut Lender<'_>,
    spares: &mut Spares,
    now: Time,
    outstanding_max: u32,
) {
    while let Some(offset) = entry.transfer.next_r2t_offset(outstanding_max) {
        let limit = entry.transfer.want().min(offset.saturating_add(connection.max_burst_length));
        while entry.transfer.covered_to() < limit {
            let start = entry.transfer.covered_to();
            let end = entry.task.piece_end(start);
            let Some(buf) = lender.reserve((end - start) as usize) else { break };
            entry.transfer.reserve(buf, spares);
            entry.transfer.cover(end);
        }
        let end = limit.min(entry.transfer.covered_to());
        if end == offset {
            return;
        }
        let r2t = entry.transfer.solicit(offset, end - offset);
        entry.transfer.deadline = now + DATA_OUT_TIMEOUT;
        connection.replies.push_back(Reply::R2t { itt: entry.itt, lun: entry.lun, r2t });
    }
}

/// Why a command gets no task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TaskRefused {
    /// The initiator task tag names another task (RFC 7143 §11.17.1: reject reason 09h, invalid PDU field).
    TagInUse,
    /// Reject reason 06h.
    TooManyImmediate,
    /// Answered with TASK SET FULL.
    TableFull,
}
