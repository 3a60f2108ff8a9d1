//! The full-text engine.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tantivy::collector::{Count, TopDocs};
use tantivy::query::QueryParser;
use tantivy::schema::{
    FAST, Field, IndexRecordOption, NumericOptions, STORED, STRING, Schema, TEXT, Value,
};
use tantivy::{
    DocSet, Index, IndexReader, IndexWriter, ReloadPolicy, SegmentReader, TERMINATED,
    TantivyDocument, Term,
};

use super::row::{Applied, Change, Entry, mark_hash};
use super::search::{Hit, SearchError, SearchResult};

/// How much memory may be used for documents that are not on disk yet.
const WRITER_BYTES: usize = 50_000_000;

/// Of each document beside its columns: [`super::row::Row::hash`] and [`mark_hash`]. Columns begin with a
/// letter.
const HASH: &str = "_hash";
const MARK: &str = "_mark";

/// Why the engine failed.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The index cannot be read or written.
    #[error("the index cannot be read or written")]
    Tantivy {
        /// Why not.
        #[from]
        source: tantivy::TantivyError,
    },
    /// A file of the index cannot be read.
    #[error("a file of the index cannot be read")]
    File {
        /// Why not.
        #[from]
        source: std::io::Error,
    },
}

impl EngineError {
    /// Returns whether the next attempt may do better: who wrote before is still closing the index.
    pub(super) fn is_passing(&self) -> bool {
        let Self::Tantivy { source } = self else {
            return false;
        };
        matches!(source, tantivy::TantivyError::LockFailure(..))
    }
}

/// An index that can be searched.
pub(super) struct Searchable {
    index: Index,
    reader: IndexReader,
    parser: QueryParser,
    fields: Vec<(Field, String)>,
}

impl Searchable {
    /// Opens an index.
    pub(super) fn open(path: &Path) -> Result<Self, EngineError> {
        let index = Index::open_in_dir(path)?;
        let reader = index
            .reader_builder()
            .reload_policy(ReloadPolicy::Manual)
            .try_into()?;
        let schema = index.schema();
        let fields: Vec<(Field, String)> = schema
            .fields()
            .map(|(field, entry)| (field, entry.name().to_owned()))
            .filter(|(_, name)| name != HASH && name != MARK)
            .collect();
        let all = fields.iter().map(|(field, _)| *field).collect();
        let parser = QueryParser::for_index(&index, all);
        Ok(Self {
            index,
            reader,
            parser,
            fields,
        })
    }

    /// Returns how many documents it holds.
    pub(super) fn documents(&self) -> u64 {
        self.reader.searcher().num_docs()
    }

    /// Searches; blocks meanwhile.
    pub(super) fn search(
        &self,
        name: &str,
        query: &str,
        limit: usize,
    ) -> Result<SearchResult, SearchError> {
        let start = Instant::now();
        let query = self
            .parser
            .parse_query(query)
            .map_err(|error| SearchError::Query {
                message: error.to_string(),
            })?;
        let failed = |source: tantivy::TantivyError| SearchError::Failed {
            name: name.to_owned(),
            source: source.into(),
        };
        let searcher = self.reader.searcher();
        // The collector takes no limit of 0; who asks for no hits wants the count alone.
        let best = TopDocs::with_limit(limit.max(1)).order_by_score();
        let (found, total) = searcher.search(&query, &(best, Count)).map_err(failed)?;
        let mut hits = Vec::new();
        for (score, address) in found.into_iter().take(limit) {
            let document: TantivyDocument = searcher.doc(address).map_err(failed)?;
            let field = |(field, name): &(Field, String)| {
                let value = document.get_first(*field)?;
                Some((name.clone(), value.as_str()?.to_owned()))
            };
            let fields: BTreeMap<String, String> = self.fields.iter().filter_map(field).collect();
            hits.push(Hit { score, fields });
        }
        Ok(SearchResult {
            took_ms: u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX),
            total: u64::try_from(total).unwrap_or(u64::MAX),
            hits,
        })
    }
}

/// How a batch becomes part of an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Manner {
    /// None of its keys is in the index yet.
    Add,
    /// What is as it should be already is left alone.
    Replace,
}

