//! One a core: the layer stacks of all devices, for the stripes that this core owns. Whatever touches those stripes
//! passes here, so nothing below needs a lock.
//!
//! The node carries [`Mail`] to it, drains [`Shard::poll_disk`] and [`Shard::poll_done`], and calls [`Shard::turn`]
//! once a turn. At most [`SHARD_IOS_MAX`] requests are in the stacks at once; the rest wait here in order, bounded by
//! the credits they came with.

use crate::edge::{EdgeAsk, EdgeTell, Edges, Swap};
use crate::error::IoError;
use crate::geometry::Geometry;
use crate::io::{BdevId, Done, Io, Op, Tag};
use crate::layer::{Bdev, Effects, Place};
use crate::lent::Lent;
use crate::pool::PoolShard;
use crate::pool::mail::{Answer, Ask, Data};
use crate::pool::owner::{POOL_BDEVS, TOKENS_PLACE};
use crate::stack::Stack;
use reactor::Core;
use reactor::buf::BUF_BYTES_MAX;
use reactor::clock::Time;
use reactor::disk::{DiskDone, DiskOp};
use reactor::slots::{Slot, Slots};
use std::collections::VecDeque;

/// How many requests are inside a shard's stacks at once: what the tables of every layer are made for.
pub const SHARD_IOS_MAX: usize = 8192;

/// Where a disk operation's user data carry the device: [`DiskOp::user`] is unique in one shard.
pub const USER_BDEV_SHIFT: u32 = 48;

/// What cores say to each other about requests. A `Submit` is answered by exactly one `Done` to [`Io::from`].
#[derive(Debug)]
pub enum Mail {
    /// For the owner's [`Shard::submit`].
    Submit(Io),
    /// For the asker's [`crate::router::Router::answered`].
    Done(Done),
    /// For the lower stripe's [`Shard::submit_swap`]; answered by exactly one `Swapped`.
    Swap(Box<Swap>),
    /// The answer: how it went, and all parts.
    Swapped(Box<Swap>, Result<(), IoError>),
    /// For [`Shard::on_edge`]; answered by exactly one `EdgeTold`.
    Edge(Box<EdgeAsk>),
    /// The answer, for [`Shard::on_edge_told`].
    EdgeTold(Box<EdgeTell>),
    /// For the pool of this place; answered by exactly one `PoolTell`.
    PoolAsk(u8, Ask),
    /// The answer.
    PoolTell(u8, Answer),
    /// Data of a chunk in memory, for the pool of this place; answered by exactly one `PoolDataDone`.
    PoolData(u8, Data),
    /// The answer.
    PoolDataDone(u8, Data),
}

/// What pools say to each other makes mail no larger than requests do.
const _: () = assert!(size_of::<Mail>() <= size_of::<Done>() + 16);

/// What went through one core's stack of one device, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Read and Compare requests.
    pub reads: u64,
    /// Bytes that those asked for.
    pub read_bytes: u64,
    /// Write, OrWrite, CompareAndWrite and WriteAtomic requests.
    pub writes: u64,
    /// Bytes that those asked for.
    pub write_bytes: u64,
    /// WriteZeroes requests or parts of them.
    pub zeroes: u64,
    /// Bytes that those asked for.
    pub zeroed_bytes: u64,
    /// Unmap requests or parts of them.
    pub unmaps: u64,
    /// Bytes that those asked for.
    pub unmapped_bytes: u64,
    /// Flush requests.
    pub flushes: u64,
    /// Requests that failed ([`IoError::is_failure`]).
    pub errors: u64,
}

impl Counts {
    pub(crate) fn submitted(&mut self, op: Op, bytes: u64) {
        let (count, sum) = match op {
            Op::Read | Op::Compare => (&mut self.reads, &mut self.read_bytes),
            Op::Write | Op::OrWrite | Op::CompareAndWrite | Op::WriteAtomic | Op::Stage => {
                (&mut self.writes, &mut self.write_bytes)
            }
            Op::WriteZeroes => (&mut self.zeroes, &mut self.zeroed_bytes),
            Op::Unmap => (&mut self.unmaps, &mut self.unmapped_bytes),
            Op::Flush => {
                self.flushes += 1;
                return;
            }
        };
        *count += 1;
        *sum += bytes;
    }
}

