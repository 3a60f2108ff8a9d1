//! Services and jobs run where the role of a node allows it and nowhere else, in order.

use std::fs;

use serde_json::Value;

use crate::world::{Machine, Pair, Plan, holds, until};

fn plan() -> Plan {
    Plan {
        services: vec!["one", "two", "three"],
        ..Plan::settings()
    }
}

fn states(machine: &Machine) -> Vec<String> {
    let services = machine.json(&["services"]);
    let state = |service: &Value| {
        format!(
            "{} {}",
            service["name"].as_str().unwrap(),
            service["state"].as_str().unwrap()
        )
    };
    services.as_array().unwrap().iter().map(state).collect()
}

fn wait_for_states(machine: &Machine, expected: [&str; 3]) {
    until(
        &format!("the services of {}", machine.name),
        Pair::PATIENCE,
        || {
            let states = states(machine);
            if states == expected {
                Ok(())
            } else {
                Err(format!("{states:?}"))
            }
        },
    );
}

fn journal(machine: &Machine) -> String {
    fs::read_to_string(machine.at("/journal")).unwrap_or_default()
}

fn pids(machine: &Machine) -> Vec<String> {
    let pid = |name| fs::read_to_string(machine.at("/run").join(format!("{name}.pid"))).unwrap();
    ["one", "two", "three"].map(pid).to_vec()
}

#[test]
fn m01_services_start_in_order_on_the_primary_and_stop_in_reverse_when_it_is_fenced() {
    let mut pair = Pair::new(plan());
    wait_for_states(&pair.a, ["one online", "two online", "three online"]);
    assert_eq!(journal(&pair.a), "start one\nstart two\nstart three\n");
    assert!(
        states(&pair.b)
            .iter()
            .all(|state| !state.ends_with("online")),
        "{:?}",
        states(&pair.b)
    );
    assert_eq!(journal(&pair.b), "");

    pair.b.understudy(&["promote"]);
    wait_for_states(&pair.b, ["one online", "two online", "three online"]);
    assert_eq!(journal(&pair.b), "start one\nstart two\nstart three\n");
    assert_eq!(
        journal(&pair.a),
        "start one\nstart two\nstart three\nstop three\nstop two\nstop one\n"
    );
    pair.assert_a_is_fenced();
    pair.assert_b_is_primary();
}

#[test]
fn m19_a_daemon_that_restarts_or_is_killed_adopts_what_runs() {
    let mut pair = Pair::alone(plan());
    wait_for_states(&pair.a, ["one online", "two online", "three online"]);
    let before = pids(&pair.a);
    assert_eq!(pair.a.stop(), Some(0));
    pair.a.serve();
    wait_for_states(&pair.a, ["one online", "two online", "three online"]);
    pair.a.kill_daemon();
    pair.a.serve();
    wait_for_states(&pair.a, ["one online", "two online", "three online"]);
    assert_eq!(pids(&pair.a), before);
    assert_eq!(journal(&pair.a), "start one\nstart two\nstart three\n");
}

#[test]
fn m06_a_service_that_is_killed_is_started_again_and_one_that_stays_down_is_a_fault() {
    let pair = Pair::alone(plan());
    wait_for_states(&pair.a, ["one online", "two online", "three online"]);
    assert_eq!(pair.a.health("/health"), 200);
    let pid: i32 = pids(&pair.a)[1].trim().parse().unwrap();
    crate::world::kill(pid);
    pair.a
        .wait_for_event("service_down", "service two is down and should be up");
    let told = pair.a.wait_for_event("service_restarted", "service two");
    assert!(
        told.ends_with("is up again; restart 1 of 3 in 3600 s"),
        "{told}"
    );
    wait_for_states(&pair.a, ["one online", "two online", "three online"]);
    assert_eq!(pair.a.health("/health"), 200);
    assert_eq!(
        journal(&pair.a),
        "start one\nstart two\nstart three\nstart two\n"
    );

    // One that cannot be started any more.
    fs::write(pair.a.at("/broken"), "").unwrap();
    let pid: i32 = pids(&pair.a)[1].trim().parse().unwrap();
    crate::world::kill(pid);
    pair.a
        .wait_for_event("service_fault", "understudy services clear two");
    wait_for_states(&pair.a, ["one online", "two fault", "three online"]);
    assert_eq!(pair.a.health("/health"), 503);
    assert_eq!(pair.a.health("/primary"), 200);
    fs::remove_file(pair.a.at("/broken")).unwrap();
    pair.a.understudy(&["services", "clear", "two"]);
    wait_for_states(&pair.a, ["one online", "two online", "three online"]);
}

