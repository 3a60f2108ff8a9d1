//! What the operator's `postgresql.conf` says, with the files that it includes.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Our own settings: in the folder of the configuration, and not the operator's word.
pub(super) const OURS: &str = "understudy.conf";

/// A file of the configuration is read as far as this.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// So many files are read.
const FILES_MAX: usize = 256;

/// Files that include files are followed so deep, as Postgres does.
const DEPTH_MAX: usize = 10;

/// What may still be read.
#[derive(Clone, Copy)]
struct Left {
    files: usize,
    depth: usize,
}

/// Returns the port and the first folder for sockets that the configuration in `config_dir` says, for a server
/// that does not run. What cannot be read says nothing.
pub fn configured_listening(config_dir: &Path) -> (Option<u16>, Option<PathBuf>) {
    let conf = OperatorsConf::read(config_dir);
    conf.map_or((None, None), |conf| conf.listening())
}

/// The settings that an operator has written down, each with its last value.
///
/// What `ALTER SYSTEM` has set is not among them: it wins over every file, ours too.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct OperatorsConf(BTreeMap<String, String>);

impl OperatorsConf {
    /// Reads `postgresql.conf` in `config_dir`, and what it includes. What an include names and is not
    /// there is the server's to complain about.
    ///
    /// # Errors
    /// When `postgresql.conf` itself cannot be read.
    pub(super) fn read(config_dir: &Path) -> io::Result<Self> {
        let path = config_dir.join("postgresql.conf");
        let mut conf = Self::default();
        let mut left = Left {
            files: FILES_MAX,
            depth: DEPTH_MAX,
        };
        let text = content(&path)?;
        conf.take(&text, config_dir, &mut left);
        Ok(conf)
    }

    /// Returns the port and the first folder for sockets, where they are written down.
    fn listening(&self) -> (Option<u16>, Option<PathBuf>) {
        let folders = self.get("unix_socket_directories").unwrap_or_default();
        let first = folders
            .split(',')
            .map(str::trim)
            .find(|it| it.starts_with('/'));
        (
            self.get("port").and_then(|port| port.parse().ok()),
            first.map(PathBuf::from),
        )
    }

    /// Reads the settings of a text that includes nothing.
    #[cfg(test)]
    pub(super) fn parse(text: &str) -> Self {
        let mut conf = Self::default();
        conf.take(
            text,
            Path::new("/nonexistent"),
            &mut Left { files: 0, depth: 0 },
        );
        conf
    }

    /// Returns the last value of a setting.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// Returns the last value of a setting that is a number.
    pub(super) fn number(&self, name: &str) -> Option<u32> {
        self.get(name)?.parse().ok()
    }

    fn take(&mut self, text: &str, folder: &Path, left: &mut Left) {
        for (name, value) in text.lines().filter_map(entry) {
            match name.as_str() {
                "include" | "include_if_exists" => {
                    self.include(&folder.join(&value), left);
                }
                "include_dir" => {
                    for path in included(&folder.join(&value)) {
                        self.include(&path, left);
                    }
                }
                _ => {
                    self.0.insert(name, value);
                }
            }
        }
    }

    fn include(&mut self, path: &Path, left: &mut Left) {
        if path.file_name().is_some_and(|name| name == OURS) || left.files == 0 || left.depth == 0 {
            return;
        }
        left.files -= 1;
        if let Ok(text) = content(path) {
            let folder = path.parent().unwrap_or(path);
            left.depth -= 1;
            self.take(&text, folder, left);
            left.depth += 1;
        }
    }
}

fn content(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?
        .take(FILE_BYTES_MAX)
        .read_to_end(&mut bytes)?;
    // A comment in another encoding is no reason not to read the rest.
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Returns what `include_dir` includes, in its order.
fn included(folder: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            name.ends_with(".conf") && !name.starts_with('.')
        })
        .map(|entry| entry.path())
        .collect();
    paths.sort();
    paths
}

/// Reads a line: a name, perhaps `=`, and a value, perhaps within quotes.
fn entry(line: &str) -> Option<(String, String)> {
    let line = line.trim_start();
    let end = line
        .find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '.')))
        .unwrap_or(line.len());
    let (name, rest) = line.split_at(end);
    if name.is_empty() {
        return None;
    }
    let rest = rest.trim_start();
    let value = rest.strip_prefix('=').unwrap_or(rest).trim_start();
    let value = match value.strip_prefix('\'') {
        Some(quoted) => unquoted(quoted),
        None => value
            .split(|c: char| c.is_whitespace() || c == '#')
            .next()
            .unwrap_or_default()
            .to_owned(),
    };
    Some((name.to_ascii_lowercase(), value))
}

/// Reads up to the quote that ends the value; a quote within it is written twice, or after a backslash.
fn unquoted(text: &str) -> String {
    let mut value = String::new();
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '\'' if rest.peek() == Some(&'\'') => {
                rest.next();
                value.push('\'');
            }
            '\'' => break,
            '\\' => value.extend(rest.next()),
            c => value.push(c),
        }
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_last_value_counts_however_it_is_written() {
        let conf = OperatorsConf::parse(
            "#listen_addresses = 'x'\nlisten_addresses = 'localhost' # old\n  \
             Listen_Addresses='*'\nmax_connections 20 # few\ncluster_name = 'it''s'\n\
             max_wal_senders=3#three\n=\n",
        );
        assert_eq!(conf.get("listen_addresses"), Some("*"));
        assert_eq!(conf.number("max_connections"), Some(20));
        assert_eq!(conf.number("max_wal_senders"), Some(3));
        assert_eq!(conf.get("cluster_name"), Some("it's"));
        assert_eq!(conf.get("port"), None);
    }

    #[test]
    fn includes_are_followed_in_order_and_without_end_and_ours_is_not_theirs() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        fs::create_dir(folder.path().join("conf.d")).unwrap();
        write(
            "postgresql.conf",
            "include 'postgresql.conf'\nport = 1\nwal_level = minimal\ninclude_dir 'conf.d'\n\
             include_if_exists = 'understudy.conf'\ninclude_if_exists = 'none'\n",
        );
        write("conf.d/b.conf", "port = 3\n");
        write("conf.d/a.conf", "port = 2\nwal_level = logical\n");
        write("conf.d/c.txt", "port = 4\n");
        write("understudy.conf", "port = 5\n");
        let conf = OperatorsConf::read(folder.path()).unwrap();
        assert_eq!(conf.get("port"), Some("3"));
        assert_eq!(conf.get("wal_level"), Some("logical"));
    }

    proptest! {
        #[test]
        fn a_quoted_value_is_read_as_it_was_meant(value in "[^\\\\\n\r]*") {
            let line = format!("cluster_name = '{}' # a comment", value.replace('\'', "''"));
            let conf = OperatorsConf::parse(&line);
            // Other line ends than \n are characters of the value for `lines`, too.
            prop_assert_eq!(conf.get("cluster_name"), Some(value.as_str()));
        }

        #[test]
        fn no_text_panics(text in ".*") {
            OperatorsConf::parse(&text);
        }
    }
}
