//! What arrives on a connection, byte by byte, and what it sets off.
//!
//! The portal hands in bytes; headers are acted on when they are whole, data go straight to the buffers of their
//! tasks, and tasks get theirs piece by piece once the PDU's digest was right. When no buffer is free the
//! connection stands still (`Feed::Stalled`), so TCP holds the initiator back; after [`STALL_TIMEOUT`] the command
//! ends with TASK SET FULL and its data are discarded, so that a ping behind it is answered whatever the disks do.

use crate::admission;
use crate::connection::{Connection, Destination, Incoming, Phase, TaskData};
use crate::digest::{Crc, crc32c};
use crate::inbound::{Header, StreamError, Trailer};
use crate::pdu::decode::{DataOut, NopOut, ProtocolError, RejectReason, Request, ScsiCommand};
use crate::pdu::{self, Bhs, Opcode};
use crate::quota::Lender;
use crate::reply::Reply;
use crate::serial::Admission;
use crate::target::{Env, Target};
use crate::tasks::{DATA_OUT_TIMEOUT, TaskEntry, TaskRefused};
use crate::transfer::{DataError, Piece, Transfer};
use crate::transmit::Payload;
use bdev::lent::Lent;
use reactor::slots::Slot;
use smallvec::SmallVec;
use std::time::Duration;
use tracing::debug;
use vaai::command::{Buffers, Command, Outcome, TaskAttribute};
use vaai::sense::Status;
use vaai::task::Straight;

/// How long incoming data may wait for a buffer.
pub const STALL_TIMEOUT: Duration = Duration::from_millis(500);

/// Data segments with at least this much left are received straight into their buffer.
pub const DIRECT_BYTES_MIN: usize = 8 << 10;

/// What became of the bytes handed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feed {
    /// All taken.
    Done,
    /// Only so many: the rest has to wait for a buffer.
    Stalled {
        /// Bytes taken.
        taken: usize,
    },
}

/// What has been received behind a header.
struct Rest<'a> {
    bytes: &'a [u8],
    /// So much of it is done with: a whole data segment, or nothing.
    taken: usize,
}

impl Target {
    /// Bytes have arrived on a connection.
    pub fn feed(&mut self, slot: Slot, bytes: &[u8], env: &mut Env<'_>) -> Feed {
        let mut taken = 0;
        if !bytes.is_empty()
            && let Some(connection) = self.connections.get_mut(slot)
        {
            connection.hear(env.now);
        }
        while let Some(connection) = self.connections.get_mut(slot) {
            if connection.is_broken {
                return Feed::Done;
            }
            let rest = &bytes[taken..];
            if connection.incoming.is_some() {
                let (part, state) = self.feed_data(slot, rest, env);
                taken += part;
                match state {
                    Segment::Whole => self.end_segment(slot, env),
                    Segment::More if taken == bytes.len() => return Feed::Done,
                    Segment::More => {}
                    Segment::NoBuffer => {
                        let Some(connection) = self.connections.get_mut(slot) else { return Feed::Done };
                        if connection.is_starved {
                            self.give_up_on_data(slot, env);
                            continue;
                        }
                        connection.stalled_since.get_or_insert(env.now);
                        return Feed::Stalled { taken };
                    }
                }
                continue;
            }
            if rest.is_empty() {
                return Feed::Done;
            }
            let (digest, limit) = (connection.header_digest, connection.segment_bytes_max);
            match connection.inbound.header(rest, digest, limit) {
                Ok((part, Some(header))) => {
                    taken += part;
                    let mut rest = Rest { bytes: &bytes[taken..], taken: 0 };
                    self.on_header(slot, &header, &mut rest, env);
                    taken += rest.taken;
                }
                Ok((_, None)) => return Feed::Done,
                Err(error) => {
                    self.counters.header_digest_errors += u64::from(error == StreamError::HeaderDigest);
                    self.break_connection(slot, &format_args!("{error:?}"));
                    return Feed::Done;
                }
            }
        }
        Feed::Done
    }

