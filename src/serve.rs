//! `understudy serve`: runs the node.

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use understudy_config::{Config, LoadError, Loaded, Local};
use understudy_monitor::checks::Checks;
use understudy_primary::address::Address;
use understudy_primary::jobs::Jobs;
use understudy_primary::services::{Hooks, Services, ServicesError};
use understudy_replication::event::{Events, Severity};
use understudy_replication::position::Lsn;
use understudy_replication::postgres::{Cluster, History};
use understudy_replication::role::{Event, Role};
use understudy_replication::store::{Stop, Stopper};
use understudy_replication::transport::{Identity, PeerServer};
use understudy_replication::{durable, error_chain};
use understudy_standby::index::{Ancestry, Database, Indexes, Tenure, Writer};

use crate::failure::{Failure, Kind};
use crate::kv_clients::Clients;
use crate::node::{Node, Parts, Stage};
use crate::role_file::RoleRecord;
use crate::{Place, shell};

/// The tasks of a node have this long to end in peace.
const STOP_PATIENCE: Duration = Duration::from_secs(20);

/// Runs the node until SIGTERM or SIGINT.
#[derive(clap::Args, Debug)]
pub(crate) struct Serve {}

/// Loads the configuration; what is wrong with it is told with its place.
pub(crate) fn load(place: &Place) -> Result<Loaded, Failure> {
    understudy_config::load(&place.cluster_file(), &place.node_file()).map_err(invalid)
}

/// Loads what is local to this machine: enough to ask the daemon, which may run on its last good
/// configuration while somebody edits the next one.
pub(crate) fn load_local(place: &Place) -> Result<Local, Failure> {
    understudy_config::load_local(&place.node_file()).map_err(invalid)
}

fn invalid(error: LoadError) -> Failure {
    match error {
        LoadError::Invalid(problems) => Failure::usage(format!(
            "the configuration is not valid\n{}",
            problems.render(false).trim_end()
        )),
        LoadError::Read { file, source } => {
            Failure::usage(format!("cannot read {}: {source}", file.display())).hint(
                "make a cluster with `understudy init`, join one with `understudy join`, or name \
                 the folder of the configuration with --config",
            )
        }
    }
}

/// Makes sure that one process works on the state; held as long as the file is.
pub(crate) fn lock(state_dir: &Path) -> Result<File, Failure> {
    let failed = |error: &dyn std::fmt::Display| {
        Failure::failed(format!("cannot lock {}: {error}", state_dir.display()))
    };
    durable::create_directory(state_dir, 0o755).map_err(|error| failed(&error))?;
    let file = File::create(state_dir.join("lock")).map_err(|error| failed(&error))?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(Failure::refused(format!(
            "another understudy works on {}",
            state_dir.display()
        ))
        .hint("stop it first, or use another state_dir")),
        Err(error) => Err(failed(&error)),
    }
}

/// Finds the Postgres cluster of the configuration, on this node's address. What goes wrong with the
/// operator's own commands for it is told as `events`.
pub(crate) fn cluster(
    config: &Config,
    local: &Local,
    events: Option<&Events>,
) -> Result<Option<Cluster>, Failure> {
    let Some(postgres) = &config.postgres else {
        return Ok(None);
    };
    let me = config.node(&local.name).ok_or_else(|| {
        Failure::usage(format!("node {} is not in the configuration", local.name))
    })?;
    let mut cluster = Cluster::find(
        postgres,
        local,
        me.address.ip(),
        config
            .peers(&local.name)
            .map(|peer| peer.name.clone())
            .collect(),
    )?;
    cluster.environment = environment(config, local);
    cluster.listens_everywhere = config.address.is_some();
    cluster.events = events.cloned();
    Ok(Some(cluster))
}

/// Tells the indexes which timelines this node's Postgres has been on.
pub(crate) fn ancestry(cluster: Option<Cluster>) -> Ancestry {
    Arc::new(move || {
        let Some(cluster) = &cluster else {
            return Err("no [postgres] is configured".into());
        };
        let timeline = cluster.newest_timeline();
        Ok(History {
            system_identifier: 0,
            ended: cluster.ended_timelines(timeline)?,
            timeline,
            end: Lsn::default(),
            origins: cluster.origins()?,
        })
    })
}

/// Returns what tells in which epoch this node is: by what is on disk, since it serves nothing else.
fn tenure(local: &Local) -> Tenure {
    let (state_dir, name) = (local.state_dir.clone(), local.name.clone());
    Arc::new(move || {
        let record = RoleRecord::load(&state_dir, &name)?;
        let record = record.ok_or_else(|| format!("node {name} has no role yet"))?;
        let is_primary = match record.role {
            Role::Primary { .. } | Role::Promoting { .. } => true,
            Role::Returning { .. } | Role::Standby { .. } | Role::Fenced { .. } => false,
        };
        Ok(Writer {
            epoch: record.role.epoch().clone(),
            is_primary,
        })
    })
}

