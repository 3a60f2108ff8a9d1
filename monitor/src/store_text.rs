//! What `understudy status --store` prints: everything of one store on one node.

use understudy_replication::position::{Lsn, Position};
use understudy_replication::status::{CopyStatus, StoreDetail, StoreLag};
use understudy_replication::store::{Durability, StoreKind};
use understudy_replication::wall_time::WallTime;

use crate::quantity::{age, distance, size, span};
use crate::text::{Page, Table};

/// How many troubles are shown; JSON has all that are told.
const TROUBLES_SHOWN: usize = 50;

/// Renders `detail` for people, as seen at `now` by the clock of the node that told it.
pub fn store_text(detail: &StoreDetail, now: WallTime) -> String {
    let mut page = Page::default();
    let store = &detail.store;
    page.line(format!(
        "store {} of kind {} on node {}, which is {}",
        store.id.name,
        store.id.kind,
        detail.node,
        detail.role.as_str()
    ));
    let position = store.position_text.clone();
    let position = position.or_else(|| Some(store.position?.to_string()));
    let names = store.gauges.keys().map(String::len);
    let width = names.chain(["position here".len()]).max().unwrap_or(0);
    page.line(format!(
        "  {:width$}  {}",
        "position here",
        position.unwrap_or_else(|| "unknown".to_owned())
    ));
    if let Some(durability) = store.durability {
        // What waits is called as its clients call it.
        let writes = match store.id.kind {
            StoreKind::Postgres => "commits",
            StoreKind::Files | StoreKind::Kv | StoreKind::Settings => "writes",
        };
        page.line(format!(
            "  {writes:width$}  {}",
            durability_text(durability)
        ));
    }
    for (name, value) in &store.gauges {
        let value = if name.ends_with("_bytes") || name == "bytes" {
            format!("{} ({value})", size(*value))
        } else {
            value.to_string()
        };
        page.line(format!("  {:width$}  {value}", name.replace('_', " ")));
    }
    if !store.problems.is_empty() {
        page.line("");
        page.line("PROBLEMS");
        for problem in &store.problems {
            page.line(format!("  {problem}"));
        }
    }
    show_copies(&mut page, store.id.kind, &detail.copies, now);
    show_troubles(&mut page, detail, now);
    page.0
}

fn durability_text(durability: Durability) -> String {
    match durability {
        Durability::Held => "wait for a standby, and one is there".to_owned(),
        Durability::Waiting { seconds } => format!("have waited for a standby for {seconds} s"),
        Durability::Overridden => "wait for a standby, but for some sessions; see below".to_owned(),
        Durability::Alone { seconds: None } => {
            "wait for no standby: this node has gone on alone".to_owned()
        }
        Durability::Alone {
            seconds: Some(seconds),
        } => format!("wait for no standby: this node has gone on alone for {seconds} s"),
    }
}

fn show_copies(page: &mut Page, kind: StoreKind, copies: &[CopyStatus], now: WallTime) {
    let at = |position: Option<Position>| match (position, kind) {
        (None, _) => "-".to_owned(),
        (Some(position), StoreKind::Postgres) => Lsn(position.0).to_string(),
        (Some(position), StoreKind::Files | StoreKind::Kv | StoreKind::Settings) => {
            position.to_string()
        }
    };
    let amount = |lag: &StoreLag, amount: Option<u64>| match (&lag.unknown, amount) {
        (None, Some(amount)) => distance(kind, amount),
        (Some(_), _) | (None, None) => "unknown".to_owned(),
    };
    let mut table = Table::new([
        "COPY",
        "CURRENT",
        "SENT",
        "FLUSHED",
        "APPLIED",
        "NOT FLUSHED",
        "NOT APPLIED",
        "BEHIND",
    ]);
    for CopyStatus { node, lag } in copies {
        let behind = lag.lag_seconds.filter(|_| lag.unknown.is_none());
        table.row([
            node.to_string(),
            at(lag.current),
            at(lag.sent),
            at(lag.flushed),
            at(lag.applied),
            amount(lag, lag.lag_flushed),
            amount(lag, lag.lag),
            behind.map_or_else(|| "unknown".to_owned(), span),
        ]);
    }
    page.table(&table);
    for CopyStatus { node, lag } in copies {
        if lag.must_reseed {
            page.line(format!(
                "  {node}: must be compared whole before it can follow again"
            ));
        }
        if let Some(reason) = &lag.stalled {
            page.line(format!("  {node}: does not advance: {reason}"));
        }
        if let Some(unknown) = &lag.unknown {
            let since = age(unknown.since, now);
            page.line(format!("  {node}: unknown for {since}: {}", unknown.reason));
        }
    }
}

