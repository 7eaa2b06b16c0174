//! The medium and the unit as a whole: TEST UNIT READY, START STOP UNIT, PREVENT ALLOW MEDIUM REMOVAL, SYNCHRONIZE
//! CACHE, READ DEFECT DATA, SEND DIAGNOSTIC.
#![allow(clippy::unnecessary_wraps, reason = "all handlers have the one signature of the opcode table")]

use crate::cdb::{BlockRange, be16, be32};
use crate::change::Change;
use crate::reply::{ParameterData, Reply};
use crate::sense::Sense;
use crate::settle::Settle;
use crate::task::{End, Request, Work, propose};

/// TEST UNIT READY (SPC-4 §6.47): the opcode table has asked for the medium.
pub(crate) fn test_unit_ready(_: &Request<'_>) -> Result<Work, Sense> {
    Ok(Work::End(End::GOOD))
}

/// START STOP UNIT (SBC-3 §5.22). A unit is never stopped: START=0 alone, and power conditions, are taken note of
/// and change nothing. IMMED is heeded by being quick.
pub(crate) fn start_stop_unit(request: &Request<'_>) -> Result<Work, Sense> {
    let (unit, flags) = (request.unit()?, request.command.cdb[4]);
    let (power_condition, no_flush) = (flags >> 4, flags & 0x04 != 0);
    let (load_eject, start) = (flags & 0x02 != 0, flags & 0x01 != 0);
    let flush = unit.medium && !start && !no_flush;
    if power_condition != 0 {
        // LOEJ and START are ignored then.
        return Ok(Work::End(End::GOOD));
    }
    if !load_eject {
        return Ok(if flush { Settle::flush() } else { Work::End(End::GOOD) });
    }
    if !unit.config.removable {
        return Err(Sense::INVALID_FIELD_IN_CDB.cdb_bit(4, 1));
    }
    let change = Change::Medium { lun: unit.config.lun, by: request.nexus, load: start };
    Ok(if flush { Work::Settle(Settle::flush_and_change(change)) } else { propose(change) })
}

/// PREVENT ALLOW MEDIUM REMOVAL (SPC-4 §6.21), also without a medium.
pub(crate) fn prevent_allow_medium_removal(request: &Request<'_>) -> Result<Work, Sense> {
    let prevent = match request.command.cdb[4] & 0x03 {
        0 => false,
        1 => true,
        // Obsolete values of medium changers.
        _ => return Err(Sense::INVALID_FIELD_IN_CDB.cdb_bit(4, 1)),
    };
    Ok(propose(Change::Prevent { lun: request.unit()?.config.lun, by: request.nexus, prevent }))
}

/// SYNCHRONIZE CACHE(10), (16) (SBC-3 §5.23). The whole device is flushed, whatever the range: that is one step for
/// the device, and it can't leave anything out. Zero blocks is "to the end".
pub(crate) fn synchronize_cache(request: &Request<'_>) -> Result<Work, Sense> {
    BlockRange::of(&request.command.cdb).check_on(request.unit()?.geometry())?;
    Ok(Settle::flush())
}

/// REQ_PLIST, REQ_GLIST and DEFECT LIST FORMAT, which come back as PLISTV, GLISTV and the format.
const DEFECT_FLAGS: u8 = 0x1F;

/// READ DEFECT DATA(10) (SBC-3 §5.17).
pub(crate) fn read_defect_data_10(request: &Request<'_>) -> Result<Work, Sense> {
    let cdb = &request.command.cdb;
    let flags = cdb[2] & DEFECT_FLAGS;
    Ok(ParameterData::work(Reply::DefectData { twelve: false, flags }, be16(cdb, 7)))
}

/// READ DEFECT DATA(12) (SBC-3 §5.18).
pub(crate) fn read_defect_data_12(request: &Request<'_>) -> Result<Work, Sense> {
    let cdb = &request.command.cdb;
    let flags = cdb[1] & DEFECT_FLAGS;
    Ok(ParameterData::work(Reply::DefectData { twelve: true, flags }, be32(cdb, 6)))
}

/// SEND DIAGNOSTIC (SPC-4 §6.42): the default self-test, which reads the first blocks.
pub(crate) fn send_diagnostic(request: &Request<'_>) -> Result<Work, Sense> {
    let cdb = &request.command.cdb;
    // SELF-TEST CODE: those tests report through a log page that is not there.
    if cdb[1] >> 5 != 0 {
        return Err(Sense::INVALID_FIELD_IN_CDB.cdb_bit(1, 7));
    }
    // No diagnostic pages.
    if be16(cdb, 3) != 0 {
        return Err(Sense::INVALID_FIELD_IN_CDB.cdb_byte(3));
    }
    let self_test = cdb[1] & 0x04 != 0;
    if self_test && request.unit()?.medium { crate::rw::self_test(request) } else { Ok(Work::End(End::GOOD)) }
}
