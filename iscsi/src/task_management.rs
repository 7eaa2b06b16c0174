//! Task management (RFC 7143 §11.5), and waiting until what was aborted can do no more harm.
//!
//! A function is answered when nothing of the tasks it names can touch the medium any more: their responses are
//! withdrawn, nothing new is begun, and what a device has already taken is waited for. A read stuck in a device
//! changes nothing and is not waited for. After [`QUIESCE_TIMEOUT`] the session is dropped without an answer; the
//! blocks stay fenced, since shards order every later request behind the one that is stuck.
//!
//! Invariant: everybody who waits is counted: functions by session ([`FUNCTIONS_MAX`]) and by core ([`WAITS_MAX`]).
//! Requests for immediate delivery have no command window that would bound them.

use crate::connection::Connection;
use crate::decree::{Decree, Outcome, under_way_max};
use crate::pdu::TaskTag;
use crate::pdu::bhs::{logout_response, tmf_response};
use crate::pdu::decode::{TaskManagementFunction, TaskManagementRequest};
use crate::reply::Reply;
use crate::session::FUNCTIONS_MAX;
use crate::target::{Asker, CONNECTIONS_MAX, Env, Target};
use crate::tasks::TaskEntry;
use reactor::clock::Time;
use reactor::slots::Slot;
use std::time::Duration;
use tracing::{info, warn};
use vaai::change::Change;
use vaai::command::NexusId;
use vaai::lun::lun_number;

/// How long a function waits for a device before its session is dropped.
pub const QUIESCE_TIMEOUT: Duration = Duration::from_secs(30);

/// Functions and logouts of one core that may wait for a device; one more is rejected.
pub const WAITS_MAX: usize = CONNECTIONS_MAX;

/// What happens when all that a quiesce waits for has come back.
#[derive(Clone, Copy, Debug)]
pub enum Then {
    /// Answer a function on this connection.
    Answer {
        /// The connection.
        connection: Slot,
        /// The request's.
        itt: TaskTag,
    },
    /// Answer a logout on this connection, and close it.
    Leave {
        /// The connection.
        connection: Slot,
        /// The request's.
        itt: TaskTag,
    },
    /// Tell core 0 that this core is done with a decree.
    Acknowledge {
        /// The decree.
        id: Slot,
        /// How it went here.
        outcome: Outcome,
        /// Every shard must have taken what is already on its way to it, too.
        barrier: bool,
    },
}

/// What is waited for of a task that is aborted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Until {
    /// Nothing: it was abandoned, so what has not begun never does, and shards order what comes later behind what has.
    Fenced,
    /// It can't change the medium any more.
    Quiet,
    /// Its device has nothing of it, reads included.
    Idle,
}

/// Who is told TASK ABORTED of what is aborted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tell {
    Nobody,
    AllBut(NexusId),
    All,
}

/// Waits for tasks.
#[derive(Debug)]
pub struct Quiesce {
    /// Tasks, and barriers, still out.
    pub left: u32,
    /// What for.
    pub then: Then,
    /// When to give up.
    pub deadline: Time,
}

