//! A run's figures, as a table for people and as JSON for programs.

use super::Outcome;
use super::ledger::{LATE_AFTER, Side, latencies};
use super::pace::Rate;
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
    json!({
        "ios": side.ios,
        "iops": (side.ios as f64 / seconds).round(),
        "bytes": side.bytes,
        "mb_per_s": (side.bytes as f64 / seconds / 1e5).round() / 10.0,
        "latency_us": latency_json(&side.latencies),
    })
}

/// Null without commands: zeroes would read as very fast ones.
fn latency_json(histogram: &Histogram<u64>) -> Value {
    if histogram.is_empty() {
        return Value::Null;
    }
    let mut latency = serde_json::Map::new();
    latency.insert("min".into(), json!(us(histogram.min())));
    latency.insert("mean".into(), json!((histogram.mean() / 100.0).round() / 10.0));
    for (name, quantile) in QUANTILES {
        latency.insert(name.into(), json!(us(histogram.value_at_quantile(quantile))));
    }
    latency.insert("max".into(), json!(us(histogram.max())));
    latency.into()
}

/// Points of the distribution for each halving of what lies above them: ten a decade.
const POINTS_PER_HALVING: u32 = 3;

/// Both directions' latencies: the usual quantiles, and as much of the distribution as a plot needs, as pairs of a
/// share of the commands below 1 and the microseconds that they took at most. Null without commands.
fn distribution_json(all: &Histogram<u64>) -> Value {
    if all.is_empty() {
        return Value::Null;
    }
    let mut points: Vec<(f64, f64)> = all
        .iter_quantiles(POINTS_PER_HALVING)
        .map(|point| (point.quantile(), us(point.value_iterated_to())))
        .filter(|&(share, _)| share < 1.0)
        .collect();
    points.dedup();
    json!({ "count": all.len(), "us": latency_json(all), "distribution": points })
}

/// Whether a direction has anything to tell. In an open loop that is far behind commands may end in the window although
/// none of its own were sent.
fn has_commands(side: &Side) -> bool {
    side.ios > 0 || !side.latencies.is_empty()
}

/// The open loop: rates are commands a second, lateness is that of the commands to be started in the window.
fn rate_json(outcome: &Outcome, rate: Rate) -> Value {
    let lateness = outcome.tally.lateness;
    json!({
        "asked": rate.per_second(),
        "reached": (outcome.reached() * 10.0).round() / 10.0,
        "saturated": outcome.is_saturated(),
        "timed": all_latencies(outcome).len(),
        "late": lateness.late,
        "late_after_us": us(LATE_AFTER.as_nanos() as u64),
        "late_max_us": us(lateness.longest.as_nanos() as u64),
        "unsent": lateness.unsent,
    })
}

