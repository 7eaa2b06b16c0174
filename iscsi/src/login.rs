//! The login phase of a connection (RFC 7143 §6): stages, names, authentication, operational parameters.
//!
//! [`Login::handle`] takes one request after the other and says what to send. It never lets a connection into full
//! feature phase by itself: at [`LoginStep::Enter`] everything is agreed, the caller sees to the session (an old
//! one of the same name and ISID has to be gone first) and then says [`Login::accept`] or [`Login::refuse`].
//!
//! Nobody is known here yet, so all is bounded: text by `text`, requests by [`REQUESTS_MAX`]; time by the caller.
//! Invariant: `Authentication::Done` comes before any operational stage, and before `Enter`.

use std::fmt;

use crate::access::{Access, Admission, Availability, DiscoveryRule};
use crate::chap::{self, Chap, ChapError, Exchange};
use crate::name::{IscsiName, NameError};
use crate::negotiate::{
    Key, Negotiation, NegotiationError, Parameters, SEGMENT_BYTES_DEFAULT, SessionType, Settings,
};
use crate::pdu::TaskTag;
use crate::pdu::decode::{LoginRequest, Stage};
use crate::pdu::encode::{LoginResponse, VERSION};
use crate::serial::{CmdSn, StatSn};
use crate::text::{Collector, Outgoing, Pairs, Text, TextError, VALUE_BYTES_MAX};

/// Requests of one login. Real ones take two to five; a long text may come in pieces.
pub const REQUESTS_MAX: u32 = 32;

/// How a login ends, class and detail (RFC 7143 §11.13.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Status {
    /// All is well.
    Success = 0x0000,
    /// The initiator made a mistake that has no code of its own.
    InitiatorError = 0x0200,
    /// It is not who it says, or won't prove it.
    AuthenticationFailure = 0x0201,
    /// It may not log in here.
    AuthorizationFailure = 0x0202,
    /// No such target.
    NotFound = 0x0203,
    /// The target is gone for good.
    TargetRemoved = 0x0204,
    /// We don't speak that version.
    UnsupportedVersion = 0x0205,
    /// The session has as many connections as it can.
    TooManyConnections = 0x0206,
    /// A name is missing.
    MissingParameter = 0x0207,
    /// Neither Discovery nor Normal.
    SessionTypeNotSupported = 0x0209,
    /// TSIH names no session.
    SessionDoesNotExist = 0x020a,
    /// A request that is not for the login phase.
    InvalidDuringLogin = 0x020b,
    /// We failed.
    TargetError = 0x0300,
    /// Not now.
    ServiceUnavailable = 0x0301,
    /// Too many sessions or logins.
    OutOfResources = 0x0302,
}

/// Why a login was refused, for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// More than [`REQUESTS_MAX`].
    TooManyRequests,
    /// The lowest version that the initiator speaks.
    Version(u8),
    /// ISID, TSIH or CID are others than in the first request.
    ChangedIdentity,
    /// CSG is not the stage that the login is in.
    WrongStage(Stage),
    /// T with an NSG that can't follow CSG.
    WrongTransition(Stage, Stage),
    /// T and C together, or text where we are not done with ours.
    Continuation,
    /// Text that is no text.
    Text(TextError),
    /// A key that the first request must have.
    Missing(Key),
    /// A key said again with another value.
    Redeclared(Key),
    /// A name that is none.
    Name(Key, NameError),
    /// A SessionType that is none.
    SessionType,
    /// No rule lets the initiator in.
    NotAllowed(IscsiName),
    /// No such target.
    NoTarget(IscsiName),
    /// The target takes no logins.
    Unavailable(IscsiName, Availability),
    /// Proof is required and was not offered, or not before the stage was to be left.
    NotAuthenticated,
    /// Nothing in AuthMethod that we can do.
    NoAuthMethod,
    /// CHAP failed.
    Chap(ChapError),
    /// The parameters can't be agreed.
    Negotiation(NegotiationError),
}