/// An index that is written. There is one of each folder at a time.
#[derive(Clone)]
pub(super) struct Written {
    writer: Arc<Mutex<IndexWriter>>,
    pub(super) searchable: Arc<Searchable>,
}

impl Written {
    /// Begins an index of these columns in an empty folder, the first of which is the key; `state` is what
    /// [`Written::state`] returns.
    pub(super) fn begin(path: &Path, columns: &[String], state: &str) -> Result<Self, EngineError> {
        let mut schema = Schema::builder();
        for (at, name) in columns.iter().enumerate() {
            let options = if at == 0 {
                STRING | STORED
            } else {
                TEXT | STORED
            };
            schema.add_text_field(name, options);
        }
        for name in [HASH, MARK] {
            schema.add_u64_field(name, NumericOptions::default() | FAST);
        }
        drop(Index::create_in_dir(path, schema.build())?);
        let written = Self::open(Arc::new(Searchable::open(path)?))?;
        written.commit(&mut written.writer(), state)?;
        Ok(written)
    }

    /// Opens an index to write to it.
    pub(super) fn open(searchable: Arc<Searchable>) -> Result<Self, EngineError> {
        let writer = searchable.index.writer_with_num_threads(1, WRITER_BYTES)?;
        // The writer before this one may have committed since it was opened: what it wrote would be written twice.
        searchable.reader.reload()?;
        Ok(Self {
            writer: Arc::new(Mutex::new(writer)),
            searchable,
        })
    }

    /// Returns what the last commit was made with; `None` for an index of an older version.
    pub(super) fn state(searchable: &Searchable) -> Result<Option<String>, EngineError> {
        let schema = searchable.index.schema();
        let is_ours = schema.get_field(HASH).is_ok() && schema.get_field(MARK).is_ok();
        Ok(searchable.index.load_metas()?.payload.filter(|_| is_ours))
    }

    fn writer(&self) -> MutexGuard<'_, IndexWriter> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn commit(&self, writer: &mut IndexWriter, state: &str) -> Result<(), EngineError> {
        let mut prepared = writer.prepare_commit()?;
        prepared.set_payload(state);
        prepared.commit()?;
        Ok(self.searchable.reader.reload()?)
    }

    /// Makes changes and the new state durable, both or neither; visible to searches of this index, too. If
    /// nothing has to be changed, nothing is written unless it `must` be. Blocks.
    pub(super) fn apply(
        &self,
        changes: Vec<Change>,
        manner: Manner,
        state: &str,
        must: bool,
    ) -> Result<Applied, EngineError> {
        let mut writer = self.writer();
        let result = self.change(&writer, changes, manner);
        let applied = match result {
            Ok(applied) => applied,
            Err(error) => {
                writer.rollback()?;
                return Err(error);
            }
        };
        if must || applied != Applied::default() {
            self.commit(&mut writer, state)?;
        }
        Ok(applied)
    }

    fn change(
        &self,
        writer: &IndexWriter,
        changes: Vec<Change>,
        manner: Manner,
    ) -> Result<Applied, EngineError> {
        let fields = &self.searchable.fields;
        let Some((key_field, _)) = fields.first() else {
            return Ok(Applied::default());
        };
        let schema = self.searchable.index.schema();
        let (hash_field, mark_field) = (schema.get_field(HASH)?, schema.get_field(MARK)?);
        let searcher = self.searchable.reader.searcher();
        // Of several changes to one key the last one counts.
        let mut by_key: BTreeMap<String, Change> = BTreeMap::new();
        for change in changes {
            by_key.insert(change.key().to_owned(), change);
        }
        let mut applied = Applied::default();
        for (key, change) in by_key {
            let term = Term::from_field_text(*key_field, &key);
            let present = match manner {
                Manner::Add => Present::None,
                Manner::Replace => present(searcher.segment_readers(), *key_field, key.as_bytes())?,
            };
            match change {
                Change::Put(row) => {
                    let hashes = (row.hash(), mark_hash(row.mark.as_deref()));
                    if present == Present::One(hashes.0, hashes.1) {
                        continue;
                    }
                    if present != Present::None {
                        writer.delete_term(term);
                    }
                    let mut document = TantivyDocument::default();
                    for ((field, _), text) in fields.iter().zip(row.values) {
                        if let Some(text) = text {
                            document.add_text(*field, text);
                        }
                    }
                    document.add_u64(hash_field, hashes.0);
                    document.add_u64(mark_field, hashes.1);
                    writer.add_document(document)?;
                    applied.written = applied.written.saturating_add(1);
                }
                Change::Remove(_) if present == Present::None => {}
                Change::Remove(_) => {
                    writer.delete_term(term);
                    applied.removed = applied.removed.saturating_add(1);
                }
            }
        }
        Ok(applied)
    }

    /// Returns the documents beyond a key, in the order of the bytes of their keys; fewer than `limit` at the
    /// end only. Blocks.
    pub(super) fn entries(
        &self,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Entry>, EngineError> {
        let Some((key_field, _)) = self.searchable.fields.first() else {
            return Ok(Vec::new());
        };
        let searcher = self.searchable.reader.searcher();
        let mut found: BTreeMap<Vec<u8>, Present> = BTreeMap::new();
        for segment in searcher.segment_readers() {
            let inverted = segment.inverted_index(*key_field)?;
            let columns = Columns::of(segment)?;
            let mut range = inverted.terms().range();
            if let Some(after) = after {
                range = range.gt(after.as_bytes());
            }
            let mut terms = range.into_stream()?;
            let mut taken = 0_usize;
            while taken < limit && terms.advance() {
                let present = columns.present(segment, &inverted, terms.value())?;
                if present == Present::None {
                    continue;
                }
                taken = taken.saturating_add(1);
                let key = terms.key().to_vec();
                match found.get_mut(&key) {
                    Some(before) => *before = Present::Several,
                    None => drop(found.insert(key, present)),
                }
            }
        }
        let entry = |(key, present): (Vec<u8>, Present)| Entry {
            key: String::from_utf8_lossy(&key).into_owned(),
            hashes: match present {
                Present::One(hash, mark) => Some((hash, mark)),
                Present::Several | Present::None => None,
            },
        };
        Ok(found.into_iter().take(limit).map(entry).collect())
    }
}

