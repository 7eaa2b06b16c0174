//! Configuration → layers. [`open`] runs once on the main thread and meets files and their locks; then each reactor
//! makes its own stacks from what was opened with [`Opened::stacks_for`].
//!
//! ```text
//! ram, null           Atomic<Ram>, Atomic<Null>
//! file                Atomic<Uring>
//! file, small blocks  Atomic<Align<Uring>>
//! ```

use crate::align::Align;
use crate::atomic::{Atomic, Steps};
use crate::base::null::Null;
use crate::base::open::{Backing, FileError, memory_available_bytes};
use crate::base::ram::{self, Ram};
use crate::base::uring::{UNMAP_STEP_BYTES, Uring, UringConfig, ZEROES_STEP_BYTES};
use crate::geometry::Geometry;
use crate::io::{BdevId, Done, Io, Tag};
use crate::layer::{Bdev, Effects, Place};
use crate::lent::Lent;
use crate::shard::SHARD_IOS_MAX;
use crate::stripe::Deal;
use reactor::Core;
use reactor::buf::{BUF_BYTES_MAX, Buf, PAGE_BYTES, Pool};
use reactor::disk::{DiskDone, FileId};
use reactor::slots::Slot;
use std::fmt;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

/// The largest device: 64 TiB.
pub const DEVICE_BYTES_MAX: u64 = 64 << 40;

/// How many devices there can be: what fits an operation's user data.
pub const DEVICES_MAX: usize = 1 << 16;

/// Buffers of a core for reads and writes smaller than a file's physical block, for each file that needs them.
pub const BOUNCE_BUFS: usize = 8;

/// Buffers of a core to write zeroes from, for each file whose file system can't zero a range. Where it can, one page
/// is kept in case it changes its mind.
pub const ZERO_BUFS: usize = 4;

/// What a device is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BdevKind {
    /// Memory; gone when the program ends.
    Ram {
        /// Its size.
        bytes: u64,
    },
    /// Nothing: reads as zeroes, forgets what is written.
    Null {
        /// The size it claims.
        bytes: u64,
    },
    /// A regular file or block device.
    File {
        /// Where.
        path: PathBuf,
        /// Its size: a file that isn't there is created with it, one that is must have it. `None`: as it is.
        bytes: Option<u64>,
    },
}

impl fmt::Display for BdevKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BdevKind::Ram { bytes } => write!(f, "ram:{bytes}"),
            BdevKind::Null { bytes } => write!(f, "null:{bytes}"),
            BdevKind::File { path, .. } => write!(f, "file:{}", path.display()),
        }
    }
}

/// One device, as configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BdevConfig {
    /// What it is made of.
    pub kind: BdevKind,
    /// Logical block: 512 or 4096.
    pub block_bytes: u32,
    /// Physical block to be reported: 512 or 4096, at least the logical one. A file on a disk that can't write
    /// as little reports what it can.
    pub physical_block_bytes: u32,
    /// No write is possible.
    pub read_only: bool,
    /// Acknowledge writes before they are on the medium. Means something for files only.
    pub write_cache: bool,
}

/// Why a device can't be opened: which, what is wrong, what to do.
#[derive(Debug)]
pub struct OpenError {
    /// The device as configured, e.g. `file:/dev/sdb`.
    pub device: String,
    /// What is wrong.
    pub reason: Reason,
}

