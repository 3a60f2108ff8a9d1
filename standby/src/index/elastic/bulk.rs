//! Writing many documents at once.

use std::collections::BTreeMap;

use bytes::Bytes;
use hyper::Method;
use serde_json::{Value, json};

use super::error::ElasticError;
use super::http::{TRIES_MAX, pause};
use super::written::Seen;
use super::{ElasticIndex, HASH, KEY, MARK, refused};
use crate::index::row::{Applied, Change, Row, mark_hash};

/// A request has so many documents or so many bytes, whichever comes first, beside its last document.
const DOCUMENTS_MAX: usize = 1000;
const BYTES_MAX: usize = 5 << 20;

/// One document of a request: its key, and its lines.
struct Line {
    key: String,
    is_delete: bool,
    text: String,
}

impl ElasticIndex {
    /// Writes what is to be changed, and deletes what is still as it was `seen`.
    pub(super) async fn bulk(
        &self,
        changes: BTreeMap<String, Change>,
        seen: &Seen,
    ) -> Result<Applied, ElasticError> {
        let mut applied = Applied::default();
        let mut lines = Vec::new();
        let mut bytes = 0_usize;
        for (key, change) in changes {
            let line = self.line(key, &change, seen);
            bytes = bytes.saturating_add(line.text.len());
            lines.push(line);
            if lines.len() >= DOCUMENTS_MAX || bytes >= BYTES_MAX {
                bytes = 0;
                applied += self.send(std::mem::take(&mut lines)).await?;
            }
        }
        applied += self.send(lines).await?;
        Ok(applied)
    }

    fn line(&self, key: String, change: &Change, seen: &Seen) -> Line {
        let (is_delete, text) = match change {
            Change::Remove(_) => {
                let mut action = json!({ "_id": key });
                // A watermark there is none of what is gone. But what has changed since it was looked at is not
                // what was to go: a request that comes late, through an alias that is no more, is refused.
                if let (Some((number, term)), Some(fields)) =
                    (seen.get(&key), action.as_object_mut())
                {
                    fields.insert("if_seq_no".to_owned(), (*number).into());
                    fields.insert("if_primary_term".to_owned(), (*term).into());
                }
                (true, format!("{}\n", json!({ "delete": action })))
            }
            Change::Put(row) => {
                let mut action = json!({ "_id": key });
                // A superseded primary that writes on cannot undo what is newer.
                if let (Some(version), Some(fields)) =
                    (row.version.filter(|it| *it >= 0), action.as_object_mut())
                {
                    fields.insert("version".to_owned(), version.into());
                    fields.insert("version_type".to_owned(), "external_gte".into());
                }
                let document = self.document(&key, row);
                (
                    false,
                    format!("{}\n{document}\n", json!({ "index": action })),
                )
            }
        };
        Line {
            key,
            is_delete,
            text,
        }
    }

    fn document(&self, key: &str, row: &Row) -> Value {
        let mut document = serde_json::Map::new();
        for (column, value) in self.columns.iter().zip(&row.values) {
            if let Some(value) = value {
                document.insert(column.clone(), value.clone().into());
            }
        }
        document.insert(KEY.to_owned(), key.into());
        // As text: a number of 64 bits is not one to every reader of JSON.
        document.insert(HASH.to_owned(), row.hash().to_string().into());
        let mark = mark_hash(row.mark.as_deref()).to_string();
        document.insert(MARK.to_owned(), mark.into());
        document.into()
    }

    /// Sends documents until each is written or refused; those for which the server was too busy are sent
    /// again.
    async fn send(&self, mut lines: Vec<Line>) -> Result<Applied, ElasticError> {
        const WHAT: &str = "write documents";
        let mut applied = Applied::default();
        // What is no alias must not be made an index by the first document.
        let path = format!("/{}/_bulk?require_alias=true", self.writer());
        for tried in 0..TRIES_MAX {
            if lines.is_empty() {
                return Ok(applied);
            }
            if tried > 0 {
                pause(tried).await;
            }
            let text: String = lines.iter().map(|line| line.text.as_str()).collect();
            let asking = self
                .elastic
                .http
                .ask(WHAT, Method::POST, &path, Bytes::from(text));
            let answer = asking.await?;
            if answer.status != 200 {
                return Err(refused(WHAT, &answer));
            }
            let items = answer.body["items"].as_array().cloned();
            let items = items.filter(|items| items.len() == lines.len());
            let Some(items) = items else {
                return Err(ElasticError::Answer { what: WHAT });
            };
            let mut again = Vec::new();
            for (line, item) in lines.into_iter().zip(items) {
                let action = if line.is_delete { "delete" } else { "index" };
                let item = &item[action];
                let status = item["status"]
                    .as_u64()
                    .and_then(|it| u16::try_from(it).ok());
                match status {
                    Some(200 | 201) if line.is_delete => {
                        applied.removed = applied.removed.saturating_add(1);
                    }
                    Some(200 | 201) => applied.written = applied.written.saturating_add(1),
                    // Nobody's but another's: the alias is gone, and the document has not been looked at.
                    Some(404) if item["error"]["type"] == "index_not_found_exception" => {
                        return Err(ElasticError::Unclaimed);
                    }
                    Some(404) if line.is_delete => {}
                    Some(409) if line.is_delete => {
                        return Err(ElasticError::Changed { key: line.key });
                    }
                    Some(409) => {
                        applied.newer = applied.newer.saturating_add(1);
                        tracing::warn!(key = line.key, "a newer document is there");
                    }
                    Some(429 | 503) => again.push(line),
                    Some(status) => {
                        return Err(ElasticError::Document {
                            key: line.key,
                            status,
                            reason: super::reason(&item["error"]),
                        });
                    }
                    None => return Err(ElasticError::Answer { what: WHAT }),
                }
            }
            lines = again;
        }
        if lines.is_empty() {
            return Ok(applied);
        }
        Err(ElasticError::Busy {
            what: WHAT,
            tries: TRIES_MAX,
        })
    }
}
