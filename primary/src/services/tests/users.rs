//! Commands run as the user that is named.

use understudy_replication::error_chain;

use super::*;

#[tokio::test]
async fn a_user_who_is_not_there_is_told_before_anything_runs() {
    if !nix::unistd::Uid::effective().is_root() {
        return;
    }
    let place = Place::new();
    let mut web = place.service("web");
    web.user = Some("no-such-user".to_owned());
    let made = Services::new(&[web], Vec::new(), place.events(), place.0.path());
    let Err(error) = made else {
        panic!("it was taken");
    };
    assert_eq!(
        error_chain(&error),
        "service `web` cannot run as `no-such-user`: there is no operating system user `no-such-user`"
    );
}

#[tokio::test]
async fn commands_run_as_the_user_that_is_named() {
    if !nix::unistd::Uid::effective().is_root() {
        return;
    }
    use std::os::unix::fs::PermissionsExt;
    let place = Place::new();
    fs::set_permissions(place.0.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let mut web = place.service("web");
    web.user = Some("nobody".to_owned());
    let (who, up) = (place.path("who"), place.path("web"));
    web.start = shell(format!(
        "id -un >>{0}; test -e {1} || touch {1}",
        who.display(),
        up.display()
    ));
    web.stop = shell(format!("id -un >>{}; rm {}", who.display(), up.display()));
    web.status = shell(format!(
        "test $(id -un) = nobody && test -e {}",
        up.display()
    ));
    let services = place.services(&[web]);
    services.primary().await.unwrap();
    services.stop_all().await.unwrap();
    assert_eq!(fs::read_to_string(who).unwrap(), "nobody\nnobody\n");
}
