//! One core's whole block storage: its router, its shard with its share of every pool, the copies that it was asked for,
//! and the glue between them. The program and the simulator drive the same.
//!
//! Mail is a request or the reply to one; each request is answered by exactly one reply, now or later. What goes to the
//! core itself is handled here and never comes out.

use crate::error::IoError;
use crate::io::{BdevId, Done, Io, Op, PIECE_BYTES, Tag};
use crate::layer::Place;
use crate::lent::Lent;
use crate::pool::control::{Answered, Request};
use crate::pool::mail::{self, Share, Tell, What};
use crate::pool::map::{RootId, SlotNo};
use crate::pool::slot::{BLOCK_BYTES, CHUNK_BYTES};
use crate::pool::{PoolShard, Told};
use crate::router::Router;
use crate::shard::{Mail, Shard, pool_of};
use crate::stripe::{Deal, STRIPE_BYTES};
use reactor::Core;
use reactor::buf::Buf;
use reactor::clock::Time;
use reactor::disk::{DiskDone, DiskOp};
use reactor::slots::{Slot, Slots};
use smallvec::SmallVec;
use std::collections::{BTreeMap, VecDeque};

/// Copies worked on at once; the others wait in order.
pub const COPIES_MAX: usize = 256;

/// Pieces of one copy that are out at once.
pub const COPY_WINDOW: u32 = 8;

/// Questions about ranges that are out at once.
pub const STATUSES_MAX: usize = 1024;

/// Buffers of a core for what has to be copied as bytes.
pub const COPY_BUFS: usize = 8;

/// Set in the tags of a copy's own reads and writes.
const COPY_TAG: u64 = 1 << 30;

/// Copy a range to another, on the same volume or another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyIo {
    /// The asker's name for it.
    pub tag: Tag,
    /// From which device.
    pub source: BdevId,
    /// Its first byte there: whole blocks.
    pub source_bytes: u64,
    /// To which device.
    pub destination: BdevId,
    /// Its first byte there.
    pub destination_bytes: u64,
    /// How much.
    pub bytes: u64,
}

/// A copy's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Copied {
    /// As it was asked for.
    pub io: CopyIo,
    /// How it went. Of one that failed any part may have been done.
    pub result: Result<(), IoError>,
    /// What was done, and how.
    pub moved: Moved,
}

/// Bytes of a copy by how they came to the destination, and for those that were read and written, why.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// By pointers: no data was read or written.
    pub shared_bytes: u64,
    /// As bytes: less than a block of the map, at an end of what could be shared.
    pub edge_bytes: u64,
    /// As bytes: source and destination lie differently in their chunks.
    pub misaligned_bytes: u64,
    /// As bytes: source and destination are not volumes of one pool.
    pub apart_bytes: u64,
    /// As bytes: a chunk of the source has as many names as copies may make.
    pub count_full_bytes: u64,
}

/// Why something is copied as bytes; see [`Moved`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AsBytes {
    Edge,
    Misaligned,
    Apart,
    CountFull,
}

impl Moved {
    /// All of it.
    pub fn bytes(&self) -> u64 {
        self.shared_bytes + self.copied_bytes()
    }

    /// What was read and written.
    pub fn copied_bytes(&self) -> u64 {
        self.edge_bytes + self.misaligned_bytes + self.apart_bytes + self.count_full_bytes
    }
}

/// What a volume's map says of a range's beginning; see [`Storage::status`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RangeStatus {
    /// The asker's name for it.
    pub tag: Tag,
    /// From here.
    pub from_bytes: u64,
    /// So many bytes are all alike: at most to the end of the range or the stripe.
    pub bytes: u64,
    /// They are mapped; otherwise they read as zeroes and take no space.
    pub mapped: bool,
}

/// To be carried to another core.
#[derive(Debug)]
pub struct Outgoing {
    /// To whom.
    pub to: Core,
    /// It answers a request.
    pub reply: bool,
    /// What.
    pub mail: Mail,
}

/// What this core has copied to one device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CopyCounts {
    /// Copies that have ended.
    pub copies: u64,
    /// Of them, that failed or were given up.
    pub failed: u64,
    /// What all of them did.
    pub moved: Moved,
    /// What those that failed did not.
    pub not_moved_bytes: u64,
    /// From the asking to the end, together, in nanoseconds; as exact as a turn is long.
    pub ns: u64,
}

impl CopyCounts {
    /// With another core's.
    pub fn add(&mut self, other: &CopyCounts) {
        self.copies += other.copies;
        self.failed += other.failed;
        self.moved.shared_bytes += other.moved.shared_bytes;
        self.moved.edge_bytes += other.moved.edge_bytes;
        self.moved.misaligned_bytes += other.moved.misaligned_bytes;
        self.moved.apart_bytes += other.moved.apart_bytes;
        self.moved.count_full_bytes += other.moved.count_full_bytes;
        self.not_moved_bytes += other.not_moved_bytes;
        self.ns += other.ns;
    }
}

#[derive(Clone, Copy, Debug)]
struct Span {
    from: u64,
    to: u64,
    bytes: u64,
    /// By sharing; or as bytes, for this reason.
    as_bytes: Option<AsBytes>,
}

