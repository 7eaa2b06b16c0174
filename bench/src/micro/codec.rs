//! Headers as a connection takes and makes them for a read, and the digests behind headers and data.

use super::round::{Clock, Plan, Work, each};
use super::rows::{Per, Row, Unit};
use crate::failure::Failure;
use crate::load::pattern::Random;
use iscsi::digest::{Crc, WireDigest};
use iscsi::pdu::encode::{DataIn, Residual, ScsiResponse, Sequence, data_in, scsi_response};
use iscsi::pdu::{BHS_BYTES, Bhs, TaskTag, decode};
use iscsi::serial::{CmdSn, DataSn, StatSn};
use std::hint::black_box;
use vaai::sense::Status;

/// Data of a 4 KiB command.
const DATA_BYTES: usize = 4096;
/// Of the command that is read and answered.
const TAG: TaskTag = TaskTag(0x1234_5678);

/// The case.
///
/// # Errors
/// The codec refuses the command.
pub(super) fn measure(plan: Plan) -> Result<Vec<Row>, Failure> {
    let command = read_command();
    decode::request(&command, &[])
        .map_err(|error| Failure::new(format!("a header for a READ (16): {error:?}")))?;
    let sequence = Sequence { stat_sn: StatSn(7), exp_cmd_sn: CmdSn(8), max_cmd_sn: CmdSn(135) };
    let data = DataIn {
        initiator_task_tag: TAG,
        data_sn: DataSn(0),
        buffer_offset: 0,
        data_bytes: DATA_BYTES as u32,
        is_final: true,
        status: Some((Status::Good, Residual::NONE)),
    };
    let response = ScsiResponse {
        initiator_task_tag: TAG,
        status: Status::Good,
        residual: Residual::NONE,
        exp_data_sn: DataSn(1),
        data_bytes: 0,
    };
    let mut random = Random::new(1);
    let mut bytes = vec![0; DATA_BYTES];
    bytes.chunks_exact_mut(8).for_each(|word| word.copy_from_slice(&random.draw().to_le_bytes()));
    Ok(vec![
        row(
            plan,
            "decode a SCSI Command",
            None,
            "48 bytes with a READ (16), checked as far as a header can be",
            &mut each(|| decode::request(black_box(&command), &[])),
        )?,
        row(
            plan,
            "encode a Data-In",
            None,
            "48 bytes, the last of its command, with its status",
            &mut each(|| data_in(black_box(&data), black_box(sequence))),
        )?,
        row(
            plan,
            "encode a SCSI Response",
            None,
            "48 bytes, GOOD, no residual",
            &mut each(|| scsi_response(black_box(&response), black_box(sequence))),
        )?,
        row(
            plan,
            "header digest",
            Some(BHS_BYTES),
            "CRC-32C of 48 bytes, begun and ended",
            &mut each(|| digest(black_box(&command))),
        )?,
        row(
            plan,
            "data digest of 4 KiB",
            Some(DATA_BYTES),
            "CRC-32C of data in the cache, begun and ended",
            &mut each(|| digest(black_box(&bytes))),
        )?,
    ])
}

fn row(plan: Plan, what: &str, bytes: Option<usize>, because: &str, work: Work<'_>) -> Result<Row, Failure> {
    Ok(Row {
        case: "codec",
        what: what.into(),
        rounds_ns: plan.measure(Clock::Cpu, work)?,
        unit: Unit::Ns,
        per: bytes.map_or(Per::Operation, |bytes| Per::Bytes(bytes as u64)),
        because: because.into(),
    })
}

/// As a connection makes one, for a header and for data.
fn digest(bytes: &[u8]) -> WireDigest {
    let mut crc = Crc::new();
    crc.update(bytes);
    crc.finish()
}

/// A simple READ (16) of eight blocks of 512 bytes. RFC 7143 §11.3, SBC-3 §5.11.
fn read_command() -> Bhs {
    let mut bhs = [0; BHS_BYTES];
    bhs[0] = 0x01; // SCSI Command
    bhs[1] = 0x80 | 0x40 | 0x01; // F, R, simple
    bhs[16..20].copy_from_slice(&TAG.0.to_be_bytes());
    bhs[20..24].copy_from_slice(&(DATA_BYTES as u32).to_be_bytes());
    bhs[24..28].copy_from_slice(&8u32.to_be_bytes()); // CmdSN
    bhs[28..32].copy_from_slice(&7u32.to_be_bytes()); // ExpStatSN
    bhs[32] = 0x88; // READ (16)
    bhs[34..42].copy_from_slice(&0x0123_4560u64.to_be_bytes());
    bhs[42..46].copy_from_slice(&8u32.to_be_bytes());
    bhs
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: what is decoded is the read that it is said to be. Method: field by field.
    #[test]
    fn the_command_is_a_read() {
        let decoded = decode::request(&read_command(), &[]).unwrap();
        let decode::Request::ScsiCommand(command) = decoded else { panic!("not a command") };
        assert!(command.read && !command.write && command.is_final && !command.immediate);
        assert_eq!((command.initiator_task_tag, command.cmd_sn), (TAG, CmdSn(8)));
        assert_eq!((command.expected_data_transfer_bytes, command.data_bytes), (4096, 0));
        assert_eq!((command.cdb[0], command.cdb[13]), (0x88, 8));
    }

    /// Goal: the digest is iSCSI's. Method: the example of RFC 7143 appendix A.4 with zeroes.
    #[test]
    fn the_digest_is_iscsis() {
        assert_eq!(digest(&[0; 32]), [0xaa, 0x36, 0x91, 0x8a]);
    }
}
