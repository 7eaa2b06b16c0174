//! A target's PDUs become headers. Data segments, padding and digests are the sender's to put behind them.
//!
//! Each builder fills a figure of `bhs` and returns its 48 bytes. Those on the IO path (Data-In, SCSI Response,
//! R2T) choose no branch but by value: what is absent is zero.

use vaai::sense::Status;
use zerocopy::byteorder::big_endian::{U16, U32};
use zerocopy::transmute;

use super::bhs::{
    AsyncMessageBhs, DATA_IN_STATUS, DataInBhs, FINAL, LOGIN_CONTINUE, LOGIN_TRANSIT, LoginResponseBhs,
    LogoutResponseBhs, NopInBhs, R2tBhs, RESIDUAL_OVERFLOW, RESIDUAL_UNDERFLOW, RESPONSE_COMPLETED,
    RESPONSE_TARGET_FAILURE, RejectBhs, ScsiResponseBhs, TEXT_CONTINUE, TaskManagementResponseBhs,
    TextResponseBhs, async_event,
};
use super::decode::{NopOut, RejectReason, Stage};
use super::{BHS_BYTES, Bhs, Opcode, TaskTag};
use crate::serial::{CmdSn, DataSn, StatSn};

/// What every response says of the connection and its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sequence {
    /// This response's StatSN, or the next one in PDUs that do not use one up.
    pub stat_sn: StatSn,
    /// The next command that we expect.
    pub exp_cmd_sn: CmdSn,
    /// The last command that may be sent now.
    pub max_cmd_sn: CmdSn,
}

/// How far the transfer missed what the initiator expected (RFC 7143 §11.4.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Residual {
    flags: u8,
    count: u32,
}

impl Residual {
    /// As expected.
    pub const NONE: Residual = Residual { flags: 0, count: 0 };

    /// The difference between what the initiator `expected` and what the command `moves` by its CDB, in bytes:
    /// underflow if it moves less, overflow if it would move more. A count that 32 bits can't hold is the largest.
    pub fn of(expected: u32, moves: u64) -> Residual {
        let expected = u64::from(expected);
        let flags = (u8::from(moves < expected) * RESIDUAL_UNDERFLOW)
            | (u8::from(moves > expected) * RESIDUAL_OVERFLOW);
        Residual { flags, count: expected.abs_diff(moves).min(u64::from(u32::MAX)) as u32 }
    }

    /// Bytes missed, either way.
    pub fn count(self) -> u32 {
        self.count
    }

    /// Whether there was more than the initiator expected.
    pub fn is_overflow(self) -> bool {
        self.flags & RESIDUAL_OVERFLOW != 0
    }

    /// Whether there was less than the initiator expected.
    pub fn is_underflow(self) -> bool {
        self.flags & RESIDUAL_UNDERFLOW != 0
    }
}

/// A piece of a command's data-in (RFC 7143 §11.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataIn {
    /// The command's.
    pub initiator_task_tag: TaskTag,
    /// Counts the command's Data-In and R2T PDUs from 0.
    pub data_sn: DataSn,
    /// Where the data belong in the initiator's buffer, in bytes.
    pub buffer_offset: u32,
    /// Data that follow, at most the initiator's MaxRecvDataSegmentLength.
    pub data_bytes: u32,
    /// The last of its sequence (at most MaxBurstLength) or of all.
    pub is_final: bool,
    /// The command ends with this PDU, which is then final and uses up its StatSN: only for statuses without
    /// sense data (RFC 7143 §11.7.3).
    pub status: Option<(Status, Residual)>,
}

