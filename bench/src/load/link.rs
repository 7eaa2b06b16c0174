//! One connection outside the measured run: whole PDUs, blocking, each wait with a deadline.
//!
//! Login, the questions before a run and logout need no speed, so they get the plainest code there is. Called by
//! `login`, `load` and `idle`; the socket then goes on to a `session`.

use super::wire::{
    self, BHS_BYTES, Bhs, DIGEST_BYTES, TAG_NONE, crc32c, data_bytes, get_u32, initiator_task_tag, opcode,
    opcode_of, pad_bytes, put_data_bytes, put_u32, stat_sn,
};
use crate::failure::{Context, Failure};
use reactor::clock::Time;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Pings, async messages and the like that may come before the answer that is waited for.
const ASIDES_MAX: usize = 64;
/// The longest segment taken here; what is asked for is far shorter.
const SEGMENT_BYTES_MAX: u32 = 1 << 20;

/// A connection and its serial numbers.
#[derive(Debug)]
pub struct Link {
    socket: TcpStream,
    timeout: Duration,
    /// CRC32C behind headers, from the end of login on.
    pub header_digest: bool,
    /// CRC32C behind data, from the end of login on.
    pub data_digest: bool,
    /// The next command's.
    pub cmd_sn: u32,
    /// The next StatSN we expect.
    pub exp_stat_sn: u32,
    /// The last CmdSN that the target takes.
    pub max_cmd_sn: u32,
    task_tag: u32,
}

/// What a command came back with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// SCSI status; 0 is GOOD.
    pub status: u8,
    /// Data-In.
    pub data: Vec<u8>,
    /// Sense data, without its two bytes of length.
    pub sense: Vec<u8>,
}

impl Link {
    /// Connects; `timeout` bounds this and every later wait for one PDU.
    ///
    /// # Errors
    /// Nobody listens at `portal`, or nobody answers in time.
    pub fn connect(portal: SocketAddr, timeout: Duration) -> Result<Link, Failure> {
        let socket = TcpStream::connect_timeout(&portal, timeout).doing(format!("connecting to {portal}"))?;
        socket.set_nodelay(true).doing("setting TCP_NODELAY")?;
        socket.set_write_timeout(Some(timeout)).doing("setting the send time-out")?;
        Ok(Link {
            socket,
            timeout,
            header_digest: false,
            data_digest: false,
            cmd_sn: 1,
            exp_stat_sn: 0,
            max_cmd_sn: 1,
            task_tag: 0,
        })
    }

    /// The socket, for the measured run. Its time-outs are off and it doesn't block.
    ///
    /// # Errors
    /// The kernel refuses to change the socket.
    pub fn into_socket(self) -> Result<TcpStream, Failure> {
        self.socket.set_nonblocking(true).doing("making the socket non-blocking")?;
        Ok(self.socket)
    }

    /// Takes the socket back after a measured run.
    ///
    /// # Errors
    /// The kernel refuses to change the socket.
    pub fn from_socket(socket: TcpStream, timeout: Duration) -> Result<Link, Failure> {
        socket.set_nonblocking(false).doing("making the socket blocking")?;
        socket.set_write_timeout(Some(timeout)).doing("setting the send time-out")?;
        Ok(Link {
            socket,
            timeout,
            header_digest: false,
            data_digest: false,
            cmd_sn: 0,
            exp_stat_sn: 0,
            max_cmd_sn: 0,
            task_tag: 0,
        })
    }

    /// A task tag that no task under way has.
    pub fn next_task_tag(&mut self) -> u32 {
        self.task_tag = (self.task_tag + 1) & 0x7FFF_FFFF;
        self.task_tag
    }

    /// Sends one PDU; the data's length goes into the header.
    ///
    /// # Errors
    /// The connection broke or took nothing in time.
    pub fn send(&mut self, bhs: &Bhs, data: &[u8]) -> Result<(), Failure> {
        let mut bhs = *bhs;
        put_data_bytes(&mut bhs, data.len() as u32);
        let mut bytes = bhs.to_vec();
        if self.header_digest {
            bytes.extend(crc32c(&bhs));
        }
        if !data.is_empty() {
            let start = bytes.len();
            bytes.extend(data);
            bytes.resize(bytes.len() + pad_bytes(data.len() as u32) as usize, 0);
            if self.data_digest {
                let digest = crc32c(&bytes[start..]);
                bytes.extend(digest);
            }
        }
        self.socket.write_all(&bytes).doing("sending")
    }