impl Refusal {
    /// What the initiator is told.
    pub fn status(&self) -> Status {
        match self {
            Refusal::TooManyRequests
            | Refusal::ChangedIdentity
            | Refusal::WrongStage(_)
            | Refusal::WrongTransition(..)
            | Refusal::Continuation
            | Refusal::Text(_)
            | Refusal::Redeclared(_)
            | Refusal::Name(..)
            | Refusal::Negotiation(_) => Status::InitiatorError,
            Refusal::Version(_) => Status::UnsupportedVersion,
            Refusal::Missing(_) => Status::MissingParameter,
            Refusal::SessionType => Status::SessionTypeNotSupported,
            Refusal::NotAllowed(_) => Status::AuthorizationFailure,
            Refusal::NoTarget(_) => Status::NotFound,
            Refusal::Unavailable(_, Availability::Removed) => Status::TargetRemoved,
            Refusal::Unavailable(..) => Status::ServiceUnavailable,
            Refusal::NotAuthenticated | Refusal::NoAuthMethod | Refusal::Chap(_) => {
                Status::AuthenticationFailure
            }
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::TooManyRequests => write!(f, "more than {REQUESTS_MAX} requests"),
            Refusal::Version(version) => write!(f, "iSCSI version {version} or later is asked for"),
            Refusal::ChangedIdentity => write!(f, "ISID, TSIH or CID changed between requests"),
            Refusal::WrongStage(stage) => {
                write!(f, "a request for {stage:?}, which is not the stage of the login")
            }
            Refusal::WrongTransition(from, to) => write!(f, "a transition from {from:?} to {to:?}"),
            Refusal::Continuation => write!(f, "text that is continued where it can't be"),
            Refusal::Text(error) => write!(f, "{error}"),
            Refusal::Missing(key) => write!(f, "{} is missing", key.name()),
            Refusal::Redeclared(key) => write!(f, "{} changed between requests", key.name()),
            Refusal::Name(key, error) => write!(f, "{} {error}", key.name()),
            Refusal::SessionType => write!(f, "SessionType is neither Normal nor Discovery"),
            Refusal::NotAllowed(initiator) => write!(f, "no rule lets {initiator} in"),
            Refusal::NoTarget(target) => write!(f, "there is no target {target}"),
            Refusal::Unavailable(target, availability) => write!(f, "target {target} is {availability:?}"),
            Refusal::NotAuthenticated => write!(f, "CHAP is required and was not done"),
            Refusal::NoAuthMethod => write!(f, "no common AuthMethod"),
            Refusal::Chap(error) => write!(f, "{error}"),
            Refusal::Negotiation(error) => write!(f, "{error}"),
        }
    }
}

impl From<TextError> for Refusal {
    fn from(error: TextError) -> Refusal {
        Refusal::Text(error)
    }
}

impl From<ChapError> for Refusal {
    fn from(error: ChapError) -> Refusal {
        Refusal::Chap(error)
    }
}

impl From<NegotiationError> for Refusal {
    fn from(error: NegotiationError) -> Refusal {
        Refusal::Negotiation(error)
    }
}

/// A Login Response, ready but for its numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoginReply {
    /// The fields; `data_bytes` is the length of the text.
    pub response: LoginResponse,
    /// The data segment, at most 8192 bytes.
    pub text: Vec<u8>,
}

/// What comes of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum LoginStep {
    /// Send this; the next request will come.
    Reply(LoginReply),
    /// All is agreed. See to the session, then [`Login::accept`] or [`Login::refuse`]; nothing may be handled
    /// in between.
    Enter(Box<LoginDone>),
    /// Send this, then close. The login is over.
    Refused(LoginReply, Refusal),
}

/// What a login agreed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoginDone {
    /// InitiatorName.
    pub initiator: IscsiName,
    /// InitiatorAlias, if it has one.
    pub initiator_alias: Option<String>,
    /// TargetName; `None` for a discovery session.
    pub target: Option<IscsiName>,
    /// The CHAP user that the initiator proved to be, if any.
    pub user: Option<String>,
    /// ISID.
    pub isid: [u8; 6],
    /// 0: a new session, in place of one of the same name, ISID and target (RFC 7143 §6.3.5). Otherwise to join
    /// a session, which one connection a session forbids: refuse with [`Status::TooManyConnections`] if there
    /// is such a session, else with [`Status::SessionDoesNotExist`].
    pub tsih: u16,
    /// CID.
    pub cid: u16,
    /// The CmdSN of the first command in full feature phase.
    pub cmd_sn: CmdSn,
    /// The parameters.
    pub parameters: Parameters,
}

