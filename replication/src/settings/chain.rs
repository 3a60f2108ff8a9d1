//! An error with its sources, as a sentence.

use std::error::Error;

/// Returns `error` and what caused it, joined by colons, for reports and peers.
pub fn told(error: &dyn Error) -> String {
    let mut told = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        told.push_str(": ");
        told.push_str(&error.to_string());
        source = error.source();
    }
    told
}
