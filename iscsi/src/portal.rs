//! The driver of one core: sockets on one side, the target's events on the other.
//!
//! A socket is *hot* while it has lately given us bytes: it is read every turn, without asking the kernel first.
//! A cold one is watched by the ring and costs nothing until it is ready. Everything a turn has completed for a
//! connection leaves in one gathered send. Invariant: an open socket is hot, stalled, or watched for reading,
//! unless it is parked: the target wants no input from it because it does not read our answers. Then it is dirty or
//! watched for writing, and each send looks whether it is to be read again.

use crate::connection::Phase;
use crate::receive::Feed;
use crate::target::{CONNECTIONS_MAX, Env, Target};
use crate::transmit::{FEW_SLICES, SLICES_MAX};
use reactor::clock::Time;
use reactor::net::{Listener, Moved, Stream};
use reactor::ring::{Interest, Ready, Ring, WatchId};
use reactor::slots::Slot;
use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::time::Duration;
use tracing::{debug, warn};

/// Bytes that one receive may bring; what of them can't be used at once is kept by the socket.
const RECEIVE_BYTES: usize = 256 << 10;

/// What one receive brings behind data that go to their buffer directly: some headers. More of these data would be copied once
/// more.
const BEHIND_DIRECT_BYTES: usize = 4 << 10;

/// Receives on one socket in one turn, so that a flood on one doesn't keep the others waiting.
const RECEIVES_PER_TURN: usize = 4;

/// Sends on one socket in one turn.
const SENDS_PER_TURN: usize = 8;

/// A socket that gave nothing for this long is watched instead of read every turn.
const COLD_AFTER: Duration = Duration::from_millis(1);

/// Connections accepted in one turn.
const ACCEPTS_PER_TURN: usize = 32;

/// A listener that found no file descriptor or memory is left alone for this long.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Tokens with this bit name listeners, all others connections.
const LISTENER_TOKEN: u64 = 1 << 63;

/// Sends what a connection has to say, as much as `SLICES` slices can carry; `None`: nothing.
fn transmit<const SLICES: usize>(
    target: &mut Target,
    slot: Slot,
    stream: &Stream,
) -> Option<io::Result<Moved>> {
    let mut slices = [IoSlice::new(&[]); SLICES];
    let count = target.transmit(slot, &mut slices);
    (count > 0).then(|| stream.send(&slices[..count]))
}

#[derive(Debug)]
struct Socket {
    slot: Slot,
    stream: Stream,
    read_watch: Option<WatchId>,
    write_watch: Option<WatchId>,
    is_hot: bool,
    is_stalled: bool,
    is_parked: bool,
    heard: Time,
    /// Received, but the target had no buffer for it.
    carry: Vec<u8>,
}

#[derive(Debug)]
struct Door {
    listener: Listener,
    watch: Option<WatchId>,
    paused_until: Time,
}

/// One core's sockets and target.
#[derive(Debug)]
pub struct Portal {
    /// The protocol.
    pub target: Target,
    doors: Vec<Door>,
    sockets: Vec<Option<Socket>>,
    hot: Vec<Slot>,
    /// Each once, in the order in which they are retried.
    stalled: VecDeque<Slot>,
    received: Box<[u8]>,
    /// System calls that sent, and that received.
    pub sends: u64,
    /// See `sends`.
    pub receives: u64,
}

impl Portal {
    /// A portal without listeners.
    pub fn new(target: Target) -> Portal {
        Portal {
            target,
            doors: Vec::new(),
            sockets: Vec::new(),
            hot: Vec::new(),
            stalled: VecDeque::new(),
            received: vec![0; RECEIVE_BYTES].into_boxed_slice(),
            sends: 0,
            receives: 0,
        }
    }

    /// Opens the doors: connections come in from now on.
    pub fn open(&mut self, listeners: Vec<Listener>, ring: &mut Ring) {
        self.doors = listeners
            .into_iter()
            .map(|listener| Door { listener, watch: None, paused_until: Time::ZERO })
            .collect();
        self.watch_doors(ring, Time::NEVER);
    }

