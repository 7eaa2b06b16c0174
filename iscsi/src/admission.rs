//! Who comes in, and how a session begins and is left: login, session reinstatement, full feature phase, text,
//! logout.
//!
//! A session enters full feature phase only when all cores have applied [`Decree::Enter`]: an older session of the
//! same name and ISID is closed then, and every request of it has ended or is fenced by its shard.

use crate::access::Access;
use crate::connection::{Connection, Phase};
use crate::decree::{Decree, Outcome as DecreeOutcome};
use crate::discovery::{self, Portal, TextAnswer};
use crate::login::{Login, LoginDone, LoginStep, Status as LoginStatus};
use crate::name::IscsiName;
use crate::negotiate;
use crate::pdu::bhs::logout_response;
use crate::pdu::decode::{LoginRequest, LogoutRequest, RejectReason, TextRequest};
use crate::pdu::encode::TextResponse;
use crate::pdu::{Bhs, TaskTag};
use crate::reply::{self, Reply};
use crate::serial::CommandWindow;
use crate::session::{Identity, Session};
use crate::target::{Asker, Env, Target};
use crate::task_management::{Then, Until};
use crate::text::Outgoing;
use crate::transfer::DataError;
use reactor::clock::Time;
use reactor::slots::Slot;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tracing::{info, warn};
use vaai::command::{NexusId, Outcome};
use vaai::sense::{Sense, SenseKey, Status};
use vaai::server::NexusInfo;

/// Text of a request over several PDUs that is kept until it is whole; and pieces of an answer.
pub(crate) const TEXT_BYTES_MAX: usize = 16 << 10;

/// Requests that a discovery session may send ahead.
pub(crate) const DISCOVERY_COMMANDS_MAX: u32 = 8;

/// What the target is called, who may use it, and its limits. One value for all cores; a reload replaces it whole.
#[derive(Debug)]
pub struct Settings {
    /// Targets, hosts, CHAP.
    pub access: Access,
    /// What we offer.
    pub negotiation: negotiate::Settings,
    /// Where we can be reached; SendTargets lists them.
    pub portals: Vec<SocketAddr>,
    /// Target portal group tag of all of them.
    pub portal_group: u16,
    /// A login that takes longer is dropped.
    pub login_timeout: Duration,
    /// Silence after which we ping.
    pub ping_interval: Duration,
    /// A ping unanswered for this long ends the connection.
    pub ping_timeout: Duration,
    /// Half-open logins and discovery sessions of one core; one more, and the oldest goes.
    pub half_open_max: usize,
    /// Normal sessions of all cores together.
    pub sessions_max: usize,
}

impl Settings {
    /// The relative target port identifier of the portal that was reached: its place in the list, from 1.
    fn relative_port(&self, local: SocketAddr) -> u16 {
        let is_it = |portal: &&SocketAddr| {
            portal.port() == local.port()
                && (portal.ip() == plain(local.ip()) || portal.ip().is_unspecified())
        };
        let place = self.portals.iter().position(|portal| is_it(&portal)).unwrap_or(0);
        place as u16 + 1
    }
}