/// The requests of one connection until it is in full feature phase.
#[derive(Debug)]
pub struct Login {
    negotiation: Negotiation,
    group_tag: u16,
    requests: u32,
    /// Of the first request, and the stage that the login is in.
    begun: Option<Begun>,
    /// Text of which more is to come.
    collector: Collector,
    /// Said by the first whole text.
    peer: Option<Peer>,
    authentication: Authentication,
    /// TargetPortalGroupTag has been said.
    is_tag_said: bool,
    /// Our text and what is to follow it, while it is on its way.
    answer: Option<Answer>,
}

/// What may not change from request to request.
#[derive(Clone, Copy, Debug)]
struct Begun {
    isid: [u8; 6],
    tsih: u16,
    cid: u16,
    exp_stat_sn: StatSn,
    stage: Stage,
    /// Of the last request, to be said in the response.
    initiator_task_tag: TaskTag,
    cmd_sn: CmdSn,
}

/// Who logs in to what.
#[derive(Debug)]
struct Peer {
    initiator: IscsiName,
    alias: Option<String>,
    session_type: SessionType,
    /// `Some` in normal sessions, exactly.
    target: Option<IscsiName>,
}

/// How far the proof has come.
#[derive(Debug)]
enum Authentication {
    /// AuthMethod has not been agreed.
    Undecided,
    /// It is CHAP; CHAP_A comes next.
    Chap,
    /// The challenge is out.
    Challenged(Exchange),
    /// Nothing to prove, or proved by this user.
    Done(Option<String>),
}

/// A text that we send, perhaps in pieces.
#[derive(Debug)]
struct Answer {
    text: Outgoing,
    /// The stage that follows the last piece.
    next: Option<Stage>,
    /// The last piece, once full feature phase waits for the caller.
    held: Vec<u8>,
}

impl Login {
    /// A connection that has said nothing yet, on a portal of that group.
    pub fn new(settings: Settings, group_tag: u16) -> Login {
        Login {
            negotiation: Negotiation::new(settings),
            group_tag,
            requests: 0,
            begun: None,
            collector: Collector::default(),
            peer: None,
            authentication: Authentication::Undecided,
            is_tag_said: false,
            answer: None,
        }
    }

    /// Takes a request with its data segment. `random` fills its argument with unpredictable bytes.
    pub fn handle(
        &mut self,
        request: &LoginRequest,
        data: &[u8],
        access: &Access,
        random: &mut dyn FnMut(&mut [u8]),
    ) -> LoginStep {
        match self.step(request, data, access, random) {
            Ok(step) => step,
            Err(refusal) => LoginStep::Refused(self.refuse(refusal.status()), refusal),
        }
    }

    /// Our StatSN begins with what the first request expects; `None` before that.
    pub fn first_stat_sn(&self) -> Option<StatSn> {
        self.begun.map(|begun| begun.exp_stat_sn)
    }

    /// InitiatorName, once it has been said; not proved yet.
    pub fn initiator(&self) -> Option<&IscsiName> {
        self.peer.as_ref().map(|peer| &peer.initiator)
    }

    /// The last response of a login that succeeded: full feature phase begins behind it. `tsih` names the session.
    ///
    /// # Panics
    /// When the last step was not [`LoginStep::Enter`], or `tsih` is 0.
    pub fn accept(&mut self, tsih: u16) -> LoginReply {
        assert_ne!(tsih, 0, "a session's TSIH is not 0 (RFC 7143 §11.12.6)");
        match self.answer.take() {
            Some(Answer { next: Some(Stage::FullFeature), held, text }) if text.is_sent() => {
                let mut reply = self.reply(Some(Stage::FullFeature), false, held);
                reply.response.tsih = tsih;
                reply
            }
            _ => unreachable!("accepted what has not been agreed"),
        }
    }

    /// The last response of a login that failed; then close. Right at any time, also for requests that are no
    /// login requests ([`Status::InvalidDuringLogin`]) and before the first.
    pub fn refuse(&mut self, status: Status) -> LoginReply {
        self.answer = None;
        let mut reply = self.reply(None, false, Vec::new());
        reply.response.status = status as u16;
        reply
    }

