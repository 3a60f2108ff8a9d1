//! Answering peers.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use hyper::header::{CONNECTION, HeaderValue};
use hyper::{Request, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt;
use understudy_config::NodeName;

use super::client::PATIENCE;
use super::{EPOCH_HEADER, Identity, Lineage, PROTOCOL_HEADER, PROTOCOL_VERSION};
use crate::epoch::Epoch;
use crate::event::{Events, Severity};
use crate::store::Stop;

/// Connections served at once; more wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 256;

/// Callers without a certificate of a named node that are served at once,
const STRANGERS_MAX: usize = 16;
/// and for how long: time enough to join.
const STRANGER_PATIENCE: Duration = Duration::from_secs(30);

/// A scanner must not flood the operators: so many events per kind and address
const EVENTS_MAX: u32 = 10;
/// in this time.
const EVENT_INTERVAL: Duration = Duration::from_secs(60);

/// How many addresses the limit above remembers.
const OFFENDERS_MAX: usize = 1024;

/// Who sent a request, proved by its certificate; a handler finds it in the extensions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The node.
    pub node: NodeName,
    /// Where it called from.
    pub address: SocketAddr,
}

/// The routes that are served now; they change with the node's role.
#[derive(Clone, Debug, Default)]
pub struct SharedRouter(Arc<RwLock<Router>>);

