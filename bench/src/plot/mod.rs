//! `bench plot`: pictures of what `bench load --json` and `bench compare --json` have measured, as SVG.
//!
//! Results of `load` become two, which have all of them: latencies against load, and their distributions. Each result of
//! `compare` becomes one of its ratios.

mod chart;
mod input;
mod ratios;

use crate::args::PlotArgs;
use crate::failure::{Context, Failure};
use input::{Input, Load, QUANTILES};
use std::fs;
use std::path::Path;
use std::process::ExitCode;

/// The subcommand.
///
/// # Errors
/// A file can't be read or isn't of `load` or `compare`, or a picture can't be written.
pub fn run(args: &PlotArgs) -> Result<ExitCode, Failure> {
    let mut loads = Vec::new();
    let mut pictures: Vec<(String, String)> = Vec::new();
    for file in &args.files {
        match input::read(file)? {
            Input::Load(load) => loads.push(load),
            Input::Compared(compared) => {
                let name = ratios_name(file);
                if pictures.iter().any(|(other, _)| *other == name) {
                    return Err(Failure::new(format!(
                        "{}: {name} would be made of two files: rename one of them",
                        file.display()
                    )));
                }
                pictures.push((name, ratios::draw(&compared)?));
            }
        }
    }
    if !loads.is_empty() {
        pictures.push(("latency-load.svg".into(), latency_load(&loads)?));
        pictures.push(("percentiles.svg".into(), percentiles(&loads)?));
    }
    fs::create_dir_all(&args.out).doing(format!("making {}", args.out.display()))?;
    for (name, picture) in pictures {
        let path = args.out.join(name);
        fs::write(&path, picture).doing(format!("writing {}", path.display()))?;
        println!("{}", path.display());
    }
    Ok(ExitCode::SUCCESS)
}

fn ratios_name(file: &Path) -> String {
    let stem = file.file_stem().unwrap_or_default().to_string_lossy();
    format!("{stem}-ratios.svg")
}

/// x is what was reached, y the latencies, a colour each target and shape of the load.
fn latency_load(loads: &[Load]) -> Result<String, Failure> {
    let mut series: Vec<(&str, Vec<&Load>)> = Vec::new();
    for load in loads {
        match series.iter_mut().find(|(name, _)| *name == load.series) {
            Some((_, points)) => points.push(load),
            None => series.push((&load.series, vec![load])),
        }
    }
    let mut lines = Vec::new();
    let mut legend = Vec::new();
    for (colour, (name, points)) in series.iter_mut().enumerate() {
        // In the order of what was asked for: a target that is asked for too much may reach less, and its line turns back.
        points.sort_by(|one, other| one.offered.total_cmp(&other.offered));
        legend.push(chart::Entry::line(*name, Some(colour), chart::Stroke::Solid));
        for (quantile, stroke) in chart::Stroke::ALL.into_iter().enumerate() {
            let at = |load: &&Load| (load.iops, load.quantiles_us[quantile]);
            let hollow = points.iter().map(|load| load.saturated).collect();
            lines.push(chart::Line {
                points: points.iter().map(at).collect(),
                colour,
                stroke,
                hollow: Some(hollow),
            });
        }
    }
    for (name, stroke) in QUANTILES.into_iter().zip(chart::Stroke::ALL) {
        legend.push(chart::Entry::line(name, None, stroke));
    }
    if loads.iter().any(|load| load.saturated) {
        legend.push(chart::Entry::hollow("saturated: the backlog grew"));
    }
    chart::over_rate(&lines, &legend)
}

