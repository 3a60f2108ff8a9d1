//! The sections of `understudy.toml`, one by one.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::{address, elements, name, paths, unique};
use crate::problem::{Findings, Mistake, Place, Placed};
use crate::{
    Cluster, Fence, Files, GlobError, Globs, Node, NodeName, Postgres, PostgresDurability, Rejoin,
    Schedule, ServerCommands, Settings, Share, StoreName, duration, raw, size,
};

/// The names of the stores that have a section of their own.
const STORE_NAMES_RESERVED: [&str; 3] = ["postgres", "settings", "kv"];

pub(super) fn cluster(raw: &raw::Cluster, findings: &mut Findings) -> Option<Cluster> {
    let name = raw
        .name
        .as_ref()
        .and_then(|it| findings.check(it, name::<StoreName>));
    if let Some(promotion) = &raw.promotion {
        let known = ["manual"];
        match promotion.value.as_str() {
            "manual" => {}
            "automatic" => {
                let what =
                    "promotion `automatic` needs a witness, which this version does not have";
                findings.report(&promotion.place, what, "\"manual\"");
            }
            other => {
                let what = format!("`{other}` is not a way to promote");
                findings
                    .report(&promotion.place, what, "\"manual\"")
                    .suggesting(other, known);
            }
        }
    }
    let rejoin = rejoin(raw, findings);
    Some(Cluster {
        name: name?.to_string(),
        rejoin: rejoin?,
    })
}

fn rejoin(raw: &raw::Cluster, findings: &mut Findings) -> Option<Rejoin> {
    let Some(rejoin) = &raw.rejoin else {
        return Some(Rejoin::default());
    };
    match rejoin.value.as_str() {
        "manual" => Some(Rejoin::Manual),
        "automatic" => Some(Rejoin::Automatic),
        other => {
            let what = format!("`{other}` is not a way to rejoin");
            findings
                .report(&rejoin.place, what, "\"manual\" or \"automatic\"")
                .suggesting(other, ["manual", "automatic"]);
            None
        }
    }
}

/// Returns the nodes in the order of the file, those that are wrong as `None`.
pub(super) fn nodes(
    raw: &Placed<Vec<Placed<raw::Node>>>,
    findings: &mut Findings,
) -> Vec<Option<Node>> {
    if raw.value.is_empty() {
        findings.report(
            &raw.place,
            "the cluster has no node",
            "at least one `[[node]]`",
        );
    }
    unique(
        raw.value.iter().filter_map(|node| node.value.name.as_ref()),
        "node",
        findings,
    );
    let mut first: BTreeMap<SocketAddr, &Place> = BTreeMap::new();
    let mut node = |raw: &raw::Node| -> Option<Node> {
        let name = raw
            .name
            .as_ref()
            .and_then(|it| findings.check(it, name::<NodeName>));
        let address = raw
            .address
            .as_ref()
            .and_then(|it| findings.check(it, node_address));
        let second = raw.second_address.as_ref();
        let second = second.map(|it| findings.check(it, node_address));
        Some(Node {
            name: name?,
            address: address?,
            second_address: super::whole(second)?,
        })
    };
    let nodes: Vec<_> = raw.value.iter().map(|it| node(&it.value)).collect();
    for (node, raw) in nodes.iter().zip(&raw.value) {
        let Some(node) = node else { continue };
        let written = raw.value.address.iter().chain(&raw.value.second_address);
        for (address, written) in node.addresses().zip(written) {
            let canonical = SocketAddr::new(address.ip().to_canonical(), address.port());
            let Some(place) = first.get(&canonical) else {
                first.insert(canonical, &written.place);
                continue;
            };
            let what = format!("address `{}` is given twice", written.value);
            findings
                .report(&written.place, what, "an address that no other node has")
                .related(place, "it is given here first");
        }
    }
    nodes
}

fn node_address(text: &str) -> Result<SocketAddr, Mistake> {
    let address = address(text)?;
    let what = if address.ip().is_unspecified() {
        "is an address that nobody can connect to"
    } else if address.port() == 0 {
        "has no port"
    } else {
        return Ok(address);
    };
    Err(Mistake::new(
        format!("`{text}` {what}"),
        "the address that the other nodes reach, such as \"10.0.0.1:7400\"",
    ))
}

