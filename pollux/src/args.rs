//! The command line. Each value is parsed here, once, into the type that the configuration wants.

use crate::config::{
    CpuList, DEMO_DATA, LUN_NUMBER_MAX, LogFormat, Poll, SOCKET_FILE, data_memory, parse_memory, parse_portal,
};
use crate::mistake::Mistake;
use crate::spec::{Device, LunSpec, Size, check_capacity, parse_block, parse_switch};
use bdev::pool::control::{NAME_BYTES_MAX, NAME_CHARS, is_name};
use clap::{Args, Parser, Subcommand};
use std::net::SocketAddr;
use std::path::PathBuf;

/// What `--help` says below the options.
const SERVE_NOTES: &str = "\
LUN SPEC:
  thin:SIZE              a volume in the pool of --data, made if missing; takes space where it is written
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

--data ram:SIZE has that pool in memory: what is in it is gone when pollux ends. A directory of such
a name is written ./ram:SIZE.

Signals: TERM and INT let running commands end and leave, a second one leaves at once. HUP reads
the file again: hosts, secrets, discovery, [iscsi] (for new sessions) and the log filter may change.

Examples:
  pollux serve --lun ram:1G
  pollux serve --data /srv/pollux --lun thin:1T --lun thick:64G,block=4096
  pollux serve --data ram:20G --lun thin:16G
  pollux serve --listen 0.0.0.0:3260 --lun file:/srv/lun0.img:500G --lun file:/dev/sdb,block=4096
  pollux serve --config /etc/pollux.toml --reactors 2-5 --poll busy";

/// What `pollux --help` says below.
const NOTES: &str = "\
pool, volume, snapshot and lun talk to the pollux that serves, by its socket (--socket PATH;
pollux-data/pollux.sock if not given). They print a table, or with --json one JSON document.
Sizes are bytes, or K, M, G, T (1K = 1024). Snapshots are named VOLUME@SNAPSHOT.

Exit status: 0 done; 1 refused, or check has left problems; 2 the command line is wrong;
3 no pollux answers.";

const POOL_NOTES: &str = "\
DEVICE is a block device or a file. A file that is missing is made SIZE large. A path that ends like a size gets one
more colon.

Examples:
  pollux pool create fast /dev/disk/by-id/nvme-A /dev/disk/by-id/nvme-B
  pollux pool create demo /srv/pool.img:200G
  pollux pool grow demo /srv/pool.img:400G     the file becomes larger
  pollux pool grow fast /dev/disk/by-id/nvme-C a device is added
  pollux pool grow fast                        takes what the devices themselves have grown by
  pollux pool delete demo";

const VOLUME_NOTES: &str = "\
Examples:
  pollux volume create vm1 1T                  thin: takes space where it is written
  pollux volume create db 64G --thick --block 4096
  pollux volume resize vm1 2T                  logged-in hosts hear of it
  pollux volume resize vm1 1T --shrink         what is behind the new end is lost
  pollux volume clone golden@v3 vm7            a writable volume that begins as the snapshot is
  pollux volume rollback vm1@monday            the volume becomes what the snapshot is
  pollux volume set vm1 --zero off             whole blocks of zeroes in writes take space
  pollux volume delete vm1";

const SNAPSHOT_NOTES: &str = "\
Examples:
  pollux snapshot create vm1@monday
  pollux snapshot list vm1
  pollux snapshot diff vm1@monday vm1@tuesday  the extents that differ, offset and length in bytes
  pollux snapshot diff vm1@monday vm1          what has changed since
  pollux snapshot delete vm1@monday";

const LUN_NOTES: &str = "\
Examples:
  pollux lun map vm1                           under the lowest number that is free
  pollux lun map vm1 --lun 7 --ro
  pollux lun list
  pollux lun unmap 7                           refused while sessions have it, unless --force";

const CHECK_NOTES: &str = "\
Name all devices of one pool. A pool that somebody serves is refused by name. The exit status is 0 if no problem is
left, 1 otherwise.

