//! Making the files of this node those of a revision.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use super::beneath::{Parent, Present, can_give_away};
use super::path::SettingPath;
use super::revision::{Entry, Revision};
use super::scope::Scope;
use crate::durable;

/// How many local versions of one file are kept per revision that has replaced it.
const KEPT_PER_FILE_MAX: usize = 100;

/// Why a revision could not be applied; what was written stays, and applying it again goes on.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// A file operation failed.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Something is in the way that is not replaced.
    #[error("{} is in the way: {what}; move it, and the settings are applied", path.display())]
    InTheWay {
        /// Where.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// The scope was not asked first.
    #[error("`{path}` is not within the configured settings")]
    Outside {
        /// The path.
        path: SettingPath,
    },
}

/// What applying a revision did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// What was written or removed.
    pub changed: Vec<SettingPath>,
    /// What only this node had: where each is kept.
    pub kept: Vec<PathBuf>,
}

/// Makes the files within `scope` those of `revision`, and removes those that one of `previous` had
/// and `revision` has not. What none has is not touched. A local version that none has is copied
/// beneath `replaced` before it is lost.
///
/// Invariant: each file is the whole old or the whole new one at any time. Repeatable after a crash
/// at any point; what is right already is not written.
///
/// # Errors
/// When a step fails, or something is in the way.
pub fn apply(
    scope: &Scope,
    revision: &Revision,
    previous: &[Revision],
    replaced: &Path,
) -> Result<Applied, ApplyError> {
    let mut work = Work {
        scope,
        revision,
        previous,
        replaced,
        applied: Applied::default(),
    };
    // Children before their directories.
    let gone = previous
        .iter()
        .flat_map(|previous| previous.entries().iter().rev());
    for (path, entry) in gone.filter(|(path, _)| !revision.entries().contains_key(path)) {
        work.remove(path, entry)?;
    }
    for (path, entry) in revision.entries() {
        work.put(path, entry)?;
    }
    Ok(work.applied)
}

struct Work<'a> {
    scope: &'a Scope,
    revision: &'a Revision,
    previous: &'a [Revision],
    replaced: &'a Path,
    applied: Applied,
}

