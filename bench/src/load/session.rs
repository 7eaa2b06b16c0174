//! One session under load: keeps its queue full, without IO of its own but for the two socket calls.
//!
//! Invariants: a slot is free or has one command under way, whose tag names slot and turn; commands go out only
//! inside the target's window (CmdSN ≤ MaxCmdSN); a slot's payload stays as it is until its status came. Nothing is
//! allocated after [`Session::new`]. Called by `worker`.

use super::inbox::{Event, Inbox};
use super::ledger::{Finished, Ledger};
use super::link::{Link, advances_stat_sn, unexpected};
use super::login::Terms;
use super::outbox::Outbox;
use super::pace::Pace;
use super::pattern::{Op, Random};
use super::wire::{
    self, Bhs, Crc, DataOut, TAG_NONE, crc32c, data_bytes, initiator_task_tag, opcode, opcode_of,
    put_data_bytes,
};
use crate::failure::{Context, Failure};
use reactor::clock::Time;
use std::collections::VecDeque;
use std::io::{ErrorKind, Read};
use std::net::TcpStream;
use std::time::Duration;

/// Commands under way in one session at most: what a tag's low bits can name.
pub const DEPTH_MAX: usize = 1 << SLOT_BITS;
const SLOT_BITS: u32 = 12;
/// Headers, digest and padding of one PDU at most.
const FIXED_BYTES: usize = 64;
/// Pings that may wait for room to be answered.
const PINGS_MAX: usize = 8;
/// How [`sense_text`] begins where nothing was done but to tell the host something. SPC-4 4.5.6.
const UNIT_ATTENTION: &str = ", sense 6h/";
/// So many of those are taken in a session; more are errors.
const ATTENTIONS_MAX: u32 = 64;
/// Bytes of a response's sense data that are looked at.
const SENSE_BYTES: usize = 64;

/// What the session is to do its work on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Task {
    /// The logical unit.
    pub lun: u16,
    /// Bytes of one command.
    pub block_bytes: u32,
    /// Bytes of one logical block; divides `block_bytes`.
    pub logical_block_bytes: u32,
    /// Commands kept under way, at most [`DEPTH_MAX`].
    pub depth: usize,
    /// Reads must be kept to be checked.
    pub keeps_data: bool,
    /// Writes will come.
    pub writes: bool,
}

/// The serial numbers to go on with after login.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Serials {
    /// The next command's.
    pub cmd_sn: u32,
    /// The last CmdSN that the target takes.
    pub max_cmd_sn: u32,
    /// The next StatSN due.
    pub exp_stat_sn: u32,
}

#[derive(Debug, Clone, Copy)]
struct Slot {
    /// [`TAG_NONE`] when free.
    tag: u32,
    op: Op,
    block: u64,
    /// When it was built: the time-out counts from here, or a long wait in the schedule would be the target's silence.
    issued: Time,
    /// Where its latency begins.
    start: Time,
    /// Data-In so far: bytes, and PDUs.
    received: u32,
    data_sn: u32,
}

const FREE: Slot = Slot {
    tag: TAG_NONE,
    op: Op::Read,
    block: 0,
    issued: Time::ZERO,
    start: Time::ZERO,
    received: 0,
    data_sn: 0,
};

/// Data that the target wants, or gets unasked.
#[derive(Debug, Clone, Copy)]
struct Transfer {
    task_tag: u32,
    target_tag: u32,
    data_sn: u32,
    offset: u32,
    end: u32,
}

