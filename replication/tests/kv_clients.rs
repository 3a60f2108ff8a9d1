//! Every command through clients that others have written.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod kv_support;

use std::collections::BTreeMap;
use std::process::Command;

use kv_support::{Commits, Running};
use redis::aio::MultiplexedConnection;
use redis::{AsyncCommands, AsyncTypedCommands, RedisResult, cmd, pipe};
use understudy_replication::kv::server::{Password, ServerOptions};

const PASSWORD: &str = "open sesame";

fn server() -> Running {
    let options = ServerOptions {
        password: Some(Password::new(PASSWORD)),
        ..ServerOptions::default()
    };
    Running::start(Commits::Later, options)
}

/// A script of every command, by the Rust client.
async fn script(client: &mut MultiplexedConnection) -> RedisResult<()> {
    let ask = |line: &str| {
        let mut words = line.split(' ');
        let mut command = cmd(words.next().unwrap());
        words.for_each(|word| {
            command.arg(word);
        });
        command
    };
    macro_rules! check {
        ($line:expr, $kind:ty, $expected:expr) => {
            let answer: $kind = ask($line).query_async(client).await?;
            assert_eq!(answer, $expected, "{}", $line);
        };
    }
    type Text = Option<String>;
    let some = |text: &str| Some(text.to_owned());

    check!("FLUSHALL", String, "OK");
    check!("PING", String, "PONG");
    check!("ECHO word", String, "word");
    check!("SELECT 0", String, "OK");
    check!("SET k v", String, "OK");
    check!("GET k", Text, some("v"));
    check!("SET k w NX", Text, None);
    check!("SET k w XX GET", Text, some("v"));
    check!("SET k 1 EX 100", String, "OK");
    check!("SET k 2 KEEPTTL", String, "OK");
    check!("TTL k", i64, 100);
    check!("EXPIRETIME absent", i64, -2);
    check!("PEXPIRETIME absent", i64, -2);
    check!("PERSIST k", i64, 1);
    check!("PTTL k", i64, -1);
    check!("EXPIRE k 100 NX", i64, 1);
    check!("PEXPIRE k 200000 GT", i64, 1);
    check!("EXPIREAT k 9999999999", i64, 1);
    check!("PEXPIREAT k 9999999999999", i64, 1);
    check!("SETNX k 3", i64, 0);
    check!("SETEX s 100 v", String, "OK");
    check!("PSETEX s 100000 v", String, "OK");
    check!("GETSET s w", Text, some("v"));
    check!("GETDEL s", Text, some("w"));
    check!("MSET a 1 b 2", String, "OK");
    check!("MSETNX b 3 c 4", i64, 0);
    check!("MGET a b c", Vec<Text>, vec![some("1"), some("2"), None]);
    check!("INCR a", i64, 2);
    check!("INCRBY a 10", i64, 12);
    check!("DECR a", i64, 11);
    check!("DECRBY a 10", i64, 1);
    check!("APPEND a 23", i64, 3);
    check!("STRLEN a", i64, 3);
    check!("EXISTS a b c", i64, 2);
    check!("TYPE a", String, "string");
    check!("DBSIZE", i64, 3);
    check!("UNLINK a b", i64, 2);
    check!("DEL k c", i64, 1);
    check!("HSET h f 1 g 2", i64, 2);
    check!("HMSET h i 3", String, "OK");
    check!("HSETNX h f 9", i64, 0);
    check!("HGET h f", Text, some("1"));
    check!("HMGET h f x", Vec<Text>, vec![some("1"), None]);
    let pairs = [("f", "1"), ("g", "2"), ("i", "3")];
    let all: BTreeMap<_, _> = pairs
        .map(|(field, value)| (field.to_owned(), value.to_owned()))
        .into();
    check!("HGETALL h", BTreeMap<String, String>, all);
    check!("HKEYS h", Vec<String>, ["f", "g", "i"]);
    check!("HVALS h", Vec<String>, ["1", "2", "3"]);
    check!("HLEN h", i64, 3);
    check!("HEXISTS h f", bool, true);
    check!("HSTRLEN h f", i64, 1);
    check!("HINCRBY h f 41", i64, 42);
    check!("HDEL h g i", i64, 2);
    check!(
        "HSCAN h 0 MATCH f*",
        (String, Vec<String>),
        ("0".to_owned(), vec!["f".to_owned(), "42".to_owned()])
    );
    check!(
        "SCAN 0 MATCH h COUNT 100 TYPE hash",
        (String, Vec<String>),
        ("0".to_owned(), vec!["h".to_owned()])
    );
    check!("KEYS *", Vec<String>, ["h"]);
    check!("WATCH h", String, "OK");
    check!("UNWATCH", String, "OK");
    check!("MULTI", String, "OK");
    check!("DISCARD", String, "OK");
    check!("WAIT 0 0", i64, 0);
    check!("CLIENT SETNAME me", String, "OK");
    check!("CLIENT GETNAME", Text, some("me"));
    check!("CONFIG GET databases", BTreeMap<String, String>, BTreeMap::from([("databases".to_owned(), "1".to_owned())]));
    let count: usize = ask("COMMAND COUNT").query_async(client).await?;
    assert!(count > 60);
    let info: redis::InfoDict = ask("INFO").query_async(client).await?;
    assert_eq!(info.get::<String>("role").as_deref(), Some("master"));
    assert_eq!(info.get::<u64>("connected_slaves"), Some(0));
    let role: redis::Value = ask("ROLE").query_async(client).await?;
    assert!(matches!(role, redis::Value::Array(_)), "{role:?}");
    check!("FLUSHDB ASYNC", String, "OK");
    Ok(())
}