#[derive(Debug)]
struct Copying {
    io: CopyIo,
    asked: Time,
    /// Bytes that were made into pieces, from the end that comes first.
    begun: u64,
    /// From the end on: the destination lies behind the source and overlaps it.
    backwards: bool,
    window: u32,
    out: u32,
    /// What could not be shared and goes as bytes, before anything else of the copy begins.
    unshared: SmallVec<[Span; 1]>,
    failed: Option<IoError>,
    moved: Moved,
}

impl Copying {
    /// The next piece of what could not be shared.
    fn next_unshared(&mut self) -> Option<Span> {
        let rest = self.unshared.last_mut()?;
        // It lines up, so both sides' pieces begin alike.
        let piece = if self.backwards {
            let end = rest.from + rest.bytes;
            let bytes = (end - (end - 1) / PIECE_BYTES * PIECE_BYTES).min(rest.bytes);
            let ahead = rest.bytes - bytes;
            Span { from: rest.from + ahead, to: rest.to + ahead, bytes, ..*rest }
        } else {
            let bytes = (PIECE_BYTES - rest.from % PIECE_BYTES).min(rest.bytes);
            let piece = Span { bytes, ..*rest };
            (rest.from, rest.to) = (rest.from + bytes, rest.to + bytes);
            piece
        };
        rest.bytes -= piece.bytes;
        if rest.bytes == 0 {
            self.unshared.pop();
        }
        Some(piece)
    }
}

#[derive(Debug)]
enum Piece {
    Shared { copy: Slot, span: Span },
    Status { tag: Tag, from_bytes: u64, end_bytes: u64 },
    Read { copy: Slot, span: Span },
    Written { copy: Slot, span: Span },
}

/// See the module.
#[derive(Debug)]
pub struct Storage {
    core: Core,
    deal: Deal,
    /// Says where requests go.
    pub router: Router,
    /// Has what they go to.
    pub shard: Shard,
    out: VecDeque<Outgoing>,
    done: VecDeque<Done>,
    copied: VecDeque<Copied>,
    statuses: VecDeque<RangeStatus>,
    statuses_out: usize,
    statuses_waiting: VecDeque<(Tag, BdevId, u64, u64)>,
    copies: Slots<Copying>,
    copies_waiting: VecDeque<(CopyIo, Time)>,
    /// By destination.
    copy_counts: BTreeMap<BdevId, CopyCounts>,
    /// As of the last turn.
    now: Time,
    /// Copies that wait for a hold to end, or for a buffer.
    stalled: VecDeque<Slot>,
    pieces: Slots<Piece>,
    bufs: Vec<Buf>,
    holds: Slots<(usize, Core, u64, BdevId)>,
}

impl Storage {
    /// A core's storage. `bufs` are [`COPY_BUFS`] large buffers, or none where nothing is copied.
    pub fn new(core: Core, cores: u16, router: Router, shard: Shard, bufs: Vec<Buf>) -> Storage {
        let mut storage = Storage {
            core,
            deal: Deal::among(cores),
            router,
            shard,
            out: VecDeque::new(),
            done: VecDeque::new(),
            copied: VecDeque::new(),
            statuses: VecDeque::new(),
            statuses_out: 0,
            statuses_waiting: VecDeque::new(),
            copies: Slots::with_capacity(COPIES_MAX),
            copies_waiting: VecDeque::new(),
            copy_counts: BTreeMap::new(),
            now: Time(0),
            stalled: VecDeque::new(),
            pieces: Slots::with_capacity(COPIES_MAX * COPY_WINDOW as usize + STATUSES_MAX),
            bufs,
            holds: Slots::with_capacity(1024),
        };
        for pool in 0..storage.shard.pools.len() {
            storage.attach_tokens(pool);
        }
        storage
    }

    /// This core's share of a pool that was opened later, at the next place.
    pub fn add_pool(&mut self, pool: PoolShard) {
        self.shard.add_pool(pool);
        self.attach_tokens(self.shard.pools.len() - 1);
    }

    /// What a pool's tokens hold is a device from the start, on every core.
    fn attach_tokens(&mut self, pool: usize) {
        let (bdev, geometry) = self.shard.pools[pool].tokens();
        self.router.set_volume(bdev, Some(geometry));
        self.shard.set_volume(bdev, Some(geometry));
    }

    /// Takes a request of this core; it ends in [`Storage::poll_done`].
    #[inline]
    pub fn submit(&mut self, io: Io) {
        match self.router.admit_data(&io) {
            Some(owner) if owner == self.core => self.shard.submit(io),
            Some(to) => self.out.push_back(Outgoing { to, reply: false, mail: Mail::Submit(io) }),
            None => self.router.submit(io),
        }
    }

    /// Reads whole blocks within one piece at once, if the device answers at once, is here and lets everybody in. False:
    /// nothing was done, and it is for [`Storage::submit`].
    #[inline]
    pub fn read_now(&mut self, bdev: BdevId, lba: u64, buf: &mut [u8]) -> bool {
        self.router.is_own(bdev, lba, buf.len(), false) && self.shard.read_now(bdev, lba, buf)
    }

