//! A map slot: where each 4 KiB block of one chunk's worth of a volume is.
//!
//! What a slot means is sixteen pointers, each a block of some chunk or zeroes. It is kept in twelve bytes as long as two
//! chunks do, in which blocks stand at the same place as in the slot: the slot's *own* chunk and one *base* that shines
//! through. A slot that needs more is *exploded* and has its pointers in [`Exploded`], named by index.
//!
//! Invariant: a private own chunk is named by this slot alone and may be written in place, also where no block of the
//! slot points yet. A frozen one may be named elsewhere: nobody writes to it.

use smallvec::SmallVec;

/// Bytes of a block: the smallest thing the map tells apart.
pub const BLOCK_BYTES: u64 = 4096;
/// Bytes of a chunk, and of a slot.
pub const CHUNK_BYTES: u64 = 64 << 10;
/// Blocks of a slot.
pub const SLOT_BLOCKS: u32 = (CHUNK_BYTES / BLOCK_BYTES) as u32;
/// All blocks of a slot.
pub const ALL: u16 = u16::MAX;

/// A chunk of the pool, counted over all members.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Chunk(pub u32);

impl Chunk {
    /// No chunk.
    pub const NONE: Chunk = Chunk(0x7fff_ffff);

    /// Whether it is one.
    pub fn is_some(self) -> bool {
        self != Chunk::NONE
    }
}

/// How many chunks a pool can have: 128 TiB.
pub const CHUNKS_MAX: u32 = 0x7fff_fff0;

const FROZEN: u32 = 1 << 31;
const EXPLODED: u32 = u32::MAX;
/// One in each block's pair of bits.
const ONES: u32 = 0x5555_5555;

/// Where a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// In which chunk.
    pub chunk: Chunk,
    /// The block there, 0 to 15.
    pub block: u8,
    /// It may be written in place.
    pub private: bool,
}

/// A block's pointer, or zeroes.
pub type Pointer = Option<Place>;

/// The distinct chunks of a slot.
pub type Names = SmallVec<[Chunk; 4]>;

/// Where neighbouring blocks of a slot are, if they are together and at the same place in their chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whereabouts {
    /// In the own chunk.
    Own(Chunk),
    /// In the base.
    Base(Chunk),
    /// Nowhere: all are zeroes.
    Zeroes,
    /// In several places, or the slot is exploded.
    Apart,
}

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// The own chunk with [`FROZEN`], or the index of the [`Exploded`].
    own: u32,
    base: u32,
    /// Two bits a block: 0 zeroes, 1 own, 2 base.
    bits: u32,
}

/// What tells a slot that is whole from others of that kind: its own chunk, frozen or not; no chunk if it is empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotWord(u32);

impl SlotWord {
    /// No chunk.
    pub const EMPTY: SlotWord = SlotWord(Chunk::NONE.0);

    /// The slot.
    #[inline]
    pub fn slot(self) -> Slot {
        Slot { own: self.0, base: Chunk::NONE.0, bits: if self == SlotWord::EMPTY { 0 } else { ONES } }
    }

    /// As [`Slot::freeze`].
    pub fn freeze(&mut self) {
        if *self != SlotWord::EMPTY {
            self.0 |= FROZEN;
        }
    }
}

/// The pointers of a slot that two chunks don't do for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exploded {
    /// One a block.
    pub pointers: [Pointer; SLOT_BLOCKS as usize],
    /// The private own chunk, which the slot may go on to fill; [`Chunk::NONE`] if it has none.
    pub own: Chunk,
}

/// Spreads a mask's bits to the low bit of each pair.
fn spread(mask: u16) -> u32 {
    let mut x = u32::from(mask);
    x = (x | x << 8) & 0x00ff_00ff;
    x = (x | x << 4) & 0x0f0f_0f0f;
    x = (x | x << 2) & 0x3333_3333;
    (x | x << 1) & ONES
}

/// The inverse of [`spread`].
fn gather(bits: u32) -> u16 {
    let mut x = bits & ONES;
    x = (x | x >> 1) & 0x3333_3333;
    x = (x | x >> 2) & 0x0f0f_0f0f;
    x = (x | x >> 4) & 0x00ff_00ff;
    (x | x >> 8) as u16
}