impl Target {
    /// A task management request.
    pub(crate) fn on_task_management(
        &mut self,
        slot: Slot,
        request: &TaskManagementRequest,
        env: &mut Env<'_>,
    ) {
        let itt = request.initiator_task_tag;
        let Some(session_slot) = self.connections.get(slot).and_then(Connection::session) else {
            return;
        };
        let Some(session) = self.sessions.get_mut(session_slot) else { return };
        let nexus = session.nexus;
        self.counters.task_management += 1;
        info!(function = ?request.function, lun = ?request.lun, "task management");
        let lun = lun_number(request.lun);
        let of_unit = matches!(
            request.function,
            TaskManagementFunction::AbortTaskSet
                | TaskManagementFunction::ClearTaskSet
                | TaskManagementFunction::LogicalUnitReset
        );
        let lun = match lun {
            Some(lun) if self.server.has_lun(lun) => lun,
            _ if of_unit => {
                let response = tmf_response::LUN_DOES_NOT_EXIST;
                return self.reply(slot, Reply::TaskManagement { itt, response });
            }
            _ => 0,
        };
        if session.functions >= FUNCTIONS_MAX {
            let response = tmf_response::FUNCTION_REJECTED;
            return self.reply(slot, Reply::TaskManagement { itt, response });
        }
        let decree = match request.function {
            TaskManagementFunction::AbortTask => {
                session.functions += 1;
                let task = session.tasks.get(&request.referenced_task_tag).copied();
                return self.abort_one(slot, itt, request.referenced_task_tag, task, env);
            }
            TaskManagementFunction::AbortTaskSet => {
                session.functions += 1;
                return self.abort_where(
                    Then::Answer { connection: slot, itt },
                    Until::Quiet,
                    env,
                    |entry| {
                        entry.session == session_slot
                            && entry.task.lun() == Some(lun)
                            && !entry.is_background()
                    },
                );
            }
            TaskManagementFunction::ClearTaskSet => Decree::ClearTaskSet { lun, by: nexus },
            TaskManagementFunction::LogicalUnitReset => Decree::Scsi(Change::LunReset { lun, by: nexus }),
            TaskManagementFunction::TargetWarmReset => Decree::TargetReset { by: nexus, cold: false },
            TaskManagementFunction::TargetColdReset => Decree::TargetReset { by: nexus, cold: true },
            TaskManagementFunction::TaskReassign => {
                let response = tmf_response::TASK_ALLEGIANCE_REASSIGNMENT_NOT_SUPPORTED;
                return self.reply(slot, Reply::TaskManagement { itt, response });
            }
            TaskManagementFunction::ClearAca | TaskManagementFunction::Unknown(_) => {
                let response = tmf_response::FUNCTION_NOT_SUPPORTED;
                return self.reply(slot, Reply::TaskManagement { itt, response });
            }
        };
        // Each may wait for a device as long as [`QUIESCE_TIMEOUT`]: all cores together must leave places for decrees
        // that log in, log out and change.
        let decrees_max = (under_way_max(self.cores) / 2 / usize::from(self.cores)).max(1);
        if self.function_decrees >= decrees_max
            || !self.propose(decree, Asker::Tmf { connection: slot, itt }, env)
        {
            let response = tmf_response::FUNCTION_REJECTED;
            return self.reply(slot, Reply::TaskManagement { itt, response });
        }
        self.function_decrees += 1;
        if let Some(session) = self.sessions.get_mut(session_slot) {
            session.functions += 1;
        }
    }

    /// Answers a function that was counted.
    pub(crate) fn answer_function(&mut self, slot: Slot, itt: TaskTag, response: u8) {
        let session = self.connections.get(slot).and_then(Connection::session);
        if let Some(session) = session.and_then(|session| self.sessions.get_mut(session)) {
            session.functions -= 1;
        }
        self.reply(slot, Reply::TaskManagement { itt, response });
    }

    /// ABORT TASK. A task that is already done is answered "function complete": what the initiator wants is so
    /// (ESXi takes "task does not exist" for a target gone mad). One whose response waits in this turn's batch has
    /// it withdrawn, so that "complete" is never followed by a status.
    fn abort_one(
        &mut self,
        slot: Slot,
        itt: TaskTag,
        referenced: TaskTag,
        task: Option<Slot>,
        env: &mut Env<'_>,
    ) {
        let then = Then::Answer { connection: slot, itt };
        if let Some(task) = task {
            return self.abort_where_slots(then, Until::Quiet, Tell::Nobody, env, &[task]);
        }
        let (mut withdrawn, mut goes_on) = (Vec::new(), None);
        if let Some(connection) = self.connections.get_mut(slot) {
            goes_on = connection.goes_on(referenced);
            connection.withdraw(referenced, |buf| withdrawn.push(buf));
        }
        self.give_back(slot, withdrawn, env);
        // One that was aborted before, or answered with reads out, may still be in the table.
        let session_slot = self.connections.get(slot).and_then(Connection::session);
        let session = session_slot.and_then(|session| self.sessions.get(session));
        let mut rest = Vec::new();
        if session.is_some_and(|session| session.entries as usize > session.tasks.len()) {
            let is_it = |entry: &TaskEntry| {
                Some(entry.session) == session_slot && entry.itt == referenced && !entry.is_background()
            };
            rest.extend(self.tasks.iter().filter(|(_, entry)| is_it(entry)).map(|(slot, _)| slot));
        }
        // Whose initiator never hears that it goes on, doesn't.
        rest.extend(goes_on.filter(|&slot| self.tasks.get(slot).is_some_and(TaskEntry::is_background)));
        self.abort_where_slots(then, Until::Quiet, Tell::Nobody, env, &rest);
    }

