//! One a core: says which core a request goes to, cuts long ranges where owners change, and joins what comes back.
//!
//! A data request lies in one piece and so has one owner: it goes there under its asker's tag and its answer is
//! handed on unseen. A range ([`Op::WriteZeroes`], [`Op::Unmap`]) of any length becomes parts, of which at most
//! [`PARTS_MAX`] are out at once; the first error by LBA is the request's. Parts are not durable by themselves:
//! where the answer promises it, one [`Op::Flush`] to the own core follows them, which covers what every core wrote,
//! since it is of the whole file.
//!
//! Invariant: of each request in `ranges`, `out` parts are queued to be sent or with their owners.

use crate::edge::Swap;
use crate::error::IoError;
use crate::geometry::Geometry;
use crate::io::{ATOMIC_GRANULE_BYTES, BdevId, Done, Io, Op, PIECE_BYTES, SWAP_BLOCKS_MAX, Tag};
use crate::stripe::Deal;
use ahash::HashMap;
use reactor::Core;
use reactor::slots::{Slot, Slots};
use std::collections::VecDeque;
use std::sync::Arc;

/// How many parts of one request are out at once.
pub const PARTS_MAX: u32 = 32;

/// How many range requests are worked on at once; the others wait in order. Their number is bounded by the askers'
/// command windows.
pub const RANGES_MAX: usize = 256;

/// Set in the tags of parts and never in an asker's, so that giving up the one never meets the other. In a slot it
/// would stand for an index past any table.
const PART_TAG: u64 = 1 << 31;

/// Where a range request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Parts are sent and come back.
    Parts,
    /// All parts came back well, the flush is out.
    Flush,
}

#[derive(Debug)]
struct Request {
    io: Io,
    phase: Phase,
    /// Bytes from the range's start that were made into parts.
    cut_bytes: u64,
    /// Parts that are out.
    out: u32,
    /// The failed part with the lowest LBA.
    failed: Option<(u64, IoError)>,
    /// The answer promises that the range is on the medium, and more than one part did it.
    flush: bool,
    /// The asker wants no more of it to begin.
    abandoned: bool,
}

/// A volume of a pool, as a core's requests meet it.
#[derive(Debug)]
struct Device {
    geometry: Geometry,
    /// It was taken away: nothing of it is admitted any more.
    gone: bool,
    /// Writes of this core that are out: data, and parts of ranges.
    writes_out: u32,
    /// Who asked for writes to be held, and is told when none is out; and what waits.
    held: Option<Hold>,
}

#[derive(Debug)]
struct Hold {
    /// `None`: told.
    asker: Option<u64>,
    waiting: VecDeque<Io>,
}

/// A core's way to all shards. The caller drains [`Router::poll_send`] and [`Router::poll_done`] after each call.
#[derive(Debug)]
pub struct Router {
    core: Core,
    deal: Deal,
    geometries: Arc<[Geometry]>,
    volumes: HashMap<u16, Device>,
    ranges: Slots<Request>,
    waiting: VecDeque<Io>,
    send: VecDeque<(Core, Io)>,
    /// Compare and writes of which some parts have come: few, as who submits one part submits the next.
    gathering: Vec<Vec<Io>>,
    send_swaps: VecDeque<(Core, Box<Swap>)>,
    done: VecDeque<Done>,
    held: VecDeque<u64>,
}

impl Router {
    /// The router of `core`, one of `cores`; `geometries` by [`BdevId`].
    pub fn new(core: Core, cores: u16, geometries: Arc<[Geometry]>) -> Router {
        assert!(core.0 < cores);
        Router {
            core,
            deal: Deal::among(cores),
            geometries,
            volumes: HashMap::default(),
            ranges: Slots::with_capacity(RANGES_MAX),
            waiting: VecDeque::new(),
            send: VecDeque::new(),
            gathering: Vec::new(),
            send_swaps: VecDeque::new(),
            done: VecDeque::new(),
            held: VecDeque::new(),
        }
    }

    /// The shape of a device; `None` if there is no such.
    pub fn geometry(&self, bdev: BdevId) -> Option<&Geometry> {
        self.geometries
            .get(usize::from(bdev.0))
            .or_else(|| self.volumes.get(&bdev.0).map(|volume| &volume.geometry))
    }

    fn shape(&self, bdev: BdevId) -> Geometry {
        *self.geometry(bdev).expect("who asks knows the device")
    }

