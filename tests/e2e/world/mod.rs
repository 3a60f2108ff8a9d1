//! What a test is made of.

mod folder;
mod http;
mod machine;
mod network;
mod pair;
mod places;
mod processes;
mod tls;
mod tree;
mod waiting;

pub(crate) use folder::Folder;
pub(crate) use http::{Answer, http};
pub(crate) use machine::Machine;
pub(crate) use network::Network;
pub(crate) use pair::{Pair, Plan};
pub(crate) use places::free_ips;
pub(crate) use processes::{beneath, kill, kill_beneath, signal};
pub(crate) use rustix::process::Signal;
pub(crate) use tls::{Caller, call};
pub(crate) use tree::tree;
pub(crate) use waiting::{holds, until};

/// Returns whether this process may make namespaces and mounts; says so where it may not.
pub(crate) fn is_root(test: &str) -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        eprintln!("SKIPPED: {test} needs root");
    }
    is_root
}
