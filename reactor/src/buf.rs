//! IO buffers: taken from a core's arena at start, moved from layer to layer, back home when dropped.
//!
//! An arena is one page-aligned mapping, cut into three classes ([`CLASS_BYTES`]). The core that owns the
//! [`Pool`] takes without atomics; a [`Buf`] may travel to any core and be dropped there, which pushes it on a
//! lock-free list that the owner empties whole (so there is no ABA). Invariant: every piece is in exactly one
//! of: a local free list, the returned list, one `Buf`.
#![allow(unsafe_code, reason = "owned pieces of one mapping, shared with the kernel and between cores")]

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

/// Alignment of every buffer, and the smallest class.
pub const PAGE_BYTES: usize = 4096;

/// The sizes a buffer can have. The largest is a pool chunk's and so the largest piece of any request.
pub const CLASS_BYTES: [usize; 3] = [PAGE_BYTES, 4 * PAGE_BYTES, 16 * PAGE_BYTES];

/// The largest buffer: 64 KiB.
pub const BUF_BYTES_MAX: usize = CLASS_BYTES[2];

/// A cache line.
#[cfg(target_arch = "x86_64")]
const LINE_BYTES: usize = 64;

/// No next piece in the returned list.
const END: u32 = u32::MAX;

/// One core's buffer memory, as the cores see it. Freed when the pool and all its buffers are gone.
struct Arena {
    memory: NonNull<u8>,
    bytes: usize,
    /// Which arena this is among those registered with the rings.
    index: u16,
    /// Pages from the start; piece `i`'s offset and class.
    pieces: Box<[Piece]>,
    /// Top of the returned list, a piece's number.
    returned: AtomicU32,
}

struct Piece {
    offset_pages: u32,
    class: u8,
    /// The piece below in the returned list.
    next: AtomicU32,
}

// SAFETY: `memory` is reached only through a `Buf` (which owns its piece) or by the pool that frees the arena
// when no `Buf` is left; everything else is immutable or atomic.
unsafe impl Send for Arena {}
// SAFETY: as above.
unsafe impl Sync for Arena {}

/// How many buffers of each class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolConfig {
    /// One count for each of [`CLASS_BYTES`].
    pub counts: [u32; 3],
    /// This arena's place in the table registered with the rings.
    pub arena: u16,
}

impl PoolConfig {
    /// Divides `bytes` among the classes: an eighth each for the small ones, the rest for the largest.
    pub fn for_bytes(bytes: usize, arena: u16) -> PoolConfig {
        let eighth = bytes / 8;
        PoolConfig {
            counts: [
                (eighth / CLASS_BYTES[0]) as u32,
                (eighth / CLASS_BYTES[1]) as u32,
                ((bytes - 2 * eighth) / CLASS_BYTES[2]) as u32,
            ],
            arena,
        }
    }

    /// Memory that an arena of this shape takes.
    pub fn bytes(&self) -> usize {
        self.counts.iter().zip(CLASS_BYTES).map(|(&count, bytes)| count as usize * bytes).sum()
    }
}

/// The buffers of one core. Lives on that core's thread.
pub struct Pool {
    arena: NonNull<Arena>,
    free: [Vec<u32>; 3],
    /// Of other pools, of the largest class: given here in exchange for as many of ours.
    foreign: Vec<Buf>,
}

impl Pool {
    /// Maps and zeroes the arena (so that its pages are on the calling thread's node).
    ///
    /// # Errors
    /// The kernel's, when the memory can't be mapped.
    pub fn new(config: PoolConfig) -> std::io::Result<Pool> {
        let bytes = config.bytes().max(PAGE_BYTES);
        let memory = map(bytes)?;
        let mut pieces = Vec::with_capacity(config.counts.iter().map(|&count| count as usize).sum());
        let mut free: [Vec<u32>; 3] = config.counts.map(|count| Vec::with_capacity(count as usize));
        let mut offset_pages = 0u32;
        // Largest first, so that they share huge pages where the kernel gives them.
        for class in (0..CLASS_BYTES.len()).rev() {
            for _ in 0..config.counts[class] {
                free[class].push(pieces.len() as u32);
                pieces.push(Piece { offset_pages, class: class as u8, next: AtomicU32::new(END) });
                offset_pages += (CLASS_BYTES[class] / PAGE_BYTES) as u32;
            }
            free[class].reverse();
        }
        let arena = Box::new(Arena {
            memory,
            bytes,
            index: config.arena,
            pieces: pieces.into_boxed_slice(),
            returned: AtomicU32::new(END),
        });
        let foreign = Vec::with_capacity(config.counts[2] as usize);
        Ok(Pool { arena: NonNull::from(Box::leak(arena)), free, foreign })
    }

