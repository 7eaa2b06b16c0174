//! A member of a pool, as bad as a disk may be: it ends operations in any order, cuts them short, refuses some for now
//! and fails some; and when the power goes it has kept of what was not synced whatever it liked, sector by sector.
//!
//! What a write leaves is seen when its operation has ended. It is durable at once if the write was
//! ([`DiskAction::Write`]), otherwise when a sync has ended that was issued after it. Until then a crash keeps each of
//! its sectors or loses it, alone; and so with each sector of a write under way. A read sees what had ended, and of what
//! changed or is under way between its issue and its end any mix.
//!
//! A failed sync may lose what it was to make durable ([`Faults::loses`]): that is still seen, and no sync makes it durable, but the next crash
//! takes it. As rings do (`reactor/src/durable.rs`), the disk tells all cores: durable writes that were under way fail, and so does,
//! once for each core, the next sync to end. A durable write that fails may have been one behind which a sync failed.
//!
//! Invariant: `page.unsynced` is the number of entries of `log` and `lost` that touch the page; it is 0 exactly when `page.old`
//! is `None`, that is, when what is seen is what would survive.

use crate::sim::chance::Chance;
use bdev::pool::Medium;
use bdev::zero_detect::is_zero;
use reactor::disk::{DiskAction, DiskDone, DiskOp, FileId};
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

/// What a disk tears at.
pub const SECTOR_BYTES: usize = 512;
const PAGE_BYTES: usize = 4096;
const SECTORS: usize = PAGE_BYTES / SECTOR_BYTES;

/// Where failed syncs lose something, one in so many syncs and durable writes fails.
const RELIED_ON_FAILS_ONE_IN: u64 = 40;

const EINTR: i32 = 4;
const EIO: i32 = 5;
const EAGAIN: i32 = 11;

/// Whether an operation's end is a failure, and not only to be tried again.
pub fn is_failure(result: Result<u32, i32>) -> bool {
    matches!(result, Err(errno) if errno != EINTR && errno != EAGAIN)
}

/// How bad a disk is. Each is one in so many operations; 0: never.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// Ends early.
    pub short: u64,
    /// Is interrupted or told to try again.
    pub again: u64,
    /// Fails.
    pub error: u64,
    /// What was not durable may be lost when a sync fails.
    pub loses: bool,
}

/// What a disk has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskCounts {
    /// Operations ended.
    pub operations: u64,
    /// Of them cut short.
    pub short: u64,
    /// Of them refused for now.
    pub again: u64,
    /// Of them failed.
    pub errors: u64,
    /// Writes that a failed sync has lost.
    pub lost_writes: u64,
    /// Sectors that a crash took back.
    pub lost_sectors: u64,
    /// Writes of which a crash kept a part.
    pub torn_writes: u64,
}

#[derive(Debug)]
struct Old {
    data: [u8; PAGE_BYTES],
    /// When what stands in each sector was written, counted in writes.
    order: [u64; SECTORS],
}

#[derive(Debug)]
struct Page {
    /// What is seen.
    data: [u8; PAGE_BYTES],
    /// What would survive, where that is something else.
    old: Option<Box<Old>>,
    unsynced: u32,
}

#[derive(Debug)]
struct Entry {
    order: u64,
    page: u32,
    /// First sector in the page and how many.
    sectors: (u8, u8),
    /// `None`: zeroes.
    data: Option<Box<[u8]>>,
    /// Entries of one write have the same.
    write: u64,
}

#[derive(Debug)]
struct InFlight {
    core: usize,
    op: DiskOp,
    /// Writes that had ended when it was issued.
    order: u64,
    /// A read that had a look when it was issued.
    looked: bool,
    /// Failures of syncs by then; of a sync, those that its core had been told of.
    failures: u64,
}

