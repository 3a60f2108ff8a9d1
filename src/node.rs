//! A running node: what its parts share.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use tokio::sync::{mpsc, oneshot, watch};
use understudy_config::{Config, Local, NodeName, StoreName};
use understudy_monitor::checks::Checks;
use understudy_primary::address::Address;
use understudy_primary::jobs::Jobs;
use understudy_primary::kv::Others;
use understudy_primary::services::{Hooks, Services};
use understudy_replication::epoch::Epoch;
use understudy_replication::event::Events;
use understudy_replication::kv::keyspace::Keyspace;
use understudy_replication::kv::protocol::Tail;
use understudy_replication::kv::slot::Slot;
use understudy_replication::kv::storage::Storage;
use understudy_replication::link::ConfigDigest;
use understudy_replication::postgres::{Cluster, PostgresError};
use understudy_replication::preflight::Preflight;
use understudy_replication::role::{Event, Role};
use understudy_replication::status::{CloneStatus, PromotionStatus};
use understudy_replication::transport::{Identity, Lineage, PeerClient, SharedRouter};
use understudy_replication::wall_time::WallTime;
use understudy_standby::index::Indexes;

use crate::drill::Drills;
use crate::links::Links;
use crate::pause::Pauses;
use crate::primary_run::PrimaryRun;
use crate::role_file::RoleRecord;
use crate::shell::{Asked, ShellError};
use crate::standby_run::StandbyRun;
use crate::stores::Makings;

/// What runs for the present role.
#[derive(Clone, Default)]
pub(crate) enum Stage {
    /// Nothing: waiting for a word of a peer or an operator.
    #[default]
    Idle,
    /// The stores are shipped, or (when fenced) can still be drained.
    Primary(Arc<PrimaryRun>),
    /// The stores are received, or (when promoting) about to be taken over.
    Standby(Arc<StandbyRun>),
}

/// A running node.
pub(crate) struct Node {
    pub(crate) local: Local,
    pub(crate) config_file: PathBuf,
    pub(crate) node_file: PathBuf,
    pub(crate) events: Events,
    pub(crate) identity: Identity,
    pub(crate) services: Arc<Services>,
    pub(crate) jobs: Arc<Jobs>,
    pub(crate) hooks: Arc<Hooks>,
    /// The address that clients use, if understudy moves one.
    pub(crate) address: Option<Arc<Address>>,
    pub(crate) checks: Arc<Checks>,
    pub(crate) indexes: Arc<Indexes>,
    pub(crate) cluster: Option<Cluster>,
    pub(crate) started: WallTime,
    pub(crate) role: watch::Sender<RoleRecord>,
    pub(crate) peer_routes: SharedRouter,
    pub(crate) promotion: Mutex<Option<PromotionStatus>>,
    /// Held while a promotion or a rejoin runs: there is one at a time.
    pub(crate) promoting: tokio::sync::Mutex<()>,
    /// Held while the services are started and the address is taken: a promotion does it itself.
    pub(crate) front: tokio::sync::Mutex<()>,
    /// Every way to every peer.
    pub(crate) links: Links,
    /// Whether this standby could be promoted, as it was last asked.
    pub(crate) preflight: Mutex<Option<Preflight>>,
    /// Held while a node is admitted: two must not change the configuration at once.
    pub(crate) joining: Mutex<()>,
    /// What is wrong with the configuration on disk, which is not in force.
    config_problem: Mutex<Option<String>>,
    /// Why the stores of a node that should have them open are not.
    stores_problem: Mutex<Option<String>>,
    /// Something that the last fence was to stop may still run.
    is_fence_owed: AtomicBool,
    /// A promotion has ended without all of the front: `[hooks] online` is to run once it is up.
    is_announcement_owed: AtomicBool,
    /// A restarted primary has waited long enough for a peer's word.
    is_alone: AtomicBool,
    /// A task tries to make a standby of this node, which has been superseded.
    pub(crate) is_coming_back: AtomicBool,
    /// The epoch in which a standby has given up to make its copies equal to the primary's by itself.
    given_up: Mutex<Option<Epoch>>,
    /// The stores are being made equal to the primary's; nobody follows meanwhile.
    pub(crate) is_rejoining: AtomicBool,
    config: Arc<RwLock<Arc<Config>>>,
    stage: Mutex<Stage>,
    clients: Mutex<BTreeMap<NodeName, Arc<PeerClient>>>,
    /// The stores that are being checked, and how.
    pub(crate) checking: Mutex<BTreeMap<StoreName, &'static str>>,
    /// Where the key-value store is kept open: what is in memory survives a change of roles.
    kv: Slot,
    /// What is tried on copies of the stores, and what that has proved.
    pub(crate) drills: Drills,
    shell: mpsc::Sender<Asked>,
    /// Whether somebody has asked understudy to do nothing by itself.
    pub(crate) pauses: Pauses,
    /// Of what this is a clone, if it is one.
    pub(crate) clone_of: Option<CloneStatus>,
}

