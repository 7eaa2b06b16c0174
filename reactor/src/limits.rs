//! What the kernel may refuse at start, in words that name the limit and the cure.
//!
//! [`RingError`] stops the start; a [`Warning`] doesn't: the reactor runs on, slower or less well placed.

use rustix::process::{Resource, getrlimit};
use std::fmt;
use std::io;

/// The first kernel that Pollux runs on.
pub const KERNEL_MIN: &str = "5.15";

/// Why a ring could not be made.
#[derive(Debug)]
pub enum RingError {
    /// The kernel has no io_uring (ENOSYS).
    Missing,
    /// The kernel has it and doesn't let us (EPERM, EACCES).
    Forbidden {
        /// kernel.io_uring_disabled: 0 allowed, 1 for a group, 2 for nobody; `None` where there is no such knob.
        sysctl: Option<u8>,
    },
    /// No memory for the rings themselves (ENOMEM).
    Memory {
        /// RLIMIT_MEMLOCK in bytes, `None` for unlimited.
        memlock_bytes: Option<u64>,
        /// Submission entries asked for.
        entries: u32,
    },
    /// No file descriptor left (EMFILE, ENFILE), or the file table is larger than their limit.
    Descriptors {
        /// RLIMIT_NOFILE, `None` for unlimited.
        files_max: Option<u64>,
        /// Places in the file table.
        files: u32,
    },
    /// An operation or feature that we can't do without.
    Unsupported {
        /// Its name in the kernel's headers.
        name: &'static str,
        /// The first kernel with it.
        since: &'static str,
    },
    /// Anything else.
    Other {
        /// The call that failed.
        call: &'static str,
        /// How.
        error: io::Error,
    },
}

impl RingError {
    /// What io_uring_setup's error means here.
    pub(crate) fn from_setup(error: io::Error, entries: u32) -> RingError {
        match error.raw_os_error() {
            Some(libc::ENOSYS) => RingError::Missing,
            Some(libc::EPERM | libc::EACCES) => RingError::Forbidden { sysctl: io_uring_disabled() },
            Some(libc::ENOMEM) => RingError::Memory { memlock_bytes: memlock_bytes(), entries },
            Some(libc::EMFILE | libc::ENFILE) => RingError::Descriptors { files_max: files_max(), files: 1 },
            _ => RingError::Other { call: "io_uring_setup", error },
        }
    }
}

impl fmt::Display for RingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RingError::Missing => write!(
                f,
                "the kernel has no io_uring (io_uring_setup: ENOSYS): Linux {KERNEL_MIN} or newer with \
                 CONFIG_IO_URING is needed; inside a container or sandbox this can also be its seccomp profile"
            ),
            RingError::Forbidden { sysctl: Some(level @ 1..) } => write!(
                f,
                "io_uring is switched off by the sysctl kernel.io_uring_disabled = {level}: set it to 0 \
                 (sysctl -w kernel.io_uring_disabled=0), or for level 1 run with CAP_SYS_ADMIN or in the group \
                 that kernel.io_uring_group names"
            ),
            RingError::Forbidden { sysctl: _ } => write!(
                f,
                "io_uring is forbidden to this process (io_uring_setup: EPERM), most likely by the seccomp profile \
                 of the container: allow io_uring_setup, io_uring_enter and io_uring_register in it (Docker: \
                 --security-opt seccomp=PROFILE, Kubernetes: seccompProfile, systemd: SystemCallFilter=@io-event \
                 with io_uring)"
            ),
            RingError::Memory { memlock_bytes, entries } => write!(
                f,
                "no memory for an io_uring of {entries} entries (io_uring_setup: ENOMEM): the memory limit of the \
                 control group is reached, or RLIMIT_MEMLOCK ({}) is; raise the one with MemoryMax=, the other \
                 with LimitMEMLOCK= or ulimit -l, or configure fewer ring entries",
                Limit(*memlock_bytes)
            ),
            RingError::Descriptors { files_max, files } => write!(
                f,
                "too few file descriptors for an io_uring with a table of {files} files: RLIMIT_NOFILE is {}; \
                 raise it with LimitNOFILE= or ulimit -n",
                Count(*files_max)
            ),
            RingError::Unsupported { name, since } => write!(
                f,
                "the kernel's io_uring lacks {name}, which is in Linux {since} and newer: Pollux needs Linux \
                 {KERNEL_MIN}"
            ),
            RingError::Other { call, error } => write!(f, "{call} failed: {error}"),
        }
    }
}

impl std::error::Error for RingError {}

