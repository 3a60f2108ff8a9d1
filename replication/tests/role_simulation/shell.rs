//! The shell around the role machine, as the daemon has it: events one after the other, actions in their order,
//! and a crash possible between any two.

use understudy_replication::role::{Action, Event, Role};

use crate::broken::{self, Broken};
use crate::network::Message;
use crate::node::{Doing, Stage, Waiter};
use crate::seen::Happening;
use crate::world::World;

impl World {
    /// Hands an event to a node's role machine; the waiter goes on once what follows is done.
    pub(crate) fn happen(&mut self, at: usize, event: Event, waiter: Waiter) {
        self.nodes[at].events.push_back((event, waiter));
    }

    /// Takes one step of the shell: the next event, or the next action of the present one.
    pub(crate) fn run_shell(&mut self, at: usize) {
        if !self.nodes[at].is_up {
            return;
        }
        if self.nodes[at].doing.is_some() {
            self.act(at);
        } else if let Some((event, waiter)) = self.nodes[at].events.pop_front() {
            self.begin(at, event, waiter);
        } else {
            return;
        }
        self.check(at);
    }

    fn begin(&mut self, at: usize, event: Event, waiter: Waiter) {
        let node = &mut self.nodes[at];
        let before = node.role.clone();
        self.count_event(at, &event);
        let node = &mut self.nodes[at];
        let Ok((next, actions)) = broken::step(&before, &node.me, event.clone(), self.broken)
        else {
            node.done.push_back((waiter, false));
            return;
        };
        let proposal = match &before {
            Role::Standby { proposed, .. } => proposed.clone(),
            Role::Primary { .. }
            | Role::Returning { .. }
            | Role::Promoting { .. }
            | Role::Fenced { .. } => None,
        };
        let heard = match &event {
            Event::Heard(heard) | Event::HandOver(heard) if proposal.as_ref() != Some(heard) => {
                Some(heard.clone())
            }
            _ => None,
        };
        if matches!(event, Event::Reassured) {
            node.has_word = true;
        }
        // What a fence has forbidden is allowed from the first moment in which the role allows it.
        if matches!(next, Role::Primary { .. } | Role::Promoting { .. }) {
            node.is_vouched = true;
            if next != before {
                node.is_shut = false;
            }
        }
        let is_published =
            actions.first() == Some(&Action::Fence) || !actions.contains(&Action::Record);
        if is_published {
            node.role = next.clone();
        }
        if self.trace.is_some() && next != before {
            let text = format!(
                "{} {event:?}: {before:?} -> {next:?} {actions:?}",
                self.nodes[at].me
            );
            self.note(|| text);
        }
        self.nodes[at].doing = Some(Doing {
            before,
            next,
            actions: actions.into(),
            is_published,
            is_begun: false,
            heard,
            waiter,
        });
        if self.nodes[at]
            .doing
            .as_ref()
            .is_some_and(|it| it.actions.is_empty())
        {
            self.finish(at, true);
        }
    }

    fn finish(&mut self, at: usize, is_done: bool) {
        let node = &mut self.nodes[at];
        if let Some(doing) = node.doing.take() {
            // What could not be recorded is told again.
            if let Some(heard) = doing.heard.filter(|_| is_done) {
                node.seen_max = node.seen_max.clone().max(heard);
            }
            node.done.push_back((doing.waiter, is_done));
        }
    }

    fn act(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        let Some(doing) = &mut node.doing else { return };
        doing.is_begun = true;
        let Some(action) = doing.actions.pop_front() else {
            return self.finish(at, true);
        };
        let (before, next) = (doing.before.clone(), doing.next.clone());
        let is_last = doing.actions.is_empty();
        let is_done = match action {
            Action::Record => self.record(at, &before, next),
            Action::Fence => {
                self.nodes[at].is_alone = matches!(next, Role::Returning { .. });
                if matches!(
                    (&before, &next),
                    (Role::Returning { .. }, Role::Returning { .. })
                ) {
                    self.seen.count(Happening::LeftAlone);
                }
                self.fence(at);
                true
            }
            Action::Serve => self.serve(at, &next),
            Action::Follow if self.nodes[at].is_rejoining => true,
            Action::Follow => {
                self.follow(at, &next);
                true
            }
            Action::AskPeers => {
                self.nodes[at].is_asking = true;
                true
            }
            Action::StopReceiving => {
                self.nodes[at].stage = Stage::Idle;
                true
            }
        };
        if !is_done || is_last {
            self.finish(at, is_done);
        }
    }

    fn record(&mut self, at: usize, before: &Role, next: Role) -> bool {
        if self.faults && self.random.chance(2) {
            self.seen.count(Happening::RecordFailed);
            let node = &mut self.nodes[at];
            // Whoever told the epoch tells it again: it is in every message.
            node.told_max = node.role.epoch().clone();
            let what = format!("{} cannot record its role", node.me);
            self.note(|| what);
            return false;
        }
        let node = &mut self.nodes[at];
        node.disk = next.clone();
        node.seen_max = node.seen_max.clone().max(next.epoch().clone());
        let is_published = node.doing.as_ref().is_some_and(|it| it.is_published);
        if !is_published {
            node.role = next;
            if let Some(doing) = &mut node.doing {
                doing.is_published = true;
            }
        }
        self.check_record(at, before);
        true
    }

