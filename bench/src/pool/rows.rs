//! What was measured, what it should be, and what it was made of: one row a bar.

use crate::machine;
use comfy_table::{Table, presets};
use serde_json::{Value, json};
use std::borrow::Cow;

/// What a value has to be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bar {
    /// At least this.
    Least(f64),
    /// At most this.
    Most(f64),
}

/// See the module.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// The part of `bench pool`, or the case of `bench compare`.
    pub case: Cow<'static, str>,
    /// What was measured.
    pub what: String,
    /// How much.
    pub value: f64,
    /// Of what.
    pub unit: &'static str,
    /// What it has to be.
    pub bar: Bar,
    /// What it was made of.
    pub because: String,
}

impl Row {
    /// Whether the bar is met.
    pub fn is_met(&self) -> bool {
        match self.bar {
            Bar::Least(bar) => self.value >= bar,
            Bar::Most(bar) => self.value <= bar,
        }
    }

    fn to_json(&self) -> Value {
        let (kind, bar) = match self.bar {
            Bar::Least(bar) => ("at_least", bar),
            Bar::Most(bar) => ("at_most", bar),
        };
        json!({
            "case": self.case, "what": self.what, "value": self.value, "unit": self.unit,
            kind: bar, "met": self.is_met(), "because": self.because,
        })
    }
}

/// A number with three digits that say something.
pub fn digits(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 0.1 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

/// Prints all of them.
pub fn print(rows: &[Row], as_json: bool) {
    if as_json {
        println!("{:#}", json!({ "rows": to_json(rows), "machine": machine::facts() }));
    } else {
        println!("{}\n{}", to_table(rows), machine::sentence());
    }
}

/// All of them for programs.
pub fn to_json(rows: &[Row]) -> Vec<Value> {
    rows.iter().map(Row::to_json).collect()
}

/// All of them for people.
pub fn to_table(rows: &[Row]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    table.set_header(["case", "what", "value", "bar", "met", "because"]);
    for row in rows {
        let bar = match row.bar {
            Bar::Least(bar) => format!("≥ {}", digits(bar)),
            Bar::Most(bar) => format!("≤ {}", digits(bar)),
        };
        table.add_row([
            row.case.clone().into_owned(),
            row.what.clone(),
            format!("{} {}", digits(row.value), row.unit).trim_end().to_owned(),
            bar,
            if row.is_met() { "yes" } else { "NO" }.to_owned(),
            row.because.clone(),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: bars are met from their own side. Method: by hand.
    #[test]
    fn bars() {
        let row = |value, bar| Row {
            case: "".into(),
            what: String::new(),
            value,
            unit: "",
            bar,
            because: String::new(),
        };
        assert!(row(0.95, Bar::Least(0.95)).is_met() && !row(0.94, Bar::Least(0.95)).is_met());
        assert!(row(3.0, Bar::Most(3.0)).is_met() && !row(3.1, Bar::Most(3.0)).is_met());
        assert_eq!(
            (digits(1234.5), digits(12.34), digits(0.951), digits(0.0123)),
            ("1234".into(), "12.3".into(), "0.95".into(), "0.012".into())
        );
    }
}
