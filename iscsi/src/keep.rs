//! Reservations that are to outlive the program (APTPL=1): a task that has changed them waits until they are durable.
//!
//! Core 0 takes what is to be kept from its own replica, which has made every change that was decreed, and hands it over
//! in that order. So a later state never comes before an earlier one, whichever cores' tasks asked.

use crate::target::{Env, Mail, Target};
use bdev::io::BdevId;
use reactor::Core;
use reactor::slots::Slot;
use std::collections::{BTreeMap, VecDeque};
use vaai::change::Applied;
use vaai::sense::Sense;

/// What core 0 has under way. Bounded by the askers: a task has one thing kept at a time.
#[derive(Debug, Default)]
pub struct Keeps {
    due: VecDeque<Keep>,
    waiting: BTreeMap<u64, (Core, Slot)>,
    tickets: u64,
}

/// What is to be kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keep {
    /// To be told by [`Target::kept`].
    pub ticket: u64,
    /// The unit's device.
    pub bdev: BdevId,
    /// The reservations, in the place of those that were kept before; none, if they are empty.
    pub bytes: Vec<u8>,
}

impl Target {
    pub(crate) fn keep_due(&mut self, env: &mut Env<'_>) {
        while let Some((task, lun)) = self.keeps_due.pop_front() {
            self.post(Core(0), Mail::Keep { task, lun }, env);
        }
    }

    /// A task of some core wants a unit's reservations kept.
    pub(crate) fn keep(&mut self, from: Core, task: Slot, lun: u16, env: &mut Env<'_>) {
        let Some((bdev, bytes)) = self.server.reservations_to_keep(lun) else {
            let kept = Err(Sense::LOGICAL_UNIT_NOT_SUPPORTED);
            return self.post(from, Mail::Kept { task, kept }, env);
        };
        self.keeps.tickets += 1;
        let ticket = self.keeps.tickets;
        self.keeps.waiting.insert(ticket, (from, task));
        self.keeps.due.push_back(Keep { ticket, bdev, bytes });
    }

    /// The next thing to be kept; only core 0 has some. Later ones must not be durable before earlier ones.
    pub fn poll_keep(&mut self) -> Option<Keep> {
        self.keeps.due.pop_front()
    }

    /// Something is durable, or why it is not.
    pub fn kept(&mut self, ticket: u64, kept: Applied, env: &mut Env<'_>) {
        if let Some((core, task)) = self.keeps.waiting.remove(&ticket) {
            self.post(core, Mail::Kept { task, kept }, env);
        }
    }
}
