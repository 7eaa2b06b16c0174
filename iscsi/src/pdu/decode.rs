//! Headers from an initiator become [`Request`]s, checked as far as a header alone can be.
//!
//! What depends on the session (windows, negotiated lengths, tags that must exist) is the connection's to judge.
//! Reserved bits are not looked at (RFC 7143 §11.1). The receive path calls [`request`] once a header with its
//! additional segments is complete and its digest, if any, was right; a [`ProtocolError`] says which reason its
//! Reject deserves, and [`numbering`] what a rejected request still does to the command window.

use vaai::command::TaskAttribute;
use zerocopy::transmute_ref;

use super::bhs::{
    self, AHS_BIDIRECTIONAL_READ_LENGTH, AHS_EXTENDED_CDB, COMMAND_ATTRIBUTE_MASK, COMMAND_READ,
    COMMAND_WRITE, DataOutBhs, FINAL, LOGIN_CONTINUE, LOGIN_TRANSIT, LoginRequestBhs, LogoutRequestBhs,
    NopOutBhs, OPCODE_MASK, ScsiCommandBhs, TEXT_CONTINUE, TaskManagementRequestBhs, TextRequestBhs,
};
use super::{Bhs, Opcode, TaskTag, ahs_bytes, data_bytes};
use crate::serial::{CmdSn, DataSn, StatSn};

/// A PDU from an initiator, its data segment left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// A ping, or the answer to ours.
    NopOut(NopOut),
    /// A command.
    ScsiCommand(ScsiCommand),
    /// A task management function.
    TaskManagement(TaskManagementRequest),
    /// A step of a login.
    Login(LoginRequest),
    /// A text negotiation in full feature phase, SendTargets above all.
    Text(TextRequest),
    /// Write data.
    DataOut(DataOut),
    /// The end of a session or connection.
    Logout(LogoutRequest),
}

/// NOP-Out (RFC 7143 §11.18).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NopOut {
    /// Reserved: no answer is wanted.
    pub initiator_task_tag: TaskTag,
    /// Not reserved: the answer to the NOP-In that carried it.
    pub target_transfer_tag: TaskTag,
    /// As the NOP-In had it.
    pub lun: [u8; 8],
    /// Outside the command window.
    pub immediate: bool,
    /// Place in the command window.
    pub cmd_sn: CmdSn,
    /// What the initiator has seen.
    pub exp_stat_sn: StatSn,
    /// Ping data that follow.
    pub data_bytes: u32,
}

/// SCSI Command (RFC 7143 §11.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScsiCommand {
    /// Its name until the response.
    pub initiator_task_tag: TaskTag,
    /// The eight bytes of SAM-5 §4.7.
    pub lun: [u8; 8],
    /// The CDB's first 16 bytes. When [`ScsiCommand::long_cdb`], they are not all of it.
    pub cdb: [u8; 16],
    /// The CDB has more than 16 bytes: no command that we know; answer INVALID COMMAND OPERATION CODE.
    pub long_cdb: bool,
    /// How it may be ordered.
    pub attribute: TaskAttribute,
    /// R: the initiator expects data.
    pub read: bool,
    /// W: the initiator has data.
    pub write: bool,
    /// F: no unsolicited Data-Out follows.
    pub is_final: bool,
    /// Outside the command window.
    pub immediate: bool,
    /// What the initiator has, or (only R) has room for, in bytes; 0 without R and W.
    pub expected_data_transfer_bytes: u32,
    /// With R and W: what the initiator has room for, in bytes (an additional header; 0 without it).
    pub bidirectional_read_bytes: u32,
    /// Place in the command window.
    pub cmd_sn: CmdSn,
    /// What the initiator has seen.
    pub exp_stat_sn: StatSn,
    /// Immediate data that follow. Never more than expected, none without W.
    pub data_bytes: u32,
}

/// Task management functions (RFC 7143 §11.5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskManagementFunction {
    /// One task.
    AbortTask,
    /// This nexus's tasks on a logical unit.
    AbortTaskSet,
    /// Ends an auto contingent allegiance.
    ClearAca,
    /// Everybody's tasks on a logical unit.
    ClearTaskSet,
    /// LOGICAL UNIT RESET.
    LogicalUnitReset,
    /// Resets all logical units.
    TargetWarmReset,
    /// The same, and all sessions end.
    TargetColdReset,
    /// Moves a task to this connection; only above ErrorRecoveryLevel 1.
    TaskReassign,
    /// Another; answered "function not supported".
    Unknown(u8),
}

