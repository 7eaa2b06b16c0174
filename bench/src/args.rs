//! The command line, parsed into values that the rest need not doubt.

use crate::compare::target::{Poll, Target};
use crate::failure::Failure;
use crate::load::login::{Chap, Door, Offer};
use crate::load::pace::{RATE_MAX, Rate};
use crate::load::pattern::Pattern;
use crate::load::{Peer, Workload, wire};
use clap::{Args, Parser, Subcommand};
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

/// The target that `pollux` serves when nobody says otherwise.
pub const DEFAULT_TARGET: &str = "iqn.2026-11.io.pollux:demo";
/// Who we say we are.
pub const DEFAULT_INITIATOR: &str = "iqn.2026-11.io.pollux:bench";

/// What `bench compare --help` says below the options.
const COMPARE_NOTES: &str = "\
TARGET:
  raw                              the ceiling: raw sockets
  tgt                              Debian's tgtd, over a file in memory
  pollux[@POLL][:SPEC]             the program of --pollux, with that LUN, polling that way
  /PATH/OF/POLLUX[@POLL][:SPEC]    another pollux program, no colon in its path (needs a NAME)
  iscsi://HOST:PORT/IQN/LUN        one that runs already (needs a NAME)
  POLL is adaptive or busy, SPEC what pollux's own --lun takes. Names must differ.

Examples:
  bench compare --target pollux --target pollux:null:1G --target raw
  bench compare --target pollux@adaptive --target pollux@busy
  bench compare --target new=./target/release/pollux --target old=/srv/pollux:ram:1G --case 4k";

/// Measures iSCSI targets.
#[derive(Debug, Parser)]
#[command(name = "bench", version, about)]
pub struct Cli {
    /// What to measure.
    #[command(subcommand)]
    pub command: Command,
}

/// The measurements.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Load a logical unit and report rates and latencies
    Load(LoadArgs),
    /// Raw TCP sockets carrying iSCSI-shaped bytes: what no target on this machine can beat
    Ceiling(CeilingArgs),
    /// Targets side by side in one run, with ratios
    #[command(after_help = COMPARE_NOTES)]
    Compare(CompareArgs),
    /// fio's cases on several targets in turn, with ratios and with what fio itself limits marked
    Fio(FioArgs),
    /// A LUN on a file, beside what fio reaches on the same file without a target
    Disk(DiskArgs),
    /// What an idle target costs: CPU time and memory, without and with idle sessions
    Idle(IdleArgs),
    /// The pool in this process, without sockets: against the file below it, and against its bars
    Pool(PoolArgs),
    /// One unit on two reactors without sockets, beside two that share nothing
    Stack(StackArgs),
    /// Clone images by EXTENDED COPY inside a LUN, beside the host's own READ and WRITE
    Clone(CloneArgs),
    /// Zero by WRITE SAME, what is zero already and what many clones share
    Zero(ZeroArgs),
    /// COMPARE AND WRITE latencies, idle and while another session keeps the offloads busy
    Ats(AtsArgs),
    /// Hot parts of the target by themselves: headers, maps, mailboxes, zeroes and commits
    Micro(MicroArgs),
    /// Instructions of a 4 KiB read and write in user space, counted by valgrind: the same on every run
    Instructions(InstructionsArgs),
    /// Pictures of results: latencies against load, distributions, ratios
    Plot(PlotArgs),
}

/// Options of `bench plot`.
#[derive(Debug, Clone, Args)]
pub struct PlotArgs {
    /// Results of `bench load --json` and `bench compare --json`
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Where the pictures are written, as SVG; made if missing, and what is there under the same names is replaced
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub out: PathBuf,
}

/// What the image that is cloned holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Fill {
    /// One block of 4 KiB in every chunk of 64 KiB
    Sparse,
    /// Everything
    Full,
}

/// Options of `bench clone`, `zero` and `ats`.
#[derive(Debug, Clone, Args)]
pub struct OffloadArgs {
    /// The pollux program (default: beside this one, then target/release and target/quick)
    #[arg(long)]
    pub pollux: Option<PathBuf>,
    /// CPU of the target
    #[arg(long, default_value_t = 0)]
    pub target_cpu: usize,
    /// What an idle reactor of the target does: adaptive or busy
    #[arg(long, default_value = "adaptive", value_parser = ["adaptive", "busy"])]
    pub poll: String,
    /// CPU of the initiator
    #[arg(long, default_value_t = 1)]
    pub cpu: usize,
    /// Where the pool's file is made; repeatable, each is measured by itself. One under /dev/shm counts as a `ram` pool
    /// (default: the directory for temporary files, then /dev/shm)
    #[arg(long = "dir")]
    pub dirs: Vec<PathBuf>,
    /// Bytes of the image: a multiple of 64M
    #[arg(long, default_value = "16G", value_parser = parse_bytes)]
    pub image: u64,
    /// What the image holds
    #[arg(long, value_enum, default_value = "sparse")]
    pub fill: Fill,
    /// Seconds after which a command or a login is given up, and the run with it
    #[arg(long, default_value_t = 30.0)]
    pub timeout: f64,
    /// Print one JSON document instead of a table
    #[arg(long)]
    pub json: bool,
}