pub(super) fn postgres(raw: &raw::Postgres, findings: &mut Findings) -> Option<Postgres> {
    let data_dir = raw
        .data_dir
        .as_ref()
        .and_then(|it| findings.check(it, paths::store));
    let bin_dir = raw
        .bin_dir
        .as_ref()
        .and_then(|it| findings.check(it, paths::absolute));
    let socket_dir = raw
        .socket_dir
        .as_ref()
        .and_then(|it| findings.check(it, paths::absolute));
    let wal_dir = raw
        .wal_dir
        .as_ref()
        .and_then(|it| findings.check(it, paths::store));
    let user = raw.user.as_ref().and_then(|it| findings.check(it, word));
    let database = raw
        .database
        .as_ref()
        .and_then(|it| findings.check(it, word));
    let kept = raw.max_slot_wal_keep_size.as_ref();
    let max_slot_wal_keep_bytes = kept.and_then(|it| findings.check(it, size::wal));
    let port = raw.port.as_ref().map(|it| it.value);
    if let Some(port) = raw.port.as_ref().filter(|port| port.value == 0) {
        findings.report(&port.place, "0 is not a port", "a port from 1 to 65535");
    }
    let durability = postgres_durability(raw, findings);
    let bandwidth = raw.bandwidth.as_ref();
    let bandwidth = bandwidth.and_then(|it| findings.check(it, size::parse_limit));
    let config_dir = raw
        .config_dir
        .as_ref()
        .and_then(|it| findings.check(it, paths::store));
    let commands = server_commands(raw, findings);
    Some(Postgres {
        data_dir: data_dir?,
        port: port?,
        user: user?,
        bin_dir,
        database: database?,
        durability: durability?,
        max_slot_wal_keep_bytes: max_slot_wal_keep_bytes?,
        bandwidth: bandwidth?,
        wal_dir,
        socket_dir,
        config_dir,
        commands: commands?,
    })
}

/// Reads the operator's own commands: all three, or none.
fn server_commands(raw: &raw::Postgres, findings: &mut Findings) -> Option<Option<ServerCommands>> {
    let named = [
        ("start", &raw.start),
        ("stop", &raw.stop),
        ("status", &raw.status),
    ];
    let Some((first, place)) = named
        .iter()
        .find_map(|(name, raw)| Some((name, &raw.as_ref()?.place)))
    else {
        return Some(None);
    };
    let missing: Vec<String> = named
        .iter()
        .filter(|(_, raw)| raw.is_none())
        .map(|(name, _)| format!("`{name}`"))
        .collect();
    if !missing.is_empty() {
        let what = format!("`{first}` is given without {}", missing.join(" and "));
        let expected = "`start`, `stop` and `status`, or none of them";
        findings.report(place, what, expected);
    }
    let [start, stop, status] =
        named.map(|(_, raw)| raw.as_ref().and_then(|it| command(it, findings)));
    Some(Some(ServerCommands {
        start: start?,
        stop: stop?,
        status: status?,
    }))
}

fn postgres_durability(raw: &raw::Postgres, findings: &mut Findings) -> Option<PostgresDurability> {
    let degrade_after = raw
        .degrade_after
        .as_ref()
        .and_then(|it| findings.check(it, duration::parse_or_never))?;
    let durability = raw.durability.as_ref()?;
    match durability.value.as_str() {
        "async" => Some(PostgresDurability::Async),
        "sync" => Some(PostgresDurability::Sync { degrade_after }),
        other => {
            let what = format!("`{other}` is not a durability");
            findings
                .report(&durability.place, what, "\"async\" or \"sync\"")
                .suggesting(other, ["async", "sync"]);
            None
        }
    }
}

pub(super) fn files(raw: &Placed<raw::Files>, findings: &mut Findings) -> Option<Files> {
    let raw = &raw.value;
    let name = raw.name.as_ref().and_then(|it| {
        let name: StoreName = findings.check(it, name)?;
        if STORE_NAMES_RESERVED.contains(&name.as_str()) {
            let what = format!("the name `{name}` is taken by the section `[{name}]`");
            findings.report(&it.place, what, "a name that no other store has");
            return None;
        }
        Some(name)
    });
    let path = raw
        .path
        .as_ref()
        .and_then(|it| findings.check(it, paths::store));
    let exclude = globs(&raw.exclude, findings);
    let delete_guard = raw
        .delete_guard
        .as_ref()
        .and_then(|it| findings.check(it, str::parse::<Share>));
    let trash = raw
        .trash
        .as_ref()
        .and_then(|it| findings.check(it, duration::parse_from_zero));
    let bandwidth = raw
        .bandwidth
        .as_ref()
        .and_then(|it| findings.check(it, size::parse_limit));
    let scan = raw
        .scan
        .as_ref()
        .and_then(|it| findings.check(it, schedule));
    let scrub_rate = raw
        .scrub
        .as_ref()
        .and_then(|it| findings.check(it, size::parse));
    Some(Files {
        name: name?,
        path: path?,
        exclude: exclude?,
        delete_guard: delete_guard?,
        trash: trash?,
        bandwidth: bandwidth?,
        scan: scan?,
        scrub_rate: scrub_rate?,
    })
}