    /// Lends what [`Storage::read_now`] would copy. `None`: that may still be able to.
    #[inline]
    pub fn lend_now(&mut self, bdev: BdevId, lba: u64, bytes: usize) -> Option<Lent> {
        if self.router.is_own(bdev, lba, bytes, false) { self.shard.lend_now(bdev, lba, bytes) } else { None }
    }

    /// Where what [`Storage::read_now`] would read lies together, if it does, on a medium that somebody else may be able to
    /// read at once. Who has done so calls [`Storage::count_read`].
    pub fn place_now(&mut self, bdev: BdevId, lba: u64, bytes: usize) -> Option<Place> {
        if self.router.is_own(bdev, lba, bytes, false) {
            self.shard.place_now(bdev, lba, bytes)
        } else {
            None
        }
    }

    /// So many bytes were read where [`Storage::place_now`] said.
    pub fn count_read(&mut self, bdev: BdevId, bytes: usize) {
        self.shard.count_read(bdev, bytes as u64);
    }

    /// Writes as [`Storage::read_now`] reads.
    #[inline]
    pub fn write_now(&mut self, bdev: BdevId, lba: u64, data: &[u8]) -> bool {
        self.router.is_own(bdev, lba, data.len(), true) && self.shard.write_now(bdev, lba, data)
    }

    /// Takes a copy; it ends in [`Storage::poll_copied`].
    pub fn copy(&mut self, io: CopyIo) {
        if let Err(error) = self.check_copy(&io) {
            return self.copy_ended(Copied { io, result: Err(error), moved: Moved::default() }, self.now);
        }
        if self.copies.is_full() {
            return self.copies_waiting.push_back((io, self.now));
        }
        self.begin_copy(io, self.now);
    }

    /// What was copied to a device at this core's asking.
    pub fn copy_counts(&self, destination: BdevId) -> CopyCounts {
        self.copy_counts.get(&destination).copied().unwrap_or_default()
    }

    fn copy_ended(&mut self, copied: Copied, asked: Time) {
        let failed = copied.result.is_err();
        let counts = self.copy_counts.entry(copied.io.destination).or_default();
        counts.add(&CopyCounts {
            copies: 1,
            failed: u64::from(failed),
            moved: copied.moved,
            not_moved_bytes: copied.io.bytes - copied.moved.bytes(),
            ns: self.now.since(asked).as_nanos() as u64,
        });
        self.copied.push_back(copied);
    }

    /// Asks what a volume's map says of a range, of which the beginning is answered in [`Storage::poll_status`]: so far
    /// as it is all mapped or all not. What isn't a pool's volume is mapped. Of more than [`STATUSES_MAX`] at once the
    /// others wait in order; the asker's command window bounds them.
    pub fn status(&mut self, tag: Tag, bdev: BdevId, from_bytes: u64, bytes: u64) {
        let stripe_end = (from_bytes / STRIPE_BYTES + 1) * STRIPE_BYTES;
        let end_bytes = (from_bytes + bytes).min(stripe_end);
        let all = RangeStatus { tag, from_bytes, bytes, mapped: true };
        let Some((pool, _)) = pool_of(bdev) else { return self.statuses.push_back(all) };
        if self.statuses_out == STATUSES_MAX {
            return self.statuses_waiting.push_back((tag, bdev, from_bytes, bytes));
        }
        let Ok(piece) = self.pieces.insert(Piece::Status { tag, from_bytes, end_bytes }) else {
            unreachable!("bounded by the window and STATUSES_MAX")
        };
        self.statuses_out += 1;
        let from_block = from_bytes / BLOCK_BYTES;
        let blocks = end_bytes.div_ceil(BLOCK_BYTES) - from_block;
        let what = What::Extent { bdev, from_block, blocks };
        let ask = mail::Ask { token: piece.to_bits() | SHARE_TOKEN, what };
        let to = self.deal.owner(from_bytes);
        self.send_pool(pool, mail::Outgoing::Ask(to, ask));
    }

    /// The next answer to [`Storage::status`].
    pub fn poll_status(&mut self) -> Option<RangeStatus> {
        self.settle();
        self.statuses.pop_front()
    }

    /// The asker gave its copies with this tag up: no further piece of them begins, what is out is waited for, and they end
    /// with an error unless they were complete.
    pub fn abandon_copies(&mut self, tag: Tag) {
        let waiting = std::mem::take(&mut self.copies_waiting);
        for (io, asked) in waiting {
            if io.tag == tag {
                let copied = Copied { io, result: Err(IoError::ABANDONED), moved: Moved::default() };
                self.copy_ended(copied, asked);
            } else {
                self.copies_waiting.push_back((io, asked));
            }
        }
        let theirs = self.copies.iter().filter(|(_, copy)| copy.io.tag == tag);
        let theirs: Vec<Slot> = theirs.map(|(slot, _)| slot).collect();
        for slot in theirs {
            if let Some(copy) = self.copies.get_mut(slot) {
                copy.failed.get_or_insert(IoError::ABANDONED);
            }
            self.advance_copy(slot);
        }
    }

