//! One TCP connection's state: where it is in its life, what has been received of the current PDU, what is to be
//! sent. No socket here; `portal` moves the bytes, `receive` acts on them.

use crate::digest::Crc;
use crate::inbound::{Inbound, Trailer};
use crate::login::{Login, LoginDone};
use crate::name::IscsiName;
use crate::negotiate::Parameters;
use crate::pdu::encode::Residual;
use crate::pdu::{Bhs, TaskTag};
use crate::reply::{DataIn, Numbers, Reply};
use crate::serial::{CmdSn, CommandWindow, StatSn};
use crate::tasks::TaskEntry;
use crate::text::Outgoing;
use crate::transfer::Piece;
use crate::transmit::{Outbound, Payload};
use bdev::lent::Lent;
use reactor::buf::Buf;
use reactor::clock::Time;
use reactor::slots::Slot;
use smallvec::SmallVec;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::rc::Rc;
use vaai::command::NexusId;

/// Longest data segment taken before login has agreed on one (RFC 7143 §13.12: the default).
pub const LOGIN_SEGMENT_BYTES_MAX: usize = 8192;

/// Encoded but unsent bytes past which replies stay as they are: an abort can still withdraw those.
pub const OUTBOUND_BYTES_MAX: usize = 1 << 20;

/// Answers to pings, texts and task management that may wait to be sent; an initiator that asks for more without
/// reading is dropped.
pub const COLD_REPLIES_MAX: usize = 256;

/// Replies of any kind past which nothing more is read from an initiator that does not read ours.
pub const REPLIES_MAX: usize = 4096;

/// Bytes of text and ping data that wait to be sent past which nothing more is read.
pub const COLD_BYTES_MAX: usize = 1 << 20;

/// Where a connection is in its life.
#[derive(Debug)]
pub enum Phase {
    /// Login requests only.
    Login(Box<Login>),
    /// Login has agreed; the cores are told (session reinstatement), then it goes on.
    Entering(Box<Login>, Box<LoginDone>),
    /// Full feature phase of a discovery session: Text, NOP and Logout.
    Discovery,
    /// Full feature phase.
    FullFeature {
        /// The session.
        session: Slot,
    },
    /// Sends what it has, then closes. Whatever arrives is discarded.
    Closing {
        /// The session that ends with it.
        session: Option<Slot>,
    },
}

/// Where the bytes of the current data segment go.
#[derive(Debug)]
pub enum Destination {
    /// A request that is decoded when its data are here: login, text, ping.
    Collect(Vec<u8>),
    /// A task's data-out, immediate or not.
    Task(TaskData),
    /// Nowhere.
    Discard,
}

/// Data on their way to a task.
#[derive(Debug)]
pub struct TaskData {
    /// Whose; may be gone or aborted by the time the data are here.
    pub task: Slot,
    /// The piece being filled.
    pub piece: Option<Piece>,
    /// Pieces filled by this PDU; the task gets them when the digest was right.
    pub full: SmallVec<[Piece; 4]>,
}

/// A PDU whose data segment is being received.
#[derive(Debug)]
pub struct Incoming {
    /// Its header.
    pub bhs: Bhs,
    /// Bytes of the segment still to come.
    pub left: usize,
    /// Padding and digest.
    pub trailer: Trailer,
    /// Over the data so far, when the connection has data digests.
    pub crc: Option<Crc>,
    /// Where they go.
    pub destination: Destination,
}

