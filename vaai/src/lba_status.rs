//! GET LBA STATUS: which blocks have space of their own (SBC-3 §5.6).
//!
//! A raw device keeps no map: the file system or disk below knows what it gave back, and does not tell. All its blocks
//! are "mapped or unknown", which is always true. A pool's volumes have a map, which is asked run by run; runs that are
//! alike are joined over stripes. An answer may end before the unit does: whoever wants the rest asks from there on.

use crate::cdb::{check_range, view};
use crate::command::{Buffers, Effect};
use crate::limits::{LBA_STATUS_DESCRIPTORS_MAX, LBA_STATUS_QUESTIONS_MAX};
use crate::reply::Out;
use crate::sense::Sense;
use crate::server::DeviceServer;
use crate::task::{End, Head, Moves, Request, Step, Work};
use reactor::buf::BUF_BYTES_MAX;
use zerocopy::byteorder::big_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// GET LBA STATUS CDB.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct GetLbaStatusCdb {
    opcode: u8,
    service_action: u8,
    starting_logical_block_address: U64,
    allocation_length: U32,
    reserved: u8,
    control: u8,
}

const _: () = assert!(size_of::<GetLbaStatusCdb>() == 16);

/// GET LBA STATUS parameter data, without its descriptors.
#[derive(IntoBytes, Immutable, Unaligned)]
#[repr(C)]
struct GetLbaStatusHeader {
    /// Counts what follows it.
    parameter_data_length: U32,
    reserved: [u8; 4],
}

const _: () = assert!(size_of::<GetLbaStatusHeader>() == 8);

/// LBA status descriptor. Counts are logical blocks.
#[derive(IntoBytes, Immutable, Unaligned)]
#[repr(C)]
struct LbaStatusDescriptor {
    logical_block_address: U64,
    number_of_logical_blocks: U32,
    /// In bits 3 to 0.
    provisioning_status: u8,
    reserved: [u8; 3],
}

const _: () = assert!(size_of::<LbaStatusDescriptor>() == 16);

/// PROVISIONING STATUS: mapped, or the device does not know.
const MAPPED_OR_UNKNOWN: u8 = 0x0;
/// PROVISIONING STATUS: deallocated.
const DEALLOCATED: u8 = 0x1;

const HEADER_BYTES: u64 = size_of::<GetLbaStatusHeader>() as u64;
const DESCRIPTOR_BYTES: u64 = size_of::<LbaStatusDescriptor>() as u64;

const _: () =
    assert!(HEADER_BYTES as usize + LBA_STATUS_DESCRIPTORS_MAX * DESCRIPTOR_BYTES as usize <= BUF_BYTES_MAX);

/// Blocks that are alike, and neighbours of the ones before.
#[derive(Clone, Copy, Debug)]
struct Run {
    blocks: u64,
    status: u8,
}

/// A GET LBA STATUS under way: it asks the map for what is alike from where it has come to, one question after the other.
#[derive(Debug)]
pub(crate) struct LbaStatus {
    lba: u64,
    allocation_length: u32,
    runs: Vec<Run>,
    /// As many as are wanted.
    runs_max: usize,
    /// Of the blocks behind `lba`, those that `runs` tells of.
    told: u64,
    questions: u32,
    block_bytes: u64,
    /// Handed out; this is how the command ends.
    sent: Option<End>,
}

/// GET LBA STATUS(16). An allocation length below the 24 bytes of one descriptor cuts and is no error.
pub(crate) fn get_lba_status(request: &Request<'_>) -> Result<Work, Sense> {
    let cdb: &GetLbaStatusCdb = view(&request.command.cdb);
    let lba = cdb.starting_logical_block_address.get();
    let geometry = request.unit()?.geometry();
    // The block itself has to be there: nothing can be said of none.
    check_range(lba, 1, geometry).map_err(|sense| sense.cdb_byte(2))?;
    let allocation_length = cdb.allocation_length.get();
    let room = u64::from(allocation_length).saturating_sub(HEADER_BYTES) / DESCRIPTOR_BYTES;
    Ok(Work::LbaStatus(LbaStatus {
        lba,
        allocation_length,
        runs: Vec::new(),
        runs_max: room.clamp(1, LBA_STATUS_DESCRIPTORS_MAX as u64) as usize,
        told: 0,
        questions: 0,
        block_bytes: u64::from(geometry.block_bytes),
        sent: None,
    }))
}

