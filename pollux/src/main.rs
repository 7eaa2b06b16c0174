//! Pollux: reads what to serve, serves it, tells mistakes with their cure. See `boot` for how it is built.
#![forbid(unsafe_code)]

use clap::Parser;
use pollux::args::{Cli, Command, Serve};
use pollux::banner::{Banner, ServedLun, say};
use pollux::config::{Config, LunId, REACTORS_DEFAULT};
use pollux::identity::DataDir;
use pollux::logging::Logging;
use pollux::mistake::{Mistake, Mistakes};
use pollux::signals::Signals;
use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    let serve = match Cli::parse().command {
        Some(Command::Serve(serve)) => serve,
        None => Serve::default(),
    };
    match run(&serve) {
        Ok(()) => ExitCode::SUCCESS,
        Err(mistakes) => {
            // Whoever closed stderr still gets the status.
            let _ = writeln!(std::io::stderr(), "{mistakes}");
            ExitCode::FAILURE
        }
    }
}

fn run(serve: &Serve) -> Result<(), Mistakes> {
    let directory = std::env::current_dir().map_err(|error| {
        let what = format!("the working directory can't be found: {error}");
        Mistake::new(what, "start pollux in a directory that exists")
    })?;
    let loaded = Config::load(serve, &directory)?;
    let _logging = Logging::start(&loaded.config.log)?;
    for warning in &loaded.warnings {
        warning.log();
    }
    let _signals = Signals::watch()?;
    let data = DataDir::open(&loaded.config.data)?;
    let ids = data.identify(&loaded.config.luns)?;
    announce(&loaded.config, &ids);
    Ok(())
}

/// Says what these values would serve.
fn announce(config: &Config, ids: &[LunId]) {
    let cpus = match &config.reactors.cpus {
        Some(list) => list.cpus().to_vec(),
        None => pollux::config::usable_cpus().into_iter().take(REACTORS_DEFAULT).collect(),
    };
    let luns: Vec<ServedLun> =
        config.luns.iter().zip(ids).map(|(lun, &id)| ServedLun::planned(lun, id)).collect();
    let memory_bytes = (cpus.len() * config.reactors.memory_bytes) as u64;
    say(&Banner { config, portals: &config.portals, luns: &luns, cpus: &cpus, memory_bytes });
}
