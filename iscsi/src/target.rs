//! One core's part of the iSCSI target, without a socket: its connections, sessions and tasks, and its replica of
//! what all cores know. `portal` moves its bytes, the node carries its requests and mail.
//!
//! Every method is one event; what it causes for others leaves through [`Below`]. `receive`, `tasks`,
//! `task_management` and `admission` hold the events by subject.

use crate::admission::Settings;
use crate::connection::{COLD_REPLIES_MAX, Connection, Phase};
use crate::decree::{Clerk, DECREES_MAX, Decree, DecreeMail, Outcome};
use crate::keep::Keeps;
use crate::pdu::TaskTag;
use crate::pdu::bhs::tmf_response;
use crate::pdu::encode::AsyncEvent;
use crate::quota::{Lender, Quota};
use crate::reply::{Numbers, Reply};
use crate::session::Session;
use crate::task_management::{Quiesce, Then, WAITS_MAX};
use crate::tasks::{DATA_OUT_TIMEOUT, TASKS_MAX, TaskEntry};
use crate::transfer::Spares;
use crate::units::{UNIT_CHANGES_MAX, UnitChangeError};
use bdev::io::{BdevId, Io, Tag};
use bdev::lent::Lent;
use bdev::storage::CopyIo;
use reactor::Core;
use reactor::buf::{BUF_BYTES_MAX, Buf, Pool};
use reactor::clock::Time;
use reactor::slots::{Slot, Slots};
use std::collections::VecDeque;
use std::fmt;
use std::io::IoSlice;
use std::sync::Arc;
use std::time::Duration;
use tracing::{debug, info};
use vaai::change::{Applied, Change};
use vaai::command::Buffers;
use vaai::limits::STRAIGHT_BYTES_MAX;
use vaai::sense::Sense;
use vaai::server::{ConfigError, DeviceServer};

/// Connections of one core, half-open ones included.
pub const CONNECTIONS_MAX: usize = 1 << 14;

/// Pieces of a read that goes straight: all but the first and last are whole.
const STRAIGHT_PIECES_MAX: usize = STRAIGHT_BYTES_MAX as usize / BUF_BYTES_MAX + 1;

/// A peer that takes none of our bytes for this long is gone.
const BLOCKED_TIMEOUT: Duration = Duration::from_secs(60);

/// How often time-outs are looked at.
pub const TICK: Duration = Duration::from_millis(200);

/// Every how many ticks the tasks' time-outs are looked at.
const TICKS_PER_TASK_SCAN: u64 = 5;

/// What the target needs of the world for one event.
pub struct Env<'a> {
    /// The time of this turn.
    pub now: Time,
    /// The core's buffers.
    pub pool: &'a mut Pool,
    /// Requests and mail on their way.
    pub below: &'a mut dyn Below,
}

impl fmt::Debug for Env<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Env").field("now", &self.now).finish_non_exhaustive()
    }
}

/// Carries what the target causes.
pub trait Below {
    /// A request for the router; its answer comes back through `Target::io_done`.
    fn submit(&mut self, io: Io);
    /// Reads at once, if that can be; see `bdev::storage::Storage::read_now`.
    fn read_now(&mut self, bdev: BdevId, lba: u64, buf: &mut [u8]) -> bool;
    /// Lends what that would read; see `bdev::storage::Storage::lend_now`.
    fn lend_now(&mut self, bdev: BdevId, lba: u64, bytes: usize) -> Option<Lent>;
    /// Writes likewise.
    fn write_now(&mut self, bdev: BdevId, lba: u64, data: &[u8]) -> bool;
    /// A question about what a device has mapped; its answer comes back through `Target::status_done`, in bounded time.
    fn status(&mut self, tag: Tag, bdev: BdevId, from_bytes: u64, bytes: u64);
    /// The asker wants no more of its requests with this tag to begin on this device; those that have are fenced.
    fn abandon(&mut self, bdev: BdevId, tag: Tag);
    /// A copy; its end comes back through `Target::copy_done`.
    fn copy(&mut self, io: CopyIo);
    /// The asker wants no more of its copies with this tag to begin.
    fn abandon_copies(&mut self, tag: Tag);
    /// Mail for another core's target. Barriers are FIFO with the requests and abandonments sent to that core.
    fn post(&mut self, to: Core, mail: Mail);
}

