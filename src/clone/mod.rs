//! `understudy clone`: a copy of a standby that is a cluster of its own, to try things on.
//!
//! It can be taken for no node of the cluster: it has another cluster's name, an authority of its own, which
//! no node trusts, and its Postgres writes on a timeline that no other has.
//!
//! ```text
//! DIR/root/…       the stores, at the paths of the configuration beneath another root
//! DIR/state/       its role, the key-value store, the history of the settings
//! DIR/etc/         understudy.toml, node.toml, pki/: for `understudy --config DIR/etc …`
//! DIR/clone.json            the same as the next: what is in DIR is this clone, and may be removed
//! STATE/clones/NAME.json    where it is; written last
//! ```

mod remove;

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Subcommand;
use hyper::Method;
use serde::{Deserialize, Serialize};
use understudy_config::detached::{Detached, detached};
use understudy_config::{Local, NodeName, StoreName, template};
use understudy_replication::durable;
use understudy_replication::event::Severity;
use understudy_replication::role::Role;
use understudy_replication::status::CloneStatus;
use understudy_replication::store::{Progress, Stop, Stopper, Unit};
use understudy_replication::trust::{self, Authority};
use understudy_replication::wall_time::WallTime;
use understudy_standby::copy::{
    CheckOutcome, ClusterCopy, Originals, Pace, Place as CopyPlace, Purpose, Served, StoreCopied,
    own_tablespaces, remove_tree,
};
use understudy_standby::rehearsal::{self, Seal};

use crate::Place;
use crate::drill::{MYSELF, originals, pass_on, stop_with_the_role};
use crate::failure::Failure;
use crate::node::Node;
use crate::output::{print, print_json};
use crate::role_file::RoleRecord;
use crate::serve::load_local;

/// The name of the only node of a clone.
const NODE: &str = "test";

/// Where the socket of its Postgres is, beneath its root.
const SOCKET_DIR: &str = "/socket";

/// Recovering and promoting its Postgres may take this long, each.
const RECOVER_PATIENCE: Duration = Duration::from_secs(3600);

/// Make a copy of this standby that is a cluster of its own, to try things on
#[derive(clap::Args, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Clone {
    #[command(subcommand)]
    verb: Option<Verb>,
    /// The name of the copy, such as `test`
    #[arg(long, value_name = "NAME")]
    to: Option<StoreName>,
    /// Make it in this folder, which must be empty or absent
    #[arg(long, value_name = "DIR")]
    at: Option<PathBuf>,
    /// Give it the services, too: they must be able to run beside the node's own
    #[arg(long)]
    with_services: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Subcommand, Debug)]
enum Verb {
    /// List the clones of this node
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Remove a clone that does not run, with all that was written to it
    Remove {
        /// Its name
        name: StoreName,
        /// First stop what still runs of it: its daemon, its services, its Postgres
        #[arg(long)]
        stop: bool,
    },
}

/// What is asked for.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Order {
    name: StoreName,
    at: Option<PathBuf>,
    with_services: bool,
}

/// What is known of a clone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Made {
    version: u32,
    name: StoreName,
    /// Its folder.
    folder: PathBuf,
    /// The name of its cluster.
    cluster: String,
    /// The name of the cluster that it is a copy of; an older version did not write it down.
    #[serde(default)]
    of: Option<String>,
    /// The node that made it, likewise.
    #[serde(default)]
    node: Option<NodeName>,
    made: WallTime,
    /// Where peers would reach it; nobody does.
    peers: SocketAddr,
    monitor: SocketAddr,
    /// Where clients of its key-value store reach it.
    kv: Option<SocketAddr>,
    /// Where clients of its Postgres reach it, once it serves.
    postgres: Option<SocketAddr>,
    stores: Vec<StoreCopied>,
}

impl Made {
    fn etc(&self) -> PathBuf {
        self.folder.join("etc")
    }
}