/// See the module.
#[derive(Debug)]
pub struct Session {
    index: usize,
    socket: TcpStream,
    terms: Terms,
    task: Task,
    serials: Serials,
    read_template: Bhs,
    write_template: Bhs,
    /// Unsolicited data of a write: with the command, and in all.
    immediate_bytes: u32,
    unsolicited_bytes: u32,
    /// Data of one Data-Out.
    segment_bytes: u32,
    slots: Box<[Slot]>,
    free: Vec<u16>,
    /// What a unit attention took the place of: it goes again, as hosts do it, and its latency counts from its first start.
    again: Vec<(Op, u64, Time)>,
    attentions: u32,
    turn: u32,
    /// When commands are to start; without it as soon as there is room.
    pace: Option<Pace>,
    transfers: VecDeque<Transfer>,
    pings: VecDeque<Bhs>,
    outbox: Outbox,
    inbox: Inbox,
    payload: Box<[u8]>,
    sense: [u8; SENSE_BYTES],
    sense_filled: usize,
}

impl Session {
    /// Takes over a logged-in, non-blocking socket; `index` is its number in its thread.
    pub fn new(index: usize, socket: TcpStream, terms: Terms, serials: Serials, task: Task) -> Session {
        assert!(task.depth > 0 && task.depth <= DEPTH_MAX);
        assert!(task.block_bytes.is_multiple_of(task.logical_block_bytes));
        let command = |operation_code, flags| {
            let blocks = task.block_bytes / task.logical_block_bytes;
            wire::scsi_command(task.lun, flags, task.block_bytes, &wire::rw_16(operation_code, blocks))
        };
        // Multiples of four, so that our own cuts need no padding.
        let segment_bytes = terms.max_send & !3;
        let unsolicited_bytes = (terms.first_burst & !3).min(task.block_bytes);
        let immediate_bytes = if terms.immediate_data { segment_bytes.min(unsolicited_bytes) } else { 0 };
        let unsolicited_bytes = if terms.initial_r2t { immediate_bytes } else { unsolicited_bytes };
        let mut write_template = command(wire::WRITE_16, wire::WRITE);
        put_data_bytes(&mut write_template, immediate_bytes);
        if unsolicited_bytes > immediate_bytes {
            write_template[1] &= !wire::FINAL;
        }
        let payload_bytes =
            if task.writes || task.keeps_data { task.depth * task.block_bytes as usize } else { 0 };
        Session {
            index,
            socket,
            terms,
            task,
            serials,
            read_template: command(wire::READ_16, wire::READ),
            write_template,
            immediate_bytes,
            unsolicited_bytes,
            segment_bytes,
            slots: vec![FREE; task.depth].into(),
            free: (0..task.depth as u16).rev().collect(),
            again: Vec::with_capacity(ATTENTIONS_MAX as usize),
            attentions: 0,
            turn: 0,
            pace: None,
            transfers: VecDeque::with_capacity(task.depth),
            pings: VecDeque::with_capacity(PINGS_MAX),
            outbox: Outbox::new(task.depth * 2 + PINGS_MAX, FIXED_BYTES),
            inbox: Inbox::new(terms.header_digest, terms.data_digest, terms.max_receive),
            payload: random_bytes(payload_bytes, index as u64),
            sense: [0; SENSE_BYTES],
            sense_filled: 0,
        }
    }

    /// What was agreed at login.
    pub fn terms(&self) -> &Terms {
        &self.terms
    }

    /// From now on commands start at the times of `pace`.
    pub fn set_pace(&mut self, pace: Pace) {
        self.pace = Some(pace);
    }

    /// The schedule, in an open loop.
    pub fn pace(&self) -> Option<&Pace> {
        self.pace.as_ref()
    }

    /// Ends the schedule and hands out what is left of it. From now on commands start as soon as there is room.
    pub fn take_pace(&mut self) -> Option<Pace> {
        self.pace.take()
    }

    /// Commands under way.
    pub fn under_way(&self) -> usize {
        self.slots.len() - self.free.len() + self.again.len()
    }

    /// When the command that waits longest was built.
    pub fn oldest(&self) -> Option<Time> {
        self.slots.iter().filter(|slot| slot.tag != TAG_NONE).map(|slot| slot.issued).min()
    }

