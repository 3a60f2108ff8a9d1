//! Promotions, step by step as the daemon carries them out.

use understudy_replication::role::{Event, Role};
use understudy_replication::status::RoleName;

use crate::broken::Broken;
use crate::network::{Ask, Message};
use crate::node::{Promotion, Step, Task, Waiter, Waiting, Work};
use crate::peer::Answer;
use crate::seen::Happening;
use crate::world::World;

impl World {
    pub(crate) fn peers(&self, at: usize) -> Vec<usize> {
        (0..self.nodes.len()).filter(|it| *it != at).collect()
    }

    /// An operator runs `understudy promote` or `understudy switchover`.
    pub(crate) fn order_promotion(&mut self, at: usize, is_forced: bool, is_planned: bool) {
        let node = &self.nodes[at];
        if !node.is_up || node.task.is_some() {
            return;
        }
        let (old, is_resumed) = match &node.role {
            Role::Primary { .. } => return,
            Role::Promoting { .. } => (None, true),
            Role::Standby { primary, .. } => (self.index(primary), false),
            Role::Fenced { epoch, .. } if epoch.node != node.me => (self.index(&epoch.node), false),
            Role::Fenced { .. } | Role::Returning { .. } => (None, false),
        };
        let (known, mut epoch) = (node.role.epoch().clone(), node.role.next_epoch(&node.me));
        if is_resumed {
            epoch = known.clone();
        }
        let what = format!(
            "an operator promotes {} to {epoch}, forced: {is_forced}, planned: {is_planned}",
            node.me
        );
        self.note(|| what);
        self.nodes[at].task = Some(Task {
            work: Work::Promotion(Promotion {
                is_forced,
                is_planned,
                is_resumed,
                old,
                is_old_there: false,
                is_old_off: false,
                known,
                epoch,
                step: Step::Observe,
                others: Vec::new(),
                taken: 0,
            }),
            waiting: Waiting::Ready,
        });
    }

    pub(crate) fn run_task(&mut self, at: usize) {
        let Some(task) = self.nodes[at].task.clone() else {
            return;
        };
        match (task.work, task.waiting) {
            (Work::Promotion(it), Waiting::Ready) => self.promote(at, it),
            (Work::Promotion(it), Waiting::Effect) => self.take_effect(at, it),
            (Work::Rejoin(it), Waiting::Ready) => self.rejoin(at, it),
            (Work::Rejoin(_), Waiting::Effect) | (_, Waiting::Answer(_) | Waiting::Shell) => {}
        }
        self.check(at);
    }

    pub(crate) fn put(&mut self, at: usize, work: Work, waiting: Waiting) {
        self.nodes[at].task = Some(Task { work, waiting });
    }

    fn go_on(&mut self, at: usize, mut it: Promotion, step: Step) {
        it.step = step;
        self.put(at, Work::Promotion(it), Waiting::Ready);
    }

    fn refuse(&mut self, at: usize, why: &str) {
        self.seen.count(Happening::Refused);
        let what = format!("{} is not promoted: {why}", self.nodes[at].me);
        self.note(|| what);
        self.nodes[at].task = None;
        // What a step has started after the fence had looked is stopped at once.
        if matches!(self.nodes[at].role, Role::Fenced { .. }) {
            self.happen(at, Event::Started, Waiter::Nobody);
        }
    }