/// The header of a Data-In. `sequence.stat_sn` is of meaning only with a status.
pub fn data_in(data: &DataIn, sequence: Sequence) -> Bhs {
    let (ends, status, residual) = match data.status {
        Some((status, residual)) => (1, status as u8, residual),
        None => (0, 0, Residual::NONE),
    };
    transmute!(DataInBhs {
        opcode: Opcode::DataIn as u8,
        flags: (u8::from(data.is_final) * FINAL) | (ends * (FINAL | DATA_IN_STATUS)) | residual.flags,
        status,
        data_segment_length: length(data.data_bytes),
        // LUN: only with a target transfer tag, which only ErrorRecoveryLevel 1 has use for (§11.7.4).
        initiator_task_tag: wire(data.initiator_task_tag),
        target_transfer_tag: wire(TaskTag::RESERVED),
        stat_sn: U32::new(sequence.stat_sn.0 * u32::from(ends)),
        exp_cmd_sn: sequence.exp_cmd_sn.into(),
        max_cmd_sn: sequence.max_cmd_sn.into(),
        data_sn: data.data_sn.into(),
        buffer_offset: U32::new(data.buffer_offset),
        residual_count: U32::new(residual.count),
        ..DataInBhs::default()
    })
}

/// The end of a command (RFC 7143 §11.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScsiResponse {
    /// The command's.
    pub initiator_task_tag: TaskTag,
    /// SAM-5 status.
    pub status: Status,
    /// What the transfer missed.
    pub residual: Residual,
    /// How many Data-In and R2T PDUs the command had.
    pub exp_data_sn: DataSn,
    /// Of the data segment: 0, or what [`sense_segment`] wrote.
    pub data_bytes: u32,
}

/// The header of a response to a command that completed.
pub fn scsi_response(response: &ScsiResponse, sequence: Sequence) -> Bhs {
    transmute!(ScsiResponseBhs {
        opcode: Opcode::ScsiResponse as u8,
        flags: FINAL | response.residual.flags,
        response: RESPONSE_COMPLETED,
        status: response.status as u8,
        data_segment_length: length(response.data_bytes),
        initiator_task_tag: wire(response.initiator_task_tag),
        stat_sn: sequence.stat_sn.into(),
        exp_cmd_sn: sequence.exp_cmd_sn.into(),
        max_cmd_sn: sequence.max_cmd_sn.into(),
        exp_data_sn: response.exp_data_sn.into(),
        residual_count: U32::new(response.residual.count),
        ..ScsiResponseBhs::default()
    })
}

/// The header of a response that says the target failed: no status, no residual (RFC 7143 §11.4.3).
pub fn target_failure(initiator_task_tag: TaskTag, exp_data_sn: DataSn, sequence: Sequence) -> Bhs {
    transmute!(ScsiResponseBhs {
        opcode: Opcode::ScsiResponse as u8,
        flags: FINAL,
        response: RESPONSE_TARGET_FAILURE,
        initiator_task_tag: wire(initiator_task_tag),
        stat_sn: sequence.stat_sn.into(),
        exp_cmd_sn: sequence.exp_cmd_sn.into(),
        max_cmd_sn: sequence.max_cmd_sn.into(),
        exp_data_sn: exp_data_sn.into(),
        ..ScsiResponseBhs::default()
    })
}

/// The longest sense data (SPC-4 §4.5.1).
pub const SENSE_BYTES_MAX: usize = 252;

/// The longest data segment that sense data make.
pub const SENSE_SEGMENT_BYTES_MAX: usize = 2 + SENSE_BYTES_MAX;

/// Writes the data segment of a response with sense data, SenseLength before them (RFC 7143 §11.4.7), and says
/// how long it is, padding not counted.
///
/// # Panics
/// When `sense` is longer than [`SENSE_BYTES_MAX`] or `out` too short.
pub fn sense_segment(sense: &[u8], out: &mut [u8]) -> usize {
    assert!(sense.len() <= SENSE_BYTES_MAX);
    let bytes = 2 + sense.len();
    out[..2].copy_from_slice(&(sense.len() as u16).to_be_bytes());
    out[2..bytes].copy_from_slice(sense);
    bytes
}

/// We are ready for some of a command's data-out (RFC 7143 §11.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct R2t {
    /// The command's.
    pub lun: [u8; 8],
    /// The command's.
    pub initiator_task_tag: TaskTag,
    /// By which the data will be known; not reserved.
    pub target_transfer_tag: TaskTag,
    /// Counts the command's Data-In and R2T PDUs from 0.
    pub r2t_sn: DataSn,
    /// From where in the initiator's buffer, in bytes.
    pub buffer_offset: u32,
    /// How much, at least 1, at most MaxBurstLength.
    pub desired_bytes: u32,
}