    /// Where the next bytes of this connection's data segment can be received directly, when they are many.
    pub fn direct(&mut self, slot: Slot) -> Option<&mut [u8]> {
        let connection = self.connections.get_mut(slot)?;
        let incoming = connection.incoming.as_mut()?;
        let Destination::Task(TaskData { piece: Some(piece), .. }) = &mut incoming.destination else {
            return None;
        };
        let bytes = incoming.left.min(piece.room() as usize);
        (bytes >= DIRECT_BYTES_MIN)
            .then(|| &mut piece.buf[piece.filled as usize..piece.filled as usize + bytes])
    }

    /// `bytes` of what [`Target::direct`] offered have been filled.
    pub fn direct_filled(&mut self, slot: Slot, bytes: usize, env: &mut Env<'_>) {
        let Some(connection) = self.connections.get_mut(slot) else { return };
        connection.hear(env.now);
        let Some(incoming) = connection.incoming.as_mut() else { return };
        let Destination::Task(data) = &mut incoming.destination else { return };
        let Some(piece) = data.piece.as_mut() else { return };
        if let Some(crc) = incoming.crc.as_mut() {
            crc.update(&piece.buf[piece.filled as usize..piece.filled as usize + bytes]);
        }
        piece.filled += bytes as u32;
        incoming.left -= bytes;
        if piece.room() == 0
            && let Some(piece) = data.piece.take()
        {
            data.full.push(piece);
        }
        if let Some(entry) = self.tasks.get_mut(data.task) {
            entry.transfer.advance(bytes as u32);
        }
        // Ends the segment if nothing is left of it, and finds the next piece's buffer otherwise.
        self.feed(slot, &[], env);
    }

    /// No buffer has come free in time for the data that a connection stands still with: the command ends with
    /// TASK SET FULL, its data are discarded. So do the next ones at once, until a buffer is free again.
    pub(crate) fn give_up_on_data(&mut self, slot: Slot, env: &mut Env<'_>) {
        let Some(connection) = self.connections.get_mut(slot) else { return };
        connection.stalled_since = None;
        connection.is_starved = true;
        let Some(Incoming { destination: Destination::Task(data), .. }) = &connection.incoming else {
            return;
        };
        let task = data.task;
        self.counters.starved += 1;
        let outcome = Outcome { status: Status::TaskSetFull, sense: None, transfer_bytes: 0 };
        self.end_after_data(task, outcome, env);
    }

    /// Moves bytes into the current data segment.
    fn feed_data(&mut self, slot: Slot, bytes: &[u8], env: &mut Env<'_>) -> (usize, Segment) {
        let Some(connection) = self.connections.get_mut(slot) else { return (bytes.len(), Segment::More) };
        let Some(incoming) = connection.incoming.as_mut() else { return (0, Segment::More) };
        let mut taken = 0;
        while incoming.left > 0 {
            let rest = &bytes[taken..];
            let part = rest.len().min(incoming.left);
            let part = match &mut incoming.destination {
                Destination::Discard => part,
                Destination::Collect(data) => {
                    data.extend_from_slice(&rest[..part]);
                    part
                }
                Destination::Task(data) => {
                    let session = match connection.phase {
                        Phase::FullFeature { session } | Phase::Closing { session: Some(session) } => {
                            self.sessions.get_mut(session)
                        }
                        _ => None,
                    };
                    let entry = self.tasks.get_mut(data.task).filter(|entry| !entry.aborted);
                    let Some(session) = session else { return (bytes.len(), Segment::More) };
                    let mut lender = Lender::new(env.pool, &mut self.quota, &mut session.share);
                    let Some(entry) = entry else {
                        // Ended or aborted meanwhile.
                        data.piece
                            .take()
                            .into_iter()
                            .chain(data.full.drain(..))
                            .for_each(|p| lender.give(p.buf));
                        incoming.destination = Destination::Discard;
                        continue;
                    };
                    if data.piece.is_none() && entry.transfer.received() < entry.transfer.want() {
                        let start = entry.transfer.received();
                        let buf = if let Some(buf) = entry.transfer.take_reserved() {
                            lender.unreserve(&buf);
                            buf
                        } else {
                            let end = entry.task.piece_end(start);
                            let Some(buf) = lender.take_for_data_out((end - start) as usize) else {
                                return (taken, Segment::NoBuffer);
                            };
                            connection.is_starved = false;
                            connection.stalled_since = None;
                            entry.transfer.cover(end);
                            buf
                        };
                        data.piece = Some(Piece { buf, start, filled: 0 });
                    }
                    // Without a piece it is more than the task takes.
                    let part = data.piece.as_ref().map_or(part, |piece| part.min(piece.room() as usize));
                    if let Some(piece) = data.piece.as_mut() {
                        let at = piece.filled as usize;
                        piece.buf[at..at + part].copy_from_slice(&rest[..part]);
                        piece.filled += part as u32;
                        if piece.room() == 0 {
                            data.full.extend(data.piece.take());
                        }
                    }
                    entry.transfer.advance(part as u32);
                    part
                }
            };
            if part == 0 {
                return (taken, Segment::More);
            }
            if let Some(crc) = incoming.crc.as_mut() {
                crc.update(&rest[..part]);
            }
            incoming.left -= part;
            taken += part;
        }
        taken += incoming.trailer.take(&bytes[taken..]);
        (taken, if incoming.trailer.is_whole() { Segment::Whole } else { Segment::More })
    }

