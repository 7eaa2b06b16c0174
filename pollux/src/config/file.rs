//! The TOML file's keys, each read once into its place in [`Config`].
//!
//! Paths in the file are absolute, since a daemon's working directory is nobody's intention. `data`, `listen` and
//! `target.iqn` have no default here: two servers with the same ones would be mistaken for each other. Their options on
//! the command line will do instead. A file without `[[lun]]` serves what `pollux lun map` shows, and nothing else.

use super::reader::{Report, Section, boolean, integer, text, word};
use super::{
    ALIAS_BYTES_MAX, CHAP_SECRET_BYTES_MAX, CHAP_SECRET_BYTES_WISE, Chap, Config, Credentials, DigestPolicy,
    FILE_BYTES_MAX, HOSTS_MAX, Host, HostName, IoUring, Iscsi, LUN_NUMBER_MAX, LUNS_MAX, Log, LogFormat, Lun,
    LunId, PORTALS_MAX, Poll, Reactors, SPIN_US_MAX, Secret, Target, data_memory, parse_memory, parse_name,
    parse_portal,
};
use crate::args::Serve;
use crate::mistake::{Mistake, Mistakes};
use crate::spec::{Backing, LunSpec, Size, check_capacity, parse_block};
use bdev::pool::control::Provisioning;
use bdev::shard::POOLS_MAX;
use iscsi::access::DiscoveryRule;
use iscsi::chap::USER_BYTES_MAX;
use iscsi::negotiate::{LENGTH_MAX, LENGTH_MIN};
use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;
use toml::de::{DeTable, DeValue};

/// A path of a Unix socket, its closing zero not counted (unix(7)).
pub const SOCKET_PATH_BYTES_MAX: usize = 107;

/// The configuration in the file at `path`, with its warnings. `--data` is already applied, since defaults hang on
/// it; of the other options only whether they stand in for a missing key is looked at.
///
/// # Errors
/// Everything wrong with it.
pub fn read(path: &Path, args: &Serve, directory: &Path) -> Result<(Config, Vec<Mistake>), Mistakes> {
    let mut file = open(path)?;
    let mut bytes = Vec::new();
    let unreadable = |error: std::io::Error| {
        let what = format!("can't read {}: {error}", path.display());
        Mistake::new(what, "name a readable TOML file with --config")
    };
    Read::by_ref(&mut file).take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        let what = format!("{} is over {}", path.display(), Size(FILE_BYTES_MAX));
        return Err(Mistake::new(what, "name a configuration file").into());
    }
    let text = std::str::from_utf8(&bytes).map_err(|error| {
        let what = format!("{} is not UTF-8 text from byte {} on", path.display(), error.valid_up_to());
        Mistake::new(what, "save it as UTF-8")
    })?;
    let others_read = others_may_read(&file);
    let (mut config, warnings) = parse(text, &path.display().to_string(), args, directory, others_read)?;
    config.source = Some(path.to_owned());
    Ok((config, warnings))
}

fn open(path: &Path) -> Result<std::fs::File, Mistake> {
    let cure = "name a readable TOML file with --config";
    let file = std::fs::File::open(path)
        .map_err(|error| Mistake::new(format!("can't open {}: {error}", path.display()), cure))?;
    match file.metadata() {
        Ok(metadata) if metadata.is_dir() => {
            Err(Mistake::new(format!("{} is a directory", path.display()), cure))
        }
        Ok(_) | Err(_) => Ok(file),
    }
}

/// Whether group or others may read the file.
fn others_may_read(file: &std::fs::File) -> bool {
    use std::os::unix::fs::MetadataExt;
    file.metadata().is_ok_and(|metadata| metadata.mode() & 0o044 != 0)
}