    fn promote(&mut self, at: usize, mut it: Promotion) {
        match it.step {
            Step::Observe => {
                let role = self.nodes[at].role.name();
                let needs_force = matches!(role, RoleName::Returning | RoleName::Fenced);
                if needs_force && !it.is_forced {
                    return self.refuse(at, "that needs --force");
                }
                // What only force opens is not asked for: the others hear of it when they meet.
                it.others = if needs_force { vec![] } else { self.peers(at) };
                it.others.retain(|other| Some(*other) != it.old);
                match it.old {
                    Some(old) if old != at => {
                        self.put(at, Work::Promotion(it), Waiting::Ready);
                        self.ask(at, old, Message::Hello);
                    }
                    Some(_) | None if it.is_planned => {
                        self.refuse(at, "a switchover needs the primary");
                    }
                    Some(_) | None => self.go_on(at, it, Step::Propose),
                }
            }
            Step::Propose => {
                if it.is_resumed {
                    return self.go_on(at, it, Step::Others);
                }
                self.put(at, Work::Promotion(it), Waiting::Shell);
                self.happen(at, Event::Propose, Waiter::Task);
            }
            Step::Fence => match it.old.filter(|_| it.is_old_there) {
                Some(_) if self.is_forgotten(at, &it) => self.overtaken(at),
                Some(old) => {
                    self.put(at, Work::Promotion(it.clone()), Waiting::Ready);
                    self.ask_fence(at, old, &it.epoch, &it.known, it.is_planned);
                }
                None => self.go_on(at, it, Step::Others),
            },
            Step::Others => self.ask_others(at, it),
            Step::Command => self.use_command(at, it),
            Step::Open if it.is_resumed => {
                self.was_forced |= it.is_forced;
                self.go_on(at, it, Step::TakeOver);
            }
            Step::Open => {
                self.was_forced |= it.is_forced;
                let epoch = it.epoch.clone();
                self.put(at, Work::Promotion(it), Waiting::Shell);
                self.happen(at, Event::Open(epoch), Waiter::Task);
            }
            Step::TakeOver | Step::Services => {
                if !self.is_still_rising(at, &it) {
                    return self.overtaken(at);
                }
                self.put(at, Work::Promotion(it), Waiting::Effect);
            }
            Step::Serve => {
                if !self.is_still_rising(at, &it) {
                    return self.overtaken(at);
                }
                self.put(at, Work::Promotion(it), Waiting::Shell);
                self.happen(at, Event::Risen, Waiter::Task);
            }
        }
    }

    /// Whether the node has given up the epoch that it has proposed, for a higher one that it has heard of.
    fn is_forgotten(&self, at: usize, it: &Promotion) -> bool {
        match &self.nodes[at].role {
            Role::Standby { proposed, .. } => proposed.as_ref() != Some(&it.epoch),
            Role::Primary { .. }
            | Role::Returning { .. }
            | Role::Promoting { .. }
            | Role::Fenced { .. } => false,
        }
    }

    fn overtaken(&mut self, at: usize) {
        self.seen.count(Happening::Overtaken);
        self.refuse(at, "it has been superseded meanwhile");
    }

    fn is_still_rising(&self, at: usize, it: &Promotion) -> bool {
        matches!(&self.nodes[at].role, Role::Promoting { epoch } if *epoch == it.epoch)
    }

    /// Has every other node take the new epoch, one after the other.
    fn ask_others(&mut self, at: usize, mut it: Promotion) {
        let is_skipped = self.broken == Some(Broken::AsksTheOldPrimaryAlone);
        // With two nodes, the other one cannot supersede a promotion without force.
        let is_pair = self.nodes.len() <= 2;
        if is_skipped || (it.is_resumed && (is_pair || it.taken > 0)) {
            it.others.clear();
        }
        match it.others.first().copied() {
            Some(_) if self.is_forgotten(at, &it) => self.overtaken(at),
            Some(other) => {
                self.put(at, Work::Promotion(it.clone()), Waiting::Ready);
                self.ask_fence(at, other, &it.epoch, &it.known, false);
            }
            None if it.is_resumed && it.taken == 0 && !is_pair && !it.is_forced && !is_skipped => {
                self.refuse(at, "no other node answers");
            }
            None if it.is_old_there || it.old.is_none() || it.is_old_off => {
                self.go_on(at, it, Step::Open);
            }
            None => self.go_on(at, it, Step::Command),
        }
    }

