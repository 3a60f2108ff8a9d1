//! `understudy`: the command line and the daemon.
//!
//! One file per verb. The daemon's parts: `serve` wires a node; `shell` owns its role machine;
//! `primary_run` and `standby_run` are what runs in those roles; `promotion` carries a promotion out;
//! `peer_api`, `join_api` and `admin_api` are what others may ask.

mod admin;
mod admin_api;
mod adopt;
mod check;
mod check_report;
mod clone;
mod config_check;
mod demo;
mod drill;
mod events;
mod failure;
mod fenced_at;
mod foresight;
mod front;
mod index;
mod init;
mod invite;
mod invites;
mod join;
mod join_api;
mod kv;
mod kv_api;
mod kv_bundles;
mod kv_clients;
mod links;
mod manual;
mod node;
mod others;
mod output;
mod pause;
mod peer_api;
mod peer_work;
mod preflight;
mod primary_run;
mod progress;
mod promote;
mod promotion;
mod rejoin;
mod rejoin_report;
mod remembered;
mod report;
mod returning;
mod role_file;
mod salvage;
mod scrub;
mod sealed;
mod selection;
mod serve;
mod services;
mod settings;
mod shell;
mod standby_run;
mod status;
mod status_source;
mod stores;
mod supervise;
mod switchover;
mod sync;
mod verify;
mod wait;
mod wait_verb;
mod who;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use failure::Failure;

/// Keep a warm standby of a whole appliance: Postgres, data files, settings, indexes, services.
#[derive(Parser, Debug)]
#[command(name = "understudy", version, max_term_width = 100)]
struct Arguments {
    #[command(flatten)]
    place: Place,
    #[command(subcommand)]
    verb: Verb,
}

/// Where the configuration is.
#[derive(clap::Args, Debug, Clone)]
pub(crate) struct Place {
    /// Read understudy.toml and node.toml from this folder
    #[arg(
        long = "config",
        value_name = "FOLDER",
        global = true,
        env = "UNDERSTUDY_CONFIG",
        default_value = "/etc/understudy"
    )]
    folder: PathBuf,
}

impl Place {
    pub(crate) fn folder(&self) -> &std::path::Path {
        &self.folder
    }

    pub(crate) fn cluster_file(&self) -> PathBuf {
        self.folder.join("understudy.toml")
    }

    pub(crate) fn node_file(&self) -> PathBuf {
        self.folder.join("node.toml")
    }
}

