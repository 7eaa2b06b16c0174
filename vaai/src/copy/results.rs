//! What has become of the copies of a nexus, and the commands that ask for it: RECEIVE COPY STATUS, DATA, OPERATING
//! PARAMETERS and FAILED SEGMENT DETAILS (SPC-4 §6.20 to §6.26), COPY OPERATION ABORT (§6.3).
//!
//! A nexus lives on one core, and with it what is said to it of its copies.

use super::list::{BLOCK_TO_BLOCK, BLOCK_TO_BLOCK_OFFSET, IDENTIFICATION};
use crate::cdb::be32;
use crate::limits::{
    COPIES_KEPT_MAX, COPIES_MAX, COPY_CSCDS_MAX, COPY_DESCRIPTOR_BYTES_MAX, COPY_SEGMENT_BYTES_MAX,
    COPY_SEGMENTS_MAX, TOKEN_BYTES_MAX, TOKEN_RANGES_MAX, TOKEN_TIMEOUT_MAX_S, TOKEN_TIMEOUT_S,
};
use crate::lun::LogicalUnit;
use crate::reply::{Out, ParameterData, Reply};
use crate::sense::{Sense, SenseBytes, Status};
use crate::task::{Request, Work};
use crate::token::{self, TOKEN_BYTES};
use bdev::shard::tokens_of;
use std::collections::VecDeque;
use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{Immutable, IntoBytes, Unaligned};

/// Service actions of RECEIVE COPY RESULTS.
pub(crate) const STATUS_LID1: u8 = 0x00;
pub(crate) const DATA_LID1: u8 = 0x01;
pub(crate) const OPERATING_PARAMETERS: u8 = 0x03;
pub(crate) const FAILED_SEGMENT_DETAILS: u8 = 0x04;
pub(crate) const STATUS_LID4: u8 = 0x05;
pub(crate) const DATA_LID4: u8 = 0x06;

/// How a copy stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum CopyState {
    /// Segments are being worked on.
    InProgress,
    /// COPY OPERATION ABORT has come: no further segment begins.
    Stopping,
    /// All was copied.
    Done,
    /// It failed: the status and the sense data that its command had, or would have had.
    Failed(Status, SenseBytes),
    /// It was aborted.
    Aborted,
}

impl CopyState {
    /// It failed with this.
    pub(crate) fn failed(sense: Sense) -> CopyState {
        let is_told = sense.status == Status::CheckCondition;
        CopyState::Failed(sense.status, if is_told { sense.to_bytes(false) } else { SenseBytes::new() })
    }
}

/// What a copy is, besides what has become of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CopyKind {
    /// Service action of the command.
    pub(crate) action: u8,
    /// Of a token based copy: length of blocks.
    pub(crate) block_bytes: u32,
    /// IMMED=1: its command is answered before it is over.
    pub(crate) is_background: bool,
}

/// A copy with a list identifier.
#[derive(Clone, Debug)]
pub(crate) struct CopyRecord {
    pub(crate) id: u32,
    kind: CopyKind,
    /// Of a token based copy: the token that was made.
    token: Option<Box<[u8; TOKEN_BYTES]>>,
    pub(crate) state: CopyState,
    /// Segments that are through.
    pub(crate) segments: u16,
    /// Bytes that were written.
    pub(crate) bytes: u64,
    /// How often it has changed: OPERATION COUNTER of COPY STATUS(LID4).
    changes: u16,
}

/// The copies of a nexus that have a list identifier, in the order of their beginning.
#[derive(Debug, Default)]
pub(crate) struct CopyRecords(VecDeque<CopyRecord>);

impl CopyRecords {
    /// A copy begins.
    ///
    /// # Errors
    /// One of this identifier is under way, or too many are.
    pub(crate) fn begin(&mut self, id: u32, kind: CopyKind) -> Result<(), Sense> {
        if self.0.iter().any(|record| record.id == id && record.is_under_way()) {
            return Err(Sense::OPERATION_IN_PROGRESS);
        }
        self.0.retain(|record| record.id != id);
        let under_way = self.0.iter().filter(|record| record.is_under_way()).count();
        if under_way >= usize::from(COPIES_MAX) {
            return Err(Sense::INSUFFICIENT_RESOURCES);
        }
        if self.0.len() - under_way >= COPIES_KEPT_MAX
            && let Some(oldest) = self.0.iter().position(|record| !record.is_under_way())
        {
            self.0.remove(oldest);
        }
        let state = CopyState::InProgress;
        let (token, segments, bytes, changes) = (None, 0, 0, 0);
        self.0.push_back(CopyRecord { id, kind, token, state, segments, bytes, changes });
        Ok(())
    }

