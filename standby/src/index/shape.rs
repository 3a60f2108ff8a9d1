//! What the rows of an index are, and how they are asked for.
//!
//! The operator's query is wrapped, never changed: `SELECT … FROM (query) AS source WHERE …`.

use tokio::time::Instant;
use tokio_postgres::Client;
use tokio_postgres::types::{Kind, Type};
use understudy_config::Rows;

use super::source::{SourceError, by};

/// A watermark beyond this is somebody's mistake: believed, it would hide every change until then. A day,
/// because a timestamp without time zone may be of any.
pub(super) const HORIZON: &str = "(now() + interval '1 day')";

/// What the rows are, as the database tells it.
#[derive(Clone, Debug)]
pub(super) struct Shape {
    /// The columns of a document.
    pub(super) columns: Vec<String>,
    pub(super) query: String,
    /// How the key's type is written.
    pub(super) key_type: String,
    pub(super) watermark: Option<Watermark>,
    pub(super) deleted: Option<String>,
}

#[derive(Clone, Debug)]
pub(super) struct Watermark {
    pub(super) column: String,
    /// How its type is written.
    pub(super) sql_type: String,
    pub(super) is_time: bool,
}

impl Shape {
    /// Asks the database what the rows are.
    pub(super) async fn ask(
        deadline: Instant,
        client: &Client,
        rows: &Rows,
    ) -> Result<Self, SourceError> {
        let query = rows.query.trim().trim_end_matches(';').to_owned();
        // Nothing that it says is carried out.
        let statement = by(deadline, client.prepare(&query)).await?;
        if !statement.params().is_empty() {
            return Err(SourceError::Parameters);
        }
        let types: Vec<(String, Type)> = statement
            .columns()
            .iter()
            .map(|column| (column.name().to_owned(), column.type_().clone()))
            .collect();
        let names: Vec<String> = types.iter().map(|(name, _)| name.clone()).collect();
        check_columns(&names)?;
        let find = |name: &str, key: &'static str| {
            let found = types.iter().find(|(column, _)| column == name);
            found
                .map(|(_, of_type)| of_type)
                .ok_or_else(|| SourceError::NoColumn {
                    name: name.to_owned(),
                    key,
                })
        };
        let written = async |of_type: &Type| -> Result<String, SourceError> {
            // Of no length: `character` alone is one letter in a cast, where `bpchar` is any.
            let sql = "SELECT format_type($1, -1)";
            Ok(by(deadline, client.query_one(sql, &[&of_type.oid()]))
                .await?
                .try_get(0)?)
        };
        let key_type = match types.first() {
            Some((_, of_type)) => written(of_type).await?,
            None => return Err(SourceError::NoColumns),
        };
        let mut watermark = None;
        let mut deleted = None;
        if let Some(warm) = &rows.warm {
            let name = warm.watermark.clone();
            let of_type = find(&name, "watermark")?;
            let base = if let Kind::Domain(base) = of_type.kind() {
                base
            } else {
                of_type
            };
            let is_time = *base == Type::TIMESTAMP || *base == Type::TIMESTAMPTZ;
            let is_number = [Type::INT2, Type::INT4, Type::INT8].contains(base);
            let sql_type = written(of_type).await?;
            if !is_time && !is_number {
                return Err(SourceError::ColumnType {
                    name,
                    key: "watermark",
                    found: sql_type,
                    // A date is the same all day, however much changes.
                    expected: "a timestamp or an integer",
                });
            }
            watermark = Some(Watermark {
                column: name,
                sql_type,
                is_time,
            });
            if let Some(name) = &warm.deleted {
                let of_type = find(name, "deleted")?;
                if *of_type != Type::BOOL {
                    return Err(SourceError::ColumnType {
                        name: name.clone(),
                        key: "deleted",
                        found: written(of_type).await?,
                        expected: "boolean",
                    });
                }
                deleted = Some(name.clone());
            }
        }
        Ok(Self {
            columns: names
                .into_iter()
                .filter(|name| Some(name) != deleted.as_ref())
                .collect(),
            query,
            key_type,
            watermark,
            deleted,
        })
    }

    pub(super) fn key(&self) -> &str {
        self.columns.first().map_or("", String::as_str)
    }

    /// Returns `FROM …`; the line break ends a comment that the query may end with.
    pub(super) fn from(&self) -> String {
        format!("FROM (\n{}\n) AS source", self.query)
    }

    /// Returns `SELECT …` of all that a [`Row`] holds.
    pub(super) fn rows(&self) -> String {
        let texts: Vec<String> = self
            .columns
            .iter()
            .map(|name| format!("\"{name}\"::text"))
            .collect();
        let (mark, is_believed, version) = match &self.watermark {
            None => (
                "NULL::text".to_owned(),
                "true".to_owned(),
                "NULL::bigint".to_owned(),
            ),
            Some(Watermark {
                column,
                is_time: true,
                ..
            }) => (
                format!("\"{column}\"::text"),
                format!("coalesce(\"{column}\" <= {HORIZON}, false)"),
                // Infinity is no number.
                format!(
                    "CASE WHEN isfinite(\"{column}\") \
                     THEN (extract(epoch FROM \"{column}\") * 1000000)::bigint END"
                ),
            ),
            Some(Watermark {
                column,
                is_time: false,
                ..
            }) => (
                format!("\"{column}\"::text"),
                format!("\"{column}\" IS NOT NULL"),
                format!("\"{column}\"::bigint"),
            ),
        };
        let deleted = match &self.deleted {
            None => "false".to_owned(),
            Some(name) => format!("coalesce(\"{name}\", false)"),
        };
        format!(
            "SELECT {}, {mark}, {is_believed}, {deleted}, {version} {}",
            texts.join(", "),
            self.from()
        )
    }

    /// Returns what has to be true of rows that an index holds.
    pub(super) fn is_kept(&self) -> String {
        let deleted = match &self.deleted {
            None => String::new(),
            Some(name) => format!(" AND \"{name}\" IS NOT TRUE"),
        };
        format!("\"{}\" IS NOT NULL{deleted}", self.key())
    }

    /// Returns the key as the engines order it, byte by byte.
    pub(super) fn key_bytes(&self) -> String {
        format!("convert_to(\"{}\"::text, 'UTF8')", self.key())
    }
}

fn check_columns(columns: &[String]) -> Result<(), SourceError> {
    if columns.is_empty() {
        return Err(SourceError::NoColumns);
    }
    for (at, name) in columns.iter().enumerate() {
        let is_plain = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
            && name.starts_with(|c: char| c.is_ascii_alphabetic());
        if !is_plain {
            return Err(SourceError::ColumnName {
                number: at.saturating_add(1),
                name: name.clone(),
            });
        }
        if columns.iter().take(at).any(|earlier| earlier == name) {
            return Err(SourceError::SameName { name: name.clone() });
        }
    }
    Ok(())
}
