//! Drills on a living pair: the roles there and back, and things that are broken on purpose.

use std::fs;

use serde_json::{Value, json};

use crate::world::{Network, Pair, Plan, holds, until};

/// A pair in which things may be broken.
fn testable(plan: Plan) -> Plan {
    Plan {
        more: "[drill]\nfaults = true\n".to_owned(),
        ..plan
    }
}

fn problems(status: &Value) -> Vec<String> {
    let problems = status["problems"].as_array().cloned().unwrap_or_default();
    let text = |problem: &Value| problem.as_str().unwrap_or_default().to_owned();
    problems.iter().map(text).collect()
}

#[test]
fn m15_a_drill_swaps_the_roles_there_and_back_and_loses_nothing() {
    let pair = Pair::new(Plan {
        services: vec!["one"],
        ..Plan::everything()
    });
    pair.write(1);
    pair.wait();
    let report = pair.a.json(&["drill", "switchover"]);
    assert_eq!(
        (
            &report["home"],
            &report["there"]["node"],
            &report["back"]["node"]
        ),
        (&json!("a"), &json!("b"), &json!("a"))
    );
    for swap in ["there", "back"] {
        for loss in report[swap]["lost"].as_array().unwrap() {
            assert_eq!(loss["amount"], 0, "{report}");
        }
    }
    // It does not end before the pair is as it was.
    assert!(report["after_seconds"].is_f64(), "{report}");
    assert_eq!(pair.roles(), ("primary".to_owned(), "standby".to_owned()));
    let ready = pair.a.try_understudy(&["switchover", "--dry-run"]);
    assert_eq!(ready.status, Some(0), "{ready:?}");
    let listed = pair.a.understudy(&["drill", "list"]);
    assert!(listed.contains("switchover  done"), "{listed}");
    let name = listed.split_whitespace().next().unwrap();
    assert_eq!(pair.a.json(&["drill", "show", name]), report);
    pair.write(2);
    pair.wait_long();
    pair.assert_written(2);
}

#[test]
fn m22_nothing_is_broken_where_the_configuration_does_not_allow_it() {
    let pair = Pair::alone(Plan::settings());
    let ended = pair.a.try_understudy(&["drill", "fault", "kill-daemon"]);
    assert_eq!(ended.status, Some(3), "{ended:?}");
    assert!(ended.stderr.contains("faults = true"), "{ended:?}");
    assert_eq!(pair.a.role(), "primary");
}

#[test]
fn m22_a_service_that_is_killed_on_purpose_is_told_and_the_gap_of_clients_is_measured() {
    let pair = Pair::new(testable(Plan {
        services: vec!["one"],
        ..Plan::settings()
    }));
    let pid_file = pair.a.at("/run/one.pid").display().to_string();
    let before = fs::read_to_string(&pid_file).unwrap();
    let probe = format!("kill -0 $(cat {pid_file})");
    let report = pair.a.json(&[
        "drill",
        "fault",
        "kill-process",
        "--pid-file",
        &pid_file,
        "--for",
        "1",
        "--probe",
        &probe,
    ]);
    assert_eq!(report["fault"], "kill_process");
    assert!(report["detected_seconds"].is_f64(), "{report}");
    assert_eq!(report["clients"], "again", "{report}");
    assert!(report["gap_seconds"].is_f64(), "{report}");
    assert_eq!(report["missing"], json!([]), "{report}");
    assert_ne!(fs::read_to_string(&pid_file).unwrap(), before);
    let told = report["events"].to_string();
    assert!(told.contains("service one"), "{told}");
    assert_eq!(pair.a.json(&["drill", "show"]), report);
    let listed = pair.a.understudy(&["drill", "list"]);
    assert!(
        listed.contains("fault       detected   kill-process: told after"),
        "{listed}"
    );
    // A probe that cannot succeed would measure nothing.
    let pid = fs::read_to_string(&pid_file).unwrap();
    let order = ["drill", "fault", "kill-process", "--pid-file", &pid_file];
    let refused = pair
        .a
        .try_understudy(&[&order[..], &["--probe", "exit 7"]].concat());
    assert_eq!(refused.status, Some(3), "{refused:?}");
    assert!(refused.stderr.contains("the probe fails"), "{refused:?}");
    assert_eq!(fs::read_to_string(&pid_file).unwrap(), pid);
}

#[test]
fn m22_links_that_are_cut_on_purpose_are_told_and_mended() {
    let test = "m22_links_that_are_cut_on_purpose_are_told_and_mended";
    let Some(network) = Network::new(test) else {
        return;
    };
    let mut pair = Pair::on(network, testable(Plan::settings()));
    let report = pair
        .a
        .json(&["drill", "fault", "cut-all", "--for", "8", "--watch", "60"]);
    let told = report["events"].to_string();
    assert!(told.contains("standby_lost"), "{report}");
    assert!(report["mended_seconds"].is_f64(), "{report}");
    // It does not end before the standby follows again.
    assert_eq!(report["missing"], json!([]), "{report}");
    assert!(report["recovered_seconds"].is_f64(), "{report}");
    let standby = &pair.a.status()["standbys"][0];
    assert_eq!(standby["is_connected"], true, "{standby}");
    assert!(standby["stores"][0]["lag_flushed"].is_u64(), "{standby}");
    pair.write(1);
    pair.wait_long();

    // What is out already would be taken for what a drill has done.
    pair.b.kill_daemon();
    until("the outage is seen", Pair::PATIENCE, || {
        let standby = pair.a.try_status()?["standbys"][0].clone();
        holds(standby["is_connected"] == false, &standby)
    });
    let order = ["drill", "fault", "cut-all", "--for", "1", "--watch", "1"];
    let refused = pair.a.try_understudy(&order);
    assert_eq!(refused.status, Some(3), "{refused:?}");
    assert!(refused.stderr.contains("b is not connected"), "{refused:?}");
    let forced = pair.a.json(&[&order[..], &["--force"]].concat());
    assert_eq!(forced["fault"], "cut_all", "{forced}");
}

#[test]
fn m23_a_node_with_another_configuration_is_told_on_both() {
    let mut pair = Pair::new(Plan::settings());
    assert_eq!(problems(&pair.a.status()), Vec::<String>::new());
    let file = pair.b.cluster_file();
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.clone() + "\n[fence]\ncommand = [\"true\"]\n").unwrap();
    assert_eq!(pair.b.stop(), Some(0));
    pair.b.serve();
    let differs = |machine: &crate::world::Machine| {
        let told = problems(&machine.try_status().unwrap_or_default());
        told.iter()
            .any(|problem| problem.contains("differs from this node's"))
    };
    for machine in [&pair.a, &pair.b] {
        until("the difference is told", Pair::PATIENCE, || {
            holds(differs(machine), problems(&machine.try_status()?))
        });
    }
    fs::write(&file, text).unwrap();
    assert_eq!(pair.b.stop(), Some(0));
    pair.b.serve();
    for machine in [&pair.a, &pair.b] {
        until("nothing differs any more", Pair::PATIENCE, || {
            holds(!differs(machine), problems(&machine.try_status()?))
        });
    }
}
