//! The answers of our server beside those of Redis' own, for the same commands.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod kv_support;

use kv_support::client::{Client, Value, bulk, error};
use kv_support::commands::{Generator, Random, Rule};
use kv_support::pair::Pair;
use kv_support::redis::Redis;
use kv_support::{Commits, Running, wait_until};
use understudy_replication::kv::server::ServerOptions;

/// Where our answers differ from those of Redis, on purpose: each with a test of what ours is.
/// `docs/stores/kv-commands.md` has the same list under "Differences from Redis".
const DIFFERENCES: &[(&str, Answer)] = &[
    // There is one database.
    ("SELECT 1", Answer::Error("ERR DB index is out of range")),
    // What is for other kinds of values, for scripts, or for operating Redis is not there.
    (
        "LPUSH k v",
        Answer::Error("ERR unknown command 'LPUSH', with args beginning with: 'k' 'v' "),
    ),
    (
        "PUBLISH c m",
        Answer::Error("ERR unknown command 'PUBLISH', with args beginning with: 'c' 'm' "),
    ),
    (
        "CONFIG SET maxmemory 1",
        Answer::Error("ERR unknown subcommand 'SET'. Try CONFIG HELP."),
    ),
    (
        "CLIENT KILL 1.2.3.4:5",
        Answer::Error("ERR unknown subcommand 'KILL'. Try CLIENT HELP."),
    ),
    // What says how safe data is, says it of our log.
    ("CONFIG GET appendonly", Answer::Pair("appendonly", "yes")),
];

