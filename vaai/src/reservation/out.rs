//! PERSISTENT RESERVE OUT (SPC-4 §5.13.5 to §5.13.11, §6.16): what each service action does, and who is told.

use super::{Held, ItNexus, Registration, Reservations, Type, port};
use crate::limits::REGISTRATIONS_MAX;
use crate::lun::UnitAttention;
use crate::sense::Sense;

/// A PERSISTENT RESERVE OUT that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReserveOut {
    /// The nexus that it came through.
    pub from: ItNexus,
    /// RESERVATION KEY.
    pub key: u64,
    /// SERVICE ACTION RESERVATION KEY.
    pub action_key: u64,
    /// What to do.
    pub action: Action,
}

/// Service actions with their parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// REGISTER, and REGISTER AND IGNORE EXISTING KEY.
    Register {
        /// Whatever key is registered.
        ignore_key: bool,
        /// SPEC_I_PT: these initiator ports, by name and ISID, as well.
        others: Option<Vec<(String, [u8; 6])>>,
        /// ALL_TG_PT.
        all_ports: bool,
        /// APTPL.
        persists: bool,
    },
    /// RESERVE.
    Reserve(Type),
    /// RELEASE.
    Release {
        /// The byte with SCOPE and TYPE.
        scope_and_type: u8,
    },
    /// CLEAR.
    Clear,
    /// PREEMPT, and PREEMPT AND ABORT.
    Preempt {
        /// Of the reservation that the preempting nexus gets.
        kind: Type,
        /// With the tasks of who is preempted.
        abort: bool,
    },
    /// REGISTER AND MOVE.
    Move {
        /// Who gets the reservation.
        to: ItNexus,
        /// UNREG.
        unregister: bool,
        /// APTPL.
        persists: bool,
    },
}

impl ReserveOut {
    /// Who is preempted loses its tasks.
    pub fn aborts(&self) -> bool {
        matches!(self.action, Action::Preempt { abort: true, .. })
    }
}

/// What others notice.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Told {
    /// Whom to tell what.
    pub(crate) attentions: Vec<(ItNexus, UnitAttention)>,
    /// Whose registrations a preemption removed, and with PREEMPT AND ABORT whose tasks end: also who asked for it, if its own
    /// key was meant and it did not take the reservation (SPC-4 §5.13.11.4.4).
    pub(crate) preempted: Vec<ItNexus>,
}

impl Reservations {
    /// Does it, on a unit that `ports` lead to. Nothing has changed if it is refused.
    ///
    /// # Errors
    /// RESERVATION CONFLICT, or what is wrong with the parameters.
    pub(crate) fn reserve_out(&mut self, out: &ReserveOut, ports: &[u16]) -> Result<Told, Sense> {
        // RESERVE excludes all of it, also for who holds it (SPC-2 §5.5.1): the two kinds never meet.
        if self.reserved_by.is_some() {
            return Err(Sense::RESERVATION_CONFLICT);
        }
        let own = self.key_of(&out.from);
        let is_register = matches!(out.action, Action::Register { .. });
        if !is_register && own != Some(out.key) {
            return Err(Sense::RESERVATION_CONFLICT);
        }
        let mut told = Told::default();
        match &out.action {
            Action::Register { ignore_key, others, all_ports, persists } => {
                if !ignore_key && own.unwrap_or(0) != out.key {
                    return Err(Sense::RESERVATION_CONFLICT);
                }
                let own_ports = [out.from.relative_port];
                let ports = if *all_ports { ports } else { &own_ports };
                self.register(out, own, others.as_deref(), (ports, *persists), &mut told)?;
                self.count();
            }
            Action::Reserve(kind) => self.take(&out.from, *kind)?,
            Action::Release { scope_and_type } => self.let_go(&out.from, *scope_and_type, &mut told)?,
            Action::Clear => {
                self.tell_but(&out.from, UnitAttention::ReservationsPreempted, &mut told);
                self.held = None;
                self.registrations.clear();
                self.count();
            }
            Action::Preempt { kind, .. } => {
                self.preempt(out, *kind, &mut told)?;
                self.count();
            }
            Action::Move { to, unregister, persists } => {
                self.hand_on(out, to, *unregister, ports)?;
                self.set_persists(*persists);
                self.count();
            }
        }
        Ok(told)
    }

