//! What of a running server's settings is not as replication needs it, and cannot change before a
//! restart: pure.
//!
//! Only that. A setting of the operator's own that waits for a restart is no concern of ours.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::Path;

use serde::Deserialize;

use super::settings::{covers, is_everywhere, listen_addresses};
use super::vouch;

/// So many streams and base backups at once are needed at least: a base backup takes two.
pub(super) const WAL_SENDERS_MIN: u32 = 4;

/// So many slots are needed at least.
pub(super) const SLOTS_MIN: u32 = 4;

/// Asks for what [`Present::parse`] reads; one row, one column.
pub const PRESENT_QUERY: &str = "SELECT json_object_agg(name, json_build_object('value', setting, \
     'file', sourcefile))::text FROM pg_settings WHERE name IN ('wal_level', 'max_wal_senders', \
     'max_replication_slots', 'listen_addresses', 'wal_log_hints', 'data_checksums', 'hba_file')";

/// The settings that a server has at present.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Present(BTreeMap<String, Setting>);

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct Setting {
    value: Option<String>,
    file: Option<String>,
}

/// A setting that is not as it has to be, and cannot change before a restart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Need {
    /// Its name.
    pub setting: &'static str,
    /// Its value now.
    pub present: String,
    /// What is needed.
    pub needed: String,
    /// What for.
    pub why: &'static str,
    /// Somebody has set it with `ALTER SYSTEM`, which wins over every file that we could write.
    pub is_altered: bool,
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} is `{}`, needed is `{}`: {}",
            self.setting, self.present, self.needed, self.why
        )?;
        if self.is_altered {
            write!(
                f,
                " (it was set with ALTER SYSTEM, which understudy cannot override: run `ALTER SYSTEM \
                 RESET {}` first)",
                self.setting
            )?;
        }
        Ok(())
    }
}

impl Present {
    /// Reads the answer to [`PRESENT_QUERY`].
    ///
    /// # Errors
    /// When it is something else.
    pub fn parse(text: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(text)
    }

    fn get(&self, name: &str) -> &str {
        let setting = self.0.get(name);
        setting
            .and_then(|setting| setting.value.as_deref())
            .unwrap_or_default()
    }

    /// Returns whether the server reads `pg_hba.conf` in `config_dir`, as far as it tells.
    pub fn reads_hba_in(&self, config_dir: &Path) -> bool {
        let file = Path::new(self.get("hba_file"));
        let ours = config_dir.join("pg_hba.conf");
        file.as_os_str().is_empty()
            || file == ours
            // Of a node that was made before: its daemon is gone, and with it the way to the file.
            || file.ancestors().any(|folder| folder.ends_with(vouch::FOLDER))
            || matches!((file.canonicalize(), ours.canonicalize()), (Ok(a), Ok(b)) if a == b)
    }

    /// Returns where the server reads `pg_hba.conf`.
    pub fn hba_file(&self) -> &str {
        self.get("hba_file")
    }

