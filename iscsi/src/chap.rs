//! CHAP, one way or both (RFC 7143 §12.1.3, RFC 1994), with the digests of the IANA list: MD5, SHA-1, SHA-256 and
//! SHA3-256. No IO and no clock; randomness is handed in.

use std::fmt;

use subtle::{Choice, ConstantTimeEq};
use zeroize::Zeroizing;

use crate::text::{self, Text};

/// The longest challenge, in bytes (RFC 7143 §12.1.3).
pub const CHALLENGE_BYTES_MAX: usize = 1024;

/// The longest user name, in bytes: what ESXi lets people enter.
pub const USER_BYTES_MAX: usize = 511;

/// The shortest secret that RFC 7143 §9.2.1 thinks strong enough, in bytes: 96 bits.
pub const SECRET_BYTES_MIN: usize = 12;

/// A digest by which CHAP may be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Algorithm {
    /// The one that everybody has.
    Md5 = 5,
    /// SHA-1.
    Sha1 = 6,
    /// SHA-256.
    Sha256 = 7,
    /// SHA3-256.
    Sha3 = 8,
}

impl Algorithm {
    /// All of them.
    pub const ALL: [Algorithm; 4] = [Algorithm::Md5, Algorithm::Sha1, Algorithm::Sha256, Algorithm::Sha3];

    /// By its number in CHAP_A.
    pub fn from_number(number: u64) -> Option<Algorithm> {
        Algorithm::ALL.into_iter().find(|&algorithm| algorithm as u64 == number)
    }

    /// Length of a response, and of the challenges that we make, in bytes.
    pub fn digest_bytes(self) -> usize {
        match self {
            Algorithm::Md5 => 16,
            Algorithm::Sha1 => 20,
            Algorithm::Sha256 | Algorithm::Sha3 => 32,
        }
    }

    /// The response to a challenge: digest of identifier, secret and challenge (RFC 1994 §4.1).
    fn response(self, identifier: u8, secret: &Secret, challenge: &[u8]) -> Bytes {
        match self {
            Algorithm::Md5 => digest::<md5::Md5>(identifier, secret, challenge),
            Algorithm::Sha1 => digest::<sha1::Sha1>(identifier, secret, challenge),
            Algorithm::Sha256 => digest::<sha2::Sha256>(identifier, secret, challenge),
            Algorithm::Sha3 => digest::<sha3::Sha3_256>(identifier, secret, challenge),
        }
    }
}

fn digest<D: md5::Digest>(identifier: u8, secret: &Secret, challenge: &[u8]) -> Bytes {
    Bytes::of(
        &D::new().chain_update([identifier]).chain_update(secret.bytes()).chain_update(challenge).finalize(),
    )
}

/// The longest digest, in bytes.
const DIGEST_BYTES_MAX: usize = 32;

/// A challenge of ours, or a response.
#[derive(Clone, Copy)]
struct Bytes {
    bytes: [u8; DIGEST_BYTES_MAX],
    len: usize,
}

impl Bytes {
    fn of(source: &[u8]) -> Bytes {
        let mut bytes = [0; DIGEST_BYTES_MAX];
        bytes[..source.len()].copy_from_slice(source);
        Bytes { bytes, len: source.len() }
    }

    fn get(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// A shared secret. Not shown, and overwritten when dropped.
#[derive(Clone)]
pub struct Secret(Zeroizing<Box<[u8]>>);

impl Secret {
    /// The secret's bytes, as both sides have them.
    pub fn new(bytes: &[u8]) -> Secret {
        Secret(Zeroizing::new(bytes.into()))
    }

    /// Shorter than [`SECRET_BYTES_MIN`]: works, deserves a warning.
    pub fn is_short(&self) -> bool {
        self.bytes().len() < SECRET_BYTES_MIN
    }

    fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Secret) -> bool {
        self.bytes().ct_eq(other.bytes()).into()
    }
}

impl Eq for Secret {}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// A name and what proves it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// CHAP_N: plain text, whatever it begins with.
    pub user: String,
    /// Known to both sides.
    pub secret: Secret,
}

/// What a host must prove, and what we prove to it. Invariant: we have another secret than any of its users, so
/// that no answer of ours can be used against us (RFC 7143 §9.2.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chap {
    users: Vec<Credentials>,
    mutual: Option<Credentials>,
    algorithms: Vec<Algorithm>,
}

/// Settings that make no CHAP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChapConfigError {
    /// No user, so nobody could log in.
    NoUsers,
    /// No algorithm, so nobody could log in.
    NoAlgorithms,
    /// A user name that is empty, has a NUL or is over [`USER_BYTES_MAX`].
    BadUser,
    /// A secret without bytes.
    EmptySecret,
    /// The same secret in both directions.
    SameSecret,
}