Examples:
  pollux check /dev/disk/by-id/nvme-A /dev/disk/by-id/nvme-B
  pollux check pollux-data/pool.img --repair";

/// Pollux: a polled-mode iSCSI target for virtualisation hosts.
///
/// Without a subcommand it serves the embedded default, as `pollux serve` does; see `pollux serve --help`.
#[derive(Debug, Parser)]
#[command(name = "pollux", version, max_term_width = 110, after_long_help = NOTES)]
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
    /// Make, list, grow and delete pools
    #[command(after_help = POOL_NOTES)]
    Pool(Pool),
    /// Make, list, resize, clone, roll back and delete volumes
    #[command(after_help = VOLUME_NOTES)]
    Volume(Volume),
    /// Take, list, compare and delete snapshots
    #[command(after_help = SNAPSHOT_NOTES)]
    Snapshot(Snapshot),
    /// Show volumes to hosts as LUNs
    #[command(after_help = LUN_NOTES)]
    Lun(Lun),
    /// Prove a pool's maps while nobody serves it
    #[command(after_help = CHECK_NOTES)]
    Check(Check),
}

/// How a command reaches the daemon and what it prints.
#[derive(Clone, Debug, Args)]
pub struct Daemon {
    /// The daemon's control socket
    #[arg(long, global = true, display_order = 100, value_name = "PATH", value_parser = parse_socket, default_value_os_t = default_socket())]
    pub socket: PathBuf,
    /// Print one JSON document
    #[arg(long, global = true, display_order = 101)]
    pub json: bool,
}

/// Where the embedded default's daemon listens.
pub fn default_socket() -> PathBuf {
    PathBuf::from(DEMO_DATA).join(SOCKET_FILE)
}

/// `pollux pool`.
#[derive(Debug, Args)]
pub struct Pool {
    /// How and where.
    #[command(flatten)]
    pub daemon: Daemon,
    /// What.
    #[command(subcommand)]
    pub action: PoolAction,
}

/// What to do with pools.
#[derive(Debug, Subcommand)]
pub enum PoolAction {
    /// Make a pool of devices: what is on them is lost
    Create {
        /// Its name
        #[arg(value_parser = parse_name)]
        name: String,
        /// What it is made of
        #[arg(required = true, value_name = "DEVICE[:SIZE]")]
        devices: Vec<Device>,
    },
    /// List the pools
    List,
    /// Add devices to a pool, or take what its devices have grown by
    Grow {
        /// Which
        #[arg(value_parser = parse_name)]
        name: String,
        /// A new device, or a file of the pool with its new size
        #[arg(value_name = "DEVICE[:SIZE]")]
        devices: Vec<Device>,
    },
    /// Delete a pool of which no LUN shows a volume
    Delete {
        /// Which
        #[arg(value_parser = parse_name)]
        name: String,
        /// Also if it has volumes, which are lost
        #[arg(long)]
        force: bool,
    },
}

/// Which pool is meant.
#[derive(Clone, Debug, Args)]
pub struct InPool {
    /// The pool; may be left out where there is only one
    #[arg(long, global = true, display_order = 99, value_name = "NAME", value_parser = parse_name)]
    pub pool: Option<String>,
}

/// `pollux volume`.
#[derive(Debug, Args)]
pub struct Volume {
    /// How and where.
    #[command(flatten)]
    pub daemon: Daemon,
    /// In which pool.
    #[command(flatten)]
    pub pool: InPool,
    /// What.
    #[command(subcommand)]
    pub action: VolumeAction,
}

