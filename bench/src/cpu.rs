//! Pins the calling thread, and reads what a process has used.

use crate::failure::{Context, Failure};
use std::time::Duration;

/// Ticks a second in which the kernel tells CPU time; fixed in its interface to user space.
const TICKS_PER_SECOND: u64 = 100;

/// Ties the calling thread to `cpu`.
///
/// # Errors
/// The CPU isn't there, or is outside what this process may use.
pub fn pin(cpu: usize) -> Result<(), Failure> {
    if core_affinity::set_for_current(core_affinity::CoreId { id: cpu }) {
        return Ok(());
    }
    Err(Failure::new(format!("can't run on CPU {cpu}: it isn't there, or this process may not use it")))
}

/// A CPU list such as `0`, `1,3` or `0-3,6`.
///
/// # Errors
/// Anything else; more than 1,024 CPUs; none.
pub fn parse_list(text: &str) -> Result<Vec<usize>, String> {
    const CPUS_MAX: usize = 1024;
    let number = |text: &str| match text.trim().parse::<usize>() {
        Ok(cpu) if cpu < CPUS_MAX => Ok(cpu),
        _ => Err(format!("{text:?} is no CPU number below {CPUS_MAX}; a list looks like 0-3,6")),
    };
    let mut cpus = Vec::new();
    for part in text.split(',') {
        match part.split_once('-') {
            None => cpus.push(number(part)?),
            Some((first, last)) => cpus.extend(number(first)?..=number(last)?),
        }
    }
    cpus.dedup();
    if cpus.is_empty() || cpus.len() > CPUS_MAX {
        return Err(format!("{text:?} names no CPU, or too many"));
    }
    Ok(cpus)
}

/// CPU time of the calling thread so far.
pub fn thread_time() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

/// CPU time of all threads of process `pid` so far, user and system.
///
/// # Errors
/// There is no such process.
pub fn time_of(pid: u32) -> Result<Duration, Failure> {
    let path = format!("/proc/{pid}/stat");
    let stat = std::fs::read_to_string(&path).doing(&path)?;
    parse_stat(&stat).ok_or_else(|| Failure::new(format!("{path}: not understood")))
}

/// Resident memory of process `pid`, in bytes.
///
/// # Errors
/// There is no such process.
pub fn resident_bytes_of(pid: u32) -> Result<u64, Failure> {
    let path = format!("/proc/{pid}/status");
    let status = std::fs::read_to_string(&path).doing(&path)?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().strip_suffix(" kB"))
        .and_then(|kib| kib.parse::<u64>().ok())
        .map(|kib| kib * 1024)
        .ok_or_else(|| Failure::new(format!("{path}: no VmRSS")))
}

/// utime and stime, fields 14 and 15; the name in field 2 may hold anything, also spaces and parentheses.
fn parse_stat(stat: &str) -> Option<Duration> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(Duration::from_millis((user + system) * 1000 / TICKS_PER_SECOND))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: lists are taken as the kernel writes them. Method: good and bad ones.
    #[test]
    fn cpu_lists() {
        assert_eq!(parse_list("1"), Ok(vec![1]));
        assert_eq!(parse_list("0-2,5"), Ok(vec![0, 1, 2, 5]));
        for bad in ["", "a", "1-", "3-1", "0-99999999"] {
            assert!(parse_list(bad).is_err(), "{bad}");
        }
    }

    /// Goal: the process's name can't confuse. Method: one with spaces and parentheses, times by hand.
    #[test]
    fn cpu_time_is_read_behind_the_name() {
        let stat = "12 (a ) b (c) R 1 2 3 4 5 6 7 8 9 10 250 50 0 0 20 0 3 0 99";
        assert_eq!(parse_stat(stat), Some(Duration::from_secs(3)));
        assert_eq!(parse_stat("nothing"), None);
    }
}