/// Between the targets of different cores.
#[derive(Debug)]
pub enum Mail {
    /// See `decree`.
    Decree(DecreeMail),
    /// Every request that was sent to this core before this has reached its shard.
    Barrier {
        /// The asker's quiesce.
        quiesce: Slot,
    },
    /// It has.
    BarrierPassed {
        /// The asker's quiesce.
        quiesce: Slot,
    },
    /// To core 0: what is reserved of a unit is to be kept.
    Keep {
        /// The asker's task.
        task: Slot,
        /// The unit.
        lun: u16,
    },
    /// It is durable, or why it is not.
    Kept {
        /// The asker's task.
        task: Slot,
        /// How it went.
        kept: Applied,
    },
    /// New settings, for logins from now on.
    Reload(Arc<Settings>),
}

/// Who waits for a decree.
#[derive(Clone, Copy, Debug)]
pub enum Asker {
    /// A task, for its `Change`.
    Task(Slot),
    /// A connection that is about to enter full feature phase.
    Login(Slot),
    /// A task management function.
    Tmf {
        /// Its connection.
        connection: Slot,
        /// The request's tag.
        itt: TaskTag,
    },
    /// The program, by its name for it.
    Program {
        /// The name.
        ticket: u64,
    },
    /// Nobody; it only has to happen.
    Nobody,
}

#[derive(Debug)]
struct Proposal {
    asker: Asker,
    /// What this core's own replica made of it: the same as everywhere.
    applied: Option<vaai::change::Applied>,
    /// The same for a change of the units.
    refused: Option<ConfigError>,
    /// The asker's session ends after its answer.
    ends_session: bool,
    /// Commands of this core before it.
    born: u64,
}

/// Proposals of logins and functions that may wait for their decree on one core; tasks have a place each besides.
const PROPOSALS_MAX: usize = 4 * CONNECTIONS_MAX;

/// The token of a proposal that nobody waits for: names no place.
const NOBODY: u64 = u64::MAX;

/// What has happened on this core since the start.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counters {
    /// Connections accepted.
    pub connections: u64,
    /// Logins that reached full feature phase.
    pub logins: u64,
    /// Logins refused.
    pub logins_refused: u64,
    /// SCSI commands.
    pub commands: u64,
    /// Of them, reads and writes that were done at once and never were tasks.
    pub straight: u64,
    /// Bytes read for initiators.
    pub read_bytes: u64,
    /// Bytes written for initiators.
    pub written_bytes: u64,
    /// Task management functions.
    pub task_management: u64,
    /// Tasks aborted.
    pub aborts: u64,
    /// PDUs rejected.
    pub rejects: u64,
    /// Commands outside the window.
    pub ignored_commands: u64,
    /// Data-Out for tasks that had ended.
    pub stray_data_out: u64,
    /// Header digests that were wrong.
    pub header_digest_errors: u64,
    /// Data digests that were wrong.
    pub data_digest_errors: u64,
    /// Connections dropped by us.
    pub dropped: u64,
    /// Tasks ended because their initiator did not send the data it owed.
    pub late_data_out: u64,
    /// Commands ended with TASK SET FULL for want of buffers.
    pub starved: u64,
    /// Sessions reinstated.
    pub reinstated: u64,
}

