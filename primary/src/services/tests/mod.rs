//! Services that are files: up while the file is there.

mod all;
mod fence;
mod hooks;
mod operator;
mod order;
mod users;
mod watching;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use understudy_replication::event::{Event, Events};
use understudy_replication::status::{ServiceState, StoppedBy};
use understudy_replication::store::NoProgress;

use super::*;

/// Whatever is waited for comes long before this, or not at all.
const PATIENCE: Duration = Duration::from_secs(30);

struct Place(tempfile::TempDir);

/// Who stops things in tests.
fn eva() -> StoppedBy {
    StoppedBy {
        who: Some("eva".to_owned()),
        at: understudy_replication::wall_time::WallTime(1_700_000_000_000),
    }
}

fn shell(script: impl Into<String>) -> Vec<String> {
    vec!["sh".to_owned(), "-c".to_owned(), script.into()]
}

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A service whose commands write what they do; each waits for the one before it. What it is asked often
    /// enough for a test, and restarted as often as usual.
    fn service(&self, name: &str) -> understudy_config::Service {
        let (up, diary) = (self.path(name), self.path("diary"));
        let (up, diary) = (up.display(), diary.display());
        understudy_config::Service {
            interval: Duration::from_millis(100),
            timeout: Duration::from_secs(5),
            ..understudy_config::Service::new(
                name.parse().unwrap(),
                shell(format!(
                    "echo start {name} $UNDERSTUDY_NODE >>{diary}; touch {up}"
                )),
                shell(format!("echo stop {name} >>{diary}; rm {up}")),
                shell(format!("echo asked; test -e {up}")),
            )
        }
    }

    /// The same on these nodes.
    fn service_on(&self, name: &str, on: On) -> understudy_config::Service {
        understudy_config::Service {
            on,
            ..self.service(name)
        }
    }

    fn services(&self, configs: &[understudy_config::Service]) -> Arc<Services> {
        let env = vec![("UNDERSTUDY_NODE".to_owned(), "a".to_owned())];
        Arc::new(Services::new(configs, env, self.events(), self.0.path()).unwrap())
    }

    fn events(&self) -> Events {
        Events::open(&self.path("events")).unwrap()
    }

    fn told(&self) -> Vec<Event> {
        self.events().newest(1000)
    }

    fn kinds(&self) -> Vec<String> {
        self.told().into_iter().map(|event| event.kind).collect()
    }

    /// The messages of the events of a kind.
    fn messages(&self, kind: &str) -> Vec<String> {
        let of_kind = self.told().into_iter().filter(|event| event.kind == kind);
        of_kind.map(|event| event.message).collect()
    }

    fn diary(&self) -> Vec<String> {
        let diary = fs::read_to_string(self.path("diary")).unwrap_or_default();
        diary.lines().map(str::to_owned).collect()
    }
}

impl Services {
    /// Looks at the service of that name once.
    async fn look_at(&self, name: &str) -> Duration {
        let mut services = self.services.iter();
        let service = services.find(|it| it.name().as_str() == name).unwrap();
        self.look(service).await
    }

    async fn primary(&self) -> Result<(), ServiceError> {
        self.start_all(Placement::Primary, &NoProgress).await
    }

    async fn standby(&self) -> Result<(), ServiceError> {
        self.start_all(Placement::Standby, &NoProgress).await
    }
}

fn states(services: &Services) -> Vec<ServiceState> {
    services
        .status()
        .into_iter()
        .map(|status| status.state)
        .collect()
}

fn name(text: &str) -> StoreName {
    text.parse().unwrap()
}

async fn until(what: &str, is_so: impl Fn() -> bool) {
    let wait = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    if tokio::time::timeout(PATIENCE, wait).await.is_err() {
        panic!("it never came to be that {what}");
    }
}

/// Returns the number of a process that a script has written into a file.
fn pid(path: &Path) -> rustix::process::Pid {
    let text = fs::read_to_string(path).unwrap();
    rustix::process::Pid::from_raw(text.trim().parse().unwrap()).unwrap()
}

/// Returns whether a process runs; one that nobody has reaped does not.
fn runs(pid: rustix::process::Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
    stat.is_ok_and(|stat| !stat.contains(") Z "))
}
