//! pollux library
