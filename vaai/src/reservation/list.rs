//! PERSISTENT RESERVE OUT's parameter list (SPC-4 §6.16.3, §6.16.4) and the iSCSI TransportID (§7.6.4.6), both ways.

use super::out::{Action, ReserveOut};
use super::{ItNexus, Type};
use crate::sense::Sense;

/// Service actions of PERSISTENT RESERVE OUT.
pub(super) const REGISTER: u8 = 0x00;
pub(super) const RESERVE: u8 = 0x01;
pub(super) const RELEASE: u8 = 0x02;
pub(super) const CLEAR: u8 = 0x03;
pub(super) const PREEMPT: u8 = 0x04;
pub(super) const PREEMPT_AND_ABORT: u8 = 0x05;
pub(super) const REGISTER_AND_IGNORE_EXISTING_KEY: u8 = 0x06;
pub(super) const REGISTER_AND_MOVE: u8 = 0x07;

/// The list without what SPEC_I_PT or REGISTER AND MOVE add.
pub(super) const LIST_BYTES: usize = 24;

const SPEC_I_PT: u8 = 0x08;
const ALL_TG_PT: u8 = 0x04;
const APTPL: u8 = 0x01;
/// REGISTER AND MOVE.
const UNREG: u8 = 0x02;

/// PROTOCOL IDENTIFIER of iSCSI.
const ISCSI: u8 = 0x05;
/// FORMAT CODE: a name alone, which is all ports of an initiator, or a name with an ISID.
const PORT_FORMAT: u8 = 0x40;
const TRANSPORT_ID_BYTES_MIN: usize = 20;
/// The longest iSCSI name (RFC 7143 §4.2.7.2).
pub(super) const NAME_BYTES_MAX: usize = 223;

const WRONG: Sense = Sense::INVALID_FIELD_IN_PARAMETER_LIST;
const CUT: Sense = Sense::PARAMETER_LIST_LENGTH_ERROR;

/// Reads a list.
///
/// # Errors
/// What is wrong with it, or with the CDB's SCOPE and TYPE, and where.
pub(super) fn parse(
    list: &[u8],
    service_action: u8,
    scope_and_type: u8,
    from: ItNexus,
    can_persist: bool,
) -> Result<ReserveOut, Sense> {
    let Some((head, rest)) = list.split_at_checked(LIST_BYTES) else { return Err(CUT) };
    let number = |at: usize| head[at..at + 8].iter().fold(0, |sum, &byte| sum << 8 | u64::from(byte));
    let (key, action_key) = (number(0), number(8));
    let is_move = service_action == REGISTER_AND_MOVE;
    let is_register = matches!(service_action, REGISTER | REGISTER_AND_IGNORE_EXISTING_KEY);
    let flags = if is_move { head[17] } else { head[20] };
    let flags_at = if is_move { 17 } else { 20 };
    let is_specified = !is_move && flags & SPEC_I_PT != 0;
    if is_specified && service_action != REGISTER {
        return Err(WRONG.list_bit(20, 3));
    }
    if !is_specified && !is_move && !rest.is_empty() {
        return Err(CUT);
    }
    // Of other service actions APTPL is ignored.
    let persists = (is_register || is_move) && flags & APTPL != 0;
    if persists && !can_persist {
        return Err(WRONG.list_bit(flags_at, 0));
    }
    let kind = || {
        if scope_and_type >> 4 != 0 {
            // SCOPE: the logical unit is the only one.
            return Err(Sense::INVALID_FIELD_IN_CDB.cdb_bit(2, 7));
        }
        Type::of(scope_and_type).ok_or(Sense::INVALID_FIELD_IN_CDB.cdb_bit(2, 3))
    };
    let action = match service_action {
        REGISTER | REGISTER_AND_IGNORE_EXISTING_KEY => Action::Register {
            ignore_key: service_action == REGISTER_AND_IGNORE_EXISTING_KEY,
            others: if is_specified { Some(specified(rest)?) } else { None },
            all_ports: flags & ALL_TG_PT != 0,
            persists,
        },
        RESERVE => Action::Reserve(kind()?),
        RELEASE => Action::Release { scope_and_type },
        CLEAR => Action::Clear,
        PREEMPT | PREEMPT_AND_ABORT => {
            Action::Preempt { kind: kind()?, abort: service_action == PREEMPT_AND_ABORT }
        }
        REGISTER_AND_MOVE => {
            let length = be32(&head[20..]);
            if rest.len() != length {
                return Err(CUT);
            }
            let (initiator_name, isid, bytes) = transport_id(rest, LIST_BYTES)?;
            if bytes != rest.len() {
                return Err(WRONG.list_byte(20));
            }
            let to =
                ItNexus { initiator_name, isid, relative_port: u16::from_be_bytes([head[18], head[19]]) };
            Action::Move { to, unregister: flags & UNREG != 0, persists }
        }
        _ => return Err(Sense::INVALID_FIELD_IN_CDB.cdb_bit(1, 4)),
    };
    Ok(ReserveOut { from, key, action_key, action })
}

