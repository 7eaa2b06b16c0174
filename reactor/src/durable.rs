//! Durable writes to a device that has a volatile cache and no write past it (FUA), gathered behind one sync of their file; and what a
//! failed sync means for all that was written to its file.
//!
//! Left to the kernel (RWF_DSYNC) each would have the device's cache flushed for itself, by a worker on the CPU that the device interrupts: there it
//! waits for as long as the scheduler lets somebody else run, for milliseconds where that one never sleeps. So they are written plainly; what has
//! been written is held here until a sync that began behind it is over, and comes back then. Sans-IO: the ring tells what begins, what has been
//! written, when a turn ends and when a sync has ended.
//!
//! A sync that fails may have lost all that was not durable: the device has dropped its cache, or the kernel takes for written what is not,
//! says so once for all rings, since they have one open file between them, and then the next sync is good. So each file's failures are
//! counted, for all rings together. A gathered write that began before one ends with its error, whatever came after; and so does,
//! once in each ring, the next sync that a service asks for, which may be for plain writes of any age.
//!
//! Invariant: each gathered write is one of `writing`, or stands in `held` or in `syncing`; what stands in `syncing` had been written
//! before the sync that is out began.

use crate::clock::Time;
use crate::disk::{DiskDone, FileId};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Turns that a written one waits while more of those at the kernel come back. With some microseconds a turn it is less than a flush takes.
const HELD_TURNS_MAX: u32 = 16;

/// A sync that is out for longer is told of, and again after as long.
pub(crate) const SYNC_LATE: Duration = Duration::from_secs(10);

/// How often syncs of a file had failed at some moment, and with what the last time: no failure lies between two that are equal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen(u64);

impl Seen {
    fn errno(self) -> i32 {
        (self.0 >> 32) as i32
    }
}

/// By file: the failures of its syncs. All rings of a mesh have one.
#[derive(Debug)]
pub(crate) struct Failures(Box<[AtomicU64]>);

impl Failures {
    /// No failures yet, for so many files, or as many as have a number.
    pub(crate) fn for_files(files_max: u32) -> Failures {
        let files = files_max.min(u32::from(u16::MAX) + 1);
        Failures((0..files).map(|_| AtomicU64::new(0)).collect())
    }

    fn now(&self, file: FileId) -> Seen {
        Seen(self.0[usize::from(file.0)].load(Ordering::Acquire))
    }

    fn add(&self, file: FileId, errno: i32) {
        let more = |seen: u64| Some((errno as u64) << 32 | u64::from((seen as u32).wrapping_add(1)));
        // It always has a successor, so this is no error.
        let _ = self.0[usize::from(file.0)].fetch_update(Ordering::AcqRel, Ordering::Acquire, more);
    }
}

/// A gathered write that has been written, and what had failed when it began.
#[derive(Debug)]
struct Held {
    seen: Seen,
    done: DiskDone,
}

#[derive(Debug, Default)]
struct File {
    /// Its durable writes are.
    gathered: bool,
    /// At the kernel.
    writing: usize,
    held: Vec<Held>,
    syncing: Vec<Held>,
    is_syncing: bool,
    /// When somebody first looked whether the sync that is out is late, or told of it last.
    looked_at: Option<Time>,
    /// Something came into `held` since the last turn's end.
    news: bool,
    /// Turns since the first of `held` came.
    turns: u32,
    /// The failures that this ring's services have heard of by syncs they asked for.
    reported: Seen,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Durables {
    failures: Arc<Failures>,
    files: Vec<File>,
    /// Files with something in `held`.
    holding: usize,
    syncing: usize,
}

impl Durables {
    /// No files yet; of those that come, `failures` has the place.
    pub(crate) fn new(failures: Arc<Failures>) -> Durables {
        Durables { failures, files: Vec::new(), holding: 0, syncing: 0 }
    }