/// The configuration in `source`, which messages call `name`. `others_read`: a secret in it is worth a warning.
///
/// # Errors
/// Everything wrong with it.
pub(super) fn parse(
    source: &str,
    name: &str,
    args: &Serve,
    directory: &Path,
    others_read: bool,
) -> Result<(Config, Vec<Mistake>), Mistakes> {
    let report = Report::new(name.to_owned(), source);
    let document = DeTable::parse(source).map_err(|error| {
        let place = report.place(&error.span().unwrap_or(0..0), "");
        Mistake::new(error.message().trim_end().to_owned(), "correct the TOML there").at(place)
    })?;
    let mut root = Section::root(&report, &document);

    let data = match &args.data {
        Some(data) => {
            root.read("data", |_| Ok(()));
            Some(data.clone())
        }
        None => root.require("data", "write data = \"/var/lib/pollux\", or give --data DIR", data_place),
    };
    let mut config = Config::embedded(directory);
    if let Some(data) = data {
        config.move_data(&data, directory).map_err(Mistakes::from)?;
    }
    if let Some(socket) = root.read("socket", socket_path) {
        config.socket = socket;
    }
    config.discard = root.read("discard", boolean);
    if args.listen.is_empty() && !root.has("listen") {
        let cure = "write listen = [\"0.0.0.0:3260\"], or give --listen ADDR:PORT";
        root.mistake("listen", Mistake::new("listen is missing", cure));
    }
    if let Some(portals) = root.read_each("listen", PORTALS_MAX, |value| text(value).and_then(parse_portal)) {
        if portals.is_empty() && args.listen.is_empty() {
            root.mistake(
                "listen",
                Mistake::new("listen names no address", "write listen = [\"0.0.0.0:3260\"]"),
            );
        }
        config.portals = portals;
    }
    config.reactors = root.section("reactors").map_or_else(Reactors::default, read_reactors);
    config.io_uring = root.section("io_uring").map_or_else(IoUring::default, read_io_uring);
    if !root.has("target") {
        let cure = "write [target] and iqn = \"iqn.YYYY-MM.DOMAIN-REVERSED:NAME\" below it";
        root.mistake("target", Mistake::new("[target] is missing", cure));
    }
    if let Some(target) = root.section("target").and_then(read_target) {
        config.target = target;
    }
    config.luns = read_luns(root.sections("lun", LUNS_MAX));
    config.thresholds = read_pools(root.sections("pool", POOLS_MAX));
    let mut secrets = Secrets { others_read, warned: false, used: Vec::new() };
    config.hosts = read_hosts(root.sections("host", HOSTS_MAX), &mut secrets);
    let rules = [("everybody", DiscoveryRule::Everybody), ("hosts", DiscoveryRule::Hosts)];
    if let Some(discovery) = root.read("discovery", |value| word(value, &rules)) {
        if discovery == DiscoveryRule::Hosts && !root.has("host") {
            let cure = "add a [[host]] for each initiator, or remove discovery";
            root.mistake("discovery", Mistake::new("discovery is for hosts, and there is no [[host]]", cure));
        }
        config.discovery = discovery;
    }
    secrets.check(&report);
    config.iscsi = root.section("iscsi").map_or_else(Iscsi::default, read_iscsi);
    config.log = root.section("log").map_or_else(Log::default, read_log);
    root.finish();

    let (mistakes, warnings) = report.finish();
    if mistakes.is_empty() { Ok((config, warnings)) } else { Err(Mistakes(mistakes)) }
}

fn absolute(value: &DeValue<'_>) -> Result<PathBuf, Mistake> {
    let path = text(value)?;
    check_absolute(Path::new(path))?;
    Ok(PathBuf::from(path))
}

/// A directory, or memory.
fn data_place(value: &DeValue<'_>) -> Result<PathBuf, Mistake> {
    let path = PathBuf::from(text(value)?);
    if data_memory(&path)?.is_none() {
        check_absolute(&path)?;
    }
    Ok(path)
}

fn check_absolute(path: &Path) -> Result<(), Mistake> {
    if path.is_absolute() && !path.as_os_str().as_encoded_bytes().contains(&0) {
        return Ok(());
    }
    let cure =
        "write the whole path from / on: what it is relative to would depend on where pollux is started";
    Err(Mistake::new(format!("\"{}\" is no absolute path", path.display()), cure))
}

