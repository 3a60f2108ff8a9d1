//! The primary's end: services.
