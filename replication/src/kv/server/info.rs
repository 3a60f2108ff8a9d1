//! `INFO`, `ROLE` and `WAIT`: what the node is, and what its standbys have.

use std::fmt::Write;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::greet::REDIS_VERSION;
use super::session::{Scene, Session};
use crate::kv::command::Outcome;
use crate::kv::command::error::CommandError;
use crate::kv::keyspace::{Refusal, Standing};
use crate::kv::resp::{Args, Reply, parse_integer};
use crate::kv::space::Space;

/// The sections of `INFO`, in order.
const SECTIONS: [&str; 6] = [
    "server",
    "clients",
    "memory",
    "stats",
    "replication",
    "keyspace",
];

/// What stands for all sections.
const ALL: [&[u8]; 3] = [b"default", b"all", b"everything"];

impl Session {
    pub(super) fn info(
        &self,
        args: Args<'_>,
        scene: &mut Scene<'_, '_>,
        reply: &mut Reply,
    ) -> Outcome {
        // Where the store does not answer, the rest is told.
        let (space, standing) = (scene.space.as_deref(), scene.standing);
        let wanted: Vec<_> = args.from(1).map(<[u8]>::to_ascii_lowercase).collect();
        let is_all = wanted.is_empty() || wanted.iter().any(|word| ALL.contains(&&word[..]));
        let mut text = String::new();
        for section in SECTIONS {
            if is_all || wanted.iter().any(|word| word == section.as_bytes()) {
                if !text.is_empty() {
                    text.push_str("\r\n");
                }
                for (name, value) in self.section(section, space, standing) {
                    // Writing to a string does not fail.
                    let _written = match value {
                        Some(value) => write!(text, "{name}:{value}\r\n").is_ok(),
                        None => write!(text, "# {name}\r\n").is_ok(),
                    };
                }
            }
        }
        reply.verbatim(&text);
        Ok(())
    }

    /// Returns the lines of a section; the first is its title.
    fn section(
        &self,
        section: &str,
        space: Option<&Space<'_>>,
        standing: Option<&Standing>,
    ) -> Vec<(String, Option<String>)> {
        let shared = &self.shared;
        let mut lines = Vec::new();
        let mut title = |title: &str| lines.push((title.to_owned(), None));
        match section {
            "server" => title("Server"),
            "clients" => title("Clients"),
            "memory" => title("Memory"),
            "stats" => title("Stats"),
            "replication" => title("Replication"),
            _ => title("Keyspace"),
        }
        let mut line = |name: &str, value: &dyn ToString| {
            lines.push((name.to_owned(), Some(value.to_string())));
        };
        let count = |count: &std::sync::atomic::AtomicU64| count.load(Ordering::Relaxed);
        match section {
            "server" => {
                let uptime = shared.started.elapsed().as_secs();
                line("redis_version", &REDIS_VERSION);
                line("redis_mode", &"standalone");
                line("os", &std::env::consts::OS);
                line("arch_bits", &usize::BITS);
                line("process_id", &std::process::id());
                line(
                    "tcp_port",
                    &shared.address.map_or(0, |address| address.port()),
                );
                line("server_time_usec", &super::now().0.saturating_mul(1000));
                line("uptime_in_seconds", &uptime);
                line("uptime_in_days", &(uptime / 86_400));
                if let Some(standing) = standing {
                    line("understudy_durability", &standing.durability);
                }
            }
            "clients" => {
                line("connected_clients", &shared.clients().len());
                line("maxclients", &shared.options.clients_max);
            }
            "memory" => {
                if let Some(space) = space {
                    line("used_memory", &space.bytes());
                    line("used_memory_dataset", &space.live_bytes());
                }
                if let Some(standing) = standing {
                    line("maxmemory", &standing.memory_bytes_max);
                }
                line("maxmemory_policy", &"noeviction");
            }
            "stats" => {
                line("total_connections_received", &count(&shared.connections));
                line("total_commands_processed", &count(&shared.commands));
                line("rejected_connections", &count(&shared.refused));
            }
            "replication" => {
                if let Some(standing) = standing {
                    replication(standing, &mut line);
                }
            }
            _ => {
                if let Some(space) = space.filter(|space| !space.is_empty()) {
                    let (keys, expires) = (space.len(), space.expiring_len());
                    line("db0", &format!("keys={keys},expires={expires},avg_ttl=0"));
                }
            }
        }
        lines
    }