/// Task Management Function Request (RFC 7143 §11.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskManagementRequest {
    /// What to do.
    pub function: TaskManagementFunction,
    /// For functions on one logical unit.
    pub lun: [u8; 8],
    /// Its name until the response.
    pub initiator_task_tag: TaskTag,
    /// The task that is to be aborted.
    pub referenced_task_tag: TaskTag,
    /// That task's CmdSN.
    pub ref_cmd_sn: CmdSn,
    /// Outside the command window.
    pub immediate: bool,
    /// Place in the command window.
    pub cmd_sn: CmdSn,
    /// What the initiator has seen.
    pub exp_stat_sn: StatSn,
}

/// A stage of the login phase (RFC 7143 §11.12.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// SecurityNegotiation, 0.
    Security,
    /// LoginOperationalNegotiation, 1.
    Operational,
    /// No stage, 2.
    Reserved,
    /// FullFeaturePhase, 3.
    FullFeature,
}

impl Stage {
    /// From the low two bits.
    pub fn from_bits(bits: u8) -> Stage {
        match bits & 3 {
            0 => Stage::Security,
            1 => Stage::Operational,
            2 => Stage::Reserved,
            _ => Stage::FullFeature,
        }
    }

    /// The two bits.
    pub fn to_bits(self) -> u8 {
        match self {
            Stage::Security => 0,
            Stage::Operational => 1,
            Stage::Reserved => 2,
            Stage::FullFeature => 3,
        }
    }
}

/// Login Request (RFC 7143 §11.12). Its fields are judged by `login`, which answers in a Login Response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoginRequest {
    /// T: the initiator is ready for the next stage.
    pub transit: bool,
    /// C: the text goes on in the next request.
    pub text_continues: bool,
    /// CSG.
    pub current_stage: Stage,
    /// NSG, of meaning only with T.
    pub next_stage: Stage,
    /// The highest version that the initiator speaks.
    pub version_max: u8,
    /// The lowest.
    pub version_min: u8,
    /// The initiator's part of the session's name.
    pub isid: [u8; 6],
    /// The target's part; 0 for a new session.
    pub tsih: u16,
    /// The connection within the session.
    pub cid: u16,
    /// The same in all requests of a login.
    pub initiator_task_tag: TaskTag,
    /// Where the session's commands begin. Login requests are always immediate.
    pub cmd_sn: CmdSn,
    /// In the first request of a connection: where our StatSN is to begin.
    pub exp_stat_sn: StatSn,
    /// Text that follows.
    pub data_bytes: u32,
}

/// Text Request (RFC 7143 §11.10).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TextRequest {
    /// F: the initiator has said all it has to say.
    pub is_final: bool,
    /// C: the text goes on in the next request.
    pub text_continues: bool,
    /// To be copied into the response.
    pub lun: [u8; 8],
    /// The same in all requests of an exchange.
    pub initiator_task_tag: TaskTag,
    /// Reserved in the first request, then the one of our last response.
    pub target_transfer_tag: TaskTag,
    /// Outside the command window.
    pub immediate: bool,
    /// Place in the command window.
    pub cmd_sn: CmdSn,
    /// What the initiator has seen.
    pub exp_stat_sn: StatSn,
    /// Text that follows.
    pub data_bytes: u32,
}

/// SCSI Data-Out (RFC 7143 §11.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataOut {
    /// F: the last of its sequence.
    pub is_final: bool,
    /// The R2T's; of meaning only with a target transfer tag.
    pub lun: [u8; 8],
    /// The command's.
    pub initiator_task_tag: TaskTag,
    /// The R2T's, or reserved: unsolicited data.
    pub target_transfer_tag: TaskTag,
    /// What the initiator has seen.
    pub exp_stat_sn: StatSn,
    /// Counts from 0 in each sequence.
    pub data_sn: DataSn,
    /// Where the data belong in the command's data-out buffer, in bytes.
    pub buffer_offset: u32,
    /// Data that follow.
    pub data_bytes: u32,
}

/// Why an initiator logs out (RFC 7143 §11.14.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogoutReason {
    /// The session ends.
    CloseSession,
    /// One connection ends.
    CloseConnection,
    /// One connection is to be recovered; only above ErrorRecoveryLevel 1.
    RemoveForRecovery,
}

