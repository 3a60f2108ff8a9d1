//! The standby's end: files.
