//! UNMAP: VAAI's Delete (SBC-3 §5.24). Blocks of any alignment read as zeroes afterwards (LBPRZ=1), but for those that a pool short
//! of memory for maps leaves mapped (docs/decisions/0007).

use crate::cdb::{be16, check_range};
use crate::command::Effect;
use crate::limits::{UNMAP_DESCRIPTORS_MAX, UNMAP_WINDOW};
use crate::sense::Sense;
use crate::task::{End, Head, Moves, Request, Spent, Step, Work};
use bdev::geometry::Geometry;
use bdev::io::{Done, Op};
use reactor::buf::Buf;
use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// UNMAP parameter list, without its descriptors. The lengths count what follows them.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct UnmapParameterListHeader {
    unmap_data_length: U16,
    unmap_block_descriptor_data_length: U16,
    reserved: [u8; 4],
}

const _: () = assert!(size_of::<UnmapParameterListHeader>() == 8);

/// UNMAP block descriptor. Counts are logical blocks; none is allowed.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct UnmapBlockDescriptor {
    unmap_logical_block_address: U64,
    number_of_logical_blocks: U32,
    reserved: [u8; 4],
}

const _: () = assert!(size_of::<UnmapBlockDescriptor>() == 16);

const HEADER_BYTES: usize = size_of::<UnmapParameterListHeader>();

/// An UNMAP under way.
#[derive(Debug)]
pub(crate) struct Unmap {
    geometry: Geometry,
    list_bytes: u32,
    asked: bool,
    list: Option<Buf>,
    /// Once the list is checked.
    descriptors: Option<usize>,
    /// Descriptors that have begun.
    next: usize,
    failed: Option<Sense>,
}

/// UNMAP.
pub(crate) fn unmap(request: &Request<'_>) -> Result<Work, Sense> {
    let cdb = &request.command.cdb;
    if cdb[1] & 0x01 != 0 {
        // ANCHOR, for want of ANC_SUP.
        return Err(Sense::INVALID_FIELD_IN_CDB.cdb_bit(1, 0));
    }
    let list_bytes = be16(cdb, 7);
    match list_bytes {
        0 => return Ok(Work::End(End::GOOD)),
        1..8 => return Err(Sense::PARAMETER_LIST_LENGTH_ERROR.cdb_byte(7)),
        _ => {}
    }
    if request.command.data_out_bytes < list_bytes {
        return Err(Sense::INVALID_FIELD_IN_COMMAND_INFORMATION_UNIT);
    }
    Ok(Work::Unmap(Unmap {
        geometry: *request.unit()?.geometry(),
        list_bytes,
        asked: false,
        list: None,
        descriptors: None,
        next: 0,
        failed: None,
    }))
}

impl Unmap {
    pub(crate) fn poll(&mut self, head: &mut Head, spent: &mut Spent) -> Step {
        if !self.asked {
            self.asked = true;
            return Step::Effect(Effect::WantData { bytes: self.list_bytes });
        }
        let Some(list) = &self.list else { return Step::Wait };
        let count = match (self.descriptors, self.failed) {
            (Some(count), _) => count,
            (None, Some(_)) => 0,
            (None, None) => match check_list(list, &self.geometry) {
                Ok(count) => *self.descriptors.insert(count),
                Err(sense) => {
                    self.failed = Some(sense);
                    0
                }
            },
        };
        while self.next < count && self.failed.is_none() && head.ios_out < UNMAP_WINDOW {
            let descriptor = &descriptors(list)[self.next];
            self.next += 1;
            let blocks = u64::from(descriptor.number_of_logical_blocks.get());
            if blocks != 0 {
                let lba = descriptor.unmap_logical_block_address.get();
                return head.submit(Op::Unmap, false, lba, blocks, None, None);
            }
        }
        if head.ios_out != 0 {
            return Step::Wait;
        }
        self.release(spent);
        let result = self.failed.map_or(Ok(()), Err);
        Step::End(End { result, moves: Moves::Out, transfer_bytes: u64::from(self.list_bytes) })
    }

