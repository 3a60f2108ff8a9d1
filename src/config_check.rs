//! `understudy config check`.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::time::SystemTime;

use serde_json::json;
use understudy_config::{LoadError, Schedule};
use understudy_replication::wall_time::WallTime;

use crate::Place;
use crate::failure::Failure;
use crate::output::{print, print_json};

/// Check the configuration
#[derive(clap::Args, Debug)]
pub(crate) struct Config {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand, Debug)]
enum Verb {
    /// Read understudy.toml and node.toml, and show every mistake in its place
    Check {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

impl Config {
    pub(crate) fn run(self, place: &Place) -> Result<(), Failure> {
        let Verb::Check { json } = self.verb;
        let loaded = match understudy_config::load(&place.cluster_file(), &place.node_file()) {
            Ok(loaded) => loaded,
            Err(LoadError::Invalid(problems)) => {
                if json {
                    print_json(&json!({"valid": false, "problems": problems.to_json()}))?;
                } else {
                    let has_colour = std::io::stdout().is_terminal()
                        && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
                    print(&problems.render(has_colour));
                }
                return Err(Failure::usage("the configuration is not valid"));
            }
            Err(error @ LoadError::Read { .. }) => {
                return Err(Failure {
                    kind: crate::failure::Kind::Usage,
                    ..Failure::of(&error)
                });
            }
        };
        let config = &loaded.config;
        let times = |schedule: &Schedule| -> Vec<String> {
            let next = schedule.next(SystemTime::now(), 3).into_iter();
            next.map(|time| WallTime::from(time).to_string()).collect()
        };
        let settings = config.settings.as_ref();
        let next = settings.map_or_else(Vec::new, |settings| times(&settings.schedule));
        let jobs: BTreeMap<&str, Vec<String>> = config
            .jobs
            .iter()
            .map(|job| (job.name.as_str(), times(&job.schedule)))
            .collect();
        if json {
            return print_json(&json!({"valid": true, "settings_next": next, "jobs_next": jobs}));
        }
        let mut text = format!(
            "The configuration is valid: cluster {}, nodes: {}, this is node {}.\n",
            config.cluster.name,
            config.nodes.len(),
            loaded.local.name,
        );
        for id in crate::stores::ids(config) {
            text += &format!("store {} ({})\n", id.name, id.kind);
        }
        if !next.is_empty() {
            text += &format!("settings are taken next at {}\n", next.join(", "));
        }
        let started: Vec<&str> = config.services.iter().map(|it| it.name.as_str()).collect();
        if !started.is_empty() {
            text += &format!(
                "services are started in this order: {}\n",
                started.join(", ")
            );
        }
        for (name, next) in jobs {
            text += &format!("job {name} runs next at {}\n", next.join(", "));
        }
        print(&text);
        Ok(())
    }
}
