//! `understudy verify`: proves that both sides are equal now.

use understudy_config::StoreName;

use crate::Place;
use crate::check::{DepthOrder, Order};
use crate::failure::Failure;
use crate::selection::Selection;

/// Prove that the copies equal the original
///
/// Compares what the file system tells of every entry with what is known of it, on this node and on its
/// peers, and both sides with each other. Exits with 0 if they are equal, with 1 if they differ.
#[derive(clap::Args, Debug)]
pub(crate) struct Verify {
    /// Verify this store only; can be given again for more
    #[arg(long = "store", value_name = "STORE")]
    stores: Vec<StoreName>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Verify {
    pub(crate) async fn run(self, place: &Place) -> Result<(), Failure> {
        let order = Order {
            stores: Selection(self.stores),
            depth: DepthOrder::Verify,
        };
        crate::check_report::ask(place, &order, self.json).await
    }
}
