//! The settings that Understudy needs of Postgres, as pure text.
//!
//! They live in a file of their own, `understudy.conf`, which the last line of `postgresql.conf`
//! includes; and in marked blocks at the top of `pg_hba.conf` and `pg_ident.conf`. A base backup
//! copies all of them to the standby, so each node writes its own again before every start.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use understudy_config::{NodeName, PostgresDurability};

use super::{Cluster, MAINTENANCE_DATABASE, REPLICATION_ROLE, ROLE, slot_name};
use crate::trust;

const BEGIN: &str = "# understudy begin: this block is written by understudy";
const END: &str = "# understudy end";

/// The primary that a standby streams from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    /// The primary.
    pub primary: NodeName,
    /// Where its Postgres listens.
    pub address: SocketAddr,
    /// The standby itself.
    pub me: NodeName,
}

/// What a server's settings are for.
#[derive(Clone, Copy, Debug)]
pub enum Duty<'a> {
    /// A primary, whose commits wait for one of these standbys; for nobody if there are none.
    Primary(&'a [NodeName]),
    /// A standby.
    Standby(&'a Upstream),
}

impl Upstream {
    /// Returns the connection string for a stream from the primary, proved by certificates on both
    /// sides.
    pub fn conninfo(&self, tls: &Path) -> String {
        self.conninfo_as(self.me.as_str(), tls)
    }

    /// Returns the connection string for a base backup. It has another name: no commit may wait for half a
    /// copy.
    pub fn backup_conninfo(&self, tls: &Path) -> String {
        self.conninfo_as(&format!("understudy-seed-{}", self.me), tls)
    }

    /// Returns the connection string for `pg_rewind`, which reads the primary's files through SQL.
    pub fn rewind_conninfo(&self, tls: &Path) -> String {
        let name = format!("understudy-rewind-{}", self.me);
        format!(
            "{} dbname={MAINTENANCE_DATABASE}",
            self.conninfo_as(&name, tls)
        )
    }

    fn conninfo_as(&self, name: &str, tls: &Path) -> String {
        let file = |name| conninfo_quoted(&tls.join(name).display().to_string());
        // `host` is the name that the certificate must carry, `hostaddr` where to connect.
        format!(
            "host={host} hostaddr={ip} port={port} user={REPLICATION_ROLE} \
             application_name={name} sslmode=verify-full sslcert={cert} sslkey={key} \
             sslrootcert={ca} sslcrl='' connect_timeout=5 keepalives_idle=5 \
             keepalives_interval=2 keepalives_count=3 tcp_user_timeout=10000 gssencmode=disable",
            host = trust::server_name(&self.primary),
            ip = self.address.ip(),
            port = self.address.port(),
            cert = file(trust::NODE_CERTIFICATE),
            key = file(trust::NODE_KEY),
            ca = file(trust::CA_CERTIFICATE),
        )
    }
}

impl Cluster {
    /// Returns the content of `understudy.conf`.
    pub(super) fn conf(&self, operators_listen: Option<&str>, duty: Duty<'_>) -> String {
        let tls = self.tls_dir();
        let mut lines = vec![
            "# Written by understudy before every start; changes here are lost.".to_owned(),
            setting(
                "listen_addresses",
                &listen_addresses(operators_listen, self.ip),
            ),
            format!("port = {}", self.port),
            setting(
                "unix_socket_directories",
                &self.socket_dir.display().to_string(),
            ),
            "ssl = on".to_owned(),
            setting(
                "ssl_cert_file",
                &tls.join(trust::NODE_CERTIFICATE).display().to_string(),
            ),
            setting(
                "ssl_key_file",
                &tls.join(trust::NODE_KEY).display().to_string(),
            ),
            setting(
                "ssl_ca_file",
                &tls.join(trust::CA_CERTIFICATE).display().to_string(),
            ),
            "wal_level = replica".to_owned(),
            // pg_rewind needs it, from before the day on which it is needed.
            "wal_log_hints = on".to_owned(),
            "hot_standby = on".to_owned(),
            // An outage of a standby costs at most this much disk.
            format!(
                "max_slot_wal_keep_size = '{}MB'",
                self.slot_keep_bytes.div_ceil(1 << 20)
            ),
            "wal_sender_timeout = '10s'".to_owned(),
            "wal_receiver_timeout = '10s'".to_owned(),
            // What tells the primary that the standby is still there.
            "wal_receiver_status_interval = '1s'".to_owned(),
            "wal_retrieve_retry_interval = '1s'".to_owned(),
        ];
        match duty {
            Duty::Primary(waits_for) => lines.push(setting(WAITS_FOR, &any_of(waits_for))),
            Duty::Standby(upstream) => {
                lines.push(setting("primary_conninfo", &upstream.conninfo(&tls)));
                lines.push(setting("primary_slot_name", &slot_name(&upstream.me)));
                // It travels with a base backup, and a promoted standby would wait for its primary.
                lines.push(setting(WAITS_FOR, ""));
            }
        }
        if matches!(self.durability, PostgresDurability::Sync { .. }) {
            // A commit that waits for less than a standby's disk is not synchronous.
            lines.push("synchronous_commit = on".to_owned());
        }
        lines.join("\n") + "\n"
    }
}

/// The setting that has commits wait.
const WAITS_FOR: &str = "synchronous_standby_names";

/// Returns the value of `synchronous_standby_names` for a commit that waits for any one of the nodes.
pub fn any_of(nodes: &[NodeName]) -> String {
    if nodes.is_empty() {
        return String::new();
    }
    let names: Vec<String> = nodes.iter().map(|node| format!("\"{node}\"")).collect();
    format!("ANY 1 ({})", names.join(", "))
}

/// Returns whether our settings have commits wait for somebody.
pub(super) fn waits(conf: &str) -> bool {
    let empty = setting(WAITS_FOR, "");
    conf.lines()
        .any(|line| line.starts_with(WAITS_FOR) && line != empty)
}

fn setting(name: &str, value: &str) -> String {
    format!("{name} = '{}'", value.replace('\'', "''"))
}

fn conninfo_quoted(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
}

/// Adds the node's own address to what the operator's `postgresql.conf` listens on.
fn listen_addresses(operators: Option<&str>, ip: IpAddr) -> String {
    let ip = ip.to_string();
    let mut addresses: Vec<&str> = operators
        .unwrap_or("localhost")
        .split(',')
        .map(str::trim)
        .filter(|address| !address.is_empty())
        .collect();
    if !addresses
        .iter()
        .any(|address| ["*", "0.0.0.0", "::", &ip].contains(address))
    {
        addresses.push(&ip);
    }
    addresses.join(",")
}

/// Returns the last value that `conf` gives to `listen_addresses`, if it gives one.
pub(super) fn operators_listen(conf: &str) -> Option<String> {
    conf.lines()
        .filter_map(|line| {
            let rest = line
                .trim_start()
                .strip_prefix("listen_addresses")?
                .trim_start();
            let value = rest.strip_prefix('=').unwrap_or(rest).trim_start();
            let quoted = value.strip_prefix('\'')?;
            Some(quoted.split('\'').next().unwrap_or_default().to_owned())
        })
        .next_back()
}

/// Returns `conf` with the line that includes our settings, as its last.
pub(super) fn with_include(conf: &str) -> String {
    let include = "include_if_exists = 'understudy.conf'";
    let mut lines: Vec<&str> = conf.lines().filter(|line| line.trim() != include).collect();
    lines.push(include);
    lines.join("\n") + "\n"
}

/// Returns the block for `pg_hba.conf`.
pub(super) fn hba() -> String {
    format!(
        "local   all          {ROLE}              peer map=understudy_local\n\
         hostssl replication  {REPLICATION_ROLE}  all  cert map=understudy_peer\n\
         hostssl {MAINTENANCE_DATABASE}     {REPLICATION_ROLE}  all  cert map=understudy_peer\n"
    )
}

/// Returns the block for `pg_ident.conf`: `os_user` is whom the daemon runs as, `peers` whose
/// certificates may stream.
pub(super) fn ident<'a>(os_user: &str, peers: impl IntoIterator<Item = &'a NodeName>) -> String {
    let mut block = format!("understudy_local  {os_user}  {ROLE}\n");
    for peer in peers {
        block += &format!("understudy_peer   {peer}  {REPLICATION_ROLE}\n");
    }
    block
}