    /// A segment is through. Whether the copy goes on.
    pub(crate) fn advance(&mut self, id: u32, segments: u16, bytes: u64) -> bool {
        let Some(record) = self.under_way(id) else { return true };
        (record.segments, record.bytes) = (segments, bytes);
        record.changes = record.changes.wrapping_add(1);
        record.state == CopyState::InProgress
    }

    /// Whether it may begin another segment.
    pub(crate) fn goes_on(&self, id: u32) -> bool {
        self.0
            .iter()
            .find(|record| record.id == id)
            .is_none_or(|record| record.state == CopyState::InProgress)
    }

    /// A copy is over.
    pub(crate) fn end(&mut self, id: u32, state: CopyState) {
        if let Some(record) = self.under_way(id) {
            record.state = state;
            record.changes = record.changes.wrapping_add(1);
        }
    }

    /// A token based copy is over.
    pub(crate) fn end_token(&mut self, id: u32, state: CopyState, token: Option<Box<[u8; TOKEN_BYTES]>>) {
        if let Some(record) = self.under_way(id) {
            record.token = token;
        }
        self.end(id, state);
    }

    /// A copy is to stop. Whether there is one.
    pub(crate) fn stop(&mut self, id: u32) -> bool {
        let Some(record) = self.under_way(id) else { return false };
        record.state = CopyState::Stopping;
        true
    }

    /// Whether there is a copy of this identifier that has not ended.
    pub(crate) fn is_under_way(&self, id: u32) -> bool {
        self.get(id).is_some_and(CopyRecord::is_under_way)
    }

    fn under_way(&mut self, id: u32) -> Option<&mut CopyRecord> {
        self.0.iter_mut().find(|record| record.id == id && record.is_under_way())
    }

    fn get(&self, id: u32) -> Option<&CopyRecord> {
        self.0.iter().find(|record| record.id == id)
    }

    /// What is over was told, and is told once (SPC-4 §6.24.2).
    pub(crate) fn told(&mut self, id: u32) {
        self.0.retain(|record| record.id != id || record.is_under_way());
    }
}

impl CopyRecord {
    fn is_under_way(&self) -> bool {
        matches!(self.state, CopyState::InProgress | CopyState::Stopping)
    }

    fn is_token_based(&self) -> bool {
        matches!(self.kind.action, token::POPULATE | token::WRITE_USING)
    }
}

/// Which of the replies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Results {
    service_action: u8,
    id: u32,
}

/// RECEIVE COPY STATUS(LID1), DATA(LID1), OPERATING PARAMETERS, FAILED SEGMENT DETAILS, COPY STATUS(LID4), DATA(LID4).
pub(crate) fn receive_copy_results(request: &Request<'_>) -> Result<Work, Sense> {
    let cdb = &request.command.cdb;
    let service_action = cdb[1] & 0x1F;
    let id = match service_action {
        OPERATING_PARAMETERS => 0,
        STATUS_LID4 | DATA_LID4 | token::RECEIVE_INFORMATION => be32(cdb, 2),
        _ => u32::from(cdb[2]),
    };
    let unknown = Sense::INVALID_FIELD_IN_CDB.cdb_byte(2);
    if service_action != OPERATING_PARAMETERS {
        let record = request.copies.and_then(|copies| copies.get(id)).ok_or(unknown)?;
        // What has not ended has no data and no details.
        let tells_of_those = matches!(service_action, STATUS_LID1 | STATUS_LID4 | token::RECEIVE_INFORMATION);
        if record.is_under_way() && !tells_of_those {
            return Err(unknown);
        }
        if service_action == token::RECEIVE_INFORMATION && !record.is_token_based() {
            return Err(unknown);
        }
    }
    let reply = Reply::CopyResults(Results { service_action, id });
    Ok(ParameterData::work(reply, be32(cdb, 10)))
}

