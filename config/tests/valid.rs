//! What files that are right are read as.

use std::path::{Path, PathBuf};
use std::time::Duration;

use insta::assert_debug_snapshot;
use understudy_config::{
    Address, Config, Files, Kv, KvDurability, Local, Share, load, parse_cluster,
};

/// The sample of DESIGN, without what this version does not have.
const SAMPLE: &str = r#"
[cluster]
name = "catalog"
promotion = "manual"
[[node]]
name = "a"
address = "10.0.0.1:7400"
[[node]]
name = "b"
address = "10.0.0.2:7400"
[address]
ip = "10.0.0.100/24"
interface = "eth0"
[postgres]
data_dir = "/var/lib/postgresql/15/main"
durability = "async"
[[files]]
name = "uploads"
path = "/srv/catalog/uploads"
exclude = ["*.tmp"]
[kv]
durability = "standby-first"       # or "async"
degrade_after = "5s"
[settings]
schedule = "0 * * * * *"           # every minute
paths = ["/etc/catalog"]
validate = ["catalogctl", "check-config"]
reload = ["systemctl", "reload", "catalog"]
[[index]]
name = "search"
engine = "tantivy"
source = "SELECT id, title, body, updated_at FROM article"
watermark = "updated_at"
deleted = "is_deleted"
sweep = "never"
[[index]]
name = "articles"
engine = "elasticsearch"
source = "SELECT id, title FROM article"
database = "catalog"
url = "https://[fd00::5]"
user = "understudy"
password_file = "/etc/understudy/elastic"
ca_file = "/etc/understudy/ca.pem"
shared = false
[[index]]
name = "other"
engine = "command"
command = ["reindex"]
timeout = "5m"
[[service]]
name = "web"
start = ["systemctl", "start", "catalog"]
stop = ["systemctl", "stop", "catalog"]
status = ["systemctl", "is-active", "catalog"]
"#;

fn sample() -> Config {
    parse_cluster("understudy.toml", SAMPLE).expect("the sample is valid")
}

