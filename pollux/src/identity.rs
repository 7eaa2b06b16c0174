//! Who each unit is, over restarts: the data directory and the `luns.toml` in it.
//!
//! The rule: a unit's id is what the configuration says; else what `luns.toml` remembers for its backing; else a new
//! random UUID, which is on the medium before the unit is shown to anybody. A backing is remembered by its path
//! (files: with links resolved, those in the data directory relative to it, so that it can be moved; block devices:
//! as written, since `/dev/disk/by-id` outlives `/dev/sdb`), memory by its kind and LUN number, a volume of the data
//! directory's pool by its name. An entry is never changed or removed by us, so a LUN that leaves the configuration
//! and comes back is the same device. No two units served together have one id: that is refused.
//!
//! Whoever copies a data directory to another host copies the identities; only the ids then tell that they are two.

use crate::config::{Lun, LunId};
use crate::mistake::Mistake;
use crate::spec::{Backing, Size};
use rustix::fs::{FlockOperation, flock};
use std::fmt::Write as _;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use toml::de::DeTable;

/// Backings that are remembered: 16 times what one target shows.
pub const REMEMBERED_MAX: usize = 4096;
/// A file of that many entries with the longest paths fits.
const FILE_BYTES_MAX: u64 = 32 << 20;
const FILE: &str = "luns.toml";
const FILE_NEW: &str = "luns.toml.new";
const LOCK: &str = "lock";

/// The data directory, ours alone while this lives.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    /// Holds the lock.
    _lock: File,
    /// It is removed at the end, with all that is in it.
    fleeting: bool,
}

impl Drop for DataDir {
    fn drop(&mut self) {
        if self.fleeting
            && let Err(error) = std::fs::remove_dir_all(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "a directory for this process stays behind");
        }
    }
}

