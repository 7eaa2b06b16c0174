//! The one table of commands: opcode, service action, CDB length, the bits that may be set, what has to hold, time-outs
//! and handler. What REPORT SUPPORTED OPERATION CODES says and what is checked is the same row.

use crate::cdb::Cdb;
use crate::copy::{self, results};
use crate::lun::LogicalUnit;
use crate::reservation::{self, Class};
use crate::sense::Sense;
use crate::task::{Request, Work};
use crate::{
    capacity, compare_and_write, inquiry, lba_status, log, medium, mode, mode_select, report, rw, token,
    unmap, write_atomic, write_same,
};
use bdev::shard::tokens_of;

/// REQUEST SENSE, which takes a unit attention as data and so is not like the others.
pub(crate) const REQUEST_SENSE: u8 = 0x03;

/// Which LUN fields a command works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// Any, also where no unit is; a unit attention does not stop it.
    Anywhere,
    /// Units and the well-known one.
    UnitOrWellKnown,
    /// Units.
    Unit,
}

/// Which units know a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum For {
    All,
    /// Units that can give space back.
    Thin,
    /// Units whose medium can be ejected.
    Removable,
    /// Volumes of pools.
    Pooled,
    /// Units that have atomic writes.
    Atomic,
}

type Handler = for<'a> fn(&Request<'a>) -> Result<Work, Sense>;

/// One command.
#[allow(clippy::struct_field_names, reason = "the standard's word for the row's first byte")]
pub(crate) struct Opcode {
    pub(crate) opcode: u8,
    /// Byte 1, bits 4 to 0.
    pub(crate) service_action: Option<u8>,
    pub(crate) cdb_bytes: u8,
    /// CDB USAGE DATA but for the opcode and service action.
    usage: Cdb,
    /// Bits that may not be set, of all 16 bytes: what `usage` says, for those who have nothing wrong.
    forbidden: u128,
    pub(crate) reach: Reach,
    known_to: For,
    /// NOT READY without a medium.
    pub(crate) needs_medium: bool,
    /// DATA PROTECT on a protected unit.
    pub(crate) writes: bool,
    /// Which reservations stop it; `reservation/conflict.rs` has a row for each.
    pub(crate) class: Class,
    /// NOMINAL COMMAND PROCESSING TIMEOUT.
    pub(crate) nominal_s: u32,
    /// RECOMMENDED COMMAND TIMEOUT.
    pub(crate) recommended_s: u32,
    pub(crate) handler: Handler,
}

impl std::fmt::Debug for Opcode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Opcode({:02X}h, {:?})", self.opcode, self.service_action)
    }
}

const SERVICE_ACTION: u8 = 0x1F;
const NACA: u8 = 0x04;

impl Opcode {
    /// Whether a unit knows the command.
    pub(crate) fn is_for(&self, unit: &LogicalUnit) -> bool {
        match self.known_to {
            For::All => true,
            For::Thin => unit.geometry().is_thin(),
            For::Removable => unit.config.removable,
            For::Atomic => unit.geometry().atomic_bytes != 0,
            For::Pooled => tokens_of(unit.config.bdev).is_some(),
        }
    }

    /// What a unit says that doesn't know the command.
    pub(crate) fn unknown(&self) -> Sense {
        match self.service_action {
            Some(_) => Sense::INVALID_FIELD_IN_CDB.cdb_bit(1, 4),
            None => Sense::INVALID_COMMAND_OPERATION_CODE,
        }
    }

    /// CDB USAGE DATA.
    pub(crate) fn usage_data(&self) -> Cdb {
        let mut usage = self.usage;
        usage[0] = self.opcode;
        usage[1] |= self.service_action.unwrap_or(0);
        usage
    }

    /// Whether only bits are set that mean something here.
    ///
    /// # Errors
    /// INVALID FIELD IN CDB at the leftmost bit of the field that the first wrong bit belongs to.
    #[inline]
    pub(crate) fn check_usage(&self, cdb: &Cdb) -> Result<(), Sense> {
        // The rule, and on the way of every IO.
        if u128::from_be_bytes(*cdb) & self.forbidden == 0 {
            return Ok(());
        }
        self.find_wrong_bit(cdb)
    }