    pub(crate) fn list_bytes(&self) -> u32 {
        self.list_bytes
    }

    /// Takes the list; gives it back if it is not wanted.
    pub(crate) fn data_out(&mut self, buf: Buf) -> Option<Buf> {
        if self.asked && self.list.is_none() { self.list.replace(buf) } else { Some(buf) }
    }

    pub(crate) fn io_done(&mut self, done: &Done) {
        if let Err(error) = done.result {
            self.failed.get_or_insert(Sense::of_io(error, done.io.op, done.io.lba));
        }
    }

    pub(crate) fn release(&mut self, spent: &mut Spent) {
        spent.extend(self.list.take());
    }
}

/// The whole descriptors behind the header, whatever it says of them.
fn descriptors(list: &[u8]) -> &[UnmapBlockDescriptor] {
    let bytes = list.get(HEADER_BYTES..).unwrap_or_default();
    let count = bytes.len() / size_of::<UnmapBlockDescriptor>();
    match <[UnmapBlockDescriptor]>::ref_from_prefix_with_elems(bytes, count) {
        Ok((descriptors, _)) => descriptors,
        Err(_) => &[],
    }
}

/// How many descriptors the list has. All are checked before the first is acted on.
fn check_list(list: &[u8], geometry: &Geometry) -> Result<usize, Sense> {
    let Ok((header, _)) = UnmapParameterListHeader::ref_from_prefix(list) else {
        return Err(Sense::PARAMETER_LIST_LENGTH_ERROR);
    };
    let descriptor_bytes = usize::from(header.unmap_block_descriptor_data_length.get());
    // UNMAP DATA LENGTH counts the six header bytes behind it as well; the descriptors have to be inside it and
    // inside what was sent.
    if usize::from(header.unmap_data_length.get()) < descriptor_bytes + HEADER_BYTES - 2 {
        return Err(Sense::INVALID_FIELD_IN_PARAMETER_LIST.list_byte(0));
    }
    if descriptor_bytes > list.len() - HEADER_BYTES {
        return Err(Sense::PARAMETER_LIST_LENGTH_ERROR);
    }
    // A last fragment of a descriptor is ignored (SBC-3 §5.24.2).
    let count = descriptor_bytes / size_of::<UnmapBlockDescriptor>();
    if count > UNMAP_DESCRIPTORS_MAX as usize {
        return Err(Sense::INVALID_FIELD_IN_PARAMETER_LIST.list_byte(2));
    }
    for (index, descriptor) in descriptors(list)[..count].iter().enumerate() {
        let at = (HEADER_BYTES + index * size_of::<UnmapBlockDescriptor>()) as u16;
        let blocks = u64::from(descriptor.number_of_logical_blocks.get());
        check_range(descriptor.unmap_logical_block_address.get(), blocks, geometry)
            .map_err(|sense| sense.list_byte(at))?;
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::{Answer, World, geometry, pattern};
    use bdev::error::IoError;

    /// A list with these descriptors.
    fn list(descriptors: &[(u64, u32)]) -> Vec<u8> {
        let bytes = 16 * descriptors.len() as u16;
        let mut list = Vec::new();
        list.extend_from_slice(&(bytes + 6).to_be_bytes());
        list.extend_from_slice(&bytes.to_be_bytes());
        list.extend_from_slice(&[0; 4]);
        for (lba, blocks) in descriptors {
            list.extend_from_slice(&lba.to_be_bytes());
            list.extend_from_slice(&blocks.to_be_bytes());
            list.extend_from_slice(&[0; 4]);
        }
        list
    }

    fn unmap_list(world: &mut World, list: &[u8]) -> Answer {
        let [high, low] = (list.len() as u16).to_be_bytes();
        world.put(&[0x42, 0, 0, 0, 0, 0, 0, high, low, 0], list)
    }

    fn filled() -> World {
        let mut world = World::new(geometry());
        world.disk = pattern(world.disk.len(), 3);
        world
    }

    /// Goal: blocks of every alignment read as zeroes at once, their neighbours as before.
    #[test]
    fn unmapped_blocks_are_zero() {
        let mut world = filled();
        let answer =
            unmap_list(&mut world, &list(&[(1, 1), (100, 300), (4999, 1), (7, 0), (5000, 0)])).good();
        assert_eq!(answer.ios.len(), 3);
        for (lba, block) in world.disk.chunks_exact(512).enumerate() {
            let is_unmapped = lba == 1 || lba == 4999 || (100..400).contains(&lba);
            assert_eq!(block.iter().all(|&byte| byte == 0), is_unmapped);
        }
    }

    /// Goal: MAXIMUM UNMAP BLOCK DESCRIPTOR COUNT is the limit, and MAXIMUM UNMAP LBA COUNT is none. Method: the
    /// limit, and one more.
    #[test]
    fn descriptor_limit_holds() {
        let mut world = filled();
        let mut many: Vec<(u64, u32)> = (0..u64::from(UNMAP_DESCRIPTORS_MAX)).map(|at| (at * 2, 1)).collect();
        assert_eq!(unmap_list(&mut world, &list(&many)).good().ios.len(), 256);
        many.push((600, 1));
        let answer = unmap_list(&mut world, &list(&many)).bad(0x5_2600);
        assert_eq!((answer.pointer(), answer.ios.len()), (Some((false, 2, None)), 0));
        assert_eq!(crate::limits::UNMAP_BLOCKS_MAX, u32::MAX);
        unmap_list(&mut world, &list(&vec![(0, 5000); 256])).good();
    }

    /// Goal: all is checked before anything is unmapped.
    #[test]
    fn one_bad_descriptor_spoils_all() {
        let mut world = filled();
        for bad in [(5000, 1), (4999, 2), (u64::MAX, u32::MAX), (5001, 0)] {
            let answer = unmap_list(&mut world, &list(&[(0, 10), bad])).bad(0x5_2100);
            assert_eq!((answer.pointer(), answer.ios.len()), (Some((false, 24, None)), 0));
        }
    }

    /// Goal: lists of every wrong length are refused, empty ones are not.
    #[test]
    fn list_lengths_are_checked() {
        let mut world = filled();
        unmap_list(&mut world, &[]).good();
        unmap_list(&mut world, &list(&[])).good();
        for bytes in 1..8 {
            unmap_list(&mut world, &vec![0; bytes]).bad(0x5_1A00);
        }
        let whole = list(&[(0, 1), (2, 1)]);
        unmap_list(&mut world, &whole[..39]).bad(0x5_1A00);
        // The CDB says more than the initiator has.
        world.put(&[0x42, 0, 0, 0, 0, 0, 0, 0, 40, 0], &whole[..24]).bad(0x5_0E03);
        // UNMAP DATA LENGTH does not cover the descriptors.
        let mut short = whole.clone();
        short[1] = 6;
        unmap_list(&mut world, &short).bad(0x5_2600);
        // Part of a descriptor at the end is none.
        let mut fragment = whole;
        fragment[3] = 31;
        assert_eq!(unmap_list(&mut world, &fragment).good().ios, [(Op::Unmap, false, 0, 1)]);
        world.put(&[0x42, 1, 0, 0, 0, 0, 0, 0, 0, 0], &[]).bad_field(1, Some(0));
    }

    /// Goal: a unit that gives no space back does not know the command; failures are told.
    #[test]
    fn only_thin_units_unmap() {
        let mut thick = World::new(Geometry { unmap_granularity_bytes: 0, ..geometry() });
        unmap_list(&mut thick, &list(&[(0, 1)])).bad(0x5_2000);
        let mut world = filled();
        world.faults.push((Op::Unmap, 0..1, IoError::Device { errno: 5 }));
        unmap_list(&mut world, &list(&[(0, 1), (5, 5)])).bad(0x4_4400);
    }
}