/// The header of an R2T. `sequence.stat_sn` is the next one; it is not used up.
pub fn r2t(r2t: &R2t, sequence: Sequence) -> Bhs {
    transmute!(R2tBhs {
        opcode: Opcode::R2t as u8,
        flags: FINAL,
        lun: r2t.lun,
        initiator_task_tag: wire(r2t.initiator_task_tag),
        target_transfer_tag: wire(r2t.target_transfer_tag),
        stat_sn: sequence.stat_sn.into(),
        exp_cmd_sn: sequence.exp_cmd_sn.into(),
        max_cmd_sn: sequence.max_cmd_sn.into(),
        r2t_sn: r2t.r2t_sn.into(),
        buffer_offset: U32::new(r2t.buffer_offset),
        desired_data_transfer_length: U32::new(r2t.desired_bytes),
        ..R2tBhs::default()
    })
}

/// The header of a task management response (RFC 7143 §11.6); `response` is of `bhs::tmf_response`.
pub fn task_management_response(initiator_task_tag: TaskTag, response: u8, sequence: Sequence) -> Bhs {
    transmute!(TaskManagementResponseBhs {
        opcode: Opcode::TaskManagementResponse as u8,
        flags: FINAL,
        response,
        initiator_task_tag: wire(initiator_task_tag),
        stat_sn: sequence.stat_sn.into(),
        exp_cmd_sn: sequence.exp_cmd_sn.into(),
        max_cmd_sn: sequence.max_cmd_sn.into(),
        ..TaskManagementResponseBhs::default()
    })
}

/// The header of a Reject, whose data segment is `BHS_BYTES` of the header that was rejected (RFC 7143 §11.17).
pub fn reject(reason: RejectReason, sequence: Sequence) -> Bhs {
    transmute!(RejectBhs {
        opcode: Opcode::Reject as u8,
        flags: FINAL,
        reason: reason as u8,
        data_segment_length: length(BHS_BYTES as u32),
        initiator_task_tag: wire(TaskTag::RESERVED),
        stat_sn: sequence.stat_sn.into(),
        exp_cmd_sn: sequence.exp_cmd_sn.into(),
        max_cmd_sn: sequence.max_cmd_sn.into(),
        ..RejectBhs::default()
    })
}

/// The header of a NOP-In that answers a ping with the first `data_bytes` of its data: all of them that fit the
/// initiator's MaxRecvDataSegmentLength (RFC 7143 §11.19). Uses up its StatSN.
pub fn nop_in_reply(ping: &NopOut, data_bytes: u32, sequence: Sequence) -> Bhs {
    transmute!(NopInBhs {
        opcode: Opcode::NopIn as u8,
        flags: FINAL,
        data_segment_length: length(data_bytes),
        lun: ping.lun,
        initiator_task_tag: wire(ping.initiator_task_tag),
        target_transfer_tag: wire(TaskTag::RESERVED),
        stat_sn: sequence.stat_sn.into(),
        exp_cmd_sn: sequence.exp_cmd_sn.into(),
        max_cmd_sn: sequence.max_cmd_sn.into(),
        ..NopInBhs::default()
    })
}

/// The header of a NOP-In of our own: a ping that is to be answered with `target_transfer_tag`, or, when that is
/// reserved, only news of the command window. `sequence.stat_sn` is the next one; it is not used up (§11.19.2).
pub fn nop_in_ping(target_transfer_tag: TaskTag, sequence: Sequence) -> Bhs {
    transmute!(NopInBhs {
        opcode: Opcode::NopIn as u8,
        flags: FINAL,
        initiator_task_tag: wire(TaskTag::RESERVED),
        target_transfer_tag: wire(target_transfer_tag),
        stat_sn: sequence.stat_sn.into(),
        exp_cmd_sn: sequence.exp_cmd_sn.into(),
        max_cmd_sn: sequence.max_cmd_sn.into(),
        ..NopInBhs::default()
    })
}

