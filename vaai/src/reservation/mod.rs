//! Reservations of one logical unit (SPC-4 §5.13, and SPC-2 §5.5 for RESERVE and RELEASE): who is registered, who holds
//! what, and whom that stops. A replica of every core; [`crate::server::DeviceServer::apply`] changes it.
//!
//! Invariants: registrations ascend by nexus, each once, at most [`crate::limits::REGISTRATIONS_MAX`]; who holds a
//! reservation is registered; while RESERVE holds the unit nobody is registered.

mod command;
mod conflict;
mod kept;
mod list;
#[cfg(test)]
mod model;
mod out;
mod report;
#[cfg(test)]
mod tests;

pub use conflict::Access;
pub use kept::{KEPT_BYTES_MAX, MalformedReservations, check_kept};
pub use out::{Action, ReserveOut};

pub(crate) use command::{Reserve, persistent_reserve_in, persistent_reserve_out, release, reserve};
pub(crate) use conflict::Class;
pub(crate) use out::Told;
pub(crate) use report::ReserveIn;

use crate::cdb::Cdb;
use crate::change::Applied;
use crate::command::NexusId;
#[cfg(test)]
use crate::limits::REGISTRATIONS_MAX;
use crate::sense::Sense;

/// An I_T nexus as it is known over its sessions: initiator port and target port. A registrant that logs in again is
/// that registrant.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ItNexus {
    /// The initiator's iSCSI name.
    pub initiator_name: String,
    /// Its port's ISID.
    pub isid: [u8; 6],
    /// RELATIVE TARGET PORT IDENTIFIER.
    pub relative_port: u16,
}

/// TYPE of a persistent reservation (SPC-4 §6.15.3.4, table 204).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Type {
    /// Only the holder writes.
    WriteExclusive = 1,
    /// Only the holder reads and writes.
    ExclusiveAccess = 3,
    /// Only registrants write.
    WriteExclusiveRegistrantsOnly = 5,
    /// Only registrants read and write.
    ExclusiveAccessRegistrantsOnly = 6,
    /// Only registrants write, and all of them hold it.
    WriteExclusiveAllRegistrants = 7,
    /// Only registrants read and write, and all of them hold it.
    ExclusiveAccessAllRegistrants = 8,
}

impl Type {
    const ALL: [Type; 6] = [
        Type::WriteExclusive,
        Type::ExclusiveAccess,
        Type::WriteExclusiveRegistrantsOnly,
        Type::ExclusiveAccessRegistrantsOnly,
        Type::WriteExclusiveAllRegistrants,
        Type::ExclusiveAccessAllRegistrants,
    ];

    /// The type with this code.
    pub(crate) fn of(code: u8) -> Option<Type> {
        Type::ALL.into_iter().find(|kind| *kind as u8 == code)
    }

    /// Every registrant holds it.
    pub(crate) fn is_all_registrants(self) -> bool {
        matches!(self, Type::WriteExclusiveAllRegistrants | Type::ExclusiveAccessAllRegistrants)
    }

    /// Registrants may do what others may not, whether they hold it or not.
    pub(crate) fn is_for_registrants(self) -> bool {
        !matches!(self, Type::WriteExclusive | Type::ExclusiveAccess)
    }

    fn stops_reading(self) -> bool {
        matches!(
            self,
            Type::ExclusiveAccess
                | Type::ExclusiveAccessRegistrantsOnly
                | Type::ExclusiveAccessAllRegistrants
        )
    }
}

/// One registrant.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Registration {
    nexus: ItNexus,
    /// RESERVATION KEY, not 0.
    key: u64,
}

/// A persistent reservation. Its scope is the logical unit, there is no other.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Held {
    kind: Type,
    /// `None`: every registrant, and there is one.
    holder: Option<ItNexus>,
}

/// What is reserved of a logical unit, and by whom.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Reservations {
    registrations: Vec<Registration>,
    held: Option<Held>,
    /// PRGENERATION.
    generation: u32,
    /// Registrations and reservation are to outlive the program: the last APTPL.
    persists: bool,
    /// There is something that keeps them (PTPL_C).
    can_persist: bool,
    /// Something may be kept: what changes has to be kept, too.
    kept: bool,
    /// By RESERVE. It ends with the nexus.
    reserved_by: Option<NexusId>,
}

impl Reservations {
    /// The SPC-2 part ends: the nexus is gone.
    pub(crate) fn lose(&mut self, nexus: NexusId) {
        if self.reserved_by == Some(nexus) {
            self.reserved_by = None;
        }
    }

    /// LOGICAL UNIT RESET: RESERVE is released, persistent reservations are not (SPC-4 §5.13.4).
    pub(crate) fn reset(&mut self) {
        self.reserved_by = None;
    }