/// RECEIVE COPY STATUS(LID1) parameter data.
#[derive(IntoBytes, Immutable, Unaligned)]
#[repr(C)]
struct StatusLid1 {
    available_data: U32,
    status: u8,
    segments_processed: U16,
    transfer_count_units: u8,
    transfer_count: U32,
}

const _: () = assert!(size_of::<StatusLid1>() == 12);

/// RECEIVE COPY STATUS(LID4) parameter data, without its sense data.
#[derive(IntoBytes, Immutable, Unaligned)]
#[repr(C)]
struct StatusLid4 {
    available_data: U32,
    response_to_service_action: u8,
    status: u8,
    operation_counter: U16,
    estimated_status_update_delay: U32,
    extended_copy_completion_status: u8,
    length_of_the_sense_data_field: u8,
    sense_data_length: u8,
    transfer_count_units: u8,
    transfer_count: U64,
    segments_processed: U16,
    reserved: [u8; 6],
}

const _: () = assert!(size_of::<StatusLid4>() == 32);

/// RECEIVE COPY OPERATING PARAMETERS parameter data.
#[derive(IntoBytes, Immutable, Unaligned)]
#[repr(C)]
struct OperatingParameters {
    available_data: U32,
    /// SNLID: lists without an identifier are supported.
    snlid: u8,
    reserved_5: [u8; 3],
    maximum_cscd_descriptor_count: U16,
    maximum_segment_descriptor_count: U16,
    maximum_descriptor_list_length: U32,
    maximum_segment_length: U32,
    maximum_inline_data_length: U32,
    held_data_limit: U32,
    maximum_stream_device_transfer_size: U32,
    reserved_32: U16,
    total_concurrent_copies: U16,
    maximum_concurrent_copies: u8,
    data_segment_granularity: u8,
    inline_data_granularity: u8,
    held_data_granularity: u8,
    reserved_40: [u8; 3],
    implemented_descriptor_list_length: u8,
    implemented_descriptors: [u8; 3],
}

const _: () = assert!(size_of::<OperatingParameters>() == 47);

/// Blocks of 512 bytes are the smallest that are copied: log2 of them.
pub(crate) const GRANULARITY_LOG2: u8 = 9;

/// Descriptor types that are implemented, ascending.
pub(crate) const DESCRIPTORS: [u8; 3] = [BLOCK_TO_BLOCK, BLOCK_TO_BLOCK_OFFSET, IDENTIFICATION];

/// A count in the largest unit that loses nothing, or else the smallest that holds it: TRANSFER COUNT UNITS, and the count.
fn units_of(bytes: u64) -> (u8, u32) {
    for unit in 0..=4u8 {
        let scaled = bytes >> (10 * unit);
        if let Ok(count) = u32::try_from(scaled) {
            return (unit, count);
        }
    }
    (4, u32::MAX)
}

impl Results {
    /// Whether what it tells of a copy that is over is told by it for the last time, and of which. A token is told again: an
    /// initiator that had too little room for it, or lost its path, has nothing else of it.
    pub(crate) fn tells_of(self) -> Option<u32> {
        (!matches!(self.service_action, OPERATING_PARAMETERS | token::RECEIVE_INFORMATION)).then_some(self.id)
    }