impl fmt::Display for ChapConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ChapConfigError::NoUsers => "CHAP without a user",
            ChapConfigError::NoAlgorithms => "CHAP without an algorithm",
            ChapConfigError::BadUser => "CHAP with a user name that is empty, too long or has a NUL",
            ChapConfigError::EmptySecret => "CHAP with an empty secret",
            ChapConfigError::SameSecret => "mutual CHAP needs another secret than the initiator's",
        })
    }
}

impl Chap {
    /// `users`: any one of them will do. `mutual`: how we prove ourselves when asked to.
    ///
    /// # Errors
    /// [`ChapConfigError`].
    pub fn new(
        users: Vec<Credentials>,
        mutual: Option<Credentials>,
        algorithms: Vec<Algorithm>,
    ) -> Result<Chap, ChapConfigError> {
        if users.is_empty() {
            return Err(ChapConfigError::NoUsers);
        }
        if algorithms.is_empty() {
            return Err(ChapConfigError::NoAlgorithms);
        }
        if !users.iter().chain(&mutual).all(|credentials| is_user(&credentials.user)) {
            return Err(ChapConfigError::BadUser);
        }
        if users.iter().chain(&mutual).any(|credentials| credentials.secret.bytes().is_empty()) {
            return Err(ChapConfigError::EmptySecret);
        }
        if mutual.as_ref().is_some_and(|mutual| users.iter().any(|user| user.secret == mutual.secret)) {
            return Err(ChapConfigError::SameSecret);
        }
        Ok(Chap { users, mutual, algorithms })
    }
}

fn is_user(user: &str) -> bool {
    (1..=USER_BYTES_MAX).contains(&user.len()) && !user.contains('\0')
}

/// Why an authentication failed. For our log; the initiator hears only that it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChapError {
    /// No algorithm in CHAP_A that we take.
    NoCommonAlgorithm,
    /// CHAP_N or CHAP_R is missing, or only one of CHAP_I and CHAP_C came.
    Missing,
    /// CHAP_A, or CHAP_N and CHAP_R, came when it was not their turn.
    OutOfOrder,
    /// CHAP_R is no binary value of the digest's length.
    MalformedResponse,
    /// CHAP_I or CHAP_C is not what they can be.
    MalformedChallenge,
    /// The initiator sent our own challenge back to us.
    Reflected,
    /// No such user, or a wrong secret.
    Wrong,
    /// We are asked to prove ourselves and have nothing to do it with.
    NoMutualSecret,
}

impl fmt::Display for ChapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ChapError::NoCommonAlgorithm => "no common CHAP algorithm",
            ChapError::Missing => "CHAP keys are missing",
            ChapError::OutOfOrder => "CHAP keys came out of order",
            ChapError::MalformedResponse => "a malformed CHAP response",
            ChapError::MalformedChallenge => "a malformed CHAP challenge",
            ChapError::Reflected => "our own CHAP challenge came back",
            ChapError::Wrong => "wrong CHAP name or secret",
            ChapError::NoMutualSecret => "mutual CHAP is asked for and not configured",
        })
    }
}

/// The values of an initiator's answer, as they came.
#[derive(Clone, Copy, Debug, Default)]
pub struct Answer<'a> {
    /// CHAP_N.
    pub name: Option<&'a str>,
    /// CHAP_R.
    pub response: Option<&'a str>,
    /// CHAP_I: it wants a proof of us, too.
    pub identifier: Option<&'a str>,
    /// CHAP_C: the challenge for that.
    pub challenge: Option<&'a str>,
}

/// A challenge that we sent.
#[derive(Clone)]
pub struct Exchange {
    algorithm: Algorithm,
    identifier: u8,
    challenge: Bytes,
}

impl Exchange {
    /// Takes the first algorithm of the initiator's list that we allow, and makes a challenge. `random` fills its
    /// argument with unpredictable bytes.
    ///
    /// # Errors
    /// [`ChapError::NoCommonAlgorithm`].
    pub fn begin(
        chap_a: &str,
        chap: &Chap,
        random: &mut dyn FnMut(&mut [u8]),
        reply: &mut Text,
    ) -> Result<Exchange, ChapError> {
        let algorithm = text::list(chap_a)
            .filter_map(|number| Algorithm::from_number(text::number(number)?))
            .find(|algorithm| chap.algorithms.contains(algorithm))
            .ok_or(ChapError::NoCommonAlgorithm)?;
        let mut identifier = [0];
        random(&mut identifier);
        let mut challenge = Bytes { bytes: [0; DIGEST_BYTES_MAX], len: algorithm.digest_bytes() };
        random(&mut challenge.bytes[..challenge.len]);
        let exchange = Exchange { algorithm, identifier: identifier[0], challenge };
        reply.push("CHAP_A", algorithm as u8);
        reply.push("CHAP_I", exchange.identifier);
        reply.push_binary("CHAP_C", exchange.challenge.get());
        Ok(exchange)
    }

