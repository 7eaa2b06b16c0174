//! Basic header segments, figure by figure (RFC 7143 §11). No logic: `decode` and `encode` give these meaning.
//!
//! Integers are big-endian. Every figure begins with the opcode, then flags; byte 4 counts the additional
//! headers in words, bytes 5 to 7 the data segment in bytes.
#![allow(missing_docs, reason = "the fields carry the standard's names, and each struct its section")]

use zerocopy::byteorder::big_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::BHS_BYTES;

/// The opcode's bits of the first byte (§11.2.1.2).
pub const OPCODE_MASK: u8 = 0x3f;
/// I, of the first byte: deliver at once, outside the command window (§11.2.1.1).
pub const IMMEDIATE: u8 = 0x40;

/// F: the last, or only, PDU of a sequence (§11.2.1.3).
pub const FINAL: u8 = 0x80;
/// C of text PDUs: the text goes on in the next one (§11.10.2).
pub const TEXT_CONTINUE: u8 = 0x40;

/// R of a SCSI command: the initiator expects data (§11.3.1).
pub const COMMAND_READ: u8 = 0x40;
/// W of a SCSI command: the initiator has data (§11.3.1).
pub const COMMAND_WRITE: u8 = 0x20;
/// ATTR of a SCSI command: untagged 0, simple 1, ordered 2, head of queue 3, ACA 4 (§11.3.1).
pub const COMMAND_ATTRIBUTE_MASK: u8 = 0x07;

/// o of a SCSI response: bidirectional read residual overflow (§11.4.1).
pub const RESPONSE_BIDI_OVERFLOW: u8 = 0x10;
/// u of a SCSI response: bidirectional read residual underflow (§11.4.1).
pub const RESPONSE_BIDI_UNDERFLOW: u8 = 0x08;
/// O of a SCSI response or Data-In: the residual is what found no room (§11.4.1).
pub const RESIDUAL_OVERFLOW: u8 = 0x04;
/// U of a SCSI response or Data-In: the residual is what was not moved (§11.4.1).
pub const RESIDUAL_UNDERFLOW: u8 = 0x02;
/// S of a Data-In: it carries the command's status (§11.7.3).
pub const DATA_IN_STATUS: u8 = 0x01;
/// A of a Data-In: acknowledge the data; only above ErrorRecoveryLevel 0 (§11.7.2).
pub const DATA_IN_ACKNOWLEDGE: u8 = 0x40;

/// SCSI response: the command completed at the target; its status counts (§11.4.3).
pub const RESPONSE_COMPLETED: u8 = 0x00;
/// SCSI response: the target failed; there is no status (§11.4.3).
pub const RESPONSE_TARGET_FAILURE: u8 = 0x01;

/// T of login PDUs: ready to leave the stage (§11.12.1).
pub const LOGIN_TRANSIT: u8 = 0x80;
/// C of login PDUs: the text goes on in the next one (§11.12.2).
pub const LOGIN_CONTINUE: u8 = 0x40;

/// AHS type: the CDB's bytes past the 16th (§11.2.2.3).
pub const AHS_EXTENDED_CDB: u8 = 0x01;
/// AHS type: expected bidirectional read data length (§11.2.2.4).
pub const AHS_BIDIRECTIONAL_READ_LENGTH: u8 = 0x02;

/// Task management response codes (§11.6.1).
pub mod tmf_response {
    /// Done.
    pub const FUNCTION_COMPLETE: u8 = 0;
    /// No such task.
    pub const TASK_DOES_NOT_EXIST: u8 = 1;
    /// No such logical unit.
    pub const LUN_DOES_NOT_EXIST: u8 = 2;
    /// The task is still allegiant to another connection.
    pub const TASK_STILL_ALLEGIANT: u8 = 3;
    /// No reassignment here (ErrorRecoveryLevel below 2).
    pub const TASK_ALLEGIANCE_REASSIGNMENT_NOT_SUPPORTED: u8 = 4;
    /// Not a function that we know.
    pub const FUNCTION_NOT_SUPPORTED: u8 = 5;
    /// Not for this initiator.
    pub const FUNCTION_AUTHORIZATION_FAILED: u8 = 6;
    /// Refused.
    pub const FUNCTION_REJECTED: u8 = 255;
}