    /// Returns what must change before standbys can stream from the server at `ip`.
    pub fn needs(&self, ip: IpAddr, listens_everywhere: bool) -> Vec<Need> {
        let mut needs = Vec::new();
        let mut need = |setting: &'static str, needed: String, why: &'static str| {
            let file = self.0.get(setting).and_then(|it| it.file.as_deref());
            needs.push(Need {
                setting,
                present: self.get(setting).to_owned(),
                needed,
                why,
                is_altered: file.is_some_and(|file| file.ends_with("postgresql.auto.conf")),
            });
        };
        // What the server does not tell is not complained about.
        if self.get("wal_level") == "minimal" {
            let why = "with `minimal` the write-ahead log does not hold what a standby needs";
            need("wal_level", "replica".to_owned(), why);
        }
        let floors = [
            (
                "max_wal_senders",
                WAL_SENDERS_MIN,
                "a standby streams with one, and a base backup takes two",
            ),
            (
                "max_replication_slots",
                SLOTS_MIN,
                "each standby has a slot, which keeps the log that it still has to get",
            ),
        ];
        for (setting, least, why) in floors {
            if self
                .get(setting)
                .parse::<u32>()
                .is_ok_and(|value| value < least)
            {
                need(setting, format!("{least} or more"), why);
            }
        }
        let listens = self
            .0
            .get("listen_addresses")
            .and_then(|it| it.value.as_deref());
        if listens_everywhere && listens.is_some_and(|listens| !is_everywhere(listens)) {
            let why = "clients connect to the address of `[address]`, which comes and goes";
            need("listen_addresses", "*".to_owned(), why);
        } else if let Some(listens) = listens
            && !covers(listens, ip)
        {
            let why = "standbys connect to the node's address";
            need("listen_addresses", listen_addresses(Some(listens), ip), why);
        }
        // Checksums tell pg_rewind the same.
        if self.get("wal_log_hints") == "off" && self.get("data_checksums") == "off" {
            let why = "without it, or data checksums, a former primary cannot be rewound";
            need("wal_log_hints", "on".to_owned(), why);
        }
        needs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn present(settings: &[(&str, &str)]) -> Present {
        let usual = [
            ("wal_level", "replica"),
            ("max_wal_senders", "10"),
            ("max_replication_slots", "10"),
            ("listen_addresses", "*"),
            ("wal_log_hints", "off"),
            ("data_checksums", "on"),
        ];
        let setting = |(name, value): &(&str, &str)| {
            let setting = Setting {
                value: Some((*value).to_owned()),
                file: None,
            };
            ((*name).to_owned(), setting)
        };
        Present(usual.iter().chain(settings).map(setting).collect())
    }

    fn told(settings: &[(&str, &str)]) -> Vec<String> {
        let needs = present(settings).needs("10.0.0.1".parse().unwrap(), false);
        needs.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_server_as_it_should_be_needs_nothing() {
        assert_eq!(told(&[]), Vec::<String>::new());
        assert_eq!(told(&[("wal_level", "logical")]), Vec::<String>::new());
        let hints = [("data_checksums", "off"), ("wal_log_hints", "on")];
        assert_eq!(told(&hints), Vec::<String>::new());
        // What cannot be seen is not complained about.
        let unknown = Present::parse("{}").unwrap();
        assert_eq!(unknown.needs("10.0.0.1".parse().unwrap(), true), []);
    }

    #[test]
    fn what_keeps_a_standby_away_is_told_with_its_reason() {
        let wrong = [
            ("wal_level", "minimal"),
            ("max_wal_senders", "0"),
            ("max_replication_slots", "3"),
            ("listen_addresses", "localhost"),
            ("data_checksums", "off"),
        ];
        insta::assert_snapshot!(told(&wrong).join("\n"), @"
        wal_level is `minimal`, needed is `replica`: with `minimal` the write-ahead log does not hold what a standby needs
        max_wal_senders is `0`, needed is `4 or more`: a standby streams with one, and a base backup takes two
        max_replication_slots is `3`, needed is `4 or more`: each standby has a slot, which keeps the log that it still has to get
        listen_addresses is `localhost`, needed is `localhost,10.0.0.1`: standbys connect to the node's address
        wal_log_hints is `off`, needed is `on`: without it, or data checksums, a former primary cannot be rewound
        ");
    }

    #[test]
    fn an_address_that_moves_is_listened_to_by_listening_everywhere() {
        let ip = "10.0.0.1".parse().unwrap();
        let listens = present(&[("listen_addresses", "localhost, 10.0.0.1")]);
        assert_eq!(listens.needs(ip, false), []);
        assert_eq!(listens.needs(ip, true)[0].needed, "*");
        assert_eq!(present(&[]).needs(ip, true), []);
    }

    #[test]
    fn what_was_set_with_alter_system_must_be_reset() {
        let present = Present::parse(
            r#"{"wal_level":{"value":"minimal","file":"/pg/postgresql.auto.conf"}}"#,
        )
        .unwrap();
        let needs = present.needs("10.0.0.1".parse().unwrap(), false);
        assert!(needs[0].to_string().ends_with("RESET wal_level` first)"));
    }
}