    fn check_copy(&self, io: &CopyIo) -> Result<(), IoError> {
        for (bdev, first) in [(io.source, io.source_bytes), (io.destination, io.destination_bytes)] {
            let Some(geometry) = self.router.geometry(bdev) else { return Err(IoError::GONE) };
            let end = first.checked_add(io.bytes).ok_or(IoError::OutOfRange)?;
            if end > geometry.bytes() || !(first | io.bytes).is_multiple_of(u64::from(geometry.block_bytes)) {
                return Err(IoError::OutOfRange);
            }
        }
        // A block of the one may not lie across pieces of the other.
        let block_bytes = |bdev| self.router.geometry(bdev).map_or(1, |geometry| geometry.block_bytes);
        let larger = u64::from(block_bytes(io.source).max(block_bytes(io.destination)));
        if io.source_bytes % larger != io.destination_bytes % larger || !io.bytes.is_multiple_of(larger) {
            return Err(IoError::OutOfRange);
        }
        let read_only = self.router.geometry(io.destination).is_some_and(|geometry| geometry.read_only);
        if read_only { Err(IoError::WRITE_PROTECTED) } else { Ok(()) }
    }

    fn begin_copy(&mut self, io: CopyIo, asked: Time) {
        let distance = io.destination_bytes.abs_diff(io.source_bytes);
        let overlaps = io.source == io.destination && distance < io.bytes;
        let copy = Copying {
            io,
            asked,
            begun: 0,
            backwards: overlaps && io.destination_bytes > io.source_bytes,
            window: if overlaps { 1 } else { COPY_WINDOW },
            out: 0,
            unshared: SmallVec::new(),
            failed: None,
            moved: Moved::default(),
        };
        let Ok(slot) = self.copies.insert(copy) else { unreachable!("the caller looked") };
        self.advance_copy(slot);
    }

    /// The next piece of a copy: as far as both sides have one owner, one chunk's worth if it goes as bytes.
    fn next_span(copy: &Copying) -> Span {
        let CopyIo { source, source_bytes, destination, destination_bytes, bytes, .. } = copy.io;
        let same_pool = matches!((pool_of(source), pool_of(destination)), (Some(a), Some(b)) if a.0 == b.0);
        let lines_up = same_pool && source_bytes % CHUNK_BYTES == destination_bytes % CHUNK_BYTES;
        let apart = if same_pool { AsBytes::Misaligned } else { AsBytes::Apart };
        let left = bytes - copy.begun;
        if copy.backwards {
            let (from_end, to_end) = (source_bytes + left, destination_bytes + left);
            let start_of = |end: u64, unit: u64| (end - 1) - (end - 1) % unit;
            let reach =
                |unit| (from_end - start_of(from_end, unit)).min(to_end - start_of(to_end, unit)).min(left);
            let tail = from_end % BLOCK_BYTES;
            let (bytes, as_bytes) = if !lines_up {
                (reach(PIECE_BYTES), Some(apart))
            } else if tail != 0 || left < BLOCK_BYTES {
                (if tail == 0 { left } else { tail.min(left) }, Some(AsBytes::Edge))
            } else {
                let most = reach(STRIPE_BYTES);
                (most - most % BLOCK_BYTES, None)
            };
            return Span { from: from_end - bytes, to: to_end - bytes, bytes, as_bytes };
        }
        let (from, to) = (source_bytes + copy.begun, destination_bytes + copy.begun);
        let reach = |unit: u64| (unit - from % unit).min(unit - to % unit).min(left);
        let head = from.next_multiple_of(BLOCK_BYTES) - from;
        let (bytes, as_bytes) = if !lines_up {
            (reach(PIECE_BYTES), Some(apart))
        } else if head != 0 || left < BLOCK_BYTES {
            (if head == 0 { left } else { head.min(left) }, Some(AsBytes::Edge))
        } else {
            let most = reach(STRIPE_BYTES);
            (most - most % BLOCK_BYTES, None)
        };
        Span { from, to, bytes, as_bytes }
    }

    fn advance_copy(&mut self, slot: Slot) {
        while let Some(copy) = self.copies.get(slot) {
            let is_begun = copy.begun == copy.io.bytes && copy.unshared.is_empty();
            if is_begun || copy.failed.is_some() {
                if copy.out == 0 {
                    self.end_copy(slot);
                }
                return;
            }
            if copy.out >= copy.window {
                return;
            }
            if self.router.is_gone(copy.io.destination) || self.router.is_gone(copy.io.source) {
                if let Some(copy) = self.copies.get_mut(slot) {
                    copy.failed = Some(IoError::GONE);
                }
                continue;
            }
            let io = copy.io;
            let Some(copy) = self.copies.get_mut(slot) else { return };
            let unshared = copy.next_unshared();
            let span = unshared.unwrap_or_else(|| Self::next_span(copy));
            // A volume may have become smaller since the copy was asked for.
            let end_of = |bdev| self.router.geometry(bdev).map_or(0, crate::geometry::Geometry::bytes);
            if span.from + span.bytes > end_of(io.source) || span.to + span.bytes > end_of(io.destination) {
                if let Some(copy) = self.copies.get_mut(slot) {
                    copy.failed = Some(IoError::OutOfRange);
                }
                continue;
            }
            let begun = match span.as_bytes {
                None => self.begin_share(slot, io, span),
                Some(_) => self.begin_bytes(slot, io, span),
            };
            let Some(copy) = self.copies.get_mut(slot) else { return };
            if !begun {
                copy.unshared.extend(unshared);
                return self.stalled.push_back(slot);
            }
            copy.begun += if unshared.is_some() { 0 } else { span.bytes };
            copy.out += 1;
        }
    }