/// Logout response codes (§11.14.1).
pub mod logout_response {
    /// The session or connection is closed.
    pub const CLOSED: u8 = 0;
    /// No such connection.
    pub const CID_NOT_FOUND: u8 = 1;
    /// No connection recovery here (ErrorRecoveryLevel below 2).
    pub const RECOVERY_NOT_SUPPORTED: u8 = 2;
    /// Cleanup failed.
    pub const CLEANUP_FAILED: u8 = 3;
}

/// Events of an asynchronous message (§11.9.1).
pub mod async_event {
    /// Sense data from a logical unit.
    pub const SCSI: u8 = 0;
    /// Log out within Parameter3 seconds.
    pub const LOGOUT_REQUEST: u8 = 1;
    /// The connection Parameter1 will be, or was, dropped.
    pub const CONNECTION_DROP: u8 = 2;
    /// All connections of the session will be dropped.
    pub const SESSION_DROP: u8 = 3;
    /// Negotiate with a text request within Parameter3 seconds.
    pub const NEGOTIATE: u8 = 4;
}

/// NOP-Out: a ping, or the answer to ours (§11.18).
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct NopOutBhs {
    pub opcode: u8,
    pub flags: u8,
    pub reserved_2: [u8; 2],
    pub total_ahs_length: u8,
    pub data_segment_length: [u8; 3],
    pub lun: [u8; 8],
    pub initiator_task_tag: U32,
    pub target_transfer_tag: U32,
    pub cmd_sn: U32,
    pub exp_stat_sn: U32,
    pub reserved_32: [u8; 16],
}

/// NOP-In: a ping, or the answer to the initiator's (§11.19).
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct NopInBhs {
    pub opcode: u8,
    pub flags: u8,
    pub reserved_2: [u8; 2],
    pub total_ahs_length: u8,
    pub data_segment_length: [u8; 3],
    pub lun: [u8; 8],
    pub initiator_task_tag: U32,
    pub target_transfer_tag: U32,
    pub stat_sn: U32,
    pub exp_cmd_sn: U32,
    pub max_cmd_sn: U32,
    pub reserved_36: [u8; 12],
}

/// SCSI Command (§11.3).
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct ScsiCommandBhs {
    pub opcode: u8,
    pub flags: u8,
    pub reserved_2: [u8; 2],
    pub total_ahs_length: u8,
    pub data_segment_length: [u8; 3],
    pub lun: [u8; 8],
    pub initiator_task_tag: U32,
    pub expected_data_transfer_length: U32,
    pub cmd_sn: U32,
    pub exp_stat_sn: U32,
    pub cdb: [u8; 16],
}

/// SCSI Response (§11.4).
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct ScsiResponseBhs {
    pub opcode: u8,
    pub flags: u8,
    pub response: u8,
    pub status: u8,
    pub total_ahs_length: u8,
    pub data_segment_length: [u8; 3],
    pub reserved_8: [u8; 8],
    pub initiator_task_tag: U32,
    pub snack_tag: U32,
    pub stat_sn: U32,
    pub exp_cmd_sn: U32,
    pub max_cmd_sn: U32,
    pub exp_data_sn: U32,
    pub bidirectional_read_residual_count: U32,
    pub residual_count: U32,
}

/// Task Management Function Request (§11.5).
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct TaskManagementRequestBhs {
    pub opcode: u8,
    pub function: u8,
    pub reserved_2: [u8; 2],
    pub total_ahs_length: u8,
    pub data_segment_length: [u8; 3],
    pub lun: [u8; 8],
    pub initiator_task_tag: U32,
    pub referenced_task_tag: U32,
    pub cmd_sn: U32,
    pub exp_stat_sn: U32,
    pub ref_cmd_sn: U32,
    pub exp_data_sn: U32,
    pub reserved_40: [u8; 8],
}

/// Task Management Function Response (§11.6).
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct TaskManagementResponseBhs {
    pub opcode: u8,
    pub flags: u8,
    pub response: u8,
    pub reserved_3: u8,
    pub total_ahs_length: u8,
    pub data_segment_length: [u8; 3],
    pub reserved_8: [u8; 8],
    pub initiator_task_tag: U32,
    pub reserved_20: [u8; 4],
    pub stat_sn: U32,
    pub exp_cmd_sn: U32,
    pub max_cmd_sn: U32,
    pub reserved_36: [u8; 12],
}

