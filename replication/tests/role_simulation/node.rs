//! A node of the simulation: what survives a power cut, what survives a crash of the daemon, and what does not.

use std::collections::VecDeque;

use understudy_config::NodeName;
use understudy_replication::epoch::Epoch;
use understudy_replication::role::{Action, Event, Role};

use crate::network::Ask;

/// How many events may wait; few, so that it happens that there is no room.
pub(crate) const EVENTS_WAITING_MAX: usize = 4;

/// Who waits until what follows from an event is done.
#[derive(Clone, Debug)]
pub(crate) enum Waiter {
    Nobody,
    /// The node's own promotion or rejoin.
    Task,
    /// A peer that has asked it to fence itself.
    Fencer {
        peer: usize,
        ask: Ask,
        epoch: Epoch,
    },
    /// A peer that has joined.
    Joiner {
        peer: usize,
        ask: Ask,
    },
}

/// A step of the role machine that is being carried out.
#[derive(Debug)]
pub(crate) struct Doing {
    pub(crate) before: Role,
    pub(crate) next: Role,
    pub(crate) actions: VecDeque<Action>,
    pub(crate) is_published: bool,
    pub(crate) is_begun: bool,
    /// The epoch that it is about.
    pub(crate) heard: Option<Epoch>,
    pub(crate) waiter: Waiter,
}

/// What a promotion does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Observe,
    Propose,
    Fence,
    Others,
    Command,
    Open,
    TakeOver,
    Services,
    Serve,
}

/// What a task waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Waiting {
    /// Nothing: its next step may begin.
    Ready,
    Answer(Ask),
    /// The shell.
    Shell,
    /// Something that it has begun to start.
    Effect,
}

/// A promotion that runs in a daemon.
#[derive(Clone, Debug)]
pub(crate) struct Promotion {
    pub(crate) is_forced: bool,
    pub(crate) is_planned: bool,
    pub(crate) is_resumed: bool,
    pub(crate) old: Option<usize>,
    pub(crate) is_old_there: bool,
    pub(crate) is_old_off: bool,
    pub(crate) known: Epoch,
    pub(crate) epoch: Epoch,
    pub(crate) step: Step,
    /// The nodes that are still to be asked for the new epoch.
    pub(crate) others: Vec<usize>,
    /// How many have taken it.
    pub(crate) taken: usize,
}

/// What a rejoin does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Return {
    Find,
    Settle,
    Check,
    Join,
    Follow,
}

/// A rejoin that runs in a daemon.
#[derive(Clone, Debug)]
pub(crate) struct Rejoin {
    pub(crate) step: Return,
    pub(crate) peers: Vec<usize>,
    pub(crate) primary: Option<usize>,
    pub(crate) epoch: Option<Epoch>,
}

/// There is one at a time.
#[derive(Clone, Debug)]
pub(crate) enum Work {
    Promotion(Promotion),
    Rejoin(Rejoin),
}

#[derive(Clone, Debug)]
pub(crate) struct Task {
    pub(crate) work: Work,
    pub(crate) waiting: Waiting,
}

/// What runs for the present role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    Idle,
    Primary,
    /// Receives from that node; the process there whose stream is open.
    Standby(usize, Option<u32>),
}

#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) me: NodeName,
    // What survives a power cut.
    pub(crate) disk: Role,
    // What survives a crash of the daemon.
    pub(crate) is_on: bool,
    /// Services and stores that take writes, and the epoch that they were started in.
    pub(crate) running: Option<Epoch>,
    // What does not.
    pub(crate) is_up: bool,
    /// Counts the starts of the daemon and of what it ships: a stream ends with what it belongs to.
    pub(crate) life: u32,
    pub(crate) role: Role,
    pub(crate) events: VecDeque<(Event, Waiter)>,
    pub(crate) doing: Option<Doing>,
    /// Events that are done, and whose waiters have not gone on yet.
    pub(crate) done: VecDeque<(Waiter, bool)>,
    pub(crate) task: Option<Task>,
    pub(crate) stage: Stage,
    pub(crate) is_vouched: bool,
    pub(crate) is_fence_owed: bool,
    pub(crate) is_alone: bool,
    pub(crate) is_asking: bool,
    pub(crate) greeting: Option<Ask>,
    pub(crate) joining: Option<Ask>,
    pub(crate) is_rejoining: bool,
    // What only the checks know.
    /// The highest epoch that it has made durable.
    pub(crate) durable_max: Epoch,
    /// The highest epoch that its shell has dealt with since the daemon started, or that is durable.
    pub(crate) seen_max: Epoch,
    /// The highest epoch that it was told since then, and that its shell has not dropped.
    pub(crate) told_max: Epoch,
    /// Somebody has given it reason to serve since the daemon started.
    pub(crate) has_word: bool,
    /// A fence was done, and nothing has allowed it to serve since.
    pub(crate) is_shut: bool,
}

impl Node {
    pub(crate) fn new(me: NodeName, role: Role) -> Self {
        let epoch = role.epoch().clone();
        Self {
            me,
            disk: role.clone(),
            is_on: true,
            running: None,
            is_up: false,
            life: 0,
            role,
            events: VecDeque::new(),
            doing: None,
            done: VecDeque::new(),
            task: None,
            stage: Stage::Idle,
            is_vouched: false,
            is_fence_owed: false,
            is_alone: false,
            is_asking: false,
            greeting: None,
            joining: None,
            is_rejoining: false,
            durable_max: epoch.clone(),
            seen_max: epoch.clone(),
            told_max: epoch,
            has_word: false,
            is_shut: false,
        }
    }

    /// Whether its shell has nothing to do.
    pub(crate) fn is_idle(&self) -> bool {
        self.is_up && self.doing.is_none() && self.events.is_empty()
    }

    /// The daemon ends, wherever it is; what it has started goes on without it.
    pub(crate) fn crash(&mut self) {
        self.is_up = false;
        self.events.clear();
        self.doing = None;
        self.done.clear();
        self.task = None;
        self.stage = Stage::Idle;
        self.is_vouched = false;
        self.is_fence_owed = false;
        self.is_alone = false;
        self.is_asking = false;
        self.greeting = None;
        self.joining = None;
        self.is_rejoining = false;
    }

    pub(crate) fn power_off(&mut self) {
        self.crash();
        self.is_on = false;
        self.running = None;
    }

    /// The machine is on, and the daemon starts with the role on disk.
    pub(crate) fn start(&mut self) {
        self.is_on = true;
        self.is_up = true;
        self.life += 1;
        self.role = self.disk.clone();
        self.events.push_back((Event::Started, Waiter::Nobody));
        // What was not recorded is forgotten, and has been promised to nobody.
        self.is_shut &= matches!(self.disk, Role::Fenced { .. });
        self.seen_max = self.disk.epoch().clone();
        self.told_max = self.disk.epoch().clone();
        let nobody_ever = matches!(&self.disk, Role::Primary { epoch, standbys } if standbys.is_empty() && epoch.number <= 1);
        self.has_word = nobody_ever || !matches!(self.disk, Role::Primary { .. });
    }
}