/// TRANSPORTID PARAMETER DATA LENGTH and as many bytes of TransportIDs.
fn specified(rest: &[u8]) -> Result<Vec<(String, [u8; 6])>, Sense> {
    let Some((length, ids)) = rest.split_at_checked(4) else { return Err(CUT) };
    if be32(length) != ids.len() {
        return Err(CUT);
    }
    let (mut ports, mut at) = (Vec::new(), 0);
    while at < ids.len() {
        let (name, isid, bytes) = transport_id(&ids[at..], LIST_BYTES + 4 + at)?;
        ports.push((name, isid));
        at += bytes;
    }
    Ok(ports)
}

fn be32(bytes: &[u8]) -> usize {
    bytes.iter().take(4).fold(0, |sum, &byte| sum << 8 | usize::from(byte))
}

/// Reads the TransportID that `bytes` begin with, `at` bytes into the list: initiator port, and how long it is.
///
/// # Errors
/// It is cut short, of another protocol, or names no port. Where it begins is where it is wrong.
fn transport_id(bytes: &[u8], at: usize) -> Result<(String, [u8; 6], usize), Sense> {
    let wrong = |offset: usize| WRONG.list_byte((at + offset) as u16);
    if bytes.len() < 4 {
        return Err(CUT);
    }
    // The name of an initiator without a port is none of a nexus.
    if bytes[0] != PORT_FORMAT | ISCSI {
        return Err(wrong(0));
    }
    let end = 4 + usize::from(u16::from_be_bytes([bytes[2], bytes[3]]));
    if !end.is_multiple_of(4) || end - 4 < TRANSPORT_ID_BYTES_MIN {
        return Err(wrong(2));
    }
    let Some(text) = bytes.get(4..end) else { return Err(CUT) };
    let port = text.split(|&byte| byte == 0).next().unwrap_or_default();
    // It has to end in NUL, and in nothing but.
    if port.len() == text.len() || text[port.len()..].iter().any(|&byte| byte != 0) {
        return Err(wrong(4));
    }
    let (name, isid) = std::str::from_utf8(port)
        .ok()
        .and_then(|port| port.rsplit_once(",i,0x"))
        .filter(|(name, digits)| {
            let is_isid = (1..=12).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_hexdigit());
            is_isid && !name.is_empty() && name.len() <= NAME_BYTES_MAX
        })
        .ok_or(wrong(4))?;
    let isid = u64::from_str_radix(isid, 16).map_err(|_| wrong(4))?.to_be_bytes();
    let [_, _, isid @ ..] = isid;
    // Names are compared in lower case, as they are at login (RFC 3722 §4).
    let name = name.to_lowercase();
    if name.len() > NAME_BYTES_MAX {
        return Err(wrong(4));
    }
    Ok((name, isid, end))
}

/// The TransportID of an initiator port.
pub(super) fn to_transport_id(nexus: &ItNexus) -> Vec<u8> {
    let mut bytes = vec![PORT_FORMAT | ISCSI, 0, 0, 0];
    bytes.extend_from_slice(nexus.initiator_name.as_bytes());
    bytes.extend_from_slice(b",i,0x");
    for byte in nexus.isid {
        let digit = |nibble: u8| b"0123456789abcdef"[usize::from(nibble)];
        bytes.extend([digit(byte >> 4), digit(byte & 0xF)]);
    }
    // A NUL at least, and whole words.
    let end = (bytes.len() + 1).next_multiple_of(4).max(4 + TRANSPORT_ID_BYTES_MIN);
    bytes.resize(end, 0);
    let [high, low] = ((end - 4) as u16).to_be_bytes();
    bytes[2..4].copy_from_slice(&[high, low]);
    bytes
}
