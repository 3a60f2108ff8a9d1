//! What is in a bundle.

use std::path::Path;

use indicatif::HumanBytes;
use serde::Serialize;
use understudy_config::Local;
use understudy_replication::kv::entry::Entry;
use understudy_replication::kv::operation::Operation;
use understudy_replication::kv::salvage;
use understudy_replication::kv::shown::Shown as Bytes;
use understudy_replication::settings::Revision;
use understudy_replication::wall_time::WallTime;
use understudy_standby::files::{Finding, KEPT_PATHS, What, findings};
use understudy_standby::postgres::{Summary, Transaction};

use super::VERSION;
use super::bundle::{Bundle, Held};
use crate::failure::Failure;
use crate::stores::Makings;

/// Of a value so much is shown, in bytes.
const VALUE_SHOWN_BYTES_MAX: usize = 256;

/// What is shown of a bundle.
#[derive(Debug, Serialize)]
pub(super) struct Shown<'a> {
    version: u32,
    bundle: &'a Bundle,
    /// How many transactions, paths or operations there are.
    of: u64,
    /// How many were passed over.
    skipped: usize,
    #[serde(flatten)]
    content: Content<'a>,
}

/// What is in a bundle, by its kind.
#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
enum Content<'a> {
    /// Write-ahead log: the figures, and some of the transactions.
    Postgres {
        summary: Box<Summary>,
        transactions: &'a [Transaction],
    },
    /// Some of the paths.
    Paths(Vec<Finding>),
    /// Some of the operations.
    Operations(Vec<Change>),
    /// Nothing that can be read.
    Unreadable(&'a str),
}

/// An operation of the key-value store, as people and JSON get it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "operation", rename_all = "snake_case")]
pub(super) enum Change {
    /// A key was made a string.
    Set {
        key: Bytes,
        value: Bytes,
        /// Of how many bytes of the value only the beginning is here.
        #[serde(skip_serializing_if = "Option::is_none")]
        length: Option<usize>,
        #[serde(skip_serializing_if = "Option::is_none")]
        expires: Option<WallTime>,
    },
    /// A key was removed.
    Delete { key: Bytes },
    /// Fields of a hash were set.
    HashSet {
        key: Bytes,
        fields: Vec<(Bytes, Bytes)>,
    },
    /// Fields of a hash were removed.
    HashDelete { key: Bytes, fields: Vec<Bytes> },
    /// A key was given a time to expire at, or none.
    Expire {
        key: Bytes,
        expires: Option<WallTime>,
    },
    /// Every key was removed.
    Clear,
}

impl Change {
    /// Takes an operation, and so much of each of its values.
    pub(super) fn of(operation: &Operation, bytes_max: usize) -> Self {
        let shown =
            |bytes: &bytes::Bytes| Bytes::from(bytes.get(..bytes_max).unwrap_or(bytes.as_ref()));
        match operation {
            Operation::Set {
                key,
                value,
                expires,
            } => Self::Set {
                key: shown(key),
                value: shown(value),
                length: (value.len() > bytes_max).then_some(value.len()),
                expires: *expires,
            },
            Operation::Delete { key } => Self::Delete { key: shown(key) },
            Operation::HashSet { key, fields } => Self::HashSet {
                key: shown(key),
                fields: fields
                    .iter()
                    .map(|(field, value)| (shown(field), shown(value)))
                    .collect(),
            },
            Operation::HashDelete { key, fields } => Self::HashDelete {
                key: shown(key),
                fields: fields.iter().map(shown).collect(),
            },
            Operation::Expire { key, expires } => Self::Expire {
                key: shown(key),
                expires: *expires,
            },
            Operation::Clear => Self::Clear,
        }
    }