    fn count(&mut self) {
        self.generation = self.generation.wrapping_add(1);
    }

    fn set_persists(&mut self, persists: bool) {
        self.persists = persists;
        self.kept |= persists;
    }

    /// SPC-4 §5.13.7: tables 47 and 48.
    fn register(
        &mut self,
        out: &ReserveOut,
        own: Option<u64>,
        others: Option<&[(String, [u8; 6])]>,
        (ports, persists): (&[u16], bool),
        told: &mut Told,
    ) -> Result<(), Sense> {
        if own.is_some() && others.is_some() {
            // SPEC_I_PT is for who is new itself.
            return Err(Sense::INVALID_FIELD_IN_PARAMETER_LIST.list_bit(20, 3));
        }
        let at_port = |name: &str, isid: [u8; 6], relative_port: u16| ItNexus {
            initiator_name: name.to_owned(),
            isid,
            relative_port,
        };
        let ItNexus { initiator_name, isid, .. } = &out.from;
        let own_ones: Vec<ItNexus> = ports.iter().map(|&port| at_port(initiator_name, *isid, port)).collect();
        if out.action_key == 0 {
            if own.is_none() {
                return Ok(());
            }
            for nexus in &own_ones {
                self.unregister(nexus, told);
            }
            told.attentions.retain(|(nexus, _)| !own_ones.contains(nexus));
            self.set_persists(persists);
            return Ok(());
        }
        let mut new: Vec<ItNexus> = others
            .unwrap_or_default()
            .iter()
            .flat_map(|(name, isid)| ports.iter().map(move |&port| at_port(name, *isid, port)))
            .filter(|nexus| self.key_of(nexus).is_none())
            .collect();
        new.extend(own_ones.iter().filter(|nexus| self.key_of(nexus).is_none()).cloned());
        new.sort_unstable();
        new.dedup();
        if self.registrations.len() + new.len() > REGISTRATIONS_MAX {
            return Err(Sense::INSUFFICIENT_REGISTRATION_RESOURCES);
        }
        new.into_iter().chain(own_ones).for_each(|nexus| self.put(nexus, out.action_key));
        self.set_persists(persists);
        Ok(())
    }

    /// Registers a nexus with a key, or changes its key.
    fn put(&mut self, nexus: ItNexus, key: u64) {
        match self.find(port(&nexus)) {
            Ok(at) => self.registrations[at].key = key,
            Err(at) => self.registrations.insert(at, Registration { nexus, key }),
        }
    }

    /// SPC-4 §5.13.11.2.3: a reservation ends with its holder's registration, one of all registrants with the last.
    fn unregister(&mut self, nexus: &ItNexus, told: &mut Told) {
        let Ok(at) = self.find(port(nexus)) else { return };
        self.registrations.remove(at);
        let Some(held) = &self.held else { return };
        let is_over = match &held.holder {
            Some(holder) => holder == nexus,
            None => self.registrations.is_empty(),
        };
        if is_over {
            if held.kind.is_for_registrants() {
                self.tell_but(nexus, UnitAttention::ReservationsReleased, told);
            }
            self.held = None;
        }
    }

    /// RESERVE (SPC-4 §5.13.9).
    fn take(&mut self, from: &ItNexus, kind: Type) -> Result<(), Sense> {
        match &self.held {
            None => {
                self.held = Some(Held::by(from, kind));
                Ok(())
            }
            Some(held) if held.kind == kind && self.is_holder(held, from) => Ok(()),
            Some(_) => Err(Sense::RESERVATION_CONFLICT),
        }
    }

