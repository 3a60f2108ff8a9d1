//! What the port of the peers refuses, each with its reason in an event.

use std::fs;

use serde_json::Value;

use crate::world::{Caller, Machine, Pair, Plan, Signal, call, http, until};

/// A request as a peer sends it, in a version of the protocol and an epoch.
fn request(version: &str) -> String {
    format!(
        "GET /peer/hello HTTP/1.1\r\nHost: a\r\nunderstudy-protocol: {version}\r\n\
         understudy-epoch: 1.a\r\nunderstudy-role: standby\r\nConnection: close\r\n\r\n"
    )
}

#[test]
fn a_named_peer_is_answered_in_its_own_version_only() {
    let pair = Pair::new(Plan::settings());
    let pki = pair.b.etc().join("pki");
    let answer = call(pair.a.port(), &pki, &Caller::Node(&pki), &request("1")).unwrap();
    assert_eq!(answer.status, 200);
    let hello: Value = serde_json::from_str(&answer.body).unwrap();
    assert_eq!(
        (&hello["node"], &hello["role"]),
        (&"a".into(), &"primary".into())
    );

    let answer = call(pair.a.port(), &pki, &Caller::Node(&pki), &request("99")).unwrap();
    assert_eq!(answer.status, 426);
    assert_eq!(
        answer.body,
        "this node speaks version 1 of the protocol, the caller `99`; run the same version of \
         understudy on both"
    );
    pair.a
        .wait_for_event("peer_refused", "version 1 of the protocol, the caller `99`");
}

#[test]
fn a_caller_without_a_certificate_may_only_join() {
    let pair = Pair::alone(Plan::settings());
    let pki = pair.a.etc().join("pki");
    let answer = call(pair.a.port(), &pki, &Caller::Nobody, &request("1")).unwrap();
    assert_eq!(answer.status, 401);
    assert_eq!(
        pair.a
            .wait_for_event("peer_refused", "without a certificate"),
        "warning: refused a request from 127.0.0.1 without a certificate"
    );
}

#[test]
fn a_certificate_of_another_cluster_is_refused() {
    let pair = Pair::alone(Plan::settings());
    let other = Pair::alone(Plan::settings());
    let foreign = other.a.etc().join("pki");
    let refused = call(
        pair.a.port(),
        &pair.a.etc().join("pki"),
        &Caller::Node(&foreign),
        &request("1"),
    );
    assert!(refused.is_err(), "{refused:?}");
    let event = pair
        .a
        .wait_for_event("peer_refused", "certificate of another cluster");
    assert!(
        event.starts_with("warning: refused a connection from 127.0.0.1: "),
        "{event}"
    );
    // Nor does a node of the other cluster believe this one.
    let refused = call(
        pair.a.port(),
        &foreign,
        &Caller::Node(&foreign),
        &request("1"),
    );
    assert!(refused.is_err(), "{refused:?}");
}

#[test]
fn plain_http_is_refused() {
    let pair = Pair::alone(Plan::settings());
    let answer = http(&pair.a.ip, 7400, "GET", "/peer/hello").unwrap();
    assert_eq!(
        (answer.status, answer.body.as_str()),
        (400, "this port speaks TLS between nodes only\n")
    );
    assert_eq!(
        pair.a.wait_for_event("peer_refused", "plain HTTP"),
        "warning: refused a connection from 127.0.0.1: plain HTTP on the port of the peers"
    );
}

#[test]
fn a_node_that_the_configuration_does_not_name_is_refused() {
    let pair = Pair::alone(Plan::settings());
    let c = Machine::new("c", pair.folder.path(), &pair.ips[2], None);
    let (url, token) = pair.invite("c");
    let joined = pair.try_join(&c, &url, &token);
    assert_eq!(joined.status, Some(0), "{joined:?}");
    let pki = c.etc().join("pki");
    assert_eq!(
        call(pair.a.port(), &pki, &Caller::Node(&pki), &request("1"))
            .unwrap()
            .status,
        200
    );

    let text = fs::read_to_string(pair.a.cluster_file()).unwrap();
    let section = format!("[[node]]\nname = \"c\"\naddress = \"{}\"\n", c.peers());
    assert!(text.contains(&section), "{text}");
    fs::write(pair.a.cluster_file(), text.replace(&section, "")).unwrap();
    pair.a.signal(Signal::HUP);
    pair.a.wait_for_event("reloaded", "read again");
    let answer = call(pair.a.port(), &pki, &Caller::Node(&pki), &request("1")).unwrap();
    assert_eq!(
        (answer.status, answer.body.as_str()),
        (403, "node c is not in this cluster's configuration")
    );
    pair.a.wait_for_event(
        "peer_refused",
        "node c has a certificate of this cluster, but",
    );
}

#[test]
fn a_token_is_good_once() {
    let pair = Pair::alone(Plan::settings());
    let (url, token) = pair.invite("b");
    assert_eq!(pair.try_join(&pair.b, &url, &token).status, Some(0));
    // A second machine that was given the same token.
    let thief = Machine::new("c", pair.folder.path(), &pair.ips[2], None);
    let refused = pair.try_join(&thief, &url, &token);
    assert_eq!(refused.status, Some(1), "{refused:?}");
    let reason = pair.a.wait_for_event("join_refused", "");
    assert!(!thief.etc().exists(), "a refused join left files behind");
    // The name is taken as well; either is a reason.
    assert!(
        reason.contains("used already") || reason.contains("`b`"),
        "{reason}"
    );
}

#[test]
fn an_expired_token_is_refused() {
    let pair = Pair::alone(Plan::settings());
    let (url, token) = pair.invite("b");
    let path = pair.a.state().join("invites.json");
    let mut invites: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    invites[0]["expires"] = 1000.into();
    fs::write(&path, invites.to_string()).unwrap();
    let refused = pair.try_join(&pair.b, &url, &token);
    assert_eq!(refused.status, Some(1), "{refused:?}");
    let reason = "the token has expired; make a new one with `understudy invite b`";
    assert!(refused.stderr.contains(reason), "{refused:?}");
    assert_eq!(
        pair.a.wait_for_event("join_refused", ""),
        format!("warning: refused 127.0.0.1 to join as node b: {reason}")
    );
    assert!(!pair.b.etc().exists(), "a refused join left files behind");
}

#[test]
fn a_token_for_another_node_is_refused() {
    let pair = Pair::alone(Plan::settings());
    let (url, token) = pair.invite("b");
    let c = Machine::new("c", pair.folder.path(), &pair.ips[2], None);
    let forged = token.replace("us1.a.b.", "us1.a.c.");
    assert_ne!(forged, token);
    let refused = pair.try_join(&c, &url, &forged);
    assert_eq!(refused.status, Some(1), "{refused:?}");
    assert_eq!(
        pair.a.wait_for_event("join_refused", ""),
        "warning: refused 127.0.0.1 to join as node c: the token is for node b, not for c"
    );
    // It is still good for the one that it was made for.
    assert_eq!(pair.try_join(&pair.b, &url, &token).status, Some(0));
}

#[test]
fn a_second_primary_cannot_be_made_by_joining_again() {
    let pair = Pair::alone(Plan::settings());
    let refused = pair
        .a
        .try_understudy(&["init", "--name", "a", "--address", &pair.a.peers()]);
    assert_eq!(refused.status, Some(3), "{refused:?}");
    until("a is unharmed", Pair::PATIENCE, || {
        pair.a.try_status().map(|_| ())
    });
}
