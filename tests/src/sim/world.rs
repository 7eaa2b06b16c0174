//! One seed's world: some cores, their disks and the lines between them, in one thread, one event a step. What comes
//! next is the seed's choice: a letter, a disk operation's end, a core's turn, or something new that is asked.
//!
//! Between two cores letters arrive in the order they were sent, but that answers pass requests that wait for credits, as
//! in `reactor/src/mesh.rs`; between different pairs in any order.

use crate::sim::actions::Planned;
use crate::sim::chance::Chance;
use crate::sim::control::Wish;
use crate::sim::disk::{self, Disk, Faults};
use crate::sim::lines::{Arrival, Class, Lines};
use crate::sim::oracle::{Oracle, Tolerance};
use crate::sim::subject::{Able, CreateAs, Letter, OpenAs, Side, Subject};
use crate::sim::trace::Trace;
use bdev::error::IoError;
use bdev::io::{BdevId, Done, Op};
use bdev::pool::NAMES_MAX;
use bdev::pool::control::Answered;
use bdev::pool::format::{HEADERS_AT, JOURNALS_AT};
use reactor::Core;
use reactor::buf::Pool;
use reactor::clock::Time;
use reactor::disk::FileId;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

/// The most cores a world has.
pub const CORES_MAX: usize = 4;
/// What a pool's first member has before its journals.
const FIXED_BYTES: u64 = 8 << 20;
/// Rounds without an end are no end.
const ROUNDS_MAX: u32 = 20_000;

#[derive(Debug)]
struct Seat<T> {
    side: T,
    /// It said that it has more to do.
    more: bool,
}

/// How things go for a while.
#[derive(Clone, Copy, Debug)]
struct Weather {
    letters: u64,
    disk: u64,
    turns: u64,
    acts: u64,
    /// Requests under way at once.
    open_max: usize,
    /// A core whose letters, turns and disks are left alone.
    asleep: Option<usize>,
}

/// What a seed has chosen for all of its time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Nature {
    pub(crate) faults: Faults,
    credits: u32,
    pub(crate) map_memory_max_bytes: u64,
    /// Kinds of actions that this world prefers.
    pub(crate) taste: u64,
    /// Actions that are left out.
    pub(crate) mute: u32,
    /// Blocks may move to where they are written in place, although nobody has written to them.
    folds: bool,
    pub(crate) checkpoints: bool,
    names_max: u32,
    /// Some writes are atomic.
    pub(crate) atomic: bool,
    /// Many copies are of whole stripes, and what may follow does so at once.
    pub(crate) stripes: bool,
    /// Volumes are large, and whole stripes are copied again and again, with writes to them between.
    pub(crate) twins: bool,
}

/// See the module.
pub struct World<'a, S: Subject> {
    pub(crate) subject: S,
    pub(crate) able: Able,
    pub(crate) disks: Vec<Disk>,
    seats: Vec<Seat<S::Side>>,
    lines: Lines<<S::Side as Side>::Mail>,
    pub(crate) bufs: &'a mut [Pool],
    /// What happened and what may be.
    pub oracle: Oracle,
    pub(crate) chance: Chance,
    weather: Weather,
    pub(crate) nature: Nature,
    clock: Time,
    pub(crate) trace: Trace,
    pub(crate) next_name: u64,
    answers: BTreeMap<u64, (Wish, Answered)>,
    /// Compare and writes and atomic writes of parts: how many have not come back, and those that have.
    pub(crate) parts_out: BTreeMap<u64, (usize, Vec<Done>)>,
    next_bdev: u16,
    /// What is asked next, now and then.
    pub(crate) plan: VecDeque<Planned>,
    /// Headers of checkpoints on their way to the disk: from which core, and its name for it.
    headers_out: BTreeSet<(usize, u64)>,
    /// A checkpoint counts from now on.
    pub(crate) header_written: bool,
    /// A core is asleep until the next one does, and then the power goes: what it was to do since is not done.
    pub(crate) vigil: bool,
    /// Which core falls asleep like that, and at which event.
    pub(crate) falls_asleep: Option<(usize, u64)>,
    /// Events so far.
    pub(crate) steps: u64,
    /// Where a pool's maps stand on the first disk.
    pub(crate) maps: std::ops::Range<u64>,
    /// How often disks had failed when it was opened.
    pub(crate) errors_at_open: u64,
}

