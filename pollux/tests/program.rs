//! The program as a person meets it when something is wrong: one message with place and cure on stderr, a status
//! that is not zero, no panic, nothing served.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};

fn pollux(directory: &Path, arguments: &[&str]) -> Output {
    let program = env!("CARGO_BIN_EXE_pollux");
    Command::new(program).args(arguments).current_dir(directory).output().expect("the program can be started")
}

/// Goal: each kind of mistake ends the program with its message. Method: a table of arguments that can't be served.
#[test]
fn mistakes_end_with_a_message() {
    let root = tempfile::tempdir().unwrap();
    std::fs::write(root.path().join("wrong.toml"), "data = \"d\"\nreactor = 1\n").unwrap();
    std::fs::write(root.path().join("file"), "").unwrap();
    std::fs::create_dir(root.path().join("damaged")).unwrap();
    std::fs::write(root.path().join("damaged/luns.toml"), "[[lun").unwrap();
    for (arguments, says) in [
        (&["serve", "--lun", "disk:1G"][..], &["\"disk\" is no kind of LUN", "do: write thin:1T"][..]),
        (&["serve", "--poll", "lazy"], &["busy, adaptive"]),
        (&["volumes", "list"], &["unrecognized subcommand"]),
        (&["volume", "list"], &["no pollux listens there", "at: pollux-data/pollux.sock", "do: start it"]),
        (&["serve", "--config", "none.toml"], &["error: can't open", "none.toml", "do: name a readable"]),
        (
            &["serve", "--config", "wrong.toml"],
            &["wrong.toml:1:8, key data", "wrong.toml:2:1, key reactor", "listen is missing", "do: "],
        ),
        (
            &["serve", "--lun", "ram:1G", "--data", "file"],
            &["can't make the data directory", "at: ", "--data"],
        ),
        (
            &["serve", "--lun", "ram:1G", "--data", "damaged"],
            &["identities can't be read", "restore the file"],
        ),
        (
            &["serve", "--data", "ram:16M", "--lun", "thin:1M", "--listen", "127.0.0.1:0"],
            &["ram:16M: 16777216 bytes are too few", "make it at least"],
        ),
        (
            &["serve", "--data", "ram:60T", "--lun", "thin:1M", "--listen", "127.0.0.1:0"],
            &["bytes of memory are not to be had", "at: ram:60T", "make it smaller, or name a directory"],
        ),
    ] {
        let Output { status, stdout, stderr } = pollux(root.path(), arguments);
        let told = String::from_utf8_lossy(&stderr);
        assert!(status.code().is_some_and(|code| code != 0), "{arguments:?}: {status}\n{told}");
        for part in says {
            assert!(told.contains(part), "{arguments:?} does not say {part:?}:\n{told}");
        }
        assert!(!told.contains("panicked") && !told.contains("RUST_BACKTRACE"), "{told}");
        assert!(!String::from_utf8_lossy(&stdout).contains("ready:"), "{arguments:?} served");
    }
}

