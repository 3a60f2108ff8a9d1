//! The primary's end: files.