/// Logout Request (RFC 7143 §11.14).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogoutRequest {
    /// What ends.
    pub reason: LogoutReason,
    /// Its name until the response.
    pub initiator_task_tag: TaskTag,
    /// Which connection; of no meaning when the session ends.
    pub cid: u16,
    /// Outside the command window.
    pub immediate: bool,
    /// Place in the command window.
    pub cmd_sn: CmdSn,
    /// What the initiator has seen.
    pub exp_stat_sn: StatSn,
}

/// Why a PDU is rejected (RFC 7143 §11.17.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum RejectReason {
    /// The data digest was wrong; may be sent again.
    DataDigestError = 0x02,
    /// Nothing is kept to be sent again.
    SnackReject = 0x03,
    /// For instance a SNACK for what was acknowledged.
    ProtocolError = 0x04,
    /// An opcode that we do not support.
    CommandNotSupported = 0x05,
    /// Too many immediate commands.
    ImmediateCommandReject = 0x06,
    /// The task is still alive.
    TaskInProgress = 0x07,
    /// A data acknowledgement that fits nothing.
    InvalidDataAck = 0x08,
    /// A field is wrong.
    InvalidPduField = 0x09,
    /// Out of target transfer tags; try later.
    LongOperationReject = 0x0a,
    /// Only a logout may follow.
    WaitingForLogout = 0x0c,
}

/// A header that can't be a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProtocolError {
    /// No opcode of RFC 7143, or a vendor's.
    UnknownOpcode(u8),
    /// An opcode that only targets send.
    TargetOpcode(Opcode),
    /// SNACK at ErrorRecoveryLevel 0.
    Snack,
    /// F=0 where it is always 1.
    NotFinal(Opcode),
    /// A SCSI command that announces unsolicited data without W.
    NotFinalWithoutWrite,
    /// An attribute above ACA.
    Attribute(u8),
    /// The reserved initiator task tag where an answer is due.
    ReservedTaskTag(Opcode),
    /// A NOP-Out without initiator task tag that is not immediate.
    NopOutNotImmediate,
    /// Immediate data without W, or more than expected in all.
    ImmediateData,
    /// A data segment on a PDU that has none.
    DataSegment(Opcode),
    /// Additional headers on a PDU that has none.
    AhsNotAllowed(Opcode),
    /// Additional headers that do not fit each other or their total.
    AhsMalformed,
    /// An additional header of a reserved type, or a second one of its type.
    AhsType(u8),
    /// A logout reason that is reserved.
    LogoutReason(u8),
    /// F and C together.
    FinalContinues,
}

impl ProtocolError {
    /// What the Reject says.
    pub fn reason(self) -> RejectReason {
        match self {
            ProtocolError::UnknownOpcode(_) => RejectReason::CommandNotSupported,
            ProtocolError::Snack => RejectReason::SnackReject,
            ProtocolError::TargetOpcode(_)
            | ProtocolError::NotFinal(_)
            | ProtocolError::NopOutNotImmediate
            | ProtocolError::FinalContinues => RejectReason::ProtocolError,
            ProtocolError::NotFinalWithoutWrite
            | ProtocolError::Attribute(_)
            | ProtocolError::ReservedTaskTag(_)
            | ProtocolError::ImmediateData
            | ProtocolError::DataSegment(_)
            | ProtocolError::AhsNotAllowed(_)
            | ProtocolError::AhsMalformed
            | ProtocolError::AhsType(_)
            | ProtocolError::LogoutReason(_) => RejectReason::InvalidPduField,
        }
    }
}

/// The CmdSN of a header that has one, and whether it is immediate. A request that is rejected has still used up
/// its number (RFC 7143 §11.17: ExpCmdSN moves on), so that the next ones are not held to be ahead of it.
pub fn numbering(bhs: &Bhs) -> Option<(CmdSn, bool)> {
    let header: &NopOutBhs = transmute_ref!(bhs);
    match Opcode::of(bhs)? {
        Opcode::NopOut
        | Opcode::ScsiCommand
        | Opcode::TaskManagementRequest
        | Opcode::TextRequest
        | Opcode::LogoutRequest => Some((header.cmd_sn.into(), is_immediate(bhs))),
        // Immediate by nature, with the bit set by every initiator (RFC 7143 §11.12).
        Opcode::LoginRequest => Some((header.cmd_sn.into(), true)),
        _ => None,
    }
}

/// The initiator task tag of any header (RFC 7143 §11.2.1.8).
pub fn initiator_task_tag(bhs: &Bhs) -> TaskTag {
    let header: &NopOutBhs = transmute_ref!(bhs);
    tag(header.initiator_task_tag)
}

