//! Goal of all: what is wrong is told with place and cure, what is right arrives, and the command line's rule
//! holds. Method: small documents through the same door as files.

use super::*;
use proptest::prelude::*;

/// A file with nothing to complain about.
const GOOD: &str = r#"
data = "/var/lib/pollux"
socket = "/run/pollux.sock"
discovery = "hosts"
discard = false
listen = ["0.0.0.0:3260", "[::]:3260"]

[[pool]]
name = "data"
threshold_percent = 90

[reactors]
cpus = "2-3"
poll = "busy"
spin_us = 20
memory = "64M"

[io_uring]
entries = 512
bounded_workers_max = 8
unbounded_workers_max = 2
worker_cpus = "0,1"

[target]
iqn = "iqn.2026-11.io.pollux:vm"
alias = "the rack's"

[[lun]]
number = 1
spec = "ram:256M,block=4096"

[[lun]]
number = 0
id = "3F2B9C04-1d1e-4a77-8c60-0123456789ab"
kind = "file"
path = "/srv/a,b.img"
size = "1T"
physical = 512
read_only = true
removable = true
writeback = true

[[host]]
iqn = "iqn.1998-01.com.vmware:esx_1"
chap = { user = "esx1", secret = "initiator-secret" }
mutual = { user = "pollux", secret = "target--secret" }

[[host]]
iqn = "iqn.1993-08.org.debian:01:abc"

[[host]]
iqn = "*"
chap = { user = "other", secret = "another-secret" }

[iscsi]
max_recv_data_segment_length = 65_536
first_burst_length = 8192
max_burst_length = 0x10000
max_outstanding_r2t = 2
initial_r2t = true
immediate_data = false
header_digest = "require"
data_digest = "never"
max_sessions = 10
max_half_open = 5
login_timeout_s = 3
nop_interval_s = 0
nop_timeout_s = 4

[log]
filter = "warn,iscsi=debug"
format = "json"
"#;

fn parse_with(text: &str, args: &Serve) -> Result<(Config, Vec<Mistake>), Mistakes> {
    file::parse(text, "p.toml", args, Path::new("/cwd"), false)
}

fn parse(text: &str) -> Result<(Config, Vec<Mistake>), Mistakes> {
    parse_with(text, &Serve::default())
}

/// The smallest file, with `more` behind it.
fn small(more: &str) -> String {
    format!(
        "data = \"/d\"\nlisten = [\"127.0.0.1:3260\"]\ntarget.iqn = \"iqn.2026-11.io.pollux:a\"\n\
         lun = [{{ number = 0, spec = \"ram:1G\" }}]\n{more}"
    )
}

