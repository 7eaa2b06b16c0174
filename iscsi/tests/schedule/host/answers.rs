//! What a host demands of the answers, and what they mean to its model.

use super::{Host, State};
use crate::chain::Fate;
use crate::task::{Kind, Task, apart, copies_to, zeroes_in};
use crate::tokens::{Rod, Token};
use crate::world::{BLOCK, Pdu};
use crate::{REGION, Stage, block};
use std::collections::BTreeSet;

impl Host {
    /// A task is answered: nothing of it may come to the disk any more.
    fn is_over(&self, stage: &mut Stage, task: &Task) {
        if let Some(stamp) = task.kind.stamp() {
            stage.world.disk.dead.insert(stamp);
            let late = stage.world.disk.waiting.iter().any(|request| request.stamp == stamp);
            assert!(!late, "a write is under way: its end was answered: {task:?}");
        }
        let on = stage.device(task.lun);
        match task.kind {
            Kind::Copy { to, .. } | Kind::Use { to, .. } => {
                let late = copies_to(&stage.world, on, self.first + to);
                assert!(!late, "a copy is under way: its end was answered");
            }
            Kind::Zero { at, blocks, .. } => {
                let late = zeroes_in(&stage.world, on, self.first + at, blocks);
                assert!(late.iter().all(|it| self.older.contains(it)), "zeroes are late: {task:?}");
            }
            _ => {}
        }
    }

    /// Somebody has preempted this host, and its tasks that had begun before: nothing of them may come any more.
    pub(crate) fn is_preempted(&self, stage: &mut Stage, before: u64) {
        for (&itt, task) in &self.tasks {
            if task.lun == 0 && stage.orders.begun_at(self.number, itt).is_some_and(|begun| begun < before) {
                stage.saw("a preempted host's task under way");
                self.is_over(stage, task);
            }
        }
    }

    /// A task has done nothing, and never will.
    fn is_undone(&mut self, stage: &mut Stage, task: &Task) {
        match &task.kind {
            Kind::Write { stamp, .. } | Kind::Swap { stamp, .. } => {
                let Some((at, blocks)) = task.kind.changes() else { return };
                self.is_not(task.lun, at, blocks, *stamp);
            }
            Kind::Zero { at: to, before, .. }
            | Kind::Copy { to, before, .. }
            | Kind::Use { to, before, .. } => {
                let side = self.side(task.lun);
                self.may_be[side][*to as usize..][..before.len()].clone_from_slice(before);
            }
            Kind::SharedSwap { stamp, .. } => stage.chains[self.side(task.lun)].end(*stamp, Fate::Refused),
            _ => {}
        }
    }

    /// The disk had no space for all of a task: what it refused is not there.
    fn found_no_space(&mut self, stage: &mut Stage, task: &Task) {
        assert!(!stage.has_space, "there is space: {task:?}");
        let shared = matches!(task.kind, Kind::SharedSwap { .. });
        let (first, blocks) = match (task.kind.changes(), &task.kind) {
            (Some((at, blocks)), _) => (self.first + at, blocks),
            (None, Kind::SharedSwap { at, blocks, .. }) => (*at, *blocks),
            _ => panic!("needs no space: {task:?}"),
        };
        let stamp = task.kind.stamp();
        let refused: Vec<(u64, u64)> = stage.world.disk.refused[task.refused_before..]
            .iter()
            .filter(|(of, at, count)| *of == stamp.unwrap_or(0) && !apart(first, blocks, *at, *count))
            .map(|(_, at, count)| (*at, *count))
            .collect();
        assert!(!refused.is_empty(), "there was space: {task:?}");
        match &task.kind {
            // Pools may have done any part of these.
            Kind::Copy { .. } | Kind::Use { .. } if self.is_apart => {
                stage.saw("a swap or copy without space");
            }
            Kind::Zero { .. } if self.is_apart => stage.saw("zeroes without space"),
            // The whole of it is one request.
            Kind::Swap { .. } | Kind::Copy { .. } | Kind::SharedSwap { .. } => {
                stage.saw(if shared {
                    "a shared swap without space"
                } else {
                    "a swap or copy without space"
                });
                self.is_undone(stage, task);
            }
            Kind::Zero { .. } => {
                stage.saw("zeroes without space");
                self.is_undone(stage, task);
            }
            Kind::Write { stamp, at: from, .. } => {
                stage.saw("a write without space");
                let base = self.first;
                for (at, count) in if self.is_apart { Vec::new() } else { refused } {
                    self.is_not(task.lun, at - base, count, *stamp);
                }
                self.retries.push_back((task.lun, *from, blocks));
            }
            _ => {}
        }
    }