fn socket_path(value: &DeValue<'_>) -> Result<PathBuf, Mistake> {
    absolute(value).and_then(check_socket_path)
}

/// Refuses a path that no Unix socket can have.
///
/// # Errors
/// Too long.
pub fn check_socket_path(path: PathBuf) -> Result<PathBuf, Mistake> {
    let bytes = path.as_os_str().len();
    if bytes > SOCKET_PATH_BYTES_MAX {
        let what = format!("the socket's path has {bytes} bytes");
        return Err(Mistake::new(
            what,
            format!("use a shorter path: a Unix socket's has at most {SOCKET_PATH_BYTES_MAX}"),
        ));
    }
    Ok(path)
}

/// Whole units of time, as a key whose name ends in the unit.
fn seconds(value: &DeValue<'_>, min: u32, max: u32) -> Result<Duration, Mistake> {
    integer(value, min..=max, "seconds").map(|seconds| Duration::from_secs(u64::from(seconds)))
}

const POLLS: [(&str, Poll); 2] = [("adaptive", Poll::Adaptive), ("busy", Poll::Busy)];

fn read_reactors(mut section: Section<'_, '_>) -> Reactors {
    let default = Reactors::default();
    let spin = section.read("spin_us", |value| integer(value, 0..=SPIN_US_MAX, "microseconds"));
    let reactors = Reactors {
        cpus: section.read("cpus", |value| text(value)?.parse()),
        poll: section.read("poll", |value| word(value, &POLLS)).unwrap_or(default.poll),
        spin: spin.map_or(default.spin, |us| Duration::from_micros(u64::from(us))),
        memory_bytes: section
            .read("memory", |value| text(value).and_then(parse_memory))
            .unwrap_or(default.memory_bytes),
    };
    section.finish();
    reactors
}

fn read_io_uring(mut section: Section<'_, '_>) -> IoUring {
    let default = IoUring::default();
    let entries = section.read("entries", |value| {
        let entries = integer(value, 16..=4096u32, "entries")?;
        let wrong =
            || Mistake::new(format!("{entries} entries are no power of two"), "write 256, 512, 1024 or such");
        if entries.is_power_of_two() { Ok(entries) } else { Err(wrong()) }
    });
    let workers = |value: &DeValue<'_>| integer(value, 1..=4096u32, "workers");
    let io_uring = IoUring {
        entries: entries.unwrap_or(default.entries),
        bounded_workers_max: section.read("bounded_workers_max", workers),
        unbounded_workers_max: section.read("unbounded_workers_max", workers),
        worker_cpus: section.read("worker_cpus", |value| text(value)?.parse()),
    };
    section.finish();
    io_uring
}

fn read_target(mut section: Section<'_, '_>) -> Option<Target> {
    let cure = "write iqn = \"iqn.YYYY-MM.DOMAIN-REVERSED:NAME\"";
    let iqn = section.require("iqn", cure, |value| {
        let name = parse_name(text(value)?)?;
        let wrong = || {
            Mistake::new(format!("{name} has an underscore"), "name the target with letters, digits, - . :")
        };
        if name.as_str().contains('_') { Err(wrong()) } else { Ok(name) }
    });
    let alias = section.read("alias", |value| bounded_text(value, ALIAS_BYTES_MAX));
    section.finish();
    iqn.map(|iqn| Target { iqn, alias })
}

/// A text that goes into a login's text value: not empty, bounded, without control characters.
fn bounded_text(value: &DeValue<'_>, bytes_max: usize) -> Result<String, Mistake> {
    let text = text(value)?;
    if text.is_empty() || text.len() > bytes_max || text.chars().any(char::is_control) {
        let what = format!("{} bytes of text do not fit", text.len());
        return Err(Mistake::new(what, format!("write 1 to {bytes_max} bytes without control characters")));
    }
    Ok(text.to_owned())
}

