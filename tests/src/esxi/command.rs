//! The commands that ESXi sends, as it frames them.

/// A command for a logical unit.
#[derive(Clone, Debug)]
pub struct Command {
    /// The standard's name.
    pub name: &'static str,
    /// Whom it is for.
    pub lun: u8,
    /// Its bytes.
    pub cdb: Vec<u8>,
    /// What goes with it.
    pub data_out: Vec<u8>,
    /// Room for what comes.
    pub room: u32,
}

/// A logical block.
pub const BLOCK_BYTES: u32 = 512;
/// Logical blocks of a mebibyte: a VMFS block.
pub const MIB: u64 = 2048;

impl Command {
    fn plain(name: &'static str, lun: u8, cdb: &[u8]) -> Command {
        Command { name, lun, cdb: cdb.to_vec(), data_out: Vec::new(), room: 0 }
    }

    fn inward(name: &'static str, lun: u8, cdb: &[u8], room: u32) -> Command {
        Command { room, ..Command::plain(name, lun, cdb) }
    }

    fn outward(name: &'static str, lun: u8, cdb: &[u8], data_out: Vec<u8>) -> Command {
        Command { data_out, ..Command::plain(name, lun, cdb) }
    }

    /// TEST UNIT READY.
    pub fn test_unit_ready(lun: u8) -> Command {
        Command::plain("TEST UNIT READY", lun, &[0; 6])
    }

    /// INQUIRY, standard data.
    pub fn inquiry(lun: u8) -> Command {
        Command::inward("INQUIRY", lun, &[0x12, 0, 0, 0, 0xFF, 0], 0xFF)
    }

    /// INQUIRY of a vital product data page.
    pub fn vital_product_data(lun: u8, page: u8) -> Command {
        Command::inward("INQUIRY (VPD)", lun, &[0x12, 1, page, 0, 0xFF, 0], 0xFF)
    }

    /// REPORT LUNS with this much room.
    pub fn report_luns(lun: u8, room: u32) -> Command {
        let [a, b, c, d] = room.to_be_bytes();
        Command::inward("REPORT LUNS", lun, &[0xA0, 0, 0, 0, 0, 0, a, b, c, d, 0, 0], room)
    }

    /// READ CAPACITY(10).
    pub fn read_capacity_10(lun: u8) -> Command {
        Command::inward("READ CAPACITY(10)", lun, &[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0], 8)
    }

    /// READ CAPACITY(16).
    pub fn read_capacity_16(lun: u8) -> Command {
        let mut cdb = [0; 16];
        (cdb[0], cdb[1], cdb[13]) = (0x9E, 0x10, 32);
        Command::inward("READ CAPACITY(16)", lun, &cdb, 32)
    }

    /// MODE SENSE(6) of a page's current values.
    pub fn mode_sense(lun: u8, page: u8) -> Command {
        Command::inward("MODE SENSE(6)", lun, &[0x1A, 0, page, 0, 0xFF, 0], 0xFF)
    }

    /// LOG SENSE.
    pub fn log_sense(lun: u8, page: u8) -> Command {
        Command::inward("LOG SENSE", lun, &[0x4D, 0, 0x40 | page, 0, 0, 0, 0, 0x02, 0, 0], 0x200)
    }

    /// ATA PASS-THROUGH(16), which the poller of SMART data sends to every disk.
    pub fn ata_pass_through(lun: u8) -> Command {
        let cdb = [0x85, 0x08, 0x0E, 0, 0xD0, 0, 1, 0, 0, 0, 0x4F, 0, 0xC2, 0, 0xB0, 0];
        Command::inward("ATA PASS-THROUGH(16)", lun, &cdb, BLOCK_BYTES)
    }

    /// REPORT SUPPORTED OPERATION CODES about one command.
    pub fn supported(lun: u8, opcode: u8, service_action: u8) -> Command {
        let cdb = [0xA3, 0x0C, 0x03, opcode, 0, service_action, 0, 0, 0, 64, 0, 0];
        Command::inward("REPORT SUPPORTED OPERATION CODES", lun, &cdb, 64)
    }

