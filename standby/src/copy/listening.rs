//! The configuration of a copy's server: nothing in it leads to a node of the cluster any more.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use understudy_replication::durable;
use understudy_replication::postgres::{
    Cluster, MINIMUM_SETTINGS, ROLE, with_block, without_block,
};

use super::postgres::owner_of;
use super::tree::resolved;
use super::{CopyError, Place, failed};

/// The settings that come of a running node, each in a file of its own.
const OURS: &str = "understudy.conf";

const BEGIN: &str = "# understudy copy begin: this server is a copy, and no node of the cluster";
const END: &str = "# understudy copy end";

/// What a copy is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To be thrown away.
    Rehearsal,
    /// To be used by itself.
    Test,
}

/// Where the server of a copy takes connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Served {
    /// Its port, on loopback.
    pub port: u16,
    /// The folder of its socket.
    pub socket_dir: PathBuf,
}

/// A copy of a cluster, that is no node's.
#[derive(Clone, Debug)]
pub struct ClusterCopy {
    /// Its data directory.
    pub data_dir: PathBuf,
    /// The folder of its configuration.
    pub config_dir: PathBuf,
    /// Where it takes connections.
    pub served: Served,
    /// The copy's root, in which both of them are.
    root: PathBuf,
    /// What connects to it. Nothing but that: the rest of it is the original's.
    original: Cluster,
}

impl ClusterCopy {
    /// Returns the copy of `original` that was made in `place`.
    pub fn new(original: &Cluster, place: &Place, served: Served) -> Self {
        Self {
            data_dir: place.of(&original.data_dir),
            config_dir: place.of(&original.config_dir),
            served,
            root: place.root(),
            original: original.clone(),
        }
    }

    /// Returns the path of one of Postgres' programs.
    pub fn bin(&self, name: &str) -> String {
        self.original.bin(name)
    }

    /// Returns the OS user that its server runs as.
    pub fn user(&self) -> &understudy_replication::command::OsUser {
        &self.original.user
    }

    /// Returns the database that indexes read by default.
    pub fn database(&self) -> &str {
        &self.original.database
    }

    /// Connects to the copy's server.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn connect(&self, database: &str) -> Result<tokio_postgres::Client, CopyError> {
        let mut copy = self.original.clone();
        copy.socket_dir.clone_from(&self.served.socket_dir);
        copy.port = self.served.port;
        Ok(understudy_replication::postgres::connect(&copy, database).await?)
    }

    /// Returns the arguments with which `pg_ctl` controls the copy's server; what it is to do is still to come.
    pub fn pg_ctl(&self) -> Vec<String> {
        let mut argv = vec![
            self.bin("pg_ctl"),
            "-D".to_owned(),
            self.data_dir.display().to_string(),
        ];
        if self.config_dir != self.data_dir {
            // pg_ctl hands its options to a shell.
            let path = self
                .config_dir
                .join("postgresql.conf")
                .display()
                .to_string();
            let path = path.replace('\'', r"'\''");
            argv.extend(["-o".to_owned(), format!("-c config_file='{path}'")]);
        }
        argv
    }

    /// Writes its configuration: it follows nobody, archives nowhere, listens on loopback, and lets nobody
    /// stream from it.
    ///
    /// # Errors
    /// When a file cannot be read or written, or is none of the copy's.
    pub fn configure(&self, purpose: Purpose) -> Result<(), CopyError> {
        for folder in [&self.data_dir, &self.config_dir] {
            check_within(folder, &self.root)?;
        }
        let ours = self.config_dir.join(OURS);
        let former = read(&ours)?.unwrap_or_default();
        // A server in recovery needs as much of these as its primary has.
        let kept: Vec<&str> = former.lines().filter(|line| is_minimum(line)).collect();
        self.write(&ours, &format!("{}\n", kept.join("\n")))?;
        let conf = self.config_dir.join("postgresql.conf");
        let text = read(&conf)?.unwrap_or_default();
        self.write(&conf, &with_overrides(&text, &self.overrides(purpose)))?;
        let auto = self.data_dir.join("postgresql.auto.conf");
        if let Some(text) = read(&auto)? {
            self.write(&auto, &without_settings(&text, &self.overrides(purpose)))?;
        }
        let me = if rustix::process::geteuid().is_root() {
            "root"
        } else {
            self.user().name.as_str()
        };
        self.edit(
            "pg_hba.conf",
            &format!("local  all  {ROLE}  peer map=understudy_local\n"),
        )?;
        self.edit(
            "pg_ident.conf",
            &format!("understudy_local  {me}  {ROLE}\n"),
        )
    }

    fn edit(&self, name: &str, block: &str) -> Result<(), CopyError> {
        let path = self.config_dir.join(name);
        let text = read(&path)?.unwrap_or_default();
        self.write(&path, &with_block(&without_block(&text), block))
    }

    fn write(&self, path: &Path, text: &str) -> Result<(), CopyError> {
        durable::write_for(path, text.as_bytes(), 0o600, owner_of(&self.original))
            .map_err(failed("write", path))
    }

    /// Returns what is different from the original, in the order in which it is written.
    fn overrides(&self, purpose: Purpose) -> Vec<(&'static str, String)> {
        let path = |path: &Path| path.display().to_string();
        let config = |name| self.config_dir.join(name).display().to_string();
        let name = match purpose {
            Purpose::Rehearsal => "understudy-rehearsal",
            Purpose::Test => "understudy-test",
        };
        vec![
            ("listen_addresses", "127.0.0.1".to_owned()),
            ("port", self.served.port.to_string()),
            ("unix_socket_directories", path(&self.served.socket_dir)),
            ("external_pid_file", String::new()),
            ("cluster_name", name.to_owned()),
            ("primary_conninfo", String::new()),
            ("primary_slot_name", String::new()),
            ("restore_command", String::new()),
            ("archive_cleanup_command", String::new()),
            ("recovery_end_command", String::new()),
            ("recovery_target_timeline", "latest".to_owned()),
            ("archive_mode", "off".to_owned()),
            ("archive_command", String::new()),
            ("archive_library", String::new()),
            ("synchronous_standby_names", String::new()),
            ("hot_standby", "on".to_owned()),
            // A copy that was a subscriber must not take what is the original's from its publisher.
            ("max_logical_replication_workers", "0".to_owned()),
            // Nor do its jobs, where that extension is there.
            ("cron.launch_active_jobs", "off".to_owned()),
            ("logging_collector", "off".to_owned()),
            // The original's memory is still the original's.
            ("shared_buffers", "128MB".to_owned()),
            ("huge_pages", "off".to_owned()),
            ("data_directory", path(&self.data_dir)),
            ("hba_file", config("pg_hba.conf")),
            ("ident_file", config("pg_ident.conf")),
            // A node's own settings, which come behind these, say otherwise where the copy is one.
            ("ssl", "off".to_owned()),
        ]
    }
}

