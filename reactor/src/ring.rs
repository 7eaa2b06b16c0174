//! The kernel's io_uring, one a core: disk operations with owned buffers, one-shot watches of sockets, and sleep.
//!
//! Whatever the kernel holds stands in a [`Slots`] table, buffer included, and its slot is the user data: a late
//! or foreign completion finds nothing, and a buffer is reachable by nobody while the kernel may touch it.
//! Invariant: each taken slot is one entry that the kernel, the submission queue or the backlog has.
//!
//! Operations go to the kernel at a turn's end; before that when it has none that aren't done, so that a device begins while the rest is
//! being made, and whenever a few have gathered. Durable writes that a device would be flushed for one by one are gathered in `durable`.
//!
//! Files in memory (tmpfs) are read and written by plain calls: there a write can't be begun without blocking, so the kernel
//! would hand each to a thread, which takes longer than the copy and runs on this core's CPU.
//!
//! Called by the reactor (`next`, `submit`, `wait`) and, through [`crate::service::Cx`], by services.
#![allow(
    unsafe_code,
    reason = "shares memory with the kernel; the io-uring crate's interface is unsafe here"
)]

use crate::buf::{Buf, Region};
use crate::clock::Time;
use crate::disk::{DiskAction, DiskDone, DiskOp, FileId};
use crate::durable::{Durables, Failures, Seen};
use crate::limits::{self, RingError, Warning};
use crate::slots::{Slot, Slots};
use io_uring::types::{Fd, Fixed, FsyncFlags, SubmitArgs, Timespec};
use io_uring::{EnterFlags, IoUring, Probe, opcode, squeue};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// User data of completions that nobody waits for. Never a slot: generations begin at 1.
const IGNORED: u64 = 0;

/// User data of the doorbell's watch. Never a slot either.
const DOORBELL: u64 = 1;

/// The kernel's limit for one registered buffer; larger arenas are registered in pieces of this size. Every
/// buffer lies within one, since each is aligned to its own size.
const REGISTERED_BYTES_MAX: usize = 1 << 30;

/// The kernel's limit for a table of registered files (IORING_MAX_FIXED_FILES); RLIMIT_NOFILE may be lower.
const FILES_MAX: u32 = 1 << 20;

/// Disk operations that wait for the turn's end together: with more they go at once. A system call for four is little beside what the
/// kernel does for each, and a device that waits for the last of thirty-two loses the time that making them takes.
const GATHERED_MAX: usize = 4;

/// What fstatfs says of tmpfs (TMPFS_MAGIC).
const TMPFS_MAGIC: rustix::fs::FsWord = 0x0102_1994;

/// Every operation we use, and the first kernel with it.
const OPCODES: [(u8, &str, &str); 8] = [
    (opcode::ReadFixed::CODE, "IORING_OP_READ_FIXED", "5.1"),
    (opcode::WriteFixed::CODE, "IORING_OP_WRITE_FIXED", "5.1"),
    (opcode::Read::CODE, "IORING_OP_READ", "5.6"),
    (opcode::Write::CODE, "IORING_OP_WRITE", "5.6"),
    (opcode::Fsync::CODE, "IORING_OP_FSYNC", "5.1"),
    (opcode::Fallocate::CODE, "IORING_OP_FALLOCATE", "5.6"),
    (opcode::PollAdd::CODE, "IORING_OP_POLL_ADD", "5.1"),
    (opcode::PollRemove::CODE, "IORING_OP_POLL_REMOVE", "5.1"),
];

/// How large a ring is and what stands behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RingConfig {
    /// Entries of the submission queue; the kernel rounds up to a power of two. More than fit are submitted at once.
    pub entries: u32,
    /// Disk operations in flight at once. The service's bound, asserted.
    pub operations_max: usize,
    /// Sockets watched at once. Past it [`Ring::watch`] says `None`.
    pub watches_max: usize,
    /// Places in the table of registered files; those not given at start stay free for later.
    pub files_max: u32,
    /// CPUs for the kernel's io-wq workers of this ring; empty: wherever the reactor's process may run.
    pub worker_cpus: Vec<usize>,
    /// The most io-wq workers, for bounded (disk) and unbounded work; 0 leaves the kernel's limit.
    pub workers_max: [u32; 2],
}

impl Default for RingConfig {
    fn default() -> RingConfig {
        RingConfig {
            entries: 256,
            operations_max: 4096,
            watches_max: 4096,
            files_max: 64,
            worker_cpus: Vec::new(),
            workers_max: [0; 2],
        }
    }
}

impl RingConfig {
    /// Watches that may be under way, those included whose end is still on its way from the kernel.
    fn watch_slots(&self) -> usize {
        2 * self.watches_max
    }

    /// Entries of the completion queue: room for all that can be in flight, within the kernel's limit. What
    /// doesn't fit the kernel keeps (IORING_FEAT_NODROP) until we ask.
    fn completion_entries(&self) -> u32 {
        let in_flight = self.operations_max + self.watch_slots() + self.files_max as usize + 2;
        in_flight.next_power_of_two().clamp(2 * self.entries.next_power_of_two() as usize, 1 << 16) as u32
    }

    /// Places in the table of registered files, if there are so many at start.
    pub(crate) fn file_places(&self, at_start: usize) -> u32 {
        self.files_max.max(at_start as u32)
    }

    /// Memory of the rings and of the table behind them, in bytes.
    pub fn bytes(&self) -> usize {
        let slots = self.operations_max + self.watch_slots() + self.files_max as usize;
        self.entries.next_power_of_two() as usize * (64 + 4)
            + self.completion_entries() as usize * 16
            + slots * (size_of::<InFlight>() + 16)
    }
}

/// Which of the kernel's ways to run completions a ring has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Setup {
    /// When a signal or interrupt reaches the thread (Linux 5.15).
    Plain,
    /// At the next system call (Linux 5.19).
    Cooperative,
    /// When we ask, and only then (Linux 6.1).
    Deferred,
}

/// For what a socket is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// Something to receive or accept, or the end of the stream.
    Readable,
    /// Room to send, or a connection made.
    Writable,
    /// Either.
    Both,
}

/// What a watched socket is ready for. After an error or a hang-up both are true: trying tells the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ready {
    /// A receive will not block.
    pub readable: bool,
    /// A send will not block.
    pub writable: bool,
}

/// A watch under way. It names nothing once its readiness was delivered or it was given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WatchId(Slot);

/// What the ring hands to the reactor.
#[derive(Debug)]
pub(crate) enum Completion {
    /// For `on_disk`.
    Disk(DiskDone),
    /// For `on_ready`.
    Ready(u64, Ready),
    /// Somebody rang; the watch of the doorbell is spent.
    Doorbell,
}

enum InFlight {
    Disk {
        user: u64,
        buf: Option<Buf>,
    },
    /// A durable write that is gathered.
    Gathered {
        file: FileId,
        seen: Seen,
        user: u64,
        buf: Option<Buf>,
    },
    /// What makes those durable.
    Sync(FileId),
    /// [`DiskAction::Sync`].
    SyncAsked {
        file: FileId,
        seen: Seen,
        user: u64,
        buf: Option<Buf>,
    },
    Watch {
        token: u64,
        wanted: bool,
    },
}

/// An arena that is registered: where it lies, and its first place in the kernel's table.
#[derive(Clone, Copy)]
struct Registered {
    region: Region,
    first: u16,
}

/// One core's ring. Made and used on that core's thread.
pub struct Ring {
    uring: IoUring,
    setup: Setup,
    in_flight: Slots<InFlight>,
    operations: usize,
    operations_max: usize,
    watches: usize,
    watch_slots: usize,
    /// What the submission queue had no room for, in order; at most an entry for each slot and its removal.
    backlog: VecDeque<squeue::Entry>,
    /// By arena; empty when buffers are not registered.
    registered: Vec<Option<Registered>>,
    files: u16,
    files_max: u32,
    in_memory: MemoryFiles,
    /// What was done on those and has not come back.
    done: VecDeque<DiskDone>,
    durables: Durables,
    /// Gathered writes that a sync has ended and that have not come back.
    synced: VecDeque<DiskDone>,
    /// Disk operations made since the kernel was last entered.
    gathered: usize,
    doorbell_armed: bool,
    /// A watch was refused since the last sleep, so there must be none.
    watch_refused: bool,
    pub(crate) enters: u64,
    pub(crate) disk_ops: u64,
    /// Syncs for gathered writes.
    pub(crate) syncs: u64,
}

