//! What `bench compare` has measured, as a table for people and as JSON for programs.
//!
//! Ratios are medians of pairs: each repeat's figure over the same repeat's figure of the last target. A machine whose speed
//! jumps between repeats moves both sides of a pair alike, and moves two medians that were taken apart as it likes.

use crate::cases::{self, Case, Quartiles};
use crate::ceiling::unit;
use comfy_table::{Table, presets};
use serde_json::{Map, Value, json};

/// What one measurement said.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Said {
    /// In the case's unit.
    pub(super) rate: f64,
    pub(super) p50_us: f64,
    pub(super) p99_us: f64,
    pub(super) p999_us: f64,
}

/// One target in one case.
#[derive(Debug, Default)]
pub(super) struct Cell {
    /// Of each repeat.
    pub(super) said: Vec<Said>,
    /// CPU time of the target while it was loaded, in percent of one CPU.
    pub(super) cpu_percent: Vec<f64>,
    pub(super) errors: u64,
}

/// What is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Figure {
    /// Commands or bytes a second.
    Rate,
    /// Latencies.
    P50,
    P99,
    P999,
}

impl Figure {
    pub(super) const ALL: [Figure; 4] = [Figure::Rate, Figure::P50, Figure::P99, Figure::P999];
    const LATENCIES: [Figure; 3] = [Figure::P50, Figure::P99, Figure::P999];

    pub(super) fn name(self) -> &'static str {
        match self {
            Figure::Rate => "rate",
            Figure::P50 => "p50",
            Figure::P99 => "p99",
            Figure::P999 => "p99.9",
        }
    }

    fn of(self, said: &Said) -> f64 {
        match self {
            Figure::Rate => said.rate,
            Figure::P50 => said.p50_us,
            Figure::P99 => said.p99_us,
            Figure::P999 => said.p999_us,
        }
    }
}

impl Cell {
    fn all(&self, figure: Figure) -> Vec<f64> {
        self.said.iter().map(|said| figure.of(said)).collect()
    }

    /// Each repeat's figure over the same repeat's of `base`; those in which either had none are no pairs.
    pub(super) fn pairs(&self, base: &Cell, figure: Figure) -> Vec<f64> {
        let both = self.all(figure).into_iter().zip(base.all(figure));
        both.filter(|&(ours, theirs)| ours > 0.0 && theirs > 0.0)
            .map(|(ours, theirs)| ours / theirs)
            .collect()
    }
}

fn pairs_json(pairs: &[f64]) -> Value {
    let of = |pick: fn(Quartiles) -> f64| cases::quartiles(pairs).map(pick);
    json!({
        "pairs": pairs,
        "quartile_1": of(|quartiles| quartiles.first),
        "median": of(|quartiles| quartiles.median),
        "quartile_3": of(|quartiles| quartiles.third),
    })
}

fn cell_json(name: &str, case: &Case, cell: &Cell, base: &Cell) -> Value {
    let rates = cell.all(Figure::Rate);
    let ratios: Map<String, Value> = Figure::ALL
        .iter()
        .map(|&figure| (figure.name().to_owned(), pairs_json(&cell.pairs(base, figure))))
        .collect();
    let mut value = json!({
        "target": name,
        "unit": unit(case),
        "median": cases::median(&rates),
        "spread_percent": cases::spread_percent(&rates),
        "rates": rates,
        "ratio_to_last": ratios["rate"]["median"],
        "ratios_to_last": ratios,
        "target_cpu_percent": (!cell.cpu_percent.is_empty()).then(|| cases::median(&cell.cpu_percent)),
        "errors": cell.errors,
    });
    for figure in Figure::LATENCIES {
        let all = cell.all(figure);
        value[format!("{}_us", figure.name())] = json!(cases::median(&all));
        value[format!("{}s_us", figure.name())] = json!(all);
    }
    value
}

pub(super) fn to_json(names: &[&str], rows: &[(Case, Vec<Cell>)]) -> Vec<Value> {
    let row = |(case, cells): &(Case, Vec<Cell>)| {
        let base = cells.last();
        let cell = |(name, cell): (&&str, &Cell)| cell_json(name, case, cell, base.unwrap_or(cell));
        let cells: Vec<Value> = names.iter().zip(cells).map(cell).collect();
        json!({ "case": case.name(), "targets": cells })
    };
    rows.iter().map(row).collect()
}