    /// A volume is a device from now on, or has another shape; `None`: it is none any more.
    pub fn set_volume(&mut self, bdev: BdevId, geometry: Option<Geometry>) {
        match (self.volumes.get_mut(&bdev.0), geometry) {
            (Some(volume), Some(geometry)) => (volume.geometry, volume.gone) = (geometry, false),
            (Some(volume), None) => volume.gone = true,
            (None, Some(geometry)) => {
                self.volumes.insert(bdev.0, Device { geometry, gone: false, writes_out: 0, held: None });
            }
            (None, None) => {}
        }
    }

    /// Holds writes to a volume back before they begin. True: none is out. Otherwise `token` comes out of
    /// [`Router::poll_held`] when none is.
    pub fn hold(&mut self, bdev: BdevId, token: u64) -> bool {
        let Some(volume) = self.volumes.get_mut(&bdev.0) else { return true };
        let quiet = volume.writes_out == 0;
        let waiting = volume.held.take().map(|hold| hold.waiting).unwrap_or_default();
        volume.held = Some(Hold { asker: (!quiet).then_some(token), waiting });
        quiet
    }

    /// Lets go what is held. The asker that was not told yet is told now.
    pub fn release(&mut self, bdev: BdevId) {
        let Some(volume) = self.volumes.get_mut(&bdev.0) else { return };
        let Some(hold) = volume.held.take() else { return };
        self.held.extend(hold.asker);
        for io in hold.waiting {
            self.submit(io);
        }
        let stopped: Vec<Slot> =
            self.ranges.iter().filter(|(_, request)| request.io.bdev == bdev).map(|(slot, _)| slot).collect();
        for slot in stopped {
            self.advance(slot);
        }
    }

    /// Who asked for a hold and is to be told that no write is out any more.
    pub fn poll_held(&mut self) -> Option<u64> {
        self.held.pop_front()
    }

    /// Whether a volume was taken away.
    pub fn is_gone(&self, bdev: BdevId) -> bool {
        self.volumes.get(&bdev.0).is_some_and(|volume| volume.gone)
    }

    fn is_held(&self, bdev: BdevId) -> bool {
        !self.volumes.is_empty() && self.volumes.get(&bdev.0).is_some_and(|volume| volume.held.is_some())
    }

    /// A copy writes to a volume, or has done so. False: it is held, or no device.
    pub fn note_copy(&mut self, bdev: BdevId, begins: bool) -> bool {
        if begins && (self.is_held(bdev) || self.volumes.get(&bdev.0).is_none_or(|volume| volume.gone)) {
            return false;
        }
        self.note_write(bdev, begins);
        true
    }

    fn note_write(&mut self, bdev: BdevId, begins: bool) {
        if self.volumes.is_empty() {
            return;
        }
        let Some(volume) = self.volumes.get_mut(&bdev.0) else { return };
        if begins {
            volume.writes_out += 1;
            return;
        }
        volume.writes_out -= 1;
        if volume.writes_out == 0
            && let Some(asker) = volume.held.as_mut().and_then(|hold| hold.asker.take())
        {
            self.held.push_back(asker);
        }
    }

    /// The owner of a data request's stripe.
    #[inline]
    pub fn route(&self, io: &Io) -> Core {
        let geometry = self.shape(io.bdev);
        self.deal.owner(io.lba * u64::from(geometry.block_bytes))
    }

    /// Whether so many bytes of a device, within one piece, are there and this core's own; with `writes`, may be written.
    #[inline]
    pub fn is_own(&self, bdev: BdevId, lba: u64, bytes: usize, writes: bool) -> bool {
        let geometry = match self.geometries.get(usize::from(bdev.0)) {
            Some(geometry) => geometry,
            None => match self.volumes.get(&bdev.0) {
                Some(volume) if !(volume.gone || writes && volume.held.is_some()) => &volume.geometry,
                _ => return false,
            },
        };
        let block_bytes = u64::from(geometry.block_bytes);
        let blocks = bytes as u64 / block_bytes;
        lba < geometry.blocks
            && blocks <= geometry.blocks - lba
            && bytes as u64 == blocks * block_bytes
            && lba * block_bytes % PIECE_BYTES + bytes as u64 <= PIECE_BYTES
            && !(writes && geometry.read_only)
            && self.deal.owner(lba * block_bytes) == self.core
    }

