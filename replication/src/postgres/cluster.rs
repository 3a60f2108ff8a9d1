//! A Postgres cluster on this machine: where it is, whose it is, and its control.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use understudy_config::{Local, NodeName, Postgres, PostgresDurability, ServerCommands};

use super::conf_file::{OURS, OperatorsConf};
use super::configuration;
use super::control_data::ControlData;
use super::error::{PostgresError, VERSION_MIN};
use super::history::{Ended, History, parse_history};
use super::requirements::{Need, PRESENT_QUERY, Present};
use super::settings::{self, Circumstances, Duty, Minimums};
use super::wal;
use crate::command::{Command, CommandError, OsUser};
use crate::durable;
use crate::event::Events;
use crate::position::Lsn;
use crate::trust;

/// What a standby needs as much of as its primary has.
const MINIMUMS: &str = "minimums.json";

/// A Postgres cluster on this machine.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// Its data directory.
    pub data_dir: PathBuf,
    /// Where `postgresql.conf` and its siblings are: the data directory, or a folder elsewhere.
    pub config_dir: PathBuf,
    /// The operator's own commands for the server.
    pub commands: Option<ServerCommands>,
    /// What those find in their environment.
    pub environment: Vec<(String, String)>,
    /// Where it is told what went otherwise than it should have; the log without it.
    pub events: Option<Events>,
    /// The folder of its programs.
    pub bin_dir: PathBuf,
    /// The OS user that owns it.
    pub user: OsUser,
    /// Its port, on the node's address.
    pub port: u16,
    /// The folder of its Unix socket.
    pub socket_dir: PathBuf,
    /// The node's address.
    pub ip: IpAddr,
    /// The database that indexes read by default.
    pub database: String,
    /// Whether commits wait for a standby.
    pub durability: PostgresDurability,
    /// How much write-ahead log a standby's slot may keep back.
    pub slot_keep_bytes: u64,
    /// How many bytes per second a base backup takes at most.
    pub bandwidth: Option<u64>,
    /// Where a standby that is seeded puts its write-ahead log; `None` for the data directory.
    pub wal_dir: Option<PathBuf>,
    /// What absolute paths of the configuration are beneath, on this machine.
    pub root: PathBuf,
    /// Where Understudy keeps what belongs to this store.
    pub state: PathBuf,
    /// Where it keeps what must not outlive a boot.
    pub run_dir: PathBuf,
    /// The node's role allows a primary's server here. Shared by all that control the cluster.
    pub(super) is_settled: Arc<AtomicBool>,
    /// Clients come by an address that moves from node to node: the server listens on every address of the
    /// machine, since it is started before that one is there.
    pub listens_everywhere: bool,
    /// The other nodes of the configuration: whose certificates may stream from here.
    pub peers: Vec<NodeName>,
    /// Whether its pages have checksums, once that is known. It changes with no server running only.
    pub(super) has_checksums: Arc<OnceLock<bool>>,
    /// With how much its log was written, as it was last told. It changes with what is replayed.
    pub(super) needed: Arc<Mutex<Minimums>>,
}

impl Cluster {
    /// Finds the cluster's programs and its OS user. The cluster itself need not exist yet.
    ///
    /// # Errors
    /// When no supported version is installed, or the OS user does not exist.
    pub fn find(
        config: &Postgres,
        local: &Local,
        ip: IpAddr,
        peers: Vec<NodeName>,
    ) -> Result<Self, PostgresError> {
        let data_dir = local.resolve(&config.data_dir);
        let user = OsUser::find(&config.user).map_err(|source| PostgresError::Control {
            action: "find the OS user of",
            data_dir: data_dir.clone(),
            source,
        })?;
        let bin_dir = match &config.bin_dir {
            Some(bin_dir) => bin_dir.clone(),
            None => find_bin_dir(&data_dir)?,
        };
        if !bin_dir.join("pg_ctl").exists() || !bin_dir.join("pg_basebackup").exists() {
            return Err(PostgresError::NotInstalled { place: bin_dir });
        }
        Ok(Self {
            config_dir: configuration::find(config, local, &data_dir),
            data_dir,
            commands: config.commands.clone(),
            environment: Vec::new(),
            events: None,
            has_checksums: Arc::default(),
            needed: Arc::default(),
            bin_dir,
            user,
            port: config.port,
            socket_dir: match &config.socket_dir {
                Some(folder) => local.resolve(folder),
                None => PathBuf::from("/var/run/postgresql"),
            },
            ip,
            database: config.database.clone(),
            durability: config.durability,
            slot_keep_bytes: config.max_slot_wal_keep_bytes,
            bandwidth: config.bandwidth,
            wal_dir: config.wal_dir.as_deref().map(|path| local.resolve(path)),
            root: local.root.clone(),
            state: local.state_dir.join("postgres"),
            run_dir: local.run_dir.clone(),
            is_settled: Arc::default(),
            listens_everywhere: false,
            peers,
        })
    }

