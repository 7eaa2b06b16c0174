//! Login as a normal session, by our own minimal initiator. RFC 7143 §6.3, §13.
//!
//! Offers what the options say, takes what the target answers, and states the outcome as [`Terms`]. CHAP with MD5
//! where a secret is given. Called by `load` and `idle`.

use super::link::Link;
use super::wire::{BHS_BYTES, CONTINUE, FINAL, IMMEDIATE, opcode, opcode_of, put_u32};
use crate::failure::Failure;
use md5::{Digest as _, Md5};
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

/// Requests until the target must have let us in.
const ROUNDS_MAX: usize = 32;
/// Bytes of text that a target may answer with in one stage.
const TEXT_BYTES_MAX: usize = 64 * 1024;

const STAGE_SECURITY: u8 = 0;
const STAGE_OPERATIONAL: u8 = 1;
const STAGE_FULL_FEATURE: u8 = 3;

/// What we propose; lengths in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offer {
    /// CRC32C behind headers.
    pub header_digest: bool,
    /// CRC32C behind data.
    pub data_digest: bool,
    /// Send data with the command.
    pub immediate_data: bool,
    /// Send nothing beyond that unasked.
    pub initial_r2t: bool,
    /// FirstBurstLength: unsolicited data of one command, immediate included.
    pub first_burst: u32,
    /// MaxBurstLength: data of one R2T, or one sequence of Data-In.
    pub max_burst: u32,
    /// MaxRecvDataSegmentLength: data of one PDU to us.
    pub max_receive: u32,
}

/// What was agreed; lengths in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// CRC32C behind headers.
    pub header_digest: bool,
    /// CRC32C behind data.
    pub data_digest: bool,
    /// Data may come with the command.
    pub immediate_data: bool,
    /// Unsolicited Data-Out is not allowed.
    pub initial_r2t: bool,
    /// Unsolicited data of one command at most.
    pub first_burst: u32,
    /// Data of one R2T at most.
    pub max_burst: u32,
    /// Data of one PDU to us at most.
    pub max_receive: u32,
    /// Data of one PDU to the target at most.
    pub max_send: u32,
}

impl fmt::Display for Terms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let yes_no = |yes| if yes { "Yes" } else { "No" };
        let digest = |on| if on { "CRC32C" } else { "None" };
        write!(
            f,
            "HeaderDigest={} DataDigest={} ImmediateData={} InitialR2T={} FirstBurstLength={} \
             MaxBurstLength={} MaxRecvDataSegmentLength={} (target's {})",
            digest(self.header_digest),
            digest(self.data_digest),
            yes_no(self.immediate_data),
            yes_no(self.initial_r2t),
            self.first_burst,
            self.max_burst,
            self.max_receive,
            self.max_send,
        )
    }
}

/// A user and the secret we prove to know.
#[derive(Clone, PartialEq, Eq)]
pub struct Chap {
    /// CHAP_N.
    pub user: String,
    /// Never printed.
    pub secret: String,
}

impl fmt::Debug for Chap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Chap {{ user: {:?} }}", self.user)
    }
}

/// Who logs in where.
#[derive(Debug, Clone)]
pub struct Door {
    /// The portal's address.
    pub portal: SocketAddr,
    /// TargetName.
    pub target: String,
    /// InitiatorName.
    pub initiator: String,
    /// The secret, where the target wants one.
    pub chap: Option<Chap>,
    /// What we propose.
    pub offer: Offer,
}

/// Connects and logs in; `isid_qualifier` tells the sessions of one initiator apart.
///
/// # Errors
/// The target refuses (with its reason in words), answers nonsense, or is silent for `timeout`.
pub fn login(door: &Door, isid_qualifier: u32, timeout: Duration) -> Result<(Link, Terms), Failure> {
    let place = format!("logging in to {} at {}", door.target, door.portal);
    Login::new(door, isid_qualifier, timeout).and_then(Login::run).map_err(|failure| failure.at(place))
}

struct Login<'a> {
    door: &'a Door,
    link: Link,
    isid: [u8; 6],
    stage: u8,
    task_tag: u32,
    answers: Vec<(String, String)>,
}