    fn begin_share(&mut self, copy: Slot, io: CopyIo, span: Span) -> bool {
        if !self.router.note_copy(io.destination, true) {
            return false;
        }
        let Ok(piece) = self.pieces.insert(Piece::Shared { copy, span }) else {
            unreachable!("bounded by the window")
        };
        let by_name = self.deal.owner(span.to) == self.core;
        if by_name && self.known(&io, span).is_some_and(|Told(edition)| self.install_named(piece, edition)) {
            return true;
        }
        self.ask_share(piece, io, span, by_name);
        true
    }

    /// What a whole stripe of another core that is to be copied is like, if this core knows.
    fn known(&self, io: &CopyIo, span: Span) -> Option<Told> {
        let is_whole = span.bytes == STRIPE_BYTES && span.from.is_multiple_of(STRIPE_BYTES);
        if !is_whole || self.deal.owner(span.from) == self.core {
            return None;
        }
        let (pool, _) = pool_of(io.source)?;
        self.shard.pools.get(pool)?.known(io.source, span.from / BLOCK_BYTES)
    }

    /// Asks the source's core for a piece; `by_name` if this is the destination's and it has not tried yet.
    fn ask_share(&mut self, piece: Slot, io: CopyIo, span: Span, by_name: bool) {
        let Some((pool, _)) = pool_of(io.source) else { unreachable!("shared within a pool only") };
        let share = Share {
            source: io.source,
            source_block: span.from / BLOCK_BYTES,
            destination: io.destination,
            destination_block: span.to / BLOCK_BYTES,
            blocks: (span.bytes / BLOCK_BYTES) as u32,
            by_name,
        };
        let ask = mail::Ask { token: piece.to_bits() | SHARE_TOKEN, what: What::Share(share) };
        let to = self.deal.owner(span.from);
        self.send_pool(pool, mail::Outgoing::Ask(to, ask));
    }

    /// Another core has only told what it has: that is noted, and installed here; whether that is on its way.
    fn named(&mut self, piece: Slot, root: RootId, edition: Option<mail::Edition>, count: u64) -> bool {
        if let Some(&Piece::Shared { copy, span }) = self.pieces.get(piece)
            && let Some(source) = self.copies.get(copy).map(|copy| copy.io.source)
            && let Some(pool) = pool_of(source).and_then(|(pool, _)| self.shard.pools.get_mut(pool))
        {
            pool.note_known(root, span.from / BLOCK_BYTES, edition, count);
        }
        self.install_named(piece, edition)
    }

    /// Installs what another core has only told the name of; whether that is on its way.
    fn install_named(&mut self, piece: Slot, edition: Option<mail::Edition>) -> bool {
        let Some(&Piece::Shared { copy, span }) = self.pieces.get(piece) else { return false };
        let Some(Copying { io, failed: None, .. }) = self.copies.get(copy) else { return false };
        let Some((pool, _)) = pool_of(io.source) else { return false };
        let what =
            What::InstallTwin { destination: io.destination, slot: SlotNo(span.to / CHUNK_BYTES), edition };
        let ask = mail::Ask { token: piece.to_bits() | SHARE_TOKEN, what };
        self.pool_ask(pool, self.core, ask);
        true
    }

    fn begin_bytes(&mut self, copy: Slot, io: CopyIo, span: Span) -> bool {
        let Some(mut buf) = self.bufs.pop() else { return false };
        buf.set_len(span.bytes as usize);
        let Ok(piece) = self.pieces.insert(Piece::Read { copy, span }) else {
            unreachable!("bounded by the window")
        };
        self.submit_bytes(piece, io.source, Op::Read, span.from, span.bytes, buf);
        true
    }

    fn submit_bytes(&mut self, piece: Slot, bdev: BdevId, op: Op, at: u64, bytes: u64, buf: Buf) {
        let block_bytes = self.router.geometry(bdev).map_or(512, |geometry| u64::from(geometry.block_bytes));
        self.router.submit(Io {
            tag: Tag(piece.to_bits() | COPY_TAG),
            from: self.core,
            bdev,
            op,
            fua: false,
            heartbeat: false,
            disposable: false,
            more_parts: 0,
            lba: at / block_bytes,
            blocks: bytes / block_bytes,
            buf: Some(buf),
            scratch: None,
        });
    }