impl Clone {
    pub(crate) async fn run(self, place: &Place) -> Result<(), Failure> {
        let local = load_local(place)?;
        match self.verb {
            Some(Verb::List { json }) => {
                let all = list(&local.state_dir)?;
                if json {
                    return print_json(&all);
                }
                for made in all {
                    let text = format!("{:20} {}  {}", made.name, made.made, made.folder.display());
                    print(&text);
                }
                Ok(())
            }
            Some(Verb::Remove { name, stop }) => {
                remove::remove(&local.state_dir, &name, stop).await?;
                print(&format!("clone {name} is removed"));
                Ok(())
            }
            None => {
                let name = self.to.ok_or_else(|| {
                    Failure::usage("the copy needs a name: `understudy clone --to test`")
                })?;
                let at = self.at.map(std::path::absolute).transpose()?;
                let order = Order {
                    name,
                    at,
                    with_services: self.with_services,
                };
                let made: Made =
                    crate::admin::ask(&local.socket(), Method::POST, "/clone", &order).await?;
                if self.json {
                    return print_json(&made);
                }
                print(&text(&made));
                Ok(())
            }
        }
    }
}

fn text(made: &Made) -> String {
    let etc = made.etc().display().to_string();
    let mut text = format!(
        "Clone {} is made in {}: cluster {}, which no node of this one talks to.\n\
         Run it:      understudy --config {etc} serve\n\
         Look at it:  understudy --config {etc} status      (or http://{})\n",
        made.name,
        made.folder.display(),
        made.cluster,
        made.monitor
    );
    if let Some(postgres) = made.postgres {
        let socket = made.folder.join("root/socket");
        text += &format!(
            "Postgres:    {postgres}, or psql -h {} -p {}\n",
            socket.display(),
            postgres.port()
        );
    }
    if let Some(kv) = made.kv {
        text += &format!("Key-values:  {kv}\n");
    }
    text += &format!(
        "Remove it:   understudy clone remove {} --stop\n",
        made.name
    );
    text
}

fn folder(state_dir: &Path) -> PathBuf {
    state_dir.join("clones")
}

fn record(state_dir: &Path, name: &StoreName) -> PathBuf {
    folder(state_dir).join(format!("{name}.json"))
}

/// Proves that a folder holds a clone: a copy of its record. It goes last.
fn proof(folder: &Path) -> PathBuf {
    folder.join("clone.json")
}

fn list(state_dir: &Path) -> Result<Vec<Made>, Failure> {
    let folder = folder(state_dir);
    let entries = match std::fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => {
            return Err(Failure::failed(format!(
                "cannot read {}: {error}",
                folder.display()
            )));
        }
    };
    let mut all = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|it| it == "json") {
            all.push(serde_json::from_slice::<Made>(&std::fs::read(&path)?)?);
        }
    }
    all.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(all)
}

/// Returns of what the node is a clone whose state is in `state_dir`, if it is one.
pub(crate) fn origin(state_dir: &Path, cluster: &str) -> Option<CloneStatus> {
    let proof = std::fs::read(proof(state_dir.parent()?)).ok()?;
    let made: Made = serde_json::from_slice(&proof).ok()?;
    // Somebody may have made another cluster of what is there.
    (made.cluster == cluster).then_some(CloneStatus {
        name: made.name,
        of: made.of,
        node: made.node,
        made: made.made,
    })
}

/// Makes a clone of this standby.
pub(crate) async fn make(
    node: &Arc<Node>,
    order: Order,
    progress: &dyn Progress,
) -> Result<Made, Failure> {
    let originals = originals(node, "clone")?;
    let folder = order.at.clone();
    let folder = folder.unwrap_or_else(|| folder_of(&node.local, &order.name));
    check_free(node, &order.name, &folder)?;
    let (_turn, asked_to_stop) = node.drills.begin(&format!("clone {}", order.name))?;
    let (stopper, stop) = Stopper::new();
    let making = make_in(node, &order, &folder, &originals, stop, progress);
    let made = tokio::select! {
        made = making => made,
        never = pass_on(&asked_to_stop, &stopper) => match never {},
        never = stop_with_the_role(node, &stopper) => match never {},
    };
    match made {
        Ok(made) => {
            node.events.record(
                Severity::Info,
                "cloned",
                format!("clone {} was made in {}", made.name, made.folder.display()),
            );
            Ok(made)
        }
        Err(failure) => {
            let left = folder.clone();
            let removed = tokio::task::spawn_blocking(move || remove_tree(&left)).await;
            if !matches!(removed, Ok(Ok(()))) {
                tracing::warn!(folder = %folder.display(), "half a clone is left");
            }
            Err(failure)
        }
    }
}

