//! Services that are files: up while the file is there.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use understudy_replication::error_chain;
use understudy_replication::status::ServiceState;
use understudy_replication::store::{NoProgress, Stopper};

use super::*;

struct Place(tempfile::TempDir);

fn shell(script: String) -> Vec<String> {
    vec!["sh".to_owned(), "-c".to_owned(), script]
}

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A service whose commands write what they do.
    fn service(&self, name: &str) -> understudy_config::Service {
        let (up, diary) = (self.path(name), self.path("diary"));
        let (up, diary) = (up.display(), diary.display());
        understudy_config::Service {
            name: name.parse().unwrap(),
            start: shell(format!(
                "echo start {name} $UNDERSTUDY_NODE >>{diary}; touch {up}"
            )),
            stop: shell(format!("echo stop {name} >>{diary}; rm {up}")),
            status: shell(format!("echo asked; test -e {up}")),
            timeout: Duration::from_secs(5),
            rehearse: false,
        }
    }

    fn services(&self, configs: &[understudy_config::Service]) -> Arc<Services> {
        let env = vec![("UNDERSTUDY_NODE".to_owned(), "a".to_owned())];
        Arc::new(Services::new(configs, env, self.events()))
    }

    fn events(&self) -> Events {
        Events::open(&self.path("events")).unwrap()
    }

    fn kinds(&self) -> Vec<String> {
        self.events()
            .newest(100)
            .into_iter()
            .map(|event| event.kind)
            .collect()
    }

    fn diary(&self) -> Vec<String> {
        let diary = fs::read_to_string(self.path("diary")).unwrap_or_default();
        diary.lines().map(str::to_owned).collect()
    }
}

fn states(services: &Services) -> Vec<ServiceState> {
    services
        .status()
        .into_iter()
        .map(|status| status.state)
        .collect()
}

#[tokio::test]
async fn services_start_in_order_and_stop_in_the_reverse_order() {
    let place = Place::new();
    let services = place.services(&["mount", "engine", "web"].map(|name| place.service(name)));
    assert_eq!(states(&services), [ServiceState::Unknown; 3]);
    services.start_all(&NoProgress).await.unwrap();
    assert_eq!(states(&services), [ServiceState::Online; 3]);
    services.stop_all().await.unwrap();
    assert_eq!(states(&services), [ServiceState::Offline; 3]);
    let expected = [
        "start mount a",
        "start engine a",
        "start web a",
        "stop web",
        "stop engine",
        "stop mount",
    ];
    assert_eq!(place.diary(), expected);
    // A second time: the stop commands fail because nothing is up, and that is no failure.
    services.stop_all().await.unwrap();
}

#[tokio::test]
async fn a_service_that_is_up_is_adopted() {
    let place = Place::new();
    fs::write(place.path("web"), "").unwrap();
    let services = place.services(&[place.service("web")]);
    services.start_all(&NoProgress).await.unwrap();
    services.start_all(&NoProgress).await.unwrap();
    assert_eq!(place.diary(), Vec::<String>::new());
    assert_eq!(place.kinds(), ["service_adopted"]);
}

#[tokio::test]
async fn a_start_that_leaves_the_service_down_has_failed_and_the_next_is_not_started() {
    let place = Place::new();
    let mut broken = place.service("engine");
    broken.start = shell("true".to_owned());
    broken.status = shell("echo 'no license'; exit 3".to_owned());
    broken.timeout = Duration::from_secs(1);
    let services = place.services(&[place.service("mount"), broken, place.service("web")]);
    let error = services.start_all(&NoProgress).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "service engine was started, but is not up after 1 s: no license"
    );
    let expected = [
        ServiceState::Online,
        ServiceState::Fault,
        ServiceState::Unknown,
    ];
    assert_eq!(states(&services), expected);
    assert_eq!(place.diary(), ["start mount a"]);
}

#[tokio::test]
async fn a_start_that_fails_names_the_service_and_what_it_said() {
    let place = Place::new();
    let mut broken = place.service("web");
    broken.start = shell("echo first; echo 'port 80 is taken' >&2; exit 1".to_owned());
    let services = place.services(&[broken]);
    let error = services.start_all(&NoProgress).await.unwrap_err();
    assert_eq!(
        error_chain(&error),
        "service web did not start: `sh` failed (exit status: 1): port 80 is taken"
    );
}

#[tokio::test]
async fn a_stop_that_hangs_is_killed_and_the_others_are_stopped() {
    let place = Place::new();
    let mut stuck = place.service("engine");
    stuck.stop = shell("echo waiting; sleep 1000".to_owned());
    stuck.timeout = Duration::from_secs(1);
    let services = place.services(&[place.service("mount"), stuck, place.service("web")]);
    services.start_all(&NoProgress).await.unwrap();
    let error = services.stop_all().await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "service engine did not stop: `sh` did not end within 1 s and was killed: waiting"
    );
    let expected = [
        ServiceState::Offline,
        ServiceState::Fault,
        ServiceState::Offline,
    ];
    assert_eq!(states(&services), expected);
}

#[tokio::test]
async fn a_status_that_hangs_means_down() {
    let place = Place::new();
    let mut silent = place.service("web");
    silent.status = shell("sleep 1000".to_owned());
    silent.timeout = Duration::from_secs(1);
    let services = place.services(&[silent]);
    let error = services.start_all(&NoProgress).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "service web was started, but is not up after 1 s"
    );
}

#[tokio::test]
async fn a_service_that_goes_down_is_a_fault_and_told_once() {
    let place = Place::new();
    let services = place.services(&[place.service("mount"), place.service("web")]);
    services.start_all(&NoProgress).await.unwrap();
    fs::remove_file(place.path("web")).unwrap();
    services.look().await;
    services.look().await;
    assert_eq!(
        states(&services),
        [ServiceState::Online, ServiceState::Fault]
    );
    fs::write(place.path("web"), "").unwrap();
    services.look().await;
    assert_eq!(states(&services), [ServiceState::Online; 2]);
    let expected = [
        "service_started",
        "service_started",
        "service_down",
        "service_recovered",
    ];
    assert_eq!(place.kinds(), expected);
}

#[tokio::test]
async fn on_a_node_that_should_not_run_it_a_service_that_is_down_is_no_fault() {
    let place = Place::new();
    let services = place.services(&[place.service("web")]);
    let (stopper, stop) = Stopper::new();
    let watching = tokio::spawn(services.clone().watch(stop));
    let seen = async {
        while states(&services) != [ServiceState::Offline] {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), seen)
        .await
        .unwrap();
    stopper.stop();
    tokio::time::timeout(Duration::from_secs(20), watching)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(place.kinds(), Vec::<String>::new());
}

#[tokio::test]
async fn to_stop_breaks_off_a_start() {
    let place = Place::new();
    let mut slow = place.service("engine");
    slow.start = shell(format!("touch {}", place.path("starting").display()));
    slow.timeout = Duration::from_secs(600);
    let services = place.services(&[slow, place.service("web")]);
    let starting = services.clone();
    let starting = tokio::spawn(async move { starting.start_all(&NoProgress).await });
    let begun = async {
        while !place.path("starting").exists() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        services.stop_all().await.unwrap();
        starting.await.unwrap().unwrap_err()
    };
    let error = tokio::time::timeout(Duration::from_secs(20), begun)
        .await
        .unwrap();
    assert!(matches!(error, ServiceError::BrokenOff { .. }), "{error:?}");
    assert_eq!(states(&services), [ServiceState::Offline; 2]);
}
