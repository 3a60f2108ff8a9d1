//! The settings that Understudy needs of Postgres, as pure text.
//!
//! They live in a file of their own, `understudy.conf`, which the last line of `postgresql.conf`
//! includes; and in marked blocks at the top of `pg_hba.conf` and `pg_ident.conf`. A base backup
//! copies all of them to the standby, if they are in the data directory, so each node writes its own again
//! before every start.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use serde::{Deserialize, Serialize};
use understudy_config::{NodeName, PostgresDurability};

use super::conf_file::{OURS, OperatorsConf};
use super::requirements::{SLOTS_MIN, WAL_SENDERS_MIN};
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

/// The settings of which a standby needs as much as its primary has: with less its server does not start,
/// or stops replaying.
pub const MINIMUM_SETTINGS: [&str; 5] = [
    "max_connections",
    "max_locks_per_transaction",
    "max_prepared_transactions",
    "max_wal_senders",
    "max_worker_processes",
];

/// How much a primary has of each of [`MINIMUM_SETTINGS`], as far as it is known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "BTreeMap<String, u32>")]
pub struct Minimums(BTreeMap<String, u32>);

impl From<BTreeMap<String, u32>> for Minimums {
    /// What is none of [`MINIMUM_SETTINGS`] is left out: it comes from a peer, and goes into a file.
    fn from(mut values: BTreeMap<String, u32>) -> Self {
        values.retain(|name, _| MINIMUM_SETTINGS.contains(&name.as_str()));
        Self(values)
    }
}

impl Minimums {
    /// Reads them as a JSON object of numbers.
    ///
    /// # Errors
    /// When they are something else.
    pub fn parse(text: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(text)
    }

    /// Returns the greater of each.
    #[must_use]
    pub(super) fn max(mut self, other: &Self) -> Self {
        for (name, value) in &other.0 {
            let present = self.0.entry(name.clone()).or_default();
            *present = (*present).max(*value);
        }
        self
    }

