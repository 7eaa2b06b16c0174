//! Goal: the target keeps to RFC 7143 as an initiator sees it. Method: an initiator made of hand-built PDUs talks to
//! one core's target through memory; a plain array, which can be told to get stuck, is the disk.

use bdev::error::IoError;
use bdev::geometry::Geometry;
use bdev::io::{BdevId, Done, Io, Op, Tag};
use iscsi::access::{Access, Availability, Target as TargetRule};
use iscsi::admission::Settings;
use iscsi::digest::Crc;
use iscsi::name::IscsiName;
use iscsi::negotiate;
use iscsi::receive::Feed;
use iscsi::target::{Below, Env, Mail, TICK, Target};
use reactor::Core;
use reactor::buf::{Pool, PoolConfig};
use reactor::clock::Time;
use reactor::slots::Slot;
use std::collections::VecDeque;
use std::io::IoSlice;
use std::sync::Arc;
use std::time::Duration;
use vaai::lun::LunConfig;
use vaai::server::{DeviceServer, PortConfig, ServerConfig};

const BLOCK: usize = 512;
const BLOCKS: u64 = 64 << 11;
const TARGET: &str = "iqn.2026-11.io.pollux:test";
const LARGE_BUFFERS: u32 = 64;

/// The disk.
struct Disk {
    bytes: Vec<u8>,
    waiting: VecDeque<Io>,
    stuck: bool,
    abandoned: Vec<Tag>,
}

impl Below for Disk {
    fn submit(&mut self, io: Io) {
        self.waiting.push_back(io);
    }

    fn abandon(&mut self, _: BdevId, tag: Tag) {
        self.abandoned.push(tag);
    }

    fn post(&mut self, _: Core, _: Mail) {
        unreachable!("there is one core");
    }
}

impl Disk {
    fn carry_out(&mut self, io: &mut Io) -> Result<(), IoError> {
        let at = io.lba as usize * BLOCK;
        let end = at + io.blocks as usize * BLOCK;
        let range = &mut self.bytes[at..end];
        match io.op {
            Op::Read => io.buf.as_mut().unwrap().copy_from_slice(range),
            Op::Write => range.copy_from_slice(io.buf.as_ref().unwrap()),
            Op::WriteZeroes | Op::Unmap => range.fill(0),
            Op::Flush => {}
            Op::Compare => {
                let differs = io.buf.as_ref().unwrap().iter().zip(&*range).position(|(a, b)| a != b);
                if let Some(offset) = differs {
                    return Err(IoError::Miscompare { offset_bytes: offset as u32 });
                }
            }
            Op::OrWrite => range.iter_mut().zip(io.buf.as_ref().unwrap().iter()).for_each(|(a, b)| *a |= b),
        }
        Ok(())
    }
}

struct World {
    target: Target,
    pool: Pool,
    disk: Disk,
    now: Time,
}

/// What an initiator asks for in its login.
#[derive(Clone, Copy)]
struct Asks {
    initial_r2t: bool,
    immediate_data: bool,
    digests: bool,
    first_burst: u32,
    max_burst: u32,
    outstanding_r2t: u32,
    segment: u32,
}

impl Default for Asks {
    fn default() -> Asks {
        Asks {
            initial_r2t: false,
            immediate_data: true,
            digests: false,
            first_burst: 16 << 10,
            max_burst: 128 << 10,
            outstanding_r2t: 4,
            segment: 8 << 10,
        }
    }
}

impl World {
    fn new() -> World {
        let geometry = Geometry {
            block_bytes: BLOCK as u32,
            physical_block_bytes: 4096,
            blocks: BLOCKS,
            unmap_granularity_bytes: 4096,
            write_zeroes: true,
            write_cache: false,
            read_only: false,
            rotational: false,
        };
        let lun = |lun: u16| LunConfig {
            lun,
            bdev: BdevId(lun),
            geometry,
            id: [lun as u8 + 1; 16],
            serial: format!("serial{lun}"),
            read_only: false,
            removable: false,
        };
        let server = ServerConfig {
            target_name: TARGET.to_owned(),
            ports: vec![PortConfig { relative_port: 1, tpgt: 1, group: 1 }],
            luns: vec![lun(0), lun(1)],
        };
        let settings = Settings {
            access: Access {
                targets: vec![TargetRule {
                    name: IscsiName::parse(TARGET).unwrap(),
                    alias: None,
                    availability: Availability::Online,
                }],
                ..Access::default()
            },
            negotiation: negotiate::Settings::default(),
            portals: vec!["127.0.0.1:3260".parse().unwrap()],
            portal_group: 1,
            login_timeout: Duration::from_secs(15),
            ping_interval: Duration::from_secs(15),
            ping_timeout: Duration::from_secs(10),
            half_open_max: 8,
            sessions_max: 64,
        };
        let pool = Pool::new(PoolConfig { counts: [64, 64, LARGE_BUFFERS], arena: 0 }).unwrap();
        World {
            target: Target::new(
                Core(0),
                1,
                Arc::new(settings),
                DeviceServer::new(Core(0), server),
                LARGE_BUFFERS,
            ),
            pool,
            disk: Disk {
                bytes: vec![0; BLOCKS as usize * BLOCK],
                waiting: VecDeque::new(),
                stuck: false,
                abandoned: Vec::new(),
            },
            now: Time(1),
        }
    }

