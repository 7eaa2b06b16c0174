//! The LUN SPEC of the command line and the configuration: one string that says what stands behind a unit.
//!
//! ```text
//! ram:256M | null:1T | file:PATH[:SIZE] | thin:SIZE | thick:SIZE     then options, each after a comma:
//! ,block=512|4096  ,physical=512|4096  ,ro  ,removable  ,writeback  ,zero=on|off
//! ```
//!
//! A comma in a PATH is written twice. The part after the last colon is a SIZE if it looks like one; a colon at
//! the very end says that there is none, so `file:/dev/bus:10:` is the path `/dev/bus:10`. `thin` and `thick` are
//! volumes in the pool of the data directory; `zero` is for them alone.

use crate::mistake::Mistake;
use bdev::pool::control::Provisioning;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Largest unit: 64 TiB, which is also the most that VMFS can use.
pub const LUN_BYTES_MAX: u64 = bdev::stack::DEVICE_BYTES_MAX;

/// Smallest unit: 1 MiB. Initiators partition in steps of that.
pub const LUN_BYTES_MIN: u64 = 1 << 20;

/// A unit's size is a multiple of this whatever its blocks are, so that it can be shown with either.
pub const LUN_STEP_BYTES: u64 = 4096;

/// What to write for a size, in every message that needs it.
const SIZE_FORM: &str =
    "write a whole number of bytes, or one with K, M, G or T (binary: 1K is 1024), as in 64G";

/// A number of bytes that is written as people write it: `64G`, `256M`, `4096`. Binary units.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Size(pub u64);

const UNITS: [(char, u32); 4] = [('T', 40), ('G', 30), ('M', 20), ('K', 10)];

impl FromStr for Size {
    type Err = Mistake;

    fn from_str(text: &str) -> Result<Size, Mistake> {
        let wrong = || Mistake::new(format!("{text:?} is no size"), SIZE_FORM);
        let unit = text.chars().next_back().filter(char::is_ascii_alphabetic);
        let (digits, shift) = match unit {
            None => (text, 0),
            Some(letter) => {
                let upper = letter.to_ascii_uppercase();
                let &(_, shift) = UNITS.iter().find(|(unit, _)| *unit == upper).ok_or_else(wrong)?;
                (&text[..text.len() - 1], shift)
            }
        };
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(wrong());
        }
        let count = digits.parse::<u64>().ok().filter(|&count| count <= u64::MAX >> shift);
        count.map(|count| Size(count << shift)).ok_or_else(|| {
            Mistake::new(format!("{text:?} is more bytes than 64 bits can count"), "write a smaller size")
        })
    }
}

impl fmt::Display for Size {
    /// The largest unit that says it exactly.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exact = UNITS.iter().find(|&&(_, shift)| self.0 != 0 && self.0.trailing_zeros() >= shift);
        match exact {
            Some(&(unit, shift)) => write!(f, "{}{unit}", self.0 >> shift),
            None => write!(f, "{}", self.0),
        }
    }
}

/// Where a unit's blocks are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backing {
    /// Memory, gone when the program ends.
    Ram {
        /// Capacity.
        bytes: u64,
    },
    /// Nowhere: writes are dropped, reads are zeroes. For measuring everything else.
    Null {
        /// Capacity.
        bytes: u64,
    },
    /// A regular file or a block device.
    File {
        /// As it was written; absolute once it is in a [`crate::config::Config`].
        path: PathBuf,
        /// Capacity. `None`: the file's or device's own size. A file that isn't there is made this large.
        bytes: Option<u64>,
    },
    /// A volume in the data directory's pool, made when it is served for the first time.
    Volume {
        /// Whether its space is set aside.
        provisioning: Provisioning,
        /// Capacity.
        bytes: u64,
    },
}

