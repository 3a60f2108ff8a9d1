//! Asking a peer.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use understudy_config::NodeName;

use super::duplex::{DUPLEX, Duplex};
use super::frames::FrameReader;
use super::tls::{PinnedAuthority, tls_name};
use super::{EPOCH_HEADER, Identity, Lineage, PROTOCOL_HEADER, PROTOCOL_VERSION, ROLE_HEADER};
use crate::epoch::Epoch;
use crate::trust::Token;

/// Connecting, the handshake, and the head of an answer each get this long.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// How long the first way to a peer has before the second is tried beside it.
const SECOND_WAY_AFTER: Duration = Duration::from_millis(300);

/// Idle connections kept for the next request.
const IDLE_MAX: usize = 4;

/// How much of a refusal's text is read.
const REASON_BYTES_MAX: usize = 16 << 10;

/// Why a peer could not be asked, or refused.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// No connection.
    #[error("cannot connect to node {peer} at {address}")]
    Connect {
        /// The peer.
        peer: String,
        /// Its address.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// The connection broke.
    #[error("the connection to node {peer} broke")]
    Broken {
        /// The peer.
        peer: String,
        /// How.
        source: hyper::Error,
    },
    /// The peer took longer than it may.
    #[error("node {peer} did not answer {what} within {} s", limit.as_secs())]
    Late {
        /// The peer.
        peer: String,
        /// What was asked.
        what: String,
        /// How long it had.
        limit: Duration,
    },
    /// The peer said no.
    #[error("node {peer} refused {what}: {reason} ({status})")]
    Refused {
        /// The peer.
        peer: String,
        /// What was asked.
        what: String,
        /// The HTTP status.
        status: StatusCode,
        /// What the peer said.
        reason: String,
    },
    /// The peer is in an epoch that has been superseded.
    #[error("node {peer} is in epoch {theirs}, which {ours} has superseded")]
    Superseded {
        /// The peer.
        peer: String,
        /// Its epoch.
        theirs: Epoch,
        /// The epoch of this node.
        ours: Epoch,
    },
    /// A link in both directions broke.
    #[error("the link to node {peer} broke")]
    Cut {
        /// The peer.
        peer: String,
        /// How.
        source: io::Error,
    },
    /// The stream ended in the middle of a frame.
    #[error("the stream from node {peer} ended in the middle of a frame")]
    Torn {
        /// The peer.
        peer: String,
    },
    /// The answer is longer than it may be.
    #[error("node {peer} sent {bytes} bytes where at most {bytes_max} are allowed")]
    TooLong {
        /// The peer.
        peer: String,
        /// How long it is.
        bytes: usize,
        /// How long it may be.
        bytes_max: usize,
    },
    /// The answer is not what the protocol says.
    #[error("node {peer} sent something that cannot be understood: {what}")]
    Malformed {
        /// The peer.
        peer: String,
        /// What is wrong with it.
        what: String,
    },
}

/// A peer that can be asked. Cheap to share; keeps a few connections.
pub struct PeerClient {
    node: NodeName,
    address: SocketAddr,
    second_address: Option<SocketAddr>,
    identity: Identity,
    lineage: Arc<dyn Lineage>,
    idle: Mutex<Vec<SendRequest<Full<Bytes>>>>,
}

impl std::fmt::Debug for PeerClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PeerClient({} at {})", self.node, self.address)
    }
}

impl PeerClient {
    /// Returns a client of `node`; connects with the first request.
    pub fn new(
        node: NodeName,
        address: SocketAddr,
        identity: Identity,
        lineage: Arc<dyn Lineage>,
    ) -> Self {
        Self {
            node,
            address,
            second_address: None,
            identity,
            lineage,
            idle: Mutex::new(Vec::new()),
        }
    }

    /// Adds another way to the same peer, which is taken when the first does not answer at once.
    #[must_use]
    pub fn or_at(mut self, second_address: Option<SocketAddr>) -> Self {
        self.second_address = second_address;
        self
    }

    /// Returns the other way to the peer.
    pub fn second_address(&self) -> Option<SocketAddr> {
        self.second_address
    }

    /// Returns the peer's name.
    pub fn node(&self) -> &NodeName {
        &self.node
    }

    /// Returns the peer's address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the highest epoch that this node has made durable.
    pub fn epoch(&self) -> Epoch {
        self.lineage.epoch()
    }

    /// Asks for `path` (with its query). The body of the answer is read by the caller.
    ///
    /// # Errors
    /// When the peer cannot be reached, refuses, or is in a superseded epoch.
    pub async fn get(&self, path: &str) -> Result<PeerResponse, PeerError> {
        self.ask(Method::GET, path, None, PATIENCE).await
    }