#[derive(Subcommand, Debug)]
enum Verb {
    /// Make a cluster with this machine as its first node
    Init(init::Init),
    /// Invite a node to join: print a token that is good once
    Invite(invite::Invite),
    /// Join a cluster: get a certificate, copy every store, and stream
    Join(join::Join),
    /// Run the node
    Serve(serve::Serve),
    /// Show how the node and its stores are
    Status(status::Status),
    /// Wait until the standbys have everything that the primary has now
    Wait(wait_verb::Wait),
    /// Look at everything in a store now, and wait until the standbys have it
    Sync(sync::Sync),
    /// Prove that the copies equal the original
    Verify(verify::Verify),
    /// Read every byte again, on this node and on its peers, and repair the copies
    Scrub(scrub::Scrub),
    /// Make this standby the primary
    Promote(promote::Promote),
    /// Swap the roles of the primary and a standby, and lose nothing
    Switchover(switchover::Switchover),
    /// Make this former primary a standby again, or seed a standby anew that cannot follow
    Rejoin(rejoin::Rejoin),
    /// Have understudy do nothing by itself on the cluster for a while: you work on it by hand
    Pause(pause::PauseVerb),
    /// End a pause on the whole cluster
    Resume(pause::Resume),
    /// Look at what was kept aside on this node before it was made equal to another's
    Salvage(salvage::Salvage),
    /// Prove that this standby could take over, and how long that takes
    Drill(drill::Drill),
    /// Make a copy of this standby that is a cluster of its own, to try things on
    Clone(clone::Clone),
    /// Be a process of the sealed room in which copies are tried
    #[command(hide = true)]
    Sealed(sealed::Sealed),
    /// Show settings by revision, and roll them back
    Settings(settings::Settings),
    /// Read and change the key-value store; look at what a failover has set aside
    ///
    /// Keys and values are any bytes. What is not printable UTF-8 is shown as \xNN, with a backslash doubled;
    /// JSON has text as a string, and other bytes as {"base64": "…"}.
    Kv(kv::Kv),
    /// Search and rebuild indexes
    Index(index::Index),
    /// Show, start and stop the services and jobs of this node
    Services(services::Services),
    /// Show what happened
    Events(events::Events),
    /// Check the configuration
    Config(config_check::Config),
    /// Watch a real failover on this machine, in a temporary folder
    Demo(demo::Demo),
    /// Print completions for a shell
    Completions(manual::Completions),
    /// Print the manual page
    Man(manual::Man),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let is_daemon = matches!(&arguments.verb, Verb::Serve(_))
        || matches!(&arguments.verb, Verb::Init(init) if init.serve)
        || matches!(&arguments.verb, Verb::Join(join) if join.serve);
    log(is_daemon);
    if let Verb::Sealed(verb) = &arguments.verb {
        // Before there is a second thread: its processes change what they are.
        return verb.run();
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    let result = match runtime {
        Ok(runtime) => {
            let result = runtime.block_on(run(arguments));
            // What still works on the disk then ends with the process, as in a crash.
            runtime.shutdown_timeout(std::time::Duration::from_secs(10));
            result
        }
        Err(error) => Err(Failure::failed(format!("cannot start: {error}"))),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output::tell(&failure.to_string());
            ExitCode::from(failure.kind.exit_status())
        }
    }
}

async fn run(arguments: Arguments) -> Result<(), Failure> {
    let place = &arguments.place;
    match arguments.verb {
        Verb::Init(verb) => verb.run(place).await,
        Verb::Invite(verb) => verb.run(place).await,
        Verb::Join(verb) => verb.run(place).await,
        Verb::Serve(_) => serve::run(place).await,
        Verb::Status(verb) => verb.run(place).await,
        Verb::Wait(verb) => verb.run(place).await,
        Verb::Sync(verb) => verb.run(place).await,
        Verb::Verify(verb) => verb.run(place).await,
        Verb::Scrub(verb) => verb.run(place).await,
        Verb::Promote(verb) => verb.run(place).await,
        Verb::Switchover(verb) => verb.run(place).await,
        Verb::Rejoin(verb) => verb.run(place).await,
        Verb::Pause(verb) => verb.run(place).await,
        Verb::Resume(verb) => verb.run(place).await,
        Verb::Salvage(verb) => verb.run(place),
        Verb::Drill(verb) => verb.run(place).await,
        Verb::Clone(verb) => verb.run(place).await,
        Verb::Sealed(_) => Err(Failure::usage("this verb is understudy's own")),
        Verb::Settings(verb) => verb.run(place).await,
        Verb::Kv(verb) => verb.run(place).await,
        Verb::Index(verb) => verb.run(place).await,
        Verb::Services(verb) => verb.run(place).await,
        Verb::Events(verb) => verb.run(place).await,
        Verb::Config(verb) => verb.run(place),
        Verb::Demo(verb) => verb.run().await,
        Verb::Completions(verb) => verb.run::<Arguments>(),
        Verb::Man(verb) => verb.run::<Arguments>(),
    }
}

/// Logs to standard error: a daemon what an operator would want to read, a verb only what is wrong.
/// `UNDERSTUDY_LOG` sets the level, `UNDERSTUDY_LOG_FORMAT=json` the form.
fn log(is_daemon: bool) {
    let level = if is_daemon { "info" } else { "error" };
    let filter =
        EnvFilter::try_from_env("UNDERSTUDY_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    if std::env::var("UNDERSTUDY_LOG_FORMAT").is_ok_and(|format| format == "json") {
        builder.json().init();
    } else {
        use std::io::IsTerminal;
        builder.with_ansi(std::io::stderr().is_terminal()).init();
    }
}
