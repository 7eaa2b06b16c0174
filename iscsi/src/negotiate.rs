//! Operational parameters: one table of keys, and what is agreed by it (RFC 7143 §6.2, §13).
//!
//! We only ever respond: what the initiator doesn't offer keeps its default, and the limits of our own that
//! hold without an offer are those we declare. So an exchange never waits for an answer to us. Login names,
//! authentication and SendTargets have their own files; their keys are in the table to be told from unknown ones.

use std::fmt;

use crate::text::{self, Pairs, Text};

/// MaxRecvDataSegmentLength until it is declared, and during login, in bytes (RFC 7143 §13.12).
pub const SEGMENT_BYTES_DEFAULT: u32 = 8192;

/// The least that MaxRecvDataSegmentLength, MaxBurstLength and FirstBurstLength can be, in bytes.
pub const LENGTH_MIN: u32 = 512;

/// The most that they can be, in bytes.
pub const LENGTH_MAX: u32 = (1 << 24) - 1;

/// The longest DefaultTime2Wait and DefaultTime2Retain, in seconds (RFC 7143 §13.15, §13.16).
pub const TIME_MAX: u16 = 3600;

/// What we think of a digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum DigestPolicy {
    /// CRC32C is not agreed to.
    Forbid,
    /// As the initiator prefers.
    #[default]
    Allow,
    /// Normal sessions without it are refused. Discovery sessions, which carry no data, may do without.
    Require,
}

/// Our side of the negotiation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// HeaderDigest.
    pub header_digest: DigestPolicy,
    /// DataDigest.
    pub data_digest: DigestPolicy,
    /// MaxRecvDataSegmentLength that we declare, in bytes.
    pub max_recv_data_segment_length: u32,
    /// MaxBurstLength: the most that we agree to, in bytes.
    pub max_burst_length: u32,
    /// FirstBurstLength: the most that we agree to, in bytes; not over `max_burst_length`.
    pub first_burst_length: u32,
    /// InitialR2T: whether we insist on an R2T before any Data-Out.
    pub initial_r2t: bool,
    /// ImmediateData: whether we agree to it.
    pub immediate_data: bool,
    /// MaxOutstandingR2T: the most that we agree to.
    pub max_outstanding_r2t: u16,
    /// DefaultTime2Wait: the least, in seconds. A new session waits until the old one's tasks are quiet, so an
    /// initiator need not.
    pub default_time2wait: u16,
    /// DefaultTime2Retain: the most, in seconds. A task never outlives its only connection, so 0 says it all.
    pub default_time2retain: u16,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            header_digest: DigestPolicy::Allow,
            data_digest: DigestPolicy::Allow,
            max_recv_data_segment_length: 256 << 10,
            max_burst_length: 1 << 20,
            first_burst_length: 64 << 10,
            initial_r2t: false,
            immediate_data: true,
            max_outstanding_r2t: 8,
            default_time2wait: 0,
            default_time2retain: 0,
        }
    }
}

impl Settings {
    /// Whether each is in its range and they fit each other.
    ///
    /// # Errors
    /// What is wrong, for the person who wrote it, in the terms of RFC 7143.
    pub fn check(&self) -> Result<(), &'static str> {
        let lengths = LENGTH_MIN..=LENGTH_MAX;
        if !lengths.contains(&self.max_recv_data_segment_length) {
            return Err("MaxRecvDataSegmentLength must be 512 to 16777215 bytes");
        }
        if !lengths.contains(&self.max_burst_length) {
            return Err("MaxBurstLength must be 512 to 16777215 bytes");
        }
        if !lengths.contains(&self.first_burst_length) || self.first_burst_length > self.max_burst_length {
            return Err("FirstBurstLength must be 512 bytes to MaxBurstLength");
        }
        if self.max_outstanding_r2t == 0 {
            return Err("MaxOutstandingR2T must be 1 to 65535");
        }
        if self.default_time2wait > TIME_MAX || self.default_time2retain > TIME_MAX {
            return Err("DefaultTime2Wait and DefaultTime2Retain must be 0 to 3600 seconds");
        }
        Ok(())
    }
}

/// SessionType (RFC 7143 §13.21).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum SessionType {
    /// For SendTargets and nothing else.
    Discovery,
    /// For SCSI.
    #[default]
    Normal,
}