/// Set in the tokens of copies' asks on their way through a shard; above the numbers of slots, beside what askers set.
const INSTALL_TOKEN: u64 = 1 << 30;

/// What a copy brings to a volume: it is ordered with requests as a write is, so that nobody who looks first and then
/// writes finds it between.
#[derive(Debug)]
struct Install {
    pool: usize,
    from: Core,
    token: u64,
    bdev: BdevId,
    hold: Slot,
    /// Here while it waits.
    ask: Option<Ask>,
}

/// One core's part of every device.
#[derive(Debug)]
pub struct Shard {
    core: Core,
    stacks: Vec<Stack>,
    /// Volumes' layers, by their pool and place there.
    volumes: Vec<Vec<Option<Stack>>>,
    /// The pools' shards of this core.
    pub pools: Vec<PoolShard>,
    /// Copies that have their range of a volume, or wait for it.
    installs: Slots<Install>,
    pub(crate) counts: Vec<Counts>,
    pub(crate) edges: Edges,
    pub(crate) effects: Effects,
    waiting: VecDeque<Io>,
    /// Requests in the stacks.
    inside: usize,
}

impl Shard {
    /// The shard of `core` over its stacks, by [`BdevId`].
    pub fn new(core: Core, stacks: Vec<Stack>) -> Shard {
        let counts = vec![Counts::default(); stacks.len()];
        Shard {
            core,
            stacks,
            volumes: Vec::new(),
            pools: Vec::new(),
            installs: Slots::with_capacity(SHARD_IOS_MAX),
            counts,
            edges: Edges::new(),
            effects: Effects::default(),
            waiting: VecDeque::new(),
            inside: 0,
        }
    }

    /// The shard goes on to have this core's share of a pool, with device numbers of [`pool_of`].
    pub fn add_pool(&mut self, pool: PoolShard) {
        self.pools.push(pool);
        self.volumes.push(Vec::new());
    }

    /// A volume is a device of this core from now on, or has another shape; `None`: it is none any more.
    pub fn set_volume(&mut self, bdev: BdevId, geometry: Option<Geometry>) {
        let Some((pool, place)) = pool_of(bdev) else { return };
        let Some(volumes) = self.volumes.get_mut(pool) else { return };
        if place >= volumes.len() {
            volumes.resize_with(place + 1, || None);
        }
        match (&mut volumes[place], geometry) {
            (Some(stack), Some(geometry)) => stack.set_volume(geometry),
            (stack, Some(geometry)) => *stack = Some(Stack::of_volume(geometry)),
            // What is in it still comes back; who comes from now on hears from the pool that it is gone.
            (Some(_) | None, None) => {}
        }
    }

    pub(crate) fn stack_mut(&mut self, bdev: BdevId) -> Option<&mut Stack> {
        match pool_of(bdev) {
            None => self.stacks.get_mut(usize::from(bdev.0)),
            Some((pool, place)) => self.volumes.get_mut(pool)?.get_mut(place)?.as_mut(),
        }
    }

    /// Whose it is.
    pub fn core(&self) -> Core {
        self.core
    }

    /// A device as its users see it; `None` if there is no such.
    pub fn geometry(&self, bdev: BdevId) -> Option<&Geometry> {
        self.stacks.get(usize::from(bdev.0)).map(Bdev::geometry)
    }

    /// Takes a request that a router sent here.
    #[inline]
    pub fn submit(&mut self, io: Io) {
        if self.inside == SHARD_IOS_MAX {
            self.waiting.push_back(io);
        } else {
            self.pass_down(io);
        }
    }

    /// A volume that lets in whoever comes and is shared: its pool's place, and where the block begins, in bytes.
    #[inline]
    fn open_volume(&self, bdev: BdevId, lba: u64) -> Option<(usize, u64)> {
        let (pool, place) = pool_of(bdev)?;
        let stack = self.volumes.get(pool)?.get(place)?.as_ref().filter(|stack| stack.is_open_volume())?;
        Some((pool, lba * u64::from(stack.geometry().block_bytes)))
    }