/// See [`OpenError`].
#[derive(Debug)]
pub enum Reason {
    /// Not 512 or 4096.
    BlockBytes(u32),
    /// Not 512 or 4096, or smaller than the logical block.
    PhysicalBlockBytes(u32),
    /// No multiple of the block.
    NotWholeBlocks {
        /// The size.
        bytes: u64,
        /// The block.
        block_bytes: u32,
    },
    /// Not even a block.
    TooSmall,
    /// Over [`DEVICE_BYTES_MAX`].
    TooLarge {
        /// The size.
        bytes: u64,
    },
    /// There isn't as much memory. All of it is taken at start, so that it is not missed under load.
    NoMemory {
        /// How much all devices in memory up to this one need.
        bytes: u64,
        /// How much there is, if the kernel tells.
        available_bytes: Option<u64>,
    },
    /// The core's buffer pool is too small for the few buffers that a file needs.
    NoBuffers,
    /// Over [`DEVICES_MAX`].
    TooMany,
    /// About the file.
    File(FileError),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::BlockBytes(bytes) => {
                write!(f, "a logical block of {bytes} bytes is not possible; choose 512 or 4096")
            }
            Reason::PhysicalBlockBytes(bytes) => write!(
                f,
                "a physical block of {bytes} bytes is not possible; choose 512 or 4096, not less than the logical block"
            ),
            Reason::NotWholeBlocks { bytes, block_bytes } => write!(
                f,
                "{bytes} bytes are no whole number of blocks of {block_bytes}; give a multiple of {block_bytes}"
            ),
            Reason::TooSmall => write!(f, "smaller than one block; give it a size"),
            Reason::TooLarge { bytes } => write!(
                f,
                "{bytes} bytes are more than the {DEVICE_BYTES_MAX} (64 TiB) a device can have; make it smaller"
            ),
            Reason::NoMemory { bytes, available_bytes } => {
                write!(f, "{bytes} bytes of memory are not to be had")?;
                if let Some(available_bytes) = available_bytes {
                    write!(f, ", {available_bytes} are available")?;
                }
                write!(f, "; make it smaller, or use a file")
            }
            Reason::NoBuffers => {
                write!(
                    f,
                    "no buffers are left for it; give each core more buffer memory, or have fewer files"
                )
            }
            Reason::TooMany => write!(f, "more than {DEVICES_MAX} devices; have fewer"),
            Reason::File(error) => error.fmt(f),
        }
    }
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.device, self.reason)
    }
}

impl std::error::Error for OpenError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.reason {
            Reason::File(FileError::Kernel { error, .. }) => Some(error),
            _ => None,
        }
    }
}

/// What one device's stacks are made from.
#[derive(Debug)]
enum Plan {
    Ram,
    Null,
    File(UringConfig),
}

/// Every device, opened. Shared by all cores.
#[derive(Debug)]
pub struct Opened {
    names: Vec<String>,
    plans: Vec<Plan>,
    geometries: Arc<[Geometry]>,
    files: Vec<OwnedFd>,
    /// What all devices in memory take.
    ram_bytes: u64,
}

/// Opens the devices, in the order of their [`BdevId`]s.
///
/// # Errors
/// The first that can't be opened; the others are closed again. Files may have been created.
pub fn open(configs: &[BdevConfig]) -> Result<Opened, OpenError> {
    let mut opened = Opened {
        names: Vec::new(),
        plans: Vec::new(),
        geometries: Arc::default(),
        files: Vec::new(),
        ram_bytes: 0,
    };
    let mut geometries = Vec::with_capacity(configs.len());
    for config in configs {
        let device = config.kind.to_string();
        match opened.add(config) {
            Ok(geometry) => geometries.push(geometry),
            Err(reason) => return Err(OpenError { device, reason }),
        }
        opened.names.push(device);
    }
    opened.geometries = geometries.into();
    Ok(opened)
}

