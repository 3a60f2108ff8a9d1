//! `understudy index`.

use hyper::Method;
use understudy_config::StoreName;
use understudy_replication::status::{IndexStatus, Status};

use crate::Place;
use crate::admin_api;
use crate::failure::Failure;
use crate::output::{print, print_json};
use crate::serve::load_local;

/// Search and rebuild indexes
#[derive(clap::Args, Debug)]
pub(crate) struct Index {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand, Debug)]
enum Verb {
    /// Show how the indexes are
    Status {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Rebuild an index from its source, on this node
    Rebuild {
        /// The index
        name: StoreName,
        /// Go on with a build that was cut short, if there is one (the default)
        #[arg(long, conflicts_with = "fresh")]
        resume: bool,
        /// Begin with the first row, even if a build was cut short
        #[arg(long)]
        fresh: bool,
    },
    /// Search an index
    Search {
        /// The index
        name: StoreName,
        /// The query, such as `text editor` or `title:vim`
        query: String,
        /// Show so many hits
        #[arg(long, default_value_t = 10)]
        limit: usize,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

impl Index {
    pub(crate) async fn run(self, place: &Place) -> Result<(), Failure> {
        let socket = load_local(place)?.socket();
        match self.verb {
            Verb::Status { json } => {
                let status: Status =
                    crate::admin::ask(&socket, Method::GET, "/status", &()).await?;
                if json {
                    return print_json(&status.indexes);
                }
                for index in &status.indexes {
                    print(&line(index));
                }
                Ok(())
            }
            Verb::Rebuild { name, fresh, .. } => {
                let asked = admin_api::Rebuild { index: name, fresh };
                crate::admin::ask(&socket, Method::POST, "/index/rebuild", &asked).await
            }
            Verb::Search {
                name,
                query,
                limit,
                json,
            } => {
                let asked = admin_api::Search {
                    index: name,
                    query,
                    limit,
                };
                let found: understudy_standby::index::SearchResult =
                    crate::admin::ask(&socket, Method::POST, "/index/search", &asked).await?;
                if json {
                    return print_json(&found);
                }
                for hit in &found.hits {
                    let fields: Vec<String> = hit
                        .fields
                        .iter()
                        .map(|(name, value)| format!("{name}: {}", one_line(value)))
                        .collect();
                    print(&format!("{:6.2}  {}", hit.score, fields.join("  ")));
                }
                print(&format!(
                    "{} of {} in {} ms",
                    found.hits.len(),
                    found.total,
                    found.took_ms
                ));
                Ok(())
            }
        }
    }
}

/// Returns what there is to say of an index.
fn line(index: &IndexStatus) -> String {
    let documents = match (index.documents_total, index.percent) {
        (Some(total), Some(percent)) => {
            format!("{} of {total} documents, {percent} %", index.documents)
        }
        (Some(total), None) => format!("{} of {total} documents", index.documents),
        (None, _) => format!("{} documents", index.documents),
    };
    let built = index
        .built
        .map_or_else(|| "never".to_owned(), |at| at.to_string());
    let kept = match index.behind_seconds {
        Some(seconds) if index.is_warm => format!("warm, {seconds} s behind"),
        Some(_) | None => "cold".to_owned(),
    };
    let message = index
        .message
        .as_ref()
        .map_or_else(String::new, |message| format!("  {message}"));
    format!(
        "{:20} {:13} {:10} {documents}, built {built}, {kept}{message}",
        index.name.as_str(),
        index.engine,
        index.state.as_str(),
    )
}

/// Returns the beginning of a text, on one line.
fn one_line(text: &str) -> String {
    const CHARACTERS_MAX: usize = 100;
    let line: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut short: String = line.chars().take(CHARACTERS_MAX).collect();
    if short.len() < line.len() {
        short.push('…');
    }
    short
}
