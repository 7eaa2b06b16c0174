//! Writes a whole map out at once, before the reactors run: for a pool that is dealt to another number of cores.

use super::codec::{Writer, crc_of, write_slots};
use super::format::{
    HEADER_BYTES, Header, IMAGE_HEAD_BYTES, INDEX_SEGMENTS_MAX, SEGMENT_BYTES, Superblock, seal_image,
};
use super::map::{Home, LEVELS, LeafId, Map, RootId, TableId};
use super::medium::Medium;

/// A core's segments with their sequences, and the index's.
pub(super) type Written = (Vec<(u32, u64)>, Vec<u32>);

/// The only checkpoint there is.
const NUMBER: u64 = 1;

struct Segments<'a> {
    superblock: &'a Superblock,
    medium: &'a dyn Medium,
    /// Of each core, and whose turn it is.
    free: &'a mut [Vec<u32>],
    core: usize,
    used: Vec<(u32, u64)>,
    filling: Option<u32>,
    gathered: Vec<u8>,
}

impl Segments<'_> {
    fn next(&mut self) -> Result<u32, String> {
        let segment = match self.free[self.core].pop() {
            Some(segment) => Some(segment),
            // It is this core's then until it is empty and the pool opened again.
            None => self.free.iter_mut().max_by_key(|free| free.len()).and_then(Vec::pop),
        };
        let segment = segment.ok_or("the space for maps is too small to hold them twice")?;
        self.used.push((segment, NUMBER));
        Ok(segment)
    }

    fn put(&mut self, content: &[u8]) -> Result<Home, String> {
        let bytes = (IMAGE_HEAD_BYTES + content.len()).next_multiple_of(16);
        if self.filling.is_none() || self.gathered.len() + bytes > SEGMENT_BYTES as usize {
            self.flush()?;
            self.filling = Some(self.next()?);
        }
        let segment = self.filling.unwrap_or_default();
        let offset = (self.gathered.len() / 16) as u16;
        let size = seal_image(self.superblock.tag(), segment, offset, NUMBER, content, &mut self.gathered);
        Ok(Home { segment, offset, size })
    }

    fn flush(&mut self) -> Result<(), String> {
        if let Some(segment) = self.filling.take() {
            self.gathered.resize(self.gathered.len().next_multiple_of(4096), 0);
            let written = self.medium.write(self.superblock.segment_at(segment), &self.gathered);
            self.gathered.clear();
            written.map_err(|error| error.to_string())?;
        }
        Ok(())
    }
}

pub(super) fn write_out(
    superblock: &Superblock,
    core: u16,
    map: &mut Map,
    catalog: &[u8],
    free: &mut [Vec<u32>],
    medium: &dyn Medium,
) -> Result<Written, String> {
    let mut segments = Segments {
        superblock,
        medium,
        free,
        core: usize::from(core),
        used: Vec::new(),
        filling: None,
        gathered: Vec::new(),
    };
    let leaves: Vec<LeafId> = map.leaf_ids().collect();
    for leaf in leaves {
        let mut out = Writer::default();
        out.u8(0);
        write_slots(&mut out, &map.slots_of(leaf), &map.explosions);
        let home = segments.put(&out.0)?;
        map.leaf_written(leaf, home);
    }
    for level in 1..=LEVELS {
        let tables: Vec<TableId> =
            (0..map.tables_end()).filter_map(|at| map.is_dirty_table(at, level)).collect();
        for table in tables {
            let (level, homes) = map.children_homes(table);
            let mut out = Writer::default();
            out.u8(level).u16(homes.len() as u16);
            for (place, home) in homes {
                out.u8(place).u32(home.segment).u16(home.offset).u16(home.size);
            }
            let home = segments.put(&out.0)?;
            map.table_written(table, home);
        }
    }
    segments.flush()?;
    let mut out = Writer::default();
    let mut roots: Vec<RootId> = map.roots.keys().copied().collect();
    roots.sort_unstable();
    out.u32(roots.len() as u32);
    for root in roots {
        let home = map.top_home(root).unwrap_or(Home::NOWHERE);
        let mapped = map.roots.get(&root).map_or(0, |root| root.mapped_blocks);
        out.u64(root.0).u32(home.segment).u16(home.offset).u16(home.size).u64(mapped);
    }
    out.u32(segments.used.len() as u32);
    for &(segment, sequence) in &segments.used {
        out.u32(segment).u64(sequence);
    }
    out.u32(catalog.len() as u32).bytes(catalog);
    // Every decree is obeyed in what is written here.
    super::stage::Standing::default().write(&mut out);
    let index = out.0;
    let mut index_segments = Vec::new();
    for part in index.chunks(SEGMENT_BYTES as usize) {
        let segment = segments.next()?;
        index_segments.push(segment);
        let mut bytes = part.to_vec();
        bytes.resize(bytes.len().next_multiple_of(4096), 0);
        medium.write(superblock.segment_at(segment), &bytes).map_err(|error| error.to_string())?;
    }
    if index_segments.len() > INDEX_SEGMENTS_MAX {
        return Err("the catalog is too large".to_owned());
    }
    medium.sync().map_err(|error| error.to_string())?;
    let header = Header {
        checkpoint: NUMBER,
        replay_from: 0,
        index_bytes: index.len() as u64,
        index_crc: crc_of(&index),
        index_segments: index_segments.clone(),
        // Nothing of this layout has been written to the journal yet.
        generation: 0,
    };
    let bytes = header.encode(superblock.tag(), superblock.layout, core);
    debug_assert_eq!(bytes.len() as u64, HEADER_BYTES);
    medium.write(superblock.header_at(core, NUMBER), &bytes).map_err(|error| error.to_string())?;
    medium.sync().map_err(|error| error.to_string())?;
    Ok((segments.used, index_segments))
}
