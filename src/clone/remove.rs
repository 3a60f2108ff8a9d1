//! `understudy clone remove`: a clone goes only once nothing of it runs.
//!
//! ```text
//! its daemon, which would start again what goes down ─▶ its services ─▶ its Postgres ─▶ its folder ─▶ its record
//! ```
//! A daemon that ends leaves its services and its Postgres running, on a clone as on any node.

use std::fs::File;
use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use hyper::Method;
use rustix::process::{Pid, Signal, kill_process};
use tokio::net::UnixStream;
use tokio::time::Instant;
use understudy_config::{LoadError, Loaded, StoreName};
use understudy_primary::services::Services;
use understudy_replication::durable;
use understudy_replication::event::Events;
use understudy_replication::postgres::is_at_work;
use understudy_replication::status::{ServiceState, Status};
use understudy_standby::copy::remove_tree;

use super::{Made, list, proof, record};
use crate::failure::{Failure, Kind};
use crate::serve;

/// Its daemon has so long to end: more than it gives its tasks.
const DAEMON_PATIENCE: Duration = Duration::from_secs(45);

/// How often is looked whether its daemon has ended.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// Removes a clone: what is there, and then that it was there. With `stop` what runs of it is stopped before;
/// otherwise it is refused as long as something does.
pub(super) async fn remove(state_dir: &Path, name: &StoreName, stop: bool) -> Result<(), Failure> {
    let path = record(state_dir, name);
    let all = list(state_dir)?;
    let made = all.iter().find(|made| made.name == *name).ok_or_else(|| {
        Failure::usage(format!("there is no clone {name}")).hint("see `understudy clone list`")
    })?;
    // Somebody may have deleted it by hand, and used the folder for something else.
    let is_it =
        std::fs::read(proof(&made.folder)).is_ok_and(|it| Some(it) == std::fs::read(&path).ok());
    if !is_it && !is_gone(&made.folder)? {
        let (folder, path) = (made.folder.display(), path.display());
        return Err(
            Failure::refused(format!("{folder} does not hold clone {name} any more")).hint(
                format!("look at what is there; remove {path} to forget the clone"),
            ),
        );
    }
    let loaded = load(made)?;
    let _nobody_runs_it = come_to_rest(made, loaded.as_ref(), stop).await?;
    clear(&made.folder)?;
    std::fs::remove_file(&path)?;
    durable::sync_directory_of(&path)?;
    Ok(())
}

/// Returns the configuration of a clone: only that tells what of it may run. None is left where it is half removed,
/// which has been found to be at rest.
fn load(made: &Made) -> Result<Option<Loaded>, Failure> {
    let (cluster_file, node_file) = (
        made.etc().join("understudy.toml"),
        made.etc().join("node.toml"),
    );
    match understudy_config::load(&cluster_file, &node_file) {
        Ok(loaded) => Ok(Some(loaded)),
        Err(LoadError::Read { source, .. }) if source.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => {
            let (name, error) = (&made.name, Failure::of(&error).message);
            let told = format!("nobody can tell what of clone {name} runs: {error}");
            Err(Failure::refused(told).hint(format!(
                "mend the configuration in {}",
                made.etc().display()
            )))
        }
    }
}

/// Makes sure that nothing of a clone runs, and that no daemon begins to while the lock is held.
async fn come_to_rest(
    made: &Made,
    loaded: Option<&Loaded>,
    stop: bool,
) -> Result<Option<File>, Failure> {
    let state = made.folder.join("state");
    let lock = match state.is_dir() {
        true => serve::lock(&state).map(Some),
        false => Ok(None),
    };
    let lock = match (lock, stop) {
        (Ok(lock), _) => lock,
        (Err(failure), _) if failure.kind != Kind::Refused => return Err(failure),
        (Err(_), false) => {
            let mut running = vec!["its daemon".to_owned()];
            running.extend(of_daemon(loaded).await);
            running.extend(postgres(loaded));
            return Err(runs(made, &running));
        }
        (Err(_), true) => Some(end_daemon(made, loaded, &state).await?),
    };
    let Some(loaded) = loaded else {
        return Ok(lock);
    };
    let services = services(loaded, &state)?;
    if stop {
        if let Some(services) = services {
            services.stop_running().await.map_err(|error| {
                let etc = made.etc();
                Failure::of(&error).hint(format!(
                    "stop what it names, and run this again; one that is not the clone's own: take its [[service]] \
                     out of {}",
                    etc.join("understudy.toml").display()
                ))
            })?;
        }
        if postgres(Some(loaded)).is_some()
            && let Some(cluster) = serve::cluster(&loaded.config, &loaded.local, None)?
        {
            cluster.stop().await?;
        }
        return Ok(lock);
    }
    let mut running = Vec::new();
    if let Some(services) = services {
        let names = services.running().await;
        running.extend(names.iter().map(|name| format!("its service {name}")));
    }
    running.extend(postgres(Some(loaded)));
    if running.is_empty() {
        Ok(lock)
    } else {
        Err(runs(made, &running))
    }
}

