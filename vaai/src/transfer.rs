//! Blocks on their way between initiator and medium, for the commands in `rw`.
//!
//! A [`Transfer`] streams: the range is cut at multiples of `PIECE_BYTES` of the device, and only a window of pieces is
//! under way, so a command of 256 MiB needs no more memory than one of 1 MiB. Data from the initiator bring their own
//! buffer; what has to be held against them (Compare, OrWrite) takes one more, which the transport's headroom for
//! tasks makes sure of.
//!
//! Invariant: each piece below `next` is in `pieces`, with the device, handed out, or given up behind `failed`.

use crate::cdb::BlockRange;
use crate::command::{Buffers, Effect};
use crate::limits::{QUIET_WINDOW, READ_WINDOW, STRAIGHT_BYTES_MAX};
use crate::sense::Sense;
use crate::task::{End, Head, Moves, Spent, Step, Straight};
use bdev::error::IoError;
use bdev::io::{Done, Op, PIECE_BYTES};
use reactor::buf::Buf;
use smallvec::SmallVec;

/// What is done with each piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Medium to initiator.
    Read,
    /// Medium to nowhere: it can be read.
    VerifyMedium,
    /// Medium against one block from the initiator, again and again.
    VerifyPattern,
    /// Medium against as much from the initiator.
    Verify,
    /// Initiator to medium.
    Write,
    /// Initiator ORed to the medium.
    OrWrite,
    /// Initiator to medium, and then read again.
    WriteAndRead,
    /// Initiator to medium, and then compared with it.
    WriteAndCompare,
}

impl Kind {
    fn moves(self) -> Moves {
        match self {
            Kind::Read => Moves::In,
            Kind::VerifyMedium => Moves::Nothing,
            Kind::VerifyPattern
            | Kind::Verify
            | Kind::Write
            | Kind::OrWrite
            | Kind::WriteAndRead
            | Kind::WriteAndCompare => Moves::Out,
        }
    }

    /// Whether the pieces begin as reads of the medium, or as data from the initiator.
    fn begins_at_medium(self) -> bool {
        match self {
            Kind::Read | Kind::VerifyMedium | Kind::VerifyPattern => true,
            Kind::Verify | Kind::Write | Kind::OrWrite | Kind::WriteAndRead | Kind::WriteAndCompare => false,
        }
    }

    /// What is done first with a piece from the initiator, or with one from the medium.
    fn first_op(self) -> Op {
        match self {
            Kind::Read | Kind::VerifyMedium | Kind::VerifyPattern => Op::Read,
            Kind::Verify => Op::Compare,
            Kind::OrWrite => Op::OrWrite,
            Kind::Write | Kind::WriteAndRead | Kind::WriteAndCompare => Op::Write,
        }
    }

    fn window(self) -> u32 {
        if self == Kind::Read { READ_WINDOW } else { QUIET_WINDOW }
    }
}

/// What a piece in hand waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// To be submitted.
    Do(Op),
    /// To be handed to the initiator.
    Send,
}

#[derive(Debug)]
struct Piece {
    /// From the start of the transfer.
    offset: u32,
    next: Next,
    buf: Buf,
}

/// A block command under way.
#[derive(Debug)]
pub(crate) struct Transfer {
    kind: Kind,
    fua: bool,
    lba: u64,
    /// Of the medium: whole blocks.
    bytes: u32,
    /// For [`Kind::Read`]: what the initiator has room for; its last block may be cut.
    room: u32,
    /// What the CDB says, for the residual.
    cdb_bytes: u64,
    asked: bool,
    /// Up to where pieces have begun.
    next: u32,
    /// The lowest failure. Pieces behind it are given up, those before it still go on: one of them may fail, too.
    failed: Option<(u32, Sense)>,
    /// [`Kind::VerifyPattern`]'s block.
    pattern: Option<Buf>,
    /// In ascending order of arrival. More than the few inside only wait where buffers are short.
    pieces: SmallVec<[Piece; 4]>,
}

impl Transfer {
    /// `bytes` whole blocks from the range's first on, at least one; `cdb_bytes` of data by the CDB.
    pub(crate) fn new(kind: Kind, range: &BlockRange, fua: bool, bytes: u32, cdb_bytes: u64) -> Transfer {
        assert!(bytes > 0, "a transfer of nothing is over before it begins");
        Transfer {
            kind,
            fua,
            lba: range.lba,
            bytes,
            room: bytes,
            cdb_bytes,
            asked: false,
            next: 0,
            failed: None,
            pattern: None,
            pieces: SmallVec::new(),
        }
    }