/// Options of `bench clone`.
#[derive(Debug, Clone, Args)]
pub struct CloneArgs {
    /// Bytes that the host copies by itself; its time is scaled to the image
    #[arg(long, default_value = "2G", value_parser = parse_bytes)]
    pub host_bytes: u64,
    /// Many clones, half of them clones of clones, then writes and reads on 100 of them
    #[arg(long)]
    pub vdi: bool,
    /// How many, with --vdi
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(2..=2000))]
    pub clones: u64,
    /// Writes, and as many reads, with --vdi
    #[arg(long, default_value_t = 20_000)]
    pub operations: u64,
    /// Common ones
    #[command(flatten)]
    pub offload: OffloadArgs,
}

/// Options of `bench zero`.
#[derive(Debug, Clone, Args)]
pub struct ZeroArgs {
    /// Clones that are zeroed
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..=1000))]
    pub clones: u64,
    /// Common ones
    #[command(flatten)]
    pub offload: OffloadArgs,
}

/// Options of `bench ats`.
#[derive(Debug, Clone, Args)]
pub struct AtsArgs {
    /// Seconds of each, idle and loaded
    #[arg(long, default_value_t = 10.0)]
    pub time: f64,
    /// Common ones
    #[command(flatten)]
    pub offload: OffloadArgs,
}

/// Shape of the load, common to all subcommands that make one.
#[derive(Debug, Clone, Args)]
pub struct TimingArgs {
    /// Seconds measured
    #[arg(long, default_value_t = 5.0)]
    pub time: f64,
    /// Seconds before that, not counted
    #[arg(long, default_value_t = 1.0)]
    pub warmup: f64,
    /// Seconds after which a command or a login is given up, and the run with it
    #[arg(long, default_value_t = 10.0)]
    pub timeout: f64,
    /// Print one JSON document instead of tables
    #[arg(long)]
    pub json: bool,
}

/// Options of `bench load`.
#[derive(Debug, Clone, Args)]
pub struct LoadArgs {
    /// Instead of --portal, --target and --lun: `iscsi://[USER%SECRET@]HOST[:PORT]/IQN/LUN`
    pub url: Option<String>,
    /// The target's address
    #[arg(long, default_value = "127.0.0.1:3260")]
    pub portal: String,
    /// The target's name
    #[arg(long, default_value = DEFAULT_TARGET)]
    pub target: String,
    /// The logical unit
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u16).range(..16384))]
    pub lun: u16,
    /// Bytes of one command
    #[arg(long, default_value = "4k", value_parser = parse_bytes)]
    pub bs: u64,
    /// Pattern
    #[arg(long, value_enum, default_value = "randread")]
    pub rw: Pattern,
    /// Percent of reads in randrw
    #[arg(long, default_value_t = 70, value_parser = clap::value_parser!(u8).range(..=100))]
    pub mix: u8,
    /// Commands under way in each session; with --rate at most
    #[arg(long, default_value_t = 32)]
    pub qd: usize,
    /// Sessions in all, dealt to the CPUs in turn
    #[arg(long, default_value_t = 1)]
    pub sessions: usize,
    /// Commands a second over all sessions, at fixed times whatever the target does; latencies then count from the time
    /// at which a command was to be sent (default: the next one as soon as one has ended)
    #[arg(long, value_parser = parse_rate)]
    pub rate: Option<Rate>,
    /// CPUs of the generator, one busy thread each
    #[arg(long, default_value = "1", value_parser = parse_cpus)]
    pub cpu: CpuList,
    /// Bytes of the unit to use, from its start (default: all)
    #[arg(long, value_parser = parse_bytes)]
    pub range: Option<u64>,
    /// Stamp what is written and check what is read; at the end read back all that was written
    #[arg(long)]
    pub verify: bool,
    /// Write the whole range once before measuring
    #[arg(long)]
    pub precondition: bool,
    /// Of the sequence of blocks
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// What plots call the target (default: IQN/LUN)
    #[arg(long)]
    pub name: Option<String>,
    /// How to log in
    #[command(flatten)]
    pub login: LoginArgs,
    /// How long
    #[command(flatten)]
    pub timing: TimingArgs,
}