/// SCSI Data-Out (§11.7).
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct DataOutBhs {
    pub opcode: u8,
    pub flags: u8,
    pub reserved_2: [u8; 2],
    pub total_ahs_length: u8,
    pub data_segment_length: [u8; 3],
    pub lun: [u8; 8],
    pub initiator_task_tag: U32,
    pub target_transfer_tag: U32,
    pub reserved_24: [u8; 4],
    pub exp_stat_sn: U32,
    pub reserved_32: [u8; 4],
    pub data_sn: U32,
    pub buffer_offset: U32,
    pub reserved_44: [u8; 4],
}

/// SCSI Data-In (§11.7). `stat_sn`, `status` and the residual count only with S=1.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct DataInBhs {
    pub opcode: u8,
    pub flags: u8,
    pub reserved_2: u8,
    pub status: u8,
    pub total_ahs_length: u8,
    pub data_segment_length: [u8; 3],
    pub lun: [u8; 8],
    pub initiator_task_tag: U32,
    pub target_transfer_tag: U32,
    pub stat_sn: U32,
    pub exp_cmd_sn: U32,
    pub max_cmd_sn: U32,
    pub data_sn: U32,
    pub buffer_offset: U32,
    pub residual_count: U32,
}

/// Ready To Transfer (§11.8). `stat_sn` is the next one; it is not used up.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct R2tBhs {
    pub opcode: u8,
    pub flags: u8,
    pub reserved_2: [u8; 2],
    pub total_ahs_length: u8,
    pub data_segment_length: [u8; 3],
    pub lun: [u8; 8],
    pub initiator_task_tag: U32,
    pub target_transfer_tag: U32,
    pub stat_sn: U32,
    pub exp_cmd_sn: U32,
    pub max_cmd_sn: U32,
    pub r2t_sn: U32,
    pub buffer_offset: U32,
    pub desired_data_transfer_length: U32,
}

/// Asynchronous Message (§11.9).
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct AsyncMessageBhs {
    pub opcode: u8,
    pub flags: u8,
    pub reserved_2: [u8; 2],
    pub total_ahs_length: u8,
    pub data_segment_length: [u8; 3],
    pub lun: [u8; 8],
    pub initiator_task_tag: U32,
    pub reserved_20: [u8; 4],
    pub stat_sn: U32,
    pub exp_cmd_sn: U32,
    pub max_cmd_sn: U32,
    pub async_event: u8,
    pub async_vcode: u8,
    pub parameter_1: U16,
    pub parameter_2: U16,
    pub parameter_3: U16,
    pub reserved_44: [u8; 4],
}

/// Text Request (§11.10).
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct TextRequestBhs {
    pub opcode: u8,
    pub flags: u8,
    pub reserved_2: [u8; 2],
    pub total_ahs_length: u8,
    pub data_segment_length: [u8; 3],
    pub lun: [u8; 8],
    pub initiator_task_tag: U32,
    pub target_transfer_tag: U32,
    pub cmd_sn: U32,
    pub exp_stat_sn: U32,
    pub reserved_32: [u8; 16],
}

/// Text Response (§11.11).
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct TextResponseBhs {
    pub opcode: u8,
    pub flags: u8,
    pub reserved_2: [u8; 2],
    pub total_ahs_length: u8,
    pub data_segment_length: [u8; 3],
    pub lun: [u8; 8],
    pub initiator_task_tag: U32,
    pub target_transfer_tag: U32,
    pub stat_sn: U32,
    pub exp_cmd_sn: U32,
    pub max_cmd_sn: U32,
    pub reserved_36: [u8; 12],
}

/// Login Request (§11.12). `flags`: T, C, two reserved bits, CSG, NSG.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct LoginRequestBhs {
    pub opcode: u8,
    pub flags: u8,
    pub version_max: u8,
    pub version_min: u8,
    pub total_ahs_length: u8,
    pub data_segment_length: [u8; 3],
    pub isid: [u8; 6],
    pub tsih: U16,
    pub initiator_task_tag: U32,
    pub cid: U16,
    pub reserved_22: [u8; 2],
    pub cmd_sn: U32,
    pub exp_stat_sn: U32,
    pub reserved_32: [u8; 16],
}

