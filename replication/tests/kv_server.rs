//! What a client of the server sees while the store behind it waits, refuses, or is not there.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod kv_support;

use kv_support::client::{Client, Value, bulk, encode, error, fields, ok};
use kv_support::{Commits, Running, wait_until};
use std::sync::atomic::Ordering;
use understudy_replication::kv::keyspace::Refusal;
use understudy_replication::kv::server::{Password, ServerOptions};
use understudy_replication::position::Position;

fn running(commits: Commits) -> (Running, Client) {
    let server = Running::start(commits, ServerOptions::default());
    let client = Client::connect(server.address);
    (server, client)
}

fn queued() -> Value {
    Value::Simple("QUEUED".to_owned())
}

/// Sends lines at once.
fn pipeline(client: &mut Client, lines: &[&str]) {
    let bytes: Vec<u8> = lines
        .iter()
        .flat_map(|line| encode(&line.split(' ').collect::<Vec<_>>()))
        .collect();
    client.send(&bytes);
}

#[test]
fn a_write_is_neither_answered_nor_seen_by_others_before_it_is_committed() {
    let (server, mut writer) = running(Commits::WhenTold);
    let mut reader = Client::connect(server.address);
    pipeline(&mut writer, &["PING", "SET k v", "GET k", "PING"]);
    wait_until("the write", || server.store.end() == Position(1));
    assert_eq!(
        reader.say("GET k"),
        Value::Null,
        "reads do not wait for others' writes"
    );
    assert!(writer.is_silent());
    server.store.commit();
    assert_eq!(writer.receive(), Value::Simple("PONG".to_owned()));
    assert_eq!(writer.receive(), ok());
    assert_eq!(writer.receive(), bulk("v"), "one sees what one has written");
    assert_eq!(writer.receive(), Value::Simple("PONG".to_owned()));
    assert_eq!(reader.say("GET k"), bulk("v"));
}

#[test]
fn a_write_that_was_not_kept_is_answered_by_why_and_so_is_what_saw_it() {
    let (server, mut client) = running(Commits::WhenTold);
    pipeline(
        &mut client,
        &["GET k", "SET k v", "PING", "GET k", "NOPE", "INCR n"],
    );
    wait_until("the writes", || server.store.end() == Position(2));
    server.store.failure.send_replace(Some(Refusal::NoReplicas));
    let refused = error("NOREPLICAS Not enough good replicas to write.");
    assert_eq!(client.receive(), Value::Null);
    assert_eq!(client.receive(), refused);
    assert_eq!(client.receive(), Value::Simple("PONG".to_owned()));
    assert_eq!(client.receive(), refused);
    assert_eq!(
        client.receive(),
        error("ERR unknown command 'NOPE', with args beginning with: ")
    );
    assert_eq!(client.receive(), refused);
    assert_eq!(client.say("GET k"), Value::Null);
}

#[test]
fn what_the_store_refuses_is_told_and_the_rest_goes_on() {
    let (server, mut client) = running(Commits::AtOnce);
    *server.store.refusal.lock().unwrap() = Some(Refusal::ReadOnly);
    let refused = "READONLY You can't write against a read only replica.";
    assert_eq!(client.say("SET k v"), error(refused));
    assert_eq!(client.say("PING"), Value::Simple("PONG".to_owned()));
    let why = "NOREPLICAS Not enough good replicas to write.";
    *server.store.refusal.lock().unwrap() = Some(Refusal::NoReplicas);
    assert_eq!(client.say("MULTI"), ok());
    assert_eq!(client.say("SET k v"), queued());
    let aborted = format!("EXECABORT Transaction discarded because of: {why}");
    assert_eq!(client.say("EXEC"), error(&aborted));
    assert_eq!(client.say("EXEC"), error("ERR EXEC without MULTI"));
}

#[test]
fn a_node_that_answers_no_reads_still_tells_what_it_is() {
    let (server, mut client) = running(Commits::AtOnce);
    assert_eq!(client.say("SET k v"), ok());
    *server.store.refusal.lock().unwrap() = Some(Refusal::NotHere { primary: None });
    server.store.standing.lock().unwrap().is_primary = false;
    let info = fields(&client.say("INFO").text());
    assert_eq!(info.get("role").map(String::as_str), Some("slave"));
    assert_eq!(
        info.get("maxmemory").map(String::as_str),
        Some("1073741824")
    );
    assert!(!info.contains_key("db0"), "{info:?}");
}

