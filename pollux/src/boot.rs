//! Builds all, in order: devices, units, reactors, and the doors last. Read it first.
//!
//! A host takes "logical unit not supported" for a device that is dead for good, so nobody is let in before every
//! core has said that every unit is ready.

use crate::banner::{Banner, ServedLun, ready_line, say};
use crate::below::Watch;
use crate::config::{self, Config, DATA_POOL, DigestPolicy, HostName, Lun, LunId, REACTORS_DEFAULT};
use crate::control::backend::{Backend, Failure, NewUnit, Source, Unit, VolumeName};
use crate::control::live::Live;
use crate::control::server::Server;
use crate::control::socket::Door;
use crate::mistake::Mistake;
use crate::node::{DRAIN, Loads, Message, Node, Recipe};
use crate::signals::{Signal, Signals};
use crate::space;
use crate::spec::Backing;
use bdev::geometry::Geometry;
use bdev::io::BdevId;
use bdev::pool::control::{Against, Answer, Request, VolumeSpec};
use bdev::shard::SHARD_IOS_MAX;
use bdev::stack::{self, BdevConfig, BdevKind};
use iscsi::access::{Access, Availability, HostRule, Initiators, Targets};
use iscsi::admission::Settings;
use iscsi::chap::{Algorithm, Chap, Credentials, Secret};
use iscsi::negotiate;
use reactor::Core;
use reactor::buf::PoolConfig;
use reactor::mesh::CreditConfig;
use reactor::net::{ListenError, Listener, SocketConfig};
use reactor::reactor::PollMode;
use reactor::ring::RingConfig;
use reactor::start::{Mesh, MeshConfig, Running};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;
use tracing::{info, warn};
use vaai::lun::LunConfig;
use vaai::server::{PortConfig, ServerConfig};

/// Target portal group tag, and target port group, of every portal: all reach all units, all equally well.
const PORTAL_GROUP: u16 = 1;

/// How long a core may take to make its share of the devices: memory has to be mapped and zeroed.
const START_TIMEOUT: Duration = Duration::from_secs(120);

/// How long a port is waited for that is still taken: of a program that was killed the kernel keeps the listeners until it has
/// taken its rings apart.
const PORT_PATIENCE: Duration = Duration::from_secs(5);
const PORT_PAUSE: Duration = Duration::from_millis(50);

/// How often the main thread looks up while it waits for signals.
const SIGNAL_WAIT: Duration = Duration::from_secs(3600);

/// A target that serves.
#[derive(Debug)]
pub struct Serving {
    running: Running<Message>,
    /// Where it listens: the actual ports.
    pub portals: Vec<SocketAddr>,
    /// The units as hosts see them.
    pub luns: Vec<ServedLun>,
    /// Each reactor's CPU.
    pub cpus: Vec<u16>,
    /// Memory taken at the start, units in memory not counted.
    pub memory_bytes: u64,
    /// What the control API asks.
    pub live: Arc<Live>,
}

