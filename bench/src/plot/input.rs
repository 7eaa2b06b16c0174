//! What `bench plot` takes from bench's own JSON. Invariant: every number is within 0 and [`NUMBER_MAX`], so that scales exist,
//! and shares of commands are below 1.

use crate::cases::Quartiles;
use crate::failure::{Context, Failure};
use serde_json::Value;
use std::fs;
use std::path::Path;

/// Of latencies against load.
pub(super) const QUANTILES: [&str; 3] = ["p50", "p99", "p99.9"];
/// What `compare` has ratios of.
pub(super) const FIGURES: [&str; 4] = ["rate", "p50", "p99", "p99.9"];
/// Far above any rate, count or time; axes of more would have no room for their figures.
const NUMBER_MAX: f64 = 1e12;

/// One file.
#[derive(Debug)]
pub(super) enum Input {
    Load(Load),
    Compared(Compared),
}

/// A result of `bench load`.
#[derive(Debug)]
pub(super) struct Load {
    /// Target and shape of the load: results that have it in common are a line.
    pub(super) series: String,
    /// That, and how much load it was.
    pub(super) label: String,
    /// What was asked for: commands a second, in a closed loop commands under way.
    pub(super) offered: f64,
    pub(super) iops: f64,
    /// As [`QUANTILES`].
    pub(super) quantiles_us: [f64; 3],
    /// Commands that were timed.
    pub(super) count: f64,
    pub(super) max_us: f64,
    /// Shares of the commands, and what they took at most.
    pub(super) distribution: Vec<(f64, f64)>,
    pub(super) saturated: bool,
}

/// A result of `bench compare`.
#[derive(Debug)]
pub(super) struct Compared {
    /// What the others are told as ratios to.
    pub(super) last: String,
    pub(super) rows: Vec<Row>,
}

/// One target in one case.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) case: String,
    pub(super) target: String,
    /// As [`FIGURES`]; none without pairs.
    pub(super) ratios: [Option<Quartiles>; 4],
}

/// Reads one file.
///
/// # Errors
/// It can't be read, or is no result; with its name.
pub(super) fn read(path: &Path) -> Result<Input, Failure> {
    let text = fs::read_to_string(path).doing(format!("reading {}", path.display()))?;
    parse(&text).map_err(|failure| failure.at(path.display()))
}

fn parse(text: &str) -> Result<Input, Failure> {
    let value: Value = serde_json::from_str(text).doing("this is no JSON")?;
    if value.get("compared").is_some() {
        Ok(Input::Compared(compared(&value)?))
    } else if value.get("latency").is_some() {
        Ok(Input::Load(load(&value)?))
    } else {
        Err(Failure::new(
            "this is no result of `bench load --json` or `bench compare --json` (it has neither \"latency\" nor \
             \"compared\"): make one with this version of bench",
        ))
    }
}

fn load(value: &Value) -> Result<Load, Failure> {
    if value["latency"].is_null() {
        return Err(Failure::new("no command was timed, so there is nothing to plot: leave this file out"));
    }
    let number = |place: &str| number(value, place);
    let (block, depth, sessions) =
        (number("/workload/block_bytes")?, number("/workload/depth")?, number("/workload/sessions")?);
    let asked = value.pointer("/rate/asked").map(|_| number("/rate/asked")).transpose()?;
    let shape = format!(
        "{}, {} {}{}",
        word(value, "/name")?,
        size(block),
        word(value, "/workload/pattern")?,
        match number("/workload/read_percent")? {
            percent if percent > 0.0 && percent < 100.0 => format!(" {percent:.0} %"),
            _ => String::new(),
        },
    );
    let amount = match asked {
        Some(rate) => format!("{rate:.0}/s"),
        None if sessions > 1.0 => format!("{sessions:.0}x{depth:.0}"),
        None => format!("qd{depth:.0}"),
    };
    Ok(Load {
        series: format!("{shape}, {} loop", if asked.is_some() { "open" } else { "closed" }),
        label: format!("{shape}, {amount}"),
        offered: asked.unwrap_or(depth * sessions),
        iops: number("/iops")?,
        quantiles_us: [number("/latency/us/p50")?, number("/latency/us/p99")?, number("/latency/us/p99.9")?],
        count: number("/latency/count")?,
        max_us: number("/latency/us/max")?,
        distribution: distribution(value)?,
        saturated: value.pointer("/rate/saturated").and_then(Value::as_bool).unwrap_or(false),
    })
}

fn distribution(value: &Value) -> Result<Vec<(f64, f64)>, Failure> {
    let points = list(value, "/latency/distribution")?;
    let point = |index: usize| {
        let at = |part: usize| number(value, &format!("/latency/distribution/{index}/{part}"));
        let (share, us) = (at(0)?, at(1)?);
        // As good as all of them would be infinitely far to the right.
        if share > 1.0 - 1.0 / NUMBER_MAX {
            return Err(Failure::new(format!("/latency/distribution/{index}: {share} is no share below 1")));
        }
        Ok((share, us))
    };
    (0..points.len()).map(point).collect()
}

