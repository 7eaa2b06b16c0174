//! Changes to what all nexuses of a logical unit see. Each core holds a replica of the small state (mode pages,
//! medium, prevention, reservations); a change is put in one order for all cores, applied by every one, and only
//! then answered. The transport carries it.

use crate::command::NexusId;

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
}