    #[cold]
    fn find_wrong_bit(&self, cdb: &Cdb) -> Result<(), Sense> {
        let control = usize::from(self.cdb_bytes) - 1;
        if cdb[control] & NACA != 0 {
            return Err(Sense::INVALID_FIELD_IN_CDB.cdb_bit(control as u16, 2));
        }
        let bytes = cdb.iter().zip(self.usage).enumerate().take(usize::from(self.cdb_bytes)).skip(1);
        for (at, (&byte, mut allowed)) in bytes {
            if at == 1 && self.service_action.is_some() {
                allowed |= SERVICE_ACTION;
            }
            let wrong = byte & !allowed;
            if wrong != 0 {
                let mut bit = 7 - wrong.leading_zeros() as u8;
                while bit < 7 && allowed & 1 << (bit + 1) == 0 {
                    bit += 1;
                }
                return Err(Sense::INVALID_FIELD_IN_CDB.cdb_bit(at as u16, bit));
            }
        }
        Ok(())
    }
}

/// A row that works on units and needs no medium; the `const fn`s below change that.
const fn row(
    opcode: u8,
    cdb_bytes: u8,
    usage_behind_opcode: &[u8],
    recommended_s: u32,
    handler: Handler,
) -> Opcode {
    assert!(usage_behind_opcode.len() + 1 == cdb_bytes as usize);
    let mut usage = [0; 16];
    let mut at = 0;
    while at < usage_behind_opcode.len() {
        usage[at + 1] = usage_behind_opcode[at];
        at += 1;
    }
    Opcode {
        opcode,
        service_action: None,
        cdb_bytes,
        usage,
        forbidden: 0,
        reach: Reach::Unit,
        known_to: For::All,
        needs_medium: false,
        writes: false,
        class: Class::Never,
        nominal_s: 1,
        recommended_s,
        handler,
    }
}

impl Opcode {
    const fn service_action(self, service_action: u8) -> Opcode {
        assert!(service_action <= SERVICE_ACTION);
        Opcode { service_action: Some(service_action), ..self }
    }

    const fn reaching(self, reach: Reach) -> Opcode {
        Opcode { reach, ..self }
    }

    const fn known_to(self, known_to: For) -> Opcode {
        Opcode { known_to, ..self }
    }

    /// Works on the medium.
    const fn reads(self) -> Opcode {
        Opcode { needs_medium: true, ..self }
    }

    /// Changes the medium.
    const fn writes(self) -> Opcode {
        Opcode { needs_medium: true, writes: true, ..self }
    }

    /// May take long by its nature.
    const fn nominal(self, nominal_s: u32) -> Opcode {
        Opcode { nominal_s, ..self }
    }
}

/// CONTROL: NACA is looked at, and refused, since NORMACA=0 (SAM-5 §5.2). The rest is not for us.
const C: u8 = NACA;
/// A byte that may be anything.
const F: u8 = 0xFF;
/// GROUP NUMBER, which is taken and not used.
const G: u8 = 0x3F;
/// DPO, FUA and the obsolete FUA_NV; for READ also RARC, which a device without rebuild assist ignores.
const READ: u8 = 0x1E;
const WRITE: u8 = 0x1A;
/// DPO, BYTCHK.
const VERIFY: u8 = 0x16;
/// IMMED, and SYNC_NV for SYNCHRONIZE CACHE.
const IMMED: u8 = 0x02;
const SYNC: u8 = 0x06;
/// ANCHOR, UNMAP, and NDOB in the 16-byte CDB.
const SAME_10: u8 = 0x18;
const SAME_16: u8 = 0x19;

