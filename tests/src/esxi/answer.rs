//! How a command ended, and what is said when that is not how it should have.

use super::command::Command;
use super::sense::{self, Code, GOOD, Sense};
use std::fmt::{self, Write as _};
use std::time::Duration;

/// How a command ended.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Its tag.
    pub tag: u32,
    /// What was asked.
    pub command: Command,
    /// Status.
    pub status: u8,
    /// What its sense data say.
    pub sense: Option<Sense>,
    pub(super) sense_bytes: Vec<u8>,
    /// What came.
    pub data: Vec<u8>,
    /// Bytes that were announced and not moved; negative: there would have been more.
    pub residual: i64,
    /// From the command to its end.
    pub took: Duration,
}

impl Answer {
    /// Ends the test: the command, its end, and what ESXi would do then.
    #[track_caller]
    pub fn fail(&self, what: impl fmt::Display) -> ! {
        let cdb = hex(&self.command.cdb);
        let code = self.sense.map(|sense| sense.code);
        let told = code.map_or_else(|| "none".to_owned(), |code| code.to_string());
        panic!(
            "step `{}`: {what}\n  command: {} to LUN {}: {cdb}\n  status:  {:02X}h {}\n  sense:   {told} [{}]\n  \
             ESXi:    {}",
            super::step_name(),
            self.command.name,
            self.command.lun,
            self.status,
            sense::status_name(self.status),
            hex(&self.sense_bytes),
            sense::esxi_would(self.command.cdb[0], self.status, code),
        );
    }

    /// It went well, and all that was announced was moved.
    #[track_caller]
    pub fn good(self) -> Answer {
        if self.status != GOOD {
            self.fail("it should have ended with GOOD");
        }
        // Of what a host has room for, less may come; of what it sends, everything is taken.
        if self.residual != 0 && self.command.room == 0 {
            self.fail(format!("a residual of {} bytes: ESXi takes the write as cut short", self.residual));
        }
        if self.command.room != 0
            && self.data.len() as i64 + self.residual.max(0) != i64::from(self.command.room)
        {
            self.fail(format!("{} bytes came, with a residual of {}", self.data.len(), self.residual));
        }
        self
    }

    /// CHECK CONDITION, if it is one.
    pub fn code(&self) -> Option<Code> {
        self.sense.filter(|_| self.status == sense::CHECK_CONDITION).map(|sense| sense.code)
    }

    /// It ended with this sense.
    #[track_caller]
    pub fn bad(self, code: Code) -> Answer {
        if self.code() != Some(code) {
            self.fail(format!("it should have ended with {code}"));
        }
        self
    }

    /// Ends the test unless something holds.
    #[track_caller]
    pub fn check(&self, holds: bool, what: &str) {
        if !holds {
            self.fail(format!("{what}; data: {}", hex(&self.data[..self.data.len().min(64)])));
        }
    }

    /// The big-endian number at a place of what came; 0 behind its end.
    pub fn number(&self, at: usize, bytes: usize) -> u64 {
        let field = self.data.get(at..at + bytes).unwrap_or_default();
        field.iter().fold(0, |value, &byte| value << 8 | u64::from(byte))
    }
}

/// As in the standards' figures.
pub fn hex(bytes: &[u8]) -> String {
    let mut text = String::new();
    for byte in bytes {
        write!(text, "{}{byte:02x}", if text.is_empty() { "" } else { " " }).expect("a String takes it");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused() -> Answer {
        let sense = [0x70, 0, 5, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x20, 0, 0, 0, 0, 0];
        Answer {
            tag: 1,
            command: Command::compare_and_write(3, 7, &[0; 512], &[1; 512]),
            status: sense::CHECK_CONDITION,
            sense: Sense::parse(&sense),
            sense_bytes: sense.to_vec(),
            data: Vec::new(),
            residual: 0,
            took: Duration::ZERO,
        }
    }

    /// Goal: a failure says the command's bytes, its status, its sense, and what ESXi would do.
    #[test]
    fn a_failure_says_all() {
        let told = std::panic::catch_unwind(|| refused().good()).expect_err("it is not good");
        let told = told.downcast::<String>().expect("a text");
        for part in [
            "COMPARE AND WRITE to LUN 3: 89 00 00 00 00 00 00 00 00 07",
            "02h CHECK CONDITION",
            "5h/20h/00h INVALID COMMAND OPERATION CODE [70 00 05",
            "ESXi:    takes the command as unsupported",
        ] {
            assert!(told.contains(part), "{told}");
        }
    }

    /// Goal: GOOD with a residual that is not exact is no success.
    #[test]
    #[should_panic(expected = "a residual of 512 bytes")]
    fn a_residual_of_a_write_is_seen() {
        Answer { status: GOOD, residual: 512, ..refused() }.good();
    }
}
