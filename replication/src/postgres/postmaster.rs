//! Which server works on a data directory, as its lock file and the process tell.
//!
//! `postmaster.pid` has the server's pid in its first line (negative while a single-user server works
//! there), the port, the folder of its socket and, in the eighth, whether it takes connections
//! (Postgres' `miscadmin.h`, "lock file line numbers"). A crash leaves the file behind: what it says is
//! believed of a process that works in the data directory only.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// What is known of the server of a data directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Server {
    /// There is none.
    None,
    /// It could not be found out; fencing has to take it for one that runs.
    Unknown,
    /// This process.
    Runs {
        /// Its pid.
        pid: Pid,
        /// It is for a single user: it takes no connections, and ends by itself.
        is_single_user: bool,
    },
}

/// Returns the first line of a lock file as a pid, and whether it is a single user's.
fn parse_pid(text: &str) -> Option<(Pid, bool)> {
    let number: i32 = text.lines().next()?.trim().parse().ok()?;
    Some((Pid::from_raw(number.checked_abs()?)?, number < 0))
}

/// Returns whether a lock file says that its server takes connections.
fn says_ready(text: &str) -> bool {
    text.lines()
        .nth(7)
        .is_some_and(|status| matches!(status.trim(), "ready" | "standby"))
}

/// Where a server takes connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listening {
    /// The server's pid.
    pub pid: i32,
    /// Its port.
    pub port: u16,
    /// The folder of its Unix socket: the first, where there are several. `None` if it has none.
    pub socket_dir: Option<PathBuf>,
}

fn parse_listening(text: &str) -> Option<Listening> {
    let (pid, _) = parse_pid(text)?;
    let mut lines = text.lines().skip(3);
    let port = lines.next()?.trim().parse().ok()?;
    let folder = lines.next()?.trim();
    Some(Listening {
        pid: pid.as_raw_nonzero().get(),
        port,
        socket_dir: (!folder.is_empty()).then(|| PathBuf::from(folder)),
    })
}

/// Returns where the server of a data directory takes connections, if one does.
pub fn listening(data_dir: &Path) -> Option<Listening> {
    if !is_ready(data_dir) {
        return None;
    }
    parse_listening(&fs::read_to_string(lock_file(data_dir)).ok()?)
}

/// Returns whether a server, of whatever kind, works on a data directory; what cannot be found out counts
/// as one.
pub fn is_at_work(data_dir: &Path) -> bool {
    match find(data_dir) {
        Server::None => false,
        Server::Unknown | Server::Runs { .. } => true,
    }
}

fn lock_file(data_dir: &Path) -> PathBuf {
    data_dir.join("postmaster.pid")
}

/// Finds the server of a data directory.
pub(super) fn find(data_dir: &Path) -> Server {
    let text = match fs::read_to_string(lock_file(data_dir)) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Server::None,
        Err(_) => return Server::Unknown,
    };
    let Some((pid, is_single_user)) = parse_pid(&text) else {
        // Just being written.
        return Server::Unknown;
    };
    let process = PathBuf::from(format!("/proc/{}", pid.as_raw_nonzero()));
    let stat = match fs::read_to_string(process.join("stat")) {
        Ok(stat) => stat,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Server::None,
        Err(_) => return Server::Unknown,
    };
    if has_ended_by(&stat) {
        return Server::None;
    }
    // A stale file may name a process that is something else by now. A server works in its data
    // directory, whatever the name of its program.
    let is_ours = match (fs::read_link(process.join("cwd")), data_dir.canonicalize()) {
        (Ok(works_in), Ok(data_dir)) => works_in == data_dir,
        (Err(_), _) | (_, Err(_)) => stat.contains("(postgres") || stat.contains("(postmaster"),
    };
    if is_ours {
        Server::Runs {
            pid,
            is_single_user,
        }
    } else {
        Server::None
    }
}

/// Returns whether the lock file names a process that has ended and that nobody has asked how: as long as it is
/// listed, Postgres takes it for one that lives.
pub(super) fn is_unburied(data_dir: &Path) -> bool {
    let named = fs::read_to_string(lock_file(data_dir)).ok();
    let Some((pid, _)) = named.as_deref().and_then(parse_pid) else {
        return false;
    };
    fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()))
        .is_ok_and(|stat| has_ended_by(&stat))
}

/// Returns whether a process has ended, by what the kernel tells of it.
fn has_ended_by(stat: &str) -> bool {
    let state = stat
        .rsplit(')')
        .next()
        .and_then(|rest| rest.split_whitespace().next());
    matches!(state, Some("Z" | "X"))
}

/// Returns whether the server of a data directory takes connections, by its own word.
pub(super) fn is_ready(data_dir: &Path) -> bool {
    let says = fs::read_to_string(lock_file(data_dir)).is_ok_and(|text| says_ready(&text));
    says && matches!(
        find(data_dir),
        Server::Runs {
            is_single_user: false,
            ..
        }
    )
}

