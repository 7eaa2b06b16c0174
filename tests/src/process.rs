//! Programs that tests start: each with its output in a file, a bound on its life, and an end by its own pid.
//!
//! Invariant: whatever was started here is gone when the value is dropped, and also when the thread that
//! started it dies (`setpriv --pdeathsig`, from util-linux, which every Debian has). So start programs on a
//! thread that lives as long as they should: a test's own.

use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How often a wait looks again.
const LOOK_AGAIN: Duration = Duration::from_millis(3);
/// How long a program that was told to go may take before it is killed in [`Process::drop`].
const DROP_GRACE: Duration = Duration::from_millis(500);

/// A running program.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    output: PathBuf,
}

/// How a program ended.
#[derive(Debug)]
pub enum End {
    /// By itself.
    Exited(ExitStatus),
    /// It did not within the limit, and was killed.
    TimedOut,
}

impl End {
    /// Ended by itself with status 0.
    pub fn is_success(&self) -> bool {
        matches!(self, End::Exited(status) if status.success())
    }

    /// The signal that ended it, if one did.
    pub fn signal(&self) -> Option<i32> {
        match self {
            End::Exited(status) => status.signal(),
            End::TimedOut => None,
        }
    }
}

/// A program's end and all that it wrote to stdout and stderr.
#[derive(Debug)]
pub struct Finished {
    /// How it ended.
    pub end: End,
    /// Both streams, in the order they were written.
    pub text: String,
}

impl Process {
    /// Starts `program` with its stdout and stderr appended to the file `output`.
    ///
    /// # Panics
    /// If it can't be started.
    pub fn start(
        program: &str,
        arguments: &[String],
        environment: &[(&str, &str)],
        output: &Path,
    ) -> Process {
        let out = File::options().create(true).append(true).open(output).expect("output file can be made");
        let err = out.try_clone().expect("output file can be shared");
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--", program])
            .args(arguments)
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .spawn()
            .unwrap_or_else(|error| panic!("setpriv, which is to start {program}: {error}"));
        Process { name: program.to_owned(), child, output: output.to_owned() }
    }

    /// Its process's number: of what it started last with `exec`.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// All that it has written so far.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.output).unwrap_or_default()).into_owned()
    }

    /// Its end, if it has come.
    pub fn try_end(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child of ours can be waited for")
    }

    /// Waits for its end; kills it when `limit` has passed.
    pub fn wait(&mut self, limit: Duration) -> End {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.try_end() {
                return End::Exited(status);
            }
            if Instant::now() >= deadline {
                self.kill();
                return End::TimedOut;
            }
            sleep(LOOK_AGAIN);
        }
    }

    /// Asks it to leave (SIGTERM). See [`Process::wait`] for the rest.
    pub fn terminate(&mut self) {
        self.signal(rustix::process::Signal::TERM);
    }

    /// Ends it at once (SIGKILL), as a crash would.
    pub fn kill(&mut self) {
        self.signal(rustix::process::Signal::KILL);
        self.child.wait().expect("a killed child can be waited for");
    }

    fn signal(&mut self, signal: rustix::process::Signal) {
        // Nobody else waits for this child, so its pid is still its own until `try_wait` has seen the end.
        if self.try_end().is_none() {
            let pid = rustix::process::Pid::from_child(&self.child);
            rustix::process::kill_process(pid, signal)
                .unwrap_or_else(|error| panic!("signal to {}: {error}", self.name));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.try_end().is_none() {
            self.terminate();
            self.wait(DROP_GRACE);
        }
    }
}

/// Runs `program` to its end, but no longer than `limit`.
///
/// # Panics
/// If it can't be started.
pub fn run(program: &str, arguments: &[String], limit: Duration) -> Finished {
    let output = tempfile::NamedTempFile::new_in(scratch_root()).expect("a scratch file");
    let mut process = Process::start(program, arguments, &[("LC_ALL", "C")], output.path());
    let end = process.wait(limit);
    Finished { end, text: process.text() }
}

/// Like [`run`], for a program whose failure is the test's.
///
/// # Panics
/// If it does not end with status 0, with what it wrote.
pub fn run_well(program: &str, arguments: &[String], limit: Duration) -> String {
    let finished = run(program, arguments, limit);
    assert!(
        finished.end.is_success(),
        "{program} {}\nended as {:?}:\n{}",
        arguments.join(" "),
        finished.end,
        finished.text
    );
    finished.text
}

/// A word list as owned strings, which is what [`run`] takes.
pub fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}

/// Where things go that last (a guest's image, a built fio, the tables that were observed):
/// `POLLUX_TEST_CACHE`, otherwise `test-cache` in cargo's target directory.
pub fn cache_root() -> PathBuf {
    let root = match std::env::var_os("POLLUX_TEST_CACHE") {
        Some(path) => PathBuf::from(path),
        None => target_directory().join("test-cache"),
    };
    fs::create_dir_all(&root).unwrap_or_else(|error| panic!("{}: {error}", root.display()));
    root
}

/// Where things go that don't last. Not `/tmp`: it may be in memory, where direct IO to files fails on older
/// kernels.
pub fn scratch_root() -> PathBuf {
    let root = cache_root().join("scratch");
    fs::create_dir_all(&root).unwrap_or_else(|error| panic!("{}: {error}", root.display()));
    root
}

/// Whether this is the long run (`tests/run --long`): the same tests, with more rounds.
pub fn is_long_run() -> bool {
    std::env::var_os("POLLUX_TEST_LONG").is_some()
}

/// Cargo's target directory: the one this very program was built into (`TARGET/PROFILE/deps/NAME`).
pub fn target_directory() -> PathBuf {
    let program = std::env::current_exe().expect("a test knows its own program");
    program.ancestors().nth(3).expect("cargo puts tests three levels below its target directory").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a wait ends, and so does what was waited for. Method: a program that would sleep for an hour.
    #[test]
    fn a_program_that_hangs_is_ended() {
        let finished = run("sleep", &words("3600"), Duration::from_millis(50));
        assert!(matches!(finished.end, End::TimedOut));
    }

    /// Goal: both streams and the status come back. Method: a shell that writes to each and fails.
    #[test]
    fn output_and_status_come_back() {
        let script = ["-c".to_owned(), "echo one; echo two >&2; exit 3".to_owned()];
        let finished = run("sh", &script, Duration::from_secs(10));
        assert_eq!(finished.text, "one\ntwo\n");
        assert!(!finished.end.is_success());
        assert!(matches!(finished.end, End::Exited(status) if status.code() == Some(3)));
    }

    /// Goal: a signal's end is told from an exit. Method: a shell that kills itself.
    #[test]
    fn a_death_by_signal_is_seen() {
        let script = ["-c".to_owned(), "kill -SEGV $$".to_owned()];
        assert_eq!(run("sh", &script, Duration::from_secs(10)).end.signal(), Some(11));
    }

    /// Goal: nothing outlives its value. Method: drop a sleeper, then look for its pid.
    #[test]
    fn dropping_ends_it() {
        let output = tempfile::NamedTempFile::new_in(scratch_root()).unwrap();
        let process = Process::start("sleep", &words("3600"), &[], output.path());
        let pid = rustix::process::Pid::from_child(&process.child);
        drop(process);
        assert!(rustix::process::test_kill_process(pid).is_err());
    }
}
