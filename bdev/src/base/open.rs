//! Opening a file or block device: the one place of this crate that meets the kernel, at start and never on the IO
//! path. What comes out is a descriptor for the rings and the facts that [`crate::base::uring`] works by.
//!
//! Nothing here changes data: a file is made or lengthened only when it isn't there or is empty, and what the file
//! system can do is tried past the file's end.

use reactor::buf::{PAGE_BYTES, Pool, PoolConfig};
use rustix::fs::{AtFlags, FallocateFlags, FlockOperation, Mode, OFlags, StatxFlags};
use rustix::io::Errno;
use std::fmt;
use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What there is at a path.
#[derive(Debug)]
pub struct Backing {
    /// For the rings. Closing it gives the lock up.
    pub file: OwnedFd,
    /// Its length.
    pub bytes: u64,
    /// Offsets and lengths of reads and writes must be multiples of this: a power of two up to a page.
    pub align_bytes: u32,
    /// Past the page cache.
    pub direct: bool,
    /// Holes can be punched.
    pub punch_hole: bool,
    /// Ranges can be zeroed without writing.
    pub zero_range: bool,
    /// Space comes back in units of this.
    pub unmap_granularity_bytes: u32,
    /// The medium turns.
    pub rotational: bool,
}

/// Why a file can't be a device. Says what to do.
#[derive(Debug)]
pub enum FileError {
    /// Not there, and nobody said how large it should be.
    Missing,
    /// A directory, a pipe, a terminal, ...
    NotADisk,
    /// Another process, or another device of this one, has it.
    InUse,
    /// There, but of another size than asked for.
    SizeDiffers {
        /// What it has.
        has_bytes: u64,
        /// What was asked for.
        asked_bytes: u64,
    },
    /// Empty, and nobody said how large it should be.
    Empty,
    /// Direct IO wants more than a page.
    Alignment {
        /// What it wants.
        bytes: u32,
    },
    /// The kernel refused.
    Kernel {
        /// What, as in "can't ...".
        step: &'static str,
        /// Why.
        error: std::io::Error,
    },
}

impl FileError {
    fn kernel(step: &'static str) -> impl Fn(Errno) -> FileError {
        move |errno| FileError::Kernel { step, error: errno.into() }
    }
}

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FileError::Missing => {
                write!(f, "there is no such file; name an existing one, or give a size to have it created")
            }
            FileError::NotADisk => write!(f, "neither a regular file nor a block device; name one of those"),
            FileError::InUse => write!(
                f,
                "in use by another process or another unit; stop that one, or name another file (`fuser -v` tells \
                 who, a mounted device must be unmounted)"
            ),
            FileError::SizeDiffers { has_bytes, asked_bytes } => write!(
                f,
                "has {has_bytes} bytes and not {asked_bytes}; leave the size out to use it as it is, or name another"
            ),
            FileError::Empty => write!(f, "empty; give a size to have it lengthened"),
            FileError::Alignment { bytes } => {
                write!(
                    f,
                    "direct IO there wants multiples of {bytes} bytes, over {PAGE_BYTES}; name another place"
                )
            }
            FileError::Kernel { step, error } => {
                write!(f, "can't {step}: {error}")?;
                match error.kind() {
                    std::io::ErrorKind::PermissionDenied => {
                        write!(f, "; give this user access to it, or serve it read-only")
                    }
                    std::io::ErrorKind::NotFound => write!(f, "; create the directory it is to be in"),
                    std::io::ErrorKind::ReadOnlyFilesystem => write!(f, "; serve it read-only"),
                    std::io::ErrorKind::FileTooLarge => {
                        write!(f, "; that file system has no files this large")
                    }
                    _ => Ok(()),
                }
            }
        }
    }
}

impl std::error::Error for FileError {}