/// Returns `text` with our block at its top, in place of one that is there.
///
/// At the top, because the first line of `pg_hba.conf` that matches decides.
pub fn with_block(text: &str, block: &str) -> String {
    format!("{BEGIN}\n{block}{END}\n{}", without_block(text))
}

/// Returns `text` without our block. A block whose end is missing ends with its last line, so that a
/// hand that deleted the end does not cost the operator's lines: then only the begin is dropped.
pub fn without_block(text: &str) -> String {
    let Some(begin) = text.find(BEGIN) else {
        return text.to_owned();
    };
    let (before, rest) = text.split_at(begin);
    let after = match rest.find(END) {
        Some(end) => rest
            .get(end + END.len()..)
            .unwrap_or_default()
            .trim_start_matches('\n'),
        None => rest
            .get(BEGIN.len()..)
            .unwrap_or_default()
            .trim_start_matches('\n'),
    };
    format!("{before}{after}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nodes_address_is_added_to_the_operators() {
        let ip = "10.0.0.1".parse().unwrap();
        let table = [
            (None, "localhost,10.0.0.1"),
            (Some("*"), "*"),
            (Some(""), "10.0.0.1"),
            (Some("10.0.0.1, 10.9.9.9"), "10.0.0.1,10.9.9.9"),
        ];
        for (operators, expected) in table {
            assert_eq!(listen_addresses(operators, ip), expected, "{operators:?}");
        }
    }

    #[test]
    fn commits_wait_for_any_one_of_the_standbys() {
        let nodes = ["b", "db-2"].map(|name| name.parse().unwrap());
        assert_eq!(any_of(&nodes), "ANY 1 (\"b\", \"db-2\")");
        let conf = |nodes| format!("port = 1\n{}\n", setting(WAITS_FOR, &any_of(nodes)));
        assert!(waits(&conf(&nodes)));
        assert!(!waits(&conf(&[])));
        assert!(!waits("port = 1\n"));
    }

    #[test]
    fn the_operators_last_word_on_listening_is_found() {
        let conf = "#listen_addresses = 'x'\nlisten_addresses = 'localhost' # old\n  \
            listen_addresses='*'\n";
        assert_eq!(operators_listen(conf).as_deref(), Some("*"));
        assert_eq!(operators_listen("#listen_addresses = 'x'\n"), None);
    }

    #[test]
    fn a_block_is_replaced_and_the_operators_lines_are_kept() {
        let operators = "local all all peer\nhost all all 10.0.0.0/8 scram-sha-256\n";
        let once = with_block(operators, "first\n");
        let twice = with_block(&once, "second\n");
        assert_eq!(twice, format!("{BEGIN}\nsecond\n{END}\n{operators}"));
        assert_eq!(without_block(&twice), operators);
        let torn = once.replace(END, "");
        assert!(without_block(&torn).contains("local all all peer"));
    }

    #[test]
    fn the_include_stays_the_last_line() {
        let once = with_include("port = 5433\n");
        assert_eq!(once, "port = 5433\ninclude_if_exists = 'understudy.conf'\n");
        assert_eq!(with_include(&once), once);
    }
}
