//! Cuts the target's byte stream into PDUs without copying their data.
//!
//! Owns at most one header and one tail of a PDU; data segments are handed out as slices of the bytes that were
//! given. Invariant: what was announced by the last header is `left` bytes away from its end. Called by `session`.

use super::wire::{BHS_BYTES, Bhs, Crc, DIGEST_BYTES, crc32c, data_bytes, pad_bytes};
use crate::failure::Failure;

const HEADER_BYTES_MAX: usize = BHS_BYTES + DIGEST_BYTES;
const TAIL_BYTES_MAX: usize = 3 + DIGEST_BYTES;

/// What comes next in the stream.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// A header is complete: see [`Inbox::header`].
    Header,
    /// The next bytes of the header's data segment; padding is not among them.
    Data(&'a [u8]),
    /// The PDU is complete and its digests hold.
    End,
}

#[derive(Debug, Clone, Copy)]
enum Stage {
    Header,
    Data { left: u32 },
    Tail,
    End,
}

/// The receiving half of a connection, without the socket.
#[derive(Debug)]
pub struct Inbox {
    header_digest: bool,
    data_digest: bool,
    data_bytes_max: u32,
    stage: Stage,
    bhs: Bhs,
    small: [u8; HEADER_BYTES_MAX],
    small_filled: usize,
    crc: Crc,
}

impl Inbox {
    /// `data_bytes_max` is the MaxRecvDataSegmentLength that we declared.
    pub fn new(header_digest: bool, data_digest: bool, data_bytes_max: u32) -> Inbox {
        Inbox {
            header_digest,
            data_digest,
            data_bytes_max,
            stage: Stage::Header,
            bhs: [0; BHS_BYTES],
            small: [0; HEADER_BYTES_MAX],
            small_filled: 0,
            crc: Crc::new(),
        }
    }

    /// The header that the last [`Event::Header`] told of.
    pub fn header(&self) -> &Bhs {
        &self.bhs
    }

