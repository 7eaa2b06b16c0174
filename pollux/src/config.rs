//! What this process serves and how: a value that cannot be wrong.
//!
//! Three sources make it, each over the one before: the embedded default (or, with `--config`, the defaults of
//! the file's own keys), the file, the command line. **The rule:** an option that is given replaces the file's
//! value whole; the repeatable ones, `--listen` and `--lun`, replace the file's whole list.
//!
//! [`mod@file`] reads the TOML, `reader` walks it and says where each mistake is. What only the running system can
//! tell (is the port free, does the disk open) is `boot`'s to find out.

pub mod file;
mod reader;

use crate::args::Serve;
use crate::mistake::{Mistake, Mistakes};
use crate::spec::{Backing, LunSpec, Size, check_capacity};
use bdev::pool::control::Provisioning;
use iscsi::access::DiscoveryRule;
use iscsi::name::IscsiName;
use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

/// Units one target shows: what is tested, and more than a VMFS host likes to see from one target.
pub const LUNS_MAX: usize = 255;
/// Highest LUN number: flat space addressing has 14 bits (SAM-5 §4.7.7.3).
pub const LUN_NUMBER_MAX: u16 = vaai::limits::LUN_MAX;
/// Reactors: a pool has 256 slices, and a core without a slice would own nothing.
pub const REACTORS_MAX: usize = 256;
/// Reactors when nobody says how many: enough for a first look, without taking a large machine whole.
pub const REACTORS_DEFAULT: usize = 8;
/// Highest CPU number that a CPU list can name.
pub const CPU_NUMBER_MAX: u16 = 1023;
/// Portals.
pub const PORTALS_MAX: usize = 64;
/// Hosts in the access list.
pub const HOSTS_MAX: usize = 4096;
/// A TargetAlias' bytes (RFC 7143 §13.7).
pub const ALIAS_BYTES_MAX: usize = 255;
/// A CHAP secret's bytes: what ESXi lets people enter.
pub const CHAP_SECRET_BYTES_MAX: usize = 255;
/// A CHAP secret under 96 bits can be found by trying (RFC 7143 §9.2.1); a shorter one is warned about.
pub const CHAP_SECRET_BYTES_WISE: usize = iscsi::chap::SECRET_BYTES_MIN;
/// Buffer memory of one reactor.
pub const MEMORY_BYTES_MIN: u64 = 16 << 20;
/// As above.
pub const MEMORY_BYTES_MAX: u64 = 64 << 30;
/// Longest spin before an adaptive reactor sleeps, in microseconds.
pub const SPIN_US_MAX: u32 = 1_000_000;
/// A configuration file's bytes.
pub const FILE_BYTES_MAX: u64 = 4 << 20;
/// iSCSI's own port.
pub const PORT: u16 = 3260;
/// The target of the embedded default.
pub const DEMO_IQN: &str = "iqn.2026-11.io.pollux:demo";
/// The directory of the embedded default, under the working directory.
pub const DEMO_DATA: &str = "pollux-data";
/// LUN 0's size there: thin, so it takes space only where it is written.
pub const DEMO_BYTES: u64 = 1 << 40;
/// The control socket's name in the data directory, unless another path is given.
pub const SOCKET_FILE: &str = "pollux.sock";
/// The pool in the data directory: `thin` and `thick` LUNs of the configuration are its volumes.
pub const DATA_POOL: &str = "data";
/// Its file.
pub const DATA_POOL_FILE: &str = "pool.img";

/// All that `boot` needs. Every path is absolute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The file it was read from; what SIGHUP reads again.
    pub source: Option<PathBuf>,
    /// Where state that must survive a restart lives; with `data_memory`, what is to live as long as the process.
    pub data: PathBuf,
    /// The data directory's pool is in so many bytes of memory, and nothing survives.
    pub data_memory: Option<u64>,
    /// Where the control API listens.
    pub socket: PathBuf,
    /// The cores and what each gets.
    pub reactors: Reactors,
    /// Each core's ring.
    pub io_uring: IoUring,
    /// Whether pools give the space of free chunks back; `None`: in files they do, on devices not.
    pub discard: Option<bool>,
    /// Pools' soft thresholds, in percent of their space that is used; who is not here has [`crate::space::THRESHOLD_PERCENT`].
    pub thresholds: BTreeMap<String, u8>,
    /// Where the target listens. Not empty, no address twice.
    pub portals: Vec<SocketAddr>,
    /// The target.
    pub target: Target,
    /// Its units, ascending by number. Not empty, no number, id or file twice.
    pub luns: Vec<Lun>,
    /// Who may log in to the target. Empty: anybody, without proof.
    pub hosts: Vec<Host>,
    /// Who may ask what targets there are.
    pub discovery: DiscoveryRule,
    /// Limits and offers of the protocol.
    pub iscsi: Iscsi,
    /// What is logged, and how.
    pub log: Log,
}

