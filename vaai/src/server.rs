//! The device server of one core: its replica of the units' state, and what its own nexuses are to be told.
//!
//! Invariant: the replicas of all cores that have applied the same changes are equal, unit attentions aside, which
//! live where their nexus lives.

use crate::change::{Applied, Change};
use crate::command::{Command, NexusId};
use crate::copy::results::CopyRecords;
use crate::identity;
use crate::limits::{LUN_MAX, LUNS_MAX, PORTS_MAX};
use crate::lun::{LogicalUnit, LunConfig, UnitAttention, UnitAttentions};
use crate::reservation::{Access, ItNexus, Port, Told, port};
use crate::sense::Sense;
use crate::task::Task;
use crate::token::Tokens;
use bdev::geometry::Geometry;
use bdev::io::{BdevId, Done, Io};
use reactor::Core;
use reactor::clock::Time;
use smallvec::SmallVec;
use std::collections::{BTreeMap, HashSet};
use std::fmt;

/// A target port (SPC-4 §3.1): for iSCSI, the target's name with a portal group tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortConfig {
    /// RELATIVE TARGET PORT IDENTIFIER, not 0.
    pub relative_port: u16,
    /// iSCSI's TargetPortalGroupTag.
    pub tpgt: u16,
    /// TARGET PORT GROUP.
    pub group: u16,
}

/// What a target shows. The same on every core.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerConfig {
    /// The iSCSI target name.
    pub target_name: String,
    /// In the order of REPORT TARGET PORT GROUPS; at most [`PORTS_MAX`].
    pub ports: Vec<PortConfig>,
    /// In any order; at most [`LUNS_MAX`].
    pub luns: Vec<LunConfig>,
}

/// Why a [`ServerConfig`] can't be served, or not be changed so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfigError {
    /// Over [`LUNS_MAX`].
    TooManyLuns,
    /// There is no such unit to be changed.
    NoSuchLun {
        /// The number.
        lun: u16,
    },
    /// Over [`LUN_MAX`].
    LunTooLarge {
        /// The number.
        lun: u16,
    },
    /// Two units have it.
    LunTwice {
        /// The number.
        lun: u16,
    },
    /// Two units would have one NAA id: initiators would take them for two paths to one unit.
    IdTwice {
        /// The second's number.
        lun: u16,
    },
    /// The serial number is not printable ASCII, or over 64 characters.
    Serial {
        /// Whose.
        lun: u16,
    },
    /// Blocks are neither 512 nor 4096 bytes, there are none, or the physical block is no power of two of them.
    Geometry {
        /// Whose.
        lun: u16,
    },
    /// No port, or over [`PORTS_MAX`].
    Ports,
    /// 0, or two ports have it.
    RelativePort {
        /// The identifier.
        relative_port: u16,
    },
    /// The target name is empty, over 223 bytes (RFC 7143 §4.2.7.1), or has a NUL.
    TargetName,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConfigError::TooManyLuns => write!(f, "more than {LUNS_MAX} logical units"),
            ConfigError::NoSuchLun { lun } => write!(f, "there is no LUN {lun}"),
            ConfigError::LunTooLarge { lun } => write!(f, "LUN {lun} is over {LUN_MAX}"),
            ConfigError::LunTwice { lun } => write!(f, "LUN {lun} is configured twice"),
            ConfigError::IdTwice { lun } => write!(f, "LUN {lun} has another unit's id"),
            ConfigError::Serial { lun } => {
                write!(f, "LUN {lun}'s serial number is not up to 64 printable ASCII characters")
            }
            ConfigError::Geometry { lun } => write!(f, "LUN {lun}'s blocks have a size that SCSI can't show"),
            ConfigError::Ports => write!(f, "a target needs 1 to {PORTS_MAX} ports"),
            ConfigError::RelativePort { relative_port } => {
                write!(f, "relative port {relative_port} is 0 or used twice")
            }
            ConfigError::TargetName => write!(f, "the target name is not 1 to 223 bytes"),
        }
    }
}

impl std::error::Error for ConfigError {}

