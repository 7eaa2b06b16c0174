//! The command line. Each value is parsed here, once, into the type that the configuration wants.

use crate::config::{CpuList, LogFormat, Poll, parse_memory, parse_portal};
use crate::spec::LunSpec;
use clap::{Args, Parser, Subcommand};
use std::net::SocketAddr;
use std::path::PathBuf;

/// What `--help` says below the options.
const SERVE_NOTES: &str = "\
LUN SPEC:
  thin:SIZE              a volume in the pool under --data, made if missing; takes space where it is written
  thick:SIZE             the same, with all of its space set aside
  file:PATH[:SIZE]       a file or block device; a file that is missing is made, sparse, SIZE large
  ram:256M               memory, lost when pollux ends
  null:1T                drops what is written, reads zeroes: for measuring the rest
  Then any of: ,block=512|4096 ,physical=512|4096 ,ro ,removable ,writeback
  and for thin and thick: ,zero=on|off (on: whole blocks of zeroes in writes take no space)
  Sizes are bytes, or K, M, G, T with 1K = 1024. Blocks: 512 on 4096 unless said otherwise.
  A comma in PATH is written twice. A PATH that ends like a size gets one more colon.
  writeback answers a write before it is on the medium; without it GOOD means that it is.

An option replaces what the file says: --listen and --lun replace the file's whole list.
Without --config the embedded default stands where no option does: target iqn.2026-11.io.pollux:demo
on 127.0.0.1:3260, LUN 0 = 1 TiB thin in a pool file under pollux-data.

Signals: TERM and INT let running commands end and leave, a second one leaves at once. HUP reads
the file again: hosts, secrets, discovery, [iscsi] (for new sessions) and the log filter may change.

Examples:
  pollux serve --lun ram:1G
  pollux serve --data /srv/pollux --lun thin:1T --lun thick:64G,block=4096
  pollux serve --listen 0.0.0.0:3260 --lun file:/srv/lun0.img:500G --lun file:/dev/sdb,block=4096
  pollux serve --config /etc/pollux.toml --reactors 2-5 --poll busy";

/// Pollux: a polled-mode iSCSI target for virtualisation hosts.
///
/// Without a subcommand it serves the embedded default, as `pollux serve` does; see `pollux serve --help`.
#[derive(Debug, Parser)]
#[command(name = "pollux", version, max_term_width = 110)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// The subcommands of this version.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve LUNs until a signal says otherwise
    Serve(Serve),
}

/// `pollux serve`. What isn't given comes from the file, or the embedded default.
#[derive(Clone, Debug, Default, Args)]
#[command(after_long_help = SERVE_NOTES, after_help = "--help tells about LUN SPEC, signals and examples.")]
pub struct Serve {
    /// Read this TOML file
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Listen here; repeat for more portals. IPv6 in brackets; port 0 takes a free one
    #[arg(long, value_name = "ADDR:PORT", value_parser = parse_portal)]
    pub listen: Vec<SocketAddr>,
    /// Keep state that must survive a restart in this directory; made if missing
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Run one reactor on each of these CPUs, as in 0-3,8
    #[arg(long, value_name = "CPULIST")]
    pub reactors: Option<CpuList>,
    /// What an idle reactor does
    #[arg(long, value_name = "HOW")]
    pub poll: Option<Poll>,
    /// IO buffers of each reactor, as in 256M
    #[arg(long, value_name = "SIZE", value_parser = parse_memory)]
    pub memory: Option<usize>,
    /// Where the control API listens; pollux.sock in the data directory if not given
    #[arg(long, value_name = "PATH", value_parser = parse_socket)]
    pub socket: Option<PathBuf>,
    /// Serve this; repeat for LUN 0, 1, ... See below
    #[arg(long, value_name = "SPEC")]
    pub lun: Vec<LunSpec>,
    /// What to log: error, warn, info, debug or trace, also by part: info,iscsi=debug
    #[arg(long, value_name = "FILTER", value_parser = crate::logging::parse_filter)]
    pub log: Option<String>,
    /// The log's form on stderr
    #[arg(long, value_name = "FORM")]
    pub log_format: Option<LogFormat>,
}

fn parse_socket(text: &str) -> Result<PathBuf, crate::mistake::Mistake> {
    crate::config::file::check_socket_path(PathBuf::from(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Cli, String> {
        Cli::try_parse_from(line.split(' ')).map_err(|error| error.to_string())
    }

    /// Goal: the declarations agree with each other (no name twice, no impossible default).
    #[test]
    fn is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    /// Goal: all options arrive, repeated ones in order.
    #[test]
    fn reads_every_option() {
        let line = "pollux serve --config a.toml --listen 10.0.0.1:1 --listen [::1] --data d --reactors 0-2,5 \
                    --poll busy --memory 64M --socket s --lun ram:1G --lun null:1T,ro --log warn,iscsi=debug \
                    --log-format json";
        let Some(Command::Serve(serve)) = parse(line).unwrap().command else { panic!("serve") };
        assert_eq!(serve.listen, ["10.0.0.1:1".parse().unwrap(), "[::1]:3260".parse().unwrap()]);
        assert_eq!(serve.reactors.unwrap().cpus(), [0, 1, 2, 5]);
        assert_eq!((serve.poll, serve.memory), (Some(Poll::Busy), Some(64 << 20)));
        assert_eq!(serve.lun.iter().map(ToString::to_string).collect::<Vec<_>>(), ["ram:1G", "null:1T,ro"]);
        assert_eq!(serve.log.as_deref(), Some("warn,iscsi=debug"));
        assert_eq!(serve.log_format, Some(LogFormat::Json));
        assert!(parse("pollux").unwrap().command.is_none());
    }

    /// Goal: what can't be said twice or at all is refused with a message that shows the right form.
    #[test]
    fn refuses_with_the_right_form() {
        for (line, says) in [
            ("pollux serve --poll lazy", "possible values: busy, adaptive"),
            ("pollux serve --poll busy --poll busy", "cannot be used multiple times"),
            ("pollux serve --data a --data b", "cannot be used multiple times"),
            ("pollux serve --listen localhost:3260", "127.0.0.1:3260"),
            ("pollux serve --listen 1.2.3.4:99999", "127.0.0.1:3260"),
            ("pollux serve --reactors 3-1", "0-3,8"),
            ("pollux serve --reactors 1,1", "named twice"),
            ("pollux serve --reactors 0-9999", "0-3,8"),
            ("pollux serve --memory 1M", "from 16M to 64G"),
            ("pollux serve --lun thin:1K", "from 1M to 64T"),
            ("pollux serve --lun ram:1GB", "binary"),
            ("pollux serve --log loud", "info,iscsi=debug"),
            ("pollux serve now", "unexpected argument"),
            ("pollux volume", "unrecognized subcommand"),
            ("pollux --lun ram:1G", "unexpected argument"),
        ] {
            let error = parse(line).expect_err(line);
            assert!(error.contains(says), "{line}: {error}");
        }
        let long = format!("pollux serve --socket /{}", "s".repeat(108));
        assert!(parse(&long).expect_err("too long").contains("shorter path"));
    }

    /// Goal: the help names every kind of LUN and every signal.
    #[test]
    fn helps() {
        let help = parse("pollux serve --help").expect_err("help is an early exit");
        for word in [
            "thin:SIZE",
            "thick:SIZE",
            "ram:256M",
            "zero=on|off",
            "written twice",
            "HUP",
            "replaces",
            "Examples",
        ] {
            assert!(help.contains(word), "{word}");
        }
    }
}