/// A piece of an answer in text (RFC 7143 §11.11).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TextResponse {
    /// F: we have said all we have to say, and so had the initiator.
    pub is_final: bool,
    /// C: the text goes on in the next response.
    pub text_continues: bool,
    /// The request's.
    pub lun: [u8; 8],
    /// The request's.
    pub initiator_task_tag: TaskTag,
    /// For the next request of the exchange; reserved when final.
    pub target_transfer_tag: TaskTag,
    /// Text that follows.
    pub data_bytes: u32,
}

/// The header of a text response.
pub fn text_response(text: &TextResponse, sequence: Sequence) -> Bhs {
    transmute!(TextResponseBhs {
        opcode: Opcode::TextResponse as u8,
        flags: (u8::from(text.is_final) * FINAL) | (u8::from(text.text_continues) * TEXT_CONTINUE),
        data_segment_length: length(text.data_bytes),
        lun: text.lun,
        initiator_task_tag: wire(text.initiator_task_tag),
        target_transfer_tag: wire(text.target_transfer_tag),
        stat_sn: sequence.stat_sn.into(),
        exp_cmd_sn: sequence.exp_cmd_sn.into(),
        max_cmd_sn: sequence.max_cmd_sn.into(),
        ..TextResponseBhs::default()
    })
}

/// A step of a login, from our side (RFC 7143 §11.13).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoginResponse {
    /// T: the login leaves its stage.
    pub transit: bool,
    /// C: the text goes on in the next response.
    pub text_continues: bool,
    /// CSG.
    pub current_stage: Stage,
    /// NSG; written only with T.
    pub next_stage: Stage,
    /// The request's.
    pub isid: [u8; 6],
    /// Of the session: the request's, until the login ends with ours.
    pub tsih: u16,
    /// The request's.
    pub initiator_task_tag: TaskTag,
    /// Class and detail; 0 while all is well.
    pub status: u16,
    /// Text that follows.
    pub data_bytes: u32,
}

/// The version of the protocol that we speak, and the only one there is (RFC 7143 §11.12.4).
pub const VERSION: u8 = 0;

/// The header of a login response. After a status other than 0, its StatSN and the rest have no meaning.
pub fn login_response(login: &LoginResponse, sequence: Sequence) -> Bhs {
    let transit = u8::from(login.transit);
    transmute!(LoginResponseBhs {
        opcode: Opcode::LoginResponse as u8,
        flags: (transit * (LOGIN_TRANSIT | login.next_stage.to_bits()))
            | (u8::from(login.text_continues) * LOGIN_CONTINUE)
            | login.current_stage.to_bits() << 2,
        version_max: VERSION,
        version_active: VERSION,
        data_segment_length: length(login.data_bytes),
        isid: login.isid,
        tsih: U16::new(login.tsih),
        initiator_task_tag: wire(login.initiator_task_tag),
        stat_sn: sequence.stat_sn.into(),
        exp_cmd_sn: sequence.exp_cmd_sn.into(),
        max_cmd_sn: sequence.max_cmd_sn.into(),
        status: U16::new(login.status),
        ..LoginResponseBhs::default()
    })
}

/// The header of a logout response (RFC 7143 §11.15); `response` is of `bhs::logout_response`, times in seconds.
pub fn logout_response(
    initiator_task_tag: TaskTag,
    response: u8,
    time2wait: u16,
    time2retain: u16,
    sequence: Sequence,
) -> Bhs {
    transmute!(LogoutResponseBhs {
        opcode: Opcode::LogoutResponse as u8,
        flags: FINAL,
        response,
        initiator_task_tag: wire(initiator_task_tag),
        stat_sn: sequence.stat_sn.into(),
        exp_cmd_sn: sequence.exp_cmd_sn.into(),
        max_cmd_sn: sequence.max_cmd_sn.into(),
        time2wait: U16::new(time2wait),
        time2retain: U16::new(time2retain),
        ..LogoutResponseBhs::default()
    })
}