/// Returns what commands of the configuration find in their environment.
pub(crate) fn environment(config: &Config, local: &Local) -> Vec<(String, String)> {
    let mut environment = vec![
        ("UNDERSTUDY_CLUSTER".to_owned(), config.cluster.name.clone()),
        ("UNDERSTUDY_NODE".to_owned(), local.name.to_string()),
        (
            "UNDERSTUDY_ROOT".to_owned(),
            local.root.display().to_string(),
        ),
    ];
    if let Some(me) = config.node(&local.name) {
        environment.push(("UNDERSTUDY_IP".to_owned(), me.address.ip().to_string()));
    }
    environment
}

/// Runs the node until SIGTERM or SIGINT.
pub(crate) async fn run(place: &Place) -> Result<(), Failure> {
    let loaded = load(place)?;
    let lock = lock(&loaded.local.state_dir)?;
    run_locked(place, loaded, lock).await
}

/// Runs the node, with the lock on its state already held.
pub(crate) async fn run_locked(place: &Place, loaded: Loaded, lock: File) -> Result<(), Failure> {
    let Loaded { config, local, .. } = loaded;
    let role = RoleRecord::load(&local.state_dir, &local.name)?.ok_or_else(|| {
        Failure::usage(format!("node {} has no role yet", local.name))
            .hint("`understudy init` makes the first node of a cluster, `understudy join` another")
    })?;
    let me = config.node(&local.name).cloned().ok_or_else(|| {
        Failure::usage(format!("node {} is not in the configuration", local.name))
    })?;
    let events = Events::open(&local.state_dir.join("events.jsonl"))?;
    let identity = Identity::load(&local.pki_dir)?;
    let cluster = cluster(&config, &local, Some(&events))?;
    if let Some(cluster) = &cluster {
        // Until it is settled what this node is, no primary's server starts here, whoever starts it.
        cluster.disavow()?;
    }
    // Copies of the application's data pass through here.
    durable::create_directory(&local.state_dir.join("files"), 0o700)?;
    let environment = environment(&config, &local);
    let services = Services::new(
        &config.services,
        environment.clone(),
        events.clone(),
        &local.state_dir,
    );
    let services = Arc::new(services.map_err(no_services)?);
    let jobs = Jobs::new(&config.jobs, &environment, events.clone(), &local.state_dir);
    let jobs = Arc::new(jobs.map_err(no_services)?);
    let hooks = Hooks::new(config.hooks.as_ref(), environment.clone(), events.clone());
    let hooks = Arc::new(hooks.map_err(no_services)?);
    let address = client_address(&config, &local, &events)?;
    let checked = cluster.clone();
    let checks = Checks::new(
        &config,
        &local,
        environment.clone(),
        events.clone(),
        Arc::new(move |database| {
            let cluster = checked.clone();
            Box::pin(async move { Ok(Node::sql(cluster, database).await?) })
        }),
    );
    let sql_cluster = cluster.clone();
    let indexes = Arc::new(Indexes::open(
        &config.indexes,
        local.state_dir.join("index"),
        Database {
            connect: Arc::new(move |database| {
                let cluster = sql_cluster.clone();
                Box::pin(async move { Ok(Node::sql(cluster, database).await?) })
            }),
            ancestry: ancestry(cluster.clone()),
            tenure: tenure(&local),
        },
        environment,
        events.clone(),
    ));
    let mut peers = Vec::new();
    for address in me.addresses() {
        peers.push(bind(address, "peers").await?);
    }
    let monitor = bind(local.monitor_listen, "the monitor").await?;
    let clients = Clients::listen(&config, &local).await?;
    let (shell_sender, shell_events) = mpsc::channel(shell::EVENTS_WAITING_MAX);
    let node = Node::new(Parts {
        local,
        config,
        config_file: place.cluster_file(),
        node_file: place.node_file(),
        events: events.clone(),
        identity: identity.clone(),
        services,
        jobs,
        hooks,
        address,
        checks,
        indexes: indexes.clone(),
        cluster,
        role,
        shell: shell_sender,
    });
    crate::drill::clear_leftovers(&node);
    crate::peer_api::refresh(&node);
    crate::promotion::remember(&node);
    node.heed_pause();
    events.record(
        Severity::Info,
        "started",
        format!(
            "node {} started, {}",
            node.me(),
            node.role().name().as_str()
        ),
    );

    // A former primary that died with the address gives it up before it does anything else. One that was
    // primary and may still be waits for a word, and leaves all as it is meanwhile.
    if !matches!(node.role(), Role::Primary { .. } | Role::Returning { .. }) {
        crate::front::give_up_address(&node).await;
    }
    let (stopper, stop) = Stopper::new();
    let mut tasks: JoinSet<io::Result<()>> = JoinSet::new();
    for listener in peers {
        let named = node.clone();
        let server = PeerServer {
            identity: identity.clone(),
            peers: node.peer_routes.clone(),
            anonymous: crate::join_api::routes(node.clone()),
            lineage: node.clone(),
            is_named: Box::new(move |name| named.config().node(name).is_some()),
            events: events.clone(),
            strangers: PeerServer::strangers(),
        };
        tasks.spawn(server.serve(listener, stop.clone()));
    }
    let serving = node.clone();
    let search = understudy_standby::index::routes(
        indexes,
        Arc::new(move || crate::admin_api::acting_primary(&serving)),
    );
    let router = understudy_monitor::router(node.clone())
        .merge(understudy_monitor::kv_router(node.clone()))
        .merge(search);
    tasks.spawn(understudy_monitor::serve(monitor, router, stop.clone()));
    if let Some(clients) = clients {
        let (node, stop) = (node.clone(), stop.clone());
        tasks.spawn(async move {
            clients.serve(node, stop).await;
            Ok(())
        });
    }
    let (admin_node, admin_stop) = (node.clone(), stop.clone());
    let socket = node.local.socket();
    // Here and not in the task: who is told that the node is ready finds the socket.
    let admin = crate::admin_api::listen(&socket).map_err(|error| {
        Failure::failed(format!(
            "cannot make the admin socket {}: {error}",
            socket.display()
        ))
    })?;
    tasks.spawn(async move { crate::admin_api::serve(admin_node, admin, admin_stop).await });
    let (greeting, greeting_stop) = (node.clone(), stop.clone());
    tasks.spawn(async move {
        crate::links::greet_always(greeting, greeting_stop).await;
        Ok(())
    });
    let (asking, asking_stop) = (node.clone(), stop.clone());
    tasks.spawn(async move {
        crate::preflight::ask_always(asking, asking_stop).await;
        Ok(())
    });
    let (services, services_stop) = (node.services.clone(), stop.clone());
    tasks.spawn(async move {
        services.watch(services_stop).await;
        Ok(())
    });
    let (jobs, jobs_stop) = (node.jobs.clone(), stop.clone());
    let place = node.services.settled();
    tasks.spawn(async move {
        jobs.run(place, jobs_stop).await;
        Ok(())
    });
    let (drilling, drill_stop) = (node.clone(), stop.clone());
    tasks.spawn(async move {
        crate::drill::by_schedule(drilling, drill_stop).await;
        Ok(())
    });
    let (checking, checks, checks_stop) = (node.clone(), node.checks.clone(), stop.clone());
    tasks.spawn(async move {
        let role = Arc::new(move || checking.role().name());
        checks.run(role, checks_stop).await;
        Ok(())
    });
    if let Some(address) = &node.address {
        let (address, stop) = (address.clone(), stop.clone());
        tasks.spawn(async move {
            address.watch(stop).await;
            Ok(())
        });
    }
    let (indexes, indexes_stop) = (node.indexes.clone(), stop.clone());
    tasks.spawn(async move {
        indexes.keep_warm(indexes_stop).await;
        Ok(())
    });
    let (shell_node, shell_stop) = (node.clone(), stop.clone());
    tasks.spawn(async move {
        shell::run(shell_node, shell_events, shell_stop).await;
        Ok(())
    });

    tell_systemd(&[sd_notify::NotifyState::Ready]);
    let failure = attend(&node, &stop, &mut tasks).await;
    tell_systemd(&[sd_notify::NotifyState::Stopping]);
    stopper.stop();
    let ended = async {
        // What it has made goes while there is somebody to remove it.
        let _no_drills = node.drills.bar().await;
        match node.set_stage(Stage::Idle) {
            Stage::Primary(run) => run.stop().await,
            Stage::Standby(run) => run.stop().await,
            Stage::Idle => {}
        }
        while tasks.join_next().await.is_some() {}
    };
    if tokio::time::timeout(STOP_PATIENCE, ended).await.is_err() {
        tracing::warn!("some tasks did not end in time, and are dropped");
        // They may still write: the place is another's only once this process has ended.
        std::mem::forget(lock);
        return match failure {
            Some(failure) => Err(failure),
            None => Ok(()),
        };
    }
    // Another daemon may take the place from here on.
    let _gone = std::fs::remove_file(&socket).is_err();
    events.record(
        Severity::Info,
        "stopped",
        format!("node {} stopped", node.me()),
    );
    drop(lock);
    match failure {
        Some(failure) => Err(failure),
        None => Ok(()),
    }
}

