//! Postgres servers of a test's own.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use understudy_replication::command::{Command, OsUser};
use understudy_replication::position::Lsn;
use understudy_replication::postgres::{History, parse_history};

use super::{Database, Tenure, Writer};

/// A Postgres of the test's own, on a Unix socket only; stopped when dropped.
pub(super) struct Postgres {
    folder: tempfile::TempDir,
}

async fn shell(line: &str) {
    let user = OsUser::find("postgres").unwrap();
    let script = format!("PATH=/usr/lib/postgresql/15/bin:$PATH; {line}");
    let outcome = Command::new(["sh", "-c", &script]).user(&user).run().await;
    outcome.unwrap();
}

impl Postgres {
    fn folder() -> Self {
        let folder = tempfile::Builder::new()
            .prefix("pg")
            .tempdir_in("/tmp")
            .unwrap();
        let user = OsUser::find("postgres").unwrap();
        std::os::unix::fs::chown(folder.path(), Some(user.uid), Some(user.gid)).unwrap();
        Self { folder }
    }

    fn place(&self) -> String {
        self.folder.path().display().to_string()
    }

    pub(super) async fn start() -> Self {
        let postgres = Self::folder();
        let place = postgres.place();
        shell(&format!(
            "initdb -D {place}/data -A trust -U postgres --no-sync -k"
        ))
        .await;
        postgres.run().await;
        postgres
    }

    /// Starts the server.
    pub(super) async fn run(&self) {
        let place = self.place();
        let options = format!("-k {place} -c listen_addresses= -c fsync=off -c wal_keep_size=64");
        shell(&format!(
            "pg_ctl -D {place}/data -w -l {place}/log -o '{options}' start"
        ))
        .await;
    }

    /// Has the server be a standby, of nobody, from its next start on.
    pub(super) fn stand_by(&self) {
        fs::write(self.folder.path().join("data/standby.signal"), "").unwrap();
    }

    /// Stops the server, `fast` or `immediate`.
    pub(super) async fn stop(&self, how: &str) {
        shell(&format!("pg_ctl -D {}/data -w -m {how} stop", self.place())).await;
    }

    /// Makes a standby of this one, which streams.
    #[cfg(feature = "tantivy")]
    pub(super) async fn standby(&self) -> Self {
        let (standby, place) = (Self::folder(), self.place());
        shell(&format!(
            "pg_basebackup -h {place} -U postgres -D {}/data -R --no-sync -c fast",
            standby.place()
        ))
        .await;
        standby.run().await;
        standby
    }

    #[cfg(feature = "tantivy")]
    pub(super) async fn promote(&self) {
        shell(&format!("pg_ctl -D {}/data -w promote", self.place())).await;
    }

    /// Makes a standby of `primary` of this one, which is stopped and was promoted apart.
    #[cfg(feature = "tantivy")]
    pub(super) async fn rewind(&self, primary: &Self) {
        let (ours, theirs) = (self.place(), primary.place());
        shell(&format!(
            "pg_rewind -D {ours}/data -R --no-sync \
             --source-server='host={theirs} user=postgres dbname=postgres'"
        ))
        .await;
        self.run().await;
    }

    /// Waits until this standby has everything of `primary`.
    #[cfg(feature = "tantivy")]
    pub(super) async fn follow(&self, primary: &Self) {
        let end = primary.value("SELECT pg_current_wal_insert_lsn()").await;
        let waiting = async {
            let sql = format!("SELECT pg_last_wal_replay_lsn() >= '{end}'");
            while self.value(&sql).await != "t" {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), waiting)
            .await
            .unwrap();
    }

    pub(super) fn database(&self) -> Database {
        let place = self.folder.path().to_owned();
        let wal = place.join("data/pg_wal");
        Database {
            connect: Arc::new(move |database| {
                let place = place.clone();
                Box::pin(async move { Ok(connect(&place, database.as_deref()).await?) })
            }),
            ancestry: Arc::new(move || Ok(history(&wal))),
            tenure: tenure("1.a", true),
        }
    }

    #[cfg(feature = "tantivy")]
    pub(super) async fn execute(&self, sql: &str) {
        let client = connect(self.folder.path(), None).await.unwrap();
        client.batch_execute(sql).await.unwrap();
    }

    /// Returns the one value of a query, as text.
    #[cfg(feature = "tantivy")]
    pub(super) async fn value(&self, sql: &str) -> String {
        let client = connect(self.folder.path(), None).await.unwrap();
        let rows = client.simple_query(sql).await.unwrap();
        for message in &rows {
            if let tokio_postgres::SimpleQueryMessage::Row(row) = message {
                return row.get(0).unwrap().to_owned();
            }
        }
        panic!("no row: {sql}")
    }
}

/// Returns a node that is in this epoch.
pub(super) fn tenure(epoch: &str, is_primary: bool) -> Tenure {
    let epoch: understudy_replication::epoch::Epoch = epoch.parse().unwrap();
    Arc::new(move || {
        Ok(Writer {
            epoch: epoch.clone(),
            is_primary,
        })
    })
}

/// Returns the timelines that a folder of logs tells of.
fn history(wal: &Path) -> History {
    let names = fs::read_dir(wal).unwrap();
    let names: Vec<String> = names
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let timeline = names
        .iter()
        .filter(|name| name.len() == 24 && name.bytes().all(|byte| byte.is_ascii_hexdigit()))
        .map(|name| u32::from_str_radix(&name[..8], 16).unwrap())
        .max()
        .unwrap();
    let file: PathBuf = wal.join(format!("{timeline:08X}.history"));
    let ended = match timeline {
        1 => Vec::new(),
        _ => parse_history(&fs::read_to_string(file).unwrap()).unwrap(),
    };
    History {
        system_identifier: 0,
        ended,
        timeline,
        end: Lsn(0),
        origins: Default::default(),
    }
}

async fn connect(
    place: &Path,
    database: Option<&str>,
) -> Result<tokio_postgres::Client, tokio_postgres::Error> {
    let mut config = tokio_postgres::Config::new();
    config
        .host_path(place)
        .user("postgres")
        .dbname(database.unwrap_or("postgres"));
    let (client, connection) = config.connect(tokio_postgres::NoTls).await?;
    // Ends when the client is dropped.
    tokio::spawn(connection);
    Ok(client)
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let pid_file = self.folder.path().join("data/postmaster.pid");
        let Ok(text) = fs::read_to_string(&pid_file) else {
            return;
        };
        let pid = text.lines().next().and_then(|line| line.parse().ok());
        let Some(pid) = pid.and_then(rustix::process::Pid::from_raw) else {
            return;
        };
        // SIGQUIT: stop at once. Nothing of it is needed any more.
        if rustix::process::kill_process(pid, rustix::process::Signal::QUIT).is_err() {
            return;
        }
        for _ in 0..500 {
            if !pid_file.exists() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
