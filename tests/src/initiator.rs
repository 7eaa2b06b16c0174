//! A small initiator of our own, over a blocking socket: for what no other lets one do, such as a thousand sessions at
//! once, or to wait for an answer that must not come.
//!
//! It shares no code with the target, so that a mistake there can't cancel one here.

use crate::target::IQN;
use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// SCSI Data-In.
const DATA_IN: u8 = 0x25;

/// One PDU from the target.
#[derive(Clone, Debug)]
pub struct Pdu {
    /// Its header.
    pub bhs: [u8; 48],
    /// Its data segment.
    pub data: Vec<u8>,
}

impl Pdu {
    /// What it is (RFC 7143 §11.2.1.2).
    pub fn opcode(&self) -> u8 {
        self.bhs[0] & 0x3f
    }

    /// The 32-bit field at a byte of the header.
    pub fn word(&self, at: usize) -> u32 {
        u32::from_be_bytes([self.bhs[at], self.bhs[at + 1], self.bhs[at + 2], self.bhs[at + 3]])
    }

    /// Initiator task tag.
    pub fn itt(&self) -> u32 {
        self.word(16)
    }
}

/// One session.
#[derive(Debug)]
pub struct Initiator {
    stream: TcpStream,
    cmd_sn: u32,
    next_itt: u32,
    /// Heard, and not what was waited for.
    kept: VecDeque<Pdu>,
}