    /// Returns how the configuration would say a path of this machine: without the machine's `root`.
    pub fn in_configuration(&self, path: &Path) -> PathBuf {
        let within = path.strip_prefix(&self.root);
        within.map_or_else(|_| path.to_owned(), |within| Path::new("/").join(within))
    }

    /// Returns where a path that a configuration says is on this machine.
    pub fn on_this_machine(&self, path: &Path) -> PathBuf {
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// Returns the folder of the certificates that Postgres reads; they belong to its OS user.
    pub fn tls_dir(&self) -> PathBuf {
        self.state.join("tls")
    }

    /// Returns the major version of the programs.
    ///
    /// # Errors
    /// When they cannot be run, or are too old.
    pub async fn program_version(&self) -> Result<u32, PostgresError> {
        let output = self
            .program("pg_ctl", ["--version"], "ask the version of")
            .await?;
        let version = output
            .split_whitespace()
            .nth(2)
            .and_then(|version| version.split(['.', 'b', 'r', 'd']).next()?.parse().ok());
        match version {
            Some(version) if version >= VERSION_MIN => Ok(version),
            Some(_) | None => Err(PostgresError::NotInstalled {
                place: self.bin_dir.clone(),
            }),
        }
    }

    /// Checks that there is a cluster here that can be managed.
    ///
    /// # Errors
    /// When there is none, it is too old, or its configuration is not found.
    pub fn check_exists(&self) -> Result<(), PostgresError> {
        let data_dir = self.data_dir.clone();
        let Ok(version) = fs::read_to_string(data_dir.join("PG_VERSION")) else {
            return Err(PostgresError::NoCluster { data_dir });
        };
        if version
            .trim()
            .parse::<u32>()
            .is_ok_and(|version| version < VERSION_MIN)
        {
            let found = version.trim().to_owned();
            return Err(PostgresError::TooOld { data_dir, found });
        }
        if !self.has_configuration() {
            return Err(PostgresError::NoConfiguration {
                data_dir,
                config_dir: self.config_dir.clone(),
            });
        }
        Ok(())
    }

    /// Returns what `pg_controldata` tells.
    ///
    /// # Errors
    /// When there is no readable cluster.
    pub async fn control_data(&self) -> Result<ControlData, PostgresError> {
        let data_dir = self.data_dir.display().to_string();
        let output = self
            .program(
                "pg_controldata",
                [data_dir.as_str()],
                "read the control data of",
            )
            .await?;
        let control = ControlData::parse(&output).map_err(|source| PostgresError::ControlData {
            data_dir: self.data_dir.clone(),
            source,
        })?;
        self.has_checksums.get_or_init(|| control.has_checksums);
        *self.needed.lock().unwrap_or_else(PoisonError::into_inner) = control.minimums.clone();
        Ok(control)
    }

    /// Returns the timelines that ended before `timeline` began, as the data directory tells them.
    ///
    /// # Errors
    /// When its history file cannot be read or understood.
    pub fn ended_timelines(&self, timeline: u32) -> Result<Vec<Ended>, PostgresError> {
        // The first has no history.
        if timeline <= 1 {
            return Ok(Vec::new());
        }
        let path = self
            .data_dir
            .join("pg_wal")
            .join(format!("{timeline:08X}.history"));
        let content = self.read(&path)?;
        parse_history(&content).map_err(|source| PostgresError::History { path, source })
    }

    /// Returns the newest timeline that the log here has a segment of: what a standby that has followed a
    /// promotion is on, which its control file tells only after a checkpoint.
    pub fn newest_timeline(&self) -> u32 {
        wal::newest_segment(self.log_files()).unwrap_or(0)
    }

    /// Returns the timeline that a promotion of this standby opens: the one after all that it has heard of.
    pub fn next_timeline(&self) -> u32 {
        let heard = wal::newest_history(self.log_files()).unwrap_or(0);
        heard.max(self.newest_timeline()).saturating_add(1)
    }

    fn log_files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.data_dir.join("pg_wal"))
            .into_iter()
            .flatten();
        entries
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .collect()
    }

    /// Returns the history of a cluster whose server does not run and was shut down in peace, up to its
    /// last record.
    ///
    /// # Errors
    /// When its files cannot be read or understood.
    pub fn history_at_rest(&self, control: &ControlData) -> Result<History, PostgresError> {
        Ok(History {
            system_identifier: control.system_identifier,
            ended: self.ended_timelines(control.timeline)?,
            timeline: control.timeline,
            // Within the last record, which another has whole or not at all.
            end: Lsn(control.checkpoint.0.saturating_add(1)),
            origins: self.origins()?,
        })
    }

    /// Returns whether the data directory is a standby's.
    pub fn is_standby(&self) -> bool {
        self.data_dir.join("standby.signal").exists()
    }

    /// Returns whether our settings, as they were last written, have commits wait for a standby.
    pub fn waits(&self) -> bool {
        fs::read_to_string(self.our_conf()).is_ok_and(|conf| settings::waits(&conf))
    }

    /// Writes our settings for a duty. Repeatable; they take effect with the next start or
    /// [`Cluster::reload`]. [`Cluster::control_data`] is asked before, for what they depend on.
    ///
    /// # Errors
    /// When a file cannot be read or written.
    pub fn configure(&self, pki: &Path, duty: Duty<'_>) -> Result<(), PostgresError> {
        self.install_certificates(pki)?;
        if !self.socket_dir.exists() {
            self.create_owned_directory(&self.socket_dir.clone(), 0o755)?;
        }
        let conf_path = self.config_dir.join("postgresql.conf");
        let operators = OperatorsConf::read(&self.config_dir)
            .map_err(|source| self.file("read", &conf_path, source))?;
        let about = Circumstances {
            socket_dirs: settings::socket_dirs(&operators),
            operators,
            has_checksums: match self.has_checksums.get() {
                Some(has_checksums) => *has_checksums,
                // As it was when our settings were written last.
                None => fs::read_to_string(self.our_conf())
                    .is_ok_and(|ours| settings::know_checksums(&ours)),
            },
            minimums: self.minimums_now(),
        };
        let ours = self.conf(&about, duty);
        self.write_ours(&self.our_conf(), &ours)?;
        self.edit(&conf_path, settings::with_include)?;
        let hba_path = self.config_dir.join("pg_hba.conf");
        self.edit(&hba_path, |hba| settings::with_block(hba, &settings::hba()))?;
        self.allow(&self.peers)
    }

    fn our_conf(&self) -> PathBuf {
        self.config_dir.join(OURS)
    }

    /// Returns the path of `postgresql.conf`, where it is not in the data directory: a program of Postgres
    /// that works on the data directory has to be told (`pg_rewind --config-file`).
    pub fn config_file(&self) -> Option<PathBuf> {
        self.is_split()
            .then(|| self.config_dir.join("postgresql.conf"))
    }

    /// Keeps in mind what a standby needs as much of as its primary has; it is in our settings from the
    /// next [`Cluster::configure`] on.
    ///
    /// # Errors
    /// When it cannot be written down.
    pub fn remember_minimums(&self, minimums: &Minimums) -> Result<(), PostgresError> {
        if self.minimums() == *minimums {
            return Ok(());
        }
        let path = self.state.join(MINIMUMS);
        self.create_owned_directory(&self.state.clone(), 0o700)?;
        let text = serde_json::to_vec(minimums).unwrap_or_default();
        durable::write(&path, &text, 0o644).map_err(|source| self.file("write", &path, source))
    }

    /// Returns what the server must have at least: as much as its primary had when it was last asked, and
    /// while it is in recovery no less than what its own log was written with. Once it is a primary that
    /// does not count any more: it would be what the server itself has, and could never be lowered again.
    fn minimums_now(&self) -> Minimums {
        let minimums = self.minimums();
        if !self.is_standby() {
            return minimums;
        }
        minimums.max(&self.needed.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn minimums(&self) -> Minimums {
        // What cannot be read is asked for again when the standby follows.
        let text = fs::read(self.state.join(MINIMUMS)).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }

    /// Lets the certificates of exactly these nodes stream from here, from the next start or
    /// [`Cluster::reload`] on.
    ///
    /// # Errors
    /// When the file cannot be read or written.
    pub fn allow<'a>(
        &self,
        peers: impl IntoIterator<Item = &'a NodeName>,
    ) -> Result<(), PostgresError> {
        let path = self.config_dir.join("pg_ident.conf");
        // Whoever this process runs as: the name matters to an unprivileged process only.
        let me = OsUser::find("root").map_err(|source| PostgresError::Control {
            action: "find whom the daemon runs as, for",
            data_dir: self.data_dir.clone(),
            source,
        })?;
        let block = settings::ident(&me.name, peers);
        self.edit(&path, |ident| settings::with_block(ident, &block))
    }

    /// Asks the running server for its settings, as the cluster's own superuser.
    ///
    /// # Errors
    /// When the superuser cannot connect, or the answer cannot be understood.
    pub async fn present_settings(&self) -> Result<Present, PostgresError> {
        let script = format!("{PRESENT_QUERY};\n");
        let answer = self.psql(script, "ask for the settings of").await?;
        Present::parse(&answer).map_err(|source| PostgresError::Settings { source })
    }

    /// Returns what a server with the settings `present` needs a restart for.
    pub fn needs(&self, present: &Present) -> Vec<Need> {
        present.needs(self.ip, self.listens_everywhere)
    }

    pub(super) async fn psql(
        &self,
        script: String,
        action: &'static str,
    ) -> Result<String, PostgresError> {
        let socket_dir = self.socket_dir.display().to_string();
        let port = self.port.to_string();
        let argv = [
            self.bin("psql").as_str(),
            "-X",
            "-q",
            "-A",
            "-t",
            "-v",
            "ON_ERROR_STOP=1",
            "-h",
            &socket_dir,
            "-p",
            &port,
            "-d",
            "postgres",
        ]
        .map(str::to_owned);
        Command::new(argv)
            .user(&self.user)
            .input(script)
            .limit(Duration::from_secs(20))
            .run()
            .await
            .map_err(|source| self.control(action, source))
    }

    /// Returns the path of one of Postgres' programs.
    pub fn bin(&self, name: &str) -> String {
        self.bin_dir.join(name).display().to_string()
    }

    /// Copies the certificates to where the OS user of the cluster can read them.
    ///
    /// # Errors
    /// When a file cannot be read or written.
    pub fn install_certificates(&self, pki: &Path) -> Result<(), PostgresError> {
        self.create_owned_directory(&self.state.clone(), 0o700)?;
        let tls = self.tls_dir();
        self.create_owned_directory(&tls, 0o700)?;
        for name in [
            trust::CA_CERTIFICATE,
            trust::NODE_CERTIFICATE,
            trust::NODE_KEY,
        ] {
            let source = pki.join(name);
            let content = fs::read(&source).map_err(|error| self.file("read", &source, error))?;
            let target = tls.join(name);
            if fs::read(&target).is_ok_and(|present| present == content) {
                continue;
            }
            self.write_owned(&target, &content, 0o600)?;
        }
        Ok(())
    }

    fn read(&self, path: &Path) -> Result<String, PostgresError> {
        fs::read_to_string(path).map_err(|source| self.file("read", path, source))
    }

    async fn program<const N: usize>(
        &self,
        name: &str,
        arguments: [&str; N],
        action: &'static str,
    ) -> Result<String, PostgresError> {
        let argv = std::iter::once(self.bin(name)).chain(arguments.map(str::to_owned));
        Command::new(argv)
            .user(&self.user)
            .limit(Duration::from_secs(20))
            .run()
            .await
            .map_err(|source| self.control(action, source))
    }

    pub(super) fn control(&self, action: &'static str, source: CommandError) -> PostgresError {
        PostgresError::Control {
            action,
            data_dir: self.data_dir.clone(),
            source,
        }
    }

    pub(super) fn file(
        &self,
        action: &'static str,
        path: &Path,
        source: io::Error,
    ) -> PostgresError {
        PostgresError::File {
            action,
            path: path.to_owned(),
            source,
        }
    }
}

