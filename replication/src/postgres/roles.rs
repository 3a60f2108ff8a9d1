//! The roles that Understudy has in a cluster, and what each may do.
//!
//! What is right already is not written again: a daemon that is only restarted leaves nothing in the
//! write-ahead log, where it would look like somebody's transactions in what a rejoin keeps aside.

use super::cluster::Cluster;
use super::error::PostgresError;
use super::{REPLICATION_ROLE, ROLE};

/// The roles that the daemon's own role is a member of: it monitors, reads for indexes, and checkpoints.
const MEMBERSHIPS: [&str; 3] = ["pg_monitor", "pg_read_all_data", "pg_checkpoint"];

/// The functions that each role may call beyond what everybody may. Those of the replication role are what
/// `pg_rewind` needs of its source (Postgres' documentation of it, "Notes"): it is no more than a base backup
/// gives to the same role, the files of the cluster.
const FUNCTIONS: [(&str, &str); 6] = [
    (ROLE, "pg_catalog.pg_backup_start(text, boolean)"),
    (ROLE, "pg_catalog.pg_backup_stop(boolean)"),
    (
        REPLICATION_ROLE,
        "pg_catalog.pg_ls_dir(text, boolean, boolean)",
    ),
    (REPLICATION_ROLE, "pg_catalog.pg_stat_file(text, boolean)"),
    (REPLICATION_ROLE, "pg_catalog.pg_read_binary_file(text)"),
    (
        REPLICATION_ROLE,
        "pg_catalog.pg_read_binary_file(text, bigint, bigint, boolean)",
    ),
];

/// Returns a statement that does `what` unless `is_done`.
fn unless(is_done: &str, what: &str) -> String {
    format!("DO $$ BEGIN IF NOT {is_done} THEN {what}; END IF; END $$;\n")
}

fn script() -> String {
    let mut script = "SET client_min_messages = warning;\n".to_owned();
    for role in [ROLE, REPLICATION_ROLE] {
        script += &unless(
            &format!("EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = '{role}')"),
            &format!("CREATE ROLE {role} LOGIN REPLICATION"),
        );
    }
    for group in MEMBERSHIPS {
        script += &unless(
            &format!("pg_catalog.pg_has_role('{ROLE}', '{group}', 'MEMBER')"),
            &format!("GRANT {group} TO {ROLE}"),
        );
    }
    for (role, function) in FUNCTIONS {
        script += &unless(
            &format!("pg_catalog.has_function_privilege('{role}', '{function}', 'EXECUTE')"),
            &format!("GRANT EXECUTE ON FUNCTION {function} TO {role}"),
        );
    }
    script
}

impl Cluster {
    /// Makes the roles that Understudy uses, as the cluster's own superuser. Repeatable.
    ///
    /// # Errors
    /// When the superuser cannot connect, or the statements fail.
    pub async fn create_roles(&self) -> Result<(), PostgresError> {
        self.psql(script(), "make the roles of").await.map(drop)
    }
}