fn show_troubles(page: &mut Page, detail: &StoreDetail, now: WallTime) {
    let count = detail.troubles.len();
    if count == 0 {
        return;
    }
    let mut table = Table::new(["NOT UP TO DATE", "FOR", "WHY"]);
    for trouble in detail.troubles.iter().take(TROUBLES_SHOWN) {
        table.row([
            trouble.path.clone(),
            age(trouble.since, now),
            trouble.reason.clone(),
        ]);
    }
    page.table(&table);
    if let Some(more @ 1..) = count.checked_sub(TROUBLES_SHOWN) {
        page.line(format!("  and {more} more; --json lists them"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::example;
    use understudy_replication::check::Trouble;
    use understudy_replication::status::{STORE_DETAIL_VERSION, Status};

    fn detail(status: Status, store: usize) -> StoreDetail {
        let store = status.stores[store].clone();
        let of_store = |lags: Vec<StoreLag>| lags.into_iter().find(|lag| lag.id == store.id);
        let of_standbys = status.standbys.into_iter().filter_map(|standby| {
            Some(CopyStatus {
                node: standby.node,
                lag: of_store(standby.stores)?,
            })
        });
        let mut copies: Vec<CopyStatus> = of_standbys.collect();
        copies.extend(status.upstream.and_then(|upstream| {
            Some(CopyStatus {
                node: status.node.clone(),
                lag: of_store(upstream.stores)?,
            })
        }));
        StoreDetail {
            version: STORE_DETAIL_VERSION,
            node: status.node,
            role: status.role,
            time: status.time,
            store,
            copies,
            troubles: Vec::new(),
        }
    }

    #[test]
    fn a_store_that_is_well() {
        insta::assert_snapshot!(store_text(&detail(example::primary(), 0), example::NOW), @r"
        store postgres of kind postgres on node a, which is primary
          position here  16/B374D848
          slot bytes     16.0 MB (16777216)

        COPY  CURRENT      SENT         FLUSHED      APPLIED      NOT FLUSHED  NOT APPLIED  BEHIND
        b     16/B374D848  16/B374D848  16/B374B848  16/B374A715  8.0 kB       12.2 kB      0.4 s
        ");
    }

    #[test]
    fn a_key_value_store_that_has_gone_on_alone() {
        let detail = detail(example::primary_degraded(), 3);
        insta::assert_snapshot!(store_text(&detail, example::NOW), @r"
        store kv of kind kv on node a, which is primary
          position here       90210
          writes              wait for no standby: this node has gone on alone for 12 s
          at risk operations  345
          keys                12000
          log bytes           8.0 MB (8388608)

        PROBLEMS
          writes wait for no standby: 345 operations are on this node only; they wait again once a standby has caught up

        COPY  CURRENT  SENT   FLUSHED  APPLIED  NOT FLUSHED  NOT APPLIED  BEHIND
        b     90210    90210  90210    90207    unknown      unknown      unknown
          b: unknown for 4.0 s: no report from b
        ");
    }

    #[test]
    fn entries_that_are_not_up_to_date_are_listed_with_their_reason() {
        let mut detail = detail(example::standby_link_down(), 1);
        detail.store.problems = vec!["2 entries are not up to date here".to_owned()];
        detail.troubles = [
            ("a/b", "no space left on device"),
            ("c\nd", "it is a mount point"),
        ]
        .map(|(path, reason)| Trouble {
            path: path.to_owned(),
            reason: reason.to_owned(),
            since: example::at(-90_000),
        })
        .into();
        insta::assert_snapshot!(store_text(&detail, example::NOW), @r"
        store docs of kind files on node b, which is standby
          position here  1070596096
          log bytes      4.0 MB (4194304)

        PROBLEMS
          2 entries are not up to date here

        COPY  CURRENT     SENT        FLUSHED     APPLIED     NOT FLUSHED  NOT APPLIED  BEHIND
        b     1073741824  1073741824  1072693248  1070596096  unknown      unknown      unknown
          b: unknown for 64 s: no mark from a

        NOT UP TO DATE  FOR   WHY
        a/b             90 s  no space left on device
        c d             90 s  it is a mount point
        ");
    }

    #[test]
    fn a_long_list_says_how_much_of_it_is_shown() {
        let mut detail = detail(example::standby(), 1);
        let trouble = |number: usize| Trouble {
            path: format!("{number}"),
            reason: "it is a mount point".to_owned(),
            since: example::at(-1),
        };
        detail.troubles = (0..52).map(trouble).collect();
        let text = store_text(&detail, example::NOW);
        assert_eq!(text.lines().last(), Some("  and 2 more; --json lists them"));
    }
}
