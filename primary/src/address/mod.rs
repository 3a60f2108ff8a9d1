//! The address that clients use: taken last, given up first, on one node at any time.
//!
//! ```text
//! prepare ──▶ asks who has it, while the promotion does other things
//! take    ──▶ asks once more ─▶ adds it ─▶ announces it       watch ──▶ announces again, puts back,
//! give_up ──▶ removes it, wherever it is                               removes, listens for others
//! ```
//! Whether this node is to have it is not decided here: who calls [`Address::take`] is primary, and who calls
//! [`Address::give_up`] is not. Until one of them is called nothing is changed. How others are asked, and what
//! of RFC 5227 is shortened, is told in `docs/stores/address.md`.

mod error;
mod frame;
mod kernel;
mod message;
mod netlink;
mod schedule;
mod watch;
mod wire;

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch as channel;
use tokio::time::Instant;
use understudy_config::{IpPrefix, Local};
use understudy_replication::error_chain;
use understudy_replication::event::{Events, Severity};
use understudy_replication::status::{AddressState, AddressStatus};
use understudy_replication::wall_time::WallTime;

pub use error::{AddressError, Holder};
pub use frame::Mac;
use kernel::{Kernel, Seen};
use message::{Link, Present};
use wire::{Question, Wire};

/// How long others have to answer just before the address is taken, where [`Address::prepare`] has asked
/// them for as long as the configuration says. On a network that works an answer takes less than 1 ms.
const LAST_PROBE: Duration = Duration::from_millis(20);
/// How long what [`Address::prepare`] has found holds.
const PREPARED_FOR: Duration = Duration::from_secs(60);
/// How often others are asked within the time that they have (RFC 5227: `PROBE_NUM`).
const PROBE_ROUNDS: u32 = 3;
/// The same in the short time before the address is taken.
const LAST_PROBE_ROUNDS: u32 = 2;
/// How long another change of the address may take before this one gives way.
const CHANGE_LIMIT: Duration = Duration::from_secs(10);

/// The taking of an address that succeeded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Taken {
    /// How long it took from the begin until it was announced.
    pub seconds: f64,
    /// This node had it already.
    pub was_held: bool,
}

/// Whether this node is to have the address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    /// Nobody has said so far: nothing is changed.
    Unsaid,
    Yes,
    No,
}

/// The address that clients use, on this node.
pub struct Address {
    ips: Vec<IpPrefix>,
    interface: String,
    probe: Duration,
    lease: Option<Duration>,
    events: Events,
    kernel: Kernel,
    wanted: channel::Sender<Wanted>,
    /// Taking, giving up and mending exclude each other.
    changing: tokio::sync::Mutex<Held>,
    status: Mutex<AddressStatus>,
}

/// What is remembered between changes.
#[derive(Default)]
struct Held {
    wire: Option<Arc<Wire>>,
    /// When others were asked last, and nobody answered.
    prepared: Option<Instant>,
    /// When it was taken, and how long after that it was announced last.
    taken: Option<(Instant, Duration)>,
    /// When the lease was renewed last.
    renewed: Option<Instant>,
}

impl Address {
    /// Returns the address of the configuration; whoever has it keeps it.
    ///
    /// # Errors
    /// When the kernel's interface for addresses cannot be reached.
    pub fn new(
        config: &understudy_config::Address,
        local: &Local,
        events: Events,
    ) -> Result<Self, AddressError> {
        let interface = local.address_interface.as_ref();
        let interface = interface.unwrap_or(&config.interface).clone();
        let status = AddressStatus {
            ips: config.ips.iter().map(ToString::to_string).collect(),
            interface: interface.clone(),
            state: AddressState::Unknown,
            since: WallTime::now(),
            message: String::new(),
            conflict: None,
        };
        Ok(Self {
            ips: config.ips.clone(),
            interface,
            probe: config.probe,
            lease: config.lease,
            events,
            kernel: Kernel::new()?,
            wanted: channel::Sender::new(Wanted::Unsaid),
            changing: tokio::sync::Mutex::new(Held::default()),
            status: Mutex::new(status),
        })
    }

    /// Asks whether anybody has an address, for as long as the configuration says, so that [`Self::take`]
    /// within the next minute needs to ask but briefly. To be called while a promotion does other things,
    /// once the former primary is fenced. Safe to cancel; changes nothing.
    ///
    /// # Errors
    /// When somebody has one, or it cannot be asked. [`Self::take`] asks in full then.
    pub async fn prepare(&self) -> Result<(), AddressError> {
        let mut held = self.lock("ask who has the address").await?;
        let orders = self.wanted.subscribe();
        held.prepared = None;
        let (seen, link) = self.look().await?;
        let wire = self.wire(&mut held, &link).await?;
        let ips = self.missing(&seen, &link);
        self.ask(&wire, &seen, &ips, (self.probe, PROBE_ROUNDS), orders)
            .await?;
        held.prepared = Some(Instant::now());
        Ok(())
    }

