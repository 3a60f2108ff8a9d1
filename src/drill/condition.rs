//! How a pair is, before something is broken and after it.

use std::collections::BTreeSet;

use understudy_replication::status::{RoleName, Status};

/// How a pair is, as one of its nodes tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Condition {
    role: RoleName,
    /// The nodes that are connected with this one.
    connected: BTreeSet<String>,
    /// What `understudy status` says against `well`.
    unwell: Vec<String>,
    problems: Vec<String>,
}

impl Condition {
    pub(super) fn of(status: &Status) -> Self {
        let standbys = status.standbys.iter().filter(|it| it.is_connected);
        let primary = status.upstream.iter().filter(|it| it.is_connected);
        let connected = standbys
            .map(|it| it.node.to_string())
            .chain(primary.map(|it| it.primary.to_string()));
        Self {
            role: status.role,
            connected: connected.collect(),
            unwell: understudy_monitor::unwell(status),
            problems: status.problems.clone(),
        }
    }

    /// Returns what is not well, each in a few words or a sentence.
    pub(super) fn unwell(&self) -> Vec<String> {
        self.unwell.iter().chain(&self.problems).cloned().collect()
    }

    /// Returns what is not as it was `before`, if that is known, each in a few words.
    pub(super) fn missing_since(&self, before: Option<&Self>) -> Vec<String> {
        let was = |what: &&String| before.is_some_and(|before| before.unwell.contains(*what));
        let mut missing: Vec<String> = self
            .unwell
            .iter()
            .filter(|what| !was(what))
            .cloned()
            .collect();
        let Some(before) = before else {
            return missing;
        };
        if before.role != self.role {
            missing.push(format!("it is {} now", self.role.as_str()));
        }
        // A primary that has just started knows of no standby yet, and nothing is wrong with none.
        for name in before.connected.difference(&self.connected) {
            let what = format!("{name} is not connected");
            if !missing.contains(&what) {
                missing.push(what);
            }
        }
        missing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn condition(role: RoleName, connected: &[&str], unwell: &[&str]) -> Condition {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Condition {
            role,
            connected: connected.iter().map(|name| (*name).to_owned()).collect(),
            unwell: owned(unwell),
            problems: Vec::new(),
        }
    }

    #[test]
    fn a_pair_is_as_before_when_its_standby_is_connected_and_nothing_new_is_wrong() {
        let before = condition(RoleName::Primary, &["b"], &["job backup has failed"]);
        let missing = |connected: &[&str], unwell: &[&str]| {
            condition(RoleName::Primary, connected, unwell).missing_since(Some(&before))
        };
        assert!(missing(&["b"], &["job backup has failed"]).is_empty());
        assert!(missing(&["b"], &[]).is_empty());
        assert_eq!(
            missing(&[], &["b is not connected", "1 problem"]),
            ["b is not connected", "1 problem"]
        );
        // Started anew, it has heard of no standby.
        assert_eq!(missing(&[], &[]), ["b is not connected"]);
        assert_eq!(
            missing(&["b"], &["the lag of kv is unknown"]),
            ["the lag of kv is unknown"]
        );
        let fenced = condition(RoleName::Fenced, &["b"], &[]);
        assert_eq!(fenced.missing_since(Some(&before)), ["it is fenced now"]);
    }

    #[test]
    fn where_nothing_is_known_of_before_it_has_to_be_well() {
        let now = condition(RoleName::Primary, &[], &["1 problem"]);
        assert_eq!(now.missing_since(None), ["1 problem"]);
    }
}
