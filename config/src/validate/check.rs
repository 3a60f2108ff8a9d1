//! The sections `[[check]]`, each of which is what its kind makes of it.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use super::client_address::interface;
use super::paths::StorePath;
use super::sections::{command, word};
use super::{name, paths};
use crate::problem::{Findings, Mistake, Place, Placed};
use crate::{
    Amount, Check, CheckKind, CheckOn, CheckSeverity, ProcessName, Share, StoreName, duration, raw,
    size,
};

/// The kinds, and the keys that each of them has beside those of all.
const KINDS: [(&str, &[&str]); 11] = [
    ("disk", &["path", "min_free", "recover", "min_inodes"]),
    ("memory", &["min_free", "recover"]),
    ("load", &["max_load", "recover"]),
    ("link", &["interface"]),
    ("gateway", &["address"]),
    ("process", &["process", "pidfile"]),
    ("tcp", &["address"]),
    ("http", &["url", "status", "contains"]),
    ("command", &["command", "user"]),
    ("mount", &["path", "fstype", "write"]),
    ("postgres", &["query", "database"]),
];
/// Shorter, and the looking is a load of its own.
const INTERVAL_MIN: Duration = Duration::from_secs(1);
const URL: &str = "a URL such as \"http://127.0.0.1:8080/health\"";

/// What a check may need of the rest of the file.
pub(super) struct Around<'a> {
    pub(super) has_postgres: bool,
    pub(super) stores: &'a [StorePath],
}

/// Validates a `[[check]]`.
pub(super) fn check(
    raw: &Placed<raw::Check>,
    around: &Around<'_>,
    findings: &mut Findings,
) -> Option<Check> {
    let Placed { value: raw, place } = raw;
    let named = raw.name.as_ref();
    let named = named.and_then(|it| findings.check(it, name::<StoreName>));
    let interval = raw.interval.as_ref();
    let interval = interval.and_then(|it| findings.check(it, interval_of));
    let timeout = raw.timeout.as_ref();
    let timeout = timeout.and_then(|it| findings.check(it, duration::parse));
    let fail_after = at_least_one("fail_after", raw.fail_after.as_ref(), findings);
    let recover_after = at_least_one("recover_after", raw.recover_after.as_ref(), findings);
    let severity = one_of(
        raw.severity.as_ref(),
        "severity",
        &[
            ("info", CheckSeverity::Info),
            ("warning", CheckSeverity::Warning),
            ("error", CheckSeverity::Error),
        ],
        findings,
    );
    let on = one_of(
        raw.on.as_ref(),
        "place to look",
        &[
            ("any", CheckOn::Any),
            ("primary", CheckOn::Primary),
            ("standby", CheckOn::Standby),
        ],
        findings,
    );
    let kind = raw.kind.as_ref();
    let kind = kind.and_then(|kind| kind_of(raw, kind, place, around, findings));
    Some(Check {
        name: named?,
        kind: kind?,
        interval: interval?,
        timeout: timeout?,
        fail_after: fail_after?,
        recover_after: recover_after?,
        severity: severity?,
        on: on?,
        blocks_promotion: raw.blocks_promotion.as_ref()?.value,
    })
}

