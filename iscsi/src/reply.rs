//! What a connection has to say, as values until it is about to be sent.
//!
//! StatSN and the command window are filled in when a reply is encoded, at the end of a turn. Until then a task
//! that is aborted can take its replies back, so that "done" means that the response has left for the socket.

use crate::digest::Crc;
use crate::pdu::decode::{LogoutReason, NopOut, RejectReason};
use crate::pdu::encode::{self, AsyncEvent, LoginResponse, Residual, Sequence, TextResponse};
use crate::pdu::{self, Bhs, TaskTag};
use crate::serial::{CmdSn, DataSn, StatSn};
use crate::transfer::R2t;
use crate::transmit::{Outbound, Payload};
use reactor::buf::Buf;
use reactor::slots::Slot;
use std::ops::Range;
use vaai::command::Outcome;
use vaai::sense::{SenseBytes, Status};

/// The session's command window, for the next response.
#[derive(Clone, Copy, Debug)]
pub struct Numbers {
    /// ExpCmdSN.
    pub exp_cmd_sn: CmdSn,
    /// MaxCmdSN.
    pub max_cmd_sn: CmdSn,
}

/// A buffer of data-in about to be queued.
#[derive(Debug)]
pub struct DataIn {
    /// From the start of the data-in.
    pub offset: u32,
    /// The data.
    pub buf: Buf,
    /// Nothing follows it: the last PDU ends the sequence.
    pub is_last: bool,
    /// The command ends with it: status GOOD and this residual go in its last PDU.
    pub end: Option<Residual>,
}

/// One PDU to be sent.
#[derive(Debug)]
pub enum Reply {
    /// Data-In.
    DataIn {
        /// Whose.
        itt: TaskTag,
        /// DataSN.
        data_sn: u32,
        /// Buffer Offset.
        offset: u32,
        /// The memory.
        payload: Payload,
        /// What of it.
        range: Range<usize>,
        /// F.
        is_final: bool,
        /// S, with status GOOD.
        end: Option<Residual>,
    },
    /// SCSI Response.
    Response {
        /// Whose.
        itt: TaskTag,
        /// Status.
        status: Status,
        /// Sense data.
        sense: Option<SenseBytes>,
        /// What the transfer missed.
        residual: Residual,
        /// How many Data-In PDUs there were.
        exp_data_sn: u32,
        /// The task, if it goes on behind this.
        goes_on: Option<Slot>,
    },
    /// R2T.
    R2t {
        /// Whose.
        itt: TaskTag,
        /// Its LUN field.
        lun: [u8; 8],
        /// What is asked for.
        r2t: R2t,
    },
    /// The answer to a ping.
    Pong {
        /// The ping.
        ping: NopOut,
        /// Its data, cut to the initiator's limit.
        data: Vec<u8>,
    },
    /// A ping of ours.
    Ping {
        /// What the answer will carry.
        ttt: TaskTag,
    },
    /// Login Response.
    Login {
        /// The fields; the length is filled in.
        response: LoginResponse,
        /// Text.
        text: Vec<u8>,
    },
    /// Text Response.
    Text {
        /// The fields; the length is filled in.
        response: TextResponse,
        /// Text.
        text: Vec<u8>,
    },
    /// Task Management Function Response.
    TaskManagement {
        /// The request's.
        itt: TaskTag,
        /// Of `bhs::tmf_response`.
        response: u8,
    },
    /// Logout Response.
    Logout {
        /// The request's.
        itt: TaskTag,
        /// Of `bhs::logout_response`.
        response: u8,
    },
    /// Asynchronous Message.
    Async(AsyncEvent),
    /// Reject.
    Reject {
        /// Why.
        reason: RejectReason,
        /// The header that is rejected.
        header: Bhs,
    },
}

/// Seconds after which a logged-out initiator may come back (DefaultTime2Wait, DefaultTime2Retain at
/// ErrorRecoveryLevel 0: nothing is retained).
const TIME2WAIT_S: u16 = 0;

