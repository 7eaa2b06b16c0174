//! Token based copies (SPC-4, SBC-3): POPULATE TOKEN, WRITE USING TOKEN. Windows' Offloaded Data Transfer.
//!
//! A token is what its source was at a point in time: POPULATE TOKEN copies the ranges, which moves pointers, to a volume of
//! the source's pool that nobody sees, and WRITE USING TOKEN copies from there. So it lives as long as the program at most
//! (docs/decisions/0019).

mod table;
#[cfg(test)]
mod tests;
mod wire;

pub(crate) use table::{Extent, Tokens};
pub use table::{Gone, Secret, Span, Token, TokenId};
pub(crate) use wire::{POINT_IN_TIME, TOKEN_BYTES, ZEROES};

use crate::capacity;
use crate::cdb::be32;
use crate::change::{Applied, Change};
use crate::command::{Effect, NexusId};
use crate::copy::results::{CopyKind, CopyState};
use crate::limits::{
    COPY_SEGMENT_BYTES_MAX, COPY_WINDOW, TOKEN_PLACE_BYTES, TOKEN_RANGES_MAX, TOKENS_REPORTED_MAX,
};
use crate::lun::LogicalUnit;
use crate::reply::{Out, ParameterData, Reply};
use crate::sense::Sense;
use crate::server::DeviceServer;
use crate::task::{End, Head, Moves, Request, Spent, Step, Work};
use bdev::error::IoError;
use bdev::io::{BdevId, Done, Op, Tag};
use bdev::pool::control::VOLUME_BYTES_MAX;
use bdev::pool::format::CORES_MAX;
use bdev::shard::tokens_of;
use bdev::storage::{Copied, CopyIo};
use bdev::stripe::STRIPE_BYTES;
use reactor::buf::Buf;
use smallvec::SmallVec;
use wire::{
    MANAGEMENT_TOKEN_BYTES, POPULATE_HEADER_BYTES, RANGES_BYTES_MAX, Range, RodToken, WRITE_HEADER_BYTES,
};
use zerocopy::IntoBytes;

/// Service actions of 83h.
pub(crate) const POPULATE: u8 = 0x10;
pub(crate) const WRITE_USING: u8 = 0x11;
/// Service actions of 84h.
pub(crate) const RECEIVE_INFORMATION: u8 = 0x07;
pub(crate) const REPORT_ALL: u8 = 0x08;

const _: () = assert!(
    CORES_MAX as u64 * crate::limits::TOKENS_A_CORE as u64 * TOKEN_PLACE_BYTES <= VOLUME_BYTES_MAX,
    "every core's tokens have their places in a volume"
);

/// What ranges are aligned to in a place, as they are in their source: the smaller ones to this.
const CHUNK_BYTES: u64 = 64 << 10;

const _: () = assert!(
    // A long range takes less than twice its length.
    2 * crate::limits::TOKEN_BYTES_MAX + TOKEN_RANGES_MAX as u64 * 2 * CHUNK_BYTES <= TOKEN_PLACE_BYTES,
    "a token has room in its place however its ranges lie"
);

/// A range is copied in parts of so much, so that TRANSFER COUNT says how far it has come, or came.
const PART_BYTES: u64 = COPY_SEGMENT_BYTES_MAX as u64;

const _: () = assert!(PART_BYTES.is_multiple_of(STRIPE_BYTES));

/// A part of the work.
#[derive(Clone, Copy, Debug)]
enum Part {
    Copy(CopyIo),
    Zero(Range),
}

/// What comes next.
#[derive(Debug)]
enum Phase {
    /// The list.
    List,
    /// All cores are to know that the token is in use.
    Using { token: TokenId, is_out: bool },
    /// Data.
    Parts,
    /// All cores are to know the new token.
    Making { token: Box<Token>, is_out: bool },
    /// All cores are to forget the token.
    Deleting { token: TokenId, is_out: bool },
    /// The end.
    Over(Result<(), Sense>),
}