    fn env<R>(&mut self, act: impl FnOnce(&mut Target, &mut Env<'_>) -> R) -> R {
        let mut env = Env { now: self.now, pool: &mut self.pool, below: &mut self.disk };
        act(&mut self.target, &mut env)
    }

    /// Until nothing moves.
    fn settle(&mut self) {
        loop {
            self.env(|target, env| target.turn(env));
            if self.disk.stuck || self.disk.waiting.is_empty() {
                return;
            }
            // Backwards: nothing may depend on the order in which a disk answers.
            while let Some(mut io) = self.disk.waiting.pop_back() {
                let result = self.disk.carry_out(&mut io);
                self.env(|target, env| target.io_done(Done { io, result }, env));
            }
        }
    }

    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.now = self.now + TICK;
            self.env(|target, env| target.tick(env));
            self.settle();
        }
    }

    fn connect(&mut self) -> Initiator {
        let here = "127.0.0.1:3260".parse().unwrap();
        let there = "127.0.0.1:40000".parse().unwrap();
        if let Some(oldest) = self.target.half_open_over_bound() {
            self.env(|target, env| target.close_connection(oldest, env));
        }
        let slot = self.target.accept(here, there, self.now).unwrap();
        Initiator {
            slot,
            cmd_sn: 1,
            exp_stat_sn: 0,
            max_cmd_sn: 1,
            digests: false,
            asks: Asks::default(),
            received: Vec::new(),
            carry: Vec::new(),
            next_itt: 1,
        }
    }

    fn login_as(&mut self, isid: u8, asks: Asks) -> Initiator {
        let mut initiator = self.connect();
        initiator.login(self, isid, asks);
        initiator
    }

    fn login(&mut self) -> Initiator {
        self.login_as(1, Asks::default())
    }
}

/// One PDU from the target.
#[derive(Clone, Debug)]
struct Pdu {
    bhs: [u8; 48],
    data: Vec<u8>,
}

impl Pdu {
    fn opcode(&self) -> u8 {
        self.bhs[0] & 0x3f
    }

    fn word(&self, at: usize) -> u32 {
        u32::from_be_bytes(self.bhs[at..at + 4].try_into().unwrap())
    }

    fn itt(&self) -> u32 {
        self.word(16)
    }
}

struct Initiator {
    slot: Slot,
    cmd_sn: u32,
    exp_stat_sn: u32,
    max_cmd_sn: u32,
    digests: bool,
    asks: Asks,
    received: Vec<u8>,
    /// Sent, and not yet taken by the target.
    carry: Vec<u8>,
    next_itt: u32,
}

fn digest(bytes: &[u8]) -> [u8; 4] {
    let mut crc = Crc::new();
    crc.update(bytes);
    crc.finish()
}

impl Initiator {
    /// A PDU's bytes.
    fn frame(&self, mut bhs: [u8; 48], data: &[u8]) -> Vec<u8> {
        bhs[5..8].copy_from_slice(&(data.len() as u32).to_be_bytes()[1..]);
        let mut bytes = bhs.to_vec();
        if self.digests {
            bytes.extend(digest(&bhs));
        }
        let mut padded = data.to_vec();
        padded.resize(data.len().next_multiple_of(4), 0);
        bytes.extend(&padded);
        if self.digests && !data.is_empty() {
            bytes.extend(digest(&padded));
        }
        bytes
    }

    fn send(&mut self, world: &mut World, bytes: &[u8]) {
        self.carry.extend_from_slice(bytes);
        self.retry(world);
    }

    /// Hands in what the target has not taken yet, in two parts, and lets it work.
    fn retry(&mut self, world: &mut World) {
        let bytes = std::mem::take(&mut self.carry);
        let middle = bytes.len() / 3;
        let mut rest = 0;
        for end in [middle, bytes.len()] {
            let slot = self.slot;
            match world.env(|target, env| target.feed(slot, &bytes[rest..end], env)) {
                Feed::Done => rest = end,
                Feed::Stalled { taken } => {
                    rest += taken;
                    break;
                }
            }
        }
        self.carry = bytes[rest..].to_vec();
        world.settle();
    }