    /// Takes a request with `from` this core. What may be wrong in it by an initiator's doing (range, write
    /// protection) comes back as an error.
    ///
    /// # Panics
    /// On our own mistakes: an unknown device, a data request that crosses a piece or whose buffers don't fit, a tag
    /// with bit 31 set (that marks parts; no slot has it).
    pub fn submit(&mut self, io: Io) {
        if io.op.has_parts() && (io.more_parts > 0 || !self.gathering.is_empty()) {
            return self.gather(io);
        }
        self.admit(io);
    }

    /// Admits a read or write on its way past the queues, if nothing has to be cut, held or refused and nobody waits to be
    /// sent: its owner. `None`: nothing was done, and it is for [`Router::submit`].
    ///
    /// # Panics
    /// As [`Router::submit`].
    #[inline]
    pub fn admit_data(&mut self, io: &Io) -> Option<Core> {
        if !matches!(io.op, Op::Read | Op::Write) || !self.send.is_empty() {
            return None;
        }
        let geometry = self.geometries.get(usize::from(io.bdev.0))?;
        if answer_now(io, geometry).is_some() {
            return None;
        }
        debug_assert_eq!(io.from, self.core);
        assert!(io.tag.0 & PART_TAG == 0, "bit 31 of a tag marks parts");
        check_piece(io, geometry);
        Some(self.deal.owner(io.lba * u64::from(geometry.block_bytes)))
    }

    fn admit(&mut self, io: Io) {
        let geometry = self.shape(io.bdev);
        if geometry.pooled
            && let Some(volume) = self.volumes.get_mut(&io.bdev.0)
        {
            if volume.gone {
                return self.done.push_back(Done { io, result: Err(IoError::GONE) });
            }
            if let (true, Some(hold)) = (io.op.writes() && io.op != Op::Flush, &mut volume.held) {
                return hold.waiting.push_back(io);
            }
        }
        debug_assert_eq!(io.from, self.core);
        assert!(io.tag.0 & PART_TAG == 0, "bit 31 of a tag marks parts");
        if let Some(result) = answer_now(&io, &geometry) {
            self.done.push_back(Done { io, result });
            return;
        }
        match io.op {
            Op::Stage => unreachable!("no asker's"),
            Op::Read | Op::Write | Op::Compare | Op::OrWrite | Op::CompareAndWrite | Op::WriteAtomic => {
                check_piece(&io, &geometry);
                let owner = self.route(&io);
                if io.op.writes() {
                    self.note_write(io.bdev, true);
                }
                self.send.push_back((owner, io));
            }
            Op::WriteZeroes | Op::Unmap => self.admit_range(io),
            Op::Flush => self.admit_flush(io),
        }
    }

    /// Takes a part of what is one step in parts, and goes on when it has all.
    fn gather(&mut self, io: Io) {
        let found = self.gathering.iter().position(|parts| parts[0].tag == io.tag);
        let is_last = io.more_parts == 0;
        match found {
            None if is_last => self.admit(io),
            None => self.gathering.push(vec![io]),
            Some(place) => {
                self.gathering[place].push(io);
                if is_last {
                    let parts = self.gathering.swap_remove(place);
                    self.admit_swap(parts);
                }
            }
        }
    }

    /// Checks a request of several parts like one of one, and sends it to the lower stripe's shard.
    fn admit_swap(&mut self, mut parts: Vec<Io>) {
        let (first, last) = (&parts[0], &parts[parts.len() - 1]);
        let (bdev, lba, blocks) = (first.bdev, first.lba, last.lba + last.blocks - first.lba);
        let geometry = self.shape(bdev);
        if geometry.pooled
            && let Some(volume) = self.volumes.get_mut(&bdev.0)
        {
            if volume.gone {
                return self.end_swap(parts, Err(IoError::GONE));
            }
            if let Some(hold) = &mut volume.held {
                return hold.waiting.extend(parts);
            }
        }
        if lba.checked_add(blocks).is_none_or(|end| end > geometry.blocks) {
            return self.end_swap(parts, Err(IoError::OutOfRange));
        }
        if geometry.read_only {
            return self.end_swap(parts, Err(IoError::WRITE_PROTECTED));
        }
        let is_atomic = first.op == Op::WriteAtomic;
        if is_atomic {
            let bytes = blocks * u64::from(geometry.block_bytes);
            assert!(bytes <= u64::from(geometry.atomic_bytes), "an atomic write has its longest");
        } else {
            assert!(blocks <= SWAP_BLOCKS_MAX, "a compare and write has its longest");
        }
        for (part, next) in parts.iter().zip(&parts[1..]) {
            assert!(part.lba + part.blocks == next.lba && part.more_parts == next.more_parts + 1);
            assert!((part.bdev, part.op, part.fua) == (next.bdev, next.op, next.fua));
        }
        for part in &parts {
            check_piece(part, &geometry);
            self.note_write(bdev, true);
        }
        let owner = self.route(&parts[0]);
        let others = parts.iter().position(|part| self.route(part) != owner);
        let upper = others.map(|at| (self.route(&parts[at]), at));
        if is_atomic && upper.is_some() {
            // What one core's record says of another's data has to be there when the record is.
            for part in &mut parts {
                part.fua = true;
            }
        }
        self.send_swaps.push_back((owner, Box::new(Swap { parts, upper })));
    }

