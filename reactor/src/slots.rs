//! A fixed table whose places are named with a generation, so that a late answer never meets a new guest.

/// A place in a [`Slots`] table: index in the low 32 bits, generation in the high ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot(u64);

impl Slot {
    /// The table index, for small parallel arrays.
    pub fn index(self) -> usize {
        self.0 as u32 as usize
    }

    /// As a number that fits a completion's user data.
    pub fn to_bits(self) -> u64 {
        self.0
    }

    /// The inverse of [`Slot::to_bits`]. A number that never was a slot names nothing in any table.
    pub fn from_bits(bits: u64) -> Slot {
        Slot(bits)
    }
}

#[derive(Debug)]
struct Place<T> {
    generation: u32,
    value: Option<T>,
}

/// A table of at most `capacity` values. Inserting and removing are O(1) and allocate nothing.
/// Invariant: `free` holds exactly the indices whose place is empty.
#[derive(Debug)]
pub struct Slots<T> {
    places: Vec<Place<T>>,
    free: Vec<u32>,
    capacity: usize,
}

impl<T> Slots<T> {
    /// An empty table. Places are made as they are first needed, up to `capacity`.
    pub fn with_capacity(capacity: usize) -> Slots<T> {
        assert!(capacity < u32::MAX as usize);
        Slots { places: Vec::new(), free: Vec::new(), capacity }
    }

    /// An empty table with every place made now, for tables on the IO path.
    pub fn preallocated(capacity: usize) -> Slots<T> {
        let mut slots = Slots::with_capacity(capacity);
        slots.places.extend((0..capacity).map(|_| Place { generation: 1, value: None }));
        slots.free.extend((0..capacity as u32).rev());
        slots
    }

    /// Puts `value` into a free place.
    ///
    /// # Errors
    /// Gives the value back when the table is full.
    pub fn insert(&mut self, value: T) -> Result<Slot, T> {
        let index = match self.free.pop() {
            Some(index) => index,
            None if self.places.len() < self.capacity => {
                self.places.push(Place { generation: 1, value: None });
                (self.places.len() - 1) as u32
            }
            None => return Err(value),
        };
        let place = &mut self.places[index as usize];
        debug_assert!(place.value.is_none());
        place.value = Some(value);
        Ok(Slot(u64::from(place.generation) << 32 | u64::from(index)))
    }

    /// Takes the value out; `None` if the slot's guest has already left.
    pub fn remove(&mut self, slot: Slot) -> Option<T> {
        let place = self.places.get_mut(slot.index())?;
        if u64::from(place.generation) != slot.0 >> 32 {
            return None;
        }
        let value = place.value.take()?;
        place.generation = place.generation.wrapping_add(1).max(1);
        self.free.push(slot.index() as u32);
        Some(value)
    }

    /// The name of whoever is at this table index now.
    pub fn slot_at(&self, index: usize) -> Option<Slot> {
        let place = self.places.get(index)?;
        place.value.as_ref()?;
        Some(Slot(u64::from(place.generation) << 32 | index as u64))
    }

    /// The value at `slot`, unless its guest has left.
    pub fn get(&self, slot: Slot) -> Option<&T> {
        let place = self.places.get(slot.index())?;
        if u64::from(place.generation) != slot.0 >> 32 {
            return None;
        }
        place.value.as_ref()
    }

    /// The value at `slot`, unless its guest has left.
    pub fn get_mut(&mut self, slot: Slot) -> Option<&mut T> {
        let place = self.places.get_mut(slot.index())?;
        if u64::from(place.generation) != slot.0 >> 32 {
            return None;
        }
        place.value.as_mut()
    }

    /// How many places are taken.
    pub fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    /// Whether no place is taken.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the next insert would fail.
    pub fn is_full(&self) -> bool {
        self.len() == self.capacity
    }

    /// Every taken place, in index order.
    pub fn iter(&self) -> impl Iterator<Item = (Slot, &T)> {
        self.places.iter().enumerate().filter_map(|(index, place)| {
            let slot = Slot(u64::from(place.generation) << 32 | index as u64);
            place.value.as_ref().map(|value| (slot, value))
        })
    }

    /// Every taken place, in index order.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (Slot, &mut T)> {
        self.places.iter_mut().enumerate().filter_map(|(index, place)| {
            let slot = Slot(u64::from(place.generation) << 32 | index as u64);
            place.value.as_mut().map(|value| (slot, value))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a name that outlived its guest finds nothing. Method: reuse the same place.
    #[test]
    fn a_late_name_finds_nothing() {
        let mut slots = Slots::with_capacity(1);
        let first = slots.insert('a').unwrap();
        assert_eq!(slots.insert('x'), Err('x'));
        assert_eq!(slots.remove(first), Some('a'));
        let second = slots.insert('b').unwrap();
        assert_eq!(first.index(), second.index());
        assert_eq!(slots.get(first), None);
        assert_eq!(slots.remove(first), None);
        assert_eq!(slots.get(second), Some(&'b'));
        assert_eq!(slots.len(), 1);
    }

    /// Goal: made-up numbers, as a disk or a peer may send, name nothing and do not panic.
    #[test]
    fn a_made_up_name_finds_nothing() {
        let mut slots: Slots<u8> = Slots::preallocated(4);
        for bits in [0, 1, 7, u64::MAX, 1 << 32] {
            assert_eq!(slots.get_mut(Slot::from_bits(bits)), None);
            assert_eq!(slots.remove(Slot::from_bits(bits)), None);
        }
    }
}
