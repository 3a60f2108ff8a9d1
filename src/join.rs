//! `understudy join`: gets a certificate, copies every store, and streams.
//!
//! Every stage can be repeated: a node that has its certificate goes on with copying, and each store
//! goes on from what is there.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use understudy_config::{Loaded, NodeName};
use understudy_replication::durable;
use understudy_replication::epoch::Epoch;
use understudy_replication::event::{Events, Severity};
use understudy_replication::link::Hello;
use understudy_replication::role::Role;
use understudy_replication::status::RoleName;
use understudy_replication::transport::{Identity, Lineage, PeerClient, redeem};
use understudy_replication::trust::{self, Issued, JoinAnswer, JoinRequest, Token};

use crate::Place;
use crate::failure::Failure;
use crate::init::LocalArguments;
use crate::output::{print, tell};
use crate::progress::Display;
use crate::role_file::RoleRecord;
use crate::serve;
use crate::stores::Makings;

/// The port of the peers, unless the operator says otherwise.
const PEER_PORT: u16 = 7400;

/// Join a cluster: get a certificate, copy every store, and stream
#[derive(clap::Args, Debug)]
pub(crate) struct Join {
    /// The address that `understudy invite` printed; not needed again once the node has its certificate
    url: Option<String>,
    /// The token that `understudy invite` printed; not needed again once the node has its certificate
    #[arg(long, env = "UNDERSTUDY_TOKEN", hide_env_values = true)]
    token: Option<Token>,
    /// Where the other nodes reach this one (default: its address towards the primary, port 7400)
    #[arg(long, value_name = "IP:PORT")]
    address: Option<SocketAddr>,
    #[command(flatten)]
    local: LocalArguments,
    /// Go on as the daemon
    #[arg(long)]
    pub(crate) serve: bool,
}

impl Join {
    pub(crate) async fn run(self, place: &Place) -> Result<(), Failure> {
        let address = self.url.as_deref().map(parse_url).transpose()?;
        let is_enrolled = place.folder().join("pki").join(trust::CA_KEY).exists();
        if is_enrolled {
            tell("This node has its certificate already; going on with what is missing.");
        } else {
            let token = self.token.as_ref().ok_or_else(|| {
                Failure::usage("the token is missing")
                    .hint("get one with `understudy invite NAME` on the primary")
            })?;
            let address = address.ok_or_else(|| {
                Failure::usage("the address of a node of the cluster is missing")
                    .hint("get it with `understudy invite NAME` on the primary")
            })?;
            self.enrol(place, address, token).await?;
        }
        let loaded = serve::load(place)?;
        let lock = serve::lock(&loaded.local.state_dir)?;
        seed(&loaded).await?;
        if self.serve {
            return serve::run_locked(place, loaded, lock).await;
        }
        print(
            "Every store is here. Start the node with `understudy serve` (or `systemctl start understudy`).",
        );
        Ok(())
    }

    /// Gets the certificate and the configuration.
    async fn enrol(
        &self,
        place: &Place,
        address: SocketAddr,
        token: &Token,
    ) -> Result<(), Failure> {
        let name = token.node.clone();
        let (key, request) = trust::signing_request(&name)?;
        let answer: JoinAnswer = redeem(address, token, |local| {
            let request = JoinRequest {
                node: name.clone(),
                address: self
                    .address
                    .unwrap_or_else(|| SocketAddr::new(local.ip(), PEER_PORT)),
                secret: encode(&token.secret),
                request,
            };
            serde_json::to_vec(&request).unwrap_or_default()
        })
        .await?;
        durable::create_directory(place.folder(), 0o755)?;
        durable::write(
            &place.cluster_file(),
            answer.configuration.as_bytes(),
            0o644,
        )?;
        if !place.node_file().exists() {
            durable::write(
                &place.node_file(),
                self.local.node_toml(&name).as_bytes(),
                0o644,
            )?;
        }
        let issued = Issued {
            certificate: answer.certificate,
            key,
        };
        // Writes the authority's key last: with it, the node is enrolled.
        trust::store(
            &place.folder().join("pki"),
            &answer.authority,
            &answer.authority_key,
            &issued,
        )?;
        tell(&format!("Node {name} has its certificate."));
        Ok(())
    }
}

fn encode(secret: &[u8]) -> String {
    use base64::Engine;
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(secret)
}

