//! `conformance.expected`: what every test of the suite shows on every unit, and why where that is not PASS.
//!
//! The list is a promise in both directions: a result that is worse or better, a test that it doesn't name and one
//! that is gone each fail the run. Read by `conformance.rs`.

use crate::suite::Verdict;
use std::collections::BTreeMap;
use std::fmt::Write;

/// Why a test does not pass on a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Another unit is meant for it, and there it passes.
    Unit,
    /// The suite is wrong, or can't be satisfied together with the standard.
    Suite,
    /// The command is not offered, and the target says so in every place where it has to.
    Unoffered,
}

impl Kind {
    const NAMES: [(Kind, &'static str); 3] =
        [(Kind::Unit, "unit"), (Kind::Suite, "suite"), (Kind::Unoffered, "unoffered")];

    fn named(name: &str) -> Option<Kind> {
        Kind::NAMES.iter().find(|(_, known)| *known == name).map(|(kind, _)| *kind)
    }
}

/// One test's line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// By unit, in the list's order; `None`: not run there.
    pub results: Vec<Option<Verdict>>,
    /// As written: `KIND: WORDS`. Empty if every result is a pass.
    pub reason: String,
}

/// The list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// The units' names: the columns.
    pub units: Vec<String>,
    /// By test.
    pub rows: BTreeMap<String, Row>,
}

impl Expected {
    /// Reads the list.
    ///
    /// # Errors
    /// What is wrong with it, with its line.
    pub fn parse(text: &str) -> Result<Expected, String> {
        let mut lines =
            text.lines().enumerate().filter(|(_, line)| !line.starts_with('#') && !line.trim().is_empty());
        let (_, head) = lines.next().ok_or("the list is empty")?;
        let mut head = head.split_whitespace();
        if head.next() != Some("test") {
            return Err("the first line names the columns: test UNIT...".to_owned());
        }
        let units: Vec<String> = head.map(str::to_owned).collect();
        let mut rows = BTreeMap::new();
        for (index, line) in lines {
            let told = |what: &str| format!("line {}: {what}: {line}", index + 1);
            let (test, row) = parse_row(line, units.len()).map_err(|what| told(&what))?;
            if rows.insert(test, row).is_some() {
                return Err(told("the test has a line already"));
            }
        }
        Ok(Expected { units, rows })
    }

    /// The list as text, in columns. `head` goes before it.
    pub fn print(&self, head: &str) -> String {
        let mut text = head.to_owned();
        let test_width = self.rows.keys().map(String::len).max().unwrap_or(0).max(4);
        let line = |name: &str, cells: Vec<String>, reason: &str| {
            let mut line = format!("{name:test_width$}");
            for (cell, unit) in cells.iter().zip(&self.units) {
                let width = unit.len().max(5);
                write!(line, "  {cell:width$}").expect("a String takes it");
            }
            format!("{} {reason}", line.trim_end()).trim_end().to_owned() + "\n"
        };
        text += &line("test", self.units.clone(), "");
        for (test, row) in &self.rows {
            let cell = |result: &Option<Verdict>| result.map_or_else(|| ".".to_owned(), |v| v.to_string());
            let reason = if row.reason.is_empty() { String::new() } else { format!(" | {}", row.reason) };
            text += &line(test, row.results.iter().map(cell).collect(), &reason);
        }
        text
    }
}

fn parse_row(line: &str, units: usize) -> Result<(String, Row), String> {
    let (cells, reason) = line.split_once('|').unwrap_or((line, ""));
    let mut cells = cells.split_whitespace();
    let test = cells.next().ok_or("no test")?.to_owned();
    let results: Vec<Option<Verdict>> = cells
        .map(|cell| match cell {
            "." => Ok(None),
            name => Verdict::named(name).map(Some).ok_or_else(|| format!("no such result as {name}")),
        })
        .collect::<Result<_, _>>()?;
    if results.len() != units {
        return Err(format!("{} results for {units} units", results.len()));
    }
    let reason = reason.trim().to_owned();
    check_reason(&results, &reason)?;
    Ok((test, Row { results, reason }))
}

/// A result that is no pass has a reason, and "another unit" is one only if a unit is there.
fn check_reason(results: &[Option<Verdict>], reason: &str) -> Result<(), String> {
    let passes = results.iter().flatten().filter(|verdict| **verdict == Verdict::Pass).count();
    let ran = results.iter().flatten().count();
    if ran == 0 {
        return Err("it runs nowhere".to_owned());
    }
    if passes == ran {
        return if reason.is_empty() { Ok(()) } else { Err("it passes everywhere: no reason".to_owned()) };
    }
    let kind = reason.split_once(':').and_then(|(kind, _)| Kind::named(kind));
    match kind {
        None => Err("what does not pass needs a reason: unit:, suite: or unoffered:".to_owned()),
        Some(Kind::Unit) if passes == 0 => Err("it passes on no unit".to_owned()),
        Some(Kind::Unit | Kind::Suite | Kind::Unoffered) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: what is printed is what is read. Method: a small list, twice round.
    #[test]
    fn reads_what_it_prints() {
        let text = "# head\ntest a longer-name\nSCSI.X.A PASS .\nSCSI.X.B SKIP PASS | unit: blocks\n";
        let list = Expected::parse(text).unwrap();
        assert_eq!(list.units, ["a", "longer-name"]);
        assert_eq!(list.rows["SCSI.X.A"].results, [Some(Verdict::Pass), None]);
        assert_eq!(Expected::parse(&list.print("# other head\n")).unwrap(), list);
    }

    /// Goal: a list that excuses too much is refused. Method: one wrong line each.
    #[test]
    fn refuses_a_lax_list() {
        let wrong = [
            "X FAIL PASS",
            "X FAIL PASS | because",
            "X SKIP SKIP | unit: the other one",
            "X PASS PASS | suite: none",
            "X . .",
            "X PASS",
            "X GOOD PASS",
            "X PASS PASS\nX PASS PASS",
        ];
        for lines in wrong {
            assert!(Expected::parse(&format!("test a b\n{lines}\n")).is_err(), "{lines}");
        }
        assert!(Expected::parse("").is_err());
    }
}