/// A POPULATE TOKEN or WRITE USING TOKEN under way.
#[derive(Debug)]
pub(crate) struct TokenCopy {
    action: u8,
    id: u32,
    list_bytes: u32,
    block_bytes: u32,
    asked: bool,
    data: Option<Buf>,
    phase: Phase,
    /// IMMED, and whether its initiator has had its answer.
    immediate: bool,
    answered: bool,
    /// It can be asked about.
    is_named: bool,
    /// Each with whether it is done.
    parts: Vec<(Part, bool)>,
    next: usize,
    out: SmallVec<[usize; COPY_WINDOW]>,
    failed: Option<Sense>,
    /// POPULATE TOKEN: what becomes of it, and the place that it has until then.
    made: Option<Box<Token>>,
    place: Option<Extent>,
    /// WRITE USING TOKEN: the token that is to be let go, and whether it is to be deleted before.
    uses: Option<TokenId>,
    deletes: bool,
    /// For RECEIVE ROD TOKEN INFORMATION.
    told: Option<Box<[u8; TOKEN_BYTES]>>,
}

/// POPULATE TOKEN and WRITE USING TOKEN.
pub(crate) fn token_copy(request: &Request<'_>) -> Result<Work, Sense> {
    let cdb = &request.command.cdb;
    let action = cdb[1] & 0x1F;
    let list_bytes = be32(cdb, 10);
    let header_bytes = if action == POPULATE { POPULATE_HEADER_BYTES } else { WRITE_HEADER_BYTES };
    if list_bytes == 0 {
        return Ok(Work::End(End::GOOD));
    }
    if (list_bytes as usize) < header_bytes || list_bytes as usize > header_bytes + RANGES_BYTES_MAX {
        return Err(Sense::PARAMETER_LIST_LENGTH_ERROR.cdb_byte(10));
    }
    if request.command.data_out_bytes < list_bytes {
        return Err(Sense::INVALID_FIELD_IN_COMMAND_INFORMATION_UNIT);
    }
    Ok(Work::Token(Box::new(TokenCopy {
        action,
        id: be32(cdb, 6),
        list_bytes,
        block_bytes: request.unit()?.geometry().block_bytes,
        asked: false,
        data: None,
        phase: Phase::List,
        immediate: false,
        answered: false,
        is_named: false,
        parts: Vec::new(),
        next: 0,
        out: SmallVec::new(),
        failed: None,
        made: None,
        place: None,
        uses: None,
        deletes: false,
        told: None,
    })))
}

/// REPORT ALL ROD TOKENS.
#[allow(clippy::unnecessary_wraps, reason = "a handler")]
pub(crate) fn report_all_rod_tokens(request: &Request<'_>) -> Result<Work, Sense> {
    Ok(ParameterData::work(Reply::RodTokens, be32(&request.command.cdb, 10)))
}

/// REPORT ALL ROD TOKENS parameter data (SPC-4 §6.27): the tokens of all initiators, by the part of them that can't be
/// used. What does not fit a buffer is left out, and the asker's own are always told.
pub(crate) fn rod_tokens(server: &DeviceServer, nexus: NexusId, out: &mut Out<'_>) {
    let asker = server.initiator(nexus).unwrap_or_default();
    let is_own = |token: &&Token| token.initiator == asker;
    let own = server.tokens.usable().filter(is_own);
    let tokens = own.chain(server.tokens.usable().filter(|token| !is_own(token)));
    let count = server.tokens.usable().count().min(TOKENS_REPORTED_MAX);
    out.bytes(&(4 + (count * MANAGEMENT_TOKEN_BYTES) as u32).to_be_bytes());
    out.zeroes(4);
    for token in tokens.take(count) {
        out.bytes(&RodToken::of(token, &server.target_name).as_bytes()[..MANAGEMENT_TOKEN_BYTES]);
    }
}