/// One core's target.
#[derive(Debug)]
pub struct Target {
    pub(crate) core: Core,
    pub(crate) cores: u16,
    /// Names, access, limits.
    pub settings: Arc<Settings>,
    pub(crate) server: DeviceServer,
    pub(crate) connections: Slots<Connection>,
    pub(crate) sessions: Slots<Session>,
    pub(crate) tasks: Slots<TaskEntry>,
    pub(crate) spares: Spares,
    /// Empty between events: where a read that goes straight gathers its parts.
    pub(crate) lents: Vec<Lent>,
    pub(crate) quiesces: Slots<Quiesce>,
    pub(crate) quota: Quota,
    /// Tasks that wait for buffers.
    pub(crate) hungry: VecDeque<Slot>,
    /// Those of them that got nothing in this round.
    pub(crate) unfed: VecDeque<Slot>,
    /// What the account said when they last tried; `None`: they are to try in any case.
    pub(crate) fed_at: Option<u64>,
    /// Sessions with tasks whose turn may have come.
    pub(crate) reorder: VecDeque<Slot>,
    /// Functions that wait for a decree.
    pub(crate) function_decrees: usize,
    pub(crate) proposals_due: VecDeque<(Decree, Asker)>,
    /// Tasks that want a unit's reservations kept.
    pub(crate) keeps_due: VecDeque<(Slot, u16)>,
    /// Core 0's: what is to be kept, and for whom.
    pub(crate) keeps: Keeps,
    /// Changes of the units that are under way, or in `unit_changes_made`.
    pub(crate) unit_changes: usize,
    /// Their outcomes, until the program takes them.
    pub(crate) unit_changes_made: VecDeque<(u64, Result<(), UnitChangeError>)>,
    proposals: Slots<Proposal>,
    clerk: Clerk,
    to_self: VecDeque<Mail>,
    dirty: VecDeque<Slot>,
    /// Connections that the target has closed itself and whose sockets are still open.
    pub(crate) closed: VecDeque<Slot>,
    ticks: u64,
    /// What has happened.
    pub counters: Counters,
    pub(crate) nexuses: u64,
    pub(crate) tsihs: u32,
    pub(crate) is_stopping: bool,
}

impl Target {
    /// The target of `core` among `cores`, whose pool has `large_buffers` to lend.
    pub fn new(
        core: Core,
        cores: u16,
        settings: Arc<Settings>,
        server: DeviceServer,
        large_buffers: u32,
    ) -> Target {
        Target {
            core,
            cores,
            settings,
            server,
            connections: Slots::with_capacity(CONNECTIONS_MAX),
            sessions: Slots::with_capacity(CONNECTIONS_MAX * 2),
            tasks: Slots::with_capacity(TASKS_MAX),
            spares: Spares::default(),
            lents: Vec::with_capacity(STRAIGHT_PIECES_MAX),
            quiesces: Slots::with_capacity(WAITS_MAX + DECREES_MAX),
            quota: Quota::new(large_buffers),
            hungry: VecDeque::new(),
            unfed: VecDeque::new(),
            fed_at: None,
            reorder: VecDeque::new(),
            function_decrees: 0,
            proposals_due: VecDeque::new(),
            keeps_due: VecDeque::new(),
            keeps: Keeps::default(),
            unit_changes: 0,
            unit_changes_made: VecDeque::with_capacity(UNIT_CHANGES_MAX),
            // A task proposes one thing at a time.
            proposals: Slots::with_capacity(TASKS_MAX + PROPOSALS_MAX + UNIT_CHANGES_MAX),
            clerk: Clerk::new(cores),
            to_self: VecDeque::new(),
            dirty: VecDeque::new(),
            closed: VecDeque::new(),
            ticks: 0,
            counters: Counters::default(),
            nexuses: 0,
            tsihs: 0,
            is_stopping: false,
        }
    }

    /// Sessions and connections that are not yet sessions.
    pub fn load(&self) -> usize {
        self.connections.len()
    }

    /// Sessions open, those that wait for their last IO included.
    pub fn sessions(&self) -> usize {
        self.sessions.len()
    }

    /// The device of a unit.
    pub fn bdev_of(&self, lun: u16) -> Option<BdevId> {
        self.server.bdev_of(lun)
    }

    /// What is still open when no connection is, and all requests have come back: nothing, if this is `None`.
    pub fn leftovers(&self) -> Option<String> {
        let counts = [
            ("sessions", self.sessions.len()),
            ("tasks", self.tasks.len()),
            ("waits for tasks", self.quiesces.len()),
            ("proposals", self.proposals.len()),
            ("functions that wait for a decree", self.function_decrees),
            ("account of buffers that is not even", usize::from(!self.quota.is_zero())),
        ];
        let open = counts.iter().filter(|(_, count)| *count > 0);
        open.map(|(what, count)| format!("{count} {what}")).reduce(|all, one| all + ", " + &one)
    }

    /// Whether a connection still exists.
    pub fn has_connection(&self, slot: Slot) -> bool {
        self.connections.get(slot).is_some()
    }