impl SharedRouter {
    /// Replaces the routes for all requests from now on.
    pub fn set(&self, router: Router) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = router;
    }

    fn get(&self) -> Router {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// Serves the peer port.
pub struct PeerServer {
    /// This node's certificate and whom it trusts.
    pub identity: Identity,
    /// Routes for named peers.
    pub peers: SharedRouter,
    /// The routes for callers without a certificate: joining.
    pub anonymous: Router,
    /// The epoch of this node.
    pub lineage: Arc<dyn Lineage>,
    /// Tells whether the configuration names a node.
    pub is_named: Box<dyn Fn(&NodeName) -> bool + Send + Sync>,
    /// Where refusals are recorded.
    pub events: Events,
    /// The places for callers without a certificate of a named node; see [`PeerServer::strangers`].
    pub strangers: Semaphore,
}

impl PeerServer {
    /// Returns the places for callers without a certificate of a named node.
    pub fn strangers() -> Semaphore {
        Semaphore::new(STRANGERS_MAX)
    }

    /// Serves `listener` until told to stop.
    ///
    /// # Errors
    /// When the listener itself fails; a failing connection is only logged.
    pub async fn serve(self, listener: TcpListener, stop: Stop) -> io::Result<()> {
        let server = Arc::new(self);
        let offenders = Arc::new(Offenders::default());
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let mut connections = tokio::task::JoinSet::new();
        loop {
            // The semaphore is never closed.
            let Ok(place) = places.clone().acquire_owned().await else {
                return Ok(());
            };
            let (stream, address) = tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok(accepted) => accepted,
                    // Out of file descriptors, or a connection that died in the queue.
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a peer's connection");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        continue;
                    }
                },
                () = stop.wait() => break,
            };
            while connections.try_join_next().is_some() {}
            let server = server.clone();
            let offenders = offenders.clone();
            connections.spawn(async move {
                let _place = place;
                if let Err(refused) = server.connection(stream, address, &offenders).await {
                    server.tell(&offenders, address, refused);
                }
            });
        }
        connections.shutdown().await;
        Ok(())
    }

    /// Records that a connection or a request was refused, unless the address has had its share.
    fn tell(&self, offenders: &Offenders, address: SocketAddr, refused: RefusalEvent) {
        let RefusalEvent { kind, message } = refused;
        if offenders.is_news(kind, address.ip(), Instant::now()) {
            self.events.record(Severity::Warning, kind, message);
        } else {
            tracing::info!(kind, message, "refused again");
        }
    }

    /// Serves one connection.
    async fn connection(
        &self,
        mut stream: TcpStream,
        address: SocketAddr,
        offenders: &Offenders,
    ) -> Result<(), RefusalEvent> {
        let refused = |reason: &dyn std::fmt::Display| connection_refused(address, reason);
        stream.set_nodelay(true).map_err(|error| refused(&error))?;
        rustix::net::sockopt::set_tcp_user_timeout(&stream, 10_000)
            .map_err(|error| refused(&error))?;
        let mut first = [0; 1];
        match tokio::time::timeout(PATIENCE, stream.peek(&mut first)).await {
            Ok(Ok(0)) | Ok(Err(_)) | Err(_) => return Ok(()),
            Ok(Ok(_)) => {}
        }
        // A TLS connection begins with a handshake record (22); an HTTP method with a letter.
        if first[0].is_ascii_alphabetic() {
            let answer = "HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\
                Content-Type: text/plain\r\n\r\nthis port speaks TLS between nodes only\n";
            // It is refused either way. What the caller has sent is read, as a connection that is
            // closed over unread bytes is reset, which can cost the caller the answer.
            let say = async {
                stream.write_all(answer.as_bytes()).await?;
                stream.shutdown().await?;
                let mut unread = [0; 4096];
                while stream.read(&mut unread).await? > 0 {}
                Ok::<_, io::Error>(())
            };
            let _said = tokio::time::timeout(Duration::from_secs(1), say)
                .await
                .is_ok();
            return Err(refused(&"plain HTTP on the port of the peers"));
        }
        let acceptor = TlsAcceptor::from(self.identity.server.clone());
        let stream = match tokio::time::timeout(PATIENCE, acceptor.accept(stream)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                let what = if error.kind() == io::ErrorKind::UnexpectedEof {
                    "the handshake was broken off".to_owned()
                } else {
                    error.to_string()
                };
                return Err(refused(&format!(
                    "{what} (a certificate of another cluster, or not an Understudy node)"
                )));
            }
            Err(_) => return Err(refused(&"no handshake in time")),
        };
        let caller = match stream.get_ref().1.peer_certificates() {
            Some([certificate, ..]) => Some(
                common_name(certificate)
                    .ok_or_else(|| refused(&"a certificate without a node's name"))?,
            ),
            Some([]) | None => None,
        };
        let unnamed = caller
            .as_ref()
            .filter(|node| !(self.is_named)(node))
            .cloned();
        let service = hyper::service::service_fn(|request: Request<hyper::body::Incoming>| {
            let (caller, unnamed) = (caller.clone(), unnamed.is_some());
            async move {
                let request = request.map(Body::new);
                let mut response = match (caller, unnamed) {
                    (Some(node), true) => {
                        let reason = format!("node {node} is not in this cluster's configuration");
                        let mut response = refusal(StatusCode::FORBIDDEN, reason);
                        // What may be asked on a connection is settled when it is made: once this node has
                        // read of the caller, that comes with a new one.
                        let close = HeaderValue::from_static("close");
                        response.headers_mut().insert(CONNECTION, close);
                        response
                    }
                    (caller, _) => self.answer(request, caller, address, offenders).await,
                };
                let epoch = self.lineage.epoch().to_string();
                if let Ok(epoch) = HeaderValue::from_str(&epoch) {
                    response.headers_mut().insert(EPOCH_HEADER, epoch);
                }
                Ok::<_, std::convert::Infallible>(response)
            }
        });
        let mut server = hyper::server::conn::http1::Builder::new();
        server.timer(TokioTimer::new());
        let is_stranger = caller.is_none() || unnamed.is_some();
        let served = if is_stranger {
            // Strangers get few places and little time, so that they cannot keep the nodes out.
            let Ok(_place) = self.strangers.try_acquire() else {
                return Err(refused(&"too many callers without a certificate at once"));
            };
            let served = server
                .header_read_timeout(PATIENCE)
                .serve_connection(TokioIo::new(stream), service);
            tokio::time::timeout(STRANGER_PATIENCE, served)
                .await
                .unwrap_or(Ok(()))
        } else {
            server
                .header_read_timeout(Duration::from_secs(120))
                .serve_connection(TokioIo::new(stream), service)
                // A link in both directions lives on without the connection that it began as.
                .with_upgrades()
                .await
        };
        if let Err(error) = served {
            tracing::debug!(%address, %error, "connection from a peer ended");
        }
        match unnamed {
            Some(node) => Err(refused(&format!(
                "node {node} has a certificate of this cluster, but the configuration does not \
                 name it"
            ))),
            None => Ok(()),
        }
    }

    async fn answer(
        &self,
        mut request: Request<Body>,
        caller: Option<NodeName>,
        address: SocketAddr,
        offenders: &Offenders,
    ) -> Response {
        let theirs = header(&request, PROTOCOL_HEADER).unwrap_or_default();
        let epoch = header(&request, EPOCH_HEADER);
        if theirs != PROTOCOL_VERSION.to_string() {
            let reason = format!(
                "this node speaks version {PROTOCOL_VERSION} of the protocol, the caller \
                 `{theirs}`; run the same version of understudy on both"
            );
            self.tell(offenders, address, connection_refused(address, &reason));
            return refusal(StatusCode::UPGRADE_REQUIRED, reason);
        }
        let Some(node) = caller else {
            request.extensions_mut().insert(address);
            let response = match self.anonymous.clone().oneshot(request).await {
                Ok(response) => response,
                Err(never) => match never {},
            };
            let event = response.extensions().get::<RefusalEvent>().cloned();
            if let Some(event) = event {
                self.tell(offenders, address, event);
            }
            return response;
        };
        match epoch.map(|text| text.parse::<Epoch>()) {
            Some(Ok(epoch)) => self.lineage.heard(&node, &epoch),
            Some(Err(error)) => return refusal(StatusCode::BAD_REQUEST, error.to_string()),
            None => {
                return refusal(
                    StatusCode::BAD_REQUEST,
                    "a request without an epoch".to_owned(),
                );
            }
        }
        request.extensions_mut().insert(Caller { node, address });
        match self.peers.get().oneshot(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        }
    }
}