impl TokenCopy {
    pub(crate) fn poll(&mut self, head: &mut Head, spent: &mut Spent, server: &mut DeviceServer) -> Step {
        if !self.asked {
            self.asked = true;
            return Step::Effect(Effect::WantData { bytes: self.list_bytes });
        }
        if matches!(self.phase, Phase::List) {
            let Some(data) = self.data.take() else { return Step::Wait };
            let begun = self.begin(&data, head, server);
            spent.push(data);
            self.phase = begun.unwrap_or_else(|sense| Phase::Over(Err(sense)));
        }
        loop {
            let proposal = match &mut self.phase {
                Phase::List
                | Phase::Using { is_out: true, .. }
                | Phase::Making { is_out: true, .. }
                | Phase::Deleting { is_out: true, .. } => return Step::Wait,
                Phase::Using { token, is_out } => {
                    *is_out = true;
                    Change::TokenUse { id: *token }
                }
                Phase::Making { token, is_out } => {
                    *is_out = true;
                    Change::TokenMake { token: token.clone() }
                }
                Phase::Deleting { token, is_out } => {
                    *is_out = true;
                    Change::TokenDelete { id: *token }
                }
                // All that could be wrong with the list, or the token, has been looked at.
                Phase::Parts if self.immediate && !std::mem::replace(&mut self.answered, true) => {
                    return Step::Answer(End {
                        result: Ok(()),
                        moves: Moves::Out,
                        transfer_bytes: u64::from(self.list_bytes),
                    });
                }
                Phase::Parts => match self.poll_parts(head, server) {
                    Some(step) => return step,
                    None => continue,
                },
                Phase::Over(result) => {
                    let result = *result;
                    return self.end(head, server, result);
                }
            };
            return Step::Effect(Effect::Propose(proposal));
        }
    }

    /// The list has come. What comes next.
    fn begin(&mut self, list: &[u8], head: &Head, server: &mut DeviceServer) -> Result<Phase, Sense> {
        let unit = head.lun.and_then(|lun| server.unit(lun)).ok_or(Sense::LOGICAL_UNIT_NOT_SUPPORTED)?;
        let geometry = *unit.geometry();
        if self.action == POPULATE {
            let asked = wire::populate(list, &geometry)?;
            self.immediate = asked.immediate;
            let store = tokens_of(unit.config.bdev).ok_or(Sense::INVALID_FIELD_IN_CDB.cdb_bit(1, 4))?;
            let mut token = new_token(unit, store);
            server.initiator(head.nexus).unwrap_or_default().clone_into(&mut token.initiator);
            token.timeout_s = asked.timeout_s;
            let source = unit.config.bdev;
            self.name(head, server)?;
            token.id = server.tokens.take_place(&token.initiator)?;
            token.spans = spans_of(&asked.ranges, geometry.block_bytes, token.id.first_byte());
            self.place = Some(token.extent());
            for (range, span) in asked.ranges.iter().zip(&token.spans) {
                let from = (source, range.lba * u64::from(geometry.block_bytes));
                self.parts.extend(copies(from, (store, span.first), span.bytes).map(|part| (part, false)));
            }
            self.made = Some(Box::new(token));
            return Ok(Phase::Parts);
        }
        let asked = wire::write_using(list, &geometry)?;
        self.immediate = asked.immediate;
        if asked.token.is_zeroes() {
            asked.token.check_length().map_err(|sense| sense.list_byte(16))?;
            self.name(head, server)?;
            self.parts.extend(asked.ranges.iter().map(|&range| (Part::Zero(range), false)));
            return Ok(Phase::Parts);
        }
        let destination = unit.config.bdev;
        let token = server.tokens.find(asked.token, &server.target_name);
        let token = token.map_err(|sense| sense.list_byte(16))?;
        // OFFSET INTO ROD counts blocks of this unit; the token's may be others.
        let block_bytes = u64::from(geometry.block_bytes);
        let offset_bytes = asked.offset.checked_mul(block_bytes).filter(|&offset| offset < token.bytes());
        let offset_bytes = offset_bytes.ok_or(Sense::INVALID_FIELD_IN_PARAMETER_LIST.list_byte(8))?;
        let blocks: u64 = asked.ranges.iter().map(|range| range.blocks).sum();
        if blocks * block_bytes > token.bytes() - offset_bytes {
            return Err(Sense::INVALID_FIELD_IN_PARAMETER_LIST.list_byte(534));
        }
        let (id, store, deletes) = (token.id, token.store, asked.deletes);
        let pairs = pairs_of(&token.spans, offset_bytes, &asked.ranges, block_bytes);
        let is_whole = |bytes: u64| bytes.is_multiple_of(block_bytes);
        if !pairs.iter().all(|&(from, _, bytes)| is_whole(from) && is_whole(bytes)) {
            // A block of this unit would lie over two ranges of the token, or begin within a block of its place.
            return Err(Sense::INVALID_FIELD_IN_PARAMETER_LIST.list_byte(16));
        }
        let parts =
            pairs.iter().flat_map(|&(from, to, bytes)| copies((store, from), (destination, to), bytes));
        self.parts.extend(parts.map(|part| (part, false)));
        self.deletes = deletes;
        self.name(head, server)?;
        Ok(Phase::Using { token: id, is_out: false })
    }