struct State {
    bytes: u64,
    align_bytes: u64,
    pages: Vec<Option<Box<Page>>>,
    log: VecDeque<Entry>,
    /// The pages of entries that a failed sync has lost.
    lost: Vec<u32>,
    /// Syncs that have failed since the power was gone, and how many of them each core has been told of.
    failures: u64,
    told: Vec<u64>,
    in_flight: Vec<InFlight>,
    /// Counts writes that ended.
    order: u64,
    faults: Faults,
    chance: Chance,
    /// Decides what failures lose, so that it shifts nothing else.
    losses: Chance,
    counts: DiskCounts,
    /// Blocking operations until the power goes; `None`: it stays.
    power: Option<u64>,
    /// One blocking read in so many fails.
    unreadable: u64,
}

/// A disk. Clones are the same disk.
#[derive(Clone)]
pub struct Disk {
    state: Arc<Mutex<State>>,
    /// As the rings know it.
    pub file: FileId,
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Disk({})", self.file.0)
    }
}

impl Disk {
    /// An empty one, which must be read and written in multiples of `align_bytes`.
    pub fn new(file: FileId, bytes: u64, align_bytes: u64, faults: Faults, chance: Chance) -> Disk {
        assert!(bytes.is_multiple_of(PAGE_BYTES as u64) && align_bytes.is_multiple_of(SECTOR_BYTES as u64));
        let mut pages = Vec::new();
        pages.resize_with(bytes as usize / PAGE_BYTES, || None);
        let losses = chance.clone().branch();
        let state = State {
            bytes,
            align_bytes,
            pages,
            log: VecDeque::new(),
            lost: Vec::new(),
            failures: 0,
            told: Vec::new(),
            in_flight: Vec::new(),
            order: 0,
            faults,
            chance,
            losses,
            counts: DiskCounts::default(),
            power: None,
            unreadable: 0,
        };
        Disk { state: Arc::new(Mutex::new(state)), file }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nobody panics while it has the disk")
    }

    /// Its length.
    pub fn bytes(&self) -> u64 {
        self.state().bytes
    }

    /// What it must be read and written in.
    pub fn align_bytes(&self) -> u64 {
        self.state().align_bytes
    }

    /// What it has done.
    pub fn counts(&self) -> DiskCounts {
        self.state().counts
    }

    /// Becomes as bad as this.
    pub fn set_faults(&self, faults: Faults) {
        self.state().faults = faults;
    }

    /// How many operations it has under way.
    pub fn in_flight(&self) -> usize {
        self.state().in_flight.len()
    }

    /// Takes an operation of a core.
    ///
    /// # Panics
    /// If it doesn't keep to the file's length and alignment: a kernel would refuse it.
    pub fn issue(&self, core: usize, op: DiskOp) {
        self.state().issue(core, op);
    }

    /// Ends the operation at this place of those under way: whose it was, and its end.
    pub fn end(&self, place: usize) -> (usize, DiskDone) {
        self.state().end(place)
    }

    /// The power goes: what was under way is forgotten, what was not durable is kept or lost.
    pub fn crash(&self) {
        self.state().crash();
    }

    /// The power goes after so many blocking operations, `None`: not.
    pub fn set_power(&self, operations: Option<u64>) {
        self.state().power = operations;
    }

    /// Whether it ran out of power.
    pub fn is_dead(&self) -> bool {
        self.state().power == Some(0)
    }

    /// Pages in this range, as offsets, that are not zeroes.
    pub fn written(&self, range: std::ops::Range<u64>) -> Vec<u64> {
        let state = self.state();
        let pages = range.start / PAGE_BYTES as u64..range.end.min(state.bytes) / PAGE_BYTES as u64;
        let is_there =
            |page: &u64| state.pages[*page as usize].as_ref().is_some_and(|page| !is_zero(&page.data));
        pages.filter(is_there).map(|page| page * PAGE_BYTES as u64).collect()
    }

