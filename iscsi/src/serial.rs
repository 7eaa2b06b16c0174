//! Numbers that wrap: CmdSN, StatSN, DataSN, and the window of commands that we let an initiator send.
//!
//! Compared by RFC 1982 with 32 bits, as RFC 7143 §4.2.2 demands: one is before another if it is less than
//! 2^31 steps behind. At exactly 2^31 steps neither is before the other.

use std::fmt;

macro_rules! serial_number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
        pub struct $name(pub u32);

        impl $name {
            /// The one after this.
            pub fn next(self) -> $name {
                $name(self.0.wrapping_add(1))
            }

            /// The one `steps` after this.
            pub fn plus(self, steps: u32) -> $name {
                $name(self.0.wrapping_add(steps))
            }

            /// Whether this comes before `other`.
            pub fn is_before(self, other: $name) -> bool {
                (self.0.wrapping_sub(other.0) as i32) < 0 && self.0.wrapping_sub(other.0) != 1 << 31
            }

            /// Whether this comes after `other`.
            pub fn is_after(self, other: $name) -> bool {
                other.is_before(self)
            }

            /// Steps from this forward to `later`.
            pub fn steps_to(self, later: $name) -> u32 {
                later.0.wrapping_sub(self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.0)
            }
        }

        impl From<zerocopy::byteorder::big_endian::U32> for $name {
            fn from(wire: zerocopy::byteorder::big_endian::U32) -> $name {
                $name(wire.get())
            }
        }

        impl From<$name> for zerocopy::byteorder::big_endian::U32 {
            fn from(number: $name) -> Self {
                Self::new(number.0)
            }
        }
    };
}

serial_number! {
    /// Orders the commands of a session (RFC 7143 §4.2.2.1).
    CmdSn
}
serial_number! {
    /// Numbers the responses of a connection (RFC 7143 §4.2.2.2).
    StatSn
}
serial_number! {
    /// Numbers the data PDUs of a sequence, and a task's R2Ts (RFC 7143 §4.2.2.3).
    DataSn
}

/// What to do with a command that arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It is the next one: execute it. The window has moved on.
    InOrder,
    /// It was marked for immediate delivery: execute it. The window stays.
    Immediate,
    /// Outside the window, or seen before: neither execute nor answer it (RFC 7143 §4.2.2.1).
    Ignore,
    /// Inside the window, but others are missing before it. With one connection to a session nothing can bring
    /// them any more: TCP keeps the order, an initiator sends in the order of CmdSN, and at ErrorRecoveryLevel 0
    /// nobody sends again. To hold it would be to hold it for ever, so the connection is to be ended.
    Gap,
}

/// The commands a session may send now: those from ExpCmdSN to MaxCmdSN (RFC 7143 §4.2.2.1).
/// Invariant: MaxCmdSN never goes back, and is at least ExpCmdSN - 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommandWindow {
    exp: CmdSn,
    max: CmdSn,
}

impl CommandWindow {
    /// The widest window: half the numbers less one, so that before and after stay distinct.
    pub const COMMANDS_MAX: u32 = (1 << 31) - 1;

    /// A window that opens with `first` and lets `commands` be sent.
    ///
    /// # Panics
    /// When `commands` is over [`CommandWindow::COMMANDS_MAX`].
    pub fn new(first: CmdSn, commands: u32) -> CommandWindow {
        assert!(commands <= CommandWindow::COMMANDS_MAX);
        CommandWindow { exp: first, max: first.plus(commands.wrapping_sub(1)) }
    }

    /// ExpCmdSN: the next command that we expect.
    pub fn exp_cmd_sn(&self) -> CmdSn {
        self.exp
    }

    /// MaxCmdSN: the last command that may be sent now.
    pub fn max_cmd_sn(&self) -> CmdSn {
        self.max
    }

    /// How many more commands the initiator may send.
    pub fn open(&self) -> u32 {
        self.exp.steps_to(self.max.next())
    }

