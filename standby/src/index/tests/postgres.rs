//! A Postgres of a test's own.

use understudy_replication::command::{Command, OsUser};

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::Connect;

/// A Postgres of the test's own, on a Unix socket only; stopped when dropped.
pub(super) struct Postgres {
    folder: tempfile::TempDir,
}

impl Postgres {
    pub(super) async fn start() -> Self {
        let folder = tempfile::Builder::new()
            .prefix("pg")
            .tempdir_in("/tmp")
            .unwrap();
        let user = OsUser::find("postgres").unwrap();
        std::os::unix::fs::chown(folder.path(), Some(user.uid), Some(user.gid)).unwrap();
        let postgres = Self { folder };
        let place = postgres.folder.path().display().to_string();
        let run = async |line: String| {
            let script = format!("PATH=/usr/lib/postgresql/15/bin:$PATH; {line}");
            Command::new(["sh", "-c", &script])
                .user(&user)
                .run()
                .await
                .unwrap();
        };
        run(format!(
            "initdb -D {place}/data -A trust -U postgres --no-sync"
        ))
        .await;
        let options = format!("-k {place} -c listen_addresses= -c fsync=off");
        run(format!(
            "pg_ctl -D {place}/data -w -l {place}/log -o '{options}' start"
        ))
        .await;
        postgres
    }

    pub(super) fn connect(&self) -> Connect {
        let place = self.folder.path().to_owned();
        Arc::new(move |database| {
            let place = place.clone();
            Box::pin(async move { Ok(connect(&place, database.as_deref()).await?) })
        })
    }

    #[cfg(feature = "tantivy")]
    pub(super) async fn execute(&self, sql: &str) {
        let client = connect(self.folder.path(), None).await.unwrap();
        client.batch_execute(sql).await.unwrap();
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