    /// A header is whole, and `rest` has come behind it: act on it, or say where its data go.
    fn on_header(&mut self, slot: Slot, header: &Header, rest: &mut Rest<'_>, env: &mut Env<'_>) {
        let Some(connection) = self.connections.get_mut(slot) else { return };
        connection.pinged = None;
        let data_bytes = pdu::data_bytes(&header.bhs);
        let mut destination = Destination::Discard;
        let request = pdu::decode::request(&header.bhs, &header.ahs);
        match &connection.phase {
            Phase::Closing { .. } => {}
            _ if connection.is_leaving => {}
            Phase::Login(_) => match request {
                Ok(Request::Login(_)) => destination = Destination::Collect(Vec::with_capacity(data_bytes)),
                // RFC 7143 §6.3: nothing but login requests until full feature phase.
                _ => return self.break_connection(slot, &"not a login request"),
            },
            Phase::Entering(..) => {
                return self.break_connection(slot, &"a request before the login response");
            }
            Phase::Discovery => destination = self.on_discovery_request(slot, &header.bhs, request),
            Phase::FullFeature { session } => {
                let session = *session;
                destination = self.on_request(slot, session, &header.bhs, request, rest, env);
            }
        }
        let Some(connection) = self.connections.get_mut(slot) else { return };
        if connection.is_broken {
            return;
        }
        if (data_bytes == 0 || rest.taken > 0) && matches!(destination, Destination::Discard) {
            return;
        }
        // Even without data: the end of the segment is where requests are acted on.
        connection.incoming = Some(Incoming {
            bhs: header.bhs,
            left: data_bytes,
            trailer: Trailer::new(data_bytes, connection.data_digest),
            crc: (connection.data_digest && data_bytes > 0).then(Crc::new),
            destination,
        });
    }

    /// A request in a discovery session, which has a command window, too.
    fn on_discovery_request(
        &mut self,
        slot: Slot,
        bhs: &Bhs,
        request: Result<Request, ProtocolError>,
    ) -> Destination {
        let Some(connection) = self.connections.get_mut(slot) else { return Destination::Discard };
        if let Some((cmd_sn, immediate)) = pdu::decode::numbering(bhs) {
            let admission = connection.window.admit(cmd_sn, immediate);
            connection.window.grant(admission::DISCOVERY_COMMANDS_MAX);
            match admission {
                Admission::InOrder | Admission::Immediate => {}
                Admission::Ignore => {
                    self.counters.ignored_commands += 1;
                    return Destination::Discard;
                }
                Admission::Gap => {
                    self.break_connection(slot, &"a gap in CmdSN, which nothing can fill");
                    return Destination::Discard;
                }
            }
        }
        match request {
            Ok(Request::Text(_) | Request::NopOut(_) | Request::Logout(_)) => self.collect(slot, bhs),
            Ok(_) => {
                self.reject(slot, bhs, RejectReason::ProtocolError);
                Destination::Discard
            }
            Err(error) => {
                self.reject(slot, bhs, error.reason());
                Destination::Discard
            }
        }
    }