impl Backing {
    /// The word before the first colon.
    pub fn kind(&self) -> &'static str {
        match self {
            Backing::Ram { .. } => "ram",
            Backing::Null { .. } => "null",
            Backing::File { .. } => "file",
            Backing::Volume { provisioning, .. } => provisioning_word(*provisioning),
        }
    }

    /// The file, where there is one.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Backing::Ram { .. } | Backing::Null { .. } | Backing::Volume { .. } => None,
            Backing::File { path, .. } => Some(path),
        }
    }

    /// The capacity, where the configuration says it.
    pub fn bytes(&self) -> Option<u64> {
        match self {
            Backing::Ram { bytes } | Backing::Null { bytes } | Backing::Volume { bytes, .. } => Some(*bytes),
            Backing::File { bytes, .. } => *bytes,
        }
    }
}

/// `thin` or `thick`.
pub fn provisioning_word(provisioning: Provisioning) -> &'static str {
    match provisioning {
        Provisioning::Thin => "thin",
        Provisioning::Thick => "thick",
    }
}

/// What stands behind a unit and how it is shown. Invariant: `block_bytes` and `physical_block_bytes` are 512 or
/// 4096, the first not above the second; a size is within [`LUN_BYTES_MIN`]..=[`LUN_BYTES_MAX`] in steps of
/// [`LUN_STEP_BYTES`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LunSpec {
    /// Where the blocks are.
    pub backing: Backing,
    /// Logical block: 512 (default) or 4096.
    pub block_bytes: u32,
    /// Physical block: 512 or 4096 (default). 512 over 4096 is what disks call 512e.
    pub physical_block_bytes: u32,
    /// Write-protected.
    pub read_only: bool,
    /// The medium can be ejected (INQUIRY's RMB).
    pub removable: bool,
    /// GOOD for a write says only that the kernel has it (WCE=1). Default: that it is on the medium.
    pub write_back: bool,
    /// Whole blocks of zeroes in writes take no space (default). Only a [`Backing::Volume`] can be without.
    pub zero_detect: bool,
}

/// Refuses a capacity that no unit can have.
///
/// # Errors
/// Too small, too large, or no multiple of [`LUN_STEP_BYTES`].
pub fn check_capacity(bytes: u64) -> Result<u64, Mistake> {
    if !(LUN_BYTES_MIN..=LUN_BYTES_MAX).contains(&bytes) {
        let (min, max) = (Size(LUN_BYTES_MIN), Size(LUN_BYTES_MAX));
        let what = format!("{} bytes is no size that a LUN can have", Size(bytes));
        return Err(Mistake::new(what, format!("choose one from {min} to {max}")));
    }
    if !bytes.is_multiple_of(LUN_STEP_BYTES) {
        let what = format!("a LUN of {bytes} bytes does not end on a 4096-byte block");
        let down = bytes - bytes % LUN_STEP_BYTES;
        return Err(Mistake::new(what, format!("make it a multiple of 4096, as {down}")));
    }
    Ok(bytes)
}

impl LunSpec {
    /// `backing` as it is shown when nothing else is said.
    pub fn new(backing: Backing) -> LunSpec {
        LunSpec {
            backing,
            block_bytes: 512,
            physical_block_bytes: 4096,
            read_only: false,
            removable: false,
            write_back: false,
            zero_detect: true,
        }
    }

    fn apply(&mut self, option: &str) -> Result<(), Mistake> {
        match option.split_once('=') {
            None if option == "ro" => self.read_only = true,
            None if option == "removable" => self.removable = true,
            None if option == "writeback" => self.write_back = true,
            Some(("block", value)) => self.block_bytes = parse_block("block", value)?,
            Some(("physical", value)) => self.physical_block_bytes = parse_block("physical", value)?,
            Some(("zero", value)) => {
                if !matches!(self.backing, Backing::Volume { .. }) {
                    let what = format!("zero={value} is said of {}", self.backing.kind());
                    return Err(Mistake::new(what, "leave it out: only thin and thick detect zeroes"));
                }
                self.zero_detect = parse_switch("zero", value)?;
            }
            _ => {
                return Err(Mistake::new(
                    format!("{option:?} is no option of a LUN"),
                    "use block=512|4096, physical=512|4096, ro, removable, writeback or zero=on|off; \
                     a comma that belongs to the path is written twice",
                ));
            }
        }
        Ok(())
    }