    /// See [`Bdev::read_now`]; of a pool's volume where that is in memory.
    #[inline]
    pub fn read_now(&mut self, bdev: BdevId, lba: u64, buf: &mut [u8]) -> bool {
        if bdev.0 >= VOLUMES_FROM {
            let Some((pool, first)) = self.open_volume(bdev, lba) else { return false };
            return self.pools[pool].read_now(bdev, first, buf);
        }
        let place = usize::from(bdev.0);
        let done = self.stacks.get_mut(place).is_some_and(|stack| stack.read_now(lba, buf));
        if done {
            self.counts[place].submitted(Op::Read, buf.len() as u64);
        }
        done
    }

    /// Does a read or write here and now, as [`Shard::read_now`] and [`Shard::write_now`] do. False: nothing was done, and it
    /// is for [`Shard::submit`]; so is a whole piece that need not come back, which a device takes without copying it.
    #[inline]
    pub fn perform_now(&mut self, io: &mut Io) -> bool {
        match (io.op, &mut io.buf) {
            (Op::Read, Some(buf)) => self.read_now(io.bdev, io.lba, buf),
            (Op::Write, Some(buf)) if !(io.disposable && buf.len() == BUF_BYTES_MAX) => {
                self.write_now(io.bdev, io.lba, buf)
            }
            _ => false,
        }
    }

    /// See [`Bdev::expect`].
    #[inline]
    pub fn expect(&self, io: &Io) {
        let Some(buf) = &io.buf else { return };
        if let Some((pool, first)) = self.open_volume(io.bdev, io.lba) {
            self.pools[pool].expect(io.bdev, first, buf.len());
        } else if let Some(stack) = self.stacks.get(usize::from(io.bdev.0)) {
            stack.expect(io.lba, buf.len());
        }
    }

    /// See [`Bdev::lend_now`].
    #[inline]
    pub fn lend_now(&mut self, bdev: BdevId, lba: u64, bytes: usize) -> Option<Lent> {
        if bdev.0 >= VOLUMES_FROM {
            let (pool, first) = self.open_volume(bdev, lba)?;
            return self.pools[pool].lend_now(bdev, first, bytes);
        }
        let place = usize::from(bdev.0);
        let lent = self.stacks.get_mut(place)?.lend_now(lba, bytes)?;
        self.counts[place].submitted(Op::Read, bytes as u64);
        Some(lent)
    }

    /// See [`Bdev::place_now`]; of a volume, too. Who reads there says so by [`Shard::count_read`].
    pub fn place_now(&mut self, bdev: BdevId, lba: u64, bytes: usize) -> Option<Place> {
        if bdev.0 < VOLUMES_FROM {
            return self.stacks.get_mut(usize::from(bdev.0))?.place_now(lba, bytes);
        }
        let (pool, first) = self.open_volume(bdev, lba)?;
        self.pools[pool].place(bdev, first, bytes)
    }

    /// So many bytes were read where [`Shard::place_now`] said.
    pub fn count_read(&mut self, bdev: BdevId, bytes: u64) {
        match pool_of(bdev) {
            Some((pool, _)) => self.pools[pool].count_read(bytes),
            None => self.counts[usize::from(bdev.0)].submitted(Op::Read, bytes),
        }
    }

    /// See [`Bdev::write_now`].
    #[inline]
    pub fn write_now(&mut self, bdev: BdevId, lba: u64, data: &[u8]) -> bool {
        if bdev.0 >= VOLUMES_FROM {
            let Some((pool, first)) = self.open_volume(bdev, lba) else { return false };
            return self.pools[pool].write_now(bdev, first, data);
        }
        let place = usize::from(bdev.0);
        let done = self.stacks.get_mut(place).is_some_and(|stack| stack.write_now(lba, data));
        if done {
            self.counts[place].submitted(Op::Write, data.len() as u64);
        }
        done
    }

    /// A disk operation of one of the stacks has ended. One that no stack of ours began is ignored.
    pub fn complete(&mut self, done: DiskDone) {
        let bdev = (done.user >> USER_BDEV_SHIFT) as usize;
        if let Some(pool) = usize::from(POOL_MARK).checked_sub(bdev).and_then(|pool| self.pools.get_mut(pool))
        {
            pool.complete(done);
            return self.settle_pools();
        }
        let Some(stack) = self.stacks.get_mut(bdev) else {
            debug_assert!(false, "a disk operation of no device");
            return;
        };
        stack.complete(done, &mut self.effects);
    }

