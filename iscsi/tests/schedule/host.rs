//! One initiator port, and what it does.

mod answers;

use crate::chain;
use crate::orders::{APTPL, Access, HOSTS, Order, SessionId, UNREG};
use crate::task::{Kind, Task, Wish, apart, copy_list, other, same_cdb, swap_cdb, unmap};
use crate::tokens::{self, Made, Rod};
use crate::world::{Asks, BLOCK, INITIATOR, Initiator, cdb16, data_out_header};
use crate::{Image, REGION, Stage, block, itt_of};
use bdev::io::ATOMIC_GRANULE_BYTES;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::IoSlice;
use std::time::Duration;

/// A function that waits for its answer, and the tasks that are gone by then.
#[derive(Debug)]
pub(crate) struct Function {
    tasks: Vec<u32>,
    /// Unit 0's reset, as an order.
    reset: Option<u32>,
}

#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub(crate) enum State {
    Gone,
    LoggingIn,
    LoggedIn,
    LoggingOut,
}

/// One initiator port, over all its connections.
pub(crate) struct Host {
    number: u8,
    /// Its first block.
    first: u64,
    /// The units have blocks of their own; otherwise both show the same.
    is_apart: bool,
    session: u32,
    asks: Asks,
    pub(crate) on: Initiator,
    pub(crate) state: State,
    pub(crate) tasks: BTreeMap<u32, Task>,
    pub(crate) functions: BTreeMap<u32, Function>,
    /// Aborted and answered.
    gone: BTreeSet<u32>,
    /// Data-Out that are asked for and not sent yet.
    pub(crate) owed: VecDeque<(u32, u32, usize, usize)>,
    /// What may be in each block, by unit.
    may_be: [Vec<BTreeSet<u64>>; 2],
    /// The same, without what is only known from having been read: after the program's end it may be otherwise.
    may_be_kept: [Vec<BTreeSet<u64>>; 2],
    /// What may be there at some time since they were opened.
    pub(crate) windows: BTreeMap<u64, Window>,
    /// Tokens that are to be asked for.
    rods: VecDeque<Rod>,
    /// Requests for zeroes of older sessions, which the disk has begun: core and tag.
    older: BTreeSet<(usize, u64)>,
    /// Writes that found no space: unit, first block, blocks.
    retries: VecDeque<(u8, u64, u64)>,
    /// Such writes that are under way again.
    retried: BTreeSet<u32>,
}

/// What may be in a range while it is open.
#[derive(Clone, Debug)]
pub(crate) struct Window {
    pub(crate) lun: u8,
    pub(crate) at: u64,
    pub(crate) may_be: Vec<BTreeSet<u64>>,
}

impl Host {
    pub(crate) fn new(number: u8, asks: Asks, on: Initiator, (base, is_apart): (u64, bool)) -> Host {
        Host {
            number,
            first: base + u64::from(number) * REGION,
            is_apart,
            session: 0,
            asks,
            on,
            state: State::LoggingIn,
            tasks: BTreeMap::new(),
            functions: BTreeMap::new(),
            gone: BTreeSet::new(),
            owed: VecDeque::new(),
            may_be: std::array::from_fn(|_| vec![BTreeSet::from([0]); REGION as usize]),
            may_be_kept: std::array::from_fn(|_| vec![BTreeSet::from([0]); REGION as usize]),
            windows: BTreeMap::new(),
            rods: VecDeque::new(),
            older: BTreeSet::new(),
            retries: VecDeque::new(),
            retried: BTreeSet::new(),
        }
    }

    /// Which blocks a unit shows.
    fn side(&self, lun: u8) -> usize {
        if self.is_apart { usize::from(lun) } else { 0 }
    }

    /// What may be in a range of a unit.
    fn known(&self, lun: u8, at: u64, blocks: u64) -> &[BTreeSet<u64>] {
        &self.may_be[self.side(lun)][at as usize..(at + blocks) as usize]
    }

    fn id(&self) -> SessionId {
        (self.number, self.session)
    }

    fn is_free(&self, lun: u8, at: u64, blocks: u64) -> bool {
        let leaves_it = |(other, first, count): (u8, u64, u64)| {
            self.side(other) != self.side(lun) || apart(at, blocks, first, count)
        };
        self.tasks.values().all(|task| task.kind.touches(task.lun).into_iter().all(leaves_it))
    }

