//! `understudy wait`, as the command line sees it.

use std::time::Duration;

use hyper::Method;
use understudy_config::StoreName;
use understudy_replication::link::Level;

use crate::Place;
use crate::failure::Failure;
use crate::output::print_json;
use crate::selection::Selection;
use crate::serve::load_local;
use crate::wait::{Order, Waited};

/// Wait until the standbys have everything that the primary has now
#[derive(clap::Args, Debug)]
pub(crate) struct Wait {
    /// Wait for this store only; can be given again for more
    #[arg(long = "store", value_name = "STORE")]
    stores: Vec<StoreName>,
    /// Wait until it is durable on the standbys, although not visible yet
    #[arg(long, conflicts_with = "applied")]
    flushed: bool,
    /// Wait until it is visible on the standbys (which is what happens without a word)
    #[arg(long)]
    applied: bool,
    /// Give up after this time: a number of seconds, or a duration such as 500ms or 2m
    #[arg(long, default_value = "60", value_name = "TIME", value_parser = patience)]
    timeout: Duration,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Reads a duration; a number without a unit is one of seconds.
pub(crate) fn patience(text: &str) -> Result<Duration, understudy_config::Mistake> {
    match text.parse() {
        Ok(seconds) => Ok(Duration::from_secs(seconds)),
        Err(_) => understudy_config::duration::parse(text),
    }
}

impl Wait {
    pub(crate) async fn run(self, place: &Place) -> Result<(), Failure> {
        let socket = load_local(place)?.socket();
        let order = Order {
            stores: Selection(self.stores),
            level: if self.flushed {
                Level::Flushed
            } else {
                Level::Applied
            },
            patience: self.timeout,
        };
        let waited: Waited = crate::admin::ask(&socket, Method::POST, "/wait", &order).await?;
        if self.json {
            print_json(&waited)?;
        }
        waited.in_time(self.timeout)?;
        Ok(())
    }
}