    /// A copy's own read or write came back.
    fn bytes_done(&mut self, done: Done) {
        let slot = Slot::from_bits(done.io.tag.0 & !COPY_TAG);
        let Some(piece) = self.pieces.remove(slot) else { return };
        let buf = done.io.buf;
        let was_written = matches!(piece, Piece::Written { .. });
        match (piece, done.result, buf) {
            (Piece::Status { .. }, ..) => debug_assert!(false, "a question has no buffer"),
            (Piece::Read { copy, span }, Ok(()), Some(buf)) => {
                let Some(Copying { io, failed, .. }) = self.copies.get(copy) else {
                    return self.bufs.push(buf);
                };
                if failed.is_some() {
                    // Given up, or to be reported: what was not written yet need not be.
                    self.bufs.push(buf);
                    return self.piece_done(copy, Ok(()));
                }
                let io = *io;
                let Ok(piece) = self.pieces.insert(Piece::Written { copy, span }) else {
                    unreachable!("one was removed")
                };
                self.submit_bytes(piece, io.destination, Op::Write, span.to, span.bytes, buf);
            }
            (
                Piece::Read { copy, span } | Piece::Written { copy, span } | Piece::Shared { copy, span },
                result,
                buf,
            ) => {
                self.bufs.extend(buf);
                if result.is_ok() && was_written {
                    self.count_bytes(copy, span);
                }
                self.piece_done(copy, result);
            }
        }
    }

    /// Why something was copied as bytes: the copy and the destination's pool count it.
    fn count_bytes(&mut self, copy: Slot, span: Span) {
        let (Some(copy), Some(why)) = (self.copies.get_mut(copy), span.as_bytes) else { return };
        *match why {
            AsBytes::Edge => &mut copy.moved.edge_bytes,
            AsBytes::Misaligned => &mut copy.moved.misaligned_bytes,
            AsBytes::Apart => &mut copy.moved.apart_bytes,
            AsBytes::CountFull => &mut copy.moved.count_full_bytes,
        } += span.bytes;
        let destination = pool_of(copy.io.destination);
        if let Some(pool) = destination.and_then(|(pool, _)| self.shard.pools.get_mut(pool)) {
            pool.count_copied_bytes(why, span.bytes);
        }
    }

    fn share_done(&mut self, slot: Slot, tell: &Tell) {
        match *tell {
            Tell::Named { root, edition, count } if self.named(slot, root, edition, count) => return,
            Tell::Unknown => {
                if let Some(&Piece::Shared { copy, span }) = self.pieces.get(slot)
                    && let Some(&Copying { io, failed: None, .. }) = self.copies.get(copy)
                {
                    // Not under that name, which is not tried twice: whoever has the source brings the slots.
                    return self.ask_share(slot, io, span, false);
                }
            }
            _ => {}
        }
        let (copy, span) = match self.pieces.remove(slot) {
            Some(Piece::Shared { copy, span }) => (copy, span),
            Some(Piece::Status { tag, from_bytes, end_bytes }) => {
                let (mapped, bytes) = match tell {
                    Tell::Extent { mapped, blocks } => {
                        let end = (from_bytes / BLOCK_BYTES + blocks) * BLOCK_BYTES;
                        (*mapped, end.min(end_bytes) - from_bytes)
                    }
                    // What nobody can tell is taken for mapped.
                    _ => (true, end_bytes - from_bytes),
                };
                self.statuses.push_back(RangeStatus { tag, from_bytes, bytes, mapped });
                self.statuses_out -= 1;
                if let Some((tag, bdev, from_bytes, bytes)) = self.statuses_waiting.pop_front() {
                    self.status(tag, bdev, from_bytes, bytes);
                }
                return;
            }
            _ => return,
        };
        let Some(io) = self.copies.get(copy).map(|copy| copy.io) else { return };
        self.router.note_copy(io.destination, false);
        let result = match tell {
            Tell::Failed(error) => Err(*error),
            _ => Ok(()),
        };
        if let (Ok(()), Some(copy)) = (result, self.copies.get_mut(copy)) {
            if matches!(tell, Tell::Named { .. } | Tell::Unknown) {
                debug_assert!(copy.failed.is_some(), "given up on the way");
            } else if matches!(tell, Tell::CountFull) {
                copy.unshared.push(Span { as_bytes: Some(AsBytes::CountFull), ..span });
            } else {
                copy.moved.shared_bytes += span.bytes;
            }
        }
        self.piece_done(copy, result);
    }

    fn piece_done(&mut self, slot: Slot, result: Result<(), IoError>) {
        let Some(copy) = self.copies.get_mut(slot) else { return };
        copy.out -= 1;
        if let Err(error) = result {
            copy.failed.get_or_insert(error);
        }
        self.advance_copy(slot);
        for _ in 0..self.stalled.len() {
            if let Some(slot) = self.stalled.pop_front() {
                self.advance_copy(slot);
            }
        }
    }

    fn end_copy(&mut self, slot: Slot) {
        let Some(copy) = self.copies.remove(slot) else { return };
        // One that was given up when all of it was done is done.
        let is_done = copy.failed == Some(IoError::ABANDONED) && copy.moved.bytes() == copy.io.bytes;
        let result = copy.failed.filter(|_| !is_done).map_or(Ok(()), Err);
        self.copy_ended(Copied { io: copy.io, result, moved: copy.moved }, copy.asked);
        if let Some((io, asked)) = self.copies_waiting.pop_front() {
            self.begin_copy(io, asked);
        }
    }