/// What to do with volumes.
#[derive(Debug, Subcommand)]
pub enum VolumeAction {
    /// Make a volume
    Create {
        /// Its name
        #[arg(value_parser = parse_name)]
        name: String,
        /// Its size, as in 1T
        #[arg(value_parser = parse_capacity)]
        size: u64,
        /// Take space as it is written (default)
        #[arg(long, conflicts_with = "thick")]
        thin: bool,
        /// Set all of its space aside
        #[arg(long)]
        thick: bool,
        /// Logical block, 512 or 4096
        #[arg(long, value_name = "BYTES", default_value = "512", value_parser = parse_block_size)]
        block: u32,
        /// Physical block, 512 or 4096
        #[arg(long, value_name = "BYTES", default_value = "4096", value_parser = parse_block_size)]
        physical: u32,
        /// Whether whole blocks of zeroes in writes take no space
        #[arg(long, value_name = "on|off", default_value = "on", value_parser = parse_zero, action = clap::ArgAction::Set)]
        zero: bool,
        /// Answer a write before it is on the medium
        #[arg(long)]
        writeback: bool,
    },
    /// List the volumes
    List {
        /// Look first what is unique and what is shared now
        #[arg(long)]
        usage: bool,
    },
    /// Change a volume's size
    Resize {
        /// Which
        #[arg(value_parser = parse_name)]
        name: String,
        /// Its new size, as in 2T
        #[arg(value_parser = parse_capacity)]
        size: u64,
        /// Let it become smaller: what is behind the new end is lost
        #[arg(long)]
        shrink: bool,
        /// Shrink it also while sessions have it
        #[arg(long)]
        force: bool,
    },
    /// Make a writable volume that begins as a snapshot is
    Clone {
        /// Of what
        #[arg(value_name = "VOLUME@SNAPSHOT")]
        snapshot: SnapshotName,
        /// The new volume's name
        #[arg(value_parser = parse_name)]
        name: String,
        /// Take space as it is written, whatever the original does
        #[arg(long, conflicts_with = "thick")]
        thin: bool,
        /// Set all of its space aside, whatever the original does
        #[arg(long)]
        thick: bool,
    },
    /// Make a volume what one of its snapshots is: what was written since is lost
    Rollback {
        /// Which, and to what
        #[arg(value_name = "VOLUME@SNAPSHOT")]
        snapshot: SnapshotName,
        /// Also while sessions have it
        #[arg(long)]
        force: bool,
    },
    /// Delete a volume that has no snapshots
    Delete {
        /// Which
        #[arg(value_parser = parse_name)]
        name: String,
        /// Also while it is mapped: its LUN goes, under whoever has it
        #[arg(long)]
        force: bool,
    },
    /// Change how a volume works
    Set {
        /// Which
        #[arg(value_parser = parse_name)]
        name: String,
        /// Whether whole blocks of zeroes in writes take no space
        #[arg(long, value_name = "on|off", required = true, value_parser = parse_zero, action = clap::ArgAction::Set)]
        zero: bool,
    },
}

/// `pollux snapshot`.
#[derive(Debug, Args)]
pub struct Snapshot {
    /// How and where.
    #[command(flatten)]
    pub daemon: Daemon,
    /// In which pool.
    #[command(flatten)]
    pub pool: InPool,
    /// What.
    #[command(subcommand)]
    pub action: SnapshotAction,
}

/// What to do with snapshots.
#[derive(Debug, Subcommand)]
pub enum SnapshotAction {
    /// Take a snapshot
    Create {
        /// Of what, and its name
        #[arg(value_name = "VOLUME@SNAPSHOT")]
        snapshot: SnapshotName,
    },
    /// List the snapshots
    List {
        /// Of this volume only
        #[arg(value_parser = parse_name)]
        volume: Option<String>,
    },
    /// List the extents in which two states of a volume differ
    Diff {
        /// The older state
        #[arg(value_name = "VOLUME@SNAPSHOT")]
        from: SnapshotName,
        /// The newer one; a volume alone is what it is now
        #[arg(value_name = "VOLUME[@SNAPSHOT]", value_parser = parse_state)]
        to: String,
    },
    /// Delete a snapshot
    Delete {
        /// Which
        #[arg(value_name = "VOLUME@SNAPSHOT")]
        snapshot: SnapshotName,
    },
}

