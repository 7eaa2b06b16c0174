//! Checks of the source tree that the compiler doesn't make: who may name whom, what only some files may do, and
//! what is there though nobody uses it.
//!
//! Each check takes the [`Tree`] and returns its [`Finding`]s; `tidy.rs` runs them all over this repository, and each
//! over a tree with a planted violation.

use crate::rust_code::{Word, code_of, words_of};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::path::{Component, Path, PathBuf};

/// The layers: a crate names only crates to its right.
const LAYERS: [&str; 5] = ["pollux", "iscsi", "vaai", "bdev", "reactor"];
/// These name everyone, and nobody names them.
const OBSERVERS: [&str; 2] = ["tests", "bench"];
/// Memory that the kernel writes to, mapped memory, CPU sets.
const UNSAFE_FILES: [&str; 3] = ["reactor/src/ring.rs", "reactor/src/buf.rs", "reactor/src/pin.rs"];
/// Where the kernel is met: the clock is read, sockets are named, threads share.
const KERNEL_FILES: [&str; 8] = [
    "reactor/src/ring.rs",
    "reactor/src/net.rs",
    "reactor/src/pin.rs",
    "reactor/src/clock.rs",
    "reactor/src/reactor.rs",
    "reactor/src/start.rs",
    "reactor/src/mesh.rs",
    "iscsi/src/portal.rs",
];
/// Words that mean a lock.
const LOCKS: [&str; 4] = ["Mutex", "RwLock", "Condvar", "parking_lot"];
/// Types whose `now` reads the clock.
const CLOCKS: [&str; 3] = ["Instant", "SystemTime", "Time"];
/// Words that mean a socket. Addresses are values, and are not among them.
const SOCKETS: [&str; 8] = [
    "TcpListener",
    "TcpStream",
    "UdpSocket",
    "UnixListener",
    "UnixStream",
    "UnixDatagram",
    "ToSocketAddrs",
    "socket2",
];
/// What holds nothing of ours, wherever it is. In a further work tree `.git` is a file.
const SKIPPED: [&str; 4] = ["target", ".git", "pollux-data", "node_modules"];
/// Text longer than this is data.
const TEXT_BYTES_MAX: usize = 4 << 20;

/// Something that should not be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// Relative to the tree's root.
    pub file: String,
    /// Counted from 1; 0 for the file as a whole.
    pub line: usize,
    /// What, and what instead.
    pub what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.what)
    }
}

/// The text files below a directory.
#[derive(Debug)]
pub struct Tree {
    root: PathBuf,
    /// By path relative to the root.
    files: BTreeMap<String, String>,
    /// Every path there is, directories and binary files too.
    paths: BTreeSet<String>,
    /// Rust files' code, comments and literals blanked.
    code: BTreeMap<String, String>,
}