    /// Like [`PeerClient::get`], for what takes the peer longer to begin to answer.
    ///
    /// # Errors
    /// As for `get`.
    pub async fn get_within(&self, path: &str, limit: Duration) -> Result<PeerResponse, PeerError> {
        self.ask(Method::GET, path, None, limit).await
    }

    /// Posts bytes to `path`; the peer has `limit` to begin its answer.
    ///
    /// # Errors
    /// As for [`PeerClient::get`].
    pub async fn post(
        &self,
        path: &str,
        body: Bytes,
        limit: Duration,
    ) -> Result<PeerResponse, PeerError> {
        self.ask(
            Method::POST,
            path,
            Some(("application/octet-stream", body)),
            limit,
        )
        .await
    }

    /// Posts `value` as JSON and reads the answer as JSON.
    ///
    /// # Errors
    /// As for [`PeerClient::get`], and when the answer is not what was expected.
    pub async fn call<T: DeserializeOwned>(
        &self,
        path: &str,
        value: &(impl Serialize + Sync),
        limit: Duration,
    ) -> Result<T, PeerError> {
        let body = serde_json::to_vec(value).map_err(|error| self.malformed(&error))?;
        let body = Some(("application/json", body.into()));
        let response = self.ask(Method::POST, path, body, limit).await?;
        response.json(1 << 20).await
    }

    /// Posts `value` as JSON and reads the answer as a stream of frames. Dropping the reader closes the
    /// connection, which tells the peer that nobody listens any more.
    ///
    /// # Errors
    /// As for [`PeerClient::get`].
    pub async fn stream(
        &self,
        path: &str,
        value: &(impl Serialize + Sync),
    ) -> Result<FrameReader, PeerError> {
        let body = serde_json::to_vec(value).map_err(|error| self.malformed(&error))?;
        let body = Some(("application/json", body.into()));
        let response = self.ask(Method::POST, path, body, PATIENCE).await?;
        Ok(response.frames())
    }

