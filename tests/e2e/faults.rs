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
    until("b follows", Pair::PATIENCE, || {
        let roles = pair.roles();
        holds(roles == ("primary".to_owned(), "standby".to_owned()), roles)
    });
    let reports = fs::read_dir(pair.a.state().join("reports")).unwrap();
    let is_kept = reports.into_iter().any(|entry| {
        let name = entry.unwrap().file_name();
        name.to_string_lossy().starts_with("switchover-drill-")
    });
    assert!(is_kept);
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
    assert!(report["gap_seconds"].is_f64(), "{report}");
    assert_ne!(fs::read_to_string(&pid_file).unwrap(), before);
    let told = report["events"].to_string();
    assert!(told.contains("service one"), "{told}");
}

#[test]
fn m22_links_that_are_cut_on_purpose_are_told_and_mended() {
    let test = "m22_links_that_are_cut_on_purpose_are_told_and_mended";
    let Some(network) = Network::new(test) else {
        return;
    };
    let pair = Pair::on(network, testable(Plan::settings()));
    let report = pair
        .a
        .json(&["drill", "fault", "cut-all", "--for", "8", "--watch", "60"]);
    let told = report["events"].to_string();
    assert!(told.contains("standby_lost"), "{report}");
    assert!(report["mended_seconds"].is_f64(), "{report}");
    pair.write(1);
    pair.wait_long();
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
