//! A key-value store without a log and without standbys, its server, and a client that sees every byte.
#![allow(dead_code, reason = "each test uses a part of it")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use understudy_replication::kv::draft::Draft;
use understudy_replication::kv::keyspace::{Keyspace, Refusal, Standing};
use understudy_replication::kv::server::{Server, ServerOptions};
use understudy_replication::kv::space::Space;
use understudy_replication::kv::table::Table;
use understudy_replication::position::Position;
use understudy_replication::store::{BoxFuture, Stop, Stopper};
use understudy_replication::wall_time::WallTime;

/// How long anything may take that a test waits for.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// What a store does with what was written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Commits {
    /// It is committed at once.
    AtOnce,
    /// It is committed a little later, by somebody else.
    Later,
    /// It is committed when the test says so.
    WhenTold,
}

/// A store without a log.
pub(crate) struct Store {
    table: RwLock<Table>,
    draft: Mutex<Draft>,
    settled: watch::Sender<Position>,
    commits: Commits,
    pub(crate) standing: Mutex<Standing>,
    /// Why writes are not settled, once there is a reason.
    pub(crate) failure: watch::Sender<Option<Refusal>>,
    /// Why nothing is read and written.
    pub(crate) refusal: Mutex<Option<Refusal>>,
}

impl Store {
    pub(crate) fn new(commits: Commits) -> Arc<Self> {
        Arc::new(Self {
            table: RwLock::new(Table::new()),
            draft: Mutex::new(Draft::new(Position(0))),
            settled: watch::Sender::new(Position(0)),
            commits,
            standing: Mutex::new(Standing {
                is_primary: true,
                primary: None,
                position: Position(0),
                standbys: Vec::new(),
                durability: "async",
                memory_bytes_max: 1 << 30,
                allows_flush: true,
            }),
            failure: watch::Sender::new(None),
            refusal: Mutex::new(None),
        })
    }

    /// Commits everything that was appended.
    pub(crate) fn commit(&self) {
        let mut draft = self.draft.lock().unwrap();
        let mut table = self.table.write().unwrap();
        while let Some(taken) = draft.take(1 << 20) {
            taken
                .operations
                .iter()
                .for_each(|operation| table.apply(operation));
            draft.settle(taken.end);
        }
        drop(table);
        self.settled.send_replace(draft.end());
    }

    /// Returns how much was appended.
    pub(crate) fn end(&self) -> Position {
        self.draft.lock().unwrap().end()
    }
}

impl Keyspace for Store {
    fn read(&self, look: &mut dyn FnMut(&mut Space<'_>)) -> Result<(), Refusal> {
        if let Some(refusal) = self.refusal.lock().unwrap().clone() {
            return Err(refusal);
        }
        let table = self.table.read().unwrap();
        look(&mut Space::visible(&table, WallTime::now()));
        Ok(())
    }

    fn write(&self, act: &mut dyn FnMut(&mut Space<'_>)) -> Result<Position, Refusal> {
        if let Some(refusal) = self.refusal.lock().unwrap().clone() {
            return Err(refusal);
        }
        let mut draft = self.draft.lock().unwrap();
        let table = self.table.read().unwrap();
        act(&mut Space::newest(&table, &mut draft, WallTime::now()));
        drop(table);
        let end = draft.end();
        drop(draft);
        if self.commits == Commits::AtOnce {
            self.commit();
        }
        Ok(end)
    }

    fn settled(&self, position: Position) -> BoxFuture<'_, Result<(), Refusal>> {
        let mut settled = self.settled.subscribe();
        let mut failure = self.failure.subscribe();
        Box::pin(async move {
            tokio::select! {
                biased;
                failed = failure.wait_for(Option::is_some) => match failed.ok().and_then(|why| why.clone()) {
                    Some(why) => Err(why),
                    None => Err(Refusal::Closed),
                },
                _ = settled.wait_for(|settled| *settled >= position) => Ok(()),
            }
        })
    }

    fn replicated(
        &self,
        _: Position,
        count: usize,
        limit: Option<Duration>,
    ) -> BoxFuture<'_, usize> {
        Box::pin(async move {
            let has = self.standing.lock().unwrap().standbys.len();
            if has < count {
                match limit {
                    Some(limit) => tokio::time::sleep(limit).await,
                    None => std::future::pending().await,
                }
            }
            has
        })
    }