/// Ascending by opcode and service action.
#[rustfmt::skip]
static TABLE: [Opcode; 73] = classed([
    row(0x00, 6, &[0, 0, 0, 0, C], 5, medium::test_unit_ready).reads().reaching(Reach::UnitOrWellKnown),
    row(REQUEST_SENSE, 6, &[0x01, 0, 0, F, C], 5, report::request_sense).reaching(Reach::Anywhere),
    row(0x08, 6, &[0x1F, F, F, F, C], 30, rw::read).reads(),
    row(0x0A, 6, &[0x1F, F, F, F, C], 30, rw::write).writes(),
    row(0x12, 6, &[0x01, F, F, F, C], 5, inquiry::inquiry).reaching(Reach::Anywhere),
    row(0x15, 6, &[0x11, 0, 0, F, C], 10, mode_select::mode_select_6),
    row(0x16, 6, &[0, 0, 0, 0, C], 10, reservation::reserve),
    row(0x17, 6, &[0, 0, 0, 0, C], 10, reservation::release),
    row(0x1A, 6, &[0x08, F, F, F, C], 10, mode::mode_sense_6),
    row(0x1B, 6, &[0x01, 0, 0x0F, 0xF7, C], 30, medium::start_stop_unit),
    row(0x1D, 6, &[0xF7, 0, F, F, C], 30, medium::send_diagnostic),
    row(0x1E, 6, &[0, 0, 0, 0x03, C], 10, medium::prevent_allow_medium_removal).known_to(For::Removable),
    row(0x25, 10, &[0, F, F, F, F, 0, 0, 0x01, C], 5, capacity::read_capacity_10).reads(),
    row(0x28, 10, &[READ, F, F, F, F, G, F, F, C], 30, rw::read).reads(),
    row(0x2A, 10, &[WRITE, F, F, F, F, G, F, F, C], 30, rw::write).writes(),
    row(0x2E, 10, &[VERIFY, F, F, F, F, G, F, F, C], 60, rw::write_and_verify).writes(),
    row(0x2F, 10, &[VERIFY, F, F, F, F, G, F, F, C], 60, rw::verify).reads(),
    row(0x34, 10, &[IMMED, F, F, F, F, G, F, F, C], 30, rw::pre_fetch).reads(),
    row(0x35, 10, &[SYNC, F, F, F, F, G, F, F, C], 60, medium::synchronize_cache).reads(),
    row(0x37, 10, &[0, 0x1F, 0, 0, 0, 0, F, F, C], 10, medium::read_defect_data_10).reads(),
    row(0x41, 10, &[SAME_10, F, F, F, F, G, F, F, C], 60, write_same::write_same).writes().nominal(10),
    row(0x42, 10, &[0x01, 0, 0, 0, 0, G, F, F, C], 60, unmap::unmap).writes().known_to(For::Thin),
    row(0x4D, 10, &[0x01, F, F, 0, F, F, F, F, C], 10, log::log_sense),
    row(0x55, 10, &[0x11, 0, 0, 0, 0, 0, F, F, C], 10, mode_select::mode_select_10),
    row(0x56, 10, &[0, 0, 0, 0, 0, 0, 0, 0, C], 10, reservation::reserve),
    row(0x57, 10, &[0, 0, 0, 0, 0, 0, 0, 0, C], 10, reservation::release),
    row(0x5A, 10, &[0x18, F, F, 0, 0, 0, F, F, C], 10, mode::mode_sense_10),
    reserve_in(0x00), reserve_in(0x01), reserve_in(0x02), reserve_in(0x03),
    reserve_out(0x00), reserve_out(0x01), reserve_out(0x02), reserve_out(0x03),
    reserve_out(0x04), reserve_out(0x05), reserve_out(0x06), reserve_out(0x07),
    row(0x83, 16, &[0, 0, 0, 0, 0, 0, 0, 0, 0, F, F, F, F, 0, C], 60, copy::extended_copy)
        .service_action(copy::LID1).reads().nominal(10),
    row(0x83, 16, &[0, 0, 0, 0, 0, 0, 0, 0, 0, F, F, F, F, 0, C], 60, copy::extended_copy)
        .service_action(copy::LID4).reads().nominal(10),
    row(0x83, 16, &[0, 0, 0, 0, 0, F, F, F, F, F, F, F, F, G, C], 60, token::token_copy)
        .service_action(token::POPULATE).reads().known_to(For::Pooled).nominal(4),
    row(0x83, 16, &[0, 0, 0, 0, 0, F, F, F, F, F, F, F, F, G, C], 60, token::token_copy)
        .service_action(token::WRITE_USING).writes().nominal(4),
    row(0x83, 16, &[0, F, F, F, F, 0, 0, 0, 0, 0, 0, 0, 0, 0, C], 10, copy::copy_operation_abort)
        .service_action(copy::ABORT),
    row(0x84, 16, &[0, F, 0, 0, 0, 0, 0, 0, 0, F, F, F, F, 0, C], 10, results::receive_copy_results)
        .service_action(results::STATUS_LID1),
    row(0x84, 16, &[0, F, 0, 0, 0, 0, 0, 0, 0, F, F, F, F, 0, C], 10, results::receive_copy_results)
        .service_action(results::DATA_LID1),
    row(0x84, 16, &[0, 0, 0, 0, 0, 0, 0, 0, 0, F, F, F, F, 0, C], 10, results::receive_copy_results)
        .service_action(results::OPERATING_PARAMETERS),
    row(0x84, 16, &[0, F, 0, 0, 0, 0, 0, 0, 0, F, F, F, F, 0, C], 10, results::receive_copy_results)
        .service_action(results::FAILED_SEGMENT_DETAILS),
    row(0x84, 16, &[0, F, F, F, F, 0, 0, 0, 0, F, F, F, F, 0, C], 10, results::receive_copy_results)
        .service_action(results::STATUS_LID4),
    row(0x84, 16, &[0, F, F, F, F, 0, 0, 0, 0, F, F, F, F, 0, C], 10, results::receive_copy_results)
        .service_action(results::DATA_LID4),
    row(0x84, 16, &[0, F, F, F, F, 0, 0, 0, 0, F, F, F, F, 0, C], 10, results::receive_copy_results)
        .service_action(token::RECEIVE_INFORMATION),
    row(0x84, 16, &[0, 0, 0, 0, 0, 0, 0, 0, 0, F, F, F, F, 0, C], 10, token::report_all_rod_tokens)
        .service_action(token::REPORT_ALL),
    row(0x88, 16, &[READ, F, F, F, F, F, F, F, F, F, F, F, F, G, C], 30, rw::read).reads(),
    row(0x89, 16, &[0x18, F, F, F, F, F, F, F, F, 0, 0, 0, F, G, C], 10, compare_and_write::compare_and_write)
        .writes(),
    row(0x8A, 16, &[WRITE, F, F, F, F, F, F, F, F, F, F, F, F, G, C], 30, rw::write).writes(),
    row(0x8B, 16, &[0x18, F, F, F, F, F, F, F, F, F, F, F, F, G, C], 30, rw::or_write).writes(),
    row(0x8E, 16, &[VERIFY, F, F, F, F, F, F, F, F, F, F, F, F, G, C], 60, rw::write_and_verify).writes(),
    row(0x8F, 16, &[VERIFY, F, F, F, F, F, F, F, F, F, F, F, F, G, C], 60, rw::verify).reads(),
    row(0x90, 16, &[IMMED, F, F, F, F, F, F, F, F, F, F, F, F, G, C], 30, rw::pre_fetch).reads(),
    row(0x91, 16, &[SYNC, F, F, F, F, F, F, F, F, F, F, F, F, G, C], 60, medium::synchronize_cache).reads(),
    row(0x93, 16, &[SAME_16, F, F, F, F, F, F, F, F, F, F, F, F, G, C], 60, write_same::write_same)
        .writes().nominal(10),
    row(0x9C, 16, &[WRITE, F, F, F, F, F, F, F, F, 0, 0, F, F, G, C], 30, write_atomic::write_atomic)
        .writes().known_to(For::Atomic),
    row(0x9E, 16, &[0, F, F, F, F, F, F, F, F, F, F, F, F, 0x01, C], 5, capacity::read_capacity_16)
        .service_action(0x10).reads(),
    row(0x9E, 16, &[0, F, F, F, F, F, F, F, F, F, F, F, F, 0, C], 30, lba_status::get_lba_status)
        .service_action(0x12).reads(),
    row(0xA0, 12, &[0, F, 0, 0, 0, F, F, F, F, 0, C], 5, report::report_luns).reaching(Reach::Anywhere),
    row(0xA3, 12, &[0xE0, 0, 0, 0, 0, F, F, F, F, 0, C], 5, report::report_target_port_groups)
        .service_action(0x0A),
    row(0xA3, 12, &[0, 0x87, F, F, F, F, F, F, F, 0, C], 5, report::report_operation_codes)
        .service_action(0x0C),
    row(0xA3, 12, &[0, 0x80, 0, 0, 0, F, F, F, F, 0, C], 5, report::report_task_management_functions)
        .service_action(0x0D),
    row(0xA8, 12, &[READ, F, F, F, F, F, F, F, F, G, C], 30, rw::read).reads(),
    row(0xAA, 12, &[WRITE, F, F, F, F, F, F, F, F, G, C], 30, rw::write).writes(),
    row(0xAE, 12, &[VERIFY, F, F, F, F, F, F, F, F, G, C], 60, rw::write_and_verify).writes(),
    row(0xAF, 12, &[VERIFY, F, F, F, F, F, F, F, F, G, C], 60, rw::verify).reads(),
    row(0xB7, 12, &[0x1F, F, F, F, F, F, F, F, F, 0, C], 10, medium::read_defect_data_12).reads(),
]);