/// The mask of `count` blocks from `first` on.
pub fn mask_of(first: u32, count: u32) -> u16 {
    debug_assert!(first + count <= SLOT_BLOCKS);
    (((1u32 << count) - 1) << first) as u16
}

impl Slot {
    /// All zeroes, no chunk.
    pub const EMPTY: Slot = Slot { own: Chunk::NONE.0, base: Chunk::NONE.0, bits: 0 };

    /// All blocks own.
    pub fn whole(chunk: Chunk, frozen: bool) -> Slot {
        Slot { own: chunk.0 | if frozen { FROZEN } else { 0 }, base: Chunk::NONE.0, bits: ONES }
    }

    /// Of two chunks, none of them exploded. `base_mask` wins where both say so.
    pub fn of(own: Chunk, frozen: bool, own_mask: u16, base: Chunk, base_mask: u16) -> Slot {
        let own = own.0 | if frozen && own.is_some() { FROZEN } else { 0 };
        Slot { own, base: base.0, bits: spread(own_mask & !base_mask) | spread(base_mask) << 1 }
    }

    /// An exploded slot by its index.
    pub fn exploded(index: u32) -> Slot {
        Slot { own: index, base: Chunk::NONE.0, bits: EXPLODED }
    }

    /// The index of its [`Exploded`].
    #[inline]
    pub fn exploded_index(self) -> Option<u32> {
        (self.bits == EXPLODED).then_some(self.own)
    }

    /// A slot that is whole, or empty, in four bytes.
    #[inline]
    pub fn word(self) -> Option<SlotWord> {
        (self.bits == ONES && self.base == Chunk::NONE.0 || self.is_empty()).then_some(SlotWord(self.own))
    }

    /// Nothing is mapped and no chunk is named.
    pub fn is_empty(self) -> bool {
        self == Slot::EMPTY
    }

    /// The chunk, if all blocks are its own.
    pub fn whole_chunk(self) -> Option<(Chunk, bool)> {
        (self.bits == ONES).then(|| (self.own_chunk(), self.is_frozen()))
    }

    /// The own chunk; not to be asked of exploded slots.
    #[inline]
    pub fn own_chunk(self) -> Chunk {
        debug_assert!(self.bits != EXPLODED);
        Chunk(self.own & !FROZEN)
    }

    /// Whether the own chunk may not be written in place.
    #[inline]
    pub fn is_frozen(self) -> bool {
        self.own & FROZEN != 0
    }

    /// The chunk that may be written in place, also where the slot has no block in it.
    #[inline]
    pub fn private_chunk(self) -> Option<Chunk> {
        (self.bits != EXPLODED && self.own & FROZEN == 0 && self.own != Chunk::NONE.0)
            .then_some(Chunk(self.own))
    }

    /// The base.
    pub fn base_chunk(self) -> Chunk {
        Chunk(self.base)
    }

    /// The blocks in the own chunk.
    pub fn own_mask(self) -> u16 {
        gather(self.bits)
    }

    /// The blocks in the base.
    pub fn base_mask(self) -> u16 {
        gather(self.bits >> 1)
    }

    /// Blocks that are not zeroes; not to be asked of exploded slots.
    pub fn mapped_mask(self) -> u16 {
        debug_assert!(self.bits != EXPLODED);
        gather(self.bits | self.bits >> 1)
    }

    /// Where a block is; not to be asked of exploded slots.
    #[inline]
    pub fn pointer(self, block: u32) -> Pointer {
        debug_assert!(self.bits != EXPLODED);
        match self.bits >> (2 * block) & 3 {
            0 => None,
            1 => Some(Place { chunk: self.own_chunk(), block: block as u8, private: !self.is_frozen() }),
            _ => Some(Place { chunk: Chunk(self.base), block: block as u8, private: false }),
        }
    }

    /// Where `blocks` blocks from `first` on are.
    #[inline]
    pub fn whereabouts(self, first: u32, blocks: u32) -> Whereabouts {
        debug_assert!(blocks >= 1 && first + blocks <= SLOT_BLOCKS);
        let pairs = (((1u64 << (2 * blocks)) - 1) as u32) << (2 * first);
        let found = self.bits & pairs;
        // An exploded slot has both bits of each pair.
        if found == ONES & pairs {
            Whereabouts::Own(self.own_chunk())
        } else if found == 0 {
            Whereabouts::Zeroes
        } else if found == (ONES << 1) & pairs {
            Whereabouts::Base(self.base_chunk())
        } else {
            Whereabouts::Apart
        }
    }