    fn end_swap(&mut self, parts: Vec<Io>, result: Result<(), IoError>) {
        self.done.extend(parts.into_iter().map(|io| Done { io, result }));
    }

    /// The next compare and write of several parts to be carried to a core's shard.
    #[inline]
    pub fn poll_send_swap(&mut self) -> Option<(Core, Box<Swap>)> {
        self.send_swaps.pop_front()
    }

    /// One of those came back.
    pub fn swap_answered(&mut self, swap: Swap, result: Result<(), IoError>) {
        for part in &swap.parts {
            self.note_write(part.bdev, false);
        }
        self.end_swap(swap.parts, result);
    }

    /// A request or a part of one came back from its owner.
    pub fn answered(&mut self, done: Done) {
        if self.data_answered(&done.io) {
            self.done.push_back(done);
            return;
        }
        if done.io.op != Op::Flush {
            self.note_write(done.io.bdev, false);
        }
        let slot = Slot::from_bits(done.io.tag.0 & !PART_TAG);
        let Some(request) = self.ranges.get_mut(slot) else {
            debug_assert!(false, "a part without its request");
            return;
        };
        request.out -= 1;
        if let Err(error) = done.result {
            // The lowest LBA speaks for the request, whatever order the parts came back in.
            if request.failed.is_none_or(|(lba, _)| done.io.lba < lba) {
                request.failed = Some((done.io.lba, error));
            }
        }
        self.advance(slot);
    }

    /// A request came back from its owner. True: that is all, and it goes to who asked for it; otherwise it is for
    /// [`Router::answered`].
    #[inline]
    pub fn data_answered(&mut self, io: &Io) -> bool {
        if !io.op.has_data() {
            return false;
        }
        if io.op.writes() {
            self.note_write(io.bdev, false);
        }
        true
    }

    /// The next request to be carried to a core's shard.
    pub fn poll_send(&mut self) -> Option<(Core, Io)> {
        self.send.pop_front()
    }

    /// The next request that has ended, as its asker submitted it.
    pub fn poll_done(&mut self) -> Option<Done> {
        self.done.pop_front()
    }

    /// How many range requests are being worked on or wait.
    pub fn ranges(&self) -> usize {
        self.ranges.len() + self.waiting.len()
    }

    /// The asker gave its range and flush requests with this tag up: no further part of them begins, what is out is
    /// waited for, and they end with an error unless they were complete. For each shard and tag where something may be
    /// out, `tell` is called, to be carried to [`crate::shard::Shard::abandon`]. (Data requests are out under their
    /// own tag with [`Router::route`]'s core, so their asker tells that core itself.)
    pub fn abandon(&mut self, tag: Tag, mut tell: impl FnMut(Core, BdevId, Tag)) {
        if let Some(place) = self.gathering.iter().position(|parts| parts[0].tag == tag) {
            let parts = self.gathering.swap_remove(place);
            self.end_swap(parts, Err(IoError::ABANDONED));
        }
        while let Some(place) = self.waiting.iter().position(|io| io.tag == tag) {
            let Some(io) = self.waiting.remove(place) else { break };
            self.done.push_back(Done { io, result: Err(IoError::ABANDONED) });
        }
        for volume in self.volumes.values_mut() {
            let Some(hold) = &mut volume.held else { continue };
            while let Some(place) = hold.waiting.iter().position(|io| io.tag == tag) {
                let Some(io) = hold.waiting.remove(place) else { break };
                self.done.push_back(Done { io, result: Err(IoError::ABANDONED) });
            }
        }
        let given_up = |request: &Request| request.io.tag == tag && !request.abandoned;
        loop {
            let next = self.ranges.iter().find(|(_, request)| given_up(request)).map(|(slot, _)| slot);
            let Some(slot) = next else { return };
            self.abandon_parts(slot, &mut tell);
        }
    }

