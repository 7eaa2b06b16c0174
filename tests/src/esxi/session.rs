//! One session as ESXi's software initiator keeps it: its login keys, immediate, unsolicited and solicited data, pings,
//! task management, commands at depth.
//!
//! It is stricter than a host has to be: data out of order, an R2T that skips bytes, or a residual that is not exact end
//! the test. Like [`crate::initiator`] it shares no code with the target.

use super::answer::{Answer, hex};
use super::command::Command;
use super::sense::Sense;
use crate::initiator::Pdu;
use crate::target::IQN;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io::{self, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// No answer may take longer.
pub const ANSWER_MAX: Duration = Duration::from_secs(20);
/// LoginTimeout.
pub const LOGIN_MAX: Duration = Duration::from_secs(5);
/// MaxRecvDataSegmentLength that we declare.
const RECEIVE_BYTES: u32 = 131_072;
/// AsyncEvent: the target requests a logout.
const LOGOUT_REQUEST: u8 = 1;
/// No tag: nothing is waited for.
const NO_TAG: u32 = u32::MAX;

/// ESXi's proposals, with a key that only its makers know.
const PROPOSALS: &str = "HeaderDigest=None DataDigest=None MaxConnections=1 InitialR2T=No ImmediateData=Yes \
     FirstBurstLength=262144 MaxBurstLength=262144 MaxRecvDataSegmentLength=131072 MaxOutstandingR2T=1 \
     DefaultTime2Wait=0 DefaultTime2Retain=0 ErrorRecoveryLevel=0 DataPDUInOrder=Yes DataSequenceInOrder=Yes \
     IFMarker=No OFMarker=No X-com.vmware.key=1";
const DISCOVERY_PROPOSALS: &str = "HeaderDigest=None DataDigest=None DefaultTime2Wait=0 DefaultTime2Retain=0 \
     IFMarker=No OFMarker=No ErrorRecoveryLevel=0 MaxRecvDataSegmentLength=32768";

/// Who logs in, from where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// InitiatorName.
    pub name: String,
    /// The ISID's last bytes: one for each path.
    pub isid: u16,
}

impl Port {
    /// A host's, on one of its paths.
    pub fn of_host(host: u16, path: u16) -> Port {
        Port { name: format!("iqn.1998-01.com.vmware:esx{host:02}-5f0c{host:04x}"), isid: path + 1 }
    }
}

/// A command under way.
#[derive(Debug)]
struct Under {
    command: Command,
    data: Vec<u8>,
    /// Bytes that were sent, or asked for in order.
    sent: usize,
    since: Instant,
}

/// One session of one connection.
#[derive(Debug)]
pub struct Session {
    stream: BufReader<TcpStream>,
    /// Who it is of.
    pub port: Port,
    /// What the target has said at login.
    pub said: BTreeMap<String, String>,
    /// The same, of the first response alone.
    pub said_first: BTreeMap<String, String>,
    cmd_sn: u32,
    exp_stat_sn: u32,
    max_cmd_sn: u32,
    next_tag: u32,
    under: HashMap<u32, Under>,
    ended: VecDeque<Answer>,
    replies: Vec<Pdu>,
    /// AsyncEvent of each asynchronous message.
    pub events: Vec<u8>,
}

impl Session {
    /// Logs in to the target.
    ///
    /// # Errors
    /// The socket's, or the status of a login that was refused.
    pub fn login(address: SocketAddr, port: &Port) -> io::Result<Session> {
        let first =
            format!("InitiatorName={} TargetName={IQN} SessionType=Normal AuthMethod=None", port.name);
        Session::enter(address, port, &first, PROPOSALS)
    }

