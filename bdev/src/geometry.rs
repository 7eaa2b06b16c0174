//! What a device is and can do: the one place VPD pages, limits and checks are made from.

/// A device's shape. Constant while it is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Logical block: 512 or 4096.
    pub block_bytes: u32,
    /// Physical block, a multiple of the logical one: what is written without read-modify-write.
    pub physical_block_bytes: u32,
    /// Capacity in logical blocks.
    pub blocks: u64,
    /// Space comes back in units of this; 0 if the device can't give any back.
    pub unmap_granularity_bytes: u32,
    /// Zeroes are written without moving data.
    pub write_zeroes: bool,
    /// Acknowledged writes may be lost with power until a flush (SCSI's WCE).
    pub write_cache: bool,
    /// No write is possible.
    pub read_only: bool,
    /// The medium turns.
    pub rotational: bool,
    /// A pool's volume: each core makes its own part durable, so a flush goes to all of them.
    pub pooled: bool,
    /// The longest [`crate::io::Op::WriteAtomic`]; 0 if the device has none.
    pub atomic_bytes: u32,
}

impl Geometry {
    /// Capacity in bytes.
    pub fn bytes(&self) -> u64 {
        self.blocks * u64::from(self.block_bytes)
    }

    /// Whether the device provisions thinly: LBPME.
    pub fn is_thin(&self) -> bool {
        self.unmap_granularity_bytes != 0
    }
}
