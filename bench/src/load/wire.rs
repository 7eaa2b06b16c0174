//! Bytes of the iSCSI PDUs that a load generator sends and gets: the fields, at their offsets, and no more.
//!
//! Written apart from the `iscsi` crate on purpose: the generator must notice when the target's codec is wrong.
//! Called by `login`, `link`, `session` and the raw ceiling. Offsets are those of RFC 7143 §11.

use crc_fast::{CrcAlgorithm, Digest};

/// A Basic Header Segment's length in bytes. RFC 7143 §11.2.1.
pub const BHS_BYTES: usize = 48;
/// A digest's length in bytes. RFC 7143 §11.2.3.
pub const DIGEST_BYTES: usize = 4;
/// The tag that stands for none: no task, no transfer.
pub const TAG_NONE: u32 = 0xFFFF_FFFF;
/// What a data segment's 24-bit length can say at most.
pub const SEGMENT_BYTES_MAX: u32 = 0x00FF_FFFF;

/// A Basic Header Segment.
pub type Bhs = [u8; BHS_BYTES];

/// Opcodes, without the immediate bit. RFC 7143 §11.2.1.2.
pub mod opcode {
    #![allow(missing_docs, reason = "the names are the standard's")]
    pub const NOP_OUT: u8 = 0x00;
    pub const SCSI_COMMAND: u8 = 0x01;
    pub const LOGIN_REQUEST: u8 = 0x03;
    pub const DATA_OUT: u8 = 0x05;
    pub const LOGOUT_REQUEST: u8 = 0x06;
    pub const NOP_IN: u8 = 0x20;
    pub const SCSI_RESPONSE: u8 = 0x21;
    pub const LOGIN_RESPONSE: u8 = 0x23;
    pub const DATA_IN: u8 = 0x25;
    pub const LOGOUT_RESPONSE: u8 = 0x26;
    pub const R2T: u8 = 0x31;
    pub const ASYNC_MESSAGE: u8 = 0x32;
    pub const REJECT: u8 = 0x3F;
}

/// Deliver at once, outside the command order.
pub const IMMEDIATE: u8 = 0x40;
/// F: the last PDU of its sequence. Login's T bit is the same bit.
pub const FINAL: u8 = 0x80;
/// Login's C bit: the text goes on in the next PDU.
pub const CONTINUE: u8 = 0x40;
/// SCSI Command: data will come in.
pub const READ: u8 = 0x40;
/// SCSI Command: data will go out.
pub const WRITE: u8 = 0x20;
/// SCSI Command: the simple task attribute.
pub const SIMPLE: u8 = 0x01;
/// Data-In: this PDU carries the status.
pub const STATUS_PRESENT: u8 = 0x01;
/// Data-In and SCSI Response: fewer (U) or more (O) bytes than the residual count's zero.
pub const RESIDUAL_FLAGS: u8 = 0x06;

/// READ (16). SBC-3 §5.15.
pub const READ_16: u8 = 0x88;
/// WRITE (16). SBC-3 §5.34.
pub const WRITE_16: u8 = 0x8A;

/// The big-endian 32 bits at `at`.
pub fn get_u32(bhs: &Bhs, at: usize) -> u32 {
    u32::from_be_bytes([bhs[at], bhs[at + 1], bhs[at + 2], bhs[at + 3]])
}

