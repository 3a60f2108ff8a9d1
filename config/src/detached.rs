//! The configuration of a copy that is a cluster of its own.

use std::fmt::Write;
use std::net::SocketAddr;
use std::path::Path;

use crate::{AfterFailover, Config, Engine, NodeName, On, Service, StoreName};

/// What is different from the original.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Detached {
    /// The name of its cluster.
    pub cluster: String,
    /// The name of its only node.
    pub node: NodeName,
    /// Where peers would reach it.
    pub address: SocketAddr,
    /// The port of its Postgres.
    pub postgres_port: u16,
    /// The folder of the socket of its Postgres.
    pub socket_dir: String,
    /// Its services are those of the original.
    pub with_services: bool,
}

/// Returns the `understudy.toml` of a copy of a cluster: the same stores at the same paths, beneath another
/// root; no other nodes, no commands of the operator's but services that are asked for, nothing that runs by
/// itself but what keeps the settings.
pub fn detached(config: &Config, answers: &Detached) -> String {
    let mut file = File::default();
    file.heading("[cluster]");
    file.line("name", quoted(&answers.cluster));
    file.heading("[[node]]");
    file.line("name", quoted(answers.node.as_str()));
    file.line("address", quoted(&answers.address.to_string()));
    if let Some(postgres) = &config.postgres {
        file.heading("[postgres]");
        file.line("data_dir", path(&postgres.data_dir));
        file.line("port", answers.postgres_port.to_string());
        file.line("user", quoted(&postgres.user));
        file.line("database", quoted(&postgres.database));
        file.line("socket_dir", quoted(&answers.socket_dir));
        for (key, folder) in [
            ("bin_dir", &postgres.bin_dir),
            ("config_dir", &postgres.config_dir),
        ] {
            if let Some(folder) = folder {
                file.line(key, path(folder));
            }
        }
    }
    for files in &config.files {
        file.heading("[[files]]");
        file.line("name", quoted(files.name.as_str()));
        file.line("path", path(&files.path));
        file.line("exclude", list(files.exclude.patterns()));
        file.line("delete_guard", quoted(&files.delete_guard.to_string()));
        file.line("scan", quoted(files.scan.source()));
    }
    if let Some(kv) = &config.kv {
        file.heading("[kv]");
        file.line("durability", quoted("async"));
        file.line("allow_flush", kv.allow_flush.to_string());
        file.line("view", kv.view.to_string());
        file.line("memory", quoted(&kilobytes(kv.memory_bytes)));
        file.line("log", quoted(&kilobytes(kv.log_bytes)));
    }
    if let Some(settings) = &config.settings {
        file.heading("[settings]");
        file.line("schedule", quoted(settings.schedule.source()));
        let paths = settings.paths.iter().map(|path| path.to_string_lossy());
        let paths: Vec<String> = paths.map(|path| path.into_owned()).collect();
        file.line("paths", list(&paths));
        file.line("exclude", list(settings.exclude.patterns()));
    }
    for index in &config.indexes {
        if let Engine::Tantivy { rows } = &index.engine {
            file.heading("[[index]]");
            file.line("name", quoted(index.name.as_str()));
            file.line("engine", quoted("tantivy"));
            file.line("source", quoted(&rows.query));
            if let Some(database) = &rows.database {
                file.line("database", quoted(database));
            }
            if let Some(warm) = &rows.warm {
                file.line("watermark", quoted(&warm.watermark));
                if let Some(deleted) = &warm.deleted {
                    file.line("deleted", quoted(deleted));
                }
                file.line("refresh", quoted(&seconds(warm.refresh)));
                file.line("overlap", quoted(&seconds(warm.overlap)));
                let sweep = warm.sweep.map_or("never".to_owned(), seconds);
                file.line("sweep", quoted(&sweep));
            }
            file.line("timeout", quoted(&seconds(index.timeout)));
        }
    }
    if answers.with_services {
        // The copy is a primary: what runs on standbys only does not run there.
        let runs = |service: &&Service| service.on != On::Standby;
        let names: Vec<&StoreName> = config
            .services
            .iter()
            .filter(runs)
            .map(|it| &it.name)
            .collect();
        for service in config.services.iter().filter(runs) {
            file.heading("[[service]]");
            file.line("name", quoted(service.name.as_str()));
            file.line("start", list(&service.start));
            file.line("stop", list(&service.stop));
            file.line("status", list(&service.status));
            if let Some(user) = &service.user {
                file.line("user", quoted(user));
            }
            file.line("on", quoted(service.on.as_str()));
            let after = service.after.iter().filter(|it| names.contains(it));
            let after: Vec<String> = after.map(ToString::to_string).collect();
            file.line("after", list(&after));
            file.line("critical", service.is_critical.to_string());
            file.line("restarts", service.restarts.to_string());
            let window = seconds(service.restart_window);
            file.line("restart_window", quoted(&window));
            file.line("interval", quoted(&seconds(service.interval)));
            file.line("timeout", quoted(&seconds(service.timeout)));
            file.line("status_timeout", quoted(&seconds(service.status_timeout)));
            let after_failover = match service.after_failover {
                AfterFailover::Start => "start",
                AfterFailover::Hold => "hold",
            };
            file.line("after_failover", quoted(after_failover));
            file.line("rehearse", service.rehearse.to_string());
        }
    }
    file.0
}

