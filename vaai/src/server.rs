//! The device server of one core: its replica of the units' state, and what its own nexuses are to be told.
//!
//! Invariant: the replicas of all cores that have applied the same changes are equal, unit attentions aside, which
//! live where their nexus lives.

use crate::change::{Applied, Change};
use crate::command::{Command, NexusId};
use crate::identity;
use crate::limits::{LUN_MAX, LUNS_MAX, PORTS_MAX};
use crate::lun::{LogicalUnit, LunConfig, UnitAttention, UnitAttentions};
use crate::sense::Sense;
use crate::task::Task;
use reactor::Core;
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

/// Why a [`ServerConfig`] can't be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfigError {
    /// Over [`LUNS_MAX`].
    TooManyLuns,
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
            if lun > LUN_MAX {
                return Err(ConfigError::LunTooLarge { lun });
            }
            if !numbers.insert(lun) {
                return Err(ConfigError::LunTwice { lun });
            }
            if !ids.insert(identity::naa(&config.id)) {
                return Err(ConfigError::IdTwice { lun });
            }
            if config.serial.len() > 64 || !config.serial.bytes().all(|byte| (0x20..=0x7E).contains(&byte)) {
                return Err(ConfigError::Serial { lun });
            }
            if !has_showable_geometry(config) {
                return Err(ConfigError::Geometry { lun });
            }
        }
        Ok(())
    }
}

/// LOGICAL BLOCKS PER PHYSICAL BLOCK EXPONENT has four bits.
const PHYSICAL_BLOCKS_MAX: u32 = 1 << 15;

fn has_showable_geometry(config: &LunConfig) -> bool {
    let geometry = &config.geometry;
    (geometry.block_bytes == 512 || geometry.block_bytes == 4096)
        && geometry.blocks != 0
        && geometry.blocks.checked_mul(u64::from(geometry.block_bytes)).is_some()
        && geometry.physical_block_bytes.is_power_of_two()
        && geometry.physical_block_bytes >= geometry.block_bytes
        && geometry.physical_block_bytes / geometry.block_bytes <= PHYSICAL_BLOCKS_MAX
        && geometry.unmap_granularity_bytes % geometry.block_bytes == 0
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

#[derive(Debug)]
pub(crate) struct Nexus {
    pub(crate) info: NexusInfo,
    /// One for each of the server's units.
    pub(crate) attentions: Vec<UnitAttentions>,
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
        }
    }

    /// A session of this core enters full feature phase: each unit has a unit attention for it (SAM-5 §5.14).
    pub fn open_nexus(&mut self, nexus: NexusId, info: NexusInfo) {
        let mut attentions = UnitAttentions::default();
        attentions.post(if info.after_loss { UnitAttention::NexusLoss } else { UnitAttention::PowerOn });
        self.nexuses.insert(nexus, Nexus { info, attentions: vec![attentions; self.units.len()] });
    }

    /// A session of this core is gone. That others hear of it is [`Change::NexusLost`]'s part.
    pub fn close_nexus(&mut self, nexus: NexusId) {
        self.nexuses.remove(&nexus);
    }

    /// Whether there is such a unit.
    pub fn has_lun(&self, lun: u16) -> bool {
        self.unit_index(lun).is_some()
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
        }
    }

    fn changed_unit(&self, lun: u16) -> Result<usize, Sense> {
        self.unit_index(lun).ok_or(Sense::LOGICAL_UNIT_NOT_SUPPORTED)
    }

    /// Posts a unit attention of one unit to this core's nexuses.
    fn post(&mut self, unit: usize, attention: UnitAttention, except: Option<NexusId>) {
        for (&id, nexus) in &mut self.nexuses {
            if Some(id) != except {
                nexus.attentions[unit].post(attention);
            }
        }
    }

    /// Where in `units` a number is.
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

    /// The port that a nexus uses; the first one, should it be unknown.
    pub(crate) fn port_of(&self, nexus: NexusId) -> PortConfig {
        let relative_port = self.nexuses.get(&nexus).map(|nexus| nexus.info.relative_port);
        let port = self.ports.iter().find(|port| Some(port.relative_port) == relative_port);
        *port.unwrap_or(&self.ports[0])
    }

    /// Takes the unit attention that a nexus is to be told first.
    pub(crate) fn take_attention(&mut self, nexus: NexusId, unit: usize) -> Option<Sense> {
        let attention = self.nexuses.get_mut(&nexus)?.attentions[unit].take()?;
        Some(attention.sense())
    }
}