#[test]
fn the_sample_is_read_whole() {
    assert_debug_snapshot!(sample(), @r#"
    Config {
        cluster: Cluster {
            name: "catalog",
            rejoin: Manual,
        },
        nodes: [
            Node {
                name: NodeName(
                    "a",
                ),
                address: 10.0.0.1:7400,
                second_address: None,
            },
            Node {
                name: NodeName(
                    "b",
                ),
                address: 10.0.0.2:7400,
                second_address: None,
            },
        ],
        postgres: Some(
            Postgres {
                data_dir: "/var/lib/postgresql/15/main",
                port: 5432,
                user: "postgres",
                bin_dir: None,
                database: "postgres",
                durability: Async,
                max_slot_wal_keep_bytes: 10737418240,
                bandwidth: None,
                wal_dir: None,
                socket_dir: None,
                config_dir: None,
                commands: None,
            },
        ),
        files: [
            Files {
                name: StoreName(
                    "uploads",
                ),
                path: "/srv/catalog/uploads",
                exclude: Globs(
                    [
                        "*.tmp",
                    ],
                ),
                delete_guard: Share(
                    50,
                ),
                trash: 86400s,
                bandwidth: None,
                scan: Schedule(
                    "0 */3 * * * *",
                ),
                scrub_rate: 52428800,
            },
        ],
        kv: Some(
            Kv {
                durability: StandbyFirst {
                    degrade_after: Some(
                        5s,
                    ),
                },
                write_timeout: 5s,
                acknowledge: 1,
                standby_reads: false,
                allow_flush: false,
                view: false,
                memory_bytes: 1073741824,
                log_bytes: 1073741824,
                password_file: None,
            },
        ),
        settings: Some(
            Settings {
                schedule: Schedule(
                    "0 * * * * *",
                ),
                paths: [
                    "/etc/catalog",
                ],
                exclude: Globs(
                    [],
                ),
                validate: Some(
                    [
                        "catalogctl",
                        "check-config",
                    ],
                ),
                reload: Some(
                    [
                        "systemctl",
                        "reload",
                        "catalog",
                    ],
                ),
            },
        ),
        indexes: [
            Index {
                name: StoreName(
                    "search",
                ),
                engine: Tantivy {
                    rows: Rows {
                        query: "SELECT id, title, body, updated_at FROM article",
                        database: None,
                        warm: Some(
                            Warm {
                                watermark: "updated_at",
                                deleted: Some(
                                    "is_deleted",
                                ),
                                refresh: 5s,
                                overlap: 60s,
                                sweep: None,
                            },
                        ),
                    },
                },
                timeout: 3600s,
            },
            Index {
                name: StoreName(
                    "articles",
                ),
                engine: Elasticsearch {
                    rows: Rows {
                        query: "SELECT id, title FROM article",
                        database: Some(
                            "catalog",
                        ),
                        warm: None,
                    },
                    place: Elasticsearch {
                        is_tls: true,
                        host: "fd00::5",
                        port: 9200,
                        alias: "articles",
                        login: Some(
                            (
                                "understudy",
                                "/etc/understudy/elastic",
                            ),
                        ),
                        ca_file: Some(
                            "/etc/understudy/ca.pem",
                        ),
                        is_shared: false,
                    },
                },
                timeout: 3600s,
            },
            Index {
                name: StoreName(
                    "other",
                ),
                engine: Command {
                    command: [
                        "reindex",
                    ],
                },
                timeout: 300s,
            },
        ],
        fence: None,
        services: [
            Service {
                name: StoreName(
                    "web",
                ),
                start: [
                    "systemctl",
                    "start",
                    "catalog",
                ],
                stop: [
                    "systemctl",
                    "stop",
                    "catalog",
                ],
                status: [
                    "systemctl",
                    "is-active",
                    "catalog",
                ],
                user: None,
                on: Primary,
                after: [],
                is_critical: true,
                restarts: 3,
                restart_window: 3600s,
                interval: 5s,
                timeout: 30s,
                status_timeout: 10s,
                after_failover: Start,
                rehearse: false,
            },
        ],
        jobs: [],
        hooks: None,
        address: Some(
            Address {
                ips: [
                    IpPrefix {
                        ip: 10.0.0.100,
                        bits: 24,
                    },
                ],
                interface: "eth0",
                probe: 300ms,
                lease: None,
            },
        ),
        checks: [],
        drill: Drill {
            schedule: None,
            max_age: 3024000s,
            timeout: 7200s,
            faults: false,
            bandwidth: None,
        },
    }
    "#);
}

#[test]
fn services_start_in_the_order_of_the_file_but_after_those_they_wait_for() {
    let service = |name: &str, more: &str| {
        format!(
            "[[service]]\nname = \"{name}\"\nstart = [\"a\"]\nstop = [\"a\"]\nstatus = [\"a\"]\n{more}\n"
        )
    };
    let text = SAMPLE.to_owned()
        + &service("address", "after = [\"engine\", \"web\"]")
        + &service("mount", "after = []")
        + &service("engine", "");
    let config = parse_cluster("understudy.toml", &text).unwrap();
    let order: Vec<_> = config
        .services
        .iter()
        .map(|it| {
            (
                it.name.as_str(),
                it.after.iter().map(AsRef::as_ref).collect(),
            )
        })
        .collect();
    assert_eq!(
        order,
        [
            ("web", vec![]),
            ("mount", vec![]),
            ("engine", vec!["mount"]),
            ("address", vec!["web", "engine"]),
        ]
    );
}

#[test]
fn a_node_is_found_by_name_and_the_others_are_its_peers() {
    let config = sample();
    let names = ["a", "b", "c"].map(|name| name.parse().unwrap());
    let found = names.each_ref().map(|name| {
        (
            config.node(name).is_some(),
            config
                .peers(name)
                .map(|node| node.name.as_str())
                .collect::<Vec<_>>(),
        )
    });
    assert_eq!(
        found,
        [
            (true, vec!["b"]),
            (true, vec!["a"]),
            (false, vec!["a", "b"])
        ]
    );
}

#[test]
fn a_node_file_with_a_name_has_the_usual_directories() {
    let directory = tempfile::tempdir().unwrap();
    let [cluster, node] = ["understudy.toml", "node.toml"].map(|name| directory.path().join(name));
    std::fs::write(&cluster, SAMPLE).unwrap();
    std::fs::write(&node, "name = \"b\"\n").unwrap();
    let loaded = load(&cluster, &node).unwrap();
    let local = Local {
        name: "b".parse().unwrap(),
        root: PathBuf::from("/"),
        state_dir: PathBuf::from("/var/lib/understudy"),
        run_dir: PathBuf::from("/run/understudy"),
        pki_dir: directory.path().join("pki"),
        monitor_listen: "0.0.0.0:7480".parse().unwrap(),
        kv_listen: "127.0.0.1:7479".parse().unwrap(),
        address_interface: None,
    };
    assert_eq!(
        (loaded.local, loaded.config, loaded.text),
        (local, sample(), SAMPLE.to_owned())
    );
}

#[test]
fn the_template_of_a_node_says_what_was_answered() {
    let directory = tempfile::tempdir().unwrap();
    let [cluster, node] = ["understudy.toml", "node.toml"].map(|name| directory.path().join(name));
    std::fs::write(&cluster, SAMPLE).unwrap();
    let local = Local {
        name: "a".parse().unwrap(),
        root: PathBuf::from("/srv/a"),
        state_dir: PathBuf::from("/srv/a-state"),
        run_dir: PathBuf::from("/srv/a-run"),
        pki_dir: directory.path().join("pki"),
        monitor_listen: "[::1]:7480".parse().unwrap(),
        kv_listen: "127.0.0.1:7479".parse().unwrap(),
        address_interface: None,
    };
    let text = understudy_config::template::node(
        &local.name,
        &local.root,
        &local.state_dir,
        &local.run_dir,
        local.monitor_listen,
        local.kv_listen,
    );
    std::fs::write(&node, text).unwrap();
    assert_eq!(load(&cluster, &node).unwrap().local, local);
}

#[test]
fn a_pair_of_nothing_but_nodes_is_valid() {
    let text = "[cluster]\nname = \"c\"\n[[node]]\nname = \"a\"\naddress = \"[fd00::1]:1\"\n";
    let config = parse_cluster("understudy.toml", text).unwrap();
    assert_eq!(
        (config.postgres, config.files, config.settings),
        (None, Vec::new(), None)
    );
}

#[test]
fn a_files_store_that_says_nothing_has_the_defaults_that_the_reference_tells() {
    let text = SAMPLE.replace("exclude = [\"*.tmp\"]\n", "");
    let config = parse_cluster("understudy.toml", &text).unwrap();
    let expected = Files::new("uploads".parse().unwrap(), "/srv/catalog/uploads");
    assert_eq!(config.files, [expected]);
}

#[test]
fn the_figures_of_a_files_store_are_read() {
    let text = SAMPLE.replace(
        "exclude = [\"*.tmp\"]\n",
        "delete_guard = \"100%\"\ntrash = \"0s\"\nbandwidth = \"512kB\"\nscan = \"*/30 * * * *\"\n\
         scrub = \"1GB\"\n",
    );
    let config = parse_cluster("understudy.toml", &text).unwrap();
    let expected = Files {
        delete_guard: Share::WHOLE,
        trash: Duration::ZERO,
        bandwidth: Some(512 << 10),
        scan: "*/30 * * * *".parse().unwrap(),
        scrub_rate: 1 << 30,
        ..Files::new("uploads".parse().unwrap(), "/srv/catalog/uploads")
    };
    assert_eq!(config.files, [expected]);
}

#[test]
fn paths_are_kept_in_their_shortest_form() {
    let text = SAMPLE.replace("/srv/catalog/uploads", "//srv/./catalog/uploads/");
    let config = parse_cluster("understudy.toml", &text).unwrap();
    assert_eq!(config.files[0].path, Path::new("/srv/catalog/uploads"));
}

#[test]
fn the_figures_of_the_key_value_store_are_read() {
    let text = SAMPLE.replace(
        "degrade_after = \"5s\"\n",
        "degrade_after = \"never\"\nwrite_timeout = \"1s\"\nacknowledge = 1\nstandby_reads = true\n\
         allow_flush = true\nview = true\nmemory = \"16MB\"\nlog = \"64MB\"\n\
         password_file = \"/etc/kv-password\"\n",
    );
    let config = parse_cluster("understudy.toml", &text).unwrap();
    let expected = Kv {
        durability: KvDurability::StandbyFirst {
            degrade_after: None,
        },
        write_timeout: Duration::from_secs(1),
        acknowledge: 1,
        standby_reads: true,
        allow_flush: true,
        view: true,
        memory_bytes: 16 << 20,
        log_bytes: 64 << 20,
        password_file: Some("/etc/kv-password".into()),
    };
    assert_eq!(config.kv, Some(expected));
}

#[test]
fn a_key_value_store_that_does_not_wait_has_no_time_to_degrade_after() {
    let text = SAMPLE.replace("\"standby-first\"", "\"async\"");
    let config = parse_cluster("understudy.toml", &text).unwrap();
    assert_eq!(config.kv.map(|kv| kv.durability), Some(KvDurability::Async));
}

#[test]
fn a_single_node_may_say_how_many_standbys_it_will_have() {
    let text = "[cluster]\nname = \"c\"\n[[node]]\nname = \"a\"\naddress = \"[fd00::1]:1\"\n[kv]\nacknowledge = 2\n";
    let config = parse_cluster("understudy.toml", text).unwrap();
    assert_eq!(config.kv.map(|kv| kv.acknowledge), Some(2));
}

/// Loads a node whose `understudy.toml` has `kv` in its `[kv]`.
fn loaded_with_kv(kv: &str, node: &str) -> Local {
    let directory = tempfile::tempdir().expect("a directory");
    let [cluster_file, node_file] =
        ["understudy.toml", "node.toml"].map(|name| directory.path().join(name));
    std::fs::write(
        &cluster_file,
        SAMPLE.replace("[kv]\n", &format!("[kv]\n{kv}")),
    )
    .expect("it is written");
    std::fs::write(&node_file, format!("name = \"a\"\n{node}")).expect("it is written");
    load(&cluster_file, &node_file)
        .expect("both are valid")
        .local
}

#[test]
fn a_key_value_store_with_a_password_listens_where_it_is_told() {
    let local = loaded_with_kv(
        "password_file = \"/etc/kv-password\"\n",
        "[kv]\nlisten = \"10.0.0.1:7479\"\n",
    );
    assert_eq!(local.kv_listen, "10.0.0.1:7479".parse().unwrap());
}

#[test]
fn any_loopback_address_needs_no_password_and_port_0_collides_with_nothing() {
    for listen in [
        "127.0.0.9:1",
        "[::1]:1",
        "[::ffff:127.0.0.1]:1",
        "127.0.0.1:0",
    ] {
        let node = format!("[kv]\nlisten = \"{listen}\"\n[monitor]\nlisten = \"127.0.0.1:0\"\n");
        assert_eq!(loaded_with_kv("", &node).kv_listen, listen.parse().unwrap());
    }
}

#[test]
fn an_address_moves_with_what_is_said_beside_it() {
    let text = "[cluster]\nname = \"c\"\n[[node]]\nname = \"a\"\naddress = \"10.0.0.1:1\"\n[address]\nip = \"10.0.0.100/24\"\ninterface = \"eth0\"\n";
    let read = |more: &str| {
        parse_cluster("understudy.toml", &format!("{text}{more}"))
            .unwrap()
            .address
    };
    let usual = Address {
        ips: vec!["10.0.0.100/24".parse().unwrap()],
        interface: "eth0".to_owned(),
        probe: Duration::from_millis(300),
        lease: None,
    };
    let full = Address {
        ips: ["10.0.0.100/24", "fd00::100/64", "192.168.1.9/32"]
            .map(|ip| ip.parse().unwrap())
            .into(),
        probe: Duration::from_secs(1),
        lease: Some(Duration::from_secs(120)),
        ..usual.clone()
    };
    let more = "also = [\"fd00::100/64\", \"192.168.1.9/32\"]\nprobe = \"1s\"\nlease = \"2m\"\n";
    assert_eq!([read(""), read(more)], [Some(usual), Some(full)]);
}

#[test]
fn a_machine_may_call_the_interface_of_the_address_otherwise() {
    let local = loaded_with_kv("", "[address]\ninterface = \"ens3\"\n");
    assert_eq!(local.address_interface.as_deref(), Some("ens3"));
}

#[test]
fn every_kind_of_check_is_read() {
    let text = r#"
[cluster]
name = "c"
[[node]]
name = "a"
address = "10.0.0.1:1"
[postgres]
data_dir = "/pg"
[[check]]
name = "a"
kind = "disk"
path = "/"
min_free = "10GB"
recover = "15%"
[[check]]
name = "b"
kind = "memory"
min_free = "5%"
[[check]]
name = "c"
kind = "load"
max_load = "2.5"
[[check]]
name = "d"
kind = "link"
interface = "eth0"
[[check]]
name = "e"
kind = "gateway"
[[check]]
name = "f"
kind = "tcp"
address = "[fd00::1]:80"
[[check]]
name = "g"
kind = "http"
url = "http://[fd00::1]:80/x?y"
[[check]]
name = "h"
kind = "command"
command = ["true"]
[[check]]
name = "i"
kind = "mount"
path = "/srv"
[[check]]
name = "j"
kind = "postgres"
[[check]]
name = "k"
kind = "process"
pidfile = "/run/k.pid"
interval = "1m"
severity = "error"
on = "standby"
blocks_promotion = true
"#;
    let checks = parse_cluster("understudy.toml", text).unwrap().checks;
    let kinds: Vec<_> = checks.iter().map(|check| &check.kind).collect();
    assert_debug_snapshot!(kinds, @r#"
    [
        Disk {
            path: "/",
            least: Bytes(
                10737418240,
            ),
            recover: Some(
                Share(
                    Share(
                        15,
                    ),
                ),
            ),
            inodes: None,
        },
        Memory {
            least: Share(
                Share(
                    5,
                ),
            ),
            recover: None,
        },
        Load {
            most: 2.5,
            recover: None,
        },
        Link {
            interface: "eth0",
        },
        Gateway {
            address: None,
        },
        Tcp {
            host: "fd00::1",
            port: 80,
        },
        Http {
            url: "http://[fd00::1]:80/x?y",
            status: None,
            contains: "",
        },
        Command {
            command: [
                "true",
            ],
            user: None,
        },
        Mount {
            path: "/srv",
            fstype: None,
            write: true,
        },
        Postgres {
            query: "SELECT 1",
            database: None,
        },
        Process {
            process: PidFile(
                "/run/k.pid",
            ),
        },
    ]
    "#);
    assert_debug_snapshot!(checks.last(), @r#"
    Some(
        Check {
            name: StoreName(
                "k",
            ),
            kind: Process {
                process: PidFile(
                    "/run/k.pid",
                ),
            },
            interval: 60s,
            timeout: 5s,
            fail_after: 3,
            recover_after: 2,
            severity: Error,
            on: Standby,
            blocks_promotion: true,
        },
    )
    "#);
}
