//! What stands where on the members: `docs/disk-format.md` has the same in words.
//!
//! ```text
//! member 0   superblock | superblock | checkpoint headers | journals | segments ... | data
//! others     superblock | superblock |                      data
//! ```

use super::codec::{Malformed, Reader, Writer, crc, crc_of};
use super::slot::CHUNK_BYTES;

/// Version of all of it.
pub const VERSION: u16 = 2;
/// A superblock's length.
pub const SUPERBLOCK_BYTES: u64 = 16 << 10;
/// Where the copies stand on each member.
pub const SUPERBLOCK_AT: [u64; 2] = [0, 512 << 10];
/// Where the checkpoint headers begin on member 0.
pub const HEADERS_AT: u64 = 1 << 20;
/// A header's length.
pub const HEADER_BYTES: u64 = 4096;
/// Cores that there can be.
pub const CORES_MAX: u16 = 256;
/// Headers: for each parity of the layout and core, two that take turns.
pub const HEADERS_BYTES: u64 = 2 * CORES_MAX as u64 * 2 * HEADER_BYTES;
/// Where the journals begin on member 0.
pub const JOURNALS_AT: u64 = HEADERS_AT + HEADERS_BYTES;
/// Where data begin on other members.
pub const DATA_AT: u64 = 1 << 20;
/// A journal block.
pub const JOURNAL_BLOCK_BYTES: usize = 4096;
/// What a journal block has before its records.
pub const JOURNAL_HEAD_BYTES: usize = 40;
/// A segment of images.
pub const SEGMENT_BYTES: u64 = 256 << 10;
/// What records are aligned to in a segment.
pub const IMAGE_ALIGN: usize = 16;
/// What an image has before its content.
pub const IMAGE_HEAD_BYTES: usize = 8;
/// Members of a pool.
pub const MEMBERS_MAX: usize = 64;
/// Pieces of data space.
pub const EXTENTS_MAX: usize = 256;

const SUPER_MAGIC: &[u8; 8] = b"PolluxP1";
const JOURNAL_MAGIC: u32 = 0x4a58_4c50;
const HEADER_MAGIC: u32 = 0x4358_4c50;

/// A piece of data space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// On which member.
    pub member: u16,
    /// Its first byte there.
    pub at: u64,
    /// The number of its first chunk.
    pub first_chunk: u32,
    /// How many chunks.
    pub chunks: u32,
}

/// What every member says of the pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// The pool's UUID.
    pub uuid: [u8; 16],
    /// Its name.
    pub name: String,
    /// Counts openings and changes of this block.
    pub generation: u64,
    /// Which member this is.
    pub member: u16,
    /// Each member's random mark and length.
    pub members: Vec<([u8; 16], u64)>,
    /// Cores that the journals and segments are dealt to.
    pub cores: u16,
    /// Counts changes of `cores`.
    pub layout: u32,
    /// Bytes of all journals together, from [`JOURNALS_AT`] on.
    pub journal_bytes: u64,
    /// Bytes of the segments behind them.
    pub metadata_bytes: u64,
    /// Data space.
    pub extents: Vec<Extent>,
}

