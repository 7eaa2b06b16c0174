//! MODE SELECT(6) and (10) (SPC-4 §6.11, §6.12): the list is checked whole, then every core makes the change.

use crate::cdb::be16;
use crate::change::{Applied, Change, ModeParameters};
use crate::command::Effect;
use crate::lun::LogicalUnit;
use crate::mode::{D_SENSE, Page, SWP};
use crate::sense::Sense;
use crate::server::DeviceServer;
use crate::task::{End, Head, Moves, Request, Spent, Step, Work};
use bdev::geometry::Geometry;
use reactor::buf::Buf;

/// A MODE SELECT under way.
#[derive(Debug)]
pub(crate) struct ModeSelect {
    ten: bool,
    list_bytes: u32,
    asked: bool,
    list: Option<Buf>,
    /// The list is right, and the change is with the other cores.
    proposed: bool,
    result: Option<Result<(), Sense>>,
}

/// MODE SELECT(6).
pub(crate) fn mode_select_6(request: &Request<'_>) -> Result<Work, Sense> {
    mode_select(request, false, u32::from(request.command.cdb[4]))
}

/// MODE SELECT(10).
pub(crate) fn mode_select_10(request: &Request<'_>) -> Result<Work, Sense> {
    mode_select(request, true, be16(&request.command.cdb, 7))
}

fn mode_select(request: &Request<'_>, ten: bool, list_bytes: u32) -> Result<Work, Sense> {
    let flags = request.command.cdb[1];
    // SP: nothing can be saved. PF=0: pages of a vendor's own, of which there are none.
    if flags & 0x01 != 0 {
        return Err(Sense::INVALID_FIELD_IN_CDB.cdb_bit(1, 0));
    }
    if list_bytes == 0 {
        return Ok(Work::End(End::GOOD));
    }
    if flags & 0x10 == 0 {
        return Err(Sense::INVALID_FIELD_IN_CDB.cdb_bit(1, 4));
    }
    if request.command.data_out_bytes < list_bytes {
        return Err(Sense::INVALID_FIELD_IN_COMMAND_INFORMATION_UNIT);
    }
    Ok(Work::ModeSelect(ModeSelect {
        ten,
        list_bytes,
        asked: false,
        list: None,
        proposed: false,
        result: None,
    }))
}

impl ModeSelect {
    pub(crate) fn poll(&mut self, head: &Head, spent: &mut Spent, server: &DeviceServer) -> Step {
        if !self.asked {
            self.asked = true;
            return Step::Effect(Effect::WantData { bytes: self.list_bytes });
        }
        if let Some(list) = self.list.take() {
            let parameters = match head.lun.and_then(|lun| server.unit(lun)) {
                Some(unit) => parse(&list, self.ten, unit).map(|parameters| (unit, parameters)),
                None => Err(Sense::LOGICAL_UNIT_NOT_SUPPORTED),
            };
            spent.push(list);
            match parameters {
                Err(sense) => self.result = Some(Err(sense)),
                Ok((unit, parameters)) if parameters == unit.mode => self.result = Some(Ok(())),
                Ok((unit, parameters)) => {
                    self.proposed = true;
                    let (lun, by) = (unit.config.lun, head.nexus);
                    return Step::Effect(Effect::Propose(Change::ModeSelect { lun, by, parameters }));
                }
            }
        }
        match self.result {
            None => Step::Wait,
            Some(result) => {
                Step::End(End { result, moves: Moves::Out, transfer_bytes: u64::from(self.list_bytes) })
            }
        }
    }

    pub(crate) fn list_bytes(&self) -> u32 {
        self.list_bytes
    }

    /// Takes the list; gives it back if it is not wanted.
    pub(crate) fn data_out(&mut self, buf: Buf) -> Option<Buf> {
        let is_wanted = self.asked && !self.proposed && self.result.is_none();
        if is_wanted { self.list.replace(buf) } else { Some(buf) }
    }

    pub(crate) fn decreed(&mut self, applied: Applied) {
        self.result = Some(applied);
    }

    pub(crate) fn release(&mut self, spent: &mut Spent) {
        spent.extend(self.list.take());
    }
}

