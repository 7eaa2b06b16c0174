//! Text as iSCSI negotiates in it: `key=value` pairs, each ended by a NUL (RFC 7143 §6.1).
//!
//! [`Collector`] puts together what continued PDUs bring, [`Pairs`] takes it apart once and for all, [`Text`]
//! is what we answer, cut again by [`Outgoing`] to the peer's segments. Everything has a bound: text is what an
//! initiator can send before anybody knows who it is.

use std::fmt;

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use smallvec::SmallVec;

/// Text of one negotiation step, all its PDUs together: what RFC 7143 §6.1 says every node must take.
pub const TEXT_BYTES_MAX: usize = 16 * 1024;

/// Pairs in one step. There are some 40 keys; the rest is room for private ones.
pub const PAIRS_MAX: usize = 128;

/// The longest key name (RFC 7143 §6.1).
pub const KEY_BYTES_MAX: usize = 63;

/// The longest value that is not binary and not a list (RFC 7143 §6.1).
pub const VALUE_BYTES_MAX: usize = 255;

/// Text that is no text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TextError {
    /// More than [`TEXT_BYTES_MAX`].
    TooLong,
    /// More than [`PAIRS_MAX`].
    TooManyPairs,
    /// Not UTF-8.
    NotUtf8,
    /// A pair without `=`.
    NoValue,
    /// A key that is empty, over [`KEY_BYTES_MAX`] or has other characters than key names have.
    BadKey,
    /// The same key twice.
    DuplicateKey,
}

impl fmt::Display for TextError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TextError::TooLong => "more than 16 KiB of text",
            TextError::TooManyPairs => "too many key=value pairs",
            TextError::NotUtf8 => "text that is not UTF-8",
            TextError::NoValue => "a key without a value",
            TextError::BadKey => "a malformed key",
            TextError::DuplicateKey => "a key twice",
        })
    }
}

/// Text arriving over several PDUs. Invariant: never more than [`TEXT_BYTES_MAX`].
#[derive(Debug, Default)]
pub struct Collector {
    bytes: Vec<u8>,
}

impl Collector {
    /// Adds a PDU's data segment.
    ///
    /// # Errors
    /// [`TextError::TooLong`], and nothing is added.
    pub fn push(&mut self, segment: &[u8]) -> Result<(), TextError> {
        if self.bytes.len() + segment.len() > TEXT_BYTES_MAX {
            return Err(TextError::TooLong);
        }
        self.bytes.extend_from_slice(segment);
        Ok(())
    }

    /// The text so far; the next PDU begins anew.
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.bytes)
    }

    /// Whether nothing is waiting for its rest.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
}

/// The pairs of one step, in order, each key once.
#[derive(Clone, Debug, Default)]
pub struct Pairs<'a> {
    pairs: SmallVec<[(&'a str, &'a str); 24]>,
}

impl<'a> Pairs<'a> {
    /// Takes text apart. Empty strings between NULs are passed over (some initiators send their padding), and
    /// so is a missing last NUL.
    ///
    /// # Errors
    /// [`TextError`]: the whole text is to be refused.
    pub fn parse(text: &'a [u8]) -> Result<Pairs<'a>, TextError> {
        if text.len() > TEXT_BYTES_MAX {
            return Err(TextError::TooLong);
        }
        let text = str::from_utf8(text).map_err(|_| TextError::NotUtf8)?;
        let mut pairs = Pairs::default();
        for pair in text.split('\0').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').ok_or(TextError::NoValue)?;
            if !is_key(key) {
                return Err(TextError::BadKey);
            }
            if pairs.get(key).is_some() {
                return Err(TextError::DuplicateKey);
            }
            if pairs.pairs.len() == PAIRS_MAX {
                return Err(TextError::TooManyPairs);
            }
            pairs.pairs.push((key, value));
        }
        Ok(pairs)
    }

    /// The value of a key. Names are compared exactly.
    pub fn get(&self, key: &str) -> Option<&'a str> {
        self.pairs.iter().find(|(name, _)| *name == key).map(|&(_, value)| value)
    }

    /// All pairs, in the order they came.
    pub fn iter(&self) -> impl Iterator<Item = (&'a str, &'a str)> + '_ {
        self.pairs.iter().copied()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }
}

/// RFC 7143 §6.1: letters, digits, dot, minus, plus, commercial at, underscore; `#` in extension keys, `/` in old
/// ones. Capital letters first in standard keys, which the key table decides by knowing them.
fn is_key(key: &str) -> bool {
    (1..=KEY_BYTES_MAX).contains(&key.len())
        && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-+@_#/".contains(&byte))
}

/// A number: decimal without leading zeroes, or hexadecimal after `0x` (RFC 7143 §6.1). `None`: no number, or
/// over 64 bits.
pub fn number(value: &str) -> Option<u64> {
    if let Some(digits) = hexadecimal(value) {
        let fits = (1..=16).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        return if fits { u64::from_str_radix(digits, 16).ok() } else { None };
    }
    let leading_zero = value.len() > 1 && value.starts_with('0');
    if value.is_empty() || leading_zero || !value.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    value.parse().ok()
}