    /// Does another core's request here and now, if it is a read or write that takes no time and has nobody to wait for: its
    /// [`Done`] goes back at once, and no table or queue sees it. False: nothing was done, and it is for
    /// [`Storage::on_request`].
    #[inline]
    pub fn perform_now(&mut self, io: &mut Io) -> bool {
        self.shard.perform_now(io)
    }

    /// Another core's request will be here next: what it reads or writes is fetched to the cache meanwhile.
    #[inline]
    pub fn expect(&self, mail: &Mail) {
        if let Mail::Submit(io) = mail {
            self.shard.expect(io);
        }
    }

    /// A request of another core.
    pub fn on_request(&mut self, from: Core, mail: Mail) {
        match mail {
            Mail::Submit(io) => self.shard.submit(io),
            Mail::Swap(swap) => self.shard.submit_swap(*swap),
            Mail::Edge(ask) => self.shard.on_edge(from, *ask),
            Mail::PoolAsk(pool, ask) => self.pool_ask(usize::from(pool), from, ask),
            Mail::PoolData(place, mut data) => {
                if let Some(pool) = self.shard.pools.get_mut(usize::from(place)) {
                    pool.on_data(&mut data);
                }
                let mail = Mail::PoolDataDone(place, data);
                self.out.push_back(Outgoing { to: from, reply: true, mail });
            }
            Mail::Done(_)
            | Mail::Swapped(..)
            | Mail::EdgeTold(_)
            | Mail::PoolTell(..)
            | Mail::PoolDataDone(..) => {
                debug_assert!(false, "a reply that came as a request");
            }
        }
    }

    /// The reply to a request of this core.
    pub fn on_reply(&mut self, from: Core, mail: Mail) {
        match mail {
            Mail::Done(done) => self.answered(done),
            Mail::Swapped(swap, result) => self.router.swap_answered(*swap, result),
            Mail::EdgeTold(tell) => self.shard.on_edge_told(*tell),
            Mail::PoolTell(pool, answer) => self.pool_tell(usize::from(pool), from, answer),
            Mail::PoolDataDone(pool, data) => {
                if let Some(pool) = self.shard.pools.get_mut(usize::from(pool)) {
                    pool.on_data_done(data);
                }
                self.shard.settle_pools();
            }
            Mail::Submit(_) | Mail::Swap(_) | Mail::Edge(_) | Mail::PoolAsk(..) | Mail::PoolData(..) => {
                debug_assert!(false, "a request that came as a reply");
            }
        }
    }

    /// A request of this core came back. The router looks at what it has to; most go on to who asked.
    #[inline]
    fn answered(&mut self, done: Done) {
        if done.io.tag.0 & COPY_TAG == 0 && self.router.data_answered(&done.io) {
            self.done.push_back(done);
        } else {
            self.router.answered(done);
        }
    }

    fn pool_ask(&mut self, pool: usize, from: Core, ask: mail::Ask) {
        match ask.what {
            What::Hold { bdev } => {
                let Ok(hold) = self.holds.insert((pool, from, ask.token, bdev)) else {
                    unreachable!("the owner has one")
                };
                if self.router.hold(bdev, hold.to_bits()) {
                    self.held(hold);
                }
            }
            What::Release { bdev } => {
                self.router.release(bdev);
                self.answer(pool, from, ask.token);
                for _ in 0..self.stalled.len() {
                    if let Some(slot) = self.stalled.pop_front() {
                        self.advance_copy(slot);
                    }
                }
            }
            What::Attach { bdev, volume } => {
                self.router.set_volume(bdev, Some(volume.geometry));
                self.shard.set_volume(bdev, Some(volume.geometry));
                self.hand_to_shard(pool, from, ask);
            }
            What::Detach { bdev } => {
                self.router.set_volume(bdev, None);
                // Its number may be another's.
                self.copy_counts.remove(&bdev);
                self.shard.set_volume(bdev, None);
                self.hand_to_shard(pool, from, ask);
            }
            _ => self.hand_to_shard(pool, from, ask),
        }
    }

    fn hand_to_shard(&mut self, pool: usize, from: Core, ask: mail::Ask) {
        self.shard.pool_ask(pool, from, ask);
    }

    fn held(&mut self, hold: Slot) {
        if let Some((pool, from, token, _)) = self.holds.remove(hold) {
            self.answer(pool, from, token);
        }
    }

    fn answer(&mut self, pool: usize, to: Core, token: u64) {
        self.send_pool(pool, mail::Outgoing::Tell(to, mail::Answer { token, tell: Tell::Done }));
    }

    fn pool_tell(&mut self, pool: usize, from: Core, answer: mail::Answer) {
        if answer.token & SHARE_TOKEN != 0 {
            return self.share_done(Slot::from_bits(answer.token & !SHARE_TOKEN), &answer.tell);
        }
        if let Some(pool) = self.shard.pools.get_mut(pool) {
            pool.on_tell(from, answer);
        }
        self.shard.settle_pools();
    }