    /// Whether bytes should be read from a connection: not while it waits for a buffer, nor while it has long
    /// failed to read what we say.
    pub fn wants_input(&self, slot: Slot) -> bool {
        self.connections
            .get(slot)
            .is_some_and(|connection| connection.stalled_since.is_none() && !connection.is_full())
    }

    /// Whether a connection stands still for want of a buffer.
    pub fn is_stalled(&self, slot: Slot) -> bool {
        self.connections.get(slot).is_some_and(|connection| connection.stalled_since.is_some())
    }

    /// Queues a reply.
    pub(crate) fn reply(&mut self, slot: Slot, reply: Reply) {
        let Some(connection) = self.connections.get_mut(slot) else { return };
        if reply.is_cold() {
            connection.cold_queued += 1;
            connection.cold_bytes += reply.cold_bytes();
            if connection.cold_queued > COLD_REPLIES_MAX {
                self.break_connection(slot, &"it asks and does not read the answers");
                return;
            }
        }
        connection.replies.push_back(reply);
        self.mark_dirty(Some(slot));
    }

    pub(crate) fn mark_dirty(&mut self, slot: Option<Slot>) {
        if let Some(slot) = slot
            && let Some(connection) = self.connections.get_mut(slot)
            && !connection.is_dirty
        {
            connection.is_dirty = true;
            self.dirty.push_back(slot);
        }
    }

    /// The next connection that has something to send or is to be closed; the portal flushes it.
    pub fn next_dirty(&mut self) -> Option<Slot> {
        while let Some(slot) = self.dirty.pop_front() {
            if let Some(connection) = self.connections.get_mut(slot) {
                connection.is_dirty = false;
                return Some(slot);
            }
        }
        None
    }

    /// The next connection that is gone without its socket knowing.
    pub fn next_closed(&mut self) -> Option<Slot> {
        self.closed.pop_front()
    }

    /// How many [`Target::next_dirty`] will give at least.
    pub fn dirty_count(&self) -> usize {
        self.dirty.len()
    }

    /// How many slices [`Target::transmit`] may fill.
    pub fn slices(&self, slot: Slot) -> usize {
        let wanted =
            |connection: &Connection| 2 * connection.replies.len() + connection.outbound.slices_wanted();
        self.connections.get(slot).map_or(0, wanted)
    }

    /// What to send next on a connection; fills `slices`, says how many. 0: nothing.
    pub fn transmit<'a>(&'a mut self, slot: Slot, slices: &mut [IoSlice<'a>]) -> usize {
        let Some(connection) = self.connections.get_mut(slot) else { return 0 };
        let session = connection.session().and_then(|session| self.sessions.get_mut(session));
        let numbers = match session {
            Some(session) => {
                let window = session.window();
                Numbers { exp_cmd_sn: window.exp_cmd_sn(), max_cmd_sn: window.max_cmd_sn() }
            }
            None => Numbers {
                exp_cmd_sn: connection.window.exp_cmd_sn(),
                max_cmd_sn: connection.window.max_cmd_sn(),
            },
        };
        connection.encode(|| numbers);
        connection.outbound.slices(slices)
    }

    /// The socket has taken `bytes`.
    pub fn sent(&mut self, slot: Slot, bytes: usize, env: &mut Env<'_>) {
        let Some(connection) = self.connections.get_mut(slot) else { return };
        connection.blocked_since = None;
        if connection.pinged.is_some() {
            // Our ping stands behind what the initiator is still reading.
            connection.pinged = Some(env.now);
        }
        match connection.session().and_then(|session| self.sessions.get_mut(session)) {
            Some(session) => {
                let mut lender = Lender::new(env.pool, &mut self.quota, &mut session.share);
                connection.outbound.sent(bytes, |payload| {
                    if let Some(buf) = payload.into_buf() {
                        lender.give(buf);
                    }
                });
            }
            None => connection.outbound.sent(bytes, drop),
        }
    }

    /// The socket takes no more for now.
    pub fn blocked(&mut self, slot: Slot, now: Time) {
        if let Some(connection) = self.connections.get_mut(slot) {
            connection.blocked_since.get_or_insert(now);
        }
    }

    /// Whether a connection is to be closed now.
    pub fn is_finished(&self, slot: Slot) -> bool {
        self.connections.get(slot).is_none_or(|connection| {
            connection.is_broken
                || (matches!(connection.phase, Phase::Closing { .. }) && connection.is_drained())
        })
    }

