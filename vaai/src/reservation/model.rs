//! Reservations against the dullest model there is: three maps, and the standard's sentences one by one.

use super::tests::{Conflicts, RELEASE_6, RESERVE_6, ask, list, out};
use crate::change::Change;
use crate::command::NexusId;
use crate::harness::{World, cdb10, geometry, server_config};
use crate::sense::Status;
use crate::server::{DeviceServer, NexusInfo};
use crate::{harness, lun::LunConfig};
use proptest::prelude::*;
use reactor::Core;
use std::collections::{BTreeMap, BTreeSet};

/// Initiator port and target port. Nexuses 0 and 3 are one initiator's at two ports.
type Who = (u8, u16);
const WHO: [Who; 4] = [(1, 1), (2, 1), (3, 2), (1, 2)];
const PORTS: [u16; 3] = [1, 2, 3];

fn nexus(place: usize) -> NexusId {
    NexusId(10 + place as u64)
}

fn info(place: usize) -> NexusInfo {
    let (initiator, relative_port) = WHO[place];
    // Two of one name, which differ in their ISIDs.
    let initiator_name = if initiator == 3 { "iqn.test:b" } else { "iqn.test:a" }.to_owned();
    NexusInfo { initiator_name, isid: [0, 0, 0, 0, 0, initiator], relative_port, after_loss: true }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Out { from: usize, action: u8, kind: u8, key: u64, action_key: u64, all_ports: bool },
    Reserve { from: usize },
    Release { from: usize },
    LogInAgain { who: usize },
    Reset,
}

fn step() -> impl Strategy<Value = Step> {
    let kind = prop_oneof![Just(1), Just(3), Just(5), Just(6), Just(7), Just(8)];
    let outs = (0..4_usize, 0..7_u8, kind, 0..3_u64, 0..3_u64, prop::bool::weighted(0.1));
    prop_oneof![
        20 => outs.prop_map(|(from, action, kind, key, action_key, all_ports)| Step::Out {
            from, action, kind, key, action_key, all_ports
        }),
        1 => (0..4_usize).prop_map(|from| Step::Reserve { from }),
        1 => (0..4_usize).prop_map(|from| Step::Release { from }),
        1 => (0..4_usize).prop_map(|who| Step::LogInAgain { who }),
        1 => Just(Step::Reset),
    ]
}

#[derive(Debug, PartialEq)]
enum Expected {
    Good,
    Conflict,
    Bad(u32),
}

#[derive(Default)]
struct Model {
    keys: BTreeMap<Who, u64>,
    /// Type, and who holds it; 0 stands for all.
    held: Option<(u8, Who)>,
    generation: u32,
    reserved_by: Option<usize>,
    told: BTreeMap<Who, BTreeSet<u16>>,
}

const ALL: Who = (0, 0);

impl Model {
    fn tell(&mut self, who: Who, code: u16) {
        self.told.entry(who).or_default().insert(code);
    }

    fn tell_registrants(&mut self, but: &[Who], code: u16) {
        for who in self.keys.keys().copied().filter(|who| !but.contains(who)).collect::<Vec<_>>() {
            self.tell(who, code);
        }
    }

    fn holds(&self, who: Who) -> bool {
        match self.held {
            None => false,
            Some((7 | 8, _)) => self.keys.contains_key(&who),
            Some((_, holder)) => holder == who,
        }
    }

    fn register(&mut self, me: Who, action_key: u64, all_ports: bool) {
        let mine: Vec<Who> =
            if all_ports { PORTS.iter().map(|&port| (me.0, port)).collect() } else { vec![me] };
        if action_key != 0 {
            self.keys.extend(mine.iter().map(|&who| (who, action_key)));
            return;
        }
        if !self.keys.contains_key(&me) {
            return;
        }
        let gone = mine.iter().any(|who| matches!(self.held, Some((_, holder)) if holder == *who));
        self.keys.retain(|who, _| !mine.contains(who));
        match self.held {
            Some((5 | 6, _)) if gone => {
                self.tell_registrants(&[], 0x2A04);
                self.held = None;
            }
            Some((1 | 3, _)) if gone => self.held = None,
            Some((7 | 8, _)) if self.keys.is_empty() => self.held = None,
            _ => {}
        }
    }

