//! The cases that targets and the ceiling are compared in, each always under the same name.

use crate::load::Workload;
use crate::load::pattern::Pattern;
use std::time::Duration;

/// One row of the tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Case {
    /// Bytes of one command.
    pub block_bytes: u32,
    /// Random reads or random writes.
    pub pattern: Pattern,
    /// Commands under way in each session.
    pub depth: usize,
    /// Sessions.
    pub sessions: usize,
}

impl Case {
    /// Such as `4k randread 4x32`.
    pub fn name(&self) -> String {
        let size = match self.block_bytes {
            bytes if bytes.is_multiple_of(1 << 20) => format!("{}M", bytes >> 20),
            bytes => format!("{}k", bytes >> 10),
        };
        let depth = match self.sessions {
            1 => format!("qd{}", self.depth),
            sessions => format!("{sessions}x{}", self.depth),
        };
        format!("{size} {} {depth}", self.pattern.name())
    }

    /// Whether its figure is a rate of bytes; small commands are told by their number.
    pub fn is_large(&self) -> bool {
        self.block_bytes >= 64 << 10
    }

    /// The case as a load over `range_bytes` from `cpu`.
    pub fn workload(
        &self,
        cpu: usize,
        range_bytes: u64,
        warmup: Duration,
        time: Duration,
        timeout: Duration,
    ) -> Workload {
        Workload {
            block_bytes: self.block_bytes,
            pattern: self.pattern,
            mix: 0,
            depth: self.depth,
            sessions: self.sessions,
            rate: None,
            warmup,
            time,
            timeout,
            range_bytes: Some(range_bytes),
            verify: false,
            precondition: false,
            shuffled: false,
            seed: 1,
            cpus: vec![cpu],
        }
    }
}

/// All cases whose name has the words of `part` (so that `qd1` isn't `qd128`), all of them if it is empty, in the order of the tables.
pub fn matching(part: &str) -> Vec<Case> {
    let shapes = [(4, 1, 1), (4, 32, 1), (4, 128, 1), (4, 32, 4), (128, 16, 1), (1024, 16, 1)];
    shapes
        .iter()
        .flat_map(|&(kib, depth, sessions)| {
            [Pattern::Randread, Pattern::Randwrite].map(|pattern| Case {
                block_bytes: kib << 10,
                pattern,
                depth,
                sessions,
            })
        })
        .filter(|case| {
            part.is_empty() || format!(" {} ", case.name()).contains(&format!(" {} ", part.trim()))
        })
        .collect()
}

/// The middle of `values`, the mean of the two middle ones if their number is even; zero for none.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        length if length.is_multiple_of(2) => f64::midpoint(sorted[length / 2 - 1], sorted[length / 2]),
        length => sorted[length / 2],
    }
}

/// Where the quarters of some values meet.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Quartiles {
    /// A quarter is below it.
    pub first: f64,
    /// The middle.
    pub median: f64,
    /// A quarter is above it.
    pub third: f64,
}

/// The quartiles of `values`, between two of them in proportion; `None` for none.
pub fn quartiles(values: &[f64]) -> Option<Quartiles> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().checked_sub(1)?;
    let at = |quarter: f64| {
        let place = quarter * last as f64;
        let below = place.floor() as usize;
        let above = (below + 1).min(last);
        sorted[below] + (sorted[above] - sorted[below]) * place.fract()
    };
    Some(Quartiles { first: at(0.25), median: at(0.5), third: at(0.75) })
}

/// How far apart `values` are: largest less smallest, in percent of the median.
pub fn spread_percent(values: &[f64]) -> f64 {
    let most = values.iter().copied().fold(f64::MIN, f64::max);
    let least = values.iter().copied().fold(f64::MAX, f64::min);
    let middle = median(values);
    if middle > 0.0 { (most - least) / middle * 100.0 } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: names are stable and pick their case. Method: by hand.
    #[test]
    fn names_pick_cases() {
        assert_eq!(matching("").len(), 12);
        let names: Vec<String> = matching("4x32").iter().map(Case::name).collect();
        assert_eq!(names, ["4k randread 4x32", "4k randwrite 4x32"]);
        assert_eq!(matching("1M randwrite")[0].depth, 16);
        assert_eq!(matching("4k randread qd1").len(), 1);
        assert!(matching("nothing").is_empty());
    }

    /// Goal: quartiles, of which the middle one is the median. Method: by hand, down to one value and none.
    #[test]
    fn quarters() {
        let five = quartiles(&[5.0, 1.0, 3.0, 2.0, 4.0]);
        assert_eq!(five, Some(Quartiles { first: 2.0, median: 3.0, third: 4.0 }));
        assert_eq!(quartiles(&[2.0, 1.0]), Some(Quartiles { first: 1.25, median: 1.5, third: 1.75 }));
        assert_eq!(quartiles(&[7.0]), Some(Quartiles { first: 7.0, median: 7.0, third: 7.0 }));
        assert_eq!(quartiles(&[]), None);
    }

    /// Goal: medians and spreads. Method: by hand.
    #[test]
    fn medians_and_spreads() {
        assert!((median(&[3.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
        assert!((median(&[4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < 1e-9);
        assert!(median(&[]).abs() < 1e-9);
        assert!((spread_percent(&[90.0, 100.0, 110.0]) - 20.0).abs() < 1e-9);
    }
}
