//! One core's target over memory, without sockets or a reactor, and the bytes of its only session.

use crate::args::InstructionsKind;
use crate::failure::{Context, Failure};
use bdev::geometry::Geometry;
use bdev::io::{BdevId, Io, Tag};
use bdev::lent::Lent;
use bdev::router::Router;
use bdev::shard::Shard;
use bdev::stack::{self, BdevConfig, BdevKind};
use bdev::storage::{CopyIo, Storage};
use iscsi::access::{Access, Availability, Target as TargetRule};
use iscsi::admission::Settings;
use iscsi::digest::crc32c;
use iscsi::name::IscsiName;
use iscsi::negotiate;
use iscsi::target::{Below, Env, Mail, Target};
use reactor::Core;
use reactor::buf::{Pool, PoolConfig};
use reactor::clock::Time;
use reactor::slots::Slot;
use std::io::IoSlice;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use vaai::lun::LunConfig;
use vaai::server::{DeviceServer, PortConfig, ServerConfig};

const TARGET: &str = "iqn.2026-11.io.pollux:bench";
const UNIT_BYTES: u64 = 16 << 20;
const BLOCK: u32 = 512;
/// Of a command.
const BYTES: usize = 4096;
const BHS: usize = 48;
const DIGEST: usize = 4;

/// See the module.
pub(super) struct World {
    kind: InstructionsKind,
    target: Target,
    storage: Storage,
    pool: Pool,
    slot: Slot,
    cmd_sn: u32,
    itt: u32,
}

/// What the target wants of the layers below; there is one core.
struct Lower<'a>(&'a mut Storage);

impl Below for Lower<'_> {
    fn submit(&mut self, io: Io) {
        self.0.submit(io);
    }

    fn read_now(&mut self, bdev: BdevId, lba: u64, buf: &mut [u8]) -> bool {
        self.0.read_now(bdev, lba, buf)
    }

    fn lend_now(&mut self, bdev: BdevId, lba: u64, bytes: usize) -> Option<Lent> {
        self.0.lend_now(bdev, lba, bytes)
    }

    fn write_now(&mut self, bdev: BdevId, lba: u64, data: &[u8]) -> bool {
        self.0.write_now(bdev, lba, data)
    }

    fn status(&mut self, tag: Tag, bdev: BdevId, from_bytes: u64, bytes: u64) {
        self.0.status(tag, bdev, from_bytes, bytes);
    }

    fn abandon(&mut self, _: BdevId, tag: Tag) {
        self.0.router.abandon(tag, |_, _, _| {});
    }

    fn copy(&mut self, io: CopyIo) {
        self.0.copy(io);
    }

    fn abandon_copies(&mut self, tag: Tag) {
        self.0.abandon_copies(tag);
    }

    fn post(&mut self, _: Core, _: Mail) {}
}

impl World {
    /// A session that is logged in and has nothing to be told any more.
    ///
    /// # Errors
    /// There is no memory, or the login is refused.
    pub(super) fn new(kind: InstructionsKind) -> Result<World, Failure> {
        let core = Core(0);
        let config = BdevConfig {
            kind: BdevKind::Ram { bytes: UNIT_BYTES },
            block_bytes: BLOCK,
            physical_block_bytes: 4096,
            read_only: false,
            write_cache: false,
        };
        let opened = stack::open(&[config]).doing("making the unit's memory")?;
        let mut pool = Pool::new(PoolConfig { counts: [256, 16, 64], arena: 0 }).doing("taking buffers")?;
        let stacks = opened.stacks_for(core, 1, &mut pool).doing("making the unit's memory")?;
        let geometry = opened.geometries()[0];
        let router = Router::new(core, 1, opened.geometries());
        let storage = Storage::new(core, 1, router, Shard::new(core, stacks), Vec::new());
        let server = DeviceServer::new(core, server_config(geometry));
        let mut target = Target::new(core, 1, Arc::new(settings()?), server, 64);
        let end = SocketAddr::from(([127, 0, 0, 1], 3260));
        let Some(slot) = target.accept(end, end, Time(1)) else {
            return Err(Failure::new("no room for a connection"));
        };
        let mut world = World { kind, target, storage, pool, slot, cmd_sn: 1, itt: 1 };
        world.log_in()?;
        Ok(world)
    }