    /// All that the target has to say now.
    fn hear(&mut self, world: &mut World) -> Vec<Pdu> {
        loop {
            let slot = self.slot;
            let bytes: Vec<u8> = {
                let mut slices = [IoSlice::new(&[]); 7];
                let count = world.target.transmit(slot, &mut slices);
                slices[..count].iter().flat_map(|slice| slice.to_vec()).collect()
            };
            if bytes.is_empty() {
                break;
            }
            // As if the socket took a part only.
            let taken = bytes.len().min(3000);
            self.received.extend_from_slice(&bytes[..taken]);
            world.env(|target, env| target.sent(slot, taken, env));
            world.settle();
        }
        let mut pdus = Vec::new();
        loop {
            let Some(bhs) = self.received.first_chunk::<48>().copied() else { break };
            let data_bytes = u32::from_be_bytes([0, bhs[5], bhs[6], bhs[7]]) as usize;
            let is_login = bhs[0] & 0x3f == 0x23;
            let digests = self.digests && !is_login;
            let header = 48 + if digests { 4 } else { 0 };
            let padded = data_bytes.next_multiple_of(4);
            let whole = header + padded + if digests && data_bytes > 0 { 4 } else { 0 };
            if self.received.len() < whole {
                break;
            }
            let bytes: Vec<u8> = self.received.drain(..whole).collect();
            if digests {
                assert_eq!(bytes[48..52], digest(&bytes[..48]));
                if data_bytes > 0 {
                    assert_eq!(bytes[whole - 4..], digest(&bytes[header..header + padded]));
                }
            }
            let pdu = Pdu { bhs, data: bytes[header..header + data_bytes].to_vec() };
            self.note(&pdu);
            pdus.push(pdu);
        }
        pdus
    }

    fn note(&mut self, pdu: &Pdu) {
        let uses_number = match pdu.opcode() {
            0x25 => pdu.bhs[1] & 1 != 0,
            0x31 => false,
            0x20 => pdu.itt() != u32::MAX,
            _ => true,
        };
        if uses_number {
            assert_eq!(pdu.word(24), self.exp_stat_sn, "StatSN of {pdu:?}");
            self.exp_stat_sn = self.exp_stat_sn.wrapping_add(1);
        }
        self.max_cmd_sn = pdu.word(32);
    }

    fn login(&mut self, world: &mut World, isid: u8, asks: Asks) {
        self.asks = asks;
        let yes = |yes: bool| if yes { "Yes" } else { "No" };
        let wanted = if asks.digests { "CRC32C,None" } else { "None" };
        let text = format!(
            "InitiatorName=iqn.2026-11.io.pollux:initiator\0TargetName={TARGET}\0SessionType=Normal\0\
             HeaderDigest={wanted}\0DataDigest={wanted}\0InitialR2T={}\0ImmediateData={}\0FirstBurstLength={}\0\
             MaxBurstLength={}\0MaxOutstandingR2T={}\0MaxRecvDataSegmentLength={}\0",
            yes(asks.initial_r2t),
            yes(asks.immediate_data),
            asks.first_burst,
            asks.max_burst,
            asks.outstanding_r2t,
            asks.segment
        );
        let mut bhs = [0; 48];
        bhs[0] = 0x43;
        bhs[1] = 0x87;
        bhs[8..14].copy_from_slice(&[0, 2, 0x3d, 0, 0, isid]);
        bhs[24..28].copy_from_slice(&self.cmd_sn.to_be_bytes());
        let bytes = self.frame(bhs, text.as_bytes());
        self.send(world, &bytes);
        let answer = self.hear(world);
        assert_eq!(answer.len(), 1, "{answer:?}");
        assert_eq!((answer[0].opcode(), answer[0].bhs[36]), (0x23, 0), "{answer:?}");
        let said = String::from_utf8_lossy(&answer[0].data).into_owned();
        if asks.digests {
            assert!(said.contains("HeaderDigest=CRC32C") && said.contains("DataDigest=CRC32C"), "{said}");
        }
        self.digests = asks.digests;
    }

    fn take_itt(&mut self) -> u32 {
        self.next_itt += 1;
        self.next_itt
    }

    fn command(&mut self, lun: u8, cdb: &[u8], flags: u8, edtl: usize) -> [u8; 48] {
        let mut bhs = [0; 48];
        bhs[0] = 0x01;
        bhs[1] = flags | 0x01;
        bhs[9] = lun;
        bhs[16..20].copy_from_slice(&self.take_itt().to_be_bytes());
        bhs[20..24].copy_from_slice(&(edtl as u32).to_be_bytes());
        bhs[24..28].copy_from_slice(&self.cmd_sn.to_be_bytes());
        bhs[28..32].copy_from_slice(&self.exp_stat_sn.to_be_bytes());
        bhs[32..32 + cdb.len()].copy_from_slice(cdb);
        self.cmd_sn = self.cmd_sn.wrapping_add(1);
        bhs
    }

    /// Clears the unit attentions that a new session begins with.
    fn test_ready(&mut self, world: &mut World) {
        for lun in 0..2 {
            for _ in 0..4 {
                let bhs = self.command(lun, &[0; 6], 0x80, 0);
                let bytes = self.frame(bhs, &[]);
                self.send(world, &bytes);
                if self.hear(world)[0].bhs[3] == 0 {
                    break;
                }
            }
        }
    }

