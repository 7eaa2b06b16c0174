//! What there is: REPORT LUNS, REPORT TARGET PORT GROUPS, REPORT SUPPORTED OPERATION CODES and TASK MANAGEMENT
//! FUNCTIONS, REQUEST SENSE.
#![allow(clippy::unnecessary_wraps, reason = "all handlers have the one signature of the opcode table")]

use crate::cdb::{ReportSupportedOperationCodesCdb, be32, view};
use crate::limits::{LUNS_MAX, PORTS_MAX};
use crate::lun::{LogicalUnit, REPORT_LUNS_WELL_KNOWN, lun_field, lun_number};
use crate::opcodes::{self, Opcode};
use crate::reply::{Out, ParameterData, Reply};
use crate::sense::Sense;
use crate::server::DeviceServer;
use crate::task::{Request, Work};
use reactor::buf::BUF_BYTES_MAX;
use zerocopy::byteorder::big_endian::{U16, U32};
use zerocopy::{Immutable, IntoBytes, Unaligned};

// The replies whose length depends on the configuration fit a buffer.
const _: () = assert!(8 + 8 * (LUNS_MAX + 1) <= BUF_BYTES_MAX);
const _: () = assert!(8 + (8 + 4) * PORTS_MAX <= BUF_BYTES_MAX);

/// REQUEST SENSE (SPC-4 §6.39): a pending unit attention as data, which takes it, or none. What is wrong with the LUN
/// is data, too.
pub(crate) fn request_sense(request: &Request<'_>) -> Result<Work, Sense> {
    let cdb = &request.command.cdb;
    let sense = match (request.unit, lun_number(request.command.lun)) {
        (Some(_), _) => request.attention.unwrap_or(Sense::NO_SENSE),
        (None, Some(REPORT_LUNS_WELL_KNOWN)) => Sense::NO_SENSE,
        (None, _) => Sense::LOGICAL_UNIT_NOT_SUPPORTED,
    };
    // DESC.
    let sense = sense.to_bytes(cdb[1] & 0x01 != 0);
    Ok(ParameterData::work(Reply::Sense { sense }, u32::from(cdb[4])))
}

/// REPORT LUNS (SPC-4 §6.33).
pub(crate) fn report_luns(request: &Request<'_>) -> Result<Work, Sense> {
    let cdb = &request.command.cdb;
    let select_report = cdb[2];
    if select_report > 2 {
        return Err(Sense::INVALID_FIELD_IN_CDB.cdb_byte(2));
    }
    Ok(ParameterData::work(Reply::Luns { select_report }, be32(cdb, 6)))
}

/// SELECT REPORT 00h: units; 01h: well-known units; 02h: both.
pub(crate) fn luns(select_report: u8, server: &DeviceServer, out: &mut Out<'_>) {
    out.zeroes(8);
    if select_report != 1 {
        server.units.iter().for_each(|unit| out.bytes(&lun_field(unit.config.lun)));
    }
    if select_report != 0 {
        out.bytes(&lun_field(REPORT_LUNS_WELL_KNOWN));
    }
    let list_length = (out.len() - 8) as u32;
    out.patch(0, &list_length.to_be_bytes());
}

/// Target port group descriptor (SPC-4 §6.37).
#[derive(IntoBytes, Immutable, Unaligned)]
#[repr(C)]
struct TargetPortGroupDescriptor {
    /// PREF, ASYMMETRIC ACCESS STATE.
    state: u8,
    /// AO_SUP and the like.
    supported_states: u8,
    target_port_group: U16,
    reserved: u8,
    status_code: u8,
    vendor_specific: u8,
    target_port_count: u8,
}

const _: () = assert!(size_of::<TargetPortGroupDescriptor>() == 8);

const ACTIVE_OPTIMIZED: u8 = 0x00;
const ACTIVE_OPTIMIZED_SUPPORTED: u8 = 0x01;

