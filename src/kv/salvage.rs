//! `understudy kv salvage`.

use understudy_config::{Local, NodeName};
use understudy_replication::kv::salvage::{
    Manifest, ReplayOrder, Replayed, ShownBundle, ShownWish, ShownWished, Verdict,
};

use super::{ask, summary};
use crate::failure::Failure;
use crate::kv_api::{ListBundles, ReplayBundle, ShowBundle};
use crate::kv_bundles::{self, Bundles, Listed};
use crate::output::{print, print_json, tell};
use crate::stores::Makings;

/// Look at what was superseded on this node, and put it back
#[derive(clap::Args, Debug)]
pub(crate) struct Salvage {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand, Debug)]
enum Verb {
    /// List the bundles of a node, oldest first
    List {
        /// The node that has them, if not this one
        #[arg(long, value_name = "NODE")]
        from: Option<NodeName>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show what a bundle would make of each key, beside what is there now
    Show {
        /// The bundle (default: the newest of that node)
        bundle: Option<String>,
        /// The node that has it, if not this one
        #[arg(long, value_name = "NODE")]
        from: Option<NodeName>,
        /// Show so many keys
        #[arg(long, default_value_t = 100)]
        limit: usize,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Put back what a bundle holds: what is missing is added, what is there is left
    ///
    /// What would change or remove something that is there now is a conflict: it is listed, and left unless
    /// --overwrite is given. A replay can be repeated at any time.
    Replay {
        /// The bundle
        bundle: String,
        /// The node that has it, if not this one
        #[arg(long, value_name = "NODE")]
        from: Option<NodeName>,
        /// Change and remove what is in the way
        #[arg(long)]
        overwrite: bool,
        /// Change nothing; tell what would be done
        #[arg(long)]
        dry_run: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

impl Salvage {
    pub(crate) async fn run(self, local: &Local) -> Result<(), Failure> {
        let socket = local.socket();
        match self.verb {
            Verb::List { from, json } => {
                let listed = bundles(local, from.as_ref()).await?;
                if json {
                    return print_json(&listed);
                }
                for bundle in &listed.bundles {
                    print(&line(bundle));
                }
                if listed.bundles.is_empty() {
                    let of = from.as_ref().unwrap_or(&local.name);
                    tell(&format!(
                        "nothing of the key-value store was superseded on node {of}"
                    ));
                }
                Ok(())
            }
            Verb::Show {
                bundle,
                from,
                limit,
                json,
            } => {
                let bundle = match bundle {
                    Some(bundle) => bundle,
                    None => {
                        let newest = bundles(local, from.as_ref()).await?.bundles.pop();
                        let of = from.as_ref().unwrap_or(&local.name);
                        let none = || Failure::failed(format!("there is no bundle on node {of}"));
                        newest.ok_or_else(none)?.name
                    }
                };
                let asked = ShowBundle {
                    bundle,
                    from,
                    limit,
                };
                let shown: ShownBundle = ask(&socket, "/kv/salvage/show", &asked).await?;
                if json {
                    return print_json(&shown);
                }
                print(&text(&shown));
                Ok(())
            }
            Verb::Replay {
                bundle,
                from,
                overwrite,
                dry_run,
                json,
            } => {
                let order = ReplayOrder {
                    overwrites: overwrite,
                    is_dry_run: dry_run,
                };
                let asked = ReplayBundle {
                    bundle,
                    from,
                    order,
                };
                let done: Replayed = ask(&socket, "/kv/salvage/replay", &asked).await?;
                if json {
                    print_json(&done)?;
                } else {
                    print(&told(&done, order));
                }
                left(&done, order)
            }
        }
    }
}

/// Fails where a replay left something, so that a script sees it.
fn left(done: &Replayed, order: ReplayOrder) -> Result<(), Failure> {
    if done.failed > 0 {
        return Err(
            Failure::failed(format!("{} keys could not be changed", done.failed))
                .hint("they are listed with the reason; the replay can be repeated"),
        );
    }
    if done.conflicts == 0 || order.is_dry_run {
        return Ok(());
    }
    Err(Failure::refused(format!(
        "{} keys were left as they are: something is there that the bundle would change or remove",
        done.conflicts
    ))
    .hint("look at them; --overwrite makes of them what the bundle has"))
}

/// Returns the bundles of this node, for which no daemon is needed, or of another.
async fn bundles(local: &Local, from: Option<&NodeName>) -> Result<Bundles, Failure> {
    match from.filter(|from| **from != local.name) {
        None => kv_bundles::list_in(&Makings::salvage(local)),
        Some(from) => {
            let asked = ListBundles { from: from.clone() };
            ask(&local.socket(), "/kv/salvage/list", &asked).await
        }
    }
}

fn line(listed: &Listed) -> String {
    match (&listed.manifest, &listed.error) {
        (Some(manifest), _) => format!("{}  {}", listed.name, about(manifest)),
        (None, error) => {
            let error = error.as_deref().unwrap_or("it does not say why");
            format!("{}  cannot be read: {error}", listed.name)
        }
    }
}

fn about(manifest: &Manifest) -> String {
    let by = match &manifest.superseded_by {
        Some(epoch) => format!("epoch {epoch}"),
        None => "an unknown epoch".to_owned(),
    };
    format!(
        "made {}, operations {} to {}, {} bytes; superseded by {by}; clients were told that it is kept: {}",
        manifest.made,
        manifest.cut_to.position,
        manifest.end.position,
        manifest.bytes,
        manifest.acknowledged.told()
    )
}

fn text(shown: &ShownBundle) -> String {
    let mut text = format!("{}  {}\n", shown.name, about(&shown.manifest));
    text += &counts(&shown.would, true);
    for ShownWish {
        key,
        bundle,
        now,
        verdict,
    } in &shown.shown
    {
        text += &format!("\n{:9} {key}\n", verdict.as_str());
        text += &format!("          bundle  {}\n", wished(bundle));
        let is_same = match verdict {
            Verdict::Same => true,
            Verdict::Add | Verdict::Expired | Verdict::Conflict => false,
        };
        if !is_same {
            text += &format!("          now     {}\n", summary(now));
        }
    }
    let count = u64::try_from(shown.shown.len()).unwrap_or(u64::MAX);
    if count < shown.keys {
        text += &format!(
            "\n{count} of {} keys are shown; --limit shows more\n",
            shown.keys
        );
    }
    text
}

fn wished(bundle: &ShownWished) -> String {
    match bundle {
        ShownWished::String {
            value,
            length,
            expires,
        } => {
            let whole = u64::try_from(value.0.len()).unwrap_or(u64::MAX) == *length;
            let cut = if whole { "" } else { "…" };
            let expires = expires.map_or(String::new(), |at| format!(", until {at}"));
            format!("{value}{cut}{expires}")
        }
        ShownWished::Hash {
            set,
            removed,
            length,
            is_whole,
        } => {
            let set = set
                .iter()
                .map(|field| format!("{}: {}", field.field, field.value));
            let removed = removed.iter().map(|field| format!("{field} removed"));
            let told: Vec<String> = set.chain(removed).collect();
            let more = match u64::try_from(told.len()).unwrap_or(u64::MAX) < *length {
                true => format!(", … of {length} fields"),
                false => String::new(),
            };
            let others = if *is_whole { "" } else { ", others unknown" };
            format!("{{{}{more}}}{others}", told.join(", "))
        }
        ShownWished::Absent => "removed".to_owned(),
        ShownWished::Expiry { expires } => match expires {
            Some(at) => format!("expires at {at}"),
            None => "never expires".to_owned(),
        },
    }
}

fn counts(done: &Replayed, is_dry_run: bool) -> String {
    let (added, overwritten, conflicts) = if is_dry_run {
        ("would be added", "would be overwritten", "would be left")
    } else {
        ("added", "overwritten", "left")
    };
    let mut text = format!(
        "{} keys: {} {added}, {} as they are in the bundle already, {} expired since, {} {overwritten}, {} \
         {conflicts} in conflict\n",
        done.keys, done.added, done.same, done.expired, done.overwritten, done.conflicts
    );
    if done.has_clear {
        text += "the bundle removes every key at one point (FLUSHDB); that is never replayed\n";
    }
    text
}

fn told(done: &Replayed, order: ReplayOrder) -> String {
    let mut text = counts(done, order.is_dry_run);
    for conflict in &done.conflicts_listed {
        text += &format!("  {}: {}\n", conflict.key, conflict.what);
    }
    let listed = u64::try_from(done.conflicts_listed.len()).unwrap_or(u64::MAX);
    let all = done.conflicts.saturating_add(done.overwritten);
    if listed < all {
        text += &format!("  and {} more\n", all - listed);
    }
    if done.failed > 0 {
        text += &format!("{} keys could not be changed\n", done.failed);
        for failure in &done.failures_listed {
            text += &format!("  {}: {}\n", failure.key, failure.what);
        }
        let listed = u64::try_from(done.failures_listed.len()).unwrap_or(u64::MAX);
        if listed < done.failed {
            text += &format!("  and {} more\n", done.failed - listed);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use understudy_replication::kv::salvage::Conflict;
    use understudy_replication::kv::shown::{Content, Field, Shown};
    use understudy_replication::wall_time::WallTime;

    fn shown(text: &str) -> Shown {
        Shown::from(text.as_bytes())
    }

    fn manifest() -> Manifest {
        let manifest = r#"{
            "version": 1, "store": "kv", "node": "a",
            "cut_to": {"position": 10, "epoch": {"number": 1, "node": "a"}, "digest": "00"},
            "end": {"position": 13, "epoch": {"number": 1, "node": "a"}, "digest": "01"},
            "operations": 3, "entries": 1, "bytes": 77, "hash": "02", "acknowledged": "unknown",
            "superseded_by": {"number": 2, "node": "b"}, "made": 1700000000123
        }"#;
        serde_json::from_str(manifest).unwrap()
    }

    fn replayed() -> Replayed {
        Replayed {
            keys: 4,
            added: 2,
            same: 1,
            conflicts: 1,
            conflicts_listed: vec![Conflict {
                key: shown("b"),
                what: "it is there, where the bundle removes it".to_owned(),
            }],
            has_clear: true,
            ..Replayed::default()
        }
    }

    #[test]
    fn a_bundle_is_shown_with_what_a_replay_would_do() {
        let wish = |key: &str, bundle, now, verdict| ShownWish {
            key: shown(key),
            bundle,
            now,
            verdict,
        };
        let string = |value: &str| ShownWished::String {
            value: shown(value),
            length: 3,
            expires: Some(WallTime(1_700_000_100_000)),
        };
        let shown = ShownBundle {
            name: "kv-x".to_owned(),
            manifest: manifest(),
            keys: 4,
            would: replayed(),
            shown: vec![
                wish("a\n", string("1\x1b2"), Content::None, Verdict::Add),
                wish(
                    "b",
                    ShownWished::Absent,
                    Content::String {
                        value: shown("x"),
                        length: 1,
                        truncated: false,
                        ttl_ms: None,
                    },
                    Verdict::Conflict,
                ),
                wish(
                    "h",
                    ShownWished::Hash {
                        set: vec![Field {
                            field: shown("f"),
                            value: shown("1"),
                        }],
                        removed: vec![shown("g")],
                        length: 5,
                        is_whole: false,
                    },
                    Content::None,
                    Verdict::Same,
                ),
            ],
        };
        assert_eq!(
            text(&shown),
            "\
kv-x  made 2023-11-14T22:13:20.123Z, operations 10 to 13, 77 bytes; superseded by epoch 2.b; clients were told that it is kept: not known
4 keys: 2 would be added, 1 as they are in the bundle already, 0 expired since, 0 would be overwritten, 1 would be left in conflict
the bundle removes every key at one point (FLUSHDB); that is never replayed

add       a\\n
          bundle  1\\x1b2, until 2023-11-14T22:15:00.000Z
          now     absent

conflict  b
          bundle  removed
          now     x

same      h
          bundle  {f: 1, g removed, … of 5 fields}, others unknown

3 of 4 keys are shown; --limit shows more
"
        );
    }

    #[test]
    fn a_replay_that_left_something_ends_with_a_refusal_that_names_the_flag() {
        let order = ReplayOrder::default();
        assert!(told(&replayed(), order).contains("b: it is there, where the bundle removes it"));
        let failure = left(&replayed(), order).unwrap_err();
        assert_eq!(failure.kind.exit_status(), 3);
        assert!(failure.to_string().contains("--overwrite"), "{failure}");
        let dry = ReplayOrder {
            is_dry_run: true,
            ..order
        };
        assert!(left(&replayed(), dry).is_ok());
        assert!(left(&Replayed::default(), order).is_ok());
    }
}
