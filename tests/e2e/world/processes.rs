//! Finding and ending the processes of a test: all those that work beneath its folder.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::until;

/// Sends `what` to a process; one that is gone already is no matter.
pub(crate) fn signal(pid: i32, what: Signal) {
    if let Some(pid) = Pid::from_raw(pid) {
        let _is_gone = kill_process(pid, what).is_err();
    }
}

/// Ends a process at once.
pub(crate) fn kill(pid: i32) {
    signal(pid, Signal::KILL);
}

/// Returns the processes that name `folder` on their command line or in their environment, or work in
/// it: the daemon, the Postgres servers and all their children, the services, base backups.
pub(crate) fn beneath(folder: &Path) -> BTreeSet<i32> {
    let text = format!("{}/", folder.display());
    let needle = text.as_bytes();
    let has = |bytes: &[u8]| bytes.windows(needle.len()).any(|window| window == needle);
    let me = std::process::id();
    let mut found = BTreeSet::new();
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = process
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<u32>().ok())
        else {
            continue;
        };
        let path = process.path();
        if pid == me || is_zombie(&path) {
            continue;
        }
        let file = |name| fs::read(path.join(name)).unwrap_or_default();
        let works_in = fs::read_link(path.join("cwd"))
            .is_ok_and(|folder| has(&[folder.as_os_str().as_bytes(), b"/"].concat()));
        if works_in || has(&file("cmdline")) || has(&file("environ")) {
            found.insert(i32::try_from(pid).unwrap());
        }
    }
    found
}

fn is_zombie(process: &Path) -> bool {
    let stat = fs::read_to_string(process.join("stat")).unwrap_or_default();
    let state = stat
        .rsplit(')')
        .next()
        .and_then(|rest| rest.split_whitespace().next());
    matches!(state, None | Some("Z" | "X"))
}

/// Returns whether a process is dead, and nobody but its parent, another than this one, keeps it: for
/// Postgres it counts as alive until it is reaped.
fn is_unreaped(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let parent = stat
        .rsplit(')')
        .next()
        .and_then(|rest| rest.split_whitespace().nth(1));
    parent.is_some_and(|parent| parent != std::process::id().to_string())
}

/// Ends every process beneath `folder` at once, as a power cut would.
pub(crate) fn kill_beneath(folder: &Path) {
    let mut killed = BTreeSet::new();
    until("every process is gone", Duration::from_secs(20), || {
        let found = beneath(folder);
        found.iter().for_each(|pid| kill(*pid));
        killed.extend(&found);
        killed.retain(|pid| found.contains(pid) || is_unreaped(*pid));
        if killed.is_empty() {
            Ok(())
        } else {
            Err(format!("{killed:?} are left"))
        }
    });
}
