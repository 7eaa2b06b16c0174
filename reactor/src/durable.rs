//! Durable writes to a device that has a volatile cache and no write past it (FUA), gathered behind one sync of their file.
//!
//! Left to the kernel (RWF_DSYNC) each would have the device's cache flushed for itself, by a worker on the CPU that the device interrupts: there it
//! waits for as long as the scheduler lets somebody else run, for milliseconds where that one never sleeps. So they are written plainly; what has
//! been written is held here until a sync that began behind it is over, and comes back then. Sans-IO: the ring tells what begins, what has been
//! written, when a turn ends and when a sync has ended.
//!
//! Invariant: each gathered write is one of `writing`, or stands in `held` or in `syncing`; what stands in `syncing` had been written
//! before the sync that is out began.

use crate::disk::{DiskDone, FileId};
use std::collections::VecDeque;

/// Turns that a written one waits while more of those at the kernel come back. With some microseconds a turn it is less than a flush takes.
const HELD_TURNS_MAX: u32 = 16;

#[derive(Debug, Default)]
struct File {
    /// At the kernel.
    writing: usize,
    held: Vec<DiskDone>,
    syncing: Vec<DiskDone>,
    is_syncing: bool,
    /// Something came into `held` since the last turn's end.
    news: bool,
    /// Turns since the first of `held` came.
    turns: u32,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Durables {
    /// By file: those whose writes are gathered.
    files: Vec<Option<File>>,
    /// Files with something in `held`.
    holding: usize,
    syncing: usize,
}

impl Durables {
    /// The next file, and whether its durable writes are gathered.
    pub(crate) fn add_file(&mut self, gathered: bool) {
        self.files.push(gathered.then(File::default));
    }

    fn file(&mut self, file: FileId) -> Option<&mut File> {
        self.files.get_mut(usize::from(file.0))?.as_mut()
    }

    /// A durable write is about to begin. Whether it is gathered: written plainly, and told of in [`Durables::written`].
    pub(crate) fn begin(&mut self, id: FileId) -> bool {
        let Some(file) = self.file(id) else { return false };
        file.writing += 1;
        true
    }

    /// The kernel has ended a gathered write. `None`: it is held.
    pub(crate) fn written(&mut self, id: FileId, done: DiskDone) -> Option<DiskDone> {
        let Some(file) = self.file(id) else { return Some(done) };
        file.writing -= 1;
        if done.result.is_err() {
            return Some(done);
        }
        let is_first = file.held.is_empty();
        file.news = true;
        file.held.push(done);
        self.holding += usize::from(is_first);
        None
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
        std::mem::swap(&mut file.held, &mut file.syncing);
        self.holding -= 1;
        self.syncing += 1;
        true
    }

    /// A sync has ended: so have the writes that it was for, with its error if it has one.
    pub(crate) fn synced(&mut self, id: FileId, result: Result<u32, i32>, ended: &mut VecDeque<DiskDone>) {
        let Some(file) = self.file(id) else { return };
        file.is_syncing = false;
        ended.extend(file.syncing.drain(..).map(|mut done| {
            if let Err(errno) = result {
                done.result = Err(errno);
            }
            done
        }));
        self.syncing -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FILE: FileId = FileId(1);

    fn durables() -> Durables {
        let mut durables = Durables::default();
        durables.add_file(false);
        durables.add_file(true);
        durables
    }

    fn done(user: u64, result: Result<u32, i32>) -> DiskDone {
        DiskDone { user, result, buf: None }
    }

    /// Goal: what is written at the same time has one sync; it begins when no more come, and at last after some turns; an error of
    /// it is everybody's. Method: five writes that come back by twos, then a file that is always busy.
    #[test]
    fn one_sync_for_many() {
        let mut durables = durables();
        assert!(!durables.begin(FileId(0)), "it needs none");
        let mut ended = VecDeque::new();
        assert!((0..5).all(|_| durables.begin(FILE)));
        for user in 0..4 {
            assert!(durables.written(FILE, done(user, Ok(user as u32))).is_none());
            assert!(user % 2 == 0 || !durables.begins_sync(FILE, false), "more came this turn");
        }
        assert!(durables.any_held() && durables.begins_sync(FILE, false), "none came");
        assert!(!durables.any_held() && durables.any_syncing());
        assert!(durables.written(FILE, done(4, Ok(4))).is_none());
        assert!(!durables.begins_sync(FILE, true), "one at a time");
        durables.synced(FILE, Ok(0), &mut ended);
        let ends: Vec<_> = ended.drain(..).map(|done| (done.user, done.result)).collect();
        assert_eq!(ends, [(0, Ok(0)), (1, Ok(1)), (2, Ok(2)), (3, Ok(3))]);
        assert!(durables.begins_sync(FILE, false), "no more are out");
        durables.synced(FILE, Err(5), &mut ended);
        assert_eq!(ended.pop_front().map(|done| (done.user, done.result)), Some((4, Err(5))));
        assert!(durables.begin(FILE));
        assert_eq!(durables.written(FILE, done(5, Err(28))).map(|done| done.result), Some(Err(28)));
        assert!(!durables.any_held() && !durables.any_syncing());
        assert!((0..100).all(|_| durables.begin(FILE)));
        let mut turns = 0;
        loop {
            assert!(durables.written(FILE, done(0, Ok(1))).is_none());
            turns += 1;
            if durables.begins_sync(FILE, false) {
                break;
            }
        }
        assert_eq!(turns, HELD_TURNS_MAX);
    }

    proptest! {
        /// Goal: each write ends once, and only after a sync that began when it had been written, and nothing is left.
        /// Method: any order of beginnings, ends, turns and syncs.
        #[test]
        fn nothing_ends_too_soon(steps in prop::collection::vec((0..4u8, any::<u8>()), 1..400)) {
            let mut durables = durables();
            let (mut out, mut next, mut ended) = (Vec::new(), 0u64, VecDeque::new());
            // When it was written, by write; when the sync that is out began; turns so far.
            let (mut written, mut began, mut time) = (std::collections::HashMap::new(), None, 0u64);
            let mut ends = 0;
            for (step, which) in steps.into_iter().chain((0..3000).map(|n| (n as u8 % 3 + 1, n as u8))) {
                time += 1;
                match step {
                    0 => {
                        prop_assert!(durables.begin(FILE));
                        out.push(next);
                        next += 1;
                    }
                    1 if !out.is_empty() => {
                        let user = out.swap_remove(usize::from(which) % out.len());
                        let result = if which == 7 { Err(5) } else { Ok(1) };
                        match durables.written(FILE, done(user, result)) {
                            Some(done) => {
                                prop_assert!(done.result.is_err());
                                ends += 1;
                            }
                            None => prop_assert!(written.insert(user, time).is_none()),
                        }
                    }
                    2 if durables.begins_sync(FILE, which % 5 == 0) => {
                        prop_assert!(began.replace(time).is_none());
                    }
                    3 if let Some(began) = began.take() => {
                        durables.synced(FILE, Ok(0), &mut ended);
                        for done in ended.drain(..) {
                            prop_assert!(written.remove(&done.user).is_some_and(|at| at < began));
                            ends += 1;
                        }
                    }
                    _ => {}
                }
            }
            prop_assert_eq!((ends, out.len()), (next, 0));
            prop_assert!(!durables.any_held() && !durables.any_syncing());
        }
    }
}
