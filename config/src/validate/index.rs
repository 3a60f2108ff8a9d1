//! The sections `[[index]]`, each of which is what its engine makes of it.

use super::name;
use super::sections::{command, word};
use crate::problem::{Findings, Mistake, Place, Placed};
use crate::{Engine, Index, StoreName, duration, raw};

/// Validates an `[[index]]`: its engine decides which of the other keys it has.
pub(super) fn index(
    raw: &Placed<raw::Index>,
    has_postgres: bool,
    findings: &mut Findings,
) -> Option<Index> {
    let (raw, section) = (&raw.value, &raw.place);
    let name = raw
        .name
        .as_ref()
        .and_then(|it| findings.check(it, name::<StoreName>));
    let timeout = raw
        .timeout
        .as_ref()
        .and_then(|it| findings.check(it, duration::parse));
    let engine = raw
        .engine
        .as_ref()
        .and_then(|engine| match engine.value.as_str() {
            "tantivy" => tantivy(raw, engine, section, has_postgres, findings),
            "command" => commanded(raw, engine, section, findings),
            "elasticsearch" => {
                let what = "engine `elasticsearch` is not available in this version";
                findings.report(&engine.place, what, "\"tantivy\" or \"command\"");
                None
            }
            other => {
                let what = format!("`{other}` is not an engine");
                findings
                    .report(&engine.place, what, "\"tantivy\" or \"command\"")
                    .suggesting(other, ["tantivy", "command"]);
                None
            }
        });
    Some(Index {
        name: name?,
        engine: engine?,
        timeout: timeout?,
    })
}

fn tantivy(
    raw: &raw::Index,
    engine: &Placed<String>,
    section: &Place,
    has_postgres: bool,
    findings: &mut Findings,
) -> Option<Engine> {
    if let Some(command) = &raw.command {
        findings
            .report(
                &command.place,
                "engine `tantivy` takes no `command`",
                "`source`, a query",
            )
            .related(&engine.place, "the engine is chosen here");
    }
    if !has_postgres {
        let what = "engine `tantivy` reads from Postgres, and there is no section `[postgres]`";
        findings.report(
            &engine.place,
            what,
            "a section `[postgres]`, or engine \"command\"",
        );
    }
    let database = raw.database.as_ref().map(|it| findings.check(it, word));
    let source = raw.source.as_ref().map(|it| findings.check(it, query));
    if source.is_none() {
        findings
            .report(
                section,
                "an index of engine `tantivy` lacks the key `source`",
                "a query",
            )
            .related(&engine.place, "the engine is chosen here");
    }
    Some(Engine::Tantivy {
        source: source??,
        database: super::whole(database)?,
    })
}

fn commanded(
    raw: &raw::Index,
    engine: &Placed<String>,
    section: &Place,
    findings: &mut Findings,
) -> Option<Engine> {
    for (key, written) in [("source", &raw.source), ("database", &raw.database)] {
        if let Some(written) = written {
            let what = format!("engine `command` takes no `{key}`");
            findings
                .report(
                    &written.place,
                    what,
                    "`command`, a program and its arguments",
                )
                .related(&engine.place, "the engine is chosen here");
        }
    }
    if raw.command.is_none() {
        let what = "an index of engine `command` lacks the key `command`";
        findings
            .report(section, what, "a program and its arguments")
            .related(&engine.place, "the engine is chosen here");
    }
    let command = raw.command.as_ref().and_then(|it| command(it, findings));
    Some(Engine::Command { command: command? })
}

fn query(text: &str) -> Result<String, Mistake> {
    if text.trim().is_empty() || text.contains('\0') {
        return Err(Mistake::new(
            "the query is empty",
            "a query, such as \"SELECT id, title FROM article\"",
        ));
    }
    Ok(text.to_owned())
}
