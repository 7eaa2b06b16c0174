//! Who may hold how many of a core's buffers: every session has a guaranteed minimum and a cap, so that one
//! with a stuck device or a silent peer can't starve the others.
//!
//! The guarantee is counted in buffers of the largest class, since any request fits one. Invariant:
//! `promised <= large_total - large_out`: what sessions below their minimum may still claim is there.

use crate::session::{COMMANDS_MAX, IMMEDIATE_MAX};
use reactor::buf::{BUF_BYTES_MAX, Buf, CLASS_BYTES, Pool};
use vaai::command::Buffers;

/// Large buffers that a session can always have: data of one command and the memory to compare it with.
pub const SESSION_LARGE_MIN: u32 = 2;

/// What a session's commands may bring unasked, each in one piece or two, for all that its window lets in: a connection
/// never stands still for want of a buffer while it is not the core that has none. So with a FirstBurstLength of up to a
/// piece, which is what is offered unless it is configured otherwise; with a longer one it may stand still as for any other want.
const UNSOLICITED_BYTES_MAX: u32 = (COMMANDS_MAX + IMMEDIATE_MAX) * 2 * BUF_BYTES_MAX as u32;

/// Buffers that wait for data which were asked for. They come behind whatever the initiator sends unasked, so these must
/// not take the buffers of those.
const SOLICITED_BYTES_MAX: u32 = 6 << 20;

/// Bytes of buffers that a session may hold at once.
pub const SESSION_BYTES_MAX: u32 = UNSOLICITED_BYTES_MAX + SOLICITED_BYTES_MAX + TASK_HEADROOM_BYTES;

/// What incoming data leave of a session's cap for its tasks' own needs, so that a session full of VERIFYs that
/// all wait for memory to compare with can't stand still.
const TASK_HEADROOM_BYTES: u32 = 1 << 20;

/// One core's account.
#[derive(Debug)]
pub struct Quota {
    large_total: u32,
    large_out: u32,
    promised: u32,
    /// Counts what makes a second try worth while: buffers given back, promises taken back.
    returns: u64,
}

/// One session's account.
#[derive(Debug)]
pub struct Share {
    /// Large buffers that it can always have; 0 once it has lost its connection.
    minimum: u32,
    held_bytes: u32,
    held_large: u32,
    /// Of those, buffers that wait for data which were asked for.
    solicited_bytes: u32,
}

impl Share {
    /// Whether data that were asked for are still to come.
    pub fn awaits_data(&self) -> bool {
        self.solicited_bytes > 0
    }

    /// Bytes of buffers that the session holds now.
    pub fn held_bytes(&self) -> u32 {
        self.held_bytes
    }

    fn promised(&self) -> u32 {
        self.minimum.saturating_sub(self.held_large)
    }
}

impl Quota {
    /// For a pool that has `large_total` buffers of the largest class to lend.
    pub fn new(large_total: u32) -> Quota {
        Quota { large_total, large_out: 0, promised: 0, returns: 0 }
    }

    /// Changes whenever somebody who was refused may be luckier now.
    pub fn returns(&self) -> u64 {
        self.returns
    }

    /// Promises a new session its minimum.
    ///
    /// # Errors
    /// The core's memory is promised already: the login is refused with "out of resources".
    pub fn open(&mut self) -> Result<Share, OutOfBuffers> {
        // An eighth of the memory stays for those who use more than their minimum.
        let promises_max = self.large_total - self.large_total.div_ceil(8);
        if self.promised + self.large_out + SESSION_LARGE_MIN > self.large_total
            || self.promised + SESSION_LARGE_MIN > promises_max
        {
            return Err(OutOfBuffers);
        }
        self.promised += SESSION_LARGE_MIN;
        Ok(Share { minimum: SESSION_LARGE_MIN, held_bytes: 0, held_large: 0, solicited_bytes: 0 })
    }

    /// Takes the promise back from a session that begins nothing any more but waits for its last IOs: what a stuck
    /// device holds of it must not keep its initiator from coming back.
    pub fn retire(&mut self, share: &mut Share) {
        self.promised -= share.promised();
        share.minimum = 0;
        self.returns += 1;
        self.check();
    }

    /// Ends a session that holds nothing any more.
    pub fn close(&mut self, share: &Share) {
        assert!(share.solicited_bytes == 0, "what was asked for has come or was given up");
        assert!(share.held_bytes == 0, "a session ends when its last buffer is back");
        self.promised -= share.promised();
        self.returns += 1;
        self.check();
    }

    /// Whether nothing is lent or promised.
    pub fn is_zero(&self) -> bool {
        (self.large_out, self.promised) == (0, 0)
    }

    fn check(&self) {
        assert!(self.large_out <= self.large_total);
        assert!(self.promised <= self.large_total - self.large_out);
    }
}

/// No room for another session's guaranteed buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfBuffers;

/// A session at the counter: takes from the pool within its share.
#[derive(Debug)]
pub struct Lender<'a> {
    /// The core's buffers.
    pub pool: &'a mut Pool,
    /// The core's account.
    pub quota: &'a mut Quota,
    /// The session's account.
    pub share: &'a mut Share,
    /// A buffer was asked for and not given: whoever asked tries again when some come back.
    pub refused: bool,
    /// Buffers lent.
    pub taken: u32,
}