    /// Stops everything; what cannot be stopped is owed.
    pub(crate) fn fence(&mut self, at: usize) {
        let fails = self.faults && self.random.chance(10);
        let forbids = self.broken != Some(Broken::FenceForbidsNothing);
        let node = &mut self.nodes[at];
        if forbids {
            node.is_vouched = false;
        }
        node.is_fence_owed = fails && node.running.is_some();
        if node.is_fence_owed {
            let what = format!("{} cannot stop what it runs", node.me);
            self.seen.count(Happening::FenceFailed);
            self.note(|| what);
            return;
        }
        node.running = None;
        node.is_shut = matches!(node.role, Role::Fenced { .. } | Role::Returning { .. });
        let what = format!("{} has stopped everything", node.me);
        self.seen.count(Happening::Fenced);
        self.note(|| what);
    }

    pub(crate) fn serve(&mut self, at: usize, role: &Role) -> bool {
        let node = &mut self.nodes[at];
        node.is_fence_owed = false;
        node.is_alone = false;
        node.stage = Stage::Idle;
        if self.faults && self.random.chance(3) {
            // The stores cannot be opened; it is tried again.
            return false;
        }
        self.nodes[at].stage = Stage::Primary;
        self.nodes[at].life += 1;
        self.run(at, role.epoch().clone());
        true
    }

    /// Starts what takes writes.
    pub(crate) fn run(&mut self, at: usize, epoch: understudy_replication::epoch::Epoch) {
        self.check_start(at, &epoch);
        let what = format!("{} serves in {epoch}", self.nodes[at].me);
        self.note(|| what);
        self.nodes[at].running = Some(epoch);
        let serving = self.nodes.iter().filter(|it| it.running.is_some()).count();
        if serving > 1 {
            self.seen.count(Happening::TwoServe);
        }
        self.check(at);
    }

    pub(crate) fn follow(&mut self, at: usize, role: &Role) {
        let Role::Standby { primary, .. } = role else {
            return;
        };
        let Some(primary) = self.index(primary) else {
            return;
        };
        match self.nodes[at].stage {
            Stage::Standby(followed, _) if followed == primary => {}
            Stage::Standby(..) | Stage::Idle | Stage::Primary => {
                self.nodes[at].stage = Stage::Standby(primary, None);
            }
        }
    }

    /// Goes on with whoever waited for an event that is done.
    pub(crate) fn run_waiter(&mut self, at: usize) {
        let Some((waiter, is_done)) = self.nodes[at].done.pop_front() else {
            return;
        };
        match waiter {
            Waiter::Nobody => {}
            Waiter::Task => self.shell_told(at, is_done),
            Waiter::Fencer { peer, ask, epoch } => {
                let node = &self.nodes[at];
                // Something else may have happened since.
                let is_done = is_done
                    && *node.role.epoch() == epoch
                    && !node.is_fence_owed
                    && node.running.is_none();
                if is_done {
                    self.answered[at] = self.answered[at].clone().max(Some(epoch));
                }
                self.send(at, peer, Message::FenceAnswer { ask, is_done });
            }
            Waiter::Joiner { peer, ask } => {
                let node = &self.nodes[at];
                let life = node.life;
                // It may have been superseded since: its epoch is another's then.
                let epoch = match &node.role {
                    Role::Primary { epoch, .. } if is_done => Some(epoch.clone()),
                    Role::Primary { .. }
                    | Role::Returning { .. }
                    | Role::Standby { .. }
                    | Role::Promoting { .. }
                    | Role::Fenced { .. } => None,
                };
                self.send(at, peer, Message::JoinedAnswer { ask, epoch, life });
            }
        }
    }

    /// What the shell does now and then: stops again what must not run, opens again what was not opened.
    pub(crate) fn tick(&mut self, at: usize) {
        let node = &self.nodes[at];
        if !node.is_idle() || node.task.is_some() {
            return;
        }
        let must_not_serve = match &node.role {
            Role::Fenced { .. } => true,
            Role::Returning { .. } => node.is_alone,
            Role::Primary { .. } | Role::Standby { .. } | Role::Promoting { .. } => false,
        };
        if must_not_serve && (node.is_fence_owed || node.running.is_some()) {
            self.fence(at);
        }
        if self.nodes[at].stage == Stage::Idle {
            let role = self.nodes[at].role.clone();
            match &role {
                Role::Standby { .. } => self.follow(at, &role),
                Role::Primary { .. } => {
                    self.serve(at, &role);
                }
                Role::Returning { .. } | Role::Promoting { .. } | Role::Fenced { .. } => {}
            }
        }
        self.check(at);
    }

    fn count_event(&mut self, at: usize, event: &Event) {
        let node = &self.nodes[at];
        let own = match event {
            Event::Heard(heard) => {
                heard.node == node.me
                    && *heard > *node.role.epoch()
                    && matches!(&node.role, Role::Standby { proposed, .. } if proposed.as_ref() != Some(heard))
            }
            _ => false,
        };
        if own {
            self.seen.count(Happening::OwnEpoch);
        }
        if matches!(node.role, Role::Returning { .. }) {
            match event {
                Event::Reassured => self.seen.count(Happening::Reassured),
                Event::Alone { others: 0 | 1 } => self.seen.count(Happening::Alone),
                _ => {}
            }
        }
    }
}
