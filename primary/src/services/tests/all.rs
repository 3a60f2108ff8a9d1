//! All services are started and stopped.

use understudy_replication::error_chain;

use super::*;

#[tokio::test]
async fn m01_services_start_in_order_and_stop_in_the_exact_reverse() {
    let place = Place::new();
    let services = place.services(&["mount", "engine", "web"].map(|name| place.service(name)));
    assert_eq!(states(&services), [ServiceState::Unknown; 3]);
    assert!(!services.are_up());
    services.primary().await.unwrap();
    assert_eq!(states(&services), [ServiceState::Online; 3]);
    assert!(services.are_up() && services.is_serving());
    services.stop_all().await.unwrap();
    assert_eq!(states(&services), [ServiceState::Offline; 3]);
    assert!(!services.are_up() && !services.is_serving());
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
async fn m01_each_starts_only_after_the_status_of_the_one_before_says_up() {
    let place = Place::new();
    let (late, diary) = (place.path("mount"), place.path("diary"));
    let (late, diary) = (late.display(), diary.display());
    let mut mount = place.service("mount");
    // Its start ends long before it is up.
    mount.start = shell(format!(
        "(sleep 0.4; echo mounted >>{diary}; touch {late}) >/dev/null 2>&1 &"
    ));
    let services = place.services(&[mount, place.service("web")]);
    services.primary().await.unwrap();
    assert_eq!(place.diary(), ["mounted", "start web a"]);
}

#[tokio::test]
async fn m19_a_service_that_is_up_is_adopted_and_never_restarted() {
    let place = Place::new();
    fs::write(place.path("web"), "").unwrap();
    let services = place.services(&[place.service("web")]);
    // Before anything is asked of this node it is only looked at.
    services.look_at("web").await;
    assert_eq!(states(&services), [ServiceState::Online]);
    services.primary().await.unwrap();
    services.primary().await.unwrap();
    services.look_at("web").await;
    assert_eq!(place.diary(), Vec::<String>::new());
    assert_eq!(place.kinds(), ["service_adopted"]);
    assert_eq!(services.status()[0].restarts_total, 0);
}

#[tokio::test]
async fn m03_a_start_that_leaves_the_service_down_is_tried_as_often_as_it_may_and_then_a_fault() {
    let place = Place::new();
    let mut broken = place.service("engine");
    broken.start = shell(format!("echo tried >>{}", place.path("diary").display()));
    broken.stop = shell("true");
    broken.status = shell("echo 'no license'; exit 3");
    broken.timeout = Duration::from_millis(300);
    broken.restarts = 2;
    let mut web = place.service("web");
    web.after = vec![name("engine")];
    let services = place.services(&[place.service("mount"), broken, web]);
    let error = services.primary().await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "service engine was started, but is not up after 0.3 s: no license"
    );
    let expected = [
        ServiceState::Online,
        ServiceState::Fault,
        ServiceState::Unknown,
    ];
    assert_eq!(states(&services), expected);
    assert_eq!(place.diary(), ["start mount a", "tried", "tried", "tried"]);
    assert!(!services.are_up());
    // The watch does not go on, nor does it start what waits for it.
    services.look_at("engine").await;
    services.look_at("web").await;
    assert_eq!(place.diary().len(), 4);
    assert_eq!(
        place.messages("service_fault"),
        [
            "service engine stays down: service engine was started, but is not up after 0.3 s: no \
             license; it is started again 2 times in 3600 s and no more; mend it, then run \
             `understudy services clear engine`"
        ]
    );
    let web = &services.status()[2];
    assert_eq!(
        (web.state, web.message.as_str()),
        (ServiceState::Fault, "it waits for service engine; asked")
    );
}

#[tokio::test]
async fn m03_a_start_that_succeeds_at_the_second_try_is_no_failure() {
    let place = Place::new();
    let mut shy = place.service("web");
    let (tried, up) = (place.path("tried"), place.path("web"));
    shy.start = shell(format!(
        "test -e {0} && touch {1}; touch {0}",
        tried.display(),
        up.display()
    ));
    shy.timeout = Duration::from_millis(300);
    let services = place.services(&[shy]);
    services.primary().await.unwrap();
    assert!(services.are_up());
    assert_eq!(
        place.messages("service_started"),
        ["service web is up at try 2"]
    );
}

