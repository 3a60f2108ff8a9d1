//! Both ends of a files store, over real connections.

#![expect(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]

mod follow;
mod hostile;
mod mapping;
mod pair;
mod salvage;
mod seed;
mod several;
mod traps_capture;
mod traps_copy;
mod traps_epochs;
mod traps_escape;
mod traps_hints;
mod traps_large;
mod traps_mounts;
mod traps_moves;
mod traps_names;
mod traps_rot;