/// What is offered at login.
#[derive(Debug, Clone, Args)]
pub struct LoginArgs {
    /// Digests to insist on: none, header, data or both
    #[arg(long, default_value = "none", value_parser = parse_digests)]
    pub digests: Digests,
    /// USER:SECRET for a target that wants CHAP (one way, MD5)
    #[arg(long, value_parser = parse_chap)]
    pub chap: Option<Chap>,
    /// Offer to send data with the command
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set)]
    pub immediate: bool,
    /// Insist that nothing beyond that is sent unasked
    #[arg(long)]
    pub initial_r2t: bool,
    /// FirstBurstLength to offer
    #[arg(long, default_value = "8k", value_parser = parse_length)]
    pub first_burst: u32,
    /// MaxBurstLength to offer
    #[arg(long, default_value = "1M", value_parser = parse_length)]
    pub max_burst: u32,
    /// MaxRecvDataSegmentLength to declare (default: --bs, but between 64k and 1M)
    #[arg(long, value_parser = parse_length)]
    pub max_receive: Option<u32>,
    /// Our own name
    #[arg(long, default_value = DEFAULT_INITIATOR)]
    pub initiator: String,
}

/// Options of `bench ceiling`.
#[derive(Debug, Clone, Args)]
pub struct CeilingArgs {
    /// CPU of the server
    #[arg(long, default_value_t = 0)]
    pub server_cpu: usize,
    /// CPU of the generator
    #[arg(long, default_value_t = 1)]
    pub cpu: usize,
    /// Bytes of the server's memory
    #[arg(long, default_value = "256M", value_parser = parse_bytes)]
    pub memory: u64,
    /// Only cases whose name has these words, as in "4k randread qd1" or 1M
    #[arg(long, default_value = "")]
    pub case: String,
    /// Times that each case is measured; the median counts
    #[arg(long, default_value_t = 3)]
    pub repeats: usize,
    /// How long
    #[command(flatten)]
    pub timing: TimingArgs,
}

/// Options of `bench compare`.
#[derive(Debug, Clone, Args)]
pub struct CompareArgs {
    /// What to measure, as told below; repeatable. The others are told as ratios to the last one
    #[arg(long = "target", value_name = "[NAME=]TARGET", required = true, value_parser = Target::parse)]
    pub targets: Vec<Target>,
    /// The pollux program (default: beside this one, then target/release and target/quick)
    #[arg(long)]
    pub pollux: Option<PathBuf>,
    /// The LUN of a pollux whose target says no SPEC
    #[arg(long, value_name = "SPEC", default_value = "ram:256M")]
    pub pollux_lun: String,
    /// How a pollux polls whose target doesn't say it
    #[arg(long, value_enum, default_value = "busy")]
    pub pollux_poll: Poll,
    /// CPU of the targets
    #[arg(long, default_value_t = 0)]
    pub target_cpu: usize,
    /// CPU of the generator
    #[arg(long, default_value_t = 1)]
    pub cpu: usize,
    /// Bytes of the unit to use; written once before measuring
    #[arg(long, default_value = "256M", value_parser = parse_bytes)]
    pub range: u64,
    /// Only cases whose name has these words, as in "4k randread qd1" or 1M
    #[arg(long, default_value = "")]
    pub case: String,
    /// Times that each case is measured on each target, in turn; ratios are medians of those within a repeat
    #[arg(long, default_value_t = 3)]
    pub repeats: usize,
    /// How to log in
    #[command(flatten)]
    pub login: LoginArgs,
    /// How long
    #[command(flatten)]
    pub timing: TimingArgs,
}

/// Options of `bench fio`.
#[derive(Debug, Clone, Args)]
pub struct FioArgs {
    /// pollux, tgt, NAME=iscsi://HOST:PORT/IQN/LUN for one that runs already, or NAME=/dev/DISK for a disk that the kernel's
    /// initiator has logged in to; repeatable. What is on them is lost. The others are told as ratios to the last one
    #[arg(long = "target", required = true)]
    pub targets: Vec<String>,
    /// The fio program, with the engine libiscsi for targets that are no disks
    #[arg(long, default_value = "fio")]
    pub fio: PathBuf,
    /// The pollux program (default: beside this one, then target/release and target/quick)
    #[arg(long)]
    pub pollux: Option<PathBuf>,
    /// The LUN that pollux is told to serve
    #[arg(long, default_value = "ram:256M")]
    pub pollux_lun: String,
    /// How pollux polls
    #[arg(long, default_value = "adaptive")]
    pub pollux_poll: String,
    /// CPU of the targets
    #[arg(long, default_value_t = 0)]
    pub target_cpu: usize,
    /// CPU of fio
    #[arg(long, default_value_t = 1)]
    pub cpu: usize,
    /// Bytes of the unit to use; written once before measuring
    #[arg(long, default_value = "256M", value_parser = parse_bytes)]
    pub range: u64,
    /// Only cases whose name has these words, as in "4k qd1" or mixed
    #[arg(long, default_value = "")]
    pub case: String,
    /// Times that each case is measured on each target, in turn; the median counts
    #[arg(long, default_value_t = 3)]
    pub repeats: usize,
    /// Seconds that each is measured, after one that doesn't count
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub time: u32,
    /// Print one JSON document instead of a table
    #[arg(long)]
    pub json: bool,
}