    /// Opens a window of a unit's range.
    fn open(&mut self, id: u64, lun: u8, at: u64, blocks: u64) {
        let may_be = self.known(lun, at, blocks).to_vec();
        self.windows.insert(id, Window { lun, at, may_be });
    }

    /// The same of all blocks, for what outlives the program.
    pub(crate) fn open_all(&mut self, id: u64, lun: u8) {
        let may_be = self.may_be_kept[self.side(lun)].clone();
        self.windows.insert(id, Window { lun, at: 0, may_be });
    }

    pub(crate) fn has_retries(&self) -> bool {
        !self.retries.is_empty()
    }

    pub(crate) fn can_send(&self) -> bool {
        self.state == State::LoggedIn && self.on.carry.is_empty()
    }

    /// Bytes for the target, which may stall over them; the rest waits in `carry`.
    fn say(&mut self, stage: &mut Stage, bytes: &[u8]) {
        self.on.push(&mut stage.world, bytes);
        if self.on.carry.is_empty() {
            stage.orders.begun(self.number);
        }
    }

    pub(crate) fn log_in(&mut self, stage: &mut Stage) {
        stage.orders.asks(self.number);
        let request = self.on.login_request(self.number, self.asks);
        self.say(stage, &request);
    }

    pub(crate) fn connect(&mut self, stage: &mut Stage) {
        let core = stage.random.below(stage.world.nodes.len() as u64) as usize;
        stage.orders.lost(self.id());
        self.session += 1;
        self.on = stage.world.connect_to(core);
        self.on.asks = self.asks;
        self.state = State::LoggingIn;
        for (_, task) in std::mem::take(&mut self.tasks) {
            self.closed(&task.kind);
        }
        self.rods.clear();
        self.functions.clear();
        self.gone.clear();
        self.owed.clear();
        self.retried.clear();
        self.log_in(stage);
    }

    /// The program has ended and is there again, with everybody's connections gone.
    pub(crate) fn restarted(&mut self, stage: &mut Stage) {
        let tasks = std::mem::take(&mut self.tasks);
        for task in tasks.values() {
            self.closed(&task.kind);
        }
        self.rods.clear();
        self.retried.clear();
        self.gone.clear();
        self.may_be.clone_from(&self.may_be_kept);
        self.on = stage.world.connect_to(0);
        self.state = State::Gone;
        self.functions.clear();
        self.owed.clear();
        self.session += 1;
    }

    /// Says that it goes.
    pub(crate) fn log_out(&mut self, stage: &mut Stage) {
        let request = self.on.logout_request();
        self.state = State::LoggingOut;
        self.say(stage, &request);
    }

    fn may_ask(&self) -> bool {
        let window = self.on.max_cmd_sn.wrapping_sub(self.on.cmd_sn).wrapping_add(1);
        self.can_send() && window != 0 && window <= 1 << 31 && self.tasks.len() <= 12
    }

    /// A command of any kind.
    pub(crate) fn command(&mut self, stage: &mut Stage) {
        if !self.may_ask() {
            return;
        }
        let random = &mut stage.random;
        let attribute = [1, 1, 1, 1, 1, 1, 2, 3][random.below(8) as usize];
        let lun = random.one_in(3).into();
        let longest = [8, 40, 400][random.below(3) as usize];
        let blocks = 1 + random.below(longest);
        let at = random.below(REGION - blocks + 1);
        let to = random.below(REGION - blocks + 1);
        let which = random.below(16);
        match which {
            14 => return self.shared_swap(stage, lun, attribute),
            10..14 | 15 if stage.orders_of > 0 && stage.orders.has_room() => {
                return self.order(stage, attribute);
            }
            _ => {}
        }
        if stage.shares && self.is_apart && random.one_in(6) {
            return self.token(stage, (lun, attribute), (at, blocks));
        }
        if which == 15 || !self.is_free(lun, at, blocks) {
            let which = random.below(4);
            return self.send(stage, other(lun, attribute, which));
        }
        let lba = self.first + at;
        match which {
            0..4 => {
                let cdb = cdb16(0x88, lba as u32, blocks as u32).to_vec();
                let kind = Kind::Read { at, blocks, data: Vec::new() };
                let (access, out) = (Access::Read, Vec::new());
                let room = blocks as usize * BLOCK;
                self.send(stage, Wish { lun, attribute, cdb, kind, access, out, room });
            }
            4 if stage.shares && self.is_free(lun, to, blocks) && apart(at, blocks, to, blocks) => {
                let source = if self.is_apart && stage.random.one_in(2) { 1 - lun } else { lun };
                if self.is_free(source, at, blocks) {
                    self.copy(stage, (lun, attribute), source, (at, to, blocks));
                }
            }
            5 => self.swap(stage, (lun, attribute), (at, 1 + blocks % 4)),
            6 => self.write(stage, (lun, attribute), (at, blocks), true),
            7 => self.zero(stage, (lun, attribute), (at, blocks)),
            // It takes space for a while beside what it replaces.
            8 if self.is_apart && !stage.has_space => {
                self.write_atomic(stage, (lun, attribute), (at, blocks));
            }
            _ => self.write(stage, (lun, attribute), (at, blocks), false),
        }
    }