    /// From now on the nexus can ask about it.
    fn name(&mut self, head: &Head, server: &mut DeviceServer) -> Result<(), Sense> {
        if let Some(copies) = server.copies_mut(head.nexus) {
            let (action, block_bytes, is_background) = (self.action, self.block_bytes, self.immediate);
            copies.begin(self.id, CopyKind { action, block_bytes, is_background })?;
            self.is_named = true;
        }
        Ok(())
    }

    /// The next step of the data. `None`: they are through.
    fn poll_parts(&mut self, head: &mut Head, server: &mut DeviceServer) -> Option<Step> {
        let goes_on =
            !self.is_named || server.copies_mut(head.nexus).is_none_or(|copies| copies.goes_on(self.id));
        if self.next < self.parts.len() && self.failed.is_none() && !goes_on {
            self.failed = Some(Sense::COPY_ABORTED);
        }
        if self.failed.is_none()
            && self.out.len() < COPY_WINDOW
            && let Some(&(part, _)) = self.parts.get(self.next)
        {
            self.out.push(self.next);
            self.next += 1;
            return Some(match part {
                Part::Copy(io) => head.copy(io),
                Part::Zero(range) => head.submit(Op::WriteZeroes, false, range.lba, range.blocks, None, None),
            });
        }
        if !self.out.is_empty() {
            return Some(Step::Wait);
        }
        self.phase = match (self.failed, self.made.take()) {
            (Some(sense), _) => Phase::Over(Err(sense)),
            (None, Some(token)) => match Secret::random() {
                Ok(secret) => Phase::Making { token: Box::new(Token { secret, ..*token }), is_out: false },
                Err(sense) => Phase::Over(Err(sense)),
            },
            (None, None) => match self.uses {
                Some(token) if self.deletes => Phase::Deleting { token, is_out: false },
                _ => Phase::Over(Ok(())),
            },
        };
        None
    }

    /// All cores have made the change that it proposed last, or none.
    pub(crate) fn decreed(&mut self, applied: Applied) {
        self.phase = match std::mem::replace(&mut self.phase, Phase::Over(Ok(()))) {
            Phase::Using { token, .. } => match applied {
                Ok(()) => {
                    self.uses = Some(token);
                    Phase::Parts
                }
                Err(sense) => Phase::Over(Err(sense.list_byte(16))),
            },
            Phase::Making { token, .. } => {
                if applied.is_ok() {
                    // The place is the token's now.
                    self.place = None;
                    self.made = Some(token);
                }
                Phase::Over(applied)
            }
            Phase::Deleting { .. } => Phase::Over(Ok(())),
            other => other,
        };
    }