    fn out(
        &mut self,
        from: usize,
        action: u8,
        kind: u8,
        (key, action_key): (u64, u64),
        all: bool,
    ) -> Expected {
        let me = WHO[from];
        let own = self.keys.get(&me).copied();
        let key_is_right = match action {
            6 => true,
            0 => own.unwrap_or(0) == key,
            _ => own == Some(key),
        };
        if self.reserved_by.is_some() || !key_is_right {
            return Expected::Conflict;
        }
        let holder = if kind >= 7 { ALL } else { me };
        match action {
            0 | 6 => self.register(me, action_key, all),
            1 if self.held.is_none() => self.held = Some((kind, holder)),
            1 if self.holds(me) && self.held.is_some_and(|(held, _)| held == kind) => {}
            1 => return Expected::Conflict,
            2 if !self.holds(me) => {}
            2 if self.held.is_some_and(|(held, _)| held != kind) => return Expected::Bad(0x5_2604),
            2 => {
                if kind >= 5 {
                    self.tell_registrants(&[me], 0x2A04);
                }
                self.held = None;
            }
            3 => {
                self.tell_registrants(&[me], 0x2A03);
                self.keys.clear();
                self.held = None;
            }
            _ => {
                let of_all = matches!(self.held, Some((7 | 8, _)));
                if action_key == 0 && !of_all {
                    return Expected::Bad(0x5_2600);
                }
                let named: Vec<Who> = self
                    .keys
                    .iter()
                    .filter(|(_, key)| **key == action_key || action_key == 0)
                    .map(|(&who, _)| who)
                    .collect();
                if named.is_empty() {
                    return Expected::Conflict;
                }
                let takes = match self.held {
                    Some((7 | 8, _)) => action_key == 0,
                    Some((_, holder)) => named.contains(&holder),
                    None => false,
                };
                for who in named {
                    if !(takes && who == me) {
                        self.keys.remove(&who);
                    }
                    if who != me {
                        self.tell(who, 0x2A05);
                    }
                }
                if takes {
                    if self.held.is_some_and(|(held, _)| held != kind) {
                        self.tell_registrants(&[me], 0x2A04);
                    }
                    self.held = Some((kind, holder));
                } else if self.keys.is_empty() {
                    self.held = None;
                }
            }
        }
        self.generation += u32::from(!matches!(action, 1 | 2));
        Expected::Good
    }