    /// Describes the command that waits longest.
    pub fn describe_oldest(&self) -> String {
        let under_way = self.slots.iter().filter(|slot| slot.tag != TAG_NONE);
        let Some(slot) = under_way.min_by_key(|slot| slot.issued) else {
            return "no command".into();
        };
        format!(
            "{:?} of block {} (tag {:08x}h, {} of {} bytes in; {} commands under way, CmdSN {}, MaxCmdSN {}, {})",
            slot.op,
            slot.block,
            slot.tag,
            slot.received,
            self.task.block_bytes,
            self.under_way(),
            self.serials.cmd_sn,
            self.serials.max_cmd_sn,
            if self.outbox.is_empty() { "all sent" } else { "the socket takes no more" },
        )
    }

    /// Whether a command could be built now.
    pub fn wants_commands(&self) -> bool {
        !self.free.is_empty() && wire::serial_le(self.serials.cmd_sn, self.serials.max_cmd_sn)
    }

    /// Receives once into `buffer`, if anything is there, and returns the bytes.
    ///
    /// # Errors
    /// The connection ended.
    pub fn receive(&mut self, buffer: &mut [u8]) -> Result<usize, Failure> {
        match self.socket.read(buffer) {
            Ok(0) => Err(Failure::new("the target closed the connection")),
            Ok(received) => Ok(received),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(0),
            Err(error) => Err(Failure::new(format!("receiving: {error}"))),
        }
    }

    /// Sends what waits, with one call. Returns the bytes that left.
    ///
    /// # Errors
    /// The connection ended.
    pub fn send(&mut self) -> Result<usize, Failure> {
        if self.outbox.is_empty() {
            return Ok(0);
        }
        self.outbox.send(&mut self.socket, &self.payload).doing("sending")
    }

    /// Ends the measured part; the link can log out.
    ///
    /// # Errors
    /// The kernel refuses to change the socket.
    pub fn into_link(self, timeout: Duration) -> Result<Link, Failure> {
        let mut link = Link::from_socket(self.socket, timeout)?;
        link.header_digest = self.terms.header_digest;
        link.data_digest = self.terms.data_digest;
        link.cmd_sn = self.serials.cmd_sn;
        link.max_cmd_sn = self.serials.max_cmd_sn;
        link.exp_stat_sn = self.serials.exp_stat_sn;
        Ok(link)
    }

    /// Queues answers to pings, data that was asked for and, if `issues`, new commands, as far as there is room.
    pub fn fill(&mut self, now: Time, issues: bool, ledger: &mut Ledger) {
        while !self.pings.is_empty() && self.outbox.has_room(FIXED_BYTES) {
            if let Some(ping) = self.pings.pop_front() {
                let answer = wire::nop_out_answer(&ping, self.serials.cmd_sn, self.serials.exp_stat_sn);
                self.push_header(&answer);
            }
        }
        self.push_transfers();
        while let Some(&(op, block, start)) = self.again.last()
            && self.wants_commands()
            && self.transfers.is_empty()
            && self.outbox.has_room(FIXED_BYTES)
        {
            self.again.pop();
            self.issue(now, start, op, block, ledger);
            self.push_transfers();
        }
        while issues
            && self.wants_commands()
            && self.transfers.is_empty()
            && self.outbox.has_room(FIXED_BYTES)
        {
            let Some(start) = self.next_start(now) else {
                return;
            };
            let Some((op, block)) = ledger.next(self.index) else {
                return;
            };
            // Only now is it sure to go: until then it is due, and waits.
            if let Some(pace) = &mut self.pace {
                pace.advance();
                ledger.sent(now, start);
            }
            self.issue(now, start, op, block, ledger);
            // Unsolicited data follows its command before the next one. RFC 7143 §4.2.5.3.
            self.push_transfers();
        }
    }

    /// Where the latency of a command built at `now` begins; `None` when it would be too early.
    fn next_start(&self, now: Time) -> Option<Time> {
        match &self.pace {
            None => Some(now),
            Some(pace) => pace.due(now),
        }
    }