    /// Of the last block, the initiator has room for a part only.
    pub(crate) fn with_room(self, room: u32) -> Transfer {
        assert!(room <= self.bytes);
        Transfer { room, ..self }
    }

    /// See [`crate::task::Task::straight`].
    #[inline]
    pub(crate) fn straight(&self, head: &Head) -> Option<Straight> {
        let bytes = self.bytes;
        let (to, from) = match self.kind {
            Kind::Read => (bytes, 0),
            Kind::Write => (0, bytes),
            _ => return None,
        };
        let is_all = self.room == bytes && self.cdb_bytes == u64::from(bytes);
        let writes = self.kind == Kind::Write;
        let is_short = if writes { self.piece_end(head, 0) == bytes } else { bytes <= STRAIGHT_BYTES_MAX };
        let (bdev, lba, block_bytes) = (head.bdev, self.lba, head.block_bytes);
        (is_all && is_short && (head.data_in_bytes, head.data_out_bytes) == (to, from)).then_some(Straight {
            writes,
            bdev,
            lba,
            block_bytes,
            bytes,
        })
    }

    pub(crate) fn poll(&mut self, head: &mut Head, buffers: &mut impl Buffers) -> Step {
        if self.kind.moves() == Moves::Out && !self.asked {
            self.asked = true;
            let bytes = if self.kind == Kind::VerifyPattern { head.block_bytes } else { self.bytes };
            return Step::Effect(Effect::WantData { bytes });
        }
        for index in 0..self.pieces.len() {
            match self.pieces[index].next {
                Next::Send => {
                    let Piece { offset, mut buf, .. } = self.pieces.remove(index);
                    let bytes = buf.len().min((self.room - offset) as usize);
                    buf.set_len(bytes);
                    return Step::Effect(Effect::DataIn { offset, buf });
                }
                Next::Do(op) => {
                    let scratch = match op {
                        Op::Compare | Op::OrWrite => match buffers.take(self.pieces[index].buf.len()) {
                            Some(scratch) => Some(scratch),
                            None => continue,
                        },
                        _ => None,
                    };
                    let Piece { offset, buf, .. } = self.pieces.remove(index);
                    return self.submit(head, op, offset, buf, scratch);
                }
            }
        }
        if self.wants_piece_from_medium(head) {
            let bytes = self.piece_end(head, self.next) - self.next;
            let Some(buf) = buffers.take(bytes as usize) else { return Step::Wait };
            let offset = self.next;
            self.next += bytes;
            return self.submit(head, Op::Read, offset, buf, None);
        }
        let is_through = self.next == self.bytes || self.failed.is_some();
        if is_through && head.ios_out == 0 && self.pieces.is_empty() {
            return Step::End(self.end());
        }
        Step::Wait
    }

    fn wants_piece_from_medium(&self, head: &Head) -> bool {
        self.kind.begins_at_medium()
            && self.failed.is_none()
            && self.next < self.bytes
            && (self.kind != Kind::VerifyPattern || self.pattern.is_some())
            && head.ios_out + (self.pieces.len() as u32) < self.kind.window()
    }

    fn submit(&self, head: &mut Head, op: Op, offset: u32, buf: Buf, scratch: Option<Buf>) -> Step {
        let lba = self.lba + u64::from(offset / head.block_bytes);
        let blocks = buf.len() as u64 / u64::from(head.block_bytes);
        let mut step = head.submit(op, self.fua, lba, blocks, Some(buf), scratch);
        if let Step::Effect(Effect::Submit(io)) = &mut step {
            io.disposable = self.kind == Kind::Write;
        }
        step
    }

    fn end(&self) -> End {
        let moves = self.kind.moves();
        match self.failed {
            None => End { result: Ok(()), moves, transfer_bytes: self.cdb_bytes },
            // What came before the failure is with the initiator.
            Some((offset, sense)) if moves == Moves::In => {
                End { result: Err(sense), moves, transfer_bytes: u64::from(offset.min(self.room)) }
            }
            Some((_, sense)) => End { result: Err(sense), moves, transfer_bytes: self.cdb_bytes },
        }
    }

