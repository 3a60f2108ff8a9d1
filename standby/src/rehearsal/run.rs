//! A rehearsal, from the first look at the room there is to the last file that goes.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use understudy_config::Engine;
use understudy_replication::durable;
use understudy_replication::error_chain;
use understudy_replication::event::Events;
use understudy_replication::position::Lsn;
use understudy_replication::postgres::{History, Origins};
use understudy_replication::store::{BoxFuture, NoProgress, Progress, Stop, Stopper, Unit};
use understudy_replication::wall_time::WallTime;

use super::RehearsalError;
use super::report::{Report, StepTime, Verdict};
use super::seal::{Seal, Walls};
use super::{checks, postgres, services};
use crate::copy::{
    CheckOutcome, ClusterCopy, CopyCheck, CopyError, Originals, Pace, Place, Purpose, Served,
    can_share_blocks, remove_tree, tablespaces,
};
use crate::index::{Database, Indexes};

/// Where copies are that are to be thrown away, within the state directory.
pub const FOLDER: &str = "rehearsal";

/// Recovering and promoting the copy may take this long, each.
const RECOVER_PATIENCE: Duration = Duration::from_secs(3600);

/// The threads of a copy that was told to stop end within this time.
const THREADS_PATIENCE: Duration = Duration::from_secs(30);

/// What is left free at least.
const FREE_BYTES_MIN: u64 = 64 << 20;

/// What a rehearsal is made from.
pub struct Rehearsal {
    /// The stores.
    pub originals: Originals,
    /// What commands of the configuration find in their environment.
    pub environment: Vec<(String, String)>,
    /// This program.
    pub program: String,
    /// Its version.
    pub software: String,
    /// Who asks for it.
    pub asked_by: String,
    /// The moment that every store here has reached, by the primary's clock.
    pub cut: Option<WallTime>,
}

impl std::fmt::Debug for Rehearsal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Rehearsal on {}", self.originals.local.name)
    }
}

/// Removes what rehearsals have left behind that did not come to their end. Blocks.
///
/// # Errors
/// When something cannot be removed.
pub fn clear(state_dir: &Path) -> Result<(), CopyError> {
    remove_tree(&state_dir.join(FOLDER))
}

/// What is under way.
struct Scene {
    report: Report,
    place: Place,
    served: Served,
    pace: Arc<Pace>,
    seal: Option<Seal>,
}

impl Rehearsal {
    /// Rehearses, until it is done, or told to stop. What was made is gone when it returns, and nothing of it
    /// runs any more. The report is not kept yet.
    pub async fn run(&self, stop: &Stop, progress: &dyn Progress) -> Report {
        let Originals { config, local, .. } = &self.originals;
        let begun = Instant::now();
        let (stopper, copying) = Stopper::new();
        let folder = local.state_dir.join(FOLDER).join("1");
        let place = Place::new(folder, local);
        let mut scene = Scene {
            report: Report::begin(
                config.cluster.name.clone(),
                local.name.clone(),
                &self.software,
                &self.asked_by,
            ),
            served: Served {
                port: config.postgres.as_ref().map_or(5432, |it| it.port),
                socket_dir: place.socket(),
            },
            place,
            pace: Arc::new(Pace::new(config.drill.bandwidth, copying)),
            seal: None,
        };
        scene.report.cut = self.cut;
        let limit = config.drill.timeout;
        let played = tokio::select! {
            played = self.play(&mut scene, progress) => Some(played),
            () = tokio::time::sleep(limit) => Some(Err(RehearsalError::TimedOut { limit })),
            () = stop.wait() => None,
        };
        stopper.stop();
        let torn_down = Instant::now();
        self.tear_down(&mut scene).await;
        let report = &mut scene.report;
        report.steps.push(step("tear down", torn_down, false, None));
        match played {
            Some(Ok(())) => {
                report.verdict = Verdict::Proven;
                let seconds = report.steps.iter().filter(|step| step.is_recovery);
                report.recovery_seconds = Some(seconds.map(|step| step.seconds).sum());
            }
            Some(Err(error)) => {
                report.failure = Some(error_chain(&error));
                report.verdict = Verdict::Failed;
            }
            None => {
                report.failure = Some("it gave way to something else, or was cancelled".to_owned());
                report.verdict = Verdict::Cancelled;
            }
        }
        report.finished = WallTime::now();
        report.seconds = begun.elapsed().as_secs_f64();
        scene.report
    }

