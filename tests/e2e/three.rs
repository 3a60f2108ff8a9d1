//! Three nodes: the others follow whoever is promoted, by themselves and in every store.

use std::fs;

use serde_json::json;

use crate::world::{Machine, Pair, Plan, Signal, holds, tree, until};

const FILES: &str = "/srv/files";
const SETTINGS: &str = "/etc/app";

/// A pair and a third node.
struct Trio {
    c: Machine,
    pair: Pair,
}

impl Trio {
    fn new(plan: Plan) -> Self {
        let pair = Pair::new(plan);
        let mut c = Machine::new("c", pair.folder.path(), &pair.ips[2], None);
        let (url, token) = pair.invite("c");
        let joined = pair.try_join(&c, &url, &token);
        assert_eq!(joined.status, Some(0), "{joined:?}");
        c.serve();
        // Every node has the same file; b reads it again.
        fs::copy(pair.a.cluster_file(), pair.b.cluster_file()).unwrap();
        pair.b.signal(Signal::HUP);
        pair.b.wait_for_event("reloaded", "read again");
        pair.wait();
        Self { c, pair }
    }

    /// Writes into every store of a node that is primary.
    fn write(&self, primary: &Machine, number: u32) {
        let plan = &self.pair.plan;
        if plan.postgres {
            primary.sql(&format!("INSERT INTO change VALUES ({number})"));
        }
        if plan.files {
            let path = primary.at(FILES).join(format!("file-{number}"));
            fs::write(path, vec![b'x'; 1000]).unwrap();
        }
        if plan.kv.is_some() {
            until("a key is taken", Pair::PATIENCE, || {
                let key = format!("key-{number}");
                let put = primary.try_understudy(&["kv", "put", &key, "written"]);
                holds(put.status == Some(0), &put)
            });
        }
        if plan.settings.is_some() {
            let text = format!("generation = {number}\n");
            fs::write(primary.at(SETTINGS).join("app.conf"), text).unwrap();
        }
    }

    /// Waits until a standby is equal to the primary in every store.
    fn until_equal(&self, primary: &Machine, standby: &Machine, number: u32) {
        let plan = &self.pair.plan;
        let name = standby.name;
        until(&format!("{name} follows"), Pair::PATIENCE, || {
            let status = standby.try_status()?;
            holds(status["role"] == "standby", &status["role"])?;
            let upstream = &status["upstream"];
            holds(upstream["primary"] == primary.name, &upstream["primary"])?;
            holds(upstream["is_connected"] == true, upstream)
        });
        if plan.postgres {
            let rows = "SELECT string_agg(number::text, ' ' ORDER BY number) FROM change";
            until(&format!("{name} has the rows"), Pair::PATIENCE, || {
                let (ours, theirs) = (standby.try_sql(rows)?, primary.try_sql(rows)?);
                holds(
                    ours == theirs,
                    format!("{ours} is not {theirs}: {}", standby.status()),
                )
            });
        }
        for path in [FILES, SETTINGS] {
            let of = |machine: &Machine| {
                let mut tree = tree(&machine.at(path));
                tree.retain(|name, _| !name.ends_with(".tmp") && !name.ends_with(".local"));
                tree
            };
            until(&format!("{name} has {path}"), Pair::PATIENCE, || {
                holds(of(standby) == of(primary), standby.status())
            });
        }
        if plan.kv.is_some() {
            until(&format!("{name} has the keys"), Pair::PATIENCE, || {
                let got = standby.try_understudy(&["kv", "get", &format!("key-{number}")]);
                holds(got.stdout.trim_end() == "written", &got)
            });
        }
    }

    fn until_primary(machine: &mut Machine) {
        until("it is primary", Pair::PATIENCE, || {
            let role = machine.try_status()?["role"].clone();
            holds(role == "primary", &role)
        });
        machine.wait_until_ready();
    }
}

impl Drop for Trio {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the log of c\n{}", self.c.log());
        }
        self.c.kill_daemon();
    }
}

fn every_store() -> Plan {
    Plan {
        postgres: true,
        files: true,
        kv: Some("standby_reads = true".to_owned()),
        settings: Some("exclude = [\"*.local\"]".to_owned()),
        ..Plan::default()
    }
}

#[test]
fn the_others_follow_a_promoted_node_in_every_store_and_a_switchover_there_and_back() {
    let mut trio = Trio::new(every_store());
    trio.write(&trio.pair.a, 1);
    trio.pair.wait();
    // The primary dies: c follows b without a word of anybody.
    trio.pair.a.power_off();
    trio.pair.b.understudy(&["promote", "--force"]);
    Trio::until_primary(&mut trio.pair.b);
    trio.write(&trio.pair.b, 2);
    trio.until_equal(&trio.pair.b, &trio.c, 2);
    // The former primary comes back to both.
    trio.pair.a.serve();
    trio.pair.assert_a_is_fenced();
    trio.pair.a.understudy(&["rejoin"]);
    trio.write(&trio.pair.b, 3);
    trio.until_equal(&trio.pair.b, &trio.pair.a, 3);
    // In peace, to the third node: both others follow it, the old primary as well.
    trio.c.understudy(&["switchover"]);
    Trio::until_primary(&mut trio.c);
    trio.write(&trio.c, 4);
    trio.until_equal(&trio.c, &trio.pair.a, 4);
    trio.until_equal(&trio.c, &trio.pair.b, 4);
    // And back, asked on the primary.
    trio.c.understudy(&["switchover", "--to", "a"]);
    Trio::until_primary(&mut trio.pair.a);
    trio.write(&trio.pair.a, 5);
    trio.until_equal(&trio.pair.a, &trio.pair.b, 5);
    trio.until_equal(&trio.pair.a, &trio.c, 5);
    let rows = "SELECT string_agg(number::text, ' ' ORDER BY number) FROM change";
    assert_eq!(trio.c.sql(rows), "1 2 3 4 5");
    assert_eq!(
        trio.pair.b.status()["epoch"],
        json!({"number": 4, "node": "a"})
    );
}