    /// Keeps the data of a request until they are whole, unless they are more text than anybody has to say.
    fn collect(&mut self, slot: Slot, bhs: &Bhs) -> Destination {
        let data_bytes = pdu::data_bytes(bhs);
        if data_bytes > admission::TEXT_BYTES_MAX && Opcode::of(bhs) == Some(Opcode::TextRequest) {
            self.reject(slot, bhs, RejectReason::LongOperationReject);
            return Destination::Discard;
        }
        Destination::Collect(Vec::with_capacity(data_bytes))
    }

    /// A request in full feature phase of a normal session.
    fn on_request(
        &mut self,
        slot: Slot,
        session_slot: Slot,
        bhs: &Bhs,
        request: Result<Request, ProtocolError>,
        rest: &mut Rest<'_>,
        env: &mut Env<'_>,
    ) -> Destination {
        if let Some((cmd_sn, immediate)) = pdu::decode::numbering(bhs) {
            let Some(session) = self.sessions.get_mut(session_slot) else { return Destination::Discard };
            match session.admit(cmd_sn, immediate) {
                Admission::InOrder | Admission::Immediate => {}
                Admission::Ignore => {
                    self.counters.ignored_commands += 1;
                    return Destination::Discard;
                }
                Admission::Gap => {
                    self.break_connection(slot, &"a gap in CmdSN, which nothing can fill");
                    return Destination::Discard;
                }
            }
        }
        match request {
            Err(error) => {
                debug!(?error, "rejected");
                self.reject(slot, bhs, error.reason());
                Destination::Discard
            }
            Ok(Request::ScsiCommand(command)) => {
                self.on_command(slot, session_slot, bhs, &command, rest, env)
            }
            Ok(Request::DataOut(data)) => self.on_data_out(slot, session_slot, bhs, &data, env),
            Ok(Request::Login(_)) => {
                // RFC 7143 §6.3: a login request in full feature phase is a protocol error.
                self.reject(slot, bhs, RejectReason::ProtocolError);
                self.close_after_flush(slot);
                Destination::Discard
            }
            Ok(Request::NopOut(_) | Request::Text(_) | Request::TaskManagement(_) | Request::Logout(_)) => {
                self.collect(slot, bhs)
            }
        }
    }