/// What we tell an initiator unasked (RFC 7143 §11.9). Sense data of a logical unit, the other event there is, are
/// reported as unit attentions instead. Times in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AsyncEvent {
    /// Log out; after the time, the connection is dropped.
    LogoutRequest {
        /// How long we wait.
        within: u16,
    },
    /// A connection is dropped.
    ConnectionDrop {
        /// Which.
        cid: u16,
        /// Not before.
        time2wait: u16,
        /// Not after.
        time2retain: u16,
    },
    /// All connections of the session are dropped.
    SessionDrop {
        /// Not before.
        time2wait: u16,
        /// Not after.
        time2retain: u16,
    },
}

/// The header of an asynchronous message. Uses up its StatSN.
pub fn async_message(event: AsyncEvent, sequence: Sequence) -> Bhs {
    let (async_event, parameters) = match event {
        AsyncEvent::LogoutRequest { within } => (async_event::LOGOUT_REQUEST, [0, 0, within]),
        AsyncEvent::ConnectionDrop { cid, time2wait, time2retain } => {
            (async_event::CONNECTION_DROP, [cid, time2wait, time2retain])
        }
        AsyncEvent::SessionDrop { time2wait, time2retain } => {
            (async_event::SESSION_DROP, [0, time2wait, time2retain])
        }
    };
    transmute!(AsyncMessageBhs {
        opcode: Opcode::AsyncMessage as u8,
        flags: FINAL,
        initiator_task_tag: wire(TaskTag::RESERVED),
        stat_sn: sequence.stat_sn.into(),
        exp_cmd_sn: sequence.exp_cmd_sn.into(),
        max_cmd_sn: sequence.max_cmd_sn.into(),
        async_event,
        parameter_1: U16::new(parameters[0]),
        parameter_2: U16::new(parameters[1]),
        parameter_3: U16::new(parameters[2]),
        ..AsyncMessageBhs::default()
    })
}

/// DataSegmentLength. Our segments are far below the 2^24 that it can say.
fn length(data_bytes: u32) -> [u8; 3] {
    debug_assert!(data_bytes < 1 << 24);
    let [_, high, middle, low] = data_bytes.to_be_bytes();
    [high, middle, low]
}

