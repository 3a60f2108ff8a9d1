//! The appliance of the demo: a catalog of this machine's own packages.

use std::fs;
use std::path::Path;
use std::time::Duration;

use tokio_postgres::{Client, NoTls};
use understudy_config::Postgres;
use understudy_replication::command::Command;

use super::machine::Machines;
use crate::failure::Failure;
use crate::output::tell;

/// The data directory, beneath the root of a node.
const DATA_DIR: &str = "/var/lib/catalog/postgres";

/// The documentation, beneath the root of a node.
pub(super) const DOCS: &str = "/srv/catalog/docs";

/// The settings, beneath the root of a node.
pub(super) const SETTINGS: &str = "/etc/catalog";

/// The settings file that the writer changes.
pub(super) const SETTINGS_FILE: &str = "/etc/catalog/catalog.conf";

/// The catalog.
pub(super) struct Appliance {
    packages: Vec<Package>,
}

struct Package {
    name: String,
    version: String,
    section: String,
    description: String,
}

impl Appliance {
    /// Makes the files, the settings and an empty database for node a.
    pub(super) async fn new(machines: &Machines, documented: usize) -> Result<Self, Failure> {
        let packages = installed().await?;
        let root = machines.root("a");
        let docs = beneath(&root, DOCS);
        fs::create_dir_all(&docs)?;
        let folders: Vec<String> = packages
            .iter()
            .map(|package| format!("/usr/share/doc/{}", package.name))
            .filter(|folder| Path::new(folder).is_dir())
            .take(documented)
            .collect();
        let mut copy = vec!["cp".to_owned(), "-a".to_owned()];
        copy.extend(folders);
        if copy.len() > 2 {
            copy.push(docs.display().to_string());
            Command::new(copy)
                .limit(Duration::from_secs(300))
                .run()
                .await?;
        }
        let settings = beneath(&root, SETTINGS);
        fs::create_dir_all(&settings)?;
        fs::write(settings.join("catalog.conf"), "generation = 0\n")?;
        fs::write(settings.join("node.local"), "this file is node a's own\n")?;
        let size = fs_extra::dir::get_size(&docs).unwrap_or(0);
        tell(&format!(
            "   {} packages, {} of documentation",
            packages.len(),
            indicatif::HumanBytes(size)
        ));
        let appliance = Self { packages };
        appliance.init_postgres(machines).await?;
        Ok(appliance)
    }

    async fn init_postgres(&self, machines: &Machines) -> Result<(), Failure> {
        let data_dir = beneath(&machines.root("a"), DATA_DIR);
        if let Some(parent) = data_dir.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::create_dir(&data_dir)?;
        std::os::unix::fs::chown(&data_dir, Some(machines.user.uid), Some(machines.user.gid))?;
        let bin = bin_dir(machines)?;
        let data_dir = data_dir.display().to_string();
        let argv = [
            &format!("{bin}/initdb"),
            "-D",
            &data_dir,
            "-k",
            "-E",
            "UTF8",
            "--no-sync",
        ]
        .map(str::to_owned);
        Command::new(argv)
            .user(&machines.user)
            .limit(Duration::from_secs(60))
            .run()
            .await?;
        // Both nodes are one machine here: each listens on its own address only.
        let conf = Path::new(&data_dir).join("postgresql.conf");
        let text = fs::read_to_string(&conf)?;
        fs::write(
            &conf,
            format!("{text}\nlisten_addresses = ''\nmax_connections = 20\n"),
        )?;
        Ok(())
    }

    /// Returns what an operator would write for this appliance, beyond the nodes.
    pub(super) fn configuration(&self, machines: &Machines) -> String {
        let (port, user) = (machines.postgres_port, &machines.user.name);
        format!(
            r#"
[postgres]
data_dir = "{DATA_DIR}"
port = {port}
user = "{user}"
socket_dir = "/run/postgresql"
database = "catalog"

[[files]]
name = "docs"
path = "{DOCS}"
exclude = ["*.tmp"]

[kv]

[settings]
schedule = "*/2 * * * * *"
paths = ["{SETTINGS}"]
exclude = ["*.local"]
validate = ["grep", "-q", "^generation = ", "{{dir}}{SETTINGS_FILE}"]

[[index]]
name = "search"
engine = "tantivy"
source = "SELECT name, version, section, description, changed FROM package"
watermark = "changed"

[[service]]
name = "catalog"
start = ["sh", "-c", "mkdir -p $UNDERSTUDY_ROOT/run; sh -c 'while :; do sleep 1; done' $UNDERSTUDY_ROOT/ >/dev/null 2>&1 & echo $! > $UNDERSTUDY_ROOT/run/catalog.pid"]
stop = ["sh", "-c", "kill $(cat $UNDERSTUDY_ROOT/run/catalog.pid)"]
status = ["sh", "-c", "kill -0 $(cat $UNDERSTUDY_ROOT/run/catalog.pid)"]
"#
        )
    }