#[test]
fn a_read_behind_a_write_is_answered_though_no_more_writes_are_taken() {
    let (server, mut client) = running(Commits::AtOnce);
    *server.store.writes_left.lock().unwrap() = Some(1);
    let lines = ["SET k v", "INFO keyspace", "GET k", "SET k w", "GET k"];
    pipeline(&mut client, &lines);
    assert_eq!(client.receive(), ok());
    let info = fields(&client.receive().text());
    assert_eq!(info.len(), 1, "{info:?}");
    assert_eq!(client.receive(), bulk("v"));
    assert_eq!(client.receive(), error(&Refusal::NoReplicas.to_string()));
    assert_eq!(client.receive(), bulk("v"));
}

#[test]
fn where_no_write_is_taken_a_transaction_hears_it_at_its_first_write() {
    let (server, mut client) = running(Commits::AtOnce);
    *server.store.refusal.lock().unwrap() = Some(Refusal::ReadOnly);
    let refused = error("READONLY You can't write against a read only replica.");
    let aborted = error("EXECABORT Transaction discarded because of previous errors.");
    for line in ["SET k v", "FLUSHALL"] {
        pipeline(&mut client, &["MULTI", "GET k", line, "PING", "EXEC"]);
        for answer in [ok(), queued(), refused.clone(), queued(), aborted.clone()] {
            assert_eq!(client.receive(), answer, "{line}");
        }
    }
    // A client that sends one command at a time hears the same.
    assert_eq!(client.say("MULTI"), ok());
    assert_eq!(client.say("INCR k"), refused);
    assert_eq!(client.say("EXEC"), aborted);
}

#[test]
fn a_store_that_is_being_opened_says_so() {
    let (server, mut client) = running(Commits::AtOnce);
    server.is_open.store(false, Ordering::SeqCst);
    let loading = error("LOADING Redis is loading the dataset in memory");
    for line in [
        "GET k", "SET k v", "WAIT 0 0", "ROLE", "FLUSHALL", "HELLO 3",
    ] {
        assert_eq!(client.say(line), loading, "{line}");
    }
    let info = fields(&client.say("INFO").text());
    assert!(info.contains_key("uptime_in_seconds"), "{info:?}");
    assert!(!info.contains_key("used_memory"), "{info:?}");
    let wrong = error("WRONGPASS invalid username-password pair or user is disabled.");
    assert_eq!(client.call(&["HELLO", "3", "AUTH", "someone", "x"]), wrong);
    assert_eq!(client.say("PING"), Value::Simple("PONG".to_owned()));
    server.is_open.store(true, Ordering::SeqCst);
    assert_eq!(client.say("GET k"), Value::Null);
}

#[test]
fn nothing_is_done_for_who_has_not_told_the_password() {
    let options = ServerOptions {
        password: Some(Password::new("open sesame")),
        ..ServerOptions::default()
    };
    let server = Running::start(Commits::AtOnce, options);
    let mut client = Client::connect(server.address);
    let needed = error("NOAUTH Authentication required.");
    for line in [
        "GET k",
        "SET k v",
        "MULTI",
        "PING",
        "INFO",
        "CLIENT LIST",
        "COMMAND",
    ] {
        assert_eq!(client.say(line), needed, "{line}");
    }
    let wrong = error("WRONGPASS invalid username-password pair or user is disabled.");
    assert_eq!(client.call(&["AUTH", "open"]), wrong);
    assert_eq!(client.call(&["AUTH", "someone", "open sesame"]), wrong);
    assert_eq!(client.call(&["HELLO", "3", "AUTH", "default", ""]), wrong);
    let Value::Error(text) = client.say("HELLO 3") else {
        panic!("HELLO needs the password");
    };
    assert!(text.starts_with("NOAUTH HELLO must be called"), "{text}");
    assert_eq!(client.say("GET k"), needed);
    assert_eq!(client.call(&["AUTH", "open sesame"]), ok());
    assert_eq!(client.say("GET k"), Value::Null);
    assert_eq!(client.say("RESET"), Value::Simple("RESET".to_owned()));
    assert_eq!(client.say("GET k"), needed);

    let mut other = Client::connect(server.address);
    let greeting = other.call(&[
        "HELLO",
        "3",
        "AUTH",
        "default",
        "open sesame",
        "SETNAME",
        "me",
    ]);
    assert!(matches!(greeting, Value::Map(_)), "{greeting:?}");
    assert_eq!(other.say("CLIENT GETNAME"), bulk("me"));

    let mut stranger = Client::connect(server.address);
    stranger.send(b"*2\r\n$3\r\nGET\r\n$20000\r\n");
    let refused = "-ERR Protocol error: unauthenticated bulk length\r\n";
    assert_eq!(stranger.rest(), refused);
    // What may be sent depends on what the command before did, though both come together.
    let mut eager = Client::connect(server.address);
    let value = "v".repeat(20_000);
    eager.send(
        &[
            encode(&["AUTH", "open sesame"]),
            encode(&["SET", "k", &value]),
        ]
        .concat(),
    );
    assert_eq!((eager.receive(), eager.receive()), (ok(), ok()));
}