    fn issue(&mut self, now: Time, start: Time, op: Op, block: u64, ledger: &mut Ledger) {
        let index = self.free.pop().expect("`wants_commands` saw a free slot");
        // The turn's top bit stays clear, so no tag is ever TAG_NONE.
        self.turn = (self.turn + 1) & (u32::MAX >> (SLOT_BITS + 1));
        let tag = (self.turn << SLOT_BITS) | u32::from(index);
        self.slots[index as usize] = Slot { tag, op, block, issued: now, start, received: 0, data_sn: 0 };
        let mut bhs = if op == Op::Read { self.read_template } else { self.write_template };
        let lba = block * u64::from(self.task.block_bytes / self.task.logical_block_bytes);
        wire::stamp_command(&mut bhs, tag, self.serials.cmd_sn, self.serials.exp_stat_sn, lba);
        self.serials.cmd_sn = self.serials.cmd_sn.wrapping_add(1);
        self.push_header(&bhs);
        if op == Op::Write {
            let at = index as usize * self.task.block_bytes as usize;
            ledger.stamp(block, &mut self.payload[at..at + self.task.block_bytes as usize]);
            self.push_data(at, self.immediate_bytes);
            if self.unsolicited_bytes > self.immediate_bytes {
                self.transfers.push_back(Transfer {
                    task_tag: tag,
                    target_tag: TAG_NONE,
                    data_sn: 0,
                    offset: self.immediate_bytes,
                    end: self.unsolicited_bytes,
                });
            }
        }
    }

    fn push_header(&mut self, bhs: &Bhs) {
        self.outbox.push_fixed(bhs);
        if self.terms.header_digest {
            self.outbox.push_fixed(&crc32c(bhs));
        }
    }

    fn push_data(&mut self, at: usize, bytes: u32) {
        if bytes == 0 {
            return;
        }
        self.outbox.push_payload(at, bytes as usize);
        // A target may ask for bursts of odd lengths; then the padding counts in the digest. RFC 7143 §11.2.3.
        let padding = &[0; 3][..wire::pad_bytes(bytes) as usize];
        if !padding.is_empty() {
            self.outbox.push_fixed(padding);
        }
        if self.terms.data_digest {
            let mut crc = Crc::new();
            crc.update(&self.payload[at..at + bytes as usize]);
            crc.update(padding);
            self.outbox.push_fixed(&crc.wire());
        }
    }

    fn push_transfers(&mut self) {
        while self.outbox.has_room(FIXED_BYTES) {
            let Some(transfer) = self.transfers.front_mut() else {
                return;
            };
            let sent = *transfer;
            let bytes = (sent.end - sent.offset).min(self.segment_bytes);
            let last = sent.offset + bytes == sent.end;
            transfer.offset += bytes;
            transfer.data_sn += 1;
            if last {
                self.transfers.pop_front();
            }
            let what = DataOut {
                task_tag: sent.task_tag,
                transfer_tag: sent.target_tag,
                data_sn: sent.data_sn,
                offset: sent.offset,
                bytes,
                last,
            };
            self.push_header(&wire::data_out(self.task.lun, self.serials.exp_stat_sn, what));
            let slot = sent.task_tag as usize & (DEPTH_MAX - 1);
            self.push_data(slot * self.task.block_bytes as usize + sent.offset as usize, bytes);
        }
    }

    /// Takes in what one receive brought at `now`.
    ///
    /// # Errors
    /// The target broke the protocol: the sentence says how.
    pub fn handle_bytes(&mut self, now: Time, bytes: &[u8], ledger: &mut Ledger) -> Result<(), Failure> {
        let mut bytes = bytes;
        while let Some(event) = self.inbox.next(&mut bytes)? {
            match event {
                Event::Header => self.handle_header()?,
                Event::Data(data) => {
                    let bhs = *self.inbox.header();
                    self.handle_data(&bhs, data);
                }
                Event::End => self.handle_pdu(now, ledger)?,
            }
        }
        Ok(())
    }