    /// REPORT TARGET PORT GROUPS.
    pub fn report_target_port_groups(lun: u8) -> Command {
        let cdb = [0xA3, 0x0A, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0];
        Command::inward("REPORT TARGET PORT GROUPS", lun, &cdb, 512)
    }

    /// READ(10) or READ(16), as the address needs.
    pub fn read(lun: u8, lba: u64, blocks: u32) -> Command {
        let cdb = transfer_cdb([0x28, 0x88], lba, blocks);
        Command::inward("READ", lun, &cdb, blocks * BLOCK_BYTES)
    }

    /// WRITE(10) or WRITE(16), as the address needs.
    pub fn write(lun: u8, lba: u64, data: Vec<u8>) -> Command {
        let cdb = transfer_cdb([0x2A, 0x8A], lba, data.len() as u32 / BLOCK_BYTES);
        Command::outward("WRITE", lun, &cdb, data)
    }

    /// RESERVE(6) of the whole unit.
    pub fn reserve(lun: u8) -> Command {
        Command::plain("RESERVE(6)", lun, &[0x16, 0, 0, 0, 0, 0])
    }

    /// RELEASE(6).
    pub fn release(lun: u8) -> Command {
        Command::plain("RELEASE(6)", lun, &[0x17, 0, 0, 0, 0, 0])
    }

    /// ATS: COMPARE AND WRITE of as many blocks as `expected` has.
    pub fn compare_and_write(lun: u8, lba: u64, expected: &[u8], new: &[u8]) -> Command {
        let mut cdb = long_cdb(0x89, 0, lba, 0);
        cdb[13] = (expected.len() / BLOCK_BYTES as usize) as u8;
        Command::outward("COMPARE AND WRITE", lun, &cdb, [expected, new].concat())
    }

    /// Zero: WRITE SAME(16) of one block of zeroes, without UNMAP.
    pub fn write_same(lun: u8, lba: u64, blocks: u32) -> Command {
        Command::write_same_of(lun, lba, blocks, vec![0; BLOCK_BYTES as usize])
    }

    /// WRITE SAME(16) of this block.
    pub fn write_same_of(lun: u8, lba: u64, blocks: u32, block: Vec<u8>) -> Command {
        Command::outward("WRITE SAME(16)", lun, &long_cdb(0x93, 0, lba, blocks), block)
    }

    /// Delete: UNMAP of these ranges.
    pub fn unmap(lun: u8, ranges: &[(u64, u32)]) -> Command {
        let mut list = vec![0; 8];
        for (lba, blocks) in ranges {
            list.extend(lba.to_be_bytes());
            list.extend(blocks.to_be_bytes());
            list.extend([0; 4]);
        }
        let bytes = list.len() as u16;
        list[0..2].copy_from_slice(&(bytes - 2).to_be_bytes());
        list[2..4].copy_from_slice(&(bytes - 8).to_be_bytes());
        let [high, low] = bytes.to_be_bytes();
        Command::outward("UNMAP", lun, &[0x42, 0, 0, 0, 0, 0, 0, high, low, 0], list)
    }

    /// GET LBA STATUS(16).
    pub fn get_lba_status(lun: u8, lba: u64, room: u32) -> Command {
        Command::inward("GET LBA STATUS", lun, &long_cdb(0x9E, 0x12, lba, room), room)
    }

    /// RECEIVE COPY OPERATING PARAMETERS.
    pub fn copy_operating_parameters(lun: u8) -> Command {
        let cdb = long_cdb(0x84, 0x03, 0, 0x400);
        Command::inward("RECEIVE COPY OPERATING PARAMETERS", lun, &cdb, 0x400)
    }