#[test]
fn a_transaction_whose_watched_key_was_changed_meanwhile_does_nothing() {
    let (server, mut client) = running(Commits::WhenTold);
    let mut other = Client::connect(server.address);
    // The change is not committed yet when the watch begins: it has to wait, else what is read next is
    // older than what is watched.
    other.send_command(&["SET", "k", "1"]);
    wait_until("the write", || server.store.end() == Position(1));
    client.send_command(&["WATCH", "k"]);
    assert!(client.is_silent());
    server.store.commit();
    assert_eq!(client.receive(), ok());
    assert_eq!(client.say("GET k"), bulk("1"));
    assert_eq!(other.receive(), ok());
    other.send_command(&["INCR", "k"]);
    wait_until("the change", || server.store.end() == Position(2));
    server.store.commit();
    assert_eq!(other.receive(), Value::Integer(2));
    for (line, answer) in [
        ("MULTI", ok()),
        ("SET k mine", queued()),
        ("EXEC", Value::Null),
    ] {
        assert_eq!(client.say(line), answer);
    }
    assert_eq!(client.say("GET k"), bulk("2"));
}

#[test]
fn a_pipeline_of_any_length_is_answered_in_order() {
    let (_server, mut client) = running(Commits::Later);
    let count = 20_000;
    let bytes: Vec<u8> = (0..count)
        .flat_map(|number| match number % 4 {
            0 => encode(&["INCR", "n"]),
            1 => encode(&["GET", "n"]),
            2 => encode(&["ECHO", &number.to_string()]),
            _ => encode(&["HSET", "h", &number.to_string(), "v"]),
        })
        .collect();
    let mut sender = client.another();
    let sending = std::thread::spawn(move || sender.send(&bytes));
    for number in 0..count {
        let expected = match number % 4 {
            0 => Value::Integer(number / 4 + 1),
            1 => bulk(&(number / 4 + 1).to_string()),
            2 => bulk(&number.to_string()),
            _ => Value::Integer(1),
        };
        assert_eq!(client.receive(), expected, "{number}");
    }
    sending.join().unwrap();
    assert_eq!(client.say("HLEN h"), Value::Integer(count / 4));
}

#[test]
fn a_client_whose_short_commands_make_much_waits_before_it_makes_more() {
    let (server, mut client) = running(Commits::WhenTold);
    client.send_command(&["SET", "k", &"v".repeat(1_000_000)]);
    wait_until("the value", || server.store.end() == Position(1));
    server.store.commit();
    assert_eq!(client.receive(), ok());
    pipeline(&mut client, &["APPEND k v"; 100]);
    wait_until("the end of the last", || {
        let pending = server.store.pending_bytes();
        assert!(pending < 6 << 20, "{pending} bytes wait");
        server.store.commit();
        server.store.end() == Position(101)
    });
    server.store.commit();
    for number in 1..=100 {
        assert_eq!(client.receive(), Value::Integer(1_000_000 + number));
    }
}

