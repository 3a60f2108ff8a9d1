//! The sections `[[check]]`, each of which is what its kind makes of it.

use std::path::Path;

use super::check_values::{self, amount, host_and_port, ip, number, query, url};
use super::client_address::interface;
use super::paths::StorePath;
use super::sections::{command, word};
use super::{name, paths};
use crate::problem::{Findings, Mistake, Place, Placed};
use crate::{
    Check, CheckKind, CheckOn, CheckSeverity, ProcessName, Share, StoreName, duration, raw,
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
    let interval = interval.and_then(|it| findings.check(it, check_values::interval));
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
