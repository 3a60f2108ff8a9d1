//! Keeps what `docs/monitoring.md` shows equal to what the code does.
//!
//! Between `<!-- NAME -->` and `<!-- /NAME -->` the page holds what stands here under that name.
//! `UPDATE_DOCS=1 cargo test -p understudy-monitor` writes it anew.

use std::fmt::Write;
use std::path::Path;

use understudy_replication::status::Status;

use crate::health::{Answer, CHECKS, Check};
use crate::{example, metrics, replication, text};

fn json(body: &impl serde::Serialize) -> String {
    format!(
        "```json\n{}\n```\n",
        serde_json::to_string_pretty(body).unwrap()
    )
}

fn replication_page(status: &Status) -> String {
    json(&replication::Page::new(status))
}

fn metrics_table() -> String {
    let mut table = "| metric | type | labels | what it tells |\n|---|---|---|---|\n".to_owned();
    for metric in metrics::TABLE {
        let labels: Vec<_> = metric
            .labels
            .iter()
            .map(|label| format!("`{label}`"))
            .collect();
        let (name, labels, help) = (metric.name, labels.join(", "), metric.help);
        writeln!(table, "| `understudy_{name}` | gauge | {labels} | {help} |").unwrap();
    }
    table
}

/// Returns a file of `packaging/` as the page shows it.
fn packaged(name: &str, language: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging");
    let content = std::fs::read_to_string(folder.join(name)).unwrap();
    format!("```{language}\n{content}```\n")
}

fn checks_table() -> String {
    let states = [
        "primary",
        "standby",
        "standby_link_down",
        "promotion_cut_short",
        "fenced",
    ];
    let all = example::all();
    let mut table = format!(
        "| check | {} |\n|---|",
        states.join(" | ").replace('_', " ")
    );
    table.push_str(&"---|".repeat(states.len()));
    for (path, check) in CHECKS {
        write!(table, "\n| `{path}` |").unwrap();
        for state in states {
            let (_, status) = all.iter().find(|(name, _)| *name == state).unwrap();
            let is_well = Answer::new(check, None, status).reason.is_none();
            write!(table, " {} |", if is_well { 200 } else { 503 }).unwrap();
        }
    }
    table.push('\n');
    table
}

/// Returns `page` with `content` in place of what stands in the section `name`.
fn with_section(page: &str, name: &str, content: &str) -> String {
    let (begin, end) = (format!("<!-- {name} -->\n"), format!("<!-- /{name} -->"));
    let (before, rest) = page
        .split_once(&begin)
        .unwrap_or_else(|| panic!("no {begin}"));
    let (_, after) = rest.split_once(&end).unwrap_or_else(|| panic!("no {end}"));
    format!("{before}{begin}{content}{end}{after}")
}

#[test]
fn the_page_on_monitoring_shows_what_the_code_does() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/monitoring.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let screen = text(&example::primary(), example::NOW);
    let sections = [
        ("master", replication_page(&example::primary())),
        (
            "link down",
            replication_page(&example::primary_without_its_standby()),
        ),
        ("slave", replication_page(&example::standby())),
        ("standalone", replication_page(&example::primary_alone())),
        ("checks", checks_table()),
        (
            "answer",
            json(&Answer::new(
                Check::Standby,
                None,
                &example::standby_link_down(),
            )),
        ),
        ("metrics", metrics_table()),
        ("haproxy", packaged("haproxy.cfg", "haproxy")),
        ("screen", format!("```text\n{screen}```\n")),
    ];
    let shown = sections
        .iter()
        .fold(page.clone(), |shown, (name, content)| {
            with_section(&shown, name, content)
        });
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, &shown).unwrap();
    } else {
        assert_eq!(
            page, shown,
            "run UPDATE_DOCS=1 cargo test -p understudy-monitor"
        );
    }
}
