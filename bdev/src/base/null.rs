//! The device that is not there, to measure everything above it: takes every write and forgets it.
//!
//! A read fills the asker's buffer with zeroes. Leaving the buffer as it is would be cheaper, but it comes from a
//! pool, and what its last user left in it is another initiator's data.

use crate::geometry::Geometry;
use crate::io::{Done, Io, Op};
use crate::layer::{Bdev, Effects};
use crate::lent::{Lent, Shelf};
use reactor::buf::{BUF_BYTES_MAX, Buf, Pool, PoolConfig};
use reactor::disk::DiskDone;
use std::rc::Rc;

/// See the module.
#[derive(Debug)]
pub struct Null {
    geometry: Geometry,
    /// A piece of zeroes, which all reads are lent.
    zeroes: Option<Rc<Buf>>,
    shelf: Rc<Shelf>,
}

impl Null {
    /// A device of this shape.
    pub fn new(geometry: Geometry) -> Null {
        let mut home = Pool::new(PoolConfig { counts: [0, 0, 1], arena: u16::MAX }).ok();
        let zeroes = home.as_mut().and_then(|home| home.take(BUF_BYTES_MAX)).map(Rc::new);
        // Nobody writes there, so nothing has to be replaced.
        Null { geometry, zeroes, shelf: Shelf::new(usize::MAX, Vec::new()) }
    }
}

impl Bdev for Null {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    #[inline]
    fn submit(&mut self, mut io: Io, effects: &mut Effects) {
        if let (Op::Read, Some(buf)) = (io.op, io.buf.as_mut()) {
            buf.fill(0);
        }
        effects.done.push_back(Done { io, result: Ok(()) });
    }

    #[inline]
    fn read_now(&mut self, _: u64, buf: &mut [u8]) -> bool {
        buf.fill(0);
        true
    }

    #[inline]
    fn lend_now(&mut self, _: u64, bytes: usize) -> Option<Lent> {
        self.zeroes.as_ref().and_then(|zeroes| self.shelf.lend(zeroes, 0, bytes))
    }

    #[inline]
    fn write_now(&mut self, _: u64, _: &[u8]) -> bool {
        true
    }

    fn complete(&mut self, _: DiskDone, _: &mut Effects) {
        debug_assert!(false, "it asks no disk for anything");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{geometry, io};
    use reactor::buf::{Pool, PoolConfig};

    /// Goal: no read hands out what a pool's buffer had in it before.
    #[test]
    fn reads_are_zero() {
        let mut pool = Pool::new(PoolConfig { counts: [1, 0, 0], arena: 0 }).unwrap();
        let mut buf = pool.take(4096).unwrap();
        buf.fill(0x55);
        let mut effects = Effects::default();
        Null::new(geometry(512, 1 << 40)).submit(io(1, Op::Read, 7, 8, Some(buf)), &mut effects);
        let done = effects.done.pop_front().unwrap();
        assert!(done.result.is_ok() && done.io.buf.unwrap().iter().all(|&byte| byte == 0));
    }
}
