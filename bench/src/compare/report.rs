//! What `bench compare` has measured, as a table for people and as JSON for programs.

use crate::cases::{self, Case};
use crate::ceiling::unit;
use comfy_table::{Table, presets};
use serde_json::{Value, json};

/// One target in one case.
#[derive(Debug, Default)]
pub(super) struct Cell {
    pub(super) rates: Vec<f64>,
    pub(super) p50_us: Vec<f64>,
    pub(super) p99_us: Vec<f64>,
    pub(super) p999_us: Vec<f64>,
    /// CPU time of the target while it was loaded, in percent of one CPU.
    pub(super) cpu_percent: Vec<f64>,
    pub(super) errors: u64,
}

fn cell_json(name: &str, case: &Case, cell: &Cell, base: f64) -> Value {
    let middle = cases::median(&cell.rates);
    json!({
        "target": name,
        "unit": unit(case),
        "rates": cell.rates,
        "median": middle,
        "spread_percent": cases::spread_percent(&cell.rates),
        "ratio_to_last": if base > 0.0 { middle / base } else { 0.0 },
        "p50_us": cases::median(&cell.p50_us),
        "p99_us": cases::median(&cell.p99_us),
        "p99.9_us": cases::median(&cell.p999_us),
        "target_cpu_percent": (!cell.cpu_percent.is_empty()).then(|| cases::median(&cell.cpu_percent)),
        "errors": cell.errors,
    })
}

fn base_of(cells: &[Cell]) -> f64 {
    cells.last().map_or(0.0, |cell| cases::median(&cell.rates))
}

pub(super) fn to_json(names: &[&str], rows: &[(Case, Vec<Cell>)]) -> Vec<Value> {
    let row = |(case, cells): &(Case, Vec<Cell>)| {
        let base = base_of(cells);
        let cells: Vec<Value> =
            names.iter().zip(cells).map(|(name, cell)| cell_json(name, case, cell, base)).collect();
        json!({ "case": case.name(), "targets": cells })
    };
    rows.iter().map(row).collect()
}

pub(super) fn to_table(names: &[&str], rows: &[(Case, Vec<Cell>)]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    let last = names.last().copied().unwrap_or_default();
    let ratio = format!("÷ {last}");
    table.set_header([
        "case",
        "target",
        "median",
        "",
        &ratio,
        "spread %",
        "p50 µs",
        "p99 µs",
        "p99.9 µs",
        "CPU %",
        "errors",
    ]);
    for (case, cells) in rows {
        let base = base_of(cells);
        for (name, cell) in names.iter().zip(cells) {
            let middle = cases::median(&cell.rates);
            table.add_row([
                case.name(),
                (*name).to_owned(),
                format!("{middle:.0}"),
                unit(case).to_owned(),
                if base > 0.0 { format!("{:.2}", middle / base) } else { "-".into() },
                format!("{:.1}", cases::spread_percent(&cell.rates)),
                format!("{:.1}", cases::median(&cell.p50_us)),
                format!("{:.1}", cases::median(&cell.p99_us)),
                format!("{:.1}", cases::median(&cell.p999_us)),
                if cell.cpu_percent.is_empty() {
                    "-".into()
                } else {
                    format!("{:.0}", cases::median(&cell.cpu_percent))
                },
                cell.errors.to_string(),
            ]);
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the last target is the measure of the others. Method: two cells by hand.
    #[test]
    fn ratios_are_to_the_last() {
        let case = cases::matching("4k randread qd32")[0];
        let cell = |rates: &[f64]| Cell { rates: rates.to_vec(), ..Cell::default() };
        let rows = vec![(case, vec![cell(&[300.0, 100.0, 200.0]), cell(&[50.0])])];
        let value = &to_json(&["pollux", "tgt"], &rows)[0];
        assert_eq!(value["targets"][0]["median"], json!(200.0));
        assert_eq!(value["targets"][0]["ratio_to_last"], json!(4.0));
        assert_eq!(value["targets"][1]["ratio_to_last"], json!(1.0));
    }
}
