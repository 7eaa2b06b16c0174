//! Starts the targets that are measured, on a CPU of their own, and ends every one of them.
//!
//! A [`Program`] is ended by its process id when it is dropped; should this program die without dropping it, the
//! kernel ends it (parent death signal). Its files go with it. Called by `compare` and `idle`.

use crate::args::DEFAULT_TARGET;
use crate::failure::{Context, Failure};
use crate::load::link::Link;
use crate::load::login::{self, Door};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// From start to the port being open: many GiB of memory take long to be touched.
const START_WITHIN: Duration = Duration::from_secs(120);
/// From then to the first login.
const READY_WITHIN: Duration = Duration::from_secs(20);
/// From SIGTERM to the end; then SIGKILL. Many GiB of memory take long to be given back, too.
const END_WITHIN: Duration = Duration::from_secs(15);
const PAUSE: Duration = Duration::from_millis(20);
/// What of a program's output is told when it fails.
const LOG_TAIL_BYTES: usize = 2000;

const TGT_TARGET: &str = "iqn.2026-11.io.pollux:tgt";

/// A directory that is removed with everything in it.
#[derive(Debug)]
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    /// A new one under `parent`, which only this user may read.
    pub(crate) fn new(parent: &Path) -> Result<Scratch, Failure> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = parent.join(format!("pollux-bench-{}-{number}", std::process::id()));
        fs::create_dir(&path).doing(format!("making {}", path.display()))?;
        Ok(Scratch(path))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What can't be removed now is in a temporary directory anyway.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A running program.
#[derive(Debug)]
pub struct Program {
    name: String,
    child: Child,
    log: PathBuf,
    /// What asks it to end.
    end_by: Signal,
    /// Removed after the program's end.
    scratch: Vec<Scratch>,
}

impl Program {
    /// Starts `command` on `cpu`, with its output in `scratch`.
    fn start(
        name: &str,
        cpu: usize,
        end_by: Signal,
        command: &[String],
        scratch: Vec<Scratch>,
    ) -> Result<Program, Failure> {
        let log = scratch[0].0.join("log");
        let output = File::create(&log).doing(format!("making {}", log.display()))?;
        let errors = output.try_clone().doing("sharing the log")?;
        // Both wrappers replace themselves by the next program, so the id stays the target's.
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "taskset", "-c", &cpu.to_string()])
            .args(command)
            .env("TGT_IPC_SOCKET", scratch[0].0.join("tgt"))
            .current_dir(&scratch[0].0)
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .spawn()
            .doing(format!("starting {name} (by setpriv and taskset, of util-linux)"))?;
        Ok(Program { name: name.to_owned(), child, log, end_by, scratch })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it wrote last.
    pub fn log_tail(&self) -> String {
        let bytes = fs::read(&self.log).unwrap_or_default();
        let tail = &bytes[bytes.len().saturating_sub(LOG_TAIL_BYTES)..];
        String::from_utf8_lossy(tail).into_owned()
    }

    /// An error if it has ended already.
    fn check_alive(&mut self) -> Result<(), Failure> {
        match self.child.try_wait().doing(format!("asking for {}", self.name))? {
            None => Ok(()),
            Some(status) => {
                Err(Failure::new(format!("{} ended, {status}; it said:\n{}", self.name, self.log_tail())))
            }
        }
    }

    fn wait(&mut self, within: Duration) -> bool {
        let start = Instant::now();
        while start.elapsed() < within {
            // An error means that there is no such child: it has ended.
            if !matches!(self.child.try_wait(), Ok(None)) {
                return true;
            }
            thread::sleep(PAUSE);
        }
        false
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw)
            && matches!(self.child.try_wait(), Ok(None))
        {
            // Not reaped yet, so the id is still this child's.
            let _ = kill_process(pid, self.end_by);
            // A paused one heeds a signal only when it goes on.
            let _ = kill_process(pid, Signal::CONT);
        }
        if !self.wait(END_WITHIN) {
            eprintln!("bench: {} didn't end within {END_WITHIN:?}, killing it", self.name);
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        self.scratch.clear();
    }
}

/// A target that runs, and how to reach its unit.
#[derive(Debug)]
pub struct Served {
    /// The program; none if somebody else runs it.
    pub program: Option<Program>,
    /// Where it listens.
    pub portal: SocketAddr,
    /// Its name.
    pub target: String,
    /// The unit.
    pub lun: u16,
    /// Its control socket, if it has one that we know.
    pub socket: Option<PathBuf>,
}

