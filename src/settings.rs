//! `understudy settings`.

use hyper::Method;
use serde::{Deserialize, Serialize};
use understudy_replication::settings::{Changes, Entry, History, RevisionSummary};

use crate::Place;
use crate::admin_api;
use crate::failure::Failure;
use crate::output::{print, print_json};
use crate::serve::load_local;
use crate::stores::Makings;

/// Show settings by revision, and roll them back
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
        let local = load_local(place)?;
        let history = || History::open(&Makings::settings_state(&local));
        match self.verb {
            Verb::History { json } => {
                let revisions = history()?.list()?;
                if json {
                    return print_json(&revisions);
                }
                for revision in &revisions {
                    print(&line(revision));
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
                let shown = Shown::of(&history, number)?;
                if json {
                    return print_json(&shown);
                }
                print(&shown.text());
                Ok(())
            }
            Verb::Rollback { revision } => {
                let asked = admin_api::Rollback { revision };
                let socket = local.socket();
                let done: RolledBack =
                    crate::admin::ask(&socket, Method::POST, "/settings/rollback", &asked).await?;
                print(&format!(
                    "Revision {revision} is back in force, as revision {}; what was in force before \
                     is revision {}.",
                    done.now.number, done.before.number
                ));
                match done.reload_error {
                    None => Ok(()),
                    Some(error) => Err(Failure::failed(format!(
                        "the settings are applied, but the reload failed: {error}"
                    ))),
                }
            }
        }
    }
}

/// The part of the daemon's answer to a rollback that is told.
#[derive(Deserialize)]
struct RolledBack {
    before: RevisionSummary,
    now: RevisionSummary,
    reload_error: Option<String>,
}

/// A revision, as it is shown. Contents are not: settings hold secrets.
#[derive(Serialize)]
struct Shown {
    revision: RevisionSummary,
    /// How it differs from the one before, if that is still kept.
    changes: Option<Changes>,
    entries: Vec<ShownEntry>,
}

#[derive(Serialize)]
struct ShownEntry {
    path: String,
    kind: &'static str,
    mode: Option<String>,
    uid: Option<u32>,
    gid: Option<u32>,
    bytes: u64,
}

impl Shown {
    fn of(history: &History, number: u64) -> Result<Self, Failure> {
        let revision = history.show(number)?;
        let before = history
            .list()?
            .into_iter()
            .rev()
            .find(|it| it.number < number);
        let changes = match before {
            Some(before) => Some(revision.changes_since(&history.show(before.number)?)),
            None => None,
        };
        let entries = revision.entries().iter().map(|(path, entry)| {
            let (kind, access) = match entry {
                Entry::File { access, .. } => ("file", Some(access)),
                Entry::Directory { access } => ("folder", Some(access)),
                Entry::Symlink { .. } => ("link", None),
            };
            ShownEntry {
                path: path.as_str().to_owned(),
                kind,
                mode: access.map(|access| format!("{:04o}", access.mode)),
                uid: access.map(|access| access.uid),
                gid: access.map(|access| access.gid),
                bytes: entry.bytes(),
            }
        });
        Ok(Self {
            entries: entries.collect(),
            revision: revision.summary(),
            changes,
        })
    }

    fn text(&self) -> String {
        let mut text = line(&self.revision) + "\n";
        if let Some(changes) = &self.changes {
            for (sign, paths) in [
                ('+', &changes.added),
                ('~', &changes.changed),
                ('-', &changes.removed),
            ] {
                for change in paths {
                    text += &format!("{sign} {}\n", change.path.as_str());
                }
            }
        }
        for entry in &self.entries {
            let number = |number: Option<u32>| number.map(|it| it.to_string()).unwrap_or_default();
            text += &format!(
                "{:6} {:4} {:>6} {:>6} {:>10}  {}\n",
                entry.kind,
                entry.mode.as_deref().unwrap_or_default(),
                number(entry.uid),
                number(entry.gid),
                entry.bytes,
                entry.path
            );
        }
        text
    }
}

fn line(revision: &RevisionSummary) -> String {
    format!(
        "revision {:6}  {}  epoch {}  {} entries, {} bytes",
        revision.number, revision.time, revision.epoch, revision.entries, revision.bytes
    )
}
