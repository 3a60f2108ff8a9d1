//! What nodes ask each other, and what they answer.

use understudy_replication::epoch::Epoch;
use understudy_replication::role::{Event, Role};
use understudy_replication::status::RoleName;

use crate::broken::Broken;
use crate::network::{Ask, Letter, Message};
use crate::node::{EVENTS_WAITING_MAX, Stage, Waiter, Waiting};
use crate::seen::Happening;
use crate::world::World;

/// An answer to a task's question; `None` when there is none, or a refusal.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    Hello(RoleName, Epoch),
    Fenced,
    Joined(Epoch),
}

impl World {
    pub(crate) fn send(&mut self, from: usize, to: usize, message: Message) {
        let epoch = self.nodes[from].role.epoch().clone();
        if self.trace.is_some() {
            let (a, b) = (self.nodes[from].me.clone(), self.nodes[to].me.clone());
            let text = format!("    {a} to {b} [{epoch}]: {message:?}");
            self.note(|| text);
        }
        let letter = Letter {
            from,
            to,
            epoch,
            message,
        };
        self.network.send(letter, &mut self.random);
    }

    pub(crate) fn new_ask(&mut self) -> Ask {
        self.asks += 1;
        self.asks
    }

    /// Sends a question for a node's task, which waits for the answer.
    pub(crate) fn ask(&mut self, from: usize, to: usize, message: impl FnOnce(Ask) -> Message) {
        let ask = self.new_ask();
        if let Some(task) = &mut self.nodes[from].task {
            task.waiting = Waiting::Answer(ask);
        }
        self.send(from, to, message(ask));
    }

    /// A node asks another to fence itself for `epoch`.
    pub(crate) fn ask_fence(
        &mut self,
        from: usize,
        to: usize,
        epoch: &Epoch,
        known: &Epoch,
        hands_over: bool,
    ) {
        // By force, a superseded node goes back to its data: what it asks for then, it opens in any case.
        let is_standby = matches!(
            self.nodes[from].disk,
            understudy_replication::role::Role::Standby { .. }
        );
        if is_standby && self.nodes[from].disk.highest_epoch() < epoch {
            let (me, disk) = (self.nodes[from].me.clone(), self.nodes[from].disk.clone());
            self.breaks(
                crate::check::Invariant::AProposalIsDurableBeforeItIsHeardOf,
                || format!("{me} proposes {epoch} with {disk:?} on disk"),
            );
        }
        let (epoch, supersedes) = (epoch.clone(), Some(known.clone()));
        self.ask(from, to, |ask| Message::Fence {
            ask,
            epoch,
            supersedes,
            hands_over,
        });
    }

    /// Every message carries its sender's epoch.
    fn hear(&mut self, at: usize, epoch: &Epoch) {
        let node = &mut self.nodes[at];
        let is_news = match &node.role {
            Role::Standby {
                epoch: ours,
                proposed,
                ..
            } => {
                epoch > ours
                    && (proposed.as_ref() != Some(epoch)
                        || self.broken == Some(Broken::GivesWayToItself))
            }
            role @ (Role::Primary { .. }
            | Role::Returning { .. }
            | Role::Promoting { .. }
            | Role::Fenced { .. }) => {
                epoch > role.epoch()
                    || (epoch == role.epoch()
                        && self.broken == Some(Broken::TakesAnEqualEpochForHigher))
            }
        };
        if !is_news {
            return;
        }
        if node.events.len() >= EVENTS_WAITING_MAX {
            self.seen.count(Happening::QueueFull);
            return;
        }
        node.events
            .push_back((Event::Heard(epoch.clone()), Waiter::Nobody));
        node.told_max = node.told_max.clone().max(epoch.clone());
    }