/// How `pollux` is started.
#[derive(Debug, Clone)]
pub struct PolluxOptions {
    /// The program, if the usual places won't do.
    pub path: Option<PathBuf>,
    /// Its CPU.
    pub cpu: usize,
    /// `busy` or `adaptive`.
    pub poll: String,
    /// Its only LUN.
    pub lun: String,
    /// What stands behind its `--data`: `ram:SIZE`; a directory of its own if left out.
    pub data: Option<String>,
    /// Where its files are made, in a directory that is removed again; the one for temporary files if left out.
    pub dir: Option<PathBuf>,
}

/// Starts `pollux serve` on a free port.
///
/// # Errors
/// There is no such program, or it isn't ready in time; with what it said.
pub fn start_pollux(options: &PolluxOptions) -> Result<Served, Failure> {
    let path = find_pollux(options.path.as_deref())?;
    let parent = options.dir.clone().unwrap_or_else(std::env::temp_dir);
    let scratch = Scratch::new(&parent.canonicalize().doing(format!("resolving {}", parent.display()))?)?;
    let portal = free_portal()?;
    let data = options.data.clone().unwrap_or_else(|| scratch.0.join("data").display().to_string());
    let socket = scratch.0.join("socket");
    let command = [
        path.display().to_string(),
        "serve".into(),
        "--listen".into(),
        portal.to_string(),
        "--data".into(),
        data,
        "--reactors".into(),
        options.cpu.to_string(),
        "--poll".into(),
        options.poll.clone(),
        "--socket".into(),
        socket.display().to_string(),
        "--lun".into(),
        options.lun.clone(),
    ];
    let mut program = Program::start("pollux", options.cpu, Signal::TERM, &command, vec![scratch])?;
    wait_for_port(&mut program, portal)?;
    Ok(Served { program: Some(program), portal, target: DEFAULT_TARGET.into(), lun: 0, socket: Some(socket) })
}

/// Starts Debian's `tgtd` on a free port with a file of `bytes` in memory (`/dev/shm`) as its unit.
///
/// # Errors
/// The `tgt` package is missing, memory is short, or `tgtd` isn't ready in time.
pub fn start_tgt(cpu: usize, bytes: u64) -> Result<Served, Failure> {
    let scratch = Scratch::new(&std::env::temp_dir())?;
    let memory = Scratch::new(Path::new("/dev/shm"))?;
    let image = memory.0.join("lun");
    let file = File::create(&image).doing(format!("making {}", image.display()))?;
    file.set_len(bytes).doing(format!("sizing {}", image.display()))?;
    let portal = free_portal()?;
    // Any number below 32,768: it only becomes part of the socket's name, which is in our own directory.
    let control = (std::process::id() % 30_000 + 1).to_string();
    let socket = scratch.0.join("tgt");
    let command = [
        "tgtd".into(),
        "-f".into(),
        "-C".into(),
        control.clone(),
        "--iscsi".into(),
        format!("portal={portal}"),
    ];
    // While it has targets it doesn't heed SIGTERM, and it has nothing to save.
    let mut program = Program::start("tgtd", cpu, Signal::KILL, &command, vec![scratch, memory])?;
    wait_for_port(&mut program, portal)?;
    let image = image.display().to_string();
    for arguments in [
        &["--mode", "target", "--op", "new", "--tid", "1", "-T", TGT_TARGET][..],
        &["--mode", "logicalunit", "--op", "new", "--tid", "1", "--lun", "1", "-b", &image][..],
        &["--mode", "target", "--op", "bind", "--tid", "1", "-I", "ALL"][..],
    ] {
        let output = Command::new("tgtadm")
            .args(["-C", &control, "--lld", "iscsi"])
            .args(arguments)
            .env("TGT_IPC_SOCKET", &socket)
            .output()
            .doing("running tgtadm (of the package tgt)")?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            return Err(Failure::new(format!("tgtadm {arguments:?}: {} {said}", output.status)));
        }
    }
    Ok(Served { program: Some(program), portal, target: TGT_TARGET.into(), lun: 1, socket: None })
}