/// The same as text.
fn rate_text(outcome: &Outcome, rate: Rate) -> String {
    let lateness = outcome.tally.lateness;
    let (asked, reached) = (rate.per_second(), outcome.reached());
    let mut text = format!(
        "rate: {asked} commands a second asked, {reached:.1} reached ({:.2} %); latencies count from the intended start\n\
         late: {} commands sent more than {} µs after it, or never; the longest wait {:.1} µs; {} never sent\n",
        reached / asked as f64 * 100.0,
        lateness.late,
        LATE_AFTER.as_micros(),
        us(lateness.longest.as_nanos() as u64),
        lateness.unsent,
    );
    if outcome.is_saturated() {
        text.push_str(
            "SATURATED: the schedule fell behind and wasn't caught up with by the end of the window, so the latencies \
             grow with --time; lower --rate, or let the generator have more under way: --qd, --sessions, --cpu\n",
        );
    }
    text
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
        "latency": distribution_json(&all_latencies(outcome)),
    });
    if let Some(rate) = outcome.rate {
        value["rate"] = rate_json(outcome, rate);
    }
    for (name, side) in [("read", &tally.reads), ("write", &tally.writes)] {
        if has_commands(side) {
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
        if !has_commands(side) {
            continue;
        }
        let latency = |us: f64| if histogram.is_empty() { "-".to_owned() } else { format!("{us:.1}") };
        let mut row = vec![
            name.to_owned(),
            format!("{:.0}", side.ios as f64 / seconds),
            format!("{:.1}", side.bytes as f64 / seconds / 1e6),
            latency(histogram.mean() / 1000.0),
        ];
        row.extend(QUANTILES.map(|(_, quantile)| latency(us(histogram.value_at_quantile(quantile)))));
        row.push(latency(us(histogram.max())));
        table.add_row(row);
    }
    let mut text = format!("{table}\nlogin: {}\n", outcome.terms);
    if let Some(rate) = outcome.rate {
        text.push_str(&rate_text(outcome, rate));
    }
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
        "rate": workload.rate.map(Rate::per_second),
        "warmup_s": workload.warmup.as_secs_f64(),
        "time_s": workload.time.as_secs_f64(),
        "verify": workload.verify,
        "precondition": workload.precondition,
        "seed": workload.seed,
        "generator_cpus": workload.cpus,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::RAW_TERMS;
    use crate::load::ledger::{Lateness, Tally};
    use std::time::Duration;

    fn outcome(rate: Option<u64>, ended: u64, lateness: Lateness) -> Outcome {
        let mut tally = Tally::new();
        tally.reads.ios = ended;
        tally.ended = ended;
        tally.lateness = lateness;
        Outcome {
            tally,
            terms: RAW_TERMS,
            capacity_bytes: 0,
            logical_block_bytes: 512,
            range_bytes: 0,
            time: Duration::from_secs(2),
            rate: rate.map(|rate| Rate::new(rate).unwrap()),
        }
    }

    /// Goal: the distribution has both directions, rises, and ends below the longest, which stands beside it; without
    /// commands there is none. Method: 1,000 latencies from 1 to 1,000 µs, a half of them of writes.
    #[test]
    fn the_distribution_is_told() {
        let mut outcome = outcome(None, 1000, Lateness::default());
        assert_eq!(to_json(&outcome)["latency"], Value::Null);
        for us in 1..=1000 {
            let tally = &mut outcome.tally;
            let side = if us % 2 == 0 { &mut tally.reads } else { &mut tally.writes };
            side.latencies.record(us * 1000).unwrap();
        }
        let value = &to_json(&outcome)["latency"];
        let middle = value["us"]["p50"].as_f64().unwrap();
        assert!(value["count"] == json!(1000) && (middle - 500.0).abs() < 1.0, "{value}");
        let points: Vec<(f64, f64)> = serde_json::from_value(value["distribution"].clone()).unwrap();
        assert!((20..60).contains(&points.len()), "{points:?}");
        assert!(points.windows(2).all(|two| two[0].0 < two[1].0 && two[0].1 < two[1].1), "{points:?}");
        for &(share, us) in &points {
            assert!(share < 1.0 && (us / 1000.0 - share).abs() < 0.003, "{share}: {us}");
        }
    }

    /// Goal: an open loop's report says what was asked, reached and late, and marks saturation; a closed loop's says
    /// nothing of it. Method: one of each, as text and as JSON.
    #[test]
    fn the_report_tells_of_the_schedule() {
        let lateness = Lateness { late: 12, unsent: 0, longest: Duration::from_micros(3456) };
        let mut kept_up = outcome(Some(1000), 1999, lateness);
        kept_up.tally.reads.latencies.record(50_000).unwrap();
        let text = to_text(&kept_up);
        for part in ["1000 commands a second asked, 999.5 reached (99.95 %)", "late: 12 ", "3456.0 µs"] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
        assert!(!text.contains("SATURATED"), "{text}");
        let value = to_json(&kept_up);
        assert_eq!(value["rate"]["reached"], json!(999.5));
        assert_eq!(value["rate"]["saturated"], json!(false));
        assert_eq!((&value["rate"]["late"], &value["rate"]["late_max_us"]), (&json!(12), &json!(3456.0)));
        assert_eq!((&value["read"]["ios"], &value["rate"]["timed"]), (&json!(1999), &json!(1)));
        assert_eq!(value["read"]["latency_us"]["p99.99"], json!(50.0));

        let behind = outcome(Some(1000), 500, Lateness { late: 1000, unsent: 1000, ..lateness });
        assert!(to_text(&behind).contains("SATURATED"));
        let value = to_json(&behind);
        assert_eq!(value["rate"]["saturated"], json!(true));
        assert_eq!(value["read"]["latency_us"], Value::Null, "none was timed, which isn't none at all");

        let closed = outcome(None, 500, Lateness::default());
        assert!(!to_text(&closed).contains("rate:"));
        assert_eq!(to_json(&closed).get("rate"), None);
    }
}
