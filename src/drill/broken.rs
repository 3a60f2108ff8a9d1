//! What is broken on purpose, and how it is mended again.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal, kill_process};
use understudy_config::{Config, Local};

use crate::failure::Failure;

/// How much of a file system a filler leaves free.
const LEFT_FREE_BYTES: u64 = 4096;

/// What mends again what was broken.
enum Mend {
    Nothing,
    Continue(Vec<Pid>),
    Routes(Vec<String>),
    Filler(PathBuf),
}

impl Mend {
    fn carry_out(self) {
        match self {
            Self::Nothing => {}
            // A process that is gone needs nothing.
            Self::Continue(pids) => {
                for pid in pids {
                    let _gone = kill_process(pid, Signal::CONT).is_err();
                }
            }
            Self::Routes(routes) => {
                for route in routes {
                    let _gone = ip(&["route", "del", "blackhole", &route]).is_err();
                }
            }
            Self::Filler(path) => {
                let _gone = fs::remove_file(path).is_err();
            }
        }
    }
}

/// Mends what was broken, at the latest when it is dropped.
pub(super) struct Broken(Mend);

impl Broken {
    /// Mends it now.
    pub(super) fn mend(&mut self) {
        std::mem::replace(&mut self.0, Mend::Nothing).carry_out();
    }
}

impl Drop for Broken {
    fn drop(&mut self) {
        self.mend();
    }
}

/// Sends a process a signal.
pub(super) fn send(pid: Pid, signal: Signal) -> Result<Broken, Failure> {
    kill_process(pid, signal).map_err(|error| {
        Failure::failed(format!(
            "cannot send a signal to process {}: {error}",
            pid.as_raw_nonzero()
        ))
    })?;
    Ok(Broken(if signal == Signal::STOP {
        Mend::Continue(vec![pid])
    } else {
        Mend::Nothing
    }))
}

/// Stops a process and its children: those of a server do its work.
pub(super) fn stop_with_children(parent: Pid) -> Result<Broken, Failure> {
    let mut broken = send(parent, Signal::STOP)?;
    let number = parent.as_raw_nonzero();
    // Stopped, it has no new ones.
    let children = fs::read_to_string(format!("/proc/{number}/task/{number}/children"))?;
    let children = children
        .split_whitespace()
        .filter_map(|pid| pid.parse().ok());
    for child in children.filter_map(Pid::from_raw) {
        // One that has just ended needs nothing.
        if kill_process(child, Signal::STOP).is_ok()
            && let Mend::Continue(pids) = &mut broken.0
        {
            pids.push(child);
        }
    }
    Ok(broken)
}

/// Reads the number of a process from a file.
pub(super) fn read_pid(file: &Path) -> Result<Pid, Failure> {
    let failed = |what: &dyn std::fmt::Display| {
        Failure::failed(format!("there is no process in {}: {what}", file.display()))
    };
    let text = fs::read_to_string(file).map_err(|error| failed(&error))?;
    let number = text.lines().next().unwrap_or_default().trim();
    // A group, or every process, is nobody's service.
    let number: i32 = number.parse().map_err(|error| failed(&error))?;
    let pid = (number > 1).then(|| Pid::from_raw(number)).flatten();
    pid.ok_or_else(|| failed(&format!("{number} is not the number of one")))
}

/// Returns the Postgres server of this node.
pub(super) fn postmaster(config: &Config, local: &Local) -> Result<Pid, Failure> {
    let postgres = config
        .postgres
        .as_ref()
        .ok_or_else(|| Failure::usage("there is no [postgres] in the configuration"))?;
    read_pid(&local.resolve(&postgres.data_dir).join("postmaster.pid"))
}

/// Returns the process at the other end of the admin socket.
pub(super) fn daemon(local: &Local) -> Result<Pid, Failure> {
    let socket = local.socket();
    let failed = |error: std::io::Error| {
        Failure::new(
            crate::failure::Kind::NoDaemon,
            format!("cannot reach the daemon at {}: {error}", socket.display()),
        )
    };
    let stream = std::os::unix::net::UnixStream::connect(&socket).map_err(failed)?;
    let peer =
        rustix::net::sockopt::socket_peercred(&stream).map_err(|error| failed(error.into()))?;
    Ok(peer.pid)
}

/// Has packets to the peers go nowhere, of the ways that `is_meant` names by their number.
pub(super) fn cut(
    config: &Config,
    local: &Local,
    is_meant: impl Fn(usize) -> bool,
) -> Result<Broken, Failure> {
    let mut broken = Broken(Mend::Routes(Vec::new()));
    for peer in config.peers(&local.name) {
        for (number, address) in (1..).zip(peer.addresses()) {
            if !is_meant(number) {
                continue;
            }
            let route = address.ip().to_string();
            ip(&["route", "add", "blackhole", &route])?;
            if let Mend::Routes(routes) = &mut broken.0 {
                routes.push(route);
            }
        }
    }
    if matches!(&broken.0, Mend::Routes(routes) if routes.is_empty()) {
        return Err(Failure::usage("the peers have no such way to them"));
    }
    Ok(broken)
}

fn ip(arguments: &[&str]) -> Result<(), Failure> {
    let ran = std::process::Command::new("ip").args(arguments).output();
    let said = match ran {
        Ok(output) if output.status.success() => return Ok(()),
        Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        Err(error) => error.to_string(),
    };
    Err(Failure::failed(format!(
        "`ip {}` failed: {said}",
        arguments.join(" ")
    )))
}

/// Takes all the room of a file system that is left.
pub(super) fn fill(folder: &Path) -> Result<Broken, Failure> {
    let failed = |error: rustix::io::Errno| {
        Failure::failed(format!("cannot fill {}: {error}", folder.display()))
    };
    let room = rustix::fs::statvfs(folder).map_err(failed)?;
    let free = room.f_bavail.saturating_mul(room.f_frsize);
    let path = folder.join(format!(".understudy-drill-{}", std::process::id()));
    let file = fs::File::create_new(&path)
        .map_err(|error| Failure::failed(format!("cannot make {}: {error}", path.display())))?;
    // Removed, whatever becomes of the rest.
    let broken = Broken(Mend::Filler(path));
    let bytes = free.saturating_sub(LEFT_FREE_BYTES).max(1);
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, bytes).map_err(failed)?;
    Ok(broken)
}
