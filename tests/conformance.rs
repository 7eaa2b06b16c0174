//! libiscsi's suite against a target with the units it needs, compared with `conformance.expected`.
//!
//! Goal: every result is the one the list names, better ones included. Method: one process a test, each on every
//! unit that the list runs it on, two at a time with a target each; what was seen is left in the cache directory in the list's own format.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tests::expected::{Expected, Row};
use tests::process::cache_root;
use tests::suite::{self, Report, Verdict};
use tests::target::{Pollux, Setup};

const EXPECTED: &str = include_str!("conformance.expected");

/// The list's columns, and the unit behind each: its place here is its LUN. Not larger than 1023 MiB, or the suite's
/// tests of the last block of READ(6) say nothing; not smaller than 256 MiB, which one test writes in one command.
const UNITS: [(&str, &str); 8] = [
    ("512e", "ram:1023M,block=512,physical=4096"),
    ("512e-file", "file:{dir}/512e:1023M,block=512,physical=4096"),
    ("512e-thin", "thin:1023M,block=512,physical=4096"),
    ("512n", "ram:300M,block=512,physical=512"),
    ("4kn-file", "file:{dir}/4kn:1023M,block=4096,physical=4096"),
    ("4kn-thin", "thin:1023M,block=4096,physical=4096"),
    ("ro", "ram:64M,block=512,physical=4096,ro"),
    ("removable", "ram:64M,block=512,physical=4096,removable"),
];

/// A test whose outcome is a race that the target must not try to win, and the check that then fails. A WRITE whose
/// response has left for the socket before its ABORT TASK came is done, and the abort is answered "function complete":
/// ESXi takes "task does not exist", which the suite wants then, for a target gone mad.
const RACE: (&str, &str) = ("iSCSI.iSCSITMF.AbortTaskSimpleAsync", "state.wr_good");

/// A test that says what it has to find in blocks 0 to 255, and then also looks at block 256, which must be zero: it gets
/// a target that no other test has written to.
const WANTS_EMPTY_UNITS: &str = "SCSI.MultipathIO.CompareAndWrite";

/// Who take turns at the list: the suite waits for the target half of the time, and the other way round.
const SHARES: usize = 2;

fn start() -> Pollux {
    let luns: Vec<&str> = UNITS.iter().map(|(_, lun)| *lun).collect();
    Pollux::start(Setup { portals: 2, ..Setup::with_luns(&luns) })
}

#[test]
#[ignore = "needs iscsi-test-cu and an optimised pollux: run by tests/run"]
fn the_suite_shows_what_is_expected() {
    let expected = Expected::parse(EXPECTED).unwrap_or_else(|what| panic!("conformance.expected: {what}"));
    let units: Vec<&str> = UNITS.iter().map(|(name, _)| *name).collect();
    assert_eq!(expected.units, units, "conformance.expected's columns are the units");

    let tests = suite::list();
    let mut observed = expected.clone();
    let mut differences = Vec::new();
    for gone in expected.rows.keys().filter(|test| !tests.contains(test)) {
        differences.push(format!("{gone}: on the list, but not in this version of the suite"));
    }
    let mut table = Table::default();
    let began = Instant::now();
    let next = AtomicUsize::new(0);
    let run = || Share::run(&expected, &tests, &next);
    let shares = std::thread::scope(|scope| {
        let shares: Vec<_> = (0..SHARES).map(|_| scope.spawn(run)).collect();
        shares.into_iter().map(|share| share.join().expect("a share tells what fails")).collect::<Vec<_>>()
    });
    for share in shares {
        observed.rows.extend(share.rows);
        differences.extend(share.differences);
        share.reports.iter().for_each(|(test, report)| table.add(test, report));
    }
    table.print(began.elapsed());

    let path = cache_root().join("conformance.observed");
    let head: String = EXPECTED.split_inclusive('\n').take_while(|line| line.starts_with('#')).collect();
    std::fs::write(&path, observed.print(&head)).expect("the cache directory can be written");
    assert!(
        differences.is_empty(),
        "{} differences from conformance.expected (what was seen is in {}):\n{}",
        differences.len(),
        path.display(),
        differences.join("\n")
    );
}

/// What one of those saw who take turns at the list, each with a target of its own.
#[derive(Default)]
struct Share {
    rows: BTreeMap<String, Row>,
    differences: Vec<String>,
    reports: Vec<(String, Report)>,
}

impl Share {
    fn run(expected: &Expected, tests: &[String], next: &AtomicUsize) -> Share {
        let mut share = Share::default();
        let mut pollux = start();
        while let Some(test) = tests.get(next.fetch_add(1, Ordering::Relaxed)) {
            if test == WANTS_EMPTY_UNITS {
                pollux.stop();
                pollux = start();
            }
            let known = expected.rows.get(test);
            let unlisted = Row { results: vec![None; UNITS.len()], reason: String::new() };
            let mut row = known.cloned().unwrap_or(unlisted);
            for (lun, (unit, _)) in UNITS.iter().enumerate() {
                let wanted = known.and_then(|row| row.results[lun]);
                // A test that the list does not know runs on the first unit, so that its result is told.
                if wanted.is_none() && (known.is_some() || lun != 0) {
                    continue;
                }
                let mut report = suite::run_test(test, &pollux.url_at(0, lun), &pollux.url_at(1, lun));
                if report.verdict == Verdict::Fail && test == RACE.0 && report.why.contains(RACE.1) {
                    println!("{test} on {unit}: the write was done before its abort came ({})", report.why);
                    report.verdict = Verdict::Pass;
                }
                row.results[lun] = Some(report.verdict);
                if wanted != Some(report.verdict) {
                    let wanted =
                        wanted.map_or_else(|| "nothing, it is not on the list".to_owned(), |v| v.to_string());
                    let (got, why) = (report.verdict, &report.why);
                    println!("{test} on {unit}: expected {wanted}, got {got} {why}");
                    share.differences.push(format!("{test} on {unit}: expected {wanted}, got {got} {why}"));
                    // What a failed test leaves behind (a reservation, a write protection) must not fail the next.
                    pollux.assert_running();
                    pollux.stop();
                    pollux = start();
                }
                share.reports.push((test.clone(), report));
            }
            share.rows.insert(test.clone(), row);
        }
        pollux.stop();
        share
    }
}

/// Results by suite.
#[derive(Default)]
struct Table {
    suites: BTreeMap<String, (BTreeMap<Verdict, u32>, Duration)>,
}

impl Table {
    fn add(&mut self, test: &str, report: &Report) {
        let suite = test.rsplit_once('.').map_or(test, |(suite, _)| suite);
        let (counts, took) = self.suites.entry(suite.to_owned()).or_default();
        *counts.entry(report.verdict).or_default() += 1;
        *took += report.took;
    }

    fn print(&self, took: Duration) {
        println!("{:32} {:>5} {:>5} {:>5} {:>8}", "suite", "PASS", "SKIP", "other", "seconds");
        let mut all = [0; 3];
        for (suite, (counts, took)) in &self.suites {
            let of = |verdict| counts.get(&verdict).copied().unwrap_or(0);
            let (pass, skip) = (of(Verdict::Pass), of(Verdict::Skip));
            let other = counts.values().sum::<u32>() - pass - skip;
            println!("{suite:32} {pass:5} {skip:5} {other:5} {:8.2}", took.as_secs_f32());
            all = [all[0] + pass, all[1] + skip, all[2] + other];
        }
        let seconds = took.as_secs_f32();
        println!("{:32} {:5} {:5} {:5} {seconds:8.2}", "all", all[0], all[1], all[2]);
    }
}