impl ServerConfig {
    /// Whether it can be served.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn check(&self) -> Result<(), ConfigError> {
        if self.target_name.is_empty() || self.target_name.len() > 223 || self.target_name.contains('\0') {
            return Err(ConfigError::TargetName);
        }
        if self.ports.is_empty() || self.ports.len() > PORTS_MAX {
            return Err(ConfigError::Ports);
        }
        let mut relative_ports = HashSet::from([0]);
        for &PortConfig { relative_port, .. } in &self.ports {
            if !relative_ports.insert(relative_port) {
                return Err(ConfigError::RelativePort { relative_port });
            }
        }
        if self.luns.len() > LUNS_MAX {
            return Err(ConfigError::TooManyLuns);
        }
        let (mut numbers, mut ids) = (HashSet::new(), HashSet::new());
        for config in &self.luns {
            let lun = config.lun;
            check_unit(config)?;
            if !numbers.insert(lun) {
                return Err(ConfigError::LunTwice { lun });
            }
            if !ids.insert(identity::naa(&config.id)) {
                return Err(ConfigError::IdTwice { lun });
            }
        }
        Ok(())
    }
}

/// Whether a unit can be served, but for the others.
///
/// # Errors
/// The first thing that is wrong.
pub(crate) fn check_unit(config: &LunConfig) -> Result<(), ConfigError> {
    let lun = config.lun;
    if lun > LUN_MAX {
        return Err(ConfigError::LunTooLarge { lun });
    }
    if config.serial.len() > 64 || !config.serial.bytes().all(|byte| (0x20..=0x7E).contains(&byte)) {
        return Err(ConfigError::Serial { lun });
    }
    if !has_showable_geometry(&config.geometry) {
        return Err(ConfigError::Geometry { lun });
    }
    Ok(())
}

/// LOGICAL BLOCKS PER PHYSICAL BLOCK EXPONENT has four bits.
const PHYSICAL_BLOCKS_MAX: u32 = 1 << 15;

pub(crate) fn has_showable_geometry(geometry: &Geometry) -> bool {
    (geometry.block_bytes == 512 || geometry.block_bytes == 4096)
        && geometry.blocks != 0
        && geometry.blocks.checked_mul(u64::from(geometry.block_bytes)).is_some()
        && geometry.physical_block_bytes.is_power_of_two()
        && geometry.physical_block_bytes >= geometry.block_bytes
        && geometry.physical_block_bytes / geometry.block_bytes <= PHYSICAL_BLOCKS_MAX
        && geometry.unmap_granularity_bytes.is_multiple_of(geometry.block_bytes)
}

/// Who logs in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NexusInfo {
    /// iSCSI InitiatorName.
    pub initiator_name: String,
    /// iSCSI ISID.
    pub isid: [u8; 6],
    /// [`PortConfig::relative_port`] of the port it uses.
    pub relative_port: u16,
    /// The same initiator port had a session here before, which was lost or reinstated.
    pub after_loss: bool,
}

impl NexusInfo {
    fn port(&self) -> Port<'_> {
        (&self.initiator_name, self.isid, self.relative_port)
    }
}

#[derive(Debug)]
pub(crate) struct Nexus {
    pub(crate) info: NexusInfo,
    /// One for each of the server's units, in their order: who adds or takes out a unit does so here, too.
    pub(crate) attentions: Vec<UnitAttentions>,
    /// Its third-party copies.
    pub(crate) copies: CopyRecords,
}

/// The device server of one core.
#[derive(Debug)]
pub struct DeviceServer {
    pub(crate) core: Core,
    pub(crate) target_name: String,
    pub(crate) ports: Vec<PortConfig>,
    /// By ascending number.
    pub(crate) units: Vec<LogicalUnit>,
    /// The nexuses whose sessions live on this core.
    pub(crate) nexuses: BTreeMap<NexusId, Nexus>,
    /// Those of them that the last PREEMPT AND ABORT has preempted.
    preempted: Vec<NexusId>,
    /// Data that initiators have tokens of.
    pub(crate) tokens: Tokens,
}

