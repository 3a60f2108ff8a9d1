//! Each kind of check, of the real thing.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod machine;
mod network;
mod postgres;
mod rules;
mod watched;