/// Login Response (§11.13). The status fields are a class and a detail.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct LoginResponseBhs {
    pub opcode: u8,
    pub flags: u8,
    pub version_max: u8,
    pub version_active: u8,
    pub total_ahs_length: u8,
    pub data_segment_length: [u8; 3],
    pub isid: [u8; 6],
    pub tsih: U16,
    pub initiator_task_tag: U32,
    pub reserved_20: [u8; 4],
    pub stat_sn: U32,
    pub exp_cmd_sn: U32,
    pub max_cmd_sn: U32,
    pub status: U16,
    pub reserved_38: [u8; 10],
}

/// Logout Request (§11.14).
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct LogoutRequestBhs {
    pub opcode: u8,
    pub reason: u8,
    pub reserved_2: [u8; 2],
    pub total_ahs_length: u8,
    pub data_segment_length: [u8; 3],
    pub reserved_8: [u8; 8],
    pub initiator_task_tag: U32,
    pub cid: U16,
    pub reserved_22: [u8; 2],
    pub cmd_sn: U32,
    pub exp_stat_sn: U32,
    pub reserved_32: [u8; 16],
}

/// Logout Response (§11.15). Times in seconds.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct LogoutResponseBhs {
    pub opcode: u8,
    pub flags: u8,
    pub response: u8,
    pub reserved_3: u8,
    pub total_ahs_length: u8,
    pub data_segment_length: [u8; 3],
    pub reserved_8: [u8; 8],
    pub initiator_task_tag: U32,
    pub reserved_20: [u8; 4],
    pub stat_sn: U32,
    pub exp_cmd_sn: U32,
    pub max_cmd_sn: U32,
    pub reserved_36: [u8; 4],
    pub time2wait: U16,
    pub time2retain: U16,
    pub reserved_44: [u8; 4],
}

/// SNACK Request (§11.16).
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct SnackRequestBhs {
    pub opcode: u8,
    pub snack_type: u8,
    pub reserved_2: [u8; 2],
    pub total_ahs_length: u8,
    pub data_segment_length: [u8; 3],
    pub lun: [u8; 8],
    pub initiator_task_tag: U32,
    pub target_transfer_or_snack_tag: U32,
    pub reserved_24: [u8; 4],
    pub exp_stat_sn: U32,
    pub reserved_32: [u8; 8],
    pub beg_run: U32,
    pub run_length: U32,
}

/// Reject (§11.17). Its data segment is the header that was rejected.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct RejectBhs {
    pub opcode: u8,
    pub flags: u8,
    pub reason: u8,
    pub reserved_3: u8,
    pub total_ahs_length: u8,
    pub data_segment_length: [u8; 3],
    pub reserved_8: [u8; 8],
    pub initiator_task_tag: U32,
    pub reserved_20: [u8; 4],
    pub stat_sn: U32,
    pub exp_cmd_sn: U32,
    pub max_cmd_sn: U32,
    pub data_sn_or_r2t_sn: U32,
    pub reserved_40: [u8; 8],
}

const _: () = {
    assert!(size_of::<NopOutBhs>() == BHS_BYTES);
    assert!(size_of::<NopInBhs>() == BHS_BYTES);
    assert!(size_of::<ScsiCommandBhs>() == BHS_BYTES);
    assert!(size_of::<ScsiResponseBhs>() == BHS_BYTES);
    assert!(size_of::<TaskManagementRequestBhs>() == BHS_BYTES);
    assert!(size_of::<TaskManagementResponseBhs>() == BHS_BYTES);
    assert!(size_of::<DataOutBhs>() == BHS_BYTES);
    assert!(size_of::<DataInBhs>() == BHS_BYTES);
    assert!(size_of::<R2tBhs>() == BHS_BYTES);
    assert!(size_of::<AsyncMessageBhs>() == BHS_BYTES);
    assert!(size_of::<TextRequestBhs>() == BHS_BYTES);
    assert!(size_of::<TextResponseBhs>() == BHS_BYTES);
    assert!(size_of::<LoginRequestBhs>() == BHS_BYTES);
    assert!(size_of::<LoginResponseBhs>() == BHS_BYTES);
    assert!(size_of::<LogoutRequestBhs>() == BHS_BYTES);
    assert!(size_of::<LogoutResponseBhs>() == BHS_BYTES);
    assert!(size_of::<SnackRequestBhs>() == BHS_BYTES);
    assert!(size_of::<RejectBhs>() == BHS_BYTES);
};