    /// The next file, and whether its durable writes are gathered.
    pub(crate) fn add_file(&mut self, gathered: bool) {
        assert!(
            self.files.len() < self.failures.0.len(),
            "whoever made them knew how many files there may be"
        );
        self.files.push(File { gathered, ..File::default() });
    }

    fn file(&mut self, file: FileId) -> Option<&mut File> {
        self.files.get_mut(usize::from(file.0))
    }

    /// A durable write is about to begin. `None`: it is not gathered. Else it is to be written plainly, and told of in
    /// [`Durables::written`] with this.
    pub(crate) fn begin(&mut self, id: FileId) -> Option<Seen> {
        let file = self.file(id).filter(|file| file.gathered)?;
        file.writing += 1;
        Some(self.failures.now(id))
    }

    /// The kernel has ended a gathered write. `None`: it is held.
    pub(crate) fn written(&mut self, id: FileId, seen: Seen, mut done: DiskDone) -> Option<DiskDone> {
        let now = self.failures.now(id);
        let Some(file) = self.file(id) else { return Some(done) };
        file.writing -= 1;
        if done.result.is_ok() && seen != now {
            // It may have been in the cache by then.
            done.result = Err(now.errno());
        }
        if done.result.is_err() {
            return Some(done);
        }
        let is_first = file.held.is_empty();
        file.news = true;
        file.held.push(Held { seen, done });
        self.holding += usize::from(is_first);
        None
    }

    /// How many of a file are held.
    #[cfg(test)]
    pub(crate) fn written_and_held(&self, id: FileId) -> usize {
        self.files[usize::from(id.0)].held.len()
    }

    /// Whether something may have become due.
    pub(crate) fn any_held(&self) -> bool {
        self.holding > 0
    }

    /// Whether a sync of ours is out.
    pub(crate) fn any_syncing(&self) -> bool {
        self.syncing > 0
    }

    /// Asked once a turn for each file, or in a `hurry` before a sleep: whether a sync of it is to begin now. It counts as begun.
    pub(crate) fn begins_sync(&mut self, id: FileId, hurry: bool) -> bool {
        let Some(file) = self.file(id) else { return false };
        if file.held.is_empty() || file.is_syncing {
            return false;
        }
        file.turns += 1;
        // What is written at the same time comes back at the same time: one sync for all of it.
        let more_come = std::mem::take(&mut file.news) && file.writing > 0;
        if more_come && !hurry && file.turns < HELD_TURNS_MAX {
            return false;
        }
        file.turns = 0;
        file.is_syncing = true;
        file.looked_at = None;
        std::mem::swap(&mut file.held, &mut file.syncing);
        self.holding -= 1;
        self.syncing += 1;
        true
    }

    /// A sync has ended: so have the writes that it was for, with its error if it has one, and with that of any other sync of the
    /// file which failed since they began. After a failure those end as well that no sync has begun for yet.
    pub(crate) fn synced(&mut self, id: FileId, result: Result<u32, i32>, ended: &mut VecDeque<DiskDone>) {
        self.note(id, result);
        let now = self.failures.now(id);
        let Some(file) = self.file(id) else { return };
        file.is_syncing = false;
        ended.extend(file.syncing.drain(..).map(|Held { seen, mut done }| {
            if seen != now {
                done.result = Err(now.errno());
            } else if let Err(errno) = result {
                done.result = Err(errno);
            }
            done
        }));
        self.syncing -= 1;
        self.end_older(id, now, ended);
    }

    /// A sync that a service asked for is about to begin; its end is told of in [`Durables::sync_ended`] with this.
    pub(crate) fn sync_begins(&self, id: FileId) -> Seen {
        self.files.get(usize::from(id.0)).map_or(Seen::default(), |file| file.reported)
    }

