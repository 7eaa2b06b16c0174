//! `bench instructions`: how many instructions a 4 KiB read and write take in user space, from the first byte of the
//! command to the last byte for the socket. Not how long they take: the count is the same on every run, so that a change of
//! it in a review is the change's.
//!
//! This program runs again under valgrind's callgrind, which counts all instructions of a process, with few commands and
//! with many; the difference is theirs. valgrind has no AVX-512, so digests take more there than on a processor that has it.
//! No kernel is in it: the bytes are handed in, and what is to be sent is looked at and dropped.

mod world;

use crate::args::{InstructionsArgs, InstructionsKind};
use crate::failure::{Context, Failure};
use crate::machine;
use clap::ValueEnum;
use comfy_table::{Table, presets};
use serde_json::{Value, json};
use std::process::{Command, ExitCode};

/// Commands in a batch: what is received at once.
const BATCH: u64 = 32;
/// Batches of the short run; what is cold is warm then.
const FEW: u64 = 50;
/// And so many more of the long one.
const MORE: u64 = 200;

/// The subcommand.
///
/// # Errors
/// There is no valgrind, or a run fails.
pub fn run(args: &InstructionsArgs) -> Result<ExitCode, Failure> {
    if let (Some(kind), Some(batches)) = (args.alone, args.batches) {
        world::World::new(kind)?.run(batches, BATCH)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut rows = Vec::new();
    for &kind in InstructionsKind::value_variants() {
        let (few, many) = (count(args, kind, FEW)?, count(args, kind, FEW + MORE)?);
        rows.push((kind, many.saturating_sub(few) as f64 / (MORE * BATCH) as f64));
    }
    if args.json {
        let row =
            |(kind, each): &(InstructionsKind, f64)| json!({ "case": name_of(*kind), "instructions": each });
        let rows: Vec<Value> = rows.iter().map(row).collect();
        println!("{:#}", json!({ "instructions": rows, "batch": BATCH, "machine": machine::facts() }));
    } else {
        let mut table = Table::new();
        table.load_style(presets::UTF8_HORIZONTAL_ONLY);
        table.set_header(["4 KiB, 32 commands received together", "instructions each"]);
        for (kind, each) in &rows {
            table.add_row([name_of(*kind).replace('-', " "), format!("{each:.0}")]);
        }
        println!("{table}\n{}", machine::sentence());
    }
    Ok(ExitCode::SUCCESS)
}

fn name_of(kind: InstructionsKind) -> String {
    kind.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}

/// Instructions of a whole run of this program with so many batches.
fn count(args: &InstructionsArgs, kind: InstructionsKind, batches: u64) -> Result<u64, Failure> {
    let program = std::env::current_exe().doing("finding this program")?;
    let output = Command::new(&args.valgrind)
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(program)
        .args(["instructions", "--alone", &name_of(kind), "--batches", &batches.to_string()])
        .output()
        .doing(format!("running {}, which counts (package valgrind)", args.valgrind.display()))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(Failure::new(format!("under valgrind: {}: {said}", output.status)));
    }
    collected(&said).ok_or_else(|| Failure::new(format!("callgrind told no count: {said}")))
}

/// `==123== Collected : 45678`.
fn collected(said: &str) -> Option<u64> {
    let (_, behind) = said.split_once("Collected :")?;
    behind.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: each kind of command is carried out, and goes the way that its name says. Method: a few batches without
    /// valgrind; `run` looks at what comes back.
    #[test]
    fn each_kind_goes_its_way() {
        for &kind in InstructionsKind::value_variants() {
            let mut world = world::World::new(kind).unwrap();
            world.run(3, BATCH).unwrap();
            let is_straight = !matches!(kind, InstructionsKind::ReadAsATask | InstructionsKind::WriteAsATask);
            assert_eq!(world.straight(), if is_straight { 3 * BATCH } else { 0 }, "{kind:?}");
        }
    }

    /// Goal: the count is found, and what is none is no count.
    #[test]
    fn counts_are_found() {
        assert_eq!(collected("==7== Events : Ir\n==7== Collected : 6871\n==7==\n"), Some(6871));
        assert_eq!(collected("==7== Collected : \n==7=="), None);
        assert_eq!(collected("valgrind: no such tool"), None);
    }
}
