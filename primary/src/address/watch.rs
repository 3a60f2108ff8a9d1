//! Keeps the truth: what was taken stays, what was given up stays away, and who else answers is told.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior};
use understudy_replication::event::Severity;
use understudy_replication::status::AddressState;
use understudy_replication::store::Stop;

use super::error::{AddressError, Holder};
use super::frame::Mac;
use super::kernel::Seen;
use super::wire::{Question, Wire};
use super::{Address, Held, PROBE_ROUNDS, Wanted, names, schedule};

/// How often the kernel is asked what is there.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// How often an address that could not be taken is tried again.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);
/// How long nobody else may have answered before a conflict is over: longer than between two questions.
const CONFLICT_MEMORY: Duration = Duration::from_secs(150);

/// What the watch remembers between two looks.
#[derive(Default)]
struct Memory {
    /// Sockets of its own: what it hears, nobody else who asks misses.
    wire: Option<Wire>,
    own: Vec<Mac>,
    /// When an address that is missing was tried last.
    tried: Option<Instant>,
    /// Who else answers, and when he did last.
    conflict: Option<(Holder, Instant)>,
    had_carrier: bool,
    /// Somebody else had it when the network came back: it is not taken from him by an announcement.
    is_second: bool,
}

impl Address {
    /// Keeps the truth until told to stop: announces the address again while it is held, puts it back when
    /// somebody has removed it, removes it where it should not be, and tells who else answers for it. Does
    /// nothing before the address was taken or given up for the first time.
    pub async fn watch(self: Arc<Self>, stop: Stop) {
        let mut memory = Memory::default();
        let mut ticks = tokio::time::interval(LOOK_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let ips = self.all_ips();
        loop {
            let Memory { wire, own, .. } = &memory;
            tokio::select! {
                _tick = ticks.tick() => {}
                holder = hear(wire.as_ref(), own, &ips) => {
                    match holder {
                        Some(holder) => self.note_conflict(&mut memory, holder),
                        // The interface went away; the next look opens another one.
                        None => memory.wire = None,
                    }
                    continue;
                }
                () = stop.wait() => return,
            }
            tokio::select! {
                () = self.keep(&mut memory) => {}
                () = stop.wait() => return,
            }
        }
    }

    /// Looks once, and mends what is not as it should be.
    async fn keep(&self, memory: &mut Memory) {
        // Who takes it or gives it up sees to everything himself.
        let Ok(mut held) = self.changing.try_lock() else {
            return;
        };
        let wanted = *self.wanted.borrow();
        let seen = match self.kernel.look().await {
            Ok(seen) => seen,
            Err(error) => return self.fault("address_unknown", &error),
        };
        match wanted {
            Wanted::Unsaid => self.tell_what_is(&seen),
            Wanted::Yes => self.keep_held(&mut held, memory, &seen).await,
            Wanted::No => {
                memory.wire = None;
                memory.conflict = None;
                self.keep_away(&seen).await;
            }
        }
    }

    /// Tells how it is, while nobody has said how it should be: nobody may rely on it.
    fn tell_what_is(&self, seen: &Seen) {
        let there = seen.anywhere(&self.all_ips());
        let message = if there.is_empty() {
            "it is not on this machine".to_owned()
        } else {
            format!(
                "{} is on this machine, as somebody has left it",
                names(&there)
            )
        };
        self.set(AddressState::Unknown, &message);
    }

    async fn keep_away(&self, seen: &Seen) {
        if seen.anywhere(&self.all_ips()).is_empty() {
            let message = match self.status() {
                status if status.state == AddressState::Absent => status.message,
                _ => String::new(),
            };
            self.set(AddressState::Absent, &message);
            return;
        }
        match self.kernel.remove(&self.all_ips(), true).await {
            Ok(removed) => {
                let message = format!(
                    "{} appeared on this node, which should not have it, and was removed: look who \
                     configures network interfaces here",
                    names(&removed)
                );
                self.set(AddressState::Absent, &message);
                self.events
                    .record(Severity::Warning, "address_removed", message);
            }
            Err(error) => self.fault("address_not_given_up", &error),
        }
    }

    async fn keep_held(&self, held: &mut Held, memory: &mut Memory, seen: &Seen) {
        let link = match seen.usable_link(&self.interface) {
            Ok(link) => link,
            Err(error) => {
                memory.had_carrier = false;
                memory.wire = None;
                return self.fault("address_lost", &error);
            }
        };
        let missing = self.missing(seen, link);
        if !missing.is_empty() {
            // Who answers meanwhile has it instead of this node, not as well.
            memory.wire = None;
            let is_early = memory.tried.is_some_and(|at| at.elapsed() < RETRY_INTERVAL);
            if is_early {
                return;
            }
            memory.tried = Some(Instant::now());
            return self.put_back(held, &missing).await;
        }
        memory.tried = None;
        memory.own = seen.own_macs();
        let is_listening = memory.wire.as_ref().is_some_and(|wire| wire.is_of(link));
        if !is_listening {
            match self.kernel.wire(link, &self.all_ips()).await {
                Ok(wire) => memory.wire = Some(wire),
                Err(error) => return self.fault("address_not_watched", &error),
            }
        }
        let mut returned = !memory.had_carrier;
        if returned {
            match self.ask_again(memory, seen).await {
                Ok(is_alone) => {
                    memory.is_second = !is_alone;
                    returned = is_alone;
                }
                Err(AddressError::BrokenOff) => return,
                Err(error) => return self.fault("address_not_watched", &error),
            }
        }
        memory.had_carrier = true;
        if let Err(error) = self.renew(held, memory, returned).await {
            return self.fault("address_not_announced", &error);
        }
        self.tell_held(memory);
    }

    /// Asks who has what this node has, since others may have seen nothing of it for a while, and taken it.
    /// Returns whether nobody has it.
    async fn ask_again(&self, memory: &mut Memory, seen: &Seen) -> Result<bool, AddressError> {
        let Some(wire) = &memory.wire else {
            return Ok(true);
        };
        let (ips, effort) = (self.all_ips(), (self.probe, PROBE_ROUNDS));
        let orders = self.wanted.subscribe();
        match self.ask(wire, seen, &ips, effort, orders).await {
            Ok(()) => Ok(true),
            // Who is about to take it learns from the kernel's answer that it is taken.
            Err(AddressError::InUse { holder }) if holder.is_taking => Ok(true),
            Err(AddressError::InUse { holder }) => {
                self.set(AddressState::Held, "");
                self.note_conflict(memory, holder);
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Takes again what is missing, in full: somebody else may have it by now.
    async fn put_back(&self, held: &mut Held, missing: &[IpAddr]) {
        held.prepared = None;
        let was = self.status();
        match self.take_locked(held, Instant::now()).await {
            Ok(taken) => {
                let missing: Vec<String> = missing.iter().map(ToString::to_string).collect();
                let message = if was.state == AddressState::Fault {
                    format!("taken in {:.3} s, once it could be", taken.seconds)
                } else {
                    "somebody had removed it from this node: put back and announced".to_owned()
                };
                self.set(AddressState::Held, &message);
                let message = format!("{} on {}: {message}", missing.join(", "), self.interface);
                self.events
                    .record(Severity::Warning, "address_restored", message);
            }
            Err(AddressError::BrokenOff) => {}
            Err(error) => self.fault("address_lost", &error),
        }
    }

    /// Renews the lease, announces the address, and asks who else has it, where it is time to.
    async fn renew(
        &self,
        held: &mut Held,
        memory: &Memory,
        returned: bool,
    ) -> Result<(), AddressError> {
        let Some(wire) = &memory.wire else {
            return Ok(());
        };
        if let Some(lease) = self.lease {
            let age = held.renewed.map_or(lease, |at| at.elapsed());
            if schedule::is_renewal_due(lease, age) {
                let added = self.kernel.add(&wire.link, &self.ips, self.lease).await;
                added.map_err(|(_, error)| error)?;
                held.renewed = Some(Instant::now());
            }
        }
        let (at, last) = *held.taken.get_or_insert((Instant::now(), Duration::ZERO));
        let now = at.elapsed();
        if returned || schedule::is_announcement_due(last, now) {
            held.taken = Some((at, now));
            let ips = self.all_ips();
            let mut told = wire.put(&question(&ips, &memory.own));
            if !memory.is_second {
                told = told.and_then(|()| wire.announce(&ips));
            }
            told.map_err(|source| self.on_wire("announce the address", source))?;
        }
        Ok(())
    }

    fn note_conflict(&self, memory: &mut Memory, holder: Holder) {
        // It may have been given up since the last look: then who announces it is the next to have it.
        let is_held = self.status().state == AddressState::Held;
        if *self.wanted.borrow() != Wanted::Yes || !is_held {
            memory.wire = None;
            return;
        }
        let now = Instant::now();
        let is_known = memory
            .conflict
            .is_some_and(|(known, _)| (known.ip, known.mac) == (holder.ip, holder.mac));
        memory.conflict = Some((holder, now));
        if is_known {
            return;
        }
        let message = format!(
            "{holder} as well as this node: clients reach the one or the other; take it away from that machine \
             (`ip address del`), or cut it off"
        );
        self.events
            .record(Severity::Error, "address_conflict", message);
        self.tell_held(memory);
    }

    /// Tells that it is held, and who else has it.
    fn tell_held(&self, memory: &mut Memory) {
        let over = memory
            .conflict
            .take_if(|(_, at)| at.elapsed() > CONFLICT_MEMORY);
        if let Some((holder, _)) = over {
            memory.is_second = false;
            let message = format!("nobody else answers for {} any more", holder.ip);
            self.events
                .record(Severity::Info, "address_conflict_over", message);
        }
        if self.status().state != AddressState::Held {
            self.set(AddressState::Held, "");
        }
        let conflict = memory.conflict.as_ref();
        self.set_conflict(conflict.map(|(holder, _)| format!("{holder} as well as this node")));
    }
}

/// Waits until another machine shows that it has one of the addresses; `None` when there is no listening any
/// more, and never while there is nothing to listen to.
async fn hear(wire: Option<&Wire>, own: &[Mac], ips: &[IpAddr]) -> Option<Holder> {
    let Some(wire) = wire else {
        return std::future::pending().await;
    };
    loop {
        let holder = wire.heard(&question(ips, own)).await.ok()?;
        // Who is about to take it learns from the kernel's answer that it is taken.
        if !holder.is_taking {
            return Some(holder);
        }
    }
}

/// The question whether somebody else has what this node has: it is answered while this goes on.
fn question<'a>(ips: &'a [IpAddr], own: &'a [Mac]) -> Question<'a> {
    Question {
        ips,
        askers: &[],
        own,
        wait: Duration::ZERO,
        rounds: PROBE_ROUNDS,
    }
}
