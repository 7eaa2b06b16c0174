//! What a figure must be read with: which machine, which kernel, and how busy it was.

use serde_json::{Value, json};

fn first_line(path: &str) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().next().unwrap_or("unknown").trim().to_owned()
}

fn cpu_model() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = text.lines().find(|line| line.starts_with("model name"));
    model.and_then(|line| line.split_once(':')).map_or("unknown".into(), |(_, name)| name.trim().to_owned())
}

/// Kernel, CPUs and the load averages over 1, 5 and 15 minutes. This program's own threads and the targets add one
/// for each CPU they poll on; more than that means that others were at work.
pub fn facts() -> Value {
    json!({
        "kernel": first_line("/proc/sys/kernel/osrelease"),
        "cpu_model": cpu_model(),
        "cpus": std::thread::available_parallelism().map_or(0, usize::from),
        "load_average": load_average(),
    })
}

/// The same as one line for a table's foot.
pub fn sentence() -> String {
    format!(
        "machine: {}, {} CPUs, Linux {}, load average {}",
        cpu_model(),
        std::thread::available_parallelism().map_or(0, usize::from),
        first_line("/proc/sys/kernel/osrelease"),
        load_average(),
    )
}

fn load_average() -> String {
    first_line("/proc/loadavg").split_whitespace().take(3).collect::<Vec<_>>().join(" ")
}
