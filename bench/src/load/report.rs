//! A run's figures, as a table for people and as JSON for programs.

use super::Outcome;
use super::ledger::{Side, latencies};
use comfy_table::{Table, presets};
use hdrhistogram::Histogram;
use serde_json::{Value, json};

/// The quantiles that are told, with their names.
pub const QUANTILES: [(&str, f64); 6] =
    [("p50", 0.5), ("p90", 0.9), ("p95", 0.95), ("p99", 0.99), ("p99.9", 0.999), ("p99.99", 0.9999)];

/// Nanoseconds as microseconds, one digit behind the point.
pub fn us(ns: u64) -> f64 {
    (ns as f64 / 100.0).round() / 10.0
}

/// Both directions' latencies in one histogram, in nanoseconds.
pub fn all_latencies(outcome: &Outcome) -> Histogram<u64> {
    let mut all = latencies();
    all += &outcome.tally.reads.latencies;
    all += &outcome.tally.writes.latencies;
    all
}

/// One direction: how many, how fast, how long each took.
fn side_json(side: &Side, seconds: f64) -> Value {
    let histogram = &side.latencies;
    let mut latency = serde_json::Map::new();
    latency.insert("min".into(), json!(us(histogram.min())));
    latency.insert("mean".into(), json!((histogram.mean() / 100.0).round() / 10.0));
    for (name, quantile) in QUANTILES {
        latency.insert(name.into(), json!(us(histogram.value_at_quantile(quantile))));
    }
    latency.insert("max".into(), json!(us(histogram.max())));
    json!({
        "ios": histogram.len(),
        "iops": (histogram.len() as f64 / seconds).round(),
        "bytes": side.bytes,
        "mb_per_s": (side.bytes as f64 / seconds / 1e5).round() / 10.0,
        "latency_us": latency,
    })
}

/// The whole outcome; rates are per second of the window, MB are 10^6 bytes, latencies microseconds.
pub fn to_json(outcome: &Outcome) -> Value {
    let seconds = outcome.time.as_secs_f64();
    let tally = &outcome.tally;
    let mut value = json!({
        "seconds": seconds,
        "iops": outcome.iops().round(),
        "mb_per_s": (outcome.bytes_per_second() / 1e5).round() / 10.0,
        "errors": tally.errors,
        "first_errors": tally.first_errors,
        "sends": tally.sends,
        "receives": tally.receives,
        "terms": outcome.terms.to_string(),
        "capacity_bytes": outcome.capacity_bytes,
        "logical_block_bytes": outcome.logical_block_bytes,
        "range_bytes": outcome.range_bytes,
    });
    for (name, side) in [("read", &tally.reads), ("write", &tally.writes)] {
        if !side.latencies.is_empty() {
            value[name] = side_json(side, seconds);
        }
    }
    if tally.checked + tally.unchecked > 0 {
        value["verified"] = json!({ "checked": tally.checked, "unknown": tally.unchecked });
    }
    value
}

/// The outcome as text: a row for each direction that had commands, and what a reader must know beside.
pub fn to_text(outcome: &Outcome) -> String {
    let seconds = outcome.time.as_secs_f64();
    let tally = &outcome.tally;
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    let mut header = vec!["", "IOPS", "MB/s", "mean µs"];
    header.extend(QUANTILES.map(|(name, _)| name));
    header.push("max");
    table.set_header(header);
    for (name, side) in [("read", &tally.reads), ("write", &tally.writes)] {
        let histogram = &side.latencies;
        if histogram.is_empty() {
            continue;
        }
        let mut row = vec![
            name.to_owned(),
            format!("{:.0}", histogram.len() as f64 / seconds),
            format!("{:.1}", side.bytes as f64 / seconds / 1e6),
            format!("{:.1}", histogram.mean() / 1000.0),
        ];
        row.extend(
            QUANTILES.map(|(_, quantile)| format!("{:.1}", us(histogram.value_at_quantile(quantile)))),
        );
        row.push(format!("{:.1}", us(histogram.max())));
        table.add_row(row);
    }
    let mut text = format!("{table}\nlogin: {}\n", outcome.terms);
    if tally.checked + tally.unchecked > 0 {
        let (right, unknown) = (tally.checked, tally.unchecked);
        text.extend([format!(
            "verified: {right} reads right, {unknown} of blocks this run hadn't written\n"
        )]);
    }
    if tally.errors > 0 {
        text.extend([format!("{} commands ended with an error, the first:\n", tally.errors)]);
        text.extend(tally.first_errors.iter().map(|error| format!("  {error}\n")));
    }
    text
}

/// What was done, beside what came of it.
pub fn workload_json(workload: &super::Workload) -> Value {
    json!({
        "block_bytes": workload.block_bytes,
        "pattern": workload.pattern.name(),
        "read_percent": workload.pattern.read_percent(workload.mix),
        "depth": workload.depth,
        "sessions": workload.sessions,
        "warmup_s": workload.warmup.as_secs_f64(),
        "time_s": workload.time.as_secs_f64(),
        "verify": workload.verify,
        "precondition": workload.precondition,
        "seed": workload.seed,
        "generator_cpus": workload.cpus,
    })
}