    /// A command, with as much data as may go with it.
    fn send(&mut self, stage: &mut Stage, wish: Wish) {
        let Wish { lun, attribute, cdb, kind, access, out, room } = wish;
        let asks = self.asks;
        let first = out.len().min(asks.first_burst as usize);
        let immediate = if asks.immediate_data { first.min(8192) } else { 0 };
        let unsolicited = if asks.initial_r2t { immediate } else { first };
        let is_final = unsolicited == immediate;
        let direction = match (room, out.len()) {
            (0, 0) => 0,
            (0, _) => 0x20,
            _ => 0x40,
        };
        let flags = direction | if is_final { 0x80 } else { 0 };
        let mut bhs = self.on.command(lun, &cdb, flags, room.max(out.len()));
        bhs[1] = bhs[1] & !7 | attribute;
        let itt = itt_of(&bhs);
        if lun == 0 && !matches!(kind, Kind::Order(_)) {
            stage.orders.watch(self.id(), itt, access, matches!(kind, Kind::Copy { .. }));
        }
        let frame = self.on.frame(bhs, &out[..immediate]);
        let data = out[..unsolicited].to_vec();
        let refused_before = stage.world.disk.refused.len();
        self.tasks.insert(itt, Task { lun, kind, out, refused_before });
        self.say(stage, &frame);
        if !is_final {
            self.send_data(stage, (itt, u32::MAX, immediate, unsolicited), &data);
        }
    }

    /// WRITE, or WRITE SAME.
    fn write(&mut self, stage: &mut Stage, how: (u8, u8), (at, blocks): (u64, u64), same: bool) {
        let stamp = stage.next_stamp();
        self.may_become(how.0, at, blocks, stamp);
        let lba = self.first + at;
        let (cdb, out) = if same {
            (same_cdb(0, lba, blocks), block(stamp).to_vec())
        } else {
            (cdb16(0x8a, lba as u32, blocks as u32).to_vec(), block(stamp).repeat(blocks as usize))
        };
        self.send_change(stage, how, cdb, Kind::Write { at, blocks, stamp }, out);
    }

    /// WRITE ATOMIC, of the whole multiples of 4 KiB around a range, as far as they are its own.
    fn write_atomic(&mut self, stage: &mut Stage, how: (u8, u8), (at, blocks): (u64, u64)) {
        const GRANULE: u64 = ATOMIC_GRANULE_BYTES as u64 / BLOCK as u64;
        let own = self.first.next_multiple_of(GRANULE)..(self.first + REGION) / GRANULE * GRANULE;
        let from = ((self.first + at) / GRANULE * GRANULE).max(own.start);
        let end = (self.first + at + blocks).next_multiple_of(GRANULE).min(own.end);
        let (at, blocks) = (from - self.first, end.saturating_sub(from));
        if blocks == 0 || !self.is_free(how.0, at, blocks) {
            return;
        }
        let stamp = stage.next_stamp();
        self.may_become(how.0, at, blocks, stamp);
        let mut cdb = vec![0x9c, 0];
        cdb.extend(from.to_be_bytes());
        cdb.extend([0, 0]);
        cdb.extend((blocks as u16).to_be_bytes());
        cdb.extend([0, 0]);
        let out = block(stamp).repeat(blocks as usize);
        self.send_change(stage, how, cdb, Kind::Write { at, blocks, stamp }, out);
    }