    fn read(&mut self, world: &mut World, lba: u32, blocks: u32) -> Vec<u8> {
        let bytes = blocks as usize * BLOCK;
        let bhs = self.command(0, &cdb16(0x88, lba, blocks), 0xc0, bytes);
        let frame = self.frame(bhs, &[]);
        self.send(world, &frame);
        let mut data = Vec::new();
        let (mut data_sn, mut burst) = (0, 0);
        for pdu in self.hear(world) {
            assert_eq!(pdu.opcode(), 0x25, "{pdu:?}");
            assert_eq!(pdu.word(36), data_sn);
            assert_eq!(pdu.word(40) as usize, data.len());
            assert!(pdu.data.len() <= self.asks.segment as usize);
            burst += pdu.data.len();
            assert!(burst <= self.asks.max_burst as usize);
            if pdu.bhs[1] & 0x80 != 0 {
                burst = 0;
            }
            data_sn += 1;
            data.extend_from_slice(&pdu.data);
            if data.len() == bytes {
                assert_eq!(pdu.bhs[1], 0x81, "the last one is final and carries the status");
                assert_eq!(pdu.bhs[3], 0);
            }
        }
        assert_eq!(data.len(), bytes);
        data
    }

    /// Writes, following what was agreed. `spoil` may change a PDU's bytes before it leaves.
    fn write(&mut self, world: &mut World, lba: u32, data: &[u8]) -> Pdu {
        let blocks = (data.len() / BLOCK) as u32;
        let asks = self.asks;
        let first = data.len().min(asks.first_burst as usize);
        let immediate = if asks.immediate_data { first.min(asks.segment as usize) } else { 0 };
        let unsolicited = if asks.initial_r2t { immediate } else { first };
        let is_final = unsolicited == immediate;
        let bhs = self.command(0, &cdb16(0x8a, lba, blocks), if is_final { 0xa0 } else { 0x20 }, data.len());
        let itt = u32::from_be_bytes(bhs[16..20].try_into().unwrap());
        let frame = self.frame(bhs, &data[..immediate]);
        self.send(world, &frame);
        if !is_final {
            self.data_out(world, itt, u32::MAX, immediate, &data[..unsolicited]);
        }
        for _ in 0..1000 {
            let pdus = self.hear(world);
            let r2ts: Vec<Pdu> = pdus.iter().filter(|pdu| pdu.opcode() == 0x31).cloned().collect();
            assert!(r2ts.len() <= asks.outstanding_r2t as usize);
            for r2t in &r2ts {
                let (ttt, offset, bytes) = (r2t.word(20), r2t.word(40) as usize, r2t.word(44) as usize);
                assert!(bytes <= asks.max_burst as usize);
                self.data_out(world, itt, ttt, offset, &data[..offset + bytes]);
            }
            if let Some(response) = pdus.into_iter().find(|pdu| pdu.opcode() == 0x21) {
                return response;
            }
            assert!(!r2ts.is_empty(), "neither R2T nor response");
        }
        unreachable!("no end of R2Ts");
    }

    /// Data-Out PDUs for `data[from..]`.
    fn data_out(&mut self, world: &mut World, itt: u32, ttt: u32, from: usize, data: &[u8]) {
        let mut at = from;
        let mut data_sn = 0u32;
        while at < data.len() {
            let end = data.len().min(at + 8192);
            let bhs = data_out_header(itt, ttt, data_sn, at, end == data.len());
            let frame = self.frame(bhs, &data[at..end]);
            self.send(world, &frame);
            at = end;
            data_sn += 1;
        }
    }

    fn tmf(&mut self, world: &mut World, function: u8, lun: u8, referenced: u32) -> u32 {
        let mut bhs = [0; 48];
        bhs[0] = 0x42;
        bhs[1] = 0x80 | function;
        bhs[9] = lun;
        let itt = self.take_itt();
        bhs[16..20].copy_from_slice(&itt.to_be_bytes());
        bhs[20..24].copy_from_slice(&referenced.to_be_bytes());
        bhs[24..28].copy_from_slice(&self.cmd_sn.to_be_bytes());
        let frame = self.frame(bhs, &[]);
        self.send(world, &frame);
        itt
    }

    fn ping(&mut self, world: &mut World, data: &[u8]) -> u32 {
        let mut bhs = [0; 48];
        bhs[0] = 0x40;
        bhs[1] = 0x80;
        let itt = self.take_itt();
        bhs[16..20].copy_from_slice(&itt.to_be_bytes());
        bhs[20..24].copy_from_slice(&u32::MAX.to_be_bytes());
        bhs[24..28].copy_from_slice(&self.cmd_sn.to_be_bytes());
        let frame = self.frame(bhs, data);
        self.send(world, &frame);
        itt
    }
}

fn data_out_header(itt: u32, ttt: u32, data_sn: u32, offset: usize, is_final: bool) -> [u8; 48] {
    let mut bhs = [0; 48];
    bhs[0] = 0x05;
    bhs[1] = if is_final { 0x80 } else { 0 };
    bhs[16..20].copy_from_slice(&itt.to_be_bytes());
    bhs[20..24].copy_from_slice(&ttt.to_be_bytes());
    bhs[36..40].copy_from_slice(&data_sn.to_be_bytes());
    bhs[40..44].copy_from_slice(&(offset as u32).to_be_bytes());
    bhs
}

fn cdb16(opcode: u8, lba: u32, blocks: u32) -> [u8; 16] {
    let mut cdb = [0; 16];
    cdb[0] = opcode;
    cdb[6..10].copy_from_slice(&lba.to_be_bytes());
    cdb[10..14].copy_from_slice(&blocks.to_be_bytes());
    cdb
}