    /// RELEASE (SPC-4 §5.13.11.2.2).
    fn let_go(&mut self, from: &ItNexus, scope_and_type: u8, told: &mut Told) -> Result<(), Sense> {
        let Some(held) = self.held.as_ref().filter(|held| self.is_holder(held, from)) else {
            return Ok(());
        };
        if held.kind as u8 != scope_and_type {
            return Err(Sense::INVALID_RELEASE_OF_PERSISTENT_RESERVATION);
        }
        if held.kind.is_for_registrants() {
            self.tell_but(from, UnitAttention::ReservationsReleased, told);
        }
        self.held = None;
        Ok(())
    }

    /// PREEMPT (SPC-4 §5.13.11.4).
    fn preempt(&mut self, out: &ReserveOut, kind: Type, told: &mut Told) -> Result<(), Sense> {
        let is_all = self.held.as_ref().is_some_and(|held| held.kind.is_all_registrants());
        if out.action_key == 0 && !is_all {
            return Err(Sense::INVALID_FIELD_IN_PARAMETER_LIST.list_byte(8));
        }
        let takes_it = self.held.as_ref().is_some_and(|held| match &held.holder {
            Some(holder) => self.key_of(holder) == Some(out.action_key),
            None => out.action_key == 0,
        });
        let is_meant = |registration: &Registration| {
            registration.key == out.action_key || (takes_it && out.action_key == 0)
        };
        if !self.registrations.iter().any(is_meant) {
            return Err(Sense::RESERVATION_CONFLICT);
        }
        // Who takes the reservation stays registered; otherwise its own key means itself, too.
        let (gone, left) = std::mem::take(&mut self.registrations).into_iter().partition(|registration| {
            is_meant(registration) && !(takes_it && registration.nexus == out.from)
        });
        self.registrations = left;
        let gone: Vec<Registration> = gone;
        if takes_it {
            let before = self.held.replace(Held::by(&out.from, kind));
            if before.is_some_and(|before| before.kind != kind) {
                self.tell_but(&out.from, UnitAttention::ReservationsReleased, told);
            }
        } else if self.registrations.is_empty() {
            self.held = None;
        }
        for Registration { nexus, .. } in gone {
            if nexus != out.from {
                told.attentions.push((nexus.clone(), UnitAttention::RegistrationsPreempted));
            }
            told.preempted.push(nexus);
        }
        Ok(())
    }

    /// REGISTER AND MOVE (SPC-4 §5.13.8).
    fn hand_on(
        &mut self,
        out: &ReserveOut,
        to: &ItNexus,
        unregister: bool,
        ports: &[u16],
    ) -> Result<(), Sense> {
        let Some(held) = &self.held else { return Err(Sense::INVALID_FIELD_IN_CDB.cdb_bit(1, 4)) };
        if held.holder.as_ref() != Some(&out.from) {
            return Err(Sense::RESERVATION_CONFLICT);
        }
        if out.action_key == 0 {
            return Err(Sense::INVALID_FIELD_IN_PARAMETER_LIST.list_byte(8));
        }
        if !ports.contains(&to.relative_port) {
            return Err(Sense::INVALID_FIELD_IN_PARAMETER_LIST.list_byte(18));
        }
        if *to == out.from {
            return Err(Sense::INVALID_FIELD_IN_PARAMETER_LIST.list_byte(24));
        }
        let is_new = self.key_of(to).is_none();
        if is_new && !unregister && self.registrations.len() >= REGISTRATIONS_MAX {
            return Err(Sense::INSUFFICIENT_REGISTRATION_RESOURCES);
        }
        self.held = Some(Held { kind: held.kind, holder: Some(to.clone()) });
        if unregister && let Ok(at) = self.find(port(&out.from)) {
            self.registrations.remove(at);
        }
        self.put(to.clone(), out.action_key);
        Ok(())
    }

    /// Tells all registrants but one.
    fn tell_but(&self, from: &ItNexus, attention: UnitAttention, told: &mut Told) {
        let others = self.registrations.iter().filter(|registration| registration.nexus != *from);
        told.attentions.extend(others.map(|registration| (registration.nexus.clone(), attention)));
    }
}

impl Held {
    fn by(nexus: &ItNexus, kind: Type) -> Held {
        Held { kind, holder: (!kind.is_all_registrants()).then(|| nexus.clone()) }
    }
}
