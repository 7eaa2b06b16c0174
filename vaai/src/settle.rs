//! Commands that wait for the device or for the other cores, and move no data: SYNCHRONIZE CACHE, START STOP UNIT,
//! PREVENT ALLOW MEDIUM REMOVAL.

use crate::change::{Applied, Change};
use crate::command::Effect;
use crate::sense::Sense;
use crate::task::{End, Head, Step, Work};
use bdev::io::{Done, Op};

/// First the flush, if any; then the change, if any.
#[derive(Debug)]
pub(crate) struct Settle {
    flush: bool,
    change: Option<Change>,
    /// What the last one came to; `None` while it is out.
    result: Option<Result<(), Sense>>,
}

impl Settle {
    /// Everything that was acknowledged goes to the medium.
    pub(crate) fn flush() -> Work {
        Work::Settle(Settle { flush: true, change: None, result: Some(Ok(())) })
    }

    /// Every core makes the change.
    pub(crate) fn change(change: Change) -> Settle {
        Settle { flush: false, change: Some(change), result: Some(Ok(())) }
    }

    /// The change, but only after a flush.
    pub(crate) fn flush_and_change(change: Change) -> Settle {
        Settle { flush: true, ..Settle::change(change) }
    }

    pub(crate) fn poll(&mut self, head: &mut Head) -> Step {
        match self.result {
            None => Step::Wait,
            Some(Err(sense)) => Step::End(End::of(Err(sense))),
            Some(Ok(())) if self.flush => {
                self.flush = false;
                self.result = None;
                head.submit(Op::Flush, false, 0, 0, None, None)
            }
            Some(Ok(())) => match self.change.take() {
                Some(change) => {
                    self.result = None;
                    Step::Effect(Effect::Propose(change))
                }
                None => Step::End(End::GOOD),
            },
        }
    }

    pub(crate) fn io_done(&mut self, done: &Done) {
        self.result = Some(done.result.map_err(|error| Sense::of_io(error, done.io.op, done.io.lba)));
    }

    pub(crate) fn decreed(&mut self, applied: Applied) {
        self.result = Some(applied);
    }
}
