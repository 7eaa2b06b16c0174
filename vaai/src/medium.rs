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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::{NEXUS, OTHER, World, cdb10, cdb16, geometry, lun_config};
    use crate::lun::LunConfig;
    use bdev::error::IoError;
    use bdev::io::Op;

    fn removable() -> World {
        World::of(vec![LunConfig { removable: true, ..lun_config(0, geometry()) }])
    }

    const EJECT: [u8; 6] = [0x1B, 0, 0, 0, 2, 0];
    const LOAD: [u8; 6] = [0x1B, 0, 0, 0, 3, 0];
    const PREVENT: [u8; 6] = [0x1E, 0, 0, 0, 1, 0];
    const ALLOW: [u8; 6] = [0x1E, 0, 0, 0, 0, 0];
    const READY: [u8; 6] = [0; 6];

    /// Goal: without a medium every command that needs one says so, before it looks at its range or data.
    #[test]
    fn no_medium_is_told_by_all() {
        let mut world = removable();
        world.put(&EJECT, &[]).good();
        let block = [0; 512];
        let mut cdbs = vec![READY.to_vec(), vec![0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0]];
        cdbs.extend([0x28, 0x2A, 0x2E, 0x2F, 0x34, 0x35, 0x41].map(|opcode| cdb10(opcode, 0, 9999, 1)));
        cdbs.extend([0x88, 0x8A, 0x8B, 0x8E, 0x8F, 0x90, 0x91, 0x93].map(|opcode| cdb16(opcode, 0, 0, 1)));
        cdbs.push(vec![0x9E, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0]);
        cdbs.push(vec![0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0]);
        for cdb in cdbs {
            assert_eq!(world.put(&cdb, &block).bad(0x2_3A00).wanted, 0);
        }
        // These need none.
        world.get(&[0x12, 0, 0, 0, 36, 0], 36).good();
        world.get(&[0x1A, 0, 0x3F, 0, 255, 0], 255).good();
        world.get(&[0x1D, 0x04, 0, 0, 0, 0], 0).good();
        world.put(&LOAD, &[]).good();
        world.get(&READY, 0).good();
        assert_eq!(world.hear(OTHER), [0x2800]);
    }

    /// Goal: only LOEJ moves the medium, and only without a power condition.
    #[test]
    fn only_load_eject_moves_the_medium() {
        let mut world = removable();
        for flags in [0x00, 0x01, 0x04, 0x05] {
            world.put(&[0x1B, 1, 0, 0, flags, 0], &[]).good();
            world.get(&READY, 0).good();
        }
        for power_condition in 1..16_u8 {
            world.put(&[0x1B, 0, 0, 0x0F, power_condition << 4 | 2, 0], &[]).good();
            world.get(&READY, 0).good();
        }
        // What was written is safe first, unless the initiator says it need not be.
        assert_eq!(world.put(&EJECT, &[]).good().ios, [(Op::Flush, false, 0, 0)]);
        world.put(&LOAD, &[]).good();
        assert_eq!(world.put(&[0x1B, 0, 0, 0, 0x06, 0], &[]).good().ios, []);
        world.put(&LOAD, &[]).good();
        world.put(&LOAD, &[]).good();
        let mut fixed = World::new(geometry());
        fixed.put(&EJECT, &[]).bad_field(4, Some(1));
        fixed.put(&[0x1B, 0, 0, 0, 0, 0], &[]).good();
    }

    /// Goal: prevention holds for all nexuses, ejecting and loading, until its nexus allows it, is lost, or a reset.
    #[test]
    fn prevention_prevents() {
        let mut world = removable();
        world.put(&PREVENT, &[]).good();
        for nexus in [NEXUS, OTHER] {
            world.run_as(nexus, 0, &EJECT, 0, &[]).bad(0x5_5302);
        }
        world.run_as(OTHER, 0, &ALLOW, 0, &[]).good();
        world.put(&EJECT, &[]).bad(0x5_5302);
        world.get(&READY, 0).good();
        world.put(&ALLOW, &[]).good();
        world.put(&EJECT, &[]).good();
        world.put(&EJECT, &[]).good();
        world.put(&PREVENT, &[]).good();
        world.put(&LOAD, &[]).bad(0x5_5302);
        world.server.apply(&Change::NexusLost { nexus: NEXUS }).unwrap();
        world.put(&LOAD, &[]).good();
        world.put(&PREVENT, &[]).good();
        world.server.apply(&Change::LunReset { lun: 0, by: NEXUS }).unwrap();
        assert_eq!(world.hear(NEXUS), [0x2903]);
        world.put(&EJECT, &[]).good();
        world.put(&[0x1E, 0, 0, 0, 2, 0], &[]).bad_field(4, Some(1));
    }

    /// Goal: SYNCHRONIZE CACHE flushes, whatever its range, and tells failures.
    #[test]
    fn synchronize_cache_flushes() {
        let mut world = removable();
        for cdb in [cdb10(0x35, 0, 0, 0), cdb10(0x35, 0x06, 7, 9), cdb16(0x91, 0x02, 5000, 0)] {
            assert_eq!(world.put(&cdb, &[]).good().ios, [(Op::Flush, false, 0, 0)]);
        }
        world.put(&cdb10(0x35, 0, 4999, 2), &[]).bad(0x5_2100);
        world.put(&cdb16(0x91, 0, 5001, 0), &[]).bad(0x5_2100);
    }

    /// Goal: defect lists are empty and answer what was asked for.
    #[test]
    fn defect_lists_are_empty() {
        let mut world = removable();
        let ten = world.get(&[0x37, 0, 0x18, 0, 0, 0, 0, 0, 32, 0], 32).good();
        assert_eq!((ten.data, ten.transfer_bytes), (vec![0, 0x18, 0, 0], 4));
        let twelve = world.get(&[0xB7, 0x08, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0], 32).good();
        assert_eq!(twelve.data, [0, 0x08, 0, 0, 0, 0, 0, 0]);
    }

    /// Goal: the self-test reads, and finds what can't be read.
    #[test]
    fn self_test_reads() {
        let mut world = removable();
        assert_eq!(world.get(&[0x1D, 0x04, 0, 0, 0, 0], 0).good().ios, [(Op::Read, false, 0, 128)]);
        assert_eq!(world.get(&[0x1D, 0x00, 0, 0, 0, 0], 0).good().ios, []);
        world.get(&[0x1D, 0x20, 0, 0, 0, 0], 0).bad_field(1, Some(7));
        world.put(&[0x1D, 0x10, 0, 0, 4, 0], &[0; 4]).bad_field(3, None);
        world.faults.push((Op::Read, 0..1, IoError::Medium { errno: 5 }));
        world.get(&[0x1D, 0x04, 0, 0, 0, 0], 0).bad(0x3_1100);
    }

    /// Goal: a write-protected unit refuses everything that writes, before its data length or range are looked at.
    #[test]
    fn protected_units_refuse_writes() {
        let mut world = World::of(vec![LunConfig { read_only: true, ..lun_config(0, geometry()) }]);
        let mut cdbs: Vec<Vec<u8>> = [0x2A, 0x2E, 0x41].map(|opcode| cdb10(opcode, 0, 9999, 1)).to_vec();
        cdbs.extend([0x8A, 0x8B, 0x8E, 0x93].map(|opcode| cdb16(opcode, 0, 0, 1)));
        cdbs.push(cdb10(0x41, 0x08, 0, 1));
        cdbs.push(cdb16(0x93, 0x08, 0, 1));
        cdbs.push(vec![0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0]);
        cdbs.push(vec![0x0A, 0, 0, 0, 1, 0]);
        for cdb in cdbs {
            world.put(&cdb, &[]).bad(0x7_2700);
        }
        world.get(&cdb10(0x28, 0, 0, 1), 512).good();
        world.put(&cdb10(0x35, 0, 0, 0), &[]).good();
    }
}