    /// A discovery session: SendTargets, and each target's name with its addresses.
    ///
    /// # Errors
    /// The socket's, or the target's.
    pub fn discover(address: SocketAddr, port: &Port) -> io::Result<Vec<(String, Vec<String>)>> {
        let first = format!("InitiatorName={} SessionType=Discovery AuthMethod=None", port.name);
        let mut session = Session::enter(address, port, &first, DISCOVERY_PROPOSALS)?;
        let mut bhs = [0; 48];
        (bhs[0], bhs[1]) = (0x04, 0x80);
        bhs[20..24].copy_from_slice(&NO_TAG.to_be_bytes());
        let tag = session.request(bhs, b"SendTargets=All\0", true)?;
        let reply = session.reply(tag)?;
        let text = String::from_utf8_lossy(&reply.data).into_owned();
        let mut targets: Vec<(String, Vec<String>)> = Vec::new();
        for pair in text.split('\0').filter(|pair| !pair.is_empty()) {
            match (pair.split_once('='), targets.last_mut()) {
                (Some(("TargetName", name)), _) => targets.push((name.to_owned(), Vec::new())),
                (Some(("TargetAddress", address)), Some((_, all))) => all.push(address.to_owned()),
                _ => return Err(io::Error::other(format!("SendTargets brought {pair:?}"))),
            }
        }
        session.logout()?;
        Ok(targets)
    }