    /// Nobody writes to the own chunk in place any more. A private chunk without blocks stays private: nobody else can
    /// come to name it.
    pub fn freeze(&mut self) {
        if self.bits != EXPLODED && self.own != Chunk::NONE.0 && self.bits & ONES != 0 {
            self.own |= FROZEN;
        }
    }

    /// The own chunk is named by this slot alone.
    pub fn thawed(mut self) -> Slot {
        debug_assert!(self.bits != EXPLODED);
        self.own &= !FROZEN;
        self
    }

    /// Own and base in each other's place.
    pub fn swapped(self) -> Slot {
        debug_assert!(self.bits != EXPLODED);
        let frozen = if Chunk(self.base).is_some() { FROZEN } else { 0 };
        let bits = (self.bits & ONES) << 1 | (self.bits >> 1) & ONES;
        Slot { own: self.base | frozen, base: self.own & !FROZEN, bits }
    }

    /// Some of its blocks alone, frozen, as a copy takes them along; not to be asked of exploded slots.
    pub fn only(self, mask: u16) -> Slot {
        debug_assert!(self.bits != EXPLODED);
        let bits = self.bits & (spread(mask) * 3);
        let own = if bits & ONES == 0 { Chunk::NONE.0 } else { self.own | FROZEN };
        let base = if bits & (ONES << 1) == 0 { Chunk::NONE.0 } else { self.base };
        Slot { own, base, bits }
    }

    /// Without a private chunk that no block is in, which only its first owner may go on to fill.
    pub fn without_grant(mut self) -> Slot {
        if self.bits != EXPLODED && self.bits & ONES == 0 {
            self.own = Chunk::NONE.0;
        }
        self
    }
}

impl Exploded {
    /// The distinct chunks.
    pub fn names(&self) -> Names {
        let mut names = Names::new();
        for place in self.pointers.iter().flatten() {
            if !names.contains(&place.chunk) {
                names.push(place.chunk);
            }
        }
        if self.own.is_some() && !names.contains(&self.own) {
            names.push(self.own);
        }
        names
    }

    /// Blocks that are not zeroes.
    pub fn mapped_mask(&self) -> u16 {
        (0..SLOT_BLOCKS).filter(|&b| self.pointers[b as usize].is_some()).fold(0, |mask, b| mask | 1 << b)
    }

    /// Nobody writes to any of it in place any more.
    pub fn freeze(&mut self) {
        self.pointers.iter_mut().flatten().for_each(|place| place.private = false);
        if self.pointers.iter().flatten().any(|place| place.chunk == self.own) {
            self.own = Chunk::NONE;
        }
    }
}

/// Exploded slots by index.
#[derive(Debug, Default)]
pub struct Explosions {
    places: Vec<Option<Box<Exploded>>>,
    free: Vec<u32>,
}

impl Explosions {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Memory that they take.
    pub fn memory_bytes(&self) -> usize {
        self.len() * (size_of::<Exploded>() + 16) + self.places.capacity() * 8
    }

    fn insert(&mut self, exploded: Exploded) -> u32 {
        if let Some(index) = self.free.pop() {
            self.places[index as usize] = Some(Box::new(exploded));
            index
        } else {
            self.places.push(Some(Box::new(exploded)));
            self.places.len() as u32 - 1
        }
    }

    fn get(&self, index: u32) -> &Exploded {
        self.places[index as usize].as_ref().expect("a slot names its pointers")
    }

    /// A slot's pointers, all sixteen.
    pub fn pointers(&self, slot: Slot) -> [Pointer; SLOT_BLOCKS as usize] {
        match slot.exploded_index() {
            Some(index) => self.get(index).pointers,
            None => std::array::from_fn(|block| slot.pointer(block as u32)),
        }
    }

    /// Where a block of a slot is.
    #[inline]
    pub fn pointer(&self, slot: Slot, block: u32) -> Pointer {
        match slot.exploded_index() {
            Some(index) => self.get(index).pointers[block as usize],
            None => slot.pointer(block),
        }
    }

