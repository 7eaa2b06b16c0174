//! The log: structured lines on stderr, in the form and amount that the configuration asks for.
//!
//! A reactor must never wait for whoever reads stderr. So a line goes into a bounded queue, and one thread writes
//! it out; when the queue is full the line is dropped and counted, and the count is told when there is room.

use crate::config::{Log, LogFormat};
use crate::mistake::Mistake;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Registry, reload};

/// Lines that wait for stderr: what a burst of logins may cause while a terminal scrolls.
pub const LINES_MAX: usize = 4096;

/// How long the end of the program waits for stderr.
const FLUSH_LIMIT: Duration = Duration::from_secs(1);

/// What can stand for an amount.
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// Reads `LEVEL` and `TARGET=LEVEL`, comma-separated, and gives the text back.
///
/// # Errors
/// Anything else.
pub fn parse_filter(text: &str) -> Result<String, Mistake> {
    filter(text).map(|_| text.to_owned())
}

fn filter(text: &str) -> Result<Targets, Mistake> {
    let wrong = || {
        let cure = "write a level (error, warn, info, debug, trace, off), also by part: info,iscsi=debug,reactor=warn";
        Mistake::new(format!("{text:?} is no log filter"), cure)
    };
    // A word that is no level would be taken for a part's name, and would silence everything else.
    let level = |word: &str| LEVELS.contains(&word);
    let sound = |part: &str| match part.split_once('=') {
        Some((target, word)) => !target.is_empty() && level(word),
        None => level(part),
    };
    if text.is_empty() || !text.split(',').all(sound) {
        return Err(wrong());
    }
    text.parse().map_err(|_| wrong())
}

/// The running log. Dropping it writes out what still waits, for at most a second.
#[derive(Debug)]
pub struct Logging {
    filter: reload::Handle<Targets, Registry>,
    lines: SyncSender<Entry>,
}

#[derive(Debug)]
enum Entry {
    Line(Vec<u8>),
    Flush(SyncSender<()>),
}

impl Logging {
    /// Starts logging, for the whole process.
    ///
    /// # Errors
    /// The thread can't be made, or somebody has started logging before.
    pub fn start(log: &Log) -> Result<Logging, Mistake> {
        let (lines, waiting) = sync_channel(LINES_MAX);
        let dropped = Arc::new(AtomicU64::new(0));
        let writer = Lines { lines: lines.clone(), dropped: Arc::clone(&dropped) };
        let format = log.format;
        let failed = |what: String| Mistake::new(what, "allow the process one more thread (ulimit -u)");
        std::thread::Builder::new()
            .name("pollux-log".to_owned())
            .spawn(move || write_out(&waiting, &dropped, format, &mut std::io::stderr()))
            .map_err(|error| failed(format!("can't start the log's thread: {error}")))?;
        let (filter, handle) = reload::Layer::new(filter(&log.filter)?);
        let layer = tracing_subscriber::fmt::layer().with_writer(writer);
        let started = match log.format {
            LogFormat::Text => {
                let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr());
                tracing_subscriber::registry().with(filter).with(layer.with_ansi(ansi)).try_init()
            }
            LogFormat::Json => {
                let json = layer.with_ansi(false).json().flatten_event(true);
                tracing_subscriber::registry().with(filter).with(json).try_init()
            }
        };
        started.map_err(|error| failed(format!("can't start logging: {error}")))?;
        Ok(Logging { filter: handle, lines })
    }

    /// Changes what is logged from now on.
    ///
    /// # Errors
    /// The text is no filter; the old one stays.
    pub fn set_filter(&self, text: &str) -> Result<(), Mistake> {
        let new = filter(text)?;
        let failed =
            |error: reload::Error| Mistake::new(format!("the log filter stays: {error}"), "restart pollux");
        self.filter.reload(new).map_err(failed)
    }
}

impl Drop for Logging {
    fn drop(&mut self) {
        let (written, wait) = sync_channel(1);
        // A full queue means that stderr is stuck: then there is no point in waiting for it.
        if self.lines.try_send(Entry::Flush(written)).is_ok() {
            let _ = wait.recv_timeout(FLUSH_LIMIT);
        }
    }
}

/// The log thread's life: until every sender is gone, which is the process's end.
fn write_out(waiting: &Receiver<Entry>, dropped: &AtomicU64, format: LogFormat, out: &mut impl Write) {
    while let Ok(entry) = waiting.recv() {
        // Nobody is left to be told when stderr can't be written.
        match entry {
            Entry::Line(line) => drop(out.write_all(&line)),
            Entry::Flush(written) => {
                let _ = out.flush();
                let _ = written.try_send(());
            }
        }
        let lost = dropped.swap(0, Ordering::Relaxed);
        if lost > 0 {
            let _ = match format {
                LogFormat::Text => writeln!(out, "WARN pollux: log lines dropped lines={lost}"),
                LogFormat::Json => {
                    writeln!(out, "{{\"level\":\"WARN\",\"message\":\"log lines dropped\",\"lines\":{lost}}}")
                }
            };
        }
    }
}

/// Makes a writer for each event.
struct Lines {
    lines: SyncSender<Entry>,
    dropped: Arc<AtomicU64>,
}

/// One event, sent when it is complete.
struct Line<'a> {
    to: &'a Lines,
    bytes: Vec<u8>,
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line { to: self, bytes: Vec::new() }
    }
}

impl Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        let line = std::mem::take(&mut self.bytes);
        if !line.is_empty() && self.to.lines.try_send(Entry::Line(line)).is_err() {
            self.to.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a filter is read or refused whole; a misspelt level does not become a part's name.
    #[test]
    fn filters_are_read_or_refused() {
        for good in ["info", "warn,iscsi=debug", "off,pollux::boot=trace"] {
            assert_eq!(parse_filter(good), Ok(good.to_owned()));
        }
        for bad in ["", "loud", "info,", "iscsi=", "=info", "iscsi=loud", "info debug"] {
            assert!(parse_filter(bad).expect_err(bad).cure.contains("info,iscsi=debug"));
        }
    }

    /// Goal: nobody waits for stderr, and what is lost is told. Method: a queue of two that nobody empties.
    #[test]
    fn a_stuck_reader_costs_lines_not_time() {
        let (lines, waiting) = sync_channel(2);
        let dropped = Arc::new(AtomicU64::new(0));
        let maker = Lines { lines, dropped: Arc::clone(&dropped) };
        for number in 0..5 {
            writeln!(maker.make_writer(), "line {number}").unwrap();
        }
        drop(maker);
        let mut out = Vec::new();
        write_out(&waiting, &dropped, LogFormat::Text, &mut out);
        let text = String::from_utf8(out).unwrap();
        assert!(text.starts_with("line 0\n"), "{text}");
        assert!(text.contains("lines=3"), "{text}");
        assert!(text.contains("line 1\n") && !text.contains("line 2"), "{text}");
    }
}