/// One connection.
#[derive(Debug)]
pub struct Connection {
    /// Our end: the portal that the initiator used.
    pub local: SocketAddr,
    /// Theirs.
    pub peer: SocketAddr,
    /// Where it is in its life.
    pub phase: Phase,
    /// Framing.
    pub inbound: Inbound,
    /// The PDU being received.
    pub incoming: Option<Incoming>,
    /// Answers not yet encoded: an abort can withdraw them.
    pub replies: VecDeque<Reply>,
    /// Bytes for the socket.
    pub outbound: Outbound,
    /// StatSN of the next response.
    pub stat_sn: StatSn,
    /// Header digests are on.
    pub header_digest: bool,
    /// Data digests are on.
    pub data_digest: bool,
    /// MaxRecvDataSegmentLength that we declared.
    pub segment_bytes_max: usize,
    /// MaxRecvDataSegmentLength of the initiator.
    pub their_segment_bytes_max: u32,
    /// MaxBurstLength.
    pub max_burst_length: u32,
    /// Accepted at.
    pub opened: Time,
    /// Last heard from.
    pub heard: Time,
    /// Our NOP-In is unanswered since.
    pub pinged: Option<Time>,
    /// Bytes have been waiting for the socket since.
    pub blocked_since: Option<Time>,
    /// No buffer for incoming data since.
    pub stalled_since: Option<Time>,
    /// A command was given up for want of a buffer, and none has been free since.
    pub is_starved: bool,
    /// Last words since.
    pub closing_since: Option<Time>,
    /// Cold replies queued.
    pub cold_queued: usize,
    /// Bytes of text and ping data in them.
    pub cold_bytes: usize,
    /// The command window before there is a session, and of discovery sessions.
    pub window: CommandWindow,
    /// In the target's list of connections with something to send.
    pub is_dirty: bool,
    /// Target Transfer Tag of the next ping, and of long texts.
    pub next_tag: u32,
    /// A text request that is not whole yet.
    pub text: Vec<u8>,
    /// The Target Transfer Tag that its next part will carry.
    pub text_tag: Option<TaskTag>,
    /// An answer in text that is not sent whole yet, and its Target Transfer Tag.
    pub text_out: Option<(TaskTag, Outgoing)>,
    /// Who logged in.
    pub initiator: Option<IscsiName>,
    /// To what; `None` in discovery sessions.
    pub target: Option<IscsiName>,
    /// The nexus that it is to be, or is.
    pub nexus: NexusId,
    /// CID.
    pub cid: u16,
    /// Drop it at once: what happens on it makes no sense any more.
    pub is_broken: bool,
    /// While it enters: its decree has come to this core. A later one of the same initiator port takes its place.
    pub is_ordered: bool,
    /// It has logged out; the answer waits for its tasks. Whatever arrives is discarded.
    pub is_leaving: bool,
}

impl Connection {
    /// A new connection, about to log in.
    pub fn new(local: SocketAddr, peer: SocketAddr, login: Login, now: Time) -> Connection {
        Connection {
            local,
            peer,
            phase: Phase::Login(Box::new(login)),
            inbound: Inbound::default(),
            incoming: None,
            replies: VecDeque::new(),
            outbound: Outbound::default(),
            stat_sn: StatSn(0),
            header_digest: false,
            data_digest: false,
            segment_bytes_max: LOGIN_SEGMENT_BYTES_MAX,
            their_segment_bytes_max: LOGIN_SEGMENT_BYTES_MAX as u32,
            max_burst_length: 0,
            opened: now,
            heard: now,
            pinged: None,
            blocked_since: None,
            stalled_since: None,
            is_starved: false,
            closing_since: None,
            cold_queued: 0,
            cold_bytes: 0,
            window: CommandWindow::new(CmdSn(0), 1),
            is_dirty: false,
            next_tag: 1,
            text: Vec::new(),
            text_tag: None,
            text_out: None,
            initiator: None,
            target: None,
            nexus: NexusId(0),
            cid: 0,
            is_broken: false,
            is_ordered: false,
            is_leaving: false,
        }
    }

    /// The session, from full feature phase on.
    pub fn session(&self) -> Option<Slot> {
        match self.phase {
            Phase::FullFeature { session } => Some(session),
            Phase::Closing { session } => session,
            _ => None,
        }
    }

    /// Bytes have come: it lives, and answers our ping behind the PDU that it is sending.
    pub fn hear(&mut self, now: Time) {
        self.heard = now;
        if self.pinged.is_some() {
            self.pinged = Some(now);
        }
    }

    /// Whether it has not finished logging in.
    pub fn is_half_open(&self) -> bool {
        matches!(self.phase, Phase::Login(_) | Phase::Entering(..))
    }

    /// What login agreed holds from the first PDU of full feature phase on.
    pub fn set_parameters(&mut self, parameters: &Parameters) {
        self.header_digest = parameters.header_digest;
        self.data_digest = parameters.data_digest;
        self.segment_bytes_max = parameters.our_max_recv_data_segment_length as usize;
        self.their_segment_bytes_max = parameters.their_max_recv_data_segment_length;
        self.max_burst_length = parameters.max_burst_length;
    }

    /// Target Transfer Tags for pings and long texts; never the reserved one.
    pub fn take_tag(&mut self) -> TaskTag {
        let tag = self.next_tag;
        self.next_tag = if tag >= 0xffff_fff0 { 1 } else { tag + 1 };
        TaskTag(tag)
    }