impl DeviceServer {
    /// The device server of `core`.
    ///
    /// # Panics
    /// When [`ServerConfig::check`] was not heeded.
    pub fn new(core: Core, config: ServerConfig) -> DeviceServer {
        if let Err(error) = config.check() {
            panic!("whoever reads the configuration checks it: {error}");
        }
        let mut units: Vec<LogicalUnit> = config.luns.into_iter().map(LogicalUnit::new).collect();
        units.sort_by_key(|unit| unit.config.lun);
        DeviceServer {
            core,
            target_name: config.target_name,
            ports: config.ports,
            units,
            nexuses: BTreeMap::new(),
            preempted: Vec::new(),
            tokens: Tokens::new(core),
        }
    }

    /// A session of this core enters full feature phase: each unit has a unit attention for it (SAM-5 §5.14).
    pub fn open_nexus(&mut self, nexus: NexusId, info: NexusInfo) {
        let mut attentions = UnitAttentions::default();
        attentions.post(if info.after_loss { UnitAttention::NexusLoss } else { UnitAttention::PowerOn });
        self.nexuses.insert(
            nexus,
            Nexus { info, attentions: vec![attentions; self.units.len()], copies: CopyRecords::default() },
        );
    }

    /// A session of this core is gone. That others hear of it is [`Change::NexusLost`]'s part.
    pub fn close_nexus(&mut self, nexus: NexusId) {
        self.nexuses.remove(&nexus);
    }

    /// Whether there is such a unit.
    pub fn has_lun(&self, lun: u16) -> bool {
        self.unit_index(lun).is_some()
    }

    /// The device that stores a unit's blocks.
    pub fn bdev_of(&self, lun: u16) -> Option<BdevId> {
        self.unit(lun).map(|unit| unit.config.bdev)
    }

    /// All units, by ascending number.
    pub fn luns(&self) -> Vec<u16> {
        self.units.iter().map(|unit| unit.config.lun).collect()
    }

    /// A command enters the enabled state (SAM-5 §8.5): what is wrong with it is found now, what it needs is asked for
    /// by [`Task::poll`]. A pending unit attention is consumed by it. The order of ORDERED and HEAD OF QUEUE commands
    /// is the caller's: it begins a command when its turn has come.
    pub fn begin(&mut self, nexus: NexusId, command: &Command) -> Task {
        Task::begin(self, nexus, command)
    }

    /// Makes a change, in the same order on every core. The answer is the same everywhere and is for the task that
    /// proposed it.
    ///
    /// # Errors
    /// What the proposer is to answer instead of GOOD.
    pub fn apply(&mut self, change: &Change) -> Applied {
        match *change {
            Change::LunReset { lun, by: _ } => {
                let index = self.changed_unit(lun)?;
                self.units[index].reset();
                // To the nexus that asked, too: it may be shared by others who did not (SAM-5 §6.3.3).
                self.post(index, UnitAttention::BusDeviceReset, None);
                Ok(())
            }
            Change::NexusLost { nexus } => {
                self.units.iter_mut().for_each(|unit| unit.lose(nexus));
                Ok(())
            }
            Change::ModeSelect { lun, by, parameters } => {
                let index = self.changed_unit(lun)?;
                if self.units[index].mode != parameters {
                    self.units[index].mode = parameters;
                    self.post(index, UnitAttention::ModeParametersChanged, Some(by));
                }
                Ok(())
            }
            Change::Medium { lun, by, load } => {
                let index = self.changed_unit(lun)?;
                if self.units[index].set_medium(load)? && load {
                    self.post(index, UnitAttention::MediumMayHaveChanged, Some(by));
                }
                Ok(())
            }
            Change::Prevent { lun, by, prevent } => {
                let index = self.changed_unit(lun)?;
                self.units[index].prevent(by, prevent)
            }
            Change::Reserve { lun, by, ref from, reserve } => {
                let index = self.changed_unit(lun)?;
                let reservations = &mut self.units[index].reservations;
                if reserve {
                    return reservations.reserve(by, port(from));
                }
                reservations.release(by);
                Ok(())
            }
            Change::ReserveOut { lun, by: _, ref out } => {
                let index = self.changed_unit(lun)?;
                let ports: SmallVec<[u16; 8]> = self.ports.iter().map(|port| port.relative_port).collect();
                let told = self.units[index].reservations.reserve_out(out, &ports)?;
                self.tell(index, &told);
                Ok(())
            }
            Change::TokenMake { ref token } => {
                let is_there = self.unit(token.lun).is_some_and(|unit| unit.naa == token.naa);
                if is_there { self.tokens.make(token) } else { Err(Sense::LOGICAL_UNIT_NOT_SUPPORTED) }
            }
            Change::TokenUse { id } => self.tokens.begin_use(id),
            Change::TokenRelease { id } => {
                self.tokens.end_use(id);
                Ok(())
            }
            Change::TokenDelete { id } => {
                self.tokens.delete(id);
                Ok(())
            }
            Change::TokenExpire { id, activity } => {
                self.tokens.expire(id, activity);
                Ok(())
            }
        }
    }

