//! The key-value store of whole nodes: what clients see in each role, and through each failure.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::Value;

use crate::world::{Machine, Pair, Plan, Signal, holds, until};

/// Where clients reach the store.
const PORT: u16 = 7479;

fn durability(machine: &Machine) -> Value {
    let status = machine.status();
    let stores = status["stores"].as_array().unwrap();
    stores[0]["durability"].clone()
}

fn wait_for(machine: &Machine, state: &str) {
    until(&format!("writes are {state}"), Pair::PATIENCE, || {
        let durability = durability(machine);
        holds(durability["state"] == state, durability)
    });
}

/// Sends a command as Redis' clients do inline, and returns the first line of the answer.
fn ask(machine: &Machine, command: &str) -> String {
    let mut stream = TcpStream::connect((machine.ip.as_str(), PORT)).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    stream
        .write_all(format!("{command}\r\n").as_bytes())
        .unwrap();
    let mut answer = Vec::new();
    let mut byte = [0];
    while !answer.ends_with(b"\r\n") && stream.read(&mut byte).unwrap() == 1 {
        answer.push(byte[0]);
    }
    String::from_utf8(answer).unwrap().trim_end().to_owned()
}

/// Returns the value of a string as a Redis client gets it.
fn value(machine: &Machine, key: &str) -> Option<String> {
    let ended = machine.json(&["kv", "get", key]);
    ended["value"].as_str().map(str::to_owned)
}

#[test]
fn l07_clients_of_both_nodes_see_what_their_roles_allow() {
    let mut pair = Pair::new(Plan::kv("standby_reads = true"));
    wait_for(&pair.a, "held");
    assert_eq!(ask(&pair.a, "SET greeting hello"), "+OK");
    assert_eq!(ask(&pair.a, "INCR visits"), ":1");
    assert_eq!(ask(&pair.a, "WAIT 1 1000"), ":1");
    pair.wait();
    assert_eq!(ask(&pair.b, "GET greeting"), "$5");
    assert_eq!(
        ask(&pair.b, "SET greeting bye"),
        "-READONLY You can't write against a read only replica."
    );
    let refused = pair.b.try_understudy(&["kv", "put", "greeting", "bye"]);
    assert_eq!(refused.status, Some(3), "{refused:?}");
    assert!(
        refused.stderr.contains("node a") || refused.stderr.contains(" a"),
        "{refused:?}"
    );
    // Told by the standby's next report.
    until("nothing is missing on b", Pair::PATIENCE, || {
        let lag = pair.a.get("/monitor/replication")[&pair.ips[1]].clone();
        let keys = ["kv_lag_ops", "kv_lag_bytes"];
        holds(keys.iter().all(|key| lag[key] == "0"), &lag)
    });
    pair.b.understudy(&["switchover"]);
    pair.assert_b_is_primary();
    assert_eq!(ask(&pair.b, "INCR visits"), ":2");
    assert_eq!(value(&pair.b, "greeting").as_deref(), Some("hello"));
    until("a follows", Pair::PATIENCE, || {
        let role = pair.a.try_status()?["role"].clone();
        holds(role == "standby", &role)
    });
    wait_for(&pair.b, "held");
}

#[test]
fn l10_an_outage_of_the_standby_is_an_alarm_and_no_freeze() {
    let mut pair = Pair::new(Plan::kv("degrade_after = \"2s\""));
    wait_for(&pair.a, "held");
    pair.write(1);
    pair.b.signal(Signal::STOP);
    // It waits, then goes on alone.
    pair.write(2);
    pair.a.wait_for_event("kv_degraded", "goes on alone");
    assert_eq!(durability(&pair.a)["state"], "alone");
    pair.write(3);
    let status = pair.a.status();
    let problems = status["problems"].to_string();
    assert!(problems.contains("are on no standby"), "{problems}");
    let metrics = pair.a.try_http("GET", "/metrics").unwrap().body;
    let at_risk = metrics
        .lines()
        .find(|line| line.contains("at_risk_operations") && !line.starts_with('#'))
        .unwrap();
    assert!(!at_risk.ends_with(" 0"), "{at_risk}");
    pair.b.signal(Signal::CONT);
    pair.a.wait_for_event("kv_recovered", "");
    wait_for(&pair.a, "held");
    pair.wait();
    pair.b.understudy(&["promote"]);
    pair.assert_b_is_primary();
    pair.assert_written_keys(3);
}