impl Superblock {
    /// As [`SUPERBLOCK_BYTES`] bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::default();
        out.bytes(SUPER_MAGIC).u32(0).u16(VERSION).u16(self.member).bytes(&self.uuid).u64(self.generation);
        out.text(&self.name).u64(CHUNK_BYTES).u16(self.cores).u32(self.layout);
        out.u64(self.journal_bytes).u64(self.metadata_bytes).u16(self.members.len() as u16);
        for (mark, bytes) in &self.members {
            out.bytes(mark).u64(*bytes);
        }
        out.u16(self.extents.len() as u16);
        for extent in &self.extents {
            out.u16(extent.member).u64(extent.at).u32(extent.first_chunk).u32(extent.chunks);
        }
        let mut bytes = out.0;
        bytes.resize(SUPERBLOCK_BYTES as usize, 0);
        let sum = crc_of(&bytes[12..]);
        bytes[8..12].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// From what stands there.
    ///
    /// # Errors
    /// In words.
    pub fn decode(bytes: &[u8]) -> Result<Superblock, &'static str> {
        let mut from = Reader(bytes);
        if from.bytes(8) != Ok(SUPER_MAGIC) {
            return Err("no superblock of a pool stands there");
        }
        let sum = from.u32().map_err(|_| "the superblock is cut short")?;
        if bytes.len() != SUPERBLOCK_BYTES as usize || crc_of(&bytes[12..]) != sum {
            return Err("the superblock's checksum is wrong");
        }
        Superblock::decode_body(from)
            .map_err(|Malformed| "the superblock is of another version, or malformed")
    }

    fn decode_body(mut from: Reader<'_>) -> Result<Superblock, Malformed> {
        if !(1..=VERSION).contains(&from.u16()?) {
            return Err(Malformed);
        }
        let member = from.u16()?;
        let (uuid, generation, name) = (from.uuid()?, from.u64()?, from.text()?);
        if from.u64()? != CHUNK_BYTES {
            return Err(Malformed);
        }
        let (cores, layout) = (from.u16()?, from.u32()?);
        let (journal_bytes, metadata_bytes) = (from.u64()?, from.u64()?);
        let count = from.u16()?;
        let members = (0..count).map(|_| Ok((from.uuid()?, from.u64()?))).collect::<Result<Vec<_>, _>>()?;
        let count = from.u16()?;
        let extents = (0..count)
            .map(|_| {
                let member = from.u16()?;
                Ok(Extent { member, at: from.u64()?, first_chunk: from.u32()?, chunks: from.u32()? })
            })
            .collect::<Result<Vec<_>, Malformed>>()?;
        let mut next = 0u32;
        for extent in &extents {
            if extent.first_chunk != next || usize::from(extent.member) >= members.len() {
                return Err(Malformed);
            }
            next = next.checked_add(extent.chunks).ok_or(Malformed)?;
        }
        if cores == 0 || cores > CORES_MAX || member >= members.len() as u16 || next > super::slot::CHUNKS_MAX
        {
            return Err(Malformed);
        }
        // Each opening counts on.
        if generation == u64::MAX || layout == u32::MAX {
            return Err(Malformed);
        }
        Ok(Superblock {
            uuid,
            name,
            generation,
            member,
            members,
            cores,
            layout,
            journal_bytes,
            metadata_bytes,
            extents,
        })
    }

    /// The mark of the member that this is.
    pub fn mark(&self) -> Option<[u8; 16]> {
        self.members.get(usize::from(self.member)).map(|&(mark, _)| mark)
    }

    /// Whether the next generation can follow on this one: it has what an opening or a growth changes, and else the same.
    pub fn leads_to(&self, next: &Superblock) -> bool {
        let is_dealt_anew = self.layout.checked_add(1) == Some(next.layout);
        let is_dealt_same = (self.layout, self.cores) == (next.layout, next.cores);
        let areas = |superblock: &Superblock| (superblock.journal_bytes, superblock.metadata_bytes);
        // First chunks follow from what is before them, so only the last of these extents can have more chunks.
        let goes_on = |(extent, next): (&Extent, &Extent)| {
            (extent.member, extent.at, extent.first_chunk) == (next.member, next.at, next.first_chunk)
                && extent.chunks <= next.chunks
        };
        (is_dealt_anew || is_dealt_same)
            && (self.uuid, &self.name, areas(self)) == (next.uuid, &next.name, areas(next))
            && self.members.len() <= next.members.len()
            && self.members.iter().zip(&next.members).all(|(old, new)| old.0 == new.0 && old.1 <= new.1)
            && self.extents.len() <= next.extents.len()
            && self.extents.iter().zip(&next.extents).all(goes_on)
    }

    /// What checksums of this pool begin with.
    pub fn tag(&self) -> u64 {
        u64::from_le_bytes(self.uuid[..8].try_into().unwrap_or_default())
    }

    /// Chunks in all.
    pub fn chunks(&self) -> u32 {
        self.extents.iter().map(|extent| extent.chunks).sum()
    }

    /// Where a core's journal is on member 0, and how many blocks it has.
    pub fn journal_of(&self, core: u16) -> (u64, u64) {
        let each = self.journal_bytes / u64::from(self.cores) / JOURNAL_BLOCK_BYTES as u64;
        (JOURNALS_AT + u64::from(core) * each * JOURNAL_BLOCK_BYTES as u64, each)
    }

    /// Where a segment is on member 0.
    pub fn segment_at(&self, segment: u32) -> u64 {
        JOURNALS_AT + self.journal_bytes + u64::from(segment) * SEGMENT_BYTES
    }

    /// How many segments there are.
    pub fn segments(&self) -> u32 {
        (self.metadata_bytes / SEGMENT_BYTES) as u32
    }

    /// Where a core's two headers stand on member 0.
    pub fn header_at(&self, core: u16, nth: u64) -> u64 {
        let parity = u64::from(self.layout % 2);
        HEADERS_AT + ((parity * u64::from(CORES_MAX) + u64::from(core)) * 2 + nth % 2) * HEADER_BYTES
    }
}