    /// It has ended, at the kernel: how it ends for who asked. A failure of any sync of the file is told to the first that ends behind
    /// it, and to those that began before that one had told it.
    pub(crate) fn sync_ended(
        &mut self,
        id: FileId,
        seen: Seen,
        result: Result<u32, i32>,
        ended: &mut VecDeque<DiskDone>,
    ) -> Result<u32, i32> {
        if self.file(id).is_none() {
            return result;
        }
        self.note(id, result);
        let now = self.failures.now(id);
        self.end_older(id, now, ended);
        match self.file(id) {
            Some(file) if seen != now => {
                file.reported = now;
                Err(now.errno())
            }
            _ => result,
        }
    }

    /// Counts a failure. One that only asks to be tried again has dropped nothing.
    fn note(&self, id: FileId, result: Result<u32, i32>) {
        if let Err(errno) = result
            && !matches!(errno, libc::EINTR | libc::EAGAIN)
        {
            self.failures.add(id, errno);
        }
    }

    /// Ends what is held and began before the last failure: no sync can make it good.
    fn end_older(&mut self, id: FileId, now: Seen, ended: &mut VecDeque<DiskDone>) {
        let Some(file) = self.file(id) else { return };
        if file.held.iter().all(|held| held.seen == now) {
            return;
        }
        let older = file.held.extract_if(.., |held| held.seen != now);
        ended.extend(older.map(|held| DiskDone { result: Err(now.errno()), ..held.done }));
        if file.held.is_empty() {
            (file.news, file.turns) = (false, 0);
            self.holding -= 1;
        }
    }