    /// A buffer of at least `bytes`, with `len() == bytes`, from the smallest class that has one. Its contents
    /// are whatever its last user left there. `None`: nothing that large is free now.
    ///
    /// # Panics
    /// When `bytes` is over [`BUF_BYTES_MAX`].
    pub fn take(&mut self, bytes: usize) -> Option<Buf> {
        self.take_within(bytes, BUF_BYTES_MAX)
    }

    /// As [`Pool::take`], but never from a class above `bytes_max`: what lets a quota keep the large ones back.
    ///
    /// # Panics
    /// When `bytes` is over [`BUF_BYTES_MAX`].
    pub fn take_within(&mut self, bytes: usize, bytes_max: usize) -> Option<Buf> {
        assert!(bytes <= BUF_BYTES_MAX);
        let smallest = CLASS_BYTES.iter().position(|&class| bytes <= class)?;
        let past = CLASS_BYTES.iter().take_while(|&&class| class <= bytes_max).count();
        if smallest >= past {
            return None;
        }
        self.pop(smallest..past, bytes)
            .or_else(|| {
                self.reclaim();
                self.pop(smallest..past, bytes)
            })
            .or_else(|| {
                let mut buf = if past == CLASS_BYTES.len() { self.foreign.pop() } else { None }?;
                buf.set_len(bytes);
                Some(buf)
            })
    }

    fn pop(&mut self, classes: std::ops::Range<usize>, bytes: usize) -> Option<Buf> {
        let piece = self.free[classes].iter_mut().find_map(Vec::pop)?;
        // SAFETY: the arena lives until the pool and every `Buf` are gone; only shared access is made.
        let arena = unsafe { self.arena.as_ref() };
        let Piece { offset_pages, class, .. } = arena.pieces[piece as usize];
        // SAFETY: the piece lies inside the mapping by construction.
        let memory = unsafe { arena.memory.add(offset_pages as usize * PAGE_BYTES) };
        Some(Buf { arena: self.arena, memory, piece, len: bytes as u32, class })
    }

    /// Takes back a buffer of this pool without atomics. One of another pool of the largest class is kept and lent like our
    /// own, up to as many as those are: a device may have kept one of ours and handed out one of its own instead. Others
    /// go home by their own way.
    #[inline]
    pub fn give(&mut self, buf: Buf) {
        if buf.arena == self.arena {
            self.free[usize::from(buf.class)].push(buf.piece);
            std::mem::forget(buf);
        } else if buf.capacity() == BUF_BYTES_MAX && self.foreign.len() < self.foreign.capacity() {
            self.foreign.push(buf);
        }
    }

    /// How many buffers of each class are free, those just returned by other cores included.
    pub fn free(&mut self) -> [usize; 3] {
        self.reclaim();
        [self.free[0].len(), self.free[1].len(), self.free[2].len() + self.foreign.len()]
    }

    /// Empties the returned list into the local ones.
    fn reclaim(&mut self) {
        // SAFETY: as in `pop`.
        let arena = unsafe { self.arena.as_ref() };
        // Acquire: the last user's accesses happen before ours.
        let mut piece = arena.returned.swap(END, Ordering::Acquire);
        while piece != END {
            let here = &arena.pieces[piece as usize];
            let next = here.next.load(Ordering::Relaxed);
            self.free[usize::from(here.class)].push(piece);
            piece = next;
        }
    }

    /// The mapping, to be registered with a ring: arena number, address, bytes.
    pub fn region(&self) -> Region {
        // SAFETY: as in `pop`.
        let arena = unsafe { self.arena.as_ref() };
        Region { arena: arena.index, address: arena.memory.as_ptr() as usize, bytes: arena.bytes }
    }
}

