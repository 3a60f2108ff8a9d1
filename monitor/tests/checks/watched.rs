//! A node of which there is nothing but its checks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use understudy_config::{Check, CheckKind, CheckOn, CheckSeverity, Config, Local, parse_cluster};
use understudy_monitor::checks::{Checks, Connect};
use understudy_replication::event::{Event, Events};
use understudy_replication::status::{CheckState, CheckStatus, RoleName};
use understudy_replication::store::{Stop, Stopper};

/// How long a condition may take to come true.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct Watched {
    pub(crate) checks: Arc<Checks>,
    events: Events,
    is_primary: Arc<AtomicBool>,
    is_broken: Arc<AtomicBool>,
    _stopper: Stopper,
    _folder: tempfile::TempDir,
}

/// Returns a check of that kind, which looks all the time.
pub(crate) fn check(kind: CheckKind) -> Check {
    Check {
        name: "it".parse().unwrap(),
        kind,
        interval: Duration::from_millis(10),
        timeout: Duration::from_secs(2),
        fail_after: 2,
        recover_after: 2,
        severity: CheckSeverity::Error,
        on: CheckOn::Any,
        blocks_promotion: false,
    }
}

pub(crate) fn config(checks: Vec<Check>) -> Config {
    let text = "[cluster]\nname = \"c\"\n[[node]]\nname = \"a\"\naddress = \"10.0.0.1:1\"\n";
    let config = parse_cluster("understudy.toml", text).unwrap();
    Config { checks, ..config }
}

impl Watched {
    /// Begins to look at this one thing.
    pub(crate) fn new(kind: CheckKind) -> Self {
        Self::of(&config(vec![check(kind)]), None)
    }

    pub(crate) fn of(config: &Config, connect: Option<Connect>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let events = Events::open(&folder.path().join("events")).unwrap();
        let local = Local {
            name: "a".parse().unwrap(),
            root: "/".into(),
            state_dir: folder.path().into(),
            run_dir: "/nonexistent".into(),
            pki_dir: "/nonexistent".into(),
            monitor_listen: "127.0.0.1:1".parse().unwrap(),
            kv_listen: "127.0.0.1:2".parse().unwrap(),
            address_interface: None,
        };
        let none: Connect = Arc::new(|_| Box::pin(async { Err("there is no Postgres".into()) }));
        let env = vec![("GREETING".to_owned(), "hello".to_owned())];
        let connect = connect.unwrap_or(none);
        let checks = Checks::new(config, &local, env, events.clone(), connect);
        let (stopper, stop): (Stopper, Stop) = Stopper::new();
        let is_primary = Arc::new(AtomicBool::new(true));
        let asked = is_primary.clone();
        let is_broken = Arc::new(AtomicBool::new(false));
        let breaks = is_broken.clone();
        let role = Arc::new(move || {
            assert!(!breaks.load(Ordering::Relaxed), "a mistake of ours");
            match asked.load(Ordering::Relaxed) {
                true => RoleName::Primary,
                false => RoleName::Standby,
            }
        });
        tokio::spawn(checks.clone().run(role, stop));
        Self {
            checks,
            events,
            is_primary,
            is_broken,
            _stopper: stopper,
            _folder: folder,
        }
    }

    pub(crate) fn set_primary(&self, is_primary: bool) {
        self.is_primary.store(is_primary, Ordering::Relaxed);
    }

    /// Has every look break that asks for the role.
    pub(crate) fn set_broken(&self, is_broken: bool) {
        self.is_broken.store(is_broken, Ordering::Relaxed);
    }

    pub(crate) fn status(&self) -> Option<CheckStatus> {
        let checks = self.checks.status().into_iter();
        checks.into_iter().find(|check| check.name.as_str() == "it")
    }

    /// Waits until the check is in that state, and returns what it tells then.
    pub(crate) async fn is(&self, state: CheckState) -> String {
        wait_for(&format!("the state {state:?}: {:?}", self.status()), || {
            let status = self.status()?;
            (status.state == state).then_some(status.message)
        })
        .await
    }

    /// Waits until the newest look tells something that contains this.
    pub(crate) async fn tells(&self, text: &str) {
        wait_for(text, || self.status()?.message.contains(text).then_some(())).await;
    }

    pub(crate) fn events(&self) -> Vec<Event> {
        self.events.newest(1000)
    }
}

pub(crate) async fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begin.elapsed() < PATIENCE, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