fn compared(value: &Value) -> Result<Compared, Failure> {
    let mut last = None;
    let mut rows = Vec::new();
    for case in 0..list(value, "/compared")?.len() {
        let place = format!("/compared/{case}");
        let targets = list(value, &format!("{place}/targets"))?.len();
        let name = word(value, &format!("{place}/case"))?;
        for target in 0..targets {
            let place = format!("{place}/targets/{target}");
            let called = word(value, &format!("{place}/target"))?;
            if target + 1 == targets {
                last = Some(called.to_owned());
                continue;
            }
            let mut ratios = [None; 4];
            for (ratio, figure) in ratios.iter_mut().zip(FIGURES) {
                *ratio = quartiles(value, &format!("{place}/ratios_to_last/{figure}"))?;
            }
            rows.push(Row { case: name.to_owned(), target: called.to_owned(), ratios });
        }
    }
    match last {
        Some(last) if !rows.is_empty() => Ok(Compared { last, rows }),
        _ => Err(Failure::new("nothing is compared in this: give `bench compare` two targets or more")),
    }
}

/// None where there were no pairs.
fn quartiles(value: &Value, place: &str) -> Result<Option<Quartiles>, Failure> {
    let Some(of) = value.pointer(place) else {
        return Err(missing(place, "ratios"));
    };
    if of["median"].is_null() {
        return Ok(None);
    }
    let number = |part: &str| number(value, &format!("{place}/{part}"));
    let (first, median, third) = (number("quartile_1")?, number("median")?, number("quartile_3")?);
    Ok(Some(Quartiles { first, median, third }))
}

fn number(value: &Value, place: &str) -> Result<f64, Failure> {
    let number = value.pointer(place).and_then(Value::as_f64).ok_or_else(|| missing(place, "a number"))?;
    if (0.0..=NUMBER_MAX).contains(&number) {
        return Ok(number);
    }
    Err(Failure::new(format!("{place}: {number} is not between 0 and {NUMBER_MAX:e}")))
}

fn word<'a>(value: &'a Value, place: &str) -> Result<&'a str, Failure> {
    value.pointer(place).and_then(Value::as_str).ok_or_else(|| missing(place, "a string"))
}

fn list<'a>(value: &'a Value, place: &str) -> Result<&'a [Value], Failure> {
    value.pointer(place).and_then(Value::as_array).map(Vec::as_slice).ok_or_else(|| missing(place, "a list"))
}

fn missing(place: &str, what: &str) -> Failure {
    Failure::new(format!("{place} isn't {what}: make the file with this version of bench"))
}

/// As cases' names have it.
fn size(bytes: f64) -> String {
    match bytes as u64 {
        bytes if bytes >= 1 << 20 && bytes.is_multiple_of(1 << 20) => format!("{}M", bytes >> 20),
        bytes if bytes >= 1 << 10 && bytes.is_multiple_of(1 << 10) => format!("{}k", bytes >> 10),
        bytes => bytes.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: what isn't bench's is told with the file's name, what is wrong in it and what to do. Method: a file that isn't
    /// there, and wrong ones of each kind.
    #[test]
    fn wrong_files_are_told() {
        let failure = read(Path::new("/nonexistent/x.json")).unwrap_err().to_string();
        assert!(failure.contains("/nonexistent/x.json"), "{failure}");
        let dir = crate::process::Scratch::new(&std::env::temp_dir()).unwrap();
        let path = dir.path().join("odd.json");
        for (text, cure) in [
            ("", "no JSON"),
            ("[1]", "bench load --json"),
            (r#"{"ceiling": []}"#, "bench load --json"),
            (r#"{"latency": null}"#, "leave this file out"),
            (r#"{"latency": {}}"#, "/workload/block_bytes isn't a number"),
            (r#"{"latency": 1, "workload": {"block_bytes": -1}}"#, "-1 is not between 0"),
            (r#"{"compared": 7}"#, "/compared isn't a list"),
            (r#"{"compared": []}"#, "two targets or more"),
            (r#"{"compared": [{"case": "c", "targets": [{"target": "t"}]}]}"#, "two targets or more"),
            (
                r#"{"compared": [{"case": "c", "targets": [{"target": "t"}, {"target": "u"}]}]}"#,
                "/compared/0/targets/0/ratios_to_last/rate isn't ratios: make the file with this version",
            ),
        ] {
            fs::write(&path, text).unwrap();
            let failure = read(&path).unwrap_err().to_string();
            assert!(failure.contains("odd.json") && failure.contains(cure), "{text}: {failure}");
        }
    }

    /// Goal: a share of everything is refused, which a scale of rarity has no place for. Method: 1, and just below it.
    #[test]
    fn shares_are_below_one() {
        let of =
            |share: f64| distribution(&serde_json::json!({ "latency": { "distribution": [[share, 1.0]] } }));
        assert!(of(1.0).is_err());
        assert_eq!(of(0.999_999), Ok(vec![(0.999_999, 1.0)]));
    }

    /// Goal: sizes are told as in cases' names. Method: by hand.
    #[test]
    fn sizes() {
        assert_eq!([512.0, 4096.0, 1536.0, 1_048_576.0].map(size), ["512", "4k", "1536", "1M"]);
    }
}
