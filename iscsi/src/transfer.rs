//! A task's data on the wire: what may come unsolicited, what R2Ts ask for and against which buffers, and
//! Data-In put back into order.
//!
//! At ErrorRecoveryLevel 0 with DataPDUInOrder and DataSequenceInOrder, data-out is one ascending stream:
//! unsolicited first, then the R2Ts' sequences in the order they were sent (RFC 7143 §13.18, §13.19). Invariant:
//! `received <= solicited_to`, and every byte between `unsolicited` and `solicited_to` below `want` has its
//! buffer: the one being filled, or one in `reserved`.

use crate::pdu::TaskTag;
use crate::quota::Lender;
use crate::spare::{Short, Spare};
use reactor::buf::Buf;
use reactor::clock::Time;
use smallvec::SmallVec;
use vaai::command::Buffers;

/// R2Ts of one task that may be outstanding, whatever the initiator would allow.
pub const R2TS_MAX: usize = 8;

/// Why data of a task can't be taken: the task fails, the PDU is rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataError {
    /// More unsolicited data than FirstBurstLength allows, or any where InitialR2T or ImmediateData forbid it.
    UnexpectedUnsolicited,
    /// The sequence ended before all that was promised or asked for came, or went on after it.
    IncorrectAmount,
    /// DataSN, Buffer Offset or Target Transfer Tag is not the one that is due.
    OutOfSequence,
}

/// An R2T that is out, or about to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct R2t {
    /// Names it: R2TSN in the low bits would repeat, so it is a count of the task.
    pub target_transfer_tag: TaskTag,
    /// R2TSN.
    pub r2t_sn: u32,
    /// Buffer Offset.
    pub offset: u32,
    /// Desired Data Transfer Length.
    pub bytes: u32,
}

/// A piece of data-out being filled.
#[derive(Debug)]
pub struct Piece {
    /// Its memory, as long as the piece.
    pub buf: Buf,
    /// Where it begins in the task's data-out.
    pub start: u32,
    /// How much of it is there.
    pub filled: u32,
}

impl Piece {
    /// Bytes still to come.
    pub fn room(&self) -> u32 {
        self.buf.len() as u32 - self.filled
    }
}

/// The data of one task.
#[derive(Debug)]
pub struct Transfer {
    /// Expected Data Transfer Length of a write, 0 otherwise.
    edtl: u32,
    /// What the task takes; bytes at and past it are discarded. `None` until it has said.
    want: Option<u32>,
    /// End of what may come unsolicited.
    unsolicited_to: u32,
    /// The unsolicited sequence has not ended yet.
    unsolicited_open: bool,
    /// Bytes received so far: the stream's position.
    received: u32,
    /// End of what has been asked for.
    solicited_to: u32,
    /// End of the last piece that has its buffer.
    covered_to: u32,
    /// DataSN due in the current sequence.
    data_sn: u32,
    r2t_sn: u32,
    r2ts: SmallVec<[R2t; 2]>,
    reserved: Short<Buf>,
    piece: Option<Piece>,
    /// When the initiator must have sent more.
    pub deadline: Time,
    /// Data-In: the next offset to be sent, and what came before its turn.
    pub data_in_next: u32,
    early: Short<(u32, Buf)>,
    /// DataSN of the next Data-In PDU.
    pub data_in_sn: u32,
    /// Bytes of the current Data-In sequence, up to MaxBurstLength.
    pub data_in_burst: u32,
}

/// Where transfers find longer lists, and leave them.
#[derive(Debug, Default)]
pub struct Spares {
    reserved: Spare<Buf>,
    early: Spare<(u32, Buf)>,
}

impl Transfer {
    /// For a command with `edtl` bytes of data-out of which those before `unsolicited_to` may come unsolicited;
    /// `open`: unsolicited Data-Out PDUs follow the command.
    pub fn new(edtl: u32, unsolicited_to: u32, open: bool) -> Transfer {
        Transfer {
            edtl,
            want: None,
            unsolicited_to: unsolicited_to.min(edtl),
            unsolicited_open: open,
            received: 0,
            solicited_to: 0,
            covered_to: 0,
            data_sn: 0,
            r2t_sn: 0,
            r2ts: SmallVec::new(),
            reserved: Short::new(),
            piece: None,
            deadline: Time::NEVER,
            data_in_next: 0,
            early: Short::new(),
            data_in_sn: 0,
            data_in_burst: 0,
        }
    }

    /// The task takes `bytes` of the data-out.
    pub fn set_want(&mut self, bytes: u32) {
        assert!(bytes <= self.edtl, "a task takes no more than the initiator has");
        self.want = Some(bytes);
    }

    /// Bytes that the task takes.
    pub fn want(&self) -> u32 {
        self.want.unwrap_or(0)
    }

    /// The stream's position.
    pub fn received(&self) -> u32 {
        self.received
    }

    /// Whether the initiator owes us data now.
    pub fn is_waiting(&self) -> bool {
        self.unsolicited_open || !self.r2ts.is_empty()
    }

    /// Whether all that the task wants is here or asked for.
    pub fn is_covered(&self) -> bool {
        self.unsolicited_open || self.solicited_to.max(self.received) >= self.want()
    }