    /// Damages what stands at a page, while nothing is under way: bits flip, zeroes or another page stand there.
    pub fn damage(&self, at: u64, other: u64) {
        let mut state = self.state();
        assert!(state.in_flight.is_empty() && state.log.is_empty());
        let mut bytes = [0; PAGE_BYTES];
        match state.chance.below(4) {
            0 => {}
            1 => state.see(other, &mut bytes),
            _ => {
                state.see(at, &mut bytes);
                for _ in 0..=state.chance.below(4) {
                    let bit = state.chance.index(PAGE_BYTES * 8);
                    bytes[bit / 8] ^= 1 << (bit % 8);
                }
            }
        }
        state.put(at, PAGE_BYTES as u64, Some(&bytes), true);
    }

    /// Reads, as a program does that waits for it.
    ///
    /// # Errors
    /// When the power is gone or the range is not on the disk.
    pub fn read(&self, offset_bytes: u64, into: &mut [u8]) -> io::Result<()> {
        let mut state = self.state();
        state.draw_power(offset_bytes, into.len())?;
        let one_in = state.unreadable;
        if state.chance.one_in(one_in) {
            state.counts.errors += 1;
            return Err(io::Error::from_raw_os_error(EIO));
        }
        state.see(offset_bytes, into);
        Ok(())
    }

    /// One blocking read in so many fails; 0: none.
    pub fn set_unreadable(&self, one_in: u64) {
        self.state().unreadable = one_in;
    }

    /// Writes; durable after [`Disk::sync`].
    ///
    /// # Errors
    /// As [`Disk::read`].
    pub fn write(&self, offset_bytes: u64, from: &[u8]) -> io::Result<()> {
        let mut state = self.state();
        assert!(offset_bytes.is_multiple_of(SECTOR_BYTES as u64) && from.len().is_multiple_of(SECTOR_BYTES));
        let was_alive = state.power != Some(0);
        let alive = state.draw_power(offset_bytes, from.len());
        if was_alive {
            // The last one before the power goes is under way when it does.
            state.put(offset_bytes, from.len() as u64, Some(from), false);
        }
        alive
    }

    /// Makes what was written durable.
    ///
    /// # Errors
    /// When the power is gone.
    pub fn sync(&self) -> io::Result<()> {
        let mut state = self.state();
        state.draw_power(0, 0)?;
        let order = state.order;
        state.synced(order);
        Ok(())
    }
}

impl Medium for Disk {
    fn bytes(&self) -> u64 {
        Disk::bytes(self)
    }

    fn read(&self, offset_bytes: u64, into: &mut [u8]) -> io::Result<()> {
        Disk::read(self, offset_bytes, into)
    }

    fn write(&self, offset_bytes: u64, from: &[u8]) -> io::Result<()> {
        Disk::write(self, offset_bytes, from)
    }

    fn sync(&self) -> io::Result<()> {
        Disk::sync(self)
    }
}

impl State {
    fn draw_power(&mut self, offset_bytes: u64, length: usize) -> io::Result<()> {
        if offset_bytes + length as u64 > self.bytes {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
        }
        match &mut self.power {
            Some(0) => Err(io::Error::other("the power is gone")),
            Some(left) => {
                *left -= 1;
                if *left == 0 { Err(io::Error::other("the power is gone")) } else { Ok(()) }
            }
            None => Ok(()),
        }
    }

    fn issue(&mut self, core: usize, mut op: DiskOp) {
        match op.action {
            DiskAction::Read | DiskAction::Write { .. } => {
                let all = op.offset_bytes | op.bytes | u64::from(op.buf_offset);
                assert!(all.is_multiple_of(self.align_bytes), "unaligned for {}: {op:?}", self.align_bytes);
                let room = op.buf.as_ref().map_or(0, |buf| buf.len() as u64);
                assert!(op.bytes != 0 && u64::from(op.buf_offset) + op.bytes <= room, "no memory: {op:?}");
            }
            DiskAction::PunchHole | DiskAction::ZeroRange => {
                assert!((op.offset_bytes | op.bytes).is_multiple_of(self.align_bytes), "unaligned: {op:?}");
            }
            DiskAction::Sync => assert!(op.bytes == 0, "{op:?}"),
        }
        let end = op.offset_bytes.checked_add(op.bytes).expect("no file is that long");
        assert!(end <= self.bytes, "past the end of {}: {op:?}", self.bytes);
        let looked = op.action == DiskAction::Read && self.chance.one_in(2);
        if looked {
            self.look(&mut op, 1);
        }
        if self.told.len() <= core {
            self.told.resize(core + 1, 0);
        }
        let failures = if op.action == DiskAction::Sync { self.told[core] } else { self.failures };
        self.in_flight.push(InFlight { core, op, order: self.order, looked, failures });
    }

