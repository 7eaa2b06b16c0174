//! Changes to what all nexuses of a logical unit see. Each core holds a replica of the small state (mode pages,
//! medium, prevention, reservations); a change is put in one order for all cores, applied by every one, and only
//! then answered. The transport carries it.

use crate::command::NexusId;
use crate::sense::Sense;

/// One change. Applying it is deterministic: every replica ends in the same state with the same outcome.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// LOGICAL UNIT RESET (SAM-5 §6.3.3), or each unit's share of a target reset.
    LunReset {
        /// Which.
        lun: u16,
        /// Who asked.
        by: NexusId,
    },
    /// The nexus is gone: logout, connection loss or reinstatement.
    NexusLost {
        /// Which.
        nexus: NexusId,
    },
    /// MODE SELECT: the mode parameters that can change are these from now on.
    ModeSelect {
        /// Which unit.
        lun: u16,
        /// Who asked.
        by: NexusId,
        /// All of them.
        parameters: ModeParameters,
    },
    /// START STOP UNIT with LOEJ=1.
    Medium {
        /// Which unit.
        lun: u16,
        /// Who asked.
        by: NexusId,
        /// Loaded or ejected from now on.
        load: bool,
    },
    /// PREVENT ALLOW MEDIUM REMOVAL.
    Prevent {
        /// Which unit.
        lun: u16,
        /// Who asked; prevention is counted by nexus.
        by: NexusId,
        /// Prevented or allowed from now on.
        prevent: bool,
    },
}

/// How applying a [`Change`] ended: what the task that proposed it answers.
pub type Applied = Result<(), Sense>;

/// The mode parameters that MODE SELECT can change (SPC-4 §7.5). All are off by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ModeParameters {
    /// D_SENSE: descriptor format sense data.
    pub descriptor_sense: bool,
    /// SWP: software write protect.
    pub software_write_protect: bool,
}