/// A journal block's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JournalHead {
    /// The opening in which it was written.
    pub generation: u64,
    /// Counted over all blocks ever written by this core in this layout.
    pub position: u64,
    /// Bytes of records behind the head.
    pub used: u16,
}

impl JournalHead {
    /// Seals a block: `block[JOURNAL_HEAD_BYTES..]` has the records, zeroes behind them.
    pub fn seal(&self, tag: u64, layout: u32, core: u16, block: &mut [u8]) {
        // Each commit makes some of these: no list on the heap.
        let mut head = [0; JOURNAL_HEAD_BYTES];
        head[0..4].copy_from_slice(&JOURNAL_MAGIC.to_le_bytes());
        head[8..16].copy_from_slice(&self.generation.to_le_bytes());
        head[16..24].copy_from_slice(&self.position.to_le_bytes());
        head[24..26].copy_from_slice(&self.used.to_le_bytes());
        head[26..28].copy_from_slice(&core.to_le_bytes());
        block[..JOURNAL_HEAD_BYTES].copy_from_slice(&head);
        let sum = crc(&[tag, u64::from(layout)], &block[8..]);
        block[4..8].copy_from_slice(&sum.to_le_bytes());
    }

    /// The head and the records, if the block is whole and was meant to stand there.
    pub fn open(
        tag: u64,
        layout: u32,
        core: u16,
        position: u64,
        block: &[u8],
    ) -> Option<(JournalHead, &[u8])> {
        let mut from = Reader(block);
        let (magic, sum) = (from.u32().ok()?, from.u32().ok()?);
        if magic != JOURNAL_MAGIC || block.len() != JOURNAL_BLOCK_BYTES {
            return None;
        }
        if crc(&[tag, u64::from(layout)], &block[8..]) != sum {
            return None;
        }
        let head =
            JournalHead { generation: from.u64().ok()?, position: from.u64().ok()?, used: from.u16().ok()? };
        if from.u16().ok()? != core || head.position != position {
            return None;
        }
        let records = block[JOURNAL_HEAD_BYTES..].get(..usize::from(head.used))?;
        Some((head, records))
    }
}

/// Where a core's last checkpoint is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Counts this core's checkpoints in this layout.
    pub checkpoint: u64,
    /// The first journal position that it does not have.
    pub replay_from: u64,
    /// Bytes of the index.
    pub index_bytes: u64,
    /// Its checksum.
    pub index_crc: u32,
    /// The segments that it stands in, in order.
    pub index_segments: Vec<u32>,
    /// The opening in which it was written: no block of the journal behind it is of an earlier one. 0 where that was not noted.
    pub generation: u64,
}

/// How many segments an index can have.
pub const INDEX_SEGMENTS_MAX: usize = 900;

