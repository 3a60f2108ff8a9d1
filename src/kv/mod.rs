//! `understudy kv`.

mod salvage;

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::time::Duration;

use hyper::Method;
use serde::Serialize;
use understudy_replication::kv::shown::{Content, Shown};

use crate::Place;
use crate::failure::Failure;
use crate::kv_api::{Changed, Delete, Get, KEYS_LISTED_MAX, Put, Scan, Scanned};
use crate::output::{print, print_json, tell};
use crate::serve::load_local;

/// Read and change the key-value store; look at what a failover has set aside
#[derive(clap::Args, Debug)]
pub(crate) struct Kv {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand, Debug)]
enum Verb {
    /// Show what is at a key: the text of a string, or the fields of a hash
    Get {
        /// The key
        key: OsString,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Make a key a string, on the primary; done when it is as durable as the configuration asks
    Put {
        /// The key
        key: OsString,
        /// Its value
        #[arg(allow_hyphen_values = true)]
        value: OsString,
        /// Delete the key after this time, such as 10s or 1d
        #[arg(long, value_parser = understudy_config::duration::parse)]
        expires: Option<Duration>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Remove keys, on the primary
    Del {
        /// The keys
        #[arg(required = true)]
        keys: Vec<OsString>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// List keys
    Scan {
        /// Only keys that match, such as `user:*`; `?` and `[a-z]` are known, too
        pattern: Option<OsString>,
        /// List so many
        #[arg(long, default_value_t = 1000, value_parser = limit)]
        limit: usize,
        /// Show what is there, too, or the beginning of it
        #[arg(long)]
        values: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Look at what was superseded on this node, and put it back
    ///
    /// What a rejoin cuts off the log of a former primary is kept in a bundle there first. It may hold writes
    /// that clients were told to be kept. It is shown and replayed from there, on the store of the primary; or
    /// from the primary, with --from NODE.
    Salvage(salvage::Salvage),
}

fn limit(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(limit @ 1..=KEYS_LISTED_MAX) => Ok(limit),
        Ok(_) | Err(_) => Err(format!("expected a number from 1 to {KEYS_LISTED_MAX}")),
    }
}

/// A key beside what is there.
#[derive(Serialize)]
struct Found<'a> {
    key: &'a Shown,
    #[serde(flatten)]
    content: &'a Content,
}

fn bytes(written: OsString) -> Shown {
    Shown(written.into_vec())
}

impl Kv {
    pub(crate) async fn run(self, place: &Place) -> Result<(), Failure> {
        let local = load_local(place)?;
        let socket = local.socket();
        match self.verb {
            Verb::Get { key, json } => get(&socket, bytes(key), json).await,
            Verb::Put {
                key,
                value,
                expires,
                json,
            } => {
                let ttl_ms = expires.map(|ttl| u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX));
                let asked = Put {
                    key: bytes(key),
                    value: bytes(value),
                    ttl_ms,
                };
                let changed: Changed = ask(&socket, "/kv/put", &asked).await?;
                if json {
                    return print_json(&changed);
                }
                print(&format!("{} is set", asked.key));
                Ok(())
            }
            Verb::Del { keys, json } => {
                let asked = Delete {
                    keys: keys.into_iter().map(bytes).collect(),
                };
                let changed: Changed = ask(&socket, "/kv/del", &asked).await?;
                if json {
                    return print_json(&changed);
                }
                print(&format!(
                    "{} of {} keys removed",
                    changed.keys,
                    asked.keys.len()
                ));
                Ok(())
            }
            Verb::Scan {
                pattern,
                limit,
                values,
                json,
            } => {
                let asked = Scan {
                    pattern: pattern.map(bytes),
                    limit,
                    values,
                };
                let found: Scanned = ask(&socket, "/kv/scan", &asked).await?;
                if json {
                    return print_json(&found);
                }
                list(&found);
                Ok(())
            }
            Verb::Salvage(verb) => verb.run(&local).await,
        }
    }
}

async fn ask<T: serde::de::DeserializeOwned>(
    socket: &Path,
    path: &str,
    asked: &(impl Serialize + Sync),
) -> Result<T, Failure> {
    crate::admin::ask(socket, Method::POST, path, asked).await
}

async fn get(socket: &Path, key: Shown, json: bool) -> Result<(), Failure> {
    let asked = Get { key };
    let content: Content = ask(socket, "/kv/get", &asked).await?;
    if json {
        return print_json(&Found {
            key: &asked.key,
            content: &content,
        });
    }
    let truncated = match &content {
        Content::None => {
            return Err(Failure::failed(format!("there is no key {}", asked.key)));
        }
        Content::String { truncated, .. } | Content::Hash { truncated, .. } => *truncated,
    };
    lines(&content).iter().for_each(|line| print(line));
    if truncated {
        tell("there is more than is shown");
    }
    Ok(())
}

/// Returns what is at a key, for people: the text itself, or a line for each field.
fn lines(content: &Content) -> Vec<String> {
    match content {
        Content::None => Vec::new(),
        Content::String { value, .. } => vec![value.to_string()],
        Content::Hash { fields, .. } => fields
            .iter()
            .map(|field| format!("{}  {}", field.field, field.value))
            .collect(),
    }
}

fn list(found: &Scanned) {
    for found in &found.keys {
        let Some(content) = &found.content else {
            print(&found.key.to_string());
            continue;
        };
        print(&format!("{}  {}", found.key, summary(content)));
    }
    if found.has_more {
        tell("there are more keys than are listed; --limit lists more");
    }
}

/// Returns what is at a key, on one line.
fn summary(content: &Content) -> String {
    match content {
        Content::None => "absent".to_owned(),
        Content::String {
            value, truncated, ..
        } => format!("{value}{}", if *truncated { "…" } else { "" }),
        Content::Hash {
            fields,
            truncated,
            length,
            ..
        } => {
            let shown = fields.iter();
            let shown: Vec<String> = shown
                .map(|field| format!("{}: {}", field.field, field.value))
                .collect();
            let more = if *truncated {
                format!(", … of {length} fields")
            } else {
                String::new()
            };
            format!("{{{}{more}}}", shown.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use understudy_replication::kv::shown::Field;

    fn shown(text: &str) -> Shown {
        Shown::from(text.as_bytes())
    }

    fn string(value: &[u8], truncated: bool) -> Content {
        Content::String {
            value: value.into(),
            length: 9,
            truncated,
            ttl_ms: Some(250),
        }
    }

    #[test]
    fn a_value_is_one_line_whatever_is_in_it() {
        assert_eq!(summary(&string("grün".as_bytes(), false)), "grün");
        assert_eq!(
            summary(&string(b"a\nb\x1b[2J\xff", true)),
            r"a\nb\x1b[2J\xff…"
        );
        let hash = Content::Hash {
            fields: vec![Field {
                field: shown("f"),
                value: shown("1"),
            }],
            length: 3,
            truncated: true,
            ttl_ms: None,
        };
        assert_eq!(summary(&hash), "{f: 1, … of 3 fields}");
        assert_eq!(lines(&hash), ["f  1"]);
    }

    #[test]
    fn json_of_a_key_has_bytes_that_are_no_text_as_base64() {
        let found = serde_json::to_string(&Found {
            key: &Shown(vec![0xff]),
            content: &string(b"hello", false),
        });
        assert_eq!(
            found.unwrap(),
            r#"{"key":{"base64":"/w=="},"type":"string","value":"hello","length":9,"truncated":false,"ttl_ms":250}"#
        );
    }

    #[test]
    fn a_limit_has_bounds() {
        assert_eq!(limit("1"), Ok(1));
        for text in ["0", "-1", "100001", "many"] {
            assert!(limit(text).is_err(), "{text}");
        }
    }
}