/// A file that is written line by line.
#[derive(Default)]
struct File(String);

impl File {
    fn heading(&mut self, heading: &str) {
        self.push(format_args!("\n{heading}\n"));
    }

    fn line(&mut self, key: &str, value: String) {
        self.push(format_args!("{key} = {value}\n"));
    }

    fn push(&mut self, text: std::fmt::Arguments<'_>) {
        self.0
            .write_fmt(text)
            .expect("a string takes whatever is written");
    }
}

fn quoted(text: &str) -> String {
    toml_edit::Value::from(text).to_string()
}

fn path(path: &Path) -> String {
    quoted(&path.to_string_lossy())
}

fn list(items: &[String]) -> String {
    let items: Vec<String> = items.iter().map(|item| quoted(item)).collect();
    format!("[{}]", items.join(", "))
}

fn kilobytes(bytes: u64) -> String {
    format!("{}kB", bytes.div_ceil(1024))
}

fn seconds(duration: std::time::Duration) -> String {
    format!("{}ms", duration.as_millis())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse_cluster;

    #[test]
    fn a_detached_copy_has_the_stores_and_nobody_to_talk_to() {
        let original = parse_cluster(
            "understudy.toml",
            r#"
[cluster]
name = "catalog"
[[node]]
name = "a"
address = "10.0.0.1:7400"
[[node]]
name = "b"
address = "10.0.0.2:7400"
[postgres]
data_dir = "/pg"
durability = "sync"
config_dir = "/etc/pg"
start = ["start"]
stop = ["stop"]
status = ["status"]
[[files]]
name = "docs"
path = '/srv/with "quotes"'
exclude = ["*.tmp"]
[kv]
memory = "64MB"
password_file = "/etc/secret"
[settings]
paths = ["/etc/app"]
validate = ["check"]
reload = ["reload"]
[[index]]
name = "search"
engine = "tantivy"
source = "SELECT 1 AS id, 'it''s' AS text"
timeout = "90s"
[[index]]
name = "other"
engine = "command"
command = ["reindex"]
[[service]]
name = "cache"
start = ["a"]
stop = ["c"]
status = ["d"]
on = "both"
[[service]]
name = "mirror"
start = ["a"]
stop = ["c"]
status = ["d"]
on = "standby"
[[service]]
name = "web"
start = ["a", "b"]
stop = ["c"]
status = ["d"]
user = "catalog"
after = ["cache"]
critical = false
restarts = 7
restart_window = "20m"
interval = "3s"
timeout = "41s"
status_timeout = "4s"
after_failover = "hold"
rehearse = true
[drill]
schedule = "0 3 * * 0"
"#,
        )
        .unwrap();
        let mut answers = Detached {
            cluster: "catalog-try".to_owned(),
            node: "test".parse().unwrap(),
            address: "127.0.0.1:9400".parse().unwrap(),
            postgres_port: 9432,
            socket_dir: "/socket".to_owned(),
            with_services: false,
        };
        let parsed = |answers: &Detached| {
            let text = detached(&original, answers);
            parse_cluster("understudy.toml", &text).unwrap_or_else(|problems| {
                panic!("{text}\n{}", problems.render(false));
            })
        };
        let copy = parsed(&answers);
        assert_eq!(copy.cluster.name, "catalog-try");
        assert_eq!(copy.nodes.len(), 1);
        let (theirs, ours) = (original.postgres.as_ref().unwrap(), copy.postgres.unwrap());
        assert_eq!((ours.port, &ours.data_dir), (9432, &theirs.data_dir));
        assert_eq!(
            (ours.commands, ours.config_dir),
            (None, theirs.config_dir.clone())
        );
        assert_eq!(copy.files[0].path, original.files[0].path);
        assert_eq!(copy.kv.unwrap().memory_bytes, 64 << 20);
        let settings = copy.settings.unwrap();
        assert_eq!((settings.validate, settings.reload), (None, None));
        assert_eq!(copy.indexes, original.indexes[..1]);
        assert_eq!(copy.services, []);
        assert_eq!(copy.drill.schedule, None);
        answers.with_services = true;
        let mut expected = original.services.clone();
        expected.retain(|it| it.name.as_str() != "mirror");
        assert_eq!(expected.len(), 2);
        assert_eq!(parsed(&answers).services, expected);
    }
}