    /// Checks a data segment of a command PDU (immediate data).
    ///
    /// # Errors
    /// More than the first burst, or than the command has.
    pub fn start_immediate(&self, bytes: u32) -> Result<(), DataError> {
        if bytes > self.unsolicited_to {
            return Err(DataError::UnexpectedUnsolicited);
        }
        Ok(())
    }

    /// The command PDU has been received whole; without its F bit, unsolicited Data-Out PDUs follow.
    pub fn end_immediate(&mut self, is_final: bool) {
        self.unsolicited_open = !is_final;
    }

    /// Checks a Data-Out PDU's header against what is due.
    ///
    /// # Errors
    /// See [`DataError`].
    pub fn start_data_out(
        &self,
        target_transfer_tag: TaskTag,
        data_sn: u32,
        offset: u32,
        bytes: u32,
        is_final: bool,
    ) -> Result<(), DataError> {
        if data_sn != self.data_sn || offset != self.received {
            return Err(DataError::OutOfSequence);
        }
        let end = offset.checked_add(bytes).ok_or(DataError::IncorrectAmount)?;
        if target_transfer_tag == TaskTag::RESERVED {
            if !self.unsolicited_open || end > self.unsolicited_to {
                return Err(DataError::UnexpectedUnsolicited);
            }
        } else {
            let due = self.r2ts.first().ok_or(DataError::OutOfSequence)?;
            if due.target_transfer_tag != target_transfer_tag {
                return Err(DataError::OutOfSequence);
            }
            if end > due.offset + due.bytes || is_final != (end == due.offset + due.bytes) {
                return Err(DataError::IncorrectAmount);
            }
        }
        Ok(())
    }

    /// A checked Data-Out PDU has been received whole (RFC 7143 §11.7.1: F ends the sequence).
    pub fn end_data_out(&mut self, target_transfer_tag: TaskTag, is_final: bool) {
        self.data_sn += 1;
        if is_final {
            self.data_sn = 0;
            if target_transfer_tag == TaskTag::RESERVED {
                self.unsolicited_open = false;
            } else if !self.r2ts.is_empty() {
                self.r2ts.remove(0);
            }
        }
    }

    /// Moves the stream on by bytes that were stored in a piece or discarded.
    pub fn advance(&mut self, bytes: u32) {
        self.received += bytes;
        debug_assert!(self.received <= self.edtl);
    }

    /// The piece being filled, for the receiver to go on with.
    pub fn take_piece(&mut self) -> Option<Piece> {
        self.piece.take()
    }

    /// Gives the piece back, not full yet.
    pub fn put_piece(&mut self, piece: Piece) {
        debug_assert!(self.piece.is_none() && piece.room() > 0);
        self.piece = Some(piece);
    }

    /// A buffer that was reserved for solicited data.
    pub fn take_reserved(&mut self) -> Option<Buf> {
        (!self.reserved.is_empty()).then(|| self.reserved.remove(0))
    }

    /// Where the next R2T would begin, if one may be sent now.
    pub fn next_r2t_offset(&self, outstanding_max: u32) -> Option<u32> {
        let want = self.want?;
        let from = self.solicited_to.max(self.received);
        let allowed = self.r2ts.len() < (outstanding_max as usize).min(R2TS_MAX);
        (!self.unsolicited_open && from < want && allowed).then_some(from)
    }

    /// Where the first piece without a buffer begins.
    pub fn covered_to(&self) -> u32 {
        self.covered_to
    }

    /// The pieces before `end` have their buffers now.
    pub fn cover(&mut self, end: u32) {
        debug_assert!(self.covered_to < end && end <= self.want());
        self.covered_to = end;
    }

    /// Keeps the buffer of a piece that will be asked for.
    pub fn reserve(&mut self, buf: Buf, spares: &mut Spares) {
        spares.reserved.push(&mut self.reserved, buf);
    }

    /// Asks for `[offset, offset + bytes)`, whose pieces have their buffers.
    pub fn solicit(&mut self, offset: u32, bytes: u32) -> R2t {
        debug_assert_eq!(offset, self.solicited_to.max(self.received));
        debug_assert!(bytes > 0 && offset + bytes <= self.covered_to);
        self.solicited_to = offset + bytes;
        let r2t = R2t { target_transfer_tag: TaskTag(self.r2t_sn), r2t_sn: self.r2t_sn, offset, bytes };
        self.r2ts.push(r2t);
        self.r2t_sn += 1;
        r2t
    }

    /// Takes Data-In in any order, hands it out in order.
    pub fn data_in(&mut self, offset: u32, buf: Buf, spares: &mut Spares) {
        spares.early.push(&mut self.early, (offset, buf));
    }

    /// The Data-In whose turn it is.
    pub fn next_data_in(&mut self) -> Option<(u32, Buf)> {
        let at = self.early.iter().position(|(offset, _)| *offset == self.data_in_next)?;
        let (offset, buf) = self.early.swap_remove(at);
        self.data_in_next += buf.len() as u32;
        Some((offset, buf))
    }