fn runs(made: &Made, running: &[String]) -> Failure {
    let name = &made.name;
    Failure::refused(format!(
        "clone {name} is not at rest; still there: {}",
        running.join(", ")
    ))
    .hint(format!(
        "`understudy clone remove {name} --stop` stops its daemon, its services and its Postgres, in this order, and \
         removes it"
    ))
}

/// Names the Postgres of a clone if it runs: it goes on when the daemon ends.
fn postgres(loaded: Option<&Loaded>) -> Option<String> {
    let loaded = loaded?;
    let postgres = loaded.config.postgres.as_ref()?;
    let data_dir = loaded.local.resolve(&postgres.data_dir);
    is_at_work(&data_dir).then(|| "its Postgres".to_owned())
}

/// Returns the services of a clone, where they may ever have been started; nobody else works on its state.
fn services(loaded: &Loaded, state: &Path) -> Result<Option<Services>, Failure> {
    let (config, local) = (&loaded.config, &loaded.local);
    let events = state.join("events.jsonl");
    // A daemon's first word is an event: before there was one, nobody has started a service.
    if config.services.is_empty() || !events.exists() {
        return Ok(None);
    }
    let services = Services::new(
        &config.services,
        serve::environment(config, local),
        Events::open(&events)?,
        state,
    );
    Ok(Some(services?))
}

/// Names the services that a daemon knows to run; nothing if it does not say.
async fn of_daemon(loaded: Option<&Loaded>) -> Vec<String> {
    let Some(loaded) = loaded else {
        return Vec::new();
    };
    let socket = loaded.local.socket();
    let asked = crate::admin::ask::<Status>(&socket, Method::GET, "/status", &());
    let Ok(Ok(status)) = tokio::time::timeout(DAEMON_PATIENCE, asked).await else {
        return Vec::new();
    };
    let services = status.services.iter();
    services
        .filter(|it| it.state != ServiceState::Offline)
        .map(|it| format!("its service {}", it.name))
        .collect()
}

/// Ends the daemon of a clone in peace, and takes the lock on its state.
async fn end_daemon(made: &Made, loaded: Option<&Loaded>, state: &Path) -> Result<File, Failure> {
    let name = &made.name;
    let stuck = |why: String| {
        Failure::failed(format!("cannot stop the daemon of clone {name}: {why}"))
            .hint("end it by hand, and run this again")
    };
    let loaded = loaded.ok_or_else(|| stuck("its configuration is gone".to_owned()))?;
    let pid = daemon(&loaded.local.socket()).await.map_err(stuck)?;
    kill_process(pid, Signal::TERM).map_err(|error| stuck(error.to_string()))?;
    let deadline = Instant::now() + DAEMON_PATIENCE;
    loop {
        match serve::lock(state) {
            Ok(lock) => return Ok(lock),
            Err(failure) if failure.kind != Kind::Refused => return Err(failure),
            Err(_) if Instant::now() >= deadline => {
                return Err(stuck(format!(
                    "process {} did not end within {} s",
                    pid.as_raw_nonzero(),
                    DAEMON_PATIENCE.as_secs()
                )));
            }
            Err(_) => tokio::time::sleep(LOOK_INTERVAL).await,
        }
    }
}

/// Returns the process that listens on an admin socket.
async fn daemon(socket: &Path) -> Result<Pid, String> {
    let failed = |error: std::io::Error| format!("{}: {error}", socket.display());
    let stream = UnixStream::connect(socket).await.map_err(failed)?;
    let peer = stream.peer_cred().map_err(failed)?;
    let pid = peer.pid().and_then(Pid::from_raw);
    pid.ok_or_else(|| format!("{} does not tell which process it is", socket.display()))
}

