//! A process that may outlive the daemon that started it.

use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use serde::{Deserialize, Serialize};

/// How long a process has between TERM and KILL.
const TERM_PATIENCE: Duration = Duration::from_secs(5);

/// How long is waited for the end of what has been killed.
const KILL_PATIENCE: Duration = Duration::from_secs(2);

/// How often it is looked whether it has ended.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// The leader of a process group, told from any that gets its number later.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Process {
    pid: i32,
    /// When it started, in the kernel's ticks since the boot.
    start_ticks: u64,
    boot: String,
}

impl Process {
    /// Returns what tells the process of that number; `None` where it is gone already.
    pub(super) fn of(pid: Pid) -> Option<Self> {
        let pid = pid.as_raw_nonzero().get();
        Some(Self {
            pid,
            start_ticks: start_ticks(pid)?,
            boot: boot()?,
        })
    }

    /// Returns whether it runs still.
    fn runs(&self) -> bool {
        boot().as_ref() == Some(&self.boot) && start_ticks(self.pid) == Some(self.start_ticks)
    }

    /// Ends it with its group, if it runs still; returns whether it did.
    pub(super) async fn end(&self) -> bool {
        let Some(group) = Pid::from_raw(self.pid).filter(|_| self.runs()) else {
            return false;
        };
        // It may end at any moment, and then there is nobody to signal.
        let _gone = kill_process_group(group, Signal::TERM).is_err();
        if !self.ends_within(TERM_PATIENCE).await {
            let _gone = kill_process_group(group, Signal::KILL).is_err();
            if !self.ends_within(KILL_PATIENCE).await {
                tracing::warn!(pid = self.pid, "what was killed has not ended yet");
            }
        }
        true
    }

    async fn ends_within(&self, patience: Duration) -> bool {
        let ended = async {
            while self.runs() {
                tokio::time::sleep(POLL_INTERVAL).await;
            }
        };
        tokio::time::timeout(patience, ended).await.is_ok()
    }
}

fn boot() -> Option<String> {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(boot.trim().to_owned())
}

/// Returns the 22nd field of the process' `stat`; `None` for one that has ended, reaped or not.
fn start_ticks(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the name, which may hold anything.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;
    use std::process::Command;

    use super::*;

    #[tokio::test]
    async fn a_process_is_told_from_one_that_has_its_number_later() {
        let mut child = Command::new("sleep")
            .arg("1000")
            .process_group(0)
            .spawn()
            .unwrap();
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
        let process = Process::of(pid).unwrap();
        let later = Process {
            start_ticks: process.start_ticks + 1,
            ..process.clone()
        };
        let other_boot = Process {
            boot: "another".to_owned(),
            ..process.clone()
        };
        assert!(!later.end().await && !other_boot.end().await);
        assert!(child.try_wait().unwrap().is_none());
        assert!(process.end().await);
        assert!(!child.wait().unwrap().success());
        assert!(!process.end().await);
    }
}