/// REPORT TARGET PORT GROUPS (SPC-4 §6.37).
pub(crate) fn report_target_port_groups(request: &Request<'_>) -> Result<Work, Sense> {
    let cdb = &request.command.cdb;
    // PARAMETER DATA FORMAT.
    let extended_header = match cdb[1] >> 5 {
        0 => false,
        1 => true,
        _ => return Err(Sense::INVALID_FIELD_IN_CDB.cdb_bit(1, 7)),
    };
    Ok(ParameterData::work(Reply::TargetPortGroups { extended_header }, be32(cdb, 6)))
}

/// Every port is active and optimized: any core reaches every unit.
pub(crate) fn target_port_groups(extended_header: bool, server: &DeviceServer, out: &mut Out<'_>) {
    out.zeroes(4);
    if extended_header {
        // FORMAT TYPE 001b, IMPLICIT TRANSITION TIME 0: states never change.
        out.bytes(&[0x10, 0, 0, 0]);
    }
    for (index, port) in server.ports.iter().enumerate() {
        if server.ports[..index].iter().any(|earlier| earlier.group == port.group) {
            continue;
        }
        let members = server.ports.iter().filter(|member| member.group == port.group);
        out.put(&TargetPortGroupDescriptor {
            state: ACTIVE_OPTIMIZED,
            supported_states: ACTIVE_OPTIMIZED_SUPPORTED,
            target_port_group: U16::new(port.group),
            reserved: 0,
            status_code: 0,
            vendor_specific: 0,
            target_port_count: members.clone().count() as u8,
        });
        for member in members {
            out.bytes(&[0, 0]);
            out.bytes(&member.relative_port.to_be_bytes());
        }
    }
    let return_data_length = (out.len() - 4) as u32;
    out.patch(0, &return_data_length.to_be_bytes());
}

/// REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS (SPC-4 §6.36).
pub(crate) fn report_task_management_functions(request: &Request<'_>) -> Result<Work, Sense> {
    let cdb = &request.command.cdb;
    let extended = cdb[2] & 0x80 != 0;
    if be32(cdb, 6) < 4 {
        return Err(Sense::INVALID_FIELD_IN_CDB.cdb_byte(6));
    }
    Ok(ParameterData::work(Reply::TaskManagementFunctions { extended }, be32(cdb, 6)))
}

/// ABORT TASK, ABORT TASK SET, CLEAR TASK SET, LOGICAL UNIT RESET, TARGET RESET.
const TASK_MANAGEMENT_FUNCTIONS: u8 = 0x80 | 0x40 | 0x10 | 0x08 | 0x02;

pub(crate) fn task_management_functions(extended: bool, out: &mut Out<'_>) {
    out.bytes(&[TASK_MANAGEMENT_FUNCTIONS, 0, 0, if extended { 0x0C } else { 0 }]);
    if extended {
        // TMFTMOV; every function has the short time-out; long 60 s and short 5 s, in units of 100 ms.
        out.bytes(&[0x01, 0, TASK_MANAGEMENT_FUNCTIONS, 0]);
        out.bytes(&600_u32.to_be_bytes());
        out.bytes(&50_u32.to_be_bytes());
    }
}

/// REPORT SUPPORTED OPERATION CODES: all, or one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OperationCodes {
    /// RCTD: with command time-outs descriptors.
    timeouts: bool,
    which: Which,
}