impl Work<'_> {
    fn failed(
        &self,
        action: &'static str,
        path: &SettingPath,
    ) -> impl Fn(io::Error) -> ApplyError + use<> {
        let path = self.scope.resolve(path);
        move |source| ApplyError::File {
            action,
            path: path.clone(),
            source,
        }
    }

    fn remove(&mut self, path: &SettingPath, entry: &Entry) -> Result<(), ApplyError> {
        // A path that is no longer configured, or has been excluded, is this node's own again.
        let Some(base) = self.scope.base_of(path) else {
            return Ok(());
        };
        let above = path
            .ancestors()
            .take_while(|above| above.as_str().len() >= base.as_str().len());
        let mut line = std::iter::once(path.clone()).chain(above);
        if line.any(|path| self.scope.is_excluded(base, &path)) {
            return Ok(());
        }
        let failed = self.failed("remove", path);
        let parent = match Parent::open(self.scope, base, path, false) {
            Ok(parent) => parent,
            // Its directory has gone already, or is no directory any more: then nothing of ours is
            // in it.
            Err(error) if is_not_there(&error) => return Ok(()),
            Err(error) => return Err(failed(error)),
        };
        let present = match parent.present().map_err(&failed)? {
            Present::Nothing | Present::Special => return Ok(()),
            Present::Entry(present) => present,
        };
        match (&present, entry) {
            (Entry::Directory { .. }, Entry::Directory { .. }) => {
                if !parent.remove_directory().map_err(&failed)? {
                    // A foreign file lives in it.
                    return Ok(());
                }
            }
            // It has become a directory here, which no revision knows.
            (Entry::Directory { .. }, _) => return Ok(()),
            (Entry::File { .. } | Entry::Symlink { .. }, _) => {
                self.keep(path, &present)?;
                parent.remove_file().map_err(&failed)?;
            }
        }
        self.applied.changed.push(path.clone());
        Ok(())
    }

    fn put(&mut self, path: &SettingPath, entry: &Entry) -> Result<(), ApplyError> {
        let Some(base) = self.scope.base_of(path) else {
            return Err(ApplyError::Outside { path: path.clone() });
        };
        let failed = self.failed("write", path);
        let parent = Parent::open(self.scope, base, path, true).map_err(&failed)?;
        let present = parent.present().map_err(&failed)?;
        let in_the_way = |what| ApplyError::InTheWay {
            path: self.scope.resolve(path),
            what,
        };
        match &present {
            Present::Entry(present) if is_in_place(present, entry) => return Ok(()),
            Present::Nothing => {}
            Present::Special => return Err(in_the_way("a socket, a pipe or a device")),
            Present::Entry(Entry::Directory { .. }) => {
                let is_wanted = matches!(entry, Entry::Directory { .. });
                if !is_wanted && !parent.remove_directory().map_err(&failed)? {
                    return Err(in_the_way("a directory with files that no revision has"));
                }
            }
            Present::Entry(present @ (Entry::File { .. } | Entry::Symlink { .. })) => {
                self.keep(path, present)?;
                if matches!(entry, Entry::Directory { .. }) {
                    parent.remove_file().map_err(&failed)?;
                }
            }
        }
        match entry {
            Entry::File {
                content,
                access,
                modified,
            } => parent.put_file(content, *access, *modified),
            Entry::Directory { access } => parent.put_directory(*access),
            Entry::Symlink { target } => parent.put_symlink(target),
        }
        .map_err(&failed)?;
        self.applied.changed.push(path.clone());
        Ok(())
    }

    /// Guarantee 11: copies what exists here only, before it is lost.
    fn keep(&mut self, path: &SettingPath, present: &Entry) -> Result<(), ApplyError> {
        let is_known = self.previous.iter().chain([self.revision]).any(|revision| {
            revision
                .entries()
                .get(path)
                .is_some_and(|known| has_same_content(known, present))
        });
        if is_known {
            return Ok(());
        }
        let folder = self.replaced.join(self.revision.number().to_string());
        let target = folder.join(path.relative());
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| ApplyError::File {
                action: "keep a local version in",
                path,
                source,
            }
        };
        if let Some(parent) = target.parent() {
            durable::create_directory(parent, 0o700).map_err(failed(parent))?;
        }
        let (content, mode) = match present {
            Entry::File {
                content, access, ..
            } => (content.as_slice(), access.mode & 0o700),
            Entry::Symlink { target } => (target.as_bytes(), 0o600),
            Entry::Directory { .. } => return Ok(()),
        };
        for attempt in 0..KEPT_PER_FILE_MAX {
            let mut name = target.clone().into_os_string();
            if attempt > 0 {
                name.push(format!(".{attempt}"));
            }
            let target = PathBuf::from(name);
            match std::fs::read(&target) {
                // Kept before a crash.
                Ok(kept) if kept == content => return Ok(()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    durable::write(&target, content, mode).map_err(failed(&target))?;
                    self.applied.kept.push(target);
                    return Ok(());
                }
                Err(error) => return Err(failed(&target)(error)),
            }
        }
        Err(ApplyError::InTheWay {
            path: target,
            what: "too many local versions are kept here, and this revision replaces another",
        })
    }
}

/// Returns whether a directory is absent, or has become a link or a file.
fn is_not_there(error: &io::Error) -> bool {
    let is_link = error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error());
    is_link
        || matches!(
            error.kind(),
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
        )
}

/// Returns the files and links of `captured`, where a revision of `known` has something, whose content none of
/// them has: what [`apply`] keeps before it is lost.
pub fn only_here<'a>(
    captured: &'a BTreeMap<SettingPath, Entry>,
    known: &[Revision],
) -> Vec<(&'a SettingPath, &'a Entry)> {
    let is_only_here = |(path, entry): &(&SettingPath, &Entry)| {
        let mut others = known
            .iter()
            .filter_map(|it| it.entries().get(*path))
            .peekable();
        others.peek().is_some()
            && !matches!(entry, Entry::Directory { .. })
            && !others.any(|other| has_same_content(other, entry))
    };
    captured.iter().filter(is_only_here).collect()
}