    /// Changes that are due because of the time: what nobody waits for.
    pub fn tick(&mut self, now: Time) -> SmallVec<[Change; 4]> {
        self.tokens.tick(now)
    }

    /// The next request that gives back what a token of this core has held; the transport fills in `tag`, and answers with
    /// [`DeviceServer::free_done`]. One is out at a time.
    pub fn poll_free(&mut self) -> Option<Io> {
        self.tokens.poll_free()
    }

    /// What [`DeviceServer::poll_free`] gave has come back.
    pub fn free_done(&mut self, done: &Done) {
        self.tokens.free_done(done);
    }

    /// Posts to this core's nexuses what a change of reservations means to them, and notes those that were preempted.
    fn tell(&mut self, unit: usize, told: &Told) {
        self.preempted.clear();
        for (&id, nexus) in &mut self.nexuses {
            let is_it = |other: &ItNexus| port(other) == nexus.info.port();
            for (_, attention) in told.attentions.iter().filter(|(to, _)| is_it(to)) {
                nexus.attentions[unit].post(*attention);
            }
            if told.preempted.iter().any(is_it) {
                self.preempted.push(id);
            }
        }
    }

    /// This core's nexuses whose tasks are to be aborted, after a [`Change::ReserveOut`] that aborts and was made.
    pub fn take_preempted(&mut self) -> Vec<NexusId> {
        std::mem::take(&mut self.preempted)
    }

    /// What is to be kept of a unit's reservations, nothing included; `None`: there is no such unit.
    pub fn reservations_to_keep(&self, lun: u16) -> Option<(BdevId, Vec<u8>)> {
        self.unit(lun).map(|unit| (unit.config.bdev, unit.reservations.to_kept()))
    }

    /// Whether reservations let a nexus do this with a unit: for a command that names units besides its own, such as a
    /// copy. The unit that a command is sent to is checked when it begins.
    ///
    /// # Errors
    /// RESERVATION CONFLICT, or there is no such unit.
    pub fn check_access(&self, nexus: NexusId, lun: u16, access: Access) -> Result<(), Sense> {
        let unit = self.unit(lun).ok_or(Sense::LOGICAL_UNIT_NOT_SUPPORTED)?;
        unit.reservations.check_access(access, nexus, self.port_name(nexus))
    }

    /// As registrations know a nexus.
    pub(crate) fn it_nexus(&self, nexus: NexusId) -> Option<ItNexus> {
        let NexusInfo { initiator_name, isid, relative_port, .. } = &self.nexuses.get(&nexus)?.info;
        let (initiator_name, relative_port) = (initiator_name.clone(), *relative_port);
        Some(ItNexus { initiator_name, isid: *isid, relative_port })
    }

    /// The name of a nexus' initiator.
    pub(crate) fn initiator(&self, nexus: NexusId) -> Option<&str> {
        self.nexuses.get(&nexus).map(|nexus| nexus.info.initiator_name.as_str())
    }

