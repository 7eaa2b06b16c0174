//! Lists that are mostly short, without the heap when they are long for once.
//!
//! A list that has grown past its place in its owner keeps what it took from the heap; here that goes from one task to the
//! next, so that the heap is asked only until as many long lists exist as are in use at a time.

use smallvec::SmallVec;

/// Long lists that are kept for the next who needs one.
const KEPT: usize = 256;

/// A list that is mostly short.
pub type Short<T> = SmallVec<[T; 2]>;

/// See the module.
#[derive(Debug)]
pub struct Spare<T>(Vec<Short<T>>);

impl<T> Default for Spare<T> {
    fn default() -> Spare<T> {
        Spare(Vec::new())
    }
}

impl<T> Spare<T> {
    /// Appends to `list`, which becomes a longer one if it is full.
    pub fn push(&mut self, list: &mut Short<T>, item: T) {
        if list.len() == list.inline_size()
            && !list.spilled()
            && let Some(mut longer) = self.0.pop()
        {
            longer.append(list);
            *list = longer;
        }
        list.push(item);
    }

    /// Keeps what an empty list has from the heap.
    pub fn keep(&mut self, list: Short<T>) {
        debug_assert!(list.is_empty());
        if list.spilled() && self.0.len() < KEPT {
            self.0.push(list);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lists_come_back() {
        let mut spare = Spare::default();
        let mut list = Short::new();
        (0..9).for_each(|item| spare.push(&mut list, item));
        let (place, room) = (list.as_ptr(), list.capacity());
        list.clear();
        spare.keep(list);
        let mut next = Short::new();
        (0..2).for_each(|item| spare.push(&mut next, item));
        assert!(!next.spilled());
        (2..9).for_each(|item| spare.push(&mut next, item));
        assert_eq!(next.as_slice(), (0..9).collect::<Vec<_>>());
        assert_eq!((next.as_ptr(), next.capacity()), (place, room));
    }

    #[test]
    fn only_so_many_are_kept() {
        let mut spare = Spare::default();
        for _ in 0..2 * KEPT {
            spare.keep(Short::<u8>::with_capacity(8));
            spare.keep(Short::<u8>::new());
        }
        assert_eq!(spare.0.len(), KEPT);
    }
}