impl Opened {
    fn add(&mut self, config: &BdevConfig) -> Result<Geometry, Reason> {
        let BdevConfig { block_bytes, physical_block_bytes, read_only, .. } = *config;
        if !matches!(block_bytes, 512 | 4096) {
            return Err(Reason::BlockBytes(block_bytes));
        }
        if !matches!(physical_block_bytes, 512 | 4096) || physical_block_bytes < block_bytes {
            return Err(Reason::PhysicalBlockBytes(physical_block_bytes));
        }
        if self.plans.len() == DEVICES_MAX {
            return Err(Reason::TooMany);
        }
        let mut geometry = Geometry {
            block_bytes,
            physical_block_bytes,
            blocks: 0,
            unmap_granularity_bytes: 0,
            write_zeroes: true,
            write_cache: false,
            read_only,
            rotational: false,
            pooled: false,
            atomic_bytes: 0,
        };
        let plan = match &config.kind {
            BdevKind::Ram { bytes } => {
                geometry.blocks = whole_blocks(*bytes, block_bytes)?;
                geometry.unmap_granularity_bytes = ram::UNMAP_GRANULARITY_BYTES;
                // Said here rather than by the kernel, which would end the process while it takes the memory.
                self.ram_bytes += ram::instance_bytes(*bytes);
                let (bytes, available_bytes) = (self.ram_bytes, memory_available_bytes());
                if available_bytes.is_some_and(|available_bytes| bytes > available_bytes) {
                    return Err(Reason::NoMemory { bytes, available_bytes });
                }
                Plan::Ram
            }
            BdevKind::Null { bytes } => {
                geometry.blocks = whole_blocks(*bytes, block_bytes)?;
                geometry.unmap_granularity_bytes = ram::UNMAP_GRANULARITY_BYTES;
                Plan::Null
            }
            BdevKind::File { path, bytes } => {
                if let Some(bytes) = bytes {
                    whole_blocks(*bytes, block_bytes)?;
                }
                let backing = crate::base::open::open(path, *bytes, read_only).map_err(Reason::File)?;
                geometry = file_geometry(geometry, &backing, config.write_cache)?;
                let uring = UringConfig {
                    bdev: BdevId(self.plans.len() as u16),
                    file: FileId(self.files.len() as u16),
                    align_bytes: backing.align_bytes,
                    punch_hole: backing.punch_hole,
                    zero_range: backing.zero_range,
                };
                self.files.push(backing.file);
                Plan::File(uring)
            }
        };
        self.plans.push(plan);
        Ok(geometry)
    }

    /// Every device's shape, by [`BdevId`].
    pub fn geometries(&self) -> Arc<[Geometry]> {
        Arc::clone(&self.geometries)
    }

    /// Memory that devices in memory take.
    pub fn ram_bytes(&self) -> u64 {
        self.ram_bytes
    }

    /// Takes one more file for the rings, which no device of the configuration has: a pool's member.
    pub fn add_file(&mut self, file: OwnedFd) -> FileId {
        self.files.push(file);
        FileId(self.files.len() as u16 - 1)
    }

    /// The files for every reactor's ring, by [`FileId`]; the second time, nothing. Closing one unlocks it.
    pub fn take_files(&mut self) -> Vec<OwnedFd> {
        std::mem::take(&mut self.files)
    }

    /// The stacks of one of `cores` cores, by [`BdevId`]. To be called on that core's thread, whose node the memory is
    /// to be on. Files take their few buffers from the core's `pool` for good: [`BOUNCE_BUFS`] and [`ZERO_BUFS`].
    ///
    /// # Errors
    /// When memory or buffers don't suffice.
    pub fn stacks_for(&self, core: Core, cores: u16, pool: &mut Pool) -> Result<Vec<Stack>, OpenError> {
        let deal = Deal::among(cores);
        let devices = self.plans.iter().zip(self.geometries.iter()).zip(&self.names);
        devices
            .map(|((plan, &geometry), device)| {
                plan.stack(geometry, deal, core, pool)
                    .map_err(|reason| OpenError { device: device.clone(), reason })
            })
            .collect()
    }
}

impl Plan {
    fn stack(&self, geometry: Geometry, deal: Deal, core: Core, pool: &mut Pool) -> Result<Stack, Reason> {
        let capacity = SHARD_IOS_MAX;
        match self {
            Plan::Ram => {
                let ram = Ram::new(geometry, deal, core)
                    .map_err(|_| Reason::NoMemory { bytes: geometry.bytes(), available_bytes: None })?;
                let steps = Steps { zeroes_bytes: ram::STEP_BYTES, unmap_bytes: ram::STEP_BYTES };
                Ok(Stack::Ram(Atomic::over(ram, steps, capacity)))
            }
            Plan::Null => {
                // Forgetting takes no time, however much it is.
                let steps = Steps { zeroes_bytes: DEVICE_BYTES_MAX, unmap_bytes: DEVICE_BYTES_MAX };
                Ok(Stack::Null(Atomic::over(Null::new(geometry), steps, capacity)))
            }
            Plan::File(config) => {
                let zeroes = match (geometry.read_only, config.zero_range) {
                    (true, _) => Vec::new(),
                    (false, true) => take(pool, 1, PAGE_BYTES)?,
                    (false, false) => take(pool, ZERO_BUFS, BUF_BYTES_MAX)?,
                };
                let uring = Uring::new(geometry, *config, zeroes, capacity);
                let steps = Steps { zeroes_bytes: ZEROES_STEP_BYTES, unmap_bytes: UNMAP_STEP_BYTES };
                if config.align_bytes <= geometry.block_bytes {
                    return Ok(Stack::File(Atomic::over(uring, steps, capacity)));
                }
                let bounces = take(pool, BOUNCE_BUFS, BUF_BYTES_MAX)?;
                let align = Align::over(uring, config.align_bytes, bounces, capacity);
                Ok(Stack::SmallBlocks(Atomic::over(align, steps, capacity)))
            }
        }
    }
}

