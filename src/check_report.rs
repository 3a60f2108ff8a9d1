//! What a check has found on every side, whether the sides are equal, and how that is shown.

use std::fmt::Write;

use hyper::Method;
use serde::{Deserialize, Serialize};
use understudy_config::NodeName;
use understudy_replication::check::{Checked, Depth};
use understudy_replication::position::Position;
use understudy_replication::store::StoreId;

use crate::Place;
use crate::check::Order;
use crate::failure::Failure;
use crate::output::{print, print_json};
use crate::serve::load_local;

/// The version of [`Report`] as JSON.
const REPORT_VERSION: u32 = 1;

/// So much of a root is shown to people; JSON has the whole.
const ROOT_SHOWN: usize = 24;

/// What a check of some stores has found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Report {
    version: u32,
    /// There is nothing left to do.
    is_well: bool,
    /// The stores, in the order of the configuration.
    stores: Vec<StoreChecked>,
}

/// What a check of one store has found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct StoreChecked {
    /// Which store.
    #[serde(flatten)]
    pub(crate) id: StoreId,
    /// How deep it was checked.
    pub(crate) depth: Depth,
    /// Why a standby did not have all that the primary had when the check began.
    pub(crate) behind: Option<String>,
    /// The primary, then its standbys.
    pub(crate) sides: Vec<Side>,
}

/// Whether a side is the original or a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum SideRole {
    /// The original.
    Primary,
    /// A copy.
    Standby,
}

/// What was found on one node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Side {
    /// The node.
    pub(crate) node: NodeName,
    /// What its side is.
    pub(crate) role: SideRole,
    /// How the check ended there.
    pub(crate) outcome: Outcome,
    /// Of a standby: whether it equals the primary.
    pub(crate) verdict: Option<Verdict>,
}

/// How a check ended on one node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Outcome {
    /// It has found this.
    Checked(Checked),
    /// It could not be made.
    Failed(Failure),
}

/// Whether a copy equals the original.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Verdict {
    /// Their roots are equal.
    Equal,
    /// Their roots are not, at the same position.
    Differs,
    /// The sides were not at the same position, and the root of the primary at the standby's is not known
    /// any more.
    Moved {
        /// Where the primary was.
        primary_at: Position,
        /// Where the standby was.
        standby_at: Position,
    },
    /// One of the sides has told no root.
    Unknown,
}

impl Side {
    pub(crate) fn new(node: NodeName, role: SideRole, outcome: Result<Checked, Failure>) -> Self {
        Self {
            node,
            role,
            outcome: match outcome {
                Ok(checked) => Outcome::Checked(checked),
                Err(failure) => Outcome::Failed(failure),
            },
            verdict: None,
        }
    }

    fn is_well(&self, depth: Depth) -> bool {
        let is_equal = match (&self.verdict, depth) {
            (None | Some(Verdict::Equal), _) => true,
            // A scrub is about the content, and does not wait for a store that is written to.
            (Some(Verdict::Moved { .. }), Depth::Scrub { .. }) => true,
            (Some(Verdict::Moved { .. }), Depth::Verify) => false,
            (Some(Verdict::Differs | Verdict::Unknown), _) => false,
        };
        let is_whole = match &self.outcome {
            Outcome::Checked(checked) => checked.unrepaired() == 0,
            Outcome::Failed(_) => false,
        };
        is_equal && is_whole
    }
}

/// Asks the daemon for a check, and prints what it has found.
pub(crate) async fn ask(place: &Place, order: &Order, is_json: bool) -> Result<(), Failure> {
    let socket = load_local(place)?.socket();
    let report: Report = crate::admin::ask(&socket, Method::POST, "/check", order).await?;
    if is_json {
        print_json(&report)?;
    } else {
        print(&report.text());
    }
    report.end()
}

/// Compares a copy with the original. `root_there` is the root that the primary had where the standby
/// was, if that is known.
pub(crate) fn verdict(primary: &Outcome, standby: &Outcome, root_there: Option<&str>) -> Verdict {
    let (Outcome::Checked(primary), Outcome::Checked(standby)) = (primary, standby) else {
        return Verdict::Unknown;
    };
    let (Some(original), Some(copy)) = (&primary.root, &standby.root) else {
        return Verdict::Unknown;
    };
    // Equal roots mean equal trees, whatever the positions are.
    if original == copy || root_there == Some(copy) {
        return Verdict::Equal;
    }
    match (primary.position, standby.position) {
        (Some(primary_at), Some(standby_at))
            if primary_at != standby_at && root_there.is_none() =>
        {
            Verdict::Moved {
                primary_at,
                standby_at,
            }
        }
        (Some(_), Some(_)) => Verdict::Differs,
        (None, _) | (_, None) => Verdict::Unknown,
    }
}