    /// Commands that never were tasks.
    #[cfg(test)]
    pub(super) fn straight(&self) -> u64 {
        self.target.counters.straight
    }

    fn has_digests(&self) -> bool {
        matches!(self.kind, InstructionsKind::ReadWithDigests | InstructionsKind::WriteWithDigests)
    }

    fn log_in(&mut self) -> Result<(), Failure> {
        let digest = if self.has_digests() { "CRC32C" } else { "None" };
        let text = format!(
            "InitiatorName=iqn.2026-11.io.pollux:counter\0TargetName={TARGET}\0SessionType=Normal\0\
             HeaderDigest={digest}\0DataDigest={digest}\0InitialR2T=No\0ImmediateData=Yes\0"
        );
        let mut request = vec![0; BHS];
        (request[0], request[1]) = (0x43, 0x87);
        request[8..14].copy_from_slice(&[0, 2, 0x3d, 0, 0, 1]);
        request[5..8].copy_from_slice(&(text.len() as u32).to_be_bytes()[1..]);
        request[24..28].copy_from_slice(&self.cmd_sn.to_be_bytes());
        request.extend(text.as_bytes());
        request.resize(request.len().next_multiple_of(4), 0);
        self.feed(&request);
        self.turn();
        let answer = self.take_all();
        if answer.get(36) != Some(&0) {
            return Err(Failure::new("the login is refused"));
        }
        // The unit attention that a session begins with; TEST UNIT READY takes it.
        for _ in 0..2 {
            let mut ready = self.header(0x80, 0, [0; 16]);
            self.seal_header(&mut ready);
            self.feed(&ready);
            self.turn();
            self.take_all();
        }
        Ok(())
    }

    /// Carries out `batches` of `batch` commands each, and looks whether all ended well.
    ///
    /// # Errors
    /// One did not.
    pub(super) fn run(&mut self, batches: u64, batch: u64) -> Result<(), Failure> {
        let reads = !matches!(
            self.kind,
            InstructionsKind::Write | InstructionsKind::WriteWithDigests | InstructionsKind::WriteAsATask
        );
        let answer = BHS + if self.has_digests() { DIGEST } else { 0 };
        let data = BYTES + if self.has_digests() { DIGEST } else { 0 };
        let expected = batch as usize * if reads { answer + data } else { answer };
        let data_out = vec![7; BYTES];
        let mut bytes = Vec::new();
        for number in 0..batches {
            bytes.clear();
            let mut cuts = Vec::new();
            for nth in 0..batch {
                self.command(&mut bytes, (number * batch + nth) * 37 % (UNIT_BYTES / BYTES as u64), reads);
                cuts.push(bytes.len());
                if !reads {
                    bytes.extend_from_slice(&data_out);
                    if self.has_digests() {
                        bytes.extend_from_slice(&crc32c(&data_out));
                    }
                }
            }
            if self.kind == InstructionsKind::WriteAsATask {
                // Each header comes without what follows it.
                let mut from = 0;
                for cut in cuts {
                    self.feed(&bytes[from..cut]);
                    from = cut;
                }
                self.feed(&bytes[from..]);
            } else {
                self.feed(&bytes);
            }
            self.carry();
            // A status that is not GOOD brings sense data, and a read without it no data.
            let sent = self.send();
            if sent != expected {
                return Err(Failure::new(format!("{sent} bytes instead of {expected} come back")));
            }
        }
        Ok(())
    }

