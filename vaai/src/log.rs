//! LOG SENSE (SPC-4 §6.8, §7.3): the lists of pages, and page 2Fh, which says that nothing is wrong.

use crate::cdb::{LogSenseCdb, view};
use crate::reply::{Out, ParameterData, Reply};
use crate::sense::Sense;
use crate::task::{Request, Work};

const SUPPORTED_PAGES: u8 = 0x00;
const INFORMATIONAL_EXCEPTIONS: u8 = 0x2F;
const ALL_SUBPAGES: u8 = 0xFF;

/// Page and subpage, ascending.
const PAGES: [(u8, u8); 3] =
    [(SUPPORTED_PAGES, 0x00), (SUPPORTED_PAGES, ALL_SUBPAGES), (INFORMATIONAL_EXCEPTIONS, 0x00)];

/// LOG SENSE. All PC values show the same: nothing is counted that could have thresholds or defaults.
pub(crate) fn log_sense(request: &Request<'_>) -> Result<Work, Sense> {
    let cdb: &LogSenseCdb = view(&request.command.cdb);
    if cdb.flags & 0x01 != 0 {
        // SP: nothing can be saved.
        return Err(Sense::INVALID_FIELD_IN_CDB.cdb_bit(1, 0));
    }
    let (page, subpage) = (cdb.page & 0x3F, cdb.subpage_code);
    if !PAGES.iter().any(|&(known, _)| known == page) {
        return Err(Sense::INVALID_FIELD_IN_CDB.cdb_bit(2, 5));
    }
    if !PAGES.contains(&(page, subpage)) {
        return Err(Sense::INVALID_FIELD_IN_CDB.cdb_byte(3));
    }
    // The only parameter code there is, is 0.
    if cdb.parameter_pointer.get() != 0 {
        return Err(Sense::INVALID_FIELD_IN_CDB.cdb_byte(5));
    }
    Ok(ParameterData::work(Reply::Log { page, subpage }, u32::from(cdb.allocation_length.get())))
}

pub(crate) fn build(page: u8, subpage: u8, out: &mut Out<'_>) {
    // SPF with a subpage.
    out.bytes(&[page | if subpage == 0 { 0 } else { 0x40 }, subpage, 0, 0]);
    match (page, subpage) {
        (SUPPORTED_PAGES, 0) => {
            PAGES.iter().filter(|(_, subpage)| *subpage == 0).for_each(|&(page, _)| out.bytes(&[page]));
        }
        (SUPPORTED_PAGES, _) => PAGES.iter().for_each(|&(page, subpage)| out.bytes(&[page, subpage])),
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