/// Options of `bench disk`.
#[derive(Debug, Clone, Args)]
pub struct DiskArgs {
    /// Where the file is made (default: the directory for temporary files). One in memory says nothing
    #[arg(long)]
    pub dir: Option<PathBuf>,
    /// Bytes of the file
    #[arg(long, default_value = "1G", value_parser = parse_bytes)]
    pub size: u64,
    /// The fio program, with the engine io_uring
    #[arg(long, default_value = "fio")]
    pub fio: PathBuf,
    /// The pollux program (default: beside this one, then target/release and target/quick)
    #[arg(long)]
    pub pollux: Option<PathBuf>,
    /// How pollux polls
    #[arg(long, default_value = "adaptive")]
    pub pollux_poll: String,
    /// CPU of the target, and of fio
    #[arg(long, default_value_t = 0)]
    pub target_cpu: usize,
    /// CPU of the generator, and of a thread that spins while fio is measured
    #[arg(long, default_value_t = 1)]
    pub cpu: usize,
    /// Depths
    #[arg(long, default_value = "1,32", value_delimiter = ',', value_parser = parse_depth)]
    pub qd: Vec<usize>,
    /// Pairs of each case; the median counts
    #[arg(long, default_value_t = 7)]
    pub repeats: usize,
    /// Seconds of each measurement, after 0.2 that don't count
    #[arg(long, default_value_t = 0.6)]
    pub time: f64,
    /// Print one JSON document instead of a table
    #[arg(long)]
    pub json: bool,
}

/// What `bench stack` does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum StackKind {
    /// Random reads
    Read,
    /// Random writes
    Write,
    /// Copies inside a volume
    Copy,
}

/// Options of `bench stack`.
#[derive(Debug, Clone, Args)]
pub struct StackArgs {
    /// CPUs of the two reactors
    #[arg(long, default_value = "0,1", value_delimiter = ',')]
    pub cpus: Vec<usize>,
    /// Requests under way on each reactor
    #[arg(long, default_value_t = 32)]
    pub depth: usize,
    /// Copies under way on each reactor
    #[arg(long, default_value_t = 64)]
    pub copies: usize,
    /// Bytes of the unit in memory
    #[arg(long, default_value = "256M", value_parser = parse_bytes)]
    pub range: u64,
    /// Seconds before anything is counted
    #[arg(long, default_value_t = 0.5)]
    pub warmup: f64,
    /// Seconds that are counted
    #[arg(long, default_value_t = 2.0)]
    pub time: f64,
    /// Times that each case is measured, in turn with its other side; the median counts
    #[arg(long, default_value_t = 5)]
    pub repeats: usize,
    /// Where the pool's file is made, in memory for the figures that count
    #[arg(long, default_value = "/dev/shm")]
    pub dir: PathBuf,
    /// Print one JSON document instead of a table
    #[arg(long)]
    pub json: bool,
    /// One measurement of this, by the reactors of this process alone
    #[arg(long, hide = true)]
    pub alone: Option<StackKind>,
}

/// Options of `bench idle`.
#[derive(Debug, Clone, Args)]
pub struct IdleArgs {
    /// The pollux program (default: beside this one, then target/release and target/quick)
    #[arg(long)]
    pub pollux: Option<PathBuf>,
    /// CPU of the target
    #[arg(long, default_value_t = 0)]
    pub target_cpu: usize,
    /// Idle sessions
    #[arg(long, default_value_t = 1000)]
    pub sessions: usize,
    /// CPU of the load that is measured without them and beside them
    #[arg(long, default_value_t = 1)]
    pub cpu: usize,
    /// Times that it is, in turn; the median of the pairs counts. 0: not at all
    #[arg(long, default_value_t = 9)]
    pub repeats: u32,
    /// Seconds each state is watched
    #[arg(long, default_value_t = 10.0)]
    pub time: f64,
    /// Seconds after which a login is given up
    #[arg(long, default_value_t = 10.0)]
    pub timeout: f64,
    /// How the target polls
    #[arg(long, default_value = "adaptive")]
    pub poll: String,
    /// The LUN that it serves
    #[arg(long, default_value = "ram:256M")]
    pub pollux_lun: String,
    /// Print one JSON document instead of a table
    #[arg(long)]
    pub json: bool,
}