fn pattern(bytes: usize, seed: u8) -> Vec<u8> {
    (0..bytes)
        .map(|at| (at as u8).wrapping_mul(31).wrapping_add((at >> 9) as u8).wrapping_add(seed))
        .collect()
}

/// Goal: writes arrive whole and reads come back whole in all four combinations of ImmediateData and InitialR2T, with
/// digests and without, whatever the lengths. Method: sizes around every boundary.
#[test]
fn data_survive_every_combination() {
    for bits in 0..8u8 {
        let mut world = World::new();
        let asks = Asks {
            initial_r2t: bits & 1 != 0,
            immediate_data: bits & 2 != 0,
            digests: bits & 4 != 0,
            outstanding_r2t: 1 + u32::from(bits),
            ..Asks::default()
        };
        let mut initiator = world.login_as(1, asks);
        initiator.test_ready(&mut world);
        for (seed, blocks) in
            [1, 15, 16, 17, 31, 32, 33, 128, 129, 255, 256, 257, 1000].into_iter().enumerate()
        {
            let lba = 100 + seed as u32 * 3;
            let data = pattern(blocks * BLOCK, seed as u8);
            let response = initiator.write(&mut world, lba, &data);
            assert_eq!((response.bhs[1], response.bhs[2], response.bhs[3]), (0x80, 0, 0), "{bits} {blocks}");
            let at = lba as usize * BLOCK;
            assert!(world.disk.bytes[at..at + data.len()] == data, "{bits} {blocks}");
            assert!(initiator.read(&mut world, lba, blocks as u32) == data, "{bits} {blocks}");
        }
    }
}

/// Goal: a 256 MiB transfer needs bounded memory. Method: read and write far more than all buffers together hold.
#[test]
fn long_transfers_stream() {
    let mut world = World::new();
    let asks = Asks { max_burst: 1 << 20, segment: 256 << 10, ..Asks::default() };
    let mut initiator = world.login_as(1, asks);
    initiator.test_ready(&mut world);
    let blocks = (48 << 20) / BLOCK;
    let data = pattern(blocks * BLOCK, 9);
    assert!(data.len() > 8 * LARGE_BUFFERS as usize * 65536);
    assert_eq!(initiator.write(&mut world, 64, &data).bhs[3], 0);
    assert!(initiator.read(&mut world, 64, blocks as u32) == data);
}

/// Goal: with a stuck disk pings, task management of reads, and other logins are answered at once; an abort of a write
/// that the disk holds waits for it, and what it aborted is never answered.
#[test]
fn a_stuck_disk_sticks_to_itself() {
    let mut world = World::new();
    let mut initiator = world.login();
    initiator.test_ready(&mut world);
    world.disk.stuck = true;
    let read = initiator.command(0, &cdb16(0x88, 0, 8), 0xc0, 4096);
    let read_itt = u32::from_be_bytes(read[16..20].try_into().unwrap());
    let frame = initiator.frame(read, &[]);
    initiator.send(&mut world, &frame);
    let write = initiator.command(0, &cdb16(0x8a, 8, 8), 0xa0, 4096);
    let write_itt = u32::from_be_bytes(write[16..20].try_into().unwrap());
    let frame = initiator.frame(write, &pattern(4096, 1));
    initiator.send(&mut world, &frame);
    assert!(initiator.hear(&mut world).is_empty());

    let itt = initiator.ping(&mut world, b"are you there");
    let pong = initiator.hear(&mut world);
    assert_eq!((pong[0].opcode(), pong[0].itt(), &pong[0].data[..]), (0x20, itt, &b"are you there"[..]));

    let itt = initiator.tmf(&mut world, 1, 0, read_itt);
    let answer = initiator.hear(&mut world);
    assert_eq!((answer[0].opcode(), answer[0].itt(), answer[0].bhs[2]), (0x22, itt, 0));
    assert_eq!(world.disk.abandoned.len(), 1);

    let mut other = world.login_as(2, Asks::default());
    let itt = other.ping(&mut world, b"");
    assert_eq!(other.hear(&mut world)[0].itt(), itt);

    let itt = initiator.tmf(&mut world, 1, 0, write_itt);
    assert!(initiator.hear(&mut world).is_empty(), "the disk has the write");
    world.disk.stuck = false;
    world.settle();
    let answer = initiator.hear(&mut world);
    assert_eq!(answer.len(), 1, "{answer:?}");
    assert_eq!((answer[0].opcode(), answer[0].itt(), answer[0].bhs[2]), (0x22, itt, 0));
    // All buffers are home.
    assert_eq!(world.pool.free(), [64, 64, LARGE_BUFFERS as usize]);
}

/// Goal: a task that is already done is "function complete", and its response, if it has not left, is withdrawn.
#[test]
fn an_abort_of_what_is_done_is_complete() {
    let mut world = World::new();
    let mut initiator = world.login();
    initiator.test_ready(&mut world);
    let bhs = initiator.command(0, &[0; 6], 0x80, 0);
    let itt = u32::from_be_bytes(bhs[16..20].try_into().unwrap());
    let frame = initiator.frame(bhs, &[]);
    initiator.send(&mut world, &frame);
    let tmf = initiator.tmf(&mut world, 1, 0, itt);
    let heard = initiator.hear(&mut world);
    assert_eq!(heard.len(), 1, "the response was withdrawn: {heard:?}");
    assert_eq!((heard[0].opcode(), heard[0].itt(), heard[0].bhs[2]), (0x22, tmf, 0));
}