    /// Receives one PDU and notes its serial numbers.
    ///
    /// # Errors
    /// The connection broke, stayed silent too long, or a digest is wrong.
    pub fn receive(&mut self) -> Result<(Bhs, Vec<u8>), Failure> {
        let deadline = Time::now() + self.timeout;
        let mut bhs = [0; BHS_BYTES];
        self.fill(&mut bhs, deadline)?;
        let ahs_bytes = bhs[4] as usize * 4;
        let mut rest = vec![0; ahs_bytes + if self.header_digest { DIGEST_BYTES } else { 0 }];
        self.fill(&mut rest, deadline)?;
        if self.header_digest {
            let covered = [&bhs[..], &rest[..ahs_bytes]].concat();
            if crc32c(&covered) != rest[ahs_bytes..] {
                return Err(Failure::new("header digest does not match"));
            }
        }
        let bytes = data_bytes(&bhs);
        if bytes > SEGMENT_BYTES_MAX {
            return Err(Failure::new(format!("data segment of {bytes} bytes, far more than asked for")));
        }
        let mut data = vec![0; (bytes + pad_bytes(bytes)) as usize];
        self.fill(&mut data, deadline)?;
        if self.data_digest && bytes > 0 {
            let mut digest = [0; DIGEST_BYTES];
            self.fill(&mut digest, deadline)?;
            if crc32c(&data) != digest {
                return Err(Failure::new("data digest does not match"));
            }
        }
        data.truncate(bytes as usize);
        self.note_serials(&bhs)?;
        Ok((bhs, data))
    }

    /// Sends a command that reads at most `data_bytes_max` and waits for its end.
    ///
    /// # Errors
    /// Whatever ends the connection; a status other than GOOD is no error here.
    pub fn command(&mut self, lun: u16, cdb: &[u8], data_bytes_max: u32) -> Result<Answer, Failure> {
        let flags = if data_bytes_max > 0 { wire::READ } else { 0 };
        let mut bhs = wire::scsi_command(lun, flags, data_bytes_max, cdb);
        let task_tag = self.next_task_tag();
        put_u32(&mut bhs, 16, task_tag);
        put_u32(&mut bhs, 24, self.cmd_sn);
        put_u32(&mut bhs, 28, self.exp_stat_sn);
        self.cmd_sn = self.cmd_sn.wrapping_add(1);
        self.send(&bhs, &[])?;
        let mut answer = Answer { status: 0, data: Vec::new(), sense: Vec::new() };
        for _ in 0..ASIDES_MAX + data_bytes_max as usize / 512 {
            let (bhs, data) = self.receive()?;
            match opcode_of(&bhs) {
                opcode::DATA_IN if initiator_task_tag(&bhs) == task_tag => {
                    answer.data.extend(data);
                    if bhs[1] & wire::STATUS_PRESENT != 0 {
                        answer.status = bhs[3];
                        return Ok(answer);
                    }
                }
                opcode::SCSI_RESPONSE if initiator_task_tag(&bhs) == task_tag => {
                    if bhs[2] != 0 {
                        return Err(Failure::new(format!("iSCSI response {:02x}h, target failure", bhs[2])));
                    }
                    answer.status = bhs[3];
                    answer.sense = data.get(2..).unwrap_or_default().to_vec();
                    return Ok(answer);
                }
                _ => self.answer_aside(&bhs)?,
            }
        }
        Err(Failure::new("the target keeps sending and doesn't answer the command"))
    }

    /// Closes the session politely: Logout, and its answer.
    ///
    /// # Errors
    /// The target refuses or doesn't answer in time.
    pub fn logout(&mut self) -> Result<(), Failure> {
        let task_tag = self.next_task_tag();
        self.send(&wire::logout_request(task_tag, self.cmd_sn, self.exp_stat_sn), &[])?;
        for _ in 0..ASIDES_MAX {
            let (bhs, _) = self.receive()?;
            if opcode_of(&bhs) != opcode::LOGOUT_RESPONSE {
                self.answer_aside(&bhs)?;
                continue;
            }
            return match bhs[2] {
                0 => Ok(()),
                response => Err(Failure::new(format!("logout refused, response {response:02x}h"))),
            };
        }
        Err(Failure::new("the target keeps sending and doesn't answer the logout"))
    }

