//! What reservations unit 0 may have, while orders to change them are under way: every state that some order of those
//! that are not answered yet leads to. An answer rules out the states in which it would have been another.
//!
//! A command is stopped, or not, by what its core's replica has when it begins. That is one of these states then: what
//! was answered every replica has made, what was not it may have made.

use std::collections::{BTreeMap, BTreeSet};

pub(crate) const HOSTS: usize = 3;

/// What is reserved outlives the program.
pub(crate) const APTPL: u8 = 1;
/// REGISTER AND MOVE ends who moves it, too.
pub(crate) const UNREG: u8 = 2;

/// Orders that may be under way at once: more would be more states than there is time for.
const UNDER_WAY_MAX: usize = 4;

/// A host, and which of its sessions.
pub(crate) type SessionId = (u8, u32);

/// All keys in ascending order, and the key and type of the reservation: 0 if all registrants hold it.
pub(crate) type SeenReservations = (Vec<u64>, Option<(u64, u8)>);

/// A service action, or what else changes reservations.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Order {
    Out { action: u8, kind: u8, key: u64, action_key: u64, to: Option<u8>, flags: u8 },
    Reserve,
    Release,
    Reset,
}

/// What a command needs of a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Nothing,
    /// Only RESERVE stops it.
    Asking,
    Read,
    Write,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    Good,
    Conflict,
    Bad(u32),
}

#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct State {
    /// 0: not registered.
    pub(crate) keys: [u64; HOSTS],
    /// Type, and who holds it; `None`: all registrants.
    pub(crate) held: Option<(u8, Option<u8>)>,
    pub(crate) reserved_by: Option<SessionId>,
    /// Registrations and the reservation outlive the program.
    persists: bool,
}

/// What an order came to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Made {
    end: End,
    tells: BTreeSet<(u8, u16)>,
    preempted: BTreeSet<u8>,
}

/// A state, and what those orders came to that led to it and are not answered.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Config {
    state: State,
    made: BTreeMap<u32, Made>,
}

#[derive(Debug)]
struct Pending {
    by: SessionId,
    order: Order,
    /// Another's RESERVE may have stopped it before it was an order.
    may_be_stopped: bool,
    sent_at: u64,
    /// Unit attentions that were heard because of it.
    heard: BTreeSet<(u8, u16)>,
    /// Heard while it was under way: its own may have been told with another's.
    merged: BTreeSet<(u8, u16)>,
}

/// A command, and what reservations may have meant to it.
#[derive(Debug)]
struct Watch {
    by: SessionId,
    access: Access,
    may_pass: bool,
    may_stop: bool,
    /// When it was about to be sent: it has not begun before.
    sent_at: u64,
    /// When it had begun at the latest.
    begun_at: Option<u64>,
    /// It asks again later: a copy, for both of its units.
    asks_again: bool,
}

/// The model of unit 0's reservations.
#[derive(Debug)]
pub(crate) struct Orders {
    configs: BTreeSet<Config>,
    pending: BTreeMap<u32, Pending>,
    dead: BTreeSet<SessionId>,
    watches: BTreeMap<(u8, u32), Watch>,
    /// Unit attentions of answered orders that may still be heard, and when those were answered.
    owed: Vec<((u8, u16), u64)>,
    /// Those that are certain, until they are heard or may have gone with a task that was aborted.
    must: Vec<((u8, u16), u64)>,
    /// When each host's session was there; `None`: it is not.
    entered_at: [Option<u64>; HOSTS],
    /// When a task of each host went last without an answer.
    excused_at: [u64; HOSTS],
    /// When each host asked for its session.
    asked_at: [u64; HOSTS],
    ids: u32,
    now: u64,
}

/// What an answer to an order meant.
#[derive(Debug, Default)]
pub(crate) struct Meant {
    /// Who was preempted, and has lost what had begun before this.
    pub(crate) preempted: Vec<(u8, u64)>,
}

impl State {
    fn holds(&self, host: u8) -> bool {
        match self.held {
            None => false,
            Some((_, None)) => self.keys[usize::from(host)] != 0,
            Some((_, Some(holder))) => holder == host,
        }
    }