fn kind_of(
    raw: &raw::Check,
    kind: &Placed<String>,
    section: &Place,
    around: &Around<'_>,
    findings: &mut Findings,
) -> Option<CheckKind> {
    let word = kind.value.as_str();
    let Some((_, keys)) = KINDS.iter().find(|(known, _)| *known == word) else {
        let known = || KINDS.iter().map(|(kind, _)| *kind);
        let names: Vec<String> = known().map(|kind| format!("\"{kind}\"")).collect();
        let what = format!("`{word}` is not a kind of check");
        let problem = findings.report(&kind.place, what, format!("one of {}", names.join(", ")));
        problem.suggesting(word, known());
        return None;
    };
    for (key, place) in written(raw) {
        if !keys.contains(&key) {
            let what = format!("a check of kind `{word}` has no `{key}`");
            let names: Vec<String> = keys.iter().map(|key| format!("`{key}`")).collect();
            findings
                .report(place, what, names.join(", "))
                .related(&kind.place, "the kind is chosen here");
        }
    }
    let mut of = Of {
        word,
        section,
        findings,
    };
    match word {
        "disk" => {
            let path = of.needed("path", &raw.path, paths::store_or_root);
            let least = of.needed("min_free", &raw.min_free, amount);
            let recover = of.given(&raw.recover, amount);
            let inodes = of.given(&raw.min_inodes, str::parse::<Share>);
            Some(CheckKind::Disk {
                path: path?,
                least: least?,
                recover: recover?,
                inodes: inodes?,
            })
        }
        "memory" => {
            let least = of.needed("min_free", &raw.min_free, amount);
            let recover = of.given(&raw.recover, amount);
            Some(CheckKind::Memory {
                least: least?,
                recover: recover?,
            })
        }
        "load" => {
            let most = of.needed("max_load", &raw.max_load, number);
            let recover = of.given(&raw.recover, number);
            Some(CheckKind::Load {
                most: most?,
                recover: recover?,
            })
        }
        "link" => Some(CheckKind::Link {
            interface: of.needed("interface", &raw.interface, interface)?,
        }),
        "gateway" => Some(CheckKind::Gateway {
            address: of.given(&raw.address, ip)?,
        }),
        "process" => of.process(raw),
        "tcp" => {
            let (host, port) = of.needed("address", &raw.address, host_and_port)?;
            Some(CheckKind::Tcp { host, port })
        }
        "http" => {
            let url = of.needed("url", &raw.url, url);
            let status = of.status(raw.status.as_ref());
            let contains = raw.contains.as_ref().map(|it| it.value.clone());
            Some(CheckKind::Http {
                url: url?,
                status: status?,
                contains: contains.unwrap_or_default(),
            })
        }
        "command" => of.command(raw),
        "mount" => of.mount(raw, around.stores),
        _ => of.postgres(raw, kind, around),
    }
}

/// Returns the keys of single kinds that are written.
fn written(raw: &raw::Check) -> Vec<(&'static str, &Place)> {
    fn text(it: &Option<Placed<String>>) -> Option<&Place> {
        it.as_ref().map(|it| &it.place)
    }
    let keys = [
        ("path", text(&raw.path)),
        ("min_free", text(&raw.min_free)),
        ("recover", text(&raw.recover)),
        ("min_inodes", text(&raw.min_inodes)),
        ("max_load", text(&raw.max_load)),
        ("interface", text(&raw.interface)),
        ("address", text(&raw.address)),
        ("process", text(&raw.process)),
        ("pidfile", text(&raw.pidfile)),
        ("url", text(&raw.url)),
        ("status", raw.status.as_ref().map(|it| &it.place)),
        ("contains", text(&raw.contains)),
        ("command", raw.command.as_ref().map(|it| &it.place)),
        ("user", text(&raw.user)),
        ("fstype", text(&raw.fstype)),
        ("write", raw.write.as_ref().map(|it| &it.place)),
        ("query", text(&raw.query)),
        ("database", text(&raw.database)),
    ];
    keys.into_iter()
        .filter_map(|(key, place)| Some((key, place?)))
        .collect()
}

/// The reading of the keys of one kind.
struct Of<'a> {
    word: &'a str,
    section: &'a Place,
    findings: &'a mut Findings,
}