/// Opens what is at `path`, for this process alone. A file that isn't there is created sparse when `size_bytes` is
/// given.
///
/// # Errors
/// See [`FileError`].
pub fn open(path: &Path, size_bytes: Option<u64>, read_only: bool) -> Result<Backing, FileError> {
    let block_device = match std::fs::metadata(path) {
        Ok(metadata) if metadata.file_type().is_block_device() => true,
        Ok(metadata) if metadata.is_file() => false,
        Ok(_) => return Err(FileError::NotADisk),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let may_create = size_bytes.is_some() && !read_only;
            if !may_create {
                return Err(FileError::Missing);
            }
            false
        }
        Err(error) => return Err(FileError::Kernel { step: "look at it", error }),
    };
    let (file, direct) = open_exclusively(path, block_device, size_bytes.is_some(), read_only)?;
    let mut file = File::from(file);
    let bytes = settle_size(&mut file, path, block_device, size_bytes, read_only)?;
    let file = OwnedFd::from(file);
    let queue = Queue::of(&file, block_device);
    let align_bytes = if direct { direct_align(&file, block_device, &queue)? } else { 1 };
    let mut backing = Backing {
        bytes,
        align_bytes,
        direct,
        punch_hole: false,
        zero_range: false,
        unmap_granularity_bytes: 0,
        rotational: queue.number("rotational") == Some(1),
        file,
    };
    if block_device {
        let discards = queue.number("discard_max_bytes").is_some_and(|bytes| bytes != 0);
        // The kernel punches holes into a device only if its zeroing command frees space.
        let zeroes = queue.number("write_zeroes_max_bytes").is_some_and(|bytes| bytes != 0);
        backing.punch_hole = discards && zeroes && !read_only;
        // The kernel writes zeroes itself where the device has no command, still without our moving data.
        backing.zero_range = !read_only;
        let granularity = queue.number("discard_granularity").unwrap_or(0) as u32;
        backing.unmap_granularity_bytes = granularity.max(align_bytes).max(512);
    } else {
        let unit = rustix::fs::fstatvfs(&backing.file).map_or(PAGE_BYTES as u64, |fs| fs.f_frsize);
        let unit = unit.clamp(512, 1 << 20) as u32;
        backing.unmap_granularity_bytes = unit;
        if !read_only {
            (backing.punch_hole, backing.zero_range) = try_fallocate(&backing.file, bytes, unit);
        }
    }
    if !backing.punch_hole {
        backing.unmap_granularity_bytes = 0;
    }
    Ok(backing)
}

/// An open file as [`crate::pool::Medium`]: beside the descriptor for the rings, which has the lock, and through the page
/// cache, so that any length can be read. Used before the reactors run, and never again.
#[derive(Debug)]
pub struct FileMedium {
    file: File,
    bytes: u64,
}

impl FileMedium {
    /// What is open already. `bytes` is its length, also where nothing stands at its end yet.
    pub fn of(file: File, bytes: u64) -> FileMedium {
        FileMedium { file, bytes }
    }

    /// Opens what is at `path` once more. `bytes` is its length.
    ///
    /// # Errors
    /// The kernel's.
    pub fn open(path: &Path, bytes: u64, read_only: bool) -> Result<FileMedium, FileError> {
        let file = std::fs::OpenOptions::new().read(true).write(!read_only).open(path);
        let file = file.map_err(|error| FileError::Kernel { step: "open it", error })?;
        Ok(FileMedium { file, bytes })
    }
}