/// Writes 32 bits big-endian at `at`.
pub fn put_u32(bhs: &mut Bhs, at: usize, value: u32) {
    bhs[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

/// The opcode, without the immediate bit.
pub fn opcode_of(bhs: &Bhs) -> u8 {
    bhs[0] & 0x3F
}

/// DataSegmentLength, in bytes, without padding.
pub fn data_bytes(bhs: &Bhs) -> u32 {
    u32::from_be_bytes([0, bhs[5], bhs[6], bhs[7]])
}

/// Sets DataSegmentLength, in bytes.
pub fn put_data_bytes(bhs: &mut Bhs, bytes: u32) {
    assert!(bytes <= SEGMENT_BYTES_MAX);
    bhs[5..8].copy_from_slice(&bytes.to_be_bytes()[1..]);
}

/// Bytes that pad `data_bytes` to a multiple of four.
pub fn pad_bytes(data_bytes: u32) -> u32 {
    data_bytes.wrapping_neg() & 3
}

/// Initiator Task Tag.
pub fn initiator_task_tag(bhs: &Bhs) -> u32 {
    get_u32(bhs, 16)
}

/// Target Transfer Tag of NOP-In, Data-In and R2T.
pub fn target_transfer_tag(bhs: &Bhs) -> u32 {
    get_u32(bhs, 20)
}

/// StatSN of any target PDU.
pub fn stat_sn(bhs: &Bhs) -> u32 {
    get_u32(bhs, 24)
}

/// MaxCmdSN of any target PDU.
pub fn max_cmd_sn(bhs: &Bhs) -> u32 {
    get_u32(bhs, 32)
}

/// DataSN of Data-In, R2TSN of R2T.
pub fn data_sn(bhs: &Bhs) -> u32 {
    get_u32(bhs, 36)
}

/// Buffer Offset of Data-In and R2T, in bytes.
pub fn buffer_offset(bhs: &Bhs) -> u32 {
    get_u32(bhs, 40)
}

/// Residual Count of Data-In and SCSI Response, Desired Data Transfer Length of R2T; bytes.
pub fn residual_or_desired(bhs: &Bhs) -> u32 {
    get_u32(bhs, 44)
}

/// `a <= b` in serial number arithmetic (RFC 1982), as CmdSN and StatSN are compared.
pub fn serial_le(a: u32, b: u32) -> bool {
    (b.wrapping_sub(a) as i32) >= 0
}

/// The eight LUN bytes: peripheral addressing below 256, flat above. SAM-5 §4.7.
pub fn lun_bytes(lun: u16) -> [u8; 8] {
    let [high, low] = lun.to_be_bytes();
    let first = if lun < 256 { 0 } else { 0x40 | (high & 0x3F) };
    [first, low, 0, 0, 0, 0, 0, 0]
}

/// A SCSI Command with everything but its tag and serial numbers. `flags` are READ or WRITE, or neither;
/// `expected_bytes` is the Expected Data Transfer Length. FINAL is set; who sends unsolicited Data-Out clears it.
pub fn scsi_command(lun: u16, flags: u8, expected_bytes: u32, cdb: &[u8]) -> Bhs {
    assert!(cdb.len() <= 16);
    let mut bhs = [0; BHS_BYTES];
    bhs[0] = opcode::SCSI_COMMAND;
    bhs[1] = FINAL | flags | SIMPLE;
    bhs[8..16].copy_from_slice(&lun_bytes(lun));
    put_u32(&mut bhs, 20, expected_bytes);
    bhs[32..32 + cdb.len()].copy_from_slice(cdb);
    bhs
}

/// READ (16) or WRITE (16) of `blocks` logical blocks, its address still zero.
pub fn rw_16(operation_code: u8, blocks: u32) -> [u8; 16] {
    let mut cdb = [0; 16];
    cdb[0] = operation_code;
    cdb[10..14].copy_from_slice(&blocks.to_be_bytes());
    cdb
}

/// Completes a template of [`scsi_command`] whose CDB is one of [`rw_16`].
pub fn stamp_command(bhs: &mut Bhs, task_tag: u32, cmd_sn: u32, exp_stat_sn: u32, lba: u64) {
    put_u32(bhs, 16, task_tag);
    put_u32(bhs, 24, cmd_sn);
    put_u32(bhs, 28, exp_stat_sn);
    bhs[34..42].copy_from_slice(&lba.to_be_bytes());
}

/// The logical block address of a command made by [`stamp_command`].
pub fn lba_of(bhs: &Bhs) -> u64 {
    (u64::from(get_u32(bhs, 34)) << 32) | u64::from(get_u32(bhs, 38))
}

/// Which bytes of which task a Data-Out carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DataOut {
    /// The command's tag.
    pub task_tag: u32,
    /// The R2T's tag, [`TAG_NONE`] for unsolicited data.
    pub transfer_tag: u32,
    /// Counts the PDUs of one sequence, from zero.
    pub data_sn: u32,
    /// Where in the command's data, in bytes.
    pub offset: u32,
    /// How many bytes.
    pub bytes: u32,
    /// The last of its sequence.
    pub last: bool,
}

/// A SCSI Data-Out. RFC 7143 §11.7.
pub fn data_out(lun: u16, exp_stat_sn: u32, what: DataOut) -> Bhs {
    let mut bhs = [0; BHS_BYTES];
    bhs[0] = opcode::DATA_OUT;
    bhs[1] = if what.last { FINAL } else { 0 };
    put_data_bytes(&mut bhs, what.bytes);
    bhs[8..16].copy_from_slice(&lun_bytes(lun));
    put_u32(&mut bhs, 16, what.task_tag);
    put_u32(&mut bhs, 20, what.transfer_tag);
    put_u32(&mut bhs, 28, exp_stat_sn);
    put_u32(&mut bhs, 36, what.data_sn);
    put_u32(&mut bhs, 40, what.offset);
    bhs
}

/// The NOP-Out that answers the target's NOP-In `ping`. RFC 7143 §11.18.
pub fn nop_out_answer(ping: &Bhs, cmd_sn: u32, exp_stat_sn: u32) -> Bhs {
    let mut bhs = [0; BHS_BYTES];
    bhs[0] = IMMEDIATE | opcode::NOP_OUT;
    bhs[1] = FINAL;
    bhs[8..16].copy_from_slice(&ping[8..16]);
    put_u32(&mut bhs, 16, TAG_NONE);
    put_u32(&mut bhs, 20, target_transfer_tag(ping));
    put_u32(&mut bhs, 24, cmd_sn);
    put_u32(&mut bhs, 28, exp_stat_sn);
    bhs
}

/// A Logout Request that closes the session. RFC 7143 §11.14.
pub fn logout_request(task_tag: u32, cmd_sn: u32, exp_stat_sn: u32) -> Bhs {
    let mut bhs = [0; BHS_BYTES];
    bhs[0] = IMMEDIATE | opcode::LOGOUT_REQUEST;
    bhs[1] = FINAL;
    put_u32(&mut bhs, 16, task_tag);
    put_u32(&mut bhs, 24, cmd_sn);
    put_u32(&mut bhs, 28, exp_stat_sn);
    bhs
}

/// A running CRC32C over what a digest covers.
#[derive(Debug, Clone, Copy)]
pub struct Crc(Digest);

impl Crc {
    /// Over nothing yet.
    pub fn new() -> Crc {
        Crc(Digest::new(CrcAlgorithm::Crc32Iscsi))
    }

    /// Takes in `bytes`.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest's four bytes in the order they travel. RFC 7143 §13.1.
    pub fn wire(&self) -> [u8; DIGEST_BYTES] {
        (self.0.finalize() as u32).to_le_bytes()
    }
}

impl Default for Crc {
    fn default() -> Crc {
        Crc::new()
    }
}

/// The digest of `bytes`, as it travels.
pub fn crc32c(bytes: &[u8]) -> [u8; DIGEST_BYTES] {
    let mut crc = Crc::new();
    crc.update(bytes);
    crc.wire()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: every field of a command sits where the standard's figure has it. Method: bytes written by hand.
    #[test]
    fn a_write_command_has_the_bytes_of_the_figure() {
        let mut bhs = scsi_command(5, WRITE, 4096, &rw_16(WRITE_16, 8));
        put_data_bytes(&mut bhs, 4096);
        stamp_command(&mut bhs, 0x0102_0304, 0x1112_1314, 0x2122_2324, 0x3132_3334_3536_3738);
        let by_hand: Bhs = [
            0x01, 0xA1, 0, 0, 0, 0x00, 0x10, 0x00, // command, F W simple, no AHS, 4096 bytes of data
            0, 5, 0, 0, 0, 0, 0, 0, // LUN 5
            0x01, 0x02, 0x03, 0x04, // initiator task tag
            0, 0, 0x10, 0, // expected data transfer length
            0x11, 0x12, 0x13, 0x14, // CmdSN
            0x21, 0x22, 0x23, 0x24, // ExpStatSN
            0x8A, 0, 0x31, 0x32, 0x33, 0x34, 0x35, 0x36, 0x37, 0x38, 0, 0, 0, 8, 0, 0, // WRITE (16)
        ];
        assert_eq!(bhs, by_hand);
        assert_eq!(lba_of(&bhs), 0x3132_3334_3536_3738);
    }

    /// Goal: the same for Data-Out. Method: bytes written by hand.
    #[test]
    fn a_data_out_has_the_bytes_of_the_figure() {
        let what = DataOut {
            task_tag: 0x0A0B_0C0D,
            transfer_tag: 0x0102_0304,
            data_sn: 7,
            offset: 0x0001_0000,
            bytes: 0x0203,
            last: true,
        };
        let by_hand: Bhs = [
            0x05, 0x80, 0, 0, 0, 0, 0x02, 0x03, // Data-Out, F, 515 bytes
            0x41, 0x02, 0, 0, 0, 0, 0, 0, // LUN 258, flat
            0x0A, 0x0B, 0x0C, 0x0D, 1, 2, 3, 4, // tags
            0, 0, 0, 0, 0, 0, 0, 9, // reserved, ExpStatSN
            0, 0, 0, 0, 0, 0, 0, 7, // reserved, DataSN
            0, 1, 0, 0, 0, 0, 0, 0, // buffer offset, reserved
        ];
        assert_eq!(data_out(258, 9, what), by_hand);
    }

    /// Goal: a ping is answered with its own tag and LUN, immediate, and no task of ours. Method: by hand.
    #[test]
    fn a_nop_out_answers_with_the_pings_tag() {
        let mut ping = [0; BHS_BYTES];
        ping[0] = opcode::NOP_IN;
        ping[9] = 3;
        put_u32(&mut ping, 20, 0x0506_0708);
        let by_hand: Bhs = [
            0x40, 0x80, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 5, 6, 7, 8, 0, 0,
            0, 1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        ];
        assert_eq!(nop_out_answer(&ping, 1, 2), by_hand);
    }

    /// Goal: fields of a target's PDU are read from the figure's offsets. Method: a Data-In written by hand.
    #[test]
    fn a_data_in_is_read_at_the_figures_offsets() {
        let by_hand: Bhs = [
            0x25, 0x81, 0, 0x02, 0, 0x01, 0x02, 0x03, 0, 0, 0, 0, 0, 0, 0,
            0, // F S, status 02h, length 010203h
            0, 0, 0, 0x11, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 0, 0x22, 0, 0, 0,
            0x33, // tags, StatSN, ExpCmdSN
            0, 0, 0, 0x44, 0, 0, 0, 0x55, 0, 0, 0, 0x66, 0, 0, 0,
            0x77, // MaxCmdSN, DataSN, offset, residual
        ];
        assert_eq!(opcode_of(&by_hand), opcode::DATA_IN);
        assert_eq!(data_bytes(&by_hand), 0x0001_0203);
        assert_eq!(initiator_task_tag(&by_hand), 0x11);
        assert_eq!(target_transfer_tag(&by_hand), TAG_NONE);
        assert_eq!(stat_sn(&by_hand), 0x22);
        assert_eq!(max_cmd_sn(&by_hand), 0x44);
        assert_eq!(data_sn(&by_hand), 0x55);
        assert_eq!(buffer_offset(&by_hand), 0x66);
        assert_eq!(residual_or_desired(&by_hand), 0x77);
    }

    /// Goal: digests are the standard's. Method: the test vectors of RFC 7143 appendix A.4.
    #[test]
    fn digests_match_the_standards_examples() {
        assert_eq!(crc32c(&[0; 32]), [0xAA, 0x36, 0x91, 0x8A]);
        assert_eq!(crc32c(&[0xFF; 32]), [0x43, 0xAB, 0xA8, 0x62]);
        let rising: Vec<u8> = (0..32).collect();
        assert_eq!(crc32c(&rising), [0x4E, 0x79, 0xDD, 0x46]);
        let mut in_parts = Crc::new();
        in_parts.update(&rising[..5]);
        in_parts.update(&rising[5..]);
        assert_eq!(in_parts.wire(), [0x4E, 0x79, 0xDD, 0x46]);
    }

    /// Goal: the command window is compared across the wrap. Method: pairs around zero.
    #[test]
    fn serial_numbers_wrap() {
        assert!(serial_le(5, 5));
        assert!(serial_le(0xFFFF_FFFF, 0));
        assert!(!serial_le(0, 0xFFFF_FFFF));
        assert!(!serial_le(6, 5));
    }

    /// Goal: padding brings each length to a multiple of four. Method: four neighbours.
    #[test]
    fn padding_rounds_to_words() {
        assert_eq!([0, 1, 2, 3, 4].map(pad_bytes), [0, 3, 2, 1, 0]);
    }
}