impl Initiator {
    /// Logs in to the target as `name`, with the last bytes of the ISID from `isid`.
    ///
    /// # Errors
    /// The socket's, or the status of a login that was refused.
    pub fn login(address: SocketAddr, name: &str, isid: u32, limit: Duration) -> io::Result<Initiator> {
        let stream = TcpStream::connect_timeout(&address, limit)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(limit))?;
        stream.set_write_timeout(Some(limit))?;
        let mut initiator = Initiator { stream, cmd_sn: 1, next_itt: 0, kept: VecDeque::new() };
        let text = format!(
            "InitiatorName={name}\0TargetName={IQN}\0SessionType=Normal\0HeaderDigest=None\0DataDigest=None\0\
             InitialR2T=No\0ImmediateData=Yes\0MaxRecvDataSegmentLength=65536\0"
        );
        let mut bhs = [0; 48];
        bhs[0] = 0x43;
        bhs[1] = 0x87;
        bhs[8] = 0x80;
        bhs[10..14].copy_from_slice(&isid.to_be_bytes());
        bhs[24..28].copy_from_slice(&1u32.to_be_bytes());
        initiator.send(bhs, text.as_bytes())?;
        let answer = initiator.receive()?;
        if answer.opcode() != 0x23 || answer.bhs[36] != 0 {
            return Err(io::Error::other(format!(
                "login status {:02x}{:02x}",
                answer.bhs[36], answer.bhs[37]
            )));
        }
        Ok(initiator)
    }

    fn send(&mut self, mut bhs: [u8; 48], data: &[u8]) -> io::Result<()> {
        bhs[5..8].copy_from_slice(&(data.len() as u32).to_be_bytes()[1..]);
        let mut bytes = bhs.to_vec();
        bytes.extend_from_slice(data);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        self.stream.write_all(&bytes)
    }

    fn receive(&mut self) -> io::Result<Pdu> {
        let mut bhs = [0; 48];
        self.stream.read_exact(&mut bhs)?;
        let data_bytes = u32::from_be_bytes([0, bhs[5], bhs[6], bhs[7]]) as usize;
        let mut data = vec![0; data_bytes.next_multiple_of(4)];
        self.stream.read_exact(&mut data)?;
        data.truncate(data_bytes);
        Ok(Pdu { bhs, data })
    }

    fn itt(&mut self) -> u32 {
        self.next_itt += 1;
        self.next_itt
    }

    /// Sends a command, with its data at once; says its tag.
    ///
    /// # Errors
    /// The socket's.
    pub fn command(&mut self, lun: u8, cdb: &[u8], data_out: &[u8], data_in_bytes: u32) -> io::Result<u32> {
        let mut bhs = [0; 48];
        let itt = self.itt();
        let (direction, edtl) = match (data_out.len() as u32, data_in_bytes) {
            (0, 0) => (0, 0),
            (0, room) => (0x40, room),
            (bytes, _) => (0x20, bytes),
        };
        bhs[0] = 0x01;
        bhs[1] = 0x80 | direction | 0x01;
        bhs[9] = lun;
        bhs[16..20].copy_from_slice(&itt.to_be_bytes());
        bhs[20..24].copy_from_slice(&edtl.to_be_bytes());
        bhs[24..28].copy_from_slice(&self.cmd_sn.to_be_bytes());
        bhs[32..32 + cdb.len()].copy_from_slice(cdb);
        self.cmd_sn = self.cmd_sn.wrapping_add(1);
        self.send(bhs, data_out)?;
        Ok(itt)
    }

    /// Sends a ping; says its tag.
    ///
    /// # Errors
    /// The socket's.
    pub fn ping(&mut self) -> io::Result<u32> {
        let mut bhs = [0; 48];
        let itt = self.itt();
        bhs[0] = 0x40;
        bhs[1] = 0x80;
        bhs[16..20].copy_from_slice(&itt.to_be_bytes());
        bhs[20..24].copy_from_slice(&u32::MAX.to_be_bytes());
        bhs[24..28].copy_from_slice(&self.cmd_sn.to_be_bytes());
        self.send(bhs, b"ping")?;
        Ok(itt)
    }

    /// Sends a task management function; says its tag.
    ///
    /// # Errors
    /// The socket's.
    pub fn task_management(&mut self, function: u8, lun: u8, referenced: u32) -> io::Result<u32> {
        let mut bhs = [0; 48];
        let itt = self.itt();
        bhs[0] = 0x42;
        bhs[1] = 0x80 | function;
        bhs[9] = lun;
        bhs[16..20].copy_from_slice(&itt.to_be_bytes());
        bhs[20..24].copy_from_slice(&referenced.to_be_bytes());
        bhs[24..28].copy_from_slice(&self.cmd_sn.to_be_bytes());
        self.send(bhs, &[])?;
        Ok(itt)
    }

    /// The answer with this tag: the PDU that ends the exchange, with all data that came for it; what came besides
    /// is kept.
    ///
    /// # Errors
    /// None came within `limit`, or the connection ended.
    pub fn answer(&mut self, itt: u32, limit: Duration) -> io::Result<Pdu> {
        self.wait(limit, |pdu| pdu.itt() == itt && is_end(pdu))
    }

    /// The next answer to anything, as [`Initiator::answer`].
    ///
    /// # Errors
    /// As there.
    pub fn next_answer(&mut self, limit: Duration) -> io::Result<Pdu> {
        self.wait(limit, |pdu| is_end(pdu) && pdu.itt() != u32::MAX)
    }

    fn wait(&mut self, limit: Duration, wanted: impl Fn(&Pdu) -> bool) -> io::Result<Pdu> {
        let end = Instant::now() + limit;
        if let Some(pdu) = self.kept.iter().position(&wanted).and_then(|place| self.kept.remove(place)) {
            return Ok(self.gather(pdu));
        }
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.stream.set_read_timeout(Some(left))?;
            let pdu = self.receive()?;
            if wanted(&pdu) {
                return Ok(self.gather(pdu));
            }
            self.kept.push_back(pdu);
        }
    }

    /// Adds the data that came before an answer's last PDU, each piece at its buffer offset. A response that brings
    /// sense keeps that.
    fn gather(&mut self, mut end: Pdu) -> Pdu {
        let (mut pieces, kept): (Vec<Pdu>, Vec<Pdu>) =
            self.kept.drain(..).partition(|pdu| pdu.itt() == end.itt() && pdu.opcode() == DATA_IN);
        self.kept = kept.into();
        let brings_sense = end.opcode() != DATA_IN && !end.data.is_empty();
        if pieces.is_empty() || brings_sense {
            return end;
        }
        if end.opcode() == DATA_IN {
            pieces.push(end.clone());
        }
        let mut data = Vec::new();
        for piece in pieces {
            let from = piece.word(40) as usize;
            let to = from + piece.data.len();
            data.resize(data.len().max(to), 0);
            data[from..to].copy_from_slice(&piece.data);
        }
        end.data = data;
        end
    }

    /// Clears the unit attentions that a session begins with.
    ///
    /// # Errors
    /// As [`Initiator::answer`].
    pub fn test_ready(&mut self, lun: u8, limit: Duration) -> io::Result<()> {
        for _ in 0..8 {
            let itt = self.command(lun, &[0; 6], &[], 0)?;
            if self.answer(itt, limit)?.bhs[3] == 0 {
                return Ok(());
            }
        }
        Err(io::Error::other("unit attentions without end"))
    }
}

/// Whether a PDU ends its exchange: Data-In does so only with a status in it.
fn is_end(pdu: &Pdu) -> bool {
    pdu.opcode() != DATA_IN || pdu.bhs[1] & 1 != 0
}

/// READ(16), WRITE(16), or with no data to write WRITE SAME(16).
pub fn cdb16(opcode: u8, lba: u32, blocks: u32) -> [u8; 16] {
    let mut cdb = [0; 16];
    cdb[0] = opcode;
    cdb[6..10].copy_from_slice(&lba.to_be_bytes());
    cdb[10..14].copy_from_slice(&blocks.to_be_bytes());
    cdb
}
