//! Mode pages and MODE SENSE (SPC-4 §7.5, §6.13; SBC-3 §6.4). Only what MODE SELECT can change is state; the rest
//! is what the device is.

use crate::cdb::{ModeSense6Cdb, ModeSense10Cdb, view};
use crate::change::ModeParameters;
use crate::limits::THRESHOLD_SET_BYTES;
use crate::lun::LogicalUnit;
use crate::reply::{Out, ParameterData, Reply};
use crate::sense::Sense;
use crate::task::{Request, Work};
use bdev::geometry::Geometry;
use smallvec::SmallVec;

/// A mode page as on the wire.
pub(crate) type Image = SmallVec<[u8; 32]>;

/// The pages there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Page {
    /// 01h (SBC-3 §6.4.8).
    ReadWriteErrorRecovery,
    /// 08h (SBC-3 §6.4.5).
    Caching,
    /// 0Ah (SPC-4 §7.5.10).
    Control,
    /// 0Ah/01h (SPC-4 §7.5.11).
    ControlExtension,
    /// 1Ch (SPC-4 §7.5.15, SBC-3 §6.4.7).
    InformationalExceptions,
    /// 1Ch/02h (SBC-3 §6.4.9).
    LogicalBlockProvisioning,
}

/// D_SENSE in byte 2 of the control page.
pub(crate) const D_SENSE: u8 = 0x04;
/// SWP in byte 4 of the control page.
pub(crate) const SWP: u8 = 0x08;

impl Page {
    /// In ascending order, as page 3Fh returns them.
    pub(crate) const ALL: [Page; 6] = [
        Page::ReadWriteErrorRecovery,
        Page::Caching,
        Page::Control,
        Page::ControlExtension,
        Page::InformationalExceptions,
        Page::LogicalBlockProvisioning,
    ];

    /// Page code and subpage code.
    pub(crate) fn codes(self) -> (u8, u8) {
        match self {
            Page::ReadWriteErrorRecovery => (0x01, 0x00),
            Page::Caching => (0x08, 0x00),
            Page::Control => (0x0A, 0x00),
            Page::ControlExtension => (0x0A, 0x01),
            Page::InformationalExceptions => (0x1C, 0x00),
            Page::LogicalBlockProvisioning => (0x1C, 0x02),
        }
    }

    /// Whether a unit has it.
    pub(crate) fn is_of(self, unit: &LogicalUnit) -> bool {
        self != Page::LogicalBlockProvisioning || unit.has_thresholds()
    }