impl Serving {
    /// Opens devices, starts reactors, opens the doors. `ids` are the units' identities, in the order of the
    /// configuration's units.
    ///
    /// # Errors
    /// What is in the way, and the cure.
    pub fn start(config: &Config, ids: &[LunId]) -> Result<Serving, Mistake> {
        // Units of volumes come when the pools are there.
        let fixed: Vec<(&Lun, LunId, BdevConfig)> = config
            .luns
            .iter()
            .zip(ids)
            .filter_map(|(lun, &id)| bdev_config(lun).map(|bdev| (lun, id, bdev)))
            .collect();
        let bdevs: Vec<BdevConfig> = fixed.iter().map(|(.., bdev)| bdev.clone()).collect();
        let mut devices = stack::open(&bdevs).map_err(|error| told(&error))?;
        let geometries = devices.geometries();
        let luns: Vec<LunConfig> = fixed
            .iter()
            .zip(geometries.iter())
            .enumerate()
            .map(|(place, (&(lun, id, _), &geometry))| unit(place, lun, id, geometry))
            .collect();
        let served = served(config, &luns);
        let server = ServerConfig {
            target_name: config.target.iqn.as_str().to_owned(),
            ports: (1..=config.portals.len() as u16)
                .map(|relative_port| PortConfig { relative_port, tpgt: PORTAL_GROUP, group: PORTAL_GROUP })
                .collect(),
            luns,
        };
        server.check().map_err(|error| told(&error))?;

        let cpus = cpus(config);
        let pools = crate::pools::open_all(config, cpus.len() as u16, &mut devices)?;
        let pool_names: Vec<String> = pools.iter().map(|pool| pool.name().to_owned()).collect();
        let mesh = mesh_config(config, &cpus, devices.take_files());
        let memory_bytes = mesh.memory::<Message>().total() as u64;
        let (ready, readiness) = mpsc::channel();
        let settings = Arc::new(settings(config, &config.portals, cpus.len())?);
        let recipe = Arc::new(Recipe {
            devices,
            pools,
            server,
            settings,
            loads: Arc::new(Loads::new(cpus.len())),
            cores: cpus.len() as u16,
            disk_operations_max: mesh.ring.operations_max,
            ready,
        });
        let running =
            Mesh::start(mesh, move |_| Node::new(Arc::clone(&recipe))).map_err(|error| told(&error))?;
        for warning in running.warnings() {
            warn!("{warning}");
        }
        for _ in 0..running.cores() {
            let answer = readiness.recv_timeout(START_TIMEOUT);
            let problem = match answer {
                Ok(Ok(core)) => {
                    info!(core = core.0, "ready");
                    continue;
                }
                Ok(Err(error)) => Mistake::plain(error),
                Err(_) => Mistake::new(
                    "a reactor did not get ready in time".to_owned(),
                    "look at the log for what it waits for: memory, most likely",
                ),
            };
            running.stop();
            running.join();
            return Err(problem);
        }
        let remotes = (0..running.cores()).map(|core| running.remote(Core(core as u16))).collect();
        let target = config.target.iqn.as_str().to_owned();
        let live = Arc::new(Live::new(config, target, remotes, pool_names));
        let mut serving = Serving { running, portals: Vec::new(), luns: served, cpus, memory_bytes, live };
        match serving.serve_volumes(config, ids).and_then(|()| serving.open_doors(config)) {
            Ok(()) => Ok(serving),
            Err(problem) => {
                serving.stop();
                Err(problem)
            }
        }
    }

    /// The units that show volumes: the configuration's, made if they are new, and those that were mapped.
    fn serve_volumes(&mut self, config: &Config, ids: &[LunId]) -> Result<(), Mistake> {
        let target = config.target.iqn.as_str().to_owned();
        for unit in &self.luns {
            self.live.note(Unit {
                target: target.clone(),
                lun: unit.number,
                source: Source::Configuration,
                volume: None,
                spec: unit.spec.clone(),
                bytes: unit.bytes,
                block_bytes: unit.block_bytes,
                physical_block_bytes: unit.physical_block_bytes,
                read_only: unit.read_only,
                removable: config.luns.iter().any(|lun| lun.number == unit.number && lun.spec.removable),
                id: unit.id.0,
                name: unit.name.clone().unwrap_or_default(),
            });
        }
        for (lun, &id) in config.luns.iter().zip(ids) {
            let (Backing::Volume { provisioning, bytes }, Some(volume)) = (&lun.spec.backing, lun.volume())
            else {
                continue;
            };
            let spec = VolumeSpec {
                name: volume.clone(),
                bytes: *bytes,
                block_bytes: lun.spec.block_bytes,
                physical_block_bytes: lun.spec.physical_block_bytes,
                provisioning: *provisioning,
                zero_detect: lun.spec.zero_detect,
                write_cache: lun.spec.write_back,
            };
            match self.live.ask(DATA_POOL, Request::VolumeCreate(spec)) {
                Ok(_) => {}
                Err(Failure::Refused(refusal)) if refusal.against == Against::Exists => {}
                Err(failure) => return Err(failed(&format!("LUN {}", lun.number), &failure)),
            }
            let new =
                self.attach(&target, lun.number, DATA_POOL, &volume, lun.spec.read_only, lun.spec.removable)?;
            if new.geometry.bytes() != *bytes {
                let found = new.geometry.bytes();
                info!(lun = lun.number, volume, found, asked = bytes, "the volume has its own size");
            }
            let added = self.live.add(&new, id.0, Source::Configuration, lun.spec.to_string());
            added.map_err(|failure| failed(&format!("LUN {}", lun.number), &failure))?;
            let naa = hex(&vaai::identity::naa(&id.0));
            self.luns.push(ServedLun {
                bytes: new.geometry.bytes(),
                name: Some(format!("naa.{naa}")),
                ..ServedLun::planned(lun, id)
            });
        }
        self.luns.sort_by_key(|lun| lun.number);
        for pool in self.live.pools() {
            let mappings = match self.live.ask(&pool, Request::Mappings) {
                Ok(Answer::Mappings(mappings)) => mappings,
                Ok(_) => Vec::new(),
                Err(failure) => return Err(failed(&format!("pool {pool}"), &failure)),
            };
            for mapping in mappings.into_iter().filter(|mapping| mapping.target == target) {
                let (lun, volume) = (mapping.lun, &mapping.volume);
                // One that can't be served must not keep the others from it.
                let served = self
                    .attach(&target, lun, &pool, volume, mapping.read_only, mapping.removable)
                    .and_then(|new| {
                        self.live.unit_add(&new).map_err(|failure| failed(&format!("LUN {lun}"), &failure))
                    });
                if let Err(problem) = served {
                    warn!(lun, %pool, %volume, "a mapped volume is not served: {problem}");
                }
            }
        }
        Ok(())
    }