    /// Closes the doors. Connections stay.
    pub fn shut(&mut self, ring: &mut Ring) {
        // A watch keeps a listener open in the kernel, and connections would come to nobody.
        self.doors.drain(..).filter_map(|door| door.watch).for_each(|watch| ring.unwatch(watch));
    }

    fn watch_doors(&mut self, ring: &mut Ring, now: Time) {
        for (index, door) in self.doors.iter_mut().enumerate() {
            if door.watch.is_none() && now >= door.paused_until {
                let token = LISTENER_TOKEN | index as u64;
                door.watch = ring.watch(&door.listener, token, Interest::Readable);
            }
        }
    }

    /// A watched socket is ready. New connections are handed to `arrived`, which finds a core for each.
    pub fn on_ready(&mut self, token: u64, ready: Ready, now: Time, arrived: impl FnMut(Stream)) {
        if token & LISTENER_TOKEN != 0 {
            if let Some(door) = self.doors.get_mut((token & !LISTENER_TOKEN) as usize) {
                door.watch = None;
                if let Err(error) = door.listener.accept(ACCEPTS_PER_TURN, arrived) {
                    warn!(%error, "a connection could not be accepted");
                    door.paused_until = now + ACCEPT_PAUSE;
                }
            }
            return;
        }
        let slot = Slot::from_bits(token);
        let Some(socket) = self.socket(slot) else { return };
        if ready.readable && socket.read_watch.take().is_some() {
            socket.heard = now;
            self.heat(slot);
        }
        if ready.writable
            && let Some(socket) = self.socket(slot)
            && socket.write_watch.take().is_some()
        {
            self.target.mark_dirty(Some(slot));
        }
    }

    /// Takes a connection in. At the bound of half-open ones the oldest of those makes room.
    pub fn adopt(&mut self, stream: Stream, env: &mut Env<'_>, ring: &mut Ring) {
        let (Ok(local), Ok(peer)) = (stream.local_addr(), stream.peer_addr()) else { return };
        self.drop_closed(ring);
        if let Some(oldest) = self.target.half_open_over_bound() {
            debug!("too many half-open connections: the oldest goes");
            self.close(oldest, env, ring);
        }
        let Some(slot) = self.target.accept(local, peer, env.now) else {
            warn!(%peer, connections = CONNECTIONS_MAX, "too many connections: one is turned away");
            return;
        };
        if self.sockets.len() <= slot.index() {
            self.sockets.resize_with(slot.index() + 1, || None);
        }
        self.sockets[slot.index()] = Some(Socket {
            slot,
            stream,
            read_watch: None,
            write_watch: None,
            is_hot: false,
            is_stalled: false,
            is_parked: false,
            heard: env.now,
            carry: Vec::new(),
        });
        self.heat(slot);
    }

    fn socket(&mut self, slot: Slot) -> Option<&mut Socket> {
        self.sockets.get_mut(slot.index())?.as_mut().filter(|socket| socket.slot == slot)
    }

    fn heat(&mut self, slot: Slot) {
        if let Some(socket) = self.socket(slot)
            && !socket.is_hot
        {
            socket.is_hot = true;
            self.hot.push(slot);
        }
    }

    /// Sockets that a turn looks at.
    pub fn hot(&self) -> usize {
        self.hot.len()
    }

    /// Receives on hot sockets. Whether anything came.
    pub fn receive(&mut self, env: &mut Env<'_>, ring: &mut Ring) -> bool {
        let mut any = self.retry_stalled(env, ring);
        let mut index = 0;
        while index < self.hot.len() {
            let slot = self.hot[index];
            let (came, stays) = self.receive_one(slot, env, ring);
            any |= came;
            if stays {
                index += 1;
            } else {
                self.hot.swap_remove(index);
                if let Some(socket) = self.socket(slot) {
                    socket.is_hot = false;
                }
            }
        }
        if !self.doors.is_empty() {
            self.watch_doors(ring, env.now);
        }
        any
    }