/// The target transfer tag of a header that has one there: Data-Out, NOP-Out, Text.
pub fn target_transfer_tag(bhs: &Bhs) -> TaskTag {
    let header: &NopOutBhs = transmute_ref!(bhs);
    tag(header.target_transfer_tag)
}

/// What a header asks for. `ahs` is what lies between it and its digest, [`ahs_bytes`] long.
///
/// # Errors
/// [`ProtocolError`]: to be rejected with its reason; the data segment still has to be taken off the stream.
///
/// # Panics
/// When `ahs` is not as long as the header says.
pub fn request(bhs: &Bhs, ahs: &[u8]) -> Result<Request, ProtocolError> {
    assert_eq!(ahs.len(), ahs_bytes(bhs), "the receive path takes what the header announces");
    let opcode = Opcode::of(bhs).ok_or(ProtocolError::UnknownOpcode(bhs[0] & OPCODE_MASK))?;
    if opcode == Opcode::ScsiCommand {
        return scsi_command(bhs, ahs).map(Request::ScsiCommand);
    }
    if !ahs.is_empty() {
        return Err(ProtocolError::AhsNotAllowed(opcode));
    }
    match opcode {
        Opcode::DataOut => Ok(Request::DataOut(data_out(bhs))),
        Opcode::NopOut => nop_out(bhs).map(Request::NopOut),
        Opcode::TaskManagementRequest => task_management(bhs).map(Request::TaskManagement),
        Opcode::LoginRequest => Ok(Request::Login(login(bhs))),
        Opcode::TextRequest => text(bhs).map(Request::Text),
        Opcode::LogoutRequest => logout(bhs).map(Request::Logout),
        Opcode::SnackRequest => Err(ProtocolError::Snack),
        Opcode::ScsiCommand => unreachable!("taken above"),
        Opcode::NopIn
        | Opcode::ScsiResponse
        | Opcode::TaskManagementResponse
        | Opcode::LoginResponse
        | Opcode::TextResponse
        | Opcode::DataIn
        | Opcode::LogoutResponse
        | Opcode::R2t
        | Opcode::AsyncMessage
        | Opcode::Reject => Err(ProtocolError::TargetOpcode(opcode)),
    }
}

fn scsi_command(bhs: &Bhs, ahs: &[u8]) -> Result<ScsiCommand, ProtocolError> {
    let header: &ScsiCommandBhs = transmute_ref!(bhs);
    let read = header.flags & COMMAND_READ != 0;
    let write = header.flags & COMMAND_WRITE != 0;
    let is_final = header.flags & FINAL != 0;
    if !is_final && !write {
        return Err(ProtocolError::NotFinalWithoutWrite);
    }
    let attribute = match header.flags & COMMAND_ATTRIBUTE_MASK {
        0 => TaskAttribute::Untagged,
        1 => TaskAttribute::Simple,
        2 => TaskAttribute::Ordered,
        3 => TaskAttribute::HeadOfQueue,
        4 => TaskAttribute::Aca,
        reserved => return Err(ProtocolError::Attribute(reserved)),
    };
    let initiator_task_tag = named(header.initiator_task_tag, Opcode::ScsiCommand)?;
    // A length without a direction has no meaning; ESXi sets flags on commands that move nothing.
    let expected = if read || write { header.expected_data_transfer_length.get() } else { 0 };
    let data_bytes = data_bytes(bhs) as u32;
    if data_bytes > if write { expected } else { 0 } {
        return Err(ProtocolError::ImmediateData);
    }
    let additional = Additional::parse(ahs)?;
    Ok(ScsiCommand {
        initiator_task_tag,
        lun: header.lun,
        cdb: header.cdb,
        long_cdb: additional.extended_cdb,
        attribute,
        read,
        write,
        is_final,
        immediate: is_immediate(bhs),
        expected_data_transfer_bytes: expected,
        bidirectional_read_bytes: additional.bidirectional_read_bytes.unwrap_or(0),
        cmd_sn: header.cmd_sn.into(),
        exp_stat_sn: header.exp_stat_sn.into(),
        data_bytes,
    })
}

/// What a SCSI command's additional headers say (RFC 7143 §11.2.2).
#[derive(Debug, Default, PartialEq, Eq)]
struct Additional {
    extended_cdb: bool,
    bidirectional_read_bytes: Option<u32>,
}