impl DataDir {
    /// Makes the directory if it is missing (for its owner only) and takes it, so that no second process can
    /// serve what is in it.
    ///
    /// # Errors
    /// Somebody else has it, or the kernel's.
    pub fn open(path: &Path) -> Result<DataDir, Mistake> {
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|error| {
            let cure = "name a directory that pollux may write with --data, or `data` in the file";
            Mistake::new(format!("can't make the data directory: {error}"), cure)
                .at(path.display().to_string())
        })?;
        DataDir::take(path, false)
    }

    /// Makes a directory that is gone with the process, for what `--data ram:SIZE` keeps meanwhile. It must not be there: what
    /// somebody else has put there is nobody to trust.
    ///
    /// # Errors
    /// The kernel's.
    pub fn fleeting(path: &Path) -> Result<DataDir, Mistake> {
        DirBuilder::new().mode(0o700).create(path).map_err(|error| {
            let cure =
                "remove it if it was left behind, and let pollux make directories there, or set TMPDIR";
            Mistake::new(format!("can't make a directory for this process: {error}"), cure)
                .at(path.display().to_string())
        })?;
        DataDir::take(path, true)
    }

    fn take(path: &Path, fleeting: bool) -> Result<DataDir, Mistake> {
        let cure = "name a directory that pollux may write with --data, or `data` in the file";
        let failed = |what: &str, error: &dyn std::fmt::Display| {
            Mistake::new(format!("can't {what} the data directory: {error}"), cure)
                .at(path.display().to_string())
        };
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let lock = options.open(path.join(LOCK)).map_err(|error| failed("open", &error))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(DataDir { path: path.to_owned(), _lock: lock, fleeting }),
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let cure = "stop the other pollux, or give this one its own directory with --data";
                Err(Mistake::new("another process uses the data directory", cure)
                    .at(path.display().to_string()))
            }
            Err(errno) => Err(failed("lock", &errno)),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The id of each of `luns`, in their order; new ones are on the medium when this returns. The directories of
    /// files that are still to be made should be there, or a link in their path would not be seen.
    ///
    /// # Errors
    /// Two units with one id, a `luns.toml` that can't be read or written.
    pub fn identify(&self, luns: &[Lun]) -> Result<Vec<LunId>, Mistake> {
        let mut remembered = self.load()?;
        let known = remembered.len();
        let mut ids: Vec<LunId> = Vec::with_capacity(luns.len());
        for lun in luns {
            let id = match lun.id {
                Some(id) => id,
                None => recall(&mut remembered, self.backing_key(lun))?,
            };
            if let Some(index) = ids.iter().position(|&earlier| earlier == id) {
                let what = format!("LUN {} and LUN {} have the same id {id}", luns[index].number, lun.number);
                let cure =
                    "give one of them another id in its [[lun]]: hosts take equal ids for paths to one disk";
                return Err(Mistake::new(what, cure).at(self.path.join(FILE).display().to_string()));
            }
            ids.push(id);
        }
        if remembered.len() > REMEMBERED_MAX {
            let what = format!("more than {REMEMBERED_MAX} LUNs are remembered");
            let cure = "stop pollux and remove those from the file that will never come back";
            return Err(Mistake::new(what, cure).at(self.path.join(FILE).display().to_string()));
        }
        if remembered.len() > known {
            self.store(&remembered)?;
        }
        Ok(ids)
    }

    fn load(&self) -> Result<Vec<(String, LunId)>, Mistake> {
        let path = self.path.join(FILE);
        let broken = |why: String| {
            let cure =
                "restore the file, or set each LUN's id in the configuration; without it hosts see new disks";
            Mistake::new(format!("the LUNs' identities can't be read: {why}"), cure)
                .at(path.display().to_string())
        };
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(broken(error.to_string())),
        };
        let mut text = String::new();
        file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(|error| broken(error.to_string()))?;
        if text.len() as u64 > FILE_BYTES_MAX {
            return Err(broken(format!("it is over {}", Size(FILE_BYTES_MAX))));
        }
        parse(&text).map_err(broken)
    }

    /// All or nothing: a new file, on the medium, takes the old one's name, and the name is on the medium too.
    fn store(&self, remembered: &[(String, LunId)]) -> Result<(), Mistake> {
        let path = self.path.join(FILE);
        let store = || -> std::io::Result<()> {
            let new = self.path.join(FILE_NEW);
            let mut file =
                OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
            file.write_all(render(remembered).as_bytes())?;
            file.sync_all()?;
            std::fs::rename(&new, &path)?;
            File::open(&self.path)?.sync_all()
        };
        store().map_err(|error| {
            let cure =
                "make room and let pollux write there: an id that isn't kept would change at the next start";
            Mistake::new(format!("the LUNs' identities can't be kept: {error}"), cure)
                .at(path.display().to_string())
        })
    }

    /// What a unit is remembered by.
    fn backing_key(&self, lun: &Lun) -> String {
        match &lun.spec.backing {
            Backing::Ram { .. } | Backing::Null { .. } => {
                format!("{}:{}", lun.spec.backing.kind(), lun.number)
            }
            Backing::Volume { .. } => format!("volume:{}", lun.volume().unwrap_or_default()),
            Backing::File { path, .. } => {
                let is_device =
                    std::fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_block_device());
                let settled = if is_device { path.clone() } else { settled_path(path) };
                let home = settled_path(&self.path);
                format!("file:{}", settled.strip_prefix(home).unwrap_or(&settled).display())
            }
        }
    }
}

fn recall(remembered: &mut Vec<(String, LunId)>, key: String) -> Result<LunId, Mistake> {
    if let Some((_, id)) = remembered.iter().find(|(known, _)| *known == key) {
        return Ok(*id);
    }
    let id = LunId::random()?;
    remembered.push((key, id));
    Ok(id)
}

/// The path with its links resolved, as far as it is there.
pub(crate) fn settled_path(path: &Path) -> PathBuf {
    if let Ok(real) = std::fs::canonicalize(path) {
        return real;
    }
    match (path.parent().map(std::fs::canonicalize), path.file_name()) {
        (Some(Ok(parent)), Some(name)) => parent.join(name),
        _ => path.to_owned(),
    }
}