impl Reply {
    /// The end of a command that went straight and has no data for its initiator.
    pub fn good(itt: TaskTag) -> Reply {
        let residual = Residual::NONE;
        Reply::Response { itt, status: Status::Good, sense: None, residual, exp_data_sn: 0, goes_on: None }
    }

    /// The only Data-In of a command that went straight, which ends it.
    pub fn all_data(itt: TaskTag, payload: Payload) -> Reply {
        let (range, end) = (0..payload.bytes().len(), Some(Residual::NONE));
        Reply::DataIn { itt, data_sn: 0, offset: 0, payload, range, is_final: true, end }
    }

    /// The end of a task, by the transport's own decision.
    pub fn ended(itt: TaskTag, outcome: Outcome, edtl: u32) -> Reply {
        Reply::Response {
            itt,
            status: outcome.status,
            sense: outcome.sense,
            residual: Residual::of(edtl, outcome.transfer_bytes),
            exp_data_sn: 0,
            goes_on: None,
        }
    }

    /// The answer to a command whose task goes on.
    pub fn begun(itt: TaskTag, outcome: Outcome, edtl: u32, task: Slot) -> Reply {
        let mut reply = Reply::ended(itt, outcome, edtl);
        if let Reply::Response { goes_on, .. } = &mut reply {
            *goes_on = Some(task);
        }
        reply
    }

    /// The SCSI task that this belongs to.
    pub fn task(&self) -> Option<TaskTag> {
        match self {
            Reply::DataIn { itt, .. } | Reply::Response { itt, .. } | Reply::R2t { itt, .. } => Some(*itt),
            _ => None,
        }
    }

    /// Whether it ends its SCSI task.
    pub fn is_end(&self) -> bool {
        matches!(self, Reply::Response { .. } | Reply::DataIn { end: Some(_), .. })
    }

    /// Its buffer, when it is not sent after all.
    pub fn into_buf(self) -> Option<Buf> {
        match self {
            Reply::DataIn { payload, .. } => payload.into_buf(),
            _ => None,
        }
    }

    /// Whether it belongs to no SCSI task: such replies are counted and bounded.
    pub fn is_cold(&self) -> bool {
        self.task().is_none()
    }

    /// Bytes of its own memory, for those whose length is the initiator's to choose.
    pub fn cold_bytes(&self) -> usize {
        match self {
            Reply::Pong { data, .. } => data.len(),
            Reply::Text { text, .. } => text.len(),
            _ => 0,
        }
    }