/// Options of `bench pool`.
#[derive(Debug, Clone, Args)]
pub struct PoolArgs {
    /// What to measure; repeatable (default: all)
    #[arg(long = "case", value_enum)]
    pub cases: Vec<PoolCase>,
    /// Where the pool of the case `file` is made, and beside it PATH.base for the bare file; both are removed again
    /// (default: in the directory for temporary files)
    #[arg(long)]
    pub file: Option<PathBuf>,
    /// Bytes that the case `file` uses of each device
    #[arg(long, default_value = "1G", value_parser = parse_bytes)]
    pub size: u64,
    /// Bytes of the volume that gets a snapshot every so many writes
    #[arg(long, default_value = "1G", value_parser = parse_bytes)]
    pub volume: u64,
    /// Writes between two of its snapshots
    #[arg(long, default_value_t = 100_000)]
    pub writes: u64,
    /// A tenth of everything
    #[arg(long)]
    pub quick: bool,
    /// Rounds in which both sides take turns; the medians count
    #[arg(long, default_value_t = 5)]
    pub rounds: usize,
    /// Seconds of each side in a round
    #[arg(long, default_value_t = 2.0)]
    pub time: f64,
    /// The CPU to run on
    #[arg(long, default_value_t = 0)]
    pub cpu: usize,
    /// Print one JSON document instead of a table
    #[arg(long)]
    pub json: bool,
}

/// The parts of `bench pool`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum PoolCase {
    /// A thin volume on a file against the file alone
    File,
    /// Overwrites under many snapshots, and what snapshots make of them
    Snapshots,
    /// Writes to a fresh clone
    Clone,
    /// Maps of 1 TiB, snapshots of it, and opening after a crash
    Memory,
    /// Copies that move pointers
    Copy,
    /// Zero-detect on data without zeroes
    Zero,
}

/// Options of `bench instructions`.
#[derive(Debug, Clone, Args)]
pub struct InstructionsArgs {
    /// The program valgrind
    #[arg(long, default_value = "valgrind")]
    pub valgrind: PathBuf,
    /// Print one JSON document instead of a table
    #[arg(long)]
    pub json: bool,
    /// Only carry these commands out: what valgrind is given
    #[arg(long, value_enum, hide = true, requires = "batches")]
    pub alone: Option<InstructionsKind>,
    /// So many times 32 of them
    #[arg(long, hide = true)]
    pub batches: Option<u64>,
}

/// The commands of `bench instructions`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum InstructionsKind {
    /// READ(16), done at once
    Read,
    /// WRITE(16) that comes with its data, done at once
    Write,
    /// The same with header and data digests
    ReadWithDigests,
    /// The same with header and data digests
    WriteWithDigests,
    /// READ(16) that becomes a task, as of any device that takes time, which here takes none
    ReadAsATask,
    /// WRITE(16) likewise
    WriteAsATask,
}

/// Options of `bench micro`.
#[derive(Debug, Clone, Args)]
pub struct MicroArgs {
    /// What to measure; repeatable (default: all)
    #[arg(long = "case", value_enum)]
    pub cases: Vec<MicroCase>,
    /// Rounds of each row; the median counts
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub rounds: u32,
    /// Seconds of a round
    #[arg(long, default_value_t = 0.2)]
    pub time: f64,
    /// The CPU to run on
    #[arg(long, default_value_t = 0)]
    pub cpu: usize,
    /// The CPU of the second reactor of the case `mailbox` (default: the first other one that this process may use, the
    /// same one where there is no other)
    #[arg(long)]
    pub peer_cpu: Option<usize>,
    /// Bytes of the volumes of the case `map`, from 4M to 4T
    #[arg(long, default_value = "16G", value_parser = parse_bytes)]
    pub volume: u64,
    /// Where the file of the case `commit` is made, and removed again (default: the directory for temporary files)
    #[arg(long)]
    pub dir: Option<PathBuf>,
    /// Print one JSON document instead of a table
    #[arg(long)]
    pub json: bool,
}

/// The parts of `bench micro`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum MicroCase {
    /// Headers decoded and encoded, digests
    Codec,
    /// Slots looked up in a volume's map
    Map,
    /// A message from one reactor to another
    Mailbox,
    /// The search for blocks of zeroes
    Zero,
    /// Commits of a journal
    Commit,
}

/// CPU numbers; a type of its own because clap gives a plain `Vec` another meaning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CpuList(pub Vec<usize>);