#[derive(Clone, Copy, Debug)]
enum Which {
    All,
    /// `None`: not supported.
    One(Option<&'static Opcode>),
}

/// Command descriptor (SPC-4 §6.35.2).
#[derive(IntoBytes, Immutable, Unaligned)]
#[repr(C)]
struct CommandDescriptor {
    operation_code: u8,
    reserved_1: u8,
    service_action: U16,
    reserved_4: u8,
    /// CTDP in bit 1, SERVACTV in bit 0.
    flags: u8,
    cdb_length: U16,
}

const _: () = assert!(size_of::<CommandDescriptor>() == 8);

/// Command timeouts descriptor (SPC-4 §6.35.4). Seconds.
#[derive(IntoBytes, Immutable, Unaligned)]
#[repr(C)]
struct CommandTimeoutsDescriptor {
    descriptor_length: U16,
    reserved: u8,
    command_specific: u8,
    nominal_command_processing_timeout: U32,
    recommended_command_timeout: U32,
}

const _: () = assert!(size_of::<CommandTimeoutsDescriptor>() == 12);

fn timeouts_descriptor(opcode: &Opcode) -> CommandTimeoutsDescriptor {
    CommandTimeoutsDescriptor {
        descriptor_length: U16::new(0x0A),
        reserved: 0,
        command_specific: 0,
        nominal_command_processing_timeout: U32::new(opcode.nominal_s),
        recommended_command_timeout: U32::new(opcode.recommended_s),
    }
}

/// REPORT SUPPORTED OPERATION CODES (SPC-4 §6.35).
pub(crate) fn report_operation_codes(request: &Request<'_>) -> Result<Work, Sense> {
    let cdb: &ReportSupportedOperationCodesCdb = view(&request.command.cdb);
    let unit = request.unit()?;
    let requested =
        opcodes::all().filter(|opcode| opcode.opcode == cdb.requested_operation_code && opcode.is_for(unit));
    let has_service_actions = requested.clone().any(|opcode| opcode.service_action.is_some());
    let is_known = requested.clone().next().is_some();
    let service_action = cdb.requested_service_action.get();
    let with_service_action = || {
        requested
            .clone()
            .find(|opcode| opcode.service_action.is_some_and(|sa| u16::from(sa) == service_action))
    };
    let options_error = Sense::INVALID_FIELD_IN_CDB.cdb_bit(2, 2);
    let which = match cdb.options & 0x07 {
        0 => Which::All,
        1 if has_service_actions => return Err(options_error),
        1 => Which::One(requested.clone().next()),
        2 if is_known && !has_service_actions => return Err(options_error),
        2 => Which::One(with_service_action()),
        3 if has_service_actions => Which::One(with_service_action()),
        3 if service_action == 0 => Which::One(requested.clone().next()),
        3 => Which::One(None),
        _ => return Err(options_error),
    };
    let codes = OperationCodes { timeouts: cdb.options & 0x80 != 0, which };
    Ok(ParameterData::work(Reply::OperationCodes(codes), cdb.allocation_length.get()))
}

impl OperationCodes {
    pub(crate) fn build(&self, unit: &LogicalUnit, out: &mut Out<'_>) {
        match self.which {
            Which::All => self.build_all(unit, out),
            Which::One(opcode) => self.build_one(opcode, out),
        }
    }

    fn build_all(&self, unit: &LogicalUnit, out: &mut Out<'_>) {
        out.zeroes(4);
        for opcode in opcodes::all().filter(|opcode| opcode.is_for(unit)) {
            out.put(&CommandDescriptor {
                operation_code: opcode.opcode,
                reserved_1: 0,
                service_action: U16::new(opcode.service_action.map_or(0, u16::from)),
                reserved_4: 0,
                flags: u8::from(self.timeouts) << 1 | u8::from(opcode.service_action.is_some()),
                cdb_length: U16::new(u16::from(opcode.cdb_bytes)),
            });
            if self.timeouts {
                out.put(&timeouts_descriptor(opcode));
            }
        }
        let command_data_length = (out.len() - 4) as u32;
        out.patch(0, &command_data_length.to_be_bytes());
    }

    fn build_one(&self, opcode: Option<&Opcode>, out: &mut Out<'_>) {
        let Some(opcode) = opcode else {
            // SUPPORT 001b: not supported.
            out.bytes(&[0, 0x01, 0, 0]);
            return;
        };
        // SUPPORT 011b: as in the standard.
        out.bytes(&[0, u8::from(self.timeouts) << 7 | 0x03, 0, opcode.cdb_bytes]);
        out.bytes(&opcode.usage_data()[..usize::from(opcode.cdb_bytes)]);
        if self.timeouts {
            out.put(&timeouts_descriptor(opcode));
        }
    }
}
