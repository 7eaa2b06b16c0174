//! The program `bench`: see `bench --help`.

use bench::args::{Cli, Command};
use bench::failure::Failure;
use bench::{load, machine};
use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Load(args) => run_load(&args),
        Command::Ceiling(args) => bench::ceiling::run(&args),
        Command::Compare(args) => bench::compare::run(&args),
        Command::Fio(args) => bench::fio::run(&args),
        Command::Disk(args) => bench::disk::run(&args),
        Command::Idle(args) => bench::idle::run(&args),
        Command::Clone(args) => bench::offload::run(&args.offload, bench::offload::What::Clone(&args)),
        Command::Zero(args) => bench::offload::run(&args.offload, bench::offload::What::Zero(&args)),
        Command::Ats(args) => bench::offload::run(&args.offload, bench::offload::What::Ats(&args)),
        Command::Stack(args) => bench::stack::run(&args),
        Command::Pool(args) => bench::pool::run(&args),
        Command::Micro(args) => bench::micro::run(&args),
        Command::Instructions(args) => bench::instructions::run(&args),
        Command::Plot(args) => bench::plot::run(&args),
    };
    match outcome {
        Ok(code) => code,
        Err(failure) => {
            eprintln!("bench: {failure}");
            ExitCode::FAILURE
        }
    }
}

/// Commands that ended with an error make the exit code tell, too.
fn run_load(args: &bench::args::LoadArgs) -> Result<ExitCode, Failure> {
    let peer = args.peer()?;
    let workload = args.workload()?;
    let outcome = load::run(&peer, &workload)?;
    if args.timing.json {
        let mut value = load::report::to_json(&outcome);
        value["name"] = args.name(&peer).into();
        value["workload"] = load::report::workload_json(&workload);
        value["machine"] = machine::facts();
        println!("{value:#}");
    } else {
        print!("{}", load::report::to_text(&outcome));
        println!("{}", machine::sentence());
    }
    Ok(if outcome.tally.errors == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