/// x is how rare a latency is, y the latency, a line each result.
fn percentiles(loads: &[Load]) -> Result<String, Failure> {
    let mut lines = Vec::new();
    let mut legend = Vec::new();
    for (colour, load) in loads.iter().enumerate() {
        let below = load.distribution.iter().map(|&(share, us)| (1.0 / (1.0 - share), us));
        // The longest one is one of so many.
        let longest = [(load.count, load.max_us)];
        lines.push(chart::Line {
            points: below.chain(longest).collect(),
            colour,
            stroke: chart::Stroke::Solid,
            hollow: None,
        });
        legend.push(chart::Entry::line(load.label.as_str(), Some(colour), chart::Stroke::Solid));
    }
    chart::over_rarity(&lines, &legend)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::Scratch;
    use serde_json::{Value, json};
    use std::path::PathBuf;

    fn load(name: &str, rate: Option<u64>, iops: f64) -> Value {
        json!({
            "name": name, "iops": iops,
            "rate": rate.map(|rate| json!({ "asked": rate, "saturated": iops < rate as f64 })),
            "workload": {
                "block_bytes": 4096, "pattern": "randread", "read_percent": 100, "depth": 32, "sessions": 1,
            },
            "latency": {
                "count": 1000, "us": { "p50": 60.0, "p99": 90.0, "p99.9": 200.0, "max": 4000.0 },
                "distribution": [[0.0, 40.0], [0.5, 60.0], [0.9, 80.0], [0.99, 90.0], [0.999, 200.0]],
            },
        })
    }

    fn compared() -> Value {
        let of =
            |median: f64| json!({ "quartile_1": median * 0.9, "median": median, "quartile_3": median * 1.1 });
        let target = |name: &str, median: f64| {
            let all =
                json!({ "rate": of(median), "p50": of(1.0 / median), "p99": of(1.0), "p99.9": of(1.0) });
            json!({ "target": name, "ratios_to_last": all })
        };
        json!({ "compared": [
            { "case": "4k randread qd1", "targets": [target("pollux <a&b>", 0.9), target("raw", 1.0)] },
            { "case": "1M randread qd16", "targets": [target("pollux <a&b>", 1.2), target("raw", 1.0)] },
        ] })
    }

    fn plot(files: &[(&str, Value)]) -> (Scratch, Result<ExitCode, Failure>) {
        let scratch = Scratch::new(&std::env::temp_dir()).unwrap();
        let write = |(name, value): &(&str, Value)| {
            let path = scratch.path().join(name);
            fs::write(&path, value.to_string()).unwrap();
            path
        };
        let files: Vec<PathBuf> = files.iter().map(write).collect();
        let outcome = run(&PlotArgs { files, out: scratch.path().join("out/plots") });
        (scratch, outcome)
    }

    /// That a picture is whole: one root, every element closed, nothing in texts that would be an element.
    fn check(picture: &str) {
        assert!(picture.starts_with("<svg ") && picture.trim_end().ends_with("</svg>"), "{picture}");
        let mut depth = 0;
        for tag in picture.split('<').skip(1) {
            let (tag, text) = tag.split_once('>').unwrap();
            assert!(!text.contains('>') && !tag.contains("NaN") && !tag.contains("inf"), "{tag}: {text}");
            depth +=
                i32::from(!tag.starts_with('/') && !tag.ends_with('/')) - i32::from(tag.starts_with('/'));
        }
        assert_eq!(depth, 0);
        let mut entities = picture.split('&').skip(1);
        let known = ["amp;", "lt;", "gt;", "quot;", "apos;"];
        assert!(entities.all(|rest| known.iter().any(|entity| rest.starts_with(entity))));
    }

    /// Goal: each kind of result becomes its pictures, with every series' name in them and signs of SVG in names
    /// escaped. Method: open and closed loops, one saturated, and a comparison, all with such names.
    #[test]
    fn pictures_are_whole() {
        let (scratch, outcome) = plot(&[
            ("a.json", load("a <&> \"b\"", Some(1000), 1000.0)),
            ("b.json", load("a <&> \"b\"", Some(2000), 1500.0)),
            ("c.json", load("a <&> \"b\"", None, 1800.0)),
            ("d.json", load("other", None, 1700.0)),
            ("e.json", compared()),
        ]);
        outcome.unwrap();
        let read = |name: &str| fs::read_to_string(scratch.path().join("out/plots").join(name)).unwrap();
        let name = "a &lt;&amp;&gt; &quot;b&quot;, 4k randread";
        for (file, parts) in [
            (
                "latency-load.svg",
                &[&format!("{name}, open loop")[..], &format!("{name}, closed loop"), "other, 4k"][..],
            ),
            ("latency-load.svg", &["p99.9", "saturated", "achieved IOPS", "µs"]),
            (
                "percentiles.svg",
                &[&format!("{name}, 1000/s"), &format!("{name}, 2000/s"), "other, 4k randread, qd32"],
            ),
            ("percentiles.svg", &["99 %", "99.9 %"]),
            (
                "e-ratios.svg",
                &["pollux &lt;a&amp;b&gt;", "4k randread qd1", "1M randread qd16", "rate ÷ raw", "0.90"],
            ),
        ] {
            let picture = read(file);
            check(&picture);
            for part in parts {
                assert!(picture.contains(part), "{part} is not in {file}: {picture}");
            }
        }
        assert!(!read("percentiles.svg").contains("saturated"));
    }

    /// Goal: one result alone, with figures at the edges, makes pictures, too. Method: a single command, no time at all.
    #[test]
    fn a_single_command_is_a_picture() {
        let mut one = load("x", None, 0.0);
        one["latency"] = json!({
            "count": 1, "us": { "p50": 0.0, "p99": 0.0, "p99.9": 0.0, "max": 0.0 }, "distribution": [],
        });
        let (scratch, outcome) = plot(&[("a.json", one)]);
        outcome.unwrap();
        for name in ["latency-load.svg", "percentiles.svg"] {
            check(&fs::read_to_string(scratch.path().join("out/plots").join(name)).unwrap());
        }
    }

    /// Goal: two files that would make one picture are told, instead of one being lost. Method: one stem twice.
    #[test]
    fn no_picture_is_lost() {
        let (_scratch, outcome) = plot(&[("a.json", compared()), ("a.txt", compared())]);
        let failure = outcome.unwrap_err().to_string();
        assert!(failure.contains("a.txt") && failure.contains("rename"), "{failure}");
    }
}