/// Goal: a LUN reset clears other initiators' tasks, who are told TASK ABORTED, and nobody else's units.
#[test]
fn a_reset_reaches_everybody() {
    let mut world = World::new();
    let mut one = world.login_as(1, Asks::default());
    let mut two = world.login_as(2, Asks::default());
    one.test_ready(&mut world);
    two.test_ready(&mut world);
    world.disk.stuck = true;
    for lun in 0..2 {
        let read = two.command(lun, &cdb16(0x88, 0, 1), 0xc0, 512);
        let frame = two.frame(read, &[]);
        two.send(&mut world, &frame);
    }
    let itt = one.tmf(&mut world, 5, 0, u32::MAX);
    let answer = one.hear(&mut world);
    assert_eq!((answer[0].opcode(), answer[0].itt(), answer[0].bhs[2]), (0x22, itt, 0));
    let told = two.hear(&mut world);
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!((told[0].opcode(), told[0].bhs[3]), (0x21, 0x40));
    world.disk.stuck = false;
    world.settle();
    let rest = two.hear(&mut world);
    assert_eq!((rest.len(), rest[0].opcode()), (1, 0x25), "the other unit's read goes on");
}

/// Goal: a new login of the same name and ISID ends the old session at once, and buffers of stuck requests stay out
/// until the disk gives them back.
#[test]
fn a_session_is_reinstated_while_the_disk_is_stuck() {
    let mut world = World::new();
    let mut old = world.login();
    old.test_ready(&mut world);
    world.disk.stuck = true;
    let write = old.command(0, &cdb16(0x8a, 8, 8), 0xa0, 4096);
    let frame = old.frame(write, &pattern(4096, 1));
    old.send(&mut world, &frame);
    let mut new = world.login();
    assert!(!world.target.has_connection(old.slot));
    assert_eq!(world.target.sessions(), 2, "the old one waits for its write");
    let itt = new.ping(&mut world, b"x");
    assert_eq!(new.hear(&mut world)[0].itt(), itt);
    world.disk.stuck = false;
    world.settle();
    assert_eq!(world.target.sessions(), 1);
    let bhs = new.command(0, &[0; 6], 0x80, 0);
    let frame = new.frame(bhs, &[]);
    new.send(&mut world, &frame);
    let answer = &new.hear(&mut world)[0];
    assert_eq!((answer.bhs[3], answer.data[2 + 2] & 0xf), (2, 6), "a unit attention tells of the loss");
}

/// Goal: Data-Out that is out of sequence or of the wrong length never ends in GOOD and changes nothing.
#[test]
fn bad_data_out_fails_the_task() {
    let offsets_and_numbers = [(0usize, 1u32), (0, 27), (0, u32::MAX), (512, 0)];
    for (offset, data_sn) in offsets_and_numbers {
        let mut world = World::new();
        let mut initiator =
            world.login_as(1, Asks { initial_r2t: true, immediate_data: false, ..Asks::default() });
        initiator.test_ready(&mut world);
        let bhs = initiator.command(0, &cdb16(0x8a, 0, 8), 0xa0, 4096);
        let frame = initiator.frame(bhs, &[]);
        initiator.send(&mut world, &frame);
        let r2t = &initiator.hear(&mut world)[0];
        assert_eq!(r2t.opcode(), 0x31);
        let bhs = data_out_header(r2t.itt(), r2t.word(20), data_sn, offset, true);
        let frame = initiator.frame(bhs, &pattern(4096, 3));
        initiator.send(&mut world, &frame);
        let heard = initiator.hear(&mut world);
        assert!(heard.iter().any(|pdu| pdu.opcode() == 0x3f), "{heard:?}");
        assert!(heard.iter().all(|pdu| pdu.opcode() != 0x21 || pdu.bhs[3] == 2), "{heard:?}");
        assert!(world.disk.bytes.iter().all(|&byte| byte == 0));
        assert_eq!(world.pool.free(), [64, 64, LARGE_BUFFERS as usize]);
    }
}

