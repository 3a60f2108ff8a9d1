//! The standby's end: postgres.