impl Ring {
    /// A ring with all arenas' memory and `files` (which become `FileId(0)` and so on) registered. Arenas must
    /// outlive the rings they are registered with: an address that is mapped anew is not what the kernel has.
    ///
    /// # Errors
    /// What the kernel refuses or lacks. What it may refuse without harm is in the warnings.
    pub fn new(
        config: &RingConfig,
        regions: &[Region],
        files: &[BorrowedFd<'_>],
    ) -> Result<(Ring, Vec<Warning>), RingError> {
        let failures = Arc::new(Failures::for_files(config.file_places(files.len())));
        Ring::sharing(failures, config, regions, files)
    }

    /// As [`Ring::new`], for one of several rings that have the same files under the same numbers: a sync that fails in one has
    /// failed for all.
    pub(crate) fn sharing(
        failures: Arc<Failures>,
        config: &RingConfig,
        regions: &[Region],
        files: &[BorrowedFd<'_>],
    ) -> Result<(Ring, Vec<Warning>), RingError> {
        Ring::with_setup(Setup::Deferred, failures, config, regions, files)
    }

    /// As [`Ring::sharing`], with no newer way of running completions than `newest`.
    fn with_setup(
        newest: Setup,
        failures: Arc<Failures>,
        config: &RingConfig,
        regions: &[Region],
        files: &[BorrowedFd<'_>],
    ) -> Result<(Ring, Vec<Warning>), RingError> {
        let (uring, setup) = set_up(newest, config)?;
        probe(&uring)?;
        let mut warnings = Vec::new();
        if setup < Setup::Deferred {
            warnings.push(Warning::NoDeferredTaskRun);
        }
        register_workers(&uring, config, &mut warnings);
        let registered = match register_buffers(&uring, regions) {
            Ok(registered) => registered,
            Err(error) => {
                let bytes: usize = regions.iter().map(|region| region.bytes).sum();
                warnings.push(Warning::BuffersNotRegistered {
                    memlock_bytes: limits::memlock_bytes(),
                    // Each core's ring locks every core's arena, and the kernel counts each time.
                    needed_bytes: (bytes * regions.len()) as u64,
                    error,
                });
                Vec::new()
            }
        };
        let files_max = config.file_places(files.len());
        register_files(&uring, files_max)?;
        let mut ring = Ring {
            uring,
            setup,
            in_flight: Slots::preallocated(config.operations_max + config.watch_slots() + files_max as usize),
            operations: 0,
            operations_max: config.operations_max,
            watches: 0,
            watch_slots: config.watch_slots(),
            backlog: VecDeque::new(),
            registered,
            files: 0,
            files_max,
            in_memory: MemoryFiles::default(),
            done: VecDeque::with_capacity(config.operations_max),
            durables: Durables::new(failures),
            synced: VecDeque::with_capacity(config.operations_max),
            gathered: 0,
            doorbell_armed: false,
            watch_refused: false,
            enters: 0,
            disk_ops: 0,
            syncs: 0,
        };
        for file in files {
            ring.add_file(*file)?;
        }
        Ok((ring, warnings))
    }

    /// Registers one more file. The kernel keeps it open until the ring is gone.
    ///
    /// # Errors
    /// [`RingError::Descriptors`] when the table is full, or the kernel's refusal.
    pub fn add_file(&mut self, file: impl AsFd) -> Result<FileId, RingError> {
        let gathered = needs_flushes(file.as_fd());
        self.add_file_as(file, gathered)
    }

    /// The same, and whether its durable writes are gathered behind syncs.
    fn add_file_as(&mut self, file: impl AsFd, gathered: bool) -> Result<FileId, RingError> {
        if u32::from(self.files) >= self.files_max {
            return Err(RingError::Descriptors { files_max: limits::files_max(), files: self.files_max });
        }
        let file = file.as_fd();
        self.uring
            .submitter()
            .register_files_update(u32::from(self.files), &[file.as_raw_fd()])
            .map_err(|error| RingError::Other { call: "io_uring_register(FILES_UPDATE)", error })?;
        // Without a descriptor more it is a file like any other.
        self.in_memory.push(if is_in_memory(file) { file.try_clone_to_owned().ok() } else { None });
        self.durables.add_file(gathered);
        self.files += 1;
        Ok(FileId(self.files - 1))
    }

    /// Those of its files that are in memory, for who reads them at once.
    pub fn memory_files(&self) -> MemoryFiles {
        self.in_memory.clone()
    }

    /// How many files are registered: `FileId(0)` up to here.
    pub fn files(&self) -> u16 {
        self.files
    }

    /// How the kernel runs this ring's completions.
    pub fn setup(&self) -> Setup {
        self.setup
    }

    /// Whether disk operations use registered buffers.
    pub fn buffers_registered(&self) -> bool {
        !self.registered.is_empty()
    }

    /// Disk operations that have not come back.
    pub fn disk_in_flight(&self) -> usize {
        self.operations
    }

    /// Hands an operation to the kernel, at this turn's end at the latest. It comes back in `on_disk`, short counts and errors
    /// unhidden.
    ///
    /// # Panics
    /// When over [`RingConfig::operations_max`] are in flight (the caller lets no more in), or when the range
    /// lies outside the operation's buffer.
    pub fn disk(&mut self, mut op: DiskOp) {
        assert!(
            self.operations < self.operations_max,
            "the service admits no more disk operations than the ring"
        );
        self.disk_ops += 1;
        if let Some(result) = self.in_memory.perform(&mut op) {
            self.operations += 1;
            self.done.push_back(DiskDone { user: op.user, result, buf: op.buf });
            return;
        }
        let durable = op.action == DiskAction::Write { durable: true };
        let gathered = if durable { self.durables.begin(op.file) } else { None };
        let entry = self.disk_entry(&mut op, write_flags(durable, gathered.is_some()));
        // The memory that `entry` points into is the buffer's arena, so moving `Buf` itself is fine.
        let DiskOp { file, user, action, buf, .. } = op;
        let held = match (gathered, action) {
            (Some(seen), _) => InFlight::Gathered { file, seen, user, buf },
            (None, DiskAction::Sync) => {
                InFlight::SyncAsked { file, seen: self.durables.sync_begins(file), user, buf }
            }
            (None, _) => InFlight::Disk { user, buf },
        };
        let Ok(slot) = self.in_flight.insert(held) else {
            unreachable!("operations, watches and syncs are each within their share of the table");
        };
        self.operations += 1;
        self.push(entry.user_data(slot.to_bits()));
        self.gathered += 1;
        // Of what the kernel has taken all may have come back, and wait here to be looked at.
        let may_be_idle = self.operations - self.gathered <= self.uring.completion().len();
        if may_be_idle || self.gathered >= GATHERED_MAX {
            self.submit_queued();
        }
    }

    /// The kernel's words for it; `flags` are a write's.
    fn disk_entry(&self, op: &mut DiskOp, flags: libc::c_int) -> squeue::Entry {
        let file = Fixed(u32::from(op.file.0));
        let offset = op.offset_bytes;
        match op.action {
            DiskAction::Read => {
                let (memory, bytes) = disk_memory(op);
                match self.registered_at(op.buf.as_ref(), memory as usize) {
                    Some(index) => opcode::ReadFixed::new(file, memory, bytes, index).offset(offset).build(),
                    None => opcode::Read::new(file, memory, bytes).offset(offset).build(),
                }
            }
            DiskAction::Write { .. } => {
                let (memory, bytes) = disk_memory(op);
                match self.registered_at(op.buf.as_ref(), memory as usize) {
                    Some(index) => opcode::WriteFixed::new(file, memory, bytes, index)
                        .offset(offset)
                        .rw_flags(flags)
                        .build(),
                    None => opcode::Write::new(file, memory, bytes).offset(offset).rw_flags(flags).build(),
                }
            }
            DiskAction::Sync => opcode::Fsync::new(file).flags(FsyncFlags::DATASYNC).build(),
            DiskAction::PunchHole => opcode::Fallocate::new(file, op.bytes)
                .offset(offset)
                .mode(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE)
                .build(),
            DiskAction::ZeroRange => opcode::Fallocate::new(file, op.bytes)
                .offset(offset)
                .mode(libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE)
                .build(),
        }
    }

    /// The kernel's number for the memory at `address`, if it is registered.
    fn registered_at(&self, buf: Option<&Buf>, address: usize) -> Option<u16> {
        let Registered { region, first } = (*self.registered.get(usize::from(buf?.arena()))?)?;
        // Another pool may carry the same number in a test; its memory is simply not registered.
        let offset = address.checked_sub(region.address).filter(|&offset| offset < region.bytes)?;
        Some(first + (offset / REGISTERED_BYTES_MAX) as u16)
    }

    /// Reports once, in `on_ready` with `token`, when `fd` is ready. `None`: too many are watched, or the end of
    /// those given up is still on its way; then poll the socket in the next turn and try again. The reactor
    /// doesn't sleep after a refusal.
    ///
    /// Give a watch up ([`Ring::unwatch`]) before closing its socket: until then the kernel keeps it open.
    pub fn watch(&mut self, fd: impl AsFd, token: u64, interest: Interest) -> Option<WatchId> {
        if self.watches == self.watch_slots {
            self.watch_refused = true;
            return None;
        }
        let Ok(slot) = self.in_flight.insert(InFlight::Watch { token, wanted: true }) else {
            unreachable!("operations, watches and syncs are each within their share of the table");
        };
        self.watches += 1;
        let events = match interest {
            Interest::Readable => libc::POLLIN | libc::POLLRDHUP,
            Interest::Writable => libc::POLLOUT,
            Interest::Both => libc::POLLIN | libc::POLLRDHUP | libc::POLLOUT,
        };
        let fd = Fd(fd.as_fd().as_raw_fd());
        self.push(opcode::PollAdd::new(fd, events as u32).build().user_data(slot.to_bits()));
        Some(WatchId(slot))
    }

    /// Gives a watch up: its readiness is not delivered from now on, also if it has already happened. Does
    /// nothing when it has been delivered before.
    pub fn unwatch(&mut self, watch: WatchId) {
        let Some(InFlight::Watch { wanted, .. }) = self.in_flight.get_mut(watch.0) else {
            return;
        };
        if std::mem::replace(wanted, false) {
            // The slot stays taken until the watch's own end arrives, so the table counts what the kernel has.
            self.push(opcode::PollRemove::new(watch.0.to_bits()).build().user_data(IGNORED));
        }
    }

    /// Watches the doorbell, unless it is watched.
    pub(crate) fn arm_doorbell(&mut self, doorbell: impl AsFd) {
        if !std::mem::replace(&mut self.doorbell_armed, true) {
            let fd = Fd(doorbell.as_fd().as_raw_fd());
            self.push(opcode::PollAdd::new(fd, libc::POLLIN as u32).build().user_data(DOORBELL));
        }
    }

    /// The next thing that the kernel has finished. Does not enter the kernel.
    pub(crate) fn next(&mut self) -> Option<Completion> {
        if let Some(done) = self.done.pop_front().or_else(|| self.synced.pop_front()) {
            self.operations -= 1;
            return Some(Completion::Disk(done));
        }
        // Bounded by the completion queue: what is skipped is at most what we gave up, and what is held.
        loop {
            let entry = self.uring.completion().next()?;
            let result = entry.result();
            match entry.user_data() {
                IGNORED => {}
                DOORBELL => {
                    self.doorbell_armed = false;
                    return Some(Completion::Doorbell);
                }
                bits => match self.in_flight.remove(Slot::from_bits(bits)) {
                    Some(InFlight::Disk { user, buf }) => {
                        self.operations -= 1;
                        return Some(Completion::Disk(DiskDone { user, result: as_moved(result), buf }));
                    }
                    Some(InFlight::Gathered { file, seen, user, buf }) => {
                        let done = DiskDone { user, result: as_moved(result), buf };
                        if let Some(done) = self.durables.written(file, seen, done) {
                            self.operations -= 1;
                            return Some(Completion::Disk(done));
                        }
                    }
                    Some(InFlight::Sync(file)) => {
                        self.durables.synced(file, as_moved(result), &mut self.synced);
                        if let Some(done) = self.synced.pop_front() {
                            self.operations -= 1;
                            return Some(Completion::Disk(done));
                        }
                    }
                    Some(InFlight::SyncAsked { file, seen, user, buf }) => {
                        let result = as_moved(result);
                        let result = self.durables.sync_ended(file, seen, result, &mut self.synced);
                        self.operations -= 1;
                        return Some(Completion::Disk(DiskDone { user, result, buf }));
                    }
                    Some(InFlight::Watch { token, wanted }) => {
                        self.watches -= 1;
                        if wanted {
                            return Some(Completion::Ready(token, readiness(result)));
                        }
                    }
                    None => debug_assert!(false, "the kernel finished what we never began"),
                },
            }
        }
    }

    /// Whether what [`Ring::next`] gives next was done by a plain call.
    pub(crate) fn is_done_at_once(&self) -> bool {
        !self.done.is_empty()
    }

    /// Whether a sync for gathered writes is out: a worker of the kernel's does it.
    pub(crate) fn is_syncing(&self) -> bool {
        self.durables.any_syncing()
    }

    /// A file whose sync for gathered writes has not come back for long, and how many writes wait for it; each now and then.
    pub(crate) fn late_sync(&mut self, now: Time) -> Option<(FileId, usize)> {
        self.durables.late(now)
    }

    /// At a turn's end: submits what has gathered and lets the kernel post what is due; no system call when there is neither.
    pub(crate) fn submit(&mut self) {
        self.begin_syncs(false);
        self.submit_queued();
    }

    fn begin_syncs(&mut self, hurry: bool) {
        if !self.durables.any_held() {
            return;
        }
        for file in (0..self.files).map(FileId) {
            if self.durables.begins_sync(file, hurry) {
                let Ok(slot) = self.in_flight.insert(InFlight::Sync(file)) else {
                    unreachable!("a sync a file, and it has its place");
                };
                self.syncs += 1;
                let sync = opcode::Fsync::new(Fixed(u32::from(file.0))).flags(FsyncFlags::DATASYNC).build();
                self.push(sync.user_data(slot.to_bits()));
            }
        }
    }

    fn submit_queued(&mut self) {
        // Each round empties the submission queue, so this ends unless the kernel itself is out of memory.
        loop {
            let (queued, due) = self.refill();
            if queued == 0 && !due {
                return;
            }
            let went = self.enter(0, Duration::ZERO);
            if self.backlog.is_empty() || !went {
                return;
            }
        }
    }

    /// Submits, and sleeps until something completes or `timeout` is over.
    pub(crate) fn wait(&mut self, timeout: Duration) {
        if !self.done.is_empty() || !self.synced.is_empty() {
            return self.submit();
        }
        self.begin_syncs(true);
        self.refill();
        // Out of memory or overtaken, the kernel may have left entries behind: they must not sleep with us.
        let hurry = !self.backlog.is_empty() || std::mem::take(&mut self.watch_refused);
        let longest = if hurry { Duration::from_millis(1) } else { timeout };
        self.enter(1, timeout.min(longest));
    }

    /// Moves the backlog into the submission queue. How many entries stand there, and whether the kernel has
    /// completions that only an enter brings.
    fn refill(&mut self) -> (usize, bool) {
        let mut queue = self.uring.submission();
        while let Some(entry) = self.backlog.front() {
            // SAFETY: as in `push_now`.
            if unsafe { queue.push(entry) }.is_err() {
                break;
            }
            self.backlog.pop_front();
        }
        (queue.len(), queue.taskrun() || queue.cq_overflow())
    }

    /// One io_uring_enter. False if the kernel took nothing for now.
    fn enter(&mut self, completions_min: u32, timeout: Duration) -> bool {
        self.enters += 1;
        self.gathered = 0;
        let no_iowait = self.uring.params().is_feature_no_iowait();
        let (submitter, queue, _) = self.uring.split();
        let queued = queue.len() as u32;
        let mut flags = EnterFlags::EXT_ARG;
        if completions_min > 0 || queue.taskrun() || queue.cq_overflow() {
            flags |= EnterFlags::GETEVENTS;
        }
        drop(queue);
        if no_iowait {
            // Waiting for a host's next command is not waiting for a disk; don't let it look so.
            flags |= EnterFlags::NO_IOWAIT;
        }
        let timeout = Timespec::from(timeout);
        let args = SubmitArgs::new().timespec(&timeout);
        // SAFETY: EXT_ARG says that the argument is an io_uring_getevents_arg, which SubmitArgs is; what it
        // points to lives past the call. The entries' memory is owned by `in_flight`.
        match unsafe { submitter.enter(queued, completions_min, flags.bits(), Some(&args)) } {
            Ok(_) => true,
            Err(error) => match error.raw_os_error() {
                Some(libc::ETIME | libc::EINTR) => true,
                // No memory for requests, or completions to be taken first: the next turn tries again.
                Some(libc::EAGAIN | libc::EBUSY) => false,
                // Lost completions (EBADR) or a broken ring: buffers would never come back.
                _ => panic!("io_uring_enter: {error}"),
            },
        }
    }

    fn push(&mut self, entry: squeue::Entry) {
        if self.backlog.is_empty() {
            if self.push_now(&entry) {
                return;
            }
            self.submit_queued();
            if self.push_now(&entry) {
                return;
            }
        }
        self.backlog.push_back(entry);
    }

    fn push_now(&mut self, entry: &squeue::Entry) -> bool {
        // SAFETY: push demands that the entry's memory stays valid until its completion. A disk operation's is
        // its `Buf`'s, which `in_flight` owns until then and leaks if the ring goes first; other entries have none.
        unsafe { self.uring.submission().push(entry) }.is_ok()
    }
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring")
            .field("setup", &self.setup)
            .field("operations", &self.operations)
            .field("watches", &self.watches)
            .field("backlog", &self.backlog.len())
            .finish_non_exhaustive()
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        if self.operations > self.done.len() + self.synced.len() {
            // Closing a ring cancels, but doesn't wait: the kernel may still write. The memory stays where it is.
            std::mem::forget(std::mem::replace(&mut self.in_flight, Slots::with_capacity(0)));
        }
    }
}

/// By file: its descriptor, if it is one in memory. Of one ring, and of its thread.
#[derive(Clone, Debug, Default)]
pub struct MemoryFiles(Rc<RefCell<Vec<Option<OwnedFd>>>>);

impl MemoryFiles {
    fn push(&self, file: Option<OwnedFd>) {
        self.0.borrow_mut().push(file);
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.borrow().iter().all(Option::is_none)
    }

    /// Fills `buf` from a file in memory. False: it is none, or has not as much; then what is in `buf` means nothing.
    pub fn read(&self, file: FileId, offset_bytes: u64, buf: &mut [u8]) -> bool {
        let files = self.0.borrow();
        let Some(Some(file)) = files.get(usize::from(file.0)) else { return false };
        rustix::io::pread(file, &mut *buf, offset_bytes).is_ok_and(|bytes| bytes == buf.len())
    }

    /// Does an operation on a file in memory. `None`: it is none, or that may take long, and is the ring's.
    fn perform(&self, op: &mut DiskOp) -> Option<Result<u32, i32>> {
        let files = self.0.borrow();
        done_in_memory(files.get(usize::from(op.file.0))?.as_ref()?, op)
    }
}

/// Does an operation on a file in memory. `None`: it may take long, and is the ring's.
fn done_in_memory(file: &OwnedFd, op: &mut DiskOp) -> Option<Result<u32, i32>> {
    let offset = op.offset_bytes;
    let moved = match op.action {
        DiskAction::Read => rustix::io::pread(file, disk_part(op), offset),
        DiskAction::Write { .. } => rustix::io::pwrite(file, disk_part(op), offset),
        // Nothing is more durable than it is.
        DiskAction::Sync => Ok(0),
        DiskAction::PunchHole | DiskAction::ZeroRange => return None,
    };
    Some(moved.map(|bytes| bytes as u32).map_err(rustix::io::Errno::raw_os_error))
}

/// A data operation's part of its buffer.
fn disk_part(op: &mut DiskOp) -> &mut [u8] {
    let from = op.buf_offset as usize;
    let buf = op.buf.as_mut().expect("reads and writes bring their buffer");
    &mut buf[from..from + op.bytes as usize]
}

/// Its address and length.
fn disk_memory(op: &mut DiskOp) -> (*mut u8, u32) {
    let part = disk_part(op);
    (part.as_mut_ptr(), u32::try_from(part.len()).expect("a buffer is shorter than 4 GiB"))
}

/// How a write goes to the kernel: one that has to be `durable` by itself is made so with it, one that is `gathered` by the sync behind it.
fn write_flags(durable: bool, gathered: bool) -> libc::c_int {
    if durable && !gathered { libc::RWF_DSYNC } else { 0 }
}

/// A disk operation's result: bytes, or a positive errno.
fn as_moved(result: i32) -> Result<u32, i32> {
    u32::try_from(result).map_err(|_| result.wrapping_neg())
}

/// Whether a file's bytes are in memory. A device's are not, although /dev is a tmpfs and says so of all in it.
fn is_in_memory(file: BorrowedFd<'_>) -> bool {
    rustix::fs::fstat(file).is_ok_and(|stat| rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file())
        && rustix::fs::fstatfs(file).is_ok_and(|system| system.f_type == TMPFS_MAGIC)
}

/// Whether each durable write to a file has its device's cache flushed: it has one, and no write that passes it. What can't be found out
/// is left to the kernel, write by write.
fn needs_flushes(file: BorrowedFd<'_>) -> bool {
    let Ok(stat) = rustix::fs::fstat(file) else { return false };
    let is_device = rustix::fs::FileType::from_raw_mode(stat.st_mode).is_block_device();
    let device = if is_device { stat.st_rdev } else { stat.st_dev };
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let says = |attribute: &str, what: &str| {
        // A partition has its disk's queue.
        ["queue", "../queue"].iter().any(|queue| {
            std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/{queue}/{attribute}"))
                .is_ok_and(|found| found.trim() == what)
        })
    };
    says("write_cache", "write back") && says("fua", "0")
}

/// What a poll's result says.
fn readiness(result: i32) -> Ready {
    let has = |bits: i16| result & i32::from(bits) != 0;
    let broken = result < 0 || has(libc::POLLERR | libc::POLLHUP | libc::POLLNVAL);
    Ready { readable: broken || has(libc::POLLIN | libc::POLLRDHUP), writable: broken || has(libc::POLLOUT) }
}

/// Tries the newest way first; an old kernel says EINVAL to a flag that it doesn't know.
fn set_up(newest: Setup, config: &RingConfig) -> Result<(IoUring, Setup), RingError> {
    let mut refused = io::Error::from_raw_os_error(libc::EINVAL);
    for setup in [Setup::Deferred, Setup::Cooperative, Setup::Plain] {
        if setup > newest {
            continue;
        }
        let mut builder = IoUring::builder();
        builder.setup_clamp().setup_cqsize(config.completion_entries());
        match setup {
            Setup::Deferred => {
                builder.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag().setup_submit_all()
            }
            Setup::Cooperative => builder.setup_coop_taskrun().setup_taskrun_flag().setup_submit_all(),
            Setup::Plain => &mut builder,
        };
        match builder.build(config.entries) {
            Ok(ring) => return Ok((ring, setup)),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => refused = error,
            Err(error) => return Err(RingError::from_setup(error, config.entries)),
        }
    }
    Err(RingError::from_setup(refused, config.entries))
}

/// Asks for everything that we can't do without.
fn probe(ring: &IoUring) -> Result<(), RingError> {
    if !ring.params().is_feature_ext_arg() {
        return Err(RingError::Unsupported { name: "IORING_FEAT_EXT_ARG", since: "5.11" });
    }
    if !ring.params().is_feature_nodrop() {
        return Err(RingError::Unsupported { name: "IORING_FEAT_NODROP", since: "5.5" });
    }
    let mut probe = Probe::new();
    ring.submitter()
        .register_probe(&mut probe)
        .map_err(|error| RingError::Other { call: "io_uring_register(PROBE)", error })?;
    match OPCODES.iter().find(|(code, _, _)| !probe.is_supported(*code)) {
        Some(&(_, name, since)) => Err(RingError::Unsupported { name, since }),
        None => Ok(()),
    }
}

fn register_workers(ring: &IoUring, config: &RingConfig, warnings: &mut Vec<Warning>) {
    if !config.worker_cpus.is_empty() {
        // SAFETY: a cpu_set_t is plain bits, and all clear is the empty set.
        let mut cpus: libc::cpu_set_t = unsafe { std::mem::zeroed() };
        for &cpu in config.worker_cpus.iter().filter(|&&cpu| cpu < libc::CPU_SETSIZE as usize) {
            // SAFETY: `cpu` is within the set.
            unsafe { libc::CPU_SET(cpu, &mut cpus) };
        }
        if let Err(error) = ring.submitter().register_iowq_aff(&cpus) {
            warnings.push(Warning::Workers { call: "IORING_REGISTER_IOWQ_AFF", error });
        }
    }
    if config.workers_max != [0; 2] {
        let mut workers_max = config.workers_max;
        if let Err(error) = ring.submitter().register_iowq_max_workers(&mut workers_max) {
            warnings.push(Warning::Workers { call: "IORING_REGISTER_IOWQ_MAX_WORKERS", error });
        }
    }
}

/// Registers every arena, in pieces that the kernel takes.
fn register_buffers(ring: &IoUring, regions: &[Region]) -> io::Result<Vec<Option<Registered>>> {
    let mut registered = Vec::new();
    let mut table: Vec<libc::iovec> = Vec::new();
    for &region in regions {
        let arena = usize::from(region.arena);
        if registered.len() <= arena {
            registered.resize(arena + 1, None);
        }
        let first = u16::try_from(table.len()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
        registered[arena] = Some(Registered { region, first });
        for offset in (0..region.bytes).step_by(REGISTERED_BYTES_MAX) {
            table.push(libc::iovec {
                iov_base: (region.address + offset) as *mut libc::c_void,
                iov_len: (region.bytes - offset).min(REGISTERED_BYTES_MAX),
            });
        }
    }
    if !table.is_empty() {
        // SAFETY: the kernel pins the pages, so nothing dangles; `Ring::new` says that arenas outlive rings, so
        // that the pages behind an address stay the ones pinned here.
        unsafe { ring.submitter().register_buffers(&table) }?;
    }
    Ok(registered)
}

/// A table of `files_max` empty places. Empty ones are allowed since Linux 5.5, sparse registration only since 5.19.
fn register_files(ring: &IoUring, files_max: u32) -> Result<(), RingError> {
    if files_max == 0 {
        return Ok(());
    }
    if files_max > FILES_MAX {
        return Err(RingError::Descriptors { files_max: limits::files_max(), files: files_max });
    }
    ring.submitter().register_files(&vec![-1; files_max as usize]).map_err(|error| {
        match error.raw_os_error() {
            Some(libc::EMFILE) => RingError::Descriptors { files_max: limits::files_max(), files: files_max },
            _ => RingError::Other { call: "io_uring_register(FILES)", error },
        }
    })
}

/// How many io-wq workers the kernel runs for this process now, over all rings.
///
/// # Errors
/// When /proc can't be read.
pub fn io_workers() -> io::Result<usize> {
    let mut workers = 0;
    for thread in std::fs::read_dir("/proc/self/task")? {
        // A thread may end between the listing and the reading.
        let name = std::fs::read(thread?.path().join("comm")).unwrap_or_default();
        workers += usize::from(name.starts_with(b"iou-wrk-"));
    }
    Ok(workers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buf::{PAGE_BYTES, Pool, PoolConfig};
    use rustix::fs::{Mode, OFlags};
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;
    use std::time::Instant;

    const CONFIG: RingConfig = RingConfig {
        entries: 8,
        operations_max: 64,
        watches_max: 4,
        files_max: 4,
        worker_cpus: Vec::new(),
        workers_max: [0; 2],
    };

    /// A file of 16 pages beside the test program, which is on a disk more often than /tmp is.
    fn file() -> OwnedFd {
        let program = std::env::current_exe().unwrap();
        let file = tempfile::NamedTempFile::new_in(program.parent().unwrap()).unwrap();
        file.as_file().set_len(16 * PAGE_BYTES as u64).unwrap();
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        // Some file systems have no direct IO; everything else is the same there.
        rustix::fs::open(file.path(), flags | OFlags::DIRECT, Mode::empty())
            .or_else(|_| rustix::fs::open(file.path(), flags, Mode::empty()))
            .unwrap()
    }

    /// The same in memory, if there is a place for that.
    fn memory_file() -> Option<OwnedFd> {
        let file = tempfile::NamedTempFile::new_in("/dev/shm").ok()?;
        file.as_file().set_len(16 * PAGE_BYTES as u64).unwrap();
        Some(file.into_file().into())
    }

    fn pool() -> Pool {
        Pool::new(PoolConfig { counts: [64, 4, 4], arena: 0 }).unwrap()
    }

    /// With a place for each file of `CONFIG`.
    fn failures() -> Arc<Failures> {
        Arc::new(Failures::for_files(CONFIG.files_max))
    }

    /// Takes `count` completions, or fails after ten seconds.
    fn take(ring: &mut Ring, count: usize) -> Vec<Completion> {
        let deadline = Instant::now() + Duration::from_secs(10);
        let mut completions = Vec::new();
        while completions.len() < count {
            assert!(Instant::now() < deadline, "{} of {count} after ten seconds", completions.len());
            ring.wait(Duration::from_millis(100));
            completions.extend(std::iter::from_fn(|| ring.next()));
        }
        completions
    }

    fn op(action: DiskAction, page: u64, pages: u64, buf: Option<Buf>) -> DiskOp {
        let bytes = pages * PAGE_BYTES as u64;
        let offset_bytes = page * PAGE_BYTES as u64;
        DiskOp { user: page, file: FileId(0), action, offset_bytes, bytes, buf, buf_offset: 0 }
    }

    fn one(ring: &mut Ring, op: DiskOp) -> DiskDone {
        ring.disk(op);
        match take(ring, 1).pop() {
            Some(Completion::Disk(done)) => done,
            other => panic!("not a disk operation's end: {other:?}"),
        }
    }

    fn read(ring: &mut Ring, pool: &mut Pool, page: u64) -> DiskDone {
        one(ring, op(DiskAction::Read, page, 1, pool.take(PAGE_BYTES)))
    }

    /// Goal: durable writes that are gathered come back whole, in the file, each once, after few syncs, also when nobody turns any more
    /// (`wait` alone); short of the kernel's refusal, which comes at once. Method: sixteen pages at once, then one, then one past what a file
    /// may be.
    #[test]
    fn durable_writes_share_syncs() {
        let file = file();
        let (mut ring, _) = Ring::new(&CONFIG, &[], &[]).unwrap();
        ring.add_file_as(&file, true).unwrap();
        let mut pool = pool();
        let write = DiskAction::Write { durable: true };
        let mut round = |ring: &mut Ring, pages: std::ops::Range<u64>| {
            let count = pages.clone().count();
            for page in pages {
                let mut buf = pool.take(PAGE_BYTES).unwrap();
                buf.fill(page as u8 + 1);
                ring.disk(op(write, page, 1, Some(buf)));
            }
            ring.submit();
            let mut ends = Vec::new();
            for completion in take(ring, count) {
                let Completion::Disk(done) = completion else { panic!("nothing else was asked for") };
                ends.push((done.user, done.result));
                pool.give(done.buf.unwrap());
            }
            ends.sort_unstable();
            ends
        };
        let all: Vec<_> = (0..16).map(|page| (page, Ok(PAGE_BYTES as u32))).collect();
        assert_eq!(round(&mut ring, 0..16), all);
        assert!((1..16).contains(&ring.syncs), "{} syncs", ring.syncs);
        let before = ring.syncs;
        assert_eq!(round(&mut ring, 3..4), all[3..4]);
        assert_eq!((ring.syncs, ring.disk_in_flight()), (before + 1, 0));
        let far = 1 << 51; // its offset is negative to the kernel
        assert!(matches!(round(&mut ring, far..far + 1)[..], [(page, Err(_))] if page == far));
        assert_eq!((ring.syncs, ring.is_syncing()), (before + 1, false));
        for page in 0..16 {
            let buf = pool.take(PAGE_BYTES).unwrap();
            ring.disk(op(DiskAction::Read, page, 1, Some(buf)));
        }
        for completion in take(&mut ring, 16) {
            let Completion::Disk(DiskDone { user, buf: Some(buf), .. }) = completion else {
                panic!("a read")
            };
            assert!(buf.iter().all(|&byte| u64::from(byte) == user + 1));
            pool.give(buf);
        }
    }

    /// A file that takes all writes and refuses to be synced (EINVAL).
    fn unsyncable() -> OwnedFd {
        rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).unwrap()
    }

    /// Waits until a durable write is held, and no sync has begun for it.
    fn hold(ring: &mut Ring) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !ring.durables.any_held() {
            assert!(Instant::now() < deadline, "it is not written");
            ring.enter(1, Duration::from_millis(100));
            assert!(ring.next().is_none());
        }
    }

    /// Goal: only a durable write that is not gathered is made durable by the kernel.
    #[test]
    fn flags_of_writes() {
        assert_eq!(write_flags(true, false), libc::RWF_DSYNC);
        assert_eq!([write_flags(true, true), write_flags(false, false), write_flags(false, true)], [0; 3]);
    }

    /// Goal: a sync's error is that of its file's writes, and of nothing else. Method: a file and /dev/null, which can't be synced; a write to
    /// each at once, and one that is not durable.
    #[test]
    fn a_failed_sync_is_its_files() {
        let (file, null) = (file(), unsyncable());
        let (mut ring, _) = Ring::new(&CONFIG, &[], &[]).unwrap();
        ring.add_file_as(&file, true).unwrap();
        let null = ring.add_file_as(&null, true).unwrap();
        let mut pool = pool();
        for (user, durable, file) in [(0, true, FileId(0)), (1, true, null), (2, false, null)] {
            let buf = pool.take(PAGE_BYTES);
            ring.disk(DiskOp { file, ..op(DiskAction::Write { durable }, user, 1, buf) });
        }
        let mut ends: Vec<_> = take(&mut ring, 3)
            .into_iter()
            .map(|completion| match completion {
                Completion::Disk(DiskDone { user, result, buf: Some(_) }) => (user, result),
                other => panic!("{other:?}"),
            })
            .collect();
        ends.sort_unstable();
        let whole = Ok(PAGE_BYTES as u32);
        assert_eq!(ends, [(0, whole), (1, Err(libc::EINVAL)), (2, whole)]);
        assert_eq!((ring.syncs, ring.disk_in_flight(), ring.is_syncing()), (2, 0, false));
    }

    /// Goal: what one sync has ended comes back without sleep between. Method: two writes, one completion taken, then a long wait.
    #[test]
    fn does_not_sleep_over_what_a_sync_ended() {
        let file = file();
        let (mut ring, _) = Ring::new(&CONFIG, &[], &[]).unwrap();
        ring.add_file_as(&file, true).unwrap();
        let mut pool = pool();
        for page in 0..2 {
            ring.disk(op(DiskAction::Write { durable: true }, page, 1, pool.take(PAGE_BYTES)));
        }
        let deadline = Instant::now() + Duration::from_secs(10);
        // Both are written before a sync begins: it is for both.
        while ring.durables.written_and_held(FileId(0)) < 2 {
            assert!(Instant::now() < deadline);
            ring.enter(1, Duration::from_millis(10));
            assert!(ring.next().is_none());
        }
        let first = loop {
            assert!(Instant::now() < deadline);
            ring.wait(Duration::from_millis(100));
            if let Some(completion) = ring.next() {
                break completion;
            }
        };
        let before = Instant::now();
        ring.wait(Duration::from_secs(100));
        assert!(before.elapsed() < Duration::from_secs(50));
        let second = ring.next();
        assert!(
            matches!((first, second), (Completion::Disk(first), Some(Completion::Disk(second))) if first.user != second.user)
        );
        assert_eq!((ring.syncs, ring.disk_in_flight()), (1, 0));
    }

    /// Goal: a sync that fails in one ring has failed in another that shares its files: for a write that is held there, and once for a sync that
    /// is asked for, whether it was asked for or gathered; a later write is not touched. Method: two rings that have under the same number
    /// a file each, of which only one can be synced.
    #[test]
    fn rings_share_failures() {
        let (file, null) = (file(), unsyncable());
        let failures = failures();
        let ring = |file: &OwnedFd| {
            let (mut ring, _) = Ring::sharing(Arc::clone(&failures), &CONFIG, &[], &[]).unwrap();
            ring.add_file_as(file, true).unwrap();
            ring
        };
        let (mut near, mut far) = (ring(&null), ring(&file));
        let mut pool = pool();
        let write = DiskAction::Write { durable: true };
        let (failed, whole) = (Err(libc::EINVAL), Ok(PAGE_BYTES as u32));
        for is_gathered in [true, false] {
            far.disk(op(write, 1, 1, pool.take(PAGE_BYTES)));
            hold(&mut far);
            let done = if is_gathered {
                one(&mut near, op(write, 1, 1, pool.take(PAGE_BYTES)))
            } else {
                one(&mut near, op(DiskAction::Sync, 0, 0, None))
            };
            assert_eq!(done.result, failed);
            let Some(Completion::Disk(held)) = take(&mut far, 1).pop() else {
                panic!("a write was asked for")
            };
            assert_eq!(held.result, failed);
            assert_eq!(one(&mut far, op(write, 2, 1, pool.take(PAGE_BYTES))).result, whole);
            assert_eq!(one(&mut far, op(DiskAction::Sync, 0, 0, None)).result, failed);
            assert_eq!(one(&mut far, op(DiskAction::Sync, 0, 0, None)).result, Ok(0), "once");
        }
        assert_eq!((far.disk_in_flight(), near.disk_in_flight()), (0, 0));
    }

    /// Goal: every operation does what it says, on every way of running completions, registered or not.
    #[test]
    fn does_every_disk_operation() {
        for (setup, registered) in [
            (Setup::Deferred, true),
            (Setup::Deferred, false),
            (Setup::Cooperative, true),
            (Setup::Plain, true),
        ] {
            let (mut pool, file) = (pool(), file());
            let regions = if registered { vec![pool.region()] } else { Vec::new() };
            let (mut ring, _) =
                Ring::with_setup(setup, failures(), &CONFIG, &regions, &[file.as_fd()]).unwrap();
            assert_eq!(ring.buffers_registered(), registered);
            for (page, durable) in [(0u64, true), (1, false), (2, true)] {
                let mut buf = pool.take(PAGE_BYTES).unwrap();
                buf.fill(page as u8 + 1);
                let done = one(&mut ring, op(DiskAction::Write { durable }, page, 1, Some(buf)));
                assert_eq!((done.user, done.result), (page, Ok(PAGE_BYTES as u32)));
                assert!(done.buf.is_some());
            }
            assert_eq!(one(&mut ring, op(DiskAction::Sync, 0, 0, None)).result, Ok(0));
            for (action, page) in [(DiskAction::PunchHole, 0), (DiskAction::ZeroRange, 1)] {
                match one(&mut ring, op(action, page, 1, None)).result {
                    Ok(_) => {
                        let done = read(&mut ring, &mut pool, page);
                        assert_eq!(done.result, Ok(PAGE_BYTES as u32));
                        assert!(done.buf.unwrap().iter().all(|&byte| byte == 0));
                    }
                    Err(errno) => assert_eq!(errno, libc::EOPNOTSUPP, "a file system may lack {action:?}"),
                }
            }
            assert!(io_workers().unwrap() >= 1, "fallocate is done by a worker");
            let done = read(&mut ring, &mut pool, 2);
            assert!(done.buf.unwrap().iter().all(|&byte| byte == 3));
            assert_eq!(pool.free(), [64, 4, 4], "every buffer is home");
        }
    }

    /// Goal: a file in memory is read and written at once, parts of buffers and ends of files as with any other, and the
    /// kernel sees only what may take long.
    #[test]
    fn does_files_in_memory_itself() {
        let Some(file) = memory_file() else { return };
        let mut pool = pool();
        let (mut ring, _) = Ring::new(&CONFIG, &[pool.region()], &[file.as_fd()]).unwrap();
        let enters = ring.enters;
        let mut buf = pool.take(4 * PAGE_BYTES).unwrap();
        buf.chunks_mut(PAGE_BYTES).zip(1..).for_each(|(part, nth)| part.fill(nth));
        let write = DiskOp {
            buf_offset: 2 * PAGE_BYTES as u32,
            ..op(DiskAction::Write { durable: true }, 15, 1, Some(buf))
        };
        ring.disk(write);
        ring.disk(op(DiskAction::Sync, 0, 0, None));
        assert_eq!(ring.disk_in_flight(), 2);
        let Some(Completion::Disk(written)) = ring.next() else { panic!("a write is done at once") };
        assert_eq!((written.user, written.result), (15, Ok(PAGE_BYTES as u32)));
        assert!(matches!(ring.next(), Some(Completion::Disk(DiskDone { result: Ok(0), .. }))));
        ring.disk(op(DiskAction::Read, 14, 3, pool.take(4 * PAGE_BYTES)));
        ring.wait(Duration::from_secs(100));
        let Some(Completion::Disk(read)) = ring.next() else { panic!("a wait doesn't sleep over it") };
        assert_eq!(read.result, Ok(2 * PAGE_BYTES as u32), "the file ends there");
        let read = read.buf.unwrap();
        assert_eq!((read[PAGE_BYTES - 1], read[PAGE_BYTES], read[2 * PAGE_BYTES - 1]), (0, 3, 3));
        // And by whoever asks, with no operation and no completion.
        let (files, mut found) = (ring.memory_files(), [0; PAGE_BYTES]);
        assert!(!files.is_empty() && files.read(FileId(0), 15 * PAGE_BYTES as u64, &mut found));
        assert_eq!(found, [3; PAGE_BYTES]);
        assert!(!files.read(FileId(0), 15 * PAGE_BYTES as u64 + 1, &mut found), "the file ends there");
        assert!(!files.read(FileId(1), 0, &mut found), "there is none");
        assert_eq!((ring.disk_in_flight(), ring.enters), (0, enters));
        let punched = one(&mut ring, op(DiskAction::PunchHole, 15, 1, None));
        assert_eq!(punched.result, Ok(0));
        let read = one(&mut ring, op(DiskAction::Read, 15, 1, pool.take(PAGE_BYTES)));
        assert!(read.buf.unwrap().iter().all(|&byte| byte == 0));
    }

    /// Goal: a device is none in memory, wherever its node is: its durable writes and syncs are the kernel's. Method: a device that
    /// refuses to be synced.
    #[test]
    fn a_device_is_not_in_memory() {
        let null = unsyncable();
        let (mut ring, _) = Ring::new(&CONFIG, &[], &[null.as_fd()]).unwrap();
        assert!(ring.memory_files().is_empty());
        assert_eq!(one(&mut ring, op(DiskAction::Sync, 0, 0, None)).result, Err(libc::EINVAL));
    }

    /// Goal: part of a buffer is read and written, and nothing beside it is touched.
    #[test]
    fn moves_part_of_a_buffer() {
        let (mut pool, file) = (pool(), file());
        let (mut ring, _) = Ring::new(&CONFIG, &[pool.region()], &[file.as_fd()]).unwrap();
        let mut buf = pool.take(4 * PAGE_BYTES).unwrap();
        for (page, part) in buf.chunks_mut(PAGE_BYTES).enumerate() {
            part.fill(page as u8 + 1);
        }
        let write = DiskOp {
            buf_offset: 2 * PAGE_BYTES as u32,
            ..op(DiskAction::Write { durable: false }, 5, 1, Some(buf))
        };
        let buf = one(&mut ring, write).buf;
        let read = DiskOp { buf_offset: PAGE_BYTES as u32, ..op(DiskAction::Read, 5, 1, buf) };
        let buf = one(&mut ring, read).buf.unwrap();
        let pages: Vec<u8> = buf.chunks(PAGE_BYTES).map(|part| part[PAGE_BYTES - 1]).collect();
        assert_eq!(pages, [1, 3, 3, 4]);
    }

    /// Goal: short counts and errors come through as they are, with the buffer.
    #[test]
    fn hides_neither_short_counts_nor_errors() {
        let (mut pool, file) = (pool(), file());
        let (mut ring, _) = Ring::new(&CONFIG, &[pool.region()], &[file.as_fd()]).unwrap();
        let done = one(&mut ring, op(DiskAction::Read, 14, 4, pool.take(4 * PAGE_BYTES)));
        assert_eq!(done.result, Ok(2 * PAGE_BYTES as u32), "the file ends there");
        let done = one(&mut ring, DiskOp { file: FileId(3), ..op(DiskAction::Sync, 0, 0, None) });
        assert_eq!(done.result, Err(libc::EBADF), "no such file yet");
        let another = ring.add_file(self::file()).unwrap();
        let done = one(&mut ring, DiskOp { file: another, ..op(DiskAction::Sync, 0, 0, None) });
        assert_eq!((another, done.result), (FileId(1), Ok(0)));
        let done = one(
            &mut ring,
            DiskOp { offset_bytes: u64::MAX - 4095, ..op(DiskAction::Read, 0, 1, pool.take(PAGE_BYTES)) },
        );
        assert!(done.result.is_err() && done.buf.is_some(), "an offset that no file has");
    }

    /// Goal: more operations than the submission queue has entries all come back, each with its own buffer.
    #[test]
    fn takes_more_than_the_queue_holds() {
        let (mut pool, file) = (pool(), file());
        let (mut ring, _) = Ring::new(&CONFIG, &[pool.region()], &[file.as_fd()]).unwrap();
        for number in 0..64 {
            let mut read = op(DiskAction::Read, number % 16, 1, pool.take(PAGE_BYTES));
            read.user = number;
            ring.disk(read);
        }
        assert_eq!(ring.disk_in_flight(), 64);
        let mut users: Vec<u64> = take(&mut ring, 64)
            .into_iter()
            .map(|completion| match completion {
                Completion::Disk(DiskDone { user, result: Ok(4096), buf: Some(_) }) => user,
                other => panic!("{other:?}"),
            })
            .collect();
        users.sort_unstable();
        assert!(users.into_iter().eq(0..64));
        assert_eq!(ring.disk_in_flight(), 0);
    }

    /// Goal: the service's promise is held to: an operation too many is caught.
    #[test]
    #[should_panic(expected = "admits no more disk operations")]
    fn an_operation_too_many_is_caught() {
        let (mut ring, _) = Ring::new(&RingConfig { operations_max: 1, ..CONFIG }, &[], &[]).unwrap();
        ring.disk(op(DiskAction::Sync, 0, 0, None));
        ring.disk(op(DiskAction::Sync, 0, 0, None));
    }

    /// Goal: readiness is told once, by level, and for what was asked.
    #[test]
    fn tells_readiness_once() {
        for setup in [Setup::Deferred, Setup::Plain] {
            let (mut ring, _) = Ring::with_setup(setup, failures(), &CONFIG, &[], &[]).unwrap();
            let (near, far) = UnixStream::pair().unwrap();
            ring.watch(&near, 7, Interest::Readable).unwrap();
            ring.wait(Duration::ZERO);
            assert!(ring.next().is_none());
            rustix::io::write(&far, b"x").unwrap();
            let ready = take(&mut ring, 1);
            assert!(
                matches!(ready[..], [Completion::Ready(7, Ready { readable: true, writable: false })]),
                "{ready:?}"
            );
            ring.wait(Duration::from_millis(1));
            assert!(ring.next().is_none(), "once");
            // It was ready before: told at once.
            ring.watch(&near, 8, Interest::Both).unwrap();
            let ready = take(&mut ring, 1);
            assert!(
                matches!(ready[..], [Completion::Ready(8, Ready { readable: true, writable: true })]),
                "{ready:?}"
            );
            drop(far);
            ring.watch(&near, 9, Interest::Writable).unwrap();
            let ready = take(&mut ring, 1);
            assert!(
                matches!(ready[..], [Completion::Ready(9, Ready { readable: true, .. })]),
                "hung up: {ready:?}"
            );
        }
    }

    /// Goal: readiness of a socket that was given up never reaches the next one, which has the same descriptor
    /// and the same token. Method: given up before it is submitted, while the kernel has it, and when it has
    /// fired already.
    #[test]
    fn stale_readiness_reaches_nobody() {
        for stage in 0..3 {
            let (mut ring, _) = Ring::new(&CONFIG, &[], &[]).unwrap();
            let (near, far) = UnixStream::pair().unwrap();
            let number = near.as_raw_fd();
            let watch = ring.watch(&near, 7, Interest::Readable).unwrap();
            if stage >= 1 {
                ring.submit();
            }
            if stage == 2 {
                rustix::io::write(&far, b"x").unwrap();
                // Let it be posted, but not taken.
                ring.wait(Duration::from_millis(20));
            }
            ring.unwatch(watch);
            ring.unwatch(watch);
            drop(near);
            let (new, new_far) = UnixStream::pair().unwrap();
            // The number is free again unless another test was quicker; the tokens are the same either way.
            let reused = [new.as_raw_fd(), new_far.as_raw_fd()].contains(&number);
            let new_watch = ring.watch(&new, 7, Interest::Readable).unwrap();
            assert_ne!(watch, new_watch);
            for _ in 0..5 {
                ring.wait(Duration::from_millis(2));
                assert!(ring.next().is_none(), "stage {stage}, reused {reused}");
            }
            rustix::io::write(&new_far, b"x").unwrap();
            assert!(matches!(take(&mut ring, 1)[..], [Completion::Ready(7, _)]));
            // What has been delivered can't be given up: this must not touch anything.
            ring.unwatch(new_watch);
        }
    }

    /// Goal: the table of watches is bounded, a refusal passes, and nothing sleeps through it.
    #[test]
    fn refuses_watches_past_the_bound() {
        let (mut ring, _) = Ring::new(&CONFIG, &[], &[]).unwrap();
        let (near, _far) = UnixStream::pair().unwrap();
        let watches: Vec<WatchId> =
            std::iter::from_fn(|| ring.watch(&near, 0, Interest::Readable)).take(100).collect();
        assert_eq!(watches.len(), CONFIG.watch_slots());
        let before = Instant::now();
        ring.wait(Duration::from_secs(10));
        assert!(before.elapsed() < Duration::from_secs(5), "no sleep without end after a refusal");
        for watch in watches {
            ring.unwatch(watch);
        }
        let again = (0..1000).find_map(|_| {
            ring.wait(Duration::from_millis(1));
            assert!(ring.next().is_none());
            ring.watch(&near, 1, Interest::Readable)
        });
        assert!(again.is_some());
    }

    /// Goal: without enough locked memory everything works, and the warning says what to do. Method: a thread
    /// without the capability, in a process of its own, since the limit is the process's.
    #[test]
    fn runs_without_registered_buffers() {
        use rustix::process::{Resource, Rlimit, setrlimit};
        use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
        const CHILD: &str = "REACTOR_TEST_MEMLOCK";
        if std::env::var_os(CHILD).is_none() {
            let name = "ring::tests::runs_without_registered_buffers";
            let child = std::process::Command::new(std::env::current_exe().unwrap())
                .args(["--exact", name, "--nocapture"])
                .env(CHILD, "1")
                .output()
                .unwrap();
            assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stderr));
            return;
        }
        let maximum = rustix::process::getrlimit(Resource::Memlock).maximum;
        setrlimit(Resource::Memlock, Rlimit { current: Some(65536), maximum }).unwrap();
        let mut sets = capabilities(None).unwrap();
        sets.effective.remove(CapabilitySet::IPC_LOCK);
        set_capabilities(None, sets).unwrap();
        let (mut pool, file) = (pool(), file());
        let (mut ring, warnings) = Ring::new(&CONFIG, &[pool.region()], &[file.as_fd()]).unwrap();
        assert!(!ring.buffers_registered());
        let text: String = warnings.iter().map(ToString::to_string).collect();
        assert!(text.contains("RLIMIT_MEMLOCK is 65536 bytes") && text.contains("LimitMEMLOCK"), "{text}");
        let needed = pool.region().bytes.to_string();
        assert!(text.contains(&needed), "{text} lacks {needed}");
        let mut buf = pool.take(PAGE_BYTES).unwrap();
        buf.fill(9);
        let done = one(&mut ring, op(DiskAction::Write { durable: true }, 3, 1, Some(buf)));
        assert_eq!(done.result, Ok(PAGE_BYTES as u32));
        assert!(read(&mut ring, &mut pool, 3).buf.unwrap().iter().all(|&byte| byte == 9));
    }

