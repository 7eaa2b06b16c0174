//! Property tests of the whole server: against an array, against nonsense, and against aborts.