    fn tell_registrants(&self, but: u8, code: u16, made: &mut Made) {
        let registered = (0..HOSTS as u8).filter(|&host| self.keys[usize::from(host)] != 0);
        made.tells.extend(registered.filter(|&host| host != but).map(|host| (host, code)));
    }

    fn make(&mut self, by: SessionId, order: Order) -> Made {
        let mut made = Made { end: End::Good, tells: BTreeSet::new(), preempted: BTreeSet::new() };
        made.end = match order {
            Order::Reset => {
                self.reserved_by = None;
                End::Good
            }
            Order::Release => {
                self.reserved_by = self.reserved_by.filter(|holder| *holder != by);
                End::Good
            }
            Order::Reserve => self.reserve(by),
            Order::Out { action: 7, key, action_key, to: Some(to), flags, .. } => {
                self.hand_on(by.0, (key, action_key), to, flags)
            }
            Order::Out { action, kind, key, action_key, flags, .. } => {
                let had = self.keys[usize::from(by.0)];
                let end = self.out(by.0, (action, kind, key, action_key), &mut made);
                // Who ends what is not registered changes nothing.
                if end == End::Good && matches!(action, 0 | 6) && (had != 0 || action_key != 0) {
                    self.persists = flags & APTPL != 0;
                }
                end
            }
        };
        made
    }

    /// Beside registrants as CRH=1 has it.
    fn reserve(&mut self, by: SessionId) -> End {
        let is_let_in = match self.held {
            None => false,
            Some((1 | 3, holder)) => holder == Some(by.0),
            Some(_) => self.keys[usize::from(by.0)] != 0,
        };
        if self.keys != [0; HOSTS] {
            return if is_let_in { End::Good } else { End::Conflict };
        }
        if self.reserved_by.is_some_and(|holder| holder != by) {
            return End::Conflict;
        }
        self.reserved_by = Some(by);
        End::Good
    }

    fn out(&mut self, me: u8, (action, kind, key, action_key): (u8, u8, u64, u64), made: &mut Made) -> End {
        let own = self.keys[usize::from(me)];
        let key_is_right = match action {
            6 => true,
            0 => own == key,
            _ => own != 0 && own == key,
        };
        if self.reserved_by.is_some() || !key_is_right {
            return End::Conflict;
        }
        let holder = if kind >= 7 { None } else { Some(me) };
        match action {
            0 | 6 => self.register(me, action_key, made),
            1 if self.held.is_none() => self.held = Some((kind, holder)),
            1 if self.holds(me) && self.held.is_some_and(|(held, _)| held == kind) => {}
            1 => return End::Conflict,
            2 if !self.holds(me) => {}
            2 if self.held.is_some_and(|(held, _)| held != kind) => return End::Bad(0x5_2604),
            2 => {
                if kind >= 5 {
                    self.tell_registrants(me, 0x2a04, made);
                }
                self.held = None;
            }
            3 => {
                self.tell_registrants(me, 0x2a03, made);
                self.keys = [0; HOSTS];
                self.held = None;
            }
            _ => return self.preempt(me, kind, action_key, made),
        }
        End::Good
    }

    /// REGISTER AND MOVE: the reservation goes to another host, with a key for it; nobody is told.
    fn hand_on(&mut self, me: u8, (key, action_key): (u64, u64), to: u8, flags: u8) -> End {
        let own = self.keys[usize::from(me)];
        if self.reserved_by.is_some() || own == 0 || own != key {
            return End::Conflict;
        }
        let Some((kind, holder)) = self.held else { return End::Bad(0x5_2400) };
        if holder != Some(me) {
            return End::Conflict;
        }
        if action_key == 0 || to == me {
            return End::Bad(0x5_2600);
        }
        if flags & UNREG != 0 {
            self.keys[usize::from(me)] = 0;
        }
        self.keys[usize::from(to)] = action_key;
        self.held = Some((kind, Some(to)));
        self.persists = flags & APTPL != 0;
        End::Good
    }