/// `pollux lun`.
#[derive(Debug, Args)]
pub struct Lun {
    /// How and where.
    #[command(flatten)]
    pub daemon: Daemon,
    /// What.
    #[command(subcommand)]
    pub action: LunAction,
}

/// What to do with LUNs.
#[derive(Debug, Subcommand)]
pub enum LunAction {
    /// Show a volume to hosts, now and after restarts
    Map {
        /// Which
        #[arg(value_parser = parse_name)]
        volume: String,
        /// Its pool; may be left out where there is only one
        #[arg(long, value_name = "NAME", value_parser = parse_name)]
        pool: Option<String>,
        /// Under this number; the lowest that is free if left out
        #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u16).range(0..=i64::from(LUN_NUMBER_MAX)))]
        lun: Option<u16>,
        /// By this target; may be left out where there is only one
        #[arg(long, value_name = "IQN")]
        target: Option<String>,
        /// Refuse writes
        #[arg(long)]
        ro: bool,
        /// Let the medium be ejected
        #[arg(long)]
        removable: bool,
    },
    /// Show a volume no longer
    Unmap {
        /// Its number
        #[arg(value_name = "LUN", value_parser = clap::value_parser!(u16).range(0..=i64::from(LUN_NUMBER_MAX)))]
        lun: u16,
        /// Of this target; may be left out where there is only one
        #[arg(long, value_name = "IQN")]
        target: Option<String>,
        /// Also while sessions have it
        #[arg(long)]
        force: bool,
    },
    /// List the LUNs
    List,
}

/// `pollux check`.
#[derive(Debug, Args)]
pub struct Check {
    /// All devices of one pool
    #[arg(required = true, value_name = "DEVICE")]
    pub devices: Vec<PathBuf>,
    /// Put right what can be
    #[arg(long)]
    pub repair: bool,
    /// Print one JSON document
    #[arg(long)]
    pub json: bool,
}

/// `VOLUME@SNAPSHOT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotName {
    /// The volume's name.
    pub volume: String,
    /// The snapshot's own.
    pub snapshot: String,
}

impl std::fmt::Display for SnapshotName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}@{}", self.volume, self.snapshot)
    }
}

impl std::str::FromStr for SnapshotName {
    type Err = Mistake;

    fn from_str(text: &str) -> Result<SnapshotName, Mistake> {
        let Some((volume, snapshot)) = text.split_once('@') else {
            let what = format!("{text:?} names no snapshot");
            return Err(Mistake::new(what, "write VOLUME@SNAPSHOT, as in vm1@monday"));
        };
        Ok(SnapshotName { volume: parse_name(volume)?, snapshot: parse_name(snapshot)? })
    }
}

fn parse_name(text: &str) -> Result<String, Mistake> {
    if is_name(text) {
        return Ok(text.to_owned());
    }
    let cure = format!("use 1 to {NAME_BYTES_MAX} of these: {NAME_CHARS}");
    Err(Mistake::new(format!("{text:?} is no name"), cure))
}

fn parse_state(text: &str) -> Result<String, Mistake> {
    if text.contains('@') {
        return text.parse::<SnapshotName>().map(|name| name.to_string());
    }
    parse_name(text)
}

fn parse_capacity(text: &str) -> Result<u64, Mistake> {
    check_capacity(text.parse::<Size>()?.0)
}

fn parse_data(text: &str) -> Result<PathBuf, Mistake> {
    let path = PathBuf::from(text);
    data_memory(&path).map(|_| path)
}

fn parse_block_size(text: &str) -> Result<u32, Mistake> {
    parse_block("block", text)
}

