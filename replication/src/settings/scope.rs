//! What a revision may touch on this node.

use std::path::{Path, PathBuf};

use understudy_config::{Globs, Settings};

use super::beneath::TEMPORARY_NAME;
use super::path::{PathError, SettingPath};
use super::revision::Revision;

/// Why a revision is refused whole, before anything of it is written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScopeError {
    /// It has a path outside the configured ones.
    #[error(
        "revision {number} has `{path}`, which is not within the paths of [settings] on this node"
    )]
    Outside {
        /// The revision.
        number: u64,
        /// The path.
        path: SettingPath,
    },
    /// It has a path that is local to each node.
    #[error("revision {number} has `{path}`, which [settings] on this node excludes")]
    Excluded {
        /// The revision.
        number: u64,
        /// The path.
        path: SettingPath,
    },
}

/// The configured paths and exclusions, and where they are on this node.
#[derive(Clone, Debug)]
pub struct Scope {
    root: PathBuf,
    bases: Vec<SettingPath>,
    exclude: Globs,
}

impl Scope {
    /// Returns the scope of `config`, whose paths lie beneath `root` on this node.
    ///
    /// # Errors
    /// When a configured path is not absolute and plain.
    pub fn new(config: &Settings, root: PathBuf) -> Result<Self, PathError> {
        let bases = config.paths.iter().map(|path| {
            let text = path.to_string_lossy();
            match text.trim_end_matches('/') {
                "" => text.parse(),
                trimmed => trimmed.parse(),
            }
        });
        Ok(Self {
            root,
            bases: bases.collect::<Result<_, _>>()?,
            exclude: config.exclude.clone(),
        })
    }

    /// Returns the same scope in another place, such as a staging folder.
    #[must_use]
    pub(super) fn at(&self, root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            ..self.clone()
        }
    }

    /// Returns the configured paths.
    pub fn bases(&self) -> &[SettingPath] {
        &self.bases
    }

    /// Returns where `path` is on this node.
    pub fn resolve(&self, path: &SettingPath) -> PathBuf {
        self.root.join(path.relative())
    }

    /// Returns the configured path that covers `path`.
    pub(super) fn base_of(&self, path: &SettingPath) -> Option<&SettingPath> {
        // The longest, where one configured path lies within another.
        self.bases
            .iter()
            .filter(|base| *base == path || path.ancestors().any(|above| above == **base))
            .max_by_key(|base| base.as_str().len())
    }

    /// Returns whether `path` itself is excluded: by its name, or by its path within `base`. What
    /// lies within an excluded directory is for the caller, who walks down or asks for ancestors.
    pub(super) fn is_excluded(&self, base: &SettingPath, path: &SettingPath) -> bool {
        let name = path.relative().file_name();
        if name.is_some_and(|name| name == TEMPORARY_NAME) {
            return true;
        }
        match path.relative().strip_prefix(base.relative()) {
            Ok(relative) if !relative.as_os_str().is_empty() => self.exclude.is_match(relative),
            // A configured file, which only its name can exclude.
            Ok(_) | Err(_) => name.is_some_and(|name| self.exclude.is_match(Path::new(name))),
        }
    }

    /// Makes sure that a revision touches nothing but what is configured here.
    ///
    /// # Errors
    /// When one of its paths is outside, or excluded.
    pub fn admit(&self, revision: &Revision) -> Result<(), ScopeError> {
        for path in revision.entries().keys() {
            let number = revision.number();
            let Some(base) = self.base_of(path) else {
                return Err(ScopeError::Outside {
                    number,
                    path: path.clone(),
                });
            };
            let above = path
                .ancestors()
                .take_while(|above| above.as_str().len() >= base.as_str().len());
            if std::iter::once(path.clone())
                .chain(above)
                .any(|path| self.is_excluded(base, &path))
            {
                return Err(ScopeError::Excluded {
                    number,
                    path: path.clone(),
                });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::revision::tests::{file, revision};
    use super::*;

    pub(in crate::settings) fn scope(root: &Path, paths: &[&str], exclude: &[&str]) -> Scope {
        let exclude = exclude.iter().map(|&glob| glob.to_owned());
        let config = Settings {
            schedule: "* * * * *".parse().unwrap(),
            paths: paths.iter().map(PathBuf::from).collect(),
            exclude: Globs::new(exclude).unwrap(),
            validate: None,
            reload: None,
        };
        Scope::new(&config, root.to_owned()).unwrap()
    }

    #[test]
    fn a_revision_stays_within_what_is_configured_and_not_excluded() {
        let scope = scope(
            Path::new("/"),
            &["/etc/catalog/", "/etc/one.conf"],
            &["node.*", "own/**"],
        );
        let table = [
            ("/etc/catalog", None),
            ("/etc/catalog/a/b", None),
            ("/etc/one.conf", None),
            ("/etc/catalogue", Some("not within")),
            ("/etc/passwd", Some("not within")),
            ("/etc/one.conf/x", None),
            ("/etc/catalog/a/node.toml", Some("excludes")),
            ("/etc/catalog/own/x", Some("excludes")),
            ("/etc/catalog/node.d/x", Some("excludes")),
            ("/etc/catalog/.understudy-new", Some("excludes")),
        ];
        for (path, refused) in table {
            let result = scope.admit(&revision(1, &[(path, file(""))]));
            let told = result.map_or_else(|error| error.to_string(), |()| String::new());
            match refused {
                None => assert_eq!(told, "", "{path}"),
                Some(word) => assert!(told.contains(word), "{path}: {told}"),
            }
        }
    }
}
