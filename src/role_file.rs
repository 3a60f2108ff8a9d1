//! The few words that decide who is primary, on disk.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use understudy_config::NodeName;
use understudy_replication::durable;
use understudy_replication::role::Role;
use understudy_replication::wall_time::WallTime;

/// The version of the file; a newer one is refused.
const VERSION: u32 = 1;

/// The role of a node, as it is recorded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RoleRecord {
    version: u32,
    /// Whose role it is: a state folder that was copied from another node is noticed.
    pub(crate) node: NodeName,
    /// The role.
    pub(crate) role: Role,
    /// Since when.
    pub(crate) since: WallTime,
}

/// Why a role could not be read or recorded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RoleFileError {
    #[error("cannot read the role in {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot record the role in {}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("{} is damaged", path.display())]
    Damaged {
        path: PathBuf,
        source: serde_json::Error,
    },
    #[error(
        "{} is of version {found}, and this program knows up to {VERSION}; use the newer program",
        path.display()
    )]
    Newer { path: PathBuf, found: u32 },
    #[error("{} is the role of node {found}, and this is node {me}", path.display())]
    OtherNode {
        path: PathBuf,
        found: NodeName,
        me: NodeName,
    },
}

impl RoleRecord {
    pub(crate) fn new(node: NodeName, role: Role) -> Self {
        Self {
            version: VERSION,
            node,
            role,
            since: WallTime::now(),
        }
    }

    pub(crate) fn path(state_dir: &Path) -> PathBuf {
        state_dir.join("role.json")
    }

    /// Loads the role of node `me`; `None` if the node has none yet.
    pub(crate) fn load(state_dir: &Path, me: &NodeName) -> Result<Option<Self>, RoleFileError> {
        let path = Self::path(state_dir);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(RoleFileError::Read { path, source }),
        };
        /// The version is read first: a newer file may have other fields.
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let damaged = |source| RoleFileError::Damaged {
            path: path.clone(),
            source,
        };
        let Version { version: found } = serde_json::from_str(&text).map_err(damaged)?;
        if found > VERSION {
            return Err(RoleFileError::Newer { path, found });
        }
        let record: Self = serde_json::from_str(&text).map_err(damaged)?;
        if record.node != *me {
            return Err(RoleFileError::OtherNode {
                path,
                found: record.node,
                me: me.clone(),
            });
        }
        Ok(Some(record))
    }

    /// Records the role durably.
    pub(crate) fn store(&self, state_dir: &Path) -> Result<(), RoleFileError> {
        let path = Self::path(state_dir);
        let failed = |source| RoleFileError::Write {
            path: path.clone(),
            source,
        };
        let text = serde_json::to_vec_pretty(self).map_err(|error| failed(error.into()))?;
        durable::write(&path, &text, 0o644).map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str) -> NodeName {
        name.parse().unwrap()
    }

    #[test]
    fn a_role_survives_being_recorded() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(RoleRecord::load(folder.path(), &node("a")).unwrap(), None);
        let role = Role::Standby {
            epoch: "3.b".parse().unwrap(),
            primary: node("b"),
            proposed: Some("4.a".parse().unwrap()),
        };
        let record = RoleRecord::new(node("a"), role);
        record.store(folder.path()).unwrap();
        assert_eq!(
            RoleRecord::load(folder.path(), &node("a")).unwrap(),
            Some(record)
        );
    }

    #[test]
    fn a_damaged_newer_or_foreign_role_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = RoleRecord::path(folder.path());
        let refusal = |text: &str| {
            fs::write(&path, text).unwrap();
            RoleRecord::load(folder.path(), &node("a")).unwrap_err()
        };
        assert!(matches!(
            refusal("{\"version\":1"),
            RoleFileError::Damaged { .. }
        ));
        assert!(matches!(
            refusal("{\"version\":2}"),
            RoleFileError::Newer { found: 2, .. }
        ));
        let role = Role::Fenced {
            follows: false,
            epoch: "1.b".parse().unwrap(),
        };
        let other = serde_json::to_string(&RoleRecord::new(node("b"), role)).unwrap();
        assert!(matches!(refusal(&other), RoleFileError::OtherNode { .. }));
    }
}