#[tokio::test]
async fn a_start_that_fails_names_the_service_and_what_it_said_is_in_the_events() {
    let place = Place::new();
    let mut broken = place.service("web");
    broken.start = shell("echo first; printf '\\033[31mthe port 80 is taken\\n' >&2; exit 1");
    broken.restarts = 0;
    let services = place.services(&[broken]);
    let error = services.primary().await.unwrap_err();
    assert!(
        error_chain(&error).starts_with("service web did not start: `sh` failed (exit status: 1)"),
        "{error:?}"
    );
    assert_eq!(
        place.messages("service_output"),
        ["service web, start: first | the port 80 is taken"]
    );
}

#[tokio::test]
async fn m05_one_that_is_not_critical_is_a_fault_and_the_others_go_on() {
    let place = Place::new();
    let mut gui = place.service("gui");
    gui.start = shell("exit 1");
    gui.restarts = 0;
    gui.is_critical = false;
    let mut web = place.service("web");
    web.after = vec![name("gui")];
    let services = place.services(&[gui, web]);
    services.primary().await.unwrap();
    assert_eq!(
        states(&services),
        [ServiceState::Fault, ServiceState::Online]
    );
    assert!(services.are_up());
    assert_eq!(place.messages("service_fault").len(), 1);
}

#[tokio::test]
async fn m04_a_stop_that_hangs_is_killed_with_its_children_and_the_others_are_stopped() {
    let place = Place::new();
    let mut stuck = place.service("engine");
    let child = place.path("child");
    stuck.stop = shell(format!(
        "echo waiting; (trap '' TERM; exec sleep 1000) & echo $! >{}; wait",
        child.display()
    ));
    stuck.timeout = Duration::from_millis(500);
    let services = place.services(&[place.service("mount"), stuck, place.service("web")]);
    services.primary().await.unwrap();
    let error = services.stop_all().await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "service engine did not stop: `sh` did not end within 0.5 s and was killed: waiting"
    );
    let expected = [
        ServiceState::Offline,
        ServiceState::Fault,
        ServiceState::Offline,
    ];
    assert_eq!(states(&services), expected);
    assert!(services.is_serving(), "it may still run");
    let child = pid(&child);
    until("the child is killed", || !runs(child)).await;
}

#[tokio::test]
async fn m04_a_stop_that_leaves_the_service_up_is_repeated_until_it_is_down_or_the_limit() {
    let place = Place::new();
    let mut stubborn = place.service("engine");
    let diary = place.path("diary");
    // It takes two stops.
    stubborn.stop = shell(format!(
        "echo stop >>{0}; test $(grep -c stop {0}) -lt 2 || rm {1}",
        diary.display(),
        place.path("engine").display()
    ));
    stubborn.timeout = Duration::from_millis(900);
    let services = place.services(std::slice::from_ref(&stubborn));
    services.primary().await.unwrap();
    services.stop_all().await.unwrap();
    assert_eq!(place.diary(), ["start engine a", "stop", "stop"]);

    stubborn.stop = shell("echo I cannot");
    let services = place.services(&[stubborn]);
    services.primary().await.unwrap();
    let error = services.stop_all().await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "service engine was stopped, but is still up after 0.9 s: asked"
    );
    assert_eq!(
        place.messages("service_output").last().unwrap(),
        "service engine, stop: I cannot"
    );
}

#[tokio::test]
async fn m04_what_does_not_tell_how_it_is_is_not_called_stopped() {
    let place = Place::new();
    let mut silent = place.service("web");
    silent.status = shell(format!(
        "test -e {} || exec sleep 1000",
        place.path("web").display()
    ));
    silent.timeout = Duration::from_millis(300);
    silent.status_timeout = Duration::from_millis(200);
    fs::write(place.path("web"), "").unwrap();
    let services = place.services(&[silent]);
    services.primary().await.unwrap();
    let error = services.stop_all().await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "service web was stopped, but may be up: its status command does not answer"
    );
}

#[tokio::test]
async fn m02_a_status_that_hangs_means_down() {
    let place = Place::new();
    let mut silent = place.service("web");
    silent.status = shell("sleep 1000");
    silent.status_timeout = Duration::from_millis(200);
    silent.timeout = Duration::from_millis(300);
    silent.restarts = 0;
    let services = place.services(&[silent]);
    let error = services.primary().await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "service web was started, but is not up after 0.3 s: its status command does not answer"
    );
}