    fn on_command(
        &mut self,
        slot: Slot,
        session_slot: Slot,
        bhs: &Bhs,
        request: &ScsiCommand,
        rest: &mut Rest<'_>,
        env: &mut Env<'_>,
    ) -> Destination {
        let Some(session) = self.sessions.get_mut(session_slot) else { return Destination::Discard };
        let parameters = &session.parameters;
        let edtl = request.expected_data_transfer_bytes;
        // RFC 7143 §11.3.4, §13.10, §13.11: immediate data only if agreed, unsolicited Data-Out unless InitialR2T.
        let open = !request.is_final && !parameters.initial_r2t;
        let immediate_allowed = parameters.immediate_data || request.data_bytes == 0;
        if !immediate_allowed || (!request.is_final && parameters.initial_r2t) {
            self.reject(slot, bhs, RejectReason::ProtocolError);
            return Destination::Discard;
        }
        let write_bytes = if request.write { edtl } else { 0 };
        let transfer =
            Transfer::new(write_bytes, parameters.first_burst_length, open || request.data_bytes > 0);
        if transfer.start_immediate(request.data_bytes).is_err() {
            self.reject(slot, bhs, RejectReason::ProtocolError);
            return Destination::Discard;
        }
        let mut cdb = request.cdb;
        if request.long_cdb {
            // No command of ours: an operation code that no table has is answered as SPC-4 §4.3 wants.
            cdb = [0; 16];
            cdb[0] = 0x7f;
        }
        let command = Command {
            lun: request.lun,
            cdb,
            attribute: request.attribute,
            data_out_bytes: write_bytes,
            data_in_bytes: match (request.read, request.write) {
                (true, false) => edtl,
                (true, true) => request.bidirectional_read_bytes,
                (false, _) => 0,
            },
        };
        let nexus = session.nexus;
        match self.may_start(session_slot, request.initiator_task_tag, request.immediate) {
            Ok(()) => {
                let task = self.server.begin(nexus, &command);
                if let Some(straight) = task.straight()
                    && self.go_straight(slot, session_slot, request, straight, rest, env).is_some()
                {
                    return Destination::Discard;
                }
                let task = self.start_task(session_slot, request, &command, task, transfer);
                if open && let Some(entry) = self.tasks.get_mut(task) {
                    entry.transfer.deadline = env.now + DATA_OUT_TIMEOUT;
                }
                self.pump(task, env);
                if request.data_bytes == 0 {
                    return Destination::Discard;
                }
                Destination::Task(TaskData { task, piece: None, full: SmallVec::new() })
            }
            Err(TaskRefused::TagInUse) => {
                self.reject(slot, bhs, RejectReason::TaskInProgress);
                Destination::Discard
            }
            Err(TaskRefused::TooManyImmediate) => {
                self.reject(slot, bhs, RejectReason::ImmediateCommandReject);
                Destination::Discard
            }
            Err(TaskRefused::TableFull) => {
                let outcome = Outcome { status: Status::TaskSetFull, sense: None, transfer_bytes: 0 };
                self.reply(slot, Reply::ended(request.initiator_task_tag, outcome, edtl));
                Destination::Discard
            }
        }
    }

    /// A READ, or a WRITE that has come with its data, is done here and now and answered, if its device can do that and
    /// nobody has to be waited for. `None`: it has to be a task.
    fn go_straight(
        &mut self,
        slot: Slot,
        session: Slot,
        request: &ScsiCommand,
        straight: Straight,
        rest: &mut Rest<'_>,
        env: &mut Env<'_>,
    ) -> Option<()> {
        let session = self.sessions.get_mut(session)?;
        let connection = self.connections.get_mut(slot)?;
        let is_plain = matches!(request.attribute, TaskAttribute::Simple | TaskAttribute::Untagged);
        if !is_plain || session.ranked > 0 {
            return None;
        }
        let Straight { writes, bdev, lba, bytes, .. } = straight;
        let itt = request.initiator_task_tag;
        if writes {
            if !request.is_final || request.data_bytes != bytes {
                return None;
            }
            let (data, trailer) = rest.bytes.split_at_checked(bytes as usize)?;
            let trailer_bytes = pdu::trailer_bytes(bytes as usize, connection.data_digest);
            // Blocks need no padding, so what follows is the digest. Whether it is wrong is for whoever rejects it.
            if connection.data_digest && trailer.get(..trailer_bytes)? != crc32c(data) {
                return None;
            }
            if !env.below.write_now(bdev, lba, data) {
                return None;
            }
            connection.replies.push_back(Reply::good(itt));
            self.counters.written_bytes += u64::from(bytes);
            rest.taken = bytes as usize + trailer_bytes;
        } else {
            self.lents.clear();
            let mut from = 0;
            while from < bytes {
                let (lba, part) = straight.piece(from);
                let Some(lent) = env.below.lend_now(bdev, lba, part as usize) else { break };
                self.lents.push(lent);
                from += part;
            }
            if from == bytes {
                if connection.data_digest {
                    self.lents.iter().for_each(Lent::expect);
                }
                connection.queue_lent(itt, bytes, self.lents.drain(..));
            } else {
                self.lents.clear();
                let is_one = straight.piece(0).1 == bytes;
                if !is_one
                    || bytes > connection.their_segment_bytes_max
                    || bytes > connection.max_burst_length
                {
                    return None;
                }
                let mut lender = Lender::new(env.pool, &mut self.quota, &mut session.share);
                let mut buf = lender.take(bytes as usize)?;
                if !env.below.read_now(bdev, lba, &mut buf) {
                    lender.give(buf);
                    return None;
                }
                connection.replies.push_back(Reply::all_data(itt, Payload::Buf(buf)));
            }
            self.counters.read_bytes += u64::from(bytes);
        }
        self.counters.commands += 1;
        self.counters.straight += 1;
        self.mark_dirty(Some(slot));
        Some(())
    }

