//! The pools that are opened at start: the data directory's, which is made when a LUN needs it, and those that
//! `pollux pool create` made. Where those are stands in `pools.toml` in the data directory.

use crate::config::{Config, DATA_POOL};
use crate::mistake::Mistake;
use crate::spec::{Backing, Device, Size};
use bdev::base::open::{self, FileMedium};
use bdev::io::BdevId;
use bdev::pool::owner::POOL_BDEVS;
use bdev::pool::space::WINDOW_CLUSTERS;
use bdev::pool::{self, CreateOptions, FoldWhen, Member, OpenOptions};
use bdev::shard::{POOL_MARK, POOLS_MAX, VOLUMES_FROM};
use bdev::stack::Opened;
use reactor::disk::FileId;
use rustix::fs::{MemfdFlags, memfd_create};
use std::fmt::Write as _;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tracing::{info, warn};

const FILE: &str = "pools.toml";
const FILE_NEW: &str = "pools.toml.new";

/// What the data pool has beside the volumes' bytes, if all were written: maps, journals, and room for snapshots.
const SPARE_BYTES: u64 = 4 << 30;

/// What maps of all pools may take on one core.
const MAP_MEMORY_BYTES: u64 = 2 << 30;

/// A pool by its name and devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// Its name.
    pub name: String,
    /// Its devices, absolute.
    pub devices: Vec<PathBuf>,
}

fn failed(path: &Path, error: &dyn std::fmt::Display) -> Mistake {
    Mistake::plain(format!("{}: {error}", path.display()))
}

/// A device, locked, and as it is met before the reactors run. `discard` says whether the space of free chunks is given
/// back; `None`: of files it is, of devices not.
///
/// # Errors
/// It can't be opened, or somebody has it.
pub fn member(
    path: &Path,
    size: Option<u64>,
    read_only: bool,
    discard: Option<bool>,
) -> Result<(Member, OwnedFd), Mistake> {
    let backing = open::open(path, size, read_only).map_err(|error| failed(path, &error))?;
    let medium = FileMedium::open(path, backing.bytes, read_only).map_err(|error| failed(path, &error))?;
    let member = Member {
        path: path.display().to_string(),
        file: FileId(u16::MAX),
        align_bytes: backing.align_bytes,
        punch: backing.punch_hole && discard.unwrap_or_else(|| path.is_file()),
        medium: Arc::new(medium),
    };
    Ok((member, backing.file))
}

/// Makes a pool of devices that hold none.
///
/// # Errors
/// They can't be opened, or hold one.
pub fn create(name: &str, devices: &[Device]) -> Result<(), Mistake> {
    let mut members = Vec::new();
    let mut locks = Vec::new();
    for device in devices {
        let (member, lock) = member(&device.path, device.bytes, false, None)?;
        members.push(member);
        locks.push(lock);
    }
    create_of(name, &members)
}

fn create_of(name: &str, members: &[Member]) -> Result<(), Mistake> {
    let mut uuid = [0; 16];
    getrandom::fill(&mut uuid).map_err(|error| {
        Mistake::new(format!("no randomness for a UUID: {error}"), "look at the system's log")
    })?;
    uuid[6] = uuid[6] & 0x0f | 0x40;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    let options = CreateOptions { name: name.to_owned(), uuid, journal_bytes: None, metadata_bytes: None };
    pool::create(members, &options).map_err(|error| Mistake::plain(error.to_string()))
}

/// The pools of `pools.toml`.
///
/// # Errors
/// It can't be read.
pub fn known(data: &Path) -> Result<Vec<Known>, Mistake> {
    let path = data.join(FILE);
    let broken = |why: String| {
        Mistake::new(
            format!("it can't be read: {why}"),
            "restore it, or write it anew: [[pool]] with name and devices",
        )
        .at(path.display().to_string())
    };
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(broken(error.to_string())),
    };
    let table: toml::Table =
        text.parse().map_err(|error: toml::de::Error| broken(error.message().to_owned()))?;
    let mut pools = Vec::new();
    for entry in table.get("pool").and_then(toml::Value::as_array).into_iter().flatten() {
        let name = entry.get("name").and_then(toml::Value::as_str);
        let devices = entry.get("devices").and_then(toml::Value::as_array);
        let (Some(name), Some(devices)) = (name, devices) else {
            return Err(broken("a [[pool]] lacks its name or devices".to_owned()));
        };
        let devices = devices.iter().filter_map(toml::Value::as_str).map(PathBuf::from).collect();
        pools.push(Known { name: name.to_owned(), devices });
    }
    Ok(pools)
}