fn folder_of(local: &Local, name: &StoreName) -> PathBuf {
    folder(&local.state_dir).join(name.as_str())
}

/// Makes sure that nothing is in the way, and that the copy would not become a part of what is copied.
fn check_free(node: &Node, name: &StoreName, at: &Path) -> Result<(), Failure> {
    if record(&node.local.state_dir, name).exists() {
        return Err(
            Failure::refused(format!("there is a clone {name} already")).hint(format!(
                "remove it with `understudy clone remove {name} --stop`, or take another name"
            )),
        );
    }
    let at = &real(at)?;
    let has_something = std::fs::read_dir(at).is_ok_and(|mut found| found.next().is_some());
    let state_dir = real(&node.local.state_dir)?;
    let is_ours = *at == real(&folder_of(&node.local, name))?;
    if !is_ours && (at.starts_with(&state_dir) || state_dir.starts_with(at)) {
        return Err(Failure::usage(format!(
            "{} overlaps with {}, where the node keeps what is its own",
            at.display(),
            state_dir.display()
        ))
        .hint("give a folder elsewhere with --at"));
    }
    if has_something && !is_ours {
        return Err(Failure::refused(format!("{} is not empty", at.display()))
            .hint("give an empty or absent folder with --at"));
    }
    let config = node.config();
    let stores = config.files.iter().map(|files| &files.path);
    let stores = stores.chain(config.postgres.iter().map(|postgres| &postgres.data_dir));
    let stores = stores.chain(config.settings.iter().flat_map(|settings| &settings.paths));
    for store in stores.map(|path| real(&node.local.resolve(path))) {
        let store = store?;
        if at.starts_with(&store) || store.starts_with(at) {
            return Err(Failure::usage(format!(
                "{} overlaps with {}, which is replicated",
                at.display(),
                store.display()
            ))
            .hint("give a folder elsewhere with --at"));
        }
    }
    Ok(())
}

/// Returns a path as it is without links, also where it does not exist yet.
fn real(path: &Path) -> Result<PathBuf, Failure> {
    for above in path.ancestors() {
        let found = match std::fs::canonicalize(above) {
            Ok(found) => found,
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => {
                let (path, error) = (above.display(), Failure::of(&error).message);
                return Err(Failure::failed(format!("cannot follow {path}: {error}")));
            }
        };
        let rest = path.strip_prefix(above).unwrap_or(Path::new(""));
        // What does not exist has no parent that `..` could lead to.
        let is_plain = rest
            .components()
            .all(|it| matches!(it, Component::Normal(_)));
        if is_plain {
            return Ok(found.join(rest));
        }
        break;
    }
    Err(Failure::usage(format!("{} leads nowhere", path.display()))
        .hint("give a path without `..` and broken links"))
}

