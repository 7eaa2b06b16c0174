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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::{NEXUS, OTHER, Offer, World, geometry, info, lun_config, versatile};
    use bdev::geometry::Geometry;

    fn codes(world: &mut World, options: u8, opcode: u8, service_action: u8) -> crate::harness::Answer {
        world.get(&[0xA3, 0x0C, options, opcode, 0, service_action, 0, 0, 255, 255, 0, 0], 65_535)
    }

    fn every_command() -> World {
        World::of(vec![versatile(0)])
    }

    /// Goal: the list of all, with and without time-outs, is the table, with lengths that add up.
    #[test]
    fn all_codes_are_listed() {
        let mut world = every_command();
        for (options, bytes, ctdp) in [(0x00, 8, 0), (0x80, 20, 2)] {
            let data = codes(&mut world, options, 0, 0).good().data;
            assert_eq!(u32::from_be_bytes([data[0], data[1], data[2], data[3]]) as usize, data.len() - 4);
            let listed: Vec<&[u8]> = data[4..].chunks_exact(bytes).collect();
            assert_eq!(listed.len(), opcodes::all().count());
            for (descriptor, row) in listed.into_iter().zip(opcodes::all()) {
                assert_eq!((descriptor[0], descriptor[7]), (row.opcode, row.cdb_bytes));
                assert_eq!(descriptor[3], row.service_action.unwrap_or(0));
                assert_eq!(descriptor[5], ctdp | u8::from(row.service_action.is_some()));
                if ctdp != 0 {
                    assert_eq!(descriptor[8..12], [0, 0x0A, 0, 0]);
                    assert_eq!(descriptor[16..20], row.recommended_s.to_be_bytes());
                }
            }
        }
        let mut plain = World::new(Geometry { unmap_granularity_bytes: 0, ..geometry() });
        let data = codes(&mut plain, 0, 0, 0).good().data;
        assert!(data[4..].chunks_exact(8).all(|descriptor| descriptor[0] != 0x42 && descriptor[0] != 0x1E));
        assert_eq!(codes(&mut plain, 1, 0x42, 0).good().data, [0, 1, 0, 0]);
    }

    /// Goal: each option takes the opcodes it is for and refuses the others with a pointer.
    #[test]
    fn one_code_is_reported() {
        let mut world = every_command();
        for row in opcodes::all() {
            let (opcode, service_action) = (row.opcode, row.service_action.unwrap_or(0));
            let (right, wrong) = if row.service_action.is_some() { (2, 1) } else { (1, 2) };
            for options in [right, 3, right | 0x80] {
                let data = codes(&mut world, options, opcode, service_action).good().data;
                let bytes = usize::from(row.cdb_bytes);
                assert_eq!(data[1], options & 0x80 | 3);
                assert_eq!((usize::from(data[3]), data[4]), (bytes, opcode));
                assert_eq!(data[5] & 0x1F, row.usage_data()[1] & 0x1F);
                assert_eq!(data.len(), 4 + bytes + if options & 0x80 != 0 { 12 } else { 0 });
            }
            codes(&mut world, wrong, opcode, service_action).bad_field(2, Some(2));
        }
        for (options, opcode, service_action) in
            [(1, 0xFF, 0), (2, 0xA3, 0x1F), (3, 0xA3, 0x1F), (3, 0x28, 1), (2, 0xC0, 0)]
        {
            assert_eq!(codes(&mut world, options, opcode, service_action).good().data, [0, 1, 0, 0]);
        }
        for options in 4..8 {
            codes(&mut world, options, 0x28, 0).bad_field(2, Some(2));
        }
        // What the public suite looks for: DPO and FUA in usage byte 1.
        for (opcode, bits) in
            [(0x28, 0x18), (0x2A, 0x18), (0x89, 0x18), (0x8B, 0x18), (0x2F, 0x10), (0x2E, 0x10)]
        {
            assert_eq!(codes(&mut world, 1, opcode, 0).good().data[5] & 0x18, bits);
        }
    }

    /// Goal: task management functions, short and with time-outs.
    #[test]
    fn task_management_functions_are_reported() {
        let mut world = every_command();
        let mut ask =
            |options, length| world.get(&[0xA3, 0x0D, options, 0, 0, 0, 0, 0, 0, length, 0, 0], 255);
        assert_eq!(ask(0, 255).good().data, [0xDA, 0, 0, 0]);
        let long = ask(0x80, 255).good().data;
        assert_eq!((long.len(), long[3]), (16, 12));
        ask(0, 3).bad_field(6, None);
    }

    /// Goal: groups and ports as configured; the length does not depend on the allocation length.
    #[test]
    fn port_groups_are_reported() {
        let mut world = every_command();
        let mut ask = |format: u8, length: u8| {
            world.get(&[0xA3, format | 0x0A, 0, 0, 0, 0, 0, 0, 0, length, 0, 0], 255).good().data
        };
        let data = ask(0, 255);
        assert_eq!(data[..4], [0, 0, 0, 28]);
        assert_eq!(data[4..20], [0, 1, 0, 1, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 2]);
        assert_eq!(data[20..], [0, 1, 0, 7, 0, 0, 0, 1, 0, 0, 0, 3]);
        assert_eq!(ask(0, 4), data[..4]);
        let extended = ask(0x20, 255);
        assert_eq!(extended[..8], [0, 0, 0, 32, 0x10, 0, 0, 0]);
        assert_eq!(extended[8..], data[4..]);
        world.get(&[0xA3, 0x4A, 0, 0, 0, 0, 0, 0, 0, 255, 0, 0], 255).bad_field(1, Some(7));
    }

    /// Goal: all units are listed, with the addressing their numbers need, on any LUN and whatever is pending.
    #[test]
    fn units_are_listed() {
        let units = [300, 0, 255, 256].map(|lun| lun_config(lun, geometry()));
        let mut world = World::of(units.to_vec());
        world.server.open_nexus(OTHER, info(1, false));
        let mut ask = |lun: [u8; 8], select, length| {
            let cdb = vec![0xA0, 0, select, 0, 0, 0, 0, 0, 0, length, 0, 0];
            world.run(OTHER, &Offer { lun, cdb, room: 255, data: &[], data_bytes: 0 })
        };
        let data = ask([0; 8], 0, 255).good().data;
        assert_eq!(data[..8], [0, 0, 0, 32, 0, 0, 0, 0]);
        let fields: Vec<&[u8]> = data[8..].chunks_exact(8).map(|field| &field[..2]).collect();
        assert_eq!(fields, [[0, 0], [0, 255], [0x41, 0], [0x41, 0x2C]]);
        assert_eq!(ask([0, 99, 0, 0, 0, 0, 0, 0], 0, 16).good().data, data[..16]);
        assert_eq!(ask([0xC1, 1, 0, 0, 0, 0, 0, 0], 1, 255).good().data[8..10], [0xC1, 1]);
        assert_eq!(ask([0; 8], 2, 255).good().data.len(), 8 + 5 * 8);
        ask([0; 8], 3, 255).bad_field(2, None);
        assert_eq!(world.hear(OTHER), [0x2900; 4], "not taken by REPORT LUNS");
    }

    /// Goal: the most units there can be fit one reply.
    #[test]
    fn many_units_are_listed() {
        let units = (0..LUNS_MAX as u16).map(|lun| lun_config(lun, geometry())).collect();
        let mut world = World::of(units);
        let cdb = [0xA0, 0, 0, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0];
        assert_eq!(world.get(&cdb, u32::MAX).good().data.len(), 8 + 8 * LUNS_MAX);
    }

    /// Goal: REQUEST SENSE gives an attention as data, once, in the format asked for; and what is wrong with the LUN.
    #[test]
    fn request_sense_tells_what_is_pending() {
        let mut world = World::new(geometry());
        world.server.open_nexus(OTHER, info(1, true));
        let mut ask = |nexus, lun: [u8; 8], desc| {
            let cdb = vec![0x03, desc, 0, 0, 252, 0];
            world.run(nexus, &Offer { lun, cdb, room: 252, data: &[], data_bytes: 0 }).good().data
        };
        assert_eq!(ask(OTHER, [0; 8], 1), [0x72, 6, 0x29, 7, 0, 0, 0, 0]);
        assert_eq!(ask(OTHER, [0; 8], 0), Sense::NO_SENSE.to_bytes(false).to_vec());
        let absent = [0, 9, 0, 0, 0, 0, 0, 0];
        assert_eq!(ask(NEXUS, absent, 0), Sense::LOGICAL_UNIT_NOT_SUPPORTED.to_bytes(false).to_vec());
    }
}