/// Digests to insist on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Digests {
    /// Behind headers.
    pub header: bool,
    /// Behind data.
    pub data: bool,
}

impl Digests {
    /// Whether there are any.
    pub fn any(self) -> bool {
        self.header || self.data
    }
}

impl LoginArgs {
    /// Who logs in at `portal`, for commands of `block_bytes`.
    pub fn door(&self, portal: SocketAddr, target: String, chap: Option<Chap>, block_bytes: u32) -> Door {
        let max_receive = self.max_receive.unwrap_or_else(|| block_bytes.clamp(64 << 10, 1 << 20));
        Door {
            portal,
            target,
            initiator: self.initiator.clone(),
            chap: chap.or_else(|| self.chap.clone()),
            offer: Offer {
                header_digest: self.digests.header,
                data_digest: self.digests.data,
                immediate_data: self.immediate,
                initial_r2t: self.initial_r2t,
                // A first burst may not be longer than a burst. RFC 7143 §13.14.
                first_burst: self.first_burst.min(self.max_burst),
                max_burst: self.max_burst,
                max_receive,
            },
        }
    }
}

impl LoadArgs {
    /// Whom to load.
    ///
    /// # Errors
    /// The URL or the portal isn't one.
    pub fn peer(&self) -> Result<Peer, Failure> {
        let block_bytes = self.bs as u32;
        let url = match &self.url {
            Some(url) => Url::parse(url)?,
            None => {
                Url { chap: None, portal: resolve(&self.portal)?, target: self.target.clone(), lun: self.lun }
            }
        };
        let door = self.login.door(url.portal, url.target, url.chap, block_bytes);
        Ok(Peer::Iscsi { door, lun: url.lun })
    }

    /// What plots are to call it.
    pub fn name(&self, peer: &Peer) -> String {
        match (&self.name, peer) {
            (Some(name), _) => name.clone(),
            (None, Peer::Iscsi { door, lun }) => format!("{}/{lun}", door.target),
            (None, Peer::Raw { .. }) => "raw".to_owned(),
        }
    }

    /// What to do to it.
    ///
    /// # Errors
    /// A time isn't one, the block is too large.
    pub fn workload(&self) -> Result<Workload, Failure> {
        let block_bytes = u32::try_from(self.bs)
            .ok()
            .filter(|bytes| (512..=wire::SEGMENT_BYTES_MAX).contains(bytes))
            .ok_or_else(|| Failure::new(format!("--bs {} is not between 512 and 16M less one", self.bs)))?;
        Ok(Workload {
            block_bytes,
            pattern: self.rw,
            mix: self.mix,
            depth: self.qd,
            sessions: self.sessions,
            rate: self.rate,
            warmup: seconds("--warmup", self.timing.warmup)?,
            time: positive_seconds("--time", self.timing.time)?,
            timeout: positive_seconds("--timeout", self.timing.timeout)?,
            range_bytes: self.range,
            verify: self.verify,
            precondition: self.precondition,
            shuffled: false,
            seed: self.seed,
            cpus: self.cpu.0.clone(),
        })
    }
}

/// A logical unit's address as libiscsi writes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Url {
    /// User and secret.
    pub chap: Option<Chap>,
    /// Address and port.
    pub portal: SocketAddr,
    /// The target's name.
    pub target: String,
    /// The logical unit.
    pub lun: u16,
}

impl Url {
    /// Parses `iscsi://[USER%SECRET@]HOST[:PORT]/IQN/LUN`.
    ///
    /// # Errors
    /// Says what is missing.
    pub fn parse(text: &str) -> Result<Url, Failure> {
        let wrong = || Failure::new(format!("{text:?} is not iscsi://[USER%SECRET@]HOST[:PORT]/IQN/LUN"));
        let rest = text.strip_prefix("iscsi://").ok_or_else(wrong)?;
        let mut parts = rest.split('/');
        let (Some(place), Some(target), Some(lun), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(wrong());
        };
        let (chap, host) = match place.rsplit_once('@') {
            None => (None, place),
            Some((login, host)) => {
                let (user, secret) = login.split_once('%').ok_or_else(wrong)?;
                (Some(Chap { user: user.into(), secret: secret.into() }), host)
            }
        };
        let lun = lun.parse().ok().filter(|lun| *lun < 16384).ok_or_else(wrong)?;
        if target.is_empty() {
            return Err(wrong());
        }
        Ok(Url { chap, portal: resolve(host)?, target: target.into(), lun })
    }
}

