//! The folder of a cluster's configuration, where that is not in the data directory: how it is found,
//! and how a standby gets a copy of the primary's.
//!
//! A base backup does not bring it. A standby that has none is given the primary's once, when it is
//! seeded; one that is there is its operator's, and is kept.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use understudy_config::{Local, Postgres};

use super::Cluster;
use super::conf_file::{OURS, OperatorsConf};
use crate::durable;

/// So many files are copied.
const FILES_MAX: usize = 64;

/// So much is copied, in all.
const BYTES_MAX: usize = 1 << 20;

/// A message that holds as much is not longer than this: content is sent as base64.
pub const CONFIGURATION_MESSAGE_BYTES_MAX: usize = 2 << 20;

/// The folder beneath it that is copied, too.
const INCLUDED: &str = "conf.d";

/// Why a configuration could not be copied.
#[derive(Debug, thiserror::Error)]
pub enum ConfigurationError {
    /// There is more than is copied.
    #[error(
        "the configuration in {} is more than {FILES_MAX} files or {BYTES_MAX} bytes; move away what \
         does not belong there, or copy it to the standby by hand", config_dir.display()
    )]
    TooLarge {
        /// The folder.
        config_dir: PathBuf,
    },
    /// A peer named a file that would not lie in the folder.
    #[error("the primary's configuration has a file of the name {name:?}, which is not taken")]
    Name {
        /// The name.
        name: String,
    },
    /// A peer sent what is no content.
    #[error("the content of {name:?} in the primary's configuration cannot be understood")]
    Content {
        /// The file.
        name: String,
        /// What is wrong with it.
        source: base64::DecodeError,
    },
    /// There is something else.
    #[error(
        "{} is there, and has no postgresql.conf; nothing was changed. Move it away, and join again",
        config_dir.display()
    )]
    Occupied {
        /// The folder.
        config_dir: PathBuf,
    },
    /// A file could not be handled.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ConfigurationError {
    let path = path.to_owned();
    move |source| ConfigurationError::File {
        action,
        path,
        source,
    }
}

/// The files of a configuration, as a peer sends them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Configuration {
    files: Vec<ConfigurationFile>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct ConfigurationFile {
    /// Relative to the folder.
    name: String,
    base64: String,
}

/// Returns whether a file of this name is part of a configuration: one in the folder, or one that
/// `conf.d` adds. Ours is not: each node writes its own.
fn is_taken(name: &str) -> bool {
    let is_plain = |name: &str| {
        !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\0']) && name != OURS
    };
    match name.split_once('/') {
        None => is_plain(name),
        Some((INCLUDED, name)) => is_plain(name) && name.ends_with(".conf"),
        Some(_) => false,
    }
}

impl Configuration {
    /// Reads the regular files of a folder, and those of its `conf.d`.
    ///
    /// # Errors
    /// When they are too many or too large, or cannot be read.
    pub fn read(config_dir: &Path) -> Result<Self, ConfigurationError> {
        let mut files = Vec::new();
        let mut bytes_left = BYTES_MAX;
        let too_large = || ConfigurationError::TooLarge {
            config_dir: config_dir.to_owned(),
        };
        for prefix in ["", "conf.d/"] {
            let folder = config_dir.join(prefix);
            let entries = match fs::read_dir(&folder) {
                Ok(entries) => entries,
                Err(error) if !prefix.is_empty() && error.kind() == io::ErrorKind::NotFound => {
                    continue;
                }
                Err(error) => return Err(failed("read", &folder)(error)),
            };
            for entry in entries {
                let entry = entry.map_err(failed("read", &folder))?;
                let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
                let path = entry.path();
                let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
                if !is_file || !is_taken(&name) {
                    continue;
                }
                let mut content = Vec::new();
                let most = u64::try_from(bytes_left).unwrap_or(u64::MAX);
                File::open(&path)
                    .and_then(|file| file.take(most.saturating_add(1)).read_to_end(&mut content))
                    .map_err(failed("read", &path))?;
                bytes_left = bytes_left
                    .checked_sub(content.len())
                    .ok_or_else(too_large)?;
                files.push(ConfigurationFile {
                    name,
                    base64: STANDARD.encode(content),
                });
                if files.len() > FILES_MAX {
                    return Err(too_large());
                }
            }
        }
        files.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Self { files })
    }

    /// Returns the names and contents, each of which may be written beneath the folder.
    fn contents(&self) -> Result<Vec<(&str, Vec<u8>)>, ConfigurationError> {
        let mut seen = BTreeSet::new();
        let mut bytes = 0;
        let mut contents = Vec::new();
        for ConfigurationFile { name, base64 } in &self.files {
            bytes += base64.len();
            let has_room =
                self.files.len() <= FILES_MAX && bytes <= CONFIGURATION_MESSAGE_BYTES_MAX;
            if !is_taken(name) || !seen.insert(name) || !has_room {
                return Err(ConfigurationError::Name { name: name.clone() });
            }
            let content = STANDARD.decode(base64);
            let content = content.map_err(|source| ConfigurationError::Content {
                name: name.clone(),
                source,
            })?;
            contents.push((name.as_str(), content));
        }
        Ok(contents)
    }
}