    fn end(&mut self, place: usize) -> (usize, DiskDone) {
        let InFlight { core, mut op, order, looked, failures } = self.in_flight.swap_remove(place);
        self.counts.operations += 1;
        let is_lost = relies(op.action) && failures != self.failures;
        let before = self.failures;
        let result = self.perform(&mut op, order, looked, is_lost);
        if op.action == DiskAction::Sync && (is_lost || before != self.failures) {
            self.told[core] = self.failures;
        }
        (core, DiskDone { user: op.user, result, buf: op.buf })
    }

    /// `is_lost`: a sync has failed that it relied on.
    fn perform(&mut self, op: &mut DiskOp, order: u64, looked: bool, is_lost: bool) -> Result<u32, i32> {
        if self.chance.one_in(self.faults.again) && !is_lost {
            self.counts.again += 1;
            return Err(self.chance.of(&[EINTR, EAGAIN]));
        }
        let mut fails = self.chance.one_in(self.faults.error);
        // Most have little to lose, so there are more of them.
        fails |= self.faults.loses && relies(op.action) && self.losses.one_in(RELIED_ON_FAILS_ONE_IN);
        self.counts.errors += u64::from(fails);
        let is_failure = fails;
        let fails = fails || is_lost;
        let mut bytes = op.bytes;
        let units = bytes / SECTOR_BYTES as u64;
        let moves = matches!(op.action, DiskAction::Read | DiskAction::Write { .. });
        if moves && (fails || self.chance.one_in(self.faults.short)) {
            // Something was moved, or, if it fails, perhaps nothing.
            let least = u64::from(!fails);
            bytes = self.chance.between(least, units) * SECTOR_BYTES as u64;
            self.counts.short += u64::from(bytes != op.bytes && !fails);
        }
        match op.action {
            DiskAction::Read if fails => return Err(EIO),
            DiskAction::Read => {
                let whole = std::mem::replace(&mut op.bytes, bytes);
                let one_in = if looked { self.chance.of(&[1, 2, 8]) } else { 1 };
                self.look(op, one_in);
                op.bytes = whole;
            }
            DiskAction::Write { durable } => {
                let from = op.buf.as_ref().expect("checked when it was issued");
                let from = &from[op.buf_offset as usize..][..bytes as usize];
                self.put(op.offset_bytes, bytes, Some(from), durable && !fails);
            }
            DiskAction::Sync | DiskAction::PunchHole | DiskAction::ZeroRange if fails => {}
            DiskAction::Sync => self.synced(order),
            DiskAction::PunchHole | DiskAction::ZeroRange => self.put(op.offset_bytes, op.bytes, None, false),
        }
        if is_failure && self.faults.loses {
            self.sync_failed(op.action);
        }
        match (fails, moves) {
            (true, _) => Err(EIO),
            (false, true) => Ok(bytes as u32),
            (false, false) => Ok(0),
        }
    }

    /// Fills the operation's memory: one sector in so many, the others stay as they were seen before.
    fn look(&mut self, op: &mut DiskOp, one_in: u64) {
        let buf = op.buf.as_mut().expect("checked when it was issued");
        let into = &mut buf[op.buf_offset as usize..][..op.bytes as usize];
        if one_in == 1 {
            self.see(op.offset_bytes, into);
        } else {
            for (sector, into) in into.chunks_exact_mut(SECTOR_BYTES).enumerate() {
                if self.chance.one_in(one_in) {
                    self.see(op.offset_bytes + (sector * SECTOR_BYTES) as u64, into);
                }
            }
        }
        self.mix_in(op.offset_bytes, into);
    }

