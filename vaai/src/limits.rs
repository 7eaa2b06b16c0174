//! Every limit that a VPD page shows or a check enforces, once. The checks and the pages name these constants and
//! nothing else, and a test sends each limit and the limit plus one.

/// MAXIMUM TRANSFER LENGTH (block limits page), in logical blocks: 256 MiB of 512-byte blocks. A data transfer
/// streams through a window, so it bounds the time of one command and not memory.
pub const TRANSFER_BLOCKS_MAX: u32 = 0x8_0000;

// The public suite reads and writes 65,536 blocks at once.
const _: () = assert!(TRANSFER_BLOCKS_MAX >= 65_536);

/// OPTIMAL TRANSFER LENGTH, in bytes: a stripe holds four, and more per command gains nothing.
pub const TRANSFER_BYTES_OPTIMAL: u32 = 1 << 20;

/// OPTIMAL TRANSFER LENGTH GRANULARITY, in bytes, unless the physical block is larger: what the pool redirects.
pub const TRANSFER_BYTES_GRANULARITY: u32 = 4096;

/// MAXIMUM WRITE SAME LENGTH, in logical blocks: 64 MiB of 512-byte blocks. A pattern other than zeroes is really
/// written, so without a limit one command could keep a device busy for hours. Initiators split by what they are told.
/// The public suite tries 65,536 blocks, and units larger than the limit.
pub const WRITE_SAME_BLOCKS_MAX: u64 = 0x2_0000;

/// MAXIMUM COMPARE AND WRITE LENGTH, in logical blocks: as many as the CDB can say. VMFS needs one for its locks and
/// heartbeats; more are one step, too, over pieces and shards. Of large blocks both instances, and what they are compared
/// with, are 3 MiB, which wait for buffers like any other command's.
pub const COMPARE_AND_WRITE_BLOCKS_MAX: u8 = u8::MAX;

const _: () = assert!(COMPARE_AND_WRITE_BLOCKS_MAX as u64 == bdev::io::SWAP_BLOCKS_MAX);

/// MAXIMUM UNMAP LBA COUNT: FFFFFFFFh is "no limit" (SBC-3 §6.6.3), and nothing is checked against it: a range
/// costs the map and not the data.
pub const UNMAP_BLOCKS_MAX: u32 = u32::MAX;

/// MAXIMUM UNMAP BLOCK DESCRIPTOR COUNT.
pub const UNMAP_DESCRIPTORS_MAX: u32 = 256;

/// Parameter lists come in one buffer. The length fields of MODE SELECT and UNMAP can't say more.
pub const PARAMETER_LIST_BYTES_MAX: u32 = u16::MAX as u32;

/// The longest READ that is carried out at once where the device can.
pub const STRAIGHT_BYTES_MAX: u32 = 1 << 20;

/// Pieces of a READ that may be with the device at once.
pub(crate) const READ_WINDOW: u32 = 16;

/// Pieces of a command that moves no data to the initiator (VERIFY of the medium, WRITE SAME of a pattern) that may
/// be with the device at once: enough to keep it busy, little enough to leave buffers for those who wait for data.
pub(crate) const QUIET_WINDOW: u32 = 8;

/// Ranges of an UNMAP that may be with the device at once.
pub(crate) const UNMAP_WINDOW: u32 = 4;

/// MAXIMUM CSCD DESCRIPTOR COUNT of a third-party copy.
pub const COPY_CSCDS_MAX: u16 = 8;

/// MAXIMUM SEGMENT DESCRIPTOR COUNT.
pub const COPY_SEGMENTS_MAX: u16 = 64;

/// MAXIMUM DESCRIPTOR LIST LENGTH, in bytes: room for all of the above, and for one too many of either, which is told apart
/// from too long a list.
pub const COPY_DESCRIPTOR_BYTES_MAX: u32 = 4096;

const _: () =
    assert!((COPY_CSCDS_MAX as u32 + COPY_SEGMENTS_MAX as u32 + 1) * 32 <= COPY_DESCRIPTOR_BYTES_MAX);