/// Goal: every key arrives where it belongs.
#[test]
fn reads_every_key() {
    let (config, warnings) = parse(GOOD).unwrap();
    assert_eq!(warnings, []);
    assert_eq!(config.data, Path::new("/var/lib/pollux"));
    assert_eq!(config.socket, Path::new("/run/pollux.sock"));
    assert_eq!(config.portals, ["0.0.0.0:3260".parse().unwrap(), "[::]:3260".parse().unwrap()]);
    let reactors = &config.reactors;
    assert_eq!(
        (reactors.poll, reactors.spin, reactors.memory_bytes),
        (Poll::Busy, Duration::from_micros(20), 64 << 20)
    );
    assert_eq!(reactors.cpus.as_ref().unwrap().cpus(), [2, 3]);
    assert_eq!(config.discard, Some(false));
    assert_eq!(config.thresholds, [("data".to_owned(), 90)].into());
    let ring = &config.io_uring;
    assert_eq!((ring.entries, ring.bounded_workers_max, ring.unbounded_workers_max), (512, Some(8), Some(2)));
    assert_eq!(ring.worker_cpus.as_ref().unwrap().cpus(), [0, 1]);
    assert_eq!(config.target.alias.as_deref(), Some("the rack's"));
    let luns: Vec<(u16, String)> = config.luns.iter().map(|lun| (lun.number, lun.spec.to_string())).collect();
    let file = "file:/srv/a,,b.img:1T,physical=512,ro,removable,writeback";
    assert_eq!(luns, [(0, file.to_owned()), (1, "ram:256M,block=4096".to_owned())]);
    assert_eq!(config.luns[0].id.unwrap().to_string(), "3f2b9c04-1d1e-4a77-8c60-0123456789ab");
    let chap = config.hosts[0].chap.as_ref().unwrap();
    assert_eq!((chap.initiator.user.as_str(), chap.initiator.secret.expose()), ("esx1", "initiator-secret"));
    assert_eq!(chap.target.as_ref().unwrap().secret.expose(), "target--secret");
    assert_eq!(config.hosts[1].chap, None);
    assert_eq!((config.discovery, &config.hosts[2].iqn), (DiscoveryRule::Hosts, &HostName::Any));
    assert_eq!(
        config.iscsi,
        Iscsi {
            max_recv_data_segment_length: 65_536,
            first_burst_length: 8192,
            max_burst_length: 65_536,
            max_outstanding_r2t: 2,
            initial_r2t: true,
            immediate_data: false,
            header_digest: DigestPolicy::Require,
            data_digest: DigestPolicy::Never,
            max_sessions: 10,
            max_half_open: 5,
            login_timeout: Duration::from_secs(3),
            nop_interval: None,
            nop_timeout: Duration::from_secs(4),
        }
    );
    assert_eq!((config.log.filter.as_str(), config.log.format), ("warn,iscsi=debug", LogFormat::Json));
    let volume = "kind = \"thick\"\nsize = \"1G\"\nzero_detect = false";
    let (config, _) = parse(&GOOD.replace("spec = \"ram:256M,block=4096\"", volume)).unwrap();
    assert_eq!(config.luns[1].spec.to_string(), "thick:1G,zero=off");
    let (config, _) = parse(&small("")).unwrap();
    assert_eq!(config.iscsi, Iscsi::default());
    assert_eq!(config.socket, Path::new("/d/pollux.sock"));
}

