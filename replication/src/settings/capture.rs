//! Reading the settings of this node.

use std::collections::BTreeMap;
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::OFlags;

use super::path::{PathError, SettingPath};
use super::revision::{Access, ENTRIES_MAX, Entry, REVISION_BYTES_MAX, RevisionError};
use super::scope::Scope;

/// How often the tree is read until two looks at it agree.
const ATTEMPTS_MAX: usize = 5;

/// A file that changed less than this before it was read may change again without a new time: the
/// kernel's times advance in steps.
const SETTLING: Duration = Duration::from_millis(50);

/// Why the settings cannot be captured.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// A file or directory cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A name or the target of a link is not text.
    #[error("{} has a name or a target that is not UTF-8; rename or exclude it", path.display())]
    NotText {
        /// The file.
        path: PathBuf,
    },
    /// A path cannot be told to another node.
    #[error("{} cannot be replicated", path.display())]
    Path {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: PathError,
    },
    /// The files kept changing while they were read.
    #[error("the settings changed while they were read, {ATTEMPTS_MAX} times in a row")]
    Unstable,
    /// Nothing of what is configured is there.
    #[error(
        "none of the configured settings exists ({}); refused to replicate their loss",
        paths.join(", ")
    )]
    Vanished {
        /// Where they should be.
        paths: Vec<String>,
    },
    /// It is too much.
    #[error("the settings are too large to replicate; exclude what is no setting")]
    Size {
        /// Which bound is exceeded.
        source: RevisionError,
    },
}

/// What the file system says of one entry, without reading it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Look {
    inode: u64,
    mode: u32,
    uid: u32,
    gid: u32,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl From<&Metadata> for Look {
    fn from(metadata: &Metadata) -> Self {
        let is_directory = metadata.is_dir();
        Self {
            inode: metadata.ino(),
            mode: metadata.mode(),
            uid: metadata.uid(),
            gid: metadata.gid(),
            // A directory's size and times change with what is excluded, too; what is in it is
            // looked at by itself.
            size: if is_directory { 0 } else { metadata.size() },
            modified: if is_directory {
                (0, 0)
            } else {
                (metadata.mtime(), metadata.mtime_nsec())
            },
            changed: if is_directory {
                (0, 0)
            } else {
                (metadata.ctime(), metadata.ctime_nsec())
            },
        }
    }
}

/// What the file system says of all settings: equal fingerprints mean equal settings, once settled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fingerprint(BTreeMap<SettingPath, Look>);

impl Fingerprint {
    /// Returns whether everything in it changed long enough before `time` that a later change must
    /// show.
    fn is_settled_at(&self, time: SystemTime) -> bool {
        let settled = time
            .checked_sub(SETTLING)
            .and_then(|at| at.duration_since(UNIX_EPOCH).ok());
        let Some(settled) = settled else { return false };
        let settled = (
            i64::try_from(settled.as_secs()).unwrap_or(i64::MAX),
            i64::from(settled.subsec_nanos()),
        );
        self.0.values().all(|look| look.changed < settled)
    }
}

/// The settings of this node at one moment.
#[derive(Clone, Debug)]
pub struct Capture {
    /// Every file, directory and link within the scope.
    pub entries: BTreeMap<SettingPath, Entry>,
    /// What the file system said of them.
    pub fingerprint: Fingerprint,
    /// A later change must show in the fingerprint; if not, it has to be captured again.
    pub is_settled: bool,
}

/// Looks at the settings without reading them.
///
/// # Errors
/// When something cannot be looked at, or is too much.
pub fn fingerprint(scope: &Scope) -> Result<Fingerprint, CaptureError> {
    let mut looks = BTreeMap::new();
    for base in scope.bases() {
        let mut pending = vec![base.clone()];
        while let Some(path) = pending.pop() {
            if scope.is_excluded(base, &path) {
                continue;
            }
            let place = scope.resolve(&path);
            let metadata = match fs::symlink_metadata(&place) {
                Ok(metadata) => metadata,
                // Removed since its directory was read, or not there at all.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(source) => {
                    return Err(CaptureError::Read {
                        path: place,
                        source,
                    });
                }
            };
            let kind = metadata.file_type();
            if kind.is_dir() {
                children(&path, &place, &mut pending)?;
            } else if !kind.is_file() && !kind.is_symlink() {
                // Sockets, pipes and devices are no settings.
                continue;
            }
            looks.insert(path, Look::from(&metadata));
            if looks.len() > ENTRIES_MAX {
                return Err(CaptureError::Size {
                    source: RevisionError::TooMany,
                });
            }
        }
    }
    Ok(Fingerprint(looks))
}

fn children(
    path: &SettingPath,
    place: &Path,
    pending: &mut Vec<SettingPath>,
) -> Result<(), CaptureError> {
    let failed = |source| CaptureError::Read {
        path: place.to_owned(),
        source,
    };
    for child in fs::read_dir(place).map_err(failed)? {
        let name = child.map_err(failed)?.file_name();
        let not_text = || CaptureError::NotText {
            path: place.join(&name),
        };
        let name = name.to_str().ok_or_else(not_text)?;
        let child = format!("{path}/{name}").parse();
        pending.push(child.map_err(|source| CaptureError::Path {
            path: place.join(name),
            source,
        })?);
        // A bound on memory; the exact one is on what is not excluded.
        if pending.len() > ENTRIES_MAX * 2 {
            return Err(CaptureError::Size {
                source: RevisionError::TooMany,
            });
        }
    }
    Ok(())
}