    /// A command has ended with GOOD: what was written is there, what was read may be there.
    fn good(&mut self, stage: &mut Stage, itt: u32, task: Task) {
        if let Some(stamp) = task.kind.stamp() {
            let refused = stage.world.disk.refused[task.refused_before..].iter().any(|(of, ..)| *of == stamp);
            assert!(!refused, "GOOD without space: {task:?}");
        }
        if self.retried.remove(&itt) {
            stage.saw("a write that found space again");
        }
        if stage.world.disk.full {
            stage.saw("a command that ends well while there is no space");
        }
        match task.kind {
            Kind::Write { at, blocks, stamp } => {
                stage.saw(if task.out.len() == BLOCK && blocks > 1 { "WRITE SAME" } else { "WRITE" });
                self.is_now(task.lun, at, blocks, stamp);
            }
            Kind::Zero { at, blocks, unmap, .. } => {
                stage.saw(if unmap { "UNMAP" } else { "WRITE SAME of zeroes" });
                self.is_now(task.lun, at, blocks, 0);
            }
            Kind::Swap { at, expected, stamp } => {
                stage.saw("COMPARE AND WRITE");
                let known = self.known(task.lun, at, expected.len() as u64);
                for (may_be, expected) in known.iter().zip(&expected) {
                    assert!(may_be.contains(expected), "{expected} of {may_be:?} compares equal");
                }
                self.is_now(task.lun, at, expected.len() as u64, stamp);
            }
            Kind::SharedSwap { stamp, .. } => {
                stage.saw("COMPARE AND WRITE of shared blocks");
                stage.chains[self.side(task.lun)].end(stamp, Fate::Good);
            }
            Kind::Read { at, blocks, data } => {
                assert_eq!(data.len(), blocks as usize * BLOCK, "all that was asked for");
                for (number, bytes) in (at..).zip(data.chunks(BLOCK)) {
                    let stamp = u64::from_le_bytes(bytes[..8].try_into().unwrap());
                    let may_be = &self.known(task.lun, number, 1)[0];
                    assert!(
                        bytes == block(stamp) && may_be.contains(&stamp),
                        "{stamp} of {may_be:?} at {number}"
                    );
                    // Nothing else of ours was under way there: it stays.
                    let side = self.side(task.lun);
                    self.may_be[side][number as usize] = BTreeSet::from([stamp]);
                }
            }
            Kind::Copy { source, from, to, blocks, .. } => {
                stage.saw(if source == task.lun { "EXTENDED COPY" } else { "EXTENDED COPY between units" });
                let what = self.known(source, from, blocks).to_vec();
                self.are_now(task.lun, to, &what);
            }
            Kind::Populate { made, window } => {
                stage.saw("POPULATE TOKEN");
                let may_be = self.windows.remove(&window).expect("it was opened").may_be;
                let after = stage.removals[usize::from(made.lun)];
                self.rods.push_back(Rod { made, after, may_be });
            }
            Kind::Receive { rod, data } => {
                stage.saw("RECEIVE ROD TOKEN INFORMATION");
                assert_eq!((data.len(), data[5]), (550, 1), "{rod:?} is made");
                stage.tokens.push(Token::new(data[38..].to_vec(), rod));
            }
            Kind::Use { token, offset, to, before, deletes, sent, is_late } => {
                stage.saw(if deletes { "WRITE USING TOKEN that deletes" } else { "WRITE USING TOKEN" });
                assert!(!is_late, "it is gone: {:?}", stage.tokens[token]);
                stage.tokens[token].used(sent, deletes);
                self.are_now(task.lun, to, &stage.tokens[token].rod.may_be[offset..offset + before.len()]);
            }
            Kind::Order(_) | Kind::Sense | Kind::Other => {}
        }
    }

    /// WRITE USING TOKEN found none.
    fn no_token(&mut self, stage: &mut Stage, task: &Task, code: u16) {
        let Kind::Use { token, .. } = task.kind else { panic!("uses none: {task:?}") };
        let token = &stage.tokens[token];
        let removals = stage.removals[usize::from(token.rod.made.lun)];
        let what = token.refused(code, stage.world.now, removals);
        stage.saw(what);
        self.is_undone(stage, task);
    }

