//! Goal: sockets live and die with their connections, and none is forgotten. Method: a portal on a real reactor, over the
//! disk of `world`; initiators with sockets of their own.
#![allow(clippy::unwrap_used, reason = "a test program")]

mod world;

use iscsi::portal::Portal;
use iscsi::target::{Env, TICK};
use reactor::Core;
use reactor::clock::Time;
use reactor::disk::DiskDone;
use reactor::net::{Listener, SocketConfig};
use reactor::ring::{Ready, Ring};
use reactor::service::{Activity, Cx, Service};
use reactor::start::{Mesh, MeshConfig, Running};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use world::{Asks, Initiator, Lower, Pdu, World, cdb16, pattern};

/// A node of one core.
struct Node {
    is_stuck: Arc<AtomicBool>,
    parts: Option<(World, Portal)>,
    stopping: Option<Time>,
}

impl Node {
    fn with<R>(
        &mut self,
        cx: &mut Cx<'_, Vec<Listener>>,
        act: impl FnOnce(&mut Portal, &mut Env<'_>, &mut Ring) -> R,
    ) -> R {
        let (world, portal) = self.parts.as_mut().unwrap();
        let mut below = Lower { core: 0, disk: &mut world.disk, mail: &mut world.mail, floor: None };
        act(portal, &mut Env { now: cx.now, pool: cx.pool, below: &mut below }, cx.ring)
    }
}

impl Service for Node {
    type Message = Vec<Listener>;

    fn start(&mut self, cx: &mut Cx<'_, Vec<Listener>>) {
        let mut world = World::with(1, cx.pool.free().map(|count| count as u32));
        let portal = Portal::new(world.nodes.remove(0).target);
        self.parts = Some((world, portal));
        cx.timers.set(cx.now + TICK, 0);
    }

    fn on_message(&mut self, cx: &mut Cx<'_, Vec<Listener>>, _: Core, listeners: Vec<Listener>) {
        self.with(cx, |portal, _, ring| portal.open(listeners, ring));
    }

    fn on_disk(&mut self, _: &mut Cx<'_, Vec<Listener>>, _: DiskDone) {}

    fn on_ready(&mut self, cx: &mut Cx<'_, Vec<Listener>>, token: u64, ready: Ready) {
        let mut arrived = Vec::new();
        self.with(cx, |portal, env, ring| {
            portal.on_ready(token, ready, env.now, |stream| arrived.push(stream));
            for stream in arrived {
                portal.adopt(stream, env, ring);
            }
        });
    }

    fn on_timer(&mut self, cx: &mut Cx<'_, Vec<Listener>>, _: u64) {
        cx.timers.set(cx.now + TICK, 0);
        self.with(cx, |portal, env, _| portal.target.tick(env));
    }

    fn turn(&mut self, cx: &mut Cx<'_, Vec<Listener>>) -> Activity {
        let mut busy = self.with(cx, Portal::receive);
        let (world, _) = self.parts.as_mut().unwrap();
        let mut done = Vec::new();
        while !self.is_stuck.load(Ordering::Relaxed) && !world.disk.waiting.is_empty() {
            done.push(world.disk.finish(0).1);
        }
        busy |= !done.is_empty();
        self.with(cx, |portal, env, _| {
            for done in done {
                portal.target.io_done(done, env);
            }
            portal.target.turn(env);
        });
        busy |= self.with(cx, Portal::send);
        if busy { Activity::Busy } else { Activity::Idle }
    }

    fn before_sleep(&mut self, cx: &mut Cx<'_, Vec<Listener>>) {
        self.with(cx, |portal, _, ring| portal.before_sleep(ring));
    }

    fn stopped(&mut self, cx: &mut Cx<'_, Vec<Listener>>) -> bool {
        self.with(cx, |portal, _, ring| portal.shut(ring));
        let since = *self.stopping.get_or_insert(cx.now);
        cx.now.since(since) > Duration::from_secs(1)
    }
}

struct Serving {
    running: Running<Vec<Listener>>,
    address: SocketAddr,
    is_stuck: Arc<AtomicBool>,
}

fn serve() -> Serving {
    let is_stuck = Arc::new(AtomicBool::new(false));
    let stuck = Arc::clone(&is_stuck);
    let cpu = *reactor::pin::allowed_cpus().unwrap().first().unwrap();
    let config = MeshConfig { buffer_bytes: 1 << 20, ..MeshConfig::new(vec![cpu]) };
    let running =
        Mesh::start(config, move |_| Node { is_stuck: Arc::clone(&stuck), parts: None, stopping: None })
            .unwrap();
    let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), SocketConfig::default()).unwrap();
    let address = listener.local_addr().unwrap();
    running.remote(Core(0)).post(vec![listener]).unwrap();
    Serving { running, address, is_stuck }
}