/// Makes sure that a folder is the copy's own: what is written to it must not reach the live server.
fn check_within(folder: &Path, root: &Path) -> Result<(), CopyError> {
    let found = resolved(folder)?;
    if found.starts_with(resolved(root)?) {
        return Ok(());
    }
    Err(CopyError::Outside {
        path: folder.to_owned(),
        found,
    })
}

fn read(path: &Path) -> Result<Option<String>, CopyError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("read", path)(error)),
    }
}

fn is_minimum(line: &str) -> bool {
    let name = line.split('=').next().unwrap_or_default().trim();
    MINIMUM_SETTINGS.contains(&name) || ["wal_level", "wal_log_hints"].contains(&name)
}

/// Returns `conf` with these settings as its last word, but for the include that Understudy writes.
fn with_overrides(conf: &str, overrides: &[(&'static str, String)]) -> String {
    let conf = match (conf.find(BEGIN), conf.find(END)) {
        (Some(begin), Some(end)) => {
            let before = conf.get(..begin).unwrap_or_default();
            let after = conf.get(end + END.len()..).unwrap_or_default();
            format!("{before}{}", after.trim_start_matches('\n'))
        }
        (None, _) | (_, None) => conf.to_owned(),
    };
    let (includes, lines): (Vec<&str>, Vec<&str>) =
        conf.lines().partition(|line| is_our_include(line));
    let mut text = lines.join("\n");
    text.push('\n');
    // What is kept of our settings comes before: a port that a node had is none of a copy's.
    for include in includes.iter().take(1) {
        text += include;
        text.push('\n');
    }
    text += BEGIN;
    text.push('\n');
    for (name, value) in overrides {
        text += &format!("{name} = '{}'\n", value.replace('\'', "''"));
    }
    text + END + "\n"
}

fn is_our_include(line: &str) -> bool {
    line.trim() == format!("include_if_exists = '{OURS}'")
}

/// Returns what `ALTER SYSTEM` has set but for these settings, which it would override.
fn without_settings(auto: &str, overrides: &[(&'static str, String)]) -> String {
    let is_kept = |line: &&str| {
        let name = line.split('=').next().unwrap_or_default().trim();
        let is_overridden = overrides.iter().any(|(overridden, _)| *overridden == name);
        // A target would stop the replay before its end.
        !is_overridden && !name.starts_with("recovery_target") && !name.starts_with("ssl")
    };
    auto.lines()
        .filter(is_kept)
        .map(|line| format!("{line}\n"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_leads_out_of_the_copy_is_not_configured() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::create_dir_all(path("copy/etc")).unwrap();
        fs::create_dir(path("live")).unwrap();
        std::os::unix::fs::symlink(path("live"), path("copy/led")).unwrap();
        check_within(&path("copy/etc"), &path("copy")).unwrap();
        let led = check_within(&path("copy/led"), &path("copy"));
        assert!(matches!(led, Err(CopyError::Outside { .. })), "{led:?}");
    }

    #[test]
    fn what_a_copy_is_told_is_the_last_word() {
        let overrides = [
            ("port", "5440".to_owned()),
            ("restore_command", String::new()),
        ];
        let conf = "port = 1\ninclude_if_exists = 'understudy.conf'\nport = 2\n";
        let once = with_overrides(conf, &overrides);
        let expected = format!(
            "port = 1\nport = 2\ninclude_if_exists = 'understudy.conf'\n{BEGIN}\nport = '5440'\n\
             restore_command = ''\n{END}\n"
        );
        assert_eq!(once, expected);
        assert_eq!(with_overrides(&once, &overrides), expected);
        let auto = "# comment\nport = '7'\nrecovery_target_name = 'x'\nwork_mem = '1MB'\n";
        assert_eq!(
            without_settings(auto, &overrides),
            "# comment\nwork_mem = '1MB'\n"
        );
        assert!(is_minimum("max_connections = 300"));
        assert!(!is_minimum("primary_conninfo = 'host=a'"));
    }
}
