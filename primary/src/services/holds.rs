//! What is held back on a node although its role allows it, over restarts of the daemon.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use understudy_config::StoreName;
use understudy_replication::status::{Hold, StoppedBy};

/// The services, or the jobs, that do not run by themselves. Kept in a [`Ledger`](super::ledger::Ledger).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Holds {
    /// Held back since the promotion.
    held: BTreeSet<StoreName>,
    /// Stopped by an operator.
    stopped: BTreeSet<StoreName>,
    /// Who has stopped them. What an older daemon has written says nothing of it.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    stopped_by: BTreeMap<StoreName, StoppedBy>,
}

impl Holds {
    /// Returns what holds it back; an operator's word is the last.
    pub(crate) fn of(&self, name: &StoreName) -> Option<Hold> {
        if self.stopped.contains(name) {
            Some(Hold::Operator)
        } else if self.held.contains(name) {
            Some(Hold::Failover)
        } else {
            None
        }
    }

    /// Holds these back, since the node was promoted.
    pub(crate) fn hold(&mut self, names: impl IntoIterator<Item = StoreName>) {
        self.held.extend(names);
    }

    /// Returns who has stopped it, if an operator has.
    pub(crate) fn stopped_by(&self, name: &StoreName) -> Option<&StoppedBy> {
        // What an older daemon has let go since may have left a word here.
        let is_stopped = self.stopped.contains(name);
        self.stopped_by.get(name).filter(|_| is_stopped)
    }

    /// Takes in that an operator stops it.
    pub(crate) fn stop(&mut self, name: StoreName, by: StoppedBy) {
        self.stopped_by.insert(name.clone(), by);
        self.stopped.insert(name);
    }

    /// Ends whatever holds it back.
    pub(crate) fn let_go(&mut self, name: &StoreName) {
        self.held.remove(name);
        self.stopped.remove(name);
        self.stopped_by.remove(name);
    }

    /// Ends what a promotion holds back and what operators have stopped of a primary: both is over once this node
    /// follows one. Else a promotion in a year would leave down what somebody stops for a minute today.
    pub(crate) fn follow(&mut self, runs_on_standbys: impl Fn(&StoreName) -> bool) {
        self.held.clear();
        self.stopped.retain(runs_on_standbys);
        let stopped = &self.stopped;
        self.stopped_by.retain(|name, _| stopped.contains(name));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use understudy_replication::wall_time::WallTime;

    fn name(text: &str) -> StoreName {
        text.parse().unwrap()
    }

    fn eva() -> StoppedBy {
        StoppedBy {
            who: Some("eva".to_owned()),
            at: WallTime(1_700_000_000_000),
        }
    }

    #[test]
    fn a_standby_forgets_what_was_held_of_a_primary() {
        let (mail, report, web) = (name("mail"), name("report"), name("web"));
        let mut holds = Holds::default();
        holds.hold([mail.clone(), web.clone()]);
        for stopped in [&report, &web] {
            holds.stop(stopped.clone(), eva());
        }
        let of = |holds: &Holds| [&mail, &report, &web].map(|name| holds.of(name));
        let (failover, operator) = (Some(Hold::Failover), Some(Hold::Operator));
        assert_eq!(of(&holds), [failover, operator, operator]);
        let mut promoted = holds.clone();
        holds.follow(|name| *name == report);
        assert_eq!(of(&holds), [None, operator, None]);
        let by = [&mail, &report, &web].map(|name| holds.stopped_by(name));
        assert_eq!(by, [None, Some(&eva()), None]);
        promoted.let_go(&web);
        assert_eq!(of(&promoted), [failover, operator, None]);
        assert_eq!(promoted.stopped_by(&web), None);
    }

    #[test]
    fn the_file_is_the_one_that_it_always_was() {
        let text = r#"{"held":["mail"],"stopped":["web"]}"#;
        let holds: Holds = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&holds).unwrap(), text);
        assert_eq!(holds.stopped_by(&name("web")), None);
        let mut known = holds;
        known.stop(name("web"), eva());
        let text = serde_json::to_string(&known).unwrap();
        assert_eq!(serde_json::from_str::<Holds>(&text).unwrap(), known);
        assert_eq!(
            serde_json::from_str::<Holds>("{}").unwrap(),
            Holds::default()
        );
    }
}