    /// Holds the two block sizes against each other.
    ///
    /// # Errors
    /// A logical block larger than the physical one.
    pub fn check_blocks(&self) -> Result<(), Mistake> {
        if self.block_bytes > self.physical_block_bytes {
            return Err(Mistake::new(
                format!(
                    "a logical block of {} bytes does not fit a physical one of {}",
                    self.block_bytes, self.physical_block_bytes
                ),
                "use block=512 with physical=512 or physical=4096, or block=4096 with physical=4096",
            ));
        }
        Ok(())
    }
}

/// 512 or 4096.
///
/// # Errors
/// Anything else.
pub fn parse_block(name: &str, value: &str) -> Result<u32, Mistake> {
    match value {
        "512" => Ok(512),
        "4096" | "4k" | "4K" => Ok(4096),
        _ => Err(Mistake::new(
            format!("{name}={value} is no block size"),
            format!("write {name}=512 or {name}=4096"),
        )),
    }
}

/// `on` or `off`.
///
/// # Errors
/// Anything else.
pub fn parse_switch(name: &str, value: &str) -> Result<bool, Mistake> {
    match value {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err(Mistake::new(
            format!("{name}={value} is neither on nor off"),
            format!("write {name}=on or {name}=off"),
        )),
    }
}

impl FromStr for LunSpec {
    type Err = Mistake;

    fn from_str(text: &str) -> Result<LunSpec, Mistake> {
        let mut parts = split_commas(text).into_iter();
        let body = parts.next().unwrap_or_default();
        let mut spec = LunSpec::new(parse_backing(&body)?);
        let mut seen: Vec<String> = Vec::new();
        for option in parts {
            let name = option.split('=').next().unwrap_or_default().to_owned();
            spec.apply(&option)?;
            if seen.contains(&name) {
                return Err(Mistake::new(format!("{name} is said twice in {text:?}"), "say it once"));
            }
            seen.push(name);
        }
        // 4Kn is meant where only the logical size is said; only a physical size that was said can be too small.
        spec.check_blocks()?;
        Ok(spec)
    }
}

/// Cuts at single commas; a doubled one stands for itself.
fn split_commas(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut chars = text.chars().peekable();
    while let Some(char) = chars.next() {
        if char == ',' && chars.next_if_eq(&',').is_none() {
            parts.push(String::new());
        } else if let Some(last) = parts.last_mut() {
            last.push(char);
        }
    }
    parts
}

fn parse_backing(body: &str) -> Result<Backing, Mistake> {
    let form = "write thin:1T, thick:1T, file:PATH[:SIZE], ram:256M or null:1T, then options such as ,block=4096 ,ro";
    let Some((kind, rest)) = body.split_once(':') else {
        return Err(Mistake::new(format!("{body:?} is no LUN SPEC: no kind before a colon"), form));
    };
    let capacity = || rest.parse::<Size>().and_then(|size| check_capacity(size.0));
    match kind {
        "ram" => Ok(Backing::Ram { bytes: capacity()? }),
        "null" => Ok(Backing::Null { bytes: capacity()? }),
        "file" => parse_backing_file(rest),
        "thin" => Ok(Backing::Volume { provisioning: Provisioning::Thin, bytes: capacity()? }),
        "thick" => Ok(Backing::Volume { provisioning: Provisioning::Thick, bytes: capacity()? }),
        _ => Err(Mistake::new(format!("{kind:?} is no kind of LUN"), form)),
    }
}

