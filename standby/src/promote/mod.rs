//! The standby's end: promote.