/// What holds for a session. ErrorRecoveryLevel is 0, MaxConnections 1, DataPDUInOrder and DataSequenceInOrder
/// are Yes, TaskReporting is RFC3720, whatever was offered. Invariant: `first_burst_length <= max_burst_length`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parameters {
    /// What the session is for.
    pub session_type: SessionType,
    /// Headers carry a CRC32C, both ways, from full feature phase on.
    pub header_digest: bool,
    /// Data segments carry a CRC32C, both ways, from full feature phase on.
    pub data_digest: bool,
    /// The longest data segment that the initiator takes, in bytes.
    pub their_max_recv_data_segment_length: u32,
    /// The longest data segment that we declared to take, in bytes.
    pub our_max_recv_data_segment_length: u32,
    /// Bytes of a Data-In sequence or of what an R2T asks for.
    pub max_burst_length: u32,
    /// Unsolicited bytes of a command, immediate data included.
    pub first_burst_length: u32,
    /// No unsolicited Data-Out: all but immediate data wait for an R2T.
    pub initial_r2t: bool,
    /// Commands may carry data.
    pub immediate_data: bool,
    /// R2Ts of a task that may be unanswered at a time.
    pub max_outstanding_r2t: u16,
    /// Seconds before a reconnection.
    pub default_time2wait: u16,
    /// Seconds that tasks are kept for after that.
    pub default_time2retain: u16,
}

impl Default for Parameters {
    /// What holds when nothing is offered (RFC 7143 §13).
    fn default() -> Parameters {
        Parameters {
            session_type: SessionType::Normal,
            header_digest: false,
            data_digest: false,
            their_max_recv_data_segment_length: SEGMENT_BYTES_DEFAULT,
            our_max_recv_data_segment_length: SEGMENT_BYTES_DEFAULT,
            max_burst_length: 256 << 10,
            first_burst_length: 64 << 10,
            initial_r2t: true,
            immediate_data: true,
            max_outstanding_r2t: 1,
            default_time2wait: 2,
            default_time2retain: 20,
        }
    }
}

/// A key that RFC 7143 or one of its extensions defines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs, reason = "the standard's names")]
pub enum Key {
    AuthMethod,
    ChapA,
    ChapI,
    ChapC,
    ChapN,
    ChapR,
    HeaderDigest,
    DataDigest,
    MaxConnections,
    SendTargets,
    TargetName,
    InitiatorName,
    TargetAlias,
    InitiatorAlias,
    TargetAddress,
    TargetPortalGroupTag,
    InitialR2T,
    ImmediateData,
    MaxRecvDataSegmentLength,
    MaxBurstLength,
    FirstBurstLength,
    DefaultTime2Wait,
    DefaultTime2Retain,
    MaxOutstandingR2T,
    DataPduInOrder,
    DataSequenceInOrder,
    ErrorRecoveryLevel,
    SessionType,
    TaskReporting,
    IscsiProtocolLevel,
    IfMarker,
    OfMarker,
    IfMarkInt,
    OfMarkInt,
    NodeArchitecture,
}

/// How a key's value is arrived at (RFC 7143 §6.2, §13).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Said by the initiator, not answered; `login` reads it.
    Declared,
    /// Said by the initiator, not answered: a number.
    DeclaredNumber(Range),
    /// Only a target says it.
    FromTarget,
    /// Not negotiated here: `login`, `chap` or `discovery` answers it.
    Elsewhere,
    /// The first of the initiator's list that we take.
    List,
    /// Yes if both say Yes.
    And,
    /// Yes if one says Yes.
    Or,
    /// The lesser.
    Minimum(Range),
    /// The greater.
    Maximum(Range),
    /// A boolean that RFC 7143 §13.25 did away with: No.
    Obsolete,
    /// A range that RFC 7143 §13.25 did away with: Reject.
    ObsoleteRange,
}

type Range = (u32, u32);

/// What a key is about, when discovery sessions have no use for some.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sessions {
    All,
    Normal,
}

/// One row of the table.
struct Rule {
    key: Key,
    name: &'static str,
    kind: Kind,
    sessions: Sessions,
    /// May be said again in full feature phase ("ALL" in RFC 7143 §13).
    always: bool,
}

const fn rule(key: Key, name: &'static str, kind: Kind, sessions: Sessions, always: bool) -> Rule {
    Rule { key, name, kind, sessions, always }
}

const LENGTHS: Range = (LENGTH_MIN, LENGTH_MAX);
const TIMES: Range = (0, TIME_MAX as u32);

