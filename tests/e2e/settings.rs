//! Settings: checked before they are applied, kept in revisions, never half of one.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::world::{Machine, Pair, Plan, holds, until};

fn conf(machine: &Machine) -> String {
    fs::read_to_string(machine.at("/etc/app/app.conf")).unwrap_or_default()
}

fn wait_for_conf(machine: &Machine, text: &str) {
    until(
        &format!("{} has {text:?}", machine.name),
        Pair::PATIENCE,
        || holds(conf(machine) == text, conf(machine)),
    );
}

#[test]
fn a_revision_that_the_standby_finds_invalid_is_told_and_not_applied() {
    let mut plan = Plan::settings();
    let mut pair = Pair::prepare(plan.clone(), None);
    // An appliance whose nodes differ: on b, it is invalid while this test says so.
    plan.settings = Some(format!(
        "exclude = [\"*.local\"]\nvalidate = [\"sh\", \"-c\", \"case {{dir}} in {b}/*) [ ! -e {b}/no ] || {{ echo 'line 3: no such colour' >&2; exit 1; }};; esac\"]",
        b = pair.b.home.display(),
    ));
    pair.plan = plan;
    pair.init();
    pair.a.serve();
    pair.join();
    fs::write(pair.b.at("/etc/app/node.local"), "node b's own\n").unwrap();
    fs::set_permissions(
        pair.a.at("/etc/app/app.conf"),
        fs::Permissions::from_mode(0o640),
    )
    .unwrap();
    pair.write(1);
    pair.wait();
    pair.assert_written(1);
    let mode = fs::metadata(pair.b.at("/etc/app/app.conf"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o7777, 0o640);

    fs::write(pair.b.home.join("no"), "").unwrap();
    pair.write(2);
    let event = pair.b.wait_for_event("settings_refused", "no such colour");
    assert!(event.starts_with("error: "), "{event}");
    assert_eq!(conf(&pair.b), "generation = 1\n");
    until(
        "the refusal is in the status of both",
        Pair::PATIENCE,
        || {
            let b = pair.b.try_status()?;
            let stalled = &b["upstream"]["stores"][0]["stalled"];
            holds(
                stalled
                    .as_str()
                    .is_some_and(|it| it.contains("no such colour")),
                &b,
            )?;
            holds(
                b["problems"].to_string().contains("no such colour"),
                &b["problems"],
            )?;
            let a = pair.a.try_status()?;
            let stalled = &a["standbys"][0]["stores"][0]["stalled"];
            holds(
                stalled
                    .as_str()
                    .is_some_and(|it| it.contains("no such colour")),
                &a,
            )
        },
    );
    until(
        "the page shows that the standby is behind",
        Pair::PATIENCE,
        || {
            let copy = &pair.a.get("/monitor/replication")[&pair.b.ip]["stores"]["settings"];
            holds(
                copy["stalled"].is_string() && copy["lag_revisions"] != "0",
                copy,
            )
        },
    );
    // It is told once, not every second.
    assert_eq!(pair.b.events("settings_refused").len(), 1);

    fs::remove_file(pair.b.home.join("no")).unwrap();
    pair.write(3);
    wait_for_conf(&pair.b, "generation = 3\n");
    until("nothing is told any more", Pair::PATIENCE, || {
        let problems = pair.b.try_status()?["problems"].clone();
        holds(problems == serde_json::json!([]), &problems)
    });
    assert_eq!(
        fs::read_to_string(pair.b.at("/etc/app/node.local")).unwrap(),
        "node b's own\n"
    );
    assert_eq!(
        fs::read_to_string(pair.a.at("/etc/app/node.local")).unwrap(),
        "node a's own\n"
    );
}

#[test]
fn a_rollback_flows_to_the_standby() {
    let pair = Pair::new(Plan::settings());
    for number in 1..=2 {
        pair.write(number);
        pair.wait();
        pair.assert_written(number);
    }
    let history = pair.a.json(&["settings", "history"]);
    let numbers: Vec<u64> = history
        .as_array()
        .unwrap()
        .iter()
        .map(|revision| revision["number"].as_u64().unwrap())
        .collect();
    assert_eq!(numbers, [1, 2, 3]);
    let shown = pair.b.json(&["settings", "show", "2"]);
    assert_eq!(
        shown["changes"]["changed"][0]["path"], "/etc/app/app.conf",
        "{shown}"
    );
    let text = pair.a.understudy(&["settings", "show"]);
    assert!(
        text.contains("app.conf") && !text.contains("generation"),
        "{text}"
    );

    let refused = pair.b.try_understudy(&["settings", "rollback", "2"]);
    assert_eq!(refused.status, Some(3), "{refused:?}");
    assert!(refused.stderr.contains("ask node a"), "{refused:?}");
    pair.a.understudy(&["settings", "rollback", "2"]);
    wait_for_conf(&pair.a, "generation = 1\n");
    wait_for_conf(&pair.b, "generation = 1\n");
    let unknown = pair.a.try_understudy(&["settings", "rollback", "99"]);
    assert_eq!(unknown.status, Some(1), "{unknown:?}");
}

#[test]
fn l06_a_local_change_on_the_standby_is_undone() {
    let pair = Pair::new(Plan::settings());
    pair.write(1);
    pair.wait();
    fs::write(pair.b.at("/etc/app/app.conf"), "tampered\n").unwrap();
    wait_for_conf(&pair.b, "generation = 1\n");
    pair.b.wait_for_event(
        "settings_restored",
        "local versions were replaced and are kept",
    );
}