impl Cluster {
    /// Returns whether the configuration is outside of the data directory.
    pub fn is_split(&self) -> bool {
        self.config_dir != self.data_dir
    }

    /// Returns whether there is a configuration.
    pub fn has_configuration(&self) -> bool {
        self.config_dir.join("postgresql.conf").exists()
    }

    /// Makes the folder of the configuration with the files of another node's. It appears with all of
    /// them, or not at all.
    ///
    /// # Errors
    /// When there is something in its place already, a name is not one of a configuration's, or a file
    /// cannot be written. Then nothing has changed.
    pub fn create_configuration(
        &self,
        configuration: &Configuration,
    ) -> Result<(), ConfigurationError> {
        let target = &self.config_dir;
        let contents = configuration.contents()?;
        let own = |path: &Path| {
            self.own(path)
                .map_err(io::Error::other)
                .map_err(failed("give away", path))
        };
        if fs::read_dir(target).is_ok_and(|mut entries| entries.next().is_some()) {
            return Err(ConfigurationError::Occupied {
                config_dir: target.clone(),
            });
        }
        if let Some(parent) = target.parent() {
            durable::create_directory(parent, 0o755).map_err(failed("create", parent))?;
        }
        let mut half = target.as_os_str().to_owned();
        half.push(".understudy-new");
        let half = PathBuf::from(half);
        match fs::remove_dir_all(&half) {
            // What a crash has left.
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed("remove", &half)(error)),
        }
        let included = half.join(INCLUDED);
        for folder in [&half, &included] {
            durable::create_directory(folder, 0o755).map_err(failed("create", folder))?;
            own(folder)?;
        }
        for (name, content) in contents {
            let path = half.join(name);
            durable::write_for(&path, &content, 0o640, self.owner())
                .map_err(failed("write", &path))?;
        }
        fs::rename(&half, target).map_err(failed("put into place", target))?;
        durable::sync_directory_of(target).map_err(failed("sync", target))
    }
}

/// Finds where the configuration of the cluster in `data_dir` is.
///
/// Debian's folders are looked through only for a cluster that exists and has none of its own: what some
/// folder says of a data directory that is still to be copied is nothing that the copy would bring.
pub(super) fn find(config: &Postgres, local: &Local, data_dir: &Path) -> PathBuf {
    if let Some(config_dir) = &config.config_dir {
        return local.resolve(config_dir);
    }
    if data_dir.join("postgresql.conf").exists() || !data_dir.join("PG_VERSION").exists() {
        return data_dir.to_owned();
    }
    let is_ours = |config_dir: &PathBuf| {
        OperatorsConf::read(config_dir).is_ok_and(|conf| {
            conf.get("data_directory").is_some_and(|named| {
                let named = Path::new(named);
                [named.to_owned(), local.resolve(named)]
                    .iter()
                    .any(|named| is_same(named, data_dir))
            })
        })
    };
    let folders = |folder: &Path| {
        let mut folders: Vec<PathBuf> = fs::read_dir(folder)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .collect();
        folders.sort();
        folders
    };
    folders(&local.resolve(Path::new("/etc/postgresql")))
        .iter()
        .flat_map(|version| folders(version))
        .find(is_ours)
        .unwrap_or_else(|| data_dir.to_owned())
}