/// All keys, in the order of [`Key`]. RFC 7143 §13 unless said otherwise.
const RULES: [Rule; 35] = {
    use Kind::{
        And, Declared, DeclaredNumber, Elsewhere, FromTarget, List, Maximum, Minimum, Obsolete,
        ObsoleteRange, Or,
    };
    use Sessions::{All, Normal};
    [
        rule(Key::AuthMethod, "AuthMethod", Elsewhere, All, false), // §12
        rule(Key::ChapA, "CHAP_A", Elsewhere, All, false),
        rule(Key::ChapI, "CHAP_I", Elsewhere, All, false),
        rule(Key::ChapC, "CHAP_C", Elsewhere, All, false),
        rule(Key::ChapN, "CHAP_N", Elsewhere, All, false),
        rule(Key::ChapR, "CHAP_R", Elsewhere, All, false),
        rule(Key::HeaderDigest, "HeaderDigest", List, All, false),
        rule(Key::DataDigest, "DataDigest", List, All, false),
        rule(Key::MaxConnections, "MaxConnections", Minimum((1, 65535)), Normal, false),
        rule(Key::SendTargets, "SendTargets", Elsewhere, All, true),
        rule(Key::TargetName, "TargetName", Declared, All, false),
        rule(Key::InitiatorName, "InitiatorName", Declared, All, false),
        rule(Key::TargetAlias, "TargetAlias", FromTarget, All, false),
        rule(Key::InitiatorAlias, "InitiatorAlias", Declared, All, true),
        rule(Key::TargetAddress, "TargetAddress", FromTarget, All, false),
        rule(Key::TargetPortalGroupTag, "TargetPortalGroupTag", FromTarget, All, false),
        rule(Key::InitialR2T, "InitialR2T", Or, Normal, false),
        rule(Key::ImmediateData, "ImmediateData", And, Normal, false),
        rule(Key::MaxRecvDataSegmentLength, "MaxRecvDataSegmentLength", DeclaredNumber(LENGTHS), All, true),
        rule(Key::MaxBurstLength, "MaxBurstLength", Minimum(LENGTHS), Normal, false),
        rule(Key::FirstBurstLength, "FirstBurstLength", Minimum(LENGTHS), Normal, false),
        rule(Key::DefaultTime2Wait, "DefaultTime2Wait", Maximum(TIMES), All, false),
        rule(Key::DefaultTime2Retain, "DefaultTime2Retain", Minimum(TIMES), All, false),
        rule(Key::MaxOutstandingR2T, "MaxOutstandingR2T", Minimum((1, 65535)), Normal, false),
        rule(Key::DataPduInOrder, "DataPDUInOrder", Or, Normal, false),
        rule(Key::DataSequenceInOrder, "DataSequenceInOrder", Or, Normal, false),
        rule(Key::ErrorRecoveryLevel, "ErrorRecoveryLevel", Minimum((0, 2)), All, false),
        rule(Key::SessionType, "SessionType", Declared, All, false),
        rule(Key::TaskReporting, "TaskReporting", List, Normal, false),
        rule(Key::IscsiProtocolLevel, "iSCSIProtocolLevel", Minimum((0, 31)), Normal, false), // RFC 7144 §7.1.1
        rule(Key::IfMarker, "IFMarker", Obsolete, All, false),
        rule(Key::OfMarker, "OFMarker", Obsolete, All, false),
        rule(Key::IfMarkInt, "IFMarkInt", ObsoleteRange, All, false),
        rule(Key::OfMarkInt, "OFMarkInt", ObsoleteRange, All, false),
        rule(Key::NodeArchitecture, "X#NodeArchitecture", Declared, All, true),
    ]
};

const _: () = {
    let mut index = 0;
    while index < RULES.len() {
        assert!(RULES[index].key as usize == index, "the table is in the order of the keys");
        index += 1;
    }
};

impl Key {
    /// The key of a name, as written: keys have a case.
    pub fn parse(name: &str) -> Option<Key> {
        RULES.iter().find(|rule| rule.name == name).map(|rule| rule.key)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        self.rule().name
    }

    fn rule(self) -> &'static Rule {
        &RULES[self as usize]
    }
}

/// The answers that are not values (RFC 7143 §6.2).
const NOT_UNDERSTOOD: &str = "NotUnderstood";
const IRRELEVANT: &str = "Irrelevant";
const REJECT: &str = "Reject";

/// Why a negotiation can't go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NegotiationError {
    /// A parameter was offered a second time (RFC 7143 §6.3).
    Renegotiated(Key),
    /// We insist on a digest, and it was not agreed.
    DigestRequired(Key),
}

impl fmt::Display for NegotiationError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NegotiationError::Renegotiated(key) => write!(f, "{} was negotiated twice", key.name()),
            NegotiationError::DigestRequired(key) => {
                write!(f, "{} is required and was not agreed", key.name())
            }
        }
    }
}

/// The operational negotiation of one login.
#[derive(Clone, Debug)]
pub struct Negotiation {
    settings: Settings,
    parameters: Parameters,
    /// Keys offered so far, by their place in the table.
    seen: u64,
    declared: bool,
}