    /// Where the piece of `offset` ends.
    fn piece_end(&self, head: &Head, offset: u32) -> u32 {
        let at = self.lba * u64::from(head.block_bytes) + u64::from(offset);
        let left = PIECE_BYTES - at % PIECE_BYTES;
        (u64::from(offset) + left).min(u64::from(self.bytes)) as u32
    }

    pub(crate) fn data_out_piece_end(&self, head: &Head, offset: u32) -> u32 {
        match self.kind {
            Kind::VerifyPattern => head.block_bytes.max(offset),
            _ if self.kind.moves() == Moves::Out => self.piece_end(head, offset).max(offset),
            _ => offset,
        }
    }

    /// Takes a piece from the initiator; gives it back if it is not wanted.
    pub(crate) fn data_out(&mut self, head: &Head, offset: u32, buf: Buf) -> Option<Buf> {
        if self.kind == Kind::VerifyPattern {
            assert!(buf.len() == head.block_bytes as usize, "the transport delivers whole pieces");
            return self.pattern.replace(buf);
        }
        if self.kind.begins_at_medium() || self.failed.is_some() {
            return Some(buf);
        }
        assert!(
            offset == self.next && self.piece_end(head, offset) - offset == buf.len() as u32,
            "the transport delivers whole pieces in ascending order"
        );
        self.next += buf.len() as u32;
        self.pieces.push(Piece { offset, next: Next::Do(self.kind.first_op()), buf });
        None
    }

    pub(crate) fn io_done(&mut self, head: &Head, spent: &mut Spent, done: Done) {
        let Done { io, result } = done;
        spent.extend(io.scratch);
        let Some(buf) = io.buf else { unreachable!("every request of a transfer carries data") };
        let offset = (io.lba - self.lba) as u32 * head.block_bytes;
        let result = match (self.kind, &self.pattern, result) {
            (Kind::VerifyPattern, Some(pattern), Ok(())) => compare_with_block(&buf, pattern),
            (_, _, result) => result,
        };
        if let Err(error) = result {
            let sense = match error {
                // INFORMATION counts from the start of the data-out (SBC-3 §5.2). Of one block against many, in it.
                IoError::Miscompare { offset_bytes } if self.kind == Kind::VerifyPattern => {
                    Sense::MISCOMPARE.at(u64::from(offset_bytes % head.block_bytes))
                }
                IoError::Miscompare { offset_bytes } => {
                    Sense::MISCOMPARE.at(u64::from(offset + offset_bytes))
                }
                error => Sense::of_io(error, io.op, io.lba),
            };
            spent.push(buf);
            self.fail(offset, sense, spent);
            return;
        }
        let next = match (self.kind, io.op) {
            _ if self.failed.is_some_and(|(failed, _)| failed <= offset) => None,
            (Kind::Read, _) => Some(Next::Send),
            (Kind::WriteAndRead, Op::Write) => Some(Next::Do(Op::Read)),
            (Kind::WriteAndCompare, Op::Write) => Some(Next::Do(Op::Compare)),
            _ => None,
        };
        match next {
            Some(next) => self.pieces.push(Piece { offset, next, buf }),
            None => spent.push(buf),
        }
    }

    /// Something failed at `offset`: what lies behind it is given up.
    fn fail(&mut self, offset: u32, sense: Sense, spent: &mut Spent) {
        if self.failed.is_none_or(|(failed, _)| offset < failed) {
            self.failed = Some((offset, sense));
            while let Some(index) = self.pieces.iter().position(|piece| piece.offset > offset) {
                spent.push(self.pieces.remove(index).buf);
            }
        }
    }

    pub(crate) fn release(&mut self, spent: &mut Spent) {
        spent.extend(self.pieces.drain(..).map(|piece| piece.buf));
        spent.extend(self.pattern.take());
    }
}

/// Compares each block of `buf` with one.
fn compare_with_block(buf: &[u8], block: &[u8]) -> Result<(), IoError> {
    for (index, chunk) in buf.chunks_exact(block.len()).enumerate() {
        if chunk != block {
            let at = chunk.iter().zip(block).position(|(a, b)| a != b).unwrap_or(0);
            return Err(IoError::Miscompare { offset_bytes: (index * block.len() + at) as u32 });
        }
    }
    Ok(())
}