/// MAXIMUM SEGMENT LENGTH, in bytes. A segment of type 02h can't say 32 MiB of 512-byte blocks: a larger limit than it can
/// say would be asked for and cut.
pub const COPY_SEGMENT_BYTES_MAX: u32 = 16 << 20;

/// MAXIMUM CONCURRENT COPIES, identified, of one nexus.
pub const COPIES_MAX: u8 = 255;

/// What has become of finished copies that nobody has asked for yet, of one nexus; the oldest are forgotten.
pub const COPIES_KEPT_MAX: usize = 64;

/// Segments of a copy that are worked on at once, if they have nothing to do with each other.
pub(crate) const COPY_WINDOW: usize = 8;

/// MAXIMUM RANGE DESCRIPTORS of POPULATE TOKEN and WRITE USING TOKEN.
pub const TOKEN_RANGES_MAX: u16 = 64;

/// MAXIMUM TOKEN TRANSFER SIZE, in bytes, and what one command copies at the most: Windows gives a command 4 s, and takes
/// one token for each 256 MiB.
pub const TOKEN_BYTES_MAX: u64 = 256 << 20;

/// Space that a token has for its data in the volume for tokens of its pool, in bytes of addresses and not of any medium.
pub(crate) const TOKEN_PLACE_BYTES: u64 = 1 << 30;

/// Tokens that were made on one core.
pub const TOKENS_A_CORE: u16 = 256;

/// Tokens of a target: each core knows all, in less than 1 KiB.
pub const TOKENS_MAX: usize = 1024;

/// Tokens of one initiator, by its name: some are left for the others.
pub const TOKENS_INITIATOR_MAX: usize = 256;

/// ROD management tokens that REPORT ALL ROD TOKENS tells of: what fits one buffer, and the asker's own come first.
pub(crate) const TOKENS_REPORTED_MAX: usize = (reactor::buf::BUF_BYTES_MAX - 8) / 96;

const _: () = assert!(TOKENS_REPORTED_MAX > TOKENS_INITIATOR_MAX);

/// Tokens that ended last, of which it is known why.
pub(crate) const TOKENS_GONE_MAX: usize = 256;

/// Tokens of a core that end in one tick because nobody used them; the others in the next.
pub(crate) const TOKEN_ENDS_A_TICK: usize = 16;

/// DEFAULT INACTIVITY TIMEOUT of a token, in seconds.
pub const TOKEN_TIMEOUT_S: u32 = 60;

/// MAXIMUM INACTIVITY TIMEOUT, in seconds.
pub const TOKEN_TIMEOUT_MAX_S: u32 = 600;

/// Descriptors of a GET LBA STATUS: 16 KiB of parameter data, of one buffer. Who wants to know more asks from their end on.
pub const LBA_STATUS_DESCRIPTORS_MAX: usize = 1024;

/// Questions to the map that one GET LBA STATUS asks, each about what is alike in one stripe: 256 MiB at most, so that
/// the command ends in time however large the unit is.
pub const LBA_STATUS_QUESTIONS_MAX: u32 = 1024;

/// A threshold set (SBC-3 §4.7.3.8): what thresholds and log page 0Ch count in. 2^32 of them are more than any pool has.
pub const THRESHOLD_SET_BYTES: u64 = 1 << 20;

/// A soft threshold is armed again when so many percent less are used: a pool at the edge tells its hosts once.
pub const THRESHOLD_HYSTERESIS_PERCENT: u8 = 2;

/// Logical units of a target: REPORT LUNS has to fit a buffer.
pub const LUNS_MAX: usize = 4096;

/// The largest LUN: what flat space addressing can say (SAM-5 §4.7.7.3).
pub const LUN_MAX: u16 = 0x3FFF;

/// Target ports of a target: REPORT TARGET PORT GROUPS counts the ports of a group in a byte.
pub const PORTS_MAX: usize = 255;

/// Registrations of one unit: 64 hosts with four paths each. READ FULL STATUS of all of them, and what is kept of them
/// (APTPL=1), stay near 64 KiB.
pub const REGISTRATIONS_MAX: usize = 256;

/// Nexuses that may prevent medium removal of one unit at once.
pub const PREVENTERS_MAX: usize = 4096;
