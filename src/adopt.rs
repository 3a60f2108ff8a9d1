//! What `understudy init` looks at in a Postgres cluster that is there already, before it makes anything:
//! where it serves, and whether it could go on as it is.

use std::path::{Path, PathBuf};

use understudy_config::Local;
use understudy_config::template::PostgresAnswers;
use understudy_replication::command::OsUser;
use understudy_replication::postgres::{
    Cluster, Listening, Need, configured_listening, is_at_work, listening,
};

use crate::failure::Failure;

/// Where a server puts its socket that nobody has told.
const SOCKET_DIRS_USUAL: [&str; 2] = ["/var/run/postgresql", "/run/postgresql"];

/// What becomes of a cluster's server.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Adoption {
    /// It does not run: it will be started with the right settings.
    Started,
    /// It runs, and goes on.
    GoesOn(Listening),
    /// It runs, and has to be restarted for these.
    Restarted(Vec<Need>),
}

/// Returns what is known of the cluster in `data_dir`, a path of the configuration, from the outside.
pub(crate) fn answers(data_dir: &Path, local: &Local) -> Result<PostgresAnswers, Failure> {
    let place = local.resolve(data_dir);
    if !place.join("PG_VERSION").exists() {
        return Err(Failure::usage(format!(
            "{} is not a Postgres data directory (or this user may not read it)",
            place.display()
        ))
        .hint("make one with `initdb`, or leave --postgres out"));
    }
    if place.join("standby.signal").exists() {
        return Err(Failure::refused(format!(
            "{} is the data directory of a standby (it has standby.signal)",
            place.display()
        ))
        .hint("run `understudy init` where the primary of that cluster is"));
    }
    let owner = OsUser::owner(&place).map_err(|error| {
        Failure::failed(format!(
            "cannot find the owner of {}: {error}",
            place.display()
        ))
    })?;
    let mut answers = PostgresAnswers {
        user: owner.name,
        ..PostgresAnswers::new(data_dir)
    };
    let Some(serving) = listening(&place) else {
        if is_at_work(&place) {
            return Err(Failure::failed(format!(
                "a Postgres server works in {}, and takes no connections",
                place.display()
            ))
            .hint("wait until it has started, or has ended, and run the same command again"));
        }
        take_configured(&place, &mut answers, local)?;
        return Ok(answers);
    };
    answers.port = serving.port;
    answers.socket_dir = match serving.socket_dir {
        Some(folder) => socket_dir(&folder, local)?,
        None => {
            return Err(Failure::usage(format!(
                "the Postgres server in {} has no Unix socket, which understudy needs",
                place.display()
            ))
            .hint("set `unix_socket_directories` in postgresql.conf, and restart it"));
        }
    };
    Ok(answers)
}

/// Takes where a server that does not run will serve, as its configuration in `config_dir` says: its
/// application looks for it there.
pub(crate) fn take_configured(
    config_dir: &Path,
    answers: &mut PostgresAnswers,
    local: &Local,
) -> Result<(), Failure> {
    let (port, folder) = configured_listening(config_dir);
    answers.port = port.unwrap_or(answers.port);
    if let Some(folder) = folder {
        answers.socket_dir = socket_dir(&folder, local)?;
    }
    Ok(())
}

/// Returns the folder of a socket as the configuration has it; `None` is what Postgres does by itself.
fn socket_dir(folder: &Path, local: &Local) -> Result<Option<PathBuf>, Failure> {
    if let Some(inner) = within(folder, local) {
        return Ok(Some(inner));
    }
    if SOCKET_DIRS_USUAL
        .iter()
        .any(|usual| folder == Path::new(usual))
    {
        return Ok(None);
    }
    Err(Failure::usage(format!(
        "the Unix socket of Postgres is in {}, which is not beneath --root {}",
        folder.display(),
        local.root.display()
    )))
}

/// Returns a path of this machine as the configuration has it, if it can say it.
pub(crate) fn within(path: &Path, local: &Local) -> Option<PathBuf> {
    let inner = path.strip_prefix(&local.root).ok()?;
    Some(Path::new("/").join(inner))
}