    /// Reads what `WAIT` was asked for: the number of standbys, and for how long at most.
    pub(super) fn wait_options(
        args: Args<'_>,
        standing: Option<&Standing>,
    ) -> Result<(usize, Option<Duration>), CommandError> {
        if !standing.ok_or_else(loading)?.is_primary {
            return Err(CommandError::Other(
                "WAIT cannot be used with replica instances. Please also note that since Redis 4.0 if a replica is \
                 configured to be writable (which is not the default) writes to replicas are just local and are not \
                 propagated.",
            ));
        }
        let count = parse_integer(args.at(1)).ok_or(CommandError::NotAnInteger)?;
        let millis = parse_integer(args.at(2)).ok_or(CommandError::Other(
            "timeout is not an integer or out of range",
        ))?;
        let Ok(millis) = u64::try_from(millis) else {
            return Err(CommandError::Other("timeout is negative"));
        };
        let limit = (millis > 0).then(|| Duration::from_millis(millis));
        Ok((usize::try_from(count).unwrap_or(0), limit))
    }

    /// `WAIT` among other commands of a transaction does not wait.
    pub(super) fn wait_in_transaction(
        &self,
        args: Args<'_>,
        scene: &Scene<'_, '_>,
        reply: &mut Reply,
    ) -> Outcome {
        Self::wait_options(args, scene.standing)?;
        let standbys = scene
            .standing
            .map_or(&[][..], |standing| &standing.standbys);
        let has = |(_, position): &&(String, _)| *position >= self.last_write;
        reply.count(standbys.iter().filter(has).count());
        Ok(())
    }
}

/// Tells the lines of the section of replication.
fn replication(standing: &Standing, line: &mut dyn FnMut(&str, &dyn ToString)) {
    if standing.is_primary {
        line("role", &"master");
        line("connected_slaves", &standing.standbys.len());
        for (index, (name, position)) in standing.standbys.iter().enumerate() {
            let lag = standing.position.ahead_of(*position);
            line(
                &format!("slave{index}"),
                &format!("name={name},state=online,offset={position},lag_ops={lag}"),
            );
        }
    } else {
        line("role", &"slave");
        line(
            "master_host",
            &standing.primary.as_deref().unwrap_or_default(),
        );
        line("slave_repl_offset", &standing.position);
        line("slave_read_only", &1);
    }
    line("master_repl_offset", &standing.position);
}

pub(super) fn loading() -> CommandError {
    CommandError::Worded(Refusal::Loading.to_string())
}

pub(super) fn role(standing: Option<&Standing>, reply: &mut Reply) -> Outcome {
    let standing = standing.ok_or_else(loading)?;
    let position = i64::try_from(standing.position.0).unwrap_or(i64::MAX);
    if standing.is_primary {
        reply.array(3);
        reply.bulk(b"master");
        reply.integer(position);
        reply.array(standing.standbys.len());
        for (name, position) in &standing.standbys {
            reply.array(3);
            reply.bulk(name.as_bytes());
            reply.bulk(b"0");
            reply.text(position);
        }
    } else {
        reply.array(5);
        reply.bulk(b"slave");
        reply.bulk(standing.primary.as_deref().unwrap_or_default().as_bytes());
        reply.integer(0);
        reply.bulk(if standing.primary.is_some() {
            b"connected"
        } else {
            b"connect"
        });
        reply.integer(position);
    }
    Ok(())
}