    /// Goal: arenas of several cores in one ring are told apart, and one over 1 GiB is registered in pieces.
    #[test]
    fn finds_the_registered_piece() {
        let (mut ring, _) = Ring::new(&CONFIG, &[], &[]).unwrap();
        let mut pool = Pool::new(PoolConfig { counts: [1, 0, 0], arena: 1 }).unwrap();
        let buf = pool.take(PAGE_BYTES).unwrap();
        let base = 1 << 40;
        let regions = [
            Registered { region: Region { arena: 0, address: 4096, bytes: 4096 }, first: 0 },
            Registered {
                region: Region { arena: 1, address: base, bytes: 3 * REGISTERED_BYTES_MAX },
                first: 1,
            },
        ];
        ring.registered = regions.map(Some).to_vec();
        assert_eq!(ring.registered_at(Some(&buf), base), Some(1));
        assert_eq!(ring.registered_at(Some(&buf), base + 2 * REGISTERED_BYTES_MAX), Some(3));
        assert_eq!(ring.registered_at(Some(&buf), base + 3 * REGISTERED_BYTES_MAX), None);
        assert_eq!(ring.registered_at(Some(&buf), 4096), None);
        ring.registered.clear();
        assert_eq!(ring.registered_at(Some(&buf), base), None);
    }

