//! A `pollux` under test: started with the units a test wants on free ports, stopped softly or hard, started
//! again on the same ports.
//!
//! Invariant: between [`Pollux::start`] and [`Pollux::stop`] the program runs with all its portals open, or the
//! test has failed with the end of its log.

use crate::process::{End, Finished, Process, run, scratch_root, target_directory, words};
use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::thread::{panicking, sleep};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// The target that `pollux` makes of `--lun` options.
pub const IQN: &str = "iqn.2026-11.io.pollux:demo";
/// How the line begins that the program prints when its portals are open.
const READY: &str = "ready: listening on ";
/// From start to open portals.
const START_LIMIT: Duration = Duration::from_secs(30);
/// From a command line to its answer.
const COMMAND_LIMIT: Duration = Duration::from_secs(40);
/// From SIGTERM to the end.
const STOP_LIMIT: Duration = Duration::from_secs(15);
/// How much of the log a failure shows.
const LOG_LINES_SHOWN: usize = 40;

/// What to start.
#[derive(Clone, Debug, Default)]
pub struct Setup {
    /// `--lun` options: LUN 0, 1, and so on. `{dir}` stands for the target's own scratch directory.
    pub luns: Vec<String>,
    /// A configuration file's text, given with `--config`. Its portals and units are overruled by the options.
    pub config: Option<String>,
    /// How many portals on 127.0.0.1; at least one.
    pub portals: usize,
    /// More portals, as addresses without port: `[::1]`.
    pub also_on: Vec<String>,
    /// The CPUs that get a reactor, as for `--reactors`; empty: the program chooses.
    pub reactors: String,
    /// Its data are in a file system of so many MiB in memory that only it sees, of which [`FILLER`] takes 8; 0: no.
    /// See [`small_file_systems`].
    pub data_mib: u32,
}

/// A file in [`Setup::data_mib`]'s file system, besides the program's.
pub const FILLER: &str = "filler";

/// Whether programs can be started with a file system of their own here.
pub fn small_file_systems() -> bool {
    let words = words("-Urm mount -t tmpfs none /mnt");
    run("unshare", &words, COMMAND_LIMIT).end.is_success()
}

impl Setup {
    /// One portal on 127.0.0.1 and these units.
    pub fn with_luns(luns: &[&str]) -> Setup {
        Setup { luns: luns.iter().map(|&lun| lun.to_owned()).collect(), portals: 1, ..Setup::default() }
    }
}

/// A running target.
#[derive(Debug)]
pub struct Pollux {
    setup: Setup,
    ports: Vec<u16>,
    dir: TempDir,
    /// A Unix socket's path must be short, so it isn't below the target directory.
    socket_dir: TempDir,
    process: Option<Process>,
}

impl Pollux {
    /// Starts the program and waits until it says that its portals are open.
    ///
    /// # Panics
    /// If it ends or isn't ready in time, with the end of its log.
    pub fn start(setup: Setup) -> Pollux {
        assert!(setup.portals > 0, "a target has a portal");
        let ports = free_ports(setup.portals + setup.also_on.len());
        let dir = TempDir::new_in(scratch_root()).expect("a scratch directory");
        let socket_dir = TempDir::new().expect("a directory for the socket");
        let mut pollux = Pollux { setup, ports, dir, socket_dir, process: None };
        pollux.start_again();
        pollux
    }

    /// What the next start gives to `--reactors`.
    pub fn set_reactors(&mut self, cpus: &str) {
        cpus.clone_into(&mut self.setup.reactors);
    }

    /// Starts the program that was stopped or killed, with the same units, data and ports.
    ///
    /// # Panics
    /// As [`Pollux::start`]; also if it runs.
    pub fn start_again(&mut self) {
        assert!(self.process.is_none(), "it runs already");
        let mut arguments = vec!["serve".to_owned()];
        let mut option = |name: &str, value: String| arguments.extend([name.to_owned(), value]);
        if let Some(config) = &self.setup.config {
            let path = self.dir.path().join("pollux.toml");
            fs::write(&path, config).expect("the configuration file can be written");
            option("--config", path.display().to_string());
        }
        for address in self.addresses() {
            option("--listen", address);
        }
        option("--data", self.dir.path().join("data").display().to_string());
        option("--socket", self.commands().socket.display().to_string());
        if !self.setup.reactors.is_empty() {
            option("--reactors", self.setup.reactors.clone());
        }
        for lun in &self.setup.luns {
            option("--lun", lun.replace("{dir}", &self.dir.path().display().to_string()));
        }
        let mut program = binary().display().to_string();
        if self.setup.data_mib > 0 {
            let data = self.dir.path().join("data");
            fs::create_dir_all(&data).expect("a directory to mount at");
            let script = format!(
                "mount -t tmpfs -o size={}M none {data} && head -c 8M /dev/zero > {data}/{FILLER} && exec \"$@\"",
                self.setup.data_mib,
                data = data.display()
            );
            let before = ["-Urm", "sh", "-c", &script, "sh", &program].map(str::to_owned);
            arguments.splice(0..0, before);
            "unshare".clone_into(&mut program);
        }
        let earlier = self.log().len();
        let mut process = Process::start(&program, &arguments, &[("NO_COLOR", "1")], &self.log_path());
        let deadline = Instant::now() + START_LIMIT;
        // Its own word counts. A connection says nothing: the kernel may keep a listener for a moment after the
        // program that opened it is gone.
        while !self.log()[earlier..].lines().any(|line| line.starts_with(READY)) {
            if let Some(status) = process.try_end() {
                panic!("{program} {} ended with {status}:\n{}", arguments.join(" "), self.log_end());
            }
            assert!(Instant::now() < deadline, "it is not ready yet:\n{}", self.log_end());
            sleep(Duration::from_millis(10));
        }
        self.process = Some(process);
    }

