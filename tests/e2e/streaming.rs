//! From nothing to a pair that streams, and what it tells meanwhile.

use serde_json::json;

use crate::world::{Pair, Plan, holds, until};

#[test]
fn l01_three_commands_make_a_streaming_pair() {
    let mut pair = Pair::alone(Plan::everything());
    assert_eq!(
        pair.a.get("/monitor/replication"),
        json!({"replication_mode": "standalone"})
    );
    pair.join();
    pair.write(1);
    pair.wait();
    pair.assert_equal();
    pair.assert_written(1);
    pair.b.understudy(&["wait", "--timeout", "60"]);
    // What a node excludes stays its own.
    assert!(!pair.b.at("/etc/app/node.local").exists());
    assert!(!pair.b.at("/srv/files/scratch.tmp").exists());

    // The positions follow at the next mark.
    let ip = pair.b.ip.clone();
    let shapes = until("both sides tell a lag of nothing", Pair::PATIENCE, || {
        let (a, b) = (
            pair.a.get("/monitor/replication"),
            pair.b.get("/monitor/replication"),
        );
        let figures = [
            "postgres_lag_bytes",
            "files_lag_bytes",
            "settings_lag_revisions",
        ];
        for figure in figures {
            holds(a[&ip][figure] == "0", (figure, &a))?;
            holds(b[figure] == "0", (figure, &b))?;
        }
        Ok((shape(&a), shape(&b)))
    });
    let copy = |store: &str, unit: &str| json!({format!("{store}_lag_{unit}"): "s", format!("{store}_lag_seconds"): "s"});
    let mut expected = json!({"cut": "s", "stores": {}});
    for (kind, name, unit) in [
        ("postgres", "postgres", "bytes"),
        ("files", "docs", "bytes"),
        ("kv", "kv", "ops"),
        ("settings", "settings", "revisions"),
    ] {
        merge(&mut expected, copy(kind, unit));
        expected["stores"][name] = json!({
            format!("flushed_lag_{unit}"): "s", format!("lag_{unit}"): "s", "lag_seconds": "s",
        });
    }
    // Its operations are of any size: the bytes of its log are told beside.
    merge(&mut expected, json!({"kv_lag_bytes": "s"}));
    expected["stores"]["kv"]["lag_bytes"] = json!("s");
    assert_eq!(
        shapes.0,
        json!({ip: expected.clone(), "replication_mode": "s"})
    );
    merge(
        &mut expected,
        json!({"primary": "s", "primary_seen": "s", "replication_mode": "s"}),
    );
    assert_eq!(shapes.1, expected);
    assert_eq!(
        pair.a.get("/monitor/replication")["replication_mode"],
        "master"
    );
    assert_eq!(
        pair.b.get("/monitor/replication")["replication_mode"],
        "slave"
    );
    assert_eq!(pair.b.get("/monitor/replication")["primary"], "a");

    let (a, b) = (pair.a.status(), pair.b.status());
    assert_eq!(
        (&a["version"], &a["role"], &a["epoch"]["number"]),
        (&json!(1), &json!("primary"), &json!(1))
    );
    assert_eq!(
        (&b["role"], &b["primary"], &b["problems"]),
        (&json!("standby"), &json!("a"), &json!([]))
    );
    assert_eq!(pair.a.get("/monitor/status")["node"], "a");
    assert!(pair.a.understudy(&["status"]).contains("primary"));

    // A write to the standby's database is refused.
    let refusal = pair.b.try_sql("INSERT INTO change VALUES (2)").unwrap_err();
    assert!(refusal.contains("read-only transaction"), "{refusal}");
}

/// Returns the value with every string as `s`: a figure that is a number is a difference.
fn shape(value: &serde_json::Value) -> serde_json::Value {
    match value {
        serde_json::Value::String(_) => json!("s"),
        serde_json::Value::Object(map) => map
            .iter()
            .map(|(key, value)| (key.clone(), shape(value)))
            .collect(),
        serde_json::Value::Null
        | serde_json::Value::Bool(_)
        | serde_json::Value::Number(_)
        | serde_json::Value::Array(_) => value.clone(),
    }
}

fn merge(into: &mut serde_json::Value, more: serde_json::Value) {
    if let (Some(into), serde_json::Value::Object(more)) = (into.as_object_mut(), more) {
        into.extend(more);
    }
}

#[test]
fn a_pair_of_settings_alone_is_a_fine_pair() {
    let pair = Pair::new(Plan::settings());
    pair.write(1);
    pair.wait();
    pair.assert_written(1);
    pair.assert_equal();
}

#[test]
fn a_pair_of_files_alone_is_a_fine_pair() {
    let pair = Pair::new(Plan::files());
    pair.write(1);
    pair.wait();
    pair.assert_written(1);
    pair.assert_equal();
}