    fn end(&mut self, head: &Head, server: &mut DeviceServer, result: Result<(), Sense>) -> Step {
        if let (Ok(()), Some(token)) = (result, self.made.take()) {
            let bytes = RodToken::of(&token, &server.target_name);
            self.told = bytes.as_bytes().first_chunk().map(|bytes| Box::new(*bytes));
        }
        let state = match result {
            Ok(()) => CopyState::Done,
            Err(sense) if sense == Sense::COPY_ABORTED => CopyState::Aborted,
            Err(sense) => CopyState::failed(sense),
        };
        self.tell(head.nexus, server, state);
        Step::End(End { result, moves: Moves::Out, transfer_bytes: u64::from(self.list_bytes) })
    }

    fn tell(&mut self, nexus: NexusId, server: &mut DeviceServer, state: CopyState) {
        if std::mem::take(&mut self.is_named)
            && let Some(copies) = server.copies_mut(nexus)
        {
            copies.advance(self.id, 0, self.done_bytes());
            copies.end_token(self.id, state, self.told.take());
        }
    }

    /// How much is done from the first range on, in their order: where somebody may go on. What is done behind a part that
    /// failed, or is not done yet, doesn't count.
    fn done_bytes(&self) -> u64 {
        let done = self.parts.iter().take_while(|(_, is_done)| *is_done);
        done.map(|(part, _)| match part {
            Part::Copy(io) => io.bytes,
            Part::Zero(range) => range.blocks * u64::from(self.block_bytes),
        })
        .sum()
    }

    /// The task is aborted: the record says so.
    pub(crate) fn abort(&mut self, nexus: NexusId, server: &mut DeviceServer) {
        self.tell(nexus, server, CopyState::Aborted);
    }

    /// Nothing of it is out any more: what it holds of tokens is given back. What is to be told to all cores.
    pub(crate) fn give_back(&mut self, server: &mut DeviceServer) -> Option<Change> {
        if let Some(extent) = self.place.take() {
            server.tokens.give_back(extent);
        }
        self.uses.take().map(|id| Change::TokenRelease { id })
    }

    pub(crate) fn list_bytes(&self) -> u32 {
        self.list_bytes
    }

    /// The identifier under which it is known, while it is under way.
    pub(crate) fn named(&self) -> Option<u32> {
        self.is_named.then_some(self.id)
    }

    /// Takes the list; gives it back if it is not wanted.
    pub(crate) fn data_out(&mut self, buf: Buf) -> Option<Buf> {
        if self.asked && self.data.is_none() && matches!(self.phase, Phase::List) {
            self.data.replace(buf)
        } else {
            Some(buf)
        }
    }

    pub(crate) fn copy_done(&mut self, head: &Head, server: &mut DeviceServer, copied: &Copied) {
        let is_it =
            |part: &Part| matches!(part, Part::Copy(io) if CopyIo { tag: copied.io.tag, ..*io } == copied.io);
        let is_populate = self.action == POPULATE;
        self.part_done(is_it, copied.result.map_err(|error| sense_of(error, is_populate)));
        if self.is_named
            && let Some(copies) = server.copies_mut(head.nexus)
        {
            copies.advance(self.id, 0, self.done_bytes());
        }
    }

    pub(crate) fn io_done(&mut self, done: &Done) {
        let is_it = |part: &Part| matches!(part, Part::Zero(range) if range.lba == done.io.lba);
        let result = done.result.map_err(|error| Sense::of_io(error, done.io.op, done.io.lba));
        self.part_done(is_it, result);
    }