impl Of<'_> {
    /// Reads a key that has to be there.
    fn needed<T>(
        &mut self,
        key: &str,
        written: &Option<Placed<String>>,
        read: impl Fn(&str) -> Result<T, Mistake>,
    ) -> Option<T> {
        if let Some(written) = written {
            return self.findings.check(written, read);
        }
        self.lacks(key);
        None
    }

    /// Reads a key that need not be there.
    fn given<T>(
        &mut self,
        written: &Option<Placed<String>>,
        read: impl Fn(&str) -> Result<T, Mistake>,
    ) -> Option<Option<T>> {
        super::whole(written.as_ref().map(|it| self.findings.check(it, read)))
    }

    fn lacks(&mut self, key: &str) {
        let what = format!("a check of kind `{}` lacks the key `{key}`", self.word);
        self.findings
            .report(self.section, what, format!("the key `{key}`"));
    }

    fn process(&mut self, raw: &raw::Check) -> Option<CheckKind> {
        let process = match (&raw.process, &raw.pidfile) {
            (Some(program), None) => ProcessName::Program(self.findings.check(program, word)?),
            (None, Some(file)) => ProcessName::PidFile(self.findings.check(file, paths::store)?),
            (None, None) => {
                self.lacks("process");
                return None;
            }
            (Some(program), Some(file)) => {
                let what = "a process is found by `process` or by `pidfile`, not by both";
                self.findings
                    .report(&file.place, what, "one of the two")
                    .related(&program.place, "the other is here");
                return None;
            }
        };
        Some(CheckKind::Process { process })
    }

    fn status(&mut self, written: Option<&Placed<u16>>) -> Option<Option<u16>> {
        let Some(written) = written else {
            return Some(None);
        };
        let status = written.value;
        if (100..=599).contains(&status) {
            return Some(Some(status));
        }
        let what = format!("`{status}` is not a status of HTTP");
        self.findings
            .report(&written.place, what, "a number from 100 to 599");
        None
    }

    fn command(&mut self, raw: &raw::Check) -> Option<CheckKind> {
        if raw.command.is_none() {
            self.lacks("command");
        }
        let user = self.given(&raw.user, word);
        let command = command(raw.command.as_ref()?, self.findings);
        Some(CheckKind::Command {
            command: command?,
            user: user?,
        })
    }

    fn mount(&mut self, raw: &raw::Check, stores: &[StorePath]) -> Option<CheckKind> {
        let path = self.needed("path", &raw.path, paths::store_or_root);
        let fstype = self.given(&raw.fstype, word);
        let write = raw.write.as_ref().is_none_or(|write| write.value);
        let store = path.as_ref().filter(|_| write).and_then(|path| {
            let is_within = |store: &&StorePath| path.starts_with::<&Path>(&store.path);
            stores.iter().find(is_within)
        });
        if let (Some(store), Some(written)) = (store, &raw.path) {
            let what = format!(
                "the file that the check writes to `{}` would be in {}",
                written.value, store.owner
            );
            self.findings
                .report(
                    &written.place,
                    what,
                    "write = false, which only asks whether it could be written",
                )
                .related(&store.place, format!("{} is here", store.owner));
        }
        Some(CheckKind::Mount {
            path: path?,
            fstype: fstype?,
            write,
        })
    }

    fn postgres(
        &mut self,
        raw: &raw::Check,
        kind: &Placed<String>,
        around: &Around<'_>,
    ) -> Option<CheckKind> {
        if !around.has_postgres {
            let what =
                "a check of kind `postgres` asks Postgres, and there is no section `[postgres]`";
            let expected = "a section `[postgres]`, or kind \"command\"";
            self.findings.report(&kind.place, what, expected);
        }
        let query = self.given(&raw.query, query);
        let database = self.given(&raw.database, word);
        Some(CheckKind::Postgres {
            query: query?.unwrap_or_else(|| "SELECT 1".to_owned()),
            database: database?,
        })
    }
}

fn one_of<T: Copy>(
    written: Option<&Placed<String>>,
    what: &str,
    known: &[(&str, T)],
    findings: &mut Findings,
) -> Option<T> {
    let written = written?;
    if let Some((_, value)) = known.iter().find(|(word, _)| *word == written.value) {
        return Some(*value);
    }
    let words = || known.iter().map(|(word, _)| *word);
    let quoted: Vec<String> = words().map(|word| format!("\"{word}\"")).collect();
    findings
        .report(
            &written.place,
            format!("`{}` is not a {what}", written.value),
            format!("one of {}", quoted.join(", ")),
        )
        .suggesting(&written.value, words());
    None
}