    /// One bounded step of each stack's own work. Whether there is more, so that the reactor must not go to sleep.
    pub fn turn(&mut self, now: Time) -> bool {
        let mut more = false;
        for stack in self.stacks.iter_mut().chain(self.volumes.iter_mut().flatten().flatten()) {
            more |= stack.turn(&mut self.effects);
        }
        for pool in &mut self.pools {
            more |= pool.turn(now);
        }
        self.settle_pools();
        more
    }

    /// Takes what another core's shard of a pool, or this core's, asks of this one.
    pub fn pool_ask(&mut self, pool: usize, from: Core, mut ask: Ask) {
        if let Some((bdev, bytes)) = ask.what.installs()
            && let Some(stack) = self.stack_mut(bdev)
        {
            let block_bytes = u64::from(stack.geometry().block_bytes);
            let blocks = bytes.start / block_bytes..bytes.end.div_ceil(block_bytes);
            let install = Install { pool, from, token: ask.token, bdev, hold: Slot::from_bits(0), ask: None };
            let Ok(name) = self.installs.insert(install) else {
                panic!("copies are bounded by their windows")
            };
            // The answer says whose range is free.
            ask.token = name.to_bits() | INSTALL_TOKEN;
            if let Some(install) = self.installs.get_mut(name) {
                install.ask = Some(ask);
            }
            let entered = self.stack_mut(bdev).and_then(|stack| stack.enter_change(blocks, name.to_bits()));
            let Some((hold, admitted)) = entered else { unreachable!("only volumes are copied to") };
            if let Some(install) = self.installs.get_mut(name) {
                install.hold = hold;
            }
            if admitted {
                self.install(name);
            }
        } else if let Some(pool) = self.pools.get_mut(pool) {
            pool.on_ask(from, ask);
        }
        self.settle_pools();
    }

    /// A copy has its range.
    fn install(&mut self, name: Slot) {
        if let Some(Install { pool, from, ask, .. }) = self.installs.get_mut(name)
            && let (pool, from, Some(ask)) = (*pool, *from, ask.take())
            && let Some(pool) = self.pools.get_mut(pool)
        {
            pool.on_ask(from, ask);
        }
    }

    /// A pool tells an asker: if that was a copy, its range is free, and the answer gets the asker's token.
    pub fn pool_told(&mut self, answer: &mut Answer) {
        if answer.token & INSTALL_TOKEN == 0 {
            return;
        }
        let name = Slot::from_bits(answer.token & !INSTALL_TOKEN);
        let Some(Install { bdev, hold, token, .. }) = self.installs.remove(name) else {
            debug_assert!(false, "each is answered once");
            return;
        };
        answer.token = token;
        let mut effects = std::mem::take(&mut self.effects);
        if let Some(stack) = self.stack_mut(bdev) {
            stack.leave_change(hold, &mut effects);
        }
        self.effects = effects;
        self.settle_pools();
    }

    /// Carries requests between volumes' layers and their pools, until all stand still.
    pub fn settle_pools(&mut self) {
        if self.pools.is_empty() {
            return;
        }
        loop {
            let mut any = false;
            while let Some(name) = self.effects.changes.pop_front() {
                any = true;
                self.install(Slot::from_bits(name));
            }
            while let Some(io) = self.effects.pool.pop_front() {
                any = true;
                match pool_of(io.bdev).and_then(|(pool, _)| self.pools.get_mut(pool)) {
                    Some(pool) => pool.submit(io),
                    None => self.effects.done.push_back(Done { io, result: Err(IoError::GONE) }),
                }
            }
            for pool in 0..self.pools.len() {
                while let Some(done) = self.pools[pool].poll_done() {
                    any = true;
                    let Some((_, place)) = pool_of(done.io.bdev) else { continue };
                    if let Some(Some(stack)) = self.volumes[pool].get_mut(place) {
                        stack.returned(done, &mut self.effects);
                    }
                }
            }
            if !any {
                return;
            }
        }
    }

    /// The next operation for this core's ring.
    #[inline]
    pub fn poll_disk(&mut self) -> Option<DiskOp> {
        let op = self.effects.disk.pop_front();
        op.or_else(|| self.pools.iter_mut().find_map(PoolShard::poll_disk))
    }