    fn step(
        &mut self,
        request: &LoginRequest,
        data: &[u8],
        access: &Access,
        random: &mut dyn FnMut(&mut [u8]),
    ) -> Result<LoginStep, Refusal> {
        self.check_header(request)?;
        if let Some(answer) = self.answer.take() {
            // RFC 7143 §11.13.3: until our text is out, the requests are empty.
            if request.text_continues || !data.is_empty() {
                return Err(Refusal::Continuation);
            }
            return self.send(answer);
        }
        self.collector.push(data)?;
        if request.text_continues {
            return Ok(LoginStep::Reply(self.reply(None, false, Vec::new())));
        }
        let text = self.collector.take();
        let pairs = Pairs::parse(&text)?;
        self.identify(&pairs)?;
        let (session_type, required, chap) = self.admission(access)?;
        let mut reply = Text::default();
        self.introduce(access, &mut reply);
        if self.stage() == Stage::Security {
            self.authenticate(&pairs, required, chap, random, &mut reply)?;
        } else {
            self.check_authenticated(required)?;
            for key in [Key::AuthMethod, Key::ChapA, Key::ChapI, Key::ChapC, Key::ChapN, Key::ChapR] {
                if pairs.get(key.name()).is_some() {
                    reply.push(key.name(), "Reject");
                }
            }
            self.negotiation.declare(&mut reply);
        }
        if pairs.get(Key::SendTargets.name()).is_some() {
            reply.push(Key::SendTargets.name(), "Reject");
        }
        self.negotiation.offers(session_type, &pairs, &mut reply)?;
        let next =
            if request.transit { self.next_stage(request.next_stage, &pairs, required)? } else { None };
        self.send(Answer { text: Outgoing::new(reply.into_bytes()), next, held: Vec::new() })
    }

    /// What a header alone can have wrong.
    fn check_header(&mut self, request: &LoginRequest) -> Result<(), Refusal> {
        let first = Begun {
            isid: request.isid,
            tsih: request.tsih,
            cid: request.cid,
            exp_stat_sn: request.exp_stat_sn,
            stage: request.current_stage,
            initiator_task_tag: request.initiator_task_tag,
            cmd_sn: request.cmd_sn,
        };
        let begun = self.begun.get_or_insert(first);
        begun.initiator_task_tag = request.initiator_task_tag;
        begun.cmd_sn = request.cmd_sn;
        self.requests += 1;
        if self.requests > REQUESTS_MAX {
            return Err(Refusal::TooManyRequests);
        }
        if request.version_min > VERSION {
            return Err(Refusal::Version(request.version_min));
        }
        if (begun.isid, begun.tsih, begun.cid) != (request.isid, request.tsih, request.cid) {
            return Err(Refusal::ChangedIdentity);
        }
        if request.current_stage != begun.stage
            || !matches!(begun.stage, Stage::Security | Stage::Operational)
        {
            return Err(Refusal::WrongStage(request.current_stage));
        }
        if request.transit {
            if request.text_continues {
                return Err(Refusal::Continuation);
            }
            // RFC 7143 §11.12.3: forward, and from the first stage also past the second.
            match (request.current_stage, request.next_stage) {
                (Stage::Security, Stage::Operational) | (_, Stage::FullFeature) => {}
                (from, to) => return Err(Refusal::WrongTransition(from, to)),
            }
        }
        Ok(())
    }

    fn stage(&self) -> Stage {
        self.begun.map_or(Stage::Security, |begun| begun.stage)
    }