/// Waits until `door` opens, and leaves again.
///
/// # Errors
/// It doesn't in time; the last reason.
pub fn wait_for_login(served: &mut Served, door: &Door) -> Result<(), Failure> {
    let start = Instant::now();
    loop {
        if let Some(program) = &mut served.program {
            program.check_alive()?;
        }
        match login::login(door, 0, READY_WITHIN).and_then(|(mut link, _)| link.logout()) {
            Ok(()) => return Ok(()),
            Err(failure) if start.elapsed() > READY_WITHIN => return Err(failure),
            Err(_) => thread::sleep(PAUSE),
        }
    }
}

fn wait_for_port(program: &mut Program, portal: SocketAddr) -> Result<(), Failure> {
    let start = Instant::now();
    while let Err(failure) = Link::connect(portal, READY_WITHIN) {
        program.check_alive()?;
        if start.elapsed() > START_WITHIN {
            return Err(failure.at(format!(
                "{} isn't ready; it said:\n{}",
                program.name,
                program.log_tail()
            )));
        }
        thread::sleep(PAUSE);
    }
    Ok(())
}

/// A port that was free a moment ago.
fn free_portal() -> Result<SocketAddr, Failure> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).doing("looking for a free port")?;
    listener.local_addr().doing("looking for a free port")
}

/// Makes a volume of the pollux that listens at `socket` so large.
///
/// # Errors
/// It doesn't do that; with what it said.
pub fn resize_volume(path: Option<&Path>, socket: &Path, name: &str, bytes: u64) -> Result<(), Failure> {
    let path = find_pollux(path)?;
    let size = bytes.to_string();
    let said = Command::new(&path)
        .args(["volume", "resize", name, &size, "--socket"])
        .arg(socket)
        .output()
        .doing(format!("running {}", path.display()))?;
    if said.status.success() {
        return Ok(());
    }
    Err(Failure::new(format!("a volume can't be resized: {}", String::from_utf8_lossy(&said.stderr))))
}

/// The program as told, or beside this one, or where cargo puts it.
fn find_pollux(told: Option<&Path>) -> Result<PathBuf, Failure> {
    let beside = std::env::current_exe().ok().and_then(|path| Some(path.parent()?.join("pollux")));
    let candidates: Vec<PathBuf> = match told {
        Some(path) => vec![path.to_owned()],
        None => {
            beside.into_iter().chain(["target/release/pollux".into(), "target/quick/pollux".into()]).collect()
        }
    };
    let found = candidates.iter().find(|path| path.is_file());
    let path = found.ok_or_else(|| {
        Failure::new(format!(
            "no pollux program at {candidates:?}: build it with `cargo build --release`, or name it with --pollux"
        ))
    })?;
    path.canonicalize().doing(format!("resolving {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(command: &[&str]) -> Program {
        let scratch = Scratch::new(&std::env::temp_dir()).unwrap();
        let command: Vec<String> = command.iter().map(|&word| word.into()).collect();
        Program::start("test", 0, Signal::TERM, &command, vec![scratch]).unwrap()
    }

    /// Goal: a dropped program has ended and its files are gone. Method: one that would run for a minute.
    #[test]
    fn a_dropped_program_has_ended() {
        let program = start(&["sleep", "60"]);
        let pid = program.pid();
        let scratch = program.scratch[0].0.clone();
        assert!(Path::new(&format!("/proc/{pid}")).exists());
        drop(program);
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
        assert!(!scratch.exists());
    }

    /// Goal: a paused program ends too, and at once. Method: pause one, drop it, look at the clock.
    #[test]
    fn a_paused_program_ends() {
        let program = start(&["sleep", "60"]);
        let pid = Pid::from_raw(program.pid() as i32).unwrap();
        kill_process(pid, Signal::STOP).unwrap();
        let start = Instant::now();
        drop(program);
        assert!(start.elapsed() < END_WITHIN);
    }

    /// Goal: a program that ends by itself is told with what it said. Method: one that complains and leaves.
    #[test]
    fn an_early_end_is_told_with_its_words() {
        let mut program = start(&["sh", "-c", "echo no such disk >&2; exit 3"]);
        assert!(program.wait(Duration::from_secs(10)));
        let failure = program.check_alive().unwrap_err().to_string();
        assert!(failure.contains("no such disk") && failure.contains('3'), "{failure}");
    }

    /// Goal: a missing program is told with the cure. Method: a path that isn't there.
    #[test]
    fn a_missing_pollux_is_told() {
        let failure = find_pollux(Some(Path::new("/nonexistent/pollux"))).unwrap_err().to_string();
        assert!(failure.contains("cargo build --release"));
    }
}
