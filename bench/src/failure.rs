//! The one error of this program: a sentence for a person. Who catches it adds where it happened.

use std::fmt;

/// What went wrong, told as: where, what, and what to do about it when that is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure(String);

impl Failure {
    /// Wraps the sentence.
    pub fn new(what: impl Into<String>) -> Failure {
        Failure(what.into())
    }

    /// Puts where it happened in front: `where: what`.
    pub fn at(self, place: impl fmt::Display) -> Failure {
        Failure(format!("{place}: {}", self.0))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Failure {}

/// Turns any error into a [`Failure`] that says what was being done.
pub trait Context<T> {
    /// `doing: the error`.
    ///
    /// # Errors
    /// The error of `self`, as a sentence.
    fn doing(self, doing: impl fmt::Display) -> Result<T, Failure>;
}

impl<T, E: fmt::Display> Context<T> for Result<T, E> {
    fn doing(self, doing: impl fmt::Display) -> Result<T, Failure> {
        self.map_err(|error| Failure(format!("{doing}: {error}")))
    }
}