    fn send_pool(&mut self, pool: usize, outgoing: mail::Outgoing) {
        let place = pool as u8;
        match outgoing {
            mail::Outgoing::Data(to, data) => {
                self.out.push_back(Outgoing { to, reply: false, mail: Mail::PoolData(place, data) });
            }
            mail::Outgoing::Ask(to, ask) if to == self.core => self.pool_ask(pool, to, ask),
            mail::Outgoing::Tell(to, answer) if to == self.core => self.pool_tell(pool, to, answer),
            mail::Outgoing::Ask(to, ask) => {
                self.out.push_back(Outgoing { to, reply: false, mail: Mail::PoolAsk(place, ask) });
            }
            mail::Outgoing::Tell(to, answer) => {
                self.out.push_back(Outgoing { to, reply: true, mail: Mail::PoolTell(place, answer) });
            }
        }
    }

    fn carry(&mut self, to: Core, reply: bool, mail: Mail) {
        match (to == self.core, reply) {
            (false, _) => self.out.push_back(Outgoing { to, reply, mail }),
            (true, false) => self.on_request(to, mail),
            (true, true) => self.on_reply(to, mail),
        }
    }

    /// Carries everything as far as it goes on this core. Whether anything moved.
    pub fn settle(&mut self) -> bool {
        let mut any = false;
        loop {
            let mut moved = false;
            while let Some((to, io)) = self.router.poll_send() {
                moved = true;
                if to == self.core {
                    self.shard.submit(io);
                } else {
                    self.out.push_back(Outgoing { to, reply: false, mail: Mail::Submit(io) });
                }
            }
            while let Some((to, swap)) = self.router.poll_send_swap() {
                moved = true;
                self.carry(to, false, Mail::Swap(swap));
            }
            while let Some((to, reply, mail)) = self.shard.poll_edge() {
                moved = true;
                self.carry(to, reply, mail);
            }
            while let Some(done) = self.shard.poll_done() {
                moved = true;
                if done.io.from == self.core {
                    self.answered(done);
                } else {
                    self.out.push_back(Outgoing { to: done.io.from, reply: true, mail: Mail::Done(done) });
                }
            }
            while let Some(done) = self.router.poll_done() {
                moved = true;
                if done.io.tag.0 & COPY_TAG != 0 {
                    self.bytes_done(done);
                } else {
                    self.done.push_back(done);
                }
            }
            while let Some(token) = self.router.poll_held() {
                moved = true;
                self.held(Slot::from_bits(token));
            }
            for pool in 0..self.shard.pools.len() {
                while let Some(mut outgoing) = self.shard.pools[pool].poll_out() {
                    moved = true;
                    if let mail::Outgoing::Tell(_, answer) = &mut outgoing {
                        self.shard.pool_told(answer);
                    }
                    self.send_pool(pool, outgoing);
                }
            }
            if !moved {
                return any;
            }
            any = true;
        }
    }

    /// The next mail for another core.
    pub fn poll_mail(&mut self) -> Option<Outgoing> {
        if self.out.is_empty() {
            self.settle();
        }
        self.out.pop_front()
    }

    /// The next operation for this core's ring.
    pub fn poll_disk(&mut self) -> Option<DiskOp> {
        self.shard.poll_disk()
    }

    /// A disk operation has ended.
    pub fn complete(&mut self, done: DiskDone) {
        self.shard.complete(done);
    }

    /// The next request of this core that has ended.
    pub fn poll_done(&mut self) -> Option<Done> {
        if self.done.is_empty() {
            self.settle();
        }
        self.done.pop_front()
    }

    /// The next copy that has ended.
    pub fn poll_copied(&mut self) -> Option<Copied> {
        if self.copied.is_empty() {
            self.settle();
        }
        self.copied.pop_front()
    }

    /// Asks a pool's owner for something; on core 0 only.
    pub fn ask(&mut self, pool: usize, ticket: u64, request: Request, wall_seconds: u64) {
        self.shard.pools[pool].request(ticket, request, wall_seconds);
    }

    /// The owners' next answer.
    pub fn poll_answer(&mut self) -> Option<(u64, Answered)> {
        self.shard.pools.iter_mut().find_map(PoolShard::poll_answer)
    }

    /// One bounded step of what goes on by itself. Whether there is more.
    pub fn turn(&mut self, now: Time) -> bool {
        self.now = now;
        let more = self.shard.turn(now);
        if !self.stalled.is_empty() && !self.bufs.is_empty() {
            for _ in 0..self.stalled.len() {
                if let Some(slot) = self.stalled.pop_front() {
                    self.advance_copy(slot);
                }
            }
        }
        self.settle() || more
    }

    /// The program ends: what is acknowledged becomes durable. Whether it is.
    pub fn wind_down(&mut self) -> bool {
        {
            let quiet = self.shard.pools.iter_mut().map(PoolShard::wind_down);
            // Each is asked, whatever the one before said.
            quiet.filter(|&quiet| !quiet).count() == 0
        }
    }

    /// What has not ended.
    pub fn in_flight(&self) -> usize {
        self.shard.in_flight()
            + self.copies.len()
            + self.shard.pools.iter().map(PoolShard::in_flight).sum::<usize>()
    }
}

/// Set in the tokens of copies' asks.
const SHARE_TOKEN: u64 = 1 << 31;