/// Returns whether nothing is there.
fn is_gone(folder: &Path) -> Result<bool, Failure> {
    match std::fs::read_dir(folder) {
        Ok(mut found) => Ok(found.next().is_none()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(true),
        Err(error) => Err(Failure::failed(format!(
            "cannot read {}: {error}",
            folder.display()
        ))),
    }
}

/// Removes what is in a clone's folder: its configuration first, so that nobody starts it or asks for it any more,
/// and the proof last, so that it can be repeated.
fn clear(folder: &Path) -> Result<(), Failure> {
    let proof = proof(folder);
    let etc = folder.join("etc");
    if etc.is_dir() {
        remove_tree(&etc)?;
    }
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    for entry in entries {
        let entry = entry?;
        if entry.path() == proof {
            continue;
        }
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        } else {
            std::fs::remove_file(entry.path())?;
        }
    }
    match std::fs::remove_file(&proof) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
        Ok(()) | Err(_) => {}
    }
    match std::fs::remove_dir(folder) {
        // Something is mounted there, which is the operator's.
        Err(error) if error.kind() == ErrorKind::ResourceBusy => Ok(()),
        done => Ok(done?),
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::path::PathBuf;

    use understudy_config::template;

    use super::super::example;
    use super::*;

    struct Place {
        _folder: tempfile::TempDir,
        state_dir: PathBuf,
        made: Made,
    }

    fn put(path: PathBuf, bytes: &[u8]) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }

    impl Place {
        /// Makes a record of clone `test`, and its proof.
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let made = example(folder.path().join("test"));
            let place = Self {
                state_dir: folder.path().join("state"),
                made,
                _folder: folder,
            };
            let json = serde_json::to_vec(&place.made).unwrap();
            put(place.record(), &json);
            put(proof(&place.made.folder), &json);
            place
        }

        fn record(&self) -> PathBuf {
            record(&self.state_dir, &self.made.name)
        }

        async fn remove(&self, stop: bool) -> Result<(), Failure> {
            remove(&self.state_dir, &self.made.name, stop).await
        }

        /// Configures a clone of one service, that is up while a file is there.
        fn configure(&self) {
            let folder = &self.made.folder;
            let listen: SocketAddr = ([127, 0, 0, 1], 9).into();
            let node = "test".parse().unwrap();
            let toml = "[cluster]\nname = \"catalog-test\"\n[[node]]\nname = \"test\"\naddress = \
                        \"127.0.0.1:9\"\n[[files]]\nname = \"docs\"\npath = \"/docs\"\n[[service]]\nname = \
                        \"web\"\nstart = [\"true\"]\nstop = [\"sh\", \"-c\", \"rm $UNDERSTUDY_ROOT/up\"]\n\
                        status = [\"sh\", \"-c\", \"test -e $UNDERSTUDY_ROOT/up\"]\n";
            put(folder.join("etc/understudy.toml"), toml.as_bytes());
            let local = template::node(
                &node,
                &folder.join("root"),
                &folder.join("state"),
                &folder.join("run"),
                listen,
                listen,
            );
            put(folder.join("etc/node.toml"), local.as_bytes());
            put(folder.join("root/up"), b"");
            put(folder.join("state/events.jsonl"), b"");
        }
    }

    #[tokio::test]
    async fn a_folder_that_holds_the_clone_no_more_is_left_alone() {
        let place = Place::new();
        let (folder, record) = (&place.made.folder, place.record());
        let json = std::fs::read(&record).unwrap();
        std::fs::remove_file(proof(folder)).unwrap();
        put(folder.join("root/theses/1.txt"), b"a user's");
        let failure = place.remove(true).await.unwrap_err();
        assert!(failure.to_string().contains("does not hold clone test"));
        assert!(folder.join("root/theses/1.txt").exists() && record.exists());
        put(proof(folder), &json);
        place.remove(false).await.unwrap();
        assert!(!folder.exists() && !record.exists());
        // Removed by hand: nothing is left to do but to forget it.
        put(record.clone(), &json);
        place.remove(false).await.unwrap();
        assert!(!record.exists());
    }

    #[tokio::test]
    async fn a_clone_is_not_removed_from_beneath_a_service_that_runs() {
        let place = Place::new();
        let folder = &place.made.folder;
        place.configure();
        let failure = place.remove(false).await.unwrap_err();
        assert_eq!(
            failure.to_string(),
            "error: clone test is not at rest; still there: its service web\n\
             hint: `understudy clone remove test --stop` stops its daemon, its services and its Postgres, in this \
             order, and removes it"
        );
        assert_eq!(failure.kind, Kind::Refused);
        assert!(folder.join("root/up").exists() && place.record().exists());
        // A configuration that nobody can read does not tell what runs.
        let file = folder.join("etc/understudy.toml");
        let toml = std::fs::read(&file).unwrap();
        put(file.clone(), b"[cluster");
        for stop in [false, true] {
            let failure = place.remove(stop).await.unwrap_err();
            assert_eq!(failure.kind, Kind::Refused, "{failure}");
        }
        assert!(folder.join("root/up").exists());
        put(file, &toml);
        place.remove(true).await.unwrap();
        assert!(!folder.exists() && !place.record().exists());
    }

    #[tokio::test]
    async fn what_was_half_removed_is_removed_whole() {
        let place = Place::new();
        place.configure();
        std::fs::remove_dir_all(place.made.etc()).unwrap();
        place.remove(false).await.unwrap();
        assert!(!place.made.folder.exists());
    }
}