/// The cores.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reactors {
    /// The CPUs, in order: the first is core 0. `None`: the first [`REACTORS_DEFAULT`] that the process may use.
    pub cpus: Option<CpuList>,
    /// What an idle core does.
    pub poll: Poll,
    /// How long an adaptive core goes on looking for work before it sleeps.
    pub spin: Duration,
    /// IO buffers of each core, in bytes; a multiple of 1 MiB.
    pub memory_bytes: usize,
}

/// What an idle core does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Poll {
    /// Spin for ever: the lowest latency, all of the CPU.
    Busy,
    /// Spin briefly, then sleep in the kernel until there is work.
    Adaptive,
}

/// The rings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IoUring {
    /// Submission entries of each ring; a power of two.
    pub entries: u32,
    /// Most kernel workers of each ring for disk IO that would block. `None`: the kernel's own bound.
    pub bounded_workers_max: Option<u32>,
    /// Most kernel workers of each ring for everything else. `None`: the kernel's own bound.
    pub unbounded_workers_max: Option<u32>,
    /// Where the kernel's workers run. `None`: wherever the process may.
    pub worker_cpus: Option<CpuList>,
}

/// The target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Its name.
    pub iqn: IscsiName,
    /// What people call it (TargetAlias).
    pub alias: Option<String>,
}

/// A logical unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lun {
    /// At most [`LUN_NUMBER_MAX`].
    pub number: u16,
    /// What stands behind it.
    pub spec: LunSpec,
    /// Its identity, if the file says it; otherwise [`crate::identity`] remembers one.
    pub id: Option<LunId>,
}

impl Lun {
    /// The volume in the data directory's pool behind a `thin` or `thick` unit: by the unit's number, so that
    /// switching between the two, or another size, doesn't make another disk.
    pub fn volume(&self) -> Option<String> {
        matches!(self.spec.backing, Backing::Volume { .. }).then(|| format!("lun{}", self.number))
    }
}

/// Who a unit is, for ever: 16 bytes that no other unit in the world has.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LunId(pub [u8; 16]);

/// Who may log in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Which initiator.
    pub iqn: HostName,
    /// What it must prove. `None`: its name is enough.
    pub chap: Option<Chap>,
}

/// Whom a [`Host`] is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum HostName {
    /// `*`: whoever has no `[[host]]` of its own.
    Any,
    /// One initiator.
    Named(IscsiName),
}

impl HostName {
    /// As it is written.
    pub fn as_str(&self) -> &str {
        match self {
            HostName::Any => "*",
            HostName::Named(name) => name.as_str(),
        }
    }
}

impl FromStr for HostName {
    type Err = Mistake;

    fn from_str(text: &str) -> Result<HostName, Mistake> {
        if text == "*" { Ok(HostName::Any) } else { parse_name(text).map(HostName::Named) }
    }
}

/// CHAP in one direction or both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chap {
    /// What the initiator proves.
    pub initiator: Credentials,
    /// What we prove when asked to; never the initiator's secret.
    pub target: Option<Credentials>,
}

/// A CHAP name and its secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// CHAP_N.
    pub user: String,
    /// Never sent.
    pub secret: Secret,
}

/// A secret, which no log and no message shows.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub(crate) fn new(text: String) -> Secret {
        Secret(text)
    }

    /// For the one who hashes it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// Whether a digest is on (RFC 7143 §13.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DigestPolicy {
    /// Only None is accepted.
    Never,
    /// What the initiator likes best.
    Allow,
    /// Only CRC32C is accepted.
    Require,
}

