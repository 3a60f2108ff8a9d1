//! Who runs a command, for those who read later what was done.

use understudy_replication::command::OsUser;

/// Returns the name of whoever runs this: what the environment says, else what the operating system does. Nobody
/// is kept from working because neither has a name.
pub(crate) fn who_runs_this() -> String {
    let uid = rustix::process::getuid().as_raw();
    let of_environment = |name| std::env::var(name).ok();
    named(of_environment, || OsUser::name_of(uid), uid)
}

fn named(
    of_environment: impl Fn(&'static str) -> Option<String>,
    of_system: impl Fn() -> Option<String>,
    uid: u32,
) -> String {
    let names = ["SUDO_USER", "USER", "LOGNAME"].into_iter();
    let found = names
        .filter_map(of_environment)
        .find(|name| !name.is_empty());
    found
        .or_else(of_system)
        .unwrap_or_else(|| format!("uid {uid}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_has_a_name() {
        let nothing = |_| None;
        let set = |name: &str| match name {
            "SUDO_USER" => Some(String::new()),
            "USER" => Some("eva".to_owned()),
            _ => Some("root".to_owned()),
        };
        let root = || Some("root".to_owned());
        assert_eq!(named(set, root, 0), "eva");
        assert_eq!(named(nothing, root, 0), "root");
        assert_eq!(named(nothing, || None, 4711), "uid 4711");
        assert!(!who_runs_this().is_empty());
    }
}