#[test]
fn a_primary_whose_service_does_not_stop_is_not_called_fenced() {
    let mut pair = Pair::new(plan());
    wait_for_states(&pair.a, ["one online", "two online", "three online"]);
    fs::write(pair.a.at("/stuck"), "").unwrap();
    let refused = pair.b.try_understudy(&["promote"]);
    assert_eq!(refused.status, Some(3), "{refused:?}");
    assert_eq!(pair.b.role(), "standby");
    assert_eq!(
        journal(&pair.b),
        "",
        "a service was started while the other ran"
    );

    // What was owed is done by itself as soon as it can be, and then the promotion goes on.
    fs::remove_file(pair.a.at("/stuck")).unwrap();
    // In whatever order: the obstacle may go away between the tries of two of them.
    until("the services of a are down", Pair::PATIENCE, || {
        let journal = journal(&pair.a);
        let is_stopped = |name: &&str| journal.contains(&format!("stop {name}\n"));
        if ["one", "two", "three"].iter().all(is_stopped) {
            Ok(())
        } else {
            Err(journal)
        }
    });
    pair.b.understudy(&["promote"]);
    pair.assert_a_is_fenced();
    pair.assert_b_is_primary();
}

#[test]
fn a_switchover_for_which_a_service_does_not_stop_is_refused_and_the_primary_goes_on() {
    let pair = Pair::new(plan());
    wait_for_states(&pair.a, ["one online", "two online", "three online"]);
    pair.write(1);
    fs::write(pair.a.at("/stuck"), "").unwrap();
    let refused = pair.b.try_understudy(&["switchover"]);
    assert_eq!(refused.status, Some(3), "{refused:?}");
    assert!(refused.stderr.contains("service three"), "{refused:?}");
    assert_eq!(pair.roles(), ("primary".to_owned(), "standby".to_owned()));
    assert_eq!(journal(&pair.b), "");
    pair.write(2);
    fs::remove_file(pair.a.at("/stuck")).unwrap();
    wait_for_states(&pair.a, ["one online", "two online", "three online"]);
    pair.wait();
    pair.b.understudy(&["switchover"]);
    wait_for_states(&pair.b, ["one online", "two online", "three online"]);
    pair.assert_written(2);
}

/// A worker of the primary that runs as another user, a report of standbys, and a job of the primary.
const WORKERS: &str = r#"
[[service]]
name = "worker"
user = "nobody"
interval = "200ms"
start = ["sh", "-c", "setsid sleep 100000 </dev/null >/dev/null 2>&1 & echo $! > $UNDERSTUDY_ROOT/open/worker"]
stop = ["sh", "-c", "kill $(cat $UNDERSTUDY_ROOT/open/worker); rm -f $UNDERSTUDY_ROOT/open/worker"]
status = ["sh", "-c", "kill -0 $(cat $UNDERSTUDY_ROOT/open/worker)"]
[[service]]
name = "report"
on = "standby"
after = []
interval = "200ms"
start = ["sh", "-c", "touch $UNDERSTUDY_ROOT/open/report"]
stop = ["sh", "-c", "rm $UNDERSTUDY_ROOT/open/report"]
status = ["sh", "-c", "test -e $UNDERSTUDY_ROOT/open/report"]
[[job]]
name = "tick"
schedule = "* * * * * *"
command = ["sh", "-c", "echo x >> $UNDERSTUDY_ROOT/open/ticks"]
[[job]]
name = "long"
schedule = "0 0 0 1 1 * 2099"
command = ["sh", "-c", "echo $$ > $UNDERSTUDY_ROOT/open/long; sleep 100000"]
[hooks]
offline = ["sh", "-c", "echo left >> $UNDERSTUDY_ROOT/open/hooks"]
"#;

fn wait_for(machine: &Machine, expected: [&str; 4]) {
    until(
        &format!("the services and jobs of {}", machine.name),
        Pair::PATIENCE,
        || {
            let states = states(machine);
            holds(states == expected, states)
        },
    );
}

fn read(machine: &Machine, file: &str) -> String {
    fs::read_to_string(machine.at("/open").join(file)).unwrap_or_default()
}

/// Returns whose process it is that a script has written down.
fn user_of(machine: &Machine, file: &str) -> u32 {
    use std::os::unix::fs::MetadataExt;
    let pid = read(machine, file);
    fs::metadata(format!("/proc/{}", pid.trim())).unwrap().uid()
}

