//! Services are watched, and started again.

use understudy_replication::store::Stopper;

use super::*;

/// Watches the services while `work` runs.
async fn watched<T>(services: &Arc<Services>, work: impl Future<Output = T>) -> T {
    let (stopper, stop) = Stopper::new();
    let watching = tokio::spawn(services.clone().watch(stop));
    let value = work.await;
    stopper.stop();
    tokio::time::timeout(PATIENCE, watching)
        .await
        .unwrap()
        .unwrap();
    value
}

#[tokio::test]
async fn m06_a_service_that_is_killed_is_started_again_and_the_outage_is_told() {
    let place = Place::new();
    let mut web = place.service("web");
    let number = place.path("pid");
    let file = number.display();
    web.start = shell(format!(
        "setsid sleep 1000 >/dev/null 2>&1 & echo $! >{file}"
    ));
    web.stop = shell(format!("kill $(cat {file}); rm {file}"));
    web.status = shell(format!("grep -q sleep /proc/$(cat {file})/cmdline"));
    let services = place.services(&[place.service("mount"), web]);
    services.primary().await.unwrap();
    let first = pid(&number);
    watched(&services, async {
        rustix::process::kill_process(first, rustix::process::Signal::KILL).unwrap();
        until("it is told", || {
            !place.messages("service_restarted").is_empty()
        })
        .await;
    })
    .await;
    assert_eq!(states(&services), [ServiceState::Online; 2]);
    assert!(!runs(first) && runs(pid(&number)));
    let told = &place.messages("service_restarted")[0];
    assert!(
        told.starts_with("service web was seen down for ")
            && told.ends_with(" s, and is up again; restart 1 of 3 in 3600 s"),
        "{told}"
    );
    assert_eq!(place.messages("service_down").len(), 1);
    let web = &services.status()[1];
    assert_eq!(
        (web.restarts, web.restarts_max, web.restarts_total),
        (1, 3, 1)
    );
    services.stop_all().await.unwrap();
}

#[tokio::test]
async fn m05_it_is_started_again_so_often_and_then_it_is_a_fault_until_it_is_cleared() {
    let place = Place::new();
    let mut web = place.service("web");
    web.restarts = 2;
    let services = place.services(&[web]);
    services.primary().await.unwrap();
    for _ in 0..4 {
        // Where it has been given up, it is down already.
        let _gone = fs::remove_file(place.path("web")).is_err();
        services.look_at("web").await;
    }
    let starts = |place: &Place| {
        let diary = place.diary();
        diary.iter().filter(|line| *line == "start web a").count()
    };
    assert_eq!(starts(&place), 3);
    assert_eq!(states(&services), [ServiceState::Fault]);
    assert!(!services.are_up());
    assert_eq!(place.messages("service_fault").len(), 1);
    assert_eq!(place.messages("service_down").len(), 3);
    services.clear(&name("web")).unwrap();
    services.look_at("web").await;
    assert_eq!(starts(&place), 4);
    assert_eq!(states(&services), [ServiceState::Online]);
}

#[tokio::test]
async fn one_that_is_mended_by_hand_is_no_fault_any_more() {
    let place = Place::new();
    let mut web = place.service("web");
    web.restarts = 0;
    let services = place.services(&[web]);
    services.primary().await.unwrap();
    fs::remove_file(place.path("web")).unwrap();
    services.look_at("web").await;
    services.look_at("web").await;
    assert_eq!(states(&services), [ServiceState::Fault]);
    fs::write(place.path("web"), "").unwrap();
    services.look_at("web").await;
    assert_eq!(states(&services), [ServiceState::Online]);
    let expected = [
        "service_started",
        "service_down",
        "service_fault",
        "service_recovered",
    ];
    assert_eq!(place.kinds(), expected);
}

#[tokio::test]
async fn what_waits_for_another_is_not_started_before_that_is_up() {
    let place = Place::new();
    let mut mount = place.service("mount");
    mount.restarts = 0;
    let mut web = place.service("web");
    web.after = vec![name("mount")];
    let services = place.services(&[mount, web]);
    services.primary().await.unwrap();
    for service in ["mount", "web"] {
        fs::remove_file(place.path(service)).unwrap();
    }
    services.look_at("mount").await;
    services.look_at("web").await;
    services.look_at("web").await;
    assert_eq!(place.diary(), ["start mount a", "start web a"]);
    let status = services.status();
    assert_eq!(status[1].message, "it waits for service mount; asked");
    assert_eq!(status[1].restarts, 0, "to wait costs nothing");
    services.clear(&name("mount")).unwrap();
    fs::write(place.path("mount"), "").unwrap();
    services.look_at("mount").await;
    services.look_at("web").await;
    assert_eq!(
        place.diary(),
        ["start mount a", "start web a", "stop web", "start web a"]
    );
}