/// A check by its name.
pub type Check = (&'static str, fn(&Tree) -> Vec<Finding>);

/// All of them.
pub const CHECKS: [Check; 9] = [
    ("imports", imports),
    ("unsafe", unsafe_code),
    ("locks", locks),
    ("clocks", clocks),
    ("sockets", sockets),
    ("heads", heads),
    ("dead files", dead_files),
    ("dead links", dead_links),
    ("machine paths", machine_paths),
];

impl Tree {
    /// Reads the tree.
    ///
    /// # Panics
    /// If a directory or file can't be read.
    pub fn read(root: &Path) -> Tree {
        let root = root.to_owned();
        let mut tree = Tree { root, files: BTreeMap::new(), paths: BTreeSet::new(), code: BTreeMap::new() };
        tree.read_directory("");
        let rust = tree.files.iter().filter(|(path, _)| is_rust(path));
        tree.code = rust.map(|(path, text)| (path.clone(), code_of(text))).collect();
        tree
    }

    fn read_directory(&mut self, directory: &str) {
        let entries = fs::read_dir(self.root.join(directory)).expect("a directory of the tree can be read");
        for entry in entries {
            let entry = entry.expect("a directory entry can be read");
            let name = entry.file_name().to_string_lossy().into_owned();
            let path = if directory.is_empty() { name.clone() } else { format!("{directory}/{name}") };
            let kind = entry.file_type().expect("an entry has a type");
            let is_ours = !SKIPPED.contains(&name.as_str());
            if kind.is_dir() && is_ours {
                self.read_directory(&path);
            } else if kind.is_file() && is_ours {
                let bytes = fs::read(entry.path()).expect("a file of the tree can be read");
                if let (true, Ok(text)) = (bytes.len() <= TEXT_BYTES_MAX, String::from_utf8(bytes)) {
                    self.files.insert(path.clone(), text);
                }
            }
            self.paths.insert(path);
        }
    }

    /// Rust files in the `src` of crates that the IO path runs through, by path and words.
    fn layer_sources(&self) -> impl Iterator<Item = (&str, Vec<Word<'_>>)> {
        let below_pollux = self
            .code
            .iter()
            .filter(|(path, _)| LAYERS[1..].iter().any(|layer| path.starts_with(&format!("{layer}/src/"))));
        below_pollux.map(|(path, code)| (path.as_str(), words_of(code)))
    }

    /// Directories with a package, relative to the root, with their manifests.
    fn packages(&self) -> impl Iterator<Item = (&str, toml::Table)> {
        self.files.iter().filter_map(|(path, text)| {
            let directory = path.strip_suffix("Cargo.toml")?;
            let manifest: toml::Table = text.parse().ok()?;
            manifest.contains_key("package").then_some((directory.trim_end_matches('/'), manifest))
        })
    }
}

/// A crate of the layers names only those to its right, in its manifest and in its paths; nobody names the observers.
pub fn imports(tree: &Tree) -> Vec<Finding> {
    let mut found = Vec::new();
    for (index, &layer) in LAYERS.iter().enumerate() {
        let others = LAYERS[..index].iter().chain(&OBSERVERS).copied();
        let forbidden: Vec<&str> = others.collect();
        let what = |name: &str| format!("{layer} must not name {name}: the order is {}", LAYERS.join(" → "));
        let manifest = format!("{layer}/Cargo.toml");
        for name in dependencies(tree.files.get(&manifest).map_or("", String::as_str)) {
            if forbidden.contains(&name.as_str()) {
                found.push(Finding { file: manifest.clone(), line: 0, what: what(&name) });
            }
        }
        for (path, code) in tree.code.iter().filter(|(path, _)| path.starts_with(&format!("{layer}/"))) {
            for word in words_of(code) {
                let named = word.begins_path() || word.before.ends_with("extern crate");
                if named && forbidden.contains(&word.text) {
                    found.push(Finding { file: path.clone(), line: word.line, what: what(word.text) });
                }
            }
        }
    }
    found
}

/// Every crate that a manifest depends on, in whatever kind of section, under its real name.
fn dependencies(manifest: &str) -> Vec<String> {
    fn collect(table: &toml::Table, names: &mut Vec<String>) {
        for (key, value) in table {
            let Some(inner) = value.as_table() else {
                continue;
            };
            if key.ends_with("dependencies") {
                names.extend(inner.iter().map(|(name, how)| {
                    let renamed = how.get("package").and_then(toml::Value::as_str);
                    renamed.unwrap_or(name).to_owned()
                }));
            } else {
                collect(inner, names);
            }
        }
    }
    let mut names = Vec::new();
    if let Ok(table) = manifest.parse() {
        collect(&table, &mut names);
    }
    names
}

/// `unsafe` lives in few files.
pub fn unsafe_code(tree: &Tree) -> Vec<Finding> {
    let mut found = Vec::new();
    for (path, code) in &tree.code {
        let here = words_of(code).into_iter().filter(|word| word.text == "unsafe");
        if !UNSAFE_FILES.contains(&path.as_str()) {
            let what = format!("`unsafe` belongs in {}", UNSAFE_FILES.join(", "));
            found.extend(here.map(|word| Finding {
                file: path.clone(),
                line: word.line,
                what: what.clone(),
            }));
        }
    }
    found
}

/// Words that only the kernel's files may use.
fn kernel_words(tree: &Tree, what: &str, matches: impl Fn(&Word<'_>) -> bool) -> Vec<Finding> {
    let mut found = Vec::new();
    for (path, words) in tree.layer_sources() {
        if KERNEL_FILES.contains(&path) {
            continue;
        }
        for word in words.iter().filter(|word| matches(word)) {
            let what = format!("`{}`: {what}", word.text);
            found.push(Finding { file: path.to_owned(), line: word.line, what });
        }
    }
    found
}

/// Nothing that runs on a reactor locks.
pub fn locks(tree: &Tree) -> Vec<Finding> {
    kernel_words(tree, "no locks: cores send messages", |word| LOCKS.contains(&word.text))
}

/// Time is an argument.
pub fn clocks(tree: &Tree) -> Vec<Finding> {
    kernel_words(tree, "time is an argument; only the reactor and programs read the clock", |word| {
        let method = CLOCKS.contains(&word.text)
            && word.after.strip_prefix("::").is_some_and(|after| {
                after
                    .trim_start()
                    .strip_prefix("now")
                    .is_some_and(|after| after.trim_start().starts_with(['(', ',', ')']))
            });
        method || word.text == "clock_gettime"
    })
}

/// Sockets are the reactor's `net` and iscsi's `portal`.
pub fn sockets(tree: &Tree) -> Vec<Finding> {
    kernel_words(tree, "sockets belong in reactor/src/net.rs and iscsi/src/portal.rs", |word| {
        let kernel_module =
            word.text == "net" && (word.before.ends_with("rustix::") || word.before.ends_with("libc::"));
        SOCKETS.contains(&word.text) || kernel_module
    })
}

/// A file opens with what it owns.
pub fn heads(tree: &Tree) -> Vec<Finding> {
    let headless = tree.files.iter().filter(|(path, text)| {
        let first = text.lines().next().unwrap_or_default();
        is_rust(path) && !(first.starts_with("//! ") && first.len() > "//! ".len())
    });
    let what = "a file opens with //!: what it owns, its invariant, who calls it".to_owned();
    headless.map(|(path, _)| Finding { file: path.clone(), line: 1, what: what.clone() }).collect()
}

/// Every Rust file of a package is reached from one of its roots.
pub fn dead_files(tree: &Tree) -> Vec<Finding> {
    let mut alive = BTreeSet::new();
    let mut found = Vec::new();
    for (directory, manifest) in tree.packages() {
        for root in crate_roots(tree, directory, &manifest) {
            let own_directory = parent(&root).to_owned();
            reach(tree, &root, &own_directory, &mut alive, &mut found);
        }
    }
    let dead = tree.code.keys().filter(|path| !alive.contains(path.as_str()));
    let what = "no crate root leads here: add its `mod` line, or remove it".to_owned();
    found.extend(dead.map(|path| Finding { file: path.clone(), line: 0, what: what.clone() }));
    found
}

/// The files that cargo compiles a crate from: those it finds by itself, and those a manifest names.
fn crate_roots(tree: &Tree, directory: &str, manifest: &toml::Table) -> Vec<String> {
    let within = |path: &str| join(directory, path);
    let mut roots: Vec<String> = ["src/lib.rs", "src/main.rs", "build.rs"].into_iter().map(within).collect();
    for folder in ["src/bin", "tests", "benches", "examples"] {
        let prefix = within(folder) + "/";
        roots.extend(
            tree.code
                .keys()
                .filter(|path| {
                    let name = path.strip_prefix(&prefix);
                    name.is_some_and(|name| !name.contains('/') || name.ends_with("/main.rs"))
                })
                .cloned(),
        );
    }
    for section in ["lib", "bin", "test", "bench", "example"] {
        let tables = match manifest.get(section) {
            Some(toml::Value::Array(tables)) => tables.iter().collect(),
            Some(table) => vec![table],
            None => Vec::new(),
        };
        let named = tables.into_iter().filter_map(|table| table.get("path")?.as_str());
        roots.extend(named.map(within));
    }
    roots.retain(|root| tree.code.contains_key(root));
    roots
}

/// Follows the `mod` lines of `file`, whose own modules lie in `directory`.
fn reach(tree: &Tree, file: &str, directory: &str, alive: &mut BTreeSet<String>, found: &mut Vec<Finding>) {
    if !alive.insert(file.to_owned()) {
        return;
    }
    for word in words_of(&tree.code[file])
        .iter()
        .filter(|word| word.before.ends_with("mod") && word.after.starts_with(';'))
    {
        let line = tree.files[file].lines().nth(word.line.wrapping_sub(2)).unwrap_or_default();
        let renamed = line.split_once("#[path = \"").and_then(|(_, after)| after.split_once('"'));
        let name = word.text;
        let candidates = match renamed {
            Some((path, _)) => vec![join(parent(file), path)],
            None => vec![join(directory, &format!("{name}.rs")), join(directory, &format!("{name}/mod.rs"))],
        };
        match candidates.iter().find(|candidate| tree.code.contains_key(*candidate)) {
            Some(module) if module.ends_with("/mod.rs") => reach(tree, module, parent(module), alive, found),
            Some(module) => reach(tree, module, module.trim_end_matches(".rs"), alive, found),
            None => {
                let what = format!("`mod {name};` leads nowhere");
                found.push(Finding { file: file.to_owned(), line: word.line, what });
            }
        }
    }
}

/// Links between documents, and `FILE` and `FILE::TEST` in backticks, lead somewhere.
pub fn dead_links(tree: &Tree) -> Vec<Finding> {
    let mut found = Vec::new();
    let pages = tree.files.iter().filter(|(path, _)| has_extension(path, "md"));
    for (page, text) in pages {
        let mut in_code = false;
        for (index, line) in text.lines().enumerate() {
            if line.trim_start().starts_with("```") {
                in_code = !in_code;
            }
            if in_code {
                continue;
            }
            let mut report = |what: String| found.push(Finding { file: page.clone(), line: index + 1, what });
            for target in link_targets(line).filter(|target| !leads_somewhere(tree, page, target)) {
                report(format!("dead link: {target}"));
            }
            for named in line.split('`').skip(1).step_by(2) {
                if let Some(what) = dead_name(tree, named) {
                    report(what);
                }
            }
        }
    }
    found
}

/// What stands in the round brackets of `[...](...)`.
fn link_targets(line: &str) -> impl Iterator<Item = &str> {
    line.split("](").skip(1).filter_map(|after| after.split_once(')')).map(|(target, _)| target)
}

fn leads_somewhere(tree: &Tree, page: &str, target: &str) -> bool {
    let path = target.split(['#', ' ']).next().unwrap_or_default();
    let elsewhere = target.contains("://") || target.starts_with("mailto:");
    elsewhere || path.is_empty() || tree.paths.contains(&join(parent(page), path))
}

/// Something like `bdev/src/io.rs` or `bdev/src/io.rs::a_test` that isn't there.
fn dead_name(tree: &Tree, named: &str) -> Option<String> {
    let (file, test) = named.split_once("::").map_or((named, None), |(file, test)| (file, Some(test)));
    let (top, _) = file.split_once('/')?;
    let ours = LAYERS.contains(&top) || OBSERVERS.contains(&top) || top == "docs";
    if !ours || file.contains(['{', '*', ' ', '<', '=', ',']) {
        return None;
    }
    if !tree.paths.contains(file.trim_end_matches('/')) {
        return Some(format!("`{file}` is not there"));
    }
    let test = test?;
    let code = tree.code.get(file)?;
    let there = words_of(code).iter().any(|word| word.text == test && word.before.ends_with("fn"));
    (!there).then(|| format!("`{file}` has no function `{test}`"))
}

/// Nothing remembers the machine it was written on.
pub fn machine_paths(tree: &Tree) -> Vec<Finding> {
    // Assembled here, so that this file does not find itself.
    let directories: Vec<String> =
        ["home", "Users", "work", "root", "var/tmp"].iter().map(|d| format!("/{d}/")).collect();
    let mut found = Vec::new();
    for (file, text) in &tree.files {
        for (index, line) in text.lines().enumerate() {
            for directory in &directories {
                let starts_a_path = line.match_indices(directory.as_str()).any(|(at, _)| {
                    let before = line[..at].chars().next_back();
                    !before.is_some_and(|c| c.is_alphanumeric() || "._-/$}".contains(c))
                });
                if starts_a_path {
                    let what = format!("a path of one machine: {directory}...");
                    found.push(Finding { file: file.clone(), line: index + 1, what });
                }
            }
        }
    }
    found
}

fn is_rust(path: &str) -> bool {
    has_extension(path, "rs")
}

fn has_extension(path: &str, wanted: &str) -> bool {
    Path::new(path).extension().is_some_and(|extension| extension == wanted)
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

/// `path` as seen from `directory`, with `.` and `..` resolved.
fn join(directory: &str, path: &str) -> String {
    let mut parts: Vec<String> = Vec::new();
    for component in Path::new(directory).join(path).components() {
        match component {
            Component::Normal(part) => parts.push(part.to_string_lossy().into_owned()),
            Component::ParentDir => {
                parts.pop();
            }
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    parts.join("/")
}
