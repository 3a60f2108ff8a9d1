//! A query that Postgres answers.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use understudy_config::CheckKind;
use understudy_monitor::checks::Connect;
use understudy_replication::status::CheckState::{Failed, Ok as Well};

use crate::watched::{Watched, check, config};

/// A server of its own, which listens on a socket only.
struct Server {
    bin: PathBuf,
    folder: tempfile::TempDir,
}

impl Server {
    /// Starts it; says why the test is skipped where that is not possible.
    fn new() -> Option<Self> {
        let versions = std::fs::read_dir("/usr/lib/postgresql")
            .ok()
            .into_iter()
            .flatten();
        let bin = versions
            .flatten()
            .map(|it| it.path().join("bin"))
            .find(|it| it.join("initdb").exists());
        let Some(bin) = bin.filter(|_| rustix::process::geteuid().is_root()) else {
            eprintln!("skipped: it needs root and a Postgres of Debian's");
            return None;
        };
        let folder = tempfile::tempdir().unwrap();
        let owned = Command::new("chown")
            .arg("postgres")
            .arg(folder.path())
            .status();
        assert!(owned.unwrap().success());
        let server = Self { bin, folder };
        let data = server.data();
        server.run("initdb", &["-D", &data, "-A", "trust", "-N"]);
        let socket = format!(
            "-c listen_addresses= -c unix_socket_directories={} -c fsync=off",
            server.path().display()
        );
        server.run(
            "pg_ctl",
            &[
                "-D",
                &data,
                "-w",
                "-l",
                &format!("{data}.log"),
                "-o",
                &socket,
                "start",
            ],
        );
        Some(server)
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn data(&self) -> String {
        self.path().join("data").display().to_string()
    }

    fn run(&self, program: &str, arguments: &[&str]) {
        let mut command = Command::new("runuser");
        command
            .args(["-u", "postgres", "--"])
            .arg(self.bin.join(program))
            .args(arguments);
        // Its server keeps what it inherits open.
        let null = || std::process::Stdio::null();
        let status = command
            .current_dir("/")
            .stdout(null())
            .stderr(null())
            .status();
        assert!(status.unwrap().success(), "{program} {arguments:?}");
    }

    fn stop(&self) {
        self.run("pg_ctl", &["-D", &self.data(), "-m", "immediate", "stop"]);
    }

    fn connect(&self) -> Connect {
        let folder = self.path().to_owned();
        Arc::new(move |database| {
            let folder = folder.clone();
            Box::pin(async move {
                let mut config = tokio_postgres::Config::new();
                config.host_path(folder).user("postgres");
                config.dbname(database.as_deref().unwrap_or("postgres"));
                let (client, connection) = config.connect(tokio_postgres::NoTls).await?;
                tokio::spawn(connection);
                Ok(client)
            })
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.path().join("data/postmaster.pid").exists() {
            self.stop();
        }
    }
}

#[tokio::test]
async fn postgres_answers_the_query_or_does_not() {
    let Some(server) = Server::new() else {
        return;
    };
    let of = |query: &str, database: Option<&str>| {
        let kind = CheckKind::Postgres {
            query: query.to_owned(),
            database: database.map(str::to_owned),
        };
        Watched::of(&config(vec![check(kind)]), Some(server.connect()))
    };
    let watched = of("SELECT 1", None);
    assert_eq!(watched.is(Well).await, "Postgres answers");
    of("SELECT count(*) FROM pg_class", Some("template1"))
        .is(Well)
        .await;
    let told = of("SELECT * FROM nothing", None).is(Failed).await;
    assert!(
        told.contains("relation \"nothing\" does not exist"),
        "{told}"
    );
    server.stop();
    let told = watched.is(Failed).await;
    assert!(told.starts_with("Postgres takes no connection"), "{told}");
}