impl Header {
    /// As a block.
    pub fn encode(&self, tag: u64, layout: u32, core: u16) -> Vec<u8> {
        let mut out = Writer::default();
        out.u32(HEADER_MAGIC).u32(0).u64(self.checkpoint).u64(self.replay_from).u64(self.index_bytes);
        out.u32(self.index_crc).u16(core).u16(self.index_segments.len() as u16);
        self.index_segments.iter().for_each(|&segment| {
            out.u32(segment);
        });
        out.u64(self.generation);
        let mut bytes = out.0;
        bytes.resize(HEADER_BYTES as usize, 0);
        let sum = crc(&[tag, u64::from(layout)], &bytes[8..]);
        bytes[4..8].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// From a block; `None` if it isn't a whole one of this core and layout.
    pub fn decode(tag: u64, layout: u32, core: u16, bytes: &[u8]) -> Option<Header> {
        let mut from = Reader(bytes);
        let (magic, sum) = (from.u32().ok()?, from.u32().ok()?);
        if magic != HEADER_MAGIC || crc(&[tag, u64::from(layout)], bytes.get(8..)?) != sum {
            return None;
        }
        let (checkpoint, replay_from) = (from.u64().ok()?, from.u64().ok()?);
        let (index_bytes, index_crc) = (from.u64().ok()?, from.u32().ok()?);
        if from.u16().ok()? != core {
            return None;
        }
        let count = from.u16().ok()?;
        let index_segments = (0..count).map(|_| from.u32()).collect::<Result<Vec<_>, _>>().ok()?;
        let generation = from.u64().ok()?;
        Some(Header { checkpoint, replay_from, index_bytes, index_crc, index_segments, generation })
    }
}

/// Writes an image behind `out`: head, content, padding. Its length in units of 16 bytes.
pub fn seal_image(
    tag: u64,
    segment: u32,
    offset: u16,
    sequence: u64,
    content: &[u8],
    out: &mut Vec<u8>,
) -> u16 {
    let place = u64::from(segment) << 16 | u64::from(offset);
    let sum = crc(&[tag, place, sequence], content);
    out.extend(sum.to_le_bytes());
    out.extend((content.len() as u32).to_le_bytes());
    out.extend(content);
    out.resize(out.len().next_multiple_of(IMAGE_ALIGN), 0);
    (IMAGE_HEAD_BYTES + content.len()).div_ceil(IMAGE_ALIGN) as u16
}

/// An image's content, if it is whole and was meant to stand there.
pub fn open_image(tag: u64, segment: u32, offset: u16, sequence: u64, bytes: &[u8]) -> Option<&[u8]> {
    let at = usize::from(offset) * IMAGE_ALIGN;
    let mut from = Reader(bytes.get(at..)?);
    let (sum, length) = (from.u32().ok()?, from.u32().ok()?);
    let content = from.bytes(length as usize).ok()?;
    let place = u64::from(segment) << 16 | u64::from(offset);
    (crc(&[tag, place, sequence], content) == sum).then_some(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: version 1 is read, as it has nothing that this one hasn't; a newer one is refused. Method: the number changed,
    /// and the checksum with it.
    #[test]
    fn older_versions_are_read() {
        let superblock = Superblock {
            uuid: [7; 16],
            name: "p".into(),
            generation: 3,
            member: 0,
            members: vec![([1; 16], 64 << 20)],
            cores: 2,
            layout: 1,
            journal_bytes: 4 << 20,
            metadata_bytes: 8 << 20,
            extents: vec![Extent { member: 0, at: 32 << 20, first_chunk: 0, chunks: 512 }],
        };
        for (version, is_read) in [(0, false), (1, true), (2, true), (3, false)] {
            let mut bytes = superblock.encode();
            bytes[12..14].copy_from_slice(&u16::to_le_bytes(version));
            let sum = crc_of(&bytes[12..]);
            bytes[8..12].copy_from_slice(&sum.to_le_bytes());
            let found = Superblock::decode(&bytes);
            assert_eq!(found.is_ok(), is_read, "version {version}");
            assert!(found.is_err() || found.as_ref() == Ok(&superblock));
        }
    }
}
