//! What operators and failovers ask for survives a restart of the daemon.

use understudy_replication::status::Hold;

use super::*;

#[tokio::test]
async fn what_an_operator_stops_stays_stopped_until_it_is_started_over_restarts_of_the_daemon() {
    let place = Place::new();
    let configs = ["mount", "web"].map(|name| place.service(name));
    let services = place.services(&configs);
    services.primary().await.unwrap();
    services.stop_one(&name("web"), eva()).await.unwrap();
    services.look_at("web").await;
    let services = place.services(&configs);
    services.primary().await.unwrap();
    services.look_at("web").await;
    let web = services.status().remove(1);
    assert_eq!(
        (web.state, web.hold, web.is_wanted, web.message.as_str()),
        (
            ServiceState::Offline,
            Some(Hold::Operator),
            false,
            "stopped by an operator; `understudy services start web` starts it"
        )
    );
    assert_eq!(web.stopped, Some(eva()));
    assert!(
        services.are_up(),
        "what an operator has stopped is not missing"
    );
    services.start_one(&name("web")).await.unwrap();
    assert_eq!(states(&services), [ServiceState::Online; 2]);
    assert_eq!(services.status()[1].stopped, None);
    assert_eq!(
        place.diary(),
        ["start mount a", "start web a", "stop web", "start web a"]
    );
}

#[tokio::test]
async fn l15_what_is_held_after_a_failover_waits_for_an_operator_over_restarts() {
    let place = Place::new();
    let mut mailer = place.service("mailer");
    mailer.after_failover = AfterFailover::Hold;
    let configs = [mailer, place.service("web")];
    let services = place.services(&configs);
    services.hold_after_failover();
    services.primary().await.unwrap();
    assert_eq!(place.diary(), ["start web a"]);
    assert!(services.are_up());
    let services = place.services(&configs);
    services.primary().await.unwrap();
    services.look_at("mailer").await;
    assert_eq!(place.diary(), ["start web a"]);
    assert_eq!(services.status()[0].hold, Some(Hold::Failover));
    services.start_one(&name("mailer")).await.unwrap();
    let services = place.services(&configs);
    services.primary().await.unwrap();
    assert_eq!(states(&services), [ServiceState::Online; 2]);
    assert_eq!(
        place.messages("service_held"),
        [
            "service mailer is held back: this node was promoted, and after_failover is \"hold\"; start it with \
             `understudy services start mailer`"
        ]
    );
}

#[tokio::test]
async fn l15_what_a_failover_holds_is_over_once_the_node_follows() {
    let place = Place::new();
    let mut mailer = place.service("mailer");
    mailer.after_failover = AfterFailover::Hold;
    let services = place.services(&[mailer, place.service("web")]);
    services.hold_after_failover();
    services.primary().await.unwrap();
    services.stop_one(&name("web"), eva()).await.unwrap();
    services.standby().await.unwrap();
    // In peace: nothing is held.
    services.primary().await.unwrap();
    assert_eq!(states(&services), [ServiceState::Online; 2]);
}

#[tokio::test]
async fn an_operator_is_refused_what_the_role_forbids() {
    let place = Place::new();
    let services = place.services(&[place.service("web")]);
    let web = name("web");
    for place in [None, Some(Placement::Standby)] {
        if let Some(place) = place {
            services.start_all(place, &NoProgress).await.unwrap();
        }
        let refused = [
            services.start_one(&web).await,
            services.stop_one(&web, eva()).await,
            services.restart_one(&web).await,
        ];
        for error in refused {
            assert_eq!(
                error.unwrap_err().to_string(),
                "service web runs on the primary only"
            );
        }
    }
    let unknown = services.start_one(&name("wbe")).await.unwrap_err();
    assert_eq!(unknown.to_string(), "there is no service `wbe`");
    assert_eq!(place.diary(), Vec::<String>::new());
}

#[tokio::test]
async fn an_operator_restarts_a_service() {
    let place = Place::new();
    let services = place.services(&[place.service("web")]);
    services.primary().await.unwrap();
    services.restart_one(&name("web")).await.unwrap();
    assert_eq!(place.diary(), ["start web a", "stop web", "start web a"]);
    assert_eq!(services.status()[0].restarts_total, 0);
}

#[tokio::test]
async fn to_stop_one_breaks_off_its_start_and_the_others_go_on() {
    let place = Place::new();
    let mut slow = place.service("engine");
    let starting = place.path("starting");
    slow.start = shell(format!("touch {}; sleep 1000", starting.display()));
    slow.timeout = Duration::from_secs(600);
    let services = place.services(&[slow, place.service("web")]);
    let task = services.clone();
    let task = tokio::spawn(async move { task.primary().await });
    until("it is being started", || starting.exists()).await;
    let stopped = tokio::time::timeout(PATIENCE, services.stop_one(&name("engine"), eva())).await;
    stopped.unwrap().unwrap();
    task.await.unwrap().unwrap();
    assert_eq!(
        states(&services),
        [ServiceState::Offline, ServiceState::Online]
    );
}

#[test]
fn what_cannot_be_understood_is_not_taken_for_nothing() {
    let place = Place::new();
    fs::write(place.path("services.json"), "{\"held\": [5").unwrap();
    let made = Services::new(&[], Vec::new(), place.events(), place.0.path());
    let Err(error) = made else {
        panic!("it was taken");
    };
    assert!(
        error
            .to_string()
            .contains("services.json is damaged; remove it"),
        "{error}"
    );
}