    /// An all-zero page with its header; PS=0, since nothing can be saved.
    fn blank(self) -> Image {
        match self {
            Page::Caching => {
                Image::from_slice(&[0x08, 0x12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
            }
            Page::ControlExtension => {
                let mut image = Image::from_slice(&[0x4A, 0x01, 0x00, 0x1C]);
                image.resize(32, 0);
                image
            }
            Page::LogicalBlockProvisioning => {
                let mut image = Image::from_slice(&[0x5C, 0x02, 0x00, 0x14]);
                image.resize(24, 0);
                image
            }
            page @ (Page::ReadWriteErrorRecovery | Page::Control | Page::InformationalExceptions) => {
                Image::from_slice(&[page.codes().0, 0x0A, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
            }
        }
    }

    /// The page with these parameters; the default page with the default ones.
    pub(crate) fn image(self, unit: &LogicalUnit, parameters: ModeParameters) -> Image {
        let geometry = unit.geometry();
        let mut image = self.blank();
        match self {
            // No retries and no reassignment of ours: what is below us does that.
            Page::ReadWriteErrorRecovery => {}
            Page::Caching => {
                // WCE.
                image[2] = u8::from(geometry.write_cache) << 2;
            }
            Page::Control => {
                // GLTSD: log parameters are not saved.
                image[2] = 0x02 | if parameters.descriptor_sense { D_SENSE } else { 0 };
                // QUEUE ALGORITHM MODIFIER 1h: simple commands may be reordered. QERR=00b: the others go on.
                image[3] = 0x10;
                image[4] = if parameters.software_write_protect { SWP } else { 0 };
                // TAS: what another nexus aborts ends with TASK ABORTED.
                image[5] = 0x40;
                // BUSY TIMEOUT PERIOD: unlimited.
                image[8] = 0xFF;
                image[9] = 0xFF;
            }
            // IALUAE: asymmetric access, if any, changes implicitly.
            Page::ControlExtension => image[4] = 0x01,
            // MRIE 6h: only on request, through log page 2Fh.
            Page::InformationalExceptions => image[3] = 0x06,
            // SITUA=0: every nexus is told. One threshold, once it is known.
            Page::LogicalBlockProvisioning => {
                if let Some(space) = unit.space {
                    let all = u128::from(space.used_bytes) + u128::from(space.available_bytes);
                    let bytes = all * u128::from(100 - space.threshold_percent.min(100)) / 100;
                    let sets = u32::try_from(bytes / u128::from(THRESHOLD_SET_BYTES)).unwrap_or(u32::MAX);
                    // ENABLED; a soft threshold, armed for decreasing, of what is available.
                    image[16] = 0x80;
                    image[17] = 0x01;
                    image[20..24].copy_from_slice(&sets.to_be_bytes());
                }
            }
        }
        image
    }

    /// Ones where MODE SELECT can change something, behind the header.
    pub(crate) fn changeable(self) -> Image {
        let mut image = self.blank();
        if self == Page::Control {
            image[2] = D_SENSE;
            image[4] = SWP;
        }
        image
    }

    /// Bytes of the header: with or without a subpage code.
    pub(crate) fn header_bytes(self) -> usize {
        if self.codes().1 == 0 { 2 } else { 4 }
    }
}

/// PC of MODE SENSE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PageControl {
    Current,
    Changeable,
    Default,
}

/// A MODE SENSE that passed its checks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ModeSense {
    /// MODE SENSE(10).
    ten: bool,
    /// DBD=0.
    block_descriptor: bool,
    /// LLBAA: the long form may be used.
    long_lba: bool,
    control: PageControl,
    page: u8,
    subpage: u8,
}

/// MODE SENSE(6).
pub(crate) fn mode_sense_6(request: &Request<'_>) -> Result<Work, Sense> {
    let cdb: &ModeSense6Cdb = view(&request.command.cdb);
    let sense = ModeSense::parse(request.unit()?, false, cdb.flags, cdb.page, cdb.subpage_code)?;
    Ok(ParameterData::work(Reply::Mode(sense), u32::from(cdb.allocation_length)))
}

/// MODE SENSE(10).
pub(crate) fn mode_sense_10(request: &Request<'_>) -> Result<Work, Sense> {
    let cdb: &ModeSense10Cdb = view(&request.command.cdb);
    let sense = ModeSense::parse(request.unit()?, true, cdb.flags, cdb.page, cdb.subpage_code)?;
    Ok(ParameterData::work(Reply::Mode(sense), u32::from(cdb.allocation_length.get())))
}

/// Return all pages; with subpage FFh, all subpages too.
const ALL_PAGES: u8 = 0x3F;
const ALL_SUBPAGES: u8 = 0xFF;

impl ModeSense {
    fn parse(unit: &LogicalUnit, ten: bool, flags: u8, page: u8, subpage: u8) -> Result<ModeSense, Sense> {
        let control = match page >> 6 {
            0 => PageControl::Current,
            1 => PageControl::Changeable,
            2 => PageControl::Default,
            _ => return Err(Sense::SAVING_PARAMETERS_NOT_SUPPORTED),
        };
        let block_descriptor = flags & 0x08 == 0;
        let long_lba = ten && flags & 0x10 != 0;
        let sense = ModeSense { ten, block_descriptor, long_lba, control, page: page & 0x3F, subpage };
        let has_page = sense.page == ALL_PAGES || Page::ALL.iter().any(|page| page.codes().0 == sense.page);
        if !has_page {
            return Err(Sense::INVALID_FIELD_IN_CDB.cdb_bit(2, 5));
        }
        if sense.pages(unit).next().is_none() {
            return Err(Sense::INVALID_FIELD_IN_CDB.cdb_byte(3));
        }
        Ok(sense)
    }

    /// The pages asked for. None, if there is no such subpage.
    fn pages(self, unit: &LogicalUnit) -> impl Iterator<Item = Page> {
        Page::ALL.into_iter().filter(|page| page.is_of(unit)).filter(move |page| {
            let (code, subcode) = page.codes();
            let is_page = self.page == ALL_PAGES || self.page == code;
            let is_subpage = match (self.page, self.subpage) {
                (_, ALL_SUBPAGES) => true,
                (ALL_PAGES, 0) => subcode == 0,
                (ALL_PAGES, _) => false,
                (_, subpage) => subcode == subpage,
            };
            is_page && is_subpage
        })
    }

    pub(crate) fn build(self, unit: &LogicalUnit, out: &mut Out<'_>) {
        let geometry = unit.geometry();
        // WP and DPOFUA (SBC-3 §6.4.1).
        let device_specific = u8::from(unit.is_write_protected()) << 7 | 0x10;
        let descriptor =
            if self.block_descriptor { block_descriptor(geometry, self.long_lba) } else { Image::new() };
        if self.ten {
            let long = u8::from(descriptor.len() == 16);
            out.bytes(&[0, 0, 0, device_specific, long, 0, 0, descriptor.len() as u8]);
        } else {
            out.bytes(&[0, 0, device_specific, descriptor.len() as u8]);
        }
        out.bytes(&descriptor);
        for page in self.pages(unit) {
            out.bytes(&match self.control {
                PageControl::Current => page.image(unit, unit.mode),
                PageControl::Changeable => page.changeable(),
                PageControl::Default => page.image(unit, ModeParameters::default()),
            });
        }
        // MODE DATA LENGTH counts what follows it.
        if self.ten {
            let length = (out.len() - 2) as u16;
            out.patch(0, &length.to_be_bytes());
        } else {
            let length = (out.len() - 1) as u8;
            out.patch(0, &[length]);
        }
    }
}

/// Mode parameter block descriptor (SBC-3 §6.4.2): short, unless the capacity needs the long one and that is allowed.
fn block_descriptor(geometry: &Geometry, long_lba: bool) -> Image {
    let mut descriptor = Image::new();
    match u32::try_from(geometry.blocks) {
        Err(_) if long_lba => {
            descriptor.extend_from_slice(&geometry.blocks.to_be_bytes());
            descriptor.extend_from_slice(&[0; 4]);
            descriptor.extend_from_slice(&geometry.block_bytes.to_be_bytes());
        }
        blocks => {
            descriptor.extend_from_slice(&blocks.unwrap_or(u32::MAX).to_be_bytes());
            // DENSITY CODE, then three bytes of length.
            descriptor.extend_from_slice(&geometry.block_bytes.to_be_bytes());
        }
    }
    descriptor
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::{World, geometry, lun_config};
    use crate::lun::LunConfig;

    fn sense_6(world: &mut World, page: u8, subpage: u8, length: u8) -> crate::harness::Answer {
        world.get(&[0x1A, 0, page, subpage, length, 0], u32::from(length))
    }

    /// Goal: page 3Fh is all the pages one by one, in order, and the lengths are true; saved values are refused.
    #[test]
    fn all_pages_are_each_page() {
        let mut world = World::new(Geometry { pooled: true, ..geometry() });
        for control in [0x00, 0x40, 0x80] {
            let all = sense_6(&mut world, control | 0x3F, 0xFF, 255).good().data;
            assert_eq!(usize::from(all[0]), all.len() - 1);
            let mut at = 12;
            for page in Page::ALL {
                let (code, subcode) = page.codes();
                let one = sense_6(&mut world, control | code, subcode, 255).good().data;
                assert_eq!(one[..12][1..], all[..12][1..]);
                let length = if subcode == 0 { usize::from(one[13]) + 2 } else { usize::from(one[15]) + 4 };
                assert_eq!((one.len(), &one[12..]), (12 + length, &all[at..at + length]));
                at += length;
            }
            assert_eq!(at, all.len());
            let without_subpages = sense_6(&mut world, control | 0x3F, 0, 255).good().data;
            assert_eq!(without_subpages.len(), all.len() - 32 - 24);
        }
        sense_6(&mut world, 0xC0 | 0x3F, 0, 255).bad(0x5_3900);
        sense_6(&mut world, 0x02, 0, 255).bad_field(2, Some(5));
        sense_6(&mut world, 0x08, 1, 255).bad_field(3, None);
        sense_6(&mut world, 0x3F, 1, 255).bad_field(3, None);
        assert_eq!(sense_6(&mut world, 0x0A, 0xFF, 255).good().data.len(), 12 + 12 + 32);
    }

    /// Goal: a short allocation length is no overflow, a long one is an underflow.
    #[test]
    fn residuals_are_those_of_the_allocation_length() {
        let mut world = World::new(geometry());
        let answer = sense_6(&mut world, 0x3F, 0, 4).good();
        assert_eq!((answer.data.len(), answer.transfer_bytes), (4, 4));
        assert!(sense_6(&mut world, 0x3F, 0, 255).good().transfer_bytes < 255);
    }

    /// Goal: write protection, DPOFUA, cache and capacity are told as they are, in both headers.
    #[test]
    fn header_and_descriptor_tell_the_device() {
        let mut world = World::new(geometry());
        let data = sense_6(&mut world, 0x08, 0, 255).good().data;
        assert_eq!(data[1..4], [0, 0x10, 8]);
        assert_eq!(data[4..12], [0, 0, 0x13, 0x88, 0, 0, 2, 0]);
        assert_eq!(data[12..15], [0x08, 0x12, 0x04]);
        let without = world.get(&[0x1A, 0x08, 0x08, 0, 255, 0], 255).good().data;
        assert_eq!((without[3], &without[4..]), (0, &data[12..]));
        let ten = world.get(&[0x5A, 0, 0x08, 0, 0, 0, 0, 0, 255, 0], 255).good().data;
        assert_eq!(ten[..8], [0, 34, 0, 0x10, 0, 0, 0, 8]);
        assert_eq!(ten[8..], data[4..]);
        let read_only = LunConfig { read_only: true, ..lun_config(0, geometry()) };
        let write_through = Geometry { write_cache: false, ..geometry() };
        let config = LunConfig { geometry: write_through, ..read_only };
        let data = sense_6(&mut World::of(vec![config]), 0x08, 0, 255).good().data;
        assert_eq!((data[2], data[14]), (0x90, 0));
    }

    /// Goal: capacities over 32 bits use the long descriptor where it is allowed, and all ones where not.
    #[test]
    fn large_capacities_have_a_long_descriptor() {
        let large = Geometry { blocks: 1 << 33, ..geometry() };
        let long = block_descriptor(&large, true);
        assert_eq!(long[..], [0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0]);
        assert_eq!(block_descriptor(&large, false)[..], [0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 2, 0]);
        assert_eq!(block_descriptor(&geometry(), true).len(), 8);
    }
}