/// Writes `pools.toml`, all or nothing.
///
/// # Errors
/// The kernel's.
pub fn remember(data: &Path, pools: &[Known]) -> Result<(), Mistake> {
    let quoted = |text: &str| toml::Value::String(text.to_owned()).to_string();
    let mut text = "# Written by Pollux: the pools that it opens at start, besides its own.\n".to_owned();
    for pool in pools {
        let devices: Vec<String> =
            pool.devices.iter().map(|path| quoted(&path.display().to_string())).collect();
        // Writing to a String can't fail.
        let _ =
            writeln!(text, "\n[[pool]]\nname = {}\ndevices = [{}]", quoted(&pool.name), devices.join(", "));
    }
    let (new, path) = (data.join(FILE_NEW), data.join(FILE));
    let store = || -> std::io::Result<()> {
        std::fs::write(&new, text)?;
        std::fs::File::open(&new)?.sync_all()?;
        std::fs::rename(&new, &path)?;
        std::fs::File::open(data)?.sync_all()
    };
    store().map_err(|error| {
        Mistake::new(
            format!("the pools can't be remembered: {error}"),
            "make room and let pollux write there",
        )
        .at(path.display().to_string())
    })
}

/// Makes the data pool in memory and opens it: its journals and maps are in a file that has no name, what its volumes
/// hold is each core's.
fn open_memory(bytes: u64, cores: u16, devices: &mut Opened) -> Result<pool::Opened, Mistake> {
    let path = format!("ram:{}", Size(bytes));
    let needed = bdev::pool::memory::memory_bytes(bytes, cores) + devices.ram_bytes();
    if let Some(available) = open::memory_available_bytes().filter(|&available| needed > available) {
        let what = format!(
            "{needed} bytes of memory are not to be had for it and all ram LUNs, {available} are available"
        );
        return Err(Mistake::new(what, "make it smaller, or name a directory").at(path));
    }
    let no_file = |error: &dyn std::fmt::Display| {
        let what = format!("no file in memory can be made for its maps: {error}");
        Mistake::new(what, "look at the system's log").at(path.clone())
    };
    let file = memfd_create("pollux-pool", MemfdFlags::CLOEXEC).map_err(|error| no_file(&error))?;
    let ring = file.try_clone().map_err(|error| no_file(&error))?;
    let member = Member {
        path: path.clone(),
        file: devices.add_file(ring),
        align_bytes: 512,
        punch: false,
        medium: Arc::new(FileMedium::of(file.into(), bytes)),
    };
    create_of(DATA_POOL, std::slice::from_ref(&member))?;
    warn!(pool = DATA_POOL, bytes, "this pool is in memory: what is in it is gone when pollux ends");
    open_members(0, vec![member], cores, true)
}

/// Opens all pools for `cores` reactors; their files go to `devices`.
///
/// # Errors
/// One can't be opened.
pub fn open_all(config: &Config, cores: u16, devices: &mut Opened) -> Result<Vec<pool::Opened>, Mistake> {
    if let Some(bytes) = config.data_memory {
        return Ok(vec![open_memory(bytes, cores, devices)?]);
    }
    let mut known = known(&config.data)?;
    let file = config.data_pool_file();
    let wanted: u64 = config
        .luns
        .iter()
        .filter_map(|lun| match lun.spec.backing {
            Backing::Volume { bytes, .. } => Some(bytes),
            _ => None,
        })
        .sum();
    if wanted > 0 && !file.exists() {
        let bytes = (wanted + SPARE_BYTES).next_multiple_of(4 << 20);
        info!(path = %file.display(), bytes, "making the data pool, sparse");
        create(DATA_POOL, &[Device { path: file.clone(), bytes: Some(bytes) }]).inspect_err(|_| {
            // It was not there before, and holds nothing.
            let _ = std::fs::remove_file(&file);
        })?;
    }
    if let Some(place) = known.iter().position(|pool| pool.name == DATA_POOL) {
        // It has more devices than its file.
        known[..=place].rotate_right(1);
    } else if file.exists() {
        known.insert(0, Known { name: DATA_POOL.to_owned(), devices: vec![file] });
    }
    if known.len() > POOLS_MAX {
        return Err(Mistake::new(format!("{} pools", known.len()), format!("have at most {POOLS_MAX}")));
    }
    let mut opened: Vec<pool::Opened> = Vec::new();
    for (place, pool) in known.into_iter().enumerate() {
        let mut members = Vec::new();
        for path in &pool.devices {
            let (member, lock) = member(path, None, false, config.discard)?;
            if pool.devices.len() > 1 && pool::pool_on(&member).is_none() {
                // Growing was cut short before the pool knew of it. If it did, it says what is missing.
                warn!(pool = pool.name, path = %path.display(), "no member of a pool: left out");
                continue;
            }
            members.push(Member { file: devices.add_file(lock), ..member });
        }
        opened.push(open_at(place, members, cores)?);
    }
    Ok(opened)
}

/// Opens the pool of these members at a place among the target's pools.
///
/// # Errors
/// It can't be opened.
pub fn open_at(place: usize, members: Vec<Member>, cores: u16) -> Result<pool::Opened, Mistake> {
    open_members(place, members, cores, false)
}

