//! The one restart of an adopted server, where the operator has allowed it.
//!
//! The permission is a file that `understudy init --restart-postgres` leaves behind. It is gone before the
//! server is touched: whatever happens after that, the server is not restarted under its application a
//! second time.

use std::fs;
use std::io;
use std::path::PathBuf;

use understudy_replication::durable;
use understudy_replication::event::{Events, Severity};
use understudy_replication::postgres::{Cluster, Need, PostgresError};

fn permission(cluster: &Cluster) -> PathBuf {
    cluster.state.join("may-restart")
}

/// Names the settings that need a restart.
pub(super) fn told(needs: &[Need]) -> String {
    let names: Vec<&str> = needs.iter().map(|need| need.setting).collect();
    names.join(", ")
}

/// Has the next opening of the store restart the server, if that is needed.
///
/// # Errors
/// When the permission cannot be written down.
pub fn permit_restart(cluster: &Cluster) -> Result<(), PostgresError> {
    cluster.create_owned_directory(&cluster.state, 0o700)?;
    let path = permission(cluster);
    durable::write(&path, b"", 0o644).map_err(|source| PostgresError::File {
        action: "write",
        path,
        source,
    })
}

/// Takes the permission away; returns whether there was one.
pub(super) fn forget_permission(cluster: &Cluster) -> Result<bool, PostgresError> {
    let path = permission(cluster);
    let failed = |action| {
        let path = path.clone();
        move |source| PostgresError::File {
            action,
            path,
            source,
        }
    };
    match fs::remove_file(&path) {
        Ok(()) => {
            durable::sync_directory_of(&path).map_err(failed("sync"))?;
            Ok(true)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(failed("remove")(error)),
    }
}

/// Restarts a server that runs, if it needs to and that was allowed. Our settings have been written.
pub(super) async fn if_permitted(cluster: &Cluster, events: &Events) -> Result<(), PostgresError> {
    if !forget_permission(cluster)? {
        return Ok(());
    }
    let needs = cluster.needs(&cluster.present_settings().await?);
    if needs.is_empty() {
        return Ok(());
    }
    let data_dir = cluster.data_dir.display();
    events.record(
        Severity::Warning,
        "postgres_restarting",
        format!(
            "postgres in {data_dir} is restarted once, as --restart-postgres allowed, for: {}",
            told(&needs)
        ),
    );
    cluster.stop().await?;
    // What is stopped is vouched for no longer.
    cluster.vouch()?;
    cluster.start().await?;
    events.record(
        Severity::Info,
        "postgres_started",
        format!("postgres in {data_dir} started"),
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_permission_is_good_once() {
        let folder = tempfile::tempdir().unwrap();
        let config = understudy_config::Postgres {
            data_dir: "/pg".into(),
            port: 5432,
            user: "root".to_owned(),
            bin_dir: Some(folder.path().to_owned()),
            database: "postgres".to_owned(),
            durability: understudy_config::PostgresDurability::Async,
            max_slot_wal_keep_bytes: 0,
            bandwidth: None,
            wal_dir: None,
            socket_dir: None,
            config_dir: None,
            commands: None,
        };
        for program in ["pg_ctl", "pg_basebackup"] {
            fs::write(folder.path().join(program), "").unwrap();
        }
        let local = understudy_config::Local {
            name: "a".parse().unwrap(),
            root: folder.path().to_owned(),
            state_dir: folder.path().join("state"),
            run_dir: "/run".into(),
            pki_dir: "/pki".into(),
            monitor_listen: "127.0.0.1:1".parse().unwrap(),
            kv_listen: "127.0.0.1:2".parse().unwrap(),
            address_interface: None,
        };
        let ip = "127.0.0.1".parse().unwrap();
        let cluster = Cluster::find(&config, &local, ip, vec![]).unwrap();
        assert!(!forget_permission(&cluster).unwrap());
        permit_restart(&cluster).unwrap();
        assert!(forget_permission(&cluster).unwrap());
        assert!(!forget_permission(&cluster).unwrap());
    }
}