impl Additional {
    /// Each is a length (of all that follows the type byte, unpadded), a type, a byte that is reserved in the
    /// types we know, and the rest, padded to a word.
    fn parse(mut ahs: &[u8]) -> Result<Additional, ProtocolError> {
        let mut additional = Additional::default();
        // Ends: every turn takes a word or more of at most AHS_BYTES_MAX.
        while let Some((&[high, low, kind, _], _)) = ahs.split_first_chunk::<4>() {
            let specific = usize::from(u16::from_be_bytes([high, low]));
            let whole = (3 + specific).next_multiple_of(4);
            if specific == 0 || whole > ahs.len() {
                return Err(ProtocolError::AhsMalformed);
            }
            match kind {
                // Not used for CDBs that fit the basic header, so there is at least one byte of it.
                AHS_EXTENDED_CDB if specific < 2 => return Err(ProtocolError::AhsMalformed),
                AHS_EXTENDED_CDB if !additional.extended_cdb => additional.extended_cdb = true,
                AHS_BIDIRECTIONAL_READ_LENGTH if additional.bidirectional_read_bytes.is_none() => {
                    let &[_, _, _, _, a, b, c, d] = &ahs[..whole] else {
                        return Err(ProtocolError::AhsMalformed);
                    };
                    if specific != 5 {
                        return Err(ProtocolError::AhsMalformed);
                    }
                    additional.bidirectional_read_bytes = Some(u32::from_be_bytes([a, b, c, d]));
                }
                other => return Err(ProtocolError::AhsType(other)),
            }
            ahs = &ahs[whole..];
        }
        Ok(additional)
    }
}

fn data_out(bhs: &Bhs) -> DataOut {
    let header: &DataOutBhs = transmute_ref!(bhs);
    DataOut {
        is_final: header.flags & FINAL != 0,
        lun: header.lun,
        initiator_task_tag: tag(header.initiator_task_tag),
        target_transfer_tag: tag(header.target_transfer_tag),
        exp_stat_sn: header.exp_stat_sn.into(),
        data_sn: header.data_sn.into(),
        buffer_offset: header.buffer_offset.get(),
        data_bytes: data_bytes(bhs) as u32,
    }
}

fn nop_out(bhs: &Bhs) -> Result<NopOut, ProtocolError> {
    let header: &NopOutBhs = transmute_ref!(bhs);
    let initiator_task_tag = tag(header.initiator_task_tag);
    let immediate = is_immediate(bhs);
    if header.flags & FINAL == 0 {
        return Err(ProtocolError::NotFinal(Opcode::NopOut));
    }
    // RFC 7143 §11.18.1: without a tag it is not answered, so it must not take a number either.
    if initiator_task_tag.is_reserved() && !immediate {
        return Err(ProtocolError::NopOutNotImmediate);
    }
    Ok(NopOut {
        initiator_task_tag,
        target_transfer_tag: tag(header.target_transfer_tag),
        lun: header.lun,
        immediate,
        cmd_sn: header.cmd_sn.into(),
        exp_stat_sn: header.exp_stat_sn.into(),
        data_bytes: data_bytes(bhs) as u32,
    })
}

fn task_management(bhs: &Bhs) -> Result<TaskManagementRequest, ProtocolError> {
    let header: &TaskManagementRequestBhs = transmute_ref!(bhs);
    bare(bhs, header.function, Opcode::TaskManagementRequest)?;
    Ok(TaskManagementRequest {
        function: match header.function & !FINAL {
            1 => TaskManagementFunction::AbortTask,
            2 => TaskManagementFunction::AbortTaskSet,
            3 => TaskManagementFunction::ClearAca,
            4 => TaskManagementFunction::ClearTaskSet,
            5 => TaskManagementFunction::LogicalUnitReset,
            6 => TaskManagementFunction::TargetWarmReset,
            7 => TaskManagementFunction::TargetColdReset,
            8 => TaskManagementFunction::TaskReassign,
            unknown => TaskManagementFunction::Unknown(unknown),
        },
        lun: header.lun,
        initiator_task_tag: named(header.initiator_task_tag, Opcode::TaskManagementRequest)?,
        referenced_task_tag: tag(header.referenced_task_tag),
        ref_cmd_sn: header.ref_cmd_sn.into(),
        immediate: is_immediate(bhs),
        cmd_sn: header.cmd_sn.into(),
        exp_stat_sn: header.exp_stat_sn.into(),
    })
}