#[tokio::test]
async fn m02_a_daemon_that_keeps_its_output_open_does_not_hang_us() {
    let place = Place::new();
    let mut forking = place.service("web");
    let child = place.path("child");
    forking.start = shell(format!(
        "echo begun; setsid sleep 1000 & echo $! >{}; touch {}",
        child.display(),
        place.path("web").display()
    ));
    let services = place.services(&[forking]);
    services.primary().await.unwrap();
    let child = pid(&child);
    assert!(runs(child), "a daemon that was left behind is not killed");
    rustix::process::kill_process(child, rustix::process::Signal::KILL).unwrap();
    assert_eq!(
        place.messages("service_output"),
        ["service web, start: begun"]
    );
}

#[tokio::test]
async fn to_stop_breaks_off_a_start_whether_its_command_or_its_status_is_awaited() {
    for script in ["touch {}", "touch {}; sleep 1000"] {
        let place = Place::new();
        let mut slow = place.service("engine");
        let starting = place.path("starting");
        slow.start = shell(script.replace("{}", &starting.display().to_string()));
        slow.timeout = Duration::from_secs(600);
        let services = place.services(&[slow, place.service("web")]);
        let task = services.clone();
        let task = tokio::spawn(async move { task.primary().await });
        until("it is being started", || starting.exists()).await;
        let stopped = async {
            services.stop_all().await.unwrap();
            task.await.unwrap().unwrap_err()
        };
        let error = tokio::time::timeout(PATIENCE, stopped).await.unwrap();
        assert!(matches!(error, ServiceError::BrokenOff { .. }), "{error:?}");
        assert_eq!(states(&services), [ServiceState::Offline; 2]);
    }
}

#[tokio::test]
async fn l17_each_role_runs_its_services_and_no_others() {
    let place = Place::new();
    let services = place.services(&[
        place.service_on("both", On::Both),
        place.service_on("report", On::Standby),
        place.service_on("web", On::Primary),
    ]);
    let wanted = |services: &Services| -> Vec<bool> {
        let status = services.status();
        status.iter().map(|service| service.is_wanted).collect()
    };
    let (up, down) = (ServiceState::Online, ServiceState::Offline);
    services.standby().await.unwrap();
    assert_eq!(states(&services), [up, up, down]);
    assert_eq!(wanted(&services), [true, true, false]);
    assert!(!services.is_serving(), "what a standby runs serves nobody");
    services.primary().await.unwrap();
    assert_eq!(states(&services), [up, down, up]);
    assert_eq!(wanted(&services), [true, false, true]);
    services.stop_primary().await.unwrap();
    assert_eq!(states(&services), [up, down, down]);
    services.standby().await.unwrap();
    services.stop_all().await.unwrap();
    assert_eq!(states(&services), [down; 3]);
    let expected = [
        "start both a",
        "start report a",
        "stop report",
        "start web a",
        "stop web",
        "start report a",
        "stop web",
        "stop report",
        "stop both",
    ];
    assert_eq!(place.diary(), expected);
}

#[tokio::test]
async fn l17_what_a_standby_finds_running_of_the_primary_is_stopped() {
    let place = Place::new();
    fs::write(place.path("web"), "").unwrap();
    let services = place.services(&[place.service("web")]);
    services.standby().await.unwrap();
    assert_eq!(place.diary(), ["stop web"]);
    // Somebody starts it behind our back.
    fs::write(place.path("web"), "").unwrap();
    services.look_at("web").await;
    assert_eq!(place.diary(), ["stop web", "stop web"]);
    assert_eq!(
        place.messages("service_stray"),
        ["service web runs on the primary only, and runs on this node nevertheless; it is stopped"]
    );
    // While the cluster is paused people do things by hand.
    services.set_paused(true);
    fs::write(place.path("web"), "").unwrap();
    services.look_at("web").await;
    assert_eq!(place.diary().len(), 2);
    assert_eq!(states(&services), [ServiceState::Fault]);
    assert!(services.is_serving());
}

#[tokio::test]
async fn what_is_not_critical_and_comes_last_keeps_nobody_waiting() {
    let place = Place::new();
    let mailer = understudy_config::Service {
        is_critical: false,
        ..place.service("mailer")
    };
    let report = understudy_config::Service {
        is_critical: false,
        ..place.service("report")
    };
    let services = place.services(&[place.service("db"), mailer, place.service("web"), report]);
    services.start_critical(&NoProgress).await.unwrap();
    assert!(services.are_up());
    // What a critical one comes after is started before it; what comes after the last one is not.
    assert_eq!(
        place.diary(),
        ["start db a", "start mailer a", "start web a"]
    );
    services.primary().await.unwrap();
    assert_eq!(place.diary().last().unwrap(), "start report a");
    assert_eq!(place.diary().len(), 4);
}
