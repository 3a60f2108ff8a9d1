//! Tables that can be rebuilt from a log.