fn has_same_content(one: &Entry, other: &Entry) -> bool {
    match (one, other) {
        (Entry::File { content, .. }, Entry::File { content: other, .. }) => content == other,
        (Entry::Symlink { target }, Entry::Symlink { target: other }) => target == other,
        (Entry::File { .. } | Entry::Symlink { .. } | Entry::Directory { .. }, _) => false,
    }
}

/// Returns whether nothing would change; a node that cannot give files away does not count owners.
fn is_in_place(present: &Entry, wanted: &Entry) -> bool {
    if can_give_away() {
        return present.is_same_as(wanted);
    }
    match (present, wanted) {
        (
            Entry::File { access: one, .. } | Entry::Directory { access: one },
            Entry::File { access: other, .. } | Entry::Directory { access: other },
        ) => {
            let is_same_kind =
                matches!(present, Entry::File { .. }) == matches!(wanted, Entry::File { .. });
            let is_directory = matches!(present, Entry::Directory { .. });
            is_same_kind
                && one.mode == other.mode
                && (is_directory || has_same_content(present, wanted))
        }
        (Entry::Symlink { .. }, _) | (_, Entry::Symlink { .. }) => {
            has_same_content(present, wanted)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::super::revision::Access;
    use super::super::revision::tests::revision;
    use super::super::scope::tests::scope;
    use super::*;

    fn me(mode: u32) -> Access {
        let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
        Access {
            mode,
            uid: uid.as_raw(),
            gid: gid.as_raw(),
        }
    }

    fn file(content: &str) -> Entry {
        let content = content.as_bytes().to_vec();
        Entry::File {
            content,
            access: me(0o640),
            modified: (1_700_000_000, 5),
        }
    }

    fn directory() -> Entry {
        Entry::Directory { access: me(0o750) }
    }

    struct Place {
        folder: tempfile::TempDir,
        scope: Scope,
    }

    impl Place {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let scope = scope(&folder.path().join("root"), &["/etc/c"], &["node.toml"]);
            Self { folder, scope }
        }

        fn path(&self, path: &str) -> PathBuf {
            self.folder.path().join(path)
        }

        fn apply(
            &self,
            revision: &Revision,
            previous: Option<&Revision>,
        ) -> Result<Applied, ApplyError> {
            let previous: Vec<Revision> = previous.into_iter().cloned().collect();
            apply(&self.scope, revision, &previous, &self.path("replaced"))
        }
    }

    #[test]
    fn a_revision_is_applied_with_modes_and_a_second_time_changes_nothing() {
        let place = Place::new();
        let link = Entry::Symlink {
            target: "a".to_owned(),
        };
        let one = revision(
            1,
            &[
                ("/etc/c", directory()),
                ("/etc/c/a", file("1")),
                ("/etc/c/l", link),
            ],
        );
        assert_eq!(place.apply(&one, None).unwrap().changed.len(), 3);
        let metadata = fs::metadata(place.path("root/etc/c/a")).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o7777, 0o640);
        assert_eq!(metadata.mtime(), 1_700_000_000);
        assert_eq!(
            fs::read_link(place.path("root/etc/c/l")).unwrap(),
            Path::new("a")
        );
        assert_eq!(place.apply(&one, None).unwrap(), Applied::default());
    }

    use std::os::unix::fs::MetadataExt;

    #[test]
    fn what_the_new_revision_lacks_is_removed_and_what_none_has_is_kept() {
        let place = Place::new();
        let one = revision(
            1,
            &[
                ("/etc/c", directory()),
                ("/etc/c/a", file("1")),
                ("/etc/c/d", directory()),
                ("/etc/c/d/b", file("2")),
                ("/etc/c/e", directory()),
                ("/etc/c/e/f", file("3")),
            ],
        );
        place.apply(&one, None).unwrap();
        fs::write(place.path("root/etc/c/e/foreign"), "mine").unwrap();
        let two = revision(2, &[("/etc/c", directory()), ("/etc/c/a", file("new"))]);
        place.apply(&two, Some(&one)).unwrap();
        assert_eq!(
            fs::read_to_string(place.path("root/etc/c/a")).unwrap(),
            "new"
        );
        assert!(!place.path("root/etc/c/d").exists());
        assert!(!place.path("root/etc/c/e/f").exists());
        assert_eq!(
            fs::read_to_string(place.path("root/etc/c/e/foreign")).unwrap(),
            "mine"
        );
    }

    #[test]
    fn a_local_version_is_kept_aside_before_it_is_replaced() {
        let place = Place::new();
        fs::create_dir_all(place.path("root/etc/c")).unwrap();
        fs::write(place.path("root/etc/c/a"), "local").unwrap();
        let one = revision(1, &[("/etc/c", directory()), ("/etc/c/a", file("1"))]);
        let kept = place.path("replaced/1/etc/c/a");
        assert_eq!(
            place.apply(&one, None).unwrap().kept,
            std::slice::from_ref(&kept)
        );
        assert_eq!(fs::read_to_string(kept).unwrap(), "local");
        // What is known from the previous revision exists twice already.
        let two = revision(2, &[("/etc/c", directory()), ("/etc/c/a", file("2"))]);
        assert_eq!(
            place.apply(&two, Some(&one)).unwrap().kept,
            Vec::<PathBuf>::new()
        );
    }

    #[test]
    fn a_link_to_the_outside_is_replaced_and_not_written_through() {
        let place = Place::new();
        fs::create_dir_all(place.path("root/etc/c")).unwrap();
        fs::create_dir_all(place.path("outside")).unwrap();
        fs::write(place.path("outside/a"), "untouched").unwrap();
        symlink(place.path("outside"), place.path("root/etc/c/sub")).unwrap();
        symlink(place.path("outside/a"), place.path("root/etc/c/file")).unwrap();
        let one = revision(
            1,
            &[
                ("/etc/c", directory()),
                ("/etc/c/file", file("2")),
                ("/etc/c/sub", directory()),
                ("/etc/c/sub/a", file("1")),
            ],
        );
        place.apply(&one, None).unwrap();
        assert_eq!(
            fs::read_to_string(place.path("outside/a")).unwrap(),
            "untouched"
        );
        assert_eq!(
            fs::read_to_string(place.path("root/etc/c/sub/a")).unwrap(),
            "1"
        );
        assert!(place.path("replaced/1/etc/c/sub").exists());
        // A revision that does not have the directory itself does not get through the link either.
        fs::remove_dir_all(place.path("root/etc/c/sub")).unwrap();
        symlink(place.path("outside"), place.path("root/etc/c/sub")).unwrap();
        let two = revision(2, &[("/etc/c/sub/a", file("3"))]);
        assert!(matches!(
            place.apply(&two, None),
            Err(ApplyError::File { .. })
        ));
        assert_eq!(
            fs::read_to_string(place.path("outside/a")).unwrap(),
            "untouched"
        );
    }

    #[test]
    fn a_directory_with_foreign_files_is_not_replaced_by_a_file() {
        let place = Place::new();
        fs::create_dir_all(place.path("root/etc/c/a")).unwrap();
        fs::write(place.path("root/etc/c/a/foreign"), "mine").unwrap();
        let one = revision(1, &[("/etc/c", directory()), ("/etc/c/a", file("1"))]);
        assert!(matches!(
            place.apply(&one, None),
            Err(ApplyError::InTheWay { .. })
        ));
        assert_eq!(
            fs::read_to_string(place.path("root/etc/c/a/foreign")).unwrap(),
            "mine"
        );
    }
}
