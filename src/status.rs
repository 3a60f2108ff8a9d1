//! `understudy status`.

use std::time::Duration;

use hyper::Method;
use serde::Serialize;
use understudy_config::StoreName;
use understudy_replication::status::StoreDetail;
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
    /// Show everything of this store
    #[arg(long, value_name = "STORE")]
    store: Option<StoreName>,
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
            match &self.store {
                Some(store) => {
                    // The name of a store needs no escapes.
                    let path = format!("/status/store?store={store}");
                    let detail: StoreDetail =
                        crate::admin::ask(&socket, Method::GET, &path, &()).await?;
                    self.show(&detail, understudy_monitor::store_text)?;
                }
                None => {
                    let status: understudy_replication::status::Status =
                        crate::admin::ask(&socket, Method::GET, "/status", &()).await?;
                    self.show(&status, understudy_monitor::text)?;
                }
            }
            if !self.watch {
                return Ok(());
            }
            tokio::time::sleep(WATCH_INTERVAL).await;
        }
    }

    fn show<T: Serialize>(
        &self,
        told: &T,
        text: fn(&T, WallTime) -> String,
    ) -> Result<(), Failure> {
        if self.json {
            return print_json(told);
        }
        // Clears the screen between two looks.
        let clear = if self.watch { "\x1b[2J\x1b[H" } else { "" };
        print(&format!("{clear}{}", text(told, WallTime::now())));
        Ok(())
    }
}
