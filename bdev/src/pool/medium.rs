//! Members as they are met before the reactors run: to create, open and check pools.

use std::fmt;
use std::io;
use std::ops::Range;

/// A file or block device, read and written one thing at a time.
pub trait Medium: Send + Sync + fmt::Debug {
    /// Its length.
    fn bytes(&self) -> u64;

    /// Fills `into` from `offset_bytes` on.
    ///
    /// # Errors
    /// The kernel's, or an end before all is read.
    fn read(&self, offset_bytes: u64, into: &mut [u8]) -> io::Result<()>;

    /// Writes all of `from`. Durable after [`Medium::sync`].
    ///
    /// # Errors
    /// The kernel's.
    fn write(&self, offset_bytes: u64, from: &[u8]) -> io::Result<()>;

    /// The first range of data that ends behind `from`: what is between reads as zeroes and takes no space. `None`: there
    /// is none. Whoever can't tell says that all of it is data.
    ///
    /// # Errors
    /// The kernel's.
    fn next_data(&self, from: u64) -> io::Result<Option<Range<u64>>> {
        Ok((from < self.bytes()).then(|| from..self.bytes()))
    }

    /// All that was written is durable when this returns.
    ///
    /// # Errors
    /// The kernel's.
    fn sync(&self) -> io::Result<()>;
}
