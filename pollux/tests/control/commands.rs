//! The commands as a person or a script meets them: the program itself, against a server over a target in memory.

use crate::fake::TARGET;
use crate::server::Served;
use bdev::pool::control::{Against, Refusal};
use pollux::below::Below;
use pollux::control::backend::Failure;
use serde_json::{Value, json};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

struct Told {
    status: i32,
    out: String,
    err: String,
}

fn pollux(directory: &Path, line: &str) -> Told {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pollux"));
    let output = command.args(line.split_whitespace()).current_dir(directory).output().unwrap();
    Told {
        status: output.status.code().expect("it ended by itself"),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

impl Served {
    fn run(&self, line: &str) -> Told {
        pollux(Path::new("/"), &format!("{line} --socket {}", self.socket.display()))
    }

    /// The table of a command that does what it should.
    fn table(&self, line: &str) -> String {
        let Told { status, out, err } = self.run(line);
        assert_eq!((status, err.as_str()), (0, ""), "{line}");
        out
    }

    fn json(&self, line: &str) -> Value {
        let out = self.table(&format!("{line} --json"));
        serde_json::from_str(&out).unwrap_or_else(|error| panic!("{line}: {error}: {out}"))
    }
}

/// Goal: every command does what it is for and prints a table. Method: a volume's life, and what each line has.
#[test]
fn tables_are_for_people() {
    let served = Served::new();
    for (line, parts) in [
        ("pool list", &["POOL", "SPACE", "FREE", "p ", "1T", "/dev/fake"][..]),
        ("pool create q /dev/x /srv/y.img:200G", &["q ", "1.2T", "/dev/x,/srv/y.img"]),
        ("pool grow q z", &["/dev/x,/srv/y.img,/z"]),
        ("pool delete q", &["deleted pool q"]),
        (
            "volume create vm1 1T --thick --zero off --writeback",
            &["VOLUME", "vm1 ", "1T", "thick", "512/4096", "off", "back"],
        ),
        ("volume create vm2 1536M --block 4096", &["vm2 ", "1.5G", "thin", "4096/4096", "on", "through"]),
        ("volume set vm1 --zero on", &["on"]),
        ("lun map vm1 --ro", &["LUN", "1 ", "p/vm1", "catalog", "naa.6", TARGET, "ro"]),
        ("lun list", &["0 ", "ram:1G", "configuration", "p/vm1"]),
        ("volume resize vm1 2T", &["2T"]),
        ("snapshot create vm1@monday", &["SNAPSHOT", "vm1@monday", "2T", "2026-11-25 07:42:51Z"]),
        ("snapshot list", &["vm1@monday"]),
        ("snapshot list vm2", &["SNAPSHOT"]),
        ("volume clone vm1@monday vm3 --thin", &["vm3 ", "thin", "vm1@monday"]),
        ("volume rollback vm1@monday", &["vm1 "]),
        ("snapshot diff vm1@monday vm1", &["8192                  4096\n", "3 extents, 72K in all\n"]),
        ("volume list", &["vm1 ", "vm2 ", "vm3 "]),
        ("volume list --usage", &["UNIQUE", "192K", "320K", "~192K", "~320K"]),
        ("lun unmap 1", &["unmapped LUN 1 of iqn.2026-11.io.pollux:demo, volume vm1"]),
        ("snapshot delete vm1@monday", &["deleted snapshot vm1@monday"]),
        ("volume delete vm1", &["deleted volume vm1"]),
    ] {
        let out = served.table(line);
        for part in parts {
            assert!(out.contains(part), "{line} does not say {part:?}:\n{out}");
        }
        assert!(out.lines().all(|row| row == row.trim_end()), "{line}:\n{out}");
    }
}

/// Goal: a pool whose file system can't give what is free in it says so, and `free_bytes` is what can be had. Method: three
/// file systems.
#[test]
fn file_systems_count() {
    let served = Served::new();
    for (below, free, says) in [
        (None, 1u64 << 40, false),
        (Some(Below { free_bytes: 1 << 30, holes_bytes: 1 << 40, is_low: false }), 1 << 30, true),
        (Some(Below { free_bytes: 1 << 41, holes_bytes: 1 << 40, is_low: false }), 1 << 40, false),
    ] {
        served.fake.state().below = below;
        let pool = &served.json("pool list")["pools"][0];
        assert_eq!(
            (&pool["free_bytes"], &pool["free_chunk_bytes"], &pool["file_system_free_bytes"]),
            (&json!(free), &json!(1u64 << 40), &json!(below.map(|below| below.free_bytes)))
        );
        let table = served.table("pool list");
        assert_eq!(table.contains("promised: p: 1T are free in it, but the file system below has 1G;"), says);
        assert!(served.table("pool grow p").contains("1T"));
    }
}

/// Goal: with --json each command prints exactly one document, sizes exact. Method: the same life, parsed.
#[test]
fn json_is_for_scripts() {
    let served = Served::new();
    for (line, pointer, value) in [
        ("pool list", "/pools/0/members/0/path", json!("/dev/fake")),
        ("pool create q /dev/x", "/name", json!("q")),
        ("pool grow q /srv/y:1G", "/members/1/size_bytes", json!(1 << 30)),
        ("pool delete q --force", "/deleted", json!("pool q")),
        ("volume create vm1 1T", "/size_bytes", json!(1u64 << 40)),
        ("volume set vm1 --zero off", "/zero_detect", json!(false)),
        ("lun map vm1 --lun 7 --removable", "/removable", json!(true)),
        ("lun list", "/luns/1/lun", json!(7)),
        ("volume resize vm1 1G --shrink", "/size_bytes", json!(1 << 30)),
        ("snapshot create vm1@a", "/name", json!("a")),
        ("snapshot list vm1", "/snapshots/0/created_seconds", json!(1_795_592_571)),
        ("snapshot diff vm1@a vm1", "/extents/2/offset_bytes", json!(1 << 30)),
        ("volume clone vm1@a vm2 --thick", "/provisioning", json!("thick")),
        ("volume rollback vm1@a --force", "/name", json!("vm1")),
        ("volume list", "/volumes/1/origin", json!("vm1@a")),
        ("volume list", "/volumes/0/usage", Value::Null),
        ("volume list --usage", "/volumes/0/usage/shared_bytes", json!(327_680)),
        ("snapshot delete vm1@a", "/deleted", json!("snapshot vm1@a")),
        ("lun unmap 7 --force", "/unmapped/volume", json!("vm1")),
        ("volume delete vm1 --force", "/deleted", json!("volume vm1")),
    ] {
        assert_eq!(served.json(line).pointer(pointer), Some(&value), "{line}");
    }
}

/// Goal: what stands against a command is told on stderr with its cure and status 1, and stdout stays empty, also with
/// --json.
#[test]
fn refusals_have_a_cure_and_a_status() {
    let served = Served::new();
    served.table("volume create vm1 1T");
    served.table("lun map vm1");
    served.fake.state().running.sessions.insert(1, 3);
    for (line, what, cure) in [
        ("volume create vm1 1T", "vm1 is there already", "do otherwise"),
        ("volume resize vm1 1G", "would be less", "--shrink"),
        ("volume resize vm1 1G --shrink", "3 sessions have volume vm1", "--force"),
        ("volume delete vm1", "volume vm1 is LUN 1", "pollux lun unmap 1"),
        ("volume delete none", "no volume none", "pollux volume list"),
        ("lun unmap 1", "3 sessions have LUN 1", "--force"),
        ("lun unmap 0", "stands in the configuration", "restart"),
        ("lun map vm1", "volume vm1 is LUN 1", "unmap it first"),
        ("pool delete p", "pool p is in use", "pollux lun unmap 1"),
        ("volume list --pool none", "pool none", "do otherwise"),
        ("snapshot delete vm1@none", "vm1@none", "do otherwise"),
    ] {
        for json in ["", " --json"] {
            let Told { status, out, err } = served.run(&format!("{line}{json}"));
            assert_eq!((status, out.as_str()), (1, ""), "{line}: {err}");
            assert!(
                err.starts_with("error: ") && err.contains(what) && err.contains("\n  do: "),
                "{line}: {err}"
            );
            assert!(err.contains(cure), "{line}: {err}");
        }
    }
    served.fake.state().fail_after = Some((0, Failure::Unanswered("core 0".to_owned())));
    let Told { status, err, .. } = served.run("volume create vm2 1T");
    assert_eq!(status, 1);
    assert!(err.contains("core 0 did not answer in time: the change may be made"), "{err}");
    served.fake.state().fail_after =
        Some((0, Failure::Refused(Refusal::new(Against::NoSpace, "full", "grow it"))));
    let Told { status, err, .. } = served.run("volume create vm2 1T");
    assert_eq!((status, err.as_str()), (1, "error: full\n  do: grow it\n"));
}

/// Goal: what the command line leaves open is told with status 2. Method: two pools and none named; clap's own.
#[test]
fn usage_has_status_2() {
    let served = Served::new();
    served.table("pool create q /dev/x");
    for line in ["volume list", "volume create vm1 1T", "snapshot list", "lun map vm1"] {
        let Told { status, err, .. } = served.run(line);
        assert_eq!(status, 2, "{line}: {err}");
        assert!(err.contains("there are 2 pools") && err.contains("--pool: p, q"), "{line}: {err}");
    }
    served.table("volume create vm1 1T --pool q");
    assert!(served.table("volume list --pool q").contains("vm1"));
    served.table("pool delete q --force");
    served.table("pool delete p");
    let Told { status, err, .. } = served.run("volume list");
    assert_eq!(status, 1);
    assert!(err.contains("there is no pool") && err.contains("pollux pool create"), "{err}");
    for line in ["volume", "volume create vm1", "lun unmap x", "check"] {
        let Told { status, out, err } = pollux(Path::new("/"), line);
        assert_eq!((status, out.as_str()), (2, ""), "{line}");
        assert!(err.contains("Usage: pollux") || err.contains("'--help'"), "{line}: {err}");
    }
}

/// Goal: a daemon that can't be reached is told with status 3, the socket's path and what to do. Method: no socket, a
/// dead one, one that is none, one that is somebody else's, one that hangs up, and one without the right to it.
#[test]
fn no_daemon_has_status_3() {
    let root = tempfile::tempdir().unwrap();
    let at = |name: &str| root.path().join(name);
    drop(UnixListener::bind(at("dead")).unwrap());
    std::fs::write(at("file"), "").unwrap();
    let [hangup, foreign] = ["hangup", "foreign"].map(|name| UnixListener::bind(at(name)).unwrap());
    std::thread::spawn(move || hangup.incoming().for_each(drop));
    std::thread::spawn(move || {
        use std::io::{Read, Write};
        for stream in foreign.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\n\r\nno");
        }
    });
    for (socket, what) in [
        ("none", "no pollux listens there"),
        ("dead", "no pollux listens there"),
        ("file", "no pollux listens there"),
        ("hangup", "does not answer"),
        ("foreign", "no pollux that this one understands"),
    ] {
        let Told { status, out, err } = pollux(root.path(), &format!("lun list --socket {socket}"));
        assert_eq!((status, out.as_str()), (3, ""), "{socket}: {err}");
        assert!(
            err.contains(what) && err.contains(&format!("at: {socket}\n")) && err.contains("do: "),
            "{err}"
        );
    }
    let Told { status, err, .. } = pollux(root.path(), "lun list");
    assert_eq!(status, 3);
    assert!(err.contains("at: pollux-data/pollux.sock"), "{err}");
    // Root may do anything, so it becomes somebody else to be kept out.
    let _kept = UnixListener::bind(at("kept")).unwrap();
    std::fs::set_permissions(at("kept"), std::fs::Permissions::from_mode(0o000)).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_pollux"));
    command.args(["lun", "list", "--socket"]).arg(at("kept")).current_dir("/");
    if rustix::process::geteuid().is_root() {
        command.uid(65_534);
    }
    match command.output() {
        Ok(output) => {
            let err = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(3), "{err}");
            assert!(err.contains("you may not talk") && err.contains("become the user"), "{err}");
        }
        // The program lies where that somebody may not go.
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied),
    }
}

/// Goal: a reader that has enough is no failure. Method: a pipe whose reader has gone.
#[test]
fn a_closed_pipe_is_no_failure() {
    let served = Served::new();
    let line = format!(
        "{} lun list --socket {} | true; echo ${{PIPESTATUS[0]}}",
        env!("CARGO_BIN_EXE_pollux"),
        served.socket.display()
    );
    let output = Command::new("bash").args(["-c", &line]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "0", "{output:?}");
}

/// Goal: a pool that can't be checked is told, and nothing else is said.
#[test]
fn check_tells_why_it_can_t() {
    let Told { status, out, err } = pollux(Path::new("/"), "check /dev/none --json");
    assert_eq!((status, out.as_str()), (1, ""));
    assert!(err.contains("/dev/none") && err.contains("name an existing one"), "{err}");
}
