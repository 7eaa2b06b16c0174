//! RESERVE, RELEASE, PERSISTENT RESERVE IN and OUT as commands: what is asked for is decreed, kept if it is to outlive the
//! program, and then answered.

use super::list::{self, LIST_BYTES, REGISTER, REGISTER_AND_MOVE};
use super::report::ReserveIn;
use crate::cdb::be16;
use crate::change::{Applied, Change};
use crate::command::Effect;
use crate::limits::PARAMETER_LIST_BYTES_MAX;
use crate::reply::{ParameterData, Reply};
use crate::sense::Sense;
use crate::server::DeviceServer;
use crate::task::{End, Head, Moves, Request, Spent, Step, Work};
use reactor::buf::Buf;

/// RESERVE(6) and (10), whole units only; extents and third parties are obsolete.
pub(crate) fn reserve(request: &Request<'_>) -> Result<Work, Sense> {
    request.unit()?;
    Ok(Work::Reserve(Reserve::of(Wants::Change { reserve: true })))
}

/// RELEASE(6) and (10).
pub(crate) fn release(request: &Request<'_>) -> Result<Work, Sense> {
    request.unit()?;
    Ok(Work::Reserve(Reserve::of(Wants::Change { reserve: false })))
}

/// PERSISTENT RESERVE IN.
pub(crate) fn persistent_reserve_in(request: &Request<'_>) -> Result<Work, Sense> {
    let cdb = &request.command.cdb;
    let service_action = match cdb[1] & 0x1F {
        0x00 => ReserveIn::Keys,
        0x01 => ReserveIn::Reservation,
        0x02 => ReserveIn::Capabilities,
        0x03 => ReserveIn::FullStatus,
        _ => return Err(Sense::INVALID_FIELD_IN_CDB.cdb_bit(1, 4)),
    };
    Ok(ParameterData::work(Reply::ReserveIn(service_action), be16(cdb, 7)))
}

/// PERSISTENT RESERVE OUT.
pub(crate) fn persistent_reserve_out(request: &Request<'_>) -> Result<Work, Sense> {
    let cdb = &request.command.cdb;
    let list_bytes = u32::from_be_bytes([cdb[5], cdb[6], cdb[7], cdb[8]]);
    let service_action = cdb[1] & 0x1F;
    let can_be_long = matches!(service_action, REGISTER | REGISTER_AND_MOVE);
    let is_long = list_bytes as usize > LIST_BYTES;
    // All but two have lists of one length (SPC-4 §6.16.3).
    if (list_bytes as usize) < LIST_BYTES
        || (is_long && !can_be_long)
        || list_bytes > PARAMETER_LIST_BYTES_MAX
    {
        return Err(Sense::PARAMETER_LIST_LENGTH_ERROR);
    }
    if request.command.data_out_bytes < list_bytes {
        return Err(Sense::INVALID_FIELD_IN_COMMAND_INFORMATION_UNIT);
    }
    let wants = Wants::Out { service_action, scope_and_type: cdb[2], list_bytes, list: None };
    Ok(Work::Reserve(Reserve::of(wants)))
}

/// A command that changes reservations, under way.
#[derive(Debug)]
pub(crate) struct Reserve {
    wants: Wants,
    stage: Stage,
    /// What it preempted can still do harm.
    stuck: bool,
}

#[derive(Debug)]
enum Wants {
    Change { reserve: bool },
    Out { service_action: u8, scope_and_type: u8, list_bytes: u32, list: Option<Buf> },
}

/// Each but the first two once, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Begin,
    /// The list is wanted.
    Asked,
    /// The change is with the other cores.
    Proposed,
    /// They have made it.
    Decreed,
    /// It is being kept.
    Keeping,
    Ended(Result<(), Sense>),
}

impl Reserve {
    fn of(wants: Wants) -> Reserve {
        Reserve { wants, stage: Stage::Begin, stuck: false }
    }