    /// Queues Data-In of a task, cut to the initiator's segments and to sequences of MaxBurstLength.
    pub fn queue_data_in(&mut self, entry: &mut TaskEntry, data: DataIn) {
        let DataIn { offset, buf, is_last: ends, end } = data;
        let bytes = buf.len() as u32;
        let segment_max = self.their_segment_bytes_max;
        let burst_max = self.max_burst_length.max(512);
        let transfer = &mut entry.transfer;
        let mut whole = Some(buf);
        let mut shared: Option<Rc<Buf>> = None;
        let mut at = 0;
        while at < bytes {
            let part = (bytes - at).min(segment_max).min(burst_max - transfer.data_in_burst);
            let is_last = at + part == bytes;
            transfer.data_in_burst += part;
            let ends_sequence = transfer.data_in_burst == burst_max || (is_last && ends);
            if ends_sequence {
                transfer.data_in_burst = 0;
            }
            let payload = match (whole.take(), &shared) {
                (Some(buf), _) if is_last => Payload::Buf(buf),
                (Some(buf), _) => Payload::Shared(Rc::clone(shared.insert(Rc::new(buf)))),
                (None, Some(_)) if is_last => match shared.take() {
                    Some(buf) => Payload::Shared(buf),
                    None => unreachable!("just seen"),
                },
                (None, Some(buf)) => Payload::Shared(Rc::clone(buf)),
                (None, None) => unreachable!("the buffer is shared as long as parts are left"),
            };
            self.replies.push_back(Reply::DataIn {
                itt: entry.itt,
                data_sn: transfer.data_in_sn,
                offset: offset + at,
                payload,
                range: at as usize..(at + part) as usize,
                is_final: ends_sequence,
                end: if is_last { end } else { None },
            });
            transfer.data_in_sn += 1;
            at += part;
        }
    }

    /// Queues all Data-In of a command that goes straight, `total` bytes in several parts, cut as [`Connection::queue_data_in`]
    /// does; the last has the status.
    pub fn queue_lent(&mut self, itt: TaskTag, total: u32, lents: impl Iterator<Item = Lent>) {
        let segment_max = self.their_segment_bytes_max;
        let burst_max = self.max_burst_length.max(512);
        let (mut offset, mut data_sn, mut burst) = (0, 0, 0);
        for mut rest in lents {
            loop {
                let part = (rest.len() as u32).min(segment_max).min(burst_max - burst);
                let is_last = offset + part == total;
                burst += part;
                let is_final = burst == burst_max || is_last;
                burst = if is_final { 0 } else { burst };
                let end = is_last.then_some(Residual::NONE);
                let is_whole = part as usize == rest.len();
                let payload = Payload::Lent(rest.split_to(part as usize));
                let range = 0..part as usize;
                self.replies.push_back(Reply::DataIn { itt, data_sn, offset, payload, range, is_final, end });
                (offset, data_sn) = (offset + part, data_sn + 1);
                if is_whole {
                    break;
                }
            }
        }
    }

    /// Takes back what a task was about to say.
    pub fn withdraw(&mut self, itt: TaskTag, mut give: impl FnMut(Buf)) -> bool {
        let before = self.replies.len();
        // Moving them is dear, and most tasks have nothing here.
        if !self.replies.iter().any(|reply| reply.task() == Some(itt)) {
            return false;
        }
        for _ in 0..before {
            let Some(reply) = self.replies.pop_front() else { break };
            if reply.task() == Some(itt) {
                reply.into_buf().map(&mut give);
            } else {
                self.replies.push_back(reply);
            }
        }
        before != self.replies.len()
    }

    /// The task that goes on behind an answer of this tag which has not left.
    pub fn goes_on(&self, itt: TaskTag) -> Option<Slot> {
        self.replies.iter().find_map(|reply| match reply {
            Reply::Response { itt: of, goes_on, .. } if *of == itt => *goes_on,
            _ => None,
        })
    }

    /// What is being received is for a task that is gone: discards it and gives back its buffers.
    pub fn discard_for(&mut self, task: Slot, give: impl FnMut(Buf)) {
        if let Some(Incoming { destination, .. }) = &mut self.incoming
            && let Destination::Task(data) = destination
            && data.task == task
        {
            data.piece.take().into_iter().chain(data.full.drain(..)).map(|piece| piece.buf).for_each(give);
            *destination = Destination::Discard;
            self.stalled_since = None;
        }
    }

    /// Encodes replies, up to what may wait for the socket. `numbers` gives the session's window.
    pub fn encode(&mut self, mut numbers: impl FnMut() -> Numbers) {
        while self.outbound.queued_bytes() < OUTBOUND_BYTES_MAX {
            let Some(reply) = self.replies.pop_front() else { return };
            self.cold_queued -= usize::from(reply.is_cold());
            self.cold_bytes -= reply.cold_bytes();
            let numbers = numbers();
            reply.encode(
                &mut self.stat_sn,
                numbers,
                self.header_digest,
                self.data_digest,
                &mut self.outbound,
            );
        }
    }

    /// Whether there is so much to be sent that nothing more is to be read.
    pub fn is_full(&self) -> bool {
        self.replies.len() >= REPLIES_MAX || self.cold_bytes >= COLD_BYTES_MAX
    }

    /// Whether all that was said has been handed to the socket.
    pub fn is_drained(&self) -> bool {
        self.replies.is_empty() && self.outbound.is_empty()
    }
}