#[test]
fn a_strict_store_would_rather_refuse_writes() {
    let pair = Pair::new(Plan::kv(
        "degrade_after = \"never\"\nwrite_timeout = \"1s\"",
    ));
    wait_for(&pair.a, "held");
    pair.write(1);
    pair.b.signal(Signal::STOP);
    assert_eq!(
        ask(&pair.a, "SET k v"),
        "-NOREPLICAS Not enough good replicas to write."
    );
    assert_eq!(
        ask(&pair.a, "SET k w"),
        "-NOREPLICAS Not enough good replicas to write."
    );
    assert_eq!(ask(&pair.a, "GET key-1"), "$7");
    pair.a
        .wait_for_event("kv_refusing", "degrade_after is \"never\"");
    pair.b.signal(Signal::CONT);
    until("writes are taken again", Pair::PATIENCE, || {
        let answer = ask(&pair.a, "SET k x");
        holds(answer == "+OK", answer)
    });
}

#[test]
fn l08_what_was_acknowledged_survives_the_primary_and_what_only_it_had_is_salvaged() {
    let mut pair = Pair::new(Plan::kv("degrade_after = \"1s\""));
    wait_for(&pair.a, "held");
    for number in 0..50 {
        pair.write(number);
    }
    // The standby is gone, and the primary goes on alone: those writes are at risk, and said to be.
    pair.b.kill_daemon();
    pair.a.understudy(&["kv", "put", "alone", "only on a"]);
    pair.a.understudy(&["kv", "put", "key-7", "changed on a"]);
    pair.a.power_off();
    pair.b.spawn(&[], &[]);
    until("b answers", Pair::PATIENCE, || pair.b.try_status());
    pair.b.understudy(&["promote", "--force"]);
    pair.assert_b_is_primary();
    for number in 0..50 {
        pair.assert_written_keys(number);
    }
    assert_eq!(value(&pair.b, "alone"), None);
    pair.b.understudy(&["kv", "put", "key-7", "changed since"]);
    pair.a.serve();
    pair.assert_a_is_fenced();
    pair.a.understudy(&["rejoin"]);
    pair.a.wait_for_event("kv_salvaged", "only this node has");
    let bundles = pair.a.json(&["kv", "salvage", "list"]);
    let bundles = bundles["bundles"]
        .as_array()
        .unwrap_or_else(|| panic!("{bundles}"));
    assert_eq!(bundles.len(), 1, "{bundles:?}");
    let name = bundles[0]["name"].as_str().unwrap();
    let shown = pair.a.understudy(&["kv", "salvage", "show", name]);
    assert!(shown.contains("alone"), "{shown}");
    // The primary learns of it from there, and shows the newest.
    let from_a = pair.b.json(&["kv", "salvage", "list", "--from", "a"]);
    assert_eq!(from_a["bundles"].as_array(), Some(bundles));
    let from_b = pair.b.understudy(&["kv", "salvage", "show", "--from", "a"]);
    assert_eq!(from_b, shown);
    // Both lists say the same of who was told what.
    let told = "clients were told that it is kept: of some of it at least";
    for list in [["kv", "salvage", "list"].as_slice(), &["salvage", "list"]] {
        let listed = pair.a.understudy(list);
        assert!(listed.contains(told), "{listed}");
    }
    // It is put back where it does no harm; what is in the way is left, and the exit status says so.
    let would = pair
        .b
        .json(&["kv", "salvage", "replay", name, "--from", "a", "--dry-run"]);
    assert_eq!(
        (&would["added"], &would["conflicts"]),
        (&1.into(), &1.into())
    );
    assert_eq!(value(&pair.b, "alone"), None);
    let replayed = pair.a.try_understudy(&["kv", "salvage", "replay", name]);
    assert_eq!(replayed.status, Some(3), "{replayed:?}");
    assert!(replayed.stderr.contains("--overwrite"), "{replayed:?}");
    assert_eq!(value(&pair.b, "alone").as_deref(), Some("only on a"));
    assert_eq!(value(&pair.b, "key-7").as_deref(), Some("changed since"));
    pair.b
        .understudy(&["kv", "salvage", "replay", name, "--overwrite"]);
    assert_eq!(value(&pair.b, "key-7").as_deref(), Some("changed on a"));
}