    fn may_become(&mut self, lun: u8, at: u64, blocks: u64, stamp: u64) {
        self.may_have(lun, at, &vec![BTreeSet::from([stamp]); blocks as usize]);
    }

    /// A range may have this, too, from now on.
    fn may_have(&mut self, lun: u8, at: u64, more: &[BTreeSet<u64>]) {
        let side = self.side(lun);
        for (number, more) in (at..).zip(more) {
            self.may_be[side][number as usize].extend(more);
            self.may_be_kept[side][number as usize].extend(more);
            for window in self.windows.values_mut() {
                let is_same = side == if self.is_apart { usize::from(window.lun) } else { 0 };
                if let Some(may_be) = window.may_be.get_mut(number.wrapping_sub(window.at) as usize)
                    && is_same
                {
                    may_be.extend(more);
                }
            }
        }
    }

    fn send_change(
        &mut self,
        stage: &mut Stage,
        (lun, attribute): (u8, u8),
        cdb: Vec<u8>,
        kind: Kind,
        out: Vec<u8>,
    ) {
        self.send(stage, Wish { lun, attribute, cdb, kind, access: Access::Write, out, room: 0 });
    }

    /// WRITE SAME of zeroes that are sent or not, with UNMAP or without, or UNMAP.
    fn zero(&mut self, stage: &mut Stage, how: (u8, u8), (at, blocks): (u64, u64)) {
        let lba = self.first + at;
        let which = stage.random.below(4);
        let (cdb, out) = match which {
            0 => (same_cdb(0x01, lba, blocks), Vec::new()),
            1 => (same_cdb(0, lba, blocks), vec![0; BLOCK]),
            2 => (same_cdb(0x08, lba, blocks), vec![0; BLOCK]),
            _ => unmap(lba, blocks),
        };
        let before = self.known(how.0, at, blocks).to_vec();
        self.may_become(how.0, at, blocks, 0);
        self.send_change(stage, how, cdb, Kind::Zero { at, blocks, before, unmap: which == 3 }, out);
    }

    fn copy(&mut self, stage: &mut Stage, how: (u8, u8), source: u8, (from, to, blocks): (u64, u64, u64)) {
        let before = self.known(how.0, to, blocks).to_vec();
        let more = self.known(source, from, blocks).to_vec();
        self.may_have(how.0, to, &more);
        let units = (source != how.0).then(|| [source, how.0].map(|lun| stage.ids[usize::from(lun)]));
        let list = copy_list(self.first + from, self.first + to, blocks, units);
        let mut cdb = vec![0; 16];
        (cdb[0], cdb[13]) = (0x83, list.len() as u8);
        self.send_change(stage, how, cdb, Kind::Copy { source, from, to, blocks, before }, list);
    }

    /// Something about tokens: makes one, asks for it, uses one of anybody's.
    fn token(&mut self, stage: &mut Stage, (lun, attribute): (u8, u8), (at, blocks): (u64, u64)) {
        if let Some(rod) = self.rods.pop_front() {
            let cdb = tokens::cdb(0x84, 7, rod.made.id, 1024);
            let (lun, access) = (rod.made.lun, Access::Asking);
            let kind = Kind::Receive { rod, data: Vec::new() };
            return self.send(stage, Wish { lun, attribute, cdb, kind, access, out: Vec::new(), room: 1024 });
        }
        let id = stage.next_stamp();
        let count = stage.tokens.len() as u64;
        if count == 0 || stage.random.one_in(3) {
            let timeout = Duration::from_secs([1, 3, 20][stage.random.below(3) as usize]);
            let out = tokens::populate_list(timeout, self.first + at, blocks);
            let (sent, before) = (stage.world.now, stage.removals[usize::from(lun)]);
            let made = Made { lun, id: id as u32, timeout, sent, before };
            // Windows of snapshots have small numbers.
            let window = 1 << 32 | id;
            self.open(window, lun, at, blocks);
            let cdb = tokens::cdb(0x83, 0x10, id as u32, out.len());
            let (kind, access) = (Kind::Populate { made, window }, Access::Read);
            return self.send(stage, Wish { lun, attribute, cdb, kind, access, out, room: 0 });
        }
        let number = stage.random.below(count.min(6)) as usize;
        let number = stage.tokens.len() - 1 - number;
        let length = stage.tokens[number].rod.may_be.len() as u64;
        let blocks = blocks.min(length);
        let offset = stage.random.below(length - blocks + 1) as usize;
        if !self.is_free(lun, at, blocks) {
            return;
        }
        let deletes = stage.random.one_in(8);
        let removals = stage.removals[usize::from(stage.tokens[number].rod.made.lun)];
        let token = &mut stage.tokens[number];
        let is_late = token.begin_use(deletes, removals);
        let out = tokens::write_list(&token.bytes, deletes, offset as u64, self.first + at, blocks);
        let may_be = token.rod.may_be[offset..offset + blocks as usize].to_vec();
        let before = self.known(lun, at, blocks).to_vec();
        self.may_have(lun, at, &may_be);
        let cdb = tokens::cdb(0x83, 0x11, id as u32, out.len());
        let sent = stage.world.now;
        let kind = Kind::Use { token: number, offset, to: at, before, deletes, sent, is_late };
        self.send_change(stage, (lun, attribute), cdb, kind, out);
    }