/// Goal: each wrong value is told with its line, column, key and cure. Method: a table of what is put behind the
/// smallest file (from line 5 on), and a part of place, what and cure.
#[test]
fn tells_each_mistake() {
    for (more, place, what, cure) in [
        ("lisen = []", "p.toml:5:1, key lisen", "\"lisen\" is no key at the top", "listen"),
        (
            "[reactors]\ncpu = 1",
            "p.toml:6:1, key reactors.cpu",
            "\"cpu\" is no key in [reactors]",
            "cpus, poll",
        ),
        ("reactors = 1", "p.toml:5:12, key reactors", "reactors is the number 1", "[reactors]"),
        ("host = 1", "p.toml:5:8", "host is the number 1", "[[host]]"),
        ("[host]\niqn = \"x\"", "p.toml:5:1, key host", "host is a table", "double brackets"),
        ("[reactors]\ncpus = \"0-\"", "p.toml:6:8, key reactors.cpus", "\"0-\" is no CPU list", "0-3,8"),
        ("[reactors]\ncpus = 2", "p.toml:6:8", "the number 2 is no text", "double quotes"),
        ("[reactors]\npoll = \"lazy\"", "p.toml:6:8", "\"lazy\" is not one", "\"adaptive\" or \"busy\""),
        (
            "[reactors]\nspin_us = -1",
            "p.toml:6:11",
            "the number -1 does not fit",
            "microseconds from 0 to 1000000",
        ),
        ("[reactors]\nmemory = \"1G1\"", "p.toml:6:10", "\"1G1\" is no size", "64G"),
        ("[reactors]\nmemory = \"17000000\"", "p.toml:6:10", "no buffer memory", "whole MiB from 16M to 64G"),
        ("[io_uring]\nentries = 1000", "p.toml:6:11", "no power of two", "512"),
        ("[io_uring]\nworker_cpus = \"1,1\"", "p.toml:6:15", "CPU 1 is named twice", "each CPU once"),
        ("socket = \"run/s\"", "p.toml:5:10, key socket", "\"run/s\" is no absolute path", "from / on"),
        ("[[host]]\niqn = \"esx1\"", "p.toml:6:7, key host.iqn", "begins with neither iqn.", "iqn.YYYY-MM"),
        ("[[host]]\niqn = \"iqn.2026-11.io pollux\"", "p.toml:6:7", "has the character ' '", "iqn.YYYY-MM"),
        ("[[host]]\niqn = \"iqn.2026.io.pollux\"", "p.toml:6:7", "not followed by YYYY-MM", "iqn.YYYY-MM"),
        ("[[host]]\niqn = \"eui.12\"", "p.toml:6:7", "\"eui.12\"", "16"),
        ("[[host]]", "p.toml:5:1, key host.iqn", "iqn is missing", "write iqn"),
        (
            "[[host]]\niqn = \"iqn.2026-11.io:h\"\n[[host]]\niqn = \"iqn.2026-11.io:h\"",
            "p.toml:8:7",
            "iqn.2026-11.io:h is there twice",
            "the first is at p.toml:6:7",
        ),
        (
            "[[host]]\niqn = \"iqn.2026-11.io:h\"\nmutual = { user = \"u\", secret = \"0123456789ab\" }",
            "p.toml:7:10, key host.mutual",
            "but not the initiator",
            "add chap",
        ),
        (
            "[[host]]\niqn = \"*\"\nchap = { user = \"u\", secret = \"0123456789ab\" }\n\
             mutual = { user = \"t\", secret = \"0123456789ab\" }",
            "p.toml:8:33, key host.mutual.secret",
            "the same secret proves the initiator and the target",
            "the first is at p.toml:7:31",
        ),
        (
            "discovery = \"nobody\"",
            "p.toml:5:13, key discovery",
            "\"nobody\" is not one",
            "\"everybody\" or \"hosts\"",
        ),
        ("discovery = \"hosts\"", "p.toml:5:13, key discovery", "there is no [[host]]", "add a [[host]]"),
        (
            "[[host]]\niqn = \"*\"\nchap = { user = \"u\" }",
            "key host.chap.secret",
            "secret is missing",
            "secret_file",
        ),
        (
            "[[host]]\niqn = \"*\"\nchap = { secret = \"0123456789ab\" }",
            "key host.chap.user",
            "user is missing",
            "user =",
        ),
        (
            "[[host]]\niqn = \"*\"\nchap = { user = \"u\", secret = \"\" }",
            "p.toml:7:31",
            "0 bytes can't be used",
            "12 to 255",
        ),
        (
            "[[host]]\niqn = \"*\"\nchap = { user = \"u\", secret = 271828 }",
            "p.toml:7:31",
            "secret is no text",
            "quotes",
        ),
        (
            "[[host]]\niqn = \"*\"\nchap = { user = \"u\", secret = \"0123456789ab\", secret_file = \"/s\" }",
            "key host.chap.secret_file",
            "both there",
            "keep one",
        ),
        (
            "[[host]]\niqn = \"*\"\nchap = { user = \"u\", secret_file = \"/no/such\" }",
            "p.toml:7:36",
            "can't open /no/such",
            "readable",
        ),
        (
            "[iscsi]\nfirst_burst_length = 8192\nmax_burst_length = 4096",
            "p.toml:6:22",
            "over max_burst_length, which is 4096",
            "smaller",
        ),
        ("[iscsi]\nmax_burst_length = 511", "p.toml:6:20", "511 does not fit", "from 512 to 16777215"),
        ("[iscsi]\nmax_outstanding_r2t = 65", "p.toml:6:23", "65 does not fit", "from 1 to 64"),
        (
            "[iscsi]\ninitial_r2t = \"Yes\"",
            "p.toml:6:15",
            "\"Yes\" is neither true nor false",
            "true or false",
        ),
        ("[iscsi]\nheader_digest = \"crc\"", "p.toml:6:17", "\"crc\" is not one", "\"require\""),
        (
            "[log]\nfilter = \"loud\"",
            "p.toml:6:10, key log.filter",
            "\"loud\" is no log filter",
            "info,iscsi=debug",
        ),
        ("x = ", "p.toml:5:", "", "correct the TOML"),
        ("data = \"/e\"", "p.toml:5:1", "duplicate", "correct the TOML"),
    ] {
        let Err(Mistakes(mistakes)) = parse(&small(more)) else { panic!("accepted: {more}") };
        let [mistake] = &mistakes[..] else { panic!("{more}: {mistakes:#?}") };
        let at = mistake.place.as_deref().unwrap_or_default();
        assert!(
            at.contains(place) && mistake.what.contains(what) && mistake.cure.contains(cure),
            "{more}: {mistake}"
        );
        assert!(!mistake.to_string().contains("271828") && !mistake.to_string().contains("0123456789ab"));
    }
}

