//! The primary's end: settings.
