//! The role machine: what a node is, and what follows when something happens.
//!
//! Pure: events in, actions out. The shell carries the actions out in the order given and stops at
//! the first failure, so order is the contract: what has to be durable is recorded before it acts,
//! and a superseded node fences before anything else.

use serde::{Deserialize, Serialize};
use understudy_config::NodeName;

use crate::epoch::Epoch;
use crate::status::RoleName;

/// What a node is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Takes all traffic in `epoch`.
    Primary {
        /// The epoch that it writes in.
        epoch: Epoch,
        /// The nodes that have joined it as standbys in this epoch.
        standbys: Vec<NodeName>,
    },
    /// Was primary in `epoch` before a restart, with standbys that may have superseded it since.
    Returning {
        /// The epoch that it wrote in.
        epoch: Epoch,
        /// The nodes that had joined it.
        standbys: Vec<NodeName>,
    },
    /// Keeps a copy of `primary`'s stores.
    Standby {
        /// The highest epoch it has seen.
        epoch: Epoch,
        /// The node it follows.
        primary: NodeName,
        /// The epoch that a promotion here has asked its peers to fence themselves for.
        proposed: Option<Epoch>,
    },
    /// Has opened `epoch`, and is on its way to primary.
    Promoting {
        /// The epoch that it has opened.
        epoch: Epoch,
    },
    /// Has been superseded by `epoch`; serves nothing.
    Fenced {
        /// The highest epoch it has seen.
        epoch: Epoch,
        /// It handed over in a switchover: it follows the new primary as soon as there is one, without
        /// another word of an operator.
        #[serde(default)]
        follows: bool,
    },
}

/// What can happen to a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The daemon has started with this role on disk.
    Started,
    /// A message of a peer carried this epoch.
    Heard(Epoch),
    /// A standby takes over in this epoch by a switchover: everything is left to it in peace, and it is
    /// followed from then on.
    HandOver(Epoch),
    /// A peer has answered, and knows of no epoch above ours.
    Reassured,
    /// Nobody has answered for as long as a restarted primary may leave running what it found.
    Alone {
        /// How many other nodes the configuration names.
        others: usize,
    },
    /// A promotion here is about to ask its peers to fence themselves.
    Propose,
    /// The peers are fenced (or an operator answers for it): open the epoch that they are fenced for.
    Open(Epoch),
    /// Every store, index and service of the promotion is up.
    Risen,
    /// A node has joined as a standby.
    Joined(NodeName),
    /// The operator has taken a node out of the configuration.
    Left(NodeName),
    /// Every store here is a copy of that node's, which is primary in this epoch.
    Rejoined {
        /// The primary.
        primary: NodeName,
        /// Its epoch.
        epoch: Epoch,
    },
}

/// What must be done, in this order, before the next event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Make the new role durable.
    Record,
    /// Ship the stores, keep the services up.
    Serve,
    /// Ask the peers which epoch they are in, until one answers.
    AskPeers,
    /// Follow the primary.
    Follow,
    /// Stop the services, then the stores, whatever state they are in.
    Fence,
    /// Stop receiving: the stores are about to be taken over.
    StopReceiving,
}

/// Why an event is not possible in a role.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a node that is {} cannot {what}", role.as_str())]
pub struct Impossible {
    /// What the node is.
    pub role: RoleName,
    /// What was asked of it.
    pub what: &'static str,
}

impl Role {
    /// Returns the highest epoch that this node has made durable.
    pub fn epoch(&self) -> &Epoch {
        match self {
            Self::Primary { epoch, .. }
            | Self::Returning { epoch, .. }
            | Self::Standby { epoch, .. }
            | Self::Promoting { epoch }
            | Self::Fenced { epoch, .. } => epoch,
        }
    }

    /// Returns the highest epoch that this node has seen, or asks its peers to fence themselves for.
    pub fn highest_epoch(&self) -> &Epoch {
        match self {
            Self::Standby {
                epoch,
                proposed: Some(proposed),
                ..
            } => epoch.max(proposed),
            Self::Standby { proposed: None, .. }
            | Self::Primary { .. }
            | Self::Returning { .. }
            | Self::Promoting { .. }
            | Self::Fenced { .. } => self.epoch(),
        }
    }