impl Negotiation {
    /// Nothing agreed yet.
    pub fn new(settings: Settings) -> Negotiation {
        Negotiation { settings, parameters: Parameters::default(), seen: 0, declared: false }
    }

    /// Answers one step's pairs, those of `login` and `chap` excepted, which they read themselves. Every pair gets
    /// its answer in `reply`, in order, but declarations get none.
    ///
    /// # Errors
    /// [`NegotiationError::Renegotiated`]: the login has failed.
    pub fn offers(
        &mut self,
        session_type: SessionType,
        pairs: &Pairs<'_>,
        reply: &mut Text,
    ) -> Result<(), NegotiationError> {
        self.parameters.session_type = session_type;
        // FirstBurstLength is bounded by MaxBurstLength, which may stand behind it.
        if let Some(value) = pairs.get(Key::MaxBurstLength.name())
            && session_type == SessionType::Normal
            && let Some(value) = in_range(value, LENGTHS)
        {
            self.parameters.max_burst_length = value.min(self.settings.max_burst_length);
        }
        for (name, value) in pairs.iter() {
            let Some(key) = Key::parse(name) else {
                unknown(name, value, reply);
                continue;
            };
            let Rule { kind, sessions, .. } = *key.rule();
            if matches!(kind, Kind::Declared | Kind::Elsewhere) {
                continue;
            }
            if self.seen & 1 << key as u8 != 0 {
                return Err(NegotiationError::Renegotiated(key));
            }
            self.seen |= 1 << key as u8;
            if sessions == Sessions::Normal && session_type == SessionType::Discovery {
                reply.push(name, IRRELEVANT);
                continue;
            }
            self.offer(key, kind, value, reply);
        }
        Ok(())
    }

    fn offer(&mut self, key: Key, kind: Kind, value: &str, reply: &mut Text) {
        let name = key.name();
        let agreed = match kind {
            Kind::Declared | Kind::Elsewhere => return,
            Kind::DeclaredNumber(range) => match in_range(value, range) {
                Some(value) => {
                    self.parameters.their_max_recv_data_segment_length = value;
                    return;
                }
                None => None,
            },
            Kind::FromTarget | Kind::ObsoleteRange => None,
            Kind::List => {
                if let Some(choice) = text::list(value).find(|choice| self.takes(key, choice)) {
                    reply.push(name, choice);
                    return;
                }
                None
            }
            Kind::And => text::boolean(value).map(|theirs| self.switch(key, theirs && self.ours(key) != 0)),
            Kind::Or => text::boolean(value).map(|theirs| self.switch(key, theirs || self.ours(key) != 0)),
            Kind::Obsolete => text::boolean(value).map(|_| "No".into()),
            Kind::Minimum(range) => {
                in_range(value, range).map(|theirs| self.set(key, theirs.min(self.ours(key))).into())
            }
            Kind::Maximum(range) => {
                in_range(value, range).map(|theirs| self.set(key, theirs.max(self.ours(key))).into())
            }
        };
        reply.push(name, agreed.unwrap_or(Agreed::Word(REJECT)));
    }

    /// Whether we take this choice from a list; if so, it holds.
    fn takes(&mut self, key: Key, choice: &str) -> bool {
        let (policy, digest) = match key {
            Key::HeaderDigest => (self.settings.header_digest, &mut self.parameters.header_digest),
            Key::DataDigest => (self.settings.data_digest, &mut self.parameters.data_digest),
            // What we do on aborts is what RFC 3720 says (RFC 7143 §13.23).
            _ => return key == Key::TaskReporting && choice == "RFC3720",
        };
        let required = policy == DigestPolicy::Require && self.parameters.session_type == SessionType::Normal;
        match choice {
            "None" if !required => *digest = false,
            "CRC32C" if policy != DigestPolicy::Forbid => *digest = true,
            _ => return false,
        }
        true
    }

    /// Our side of a number or a boolean.
    fn ours(&self, key: Key) -> u32 {
        match key {
            Key::InitialR2T => u32::from(self.settings.initial_r2t),
            Key::ImmediateData => u32::from(self.settings.immediate_data),
            Key::MaxBurstLength => self.settings.max_burst_length,
            Key::FirstBurstLength => self.settings.first_burst_length.min(self.parameters.max_burst_length),
            Key::DefaultTime2Wait => u32::from(self.settings.default_time2wait),
            Key::DefaultTime2Retain => u32::from(self.settings.default_time2retain),
            Key::MaxOutstandingR2T => u32::from(self.settings.max_outstanding_r2t),
            // One connection; everything in order; RFC 7143's level of the protocol.
            Key::MaxConnections
            | Key::DataPduInOrder
            | Key::DataSequenceInOrder
            | Key::IscsiProtocolLevel => 1,
            // ErrorRecoveryLevel; the rest is no number.
            _ => 0,
        }
    }