    fn standing(&self) -> Standing {
        self.standing.lock().unwrap().clone()
    }
}

/// A server over a store, with a thread of its own for as long as it lives.
pub(crate) struct Running {
    pub(crate) store: Arc<Store>,
    pub(crate) address: SocketAddr,
    /// Whether the store is there.
    pub(crate) is_open: Arc<std::sync::atomic::AtomicBool>,
    stopper: Stopper,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Running {
    pub(crate) fn start(commits: Commits, options: ServerOptions) -> Self {
        let store = Store::new(commits);
        let is_open = Arc::new(std::sync::atomic::AtomicBool::new(true));
        let (stopper, stop) = Stopper::new();
        let (told, address) = std::sync::mpsc::channel();
        let thread = std::thread::spawn({
            let (store, is_open) = (Arc::clone(&store), Arc::clone(&is_open));
            move || serve(store, is_open, options, stop, told)
        });
        let address = address.recv_timeout(PATIENCE).unwrap();
        Self {
            store,
            address,
            is_open,
            stopper,
            thread: Some(thread),
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn serve(
    store: Arc<Store>,
    is_open: Arc<std::sync::atomic::AtomicBool>,
    options: ServerOptions,
    stop: Stop,
    told: std::sync::mpsc::Sender<SocketAddr>,
) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    told.send(listener.local_addr().unwrap()).unwrap();
    if store.commits == Commits::Later {
        let (store, stop) = (Arc::clone(&store), stop.clone());
        tokio::spawn(async move {
            while !stop.is_stopped() {
                tokio::time::sleep(Duration::from_micros(300)).await;
                store.commit();
            }
        });
    }
    let source = Arc::new(move || {
        let is_open = is_open.load(std::sync::atomic::Ordering::SeqCst);
        is_open.then(|| Arc::clone(&store) as Arc<dyn Keyspace>)
    });
    Server::serve(listener, source, options, stop).await;
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stopper.stop();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

/// What a server answers.
#[derive(Clone, Debug, PartialEq, PartialOrd)]
pub(crate) enum Value {
    Null,
    Simple(String),
    Error(String),
    Integer(i64),
    Bulk(String),
    Verbatim(String),
    Array(Vec<Value>),
    Set(Vec<Value>),
    Map(Vec<(Value, Value)>),
}

/// A client.
pub(crate) struct Client {
    reader: BufReader<TcpStream>,
}

impl Client {
    pub(crate) fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self {
            reader: BufReader::new(stream),
        }
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.reader.get_mut().write_all(bytes).unwrap();
    }

    pub(crate) fn send_command<T: AsRef<[u8]>>(&mut self, command: &[T]) {
        self.send(&encode(command));
    }

    pub(crate) fn call<T: AsRef<[u8]>>(&mut self, command: &[T]) -> Value {
        self.send_command(command);
        self.receive()
    }

    /// Sends words that hold no space.
    pub(crate) fn say(&mut self, line: &str) -> Value {
        let words: Vec<_> = line.split(' ').collect();
        self.call(&words)
    }

    fn line(&mut self) -> String {
        let mut line = Vec::new();
        self.reader.read_until(b'\n', &mut line).unwrap();
        assert!(line.ends_with(b"\r\n"), "no whole line: {line:?}");
        line.truncate(line.len() - 2);
        String::from_utf8_lossy(&line).into_owned()
    }

    pub(crate) fn receive(&mut self) -> Value {
        let line = self.line();
        let (kind, rest) = line.split_at(1);
        let len = || rest.parse::<usize>().unwrap();
        match kind {
            "+" => Value::Simple(rest.to_owned()),
            "-" => Value::Error(rest.to_owned()),
            ":" => Value::Integer(rest.parse().unwrap()),
            "_" => Value::Null,
            "$" | "*" if rest == "-1" => Value::Null,
            "$" => Value::Bulk(self.bytes(len())),
            "=" => Value::Verbatim(self.bytes(len())),
            "*" => Value::Array((0..len()).map(|_| self.receive()).collect()),
            "~" => Value::Set((0..len()).map(|_| self.receive()).collect()),
            "%" => Value::Map(
                (0..len())
                    .map(|_| (self.receive(), self.receive()))
                    .collect(),
            ),
            other => panic!("an answer of kind {other:?}: {line:?}"),
        }
    }

    fn bytes(&mut self, len: usize) -> String {
        let mut bytes = vec![0; len + 2];
        self.reader.read_exact(&mut bytes).unwrap();
        assert!(bytes.ends_with(b"\r\n"));
        String::from_utf8_lossy(&bytes[..len]).into_owned()
    }

    /// Returns what comes until the server closes the connection.
    pub(crate) fn rest(&mut self) -> String {
        let mut bytes = Vec::new();
        // A server that has not read everything resets the connection when it closes it.
        if let Err(error) = self.reader.read_to_end(&mut bytes) {
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

pub(crate) fn encode<T: AsRef<[u8]>>(command: &[T]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", command.len()).into_bytes();
    for arg in command {
        bytes.extend_from_slice(format!("${}\r\n", arg.as_ref().len()).as_bytes());
        bytes.extend_from_slice(arg.as_ref());
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

pub(crate) fn ok() -> Value {
    Value::Simple("OK".to_owned())
}

pub(crate) fn bulk(text: &str) -> Value {
    Value::Bulk(text.to_owned())
}

pub(crate) fn error(text: &str) -> Value {
    Value::Error(text.to_owned())
}

/// Waits until `is_so`.
pub(crate) fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(
            Instant::now() < deadline,
            "{what} has not come to be in time"
        );
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Redis' own server, in a directory of its own.
pub(crate) struct Redis {
    child: Child,
    pub(crate) address: SocketAddr,
    _directory: tempfile::TempDir,
}

impl Redis {
    pub(crate) fn start() -> Self {
        let deadline = Instant::now() + PATIENCE;
        // Somebody else may take the free port in between.
        loop {
            if let Some(redis) = Self::try_start(deadline) {
                return redis;
            }
            assert!(Instant::now() < deadline, "redis-server has not come up");
        }
    }

    fn try_start(deadline: Instant) -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let mut child = Command::new("redis-server")
            .args([
                "--bind",
                "127.0.0.1",
                "--save",
                "",
                "--appendonly",
                "no",
                "--port",
                &port.to_string(),
            ])
            .arg("--dir")
            .arg(directory.path())
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server is needed; `scripts/setup --test` installs it");
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        while Instant::now() < deadline {
            if TcpStream::connect(address).is_ok() && child.try_wait().unwrap().is_none() {
                return Some(Self {
                    child,
                    address,
                    _directory: directory,
                });
            }
            if child.try_wait().unwrap().is_some() {
                return None;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let _killed = child.kill().is_ok();
        None
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _killed = self.child.kill().is_ok();
        let _status = self.child.wait();
    }
}

/// Numbers that are the same for the same seed.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(bound).unwrap()).unwrap()
    }

    pub(crate) fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }

    pub(crate) fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[self.below(from.len())]
    }
}

/// Sorts what has no order of its own.
pub(crate) fn sorted(value: Value) -> Value {
    match value {
        Value::Array(mut parts) => {
            parts.sort_by(|a, b| a.partial_cmp(b).unwrap());
            Value::Array(parts)
        }
        Value::Map(mut pairs) => {
            pairs.sort_by(|a, b| a.partial_cmp(b).unwrap());
            Value::Map(pairs)
        }
        other => other,
    }
}

/// Reads the lines `name:value` of `INFO`.
pub(crate) fn fields(text: &str) -> BTreeMap<String, String> {
    let pairs = text.lines().filter_map(|line| line.split_once(':'));
    pairs
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}
