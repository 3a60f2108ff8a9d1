//! The standby's end: settings.