    fn attach(
        &self,
        target: &str,
        lun: u16,
        pool: &str,
        volume: &str,
        read_only: bool,
        removable: bool,
    ) -> Result<NewUnit, Mistake> {
        let answer = self.live.ask(pool, Request::Attach { volume: volume.to_owned() });
        match answer.map_err(|failure| failed(&format!("LUN {lun}"), &failure))? {
            Answer::Attached { bdev, geometry, uuid, reservations } => Ok(NewUnit {
                target: target.to_owned(),
                lun,
                volume: VolumeName { pool: pool.to_owned(), volume: volume.to_owned() },
                bdev,
                geometry,
                uuid,
                read_only,
                removable,
                reservations,
            }),
            other => unreachable!("attaching is answered with a device, not {other:?}"),
        }
    }

    fn open_doors(&mut self, config: &Config) -> Result<(), Mistake> {
        let mut listeners = Vec::new();
        for &address in &config.portals {
            let listener = open_door(address).map_err(|error| told(&error))?;
            self.portals.push(listener.local_addr().unwrap_or(address));
            listeners.push(listener);
        }
        if self.portals != config.portals {
            // A port of 0 was asked for: SendTargets must say the real one.
            let settings = Arc::new(settings(config, &self.portals, self.cpus.len())?);
            self.tell_all(|| Message::Reload(Arc::clone(&settings)))?;
        }
        self.tell(Core(0), Message::Open(listeners))
    }

    fn tell(&self, core: Core, message: Message) -> Result<(), Mistake> {
        self.running.remote(core).post(message).map_err(|_| {
            Mistake::new(
                format!("reactor {} does not take messages", core.0),
                "it is stuck: look at the log, and report it",
            )
        })
    }

    fn tell_all(&self, message: impl Fn() -> Message) -> Result<(), Mistake> {
        (0..self.running.cores()).try_for_each(|core| self.tell(Core(core as u16), message()))
    }

    /// Takes what may change while it runs.
    ///
    /// # Errors
    /// When the new settings can't be used; the old ones hold.
    pub fn reload(&self, config: &Config) -> Result<(), Mistake> {
        let settings = Arc::new(settings(config, &self.portals, self.cpus.len())?);
        self.tell_all(|| Message::Reload(Arc::clone(&settings)))
    }

    /// Closes the doors, asks the sessions to log out, waits for them, ends the reactors.
    pub fn stop(self) {
        info!(seconds = DRAIN.as_secs(), "stopping: sessions are asked to log out");
        self.running.stop();
        self.running.join();
        info!("stopped");
    }

    /// What each reactor has done.
    pub fn counters(&self) -> Vec<reactor::trace::Counters> {
        self.running.counters()
    }
}

