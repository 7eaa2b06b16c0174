//! A pool's journal by itself: records are appended, sealed in blocks and written to a file, one commit at a time.
//!
//! The file is written once before, so that a commit changes no metadata of the file system. Beside the commits a plain
//! durable write of as many bytes is measured in turns, and the same commits without the write: what of a commit is the
//! disk's, and what is ours.

use super::round::{Clock, Plan};
use super::rows::{Per, Row, Unit};
use crate::cases::median;
use crate::failure::{Context, Failure};
use crate::pool::rows::digits;
use bdev::pool::codec::Writer;
use bdev::pool::format::JOURNAL_BLOCK_BYTES;
use bdev::pool::journal::{COMMITS_MAX, Journal};
use bdev::pool::map::{RootId, SlotNo};
use bdev::pool::record::write_set;
use bdev::pool::slot::{ALL, Chunk, Place};
use reactor::buf::{BUF_BYTES_MAX, Pool, PoolConfig};
use rustix::fs::OFlags;
use rustix::io::Errno;
use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Records of a commit: of a lone write; of as many writes as gather at depth 32; of eight full blocks.
const RECORDS: [u64; 3] = [1, 32, 1200];
/// The journal's ring. A multiple of what any commit of [`RECORDS`] takes, so that none is cut at its end.
const RING_BYTES: u64 = 4 << 20;
/// What marks our blocks.
const TAG: u64 = 0x6d69_6372_6f00_0001;

/// The case; the file is made in `dir` and removed again.
///
/// # Errors
/// It can't be made or written.
pub(super) fn measure(plan: Plan, dir: &Path) -> Result<Vec<Row>, Failure> {
    let scratch = Scratch::make(dir, "commit")?;
    RECORDS.iter().map(|&records| row(plan, &scratch, records)).collect()
}

fn row(plan: Plan, scratch: &Scratch, records: u64) -> Result<Row, Failure> {
    let (mut written, mut unwritten) = (Log::new()?, Log::new()?);
    unwritten.commit(records, None)?;
    let bytes = unwritten.bytes as usize;
    let mut pool = one_buffer()?;
    let buf = pool.take(bytes).ok_or_else(|| Failure::new("a pool of one buffer has none"))?;
    let mut at = RING_BYTES;
    let [rounds_ns, plain, ours] = plan.in_turns(
        Clock::Wall,
        [
            &mut |count| (0..count).try_for_each(|_| written.commit(records, Some(&scratch.file))),
            &mut |count| {
                (0..count).try_for_each(|_| {
                    scratch.file.write_all_at(&buf, at).doing("a durable write")?;
                    at = RING_BYTES + (at + bytes as u64) % RING_BYTES;
                    Ok(())
                })
            },
            &mut |count| (0..count).try_for_each(|_| unwritten.commit(records, None)),
        ],
    )?;
    Ok(Row {
        case: "commit",
        what: format!("{records} {} and a durable commit", if records == 1 { "record" } else { "records" }),
        rounds_ns,
        unit: Unit::Us,
        per: Per::Records(written.records_per_commit()),
        because: format!(
            "{} KiB, {}; a plain durable write of as much: {} µs; without writing: {} µs",
            bytes >> 10,
            if scratch.is_direct { "O_DIRECT and O_DSYNC" } else { "O_DSYNC: NO DIRECT IO THERE" },
            digits(median(&plain) / 1e3),
            digits(median(&ours) / 1e3),
        ),
    })
}

fn one_buffer() -> Result<Pool, Failure> {
    Pool::new(PoolConfig { counts: [0, 0, 1], arena: 0 }).doing("taking a buffer")
}

/// A file that goes with this value: a ring for a journal, and as much behind it.
struct Scratch {
    path: PathBuf,
    file: File,
    /// Past the page cache; not every file system can.
    is_direct: bool,
}