    /// Ends everything that runs, and removes everything that was made.
    async fn tear_down(&self, scene: &mut Scene) {
        if let Some(seal) = scene.seal.take()
            && !seal.end().await
        {
            scene
                .report
                .notes
                .push("the sealed room did not end in time".to_owned());
        }
        // Its threads heed the word to stop, and must not write any more when the folder goes.
        let pace = scene.pace.clone();
        let ended = async move {
            while Arc::strong_count(&pace) > 2 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        if tokio::time::timeout(THREADS_PATIENCE, ended).await.is_err() {
            scene
                .report
                .notes
                .push("a copy did not stop in time".to_owned());
        }
        let state_dir = self.originals.local.state_dir.clone();
        let removed = tokio::task::spawn_blocking(move || clear(&state_dir)).await;
        let left = match removed {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error_chain(&error),
            Err(error) => error.to_string(),
        };
        scene
            .report
            .notes
            .push(format!("{left}; it is tried again at the next start"));
    }

    async fn play(&self, scene: &mut Scene, progress: &dyn Progress) -> Result<(), RehearsalError> {
        self.prepare(scene, progress).await?;
        self.copy_all(scene, progress).await?;
        let has_services = self.originals.config.services.iter().any(|it| it.rehearse);
        let cluster = self.originals.cluster.as_ref();
        let copy = cluster.map(|it| ClusterCopy::new(it, &scene.place, scene.served.clone()));
        if copy.is_some() || has_services {
            let walls = walls(&self.originals, &scene.place);
            let program = self.program.clone();
            let made = timed(
                scene,
                "seal",
                false,
                progress,
                async move |_: &mut Scene| {
                    Seal::make(&program, &walls)
                        .await
                        .map_err(|source| RehearsalError::Sealed {
                            action: "seal a room".to_owned(),
                            source,
                        })
                },
            );
            scene.seal = Some(made.await?);
        }
        if let Some(copy) = &copy {
            timed(scene, "recover postgres", true, progress, async |scene| {
                postgres::recover(room(scene)?, copy, RECOVER_PATIENCE).await
            })
            .await?;
            timed(scene, "take over postgres", true, progress, async |scene| {
                postgres::take_over(room(scene)?, copy, RECOVER_PATIENCE).await
            })
            .await?;
            self.build_indexes(scene, copy, progress).await?;
        }
        self.run_services(scene, progress).await?;
        if let Some(copy) = &copy {
            let limit = self.originals.config.drill.timeout;
            let check = timed(scene, "check postgres", false, progress, async |scene| {
                checks::amcheck(room(scene)?, copy, limit).await
            })
            .await?;
            scene.report.checks.push(check);
        }
        sound(&scene.report.checks)
    }

    /// Makes the folder, and looks whether there is room.
    async fn prepare(
        &self,
        scene: &mut Scene,
        progress: &dyn Progress,
    ) -> Result<(), RehearsalError> {
        let originals = self.originals.clone();
        let place = scene.place.clone();
        let state_dir = self.originals.local.state_dir.clone();
        timed(
            scene,
            "prepare",
            false,
            progress,
            async move |_: &mut Scene| {
                let prepared = tokio::task::spawn_blocking(move || {
                    clear(&state_dir)?;
                    // Nobody but this process comes through there. In the room the way is another.
                    prepare_place(&originals, &place, 0o700)
                });
                prepared.await.map_err(|_| CopyError::Broken)?
            },
        )
        .await
    }

    async fn copy_all(
        &self,
        scene: &mut Scene,
        progress: &dyn Progress,
    ) -> Result<(), RehearsalError> {
        for id in self.originals.ids() {
            let name = format!("copy {}", id.name);
            let copied = timed(
                scene,
                &name,
                false,
                &NoProgress,
                async |scene: &mut Scene| {
                    let at = (&scene.place, &scene.served, Purpose::Rehearsal);
                    let copied = self.originals.copy(&id, at, &scene.pace, progress);
                    copied.await.map_err(|source| RehearsalError::Copy {
                        store: id.name.to_string(),
                        source: Box::new(source),
                    })
                },
            );
            let (store, checks) = copied.await?;
            progress.end(&format!(
                "copy {}: {} bytes written, {} shared",
                id.name, store.copied.copied_bytes, store.copied.shared_bytes
            ));
            scene.report.stores.push(store);
            scene.report.checks.extend(checks);
        }
        // What is wrong with a copy is told before its services run, which may change it; the rest of the
        // rehearsal would prove nothing.
        sound(&scene.report.checks)
    }

    async fn build_indexes(
        &self,
        scene: &mut Scene,
        copy: &ClusterCopy,
        progress: &dyn Progress,
    ) -> Result<(), RehearsalError> {
        let (mut built_here, mut elsewhere) = (Vec::new(), Vec::new());
        for index in &self.originals.config.indexes {
            if matches!(index.engine, Engine::Tantivy { .. }) {
                built_here.push(index.clone());
            } else {
                elsewhere.push(index.name.to_string());
            }
        }
        if !elsewhere.is_empty() {
            scene.report.notes.push(format!(
                "not built, since what builds them is elsewhere: {}",
                elsewhere.join(", ")
            ));
        }
        let folder = scene.place.folder();
        // Its own events: a rehearsal is none of the node's.
        let events = Events::open(&folder.join("events.jsonl"));
        let events = events.map_err(|source| CopyError::File {
            action: "open",
            path: folder.join("events.jsonl"),
            source,
        })?;
        let connecting = copy.clone();
        let indexes = Indexes::open(
            &built_here,
            folder.join("index"),
            Database {
                connect: Arc::new(move |database| {
                    let copy = connecting.clone();
                    let connect = async move {
                        let database = database.unwrap_or_else(|| copy.database().to_owned());
                        Ok(copy.connect(&database).await?)
                    };
                    let connect: BoxFuture<'static, _> = Box::pin(connect);
                    connect
                }),
                // It is built once and thrown away: there is nothing that it could have come from.
                ancestry: Arc::new(|| {
                    Ok(History {
                        system_identifier: 0,
                        ended: Vec::new(),
                        timeline: 0,
                        end: Lsn::default(),
                        origins: Origins::default(),
                    })
                }),
                // What other nodes see is not built.
                tenure: Arc::new(|| Err("a rehearsal writes to nothing that is shared".into())),
            },
            self.environment.clone(),
            events,
        );
        for index in &built_here {
            let name = format!("rebuild index {}", index.name);
            let is_warm = index.engine.rows().is_some_and(|rows| rows.warm.is_some());
            if is_warm {
                scene.report.notes.push(format!(
                    "index {} is kept warm, so that a promotion only catches up: that it was built anew is no \
                     part of the time of recovery",
                    index.name
                ));
            }
            timed(
                scene,
                &name,
                !is_warm,
                &NoProgress,
                async |_: &mut Scene| {
                    let built = indexes.rebuild(index.name.as_str(), progress).await;
                    built.map(drop).map_err(|source| RehearsalError::Index {
                        index: index.name.to_string(),
                        source: Box::new(source),
                    })
                },
            )
            .await?;
        }
        Ok(())
    }

    async fn run_services(
        &self,
        scene: &mut Scene,
        progress: &dyn Progress,
    ) -> Result<(), RehearsalError> {
        let all = &self.originals.config.services;
        let left_out: Vec<&str> = all
            .iter()
            .filter(|service| !service.rehearse)
            .map(|service| service.name.as_str())
            .collect();
        if !left_out.is_empty() {
            scene.report.notes.push(format!(
                "not started, since `rehearse` is not set: {}",
                left_out.join(", ")
            ));
        }
        let rehearsed: Vec<_> = all.iter().filter(|service| service.rehearse).collect();
        if rehearsed.is_empty() {
            return Ok(());
        }
        let environment = self.service_environment(scene);
        timed(scene, "start services", true, progress, async |scene| {
            for service in &rehearsed {
                services::start(room(scene)?, service, &environment).await?;
            }
            Ok(())
        })
        .await?;
        timed(scene, "stop services", false, progress, async |scene| {
            for service in rehearsed.iter().rev() {
                services::stop(room(scene)?, service, &environment).await?;
            }
            Ok(())
        })
        .await
    }

    fn service_environment(&self, scene: &Scene) -> Vec<(String, String)> {
        let mut environment = self.environment.clone();
        environment.retain(|(name, _)| name != "UNDERSTUDY_ROOT");
        let mut set = |name: &str, value: String| environment.push((name.to_owned(), value));
        set("UNDERSTUDY_ROOT", scene.place.root().display().to_string());
        set(services::REHEARSAL, "1".to_owned());
        if self.originals.cluster.is_some() {
            let folder = scene.served.socket_dir.display().to_string();
            set("PGHOST", folder);
            set("PGPORT", scene.served.port.to_string());
        }
        environment
    }
}

/// Returns the room, which has been made.
fn room(scene: &mut Scene) -> Result<&mut Seal, RehearsalError> {
    scene
        .seal
        .as_mut()
        .ok_or(RehearsalError::File(CopyError::Broken))
}

/// Fails at the first check that has failed.
fn sound(checks: &[CopyCheck]) -> Result<(), RehearsalError> {
    match checks.iter().find(|it| it.outcome == CheckOutcome::Failed) {
        None => Ok(()),
        Some(check) => Err(RehearsalError::Check {
            what: check.what.clone(),
            detail: check.detail.clone(),
        }),
    }
}

fn step(name: &str, begun: Instant, is_recovery: bool, failure: Option<String>) -> StepTime {
    StepTime {
        name: name.to_owned(),
        seconds: begun.elapsed().as_secs_f64(),
        is_recovery,
        failure,
    }
}

/// Does a step, and puts it into the report with its time.
async fn timed<T>(
    scene: &mut Scene,
    name: &str,
    is_recovery: bool,
    progress: &dyn Progress,
    work: impl AsyncFnOnce(&mut Scene) -> Result<T, RehearsalError>,
) -> Result<T, RehearsalError> {
    progress.start(name, None, Unit::Items);
    let begun = Instant::now();
    let done = work(scene).await;
    let failure = done.as_ref().err().map(|error| error_chain(error));
    let told = step(name, begun, is_recovery, failure);
    match &told.failure {
        None => progress.end(&format!("{name} ({:.3} s)", told.seconds)),
        Some(failure) => progress.end(&format!("{name} ({:.3} s): {failure}", told.seconds)),
    }
    scene.report.steps.push(told);
    done
}

/// Makes the folders of the copy, and makes sure that there is room.
///
/// `above` is the mode of the folder that it lies in, if that has to be made. Blocks.
///
/// # Errors
/// When a folder cannot be made, or there is too little room.
pub fn prepare_place(
    originals: &Originals,
    place: &Place,
    above: u32,
) -> Result<(), RehearsalError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| CopyError::File {
            action: "make",
            path,
            source,
        }
    };
    if let Some(parent) = place.folder().parent() {
        durable::create_directory(parent, above).map_err(failed(parent))?;
    }
    for (path, mode) in [
        (place.folder().to_owned(), 0o711),
        (place.root(), 0o755),
        (place.socket(), 0o755),
        // Certificates and the server's log would be in there, which the OS user of Postgres has to reach.
        (place.state(), 0o755),
    ] {
        durable::create_directory(&path, mode).map_err(failed(&path))?;
    }
    if let (Some(cluster), true) = (&originals.cluster, rustix::process::geteuid().is_root()) {
        let (uid, gid) = (Some(cluster.user.uid), Some(cluster.user.gid));
        std::os::unix::fs::chown(place.socket(), uid, gid).map_err(failed(&place.socket()))?;
    }
    let can_share = can_share_blocks(place.folder()).map_err(failed(place.folder()))?;
    let needed = originals.room_needed(place, can_share);
    let needed = needed
        .saturating_add(needed / 10)
        .saturating_add(FREE_BYTES_MIN);
    let found = rustix::fs::statvfs(place.folder())
        .map_err(|errno| failed(place.folder())(errno.into()))?;
    let free = found.f_bavail.saturating_mul(found.f_frsize);
    if free < needed {
        return Err(RehearsalError::NoRoom {
            folder: place.folder().to_owned(),
            needed,
            free,
            shares: if can_share {
                "its file system shares blocks, and what is needed lies on another one"
            } else {
                "its file system cannot share blocks between files, as XFS and Btrfs can"
            },
        });
    }
    Ok(())
}