/// The first address of `HOST[:PORT]`; the port is 3260 unless told.
///
/// # Errors
/// The name has no address.
pub fn resolve(host: &str) -> Result<SocketAddr, Failure> {
    let has_port = host.rsplit_once(':').is_some_and(|(front, port)| {
        port.chars().all(|c| c.is_ascii_digit()) && (!front.contains(':') || front.ends_with(']'))
    });
    let with_port = if has_port { host.to_owned() } else { format!("{host}:3260") };
    let mut addresses =
        with_port.to_socket_addrs().map_err(|error| Failure::new(format!("portal {host:?}: {error}")))?;
    addresses.next().ok_or_else(|| Failure::new(format!("portal {host:?} has no address")))
}

/// A time in seconds, zero allowed.
///
/// # Errors
/// Negative, no number, or over a day.
pub fn seconds(option: &str, value: f64) -> Result<Duration, Failure> {
    if (0.0..=86_400.0).contains(&value) {
        return Ok(Duration::from_secs_f64(value));
    }
    Err(Failure::new(format!("{option} {value} is not between 0 and 86400 seconds")))
}

/// A time in seconds that isn't zero.
///
/// # Errors
/// As [`seconds`], and zero.
pub fn positive_seconds(option: &str, value: f64) -> Result<Duration, Failure> {
    if value < 0.01 {
        return Err(Failure::new(format!("{option} {value} is shorter than 0.01 seconds")));
    }
    seconds(option, value)
}

/// Commands under way.
fn parse_depth(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(depth @ 1..=1024) => Ok(depth),
        _ => Err(format!("{text:?} is no depth between 1 and 1024")),
    }
}

/// A number of bytes: `4096`, `4k`, `64KiB`, `256M`, `1G`, `1T`; suffixes are powers of 1,024.
fn parse_bytes(text: &str) -> Result<u64, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, suffix) = text.split_at(digits);
    let shift = match suffix.to_ascii_lowercase().trim_end_matches("ib").trim_end_matches('b') {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return Err(format!("{text:?} is no size such as 4096, 4k, 256M or 1G")),
    };
    number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(1 << shift))
        .ok_or_else(|| format!("{text:?} is no size such as 4096, 4k, 256M or 1G"))
}

/// A length that a login key can say.
fn parse_length(text: &str) -> Result<u32, String> {
    let bytes = parse_bytes(text)?;
    match u32::try_from(bytes) {
        Ok(bytes) if (512..=wire::SEGMENT_BYTES_MAX).contains(&bytes) => Ok(bytes),
        _ => Err(format!("{text:?} is not between 512 and 16777215 bytes")),
    }
}

/// Commands a second. A plain number: a `k` would be 1,024 beside --bs, and a thousand to most people.
fn parse_rate(text: &str) -> Result<Rate, String> {
    let per_second = text.parse::<u64>().map_err(|_| {
        format!(
            "{text:?} is no whole number of commands a second from 1 to {RATE_MAX}: give one such as 20000, without \
             unit"
        )
    })?;
    Rate::new(per_second).map_err(|failure| failure.to_string())
}

fn parse_cpus(text: &str) -> Result<CpuList, String> {
    crate::cpu::parse_list(text).map(CpuList)
}

fn parse_digests(text: &str) -> Result<Digests, String> {
    let mut digests = Digests { header: false, data: false };
    for name in text.split(',').filter(|name| *name != "none") {
        match name {
            "header" => digests.header = true,
            "data" => digests.data = true,
            "both" => digests = Digests { header: true, data: true },
            _ => return Err(format!("{name:?} is no digest: none, header, data or both")),
        }
    }
    Ok(digests)
}

