//! `understudy init`: makes a cluster with this machine as its first node.

use std::net::SocketAddr;
use std::path::PathBuf;

use understudy_config::{NodeName, StoreName, template};
use understudy_replication::durable;
use understudy_replication::epoch::Epoch;
use understudy_replication::role::Role;
use understudy_replication::trust::{self, Authority};

use crate::Place;
use crate::failure::Failure;
use crate::output::print;
use crate::role_file::RoleRecord;
use crate::serve;

/// Make a cluster with this machine as its first node
#[derive(clap::Args, Debug)]
pub(crate) struct Init {
    /// The name of this node
    #[arg(long)]
    name: NodeName,
    /// Where the other nodes reach this one
    #[arg(long, value_name = "IP:PORT")]
    address: SocketAddr,
    /// The name of the cluster
    #[arg(long, default_value = "understudy")]
    cluster: String,
    /// Replicate the Postgres cluster in this data directory
    #[arg(long, value_name = "DATA_DIR")]
    postgres: Option<PathBuf>,
    /// Replicate the tree of files at PATH as the store NAME (may be repeated)
    #[arg(long, value_name = "NAME=PATH", value_parser = parse_store)]
    files: Vec<(StoreName, PathBuf)>,
    /// Replicate this settings file or folder (may be repeated)
    #[arg(long, value_name = "PATH")]
    settings: Vec<PathBuf>,
    #[command(flatten)]
    local: LocalArguments,
    /// Go on as the daemon
    #[arg(long)]
    pub(crate) serve: bool,
}

/// What is particular to one machine.
#[derive(clap::Args, Debug, Clone)]
pub(crate) struct LocalArguments {
    /// Take the paths of understudy.toml beneath this folder
    #[arg(long, default_value = "/", value_name = "FOLDER")]
    pub(crate) root: PathBuf,
    /// Keep understudy's own state here
    #[arg(long, default_value = "/var/lib/understudy", value_name = "FOLDER")]
    pub(crate) state_dir: PathBuf,
    /// Keep the admin socket here
    #[arg(long, default_value = "/run/understudy", value_name = "FOLDER")]
    pub(crate) run_dir: PathBuf,
    /// Serve the monitor here
    #[arg(long, default_value = "0.0.0.0:7480", value_name = "IP:PORT")]
    pub(crate) monitor: SocketAddr,
}

impl LocalArguments {
    pub(crate) fn node_toml(&self, name: &NodeName) -> String {
        template::node(
            name,
            &self.root,
            &self.state_dir,
            &self.run_dir,
            self.monitor,
        )
    }
}

/// Refuses a data directory that cannot be shipped, before anything is made.
fn check_postgres(data_dir: &std::path::Path) -> Result<(), Failure> {
    if !data_dir.join("PG_VERSION").exists() {
        return Err(Failure::usage(format!(
            "{} is not a Postgres data directory (or this user may not read it)",
            data_dir.display()
        ))
        .hint("make one with `initdb`, or leave --postgres out"));
    }
    if !data_dir.join("postgresql.conf").exists() {
        return Err(Failure::usage(format!(
            "{} has no postgresql.conf: a configuration outside of the data directory, as in \
             Debian's /etc/postgresql, is not supported yet",
            data_dir.display()
        ))
        .hint("make a cluster with `initdb -D DATA_DIR`, whose configuration is in it"));
    }
    Ok(())
}

fn parse_store(text: &str) -> Result<(StoreName, PathBuf), String> {
    let (name, path) = text.split_once('=').ok_or("expected NAME=PATH")?;
    let name = name.parse().map_err(|error| format!("{error}"))?;
    Ok((name, PathBuf::from(path)))
}

impl Init {
    pub(crate) async fn run(self, place: &Place) -> Result<(), Failure> {
        let pki = place.folder().join("pki");
        for path in [
            place.cluster_file(),
            place.node_file(),
            pki.join(trust::CA_KEY),
        ] {
            if path.exists() {
                return Err(Failure::refused(format!("{} is there already", path.display())).hint(
                    "this machine belongs to a cluster; to make a new one, move its configuration \
                     and its state away first",
                ));
            }
        }
        let state_dir = &self.local.state_dir;
        if RoleRecord::path(state_dir).exists() {
            return Err(Failure::refused(format!(
                "{} holds the state of a node",
                state_dir.display()
            ))
            .hint("move it away first, or give another --state-dir"));
        }
        let cluster_toml = template::cluster(&template::Answers {
            cluster: self.cluster.clone(),
            node: self.name.clone(),
            address: self.address,
            postgres: self.postgres.clone(),
            files: self.files.clone(),
            settings: self.settings.clone(),
        });
        // Checked before anything is written: a path that overlaps another, a name that is taken.
        understudy_config::parse_cluster("understudy.toml", &cluster_toml).map_err(|problems| {
            Failure::usage(format!(
                "these answers do not make a valid configuration\n{}",
                problems.render(false).trim_end()
            ))
        })?;
        if let Some(data_dir) = &self.postgres {
            let data_dir = self
                .local
                .root
                .join(data_dir.strip_prefix("/").unwrap_or(data_dir));
            check_postgres(&data_dir)?;
        }
        let lock = serve::lock(state_dir)?;
        durable::create_directory(place.folder(), 0o755)?;
        let authority = Authority::create(&self.cluster)?;
        let issued = authority.issue(&self.name, self.address.ip())?;
        durable::write(&place.cluster_file(), cluster_toml.as_bytes(), 0o644)?;
        durable::write(
            &place.node_file(),
            self.local.node_toml(&self.name).as_bytes(),
            0o644,
        )?;
        let loaded = serve::load(place).inspect_err(|_| {
            // Nothing has been started yet, so what was written can be taken back.
            let _kept = std::fs::remove_file(place.cluster_file()).is_err();
            let _kept = std::fs::remove_file(place.node_file()).is_err();
        })?;
        trust::store(&pki, authority.certificate(), authority.key(), &issued)?;
        let role = Role::Primary {
            epoch: Epoch::first(self.name.clone()),
            standbys: vec![],
        };
        // The role comes last: with it, the node is made.
        RoleRecord::new(self.name.clone(), role).store(state_dir)?;
        print(&format!(
            "Node {} of cluster {} is made; its configuration is in {}.",
            self.name,
            self.cluster,
            place.folder().display()
        ));
        if self.serve {
            return serve::run_locked(place, loaded, lock).await;
        }
        print(
            "Name what to replicate in understudy.toml, check it with `understudy config check`, \
             start the node with\n`understudy serve`, and invite a standby with `understudy invite \
             NAME`.",
        );
        Ok(())
    }
}
