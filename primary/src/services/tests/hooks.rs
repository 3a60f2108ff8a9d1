//! Hooks tell others, and change nothing.

use super::*;

fn hooks(place: &Place, online: &str, offline: &str) -> Hooks {
    let config = understudy_config::Hooks {
        online: Some(shell(online)),
        offline: Some(shell(offline)),
        user: None,
        timeout: Duration::from_millis(300),
    };
    let env = vec![("UNDERSTUDY_NODE".to_owned(), "a".to_owned())];
    Hooks::new(Some(&config), env, place.events()).unwrap()
}

#[tokio::test]
async fn m18_hooks_are_run_timed_out_and_told_and_are_never_a_failure() {
    let place = Place::new();
    let hooks = hooks(
        &place,
        "echo $UNDERSTUDY_NODE is $UNDERSTUDY_HOOK",
        "echo leaving; sleep 1000",
    );
    hooks.online().await;
    tokio::time::timeout(PATIENCE, hooks.offline())
        .await
        .unwrap();
    assert_eq!(place.kinds(), ["hook_done", "hook_failed"]);
    assert_eq!(
        place.told()[0].message,
        "the hook `online` has run: a is online"
    );
    assert!(
        place.told()[1].message.ends_with("and was killed: leaving"),
        "{:?}",
        place.told()
    );
}

#[tokio::test]
async fn m18_without_hooks_nothing_is_run() {
    let place = Place::new();
    let hooks = Hooks::new(None, Vec::new(), place.events()).unwrap();
    hooks.online().await;
    hooks.offline().await;
    assert_eq!(place.kinds(), Vec::<String>::new());
}