fn wire(tag: TaskTag) -> U32 {
    U32::new(tag.0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{bhs, data_bytes, decode};
    use super::*;

    fn word(bhs: &Bhs, at: usize) -> u32 {
        u32::from_be_bytes(bhs[at..at + 4].try_into().unwrap())
    }

    const SEQUENCE: Sequence = Sequence {
        stat_sn: StatSn(0x0102_0304),
        exp_cmd_sn: CmdSn(0x1112_1314),
        max_cmd_sn: CmdSn(0x2122_2324),
    };

    fn is_numbered(bhs: &Bhs) {
        assert_eq!((word(bhs, 24), word(bhs, 28), word(bhs, 32)), (0x0102_0304, 0x1112_1314, 0x2122_2324));
    }

    proptest! {
        /// Goal: a Data-In's fields at their offsets. Method: any values, against the figure's offsets.
        #[test]
        fn data_in_by_offsets(tag: u32, data_sn: u32, offset: u32, bytes in 0u32..1 << 24, last: bool, ends: bool, moves in 0u64..1 << 33) {
            let residual = Residual::of(4096, moves);
            let data = DataIn {
                initiator_task_tag: TaskTag(tag),
                data_sn: DataSn(data_sn),
                buffer_offset: offset,
                data_bytes: bytes,
                is_final: last,
                status: ends.then_some((Status::Busy, residual)),
            };
            let bhs = data_in(&data, SEQUENCE);
            let over = if moves > 4096 { 4 } else { 0 };
            let under = if moves < 4096 { 2 } else { 0 };
            let flags = if ends { 0x81 | over | under } else if last { 0x80 } else { 0 };
            prop_assert_eq!((bhs[0], bhs[1], bhs[2], bhs[3], bhs[4]), (0x25, flags, 0, if ends { 8 } else { 0 }, 0));
            prop_assert_eq!(data_bytes(&bhs), bytes as usize);
            prop_assert_eq!((word(&bhs, 16), word(&bhs, 20)), (tag, u32::MAX));
            prop_assert_eq!(word(&bhs, 24), if ends { SEQUENCE.stat_sn.0 } else { 0 });
            prop_assert_eq!((word(&bhs, 28), word(&bhs, 32)), (SEQUENCE.exp_cmd_sn.0, SEQUENCE.max_cmd_sn.0));
            prop_assert_eq!((word(&bhs, 36), word(&bhs, 40)), (data_sn, offset));
            let missed = 4096u64.abs_diff(moves).min(u64::from(u32::MAX)) as u32;
            prop_assert_eq!(word(&bhs, 44), if ends { missed } else { 0 });
        }

        /// Goal: a response's and an R2T's fields at their offsets. Method: as above.
        #[test]
        fn response_and_r2t_by_offsets(tag: u32, number: u32, expected: u32, moves: u64, offset: u32, desired: u32, lun: [u8; 8]) {
            let residual = Residual::of(expected, moves);
            prop_assert!(!(residual.is_overflow() && residual.is_underflow()));
            prop_assert_eq!(residual == Residual::NONE, u64::from(expected) == moves);
            let bhs = scsi_response(&ScsiResponse {
                initiator_task_tag: TaskTag(tag),
                status: Status::CheckCondition,
                residual,
                exp_data_sn: DataSn(number),
                data_bytes: 20,
            }, SEQUENCE);
            let flags = 0x80 | u8::from(residual.is_overflow()) << 2 | u8::from(residual.is_underflow()) << 1;
            prop_assert_eq!(&bhs[..8], &[0x21, flags, 0, 2, 0, 0, 0, 20]);
            prop_assert_eq!((word(&bhs, 16), word(&bhs, 36), word(&bhs, 44)), (tag, number, residual.count()));
            is_numbered(&bhs);
            let bhs = r2t(&R2t {
                lun,
                initiator_task_tag: TaskTag(tag),
                target_transfer_tag: TaskTag(!tag),
                r2t_sn: DataSn(number),
                buffer_offset: offset,
                desired_bytes: desired,
            }, SEQUENCE);
            prop_assert_eq!(&bhs[..8], &[0x31, 0x80, 0, 0, 0, 0, 0, 0]);
            prop_assert_eq!(&bhs[8..16], &lun);
            prop_assert_eq!((word(&bhs, 16), word(&bhs, 20)), (tag, !tag));
            prop_assert_eq!((word(&bhs, 36), word(&bhs, 40), word(&bhs, 44)), (number, offset, desired));
            is_numbered(&bhs);
        }

        /// Goal: what a target says, an initiator's decoder refuses. Method: the same header, turned round.
        #[test]
        fn our_opcodes_are_not_requests(tag: u32) {
            let bhs = task_management_response(TaskTag(tag), 0, SEQUENCE);
            prop_assert_eq!(
                decode::request(&bhs, &[]),
                Err(decode::ProtocolError::TargetOpcode(Opcode::TaskManagementResponse))
            );
        }
    }

    /// Goal: the rarer PDUs at their offsets. Method: one of each, byte by byte where it matters.
    #[test]
    fn the_others_by_offsets() {
        let tag = TaskTag(0x0a0b_0c0d);
        let bhs = task_management_response(tag, bhs::tmf_response::FUNCTION_REJECTED, SEQUENCE);
        assert_eq!((bhs[0], bhs[1], bhs[2], word(&bhs, 16)), (0x22, 0x80, 255, tag.0));
        is_numbered(&bhs);

        let bhs = reject(RejectReason::InvalidPduField, SEQUENCE);
        assert_eq!((bhs[0], bhs[1], bhs[2], bhs[7], word(&bhs, 16)), (0x3f, 0x80, 9, 48, u32::MAX));
        is_numbered(&bhs);

        let mut ping = [0; 48];
        ping[..2].copy_from_slice(&[0x40, 0x80]);
        ping[8..16].copy_from_slice(&[1, 2, 3, 4, 5, 6, 7, 8]);
        ping[19] = 5;
        let Ok(decode::Request::NopOut(ping)) = decode::request(&ping, &[]) else { panic!() };
        let bhs = nop_in_reply(&ping, 9, SEQUENCE);
        assert_eq!((bhs[0], bhs[1], bhs[7], word(&bhs, 16), word(&bhs, 20)), (0x20, 0x80, 9, 5, u32::MAX));
        assert_eq!(bhs[8..16], [1, 2, 3, 4, 5, 6, 7, 8]);
        is_numbered(&bhs);
        let bhs = nop_in_ping(TaskTag(6), SEQUENCE);
        assert_eq!((bhs[0], bhs[1], bhs[7], word(&bhs, 16), word(&bhs, 20)), (0x20, 0x80, 0, u32::MAX, 6));
        is_numbered(&bhs);

        let text = TextResponse {
            is_final: false,
            text_continues: true,
            lun: [0; 8],
            initiator_task_tag: tag,
            target_transfer_tag: TaskTag(3),
            data_bytes: 0x0001_0203,
        };
        let bhs = text_response(&text, SEQUENCE);
        assert_eq!(bhs[..8], [0x24, 0x40, 0, 0, 0, 1, 2, 3]);
        assert_eq!((word(&bhs, 16), word(&bhs, 20)), (tag.0, 3));
        is_numbered(&bhs);

        let login = LoginResponse {
            transit: true,
            text_continues: false,
            current_stage: Stage::Operational,
            next_stage: Stage::FullFeature,
            isid: [1, 2, 3, 4, 5, 6],
            tsih: 0x0708,
            initiator_task_tag: tag,
            status: 0x0201,
            data_bytes: 4,
        };
        let bhs = login_response(&login, SEQUENCE);
        assert_eq!(bhs[..16], [0x23, 0x87, 0, 0, 0, 0, 0, 4, 1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!((word(&bhs, 16), bhs[36], bhs[37]), (tag.0, 2, 1));
        is_numbered(&bhs);
        let waiting = LoginResponse { transit: false, text_continues: true, ..login };
        assert_eq!(login_response(&waiting, SEQUENCE)[1], 0x44);

        let bhs = logout_response(tag, bhs::logout_response::CID_NOT_FOUND, 2, 20, SEQUENCE);
        assert_eq!((bhs[0], bhs[1], bhs[2], word(&bhs, 16)), (0x26, 0x80, 1, tag.0));
        assert_eq!(bhs[40..44], [0, 2, 0, 20]);
        is_numbered(&bhs);

        let bhs = async_message(AsyncEvent::LogoutRequest { within: 10 }, SEQUENCE);
        assert_eq!((bhs[0], bhs[1], word(&bhs, 16)), (0x32, 0x80, u32::MAX));
        assert_eq!(bhs[36..44], [1, 0, 0, 0, 0, 0, 0, 10]);
        is_numbered(&bhs);
        let bhs =
            async_message(AsyncEvent::ConnectionDrop { cid: 3, time2wait: 4, time2retain: 5 }, SEQUENCE);
        assert_eq!(bhs[36..44], [2, 0, 0, 3, 0, 4, 0, 5]);

        let bhs = target_failure(tag, DataSn(2), SEQUENCE);
        assert_eq!((bhs[0], bhs[1], bhs[2], bhs[3], word(&bhs, 36)), (0x21, 0x80, 1, 0, 2));
        is_numbered(&bhs);
    }

    /// Goal: sense data with their length before them.
    #[test]
    fn sense_has_its_length() {
        let mut out = [0xee; SENSE_SEGMENT_BYTES_MAX];
        assert_eq!(sense_segment(&[0x70, 0, 5], &mut out), 5);
        assert_eq!(out[..6], [0, 3, 0x70, 0, 5, 0xee]);
        assert_eq!(sense_segment(&[1; SENSE_BYTES_MAX], &mut out), SENSE_SEGMENT_BYTES_MAX);
    }
}