    /// The distinct chunks that a slot names, one that it only may fill among them.
    pub fn names(&self, slot: Slot) -> Names {
        if let Some(index) = slot.exploded_index() {
            return self.get(index).names();
        }
        let mut names = Names::new();
        if slot.own_chunk().is_some() {
            names.push(slot.own_chunk());
        }
        if slot.base_chunk().is_some() {
            names.push(slot.base_chunk());
        }
        names
    }

    /// [`Explosions::names`], one after the other.
    #[inline]
    pub fn each_name(&self, slot: Slot, mut each: impl FnMut(Chunk)) {
        match slot.exploded_index() {
            Some(_) => self.names(slot).into_iter().for_each(each),
            None => [slot.own_chunk(), slot.base_chunk()]
                .into_iter()
                .filter(|chunk| chunk.is_some())
                .for_each(&mut each),
        }
    }

    /// Whether a private chunk is granted to the slot, and no block is in it.
    pub fn has_grant(&self, slot: Slot) -> bool {
        match slot.exploded_index() {
            Some(index) => {
                let Exploded { pointers, own } = self.get(index);
                own.is_some() && !pointers.iter().flatten().any(|place| place.chunk == *own)
            }
            None => slot.private_chunk().is_some() && slot.bits & ONES == 0,
        }
    }

    /// How many blocks of a slot are not zeroes.
    pub fn mapped_blocks(&self, slot: Slot) -> u32 {
        match slot.exploded_index() {
            Some(index) => self.get(index).mapped_mask().count_ones(),
            None => ((slot.bits | slot.bits >> 1) & ONES).count_ones(),
        }
    }

    /// Blocks of a slot that are not zeroes.
    pub fn mapped_mask(&self, slot: Slot) -> u16 {
        match slot.exploded_index() {
            Some(index) => self.get(index).mapped_mask(),
            None => slot.mapped_mask(),
        }
    }

    /// Freezes a slot, exploded or not.
    pub fn freeze(&mut self, slot: &mut Slot) {
        match slot.exploded_index() {
            Some(index) => {
                self.places[index as usize].as_mut().expect("a slot names its pointers").freeze();
            }
            None => slot.freeze(),
        }
    }

    /// A frozen twin of a slot, without what it was only granted.
    pub fn twin(&mut self, slot: Slot) -> Slot {
        if let Some(index) = slot.exploded_index() {
            let mut exploded = *self.get(index);
            exploded.freeze();
            exploded.own = Chunk::NONE;
            Slot::exploded(self.insert(exploded))
        } else {
            let mut twin = slot.without_grant();
            twin.freeze();
            twin
        }
    }

    /// Forgets a slot's pointers, if it has some here.
    pub fn release(&mut self, slot: Slot) {
        if let Some(index) = slot.exploded_index() {
            self.places[index as usize] = None;
            self.free.push(index);
        }
    }

    /// The chunk that the slot may fill and write in place.
    #[inline]
    pub fn private_chunk(&self, slot: Slot) -> Option<Chunk> {
        match slot.exploded_index() {
            Some(index) => Some(self.get(index).own).filter(|own| own.is_some()),
            None => slot.private_chunk(),
        }
    }

    /// Makes of `slot` one with these pointers, in the shortest form. `own` is the private chunk that the slot goes on to
    /// have, also where no block is in it.
    pub fn set(&mut self, slot: &mut Slot, pointers: &[Pointer; SLOT_BLOCKS as usize], own: Chunk) {
        let made = shortest(pointers, own);
        let exploded = Exploded { pointers: *pointers, own };
        match (made, slot.exploded_index()) {
            (Some(made), _) => {
                self.release(*slot);
                *slot = made;
            }
            (None, Some(index)) => {
                self.places[index as usize] = Some(Box::new(exploded));
            }
            (None, None) => *slot = Slot::exploded(self.insert(exploded)),
        }
    }
}