/// Something that works less well than it could, and what would help.
#[derive(Debug)]
pub enum Warning {
    /// Buffers are not registered: every disk operation pins its pages anew.
    BuffersNotRegistered {
        /// RLIMIT_MEMLOCK in bytes, `None` for unlimited.
        memlock_bytes: Option<u64>,
        /// What all rings together would lock.
        needed_bytes: u64,
        /// The kernel's answer.
        error: io::Error,
    },
    /// The kernel is old: completions interrupt the reactor instead of waiting for its turn.
    NoDeferredTaskRun,
    /// The io-wq workers could not be pinned or counted as configured.
    Workers {
        /// The call that failed.
        call: &'static str,
        /// How.
        error: io::Error,
    },
    /// Memory may come from another node.
    MemoryPolicy {
        /// The kernel's answer to set_mempolicy.
        error: io::Error,
    },
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Warning::BuffersNotRegistered { memlock_bytes, needed_bytes, error } => write!(
                f,
                "IO buffers are not registered with io_uring ({error}), so each disk IO costs more: \
                 RLIMIT_MEMLOCK is {}, {needed_bytes} bytes are needed; raise it with LimitMEMLOCK=infinity \
                 (systemd) or ulimit -l, or give the process CAP_IPC_LOCK, or configure less buffer memory",
                Limit(*memlock_bytes)
            ),
            Warning::NoDeferredTaskRun => write!(
                f,
                "the kernel has no IORING_SETUP_DEFER_TASKRUN (Linux 6.1 and newer): disk completions interrupt \
                 the reactors, tail latency is higher"
            ),
            Warning::Workers { call, error } => write!(
                f,
                "the kernel's io_uring workers are not bound as configured ({call}: {error}): their CPUs must be \
                 in the process's cpuset, and Linux {KERNEL_MIN} or newer is needed"
            ),
            Warning::MemoryPolicy { error } => write!(
                f,
                "set_mempolicy was refused ({error}): memory may come from another NUMA node; containers allow \
                 it with CAP_SYS_NICE"
            ),
        }
    }
}

/// RLIMIT_MEMLOCK of this process now, in bytes; `None` for unlimited.
pub fn memlock_bytes() -> Option<u64> {
    getrlimit(Resource::Memlock).current
}

/// RLIMIT_NOFILE of this process now; `None` for unlimited.
pub fn files_max() -> Option<u64> {
    getrlimit(Resource::Nofile).current
}

/// The sysctl kernel.io_uring_disabled (Linux 6.6), where there is one.
fn io_uring_disabled() -> Option<u8> {
    std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok()?.trim().parse().ok()
}

/// A limit in bytes.
struct Limit(Option<u64>);

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(bytes) => write!(f, "{bytes} bytes"),
            None => write!(f, "unlimited"),
        }
    }
}

/// A limit in pieces.
struct Count(Option<u64>);

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(count) => write!(f, "{count}"),
            None => write!(f, "unlimited"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: whoever reads a refusal learns the limit and the cure. Method: the errno of each, then its words.
    #[test]
    fn refusals_name_the_limit_and_the_cure() {
        let cases: [(i32, &[&str]); 4] = [
            (libc::ENOSYS, &["ENOSYS", "5.15", "CONFIG_IO_URING"]),
            (libc::EPERM, &["io_uring"]),
            (libc::ENOMEM, &["RLIMIT_MEMLOCK", "LimitMEMLOCK", "256 entries"]),
            (libc::EMFILE, &["RLIMIT_NOFILE", "LimitNOFILE"]),
        ];
        for (errno, words) in cases {
            let text = RingError::from_setup(io::Error::from_raw_os_error(errno), 256).to_string();
            for word in words {
                assert!(text.contains(word), "{text:?} lacks {word:?}");
            }
        }
        let sysctl = RingError::Forbidden { sysctl: Some(2) }.to_string();
        assert!(sysctl.contains("kernel.io_uring_disabled = 2"), "{sysctl}");
        for sysctl in [None, Some(0)] {
            let seccomp = RingError::Forbidden { sysctl }.to_string();
            assert!(seccomp.contains("seccomp"), "{seccomp}");
        }
        let unsupported = RingError::Unsupported { name: "IORING_OP_FALLOCATE", since: "5.6" }.to_string();
        assert!(unsupported.contains("IORING_OP_FALLOCATE") && unsupported.contains("5.6"), "{unsupported}");
        let unregistered = Warning::BuffersNotRegistered {
            memlock_bytes: Some(8192),
            needed_bytes: 1 << 20,
            error: io::Error::from_raw_os_error(libc::ENOMEM),
        };
        let text = unregistered.to_string();
        for word in
            ["RLIMIT_MEMLOCK is 8192 bytes", "1048576 bytes", "LimitMEMLOCK=", "ulimit -l", "CAP_IPC_LOCK"]
        {
            assert!(text.contains(word), "{text:?} lacks {word:?}");
        }
    }
}
