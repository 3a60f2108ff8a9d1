//! `understudy services`.

use hyper::Method;
use understudy_replication::status::Status;

use crate::Place;
use crate::failure::Failure;
use crate::output::{print, print_json};
use crate::serve::load_local;

/// Show the services of this node
#[derive(clap::Args, Debug)]
pub(crate) struct Services {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Services {
    pub(crate) async fn run(self, place: &Place) -> Result<(), Failure> {
        let socket = load_local(place)?.socket();
        let status: Status = crate::admin::ask(&socket, Method::GET, "/status", &()).await?;
        if self.json {
            return print_json(&status.services);
        }
        for service in status.services {
            print(&format!(
                "{:20} {:14} since {}  {}",
                service.name,
                service.state.as_str(),
                service.since,
                service.message
            ));
        }
        Ok(())
    }
}