    pub(crate) fn port_name(&self, nexus: NexusId) -> Option<Port<'_>> {
        self.nexuses.get(&nexus).map(|nexus| nexus.info.port())
    }

    fn changed_unit(&self, lun: u16) -> Result<usize, Sense> {
        self.unit_index(lun).ok_or(Sense::LOGICAL_UNIT_NOT_SUPPORTED)
    }

    /// Posts a unit attention of one unit to this core's nexuses.
    pub(crate) fn post(&mut self, unit: usize, attention: UnitAttention, except: Option<NexusId>) {
        for (&id, nexus) in &mut self.nexuses {
            if Some(id) != except {
                nexus.attentions[unit].post(attention);
            }
        }
    }

    /// Where in `units` a number is. Not to be kept: units come and go.
    pub(crate) fn unit_index(&self, lun: u16) -> Option<usize> {
        // Small numbers without gaps are the rule: the index is the number.
        match self.units.get(usize::from(lun)) {
            Some(unit) if unit.config.lun == lun => Some(usize::from(lun)),
            _ => self.units.binary_search_by_key(&lun, |unit| unit.config.lun).ok(),
        }
    }

    pub(crate) fn unit(&self, lun: u16) -> Option<&LogicalUnit> {
        self.unit_index(lun).map(|index| &self.units[index])
    }

    /// The copies of a nexus of this core.
    pub(crate) fn copies_mut(&mut self, nexus: NexusId) -> Option<&mut CopyRecords> {
        self.nexuses.get_mut(&nexus).map(|nexus| &mut nexus.copies)
    }

    /// The unit with this NAA designator, if this nexus may see it: a copy reaches nothing that its initiator does not.
    pub(crate) fn visible_unit(&self, nexus: NexusId, naa: &[u8; 16]) -> Option<&LogicalUnit> {
        self.nexuses.contains_key(&nexus).then(|| self.units.iter().find(|unit| unit.naa == *naa))?
    }

    /// The port that a nexus uses; the first one, should it be unknown.
    pub(crate) fn port_of(&self, nexus: NexusId) -> PortConfig {
        let relative_port = self.nexuses.get(&nexus).map(|nexus| nexus.info.relative_port);
        let port = self.ports.iter().find(|port| Some(port.relative_port) == relative_port);
        *port.unwrap_or(&self.ports[0])
    }

    /// Takes the unit attention that a nexus is to be told first.
    pub(crate) fn take_attention(&mut self, nexus: NexusId, unit: usize) -> Option<Sense> {
        let attention = self.nexuses.get_mut(&nexus)?.attentions[unit].take()?;
        if attention == UnitAttention::ReportedLunsDataHasChanged {
            // Told by one unit it is told by all, as LUICLR says (SPC-4 §7.8.7).
            self.clear_luns_changed(nexus);
        }
        Some(attention.sense())
    }

    /// A nexus knows which units there are.
    pub(crate) fn clear_luns_changed(&mut self, nexus: NexusId) {
        if let Some(nexus) = self.nexuses.get_mut(&nexus) {
            for attentions in &mut nexus.attentions {
                attentions.clear(UnitAttention::ReportedLunsDataHasChanged);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::{NEXUS, OTHER, World, geometry, info, lun_config, server_config};

    /// Goal: each mistake of a configuration is found. Method: make each alone.
    #[test]
    fn mistakes_are_found() {
        let right = server_config(vec![lun_config(0, geometry()), lun_config(1, geometry())]);
        assert_eq!(right.check(), Ok(()));
        let wrong = |make: fn(&mut ServerConfig)| {
            let mut config = right.clone();
            make(&mut config);
            config.check().unwrap_err()
        };
        assert_eq!(wrong(|config| config.luns[1].lun = 0), ConfigError::LunTwice { lun: 0 });
        assert_eq!(wrong(|config| config.luns[1].id = config.luns[0].id), ConfigError::IdTwice { lun: 1 });
        assert_eq!(wrong(|config| config.luns[1].lun = 0x4000), ConfigError::LunTooLarge { lun: 0x4000 });
        assert_eq!(wrong(|config| config.luns[1].serial = "ü".to_owned()), ConfigError::Serial { lun: 1 });
        assert_eq!(
            wrong(|config| config.ports[1].relative_port = 1),
            ConfigError::RelativePort { relative_port: 1 }
        );
        assert_eq!(
            wrong(|config| config.ports[1].relative_port = 0),
            ConfigError::RelativePort { relative_port: 0 }
        );
        assert_eq!(wrong(|config| config.ports.clear()), ConfigError::Ports);
        assert_eq!(wrong(|config| config.target_name = "x".repeat(224)), ConfigError::TargetName);
        for make in [
            (|shape| shape.block_bytes = 520) as fn(&mut Geometry),
            |shape| shape.blocks = 0,
            |shape| shape.physical_block_bytes = 3 * 512,
            |shape| shape.physical_block_bytes = 512 << 16,
            |shape| shape.unmap_granularity_bytes = 100,
            |shape| shape.blocks = u64::MAX,
        ] {
            let mut config = right.clone();
            make(&mut config.luns[1].geometry);
            assert_eq!(config.check(), Err(ConfigError::Geometry { lun: 1 }));
        }
        let mut config = right.clone();
        config.luns = vec![lun_config(0, geometry()); LUNS_MAX + 1];
        assert_eq!(config.check(), Err(ConfigError::TooManyLuns));
    }

    /// Goal: a new nexus hears of power on, or of its loss, once from every unit; other commands are not executed.
    #[test]
    fn new_nexuses_hear_once() {
        let mut world = World::of(vec![lun_config(0, geometry()), lun_config(9, geometry())]);
        world.server.open_nexus(NEXUS, info(1, false));
        world.server.open_nexus(OTHER, info(1, true));
        assert_eq!(
            world.run_as(NEXUS, 9, &[0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0], 512, &[]).bad(0x6_2900).ios,
            []
        );
        world.run_as(NEXUS, 9, &[0; 6], 0, &[]).good();
        world.run_as(NEXUS, 0, &[0x12, 0, 0, 0, 36, 0], 36, &[]).good();
        world.run_as(NEXUS, 0, &[0xFF, 0, 0, 0, 0, 0], 0, &[]).bad(0x6_2900);
        assert_eq!(world.hear(OTHER), [0x2907, 0x2907]);
    }

    /// Goal: a reset is heard by every nexus, the one that asked too; a change of an unknown unit is refused.
    #[test]
    fn resets_are_heard_by_all() {
        let mut world = World::of(vec![lun_config(0, geometry()), lun_config(9, geometry())]);
        world.server.apply(&Change::LunReset { lun: 9, by: NEXUS }).unwrap();
        assert_eq!((world.hear(NEXUS), world.hear(OTHER)), (vec![0x2903], vec![0x2903]));
        let lost = world.server.apply(&Change::LunReset { lun: 5, by: NEXUS });
        assert_eq!(lost, Err(Sense::LOGICAL_UNIT_NOT_SUPPORTED));
        assert_eq!((world.server.luns(), world.server.has_lun(5)), (vec![0, 9], false));
    }

    /// Goal: two replicas that apply the same changes agree on every outcome. Method: their nexuses differ.
    #[test]
    fn replicas_agree() {
        let config = || {
            let mut lun = lun_config(0, geometry());
            lun.removable = true;
            server_config(vec![lun])
        };
        let mut replicas = [DeviceServer::new(Core(0), config()), DeviceServer::new(Core(1), config())];
        replicas[0].open_nexus(NEXUS, info(1, false));
        let changes = [
            Change::Prevent { lun: 0, by: NEXUS, prevent: true },
            Change::Medium { lun: 0, by: OTHER, load: false },
            Change::NexusLost { nexus: NEXUS },
            Change::Medium { lun: 0, by: OTHER, load: false },
            Change::LunReset { lun: 0, by: OTHER },
        ];
        let outcomes = changes.map(|change| {
            let [a, b] = replicas.each_mut().map(|replica| replica.apply(&change));
            assert_eq!(a, b);
            a.is_ok()
        });
        assert_eq!(outcomes, [true, false, true, true, true]);
        assert_eq!(replicas[0].units[0].medium, replicas[1].units[0].medium);
    }

    /// Goal: prevention is bounded.
    #[test]
    fn preventers_are_bounded() {
        let mut world = World::new(geometry());
        let prevent = |nexus| Change::Prevent { lun: 0, by: NexusId(nexus), prevent: true };
        let max = crate::limits::PREVENTERS_MAX as u64;
        (0..max).for_each(|nexus| world.server.apply(&prevent(nexus)).unwrap());
        assert_eq!(world.server.apply(&prevent(0)), Ok(()), "again by the same");
        assert_eq!(world.server.apply(&prevent(max)), Err(Sense::INSUFFICIENT_RESOURCES));
    }
}