    fn set(&mut self, key: Key, value: u32) -> u32 {
        let parameters = &mut self.parameters;
        match key {
            Key::MaxBurstLength => parameters.max_burst_length = value,
            Key::FirstBurstLength => parameters.first_burst_length = value,
            Key::DefaultTime2Wait => parameters.default_time2wait = value as u16,
            Key::DefaultTime2Retain => parameters.default_time2retain = value as u16,
            Key::MaxOutstandingR2T => parameters.max_outstanding_r2t = value as u16,
            // The others come out as `Parameters` says, whatever is offered.
            _ => {}
        }
        value
    }

    fn switch(&mut self, key: Key, value: bool) -> Agreed {
        match key {
            Key::InitialR2T => self.parameters.initial_r2t = value,
            Key::ImmediateData => self.parameters.immediate_data = value,
            _ => {}
        }
        if value { "Yes".into() } else { "No".into() }
    }

    /// Says what we declare of our own accord, once, in the operational stage.
    pub fn declare(&mut self, reply: &mut Text) {
        if !std::mem::replace(&mut self.declared, true) {
            self.parameters.our_max_recv_data_segment_length = self.settings.max_recv_data_segment_length;
            reply.push(Key::MaxRecvDataSegmentLength.name(), self.settings.max_recv_data_segment_length);
        }
    }

    /// What holds from full feature phase on.
    ///
    /// # Errors
    /// [`NegotiationError::DigestRequired`]: the login has failed.
    pub fn finish(&self) -> Result<Parameters, NegotiationError> {
        let mut parameters = self.parameters;
        if parameters.session_type == SessionType::Normal {
            let required = |policy| policy == DigestPolicy::Require;
            if required(self.settings.header_digest) && !parameters.header_digest {
                return Err(NegotiationError::DigestRequired(Key::HeaderDigest));
            }
            if required(self.settings.data_digest) && !parameters.data_digest {
                return Err(NegotiationError::DigestRequired(Key::DataDigest));
            }
        }
        // A default or an earlier step may have left it longer (RFC 7143 §13.14).
        parameters.first_burst_length = parameters.first_burst_length.min(parameters.max_burst_length);
        Ok(parameters)
    }
}

/// What came of an offer.
enum Agreed {
    Word(&'static str),
    Number(u32),
}

impl From<&'static str> for Agreed {
    fn from(word: &'static str) -> Agreed {
        Agreed::Word(word)
    }
}

impl From<u32> for Agreed {
    fn from(number: u32) -> Agreed {
        Agreed::Number(number)
    }
}

impl fmt::Display for Agreed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Agreed::Word(word) => f.write_str(word),
            Agreed::Number(number) => write!(f, "{number}"),
        }
    }
}

/// The answers of one text request in full feature phase.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Renegotiation {
    /// At least one key was one that we know.
    pub understood: bool,
    /// The initiator's MaxRecvDataSegmentLength from now on, in bytes.
    pub their_max_recv_data_segment_length: Option<u32>,
}

/// Answers pairs offered in full feature phase, SendTargets excepted: the initiator may declare how much it takes
/// and what it is called; all else was settled at login and is rejected (RFC 7143 §6.4, §13).
pub fn renegotiate(pairs: &Pairs<'_>, reply: &mut Text) -> Renegotiation {
    let mut outcome = Renegotiation::default();
    for (name, value) in pairs.iter() {
        let Some(key) = Key::parse(name) else {
            unknown(name, value, reply);
            continue;
        };
        outcome.understood = true;
        let Rule { kind, always, .. } = *key.rule();
        match kind {
            Kind::Elsewhere | Kind::Declared if always => {}
            Kind::DeclaredNumber(range) if in_range(value, range).is_some() => {
                outcome.their_max_recv_data_segment_length = in_range(value, range);
            }
            _ => reply.push(name, REJECT),
        }
    }
    outcome
}

/// A key that nobody defined. An answer to an answer would go on for ever.
fn unknown(name: &str, value: &str, reply: &mut Text) {
    if ![NOT_UNDERSTOOD, IRRELEVANT, REJECT].contains(&value) {
        reply.push(name, NOT_UNDERSTOOD);
    }
}