impl StoreChecked {
    /// Returns how many differences are left on all sides.
    fn unrepaired(&self) -> u64 {
        let unrepaired = |side: &Side| match &side.outcome {
            Outcome::Checked(checked) => checked.unrepaired(),
            Outcome::Failed(_) => 0,
        };
        self.sides.iter().map(unrepaired).sum()
    }

    fn summary(&self) -> &'static str {
        let verdicts = || self.sides.iter().filter_map(|side| side.verdict.as_ref());
        let has = |wanted: fn(&Verdict) -> bool| verdicts().any(wanted);
        let is_failed = |side: &Side| matches!(side.outcome, Outcome::Failed(_));
        if has(|it| *it == Verdict::Differs) {
            "the sides differ"
        } else if self.sides.iter().any(is_failed) {
            "not every side could be checked"
        } else if has(|it| *it == Verdict::Unknown) {
            "the sides cannot be compared"
        } else if has(|it| matches!(it, Verdict::Moved { .. })) {
            "not compared: the store is written to faster than it can be compared"
        } else if self.unrepaired() > 0 {
            "not every entry is what it should be"
        } else if verdicts().next().is_none() {
            "there is no copy to compare with"
        } else {
            "equal"
        }
    }
}

impl Report {
    pub(crate) fn new(stores: Vec<StoreChecked>) -> Self {
        let mut sides = stores
            .iter()
            .flat_map(|store| store.sides.iter().map(|side| (side, store.depth)));
        Self {
            version: REPORT_VERSION,
            is_well: sides.all(|(side, depth)| side.is_well(depth)),
            stores,
        }
    }

    /// Returns a failure with the right exit status, unless all is well.
    pub(crate) fn end(&self) -> Result<(), Failure> {
        if self.is_well {
            return Ok(());
        }
        let mut sides = self.stores.iter().flat_map(|store| &store.sides);
        let failed = sides.find_map(|side| match &side.outcome {
            Outcome::Failed(failure) => Some((&side.node, failure)),
            Outcome::Checked(_) => None,
        });
        if let Some((node, failure)) = failed {
            return Err(Failure {
                message: format!("the check failed on node {node}: {}", failure.message),
                ..failure.clone()
            });
        }
        let is_ill = |store: &&StoreChecked| !store.sides.iter().all(|it| it.is_well(store.depth));
        let ill: Vec<&StoreChecked> = self.stores.iter().filter(is_ill).collect();
        let told: Vec<String> = ill
            .iter()
            .map(|store| match store.unrepaired() {
                0 => format!("store {}: {}", store.id.name, store.summary()),
                left => format!(
                    "store {}: {}; {} left",
                    store.id.name,
                    store.summary(),
                    count(left)
                ),
            })
            .collect();
        let has_moved = |side: &Side| matches!(side.verdict, Some(Verdict::Moved { .. }));
        let has_only_moved = ill
            .iter()
            .all(|store| store.unrepaired() == 0 && store.sides.iter().any(has_moved));
        Err(Failure::failed(told.join("; ")).hint(if has_only_moved {
            "run it again when less is written"
        } else {
            "a standby is repaired by `understudy scrub`; what is rotten on the primary has to come from \
             a standby or a backup: see `What verify and scrub find` in the operations guide"
        }))
    }

    /// Renders the report for people.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        for store in &self.stores {
            line(
                &mut text,
                format_args!("store {}: {}", store.id.name, store.summary()),
            );
            if let Some(behind) = &store.behind {
                line(&mut text, format_args!("  when it began, {behind}"));
            }
            for side in &store.sides {
                show(&mut text, side, store.depth);
            }
        }
        text
    }
}