async fn make_in(
    node: &Arc<Node>,
    order: &Order,
    folder: &Path,
    originals: &Originals,
    stop: Stop,
    progress: &dyn Progress,
) -> Result<Made, Failure> {
    let place = CopyPlace::new(folder.to_owned(), &node.local);
    let (preparing, to_prepare) = (place.clone(), originals.clone());
    progress.start("prepare", None, Unit::Items);
    let is_ours = folder == folder_of(&node.local, &order.name);
    tokio::task::spawn_blocking(move || {
        // What an attempt that was cut short has left. Elsewhere it is an operator's folder, and empty.
        if is_ours {
            remove_tree(preparing.folder())?;
        }
        rehearsal::prepare_place(&to_prepare, &preparing, 0o711)
    })
    .await??;
    progress.end("prepared");
    let ports = free_ports()?;
    let served = Served {
        port: ports.postgres.port(),
        socket_dir: place.socket(),
    };
    let pace = Arc::new(Pace::new(originals.config.drill.bandwidth, stop.clone()));
    let mut stores = Vec::new();
    for id in originals.ids() {
        let at = (&place, &served, Purpose::Test);
        let (copied, checks) = originals.copy(&id, at, &pace, progress).await?;
        progress.end(&format!("copied {}", id.name));
        if let Some(check) = checks.iter().find(|it| it.outcome == CheckOutcome::Failed) {
            let (what, why) = (&check.what, &check.detail);
            return Err(
                Failure::failed(format!("the copy is not sound: {what}: {why}"))
                    .hint("see `understudy verify`; then try again"),
            );
        }
        stores.push(copied);
    }
    if let Some(cluster) = &originals.cluster {
        let copy = ClusterCopy::new(cluster, &place, served);
        let walls = rehearsal::walls(originals, &place);
        let mut seal = Seal::make(MYSELF, &walls).await?;
        let recovered = tokio::select! {
            recovered = recover(&mut seal, &copy, progress) => recovered,
            () = stop.wait() => Err(Failure::failed("the clone was broken off")),
        };
        if !seal.end().await {
            return Err(Failure::failed("the sealed room of the clone did not end"));
        }
        recovered?;
        let (data_dir, within) = (copy.data_dir, place.clone());
        tokio::task::spawn_blocking(move || own_tablespaces(&data_dir, &within)).await??;
    }
    if stop.is_stopped() {
        return Err(Failure::failed("the clone was broken off"));
    }
    let made = Made {
        version: 1,
        name: order.name.clone(),
        folder: folder.to_owned(),
        cluster: cluster_name(&originals.config.cluster.name, &order.name),
        of: Some(originals.config.cluster.name.clone()),
        node: Some(node.me().clone()),
        made: WallTime::now(),
        peers: ports.peers,
        monitor: ports.monitor,
        kv: originals.config.kv.is_some().then_some(ports.kv),
        postgres: originals.cluster.is_some().then_some(ports.postgres),
        stores,
    };
    let (writing, to_write) = (node.clone(), (made.clone(), order.with_services));
    let config = originals.config.clone();
    tokio::task::spawn_blocking(move || {
        let (made, with_services) = to_write;
        write(&writing, &config, &made, &ports, with_services)
    })
    .await??;
    Ok(made)
}

/// Makes its Postgres a primary on a timeline of its own, and stops it in peace.
async fn recover(
    seal: &mut Seal,
    copy: &ClusterCopy,
    progress: &dyn Progress,
) -> Result<(), Failure> {
    progress.start("recover postgres", None, Unit::Items);
    rehearsal::recover(seal, copy, RECOVER_PATIENCE).await?;
    rehearsal::take_over(seal, copy, RECOVER_PATIENCE).await?;
    rehearsal::settle(copy).await?;
    rehearsal::stop(seal, copy).await?;
    progress.end("postgres is recovered, on a timeline of its own");
    Ok(())
}

/// Returns a name that no cluster has which this one knows.
fn cluster_name(cluster: &str, name: &StoreName) -> String {
    let long = format!("{cluster}-{name}");
    if long.parse::<StoreName>().is_ok() {
        return long;
    }
    // Too long together. The original's own name it must not have.
    if name.as_str() == cluster {
        "clone".to_owned()
    } else {
        name.to_string()
    }
}

/// Where a clone listens: on loopback only.
#[derive(Clone, Copy, Debug)]
struct Ports {
    peers: SocketAddr,
    monitor: SocketAddr,
    kv: SocketAddr,
    postgres: SocketAddr,
}

fn free_ports() -> Result<Ports, Failure> {
    // All are held before any is let go, so that they differ.
    let bind = || TcpListener::bind(("127.0.0.1", 0));
    let held = [bind()?, bind()?, bind()?, bind()?];
    let [peers, monitor, kv, postgres] = held.each_ref().map(TcpListener::local_addr);
    Ok(Ports {
        peers: peers?,
        monitor: monitor?,
        kv: kv?,
        postgres: postgres?,
    })
}