    /// Answers the pings that wait in the socket, without waiting for any. Returns how many.
    ///
    /// # Errors
    /// The connection ended, or something other than a ping came.
    pub fn answer_pings(&mut self) -> Result<usize, Failure> {
        let mut answered = 0;
        for _ in 0..ASIDES_MAX {
            self.socket.set_nonblocking(true).doing("making the socket non-blocking")?;
            let waiting = self.socket.peek(&mut [0]);
            self.socket.set_nonblocking(false).doing("making the socket blocking")?;
            match waiting {
                Ok(0) => return Err(Failure::new("the target closed the connection")),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(Failure::new(format!("receiving: {error}"))),
            }
            let (bhs, _) = self.receive()?;
            self.answer_aside(&bhs)?;
            answered += 1;
        }
        Ok(answered)
    }

    /// What comes besides the answer: pings are answered, anything else ends the connection with its reason.
    fn answer_aside(&mut self, bhs: &Bhs) -> Result<(), Failure> {
        match opcode_of(bhs) {
            opcode::NOP_IN if wire::target_transfer_tag(bhs) == TAG_NONE => Ok(()),
            opcode::NOP_IN => {
                let answer = wire::nop_out_answer(bhs, self.cmd_sn, self.exp_stat_sn);
                self.send(&answer, &[])
            }
            _ => Err(unexpected(bhs)),
        }
    }

    fn note_serials(&mut self, bhs: &Bhs) -> Result<(), Failure> {
        let max_cmd_sn = wire::max_cmd_sn(bhs);
        if wire::serial_le(self.max_cmd_sn, max_cmd_sn) {
            self.max_cmd_sn = max_cmd_sn;
        }
        if opcode_of(bhs) == opcode::LOGIN_RESPONSE && self.exp_stat_sn == 0 {
            // The first answer says where the target starts to count.
            self.exp_stat_sn = stat_sn(bhs).wrapping_add(1);
            return Ok(());
        }
        // A login that is refused ends the connection: nobody counts on.
        let refused = opcode_of(bhs) == opcode::LOGIN_RESPONSE && bhs[36] != 0;
        if refused || !advances_stat_sn(bhs) {
            return Ok(());
        }
        if stat_sn(bhs) != self.exp_stat_sn {
            return Err(Failure::new(format!("StatSN {}, expected {}", stat_sn(bhs), self.exp_stat_sn)));
        }
        self.exp_stat_sn = self.exp_stat_sn.wrapping_add(1);
        Ok(())
    }

    fn fill(&mut self, bytes: &mut [u8], deadline: Time) -> Result<(), Failure> {
        let mut filled = 0;
        while filled < bytes.len() {
            let left = deadline.since(Time::now());
            if left.is_zero() {
                return Err(Failure::new(format!("no answer within {:?}", self.timeout)));
            }
            self.socket.set_read_timeout(Some(left)).doing("setting the receive time-out")?;
            match self.socket.read(&mut bytes[filled..]) {
                Ok(0) => return Err(Failure::new("the target closed the connection")),
                Ok(received) => filled += received,
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                    ) => {}
                Err(error) => return Err(Failure::new(format!("receiving: {error}"))),
            }
        }
        Ok(())
    }
}

/// True for the PDUs whose StatSN counts: a status, and all that must be acknowledged. RFC 7143 §4.2.2.2.
pub fn advances_stat_sn(bhs: &Bhs) -> bool {
    match opcode_of(bhs) {
        opcode::DATA_IN => bhs[1] & wire::STATUS_PRESENT != 0,
        opcode::NOP_IN => initiator_task_tag(bhs) != TAG_NONE,
        opcode::R2T => false,
        _ => true,
    }
}

/// Says what a PDU is that nobody asked for.
pub fn unexpected(bhs: &Bhs) -> Failure {
    match opcode_of(bhs) {
        opcode::REJECT => Failure::new(format!("the target rejected a PDU, reason {:02x}h", bhs[2])),
        opcode::ASYNC_MESSAGE => Failure::new(format!("async message, event {}", bhs[36])),
        opcode => Failure::new(format!(
            "unexpected PDU {opcode:02x}h for task {:08x}h, StatSN {}",
            initiator_task_tag(bhs),
            get_u32(bhs, 24)
        )),
    }
}