    /// Judges the initiator's answer and, if it asks, proves us to it in `reply`. Says which user it was.
    ///
    /// # Errors
    /// [`ChapError`]; nothing is in `reply` then. How long it takes depends on lengths and on how many users are
    /// configured, not on which of name and secret was wrong.
    pub fn finish<'c>(
        &self,
        answer: &Answer<'_>,
        chap: &'c Chap,
        reply: &mut Text,
    ) -> Result<&'c str, ChapError> {
        let (Some(name), Some(response)) = (answer.name, answer.response) else {
            return Err(ChapError::Missing);
        };
        // Longer than the digest is refused as well as shorter.
        let response = text::binary(response, self.algorithm.digest_bytes())
            .filter(|response| response.len() == self.algorithm.digest_bytes())
            .ok_or(ChapError::MalformedResponse)?;
        let mut found = None;
        for user in &chap.users {
            let expected = self.algorithm.response(self.identifier, &user.secret, self.challenge.get());
            let is_user: Choice =
                user.user.as_bytes().ct_eq(name.as_bytes()) & expected.get().ct_eq(&response);
            if is_user.into() {
                found = Some(user.user.as_str());
            }
        }
        let user = found.ok_or(ChapError::Wrong)?;
        match (answer.identifier, answer.challenge) {
            (None, None) => {}
            (Some(identifier), Some(challenge)) => self.prove(identifier, challenge, chap, reply)?,
            _ => return Err(ChapError::Missing),
        }
        Ok(user)
    }

    /// Answers the initiator's challenge.
    fn prove(
        &self,
        identifier: &str,
        challenge: &str,
        chap: &Chap,
        reply: &mut Text,
    ) -> Result<(), ChapError> {
        let identifier = text::number(identifier)
            .and_then(|identifier| u8::try_from(identifier).ok())
            .ok_or(ChapError::MalformedChallenge)?;
        let challenge = text::binary(challenge, CHALLENGE_BYTES_MAX).ok_or(ChapError::MalformedChallenge)?;
        if challenge == self.challenge.get() {
            return Err(ChapError::Reflected);
        }
        let ours = chap.mutual.as_ref().ok_or(ChapError::NoMutualSecret)?;
        reply.push("CHAP_N", &ours.user);
        reply.push_binary("CHAP_R", self.algorithm.response(identifier, &ours.secret, &challenge).get());
        Ok(())
    }
}

impl fmt::Debug for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exchange").field("algorithm", &self.algorithm).finish_non_exhaustive()
    }
}

