//! Logical units: how they are addressed, what all nexuses see of one, and what one nexus has not been told yet.

use crate::change::{Applied, ModeParameters, PoolSpace};
use crate::command::NexusId;
use crate::identity;
use crate::limits::{LUN_MAX, PREVENTERS_MAX, THRESHOLD_HYSTERESIS_PERCENT, THRESHOLD_SET_BYTES};
use crate::reservation::Reservations;
use crate::sense::{Sense, SenseKey};
use bdev::geometry::Geometry;
use bdev::io::BdevId;

/// The REPORT LUNS well-known logical unit (SPC-4 §8.2): the first two bytes of its LUN field, which no flat or
/// peripheral address shares.
pub const REPORT_LUNS_WELL_KNOWN: u16 = 0xC101;

/// The number that a LUN field names (SAM-5 §4.7): peripheral device addressing (bus 0), flat space addressing, or
/// the REPORT LUNS well-known unit as [`REPORT_LUNS_WELL_KNOWN`]. `None`: any other form, which names no unit here.
pub fn lun_number(lun: [u8; 8]) -> Option<u16> {
    let [high, low, rest @ ..] = lun;
    if rest != [0; 6] {
        return None;
    }
    let number = u16::from_be_bytes([high, low]);
    match high {
        0x00 | 0x40..=0x7F => Some(number & LUN_MAX),
        _ if number == REPORT_LUNS_WELL_KNOWN => Some(number),
        _ => None,
    }
}

/// The LUN field for a number: peripheral up to 255, as all ESXi versions understand, flat above.
pub fn lun_field(number: u16) -> [u8; 8] {
    let [high, low] = match number {
        0..=255 | REPORT_LUNS_WELL_KNOWN => number,
        _ => 0x4000 | number,
    }
    .to_be_bytes();
    [high, low, 0, 0, 0, 0, 0, 0]
}

/// A logical unit as it is configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LunConfig {
    /// Its number, at most [`LUN_MAX`].
    pub lun: u16,
    /// What stores its blocks.
    pub bdev: BdevId,
    /// The shape of `bdev`.
    pub geometry: Geometry,
    /// The unit's stored random UUID: its NAA id and T10 designator are made of it, so it stays for the unit's life
    /// and is never given to another.
    pub id: [u8; 16],
    /// PRODUCT SERIAL NUMBER: printable ASCII. Empty: the id's hexadecimal digits.
    pub serial: String,
    /// Writes are refused, whatever `geometry` can do.
    pub read_only: bool,
    /// The medium can be ejected and loaded (RMB).
    pub removable: bool,
    /// `Some`: something keeps this unit's persistent reservations (APTPL=1), and these are what it kept last; none, if
    /// they are empty.
    pub reservations: Option<Vec<u8>>,
}

/// A logical unit of this core's replica. Of `config`, the capacity alone can change. It and the rest do so only in
/// [`LogicalUnit`]'s methods, each called by one [`crate::change::Change`] or [`crate::change::UnitChange`].
#[derive(Debug)]
pub(crate) struct LogicalUnit {
    pub(crate) config: LunConfig,
    pub(crate) naa: [u8; 16],
    /// What MODE SELECT has set.
    pub(crate) mode: ModeParameters,
    /// The medium is loaded.
    pub(crate) medium: bool,
    /// What its pool has; `None`: nobody has said so yet, or nobody will.
    pub(crate) space: Option<PoolSpace>,
    /// Its soft threshold was reached, and the space has not come back.
    is_short: bool,
    /// Who prevents its removal. At most [`PREVENTERS_MAX`].
    preventers: Vec<NexusId>,
    /// Who has reserved what of it.
    pub(crate) reservations: Reservations,
}

impl LogicalUnit {
    pub(crate) fn new(config: LunConfig) -> LogicalUnit {
        let naa = identity::naa(&config.id);
        let reservations = Reservations::of(config.reservations.as_deref());
        LogicalUnit {
            config,
            naa,
            mode: ModeParameters::default(),
            medium: true,
            space: None,
            is_short: false,
            preventers: Vec::new(),
            reservations,
        }
    }

    pub(crate) fn geometry(&self) -> &Geometry {
        &self.config.geometry
    }

    /// Whether it can run out of its pool's space, and has thresholds for that.
    pub(crate) fn has_thresholds(&self) -> bool {
        self.geometry().pooled && self.geometry().is_thin()
    }

    /// Blocks of a threshold set, as a power of two.
    pub(crate) fn threshold_exponent(&self) -> u8 {
        (THRESHOLD_SET_BYTES / u64::from(self.geometry().block_bytes)).ilog2() as u8
    }