    /// The task is over but for data that the initiator still owes: they will be discarded. What was kept for them is given
    /// back.
    pub fn give_up(&mut self, lender: &mut Lender<'_>) {
        self.want = Some(0);
        self.give_up_reserved(lender);
        self.piece.take().into_iter().for_each(|piece| lender.give(piece.buf));
    }

    fn give_up_reserved(&mut self, lender: &mut Lender<'_>) {
        for buf in self.reserved.drain(..) {
            lender.unreserve(&buf);
            lender.give(buf);
        }
    }

    /// Nothing is held any more, nor comes.
    pub fn keep_lists(&mut self, spares: &mut Spares) {
        spares.reserved.keep(std::mem::take(&mut self.reserved));
        spares.early.keep(std::mem::take(&mut self.early));
    }

    /// Gives back everything that is held.
    pub fn drain(&mut self, lender: &mut Lender<'_>) {
        self.unsolicited_open = false;
        self.r2ts.clear();
        self.deadline = Time::NEVER;
        self.give_up_reserved(lender);
        self.piece.take().into_iter().for_each(|piece| lender.give(piece.buf));
        self.early.drain(..).for_each(|(_, buf)| lender.give(buf));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(edtl: u32, unsolicited_to: u32) -> Transfer {
        let mut transfer = Transfer::new(edtl, unsolicited_to, true);
        transfer.set_want(edtl);
        transfer
    }

    /// Goal: unsolicited data stay within the first burst and in sequence. Method: each kind of step outside.
    #[test]
    fn unsolicited_data_keep_to_the_first_burst() {
        let mut transfer = open(100, 64);
        assert_eq!(transfer.start_immediate(65), Err(DataError::UnexpectedUnsolicited));
        transfer.start_immediate(16).unwrap();
        transfer.advance(16);
        let tag = TaskTag::RESERVED;
        assert_eq!(transfer.start_data_out(tag, 1, 16, 8, false), Err(DataError::OutOfSequence));
        assert_eq!(transfer.start_data_out(tag, 0, 8, 8, false), Err(DataError::OutOfSequence));
        assert_eq!(transfer.start_data_out(tag, 0, 16, 49, true), Err(DataError::UnexpectedUnsolicited));
        assert_eq!(transfer.start_data_out(tag, 0, 16, u32::MAX, true), Err(DataError::IncorrectAmount));
        assert_eq!(transfer.next_r2t_offset(8), None);
        transfer.start_data_out(tag, 0, 16, 48, true).unwrap();
        transfer.advance(48);
        transfer.end_data_out(tag, true);
        assert_eq!(transfer.start_data_out(tag, 0, 64, 1, true), Err(DataError::UnexpectedUnsolicited));
        assert_eq!(transfer.next_r2t_offset(8), Some(64));
    }

    /// Goal: with several R2Ts out, data come in the order of the R2Ts, each sequence numbered from 0.
    #[test]
    fn solicited_data_follow_their_r2ts() {
        let mut transfer = Transfer::new(100, 0, false);
        transfer.set_want(90);
        let first = {
            transfer.cover(90);
            transfer.solicit(0, 40)
        };
        let second = transfer.solicit(40, 50);
        assert_eq!(transfer.next_r2t_offset(8), None);
        let (one, two) = (first.target_transfer_tag, second.target_transfer_tag);
        assert_eq!(transfer.start_data_out(two, 0, 0, 40, true), Err(DataError::OutOfSequence));
        assert_eq!(transfer.start_data_out(one, 0, 0, 41, true), Err(DataError::IncorrectAmount));
        assert_eq!(transfer.start_data_out(one, 0, 0, 39, true), Err(DataError::IncorrectAmount));
        assert_eq!(transfer.start_data_out(one, 0, 0, 40, false), Err(DataError::IncorrectAmount));
        transfer.start_data_out(one, 0, 0, 30, false).unwrap();
        transfer.advance(30);
        transfer.end_data_out(one, false);
        assert_eq!(transfer.start_data_out(one, 0, 30, 10, true), Err(DataError::OutOfSequence));
        transfer.start_data_out(one, 1, 30, 10, true).unwrap();
        transfer.advance(10);
        transfer.end_data_out(one, true);
        transfer.start_data_out(two, 0, 40, 50, true).unwrap();
        transfer.advance(50);
        transfer.end_data_out(two, true);
        assert!(!transfer.is_waiting() && transfer.is_covered());
    }

    /// Goal: Data-In leave in order whatever order the device answered in.
    #[test]
    fn data_in_leave_in_order() {
        let mut pool =
            reactor::buf::Pool::new(reactor::buf::PoolConfig { counts: [4, 0, 0], arena: 0 }).unwrap();
        let mut transfer = Transfer::new(0, 0, false);
        for offset in [20, 10, 0] {
            assert!(transfer.next_data_in().is_none());
            transfer.data_in(offset, pool.take(10).unwrap(), &mut Spares::default());
        }
        let offsets: Vec<u32> = std::iter::from_fn(|| transfer.next_data_in()).map(|(o, _)| o).collect();
        assert_eq!(offsets, [0, 10, 20]);
    }
}
