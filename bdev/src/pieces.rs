//! Memory in pieces of 64 KiB, of one core: what a device in memory, or a pool's part, is made of. Parts of pieces are lent to
//! readers; who writes to a piece of which something is lent writes to another one that takes its place.
//!
//! The memory is made of the reactor's buffers: those are taken on the calling thread's node and touched at start, and lie
//! on huge pages where the kernel has them, which halves the time of a random read.

use crate::io::PIECE_BYTES;
use crate::lent::{Lent, PREFETCH_BYTES, Shelf};
use reactor::buf::{BUF_BYTES_MAX, Buf, Pool, PoolConfig};
use std::fmt;
use std::rc::Rc;

/// Of how many pieces one more is taken, so that readers can be lent what is written meanwhile; and bounds for that.
const PIECES_A_SPARE: u64 = 16;
pub(crate) const SPARES_MIN: u64 = 16;
const SPARES_MAX: u64 = 256;

/// The most memory of one core: what a buffer arena can name.
const BYTES_MAX: u64 = 8 << 40;

/// See the module.
pub struct Pieces {
    /// Before `home`: they go home when this is dropped. Counted, so that parts of them can be lent.
    bufs: Vec<Rc<Buf>>,
    shelf: Rc<Shelf>,
    _home: Pool,
}

/// Memory that so many pieces take, with their spares.
pub fn memory_bytes(pieces: u64) -> u64 {
    (pieces + spares(pieces)) * PIECE_BYTES
}

fn spares(pieces: u64) -> u64 {
    if pieces == 0 { 0 } else { (pieces / PIECES_A_SPARE).clamp(SPARES_MIN, SPARES_MAX) }
}

impl Pieces {
    /// So many pieces of zeroes. To be called on the thread of the core that uses them.
    ///
    /// # Errors
    /// When there isn't as much memory.
    pub fn new(pieces: u64) -> std::io::Result<Pieces> {
        if pieces > BYTES_MAX / PIECE_BYTES - SPARES_MAX {
            return Err(std::io::ErrorKind::OutOfMemory.into());
        }
        let (count, spares) = (pieces as u32, spares(pieces) as usize);
        // In no table of the rings': where a ring meets one of them, in an asker's hands, it needs none.
        let mut home = Pool::new(PoolConfig { counts: [0, 0, count + spares as u32], arena: u16::MAX })?;
        let mut bufs: Vec<Rc<Buf>> = std::iter::from_fn(|| home.take(BUF_BYTES_MAX)).map(Rc::new).collect();
        assert!(bufs.len() == count as usize + spares);
        let shelf = Shelf::new(spares, bufs.split_off(count as usize));
        Ok(Pieces { bufs, shelf, _home: home })
    }

    /// Some bytes of a piece, to be read.
    ///
    /// # Panics
    /// When there is no such piece, or it is shorter.
    #[inline]
    pub fn at(&self, piece: usize, first: usize, bytes: usize) -> &[u8] {
        &self.bufs[piece][first..][..bytes]
    }

    /// The same to be written: what is lent of the piece stays as it is.
    ///
    /// # Panics
    /// As [`Pieces::at`].
    #[inline]
    pub fn at_mut(&mut self, piece: usize, first: usize, bytes: usize) -> &mut [u8] {
        let piece = &mut self.bufs[piece];
        if Rc::get_mut(piece).is_none() {
            // What is written whole need not be copied.
            self.shelf.replace(piece, bytes < piece.len());
        }
        let Some(piece) = Rc::get_mut(piece) else { unreachable!("it was nobody else's or is new") };
        &mut piece[first..][..bytes]
    }

    /// A whole piece: the buffer that it came in takes its place, and the asker gets the one that was there.
    ///
    /// # Panics
    /// When there is no such piece, or the buffer is shorter than one.
    pub fn swap(&mut self, piece: usize, buf: &mut Buf) {
        assert!(buf.len() == BUF_BYTES_MAX, "a piece is replaced by a piece");
        let piece = &mut self.bufs[piece];
        if Rc::get_mut(piece).is_none() {
            self.shelf.replace(piece, false);
        }
        if let Some(piece) = Rc::get_mut(piece) {
            std::mem::swap(piece, buf);
        }
    }

    /// Lends some bytes of a piece. `None`: so much is lent that it has to be copied.
    ///
    /// # Panics
    /// As [`Pieces::at`].
    #[inline]
    pub fn lend(&self, piece: usize, first: usize, bytes: usize) -> Option<Lent> {
        self.shelf.lend(&self.bufs[piece], first, bytes)
    }

    /// Hints that these bytes will be read or written soon. There need be none.
    #[inline]
    pub fn expect(&self, piece: usize, first: usize, bytes: usize) {
        // Whoever hints is not to be punished for a mistake.
        if let Some(piece) = self.bufs.get(piece) {
            piece.prefetch(first, bytes.min(PREFETCH_BYTES));
        }
    }

    /// How many parts are lent.
    pub fn lent(&self) -> usize {
        self.shelf.lent()
    }
}

impl fmt::Debug for Pieces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pieces").field("pieces", &self.bufs.len()).finish_non_exhaustive()
    }
}