    fn text(&self) -> String {
        let at = |time: &Option<WallTime>| match time {
            Some(time) => format!(", until {time}"),
            None => String::new(),
        };
        match self {
            Self::Set {
                key,
                value,
                length,
                expires,
            } => {
                let more = match length {
                    Some(length) => format!("… ({length} bytes)"),
                    None => String::new(),
                };
                format!("set {key} = {value}{more}{}", at(expires))
            }
            Self::Delete { key } => format!("delete {key}"),
            Self::HashSet { key, fields } => {
                let fields: Vec<String> = fields
                    .iter()
                    .map(|(field, value)| format!("{field}: {value}"))
                    .collect();
                format!("set {key} {{{}}}", fields.join(", "))
            }
            Self::HashDelete { key, fields } => {
                let fields: Vec<String> = fields.iter().map(ToString::to_string).collect();
                format!("delete {key} {{{}}}", fields.join(", "))
            }
            Self::Expire {
                key,
                expires: Some(time),
            } => format!("expire {key} at {time}"),
            Self::Expire { key, expires: None } => format!("expire {key} never"),
            Self::Clear => "delete every key".to_owned(),
        }
    }
}

/// Hands over each operation of a bundle, in order, until it has had enough.
pub(super) fn operations(
    folder: &Path,
    name: &str,
    mut each: impl FnMut(&Operation) -> Result<bool, Failure>,
) -> Result<(), Failure> {
    let bundle = salvage::Bundle::open(folder, name)?;
    for entry in bundle.entries()? {
        for operation in Entry::decode(entry?)?.operations()? {
            if !each(&operation)? {
                return Ok(());
            }
        }
    }
    Ok(())
}

impl<'a> Shown<'a> {
    /// Reads so much of a bundle.
    pub(super) fn of(
        bundle: &'a Bundle,
        local: &Local,
        skip: usize,
        limit: usize,
    ) -> Result<Self, Failure> {
        let count = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        let (of, content) = match &bundle.held {
            Held::Postgres(summary) => {
                let all = &summary.tally.transactions;
                let from = all.get(skip..).unwrap_or_default();
                let mut figures = summary.clone();
                figures.tally.transactions.clear();
                let content = Content::Postgres {
                    summary: figures,
                    transactions: from.get(..limit).unwrap_or(from),
                };
                (summary.tally.committed, content)
            }
            Held::Files(manifest) => {
                let path = bundle.path.join(KEPT_PATHS);
                let shown = findings(&path)?.skip(skip).take(limit);
                let counts = &manifest.counts;
                let of =
                    counts.differing + counts.only_here + counts.deleted_here + counts.attributes;
                (of, Content::Paths(shown.collect::<Result<_, _>>()?))
            }
            Held::Tree | Held::Settings => {
                let all = paths(bundle)?;
                let of = count(all.len());
                let shown = all.into_iter().skip(skip).take(limit);
                (of, Content::Paths(shown.collect()))
            }
            Held::Kv(manifest) => {
                let mut changes = Vec::new();
                let mut number = 0;
                operations(&Makings::salvage(local), &bundle.name, |operation| {
                    if number >= skip && changes.len() < limit {
                        changes.push(Change::of(operation, VALUE_SHOWN_BYTES_MAX));
                    }
                    number += 1;
                    Ok(changes.len() < limit)
                })?;
                (manifest.operations, Content::Operations(changes))
            }
            Held::Unreadable => (0, Content::Unreadable(&bundle.summary)),
        };
        Ok(Self {
            version: VERSION,
            bundle,
            of,
            skipped: skip,
            content,
        })
    }