fn take(pool: &mut Pool, count: usize, bytes: usize) -> Result<Vec<Buf>, Reason> {
    (0..count).map(|_| pool.take(bytes).ok_or(Reason::NoBuffers)).collect()
}

fn whole_blocks(bytes: u64, block_bytes: u32) -> Result<u64, Reason> {
    if bytes > DEVICE_BYTES_MAX {
        return Err(Reason::TooLarge { bytes });
    }
    if !bytes.is_multiple_of(u64::from(block_bytes)) {
        return Err(Reason::NotWholeBlocks { bytes, block_bytes });
    }
    if bytes == 0 {
        return Err(Reason::TooSmall);
    }
    Ok(bytes / u64::from(block_bytes))
}

/// What is known once the file is open. What is left over behind its last whole block is not used.
fn file_geometry(asked: Geometry, backing: &Backing, write_cache: bool) -> Result<Geometry, Reason> {
    let unit = u64::from(asked.block_bytes.max(backing.align_bytes));
    let bytes = backing.bytes - backing.bytes % unit;
    let blocks = whole_blocks(bytes, asked.block_bytes)?;
    // What the disk can't write in one piece is no physical block, whatever was asked for.
    let physical_block_bytes = asked.physical_block_bytes.max(backing.align_bytes);
    Ok(Geometry {
        blocks,
        physical_block_bytes,
        unmap_granularity_bytes: backing.unmap_granularity_bytes,
        write_zeroes: backing.zero_range,
        write_cache,
        rotational: backing.rotational,
        ..asked
    })
}

/// Where a volume's layers end: the shard carries what comes here to the pool and back.
#[derive(Debug)]
pub struct Port {
    geometry: Geometry,
}

impl Bdev for Port {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    #[inline]
    fn submit(&mut self, io: Io, effects: &mut Effects) {
        effects.pool.push_back(io);
    }

    fn complete(&mut self, _: DiskDone, _: &mut Effects) {
        debug_assert!(false, "the pool has the disks");
    }
}

/// One core's layers of one device. The variants are all the stacks there are.
#[derive(Debug)]
#[allow(
    clippy::large_enum_variant,
    reason = "one a device and core, made once and never moved on the IO path"
)]
pub enum Stack {
    /// Memory.
    Ram(Atomic<Ram>),
    /// Nothing.
    Null(Atomic<Null>),
    /// A file whose disk writes blocks as small as ours.
    File(Atomic<Uring>),
    /// A file whose disk doesn't.
    SmallBlocks(Atomic<Align<Uring>>),
    /// A volume of a pool.
    Volume(Atomic<Port>),
}

/// The longest range of a volume that goes down at once: 1,024 slots of a map.
const VOLUME_STEP_BYTES: u64 = 64 << 20;

impl Stack {
    /// The layers over a volume of a pool.
    pub fn of_volume(geometry: Geometry) -> Stack {
        let steps = Steps { zeroes_bytes: VOLUME_STEP_BYTES, unmap_bytes: VOLUME_STEP_BYTES };
        // Beside requests, copies install what they bring.
        Stack::Volume(Atomic::over(Port { geometry }, steps, 2 * SHARD_IOS_MAX))
    }

    /// The volume has another size.
    pub fn set_volume(&mut self, geometry: Geometry) {
        if let Stack::Volume(stack) = self {
            *stack.below_mut() = Port { geometry };
        }
    }

    /// A volume's request has come back from its pool.
    pub fn returned(&mut self, done: Done, effects: &mut Effects) {
        if let Stack::Volume(stack) = self {
            stack.returned(done, effects);
        }
    }

