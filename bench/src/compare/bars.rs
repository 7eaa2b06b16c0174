//! What a busy pollux has to reach beside raw sockets, case by case, and a thin LUN in memory beside a plain one.
//!
//! Bars are set only where all that differs from raw sockets is pollux: the last target is `raw`, pollux polls busily, and no
//! digests are agreed, which raw sockets don't have. The LUN in memory that is held to them is the first target; one on
//! `null` is, wherever it stands. Where the last target is a pollux with a plain LUN in memory, a thin one whose pool is in
//! memory is held to that.

use super::report::{Cell, Figure};
use super::target::{Poll, Target, What};
use crate::args::CompareArgs;
use crate::cases::{self, Case};
use crate::load::pattern::Pattern;
use crate::pool::rows::{Bar, Row};

/// What stands behind the LUN that is held to the bars.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Behind {
    Ram,
    Null,
    /// A thin LUN of a pool in memory.
    Thin,
}

/// One row for each bar of what was measured; none where no bar is set.
pub(super) fn rows(args: &CompareArgs, measured: &[(Case, Vec<Cell>)]) -> Vec<Row> {
    let mut rows = Vec::new();
    let Some((last, others)) = args.targets.split_last() else { return rows };
    let base_lun = behind(args, 0, last);
    let is_base = |behind| match behind {
        Behind::Ram | Behind::Null => last.what == What::Raw && !args.login.digests.any(),
        Behind::Thin => base_lun == Some(Behind::Ram),
    };
    for (case, cells) in measured {
        let Some(base) = cells.last() else { continue };
        for (index, (target, cell)) in others.iter().zip(cells).enumerate() {
            let Some(behind) = behind(args, index, target).filter(|&behind| is_base(behind)) else {
                continue;
            };
            for (figure, bar) in bars(case, behind) {
                rows.push(row(case, (target, last), figure, bar, &cell.pairs(base, figure)));
            }
        }
    }
    rows
}

/// What is behind a target, if that is held to bars.
fn behind(args: &CompareArgs, index: usize, target: &Target) -> Option<Behind> {
    let What::Pollux(pollux) = &target.what else { return None };
    let options = pollux.options(args);
    if options.poll != Poll::Busy.name() {
        return None;
    }
    match options.lun.split(':').next() {
        Some("ram") if index == 0 => Some(Behind::Ram),
        Some("null") => Some(Behind::Null),
        Some("thin") if options.data.is_some() => Some(Behind::Thin),
        _ => None,
    }
}

/// The bars of a case, each of a ratio to raw sockets; of a thin LUN to a plain one.
fn bars(case: &Case, behind: Behind) -> Vec<(Figure, Bar)> {
    let reads = case.pattern == Pattern::Randread;
    let rate =
        |of_reads: f64, of_writes: f64| (Figure::Rate, Bar::Least(if reads { of_reads } else { of_writes }));
    let tail = [(Figure::P99, Bar::Most(1.5)), (Figure::P999, Bar::Most(2.0))];
    match (behind, case.block_bytes >> 10, case.sessions, case.depth) {
        // What raw sockets copy out of 256 MiB, null doesn't.
        (Behind::Null, 4, 1, 32) => vec![rate(1.1, 1.1)],
        // One command at a time is a matter of latency alone: its rate is the same told twice.
        (Behind::Ram, 4, 1, 1) => vec![(Figure::P50, Bar::Most(1.05)), (Figure::P99, Bar::Most(1.2))],
        (Behind::Ram, 4, 1, 32) => [vec![rate(0.9, 0.85)], tail.to_vec()].concat(),
        (Behind::Ram, 4, 1, 128) => vec![rate(0.9, 0.85)],
        (Behind::Ram, 4, 4, 32) => [vec![rate(0.88, 0.83)], tail.to_vec()].concat(),
        (Behind::Ram, 128 | 1024, ..) => vec![rate(0.95, 0.95)],
        // A map's look-up and a table's, in a microsecond and more.
        (Behind::Thin, 4, 1, 32) => vec![rate(0.93, 0.93)],
        (Behind::Ram | Behind::Null | Behind::Thin, ..) => Vec::new(),
    }
}