/// An answer that can stand in a constant.
#[derive(Clone, Copy, Debug)]
enum Answer {
    Error(&'static str),
    Pair(&'static str, &'static str),
}

impl Answer {
    fn value(self) -> Value {
        match self {
            Self::Error(text) => error(text),
            Self::Pair(name, value) => Value::Array(vec![bulk(name), bulk(value)]),
        }
    }
}

/// Runs `count` random commands on both, one in some of them in a transaction.
fn run(redis: &Redis, server: &Running, seed: u64, count: usize, is_resp3: bool) {
    let mut pair = Pair {
        ours: Client::connect(server.address),
        theirs: Client::connect(redis.address),
        seed,
        is_resp3,
    };
    if is_resp3 {
        pair.ours.say("HELLO 3");
        pair.theirs.say("HELLO 3");
    }
    pair.say("FLUSHALL");
    // Another client, which changes what is watched.
    let mut other = Pair {
        ours: Client::connect(server.address),
        theirs: Client::connect(redis.address),
        seed,
        is_resp3: false,
    };
    let mut generator = Generator {
        random: Random::new(seed),
    };
    let mut transaction: Option<Vec<(Vec<String>, Rule)>> = None;
    for round in 0..count {
        match (generator.random.below(60), &mut transaction) {
            (0, _) => {
                pair.say("MULTI");
                transaction.get_or_insert_default();
            }
            (1 | 2, _) => {
                // Every answer in the array by its own rule.
                let (ours, theirs) = (pair.ours.say("EXEC"), pair.theirs.say("EXEC"));
                match (transaction.take(), ours, theirs) {
                    (Some(queued), Value::Array(ours), Value::Array(theirs)) => {
                        assert_eq!(
                            (ours.len(), theirs.len()),
                            (queued.len(), queued.len()),
                            "seed {seed}"
                        );
                        for ((command, rule), (ours, theirs)) in
                            queued.iter().zip(ours.into_iter().zip(theirs))
                        {
                            pair.compare(command, *rule, ours, theirs);
                        }
                    }
                    (_, ours, theirs) => {
                        assert_eq!(ours, theirs, "EXEC (seed {seed}, round {round})")
                    }
                }
            }
            (3, _) if generator.random.one_in(3) => {
                pair.say("DISCARD");
                transaction = None;
            }
            (4 | 5, _) => {
                let key = generator.key();
                pair.say(&format!("WATCH {key}"));
            }
            (6, _) if generator.random.one_in(3) => {
                let (ours, theirs) = (pair.ours.say("UNWATCH"), pair.theirs.say("UNWATCH"));
                pair.compare(&["UNWATCH".to_owned()], Rule::Equal, ours.clone(), theirs);
                if let (Some(queued), Value::Simple(word)) = (&mut transaction, ours)
                    && word == "QUEUED"
                {
                    queued.push((vec!["UNWATCH".to_owned()], Rule::Equal));
                }
            }
            (7..=10, _) => {
                let (command, rule) = generator.command();
                // A fault of the other client says nothing that one of the first would not.
                other.call(&command, rule);
            }
            (11, None) => {
                let rest = generator.words(&["COUNT", "3", "MATCH", "<pattern>"]);
                pair.compare_scan(&["SCAN".to_owned()], &rest, false);
                let key = generator.key();
                pair.compare_scan(
                    &["SCAN".to_owned()],
                    &generator.words(&["TYPE", "hash"]),
                    false,
                );
                let start = ["HSCAN".to_owned(), key];
                pair.compare_scan(&start, &[], true);
            }
            (_, None) => {
                let (command, rule) = generator.command();
                pair.call(&command, rule);
            }
            (_, Some(queued)) => {
                let (command, rule) = generator.command();
                let (ours, theirs) = (pair.ours.call(&command), pair.theirs.call(&command));
                if ours == Value::Simple("QUEUED".to_owned()) {
                    queued.push((command.clone(), rule));
                }
                pair.compare(&command, Rule::Equal, ours, theirs);
            }
        }
        if round % 100 == 99 {
            other.compare_all();
        }
    }
}

#[test]
fn thousands_of_random_commands_are_answered_as_redis_answers_them() {
    let redis = Redis::start();
    for (commits, rounds, count) in [(Commits::AtOnce, 8, 2500), (Commits::Later, 2, 600)] {
        let server = Running::start(commits, ServerOptions::default());
        for seed in 0..rounds {
            run(&redis, &server, seed, count, seed % 2 == 1);
        }
    }
}

#[test]
fn what_is_asked_of_the_session_is_answered_as_redis_answers_it() {
    let redis = Redis::start();
    let server = Running::start(Commits::AtOnce, ServerOptions::default());
    for is_resp3 in [false, true] {
        let mut pair = Pair {
            ours: Client::connect(server.address),
            theirs: Client::connect(redis.address),
            seed: 0,
            is_resp3,
        };
        if is_resp3 {
            pair.ours.say("HELLO 3");
            pair.theirs.say("HELLO 3");
        }
        for line in [
            "PING",
            "PING a b",
            "ping x",
            "ECHO",
            "SELECT",
            "SELECT x",
            "SELECT 99999",
            "SELECT -1",
            "AUTH x",
            "AUTH default x",
            "AUTH someone x",
            "AUTH a b c",
            "HELLO x",
            "HELLO 4",
            "HELLO 3 FOO",
            "HELLO 3 AUTH a",
            "HELLO 2 SETNAME",
            "HELLO 3 AUTH someone x",
            "CLIENT",
            "CLIENT GETNAME",
            "CLIENT SETNAME some-name",
            "CLIENT GETNAME",
            "CLIENT SETNAME a\nb",
            "CLIENT SETNAME",
            "CLIENT NOPE",
            "CLIENT ID x",
            "CLIENT NO-EVICT on",
            "CLIENT NO-EVICT x",
            "CLIENT NO-EVICT",
            "EXEC",
            "DISCARD",
            "UNWATCH",
            "WATCH",
            "MULTI x",
            "MULTI",
            "MULTI",
            "WATCH a",
            "SET a",
            "EXEC",
            "MULTI",
            "NOPE",
            "EXEC",
            "MULTI",
            "EXEC x",
            "EXEC",
            "MULTI",
            "DISCARD x",
            "DISCARD",
            "MULTI",
            "GET a b",
            "DISCARD",
            "GET a",
            "MULTI",
            "SET a 1",
            "INCR a",
            "HSET a f v",
            "GET a",
            "PING",
            "WAIT 0 0",
            "SELECT 0",
            "CLIENT GETNAME",
            "UNWATCH",
            "EXEC",
            "MULTI",
            "EXEC",
            "WAIT 0 0",
            "WAIT -1 0",
            "WAIT x 0",
            "WAIT 0 x",
            "WAIT 0 -1",
            "WAIT 0",
            "COMMAND NOPE",
            "COMMAND COUNT x",
            "COMMAND GETKEYS",
            "COMMAND GETKEYS GET a",
            "COMMAND GETKEYS MSET a 1 b 2",
            "COMMAND GETKEYS DEL a b c",
            "COMMAND GETKEYS PING",
            "COMMAND GETKEYS PING x",
            "COMMAND GETKEYS NOPE a",
            "COMMAND GETKEYS GET a b",
            "COMMAND GETKEYS NOPE a",
            "COMMAND GETKEYS GET",
            "COMMAND INFO nope",
            "CONFIG GET databases-and-more",
            "CONFIG GET",
            "CONFIG NOPE",
            "CONFIG",
            "SCAN",
            "SCAN x",
            "SCAN 0 COUNT",
            "SCAN 0 COUNT 0",
            "SCAN 0 COUNT x",
            "SCAN 0 FOO x",
            "SCAN 0 TYPE nope",
            "SCAN -",
            "SCAN 1x",
            "HSCAN a",
            "HSCAN nope 0 FOO",
            "HSCAN nope x",
            "HSCAN a 0",
            "FLUSHALL x",
            "FLUSHDB SYNC ASYNC",
            "FLUSHDB ASYNC",
            "FLUSHALL sync",
            "nope",
            "nope a",
            "nope a b c d e f g h i j k l m n o p q r s t u v w x y z a b c d e f g h i j k l m n o p q r s t u v w x y z",
            "SET k v EX",
            "SET k v EX 1 PX 1",
            "SET k v NX XX",
            "SET k v KEEPTTL EX 1",
            "SET k v EX 1 KEEPTTL",
        ] {
            pair.say(line);
        }
        let long = "x".repeat(300);
        pair.say(&format!("{long} a"));
        pair.say(&format!("nope {long}"));
        pair.say(&format!("CLIENT {long}"));
        pair.say("RESET");
        pair.say("PING");
        pair.say("CLIENT GETNAME");
        pair.say("QUIT");
        assert_eq!(pair.ours.rest(), pair.theirs.rest());
    }
}

#[test]
fn what_is_no_resp_is_answered_as_redis_answers_it() {
    let redis = Redis::start();
    let server = Running::start(Commits::AtOnce, ServerOptions::default());
    let long = "x".repeat(70_000);
    for text in [
        "PING\r\nQUIT\r\n",
        "*1\r\n$4\r\nPING\r\n*1\r\n$4\r\nQUIT\r\n",
        "*0\r\n*-1\r\n\r\n   \r\nPING\nQUIT\n",
        "*x\r\n",
        "*1\r\nPING\r\n",
        "*1\r\n$x\r\n",
        "*1\r\n$-1\r\n",
        "*1\r\n\r\n",
        "*\r\n",
        "* 1\r\n",
        "*+1\r\n",
        "SET \"a b\" 'c\\'d'\r\nGET \"a\\x20b\"\r\nECHO \"\\n\\t\\\\\"\r\nQUIT\r\n",
        "ECHO \"a\r\n",
        "ECHO 'a'b\r\n",
        "ECHO a'b'\r\nQUIT\r\n",
        &long,
        &format!("*{long}"),
        &format!("*1\r\n${long}"),
        "*2\r\n$4\r\nECHO\r\n$3\r\na\r\n\r\n*1\r\n$4\r\nQUIT\r\n",
    ] {
        let answer = |address| {
            let mut client = Client::connect(address);
            client.send(text.as_bytes());
            client.rest()
        };
        let shown: String = text.chars().take(60).collect();
        assert_eq!(answer(server.address), answer(redis.address), "{shown:?}");
    }
}

#[test]
fn what_expires_is_gone_for_both() {
    let redis = Redis::start();
    let server = Running::start(Commits::AtOnce, ServerOptions::default());
    let mut pair = Pair {
        ours: Client::connect(server.address),
        theirs: Client::connect(redis.address),
        seed: 0,
        is_resp3: false,
    };
    for line in [
        "SET a v PX 150",
        "HSET h f v",
        "PEXPIRE h 150",
        "SET w v PX 150",
        "WATCH w",
        "SET past v PXAT 1",
        "GET past",
        "SET x v",
        "PEXPIREAT x 1",
        "GET x",
    ] {
        pair.say(line);
    }
    for key in ["a", "h", "w"] {
        for client in [&mut pair.ours, &mut pair.theirs] {
            wait_until("the end of a key", || {
                client.say(&format!("EXISTS {key}")) == Value::Integer(0)
            });
        }
    }
    for line in [
        "MULTI",
        "SET b v",
        "EXEC",
        "GET a",
        "TYPE h",
        "TTL a",
        "HSET h g v",
        "HGETALL h",
        "TTL h",
        "SETNX a new",
        "TTL a",
        "INCR w",
        "APPEND w 1",
        "PERSIST a",
        "SET a v XX GET",
        "KEYS w",
    ] {
        pair.say(line);
    }
}

#[test]
fn where_answers_differ_it_is_as_documented() {
    let redis = Redis::start();
    let server = Running::start(Commits::AtOnce, ServerOptions::default());
    let (mut ours, mut theirs) = (
        Client::connect(server.address),
        Client::connect(redis.address),
    );
    let docs = std::fs::read_to_string(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../docs/stores/kv-commands.md"
    ))
    .unwrap();
    let (_, documented) = docs.split_once("## Differences from Redis").unwrap();
    for (line, answer) in DIFFERENCES {
        let answer = answer.value();
        assert_eq!(ours.say(line), answer, "{line}");
        assert_ne!(
            theirs.say(line),
            answer,
            "{line}: it is no difference any more"
        );
        let shown = format!("`{line}`");
        assert!(documented.contains(&shown), "{shown} is not in the docs");
    }
}