    fn abandon_parts(&mut self, slot: Slot, tell: &mut impl FnMut(Core, BdevId, Tag)) {
        let part_tag = part_tag(slot);
        // Parts that were not carried off yet need not go.
        let queued = self.send.len();
        let mut writes = 0;
        self.send.retain(|(_, io)| {
            writes += u32::from(io.tag == part_tag && io.op != Op::Flush);
            io.tag != part_tag
        });
        let withdrawn = (queued - self.send.len()) as u32;
        let bdev = self.ranges.get(slot).expect("the caller has it").io.bdev;
        (0..writes).for_each(|_| self.note_write(bdev, false));
        let request = self.ranges.get_mut(slot).expect("the caller has it");
        request.out -= withdrawn;
        request.abandoned = true;
        if withdrawn != 0 {
            request.failed.get_or_insert((u64::MAX, IoError::ABANDONED));
        }
        if request.out == 0 {
            return self.advance(slot);
        }
        let bdev = request.io.bdev;
        for core in 0..self.deal.cores() {
            tell(Core(core), bdev, part_tag);
        }
    }

    fn admit_range(&mut self, io: Io) {
        let request = Request {
            phase: Phase::Parts,
            cut_bytes: 0,
            out: 0,
            failed: None,
            flush: false,
            abandoned: false,
            io,
        };
        match self.ranges.insert(request) {
            Ok(slot) => self.advance(slot),
            Err(request) => self.waiting.push_back(request.io),
        }
    }

    /// Without a write cache everything acknowledged is on the medium already. Otherwise the own shard flushes: the
    /// kernel's flush is of the whole file, whichever core wrote.
    fn admit_flush(&mut self, io: Io) {
        let request = Request {
            phase: Phase::Flush,
            cut_bytes: 0,
            out: 1,
            failed: None,
            flush: true,
            abandoned: false,
            io,
        };
        match self.ranges.insert(request) {
            Ok(slot) => self.send_flush(slot),
            Err(request) => self.waiting.push_back(request.io),
        }
    }

    fn send_flush(&mut self, slot: Slot) {
        let request = self.ranges.get_mut(slot).expect("the caller has it");
        let part = |io: &Io| part_of(io, slot, Op::Flush);
        if !self.volumes.contains_key(&request.io.bdev.0) {
            self.send.push_back((self.core, part(&request.io)));
            return;
        }
        // Each core has records of its own to make durable.
        request.out = u32::from(self.deal.cores());
        for core in 0..self.deal.cores() {
            self.send.push_back((Core(core), part(&request.io)));
        }
    }

    /// Sends the next parts, or the flush behind the last, or the answer.
    fn advance(&mut self, slot: Slot) {
        let bdev = self.ranges.get(slot).expect("the caller has it").io.bdev;
        let geometry = self.shape(bdev);
        let held = self.is_held(bdev);
        let request = self.ranges.get_mut(slot).expect("the caller has it");
        let mut begun = 0;
        let block_bytes = u64::from(geometry.block_bytes);
        let first_bytes = request.io.lba * block_bytes;
        let total_bytes = request.io.blocks * block_bytes;
        // `answer_now` made sure that the end is on the device, so nothing here overflows.
        let end_bytes = first_bytes + total_bytes;
        let durable = request.io.fua || !geometry.write_cache;
        while request.phase == Phase::Parts
            && request.cut_bytes < total_bytes
            && request.out < PARTS_MAX
            && request.failed.is_none()
            && !request.abandoned
            && !held
        {
            let at = first_bytes + request.cut_bytes;
            let part_end = self.deal.run_end(at, end_bytes);
            let whole = part_end - at == total_bytes;
            let mut part = part_of(&request.io, slot, request.io.op);
            part.lba = at / block_bytes;
            part.blocks = (part_end - at) / block_bytes;
            // One part makes itself durable, several leave that to the flush behind them.
            part.fua = durable && (whole || geometry.pooled);
            request.flush = durable && !whole && !geometry.pooled;
            begun += 1;
            request.cut_bytes = part_end - first_bytes;
            request.out += 1;
            self.send.push_back((self.deal.owner(at), part));
        }
        let is_out = request.out != 0;
        (0..begun).for_each(|_| self.note_write(bdev, true));
        let request = self.ranges.get_mut(slot).expect("the caller has it");
        if is_out {
            return;
        }
        let unfinished = request.phase == Phase::Parts && request.cut_bytes < total_bytes;
        if held && unfinished && request.failed.is_none() && !request.abandoned {
            // Goes on when writes are let go.
            return;
        }
        let complete = request.phase == Phase::Flush || request.cut_bytes == total_bytes;
        if complete && request.failed.is_none() && request.phase == Phase::Parts && request.flush {
            request.phase = Phase::Flush;
            request.out = 1;
            self.send_flush(slot);
            return;
        }
        let Some(Request { io, failed, .. }) = self.ranges.remove(slot) else {
            return;
        };
        let result = match failed {
            Some((_, error)) => Err(error),
            None if complete => Ok(()),
            None => Err(IoError::ABANDONED),
        };
        self.done.push_back(Done { io, result });
        if let Some(next) = self.waiting.pop_front() {
            match next.op {
                Op::Flush => self.admit_flush(next),
                _ => self.admit_range(next),
            }
        }
    }
}

