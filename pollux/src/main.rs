//! Pollux: reads what to serve, serves it, tells mistakes with their cure. See `boot` for how it is built.
#![forbid(unsafe_code)]

use clap::Parser;
use pollux::args::{Cli, Command, Serve};
use pollux::boot;
use pollux::client;
use pollux::config::{Config, Loaded, Reloaded};
use pollux::identity::DataDir;
use pollux::logging::Logging;
use pollux::mistake::{Mistake, Mistakes};
use pollux::signals::Signals;
use std::fmt::Display;
use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    // Whoever closed stderr still gets the status.
    let tell = |mistakes: &dyn Display| drop(writeln!(std::io::stderr(), "{mistakes}"));
    let serve = match Cli::parse().command {
        Some(Command::Serve(serve)) => serve,
        None => Serve::default(),
        Some(command) => {
            let Err(stop) = client::run(command, &mut std::io::stdout().lock()) else {
                return ExitCode::SUCCESS;
            };
            if let Some(mistake) = stop.mistake() {
                tell(&Mistakes::from(mistake.clone()));
            }
            return ExitCode::from(stop.status());
        }
    };
    match run(&serve) {
        Ok(()) => ExitCode::SUCCESS,
        Err(mistakes) => {
            tell(&mistakes);
            ExitCode::FAILURE
        }
    }
}

fn run(serve: &Serve) -> Result<(), Mistakes> {
    let directory = std::env::current_dir().map_err(|error| {
        let what = format!("the working directory can't be found: {error}");
        Mistake::new(what, "start pollux in a directory that exists")
    })?;
    let Loaded { mut config, warnings } = Config::load(serve, &directory)?;
    let logging = Logging::start(&config.log)?;
    for warning in &warnings {
        warning.log();
    }
    let signals = Signals::watch()?;
    let data = match config.data_memory {
        Some(_) => DataDir::fleeting(&config.data),
        None => DataDir::open(&config.data),
    }?;
    let ids = data.identify(&config.luns)?;
    let started = config.clone();
    boot::serve(&started, &ids, &signals, || match config.reload(serve, &directory) {
        Ok(Reloaded { ignored, warnings }) => {
            for warning in &warnings {
                warning.log();
            }
            for what in ignored {
                tracing::warn!("{what} changed in the configuration: that takes a restart");
            }
            if let Err(mistake) = logging.set_filter(&config.log.filter) {
                mistake.log();
            }
            Some(config.clone())
        }
        Err(mistakes) => {
            tracing::error!("the configuration is not taken, the old one holds:\n{mistakes}");
            None
        }
    })?;
    Ok(())
}