/// What the parameters are after this list: header, block descriptor, pages in any order.
fn parse(list: &[u8], ten: bool, unit: &LogicalUnit) -> Result<ModeParameters, Sense> {
    let header_bytes = if ten { 8 } else { 4 };
    if list.len() < header_bytes {
        return Err(Sense::PARAMETER_LIST_LENGTH_ERROR);
    }
    // MODE DATA LENGTH is reserved here, MEDIUM TYPE is 0 for block devices, WP and DPOFUA are not for us to be told.
    let (descriptor_bytes, long_lba, length_at) = if ten {
        (usize::from(u16::from_be_bytes([list[6], list[7]])), list[4] & 0x01 != 0, 6)
    } else {
        (usize::from(list[3]), false, 3)
    };
    let mut at = header_bytes;
    if descriptor_bytes != 0 {
        if descriptor_bytes != if long_lba { 16 } else { 8 } {
            return Err(Sense::INVALID_FIELD_IN_PARAMETER_LIST.list_byte(length_at));
        }
        let Some(descriptor) = list.get(at..at + descriptor_bytes) else {
            return Err(Sense::PARAMETER_LIST_LENGTH_ERROR);
        };
        check_block_descriptor(descriptor, unit.geometry())
            .map_err(|offset| Sense::INVALID_FIELD_IN_PARAMETER_LIST.list_byte((at + offset) as u16))?;
        at += descriptor_bytes;
    }
    let mut parameters = unit.mode;
    while at < list.len() {
        at += parse_page(&list[at..], at, unit, &mut parameters)?;
    }
    Ok(parameters)
}

/// Capacity and block length can't be changed: they are what they are, or "leave it" (0, or all ones for the
/// capacity). Otherwise the offset of what is wrong.
fn check_block_descriptor(descriptor: &[u8], geometry: &Geometry) -> Result<(), usize> {
    let (count, length_at) = if descriptor.len() == 16 { (8, 12) } else { (4, 5) };
    let blocks = number(&descriptor[..count]);
    let all_ones = u64::MAX >> (64 - 8 * count);
    if blocks != 0 && blocks != all_ones && blocks != geometry.blocks {
        return Err(0);
    }
    let block_bytes = number(&descriptor[length_at..]);
    if block_bytes != 0 && block_bytes != u64::from(geometry.block_bytes) {
        return Err(length_at);
    }
    Ok(())
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |number, &byte| number << 8 | u64::from(byte))
}