/// Where an arena lies, as a number: only `ring` makes an address of it again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// [`PoolConfig::arena`].
    pub arena: u16,
    /// Of the first byte.
    pub address: usize,
    /// Length.
    pub bytes: usize,
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.reclaim();
        // SAFETY: as in `pop`.
        let arena = unsafe { self.arena.as_ref() };
        if self.free.iter().map(Vec::len).sum::<usize>() == arena.pieces.len() {
            // SAFETY: every piece is home, so no `Buf` is left, and nobody but us knows the arena.
            let arena = unsafe { Box::from_raw(self.arena.as_ptr()) };
            unmap(arena.memory, arena.bytes);
        }
        // Otherwise a buffer is still out, perhaps with the kernel: its memory must outlive us, so it stays.
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("free", &self.free.each_ref().map(Vec::len)).finish_non_exhaustive()
    }
}

/// A piece of an arena, owned. Dereferences to its first `len` bytes.
pub struct Buf {
    arena: NonNull<Arena>,
    memory: NonNull<u8>,
    piece: u32,
    len: u32,
    class: u8,
}

// SAFETY: a `Buf` is the only way to its piece, and going home is a lock-free push.
unsafe impl Send for Buf {}

impl Buf {
    /// How long it can be made.
    pub fn capacity(&self) -> usize {
        CLASS_BYTES[usize::from(self.class)]
    }

    /// Says how many bytes count. Those past the old length are whatever was there.
    ///
    /// # Panics
    /// When `bytes` is over [`Buf::capacity`].
    pub fn set_len(&mut self, bytes: usize) {
        assert!(bytes <= self.capacity());
        self.len = bytes as u32;
    }

    /// Hints that these of its first bytes will be read soon, by this core: they are fetched to its second-level cache while
    /// it goes on. What lies past the end is left out.
    #[inline]
    pub fn prefetch(&self, first: usize, bytes: usize) {
        #[cfg(target_arch = "x86_64")]
        for at in (first..(first + bytes).min(self.len as usize)).step_by(LINE_BYTES) {
            // SAFETY: inside the piece; and a hint reads nothing that the program could see.
            unsafe {
                use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
                _mm_prefetch::<_MM_HINT_T1>(self.memory.as_ptr().wrapping_add(at).cast());
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = (first, bytes);
    }

    /// The arena's number in the table registered with the rings.
    pub fn arena(&self) -> u16 {
        // SAFETY: the arena lives at least as long as this piece of it is out.
        unsafe { self.arena.as_ref() }.index
    }
}

impl Deref for Buf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the piece is ours alone, mapped, initialised (the mapping is zeroed), and `len` fits it.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr(), self.len as usize) }
    }
}

impl DerefMut for Buf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `&mut self` makes it unique.
        unsafe { std::slice::from_raw_parts_mut(self.memory.as_ptr(), self.len as usize) }
    }
}

impl Drop for Buf {
    fn drop(&mut self) {
        // SAFETY: the arena lives until this piece is home; after the exchange below we touch it no more.
        let arena = unsafe { self.arena.as_ref() };
        let next = &arena.pieces[self.piece as usize].next;
        let mut top = arena.returned.load(Ordering::Relaxed);
        loop {
            next.store(top, Ordering::Relaxed);
            // Release: our accesses to the piece happen before its next user's.
            match arena.returned.compare_exchange_weak(top, self.piece, Ordering::Release, Ordering::Relaxed)
            {
                Ok(_) => return,
                Err(now) => top = now,
            }
        }
    }
}

impl fmt::Debug for Buf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buf({} of {})", self.len, self.capacity())
    }
}