    fn part_done(&mut self, is_it: impl Fn(&Part) -> bool, result: Result<(), Sense>) {
        let Some(place) = self.out.iter().position(|&nth| is_it(&self.parts[nth].0)) else {
            debug_assert!(false, "what comes back went down");
            return;
        };
        let nth = self.out.remove(place);
        match result {
            Ok(()) => self.parts[nth].1 = true,
            Err(sense) => _ = self.failed.get_or_insert(sense),
        }
    }

    pub(crate) fn release(&mut self, spent: &mut Spent) {
        spent.extend(self.data.take());
    }
}

/// Why data could not be copied: what a READ or a WRITE of them would have said. That there is no space for a token stops
/// nobody from reading.
fn sense_of(error: IoError, is_populate: bool) -> Sense {
    match error {
        IoError::ABANDONED => Sense::COPY_ABORTED,
        IoError::OutOfSpace if is_populate => Sense::INSUFFICIENT_RESOURCES_FOR_TOKEN,
        IoError::Medium { errno: _ } => Sense::WRITE_ERROR,
        error => Sense::from(error),
    }
}

/// A copy in parts that end where the source's stripes do.
fn copies(from: (BdevId, u64), to: (BdevId, u64), bytes: u64) -> impl Iterator<Item = Part> {
    let ((source, first), (destination, to)) = (from, to);
    let mut done = 0;
    std::iter::from_fn(move || {
        let (source_bytes, destination_bytes) = (first + done, to + done);
        let bytes = (PART_BYTES - source_bytes % PART_BYTES).min(bytes - done);
        done += bytes;
        let io = CopyIo { tag: Tag(0), source, source_bytes, destination, destination_bytes, bytes };
        (bytes > 0).then_some(Part::Copy(io))
    })
}

/// What a unit's token says of it; the rest is not known yet.
fn new_token(unit: &LogicalUnit, store: BdevId) -> Token {
    let mut capacity = [0; 32];
    capacity::capacity16(unit, &mut Out::new(&mut capacity));
    let mut told = [0; 8];
    told.copy_from_slice(&capacity[8..16]);
    Token {
        id: TokenId::from_bits(0),
        secret: Secret::none(),
        lun: unit.config.lun,
        naa: unit.naa,
        initiator: String::new(),
        block_bytes: unit.geometry().block_bytes,
        capacity: told,
        store,
        spans: SmallVec::new(),
        timeout_s: 0,
    }
}

/// Where ranges lie in a place: as in their source within a stripe, if they are that long, or else within a chunk.
fn spans_of(ranges: &[Range], block_bytes: u32, place: u64) -> SmallVec<[Span; 1]> {
    let mut at = place;
    let spans = ranges.iter().map(|range| {
        let (from, bytes) = (range.lba * u64::from(block_bytes), range.blocks * u64::from(block_bytes));
        let unit = if bytes >= STRIPE_BYTES { STRIPE_BYTES } else { CHUNK_BYTES };
        let first = at.next_multiple_of(CHUNK_BYTES);
        let first = first + (from % unit + unit - first % unit) % unit;
        at = first + bytes;
        Span { first, bytes }
    });
    spans.collect()
}

/// What is copied from where to where, in bytes: spans, from an offset into all of them on, to ranges.
fn pairs_of(spans: &[Span], offset: u64, ranges: &[Range], block_bytes: u64) -> Vec<(u64, u64, u64)> {
    let mut pairs = Vec::new();
    let (mut spans, mut skipped) = (spans.iter().copied(), offset);
    let mut span = Span { first: 0, bytes: 0 };
    for range in ranges {
        let (mut to, mut left) = (range.lba * block_bytes, range.blocks * block_bytes);
        while left > 0 {
            while span.bytes <= skipped {
                skipped -= span.bytes;
                let Some(next) = spans.next() else { return pairs };
                span = next;
            }
            let bytes = (span.bytes - skipped).min(left);
            pairs.push((span.first + skipped, to, bytes));
            (to, left, skipped) = (to + bytes, left - bytes, skipped + bytes);
        }
    }
    pairs
}