/// Goal: the same for what the smallest file has itself. Method: a table of whole LUN lists.
#[test]
fn tells_each_mistake_of_a_lun() {
    for (luns, place, what, cure) in [
        ("spec = \"ram:1G\"", "key lun.number", "number is missing", "number = 0"),
        ("number = 16384\nspec = \"ram:1G\"", "p.toml:5:10", "16384 does not fit", "from 0 to 16383"),
        ("number = 0", "key lun.spec", "spec is missing", "kind and size"),
        ("number = 0\nspec = \"ram\"", "p.toml:6:8, key lun.spec", "no kind before a colon", "ram:256M"),
        ("number = 0\nspec = \"file:a.img:1G\"", "p.toml:6:8", "\"a.img\" is no absolute path", "from / on"),
        ("number = 0\nspec = \"thin:1\"", "p.toml:6:8", "1 bytes is no size", "from 1M"),
        (
            "number = 0\nspec = \"ram:1G\"\nsize = \"1G\"",
            "p.toml:7:8",
            "size stands beside spec",
            "put it into spec",
        ),
        ("number = 0\nkind = \"disk\"", "p.toml:6:8", "\"disk\" is not one", "\"file\""),
        ("number = 0\nkind = \"thin\"", "p.toml:6:8", "no size", "size ="),
        (
            "number = 0\nkind = \"thick\"\nsize = \"1G\"\npath = \"/a\"",
            "p.toml:8:8",
            "has a path",
            "remove path",
        ),
        (
            "number = 0\nkind = \"ram\"\nsize = \"1G\"\nzero_detect = true",
            "p.toml:8:15",
            "detect zeroes",
            "remove zero_detect",
        ),
        ("number = 0\nkind = \"file\"", "p.toml:6:8", "no path", "write path"),
        ("number = 0\nkind = \"file\"\npath = \"a\"", "p.toml:7:8", "no absolute path", "from / on"),
        ("number = 0\nkind = \"ram\"", "p.toml:6:8", "no size", "size ="),
        ("number = 0\nkind = \"ram\"\nsize = \"1GB\"", "p.toml:7:8", "\"1GB\" is no size", "64G"),
        ("number = 0\nkind = \"ram\"\nsize = 1048576", "p.toml:7:8", "is no text", "double quotes"),
        (
            "number = 0\nkind = \"ram\"\nsize = \"1G\"\npath = \"/a\"",
            "p.toml:8:8",
            "has a path",
            "remove path",
        ),
        (
            "number = 0\nkind = \"ram\"\nsize = \"1G\"\nblock = 1024",
            "p.toml:8:9",
            "no block size",
            "block=512",
        ),
        (
            "number = 0\nkind = \"ram\"\nsize = \"1G\"\nblock = 4096\nphysical = 512",
            "p.toml:8:9",
            "does not fit a physical one",
            "physical=4096",
        ),
        (
            "number = 0\nspec = \"ram:1G\"\nid = \"1\"",
            "p.toml:7:6, key lun.id",
            "\"1\" is no LUN id",
            "uuidgen",
        ),
        (
            "number = 0\nspec = \"ram:1G\"\n[[lun]]\nnumber = 0\nspec = \"ram:1G\"",
            "p.toml:8:10, key lun.number",
            "LUN 0 is there twice",
            "the first is at p.toml:5:10",
        ),
        (
            "number = 0\nspec = \"ram:1G\"\nid = \"11111111111111111111111111111111\"\n\
             [[lun]]\nnumber = 1\nspec = \"ram:1G\"\nid = \"11111111-1111-1111-1111-111111111111\"",
            "p.toml:11:6",
            "is there twice",
            "the first is at p.toml:7:6",
        ),
    ] {
        let text = format!(
            "data = \"/d\"\nlisten = [\"127.0.0.1\"]\ntarget.iqn = \"iqn.2026-11.io.pollux:a\"\n[[lun]]\n{luns}"
        );
        let Err(Mistakes(mistakes)) = parse(&text) else { panic!("accepted: {luns}") };
        let [mistake] = &mistakes[..] else { panic!("{luns}: {mistakes:#?}") };
        let at = mistake.place.as_deref().unwrap_or_default();
        assert!(
            at.contains(place) && mistake.what.contains(what) && mistake.cure.contains(cure),
            "{luns}: {mistake}"
        );
    }
}