/// Says why the services cannot be looked after: what the configuration names must be there.
fn no_services(error: ServicesError) -> Failure {
    let failure = Failure::of(&error);
    match error {
        ServicesError::User { .. } => Failure {
            kind: Kind::Usage,
            ..failure
        }
        .hint("make the user, or correct `user` in understudy.toml"),
        ServicesError::State(_) => failure,
    }
}

/// Waits for signals, and for a task that ends although nobody stopped it.
async fn attend(
    node: &Arc<Node>,
    stop: &Stop,
    tasks: &mut JoinSet<io::Result<()>>,
) -> Option<Failure> {
    let signals = (
        signal(SignalKind::terminate()),
        signal(SignalKind::interrupt()),
        signal(SignalKind::hangup()),
    );
    let (Ok(mut terminate), Ok(mut interrupt), Ok(mut hangup)) = signals else {
        return Some(Failure::failed("cannot listen for signals"));
    };
    loop {
        tokio::select! {
            _ = terminate.recv() => return None,
            _ = interrupt.recv() => return None,
            _ = hangup.recv() => reload(node).await,
            ended = tasks.join_next() => {
                let reason = match ended {
                    Some(Ok(Ok(()))) | None => "a task of the node ended".to_owned(),
                    Some(Ok(Err(error))) => error.to_string(),
                    Some(Err(error)) => error.to_string(),
                };
                return Some(Failure::failed(reason));
            }
            () = stop.wait() => return None,
        }
    }
}