fn parse_zero(text: &str) -> Result<bool, Mistake> {
    parse_switch("zero", text)
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
    /// Keep state that must survive a restart in this directory; made if missing. ram:SIZE keeps nothing
    #[arg(long, value_name = "DIR|ram:SIZE", value_parser = parse_data)]
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

fn parse_socket(text: &str) -> Result<PathBuf, Mistake> {
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
            ("pollux serve --data ram:much", "written ./ram:much"),
            ("pollux serve --data ram:1K", "from 1M to 64T"),
            ("pollux pool create p ram:4G", "--data ram:SIZE"),
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
            ("pollux volumes", "unrecognized subcommand"),
            ("pollux volume", "Usage: pollux volume"),
            ("pollux volume create vm1", "<SIZE>"),
            ("pollux volume create vm1 1GB", "as in 64G"),
            ("pollux volume create vm1 1K", "from 1M to 64T"),
            ("pollux volume create vm@1 1T", "letters, digits"),
            ("pollux volume create vm1 1T --thin --thick", "cannot be used with"),
            ("pollux volume create vm1 1T --block 1024", "block=512"),
            ("pollux volume create vm1 1T --zero maybe", "zero=on"),
            ("pollux volume set vm1", "--zero"),
            ("pollux volume rollback vm1", "VOLUME@SNAPSHOT, as in vm1@monday"),
            ("pollux snapshot create vm1@", "\"\" is no name"),
            ("pollux snapshot create vm1@a@b", "\"a@b\" is no name"),
            ("pollux snapshot diff vm1 vm1@a", "VOLUME@SNAPSHOT, as in vm1@monday"),
            ("pollux pool create p", "<DEVICE[:SIZE]>"),
            ("pollux pool create p /a:1.5T", "end the path with a colon: /a:1.5T:"),
            ("pollux lun map vm1 --lun 16384", "16384 is not in 0..=16383"),
            ("pollux lun unmap vm1", "invalid digit"),
            ("pollux check", "<DEVICE>"),
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
            "file:PATH[:SIZE]",
            "zero=on|off",
            "written twice",
            "HUP",
            "replaces",
            "Examples",
        ] {
            assert!(help.contains(word), "{word}");
        }
        for line in ["pool", "volume", "snapshot", "lun", "check"] {
            let help = parse(&format!("pollux {line} --help")).expect_err("help is an early exit");
            assert!(help.contains("Examples:\n  pollux "), "{help}");
        }
        let help = parse("pollux --help").expect_err("help is an early exit");
        assert!(help.contains("Exit status: 0 done; 1 refused"), "{help}");
    }

    /// Goal: what the commands take arrives, options before and after the action.
    #[test]
    fn reads_commands() {
        let line = "pollux volume --json create vm1 1T --thick --zero off --socket s --pool p --block 4096";
        let Some(Command::Volume(volume)) = parse(line).unwrap().command else { panic!("volume") };
        assert_eq!((volume.daemon.json, volume.daemon.socket), (true, PathBuf::from("s")));
        assert_eq!(volume.pool.pool.as_deref(), Some("p"));
        let VolumeAction::Create { name, size, thick, block, physical, zero, writeback, .. } = volume.action
        else {
            panic!("create")
        };
        assert_eq!((name.as_str(), size, thick, block, physical), ("vm1", 1 << 40, true, 4096, 4096));
        assert!(!zero && !writeback);
        let line = "pollux snapshot diff vm1@a vm1";
        let Some(Command::Snapshot(snapshot)) = parse(line).unwrap().command else { panic!("snapshot") };
        assert_eq!(snapshot.daemon.socket, PathBuf::from("pollux-data/pollux.sock"));
        let SnapshotAction::Diff { from, to } = snapshot.action else { panic!("diff") };
        assert_eq!((from.to_string(), to), ("vm1@a".to_owned(), "vm1".to_owned()));
        let Some(Command::Check(check)) = parse("pollux check a b --repair").unwrap().command else {
            panic!()
        };
        assert_eq!((check.devices.len(), check.repair, check.json), (2, true, false));
    }
}