    /// Whether bytes came, and whether the socket stays hot.
    fn receive_one(&mut self, slot: Slot, env: &mut Env<'_>, ring: &mut Ring) -> (bool, bool) {
        let mut came = false;
        for _ in 0..RECEIVES_PER_TURN {
            if !self.target.wants_input(slot) {
                if let Some(socket) = self.socket(slot) {
                    socket.is_parked = true;
                }
                return (came, false);
            }
            let Some(socket) = self
                .sockets
                .get_mut(slot.index())
                .and_then(Option::as_mut)
                .filter(|socket| socket.slot == slot)
            else {
                return (came, false);
            };
            self.receives += 1;
            let (moved, direct_bytes) = match self.target.direct(slot) {
                Some(direct) => {
                    let bytes = direct.len();
                    let behind = &mut self.received[..BEHIND_DIRECT_BYTES];
                    (socket.stream.recv(&mut [IoSliceMut::new(direct), IoSliceMut::new(behind)]), bytes)
                }
                None => (socket.stream.recv(&mut [IoSliceMut::new(&mut self.received)]), 0),
            };
            let bytes = match moved {
                Ok(Moved::Bytes(bytes)) => bytes,
                Ok(Moved::Blocked) => {
                    if env.now.since(socket.heard) < COLD_AFTER {
                        return (came, true);
                    }
                    let watch = ring.watch(&socket.stream, slot.to_bits(), Interest::Readable);
                    socket.read_watch = watch;
                    return (came, watch.is_none());
                }
                Ok(Moved::End) => {
                    self.close(slot, env, ring);
                    return (true, false);
                }
                Err(error) => {
                    debug!(%error, "receive");
                    self.close(slot, env, ring);
                    return (true, false);
                }
            };
            came = true;
            socket.heard = env.now;
            let direct_part = bytes.min(direct_bytes);
            if direct_part > 0 {
                self.target.direct_filled(slot, direct_part, env);
            }
            let rest = bytes - direct_part;
            if rest > 0
                && let Feed::Stalled { taken } = self.target.feed(slot, &self.received[..rest], env)
            {
                let kept = &self.received[taken..rest];
                if let Some(socket) = self.sockets.get_mut(slot.index()).and_then(Option::as_mut) {
                    socket.carry.extend_from_slice(kept);
                }
                self.stall(slot);
                return (true, false);
            }
            if self.target.is_stalled(slot) {
                self.stall(slot);
                return (true, false);
            }
            let room = if direct_bytes > 0 { BEHIND_DIRECT_BYTES } else { self.received.len() };
            if rest < room {
                // All that was there, most likely; the next turn finds out.
                return (true, true);
            }
        }
        (came, true)
    }

    fn stall(&mut self, slot: Slot) {
        if let Some(socket) = self.socket(slot)
            && !socket.is_stalled
        {
            socket.is_stalled = true;
            self.stalled.push_back(slot);
        }
    }

    /// Tries again with what was kept when there was no buffer.
    fn retry_stalled(&mut self, env: &mut Env<'_>, ring: &mut Ring) -> bool {
        let mut any = false;
        for _ in 0..self.stalled.len() {
            let Some(slot) = self.stalled.pop_front() else { break };
            let Some(socket) = self.socket(slot) else { continue };
            socket.is_stalled = false;
            let mut carry = std::mem::take(&mut socket.carry);
            let taken = match self.target.feed(slot, &carry, env) {
                Feed::Done => carry.len(),
                Feed::Stalled { taken } => taken,
            };
            any |= taken > 0;
            if taken == carry.len() {
                // A stall is rare: its memory is not kept.
                carry = Vec::new();
            } else {
                carry.drain(..taken);
            }
            let is_stalled = self.target.is_stalled(slot);
            if let Some(socket) = self.socket(slot) {
                socket.carry = carry;
            }
            if is_stalled {
                self.stall(slot);
            } else if self.target.is_finished(slot) {
                self.close(slot, env, ring);
            } else {
                self.heat(slot);
            }
        }
        any
    }

    /// Sends what has gathered. Whether anything left.
    pub fn send(&mut self, env: &mut Env<'_>, ring: &mut Ring) -> bool {
        let mut any = false;
        self.drop_closed(ring);
        // Those that become dirty meanwhile have their turn next time.
        for _ in 0..self.target.dirty_count() {
            let Some(slot) = self.target.next_dirty() else { break };
            any |= self.send_one(slot, env, ring);
        }
        any
    }

