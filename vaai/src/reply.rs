//! Parameter data for the initiator: built when there is a buffer, cut to the allocation length and to what the
//! initiator has room for (SPC-4 §4.3.5.6: a short allocation length is no error).

use crate::command::{Buffers, Effect};
use crate::copy::results::Results;
use crate::reservation::ReserveIn;
use crate::sense::{Sense, SenseBytes};
use crate::server::DeviceServer;
use crate::task::{End, Head, Moves, Step, Work};
use crate::{capacity, inquiry, log, mode, report, token};
use reactor::buf::BUF_BYTES_MAX;
use zerocopy::{Immutable, IntoBytes};

/// What is asked for. The checks are done; the values are taken when it is built.
#[derive(Debug)]
pub(crate) enum Reply {
    /// INQUIRY, EVPD=0.
    StandardInquiry,
    /// INQUIRY, EVPD=1.
    VitalProductData { page: u8 },
    /// REPORT LUNS.
    Luns { select_report: u8 },
    /// REQUEST SENSE.
    Sense { sense: SenseBytes },
    /// READ CAPACITY(10).
    Capacity10,
    /// READ CAPACITY(16).
    Capacity16,
    /// MODE SENSE(6) and (10).
    Mode(mode::ModeSense),
    /// LOG SENSE.
    Log { page: u8, subpage: u8, from: u16 },
    /// REPORT TARGET PORT GROUPS.
    TargetPortGroups { extended_header: bool },
    /// REPORT SUPPORTED OPERATION CODES.
    OperationCodes(report::OperationCodes),
    /// REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS.
    TaskManagementFunctions { extended: bool },
    /// RECEIVE COPY RESULTS.
    CopyResults(Results),
    /// REPORT ALL ROD TOKENS.
    RodTokens,
    /// PERSISTENT RESERVE IN.
    ReserveIn(ReserveIn),
    /// READ DEFECT DATA(10) and (12): header without descriptors.
    DefectData { twelve: bool, flags: u8 },
}

/// Bytes of parameter data. What lies past the end of `to` is counted and not kept.
#[derive(Debug)]
pub(crate) struct Out<'a> {
    to: &'a mut [u8],
    len: usize,
}

impl<'a> Out<'a> {
    pub(crate) fn new(to: &'a mut [u8]) -> Out<'a> {
        Out { to, len: 0 }
    }

    /// Bytes so far.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        let room = self.to.get_mut(self.len..).unwrap_or_default();
        let kept = bytes.len().min(room.len());
        room[..kept].copy_from_slice(&bytes[..kept]);
        self.len += bytes.len();
    }

    pub(crate) fn put(&mut self, figure: &(impl IntoBytes + Immutable)) {
        self.bytes(figure.as_bytes());
    }

    pub(crate) fn zeroes(&mut self, count: usize) {
        for _ in 0..count {
            self.bytes(&[0]);
        }
    }

    /// Fills in a field that was written before, such as a length that is only known at the end.
    pub(crate) fn patch(&mut self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= self.len);
        for (offset, &byte) in bytes.iter().enumerate() {
            if let Some(place) = self.to.get_mut(at + offset) {
                *place = byte;
            }
        }
    }
}

/// A reply on its way.
#[derive(Debug)]
pub(crate) struct ParameterData {
    reply: Reply,
    allocation_length: u32,
    /// Handed out; this is how the command ends.
    sent: Option<End>,
}

impl ParameterData {
    pub(crate) fn work(reply: Reply, allocation_length: u32) -> Work {
        Work::Reply(ParameterData { reply, allocation_length, sent: None })
    }

