//! Rejoins, step by step as the daemon carries them out.

use understudy_replication::role::{Event, Role};
use understudy_replication::status::RoleName;

use crate::network::Message;
use crate::node::{Rejoin, Return, Stage, Task, Waiter, Waiting, Work};
use crate::peer::Answer;
use crate::seen::Happening;
use crate::world::World;

impl World {
    /// An operator runs `understudy rejoin`, or the node does so by itself.
    pub(crate) fn order_rejoin(&mut self, at: usize) {
        let node = &self.nodes[at];
        let can = matches!(node.role, Role::Fenced { .. } | Role::Standby { .. });
        if !node.is_up || node.task.is_some() || !can {
            return;
        }
        let peers = self.peers(at);
        self.nodes[at].task = Some(Task {
            work: Work::Rejoin(Rejoin {
                step: Return::Find,
                peers,
                primary: None,
                epoch: None,
            }),
            waiting: Waiting::Ready,
        });
    }

    /// The shell has done what a rejoin has handed to it.
    pub(crate) fn rejoin_told(&mut self, at: usize, mut it: Rejoin, is_done: bool) {
        match it.step {
            Return::Settle if is_done => {
                it.step = Return::Check;
                self.put(at, Work::Rejoin(it), Waiting::Ready);
            }
            Return::Follow => {
                if is_done {
                    self.seen.count(Happening::Rejoined);
                }
                self.nodes[at].task = None;
            }
            Return::Settle | Return::Find | Return::Check | Return::Join => {
                self.nodes[at].task = None;
            }
        }
    }

    pub(crate) fn rejoin(&mut self, at: usize, mut it: Rejoin) {
        match it.step {
            Return::Find => match it.peers.first().copied() {
                Some(peer) => {
                    self.put(at, Work::Rejoin(it), Waiting::Ready);
                    self.ask(at, peer, Message::Hello);
                }
                None => self.nodes[at].task = None,
            },
            Return::Settle => {
                // A fence may be under way still: what it heard already is heard again after it.
                let epoch = self.nodes[at].role.epoch().clone();
                self.put(at, Work::Rejoin(it), Waiting::Shell);
                self.happen(at, Event::Heard(epoch), Waiter::Task);
            }
            Return::Check => {
                let node = &mut self.nodes[at];
                if node.is_fence_owed || node.running.is_some() {
                    node.task = None;
                    return;
                }
                node.is_rejoining = true;
                node.stage = Stage::Idle;
                it.step = Return::Join;
                let primary = it.primary;
                self.put(at, Work::Rejoin(it), Waiting::Ready);
                if let Some(primary) = primary {
                    self.ask(at, primary, Message::Joined);
                }
            }
            Return::Join => {}
            Return::Follow => {
                self.nodes[at].is_rejoining = false;
                let name = it.primary.map(|primary| self.nodes[primary].me.clone());
                let event = match (&self.nodes[at].role, name, it.epoch.clone()) {
                    (Role::Fenced { .. }, Some(primary), Some(epoch)) => {
                        Event::Rejoined { primary, epoch }
                    }
                    _ => Event::Started,
                };
                self.put(at, Work::Rejoin(it), Waiting::Shell);
                self.happen(at, event, Waiter::Task);
            }
        }
    }

    pub(crate) fn rejoin_answered(&mut self, at: usize, mut it: Rejoin, answer: Option<Answer>) {
        match (it.step, answer) {
            (Return::Find, Some(Answer::Hello(RoleName::Primary, highest)))
                if highest >= *self.nodes[at].role.epoch() =>
            {
                it.primary = it.peers.first().copied();
                it.step = Return::Settle;
            }
            (Return::Find, _) => {
                it.peers.remove(0);
            }
            (Return::Join, Some(Answer::Joined(epoch))) => {
                it.epoch = Some(epoch);
                it.step = Return::Follow;
            }
            (Return::Join, _) => {
                self.nodes[at].is_rejoining = false;
                self.nodes[at].task = None;
                if matches!(self.nodes[at].role, Role::Standby { .. }) {
                    self.happen(at, Event::Started, Waiter::Nobody);
                }
                return;
            }
            (Return::Settle | Return::Check | Return::Follow, _) => return,
        }
        self.put(at, Work::Rejoin(it), Waiting::Ready);
    }
}