    pub(crate) fn deliver(&mut self, letter: Letter) {
        let Letter {
            from,
            to,
            epoch,
            message,
        } = letter;
        if !self.nodes[to].is_up {
            return;
        }
        if let Message::Write { epoch, life } = message {
            self.receive(from, to, &epoch, life);
            return;
        }
        if let (Some(theirs), Some(ours)) = (&self.nodes[from].running, &self.nodes[to].running)
            && theirs > ours
            && epoch > *ours
        {
            self.seen.count(Happening::Contact);
        }
        self.hear(to, &epoch);
        // Nothing is taken from a node that has been superseded.
        let is_current = epoch >= *self.nodes[to].role.epoch();
        match message {
            Message::Hello(ask) => {
                let role = &self.nodes[to].role;
                // What nobody carries out binds nobody.
                let is_idle = self.nodes[to].task.is_none();
                let highest = match is_idle {
                    true => role.epoch().clone(),
                    false => role.highest_epoch().clone(),
                };
                let role = role.name();
                self.send(to, from, Message::HelloAnswer { ask, role, highest });
            }
            Message::HelloAnswer { ask, role, highest } => {
                if self.nodes[to].greeting == Some(ask) {
                    self.nodes[to].greeting = None;
                    let anybody = self.broken == Some(Broken::IsReassuredByAnybody);
                    let reassures = match &self.nodes[to].role {
                        Role::Returning { epoch, .. } => {
                            anybody || (is_current && highest <= *epoch)
                        }
                        Role::Fenced { .. } => {
                            self.broken == Some(Broken::FencedServesWhenReassured)
                        }
                        Role::Primary { .. } | Role::Standby { .. } | Role::Promoting { .. } => {
                            false
                        }
                    };
                    if reassures {
                        self.happen(to, Event::Reassured, Waiter::Nobody);
                    }
                }
                self.answered(to, ask, is_current.then_some(Answer::Hello(role, highest)));
            }
            Message::Fence {
                ask,
                epoch,
                supersedes,
                hands_over,
            } => self.asked_to_fence(to, from, ask, epoch, supersedes, hands_over),
            Message::FenceAnswer { ask, is_done } => {
                self.answered(to, ask, (is_done && is_current).then_some(Answer::Fenced));
            }
            Message::Joined(ask) => {
                let node = &self.nodes[to];
                let life = node.life;
                if matches!(node.role, Role::Primary { .. }) && node.stage == Stage::Primary {
                    let name = self.nodes[from].me.clone();
                    self.happen(to, Event::Joined(name), Waiter::Joiner { peer: from, ask });
                } else {
                    let epoch = None;
                    self.send(to, from, Message::JoinedAnswer { ask, epoch, life });
                }
            }
            Message::JoinedAnswer { ask, epoch, life } => {
                let epoch = epoch.filter(|_| is_current);
                if self.nodes[to].joining == Some(ask) {
                    self.nodes[to].joining = None;
                    if let (Stage::Standby(primary, _), Some(_)) = (self.nodes[to].stage, &epoch)
                        && primary == from
                    {
                        self.nodes[to].stage = Stage::Standby(primary, Some(life));
                    }
                }
                self.answered(to, ask, epoch.map(Answer::Joined));
            }
            Message::Write { .. } => {}
        }
    }

    fn asked_to_fence(
        &mut self,
        at: usize,
        peer: usize,
        ask: Ask,
        epoch: Epoch,
        supersedes: Option<Epoch>,
        hands_over: bool,
    ) {
        let ours = self.nodes[at].role.epoch();
        // The asker must know whom it supersedes: it learns of what it does not by this answer.
        let is_unaware = supersedes.is_some_and(|known| *ours > known) && *ours != epoch;
        if *ours > epoch || is_unaware {
            let is_done = false;
            self.send(at, peer, Message::FenceAnswer { ask, is_done });
            return;
        }
        if self.broken == Some(Broken::AnswersBeforeItIsFenced) {
            let is_done = true;
            self.send(at, peer, Message::FenceAnswer { ask, is_done });
        }
        let event = if hands_over {
            Event::HandOver(epoch.clone())
        } else {
            Event::Heard(epoch.clone())
        };
        self.happen(at, event, Waiter::Fencer { peer, ask, epoch });
    }

    /// A standby receives something that clients have written.
    fn receive(&mut self, from: usize, to: usize, epoch: &Epoch, life: u32) {
        let is_followed = self.nodes[to].stage == Stage::Standby(from, Some(life))
            || self.broken == Some(Broken::TakesWhatTheSupersededSends);
        if is_followed {
            self.check_write(to, epoch);
            self.seen.count(Happening::Accepted);
        } else if epoch < self.nodes[to].role.epoch() {
            self.seen.count(Happening::Stale);
        }
    }

    /// A client writes to a node, if something there takes it, and it goes out to the others.
    pub(crate) fn write(&mut self, at: usize) {
        let Some(epoch) = self.nodes[at].running.clone() else {
            return;
        };
        self.check(at);
        if !self.nodes[at].is_up || self.nodes[at].stage != Stage::Primary {
            return;
        }
        let life = self.nodes[at].life;
        for to in (0..self.nodes.len()).filter(|it| *it != at) {
            let epoch = epoch.clone();
            self.send(at, to, Message::Write { epoch, life });
        }
    }
}
