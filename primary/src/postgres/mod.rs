//! The primary's end: postgres.