fn login(bhs: &Bhs) -> LoginRequest {
    let header: &LoginRequestBhs = transmute_ref!(bhs);
    LoginRequest {
        transit: header.flags & LOGIN_TRANSIT != 0,
        text_continues: header.flags & LOGIN_CONTINUE != 0,
        current_stage: Stage::from_bits(header.flags >> 2),
        next_stage: Stage::from_bits(header.flags),
        version_max: header.version_max,
        version_min: header.version_min,
        isid: header.isid,
        tsih: header.tsih.get(),
        cid: header.cid.get(),
        initiator_task_tag: tag(header.initiator_task_tag),
        cmd_sn: header.cmd_sn.into(),
        exp_stat_sn: header.exp_stat_sn.into(),
        data_bytes: data_bytes(bhs) as u32,
    }
}

fn text(bhs: &Bhs) -> Result<TextRequest, ProtocolError> {
    let header: &TextRequestBhs = transmute_ref!(bhs);
    let is_final = header.flags & FINAL != 0;
    let text_continues = header.flags & TEXT_CONTINUE != 0;
    if is_final && text_continues {
        return Err(ProtocolError::FinalContinues);
    }
    Ok(TextRequest {
        is_final,
        text_continues,
        lun: header.lun,
        initiator_task_tag: named(header.initiator_task_tag, Opcode::TextRequest)?,
        target_transfer_tag: tag(header.target_transfer_tag),
        immediate: is_immediate(bhs),
        cmd_sn: header.cmd_sn.into(),
        exp_stat_sn: header.exp_stat_sn.into(),
        data_bytes: data_bytes(bhs) as u32,
    })
}

fn logout(bhs: &Bhs) -> Result<LogoutRequest, ProtocolError> {
    let header: &LogoutRequestBhs = transmute_ref!(bhs);
    bare(bhs, header.reason, Opcode::LogoutRequest)?;
    Ok(LogoutRequest {
        reason: match header.reason & !FINAL {
            0 => LogoutReason::CloseSession,
            1 => LogoutReason::CloseConnection,
            2 => LogoutReason::RemoveForRecovery,
            reserved => return Err(ProtocolError::LogoutReason(reserved)),
        },
        initiator_task_tag: named(header.initiator_task_tag, Opcode::LogoutRequest)?,
        cid: header.cid.get(),
        immediate: is_immediate(bhs),
        cmd_sn: header.cmd_sn.into(),
        exp_stat_sn: header.exp_stat_sn.into(),
    })
}

/// A PDU that is always final and has no data.
fn bare(bhs: &Bhs, flags: u8, opcode: Opcode) -> Result<(), ProtocolError> {
    if flags & FINAL == 0 {
        return Err(ProtocolError::NotFinal(opcode));
    }
    if data_bytes(bhs) != 0 {
        return Err(ProtocolError::DataSegment(opcode));
    }
    Ok(())
}

/// A tag by which the answer is to be known.
fn named(wire: zerocopy::byteorder::big_endian::U32, opcode: Opcode) -> Result<TaskTag, ProtocolError> {
    let tag = tag(wire);
    if tag.is_reserved() { Err(ProtocolError::ReservedTaskTag(opcode)) } else { Ok(tag) }
}

fn tag(wire: zerocopy::byteorder::big_endian::U32) -> TaskTag {
    TaskTag(wire.get())
}