/// What the target offers in a login, and its bounds. New sessions take what a reload brings; old ones keep theirs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Iscsi {
    /// Our MaxRecvDataSegmentLength, in bytes (RFC 7143 §13.12).
    pub max_recv_data_segment_length: u32,
    /// FirstBurstLength, in bytes; never over `max_burst_length` (§13.14).
    pub first_burst_length: u32,
    /// MaxBurstLength, in bytes (§13.13).
    pub max_burst_length: u32,
    /// MaxOutstandingR2T (§13.17).
    pub max_outstanding_r2t: u16,
    /// InitialR2T: `Yes` forbids unsolicited Data-Out (§13.10).
    pub initial_r2t: bool,
    /// ImmediateData: whether a command may carry data (§13.11).
    pub immediate_data: bool,
    /// HeaderDigest.
    pub header_digest: DigestPolicy,
    /// DataDigest.
    pub data_digest: DigestPolicy,
    /// Sessions over all cores, discovery included.
    pub max_sessions: u32,
    /// Connections that have not finished their login; the oldest makes room for a new one.
    pub max_half_open: u32,
    /// From accept to full feature phase.
    pub login_timeout: Duration,
    /// Silence after which a NOP-In asks whether the peer is there. `None`: never.
    pub nop_interval: Option<Duration>,
    /// How long its answer may take before the connection is dropped.
    pub nop_timeout: Duration,
}

impl Default for Iscsi {
    fn default() -> Iscsi {
        let offers = iscsi::negotiate::Settings::default();
        Iscsi {
            max_recv_data_segment_length: offers.max_recv_data_segment_length,
            first_burst_length: offers.first_burst_length,
            max_burst_length: offers.max_burst_length,
            max_outstanding_r2t: offers.max_outstanding_r2t,
            initial_r2t: offers.initial_r2t,
            immediate_data: offers.immediate_data,
            header_digest: DigestPolicy::Allow,
            data_digest: DigestPolicy::Allow,
            max_sessions: 1024,
            max_half_open: 128,
            login_timeout: Duration::from_secs(15),
            nop_interval: Some(Duration::from_secs(15)),
            nop_timeout: Duration::from_secs(10),
        }
    }
}

/// The log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// `LEVEL` or `TARGET=LEVEL`, comma-separated; known to parse.
    pub filter: String,
    /// Its form on stderr.
    pub format: LogFormat,
}

/// A log line's form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl Default for Reactors {
    fn default() -> Reactors {
        Reactors {
            cpus: None,
            poll: Poll::Adaptive,
            spin: Duration::from_micros(50),
            memory_bytes: 256 << 20,
        }
    }
}

impl Default for IoUring {
    fn default() -> IoUring {
        IoUring {
            entries: reactor::ring::RingConfig::default().entries,
            bounded_workers_max: None,
            unbounded_workers_max: None,
            worker_cpus: None,
        }
    }
}

impl Default for Log {
    fn default() -> Log {
        Log { filter: "info".to_owned(), format: LogFormat::Text }
    }
}

/// CPUs in the order they were named, each once: `0-3,8`. At most [`REACTORS_MAX`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuList(Vec<u16>);

impl CpuList {
    /// Their numbers; not empty.
    pub fn cpus(&self) -> &[u16] {
        &self.0
    }
}

impl FromStr for CpuList {
    type Err = Mistake;

    fn from_str(text: &str) -> Result<CpuList, Mistake> {
        let wrong =
            || Mistake::new(format!("{text:?} is no CPU list"), "write numbers and ranges, as in 2 or 0-3,8");
        let number = |digits: &str| {
            let digits = digits.trim();
            let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
            let cpu = digits.parse::<u16>().ok().filter(|&cpu| plain && cpu <= CPU_NUMBER_MAX);
            cpu.ok_or_else(wrong)
        };
        let mut cpus = Vec::new();
        for part in text.split(',') {
            let (first, last) = match part.split_once('-') {
                Some((first, last)) => (number(first)?, number(last)?),
                None => (number(part)?, number(part)?),
            };
            if first > last {
                return Err(wrong());
            }
            for cpu in first..=last {
                if cpus.contains(&cpu) {
                    let what = format!("CPU {cpu} is named twice in {text:?}");
                    return Err(Mistake::new(what, "name each CPU once: a CPU has one reactor"));
                }
                cpus.push(cpu);
            }
        }
        if cpus.len() > REACTORS_MAX {
            let what = format!("{text:?} names {} CPUs", cpus.len());
            return Err(Mistake::new(what, format!("name at most {REACTORS_MAX}")));
        }
        Ok(CpuList(cpus))
    }
}