    pub(crate) fn poll(&mut self, head: &Head, spent: &mut Spent, server: &DeviceServer) -> Step {
        match self.stage {
            Stage::Begin | Stage::Asked => match self.change(head, spent, server) {
                Ok(Some(change)) => {
                    self.stage = Stage::Proposed;
                    Step::Effect(Effect::Propose(change))
                }
                Ok(None) if self.stage == Stage::Begin => {
                    self.stage = Stage::Asked;
                    Step::Effect(Effect::WantData { bytes: self.list_bytes() })
                }
                Ok(None) => Step::Wait,
                Err(sense) => self.end(Err(sense)),
            },
            Stage::Proposed | Stage::Keeping => Step::Wait,
            Stage::Decreed => {
                if let Some(lun) = self.to_keep(head, server) {
                    self.stage = Stage::Keeping;
                    return Step::Effect(Effect::Keep { lun });
                }
                self.end(self.verdict(Ok(())))
            }
            Stage::Ended(result) => self.end(result),
        }
    }

    /// The unit, if what was changed is to be kept. On its own replica at the latest, it is known whether somebody does.
    pub(crate) fn to_keep(&self, head: &Head, server: &DeviceServer) -> Option<u16> {
        let unit = head.lun.and_then(|lun| server.unit(lun))?;
        let is_out = matches!(self.wants, Wants::Out { .. });
        (is_out && unit.reservations.is_kept()).then_some(unit.config.lun)
    }

    /// What to propose; `None`: the list is not there yet.
    fn change(
        &mut self,
        head: &Head,
        spent: &mut Spent,
        server: &DeviceServer,
    ) -> Result<Option<Change>, Sense> {
        let unit = head.lun.and_then(|lun| server.unit(lun)).ok_or(Sense::LOGICAL_UNIT_NOT_SUPPORTED)?;
        // A nexus without a name can't be anybody's registrant.
        let from = server.it_nexus(head.nexus).ok_or(Sense::RESERVATION_CONFLICT)?;
        let (lun, by) = (unit.config.lun, head.nexus);
        match &mut self.wants {
            &mut Wants::Change { reserve } => {
                Ok(Some(Change::Reserve { lun, by, from: Box::new(from), reserve }))
            }
            Wants::Out { service_action, scope_and_type, list, .. } => {
                let Some(list) = list.take() else { return Ok(None) };
                let can_persist = unit.reservations.can_persist;
                let parsed = list::parse(&list, *service_action, *scope_and_type, from, can_persist);
                spent.push(list);
                Ok(Some(Change::ReserveOut { lun, by, out: Box::new(parsed?) }))
            }
        }
    }

    fn end(&mut self, result: Result<(), Sense>) -> Step {
        self.stage = Stage::Ended(result);
        let (moves, bytes) = match self.wants {
            Wants::Change { .. } => (Moves::Nothing, 0),
            Wants::Out { list_bytes, .. } => (Moves::Out, list_bytes),
        };
        Step::End(End { result, moves, transfer_bytes: u64::from(bytes) })
    }

    pub(crate) fn list_bytes(&self) -> u32 {
        match self.wants {
            Wants::Change { .. } => 0,
            Wants::Out { list_bytes, .. } => list_bytes,
        }
    }

    /// Takes the list; gives it back if it is not wanted.
    pub(crate) fn data_out(&mut self, buf: Buf) -> Option<Buf> {
        match &mut self.wants {
            Wants::Out { list, .. } if self.stage == Stage::Asked => list.replace(buf),
            _ => Some(buf),
        }
    }

    pub(crate) fn decreed(&mut self, applied: Applied) {
        self.stage = match applied {
            Ok(()) => Stage::Decreed,
            Err(sense) => Stage::Ended(Err(sense)),
        };
    }

    pub(crate) fn kept(&mut self, kept: Applied) {
        self.stage = Stage::Ended(self.verdict(kept));
    }

    /// All cores have made it, but tasks that it was to end have not ended.
    pub(crate) fn stuck(&mut self) {
        self.stuck = true;
    }

    fn verdict(&self, result: Result<(), Sense>) -> Result<(), Sense> {
        if self.stuck { Err(Sense::INTERNAL_TARGET_FAILURE) } else { result }
    }

    pub(crate) fn release(&mut self, spent: &mut Spent) {
        if let Wants::Out { list, .. } = &mut self.wants {
            spent.extend(list.take());
        }
    }
}