    fn on_data_out(
        &mut self,
        slot: Slot,
        session_slot: Slot,
        bhs: &Bhs,
        data: &DataOut,
        env: &mut Env<'_>,
    ) -> Destination {
        let Some(session) = self.sessions.get_mut(session_slot) else { return Destination::Discard };
        // A task that was answered early (an error, a time-out, an abort) still gets what was under way.
        let Some(&task) = session.tasks.get(&data.initiator_task_tag) else {
            self.counters.stray_data_out += 1;
            return Destination::Discard;
        };
        let is_over =
            |entry: &TaskEntry| entry.aborted || (entry.ending.is_some() && !entry.transfer.is_waiting());
        let Some(entry) = self.tasks.get_mut(task).filter(|entry| !is_over(entry)) else {
            // It has failed, or another nexus has aborted it: its initiator is still to be told.
            self.counters.stray_data_out += 1;
            return Destination::Discard;
        };
        let due = entry.transfer.start_data_out(
            data.target_transfer_tag,
            data.data_sn.0,
            data.buffer_offset,
            data.data_bytes,
            data.is_final,
        );
        match due {
            Ok(()) => {
                entry.transfer.deadline = env.now + DATA_OUT_TIMEOUT;
                let piece = entry.transfer.take_piece();
                Destination::Task(TaskData { task, piece, full: SmallVec::new() })
            }
            Err(error) => {
                debug!(?error, ?data, "Data-Out rejected");
                self.reject(slot, bhs, RejectReason::ProtocolError);
                self.fail_task(task, admission::data_error(error), env);
                Destination::Discard
            }
        }
    }

    /// A data segment, perhaps empty, is whole: the request is acted on, or the task gets its data.
    fn end_segment(&mut self, slot: Slot, env: &mut Env<'_>) {
        let Some(connection) = self.connections.get_mut(slot) else { return };
        let Some(incoming) = connection.incoming.take() else { return };
        connection.stalled_since = None;
        let is_right = incoming.trailer.matches(incoming.crc);
        if !is_right {
            self.counters.data_digest_errors += 1;
        }
        match incoming.destination {
            Destination::Discard => {}
            // RFC 7143 §7.8: a PDU with a wrong data digest is rejected. For a request that has used up its
            // CmdSN there is no way back at ErrorRecoveryLevel 0 but to end the connection.
            _ if !is_right && pdu::Opcode::of(&incoming.bhs) != Some(pdu::Opcode::DataOut) => {
                self.reject(slot, &incoming.bhs, RejectReason::DataDigestError);
                if let Destination::Task(data) = incoming.destination {
                    self.return_pieces(slot, data, env);
                }
                self.close_after_flush(slot);
            }
            Destination::Collect(data) => self.on_collected(slot, &incoming.bhs, data, env),
            Destination::Task(data) => self.end_task_data(slot, &incoming.bhs, data, is_right, env),
        }
    }

