//! Files and folders of the cluster's OS user, made by a process that may do everything.
//!
//! That user owns most of the folders they lie in, and can put a link to anything into a file's place at
//! any moment. So nothing is given away through a name that could be such a link: a file is given away
//! before it has its name, or by what has been opened. A link is followed only where an administrator has
//! made it, or where it leads to what the user owns already.

use std::fs::{self, File, Metadata};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{MetadataExt, fchown, lchown};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use super::cluster::Cluster;
use super::error::PostgresError;
use crate::durable::{self, Owner};

/// So many links are followed, one after the other.
const LINKS_MAX: usize = 8;

impl Cluster {
    /// Returns to whom files are given; `None` where this process may give nothing away, and is that user.
    pub(super) fn owner(&self) -> Option<Owner> {
        let Self { user, .. } = self;
        nix::unistd::Uid::effective().is_root().then_some(Owner {
            uid: user.uid,
            gid: user.gid,
        })
    }

    /// Creates a folder that belongs to the cluster's OS user; one that does already stays as it is.
    ///
    /// # Errors
    /// When it cannot be made, or is a link by which that user could lead elsewhere.
    pub fn create_owned_directory(&self, path: &Path, mode: u32) -> Result<(), PostgresError> {
        if let Some(parent) = path.parent() {
            durable::create_directory(parent, 0o755)
                .map_err(|source| self.file("create", parent, source))?;
        }
        durable::create_directory(path, mode)
            .map_err(|source| self.file("create", path, source))?;
        let place = self.follow_trusted(path)?;
        let made = open(&place, OFlags::DIRECTORY)
            .and_then(|folder| Ok((folder.metadata()?.uid(), folder)));
        let (uid, folder) = made.map_err(|source| self.file("open", path, source))?;
        if uid == self.user.uid {
            return Ok(());
        }
        self.own_opened(&folder, path)
    }

    /// Gives a file to the OS user of the cluster; a link itself, and not what it leads to.
    ///
    /// # Errors
    /// When this process may not.
    pub fn own(&self, path: &Path) -> Result<(), PostgresError> {
        let Some(Owner { uid, gid }) = self.owner() else {
            return Ok(());
        };
        lchown(path, Some(uid), Some(gid)).map_err(|source| self.file("give away", path, source))
    }

    /// Gives an open file to the OS user of the cluster.
    pub(super) fn own_opened(&self, file: &File, path: &Path) -> Result<(), PostgresError> {
        let Some(Owner { uid, gid }) = self.owner() else {
            return Ok(());
        };
        fchown(file, Some(uid), Some(gid)).map_err(|source| self.file("give away", path, source))
    }

    /// Replaces a file, or a link in its place, by one of the OS user's.
    pub(super) fn write_owned(
        &self,
        path: &Path,
        content: &[u8],
        mode: u32,
    ) -> Result<(), PostgresError> {
        durable::write_for(path, content, mode, self.owner())
            .map_err(|source| self.file("write", path, source))
    }

    /// Writes a file that is ours alone, for the OS user to read, if it is not like that already.
    pub(super) fn write_ours(&self, path: &Path, content: &str) -> Result<(), PostgresError> {
        let present = path.symlink_metadata().ok().filter(Metadata::is_file);
        let is_theirs = present.as_ref().is_some_and(|it| it.uid() == self.user.uid);
        if is_theirs && fs::read_to_string(path).is_ok_and(|present| present == content) {
            return Ok(());
        }
        let mode = present.map_or(0o600, |present| present.mode() & 0o777);
        self.write_owned(path, content.as_bytes(), mode)
    }

    /// Changes a file of the operator's. It stays whose it is and where it is: a link into the files of a
    /// configuration management goes on leading there.
    pub(super) fn edit(
        &self,
        path: &Path,
        change: impl FnOnce(&str) -> String,
    ) -> Result<(), PostgresError> {
        let place = self.follow_trusted(path)?;
        let failed = |action| move |source| self.file(action, path, source);
        let mut file = open(&place, OFlags::empty()).map_err(failed("open"))?;
        let metadata = file.metadata().map_err(failed("look at"))?;
        if !metadata.is_file() {
            return Err(self.misled(path));
        }
        let mut present = String::new();
        file.read_to_string(&mut present).map_err(failed("read"))?;
        let content = change(&present);
        if content == present {
            return Ok(());
        }
        // Of what has been read, and not of what is at the path by now: no content gets to anybody who
        // could not read it.
        let owner = self.owner().map(|_| Owner {
            uid: metadata.uid(),
            gid: metadata.gid(),
        });
        let mode = metadata.mode() & 0o777;
        durable::write_for(&place, content.as_bytes(), mode, owner).map_err(failed("write"))
    }

    /// Checks that a file is one, and no link.
    pub(super) fn expect_file(&self, path: &Path) -> Result<(), PostgresError> {
        let found = path
            .symlink_metadata()
            .map_err(|source| self.file("look at", path, source))?;
        if found.is_file() {
            Ok(())
        } else {
            Err(self.misled(path))
        }
    }