fn is_same(a: &Path, b: &Path) -> bool {
    a == b || matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn write(path: &Path, content: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn cluster(config_dir: PathBuf) -> Cluster {
        Cluster {
            config_dir,
            ..Cluster::example(true)
        }
    }

    #[test]
    fn a_configuration_is_copied_with_what_it_includes_and_without_ours() {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("a");
        for (name, content) in [
            ("postgresql.conf", "port = 1\n"),
            ("pg_hba.conf", ""),
            ("understudy.conf", "port = 2\n"),
            (".hidden", "x"),
            ("conf.d/more.conf", "port = 3\n"),
            ("conf.d/README", "x"),
            ("other/more.conf", "x"),
        ] {
            write(&source.join(name), content);
        }
        std::os::unix::fs::symlink("/etc/passwd", source.join("link")).unwrap();
        let sent = serde_json::to_vec(&Configuration::read(&source).unwrap()).unwrap();
        let got: Configuration = serde_json::from_slice(&sent).unwrap();
        let target = folder.path().join("etc/postgresql/15/main");
        let cluster = cluster(target.clone());
        // What a crash has left is no obstacle, nor is an empty folder.
        write(
            &folder
                .path()
                .join("etc/postgresql/15/main.understudy-new/x"),
            "",
        );
        fs::create_dir_all(&target).unwrap();
        cluster.create_configuration(&got).unwrap();
        let names = ["conf.d/more.conf", "pg_hba.conf", "postgresql.conf"];
        let copied = Configuration::read(&target).unwrap();
        assert_eq!(copied, got);
        assert_eq!(
            copied.files.iter().map(|it| &it.name).collect::<Vec<_>>(),
            names.iter().collect::<Vec<_>>()
        );
        // What is there is kept.
        let again = cluster.create_configuration(&Configuration::default());
        assert!(matches!(again, Err(ConfigurationError::Occupied { .. })));
        assert_eq!(Configuration::read(&target).unwrap(), got);
    }

    #[test]
    fn a_configuration_that_is_too_large_is_not_sent() {
        let folder = tempfile::tempdir().unwrap();
        write(
            &folder.path().join("postgresql.conf"),
            &"#".repeat(BYTES_MAX),
        );
        assert!(Configuration::read(folder.path()).is_ok());
        write(&folder.path().join("more"), "#");
        let error = Configuration::read(folder.path()).unwrap_err();
        assert!(matches!(error, ConfigurationError::TooLarge { .. }));
    }

    #[test]
    fn the_configuration_of_a_cluster_is_found() {
        let root = tempfile::tempdir().unwrap();
        let local = Local {
            name: "a".parse().unwrap(),
            root: root.path().to_owned(),
            state_dir: "/state".into(),
            run_dir: "/run".into(),
            pki_dir: "/pki".into(),
            monitor_listen: "127.0.0.1:1".parse().unwrap(),
            kv_listen: "127.0.0.1:2".parse().unwrap(),
            address_interface: None,
        };
        let found = |config_dir: Option<&str>| {
            let config = Postgres {
                data_dir: "/data".into(),
                port: 5432,
                user: "postgres".to_owned(),
                bin_dir: None,
                database: "postgres".to_owned(),
                durability: understudy_config::PostgresDurability::Async,
                max_slot_wal_keep_bytes: 0,
                bandwidth: None,
                wal_dir: None,
                socket_dir: None,
                config_dir: config_dir.map(Into::into),
                commands: None,
            };
            let found = find(&config, &local, &root.path().join("data"));
            found.strip_prefix(root.path()).unwrap().to_owned()
        };
        write(
            &root.path().join("etc/postgresql/15/main/postgresql.conf"),
            "data_directory = '/data'\n",
        );
        write(
            &root.path().join("etc/postgresql/15/else/postgresql.conf"),
            "data_directory = '/else'\n",
        );
        assert_eq!(found(None), Path::new("data"), "nothing is there yet");
        assert_eq!(found(Some("/etc/x")), Path::new("etc/x"));
        write(&root.path().join("data/PG_VERSION"), "15\n");
        assert_eq!(found(None), Path::new("etc/postgresql/15/main"));
        write(&root.path().join("data/postgresql.conf"), "");
        assert_eq!(found(None), Path::new("data"), "it has its own");
    }

    proptest! {
        #[test]
        fn no_name_leads_out_of_the_folder(name in "(conf\\.d/)?[./a\0]{0,6}(understudy)?(\\.conf)?") {
            let folder = tempfile::tempdir().unwrap();
            let configuration = Configuration {
                files: vec![ConfigurationFile { name: name.clone(), base64: String::new() }],
            };
            let target = folder.path().join("target");
            if cluster(target.clone()).create_configuration(&configuration).is_ok() {
                let path = target.join(&name);
                prop_assert!(path.is_file());
                let parent = path.canonicalize().unwrap().parent().unwrap().to_owned();
                prop_assert!(parent == target || parent == target.join(INCLUDED));
            }
            let outside: Vec<_> = fs::read_dir(folder.path()).unwrap().flatten().collect();
            prop_assert!(outside.iter().all(|entry| entry.file_name() == "target"));
        }
    }
}
