//! A fence believes that a service is down only where that is certain.

use std::os::unix::fs::PermissionsExt;

use super::*;

/// A status command that is a program of its own, which can be taken away.
fn status_program(place: &Place) -> PathBuf {
    let program = place.path("status");
    let script = format!("#!/bin/sh\ntest -e {}\n", place.path("web").display());
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    program
}

#[tokio::test]
async fn what_cannot_be_asked_is_not_called_stopped_before_it_can_be_asked_again() {
    let place = Place::new();
    let program = status_program(&place);
    let mut web = place.service("web");
    web.status = vec![program.display().to_string()];
    web.timeout = Duration::from_millis(600);
    let services = place.services(&[place.service("mount"), web]);
    services.primary().await.unwrap();
    let aside = place.path("aside");
    fs::rename(&program, &aside).unwrap();
    // Its stop command ends well, and nobody knows what has come of it.
    let error = services.stop_all().await.unwrap_err();
    let expected = format!(
        "service web was stopped, but may be up: cannot run `{}`: No such file or directory (os error 2)",
        program.display()
    );
    assert_eq!(error.to_string(), expected);
    let down_and_doubtful = [ServiceState::Offline, ServiceState::Fault];
    assert_eq!(states(&services), down_and_doubtful);
    assert!(services.is_serving(), "it may still run");
    // To look at it again tells no more, and ends no fault.
    services.look_at("web").await;
    assert_eq!(states(&services), down_and_doubtful);
    assert!(services.is_serving(), "it may still run");
    // Nor is it down for a node that is to follow.
    services.stop_primary().await.unwrap_err();
    assert_eq!(states(&services), down_and_doubtful);

    fs::rename(&aside, &program).unwrap();
    services.stop_all().await.unwrap();
    assert_eq!(states(&services), [ServiceState::Offline; 2]);
    assert!(!services.is_serving());
}

#[tokio::test]
async fn one_that_nobody_could_ever_ask_is_no_success_of_a_fence_either() {
    let place = Place::new();
    let mut web = place.service("web");
    web.status = vec!["/nonexistent/status".to_owned()];
    web.timeout = Duration::from_millis(300);
    // The daemon has just been started on a node that was fenced.
    let services = place.services(&[web]);
    let error = services.stop_all().await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "service web was stopped, but may be up: cannot run `/nonexistent/status`: No such file or directory \
         (os error 2)"
    );
    services.look_at("web").await;
    assert_eq!(states(&services), [ServiceState::Fault]);
}

#[tokio::test]
async fn m04_a_stop_that_was_killed_is_no_stop_though_the_status_says_down() {
    let place = Place::new();
    let mut web = place.service("web");
    // As a unit of systemd that is being stopped: not active any more, and not ended yet.
    let (up, slow) = (place.path("web"), place.path("slow"));
    fs::write(&slow, "").unwrap();
    web.stop = shell(format!(
        "rm -f {}; test ! -e {} || {{ echo it still writes; sleep 1000; }}",
        up.display(),
        slow.display()
    ));
    web.timeout = Duration::from_millis(500);
    let services = place.services(&[web]);
    services.primary().await.unwrap();
    let error = services.stop_all().await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "service web did not stop: `sh` did not end within 0.5 s and was killed: it still writes"
    );
    assert_eq!(states(&services), [ServiceState::Fault]);
    // A fence is tried again, and a stop that ends by itself is believed.
    fs::remove_file(slow).unwrap();
    services.stop_all().await.unwrap();
    assert_eq!(states(&services), [ServiceState::Offline]);
}

#[tokio::test]
async fn m04_a_stop_that_was_killed_and_left_it_up_fails_the_fence_until_it_is_down() {
    let place = Place::new();
    let mut web = place.service("web");
    let (up, stuck) = (place.path("web"), place.path("stuck"));
    fs::write(&stuck, "").unwrap();
    web.stop = shell(format!(
        "test ! -e {} || sleep 1000; rm {}",
        stuck.display(),
        up.display()
    ));
    web.timeout = Duration::from_millis(500);
    let services = place.services(&[web]);
    services.primary().await.unwrap();
    for _ in 0..2 {
        let error = services.stop_all().await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "service web did not stop: `sh` did not end within 0.5 s and was killed"
        );
        assert!(services.is_serving());
        services.look_at("web").await;
        assert!(services.is_serving(), "it is up, and nothing else is told");
    }
    fs::remove_file(stuck).unwrap();
    services.stop_all().await.unwrap();
    assert!(!services.is_serving());
    assert_eq!(place.messages("service_failed").len(), 2);
}
