//! What was measured, how far its rounds are apart, and what it was made of: one row an operation. There are no bars: what
//! an operation may take depends on the machine, and what it means on the case above it.

use crate::cases::{median, spread_percent};
use crate::machine;
use crate::pool::rows::digits;
use comfy_table::{Table, presets};
use serde_json::{Value, json};

/// In what a row's times are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Nanoseconds.
    Ns,
    /// Microseconds.
    Us,
}

impl Unit {
    fn name(self) -> &'static str {
        match self {
            Unit::Ns => "ns",
            Unit::Us => "µs",
        }
    }

    fn of_ns(self, ns: f64) -> f64 {
        match self {
            Unit::Ns => ns,
            Unit::Us => ns / 1e3,
        }
    }
}

/// What one operation goes over, if it is told as a rate, too.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Per {
    /// Nothing that is counted.
    Operation,
    /// So many bytes.
    Bytes(u64),
    /// So many records, on average: the operation is a commit.
    Records(f64),
}

/// See the module.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// The part of `bench micro`.
    pub case: &'static str,
    /// The operation.
    pub what: String,
    /// Nanoseconds it took, of each round.
    pub rounds_ns: Vec<f64>,
    /// How they are told.
    pub unit: Unit,
    /// What it goes over.
    pub per: Per,
    /// What it was made of.
    pub because: String,
}

impl Row {
    /// The median of the rounds, in [`Row::unit`].
    pub fn value(&self) -> f64 {
        self.unit.of_ns(median(&self.rounds_ns))
    }

    /// Largest round less smallest, in percent of the median.
    pub fn spread_percent(&self) -> f64 {
        spread_percent(&self.rounds_ns)
    }

    /// 10^9 bytes a second, of the median; bytes a nanosecond are just that. `None` if bytes aren't what is counted.
    pub fn gb_per_second(&self) -> Option<f64> {
        match self.per {
            Per::Bytes(bytes) => Some(bytes as f64 / median(&self.rounds_ns).max(1e-9)),
            Per::Operation | Per::Records(_) => None,
        }
    }

    /// What falls to one record, in nanoseconds. `None` if records aren't what is counted.
    pub fn ns_per_record(&self) -> Option<f64> {
        match self.per {
            Per::Records(records) if records > 0.0 => Some(median(&self.rounds_ns) / records),
            Per::Operation | Per::Bytes(_) | Per::Records(_) => None,
        }
    }

    fn rate(&self) -> String {
        match (self.per, self.gb_per_second(), self.ns_per_record()) {
            (_, Some(rate), _) => format!("{} GB/s", digits(rate)),
            (Per::Records(records), _, Some(ns)) => {
                let each = digits(self.unit.of_ns(ns));
                format!("{} records a commit, {each} {} each", digits(records), self.unit.name())
            }
            _ => String::new(),
        }
    }

    /// Value, spread and rate in words.
    pub fn sentence(&self) -> String {
        let (value, spread) = (digits(self.value()), digits(self.spread_percent()));
        let rate = self.rate();
        let rate = if rate.is_empty() { rate } else { format!(", {rate}") };
        format!("{} {}: {value} {}, spread {spread} %{rate}", self.case, self.what, self.unit.name())
    }

    fn to_json(&self) -> Value {
        let rounds: Vec<f64> = self.rounds_ns.iter().map(|&ns| self.unit.of_ns(ns)).collect();
        let mut value = json!({
            "case": self.case, "what": self.what, "value": self.value(), "unit": self.unit.name(),
            "spread_percent": self.spread_percent(), "rounds": rounds, "because": self.because,
        });
        if let Some(rate) = self.gb_per_second() {
            value["gb_per_second"] = json!(rate);
        }
        if let Per::Records(records) = self.per {
            value["records_per_commit"] = json!(records);
        }
        if let Some(ns) = self.ns_per_record() {
            value["ns_per_record"] = json!(ns);
        }
        value
    }
}

/// Prints all of them.
pub fn print(rows: &[Row], as_json: bool) {
    if as_json {
        let rows: Vec<Value> = rows.iter().map(Row::to_json).collect();
        println!("{:#}", json!({ "rows": rows, "machine": machine::facts() }));
        return;
    }
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    table.set_header(["case", "what", "median", "spread", "rate", "because"]);
    for row in rows {
        table.add_row([
            row.case.to_owned(),
            row.what.clone(),
            format!("{} {}", digits(row.value()), row.unit.name()),
            format!("{} %", digits(row.spread_percent())),
            row.rate(),
            row.because.clone(),
        ]);
    }
    println!("{table}\n{}", machine::sentence());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(rounds_ns: &[f64], unit: Unit, per: Per) -> Row {
        Row { case: "c", what: "w".into(), rounds_ns: rounds_ns.to_vec(), unit, per, because: String::new() }
    }

    fn is_near(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-9
    }

    /// Goal: medians, spreads and rates in their units. Method: by hand.
    #[test]
    fn arithmetic() {
        let scan = row(&[90.0, 110.0, 100.0], Unit::Ns, Per::Bytes(4096));
        assert!(is_near(scan.value(), 100.0) && is_near(scan.spread_percent(), 20.0));
        assert!(scan.gb_per_second().is_some_and(|rate| is_near(rate, 40.96)));
        assert_eq!((scan.ns_per_record(), scan.rate().as_str()), (None, "41.0 GB/s"));
        let commit = row(&[64_000.0], Unit::Us, Per::Records(32.0));
        assert!(is_near(commit.value(), 64.0) && is_near(commit.spread_percent(), 0.0));
        assert!(commit.ns_per_record().is_some_and(|ns| is_near(ns, 2000.0)));
        assert_eq!(commit.gb_per_second(), None);
        assert_eq!(commit.sentence(), "c w: 64.0 µs, spread 0.000 %, 32.0 records a commit, 2.00 µs each");
        let plain = row(&[5.0], Unit::Ns, Per::Operation);
        assert_eq!(plain.sentence(), "c w: 5.00 ns, spread 0.000 %");
    }

    /// Goal: no figure is infinite or no number, whatever was measured. Method: no rounds, rounds of nothing, no records.
    #[test]
    fn nothing_measured_is_told_as_a_number() {
        for rounds in [&[][..], &[0.0]] {
            for per in [Per::Operation, Per::Bytes(1), Per::Records(0.0)] {
                let row = row(rounds, Unit::Ns, per);
                assert!(row.value().is_finite() && row.spread_percent().is_finite());
                assert!(row.gb_per_second().is_none_or(f64::is_finite) && row.ns_per_record().is_none());
            }
        }
    }

    /// Goal: JSON says what the table says, in the row's unit, and rates only where there are some. Method: by hand.
    #[test]
    fn json() {
        let commit = row(&[1000.0, 3000.0], Unit::Us, Per::Records(4.0)).to_json();
        assert_eq!(commit["rounds"], json!([1.0, 3.0]));
        assert_eq!((&commit["value"], &commit["unit"]), (&json!(2.0), &json!("µs")));
        assert_eq!((&commit["records_per_commit"], &commit["ns_per_record"]), (&json!(4.0), &json!(500.0)));
        assert!(commit.get("gb_per_second").is_none());
        let scan = row(&[2.0], Unit::Ns, Per::Bytes(8)).to_json();
        assert_eq!((&scan["gb_per_second"], scan.get("ns_per_record")), (&json!(4.0), None));
    }
}
