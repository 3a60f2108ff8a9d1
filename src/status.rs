//! `understudy status`.

use std::time::Duration;

use hyper::Method;
use understudy_replication::wall_time::WallTime;

use crate::Place;
use crate::failure::Failure;
use crate::output::{print, print_json};
use crate::serve::load_local;

/// How often `--watch` shows it anew.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// Show how the node and its stores are
#[derive(clap::Args, Debug)]
pub(crate) struct Status {
    /// Show it anew every second
    #[arg(long)]
    watch: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Status {
    pub(crate) async fn run(self, place: &Place) -> Result<(), Failure> {
        let socket = load_local(place)?.socket();
        loop {
            let status: understudy_replication::status::Status =
                crate::admin::ask(&socket, Method::GET, "/status", &()).await?;
            if self.json {
                print_json(&status)?;
            } else {
                // Clears the screen between two looks.
                let clear = if self.watch { "\x1b[2J\x1b[H" } else { "" };
                print(&format!(
                    "{clear}{}",
                    understudy_monitor::text(&status, WallTime::now())
                ));
            }
            if !self.watch {
                return Ok(());
            }
            tokio::time::sleep(WATCH_INTERVAL).await;
        }
    }
}