    /// Of writes under way a read may see any part.
    fn mix_in(&mut self, offset_bytes: u64, into: &mut [u8]) {
        let end_bytes = offset_bytes + into.len() as u64;
        for InFlight { op, .. } in &self.in_flight {
            let (first, end) =
                (op.offset_bytes.max(offset_bytes), (op.offset_bytes + op.bytes).min(end_bytes));
            let changes = !matches!(op.action, DiskAction::Read | DiskAction::Sync);
            if !changes || first >= end || self.chance.one_in(2) {
                continue;
            }
            for at in (first..end).step_by(SECTOR_BYTES) {
                if self.chance.one_in(2) {
                    continue;
                }
                let into = &mut into[(at - offset_bytes) as usize..][..SECTOR_BYTES];
                match &op.buf {
                    Some(buf) => {
                        let place = op.buf_offset as usize + (at - op.offset_bytes) as usize;
                        into.copy_from_slice(&buf[place..][..SECTOR_BYTES]);
                    }
                    None => into.fill(0),
                }
            }
        }
    }

    fn see(&self, offset_bytes: u64, mut into: &mut [u8]) {
        let mut at = offset_bytes as usize;
        while !into.is_empty() {
            let within = at % PAGE_BYTES;
            let length = (PAGE_BYTES - within).min(into.len());
            let (here, rest) = into.split_at_mut(length);
            match &self.pages[at / PAGE_BYTES] {
                Some(page) => here.copy_from_slice(&page.data[within..within + length]),
                None => here.fill(0),
            }
            (into, at) = (rest, at + length);
        }
    }

    /// A write has ended. `from` is `None` for zeroes.
    fn put(&mut self, offset_bytes: u64, bytes: u64, from: Option<&[u8]>, durable: bool) {
        self.order += 1;
        let order = self.order;
        let (mut at, end) = (offset_bytes as usize, (offset_bytes + bytes) as usize);
        while at < end {
            let within = at % PAGE_BYTES;
            let length = (PAGE_BYTES - within).min(end - at);
            let place = &mut self.pages[at / PAGE_BYTES];
            let data = from.map(|from| &from[at - offset_bytes as usize..][..length]);
            // A page that was never written is zeroes, and stays so.
            if place.is_none() && data.is_none_or(is_zero) {
                at += length;
                continue;
            }
            let page =
                place.get_or_insert_with(|| Box::new(Page { data: [0; PAGE_BYTES], old: None, unsynced: 0 }));
            if !durable {
                page.old.get_or_insert_with(|| Box::new(Old { data: page.data, order: [0; SECTORS] }));
                page.unsynced += 1;
                let sectors = ((within / SECTOR_BYTES) as u8, (length / SECTOR_BYTES) as u8);
                let page = (at / PAGE_BYTES) as u32;
                self.log.push_back(Entry { order, page, sectors, data: data.map(Box::from), write: order });
            } else if let Some(old) = &mut page.old {
                copy(&mut old.data[within..within + length], data);
                old.order[within / SECTOR_BYTES..][..length / SECTOR_BYTES].fill(order);
            }
            copy(&mut page.data[within..within + length], data);
            at += length;
        }
    }

    /// A sync that was issued at `order` has ended.
    fn synced(&mut self, order: u64) {
        while self.log.front().is_some_and(|entry| entry.order <= order) {
            let Some(entry) = self.log.pop_front() else { return };
            self.settle(&entry, |_| true);
            let page = self.pages[entry.page as usize].as_mut().expect("it was written");
            page.unsynced -= 1;
            if page.unsynced == 0 {
                page.old = None;
            }
        }
    }

