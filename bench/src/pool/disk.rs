//! A disk that keeps a pool's metadata and forgets its data: maps, journals and recovery are real, and a TiB fits in
//! memory.
//!
//! Pages of zeroes are not kept either. The pool meets it as a [`Medium`] while it is opened, later through
//! [`Disk::perform`], at once and always well.
#![allow(clippy::struct_field_names, reason = "what it has are pages, and nothing else")]

use bdev::pool::Medium;
use bdev::zero_detect::is_zero;
use reactor::disk::{DiskAction, DiskDone, DiskOp};
use std::sync::{Arc, Mutex, PoisonError};

const PAGE_BYTES: usize = 64 << 10;

/// What went through it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Operations.
    pub ops: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub write_bytes: u64,
}

#[derive(Debug)]
struct Pages {
    /// Where what is kept ends.
    kept_bytes: u64,
    pages: Vec<Option<Box<[u8]>>>,
    traffic: Traffic,
}

/// See the module. Clones are the same disk.
#[derive(Clone, Debug)]
pub struct Disk {
    bytes: u64,
    pages: Arc<Mutex<Pages>>,
}

impl Disk {
    /// A disk of `bytes` that keeps all.
    pub fn new(bytes: u64) -> Disk {
        let pages = Pages { kept_bytes: bytes, pages: Vec::new(), traffic: Traffic::default() };
        Disk { bytes, pages: Arc::new(Mutex::new(pages)) }
    }

    /// From now on what is written from `kept_bytes` on is forgotten.
    pub fn forget_from(&self, kept_bytes: u64) {
        let mut pages = self.lock();
        pages.kept_bytes = kept_bytes;
        pages.pages.truncate(kept_bytes.div_ceil(PAGE_BYTES as u64) as usize);
    }

    /// What went through it since the start.
    pub fn traffic(&self) -> Traffic {
        self.lock().traffic
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Pages> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does what the ring would have done.
    pub fn perform(&self, mut op: DiskOp) -> DiskDone {
        let mut pages = self.lock();
        pages.traffic.ops += 1;
        let memory = op.buf_offset as usize..op.buf_offset as usize + op.bytes as usize;
        let kept = op.offset_bytes < pages.kept_bytes;
        match (op.action, op.buf.as_mut()) {
            (DiskAction::Read, Some(buf)) => {
                pages.traffic.read_bytes += op.bytes;
                if kept {
                    pages.read(op.offset_bytes, &mut buf[memory]);
                }
            }
            (DiskAction::Write { .. }, Some(buf)) => {
                pages.traffic.write_bytes += op.bytes;
                if kept {
                    pages.write(op.offset_bytes, &buf[memory]);
                }
            }
            _ => {}
        }
        DiskDone { user: op.user, result: Ok(op.bytes as u32), buf: op.buf }
    }
}

impl Pages {
    fn read(&self, offset_bytes: u64, into: &mut [u8]) {
        let mut at = offset_bytes as usize;
        for part in cut(offset_bytes, into.len()) {
            let target = &mut into[part.clone()];
            let within = at % PAGE_BYTES;
            match self.pages.get(at / PAGE_BYTES) {
                Some(Some(page)) => target.copy_from_slice(&page[within..within + part.len()]),
                _ => target.fill(0),
            }
            at += part.len();
        }
    }

    fn write(&mut self, offset_bytes: u64, from: &[u8]) {
        let mut at = offset_bytes as usize;
        for part in cut(offset_bytes, from.len()) {
            let source = &from[part.clone()];
            let within = at % PAGE_BYTES;
            let known = self.pages.get(at / PAGE_BYTES).is_some_and(Option::is_some);
            if (at as u64) < self.kept_bytes && (known || !is_zero(source)) {
                if self.pages.len() <= at / PAGE_BYTES {
                    self.pages.resize_with(at / PAGE_BYTES + 1, || None);
                }
                let page = self.pages[at / PAGE_BYTES].get_or_insert_with(|| vec![0; PAGE_BYTES].into());
                page[within..within + part.len()].copy_from_slice(source);
            }
            at += part.len();
        }
    }
}

/// The pieces of a range, as offsets into it, that lie in one page each.
fn cut(offset_bytes: u64, length: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    let mut from = 0;
    std::iter::from_fn(move || {
        let room = PAGE_BYTES - (offset_bytes as usize + from) % PAGE_BYTES;
        let part = from..length.min(from + room);
        from = part.end;
        (!part.is_empty()).then_some(part)
    })
}

impl Medium for Disk {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn read(&self, offset_bytes: u64, into: &mut [u8]) -> std::io::Result<()> {
        self.lock().read(offset_bytes, into);
        Ok(())
    }

    fn write(&self, offset_bytes: u64, from: &[u8]) -> std::io::Result<()> {
        self.lock().write(offset_bytes, from);
        Ok(())
    }

    fn sync(&self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: metadata is what was written, across pages too; data and what nobody wrote are zeroes. Method: by hand.
    #[test]
    fn keeps_metadata_only() {
        let disk = Disk::new(1 << 40);
        disk.forget_from(1 << 20);
        let edge = PAGE_BYTES as u64 - 2;
        disk.write(edge, &[1, 2, 3, 4]).unwrap();
        disk.write(1 << 30, &[9; 8]).unwrap();
        let mut bytes = [7; 6];
        disk.read(edge - 1, &mut bytes).unwrap();
        assert_eq!(bytes, [0, 1, 2, 3, 4, 0]);
        disk.read(1 << 30, &mut bytes).unwrap();
        assert_eq!(bytes, [0; 6]);
        disk.write(edge, &[0; 4]).unwrap();
        disk.read(edge, &mut bytes).unwrap();
        assert_eq!(bytes, [0; 6]);
    }
}