    /// The next request that has ended, for [`Io::from`]'s router.
    #[inline]
    pub fn poll_done(&mut self) -> Option<Done> {
        let done = self.effects.done.pop_front()?;
        if done.result.is_err_and(IoError::is_failure)
            && let Some(counts) = self.counts.get_mut(usize::from(done.io.bdev.0))
        {
            counts.errors += 1;
        }
        self.give_place();
        Some(done)
    }

    /// The asker gave up on all its requests with this tag. Of what has not begun nothing begins: it ends with
    /// [`IoError::ABANDONED`]. What has begun ends when the disk says so, and until then its range is
    /// fenced: whoever comes later and overlaps it waits.
    pub fn abandon(&mut self, from: Core, bdev: BdevId, tag: Tag) {
        let is_it = |io: &Io| io.from == from && io.bdev == bdev && io.tag == tag;
        while let Some(place) = self.waiting.iter().position(is_it) {
            let Some(io) = self.waiting.remove(place) else { break };
            self.inside += 1;
            self.effects.done.push_back(Done { io, result: Err(IoError::ABANDONED) });
        }
        self.abandon_swaps(from, bdev, tag);
        let mut effects = std::mem::take(&mut self.effects);
        if let Some(stack) = self.stack_mut(bdev) {
            stack.abandon(from, tag, &mut effects);
        }
        self.effects = effects;
        self.settle_pools();
    }

    /// Whether one more may be in the stacks.
    pub(crate) fn has_place(&self) -> bool {
        self.inside < SHARD_IOS_MAX
    }

    pub(crate) fn take_place(&mut self) {
        self.inside += 1;
    }

    /// One less is in the stacks. Whoever waits gets its place; compare and writes of parts, which are few, before others.
    pub(crate) fn give_place(&mut self) {
        self.inside -= 1;
        if !self.edges.wants_place() {
            self.fill_places();
        }
    }

    pub(crate) fn fill_places(&mut self) {
        while self.has_place()
            && let Some(io) = self.waiting.pop_front()
        {
            self.pass_down(io);
        }
    }

    /// What went through a device's stack here.
    pub fn counts(&self, bdev: BdevId) -> Counts {
        self.counts.get(usize::from(bdev.0)).copied().unwrap_or_default()
    }

    /// How many requests are in the stacks or wait for a place there.
    pub fn in_flight(&self) -> usize {
        self.inside + self.waiting.len() + self.edges.waiting()
    }

    fn pass_down(&mut self, io: Io) {
        self.inside += 1;
        if let Some((pool, place)) = pool_of(io.bdev) {
            match self.volumes.get_mut(pool).and_then(|volumes| volumes.get_mut(place)) {
                Some(Some(stack)) => stack.submit(io, &mut self.effects),
                _ => self.effects.done.push_back(Done { io, result: Err(IoError::GONE) }),
            }
            return self.settle_pools();
        }
        let bdev = usize::from(io.bdev.0);
        let stack = &mut self.stacks[bdev];
        let bytes = io.blocks * u64::from(stack.geometry().block_bytes);
        self.counts[bdev].submitted(io.op, bytes);
        stack.submit(io, &mut self.effects);
    }
}

/// The first device number of pools: each has [`POOL_BDEVS`] from here on.
pub const VOLUMES_FROM: u16 = 0x4000;

/// Pools of a target.
pub const POOLS_MAX: usize = 8;

/// What the first pool's operations carry in place of a device number; the next ones' is less.
pub const POOL_MARK: u16 = 0xffff;

/// Which pool a device number is of, and its place among that pool's volumes.
pub fn pool_of(bdev: BdevId) -> Option<(usize, usize)> {
    let place = usize::from(bdev.0.checked_sub(VOLUMES_FROM)?);
    let pool = place / usize::from(POOL_BDEVS);
    (pool < POOLS_MAX).then_some((pool, place % usize::from(POOL_BDEVS)))
}