    /// Judges a command and, if it is the next one, moves ExpCmdSN past it.
    pub fn admit(&mut self, cmd_sn: CmdSn, immediate: bool) -> Admission {
        if immediate {
            return Admission::Immediate;
        }
        if cmd_sn == self.exp && self.open() > 0 {
            self.exp = self.exp.next();
            return Admission::InOrder;
        }
        if self.exp.steps_to(cmd_sn) < self.open() { Admission::Gap } else { Admission::Ignore }
    }

    /// Lets `commands` be sent from here on, or as many as were promised before if that is more: what was
    /// offered can't be taken back. Says whether the window opened further.
    ///
    /// # Panics
    /// When `commands` is over [`CommandWindow::COMMANDS_MAX`].
    pub fn grant(&mut self, commands: u32) -> bool {
        assert!(commands <= CommandWindow::COMMANDS_MAX);
        let wider = commands > self.open();
        if wider {
            self.max = self.exp.plus(commands.wrapping_sub(1));
        }
        wider
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Goal: the order of RFC 1982. Method: a number and a distance, against the definition in 64 bits.
        #[test]
        fn compares_like_rfc_1982(a: u32, b: u32) {
            let (i1, i2) = (i64::from(a), i64::from(b));
            let half = 1i64 << 31;
            let before = (i1 < i2 && i2 - i1 < half) || (i1 > i2 && i1 - i2 > half);
            prop_assert_eq!(CmdSn(a).is_before(CmdSn(b)), before);
            prop_assert_eq!(CmdSn(b).is_after(CmdSn(a)), before);
            prop_assert_eq!(CmdSn(a).plus(CmdSn(a).steps_to(CmdSn(b))), CmdSn(b));
        }

        /// Goal: each command of the window once and in order, nothing else, over the wrap. Method: a model that
        /// counts in 64 bits.
        #[test]
        fn admits_like_a_counter(first: u32, steps in proptest::collection::vec((0u32..40, any::<bool>(), 0u32..12), 0..200)) {
            let mut window = CommandWindow::new(CmdSn(first), 8);
            let base = u64::from(first) + (1 << 32);
            let (mut exp, mut last) = (base, base + 7);
            for (offset, immediate, grant) in steps {
                let number = exp + u64::from(offset) - 20;
                let expected = if immediate {
                    Admission::Immediate
                } else if number < exp || number > last {
                    Admission::Ignore
                } else if number == exp {
                    exp += 1;
                    Admission::InOrder
                } else {
                    Admission::Gap
                };
                prop_assert_eq!(window.admit(CmdSn(number as u32), immediate), expected);
                let wider = exp + u64::from(grant) > last + 1;
                last = last.max(exp + u64::from(grant) - 1);
                prop_assert_eq!(window.grant(grant), wider);
                prop_assert_eq!(window.exp_cmd_sn(), CmdSn(exp as u32));
                prop_assert_eq!(window.max_cmd_sn(), CmdSn(last as u32));
                prop_assert_eq!(u64::from(window.open()), last + 1 - exp);
            }
        }
    }

    /// Goal: a closed window admits nothing, not even the next command.
    #[test]
    fn a_closed_window_ignores() {
        let mut window = CommandWindow::new(CmdSn(u32::MAX), 0);
        assert_eq!((window.open(), window.max_cmd_sn()), (0, CmdSn(u32::MAX - 1)));
        assert_eq!(window.admit(CmdSn(u32::MAX), false), Admission::Ignore);
        assert_eq!(window.admit(CmdSn(u32::MAX), true), Admission::Immediate);
        assert!(window.grant(1));
        assert_eq!(window.admit(CmdSn(u32::MAX), false), Admission::InOrder);
        assert_eq!(window.exp_cmd_sn(), CmdSn(0));
    }

    /// Goal: the two numbers that the libiscsi suite sends. Method: one past the end, one before the start.
    #[test]
    fn both_neighbours_of_the_window_are_ignored() {
        let mut window = CommandWindow::new(CmdSn(5), 128);
        assert_eq!(window.admit(window.max_cmd_sn().next(), false), Admission::Ignore);
        assert_eq!(window.admit(CmdSn(4), false), Admission::Ignore);
        assert_eq!(window.admit(CmdSn(5), false), Admission::InOrder);
    }
}