/// Reads the page that `list` begins with, `at` bytes into the whole list. How long it is.
fn parse_page(
    list: &[u8],
    at: usize,
    unit: &LogicalUnit,
    parameters: &mut ModeParameters,
) -> Result<usize, Sense> {
    let wrong = |offset: usize| Sense::INVALID_FIELD_IN_PARAMETER_LIST.list_byte((at + offset) as u16);
    let (code, has_subpage) = (list[0] & 0x3F, list[0] & 0x40 != 0);
    let subcode = if has_subpage { *list.get(1).ok_or(Sense::PARAMETER_LIST_LENGTH_ERROR)? } else { 0 };
    let page = Page::ALL
        .into_iter()
        .filter(|page| page.is_of(unit))
        .find(|page| page.codes() == (code, subcode) && has_subpage == (page.header_bytes() == 4));
    let Some(page) = page else { return Err(wrong(0)) };
    let current = page.image(unit, *parameters);
    let Some(sent) = list.get(..current.len()) else {
        return Err(Sense::PARAMETER_LIST_LENGTH_ERROR);
    };
    let header_bytes = page.header_bytes();
    if sent[1..header_bytes] != current[1..header_bytes] {
        // PAGE LENGTH, as MODE SENSE has it.
        return Err(wrong(if has_subpage { 2 } else { 1 }));
    }
    let changeable = page.changeable();
    for offset in header_bytes..current.len() {
        let changed = (sent[offset] ^ current[offset]) & !changeable[offset];
        if changed != 0 {
            let bit = 7 - changed.leading_zeros() as u8;
            return Err(Sense::INVALID_FIELD_IN_PARAMETER_LIST.list_bit((at + offset) as u16, bit));
        }
    }
    if page == Page::Control {
        parameters.descriptor_sense = sent[2] & D_SENSE != 0;
        parameters.software_write_protect = sent[4] & SWP != 0;
    }
    Ok(current.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::{NEXUS, OTHER, World, cdb10, geometry};

    /// The control page as MODE SENSE has it, behind a MODE SELECT(6) header without block descriptor.
    fn control_list(world: &mut World) -> Vec<u8> {
        let data = world.get(&[0x1A, 0x08, 0x0A, 0, 255, 0], 255).good().data;
        let mut list = vec![0; 4];
        list.extend_from_slice(&data[4..]);
        list
    }

    fn select_6(world: &mut World, list: &[u8]) -> crate::harness::Answer {
        world.put(&[0x15, 0x10, 0, 0, list.len() as u8, 0], list)
    }

    /// Goal: SWP protects until it is cleared, the other nexuses hear of it once, the one who did it does not.
    #[test]
    fn software_write_protect_protects() {
        let mut world = World::new(geometry());
        let changeable = world.get(&[0x1A, 0x08, 0x4A, 0, 255, 0], 255).good().data;
        assert_eq!(changeable[4..], [0x0A, 0x0A, 0x04, 0, 0x08, 0, 0, 0, 0, 0, 0, 0]);
        let mut list = control_list(&mut world);
        list[8] |= SWP;
        select_6(&mut world, &list).good();
        assert_eq!(control_list(&mut world), list);
        assert_eq!(world.get(&[0x1A, 0, 0x0A, 0, 255, 0], 255).good().data[2], 0x90);
        assert_eq!(world.run_as(OTHER, 0, &[0; 6], 0, &[]).bad(0x6_2A01).ios, []);
        assert_eq!((world.hear(OTHER), world.hear(NEXUS)), (vec![], vec![]));
        world.get(&cdb10(0x28, 0, 0, 1), 512).good();
        world.put(&cdb10(0x2A, 0, 0, 1), &[0; 512]).bad(0x7_2702);
        select_6(&mut world, &list).good();
        assert_eq!(world.hear(OTHER), [], "nothing changed");
        list[8] &= !SWP;
        select_6(&mut world, &list).good();
        world.put(&cdb10(0x2A, 0, 0, 1), &[0; 512]).good();
    }

    /// Goal: D_SENSE turns all sense data of the unit into descriptors, and a reset turns them back.
    #[test]
    fn descriptor_sense_is_heeded() {
        let mut world = World::new(geometry());
        let mut list = control_list(&mut world);
        list[6] |= D_SENSE;
        select_6(&mut world, &list).good();
        assert_eq!(world.get(&[0xFF, 0, 0, 0, 0, 0], 0).bad(0x5_2000).sense[0], 0x72);
        let answer = world.get(&cdb10(0x28, 0, 6000, 1), 512).bad(0x5_2100);
        assert_eq!(answer.sense[8..20], [0, 10, 0x80, 0, 0, 0, 0, 0, 0, 0, 0x17, 0x70]);
        world.server.apply(&Change::LunReset { lun: 0, by: OTHER }).unwrap();
        assert_eq!(world.get(&[0; 6], 0).bad(0x6_2903).sense[0], 0x70);
    }

    /// Goal: both lengths, a block descriptor, and several pages in one list are taken.
    #[test]
    fn lists_of_every_form_are_taken() {
        let mut world = World::new(geometry());
        let data = world.get(&[0x5A, 0, 0x3F, 0xFF, 0, 0, 0, 1, 0, 0], 256).good().data;
        let mut list = data;
        list[0..2].fill(0);
        let [high, low] = (list.len() as u16).to_be_bytes();
        let select_10 = [0x55, 0x10, 0, 0, 0, 0, 0, high, low, 0];
        world.put(&select_10, &list).good();
        list[8..12].fill(0xFF);
        world.put(&select_10, &list).good();
        list[8..16].fill(0);
        world.put(&select_10, &list).good();
        world.put(&[0x15, 0x10, 0, 0, 0, 0], &[]).good();
        select_6(&mut world, &[0; 4]).good();
    }

    /// Goal: what can't be changed is refused with a pointer to the very bit, and nothing is changed.
    #[test]
    fn other_fields_are_refused() {
        let mut world = World::new(geometry());
        let right = control_list(&mut world);
        for at in 6..right.len() {
            for bit in 0..8 {
                let mut list = right.clone();
                list[at] ^= 1 << bit;
                list[6] ^= if at == 6 { 0 } else { D_SENSE };
                let is_changeable = (at, bit) == (6, 2) || (at, bit) == (8, 3);
                if !is_changeable {
                    let answer = select_6(&mut world, &list).bad(0x5_2600);
                    assert_eq!(answer.pointer(), Some((false, at as u16, Some(bit))));
                }
            }
        }
        assert_eq!(control_list(&mut world), right);
        let mut wrong_length = right.clone();
        wrong_length[5] = 9;
        assert_eq!(select_6(&mut world, &wrong_length).bad(0x5_2600).pointer(), Some((false, 5, None)));
        let mut wrong_page = right.clone();
        wrong_page[4] = 0x3E;
        assert_eq!(select_6(&mut world, &wrong_page).bad(0x5_2600).pointer(), Some((false, 4, None)));
        let mut wrong_descriptor = right.clone();
        wrong_descriptor[3] = 7;
        assert_eq!(select_6(&mut world, &wrong_descriptor).bad(0x5_2600).pointer(), Some((false, 3, None)));
        let with_size = [0, 0, 0, 8, 0, 0, 0, 1, 0, 0, 2, 0];
        assert_eq!(select_6(&mut world, &with_size).bad(0x5_2600).pointer(), Some((false, 4, None)));
        let with_length = [0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 4, 0];
        assert_eq!(select_6(&mut world, &with_length).bad(0x5_2600).pointer(), Some((false, 9, None)));
        for bytes in 1..right.len() {
            let code = if bytes == 4 { 0 } else { 0x5_1A00 };
            assert_eq!(select_6(&mut world, &right[..bytes]).code(), code);
        }
        world.put(&[0x15, 0x11, 0, 0, 16, 0], &right).bad_field(1, Some(0));
        world.put(&[0x15, 0x00, 0, 0, 16, 0], &right).bad_field(1, Some(4));
        world.put(&[0x15, 0x10, 0, 0, 16, 0], &right[..10]).bad(0x5_0E03);
    }
}