    /// Its pool has other space. Whether the soft threshold is reached now and was not before.
    pub(crate) fn set_space(&mut self, space: PoolSpace) -> bool {
        self.space = Some(space);
        let all = u128::from(space.used_bytes) + u128::from(space.available_bytes);
        let less = if self.is_short { THRESHOLD_HYSTERESIS_PERCENT } else { 0 };
        let percent = space.threshold_percent.saturating_sub(less);
        let is_short = all != 0 && u128::from(space.used_bytes) * 100 >= all * u128::from(percent);
        let was_short = std::mem::replace(&mut self.is_short, is_short);
        is_short && !was_short
    }

    /// Another capacity. Whether that changed anything.
    pub(crate) fn resize(&mut self, blocks: u64) -> bool {
        std::mem::replace(&mut self.config.geometry.blocks, blocks) != blocks
    }

    /// The id in hexadecimal: unique, also in its first characters.
    pub(crate) fn id_digits(&self) -> [u8; 32] {
        let mut digits = [0; 32];
        for (pair, byte) in digits.chunks_exact_mut(2).zip(self.config.id) {
            pair[0] = b"0123456789abcdef"[usize::from(byte >> 4)];
            pair[1] = b"0123456789abcdef"[usize::from(byte & 0xF)];
        }
        digits
    }

    /// Whether and why writes are refused.
    ///
    /// # Errors
    /// DATA PROTECT, for the device's or the control page's reason.
    pub(crate) fn check_writable(&self) -> Result<(), Sense> {
        if self.config.read_only || self.config.geometry.read_only {
            return Err(Sense::WRITE_PROTECTED);
        }
        if self.mode.software_write_protect {
            return Err(Sense::LOGICAL_UNIT_SOFTWARE_WRITE_PROTECTED);
        }
        Ok(())
    }

    /// Whether MODE SENSE shows WP.
    pub(crate) fn is_write_protected(&self) -> bool {
        self.check_writable().is_err()
    }

    /// LOGICAL UNIT RESET: mode parameters as saved, which here means default; nobody prevents removal; RESERVE is over.
    pub(crate) fn reset(&mut self) {
        self.reservations.reset();
        self.mode = ModeParameters::default();
        self.preventers.clear();
    }

    /// A nexus is gone: what it prevented is allowed again (SPC-4 §6.21), what it has reserved is free (SPC-2 §7.21).
    pub(crate) fn lose(&mut self, nexus: NexusId) {
        self.allow(nexus);
        self.reservations.lose(nexus);
    }

    fn allow(&mut self, nexus: NexusId) {
        self.preventers.retain(|&preventer| preventer != nexus);
    }

    /// PREVENT ALLOW MEDIUM REMOVAL.
    ///
    /// # Errors
    /// Too many nexuses prevent removal already.
    pub(crate) fn prevent(&mut self, by: NexusId, prevent: bool) -> Applied {
        self.allow(by);
        if prevent {
            if self.preventers.len() >= PREVENTERS_MAX {
                return Err(Sense::INSUFFICIENT_RESOURCES);
            }
            self.preventers.push(by);
        }
        Ok(())
    }

    /// Loads or ejects the medium. Whether that changed anything.
    ///
    /// # Errors
    /// Somebody prevents it. That holds for loading, too: the operator's hands are to stay off.
    pub(crate) fn set_medium(&mut self, load: bool) -> Result<bool, Sense> {
        if self.medium == load {
            return Ok(false);
        }
        if !self.preventers.is_empty() {
            return Err(Sense::MEDIUM_REMOVAL_PREVENTED);
        }
        self.medium = load;
        Ok(true)
    }
}

/// Something that a nexus has to be told before it goes on (SPC-4 §5.14, SAM-5 §5.14), in the order of telling: what was
/// lost comes first, as SAM-5 has it; then what concerns the unit itself, and last its neighbours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum UnitAttention {
    /// 29h/00h.
    PowerOn,
    /// 29h/03h: LOGICAL UNIT RESET and target resets.
    BusDeviceReset,
    /// 29h/07h.
    NexusLoss,
    /// 28h/00h.
    MediumMayHaveChanged,
    /// 2Ah/09h.
    CapacityDataHasChanged,
    /// 2Ah/01h.
    ModeParametersChanged,
    /// 2Ah/03h.
    ReservationsPreempted,
    /// 2Ah/04h.
    ReservationsReleased,
    /// 2Ah/05h.
    RegistrationsPreempted,
    /// 38h/07h.
    SoftThresholdReached,
    /// 3Fh/0Eh.
    ReportedLunsDataHasChanged,
}