/// `Yes` or `No`.
pub fn boolean(value: &str) -> Option<bool> {
    match value {
        "Yes" => Some(true),
        "No" => Some(false),
        _ => None,
    }
}

/// The values of a list, in order. An empty text is an empty list.
pub fn list(value: &str) -> impl Iterator<Item = &str> {
    value.split(',').filter(|item| !item.is_empty())
}

/// Bytes in hexadecimal after `0x` or in base64 after `0b` (RFC 7143 §6.1). `None`: neither, malformed, or over
/// `bytes_max`. An odd number of hexadecimal digits has a zero before it, as numbers have.
pub fn binary(value: &str, bytes_max: usize) -> Option<Vec<u8>> {
    if let Some(digits) = hexadecimal(value) {
        let bytes = digits.len().div_ceil(2);
        if digits.is_empty() || bytes > bytes_max {
            return None;
        }
        let mut nibbles = digits.chars().map(|digit| digit.to_digit(16).map(|nibble| nibble as u8));
        let mut decoded = Vec::with_capacity(bytes);
        if digits.len() % 2 == 1 {
            decoded.push(nibbles.next()??);
        }
        while let Some(high) = nibbles.next() {
            decoded.push(high? << 4 | nibbles.next()??);
        }
        return Some(decoded);
    }
    let digits = value.strip_prefix("0b").or_else(|| value.strip_prefix("0B"))?;
    if digits.is_empty() || digits.len() > bytes_max.div_ceil(3) * 4 {
        return None;
    }
    let decoded = BASE64.decode(digits).ok()?;
    (decoded.len() <= bytes_max).then_some(decoded)
}

/// Base64 as RFC 7143 §6.1 has it; not all initiators pad.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

fn hexadecimal(value: &str) -> Option<&str> {
    value.strip_prefix("0x").or_else(|| value.strip_prefix("0X"))
}

/// Text that we send.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Text {
    bytes: Vec<u8>,
}

impl Text {
    /// Adds a pair. What we say is made here: neither part has a NUL.
    pub fn push(&mut self, key: &str, value: impl fmt::Display) {
        use std::io::Write;

        let from = self.bytes.len();
        // Writing to a vector does not fail.
        let _ = write!(self.bytes, "{key}={value}\0");
        debug_assert!(!self.bytes[from..self.bytes.len() - 1].contains(&0));
    }

    /// Adds a pair whose value is binary, in hexadecimal: the form that all initiators read.
    pub fn push_binary(&mut self, key: &str, value: &[u8]) {
        self.push(key, Hexadecimal(value));
    }

    /// Whether nothing was added.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The bytes, every pair with its NUL.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

struct Hexadecimal<'a>(&'a [u8]);

impl fmt::Display for Hexadecimal<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("0x")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Text on its way out, in pieces that fit the peer's segments.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outgoing {
    bytes: Vec<u8>,
    sent: usize,
}

impl Outgoing {
    /// Nothing sent yet.
    pub fn new(bytes: Vec<u8>) -> Outgoing {
        Outgoing { bytes, sent: 0 }
    }

    /// The next piece, of at most `bytes_max`, and whether more follow: then it goes out with the C bit, and the
    /// peer answers it with an empty request (RFC 7143 §11.11.2).
    ///
    /// # Panics
    /// When `bytes_max` is 0.
    pub fn next_piece(&mut self, bytes_max: usize) -> (&[u8], bool) {
        assert!(bytes_max > 0, "MaxRecvDataSegmentLength is at least 512");
        let from = self.sent;
        self.sent = self.bytes.len().min(from + bytes_max);
        (&self.bytes[from..self.sent], self.sent < self.bytes.len())
    }

    /// Whether all of it is out.
    pub fn is_sent(&self) -> bool {
        self.sent == self.bytes.len()
    }