impl<'a, S: Subject> World<'a, S> {
    /// The world of a seed: its pool is made, and is empty.
    ///
    /// # Panics
    /// If it can't be made.
    pub fn new(mut subject: S, bufs: &'a mut [Pool], seed: u64, mute: u32, trace: Trace) -> World<'a, S> {
        let mut chance = Chance::new(seed);
        let able = subject.able();
        let errors = chance.one_in(8) || able.fails;
        let faults = Faults {
            short: chance.of(&[0, 0, 200, 20]),
            again: chance.of(&[0, 0, 200, 20]),
            error: if errors { chance.of(&[100, 1000]) } else { 0 },
            loses: false,
        };
        let maps = able.control && chance.one_in(12);
        let mut nature = Nature {
            faults,
            credits: chance.of(&[32, 256]),
            // A core's remembered walks take 128 KiB of it.
            map_memory_max_bytes: if maps { 192 << 10 } else { 64 << 20 },
            taste: chance.word(),
            mute,
            folds: false,
            checkpoints: false,
            names_max: NAMES_MAX,
            atomic: false,
            stripes: false,
            twins: false,
        };
        let journal_bytes = chance.of(&[256 << 10, 512 << 10, 1 << 20, 4 << 20]);
        let metadata_bytes = chance.of(&[8 << 20, 16 << 20]);
        let sizes: Vec<u64> = if able.disk_bytes.is_empty() {
            let members = chance.of(&[1, 1, 2, 3]);
            let data = chance.of(&[2 << 20, 6 << 20, 16 << 20, 64 << 20]);
            let first = FIXED_BYTES + (4 << 20) + metadata_bytes + data;
            (0..members).map(|member| if member == 0 { first } else { chance.between(5, 16) << 20 }).collect()
        } else {
            able.disk_bytes.to_vec()
        };
        let disks = (0..).zip(sizes).map(|(file, bytes)| {
            let align_bytes = chance.of(&[512, 4096]);
            Disk::new(FileId(file), bytes, align_bytes, Faults::default(), chance.branch())
        });
        let disks: Vec<Disk> = disks.collect();
        let mut uuid = [0; 16];
        uuid[..8].copy_from_slice(&chance.word().to_le_bytes());
        nature.folds = able.redirects && uuid[0] & 1 == 1;
        nature.checkpoints = uuid[1].is_multiple_of(4);
        if uuid[2].is_multiple_of(8) {
            nature.names_max = 1 + u32::from(uuid[2]) / 8 % 4;
        }
        nature.atomic = uuid[3].is_multiple_of(3);
        // What a checkpoint forgets of them is looked at more often.
        nature.checkpoints |= nature.atomic && uuid[4] & 1 == 1;
        nature.stripes = nature.atomic && uuid[5] & 1 == 1;
        // A plain file's owner hears of what a failed flush has lost, and no more; a pool never says that it is there.
        nature.faults.loses = errors && able.redirects && (uuid[7] & 1 == 1 || able.fails);
        nature.twins = able.copy && uuid[6].is_multiple_of(4);
        let how = CreateAs { uuid, journal_bytes, metadata_bytes };
        subject.create(&disks, how).unwrap_or_else(|reason| panic!("can't create: {reason}"));
        let in_place = !able.redirects || nature.folds;
        let tolerance = Tolerance { errors, space: able.space, damage: false, in_place, maps };
        World {
            subject,
            able,
            disks,
            seats: Vec::new(),
            lines: Lines::new(0, [0; 2]),
            bufs,
            oracle: Oracle::new(tolerance),
            weather: Weather { letters: 1, disk: 1, turns: 1, acts: 1, open_max: 8, asleep: None },
            chance,
            nature,
            clock: Time(1_000_000_000),
            trace,
            next_name: 1,
            answers: BTreeMap::new(),
            parts_out: BTreeMap::new(),
            next_bdev: 0,
            plan: VecDeque::new(),
            headers_out: BTreeSet::new(),
            header_written: false,
            vigil: false,
            falls_asleep: None,
            steps: 0,
            maps: JOURNALS_AT + journal_bytes..JOURNALS_AT + journal_bytes + metadata_bytes,
            errors_at_open: 0,
        }
    }

    /// How many cores it has now.
    pub(crate) fn cores(&self) -> usize {
        self.seats.len()
    }

    /// Whether as many requests are under way as the weather lets.
    pub(crate) fn is_crowded(&self) -> bool {
        self.oracle.open.len() >= self.weather.open_max
    }

    pub(crate) fn side(&mut self, core: usize) -> &mut S::Side {
        &mut self.seats[core].side
    }

    /// A name that nothing has had: a tag, a ticket.
    pub(crate) fn fresh_name(&mut self) -> u64 {
        self.next_name += 1;
        self.next_name
    }

    fn open_as(&self, cores: u16) -> OpenAs {
        OpenAs {
            cores,
            first_bdev: BdevId(self.next_bdev),
            map_memory_max_bytes: self.nature.map_memory_max_bytes,
            folds: self.nature.folds,
            checkpoints: self.nature.checkpoints,
            names_max: self.nature.names_max,
        }
    }

    /// Opens what is on the disks; the power may go on the way.
    pub(crate) fn open(&mut self) {
        loop {
            let cores = 1 + self.chance.index(CORES_MAX) as u16;
            let how = self.open_as(cores);
            let dies = self.chance.one_in(5).then(|| self.chance.between(1, 60));
            let which = self.chance.index(self.disks.len());
            self.disks[which].set_power(dies);
            // A disk that can't be read for a moment is no reason to forget what stands there.
            let unreadable = self.oracle.tolerance.errors && self.chance.one_in(3);
            let before = self.errors();
            self.disks.iter().for_each(|disk| disk.set_unreadable(if unreadable { 30 } else { 0 }));
            let bufs = &mut self.bufs[..usize::from(cores)];
            let opened = self.subject.open(&self.disks, how, bufs);
            let died = self.disks[which].is_dead();
            self.disks[which].set_power(None);
            self.disks.iter().for_each(|disk| disk.set_unreadable(0));
            let failed = self.errors() != before;
            self.trace.line(|| {
                let went = opened.as_ref().map_or_else(String::as_str, |_| "opened");
                let power = if died { " (the power went)" } else { "" };
                let read = if failed { " (it could not all be read)" } else { "" };
                format!("open with {cores} cores: {went}{power}{read}")
            });
            let died = died || failed;
            if matches!(self.trace, Trace::Print) {
                // What stands there now, for people who look for causes.
                println!("  {:?}", self.subject.walk(&self.disks));
            }
            match opened {
                Ok(sides) if !died => {
                    self.seats = sides.into_iter().map(|side| Seat { side, more: true }).collect();
                    break;
                }
                Err(reason) if !died => panic!("can't open: {reason}"),
                _ => {
                    drop(opened);
                    self.oracle.stats.count("crash in open");
                    self.power_off();
                }
            }
        }
        self.begin();
    }

    /// Opens what is on the disks as it is, damaged perhaps.
    ///
    /// # Errors
    /// Why it can't be opened.
    pub(crate) fn open_as_it_is(&mut self) -> Result<(), String> {
        let cores = 1 + self.chance.index(CORES_MAX) as u16;
        let how = self.open_as(cores);
        let sides = self.subject.open(&self.disks, how, &mut self.bufs[..usize::from(cores)])?;
        self.trace.line(|| format!("open with {cores} cores what is damaged"));
        self.seats = sides.into_iter().map(|side| Seat { side, more: true }).collect();
        self.begin();
        Ok(())
    }

    /// The cores are there and know nobody yet.
    fn begin(&mut self) {
        assert!(!self.seats.is_empty() && self.seats.len() <= CORES_MAX);
        self.lines = Lines::new(self.seats.len(), [self.nature.credits, 0]);
        self.oracle.stats.count("open");
        self.errors_at_open = self.errors();
        for disk in &self.disks {
            disk.set_faults(self.nature.faults);
        }
        (0..self.cores()).for_each(|core| self.collect(core));
    }

    /// How often disks have failed.
    pub(crate) fn errors(&self) -> u64 {
        self.disks.iter().map(|disk| disk.counts().errors).sum()
    }

    /// All that the cores knew is gone, and of the disks what they like.
    pub(crate) fn power_off(&mut self) {
        self.seats.clear();
        self.lines = Lines::new(0, [0; 2]);
        self.answers.clear();
        self.parts_out.clear();
        self.headers_out.clear();
        (self.vigil, self.falls_asleep) = (false, None);
        for disk in &self.disks {
            disk.crash();
            disk.set_faults(Faults::default());
        }
        self.subject.crash(&mut self.chance);
    }

    /// Carries off what a core has to say.
    pub(crate) fn collect(&mut self, core: usize) {
        while let Some(letter) = self.seats[core].side.poll_letter() {
            if let Some(name) = S::Side::counted(&letter) {
                self.oracle.stats.count(name);
            }
            let Letter { to, reply, mail } = letter;
            let from = Core(core as u16);
            if reply {
                self.lines.reply(from, to, Class::Ordinary, mail);
            } else if self.lines.request(from, to, Class::Ordinary, mail) {
                self.oracle.stats.count("waits for a credit");
            }
        }
        while let Some(op) = self.seats[core].side.poll_disk() {
            self.trace.line(|| {
                format!(
                    "        disk {} core {core}: {:?} {:#x}+{:#x} user {:#x}",
                    op.file.0, op.action, op.offset_bytes, op.bytes, op.user
                )
            });
            if op.file == FileId(0) && (HEADERS_AT..JOURNALS_AT).contains(&op.offset_bytes) {
                self.headers_out.insert((core, op.user));
            }
            self.disks[usize::from(op.file.0)].issue(core, op);
        }
        while let Some(done) = self.seats[core].side.poll_done() {
            let (io, result) = (done.io, done.result);
            assert_eq!(io.from.index(), core, "an answer for another core: {io:?}");
            self.trace.line(|| format!("  <- {} {:?}: {result:?}", io.tag.0, io.op));
            let known = self.oracle.open.get(&io.tag.0).map(|open| (open.op, open.core));
            assert_eq!(known, Some((Some(io.op), core)), "{io:?} {result:?} was not asked");
            if self.parts_out.contains_key(&io.tag.0) {
                self.part_ended(Done { io, result });
            } else {
                self.oracle.ended(io.tag.0, result, io.buf.as_deref(), io.scratch.as_deref());
            }
        }
        while let Some(end) = self.seats[core].side.poll_copied() {
            self.trace.line(|| format!("  <- {} copy: {:?}", end.tag.0, end.result));
            let open = self.oracle.ended(end.tag.0, end.result, None, None);
            assert_eq!((open.op, open.core), (None, core), "{end:?} was not asked");
            self.oracle.stats.count(if end.result.is_ok() { "copy done" } else { "copy failed" });
        }
        while let Some((ticket, answered)) = self.seats[core].side.poll_answer() {
            self.trace.line(|| format!("  <= {ticket}: {answered:?}"));
            let wish = self.oracle.answered(ticket, &answered);
            self.answers.insert(ticket, (wish, answered));
        }
    }

    /// A part of a compare and write or an atomic write came back; after the last one it has ended.
    fn part_ended(&mut self, done: Done) {
        let (tag, result) = (done.io.tag.0, done.result);
        let Some((left, ended)) = self.parts_out.get_mut(&tag) else { return };
        assert!(ended.last().is_none_or(|before| before.io.lba + before.io.blocks == done.io.lba));
        assert!(ended.last().is_none_or(|before| before.result == result));
        ended.push(done);
        *left -= 1;
        if *left > 0 {
            return;
        }
        let Some((_, ended)) = self.parts_out.remove(&tag) else { return };
        if ended[0].io.op == Op::WriteAtomic {
            if result.is_ok() {
                self.oracle.stats.count("atomic write of parts done");
            }
            self.oracle.ended(tag, result, None, None);
            return;
        }
        let (mut expected, mut new, mut found) = (Vec::new(), Vec::new(), Vec::new());
        for Done { io, .. } in &ended {
            let (Some(buf), Some(scratch)) = (&io.buf, &io.scratch) else { panic!("{io:?} lost a buffer") };
            // Behind a difference nobody has to look.
            if !matches!(result, Err(IoError::Miscompare { offset_bytes }) if offset_bytes < found.len() as u32)
            {
                found.extend_from_slice(scratch);
            }
            expected.extend_from_slice(&buf[..scratch.len()]);
            new.extend_from_slice(&buf[scratch.len()..]);
        }
        if result.is_ok() {
            self.oracle.stats.count("compare and write of parts done");
        }
        expected.extend_from_slice(&new);
        self.oracle.ended(tag, result, Some(&expected), Some(&found));
    }

    /// Puts a wish before core 0: its ticket.
    pub(crate) fn wish(&mut self, wish: Wish) -> u64 {
        let ticket = self.fresh_name();
        self.trace.line(|| format!("  => {ticket}: {wish:?}"));
        let request = self.oracle.wish(ticket, wish);
        self.seats[0].side.ask(ticket, request);
        self.collect(0);
        ticket
    }

    /// Puts a wish and waits for the answer.
    pub(crate) fn demand(&mut self, wish: Wish) -> Answered {
        let ticket = self.wish(wish);
        for _ in 0..ROUNDS_MAX {
            if let Some((_, answered)) = self.answers.remove(&ticket) {
                return answered;
            }
            self.round();
        }
        panic!("no answer to ticket {ticket}: {:?}", self.oracle.pending.get(&ticket));
    }

    /// One thing happens of what is under way.
    pub(crate) fn event(&mut self) {
        match self.chance.weighted(&[4, 4, 2]) {
            0 => self.deliver(),
            1 => self.end_disk(),
            _ => self.turn(),
        }
    }

    /// One thing happens.
    pub(crate) fn step(&mut self) {
        self.steps += 1;
        if self.steps.is_multiple_of(128) {
            self.answers.clear();
        }
        let goes_on = self.vigil && !self.steps.is_multiple_of(1024);
        if self.steps.is_multiple_of(128) && !goes_on {
            self.vigil = false;
            self.weather = Weather {
                letters: self.chance.of(&[1, 4, 16]),
                disk: self.chance.of(&[1, 4, 16]),
                turns: self.chance.of(&[1, 2, 4]),
                acts: self.chance.of(&[0, 1, 2, 4]),
                open_max: self.chance.of(&[1, 4, 16, 40]),
                asleep: self.chance.one_in(4).then(|| self.chance.index(self.cores())),
            };
            for seat in &self.seats {
                seat.side.check().unwrap_or_else(|what| panic!("{what}"));
            }
        }
        if let Some((core, at)) = self.falls_asleep
            && at <= self.steps
        {
            (self.vigil, self.falls_asleep) = (true, None);
            self.weather.asleep = Some(core);
        }
        let Weather { letters, disk, turns, acts, .. } = self.weather;
        match self.chance.weighted(&[letters, disk, turns, acts]) {
            0 => self.deliver(),
            1 => self.end_disk(),
            2 => self.turn(),
            _ => self.act(),
        }
    }

    fn is_asleep(&self, core: usize) -> bool {
        self.weather.asleep == Some(core)
    }

    /// A letter arrives.
    fn deliver(&mut self) {
        let cores = self.cores();
        let is_full = |line: &usize| self.lines.ready(*line) > 0 && !self.is_asleep(line % cores);
        let full: Vec<usize> = (0..self.lines.ways()).filter(is_full).collect();
        if !full.is_empty() {
            let line = full[self.chance.index(full.len())];
            self.deliver_from(line);
        }
    }

    fn deliver_from(&mut self, line: usize) {
        let Some(Arrival { from, to, reply, mail, .. }) = self.lines.take(line) else { return };
        self.trace.line(|| format!("    {from} -> {to} {mail:?}"));
        let letter = Letter { to: Core(to as u16), reply, mail };
        self.seats[to].side.receive(Core(from as u16), letter);
        self.collect(to);
    }

    /// A disk operation ends.
    fn end_disk(&mut self) {
        let busy: Vec<usize> =
            (0..self.disks.len()).filter(|&disk| self.disks[disk].in_flight() != 0).collect();
        if !busy.is_empty() {
            let disk = busy[self.chance.index(busy.len())];
            let place = self.chance.index(self.disks[disk].in_flight());
            self.end_at(disk, place);
        }
    }

    fn end_at(&mut self, disk: usize, place: usize) {
        let (core, done) = self.disks[disk].end(place);
        self.header_written |= self.headers_out.remove(&(core, done.user)) && done.result.is_ok();
        self.trace
            .line(|| format!("        disk {disk} core {core}: user {:#x}: {:?}", done.user, done.result));
        if disk::is_failure(done.result) {
            self.oracle.disk_failed = self.oracle.now;
        }
        self.seats[core].side.complete(done);
        self.collect(core);
    }

    fn turn(&mut self) {
        let core = self.chance.index(self.cores());
        if self.is_asleep(core) || !self.seats[core].more && !self.chance.one_in(8) {
            return;
        }
        // Now and then a core is away for long: longer than anything is held.
        let passes_us = if self.chance.one_in(500) { 150_000 } else { self.chance.of(&[1, 10, 100]) };
        self.turn_of(core, passes_us);
    }

    fn turn_of(&mut self, core: usize, passes_us: u64) {
        self.clock = self.clock + Duration::from_micros(passes_us);
        self.seats[core].more = self.seats[core].side.turn(self.clock);
        self.collect(core);
    }

    /// Everything that is to happen happens once. Whether letters came or disks ended something: what goes on one step a round
    /// has nothing under way at its end.
    pub(crate) fn round(&mut self) -> bool {
        let mut any = false;
        for core in 0..self.cores() {
            self.turn_of(core, 200);
        }
        for line in 0..self.lines.ways() {
            for _ in 0..self.lines.ready(line) {
                any = true;
                self.deliver_from(line);
            }
        }
        for disk in 0..self.disks.len() {
            for _ in 0..self.disks[disk].in_flight() {
                any = true;
                let place = self.chance.index(self.disks[disk].in_flight());
                self.end_at(disk, place);
            }
        }
        any
    }

    /// All that the cores know, for people who look for causes.
    pub(crate) fn dump(&self) {
        if matches!(self.trace, Trace::Print) {
            self.seats.iter().for_each(|seat| println!("{:#?}", seat.side));
        }
    }

    fn is_idle(&self) -> bool {
        self.oracle.open.is_empty()
            && self.oracle.pending.is_empty()
            && self.lines.is_idle()
            && self.disks.iter().all(|disk| disk.in_flight() == 0)
            && !self.seats.iter().any(|seat| seat.more)
    }

    /// Time passes, and nothing else.
    pub(crate) fn pass(&mut self, time: Duration) {
        self.clock = self.clock + time;
    }

    /// Until nothing is under way any more.
    pub(crate) fn settle(&mut self) {
        let mut idle = 0;
        for _ in 0..ROUNDS_MAX {
            let moved = self.round();
            idle = if self.is_idle() && !moved { idle + 1 } else { 0 };
            if idle == 3 {
                if let Some((core, asker, letters)) = self.lines.owed() {
                    self.dump();
                    panic!("core {core} has never answered {letters} letters of {asker}");
                }
                for seat in &self.seats {
                    seat.side.check().unwrap_or_else(|what| panic!("{what}"));
                }
                return;
            }
        }
        self.dump();
        panic!(
            "no end: {:?} {:?} under way, disks have {:?}, cores want turns: {:?}",
            self.oracle.open,
            self.oracle.pending,
            self.disks.iter().map(Disk::in_flight).collect::<Vec<_>>(),
            self.seats.iter().map(|seat| seat.more).collect::<Vec<_>>(),
        );
    }
}