    /// Takes every address: asks whether somebody else has it, adds it and announces it. Repeatable.
    ///
    /// From now on the address is wanted: where it could not be taken, [`Self::watch`] takes it once it can
    /// be, until it is given up.
    ///
    /// # Errors
    /// When somebody else has one, or it cannot be added. None is added then.
    pub async fn take(&self) -> Result<Taken, AddressError> {
        let begin = Instant::now();
        self.wanted.send_replace(Wanted::Yes);
        let mut held = self.lock("take the address").await?;
        let taken = self.take_locked(&mut held, begin).await;
        match &taken {
            Ok(taken) if taken.was_held => {
                self.set(AddressState::Held, "it was here already");
            }
            Ok(taken) => {
                let message = format!("taken and announced in {:.3} s", taken.seconds);
                self.set(AddressState::Held, &message);
                let message = format!("{} on {}: {message}", self.names(), self.interface);
                self.events.record(Severity::Info, "address_taken", message);
            }
            Err(AddressError::BrokenOff) => {}
            Err(error) => self.fault("address_not_taken", error),
        }
        taken
    }

    /// Gives every address up: removes it from whatever interface it is on. What this program has added
    /// under an earlier configuration goes as well. Repeatable, and bounded in time.
    ///
    /// # Errors
    /// When an address could not be removed: it may still be here.
    pub async fn give_up(&self) -> Result<bool, AddressError> {
        // Before the lock: who takes it breaks off.
        self.wanted.send_replace(Wanted::No);
        let given_up = match self.lock("give the address up").await {
            Ok(mut held) => {
                // A taking that was about to get the lock may have wanted it meanwhile.
                self.wanted.send_replace(Wanted::No);
                self.give_up_locked(&mut held).await
            }
            Err(error) => Err(error),
        };
        match &given_up {
            Ok(removed) if removed.is_empty() => {
                self.set(AddressState::Absent, "");
            }
            Ok(removed) => {
                let message = format!("given up: {} removed", names(removed));
                self.set(AddressState::Absent, &message);
                self.events
                    .record(Severity::Info, "address_given_up", message);
            }
            Err(error) => self.fault("address_not_given_up", error),
        }
        given_up.map(|removed| !removed.is_empty())
    }