    /// Writes the reply.
    ///
    /// # Errors
    /// The copy has been forgotten meanwhile.
    pub(crate) fn build(self, copies: Option<&CopyRecords>, out: &mut Out<'_>) -> Result<(), Sense> {
        if self.service_action == OPERATING_PARAMETERS {
            out.put(&operating_parameters());
            return Ok(());
        }
        let record = copies.and_then(|copies| copies.get(self.id));
        let record = record.ok_or(Sense::INVALID_FIELD_IN_CDB.cdb_byte(2))?;
        match self.service_action {
            STATUS_LID1 => {
                let status = match record.state {
                    CopyState::InProgress | CopyState::Stopping => 0,
                    CopyState::Done => 1,
                    CopyState::Failed(..) | CopyState::Aborted => 2,
                };
                let (units, count) = units_of(record.bytes);
                out.put(&StatusLid1 {
                    available_data: U32::new(8),
                    status,
                    segments_processed: U16::new(record.segments),
                    transfer_count_units: units,
                    transfer_count: U32::new(count),
                });
            }
            FAILED_SEGMENT_DETAILS => match &record.state {
                CopyState::Failed(status, sense) => {
                    out.bytes(&(56 + sense.len() as u32).to_be_bytes());
                    out.zeroes(52);
                    out.bytes(&[*status as u8, 0]);
                    out.bytes(&(sense.len() as u16).to_be_bytes());
                    out.bytes(sense);
                }
                _ => out.zeroes(4),
            },
            // No data are held of any copy.
            DATA_LID1 | DATA_LID4 => out.zeroes(4),
            _ => {
                let (status, completion, sense): (u8, Status, &[u8]) = match &record.state {
                    CopyState::InProgress | CopyState::Stopping => {
                        // In the foreground, or in the background.
                        (0x11 + u8::from(record.kind.is_background), Status::Good, &[])
                    }
                    CopyState::Done => (0x01, Status::Good, &[]),
                    CopyState::Failed(status, sense) => (0x02, *status, sense),
                    CopyState::Aborted => (0x60, Status::Good, &[]),
                };
                // "Without errors but with partial ROD token usage" (03h), or "with residual data" (04h), is none of them: a
                // command that is answered with GOOD has done all that its list asks for, as not every host asks how much.
                // RECEIVE ROD TOKEN INFORMATION: LOGICAL BLOCKS, and the token behind the sense data.
                let is_information = self.service_action == token::RECEIVE_INFORMATION;
                let (units, count) = if is_information {
                    (0xF1, record.bytes / u64::from(record.kind.block_bytes.max(1)))
                } else {
                    (0, record.bytes)
                };
                let token = record.token.as_deref().filter(|_| is_information);
                let descriptor_bytes = token.map_or(0, |token| token.len() as u32 + 2);
                let more = if is_information { 4 + descriptor_bytes } else { 0 };
                out.put(&StatusLid4 {
                    available_data: U32::new(28 + sense.len() as u32 + more),
                    response_to_service_action: record.kind.action,
                    status,
                    operation_counter: U16::new(record.changes),
                    estimated_status_update_delay: U32::new(u32::MAX),
                    extended_copy_completion_status: completion as u8,
                    length_of_the_sense_data_field: sense.len() as u8,
                    sense_data_length: sense.len() as u8,
                    transfer_count_units: units,
                    transfer_count: U64::new(count),
                    segments_processed: U16::new(record.segments),
                    reserved: [0; 6],
                });
                out.bytes(sense);
                if is_information {
                    out.bytes(&descriptor_bytes.to_be_bytes());
                }
                if let Some(token) = token {
                    out.zeroes(2);
                    out.bytes(token);
                }
            }
        }
        Ok(())
    }
}

fn operating_parameters() -> OperatingParameters {
    OperatingParameters {
        available_data: U32::new(size_of::<OperatingParameters>() as u32 - 4),
        snlid: 0x01,
        reserved_5: [0; 3],
        maximum_cscd_descriptor_count: U16::new(COPY_CSCDS_MAX),
        maximum_segment_descriptor_count: U16::new(COPY_SEGMENTS_MAX),
        maximum_descriptor_list_length: U32::new(COPY_DESCRIPTOR_BYTES_MAX),
        maximum_segment_length: U32::new(COPY_SEGMENT_BYTES_MAX),
        maximum_inline_data_length: U32::new(0),
        held_data_limit: U32::new(0),
        maximum_stream_device_transfer_size: U32::new(0),
        reserved_32: U16::new(0),
        total_concurrent_copies: U16::new(u16::from(COPIES_MAX)),
        maximum_concurrent_copies: COPIES_MAX,
        data_segment_granularity: GRANULARITY_LOG2,
        inline_data_granularity: 0,
        held_data_granularity: 0,
        reserved_40: [0; 3],
        implemented_descriptor_list_length: DESCRIPTORS.len() as u8,
        implemented_descriptors: DESCRIPTORS,
    }
}