    /// Nobody will hear what a token may be.
    fn closed(&mut self, kind: &Kind) {
        if let Kind::Populate { window, .. } = kind {
            self.windows.remove(window);
        }
    }

    /// COMPARE AND WRITE of what is there, or of what never was.
    fn swap(&mut self, stage: &mut Stage, how: (u8, u8), (at, blocks): (u64, u64)) {
        let at = at.min(REGION - blocks);
        let lba = self.first + at;
        // What crosses a piece is several requests, which a plain disk does not hold together.
        if !self.is_apart && lba % 128 + blocks > 128 || !self.is_free(how.0, at, blocks) {
            return;
        }
        let wrong = stage.random.one_in(4).then(|| stage.next_stamp());
        let expected: Vec<u64> = (at..at + blocks)
            .map(|number| wrong.unwrap_or_else(|| self.guess(stage, how.0, number)))
            .collect();
        let stamp = stage.next_stamp();
        self.may_become(how.0, at, blocks, stamp);
        let out = swap_data(&expected, stamp);
        self.send_change(stage, how, swap_cdb(lba, blocks), Kind::Swap { at, expected, stamp }, out);
    }

    /// What is in a block; where one can't look, one of what may be.
    fn guess(&self, stage: &mut Stage, lun: u8, at: u64) -> u64 {
        if let Some(there) = stage.look(self.first + at) {
            return there;
        }
        let may_be = &self.known(lun, at, 1)[0];
        let nth = stage.random.below(may_be.len() as u64) as usize;
        may_be.iter().nth(nth).copied().unwrap_or(0)
    }

    /// The same of blocks that others do it to as well.
    fn shared_swap(&mut self, stage: &mut Stage, lun: u8, attribute: u8) {
        let blocks = 1 + stage.random.below(chain::BLOCKS);
        let side = self.side(lun);
        let at = stage.chains[side].first + stage.random.below(chain::BLOCKS - blocks + 1);
        let nth = stage.random.below(1000);
        let old = if stage.random.one_in(4) { stage.chains[side].any(nth) } else { None };
        let there = |number| stage.look(number).unwrap_or_else(|| stage.chains[side].guess(number));
        let expected: Vec<u64> =
            (at..at + blocks).map(|number| old.unwrap_or_else(|| there(number))).collect();
        let stamp = stage.next_stamp();
        let out = swap_data(&expected, stamp);
        stage.chains[side].begin(stamp, at, expected);
        let kind = Kind::SharedSwap { at, blocks, stamp };
        self.send_change(stage, (lun, attribute), swap_cdb(at, blocks), kind, out);
    }