#[tokio::test]
async fn while_the_cluster_is_paused_nothing_is_started_again() {
    let place = Place::new();
    let services = place.services(&[place.service("web")]);
    services.primary().await.unwrap();
    services.set_paused(true);
    fs::remove_file(place.path("web")).unwrap();
    services.look_at("web").await;
    services.look_at("web").await;
    assert_eq!(place.diary(), ["start web a"]);
    assert_eq!(states(&services), [ServiceState::Fault]);
    assert_eq!(place.messages("service_down").len(), 1);
    services.set_paused(false);
    services.look_at("web").await;
    assert_eq!(states(&services), [ServiceState::Online]);
}

#[tokio::test]
async fn on_a_node_that_should_not_run_it_a_service_that_is_down_is_no_fault() {
    let place = Place::new();
    let services = place.services(&[place.service("web")]);
    watched(&services, async {
        until("it is seen", || {
            states(&services) == [ServiceState::Offline]
        })
        .await;
    })
    .await;
    assert_eq!(place.kinds(), Vec::<String>::new());
}

#[tokio::test]
async fn what_a_standby_runs_is_started_when_the_node_follows_and_ends_with_a_fence() {
    let place = Place::new();
    let services = place.services(&[
        place.service_on("report", On::Standby),
        place.service_on("web", On::Primary),
    ]);
    watched(&services, async {
        services.follow(async {});
        let mut settled = services.settled();
        settled
            .wait_for(|place| *place == Some(Placement::Standby))
            .await
            .unwrap();
        assert_eq!(place.diary(), ["start report a"]);
        services.stop_all().await.unwrap();
        assert_eq!(*settled.borrow(), None);
    })
    .await;
    assert_eq!(place.diary(), ["start report a", "stop web", "stop report"]);
}

#[tokio::test]
async fn l17_what_may_not_run_on_a_standby_is_stopped_before_its_stores_are_ready() {
    let place = Place::new();
    fs::write(place.path("web"), "").unwrap();
    let services = place.services(&[
        place.service_on("report", On::Standby),
        place.service_on("web", On::Primary),
    ]);
    let (ready, is_ready) = tokio::sync::oneshot::channel();
    watched(&services, async {
        services.arrive();
        services.follow(async move { is_ready.await.unwrap() });
        until("it is stopped", || {
            place.diary() == ["stop web"] && states(&services)[1] == ServiceState::Offline
        })
        .await;
        assert!(!services.status()[0].is_wanted);
        ready.send(()).unwrap();
        until("it is started", || {
            states(&services)[0] == ServiceState::Online
        })
        .await;
    })
    .await;
    assert_eq!(place.diary(), ["stop web", "start report a"]);
}

#[tokio::test]
async fn to_follow_that_comes_late_does_not_stop_what_a_promotion_has_started() {
    let place = Place::new();
    let services = place.services(&[place.service("web")]);
    services.follow(async {});
    services.primary().await.unwrap();
    watched(&services, async {
        until("it was looked at", || services.status()[0].probed.is_some()).await;
        services.primary().await.unwrap();
    })
    .await;
    assert_eq!(place.diary(), ["start web a"]);
}

#[tokio::test]
async fn who_waits_for_a_change_is_woken_by_it() {
    let place = Place::new();
    let services = place.services(&[place.service("web")]);
    services.primary().await.unwrap();
    let mut changes = services.subscribe();
    changes.mark_unchanged();
    fs::remove_file(place.path("web")).unwrap();
    services.set_paused(true);
    services.look_at("web").await;
    assert!(changes.has_changed().unwrap());
}

#[tokio::test]
async fn when_who_looks_after_a_service_breaks_nothing_is_known_of_it_and_that_is_told() {
    let place = Place::new();
    let mut web = place.service("web");
    // No clock knows when that is over.
    web.timeout = Duration::MAX;
    fs::write(place.path("web"), "").unwrap();
    let services = place.services(&[web]);
    services.primary().await.unwrap();
    assert_eq!(states(&services), [ServiceState::Online]);
    watched(&services, async {
        fs::remove_file(place.path("web")).unwrap();
        until("it is told", || {
            !place.messages("service_unknown").is_empty()
        })
        .await;
    })
    .await;
    assert_eq!(states(&services), [ServiceState::Unknown]);
    // It may have been started: who is fenced stops it.
    assert!(services.is_serving());
    let told = &place.messages("service_unknown")[0];
    assert!(
        told.starts_with(
            "nothing is known of service web: who looks after it has broken: overflow"
        ) && told.ends_with("it goes on in 1 s; this is a mistake in understudy"),
        "{told}"
    );
}
