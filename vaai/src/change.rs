//! Changes to what all nexuses of a logical unit see. Each core holds a replica of the small state (which units there
//! are, mode pages, medium, prevention, reservations); a change is put in one order for all cores, applied by every
//! one, and only then answered. The transport carries it.
//!
//! A [`Change`] is asked for by a task, which answers for it; a [`UnitChange`] by the program, whose people are told.

use crate::command::NexusId;
use crate::lun::LunConfig;
use crate::reservation::{ItNexus, ReserveOut};
use crate::sense::Sense;
use crate::token::{Token, TokenId};

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
    /// RESERVE and RELEASE.
    Reserve {
        /// Which unit.
        lun: u16,
        /// Who asked, and holds it.
        by: NexusId,
        /// The same, as registrations know it.
        from: Box<ItNexus>,
        /// Reserved or released.
        reserve: bool,
    },
    /// PERSISTENT RESERVE OUT. Where it [aborts](ReserveOut::aborts), the transport aborts the tasks of
    /// [`crate::server::DeviceServer::take_preempted`]'s nexuses, and the change is made when they can do no more harm.
    ReserveOut {
        /// Which unit.
        lun: u16,
        /// Who asked.
        by: NexusId,
        /// What.
        out: Box<ReserveOut>,
    },
    /// POPULATE TOKEN has its data: the token is one from now on.
    TokenMake {
        /// It.
        token: Box<Token>,
    },
    /// WRITE USING TOKEN is about to read a token's data: they stay.
    TokenUse {
        /// Which.
        id: TokenId,
    },
    /// It does so no more.
    TokenRelease {
        /// Which.
        id: TokenId,
    },
    /// DEL_TKN: nobody can use it from now on.
    TokenDelete {
        /// Which.
        id: TokenId,
    },
    /// Nobody has used it for its time: it ends, unless somebody has since.
    TokenExpire {
        /// Which.
        id: TokenId,
        /// Uses that had begun or ended when that was found.
        activity: u32,
    },
}

/// One change of which units there are and of what they are made. As deterministic as a [`Change`], and in one order
/// with those.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UnitChange {
    /// There is one more. Its device has to be there, on every core, before this is proposed. If it takes a removed
    /// unit's number, that removal has to be through: a change that a task of the old unit had asked for would else be
    /// made to the new one.
    Add(Box<LunConfig>),
    /// There is one less. Its tasks are aborted; when all cores have made the change, its device has none of their
    /// requests and may go.
    Remove {
        /// Which.
        lun: u16,
    },
    /// It has another capacity. Its device has to have the new size before it grows, and keep the old one until all
    /// cores have made the change if it shrinks: its tasks are aborted then, since they were checked against the old end.
    Resize {
        /// Which.
        lun: u16,
        /// From now on.
        blocks: u64,
    },
    /// Its blocks are not what they were, by nobody's WRITE: it was rolled back.
    ContentsChanged {
        /// Which.
        lun: u16,
    },
    /// The space behind some units is another than it was. Who is not there, not thin, or can't be written, has none.
    Space {
        /// Which: those of one pool.
        luns: Vec<u16>,
        /// From now on.
        space: PoolSpace,
    },
}

/// What the pool behind a thin unit has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolSpace {
    /// Space that is taken, or promised to others than thin units.
    pub used_bytes: u64,
    /// Space that thin units can still get.
    pub available_bytes: u64,
    /// Hosts are told when so much of both is used.
    pub threshold_percent: u8,
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