#[test]
fn a_standby_that_has_more_than_the_promoted_node_keeps_that_aside_and_follows() {
    let mut trio = Trio::new(every_store());
    trio.write(&trio.pair.a, 1);
    trio.pair.wait();
    trio.pair.b.power_off();
    // Only c gets what is written now.
    trio.write(&trio.pair.a, 100);
    trio.until_equal(&trio.pair.a, &trio.c, 100);
    trio.pair.a.power_off();
    trio.pair.b.spawn(&[], &[]);
    until("b answers", Pair::PATIENCE, || {
        trio.pair.b.try_status().map(drop)
    });
    trio.pair.b.understudy(&["promote", "--force"]);
    Trio::until_primary(&mut trio.pair.b);
    trio.write(&trio.pair.b, 200);
    trio.until_equal(&trio.pair.b, &trio.c, 200);
    trio.c.wait_for_event("salvaged", "1 rows inserted");
    trio.c.wait_for_event("kv_salvaged", "");
    assert_eq!(
        trio.c.sql("SELECT count(*) FROM change WHERE number = 100"),
        "0"
    );
    assert!(!trio.c.at(FILES).join("file-100").exists());
    let kept = fs::read_dir(trio.c.at(FILES).join(".understudy/kept")).unwrap();
    let kept: Vec<_> = kept.map(|it| it.unwrap().path()).collect();
    assert_eq!(kept.len(), 1, "{kept:?}");
    let content = fs::read(kept[0].join("file-100")).unwrap();
    assert_eq!(content, vec![b'x'; 1000]);
}

#[test]
fn a_standby_that_was_down_during_a_promotion_finds_the_new_primary() {
    let mut trio = Trio::new(every_store());
    trio.write(&trio.pair.a, 1);
    trio.pair.wait();
    trio.c.power_off();
    trio.write(&trio.pair.a, 2);
    trio.pair.a.power_off();
    // Nobody knows whether c was promoted: without force it is to be asked.
    let refused = trio.pair.b.try_understudy(&["promote"]);
    assert_eq!(refused.status, Some(3), "{refused:?}");
    trio.pair.b.understudy(&["promote", "--force"]);
    Trio::until_primary(&mut trio.pair.b);
    trio.write(&trio.pair.b, 3);
    trio.c.spawn(&[], &[]);
    trio.until_equal(&trio.pair.b, &trio.c, 3);
}

#[test]
fn a_promotion_that_not_every_standby_hears_of_is_refused_without_force() {
    let mut trio = Trio::new(Plan::settings());
    trio.c.kill_daemon();
    let refused = trio.pair.b.try_understudy(&["promote"]);
    assert_eq!(refused.status, Some(3), "{refused:?}");
    assert!(
        refused.stderr.contains("node c cannot be asked"),
        "{refused:?}"
    );
    // The primary serves on.
    assert_eq!(trio.pair.a.role(), "primary");
    // It goes on when that node is there again.
    trio.c.spawn(&[], &[]);
    until("c answers", Pair::PATIENCE, || {
        trio.c.try_status().map(drop)
    });
    trio.pair.b.understudy(&["promote"]);
    Trio::until_primary(&mut trio.pair.b);
    trio.until_equal(&trio.pair.b, &trio.c, 0);
    trio.pair.assert_a_is_fenced();
}

/// A pair keeps together when a machine gets another address: it is written into the file of every node, and
/// nothing is copied anew.
#[test]
fn l18_a_node_that_gets_another_address_stays_a_node_of_the_pair() {
    let mut pair = Pair::new(Plan {
        postgres: true,
        files: true,
        ..Plan::settings()
    });
    pair.write(1);
    pair.wait();
    let (old, new) = (pair.ips[0].clone(), pair.ips[2].clone());
    // The machine is started anew: what runs on it has not to be told.
    pair.a.power_off();
    for machine in [&pair.a, &pair.b] {
        let text = fs::read_to_string(machine.cluster_file()).unwrap();
        assert!(text.contains(&old), "{text}");
        fs::write(machine.cluster_file(), text.replace(&old, &new)).unwrap();
    }
    pair.a.ip.clone_from(&new);
    // The standby reads its file again, and the primary starts at its new address.
    pair.b.signal(Signal::HUP);
    pair.b.wait_for_event("reloaded", "read again");
    pair.a.spawn(&[], &[]);
    until("a serves", Pair::PATIENCE, || {
        let status = pair.a.try_status()?;
        holds(status["role"] == "primary", &status["role"])
    });
    pair.a.wait_until_ready();
    pair.write(2);
    pair.wait_long();
    pair.assert_written(2);
    pair.assert_equal();
    let conninfo = pair.b.sql("SHOW primary_conninfo");
    assert!(conninfo.contains(&new), "{conninfo}");
    let stores = pair.b.status()["upstream"]["stores"].clone();
    let must_reseed = |store: &serde_json::Value| store["must_reseed"] == true;
    assert!(
        !stores.as_array().unwrap().iter().any(must_reseed),
        "{stores}"
    );
}