/// Finds the programs for the cluster in `data_dir`, or the newest if there is none yet.
fn find_bin_dir(data_dir: &Path) -> Result<PathBuf, PostgresError> {
    let base = Path::new("/usr/lib/postgresql");
    if let Ok(version) = fs::read_to_string(data_dir.join("PG_VERSION")) {
        return Ok(base.join(version.trim()).join("bin"));
    }
    let newest = fs::read_dir(base)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .filter(|version| *version >= VERSION_MIN)
        .max();
    match newest {
        Some(version) => Ok(base.join(version.to_string()).join("bin")),
        None => Err(PostgresError::NotInstalled {
            place: base.to_owned(),
        }),
    }
}

#[cfg(test)]
impl Cluster {
    /// Returns a cluster that exists nowhere, and belongs to this process' user.
    pub(super) fn example(is_split: bool) -> Self {
        let user = nix::unistd::Uid::effective();
        Self {
            data_dir: "/pg/data".into(),
            config_dir: if is_split { "/etc/pg" } else { "/pg/data" }.into(),
            commands: None,
            environment: Vec::new(),
            events: None,
            bin_dir: "/pg/bin".into(),
            user: OsUser {
                name: "postgres".to_owned(),
                uid: user.as_raw(),
                gid: nix::unistd::Gid::effective().as_raw(),
                home: "/".into(),
            },
            port: 5432,
            socket_dir: "/run/postgresql".into(),
            listens_everywhere: false,
            ip: IpAddr::from([10, 0, 0, 1]),
            database: "postgres".to_owned(),
            durability: PostgresDurability::Async,
            slot_keep_bytes: 1 << 30,
            bandwidth: None,
            root: "/".into(),
            wal_dir: None,
            state: "/state/postgres".into(),
            run_dir: "/run/understudy".into(),
            is_settled: Arc::default(),
            peers: Vec::new(),
            has_checksums: Arc::default(),
            needed: Arc::default(),
        }
    }
}