fn parse_backing_file(rest: &str) -> Result<Backing, Mistake> {
    let (path, bytes) = split_path_size(rest, "file:")?;
    if path.is_empty() || path.contains('\0') {
        return Err(Mistake::new(
            "file: without a path",
            "write file:PATH:SIZE, as in file:/srv/lun0.img:64G",
        ));
    }
    Ok(Backing::File { path: PathBuf::from(path), bytes })
}

/// A pool's device as people write it: `PATH[:SIZE]`, by the rules of `file:` but for its commas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// As it was written.
    pub path: PathBuf,
    /// How much of it is used. `None`: all. A file that isn't there is made this large.
    pub bytes: Option<u64>,
}

impl FromStr for Device {
    type Err = Mistake;

    fn from_str(text: &str) -> Result<Device, Mistake> {
        let (path, bytes) = split_path_size(text, "")?;
        if path == "ram" && bytes.is_some() {
            return Err(Mistake::new(
                format!("{text:?} is memory, which is no device of a pool that is made while pollux serves"),
                "start pollux with --data ram:SIZE, or write ./ram:SIZE for a file of that name",
            ));
        }
        if path.is_empty() || path.contains('\0') {
            return Err(Mistake::new(
                format!("{text:?} names no device"),
                "write PATH or PATH:SIZE, as in /dev/disk/by-id/nvme-X or /srv/pool.img:1T",
            ));
        }
        Ok(Device { path: PathBuf::from(path), bytes })
    }
}

/// Cuts the SIZE off the end of `rest`, if it has one. `kind` stands before it in what people wrote.
fn split_path_size<'a>(rest: &'a str, kind: &str) -> Result<(&'a str, Option<u64>), Mistake> {
    Ok(match rest.rsplit_once(':') {
        Some((path, "")) => (path, None),
        Some((path, last)) if resembles_size(last) => {
            let size = last.parse::<Size>().and_then(|size| check_capacity(size.0));
            let bytes = size.map_err(|mistake| {
                let cure = format!(
                    "{}; if {last:?} belongs to the path, end the path with a colon: {kind}{rest}:",
                    mistake.cure
                );
                Mistake { cure, ..mistake }
            })?;
            (path, Some(bytes))
        }
        Some(_) | None => (rest, None),
    })
}

/// Whether somebody who wrote this after a colon meant a size, right or wrong: `64G`, `1GB`, `1.5T`, `10`.
fn resembles_size(text: &str) -> bool {
    let unit = text.trim_start_matches(|char: char| char.is_ascii_digit() || char == '.');
    text.starts_with(|char: char| char.is_ascii_digit())
        && unit.chars().all(|char| char.is_ascii_alphabetic())
}

