//! A session: its nexus, its command window, its tasks, its share of the buffers. It outlives its connection
//! until its last task is quiet.
//!
//! Invariant: `tasks` holds exactly the tasks of this session, by initiator task tag; MaxCmdSN never goes back.

use crate::negotiate::Parameters;
use crate::pdu::TaskTag;
use crate::quota::Share;
use crate::serial::{Admission, CmdSn, CommandWindow};
use ahash::AHashMap;
use reactor::slots::Slot;
use vaai::command::NexusId;

/// Commands a session may have open, and so the width of its command window (RFC 7143 §4.2.2.1).
pub const COMMANDS_MAX: u32 = 128;

/// Immediate commands beyond the window that a session may have open; the next is rejected (reason 06h).
pub const IMMEDIATE_MAX: u32 = 16;

/// Tasks whose IOs are not all back, aborted ones included, that a session may have; the next command is answered with
/// TASK SET FULL. So whoever aborts what a stuck device holds, and asks again, fills its own part of the table.
pub const ENTRIES_MAX: u32 = 8 * COMMANDS_MAX;

/// Task management functions that a session may have waiting for an answer; the next is rejected.
pub const FUNCTIONS_MAX: u32 = COMMANDS_MAX;

/// One session on one connection.
#[derive(Debug)]
pub struct Session {
    /// Its I_T nexus.
    pub nexus: NexusId,
    /// InitiatorName.
    pub initiator_name: String,
    /// ISID.
    pub isid: [u8; 6],
    /// TargetName.
    pub target_name: String,
    /// TSIH, never 0.
    pub tsih: u16,
    /// What login agreed.
    pub parameters: Parameters,
    /// Its connection; `None` once that is gone.
    pub connection: Option<Slot>,
    window: CommandWindow,
    /// By initiator task tag. Room for all is taken when the session opens.
    pub tasks: AHashMap<TaskTag, Slot>,
    /// Tasks that were sent as immediate commands.
    pub immediate_tasks: u32,
    /// Entries in the task table, aborted ones that wait for their IOs included.
    pub entries: u32,
    /// Those of them that were answered and go on.
    pub background: u32,
    /// Task management functions without an answer yet.
    pub functions: u32,
    /// ORDERED and HEAD OF QUEUE tasks among `tasks`.
    pub ranked: u32,
    /// Tasks that wait for others may go on: the target has a note of it.
    pub is_reorder_due: bool,
    /// Buffers.
    pub share: Share,
}

/// What a session is called.
#[derive(Clone, Debug)]
pub struct Identity {
    /// InitiatorName.
    pub initiator_name: String,
    /// ISID.
    pub isid: [u8; 6],
    /// TargetName.
    pub target_name: String,
    /// TSIH.
    pub tsih: u16,
}

impl Session {
    /// A session entering full feature phase, the next CmdSN being `exp_cmd_sn`.
    pub fn new(
        nexus: NexusId,
        identity: Identity,
        parameters: Parameters,
        connection: Slot,
        exp_cmd_sn: CmdSn,
        share: Share,
    ) -> Session {
        let Identity { initiator_name, isid, target_name, tsih } = identity;
        Session {
            nexus,
            initiator_name,
            isid,
            target_name,
            tsih,
            parameters,
            connection: Some(connection),
            window: CommandWindow::new(exp_cmd_sn, COMMANDS_MAX),
            tasks: AHashMap::with_capacity((COMMANDS_MAX + IMMEDIATE_MAX) as usize),
            immediate_tasks: 0,
            entries: 0,
            background: 0,
            functions: 0,
            ranked: 0,
            is_reorder_due: false,
            share,
        }
    }

    /// Opens the command window by the places that are free, and gives it for a response's ExpCmdSN and MaxCmdSN.
    pub fn window(&mut self) -> &CommandWindow {
        let open = self.tasks.len() as u32 - self.immediate_tasks;
        self.window.grant(COMMANDS_MAX.saturating_sub(open));
        &self.window
    }

    /// Judges a command's CmdSN.
    pub fn admit(&mut self, cmd_sn: CmdSn, immediate: bool) -> Admission {
        self.window.admit(cmd_sn, immediate)
    }
}