/// Goal: a file without units is one: what the catalogs of its pools show is served.
#[test]
fn needs_no_units() {
    let (config, warnings) =
        parse("data = \"/d\"\nlisten = [\"127.0.0.1\"]\ntarget.iqn = \"iqn.2026-11.io.pollux:a\"").unwrap();
    assert_eq!((config.luns, warnings), (Vec::new(), Vec::new()));
}

/// Goal: one run tells all that is missing, and options stand in for it.
#[test]
fn tells_all_at_once_and_options_stand_in() {
    let Err(Mistakes(mistakes)) = parse("") else { panic!("accepted") };
    let whats: Vec<&str> = mistakes.iter().map(|mistake| mistake.what.as_str()).collect();
    assert_eq!(whats, ["data is missing", "listen is missing", "[target] is missing"]);
    let args = Serve {
        data: Some(PathBuf::from("state")),
        listen: vec!["127.0.0.1:0".parse().unwrap()],
        lun: vec!["ram:1G".parse().unwrap()],
        ..Serve::default()
    };
    let (config, _) = parse_with("target.iqn = \"iqn.2026-11.io.pollux:a\"", &args).unwrap();
    assert_eq!(
        (config.data.as_path(), config.socket.as_path()),
        (Path::new("/cwd/state"), Path::new("/cwd/state/pollux.sock"))
    );
    assert!(
        parse(&small("listen_more = 1").replace("[\"127.0.0.1:3260\"]", "[\"x\", 1, \"[::1]\"]")).is_err()
    );
    let Err(Mistakes(mistakes)) = parse(&small("").replace("[\"127.0.0.1:3260\"]", "[\"x\", 1]")) else {
        panic!()
    };
    assert_eq!(mistakes[0].place.as_deref(), Some("p.toml:2:11, key listen"));
    assert_eq!(mistakes[1].place.as_deref(), Some("p.toml:2:16, key listen"));
}

/// Goal: what is unwise is served, with a warning that shows no secret.
#[test]
fn warns_of_what_is_unwise() {
    let short = "[[host]]\niqn = \"iqn.2026-11.io:a\"\nchap = { user = \"u\", secret = \"short\" }\n";
    let (config, warnings) = parse(&small(short)).unwrap();
    assert_eq!(config.hosts.len(), 1);
    assert!(
        warnings[0].what.contains("5 bytes") && warnings[0].cure.contains("12 random bytes"),
        "{warnings:?}"
    );
    let long = short.replace("short", "0123456789ab");
    let both = format!("{long}{}", long.replace("io:a", "io:b"));
    let (config, warnings) = parse(&small(&both)).unwrap();
    assert!(warnings[0].what.contains("two initiators"), "{warnings:?}");
    assert!(!format!("{config:?}{warnings:?}").contains("0123456789ab"), "a secret is never shown");
    let args = Serve::default();
    let (_, warnings) = file::parse(&small(&long), "p.toml", &args, Path::new("/"), true).unwrap();
    assert!(warnings[0].what.contains("others than its owner"), "{warnings:?}");
}

