//! An old primary that does not answer, or does not stop, is switched off by the operator's command.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use serde_json::json;

use crate::world::{Pair, Plan, holds, until};

/// A pair whose `[fence]` runs a script; it has written down whom it was to switch off.
fn pair_with(script: &str, plan: Plan) -> Pair {
    let mut pair = Pair::new(plan);
    let path = pair.folder.path().join("fence");
    let journal = pair.folder.path().join("fenced");
    let text = format!(
        "#!/bin/sh\necho \"$UNDERSTUDY_FENCE_NODE $UNDERSTUDY_FENCE_IP\" >> {}\n{script}\n",
        journal.display()
    );
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    let file = pair.b.cluster_file();
    let config = fs::read_to_string(&file).unwrap();
    let section = format!("\n[fence]\ncommand = [\"{}\"]\n", path.display());
    fs::write(&file, config + &section).unwrap();
    assert_eq!(pair.b.stop(), Some(0));
    pair.b.serve();
    pair.wait();
    pair
}

fn journal(pair: &Pair) -> String {
    fs::read_to_string(pair.folder.path().join("fenced")).unwrap_or_default()
}

/// Waits until node b has noticed that nobody answers it.
fn wait_until_a_is_silent(pair: &Pair) {
    until("b has noticed", Pair::PATIENCE, || {
        let plan = pair
            .b
            .try_understudy(&["promote", "--dry-run", "--json"])
            .stdout;
        holds(plan.contains("power_off"), plan)
    });
}

#[test]
fn m04_a_primary_that_is_gone_is_switched_off_for_certain_before_another_serves() {
    let mut pair = pair_with("exit 0", Plan::settings());
    pair.a.power_off();
    wait_until_a_is_silent(&pair);
    assert_eq!(journal(&pair), "", "a dry run switches nobody off");
    let outcome = pair.b.json(&["promote"]);
    let report = &outcome["promoted"];
    assert_eq!(report["steps"][0]["name"], "switch off a");
    assert_eq!(
        (&report["switched_off"], &report["fenced"]),
        (&json!("a"), &json!(null))
    );
    assert_eq!(journal(&pair), format!("a {}\n", pair.a.ip));
    pair.assert_b_is_primary();
    // What a wrote last is not known: it was switched off, not asked.
    assert!(report["lost"][0]["unknown"].is_string(), "{report}");
    assert!(
        report["expected"][0]["basis"]["mark"]["number"].is_u64(),
        "{report}"
    );
}

#[test]
fn a_primary_that_cannot_be_switched_off_keeps_the_standby_from_serving() {
    let mut pair = pair_with("echo no such outlet >&2; exit 1", Plan::settings());
    pair.a.power_off();
    wait_until_a_is_silent(&pair);
    let ended = pair.b.try_understudy(&["promote"]);
    assert_eq!(ended.status, Some(3), "{ended:?}");
    assert!(
        ended.stderr.contains("no such outlet") && ended.stderr.contains("promote --force"),
        "{ended:?}"
    );
    assert_eq!(pair.b.role(), "standby");
    // An operator who says that it is off is believed, and the command is not asked again.
    pair.b.understudy(&["promote", "--force"]);
    pair.assert_b_is_primary();
    assert_eq!(journal(&pair).lines().count(), 1);
}

#[test]
fn m04_a_primary_that_answers_and_does_not_stop_is_switched_off() {
    let plan = Plan {
        services: vec!["one"],
        ..Plan::settings()
    };
    let mut pair = pair_with("exit 0", plan);
    // Its service does not stop, whatever is done.
    fs::write(pair.a.at("/stuck"), "").unwrap();
    let outcome = pair.b.json(&["promote"]);
    let report = &outcome["promoted"];
    assert_eq!(report["steps"][0]["name"], "fence a");
    assert!(report["steps"][0]["failure"].is_string(), "{report}");
    assert_eq!(report["switched_off"], "a");
    assert_eq!(journal(&pair).lines().count(), 1);
    pair.assert_b_is_primary();
    fs::remove_file(pair.a.at("/stuck")).unwrap();
}

#[test]
fn a_primary_that_answers_is_asked_and_not_switched_off() {
    let mut pair = pair_with("exit 0", Plan::settings());
    pair.b.understudy(&["promote"]);
    pair.assert_b_is_primary();
    assert_eq!(journal(&pair), "");
}
