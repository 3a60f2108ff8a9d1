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
pub(crate) use machine::{Ended, Machine, ended, os_user, postgres_program};
pub(crate) use network::Network;
pub(crate) use pair::{FILES, Pair, Plan};
pub(crate) use places::free_ips;
pub(crate) use processes::{beneath, kill, kill_beneath, signal};
pub(crate) use rustix::process::Signal;
pub(crate) use tls::{Caller, call};
pub(crate) use tree::tree;
pub(crate) use waiting::{holds, until};

/// Says that a test is skipped; past the capture of passing tests' output.
pub(crate) fn skip(test: &str, needs: &str) {
    use std::io::Write;
    let line = format!("SKIPPED: {test} needs {needs}\n");
    std::io::stderr().write_all(line.as_bytes()).unwrap();
}

/// Returns whether this process may make namespaces and mounts; says so where it may not.
pub(crate) fn is_root(test: &str) -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        skip(test, "root");
    }
    is_root
}