    /// Whether what changed must be kept before it is answered.
    pub(crate) fn is_kept(&self) -> bool {
        self.kept
    }

    /// Whether a command of `by` meets somebody else's reservation. `who` looks up the same nexus; `None`: nobody knows it.
    ///
    /// # Errors
    /// RESERVATION CONFLICT.
    pub(crate) fn check<'a>(
        &self,
        class: Class,
        cdb: &Cdb,
        by: NexusId,
        who: impl FnOnce() -> Option<Port<'a>>,
    ) -> Result<(), Sense> {
        // The rule, and on the way of every IO.
        if self.reserved_by.is_none() && self.held.is_none() {
            return Ok(());
        }
        if self.reserved_by.is_some_and(|holder| holder != by) && class.stopped_by_reserve(cdb) {
            return Err(Sense::RESERVATION_CONFLICT);
        }
        self.check_persistent(class.access(cdb), who())
    }

    /// Whether a nexus may do this, whatever the command.
    ///
    /// # Errors
    /// RESERVATION CONFLICT.
    pub(crate) fn check_access(
        &self,
        access: Access,
        by: NexusId,
        who: Option<Port<'_>>,
    ) -> Result<(), Sense> {
        if access != Access::Status && self.reserved_by.is_some_and(|holder| holder != by) {
            return Err(Sense::RESERVATION_CONFLICT);
        }
        self.check_persistent(access, who)
    }

    fn check_persistent(&self, access: Access, who: Option<Port<'_>>) -> Result<(), Sense> {
        let Some(held) = &self.held else { return Ok(()) };
        let is_free = match access {
            Access::Status => true,
            Access::Read => !held.kind.stops_reading(),
            Access::Write => false,
        };
        if is_free || who.is_some_and(|who| self.is_let_in(held, who)) {
            return Ok(());
        }
        Err(Sense::RESERVATION_CONFLICT)
    }

    /// Holders, and registrants of the types that are for them.
    fn is_let_in(&self, held: &Held, who: Port<'_>) -> bool {
        match &held.holder {
            Some(holder) if !held.kind.is_for_registrants() => port(holder) == who,
            _ => self.find(who).is_ok(),
        }
    }

    /// RESERVE(6) and (10), beside registrants as CRH=1 has it (SPC-4 §5.13.3).
    ///
    /// # Errors
    /// RESERVATION CONFLICT.
    pub(crate) fn reserve(&mut self, by: NexusId, who: Port<'_>) -> Applied {
        if !self.registrations.is_empty() {
            // Who may write anyhow is told so, and nothing is reserved. Without a persistent reservation that would be a
            // promise that nobody keeps.
            let may = self.held.as_ref().is_some_and(|held| self.is_let_in(held, who));
            return if may { Ok(()) } else { Err(Sense::RESERVATION_CONFLICT) };
        }
        match self.reserved_by {
            Some(holder) if holder != by => Err(Sense::RESERVATION_CONFLICT),
            _ => {
                self.reserved_by = Some(by);
                Ok(())
            }
        }
    }

    /// RELEASE(6) and (10): of nobody but the holder does it anything, and it is good from all.
    pub(crate) fn release(&mut self, by: NexusId) {
        self.lose(by);
    }

    /// Where a nexus' registration is, or would be.
    fn find(&self, who: Port<'_>) -> Result<usize, usize> {
        self.registrations.binary_search_by(|registration| port(&registration.nexus).cmp(&who))
    }

    /// The key that a nexus has registered.
    fn key_of(&self, nexus: &ItNexus) -> Option<u64> {
        self.find(port(nexus)).ok().map(|at| self.registrations[at].key)
    }

    /// Whether a nexus holds the persistent reservation.
    fn is_holder(&self, held: &Held, nexus: &ItNexus) -> bool {
        match &held.holder {
            Some(holder) => holder == nexus,
            None => self.key_of(nexus).is_some(),
        }
    }

    #[cfg(test)]
    fn check_invariants(&self) {
        assert!(self.registrations.is_sorted_by(|a, b| a.nexus < b.nexus));
        assert!(self.registrations.len() <= REGISTRATIONS_MAX);
        assert!(self.registrations.iter().all(|registration| registration.key != 0));
        assert!(self.reserved_by.is_none() || self.registrations.is_empty());
        if let Some(held) = &self.held {
            assert!(!self.registrations.is_empty());
            assert_eq!(held.holder.is_none(), held.kind.is_all_registrants());
            assert!(held.holder.as_ref().is_none_or(|holder| self.key_of(holder).is_some()));
        }
    }
}

/// An [`ItNexus`] that somebody else owns, in the order of those.
pub(crate) type Port<'a> = (&'a str, [u8; 6], u16);

pub(crate) fn port(nexus: &ItNexus) -> Port<'_> {
    (&nexus.initiator_name, nexus.isid, nexus.relative_port)
}