/// The answer that an initiator with `secret` gives: for tests of logins.
#[cfg(test)]
pub(crate) fn response_for_test(
    algorithm: Algorithm,
    identifier: u8,
    secret: &[u8],
    challenge: &[u8],
) -> Vec<u8> {
    algorithm.response(identifier, &Secret::new(secret), challenge).get().to_vec()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::text::Pairs;

    fn credentials(user: &str, secret: &str) -> Credentials {
        Credentials { user: user.into(), secret: Secret::new(secret.as_bytes()) }
    }

    fn chap(user: &str, mutual: bool) -> Chap {
        let ours = mutual.then(|| credentials("target", "target's secret"));
        Chap::new(vec![credentials(user, "initiator's secret")], ours, Algorithm::ALL.to_vec()).unwrap()
    }

    /// A challenge of the bytes 1, 2, ... with that identifier.
    fn begin(chap_a: &str, chap: &Chap) -> (Result<Exchange, ChapError>, String) {
        let mut next = 0;
        let mut random = |bytes: &mut [u8]| {
            for byte in bytes {
                next += 1;
                *byte = next;
            }
        };
        let mut reply = Text::default();
        let exchange = Exchange::begin(chap_a, chap, &mut random, &mut reply);
        (exchange, String::from_utf8(reply.into_bytes()).unwrap())
    }

    fn hexadecimal(bytes: &[u8]) -> String {
        bytes.iter().fold("0x".into(), |text, byte| format!("{text}{byte:02X}"))
    }

    fn finish(chap: &Chap, exchange: &Exchange, answer: &Answer<'_>) -> (Result<String, ChapError>, String) {
        let mut reply = Text::default();
        let user = exchange.finish(answer, chap, &mut reply).map(String::from);
        (user, String::from_utf8(reply.into_bytes()).unwrap())
    }

    fn right(exchange: &Exchange) -> Vec<u8> {
        response_for_test(
            exchange.algorithm,
            exchange.identifier,
            b"initiator's secret",
            exchange.challenge.get(),
        )
    }

    /// Goal: each digest is the one of its number. Method: identifier, secret and challenge that together are
    /// "abc", against the published digests of "abc".
    #[test]
    fn known_digests() {
        for (algorithm, expected) in [
            (Algorithm::Md5, "0x900150983CD24FB0D6963F7D28E17F72"),
            (Algorithm::Sha1, "0xA9993E364706816ABA3E25717850C26C9CD0D89D"),
            (Algorithm::Sha256, "0xBA7816BF8F01CFEA414140DE5DAE2223B00361A396177A9CB410FF61F20015AD"),
            (Algorithm::Sha3, "0x3A985DA74FE225B2045C172D6BD390BD855F086E3E9D525B46BFE24511431532"),
        ] {
            let response = algorithm.response(b'a', &Secret::new(b"b"), b"c");
            assert_eq!(hexadecimal(response.get()), expected);
            assert_eq!(Algorithm::from_number(algorithm as u64), Some(algorithm));
        }
    }

    /// Goal: the first algorithm of the initiator's list that we allow, and no other reading of the list.
    #[test]
    fn picks_from_the_initiators_list() {
        let all = chap("user", false);
        for (list, number, challenge_bytes) in
            [("5", 5, 16), ("5,6,7,8", 5, 16), ("8,7,6,5", 8, 32), ("99,7", 7, 32), ("6", 6, 20)]
        {
            let (exchange, reply) = begin(list, &all);
            assert_eq!(exchange.unwrap().challenge.get().len(), challenge_bytes);
            assert!(reply.starts_with(&format!("CHAP_A={number}\0CHAP_I=1\0CHAP_C=0x0203")), "{reply}");
        }
        for list in ["", "56", "4", "5 6", "MD5", ","] {
            assert_eq!(begin(list, &all).0.unwrap_err(), ChapError::NoCommonAlgorithm, "{list}");
        }
        let strong =
            Chap::new(vec![credentials("u", "s")], None, vec![Algorithm::Sha256, Algorithm::Sha3]).unwrap();
        assert!(begin("5,6,8,7", &strong).1.starts_with("CHAP_A=8\0"));
        assert_eq!(begin("5,6", &strong).0.unwrap_err(), ChapError::NoCommonAlgorithm);
    }

    /// Goal: the right response in both notations, under names that look like numbers; all else is refused.
    #[test]
    fn judges_the_answer() {
        use base64::Engine;

        for user in ["user", "0x1234", "0bAQID"] {
            let chap = chap(user, false);
            for algorithm in Algorithm::ALL {
                let exchange = begin(&(algorithm as u8).to_string(), &chap).0.unwrap();
                let right = right(&exchange);
                let base64 = format!("0b{}", base64::engine::general_purpose::STANDARD.encode(&right));
                let answer = |name: Option<&str>, response: Option<&str>| {
                    finish(&chap, &exchange, &Answer { name, response, ..Answer::default() }).0
                };
                let hex = hexadecimal(&right);
                assert_eq!(answer(Some(user), Some(&hex)), Ok(user.into()));
                assert_eq!(answer(Some(user), Some(&hex.to_lowercase())), Ok(user.into()));
                assert_eq!(answer(Some(user), Some(&base64)), Ok(user.into()));
                assert_eq!(answer(Some("other"), Some(&hex)), Err(ChapError::Wrong));
                let mut wrong = right.clone();
                wrong[3] ^= 1;
                assert_eq!(answer(Some(user), Some(&hexadecimal(&wrong))), Err(ChapError::Wrong));
                for malformed in [
                    hexadecimal(&[&right[..], &[0]].concat()),
                    hexadecimal(&right[1..]),
                    format!(
                        "0b{}",
                        base64::engine::general_purpose::STANDARD.encode([&right[..], &[0]].concat())
                    ),
                    "0x".into(),
                    String::new(),
                ] {
                    assert_eq!(answer(Some(user), Some(&malformed)), Err(ChapError::MalformedResponse));
                }
                assert_eq!(answer(None, Some(&hex)), Err(ChapError::Missing));
                assert_eq!(answer(Some(user), None), Err(ChapError::Missing));
            }
        }
    }

    /// Goal: several users of one host, each with its own secret.
    #[test]
    fn any_user_will_do() {
        let users = vec![credentials("0xa", "first secret"), credentials("0ba", "second secret")];
        let chap = Chap::new(users, None, vec![Algorithm::Md5]).unwrap();
        let exchange = begin("5", &chap).0.unwrap();
        let answer = |name, secret: &str| {
            let response = response_for_test(
                Algorithm::Md5,
                exchange.identifier,
                secret.as_bytes(),
                exchange.challenge.get(),
            );
            finish(
                &chap,
                &exchange,
                &Answer { name: Some(name), response: Some(&hexadecimal(&response)), ..Answer::default() },
            )
            .0
        };
        assert_eq!(answer("0xa", "first secret"), Ok("0xa".into()));
        assert_eq!(answer("0ba", "second secret"), Ok("0ba".into()));
        assert_eq!(answer("0xa", "second secret"), Err(ChapError::Wrong));
    }

    /// Goal: we prove ourselves to who asks rightly, never with a challenge of our own.
    #[test]
    fn mutual() {
        let chap = chap("user", true);
        let exchange = begin("7", &chap).0.unwrap();
        let right = hexadecimal(&right(&exchange));
        let own = hexadecimal(exchange.challenge.get());
        let ask = |chap: &Chap, identifier, challenge| {
            let answer = Answer { name: Some("user"), response: Some(&right), identifier, challenge };
            finish(chap, &exchange, &answer)
        };
        let (user, reply) = ask(&chap, Some("200"), Some("0x0102"));
        assert_eq!(user, Ok("user".into()));
        let pairs = Pairs::parse(reply.as_bytes()).unwrap();
        assert_eq!(pairs.get("CHAP_N"), Some("target"));
        assert_eq!(
            text::binary(pairs.get("CHAP_R").unwrap(), 32),
            Some(response_for_test(Algorithm::Sha256, 200, b"target's secret", &[1, 2]))
        );
        let long = format!("0x{}", "00".repeat(CHALLENGE_BYTES_MAX + 1));
        for (identifier, challenge, error) in [
            (Some("1"), Some(&*own), ChapError::Reflected),
            (Some("256"), Some("0x01"), ChapError::MalformedChallenge),
            (Some(""), Some("0x01"), ChapError::MalformedChallenge),
            (Some("1"), Some("0x"), ChapError::MalformedChallenge),
            (Some("1"), Some("text"), ChapError::MalformedChallenge),
            (Some("1"), Some(&*long), ChapError::MalformedChallenge),
            (Some("1"), None, ChapError::Missing),
            (None, Some("0x01"), ChapError::Missing),
        ] {
            assert_eq!(ask(&chap, identifier, challenge), (Err(error), String::new()));
        }
        let one_way = super::tests::chap("user", false);
        assert_eq!(ask(&one_way, Some("1"), Some("0x01")).0, Err(ChapError::NoMutualSecret));
    }

    /// Goal: secrets are not shown, and settings that would be unsafe are refused.
    #[test]
    fn settings() {
        let shown = format!("{:?}", chap("user", true));
        assert!(!shown.contains("secret'") && !shown.contains("115"), "{shown}");
        assert!(Secret::new(b"elevenbytes").is_short());
        assert!(!Secret::new(b"twelve bytes").is_short());
        let user = || credentials("u", "same");
        let all = || Algorithm::ALL.to_vec();
        assert_eq!(Chap::new(vec![], None, all()), Err(ChapConfigError::NoUsers));
        assert_eq!(Chap::new(vec![user()], None, vec![]), Err(ChapConfigError::NoAlgorithms));
        for user in ["", "a\0b", &"u".repeat(512)] {
            assert_eq!(Chap::new(vec![credentials(user, "s")], None, all()), Err(ChapConfigError::BadUser));
        }
        assert_eq!(Chap::new(vec![credentials("u", "")], None, all()), Err(ChapConfigError::EmptySecret));
        assert_eq!(
            Chap::new(vec![user()], Some(credentials("t", "same")), all()),
            Err(ChapConfigError::SameSecret)
        );
    }

    proptest! {
        /// Goal: no answer panics, and none but the right one is taken. Method: any texts.
        #[test]
        fn any_answer_is_refused(chap_a: String, name: String, response: String, identifier: Option<String>, challenge: Option<String>) {
            let chap = chap("user", true);
            let _ = begin(&chap_a, &chap);
            let exchange = begin("5", &chap).0.unwrap();
            let answer = Answer {
                name: Some(&name),
                response: Some(&response),
                identifier: identifier.as_deref(),
                challenge: challenge.as_deref(),
            };
            prop_assert!(finish(&chap, &exchange, &answer).0.is_err());
        }
    }
}