/// A hold on one process: a pid that is used again by another one is not mistaken for it.
#[derive(Debug)]
pub(super) struct Held(Arc<OwnedFd>);

impl Held {
    /// Takes hold of the server of `data_dir`; `None` if there is none (any more).
    pub(super) fn take(data_dir: &Path) -> io::Result<Option<Self>> {
        let Server::Runs { pid, .. } = find(data_dir) else {
            return Ok(None);
        };
        let held = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(held) => held,
            Err(rustix::io::Errno::SRCH) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        // The process that is held now is the one that was looked at, if it still is the server.
        match find(data_dir) {
            Server::Runs { pid: again, .. } if again == pid => Ok(Some(Self(Arc::new(held)))),
            Server::Runs { .. } | Server::None | Server::Unknown => Ok(None),
        }
    }

    /// Takes hold of what the server of `data_dir` has started: its children notice that it was killed, unless they
    /// stand still themselves.
    pub(super) fn take_children(data_dir: &Path) -> Vec<Self> {
        let Server::Runs { pid, .. } = find(data_dir) else {
            return Vec::new();
        };
        let pid = pid.as_raw_nonzero();
        let listed = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        let pids = listed.unwrap_or_default();
        let pids = pids
            .split_whitespace()
            .filter_map(|child| Pid::from_raw(child.parse().ok()?));
        let held = pids.filter_map(|child| pidfd_open(child, PidfdFlags::empty()).ok());
        let held = held.map(|child| Self(Arc::new(child))).collect();
        // Those that were listed are its children as long as it is there.
        match find(data_dir) {
            Server::Runs { pid: again, .. } if again.as_raw_nonzero() == pid => held,
            Server::Runs { .. } | Server::None | Server::Unknown => Vec::new(),
        }
    }

    /// Sends it a signal; one that has ended needs none.
    pub(super) fn signal(&self, signal: Signal) -> io::Result<()> {
        match pidfd_send_signal(&*self.0, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits until it has ended; returns whether it has within `limit`.
    pub(super) async fn ended(&self, limit: Duration) -> bool {
        let held = self.0.clone();
        let waited = tokio::task::spawn_blocking(move || has_ended(&held, limit)).await;
        waited.unwrap_or(false)
    }
}

/// Blocks until a process has ended, which makes its descriptor readable for ever, or `limit` is over.
fn has_ended(process: &OwnedFd, limit: Duration) -> bool {
    let until = Instant::now() + limit;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let left = Timespec {
            tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        };
        let mut processes = [PollFd::new(process, PollFlags::IN)];
        match poll(&mut processes, Some(&left)) {
            Ok(ended) => return ended > 0,
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_file_is_understood() {
        let file = "4711\n/data\n1700000000\n5432\n/run/postgresql\nlocalhost\n  1  2\nready   \n";
        assert_eq!(parse_pid(file), Some((Pid::from_raw(4711).unwrap(), false)));
        assert_eq!(parse_pid("-12\n"), Some((Pid::from_raw(12).unwrap(), true)));
        for wrong in ["", "x", "0\n", "-2147483648\n"] {
            assert_eq!(parse_pid(wrong), None, "{wrong}");
        }
        let listening = Listening {
            pid: 4711,
            port: 5432,
            socket_dir: Some("/run/postgresql".into()),
        };
        assert_eq!(parse_listening(file), Some(listening));
        assert_eq!(parse_listening("4711\n/data\n"), None);
        assert!(says_ready(file));
        assert!(says_ready(&file.replace("ready", "standby")));
        assert!(!says_ready(&file.replace("ready", "starting")));
        assert!(!says_ready("4711\n"));
    }

    #[test]
    fn a_file_that_a_crash_left_behind_is_no_server() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(find(folder.path()), Server::None);
        // This process does not work there.
        let me = std::process::id();
        fs::write(lock_file(folder.path()), format!("{me}\n")).unwrap();
        assert_eq!(find(folder.path()), Server::None);
        fs::write(lock_file(folder.path()), "").unwrap();
        assert_eq!(find(folder.path()), Server::Unknown);
    }

    #[tokio::test]
    async fn a_process_that_is_held_is_waited_for_and_no_longer() {
        let folder = tempfile::tempdir().unwrap();
        let mut child = std::process::Command::new("sleep")
            .arg("1000")
            .current_dir(folder.path())
            .spawn()
            .unwrap();
        fs::write(lock_file(folder.path()), format!("{}\n", child.id())).unwrap();
        let held = Held::take(folder.path()).unwrap().unwrap();
        assert!(!held.ended(Duration::from_millis(20)).await);
        held.signal(Signal::INT).unwrap();
        assert!(held.ended(Duration::from_secs(30)).await);
        // Nobody has waited for it yet: a zombie is no server.
        assert_eq!(find(folder.path()), Server::None);
        assert!(Held::take(folder.path()).unwrap().is_none());
        child.wait().unwrap();
    }
}