/// PERSISTENT RESERVE IN.
const fn reserve_in(service_action: u8) -> Opcode {
    row(0x5E, 10, &[0, 0, 0, 0, 0, 0, F, F, C], 10, reservation::persistent_reserve_in)
        .service_action(service_action)
}

/// PERSISTENT RESERVE OUT.
const fn reserve_out(service_action: u8) -> Opcode {
    row(0x5F, 10, &[0, F, 0, 0, F, F, F, F, C], 30, reservation::persistent_reserve_out)
        .service_action(service_action)
}

/// Every row with its class; a command without one ends the compilation.
const fn classed<const ROWS: usize>(mut rows: [Opcode; ROWS]) -> [Opcode; ROWS] {
    let mut at = 0;
    while at < ROWS {
        rows[at].class = Class::of(rows[at].opcode, rows[at].service_action);
        rows[at].forbidden = forbidden(&rows[at]);
        at += 1;
    }
    rows
}

/// What a row's CDB may not have set: NACA, which is looked at and refused, and all of its bytes that its usage leaves out.
const fn forbidden(row: &Opcode) -> u128 {
    let mut allowed = row.usage;
    allowed[0] = 0xFF;
    if row.service_action.is_some() {
        allowed[1] |= SERVICE_ACTION;
    }
    let mut at = row.cdb_bytes as usize;
    allowed[at - 1] &= !NACA;
    while at < allowed.len() {
        // Behind the CDB: no field.
        allowed[at] = 0xFF;
        at += 1;
    }
    !u128::from_be_bytes(allowed)
}

