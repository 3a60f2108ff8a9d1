//! `understudy salvage`: what was kept aside on this node, of every store.
//!
//! It reads what lies in the state folder, and needs no daemon.

mod bundle;
mod export;
mod find;
mod show;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

use indicatif::HumanBytes;
use serde::Serialize;
use understudy_config::{Config, Local, NodeName};

use crate::Place;
use crate::failure::Failure;
use crate::output::{print, print_json};
use crate::serve::load_local;
use bundle::Bundle;

/// The version of what is printed as JSON.
const VERSION: u32 = 1;

/// Look at what was kept aside on this node before it was made equal to another's
///
/// Works with the daemon stopped, too. Writes to the key-value store are put back with `understudy kv salvage
/// replay`.
#[derive(clap::Args, Debug)]
pub(crate) struct Salvage {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand, Debug)]
enum Verb {
    /// List the bundles of every store
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show what is in a bundle
    Show {
        /// The bundle
        bundle: String,
        /// Show so many transactions, paths or operations
        #[arg(long, default_value_t = 100)]
        limit: usize,
        /// Pass over so many before them
        #[arg(long, default_value_t = 0)]
        skip: usize,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Copy a bundle to a folder, with a README that says what it is and how to look at it
    Export {
        /// The bundle
        bundle: String,
        /// The folder, outside the state; the bundle gets a folder of its name in it
        #[arg(long, value_name = "FOLDER")]
        to: PathBuf,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Delete a bundle for good
    Remove {
        /// The bundle
        bundle: String,
        /// You know that it may be the only copy
        #[arg(long)]
        yes: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// The bundles of a node in JSON.
#[derive(Debug, Serialize)]
struct List<'a> {
    version: u32,
    node: &'a NodeName,
    bundles: &'a [Bundle],
}

/// What was exported, or removed, in JSON.
#[derive(Debug, Serialize)]
struct Done {
    version: u32,
    bundle: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<PathBuf>,
    bytes: u64,
}

impl Salvage {
    pub(crate) fn run(self, place: &Place) -> Result<(), Failure> {
        let local = load_local(place)?;
        // Without it what lies in trees of files cannot be found; all else can.
        let config = understudy_config::load(&place.cluster_file(), &place.node_file());
        let config = config.ok().map(|loaded| loaded.config);
        match self.verb {
            Verb::List { json } => list(&local, config.as_ref(), json),
            Verb::Show {
                bundle,
                limit,
                skip,
                json,
            } => {
                let bundle = find::find(&local, config.as_ref(), &bundle)?;
                let shown = show::Shown::of(&bundle, &local, skip, limit)?;
                if json {
                    return print_json(&shown);
                }
                print(&shown.text());
                Ok(())
            }
            Verb::Export { bundle, to, json } => {
                let bundle = find::find(&local, config.as_ref(), &bundle)?;
                let (path, bytes) = export::export(&bundle, &local, &to)?;
                let done = Done {
                    version: VERSION,
                    bundle: bundle.name,
                    path: Some(path.clone()),
                    bytes,
                };
                if json {
                    return print_json(&done);
                }
                print(&format!(
                    "{} is in {} ({}); README.txt there says how to look at it.",
                    done.bundle,
                    path.display(),
                    HumanBytes(bytes)
                ));
                Ok(())
            }
            Verb::Remove { bundle, yes, json } => {
                let bundle = find::find(&local, config.as_ref(), &bundle)?;
                remove(bundle, yes, json)
            }
        }
    }
}

fn list(local: &Local, config: Option<&Config>, json: bool) -> Result<(), Failure> {
    let bundles = find::list(local, config)?;
    if json {
        return print_json(&List {
            version: VERSION,
            node: &local.name,
            bundles: &bundles,
        });
    }
    if bundles.is_empty() {
        print(&format!(
            "Nothing was ever kept aside on node {}.",
            local.name
        ));
        return Ok(());
    }
    let all: u64 = bundles.iter().map(|bundle| bundle.bytes).sum();
    let texts: Vec<String> = bundles.iter().map(Bundle::text).collect();
    print(&format!(
        "{}\n{} {}, {} in all",
        texts.join("\n"),
        bundles.len(),
        if bundles.len() == 1 {
            "bundle"
        } else {
            "bundles"
        },
        HumanBytes(all)
    ));
    Ok(())
}

fn remove(bundle: Bundle, yes: bool, json: bool) -> Result<(), Failure> {
    if !yes {
        return Err(Failure::refused(format!(
            "{} may be the only copy of what is in it: {}",
            bundle.name, bundle.summary
        ))
        .hint(format!(
            "copy it with `understudy salvage export {} --to FOLDER`; to delete it for good add --yes",
            bundle.name
        )));
    }
    bundle.remove()?;
    let done = Done {
        version: VERSION,
        bundle: bundle.name,
        path: None,
        bytes: bundle.bytes,
    };
    if json {
        return print_json(&done);
    }
    print(&format!(
        "{} is gone ({}).",
        done.bundle,
        HumanBytes(done.bytes)
    ));
    Ok(())
}