    /// The stream makes no sense any more, or its peer is gone: closes it without another word.
    pub(crate) fn break_connection(&mut self, slot: Slot, reason: &dyn fmt::Display) {
        let Some(connection) = self.connections.get_mut(slot) else { return };
        if !connection.is_broken {
            info!(peer = %connection.peer, %reason, "connection dropped");
            connection.is_broken = true;
            self.counters.dropped += 1;
            self.mark_dirty(Some(slot));
        }
    }

    /// Says what is still to be said, then closes.
    pub(crate) fn close_after_flush(&mut self, slot: Slot) {
        let Some(connection) = self.connections.get_mut(slot) else { return };
        connection.phase = Phase::Closing { session: connection.session() };
        self.mark_dirty(Some(slot));
    }

    /// Gives buffers back to the share of a connection's session.
    pub(crate) fn give_back(&mut self, slot: Slot, bufs: Vec<Buf>, env: &mut Env<'_>) {
        let session = self.connections.get(slot).and_then(Connection::session);
        let Some(session) = session.and_then(|session| self.sessions.get_mut(session)) else { return };
        let mut lender = Lender::new(env.pool, &mut self.quota, &mut session.share);
        for buf in bufs {
            lender.give(buf);
        }
    }

    /// The connection is gone, by whoever's will. Its session's tasks are aborted; the session goes when the last
    /// of them is quiet.
    pub fn close_connection(&mut self, slot: Slot, env: &mut Env<'_>) {
        let Some(connection) = self.connections.get_mut(slot) else { return };
        debug!(peer = %connection.peer, "connection closed");
        let session_slot = connection.session();
        let mut bufs = Vec::new();
        let mut keep = |buf: Option<Buf>| bufs.extend(buf);
        if let Some(incoming) = connection.incoming.take()
            && let crate::connection::Destination::Task(data) = incoming.destination
        {
            data.piece.into_iter().chain(data.full).for_each(|piece| keep(Some(piece.buf)));
        }
        connection.replies.drain(..).for_each(|reply| keep(reply.into_buf()));
        connection.outbound.clear(|payload| keep(payload.into_buf()));
        self.give_back(slot, bufs, env);
        self.connections.remove(slot);
        let Some(session_slot) = session_slot else { return };
        let Some(session) = self.sessions.get_mut(session_slot) else { return };
        session.connection = None;
        self.quota.retire(&mut session.share);
        let nexus = session.nexus;
        info!(initiator = %session.initiator_name, tsih = session.tsih, "session ended");
        let mut tasks: Vec<Slot> = session.tasks.values().copied().collect();
        // Nobody could ask how they end (SPC-4: an I_T nexus loss ends copies and forgets results).
        tasks.extend(self.background_of(session_slot));
        for task in tasks {
            self.abort_task(task, None, false, env);
        }
        self.propose(Decree::Scsi(Change::NexusLost { nexus }), Asker::Nobody, env);
        self.end_session_if_quiet(session_slot);
    }

    /// Ends a session that has neither connection nor tasks.
    pub(crate) fn end_session_if_quiet(&mut self, slot: Slot) {
        let Some(session) = self.sessions.get(slot) else { return };
        if session.connection.is_some() || session.entries > 0 {
            return;
        }
        if let Some(session) = self.sessions.remove(slot) {
            self.quota.close(&session.share);
            self.server.close_nexus(session.nexus);
        }
    }

    /// Puts something to all cores; `asker` hears when all have done it. False: too many others wait for a decree;
    /// never so for tasks, nor if nobody waits.
    pub(crate) fn propose(&mut self, decree: Decree, asker: Asker, env: &mut Env<'_>) -> bool {
        let token = match asker {
            Asker::Nobody => Slot::from_bits(NOBODY),
            Asker::Login(_) | Asker::Tmf { .. } if self.proposals.len() >= PROPOSALS_MAX => return false,
            Asker::Program { .. } if self.unit_changes >= UNIT_CHANGES_MAX => return false,
            Asker::Login(_) | Asker::Tmf { .. } | Asker::Task(_) | Asker::Program { .. } => {
                let ends_session = matches!(decree, Decree::TargetReset { cold: true, .. });
                let born = self.counters.commands;
                let proposal = Proposal { asker, applied: None, refused: None, ends_session, born };
                match self.proposals.insert(proposal) {
                    Ok(token) => token,
                    Err(_) => unreachable!("a task proposes one thing at a time, and there is room for all"),
                }
            }
        };
        self.post(Core(0), Mail::Decree(DecreeMail::Propose { token, decree: Box::new(decree) }), env);
        true
    }