    /// Clone: EXTENDED COPY(LID1) with one source and one destination.
    pub fn extended_copy(lun: u8, from: &[u8; 16], to: &[u8; 16], segments: &[Segment]) -> Command {
        let mut list = vec![0; 16];
        // LIST IDENTIFIER 0 with LIST ID USAGE 11b: nothing is kept, ESXi waits for the command's own answer.
        list[1] = 0b11 << 3;
        list[2..4].copy_from_slice(&64u16.to_be_bytes());
        list[8..12].copy_from_slice(&(28 * segments.len() as u32).to_be_bytes());
        for naa in [from, to] {
            list.extend([0xE4, 0, 0, 0, 0x01, 0x03, 0, 16]);
            list.extend(naa);
            list.extend([0, 0, 0, 0]);
            list.extend(BLOCK_BYTES.to_be_bytes());
        }
        for segment in segments {
            // Block device to block device, from CSCD 0 to CSCD 1.
            list.extend([0x02, 0, 0, 0x18, 0, 0, 0, 1, 0, 0]);
            list.extend(segment.blocks.to_be_bytes());
            list.extend(segment.from.to_be_bytes());
            list.extend(segment.to.to_be_bytes());
        }
        let cdb = long_cdb(0x83, 0, 0, list.len() as u32);
        Command::outward("EXTENDED COPY(LID1)", lun, &cdb, list)
    }
}

/// One range of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// First block of the source.
    pub from: u64,
    /// First block of the destination.
    pub to: u64,
    /// How many.
    pub blocks: u16,
}

/// Opcode, byte 1, eight bytes of address, four of length.
fn long_cdb(opcode: u8, byte_1: u8, lba: u64, length: u32) -> [u8; 16] {
    let mut cdb = [0; 16];
    (cdb[0], cdb[1]) = (opcode, byte_1);
    cdb[2..10].copy_from_slice(&lba.to_be_bytes());
    cdb[10..14].copy_from_slice(&length.to_be_bytes());
    cdb
}

fn transfer_cdb([short, long]: [u8; 2], lba: u64, blocks: u32) -> Vec<u8> {
    match (u32::try_from(lba), u16::try_from(blocks)) {
        (Ok(lba), Ok(blocks)) => {
            let mut cdb = vec![short, 0];
            cdb.extend(lba.to_be_bytes());
            cdb.push(0);
            cdb.extend(blocks.to_be_bytes());
            cdb.push(0);
            cdb
        }
        _ => long_cdb(long, 0, lba, blocks).to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a copy's list is as the figures have it. Method: one segment of 4 MiB, by offsets.
    #[test]
    fn a_copy_is_framed_as_esxi_does() {
        let segment = Segment { from: 0x1_0000, to: 0x2_0000, blocks: 8192 };
        let command = Command::extended_copy(0, &[0xAA; 16], &[0xBB; 16], &[segment]);
        let list = &command.data_out;
        assert_eq!((list.len(), command.cdb[13], &command.cdb[..2]), (16 + 64 + 28, 108, &[0x83, 0][..]));
        assert_eq!(list[..16], [0, 0x18, 0, 64, 0, 0, 0, 0, 0, 0, 0, 28, 0, 0, 0, 0]);
        assert_eq!(list[16..24], [0xE4, 0, 0, 0, 1, 3, 0, 16]);
        assert_eq!((&list[24..40], &list[40..48]), (&[0xAA; 16][..], &[0, 0, 0, 0, 0, 0, 2, 0][..]));
        assert_eq!(list[80..92], [2, 0, 0, 0x18, 0, 0, 0, 1, 0, 0, 0x20, 0]);
        assert_eq!((list[97], list[105]), (1, 2));
    }

    /// Goal: lists and CDBs of the others by their offsets.
    #[test]
    fn others_are_framed_as_in_the_standard() {
        let unmap = Command::unmap(0, &[(2048, 2048), (8192, 2048)]);
        assert_eq!((&unmap.data_out[..4], unmap.cdb[8], unmap.data_out.len()), (&[0, 38, 0, 32][..], 40, 40));
        let swap = Command::compare_and_write(0, 7, &[1; 512], &[2; 512]);
        assert_eq!((swap.cdb[9], swap.cdb[13], swap.data_out.len()), (7, 1, 1024));
        assert_eq!(Command::read(0, 5, 8).cdb, [0x28, 0, 0, 0, 0, 5, 0, 0, 8, 0]);
        assert_eq!(Command::read(0, 1 << 32, 8).cdb[0], 0x88);
    }
}