fn read_pools(sections: Vec<Section<'_, '_>>) -> BTreeMap<String, u8> {
    let mut thresholds = BTreeMap::new();
    for mut section in sections {
        let cure = "write name = \"data\", or the name of another pool";
        let name = section.require("name", cure, |value| text(value).map(str::to_owned));
        let percent = section.require("threshold_percent", "write threshold_percent = 80", |value| {
            integer(value, 1..=99, "percent")
        });
        if let (Some(name), Some(percent)) = (name, percent)
            && let Some(_) = thresholds.insert(name.clone(), percent)
        {
            section
                .mistake("name", Mistake::new(format!("the pool {name:?} is there twice"), "name each once"));
        }
        section.finish();
    }
    thresholds
}

fn read_luns(sections: Vec<Section<'_, '_>>) -> Vec<Lun> {
    let mut luns: Vec<Lun> = Vec::new();
    let mut numbers = BTreeMap::new();
    let mut ids = BTreeMap::new();
    for mut section in sections {
        let cure = "write number = 0, or the number that hosts shall see";
        let number = section.require("number", cure, |value| integer(value, 0..=LUN_NUMBER_MAX, "LUNs"));
        let id = section.read("id", |value| text(value)?.parse::<LunId>());
        let spec = read_spec(&mut section);
        if let Some(number) = number
            && let Some(first) = numbers.insert(number, section.place("number"))
        {
            let cure = format!("give each its own number; the first is at {first}");
            section.mistake("number", Mistake::new(format!("LUN {number} is there twice"), cure));
        }
        if let Some(id) = id
            && let Some(first) = ids.insert(id, section.place("id"))
        {
            let cure = format!("give each its own id; the first is at {first}");
            section.mistake("id", Mistake::new(format!("the id {id} is there twice"), cure));
        }
        if let (Some(number), Some(spec)) = (number, spec) {
            luns.push(Lun { number, spec, id });
        }
        section.finish();
    }
    luns.sort_by_key(|lun| lun.number);
    luns
}

/// `spec = "..."`, or its parts as keys of their own; not both.
fn read_spec(section: &mut Section<'_, '_>) -> Option<LunSpec> {
    const PARTS: [&str; 9] =
        ["kind", "path", "size", "block", "physical", "read_only", "removable", "writeback", "zero_detect"];
    if section.has("spec") || !section.has("kind") {
        let spec =
            section.require("spec", "write spec = \"file:/srv/lun0.img:64G\", or kind and size", |value| {
                let spec: LunSpec = text(value)?.parse()?;
                spec.backing.path().map_or(Ok(()), check_absolute)?;
                Ok(spec)
            });
        for part in PARTS {
            if section.read(part, |_| Ok(())).is_some() {
                let cure = "put it into spec, or write all of it as keys without spec";
                section.mistake(part, Mistake::new(format!("{part} stands beside spec"), cure));
            }
        }
        return spec;
    }
    let kind = section.read("kind", |value| {
        let kinds =
            [("ram", "ram"), ("null", "null"), ("file", "file"), ("thin", "thin"), ("thick", "thick")];
        word(value, &kinds)
    });
    let path = section.read("path", absolute);
    let size = section.read("size", |value| check_capacity(text(value)?.parse::<Size>()?.0));
    let wrong = |section: &Section<'_, '_>, key: &str, what: &str, cure: &str| {
        section.mistake(key, Mistake::new(what, cure));
    };
    let backing = match (kind, path, size) {
        (Some("file"), Some(path), bytes) => Some(Backing::File { path, bytes }),
        (Some("file"), None, _) => {
            if !section.has("path") {
                wrong(section, "kind", "a LUN of kind file has no path", "write path = \"/srv/lun0.img\"");
            }
            None
        }
        (Some(_), Some(_), _) => {
            wrong(section, "path", "only kind = \"file\" has a path", "remove path");
            None
        }
        (Some("ram"), None, Some(bytes)) => Some(Backing::Ram { bytes }),
        (Some("null"), None, Some(bytes)) => Some(Backing::Null { bytes }),
        (Some("thin"), None, Some(bytes)) => {
            Some(Backing::Volume { provisioning: Provisioning::Thin, bytes })
        }
        (Some("thick"), None, Some(bytes)) => {
            Some(Backing::Volume { provisioning: Provisioning::Thick, bytes })
        }
        (Some(_), None, _) if !section.has("size") => {
            wrong(section, "kind", "the LUN has no size", "write size = \"256M\"");
            None
        }
        (Some(_) | None, _, _) => None,
    };
    let block = |name: &'static str| {
        move |value: &DeValue<'_>| parse_block(name, &integer(value, 512..=4096u32, "bytes")?.to_string())
    };
    let mut spec = LunSpec::new(backing.unwrap_or(Backing::Null { bytes: 0 }));
    let whole = kind.is_some();
    spec.block_bytes = section.read("block", block("block")).unwrap_or(spec.block_bytes);
    spec.physical_block_bytes =
        section.read("physical", block("physical")).unwrap_or(spec.physical_block_bytes);
    spec.read_only = section.read("read_only", boolean).unwrap_or(false);
    spec.removable = section.read("removable", boolean).unwrap_or(false);
    spec.write_back = section.read("writeback", boolean).unwrap_or(false);
    if let Some(zero_detect) = section.read("zero_detect", boolean) {
        spec.zero_detect = zero_detect;
        if whole && !matches!(kind, Some("thin" | "thick")) {
            wrong(
                section,
                "zero_detect",
                "only kind = \"thin\" and \"thick\" detect zeroes",
                "remove zero_detect",
            );
        }
    }
    section.read("spec", |_| Ok(()));
    if let Err(mistake) = spec.check_blocks() {
        section.mistake("block", mistake);
    }
    (whole && spec.backing != Backing::Null { bytes: 0 }).then_some(spec)
}