/// Third-party copy page 8Fh (SPC-4 §7.8.17), behind its header.
pub(crate) fn third_party_copy_page(unit: &LogicalUnit, out: &mut Out<'_>) {
    let descriptor = |out: &mut Out<'_>, kind: u16, body: &[u8]| {
        let length = body.len().next_multiple_of(4);
        out.bytes(&kind.to_be_bytes());
        out.bytes(&(length as u16).to_be_bytes());
        out.bytes(body);
        out.zeroes(length - body.len());
    };
    let block_bytes = u64::from(unit.geometry().block_bytes);
    let mut limits = [0; 32];
    limits[6..8].copy_from_slice(&TOKEN_RANGES_MAX.to_be_bytes());
    limits[8..12].copy_from_slice(&TOKEN_TIMEOUT_MAX_S.to_be_bytes());
    limits[12..16].copy_from_slice(&TOKEN_TIMEOUT_S.to_be_bytes());
    limits[16..24].copy_from_slice(&(TOKEN_BYTES_MAX / block_bytes).to_be_bytes());
    limits[24..32].copy_from_slice(&(TOKEN_BYTES_MAX / block_bytes).to_be_bytes());
    descriptor(out, 0x0000, &limits);
    // Supported commands: the rows of the opcode table that are third-party copy commands.
    let mut commands = vec![0];
    for opcode in [0x83, 0x84] {
        let actions: Vec<u8> = crate::opcodes::all()
            .filter(|row| row.opcode == opcode && row.is_for(unit))
            .filter_map(|row| row.service_action)
            .collect();
        commands.extend([opcode, actions.len() as u8]);
        commands.extend(actions);
    }
    commands[0] = commands.len() as u8 - 1;
    descriptor(out, 0x0001, &commands);
    let mut parameters = [0; 28];
    parameters[4..6].copy_from_slice(&COPY_CSCDS_MAX.to_be_bytes());
    parameters[6..8].copy_from_slice(&COPY_SEGMENTS_MAX.to_be_bytes());
    parameters[8..12].copy_from_slice(&COPY_DESCRIPTOR_BYTES_MAX.to_be_bytes());
    descriptor(out, 0x0004, &parameters);
    let mut codes = vec![DESCRIPTORS.len() as u8];
    codes.extend(DESCRIPTORS);
    descriptor(out, 0x0008, &codes);
    descriptor(out, 0x000C, &[0, 2, 0xFF, 0xFF]);
    rod_descriptors(unit, descriptor, out);
    let mut general = [0; 32];
    general[0..4].copy_from_slice(&u32::from(COPIES_MAX).to_be_bytes());
    general[4..8].copy_from_slice(&u32::from(COPIES_MAX).to_be_bytes());
    general[8..12].copy_from_slice(&COPY_SEGMENT_BYTES_MAX.to_be_bytes());
    general[12] = GRANULARITY_LOG2;
    descriptor(out, 0x8001, &general);
}

/// ROD token features and supported ROD types.
fn rod_descriptors(unit: &LogicalUnit, descriptor: impl Fn(&mut Out<'_>, u16, &[u8]), out: &mut Out<'_>) {
    let mut features = [0; 44 + 48];
    // REMOTE TOKENS=0. A token may live as long as somebody uses it, and is not kept for longer than is asked for.
    features[16..20].copy_from_slice(&u32::MAX.to_be_bytes());
    features[20..24].copy_from_slice(&TOKEN_TIMEOUT_MAX_S.to_be_bytes());
    features[42..44].copy_from_slice(&48u16.to_be_bytes());
    // Of block devices.
    let block = &mut features[44..];
    block[2..4].copy_from_slice(&44u16.to_be_bytes());
    for at in [8, 16, 24, 32] {
        block[at..at + 8].copy_from_slice(&TOKEN_BYTES_MAX.to_be_bytes());
    }
    descriptor(out, 0x0106, &features);
    // What is told first is preferred.
    let (token_in, token_out) = (0x02, 0x01);
    let made = if tokens_of(unit.config.bdev).is_some() { token_out } else { 0 };
    let kinds = [(token::POINT_IN_TIME, token_in | made), (token::ZEROES, token_in)];
    let mut types = vec![0, 0];
    types.extend((64 * kinds.len() as u16).to_be_bytes());
    for (kind, uses) in kinds {
        types.extend(kind.to_be_bytes());
        types.extend([uses, 0, 0, 0]);
        types.extend([0; 56]);
    }
    descriptor(out, 0x0108, &types);
}