/// An IPv4 address as itself, also when it came in through an IPv6 socket.
fn plain(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

/// The initiator did not send what it owed in time: 0Bh 4Bh/00h, DATA PHASE ERROR.
pub(crate) fn data_timeout() -> Outcome {
    aborted_command(0x4b, 0x00)
}

/// RFC 7143 §11.4.7.2: the errors of the data phase have sense codes of their own.
pub(crate) fn data_error(error: DataError) -> Outcome {
    match error {
        DataError::UnexpectedUnsolicited => aborted_command(0x0c, 0x0c),
        DataError::IncorrectAmount => aborted_command(0x0c, 0x0d),
        DataError::OutOfSequence => aborted_command(0x4b, 0x00),
    }
}

/// RFC 7143 §11.4.7.2: 0Bh 47h/05h, PROTOCOL SERVICE CRC ERROR.
pub(crate) fn data_digest_error() -> Outcome {
    aborted_command(0x47, 0x05)
}

fn aborted_command(asc: u8, ascq: u8) -> Outcome {
    let sense = Sense::new(SenseKey::AbortedCommand, asc, ascq);
    Outcome { status: Status::CheckCondition, sense: Some(sense.to_bytes(false)), transfer_bytes: 0 }
}

impl Target {
    /// A connection has been accepted. `None`: the table is full.
    pub fn accept(&mut self, local: SocketAddr, peer: SocketAddr, now: Time) -> Option<Slot> {
        let login = Login::new(self.settings.negotiation, self.settings.portal_group);
        let slot = self.connections.insert(Connection::new(local, peer, login, now)).ok()?;
        self.counters.connections += 1;
        Some(slot)
    }

    /// The oldest half-open connection or discovery session, if there are as many as may be. Discovery takes moments,
    /// and nobody has to prove anything for it.
    pub fn half_open_over_bound(&self) -> Option<Slot> {
        let half_open = self.connections.iter().filter(|(_, connection)| {
            connection.is_half_open() || matches!(connection.phase, Phase::Discovery)
        });
        let (count, oldest) = half_open.fold((0, None), |(count, oldest), (slot, connection)| {
            let older = match oldest {
                Some((opened, _)) if opened <= connection.opened => oldest,
                _ => Some((connection.opened, slot)),
            };
            (count + 1, older)
        });
        oldest.filter(|_| count >= self.settings.half_open_max.max(1)).map(|(_, slot)| slot)
    }

    /// A login request is whole.
    pub(crate) fn on_login(&mut self, slot: Slot, request: &LoginRequest, data: &[u8], env: &mut Env<'_>) {
        let settings = Arc::clone(&self.settings);
        let Some(connection) = self.connections.get_mut(slot) else { return };
        let Phase::Login(login) = &mut connection.phase else { return };
        let is_first = login.first_stat_sn().is_none();
        let mut no_random = false;
        let step = login.handle(request, data, &settings.access, &mut |bytes| {
            no_random |= getrandom::fill(bytes).is_err();
        });
        let first_stat_sn = login.first_stat_sn();
        if no_random {
            return self.break_connection(slot, &"the kernel gives no random bytes for a challenge");
        }
        if is_first && let Some(stat_sn) = first_stat_sn {
            connection.stat_sn = stat_sn;
        }
        connection.window = CommandWindow::new(request.cmd_sn, 1);
        match step {
            LoginStep::Reply(reply) => self.say_login(slot, reply),
            LoginStep::Refused(reply, refusal) => {
                info!(peer = %connection.peer, %refusal, "login refused");
                self.counters.logins_refused += 1;
                self.say_login(slot, reply);
                self.close_after_flush(slot);
            }
            LoginStep::Enter(done) => self.begin_entering(slot, done, env),
        }
    }

    fn say_login(&mut self, slot: Slot, reply: crate::login::LoginReply) {
        self.reply(slot, Reply::Login { response: reply.response, text: reply.text });
    }

    fn refuse_login(&mut self, slot: Slot, status: LoginStatus) {
        let Some(connection) = self.connections.get_mut(slot) else { return };
        let (Phase::Login(login) | Phase::Entering(login, _)) = &mut connection.phase else { return };
        info!(peer = %connection.peer, ?status, "login refused");
        let reply = login.refuse(status);
        self.counters.logins_refused += 1;
        self.say_login(slot, reply);
        self.close_after_flush(slot);
    }

    /// All is agreed: what remains is whether there is room, and whether an older session has to go.
    fn begin_entering(&mut self, slot: Slot, done: Box<LoginDone>, env: &mut Env<'_>) {
        if self.is_stopping {
            return self.refuse_login(slot, LoginStatus::ServiceUnavailable);
        }
        if done.tsih != 0 {
            // To add a connection to a session: one is all that a session has (MaxConnections=1).
            let exists = self.sessions.iter().any(|(_, session)| {
                session.tsih == done.tsih && session.initiator_name == done.initiator.as_str()
            });
            let status =
                if exists { LoginStatus::TooManyConnections } else { LoginStatus::SessionDoesNotExist };
            return self.refuse_login(slot, status);
        }
        let Some(connection) = self.connections.get_mut(slot) else { return };
        let Phase::Login(login) = std::mem::replace(&mut connection.phase, Phase::Closing { session: None })
        else {
            return;
        };
        let is_discovery = done.target.is_none();
        self.nexuses += 1;
        let nexus = NexusId(u64::from(self.core.0) << 48 | self.nexuses);
        connection.nexus = nexus;
        connection.cid = done.cid;
        let enter = Decree::Enter {
            nexus,
            initiator_name: done.initiator.as_str().to_owned(),
            isid: done.isid,
            target_name: done.target.as_ref().map(|target| target.as_str().to_owned()).unwrap_or_default(),
        };
        connection.phase = Phase::Entering(login, done);
        if is_discovery {
            self.enter(slot, DecreeOutcome::default());
        } else if !self.propose(enter, Asker::Login(slot), env) {
            self.refuse_login(slot, LoginStatus::OutOfResources);
        }
    }

    /// This core's share of [`Decree::Enter`]: an older session of that name, ISID and target is closed, and what it has
    /// under way is abandoned; every shard has to have heard of that. So is a newcomer that came before in the order of
    /// decrees and is not a session yet: of two that log in at once, the later is the session.
    pub(crate) fn apply_enter(
        &mut self,
        id: Slot,
        nexus: NexusId,
        (initiator_name, isid, target_name): (&str, [u8; 6], &str),
        env: &mut Env<'_>,
    ) {
        let old: Vec<Slot> = self
            .sessions
            .iter()
            .filter(|(_, session)| {
                session.nexus != nexus
                    && session.isid == isid
                    && session.initiator_name == initiator_name
                    && session.target_name == target_name
            })
            .map(|(slot, _)| slot)
            .collect();
        let is_rival = |connection: &Connection| match &connection.phase {
            Phase::Entering(_, done) => {
                connection.is_ordered
                    && connection.nexus != nexus
                    && done.isid == isid
                    && done.initiator.as_str() == initiator_name
                    && done.target.as_ref().is_some_and(|target| target.as_str() == target_name)
            }
            _ => false,
        };
        let rivals: Vec<Slot> = self
            .connections
            .iter()
            .filter(|(_, connection)| is_rival(connection))
            .map(|(slot, _)| slot)
            .collect();
        for rival in rivals {
            self.break_connection(rival, &"another login of the same name and ISID came after it");
        }
        let entering = self.connections.iter().filter(|(_, connection)| {
            connection.is_ordered
                && !connection.is_broken
                && connection.nexus != nexus
                && matches!(connection.phase, Phase::Entering(..))
        });
        let is_live = |slot: Slot, session: &Session| session.connection.is_some() && !old.contains(&slot);
        let live = self.sessions.iter().filter(|(slot, session)| is_live(*slot, session));
        let sessions = (live.count() + entering.count()) as u32;
        let outcome = DecreeOutcome { sessions, ..DecreeOutcome::default() };
        if old.is_empty() {
            return self.acknowledge(id, outcome, env);
        }
        for &session in &old {
            if let Some(connection) = self.sessions.get(session).and_then(|session| session.connection) {
                self.break_connection(connection, &"reinstated by a new login of the same name and ISID");
                self.close_connection(connection, env);
                self.closed.push_back(connection);
                self.counters.reinstated += 1;
            }
        }
        // Those that wait for their last IO were abandoned when their connection went.
        let outcome = DecreeOutcome { reinstated: true, ..outcome };
        let then = Then::Acknowledge { id, outcome, barrier: true };
        self.abort_where(then, Until::Fenced, env, |entry| old.contains(&entry.session));
    }

    /// Every core has made room: full feature phase.
    pub(crate) fn enter(&mut self, slot: Slot, outcome: DecreeOutcome) {
        let DecreeOutcome { reinstated, sessions, .. } = outcome;
        let Some(connection) = self.connections.get(slot).filter(|connection| !connection.is_broken) else {
            return;
        };
        let Phase::Entering(_, done) = &connection.phase else { return };
        if self.is_stopping {
            return self.refuse_login(slot, LoginStatus::ServiceUnavailable);
        }
        if done.target.is_none() {
            return self.enter_discovery(slot);
        }
        // Those that only wait for a device are not counted, but have a TSIH and a place in the table.
        let is_room = (sessions as usize) < self.settings.sessions_max
            && self.sessions.len() < usize::from(0xfffe / self.cores)
            && !self.sessions.is_full();
        let share = if is_room { self.quota.open().ok() } else { None };
        let Some(share) = share else {
            warn!(
                sessions,
                here = self.sessions.len(),
                "no room for another session: raise memory or max_sessions"
            );
            return self.refuse_login(slot, LoginStatus::OutOfResources);
        };
        let relative_port = self.settings.relative_port(connection.local);
        let tsih = self.free_tsih();
        let Some(connection) = self.connections.get_mut(slot) else { return };
        let nexus = connection.nexus;
        let Phase::Entering(mut login, done) =
            std::mem::replace(&mut connection.phase, Phase::Closing { session: None })
        else {
            return;
        };
        let reply = login.accept(tsih);
        let parameters = done.parameters;
        let initiator_name = done.initiator.as_str().to_owned();
        let target_name = done.target.as_ref().map(|target| target.as_str().to_owned()).unwrap_or_default();
        let identity =
            Identity { initiator_name: initiator_name.clone(), isid: done.isid, target_name, tsih };
        let session = Session::new(nexus, identity, parameters, slot, done.cmd_sn, share);
        let Ok(session) = self.sessions.insert(session) else {
            unreachable!("the table was not full");
        };
        connection.phase = Phase::FullFeature { session };
        connection.set_parameters(&parameters);
        connection.target.clone_from(&done.target);
        connection.initiator = Some(done.initiator.clone());
        self.counters.logins += 1;
        info!(
            initiator = %initiator_name, peer = %connection.peer, tsih, reinstated, ?parameters,
            "session entered full feature phase"
        );
        let info = NexusInfo { initiator_name, isid: done.isid, relative_port, after_loss: reinstated };
        self.server.open_nexus(nexus, info);
        self.say_login(slot, reply);
    }

    fn enter_discovery(&mut self, slot: Slot) {
        let tsih = self.free_tsih();
        let Some(connection) = self.connections.get_mut(slot) else { return };
        let Phase::Entering(mut login, done) = std::mem::replace(&mut connection.phase, Phase::Discovery)
        else {
            return;
        };
        connection.set_parameters(&done.parameters);
        connection.window.grant(DISCOVERY_COMMANDS_MAX);
        connection.initiator = Some(done.initiator.clone());
        info!(initiator = %done.initiator.as_str(), peer = %connection.peer, "discovery session");
        let reply = login.accept(tsih);
        self.say_login(slot, reply);
    }

    /// A TSIH that no session of this core has: cores never give the same, since each has its own residue.
    fn free_tsih(&mut self) -> u16 {
        let cores = u32::from(self.cores);
        loop {
            self.tsihs = self.tsihs.wrapping_add(1);
            let tsih = 1 + u32::from(self.core.0) + cores * (self.tsihs % (0xfffe / cores));
            let tsih = tsih as u16;
            if !self.sessions.iter().any(|(_, session)| session.tsih == tsih) {
                return tsih;
            }
        }
    }

    /// A text request (RFC 7143 §11.10): SendTargets, or a change of MaxRecvDataSegmentLength.
    pub(crate) fn on_text(&mut self, slot: Slot, bhs: &Bhs, request: &TextRequest, data: &[u8]) {
        let settings = Arc::clone(&self.settings);
        let Some(connection) = self.connections.get_mut(slot) else { return };
        let Some(initiator) = connection.initiator.clone() else { return };
        let is_more = !request.target_transfer_tag.is_reserved();
        if is_more {
            // The initiator asks for the rest of an answer, or goes on with its question.
            match &connection.text_out {
                Some((tag, _)) if *tag == request.target_transfer_tag && data.is_empty() => {
                    return self.say_text(slot, request);
                }
                _ if connection.text_tag == Some(request.target_transfer_tag) => {}
                _ => return self.reject(slot, bhs, RejectReason::ProtocolError),
            }
        } else {
            connection.text.clear();
            connection.text_out = None;
        }
        if connection.text.len() + data.len() > TEXT_BYTES_MAX {
            connection.text.clear();
            return self.reject(slot, bhs, RejectReason::LongOperationReject);
        }
        connection.text.extend_from_slice(data);
        if request.text_continues {
            // RFC 7143 §6.2: an empty response asks for the rest.
            let tag = connection.take_tag();
            connection.text_tag = Some(tag);
            let response = TextResponse {
                is_final: false,
                text_continues: false,
                lun: request.lun,
                initiator_task_tag: request.initiator_task_tag,
                target_transfer_tag: tag,
                data_bytes: 0,
            };
            return self.reply(slot, Reply::Text { response, text: Vec::new() });
        }
        connection.text_tag = None;
        let text = std::mem::take(&mut connection.text);
        let portal = |address| Portal { address, group_tag: settings.portal_group };
        let reached = SocketAddr::new(plain(connection.local.ip()), connection.local.port());
        let asker = discovery::Asker {
            initiator: &initiator,
            target: connection.target.as_ref(),
            reached: portal(reached),
        };
        let portals: Vec<Portal> = settings.portals.iter().copied().map(portal).collect();
        match discovery::answer(&text, &asker, &settings.access, &portals) {
            TextAnswer::Reject(reason) => self.reject(slot, bhs, reason),
            TextAnswer::Reply { text, their_max_recv_data_segment_length } => {
                let tag = connection.take_tag();
                connection.text_out = Some((tag, Outgoing::new(text)));
                self.say_text(slot, request);
                let Some(connection) = self.connections.get_mut(slot) else { return };
                if let Some(bytes) = their_max_recv_data_segment_length {
                    connection.their_segment_bytes_max = bytes;
                }
            }
        }
    }

    /// The next piece of a text answer, as long as the initiator takes.
    fn say_text(&mut self, slot: Slot, request: &TextRequest) {
        let Some(connection) = self.connections.get_mut(slot) else { return };
        let bytes_max = connection.their_segment_bytes_max as usize;
        let Some((tag, outgoing)) = &mut connection.text_out else { return };
        let (piece, more) = outgoing.next_piece(bytes_max);
        let text = piece.to_vec();
        // RFC 7143 §11.11.1: F in answer to F only; without it the initiator has more to say.
        let is_final = !more && request.is_final;
        if !more && !is_final {
            connection.text_tag = Some(*tag);
        }
        let response = TextResponse {
            is_final,
            text_continues: more,
            lun: request.lun,
            initiator_task_tag: request.initiator_task_tag,
            target_transfer_tag: if is_final { TaskTag::RESERVED } else { *tag },
            data_bytes: text.len() as u32,
        };
        if !more {
            connection.text_out = None;
        }
        self.reply(slot, Reply::Text { response, text });
    }

    /// A logout (RFC 7143 §11.14): open tasks end without an answer; when nothing of them can touch the medium any more
    /// it is answered, and the session ends.
    pub(crate) fn on_logout(&mut self, slot: Slot, request: &LogoutRequest, env: &mut Env<'_>) {
        let Some(connection) = self.connections.get_mut(slot) else { return };
        let itt = request.initiator_task_tag;
        let response = reply::logout_response(request.reason, request.cid == connection.cid);
        if response != logout_response::CLOSED {
            return self.reply(slot, Reply::Logout { itt, response });
        }
        connection.is_leaving = true;
        let session = connection.session();
        let then = Then::Leave { connection: slot, itt };
        self.abort_where(then, Until::Quiet, env, |entry| Some(entry.session) == session);
    }

    /// The name of the initiator on a connection, once it has logged in.
    pub fn initiator(&self, slot: Slot) -> Option<&IscsiName> {
        self.connections.get(slot)?.initiator.as_ref()
    }
}