impl LbaStatus {
    pub(crate) fn poll(
        &mut self,
        head: &mut Head,
        server: &DeviceServer,
        buffers: &mut impl Buffers,
    ) -> Step {
        if let Some(end) = self.sent {
            return Step::End(end);
        }
        if head.ios_out != 0 {
            return Step::Wait;
        }
        let Some(unit) = head.lun.and_then(|lun| server.unit(lun)) else {
            return Step::End(End::of(Err(Sense::LOGICAL_UNIT_NOT_SUPPORTED)));
        };
        let geometry = unit.geometry();
        // It may have shrunk since the block was there.
        let behind = geometry.blocks.saturating_sub(self.lba);
        if !geometry.is_thin() && self.runs.is_empty() {
            self.answered(behind * self.block_bytes, true);
        }
        if self.wants_more(behind) {
            self.questions += 1;
            let from = (self.lba + self.told) * self.block_bytes;
            return head.ask_status(from, (behind - self.told) * self.block_bytes);
        }
        let available = HEADER_BYTES + DESCRIPTOR_BYTES * self.runs.len().max(1) as u64;
        let transfer_bytes = available.min(u64::from(self.allocation_length));
        let end = End { result: Ok(()), moves: Moves::In, transfer_bytes };
        let bytes = transfer_bytes.min(u64::from(head.data_in_bytes)) as usize;
        if bytes == 0 {
            return Step::End(end);
        }
        let Some(mut buf) = buffers.take(bytes) else { return Step::Wait };
        self.build(behind, &mut Out::new(&mut buf));
        self.sent = Some(end);
        Step::Effect(Effect::DataIn { offset: 0, buf })
    }

    fn wants_more(&self, behind: u64) -> bool {
        self.told < behind && self.runs.len() <= self.runs_max && self.questions < LBA_STATUS_QUESTIONS_MAX
    }

    /// So many bytes more are alike.
    pub(crate) fn answered(&mut self, bytes: u64, mapped: bool) {
        // An answer of nothing would be asked for again and again.
        let blocks = bytes / self.block_bytes;
        let status = if mapped { MAPPED_OR_UNKNOWN } else { DEALLOCATED };
        let mut left = blocks;
        while left != 0 {
            // NUMBER OF LOGICAL BLOCKS has 32 bits; more is said by the next descriptor.
            let is_full = self.runs.len() > self.runs_max;
            let fits = match self.runs.last_mut() {
                Some(last) if last.status == status && last.blocks < u64::from(u32::MAX) => {
                    let fits = left.min(u64::from(u32::MAX) - last.blocks);
                    last.blocks += fits;
                    fits
                }
                _ if is_full => break,
                _ => {
                    let blocks = left.min(u64::from(u32::MAX));
                    self.runs.push(Run { blocks, status });
                    blocks
                }
            };
            self.told += fits;
            left -= fits;
        }
        if self.runs.len() > self.runs_max {
            // The one before it is whole.
            self.questions = LBA_STATUS_QUESTIONS_MAX;
            self.runs.truncate(self.runs_max);
        }
    }