    /// Returns the epoch that a promotion of node `me` would open now: one that it has proposed before
    /// may have fenced a peer already, and is opened in the end.
    pub fn next_epoch(&self, me: &NodeName) -> Epoch {
        let next = self.epoch().superseded_by(me.clone());
        next.max(self.highest_epoch().clone())
    }

    /// Returns the role without its data.
    pub fn name(&self) -> RoleName {
        match self {
            Self::Primary { .. } => RoleName::Primary,
            Self::Returning { .. } => RoleName::Returning,
            Self::Standby { .. } => RoleName::Standby,
            Self::Promoting { .. } => RoleName::Promoting,
            Self::Fenced { .. } => RoleName::Fenced,
        }
    }

    /// Returns the node that is primary, as far as this node knows.
    pub fn primary(&self, me: &NodeName) -> Option<NodeName> {
        match self {
            Self::Primary { .. } => Some(me.clone()),
            Self::Standby { primary, .. } => Some(primary.clone()),
            Self::Fenced { epoch, .. } if epoch.node != *me => Some(epoch.node.clone()),
            Self::Returning { .. } | Self::Promoting { .. } | Self::Fenced { .. } => None,
        }
    }

    /// Applies `event`, and returns the new role and what follows from it.
    ///
    /// # Errors
    /// When the event asks for what this role cannot do; nothing has changed then.
    pub fn step(&self, me: &NodeName, event: Event) -> Result<(Self, Vec<Action>), Impossible> {
        let unchanged = (self.clone(), vec![]);
        let impossible = |what| {
            Err(Impossible {
                role: self.name(),
                what,
            })
        };
        Ok(match (self, event) {
            // Before anybody has joined a new cluster, there is nobody to supersede its primary.
            (Self::Primary { epoch, standbys }, Event::Started)
                if standbys.is_empty() && epoch.number <= 1 =>
            {
                (self.clone(), vec![Action::Serve])
            }
            (Self::Primary { epoch, standbys }, Event::Started) => (
                Self::Returning {
                    epoch: epoch.clone(),
                    standbys: standbys.clone(),
                },
                // Not recorded: a second restart must find the same doubt.
                vec![Action::AskPeers],
            ),
            (Self::Standby { .. }, Event::Started) => (self.clone(), vec![Action::Follow]),
            // Which of its peers are fenced is not known after a restart: the operator says
            // `promote` again, and the plan is made anew.
            (Self::Promoting { .. }, Event::Started) => unchanged,
            (Self::Fenced { .. }, Event::Started) => (self.clone(), vec![Action::Fence]),
            (Self::Returning { .. }, Event::Started) => (self.clone(), vec![Action::AskPeers]),

            (Self::Standby { proposed, .. }, Event::Heard(heard))
                if proposed.as_ref() == Some(&heard) =>
            {
                // A peer has fenced itself for our own proposal.
                unchanged
            }
            (_, Event::Heard(heard)) if heard <= *self.epoch() => unchanged,
            (Self::Standby { primary, .. }, Event::Heard(heard)) => {
                // An epoch in our own name that we do not remember is no reason to follow
                // ourselves.
                let follows = if heard.node == *me {
                    primary.clone()
                } else {
                    heard.node.clone()
                };
                (
                    Self::Standby {
                        epoch: heard,
                        primary: follows,
                        proposed: None,
                    },
                    vec![Action::Record, Action::Follow],
                )
            }
            (
                Self::Primary { .. } | Self::Returning { .. } | Self::Promoting { .. },
                Event::Heard(heard),
            ) => (
                Self::Fenced {
                    epoch: heard,
                    follows: false,
                },
                // Fenced first: a crash in between leaves a node that, being superseded, will hear
                // so again; the other order could leave one that calls itself fenced and writes.
                vec![Action::Fence, Action::Record],
            ),
            (Self::Fenced { follows, .. }, Event::Heard(heard)) => (
                Self::Fenced {
                    epoch: heard,
                    follows: *follows,
                },
                vec![Action::Record],
            ),
            (
                Self::Primary { .. } | Self::Returning { .. } | Self::Promoting { .. },
                Event::HandOver(heard),
            ) if heard > *self.epoch() => (
                Self::Fenced {
                    epoch: heard,
                    follows: true,
                },
                vec![Action::Fence, Action::Record],
            ),
            (_, Event::HandOver(heard)) => return self.step(me, Event::Heard(heard)),

            (Self::Fenced { .. }, Event::Rejoined { primary, epoch }) => {
                // A primary that has not heard of the epoch that fenced us is superseded itself.
                if epoch < *self.epoch() || primary == *me {
                    return impossible("follow a primary that has been superseded");
                }
                (
                    Self::Standby {
                        epoch,
                        primary,
                        proposed: None,
                    },
                    vec![Action::Record, Action::Follow],
                )
            }
            (
                Self::Primary { .. }
                | Self::Returning { .. }
                | Self::Standby { .. }
                | Self::Promoting { .. },
                Event::Rejoined { .. },
            ) => return impossible("become a standby"),

            (Self::Returning { epoch, standbys }, Event::Reassured) => (
                Self::Primary {
                    epoch: epoch.clone(),
                    standbys: standbys.clone(),
                },
                vec![Action::Serve],
            ),
            (
                Self::Primary { .. }
                | Self::Standby { .. }
                | Self::Promoting { .. }
                | Self::Fenced { .. },
                Event::Reassured,
            ) => unchanged,
            // Nobody has joined in its epoch, and the only other node is one that it has superseded
            // itself, so that only an operator's force there could have superseded it; whoever was there
            // to say so has been asked. A third node could have heard of the epoch, and have been
            // promoted as its standby without ever having joined.
            (Self::Returning { epoch, standbys }, Event::Alone { others })
                if standbys.is_empty() && others <= 1 =>
            {
                (
                    Self::Primary {
                        epoch: epoch.clone(),
                        standbys: vec![],
                    },
                    vec![Action::Serve],
                )
            }
            (Self::Returning { .. }, Event::Alone { .. }) => (self.clone(), vec![Action::Fence]),
            (
                Self::Primary { .. }
                | Self::Standby { .. }
                | Self::Promoting { .. }
                | Self::Fenced { .. },
                Event::Alone { .. },
            ) => unchanged,

            (Self::Standby { epoch, primary, .. }, Event::Propose) => {
                let next = self.next_epoch(me);
                (
                    Self::Standby {
                        epoch: epoch.clone(),
                        primary: primary.clone(),
                        proposed: Some(next),
                    },
                    vec![Action::Record],
                )
            }
            (Self::Returning { .. } | Self::Fenced { .. }, Event::Propose) => unchanged,
            (Self::Promoting { .. }, Event::Propose) => unchanged,
            (Self::Primary { .. }, Event::Propose) => return impossible("be promoted"),

            (
                Self::Standby { .. } | Self::Returning { .. } | Self::Fenced { .. },
                Event::Open(epoch),
            ) => {
                // A superseded node that goes back to its own data hears of the epoch that it is about to
                // open from the peer that has fenced itself for it. It has not opened it before: a node
                // is fenced by what is higher than all that it has opened.
                let is_own = matches!(self, Self::Fenced { epoch: heard, .. } if *heard == epoch)
                    && epoch.node == *me;
                // Another epoch may have been heard of since the peers were fenced for this one.
                if epoch != self.next_epoch(me) && !is_own {
                    return impossible("open an epoch that has been superseded meanwhile");
                }
                let actions = if self.name() == RoleName::Standby {
                    vec![Action::StopReceiving, Action::Record]
                } else {
                    vec![Action::Record]
                };
                (Self::Promoting { epoch }, actions)
            }
            (Self::Promoting { .. }, Event::Open(_)) => unchanged,
            (Self::Primary { .. }, Event::Open(_)) => return impossible("be promoted"),

            (Self::Promoting { epoch }, Event::Risen) => (
                Self::Primary {
                    epoch: epoch.clone(),
                    standbys: vec![],
                },
                vec![Action::Record, Action::Serve],
            ),
            (Self::Primary { .. }, Event::Risen) => unchanged,
            (Self::Returning { .. } | Self::Standby { .. } | Self::Fenced { .. }, Event::Risen) => {
                return impossible("finish a promotion that it has not begun");
            }

            (Self::Primary { epoch, standbys }, Event::Joined(node)) => {
                if standbys.contains(&node) {
                    return Ok(unchanged);
                }
                let mut standbys = standbys.clone();
                standbys.push(node);
                (
                    Self::Primary {
                        epoch: epoch.clone(),
                        standbys,
                    },
                    // Durable before the standby gets a byte: a primary that forgets who may
                    // supersede it would not ask after a restart.
                    vec![Action::Record],
                )
            }
            (
                Self::Returning { .. }
                | Self::Standby { .. }
                | Self::Promoting { .. }
                | Self::Fenced { .. },
                Event::Joined(_),
            ) => return impossible("take a standby"),

            (Self::Primary { epoch, standbys }, Event::Left(node)) if standbys.contains(&node) => (
                Self::Primary {
                    epoch: epoch.clone(),
                    standbys: standbys.iter().filter(|it| **it != node).cloned().collect(),
                },
                vec![Action::Record],
            ),
            (
                Self::Primary { .. }
                | Self::Returning { .. }
                | Self::Standby { .. }
                | Self::Promoting { .. }
                | Self::Fenced { .. },
                Event::Left(_),
            ) => unchanged,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn me() -> NodeName {
        "b".parse().unwrap()
    }

    fn epoch(text: &str) -> Epoch {
        text.parse().unwrap()
    }

    fn node(text: &str) -> NodeName {
        text.parse().unwrap()
    }

    fn roles() -> Vec<Role> {
        vec![
            Role::Primary {
                epoch: epoch("2.b"),
                standbys: vec![],
            },
            Role::Primary {
                epoch: epoch("2.b"),
                standbys: vec![node("c")],
            },
            Role::Returning {
                epoch: epoch("2.b"),
                standbys: vec![node("c")],
            },
            Role::Returning {
                epoch: epoch("2.b"),
                standbys: vec![],
            },
            Role::Standby {
                epoch: epoch("2.a"),
                primary: node("a"),
                proposed: None,
            },
            Role::Standby {
                epoch: epoch("2.a"),
                primary: node("a"),
                proposed: Some(epoch("3.b")),
            },
            Role::Promoting {
                epoch: epoch("3.b"),
            },
            Role::Fenced {
                epoch: epoch("3.c"),
                follows: false,
            },
            Role::Fenced {
                epoch: epoch("3.c"),
                follows: true,
            },
        ]
    }

    fn events() -> Vec<Event> {
        vec![
            Event::Started,
            Event::Heard(epoch("1.z")),
            Event::Heard(epoch("3.b")),
            Event::Heard(epoch("3.c")),
            Event::Heard(epoch("4.a")),
            Event::HandOver(epoch("4.a")),
            Event::Reassured,
            Event::Alone { others: 1 },
            Event::Alone { others: 2 },
            Event::Propose,
            Event::Open(epoch("3.b")),
            Event::Open(epoch("4.b")),
            Event::Risen,
            Event::Joined(node("c")),
            Event::Left(node("c")),
            Event::Rejoined {
                primary: node("c"),
                epoch: epoch("3.c"),
            },
        ]
    }

    /// The whole table, so that a change of behaviour is a difference to review.
    #[test]
    fn the_transition_table() {
        let mut table = String::new();
        for role in roles() {
            for event in events() {
                let outcome = match role.step(&me(), event.clone()) {
                    Ok((next, actions)) if next == role => format!("· {actions:?}"),
                    Ok((next, actions)) => format!("{next:?} {actions:?}"),
                    Err(error) => error.to_string(),
                };
                table += &format!("{role:?} + {event:?}\n    {outcome}\n");
            }
        }
        let table = table
            .replace("Epoch { number: ", "")
            .replace("NodeName(\"", "")
            .replace("\")", "")
            .replace(", node: ", ".");
        insta::assert_snapshot!("transition_table", table);
    }

    #[test]
    fn a_restarted_primary_that_nobody_has_joined_stands_alone_only_in_a_pair() {
        let role = Role::Returning {
            epoch: epoch("2.b"),
            standbys: vec![],
        };
        let outcome = |others| role.step(&me(), Event::Alone { others }).unwrap().1;
        assert_eq!(outcome(1), vec![Action::Serve]);
        // A third node may have been promoted as its standby without ever having joined.
        assert_eq!(outcome(2), vec![Action::Fence]);
    }

    #[test]
    fn a_superseded_node_opens_the_epoch_that_the_peer_has_fenced_itself_for() {
        let superseded = Role::Fenced {
            epoch: epoch("2.c"),
            follows: false,
        };
        let next = superseded.next_epoch(&me());
        // The answer of the peer carries it back.
        let (told, _) = superseded.step(&me(), Event::Heard(next.clone())).unwrap();
        let opened = told.step(&me(), Event::Open(next.clone())).unwrap();
        assert_eq!(
            opened,
            (Role::Promoting { epoch: next }, vec![Action::Record])
        );
        // An epoch of a peer is nobody else's to open.
        assert!(superseded.step(&me(), Event::Open(epoch("2.c"))).is_err());
    }

    fn any_epoch() -> impl Strategy<Value = Epoch> {
        (1..6_u64, prop::sample::select(vec!["a", "b", "c"])).prop_map(|(number, name)| Epoch {
            number,
            node: node(name),
        })
    }

    fn any_event() -> impl Strategy<Value = Event> {
        prop_oneof![
            Just(Event::Started),
            any_epoch().prop_map(Event::Heard),
            any_epoch().prop_map(Event::HandOver),
            any_epoch().prop_map(|epoch| Event::Rejoined {
                primary: epoch.node.clone(),
                epoch,
            }),
            Just(Event::Reassured),
            (0..4_usize).prop_map(|others| Event::Alone { others }),
            Just(Event::Propose),
            any_epoch().prop_map(Event::Open),
            Just(Event::Risen),
            Just(Event::Joined(node("c"))),
            Just(Event::Left(node("c"))),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        /// Whatever happens: the epoch never falls, a node that serves does so in the highest epoch
        /// that it has seen, a fenced node does not serve without opening an epoch of its own, and
        /// what it opens is durable before it serves.
        #[test]
        fn any_history_keeps_one_writer_per_node(
            history in prop::collection::vec(any_event(), 1..60)
        ) {
            let mut role = Role::Standby { epoch: epoch("1.a"), primary: node("a"), proposed: None };
            let mut highest = epoch("1.a");
            let mut durable = role.clone();
            for event in history {
                let own_proposal = match (&role, &event) {
                    (Role::Standby { proposed, .. }, Event::Heard(heard) | Event::HandOver(heard)) => proposed.as_ref() == Some(heard),
                    _ => false,
                };
                if let Event::Heard(heard) | Event::HandOver(heard) = &event && !own_proposal {
                    highest = highest.max(heard.clone());
                }
                let Ok((next, actions)) = role.step(&me(), event) else { continue };
                prop_assert!(next.epoch() >= role.epoch());
                highest = highest.max(next.epoch().clone());
                for action in actions {
                    match action {
                        Action::Record => durable = next.clone(),
                        Action::Serve => {
                            prop_assert_eq!(next.epoch(), &highest);
                            prop_assert_eq!(durable.epoch(), next.epoch());
                            prop_assert_eq!(&next.epoch().node, &me());
                        }
                        Action::AskPeers | Action::Follow | Action::Fence | Action::StopReceiving => {}
                    }
                }
                role = next;
            }
        }
    }
}