    /// Aborts the tasks for which `which` holds, and goes on with `then` when they are as far as `until`
    /// says.
    pub(crate) fn abort_where(
        &mut self,
        then: Then,
        until: Until,
        env: &mut Env<'_>,
        which: impl Fn(&TaskEntry) -> bool,
    ) {
        let slots: Vec<Slot> =
            self.tasks.iter().filter(|(_, entry)| which(entry)).map(|(slot, _)| slot).collect();
        self.abort_where_slots(then, until, Tell::Nobody, env, &slots);
    }

    /// Aborts all tasks that this number names: their unit is gone, or has become so small that they could reach past
    /// its end. SAM-5 leaves open how commands of a removed unit end. All are told TASK ABORTED, since nobody's own
    /// function did it and writes may be on the medium in part; LOGICAL UNIT NOT SUPPORTED, which the next command of
    /// the unit hears, would mean that this one was never begun. Reads are waited for, too: the device may be closed
    /// behind this.
    pub(crate) fn abort_unit(&mut self, then: Then, lun: u16, env: &mut Env<'_>) {
        let is_meant = |entry: &TaskEntry| entry.task.lun() == Some(lun) || entry.task.copies_on(lun);
        let slots: Vec<Slot> =
            self.tasks.iter().filter(|(_, entry)| is_meant(entry)).map(|(slot, _)| slot).collect();
        self.abort_where_slots(then, Until::Idle, Tell::All, env, &slots);
    }

    /// Aborts the tasks of all nexuses that `which` names, for `by`; others are told TASK ABORTED. Of those
    /// of `by` itself, what came behind the function is not meant (RFC 7143 §4.2.3.4: CmdSN below the function's) and
    /// would never be answered: `until` is the count of commands when it came.
    pub(crate) fn clear_tasks(
        &mut self,
        then: Then,
        by: NexusId,
        until: Option<u64>,
        env: &mut Env<'_>,
        which: impl Fn(&TaskEntry) -> bool,
    ) {
        let is_meant =
            |slot: Slot, born: u64| until.is_none_or(|until| born <= until) || self.is_foreign(slot, by);
        let slots: Vec<Slot> = self
            .tasks
            .iter()
            .filter(|(slot, entry)| which(entry) && is_meant(*slot, entry.born))
            .map(|(slot, _)| slot)
            .collect();
        self.abort_where_slots(then, Until::Quiet, Tell::AllBut(by), env, &slots);
    }

    /// Aborts the tasks of these nexuses on a unit, from which they were preempted (PREEMPT AND ABORT, SPC-4 §5.13.11.5):
    /// they are told TASK ABORTED. A copy that reads or writes the unit now is meant, whichever unit has its command: nothing
    /// of who is fenced is to reach the unit behind the answer.
    ///
    /// `by` itself may be one of them. Then its own task, which asks for this, goes on, and so does what came behind that. Of
    /// the others it is told TASK ABORTED as well: SAM-5 §5.6 has nothing told of what a nexus ends itself, but an iSCSI
    /// initiator doesn't know which of its tasks that were, and would wait for each of them until its own time-out.
    pub(crate) fn abort_preempted(
        &mut self,
        then: Then,
        (lun, by): (u16, NexusId),
        asker: Option<(Slot, u64)>,
        preempted: &[NexusId],
        env: &mut Env<'_>,
    ) {
        let is_meant = |slot: Slot, entry: &TaskEntry| {
            let nexus = self.sessions.get(entry.session).map(|session| session.nexus);
            let Some(nexus) = nexus.filter(|nexus| preempted.contains(nexus)) else { return false };
            if nexus != by {
                return entry.task.lun() == Some(lun) || entry.task.copies_on(lun);
            }
            let came_before = asker.is_none_or(|(task, until)| slot != task && entry.born <= until);
            entry.task.lun() == Some(lun) && came_before
        };
        let meant = self.tasks.iter().filter(|(slot, entry)| is_meant(*slot, entry));
        let slots: Vec<Slot> = meant.map(|(slot, _)| slot).collect();
        self.abort_where_slots(then, Until::Quiet, Tell::All, env, &slots);
    }