    pub(crate) fn propose_due(&mut self, env: &mut Env<'_>) {
        while let Some((decree, asker)) = self.proposals_due.pop_front() {
            self.propose(decree, asker, env);
        }
    }

    pub(crate) fn post(&mut self, to: Core, mail: Mail, env: &mut Env<'_>) {
        if to == self.core {
            self.to_self.push_back(mail);
        } else {
            env.below.post(to, mail);
        }
    }

    /// Tells core 0 that this core is done with a decree.
    pub(crate) fn acknowledge(&mut self, id: Slot, outcome: Outcome, env: &mut Env<'_>) {
        self.post(Core(0), Mail::Decree(DecreeMail::Applied { id, outcome }), env);
    }

    /// Asks every other core to say when it has taken what is on its way there.
    pub(crate) fn send_barriers(&mut self, quiesce: Slot, env: &mut Env<'_>) {
        for core in (0..self.cores).map(Core).filter(|core| *core != self.core) {
            if let Some(quiesce) = self.quiesces.get_mut(quiesce) {
                quiesce.left += 1;
            }
            env.below.post(core, Mail::Barrier { quiesce });
        }
    }

    /// Mail from `from` has arrived.
    pub fn on_mail(&mut self, from: Core, mail: Mail, env: &mut Env<'_>) {
        match mail {
            Mail::Decree(DecreeMail::Propose { token, decree }) => {
                let mut sent = VecDeque::new();
                self.clerk.propose(from, token, decree, &mut |to, mail| sent.push_back((to, mail)));
                self.post_all(sent, env);
            }
            Mail::Decree(DecreeMail::Applied { id, outcome }) => {
                let mut sent = VecDeque::new();
                self.clerk.applied(id, outcome, &mut |to, mail| sent.push_back((to, mail)));
                self.post_all(sent, env);
            }
            Mail::Decree(DecreeMail::Apply { id, asker, token, decree }) => {
                self.apply(id, (asker == self.core).then_some(token), &decree, env);
            }
            Mail::Decree(DecreeMail::Decreed { token, outcome }) => self.on_decreed(token, outcome, env),
            Mail::Barrier { quiesce } => self.post(from, Mail::BarrierPassed { quiesce }, env),
            Mail::BarrierPassed { quiesce } => self.quiesce_step(quiesce, env),
            Mail::Keep { task, lun } => self.keep(from, task, lun, env),
            Mail::Kept { task, kept } => self.task_kept(task, kept, env),
            Mail::Reload(settings) => self.settings = settings,
        }
    }

    fn post_all(&mut self, mut mail: VecDeque<(Core, DecreeMail)>, env: &mut Env<'_>) {
        while let Some((to, mail)) = mail.pop_front() {
            self.post(to, Mail::Decree(mail), env);
        }
    }

