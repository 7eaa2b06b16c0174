//! Units that come, go and change while sessions are there: what the program asks of one core, and is told when all
//! have done it.
//!
//! Invariant: `unit_changes` counts what was proposed here and whose outcome was not taken; each has one outcome.

use crate::decree::{Decree, Outcome};
use crate::target::{Asker, Env, Target};
use std::fmt;
use tracing::debug;
use vaai::change::UnitChange;
use vaai::server::ConfigError;

/// Changes of the units whose outcome the program has not taken. Each may wait for a device as long as a function, so
/// they are few beside what [`crate::decree::under_way_max`] lets in.
pub const UNIT_CHANGES_MAX: usize = 8;

/// Why a [`UnitChange`] is not as the program wants it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnitChangeError {
    /// It would break a rule: nothing has changed.
    Refused(ConfigError),
    /// All cores have made it, but a device still holds requests of the unit's tasks after
    /// [`crate::task_management::QUIESCE_TIMEOUT`]: it must not be closed or cut short.
    Stuck,
}

impl fmt::Display for UnitChangeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            UnitChangeError::Refused(error) => write!(f, "refused: {error}"),
            UnitChangeError::Stuck => {
                f.write_str("made, but the device still holds requests of aborted tasks")
            }
        }
    }
}

impl std::error::Error for UnitChangeError {}

impl Target {
    /// The program wants a change of the units. [`Target::poll_unit_change`] gives its outcome under `ticket` when every
    /// core has made or refused it. Changes are made in the order in which one core proposes them. False:
    /// [`UNIT_CHANGES_MAX`] are under way already, or made and their outcomes not taken; nothing is proposed.
    #[must_use]
    pub fn propose_unit_change(&mut self, ticket: u64, change: UnitChange, env: &mut Env<'_>) -> bool {
        let is_proposed = self.propose(Decree::Units(change), Asker::Program { ticket }, env);
        self.unit_changes += usize::from(is_proposed);
        is_proposed
    }

    /// The outcome of a [`Target::propose_unit_change`] of this core, each once.
    pub fn poll_unit_change(&mut self) -> Option<(u64, Result<(), UnitChangeError>)> {
        let made = self.unit_changes_made.pop_front()?;
        self.unit_changes -= 1;
        Some(made)
    }

    /// All cores have made or refused a change that the program proposed here.
    pub(crate) fn unit_change_decreed(
        &mut self,
        ticket: u64,
        refused: Option<ConfigError>,
        outcome: Outcome,
    ) {
        let made = match refused {
            Some(error) => Err(UnitChangeError::Refused(error)),
            None if outcome.stuck => Err(UnitChangeError::Stuck),
            None => Ok(()),
        };
        // What a change is about is told by the program; of a pool's space there may be one each second.
        debug!(ticket, ?made, "change of the units");
        self.unit_changes_made.push_back((ticket, made));
    }
}