    /// See [`Atomic::enter_change`]; in blocks of the volume. `None`: this is none.
    pub fn enter_change(&mut self, blocks: Range<u64>, name: u64) -> Option<(Slot, bool)> {
        match self {
            Stack::Volume(stack) => Some(stack.enter_change(blocks, name)),
            _ => None,
        }
    }

    /// See [`Atomic::leave_change`].
    pub fn leave_change(&mut self, slot: Slot, effects: &mut Effects) {
        if let Stack::Volume(stack) = self {
            stack.leave_change(slot, effects);
        }
    }

    /// See [`Atomic::enter_swap`].
    pub fn enter_swap(&mut self, parts: Vec<Io>, name: u64, effects: &mut Effects) -> Slot {
        match self {
            Stack::Ram(stack) => stack.enter_swap(parts, name, effects),
            Stack::Null(stack) => stack.enter_swap(parts, name, effects),
            Stack::File(stack) => stack.enter_swap(parts, name, effects),
            Stack::SmallBlocks(stack) => stack.enter_swap(parts, name, effects),
            Stack::Volume(stack) => stack.enter_swap(parts, name, effects),
        }
    }

    /// Whether a volume lets in whoever comes and is shared.
    pub fn is_open_volume(&self) -> bool {
        matches!(self, Stack::Volume(stack) if stack.is_open())
    }

    /// See [`Atomic::write_swap`].
    pub fn write_swap(&mut self, hold: Slot, effects: &mut Effects) {
        match self {
            Stack::Ram(stack) => stack.write_swap(hold, effects),
            Stack::Null(stack) => stack.write_swap(hold, effects),
            Stack::File(stack) => stack.write_swap(hold, effects),
            Stack::SmallBlocks(stack) => stack.write_swap(hold, effects),
            Stack::Volume(stack) => stack.write_swap(hold, effects),
        }
    }

    /// See [`Atomic::end_swap`].
    pub fn end_swap(&mut self, hold: Slot, undo: bool, effects: &mut Effects) {
        match self {
            Stack::Ram(stack) => stack.end_swap(hold, undo, effects),
            Stack::Null(stack) => stack.end_swap(hold, undo, effects),
            Stack::File(stack) => stack.end_swap(hold, undo, effects),
            Stack::SmallBlocks(stack) => stack.end_swap(hold, undo, effects),
            Stack::Volume(stack) => stack.end_swap(hold, undo, effects),
        }
    }

    /// See [`Atomic::abandon`].
    pub fn abandon(&mut self, from: Core, tag: Tag, effects: &mut Effects) {
        match self {
            Stack::Ram(stack) => stack.abandon(from, tag, effects),
            Stack::Null(stack) => stack.abandon(from, tag, effects),
            Stack::File(stack) => stack.abandon(from, tag, effects),
            Stack::SmallBlocks(stack) => stack.abandon(from, tag, effects),
            Stack::Volume(stack) => stack.abandon(from, tag, effects),
        }
    }
}

impl Bdev for Stack {
    fn geometry(&self) -> &Geometry {
        match self {
            Stack::Ram(stack) => stack.geometry(),
            Stack::Null(stack) => stack.geometry(),
            Stack::File(stack) => stack.geometry(),
            Stack::SmallBlocks(stack) => stack.geometry(),
            Stack::Volume(stack) => stack.geometry(),
        }
    }

    #[inline]
    fn submit(&mut self, io: Io, effects: &mut Effects) {
        match self {
            Stack::Ram(stack) => stack.submit(io, effects),
            Stack::Null(stack) => stack.submit(io, effects),
            Stack::File(stack) => stack.submit(io, effects),
            Stack::SmallBlocks(stack) => stack.submit(io, effects),
            Stack::Volume(stack) => stack.submit(io, effects),
        }
    }

    #[inline]
    fn read_now(&mut self, lba: u64, buf: &mut [u8]) -> bool {
        match self {
            Stack::Ram(stack) => stack.read_now(lba, buf),
            Stack::Null(stack) => stack.read_now(lba, buf),
            Stack::File(_) | Stack::SmallBlocks(_) | Stack::Volume(_) => false,
        }
    }