    fn enter(address: SocketAddr, port: &Port, first: &str, second: &str) -> io::Result<Session> {
        let stream = TcpStream::connect_timeout(&address, LOGIN_MAX)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(LOGIN_MAX))?;
        stream.set_write_timeout(Some(ANSWER_MAX))?;
        let mut session = Session {
            stream: BufReader::with_capacity(64 << 10, stream),
            port: port.clone(),
            said: BTreeMap::new(),
            said_first: BTreeMap::new(),
            cmd_sn: 1,
            exp_stat_sn: 0,
            max_cmd_sn: 0,
            next_tag: 0,
            under: HashMap::new(),
            ended: VecDeque::new(),
            replies: Vec::new(),
            events: Vec::new(),
        };
        // From the security stage to the operational one, and from there to full feature phase.
        session.login_step(0x81, first)?;
        session.said_first = session.said.clone();
        session.login_step(0x87, second)?;
        session.stream.get_ref().set_read_timeout(Some(ANSWER_MAX))?;
        Ok(session)
    }

    fn login_step(&mut self, flags: u8, keys: &str) -> io::Result<()> {
        let mut text: String = keys.split_whitespace().flat_map(|pair| [pair, "\0"]).collect();
        loop {
            let mut bhs = [0; 48];
            (bhs[0], bhs[1]) = (0x43, flags);
            bhs[8..12].copy_from_slice(&[0x00, 0x02, 0x3D, 0x00]);
            bhs[12..14].copy_from_slice(&self.port.isid.to_be_bytes());
            bhs[24..28].copy_from_slice(&self.cmd_sn.to_be_bytes());
            bhs[28..32].copy_from_slice(&self.exp_stat_sn.to_be_bytes());
            self.write(bhs, text.as_bytes())?;
            let answer = self.read()?;
            if answer.opcode() != 0x23 || answer.bhs[36] != 0 {
                let [class, detail] = [answer.bhs[36], answer.bhs[37]];
                return Err(io::Error::other(format!("login status {class:02x}{detail:02x}h")));
            }
            self.exp_stat_sn = answer.word(24).wrapping_add(1);
            self.max_cmd_sn = answer.word(32);
            for pair in String::from_utf8_lossy(&answer.data).split('\0') {
                if let Some((key, value)) = pair.split_once('=') {
                    self.said.insert(key.to_owned(), value.to_owned());
                }
            }
            if answer.bhs[1] & 0x80 != 0 {
                return Ok(());
            }
            // It has more to say, and wants an empty request for that.
            text.clear();
        }
    }

    /// Whether the target wants the host to log out: it is about to stop.
    pub fn is_asked_to_leave(&self) -> bool {
        self.events.contains(&LOGOUT_REQUEST)
    }

    /// How many commands may be under way.
    pub fn window(&self) -> u32 {
        self.max_cmd_sn.wrapping_sub(self.cmd_sn).wrapping_add(1)
    }

    /// Commands that have not ended.
    pub fn depth(&self) -> usize {
        self.under.len()
    }

    fn said_bytes(&self, key: &str, otherwise: usize) -> usize {
        self.said.get(key).and_then(|value| value.parse().ok()).unwrap_or(otherwise)
    }

    fn write(&mut self, mut bhs: [u8; 48], data: &[u8]) -> io::Result<()> {
        bhs[5..8].copy_from_slice(&(data.len() as u32).to_be_bytes()[1..]);
        let mut bytes = Vec::with_capacity(52 + data.len());
        bytes.extend_from_slice(&bhs);
        bytes.extend_from_slice(data);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        self.stream.get_mut().write_all(&bytes)
    }

    fn read(&mut self) -> io::Result<Pdu> {
        let mut bhs = [0; 48];
        self.stream.read_exact(&mut bhs)?;
        let data_bytes = u32::from_be_bytes([0, bhs[5], bhs[6], bhs[7]]) as usize;
        let mut data = vec![0; data_bytes.next_multiple_of(4)];
        self.stream.read_exact(&mut data)?;
        data.truncate(data_bytes);
        Ok(Pdu { bhs, data })
    }

    fn tag(&mut self) -> u32 {
        self.next_tag = self.next_tag.wrapping_add(1);
        self.next_tag
    }

    /// Sends a request that is no command; says its tag.
    fn request(&mut self, mut bhs: [u8; 48], data: &[u8], takes_number: bool) -> io::Result<u32> {
        let tag = self.tag();
        bhs[16..20].copy_from_slice(&tag.to_be_bytes());
        bhs[24..28].copy_from_slice(&self.cmd_sn.to_be_bytes());
        bhs[28..32].copy_from_slice(&self.exp_stat_sn.to_be_bytes());
        if takes_number {
            self.cmd_sn = self.cmd_sn.wrapping_add(1);
        }
        self.write(bhs, data)?;
        Ok(tag)
    }

    fn reply(&mut self, tag: u32) -> io::Result<Pdu> {
        loop {
            if let Some(place) = self.replies.iter().position(|reply| reply.itt() == tag) {
                return Ok(self.replies.swap_remove(place));
            }
            self.hear()?;
        }
    }

    /// Sends a command with as much of its data as may go unasked; says its tag.
    ///
    /// # Errors
    /// The socket's.
    pub fn send(&mut self, command: Command) -> io::Result<u32> {
        let read_flag = if command.room > 0 { 0x40 } else { 0 };
        self.send_flagged(command, read_flag)
    }

    fn send_flagged(&mut self, command: Command, read_flag: u8) -> io::Result<u32> {
        while (self.max_cmd_sn.wrapping_sub(self.cmd_sn) as i32) < 0 {
            self.hear()?;
        }
        let length = command.data_out.len();
        let first_burst = self.said_bytes("FirstBurstLength", 65_536).min(length);
        let immediate = if self.said.get("ImmediateData").is_some_and(|value| value == "Yes") {
            first_burst.min(self.said_bytes("MaxRecvDataSegmentLength", 8192))
        } else {
            0
        };
        let unasked = if self.said.get("InitialR2T").is_some_and(|value| value == "No") {
            first_burst
        } else {
            immediate
        };
        let tag = self.tag();
        let mut bhs = [0; 48];
        bhs[0] = 0x01;
        let write_flag = if length > 0 { 0x20 } else { 0 };
        // F: no data follow unasked. A simple task.
        bhs[1] = if immediate == unasked { 0x80 } else { 0 } | read_flag | write_flag | 0x01;
        bhs[9] = command.lun;
        bhs[16..20].copy_from_slice(&tag.to_be_bytes());
        let edtl = if length > 0 { length as u32 } else { command.room };
        bhs[20..24].copy_from_slice(&edtl.to_be_bytes());
        bhs[24..28].copy_from_slice(&self.cmd_sn.to_be_bytes());
        bhs[28..32].copy_from_slice(&self.exp_stat_sn.to_be_bytes());
        bhs[32..32 + command.cdb.len()].copy_from_slice(&command.cdb);
        self.cmd_sn = self.cmd_sn.wrapping_add(1);
        let data = command.data_out[..unasked].to_vec();
        self.under.insert(tag, Under { command, data: Vec::new(), sent: unasked, since: Instant::now() });
        self.write(bhs, &data[..immediate])?;
        if immediate < unasked {
            self.data_out(tag, NO_TAG, immediate, &data[immediate..])?;
        }
        Ok(tag)
    }

    /// One sequence of Data-Out.
    fn data_out(&mut self, tag: u32, transfer_tag: u32, offset: usize, data: &[u8]) -> io::Result<()> {
        let each = self.said_bytes("MaxRecvDataSegmentLength", 8192);
        let pieces = data.len().div_ceil(each);
        for (number, piece) in data.chunks(each).enumerate() {
            let mut bhs = [0; 48];
            bhs[0] = 0x05;
            bhs[1] = if number + 1 == pieces { 0x80 } else { 0 };
            bhs[9] = self.under.get(&tag).map_or(0, |under| under.command.lun);
            bhs[16..20].copy_from_slice(&tag.to_be_bytes());
            bhs[20..24].copy_from_slice(&transfer_tag.to_be_bytes());
            bhs[28..32].copy_from_slice(&self.exp_stat_sn.to_be_bytes());
            bhs[36..40].copy_from_slice(&(number as u32).to_be_bytes());
            bhs[40..44].copy_from_slice(&((offset + number * each) as u32).to_be_bytes());
            self.write(bhs, piece)?;
        }
        Ok(())
    }

    /// Takes one PDU and does what it asks for.
    fn hear(&mut self) -> io::Result<()> {
        let pdu = self.read()?;
        let opcode = pdu.opcode();
        let has_status = opcode != 0x31 && !(opcode == 0x25 && pdu.bhs[1] & 1 == 0);
        if has_status && !(opcode == 0x20 && pdu.itt() == NO_TAG) {
            self.exp_stat_sn = pdu.word(24).wrapping_add(1);
        }
        let max_cmd_sn = pdu.word(32);
        if (max_cmd_sn.wrapping_sub(self.max_cmd_sn) as i32) > 0 {
            self.max_cmd_sn = max_cmd_sn;
        }
        match opcode {
            0x21 => self.take_response(&pdu),
            0x25 => self.take_data(&pdu),
            0x31 => self.take_request_for_data(&pdu),
            // A ping of the target's.
            0x20 if pdu.word(20) != NO_TAG => {
                let mut bhs = [0; 48];
                (bhs[0], bhs[1]) = (0x40, 0x80);
                bhs[8..16].copy_from_slice(&pdu.bhs[8..16]);
                bhs[16..20].copy_from_slice(&NO_TAG.to_be_bytes());
                bhs[20..24].copy_from_slice(&pdu.bhs[20..24]);
                bhs[24..28].copy_from_slice(&self.cmd_sn.to_be_bytes());
                bhs[28..32].copy_from_slice(&self.exp_stat_sn.to_be_bytes());
                self.write(bhs, &pdu.data)
            }
            0x20 | 0x22 | 0x24 | 0x26 => {
                self.replies.push(pdu);
                Ok(())
            }
            0x32 => {
                self.events.push(pdu.bhs[36]);
                Ok(())
            }
            _ => Err(io::Error::other(format!("the target sent {:02x}h: {}", opcode, hex(&pdu.bhs)))),
        }
    }

    fn under(&mut self, pdu: &Pdu) -> io::Result<&mut Under> {
        let told = || io::Error::other(format!("an answer to nothing: {}", hex(&pdu.bhs)));
        self.under.get_mut(&pdu.itt()).ok_or_else(told)
    }

    fn take_data(&mut self, pdu: &Pdu) -> io::Result<()> {
        let under = self.under(pdu)?;
        let (offset, room) = (pdu.word(40) as usize, under.command.room as usize);
        if offset != under.data.len() || offset + pdu.data.len() > room {
            let what = format!("Data-In of {} bytes at {offset}, room {room}", pdu.data.len());
            return Err(io::Error::other(what));
        }
        if pdu.data.len() > RECEIVE_BYTES as usize {
            return Err(io::Error::other(format!("a data segment of {} bytes", pdu.data.len())));
        }
        under.data.extend_from_slice(&pdu.data);
        if pdu.bhs[1] & 1 != 0 { self.end(pdu, &[]) } else { Ok(()) }
    }

    fn take_response(&mut self, pdu: &Pdu) -> io::Result<()> {
        if pdu.bhs[2] != 0 {
            return Err(io::Error::other(format!("response {:02x}h instead of a status", pdu.bhs[2])));
        }
        let sense = pdu.data.get(2..).unwrap_or_default().to_vec();
        self.end(pdu, &sense)
    }

    fn end(&mut self, pdu: &Pdu, sense: &[u8]) -> io::Result<()> {
        self.under(pdu)?;
        let tag = pdu.itt();
        let Some(Under { command, data, since, .. }) = self.under.remove(&tag) else { return Ok(()) };
        let count = i64::from(pdu.word(44));
        let residual = match pdu.bhs[1] & 0x06 {
            0x02 => count,
            0x04 => -count,
            _ => 0,
        };
        self.ended.push_back(Answer {
            tag,
            command,
            status: pdu.bhs[3],
            sense: Sense::parse(sense),
            sense_bytes: sense.to_vec(),
            data,
            residual,
            took: since.elapsed(),
        });
        Ok(())
    }

    fn take_request_for_data(&mut self, pdu: &Pdu) -> io::Result<()> {
        let most = self.said_bytes("MaxBurstLength", 262_144);
        let (offset, bytes) = (pdu.word(40) as usize, pdu.word(44) as usize);
        let under = self.under(pdu)?;
        let length = under.command.data_out.len();
        if offset != under.sent || bytes > most || offset + bytes > length {
            let what = format!("R2T of {bytes} bytes at {offset}, {} of {length} sent", under.sent);
            return Err(io::Error::other(what));
        }
        under.sent = offset + bytes;
        let data = under.command.data_out[offset..offset + bytes].to_vec();
        self.data_out(pdu.itt(), pdu.word(20), offset, &data)
    }

    /// The answer with this tag.
    ///
    /// # Errors
    /// None came in time, or the connection ended.
    pub fn answer(&mut self, tag: u32) -> io::Result<Answer> {
        loop {
            let place = self.ended.iter().position(|answer| answer.tag == tag);
            if let Some(answer) = place.and_then(|place| self.ended.remove(place)) {
                return Ok(answer);
            }
            self.hear()?;
        }
    }

    /// The next answer to anything.
    ///
    /// # Errors
    /// As [`Session::answer`].
    pub fn next_answer(&mut self) -> io::Result<Answer> {
        loop {
            if let Some(answer) = self.ended.pop_front() {
                return Ok(answer);
            }
            self.hear()?;
        }
    }

    /// Sends a command and waits for its end.
    ///
    /// # Errors
    /// As [`Session::answer`].
    pub fn try_run(&mut self, command: Command) -> io::Result<Answer> {
        let tag = self.send(command)?;
        self.answer(tag)
    }

    /// The same where nothing may go wrong with the connection.
    #[track_caller]
    pub fn run(&mut self, command: Command) -> Answer {
        let told = format!("{} to LUN {}: {}", command.name, command.lun, hex(&command.cdb));
        match self.try_run(command) {
            Ok(answer) => answer,
            Err(error) => self.lost(&told, &error),
        }
    }

    /// Sends TEST UNIT READY with the Read flag and room for data, as VMware's initiators sometimes do.
    #[track_caller]
    pub fn run_with_read_flag(&mut self, command: Command) -> Answer {
        let told = command.name;
        let tag = self.send_flagged(command, 0x40);
        match tag.and_then(|tag| self.answer(tag)) {
            Ok(answer) => answer,
            Err(error) => self.lost(told, &error),
        }
    }

    /// Sends all of these, at most `depth` at once, and hands over each end.
    #[track_caller]
    pub fn run_all(
        &mut self,
        depth: usize,
        commands: impl IntoIterator<Item = Command>,
        mut ended: impl FnMut(Answer),
    ) {
        let mut commands = commands.into_iter().fuse();
        loop {
            while self.depth() < depth {
                let Some(command) = commands.next() else { break };
                let told = format!("{}: {}", command.name, hex(&command.cdb));
                if let Err(error) = self.send(command) {
                    self.lost(&told, &error);
                }
            }
            if self.depth() == 0 && self.ended.is_empty() {
                return;
            }
            match self.next_answer() {
                Ok(answer) => ended(answer),
                Err(error) => self.lost("commands under way", &error),
            }
        }
    }

    #[track_caller]
    fn lost(&self, what: &str, error: &io::Error) -> ! {
        let under: Vec<&str> = self.under.values().map(|under| under.command.name).collect();
        panic!(
            "step `{}`: {}: {error}\n  under way: {what}; {under:?}\n  ESXi:    drops the connection, marks the path \
             dead, logs in again",
            super::step_name(),
            self.port.name
        );
    }

    /// NOP-Out with data: how long the answer takes.
    ///
    /// # Errors
    /// As [`Session::answer`], or other data came back.
    pub fn ping(&mut self) -> io::Result<Duration> {
        let mut bhs = [0; 48];
        (bhs[0], bhs[1]) = (0x40, 0x80);
        bhs[20..24].copy_from_slice(&NO_TAG.to_be_bytes());
        let began = Instant::now();
        let tag = self.request(bhs, b"alive?", false)?;
        let reply = self.reply(tag)?;
        if reply.opcode() != 0x20 || reply.data != b"alive?" {
            return Err(io::Error::other("a NOP-In without the data of the NOP-Out"));
        }
        Ok(began.elapsed())
    }

    /// A task management function: its response.
    ///
    /// # Errors
    /// As [`Session::answer`].
    pub fn task_management(&mut self, function: u8, lun: u8, referenced: u32) -> io::Result<u8> {
        let mut bhs = [0; 48];
        (bhs[0], bhs[1], bhs[9]) = (0x42, 0x80 | function, lun);
        bhs[20..24].copy_from_slice(&referenced.to_be_bytes());
        // RefCmdSN: of a command that was answered.
        bhs[32..36].copy_from_slice(&self.cmd_sn.wrapping_sub(1).to_be_bytes());
        let tag = self.request(bhs, &[], false)?;
        Ok(self.reply(tag)?.bhs[2])
    }

    /// Whether a command that was aborted was answered before the function was. If not, it never may be: an answer would
    /// be one to nothing.
    pub fn forget(&mut self, tag: u32) -> bool {
        self.ended.retain(|answer| answer.tag != tag);
        self.under.remove(&tag).is_none()
    }

    /// Logout of the session.
    ///
    /// # Errors
    /// As [`Session::answer`], or a response that is not "closed".
    pub fn logout(mut self) -> io::Result<()> {
        let mut bhs = [0; 48];
        (bhs[0], bhs[1]) = (0x46, 0x80);
        let tag = self.request(bhs, &[], false)?;
        match self.reply(tag)?.bhs[2] {
            0 => Ok(()),
            response => Err(io::Error::other(format!("logout response {response}"))),
        }
    }

    /// The connection is gone, as when a switch fails.
    pub fn cut(self) {
        // It may be gone already.
        let _ = self.stream.get_ref().shutdown(Shutdown::Both);
    }
}
