//! Bytes of the medium: little-endian values in and out, and the checksum over every block of metadata.

use super::slot::{Chunk, Explosions, Place, Pointer, SLOT_BLOCKS, Slot};
use crc_fast::{CrcAlgorithm, checksum};

/// CRC-32C over the parts' bytes.
pub fn crc(salt: &[u64], bytes: &[u8]) -> u32 {
    let mut digest = crc_fast::Digest::new(CrcAlgorithm::Crc32Iscsi);
    for word in salt {
        digest.update(&word.to_le_bytes());
    }
    digest.update(bytes);
    digest.finalize() as u32
}

/// CRC-32C over bytes alone.
pub fn crc_of(bytes: &[u8]) -> u32 {
    checksum(CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

/// Appends values.
#[derive(Debug, Default)]
pub struct Writer(pub Vec<u8>);

impl Writer {
    /// One byte.
    pub fn u8(&mut self, value: u8) -> &mut Writer {
        self.0.push(value);
        self
    }
    /// Two.
    pub fn u16(&mut self, value: u16) -> &mut Writer {
        self.0.extend(value.to_le_bytes());
        self
    }
    /// Four.
    pub fn u32(&mut self, value: u32) -> &mut Writer {
        self.0.extend(value.to_le_bytes());
        self
    }
    /// Eight.
    pub fn u64(&mut self, value: u64) -> &mut Writer {
        self.0.extend(value.to_le_bytes());
        self
    }
    /// As they are.
    pub fn bytes(&mut self, value: &[u8]) -> &mut Writer {
        self.0.extend(value);
        self
    }
    /// Length in two bytes, then UTF-8.
    pub fn text(&mut self, value: &str) -> &mut Writer {
        self.u16(value.len() as u16).bytes(value.as_bytes())
    }
}

/// What was written ends too early, or says what can't be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// Takes values. Nothing that it is given makes it panic.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    /// As many bytes.
    ///
    /// # Errors
    /// There are fewer. So with all that follow.
    pub fn bytes(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(Malformed)?;
        self.0 = rest;
        Ok(taken)
    }
    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        self.bytes(N)?.try_into().map_err(|_| Malformed)
    }
    /// One byte.
    ///
    /// # Errors
    /// See [`Reader::bytes`].
    pub fn u8(&mut self) -> Result<u8, Malformed> {
        self.array().map(u8::from_le_bytes)
    }
    /// Two.
    ///
    /// # Errors
    /// See [`Reader::bytes`].
    pub fn u16(&mut self) -> Result<u16, Malformed> {
        self.array().map(u16::from_le_bytes)
    }
    /// Four.
    ///
    /// # Errors
    /// See [`Reader::bytes`].
    pub fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_le_bytes)
    }
    /// Eight.
    ///
    /// # Errors
    /// See [`Reader::bytes`].
    pub fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_le_bytes)
    }
    /// Sixteen bytes.
    ///
    /// # Errors
    /// See [`Reader::bytes`].
    pub fn uuid(&mut self) -> Result<[u8; 16], Malformed> {
        self.array()
    }
    /// See [`Writer::text`].
    ///
    /// # Errors
    /// Also when it isn't UTF-8.
    pub fn text(&mut self) -> Result<String, Malformed> {
        let length = self.u16()?;
        std::str::from_utf8(self.bytes(usize::from(length))?).map(str::to_owned).map_err(|_| Malformed)
    }
    /// Nothing is left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Writes slots one after the other, runs of like ones as one. Grants are left out: nothing durable names them.
pub fn write_slots(out: &mut Writer, slots: &[Slot], explosions: &Explosions) {
    let mut rest = slots;
    while let Some(&first) = rest.first() {
        let slot = first.without_grant();
        if slot.is_empty() {
            let count = rest.iter().take_while(|s| s.without_grant().is_empty()).count();
            out.u8(0).u8(count as u8);
            rest = &rest[count..];
            continue;
        }
        if let Some((chunk, _)) = slot.whole_chunk() {
            let follows = |(at, s): (u32, &Slot)| s.whole_chunk().is_some_and(|(c, _)| c.0 == chunk.0 + at);
            let count = (0u32..).zip(rest).take_while(|&pair| follows(pair)).count();
            out.u8(1).u8(count as u8).u32(chunk.0);
            rest = &rest[count..];
            continue;
        }
        if slot.exploded_index().is_some() {
            out.u8(4);
            for pointer in explosions.pointers(slot) {
                match pointer {
                    Some(place) => out.u32(place.chunk.0).u8(place.block),
                    None => out.u32(u32::MAX).u8(0),
                };
            }
        } else if !slot.base_chunk().is_some() {
            out.u8(2).u32(slot.own_chunk().0).u16(slot.own_mask());
        } else {
            out.u8(3).u32(slot.own_chunk().0).u32(slot.base_chunk().0);
            out.u16(slot.own_mask()).u16(slot.base_mask());
        }
        rest = &rest[1..];
    }
}

/// Reads `count` slots, all frozen.
///
/// # Errors
/// What was written can't be that. `explosions` may have some of it.
pub fn read_slots(
    from: &mut Reader<'_>,
    count: usize,
    explosions: &mut Explosions,
) -> Result<Vec<Slot>, Malformed> {
    let mut slots = Vec::with_capacity(count);
    let chunk = |value: u32| if value <= Chunk::NONE.0 { Ok(Chunk(value)) } else { Err(Malformed) };
    while slots.len() < count {
        match from.u8()? {
            0 => {
                let run = from.u8()?;
                slots.extend((0..run).map(|_| Slot::EMPTY));
                if run == 0 {
                    return Err(Malformed);
                }
            }
            1 => {
                let run = u32::from(from.u8()?);
                let first = from.u32()?;
                chunk(first.checked_add(run).ok_or(Malformed)?)?;
                slots.extend((0..run).map(|at| Slot::whole(Chunk(first + at), true)));
                if run == 0 {
                    return Err(Malformed);
                }
            }
            2 => {
                let own = chunk(from.u32()?)?;
                slots.push(Slot::of(own, true, from.u16()?, Chunk::NONE, 0));
            }
            3 => {
                let (own, base) = (chunk(from.u32()?)?, chunk(from.u32()?)?);
                let (own_mask, base_mask) = (from.u16()?, from.u16()?);
                if own_mask & base_mask != 0 {
                    return Err(Malformed);
                }
                slots.push(Slot::of(own, true, own_mask, base, base_mask));
            }
            4 => {
                let mut pointers: [Pointer; SLOT_BLOCKS as usize] = [None; SLOT_BLOCKS as usize];
                for pointer in &mut pointers {
                    let (at, block) = (from.u32()?, from.u8()?);
                    if at != u32::MAX {
                        if u32::from(block) >= SLOT_BLOCKS {
                            return Err(Malformed);
                        }
                        *pointer = Some(Place { chunk: chunk(at)?, block, private: false });
                    }
                }
                let mut slot = Slot::EMPTY;
                explosions.set(&mut slot, &pointers, Chunk::NONE);
                slots.push(slot);
            }
            _ => return Err(Malformed),
        }
    }
    if slots.len() == count { Ok(slots) } else { Err(Malformed) }
}