/// What all the file's secrets have in common.
struct Secrets {
    others_read: bool,
    warned: bool,
    used: Vec<Used>,
}

/// A secret, who proves itself with it, and where it stands.
struct Used {
    secret: Secret,
    by_target: bool,
    place: String,
}

impl Secrets {
    /// No secret may prove both an initiator and the target: whoever learns to be one could be the other
    /// (RFC 7143 §9.2.1). One that proves several initiators lets each be the other; that's warned about.
    fn check(&self, report: &Report<'_>) {
        for (index, used) in self.used.iter().enumerate() {
            let Some(earlier) = self.used[..index].iter().find(|earlier| earlier.secret == used.secret)
            else {
                continue;
            };
            if earlier.by_target != used.by_target {
                let what = "the same secret proves the initiator and the target";
                let cure = format!("choose another one here; the first is at {}", earlier.place);
                report.mistake(Mistake::new(what, cure).at(&used.place));
            } else if !used.by_target {
                let what = "the same secret proves two initiators, so each can pass for the other";
                let cure = format!("choose another one here; the first is at {}", earlier.place);
                report.warn(Mistake::new(what, cure).at(&used.place));
            }
        }
    }
}

fn read_hosts(sections: Vec<Section<'_, '_>>, secrets: &mut Secrets) -> Vec<Host> {
    let mut hosts = Vec::new();
    let mut names = BTreeMap::new();
    for mut section in sections {
        let cure =
            "write iqn = \"...\", as the host's own tools show it, or \"*\" for all that have no [[host]]";
        let iqn = section.require("iqn", cure, |value| text(value)?.parse::<HostName>());
        let chap = read_chap(&mut section, secrets);
        if let Some(iqn) = iqn {
            if let Some(first) = names.insert(iqn.clone(), section.place("iqn")) {
                let cure = format!("keep one [[host]] for it; the first is at {first}");
                section.mistake("iqn", Mistake::new(format!("{} is there twice", iqn.as_str()), cure));
            }
            hosts.push(Host { iqn, chap });
        }
        section.finish();
    }
    hosts
}