    pub(crate) fn poll(
        &mut self,
        head: &Head,
        server: &mut DeviceServer,
        buffers: &mut impl Buffers,
    ) -> Step {
        if let Some(end) = self.sent {
            return Step::End(end);
        }
        // Counted first, so that a large allocation length does not cost a large buffer.
        let available = match self.build(head, server, Out::new(&mut [])) {
            Ok(bytes) => bytes as u64,
            Err(sense) => return Step::End(End::of(Err(sense))),
        };
        let transfer_bytes = available.min(u64::from(self.allocation_length));
        let end = End { result: Ok(()), moves: Moves::In, transfer_bytes };
        let bytes = transfer_bytes.min(u64::from(head.data_in_bytes)) as usize;
        let buf = if bytes == 0 {
            None
        } else {
            assert!(bytes <= BUF_BYTES_MAX, "limits.rs bounds every reply");
            let Some(mut buf) = buffers.take(bytes) else { return Step::Wait };
            if let Err(sense) = self.build(head, server, Out::new(&mut buf)) {
                buffers.give(buf);
                return Step::End(End::of(Err(sense)));
            }
            Some(buf)
        };
        match &self.reply {
            // Only now: what changed while it waited for a buffer is in the list (SPC-4 §6.33).
            Reply::Luns { .. } => server.clear_luns_changed(head.nexus),
            Reply::CopyResults(results) => {
                if let (Some(id), Some(copies)) = (results.tells_of(), server.copies_mut(head.nexus)) {
                    copies.told(id);
                }
            }
            _ => {}
        }
        match buf {
            None => Step::End(end),
            Some(buf) => {
                self.sent = Some(end);
                Step::Effect(Effect::DataIn { offset: 0, buf })
            }
        }
    }

    /// Writes the reply. How long it is, whatever fits.
    ///
    /// # Errors
    /// The unit that it is about has gone meanwhile.
    fn build(&self, head: &Head, server: &DeviceServer, mut out: Out<'_>) -> Result<usize, Sense> {
        let unit = head.lun.and_then(|lun| server.unit(lun));
        match (&self.reply, unit) {
            (Reply::StandardInquiry, unit) => inquiry::standard(head.lun, unit, &mut out),
            (&Reply::VitalProductData { page }, Some(_))
            | (&Reply::VitalProductData { page: page @ 0 }, None) => {
                inquiry::vital_product_data(page, server, head, unit, &mut out);
            }
            (&Reply::Luns { select_report }, _) => report::luns(select_report, server, &mut out),
            (Reply::Sense { sense }, _) => out.bytes(sense),
            (Reply::Capacity10, Some(unit)) => capacity::capacity10(unit, &mut out),
            (Reply::Capacity16, Some(unit)) => capacity::capacity16(unit, &mut out),
            (Reply::Mode(sense), Some(unit)) => sense.build(unit, &mut out),
            (&Reply::Log { page, subpage, from }, Some(unit)) => {
                log::build(page, subpage, from, unit, &mut out);
            }
            (&Reply::TargetPortGroups { extended_header }, Some(_)) => {
                report::target_port_groups(extended_header, server, &mut out);
            }
            (Reply::OperationCodes(codes), Some(unit)) => codes.build(unit, &mut out),
            (&Reply::TaskManagementFunctions { extended }, Some(_)) => {
                report::task_management_functions(extended, &mut out);
            }
            (Reply::CopyResults(results), Some(_)) => {
                let copies = server.nexuses.get(&head.nexus).map(|nexus| &nexus.copies);
                results.build(copies, &mut out)?;
            }
            (Reply::RodTokens, Some(_)) => token::rod_tokens(server, head.nexus, &mut out),
            (Reply::ReserveIn(what), Some(unit)) => what.build(&unit.reservations, &mut out),
            (&Reply::DefectData { twelve, flags }, Some(_)) => {
                // PLISTV or GLISTV and the format as asked for; a virtual disk has no defects (SBC-3 §5.7).
                out.bytes(&[0, flags, 0, 0]);
                out.zeroes(if twelve { 4 } else { 0 });
            }
            (
                Reply::VitalProductData { .. }
                | Reply::Capacity10
                | Reply::Capacity16
                | Reply::Mode(_)
                | Reply::Log { .. }
                | Reply::TargetPortGroups { .. }
                | Reply::OperationCodes(_)
                | Reply::TaskManagementFunctions { .. }
                | Reply::CopyResults(_)
                | Reply::RodTokens
                | Reply::ReserveIn(_)
                | Reply::DefectData { .. },
                None,
            ) => return Err(Sense::LOGICAL_UNIT_NOT_SUPPORTED),
        }
        Ok(out.len())
    }
}
