//! Memory of a device, lent to readers of its own core instead of copied for them.
//!
//! Whoever holds a [`Lent`] sees what was there when it was lent: a write to a piece of which something is lent goes to
//! another piece that takes its place, and the old one comes back here with its last reader. Invariant: of the pieces that
//! a shelf was given as spares, those that are not here have each been replaced while lent, or stand for one that was; so
//! with `lent_max` spares and at most `lent_max` lent there is always one for a write that needs it.

use reactor::buf::Buf;
use std::cell::{Cell, RefCell};
use std::fmt;
use std::ops::Deref;
use std::rc::Rc;

/// What of a part that is lent, or that a request for is expected, is fetched to the cache at once: from there on the processor's
/// own prefetching follows.
pub(crate) const PREFETCH_BYTES: usize = 1024;

/// The same of what this core will read all of itself, where nothing follows on its own: about two commands' worth.
const READ_BYTES: usize = 8 << 10;

/// What one core's instance of a device has lent.
#[derive(Debug)]
pub struct Shelf {
    lent: Cell<usize>,
    lent_max: usize,
    spare: RefCell<Vec<Rc<Buf>>>,
}

impl Shelf {
    /// For at most `lent_max` at once, with as many pieces as spares; none where nothing is written to.
    pub fn new(lent_max: usize, spare: Vec<Rc<Buf>>) -> Rc<Shelf> {
        Rc::new(Shelf { lent: Cell::new(0), lent_max, spare: RefCell::new(spare) })
    }

    /// Lends `bytes` of a piece from `first` on. `None`: so much is lent that it has to be copied.
    ///
    /// # Panics
    /// When the piece is shorter.
    #[inline]
    pub fn lend(self: &Rc<Shelf>, piece: &Rc<Buf>, first: usize, bytes: usize) -> Option<Lent> {
        assert!(first + bytes <= piece.len());
        if self.lent.get() >= self.lent_max {
            return None;
        }
        self.lent.set(self.lent.get() + 1);
        piece.prefetch(first, bytes.min(PREFETCH_BYTES));
        let (piece, shelf) = (Some(Rc::clone(piece)), Rc::clone(self));
        Some(Lent { piece, shelf, first: first as u32, bytes: bytes as u32 })
    }

    /// Puts a spare piece in the place of one of which something is lent: as it is, or if `copied` with the same in it.
    ///
    /// # Panics
    /// When there is none, which can't be while something of `piece` is lent.
    pub fn replace(&self, piece: &mut Rc<Buf>, copied: bool) {
        let spare = self.spare.borrow_mut().pop();
        let mut spare = spare.expect("there are as many as may be lent");
        if let (true, Some(new)) = (copied, Rc::get_mut(&mut spare)) {
            new.copy_from_slice(piece);
        }
        *piece = spare;
    }

    /// How many are lent.
    pub fn lent(&self) -> usize {
        self.lent.get()
    }
}

/// A part of a piece as it was; derefs to its bytes.
pub struct Lent {
    /// Here until it is dropped.
    piece: Option<Rc<Buf>>,
    shelf: Rc<Shelf>,
    first: u32,
    bytes: u32,
}

impl Lent {
    /// Hints that this core will read all of it, soon.
    #[inline]
    pub fn expect(&self) {
        if let Some(piece) = &self.piece {
            let bytes = (self.bytes as usize).min(READ_BYTES).saturating_sub(PREFETCH_BYTES);
            piece.prefetch(self.first as usize + PREFETCH_BYTES, bytes);
        }
    }

    /// Takes the first `bytes` off, lent by themselves. They keep nothing that the rest would not keep.
    ///
    /// # Panics
    /// When there are fewer.
    #[must_use]
    pub fn split_to(&mut self, bytes: usize) -> Lent {
        assert!(bytes <= self.len());
        self.shelf.lent.set(self.shelf.lent.get() + 1);
        let (piece, shelf) = (self.piece.clone(), Rc::clone(&self.shelf));
        let head = Lent { piece, shelf, first: self.first, bytes: bytes as u32 };
        self.first += bytes as u32;
        self.bytes -= bytes as u32;
        head
    }
}

impl Deref for Lent {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        let (first, bytes) = (self.first as usize, self.bytes as usize);
        self.piece.as_ref().map_or(&[], |piece| &piece[first..first + bytes])
    }
}

impl Drop for Lent {
    #[inline]
    fn drop(&mut self) {
        self.shelf.lent.set(self.shelf.lent.get() - 1);
        if let Some(piece) = self.piece.take()
            && Rc::strong_count(&piece) == 1
        {
            self.shelf.spare.borrow_mut().push(piece);
        }
    }
}

impl fmt::Debug for Lent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lent({})", self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use reactor::buf::{BUF_BYTES_MAX, Pool, PoolConfig};

    /// Goal: readers keep what they were lent however often it is written, and there is always a spare for that. Method:
    /// all that may be lent of one piece, replaced after each.
    #[test]
    fn readers_keep_what_was_there() {
        let mut pool = Pool::new(PoolConfig { counts: [0, 0, 5], arena: 0 }).unwrap();
        let mut take = |byte| {
            let mut buf = pool.take(BUF_BYTES_MAX).unwrap();
            buf.fill(byte);
            Rc::new(buf)
        };
        let mut piece = take(0);
        let shelf = Shelf::new(4, (1..5).map(|_| take(0xee)).collect());
        for _ in 0..3 {
            let mut lents = Vec::new();
            for byte in 0..4 {
                Rc::get_mut(&mut piece).unwrap()[7..9].fill(byte);
                lents.push(shelf.lend(&piece, 7, 2).unwrap());
                assert!(Rc::get_mut(&mut piece).is_none());
                shelf.replace(&mut piece, byte % 2 == 0);
                let new = Rc::get_mut(&mut piece).unwrap();
                assert!(byte % 2 != 0 || new[7..9] == [byte; 2]);
            }
            assert!(shelf.lend(&piece, 0, 1).is_none(), "as many as may be");
            assert!(lents.iter().zip(0u8..).all(|(lent, byte)| lent[..] == [byte; 2]));
            drop(lents);
            assert_eq!((shelf.lent(), shelf.spare.borrow().len()), (0, 4));
        }
        let mut rest = shelf.lend(&piece, 0, 9).unwrap();
        let head = rest.split_to(4);
        assert_eq!((&head[..], &rest[..]), (&piece[..4], &piece[4..9]));
        drop((head, rest));
        assert_eq!((shelf.lent(), shelf.spare.borrow().len()), (0, 4));
        let two = [0, 1].map(|_| shelf.lend(&piece, 0, 1).unwrap());
        drop(two);
        assert_eq!(shelf.spare.borrow().len(), 4, "one that was not replaced stays where it is");
    }
}
