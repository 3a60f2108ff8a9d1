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
use std::sync::atomic::Ordering;

use super::cluster::Cluster;
use super::error::PostgresError;
use crate::durable;

/// The folder says what is the matter where a server's log names it: `could not load …`.
pub(super) const FOLDER: &str = "postgres-is-vouched-for";

/// The link to the folder of the configuration: what `pg_hba.conf` includes is found beside it.
const LINK: &str = "config";

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
        self.run_dir.join(FOLDER).join(LINK).join("pg_hba.conf")
    }

    /// Lets [`Cluster::vouch`] have an effect: this node may be primary.
    pub fn settle(&self) {
        self.is_settled.store(true, Ordering::SeqCst);
    }

    /// Fails for a primary's server once the node has been fenced: what is under way must not undo that.
    pub(super) fn check_settled(&self, is_standby: bool) -> Result<(), PostgresError> {
        if self.is_settled.load(Ordering::SeqCst) || is_standby {
            return Ok(());
        }
        Err(PostgresError::NotSettled {
            data_dir: self.data_dir.clone(),
        })
    }

    /// Lets the server of a primary start from now on, for as long as this process lives.
    ///
    /// # Errors
    /// When the link cannot be made, or the node has been fenced meanwhile.
    pub fn vouch(&self) -> Result<(), PostgresError> {
        self.check_settled(false)?;
        self.link()?;
        // A fence since then has found no link to remove.
        if !self.is_settled.load(Ordering::SeqCst) {
            self.unlink()?;
        }
        Ok(())
    }

    fn link(&self) -> Result<(), PostgresError> {
        let link = self.run_dir.join(FOLDER).join(LINK);
        let failed = |source| self.file("make", &link, source);
        let folder = self.run_dir.join(FOLDER);
        durable::create_directory(&folder, 0o755).map_err(failed)?;
        fs::write(folder.join("README"), README).map_err(failed)?;
        let target = self.config_dir.canonicalize().map_err(failed)?;
        let target = through_this_process(&target);
        // Renamed over an older one: a reload at this moment finds one of the two.
        let new = folder.join("config.new");
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            Ok(()) | Err(_) => {}
        }
        symlink(target, &new).map_err(failed)?;
        fs::rename(&new, &link).map_err(failed)
    }

    /// Lets no server of a primary start any more, until [`Cluster::settle`]; one that runs goes on.
    ///
    /// # Errors
    /// When the link cannot be removed.
    pub fn disavow(&self) -> Result<(), PostgresError> {
        self.is_settled.store(false, Ordering::SeqCst);
        self.unlink()
    }

    /// Lets nobody else start the server of a primary until [`Cluster::vouch`].
    pub(super) fn unlink(&self) -> Result<(), PostgresError> {
        let link = self.run_dir.join(FOLDER).join(LINK);
        match fs::remove_file(&link) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(self.file("remove", &link, error))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

/// Returns a path to `folder` that leads nowhere once this process has ended; where others may not look into
/// this process' directory in `/proc`, the folder itself.
fn through_this_process(folder: &Path) -> PathBuf {
    let process = PathBuf::from(format!("/proc/{}", std::process::id()));
    let way = process
        .join("../..")
        .join(folder.strip_prefix("/").unwrap_or(folder));
    if is_proc_hidden() || !way.exists() {
        tracing::warn!(
            "the directories of processes in /proc are hidden from others: a server that is started while \
             no daemon runs is only kept from serving until the next boot"
        );
        return folder.to_owned();
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
        assert!(cluster.vouch().is_err(), "nothing is settled");
        cluster.settle();
        for _ in 0..2 {
            cluster.vouch().unwrap();
            let read = fs::read_to_string(cluster.vouched_hba()).unwrap();
            assert_eq!(read, "local all all peer\n");
        }
        let link = cluster.vouched_hba();
        let target = fs::read_link(link.parent().unwrap()).unwrap();
        let mine = format!("/proc/{}/", std::process::id());
        assert!(target.starts_with(mine), "{}", target.display());
        cluster.disavow().unwrap();
        assert!(!cluster.vouched_hba().exists());
        assert!(cluster.vouch().is_err(), "it has been fenced");
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