/// Goal: a file on disk is read with its secret files; what can't be read is told.
#[test]
fn reads_files() {
    use std::os::unix::fs::PermissionsExt;
    let root = tempfile::tempdir().unwrap();
    let (path, secret) = (root.path().join("pollux.toml"), root.path().join("secret"));
    std::fs::write(&secret, "0123456789ab\n").unwrap();
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o640)).unwrap();
    let chap = format!("[[host]]\niqn = \"*\"\nchap = {{ user = \"u\", secret_file = {secret:?} }}");
    std::fs::write(&path, small(&chap)).unwrap();
    let args = Serve { config: Some(PathBuf::from("pollux.toml")), ..Serve::default() };
    let loaded = Config::load(&args, root.path()).unwrap();
    assert_eq!(loaded.config.source.as_deref(), Some(path.as_path()));
    assert_eq!(loaded.config.hosts[0].chap.as_ref().unwrap().initiator.secret.expose(), "0123456789ab");
    assert!(loaded.warnings[0].cure.contains("chmod 600"), "{:?}", loaded.warnings);
    std::fs::write(&secret, "").unwrap();
    assert!(Config::load(&args, root.path()).unwrap_err().to_string().contains("it is empty"));
    std::fs::write(&path, b"data = \"\xff\"").unwrap();
    assert!(
        Config::load(&args, root.path()).unwrap_err().to_string().contains("not UTF-8 text from byte 8 on")
    );
    for (name, what) in [("none.toml", "can't open"), (".", "is a directory")] {
        let args = Serve { config: Some(PathBuf::from(name)), ..Serve::default() };
        let mistakes = Config::load(&args, root.path()).unwrap_err().to_string();
        assert!(mistakes.contains(what) && mistakes.contains("--config"), "{mistakes}");
    }
}

/// Goal: no option means the embedded default; each option replaces its value or list whole.
#[test]
fn options_replace() {
    let here = Path::new("/cwd");
    let demo = Config::load(&Serve::default(), here).unwrap();
    assert_eq!((demo.config, demo.warnings), (Config::embedded(here), Vec::new()));
    let args = Serve { data: Some(PathBuf::from("/d")), ..Serve::default() };
    let moved = Config::load(&args, here).unwrap().config;
    assert_eq!(moved.luns[0].spec.to_string(), "thin:1T");
    assert_eq!(moved.luns[0].volume().as_deref(), Some("lun0"));
    assert_eq!(moved.data_pool_file(), Path::new("/d/pool.img"));
    assert_eq!(moved.socket, Path::new("/d/pollux.sock"));

    let root = tempfile::tempdir().unwrap();
    std::fs::write(root.path().join("p.toml"), GOOD).unwrap();
    let args = Serve {
        config: Some(PathBuf::from("p.toml")),
        listen: vec!["127.0.0.1:0".parse().unwrap(), "127.0.0.1:0".parse().unwrap()],
        lun: vec!["null:1T".parse().unwrap(), "file:x.img:1G".parse().unwrap()],
        reactors: Some("5".parse().unwrap()),
        poll: Some(Poll::Adaptive),
        memory: Some(32 << 20),
        socket: Some(PathBuf::from("s")),
        log: Some("trace".to_owned()),
        log_format: Some(LogFormat::Text),
        ..Serve::default()
    };
    let config = Config::load(&args, root.path()).unwrap().config;
    assert_eq!(config.portals.len(), 2);
    let file = format!("file:{}:1G", root.path().join("x.img").display());
    assert_eq!(config.luns.iter().map(|lun| lun.spec.to_string()).collect::<Vec<_>>(), ["null:1T", &file]);
    assert_eq!((config.luns[1].number, config.luns[1].id), (1, None));
    let reactors = &config.reactors;
    assert_eq!(
        (reactors.poll, reactors.memory_bytes, reactors.cpus.as_ref().unwrap().cpus()),
        (Poll::Adaptive, 32 << 20, &[5][..])
    );
    assert_eq!((config.log.filter.as_str(), config.log.format), ("trace", LogFormat::Text));
    assert_eq!(config.socket, root.path().join("s"));
    assert_eq!(config.hosts.len(), 3, "what no option says stays");
}