    /// Opens a link on which both sides speak when they like.
    ///
    /// # Errors
    /// As for [`PeerClient::get`].
    pub async fn duplex(&self, path: &str) -> Result<Duplex, PeerError> {
        let request = self
            .request(Method::GET, path)
            .header(hyper::header::CONNECTION, "upgrade")
            .header(hyper::header::UPGRADE, DUPLEX)
            .body(Full::new(Bytes::new()))
            .map_err(|error| self.malformed(&error))?;
        let what = format!("GET {path}");
        let exchange = async {
            let mut sender = self.connection().await?;
            let response = sender.send_request(request).await;
            response.map_err(|source| PeerError::Broken {
                peer: self.node.to_string(),
                source,
            })
        };
        let response = tokio::time::timeout(PATIENCE, exchange).await;
        let response = response.map_err(|_| PeerError::Late {
            peer: self.node.to_string(),
            what: what.clone(),
            limit: PATIENCE,
        })??;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            self.check(response, &what).await?;
            return Err(self.malformed(&"an answer where a link was expected"));
        }
        let theirs = self.learn(&response);
        self.check_epoch(theirs)?;
        let upgraded = hyper::upgrade::on(response).await;
        let upgraded = upgraded.map_err(|source| PeerError::Broken {
            peer: self.node.to_string(),
            source,
        })?;
        Ok(Duplex::new(upgraded, self.node.to_string()))
    }

    fn request(&self, method: Method, path: &str) -> hyper::http::request::Builder {
        Request::builder()
            .method(method)
            .uri(path)
            .header(hyper::header::HOST, self.node.as_str())
            .header(PROTOCOL_HEADER, PROTOCOL_VERSION)
            .header(EPOCH_HEADER, self.lineage.epoch().to_string())
            .header(ROLE_HEADER, self.lineage.role())
    }

    /// Learns the peer's epoch from its answer.
    fn learn(&self, response: &Response<Incoming>) -> Option<Epoch> {
        let theirs: Option<Epoch> = response
            .headers()
            .get(EPOCH_HEADER)
            .and_then(|value| value.to_str().ok())
            .and_then(|text| text.parse().ok());
        if let Some(theirs) = &theirs {
            self.lineage.heard(&self.node, theirs);
        }
        theirs
    }

    fn check_epoch(&self, theirs: Option<Epoch>) -> Result<(), PeerError> {
        let ours = self.lineage.epoch();
        match theirs {
            // Guarantee 1: nothing is taken from a node that has been superseded.
            Some(theirs) if theirs < ours => Err(PeerError::Superseded {
                peer: self.node.to_string(),
                theirs,
                ours,
            }),
            Some(_) => Ok(()),
            None => Err(self.malformed(&"an answer without an epoch")),
        }
    }

    fn malformed(&self, what: &dyn std::fmt::Display) -> PeerError {
        PeerError::Malformed {
            peer: self.node.to_string(),
            what: what.to_string(),
        }
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<(&'static str, Bytes)>,
        limit: Duration,
    ) -> Result<PeerResponse, PeerError> {
        let what = format!("{method} {path}");
        let late = || PeerError::Late {
            peer: self.node.to_string(),
            what: what.clone(),
            limit,
        };
        let mut request = self.request(method, path);
        let body = match body {
            Some((content_type, body)) => {
                request = request.header(hyper::header::CONTENT_TYPE, content_type);
                body
            }
            None => Bytes::new(),
        };
        let request = request
            .body(Full::new(body))
            .map_err(|error| self.malformed(&error))?;
        let exchange = async {
            let mut sender = self.connection().await?;
            let response = sender.send_request(request).await;
            let response = response.map_err(|source| PeerError::Broken {
                peer: self.node.to_string(),
                source,
            })?;
            let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
            if idle.len() < IDLE_MAX {
                // It is taken from here only once the answer has been read to its end.
                idle.push(sender);
            }
            Ok(response)
        };
        let response = tokio::time::timeout(limit, exchange)
            .await
            .map_err(|_| late())??;
        self.check(response, &what).await
    }

    /// Learns the peer's epoch from an answer, and turns refusals into errors.
    async fn check(
        &self,
        response: Response<Incoming>,
        what: &str,
    ) -> Result<PeerResponse, PeerError> {
        let theirs = self.learn(&response);
        let status = response.status();
        let response = PeerResponse {
            peer: self.node.to_string(),
            body: response.into_body(),
        };
        if !status.is_success() {
            let reason = tokio::time::timeout(PATIENCE, response.bytes(REASON_BYTES_MAX)).await;
            let reason = match reason {
                Ok(Ok(text)) => String::from_utf8_lossy(&text).trim().to_owned(),
                Ok(Err(_)) | Err(_) => "no reason was given".to_owned(),
            };
            return Err(PeerError::Refused {
                peer: self.node.to_string(),
                what: what.to_owned(),
                status,
                reason,
            });
        }
        self.check_epoch(theirs)?;
        Ok(response)
    }

    async fn connection(&self) -> Result<SendRequest<Full<Bytes>>, PeerError> {
        {
            let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
            idle.retain(|sender| !sender.is_closed());
            if let Some(at) = idle.iter().position(SendRequest::is_ready) {
                return Ok(idle.swap_remove(at));
            }
        }
        self.connect().await.map_err(|source| PeerError::Connect {
            peer: self.node.to_string(),
            address: self.address,
            source,
        })
    }
}

impl PeerClient {
    /// Opens a connection by whichever way is up.
    async fn connect(&self) -> io::Result<SendRequest<Full<Bytes>>> {
        let name = tls_name(&self.node)?;
        let config = self.identity.client.clone();
        let first = connect(self.address, config.clone(), name.clone());
        let Some(second_address) = self.second_address else {
            return first.await;
        };
        let second = async {
            tokio::time::sleep(SECOND_WAY_AFTER).await;
            connect(second_address, config, name).await
        };
        let ways = [first.boxed(), second.boxed()];
        let (connection, _) = futures_util::future::select_ok(ways).await?;
        Ok(connection)
    }
}

/// Opens a connection whose other end is proved to be `name`.
async fn connect(
    address: SocketAddr,
    config: Arc<rustls::ClientConfig>,
    name: rustls::pki_types::ServerName<'static>,
) -> io::Result<SendRequest<Full<Bytes>>> {
    let late = |_| io::Error::new(io::ErrorKind::TimedOut, "no answer in time");
    let stream = tokio::time::timeout(PATIENCE, TcpStream::connect(address))
        .await
        .map_err(late)??;
    stream.set_nodelay(true)?;
    // A link that is cut without a word is noticed, whatever the kernel's defaults are.
    rustix::net::sockopt::set_tcp_user_timeout(&stream, 10_000)?;
    rustix::net::sockopt::set_socket_keepalive(&stream, true)?;
    let handshake = TlsConnector::from(config).connect(name, stream);
    let stream = tokio::time::timeout(PATIENCE, handshake)
        .await
        .map_err(late)??;
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(io::Error::other)?;
    // Ends by itself when its sender and its response are dropped, or the link breaks.
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "connection to a peer ended");
        }
    });
    Ok(sender)
}

