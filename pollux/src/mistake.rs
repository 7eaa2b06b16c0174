//! What a person did that can't be served, said so that they can put it right: what, where, what to do.

use std::fmt;

/// One mistake. `what` is a sentence without its full stop, `cure` says what to write or do instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// What is wrong, with the offending value in it.
    pub what: String,
    /// Where: `FILE:LINE:COLUMN, key KEY`, an option, or a path.
    pub place: Option<String>,
    /// What to do about it; empty if `what` says that too.
    pub cure: String,
}

impl Mistake {
    /// A mistake whose place the caller above knows better; see [`Mistake::at`].
    pub fn new(what: impl Into<String>, cure: impl Into<String>) -> Mistake {
        Mistake { what: what.into(), place: None, cure: cure.into() }
    }

    /// One whose text already says what to do, as the errors of the lower crates do.
    pub fn plain(text: impl Into<String>) -> Mistake {
        Mistake::new(text, "")
    }

    /// The same, there.
    #[must_use]
    pub fn at(mut self, place: impl Into<String>) -> Mistake {
        self.place = Some(place.into());
        self
    }

    /// Says it in the log, for what is unwise rather than wrong, or comes up while running.
    pub fn log(&self) {
        tracing::warn!(place = self.place.as_deref(), cure = self.cure, "{}", self.what);
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        if let Some(place) = &self.place {
            write!(f, "\n  at: {place}")?;
        }
        match self.cure.as_str() {
            "" => Ok(()),
            cure => write!(f, "\n  do: {cure}"),
        }
    }
}

impl std::error::Error for Mistake {}

/// All that is wrong with one input; never empty as an error.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mistakes(pub Vec<Mistake>);

/// More than this are not shown: the first ones explain the rest.
const SHOWN_MAX: usize = 20;

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, mistake) in self.0.iter().take(SHOWN_MAX).enumerate() {
            let newline = if index == 0 { "" } else { "\n" };
            write!(f, "{newline}error: {mistake}")?;
        }
        match self.0.len().saturating_sub(SHOWN_MAX) {
            0 => Ok(()),
            more => write!(f, "\nerror: and {more} more of the kind"),
        }
    }
}

impl From<Mistake> for Mistakes {
    fn from(mistake: Mistake) -> Mistakes {
        Mistakes(vec![mistake])
    }
}