    #[inline]
    fn lend_now(&mut self, lba: u64, bytes: usize) -> Option<Lent> {
        match self {
            Stack::Ram(stack) => stack.lend_now(lba, bytes),
            Stack::Null(stack) => stack.lend_now(lba, bytes),
            Stack::File(_) | Stack::SmallBlocks(_) | Stack::Volume(_) => None,
        }
    }

    /// Of a volume it is the pool that knows.
    fn place_now(&mut self, lba: u64, bytes: usize) -> Option<Place> {
        match self {
            Stack::File(stack) => stack.place_now(lba, bytes),
            Stack::Ram(_) | Stack::Null(_) | Stack::SmallBlocks(_) | Stack::Volume(_) => None,
        }
    }

    #[inline]
    fn write_now(&mut self, lba: u64, data: &[u8]) -> bool {
        match self {
            Stack::Ram(stack) => stack.write_now(lba, data),
            Stack::Null(stack) => stack.write_now(lba, data),
            Stack::File(_) | Stack::SmallBlocks(_) | Stack::Volume(_) => false,
        }
    }

    #[inline]
    fn expect(&self, lba: u64, bytes: usize) {
        match self {
            Stack::Ram(stack) => stack.expect(lba, bytes),
            Stack::Null(_) | Stack::File(_) | Stack::SmallBlocks(_) | Stack::Volume(_) => {}
        }
    }

    fn complete(&mut self, done: DiskDone, effects: &mut Effects) {
        match self {
            Stack::Ram(stack) => stack.complete(done, effects),
            Stack::Null(stack) => stack.complete(done, effects),
            Stack::File(stack) => stack.complete(done, effects),
            Stack::SmallBlocks(stack) => stack.complete(done, effects),
            Stack::Volume(stack) => stack.complete(done, effects),
        }
    }