    /// Asked now and then: a file whose sync is out for [`SYNC_LATE`], and how many writes wait for it; not again before as much
    /// time has passed.
    pub(crate) fn late(&mut self, now: Time) -> Option<(FileId, usize)> {
        if self.syncing == 0 {
            return None;
        }
        (0u16..).zip(&mut self.files).filter(|(_, file)| file.is_syncing).find_map(|(id, file)| {
            let since = *file.looked_at.get_or_insert(now);
            (now.since(since) >= SYNC_LATE).then(|| {
                file.looked_at = Some(now);
                (FileId(id), file.syncing.len() + file.held.len())
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FILE: FileId = FileId(1);

    fn durables() -> Durables {
        ring(&Arc::new(Failures::for_files(2)))
    }

    /// One ring's, with a file whose writes are not gathered and one whose are.
    fn ring(failures: &Arc<Failures>) -> Durables {
        let mut durables = Durables::new(Arc::clone(failures));
        durables.add_file(false);
        durables.add_file(true);
        durables
    }

    fn done(user: u64, result: Result<u32, i32>) -> DiskDone {
        DiskDone { user, result, buf: None }
    }

    fn begin(durables: &mut Durables) -> Seen {
        durables.begin(FILE).expect("its writes are gathered")
    }

    /// Who has ended, and how.
    fn ends(ended: &mut VecDeque<DiskDone>) -> Vec<(u64, Result<u32, i32>)> {
        ended.drain(..).map(|done| (done.user, done.result)).collect()
    }

    /// Goal: what is written at the same time has one sync; it begins when no more come, and at last after some turns; an error of
    /// it is everybody's. Method: five writes that come back by twos, then a file that is always busy.
    #[test]
    fn one_sync_for_many() {
        let mut durables = durables();
        assert!(durables.begin(FileId(0)).is_none(), "it needs none");
        assert!(durables.begin(FileId(2)).is_none(), "there is none");
        let mut ended = VecDeque::new();
        let seen = (0..5).map(|_| begin(&mut durables)).last().unwrap();
        for user in 0..4 {
            assert!(durables.written(FILE, seen, done(user, Ok(user as u32))).is_none());
            assert!(user % 2 == 0 || !durables.begins_sync(FILE, false), "more came this turn");
        }
        assert!(durables.any_held() && durables.begins_sync(FILE, false), "none came");
        assert!(!durables.any_held() && durables.any_syncing());
        assert!(durables.written(FILE, seen, done(4, Ok(4))).is_none());
        assert!(!durables.begins_sync(FILE, true), "one at a time");
        durables.synced(FILE, Ok(0), &mut ended);
        assert_eq!(ends(&mut ended), [(0, Ok(0)), (1, Ok(1)), (2, Ok(2)), (3, Ok(3))]);
        assert!(durables.begins_sync(FILE, false), "no more are out");
        durables.synced(FILE, Err(5), &mut ended);
        assert_eq!(ends(&mut ended), [(4, Err(5))]);
        let seen = begin(&mut durables);
        assert_eq!(durables.written(FILE, seen, done(5, Err(28))).map(|done| done.result), Some(Err(28)));
        assert!(!durables.any_held() && !durables.any_syncing());
        (0..100).for_each(|_| assert_eq!(begin(&mut durables), seen));
        let mut turns = 0;
        loop {
            assert!(durables.written(FILE, seen, done(0, Ok(1))).is_none());
            turns += 1;
            if durables.begins_sync(FILE, false) {
                break;
            }
        }
        assert_eq!(turns, HELD_TURNS_MAX);
    }

    /// Goal: before a sleep a sync begins although writes are at the kernel and one came this turn: nobody turns until they are back.
    #[test]
    fn a_sleep_waits_for_no_more() {
        let mut durables = durables();
        let seen = begin(&mut durables);
        begin(&mut durables);
        assert!(durables.written(FILE, seen, done(0, Ok(1))).is_none());
        assert!(!durables.begins_sync(FILE, false), "another is on its way");
        assert!(durables.written(FILE, seen, done(1, Ok(1))).is_none());
        begin(&mut durables);
        assert!(durables.begins_sync(FILE, true));
    }

    /// Goal: a failed sync is the end of all that began before it, as it may have lost all of that; what begins later is not touched.
    /// Method: A waits for the sync, B is held, C is at the kernel; D begins behind the failure; all later syncs are good.
    #[test]
    fn a_failure_is_everybodys_that_began() {
        let (mut durables, mut ended) = (durables(), VecDeque::new());
        let seen = begin(&mut durables);
        assert!(durables.written(FILE, seen, done(0, Ok(1))).is_none());
        assert!(durables.begins_sync(FILE, false));
        let (b, c) = (begin(&mut durables), begin(&mut durables));
        assert!(durables.written(FILE, b, done(1, Ok(1))).is_none());
        durables.synced(FILE, Err(5), &mut ended);
        assert_eq!(ends(&mut ended), [(0, Err(5)), (1, Err(5))], "the one held at once");
        assert!(!durables.any_held() && !durables.any_syncing() && !durables.begins_sync(FILE, true));
        let d = begin(&mut durables);
        assert!(durables.written(FILE, d, done(3, Ok(1))).is_none());
        assert_eq!(durables.written(FILE, c, done(2, Ok(1))).map(|done| done.result), Some(Err(5)));
        assert!(durables.begins_sync(FILE, true));
        durables.synced(FILE, Ok(0), &mut ended);
        assert_eq!(ends(&mut ended), [(3, Ok(1))]);
        assert!(!durables.any_held() && !durables.any_syncing());
    }

    /// Goal: a service that asks for a sync hears of what failed before, once, also if another ring's sync did; what only asks to be tried
    /// again says nothing about others. Method: two rings of one file; failures of gathered syncs, and of those asked for.
    #[test]
    fn failures_are_told_once_a_ring() {
        let failures = Arc::new(Failures::for_files(2));
        let (mut near, mut far, mut ended) = (ring(&failures), ring(&failures), VecDeque::new());
        let ask = |durables: &mut Durables, result, ended: &mut _| {
            let seen = durables.sync_begins(FILE);
            durables.sync_ended(FILE, seen, result, ended)
        };
        assert_eq!(ask(&mut near, Ok(0), &mut ended), Ok(0));
        let seen = begin(&mut near);
        assert!(near.written(FILE, seen, done(0, Ok(1))).is_none() && near.begins_sync(FILE, false));
        let held = begin(&mut far);
        assert!(far.written(FILE, held, done(1, Ok(1))).is_none());
        let (first, second) = (near.sync_begins(FILE), near.sync_begins(FILE));
        near.synced(FILE, Err(5), &mut ended);
        assert_eq!(ends(&mut ended), [(0, Err(5))]);
        assert_eq!(near.sync_ended(FILE, first, Ok(0), &mut ended), Err(5));
        assert_eq!(near.sync_ended(FILE, second, Err(libc::EINTR), &mut ended), Err(5), "it had begun");
        assert_eq!(ask(&mut near, Ok(0), &mut ended), Ok(0), "once");
        assert!(ended.is_empty());
        assert_eq!(ask(&mut far, Ok(0), &mut ended), Err(5));
        assert_eq!(ends(&mut ended), [(1, Err(5))], "no sync makes it good");
        assert_eq!((ask(&mut far, Ok(0), &mut ended), far.any_held()), (Ok(0), false));

        // One that is asked for tells those of gathered writes, there and here.
        let seen = begin(&mut near);
        assert!(near.written(FILE, seen, done(2, Ok(1))).is_none() && near.begins_sync(FILE, false));
        assert_eq!(ask(&mut far, Err(libc::EAGAIN), &mut ended), Err(libc::EAGAIN));
        assert_eq!(ask(&mut far, Err(6), &mut ended), Err(6));
        near.synced(FILE, Ok(0), &mut ended);
        assert_eq!(ends(&mut ended), [(2, Err(6))]);
        assert_eq!(near.sync_begins(FileId(0)), Seen::default(), "another file");
        let seen = near.sync_begins(FileId(7));
        assert_eq!(near.sync_ended(FileId(7), seen, Err(9), &mut ended), Err(9), "there is none");
    }

    /// Goal: a sync that doesn't come back is told of, seldom, and one that did is not.
    #[test]
    fn a_late_sync_is_told_of() {
        let mut durables = durables();
        let at = |seconds| Time::ZERO + Duration::from_secs(seconds);
        for base in [0, 100] {
            let seen = begin(&mut durables);
            assert!(
                durables.written(FILE, seen, done(0, Ok(1))).is_none() && durables.begins_sync(FILE, false)
            );
            let seen = begin(&mut durables);
            assert!(durables.written(FILE, seen, done(1, Ok(1))).is_none());
            let late: Vec<_> =
                (0..25).filter(|second| durables.late(at(base + second)) == Some((FILE, 2))).collect();
            assert_eq!(late, [10, 20]);
            for _ in 0..2 {
                durables.synced(FILE, Ok(0), &mut VecDeque::new());
                durables.begins_sync(FILE, true);
            }
        }
        assert_eq!(durables.late(at(1000)), None);
    }

    /// What a sync that was asked for has to know in the model: the failures of its file told in its ring when it began.
    struct Asked {
        seen: Seen,
        told: u64,
    }

    /// One ring's part of one file in the model. Times are steps.
    #[derive(Default)]
    struct Part {
        /// At the kernel: who, what it was given, and since when.
        writing: Vec<(u64, Seen, u64)>,
        /// Written and not answered: by who, when it began and when it was written.
        written: std::collections::HashMap<u64, (u64, u64)>,
        /// When the sync that is out began.
        began: Option<u64>,
        asked: Vec<Asked>,
        /// The last failure that a service here has heard of.
        told: u64,
        answers: u64,
        begun: u64,
    }

    proptest! {
        /// Goal: no write is good unless a sync that began when it had been written was, and no sync of its file failed from its beginning to
        /// its answer; and none fails without a reason. No sync that was asked for is good while there is a failure that nobody here
        /// has heard of. Each write ends once and nothing is left. Method: two files of two rings, any order of beginnings, ends, turns
        /// and syncs, with any results; the model has the times.
        #[test]
        fn nothing_is_good_that_may_be_lost(steps in prop::collection::vec((0..6u8, any::<u8>(), any::<u8>()), 1..600)) {
            const EIO: i32 = 5;
            let results = [Ok(1), Ok(1), Ok(1), Err(EIO), Err(libc::EINTR)];
            let failures = Arc::new(Failures::for_files(2));
            let mut rings: [Durables; 2] = std::array::from_fn(|_| {
                let mut durables = Durables::new(Arc::clone(&failures));
                (0..2).for_each(|_| durables.add_file(true));
                durables
            });
            let mut parts: [[Part; 2]; 2] = Default::default();
            // The last failure of each file.
            let mut failed = [0u64; 2];
            let mut ended = VecDeque::new();
            let rest = (0..6000u32).map(|n| ((n / 4 % 5 + 1) as u8, n as u8 % 4, n as u8));
            for (time, (step, which, luck)) in (1u64..).zip(steps.into_iter().chain(rest)) {
                let (core, id) = (usize::from(which & 1), usize::from(which >> 1 & 1));
                let (file, durables, part) = (FileId(id as u16), &mut rings[core], &mut parts[core][id]);
                let result = results[usize::from(luck) % results.len()];
                // What an answer may owe to the sync that ends in this step: when it began, and how it ended.
                let mut sync = None;
                match step {
                    0 => {
                        part.writing.push((part.begun, durables.begin(file).expect("gathered"), time));
                        part.begun += 1;
                    }
                    1 if !part.writing.is_empty() => {
                        let (user, seen, began) = part.writing.swap_remove(usize::from(luck / 8) % part.writing.len());
                        if let Some(done) = durables.written(file, seen, done(user, result)) {
                            let reason = result.err().or((failed[id] > began).then_some(EIO));
                            prop_assert!(reason.is_some());
                            prop_assert_eq!(done.result.err(), reason);
                            part.answers += 1;
                        } else {
                            prop_assert!(result.is_ok() && failed[id] < began);
                            prop_assert!(part.written.insert(user, (began, time)).is_none());
                        }
                    }
                    2 if durables.begins_sync(file, luck % 5 == 0) => {
                        prop_assert!(part.began.replace(time).is_none());
                    }
                    3 if let Some(began) = part.began.take() => {
                        if result == Err(EIO) {
                            failed[id] = time;
                        }
                        sync = Some((began, result));
                        durables.synced(file, result, &mut ended);
                    }
                    4 => part.asked.push(Asked { seen: durables.sync_begins(file), told: part.told }),
                    5 if !part.asked.is_empty() => {
                        let Asked { seen, told } = part.asked.swap_remove(usize::from(luck / 8) % part.asked.len());
                        if result == Err(EIO) {
                            failed[id] = time;
                        }
                        let answer = durables.sync_ended(file, seen, result, &mut ended);
                        if failed[id] > told {
                            part.told = time;
                            prop_assert_eq!(answer, Err(EIO));
                        } else {
                            prop_assert_eq!(answer, result);
                        }
                    }
                    _ => {}
                }
                for done in ended.drain(..) {
                    let Some((began, written)) = part.written.remove(&done.user) else {
                        return Err(TestCaseError::fail("it had not been written, or ended twice"));
                    };
                    let its_sync = sync.filter(|(sync_began, _)| *sync_began > written).map(|(_, result)| result);
                    let was_lost = failed[id] > began;
                    match done.result {
                        Ok(_) => prop_assert!(!was_lost && matches!(its_sync, Some(Ok(_)))),
                        Err(EIO) => prop_assert!(was_lost),
                        other => prop_assert!(!was_lost && Some(other) == its_sync),
                    }
                    part.answers += 1;
                }
            }
            for part in parts.iter().flatten() {
                prop_assert_eq!((part.answers, part.written.len()), (part.begun, 0));
            }
            prop_assert!(rings.iter().all(|ring| !ring.any_held() && !ring.any_syncing()));
        }
    }
}