fn map(bytes: usize) -> std::io::Result<NonNull<u8>> {
    use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous};
    // SAFETY: a fresh private mapping that the kernel places; nothing else can point into it.
    let memory = unsafe {
        mmap_anonymous(
            std::ptr::null_mut(),
            bytes,
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::PRIVATE | MapFlags::NORESERVE,
        )
    }?;
    // Huge pages are used when offered: fewer TLB misses, and fewer pages to pin. Refusal costs nothing.
    // SAFETY: the range is the mapping just made.
    let _ = unsafe { madvise(memory, bytes, Advice::LinuxHugepage) };
    // Touch every page now, on this thread, so that it lies on this core's node and no IO pays for the fault.
    for offset in (0..bytes).step_by(PAGE_BYTES) {
        // SAFETY: inside the mapping.
        let page = unsafe { memory.cast::<u8>().add(offset) };
        // SAFETY: as above; fresh anonymous memory is zero, and stays so.
        unsafe { page.write_volatile(0) };
    }
    NonNull::new(memory.cast()).ok_or_else(|| std::io::Error::from(std::io::ErrorKind::OutOfMemory))
}

fn unmap(memory: NonNull<u8>, bytes: usize) {
    // SAFETY: called once, with what `map` returned, when no reference into it is left.
    let _ = unsafe { rustix::mm::munmap(memory.as_ptr().cast(), bytes) };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(counts: [u32; 3]) -> Pool {
        Pool::new(PoolConfig { counts, arena: 7 }).unwrap()
    }

    /// Goal: buffers are aligned, disjoint, of the smallest class that has one, and never more than promised.
    #[test]
    fn takes_what_fits_until_there_is_none() {
        let mut pool = pool([2, 1, 1]);
        let mut bufs: Vec<Buf> = (0..4).map(|_| pool.take(100).unwrap()).collect();
        assert!(pool.take(1).is_none());
        for (value, buf) in (0u8..).zip(bufs.iter_mut()) {
            assert_eq!(buf.as_ptr() as usize % PAGE_BYTES, 0);
            assert_eq!((buf.len(), buf.arena()), (100, 7));
            let whole = buf.capacity();
            buf.set_len(whole);
            buf.fill(value);
        }
        for (value, buf) in (0u8..).zip(&bufs) {
            assert!(buf.iter().all(|&byte| byte == value));
        }
        bufs.clear();
        assert_eq!(pool.free(), [2, 1, 1]);
    }

    /// Goal: large buffers of another pool that come in exchange are lent like our own, and no more of them are kept than
    /// there are of those; small ones go home.
    #[test]
    fn others_come_in_exchange() {
        let (mut here, mut there) = (pool([1, 0, 2]), pool([1, 0, 4]));
        let mut ours: Vec<Buf> = (0..2).map(|_| here.take(BUF_BYTES_MAX).unwrap()).collect();
        let mut theirs: Vec<Buf> = (0..4).map(|_| there.take(BUF_BYTES_MAX).unwrap()).collect();
        here.give(there.take(1).unwrap());
        assert_eq!((here.free(), there.free()), ([1, 0, 0], [1, 0, 0]));
        theirs.drain(..2).for_each(|buf| here.give(buf));
        assert_eq!(here.free(), [1, 0, 2]);
        let mut large: Vec<Buf> = (0..2).map(|_| here.take(100 * 600).unwrap()).collect();
        assert!(large.iter().all(|buf| buf.len() == 60_000) && here.take(BUF_BYTES_MAX).is_none());
        large.append(&mut ours);
        large.append(&mut theirs);
        for buf in large {
            here.give(buf);
        }
        assert!(here.free()[2] <= 2 + here.foreign.capacity());
        drop(here);
        assert!(there.free()[2] <= 4);
    }

    /// Goal: a buffer dropped on another thread comes home, and one that outlives its pool stays valid.
    #[test]
    fn comes_home_from_other_threads() {
        let mut home = pool([64, 0, 0]);
        for _ in 0..50 {
            let bufs: Vec<Buf> = (0..64).map(|_| home.take(PAGE_BYTES).unwrap()).collect();
            let mut halves = bufs.into_iter();
            std::thread::scope(|scope| {
                for _ in 0..2 {
                    let half: Vec<Buf> = halves.by_ref().take(32).collect();
                    scope.spawn(move || half.into_iter().for_each(|mut buf| buf.fill(1)));
                }
            });
            assert_eq!(home.free(), [64, 0, 0]);
        }
        let mut last = home.take(PAGE_BYTES).unwrap();
        drop(home);
        last.fill(3);
    }
}