    /// Something about unit 0's reservations that often makes sense.
    fn order(&mut self, stage: &mut Stage, attribute: u8) {
        let state = stage.orders.guess().clone();
        let random = &mut stage.random;
        let kind = [1, 3, 5, 6, 7, 8][random.below(6) as usize];
        let own = state.keys[usize::from(self.number)];
        let key = if random.one_in(8) { random.below(14) } else { own };
        let mine = 10 + u64::from(self.number);
        let others = (1..HOSTS).map(|nth| state.keys[(usize::from(self.number) + nth) % HOSTS]);
        let victim = if random.one_in(8) { own } else { others.max().unwrap_or(0) };
        let of_all = matches!(state.held, Some((_, None)));
        if self.is_apart && stage.orders_of > 2 && state.held.is_some() && random.one_in(3) {
            let to = random.below(HOSTS as u64) as u8;
            let flags = [0, UNREG, APTPL, UNREG | APTPL][random.below(4) as usize];
            let action_key = if random.one_in(8) { 0 } else { 10 + u64::from(to) };
            return self.hand_on(stage, attribute, (key, action_key), to, flags);
        }
        let whole = |order, opcode| (order, vec![opcode, 0, 0, 0, 0, 0]);
        let (none, which) = (Vec::new(), random.below(12));
        if stage.orders_of == 1 || stage.orders_of == 2 && random.one_in(4) {
            let is_held = state.reserved_by.is_some();
            let (order, cdb) = if is_held && random.one_in(2) {
                whole(Order::Release, 0x17)
            } else {
                whole(Order::Reserve, 0x16)
            };
            return self.send_order(stage, attribute, order, cdb, none);
        }
        let (action, kind, action_key) = match which {
            0 if own != 0 && random.one_in(2) => (0, kind, 0),
            1..4 if own == 0 => (if random.one_in(2) { 6 } else { 0 }, kind, mine),
            0..4 => (1, kind, 0),
            4..6 => (2, state.held.map_or(kind, |(held, _)| if random.one_in(8) { kind } else { held }), 0),
            6 => (3, kind, 0),
            _ => (4 + random.below(2) as u8, kind, if of_all && random.one_in(2) { 0 } else { victim }),
        };
        let mut list = [key.to_be_bytes(), action_key.to_be_bytes(), [0; 8]].concat();
        let persists = self.is_apart && matches!(action, 0 | 6) && !stage.random.one_in(3);
        let flags = if persists { APTPL } else { 0 };
        list[20] = flags;
        let cdb = vec![0x5f, action, kind, 0, 0, 0, 0, 0, 24, 0];
        self.send_order(
            stage,
            attribute,
            Order::Out { action, kind, key, action_key, to: None, flags },
            cdb,
            list,
        );
    }

    /// REGISTER AND MOVE.
    fn hand_on(
        &mut self,
        stage: &mut Stage,
        attribute: u8,
        (key, action_key): (u64, u64),
        to: u8,
        flags: u8,
    ) {
        let mut id = format!("{INITIATOR},i,0x00023d0000{to:02x}").into_bytes();
        id.resize((id.len() + 1).next_multiple_of(4), 0);
        let mut list = [key.to_be_bytes(), action_key.to_be_bytes(), [0; 8]].concat();
        (list[17], list[19], list[23]) = (flags, 1, id.len() as u8 + 4);
        list.extend([0x45, 0, 0, id.len() as u8]);
        list.extend(id);
        let cdb = vec![0x5f, 7, 0, 0, 0, 0, 0, 0, list.len() as u8, 0];
        let order = Order::Out { action: 7, kind: 0, key, action_key, to: Some(to), flags };
        self.send_order(stage, attribute, order, cdb, list);
    }

    fn send_order(&mut self, stage: &mut Stage, attribute: u8, order: Order, cdb: Vec<u8>, out: Vec<u8>) {
        let kind = Kind::Order(stage.orders.begin(self.id(), order));
        self.send(stage, Wish { lun: 0, attribute, cdb, kind, access: Access::Nothing, out, room: 0 });
    }

    /// What found no space is written again when there is some.
    pub(crate) fn retry(&mut self, stage: &mut Stage) {
        if stage.world.disk.full || !self.may_ask() {
            return;
        }
        if let Some((lun, at, blocks)) = self.retries.pop_front()
            && self.is_free(lun, at, blocks)
        {
            self.write(stage, (lun, 1), (at, blocks), false);
            self.retried.insert(self.on.next_itt);
        }
    }

    /// A sequence of Data-Out, now and then with a wrong digest.
    fn send_data(&mut self, stage: &mut Stage, (itt, ttt, from, to): (u32, u32, usize, usize), data: &[u8]) {
        let (mut at, mut data_sn) = (from, 0);
        while at < to {
            let end = to.min(at + 8192);
            let mut frame = self.on.frame(data_out_header(itt, ttt, data_sn, at, end == to), &data[at..end]);
            if self.on.digests && stage.random.one_in(40) {
                *frame.last_mut().unwrap() ^= 1;
            }
            self.say(stage, &frame);
            (at, data_sn) = (end, data_sn + 1);
        }
    }