impl fmt::Display for LunSpec {
    /// As [`FromStr`] reads it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.backing {
            Backing::Ram { bytes } => write!(f, "ram:{}", Size(*bytes))?,
            Backing::Null { bytes } => write!(f, "null:{}", Size(*bytes))?,
            Backing::Volume { provisioning, bytes } => {
                write!(f, "{}:{}", provisioning_word(*provisioning), Size(*bytes))?;
            }
            Backing::File { path, bytes } => {
                let path = path.to_string_lossy().replace(',', ",,");
                write!(f, "file:{path}")?;
                let last = path.rsplit_once(':').map(|(_, last)| last);
                match bytes {
                    Some(bytes) => write!(f, ":{}", Size(*bytes))?,
                    None if last.is_some_and(|last| last.is_empty() || resembles_size(last)) => {
                        f.write_str(":")?;
                    }
                    None => {}
                }
            }
        }
        let plain = LunSpec::new(Backing::Null { bytes: 0 });
        if self.block_bytes != plain.block_bytes {
            write!(f, ",block={}", self.block_bytes)?;
        }
        if self.physical_block_bytes != plain.physical_block_bytes {
            write!(f, ",physical={}", self.physical_block_bytes)?;
        }
        for (set, name) in
            [(self.read_only, "ro"), (self.removable, "removable"), (self.write_back, "writeback")]
        {
            if set {
                write!(f, ",{name}")?;
            }
        }
        if !self.zero_detect {
            f.write_str(",zero=off")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn file(path: &str, bytes: Option<u64>) -> Backing {
        Backing::File { path: PathBuf::from(path), bytes }
    }

    /// Goal: each form of the design page is read as it is meant. Method: a table.
    #[test]
    fn reads_every_form() {
        let gib = 1u64 << 30;
        for (text, backing) in [
            ("ram:256M", Backing::Ram { bytes: gib / 4 }),
            ("null:1T", Backing::Null { bytes: gib << 10 }),
            ("null:1t", Backing::Null { bytes: gib << 10 }),
            ("file:/a.img", file("/a.img", None)),
            ("file:/a:b.img:1G", file("/a:b.img", Some(gib))),
            ("file:/a,,b.img:1G", file("/a,b.img", Some(gib))),
            ("file:/dev/disk/by-path/pci-0000:00:1f.2", file("/dev/disk/by-path/pci-0000:00:1f.2", None)),
            ("file:/dev/bus:10:", file("/dev/bus:10", None)),
            ("file:/odd::", file("/odd:", None)),
            ("file:rel.img:1048576", file("rel.img", Some(1 << 20))),
            ("thin:1T", Backing::Volume { provisioning: Provisioning::Thin, bytes: gib << 10 }),
            ("thick:64g", Backing::Volume { provisioning: Provisioning::Thick, bytes: gib << 6 }),
        ] {
            assert_eq!(text.parse::<LunSpec>().map(|spec| spec.backing), Ok(backing), "{text}");
        }
        let spec: LunSpec = "ram:1G,block=4096,ro,removable,writeback".parse().unwrap();
        assert_eq!((spec.block_bytes, spec.physical_block_bytes), (4096, 4096));
        assert!(spec.read_only && spec.removable && spec.write_back);
        assert!(spec.zero_detect);
        let spec: LunSpec = "thin:1G,zero=off,ro".parse().unwrap();
        assert!(spec.read_only && !spec.zero_detect);
        let spec: LunSpec = "thick:1G,zero=on".parse().unwrap();
        assert!(spec.zero_detect);
        let spec: LunSpec = "ram:1G,physical=512".parse().unwrap();
        assert_eq!((spec.block_bytes, spec.physical_block_bytes), (512, 512));
    }

    /// Goal: each mistake names itself and its cure. Method: a table of text, a part of what, a part of the cure.
    #[test]
    fn tells_what_is_wrong_and_what_to_write() {
        for (text, what, cure) in [
            ("", "no kind", "ram:256M"),
            ("ram", "no kind", "ram:256M"),
            ("disk:1G", "\"disk\" is no kind", "file:PATH"),
            ("ram:1GB", "\"1GB\" is no size", "64G"),
            ("ram:", "\"\" is no size", "64G"),
            ("ram:-1", "\"-1\" is no size", "64G"),
            ("ram:99999999999T", "64 bits", "smaller"),
            ("ram:2000T", "2000T bytes is no size", "from 1M to 64T"),
            ("ram:1K", "1K bytes is no size", "from 1M"),
            ("ram:1048577", "does not end on a 4096-byte block", "1048576"),
            ("file:", "without a path", "file:PATH:SIZE"),
            ("file::1G", "without a path", "file:PATH:SIZE"),
            ("file:/a.img:1.5G", "\"1.5G\" is no size", "end the path with a colon: file:/a.img:1.5G:"),
            ("file:/a.img:64GiB", "\"64GiB\" is no size", "end the path with a colon"),
            ("thin:", "\"\" is no size", "64G"),
            ("thick:1K", "1K bytes is no size", "from 1M"),
            ("thin:1G,zero=yes", "zero=yes is neither on nor off", "zero=off"),
            ("thin:1G,zero", "\"zero\" is no option", "zero=on|off"),
            ("ram:1G,zero=off", "zero=off is said of ram", "thin and thick"),
            ("ram:1G,rw", "\"rw\" is no option", "removable"),
            ("ram:1G,", "\"\" is no option", "removable"),
            ("ram:1G,block=1024", "block=1024 is no block size", "block=512"),
            ("ram:1G,ro,ro", "ro is said twice", "once"),
            ("ram:1G,block=4096,physical=512", "does not fit", "physical=4096"),
        ] {
            let mistake = text.parse::<LunSpec>().expect_err(text);
            assert!(mistake.what.contains(what), "{text}: {mistake}");
            assert!(mistake.cure.contains(cure), "{text}: {mistake}");
        }
    }

    /// Goal: a pool's device is read as `file:` reads its path and size. Method: tables.
    #[test]
    fn reads_devices() {
        for (text, path, bytes) in [
            ("/dev/sdb", "/dev/sdb", None),
            ("/srv/p.img:1T", "/srv/p.img", Some(1 << 40)),
            ("/srv/a,b:1T:", "/srv/a,b:1T", None),
        ] {
            assert_eq!(text.parse::<Device>(), Ok(Device { path: PathBuf::from(path), bytes }), "{text}");
        }
        for (text, what, cure) in [
            ("", "\"\" names no device", "PATH:SIZE"),
            (":1T", "\":1T\" names no device", "PATH:SIZE"),
            ("/a:1.5T", "\"1.5T\" is no size", "with a colon: /a:1.5T:"),
        ] {
            let mistake = text.parse::<Device>().expect_err(text);
            assert!(mistake.what.contains(what) && mistake.cure.contains(cure), "{text}: {mistake}");
        }
    }

    fn any_backing() -> impl Strategy<Value = Backing> {
        let bytes = (LUN_BYTES_MIN / LUN_STEP_BYTES..=LUN_BYTES_MAX / LUN_STEP_BYTES)
            .prop_map(|n| n * LUN_STEP_BYTES);
        prop_oneof![
            bytes.clone().prop_map(|bytes| Backing::Ram { bytes }),
            bytes.clone().prop_map(|bytes| Backing::Null { bytes }),
            (any::<bool>(), bytes.clone()).prop_map(|(thick, bytes)| Backing::Volume {
                provisioning: if thick { Provisioning::Thick } else { Provisioning::Thin },
                bytes,
            }),
            ("[a-z/:,0-9G. ]{1,20}", proptest::option::of(bytes))
                .prop_map(|(path, bytes)| file(&path, bytes)),
        ]
    }

    proptest! {
        /// Goal: what is shown can be typed in again. Method: Display, then FromStr, on paths made of separators.
        #[test]
        fn comes_back_as_it_was(backing in any_backing(), large in any::<[bool; 2]>(), flags in any::<[bool; 4]>()) {
            let mut spec = LunSpec::new(backing);
            let is_volume = matches!(spec.backing, Backing::Volume { .. });
            spec.physical_block_bytes = if large[0] { 4096 } else { 512 };
            spec.block_bytes = if large[0] && large[1] { 4096 } else { 512 };
            [spec.read_only, spec.removable, spec.write_back, spec.zero_detect] = flags;
            spec.zero_detect |= !is_volume;
            prop_assert_eq!(spec.to_string().parse::<LunSpec>(), Ok(spec));
        }

        /// Goal: sizes survive the round trip.
        #[test]
        fn sizes_come_back(bytes: u64, shift in 0u32..50) {
            let size = Size(bytes >> shift << shift);
            prop_assert_eq!(size.to_string().parse::<Size>(), Ok(size));
        }

        /// Goal: no text panics.
        #[test]
        fn takes_any_text(text in "\\PC{0,40}", kind in "(ram|null|file|thin|thick|):") {
            let _ = text.parse::<LunSpec>();
            let _ = text.parse::<Size>();
            let _ = text.parse::<Device>();
            let _ = format!("{kind}{text}").parse::<LunSpec>();
        }
    }
}