    /// Takes the names out of the first text. Later ones may say them again, unchanged: libiscsi does.
    fn identify(&mut self, pairs: &Pairs<'_>) -> Result<(), Refusal> {
        let name = |key: Key| {
            let parse = |name| IscsiName::parse(name).map_err(|error| Refusal::Name(key, error));
            pairs.get(key.name()).map(parse).transpose()
        };
        let initiator = name(Key::InitiatorName)?;
        let session_type = match pairs.get(Key::SessionType.name()) {
            None => None,
            Some("Normal") => Some(SessionType::Normal),
            Some("Discovery") => Some(SessionType::Discovery),
            Some(_) => return Err(Refusal::SessionType),
        };
        let Some(peer) = &self.peer else {
            let initiator = initiator.ok_or(Refusal::Missing(Key::InitiatorName))?;
            let session_type = session_type.unwrap_or_default();
            let target = match session_type {
                // A target is of no meaning there (RFC 7143 §13.4).
                SessionType::Discovery => None,
                SessionType::Normal => Some(name(Key::TargetName)?.ok_or(Refusal::Missing(Key::TargetName))?),
            };
            let alias = pairs.get(Key::InitiatorAlias.name()).filter(|alias| alias.len() <= VALUE_BYTES_MAX);
            self.peer = Some(Peer { initiator, alias: alias.map(String::from), session_type, target });
            return Ok(());
        };
        if initiator.is_some_and(|initiator| initiator != peer.initiator) {
            return Err(Refusal::Redeclared(Key::InitiatorName));
        }
        if session_type.is_some_and(|session_type| session_type != peer.session_type) {
            return Err(Refusal::Redeclared(Key::SessionType));
        }
        if peer.target.is_some() && name(Key::TargetName)?.is_some_and(|target| Some(target) != peer.target) {
            return Err(Refusal::Redeclared(Key::TargetName));
        }
        Ok(())
    }

