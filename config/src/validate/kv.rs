//! The key-value store: `[kv]` of `understudy.toml`, and `[kv]` of `node.toml` beside it.

use std::net::SocketAddr;

use super::{Checked, paths};
use crate::problem::{Findings, Placed};
use crate::{Kv, KvDurability, duration, raw, size};

/// The least memory that a table can be bounded to: it holds a few atoms of commands beside its values.
const MEMORY_BYTES_MIN: u64 = 16 << 20;
/// The least log: two of its segments and what is written meanwhile.
const LOG_BYTES_MIN: u64 = 64 << 20;

/// Validates `[kv]`, in a cluster of these nodes.
pub(super) fn kv(
    raw: &raw::Kv,
    nodes: Option<&Placed<Vec<Placed<raw::Node>>>>,
    findings: &mut Findings,
) -> Option<Kv> {
    let durability = durability(raw, findings);
    let write_timeout = raw.write_timeout.as_ref();
    let write_timeout = write_timeout.and_then(|it| findings.check(it, duration::parse));
    let acknowledge = acknowledge(raw.acknowledge.as_ref(), nodes, findings);
    let memory = |text: &str| size::parse_from(text, MEMORY_BYTES_MIN, "16MB");
    let memory_bytes = raw.memory.as_ref();
    let memory_bytes = memory_bytes.and_then(|it| findings.check(it, memory));
    let log = |text: &str| size::parse_from(text, LOG_BYTES_MIN, "64MB");
    let log_bytes = raw.log.as_ref().and_then(|it| findings.check(it, log));
    let password_file = raw.password_file.as_ref();
    let password_file = password_file.map(|it| findings.check(it, paths::store));
    let is_set = |written: &Option<Placed<bool>>| written.as_ref().map(|it| it.value);
    Some(Kv {
        durability: durability?,
        write_timeout: write_timeout?,
        acknowledge: acknowledge?,
        standby_reads: is_set(&raw.standby_reads)?,
        allow_flush: is_set(&raw.allow_flush)?,
        view: is_set(&raw.view)?,
        memory_bytes: memory_bytes?,
        log_bytes: log_bytes?,
        password_file: super::whole(password_file)?,
    })
}

fn durability(raw: &raw::Kv, findings: &mut Findings) -> Option<KvDurability> {
    let degrade_after = raw
        .degrade_after
        .as_ref()
        .and_then(|it| findings.check(it, duration::parse_or_never));
    let durability = raw.durability.as_ref()?;
    match durability.value.as_str() {
        "standby-first" => Some(KvDurability::StandbyFirst {
            degrade_after: degrade_after?,
        }),
        "async" => degrade_after.map(|_| KvDurability::Async),
        other => {
            let what = format!("`{other}` is not a durability of the key-value store");
            findings
                .report(&durability.place, what, "\"standby-first\" or \"async\"")
                .suggesting(other, ["standby-first", "async"]);
            None
        }
    }
}

/// Reads how many standbys a write waits for. A cluster of one node is still being made, and its standbys
/// are to come.
fn acknowledge(
    raw: Option<&Placed<u16>>,
    nodes: Option<&Placed<Vec<Placed<raw::Node>>>>,
    findings: &mut Findings,
) -> Option<usize> {
    let written = raw?;
    let count = usize::from(written.value);
    if count == 0 {
        let what = "`acknowledge` is 0, which waits for no standby";
        let expected = "at least 1; or durability = \"async\", which does not wait";
        findings.report(&written.place, what, expected);
        return None;
    }
    let others = nodes.map_or(0, |nodes| nodes.value.len().saturating_sub(1));
    if others > 0 && count > others {
        let nodes_are = match others {
            1 => "there is 1 other node".to_owned(),
            others => format!("there are {others} other nodes"),
        };
        let what = format!("`acknowledge` is {count}, and {nodes_are} to wait for");
        let expected = format!("at most {others}, or more nodes");
        let problem = findings.report(&written.place, what, expected);
        if let Some(first) = nodes.and_then(|nodes| nodes.value.first()) {
            problem.related(&first.place, "the nodes are here");
        }
        return None;
    }
    Some(count)
}

/// Reports a `[kv] listen` of `node.toml` that others could reach without a password, or that the monitor
/// has already. Without a `[kv]` in `understudy.toml` nothing listens there.
pub(super) fn may_listen(
    (listen, written): (SocketAddr, &Placed<String>),
    monitor: Option<(SocketAddr, &Placed<String>)>,
    checked: Option<&Checked>,
    findings: &mut Findings,
) {
    let Some(section) = checked.and_then(|checked| checked.kv.as_ref()) else {
        return;
    };
    if !listen.ip().to_canonical().is_loopback() && !section.has_password {
        let what = format!(
            "`{}` can be reached from other machines, and `[kv]` has no `password_file`",
            written.value
        );
        let expected = "a loopback address such as \"127.0.0.1:7479\", or a password_file";
        findings
            .report(&written.place, what, expected)
            .related(&section.place, "the store is configured here");
    }
    let Some((monitor, monitor_written)) = monitor.filter(|(it, _)| collide(listen, *it)) else {
        return;
    };
    // What is written is the better place than what is assumed: one of the two is written, since the
    // defaults differ.
    let (place, other) = if written.place.start < written.place.end {
        (&written.place, &monitor_written.place)
    } else {
        (&monitor_written.place, &written.place)
    };
    let what = format!("the key-value store's `{listen}` and the monitor's `{monitor}` collide");
    let problem = findings.report(place, what, "two addresses that differ");
    if other.start < other.end {
        problem.related(other, "the other is here");
    }
}

/// Returns whether both cannot listen at once. Port 0 lets the system choose a free one.
fn collide(left: SocketAddr, right: SocketAddr) -> bool {
    let (left_ip, right_ip) = (left.ip().to_canonical(), right.ip().to_canonical());
    left.port() != 0
        && left.port() == right.port()
        && (left_ip == right_ip || left_ip.is_unspecified() || right_ip.is_unspecified())
}