#[test]
fn a_pattern_that_takes_too_long_to_compare_is_refused() {
    let (_server, mut client) = running(Commits::AtOnce);
    let pattern = "*a".repeat(40_000);
    let refused = error("ERR a pattern has at most 65536 bytes");
    assert_eq!(client.call(&["KEYS", &pattern]), refused);
    assert_eq!(client.call(&["SCAN", "0", "MATCH", &pattern]), refused);
    client.say("HSET h f v");
    assert_eq!(
        client.call(&["HSCAN", "h", "0", "MATCH", &pattern]),
        refused
    );
}

#[test]
fn wait_tells_how_many_standbys_have_it() {
    let (server, mut client) = running(Commits::AtOnce);
    assert_eq!(client.say("WAIT 0 0"), Value::Integer(0));
    assert_eq!(
        client.say("WAIT 1 20"),
        Value::Integer(0),
        "the time is over"
    );
    server.store.standing.lock().unwrap().standbys = vec![("b".to_owned(), Position(9))];
    pipeline(&mut client, &["SET k v", "WAIT 1 0", "GET k"]);
    assert_eq!(client.receive(), ok());
    assert_eq!(client.receive(), Value::Integer(1));
    assert_eq!(client.receive(), bulk("v"));
    for (line, answer) in [
        ("MULTI", ok()),
        ("WAIT 5 0", queued()),
        ("EXEC", Value::Array(vec![Value::Integer(1)])),
    ] {
        assert_eq!(client.say(line), answer);
    }
    server.store.standing.lock().unwrap().is_primary = false;
    let Value::Error(text) = client.say("WAIT 1 0") else {
        panic!("a standby does not wait for standbys");
    };
    assert!(
        text.starts_with("ERR WAIT cannot be used with replica instances."),
        "{text}"
    );
}

#[test]
fn a_client_that_leaves_while_it_waits_leaves_nothing_behind() {
    let (server, mut client) = running(Commits::AtOnce);
    let mut waiting = Client::connect(server.address);
    waiting.send_command(&["WAIT", "1", "0"]);
    let clients = |client: &mut Client| client.say("CLIENT LIST").text().lines().count();
    wait_until("both clients", || clients(&mut client) == 2);
    drop(waiting);
    wait_until("the end of one", || clients(&mut client) == 1);
}

#[test]
fn what_is_too_large_is_refused_and_the_client_stays() {
    let (_server, mut client) = running(Commits::AtOnce);
    let too_large = error("ERR string exceeds maximum allowed size (proto-max-bulk-len)");
    let value = "v".repeat((1 << 20) + 1);
    let key = "k".repeat((64 << 10) + 1);
    assert_eq!(client.call(&["SET", "k", &value]), too_large);
    assert_eq!(client.call(&["SET", &key, "v"]), too_large);
    assert_eq!(client.call(&["GET", &key]), Value::Null);
    assert_eq!(client.call(&["DEL", &key]), Value::Integer(0));
    assert_eq!(client.call(&["HSET", "h", &key, "v"]), too_large);
    let most = &value[1..];
    assert_eq!(client.call(&["SET", "k", most]), ok());
    assert_eq!(client.call(&["APPEND", "k", "v"]), too_large);
    assert_eq!(
        client.call(&["MSET", "a", most, "b", most, "c", most]),
        too_large
    );
    assert_eq!(client.say("EXISTS a b c"), Value::Integer(0), "all or none");
    assert_eq!(client.say("MULTI"), ok());
    for key in ["a", "b"] {
        assert_eq!(client.call(&["SET", key, most]), queued());
    }
    assert_eq!(client.call(&["SET", "c", most]), too_large);
    assert_eq!(
        client.say("EXEC"),
        error("EXECABORT Transaction discarded because of previous errors.")
    );
    // Little is asked for, and much would be made.
    assert_eq!(client.call(&["SET", "s", &most[..most.len() - 10]]), ok());
    assert_eq!(client.say("MULTI"), ok());
    for _ in 0..4 {
        assert_eq!(client.call(&["APPEND", "s", "v"]), queued());
    }
    let Value::Array(answers) = client.say("EXEC") else {
        panic!("EXEC runs");
    };
    assert_eq!(answers.len(), 4);
    assert_eq!(answers[3], too_large);
    assert_eq!(
        client.call(&["SET", "k", &"v".repeat(5 << 20)]),
        error("ERR Protocol error: invalid bulk length")
    );
}