/// Writes what makes a node of the copy: its role comes next to last, and that there is a clone comes last.
fn write(
    node: &Node,
    config: &understudy_config::Config,
    made: &Made,
    ports: &Ports,
    with_services: bool,
) -> Result<(), Failure> {
    let name: NodeName = NODE.parse()?;
    let etc = made.etc();
    let state = made.folder.join("state");
    durable::create_directory(&etc, 0o755)?;
    durable::create_directory(&state, 0o755)?;
    let cluster_toml = detached(
        config,
        &Detached {
            cluster: made.cluster.clone(),
            node: name.clone(),
            address: ports.peers,
            postgres_port: ports.postgres.port(),
            socket_dir: SOCKET_DIR.to_owned(),
            with_services,
        },
    );
    let heading = format!(
        "# Clone {} of cluster {}, made on {}: a cluster of its own, which no node of the original talks to.\n",
        made.name, config.cluster.name, made.made
    );
    let cluster_file = etc.join("understudy.toml");
    durable::write(
        &cluster_file,
        format!("{heading}{cluster_toml}").as_bytes(),
        0o644,
    )?;
    let node_toml = template::node(
        &name,
        &made.folder.join("root"),
        &state,
        &made.folder.join("run"),
        ports.monitor,
        ports.kv,
    );
    let node_file = etc.join("node.toml");
    durable::write(&node_file, node_toml.as_bytes(), 0o644)?;
    let loaded = understudy_config::load(&cluster_file, &node_file);
    loaded.map_err(|error| {
        Failure::failed(format!(
            "the configuration of the clone is not valid: {}",
            understudy_replication::error_chain(&error)
        ))
    })?;
    let authority = Authority::create(&made.cluster)?;
    let issued = authority.issue(&name, ports.peers.ip())?;
    trust::store(
        &etc.join("pki"),
        authority.certificate(),
        authority.key(),
        &issued,
    )?;
    let role = Role::Primary {
        // Above all that the stores have seen.
        epoch: node.role().epoch().superseded_by(name.clone()),
        standbys: Vec::new(),
    };
    RoleRecord::new(name, role).store(&state)?;
    durable::create_directory(&folder(&node.local.state_dir), 0o711)?;
    let json = serde_json::to_vec_pretty(made)?;
    durable::write(&proof(&made.folder), &json, 0o640)?;
    durable::write(&record(&node.local.state_dir, &made.name), &json, 0o640)?;
    Ok(())
}

/// Returns what is known of clone `test`, in a folder.
#[cfg(test)]
fn example(folder: PathBuf) -> Made {
    Made {
        version: 1,
        name: "test".parse().unwrap(),
        folder,
        cluster: "catalog-test".to_owned(),
        of: Some("catalog".to_owned()),
        node: Some("b".parse().unwrap()),
        made: WallTime::now(),
        peers: ([127, 0, 0, 1], 1).into(),
        monitor: ([127, 0, 0, 1], 2).into(),
        kv: None,
        postgres: None,
        stores: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clone_never_has_its_originals_name() {
        let name: StoreName = "test".parse().unwrap();
        assert_eq!(cluster_name("catalog", &name), "catalog-test");
        assert_eq!(cluster_name(&"c".repeat(63), &name), "test");
        let long: StoreName = "c".repeat(63).parse().unwrap();
        assert_eq!(cluster_name(&"c".repeat(63), &long), "clone");
    }

    #[test]
    fn a_clone_knows_of_what_it_is_one() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        assert_eq!(origin(&state, "catalog-test"), None);
        let made = example(folder.path().to_owned());
        std::fs::write(proof(folder.path()), serde_json::to_vec(&made).unwrap()).unwrap();
        let known = origin(&state, "catalog-test").unwrap();
        assert_eq!(known.name.as_str(), "test");
        assert_eq!(known.of.as_deref(), Some("catalog"));
        assert_eq!(origin(&state, "another"), None);
        // One that was made before it was written down of what.
        let mut made = serde_json::to_value(&made).unwrap();
        for key in ["of", "node"] {
            made.as_object_mut().unwrap().remove(key).unwrap();
        }
        std::fs::write(proof(folder.path()), made.to_string()).unwrap();
        assert_eq!(origin(&state, "catalog-test").unwrap().of, None);
    }

    #[test]
    fn a_place_is_known_by_where_it_leads() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        std::fs::create_dir_all(root.join("srv/docs")).unwrap();
        std::os::unix::fs::symlink(root.join("srv"), root.join("link")).unwrap();
        let docs = root.join("srv/docs/new/one");
        assert_eq!(real(&root.join("link/docs/new/one")).unwrap(), docs);
        assert_eq!(real(&root.join("srv/docs/../docs/new/one")).unwrap(), docs);
        assert!(real(&root.join("srv/none/../docs/new")).is_err());
    }

    #[test]
    fn the_ports_of_a_clone_differ() {
        let Ports {
            peers,
            monitor,
            kv,
            postgres,
        } = free_ports().unwrap();
        let all: std::collections::BTreeSet<_> = [peers, monitor, kv, postgres].into();
        assert_eq!(all.len(), 4);
    }
}