fn header(request: &Request<Body>, name: &str) -> Option<String> {
    let value = request.headers().get(name)?;
    value.to_str().ok().map(str::to_owned)
}

/// What is recorded of a refusal. A handler for callers without a certificate puts it into the extensions
/// of its answer, so that the server can bound how much a stranger can have recorded.
#[derive(Clone, Debug)]
pub struct RefusalEvent {
    /// The kind of the event.
    pub kind: &'static str,
    /// What it says.
    pub message: String,
}

fn connection_refused(address: SocketAddr, reason: &dyn std::fmt::Display) -> RefusalEvent {
    RefusalEvent {
        kind: "peer_refused",
        message: format!("refused a connection from {}: {reason}", address.ip()),
    }
}

fn refusal(status: StatusCode, reason: String) -> Response {
    (status, reason).into_response()
}

/// Returns the node that a certificate names. The handshake has verified the certificate.
fn common_name(certificate: &CertificateDer<'_>) -> Option<NodeName> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let name = certificate.subject().iter_common_name().next()?;
    name.as_str().ok()?.parse().ok()
}

/// Limits how often one address can make the same event.
#[derive(Debug, Default)]
struct Offenders(Mutex<BTreeMap<(&'static str, IpAddr), Share>>);

/// Since when an address has made events of a kind, and how many.
#[derive(Debug)]
struct Share {
    since: Instant,
    count: u32,
}

impl Offenders {
    fn is_news(&self, kind: &'static str, ip: IpAddr, now: Instant) -> bool {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.retain(|_, share| now.saturating_duration_since(share.since) < EVENT_INTERVAL);
        if let Some(share) = seen.get_mut(&(kind, ip)) {
            share.count = share.count.saturating_add(1);
            return share.count <= EVENTS_MAX;
        }
        if seen.len() >= OFFENDERS_MAX {
            return false;
        }
        let share = Share {
            since: now,
            count: 1,
        };
        seen.insert((kind, ip), share);
        true
    }
}