    /// Data-In must fit its command before any of it is taken.
    fn handle_header(&mut self) -> Result<(), Failure> {
        let bhs = self.inbox.header();
        if opcode_of(bhs) != opcode::DATA_IN {
            self.sense_filled = 0;
            return Ok(());
        }
        let slot = &self.slots[self.slot_of(bhs)?];
        let (offset, sn, bytes) = (wire::buffer_offset(bhs), wire::data_sn(bhs), data_bytes(bhs));
        let fits = self.task.block_bytes - slot.received >= bytes;
        if slot.op != Op::Read || offset != slot.received || sn != slot.data_sn || !fits {
            return Err(Failure::new(format!(
                "Data-In {sn} of {bytes} bytes at {offset} doesn't fit {:?} of {} bytes with {} bytes and {} PDUs in",
                slot.op, self.task.block_bytes, slot.received, slot.data_sn
            )));
        }
        Ok(())
    }

    fn handle_data(&mut self, bhs: &Bhs, data: &[u8]) {
        match opcode_of(bhs) {
            opcode::DATA_IN => {
                let index = initiator_task_tag(bhs) as usize & (DEPTH_MAX - 1);
                let received = self.slots[index].received as usize;
                if self.task.keeps_data {
                    let at = index * self.task.block_bytes as usize + received;
                    self.payload[at..at + data.len()].copy_from_slice(data);
                }
                self.slots[index].received += data.len() as u32;
            }
            opcode::SCSI_RESPONSE => {
                let taken = data.len().min(SENSE_BYTES - self.sense_filled);
                self.sense[self.sense_filled..self.sense_filled + taken].copy_from_slice(&data[..taken]);
                self.sense_filled += taken;
            }
            _ => {}
        }
    }

    fn handle_pdu(&mut self, now: Time, ledger: &mut Ledger) -> Result<(), Failure> {
        let bhs = *self.inbox.header();
        self.note_serials(&bhs)?;
        match opcode_of(&bhs) {
            opcode::DATA_IN => {
                let index = self.slot_of(&bhs)?;
                self.slots[index].data_sn += 1;
                if bhs[1] & wire::STATUS_PRESENT != 0 {
                    self.end_task(now, index, &bhs, ledger);
                }
                Ok(())
            }
            opcode::SCSI_RESPONSE => {
                let index = self.slot_of(&bhs)?;
                self.end_task(now, index, &bhs, ledger);
                Ok(())
            }
            opcode::R2T => self.handle_r2t(&bhs),
            opcode::NOP_IN if wire::target_transfer_tag(&bhs) == TAG_NONE => Ok(()),
            opcode::NOP_IN if self.pings.len() < PINGS_MAX => {
                self.pings.push_back(bhs);
                Ok(())
            }
            _ => Err(unexpected(&bhs)),
        }
    }

    fn handle_r2t(&mut self, bhs: &Bhs) -> Result<(), Failure> {
        let slot = &self.slots[self.slot_of(bhs)?];
        let offset = wire::buffer_offset(bhs);
        let bytes = wire::residual_or_desired(bhs);
        let fits = offset.checked_add(bytes).is_some_and(|end| end <= self.task.block_bytes);
        if slot.op != Op::Write || bytes == 0 || bytes > self.terms.max_burst || !fits {
            return Err(Failure::new(format!(
                "R2T of {bytes} bytes at {offset} doesn't fit {:?} of {} bytes and MaxBurstLength {}",
                slot.op, self.task.block_bytes, self.terms.max_burst
            )));
        }
        if self.transfers.len() >= self.slots.len() {
            return Err(Failure::new("more than the one R2T a command that MaxOutstandingR2T allows"));
        }
        self.transfers.push_back(Transfer {
            task_tag: initiator_task_tag(bhs),
            target_tag: wire::target_transfer_tag(bhs),
            data_sn: 0,
            offset,
            end: offset + bytes,
        });
        Ok(())
    }