impl<'a> Lender<'a> {
    /// Lends from `pool` to `share`.
    pub fn new(pool: &'a mut Pool, quota: &'a mut Quota, share: &'a mut Share) -> Lender<'a> {
        Lender { pool, quota, share, refused: false, taken: 0 }
    }

    /// A buffer for data from the initiator: as [`Buffers::take`], but leaves the session's tasks some room.
    pub fn take_for_data_out(&mut self, bytes: usize) -> Option<Buf> {
        self.take_below(bytes, SESSION_BYTES_MAX - TASK_HEADROOM_BYTES)
    }

    /// A buffer for data from the initiator that are going to be asked for. Told back by [`Lender::unreserve`] when they
    /// begin to come or never will.
    pub fn reserve(&mut self, bytes: usize) -> Option<Buf> {
        let waiting = self.share.solicited_bytes;
        if waiting > 0 && waiting + bytes as u32 > SOLICITED_BYTES_MAX {
            self.refused = true;
            return None;
        }
        let buf = self.take_for_data_out(bytes)?;
        self.share.solicited_bytes += buf.capacity() as u32;
        Some(buf)
    }

    /// See [`Lender::reserve`].
    pub fn unreserve(&mut self, buf: &Buf) {
        self.share.solicited_bytes -= buf.capacity() as u32;
        self.quota.returns += 1;
    }

    fn take_below(&mut self, bytes: usize, cap_bytes: u32) -> Option<Buf> {
        let guaranteed = self.share.held_large < self.share.minimum;
        if !guaranteed && self.share.held_bytes + bytes as u32 > cap_bytes {
            self.refused = true;
            return None;
        }
        let spare = self.quota.large_total - self.quota.large_out > self.quota.promised;
        let largest = if guaranteed || spare { BUF_BYTES_MAX } else { CLASS_BYTES[1] };
        let Some(buf) = self.pool.take_within(bytes, largest) else {
            self.refused = true;
            return None;
        };
        if buf.capacity() == BUF_BYTES_MAX {
            self.quota.promised -= self.share.promised();
            self.share.held_large += 1;
            self.quota.large_out += 1;
            self.quota.promised += self.share.promised();
        }
        self.share.held_bytes += buf.capacity() as u32;
        self.taken += 1;
        self.quota.check();
        Some(buf)
    }
}

impl Buffers for Lender<'_> {
    fn take(&mut self, bytes: usize) -> Option<Buf> {
        self.take_below(bytes, SESSION_BYTES_MAX)
    }

    fn give(&mut self, buf: Buf) {
        if buf.capacity() == BUF_BYTES_MAX {
            self.quota.promised -= self.share.promised();
            self.share.held_large -= 1;
            self.quota.large_out -= 1;
            self.quota.promised += self.share.promised();
        }
        self.share.held_bytes -= buf.capacity() as u32;
        self.quota.returns += 1;
        self.quota.check();
        self.pool.give(buf);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use reactor::buf::PoolConfig;

    /// Goal: a greedy session leaves every other its minimum. Method: one takes all it can, then the others ask.
    #[test]
    fn a_greedy_session_leaves_the_minimum() {
        let mut pool = Pool::new(PoolConfig { counts: [4, 4, 32], arena: 0 }).unwrap();
        let mut quota = Quota::new(32);
        let mut greedy = quota.open().unwrap();
        let mut modest: Vec<Share> = (0..7).map(|_| quota.open().unwrap()).collect();
        let mut held = Vec::new();
        let mut lender = Lender::new(&mut pool, &mut quota, &mut greedy);
        while let Some(buf) = lender.take(100) {
            held.push(buf);
        }
        assert_eq!(held.len(), 4 + 4 + 32 - 7 * SESSION_LARGE_MIN as usize);
        for share in &mut modest {
            let mut lender = Lender::new(&mut pool, &mut quota, share);
            let two: Vec<Buf> = (0..2).map(|_| lender.take(BUF_BYTES_MAX).unwrap()).collect();
            assert!(lender.take(1).is_none());
            for buf in two {
                lender.give(buf);
            }
        }
        let mut lender = Lender::new(&mut pool, &mut quota, &mut greedy);
        for buf in held {
            lender.give(buf);
        }
        for share in modest.iter().chain([&greedy]) {
            quota.close(share);
        }
        assert_eq!((quota.promised, quota.large_out), (0, 0));
    }

    /// Goal: sessions that only wait for a stuck device do not keep others out. Method: retire one, open the next.
    #[test]
    fn a_retired_session_has_no_promise() {
        let mut pool = Pool::new(PoolConfig { counts: [0, 0, 8], arena: 0 }).unwrap();
        let mut quota = Quota::new(8);
        let mut shares = [(); 3].map(|()| quota.open().unwrap());
        let held = Lender::new(&mut pool, &mut quota, &mut shares[0]).take(100).unwrap();
        shares[1..].iter_mut().for_each(|share| quota.retire(share));
        let later = [(); 3].map(|()| quota.open().unwrap());
        assert_eq!(quota.open().unwrap_err(), OutOfBuffers);
        Lender::new(&mut pool, &mut quota, &mut shares[0]).give(held);
        shares.iter().chain(&later).for_each(|share| quota.close(share));
        assert!(quota.is_zero());
    }

    /// Goal: sessions beyond what can be guaranteed are refused, and a closed one makes room.
    #[test]
    fn promises_no_more_than_there_is() {
        let mut quota = Quota::new(8);
        let first = quota.open().unwrap();
        quota.open().unwrap();
        quota.open().unwrap();
        assert_eq!(quota.open().unwrap_err(), OutOfBuffers);
        quota.close(&first);
        quota.open().unwrap();
    }
}