/// What a node is made from.
pub(crate) struct Parts {
    pub(crate) local: Local,
    pub(crate) config: Config,
    pub(crate) config_file: PathBuf,
    pub(crate) node_file: PathBuf,
    pub(crate) events: Events,
    pub(crate) identity: Identity,
    pub(crate) services: Arc<Services>,
    pub(crate) jobs: Arc<Jobs>,
    pub(crate) hooks: Arc<Hooks>,
    pub(crate) address: Option<Arc<Address>>,
    pub(crate) checks: Arc<Checks>,
    pub(crate) indexes: Arc<Indexes>,
    pub(crate) cluster: Option<Cluster>,
    pub(crate) role: RoleRecord,
    pub(crate) shell: mpsc::Sender<Asked>,
}

impl Node {
    pub(crate) fn new(parts: Parts) -> Arc<Self> {
        Arc::new(Self {
            kv: Makings::kv_slot(&parts.local),
            drills: Drills::load(&parts.local.state_dir),
            pauses: Pauses::load(&parts.local.state_dir, parts.events.clone()),
            clone_of: crate::clone::origin(&parts.local.state_dir, &parts.config.cluster.name),
            local: parts.local,
            config_file: parts.config_file,
            node_file: parts.node_file,
            events: parts.events,
            identity: parts.identity,
            services: parts.services,
            jobs: parts.jobs,
            hooks: parts.hooks,
            address: parts.address,
            checks: parts.checks,
            indexes: parts.indexes,
            cluster: parts.cluster,
            started: WallTime::now(),
            role: watch::Sender::new(parts.role),
            peer_routes: SharedRouter::default(),
            promotion: Mutex::new(None),
            promoting: tokio::sync::Mutex::new(()),
            front: tokio::sync::Mutex::new(()),
            links: Links::default(),
            preflight: Mutex::new(None),
            joining: Mutex::new(()),
            config_problem: Mutex::new(None),
            stores_problem: Mutex::new(None),
            is_fence_owed: AtomicBool::new(false),
            is_announcement_owed: AtomicBool::new(false),
            is_alone: AtomicBool::new(false),
            is_coming_back: AtomicBool::new(false),
            given_up: Mutex::new(None),
            is_rejoining: AtomicBool::new(false),
            config: Arc::new(RwLock::new(Arc::new(parts.config))),
            stage: Mutex::new(Stage::Idle),
            clients: Mutex::default(),
            checking: Mutex::default(),
            shell: parts.shell,
        })
    }

    /// Returns this node's name.
    pub(crate) fn me(&self) -> &NodeName {
        &self.local.name
    }