/// Serves until a signal ends it. `reload` reads the configuration again.
///
/// # Errors
/// As [`Serving::start`].
pub fn serve(
    config: &Config,
    ids: &[LunId],
    signals: &Signals,
    mut reload: impl FnMut() -> Option<Config>,
) -> Result<(), Mistake> {
    let door = Door::open(&config.socket)?;
    let serving = Serving::start(config, ids)?;
    let backend: Arc<dyn Backend> = Arc::<Live>::clone(&serving.live);
    let control = match Server::start(door, backend) {
        Ok(control) => control,
        Err(problem) => {
            serving.stop();
            return Err(problem);
        }
    };
    // They tell what they are made of.
    for pool in serving.live.pools() {
        if let Err(failure) = serving.live.ask(&pool, Request::Pool) {
            warn!(pool, ?failure, "nobody watches the file systems below it");
        }
    }
    let live = Arc::downgrade(&serving.live);
    let _watch = Watch::start(move || live.upgrade().map(|live| live.members()).unwrap_or_default());
    let _space = space::Watch::start(Arc::downgrade(&serving.live));
    say(&Banner {
        config,
        portals: &serving.portals,
        luns: &serving.luns,
        cpus: &serving.cpus,
        memory_bytes: serving.memory_bytes,
    });
    say(&ready_line(&serving.portals));
    loop {
        match signals.next(SIGNAL_WAIT) {
            None => {}
            Some(Signal::Reload) => {
                if let Some(config) = reload()
                    && let Err(problem) = serving.reload(&config)
                {
                    warn!("the new settings are not used: {problem}");
                }
            }
            Some(_) => break,
        }
    }
    // First, so that no change is cut short by reactors that end.
    control.stop();
    serving.stop();
    Ok(())
}

/// Listens, when the port is free or becomes so in time.
fn open_door(address: SocketAddr) -> Result<Listener, ListenError> {
    let mut tries = PORT_PATIENCE.as_millis() / PORT_PAUSE.as_millis();
    loop {
        match Listener::bind(address, SocketConfig::default()) {
            Err(taken) if taken.error.kind() == std::io::ErrorKind::AddrInUse && tries > 0 => {
                if tries == PORT_PATIENCE.as_millis() / PORT_PAUSE.as_millis() {
                    info!(%address, seconds = PORT_PATIENCE.as_secs(), "the port is taken: waiting for it");
                }
                tries -= 1;
                std::thread::sleep(PORT_PAUSE);
            }
            ended => return ended,
        }
    }
}

/// A lower crate's error, which says itself what to do.
fn told(error: &dyn std::fmt::Display) -> Mistake {
    Mistake::plain(error.to_string())
}

fn cpus(config: &Config) -> Vec<u16> {
    match &config.reactors.cpus {
        Some(list) => list.cpus().to_vec(),
        None => config::usable_cpus().into_iter().take(REACTORS_DEFAULT).collect(),
    }
}

fn failed(place: &str, failure: &Failure) -> Mistake {
    match failure {
        Failure::Refused(refusal) => {
            Mistake::new(refusal.what.clone(), refusal.cure.clone()).at(place.to_owned())
        }
        Failure::Unanswered(who) => {
            Mistake::new(format!("{who} does not answer"), "look at the log for what it waits for")
                .at(place.to_owned())
        }
    }
}

/// A device of its own; `None` for a volume of a pool.
fn bdev_config(lun: &Lun) -> Option<BdevConfig> {
    let kind = match &lun.spec.backing {
        Backing::Ram { bytes } => BdevKind::Ram { bytes: *bytes },
        Backing::Null { bytes } => BdevKind::Null { bytes: *bytes },
        Backing::File { path, bytes } => BdevKind::File { path: path.clone(), bytes: *bytes },
        Backing::Volume { .. } => return None,
    };
    Some(BdevConfig {
        kind,
        block_bytes: lun.spec.block_bytes,
        physical_block_bytes: lun.spec.physical_block_bytes,
        read_only: lun.spec.read_only,
        write_cache: lun.spec.write_back,
    })
}

fn unit(place: usize, lun: &Lun, id: LunId, geometry: Geometry) -> LunConfig {
    LunConfig {
        lun: lun.number,
        bdev: BdevId(place as u16),
        geometry,
        id: id.0,
        serial: hex(&id.0),
        read_only: lun.spec.read_only,
        removable: lun.spec.removable,
        reservations: None,
    }
}

/// Bytes in hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

fn served(config: &Config, units: &[LunConfig]) -> Vec<ServedLun> {
    let of = |unit: &LunConfig| config.luns.iter().find(|lun| lun.number == unit.lun);
    units
        .iter()
        .filter_map(|unit| {
            let naa = hex(&vaai::identity::naa(&unit.id));
            Some(ServedLun {
                bytes: unit.geometry.bytes(),
                physical_block_bytes: unit.geometry.physical_block_bytes,
                name: Some(format!("naa.{naa}")),
                ..ServedLun::planned(of(unit)?, LunId(unit.id))
            })
        })
        .collect()
}