/// Goal: a wrong data digest on Data-Out rejects the PDU and fails the task; on a command it ends the connection; a wrong
/// header digest ends it at once.
#[test]
fn wrong_digests() {
    let asks = Asks { digests: true, ..Asks::default() };
    let mut world = World::new();
    let mut initiator = world.login_as(1, asks);
    initiator.test_ready(&mut world);
    let bhs = initiator.command(0, &cdb16(0x8a, 0, 32), 0x20, 16384);
    let itt = u32::from_be_bytes(bhs[16..20].try_into().unwrap());
    let frame = initiator.frame(bhs, &pattern(8192, 1));
    initiator.send(&mut world, &frame);
    let mut frame = initiator.frame(data_out_header(itt, u32::MAX, 0, 8192, true), &pattern(8192, 2));
    *frame.last_mut().unwrap() ^= 1;
    initiator.send(&mut world, &frame);
    let heard = initiator.hear(&mut world);
    assert_eq!((heard[0].opcode(), heard[0].bhs[2]), (0x3f, 2), "{heard:?}");
    assert_eq!((heard[1].opcode(), heard[1].bhs[3]), (0x21, 2));
    assert_eq!((heard[1].data[2 + 2] & 0xf, heard[1].data[2 + 12], heard[1].data[2 + 13]), (0xb, 0x47, 5));
    assert!(!world.target.is_finished(initiator.slot));

    let bhs = initiator.command(0, &cdb16(0x8a, 0, 8), 0xa0, 4096);
    let mut frame = initiator.frame(bhs, &pattern(4096, 1));
    *frame.last_mut().unwrap() ^= 1;
    initiator.send(&mut world, &frame);
    let heard = initiator.hear(&mut world);
    assert_eq!((heard[0].opcode(), heard[0].bhs[2]), (0x3f, 2));
    assert!(world.target.is_finished(initiator.slot));
    assert!(world.disk.bytes[..4096].iter().all(|&byte| byte == 0));

    let mut third = world.login_as(3, asks);
    let bhs = third.command(0, &[0; 6], 0x80, 0);
    let mut frame = third.frame(bhs, &[]);
    frame[50] ^= 1;
    third.send(&mut world, &frame);
    assert!(world.target.is_finished(third.slot));
}

/// Goal: commands outside the window, or seen before, are ignored in silence.
#[test]
fn commands_outside_the_window_are_ignored() {
    let mut world = World::new();
    let mut initiator = world.login();
    initiator.test_ready(&mut world);
    let window = initiator.max_cmd_sn.wrapping_sub(initiator.cmd_sn) + 1;
    assert!(window >= 128, "{window}");
    for cmd_sn in [initiator.max_cmd_sn + 1, initiator.cmd_sn - 1] {
        let due = initiator.cmd_sn;
        initiator.cmd_sn = cmd_sn;
        let bhs = initiator.command(0, &[0; 6], 0x80, 0);
        initiator.cmd_sn = due;
        let frame = initiator.frame(bhs, &[]);
        initiator.send(&mut world, &frame);
        assert!(initiator.hear(&mut world).is_empty());
    }
    let bhs = initiator.command(0, &[0; 6], 0x80, 0);
    let frame = initiator.frame(bhs, &[]);
    initiator.send(&mut world, &frame);
    assert_eq!(initiator.hear(&mut world)[0].bhs[3], 0);
}

/// Goal: a writer that asks and never sends loses its buffers at the deadline, and is told.
#[test]
fn a_stalled_writer_holds_nothing_for_long() {
    let mut world = World::new();
    let mut initiator =
        world.login_as(1, Asks { initial_r2t: true, immediate_data: false, ..Asks::default() });
    initiator.test_ready(&mut world);
    for _ in 0..20 {
        let bhs = initiator.command(0, &cdb16(0x8a, 0, 256), 0xa0, 256 * BLOCK);
        let frame = initiator.frame(bhs, &[]);
        initiator.send(&mut world, &frame);
    }
    initiator.hear(&mut world);
    assert!(world.pool.free()[2] < LARGE_BUFFERS as usize);
    for _ in 0..25 {
        world.pass(Duration::from_secs(1));
        initiator.ping(&mut world, b"");
        initiator.hear(&mut world);
    }
    world.pass(Duration::from_secs(1));
    initiator.hear(&mut world);
    assert_eq!(world.pool.free(), [64, 64, LARGE_BUFFERS as usize]);
}

/// Goal: when a stuck disk has eaten a session's buffers, further writes are refused with TASK SET FULL and a ping
/// behind them is answered within a second.
#[test]
fn a_ping_gets_through_behind_writes_without_buffers() {
    let mut world = World::new();
    let mut initiator = world.login();
    initiator.test_ready(&mut world);
    world.disk.stuck = true;
    for _ in 0..120 {
        let bhs = initiator.command(0, &cdb16(0x8a, 0, 16), 0xa0, 8192);
        let frame = initiator.frame(bhs, &pattern(8192, 5));
        initiator.send(&mut world, &frame);
    }
    for _ in 0..100 {
        let bhs = initiator.command(0, &cdb16(0x88, 0, 128), 0xc0, 65536);
        let frame = initiator.frame(bhs, &[]);
        initiator.send(&mut world, &frame);
    }
    let itt = initiator.ping(&mut world, b"!");
    let began = world.now;
    loop {
        world.pass(TICK);
        initiator.retry(&mut world);
        if initiator.hear(&mut world).iter().any(|pdu| pdu.opcode() == 0x20 && pdu.itt() == itt) {
            break;
        }
        assert!(world.now.since(began) < Duration::from_secs(1), "no answer to the ping");
    }
}