fn parse_chap(text: &str) -> Result<Chap, String> {
    match text.split_once(':') {
        Some((user, secret)) if !user.is_empty() && !secret.is_empty() => {
            Ok(Chap { user: user.into(), secret: secret.into() })
        }
        _ => Err("not USER:SECRET".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the command line's own definitions agree with each other. Method: clap's check of them.
    #[test]
    fn the_command_line_is_sound() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    /// Goal: sizes as people write them. Method: good and bad ones.
    #[test]
    fn sizes() {
        for (text, bytes) in
            [("4096", 4096), ("4k", 4096), ("64KiB", 65_536), ("1MB", 1 << 20), ("2G", 2 << 30)]
        {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for bad in ["", "k", "4x", "-1", "99999999999999999999", "99999999999T"] {
            assert!(parse_bytes(bad).is_err(), "{bad}");
        }
        assert!(parse_length("16M").is_err());
    }

    /// Goal: URLs as libiscsi's. Method: with and without port and user; broken ones.
    #[test]
    fn urls() {
        let url = Url::parse("iscsi://me%pass@127.0.0.1:860/iqn.a:b/3").unwrap();
        assert_eq!(url.portal, "127.0.0.1:860".parse().unwrap());
        assert_eq!((url.target.as_str(), url.lun), ("iqn.a:b", 3));
        assert_eq!(url.chap, Some(Chap { user: "me".into(), secret: "pass".into() }));
        assert_eq!(Url::parse("iscsi://[::1]/iqn.a/0").unwrap().portal, "[::1]:3260".parse().unwrap());
        for bad in
            ["", "http://a/b/0", "iscsi://127.0.0.1/iqn", "iscsi://127.0.0.1/iqn/x", "iscsi://127.0.0.1//1"]
        {
            assert!(Url::parse(bad).is_err(), "{bad}");
        }
    }

    /// Goal: a plain `bench load` is 4 KiB random reads at depth 32 on CPU 1, offering what peers offer, and
    /// options reach their values. Method: parse both.
    #[test]
    fn options_reach_their_values() {
        let load =
            |line: &[&str]| match Cli::try_parse_from([&["bench", "load"], line].concat()).unwrap().command {
                Command::Load(args) => args,
                _ => unreachable!("load was asked for"),
            };
        let plain = load(&[]);
        let workload = plain.workload().unwrap();
        assert_eq!((workload.block_bytes, workload.depth, workload.cpus), (4096, 32, vec![1]));
        let Peer::Iscsi { door, lun } = plain.peer().unwrap() else { panic!("load speaks iSCSI") };
        assert_eq!(
            (door.offer.first_burst, door.offer.max_burst, door.offer.max_receive),
            (8192, 1 << 20, 65_536)
        );
        assert!(door.offer.immediate_data && !door.offer.header_digest && lun == 0);
        assert_eq!(plain.name(&plain.peer().unwrap()), format!("{DEFAULT_TARGET}/0"));
        let named = load(&["--name", "new"]);
        assert_eq!(named.name(&named.peer().unwrap()), "new");
        let other = load(&["--bs", "1M", "--digests", "header,data", "--immediate", "false", "--cpu", "0,1"]);
        let Peer::Iscsi { door, .. } = other.peer().unwrap() else { panic!("load speaks iSCSI") };
        assert_eq!(door.offer.max_receive, 1 << 20);
        assert!(door.offer.header_digest && door.offer.data_digest && !door.offer.immediate_data);
        assert!(load(&["--bs", "1G"]).workload().is_err());
        assert_eq!(workload.rate, None);
        let paced = load(&["--rate", "20000"]).workload().unwrap();
        assert_eq!(paced.rate.map(Rate::per_second), Some(20_000));
    }

    /// Goal: a rate that can't be is told with the option, the value and what to do. Method: one of each kind.
    #[test]
    fn bad_rates_are_told() {
        for (bad, cure) in [
            ("0", "give 1 to 100000000"),
            ("100000001", "give 1 to 100000000"),
            ("99999999999999999999", "give one such as 20000"),
            ("20k", "give one such as 20000"),
            ("1.5", "give one such as 20000"),
            ("-5", "give one such as 20000"),
            ("", "give one such as 20000"),
        ] {
            let line = format!("--rate={bad}");
            let error = Cli::try_parse_from(["bench", "load", &line]).unwrap_err().to_string();
            for part in ["--rate", bad, cure] {
                assert!(error.contains(part), "{error}");
            }
        }
    }

    /// Goal: a plain `bench micro` measures everything, and options reach their values; what can't be is refused. Method:
    /// parse both.
    #[test]
    fn micro_options_reach_their_values() {
        let parse = |line: &[&str]| Cli::try_parse_from([&["bench", "micro"], line].concat());
        let micro = |line: &[&str]| match parse(line).unwrap().command {
            Command::Micro(args) => args,
            _ => unreachable!("micro was asked for"),
        };
        let plain = micro(&[]);
        assert!(plain.cases.is_empty() && !plain.json && plain.peer_cpu.is_none() && plain.dir.is_none());
        assert_eq!((plain.rounds, plain.cpu, plain.volume), (9, 0, 16 << 30));
        let other = micro(&[
            "--case",
            "map",
            "--case",
            "zero",
            "--rounds",
            "3",
            "--cpu",
            "2",
            "--peer-cpu",
            "5",
            "--volume",
            "1T",
            "--dir",
            "/x",
            "--json",
        ]);
        assert_eq!(other.cases, [MicroCase::Map, MicroCase::Zero]);
        assert_eq!((other.rounds, other.cpu, other.peer_cpu, other.volume), (3, 2, Some(5), 1 << 40));
        assert!(other.json && other.dir == Some("/x".into()));
        for bad in [["--case", "nothing"], ["--rounds", "0"], ["--rounds", "1001"], ["--volume", "x"]] {
            assert!(parse(&bad).is_err(), "{bad:?}");
        }
    }
}