impl Serving {
    fn end(self) {
        self.running.stop();
        self.running.join();
    }
}

/// An initiator with a socket: the one of `world` makes its PDUs.
struct Client {
    stream: TcpStream,
    pdus: Initiator,
}

impl Client {
    fn login(serving: &Serving, isid: u8) -> Client {
        let stream = TcpStream::connect(serving.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let mut client = Client { stream, pdus: World::new().connect() };
        let request = client.pdus.login_request(isid, Asks::default());
        client.send(&request);
        let answer = client.hear(|pdu| pdu.opcode() == 0x23);
        assert_eq!(answer.bhs[36], 0);
        client
    }

    fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// The next PDU of that kind, within two seconds.
    fn hear(&mut self, wanted: impl Fn(&Pdu) -> bool) -> Pdu {
        let end = Instant::now() + Duration::from_secs(2);
        let mut bytes = [0; 4096];
        while Instant::now() < end {
            if let Ok(count) = self.stream.read(&mut bytes) {
                self.pdus.received.extend_from_slice(&bytes[..count]);
            }
            if let Some(pdu) = self.pdus.take_pdus().into_iter().find(&wanted) {
                return pdu;
            }
        }
        panic!("no answer in time");
    }

    fn is_closed(&mut self) -> bool {
        let end = Instant::now() + Duration::from_secs(2);
        while Instant::now() < end {
            if matches!(self.stream.read(&mut [0; 4096]), Ok(0)) {
                return true;
            }
        }
        false
    }
}

/// Goal: the socket of a session that is reinstated is closed, whether it was being read or slept.
#[test]
fn a_reinstated_session_loses_its_socket() {
    let serving = serve();
    for pause in [0, 100] {
        let mut old = Client::login(&serving, 1);
        std::thread::sleep(Duration::from_millis(pause));
        let mut new = Client::login(&serving, 1);
        assert!(old.is_closed());
        let ping = new.pdus.ping_request(b"x");
        new.send(&ping);
        new.hear(|pdu| pdu.opcode() == 0x20);
    }
    serving.end();
}

/// Goal: of several connections that stand still for want of a buffer, each goes on. Method: four, all with more writes
/// than there are buffers for while the disk is stuck, and a ping behind them.
#[test]
fn every_stalled_connection_goes_on() {
    let serving = serve();
    let mut clients: Vec<Client> = (0..4).map(|isid| Client::login(&serving, isid)).collect();
    serving.is_stuck.store(true, Ordering::Relaxed);
    for client in &mut clients {
        let mut bytes = Vec::new();
        for lba in 0..40 {
            let bhs = client.pdus.command(0, &cdb16(0x8a, lba * 16, 16), 0xa0, 8192);
            bytes.extend(client.pdus.frame(bhs, &pattern(8192, 1)));
        }
        bytes.extend(client.pdus.ping_request(b"behind"));
        client.send(&bytes);
    }
    for client in &mut clients {
        client.hear(|pdu| pdu.opcode() == 0x20 && pdu.data == b"behind");
    }
    serving.is_stuck.store(false, Ordering::Relaxed);
    serving.end();
}

/// Goal: a port is closed once its door is shut, though the target goes on for a while.
#[test]
fn a_shut_door_refuses() {
    let serving = serve();
    drop(Client::login(&serving, 1));
    serving.running.stop();
    std::thread::sleep(Duration::from_millis(200));
    assert!(TcpStream::connect(serving.address).is_err());
    serving.running.join();
}