    /// This core's share of a decree.
    fn apply(&mut self, id: Slot, own: Option<Slot>, decree: &Decree, env: &mut Env<'_>) {
        let then = Then::Acknowledge { id, outcome: Outcome::default(), barrier: false };
        let until = own.and_then(|token| self.proposals.get(token)).map(|proposal| proposal.born);
        match decree {
            Decree::Scsi(change) => {
                let applied = self.server.apply(change);
                self.note_applied(own, applied);
                if let (Change::ReserveOut { lun, out, .. }, true) = (change, own.is_some()) {
                    let (from, action) = (&out.from, &out.action);
                    info!(lun, initiator = %from.initiator_name, ?action, ok = applied.is_ok(), "persistent reserve out");
                }
                match *change {
                    Change::LunReset { lun, by } if applied.is_ok() => {
                        // With its copies in the background: a reset leaves nothing under way.
                        self.clear_tasks(then, by, until, env, |entry| entry.task.lun() == Some(lun));
                    }
                    Change::ReserveOut { lun, by, ref out } if applied.is_ok() && out.aborts() => {
                        let preempted = self.server.take_preempted();
                        let proposal = own.and_then(|token| self.proposals.get(token));
                        let asker = proposal.and_then(|proposal| match proposal.asker {
                            Asker::Task(task) => self.tasks.get(task).map(|entry| (task, entry.born)),
                            _ => None,
                        });
                        self.abort_preempted(then, (lun, by), asker, &preempted, env);
                    }
                    _ => self.acknowledge(id, Outcome::default(), env),
                }
            }
            Decree::Units(change) => {
                let made = self.server.apply_to_units(change);
                if let Some(proposal) = own.and_then(|token| self.proposals.get_mut(token)) {
                    proposal.refused = made.err();
                }
                match made {
                    Ok(Some(lun)) => self.abort_unit(then, lun, env),
                    Ok(None) | Err(_) => self.acknowledge(id, Outcome::default(), env),
                }
            }
            Decree::ClearTaskSet { lun, by } => {
                if self.server.has_lun(*lun) {
                    let is_its = |entry: &TaskEntry| entry.task.lun() == Some(*lun) && !entry.is_background();
                    self.clear_tasks(then, *by, until, env, is_its);
                } else {
                    self.note_applied(own, Err(Sense::LOGICAL_UNIT_NOT_SUPPORTED));
                    self.acknowledge(id, Outcome::default(), env);
                }
            }
            Decree::TargetReset { by, cold } => {
                for lun in self.server.luns() {
                    // A reset has nothing to refuse.
                    let _ = self.server.apply(&Change::LunReset { lun, by: *by });
                }
                self.clear_tasks(then, *by, until, env, |_| true);
                if *cold {
                    self.drop_sessions_but(*by);
                }
            }
            Decree::Enter { nexus, initiator_name, isid, target_name } => {
                if let Some(Proposal { asker: Asker::Login(connection), .. }) =
                    own.and_then(|token| self.proposals.get(token))
                    && let Some(connection) = self.connections.get_mut(*connection)
                {
                    connection.is_ordered = true;
                }
                self.apply_enter(id, *nexus, (initiator_name, *isid, target_name), env);
            }
        }
    }

    /// What our own replica made of a decree of ours.
    fn note_applied(&mut self, own: Option<Slot>, applied: vaai::change::Applied) {
        if let Some(proposal) = own.and_then(|token| self.proposals.get_mut(token)) {
            proposal.applied = Some(applied);
        }
    }

    /// All cores have applied a decree of ours.
    fn on_decreed(&mut self, token: Slot, outcome: Outcome, env: &mut Env<'_>) {
        let Some(proposal) = self.proposals.remove(token) else { return };
        match proposal.asker {
            Asker::Nobody => {}
            // Preempted tasks that can still do harm are not gone.
            Asker::Task(task) if outcome.stuck => {
                let entry = self.tasks.get_mut(task);
                let applied = entry.map(|entry| entry.task.stuck(proposal.applied));
                self.task_decreed(task, applied, env);
            }
            Asker::Task(task) => self.task_decreed(task, proposal.applied, env),
            Asker::Login(connection) => self.enter(connection, outcome),
            Asker::Program { ticket } => self.unit_change_decreed(ticket, proposal.refused, outcome),
            Asker::Tmf { connection, itt } => {
                self.function_decrees -= 1;
                if outcome.stuck {
                    self.break_connection(connection, &"a device holds a write of an aborted task");
                    return;
                }
                let response = match proposal.applied {
                    // Its unit was removed before its turn came, and what was to be aborted with it.
                    Some(Err(_)) => tmf_response::LUN_DOES_NOT_EXIST,
                    Some(Ok(())) | None => tmf_response::FUNCTION_COMPLETE,
                };
                self.answer_function(connection, itt, response);
                if proposal.ends_session {
                    self.close_after_flush(connection);
                }
            }
        }
    }

    /// Ends what a turn began: mail to ourselves, tasks that wait for buffers or for others to end.
    pub fn turn(&mut self, env: &mut Env<'_>) {
        self.feed_hungry(env);
        self.free_tokens(env);
        while let Some(mail) = self.to_self.pop_front() {
            self.on_mail(self.core, mail, env);
        }
        while let Some(session) = self.reorder.pop_front() {
            self.reorder_session(session, env);
        }
    }