    fn command(&mut self, bytes: &mut Vec<u8>, block: u64, reads: bool) {
        let mut cdb = [0; 16];
        cdb[0] = if reads { 0x88 } else { 0x8a };
        cdb[2..10].copy_from_slice(&(block * 8).to_be_bytes());
        cdb[13] = 8;
        // Room for more than it reads is nothing unusual, but not plain.
        let room = if self.kind == InstructionsKind::ReadAsATask { BYTES + 512 } else { BYTES };
        let mut header = self.header(if reads { 0xc1 } else { 0xa1 }, room as u32, cdb);
        if !reads {
            header[5..8].copy_from_slice(&(BYTES as u32).to_be_bytes()[1..]);
        }
        self.seal_header(&mut header);
        bytes.extend_from_slice(&header);
    }

    fn header(&mut self, flags: u8, edtl: u32, cdb: [u8; 16]) -> Vec<u8> {
        let mut header = vec![0; BHS];
        (header[0], header[1]) = (0x01, flags);
        header[16..20].copy_from_slice(&self.itt.to_be_bytes());
        header[20..24].copy_from_slice(&edtl.to_be_bytes());
        header[24..28].copy_from_slice(&self.cmd_sn.to_be_bytes());
        header[32..48].copy_from_slice(&cdb);
        self.itt = self.itt % 0x00ff_ffff + 1;
        self.cmd_sn = self.cmd_sn.wrapping_add(1);
        header
    }

    fn seal_header(&self, header: &mut Vec<u8>) {
        if self.has_digests() {
            header.extend(crc32c(header));
        }
    }

    fn env<R>(&mut self, act: impl FnOnce(&mut Target, &mut Env<'_>) -> R) -> R {
        let mut lower = Lower(&mut self.storage);
        act(&mut self.target, &mut Env { now: Time(1), pool: &mut self.pool, below: &mut lower })
    }

    fn feed(&mut self, bytes: &[u8]) {
        let slot = self.slot;
        self.env(|target, env| target.feed(slot, bytes, env));
    }

    fn carry(&mut self) {
        while let Some(done) = self.storage.poll_done() {
            self.env(|target, env| target.io_done(done, env));
        }
    }

    fn turn(&mut self) {
        self.env(Target::turn);
        self.carry();
    }

    /// Takes what is to be sent, as a socket that takes all: how many bytes.
    fn send(&mut self) -> usize {
        let (slot, mut sent) = (self.slot, 0);
        loop {
            let bytes = {
                let mut slices = [IoSlice::new(&[]); 128];
                let count = self.target.transmit(slot, &mut slices);
                slices[..count].iter().map(|slice| slice.len()).sum()
            };
            if bytes == 0 {
                return sent;
            }
            sent += bytes;
            self.env(|target, env| target.sent(slot, bytes, env));
        }
    }

    fn take_all(&mut self) -> Vec<u8> {
        let slot = self.slot;
        let mut slices = [IoSlice::new(&[]); 8];
        let count = self.target.transmit(slot, &mut slices);
        let all: Vec<u8> = slices[..count].iter().flat_map(|slice| slice.iter().copied()).collect();
        self.env(|target, env| target.sent(slot, all.len(), env));
        all
    }
}

fn server_config(geometry: Geometry) -> ServerConfig {
    let unit = LunConfig {
        lun: 0,
        bdev: BdevId(0),
        geometry,
        id: [1; 16],
        serial: "1".into(),
        read_only: false,
        removable: false,
        reservations: None,
    };
    let ports = vec![PortConfig { relative_port: 1, tpgt: 1, group: 1 }];
    ServerConfig { target_name: TARGET.into(), ports, luns: vec![unit] }
}

fn settings() -> Result<Settings, Failure> {
    let name = IscsiName::parse(TARGET).doing("naming the target")?;
    let targets = vec![TargetRule { name, alias: None, availability: Availability::Online }];
    Ok(Settings {
        access: Access { targets, ..Access::default() },
        negotiation: negotiate::Settings::default(),
        portals: vec![SocketAddr::from(([127, 0, 0, 1], 3260))],
        portal_group: 1,
        login_timeout: Duration::from_secs(15),
        ping_interval: Duration::from_secs(15),
        ping_timeout: Duration::from_secs(10),
        half_open_max: 8,
        sessions_max: 8,
    })
}
