//! `bench clone`, `zero` and `ats`: the offloads of a real target on its own CPU, over loopback, on a pool in a file.
//!
//! A durable commit is measured in the same run, as 4 KiB writes with O_DIRECT and O_DSYNC over a file beside the
//! pool's. What the target did below comes from its control socket.

mod ats;
mod client;
mod clone;
mod encode;
mod rig;
mod zero;

use crate::args::{AtsArgs, CloneArgs, OffloadArgs, ZeroArgs, positive_seconds};
use crate::failure::Failure;
use crate::{cpu, machine};
use comfy_table::{Table, presets};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Which of the three.
#[derive(Debug, Clone, Copy)]
pub enum What<'a> {
    /// `bench clone`.
    Clone(&'a CloneArgs),
    /// `bench zero`.
    Zero(&'a ZeroArgs),
    /// `bench ats`.
    Ats(&'a AtsArgs),
}

/// A line of the outcome.
struct Row {
    pool: &'static str,
    what: String,
    value: f64,
    unit: &'static str,
    /// The bar in words, and whether it is met.
    bar: Option<(String, bool)>,
}

/// The lines of one pool.
struct Rows {
    pool: &'static str,
    rows: Vec<Row>,
}

impl Rows {
    fn note(&mut self, what: impl Into<String>, value: f64, unit: &'static str) {
        self.rows.push(Row { pool: self.pool, what: what.into(), value, unit, bar: None });
    }

    fn at_most(&mut self, what: impl Into<String>, value: f64, unit: &'static str, bar: f64) {
        self.note(what, value, unit);
        self.bar(format!("at most {bar:.2}"), value <= bar);
    }

    fn at_least(&mut self, what: impl Into<String>, value: f64, unit: &'static str, bar: f64) {
        self.note(what, value, unit);
        self.bar(format!("at least {bar:.2}"), value >= bar);
    }

    fn bar(&mut self, bar: String, met: bool) {
        if let Some(row) = self.rows.last_mut() {
            row.bar = Some((bar, met));
        }
    }
}

/// Whether a file there is one in memory.
fn is_in_memory(dir: &Path) -> bool {
    dir.starts_with("/dev/shm")
}

/// The subcommands.
///
/// # Errors
/// The target doesn't start, a command doesn't end GOOD, or an option can't be meant.
pub fn run(args: &OffloadArgs, what: What<'_>) -> Result<ExitCode, Failure> {
    let timeout = positive_seconds("--timeout", args.timeout)?;
    if args.image == 0 || !args.image.is_multiple_of(64 << 20) || args.image > 64 << 30 {
        return Err(Failure::new(format!("--image {} is not a multiple of 64M up to 64G", args.image)));
    }
    let dirs = match &args.dirs[..] {
        [] => vec![std::env::temp_dir(), PathBuf::from("/dev/shm")],
        dirs => dirs.to_vec(),
    };
    let mut rows = Vec::new();
    for dir in &dirs {
        let pool = if is_in_memory(dir) { "ram" } else { "file" };
        let mut part = Rows { pool, rows: Vec::new() };
        let images = match what {
            What::Clone(clone) if clone.vdi => clone.clones + 2,
            What::Zero(zero) => zero.clones + 3,
            What::Clone(_) | What::Ats(_) => 5,
        };
        let mut rig = rig::Rig::start(args, dir, images, timeout)?;
        // Not before: the target would inherit it.
        cpu::pin(args.cpu)?;
        match what {
            What::Clone(clone) if clone.vdi => clone::vdi(&mut rig, clone, &mut part)?,
            What::Clone(clone) => clone::one(&mut rig, clone, &mut part)?,
            What::Zero(zero) => zero::run(&mut rig, zero, &mut part)?,
            What::Ats(ats) => ats::run(&mut rig, ats, &mut part)?,
        }
        rows.extend(part.rows);
    }
    tell(args, &rows);
    let met = rows.iter().all(|row| row.bar.as_ref().is_none_or(|(_, met)| *met));
    Ok(if met { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn tell(args: &OffloadArgs, rows: &[Row]) {
    let fill = format!("{:?}", args.fill).to_lowercase();
    if args.json {
        let rows: Vec<_> = rows
            .iter()
            .map(|row| {
                json!({
                    "pool": row.pool, "what": row.what, "value": row.value, "unit": row.unit,
                    "bar": row.bar.as_ref().map(|(bar, _)| bar),
                    "met": row.bar.as_ref().map(|(_, met)| met),
                })
            })
            .collect();
        let value =
            json!({"image_bytes": args.image, "fill": fill, "rows": rows, "machine": machine::facts()});
        println!("{value:#}");
        return;
    }
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    table.set_header(["pool", "what", "value", "unit", "bar", "met"]);
    for row in rows {
        let (bar, met) = match &row.bar {
            Some((bar, met)) => (bar.clone(), if *met { "yes" } else { "NO" }),
            None => (String::new(), ""),
        };
        table.add_row([row.pool, &row.what, &format!("{:.3}", row.value), row.unit, &bar, met]);
    }
    println!(
        "{table}\nimage {} MiB, filled {fill} (sparse: one block of 4 KiB in every 64 KiB); `ram` is a pool on a file in /dev/shm\n{}",
        args.image >> 20,
        machine::sentence()
    );
}