    /// Returns the last good configuration.
    pub(crate) fn config(&self) -> Arc<Config> {
        self.config
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Returns what the configuration in force says, in short.
    pub(crate) fn config_digest(&self) -> ConfigDigest {
        let said = format!("{:?}", self.config());
        ConfigDigest {
            software: env!("CARGO_PKG_VERSION").to_owned(),
            digest: blake3::hash(said.as_bytes()).to_hex().to_string(),
        }
    }

    pub(crate) fn set_config(&self, config: Config) {
        *self.config.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(config);
    }

    pub(crate) fn config_problem(&self) -> Option<String> {
        self.config_problem
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub(crate) fn set_config_problem(&self, problem: Option<String>) {
        *self
            .config_problem
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = problem;
    }

    pub(crate) fn stores_problem(&self) -> Option<String> {
        self.stores_problem
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Sets why the stores are not open, and returns why they were not.
    pub(crate) fn set_stores_problem(&self, problem: Option<String>) -> Option<String> {
        let mut held = self
            .stores_problem
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *held, problem)
    }

    /// Returns the epoch in which this node has given up to make its copies equal by itself.
    pub(crate) fn given_up(&self) -> Option<Epoch> {
        self.given_up
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub(crate) fn give_up(&self, epoch: Epoch) {
        *self.given_up.lock().unwrap_or_else(PoisonError::into_inner) = Some(epoch);
    }

    /// Returns whether something that the last fence was to stop may still run.
    pub(crate) fn is_fence_owed(&self) -> bool {
        self.is_fence_owed.load(Ordering::SeqCst)
    }

    pub(crate) fn is_announcement_owed(&self) -> bool {
        self.is_announcement_owed.load(Ordering::SeqCst)
    }

    /// Returns what it was before.
    pub(crate) fn set_announcement_owed(&self, is_owed: bool) -> bool {
        self.is_announcement_owed.swap(is_owed, Ordering::SeqCst)
    }

    pub(crate) fn set_fence_owed(&self, is_owed: bool) {
        self.is_fence_owed.store(is_owed, Ordering::SeqCst);
    }

    /// Returns whether a restarted primary has waited long enough for a peer's word.
    pub(crate) fn is_alone(&self) -> bool {
        self.is_alone.load(Ordering::SeqCst)
    }

    pub(crate) fn set_alone(&self, is_alone: bool) {
        self.is_alone.store(is_alone, Ordering::SeqCst);
    }

    /// Returns what the ends of the stores are made from.
    pub(crate) fn makings(&self) -> Makings {
        Makings {
            config: self.config(),
            local: self.local.clone(),
            cluster: self.cluster.clone().map(|mut cluster| {
                // A node may have been admitted since the daemon started.
                let config = self.config();
                let peers = config.peers(self.me());
                cluster.peers = peers.map(|peer| peer.name.clone()).collect();
                cluster
            }),
            events: self.events.clone(),
            kv: self.kv.clone(),
            standbys: {
                let (role, config) = (self.role.subscribe(), self.config.clone());
                Arc::new(move || {
                    // A node that joins is named from then on.
                    let nodes = config.read().unwrap_or_else(PoisonError::into_inner);
                    let named = nodes.nodes.len().saturating_sub(1);
                    let joined = match &role.borrow().role {
                        Role::Primary { standbys, .. } => standbys.len(),
                        // Who is not primary, as one that is just being fenced, acknowledges nothing alone.
                        Role::Returning { .. }
                        | Role::Standby { .. }
                        | Role::Promoting { .. }
                        | Role::Fenced { .. } => named.max(1),
                    };
                    Others { joined, named }
                })
            },
        }
    }

    /// Returns where the log of the key-value store ends here; `None` while it is not open.
    pub(crate) fn kv_end(&self) -> Option<Tail> {
        self.kv.held().map(|storage| storage.end())
    }

    /// Returns the key-value store with its files; `None` while it is not open.
    pub(crate) fn kv_storage(&self) -> Option<Arc<Storage>> {
        self.kv.held()
    }

    /// Returns whether the copy of the key-value store waits for the rest of what it is made of.
    pub(crate) fn kv_is_half_a_copy(&self) -> bool {
        self.kv
            .held()
            .is_some_and(|storage| storage.whole_from().is_some())
    }

    /// Returns the key-value store as its clients see it; `None` while it is not open.
    pub(crate) fn keyspace(&self) -> Option<Arc<dyn Keyspace>> {
        match self.stage() {
            Stage::Primary(run) => run.keyspace.clone(),
            Stage::Standby(run) => run.keyspace.clone(),
            Stage::Idle => None,
        }
    }

    /// Returns whether something here still takes writes that only a primary may take.
    pub(crate) fn is_serving(&self) -> bool {
        let is_up = |cluster: &Cluster| cluster.is_running() && !cluster.is_standby();
        self.cluster.as_ref().is_some_and(is_up) || self.services.is_serving()
    }

    /// Returns what the node is.
    pub(crate) fn role(&self) -> Role {
        self.role.borrow().role.clone()
    }

    pub(crate) fn stage(&self) -> Stage {
        self.stage_lock().clone()
    }

    /// Sets what runs, and returns what ran.
    pub(crate) fn set_stage(&self, stage: Stage) -> Stage {
        std::mem::replace(&mut *self.stage_lock(), stage)
    }

    fn stage_lock(&self) -> MutexGuard<'_, Stage> {
        self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set_promotion(&self, promotion: Option<PromotionStatus>) {
        *self
            .promotion
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = promotion;
    }

    /// Hands `event` to the role machine, and waits until what follows from it is done.
    pub(crate) async fn happen(&self, event: Event) -> Result<(), ShellError> {
        let (reply, answer) = oneshot::channel();
        let asked = Asked {
            event,
            reply: Some(reply),
        };
        self.shell
            .send(asked)
            .await
            .map_err(|_| ShellError::Stopped)?;
        answer.await.map_err(|_| ShellError::Stopped)?
    }

    /// Returns a client of a configured node.
    pub(crate) fn peer(self: &Arc<Self>, name: &NodeName) -> Option<PeerClient> {
        let config = self.config();
        let node = config.node(name)?;
        let client = PeerClient::new(
            node.name.clone(),
            node.address,
            self.identity.clone(),
            self.clone(),
        );
        Some(client.or_at(node.second_address))
    }

    /// Returns the client that this node keeps of a configured node: its connections are open already.
    pub(crate) fn client(self: &Arc<Self>, name: &NodeName) -> Option<Arc<PeerClient>> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        let config = self.config();
        // An address may have changed with a reload.
        clients.retain(|name, client| {
            config.node(name).is_some_and(|node| {
                node.address == client.address() && node.second_address == client.second_address()
            })
        });
        if let Some(client) = clients.get(name) {
            return Some(client.clone());
        }
        let client = Arc::new(self.peer(name)?);
        clients.insert(name.clone(), client.clone());
        Some(client)
    }

    /// Returns a connection to the local Postgres.
    pub(crate) async fn sql(
        cluster: Option<Cluster>,
        database: Option<String>,
    ) -> Result<tokio_postgres::Client, PostgresError> {
        match &cluster {
            Some(cluster) => {
                let database = database.as_deref().unwrap_or(&cluster.database);
                understudy_replication::postgres::connect(cluster, database).await
            }
            None => Err(PostgresError::Late {
                what: "answer, as no [postgres] is configured",
            }),
        }
    }
}

impl Lineage for Node {
    fn epoch(&self) -> Epoch {
        self.role.borrow().role.epoch().clone()
    }

    fn role(&self) -> &'static str {
        self.role.borrow().role.name().as_str()
    }

    fn heard(&self, from: &NodeName, epoch: &Epoch) {
        let is_news = match &self.role.borrow().role {
            Role::Standby {
                epoch: ours,
                proposed,
                ..
            } => epoch > ours && proposed.as_ref() != Some(epoch),
            role @ (Role::Primary { .. }
            | Role::Returning { .. }
            | Role::Promoting { .. }
            | Role::Fenced { .. }) => epoch > role.epoch(),
        };
        if is_news {
            tracing::warn!(%from, %epoch, "heard of a higher epoch");
            let asked = Asked {
                event: Event::Heard(epoch.clone()),
                reply: None,
            };
            // When the shell is busy with as many others, the next message will say so again.
            let _full = self.shell.try_send(asked).is_err();
        }
    }
}
