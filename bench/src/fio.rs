//! `bench fio`: fio's cases on several targets in turn, for those who want a known tool's word beside ours.
//!
//! The job files are `bench/fio`'s, so anybody can run one by hand. fio takes more of a CPU for a command than a fast target
//! does; where it used up its own, the row says so: then it measures fio, and a faster target would show no difference.

use crate::args::{FioArgs, Url};
use crate::cases::{median, spread_percent};
use crate::failure::{Context, Failure};
use crate::load::login::{Door, Offer};
use crate::process::{self, PolluxOptions, Served};
use crate::{compare, machine};
use comfy_table::{Table, presets};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

const CASES: &str = include_str!("../fio/cases.fio");
const LIBISCSI: &str = include_str!("../fio/libiscsi.fio");
const KERNEL: &str = include_str!("../fio/kernel.fio");

/// What brings the heads and the cases together when fio is run by hand.
const INCLUDE: &str = "include cases.fio\n";

/// The case that the others build on.
const PRECONDITION: &str = "precondition";

/// CPU time of fio's own, in percent of one, from which on it is what is measured.
const CLIENT_BOUND_PERCENT: f64 = 95.0;

/// What plain logins offer: commands of a block travel with their data.
pub(crate) const OFFER: Offer = Offer {
    header_digest: false,
    data_digest: false,
    immediate_data: true,
    initial_r2t: false,
    first_burst: 8192,
    max_burst: 1 << 20,
    max_receive: 64 << 10,
};

/// Where fio finds a target.
#[derive(Debug)]
enum Place {
    /// By its own initiator.
    Url(Box<Served>),
    /// A disk of this machine's kernel.
    Device(PathBuf),
}

#[derive(Debug)]
struct Contestant {
    name: String,
    place: Place,
}

/// What fio said of one run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Said {
    pub(crate) iops: f64,
    /// 10^6 bytes a second.
    pub(crate) megabytes: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) p999_us: f64,
    /// fio's own CPU time, in percent of one.
    pub(crate) cpu_percent: f64,
}

/// The subcommand.
///
/// # Errors
/// fio isn't there or has no such engine, a target doesn't start, an IO failed.
pub fn run(args: &FioArgs) -> Result<ExitCode, Failure> {
    let cases: Vec<&str> = names_of(CASES).filter(|name| has_words(name, &args.case)).collect();
    if cases.is_empty() {
        let all: Vec<&str> = names_of(CASES).collect();
        return Err(Failure::new(format!(
            "no case's name has {:?}; there are {}",
            args.case,
            all.join(", ")
        )));
    }
    let scratch = process::Scratch::new(&std::env::temp_dir())?;
    let mut contestants = Vec::new();
    for name in &args.targets {
        contestants.push(start(args, name)?);
    }
    for contestant in &mut contestants {
        eprintln!("{}: written once", contestant.name);
        measure(args, scratch.path(), contestant, PRECONDITION)?;
    }
    let mut rows = Vec::new();
    for case in cases {
        let mut said = vec![Vec::new(); contestants.len()];
        for repeat in 0..args.repeats.max(1) {
            for (contestant, said) in contestants.iter_mut().zip(&mut said) {
                let one = measure(args, scratch.path(), contestant, case)?;
                eprintln!("{case}, {}, repeat {}: {:.0} IOPS", contestant.name, repeat + 1, one.iops);
                said.push(one);
            }
        }
        rows.push((case, said));
    }
    let names: Vec<&str> = contestants.iter().map(|contestant| contestant.name.as_str()).collect();
    if args.json {
        println!("{:#}", json!({ "fio": to_json(&names, &rows), "machine": machine::facts() }));
    } else {
        println!("{}\n{}", to_table(&names, &rows), machine::sentence());
    }
    Ok(ExitCode::SUCCESS)
}

/// Whether a case's name has all these words.
fn has_words(name: &str, words: &str) -> bool {
    words.split_whitespace().all(|word| name.contains(word))
}

/// The sections of a job file that are measured.
fn names_of(jobs: &str) -> impl Iterator<Item = &str> {
    jobs.lines()
        .filter_map(|line| line.strip_prefix('[')?.strip_suffix(']'))
        .filter(|&name| name != "global" && name != PRECONDITION)
}