/// Finds out what becomes of the server. Changes nothing.
pub(crate) async fn look(cluster: &Cluster) -> Result<Adoption, Failure> {
    cluster
        .check_exists()
        .map_err(|error| Failure::usage(error.to_string()))?;
    let Some(serving) = listening(&cluster.data_dir) else {
        return Ok(Adoption::Started);
    };
    let present = cluster.present_settings().await.map_err(|error| {
        Failure::of(&error).hint(format!(
            "understudy asks as `{user}`, the owner of the data directory: `psql -h {socket} -p {port} \
             postgres` has to work for that user (a database superuser of that name, `local all {user} peer` \
             in pg_hba.conf)",
            user = cluster.user.name,
            socket = cluster.socket_dir.display(),
            port = cluster.port,
        ))
    })?;
    if !present.reads_hba_in(&cluster.config_dir) {
        return Err(Failure::usage(format!(
            "the server reads {}, and its postgresql.conf is in {}",
            present.hba_file(),
            cluster.config_dir.display()
        ))
        .hint("understudy needs both in one folder: move pg_hba.conf and pg_ident.conf there"));
    }
    let needs = cluster.needs(&present);
    Ok(if needs.is_empty() {
        Adoption::GoesOn(serving)
    } else {
        Adoption::Restarted(needs)
    })
}

/// Refuses a restart that nobody has allowed, and one that would not help.
pub(crate) fn check_restart(
    cluster: &Cluster,
    needs: &[Need],
    is_allowed: bool,
) -> Result<(), Failure> {
    let is_altered = needs.iter().any(|need| need.is_altered);
    if is_allowed && !is_altered {
        return Ok(());
    }
    let lines: Vec<String> = needs.iter().map(|need| format!("  {need}")).collect();
    let refusal = Failure::refused(format!(
        "the Postgres server in {} has to be restarted before it can be replicated; nothing was changed\n{}",
        cluster.data_dir.display(),
        lines.join("\n")
    ));
    Err(if is_altered {
        refusal.hint("reset what was set with ALTER SYSTEM, and run the same command again")
    } else {
        refusal.hint(
            "with --restart-postgres the daemon sets them, and restarts the server once when it is first \
             started; or set them yourself, restart the server when it suits, and run the same command again",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn local(root: &str) -> Local {
        Local {
            name: "a".parse().unwrap(),
            root: root.into(),
            state_dir: "/state".into(),
            run_dir: "/run".into(),
            pki_dir: "/pki".into(),
            monitor_listen: "127.0.0.1:1".parse().unwrap(),
            kv_listen: "127.0.0.1:2".parse().unwrap(),
            address_interface: None,
        }
    }

    #[test]
    fn the_folder_of_a_socket_is_said_as_the_configuration_takes_it() {
        let of = |folder: &str, root: &str| socket_dir(Path::new(folder), &local(root));
        assert_eq!(of("/tmp", "/").unwrap(), Some("/tmp".into()));
        assert_eq!(of("/srv/a/run", "/srv/a").unwrap(), Some("/run".into()));
        assert_eq!(of("/var/run/postgresql", "/srv/a").unwrap(), None);
        assert!(of("/tmp", "/srv/a").is_err());
    }

    #[test]
    fn a_folder_without_a_cluster_and_a_standby_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let ask = || {
            let failure = answers(
                Path::new("/pg"),
                &local(&folder.path().display().to_string()),
            );
            failure.map_err(|failure| failure.kind.exit_status())
        };
        assert_eq!(ask(), Err(2));
        std::fs::create_dir(folder.path().join("pg")).unwrap();
        std::fs::write(folder.path().join("pg/PG_VERSION"), "15\n").unwrap();
        let known = ask().unwrap();
        assert_eq!((known.port, known.socket_dir), (5432, None));
        let conf = "port = 5544\nunix_socket_directories = '/run/postgresql, /tmp'\n";
        std::fs::write(folder.path().join("pg/postgresql.conf"), conf).unwrap();
        let known = ask().unwrap();
        assert_eq!((known.port, known.socket_dir), (5544, None));
        std::fs::write(folder.path().join("pg/standby.signal"), "").unwrap();
        assert_eq!(ask(), Err(3));
    }
}