    /// Returns who else has an address now, if anybody. Disturbs nobody, and nobody's taking.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub async fn holder(&self) -> Result<Option<Holder>, AddressError> {
        let (seen, link) = self.look().await?;
        let ips = self.all_ips();
        let wire = self.kernel.wire(&link, &ips).await?;
        let askers = askers(&seen, &link, &ips);
        let own = seen.own_macs();
        let question = Question {
            ips: &ips,
            askers: &askers,
            own: &own,
            wait: self.probe,
            rounds: PROBE_ROUNDS,
        };
        let asked = wire.ask(&question).await;
        asked.map_err(|source| self.on_wire("ask who has the address", source))
    }

    /// Returns how the address is on this node.
    pub fn status(&self) -> AddressStatus {
        self.status
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    async fn take_locked(&self, held: &mut Held, begin: Instant) -> Result<Taken, AddressError> {
        let orders = self.wanted.subscribe();
        self.is_still_wanted()?;
        let (seen, link) = self.look().await?;
        let wire = self.wire(held, &link).await?;
        let missing = self.missing(&seen, &link);
        let was_held = missing.is_empty();
        if !was_held {
            if self.status().state != AddressState::Fault {
                self.set(AddressState::Taking, "");
            }
            let is_prepared = |at: &Instant| at.elapsed() < PREPARED_FOR;
            let effort = match held.prepared.take().filter(is_prepared) {
                Some(_) => (LAST_PROBE, LAST_PROBE_ROUNDS),
                None => (self.probe, PROBE_ROUNDS),
            };
            self.ask(&wire, &seen, &missing, effort, orders).await?;
            self.is_still_wanted()?;
        }
        // Also those that are there: how long they stay may have changed.
        let added = self.kernel.add(&link, &self.ips, self.lease).await;
        held.renewed = Some(Instant::now());
        if let Err((added, error)) = added {
            // None of them, rather than some: clients of one would see what those of another cannot.
            let mine: Vec<IpAddr> = added
                .into_iter()
                .filter(|ip| missing.contains(ip))
                .collect();
            self.kernel.remove(&mine, false).await?;
            return Err(error);
        }
        let announced = wire.announce(&self.all_ips());
        announced.map_err(|source| self.on_wire("announce the address", source))?;
        if !was_held || held.taken.is_none() {
            held.taken = Some((begin, Duration::ZERO));
        }
        let seconds = begin.elapsed().as_secs_f64();
        // Last, since clients do not wait for it: the same address elsewhere on this machine.
        self.kernel.remove_strays(&link, &self.ips).await?;
        Ok(Taken { seconds, was_held })
    }

    async fn give_up_locked(&self, held: &mut Held) -> Result<Vec<Present>, AddressError> {
        *held = Held::default();
        self.kernel.remove(&self.all_ips(), true).await
    }

    /// Returns what there is, and the interface that the address is to be on.
    async fn look(&self) -> Result<(Seen, Link), AddressError> {
        let seen = self.kernel.look().await?;
        let link = seen.usable_link(&self.interface)?.clone();
        Ok((seen, link))
    }

    /// Returns the sockets on the interface, which are kept: opening them takes time.
    async fn wire(&self, held: &mut Held, link: &Link) -> Result<Arc<Wire>, AddressError> {
        if let Some(wire) = held.wire.as_ref().filter(|wire| wire.is_of(link)) {
            return Ok(wire.clone());
        }
        let wire = Arc::new(self.kernel.wire(link, &self.all_ips()).await?);
        held.wire = Some(wire.clone());
        Ok(wire)
    }

    /// Asks whether anybody has one of the addresses, or is about to take it; breaks off when one of the
    /// `orders` from now on is to give them up.
    async fn ask(
        &self,
        wire: &Wire,
        seen: &Seen,
        ips: &[IpAddr],
        (wait, rounds): (Duration, u32),
        mut orders: channel::Receiver<Wanted>,
    ) -> Result<(), AddressError> {
        let own = seen.own_macs();
        let question = Question {
            ips,
            askers: &[],
            own: &own,
            wait,
            rounds,
        };
        let answer = tokio::select! {
            answer = wire.ask(&question) => answer,
            () = given_up(&mut orders) => return Err(AddressError::BrokenOff),
        };
        match answer {
            Ok(None) => Ok(()),
            Ok(Some(holder)) => Err(AddressError::InUse { holder }),
            Err(source) => Err(self.on_wire("ask who has the address", source)),
        }
    }

    /// Returns the addresses that are not on the interface as they should be.
    fn missing(&self, seen: &Seen, link: &Link) -> Vec<IpAddr> {
        let is_missing = |prefix: &&IpPrefix| !seen.is_on(link, **prefix);
        let missing = self.ips.iter().filter(is_missing);
        missing.map(IpPrefix::ip).collect()
    }

    fn all_ips(&self) -> Vec<IpAddr> {
        self.ips.iter().map(IpPrefix::ip).collect()
    }

    /// Returns the addresses as they are told.
    fn names(&self) -> String {
        let names: Vec<String> = self.ips.iter().map(|it| it.ip().to_string()).collect();
        names.join(", ")
    }

    fn is_still_wanted(&self) -> Result<(), AddressError> {
        match *self.wanted.borrow() {
            Wanted::Unsaid | Wanted::Yes => Ok(()),
            Wanted::No => Err(AddressError::BrokenOff),
        }
    }

    async fn lock(&self, doing: &str) -> Result<tokio::sync::MutexGuard<'_, Held>, AddressError> {
        let locked = tokio::time::timeout(CHANGE_LIMIT, self.changing.lock()).await;
        locked.map_err(|_| AddressError::Slow {
            doing: doing.to_owned(),
            limit: CHANGE_LIMIT,
        })
    }

    fn on_wire(&self, doing: &str, source: std::io::Error) -> AddressError {
        kernel::error(
            &format!("{doing} on {}", self.interface),
            source,
            "CAP_NET_RAW",
        )
    }

    /// Sets how it is, and returns whether that is new.
    fn set(&self, state: AddressState, message: &str) -> bool {
        let mut status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = status.state != state || status.message != message;
        if status.state != state {
            status.state = state;
            status.since = WallTime::now();
        }
        message.clone_into(&mut status.message);
        if state != AddressState::Held {
            status.conflict = None;
        }
        is_new
    }

    /// Sets who else has it.
    fn set_conflict(&self, conflict: Option<String>) {
        let mut status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        status.conflict = conflict.filter(|_| status.state == AddressState::Held);
    }

    /// Tells that it is not as it should be: once, as long as nothing about it changes.
    fn fault(&self, kind: &str, error: &AddressError) {
        let message = error_chain(error);
        if self.set(AddressState::Fault, &message) {
            let message = format!(
                "{} on {}: {message}; {}",
                self.names(),
                self.interface,
                error.hint()
            );
            self.events.record(Severity::Error, kind, message);
        }
    }
}

/// Waits until a new order is to give the address up.
async fn given_up(orders: &mut channel::Receiver<Wanted>) {
    // There is no error as long as the address is there to give orders about.
    while orders.changed().await.is_ok() {
        if *orders.borrow_and_update() == Wanted::No {
            return;
        }
    }
}

/// Returns an address of this node of each family, to ask by: it is known on the network already.
fn askers(seen: &Seen, link: &Link, ips: &[IpAddr]) -> Vec<IpAddr> {
    let own = || {
        seen.on(link)
            .filter(|it| it.is_usable() && !ips.contains(&it.ip))
    };
    let v4 = own().find(|it| it.ip.is_ipv4());
    let v6 = own().find(|it| it.is_link_local());
    [v4, v6].into_iter().flatten().map(|it| it.ip).collect()
}

fn names(addresses: &[Present]) -> String {
    let names: Vec<String> = addresses.iter().map(|it| it.ip.to_string()).collect();
    names.join(", ")
}