#[test]
fn a_lost_or_damaged_copy_is_made_anew_and_the_original_refuses_to_lose_anything() {
    let mut pair = Pair::new(Plan::kv("standby_reads = true"));
    wait_for(&pair.a, "held");
    for number in 0..20 {
        pair.write(number);
    }
    pair.wait();
    pair.b.kill_daemon();
    let log = pair.b.state().join("kv/log/00000000000000000000.log");
    let mut bytes = std::fs::read(&log).unwrap();
    bytes[100] ^= 1;
    std::fs::write(&log, bytes).unwrap();
    pair.b.serve();
    pair.b.wait_for_event("kv_damaged", "is damaged at byte");
    pair.wait();
    pair.assert_written_keys(19);
    pair.b.understudy(&["promote"]);
    pair.assert_b_is_primary();
    pair.assert_written_keys(0);
}

#[test]
fn keys_of_any_bytes_are_put_listed_and_removed_by_the_command_line() {
    let pair = Pair::new(Plan::kv("view = true"));
    wait_for(&pair.a, "held");
    let a = &pair.a;
    a.understudy(&["kv", "put", "user:1", "grün", "--expires", "1h"]);
    a.understudy(&["kv", "put", "user:2", "two\nlines"]);
    assert_eq!(ask(a, "HSET hash f 1"), ":1");
    assert_eq!(ask(a, r#"SET "bin\xff" "\x01\xfe""#), "+OK");
    assert_eq!(a.understudy(&["kv", "get", "user:1"]), "grün\n");
    assert_eq!(
        a.understudy(&["kv", "scan", "--values"]),
        "bin\\xff  \\x01\\xfe\nhash  {f: 1}\nuser:1  grün\nuser:2  two\\nlines\n"
    );
    let found = a.json(&["kv", "scan", "user:*", "--limit", "1"]);
    assert_eq!(found["keys"].as_array().map(Vec::len), Some(1), "{found}");
    assert_eq!(found["has_more"], true, "{found}");
    let binary = &a.json(&["kv", "scan", "b*", "--values"])["keys"][0];
    assert_eq!(binary["key"]["base64"], "Ymlu/w==", "{binary}");
    assert_eq!(binary["content"]["value"]["base64"], "Af4=", "{binary}");
    let expiring = a.get("/kv/key/user%3A1");
    assert_eq!(expiring["value"], "grün", "{expiring}");
    assert!(
        expiring["ttl_ms"].as_u64().unwrap() <= 3_600_000,
        "{expiring}"
    );
    assert_eq!(a.get("/kv")["durability"], "standby-first");
    let absent = a.try_understudy(&["kv", "get", "none"]);
    assert_eq!(absent.status, Some(1), "{absent:?}");
    assert_eq!(a.json(&["kv", "get", "none"])["type"], "none");
    let removed = a.understudy(&["kv", "del", "user:1", "user:2", "none"]);
    assert_eq!(removed, "2 of 3 keys removed\n");
    for verb in [["kv", "put", "k", "v"].as_slice(), &["kv", "del", "k"]] {
        let refused = pair.b.try_understudy(verb);
        assert_eq!(refused.status, Some(3), "{refused:?}");
        assert!(refused.stderr.contains("ask node a"), "{refused:?}");
    }
    let refused = pair.b.try_understudy(&["kv", "get", "hash"]);
    assert_eq!(refused.status, Some(3), "{refused:?}");
}
