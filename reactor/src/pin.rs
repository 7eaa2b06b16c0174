//! Thread to core, memory to node, and the network card's queue to the thread that polls it.
#![allow(unsafe_code, reason = "set_mempolicy and SO_BUSY_POLL have no safe wrapper among our dependencies")]

use rustix::thread::{CpuSet, sched_getaffinity};
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Why a CPU list can't be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PinError {
    /// Not a list like `0-3,8`.
    Syntax {
        /// The whole list.
        list: String,
        /// The part of it that is wrong.
        part: String,
    },
    /// No CPU at all.
    Empty,
    /// A CPU twice: two reactors would fight for it.
    Twice {
        /// Which.
        cpu: usize,
    },
    /// A CPU where this process may not run: outside its cpuset, offline, or not there.
    NotAllowed {
        /// Which.
        cpu: usize,
        /// Those that are.
        allowed: Vec<usize>,
    },
    /// The kernel refused to bind the thread after all.
    Refused {
        /// To which CPU.
        cpu: usize,
    },
}

impl fmt::Display for PinError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PinError::Syntax { list, part } => {
                write!(
                    f,
                    "\"{part}\" in the CPU list \"{list}\" is no CPU or range of CPUs; write it like 0-3,8"
                )
            }
            PinError::Empty => write!(f, "the CPU list is empty; name at least one CPU, like 0 or 0-3,8"),
            PinError::Twice { cpu } => {
                write!(f, "CPU {cpu} is in the list twice; each reactor needs its own")
            }
            PinError::NotAllowed { cpu, allowed } => write!(
                f,
                "this process may not run on CPU {cpu}, only on {}: choose among these, or widen its cpuset \
                 (AllowedCPUs= or CPUAffinity= in systemd, --cpuset-cpus in Docker, taskset)",
                CpuList(allowed)
            ),
            PinError::Refused { cpu } => write!(
                f,
                "the kernel refused to bind a reactor to CPU {cpu}: was it taken offline or out of this process's \
                 cpuset just now?"
            ),
        }
    }
}

impl std::error::Error for PinError {}

/// The most CPUs that a list names, and one more than the highest number: what the kernel's affinity call holds.
pub const CPUS_MAX: usize = CpuSet::MAX_CPU;

/// Reads a list like `0-3,8`: in the order given, each CPU once.
///
/// # Errors
/// What is wrong with it, by part.
pub fn parse_cpus(list: &str) -> Result<Vec<usize>, PinError> {
    let mut cpus = Vec::new();
    for part in list.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let wrong = || PinError::Syntax { list: list.to_owned(), part: part.to_owned() };
        let number =
            |text: &str| text.trim().parse::<usize>().ok().filter(|&cpu| cpu < CPUS_MAX).ok_or_else(wrong);
        let (first, last) = match part.split_once('-') {
            Some((first, last)) => (number(first)?, number(last)?),
            None => (number(part)?, number(part)?),
        };
        if first > last {
            return Err(wrong());
        }
        for cpu in first..=last {
            if cpus.contains(&cpu) {
                return Err(PinError::Twice { cpu });
            }
            cpus.push(cpu);
        }
    }
    if cpus.is_empty() { Err(PinError::Empty) } else { Ok(cpus) }
}

/// CPUs as a list like `0-3,8`.
#[derive(Clone, Copy, Debug)]
pub struct CpuList<'a>(pub &'a [usize]);

impl fmt::Display for CpuList<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let runs = self.0.chunk_by(|&before, &after| before.checked_add(1) == Some(after));
        for (number, run) in runs.enumerate() {
            let comma = if number > 0 { "," } else { "" };
            match run {
                [] => {}
                [cpu] => write!(f, "{comma}{cpu}")?,
                [first, .., last] => write!(f, "{comma}{first}-{last}")?,
            }
        }
        Ok(())
    }
}

/// The CPUs where this process may run: its cpuset and affinity, less those offline.
///
/// # Errors
/// The kernel's.
pub fn allowed_cpus() -> io::Result<Vec<usize>> {
    let set = sched_getaffinity(None)?;
    Ok((0..CPUS_MAX).filter(|&cpu| set.is_set(cpu)).collect())
}

/// Checks that a reactor can run on each of `cpus`, given where the process may run.
///
/// # Errors
/// The first CPU in the way, by name, with those that would do.
pub fn check_cpus(cpus: &[usize], allowed: &[usize]) -> Result<(), PinError> {
    if cpus.is_empty() {
        return Err(PinError::Empty);
    }
    match cpus.iter().find(|cpu| !allowed.contains(cpu)) {
        Some(&cpu) => Err(PinError::NotAllowed { cpu, allowed: allowed.to_vec() }),
        None => Ok(()),
    }
}

