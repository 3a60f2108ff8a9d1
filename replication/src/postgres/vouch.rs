//! A primary's server starts only while a daemon vouches for it.
//!
//! The dangerous start is the one that nobody watches: a machine that was superseded while it was off
//! boots, its operating system starts Postgres, and clients with a pool of addresses write to it until the
//! daemon has heard of its successor. So the settings of a primary take `hba_file`, without which a server
//! does not start, through a link that
//!
//! - is made when the node's epoch is settled, and removed when it is not: at the start of the daemon, and
//!   by a fence;
//! - lies in the folder for what must not outlive a boot;
//! - leads through the daemon's own directory in `/proc`, and so to nothing once the daemon is gone.
//!
//! A server that runs is not harmed by that: one that cannot read the file at a reload keeps what it has
//! (Postgres' documentation, 21.1), and the internal restart after a crash of a backend does not read it.
//! A standby's settings do not name the link: it takes no writes in any case.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::cluster::Cluster;
use super::error::PostgresError;
use crate::durable;

/// The folder says what is the matter where a server's log names it: `could not load …`.
pub(super) const FOLDER: &str = "postgres-is-vouched-for";

/// Says the same at more length.
const README: &str = "\
Understudy vouches here for the Postgres server of this node: the server of a primary starts only while
the daemon runs and knows that no other node has superseded it. If Postgres says that it cannot load
pg_hba.conf from here, look at `understudy status`. To start it without Understudy, for good, remove the
line that includes understudy.conf from postgresql.conf; make sure first that no other node is primary.
";

impl Cluster {
    /// Returns the path by which the settings of a primary name `pg_hba.conf`.
    pub(super) fn vouched_hba(&self) -> PathBuf {
        self.run_dir.join(FOLDER).join("pg_hba.conf")
    }

    /// Lets the server of a primary start from now on, for as long as this process lives.
    ///
    /// # Errors
    /// When the link cannot be made.
    pub fn vouch(&self) -> Result<(), PostgresError> {
        let link = self.vouched_hba();
        let failed = |source| self.file("make", &link, source);
        let folder = self.run_dir.join(FOLDER);
        durable::create_directory(&folder, 0o755).map_err(failed)?;
        fs::write(folder.join("README"), README).map_err(failed)?;
        let hba = self.config_dir.join("pg_hba.conf");
        let hba = hba.canonicalize().map_err(failed)?;
        let target = through_this_process(&hba);
        // Renamed over an older one: a reload at this moment finds one of the two.
        let new = folder.join("pg_hba.conf.new");
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            Ok(()) | Err(_) => {}
        }
        symlink(target, &new).map_err(failed)?;
        fs::rename(&new, &link).map_err(failed)
    }

    /// Lets no server of a primary start any more; one that runs goes on.
    ///
    /// # Errors
    /// When the link cannot be removed.
    pub fn disavow(&self) -> Result<(), PostgresError> {
        let link = self.vouched_hba();
        match fs::remove_file(&link) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(self.file("remove", &link, error))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

/// Returns a path to `file` that leads nowhere once this process has ended; where others may not look into
/// this process' directory in `/proc`, the file itself.
fn through_this_process(file: &Path) -> PathBuf {
    let process = PathBuf::from(format!("/proc/{}", std::process::id()));
    let way = process
        .join("../..")
        .join(file.strip_prefix("/").unwrap_or(file));
    if is_proc_hidden() || !way.exists() {
        tracing::warn!(
            "the directories of processes in /proc are hidden from others: a server that is started while \
             no daemon runs is only kept from serving until the next boot"
        );
        return file.to_owned();
    }
    way
}

/// Returns whether `/proc` shows a process to its own user only.
fn is_proc_hidden() -> bool {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    mounts.lines().any(|line| {
        let mut fields = line.split(' ').skip(1);
        let (place, options) = (fields.next(), fields.nth(1).unwrap_or_default());
        let hides = |option: &str| {
            option
                .strip_prefix("hidepid=")
                .is_some_and(|how| !matches!(how, "0" | "off"))
        };
        place == Some("/proc") && options.split(',').any(hides)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_vouched_for_can_be_read_until_it_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let mut cluster = Cluster::example(false);
        cluster.config_dir = folder.path().join("data");
        cluster.run_dir = folder.path().join("run");
        fs::create_dir(&cluster.config_dir).unwrap();
        fs::write(
            cluster.config_dir.join("pg_hba.conf"),
            "local all all peer\n",
        )
        .unwrap();
        cluster.disavow().unwrap();
        for _ in 0..2 {
            cluster.vouch().unwrap();
            let read = fs::read_to_string(cluster.vouched_hba()).unwrap();
            assert_eq!(read, "local all all peer\n");
        }
        let target = fs::read_link(cluster.vouched_hba()).unwrap();
        let mine = format!("/proc/{}/", std::process::id());
        assert!(target.starts_with(mine), "{}", target.display());
        cluster.disavow().unwrap();
        assert!(!cluster.vouched_hba().exists());
    }

    #[test]
    fn a_way_through_a_process_that_has_ended_leads_nowhere() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let way = PathBuf::from(format!("/proc/{}/../../etc/passwd", child.id()));
        assert!(way.exists());
        child.wait().unwrap();
        assert!(!way.exists());
    }
}
