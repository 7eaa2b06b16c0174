//! What outlives the program of a unit's reservations (APTPL=1), as bytes that somebody below keeps: see
//! `docs/disk-format.md`, "Reservations". PRGENERATION begins anew, as the standard has it (SPC-4 §5.13.5).

use super::{Held, ItNexus, Registration, Reservations, Type, port};
use crate::limits::REGISTRATIONS_MAX;
use std::fmt;

const VERSION: u8 = 1;
/// Version, type, holder, count.
const HEAD_BYTES: usize = 6;
/// Name's length, name, ISID, relative target port, key.
const REGISTRATION_BYTES_MAX: usize = 1 + super::list::NAME_BYTES_MAX + 6 + 2 + 8;
/// No single holder.
const NOBODY: u16 = u16::MAX;

/// The longest record.
pub const KEPT_BYTES_MAX: usize = HEAD_BYTES + REGISTRATIONS_MAX * REGISTRATION_BYTES_MAX;

/// What was kept are no reservations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MalformedReservations;

impl fmt::Display for MalformedReservations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the reservations that were kept are damaged, or of another version")
    }
}

impl std::error::Error for MalformedReservations {}

/// Whether a unit that is given these bytes has reservations of them; it has none otherwise.
///
/// # Errors
/// They are damaged.
pub fn check_kept(bytes: &[u8]) -> Result<(), MalformedReservations> {
    Reservations::from_kept(bytes).map(drop)
}

impl Reservations {
    /// Of a unit that is there from now on. `kept`: what its predecessor left, if there is something that keeps; what
    /// is damaged is left out, and whoever hands it over has said so.
    pub(crate) fn of(kept: Option<&[u8]>) -> Reservations {
        let Some(bytes) = kept else { return Reservations::default() };
        let back = Reservations::from_kept(bytes).unwrap_or_default();
        Reservations { can_persist: true, kept: !bytes.is_empty(), ..back }
    }

    /// What is to be kept; nothing, unless APTPL asks for it.
    pub(crate) fn to_kept(&self) -> Vec<u8> {
        if !self.persists || self.registrations.is_empty() {
            return Vec::new();
        }
        let (kind, holder) = match &self.held {
            None => (0, NOBODY),
            Some(held) => {
                let place = held.holder.as_ref().and_then(|holder| self.find(port(holder)).ok());
                (held.kind as u8, place.map_or(NOBODY, |place| place as u16))
            }
        };
        let mut bytes = vec![VERSION, kind];
        bytes.extend(holder.to_le_bytes());
        bytes.extend((self.registrations.len() as u16).to_le_bytes());
        for Registration { nexus, key } in &self.registrations {
            bytes.push(nexus.initiator_name.len() as u8);
            bytes.extend(nexus.initiator_name.as_bytes());
            bytes.extend(nexus.isid);
            bytes.extend(nexus.relative_port.to_le_bytes());
            bytes.extend(key.to_le_bytes());
        }
        bytes
    }

    fn from_kept(bytes: &[u8]) -> Result<Reservations, MalformedReservations> {
        if bytes.is_empty() {
            return Ok(Reservations::default());
        }
        let mut from = bytes;
        let [version, kind, low, high] = take(&mut from)?;
        let count = usize::from(u16::from_le_bytes(take(&mut from)?));
        if version != VERSION || count == 0 || count > REGISTRATIONS_MAX {
            return Err(MalformedReservations);
        }
        let mut registrations: Vec<Registration> = Vec::with_capacity(count);
        for _ in 0..count {
            let registration = take_registration(&mut from)?;
            let ascends = registrations.last().is_none_or(|last| last.nexus < registration.nexus);
            if registration.key == 0 || !ascends {
                return Err(MalformedReservations);
            }
            registrations.push(registration);
        }
        let holder = registrations.get(usize::from(u16::from_le_bytes([low, high])));
        let held = match (kind, Type::of(kind), holder) {
            (0, None, None) => None,
            (_, Some(kind), holder) if kind.is_all_registrants() == holder.is_none() => {
                Some(Held { kind, holder: holder.map(|holder| holder.nexus.clone()) })
            }
            _ => return Err(MalformedReservations),
        };
        if !from.is_empty() {
            return Err(MalformedReservations);
        }
        Ok(Reservations { registrations, held, persists: true, ..Reservations::default() })
    }
}

fn take_registration(from: &mut &[u8]) -> Result<Registration, MalformedReservations> {
    let [length] = take(from)?;
    let (name, rest) = from.split_at_checked(usize::from(length)).ok_or(MalformedReservations)?;
    *from = rest;
    let name = std::str::from_utf8(name).map_err(|_| MalformedReservations)?;
    if name.is_empty() || name.len() > super::list::NAME_BYTES_MAX {
        return Err(MalformedReservations);
    }
    let isid = take(from)?;
    let relative_port = u16::from_le_bytes(take(from)?);
    let key = u64::from_le_bytes(take(from)?);
    let nexus = ItNexus { initiator_name: name.to_owned(), isid, relative_port };
    Ok(Registration { nexus, key })
}

fn take<const N: usize>(from: &mut &[u8]) -> Result<[u8; N], MalformedReservations> {
    let (taken, rest) = from.split_first_chunk().ok_or(MalformedReservations)?;
    *from = rest;
    Ok(*taken)
}