pub(super) fn settings(raw: &raw::Settings, findings: &mut Findings) -> Option<Settings> {
    let schedule = raw
        .schedule
        .as_ref()
        .and_then(|it| findings.check(it, schedule));
    if let Some(paths) = raw.paths.as_ref().filter(|paths| paths.value.is_empty()) {
        findings.report(
            &paths.place,
            "`paths` is empty",
            "at least one file or directory",
        );
    }
    let paths = super::all(elements(&raw.paths).map(|it| findings.check(it, paths::store)));
    let exclude = globs(&raw.exclude, findings);
    let validate = raw.validate.as_ref().map(|it| command(it, findings));
    let reload = raw.reload.as_ref().map(|it| command(it, findings));
    Some(Settings {
        schedule: schedule?,
        paths: paths?,
        exclude: exclude?,
        validate: super::whole(validate)?,
        reload: super::whole(reload)?,
    })
}

pub(super) fn fence(raw: &raw::Fence, findings: &mut Findings) -> Option<Fence> {
    let program = raw.command.as_ref();
    let program = program.and_then(|it| command(it, findings));
    let timeout = raw.timeout.as_ref();
    let timeout = timeout.and_then(|it| findings.check(it, duration::parse));
    Some(Fence {
        command: program?,
        timeout: timeout?,
    })
}

/// Reads a command: a program, which is not empty, and its arguments.
pub(super) fn command(raw: &Placed<raw::Command>, findings: &mut Findings) -> Option<Vec<String>> {
    let program = raw.value.first();
    let place = program.map_or(&raw.place, |program| &program.place);
    if program.is_none_or(|program| program.value.is_empty()) {
        let expected = "a program and its arguments, such as [\"systemctl\", \"start\", \"web\"]";
        findings.report(place, "the command names no program", expected);
        return None;
    }
    for argument in raw
        .value
        .iter()
        .filter(|argument| argument.value.contains('\0'))
    {
        findings.report(
            &argument.place,
            "the argument holds a NUL",
            "text without NUL",
        );
    }
    Some(
        raw.value
            .iter()
            .map(|argument| argument.value.clone())
            .collect(),
    )
}

fn globs(raw: &Option<Placed<Vec<Placed<String>>>>, findings: &mut Findings) -> Option<Globs> {
    let mistake = |error: GlobError| {
        let expected = match &error {
            GlobError::Syntax { .. } => "a pattern such as \"*.tmp\" or \"cache/**\"",
            GlobError::Unmatchable(_) => "a pattern without a `/` at its end, such as \"cache\"",
            GlobError::TooLarge(_) => "fewer patterns",
        };
        Mistake::new(error.to_string(), expected)
    };
    let one = |text: &str| Globs::new([text.to_owned()]).map(drop).map_err(mistake);
    let valid = elements(raw).filter(|pattern| findings.check(*pattern, one).is_some());
    let patterns: Vec<String> = valid.map(|pattern| pattern.value.clone()).collect();
    Globs::new(patterns)
        .map_err(|error| {
            let mistake = mistake(error);
            raw.iter().for_each(|raw| {
                findings.report(&raw.place, mistake.what.as_str(), mistake.expected.as_str());
            });
        })
        .ok()
}

pub(super) fn schedule(text: &str) -> Result<Schedule, Mistake> {
    text.parse::<Schedule>().map_err(|error| Mistake {
        what: error.to_string(),
        expected: error.expected(),
        within: error.within(),
    })
}

/// Reads the name of a user or a database.
pub(super) fn word(text: &str) -> Result<String, Mistake> {
    let is_word = !text.is_empty() && !text.contains(|c: char| c.is_control() || c.is_whitespace());
    if is_word {
        return Ok(text.to_owned());
    }
    Err(Mistake::new(
        format!("`{text}` is not a name"),
        "a name without spaces",
    ))
}
