//! Waiting for a server that starts.
//!
//! A standby takes connections once it has replayed the log up to where its copy is consistent. After a
//! base backup or a re-seed of a large cluster this takes as long as it takes; one that does not get on,
//! since the log that it needs is not to be had, is no different from one that does not start. How far it
//! is tells the title of its startup process, `recovering` with the name of a segment, and the control
//! file, which is written while pages are.

use std::fs;
use std::path::Path;
use std::time::Duration;

use super::cluster::Cluster;
use super::postmaster::{self, Server};

/// A replay may take this long, however well it gets on.
pub(super) const REPLAY_PATIENCE: Duration = Duration::from_secs(24 * 3600);

/// How often a server that starts is asked whether it is there.
const READY_INTERVAL: Duration = Duration::from_millis(5);

/// How often it is looked at how far it is, at most.
const REPLAY_INTERVAL: Duration = Duration::from_secs(1);

/// What the title of the process that replays has before the name of the segment.
const RECOVERING: &str = "recovering ";

/// How far a server is that starts.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Replay {
    /// No standby's server is at it.
    None,
    /// It syncs the data directory or reads what the backup left, and does not tell how far it is.
    Prepares,
    /// It replays.
    Replays {
        /// The title of the process, with the segment.
        title: String,
        /// What the control file holds.
        control: Vec<u8>,
    },
}

impl Replay {
    /// Returns whether it has got on since it was like `before`.
    fn has_moved_since(&self, before: &Self) -> bool {
        match self {
            Self::None => false,
            Self::Prepares => true,
            Self::Replays { .. } => self != before,
        }
    }
}

impl Cluster {
    /// Waits until the server takes connections; returns whether it does, before `patience` is over. Of a
    /// standby that is counted from where its replay got on last.
    pub(super) async fn gets_ready(&self, patience: Duration) -> bool {
        let ready = async {
            while !postmaster::is_ready(&self.data_dir) {
                tokio::time::sleep(READY_INTERVAL).await;
            }
        };
        let stuck = async {
            let mut before = Replay::None;
            let mut moved = tokio::time::Instant::now();
            while moved.elapsed() < patience {
                tokio::time::sleep(REPLAY_INTERVAL.min(patience / 4)).await;
                let now = self.replay();
                if now.has_moved_since(&before) {
                    moved = tokio::time::Instant::now();
                }
                before = now;
            }
        };
        tokio::select! {
            () = ready => true,
            () = stuck => false,
            () = tokio::time::sleep(REPLAY_PATIENCE) => false,
        }
    }

    fn replay(&self) -> Replay {
        if !self.is_standby() {
            return Replay::None;
        }
        let Server::Runs { pid, .. } = postmaster::find(&self.data_dir) else {
            return Replay::None;
        };
        match startup_title(pid.as_raw_nonzero().get()) {
            None => Replay::None,
            Some(title) if title.contains(RECOVERING) => Replay::Replays {
                title,
                // One that cannot be read does not change; the title does.
                control: fs::read(self.data_dir.join("global/pg_control")).unwrap_or_default(),
            },
            Some(_) => Replay::Prepares,
        }
    }
}

/// Returns the title of the process that replays for a server.
fn startup_title(server: i32) -> Option<String> {
    let process = Path::new("/proc").join(server.to_string());
    let children = process
        .join("task")
        .join(server.to_string())
        .join("children");
    let children = fs::read_to_string(children).ok()?;
    children.split_whitespace().find_map(|child| {
        let title = fs::read(Path::new("/proc").join(child).join("cmdline")).ok()?;
        let title = String::from_utf8_lossy(&title).replace('\0', " ");
        title.contains("startup").then_some(title)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::CommandExt;

    #[test]
    fn a_replay_gets_on_by_its_segment_or_its_control_file() {
        let replays = |title: &str, control: &[u8]| Replay::Replays {
            title: title.to_owned(),
            control: control.to_owned(),
        };
        let here = replays("recovering 1", b"a");
        for (now, has_moved) in [
            (Replay::None, false),
            (Replay::Prepares, true),
            (here.clone(), false),
            (replays("recovering 2", b"a"), true),
            (replays("recovering 1", b"b"), true),
        ] {
            assert_eq!(now.has_moved_since(&here), has_moved, "{now:?}");
        }
    }

    #[tokio::test]
    async fn a_standby_is_waited_for_while_its_replay_gets_on_and_no_longer() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path();
        let cluster = Cluster {
            data_dir: dir.to_owned(),
            ..Cluster::example(false)
        };
        fs::create_dir(dir.join("global")).unwrap();
        fs::write(dir.join("standby.signal"), "").unwrap();
        // A server with a process that bears the title.
        let script =
            "(exec -a 'postgres: startup recovering 000000010000000000000003' sleep 1000) & wait";
        let mut server = std::process::Command::new("bash")
            .args(["-c", script])
            .current_dir(dir)
            .process_group(0)
            .spawn()
            .unwrap();
        fs::write(dir.join("postmaster.pid"), format!("{}\n", server.id())).unwrap();
        let begun = tokio::time::Instant::now();
        let replaying = async {
            for number in 0..30 {
                fs::write(dir.join("global/pg_control"), number.to_string()).unwrap();
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        let patience = Duration::from_secs(1);
        let (is_ready, ()) = tokio::join!(cluster.gets_ready(patience), replaying);
        assert!(!is_ready);
        assert!(begun.elapsed() > 3 * patience, "{:?}", begun.elapsed());
        // Of a primary nothing is expected.
        fs::remove_file(dir.join("standby.signal")).unwrap();
        assert!(!cluster.gets_ready(patience / 10).await);
        let group = rustix::process::Pid::from_child(&server);
        rustix::process::kill_process_group(group, rustix::process::Signal::KILL).unwrap();
        server.wait().unwrap();
    }
}