/// Goal: with the pool in memory a thin unit is served, what would be forgotten is refused, the log and the first words say that
/// all is gone at the end, and then it is. Method: the commands, TERM, and a look at what is left.
#[test]
fn a_pool_in_memory_is_gone() {
    let root = tempfile::tempdir().unwrap();
    let temporary = root.path().join("tmp");
    std::fs::create_dir(&temporary).unwrap();
    let mut serve = Command::new(env!("CARGO_BIN_EXE_pollux"));
    serve.args(["serve", "--lun", "thin:64M", "--listen", "127.0.0.1:0", "--memory", "16M"]);
    serve.args(["--data", "ram:96M", "--socket", "socket"]);
    serve.env("TMPDIR", &temporary).current_dir(root.path()).stdout(Stdio::piped());
    let mut serving = serve.stderr(std::fs::File::create(root.path().join("log")).unwrap()).spawn().unwrap();
    let mut lines = BufReader::new(serving.stdout.take().unwrap()).lines().map_while(Result::ok);
    let banner: Vec<String> = lines.by_ref().take_while(|line| !line.starts_with("ready:")).collect();
    assert!(banner.iter().any(|line| line.contains("96M of memory: gone when pollux ends")), "{banner:?}");
    let told = |arguments: &[&str]| {
        let arguments = [&arguments[..2], &["--socket", "socket"], &arguments[2..]].concat();
        let Output { status, stdout, stderr } = pollux(root.path(), &arguments);
        (status.code(), String::from_utf8_lossy(&stdout).into_owned() + &String::from_utf8_lossy(&stderr))
    };
    let (status, text) = told(&["pool", "list", "--json"]);
    assert!(status == Some(0) && text.contains("\"ram:96M\""), "{text}");
    let (status, text) = told(&["pool", "create", "other", "file:64M"]);
    assert!(status == Some(1) && text.contains("a pool would be lost with the program"), "{text}");
    let (status, text) = told(&["pool", "grow", "data", "file:64M"]);
    assert!(status == Some(1) && text.contains("is in memory"), "{text}");
    assert_eq!(std::fs::read_dir(&temporary).unwrap().count(), 1);
    let pid = rustix::process::Pid::from_child(&serving);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(serving.wait().unwrap().success());
    assert_eq!(std::fs::read_dir(&temporary).unwrap().count(), 0, "nothing is left");
    let log = std::fs::read_to_string(root.path().join("log")).unwrap();
    assert!(log.contains("what is in it is gone when pollux ends"), "{log}");
    assert!(!log.contains("panicked") && !log.contains("stays behind"), "{log}");
}

/// Goal: help and version are no mistakes.
#[test]
fn help_is_no_mistake() {
    for arguments in [&["--help"][..], &["serve", "--help"], &["--version"]] {
        let Output { status, stdout, .. } = pollux(Path::new("/"), arguments);
        assert!(status.success());
        assert!(String::from_utf8_lossy(&stdout).contains("pollux"), "{arguments:?}");
    }
}

/// Goal: a target that serves answers the commands, is refused a second time by its socket, and takes the socket with
/// it. Method: a unit in memory, the commands, TERM.
#[test]
fn a_running_target_answers() {
    let root = tempfile::tempdir().unwrap();
    let mut serve = Command::new(env!("CARGO_BIN_EXE_pollux"));
    serve.args([
        "serve",
        "--lun",
        "ram:16M,ro",
        "--listen",
        "127.0.0.1:0",
        "--memory",
        "16M",
        "--data",
        "pollux-data",
    ]);
    let mut serving =
        serve.current_dir(root.path()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(serving.stdout.take().unwrap()).lines();
    let ready = lines.find(|line| line.as_ref().is_ok_and(|line| line.starts_with("ready:")));
    assert!(ready.is_some(), "it never got ready");
    let Output { status, stdout, .. } = pollux(root.path(), &["lun", "list", "--json"]);
    assert!(status.success());
    let document: serde_json::Value = serde_json::from_slice(&stdout).unwrap();
    assert_eq!(document["luns"][0]["size_bytes"], 16 << 20);
    assert_eq!(document["luns"][0]["read_only"], true);
    let Output { stdout, .. } = pollux(root.path(), &["lun", "list"]);
    assert!(String::from_utf8_lossy(&stdout).contains("ram:16M,ro"));
    let second = [
        "serve",
        "--lun",
        "ram:16M",
        "--listen",
        "127.0.0.1:0",
        "--data",
        "other",
        "--socket",
        "pollux-data/pollux.sock",
    ];
    let Output { status, stderr, .. } = pollux(root.path(), &second);
    let told = String::from_utf8_lossy(&stderr);
    assert_eq!(status.code(), Some(1));
    assert!(told.contains(&format!("process {} uses the control socket", serving.id())), "{told}");
    let pid = rustix::process::Pid::from_child(&serving);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(serving.wait().unwrap().success());
    assert!(!root.path().join("pollux-data/pollux.sock").exists());
    assert_eq!(pollux(root.path(), &["lun", "list"]).status.code(), Some(3));
}