/// Reads the settings, again if they change meanwhile.
///
/// # Errors
/// When something cannot be read, is too much, keeps changing, or nothing is there.
pub fn capture(scope: &Scope) -> Result<Capture, CaptureError> {
    for _ in 0..ATTEMPTS_MAX {
        let start = SystemTime::now();
        let before = fingerprint(scope)?;
        if before.0.is_empty() {
            let paths = scope
                .bases()
                .iter()
                .map(|base| scope.resolve(base).display().to_string());
            return Err(CaptureError::Vanished {
                paths: paths.collect(),
            });
        }
        let size = before
            .0
            .values()
            .map(|look| look.size)
            .fold(0, u64::saturating_add);
        if size > REVISION_BYTES_MAX {
            return Err(CaptureError::Size {
                source: RevisionError::TooLarge,
            });
        }
        let mut entries = BTreeMap::new();
        for path in before.0.keys() {
            let Some(entry) = read(&scope.resolve(path))? else {
                break;
            };
            entries.insert(path.clone(), entry);
        }
        // Reading changes no fingerprint; so equal ones mean that nothing else did.
        if entries.len() == before.0.len() && fingerprint(scope)? == before {
            let is_settled = before.is_settled_at(start);
            return Ok(Capture {
                entries,
                fingerprint: before,
                is_settled,
            });
        }
    }
    Err(CaptureError::Unstable)
}

/// Reads one entry; `None` when it has gone or has become something else.
fn read(place: &Path) -> Result<Option<Entry>, CaptureError> {
    let gone = |error: &io::Error| {
        error.kind() == io::ErrorKind::NotFound
            // A file has become a link, or a directory a file.
            || error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error())
            || error.kind() == io::ErrorKind::NotADirectory
    };
    match read_present(place) {
        Ok(entry) => Ok(entry),
        Err(CaptureError::Read { source, .. }) if gone(&source) => Ok(None),
        Err(error) => Err(error),
    }
}

fn read_present(place: &Path) -> Result<Option<Entry>, CaptureError> {
    let failed = |source| CaptureError::Read {
        path: place.to_owned(),
        source,
    };
    let metadata = fs::symlink_metadata(place).map_err(failed)?;
    if metadata.is_symlink() {
        let target = fs::read_link(place).map_err(failed)?;
        let target = target.into_os_string().into_string();
        let target = target.map_err(|_| CaptureError::NotText {
            path: place.to_owned(),
        })?;
        return Ok(Some(Entry::Symlink { target }));
    }
    if metadata.is_dir() {
        return Ok(Some(Entry::Directory {
            access: access(&metadata),
        }));
    }
    // A pipe that has taken the file's place must not block us.
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let file = File::options()
        .read(true)
        .custom_flags(flags)
        .open(place)
        .map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Ok(None);
    }
    let mut content = Vec::new();
    file.take(REVISION_BYTES_MAX + 1)
        .read_to_end(&mut content)
        .map_err(failed)?;
    let nanoseconds = u32::try_from(metadata.mtime_nsec()).unwrap_or(0);
    Ok(Some(Entry::File {
        content,
        access: access(&metadata),
        modified: (metadata.mtime(), nanoseconds),
    }))
}

pub(super) fn access(metadata: &Metadata) -> Access {
    Access {
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::scope::tests::scope;
    use super::*;

    fn write(root: &Path, path: &str, content: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    #[test]
    fn what_is_excluded_is_neither_captured_nor_looked_at() {
        let root = tempfile::tempdir().unwrap();
        for path in [
            "etc/c/a.conf",
            "etc/c/node.toml",
            "etc/c/own/secret",
            "etc/other",
        ] {
            write(root.path(), path, "x");
        }
        std::os::unix::fs::symlink("/outside", root.path().join("etc/c/link")).unwrap();
        let scope = scope(
            root.path(),
            &["/etc/c", "/etc/missing"],
            &["node.toml", "own"],
        );
        let before = capture(&scope).unwrap();
        let paths: Vec<&str> = before.entries.keys().map(SettingPath::as_str).collect();
        assert_eq!(paths, ["/etc/c", "/etc/c/a.conf", "/etc/c/link"]);
        write(root.path(), "etc/c/own/more", "y");
        write(root.path(), "etc/c/node.toml", "longer");
        assert_eq!(fingerprint(&scope).unwrap(), before.fingerprint);
        write(root.path(), "etc/c/new", "");
        assert_ne!(fingerprint(&scope).unwrap(), before.fingerprint);
    }

    #[test]
    fn a_fresh_file_is_not_settled() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), "etc/a", "x");
        let scope = scope(root.path(), &["/etc/a"], &[]);
        assert!(!capture(&scope).unwrap().is_settled);
        let later = SystemTime::now() + SETTLING * 2;
        assert!(fingerprint(&scope).unwrap().is_settled_at(later));
    }

    #[test]
    fn the_loss_of_everything_is_not_replicated() {
        let root = tempfile::tempdir().unwrap();
        let scope = scope(root.path(), &["/etc/c"], &[]);
        assert!(matches!(
            capture(&scope),
            Err(CaptureError::Vanished { .. })
        ));
    }

    #[test]
    fn what_is_too_large_is_refused_before_it_is_read() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), "etc/a", "");
        File::options()
            .write(true)
            .open(root.path().join("etc/a"))
            .unwrap()
            .set_len(REVISION_BYTES_MAX + 1)
            .unwrap();
        let scope = scope(root.path(), &["/etc/a"], &[]);
        assert!(matches!(
            capture(&scope),
            Err(CaptureError::Size {
                source: RevisionError::TooLarge
            })
        ));
    }
}