impl crate::pool::Medium for FileMedium {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn read(&self, offset_bytes: u64, into: &mut [u8]) -> std::io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(&self.file, into, offset_bytes)
    }

    fn write(&self, offset_bytes: u64, from: &[u8]) -> std::io::Result<()> {
        std::os::unix::fs::FileExt::write_all_at(&self.file, from, offset_bytes)
    }

    fn next_data(&self, from: u64) -> std::io::Result<Option<std::ops::Range<u64>>> {
        use rustix::fs::SeekFrom::{Data, Hole};
        if from >= self.bytes {
            return Ok(None);
        }
        // Nobody reads or writes by the descriptor's own place.
        match rustix::fs::seek(&self.file, Data(from)) {
            Ok(data) => {
                let end = rustix::fs::seek(&self.file, Hole(data))?;
                Ok((data < self.bytes).then(|| data..end.clamp(data + 1, self.bytes.max(data + 1))))
            }
            Err(Errno::NXIO) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    fn sync(&self) -> std::io::Result<()> {
        self.file.sync_data()
    }
}

/// How long a file may still be held by a process that has ended: the kernel takes its io_uring apart, and lets go of
/// the files registered there, some time after the process is gone.
const HELD_MAX: Duration = if cfg!(test) { Duration::from_millis(50) } else { Duration::from_secs(3) };

/// How often it is tried again meanwhile.
const HELD_STEP: Duration = Duration::from_millis(10);

/// The open file and whether it is open for direct IO. Waits [`HELD_MAX`] for whoever has it.
fn open_exclusively(
    path: &Path,
    block_device: bool,
    may_create: bool,
    read_only: bool,
) -> Result<(OwnedFd, bool), FileError> {
    let mut waited = Duration::ZERO;
    loop {
        match try_open_exclusively(path, block_device, may_create, read_only) {
            Err(FileError::InUse) if waited < HELD_MAX => {
                if waited.is_zero() {
                    tracing::info!(path = %path.display(), "in use: waiting for a process that is going");
                }
                std::thread::sleep(HELD_STEP);
                waited += HELD_STEP;
            }
            result => return result,
        }
    }
}

fn try_open_exclusively(
    path: &Path,
    block_device: bool,
    may_create: bool,
    read_only: bool,
) -> Result<(OwnedFd, bool), FileError> {
    // A pipe that took the file's place meanwhile must not hold us up.
    let mut flags = OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    flags |= if read_only { OFlags::RDONLY } else { OFlags::RDWR };
    if block_device {
        // Refused while it is mounted or somebody else has it like this.
        flags |= OFlags::EXCL;
    } else if may_create && !read_only {
        flags |= OFlags::CREATE;
    }
    let mode = Mode::RUSR | Mode::WUSR;
    let (file, direct) = match rustix::fs::open(path, flags | OFlags::DIRECT, mode) {
        Err(Errno::INVAL) => {
            tracing::warn!(
                path = %path.display(),
                "no direct IO on this file system: going through the page cache, durable all the same"
            );
            (rustix::fs::open(path, flags, mode), false)
        }
        opened => (opened, true),
    };
    let file = match file {
        Err(Errno::BUSY) => return Err(FileError::InUse),
        opened => opened.map_err(FileError::kernel("open it"))?,
    };
    let lock = if read_only {
        FlockOperation::NonBlockingLockShared
    } else {
        FlockOperation::NonBlockingLockExclusive
    };
    match rustix::fs::flock(&file, lock) {
        Ok(()) => Ok((file, direct)),
        Err(Errno::WOULDBLOCK) => Err(FileError::InUse),
        // A file system without locks: nothing protects against a second process there.
        Err(Errno::OPNOTSUPP | Errno::NOLCK | Errno::NOSYS) => {
            tracing::warn!(path = %path.display(), "no locks on this file system: let nobody else write to it");
            Ok((file, direct))
        }
        Err(errno) => Err(FileError::kernel("lock it")(errno)),
    }
}

/// The size; a new or empty file gets the one asked for first.
fn settle_size(
    file: &mut File,
    path: &Path,
    block_device: bool,
    asked_bytes: Option<u64>,
    read_only: bool,
) -> Result<u64, FileError> {
    let kernel = |step| move |error| FileError::Kernel { step, error };
    let metadata = file.metadata().map_err(kernel("look at it"))?;
    if metadata.is_file() == block_device {
        return Err(FileError::NotADisk);
    }
    // Now that it can't be a pipe: the ring would take the flag for "rather fail than wait".
    let flags = rustix::fs::fcntl_getfl(&*file).map_err(FileError::kernel("read its flags"))?;
    rustix::fs::fcntl_setfl(&*file, flags - OFlags::NONBLOCK).map_err(FileError::kernel("set its flags"))?;
    // A block device's length is where its end is.
    let has_bytes = file.seek(SeekFrom::End(0)).map_err(kernel("find its end"))?;
    match asked_bytes {
        Some(asked_bytes) if has_bytes == 0 && !block_device && !read_only => {
            file.set_len(asked_bytes).map_err(kernel("give it its size"))?;
            file.sync_all().map_err(kernel("make its size durable"))?;
            sync_directory_of(path).map_err(kernel("make its name durable"))?;
            Ok(asked_bytes)
        }
        Some(asked_bytes) if asked_bytes != has_bytes => {
            Err(FileError::SizeDiffers { has_bytes, asked_bytes })
        }
        None if has_bytes == 0 => Err(FileError::Empty),
        _ => Ok(has_bytes),
    }
}

fn sync_directory_of(path: &Path) -> std::io::Result<()> {
    let parent = path.canonicalize()?.parent().map_or_else(|| PathBuf::from("/"), Path::to_path_buf);
    File::open(parent)?.sync_all()
}

/// What direct IO must be aligned to: the kernel says (since Linux 6.1), a block device has a logical block, and
/// elsewhere a read is tried.
fn direct_align(file: &OwnedFd, block_device: bool, queue: &Queue) -> Result<u32, FileError> {
    let told = rustix::fs::statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN)
        .ok()
        .filter(|statx| statx.stx_mask & StatxFlags::DIOALIGN.bits() != 0 && statx.stx_dio_offset_align != 0);
    let align_bytes = match told {
        // Buffers are aligned to pages, and what is continued inside one to this.
        Some(statx) => statx.stx_dio_offset_align.max(statx.stx_dio_mem_align),
        None if block_device => {
            rustix::fs::ioctl_blksszget(file).map_err(FileError::kernel("ask for its block size"))?
        }
        None => trial_align(file)?.max(queue.number("logical_block_size").unwrap_or(0) as u32),
    };
    let align_bytes = align_bytes.max(512);
    if align_bytes as usize > PAGE_BYTES || !align_bytes.is_power_of_two() {
        return Err(FileError::Alignment { bytes: align_bytes });
    }
    Ok(align_bytes)
}