impl fmt::Display for CpuList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = &self.0[..];
        let mut comma = "";
        while let Some(&first) = rest.first() {
            let run = rest.iter().zip(first..).take_while(|&(&cpu, next)| cpu == next).count();
            match run {
                1 => write!(f, "{comma}{first}")?,
                _ => write!(f, "{comma}{first}-{}", rest[run - 1])?,
            }
            comma = ",";
            rest = &rest[run..];
        }
        Ok(())
    }
}

/// An iSCSI name, in the form in which names are compared.
///
/// # Errors
/// What is wrong with it.
pub fn parse_name(text: &str) -> Result<IscsiName, Mistake> {
    IscsiName::parse(text).map_err(|error| {
        let cure = "write iqn.YYYY-MM.DOMAIN-REVERSED[:NAME], as in iqn.2026-11.io.pollux:demo; \
                    eui. with 16 or naa. with 16 or 32 hexadecimal digits will do too";
        Mistake::new(format!("{text:?} is no iSCSI name: {error}"), cure)
    })
}

impl LunId {
    /// A new one: a random UUID (RFC 9562 §5.4), so that no two hosts ever make the same.
    ///
    /// # Errors
    /// The kernel has no randomness to give.
    pub fn random() -> Result<LunId, Mistake> {
        let mut bytes = [0u8; 16];
        getrandom::fill(&mut bytes).map_err(|error| {
            Mistake::new(
                format!("no random bytes for a LUN's id: {error}"),
                "allow getrandom(2), or set the LUN's id",
            )
        })?;
        bytes[6] = bytes[6] & 0x0F | 0x40;
        bytes[8] = bytes[8] & 0x3F | 0x80;
        Ok(LunId(bytes))
    }
}

impl fmt::Display for LunId {
    /// As UUIDs are written.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, byte) in self.0.iter().enumerate() {
            let dash = if matches!(index, 4 | 6 | 8 | 10) { "-" } else { "" };
            write!(f, "{dash}{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for LunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl FromStr for LunId {
    type Err = Mistake;

    fn from_str(text: &str) -> Result<LunId, Mistake> {
        let digits: Vec<u32> =
            text.chars().filter(|&char| char != '-').filter_map(|char| char.to_digit(16)).collect();
        let plain = text.chars().all(|char| char == '-' || char.is_ascii_hexdigit());
        if !plain || digits.len() != 32 || digits.iter().all(|&digit| digit == 0) {
            return Err(Mistake::new(
                format!("{text:?} is no LUN id"),
                "write a UUID: 32 hexadecimal digits, dashes as you like; `uuidgen -r` makes one",
            ));
        }
        let mut bytes = [0u8; 16];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = (pair[0] << 4 | pair[1]) as u8;
        }
        Ok(LunId(bytes))
    }
}

/// `ADDR:PORT`, or an address alone with port 3260. IPv6 in brackets when a port follows.
///
/// # Errors
/// No numeric address.
pub fn parse_portal(text: &str) -> Result<SocketAddr, Mistake> {
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    text.parse::<SocketAddr>()
        .or_else(|_| bare.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, PORT)))
        .map_err(|_| {
            Mistake::new(
                format!("{text:?} is no address to listen on"),
                "write ADDR:PORT with a numeric address: 127.0.0.1:3260, 0.0.0.0:3260 or [::]:3260",
            )
        })
}

/// A buffer memory size.
///
/// # Errors
/// Out of range, or no whole MiB.
pub fn parse_memory(text: &str) -> Result<usize, Mistake> {
    let Size(bytes) = text.parse::<Size>()?;
    if !(MEMORY_BYTES_MIN..=MEMORY_BYTES_MAX).contains(&bytes) || bytes % (1 << 20) != 0 {
        return Err(Mistake::new(
            format!("{text} is no buffer memory for a reactor"),
            format!("write whole MiB from {} to {}", Size(MEMORY_BYTES_MIN), Size(MEMORY_BYTES_MAX)),
        ));
    }
    Ok(bytes as usize)
}

/// The CPUs that this process may run on (its cpuset and affinity), ascending.
pub fn usable_cpus() -> Vec<u16> {
    let set = rustix::thread::sched_getaffinity(None).unwrap_or_default();
    (0..=CPU_NUMBER_MAX).filter(|&cpu| set.is_set(usize::from(cpu))).collect()
}

/// A configuration, and what about it is allowed but unwise.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The value.
    pub config: Config,
    /// For the log, once there is one.
    pub warnings: Vec<Mistake>,
}