fn show(text: &mut String, side: &Side, depth: Depth) {
    let role = match side.role {
        SideRole::Primary => "primary",
        SideRole::Standby => "standby",
    };
    let node = &side.node;
    let checked = match &side.outcome {
        Outcome::Checked(checked) => checked,
        Outcome::Failed(failure) => {
            line(
                text,
                format_args!("  {node} ({role})  not checked: {}", failure.message),
            );
            return;
        }
    };
    let root = checked.root.as_deref().unwrap_or("unknown");
    let shown: String = root.chars().take(ROOT_SHOWN).collect();
    let more = if shown.len() < root.len() { "…" } else { "" };
    let at = checked
        .position
        .map_or_else(|| "an unknown position".to_owned(), |at| at.to_string());
    let verb = match depth {
        Depth::Verify => "",
        Depth::Scrub { .. } => " read",
    };
    line(
        text,
        format_args!(
            "  {node} ({role})  {} entries, {}{verb}, root {shown}{more} at {at}",
            indicatif::HumanCount(checked.entries),
            indicatif::HumanBytes(checked.bytes),
        ),
    );
    for difference in &checked.differences {
        let repaired = if difference.is_repaired {
            " (repaired)"
        } else {
            ""
        };
        let detail = match difference.detail.as_str() {
            "" => String::new(),
            detail => format!(": {}", printable(detail)),
        };
        line(
            text,
            format_args!(
                "    {:7}  {}{detail}{repaired}",
                difference.kind.to_string(),
                printable(&difference.what)
            ),
        );
    }
    let told = u64::try_from(checked.differences.len()).unwrap_or(u64::MAX);
    if checked.differences_total > told {
        line(
            text,
            format_args!("    … and {} more", checked.differences_total - told),
        );
    }
}

fn count(differences: u64) -> String {
    match differences {
        1 => "1 difference is".to_owned(),
        more => format!("{more} differences are"),
    }
}

/// Escapes what a terminal would take for a command: a name of a file may hold anything.
fn printable(text: &str) -> String {
    let escape = |c: char| {
        let escaped = c.is_control().then(|| c.escape_default().to_string());
        escaped.unwrap_or_else(|| c.to_string())
    };
    text.chars().map(escape).collect()
}

fn line(text: &mut String, line: std::fmt::Arguments<'_>) {
    text.write_fmt(format_args!("{line}\n"))
        .expect("a string takes whatever is written");
}

#[cfg(test)]
mod tests {
    use super::*;
    use understudy_replication::check::{Difference, DifferenceKind};
    use understudy_replication::store::StoreKind;

    fn checked(root: &str, position: u64) -> Checked {
        Checked {
            entries: 12_345,
            bytes: 3 << 30,
            root: Some(root.to_owned()),
            position: Some(Position(position)),
            ..Checked::default()
        }
    }

    fn outcome(root: &str, position: u64) -> Outcome {
        Outcome::Checked(checked(root, position))
    }

    fn sides(primary: Result<Checked, Failure>, standby: Result<Checked, Failure>) -> Vec<Side> {
        let mut sides = vec![
            Side::new("a".parse().unwrap(), SideRole::Primary, primary),
            Side::new("b".parse().unwrap(), SideRole::Standby, standby),
        ];
        sides[1].verdict = Some(verdict(&sides[0].outcome, &sides[1].outcome, None));
        sides
    }

    fn report(depth: Depth, sides: Vec<Side>) -> Report {
        let id = StoreId {
            name: "docs".parse().unwrap(),
            kind: StoreKind::Files,
        };
        Report::new(vec![StoreChecked {
            id,
            depth,
            behind: None,
            sides,
        }])
    }

    const SCRUB: Depth = Depth::Scrub {
        bytes_per_second: 1,
    };

    #[test]
    fn equal_roots_are_equal_trees_at_whatever_position() {
        assert_eq!(
            verdict(&outcome("x", 1), &outcome("x", 2), None),
            Verdict::Equal
        );
    }

    #[test]
    fn a_copy_is_compared_with_what_the_original_was_at_its_position() {
        let (primary, standby) = (outcome("new", 9), outcome("old", 7));
        let moved = Verdict::Moved {
            primary_at: Position(9),
            standby_at: Position(7),
        };
        let found = [None, Some("old"), Some("other")]
            .map(|root_there| verdict(&primary, &standby, root_there));
        assert_eq!(found, [moved, Verdict::Equal, Verdict::Differs]);
        assert_eq!(
            verdict(&primary, &outcome("old", 9), None),
            Verdict::Differs
        );
    }

