//! PERSISTENT RESERVE IN (SPC-4 §6.15): what initiators are told of registrations and reservations.

use super::list::to_transport_id;
use super::{Held, Reservations};
use crate::reply::Out;

/// Service actions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReserveIn {
    /// READ KEYS.
    Keys,
    /// READ RESERVATION.
    Reservation,
    /// REPORT CAPABILITIES.
    Capabilities,
    /// READ FULL STATUS.
    FullStatus,
}

/// CRH, SIP_C, ATP_C: RESERVE and RELEASE beside registrants, SPEC_I_PT, ALL_TG_PT.
const CAPABILITIES: u8 = 0x1C;
const PTPL_C: u8 = 0x01;
/// The type mask is valid.
const TMV: u8 = 0x80;
const PTPL_A: u8 = 0x01;
/// PERSISTENT RESERVATION TYPE MASK: all six.
const TYPES: [u8; 2] = [0xEA, 0x01];

impl ReserveIn {
    /// The parameter data.
    pub(crate) fn build(self, reservations: &Reservations, out: &mut Out<'_>) {
        match self {
            ReserveIn::Keys => {
                out.bytes(&reservations.generation.to_be_bytes());
                out.bytes(&(reservations.registrations.len() as u32 * 8).to_be_bytes());
                for registration in &reservations.registrations {
                    out.bytes(&registration.key.to_be_bytes());
                }
            }
            ReserveIn::Reservation => {
                out.bytes(&reservations.generation.to_be_bytes());
                let Some(held) = &reservations.held else { return out.zeroes(4) };
                out.bytes(&0x10_u32.to_be_bytes());
                // All registrants have no key in common: it is 0 then.
                let key = held.holder.as_ref().and_then(|holder| reservations.key_of(holder));
                out.bytes(&key.unwrap_or(0).to_be_bytes());
                out.zeroes(5);
                out.bytes(&[held.kind as u8, 0, 0]);
            }
            ReserveIn::Capabilities => {
                let can = if reservations.can_persist { PTPL_C } else { 0 };
                let does = if reservations.persists { PTPL_A } else { 0 };
                out.bytes(&[0, 8, CAPABILITIES | can, TMV | does, TYPES[0], TYPES[1], 0, 0]);
            }
            ReserveIn::FullStatus => full_status(reservations, out),
        }
    }
}

/// One descriptor a registration. A registration for all target ports is one for each here (ALL_TG_PT=0).
fn full_status(reservations: &Reservations, out: &mut Out<'_>) {
    let begin = out.len();
    out.bytes(&reservations.generation.to_be_bytes());
    out.zeroes(4);
    for registration in &reservations.registrations {
        let held =
            reservations.held.as_ref().filter(|held| reservations.is_holder(held, &registration.nexus));
        out.bytes(&registration.key.to_be_bytes());
        out.zeroes(4);
        out.bytes(&[u8::from(held.is_some()), held.map_or(0, |Held { kind, .. }| *kind as u8)]);
        out.zeroes(4);
        out.bytes(&registration.nexus.relative_port.to_be_bytes());
        let transport_id = to_transport_id(&registration.nexus);
        out.bytes(&(transport_id.len() as u32).to_be_bytes());
        out.bytes(&transport_id);
    }
    let length = (out.len() - begin - 8) as u32;
    out.patch(begin + 4, &length.to_be_bytes());
}