/// What a reload has brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reloaded {
    /// Keys that differ and wait for a restart.
    pub ignored: Vec<&'static str>,
    /// As in [`Loaded`].
    pub warnings: Vec<Mistake>,
}

impl Config {
    /// What `pollux` without arguments serves, in `directory`.
    pub fn embedded(directory: &Path) -> Config {
        let data = directory.join(DEMO_DATA);
        let volume = Backing::Volume { provisioning: Provisioning::Thin, bytes: DEMO_BYTES };
        Config {
            source: None,
            socket: data.join(SOCKET_FILE),
            data,
            data_memory: None,
            reactors: Reactors::default(),
            io_uring: IoUring::default(),
            discard: None,
            thresholds: BTreeMap::new(),
            portals: vec![SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), PORT)],
            target: Target { iqn: IscsiName::parse(DEMO_IQN).expect("our own name is one"), alias: None },
            luns: vec![Lun { number: 0, spec: LunSpec::new(volume), id: None }],
            hosts: Vec::new(),
            discovery: DiscoveryRule::Everybody,
            iscsi: Iscsi::default(),
            log: Log::default(),
        }
    }

    /// The configuration that `args` asks for, run in `directory` (absolute).
    ///
    /// # Errors
    /// Everything that is wrong with the file or the options, each with its place and cure.
    pub fn load(args: &Serve, directory: &Path) -> Result<Loaded, Mistakes> {
        let (mut config, mut warnings) = match &args.config {
            None => {
                let mut config = Config::embedded(directory);
                if let Some(data) = &args.data {
                    config.move_data(data, directory)?;
                }
                (config, Vec::new())
            }
            Some(path) => file::read(&directory.join(path), args, directory)?,
        };
        config.overlay(args, directory)?;
        config.check_together(&mut warnings)?;
        Ok(Loaded { config, warnings })
    }

    /// The embedded default's files go where its data goes.
    fn move_data(&mut self, data: &Path, directory: &Path) -> Result<(), Mistake> {
        self.data_memory = data_memory(data)?;
        self.data = if self.data_memory.is_some() { fleeting_data() } else { directory.join(data) };
        self.socket = self.data.join(SOCKET_FILE);
        Ok(())
    }

    /// The file of the data directory's pool.
    pub fn data_pool_file(&self) -> PathBuf {
        self.data.join(DATA_POOL_FILE)
    }

    /// The command line's part, by the rule on top of this file. `--data` is already in, since defaults hang on it.
    fn overlay(&mut self, args: &Serve, directory: &Path) -> Result<(), Mistake> {
        if !args.listen.is_empty() {
            self.portals.clone_from(&args.listen);
        }
        if !args.lun.is_empty() {
            if args.lun.len() > LUNS_MAX {
                let what = format!("--lun is given {} times", args.lun.len());
                return Err(Mistake::new(what, format!("serve at most {LUNS_MAX} LUNs")));
            }
            let specs = (0u16..).zip(args.lun.iter().cloned());
            self.luns = specs.map(|(number, spec)| Lun { number, spec, id: None }).collect();
            for lun in &mut self.luns {
                if let Backing::File { path, .. } = &mut lun.spec.backing {
                    *path = directory.join(&*path);
                }
            }
        }
        if let Some(cpus) = &args.reactors {
            self.reactors.cpus = Some(cpus.clone());
        }
        if let Some(poll) = args.poll {
            self.reactors.poll = poll;
        }
        if let Some(memory_bytes) = args.memory {
            self.reactors.memory_bytes = memory_bytes;
        }
        if let Some(socket) = &args.socket {
            self.socket = directory.join(socket);
        }
        if let Some(filter) = &args.log {
            self.log.filter.clone_from(filter);
        }
        if let Some(format) = args.log_format {
            self.log.format = format;
        }
        Ok(())
    }

    /// What no single value shows, wherever the values came from.
    fn check_together(&self, warnings: &mut Vec<Mistake>) -> Result<(), Mistakes> {
        let mut mistakes = Vec::new();
        for (index, portal) in self.portals.iter().enumerate() {
            // Port 0 is a new port each time.
            if portal.port() != 0 && self.portals[..index].contains(portal) {
                mistakes
                    .push(Mistake::new(format!("{portal} is listened on twice"), "name each portal once"));
            }
        }
        for (index, lun) in self.luns.iter().enumerate() {
            let earlier = &self.luns[..index];
            if let Some(other) = earlier.iter().find(|other| same_file(&lun.spec, &other.spec)) {
                let path = lun.spec.backing.path().unwrap_or(Path::new("")).display();
                mistakes.push(Mistake::new(
                    format!("LUN {} and LUN {} are the same file, {path}", other.number, lun.number),
                    "give each LUN its own: two units over one file would overwrite each other's caches",
                ));
            }
        }
        let exposed = self.portals.iter().find(|portal| !portal.ip().is_loopback());
        if let Some(portal) = exposed.filter(|_| self.hosts.is_empty()) {
            warnings.push(Mistake::new(
                format!("whoever reaches {portal} can read and write every LUN: no [[host]] is configured"),
                "add a [[host]] for each initiator, with chap, or listen on 127.0.0.1",
            ));
        }
        if mistakes.is_empty() { Ok(()) } else { Err(Mistakes(mistakes)) }
    }

    /// Reads the sources again (SIGHUP) and takes from them what may change while running. Says which keys differ
    /// but wait for a restart, and the new warnings.
    ///
    /// # Errors
    /// As [`Config::load`]; nothing has changed then.
    pub fn reload(&mut self, args: &Serve, directory: &Path) -> Result<Reloaded, Mistakes> {
        let Loaded { config: new, warnings } = Config::load(args, directory)?;
        let ignored = new.reloadable_difference(self);
        self.take_reloadable(&new);
        Ok(Reloaded { ignored, warnings })
    }

    /// What differs from `old` and takes effect only at a restart: the keys, for the log. Hosts and their
    /// secrets, the discovery rule, the log filter and `[iscsi]` (for new sessions) may change while running.
    pub fn reloadable_difference(&self, old: &Config) -> Vec<&'static str> {
        let fixed = [
            ("data", self.data == old.data && self.data_memory == old.data_memory),
            ("socket", self.socket == old.socket),
            ("[reactors]", self.reactors == old.reactors),
            ("[io_uring]", self.io_uring == old.io_uring),
            ("discard", self.discard == old.discard),
            ("[[pool]]", self.thresholds == old.thresholds),
            ("listen", self.portals == old.portals),
            ("[target]", self.target == old.target),
            ("[[lun]]", self.luns == old.luns),
            ("log.format", self.log.format == old.log.format),
        ];
        fixed.into_iter().filter(|&(_, same)| !same).map(|(key, _)| key).collect()
    }

    /// Takes from `new` what may change while running; everything else stays.
    pub fn take_reloadable(&mut self, new: &Config) {
        self.hosts.clone_from(&new.hosts);
        self.discovery = new.discovery;
        self.iscsi.clone_from(&new.iscsi);
        self.log.filter.clone_from(&new.log.filter);
    }
}