    fn turn(&mut self, effects: &mut Effects) -> bool {
        match self {
            Stack::Ram(stack) => stack.turn(effects),
            Stack::Null(stack) => stack.turn(effects),
            Stack::File(stack) => stack.turn(effects),
            Stack::SmallBlocks(stack) => stack.turn(effects),
            Stack::Volume(stack) => stack.turn(effects),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use reactor::buf::PoolConfig;
    use std::path::Path;

    /// A directory for one test, gone with it.
    struct Place(PathBuf);

    impl Place {
        fn new(name: &str) -> Place {
            let path = std::env::temp_dir().join(format!("bdev-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&path).unwrap();
            Place(path)
        }

        fn file(&self, name: &str) -> PathBuf {
            self.0.join(name)
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn config(kind: BdevKind) -> BdevConfig {
        BdevConfig {
            kind,
            block_bytes: 512,
            physical_block_bytes: 4096,
            read_only: false,
            write_cache: false,
        }
    }

    fn file(path: &Path, bytes: Option<u64>) -> BdevConfig {
        config(BdevKind::File { path: path.to_path_buf(), bytes })
    }

    fn refusal(config: BdevConfig) -> String {
        open(&[config]).unwrap_err().to_string()
    }

    /// Goal: a file that isn't there is created sparse with its size, is found again without one, is nobody else's
    /// while it is open, and everybody's afterwards.
    #[test]
    fn files_are_created_and_kept() {
        let place = Place::new("create");
        let path = place.file("disk");
        let gib = 1 << 30;
        let opened = open(&[file(&path, Some(gib))]).unwrap();
        let shape = opened.geometries()[0];
        assert_eq!((shape.bytes(), shape.block_bytes), (gib, 512));
        assert!(shape.physical_block_bytes >= 512 && !shape.read_only && !shape.write_cache);
        let metadata = std::fs::metadata(&path).unwrap();
        assert_eq!(metadata.len(), gib, "trying what the file system can do changes no size");
        assert!(std::os::unix::fs::MetadataExt::blocks(&metadata) * 512 < gib / 100);
        assert!(refusal(file(&path, None)).contains("in use"), "{}", refusal(file(&path, None)));
        drop(opened);
        let mut opened = open(&[file(&path, None)]).unwrap();
        assert_eq!(opened.geometries()[0].bytes(), gib);
        assert_eq!(opened.take_files().len(), 1);
        assert!(opened.take_files().is_empty());
        assert!(open(&[file(&path, Some(gib))]).is_ok(), "closing the descriptors gave the lock up");
        assert!(refusal(file(&path, Some(2 * gib))).contains("has 1073741824 bytes and not 2147483648"));
    }

    /// Goal: two units over one file are refused, also inside one process; two that only read are not.
    #[test]
    fn one_file_one_writer() {
        let place = Place::new("twice");
        let path = place.file("disk");
        std::fs::write(&path, vec![1; 8192]).unwrap();
        let error = open(&[file(&path, None), file(&path, None)]).unwrap_err();
        assert!(matches!(error.reason, Reason::File(FileError::InUse)));
        let reader = BdevConfig { read_only: true, ..file(&path, None) };
        let opened = open(&[reader.clone(), reader]).unwrap();
        assert!(opened.geometries().iter().all(|shape| shape.read_only && !shape.is_thin()));
        assert_eq!(std::fs::read(&path).unwrap(), vec![1; 8192]);
    }

    /// Goal: each mistake is named, with the device and what to do, and nothing is created by one.
    #[test]
    fn mistakes_are_named() {
        let place = Place::new("mistakes");
        let missing = place.file("missing");
        let empty = place.file("empty");
        std::fs::write(&empty, []).unwrap();
        let small = place.file("small");
        std::fs::write(&small, [1; 100]).unwrap();
        let ram = |bytes| config(BdevKind::Ram { bytes });
        let read_only = BdevConfig { read_only: true, ..file(&missing, Some(1 << 20)) };
        for (config, words) in [
            (file(&missing, None), "missing: there is no such file"),
            (read_only, "there is no such file"),
            (file(&missing, Some(1000)), "no whole number of blocks of 512"),
            (file(&place.file("no/such"), Some(1 << 20)), "create the directory"),
            (file(&empty, None), "empty; give a size"),
            (file(&small, None), "smaller than one block"),
            (file(&place.0, None), "neither a regular file nor a block device"),
            (file(Path::new("/dev/null"), None), "neither a regular file nor a block device"),
            (ram(0), "ram:0: smaller than one block"),
            (ram(513), "no whole number of blocks"),
            (ram(DEVICE_BYTES_MAX + 512), "more than the 70368744177664"),
            (ram(DEVICE_BYTES_MAX), "bytes of memory are not to be had"),
            (BdevConfig { block_bytes: 1024, ..ram(4096) }, "a logical block of 1024 bytes"),
            (BdevConfig { physical_block_bytes: 8192, ..ram(4096) }, "a physical block of 8192 bytes"),
            (
                BdevConfig { block_bytes: 4096, physical_block_bytes: 512, ..ram(4096) },
                "not less than the logical block",
            ),
        ] {
            let text = refusal(config);
            assert!(text.contains(words), "{text}");
        }
        assert!(!missing.exists());
    }

    /// Goal: every kind becomes stacks on every core; a pool that is too small is an error that says so.
    #[test]
    fn stacks_on_every_core() {
        let place = Place::new("stacks");
        let configs = [
            config(BdevKind::Ram { bytes: 64 << 20 }),
            config(BdevKind::Null { bytes: 1 << 40 }),
            file(&place.file("disk"), Some(64 << 20)),
        ];
        let opened = open(&configs).unwrap();
        let opened = &opened;
        std::thread::scope(|scope| {
            for core in 0..3 {
                scope.spawn(move || {
                    let mut pool = Pool::new(PoolConfig { counts: [16, 0, 16], arena: core }).unwrap();
                    let stacks = opened.stacks_for(Core(core), 3, &mut pool).unwrap();
                    for (stack, shape) in stacks.iter().zip(opened.geometries().iter()) {
                        assert_eq!(stack.geometry(), shape);
                    }
                });
            }
        });
        let mut none = Pool::new(PoolConfig { counts: [0; 3], arena: 0 }).unwrap();
        let error = opened.stacks_for(Core(0), 1, &mut none).unwrap_err();
        assert!(error.to_string().contains("buffer memory"), "{error}");
    }
}