fn parse_url(url: &str) -> Result<SocketAddr, Failure> {
    let text = url
        .strip_prefix("https://")
        .unwrap_or(url)
        .trim_end_matches('/');
    text.parse().map_err(|_| {
        Failure::usage(format!("`{url}` is not the address of a node"))
            .hint("expected https://IP:PORT, as `understudy invite` prints it")
    })
}

/// The lineage of a node that is not running yet: it learns the primary's epoch.
struct Joining(std::sync::Mutex<Epoch>);

impl Lineage for Joining {
    fn epoch(&self) -> Epoch {
        self.0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .clone()
    }

    fn role(&self) -> &'static str {
        "joining"
    }

    fn heard(&self, _: &NodeName, epoch: &Epoch) {
        let mut ours = self
            .0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if *epoch > *ours {
            *ours = epoch.clone();
        }
    }
}

/// Copies every store, and records this node as a standby.
async fn seed(loaded: &Loaded) -> Result<(), Failure> {
    let (config, local) = (Arc::new(loaded.config.clone()), loaded.local.clone());
    let me = local.name.clone();
    let record = RoleRecord::load(&local.state_dir, &me)?;
    if let Some(record) = &record
        && record.role.name() != RoleName::Standby
    {
        return Err(Failure::refused(format!(
            "node {me} is {} already, in epoch {}",
            record.role.name().as_str(),
            record.role.epoch()
        ))
        .hint(
            "to make a superseded node a standby, start its daemon with `understudy serve` and run \
             `understudy rejoin`",
        ));
    }
    let events = Events::open(&local.state_dir.join("events.jsonl"))?;
    let identity = Identity::load(&local.pki_dir)?;
    // Below every epoch that a node has ever opened.
    let first = Epoch {
        number: 0,
        node: me.clone(),
    };
    let epoch = record.map_or(first, |record| record.role.epoch().clone());
    let lineage = Arc::new(Joining(std::sync::Mutex::new(epoch)));
    let primary = find_primary(loaded, &identity, &lineage).await?;
    durable::create_directory(&local.state_dir.join("files"), 0o700)?;
    let makings = Makings {
        cluster: serve::cluster(&config, &local, Some(&events))?,
        config,
        kv: Makings::kv_slot(&local),
        standbys: Arc::new(|| 0),
        local: local.clone(),
        events: events.clone(),
    };
    let name = me.clone();
    let receivers = tokio::task::spawn_blocking(move || makings.receivers(&name))
        .await?
        .map_err(Failure::failed)?
        .all;
    let display = Display::new();
    for receiver in &receivers {
        let store = &receiver.id().name;
        tell(&format!("Store {store}:"));
        receiver.seed(&primary, &display).await.map_err(|error| {
            let error = understudy_replication::error_chain(error.as_ref());
            Failure::failed(format!("cannot copy store {store}: {error}"))
                .hint("mend the cause, then run the same command again: it goes on from here")
        })?;
    }
    // The primary remembers us before we call ourselves its standby: from then on we could be
    // promoted, and it must ask after a restart.
    let epoch: Epoch = primary
        .call("/peer/joined", &(), Duration::from_secs(10))
        .await?;
    let role = Role::Standby {
        epoch,
        primary: primary.node().clone(),
        proposed: None,
    };
    RoleRecord::new(me.clone(), role).store(&local.state_dir)?;
    events.record(
        Severity::Info,
        "seeded",
        format!(
            "node {me} has a copy of every store of node {}",
            primary.node()
        ),
    );
    Ok(())
}

/// Finds the node that is primary now: it need not be the one that issued the token.
async fn find_primary(
    loaded: &Loaded,
    identity: &Identity,
    lineage: &Arc<Joining>,
) -> Result<PeerClient, Failure> {
    let mut reasons = Vec::new();
    for peer in loaded.config.peers(&loaded.local.name) {
        let lineage: Arc<dyn Lineage> = lineage.clone();
        let client = PeerClient::new(peer.name.clone(), peer.address, identity.clone(), lineage);
        match crate::peer_api::hello(&client).await {
            Ok(Hello {
                role: RoleName::Primary,
                ..
            }) => return Ok(client),
            Ok(hello) => reasons.push(format!("node {} is {}", hello.node, hello.role.as_str())),
            Err(error) => reasons.push(understudy_replication::error_chain(&error)),
        }
    }
    Err(
        Failure::failed(format!("no primary answers: {}", reasons.join("; ")))
            .hint("start it with `understudy serve`, and run the same command again"),
    )
}