fn at_least_one(key: &str, written: Option<&Placed<u16>>, findings: &mut Findings) -> Option<u16> {
    let written = written?;
    if written.value == 0 {
        findings.report(&written.place, format!("`{key}` is 0"), "at least 1");
        return None;
    }
    Some(written.value)
}

fn interval_of(text: &str) -> Result<Duration, Mistake> {
    let interval = duration::parse(text)?;
    if interval < INTERVAL_MIN {
        let what = format!("`{text}` is too short between two looks");
        return Err(Mistake::new(what, "at least \"1s\""));
    }
    Ok(interval)
}

fn amount(text: &str) -> Result<Amount, Mistake> {
    if let Ok(share) = text.parse::<Share>() {
        return Ok(Amount::Share(share));
    }
    size::parse(text).map(Amount::Bytes).map_err(|_| {
        let what = format!("`{text}` is neither a share nor a size");
        Mistake::new(what, "a share such as \"5%\", or a size such as \"10GB\"")
    })
}

fn number(text: &str) -> Result<f64, Mistake> {
    let is_number = text
        .bytes()
        .all(|byte| byte.is_ascii_digit() || byte == b'.');
    let number = text.parse::<f64>().ok().filter(|_| is_number);
    number
        .filter(|it| *it > 0.0 && *it <= 1000.0)
        .ok_or_else(|| {
            let what = format!("`{text}` is not a number above 0");
            Mistake::new(what, "how many threads for each processor, such as \"2.5\"")
        })
}

fn ip(text: &str) -> Result<IpAddr, Mistake> {
    let ip: Option<IpAddr> = text.parse().ok();
    ip.filter(|ip| !ip.is_unspecified()).ok_or_else(|| {
        let what = format!("`{text}` is not the IP address of a machine");
        Mistake::new(what, "an IP address such as \"10.0.0.254\"")
    })
}

fn host_and_port(text: &str) -> Result<(String, u16), Mistake> {
    let mistake = || {
        let what = format!("`{text}` is not a host and a port");
        Mistake::new(
            what,
            "a host and a port, such as \"127.0.0.1:8080\" or \"[fd00::1]:8080\"",
        )
    };
    let (host, port) = text.rsplit_once(':').ok_or_else(mistake)?;
    let port = port
        .parse()
        .ok()
        .filter(|port| *port > 0)
        .ok_or_else(mistake)?;
    let bare = host.strip_prefix('[').and_then(|it| it.strip_suffix(']'));
    let is_odd = |c: char| c.is_control() || c.is_whitespace() || matches!(c, '/' | '[' | ']');
    let host = bare.unwrap_or(host);
    if host.is_empty() || host.contains(is_odd) || bare.is_none() && host.contains(':') {
        return Err(mistake());
    }
    Ok((host.to_owned(), port))
}

fn url(text: &str) -> Result<String, Mistake> {
    let wrong = |what: &str| Err(Mistake::new(format!("`{text}` {what}"), URL));
    if text.starts_with("https://") {
        let what = format!("`{text}` is encrypted, which a check of kind `http` does not do");
        let expected = "an `http` URL, or kind \"command\" with `curl`";
        return Err(Mistake::new(what, expected));
    }
    let Some(rest) = text.strip_prefix("http://") else {
        return wrong("is not a URL of `http`");
    };
    if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return wrong("holds a blank, or a character that a URL writes as `%`");
    }
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let with_port = match authority.rsplit_once(':') {
        Some((_, port)) if !port.ends_with(']') => authority.to_owned(),
        _ => format!("{authority}:80"),
    };
    if host_and_port(&with_port).is_err() || authority.contains('@') {
        return wrong("has no host, or no port that is one");
    }
    Ok(text.to_owned())
}

fn query(text: &str) -> Result<String, Mistake> {
    if text.trim().is_empty() || text.contains('\0') {
        return Err(Mistake::new(
            "the query is empty",
            "a query, such as \"SELECT 1\"",
        ));
    }
    Ok(text.to_owned())
}