impl Scratch {
    fn make(dir: &Path, name: &str) -> Result<Scratch, Failure> {
        let path = dir.join(format!("pollux-bench-{name}-{}", std::process::id()));
        let doing = format!("making {}", path.display());
        let plain = File::options().write(true).create_new(true).open(&path).doing(&doing)?;
        // From here on it is removed, whatever happens.
        let mut scratch = Scratch { path, file: plain, is_direct: false };
        scratch.file.write_all_at(&vec![1; 2 * RING_BYTES as usize], 0).doing(&doing)?;
        scratch.file.sync_all().doing(&doing)?;
        let open = |flags: OFlags| {
            File::options().read(true).write(true).custom_flags(flags.bits() as i32).open(&scratch.path)
        };
        let direct = open(OFlags::DIRECT | OFlags::DSYNC);
        let refused =
            direct.as_ref().is_err_and(|error| error.raw_os_error() == Some(Errno::INVAL.raw_os_error()));
        let opened = if refused { open(OFlags::DSYNC) } else { direct };
        scratch.file = opened.doing(&doing)?;
        scratch.is_direct = !refused;
        Ok(scratch)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Nobody else needs it; it is small.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// A journal whose records nobody needs once they are durable.
struct Log {
    journal: Journal,
    /// Of which the journal's buffers are, so it goes after them.
    _pool: Pool,
    record: Writer,
    records: u64,
    commits: u64,
    bytes: u64,
}

impl Log {
    fn new() -> Result<Log, Failure> {
        let mut pool = Pool::new(PoolConfig { counts: [0, 0, COMMITS_MAX as u32], arena: 0 })
            .doing("taking a journal's buffers")?;
        let bufs = (0..COMMITS_MAX).map_while(|_| pool.take(BUF_BYTES_MAX)).collect();
        let ring = (0, RING_BYTES / JOURNAL_BLOCK_BYTES as u64);
        let journal = Journal::new(TAG, 0, 0, 1, ring, 0, 0, bufs);
        Ok(Log { journal, _pool: pool, record: Writer::default(), records: 0, commits: 0, bytes: 0 })
    }

    /// Appends so many records, each of a first write of a whole slot, and commits them: to `file`, if there is one.
    fn commit(&mut self, records: u64, file: Option<&File>) -> Result<(), Failure> {
        for _ in 0..records {
            self.record.0.clear();
            let target = Place { chunk: Chunk(self.records as u32 & 0xffff), block: 0, private: true };
            write_set(&mut self.record, RootId(1), SlotNo(self.records), ALL, target, 0);
            self.journal.append(&self.record.0);
            self.records += 1;
        }
        while let Some(commit) = self.journal.commit(self.journal.appended()) {
            if let Some(file) = file {
                file.write_all_at(&commit.buf, commit.at).doing("writing a journal")?;
            }
            self.commits += 1;
            self.bytes += commit.buf.len() as u64;
            let end = commit.position + (commit.buf.len() / JOURNAL_BLOCK_BYTES) as u64;
            self.journal.committed(commit.position, commit.buf, true);
            self.journal.forget_before(end);
        }
        Ok(())
    }

    fn records_per_commit(&self) -> f64 {
        self.records as f64 / self.commits.max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bdev::pool::format::JournalHead;

    /// Goal: a commit is one write, holds all its records, and none is cut at the ring's end. Method: each number of
    /// records, more often than the ring has room for.
    #[test]
    fn each_commit_is_one() {
        for records in RECORDS {
            let mut log = Log::new().unwrap();
            for _ in 0..=RING_BYTES / JOURNAL_BLOCK_BYTES as u64 {
                log.commit(records, None).unwrap();
            }
            assert!((log.records_per_commit() - records as f64).abs() < 1e-9, "{records}");
            assert_eq!(log.journal.durable(), log.records);
        }
    }

    /// Goal: what is measured is on the file as the pool would read it back. Method: two commits, their blocks opened.
    #[test]
    fn what_is_committed_is_there() {
        let scratch = Scratch::make(&std::env::temp_dir(), "commit-test").unwrap();
        let mut log = Log::new().unwrap();
        log.commit(1, Some(&scratch.file)).unwrap();
        log.commit(32, Some(&scratch.file)).unwrap();
        let bytes = std::fs::read(&scratch.path).unwrap();
        for (position, records) in [(0, 1), (1, 32)] {
            let block = &bytes[position as usize * JOURNAL_BLOCK_BYTES..][..JOURNAL_BLOCK_BYTES];
            let (head, body) = JournalHead::open(TAG, 0, 0, position, block).unwrap();
            assert_eq!(usize::from(head.used), records * (log.record.0.len() + 2));
            assert_eq!(body.len(), usize::from(head.used));
        }
        let path = scratch.path.clone();
        drop(scratch);
        assert!(!path.exists());
    }
}