fn render(remembered: &[(String, LunId)]) -> String {
    let mut text = "# Written by Pollux: who each LUN is to the hosts. Keep it with the data.\n".to_owned();
    for (key, id) in remembered {
        text.push_str("\n[[lun]]\nbacking = \"");
        for char in key.chars() {
            match char {
                '"' | '\\' => text.extend(['\\', char]),
                // Writing to a String can't fail.
                _ if char.is_control() => drop(write!(text, "\\u{:04X}", char as u32)),
                _ => text.push(char),
            }
        }
        let _ = writeln!(text, "\"\nid = \"{id}\"");
    }
    text
}

fn parse(text: &str) -> Result<Vec<(String, LunId)>, String> {
    let document = DeTable::parse(text).map_err(|error| error.message().trim_end().to_owned())?;
    let mut remembered: Vec<(String, LunId)> = Vec::new();
    for (name, value) in document.get_ref() {
        let tables = value.get_ref().as_array().filter(|_| name.get_ref() == "lun");
        for table in tables.ok_or_else(|| format!("{:?} is not ours", name.get_ref()))? {
            let field = |wanted: &str| {
                let fields = table.get_ref().as_table()?;
                let found = fields.iter().find(|(name, _)| name.get_ref() == wanted)?;
                found.1.get_ref().as_str()
            };
            let (Some(backing), Some(id)) = (field("backing"), field("id")) else {
                return Err("an entry lacks backing or id".to_owned());
            };
            let id: LunId = id.parse().map_err(|mistake: Mistake| mistake.what)?;
            if remembered.iter().any(|(known, other)| known == backing || *other == id) {
                return Err(format!("{backing:?} or its id is there twice"));
            }
            remembered.push((backing.to_owned(), id));
        }
    }
    Ok(remembered)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::LunSpec;
    use proptest::prelude::*;

    fn lun(number: u16, spec: &str) -> Lun {
        Lun { number, spec: spec.parse::<LunSpec>().unwrap(), id: None }
    }

    /// Goal: ids stay over restarts, also for memory and for a unit that left for a while; they are all different.
    /// Method: open, identify, close, with a set that changes.
    #[test]
    fn ids_stay() {
        let root = tempfile::tempdir().unwrap();
        let data = root.path().join("a/b");
        let file = format!("file:{}:1G", root.path().join("x.img").display());
        let luns = [lun(0, &file), lun(1, "ram:1G"), lun(2, "ram:1G"), lun(3, "null:1G"), lun(4, "thin:1G")];
        let first = DataDir::open(&data).unwrap().identify(&luns).unwrap();
        for (index, id) in first.iter().enumerate() {
            assert!(!first[..index].contains(id));
            assert_eq!((id.0[6] >> 4, id.0[8] >> 6), (4, 2), "a random UUID");
        }
        let thick = DataDir::open(&data).unwrap().identify(&[lun(4, "thick:2G")]).unwrap();
        assert_eq!(thick, first[4..], "the same volume");
        let only = [lun(7, &file)];
        assert_eq!(DataDir::open(&data).unwrap().identify(&only).unwrap(), first[..1]);
        assert_eq!(DataDir::open(&data).unwrap().identify(&luns).unwrap(), first);
        assert_eq!(DataDir::open(&data).unwrap().identify(&luns).unwrap(), first);
        assert!(!data.join(FILE_NEW).exists());
    }

    /// Goal: a file has one identity by whatever name, before and after it is made.
    #[test]
    fn a_link_is_the_same_file() {
        let root = tempfile::tempdir().unwrap();
        let dir = DataDir::open(&root.path().join("data")).unwrap();
        std::fs::create_dir(root.path().join("real")).unwrap();
        std::os::unix::fs::symlink(root.path().join("real"), root.path().join("link")).unwrap();
        let by = |name: &str| lun(0, &format!("file:{}/x.img:1G", root.path().join(name).display()));
        let before = dir.identify(&[by("link")]).unwrap();
        std::fs::write(root.path().join("real/x.img"), b"").unwrap();
        assert_eq!(dir.identify(&[by("link")]).unwrap(), before);
        assert_eq!(dir.identify(&[by("real")]).unwrap(), before);
    }

    /// Goal: a data directory that is moved takes its files' identities along.
    #[test]
    fn a_moved_directory_keeps_its_ids() {
        let root = tempfile::tempdir().unwrap();
        let [old, new] = ["old", "new"].map(|name| root.path().join(name));
        let in_dir = |dir: &Path| [lun(0, &format!("file:{}:1G", dir.join("lun0.img").display()))];
        let before = DataDir::open(&old).unwrap().identify(&in_dir(&old)).unwrap();
        std::fs::rename(&old, &new).unwrap();
        assert_eq!(DataDir::open(&new).unwrap().identify(&in_dir(&new)).unwrap(), before);
    }

    /// Goal: an id in the configuration wins and isn't remembered; used for two units it is refused.
    #[test]
    fn a_given_id_wins() {
        let root = tempfile::tempdir().unwrap();
        let dir = DataDir::open(root.path()).unwrap();
        let remembered = dir.identify(&[lun(0, "ram:1G")]).unwrap()[0];
        let given = Lun { id: Some(LunId([7; 16])), ..lun(0, "ram:1G") };
        assert_eq!(dir.identify(&[given]).unwrap(), [LunId([7; 16])]);
        assert_eq!(dir.identify(&[lun(0, "ram:1G")]).unwrap(), [remembered]);
        let twice = Lun { id: Some(remembered), ..lun(1, "ram:1G") };
        let mistake = dir.identify(&[lun(0, "ram:1G"), twice]).unwrap_err();
        assert!(mistake.what.contains("LUN 0 and LUN 1 have the same id"), "{mistake}");
    }

    /// Goal: a damaged file is refused rather than replaced: new ids would look like new disks.
    #[test]
    fn a_damaged_file_is_told() {
        let root = tempfile::tempdir().unwrap();
        let dir = DataDir::open(root.path()).unwrap();
        let entry = "[[lun]]\nbacking = \"ram:0\"\nid = \"00000000-0000-4000-8000-000000000001\"\n";
        for text in
            ["[[lun", "x = 1", "[[lun]]\nbacking = \"ram:0\"", &format!("{entry}{entry}"), "lun = [1]"]
        {
            std::fs::write(root.path().join(FILE), text).unwrap();
            let mistake = dir.identify(&[lun(0, "ram:1G")]).expect_err(text);
            assert!(mistake.cure.contains("restore the file"), "{mistake}");
            assert_eq!(std::fs::read_to_string(root.path().join(FILE)).unwrap(), text);
        }
    }

    /// Goal: one process a directory.
    #[test]
    fn a_second_one_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let first = DataDir::open(root.path()).unwrap();
        let mistake = DataDir::open(root.path()).unwrap_err();
        assert!(mistake.what.contains("another process"), "{mistake}");
        drop(first);
        DataDir::open(root.path()).unwrap();
        let mistake = DataDir::open(&root.path().join("lock")).unwrap_err();
        assert!(mistake.what.contains("can't make"), "{mistake}");
    }

    proptest! {
        /// Goal: any path survives the file. Method: render and parse.
        #[test]
        fn entries_come_back(keys in proptest::collection::btree_set("\\PC{0,12}[\\x00-\\x1f\"\\\\']?", 0..8)) {
            let entries: Vec<_> = keys.into_iter().zip(1u8..).map(|(key, n)| (key, LunId([n; 16]))).collect();
            prop_assert_eq!(parse(&render(&entries)), Ok(entries));
        }
    }
}