fn part_tag(slot: Slot) -> Tag {
    Tag(slot.to_bits() | PART_TAG)
}

/// A part without its range.
fn part_of(io: &Io, slot: Slot, op: Op) -> Io {
    Io {
        tag: part_tag(slot),
        from: io.from,
        bdev: io.bdev,
        op,
        fua: false,
        heartbeat: false,
        disposable: false,
        more_parts: 0,
        lba: 0,
        blocks: 0,
        buf: None,
        scratch: None,
    }
}

/// The answer to what needs no shard.
fn answer_now(io: &Io, geometry: &Geometry) -> Option<Result<(), IoError>> {
    if io.op == Op::Flush {
        return (!geometry.write_cache).then_some(Ok(()));
    }
    if io.lba.checked_add(io.blocks).is_none_or(|end| end > geometry.blocks) {
        return Some(Err(IoError::OutOfRange));
    }
    if geometry.read_only && io.op.writes() {
        return Some(Err(IoError::WRITE_PROTECTED));
    }
    (io.blocks == 0).then_some(Ok(()))
}

/// What whoever cuts commands into pieces has promised.
fn check_piece(io: &Io, geometry: &Geometry) {
    let block_bytes = u64::from(geometry.block_bytes);
    let first_bytes = io.lba * block_bytes;
    let bytes = io.blocks * block_bytes;
    assert!(first_bytes % PIECE_BYTES + bytes <= PIECE_BYTES, "data requests are cut at pieces");
    if io.op == Op::WriteAtomic {
        let granule = u64::from(ATOMIC_GRANULE_BYTES);
        assert!((first_bytes | bytes).is_multiple_of(granule), "an atomic write is of whole granules");
        assert!(bytes <= u64::from(geometry.atomic_bytes), "an atomic write goes where there is one");
    }
    let buf_bytes = |buf: &Option<reactor::buf::Buf>| buf.as_ref().map_or(0, |buf| buf.len() as u64);
    assert!(buf_bytes(&io.buf) == io.op.buf_bytes(bytes), "a data request brings its buffer");
    if io.op.needs_scratch() {
        assert!(buf_bytes(&io.scratch) == bytes, "a request that looks first brings scratch memory");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{geometry, io};
    use crate::stripe::STRIPE_BYTES;
    use reactor::buf::{Pool, PoolConfig};

    const BLOCKS_A_STRIPE: u64 = STRIPE_BYTES / 512;

    fn router(cores: u16, shape: Geometry) -> Router {
        Router::new(Core(0), cores, [shape].into())
    }

    fn shape() -> Geometry {
        geometry(512, 1000 * STRIPE_BYTES)
    }

    fn sent(router: &mut Router) -> Vec<(Core, Io)> {
        std::iter::from_fn(|| router.poll_send()).collect()
    }

    fn result(router: &mut Router) -> Option<(Tag, Result<(), IoError>)> {
        router.poll_done().map(|done| (done.io.tag, done.result))
    }

    /// Goal: what is done at once is a whole range of the own core's, within one piece, on a device that may be written.
    /// Method: each kind of other, at the limit and one past it.
    #[test]
    fn what_is_own() {
        let own = router(2, shape());
        let is_own = |lba, blocks: u64| own.is_own(BdevId(0), lba, blocks as usize * 512, true);
        let at = |core: u16| {
            let mut stripes = 0..1000;
            let is_its = |stripe: &u64| own.deal.owner(stripe * STRIPE_BYTES) == Core(core);
            stripes.find(is_its).unwrap() * BLOCKS_A_STRIPE
        };
        let (here, there) = (at(0), at(1));
        assert!(is_own(here, 128) && is_own(here + 100, 28) && is_own(here + 127, 1));
        assert!(!is_own(there, 1), "another core's");
        assert!(!is_own(here, 129) && !is_own(here + 127, 2), "over a piece's edge");
        let blocks = shape().blocks;
        assert!(!is_own(blocks, 1) && !is_own(u64::MAX, 1) && !is_own(u64::MAX / 512 + 2, 1), "past the end");
        assert!(!own.is_own(BdevId(0), here, 100, false), "no whole block");
        assert!(!own.is_own(BdevId(1), here, 512, false), "no such device");
        let read_only = router(2, Geometry { read_only: true, ..shape() });
        assert!(
            read_only.is_own(BdevId(0), here, 512, false) && !read_only.is_own(BdevId(0), here, 512, true)
        );
    }

    /// Goal: an initiator's wrong ranges and writes to a read-only device are answers, at the limit and one past it.
    #[test]
    fn ranges_are_checked() {
        let mut router = router(2, Geometry { read_only: true, ..shape() });
        let blocks = shape().blocks;
        for (op, lba, count, expected) in [
            (Op::Unmap, blocks, 1, Err(IoError::OutOfRange)),
            (Op::Unmap, u64::MAX, 2, Err(IoError::OutOfRange)),
            (Op::Unmap, 0, blocks + 1, Err(IoError::OutOfRange)),
            (Op::Unmap, 0, blocks, Err(IoError::WRITE_PROTECTED)),
            (Op::Read, blocks, 0, Ok(())),
            (Op::Read, blocks + 1, 0, Err(IoError::OutOfRange)),
            (Op::Flush, 0, 0, Ok(())),
        ] {
            router.submit(io(1, op, lba, count, None));
            assert_eq!(result(&mut router), Some((Tag(1), expected)), "{op:?} {lba}+{count}");
        }
        assert!(sent(&mut router).is_empty());
    }

    /// Goal: a data request goes to its stripe's owner as it is, and its answer is handed on.
    #[test]
    fn data_go_straight_through() {
        let mut pool = Pool::new(PoolConfig { counts: [1, 0, 0], arena: 0 }).unwrap();
        let mut router = router(3, shape());
        router.submit(io(77, Op::Read, 4 * BLOCKS_A_STRIPE + 8, 8, pool.take(4096)));
        let (core, io) = router.poll_send().unwrap();
        assert_eq!((core, io.tag), (Core(1), Tag(77)));
        router.answered(Done { io, result: Err(IoError::OutOfSpace) });
        assert_eq!(result(&mut router), Some((Tag(77), Err(IoError::OutOfSpace))));
    }

    /// Goal: a compare and write brings both halves and goes to its owner as one; on a read-only device it is refused.
    #[test]
    fn compare_and_write_goes_as_one() {
        let mut pool = Pool::new(PoolConfig { counts: [1, 1, 0], arena: 0 }).unwrap();
        let mut router = router(3, shape());
        let mut request = io(7, Op::CompareAndWrite, 2 * BLOCKS_A_STRIPE - 1, 1, pool.take(1024));
        request.scratch = pool.take(512);
        router.submit(request);
        let (core, request) = router.poll_send().unwrap();
        assert_eq!((core, request.tag, request.blocks), (Core(1), Tag(7), 1));
        let differs = Err(IoError::Miscompare { offset_bytes: 511 });
        router.answered(Done { io: request, result: differs });
        assert_eq!(result(&mut router), Some((Tag(7), differs)));
        let mut protected = Router::new(Core(0), 3, [Geometry { read_only: true, ..shape() }].into());
        protected.submit(io(8, Op::CompareAndWrite, 0, 1, None));
        assert_eq!(result(&mut protected), Some((Tag(8), Err(IoError::WRITE_PROTECTED))));
    }

    /// Goal: of a long range only so many parts are out at once, they cover it exactly, each goes to its owner, and the
    /// flush comes when all are back. Method: answer one at a time.
    #[test]
    fn long_ranges_go_in_a_window() {
        let mut router = router(2, shape());
        let (first, blocks) = (100, 200 * BLOCKS_A_STRIPE);
        router.submit(io(5, Op::Unmap, first, blocks, None));
        let mut out: std::collections::VecDeque<_> = sent(&mut router).into();
        assert_eq!(out.len(), PARTS_MAX as usize);
        let mut next = first;
        while let Some((core, part)) = out.pop_front() {
            assert_eq!((part.op, part.lba, part.fua), (Op::Unmap, next, false));
            assert_eq!(core, Deal::among(2).owner(part.lba * 512));
            next += part.blocks;
            router.answered(Done { io: part, result: Ok(()) });
            if next < first + blocks {
                out.extend(sent(&mut router));
                assert!(out.len() <= PARTS_MAX as usize);
            }
        }
        assert_eq!(next, first + blocks);
        let (core, flush) = router.poll_send().unwrap();
        assert_eq!((core, flush.op), (Core(0), Op::Flush));
        assert_eq!(result(&mut router), None);
        router.answered(Done { io: flush, result: Ok(()) });
        assert_eq!(result(&mut router), Some((Tag(5), Ok(()))));
        assert_eq!(router.ranges(), 0);
    }

    /// Goal: one core needs no cut: one part, which makes itself durable.
    #[test]
    fn one_core_gets_it_whole() {
        let mut router = router(1, shape());
        router.submit(io(5, Op::WriteZeroes, 3, shape().blocks - 3, None));
        let parts = sent(&mut router);
        assert_eq!(parts.len(), 1);
        assert_eq!((parts[0].1.blocks, parts[0].1.fua), (shape().blocks - 3, true));
    }

    /// Goal: the failed part with the lowest LBA speaks, nothing new begins after a failure, and no flush follows.
    #[test]
    fn the_lowest_failure_speaks() {
        let mut router = router(4, shape());
        router.submit(io(5, Op::Unmap, 0, 100 * BLOCKS_A_STRIPE, None));
        for (place, (_, part)) in sent(&mut router).into_iter().enumerate().rev() {
            let result = match place {
                30 => Err(IoError::OutOfSpace),
                7 => Err(IoError::Medium { errno: 5 }),
                20 => Err(IoError::Device { errno: 6 }),
                _ => Ok(()),
            };
            router.answered(Done { io: part, result });
        }
        // One part was sent on before the first failure came back.
        assert_eq!(result(&mut router), None);
        let (_, last) = router.poll_send().unwrap();
        router.answered(Done { io: last, result: Ok(()) });
        assert_eq!(result(&mut router), Some((Tag(5), Err(IoError::Medium { errno: 5 }))));
        assert!(sent(&mut router).is_empty());
    }

    /// Goal: with a write cache a flush goes to the own shard; more range requests than fit wait and come through.
    #[test]
    fn flushes_and_waiting() {
        let mut router = router(2, Geometry { write_cache: true, ..shape() });
        let requests = RANGES_MAX as u64 + 10;
        for tag in 0..requests {
            let (op, blocks) = if tag % 2 == 0 { (Op::Flush, 0) } else { (Op::Unmap, 8) };
            router.submit(io(tag, op, 0, blocks, None));
        }
        assert_eq!(router.ranges() as u64, requests);
        let mut ended = 0;
        while let Some((core, part)) = router.poll_send() {
            assert_eq!(core, Core(0));
            router.answered(Done { io: part, result: Ok(()) });
            while let Some((_, result)) = result(&mut router) {
                assert_eq!(result, Ok(()));
                ended += 1;
            }
        }
        assert_eq!((ended, router.ranges()), (requests, 0));
    }

    /// Goal: a request that was given up sends nothing more and ends when what is out is back.
    #[test]
    fn what_is_given_up_stops() {
        let mut router = router(2, shape());
        router.submit(io(5, Op::Unmap, 0, 100 * BLOCKS_A_STRIPE, None));
        let (_, first) = router.poll_send().unwrap();
        router.submit(io(6, Op::Unmap, 0, 8, None));
        router.submit(io(5, Op::Unmap, 8, 8, None));
        let mut told = Vec::new();
        router.abandon(Tag(5), |core, _, tag| told.push((core, tag)));
        assert_eq!(told, [(Core(0), first.tag), (Core(1), first.tag)]);
        assert_eq!(result(&mut router), Some((Tag(5), Err(IoError::ABANDONED))), "nothing of it was out");
        let (_, other) = router.poll_send().unwrap();
        assert!(router.poll_send().is_none());
        router.answered(Done { io: other, result: Ok(()) });
        assert_eq!(result(&mut router), Some((Tag(6), Ok(()))));
        router.answered(Done { io: first, result: Ok(()) });
        assert_eq!(result(&mut router), Some((Tag(5), Err(IoError::ABANDONED))));
        assert_eq!(router.ranges(), 0);
        router.abandon(Tag(5), |_, _, _| panic!("it is gone"));
    }
}