    /// Fills the database of node a.
    pub(super) async fn fill(&self, machines: &Machines) -> Result<(), Failure> {
        connect(machines, "a", "postgres")
            .await?
            .batch_execute("CREATE DATABASE catalog")
            .await?;
        let mut client = connect(machines, "a", "catalog").await?;
        client
            .batch_execute(
                "CREATE TABLE package (name text PRIMARY KEY, version text NOT NULL, \
                 section text NOT NULL, description text NOT NULL, generation int NOT NULL DEFAULT 0, \
                 changed timestamptz NOT NULL DEFAULT now());\
                 CREATE INDEX ON package (changed);\
                 CREATE TABLE change (number int PRIMARY KEY, at timestamptz NOT NULL DEFAULT now())",
            )
            .await?;
        let transaction = client.transaction().await?;
        let insert = transaction
            .prepare("INSERT INTO package VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING")
            .await?;
        for package in &self.packages {
            transaction
                .execute(
                    &insert,
                    &[
                        &package.name,
                        &package.version,
                        &package.section,
                        &package.description,
                    ],
                )
                .await?;
        }
        transaction.commit().await?;
        Ok(())
    }

    /// Returns how many packages there are.
    pub(super) fn count(&self) -> usize {
        self.packages.len()
    }

    /// Returns the name of some package, by number.
    pub(super) fn package(&self, number: usize) -> &str {
        match self
            .packages
            .get(number.checked_rem(self.packages.len()).unwrap_or(0))
        {
            Some(package) => &package.name,
            None => "none",
        }
    }
}

/// Returns where an absolute path is beneath the root of a node.
pub(super) fn beneath(root: &Path, path: &str) -> std::path::PathBuf {
    root.join(path.trim_start_matches('/'))
}

/// Connects to a node's database as its superuser.
pub(super) async fn connect(
    machines: &Machines,
    name: &str,
    database: &str,
) -> Result<Client, Failure> {
    let (client, connection) = tokio_postgres::Config::new()
        .host_path(machines.socket_dir(name))
        .port(machines.postgres_port)
        .user(&machines.user.name)
        .dbname(database)
        .connect_timeout(Duration::from_secs(5))
        .connect(NoTls)
        .await?;
    tokio::spawn(async move {
        // It ends with the server that is killed.
        let _ended = connection.await.is_err();
    });
    Ok(client)
}

/// Returns the folder of Postgres' programs, found as the daemon finds it.
fn bin_dir(machines: &Machines) -> Result<String, Failure> {
    let config = Postgres {
        data_dir: DATA_DIR.into(),
        port: machines.postgres_port,
        user: machines.user.name.clone(),
        bin_dir: None,
        database: "catalog".to_owned(),
        durability: understudy_config::PostgresDurability::Async,
        max_slot_wal_keep_bytes: 0,
        bandwidth: None,
        wal_dir: None,
        socket_dir: None,
        config_dir: None,
        commands: None,
    };
    let local = understudy_config::Local {
        name: "a".parse()?,
        root: machines.root("a"),
        state_dir: "/nonexistent".into(),
        run_dir: "/nonexistent".into(),
        pki_dir: "/nonexistent".into(),
        monitor_listen: machines.monitor("a"),
        kv_listen: machines.kv("a"),
        address_interface: None,
    };
    let ip = machines.monitor("a").ip();
    let cluster = understudy_replication::postgres::Cluster::find(&config, &local, ip, vec![])?;
    Ok(cluster.bin_dir.display().to_string())
}

/// Asks dpkg for this machine's packages.
async fn installed() -> Result<Vec<Package>, Failure> {
    let format = "-f=${Package}\\t${Version}\\t${Section}\\t${binary:Summary}\\n";
    let output = tokio::process::Command::new("dpkg-query")
        .args(["-W", format])
        .output()
        .await
        .map_err(|error| {
            Failure::failed(format!("cannot ask dpkg for the packages: {error}"))
                .hint("the demo's catalog is that of a Debian machine")
        })?;
    let text = String::from_utf8_lossy(&output.stdout);
    let packages: Vec<Package> = text
        .lines()
        .filter_map(|line| {
            let mut fields = line.split('\t').map(str::to_owned);
            Some(Package {
                name: fields.next()?,
                version: fields.next()?,
                section: fields.next()?,
                description: fields.next()?,
            })
        })
        .collect();
    if packages.is_empty() {
        return Err(Failure::failed("dpkg knows of no packages"));
    }
    Ok(packages)
}
