//! What happened, line by line: all of it when a seed is replayed, the last lines when one failed.

use std::collections::VecDeque;

/// Lines that are kept.
const KEPT: usize = 80;

/// Where lines go.
#[derive(Clone, Debug, Default)]
pub enum Trace {
    /// Nowhere.
    #[default]
    Off,
    /// To standard output.
    Print,
    /// The last ones are kept, and printed when this is dropped in a panic.
    Last(VecDeque<String>),
}

impl Trace {
    /// One more line.
    pub fn line(&mut self, line: impl FnOnce() -> String) {
        match self {
            Trace::Off => {}
            Trace::Print => println!("{}", line()),
            Trace::Last(lines) => {
                if lines.len() == KEPT {
                    lines.pop_front();
                }
                lines.push_back(line());
            }
        }
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        if let (Trace::Last(lines), true) = (self, std::thread::panicking()) {
            for line in lines {
                println!("{line}");
            }
        }
    }
}