fn open_members(
    place: usize,
    members: Vec<Member>,
    cores: u16,
    in_memory: bool,
) -> Result<pool::Opened, Mistake> {
    if place >= POOLS_MAX {
        return Err(Mistake::new("too many pools", format!("have at most {POOLS_MAX}")));
    }
    let options = OpenOptions {
        cores,
        map_memory_max_bytes: MAP_MEMORY_BYTES,
        first_bdev: BdevId(VOLUMES_FROM + place as u16 * POOL_BDEVS),
        mark: POOL_MARK - place as u16,
        window_clusters: WINDOW_CLUSTERS,
        punch_after: Some(pool::PUNCH_AFTER),
        in_memory,
        break_rule: None,
        folds: FoldWhen::Quiet,
        checkpoint_percent: pool::CHECKPOINT_PERCENT,
        names_max: pool::NAMES_MAX,
    };
    let pool = pool::open(members, &options).map_err(|error| Mistake::plain(error.to_string()))?;
    info!(pool = pool.name(), "opened");
    Ok(pool)
}

/// How long a member is now.
///
/// # Errors
/// The kernel's.
pub fn length(path: &Path) -> Result<u64, Mistake> {
    let end = std::fs::File::open(path)
        .and_then(|mut file| std::io::Seek::seek(&mut file, std::io::SeekFrom::End(0)));
    end.map_err(|error| failed(path, &error))
}

/// Makes a member's file as long as is said, if it is shorter.
///
/// # Errors
/// It is no file, or can't be made longer.
pub fn enlarge(device: &Device) -> Result<(), Mistake> {
    let Some(bytes) = device.bytes else { return Ok(()) };
    let file = std::fs::OpenOptions::new().write(true).open(&device.path);
    let enlarged = file.and_then(|file| {
        if file.metadata()?.len() < bytes {
            file.set_len(bytes)?;
            file.sync_all()?;
        }
        Ok(())
    });
    enlarged.map_err(|error| failed(&device.path, &error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bdev::pool::Medium;

    /// Goal: what is remembered is known again, whatever is in the names. A damaged file is told.
    #[test]
    fn remembers() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(known(root.path()).unwrap(), []);
        let pools = vec![
            Known { name: "fast".into(), devices: vec!["/dev/x".into(), "/srv/a \"b\".img".into()] },
            Known { name: "slow".into(), devices: vec!["/dev/y".into()] },
        ];
        remember(root.path(), &pools).unwrap();
        assert_eq!(known(root.path()).unwrap(), pools);
        std::fs::write(root.path().join(FILE), "[[pool]]\nname = 1").unwrap();
        assert!(known(root.path()).unwrap_err().to_string().contains("lacks its name"));
    }

    /// The device, and whether it would be punched if its file system can.
    fn held_as(path: &Path, discard: Option<bool>, punch: bool) -> (Member, OwnedFd) {
        let held = member(path, None, false, discard).unwrap();
        let able = open::open(&path.with_extension("new"), Some(1 << 20), false).unwrap().punch_hole;
        assert_eq!(held.0.punch, punch && able);
        held
    }

    /// Goal: a pool is made once, found again, and its device is nobody else's while it is open.
    #[test]
    fn makes_a_pool_once() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a.img");
        let device = [Device { path: path.clone(), bytes: Some(128 << 20) }];
        create("p", &device).unwrap();
        let again = create("q", &[Device { bytes: None, ..device[0].clone() }]).unwrap_err();
        assert!(again.to_string().contains("a member of the pool \"p\""), "{again}");
        drop(held_as(&path, Some(false), false));
        let held = held_as(&path, None, true);
        assert!(member(&path, None, true, None).err().unwrap().to_string().contains("in use"));
        drop(held);
        let report = crate::check::check(&[path], false).unwrap();
        assert_eq!((report.pool.as_str(), report.problems.len()), ("p", 0));
    }

    /// Goal: data and holes of a sparse file are found, in order and to its end. Method: two islands; a file system that knows
    /// no holes says that all is data.
    #[test]
    fn finds_data() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("sparse");
        std::fs::File::create(&path).unwrap().set_len(16 << 20).unwrap();
        let medium = FileMedium::open(&path, 16 << 20, false).unwrap();
        medium.write(2 << 20, &vec![1; 65536]).unwrap();
        medium.write((16 << 20) - 4096, &[1; 4096]).unwrap();
        medium.sync().unwrap();
        let (mut at, mut found) = (0, Vec::new());
        while let Some(data) = medium.next_data(at).unwrap() {
            assert!(data.start >= at && data.end > data.start && data.end <= 16 << 20, "{data:?}");
            at = data.end;
            found.push(data);
        }
        let holds = |byte: u64| found.iter().any(|data| data.contains(&byte));
        assert!(holds(2 << 20) && holds((2 << 20) + 65535) && holds((16 << 20) - 1), "{found:?}");
        assert!(found.len() == 1 || !holds(1 << 20) && !holds(8 << 20), "{found:?}");
    }
}