/// No row.
const NONE: u8 = 0xFF;

/// Where in the table the rows of an opcode begin.
static FIRST: [u8; 256] = first_rows();

const fn first_rows() -> [u8; 256] {
    let mut first = [NONE; 256];
    let mut row = TABLE.len();
    while row > 0 {
        row -= 1;
        first[TABLE[row].opcode as usize] = row as u8;
    }
    first
}

/// Every command, in ascending order.
pub(crate) fn all() -> impl Iterator<Item = &'static Opcode> + Clone {
    TABLE.iter()
}

/// The row of a CDB.
///
/// # Errors
/// INVALID COMMAND OPERATION CODE; or INVALID FIELD IN CDB at the service action.
pub(crate) fn find(cdb: &Cdb) -> Result<&'static Opcode, Sense> {
    let rows = TABLE.get(usize::from(FIRST[usize::from(cdb[0])])..).unwrap_or_default();
    let Some(first) = rows.first() else {
        return Err(Sense::INVALID_COMMAND_OPERATION_CODE);
    };
    if first.service_action.is_none() {
        return Ok(first);
    }
    rows.iter()
        .take_while(|row| row.opcode == cdb[0])
        .find(|row| row.service_action == Some(cdb[1] & SERVICE_ACTION))
        .ok_or(Sense::INVALID_FIELD_IN_CDB.cdb_bit(1, 4))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::{World, geometry, versatile};
    use bdev::geometry::Geometry;

    /// A unit that knows every command.
    fn world() -> World {
        World::of(vec![versatile(0)])
    }

    /// Goal: the table is in order, so that its rows are found and reported in order.
    #[test]
    fn rows_ascend() {
        let keys: Vec<_> = all().map(|row| (row.opcode, row.service_action)).collect();
        assert!(keys.is_sorted());
        for row in all() {
            let mut cdb = [0; 16];
            cdb[0] = row.opcode;
            cdb[1] = row.service_action.unwrap_or(0);
            assert!(std::ptr::eq(find(&cdb).unwrap(), row));
        }
    }

    /// Goal: the short look and the long one say the same. Method: each command with each bit set that there is, alone.
    #[test]
    fn looks_agree() {
        for row in all() {
            for bit in 0..128 {
                let mut cdb = (1u128 << bit).to_be_bytes();
                cdb[0] = row.opcode;
                assert_eq!(row.check_usage(&cdb), row.find_wrong_bit(&cdb), "{row:?} {bit}");
            }
        }
    }

    /// Goal: each command, with as little in it as can be, ends in GOOD.
    #[test]
    fn every_command_ends_in_good() {
        for row in all() {
            let mut cdb = vec![0; usize::from(row.cdb_bytes)];
            cdb[0] = row.opcode;
            cdb[1] = row.service_action.unwrap_or(0);
            let data_bytes = match row.opcode {
                0x0A => 256 * 512,
                0x41 | 0x93 => 512,
                0x5F => 24,
                _ => 0,
            };
            match row.opcode {
                // All pages.
                0x1A | 0x5A => cdb[2] = 0x3F,
                // An allocation length of at least 4 is wanted.
                0xA3 => cdb[9] = 8,
                // A list of 24 bytes; all but those that register are for registrants.
                0x5F if matches!(row.service_action, Some(0x00 | 0x06)) => cdb[8] = 24,
                0x5F => continue,
                _ => {}
            }
            // What asks about a copy, or ends one, needs one.
            let asks_of_copy = match (row.opcode, row.service_action) {
                (0x83, action) => action == Some(copy::ABORT),
                (0x84, Some(results::OPERATING_PARAMETERS | token::REPORT_ALL)) => false,
                (0x84, _) => true,
                _ => false,
            };
            let answer = world().put(&cdb, &vec![0; data_bytes]);
            if asks_of_copy {
                answer.bad_field(2, None)
            } else {
                answer.good()
            };
        }
    }

    /// Goal: a bit that the usage data does not show is refused, and the field pointer leads to it. Method: set
    /// each bit of each command in turn.
    #[test]
    fn unknown_bits_are_refused() {
        let mut world = world();
        for row in all() {
            let usage = row.usage_data();
            for at in 1..usize::from(row.cdb_bytes) {
                let is_control = at + 1 == usize::from(row.cdb_bytes);
                for bit in 0..8 {
                    let is_service_action = at == 1 && row.service_action.is_some() && bit < 5;
                    let is_naca = is_control && bit == 2;
                    if (usage[at] & 1 << bit != 0 && !is_naca) || is_service_action {
                        continue;
                    }
                    let mut cdb = vec![0; usize::from(row.cdb_bytes)];
                    cdb[0] = row.opcode;
                    cdb[1] = row.service_action.unwrap_or(0);
                    cdb[at] |= 1 << bit;
                    let answer = world.put(&cdb, &[]).bad(0x5_2400);
                    let Some((true, byte, Some(pointed))) = answer.pointer() else {
                        panic!("no pointer: {cdb:02X?} {answer:02X?}");
                    };
                    assert!(usize::from(byte) == at && pointed >= bit, "{cdb:02X?}");
                }
            }
        }
    }

    /// Goal: what is not in the table is refused as the suite recognises it.
    #[test]
    fn unknown_commands_are_refused() {
        let mut world = world();
        for opcode in 0..=255 {
            if all().all(|row| row.opcode != opcode) {
                world.put(&[opcode, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[]).bad(0x5_2000);
            }
        }
        for opcode in [0x9E, 0xA3] {
            world.put(&[opcode, 0x1F], &[]).bad_field(1, Some(4));
        }
    }

    /// Goal: commands that a unit can't carry out are unknown to it.
    #[test]
    fn units_know_what_they_can_do() {
        let mut plain = World::new(Geometry { unmap_granularity_bytes: 0, ..geometry() });
        plain.put(&[0x42, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[]).bad(0x5_2000);
        plain.put(&[0x1E, 0, 0, 0, 1, 0], &[]).bad(0x5_2000);
        plain.put(&[0x83, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[]).bad_field(1, Some(4));
    }
}
