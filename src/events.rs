//! `understudy events`.

use hyper::Method;
use understudy_replication::event::Event;

use crate::Place;
use crate::failure::Failure;
use crate::output::{print, print_json};
use crate::serve::load_local;

/// Show what happened
#[derive(clap::Args, Debug)]
pub(crate) struct Events {
    /// Show so many of the newest
    #[arg(long, short = 'n', default_value_t = 50, value_name = "COUNT")]
    count: usize,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Events {
    pub(crate) async fn run(self, place: &Place) -> Result<(), Failure> {
        let socket = load_local(place)?.socket();
        let path = format!("/events?count={}", self.count);
        let events: Vec<Event> = crate::admin::ask(&socket, Method::GET, &path, &()).await?;
        if self.json {
            return print_json(&events);
        }
        for event in events {
            print(&format!(
                "{}  {:7}  {:20} {}",
                event.time, event.severity, event.kind, event.message
            ));
        }
        Ok(())
    }
}