    /// Looks at everything that has a time-out, every [`TICK`].
    pub fn tick(&mut self, env: &mut Env<'_>) {
        let settings = Arc::clone(&self.settings);
        let mut broken: Vec<(Slot, &'static str)> = Vec::new();
        let mut pings: Vec<Slot> = Vec::new();
        let mut starved: Vec<Slot> = Vec::new();
        for (slot, connection) in self.connections.iter_mut() {
            let is_over =
                |since: Option<Time>, limit: Duration| since.is_some_and(|s| env.now.since(s) > limit);
            if connection.is_half_open() && is_over(Some(connection.opened), settings.login_timeout) {
                broken.push((slot, "login took too long"));
            } else if is_over(connection.blocked_since, BLOCKED_TIMEOUT) {
                broken.push((slot, "it takes none of our bytes"));
            } else if is_over(connection.pinged, settings.ping_timeout) {
                broken.push((slot, "it does not answer our ping"));
            } else if is_over(connection.closing_since, settings.login_timeout) {
                broken.push((slot, "it does not take the last words"));
            } else if is_over(connection.stalled_since, crate::receive::STALL_TIMEOUT) {
                starved.push(slot);
            } else if connection.pinged.is_none()
                && matches!(connection.phase, Phase::FullFeature { .. } | Phase::Discovery)
                && is_over(Some(connection.heard), settings.ping_interval)
            {
                connection.pinged = Some(env.now);
                pings.push(slot);
            }
            if matches!(connection.phase, Phase::Closing { .. }) {
                connection.closing_since.get_or_insert(env.now);
            }
        }
        for (slot, reason) in broken {
            self.break_connection(slot, &reason);
        }
        for slot in pings {
            if let Some(connection) = self.connections.get_mut(slot) {
                let ttt = connection.take_tag();
                self.reply(slot, Reply::Ping { ttt });
            }
        }
        for slot in starved {
            self.give_up_on_data(slot, env);
        }
        // The table of tasks may be long, and what is looked for in it takes many seconds.
        self.ticks += 1;
        if self.ticks.is_multiple_of(TICKS_PER_TASK_SCAN) {
            self.expire_data_out(env);
        }
        self.expire_quiesces(env);
        for change in self.server.tick(env.now) {
            self.propose(Decree::Scsi(change), Asker::Nobody, env);
        }
        self.fed_at = None;
    }

    /// Ends tasks whose initiator owes them data for too long. While it is still reading what we said before, our
    /// R2Ts may not even have come to it.
    fn expire_data_out(&mut self, env: &mut Env<'_>) {
        let is_late = |entry: &TaskEntry| !entry.aborted && env.now >= entry.transfer.deadline;
        let late: Vec<Slot> =
            self.tasks.iter().filter(|(_, entry)| is_late(entry)).map(|(slot, _)| slot).collect();
        for task in late {
            if self.connection_of(task).is_some_and(|connection| connection.blocked_since.is_some()) {
                if let Some(entry) = self.tasks.get_mut(task) {
                    entry.transfer.deadline = env.now + DATA_OUT_TIMEOUT;
                }
                continue;
            }
            self.counters.late_data_out += 1;
            self.fail_task(task, crate::admission::data_timeout(), env);
        }
    }

    /// Asks every session to log out within `seconds`, and lets nobody in any more.
    pub fn stop(&mut self, seconds: u16) {
        self.is_stopping = true;
        let slots: Vec<Slot> = self.connections.iter().map(|(slot, _)| slot).collect();
        for slot in slots {
            match self.connections.get(slot).map(|connection| &connection.phase) {
                Some(Phase::FullFeature { .. }) => {
                    self.reply(slot, Reply::Async(AsyncEvent::LogoutRequest { within: seconds }));
                }
                Some(_) => self.close_after_flush(slot),
                None => {}
            }
        }
    }

    /// Drops every session but one.
    fn drop_sessions_but(&mut self, nexus: vaai::command::NexusId) {
        let slots: Vec<Slot> = self
            .sessions
            .iter()
            .filter(|(_, session)| session.nexus != nexus)
            .filter_map(|(_, session)| session.connection)
            .collect();
        for slot in slots {
            self.break_connection(slot, &"target cold reset");
        }
    }
}