/// Binds the calling thread to `cpu`.
///
/// # Errors
/// [`PinError::Refused`].
pub fn pin_thread(cpu: usize) -> Result<(), PinError> {
    if core_affinity::set_for_current(core_affinity::CoreId { id: cpu }) {
        Ok(())
    } else {
        Err(PinError::Refused { cpu })
    }
}

/// Lets the calling thread's memory come from the node of the CPU where it runs, whatever policy the process
/// inherited, and from others only when that is full.
///
/// # Errors
/// The kernel's; containers without CAP_SYS_NICE may refuse the call.
pub fn prefer_own_node() -> io::Result<()> {
    // SAFETY: MPOL_PREFERRED without a mask means the node of the CPU; no memory is passed.
    let result = unsafe {
        libc::syscall(libc::SYS_set_mempolicy, libc::MPOL_PREFERRED, std::ptr::null::<u64>(), 0usize)
    };
    // Kernels without NUMA have no such call, and no other node either.
    match result {
        0 => Ok(()),
        _ => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ENOSYS) => Ok(()),
            error => Err(error),
        },
    }
}

/// Sets SO_BUSY_POLL: a receive that finds nothing polls the network card's queue, for about so long if it may
/// block and once if not.
///
/// # Errors
/// The kernel's; more than net.core.busy_read needs CAP_NET_ADMIN.
pub fn set_busy_poll(socket: BorrowedFd<'_>, microseconds: u32) -> io::Result<()> {
    let value = libc::c_int::try_from(microseconds).unwrap_or(libc::c_int::MAX);
    // SAFETY: the option takes a c_int, which lives past the call, and its size.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_BUSY_POLL,
            std::ptr::from_ref(&value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Goal: lists as people write them, and what is wrong with the others, by name.
    #[test]
    fn reads_cpu_lists() {
        assert_eq!(parse_cpus("0-3,8"), Ok(vec![0, 1, 2, 3, 8]));
        assert_eq!(parse_cpus(" 5 , 2-2,"), Ok(vec![5, 2]));
        assert_eq!(parse_cpus(""), Err(PinError::Empty));
        assert_eq!(parse_cpus(","), Err(PinError::Empty));
        assert_eq!(parse_cpus("1,0-1"), Err(PinError::Twice { cpu: 1 }));
        for part in ["x", "3-1", "1-", "-1", "1-2-3", "99999999999999999999", "0-4000000000"] {
            let list = format!("0,{part}");
            let error = parse_cpus(&list).unwrap_err();
            assert_eq!(error, PinError::Syntax { list: list.clone(), part: part.to_owned() });
            assert!(error.to_string().contains(part) && error.to_string().contains("0-3,8"), "{error}");
        }
    }

    /// Goal: a CPU outside the cpuset is refused by name, with the list of those that would do.
    #[test]
    fn refuses_a_cpu_outside_the_cpuset() {
        let allowed = allowed_cpus().unwrap();
        assert!(check_cpus(&allowed, &allowed).is_ok());
        let error = check_cpus(&[allowed[0], 1023], &[0, 1, 2, 5]).map_err(|error| error.to_string());
        let error = error.unwrap_err();
        assert!(
            error.contains("CPU 1023") && error.contains("only on 0-2,5") && error.contains("cpuset"),
            "{error}"
        );
    }

    proptest! {
        /// Goal: a list that was printed reads back. Method: any ordered set of CPUs.
        #[test]
        fn printed_lists_read_back(cpus in prop::collection::btree_set(0..CPUS_MAX, 1..40)) {
            let cpus: Vec<usize> = cpus.into_iter().collect();
            prop_assert_eq!(parse_cpus(&CpuList(&cpus).to_string()), Ok(cpus));
        }

        /// Goal: no list panics or makes more CPUs than there can be.
        #[test]
        fn any_text_is_read_or_refused(list in "[0-9,x -]{0,30}") {
            if let Ok(cpus) = parse_cpus(&list) {
                prop_assert!(cpus.len() <= CPUS_MAX);
            }
        }
    }

    /// Goal: a pinned thread runs where it was told.
    #[test]
    fn pins_the_thread() {
        let cpu = allowed_cpus().unwrap()[0];
        std::thread::spawn(move || {
            pin_thread(cpu).unwrap();
            assert_eq!(allowed_cpus().unwrap(), [cpu]);
            // Sandboxes may refuse it; then it is an error and not a crash.
            let _ = prefer_own_node();
        })
        .join()
        .unwrap();
    }
}