    /// SIGTERM, and the end as an operator sees it.
    ///
    /// # Panics
    /// If it takes too long, ends with another status than 0, or its log tells of a panic.
    pub fn stop(&mut self) {
        let mut process = self.process.take().expect("it runs");
        process.terminate();
        let end = process.wait(STOP_LIMIT);
        assert!(
            matches!(end, End::Exited(status) if status.success()),
            "after SIGTERM: {end:?}\n{}",
            self.log_end()
        );
        let log = self.log();
        assert!(!log.contains("panicked at"), "its log tells of a panic:\n{log}");
    }

    /// SIGKILL: what a crash of the program leaves.
    ///
    /// # Panics
    /// If it isn't running.
    pub fn kill(&mut self) {
        self.process.take().expect("it runs").kill();
    }

    /// The data directory as the program sees it, with [`Setup::data_mib`] too.
    ///
    /// # Panics
    /// If it isn't running.
    pub fn data_dir(&self) -> PathBuf {
        let root = format!("/proc/{}/root", self.process.as_ref().expect("it runs").pid());
        let data = self.dir.path().join("data");
        PathBuf::from(root).join(data.strip_prefix("/").unwrap_or(&data))
    }

    /// Fails the test if the program has ended by itself.
    ///
    /// # Panics
    /// If so, with the end of its log.
    pub fn assert_running(&mut self) {
        if let Some(status) = self.process.as_mut().expect("it was started").try_end() {
            panic!("the target ended with {status}:\n{}", self.log_end());
        }
    }

    /// Who gives it commands, also while it is gone.
    pub fn commands(&self) -> Commands {
        Commands { socket: self.socket_dir.path().join("pollux.sock") }
    }

    /// The file of the pool that `thin` and `thick` units are in.
    pub fn pool_file(&self) -> PathBuf {
        self.dir.path().join("data/pool.img")
    }

    /// The ports, 127.0.0.1's first.
    pub fn ports(&self) -> &[u16] {
        &self.ports
    }

    /// `ADDRESS:PORT` of each portal.
    pub fn addresses(&self) -> Vec<String> {
        let ours = std::iter::repeat_n("127.0.0.1", self.setup.portals);
        let others = self.setup.also_on.iter().map(String::as_str);
        ours.chain(others).zip(&self.ports).map(|(address, port)| format!("{address}:{port}")).collect()
    }

    /// The unit's URL for libiscsi and qemu.
    pub fn url(&self, lun: usize) -> String {
        self.url_at(0, lun)
    }

    /// The same through another portal.
    pub fn url_at(&self, portal: usize, lun: usize) -> String {
        format!("iscsi://{}/{IQN}/{lun}", self.addresses()[portal])
    }

    /// A directory that lives as long as this value; `{dir}` in [`Setup`].
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// All that it has logged, over all its starts.
    pub fn log(&self) -> String {
        fs::read(self.log_path())
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    fn log_path(&self) -> PathBuf {
        self.dir.path().join("pollux.log")
    }

    fn log_end(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..].join("\n")
    }
}

/// The program's own commands, given to one target.
#[derive(Clone, Debug)]
pub struct Commands {
    socket: PathBuf,
}

impl Commands {
    /// Runs one, such as `volume clone lun0@monday copy`.
    ///
    /// # Panics
    /// If the program can't be started.
    pub fn run(&self, line: &str) -> Finished {
        let mut arguments = words(line);
        arguments.extend(["--socket".to_owned(), self.socket.display().to_string()]);
        run(&binary().display().to_string(), &arguments, COMMAND_LIMIT)
    }

    /// Runs one that must succeed, and returns what it prints.
    ///
    /// # Panics
    /// If it fails, with what it says.
    pub fn run_well(&self, line: &str) -> String {
        let finished = self.run(line);
        assert!(finished.end.is_success(), "pollux {line}\nended as {:?}:\n{}", finished.end, finished.text);
        finished.text
    }
}

/// Runs `pollux check` on a pool's file.
///
/// # Panics
/// If the program can't be started.
pub fn check(pool_file: &Path) -> Finished {
    let arguments = ["check".to_owned(), pool_file.display().to_string(), "--json".to_owned()];
    run(&binary().display().to_string(), &arguments, COMMAND_LIMIT)
}

impl Drop for Pollux {
    fn drop(&mut self) {
        if panicking() {
            println!("the target's log ended with:\n{}", self.log_end());
        }
    }
}

/// The program: `POLLUX` in the environment, otherwise what cargo built last with optimisation.
///
/// # Panics
/// If there is none.
pub fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("POLLUX") {
        return PathBuf::from(path);
    }
    let built = ["quick", "release"].map(|profile| target_directory().join(profile).join("pollux"));
    let newest =
        built.into_iter().filter_map(|path| Some((fs::metadata(&path).ok()?.modified().ok()?, path))).max();
    newest.expect("no pollux: build it with `cargo build --profile quick -p pollux`, or name it in POLLUX").1
}

/// Ports that nobody listens on: each was bound a moment ago. They are not held, so another program may take one
/// before the target does; the kernel hands out others first, and the test would fail by name.
fn free_ports(count: usize) -> Vec<u16> {
    let listeners: Vec<TcpListener> = (0..count)
        .map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("the loopback interface has a free port"))
        .collect();
    listeners
        .iter()
        .map(|listener| listener.local_addr().expect("a bound socket has an address").port())
        .collect()
}
