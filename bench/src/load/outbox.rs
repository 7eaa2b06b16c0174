//! What waits to be sent on one connection: headers by copy, data by reference, sent with one call a batch.
//!
//! Invariant: pieces leave in the order they were pushed, and `fixed` is reused only once all have left. Nothing
//! here grows after [`Outbox::new`]. Called by `session` and by the raw ceiling's server.

use smallvec::SmallVec;
use std::io::{self, ErrorKind, IoSlice, Write};

/// Slices handed to one gathered send; the kernel takes up to 1,024.
const SLICES_MAX: usize = 512;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    /// `fixed`: headers, digests, padding.
    Fixed,
    /// The payload memory that the caller of `send` names.
    Payload,
}

#[derive(Debug, Clone, Copy)]
struct Piece {
    source: Source,
    at: usize,
    bytes: usize,
}

/// A bounded queue of bytes to send.
#[derive(Debug)]
pub struct Outbox {
    fixed: Box<[u8]>,
    fixed_filled: usize,
    pieces: Vec<Piece>,
    pieces_max: usize,
    /// Pieces before this one have left.
    first: usize,
}

impl Outbox {
    /// Room for `pdus` PDUs, each of at most `fixed_bytes` of headers and one piece of payload.
    pub fn new(pdus: usize, fixed_bytes: usize) -> Outbox {
        // A PDU is at most: header, payload, padding and digest.
        let pieces_max = pdus * 3;
        Outbox {
            fixed: vec![0; pdus * fixed_bytes].into(),
            fixed_filled: 0,
            pieces: Vec::with_capacity(pieces_max),
            pieces_max,
            first: 0,
        }
    }

    /// True when nothing waits.
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// True when one more PDU with `fixed_bytes` of headers fits.
    pub fn has_room(&self, fixed_bytes: usize) -> bool {
        self.fixed_filled + fixed_bytes <= self.fixed.len() && self.pieces.len() + 3 <= self.pieces_max
    }

    /// How many more PDUs with `fixed_bytes` of headers fit.
    pub fn room(&self, fixed_bytes: usize) -> usize {
        ((self.fixed.len() - self.fixed_filled) / fixed_bytes).min((self.pieces_max - self.pieces.len()) / 3)
    }

    /// Copies `bytes` in; the caller asked [`Outbox::has_room`] first.
    pub fn push_fixed(&mut self, bytes: &[u8]) {
        let at = self.fixed_filled;
        self.fixed[at..at + bytes.len()].copy_from_slice(bytes);
        self.fixed_filled += bytes.len();
        // Only an unsent neighbour may grow: index `first` may be partly gone, but its end is still to come.
        if let Some(last) = self.pieces[self.first..].last_mut()
            && last.source == Source::Fixed
        {
            last.bytes += bytes.len();
            return;
        }
        self.pieces.push(Piece { source: Source::Fixed, at, bytes: bytes.len() });
    }

    /// Names `bytes` of the payload memory at `at`; they must stay as they are until they have left.
    pub fn push_payload(&mut self, at: usize, bytes: usize) {
        self.pieces.push(Piece { source: Source::Payload, at, bytes });
    }

    /// Sends what the socket takes, with one call. Returns the bytes that left; zero when it takes none now.
    ///
    /// # Errors
    /// What the socket says, except that it would block.
    pub fn send(&mut self, socket: &mut impl Write, payload: &[u8]) -> io::Result<usize> {
        if self.is_empty() {
            return Ok(0);
        }
        let sent = {
            let mut slices: SmallVec<[IoSlice<'_>; SLICES_MAX]> = SmallVec::new();
            for piece in self.pieces[self.first..].iter().take(SLICES_MAX) {
                let memory = match piece.source {
                    Source::Fixed => &self.fixed[..],
                    Source::Payload => payload,
                };
                slices.push(IoSlice::new(&memory[piece.at..piece.at + piece.bytes]));
            }
            let outcome = if let [one] = slices.as_slice() {
                socket.write(one)
            } else {
                socket.write_vectored(&slices)
            };
            match outcome {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(sent) => sent,
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => 0,
                Err(error) => return Err(error),
            }
        };
        self.forget(sent);
        Ok(sent)
    }

    fn forget(&mut self, mut sent: usize) {
        while sent > 0 {
            let piece = &mut self.pieces[self.first];
            if sent < piece.bytes {
                piece.at += sent;
                piece.bytes -= sent;
                return;
            }
            sent -= piece.bytes;
            self.first += 1;
        }
        if self.first == self.pieces.len() {
            self.pieces.clear();
            self.first = 0;
            self.fixed_filled = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A socket that takes a few bytes at a time, and sometimes none.
    struct Narrow {
        got: Vec<u8>,
        takes: usize,
        turn: usize,
    }

    impl Write for Narrow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.turn += 1;
            if self.turn.is_multiple_of(3) {
                return Err(ErrorKind::WouldBlock.into());
            }
            let taken = bytes.len().min(self.takes);
            self.got.extend(&bytes[..taken]);
            Ok(taken)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Goal: short sends lose, double and reorder nothing, also while new pieces come. Method: a socket that
    /// takes seven bytes a call, against the concatenation.
    #[test]
    fn short_sends_keep_the_stream() {
        let payload: Vec<u8> = (0..=255).collect();
        let mut outbox = Outbox::new(8, 16);
        let mut socket = Narrow { got: Vec::new(), takes: 7, turn: 0 };
        let mut expected = Vec::new();
        for round in 0..50_u8 {
            if outbox.has_room(10) {
                outbox.push_fixed(&[round; 6]);
                outbox.push_payload(round as usize, 9);
                outbox.push_fixed(&[round; 4]);
                expected.extend([round; 6]);
                expected.extend(&payload[round as usize..round as usize + 9]);
                expected.extend([round; 4]);
            }
            outbox.send(&mut socket, &payload).unwrap();
        }
        while !outbox.is_empty() {
            outbox.send(&mut socket, &payload).unwrap();
        }
        assert_eq!(socket.got, expected);
    }

    /// Goal: neighbouring headers leave as one slice. Method: push three, count pieces.
    #[test]
    fn headers_merge() {
        let mut outbox = Outbox::new(4, 48);
        for _ in 0..3 {
            outbox.push_fixed(&[1; 48]);
        }
        assert_eq!(outbox.pieces.len(), 1);
        assert!(outbox.has_room(48));
        outbox.push_fixed(&[1; 48]);
        assert!(!outbox.has_room(48));
    }
}
