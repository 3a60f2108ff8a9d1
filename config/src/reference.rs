//! The reference of every key, made of the declarations that read them.

use std::fmt::Write;

use crate::raw;
use crate::section::{Key, Presence, Section};

/// The sections of `understudy.toml` after the file itself.
pub(crate) const CLUSTER_SECTIONS: &[Section] = &[
    raw::Cluster::SECTION,
    raw::Node::SECTION,
    raw::Postgres::SECTION,
    raw::Files::SECTION,
    raw::Kv::SECTION,
    raw::Settings::SECTION,
    raw::Index::SECTION,
    raw::Fence::SECTION,
    raw::Service::SECTION,
    raw::Job::SECTION,
    raw::Hooks::SECTION,
    raw::Address::SECTION,
    raw::Check::SECTION,
    raw::Drill::SECTION,
];

const INTRODUCTION: &str = "\
# Configuration

<!-- Generated: UPDATE_DOCS=1 cargo test -p understudy-config the_docs -->

Two files make a node. Every mistake in them is reported at once, with file, line, column and what was
expected; `understudy config check` does just that.

What a text means:

- **name**: 1 to 63 of the characters `a-z`, `0-9`, `_` and `-`, of which the first is a letter or a
  digit.
- **duration**: a whole number and `ms`, `s`, `m`, `h` or `d`.
- **size**: a whole number and `kB`, `MB`, `GB` or `TB`, in powers of 1024.
- **share**: a whole number from 0 to 100 and `%`.
- **absolute path**: starts with `/`, has no `..`.
- **command**: a list of strings, the program and its arguments. No shell reads it.
- **pattern**: `*`, `?`, `[a-z]`, `{a,b}`, `**`.
- **schedule**: `minute hour day month weekday` as in Unix, where 0 and 7 are Sunday; or `second minute
  hour day month weekday` and perhaps a year, as in Quartz, where 1 is Sunday; or `@hourly`, `@daily`,
  `@weekly`, `@monthly`, `@yearly`. In UTC. A Unix line may restrict the day of the month or the day of
  the week, not both.
";

/// Returns the reference of both files.
pub fn markdown() -> String {
    let mut page = INTRODUCTION.to_owned();
    page.push_str("\n## understudy.toml\n\nThe cluster: identical on every node. ");
    page.push_str("Every section but `[cluster]` and `[[node]]` may be absent. ");
    page.push_str("`[witness]` is not available in this version.\n");
    for section in CLUSTER_SECTIONS {
        append_section(&mut page, section);
    }
    page.push_str("\n## node.toml\n");
    append_section(&mut page, &raw::NodeFile::SECTION);
    append_section(&mut page, &raw::Monitor::SECTION);
    append_section(&mut page, &raw::KvLocal::SECTION);
    append_section(&mut page, &raw::AddressLocal::SECTION);
    page
}

fn append_section(page: &mut String, section: &Section) {
    if !section.heading.is_empty() {
        append(page, format_args!("\n### `{}`\n", section.heading));
    }
    append(page, format_args!("\n{}\n\n", one_line(section.about)));
    page.push_str("| key | holds | when absent | meaning | example |\n|---|---|---|---|---|\n");
    for key in section.keys.iter().filter(|key| key.kind != "table") {
        append(
            page,
            format_args!(
                "| `{}` | {} | {} | {} | `{}` |\n",
                key.name,
                key.kind,
                absence(key),
                one_line(key.about),
                key.example.replace('|', "\\|"),
            ),
        );
    }
}

fn absence(key: &Key) -> String {
    match key.presence {
        Presence::Required => "**required**".to_owned(),
        Presence::Optional | Presence::Unavailable => "none".to_owned(),
        Presence::Default(value) => format!("`{value}`"),
    }
}

fn one_line(about: &str) -> String {
    let words: Vec<&str> = about.split_whitespace().collect();
    words.join(" ").replace('|', "\\|")
}

fn append(page: &mut String, text: std::fmt::Arguments<'_>) {
    page.write_fmt(text)
        .expect("a string takes whatever is written");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problem::Findings;
    use crate::raw::read;

    #[test]
    fn the_docs_are_this_reference() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/configuration.md");
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::write(file, markdown()).unwrap();
        }
        let written = std::fs::read_to_string(file).unwrap_or_default();
        assert!(
            written == markdown(),
            "docs/configuration.md is out of date; run UPDATE_DOCS=1 cargo test -p understudy-config"
        );
    }

    /// Puts every key of `section` into a table, with its example or its default.
    fn table(section: &Section, value: fn(&Key) -> Option<&'static str>) -> String {
        let lines = section.keys.iter().filter(|key| key.kind != "table");
        lines
            .filter_map(|key| Some(format!("{} = {}\n", key.name, value(key)?)))
            .collect()
    }

    #[test]
    fn every_example_and_every_default_has_the_type_of_its_key() {
        let example = |key: &Key| Some(key.example);
        let default = |key: &Key| match key.presence {
            Presence::Required | Presence::Optional | Presence::Unavailable => Some(key.example),
            Presence::Default(value) => Some(value),
        };
        let mut findings = Findings::default();
        for value in [example, default] {
            read::<raw::Cluster>(0, &table(&raw::Cluster::SECTION, value), &mut findings).unwrap();
            read::<raw::Node>(0, &table(&raw::Node::SECTION, value), &mut findings).unwrap();
            read::<raw::Postgres>(0, &table(&raw::Postgres::SECTION, value), &mut findings)
                .unwrap();
            read::<raw::Files>(0, &table(&raw::Files::SECTION, value), &mut findings).unwrap();
            read::<raw::Kv>(0, &table(&raw::Kv::SECTION, value), &mut findings).unwrap();
            read::<raw::KvLocal>(0, &table(&raw::KvLocal::SECTION, value), &mut findings).unwrap();
            read::<raw::Settings>(0, &table(&raw::Settings::SECTION, value), &mut findings)
                .unwrap();
            read::<raw::Index>(0, &table(&raw::Index::SECTION, value), &mut findings).unwrap();
            read::<raw::Service>(0, &table(&raw::Service::SECTION, value), &mut findings).unwrap();
            read::<raw::Check>(0, &table(&raw::Check::SECTION, value), &mut findings).unwrap();
            read::<raw::Address>(0, &table(&raw::Address::SECTION, value), &mut findings).unwrap();
            let local = table(&raw::AddressLocal::SECTION, value);
            read::<raw::AddressLocal>(0, &local, &mut findings).unwrap();
            read::<raw::Job>(0, &table(&raw::Job::SECTION, value), &mut findings).unwrap();
            read::<raw::Hooks>(0, &table(&raw::Hooks::SECTION, value), &mut findings).unwrap();
            read::<raw::Drill>(0, &table(&raw::Drill::SECTION, value), &mut findings).unwrap();
            read::<raw::NodeFile>(0, &table(&raw::NodeFile::SECTION, value), &mut findings)
                .unwrap();
            read::<raw::Monitor>(0, &table(&raw::Monitor::SECTION, value), &mut findings).unwrap();
        }
        assert_eq!(findings.into_problems(Vec::new()), None);
    }
}
