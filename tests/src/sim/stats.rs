//! What happened in a world, counted by names, so that a run can show that it tried what it says it tries.

use std::collections::BTreeMap;
use std::fmt;

/// Counts by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    counts: BTreeMap<&'static str, u64>,
    /// What came out of a seed's choices in the end: the same whenever it runs.
    pub fingerprint: u64,
}

impl Stats {
    /// One more.
    pub fn count(&mut self, name: &'static str) {
        self.add(name, 1);
    }

    /// So many more.
    pub fn add(&mut self, name: &'static str, more: u64) {
        *self.counts.entry(name).or_default() += more;
    }

    /// How many.
    pub fn get(&self, name: &str) -> u64 {
        self.counts.get(name).copied().unwrap_or_default()
    }

    /// What another world has seen, too.
    pub fn merge(&mut self, other: &Stats) {
        for (name, count) in &other.counts {
            self.add(name, *count);
        }
        self.fingerprint ^= other.fingerprint;
    }

    /// Those of `names` that never happened.
    pub fn missing<'a>(&self, names: &[&'a str]) -> Vec<&'a str> {
        names.iter().copied().filter(|name| self.get(name) == 0).collect()
    }
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.counts.iter().try_for_each(|(name, count)| writeln!(f, "{name:<36}{count:>14}"))
    }
}