/// The slot in twelve bytes, if it fits.
fn shortest(pointers: &[Pointer; SLOT_BLOCKS as usize], private: Chunk) -> Option<Slot> {
    let (mut own, mut base) = (private, Chunk::NONE);
    let (mut own_mask, mut base_mask) = (0u16, 0u16);
    for (index, place) in pointers.iter().enumerate() {
        let Some(place) = place else { continue };
        // In another's place, or private in a chunk with others' blocks, or frozen in the private chunk.
        if usize::from(place.block) != index || place.private != (place.chunk == private) {
            return None;
        }
        if !own.is_some() || own == place.chunk {
            own = place.chunk;
            own_mask |= 1 << index;
        } else if !base.is_some() || base == place.chunk {
            base = place.chunk;
            base_mask |= 1 << index;
        } else {
            return None;
        }
    }
    Some(Slot::of(own, !private.is_some(), own_mask, base, base_mask))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_pointer() -> impl Strategy<Value = Pointer> {
        prop_oneof![
            Just(None),
            (0u32..3, 0u8..16, any::<bool>()).prop_map(|(chunk, block, private)| Some(Place {
                chunk: Chunk(chunk),
                block,
                private
            })),
            (0u32..3).prop_map(|chunk| Some(Place { chunk: Chunk(chunk), block: 255, private: chunk == 0 })),
        ]
    }

    proptest! {
        /// Goal: a slot says what it was told, in whatever form. Method: random pointers, many of them at their own
        /// place, set and asked; twins and frozen slots say the same, without privacy.
        #[test]
        fn says_what_it_was_told(rounds in prop::collection::vec(prop::collection::vec(any_pointer(), 16), 1..5)) {
            let mut explosions = Explosions::default();
            let mut slot = Slot::EMPTY;
            for round in rounds {
                let mut pointers: [Pointer; 16] = round.try_into().unwrap();
                for (index, place) in pointers.iter_mut().enumerate() {
                    if let Some(place) = place && place.block == 255 {
                        place.block = index as u8;
                    }
                }
                let private = pointers.iter().flatten().find(|p| p.private).map_or(Chunk::NONE, |p| p.chunk);
                explosions.set(&mut slot, &pointers, private);
                prop_assert_eq!(explosions.pointers(slot), pointers);
                prop_assert_eq!(explosions.private_chunk(slot).unwrap_or(Chunk::NONE), private);
                let mask = (0..16).filter(|&b| pointers[b].is_some()).fold(0u16, |m, b| m | 1 << b);
                prop_assert_eq!(explosions.mapped_mask(slot), mask);
                if slot.exploded_index().is_none() {
                    let only = explosions.pointers(slot.only(0x0ff0));
                    let expected: [Pointer; 16] = std::array::from_fn(|block| {
                        pointers[block].filter(|_| (4..12).contains(&block)).map(|p| Place { private: false, ..p })
                    });
                    prop_assert_eq!(only, expected);
                    prop_assert!(only.iter().any(Option::is_some) || slot.only(0x0ff0).is_empty());
                }
                let twin = explosions.twin(slot);
                let frozen = pointers.map(|p| p.map(|p| Place { private: false, ..p }));
                prop_assert_eq!(explosions.pointers(twin), frozen);
                let mut names: Vec<Chunk> = pointers.iter().flatten().map(|p| p.chunk).collect();
                names.sort();
                names.dedup();
                let mut said = explosions.names(slot).to_vec();
                said.sort();
                prop_assert_eq!(said, names);
                explosions.release(twin);
            }
            explosions.release(slot);
            prop_assert!(explosions.is_empty());
        }
    }

    /// Goal: what two chunks do for is never exploded, and a grant is kept.
    #[test]
    fn two_chunks_need_no_explosion() {
        let mut explosions = Explosions::default();
        let mut slot = Slot::of(Chunk(5), true, 0x00ff, Chunk::NONE, 0);
        let mut pointers = explosions.pointers(slot);
        pointers[3] = Some(Place { chunk: Chunk(9), block: 3, private: true });
        explosions.set(&mut slot, &pointers, Chunk(9));
        assert_eq!((slot.own_chunk(), slot.base_chunk(), slot.is_frozen()), (Chunk(9), Chunk(5), false));
        assert_eq!((slot.own_mask(), slot.base_mask()), (0x0008, 0x00f7));
        explosions.set(&mut slot, &[None; 16], Chunk(9));
        assert_eq!((slot.private_chunk(), slot.mapped_mask()), (Some(Chunk(9)), 0));
        assert_eq!(slot.without_grant(), Slot::EMPTY);
        assert!(explosions.is_empty());
    }
}