/// The documents of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Present {
    None,
    /// One, with these hashes.
    One(u64, u64),
    Several,
}

/// The hashes of the documents of a segment.
struct Columns {
    hash: tantivy::columnar::Column<u64>,
    mark: tantivy::columnar::Column<u64>,
}

impl Columns {
    fn of(segment: &SegmentReader) -> Result<Self, EngineError> {
        let fast = segment.fast_fields();
        Ok(Self {
            hash: fast.u64(HASH)?,
            mark: fast.u64(MARK)?,
        })
    }

    fn present(
        &self,
        segment: &SegmentReader,
        inverted: &tantivy::InvertedIndexReader,
        term: &tantivy::postings::TermInfo,
    ) -> Result<Present, EngineError> {
        let mut postings = inverted.read_postings_from_terminfo(term, IndexRecordOption::Basic)?;
        let mut present = Present::None;
        let mut document = postings.doc();
        while document != TERMINATED {
            if !segment.is_deleted(document) {
                let hash = self.hash.first(document).unwrap_or_default();
                let mark = self.mark.first(document).unwrap_or_default();
                present = match present {
                    Present::None => Present::One(hash, mark),
                    Present::One(..) | Present::Several => Present::Several,
                };
            }
            document = postings.advance();
        }
        Ok(present)
    }
}

fn present(
    segments: &[SegmentReader],
    key_field: Field,
    key: &[u8],
) -> Result<Present, EngineError> {
    let mut found = Present::None;
    for segment in segments {
        let inverted = segment.inverted_index(key_field)?;
        let Some(term) = inverted.terms().get(key)? else {
            continue;
        };
        let here = Columns::of(segment)?.present(segment, &inverted, &term)?;
        found = match (found, here) {
            (Present::None, here) => here,
            (found, Present::None) => found,
            (Present::One(..) | Present::Several, Present::One(..) | Present::Several) => {
                Present::Several
            }
        };
    }
    Ok(found)
}