fn in_range(value: &str, (low, high): Range) -> Option<u32> {
    let value = u32::try_from(text::number(value)?).ok()?;
    (low..=high).contains(&value).then_some(value)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn answer(negotiation: &mut Negotiation, session_type: SessionType, offers: &str) -> String {
        let mut reply = Text::default();
        let offers = offers.replace(' ', "\0");
        let pairs = Pairs::parse(offers.as_bytes()).unwrap();
        negotiation.offers(session_type, &pairs, &mut reply).unwrap();
        shown(reply)
    }

    fn shown(reply: Text) -> String {
        String::from_utf8(reply.into_bytes()).unwrap().replace('\0', " ").trim_end().into()
    }

    fn normal(settings: Settings, offers: &str) -> (String, Parameters) {
        let mut negotiation = Negotiation::new(settings);
        let answer = answer(&mut negotiation, SessionType::Normal, offers);
        (answer, negotiation.finish().unwrap())
    }

    /// Goal: each key comes out by its function and range. Method: one key at a time against the defaults.
    #[test]
    fn every_key_by_the_book() {
        for (offer, expected) in [
            ("HeaderDigest=None", "HeaderDigest=None"),
            ("HeaderDigest=CRC32C,None", "HeaderDigest=CRC32C"),
            ("DataDigest=None,CRC32C", "DataDigest=None"),
            ("DataDigest=SHA,CRC32C", "DataDigest=CRC32C"),
            ("DataDigest=SHA", "DataDigest=Reject"),
            ("DataDigest=", "DataDigest=Reject"),
            ("MaxConnections=8", "MaxConnections=1"),
            ("MaxConnections=0", "MaxConnections=Reject"),
            ("MaxConnections=65536", "MaxConnections=Reject"),
            ("InitialR2T=No", "InitialR2T=No"),
            ("InitialR2T=Yes", "InitialR2T=Yes"),
            ("InitialR2T=no", "InitialR2T=Reject"),
            ("ImmediateData=Yes", "ImmediateData=Yes"),
            ("ImmediateData=No", "ImmediateData=No"),
            ("MaxRecvDataSegmentLength=65536", ""),
            ("MaxRecvDataSegmentLength=511", "MaxRecvDataSegmentLength=Reject"),
            ("MaxRecvDataSegmentLength=16777216", "MaxRecvDataSegmentLength=Reject"),
            ("MaxBurstLength=16776192", "MaxBurstLength=1048576"),
            ("MaxBurstLength=0x40000", "MaxBurstLength=262144"),
            ("MaxBurstLength=512", "MaxBurstLength=512"),
            ("MaxBurstLength=511", "MaxBurstLength=Reject"),
            ("MaxBurstLength=16777216", "MaxBurstLength=Reject"),
            ("FirstBurstLength=262144", "FirstBurstLength=65536"),
            ("FirstBurstLength=8192", "FirstBurstLength=8192"),
            ("FirstBurstLength=x", "FirstBurstLength=Reject"),
            ("DefaultTime2Wait=0", "DefaultTime2Wait=0"),
            ("DefaultTime2Wait=3600", "DefaultTime2Wait=3600"),
            ("DefaultTime2Wait=3601", "DefaultTime2Wait=Reject"),
            ("DefaultTime2Retain=20", "DefaultTime2Retain=0"),
            ("MaxOutstandingR2T=16", "MaxOutstandingR2T=8"),
            ("MaxOutstandingR2T=1", "MaxOutstandingR2T=1"),
            ("MaxOutstandingR2T=0", "MaxOutstandingR2T=Reject"),
            ("DataPDUInOrder=No", "DataPDUInOrder=Yes"),
            ("DataSequenceInOrder=Yes", "DataSequenceInOrder=Yes"),
            ("ErrorRecoveryLevel=2", "ErrorRecoveryLevel=0"),
            ("ErrorRecoveryLevel=3", "ErrorRecoveryLevel=Reject"),
            ("TaskReporting=FastAbort,ResponseFence,RFC3720", "TaskReporting=RFC3720"),
            ("TaskReporting=FastAbort", "TaskReporting=Reject"),
            ("iSCSIProtocolLevel=2", "iSCSIProtocolLevel=1"),
            ("iSCSIProtocolLevel=32", "iSCSIProtocolLevel=Reject"),
            ("IFMarker=Yes", "IFMarker=No"),
            ("OFMarker=No", "OFMarker=No"),
            ("OFMarkInt=2048~8192", "OFMarkInt=Reject"),
            ("IFMarkInt=2048", "IFMarkInt=Reject"),
            ("TargetAddress=10.0.0.1", "TargetAddress=Reject"),
            ("X#NodeArchitecture=Linux", ""),
            ("InitiatorAlias=host", ""),
            ("X-com.example.key=1", "X-com.example.key=NotUnderstood"),
            ("headerdigest=None", "headerdigest=NotUnderstood"),
            ("Foo=NotUnderstood", ""),
            ("Foo=Reject", ""),
            ("InitialR2T=Irrelevant", "InitialR2T=Reject"),
        ] {
            assert_eq!(normal(Settings::default(), offer).0, expected, "{offer}");
        }
    }

    /// Goal: what was answered holds, and what was not offered keeps its default.
    #[test]
    fn parameters_follow() {
        let (_, nothing) = normal(Settings::default(), "");
        assert_eq!(nothing, Parameters::default());
        let (_, parameters) = normal(
            Settings::default(),
            "HeaderDigest=CRC32C DataDigest=CRC32C InitialR2T=No ImmediateData=Yes FirstBurstLength=262144 \
             MaxBurstLength=16776192 MaxRecvDataSegmentLength=262144 MaxOutstandingR2T=4 DefaultTime2Wait=5 \
             DefaultTime2Retain=0",
        );
        let expected = Parameters {
            session_type: SessionType::Normal,
            header_digest: true,
            data_digest: true,
            their_max_recv_data_segment_length: 262_144,
            our_max_recv_data_segment_length: 8192,
            max_burst_length: 1 << 20,
            first_burst_length: 65536,
            initial_r2t: false,
            immediate_data: true,
            max_outstanding_r2t: 4,
            default_time2wait: 5,
            default_time2retain: 0,
        };
        assert_eq!(parameters, expected);
    }

    /// Goal: FirstBurstLength never exceeds MaxBurstLength. Method: both orders, one alone, two steps.
    #[test]
    fn first_burst_is_bounded() {
        let both =
            ["FirstBurstLength=65536 MaxBurstLength=4096", "MaxBurstLength=4096 FirstBurstLength=65536"];
        for offers in both {
            let (answer, parameters) = normal(Settings::default(), offers);
            assert!(answer.contains("FirstBurstLength=4096"), "{answer}");
            assert_eq!((parameters.first_burst_length, parameters.max_burst_length), (4096, 4096));
        }
        let (_, parameters) = normal(Settings::default(), "MaxBurstLength=4096");
        assert_eq!(parameters.first_burst_length, 4096);
        let mut negotiation = Negotiation::new(Settings::default());
        answer(&mut negotiation, SessionType::Normal, "FirstBurstLength=65536");
        answer(&mut negotiation, SessionType::Normal, "MaxBurstLength=4096");
        assert_eq!(negotiation.finish().unwrap().first_burst_length, 4096);
    }

    /// Goal: our limits hold against generous initiators. Method: the strictest settings.
    #[test]
    fn our_settings_hold() {
        let settings = Settings {
            header_digest: DigestPolicy::Forbid,
            data_digest: DigestPolicy::Require,
            initial_r2t: true,
            immediate_data: false,
            max_burst_length: 65536,
            first_burst_length: 512,
            max_outstanding_r2t: 1,
            ..Settings::default()
        };
        settings.check().unwrap();
        let (answer, parameters) = normal(
            settings,
            "HeaderDigest=CRC32C,None DataDigest=None,CRC32C InitialR2T=No ImmediateData=Yes MaxBurstLength=262144 \
             FirstBurstLength=65536 MaxOutstandingR2T=8",
        );
        assert_eq!(
            answer,
            "HeaderDigest=None DataDigest=CRC32C InitialR2T=Yes ImmediateData=No MaxBurstLength=65536 \
             FirstBurstLength=512 MaxOutstandingR2T=1"
        );
        assert!(parameters.initial_r2t && !parameters.immediate_data && !parameters.header_digest);
        let mut negotiation = Negotiation::new(settings);
        assert_eq!(
            super::tests::answer(&mut negotiation, SessionType::Normal, "DataDigest=None"),
            "DataDigest=Reject"
        );
        assert_eq!(negotiation.finish(), Err(NegotiationError::DigestRequired(Key::DataDigest)));
        let mut discovery = Negotiation::new(settings);
        assert_eq!(
            super::tests::answer(&mut discovery, SessionType::Discovery, "DataDigest=None"),
            "DataDigest=None"
        );
        discovery.finish().unwrap();
    }

    /// Goal: in discovery, what is about SCSI is irrelevant, the rest is negotiated.
    #[test]
    fn discovery_is_about_less() {
        let mut negotiation = Negotiation::new(Settings::default());
        let answer = answer(
            &mut negotiation,
            SessionType::Discovery,
            "HeaderDigest=None MaxBurstLength=262144 InitialR2T=Yes DefaultTime2Wait=0 ErrorRecoveryLevel=0 \
             TaskReporting=RFC3720",
        );
        assert_eq!(
            answer,
            "HeaderDigest=None MaxBurstLength=Irrelevant InitialR2T=Irrelevant DefaultTime2Wait=0 \
             ErrorRecoveryLevel=0 TaskReporting=Irrelevant"
        );
    }

    /// Goal: no second offer, no second declaration.
    #[test]
    fn only_once() {
        let mut negotiation = Negotiation::new(Settings::default());
        answer(&mut negotiation, SessionType::Normal, "MaxBurstLength=262144");
        let pairs = Pairs::parse(b"MaxBurstLength=262144\0").unwrap();
        let error = negotiation.offers(SessionType::Normal, &pairs, &mut Text::default());
        assert_eq!(error, Err(NegotiationError::Renegotiated(Key::MaxBurstLength)));
        let mut reply = Text::default();
        negotiation.declare(&mut reply);
        negotiation.declare(&mut reply);
        assert_eq!(shown(reply), "MaxRecvDataSegmentLength=262144");
        assert_eq!(negotiation.finish().unwrap().our_max_recv_data_segment_length, 262_144);
    }

    /// Goal: in full feature phase only declarations change anything.
    #[test]
    fn full_feature_phase_settles_nothing_anew() {
        let mut reply = Text::default();
        let pairs = Pairs::parse(
            b"MaxRecvDataSegmentLength=65536\0InitiatorAlias=a\0MaxBurstLength=4096\0HeaderDigest=None\0Foo=1\0",
        );
        let outcome = renegotiate(&pairs.unwrap(), &mut reply);
        assert_eq!(
            outcome,
            Renegotiation { understood: true, their_max_recv_data_segment_length: Some(65536) }
        );
        assert_eq!(shown(reply), "MaxBurstLength=Reject HeaderDigest=Reject Foo=NotUnderstood");
        let mut reply = Text::default();
        let pairs = Pairs::parse(b"MaxRecvDataSegmentLength=1\0").unwrap();
        assert_eq!(renegotiate(&pairs, &mut reply).their_max_recv_data_segment_length, None);
        assert_eq!(shown(reply), "MaxRecvDataSegmentLength=Reject");
        assert!(!renegotiate(&Pairs::parse(b"SendTarget=All\0").unwrap(), &mut Text::default()).understood);
    }

    /// Goal: settings out of range are told.
    #[test]
    fn settings_are_checked() {
        let wrong = [
            Settings { max_recv_data_segment_length: 511, ..Settings::default() },
            Settings { max_burst_length: 1 << 24, ..Settings::default() },
            Settings { first_burst_length: (1 << 20) + 1, ..Settings::default() },
            Settings { max_outstanding_r2t: 0, ..Settings::default() },
            Settings { default_time2wait: 3601, ..Settings::default() },
        ];
        assert!(wrong.iter().all(|settings| settings.check().is_err()));
        Settings::default().check().unwrap();
    }

    proptest! {
        /// Goal: whatever is offered, the parameters keep their ranges and every answer is one line of text.
        /// Method: any numbers and words for the numeric keys, in any order.
        #[test]
        fn parameters_stay_in_range(offers in proptest::collection::vec((0usize..RULES.len(), "[0-9]{0,9}|Yes|No|None|[!-~]{0,12}"), 0..20)) {
            let mut text = Vec::new();
            let mut used = 0u64;
            for (key, value) in offers {
                if used & 1 << key == 0 {
                    used |= 1 << key;
                    text.extend_from_slice(format!("{}={value}\0", RULES[key].name).as_bytes());
                }
            }
            let mut negotiation = Negotiation::new(Settings::default());
            let mut reply = Text::default();
            negotiation.offers(SessionType::Normal, &Pairs::parse(&text).unwrap(), &mut reply).unwrap();
            let reply = reply.into_bytes();
            prop_assert!(Pairs::parse(&reply).is_ok());
            let parameters = negotiation.finish().unwrap();
            let lengths = LENGTH_MIN..=LENGTH_MAX;
            prop_assert!(lengths.contains(&parameters.their_max_recv_data_segment_length));
            prop_assert!(lengths.contains(&parameters.max_burst_length));
            prop_assert!(lengths.contains(&parameters.first_burst_length));
            prop_assert!(parameters.first_burst_length <= parameters.max_burst_length);
            prop_assert!(parameters.max_burst_length <= 1 << 20);
            prop_assert!((1..=8).contains(&parameters.max_outstanding_r2t));
        }
    }
}