#[test]
fn l15_l17_each_role_runs_its_services_and_jobs_as_their_users_and_operators_are_told_where() {
    if !crate::world::is_root("services of another user") {
        return;
    }
    use std::os::unix::fs::PermissionsExt;
    let plan = Plan {
        more: WORKERS.to_owned(),
        ..Plan::settings()
    };
    let mut pair = Pair::prepare(plan, None);
    for machine in [&pair.a, &pair.b] {
        let open = machine.at("/open");
        fs::create_dir_all(&open).unwrap();
        fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
    }
    pair.begin();
    pair.join();
    let (of_primary, of_standby) = (
        [
            "worker online",
            "report offline",
            "tick waiting",
            "long waiting",
        ],
        [
            "worker offline",
            "report online",
            "tick elsewhere",
            "long elsewhere",
        ],
    );
    wait_for(&pair.a, of_primary);
    wait_for(&pair.b, of_standby);
    assert_ne!(user_of(&pair.a, "worker"), 0, "it runs as root");
    until("the job has run", Pair::PATIENCE, || {
        let ticks = read(&pair.a, "ticks");
        holds(ticks.lines().count() > 1, ticks)
    });
    assert_eq!(read(&pair.b, "ticks"), "");
    for verb in ["start", "stop", "restart"] {
        let refused = pair.b.try_understudy(&["services", verb, "worker"]);
        assert_eq!(refused.status, Some(3), "{refused:?}");
        assert_eq!(
            refused.stderr,
            "error: service worker runs on the primary only, and node b is standby\n\
             hint: ask node a, which is primary\n"
        );
    }
    let unknown = pair.a.try_understudy(&["services", "start", "worker2"]);
    assert_eq!(unknown.status, Some(2), "{unknown:?}");

    // What an operator stops stays stopped, whatever becomes of the daemon.
    let mut stop = pair.a.program();
    stop.args(["services", "stop", "worker", "--json"])
        .env("SUDO_USER", "eva");
    let stopped: Value = serde_json::from_slice(&stop.output().unwrap().stdout).unwrap();
    assert_eq!(
        stopped,
        serde_json::json!({
            "action": "stop",
            "name": "worker",
            "message": "service worker is down, and stays so until it is started",
        })
    );
    pair.a.kill_daemon();
    pair.a.serve();
    let stopped = [
        "worker offline",
        "report offline",
        "tick waiting",
        "long waiting",
    ];
    wait_for(&pair.a, stopped);
    assert!(
        pair.a
            .understudy(&["services"])
            .contains("stopped by an operator"),
        "{}",
        pair.a.understudy(&["services"])
    );
    // Once the standby is back: what is wrong with that comes first.
    until("the screen tells who stopped it", Pair::PATIENCE, || {
        let screen = pair.a.understudy(&["status"]);
        let parts = [
            "service worker was stopped by hand",
            "start service worker, which was stopped by hand by eva, ",
        ];
        holds(parts.iter().all(|part| screen.contains(part)), screen)
    });
    pair.a.understudy(&["services", "start", "worker"]);
    wait_for(&pair.a, of_primary);
    let screen = pair.a.understudy(&["status"]);
    assert!(!screen.contains("stopped by hand"), "{screen}");
    let worker: i32 = read(&pair.a, "worker").trim().parse().unwrap();

    // A job under way does not outlive the role that allows it.
    let mut run = pair
        .a
        .program()
        .args(["services", "run", "long"])
        .spawn()
        .unwrap();
    let long = until("the job runs", Pair::PATIENCE, || {
        let long = read(&pair.a, "long");
        long.trim().parse::<i32>().map_err(|_| long)
    });
    pair.wait();
    pair.b.understudy(&["switchover"]);
    assert_eq!(run.wait().unwrap().code(), Some(1));
    for pid in [worker, long] {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        assert!(stat.is_empty() || stat.contains(") Z "), "{stat}");
    }
    wait_for(&pair.b, of_primary);
    wait_for(&pair.a, of_standby);
    assert_eq!(read(&pair.a, "hooks"), "left\n");
    let ticks = read(&pair.a, "ticks");
    let begun = read(&pair.b, "ticks");
    until("the job has run on b", Pair::PATIENCE, || {
        let ticks = read(&pair.b, "ticks");
        holds(ticks.len() > begun.len() + 2, ticks)
    });
    assert_eq!(read(&pair.a, "ticks"), ticks);
}

#[test]
fn a_user_who_is_not_there_keeps_the_daemon_from_starting_and_is_named() {
    if !crate::world::is_root("services of another user") {
        return;
    }
    let plan = Plan {
        more: WORKERS.replace("\"nobody\"", "\"no-such-user\""),
        ..Plan::settings()
    };
    let pair = Pair::prepare(plan, None);
    pair.init();
    let refused = pair.a.try_understudy(&["serve"]);
    assert_eq!(refused.status, Some(2), "{refused:?}");
    assert!(
        refused.stderr.contains(
            "service `worker` cannot run as `no-such-user`: there is no operating system user"
        ),
        "{refused:?}"
    );
}
