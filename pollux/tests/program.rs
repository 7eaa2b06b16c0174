//! The program as a person meets it when something is wrong: one message with place and cure on stderr, a status
//! that is not zero, no panic, nothing served.

use std::path::Path;
use std::process::{Command, Output};

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
        (&["volume", "list"], &["unrecognized subcommand"]),
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

/// Goal: help and version are no mistakes.
#[test]
fn help_is_no_mistake() {
    for arguments in [&["--help"][..], &["serve", "--help"], &["--version"]] {
        let Output { status, stdout, .. } = pollux(Path::new("/"), arguments);
        assert!(status.success());
        assert!(String::from_utf8_lossy(&stdout).contains("pollux"), "{arguments:?}");
    }
}