/// The smallest alignment that a read gets through with. Some file systems check it only where there are data, so
/// the caller also asks the disk below.
fn trial_align(file: &OwnedFd) -> Result<u32, FileError> {
    let failed = |error| FileError::Kernel { step: "get memory to try a read", error };
    let mut pool = Pool::new(PoolConfig { counts: [2, 0, 0], arena: u16::MAX }).map_err(failed)?;
    for align_bytes in [512u32, 1024, 2048, PAGE_BYTES as u32] {
        let mut buf = pool.take(align_bytes as usize).expect("two were made");
        match rustix::io::pread(file, &mut *buf, u64::from(align_bytes)) {
            Ok(_) => return Ok(align_bytes),
            Err(Errno::INVAL) => {}
            Err(errno) => return Err(FileError::kernel("read it")(errno)),
        }
    }
    Err(FileError::Alignment { bytes: 2 * PAGE_BYTES as u32 })
}

/// Whether the file system punches holes and zeroes ranges. Tried on the blocks behind the end, which are nobody's
/// data; what the second try allocates there is given back.
fn try_fallocate(file: &OwnedFd, bytes: u64, unit: u32) -> (bool, bool) {
    let keep = FallocateFlags::KEEP_SIZE;
    let behind = bytes.next_multiple_of(u64::from(unit));
    let unit = u64::from(unit);
    let works = |flags| match rustix::fs::fallocate(file, flags | keep, behind, unit) {
        // Full is not unable.
        Ok(()) | Err(Errno::NOSPC | Errno::DQUOT) => true,
        Err(_) => false,
    };
    let punch_hole = works(FallocateFlags::PUNCH_HOLE);
    let zero_range = works(FallocateFlags::ZERO_RANGE);
    if zero_range && rustix::fs::ftruncate(file, bytes).is_err() {
        tracing::debug!("a block behind the file's end stays allocated");
    }
    (punch_hole, zero_range)
}

/// Memory that programs could still get without others having to give some up, if the kernel tells. What a control
/// group allows may be less.
pub fn memory_available_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// What the kernel tells of the block device's queue, in sysfs.
struct Queue {
    directory: Option<PathBuf>,
}

impl Queue {
    /// The queue of a block device, or of the one that a file's file system is on.
    fn of(file: &impl AsFd, block_device: bool) -> Queue {
        let number = file.as_fd().try_clone_to_owned().and_then(|file| File::from(file).metadata());
        let directory = number.ok().and_then(|metadata| {
            let device = if block_device { metadata.rdev() } else { metadata.dev() };
            let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
            let place = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
            // A partition's queue is its disk's.
            [place.join("queue"), place.join("../queue")].into_iter().find(|directory| directory.is_dir())
        });
        Queue { directory }
    }

    fn number(&self, name: &str) -> Option<u64> {
        let text = std::fs::read_to_string(self.directory.as_ref()?.join(name)).ok()?;
        text.trim().parse().ok()
    }
}
