//! End to end: whole nodes of the built program, real Postgres, as a user would see them.
//!
//! ```text
//! world/      what a test is made of: a pair of machines, processes, HTTP, networks
//! the others  a module per theme; a test is a sentence
//! ```
//! Each test has its own folder, its own loopback addresses and its own processes, all of which are
//! gone when it ends. What needs root (network namespaces, mounts) is skipped with a line elsewhere.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod address;
mod adoption;
mod bad_input;
mod balancer;
mod behind;
mod crashes;
mod daemon;
mod demo;
mod disk_full;
mod drill;
mod faults;
mod fencing;
mod files_verbs;
mod index;
mod kv;
mod links;
mod named_states;
mod parted;
mod partition;
mod pause;
mod promotion;
mod refusals;
mod reseeding;
mod returning;
mod seeding;
mod services;
mod settings;
mod streaming;
mod superseded;
mod switching_off;
mod synchronous;
mod three;
mod world;
