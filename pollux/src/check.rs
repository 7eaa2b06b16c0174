//! `pollux check`: what it found in a pool that nobody serves, as JSON and as a table; and where it is done.

use crate::control::api::Member;
use crate::mistake::Mistake;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Problems that are told one by one; the totals count all.
pub const PROBLEMS_MAX: usize = 1000;

/// What a check has found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckReport {
    /// The pool's name.
    pub pool: String,
    /// Its UUID, as text.
    pub uuid: String,
    /// Its devices, as they were found.
    pub members: Vec<Member>,
    /// The first [`PROBLEMS_MAX`], in the order in which they were found.
    pub problems: Vec<Problem>,
    /// What was looked at, and all that was found.
    pub totals: CheckTotals,
}

/// Something that isn't as it must be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// For programs: `snake_case`, the same for every problem of a kind.
    pub kind: String,
    /// Where: a device and its byte, a volume and its block, a snapshot.
    pub place: String,
    /// What it means, in a sentence.
    pub what: String,
    /// It was put right.
    pub repaired: bool,
}

/// Sums.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckTotals {
    /// Volumes whose maps were read.
    pub volumes: u64,
    /// Snapshots whose maps were read.
    pub snapshots: u64,
    /// Metadata blocks that were read.
    pub metadata_blocks: u64,
    /// Chunks that maps name.
    pub chunks: u64,
    /// Bytes that maps name, each once.
    pub data_bytes: u64,
    /// Problems found.
    pub problems: u64,
    /// Of them, put right.
    pub repaired: u64,
}

impl CheckReport {
    /// Notes a problem.
    pub fn found(&mut self, problem: Problem) {
        self.totals.problems += 1;
        self.totals.repaired += u64::from(problem.repaired);
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(problem);
        }
    }

    /// Problems that were not put right.
    pub fn left(&self) -> u64 {
        self.totals.problems - self.totals.repaired
    }
}

/// Reads every map of the pool on these devices, proves that it is whole, and with `repair` puts right what can be.
///
/// # Errors
/// The devices can't be opened, aren't one whole pool, or somebody serves it.
pub fn check(paths: &[PathBuf], repair: bool) -> Result<CheckReport, Mistake> {
    let mut members = Vec::new();
    let mut locks = Vec::new();
    for path in paths {
        let (member, lock) = crate::pools::member(path, None, !repair, Some(false))?;
        members.push(member);
        locks.push(lock);
    }
    let told = |error: bdev::pool::PoolError| Mistake::plain(error.to_string());
    let repaired = if repair { bdev::pool::repair(&members).map_err(told)? } else { Vec::new() };
    let found = bdev::pool::check(&members).map_err(told)?;
    let mut report = CheckReport {
        pool: found.pool,
        uuid: crate::boot::hex(&found.uuid),
        members: members
            .iter()
            .map(|member| Member { path: member.path.clone(), size_bytes: member.medium.bytes() })
            .collect(),
        problems: Vec::new(),
        totals: CheckTotals {
            volumes: found.volumes.len() as u64,
            snapshots: found.snapshots.len() as u64,
            metadata_blocks: found.records,
            chunks: found.named_chunks,
            data_bytes: found.named_chunks * bdev::pool::slot::CHUNK_BYTES,
            ..CheckTotals::default()
        },
    };
    let repaired = repaired.into_iter().map(|problem| (problem, true));
    for (problem, repaired) in repaired.chain(found.problems.into_iter().map(|problem| (problem, false))) {
        let kind = problem.kind.replace(' ', "_");
        report.found(Problem { kind, place: problem.place, what: problem.what, repaired });
    }
    Ok(report)
}