    /// Returns it for people.
    pub(super) fn text(&self) -> String {
        let mut text = format!(
            "{}    in {}\n",
            self.bundle.text(),
            self.bundle.path.display()
        );
        if let Some(tree) = self.bundle.tree() {
            text += &format!("    the files are in {}\n", tree.display());
        }
        let lines: Vec<String> = match &self.content {
            Content::Postgres {
                summary,
                transactions,
            } => {
                text += &postgres_text(summary);
                transactions.iter().map(transaction).collect()
            }
            Content::Paths(paths) => paths.iter().map(finding).collect(),
            Content::Operations(changes) => changes.iter().map(Change::text).collect(),
            Content::Unreadable(_) => Vec::new(),
        };
        let shown = u64::try_from(lines.len()).unwrap_or(u64::MAX);
        text += "\n";
        for line in lines {
            text += &format!("{line}\n");
        }
        if shown < self.of {
            text += &format!(
                "{shown} of {} are shown, after {}; --limit and --skip show others\n",
                self.of, self.skipped
            );
        }
        if let Content::Operations(_) = &self.content {
            text += &format!(
                "`understudy kv salvage show {}` compares it with what is there now, and `replay` puts it back\n",
                self.bundle.name
            );
        }
        text
    }
}

fn postgres_text(summary: &Summary) -> String {
    let mut text = String::new();
    for range in &summary.ranges {
        text += &format!(
            "    timeline {}: from {} to {}\n",
            range.timeline, range.from, range.to
        );
    }
    text += &format!(
        "    {} records, {} transactions committed, {} rolled back\n",
        summary.tally.records, summary.tally.committed, summary.tally.aborted
    );
    if let Some(reason) = &summary.not_understood {
        text += &format!("    not all of it was understood: {reason}\n");
    }
    let changes = &summary.tally.changes();
    let mut relations: Vec<&String> = [&changes.inserted, &changes.updated, &changes.deleted]
        .into_iter()
        .flat_map(|of| of.keys())
        .collect();
    relations.sort();
    relations.dedup();
    for relation in relations {
        let rows = |of: &std::collections::BTreeMap<String, u64>| {
            of.get(relation).copied().unwrap_or_default()
        };
        text += &format!(
            "    relation {relation}: {} rows inserted, {} updated, {} deleted\n",
            rows(&changes.inserted),
            rows(&changes.updated),
            rows(&changes.deleted)
        );
    }
    text
}

fn transaction(transaction: &Transaction) -> String {
    let sum = |of: &std::collections::BTreeMap<String, u64>| of.values().sum::<u64>();
    let changes = &transaction.changes;
    format!(
        "transaction {} at {}: {} rows inserted, {} updated, {} deleted",
        transaction.xid,
        transaction.committed,
        sum(&changes.inserted),
        sum(&changes.updated),
        sum(&changes.deleted)
    )
}

fn finding(finding: &Finding) -> String {
    let what = match finding.what {
        What::Differs => "differed",
        What::OnlyHere => "only here",
        What::DeletedHere => "deleted here",
        What::Attributes => "attributes",
    };
    let had = match &finding.had {
        Some(had) => format!("  had mode {:04o}, owner {}:{}", had.mode, had.uid, had.gid),
        None => String::new(),
    };
    let bytes = HumanBytes(finding.bytes).to_string();
    format!("{what:13} {bytes:>12}  {}{had}", finding.path)
}

/// Returns what lies in a bundle that has no list.
fn paths(bundle: &Bundle) -> Result<Vec<Finding>, Failure> {
    let of = |path: &[u8], bytes: u64| Finding {
        path: Bytes::from(path),
        what: What::OnlyHere,
        bytes,
        had: None,
    };
    if bundle.path.is_file() {
        let revision = Revision::decode(&std::fs::read(&bundle.path)?)?;
        let entries = revision.entries().iter();
        return Ok(entries
            .map(|(path, entry)| of(path.to_string().as_bytes(), entry.bytes()))
            .collect());
    }
    let mut found = Vec::new();
    let mut waiting = vec![bundle.path.clone()];
    while let Some(folder) = waiting.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            let path = entry.path();
            if metadata.is_dir() {
                waiting.push(path);
            } else {
                use std::os::unix::ffi::OsStrExt;
                let name = path.strip_prefix(&bundle.path).unwrap_or(&path);
                found.push(of(name.as_os_str().as_bytes(), metadata.len()));
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}