/// Returns what nothing in the room may see, and what it sees instead of the machine's own.
pub fn walls(originals: &Originals, place: &Place) -> Walls {
    let Originals {
        config,
        local,
        cluster,
        ..
    } = originals;
    let files = config.files.iter().map(|files| local.resolve(&files.path));
    let settings = config.settings.iter().flat_map(|settings| &settings.paths);
    let settings = settings.map(|path| local.resolve(path));
    let cluster_paths = cluster.iter().flat_map(|cluster| {
        let config_dir = cluster.is_split().then(|| cluster.config_dir.clone());
        std::iter::once(cluster.data_dir.clone()).chain(config_dir)
    });
    let mut replaced: Vec<(PathBuf, PathBuf)> = cluster_paths
        .chain(files)
        .chain(settings)
        .map(|path| (place.of(&path), path))
        .collect();
    if let Some(cluster) = cluster {
        replaced.push((place.socket(), cluster.socket_dir.clone()));
    }
    let mut hidden = vec![
        local.state_dir.clone(),
        local.pki_dir.clone(),
        local.run_dir.clone(),
    ];
    // A tablespace whose making is replayed is linked to where the original has it.
    for (name, original) in cluster.iter().flat_map(tablespaces) {
        let copy = place.tablespaces().join(name);
        if copy.is_dir() {
            replaced.push((copy, original));
        } else {
            hidden.push(original);
        }
    }
    Walls {
        open: place.folder().to_owned(),
        hidden,
        replaced,
    }
}
