//! The standby's end: index.
