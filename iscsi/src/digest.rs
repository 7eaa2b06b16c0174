//! The CRC32C digests of headers and data (RFC 7143 §13.1: polynomial 1EDC6F41h, reflected, all-ones start
//! and final inversion). On the wire the digest's lowest byte goes first.

use crc_fast::{CrcAlgorithm, Digest};

use crate::pdu::{DIGEST_BYTES, padding};

/// A digest as it lies on the wire.
pub type WireDigest = [u8; DIGEST_BYTES];

/// The digest of bytes that lie in one piece, such as a header with its additional segments.
pub fn crc32c(bytes: &[u8]) -> WireDigest {
    crc_fast::crc32_iscsi(bytes).to_le_bytes()
}

/// The digest of bytes that come in pieces: a data segment as it is received, or gathered from several buffers.
#[derive(Clone, Debug)]
pub struct Crc {
    digest: Digest,
}

impl Crc {
    /// Of nothing yet.
    pub fn new() -> Crc {
        Crc { digest: Digest::new(CrcAlgorithm::Crc32Iscsi) }
    }

    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.digest.update(bytes);
    }

    /// Adds the zeroes that pad a segment of `segment_bytes`: a data digest covers them (RFC 7143 §11.2.3).
    pub fn update_padding(&mut self, segment_bytes: usize) {
        self.digest.update(&[0; 3][..padding(segment_bytes)]);
    }

    /// The digest of what was added.
    pub fn finish(&self) -> WireDigest {
        (self.digest.finalize() as u32).to_le_bytes()
    }
}

impl Default for Crc {
    fn default() -> Crc {
        Crc::new()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Goal: the CRC that iSCSI means. Method: the examples of RFC 7143 appendix A.4 (3720's B.4), in both forms.
    #[test]
    fn known_vectors() {
        let rising: Vec<u8> = (0..32).collect();
        let falling: Vec<u8> = (0..32).rev().collect();
        let read_10 = [
            0x01, 0xc0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x14, 0, 0, 0, 0, 0, 0x04, 0, 0, 0, 0,
            0x14, 0, 0, 0, 0x18, 0x28, 0, 0, 0, 0, 0, 0, 0, 0x02, 0, 0, 0, 0, 0, 0, 0,
        ];
        let examples: [(&[u8], WireDigest); 5] = [
            (&[0; 32], [0xaa, 0x36, 0x91, 0x8a]),
            (&[0xff; 32], [0x43, 0xab, 0xa8, 0x62]),
            (&rising, [0x4e, 0x79, 0xdd, 0x46]),
            (&falling, [0x5c, 0xdb, 0x3f, 0x11]),
            (&read_10, [0x56, 0x3a, 0x96, 0xd9]),
        ];
        for (bytes, digest) in examples {
            assert_eq!(crc32c(bytes), digest);
            let mut crc = Crc::new();
            for byte in bytes {
                crc.update(&[*byte]);
            }
            assert_eq!(crc.finish(), digest);
        }
    }

    /// The definition, bit by bit.
    fn dull(bytes: &[u8]) -> WireDigest {
        let mut crc = u32::MAX;
        for byte in bytes {
            crc ^= u32::from(*byte);
            for _ in 0..8 {
                crc = crc >> 1 ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 };
            }
        }
        (!crc).to_le_bytes()
    }

    proptest! {
        /// Goal: however the bytes are cut, the same digest, padding included. Method: against the definition.
        #[test]
        fn pieces_make_the_whole(bytes in proptest::collection::vec(any::<u8>(), 0..2000), cuts in proptest::collection::vec(0usize..2000, 0..8)) {
            let mut padded = bytes.clone();
            padded.resize(bytes.len() + padding(bytes.len()), 0);
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.push(bytes.len());
            cuts.sort_unstable();
            let mut crc = Crc::new();
            let mut from = 0;
            for cut in cuts {
                crc.update(&bytes[from..cut]);
                from = cut;
            }
            prop_assert_eq!(crc.finish(), dull(&bytes));
            crc.update_padding(bytes.len());
            prop_assert_eq!(crc.finish(), dull(&padded));
            prop_assert_eq!(crc32c(&padded), dull(&padded));
        }
    }
}