/// Goal: idle half-open connections neither stay nor keep others out.
#[test]
fn half_open_connections_harm_nobody() {
    let mut world = World::new();
    let idle: Vec<Initiator> = (0..1000).map(|_| world.connect()).collect();
    assert!(world.target.load() <= 8);
    let mut initiator = world.login();
    initiator.test_ready(&mut world);
    world.pass(Duration::from_secs(16));
    let left = idle.iter().filter(|idle| world.target.has_connection(idle.slot)).count();
    let finished = idle.iter().filter(|idle| world.target.is_finished(idle.slot)).count();
    assert_eq!((left > 8, finished), (false, 1000));
}

/// Goal: bytes of any kind, at any moment, end in an answer or a dropped connection, never in a panic or a lost buffer.
#[test]
fn any_bytes_do_no_harm() {
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    for round in 0..400u32 {
        let mut world = World::new();
        let mut initiator = if round % 4 == 0 {
            world.connect()
        } else {
            world.login_as(1, Asks { digests: false, ..Asks::default() })
        };
        for _ in 0..40 {
            let mut bhs = initiator.command(0, &cdb16(0x8a, 0, 16), 0xa0, 8192);
            // Mostly sound headers with a few bytes changed, so that they get further than the first check.
            for _ in 0..random() % 4 {
                bhs[(random() % 48) as usize] = random() as u8;
            }
            if random() % 3 == 0 {
                bhs[0] =
                    [0x01, 0x05, 0x02, 0x40, 0x42, 0x04, 0x06, 0x03, 0x10, 0x20][(random() % 10) as usize];
            }
            bhs[4] = if random() % 8 == 0 { random() as u8 & 7 } else { 0 };
            let data = vec![random() as u8; (random() % 9000) as usize & !3];
            let frame = initiator.frame(bhs, &data);
            let slot = initiator.slot;
            world.env(|target, env| target.feed(slot, &frame, env));
            world.settle();
            let mut slices = [IoSlice::new(&[]); 64];
            let count = world.target.transmit(slot, &mut slices);
            let bytes: usize = slices[..count].iter().map(|slice| slice.len()).sum();
            world.env(|target, env| target.sent(slot, bytes, env));
            if world.target.is_finished(slot) {
                break;
            }
        }
        let slot = initiator.slot;
        world.env(|target, env| target.close_connection(slot, env));
        world.settle();
        assert_eq!(world.pool.free(), [64, 64, LARGE_BUFFERS as usize], "round {round}");
        assert_eq!(world.target.sessions(), 0);
    }
}

/// Goal: a command whose end is known early is answered when the initiator has sent what it was asked for, not before
/// (RFC 7143 §11.4.2). Method: VERIFY of data that differ in the first block, with an R2T answered in two parts; the
/// command carries an additional header besides.
#[test]
fn an_early_end_waits_for_the_data() {
    let mut world = World::new();
    let mut initiator = world.login();
    initiator.test_ready(&mut world);
    let data = pattern(300 * BLOCK, 1);
    let mut cdb = cdb16(0x8f, 0, 300);
    cdb[1] = 0x02;
    let mut bhs = initiator.command(0, &cdb, 0xa0, data.len());
    bhs[4] = 2;
    let itt = u32::from_be_bytes(bhs[16..20].try_into().unwrap());
    // BidirectionalReadExpectedDataTransferLength of 0: allowed, of no effect.
    let mut frame = initiator.frame(bhs, &data[..4096]);
    frame.splice(48..48, [0, 5, 2, 0, 0, 0, 0, 0]);
    initiator.send(&mut world, &frame);
    let heard = initiator.hear(&mut world);
    let r2t = heard.iter().find(|pdu| pdu.opcode() == 0x31).unwrap_or_else(|| panic!("{heard:?}")).clone();
    let rest: Vec<Pdu> = heard.into_iter().filter(|pdu| pdu.opcode() == 0x31).skip(1).collect();
    let (from, bytes) = (r2t.word(40) as usize, r2t.word(44) as usize);
    let middle = (bytes / 2) & !3;
    for (data_sn, (start, end)) in
        [(from, from + middle), (from + middle, from + bytes)].into_iter().enumerate()
    {
        let heard = initiator.hear(&mut world);
        assert!(
            heard.iter().all(|pdu| pdu.opcode() != 0x21),
            "answered before the data were there: {heard:?}"
        );
        let header = data_out_header(itt, r2t.word(20), data_sn as u32, start, end == from + bytes);
        let frame = initiator.frame(header, &data[start..end]);
        initiator.send(&mut world, &frame);
    }
    for r2t in rest {
        let (from, bytes) = (r2t.word(40) as usize, r2t.word(44) as usize);
        initiator.data_out(&mut world, itt, r2t.word(20), from, &data[..from + bytes]);
    }
    let heard = initiator.hear(&mut world);
    let response = heard.iter().find(|pdu| pdu.opcode() == 0x21).unwrap_or_else(|| panic!("{heard:?}"));
    assert_eq!((response.itt(), response.bhs[3], response.data[2 + 2] & 0xf), (itt, 2, 0xe));
    assert_eq!(world.pool.free(), [64, 64, LARGE_BUFFERS as usize]);
    assert_eq!(initiator.read(&mut world, 0, 8).len(), 4096);
}