    /// Has the old primary switched off: by the configured command, or by the operator's word.
    fn use_command(&mut self, at: usize, mut it: Promotion) {
        let Some(old) = it.old else {
            return self.go_on(at, it, Step::Open);
        };
        let mut is_off = false;
        if self.policy.has_command {
            if self.random.chance(60) {
                self.nodes[old].power_off();
            }
            is_off = !self.nodes[old].is_on;
            if is_off {
                self.seen.count(Happening::CommandWorked);
            } else if self.policy.command_lies {
                is_off = true;
                self.has_lied = true;
                self.seen.count(Happening::CommandLied);
            }
            let what = format!(
                "the fence command says that {} is off: {is_off}",
                self.nodes[old].me
            );
            self.note(|| what);
        }
        if !is_off && !it.is_forced {
            return self.refuse(
                at,
                "the old primary does not answer, and is not known to be off",
            );
        }
        it.is_old_off = true;
        self.go_on(at, it, Step::Open);
    }

    /// What a step has begun to start is started, unless a fence has forbidden it.
    fn take_effect(&mut self, at: usize, it: Promotion) {
        let (epoch, step) = (it.epoch.clone(), it.step);
        if self.nodes[at].is_vouched {
            self.run(at, epoch);
        }
        let next = if step == Step::TakeOver {
            Step::Services
        } else {
            Step::Serve
        };
        self.go_on(at, it, next);
    }

    /// The shell has done what a task has handed to it.
    pub(crate) fn shell_told(&mut self, at: usize, is_done: bool) {
        let Some(Task {
            work,
            waiting: Waiting::Shell,
        }) = self.nodes[at].task.clone()
        else {
            return;
        };
        match work {
            Work::Promotion(it) => match it.step {
                _ if !is_done => self.refuse(at, "the role machine says no"),
                Step::Propose => self.go_on(at, it, Step::Fence),
                Step::Open => {
                    self.seen.count(Happening::Opened);
                    if it.is_forced {
                        self.seen.count(Happening::Forced);
                    }
                    self.nodes[at].has_word = true;
                    self.go_on(at, it, Step::TakeOver);
                }
                Step::Serve => {
                    self.seen.count(Happening::Promoted);
                    if it.is_planned {
                        self.seen.count(Happening::HandedOver);
                    }
                    if it.is_resumed {
                        self.seen.count(Happening::Resumed);
                    }
                    self.nodes[at].task = None;
                }
                Step::Observe
                | Step::Fence
                | Step::Others
                | Step::Command
                | Step::TakeOver
                | Step::Services => {}
            },
            Work::Rejoin(it) => self.rejoin_told(at, it, is_done),
        }
    }

    /// A question of a task is answered, or nobody answers it any more.
    pub(crate) fn answered(&mut self, at: usize, ask: Ask, answer: Option<Answer>) {
        let Some(task) = self.nodes[at].task.clone() else {
            return;
        };
        if task.waiting != Waiting::Answer(ask) {
            return;
        }
        match task.work {
            Work::Promotion(it) => self.promotion_answered(at, it, answer.is_some()),
            Work::Rejoin(it) => self.rejoin_answered(at, it, answer),
        }
    }

    fn promotion_answered(&mut self, at: usize, mut it: Promotion, is_there: bool) {
        match it.step {
            Step::Observe => {
                it.is_old_there = is_there;
                if !is_there && it.is_planned {
                    return self.refuse(at, "a switchover needs the primary");
                }
                if !is_there && !it.is_forced && !self.policy.has_command {
                    return self.refuse(at, "the old primary does not answer");
                }
                self.go_on(at, it, Step::Propose);
            }
            Step::Fence => {
                if !is_there && !it.is_forced {
                    return self.refuse(at, "the old primary is not fenced");
                }
                // What it still had may not arrive.
                if is_there && !it.is_forced && self.faults && self.random.chance(5) {
                    return self.refuse(at, "not everything has arrived");
                }
                it.is_old_off = !is_there;
                self.go_on(at, it, Step::Others);
            }
            Step::Others => {
                if !is_there && !it.is_forced && !it.is_resumed {
                    return self.refuse(at, "another node has not taken the epoch");
                }
                it.taken += usize::from(is_there);
                if !it.others.is_empty() {
                    it.others.remove(0);
                }
                self.go_on(at, it, Step::Others);
            }
            Step::Propose
            | Step::Command
            | Step::Open
            | Step::TakeOver
            | Step::Services
            | Step::Serve => {}
        }
    }
}
