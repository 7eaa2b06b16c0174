//! What a transport hands to the device server, and what it gets back: the values at vaai's upper edge.

use bdev::io::{BdevId, Io};
use reactor::buf::Buf;

/// An I_T nexus, unique over all cores for the life of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NexusId(pub u64);

/// SAM-5 §8.9 task attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskAttribute {
    /// No attribute given (iSCSI only); handled as simple.
    Untagged,
    /// May be reordered.
    Simple,
    /// Not before older tasks, nor after younger ones.
    Ordered,
    /// Before all others.
    HeadOfQueue,
    /// Auto contingent allegiance; not supported.
    Aca,
}

/// A SCSI command as it arrived.
#[derive(Clone, Copy, Debug)]
pub struct Command {
    /// The eight bytes of the LUN field (SAM-5 §4.7).
    pub lun: [u8; 8],
    /// The CDB, zero-padded. CDBs over 16 bytes are refused by the transport's caller with INVALID OPCODE.
    pub cdb: [u8; 16],
    /// How it may be ordered.
    pub attribute: TaskAttribute,
    /// Bytes the initiator has for us: EDTL if the W bit was set, otherwise 0.
    pub data_out_bytes: u32,
    /// Bytes the initiator has room for: EDTL if the R bit was set, otherwise 0.
    pub data_in_bytes: u32,
}

/// Where a task gets its buffers: the session's share of the core's pool.
pub trait Buffers {
    /// A buffer with `len() == bytes`; `None`: not now, the task is polled again when some come back.
    fn take(&mut self, bytes: usize) -> Option<Buf>;
    /// Gives one back.
    fn give(&mut self, buf: Buf);
}

/// What a task wants next.
#[derive(Debug)]
pub enum Effect {
    /// The task takes this many data-out bytes, from offset 0; said at most once, at most
    /// [`Command::data_out_bytes`]. What the initiator sends beyond is discarded.
    WantData {
        /// Total.
        bytes: u32,
    },
    /// For the router. The transport fills in `tag` and `from`; the answer goes to `Task::io_done`.
    Submit(Io),
    /// For the layer that copies. The transport fills in `tag`; the answer goes to `Task::copy_done`.
    Copy(bdev::storage::CopyIo),
    /// The nexus' copy with this identifier is to end: what it has below is given up, and no more comes of it.
    StopCopy {
        /// LIST IDENTIFIER, as `Task::copy_id`.
        id: u32,
    },
    /// For the router: from here on, how many of these bytes are alike, mapped or not? The answer goes to
    /// `Task::status_done`. At most one is out.
    Status {
        /// Which device.
        bdev: BdevId,
        /// The first byte: a whole logical block.
        from_bytes: u64,
        /// At most so many; not 0.
        bytes: u64,
    },
    /// Data for the initiator, `buf.len()` bytes at `offset`. Emitted in any order, together contiguous from 0,
    /// never past [`Command::data_in_bytes`]. The transport gives the buffer back when it is sent. Where one fails,
    /// later ones may have been emitted already: those past the outcome's `transfer_bytes` are not for sending.
    DataIn {
        /// From the start of the data-in buffer.
        offset: u32,
        /// The bytes.
        buf: Buf,
    },
    /// Every core must have applied this before the task goes on with `Task::decreed`.
    Propose(crate::change::Change),
    /// What is reserved of this unit ([`crate::server::DeviceServer::reservations_to_keep`]) has to be durable before the
    /// task goes on with `Task::kept`.
    Keep {
        /// Which.
        lun: u16,
    },
    /// The command is answered, and what it has begun goes on as a background operation: more effects follow, and at its
    /// end a [`Effect::Finish`] that nobody is told of. At most once, and by no command that has data for the initiator.
    Answer(Outcome),
    /// The end. Nothing comes after it, and no [`Io`] is out.
    Finish(Outcome),
}

/// A command's end (SAM-5 §5.3).
#[derive(Debug)]
pub struct Outcome {
    /// GOOD, CHECK CONDITION, ...
    pub status: crate::sense::Status,
    /// With CHECK CONDITION: sense data in the format the control page asks for, as it goes on the wire.
    pub sense: Option<crate::sense::SenseBytes>,
    /// What the command moves by its CDB, allocation length and what is available: the transport's residual is
    /// the expected data transfer length less this (underflow) or the other way round (overflow). A command
    /// that was refused before it moved anything says what it would have moved where a suite wants the residual
    /// (WRITE), otherwise 0.
    pub transfer_bytes: u64,
}