    fn is_foreign(&self, task: Slot, by: NexusId) -> bool {
        let session = self.tasks.get(task).and_then(|entry| self.sessions.get(entry.session));
        session.is_some_and(|session| session.nexus != by)
    }

    fn abort_where_slots(&mut self, then: Then, until: Until, tell: Tell, env: &mut Env<'_>, slots: &[Slot]) {
        let waits_for_device = !matches!(then, Then::Acknowledge { .. });
        if waits_for_device && self.quiesces.len() >= WAITS_MAX {
            warn!("too many functions and logouts wait for a device: one is rejected");
            return self.give_up_waiting(then, false, env);
        }
        // The one that is counted now stands for ourselves, until all are marked.
        let quiesce = Quiesce { left: 1, then, deadline: env.now + QUIESCE_TIMEOUT };
        let Ok(quiesce) = self.quiesces.insert(quiesce) else {
            unreachable!("the table has room for every decree that may be under way");
        };
        for &slot in slots {
            let is_told = match tell {
                Tell::Nobody => false,
                Tell::AllBut(by) => self.is_foreign(slot, by),
                Tell::All => true,
            };
            self.abort_task(slot, Some((quiesce, until)), is_told, env);
        }
        if let Then::Acknowledge { barrier: true, .. } = then {
            self.send_barriers(quiesce, env);
        }
        self.quiesce_step(quiesce, env);
    }

    /// One of those that a quiesce waits for is through.
    pub(crate) fn quiesce_step(&mut self, slot: Slot, env: &mut Env<'_>) {
        let Some(quiesce) = self.quiesces.get_mut(slot) else { return };
        quiesce.left -= 1;
        if quiesce.left > 0 {
            return;
        }
        let Some(quiesce) = self.quiesces.remove(slot) else { return };
        match quiesce.then {
            Then::Answer { connection, itt } => {
                self.answer_function(connection, itt, tmf_response::FUNCTION_COMPLETE);
            }
            Then::Leave { connection, itt } => {
                self.reply(connection, Reply::Logout { itt, response: logout_response::CLOSED });
                self.close_after_flush(connection);
            }
            Then::Acknowledge { id, outcome, .. } => self.acknowledge(id, outcome, env),
        }
    }

    /// There is no waiting, or no more waiting, for what a device holds.
    fn give_up_waiting(&mut self, then: Then, waited: bool, env: &mut Env<'_>) {
        match then {
            Then::Answer { connection, itt } if !waited => {
                self.answer_function(connection, itt, tmf_response::FUNCTION_REJECTED);
            }
            Then::Answer { connection, .. } | Then::Leave { connection, .. } => {
                self.break_connection(connection, &"a device holds a write of an aborted task");
            }
            Then::Acknowledge { id, outcome, .. } => {
                self.acknowledge(id, Outcome { stuck: true, ..outcome }, env);
            }
        }
    }

    /// Gives up on devices that hold a write too long: the session that asked is dropped without an answer.
    pub(crate) fn expire_quiesces(&mut self, env: &mut Env<'_>) {
        let late: Vec<Slot> = self
            .quiesces
            .iter()
            .filter(|(_, quiesce)| env.now >= quiesce.deadline)
            .map(|(slot, _)| slot)
            .collect();
        for slot in late {
            let Some(quiesce) = self.quiesces.remove(slot) else { continue };
            warn!(left = quiesce.left, then = ?quiesce.then, "a device holds writes of aborted tasks");
            self.give_up_waiting(quiesce.then, true, env);
        }
    }
}