    /// Goal: workers are bound and counted as configured, and where they can't be, that is a warning by name.
    #[test]
    fn binds_the_workers() {
        let cpu = crate::pin::allowed_cpus().unwrap()[0];
        let file = file();
        let config = RingConfig { worker_cpus: vec![cpu], workers_max: [2, 1], ..CONFIG };
        let (mut ring, warnings) = Ring::new(&config, &[], &[file.as_fd()]).unwrap();
        assert!(warnings.is_empty(), "{warnings:?}");
        for page in 0..16 {
            ring.disk(op(DiskAction::PunchHole, page, 1, None));
        }
        take(&mut ring, 16);
        assert!(io_workers().unwrap() >= 1);
        let config = RingConfig { worker_cpus: vec![1023], ..CONFIG };
        let (_, warnings) = Ring::new(&config, &[], &[]).unwrap();
        if let [warning] = &warnings[..] {
            assert!(warning.to_string().contains("IORING_REGISTER_IOWQ_AFF"), "{warning}");
        }
    }

    /// Goal: a ring that goes while the kernel still has a buffer leaves that memory alone, and its pool too.
    #[test]
    fn a_ring_that_goes_early_leaves_its_buffers() {
        let (mut pool, file) = (pool(), file());
        let (mut ring, _) = Ring::new(&CONFIG, &[pool.region()], &[file.as_fd()]).unwrap();
        ring.disk(op(DiskAction::Read, 0, 1, pool.take(PAGE_BYTES)));
        ring.submit();
        drop(ring);
        assert_eq!(pool.free(), [63, 4, 4], "never handed out again");
    }
}