impl<'a> Login<'a> {
    fn new(door: &'a Door, isid_qualifier: u32, timeout: Duration) -> Result<Login<'a>, Failure> {
        let mut link = Link::connect(door.portal, timeout)?;
        // Random format (T = 10b): 24 bits for this process, 16 for the session. RFC 7143 §11.12.5.
        let process = std::process::id().to_be_bytes();
        let qualifier = isid_qualifier.to_be_bytes();
        let isid = [0x80, process[1], process[2], process[3], qualifier[2], qualifier[3]];
        let task_tag = link.next_task_tag();
        Ok(Login { door, link, isid, stage: STAGE_SECURITY, task_tag, answers: Vec::new() })
    }

    fn run(mut self) -> Result<(Link, Terms), Failure> {
        let method = if self.door.chap.is_some() { "CHAP" } else { "None" };
        let text = text(&[
            ("InitiatorName", &self.door.initiator),
            ("TargetName", &self.door.target),
            ("SessionType", "Normal"),
            ("AuthMethod", method),
        ]);
        let leave = self.door.chap.is_none();
        self.exchange(&text, leave.then_some(STAGE_OPERATIONAL))?;
        if self.answer("AuthMethod").is_some_and(|chosen| chosen != method) {
            return Err(Failure::new(format!(
                "the target wants AuthMethod={}, we offered {method}; see --chap",
                self.answer("AuthMethod").unwrap_or_default()
            )));
        }
        if let Some(chap) = &self.door.chap {
            self.prove(chap)?;
        }
        if self.stage == STAGE_SECURITY {
            return Err(Failure::new("the target doesn't leave the security stage"));
        }
        self.negotiate()
    }

    /// CHAP, one way, MD5. RFC 7143 §12.1.3, RFC 1994.
    fn prove(&mut self, chap: &Chap) -> Result<(), Failure> {
        self.exchange(&text(&[("CHAP_A", "5")]), None)?;
        let missing = |key| Failure::new(format!("the target's challenge has no {key}"));
        let identifier: u8 = self
            .answer("CHAP_I")
            .and_then(|value| value.parse().ok())
            .ok_or_else(|| missing("CHAP_I between 0 and 255"))?;
        let challenge =
            self.answer("CHAP_C").and_then(decode_hex).ok_or_else(|| missing("CHAP_C in hexadecimal"))?;
        let response = chap_response(identifier, &chap.secret, &challenge);
        let response: String = response.iter().fold("0x".into(), |text, byte| format!("{text}{byte:02x}"));
        let text = text(&[("CHAP_N", &chap.user), ("CHAP_R", &response)]);
        self.exchange(&text, Some(STAGE_OPERATIONAL))
    }

    fn negotiate(mut self) -> Result<(Link, Terms), Failure> {
        let offer = self.door.offer;
        let yes_no = |yes| if yes { "Yes" } else { "No" };
        let digest = |on| if on { "CRC32C" } else { "None" };
        let text = text(&[
            ("HeaderDigest", digest(offer.header_digest)),
            ("DataDigest", digest(offer.data_digest)),
            ("ImmediateData", yes_no(offer.immediate_data)),
            ("InitialR2T", yes_no(offer.initial_r2t)),
            ("FirstBurstLength", &offer.first_burst.to_string()),
            ("MaxBurstLength", &offer.max_burst.to_string()),
            ("MaxRecvDataSegmentLength", &offer.max_receive.to_string()),
            ("MaxOutstandingR2T", "1"),
            ("MaxConnections", "1"),
            ("ErrorRecoveryLevel", "0"),
            ("DataPDUInOrder", "Yes"),
            ("DataSequenceInOrder", "Yes"),
            ("DefaultTime2Wait", "0"),
            ("DefaultTime2Retain", "0"),
        ]);
        self.exchange(&text, Some(STAGE_FULL_FEATURE))?;
        for _ in 0..ROUNDS_MAX {
            if self.stage == STAGE_FULL_FEATURE {
                let terms = self.terms()?;
                self.link.header_digest = terms.header_digest;
                self.link.data_digest = terms.data_digest;
                return Ok((self.link, terms));
            }
            self.exchange(&[], Some(STAGE_FULL_FEATURE))?;
        }
        Err(Failure::new(format!("not in full feature phase after {ROUNDS_MAX} requests")))
    }

    /// One request and its whole answer; moves to `leave_for` if the target agrees.
    fn exchange(&mut self, text: &[u8], leave_for: Option<u8>) -> Result<(), Failure> {
        let mut text = text;
        for _ in 0..ROUNDS_MAX {
            let mut bhs = [0; BHS_BYTES];
            bhs[0] = IMMEDIATE | opcode::LOGIN_REQUEST;
            bhs[1] = (self.stage << 2) | leave_for.map_or(0, |next| FINAL | next);
            bhs[8..14].copy_from_slice(&self.isid);
            put_u32(&mut bhs, 16, self.task_tag);
            put_u32(&mut bhs, 24, self.link.cmd_sn);
            put_u32(&mut bhs, 28, self.link.exp_stat_sn);
            self.link.send(&bhs, text)?;
            let (answer, data) = self.link.receive()?;
            if opcode_of(&answer) != opcode::LOGIN_RESPONSE {
                return Err(super::link::unexpected(&answer));
            }
            if answer[36] != 0 {
                return Err(Failure::new(format!("refused: {}", status_name(answer[36], answer[37]))));
            }
            self.take(&data)?;
            if answer[1] & CONTINUE != 0 {
                text = &[];
                continue;
            }
            if answer[1] & FINAL != 0 {
                self.stage = answer[1] & 3;
            }
            return Ok(());
        }
        Err(Failure::new("the target's text never ends"))
    }

    fn take(&mut self, data: &[u8]) -> Result<(), Failure> {
        for pair in data.split(|byte| *byte == 0).filter(|pair| !pair.is_empty()) {
            let pair = String::from_utf8_lossy(pair);
            let Some((key, value)) = pair.split_once('=') else {
                return Err(Failure::new(format!("the target's text has no '=': {pair:?}")));
            };
            self.answers.push((key.to_owned(), value.to_owned()));
        }
        let bytes: usize = self.answers.iter().map(|(key, value)| key.len() + value.len()).sum();
        if bytes > TEXT_BYTES_MAX {
            return Err(Failure::new("the target's text is too long"));
        }
        Ok(())
    }

    fn answer(&self, key: &str) -> Option<&str> {
        self.answers.iter().rev().find(|(known, _)| known == key).map(|(_, value)| value.as_str())
    }

    fn terms(&self) -> Result<Terms, Failure> {
        let offer = self.door.offer;
        let header_digest = self.answer("HeaderDigest") == Some("CRC32C");
        let data_digest = self.answer("DataDigest") == Some("CRC32C");
        if (header_digest, data_digest) != (offer.header_digest, offer.data_digest) {
            return Err(Failure::new(format!(
                "asked for digests header={} data={}, the target answered header={header_digest} data={data_digest}",
                offer.header_digest, offer.data_digest
            )));
        }
        // An absent answer leaves the key's default. RFC 7143 §13.
        Ok(Terms {
            header_digest,
            data_digest,
            immediate_data: offer.immediate_data && self.answer("ImmediateData") != Some("No"),
            initial_r2t: offer.initial_r2t || self.answer("InitialR2T") != Some("No"),
            first_burst: self.length("FirstBurstLength", 65_536)?.min(offer.first_burst),
            max_burst: self.length("MaxBurstLength", 262_144)?.min(offer.max_burst),
            max_receive: offer.max_receive,
            max_send: self.length("MaxRecvDataSegmentLength", 8192)?,
        })
    }

    fn length(&self, key: &str, default: u32) -> Result<u32, Failure> {
        let Some(value) = self.answer(key) else {
            return Ok(default);
        };
        match value.parse() {
            Ok(length) if (512..=super::wire::SEGMENT_BYTES_MAX).contains(&length) => Ok(length),
            _ => Err(Failure::new(format!("{key}={value} is not between 512 and 16777215"))),
        }
    }
}

/// Keys and values as they travel: each pair ends with a zero byte. RFC 7143 §6.1.
fn text(pairs: &[(&str, &str)]) -> Vec<u8> {
    pairs.iter().flat_map(|(key, value)| format!("{key}={value}\0").into_bytes()).collect()
}

/// MD5 over identifier, secret and challenge. RFC 1994 §4.1.
fn chap_response(identifier: u8, secret: &str, challenge: &[u8]) -> [u8; 16] {
    let mut hash = Md5::new();
    hash.update([identifier]);
    hash.update(secret.as_bytes());
    hash.update(challenge);
    hash.finalize().into()
}

/// Bytes of a `0x...` value; `None` for anything else, base64 among it.
fn decode_hex(value: &str) -> Option<Vec<u8>> {
    let digits = value.strip_prefix("0x").or_else(|| value.strip_prefix("0X"))?;
    if digits.len() > 2048 || !digits.len().is_multiple_of(2) {
        return None;
    }
    let nibbles: Option<Vec<u8>> =
        digits.chars().map(|digit| digit.to_digit(16).map(|nibble| nibble as u8)).collect();
    Some(nibbles?.chunks(2).map(|pair| (pair[0] << 4) | pair[1]).collect())
}

/// Status class and detail in words. RFC 7143 §11.13.5.
fn status_name(class: u8, detail: u8) -> String {
    let name = match (class, detail) {
        (1, _) => "the target moved",
        (2, 1) => "authentication failed",
        (2, 2) => "this initiator may not use the target",
        (2, 3) => "no such target",
        (2, 4) => "target removed",
        (2, 6) => "too many connections",
        (2, 7) => "missing parameter",
        (2, _) => "initiator error",
        (3, 1) => "service unavailable",
        (3, 2) => "out of resources",
        (3, _) => "target error",
        _ => "unknown status",
    };
    format!("{name} (status {class:02x}{detail:02x}h)")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the response is CHAP's. Method: MD5 by a tool, of 01h, "secret" and 0a0b0c0dh.
    #[test]
    fn chap_hashes_identifier_secret_challenge() {
        let by_tool = decode_hex(CHAP_EXAMPLE).unwrap();
        assert_eq!(chap_response(1, "secret", &[0x0A, 0x0B, 0x0C, 0x0D]).to_vec(), by_tool);
    }

    /// Goal: only whole hexadecimal bytes are a challenge. Method: good and bad values.
    #[test]
    fn challenges_are_hexadecimal() {
        assert_eq!(decode_hex("0x0aFF"), Some(vec![0x0A, 0xFF]));
        assert_eq!(decode_hex("0x0"), None);
        assert_eq!(decode_hex("0xzz"), None);
        assert_eq!(decode_hex("0bAAAA"), None);
    }

    /// Goal: text travels as key=value and zero. Method: bytes by hand.
    #[test]
    fn text_pairs_end_with_zero() {
        assert_eq!(text(&[("A", "1"), ("B", "x,y")]), b"A=1\0B=x,y\0");
    }

    const CHAP_EXAMPLE: &str = "0xa8da0387c9b287629085bcbd3e9f9490";
}
