//! Clients behind HAProxy, with the configuration that is in `packaging/`.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio_postgres::{Client, Config, NoTls};

use crate::world::{Pair, Plan, holds, os_user, skip, until};

const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/haproxy.cfg");

/// The ports of the example.
const READ_WRITE: u16 = 5000;
const READ_ONLY: u16 = 5001;

/// How many connections a client keeps.
const CONNECTIONS: usize = 4;

fn haproxy() -> Command {
    // Debian has it where only root's path leads.
    let place = "/usr/sbin/haproxy";
    Command::new(if Path::new(place).exists() {
        place
    } else {
        "haproxy"
    })
}

/// HAProxy with the example, in which nothing but addresses is replaced.
struct Balancer {
    process: Child,
    ip: String,
}

impl Balancer {
    fn start(pair: &Pair) -> Self {
        let example = fs::read_to_string(EXAMPLE).unwrap();
        let ip = pair.ips[2].clone();
        let ours = [
            ("10.0.0.1:", format!("{}:", pair.a.ip)),
            ("10.0.0.2:", format!("{}:", pair.b.ip)),
            ("*:", format!("{ip}:")),
        ];
        let rendered = ours.iter().fold(example, |text, (theirs, ours)| {
            assert!(text.contains(theirs), "{theirs} is not in the example");
            text.replace(theirs, ours)
        });
        let path = pair.folder.path().join("haproxy.cfg");
        fs::write(&path, rendered).unwrap();
        let log = fs::File::create(pair.folder.path().join("haproxy.log")).unwrap();
        let process = haproxy()
            .args(["-db", "-f"])
            .arg(&path)
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        Self { process, ip }
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

async fn connect(ip: &str, port: u16) -> Result<Client, tokio_postgres::Error> {
    let mut config = Config::new();
    config
        .host(ip)
        .port(port)
        .user(os_user())
        .dbname("postgres");
    let (client, connection) = config.connect(NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

/// What the client's connections have seen.
#[derive(Default)]
struct Seen {
    /// What was acknowledged, in that order: the number, and the address of the server that has it.
    writes: Vec<(i32, String)>,
    /// For each connection how often it was lost.
    lost: [u32; CONNECTIONS],
}

impl Seen {
    fn last_of(&self, server: &str) -> Option<usize> {
        self.writes.iter().rposition(|(_, at)| at == server)
    }
}

/// A client that writes through a pool of connections, and connects anew when it loses one.
struct Pool {
    seen: Arc<Mutex<Seen>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Pool {
    fn start(ip: &str, port: u16) -> Self {
        let (seen, stop) = (Arc::<Mutex<Seen>>::default(), Arc::<AtomicBool>::default());
        let (ip, its_seen, its_stop) = (ip.to_owned(), Arc::clone(&seen), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let mut tasks = tokio::task::JoinSet::new();
                for number in 0..CONNECTIONS {
                    let (ip, seen) = (ip.clone(), Arc::clone(&its_seen));
                    tasks.spawn(async move { write_forever(&ip, port, number, &seen).await });
                }
                while !its_stop.load(Ordering::Relaxed) {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            });
        });
        Self {
            seen,
            stop,
            thread: Some(thread),
        }
    }

    fn look<T>(&self, look: impl FnOnce(&Seen) -> T) -> T {
        look(&self.seen.lock().unwrap())
    }

    /// Waits until every connection has been lost more often than `before`.
    fn wait_until_lost(&self, before: [u32; CONNECTIONS]) {
        until("every connection is lost", Pair::PATIENCE, || {
            let lost = self.look(|seen| seen.lost);
            let is_lost = lost.iter().zip(before).all(|(now, before)| *now > before);
            holds(is_lost, (before, lost))
        });
    }

    /// Waits until so many more writes are acknowledged, and returns how many there are.
    fn wait_for_writes(&self, more: usize) -> usize {
        let before = self.look(|seen| seen.writes.len());
        until("writes are acknowledged", Pair::PATIENCE, || {
            let now = self.look(|seen| seen.writes.len());
            holds(now >= before + more, now).map(|()| now)
        })
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _has_failed = self.thread.take().map(JoinHandle::join);
    }
}

/// Writes on one connection after the other; none of them is given up by this side.
async fn write_forever(ip: &str, port: u16, connection: usize, seen: &Mutex<Seen>) {
    let pause = || tokio::time::sleep(Duration::from_millis(20));
    let mut number = i32::try_from(connection).unwrap() * 1_000_000;
    loop {
        pause().await;
        let Ok(client) = connect(ip, port).await else {
            continue;
        };
        let mut has_written = false;
        loop {
            number += 1;
            let write = "INSERT INTO change VALUES ($1) RETURNING host(inet_server_addr())";
            let Ok(row) = client.query_one(write, &[&number]).await else {
                break;
            };
            has_written = true;
            let write = (number, row.get::<_, String>(0));
            seen.lock().unwrap().writes.push(write);
            pause().await;
        }
        if has_written {
            seen.lock().unwrap().lost[connection] += 1;
        }
    }
}

#[test]
fn a_pool_behind_haproxy_follows_the_primary_and_leaves_the_old_one() {
    let test = "a_pool_behind_haproxy_follows_the_primary_and_leaves_the_old_one";
    if !haproxy()
        .arg("-v")
        .output()
        .is_ok_and(|output| output.status.success())
    {
        skip(test, "`haproxy`");
        return;
    }
    let checked = haproxy().args(["-c", "-f", EXAMPLE]).output().unwrap();
    assert!(checked.status.success(), "{checked:?}");

    let mut pair = Pair::new(Plan::postgres());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let balancer = Balancer::start(&pair);
    let (a, b) = (pair.a.ip.clone(), pair.b.ip.clone());
    let pool = Pool::start(&balancer.ip, READ_WRITE);
    pool.wait_for_writes(20);
    let lost = pool.look(|seen| {
        assert_eq!(seen.last_of(&b), None, "{:?}", seen.writes);
        seen.lost
    });

    // Readers are led to the standby, which refuses what is no reading.
    let server = "SELECT host(inet_server_addr())";
    let reading = until("a reader is led to the standby", Pair::PATIENCE, || {
        let read = async {
            let client = connect(&balancer.ip, READ_ONLY).await?;
            let row = client.query_one(server, &[]).await?;
            Ok((client, row.get::<_, String>(0)))
        };
        let (client, at) = runtime
            .block_on(read)
            .map_err(|error: tokio_postgres::Error| error.to_string())?;
        // HAProxy begins with the belief that every server is up, until it has checked.
        holds(at == b, at).map(|()| client)
    });
    let write = "INSERT INTO change VALUES (-1)";
    assert!(runtime.block_on(reading.execute(write, &[])).is_err());

    // Somebody has gone past the balancer, too.
    let direct = runtime.block_on(connect(&a, 5432)).unwrap();
    assert!(runtime.block_on(direct.execute("SELECT 1", &[])).is_ok());

    pair.b.understudy(&["promote"]);
    let at_promotion = pool.look(|seen| seen.writes.len());
    assert!(runtime.block_on(direct.execute(write, &[])).is_err());
    assert!(runtime.block_on(connect(&a, 5432)).is_err());
    pool.wait_until_lost(lost);
    pool.wait_for_writes(40);
    pair.assert_a_is_fenced();
    pool.look(|seen| {
        let last = seen.last_of(&a).unwrap();
        let first = seen.writes.iter().position(|(_, at)| *at == b).unwrap();
        assert!(last < first, "a took a write after b had");
        assert!(last < at_promotion, "a took a write after the promotion");
    });
    // Whoever read from the standby is not left on a server that takes writes.
    until("the reader is sent away", Pair::PATIENCE, || {
        let still = runtime.block_on(reading.query_one(server, &[]));
        holds(still.is_err(), still)
    });
    assert!(
        runtime.block_on(connect(&balancer.ip, READ_ONLY)).is_err(),
        "there is no standby"
    );

    // Where only the node is gone, and Postgres keeps its sessions, the balancer closes them.
    let lost = pool.look(|seen| seen.lost);
    let server = pair.b.postmaster();
    pair.b.kill_daemon();
    pool.wait_until_lost(lost);
    assert!(server.is_some());
    assert_eq!(pair.b.postmaster(), server, "its Postgres runs");
    pair.b.serve();
    pool.wait_for_writes(20);

    // What was acknowledged is there.
    let writes = pool.look(|seen| seen.writes.clone());
    let rows = pair.b.sql("SELECT number FROM change");
    let rows: BTreeSet<&str> = rows.lines().collect();
    let is_lost = |(number, _): &&(i32, String)| !rows.contains(number.to_string().as_str());
    let lost: Vec<_> = writes.iter().filter(is_lost).collect();
    assert!(lost.is_empty(), "{lost:?}");
}