    fn send_one(&mut self, slot: Slot, env: &mut Env<'_>, ring: &mut Ring) -> bool {
        let mut any = false;
        if self.target.is_finished(slot) {
            // A broken one may have much to say, and its tasks more: none of that is for anybody now.
            self.close(slot, env, ring);
            return true;
        }
        for round in 0..=SENDS_PER_TURN {
            let Some(socket) = self
                .sockets
                .get_mut(slot.index())
                .and_then(Option::as_mut)
                .filter(|socket| socket.slot == slot)
            else {
                return any;
            };
            if socket.write_watch.is_some() {
                return any;
            }
            if round == SENDS_PER_TURN {
                self.target.mark_dirty(Some(slot));
                return any;
            }
            // Making room for slices costs something too, and most have little to say.
            let moved = if self.target.slices(slot) <= FEW_SLICES {
                transmit::<FEW_SLICES>(&mut self.target, slot, &socket.stream)
            } else {
                transmit::<SLICES_MAX>(&mut self.target, slot, &socket.stream)
            };
            let Some(moved) = moved else { break };
            self.sends += 1;
            match moved {
                Ok(Moved::Bytes(bytes)) => {
                    any = true;
                    self.target.sent(slot, bytes, env);
                }
                Ok(Moved::Blocked | Moved::End) => {
                    self.target.blocked(slot, env.now);
                    socket.write_watch = ring.watch(&socket.stream, slot.to_bits(), Interest::Writable);
                    if socket.write_watch.is_none() {
                        // No place for a watch: the next turn tries again.
                        self.target.mark_dirty(Some(slot));
                    }
                    break;
                }
                Err(error) => {
                    debug!(%error, "send");
                    self.close(slot, env, ring);
                    return true;
                }
            }
        }
        if self.target.is_finished(slot) {
            self.close(slot, env, ring);
            return true;
        }
        self.unpark(slot);
        any
    }

    /// If the initiator reads again, so do we.
    fn unpark(&mut self, slot: Slot) {
        if self.socket(slot).is_some_and(|socket| socket.is_parked)
            && self.target.wants_input(slot)
            && let Some(socket) = self.socket(slot)
        {
            socket.is_parked = false;
            self.heat(slot);
        }
    }

    /// Closes the sockets of connections that the target has ended.
    fn drop_closed(&mut self, ring: &mut Ring) {
        while let Some(slot) = self.target.next_closed() {
            self.drop_socket(slot, ring);
        }
    }

    fn drop_socket(&mut self, slot: Slot, ring: &mut Ring) {
        if self.socket(slot).is_some()
            && let Some(socket) = self.sockets[slot.index()].take()
        {
            // A watch keeps the socket open in the kernel.
            socket.read_watch.into_iter().chain(socket.write_watch).for_each(|watch| ring.unwatch(watch));
        }
    }

    /// The reactor is about to sleep: hot sockets are watched from here on.
    pub fn before_sleep(&mut self, ring: &mut Ring) {
        let mut index = 0;
        while index < self.hot.len() {
            let slot = self.hot[index];
            let watched = match self.socket(slot) {
                Some(socket) => {
                    socket.read_watch = ring.watch(&socket.stream, slot.to_bits(), Interest::Readable);
                    socket.is_hot = socket.read_watch.is_none();
                    !socket.is_hot
                }
                None => true,
            };
            if watched {
                self.hot.swap_remove(index);
            } else {
                index += 1;
            }
        }
    }

    /// Closes a connection and its socket.
    pub fn close(&mut self, slot: Slot, env: &mut Env<'_>, ring: &mut Ring) {
        self.drop_socket(slot, ring);
        self.target.close_connection(slot, env);
    }

    /// Closes what is left: the time to log out is over.
    pub fn close_all(&mut self, env: &mut Env<'_>, ring: &mut Ring) {
        let slots: Vec<Slot> = self.sockets.iter().flatten().map(|socket| socket.slot).collect();
        for slot in slots {
            self.close(slot, env, ring);
        }
    }

    /// Connections in full feature phase.
    pub fn logged_in(&self) -> usize {
        self.target
            .connections
            .iter()
            .filter(|(_, connection)| {
                matches!(connection.phase, Phase::FullFeature { .. } | Phase::Discovery)
            })
            .count()
    }
}