/// Reads the configuration again; a mistake leaves the last good one in force.
async fn reload(node: &Arc<Node>) {
    tell_systemd(&[sd_notify::NotifyState::Reloading]);
    match understudy_config::load(&node.config_file, &node.node_file) {
        Ok(loaded) => {
            let before = node.config();
            let needs_restart = loaded.local != node.local || {
                let mut same = loaded.config.clone();
                same.nodes.clone_from(&before.nodes);
                same != *before
            };
            node.set_config(loaded.config);
            node.set_config_problem(None);
            for event in shell::left(node) {
                if let Err(error) = node.happen(event).await {
                    tracing::warn!(%error, "a standby that left is not forgotten");
                }
            }
            // The address of the primary may be another one.
            if matches!(node.role(), Role::Standby { .. })
                && let Err(error) = node.happen(Event::Started).await
            {
                tracing::warn!(%error, "the primary is not followed at its new address");
            }
            let (severity, word) = if needs_restart {
                (
                    Severity::Warning,
                    "; what changed beyond the nodes takes effect with a restart",
                )
            } else {
                (Severity::Info, "")
            };
            node.events.record(
                severity,
                "reloaded",
                format!("the configuration was read again{word}"),
            );
        }
        Err(error) => {
            let problem = format!(
                "the configuration is not valid, the last good one stays in force: {}",
                error_chain(&error)
            );
            node.set_config_problem(Some(format!(
                "{problem}; mend it before the next start, see `understudy config check`"
            )));
            node.events
                .record(Severity::Error, "reload_failed", problem);
        }
    }
    tell_systemd(&[sd_notify::NotifyState::Ready]);
}

/// Returns the address that clients use, if understudy moves one.
fn client_address(
    config: &Config,
    local: &Local,
    events: &Events,
) -> Result<Option<Arc<Address>>, Failure> {
    let Some(address) = &config.address else {
        return Ok(None);
    };
    let address = Address::new(address, local, events.clone()).map_err(|error| {
        let hint = error.hint();
        Failure::failed(error_chain(&error)).hint(hint)
    })?;
    Ok(Some(Arc::new(address)))
}

pub(crate) async fn bind(address: SocketAddr, what: &str) -> Result<TcpListener, Failure> {
    TcpListener::bind(address).await.map_err(|error| {
        let hint = if error.kind() == io::ErrorKind::AddrInUse {
            format!(
                "another program listens there; find it with `ss -ltnp sport = :{}`",
                address.port()
            )
        } else if error.kind() == io::ErrorKind::AddrNotAvailable {
            format!(
                "this machine has no address {}; see [[node]] in understudy.toml",
                address.ip()
            )
        } else {
            "see [[node]] in understudy.toml, [monitor] and [kv] in node.toml".to_owned()
        };
        Failure::new(
            Kind::Failed,
            format!("cannot listen for {what} on {address}: {error}"),
        )
        .hint(hint)
    })
}

fn tell_systemd(states: &[sd_notify::NotifyState<'_>]) {
    // Without systemd there is nobody to tell.
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "systemd was not told");
    }
}
