//! Serves RESP to clients.
//!
//! A task for each client. Whenever something has come in, it takes all commands that are complete, and runs
//! them in as few steps as their kinds allow: one look at what is visible for those that only read, and one
//! hold of the newest state from the first on that may write; then it waits once, and sends all answers.

mod answer;
mod client;
mod connection;
mod describe;
mod greet;
mod info;
mod session;
mod transaction;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use self::client::Client;
use self::connection::Connection;
use super::keyspace::Keyspace;
use crate::store::Stop;
use crate::wall_time::WallTime;

/// How many clients there may be at once, unless configured otherwise.
pub const CLIENTS_MAX: usize = 10_000;

/// How long to wait when no connection can be taken, for somebody to close one.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// After how long a client that is silent is asked whether it is there still: one whose machine is gone would
/// keep its place for ever.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(300);

/// Gives the store that commands run against; `None` while it is being opened.
pub type Source = Arc<dyn Fn() -> Option<Arc<dyn Keyspace>> + Send + Sync>;

/// What clients have to tell before anything else.
#[derive(Clone)]
pub struct Password(blake3::Hash);

impl Password {
    /// Returns the password that `text` is.
    pub fn new(text: &str) -> Self {
        Self(blake3::hash(text.as_bytes()))
    }

    /// Returns whether it is `told`. How long that takes tells nothing about the password.
    fn is(&self, told: &[u8]) -> bool {
        // The comparison of hashes takes the same time whatever they are.
        self.0 == blake3::hash(told)
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(…)")
    }
}

/// How to serve.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// What clients have to tell; `None` if they need not tell anything.
    pub password: Option<Password>,
    /// How many clients there may be at once.
    pub clients_max: usize,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            password: None,
            clients_max: CLIENTS_MAX,
        }
    }
}

/// Serves RESP to clients.
#[derive(Debug)]
pub struct Server;

/// What the clients' tasks share.
struct Shared {
    options: ServerOptions,
    source: Source,
    address: Option<SocketAddr>,
    started: Instant,
    clients: Mutex<BTreeMap<u64, Arc<Client>>>,
    next_client: AtomicU64,
    commands: AtomicU64,
    connections: AtomicU64,
    refused: AtomicU64,
}

impl Shared {
    fn clients(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Client>>> {
        // The map is whole at every moment, whatever panicked beside it.
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Server {
    /// Serves whoever connects, until told to stop. Then all connections are closed, whatever their clients
    /// wait for.
    pub async fn serve(listener: TcpListener, source: Source, options: ServerOptions, stop: Stop) {
        let shared = Arc::new(Shared {
            address: listener.local_addr().ok(),
            options,
            source,
            started: Instant::now(),
            clients: Mutex::default(),
            next_client: AtomicU64::new(1),
            commands: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        });
        let mut tasks = JoinSet::new();
        let mut stopped = std::pin::pin!(stop.wait());
        loop {
            tokio::select! {
                () = &mut stopped => break,
                Some(ended) = tasks.join_next() => {
                    if let Err(panicked) = ended {
                        tracing::error!(error = %panicked, "a task of a kv client has failed");
                    }
                }
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) if tasks.len() >= shared.options.clients_max => {
                        shared.refused.fetch_add(1, Ordering::Relaxed);
                        refuse(stream).await;
                    }
                    Ok((stream, peer)) => {
                        tasks.spawn(attend(Arc::clone(&shared), stream, peer));
                    }
                    Err(error) => {
                        tracing::warn!(%error, "a kv client cannot be taken");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
        tasks.shutdown().await;
    }
}

/// Tells a client that there are too many. It does not wait for one that does not read.
async fn refuse(mut stream: TcpStream) {
    let text = b"-ERR max number of clients reached\r\n";
    let told = tokio::time::timeout(ACCEPT_PAUSE, stream.write_all(text)).await;
    if !matches!(told, Ok(Ok(()))) {
        tracing::debug!("a kv client was turned away and did not hear why");
    }
}

/// Serves one client.
async fn attend(shared: Arc<Shared>, stream: TcpStream, peer: SocketAddr) {
    let id = shared.next_client.fetch_add(1, Ordering::Relaxed);
    shared.connections.fetch_add(1, Ordering::Relaxed);
    let client = Arc::new(Client::new(id, peer, stream.local_addr().ok()));
    let _registered = Registered::add(Arc::clone(&shared), Arc::clone(&client));
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "answers to a kv client may be late");
    }
    let kept_alive = rustix::net::sockopt::set_socket_keepalive(&stream, true)
        .and_then(|()| rustix::net::sockopt::set_tcp_keepidle(&stream, KEEPALIVE_IDLE));
    if let Err(error) = kept_alive {
        tracing::debug!(%error, "a kv client that is gone may be taken for one that is idle");
    }
    let ended = Connection::new(shared, client, stream).run().await;
    if let Err(error) = ended {
        let is_gone = matches!(
            error.kind(),
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
        );
        if !is_gone {
            tracing::debug!(%error, %peer, "a kv client was lost");
        }
    }
}

/// A client in the list of clients, for as long as its task lives.
struct Registered {
    shared: Arc<Shared>,
    id: u64,
}

impl Registered {
    fn add(shared: Arc<Shared>, client: Arc<Client>) -> Self {
        let id = client.id;
        let _none = shared.clients().insert(id, client);
        Self { shared, id }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        let _client = self.shared.clients().remove(&self.id);
    }
}

/// Returns the present moment for what only informs.
fn now() -> WallTime {
    WallTime::now()
}
