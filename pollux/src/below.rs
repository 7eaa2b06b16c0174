//! What stands below pools whose members are files: such a file is sparse, and its file system may be unable to give
//! all that is promised. Asked when somebody wants to know and now and then by a thread of its own, never on the IO path.
//!
//! A write that finds the file system full ends as one that finds the pool full: 27h/07h, and the host stops the
//! machine until there is space.

use rustix::fs::{StatVfs, statvfs};
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

/// How often file systems are looked at while nobody asks.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// A file system with less than one in so many parts left is told of, if a pool's files may want more than that.
const LOW_ONE_IN: u64 = 10;

/// The file systems below a pool's files, taken together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Below {
    /// What they can still give.
    pub free_bytes: u64,
    /// What the files have not been given yet.
    pub holes_bytes: u64,
    /// One of them has little left, and less than the files may want of it.
    pub is_low: bool,
}

/// In bytes.
#[derive(Clone, Copy, Debug, Default)]
struct FileSystem {
    free: u64,
    total: u64,
    holes: u64,
}

impl Below {
    /// What stands below these members; `None` if no member is a file, or none can be looked at.
    pub fn of<'a>(members: impl IntoIterator<Item = &'a Path>) -> Option<Below> {
        let mut systems: BTreeMap<u64, FileSystem> = BTreeMap::new();
        for path in members {
            let Ok(facts) = std::fs::metadata(path) else { continue };
            let Ok(space) = statvfs(path) else { continue };
            if !facts.is_file() {
                continue;
            }
            let StatVfs { f_frsize, f_bavail, f_blocks, .. } = space;
            let system = systems.entry(facts.dev()).or_default();
            // What only root may have doesn't count.
            system.free = f_bavail.saturating_mul(f_frsize);
            system.total = f_blocks.saturating_mul(f_frsize);
            system.holes += facts.len().saturating_sub(facts.blocks().saturating_mul(512));
        }
        if systems.is_empty() {
            return None;
        }
        let mut below = Below::default();
        for FileSystem { free, total, holes } in systems.into_values() {
            below.free_bytes = below.free_bytes.saturating_add(free);
            below.holes_bytes += holes;
            below.is_low |= free < holes && free < total / LOW_ONE_IN;
        }
        Some(below)
    }

    /// Of `free_bytes` in chunks that nothing names, how many can be written: those that the files have already, and of the
    /// others as many as the file systems give.
    pub fn usable(self, free_bytes: u64) -> u64 {
        free_bytes.min(free_bytes.saturating_sub(self.holes_bytes).saturating_add(self.free_bytes))
    }
}

/// Looks at file systems until it is dropped, and logs when one gets low.
#[derive(Debug)]
pub struct Watch {
    /// Nothing is ever sent: the thread sees that this end is gone. It isn't waited for, since a file system that is stuck
    /// would hold it.
    _end: Sender<()>,
}

impl Watch {
    /// Begins. `pools` tells the pools there are, with their members.
    pub fn start(pools: impl Fn() -> BTreeMap<String, Vec<PathBuf>> + Send + 'static) -> Watch {
        let (end, ended) = channel::<()>();
        let watch = move || {
            let mut low: BTreeMap<String, bool> = BTreeMap::new();
            loop {
                for (pool, members) in pools() {
                    let below = Below::of(members.iter().map(PathBuf::as_path)).unwrap_or_default();
                    let was_low = low.insert(pool.clone(), below.is_low).unwrap_or(false);
                    let Below { free_bytes, holes_bytes, is_low } = below;
                    if is_low && !was_low {
                        tracing::warn!(
                            pool,
                            free_bytes,
                            wanted_bytes = holes_bytes,
                            "the file system below the pool has little left: when that is gone, writes that take space \
                             fail; give it space, or delete what is not needed"
                        );
                    } else if was_low && !is_low {
                        tracing::info!(pool, free_bytes, "the file system below the pool has space again");
                    }
                }
                if ended.recv_timeout(LOOK_EVERY) != Err(RecvTimeoutError::Timeout) {
                    return;
                }
            }
        };
        if let Err(error) = std::thread::Builder::new().name("pollux-below".to_owned()).spawn(watch) {
            tracing::warn!(%error, "nobody watches the file systems below the pools");
        }
        Watch { _end: end }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: what can be written is never more than the chunks that are free, nor more than what is there already and
    /// what the file system gives. Method: a table.
    #[test]
    fn usable_is_the_lesser() {
        for (free, holes, system, usable) in [
            // All of it is a hole.
            (100, 100, 30, 30),
            (100, 100, 300, 100),
            // All of it is there.
            (100, 0, 0, 100),
            // A part is, or blocks of used chunks are holes, too.
            (100, 60, 10, 50),
            (100, 60, 80, 100),
            (100, 500, 0, 0),
            (0, 500, 100, 0),
        ] {
            let below = Below { free_bytes: system, holes_bytes: holes, is_low: false };
            assert_eq!(below.usable(free), usable, "{free} {holes} {system}");
        }
    }

    /// Goal: a sparse file's holes are seen, one file system counts once, what is no file doesn't count.
    #[test]
    fn sees_holes() {
        let root = tempfile::tempdir().unwrap();
        let (a, b) = (root.path().join("a"), root.path().join("b"));
        std::fs::File::create(&a).unwrap().set_len(8 << 20).unwrap();
        std::fs::write(&b, vec![1u8; 1 << 20]).unwrap();
        let one = Below::of([a.as_path()]).unwrap();
        assert_eq!(one.holes_bytes, 8 << 20);
        assert!(one.free_bytes > 0);
        let both = Below::of([a.as_path(), b.as_path()]).unwrap();
        assert_eq!(both.holes_bytes, 8 << 20);
        let gap = both.free_bytes.abs_diff(one.free_bytes);
        assert!(gap < one.free_bytes, "counted twice: {one:?} {both:?}");
        assert_eq!(Below::of([Path::new("/dev/null"), Path::new("/nowhere/at/all")]), None);
    }
}
