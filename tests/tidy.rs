//! Checks of the tree: `tests::tree` over this repository, and over trees with one thing wrong.

use std::fmt::Write;
use std::fs;
use std::path::Path;
use tempfile::TempDir;
use tests::tree::{CHECKS, Finding, Tree};

fn findings(name: &str, tree: &Tree) -> Vec<Finding> {
    let (_, check) = CHECKS.iter().find(|(check, _)| *check == name).expect("a check of that name");
    check(tree)
}

/// Goal: the tree keeps its rules. Method: every check over every file.
#[test]
fn the_tree_is_tidy() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let tree = Tree::read(root);
    let mut told = String::new();
    for (name, check) in CHECKS {
        for finding in check(&tree) {
            writeln!(told, "[{name}] {finding}").expect("a String takes it");
        }
    }
    assert!(told.is_empty(), "\n{told}");
}

/// A small tree that keeps every rule.
const CLEAN: [(&str, &str); 13] = [
    (
        "README.md",
        "See [the limits](docs/limits.md#queues), `bdev/src/io.rs` and [us](https://example.org/work/).\n",
    ),
    (
        "docs/limits.md",
        "[up](../README.md) `bdev/src/io.rs::takes_io` `iscsi/src/{a,b}.rs`\n```\n[no](link.md)\n```\n",
    ),
    ("pollux/Cargo.toml", "[package]\nname = \"pollux\"\n[dependencies]\niscsi = { path = \"../iscsi\" }\n"),
    (
        "pollux/src/main.rs",
        "//! The program.\nuse iscsi::portal;\nfn main() { std::time::Instant::now(); }\n",
    ),
    ("iscsi/Cargo.toml", "[package]\nname = \"iscsi\"\n[dependencies]\nbdev.workspace = true\n"),
    ("iscsi/src/lib.rs", "//! iSCSI.\npub mod portal;\n"),
    ("iscsi/src/portal.rs", "//! Sockets.\nuse std::net::TcpListener;\n"),
    ("bdev/Cargo.toml", "[package]\nname = \"bdev\"\n[dependencies]\nreactor = { path = \"../reactor\" }\n"),
    ("bdev/src/lib.rs", "//! Block devices.\nmod io;\nmod base;\nmod pollux {}\n"),
    (
        "bdev/src/io.rs",
        "//! Io.\n// unsafe iscsi::x Instant::now()\nfn takes_io(_: std::net::SocketAddr) {}\n",
    ),
    ("bdev/src/base/mod.rs", "//! Base.\nmod ram;\nuse crate::pollux::x;\n"),
    ("bdev/src/base/ram.rs", "//! Ram.\n"),
    ("reactor/src/ring.rs", "//! Ring.\nfn f() { unsafe { g() } }\n"),
];

/// [`CLEAN`], and more files, or others in their place.
fn tree_with(files: &[(&str, &str)]) -> Tree {
    let dir = TempDir::new().expect("a scratch directory");
    let reactor = (
        "reactor/Cargo.toml",
        "[package]\nname = \"reactor\"\n[[bin]]\nname = \"x\"\npath = \"src/ring.rs\"\n",
    );
    for (path, text) in CLEAN.iter().chain(&[reactor]).chain(files) {
        let path = dir.path().join(path);
        fs::create_dir_all(path.parent().expect("it has a name")).expect("a directory can be made");
        fs::write(path, text).expect("a file can be written");
    }
    Tree::read(dir.path())
}

/// Goal: rules that are kept are not complained about. Method: every check over the clean tree.
#[test]
fn a_clean_tree_has_no_findings() {
    let tree = tree_with(&[]);
    for (name, check) in CHECKS {
        assert_eq!(check(&tree), [], "{name}");
    }
}

/// Goal: every check sees what it is for. Method: one violation planted at a time, found by its check, at its line.
#[test]
fn planted_violations_are_found() {
    // Check, file, its text, the line to be found.
    let planted: &[(&str, &str, &str, usize)] = &[
        ("imports", "bdev/src/io.rs", "//! Io.\nfn takes_io() {}\nuse iscsi::portal;\n", 3),
        ("imports", "bdev/src/io.rs", "//! Io.\nfn takes_io() { ::pollux::boot() }\n", 2),
        ("imports", "iscsi/src/portal.rs", "//! P.\nuse {std::fmt, tests::world};\n", 2),
        ("imports", "iscsi/src/portal.rs", "//! P.\nextern crate bench;\n", 2),
        (
            "imports",
            "bdev/Cargo.toml",
            "[package]\nname = \"bdev\"\n[dev-dependencies]\niscsi.workspace = true\n",
            0,
        ),
        (
            "imports",
            "bdev/Cargo.toml",
            "[package]\nname = \"bdev\"\n[dependencies]\nx = { package = \"vaai\" }\n",
            0,
        ),
        (
            "imports",
            "bdev/Cargo.toml",
            "[package]\nname = \"bdev\"\n[target.'cfg(unix)'.dependencies.tests]\n",
            0,
        ),
        ("unsafe", "bdev/src/io.rs", "//! Io.\nfn takes_io() {\n    unsafe { g() }\n}\n", 3),
        ("unsafe", "pollux/src/main.rs", "//! M.\nunsafe fn f() {}\n", 2),
        ("locks", "bdev/src/io.rs", "//! Io.\nuse std::sync::{Arc, Mutex};\n", 2),
        ("locks", "vaai/src/x.rs", "//! X.\nstatic X: std::sync::RwLock<u8>;\n", 2),
        ("clocks", "bdev/src/io.rs", "//! Io.\nlet t = std::time::Instant::now();\n", 2),
        ("clocks", "iscsi/src/lib.rs", "//! I.\nlet t = Time::now();\n", 2),
        ("clocks", "iscsi/src/lib.rs", "//! I.\nlet t = x.unwrap_or_else(SystemTime::now);\n", 2),
        ("sockets", "iscsi/src/lib.rs", "//! I.\n\nuse std::net::{IpAddr, TcpStream};\n", 3),
        ("sockets", "bdev/src/io.rs", "//! Io.\nuse rustix::net::send;\n", 2),
        ("heads", "bdev/src/io.rs", "fn takes_io() {}\n", 1),
        ("heads", "bdev/src/io.rs", "//!\nfn takes_io() {}\n", 1),
        ("dead files", "bdev/src/base/null.rs", "//! Null.\n", 0),
        ("dead files", "bdev/src/lib.rs", "//! B.\nmod io;\nmod base;\nmod gone;\n", 4),
        ("dead links", "docs/limits.md", "\n[gone](gone.md)\n", 2),
        ("dead links", "README.md", "`bdev/src/gone.rs`\n", 1),
        ("dead links", "README.md", "`bdev/src/io.rs::no_such_test`\n", 1),
    ];
    for &(check, file, text, line) in planted {
        let found = findings(check, &tree_with(&[(file, text)]));
        let there = found.iter().any(|finding| finding.file == file && finding.line == line);
        assert!(there, "{check} did not see {file}:{line} in:\n{text}\nbut: {found:?}");
    }
    let home = format!("# Build\nUnpack it in `/{}/someone/pollux`.\n", "home");
    let found = findings("machine paths", &tree_with(&[("docs/build.md", &home)]));
    assert!(found.iter().any(|finding| finding.file == "docs/build.md" && finding.line == 2), "{found:?}");
}