/// Where the pool of a volume keeps what tokens hold: a volume that nobody sees, and that is empty after every start.
/// `None`: it is no volume of a pool.
pub fn tokens_of(bdev: BdevId) -> Option<BdevId> {
    pool_of(bdev).map(|(pool, _)| BdevId(VOLUMES_FROM + pool as u16 * POOL_BDEVS + TOKENS_PLACE))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::atomic::{Atomic, Steps};
    use crate::base::uring::{Uring, UringConfig};
    use crate::model::{geometry, io};
    use reactor::buf::{Pool, PoolConfig};
    use reactor::disk::FileId;

    /// Goal: reads and writes of a device in memory are done at once and counted; what looks first, gives its memory away or is
    /// a volume's is left for the stack; what is only expected may lie anywhere.
    #[test]
    fn what_takes_no_time_is_done_at_once() {
        let mut pool = Pool::new(PoolConfig { counts: [4, 0, 1], arena: 0 }).unwrap();
        let shape = geometry(512, 1 << 20);
        let ram = crate::base::ram::Ram::new(shape, crate::stripe::Deal::among(1), Core(0)).unwrap();
        let steps = Steps { zeroes_bytes: 4096, unmap_bytes: 4096 };
        let mut shard = Shard::new(Core(0), vec![Stack::Ram(Atomic::over(ram, steps, 8))]);
        let mut request = |op, bytes: usize, byte| {
            let mut buf = pool.take(bytes).unwrap();
            buf.fill(byte);
            io(1, op, 128, bytes as u64 / 512, Some(buf))
        };
        let (mut write, mut read) = (request(Op::Write, 4096, 7), request(Op::Read, 4096, 0));
        for lba in [0, 128, 1 << 40] {
            shard.expect(&Io { lba, ..request(Op::Read, 512, 0) });
        }
        assert!(shard.perform_now(&mut write) && shard.perform_now(&mut read));
        assert!(read.buf.as_deref().unwrap().iter().all(|&byte| byte == 7));
        let counts = shard.counts(BdevId(0));
        assert_eq!((counts.writes, counts.write_bytes, counts.reads, counts.read_bytes), (1, 4096, 1, 4096));
        assert!(!shard.perform_now(&mut request(Op::OrWrite, 512, 0)));
        let mut whole = Io { disposable: true, ..request(Op::Write, BUF_BYTES_MAX, 9) };
        assert!(!shard.perform_now(&mut whole));
        drop(whole);
        assert!(!shard.perform_now(&mut Io { bdev: BdevId(VOLUMES_FROM), ..request(Op::Read, 512, 0) }));
        assert_eq!(shard.in_flight(), 0);
    }

    /// Goal: the stacks never hold more than their tables are made for, what waits comes through in order, failures
    /// are counted, and a completion of nothing harms nobody. Method: flushes, one over the limit.
    #[test]
    fn lets_in_as_many_as_fit() {
        let mut pool = Pool::new(PoolConfig { counts: [1, 0, 0], arena: 0 }).unwrap();
        let config = UringConfig {
            bdev: BdevId(0),
            file: FileId(0),
            align_bytes: 512,
            punch_hole: true,
            zero_range: true,
        };
        let uring = Uring::new(geometry(512, 1 << 20), config, vec![pool.take(4096).unwrap()], SHARD_IOS_MAX);
        let steps = Steps { zeroes_bytes: 4096, unmap_bytes: 4096 };
        let stack = Stack::File(Atomic::over(uring, steps, SHARD_IOS_MAX));
        let mut shard = Shard::new(Core(0), vec![stack]);
        let asked = SHARD_IOS_MAX as u64 + 2;
        for tag in 0..asked {
            shard.submit(io(tag, Op::Flush, 0, 0, None));
        }
        assert_eq!((shard.in_flight() as u64, shard.effects.disk.len()), (asked, SHARD_IOS_MAX));
        shard.abandon(Core(0), BdevId(0), Tag(asked - 1));
        let mut ended = Vec::new();
        while let Some(op) = shard.poll_disk() {
            let result = if ended.is_empty() { Err(5) } else { Ok(0) };
            shard.complete(DiskDone { user: op.user, result, buf: None });
            while let Some(done) = shard.poll_done() {
                ended.push((done.io.tag.0, done.result));
            }
        }
        assert_eq!(ended.len() as u64, asked);
        assert_eq!(ended[0], (asked - 1, Err(IoError::ABANDONED)));
        let order: Vec<u64> = ended[1..].iter().map(|(tag, _)| *tag).collect();
        assert!(order.is_sorted());
        let counts = shard.counts(BdevId(0));
        assert_eq!((counts.flushes, counts.errors), (asked - 1, 1));
        assert_eq!(shard.counts(BdevId(9)), Counts::default());
        assert_eq!(shard.in_flight(), 0);
    }
}
