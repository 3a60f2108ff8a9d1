//! The demo is a real failover, and leaves nothing behind.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use serde_json::Value;

use crate::world::Folder;

#[test]
fn the_demo_loses_nothing_and_leaves_nothing_behind() {
    // Its temporary folder is made in ours, so that what it leaves can be told from others' work.
    let folder = Folder::new();
    let output = Command::new(env!("CARGO_BIN_EXE_understudy"))
        .args(["demo", "--json", "--seconds", "3", "--packages", "20"])
        .env("TMPDIR", folder.path())
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let stores: BTreeSet<(&str, &str, u64)> = report["stores"]
        .as_array()
        .unwrap()
        .iter()
        .map(|store| {
            assert!(store["acknowledged"].as_u64() > Some(0), "{store}");
            let text = |key: &str| store[key].as_str().unwrap();
            (
                text("name"),
                text("kind"),
                store["missing"].as_u64().unwrap(),
            )
        })
        .collect();
    let expected = [
        ("docs", "files", 0),
        ("kv", "kv", 0),
        ("postgres", "postgres", 0),
        ("settings", "settings", 0),
    ];
    assert_eq!(stores, BTreeSet::from(expected));
    assert_eq!(report["epoch"]["number"], 2);
    assert_eq!(report["index_was_warm"], true, "{report}");
    for seconds in ["outage_seconds", "promotion_seconds"] {
        assert!(report[seconds].as_f64() > Some(0.0), "{report}");
    }
    assert!(report["index_hits"].as_u64() > Some(0), "{report}");
    let left: Vec<_> = fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    assert_eq!(left, Vec::<std::path::PathBuf>::new());
    assert_eq!(crate::world::beneath(folder.path()), BTreeSet::new());
}