    /// Bytes not yet out.
    pub fn unsent_bytes(&self) -> usize {
        self.bytes.len() - self.sent
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// Goal: what belongs together is found, what is malformed is named. Method: examples.
    #[test]
    fn parses_pairs() {
        let pairs = Pairs::parse(b"InitiatorName=iqn.x\0X-com.a/b#1=a=b,c\0\0\0Empty=\0Last=1").unwrap();
        assert_eq!(pairs.get("InitiatorName"), Some("iqn.x"));
        assert_eq!(pairs.get("X-com.a/b#1"), Some("a=b,c"));
        assert_eq!(pairs.get("Empty"), Some(""));
        assert_eq!(pairs.get("Last"), Some("1"));
        assert_eq!(pairs.get("last"), None);
        assert_eq!(pairs.iter().count(), 4);
        assert!(Pairs::parse(b"").unwrap().is_empty());
        assert!(Pairs::parse(b"\0\0\0").unwrap().is_empty());
        let long = format!("{}=1\0", "K".repeat(64));
        let many: Vec<u8> = (0..=PAIRS_MAX).flat_map(|key| format!("K{key}=\0").into_bytes()).collect();
        for (text, error) in [
            (&b"NoValue\0"[..], TextError::NoValue),
            (b"=1\0", TextError::BadKey),
            (b"a b=1\0", TextError::BadKey),
            (long.as_bytes(), TextError::BadKey),
            (b"A=1\0B=2\0A=1\0", TextError::DuplicateKey),
            (b"A=\xff\0", TextError::NotUtf8),
            (&many, TextError::TooManyPairs),
            (&vec![0; TEXT_BYTES_MAX + 1], TextError::TooLong),
        ] {
            assert_eq!(Pairs::parse(text).unwrap_err(), error);
        }
    }

    /// Goal: both notations, and nothing else, at the ends of their range.
    #[test]
    fn numbers() {
        for (value, expected) in [
            ("0", Some(0)),
            ("262144", Some(262_144)),
            ("18446744073709551615", Some(u64::MAX)),
            ("18446744073709551616", None),
            ("0x10", Some(16)),
            ("0XfF", Some(255)),
            ("0xffffffffffffffff", Some(u64::MAX)),
            ("0x10000000000000000", None),
            ("007", None),
            ("", None),
            ("0x", None),
            ("-1", None),
            ("+1", None),
            ("0x+1", None),
            (" 1", None),
            ("1k", None),
            ("Yes", None),
        ] {
            assert_eq!(number(value), expected, "{value}");
        }
        assert_eq!((boolean("Yes"), boolean("No"), boolean("yes")), (Some(true), Some(false), None));
        assert_eq!(list("CRC32C,None").collect::<Vec<_>>(), ["CRC32C", "None"]);
        assert_eq!(list("").count(), 0);
    }

    /// Goal: bytes in both notations, bounded. Method: examples, padded and not, and what is malformed.
    #[test]
    fn binaries() {
        assert_eq!(binary("0x0102fF", 3), Some(vec![1, 2, 255]));
        assert_eq!(binary("0x102", 2), Some(vec![1, 2]));
        assert_eq!(binary("0bAQL/", 3), Some(vec![1, 2, 255]));
        assert_eq!(binary("0BAQI=", 3), Some(vec![1, 2]));
        assert_eq!(binary("0bAQI", 3), Some(vec![1, 2]));
        for wrong in ["", "12", "0x", "0b", "0x0g", "0xé", "0bA", "0b****", "0x01020304", "0bAQIDBA=="] {
            assert_eq!(binary(wrong, 3), None, "{wrong}");
        }
    }

    proptest! {
        /// Goal: no text panics, and pairs are what lies between the NULs. Method: any bytes, often NUL and `=`.
        #[test]
        fn any_text_is_judged(text in vec(prop_oneof![Just(0u8), Just(b'='), b'0'..b'z', any::<u8>()], 0..400)) {
            if let Ok(pairs) = Pairs::parse(&text) {
                for (key, value) in pairs.iter() {
                    prop_assert!(is_key(key) && !value.contains('\0'));
                    let _ = (number(value), binary(value, 16), list(value).count());
                }
                let kept: usize = pairs.iter().map(|(key, value)| key.len() + value.len() + 1).sum();
                prop_assert_eq!(kept, text.iter().filter(|&&byte| byte != 0).count());
            }
        }

        /// Goal: binary values survive both notations. Method: encode, decode.
        #[test]
        fn binary_comes_back(bytes in vec(any::<u8>(), 1..100)) {
            let mut text = Text::default();
            text.push_binary("CHAP_C", &bytes);
            let wire = text.into_bytes();
            let pairs = Pairs::parse(&wire).unwrap();
            prop_assert_eq!(binary(pairs.get("CHAP_C").unwrap(), bytes.len()), Some(bytes.clone()));
            prop_assert_eq!(binary(pairs.get("CHAP_C").unwrap(), bytes.len() - 1), None);
            let base64 = format!("0b{}", BASE64.encode(&bytes));
            prop_assert_eq!(binary(&base64, bytes.len()), Some(bytes.clone()));
            prop_assert_eq!(binary(&base64, bytes.len() - 1), None);
        }

        /// Goal: text cut to segments is put together the same. Method: any cut, through a collector.
        #[test]
        fn pieces_make_the_whole(bytes in vec(any::<u8>(), 0..3000), piece in 1usize..700) {
            let mut outgoing = Outgoing::new(bytes.clone());
            let mut collector = Collector::default();
            loop {
                let (piece, more) = outgoing.next_piece(piece);
                collector.push(piece).unwrap();
                if !more {
                    break;
                }
            }
            prop_assert!(outgoing.is_sent() && outgoing.unsent_bytes() == 0);
            prop_assert_eq!(collector.take(), bytes);
            prop_assert!(collector.is_empty());
        }
    }

    /// Goal: continued text has an end.
    #[test]
    fn collects_only_so_much() {
        let mut collector = Collector::default();
        collector.push(&[1; TEXT_BYTES_MAX]).unwrap();
        assert_eq!(collector.push(&[1]), Err(TextError::TooLong));
    }
}