#[test]
fn to_remove_everything_has_to_be_allowed() {
    let (server, mut client) = running(Commits::AtOnce);
    server.store.standing.lock().unwrap().allows_flush = false;
    assert_eq!(client.say("SET k v"), ok());
    for line in ["FLUSHALL", "FLUSHDB ASYNC"] {
        let Value::Error(text) = client.say(line) else {
            panic!("{line} is refused");
        };
        assert!(text.contains("allow_flush = true"), "{text}");
    }
    assert_eq!(client.say("GET k"), bulk("v"));
    server.store.standing.lock().unwrap().allows_flush = true;
    assert_eq!(client.say("FLUSHALL"), ok());
    assert_eq!(client.say("DBSIZE"), Value::Integer(0));
}

#[test]
fn more_clients_than_allowed_are_turned_away() {
    let options = ServerOptions {
        clients_max: 1,
        ..ServerOptions::default()
    };
    let server = Running::start(Commits::AtOnce, options);
    let mut client = Client::connect(server.address);
    assert_eq!(client.say("PING"), Value::Simple("PONG".to_owned()));
    assert_eq!(
        Client::connect(server.address).rest(),
        "-ERR max number of clients reached\r\n"
    );
    drop(client);
    wait_until("a free place", || {
        let mut client = Client::connect(server.address);
        client.send_command(&["QUIT"]);
        client.rest() == "+OK\r\n"
    });
}

#[test]
fn what_the_node_is_can_be_asked() {
    let (server, mut client) = running(Commits::AtOnce);
    server.store.standing.lock().unwrap().standbys = vec![("b".to_owned(), Position(0))];
    client.say("SET k v EX 1000");
    let info = |client: &mut Client, line: &str| fields(&client.say(line).text());
    let all = info(&mut client, "INFO");
    for (name, value) in [
        ("role", "master"),
        ("connected_slaves", "1"),
        ("db0", "keys=1,expires=1,avg_ttl=0"),
        ("maxmemory", "1073741824"),
        ("connected_clients", "1"),
    ] {
        assert_eq!(all.get(name).map(String::as_str), Some(value), "{name}");
    }
    assert_eq!(info(&mut client, "INFO keyspace").len(), 1);
    let standbys = Value::Array(vec![Value::Array(vec![bulk("b"), bulk("0"), bulk("0")])]);
    assert_eq!(
        client.say("ROLE"),
        Value::Array(vec![bulk("master"), Value::Integer(0), standbys])
    );
    {
        let mut standing = server.store.standing.lock().unwrap();
        standing.is_primary = false;
        standing.primary = Some("a".to_owned());
    }
    assert_eq!(
        info(&mut client, "INFO replication").get("role").unwrap(),
        "slave"
    );
    assert_eq!(
        client.say("ROLE"),
        Value::Array(vec![
            bulk("slave"),
            bulk("a"),
            Value::Integer(0),
            bulk("connected"),
            Value::Integer(0)
        ])
    );
    let Value::Array(all) = client.say("COMMAND") else {
        panic!("COMMAND lists the commands");
    };
    let count = i64::try_from(all.len()).unwrap();
    assert_eq!(client.say("COMMAND COUNT"), Value::Integer(count));
}

#[test]
fn a_client_that_does_not_read_does_not_hold_up_others() {
    let (_server, mut client) = running(Commits::AtOnce);
    let value = "v".repeat(1 << 20);
    assert_eq!(client.call(&["SET", "k", &value]), ok());
    let mut lazy = Client::connect(_server.address);
    for _ in 0..200 {
        lazy.send_command(&["GET", "k"]);
    }
    for _ in 0..100 {
        assert_eq!(client.say("STRLEN k"), Value::Integer(1 << 20));
    }
    for _ in 0..200 {
        assert_eq!(lazy.receive(), bulk(&value));
    }
}

#[test]
fn a_server_that_is_told_to_stop_closes_every_connection() {
    let (server, mut client) = running(Commits::WhenTold);
    client.send_command(&["SET", "k", "v"]);
    wait_until("the write", || server.store.end() == Position(1));
    drop(server);
    assert_eq!(client.rest(), "");
}