    /// Whether the initiator may log in to what it wants, whether it has to prove who it is, and by what it can.
    fn admission<'a>(&self, access: &'a Access) -> Result<(SessionType, bool, Option<&'a Chap>), Refusal> {
        let Some(peer) = &self.peer else { unreachable!("identified before") };
        let admission = access.admission(&peer.initiator);
        let is_open =
            peer.session_type == SessionType::Discovery && access.discovery == DiscoveryRule::Everybody;
        if matches!(admission, Admission::Nothing) && !is_open {
            // Before the target is looked up: strangers don't learn what there is.
            return Err(Refusal::NotAllowed(peer.initiator.clone()));
        }
        if let Some(name) = &peer.target {
            let target = access.target(name).ok_or_else(|| Refusal::NoTarget(name.clone()))?;
            if !admission.allows(name) {
                return Err(Refusal::NotAllowed(peer.initiator.clone()));
            }
            if target.availability != Availability::Online {
                return Err(Refusal::Unavailable(name.clone(), target.availability));
            }
        }
        let chap = admission.chap();
        Ok((peer.session_type, chap.is_some() && !is_open, chap))
    }

    /// Says in the first text of a normal session what else there is to know of the target (RFC 7143 §13.9).
    fn introduce(&mut self, access: &Access, reply: &mut Text) {
        let target = self.peer.as_ref().and_then(|peer| access.target(peer.target.as_ref()?));
        let Some(target) = target else { return };
        if std::mem::replace(&mut self.is_tag_said, true) {
            return;
        }
        let fits = |alias: &&String| alias.len() <= VALUE_BYTES_MAX && !alias.contains('\0');
        if let Some(alias) = target.alias.as_ref().filter(fits) {
            reply.push(Key::TargetAlias.name(), alias);
        }
        reply.push(Key::TargetPortalGroupTag.name(), self.group_tag);
    }

    /// One text of the security stage (RFC 7143 §12.1).
    fn authenticate(
        &mut self,
        pairs: &Pairs<'_>,
        required: bool,
        chap: Option<&Chap>,
        random: &mut dyn FnMut(&mut [u8]),
        reply: &mut Text,
    ) -> Result<(), Refusal> {
        if let Some(methods) = pairs.get(Key::AuthMethod.name()) {
            if !matches!(self.authentication, Authentication::Undecided) {
                return Err(NegotiationError::Renegotiated(Key::AuthMethod).into());
            }
            let offers = |method| crate::text::list(methods).any(|offered| offered == method);
            if !required && offers("None") {
                reply.push(Key::AuthMethod.name(), "None");
                self.authentication = Authentication::Done(None);
            } else if chap.is_some() && offers("CHAP") {
                reply.push(Key::AuthMethod.name(), "CHAP");
                self.authentication = Authentication::Chap;
            } else {
                return Err(Refusal::NoAuthMethod);
            }
        }
        let answer = chap::Answer {
            name: pairs.get(Key::ChapN.name()),
            response: pairs.get(Key::ChapR.name()),
            identifier: pairs.get(Key::ChapI.name()),
            challenge: pairs.get(Key::ChapC.name()),
        };
        let is_answer = answer.name.is_some() || answer.response.is_some();
        match (&self.authentication, pairs.get(Key::ChapA.name())) {
            (Authentication::Chap, Some(algorithms)) => {
                // The rule may have changed since CHAP was agreed.
                let chap = chap.ok_or(Refusal::NotAuthenticated)?;
                self.authentication =
                    Authentication::Challenged(Exchange::begin(algorithms, chap, random, reply)?);
            }
            (Authentication::Challenged(exchange), None) if is_answer => {
                let chap = chap.ok_or(Refusal::NotAuthenticated)?;
                let user = exchange.finish(&answer, chap, reply)?;
                self.authentication = Authentication::Done(Some(user.into()));
            }
            (_, Some(_)) => return Err(ChapError::OutOfOrder.into()),
            (_, None) if is_answer => return Err(ChapError::OutOfOrder.into()),
            (_, None) => {}
        }
        Ok(())
    }

    /// Whether the security stage may be over: nothing had to be proved, or it was. One that was never begun is
    /// `AuthMethod=None`.
    fn check_authenticated(&mut self, required: bool) -> Result<(), Refusal> {
        match &self.authentication {
            Authentication::Done(user) if !required || user.is_some() => Ok(()),
            Authentication::Undecided if !required => {
                self.authentication = Authentication::Done(None);
                Ok(())
            }
            _ => Err(Refusal::NotAuthenticated),
        }
    }

    /// The stage that the initiator asks for, or `None`: not yet.
    fn next_stage(
        &mut self,
        wanted: Stage,
        pairs: &Pairs<'_>,
        required: bool,
    ) -> Result<Option<Stage>, Refusal> {
        // Many ask with every step to leave the security stage; what counts is that we say when.
        let is_under_way = match &self.authentication {
            Authentication::Chap => pairs.get(Key::AuthMethod.name()).is_some(),
            Authentication::Challenged(_) => pairs.get(Key::ChapA.name()).is_some(),
            Authentication::Undecided | Authentication::Done(_) => false,
        };
        if is_under_way {
            return Ok(None);
        }
        self.check_authenticated(required)?;
        Ok(Some(wanted))
    }

    /// Sends the next piece of our text; with the last, the stage changes.
    fn send(&mut self, mut answer: Answer) -> Result<LoginStep, Refusal> {
        let (piece, more) = answer.text.next_piece(SEGMENT_BYTES_DEFAULT as usize);
        let piece = piece.to_vec();
        if more {
            self.answer = Some(answer);
            return Ok(LoginStep::Reply(self.reply(None, true, piece)));
        }
        if answer.next == Some(Stage::FullFeature) {
            let parameters = self.negotiation.finish()?;
            answer.held = piece;
            self.answer = Some(answer);
            return Ok(LoginStep::Enter(Box::new(self.done(parameters))));
        }
        let reply = self.reply(answer.next, false, piece);
        if let (Some(begun), Some(next)) = (&mut self.begun, answer.next) {
            begun.stage = next;
        }
        Ok(LoginStep::Reply(reply))
    }

    fn done(&self, parameters: Parameters) -> LoginDone {
        let (Some(peer), Some(begun), Authentication::Done(user)) =
            (&self.peer, self.begun, &self.authentication)
        else {
            unreachable!("identified and authenticated before full feature phase is granted");
        };
        LoginDone {
            initiator: peer.initiator.clone(),
            initiator_alias: peer.alias.clone(),
            target: peer.target.clone(),
            user: user.clone(),
            isid: begun.isid,
            tsih: begun.tsih,
            cid: begun.cid,
            cmd_sn: begun.cmd_sn,
            parameters,
        }
    }

    fn reply(&self, next: Option<Stage>, text_continues: bool, text: Vec<u8>) -> LoginReply {
        let (isid, tsih, initiator_task_tag) = match &self.begun {
            Some(begun) => (begun.isid, begun.tsih, begun.initiator_task_tag),
            None => ([0; 6], 0, TaskTag::RESERVED),
        };
        let current_stage = self.stage();
        LoginReply {
            response: LoginResponse {
                transit: next.is_some(),
                text_continues,
                current_stage,
                next_stage: next.unwrap_or(current_stage),
                isid,
                tsih,
                initiator_task_tag,
                status: Status::Success as u16,
                data_bytes: text.len() as u32,
            },
            text,
        }
    }
}

#[cfg(test)]
mod tests;