pub(super) fn to_table(names: &[&str], rows: &[(Case, Vec<Cell>)]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    let last = names.last().copied().unwrap_or_default();
    table.set_header([
        "case",
        "target",
        "median",
        "",
        &format!("÷ {last}"),
        "quartiles",
        "spread %",
        "p50 µs",
        "÷",
        "p99 µs",
        "÷",
        "p99.9 µs",
        "÷",
        "CPU %",
        "errors",
    ]);
    for (case, cells) in rows {
        let Some(base) = cells.last() else { continue };
        for (name, cell) in names.iter().zip(cells) {
            let rates = cell.all(Figure::Rate);
            let quartiles = cases::quartiles(&cell.pairs(base, Figure::Rate));
            let mut row = vec![
                case.name(),
                (*name).to_owned(),
                format!("{:.0}", cases::median(&rates)),
                unit(case).to_owned(),
                or_dash(quartiles, |quartiles| format!("{:.2}", quartiles.median)),
                or_dash(quartiles, |quartiles| format!("{:.2} {:.2}", quartiles.first, quartiles.third)),
                format!("{:.1}", cases::spread_percent(&rates)),
            ];
            for figure in Figure::LATENCIES {
                let ratio = cases::quartiles(&cell.pairs(base, figure));
                row.push(format!("{:.1}", cases::median(&cell.all(figure))));
                row.push(or_dash(ratio, |ratio| format!("{:.2}", ratio.median)));
            }
            let cpu = (!cell.cpu_percent.is_empty()).then(|| cases::median(&cell.cpu_percent));
            row.push(or_dash(cpu, |percent| format!("{percent:.0}")));
            row.push(cell.errors.to_string());
            table.add_row(row);
        }
    }
    table
}

/// What isn't known is no zero.
fn or_dash<T>(value: Option<T>, words: impl Fn(T) -> String) -> String {
    value.map_or_else(|| "-".to_owned(), words)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell(rates: &[f64]) -> Cell {
        let said = |&rate: &f64| Said { rate, p50_us: 1e6 / rate, p99_us: 2e6 / rate, p999_us: 0.0 };
        Cell { said: rates.iter().map(said).collect(), ..Cell::default() }
    }

    /// Goal: a ratio is the median of pairs of one repeat, so a machine that gets twice as fast in between doesn't move it.
    /// Method: three repeats by hand whose medians over medians would be 3 and whose pairs are 2, 2 and 1.5.
    #[test]
    fn ratios_are_of_pairs() {
        let case = cases::matching("4k randread qd32")[0];
        let rows = vec![(case, vec![cell(&[200.0, 600.0, 300.0]), cell(&[100.0, 300.0, 200.0])])];
        let value = &to_json(&["pollux", "tgt"], &rows)[0];
        let first = &value["targets"][0];
        assert_eq!(first["median"], json!(300.0));
        assert_eq!(first["ratio_to_last"], json!(2.0));
        assert_eq!(first["ratios_to_last"]["rate"]["pairs"], json!([2.0, 2.0, 1.5]));
        assert_eq!(first["ratios_to_last"]["rate"]["quartile_1"], json!(1.75));
        assert_eq!(first["ratios_to_last"]["p50"]["median"], json!(0.5));
        assert_eq!(first["p50s_us"], json!([5000.0, 1e6 / 600.0, 1e6 / 300.0]));
        assert_eq!(value["targets"][1]["ratio_to_last"], json!(1.0));
    }

    /// Goal: what has no pairs is told as unknown, in both forms. Method: a latency of zero, as a run without commands
    /// has, and no repeats at all.
    #[test]
    fn no_pairs_are_no_ratio() {
        let case = cases::matching("4k randread qd32")[0];
        let rows = vec![(case, vec![cell(&[200.0]), cell(&[100.0])])];
        let value = &to_json(&["pollux", "tgt"], &rows)[0]["targets"][0];
        assert_eq!(
            value["ratios_to_last"]["p99.9"],
            json!({ "pairs": [], "quartile_1": null, "median": null, "quartile_3": null })
        );
        let text = to_table(&["pollux", "tgt"], &rows).to_string();
        assert!(text.contains("÷ tgt") && text.contains("2.00 2.00") && text.contains('-'), "{text}");
        assert_eq!(
            to_json(&["pollux"], &[(case, vec![Cell::default()])])[0]["targets"][0]["ratio_to_last"],
            Value::Null
        );
    }
}
