//! The address that clients use, on real network interfaces: two machines and somebody who looks at them
//! from outside, each a network namespace, on one switch.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod network;
mod node;
mod prober;
mod refusals;
mod taking;
mod watching;

/// What the tests take, if they take both.
const V4: &str = "10.78.0.100/24";
const V6: &str = "fd78::100/64";