    fn register(&mut self, me: u8, key: u64, made: &mut Made) {
        let held_it = matches!(self.held, Some((_, Some(holder))) if holder == me);
        self.keys[usize::from(me)] = key;
        if key != 0 {
            return;
        }
        match self.held {
            Some((kind, _)) if held_it => {
                if kind >= 5 {
                    self.tell_registrants(me, 0x2a04, made);
                }
                self.held = None;
            }
            Some((_, None)) if self.keys == [0; HOSTS] => self.held = None,
            _ => {}
        }
    }

    fn preempt(&mut self, me: u8, kind: u8, action_key: u64, made: &mut Made) -> End {
        let of_all = matches!(self.held, Some((_, None)));
        if action_key == 0 && !of_all {
            return End::Bad(0x5_2600);
        }
        let is_named = |host: u8| {
            let key = self.keys[usize::from(host)];
            key != 0 && (key == action_key || action_key == 0)
        };
        let named: Vec<u8> = (0..HOSTS as u8).filter(|&host| is_named(host)).collect();
        if named.is_empty() {
            return End::Conflict;
        }
        let takes = match self.held {
            Some((_, None)) => action_key == 0,
            Some((_, Some(holder))) => named.contains(&holder),
            None => false,
        };
        for host in named {
            if !(takes && host == me) {
                self.keys[usize::from(host)] = 0;
            }
            if host != me {
                made.tells.insert((host, 0x2a05));
                made.preempted.insert(host);
            }
        }
        if takes {
            if self.held.is_some_and(|(held, _)| held != kind) {
                self.tell_registrants(me, 0x2a04, made);
            }
            self.held = Some((kind, if kind >= 7 { None } else { Some(me) }));
        } else if self.keys == [0; HOSTS] {
            self.held = None;
        }
        End::Good
    }

    fn lets(&self, by: SessionId, access: Access) -> bool {
        if access == Access::Nothing {
            return true;
        }
        if self.reserved_by.is_some_and(|holder| holder != by) {
            return false;
        }
        let is_registered = self.keys[usize::from(by.0)] != 0;
        match self.held {
            None => true,
            Some(_) if access == Access::Asking => true,
            Some((1 | 5 | 7, _)) if access == Access::Read => true,
            Some((1 | 3, holder)) => holder == Some(by.0),
            Some(_) => is_registered,
        }
    }
}

impl Orders {
    pub(crate) fn new() -> Orders {
        Orders {
            configs: BTreeSet::from([Config::default()]),
            pending: BTreeMap::new(),
            dead: BTreeSet::new(),
            watches: BTreeMap::new(),
            owed: Vec::new(),
            must: Vec::new(),
            entered_at: [None; HOSTS],
            excused_at: [0; HOSTS],
            asked_at: [0; HOSTS],
            ids: 0,
            now: 0,
        }
    }

    pub(crate) fn has_room(&self) -> bool {
        self.pending.len() < UNDER_WAY_MAX
    }

    /// One of the states, to make orders of that mean something.
    pub(crate) fn guess(&self) -> &State {
        &self.configs.first().expect("there is always a state").state
    }

