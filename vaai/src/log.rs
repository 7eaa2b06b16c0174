//! LOG SENSE (SPC-4 §6.8, §7.3): the lists of pages, page 0Ch, what a thin unit's pool has, and page 2Fh, which says that
//! nothing is wrong.

use crate::cdb::{LogSenseCdb, view};
use crate::limits::THRESHOLD_SET_BYTES;
use crate::lun::LogicalUnit;
use crate::reply::{Out, ParameterData, Reply};
use crate::sense::Sense;
use crate::task::{Request, Work};

const SUPPORTED_PAGES: u8 = 0x00;
/// SBC-3 §6.3.3.
const LOGICAL_BLOCK_PROVISIONING: u8 = 0x0C;
const INFORMATIONAL_EXCEPTIONS: u8 = 0x2F;
const ALL_SUBPAGES: u8 = 0xFF;

/// Page and subpage, ascending.
const PAGES: [(u8, u8); 4] = [
    (SUPPORTED_PAGES, 0x00),
    (SUPPORTED_PAGES, ALL_SUBPAGES),
    (LOGICAL_BLOCK_PROVISIONING, 0x00),
    (INFORMATIONAL_EXCEPTIONS, 0x00),
];

/// Those that a unit has.
fn pages(unit: &LogicalUnit) -> impl Iterator<Item = (u8, u8)> {
    let has_thresholds = unit.has_thresholds();
    PAGES.into_iter().filter(move |&(page, _)| page != LOGICAL_BLOCK_PROVISIONING || has_thresholds)
}

/// LOG SENSE. All PC values show the same: nothing is counted that could have thresholds or defaults.
pub(crate) fn log_sense(request: &Request<'_>) -> Result<Work, Sense> {
    let cdb: &LogSenseCdb = view(&request.command.cdb);
    if cdb.flags & 0x01 != 0 {
        // SP: nothing can be saved.
        return Err(Sense::INVALID_FIELD_IN_CDB.cdb_bit(1, 0));
    }
    let (page, subpage) = (cdb.page & 0x3F, cdb.subpage_code);
    let unit = request.unit()?;
    if !pages(unit).any(|(known, _)| known == page) {
        return Err(Sense::INVALID_FIELD_IN_CDB.cdb_bit(2, 5));
    }
    if !pages(unit).any(|known| known == (page, subpage)) {
        return Err(Sense::INVALID_FIELD_IN_CDB.cdb_byte(3));
    }
    // The largest parameter code there is.
    let last = if page == LOGICAL_BLOCK_PROVISIONING { USED } else { 0 };
    let from = cdb.parameter_pointer.get();
    if from > last {
        return Err(Sense::INVALID_FIELD_IN_CDB.cdb_byte(5));
    }
    Ok(ParameterData::work(Reply::Log { page, subpage, from }, u32::from(cdb.allocation_length.get())))
}

/// Parameter codes of page 0Ch: available and used LBA mapping resource count.
const AVAILABLE: u16 = 1;
const USED: u16 = 2;

/// SCOPE: not dedicated to one logical unit.
const SCOPE_POOL: u8 = 0x02;

/// The parameters from `from` on.
pub(crate) fn build(page: u8, subpage: u8, from: u16, unit: &LogicalUnit, out: &mut Out<'_>) {
    // SPF with a subpage.
    out.bytes(&[page | if subpage == 0 { 0 } else { 0x40 }, subpage, 0, 0]);
    match (page, subpage) {
        (SUPPORTED_PAGES, 0) => {
            pages(unit).filter(|&(_, subpage)| subpage == 0).for_each(|(page, _)| out.bytes(&[page]));
        }
        (SUPPORTED_PAGES, _) => pages(unit).for_each(|(page, subpage)| out.bytes(&[page, subpage])),
        (LOGICAL_BLOCK_PROVISIONING, _) => {
            // Of a unit that can't be written nobody says what its pool has.
            let counts =
                unit.space.map(|space| [(AVAILABLE, space.available_bytes), (USED, space.used_bytes)]);
            for (code, bytes) in counts.into_iter().flatten().filter(|&(code, _)| code >= from) {
                let sets = u32::try_from(bytes / THRESHOLD_SET_BYTES).unwrap_or(u32::MAX);
                out.bytes(&code.to_be_bytes());
                // Binary list format.
                out.bytes(&[0x03, 8]);
                out.bytes(&sets.to_be_bytes());
                out.bytes(&[SCOPE_POOL, 0, 0, 0]);
            }
        }
        _ => {
            // Parameter 0000h, binary list format: ASC and ASCQ 00h (none), temperature not reported (SPC-4 §7.3.8).
            out.bytes(&[0x00, 0x00, 0x03, 0x04, 0x00, 0x00, 0xFF, 0x00]);
        }
    }
    let page_length = (out.len() - 4) as u16;
    out.patch(2, &page_length.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use crate::harness::{Answer, World, geometry};

    fn sense(world: &mut World, page: u8, subpage: u8) -> Answer {
        world.get(&[0x4D, 0, page, subpage, 0, 0, 0, 0, 255, 0], 255)
    }

    /// Goal: the lists name what is there, and no more is.
    #[test]
    fn listed_pages_are_there() {
        let mut world = World::new(geometry());
        assert_eq!(sense(&mut world, 0x40, 0).good().data, [0x00, 0, 0, 2, 0x00, 0x2F]);
        let all = sense(&mut world, 0x40, 0xFF).good().data;
        assert_eq!(all, [0x40, 0xFF, 0, 6, 0x00, 0x00, 0x00, 0xFF, 0x2F, 0x00]);
        let exceptions = sense(&mut world, 0x6F, 0).good().data;
        assert_eq!(exceptions, [0x2F, 0, 0, 8, 0, 0, 3, 4, 0, 0, 0xFF, 0]);
        sense(&mut world, 0x4D, 0).bad_field(2, Some(5));
        sense(&mut world, 0x6F, 1).bad_field(3, None);
        world.get(&[0x4D, 1, 0x40, 0, 0, 0, 0, 0, 255, 0], 255).bad_field(1, Some(0));
        world.get(&[0x4D, 0, 0x40, 0, 0, 0, 1, 0, 255, 0], 255).bad_field(5, None);
    }
}
