//! The commands that talk to a running pollux, and `check`: one request or a few, then a table or one JSON document on
//! stdout. What goes wrong is told on stderr with its cure, and by the exit status.

mod commands;
mod http;
mod show;

use crate::args::{Check, Command};
use crate::check;
use crate::mistake::Mistake;
use std::io::{ErrorKind, Write};

/// Why a command ends early; each with its exit status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The daemon, or what is asked about, stands against it.
    Refused(Mistake),
    /// The command line leaves something open.
    Usage(Mistake),
    /// Nobody answers at the socket, or nobody who is one of us.
    Unreachable(Mistake),
    /// Whoever reads our output has enough.
    Hangup,
}

impl Stop {
    /// The process's exit status.
    pub fn status(&self) -> u8 {
        match self {
            Stop::Hangup => 0,
            Stop::Refused(_) => 1,
            Stop::Usage(_) => 2,
            Stop::Unreachable(_) => 3,
        }
    }

    /// What to tell about it.
    pub fn mistake(&self) -> Option<&Mistake> {
        match self {
            Stop::Refused(mistake) | Stop::Usage(mistake) | Stop::Unreachable(mistake) => Some(mistake),
            Stop::Hangup => None,
        }
    }
}

impl From<std::io::Error> for Stop {
    /// Of writing to `out`.
    fn from(error: std::io::Error) -> Stop {
        if error.kind() == ErrorKind::BrokenPipe {
            return Stop::Hangup;
        }
        Stop::Refused(Mistake::new(
            format!("the output can't be written: {error}"),
            "make room where it goes",
        ))
    }
}

/// Carries a command out; what it prints goes to `out`.
///
/// # Errors
/// See [`Stop`].
pub fn run(command: Command, out: &mut dyn Write) -> Result<(), Stop> {
    match command {
        Command::Serve(_) => {
            Err(Stop::Usage(Mistake::new("serve is no command of the client", "call boot::serve")))
        }
        Command::Pool(pool) => commands::pool(pool, out),
        Command::Volume(volume) => commands::volume(volume, out),
        Command::Snapshot(snapshot) => commands::snapshot(snapshot, out),
        Command::Lun(lun) => commands::lun(lun, out),
        Command::Check(check) => run_check(&check, out),
    }?;
    out.flush()?;
    Ok(())
}

fn run_check(args: &Check, out: &mut dyn Write) -> Result<(), Stop> {
    let report = check::check(&args.devices, args.repair).map_err(Stop::Refused)?;
    show::print(out, args.json, &report)?;
    match report.left() {
        0 => Ok(()),
        left => {
            out.flush()?;
            let cure = if args.repair { "restore what they name from elsewhere" } else { "give --repair" };
            Err(Stop::Refused(Mistake::new(format!("{left} problems are left"), cure)))
        }
    }
}