    /// Returns whether nothing is known.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// So much log is kept at any time, unless the operator says otherwise or a slot may keep less.
const WAL_KEEP_BYTES: u64 = 512 << 20;

/// What our settings depend on, beside the configuration of the node.
#[derive(Clone, Debug, Default)]
pub(super) struct Circumstances {
    /// What the operator has written.
    pub(super) operators: OperatorsConf,
    /// The folders among it for Unix sockets, as far as they are there: a server does not start with one
    /// that is not, and a standby may have been copied from a machine that has it.
    pub(super) socket_dirs: Vec<String>,
    /// The cluster's pages have checksums.
    pub(super) has_checksums: bool,
    /// What the server must have at least to replay its primary's log. A standby has to be able to start
    /// while it is promoted, and goes on with as much as clients had before: a primary keeps to it, too.
    pub(super) minimums: Minimums,
}

impl Cluster {
    /// Returns the content of `understudy.conf`.
    ///
    /// What needs a restart is said only where the operator's word is not enough, and never to less than
    /// it: a value that waits for a restart would come into force at one that has another reason.
    pub(super) fn conf(&self, about: &Circumstances, duty: Duty<'_>) -> String {
        let tls = self.tls_dir();
        let operators = &about.operators;
        let mut lines = vec![
            "# Written by understudy before every start; changes here are lost.".to_owned(),
            setting(
                "listen_addresses",
                &match self.listens_everywhere {
                    true => "*".to_owned(),
                    false => listen_addresses(operators.get("listen_addresses"), self.ip),
                },
            ),
            format!("port = {}", self.port),
            setting(
                "unix_socket_directories",
                &socket_directories(&about.socket_dirs, &self.socket_dir),
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
        if operators.get("wal_keep_size").is_none() {
            // What pg_rewind needs of a former primary's own log: back to a checkpoint before the fork.
            let keep = self.slot_keep_bytes.min(WAL_KEEP_BYTES);
            lines.push(format!("wal_keep_size = '{}MB'", keep >> 20));
        }
        if operators.get("wal_level") != Some("logical") {
            lines.push("wal_level = replica".to_owned());
        }
        if !about.has_checksums {
            // pg_rewind needs one of the two, from before the day on which it is needed.
            lines.push(format!("{LOG_HINTS} = on"));
        }
        for (name, least) in least(&about.minimums) {
            if present(operators, name).is_none_or(|value| value < least) {
                lines.push(format!("{name} = {least}"));
            }
        }
        if self.is_split() {
            // A configuration that was copied from another machine may name other places.
            let file = |name| self.config_dir.join(name).display().to_string();
            lines.push(setting(
                "data_directory",
                &self.data_dir.display().to_string(),
            ));
            if matches!(duty, Duty::Standby(_)) {
                lines.push(setting("hba_file", &file("pg_hba.conf")));
            }
            lines.push(setting("ident_file", &file("pg_ident.conf")));
        }
        match duty {
            Duty::Primary(waits_for) => {
                lines.push(setting(
                    "hba_file",
                    &self.vouched_hba().display().to_string(),
                ));
                lines.push(setting(WAITS_FOR, &any_of(waits_for)));
            }
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

/// Returns how much of what is needed at least.
fn least(minimums: &Minimums) -> BTreeMap<&str, u32> {
    let mut least = BTreeMap::from([
        ("max_replication_slots", SLOTS_MIN),
        ("max_wal_senders", WAL_SENDERS_MIN),
    ]);
    for (name, value) in &minimums.0 {
        let present = least.entry(name).or_default();
        *present = (*present).max(*value);
    }
    least
}

/// Returns how much a server has of a setting without our word: what the operator has written, or what
/// Postgres takes where nothing is written. `None` where that cannot be understood.
fn present(operators: &OperatorsConf, name: &str) -> Option<u32> {
    if operators.get(name).is_some() {
        return operators.number(name);
    }
    match name {
        "max_connections" => Some(100),
        "max_locks_per_transaction" => Some(64),
        "max_prepared_transactions" => Some(0),
        "max_replication_slots" | "max_wal_senders" => Some(10),
        "max_worker_processes" => Some(8),
        _ => None,
    }
}

/// The setting that has commits wait.
const WAITS_FOR: &str = "synchronous_standby_names";

/// The setting that tells pg_rewind what it needs, where no checksums do.
const LOG_HINTS: &str = "wal_log_hints";

/// Returns whether our settings were written for a cluster with checksums.
pub(super) fn know_checksums(conf: &str) -> bool {
    !conf.is_empty() && !conf.lines().any(|line| line.starts_with(LOG_HINTS))
}

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
pub(super) fn listen_addresses(operators: Option<&str>, ip: IpAddr) -> String {
    let operators = operators.unwrap_or("localhost");
    let ours = ip.to_string();
    let ours = (!covers(operators, ip)).then_some(ours.as_str());
    listed(operators).chain(ours).collect::<Vec<_>>().join(",")
}

/// Returns whether a server with these `listen_addresses` listens on `ip`.
pub(super) fn covers(addresses: &str, ip: IpAddr) -> bool {
    let every = if ip.is_ipv4() { "0.0.0.0" } else { "::" };
    listed(addresses).any(|address| {
        address == "*" || address == every || address.parse::<IpAddr>().is_ok_and(|it| it == ip)
    })
}

/// Returns whether a server that listens to `addresses` listens to whatever address its machine is given.
pub(super) fn is_everywhere(addresses: &str) -> bool {
    listed(addresses).any(|address| matches!(address, "*" | "0.0.0.0" | "::"))
}

/// Adds the folder of the socket that we use to those of the operator.
fn socket_directories(operators: &[String], ours: &Path) -> String {
    let is_there = operators.iter().any(|folder| Path::new(folder) == ours);
    let ours = (!is_there).then(|| ours.display().to_string());
    let all: Vec<String> = operators.iter().cloned().chain(ours).collect();
    all.join(", ")
}

/// Returns the folders of the operator's for Unix sockets that are there.
pub(super) fn socket_dirs(operators: &OperatorsConf) -> Vec<String> {
    let named = operators.get("unix_socket_directories").unwrap_or_default();
    listed(named)
        .map(|folder| folder.trim_matches('"'))
        .filter(|folder| Path::new(folder).is_dir())
        .map(str::to_owned)
        .collect()
}

/// Returns the elements of a list as Postgres writes one.
fn listed(list: &str) -> impl Iterator<Item = &str> {
    list.split(',')
        .map(str::trim)
        .filter(|item| !item.is_empty())
}

/// Returns `conf` with the line that includes our settings, as its last.
pub(super) fn with_include(conf: &str) -> String {
    let include = format!("include_if_exists = '{OURS}'");
    let mut lines: Vec<&str> = conf.lines().filter(|line| line.trim() != include).collect();
    lines.push(&include);
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
            (Some("0.0.0.0"), "0.0.0.0"),
            (Some("::"), "::,10.0.0.1"),
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
    fn the_folder_of_our_socket_is_added_to_the_operators() {
        let ours = Path::new("/run/postgresql");
        let table: [(&[&str], &str); 3] = [
            (&[], "/run/postgresql"),
            (&["/tmp"], "/tmp, /run/postgresql"),
            (&["/tmp", "/run/postgresql/"], "/tmp, /run/postgresql/"),
        ];
        for (operators, expected) in table {
            let operators: Vec<String> = operators.iter().map(|it| (*it).to_owned()).collect();
            assert_eq!(socket_directories(&operators, ours), expected);
        }
        let conf = "unix_socket_directories = '\"/tmp\", /nonexistent/run'";
        assert_eq!(socket_dirs(&OperatorsConf::parse(conf)), ["/tmp"]);
    }

    fn conf(operators: &str, is_split: bool, has_checksums: bool, duty: Duty<'_>) -> String {
        let about = Circumstances {
            operators: OperatorsConf::parse(operators),
            has_checksums,
            ..Circumstances::default()
        };
        Cluster::example(is_split).conf(&about, duty)
    }

    #[test]
    fn nothing_is_lowered_and_hints_are_for_clusters_without_checksums() {
        let primary = Duty::Primary(&[]);
        let enough = "wal_level = logical\nmax_wal_senders = 50\nlisten_addresses = '*'\n";
        let text = conf(enough, false, true, primary);
        for name in [
            "wal_level",
            LOG_HINTS,
            "max_",
            "data_directory",
            "ident_file",
        ] {
            let has = text
                .lines()
                .any(|line| line.starts_with(name) && !line.contains("slot_wal"));
            assert!(!has, "{name}: {text}");
        }
        assert!(know_checksums(&text));
        let little = "wal_level = minimal\nmax_wal_senders = 0\nmax_replication_slots = 0\n";
        let text = conf(little, true, false, primary);
        for line in [
            "wal_level = replica",
            "wal_log_hints = on",
            "max_wal_senders = 4",
            "max_replication_slots = 4",
            "data_directory = '/pg/data'",
            "ident_file = '/etc/pg/pg_ident.conf'",
        ] {
            assert!(text.lines().any(|it| it == line), "{line}: {text}");
        }
        assert!(!know_checksums(&text));
        assert!(!know_checksums(""));
    }

    fn minimums<const N: usize>(values: [(&str, u32); N]) -> Minimums {
        let values = values.map(|(name, value)| (name.to_owned(), value));
        BTreeMap::from(values).into()
    }

    #[test]
    fn either_duty_has_as_much_as_is_needed_and_never_less_than_the_operator_says() {
        let upstream = Upstream {
            primary: "a".parse().unwrap(),
            address: "10.0.0.1:5432".parse().unwrap(),
            me: "b".parse().unwrap(),
        };
        let needed = minimums([
            ("max_connections", 300),
            ("max_prepared_transactions", 0),
            ("max_wal_senders", 2),
            ("max_worker_processes", 4),
            ("shared_preload_libraries", 1),
        ]);
        let table: [(&str, &[&str]); 5] = [
            ("max_connections = 100\n", &["max_connections = 300"]),
            ("", &["max_connections = 300"]),
            ("max_connections = 500\nmax_worker_processes = 4\n", &[]),
            // Not what the primary has, which is less than we need.
            (
                "max_connections = 500\nmax_wal_senders = 1\n",
                &["max_wal_senders = 4"],
            ),
            // What Postgres understands and we do not must not keep the server from starting.
            ("max_connections = 0x12C\n", &["max_connections = 300"]),
        ];
        for (operators, expected) in table {
            for duty in [Duty::Primary(&[]), Duty::Standby(&upstream)] {
                let about = Circumstances {
                    operators: OperatorsConf::parse(operators),
                    minimums: needed.clone(),
                    ..Circumstances::default()
                };
                let text = Cluster::example(false).conf(&about, duty);
                let said: Vec<&str> = text
                    .lines()
                    .filter(|line| line.starts_with("max_") && !line.contains("slot_wal"))
                    .collect();
                assert_eq!(said, expected, "{operators:?} {duty:?}");
                assert!(!text.contains("shared_preload_libraries"));
            }
        }
    }

    #[test]
    fn of_what_is_needed_the_greater_counts() {
        let primary = minimums([("max_connections", 100), ("max_wal_senders", 20)]);
        let local = minimums([("max_connections", 300), ("max_worker_processes", 8)]);
        let both = minimums([
            ("max_connections", 300),
            ("max_wal_senders", 20),
            ("max_worker_processes", 8),
        ]);
        assert_eq!(primary.max(&local), both);
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
