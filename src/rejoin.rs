//! `understudy rejoin`.

use hyper::Method;
use indicatif::HumanBytes;
use understudy_replication::rejoin::{self, Salvaging};

use crate::Place;
use crate::failure::Failure;
use crate::foresight::Prediction;
use crate::output::{print, print_json};

use crate::returning::{Order, Report};
use crate::serve::load_local;

/// Make this former primary a standby again, or seed a standby anew that cannot follow
///
/// What only this node has is kept aside first: `understudy salvage list` shows it.
#[derive(clap::Args, Debug)]
pub(crate) struct Rejoin {
    /// Change nothing: tell per store what would be kept aside, what would travel, and how long it takes
    #[arg(long)]
    dry_run: bool,
    /// Go on although not all that only this node has can be kept aside: you give up the rest
    #[arg(long, conflicts_with = "dry_run")]
    without_salvage: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Rejoin {
    pub(crate) async fn run(self, place: &Place) -> Result<(), Failure> {
        let socket = load_local(place)?.socket();
        if self.dry_run {
            let path = "/rejoin/foresee";
            let foreseen: Prediction = crate::admin::ask(&socket, Method::POST, path, &()).await?;
            if self.json {
                return print_json(&foreseen);
            }
            print(&format!(
                "Node {} would follow node {}. Nothing was changed.\n{}",
                foreseen.node,
                foreseen.primary,
                foreseen.text()
            ));
            return Ok(());
        }
        let order = Order {
            salvaging: if self.without_salvage {
                Salvaging::AsFarAsPossible
            } else {
                Salvaging::Required
            },
            foresees: true,
            by_itself: false,
        };
        let report: Report = crate::admin::ask(&socket, Method::POST, "/rejoin", &order).await?;
        if self.json {
            return print_json(&report);
        }
        print(&text(&report));
        Ok(())
    }
}

fn text(report: &Report) -> String {
    let mut text = format!(
        "Node {} follows node {} in epoch {}, after {:.2} s.\n",
        report.node, report.primary, report.epoch, report.seconds
    );
    for store in &report.stores {
        let method = match &store.rejoined.method {
            rejoin::Method::Followed => "follows from where it was".to_owned(),
            rejoin::Method::Rewound {
                copied: Some(copied),
                total: Some(total),
            } => format!(
                "rewound to where it parted from the primary: {} of {} travelled",
                HumanBytes(*copied),
                HumanBytes(*total)
            ),
            rejoin::Method::Rewound { .. } => {
                "rewound to where it parted from the primary".to_owned()
            }
            rejoin::Method::Compared { compared, copied } => format!(
                "compared with the primary's: {} travelled, where it has {}",
                HumanBytes(*copied),
                HumanBytes(*compared)
            ),
            rejoin::Method::Seeded => "seeded anew from the primary's".to_owned(),
            rejoin::Method::Replaced => "replaced by the primary's".to_owned(),
            rejoin::Method::Equal => "equal to the primary's".to_owned(),
        };
        text += &format!(
            "  {:20} {method}{}\n",
            store.id.name,
            foreseen(report, store)
        );
        if let Some(salvaged) = &store.rejoined.salvaged {
            let all = if salvaged.is_complete {
                ""
            } else {
                " (NOT all of it)"
            };
            text += &format!(
                "  {:20} kept aside in {}{all}: {}\n",
                "",
                salvaged.path.display(),
                salvaged.summary
            );
        }
    }
    if let Some(path) = &report.report {
        text += &format!("  {:20} {}\n", "report", path.display());
    }
    text
}

/// Returns what had been foreseen of what travelled, where both are known.
fn foreseen(report: &Report, store: &crate::returning::StoreRejoined) -> String {
    let foreseen = report.foreseen.iter().flat_map(|it| &it.stores);
    let told = foreseen
        .filter(|it| it.id == store.id)
        .find_map(|it| it.foreseen.as_ref()?.travelling_bytes);
    match told.zip(store.rejoined.travelled) {
        Some((told, came)) => format!(
            " ({} came, {} were foreseen)",
            HumanBytes(came),
            HumanBytes(told)
        ),
        None => String::new(),
    }
}