    /// An operation has failed: if that was a sync, or the one behind a write, nobody can rely on the next one.
    fn sync_failed(&mut self, action: DiskAction) {
        let is_one = match action {
            DiskAction::Sync => true,
            DiskAction::Write { durable } => durable && self.losses.one_in(2),
            DiskAction::Read | DiskAction::PunchHole | DiskAction::ZeroRange => false,
        };
        if !is_one {
            return;
        }
        self.failures += 1;
        let one_in = self.losses.of(&[0, 1, 1, 2]);
        for entry in std::mem::take(&mut self.log) {
            if self.losses.one_in(one_in) {
                self.counts.lost_writes += 1;
                self.lost.push(entry.page);
            } else {
                self.log.push_back(entry);
            }
        }
    }

    /// Makes those sectors of an entry durable. How many are not.
    fn settle(&mut self, entry: &Entry, mut keeps: impl FnMut(usize) -> bool) -> u64 {
        let page = self.pages[entry.page as usize].as_mut().expect("it was written");
        let old = page.old.as_mut().expect("an entry of the log keeps it");
        let mut lost = 0;
        for index in 0..usize::from(entry.sectors.1) {
            let sector = usize::from(entry.sectors.0) + index;
            if !keeps(index) {
                lost += 1;
            } else if old.order[sector] < entry.order {
                let data = entry.data.as_ref().map(|data| &data[index * SECTOR_BYTES..][..SECTOR_BYTES]);
                copy(&mut old.data[sector * SECTOR_BYTES..][..SECTOR_BYTES], data);
                old.order[sector] = entry.order;
            }
        }
        lost
    }

    fn crash(&mut self) {
        self.power = None;
        // What is under way may have got as far as any of it.
        let mut in_flight = std::mem::take(&mut self.in_flight);
        while !in_flight.is_empty() {
            let InFlight { op, .. } = in_flight.swap_remove(self.chance.index(in_flight.len()));
            match op.action {
                DiskAction::Read | DiskAction::Sync => {}
                DiskAction::Write { .. } => {
                    let buf = op.buf.as_ref().expect("checked when it was issued");
                    let from = &buf[op.buf_offset as usize..][..op.bytes as usize];
                    self.put(op.offset_bytes, op.bytes, Some(from), false);
                }
                DiskAction::PunchHole | DiskAction::ZeroRange => {
                    self.put(op.offset_bytes, op.bytes, None, false);
                }
            }
        }
        let mood = self.chance.below(4);
        let mut log = std::mem::take(&mut self.log);
        let (mut write, mut how, mut kept, mut lost) = (0, 0, 0, 0);
        for entry in &log {
            if entry.write != write {
                self.counts.torn_writes += u64::from(kept != 0 && lost != 0);
                (write, kept, lost) = (entry.write, 0, 0);
                how = if mood < 3 { mood } else { self.chance.below(3) };
            }
            let mut chance = self.chance.branch();
            let gone = self.settle(entry, |_| how == 1 || how == 2 && chance.one_in(2));
            kept += u64::from(entry.sectors.1) - gone;
            lost += gone;
            self.counts.lost_sectors += gone;
        }
        self.counts.torn_writes += u64::from(kept != 0 && lost != 0);
        (self.failures, self.told) = (0, Vec::new());
        for page in log.drain(..).map(|entry| entry.page).chain(self.lost.drain(..)) {
            let page = self.pages[page as usize].as_mut().expect("it was written");
            page.unsynced = 0;
            if let Some(old) = page.old.take() {
                page.data = old.data;
            }
        }
    }
}

/// Whether its end is a promise about the medium.
fn relies(action: DiskAction) -> bool {
    matches!(action, DiskAction::Sync | DiskAction::Write { durable: true })
}

fn copy(into: &mut [u8], from: Option<&[u8]>) {
    match from {
        Some(from) => into.copy_from_slice(from),
        None => into.fill(0),
    }
}