    fn end_task_data(&mut self, slot: Slot, bhs: &Bhs, data: TaskData, is_right: bool, env: &mut Env<'_>) {
        let Some(entry) =
            self.tasks.get_mut(data.task).filter(|entry| !entry.aborted && !entry.is_background())
        else {
            return self.return_pieces(slot, data, env);
        };
        let task = data.task;
        let is_final = bhs[1] & pdu::bhs::FINAL != 0;
        if pdu::Opcode::of(bhs) == Some(pdu::Opcode::DataOut) {
            entry.transfer.end_data_out(pdu::decode::target_transfer_tag(bhs), is_final);
        } else {
            entry.transfer.end_immediate(is_final);
        }
        let is_waiting = entry.transfer.is_waiting();
        if !is_right {
            self.return_pieces(slot, data, env);
            self.reject(slot, bhs, RejectReason::DataDigestError);
            self.end_after_data(task, admission::data_digest_error(), env);
        } else if self.is_ending(task) {
            self.return_pieces(slot, data, env);
        } else {
            return self.give_task_data(data, env);
        }
        if !is_waiting {
            self.end_now(task, env);
        }
    }

    /// A task gets the pieces that a PDU has filled.
    fn give_task_data(&mut self, data: TaskData, env: &mut Env<'_>) {
        let Some(entry) = self.tasks.get_mut(data.task) else { return };
        if let Some(piece) = data.piece {
            entry.transfer.put_piece(piece);
        }
        for piece in data.full {
            entry.task.data_out(piece.start, piece.buf);
        }
        if entry.transfer.received() < entry.transfer.want()
            && !entry.transfer.is_waiting()
            && entry.transfer.next_r2t_offset(1).is_none()
        {
            return self.fail_task(data.task, admission::data_error(DataError::IncorrectAmount), env);
        }
        if !entry.transfer.is_waiting() {
            entry.transfer.deadline = reactor::clock::Time::NEVER;
        }
        self.pump(data.task, env);
    }

    /// Buffers of a task that is gone.
    pub(crate) fn return_pieces(&mut self, slot: Slot, data: TaskData, env: &mut Env<'_>) {
        let Some(session) = self.connections.get(slot).and_then(Connection::session) else { return };
        let Some(session) = self.sessions.get_mut(session) else { return };
        let mut lender = Lender::new(env.pool, &mut self.quota, &mut session.share);
        data.piece.into_iter().chain(data.full).for_each(|piece| lender.give(piece.buf));
    }

    /// A request whose data were collected first.
    fn on_collected(&mut self, slot: Slot, bhs: &Bhs, data: Vec<u8>, env: &mut Env<'_>) {
        let Some(connection) = self.connections.get_mut(slot) else { return };
        let is_login = matches!(connection.phase, Phase::Login(_));
        match pdu::decode::request(bhs, &[]) {
            Ok(Request::Login(request)) if is_login => self.on_login(slot, &request, &data, env),
            Ok(Request::NopOut(request)) => self.on_nop_out(slot, &request, data),
            Ok(Request::Text(request)) => self.on_text(slot, bhs, &request, &data),
            Ok(Request::TaskManagement(request)) => self.on_task_management(slot, &request, env),
            Ok(Request::Logout(request)) => self.on_logout(slot, &request, env),
            _ => self.break_connection(slot, &"a request that does not belong here"),
        }
    }

    /// RFC 7143 §11.18: a ping is answered with its data; an answer to ours has none to answer.
    fn on_nop_out(&mut self, slot: Slot, request: &NopOut, mut data: Vec<u8>) {
        let Some(connection) = self.connections.get_mut(slot) else { return };
        if request.initiator_task_tag.is_reserved() {
            return;
        }
        data.truncate(connection.their_segment_bytes_max as usize);
        self.reply(slot, Reply::Pong { ping: *request, data });
    }

    /// Rejects a PDU (RFC 7143 §11.17).
    pub(crate) fn reject(&mut self, slot: Slot, bhs: &Bhs, reason: RejectReason) {
        self.counters.rejects += 1;
        self.reply(slot, Reply::Reject { reason, header: *bhs });
    }
}

/// How far the current data segment has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Segment {
    Whole,
    More,
    NoBuffer,
}
