//! The sections `[[index]]`, each of which is what its engine makes of it.

use super::sections::{command, word};
use super::{name, paths};
use crate::problem::{Findings, Mistake, Place, Placed};
use crate::{Elasticsearch, Engine, Index, Rows, StoreName, Warm, duration, raw};

const ENGINES: [&str; 3] = ["tantivy", "elasticsearch", "command"];

/// Elasticsearch's own port.
const ELASTICSEARCH_PORT: u16 = 9200;

/// The longest name that Elasticsearch gives an index, less what we add to it.
const ALIAS_BYTES_MAX: usize = 200;

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
    let engine = raw.engine.as_ref().and_then(|engine| {
        let chosen = Chosen {
            raw,
            engine,
            section,
            has_postgres,
        };
        match engine.value.as_str() {
            "tantivy" => chosen.tantivy(findings),
            "elasticsearch" => chosen.elasticsearch(name.as_ref(), findings),
            "command" => chosen.command(findings),
            other => {
                let what = format!("`{other}` is not an engine");
                let expected = "\"tantivy\", \"elasticsearch\" or \"command\"";
                findings
                    .report(&engine.place, what, expected)
                    .suggesting(other, ENGINES);
                None
            }
        }
    });
    Some(Index {
        name: name?,
        engine: engine?,
        timeout: timeout?,
    })
}

/// A section whose engine is known.
struct Chosen<'a> {
    raw: &'a raw::Index,
    engine: &'a Placed<String>,
    section: &'a Place,
    has_postgres: bool,
}

impl Chosen<'_> {
    fn tantivy(&self, findings: &mut Findings) -> Option<Engine> {
        self.has_no_command(findings);
        self.is_not_elsewhere(findings);
        Some(Engine::Tantivy {
            rows: self.rows(findings)?,
        })
    }

    fn elasticsearch(&self, name: Option<&StoreName>, findings: &mut Findings) -> Option<Engine> {
        self.has_no_command(findings);
        let rows = self.rows(findings);
        let place = self.place(name, findings);
        Some(Engine::Elasticsearch {
            rows: rows?,
            place: place?,
        })
    }

    fn command(&self, findings: &mut Findings) -> Option<Engine> {
        let raw = self.raw;
        let keys = [
            ("source", &raw.source),
            ("database", &raw.database),
            ("watermark", &raw.watermark),
            ("deleted", &raw.deleted),
        ];
        for (key, written) in keys {
            self.takes_no(
                key,
                written.as_ref().map(|it| &it.place),
                "`command`, a program and its arguments",
                findings,
            );
        }
        self.is_not_elsewhere(findings);
        if raw.command.is_none() {
            self.lacks("command", "a program and its arguments", findings);
        }
        let command = raw.command.as_ref().and_then(|it| command(it, findings));
        Some(Engine::Command { command: command? })
    }

    fn rows(&self, findings: &mut Findings) -> Option<Rows> {
        if !self.has_postgres {
            let what = format!(
                "engine `{}` reads from Postgres, and there is no section `[postgres]`",
                self.engine.value
            );
            let expected = "a section `[postgres]`, or engine \"command\"";
            findings.report(&self.engine.place, what, expected);
        }
        let raw = self.raw;
        let database = raw.database.as_ref().map(|it| findings.check(it, word));
        let source = raw.source.as_ref().map(|it| findings.check(it, query));
        if source.is_none() {
            self.lacks("source", "a query", findings);
        }
        let warm = self.warm(findings);
        Some(Rows {
            query: source??,
            database: super::whole(database)?,
            warm: super::whole(warm)?,
        })
    }

    fn warm(&self, findings: &mut Findings) -> Option<Option<Warm>> {
        let raw = self.raw;
        let Some(watermark) = &raw.watermark else {
            let keys = [
                ("deleted", &raw.deleted),
                ("refresh", &raw.refresh),
                ("overlap", &raw.overlap),
                ("sweep", &raw.sweep),
            ];
            for (key, written) in keys {
                // A default has the place of the section.
                if let Some(written) = written.as_ref().filter(|it| it.place != *self.section) {
                    let what = format!("`{key}` without a `watermark`, which it belongs to");
                    let expected = "`watermark`, a column that grows with every change";
                    findings.report(&written.place, what, expected);
                }
            }
            return None;
        };
        let watermark = findings.check(watermark, column);
        let deleted = raw.deleted.as_ref().map(|it| findings.check(it, column));
        let time = |written: &Option<Placed<String>>, findings: &mut Findings| {
            let written = written.as_ref();
            written.and_then(|it| findings.check(it, duration::parse))
        };
        let refresh = time(&raw.refresh, findings);
        let overlap = time(&raw.overlap, findings);
        let sweep = raw.sweep.as_ref();
        if let (Some(written), None) = (sweep.filter(|it| it.value == "never"), &raw.deleted) {
            let what = "`sweep` is `never`, and without `deleted` nothing else finds deletions";
            findings.report(&written.place, what, "a duration, or the column `deleted`");
        }
        let sweep = sweep.and_then(|it| findings.check(it, duration::parse_or_never));
        let warm = || {
            Some(Warm {
                watermark: watermark?,
                deleted: super::whole(deleted)?,
                refresh: refresh?,
                overlap: overlap?,
                sweep: sweep?,
            })
        };
        Some(warm())
    }

    fn place(&self, name: Option<&StoreName>, findings: &mut Findings) -> Option<Elasticsearch> {
        let raw = self.raw;
        if raw.url.is_none() {
            let expected = "where Elasticsearch is, such as \"http://10.0.0.5:9200\"";
            self.lacks("url", expected, findings);
        }
        let url = raw.url.as_ref().and_then(|it| findings.check(it, url));
        let alias = match &raw.alias {
            Some(written) => findings.check(written, alias),
            None => name.map(ToString::to_string),
        };
        let password_file = raw.password_file.as_ref();
        let password_file = password_file.map(|it| findings.check(it, paths::absolute));
        let ca_file = raw.ca_file.as_ref();
        let ca_file = ca_file.map(|it| findings.check(it, paths::absolute));
        let user = raw.user.as_ref().map(|it| findings.check(it, word));
        let lonely = match (&raw.user, &raw.password_file) {
            (Some(user), None) => Some((user, "user", "password_file")),
            (None, Some(file)) => Some((file, "password_file", "user")),
            (Some(_), Some(_)) | (None, None) => None,
        };
        if let Some((written, key, other)) = lonely {
            let what = format!("`{key}` without `{other}`");
            findings.report(&written.place, what, "both, or none of them");
            return None;
        }
        if let (Some((false, ..)), Some(written)) = (&url, &raw.ca_file) {
            let what = "`ca_file`, and the `url` is not reached over TLS";
            findings.report(&written.place, what, "a `url` that begins with https://");
        }
        let (is_tls, host, port) = url?;
        Some(Elasticsearch {
            is_tls,
            host,
            port,
            alias: alias?,
            login: super::whole(user)?.zip(super::whole(password_file)?),
            ca_file: super::whole(ca_file)?,
            is_shared: raw.shared.as_ref()?.value,
        })
    }

    fn has_no_command(&self, findings: &mut Findings) {
        let place = self.raw.command.as_ref().map(|it| &it.place);
        self.takes_no("command", place, "`source`, a query", findings);
    }

    /// Reports the keys that only Elasticsearch has.
    fn is_not_elsewhere(&self, findings: &mut Findings) {
        let raw = self.raw;
        let texts = [
            ("url", &raw.url),
            ("alias", &raw.alias),
            ("user", &raw.user),
            ("password_file", &raw.password_file),
            ("ca_file", &raw.ca_file),
        ];
        for (key, written) in texts {
            let place = written.as_ref().map(|it| &it.place);
            self.takes_no(key, place, "engine \"elasticsearch\"", findings);
        }
        let shared = raw.shared.as_ref().map(|it| &it.place);
        let shared = shared.filter(|place| *place != self.section);
        self.takes_no("shared", shared, "engine \"elasticsearch\"", findings);
    }

    fn takes_no(&self, key: &str, place: Option<&Place>, expected: &str, findings: &mut Findings) {
        if let Some(place) = place {
            let what = format!("engine `{}` takes no `{key}`", self.engine.value);
            findings
                .report(place, what, expected)
                .related(&self.engine.place, "the engine is chosen here");
        }
    }

    fn lacks(&self, key: &str, expected: &str, findings: &mut Findings) {
        let what = format!(
            "an index of engine `{}` lacks the key `{key}`",
            self.engine.value
        );
        findings
            .report(self.section, what, expected)
            .related(&self.engine.place, "the engine is chosen here");
    }
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