    /// Whether somebody may read, and write.
    fn may(&self, place: usize) -> [bool; 2] {
        if self.reserved_by.is_some_and(|holder| holder != place) {
            return [false; 2];
        }
        let who = WHO[place];
        match self.held {
            None => [true; 2],
            Some((1, holder)) => [true, holder == who],
            Some((3, holder)) => [holder == who; 2],
            Some((5 | 7, _)) => [true, self.keys.contains_key(&who)],
            Some(_) => [self.keys.contains_key(&who); 2],
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    /// Goal: after any commands of four nexuses, status, keys, reservation, generation, what everybody may and is told are
    /// the model's; a replica without nexuses has the same state; and what is kept comes back. Method: after each step
    /// all of it is looked at.
    #[test]
    fn reservations_are_as_in_the_model(steps in proptest::collection::vec(step(), 1..60)) {
        let config = LunConfig { reservations: Some(Vec::new()), ..harness::lun_config(0, geometry()) };
        let mut world = World::of(vec![config.clone()]);
        let mut replica = DeviceServer::new(Core(1), server_config(vec![config]));
        let mut model = Model::default();
        for place in 0..4 {
            world.server.open_nexus(nexus(place), info(place));
            world.hear(nexus(place));
        }
        for step in steps {
            match step {
                Step::Out { from, action, kind, key, action_key, all_ports } => {
                    // Every change is to be kept: what comes back is compared below.
                    let flags = 0x01 | u8::from(all_ports) << 2;
                    let bytes = list(key, action_key, flags);
                    let answer = out(&mut world, nexus(from), action, kind, &bytes);
                    match model.out(from, action, kind, (key, action_key), all_ports) {
                        Expected::Good => drop(answer.good()),
                        Expected::Conflict => answer.conflict(),
                        Expected::Bad(code) => drop(answer.bad(code)),
                    }
                }
                Step::Reserve { from } => {
                    let answer = world.run_as(nexus(from), 0, &RESERVE_6, 0, &[]);
                    let beside = model.held.is_some() && model.may(from)[1];
                    let takes = model.keys.is_empty() && model.reserved_by.is_none_or(|holder| holder == from);
                    prop_assert_eq!(answer.status == Status::Good, beside || takes);
                    if takes {
                        model.reserved_by = Some(from);
                    }
                }
                Step::Release { from } => {
                    world.run_as(nexus(from), 0, &RELEASE_6, 0, &[]).good();
                    model.reserved_by = model.reserved_by.filter(|holder| *holder != from);
                }
                Step::LogInAgain { who } => {
                    world.server.close_nexus(nexus(who));
                    world.decree(&Change::NexusLost { nexus: nexus(who) }).unwrap();
                    world.server.open_nexus(nexus(who), info(who));
                    model.tell(WHO[who], 0x2907);
                    model.reserved_by = model.reserved_by.filter(|holder| *holder != who);
                }
                Step::Reset => {
                    world.decree(&Change::LunReset { lun: 0, by: nexus(0) }).unwrap();
                    for who in WHO {
                        model.tell(who, 0x2903);
                    }
                    model.reserved_by = None;
                }
            }
            let reservations = &world.server.units[0].reservations;
            reservations.check_invariants();
            if model.generation > 0 && model.reserved_by.is_none() {
                prop_assert_eq!(reservations.persists || model.keys.is_empty(), true);
            }
            if reservations.persists {
                let mut back = super::Reservations::of(Some(&reservations.to_kept()));
                back.generation = reservations.generation;
                prop_assert_eq!((&back.registrations, &back.held), (&reservations.registrations, &reservations.held));
            }
            let told = std::mem::take(&mut model.told);
            for (place, who) in WHO.iter().enumerate() {
                let heard: BTreeSet<u16> = world.hear(nexus(place)).into_iter().collect();
                prop_assert_eq!(&heard, &told.get(who).cloned().unwrap_or_default(), "{}", place);
                let read = world.run_as(nexus(place), 0, &cdb10(0x28, 0, 0, 1), 512, &[]).status;
                let write = world.run_as(nexus(place), 0, &cdb10(0x2A, 0, 0, 1), 0, &[0; 512]).status;
                let may = [read, write].map(|status| status == Status::Good);
                prop_assert_eq!(may, model.may(place), "{} {:?}", place, model.held);
            }
            world.hear(harness::NEXUS);
            if model.reserved_by.is_none() {
                prop_assert_eq!(&ask(&mut world, 0)[..4], &model.generation.to_be_bytes());
                let mut keys: Vec<u64> = model.keys.values().copied().collect();
                let mut told: Vec<u64> = ask(&mut world, 0)[8..]
                    .chunks(8)
                    .map(|key| u64::from_be_bytes(key.try_into().unwrap()))
                    .collect();
                keys.sort_unstable();
                told.sort_unstable();
                prop_assert_eq!(told, keys);
                let shown = ask(&mut world, 1);
                let held = model.held.map(|(kind, holder)| (model.keys.get(&holder).copied().unwrap_or(0), kind));
                let shown = (shown.len() > 8)
                    .then(|| (u64::from_be_bytes(shown[8..16].try_into().unwrap()), shown[21]));
                prop_assert_eq!(shown, held);
            }
        }
        for (change, applied) in std::mem::take(&mut world.changes) {
            prop_assert_eq!(replica.apply(&change), applied);
        }
        replica.units[0].reservations.reset();
        world.server.units[0].reservations.reset();
        prop_assert_eq!(&world.server.units[0].reservations, &replica.units[0].reservations);
    }
}