/// A peer's answer, with its body still to be read.
#[derive(Debug)]
pub struct PeerResponse {
    peer: String,
    body: Incoming,
}

impl PeerResponse {
    /// Reads the body, which may be at most `bytes_max` long.
    ///
    /// # Errors
    /// When the connection breaks or the body is longer.
    pub async fn bytes(self, bytes_max: usize) -> Result<Bytes, PeerError> {
        let peer = self.peer.clone();
        Limited::new(self.body, bytes_max)
            .collect()
            .await
            .map(http_body_util::Collected::to_bytes)
            .map_err(|error| match error.downcast::<hyper::Error>() {
                Ok(source) => PeerError::Broken {
                    peer,
                    source: *source,
                },
                Err(_) => PeerError::TooLong {
                    peer,
                    bytes: bytes_max.saturating_add(1),
                    bytes_max,
                },
            })
    }

    /// Reads the body as JSON.
    ///
    /// # Errors
    /// As for [`PeerResponse::bytes`], and when it is not the expected JSON.
    pub async fn json<T: DeserializeOwned>(self, bytes_max: usize) -> Result<T, PeerError> {
        let peer = self.peer.clone();
        let bytes = self.bytes(bytes_max).await?;
        serde_json::from_slice(&bytes).map_err(|error| PeerError::Malformed {
            peer,
            what: error.to_string(),
        })
    }

    /// Reads the body as a stream of frames.
    pub fn frames(self) -> FrameReader {
        FrameReader::new(self.body, self.peer)
    }
}

/// Why a token could not be redeemed.
#[derive(Debug, thiserror::Error)]
pub enum RedeemError {
    /// No connection, or the other side is not of the token's cluster.
    #[error("cannot connect to {address}")]
    Connect {
        /// The address in the URL.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// The connection broke.
    #[error("the connection to {address} broke")]
    Broken {
        /// The address in the URL.
        address: SocketAddr,
        /// How.
        source: hyper::Error,
    },
    /// The other side said no.
    #[error("{address} refused: {reason}")]
    Refused {
        /// The address in the URL.
        address: SocketAddr,
        /// What it said.
        reason: String,
    },
    /// The other side answered something else.
    #[error("{address} did not answer as an Understudy node does")]
    Malformed {
        /// The address in the URL.
        address: SocketAddr,
    },
}

/// Sends `request` to the node that issued `token`, proved by the fingerprint in the token alone.
/// Returns the answer and this machine's address on that connection.
///
/// # Errors
/// When the node cannot be reached, is not of the token's cluster, or refuses.
pub async fn redeem<T: DeserializeOwned>(
    address: SocketAddr,
    token: &Token,
    make_request: impl FnOnce(SocketAddr) -> Vec<u8>,
) -> Result<T, RedeemError> {
    let connect_error = |source| RedeemError::Connect { address, source };
    let broken = |source| RedeemError::Broken { address, source };
    let config = PinnedAuthority::client_config(token.fingerprint)
        .map_err(|error| connect_error(io::Error::other(error)))?;
    let name = tls_name(&token.issuer).map_err(connect_error)?;
    let local = local_address(address).await.map_err(connect_error)?;
    let body = make_request(local);
    let mut sender = connect(address, Arc::new(config), name)
        .await
        .map_err(connect_error)?;
    let request = Request::post("/join")
        .header(hyper::header::HOST, token.issuer.as_str())
        .header(hyper::header::CONTENT_TYPE, "application/json")
        .header(PROTOCOL_HEADER, PROTOCOL_VERSION)
        .body(Full::new(Bytes::from(body)))
        .map_err(|error| connect_error(io::Error::other(error)))?;
    let response = tokio::time::timeout(PATIENCE * 4, sender.send_request(request))
        .await
        .map_err(|_| connect_error(io::ErrorKind::TimedOut.into()))?
        .map_err(broken)?;
    let status = response.status();
    let body = Limited::new(response.into_body(), 4 << 20)
        .collect()
        .await
        .map_err(|_| RedeemError::Malformed { address })?
        .to_bytes();
    if !status.is_success() {
        return Err(RedeemError::Refused {
            address,
            reason: String::from_utf8_lossy(&body).trim().to_owned(),
        });
    }
    serde_json::from_slice(&body).map_err(|_| RedeemError::Malformed { address })
}

/// Returns the address by which this machine reaches `address`.
async fn local_address(address: SocketAddr) -> io::Result<SocketAddr> {
    let stream = tokio::time::timeout(PATIENCE, TcpStream::connect(address))
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    stream.local_addr()
}
