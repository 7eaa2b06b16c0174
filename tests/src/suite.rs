//! libiscsi's conformance suite, `iscsi-test-cu`, one test a process.
//!
//! The program is run with `-V`, because some of its tests skip without a word otherwise. A verdict is made of
//! the counts at the end of its output, the `[SKIPPED]` and `[FAILED]` lines before, and how the process ended;
//! the exit status alone tells little (it is 0 when a test skipped, or when there is no such test).

use crate::process::{End, run};
use std::fmt;
use std::time::{Duration, Instant};

/// The program.
pub const PROGRAM: &str = "iscsi-test-cu";
/// No test of the suite takes longer, with a target that answers.
const TEST_LIMIT: Duration = Duration::from_secs(60);

/// Said by PrinReadKeys.Simple when it compares what READ KEYS has brought; it marks no check that held, and counts one.
const UNMARKED_CHECK: &str = "Test ADDITIONAL_LENGTH matches DATA_IN size";

/// How a test ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// Every check held.
    Pass,
    /// The test said that the target, or what it was given, lacks something.
    Skip,
    /// A check did not hold.
    Fail,
    /// No end within the limit.
    Hang,
    /// The program died.
    Crash,
    /// The test did not start: no login, no such test.
    Error,
}

impl Verdict {
    const NAMES: [(Verdict, &'static str); 6] = [
        (Verdict::Pass, "PASS"),
        (Verdict::Skip, "SKIP"),
        (Verdict::Fail, "FAIL"),
        (Verdict::Hang, "HANG"),
        (Verdict::Crash, "CRASH"),
        (Verdict::Error, "ERROR"),
    ];

    /// The verdict of this name.
    pub fn named(name: &str) -> Option<Verdict> {
        Verdict::NAMES.iter().find(|(_, known)| *known == name).map(|(verdict, _)| *verdict)
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (_, name) =
            Verdict::NAMES.iter().find(|(verdict, _)| verdict == self).expect("every verdict has a name");
        f.pad(name)
    }
}

/// One test's result.
#[derive(Clone, Debug)]
pub struct Report {
    /// How it ended.
    pub verdict: Verdict,
    /// The suite's own words where it is not [`Verdict::Pass`].
    pub why: String,
    /// How long it took.
    pub took: Duration,
}

/// Every test that the program has, as `FAMILY.SUITE.TEST`. The families ALL and LINUX only repeat these.
///
/// # Panics
/// If the program can't be run or names none.
pub fn list() -> Vec<String> {
    let output = run(PROGRAM, &["--list".to_owned()], TEST_LIMIT).text;
    let tests: Vec<String> = output
        .lines()
        .map(str::trim)
        .filter(|line| {
            (line.starts_with("SCSI.") || line.starts_with("iSCSI.")) && line.split('.').count() == 3
        })
        .map(str::to_owned)
        .collect();
    assert!(!tests.is_empty(), "{PROGRAM} --list names no tests:\n{output}");
    tests
}

/// Runs one test on the unit at `url`, whose data are lost. The suite's own tests of two paths get the second.
///
/// # Panics
/// If the program can't be run.
pub fn run_test(test: &str, url: &str, second_path: &str) -> Report {
    let mut arguments =
        vec!["-V".to_owned(), "--dataloss".to_owned(), format!("--test={test}"), url.to_owned()];
    if test.contains(".MultipathIO.") {
        arguments.push(second_path.to_owned());
    }
    let started = Instant::now();
    let finished = run(PROGRAM, &arguments, TEST_LIMIT);
    let (verdict, why) = judge(&finished.text, &finished.end);
    Report { verdict, why, took: started.elapsed() }
}

/// Reads the output of a run of one test.
fn judge(text: &str, end: &End) -> (Verdict, String) {
    let said = words_of_the_test(text);
    let first = |mark: &str| {
        let line = said.iter().find(|line| line.contains(mark));
        line.map(|line| line.split_once(mark).map_or("", |(_, after)| after).trim().to_owned())
    };
    let last_words = || said.last().map_or_else(|| last_line(text), |line| line.trim().to_owned());
    match end {
        End::TimedOut => return (Verdict::Hang, last_words()),
        End::Exited(_) if end.signal().is_some() => return (Verdict::Crash, last_words()),
        End::Exited(_) => {}
    }
    let marks = ["[OK]", "[SUCCESS]", UNMARKED_CHECK];
    let names_checks = said.iter().any(|line| marks.iter().any(|mark| line.contains(mark)));
    match counts(text) {
        Some(Counts { ran: 1, failed: 0, checks }) => match first("[SKIPPED]") {
            Some(why) => (Verdict::Skip, why),
            // Some count no checks, but say which held. One that does neither has looked at nothing; a single check
            // is the one that always holds, with which the suite leaves a test early.
            None if checks <= 1 && !names_checks => (Verdict::Skip, "nothing was checked".to_owned()),
            None => (Verdict::Pass, String::new()),
        },
        Some(Counts { ran: 1, failed: 1, .. }) => {
            (Verdict::Fail, first("[FAILED]").unwrap_or_else(|| failed_check(text)))
        }
        Some(_) => (Verdict::Error, "no such test, or no login".to_owned()),
        None => (Verdict::Error, last_line(text)),
    }
}

/// How many tests ran, how many of them failed, and how many checks they made.
struct Counts {
    ran: u32,
    failed: u32,
    checks: u32,
}

/// The run's summary: `tests TOTAL RAN PASSED FAILED INACTIVE`, and `asserts` likewise.
fn counts(text: &str) -> Option<Counts> {
    let (_, summary) = text.split_once("Run Summary:")?;
    let number = |row: &str, column: usize| {
        let mut rows = summary.lines().map(str::split_whitespace);
        let mut cells = rows.find_map(|mut cells| (cells.next() == Some(row)).then_some(cells))?;
        cells.nth(column)?.parse::<u32>().ok()
    };
    Some(Counts { ran: number("tests", 1)?, failed: number("tests", 3)?, checks: number("asserts", 1)? })
}

/// What was printed from the test's beginning to its end. What follows `passed` or `FAILED`, at a line's beginning
/// or behind the test's name, belongs to the clean-up, which skips things of its own.
fn words_of_the_test(text: &str) -> Vec<&str> {
    let mut lines = text.lines().skip_while(|line| !line.starts_with("  Test: "));
    let Some((_, first)) = lines.next().and_then(|line| line.split_once(" ...")) else {
        return Vec::new();
    };
    let is_end = |line: &str| line.starts_with("passed") || line.starts_with("FAILED");
    std::iter::once(first).chain(lines).take_while(|line| !is_end(line)).collect()
}

/// The first check that failed, as CUnit lists them: `    1. file.c:80  - CU_ASSERT_EQUAL(_r,0)`.
fn failed_check(text: &str) -> String {
    let line = text.lines().find(|line| line.trim_start().starts_with("1. "));
    line.map_or_else(String::new, |line| line.trim_start().trim_start_matches("1. ").to_owned())
}

fn last_line(text: &str) -> String {
    text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;
    use std::process::ExitStatus;

    fn summary(ran: u32, failed: u32, checks: u32) -> String {
        format!(
            "\n\nRun Summary:    Type  Total    Ran Passed Failed Inactive\n              suites      1      1    \
             n/a      0        0\n               tests      {ran}      {ran}      {}      {failed}        0\n             \
             asserts    {checks}    {checks}    {checks}      0      n/a\n",
            ran - failed
        )
    }

    fn judged(body: &str, ran: u32, failed: u32, wait_status: i32) -> (Verdict, String) {
        let text = format!("Suite: Read10\n{body}{}", summary(ran, failed, 8));
        judge(&text, &End::Exited(ExitStatus::from_raw(wait_status)))
    }

    /// Goal: each way a test can end is told from the others. Method: the program's output for each, shortened.
    #[test]
    fn verdicts() {
        assert_eq!(judged("  Test: Simple ...passed\n", 1, 0, 0).0, Verdict::Pass);
        let verbose = "  Test: Simple ...\n    Test READ10\n    [OK] READ10\npassed    Send PRIN/READ_KEYS\n";
        assert_eq!(judged(verbose, 1, 0, 0).0, Verdict::Pass);
        let failed =
            "  Test: ZeroBlocks ...    [FAILED] UNMAP command failed\nFAILED\n    1. a.c:80  - CU_FAIL\n";
        assert_eq!(judged(failed, 1, 1, 256), (Verdict::Fail, "UNMAP command failed".to_owned()));
        let silent = "  Test: ZeroBlocks ...\nFAILED\n    1. a.c:80  - CU_FAIL\n";
        assert_eq!(judged(silent, 1, 1, 256), (Verdict::Fail, "a.c:80  - CU_FAIL".to_owned()));
        assert_eq!(judged("", 0, 0, 0).0, Verdict::Error);
        assert_eq!(judged("  Test: Simple ...\n", 1, 0, 11).0, Verdict::Crash);
        assert_eq!(judge("Failed to log in\n", &End::Exited(ExitStatus::from_raw(256))).0, Verdict::Error);
        assert_eq!(judge("  Test: Simple ...\n", &End::TimedOut).0, Verdict::Hang);
    }

    /// Goal: a skip isn't taken for a pass, nor the clean-up's skips for the test's. Method: `[SKIPPED]` before and
    /// after the word that ends the test.
    #[test]
    fn a_skip_is_no_pass() {
        let skipped = "  Test: PwrCnd ...\n    [SKIPPED] LUN is not removable.\npassed\n";
        assert_eq!(judged(skipped, 1, 0, 0), (Verdict::Skip, "LUN is not removable.".to_owned()));
        let at_once = "  Test: Simple ...    [SKIPPED] Not implemented.\npassed\n";
        assert_eq!(judged(at_once, 1, 0, 0).0, Verdict::Skip);
        let later =
            "  Test: Simple ...\npassed    Send PRIN/READ_KEYS\n    [SKIPPED] PRIN is not implemented.\n";
        assert_eq!(judged(later, 1, 0, 0).0, Verdict::Pass);
        let at_its_side =
            "  Test: Simple ...passed    Send PRIN/READ_KEYS\n    [SKIPPED] PRIN is not implemented.\n";
        assert_eq!(judged(at_its_side, 1, 0, 0).0, Verdict::Pass);
    }

    /// Goal: a test that looked at nothing has shown nothing. Method: only the check that always holds, and none
    /// but words.
    #[test]
    fn an_empty_test_is_no_pass() {
        let judged = |checks: u32, body: &str| {
            judge(&format!("{body}{}", summary(1, 0, checks)), &End::Exited(ExitStatus::from_raw(0))).0
        };
        assert_eq!(judged(1, "  Test: CompareAndWrite ...passed\n"), Verdict::Skip);
        let unmarked = "  Test: Simple ...\n    Test ADDITIONAL_LENGTH matches DATA_IN size.\npassed\n";
        assert_eq!(judged(1, unmarked), Verdict::Pass);
        assert_eq!(judged(0, "  Test: VPD ...\n    [SUCCESS] LBPU is set.\npassed\n"), Verdict::Pass);
    }
}
