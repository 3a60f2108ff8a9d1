//! The full-text engine.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use tantivy::collector::{Count, TopDocs};
use tantivy::query::QueryParser;
use tantivy::schema::{Field, STORED, STRING, Schema, TEXT, Value};
use tantivy::{Index, IndexReader, IndexWriter, ReloadPolicy, TantivyDocument};

use super::search::{Hit, SearchError, SearchResult};
use super::source::Row;

/// How much memory a build may use for documents that are not on disk yet.
const WRITER_BYTES: usize = 50_000_000;

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
}

/// An index that can be searched.
pub(super) struct Searchable {
    reader: IndexReader,
    parser: QueryParser,
    fields: Vec<(Field, String)>,
}

impl Searchable {
    /// Opens a finished build.
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
            .collect();
        let all = fields.iter().map(|(field, _)| *field).collect();
        let parser = QueryParser::for_index(&index, all);
        Ok(Self {
            reader,
            parser,
            fields,
        })
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

/// An index that is being built.
pub(super) struct Build {
    writer: IndexWriter,
    fields: Vec<Field>,
}

impl Build {
    /// Begins an index of these columns in an empty folder; the first is the id.
    pub(super) fn begin(path: &Path, columns: &[String]) -> Result<Self, EngineError> {
        let mut schema = Schema::builder();
        let fields = columns.iter().enumerate().map(|(at, name)| {
            let options = if at == 0 {
                STRING | STORED
            } else {
                TEXT | STORED
            };
            schema.add_text_field(name, options)
        });
        let fields = fields.collect();
        let index = Index::create_in_dir(path, schema.build())?;
        Ok(Self {
            writer: index.writer_with_num_threads(1, WRITER_BYTES)?,
            fields,
        })
    }

    /// Adds a document per row.
    pub(super) fn add(&self, rows: Vec<Row>) -> Result<(), EngineError> {
        for row in rows {
            let mut document = TantivyDocument::default();
            for (field, text) in self.fields.iter().zip(row) {
                if let Some(text) = text {
                    document.add_text(*field, text);
                }
            }
            self.writer.add_document(document)?;
        }
        Ok(())
    }

    /// Makes everything that was added durable.
    pub(super) fn finish(mut self) -> Result<(), EngineError> {
        self.writer.commit()?;
        // Merging goes on in threads of its own, which must not outlive the build.
        Ok(self.writer.wait_merging_threads()?)
    }
}