    fn is_now(&mut self, lun: u8, at: u64, blocks: u64, stamp: u64) {
        let side = self.side(lun);
        for may_be in [&mut self.may_be, &mut self.may_be_kept] {
            may_be[side][at as usize..(at + blocks) as usize].fill(BTreeSet::from([stamp]));
        }
    }

    fn are_now(&mut self, lun: u8, at: u64, what: &[BTreeSet<u64>]) {
        let side = self.side(lun);
        for may_be in [&mut self.may_be, &mut self.may_be_kept] {
            may_be[side][at as usize..][..what.len()].clone_from_slice(what);
        }
    }

    fn is_not(&mut self, lun: u8, at: u64, blocks: u64, stamp: u64) {
        let side = self.side(lun);
        for may_be in &mut self.may_be[side][at as usize..(at + blocks) as usize] {
            may_be.remove(&stamp);
        }
    }

    /// COMPARE AND WRITE found something else.
    fn miscompared(&mut self, stage: &mut Stage, task: &Task) {
        match &task.kind {
            Kind::SharedSwap { .. } => stage.saw("a shared swap that miscompares"),
            Kind::Swap { at, expected, stamp } => {
                let differs = |(may_be, expected): (&BTreeSet<u64>, &u64)| {
                    may_be.iter().any(|may_be| may_be != expected && may_be != stamp)
                };
                let known = self.known(task.lun, *at, expected.len() as u64);
                let found = known.iter().zip(expected).any(differs);
                assert!(found, "nothing differs: {task:?}");
                stage.saw("a swap that miscompares");
            }
            _ => panic!("compares nothing: {task:?}"),
        }
        self.is_undone(stage, task);
    }

    pub(super) fn hear(&mut self, stage: &mut Stage) {
        for pdu in self.on.take_pdus() {
            self.on_pdu(stage, &pdu);
        }
    }

    /// What the disk may still have of older sessions is known when the new one is there.
    fn entered(&mut self, stage: &mut Stage) {
        self.state = State::LoggedIn;
        self.on.digests = self.asks.digests;
        stage.orders.entered(self.id());
        self.older = zeroes_in(&stage.world, None, self.first, REGION).into_iter().collect();
    }

    /// A unit attention about reservations is heard by whom it is for.
    fn attention(&mut self, stage: &mut Stage, lun: u8, code: u16) {
        if !(0x2a03..=0x2a05).contains(&code) {
            return;
        }
        assert_eq!(lun, 0, "unit 1 has no reservations: {code:#x}");
        stage.orders.heard(self.number, code);
        stage.saw(match code {
            0x2a03 => "reservations preempted",
            0x2a04 => "reservations released",
            _ => "registrations preempted",
        });
    }

    fn data_in(&mut self, stage: &mut Stage, itt: u32, pdu: &Pdu) {
        let task = self.tasks.get_mut(&itt).unwrap_or_else(|| panic!("data of no task: {pdu:?}"));
        let lun = task.lun;
        match &mut task.kind {
            Kind::Read { data, .. } => {
                assert_eq!(pdu.word(40) as usize, data.len());
                data.extend_from_slice(&pdu.data);
            }
            Kind::Receive { data, .. } => data.extend_from_slice(&pdu.data),
            Kind::Sense if pdu.data[2] & 0xf == 6 => {
                self.attention(stage, lun, u16::from_be_bytes([pdu.data[12], pdu.data[13]]));
            }
            _ => {}
        }
        if pdu.bhs[1] & 1 != 0 {
            let task = self.tasks.remove(&itt).unwrap();
            if matches!(task.kind, Kind::Read { .. }) {
                stage.orders.executed(self.number, itt);
            }
            stage.orders.ended(self.number, itt, 0, 0);
            self.good(stage, itt, task);
        }
    }