fn start(args: &FioArgs, name: &str) -> Result<Contestant, Failure> {
    let place = match name {
        "pollux" => Place::Url(Box::new(process::start_pollux(&PolluxOptions {
            data: None,
            dir: None,
            path: args.pollux.clone(),
            cpu: args.target_cpu,
            poll: args.pollux_poll.clone(),
            lun: args.pollux_lun.clone(),
        })?)),
        "tgt" => Place::Url(Box::new(process::start_tgt(args.target_cpu, args.range)?)),
        other => match other.split_once('=') {
            Some((_, device)) if device.starts_with('/') => Place::Device(PathBuf::from(device)),
            Some((_, url)) => {
                let Url { portal, target, lun, .. } = Url::parse(url)?;
                Place::Url(Box::new(Served { program: None, portal, target, lun, socket: None }))
            }
            None => {
                return Err(Failure::new(format!(
                    "--target {other}: neither pollux nor tgt, nor NAME=iscsi://HOST:PORT/IQN/LUN or NAME=/dev/DISK"
                )));
            }
        },
    };
    let mut contestant = Contestant { name: name.split('=').next().unwrap_or(name).to_owned(), place };
    if let Place::Url(served) = &mut contestant.place {
        let door = Door {
            portal: served.portal,
            target: served.target.clone(),
            initiator: crate::args::DEFAULT_INITIATOR.to_owned(),
            chap: None,
            offer: OFFER,
        };
        process::wait_for_login(served, &door).map_err(|failure| failure.at(&contestant.name))?;
        compare::stop_or_go(served, Signal::STOP)?;
    }
    Ok(contestant)
}

/// One case on one target, the others being stopped.
fn measure(args: &FioArgs, dir: &Path, contestant: &mut Contestant, case: &str) -> Result<Said, Failure> {
    let said = match &contestant.place {
        Place::Device(path) => fio(args, dir, KERNEL, ("DEVICE", &path.display().to_string()), case),
        Place::Url(served) => {
            let url = format!("iscsi://{}/{}/{}", served.portal, served.target, served.lun);
            compare::stop_or_go(served, Signal::CONT)?;
            let said = fio(args, dir, LIBISCSI, ("URL", &url.replace(':', "\\:")), case);
            compare::stop_or_go(served, Signal::STOP)?;
            said
        }
    };
    said.map_err(|failure| failure.at(format!("{}, {case}", contestant.name)))
}

fn fio(args: &FioArgs, dir: &Path, head: &str, place: (&str, &str), case: &str) -> Result<Said, Failure> {
    let jobs = dir.join("jobs.fio");
    fs::write(&jobs, head.replace(INCLUDE, CASES)).doing("writing a job file")?;
    let output = Command::new(&args.fio)
        .args(["--output-format=json", &format!("--section={case}")])
        .arg(&jobs)
        .env(place.0, place.1)
        .env("SIZE", args.range.to_string())
        .env("TIME", args.time.to_string())
        .env("CPU", args.cpu.to_string())
        .stdin(Stdio::null())
        .output()
        .doing(format!(
            "running {} (--fio names another; tests/fio/build makes one with libiscsi)",
            args.fio.display()
        ))?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let last = said.lines().chain(text.lines()).rfind(|line| !line.trim().is_empty());
        return Err(Failure::new(format!("fio: {}", last.unwrap_or("it failed without a word"))));
    }
    parse(&text)
}

/// What fio's JSON says of its only job.
pub(crate) fn parse(text: &str) -> Result<Said, Failure> {
    // Warnings come before it.
    let json = text.find('{').map_or("", |at| &text[at..]);
    let value: Value = serde_json::from_str(json)
        .map_err(|error| Failure::new(format!("fio's output is no JSON ({error})")))?;
    let Some(job) = value["jobs"].get(0) else { return Err(Failure::new("fio ran no job")) };
    if job["error"].as_i64().unwrap_or(0) != 0 {
        return Err(Failure::new(format!("fio met error {}", job["error"])));
    }
    let sides = [&job["read"], &job["write"]];
    let sum = |key: &str| sides.iter().filter_map(|side| side[key].as_f64()).sum::<f64>();
    // Of a mixed case the slower side counts.
    let percentile = |key: &str| {
        let of = |side: &&Value| side["clat_ns"]["percentile"][key].as_f64().unwrap_or(0.0);
        sides.iter().map(of).fold(0.0, f64::max) / 1e3
    };
    Ok(Said {
        iops: sum("iops"),
        megabytes: sum("bw_bytes") / 1e6,
        p50_us: percentile("50.000000"),
        p99_us: percentile("99.000000"),
        p999_us: percentile("99.900000"),
        cpu_percent: job["usr_cpu"].as_f64().unwrap_or(0.0) + job["sys_cpu"].as_f64().unwrap_or(0.0),
    })
}