fn column(text: &str) -> Result<String, Mistake> {
    let is_plain = text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    if is_plain {
        return Ok(text.to_owned());
    }
    Err(Mistake::new(
        format!("`{text}` is not the name of a column"),
        "letters, digits and `_`, beginning with a letter, as `source` names it",
    ))
}

/// Reads the name of an alias: what Elasticsearch takes for an index, and no more.
fn alias(text: &str) -> Result<String, Mistake> {
    let is_plain = text.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        && text.len() <= ALIAS_BYTES_MAX
        && text
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_' | '.'));
    if is_plain {
        return Ok(text.to_owned());
    }
    Err(Mistake::new(
        format!("`{text}` is not an alias that Elasticsearch takes"),
        "at most 200 small letters, digits, `-`, `_` and `.`, beginning with a letter or a digit",
    ))
}

/// Reads where an HTTP server is: whether it is reached over TLS, its host and its port.
fn url(text: &str) -> Result<(bool, String, u16), Mistake> {
    let mistake = || {
        Mistake::new(
            format!("`{text}` is not the URL of an Elasticsearch"),
            "http:// or https://, a host and a port, such as \"http://10.0.0.5:9200\"",
        )
    };
    let (is_tls, rest) = match text.split_once("://") {
        Some(("http", rest)) => (false, rest),
        Some(("https", rest)) => (true, rest),
        Some(_) | None => return Err(mistake()),
    };
    let authority = rest.strip_suffix('/').unwrap_or(rest);
    // The brackets of an IPv6 address hold colons of their own.
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, port.parse().map_err(|_| mistake())?),
        Some(_) | None => (authority, ELASTICSEARCH_PORT),
    };
    let bare = host
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    let is_host = match bare {
        Some(bare) => bare.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            !host.is_empty()
                && host
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'))
        }
    };
    if !is_host || port == 0 {
        return Err(mistake());
    }
    Ok((is_tls, bare.unwrap_or(host).to_owned(), port))
}
