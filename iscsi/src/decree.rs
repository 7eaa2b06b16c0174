//! Decrees: changes that every core must have made before anybody is told that they happened.
//!
//! Each core holds a replica of what all sessions see of a logical unit, and the sessions of one initiator may
//! live on several cores. Core 0 puts decrees in one order and sends each to all cores; every core applies them
//! in that order, acknowledges each when it is done with it (which may take until its tasks are quiet), and when
//! all have, the asker hears of it. Nothing waits meanwhile: several decrees may be under way.

use reactor::Core;
use reactor::slots::{Slot, Slots};
use std::collections::VecDeque;
use vaai::change::{Change, UnitChange};
use vaai::command::NexusId;

/// What is decreed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decree {
    /// A change of a logical unit's shared state; a reset aborts tasks, too.
    Scsi(Change),
    /// A change of the units, which the program wants; a removal aborts tasks, too.
    Units(UnitChange),
    /// The tasks of all nexuses on this unit are cleared (CLEAR TASK SET, RFC 7143 §11.5.1).
    ClearTaskSet {
        /// Which unit.
        lun: u16,
        /// Who asked.
        by: NexusId,
    },
    /// A session is about to enter full feature phase: an older one of the same name, ISID and target ends first
    /// (session reinstatement, RFC 7143 §6.3.5).
    Enter {
        /// The newcomer.
        nexus: NexusId,
        /// Its InitiatorName.
        initiator_name: String,
        /// Its ISID.
        isid: [u8; 6],
        /// Its TargetName.
        target_name: String,
    },
    /// TARGET WARM RESET: every unit is reset. TARGET COLD RESET: all sessions end besides (RFC 7143 §11.5.1).
    TargetReset {
        /// Who asked; its session stays until it has its answer.
        by: NexusId,
        /// All sessions end.
        cold: bool,
    },
}

/// Between cores, about decrees.
#[derive(Debug)]
pub enum DecreeMail {
    /// To core 0.
    Propose {
        /// The asker's name for it.
        token: Slot,
        /// What.
        decree: Box<Decree>,
    },
    /// From core 0, in order.
    Apply {
        /// Core 0's name for it.
        id: Slot,
        /// Who proposed it.
        asker: Core,
        /// The asker's name for it.
        token: Slot,
        /// What.
        decree: Box<Decree>,
    },
    /// To core 0: this core is done with it.
    Applied {
        /// Core 0's name for it.
        id: Slot,
        /// How that went.
        outcome: Outcome,
    },
    /// From core 0 to the asker: all are done with it.
    Decreed {
        /// The asker's name for it.
        token: Slot,
        /// How it went, on all cores together.
        outcome: Outcome,
    },
}

/// How a decree went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// [`Decree::Enter`]: an older session was ended for the new one.
    pub reinstated: bool,
    /// A device held what was waited for of aborted tasks until the wait was given up: the asker must not be told
    /// "complete".
    pub stuck: bool,
    /// [`Decree::Enter`]: sessions that were there already, and newcomers that came before in the order of decrees.
    pub sessions: u32,
}

/// Decrees that may be under way at once among `cores`; later ones wait their turn. Each is a message to every core,
/// so with many cores there are fewer: what core 0 has to say at once stays within its outbox.
pub fn under_way_max(cores: u16) -> usize {
    (8192 / usize::from(cores.max(1))).clamp(16, DECREES_MAX)
}

/// The most that [`under_way_max`] gives.
pub const DECREES_MAX: usize = 1024;

#[derive(Debug)]
struct UnderWay {
    asker: Core,
    token: Slot,
    left: u16,
    outcome: Outcome,
}

/// Core 0's part: the order, and who has not acknowledged yet.
#[derive(Debug)]
pub struct Clerk {
    cores: u16,
    under_way: Slots<UnderWay>,
    /// Bounded by the askers: a task or session proposes one thing at a time.
    waiting: VecDeque<(Core, Slot, Box<Decree>)>,
}

impl Clerk {
    /// For a mesh of `cores`.
    pub fn new(cores: u16) -> Clerk {
        Clerk { cores, under_way: Slots::with_capacity(under_way_max(cores)), waiting: VecDeque::new() }
    }

    /// A core proposes; `send` carries what follows, in order.
    pub fn propose(
        &mut self,
        asker: Core,
        token: Slot,
        decree: Box<Decree>,
        send: &mut impl FnMut(Core, DecreeMail),
    ) {
        self.waiting.push_back((asker, token, decree));
        self.advance(send);
    }

    fn advance(&mut self, send: &mut impl FnMut(Core, DecreeMail)) {
        while !self.under_way.is_full() {
            let Some((asker, token, decree)) = self.waiting.pop_front() else { return };
            let entry = UnderWay { asker, token, left: self.cores, outcome: Outcome::default() };
            let Ok(id) = self.under_way.insert(entry) else { return };
            for core in 0..self.cores {
                send(Core(core), DecreeMail::Apply { id, asker, token, decree: decree.clone() });
            }
        }
    }

    /// A core is done with a decree.
    pub fn applied(&mut self, id: Slot, outcome: Outcome, send: &mut impl FnMut(Core, DecreeMail)) {
        let Some(entry) = self.under_way.get_mut(id) else {
            unreachable!("each core acknowledges a decree once");
        };
        entry.left -= 1;
        entry.outcome.reinstated |= outcome.reinstated;
        entry.outcome.stuck |= outcome.stuck;
        entry.outcome.sessions += outcome.sessions;
        if entry.left == 0
            && let Some(UnderWay { asker, token, outcome, .. }) = self.under_way.remove(id)
        {
            send(asker, DecreeMail::Decreed { token, outcome });
            self.advance(send);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a decree is told once all cores have acknowledged, and all cores see the same order.
    #[test]
    fn told_when_all_are_done() {
        let mut clerk = Clerk::new(2);
        let token = Slot::from_bits(9);
        let mut sent = Vec::new();
        let mut send = |core: Core, mail: DecreeMail| sent.push((core, mail));
        for lun in 0..2 {
            let decree = Box::new(Decree::ClearTaskSet { lun, by: NexusId(1) });
            clerk.propose(Core(1), token, decree, &mut send);
        }
        let orders: Vec<Vec<Slot>> = (0..2)
            .map(|core| {
                sent.iter()
                    .filter_map(|(to, mail)| match mail {
                        DecreeMail::Apply { id, .. } if *to == Core(core) => Some(*id),
                        _ => None,
                    })
                    .collect()
            })
            .collect();
        assert_eq!(orders[0].len(), 2);
        assert_eq!(orders[0], orders[1]);
        sent.clear();
        let mut send = |core: Core, mail: DecreeMail| sent.push((core, mail));
        clerk.applied(
            orders[0][1],
            Outcome { reinstated: true, sessions: 3, ..Outcome::default() },
            &mut send,
        );
        assert!(clerk.under_way.len() == 2);
        clerk.applied(orders[0][1], Outcome { sessions: 4, ..Outcome::default() }, &mut send);
        let expected = Outcome { reinstated: true, stuck: false, sessions: 7 };
        assert!(
            matches!(sent[..], [(Core(1), DecreeMail::Decreed { outcome, .. })] if outcome == expected),
            "{sent:?}"
        );
    }
}