impl UnitAttention {
    const ALL: [UnitAttention; 11] = [
        UnitAttention::PowerOn,
        UnitAttention::BusDeviceReset,
        UnitAttention::NexusLoss,
        UnitAttention::MediumMayHaveChanged,
        UnitAttention::CapacityDataHasChanged,
        UnitAttention::ModeParametersChanged,
        UnitAttention::ReservationsPreempted,
        UnitAttention::ReservationsReleased,
        UnitAttention::RegistrationsPreempted,
        UnitAttention::SoftThresholdReached,
        UnitAttention::ReportedLunsDataHasChanged,
    ];

    pub(crate) fn sense(self) -> Sense {
        let (asc, ascq) = match self {
            UnitAttention::PowerOn => (0x29, 0x00),
            UnitAttention::BusDeviceReset => (0x29, 0x03),
            UnitAttention::NexusLoss => (0x29, 0x07),
            UnitAttention::MediumMayHaveChanged => (0x28, 0x00),
            UnitAttention::CapacityDataHasChanged => (0x2A, 0x09),
            UnitAttention::ModeParametersChanged => (0x2A, 0x01),
            UnitAttention::ReservationsPreempted => (0x2A, 0x03),
            UnitAttention::ReservationsReleased => (0x2A, 0x04),
            UnitAttention::RegistrationsPreempted => (0x2A, 0x05),
            UnitAttention::SoftThresholdReached => (0x38, 0x07),
            UnitAttention::ReportedLunsDataHasChanged => (0x3F, 0x0E),
        };
        Sense::new(SenseKey::UnitAttention, asc, ascq)
    }
}

/// The unit attentions pending for one nexus and one unit: a set, so it is bounded and has no duplicates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct UnitAttentions(u16);

const _: () = assert!(UnitAttention::ALL.len() <= u16::BITS as usize);

impl UnitAttentions {
    pub(crate) fn post(&mut self, attention: UnitAttention) {
        self.0 |= 1 << attention as u8;
    }

    /// It need not be told any more.
    pub(crate) fn clear(&mut self, attention: UnitAttention) {
        self.0 &= !(1 << attention as u8);
    }

    /// Takes the one to be told first.
    pub(crate) fn take(&mut self) -> Option<UnitAttention> {
        let first = UnitAttention::ALL.into_iter().find(|&attention| self.0 & 1 << attention as u8 != 0)?;
        self.clear(first);
        Some(first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Goal: both forms of a number name the same unit, every other form none.
    #[test]
    fn lun_fields_are_read_as_in_sam() {
        assert_eq!(lun_number([0, 7, 0, 0, 0, 0, 0, 0]), Some(7));
        assert_eq!(lun_number([0x40, 7, 0, 0, 0, 0, 0, 0]), Some(7));
        assert_eq!(lun_number([0x7F, 0xFF, 0, 0, 0, 0, 0, 0]), Some(LUN_MAX));
        assert_eq!(lun_number([0xC1, 0x01, 0, 0, 0, 0, 0, 0]), Some(REPORT_LUNS_WELL_KNOWN));
        assert_eq!(lun_number([0x01, 7, 0, 0, 0, 0, 0, 0]), None, "bus 1");
        assert_eq!(lun_number([0x80, 7, 0, 0, 0, 0, 0, 0]), None, "logical unit addressing");
        assert_eq!(lun_number([0, 7, 0, 0, 0, 0, 0, 1]), None, "a second level");
    }

    proptest! {
        /// Goal: what we report can be used.
        #[test]
        fn reported_fields_name_their_unit(number in 0..=LUN_MAX) {
            prop_assert_eq!(lun_number(lun_field(number)), Some(number));
        }
    }

    /// Goal: attentions come once each, power on first and other units last. Method: all, posted backwards and twice.
    #[test]
    fn attentions_come_once_and_in_order() {
        let mut pending = UnitAttentions::default();
        for _ in 0..2 {
            UnitAttention::ALL.into_iter().rev().for_each(|attention| pending.post(attention));
        }
        let told: Vec<UnitAttention> = std::iter::from_fn(|| pending.take()).collect();
        assert_eq!(told, UnitAttention::ALL);
        let codes: Vec<u16> = told
            .into_iter()
            .map(|attention| {
                let Sense { asc, ascq, .. } = attention.sense();
                u16::from_be_bytes([asc, ascq])
            })
            .collect();
        let expected =
            [0x2900, 0x2903, 0x2907, 0x2800, 0x2A09, 0x2A01, 0x2A03, 0x2A04, 0x2A05, 0x3807, 0x3F0E];
        assert_eq!(codes, expected);
    }
}
