//! `understudy wait`, as the command line sees it.

use hyper::Method;

use crate::Place;
use crate::admin_api;
use crate::failure::Failure;
use crate::serve::load_local;

/// Wait until the standby has applied everything that the primary has now
#[derive(clap::Args, Debug)]
pub(crate) struct Wait {
    /// Give up after so many seconds
    #[arg(long, default_value_t = 60, value_name = "SECONDS")]
    timeout: u64,
}

impl Wait {
    pub(crate) async fn run(self, place: &Place) -> Result<(), Failure> {
        let socket = load_local(place)?.socket();
        let asked = admin_api::Wait {
            seconds: self.timeout,
        };
        crate::admin::ask(&socket, Method::POST, "/wait", &asked).await
    }
}