/// `chap = { user, secret }` and `mutual = { user, secret }`.
fn read_chap(section: &mut Section<'_, '_>, secrets: &mut Secrets) -> Option<Chap> {
    let initiator = section.section("chap").and_then(|chap| read_credentials(chap, false, secrets));
    let target = section.section("mutual").and_then(|mutual| read_credentials(mutual, true, secrets));
    if section.has("mutual") && !section.has("chap") {
        let what = "the target shall prove itself, but not the initiator";
        let cure = "add chap = { user = \"...\", secret = \"...\" }: CHAP has no other order";
        section.mistake("mutual", Mistake::new(what, cure));
    }
    Some(Chap { initiator: initiator?, target })
}

fn read_credentials(
    mut section: Section<'_, '_>,
    by_target: bool,
    secrets: &mut Secrets,
) -> Option<Credentials> {
    let user = section.require("user", "write user = \"...\"", |value| bounded_text(value, USER_BYTES_MAX));
    let (key, secret) = match (section.has("secret"), section.has("secret_file")) {
        (true, true) => {
            let what = "secret and secret_file are both there";
            section.mistake("secret_file", Mistake::new(what, "keep one of them"));
            section.read("secret", |_| Ok(()));
            section.read("secret_file", |_| Ok(()));
            ("secret", None)
        }
        (false, true) => {
            let file = section.read("secret_file", |value| {
                let path = absolute(value)?;
                let others = open(&path).map(|file| others_may_read(&file))?;
                read_secret_file(&path).map(|text| (text, others, path))
            });
            section.read("secret", |_| Ok(()));
            if let Some((_, true, path)) = &file {
                let what = format!("others than its owner may read the secret in {}", path.display());
                section.warn("secret_file", Mistake::new(what, format!("chmod 600 {}", path.display())));
            }
            ("secret_file", file.map(|(text, _, _)| text))
        }
        _ => {
            let cure = "write secret = \"...\" or secret_file = \"/etc/pollux/secret\"";
            // Whatever stands there instead of a text may be the secret all the same: it isn't shown.
            let secret = section.require("secret", cure, |value| {
                let wrong = || Mistake::new("the secret is no text", "put it in double quotes");
                value.as_str().map(str::to_owned).ok_or_else(wrong)
            });
            section.read("secret_file", |_| Ok(()));
            if secret.is_some() && secrets.others_read && !secrets.warned {
                secrets.warned = true;
                let what = "others than its owner may read this file, which has secrets in it";
                section.warn("secret", Mistake::new(what, "chmod 600 the file, or use secret_file"));
            }
            ("secret", secret)
        }
    };
    let secret = secret.and_then(|secret| match check_secret(&secret) {
        Ok(()) => Some(Secret::new(secret)),
        Err(mistake) => {
            section.mistake(key, mistake);
            None
        }
    });
    if let Some(secret) = &secret {
        if secret.expose().len() < CHAP_SECRET_BYTES_WISE {
            let what = format!("the secret has {} bytes and can be found by trying", secret.expose().len());
            let cure = format!(
                "use {CHAP_SECRET_BYTES_WISE} random bytes or more (RFC 7143 §9.2.1); ESXi takes up to 255, Windows up to 16"
            );
            section.warn(key, Mistake::new(what, cure));
        }
        secrets.used.push(Used { secret: secret.clone(), by_target, place: section.place(key) });
    }
    section.finish();
    Some(Credentials { user: user?, secret: secret? })
}

/// The file's first line.
fn read_secret_file(path: &Path) -> Result<String, Mistake> {
    let wrong = |why: String| {
        Mistake::new(
            format!("no secret in {}: {why}", path.display()),
            "write the secret alone on its first line",
        )
    };
    let mut text = String::new();
    let bytes_max = CHAP_SECRET_BYTES_MAX as u64 + 3;
    let read = open(path)?.take(bytes_max).read_to_string(&mut text);
    read.map_err(|error| wrong(error.to_string()))?;
    text.lines().next().map(str::to_owned).ok_or_else(|| wrong("it is empty".to_owned()))
}