async fn by_the_rust_client(server: &Running, protocol: &str) -> RedisResult<()> {
    let password = PASSWORD.replace(' ', "%20");
    let url = format!(
        "redis://:{password}@{}/0?protocol={protocol}",
        server.address
    );
    let client = redis::Client::open(url)?;
    let mut connection = client.get_multiplexed_async_connection().await?;
    script(&mut connection).await?;

    // A transaction that is sent at once, and typed commands.
    let ((old, new),): ((i64, i64),) = pipe()
        .atomic()
        .set("n", 41)
        .ignore()
        .get("n")
        .incr("n", 1)
        .query_async(&mut connection)
        .await
        .map(|(old, new)| ((old, new),))?;
    assert_eq!((old, new), (41, 42));
    AsyncTypedCommands::hset_multiple(&mut connection, "h", &[("f", 1), ("g", 2)]).await?;
    let all: BTreeMap<String, i64> = AsyncCommands::hgetall(&mut connection, "h").await?;
    assert_eq!(all.len(), 2);
    let mut keys = Vec::new();
    {
        let mut scan = AsyncCommands::scan::<String>(&mut connection).await?;
        while let Some(key) = scan.next_item().await {
            keys.push(key?);
        }
    }
    keys.sort();
    assert_eq!(keys, ["h", "n"]);
    let refused: RedisResult<i64> = AsyncCommands::incr(&mut connection, "h", 1).await;
    assert_eq!(refused.unwrap_err().code(), Some("WRONGTYPE"));
    Ok(())
}

#[tokio::test]
async fn the_rust_client_runs_every_command() {
    let server = server();
    for protocol in ["resp2", "resp3"] {
        by_the_rust_client(&server, protocol).await.unwrap();
    }
}

/// Runs Redis' own client with commands on its standard input, and returns what it prints.
fn redis_cli(server: &Running, options: &[&str], input: &str) -> String {
    use std::io::Write;
    let mut child = Command::new("redis-cli")
        .args(["-p", &server.address.port().to_string()])
        .args(options)
        .env("REDISCLI_AUTH", PASSWORD)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("redis-cli is needed; `scripts/setup --test` installs it");
    child
        .stdin
        .take()
        .unwrap()
        .write_all(input.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn redis_cli_runs_a_script() {
    let server = server();
    let input = "SET k v\nGET k\nHSET h f v\nHGETALL h\nINCR k\nMULTI\nSET n 1\nINCR n\nEXEC\nSCAN 0 MATCH k\nPTTL k\nNOPE\n";
    for (options, hash) in [(&["-2"][..], "f\nv"), (&["-3"], "f v")] {
        server_is_empty(&server);
        let printed = redis_cli(&server, options, input);
        let expected = format!(
            "OK\nv\n1\n{hash}\nERR value is not an integer or out of range\n\nOK\nQUEUED\nQUEUED\nOK\n2\n0\nk\n-1\n\
             ERR unknown command 'NOPE', with args beginning with: \n\n"
        );
        assert_eq!(printed, expected, "{options:?}");
    }
    let many: String = (0..1000)
        .map(|number| format!("SET key{number} v\r\n"))
        .collect();
    assert!(redis_cli(&server, &["--pipe"], &many).contains("errors: 0, replies: 1000"));
    assert_eq!(
        redis_cli(&server, &["--scan", "--pattern", "key99?"], "")
            .lines()
            .count(),
        10
    );
    assert!(redis_cli(&server, &["--bigkeys"], "").contains("Sampled 1003 keys"));
}

fn server_is_empty(server: &Running) {
    assert_eq!(redis_cli(server, &["FLUSHALL"], ""), "OK\n");
}

#[test]
fn redis_benchmark_runs_against_it() {
    let server = server();
    let output = Command::new("redis-benchmark")
        .args(["-p", &server.address.port().to_string(), "-a", PASSWORD])
        .args([
            "-t",
            "ping,set,get,incr,hset,mset",
            "-n",
            "2000",
            "-c",
            "20",
            "-P",
            "4",
            "-q",
        ])
        .output()
        .expect("redis-benchmark is needed; `scripts/setup --test` installs it");
    let (printed, errors) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "{printed}{errors}");
    for name in ["SET", "GET", "INCR", "HSET", "MSET (10 keys)"] {
        assert!(
            printed.contains(&format!("{name}: ")),
            "{name}: {printed}{errors}"
        );
    }
    let all = format!("{printed}{errors}");
    assert!(!all.to_lowercase().contains("error"), "{all}");
}