/// Goal: one file under two names is one file; two files aren't, though neither is there yet.
#[test]
fn one_file_is_one_lun() {
    let root = tempfile::tempdir().unwrap();
    let load = |specs: [&str; 2]| {
        let args = Serve { lun: specs.map(|spec| spec.parse().unwrap()).to_vec(), ..Serve::default() };
        Config::load(&args, root.path())
    };
    std::fs::write(root.path().join("a"), b"").unwrap();
    std::fs::hard_link(root.path().join("a"), root.path().join("b")).unwrap();
    std::os::unix::fs::symlink("a", root.path().join("c")).unwrap();
    for specs in
        [["file:a", "file:b"], ["file:a", "file:c"], ["file:n:1G", "file:n:2G"], ["file:n:1G", "file:./n:1G"]]
    {
        let mistakes = load(specs).unwrap_err().to_string();
        assert!(mistakes.contains("LUN 0 and LUN 1 are the same file"), "{mistakes}");
    }
    for specs in [["file:a", "file:n:1G"], ["file:m:1G", "file:n:1G"], ["ram:1G", "ram:1G"]] {
        assert!(load(specs).is_ok());
    }
    let twice = vec!["127.0.0.1:1".parse().unwrap(); 2];
    let args = Serve { listen: twice, ..Serve::default() };
    assert!(Config::load(&args, root.path()).unwrap_err().to_string().contains("listened on twice"));
    let args = Serve { listen: vec!["0.0.0.0:1".parse().unwrap()], ..Serve::default() };
    assert!(Config::load(&args, root.path()).unwrap().warnings[0].what.contains("whoever reaches 0.0.0.0:1"));
}

/// Goal: a reload takes what may change, names what waits for a restart, and a broken file changes nothing.
#[test]
fn reload_takes_what_may_change() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("p.toml");
    std::fs::write(&path, GOOD).unwrap();
    let args = Serve { config: Some(path.clone()), ..Serve::default() };
    let mut config = Config::load(&args, root.path()).unwrap().config;
    let before = config.clone();
    std::fs::write(&path, "broken").unwrap();
    assert!(config.reload(&args, root.path()).is_err());
    assert_eq!(config, before);
    let changed = GOOD
        .replace("iqn.1993-08.org.debian:01:abc", "iqn.1993-08.org.debian:01:def")
        .replace("max_sessions = 10", "max_sessions = 11")
        .replace("warn,iscsi=debug", "info")
        .replace("discovery = \"hosts\"", "discovery = \"everybody\"")
        .replace("poll = \"busy\"", "poll = \"adaptive\"")
        .replace("ram:256M", "ram:512M");
    std::fs::write(&path, changed).unwrap();
    let reloaded = config.reload(&args, root.path()).unwrap();
    assert_eq!(reloaded.ignored, ["[reactors]", "[[lun]]"]);
    assert_eq!((config.reactors.poll, &config.luns), (Poll::Busy, &before.luns));
    assert_eq!(config.hosts[1].iqn.as_str(), "iqn.1993-08.org.debian:01:def");
    assert_eq!((config.iscsi.max_sessions, config.log.filter.as_str()), (11, "info"));
    assert_ne!(config.discovery, before.discovery);
    assert_eq!(config.reloadable_difference(&before), [""; 0]);
}

/// Goal: a target's name is stricter than a host's.
#[test]
fn names() {
    let (config, _) = parse(&small("[[host]]\niqn = \"iqn.2026-11.io.Pollux:A_b\"")).unwrap();
    assert_eq!(config.hosts[0].iqn.as_str(), "iqn.2026-11.io.pollux:a_b");
    assert!(
        parse(&small("").replace("pollux:a", "pollux:a_b")).unwrap_err().to_string().contains("underscore")
    );
}

proptest! {
    /// Goal: a CPU list survives the round trip.
    #[test]
    fn cpu_lists_come_back(cpus in proptest::collection::hash_set(0..=CPU_NUMBER_MAX, 1..40)) {
        let list = CpuList(cpus.into_iter().collect());
        prop_assert_eq!(list.to_string().parse::<CpuList>(), Ok(list));
    }

    /// Goal: ids survive the round trip.
    #[test]
    fn ids_come_back(bytes: [u8; 16]) {
        prop_assume!(bytes != [0; 16]);
        prop_assert_eq!(LunId(bytes).to_string().parse::<LunId>(), Ok(LunId(bytes)));
    }

    /// Goal: no document panics. Method: a good one with a piece put in, taken out or doubled.
    #[test]
    fn takes_any_document(at in 0..GOOD.len(), cut in 0usize..30, piece in "[\\[\\]{}=\"a-z0-9.\n\u{e4} -]{0,12}") {
        let end = (at + cut).min(GOOD.len());
        prop_assume!(GOOD.is_char_boundary(at) && GOOD.is_char_boundary(end));
        let _ = parse(&format!("{}{piece}{}", &GOOD[..at], &GOOD[end..]));
        let _ = parse(&piece);
    }
}
