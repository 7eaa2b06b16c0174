//! The pool. (Under construction.)
pub mod control;
