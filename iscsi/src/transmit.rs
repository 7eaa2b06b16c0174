//! Bytes on their way out of one connection: headers in one run of memory, payloads in the buffers they came in.
//!
//! Headers, padding and digests are appended to `heads`; a payload stands between two stretches of it. So all
//! that a turn has completed leaves in one gathered send, and small responses that follow each other are one
//! slice. Invariant: the `head_bytes` of all segments plus `open_bytes` is what `heads` holds past `head_at`.

use bdev::lent::Lent;
use reactor::buf::Buf;
use std::collections::VecDeque;
use std::io::IoSlice;
use std::ops::Range;
use std::rc::Rc;

/// Slices a single send can carry (the kernel's UIO_MAXIOV); what is left goes with the next.
pub const SLICES_MAX: usize = 1024;

/// And one of a connection that has no more than this to say.
pub const FEW_SLICES: usize = 16;

/// Past this much sent, `heads` is moved to its front again.
const HEADS_COMPACT_BYTES: usize = 16 << 10;

/// Memory a payload leaves from, kept until it is with the kernel.
#[derive(Debug)]
pub enum Payload {
    /// A buffer of the session's share.
    Buf(Buf),
    /// One that several PDUs carry parts of, when the initiator's segments are smaller than our pieces.
    Shared(Rc<Buf>),
    /// A device's own.
    Lent(Lent),
    /// Rare, small: text, sense data, ping data.
    Bytes(Vec<u8>),
}

impl Payload {
    /// All of it.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Payload::Buf(buf) => buf,
            Payload::Shared(buf) => buf,
            Payload::Lent(lent) => lent,
            Payload::Bytes(bytes) => bytes,
        }
    }

    /// The buffer that has to go back, if this was the last use of one.
    pub fn into_buf(self) -> Option<Buf> {
        match self {
            Payload::Buf(buf) => Some(buf),
            Payload::Shared(buf) => Rc::into_inner(buf),
            Payload::Lent(_) | Payload::Bytes(_) => None,
        }
    }
}

#[derive(Debug)]
struct Segment {
    head_bytes: usize,
    payload: Payload,
    range: Range<usize>,
}

/// What a connection has to send.
#[derive(Debug, Default)]
pub struct Outbound {
    heads: Vec<u8>,
    head_at: usize,
    segments: VecDeque<Segment>,
    open_bytes: usize,
    queued_bytes: usize,
}

impl Outbound {
    /// Bytes not yet with the kernel.
    pub fn queued_bytes(&self) -> usize {
        self.queued_bytes
    }

    /// Whether everything has been sent.
    pub fn is_empty(&self) -> bool {
        self.queued_bytes == 0
    }

    /// How many slices [`Outbound::slices`] may want.
    pub fn slices_wanted(&self) -> usize {
        2 * self.segments.len() + 1
    }

    /// Appends header bytes (or padding, or a digest).
    pub fn push(&mut self, bytes: &[u8]) {
        self.heads.extend_from_slice(bytes);
        self.open_bytes += bytes.len();
        self.queued_bytes += bytes.len();
    }

    /// Appends `payload[range]`.
    pub fn push_payload(&mut self, payload: Payload, range: Range<usize>) {
        debug_assert!(range.start < range.end && range.end <= payload.bytes().len());
        self.queued_bytes += range.len();
        let head_bytes = std::mem::take(&mut self.open_bytes);
        self.segments.push_back(Segment { head_bytes, payload, range });
    }

    /// What to hand to one gathered send: fills `slices` from the front, returns how many.
    pub fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let mut count = 0;
        let mut at = self.head_at;
        let last = (self.open_bytes, None);
        let segments = self
            .segments
            .iter()
            .map(|segment| (segment.head_bytes, Some(&segment.payload.bytes()[segment.range.clone()])))
            .chain(std::iter::once(last));
        for (head_bytes, payload) in segments {
            for slice in [Some(&self.heads[at..at + head_bytes]), payload].into_iter().flatten() {
                if slice.is_empty() {
                    continue;
                }
                if count == slices.len() {
                    return count;
                }
                slices[count] = IoSlice::new(slice);
                count += 1;
            }
            at += head_bytes;
        }
        count
    }

    /// The kernel has taken `bytes`; `release` gets every payload that is through.
    pub fn sent(&mut self, mut bytes: usize, mut release: impl FnMut(Payload)) {
        assert!(bytes <= self.queued_bytes);
        self.queued_bytes -= bytes;
        while bytes > 0 {
            let head_bytes = match self.segments.front_mut() {
                Some(segment) => &mut segment.head_bytes,
                None => &mut self.open_bytes,
            };
            let taken = bytes.min(*head_bytes);
            *head_bytes -= taken;
            self.head_at += taken;
            bytes -= taken;
            if *head_bytes > 0 {
                break;
            }
            let Some(segment) = self.segments.front_mut() else { break };
            let taken = bytes.min(segment.range.len());
            segment.range.start += taken;
            bytes -= taken;
            if !segment.range.is_empty() {
                break;
            }
            if let Some(segment) = self.segments.pop_front() {
                release(segment.payload);
            }
        }
        debug_assert_eq!(bytes, 0);
        if self.head_at == self.heads.len() {
            self.heads.clear();
            self.head_at = 0;
        } else if self.head_at >= HEADS_COMPACT_BYTES {
            self.heads.drain(..self.head_at);
            self.head_at = 0;
        }
    }

    /// Drops everything: the connection is gone.
    pub fn clear(&mut self, mut release: impl FnMut(Payload)) {
        self.segments.drain(..).for_each(|segment| release(segment.payload));
        *self = Outbound::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Goal: whatever the kernel takes at a time, the bytes leave in order and each payload is released once.
        /// Method: random pushes, sends of random length, compared with one plain vector.
        #[test]
        fn leaves_in_order(steps in proptest::collection::vec((0usize..3, 1usize..3000), 1..100)) {
            let mut outbound = Outbound::default();
            let (mut model, mut seen) = (Vec::new(), Vec::new());
            let (mut pushed, mut released) = (0, 0);
            let mut counter = 0u8;
            let take = |outbound: &mut Outbound, limit: usize, seen: &mut Vec<u8>, released: &mut usize| {
                let mut slices = [IoSlice::new(&[]); 5];
                let count = outbound.slices(&mut slices);
                let all: Vec<u8> = slices[..count].iter().flat_map(|slice| slice.to_vec()).collect();
                let bytes = all.len().min(limit);
                seen.extend_from_slice(&all[..bytes]);
                outbound.sent(bytes, |_| *released += 1);
            };
            for (kind, bytes) in steps {
                counter = counter.wrapping_add(1);
                match kind {
                    0 => {
                        outbound.push(&vec![counter; bytes % 60]);
                        model.extend(vec![counter; bytes % 60]);
                    }
                    1 => {
                        outbound.push_payload(Payload::Bytes(vec![counter; bytes]), 0..bytes);
                        model.extend(vec![counter; bytes]);
                        pushed += 1;
                    }
                    _ => take(&mut outbound, bytes, &mut seen, &mut released),
                }
            }
            while !outbound.is_empty() {
                take(&mut outbound, 777, &mut seen, &mut released);
            }
            prop_assert_eq!(seen, model);
            prop_assert_eq!(pushed, released);
        }
    }
}