    fn end_task(&mut self, now: Time, index: usize, bhs: &Bhs, ledger: &mut Ledger) {
        let slot = std::mem::replace(&mut self.slots[index], FREE);
        self.free.push(index as u16);
        let Slot { op, block, start, received, .. } = slot;
        let is_response = opcode_of(bhs) == opcode::SCSI_RESPONSE;
        let response = if is_response { bhs[2] } else { 0 };
        let status = bhs[3];
        let residual = (bhs[1] & wire::RESIDUAL_FLAGS != 0, wire::residual_or_desired(bhs));
        if response != 0 || status != 0 {
            let sense = sense_text(&self.sense[..if is_response { self.sense_filled } else { 0 }]);
            if sense.starts_with(UNIT_ATTENTION) && self.attentions < ATTENTIONS_MAX {
                self.attentions += 1;
                return self.again.push((op, block, start));
            }
            ledger.fail(now, op, block, || {
                format!("{op:?} of block {block}: response {response:02x}h, status {status:02x}h{sense}")
            });
            return;
        }
        let expected = if op == Op::Read { self.task.block_bytes } else { 0 };
        if residual != (false, 0) || received != expected {
            ledger.fail(now, op, block, || {
                format!(
                    "{op:?} of block {block}: GOOD with {received} bytes in, flags {:02x}h, residual {}",
                    bhs[1], residual.1
                )
            });
            return;
        }
        let bytes = self.task.block_bytes;
        let at = index * bytes as usize;
        let data = if self.task.keeps_data { &self.payload[at..at + bytes as usize] } else { &[] };
        ledger.finish(now, Finished { op, block, bytes, start, data });
    }

    fn slot_of(&self, bhs: &Bhs) -> Result<usize, Failure> {
        let tag = initiator_task_tag(bhs);
        let index = tag as usize & (DEPTH_MAX - 1);
        match self.slots.get(index) {
            Some(slot) if slot.tag == tag && tag != TAG_NONE => Ok(index),
            _ => Err(unexpected(bhs)),
        }
    }

    fn note_serials(&mut self, bhs: &Bhs) -> Result<(), Failure> {
        let max_cmd_sn = wire::max_cmd_sn(bhs);
        if wire::serial_le(self.serials.max_cmd_sn, max_cmd_sn) {
            self.serials.max_cmd_sn = max_cmd_sn;
        }
        if advances_stat_sn(bhs) {
            if wire::stat_sn(bhs) != self.serials.exp_stat_sn {
                return Err(Failure::new(format!(
                    "StatSN {} in PDU {:02x}h, expected {}",
                    wire::stat_sn(bhs),
                    opcode_of(bhs),
                    self.serials.exp_stat_sn
                )));
            }
            self.serials.exp_stat_sn = self.serials.exp_stat_sn.wrapping_add(1);
        }
        Ok(())
    }
}

/// Bytes that no layer can squeeze.
fn random_bytes(bytes: usize, seed: u64) -> Box<[u8]> {
    let mut random = Random::new(seed);
    let mut data = vec![0; bytes];
    for word in data.chunks_mut(8) {
        let length = word.len();
        word.copy_from_slice(&random.draw().to_le_bytes()[..length]);
    }
    data.into()
}

/// Key and codes of the sense data behind its two bytes of length, fixed or descriptor. SPC-4 §4.5.
fn sense_text(segment: &[u8]) -> String {
    let sense = segment.get(2..).unwrap_or_default();
    let (key, code, qualifier) = match sense.first().map(|byte| byte & 0x7F) {
        Some(0x70 | 0x71) => (sense.get(2), sense.get(12), sense.get(13)),
        Some(0x72 | 0x73) => (sense.get(1), sense.get(2), sense.get(3)),
        _ => return String::new(),
    };
    match (key, code, qualifier) {
        (Some(key), Some(code), Some(qualifier)) => {
            format!(", sense {:x}h/{code:02x}h/{qualifier:02x}h", key & 0x0F)
        }
        _ => ", sense cut short".into(),
    }
}

#[cfg(test)]
mod tests;
