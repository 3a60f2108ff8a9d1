//! `understudy settings`.

use hyper::Method;
use understudy_replication::settings::History;

use crate::Place;
use crate::admin_api;
use crate::failure::Failure;
use crate::output::{print, print_json};
use crate::serve::load;
use crate::stores::Makings;

/// Show, compare and roll back settings
#[derive(clap::Args, Debug)]
pub(crate) struct Settings {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand, Debug)]
enum Verb {
    /// Show a revision: its files, and what it changed
    Show {
        /// The revision (default: the newest)
        revision: Option<u64>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// List the revisions
    History {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Go back to an earlier revision, on the primary; it becomes the newest, and flows to the standbys
    Rollback {
        /// The revision to go back to
        revision: u64,
    },
}

impl Settings {
    pub(crate) async fn run(self, place: &Place) -> Result<(), Failure> {
        let local = load(place)?.local;
        let history = || History::open(&Makings::settings_state(&local));
        match self.verb {
            Verb::History { json } => {
                let revisions = history()?.list()?;
                if json {
                    return print_json(&revisions);
                }
                for revision in revisions {
                    print(&revision.to_string());
                }
                Ok(())
            }
            Verb::Show { revision, json } => {
                let history = history()?;
                let number = match revision {
                    Some(number) => number,
                    None => history
                        .list()?
                        .last()
                        .map(|newest| newest.number)
                        .ok_or_else(|| Failure::failed("there is no revision yet"))?,
                };
                let shown = history.show(number)?;
                if json {
                    return print_json(&shown);
                }
                print(&shown.to_string());
                Ok(())
            }
            Verb::Rollback { revision } => {
                let asked = admin_api::Rollback { revision };
                let number: u64 =
                    crate::admin::ask(&local.socket(), Method::POST, "/settings/rollback", &asked)
                        .await?;
                print(&format!("Revision {revision} is back in force, as revision {number}."));
                Ok(())
            }
        }
    }
}
