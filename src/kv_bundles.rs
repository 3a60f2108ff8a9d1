//! Bundles of what was superseded, between nodes: they lie where the log was cut, which is a standby by
//! then, and are replayed on the primary.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use understudy_config::NodeName;
use understudy_replication::kv::salvage::{self, Bundle, Manifest};
use understudy_replication::transport::{PeerClient, PeerError, frames};

use crate::failure::Failure;
use crate::node::Node;
use crate::stores::Makings;
use crate::{kv_api, peer_work};

/// The list of another node's bundles is no longer, in bytes.
const LIST_BYTES_MAX: usize = 16 << 20;

/// Opening a bundle reads all of it: a peer has so long to begin its answer.
const OPENING_MAX: Duration = Duration::from_secs(120);

/// A peer that sends nothing for so long is given up.
const SILENCE_MAX: Duration = Duration::from_secs(15);

/// How many entries wait between the network and the disk.
const ENTRIES_WAITING_MAX: usize = 4;

/// The bundles of a node, the oldest first.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Bundles {
    pub(crate) bundles: Vec<Listed>,
}

/// A bundle in the list of its node.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Listed {
    /// Its name, by which it is shown and replayed.
    pub(crate) name: String,
    /// Where it is on that node.
    pub(crate) path: PathBuf,
    /// What it says of itself.
    pub(crate) manifest: Option<Manifest>,
    /// Why that cannot be read.
    pub(crate) error: Option<String>,
}

/// Returns the bundles in `folder`. Blocks.
pub(crate) fn list_in(folder: &std::path::Path) -> Result<Bundles, Failure> {
    let listed = salvage::list(folder)?.into_iter().map(|listed| {
        let (manifest, error) = match listed.manifest {
            Ok(manifest) => (Some(manifest), None),
            Err(error) => (None, Some(understudy_replication::error_chain(&error))),
        };
        Listed {
            path: folder.join(&listed.name),
            name: listed.name,
            manifest,
            error,
        }
    });
    Ok(Bundles {
        bundles: listed.collect(),
    })
}

/// Tells a peer which bundles there are.
pub(crate) async fn list(State(node): State<Arc<Node>>) -> Response {
    let folder = Makings::salvage(&node.local);
    let failed = |reason: String| (StatusCode::SERVICE_UNAVAILABLE, reason).into_response();
    match tokio::task::spawn_blocking(move || list_in(&folder)).await {
        Ok(Ok(bundles)) => Json(bundles).into_response(),
        Ok(Err(failure)) => failed(failure.message),
        Err(error) => failed(error.to_string()),
    }
}

/// Asks another node which bundles it has.
pub(crate) async fn list_of(node: &Arc<Node>, from: &NodeName) -> Result<Bundles, Failure> {
    let client = known(node, from)?;
    Ok(client
        .get("/peer/kv/salvage")
        .await?
        .json(LIST_BYTES_MAX)
        .await?)
}

fn known(node: &Arc<Node>, name: &NodeName) -> Result<Arc<PeerClient>, Failure> {
    node.client(name)
        .ok_or_else(|| Failure::usage(format!("there is no node {name} in the configuration")))
}

/// Sends a bundle to a peer: its manifest, then each of its entries.
pub(crate) async fn send(State(node): State<Arc<Node>>, Path(name): Path<String>) -> Response {
    let folder = Makings::salvage(&node.local);
    let opened = tokio::task::spawn_blocking(move || Bundle::open(&folder, &name)).await;
    let refused = |reason: String| (StatusCode::NOT_FOUND, reason).into_response();
    let bundle = match opened {
        Ok(Ok(bundle)) => bundle,
        Ok(Err(error)) => return refused(understudy_replication::error_chain(&error)),
        Err(error) => return refused(error.to_string()),
    };
    let manifest = match serde_json::to_vec(&bundle.manifest) {
        Ok(manifest) => manifest,
        Err(error) => return refused(error.to_string()),
    };
    let (frames, response) = frames();
    let (sender, mut entries) = mpsc::channel(ENTRIES_WAITING_MAX);
    tokio::task::spawn_blocking(move || match bundle.entries() {
        Ok(read) => {
            // One that cannot be read ends the copy early, which the peer sees by the manifest.
            for entry in read.map_while(Result::ok) {
                if sender.blocking_send(entry).is_err() {
                    return;
                }
            }
        }
        Err(error) => tracing::warn!(%error, "a bundle cannot be sent"),
    });
    tokio::spawn(async move {
        if frames.send(&manifest).await.is_err() {
            return;
        }
        while let Some(entry) = entries.recv().await {
            let entry: Bytes = entry;
            if frames.send(&entry).await.is_err() {
                return;
            }
        }
    });
    response
}

/// Shows a bundle for an operator of another node.
pub(crate) async fn show(
    State(node): State<Arc<Node>>,
    Json(asked): Json<kv_api::ShowBundle>,
) -> Response {
    peer_work::answer(move |progress, _| async move { kv_api::show(&node, asked, &progress).await })
}

/// Replays a bundle for an operator of another node.
pub(crate) async fn replay(
    State(node): State<Arc<Node>>,
    Json(asked): Json<kv_api::ReplayBundle>,
) -> Response {
    peer_work::answer(
        move |progress, _| async move { kv_api::replay(&node, asked, &progress).await },
    )
}

/// Copies a bundle of node `from` here, under its name there. One that is here already is not copied again.
pub(crate) async fn fetch(node: &Arc<Node>, from: &NodeName, name: &str) -> Result<(), Failure> {
    let client = known(node, from)?;
    // It is a part of a path, and of a URL: bundles have no other characters in their names.
    let is_plain = |c: char| c.is_ascii_alphanumeric() || ['-', '.', '_'].contains(&c);
    if !name.chars().all(is_plain) {
        return Err(Failure::usage(format!(
            "`{name}` is not the name of a bundle"
        )));
    }
    let path = format!("/peer/kv/salvage/{name}");
    let mut frames = client.get_within(&path, OPENING_MAX).await?.frames();
    let late = || PeerError::Late {
        peer: from.to_string(),
        what: format!("with bundle {name}"),
        limit: SILENCE_MAX,
    };
    let mut next = async || {
        tokio::time::timeout(SILENCE_MAX, frames.next())
            .await
            .unwrap_or_else(|_| Err(late()))
    };
    let Some(manifest) = next().await? else {
        return Err(Failure::failed(format!("node {from} sent no manifest")));
    };
    let manifest: Manifest = serde_json::from_slice(&manifest)?;
    let (sender, mut receiver) = mpsc::channel::<Result<Bytes, PeerError>>(ENTRIES_WAITING_MAX);
    let (folder, name) = (Makings::salvage(&node.local), name.to_owned());
    let adopted = tokio::task::spawn_blocking(move || {
        let entries = std::iter::from_fn(|| receiver.blocking_recv());
        salvage::adopt(&folder, &name, &manifest, entries)
    });
    loop {
        let entry = next().await.transpose();
        let is_last = !matches!(entry, Some(Ok(_)));
        if let Some(entry) = entry
            // Whoever writes has found it here already, or has failed.
            && sender.send(entry).await.is_err()
        {
            break;
        }
        if is_last {
            break;
        }
    }
    drop(sender);
    adopted.await??;
    Ok(())
}