/// Says nothing of what the secret is.
fn check_secret(secret: &str) -> Result<(), Mistake> {
    if secret.is_empty() || secret.len() > CHAP_SECRET_BYTES_MAX || secret.chars().any(char::is_control) {
        let what = format!("a secret of {} bytes can't be used", secret.len());
        let cure = format!(
            "use {CHAP_SECRET_BYTES_WISE} to {CHAP_SECRET_BYTES_MAX} bytes without control characters"
        );
        return Err(Mistake::new(what, cure));
    }
    Ok(())
}

const DIGESTS: [(&str, DigestPolicy); 3] =
    [("never", DigestPolicy::Never), ("allow", DigestPolicy::Allow), ("require", DigestPolicy::Require)];

fn read_iscsi(mut section: Section<'_, '_>) -> Iscsi {
    let default = Iscsi::default();
    let bytes = |value: &DeValue<'_>| integer(value, LENGTH_MIN..=LENGTH_MAX, "bytes");
    let digest = |value: &DeValue<'_>| word(value, &DIGESTS);
    let nop = section.read("nop_interval_s", |value| seconds(value, 0, 3600));
    let max_burst_length = section.read("max_burst_length", bytes).unwrap_or(default.max_burst_length);
    let first_burst_length = section.read("first_burst_length", bytes);
    if first_burst_length.is_some_and(|first| first > max_burst_length) {
        let what = format!("first_burst_length is over max_burst_length, which is {max_burst_length}");
        section.mistake(
            "first_burst_length",
            Mistake::new(what, "make it smaller (RFC 7143 §13.14), or the other larger"),
        );
    }
    let iscsi = Iscsi {
        max_recv_data_segment_length: section
            .read("max_recv_data_segment_length", bytes)
            .unwrap_or(default.max_recv_data_segment_length),
        // Where only the whole burst is said, and small, its first part is no larger.
        first_burst_length: first_burst_length.unwrap_or(default.first_burst_length.min(max_burst_length)),
        max_burst_length,
        max_outstanding_r2t: section
            .read("max_outstanding_r2t", |value| integer(value, 1..=64, "R2Ts"))
            .unwrap_or(default.max_outstanding_r2t),
        initial_r2t: section.read("initial_r2t", boolean).unwrap_or(default.initial_r2t),
        immediate_data: section.read("immediate_data", boolean).unwrap_or(default.immediate_data),
        header_digest: section.read("header_digest", digest).unwrap_or(default.header_digest),
        data_digest: section.read("data_digest", digest).unwrap_or(default.data_digest),
        max_sessions: section
            .read("max_sessions", |value| integer(value, 1..=16_384, "sessions"))
            .unwrap_or(default.max_sessions),
        max_half_open: section
            .read("max_half_open", |value| integer(value, 1..=4096, "connections"))
            .unwrap_or(default.max_half_open),
        login_timeout: section
            .read("login_timeout_s", |value| seconds(value, 1, 300))
            .unwrap_or(default.login_timeout),
        nop_interval: nop.map_or(default.nop_interval, |interval| (!interval.is_zero()).then_some(interval)),
        nop_timeout: section
            .read("nop_timeout_s", |value| seconds(value, 1, 3600))
            .unwrap_or(default.nop_timeout),
    };
    section.finish();
    iscsi
}

const FORMATS: [(&str, LogFormat); 2] = [("text", LogFormat::Text), ("json", LogFormat::Json)];

fn read_log(mut section: Section<'_, '_>) -> Log {
    let default = Log::default();
    let filter = |value: &DeValue<'_>| crate::logging::parse_filter(text(value)?);
    let log = Log {
        filter: section.read("filter", filter).unwrap_or(default.filter),
        format: section.read("format", |value| word(value, &FORMATS)).unwrap_or(default.format),
    };
    section.finish();
    log
}