    /// Puts the PDU behind what is already to be sent.
    pub fn encode(
        self,
        stat_sn: &mut StatSn,
        numbers: Numbers,
        header_digest: bool,
        data_digest: bool,
        outbound: &mut Outbound,
    ) {
        let Numbers { exp_cmd_sn, max_cmd_sn } = numbers;
        let next = Sequence { stat_sn: *stat_sn, exp_cmd_sn, max_cmd_sn };
        let mut out = Writer { header_digest, data_digest, outbound };
        let uses_number = match self {
            Reply::DataIn { itt, data_sn, offset, payload, range, is_final, end } => {
                let header = encode::data_in(
                    &encode::DataIn {
                        initiator_task_tag: itt,
                        data_sn: DataSn(data_sn),
                        buffer_offset: offset,
                        data_bytes: range.len() as u32,
                        is_final,
                        status: end.map(|residual| (Status::Good, residual)),
                    },
                    next,
                );
                out.put(&header, payload, range);
                end.is_some()
            }
            Reply::Response { itt, status, sense, residual, exp_data_sn, goes_on: _ } => {
                let mut segment = [0; encode::SENSE_SEGMENT_BYTES_MAX];
                let bytes = sense.map_or(0, |sense| encode::sense_segment(&sense, &mut segment));
                let response = encode::ScsiResponse {
                    initiator_task_tag: itt,
                    status,
                    residual,
                    exp_data_sn: DataSn(exp_data_sn),
                    data_bytes: bytes as u32,
                };
                out.put_small(&encode::scsi_response(&response, next), &segment[..bytes]);
                true
            }
            Reply::R2t { itt, lun, r2t } => {
                let r2t = encode::R2t {
                    lun,
                    initiator_task_tag: itt,
                    target_transfer_tag: r2t.target_transfer_tag,
                    r2t_sn: DataSn(r2t.r2t_sn),
                    buffer_offset: r2t.offset,
                    desired_bytes: r2t.bytes,
                };
                out.put_small(&encode::r2t(&r2t, next), &[]);
                false
            }
            Reply::Pong { ping, data } => {
                let header = encode::nop_in_reply(&ping, data.len() as u32, next);
                let bytes = data.len();
                out.put(&header, Payload::Bytes(data), 0..bytes);
                true
            }
            Reply::Ping { ttt } => {
                out.put_small(&encode::nop_in_ping(ttt, next), &[]);
                false
            }
            Reply::Login { mut response, text } => {
                // Digests begin with the first PDU of full feature phase (RFC 7143 §13.1).
                out.header_digest = false;
                out.data_digest = false;
                response.data_bytes = text.len() as u32;
                let bytes = text.len();
                out.put(&encode::login_response(&response, next), Payload::Bytes(text), 0..bytes);
                true
            }
            Reply::Text { mut response, text } => {
                response.data_bytes = text.len() as u32;
                let bytes = text.len();
                out.put(&encode::text_response(&response, next), Payload::Bytes(text), 0..bytes);
                true
            }
            Reply::TaskManagement { itt, response } => {
                out.put_small(&encode::task_management_response(itt, response, next), &[]);
                true
            }
            Reply::Logout { itt, response } => {
                out.put_small(&encode::logout_response(itt, response, TIME2WAIT_S, 0, next), &[]);
                true
            }
            Reply::Async(event) => {
                out.put_small(&encode::async_message(event, next), &[]);
                true
            }
            Reply::Reject { reason, header } => {
                out.put_small(&encode::reject(reason, next), &header);
                true
            }
        };
        if uses_number {
            *stat_sn = stat_sn.next();
        }
    }
}

/// What a logout's reason is answered with (RFC 7143 §11.15.1).
pub fn logout_response(reason: LogoutReason, cid_matches: bool) -> u8 {
    match reason {
        LogoutReason::CloseSession => pdu::bhs::logout_response::CLOSED,
        LogoutReason::CloseConnection if cid_matches => pdu::bhs::logout_response::CLOSED,
        LogoutReason::CloseConnection => pdu::bhs::logout_response::CID_NOT_FOUND,
        LogoutReason::RemoveForRecovery => pdu::bhs::logout_response::RECOVERY_NOT_SUPPORTED,
    }
}

struct Writer<'a> {
    header_digest: bool,
    data_digest: bool,
    outbound: &'a mut Outbound,
}

impl Writer<'_> {
    fn put_header(&mut self, header: &Bhs) {
        self.outbound.push(header);
        if self.header_digest {
            let mut crc = Crc::new();
            crc.update(header);
            self.outbound.push(&crc.finish());
        }
    }

    fn put_trailer(&mut self, bytes: usize, crc: Option<Crc>) {
        let padding = pdu::padding(bytes);
        self.outbound.push(&[0; 3][..padding]);
        if let Some(mut crc) = crc {
            crc.update(&[0; 3][..padding]);
            self.outbound.push(&crc.finish());
        }
    }

    fn crc(&self, data: &[u8]) -> Option<Crc> {
        self.data_digest.then(|| {
            let mut crc = Crc::new();
            crc.update(data);
            crc
        })
    }

    /// A header and data that are copied behind it.
    fn put_small(&mut self, header: &Bhs, data: &[u8]) {
        self.put_header(header);
        if !data.is_empty() {
            let crc = self.crc(data);
            self.outbound.push(data);
            self.put_trailer(data.len(), crc);
        }
    }

    /// A header and data that stay where they are until they are sent.
    fn put(&mut self, header: &Bhs, payload: Payload, range: Range<usize>) {
        self.put_header(header);
        if !range.is_empty() {
            let bytes = range.len();
            let crc = self.crc(&payload.bytes()[range.clone()]);
            self.outbound.push_payload(payload, range);
            self.put_trailer(bytes, crc);
        }
    }
}