/// How much memory a data directory's name asks for in place of one: `ram:SIZE`.
///
/// # Errors
/// It begins like that, and goes on without a size that a pool can have.
pub fn data_memory(data: &Path) -> Result<Option<u64>, Mistake> {
    let Some(size) = data.to_str().and_then(|text| text.strip_prefix("ram:")) else { return Ok(None) };
    let bytes = size.parse::<Size>().and_then(|size| check_capacity(size.0)).map_err(|mistake| {
        let cure = format!("{}; a directory of this name is written ./ram:{size}", mistake.cure);
        Mistake { cure, ..mistake }
    })?;
    Ok(Some(bytes))
}

/// Where this process keeps what is gone with it: its socket, and the names of its LUNs meanwhile.
fn fleeting_data() -> PathBuf {
    std::env::temp_dir().join(format!("pollux-{}", std::process::id()))
}

/// Whether two specs name one file, by whatever names. What isn't there yet is compared by its path.
fn same_file(one: &LunSpec, other: &LunSpec) -> bool {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let (Some(one), Some(other)) = (one.backing.path(), other.backing.path()) else {
        return false;
    };
    match (std::fs::metadata(one), std::fs::metadata(other)) {
        (Ok(a), Ok(b)) if a.file_type().is_block_device() && b.file_type().is_block_device() => {
            a.rdev() == b.rdev()
        }
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        (Err(_), Err(_)) => crate::identity::settled_path(one) == crate::identity::settled_path(other),
        // One is there and the other isn't: different names of different files.
        (Ok(_), Err(_)) | (Err(_), Ok(_)) => false,
    }
}

#[cfg(test)]
mod tests;
