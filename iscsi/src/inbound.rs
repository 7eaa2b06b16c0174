//! Cuts one connection's byte stream into headers and data segments, digests checked.
//!
//! A header is handed out whole; then the connection says where its data segment goes, and bytes are copied
//! there, or received there straight from the socket when many are due. Nothing is kept of a PDU that is
//! through, so an idle connection holds no buffer. Invariant: a header longer than [`HEADER_BYTES_MAX`] or a
//! segment longer than the limit never starts to be collected.

use crate::digest::Crc;
use crate::pdu::{self, BHS_BYTES, Bhs, DIGEST_BYTES, HEADER_BYTES_MAX};

/// What has gone wrong with the stream. All end the connection (RFC 7143 §7.7, §7.10, §7.14 at
/// ErrorRecoveryLevel 0).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamError {
    /// The header digest doesn't match: the length can't be trusted, so the stream is lost.
    HeaderDigest,
    /// The data segment is longer than we declared to accept.
    SegmentTooLong {
        /// What the header says.
        data_bytes: usize,
    },
}

/// A header with what follows it.
#[derive(Clone, Debug)]
pub struct Header {
    /// Basic header segment.
    pub bhs: Bhs,
    /// Additional header segments.
    pub ahs: Vec<u8>,
}

/// Collects headers that arrive in parts.
#[derive(Debug, Default)]
pub struct Inbound {
    /// A header not yet whole.
    partial: Vec<u8>,
}

impl Inbound {
    /// Takes the next header off the front of `bytes`; also says how many bytes it took. `None`: all bytes were
    /// taken and more are needed.
    ///
    /// # Errors
    /// [`StreamError`], after which the stream makes no sense any more.
    pub fn header(
        &mut self,
        bytes: &[u8],
        digest: bool,
        data_bytes_max: usize,
    ) -> Result<(usize, Option<Header>), StreamError> {
        // The common case: a bare header, whole.
        if self.partial.is_empty()
            && let Some(bhs) = bytes.first_chunk::<BHS_BYTES>()
        {
            let whole = pdu::header_bytes(bhs, digest);
            if let Some(header) = bytes.get(..whole) {
                return Ok((whole, Some(check(header, digest, data_bytes_max)?)));
            }
        }
        let mut taken = 0;
        loop {
            let need = match self.partial.first_chunk::<BHS_BYTES>() {
                Some(bhs) => pdu::header_bytes(bhs, digest),
                None => BHS_BYTES,
            };
            debug_assert!(need <= HEADER_BYTES_MAX);
            if self.partial.len() == need && need >= BHS_BYTES + usize::from(digest) * DIGEST_BYTES {
                let header = check(&self.partial, digest, data_bytes_max);
                self.partial.clear();
                return Ok((taken, Some(header?)));
            }
            let part = (need - self.partial.len()).min(bytes.len() - taken);
            if part == 0 {
                return Ok((taken, None));
            }
            self.partial.extend_from_slice(&bytes[taken..taken + part]);
            taken += part;
        }
    }
}

/// `bytes` are a whole header with its digest.
fn check(bytes: &[u8], digest: bool, data_bytes_max: usize) -> Result<Header, StreamError> {
    let Some((bhs, rest)) = bytes.split_first_chunk::<BHS_BYTES>() else {
        unreachable!("a whole header begins with a basic header segment");
    };
    let ahs = &rest[..pdu::ahs_bytes(bhs)];
    if digest {
        let mut crc = Crc::new();
        crc.update(&bytes[..BHS_BYTES + ahs.len()]);
        if crc.finish() != rest[ahs.len()..] {
            return Err(StreamError::HeaderDigest);
        }
    }
    let data_bytes = pdu::data_bytes(bhs);
    if data_bytes > data_bytes_max {
        return Err(StreamError::SegmentTooLong { data_bytes });
    }
    Ok(Header { bhs: *bhs, ahs: ahs.to_vec() })
}

/// What follows a data segment: padding and digest, collected as they come.
#[derive(Clone, Debug)]
pub struct Trailer {
    bytes: [u8; 7],
    have: usize,
    need: usize,
    padding: usize,
}

impl Trailer {
    /// For a segment of `data_bytes`.
    pub fn new(data_bytes: usize, digest: bool) -> Trailer {
        let need = pdu::trailer_bytes(data_bytes, digest);
        Trailer { bytes: [0; 7], have: 0, need, padding: pdu::padding(data_bytes) }
    }

    /// Takes what it can from the front of `bytes`; says how many.
    pub fn take(&mut self, bytes: &[u8]) -> usize {
        let part = (self.need - self.have).min(bytes.len());
        self.bytes[self.have..self.have + part].copy_from_slice(&bytes[..part]);
        self.have += part;
        part
    }

    /// Whether all is there.
    pub fn is_whole(&self) -> bool {
        self.have == self.need
    }

    /// Whether the digest, if there is one, is that of the data and the padding (RFC 7143 §11.2.3).
    pub fn matches(&self, crc: Option<Crc>) -> bool {
        let Some(mut crc) = crc else { return true };
        if self.need == 0 {
            return true;
        }
        crc.update(&self.bytes[..self.padding]);
        crc.finish() == self.bytes[self.padding..self.need]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(ahs_words: u8, data_bytes: u8, digest: bool) -> Vec<u8> {
        let mut bytes = vec![0x5a; BHS_BYTES + usize::from(ahs_words) * 4];
        bytes[4] = ahs_words;
        bytes[5..8].copy_from_slice(&[0, 0, data_bytes]);
        if digest {
            let mut crc = Crc::new();
            crc.update(&bytes);
            bytes.extend_from_slice(&crc.finish());
        }
        bytes
    }

    /// Goal: a header comes out the same however the bytes arrive. Method: cut it at every place.
    #[test]
    fn headers_come_out_whole() {
        for (ahs, digest) in [(0, false), (0, true), (3, false), (3, true)] {
            let bytes = header(ahs, 9, digest);
            for cut in 0..=bytes.len() {
                let mut inbound = Inbound::default();
                let (taken, first) = inbound.header(&bytes[..cut], digest, 9).unwrap();
                assert_eq!(taken, cut);
                let found = first.unwrap_or_else(|| {
                    let (taken, second) = inbound.header(&bytes[cut..], digest, 9).unwrap();
                    assert_eq!(taken, bytes.len() - cut);
                    second.unwrap()
                });
                assert_eq!((found.bhs.as_slice(), found.ahs.len()), (&bytes[..48], usize::from(ahs) * 4));
            }
        }
    }

    /// Goal: a wrong digest and a segment over the limit are seen before any data are taken.
    #[test]
    fn bad_headers_end_the_stream() {
        let mut bytes = header(0, 9, true);
        bytes[20] ^= 1;
        assert_eq!(Inbound::default().header(&bytes, true, 9).unwrap_err(), StreamError::HeaderDigest);
        let bytes = header(0, 9, false);
        let error = StreamError::SegmentTooLong { data_bytes: 9 };
        assert_eq!(Inbound::default().header(&bytes, false, 8).unwrap_err(), error);
    }
}
