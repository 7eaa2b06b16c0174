//! The device that is not there, to measure everything above it: takes every write and forgets it.
//!
//! A read fills the asker's buffer with zeroes. Leaving the buffer as it is would be cheaper, but it comes from a
//! pool, and what its last user left in it is another initiator's data.

use crate::geometry::Geometry;
use crate::io::{Done, Io, Op};
use crate::layer::{Bdev, Effects};
use reactor::disk::DiskDone;

/// See the module.
#[derive(Debug)]
pub struct Null {
    geometry: Geometry,
}

impl Null {
    /// A device of this shape.
    pub fn new(geometry: Geometry) -> Null {
        Null { geometry }
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
