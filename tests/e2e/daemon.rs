//! The daemon as a supervisor sees it: signals, readiness, restarts.

use std::fs;
use std::os::unix::net::UnixDatagram;

use crate::world::{Pair, Plan, Signal};

#[test]
fn sigterm_stops_the_daemon_in_peace_and_leaves_postgres_running() {
    let mut pair = Pair::new(Plan::postgres());
    let servers = (pair.a.postmaster(), pair.b.postmaster());
    assert!(servers.0.is_some() && servers.1.is_some());
    assert_eq!(pair.a.stop(), Some(0));
    assert_eq!(pair.b.stop(), Some(0));
    assert_eq!((pair.a.postmaster(), pair.b.postmaster()), servers);
    // The application and Postgres' own streaming go on without the daemons.
    pair.write(1);
    crate::world::until("the row arrives", Pair::PATIENCE, || {
        let count = pair.b.try_sql("SELECT count(*) FROM change")?;
        crate::world::holds(count == "1", count)
    });
    // The primary asks its standby before it serves, so both are started before either is ready.
    pair.a.spawn(&[], &[]);
    pair.b.serve();
    pair.a.wait_until_ready();
    assert_eq!((pair.a.postmaster(), pair.b.postmaster()), servers);
    pair.write(2);
    pair.wait();
    pair.assert_equal();
}

#[test]
fn systemd_is_told_when_the_node_is_ready_and_when_it_stops() {
    let mut pair = Pair::prepare(Plan::settings(), None);
    pair.init();
    let path = pair.folder.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(Pair::PATIENCE)).unwrap();
    let told = || {
        let mut buffer = [0; 4096];
        let length = socket.recv(&mut buffer).expect("systemd is told something");
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    };
    pair.a
        .spawn(&[], &[("NOTIFY_SOCKET", path.to_str().unwrap())]);
    assert!(told().lines().any(|line| line == "READY=1"));
    // Who is told so can ask it.
    pair.a.status();
    assert_eq!(pair.a.stop(), Some(0));
    assert!(told().lines().any(|line| line == "STOPPING=1"));
}

#[test]
fn a_reload_with_a_mistake_keeps_the_last_good_configuration() {
    let pair = Pair::new(Plan::settings());
    let good = fs::read_to_string(pair.a.cluster_file()).unwrap();
    fs::write(pair.a.cluster_file(), good.replace("schedule", "shedule")).unwrap();
    pair.a.signal(Signal::HUP);
    let event = pair.a.wait_for_event_in_file("reload_failed", "shedule");
    assert!(
        event.contains("the last good one stays in force"),
        "{event}"
    );
    assert!(event.contains("\"severity\":\"error\""), "{event}");
    // It works on meanwhile: the standby's daemon has a good configuration, and can wait.
    pair.write(1);
    pair.b.understudy(&["wait"]);
    pair.assert_written(1);
    fs::write(pair.a.cluster_file(), good).unwrap();
    pair.a.signal(Signal::HUP);
    pair.a
        .wait_for_event("reloaded", "the configuration was read again");
    assert_eq!(pair.roles(), ("primary".to_owned(), "standby".to_owned()));
}