fn middle(said: &[Said], of: impl Fn(&Said) -> f64) -> f64 {
    median(&said.iter().map(of).collect::<Vec<_>>())
}

fn is_client_bound(said: &[Said]) -> bool {
    middle(said, |one| one.cpu_percent) >= CLIENT_BOUND_PERCENT
}

fn to_json(names: &[&str], rows: &[(&str, Vec<Vec<Said>>)]) -> Vec<Value> {
    let cell = |name: &str, said: &[Said]| {
        json!({
            "target": name,
            "iops": said.iter().map(|one| one.iops).collect::<Vec<_>>(),
            "iops_median": middle(said, |one| one.iops),
            "megabytes_a_second": middle(said, |one| one.megabytes),
            "p50_us": middle(said, |one| one.p50_us),
            "p99_us": middle(said, |one| one.p99_us),
            "p99.9_us": middle(said, |one| one.p999_us),
            "fio_cpu_percent": middle(said, |one| one.cpu_percent),
            "client_bound": is_client_bound(said),
        })
    };
    let row = |(case, said): &(&str, Vec<Vec<Said>>)| {
        let cells: Vec<Value> = names.iter().zip(said).map(|(name, said)| cell(name, said)).collect();
        json!({ "case": case, "targets": cells })
    };
    rows.iter().map(row).collect()
}

fn to_table(names: &[&str], rows: &[(&str, Vec<Vec<Said>>)]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    let last = names.last().copied().unwrap_or_default();
    table.set_header([
        "case",
        "target",
        "IOPS",
        "MB/s",
        &format!("÷ {last}"),
        "spread %",
        "p50 µs",
        "p99 µs",
        "p99.9 µs",
        "fio's CPU %",
        "",
    ]);
    for (case, said) in rows {
        let base = said.last().map_or(0.0, |said| middle(said, |one| one.iops));
        for (name, said) in names.iter().zip(said) {
            let rate = middle(said, |one| one.iops);
            let rates: Vec<f64> = said.iter().map(|one| one.iops).collect();
            table.add_row([
                (*case).to_owned(),
                (*name).to_owned(),
                format!("{rate:.0}"),
                format!("{:.0}", middle(said, |one| one.megabytes)),
                if base > 0.0 { format!("{:.2}", rate / base) } else { "-".into() },
                format!("{:.1}", spread_percent(&rates)),
                format!("{:.1}", middle(said, |one| one.p50_us)),
                format!("{:.1}", middle(said, |one| one.p99_us)),
                format!("{:.1}", middle(said, |one| one.p999_us)),
                format!("{:.0}", middle(said, |one| one.cpu_percent)),
                if is_client_bound(said) { "client-bound".into() } else { String::new() },
            ]);
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: both files have the cases, under names that say what they are, and what comes first is not one of them.
    #[test]
    fn job_files_fit() {
        let names: Vec<&str> = names_of(CASES).collect();
        assert!(names.len() == 12 && names.contains(&"mixed-70-30-8k-qd32"), "{names:?}");
        assert!(CASES.contains(&format!("[{PRECONDITION}]")));
        for head in [LIBISCSI, KERNEL] {
            assert_eq!(head.matches(INCLUDE).count(), 1);
        }
        assert!(has_words("randread-4k-qd32", "4k qd32") && !has_words("randread-4k-qd32", "write"));
    }

    /// Goal: what fio says is read, of one direction and of both, with a warning before it; its errors are told.
    #[test]
    fn fio_is_understood() {
        assert!(parse("fio: a warning {\n").is_err());
        assert!(parse("").is_err() && parse("{}").is_err());
        let side = |iops: f64, p50: f64| {
            let percentile = json!({ "50.000000": p50, "99.000000": 2.0 * p50, "99.900000": 3.0 * p50 });
            json!({ "iops": iops, "bw_bytes": iops * 4096.0, "clat_ns": { "percentile": percentile } })
        };
        let job = json!({
            "error": 0, "usr_cpu": 60.0, "sys_cpu": 39.5,
            "read": side(700.0, 1000.0), "write": side(300.0, 5000.0),
        });
        let said = parse(&format!("a note\n{}", json!({ "jobs": [job] }))).unwrap();
        assert_eq!((said.iops, said.megabytes), (1000.0, 4.096));
        assert_eq!((said.p50_us, said.p99_us, said.p999_us), (5.0, 10.0, 15.0));
        assert!(is_client_bound(&[said]) && !is_client_bound(&[Said { cpu_percent: 50.0, ..said }]));
        assert!(parse(&json!({ "jobs": [{ "error": 5 }] }).to_string()).is_err());
    }
}