    fn response(&mut self, stage: &mut Stage, itt: u32, pdu: &Pdu) {
        let task = self.tasks.remove(&itt).unwrap_or_else(|| panic!("answer to no task: {pdu:?}"));
        self.owed.retain(|owed| owed.0 != itt);
        let status = pdu.bhs[3];
        let at = |at: usize| pdu.data.get(at).copied().unwrap_or(0);
        let sense = u32::from_be_bytes([0, at(4) & 0xf, at(14), at(15)]);
        self.is_over(stage, &task);
        match (status, sense >> 16) {
            (0, _) => stage.orders.executed(self.number, itt),
            // It may have waited for its turn to tell an attention.
            (0x40, _) | (2, 0xb) => stage.orders.excuse(self.number),
            _ => {}
        }
        if stage.orders.ended(self.number, itt, status, sense) && status == 0x18 {
            stage.saw("a command that a reservation has to stop");
        }
        if let Kind::Order(id) = task.kind {
            Host::ordered(stage, id, status, sense);
        }
        if status != 0 {
            self.closed(&task.kind);
        }
        match (status, sense, &task.kind) {
            (0, _, Kind::Read { data, .. }) => panic!("{} bytes, then a response", data.len()),
            (0, ..) => self.good(stage, itt, task),
            (0x18, ..) => self.is_undone(stage, &task),
            (2, 0x6_0000.., _) if sense >> 16 == 6 => {
                self.is_undone(stage, &task);
                self.attention(stage, task.lun, sense as u16);
            }
            (2, 0xe_1d00, _) => self.miscompared(stage, &task),
            (2, 0x5_2300..0x5_2400, _) => self.no_token(stage, &task, sense as u16),
            (2, 0x7_2707, _) => self.found_no_space(stage, &task),
            (0x40, ..) => stage.saw("TASK ABORTED"),
            _ => {}
        }
    }

    /// An order about reservations is answered.
    fn ordered(stage: &mut Stage, id: u32, status: u8, sense: u32) {
        if status == 0
            && let Some(name) = stage.orders.name(id)
        {
            stage.saw(name);
        }
        let meant = stage.orders.answered(id, status, sense);
        stage.preempted.extend(meant.preempted);
    }

    /// A task is aborted, and that was answered: it happened or not, and never will.
    fn is_gone(&mut self, stage: &mut Stage, itt: u32) {
        self.gone.insert(itt);
        self.owed.retain(|owed| owed.0 != itt);
        stage.orders.excuse(self.number);
        let Some(task) = self.tasks.remove(&itt) else { return };
        if stage.world.disk.full && task.kind.changes().is_some() {
            stage.saw("an abort while there is no space");
        }
        if matches!(task.kind, Kind::SharedSwap { .. }) {
            stage.saw("a shared swap that is aborted");
        }
        self.is_over(stage, &task);
        self.closed(&task.kind);
        if let Kind::Order(id) = task.kind {
            stage.saw("an order that is aborted");
            stage.orders.settle(id);
        }
    }

    fn function_response(&mut self, stage: &mut Stage, itt: u32, pdu: &Pdu) {
        let function = self.functions.remove(&itt).unwrap_or_else(|| panic!("of no function: {pdu:?}"));
        if let Some(reset) = function.reset {
            stage.orders.answered(reset, pdu.bhs[2], 0);
        }
        if pdu.bhs[2] == 2 {
            // Its unit was not there: it has ended nothing.
            return;
        }
        assert_eq!(pdu.bhs[2], 0, "{function:?}");
        for itt in function.tasks {
            self.is_gone(stage, itt);
        }
    }

    fn on_pdu(&mut self, stage: &mut Stage, pdu: &Pdu) {
        let itt = pdu.itt();
        assert!(!self.gone.contains(&itt) || !matches!(pdu.opcode(), 0x21 | 0x25 | 0x31), "late: {pdu:?}");
        match pdu.opcode() {
            0x23 => {
                assert_eq!(self.state, State::LoggingIn);
                if pdu.bhs[36] == 0 {
                    self.entered(stage);
                }
            }
            0x25 => self.data_in(stage, itt, pdu),
            0x21 => self.response(stage, itt, pdu),
            0x31 => self.owed.push_back((
                itt,
                pdu.word(20),
                pdu.word(40) as usize,
                (pdu.word(40) + pdu.word(44)) as usize,
            )),
            0x22 => self.function_response(stage, itt, pdu),
            0x26 => {
                assert_eq!(self.state, State::LoggingOut);
                let all: Vec<u32> = self.tasks.keys().copied().collect();
                for itt in all {
                    self.is_gone(stage, itt);
                }
            }
            0x20 => {
                let ttt = pdu.word(20);
                if ttt != u32::MAX && !stage.random.one_in(8) {
                    let pong = self.on.pong(ttt);
                    self.say(stage, &pong);
                }
            }
            // A PDU with a wrong digest.
            0x3f => {}
            opcode => panic!("{opcode:#x}: {pdu:?}"),
        }
    }
}