fn is_immediate(bhs: &Bhs) -> bool {
    bhs[0] & bhs::IMMEDIATE != 0
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// A final READ(10) of 512 bytes, simple, tag 7, CmdSN 9.
    fn read_10() -> Bhs {
        let mut bhs = [0; 48];
        bhs[0] = 0x01;
        bhs[1] = 0x80 | 0x40 | 0x01;
        bhs[9] = 3;
        bhs[19] = 7;
        bhs[22..24].copy_from_slice(&[2, 0]);
        bhs[27] = 9;
        bhs[31] = 4;
        bhs[32] = 0x28;
        bhs[40] = 1;
        bhs
    }

    fn command(bhs: &Bhs, ahs: &[u8]) -> Result<ScsiCommand, ProtocolError> {
        match request(bhs, ahs)? {
            Request::ScsiCommand(command) => Ok(command),
            other => panic!("{other:?}"),
        }
    }

    /// Goal: each field from its place. Method: a command written by offsets.
    #[test]
    fn reads_a_command() {
        let command = command(&read_10(), &[]).unwrap();
        assert_eq!(command.lun, [0, 3, 0, 0, 0, 0, 0, 0]);
        assert_eq!(command.initiator_task_tag, TaskTag(7));
        assert_eq!((command.cmd_sn, command.exp_stat_sn), (CmdSn(9), StatSn(4)));
        assert_eq!(
            (command.read, command.write, command.is_final, command.immediate),
            (true, false, true, false)
        );
        assert_eq!((command.expected_data_transfer_bytes, command.data_bytes), (512, 0));
        assert_eq!(command.attribute, TaskAttribute::Simple);
        assert_eq!(command.cdb[..9], [0x28, 0, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!(numbering(&read_10()), Some((CmdSn(9), false)));
        assert_eq!(initiator_task_tag(&read_10()), TaskTag(7));
    }

    /// Goal: each thing that a command's header can have wrong is told. Method: one byte changed at a time.
    #[test]
    fn refuses_wrong_commands() {
        let cases: [(&[(usize, u8)], ProtocolError); 6] = [
            (&[(1, 0x41)], ProtocolError::NotFinalWithoutWrite),
            (&[(1, 0xc5)], ProtocolError::Attribute(5)),
            (
                &[(16, 0xff), (17, 0xff), (18, 0xff), (19, 0xff)],
                ProtocolError::ReservedTaskTag(Opcode::ScsiCommand),
            ),
            (&[(7, 1)], ProtocolError::ImmediateData),
            (&[(1, 0xa1), (6, 2), (7, 1)], ProtocolError::ImmediateData),
            (&[(1, 0x81), (7, 1)], ProtocolError::ImmediateData),
        ];
        for (changes, error) in cases {
            let mut bhs = read_10();
            for &(at, byte) in changes {
                bhs[at] = byte;
            }
            assert_eq!(request(&bhs, &[]), Err(error));
            assert_eq!(error.reason(), RejectReason::InvalidPduField);
        }
        let mut bhs = read_10();
        bhs[1] = 0x81;
        assert_eq!(command(&bhs, &[]).unwrap().expected_data_transfer_bytes, 0);
    }

    /// Goal: additional headers are recognised, and no arrangement of them is mistaken. Method: examples by hand.
    #[test]
    fn additional_headers() {
        let parse = |ahs: &[u8]| {
            let mut bhs = read_10();
            bhs[4] = (ahs.len() / 4) as u8;
            command(&bhs, ahs).map(|command| (command.long_cdb, command.bidirectional_read_bytes))
        };
        let long_cdb = [0, 17, 1, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16];
        let bidirectional = [0, 5, 2, 0, 0, 1, 0, 2];
        assert_eq!(parse(&[]), Ok((false, 0)));
        assert_eq!(parse(&long_cdb), Ok((true, 0)));
        assert_eq!(parse(&bidirectional), Ok((false, 0x0001_0002)));
        assert_eq!(parse(&[&bidirectional[..], &long_cdb].concat()), Ok((true, 0x0001_0002)));
        assert_eq!(parse(&[&long_cdb[..], &bidirectional].concat()), Ok((true, 0x0001_0002)));
        assert_eq!(parse(&[0, 2, 1, 0, 9, 0, 0, 0]), Ok((true, 0)));
        for (wrong, error) in [
            (&[0, 0, 1, 0][..], ProtocolError::AhsMalformed),
            (&[0, 1, 1, 0], ProtocolError::AhsMalformed),
            (&[0, 2, 1, 0], ProtocolError::AhsMalformed),
            (&[0, 9, 1, 0, 0, 0, 0, 0], ProtocolError::AhsMalformed),
            (&[0xff, 0xff, 1, 0, 0, 0, 0, 0], ProtocolError::AhsMalformed),
            (&[0, 4, 2, 0, 0, 0, 0, 0], ProtocolError::AhsMalformed),
            (&[0, 1, 2, 0], ProtocolError::AhsMalformed),
            (&[0, 1, 3, 0], ProtocolError::AhsType(3)),
            (&[0, 5, 2, 0, 0, 0, 0, 0, 0, 5, 2, 0, 0, 0, 0, 0], ProtocolError::AhsType(2)),
        ] {
            assert_eq!(parse(wrong), Err(error), "{wrong:?}");
        }
        let mut nop = [0; 48];
        nop[1] = 0x80;
        nop[4] = 1;
        assert_eq!(request(&nop, &[0; 4]), Err(ProtocolError::AhsNotAllowed(Opcode::NopOut)));
    }

    /// Goal: the other requests' fields and refusals. Method: headers with one byte set each.
    #[test]
    fn other_requests() {
        let header = |bytes: &[(usize, u8)]| {
            let mut bhs = [0; 48];
            for &(at, byte) in bytes {
                bhs[at] = byte;
            }
            request(&bhs, &[])
        };
        let none = [(16, 0xff), (17, 0xff), (18, 0xff), (19, 0xff)];
        assert_eq!(header(&[(0, 0x00)]), Err(ProtocolError::NotFinal(Opcode::NopOut)));
        assert_eq!(
            header(&[&[(0, 0x00), (1, 0x80)], &none[..]].concat()),
            Err(ProtocolError::NopOutNotImmediate)
        );
        assert!(matches!(
            header(&[&[(0, 0x40), (1, 0x80)], &none[..]].concat()),
            Ok(Request::NopOut(NopOut { immediate: true, .. }))
        ));
        let function = |number: u8| header(&[(0, 0x42), (1, 0x80 | number)]);
        assert!(matches!(
            function(1),
            Ok(Request::TaskManagement(TaskManagementRequest {
                function: TaskManagementFunction::AbortTask,
                ..
            }))
        ));
        assert!(matches!(
            function(9),
            Ok(Request::TaskManagement(TaskManagementRequest {
                function: TaskManagementFunction::Unknown(9),
                ..
            }))
        ));
        assert_eq!(header(&[(0, 0x42), (1, 1)]), Err(ProtocolError::NotFinal(Opcode::TaskManagementRequest)));
        assert_eq!(
            header(&[(0, 0x42), (1, 0x81), (7, 4)]),
            Err(ProtocolError::DataSegment(Opcode::TaskManagementRequest))
        );
        assert!(matches!(
            header(&[(0, 0x43), (1, 0x87), (2, 1), (8, 0x80), (15, 5), (21, 6)]),
            Ok(Request::Login(LoginRequest {
                transit: true,
                text_continues: false,
                current_stage: Stage::Operational,
                next_stage: Stage::FullFeature,
                version_max: 1,
                isid: [0x80, 0, 0, 0, 0, 0],
                tsih: 5,
                cid: 6,
                ..
            }))
        ));
        assert_eq!(header(&[(0, 0x04), (1, 0xc0)]), Err(ProtocolError::FinalContinues));
        assert!(matches!(
            header(&[(0, 0x05), (1, 0x80), (7, 12), (23, 8), (39, 2), (43, 64)]),
            Ok(Request::DataOut(DataOut {
                is_final: true,
                target_transfer_tag: TaskTag(8),
                data_sn: DataSn(2),
                buffer_offset: 64,
                data_bytes: 12,
                ..
            }))
        ));
        assert!(matches!(
            header(&[(0, 0x06), (1, 0x81), (21, 1)]),
            Ok(Request::Logout(LogoutRequest { reason: LogoutReason::CloseConnection, cid: 1, .. }))
        ));
        assert_eq!(header(&[(0, 0x06), (1, 0x83)]), Err(ProtocolError::LogoutReason(3)));
        assert_eq!(header(&[(0, 0x10), (1, 0x80)]), Err(ProtocolError::Snack));
        assert_eq!(header(&[(0, 0x3f)]), Err(ProtocolError::TargetOpcode(Opcode::Reject)));
        assert_eq!(header(&[(0, 0x1c)]), Err(ProtocolError::UnknownOpcode(0x1c)));
        assert_eq!(ProtocolError::UnknownOpcode(0x1c).reason() as u8, 5);
    }

    proptest! {
        /// Goal: no bytes panic, and what is accepted keeps its promises. Method: any header and additional
        /// headers, half of them SCSI commands.
        #[test]
        fn any_bytes_are_judged(
            mut bhs in proptest::array::uniform32(any::<u8>()),
            tail in proptest::array::uniform16(any::<u8>()),
            command: bool,
            mut ahs in vec(prop_oneof![0u8..6, any::<u8>()], 0..64),
        ) {
            if command {
                bhs[0] = 0x01;
            }
            ahs.truncate(ahs.len() / 4 * 4);
            bhs[4] = (ahs.len() / 4) as u8;
            let mut header = [0; 48];
            header[..32].copy_from_slice(&bhs);
            header[32..].copy_from_slice(&tail);
            match request(&header, &ahs) {
                Ok(Request::ScsiCommand(command)) => {
                    prop_assert!(command.data_bytes <= command.expected_data_transfer_bytes);
                    prop_assert!(command.write || command.data_bytes == 0);
                    prop_assert!(command.write || command.is_final);
                    prop_assert_eq!(numbering(&header), Some((command.cmd_sn, command.immediate)));
                }
                Ok(Request::DataOut(_)) => prop_assert_eq!(numbering(&header), None),
                Ok(_) => prop_assert!(ahs.is_empty()),
                Err(error) => prop_assert!(error.reason() as u8 >= 2),
            }
        }
    }
}