fn row(case: &Case, (target, base): (&Target, &Target), figure: Figure, bar: Bar, pairs: &[f64]) -> Row {
    let quartiles = cases::quartiles(pairs);
    Row {
        case: case.name().into(),
        what: format!("{}, {} ÷ {}", target.name, figure.name(), base.name),
        // No pairs, as when nothing ended GOOD, meet no bar: a number that isn't one compares with none.
        value: quartiles.map_or(f64::NAN, |quartiles| quartiles.median),
        unit: "",
        bar,
        because: quartiles.map_or_else(
            || "no repeat in which both have it".to_owned(),
            |quartiles| {
                let (first, third) = (quartiles.first, quartiles.third);
                format!("median of {} pairs, quartiles {first:.2} and {third:.2}", pairs.len())
            },
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::Said;
    use super::*;
    use crate::args::{Cli, Command};
    use clap::Parser;

    fn compare(line: &[&str]) -> CompareArgs {
        match Cli::try_parse_from([&["bench", "compare"], line].concat()).unwrap().command {
            Command::Compare(args) => args,
            _ => unreachable!("compare was asked for"),
        }
    }

    /// As many repeats as there are factors, raw's figures times each.
    fn cell(factors: &[f64]) -> Cell {
        let said = |&factor: &f64| Said {
            rate: 1000.0 * factor,
            p50_us: 10.0 * factor,
            p99_us: 20.0 * factor,
            p999_us: 30.0 * factor,
        };
        Cell { said: factors.iter().map(said).collect(), ..Cell::default() }
    }

    fn told(line: &[&str], case: &str, cells: impl Fn() -> Vec<Cell>) -> Vec<(String, f64, bool)> {
        let measured: Vec<_> = cases::matching(case).into_iter().map(|case| (case, cells())).collect();
        let told = |row: Row| (format!("{} {}", row.case, row.what), row.value, row.is_met());
        rows(&compare(line), &measured).into_iter().map(told).collect()
    }

    /// Goal: each case has its bars, from their own side, and the median of the pairs is held to them. Method: a pollux with
    /// 0.89 of raw's rate and latencies, in the median, in cases whose bars lie on both sides of it.
    #[test]
    fn cases_have_their_bars() {
        let line = ["--target", "pollux", "--target", "raw"];
        let cells = || vec![cell(&[0.89, 2.5, 0.1]), cell(&[1.0, 1.0, 1.0])];
        for (case, expected) in [
            ("4k randread qd32", &[("rate", false), ("p99", true), ("p99.9", true)][..]),
            ("4k randwrite qd32", &[("rate", true), ("p99", true), ("p99.9", true)]),
            ("4k randread qd128", &[("rate", false)]),
            ("4k randwrite 4x32", &[("rate", true), ("p99", true), ("p99.9", true)]),
            ("4k randread 4x32", &[("rate", true), ("p99", true), ("p99.9", true)]),
            ("4k randread qd1", &[("p50", true), ("p99", true)]),
            ("128k randread qd16", &[("rate", false)]),
            ("1M randwrite qd16", &[("rate", false)]),
        ] {
            let expected: Vec<_> = expected
                .iter()
                .map(|(figure, met)| (format!("{case} pollux, {figure} ÷ raw"), 0.89, *met))
                .collect();
            assert_eq!(told(&line, case, cells), expected, "{case}");
        }
        let slow = || vec![cell(&[2.1]), cell(&[1.0])];
        let met: Vec<bool> = told(&line, "4k randread qd32", slow).into_iter().map(|(.., met)| met).collect();
        assert_eq!(met, [true, false, false]);
    }

    /// Goal: bars are set only against raw sockets, for a busy pollux in memory that comes first or one on null, and without
    /// digests. Method: command lines with and without each of these.
    #[test]
    fn bars_have_conditions() {
        let count = |line: &[&str], targets: usize| {
            told(line, "4k randread qd32", || (0..targets).map(|_| cell(&[1.0])).collect()).len()
        };
        for (line, targets, expected) in [
            (&["--target", "pollux", "--target", "raw"][..], 2, 3),
            (&["--target", "new=/x/pollux:ram:1G", "--target", "raw"], 2, 3),
            (&["--target", "pollux", "--target", "pollux:null:1G", "--target", "raw"], 3, 4),
            (&["--target", "pollux:null:1G", "--target", "pollux", "--target", "raw"], 3, 1),
            (&["--target", "pollux", "--target", "tgt"], 2, 0),
            (&["--target", "raw", "--target", "pollux"], 2, 0),
            (&["--target", "raw"], 1, 0),
            (&["--target", "tgt", "--target", "raw"], 2, 0),
            (&["--target", "pollux@adaptive", "--target", "raw"], 2, 0),
            (&["--pollux-poll", "adaptive", "--target", "pollux", "--target", "raw"], 2, 0),
            (&["--target", "pollux:thin:1G", "--target", "raw"], 2, 0),
            (&["--target", "pollux:thin:1G", "--target", "pollux:ram:1G"], 2, 0),
            (&["--target", "pollux:thin:1G,data=ram:2G", "--target", "pollux:ram:1G"], 2, 1),
            (&["--target", "pollux:thin:1G,data=ram:2G", "--target", "pollux@adaptive:ram:1G"], 2, 0),
            (&["--target", "pollux:thin:1G,data=ram:2G", "--target", "raw"], 2, 0),
            (&["--target", "pollux", "--target", "raw", "--digests", "both"], 2, 0),
            (&["--target", "pollux", "--target", "raw", "--digests", "header"], 2, 0),
        ] {
            assert_eq!(count(line, targets), expected, "{line:?}");
        }
    }

    /// Goal: what was measured without a pair misses its bar. Method: a pollux none of whose commands ended GOOD.
    #[test]
    fn nothing_meets_no_bar() {
        let line = ["--target", "pollux", "--target", "raw"];
        let told = told(&line, "4k randread qd32", || vec![cell(&[0.0]), cell(&[1.0])]);
        assert!(told.len() == 3 && told.iter().all(|(_, value, met)| value.is_nan() && !met), "{told:?}");
    }
}
