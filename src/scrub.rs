//! `understudy scrub`: reads everything again on both sides, and repairs the copies.

use understudy_config::StoreName;

use crate::Place;
use crate::check::{DepthOrder, Order};
use crate::failure::Failure;
use crate::selection::Selection;

/// Read every byte again, on this node and on its peers, and repair the copies
///
/// Tells content that has rotted from content that was changed. A standby is repaired from its primary;
/// what has rotted on the primary is told and never shipped. Ctrl-C stops it on every node. Exits with 1
/// if something is left that was not repaired.
#[derive(clap::Args, Debug)]
pub(crate) struct Scrub {
    /// Scrub this store only; can be given again for more
    #[arg(long = "store", value_name = "STORE")]
    stores: Vec<StoreName>,
    /// Read so much in a second on each node, such as 50MB; without it, what the configuration says
    #[arg(long, value_name = "SIZE", value_parser = understudy_config::size::parse)]
    rate: Option<u64>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Scrub {
    pub(crate) async fn run(self, place: &Place) -> Result<(), Failure> {
        let order = Order {
            stores: Selection(self.stores),
            depth: DepthOrder::Scrub {
                bytes_per_second: self.rate,
            },
        };
        crate::check_report::ask(place, &order, self.json).await
    }
}