    /// The next event; takes its bytes off the front of `bytes`. `None` when more bytes are needed.
    ///
    /// # Errors
    /// A digest that doesn't match, a segment longer than declared, an additional header segment (no PDU that a
    /// target sends to this initiator has one): the stream can't be trusted any more.
    pub fn next<'a>(&mut self, bytes: &mut &'a [u8]) -> Result<Option<Event<'a>>, Failure> {
        match self.stage {
            Stage::Header => self.next_header(bytes),
            Stage::Data { left } => {
                let given = *bytes;
                let taken = given.len().min(left as usize);
                if taken == 0 {
                    return Ok(None);
                }
                let (data, rest) = given.split_at(taken);
                *bytes = rest;
                if self.data_digest {
                    self.crc.update(data);
                }
                let left = left - taken as u32;
                self.stage = match left {
                    0 if self.tail_bytes() == 0 => Stage::End,
                    0 => Stage::Tail,
                    left => Stage::Data { left },
                };
                Ok(Some(Event::Data(data)))
            }
            Stage::Tail => self.next_tail(bytes),
            Stage::End => {
                self.stage = Stage::Header;
                Ok(Some(Event::End))
            }
        }
    }

    fn next_header<'a>(&mut self, bytes: &mut &'a [u8]) -> Result<Option<Event<'a>>, Failure> {
        let wanted = if self.header_digest { HEADER_BYTES_MAX } else { BHS_BYTES };
        if !self.gather(bytes, wanted) {
            return Ok(None);
        }
        self.bhs.copy_from_slice(&self.small[..BHS_BYTES]);
        if self.header_digest && crc32c(&self.bhs) != self.small[BHS_BYTES..] {
            return Err(Failure::new(format!("header digest does not match the header {:02x?}", self.bhs)));
        }
        if self.bhs[4] != 0 {
            return Err(Failure::new(format!("unexpected additional header segment in {:02x?}", self.bhs)));
        }
        let left = data_bytes(&self.bhs);
        if left > self.data_bytes_max {
            return Err(Failure::new(format!(
                "data segment of {left} bytes, over the MaxRecvDataSegmentLength of {} we declared",
                self.data_bytes_max
            )));
        }
        if self.data_digest {
            self.crc = Crc::new();
        }
        self.stage = if left > 0 { Stage::Data { left } } else { Stage::End };
        Ok(Some(Event::Header))
    }

    fn next_tail<'a>(&mut self, bytes: &mut &'a [u8]) -> Result<Option<Event<'a>>, Failure> {
        let wanted = self.tail_bytes();
        if !self.gather(bytes, wanted) {
            return Ok(None);
        }
        if self.data_digest {
            let pad = pad_bytes(data_bytes(&self.bhs)) as usize;
            self.crc.update(&self.small[..pad]);
            if self.crc.wire() != self.small[pad..wanted] {
                return Err(Failure::new(format!("data digest does not match, header {:02x?}", self.bhs)));
            }
        }
        self.stage = Stage::Header;
        Ok(Some(Event::End))
    }

    /// Padding and digest behind the current data segment.
    fn tail_bytes(&self) -> usize {
        let digest = if self.data_digest { DIGEST_BYTES } else { 0 };
        let bytes = pad_bytes(data_bytes(&self.bhs)) as usize + digest;
        assert!(bytes <= TAIL_BYTES_MAX);
        bytes
    }

    /// Fills `small` up to `wanted` bytes; true when they are all there, and the next gathering starts anew.
    fn gather(&mut self, bytes: &mut &[u8], wanted: usize) -> bool {
        let taken = (wanted - self.small_filled).min(bytes.len());
        let (now, rest) = bytes.split_at(taken);
        self.small[self.small_filled..self.small_filled + taken].copy_from_slice(now);
        *bytes = rest;
        self.small_filled += taken;
        if self.small_filled < wanted {
            return false;
        }
        self.small_filled = 0;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::super::wire::{opcode, put_data_bytes};
    use super::*;
    use proptest::prelude::*;

    /// One PDU as it travels.
    fn pdu(header_digest: bool, data_digest: bool, data: &[u8]) -> Vec<u8> {
        let mut bhs = [0; BHS_BYTES];
        bhs[0] = opcode::DATA_IN;
        put_data_bytes(&mut bhs, data.len() as u32);
        let mut bytes = bhs.to_vec();
        if header_digest {
            bytes.extend(crc32c(&bhs));
        }
        let mut padded = data.to_vec();
        padded.resize(data.len().next_multiple_of(4), 0);
        bytes.extend(&padded);
        if data_digest && !data.is_empty() {
            bytes.extend(crc32c(&padded));
        }
        bytes
    }

    /// The data segments of the whole PDUs in `parts`.
    fn read(inbox: &mut Inbox, parts: &[&[u8]]) -> Result<Vec<Vec<u8>>, Failure> {
        let mut whole = Vec::new();
        let mut current = Vec::new();
        for part in parts {
            let mut bytes = *part;
            while let Some(event) = inbox.next(&mut bytes)? {
                match event {
                    Event::Header => current.clear(),
                    Event::Data(data) => current.extend(data),
                    Event::End => whole.push(current.clone()),
                }
            }
        }
        Ok(whole)
    }

    proptest! {
        /// Goal: however TCP cuts the stream, the same PDUs come out. Method: random PDUs, digests and cuts.
        #[test]
        fn cuts_do_not_matter(
            segments in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 1..8),
            header_digest: bool,
            data_digest: bool,
            cut in 1_usize..70,
        ) {
            let stream: Vec<u8> = segments.iter().flat_map(|data| pdu(header_digest, data_digest, data)).collect();
            let parts: Vec<&[u8]> = stream.chunks(cut).collect();
            let mut inbox = Inbox::new(header_digest, data_digest, 64);
            prop_assert_eq!(read(&mut inbox, &parts).unwrap(), segments);
        }
    }

    /// Goal: a flipped bit anywhere under a digest is seen. Method: flip one of each kind.
    #[test]
    fn digests_are_checked() {
        let good = pdu(true, true, &[7; 10]);
        for at in [1, 49, 55, good.len() - 1] {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert!(read(&mut Inbox::new(true, true, 64), &[&bad]).is_err(), "byte {at}");
        }
    }

    /// Goal: a segment over the declared limit ends the stream. Method: the limit, and one more.
    #[test]
    fn the_declared_limit_holds() {
        assert!(read(&mut Inbox::new(false, false, 64), &[&pdu(false, false, &[1; 64])]).is_ok());
        assert!(read(&mut Inbox::new(false, false, 64), &[&pdu(false, false, &[1; 65])]).is_err());
    }
}