    /// Returns where a path leads. Links are followed that an administrator has made; others only to what
    /// belongs to the OS user, who gains nothing by them.
    pub(super) fn follow_trusted(&self, path: &Path) -> Result<PathBuf, PostgresError> {
        let mut place = path.to_owned();
        let mut is_users = false;
        for _ in 0..LINKS_MAX {
            let found = match fs::symlink_metadata(&place) {
                Ok(found) => found,
                // To be made there.
                Err(error) if error.kind() == ErrorKind::NotFound && !is_users => return Ok(place),
                Err(source) => return Err(self.file("follow", path, source)),
            };
            if !found.is_symlink() {
                return if is_users && found.uid() != self.user.uid {
                    Err(self.misled(path))
                } else {
                    Ok(place)
                };
            }
            // A process that is that user can do nothing that the user could not.
            is_users |= found.uid() != 0 && self.owner().is_some();
            let target =
                fs::read_link(&place).map_err(|source| self.file("follow", path, source))?;
            place = place.parent().unwrap_or(Path::new("/")).join(target);
        }
        Err(self.misled(path))
    }

    fn misled(&self, path: &Path) -> PostgresError {
        PostgresError::Misled {
            path: path.to_owned(),
            user: self.user.name.clone(),
        }
    }
}

/// Opens what is at a path for reading; a link is an error.
fn open(path: &Path, flags: OFlags) -> io::Result<File> {
    // A FIFO must not keep us waiting.
    let flags = flags | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    Ok(File::from(rustix::fs::open(path, flags, Mode::empty())?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    /// A cluster of a user that is not root, where the test may do such a thing.
    fn cluster() -> Cluster {
        let mut cluster = Cluster::example(false);
        if nix::unistd::Uid::effective().is_root() {
            (cluster.user.uid, cluster.user.gid) = (65534, 65534);
        }
        cluster
    }

    fn uid(path: &Path) -> u32 {
        path.symlink_metadata().unwrap().uid()
    }

    #[test]
    fn a_link_is_given_away_and_not_what_it_leads_to() {
        let folder = tempfile::tempdir().unwrap();
        let [secret, link] = ["secret", "link"].map(|name| folder.path().join(name));
        fs::write(&secret, "root's").unwrap();
        let before = uid(&secret);
        symlink(&secret, &link).unwrap();
        cluster().own(&link).unwrap();
        assert_eq!((uid(&secret), uid(&link)), (before, cluster().user.uid));
        cluster().write_owned(&link, b"new", 0o600).unwrap();
        assert!(link.symlink_metadata().unwrap().is_file());
        assert_eq!(uid(&link), cluster().user.uid);
        assert_eq!(fs::read_to_string(&secret).unwrap(), "root's");
    }

    #[test]
    fn a_file_of_the_operators_stays_behind_its_link_with_its_owner_and_mode() {
        let folder = tempfile::tempdir().unwrap();
        let [managed, link] = ["managed", "pg_hba.conf"].map(|name| folder.path().join(name));
        fs::write(&managed, "one\n").unwrap();
        fs::set_permissions(&managed, fs::Permissions::from_mode(0o644)).unwrap();
        let before = uid(&managed);
        symlink("managed", &link).unwrap();
        let cluster = cluster();
        cluster.edit(&link, |text| format!("{text}two\n")).unwrap();
        assert!(link.symlink_metadata().unwrap().is_symlink());
        assert_eq!(fs::read_to_string(&managed).unwrap(), "one\ntwo\n");
        let after = managed.symlink_metadata().unwrap();
        assert_eq!((after.uid(), after.mode() & 0o777), (before, 0o644));
        if cluster.owner().is_some() {
            cluster.own(&link).unwrap();
            let error = cluster.edit(&link, |_| String::new()).unwrap_err();
            assert!(matches!(error, PostgresError::Misled { .. }), "{error}");
            assert_eq!(fs::read_to_string(&managed).unwrap(), "one\ntwo\n");
        }
    }

    #[test]
    fn what_is_ours_is_a_file_of_the_users() {
        let folder = tempfile::tempdir().unwrap();
        let ours = folder.path().join("understudy.conf");
        // Another's link is replaced, and not followed.
        symlink("/etc/passwd", &ours).unwrap();
        for content in ["one", "two", "two"] {
            cluster().write_ours(&ours, content).unwrap();
            assert_eq!(fs::read_to_string(&ours).unwrap(), content);
            let found = ours.symlink_metadata().unwrap();
            assert!(found.is_file());
            assert_eq!(found.uid(), cluster().user.uid);
            assert_eq!(found.mode() & 0o777, 0o600);
        }
    }

    #[test]
    fn a_folder_is_given_away_through_an_administrators_link_only() {
        let folder = tempfile::tempdir().unwrap();
        let [theirs, link] = ["theirs", "link"].map(|name| folder.path().join(name));
        fs::create_dir(&theirs).unwrap();
        let before = uid(&theirs);
        symlink("theirs", &link).unwrap();
        let cluster = cluster();
        if cluster.owner().is_some() {
            cluster.own(&link).unwrap();
            let error = cluster.create_owned_directory(&link, 0o700).unwrap_err();
            assert!(matches!(error, PostgresError::Misled { .. }), "{error}");
            assert_eq!(uid(&theirs), before);
            lchown(&link, Some(0), Some(0)).unwrap();
        }
        cluster.create_owned_directory(&link, 0o700).unwrap();
        assert_eq!(uid(&theirs), cluster.user.uid);
        // It leads to what is the user's by now.
        cluster.own(&link).unwrap();
        cluster.create_owned_directory(&link, 0o700).unwrap();
    }
}