fn mesh_config(config: &Config, cpus: &[u16], files: Vec<std::os::fd::OwnedFd>) -> MeshConfig {
    let memory_bytes = config.reactors.memory_bytes;
    let buffers: u32 = PoolConfig::for_bytes(memory_bytes, 0).counts.iter().sum();
    // A request for a shard holds a buffer, or is one of the bounded parts of a range; see `bdev::router`.
    // Beside them, a shard asks for what it has in hand over stripes' edges, and for what others have.
    let edges = bdev::edge::SWAPS_MAX * (cpus.len() + 2);
    let ranges = bdev::router::RANGES_MAX * bdev::router::PARTS_MAX as usize;
    // And for data of chunks that another core has in memory.
    let data = config.data_memory.map_or(0, |_| SHARD_IOS_MAX);
    let requests_max = buffers as usize + ranges + edges + data + 5 * SHARD_IOS_MAX;
    MeshConfig {
        poll: match config.reactors.poll {
            config::Poll::Busy => PollMode::Busy,
            config::Poll::Adaptive => PollMode::Adaptive { spin: config.reactors.spin },
        },
        buffer_bytes: memory_bytes,
        ring: RingConfig {
            entries: config.io_uring.entries,
            operations_max: SHARD_IOS_MAX,
            watches_max: 2 * iscsi::target::CONNECTIONS_MAX,
            files_max: (files.len() as u32).max(64),
            worker_cpus: config
                .io_uring
                .worker_cpus
                .as_ref()
                .map(|list| list.cpus().iter().map(|&cpu| usize::from(cpu)).collect())
                .unwrap_or_default(),
            workers_max: [
                config.io_uring.bounded_workers_max.unwrap_or(0),
                config.io_uring.unbounded_workers_max.unwrap_or(0),
            ],
        },
        credits: CreditConfig { ordinary: requests_max as u32, urgent: 256, requests_max },
        files,
        ..MeshConfig::new(cpus.iter().map(|&cpu| usize::from(cpu)).collect())
    }
}

fn digest(policy: DigestPolicy) -> negotiate::DigestPolicy {
    match policy {
        DigestPolicy::Never => negotiate::DigestPolicy::Forbid,
        DigestPolicy::Allow => negotiate::DigestPolicy::Allow,
        DigestPolicy::Require => negotiate::DigestPolicy::Require,
    }
}

fn settings(config: &Config, portals: &[SocketAddr], cores: usize) -> Result<Settings, Mistake> {
    let credentials = |credentials: &config::Credentials| Credentials {
        user: credentials.user.clone(),
        secret: Secret::new(credentials.secret.expose().as_bytes()),
    };
    let chap = |chap: &config::Chap| {
        let target = chap.target.as_ref().map(credentials);
        Chap::new(vec![credentials(&chap.initiator)], target, Algorithm::ALL.to_vec())
            .map_err(|error| Mistake::new(format!("CHAP: {error}"), "correct the host's user and secret"))
    };
    let hosts = config
        .hosts
        .iter()
        .map(|host| {
            Ok(HostRule {
                initiators: match &host.iqn {
                    HostName::Any => Initiators::Any,
                    HostName::Named(name) => Initiators::Named(name.clone()),
                },
                targets: Targets::All,
                chap: host.chap.as_ref().map(chap).transpose()?,
            })
        })
        .collect::<Result<Vec<HostRule>, Mistake>>()?;
    let offers = &config.iscsi;
    let negotiation = negotiate::Settings {
        header_digest: digest(offers.header_digest),
        data_digest: digest(offers.data_digest),
        max_recv_data_segment_length: offers.max_recv_data_segment_length,
        max_burst_length: offers.max_burst_length,
        first_burst_length: offers.first_burst_length,
        initial_r2t: offers.initial_r2t,
        immediate_data: offers.immediate_data,
        max_outstanding_r2t: offers.max_outstanding_r2t,
        ..negotiate::Settings::default()
    };
    negotiation.check().map_err(|what| Mistake::new(what.to_owned(), "correct the section [iscsi]"))?;
    Ok(Settings {
        access: Access {
            targets: vec![iscsi::access::Target {
                name: config.target.iqn.clone(),
                alias: config.target.alias.clone(),
                availability: Availability::Online,
            }],
            hosts,
            discovery: config.discovery,
        },
        negotiation,
        portals: portals.to_vec(),
        portal_group: PORTAL_GROUP,
        login_timeout: offers.login_timeout,
        ping_interval: offers.nop_interval.unwrap_or(Duration::MAX),
        ping_timeout: offers.nop_timeout,
        half_open_max: (offers.max_half_open as usize).div_ceil(cores),
        sessions_max: offers.max_sessions as usize,
    })
}