    #[test]
    fn what_cannot_be_compared_is_not_called_equal() {
        let failed = Outcome::Failed(Failure::failed("no"));
        let rootless = Outcome::Checked(Checked {
            root: None,
            ..checked("", 1)
        });
        let placeless = Outcome::Checked(Checked {
            position: None,
            ..checked("y", 1)
        });
        let whole = outcome("x", 1);
        for side in [failed, rootless, placeless] {
            assert_eq!(verdict(&whole, &side, None), Verdict::Unknown);
            assert_eq!(verdict(&side, &whole, None), Verdict::Unknown);
            assert!(
                !report(SCRUB, {
                    let mut sides = sides(Ok(checked("x", 1)), Ok(checked("x", 1)));
                    sides[1].outcome = side.clone();
                    sides[1].verdict = Some(verdict(&sides[0].outcome, &side, None));
                    sides
                })
                .is_well
            );
        }
    }

    #[test]
    fn a_store_that_moves_is_no_fault_for_a_scrub_and_one_for_a_verify() {
        let sides = || sides(Ok(checked("x", 1)), Ok(checked("y", 2)));
        assert_eq!(
            (
                report(SCRUB, sides()).is_well,
                report(Depth::Verify, sides()).is_well
            ),
            (true, false)
        );
    }

    #[test]
    fn a_store_that_moves_is_to_be_verified_again() {
        let sides = sides(Ok(checked("x", 1)), Ok(checked("y", 2)));
        assert_eq!(
            report(Depth::Verify, sides).end().unwrap_err().to_string(),
            "error: store docs: not compared: the store is written to faster than it can be compared\n\
             hint: run it again when less is written"
        );
    }

    #[test]
    fn equal_roots_do_not_hide_what_is_rotten() {
        let mut original = checked("x", 1);
        original.add(Difference {
            what: "a".to_owned(),
            kind: DifferenceKind::Rotten,
            is_repaired: false,
            detail: String::new(),
        });
        let failure = report(SCRUB, sides(Ok(original), Ok(checked("x", 1))))
            .end()
            .unwrap_err();
        assert_eq!(
            failure.message,
            "store docs: not every entry is what it should be; 1 difference is left"
        );
    }

    #[test]
    fn a_lonely_primary_is_well_when_its_own_side_is() {
        let mut sides = sides(Ok(checked("x", 1)), Ok(checked("x", 1)));
        sides.truncate(1);
        let report = report(SCRUB, sides);
        assert!(report.end().is_ok());
        assert!(report.text().starts_with("store docs: there is no copy"));
    }

    #[test]
    fn people_see_what_differs_and_what_is_left() {
        let mut copy = checked("blake3:0000111122223333444455556666", 7);
        for (what, is_repaired) in [("a\nb", true), ("c", false)] {
            copy.add(Difference {
                what: what.to_owned(),
                kind: DifferenceKind::Rotten,
                is_repaired,
                detail: "4 kB are not what was written".to_owned(),
            });
        }
        copy.differences_total = 5;
        let original = checked("blake3:ffff", 7);
        let report = report(SCRUB, sides(Ok(original), Ok(copy)));
        assert_eq!(
            report.text(),
            "store docs: the sides differ\n  \
             a (primary)  12,345 entries, 3.00 GiB read, root blake3:ffff at 7\n  \
             b (standby)  12,345 entries, 3.00 GiB read, root blake3:00001111222233334… at 7\n    \
             rotten   a\\nb: 4 kB are not what was written (repaired)\n    \
             rotten   c: 4 kB are not what was written\n    \
             … and 3 more\n"
        );
        let failure = report.end().unwrap_err();
        assert_eq!(
            (failure.kind.exit_status(), failure.message.as_str()),
            (1, "store docs: the sides differ; 4 differences are left")
        );
    }

    #[test]
    fn a_side_that_refuses_decides_the_exit_status() {
        let refused = Failure::refused("a scrub of store docs runs on node b already");
        let report = report(SCRUB, sides(Ok(checked("x", 1)), Err(refused)));
        assert_eq!(
            report.text().lines().last(),
            Some("  b (standby)  not checked: a scrub of store docs runs on node b already")
        );
        let failure = report.end().unwrap_err();
        assert_eq!(
            (failure.kind.exit_status(), failure.message.as_str()),
            (
                3,
                "the check failed on node b: a scrub of store docs runs on node b already"
            )
        );
    }
}