    pub(crate) fn function(&mut self, stage: &mut Stage) {
        if !self.can_send() || self.functions.len() > 3 {
            return;
        }
        let random = &mut stage.random;
        let lun = u8::from(random.one_in(2));
        let of_lun = |task: &Task| task.lun == lun;
        let all = || self.tasks.iter().filter(|(_, task)| of_lun(task)).map(|(itt, _)| *itt).collect();
        let (function, referenced, tasks): (u8, u32, Vec<u32>) = match random.below(12) {
            0 => (2, u32::MAX, all()),
            1 => (4, u32::MAX, all()),
            2 => (5, u32::MAX, all()),
            3 if random.one_in(3) => (6, u32::MAX, self.tasks.keys().copied().collect()),
            _ => {
                let Some(&itt) = self.tasks.keys().nth(random.below(13) as usize) else { return };
                (1, itt, vec![itt])
            }
        };
        let resets = function == 6 || function == 5 && lun == 0;
        if resets && !stage.orders.has_room() {
            return;
        }
        let reset = resets.then(|| stage.orders.begin(self.id(), Order::Reset));
        let request = self.on.tmf_request(function, lun, referenced);
        self.functions.insert(itt_of(request.first_chunk().unwrap()), Function { tasks, reset });
        self.say(stage, &request);
    }

    /// The connection is gone.
    fn is_dropped(&mut self, stage: &mut Stage) {
        self.state = State::Gone;
        stage.orders.lost(self.id());
    }

    /// What a portal does for it: moves some bytes both ways, closes what is finished.
    pub(crate) fn move_bytes(&mut self, stage: &mut Stage) {
        if self.state == State::Gone {
            return;
        }
        let (core, slot) = (self.on.core, self.on.slot);
        if !stage.world.nodes[core].target.has_connection(slot) {
            return self.is_dropped(stage);
        }
        self.say(stage, &[]);
        for _ in 0..stage.random.below(4) {
            let bytes: Vec<u8> = {
                let mut slices = [IoSlice::new(&[]); 9];
                let count = stage.world.nodes[core].target.transmit(slot, &mut slices);
                let limit = 1 + stage.random.below(40_000) as usize;
                slices[..count].iter().flat_map(|slice| slice.iter().copied()).take(limit).collect()
            };
            if bytes.is_empty() {
                break;
            }
            self.on.received.extend_from_slice(&bytes);
            stage.world.env(core, |target, env| target.sent(slot, bytes.len(), env));
        }
        self.hear(stage);
        if stage.world.nodes[core].target.is_finished(slot) {
            stage.world.env(core, |target, env| target.close_connection(slot, env));
            self.is_dropped(stage);
        }
    }

    /// Closes the connection.
    pub(crate) fn close(&mut self, stage: &mut Stage) {
        let (core, slot) = (self.on.core, self.on.slot);
        stage.world.env(core, |target, env| target.close_connection(slot, env));
        self.is_dropped(stage);
    }

    pub(crate) fn pay(&mut self, stage: &mut Stage) {
        if self.on.carry.is_empty()
            && let Some(owed) = self.owed.pop_front()
            && let Some(task) = self.tasks.get(&owed.0)
        {
            let data = task.out.clone();
            self.send_data(stage, owed, &data);
        }
    }

    /// What is in a unit in the end may be there.
    pub(crate) fn check(&self, lun: u8, image: &Image) {
        for (at, may_be) in (self.first..).zip(&self.may_be[self.side(lun)]) {
            let stamp = image[&at];
            assert!(may_be.contains(&stamp), "{stamp} of {may_be:?} at {at} of unit {lun}");
        }
    }

    /// What a window has seen may be what is there.
    pub(crate) fn check_window(&self, window: &Window, image: &Image, what: &str) {
        for (at, may_be) in (self.first + window.at..).zip(&window.may_be) {
            let stamp = image[&at];
            assert!(may_be.contains(&stamp), "{stamp} of {may_be:?} at {at} of {what}");
        }
    }
}

/// What has to be there, and what replaces it.
fn swap_data(expected: &[u64], stamp: u64) -> Vec<u8> {
    let mut data: Vec<u8> = expected.iter().flat_map(|stamp| block(*stamp)).collect();
    data.extend(block(stamp).repeat(expected.len()));
    data
}
