//! The pool. (Under construction.)
pub mod catalog;
pub mod codec;
pub mod control;
pub mod format;
pub mod map;
pub mod slot;
pub mod space;
