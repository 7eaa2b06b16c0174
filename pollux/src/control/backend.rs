//! What the control API wants of the running target: one trait, which `boot` implements over the reactors and the
//! tests over memory.
//!
//! Every method may block, and every wait in it has a bound (see [`super::answer`]): a control thread waits, a reactor
//! never does. Changes come one at a time; the methods that only look may run beside them, and beside each other.

use crate::below::Below;
use crate::spec::Device;
use bdev::geometry::Geometry;
use bdev::io::BdevId;
use bdev::pool::control::{Answer, MemberInfo, Refusal, Request};
use bdev::storage::CopyCounts;

/// Why something wasn't done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// It was refused, and nothing has changed.
    Refused(Refusal),
    /// No answer came in time: it may be done, or be done later. Names who is silent.
    Unanswered(String),
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Failure {
        Failure::Refused(refusal)
    }
}

/// How it went.
pub type Outcome<T> = Result<T, Failure>;

/// A volume and the pool that it is in.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct VolumeName {
    /// The pool's name.
    pub pool: String,
    /// The volume's, in the pool.
    pub volume: String,
}

/// Where a unit comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// It stands in the configuration or on the command line, and goes only there.
    Configuration,
    /// It was mapped, and a pool's catalog remembers it.
    Catalog,
}

/// A unit that is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit {
    /// The target's name.
    pub target: String,
    /// Its number.
    pub lun: u16,
    /// Where it comes from.
    pub source: Source,
    /// The volume that it shows, if it shows one.
    pub volume: Option<VolumeName>,
    /// What stands behind it, as a LUN SPEC.
    pub spec: String,
    /// Capacity.
    pub bytes: u64,
    /// Logical block.
    pub block_bytes: u32,
    /// Physical block.
    pub physical_block_bytes: u32,
    /// Writes are refused.
    pub read_only: bool,
    /// The medium can be ejected.
    pub removable: bool,
    /// Its identity.
    pub id: [u8; 16],
    /// The name that hosts show for it, such as `naa.6...`.
    pub name: String,
}

/// A unit to be served, over a volume that was attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewUnit {
    /// The target's name.
    pub target: String,
    /// Its number.
    pub lun: u16,
    /// The volume that it shows.
    pub volume: VolumeName,
    /// The device, as [`Answer::Attached`] said it.
    pub bdev: BdevId,
    /// Its shape.
    pub geometry: Geometry,
    /// The volume's UUID, of which the unit's identity is made.
    pub uuid: [u8; 16],
    /// Writes are refused.
    pub read_only: bool,
    /// The medium can be ejected.
    pub removable: bool,
    /// What was reserved of it when it was last there.
    pub reservations: Vec<u8>,
}

/// What hosts have to hear of a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It has this many bytes now (2Ah/09h).
    Capacity(u64),
    /// It holds something else now (28h/00h).
    Contents,
}

/// The running target, as the control API sees it.
#[expect(
    clippy::missing_errors_doc,
    reason = "each may be refused or stay unanswered: Failure says what that means"
)]
pub trait Backend: Send + Sync + 'static {
    /// The open pools' names, ascending.
    fn pools(&self) -> Vec<String>;

    /// Asks the pool's owner, and waits for its answer. A name that no open pool has is refused as `NotFound`.
    fn ask(&self, pool: &str, request: Request) -> Outcome<Answer>;

    /// What the file systems below these members can still give; `None` if no member is a file.
    fn below(&self, members: &[MemberInfo]) -> Option<Below>;

    /// Makes a pool of these devices, opens it and remembers where it is, so that it is there after a restart. Paths
    /// are absolute. Refused: a name that is taken, a device that somebody uses or that holds a pool.
    fn pool_create(&self, name: &str, devices: &[Device]) -> Outcome<()>;

    /// Adds these devices. One that is a member already is enlarged to its size, if it is a file. None at all: looks
    /// whether the members have grown, and takes what came to be.
    fn pool_grow(&self, name: &str, devices: &[Device]) -> Outcome<()>;

    /// Closes the pool, forgets it, and marks its devices as nobody's. No unit shows a volume of it.
    fn pool_delete(&self, name: &str) -> Outcome<()>;

    /// The targets' names; not empty.
    fn targets(&self) -> Vec<String>;

    /// All units that are served.
    fn units(&self) -> Outcome<Vec<Unit>>;

    /// Serves a unit on all cores, and lets the hosts know that there are other units now. `NotFound`: no such target;
    /// `Exists`: the number is taken. Refused or done on all cores alike.
    fn unit_add(&self, unit: &NewUnit) -> Outcome<()>;

    /// Takes a unit from all cores, with its hosts if it has any; lets them know. When it returns, no command on the
    /// unit is under way.
    fn unit_remove(&self, target: &str, lun: u16) -> Outcome<()>;

    /// How many sessions have the unit.
    fn unit_sessions(&self, target: &str, lun: u16) -> Outcome<u32>;
    /// What third-party copies have done to the unit since its device was there.
    fn unit_copies(&self, target: &str, lun: u16) -> Outcome<CopyCounts>;

    /// Takes the change over on all cores and lets every nexus hear of it.
    fn unit_changed(&self, target: &str, lun: u16, change: Change) -> Outcome<()>;
}