    /// What an order that is under way is called.
    pub(crate) fn name(&self, id: u32) -> Option<&'static str> {
        Some(match self.pending.get(&id)?.order {
            Order::Out { action: 0 | 6, .. } => "REGISTER",
            Order::Out { action: 1, .. } => "RESERVE",
            Order::Out { action: 2, .. } => "RELEASE",
            Order::Out { action: 3, .. } => "CLEAR",
            Order::Out { action: 4, .. } => "PREEMPT",
            Order::Out { action: 7, .. } => "REGISTER AND MOVE",
            Order::Out { .. } => "PREEMPT AND ABORT",
            Order::Reserve => "RESERVE(6)",
            Order::Release => "RELEASE(6)",
            Order::Reset => "reset",
        })
    }

    /// An order is about to be sent.
    pub(crate) fn begin(&mut self, by: SessionId, order: Order) -> u32 {
        self.ids += 1;
        self.now += 1;
        let pending = Pending {
            by,
            order,
            may_be_stopped: false,
            sent_at: self.now,
            heard: BTreeSet::new(),
            merged: BTreeSet::new(),
        };
        self.pending.insert(self.ids, pending);
        self.spread();
        self.ids
    }

    /// All states that follow, and what they mean to commands that may begin now.
    fn spread(&mut self) {
        let mut new: Vec<Config> = self.configs.iter().cloned().collect();
        while let Some(config) = new.pop() {
            let mut follow = |next: Config| {
                if self.configs.insert(next.clone()) {
                    new.push(next);
                }
            };
            if config.state.reserved_by.is_some_and(|by| self.dead.contains(&by)) {
                let mut freed = config.clone();
                freed.state.reserved_by = None;
                follow(freed);
            }
            for (&id, pending) in &self.pending {
                if !config.made.contains_key(&id) {
                    let mut next = config.clone();
                    let made = next.state.make(pending.by, pending.order);
                    next.made.insert(id, made);
                    follow(next);
                }
            }
        }
        for pending in self.pending.values_mut() {
            let is_out = matches!(pending.order, Order::Out { .. });
            let is_stopped = |state: &State| state.reserved_by.is_some_and(|by| by != pending.by);
            pending.may_be_stopped |= is_out && self.configs.iter().any(|config| is_stopped(&config.state));
        }
        for watch in self.watches.values_mut() {
            watch.look(&self.configs);
        }
    }

    fn keep(&mut self, why: &str, which: impl Fn(&Config) -> bool) {
        let before = self.configs.clone();
        self.configs.retain(which);
        assert!(!self.configs.is_empty(), "{why}: {before:#?}");
    }

    /// An order is answered: status, and key, code and qualifier.
    pub(crate) fn answered(&mut self, id: u32, status: u8, sense: u32) -> Meant {
        let Some(pending) = self.pending.get(&id) else { return Meant::default() };
        let why = format!("{status:#x} {sense:#x} to {pending:?}");
        let stopped = pending.may_be_stopped;
        let made = |config: &Config| config.made.get(&id).map(|made| made.end);
        match (status, sense) {
            // With 4h/44h/00h a device holds what was to be aborted; it is made all the same.
            (0, _) | (2, 0x4_4400) => self.keep(&why, |config| made(config) == Some(End::Good)),
            (0x18, _) => self.keep(&why, |config| match made(config) {
                None => stopped,
                end => end == Some(End::Conflict),
            }),
            (2, 0x5_2400 | 0x5_2600..0x5_2700) => {
                self.keep(&why, |config| made(config) == Some(End::Bad(sense)));
            }
            (0x40, _) => {}
            _ => self.keep(&why, |config| made(config).is_none()),
        }
        let mut meant = Meant::default();
        if status == 0
            && let Some(Pending { order: Order::Out { action: 5, .. }, sent_at, .. }) = self.pending.get(&id)
        {
            let all = |host: &u8| self.configs.iter().all(|config| config.made[&id].preempted.contains(host));
            meant.preempted = (0..HOSTS as u8).filter(all).map(|host| (host, *sent_at)).collect();
        }
        if status == 0 {
            self.note_certain(id);
        }
        self.settle(id);
        meant
    }

    /// What an order that was made has certainly told hosts whose sessions were there.
    fn note_certain(&mut self, id: u32) {
        let (Some(pending), Some(first)) = (self.pending.get(&id), self.configs.first()) else { return };
        let is_certain = |told: &&(u8, u16)| {
            let was_there = self.entered_at[usize::from(told.0)].is_some_and(|at| at < pending.sent_at);
            let all = || self.configs.iter().all(|config| config.made[&id].tells.contains(*told));
            // What it told may have gone with a task before it was answered.
            let may_be_lost = self.excused_at[usize::from(told.0)] >= pending.sent_at;
            was_there && !may_be_lost && !pending.merged.contains(*told) && all()
        };
        let certain: Vec<_> =
            first.made[&id].tells.iter().filter(is_certain).map(|told| (*told, self.now)).collect();
        // An older one that is not heard yet is told together with this.
        let is_new = |(told, _): &((u8, u16), u64)| self.must.iter().all(|(other, _)| other != told);
        let certain: Vec<_> = certain.into_iter().filter(is_new).collect();
        self.must.extend(certain);
    }

    /// A task of a host on unit 0 has gone without an answer: what it would have told is told no more.
    pub(crate) fn excuse(&mut self, host: u8) {
        self.excused_at[usize::from(host)] = self.now;
        self.must.retain(|((of, _), _)| *of != host);
    }

    /// A command was executed: what its host had to be told before came before, unless an older one is to tell it.
    pub(crate) fn executed(&mut self, host: u8, itt: u32) {
        let Some(&Watch { sent_at, begun_at: Some(begun), .. }) = self.watches.get(&(host, itt)) else {
            return;
        };
        let is_open = self.pending.values().any(|pending| pending.by.0 == host)
            || self
                .watches
                .range((host, 0)..=(host, u32::MAX))
                .any(|(of, watch)| of.1 != itt && watch.begun_at.is_none_or(|at| at <= begun));
        let untold = self.must.iter().find(|((of, _), answered)| *of == host && *answered < sent_at);
        assert!(is_open || untold.is_none(), "host {host} is not told: {untold:x?}");
    }

    /// An order is over: it was made, or never will be.
    pub(crate) fn settle(&mut self, id: u32) {
        let Some(mut pending) = self.pending.remove(&id) else { return };
        let tells: BTreeSet<(u8, u16)> = self
            .configs
            .iter()
            .filter_map(|config| config.made.get(&id))
            .flat_map(|made| made.tells.iter().copied())
            .collect();
        // What was taken for its doing may have been another's.
        let others: Vec<(u8, u16)> = pending.heard.difference(&tells).copied().collect();
        for it in others {
            pending.heard.remove(&it);
            assert!(self.has_teller(it), "told for nothing: {it:x?} by {pending:?}");
        }
        self.owed.extend(tells.difference(&pending.heard).map(|told| (*told, self.now)));
        let forget = |mut config: Config| {
            config.made.remove(&id);
            config
        };
        self.configs = std::mem::take(&mut self.configs).into_iter().map(forget).collect();
        self.now += 1;
        self.spread();
    }

    /// A host is about to ask for a session.
    pub(crate) fn asks(&mut self, host: u8) {
        self.now += 1;
        self.asked_at[usize::from(host)] = self.now;
    }

    /// A session is over, or will be when the target notices.
    pub(crate) fn lost(&mut self, by: SessionId) {
        self.entered_at[usize::from(by.0)] = None;
        self.excuse(by.0);
        self.dead.insert(by);
        self.watches.retain(|(host, _), _| *host != by.0);
        self.spread();
    }

    /// A host's new session is there: what older ones wanted is made or never will be, what they reserved is free, what
    /// they were to be told is forgotten.
    pub(crate) fn entered(&mut self, by: SessionId) {
        let is_older = |other: SessionId| other.0 == by.0 && other != by;
        let over: Vec<u32> =
            self.pending.iter().filter(|(_, pending)| is_older(pending.by)).map(|(id, _)| *id).collect();
        for id in over {
            self.settle(id);
        }
        self.keep("RESERVE outlives its session", |config| !config.state.reserved_by.is_some_and(is_older));
        self.now += 1;
        self.entered_at[usize::from(by.0)] = Some(self.now);
        let asked_at = self.asked_at[usize::from(by.0)];
        self.owed.retain(|((host, _), answered_at)| *host != by.0 || *answered_at >= asked_at);
        self.dead.retain(|dead| !is_older(*dead));
        self.spread();
    }

    /// The program has ended, in the middle of anything, and is there again: what was under way was made or never will be.
    pub(crate) fn restarted(&mut self) {
        let restart = |mut config: Config| {
            config.made.clear();
            let State { persists, .. } = config.state;
            config.state.reserved_by = None;
            if !persists {
                config.state = State::default();
            }
            config
        };
        self.configs = std::mem::take(&mut self.configs).into_iter().map(restart).collect();
        self.pending.clear();
        self.watches.clear();
        self.owed.clear();
        self.must.clear();
        self.dead.clear();
        self.entered_at = [None; HOSTS];
    }

    /// Whether somebody has seen what an order did that is not answered yet: it may not be kept yet, and a restart take it
    /// back, but what was before is not among the possible any more.
    pub(crate) fn is_seen_early(&self) -> bool {
        let is_seen = |id: &u32| self.configs.iter().all(|config| config.made.contains_key(id));
        self.pending.keys().any(is_seen)
    }

    /// Whether what is reserved certainly outlives the program.
    pub(crate) fn is_kept(&self) -> bool {
        self.configs.iter().all(|config| config.state.persists && config.state.held.is_some())
    }

    /// A host hears a unit attention about reservations.
    pub(crate) fn heard(&mut self, host: u8, code: u16) {
        let it = (host, code);
        self.must.retain(|(must, _)| *must != it);
        for pending in self.pending.values_mut() {
            pending.merged.insert(it);
        }
        assert!(self.has_teller(it), "host {host} is told {code:#x} by nobody: {:?}", self.pending);
    }

    /// Whether some order has told this, or may have; it has then.
    fn has_teller(&mut self, it: (u8, u16)) -> bool {
        if let Some(place) = self.owed.iter().position(|(owed, _)| *owed == it) {
            self.owed.remove(place);
            return true;
        }
        let may_tell = |id: &u32| {
            self.configs.iter().any(|config| config.made.get(id).is_some_and(|made| made.tells.contains(&it)))
        };
        let from = self.pending.iter().find(|(id, pending)| !pending.heard.contains(&it) && may_tell(id));
        let Some(id) = from.map(|(id, _)| *id) else { return false };
        self.pending.entry(id).and_modify(|pending| {
            pending.heard.insert(it);
        });
        true
    }

    /// A command is about to be sent.
    pub(crate) fn watch(&mut self, by: SessionId, itt: u32, access: Access, asks_again: bool) {
        let sent_at = self.now;
        let mut watch =
            Watch { by, access, may_pass: false, may_stop: false, sent_at, begun_at: None, asks_again };
        watch.look(&self.configs);
        self.watches.insert((by.0, itt), watch);
    }

    /// The target has all that a host has sent: its commands have begun.
    pub(crate) fn begun(&mut self, host: u8) {
        self.now += 1;
        for (_, watch) in self.watches.range_mut((host, 0)..=(host, u32::MAX)) {
            watch.begun_at.get_or_insert(self.now);
        }
    }

    pub(crate) fn begun_at(&self, host: u8, itt: u32) -> Option<u64> {
        self.watches.get(&(host, itt))?.begun_at
    }

    /// A command is over with this status. Whether a reservation had to stop it.
    pub(crate) fn ended(&mut self, host: u8, itt: u32, status: u8, sense: u32) -> bool {
        let Some(watch) = self.watches.remove(&(host, itt)) else { return false };
        assert!(status != 0x18 || watch.may_stop, "nobody stops it: {watch:?}");
        // A unit attention comes first; what is aborted or not taken at all has no other answer, nor has what waits for its
        // turn when its data come wrong (Bh).
        let is_before = matches!((status, sense >> 16), (0x18 | 0x28 | 0x40, _) | (2, 0x6 | 0xb));
        assert!(watch.may_pass || is_before, "not stopped: {watch:?} {status:#x} {sense:#x}");
        !watch.may_pass
    }

    /// What a host sees of it in the end: `None` if RESERVE keeps it from looking.
    pub(crate) fn check_seen(&mut self, seen: Option<&SeenReservations>) {
        let looks = |config: &Config| {
            let state = &config.state;
            let mut keys: Vec<u64> = state.keys.into_iter().filter(|key| *key != 0).collect();
            keys.sort_unstable();
            let held = state
                .held
                .map(|(kind, holder)| (holder.map_or(0, |holder| state.keys[usize::from(holder)]), kind));
            match seen {
                None => state.reserved_by.is_some(),
                Some(seen) => state.reserved_by.is_none() && *seen == (keys, held),
            }
        };
        self.keep(&format!("{seen:?}"), looks);
    }
}

impl Watch {
    fn look(&mut self, configs: &BTreeSet<Config>) {
        if self.begun_at.is_some() && !self.asks_again {
            return;
        }
        let lets = |config: &Config| config.state.lets(self.by, self.access);
        self.may_stop |= !configs.iter().all(lets);
        self.may_pass |= self.begun_at.is_none() && configs.iter().any(lets);
    }
}