    /// Runs behind one another from `lba` on; what is not there any more is left out.
    fn build(&self, behind: u64, out: &mut Out<'_>) {
        let descriptors = self.runs.len().max(1) as u32;
        out.put(&GetLbaStatusHeader {
            parameter_data_length: U32::new(4 + descriptors * DESCRIPTOR_BYTES as u32),
            reserved: [0; 4],
        });
        let mut at = 0;
        let none = [Run { blocks: 0, status: MAPPED_OR_UNKNOWN }];
        let runs = if self.runs.is_empty() { &none[..] } else { &self.runs };
        for run in runs {
            let blocks = run.blocks.min(behind.saturating_sub(at));
            out.put(&LbaStatusDescriptor {
                logical_block_address: U64::new(self.lba + at),
                number_of_logical_blocks: U32::new(blocks as u32),
                provisioning_status: run.status,
                reserved: [0; 3],
            });
            at += blocks;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::{NEXUS, Offer, World, cdb16, geometry, lun_config};
    use crate::lun::LunConfig;
    use bdev::geometry::Geometry;

    /// The CDB: what `cdb16` has as a number of blocks is the allocation length.
    fn cdb(lba: u64, allocation_length: u32) -> Vec<u8> {
        cdb16(0x9E, 0x12, lba, allocation_length)
    }

    fn be(bytes: &[u8]) -> u64 {
        bytes.iter().fold(0, |value, &byte| value << 8 | u64::from(byte))
    }

    /// Goal: one descriptor, from the block asked for to the end, for thin and thick units, written or not.
    #[test]
    fn one_descriptor_covers_the_rest() {
        for unmap_granularity_bytes in [4096, 0] {
            let mut world = World::new(Geometry { unmap_granularity_bytes, ..geometry() });
            for lba in [0, 1, 77, 4999] {
                let answer = world.get(&cdb(lba, 24), 24).good();
                assert_eq!((answer.transfer_bytes, answer.ios.len()), (24, 0));
                assert_eq!(answer.data[..8], [0, 0, 0, 20, 0, 0, 0, 0]);
                assert_eq!((be(&answer.data[8..16]), be(&answer.data[16..20])), (lba, 5000 - lba));
                assert_eq!(answer.data[20..], [0; 4]);
            }
        }
    }

    /// Goal: allocation lengths cut and never fail, and long ones get no more than there is.
    #[test]
    fn allocation_length_cuts() {
        let mut world = World::new(geometry());
        let whole = world.get(&cdb(5, 4096), 4096).good().data;
        assert_eq!(whole.len(), 24);
        for length in 0..=32 {
            let answer = world.get(&cdb(5, length), 64).good();
            let want = &whole[..whole.len().min(length as usize)];
            assert_eq!((&answer.data[..], answer.transfer_bytes), (want, want.len() as u64));
        }
        let answer = world.get(&cdb(5, u32::MAX), 10).good();
        assert_eq!((answer.data.len(), answer.transfer_bytes), (10, 24));
    }

    /// Goal: a block that is not there has no status, at the edge and without wrapping.
    #[test]
    fn the_block_has_to_be_there() {
        let mut world = World::new(geometry());
        for lba in [5000, 5001, 1 << 40, u64::MAX] {
            let answer = world.get(&cdb(lba, 24), 24).bad(0x5_2100);
            assert_eq!(answer.pointer(), Some((true, 2, None)));
            assert_eq!(answer.information(), u32::try_from(lba).ok());
        }
        let mut reserved = cdb(0, 24);
        reserved[14] = 1;
        world.get(&reserved, 24).bad_field(14, Some(7));
    }

    /// Goal: a number of blocks that 32 bits can't say is said as the largest, and the next descriptor says the rest.
    /// Method: without a disk of that size.
    #[test]
    fn large_units_are_told_in_parts() {
        let max = u64::from(u32::MAX);
        for (blocks, runs_max, said) in [
            (max - 1, 4, vec![max - 1]),
            (max, 4, vec![max]),
            (max + 1, 4, vec![max, 1]),
            (1 << 37, 1, vec![max]),
            (1 << 37, 2, vec![max; 2]),
        ] {
            let mut status = LbaStatus {
                lba: 0,
                allocation_length: 4096,
                runs: Vec::new(),
                runs_max,
                told: 0,
                questions: 0,
                block_bytes: 512,
                sent: None,
            };
            status.answered(blocks * 512, true);
            assert_eq!(status.runs.iter().map(|run| run.blocks).collect::<Vec<_>>(), said);
            assert!(!status.wants_more(blocks) || said.len() < runs_max);
        }
    }

    fn descriptors(data: &[u8]) -> Vec<(u64, u64, u8)> {
        assert_eq!(be(&data[..4]) as usize, data.len() - 4);
        data[8..].chunks(16).map(|one| (be(&one[..8]), be(&one[8..12]), one[12])).collect()
    }

    /// Goal: what the map says is told in runs that are joined over stripes, whole, from the block asked for, as many as
    /// fit. Method: compare with one block after the other, for all block sizes, with holes in and across stripes.
    #[test]
    fn runs_are_those_of_the_map() {
        for (block_bytes, physical_block_bytes) in [(512, 4096), (512, 512), (4096, 4096)] {
            let shape = Geometry {
                block_bytes,
                physical_block_bytes,
                blocks: 2_560_000 / u64::from(block_bytes),
                ..geometry()
            };
            let mut world = World::new(shape);
            world.deallocated = vec![8192..16384, 200_704..712_704, 1 << 20..(1 << 20) + 4096];
            let per = u64::from(block_bytes);
            let hole = |lba: u64| world.deallocated.iter().any(|range| range.contains(&(lba * per)));
            let model = |from: u64, most: usize| {
                let mut runs: Vec<(u64, u64, u8)> = Vec::new();
                for lba in from..shape.blocks {
                    let is_full = runs.len() == most;
                    match runs.last_mut() {
                        Some(last) if last.2 == u8::from(hole(lba)) => last.1 += 1,
                        _ if is_full => break,
                        _ => runs.push((lba, 1, u8::from(hole(lba)))),
                    }
                }
                runs
            };
            let wanted: Vec<_> = [0, 1, 5, 17, 33, 400, 1391, 1392, 2047, 2048, 2060, 4999]
                .into_iter()
                .filter(|&lba| lba < shape.blocks)
                .flat_map(|lba| [1, 2, 3, 100].map(|most| (lba, most, model(lba, most))))
                .collect();
            for (lba, most, runs) in wanted {
                let length = 8 + 16 * most as u32;
                let answer = world.get(&cdb(lba, length), length).good();
                assert_eq!(descriptors(&answer.data), runs, "{block_bytes} {lba} {most}");
            }
        }
    }

    /// Goal: a raw device asks nothing of a map it has not, and a thick one neither; however finely a unit is mapped, an
    /// answer has as many descriptors as there may be, and goes on where the next one asks. Method: every other 4 KiB.
    #[test]
    fn fine_maps_are_told_in_parts() {
        let blocks = 16_000;
        let mut world = World::new(Geometry { blocks, ..geometry() });
        world.deallocated = (0..blocks / 16).map(|nth| nth * 8192..nth * 8192 + 4096).collect();
        let first = descriptors(&world.get(&cdb(0, 1 << 20), 1 << 20).good().data);
        assert_eq!(first.len(), LBA_STATUS_DESCRIPTORS_MAX);
        let next = first.last().map_or(0, |last| last.0 + last.1);
        let rest = descriptors(&world.get(&cdb(next, 1 << 20), 1 << 20).good().data);
        assert_eq!(rest[0], (next, 8, 1));
        assert_eq!(rest.last().map(|last| last.0 + last.1), Some(blocks));
        assert_eq!(first.len() + rest.len(), 2000);
    }

    /// Goal: it may be aborted whenever, questions out or not, and nothing is lost. Method: at every step.
    #[test]
    fn it_can_be_aborted() {
        let mut world = World::new(geometry());
        world.deallocated = vec![8192..16384, 200_704..712_704];
        for steps in 0..40 {
            let offer = Offer { lun: [0; 8], cdb: cdb(0, 4096), room: 4096, data: &[], data_bytes: 0 };
            world.run_until(NEXUS, &offer, steps);
        }
    }

    /// Goal: a unit without a medium has no blocks to tell of; a protected one has.
    #[test]
    fn the_medium_has_to_be_there() {
        let mut removable = World::of(vec![LunConfig { removable: true, ..lun_config(0, geometry()) }]);
        removable.get(&cdb(0, 24), 24).good();
        removable.get(&[0x1B, 0, 0, 0, 2, 0], 0).good();
        removable.get(&cdb(0, 24), 24).bad(0x2_3A00);
        removable.get(&cdb(9000, 24), 24).bad(0x2_3A00);
        let mut protected = World::of(vec![LunConfig { read_only: true, ..lun_config(0, geometry()) }]);
        protected.get(&cdb(0, 24), 24).good();
    }
}
