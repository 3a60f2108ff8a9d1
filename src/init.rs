//! `understudy init`: makes a cluster with this machine as its first node.

use std::net::SocketAddr;
use std::path::PathBuf;

use understudy_config::{Config, Local, NodeName, StoreName, template};
use understudy_primary::postgres::permit_restart;
use understudy_replication::durable;
use understudy_replication::epoch::Epoch;
use understudy_replication::postgres::Listening;
use understudy_replication::role::Role;
use understudy_replication::trust::{self, Authority};

use crate::Place;
use crate::adopt::{self, Adoption};
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
    /// Let the daemon restart that cluster's server once, if it runs and its settings need it
    #[arg(long, requires = "postgres")]
    restart_postgres: bool,
    /// Replicate the tree of files at PATH as the store NAME (may be repeated)
    #[arg(long, value_name = "NAME=PATH", value_parser = parse_store)]
    files: Vec<(StoreName, PathBuf)>,
    /// Keep a replicated key-value store, which clients reach with Redis' protocol
    #[arg(long)]
    kv: bool,
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
    /// Serve clients of the key-value store here, if there is one
    #[arg(long, default_value_t = Local::KV_LISTEN_DEFAULT, value_name = "IP:PORT")]
    pub(crate) kv_listen: SocketAddr,
}

impl LocalArguments {
    /// Returns this machine as far as it is known before there is a `node.toml`.
    fn local(&self, name: &NodeName) -> Local {
        Local {
            name: name.clone(),
            root: self.root.clone(),
            state_dir: self.state_dir.clone(),
            run_dir: self.run_dir.clone(),
            pki_dir: PathBuf::new(),
            monitor_listen: self.monitor,
            kv_listen: self.kv_listen,
            address_interface: None,
        }
    }

    pub(crate) fn node_toml(&self, name: &NodeName) -> String {
        template::node(
            name,
            &self.root,
            &self.state_dir,
            &self.run_dir,
            self.monitor,
            self.kv_listen,
        )
    }
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
        // Everything is checked before anything is written.
        let local = self.local.local(&self.name);
        let mut postgres = match &self.postgres {
            Some(data_dir) => Some(adopt::answers(data_dir, &local)?),
            None => None,
        };
        let (mut cluster_toml, mut config) = self.configuration(postgres.clone())?;
        if let (Some(answers), Some(cluster)) =
            (&mut postgres, serve::cluster(&config, &local, None)?)
            && cluster.is_split()
        {
            // Said, and not left to be found: a standby has nothing yet to find it by.
            answers.config_dir = adopt::within(&cluster.config_dir, &local);
            if !cluster.is_running() {
                adopt::take_configured(&cluster.config_dir, answers, &local)?;
            }
            (cluster_toml, config) = self.configuration(postgres.clone())?;
        }
        let cluster = serve::cluster(&config, &local, None)?;
        let adoption = match &cluster {
            Some(cluster) => adopt::look(cluster).await?,
            None => Adoption::Started,
        };
        if let (Some(cluster), Adoption::Restarted(needs)) = (&cluster, &adoption) {
            adopt::check_restart(cluster, needs, self.restart_postgres)?;
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
        if let (Some(cluster), Adoption::Restarted(_)) = (&cluster, &adoption) {
            permit_restart(cluster)?;
        }
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
        match &adoption {
            Adoption::Started => {}
            Adoption::GoesOn(Listening { pid, port, .. }) => print(&format!(
                "Postgres runs (process {pid}, port {port}) and goes on: nothing is restarted."
            )),
            Adoption::Restarted(needs) => {
                let names: Vec<&str> = needs.iter().map(|need| need.setting).collect();
                print(&format!(
                    "Postgres runs, and is restarted once when the daemon starts, for: {}.",
                    names.join(", ")
                ));
            }
        }
        if self.serve {
            return serve::run_locked(place, loaded, lock).await;
        }
        // What the command line has named stands in the file already.
        let is_named = self.postgres.is_some()
            || !self.files.is_empty()
            || self.kv
            || !self.settings.is_empty();
        let first = if is_named {
            "See what is replicated, and what else may be, in understudy.toml"
        } else {
            "Name what to replicate in understudy.toml"
        };
        print(&format!(
            "{first}, check it with `understudy config check`, start the node with\n`understudy serve`, and invite a \
             standby with `understudy invite NAME`."
        ));
        Ok(())
    }

    /// Returns the configuration that the answers make, as text and as it is understood.
    fn configuration(
        &self,
        postgres: Option<template::PostgresAnswers>,
    ) -> Result<(String, Config), Failure> {
        let text = template::cluster(&template::Answers {
            cluster: self.cluster.clone(),
            node: self.name.clone(),
            address: self.address,
            postgres,
            files: self.files.clone(),
            kv: self.kv,
            settings: self.settings.clone(),
        });
        // A path that overlaps another, a name that is taken.
        let config =
            understudy_config::parse_cluster("understudy.toml", &text).map_err(|problems| {
                Failure::usage(format!(
                    "these answers do not make a valid configuration\n{}",
                    problems.render(false).trim_end()
                ))
            })?;
        Ok((text, config))
    }
}
