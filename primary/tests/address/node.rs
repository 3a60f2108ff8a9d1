//! A node of which there is nothing but its address.

use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
use tokio::runtime::Runtime;
use understudy_config::Local;
use understudy_primary::address::{Address, AddressError, Taken};
use understudy_replication::event::Events;
use understudy_replication::status::AddressState;
use understudy_replication::store::Stopper;

use crate::network::Network;

type Work = Box<dyn FnOnce(&Runtime, Arc<Address>) + Send>;

pub(crate) struct Node {
    work: Option<mpsc::Sender<Work>>,
    thread: Option<JoinHandle<()>>,
    events: Events,
    _folder: tempfile::TempDir,
}

/// Returns a configuration that moves these addresses.
pub(crate) fn config(ips: &[&str]) -> understudy_config::Address {
    understudy_config::Address {
        ips: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
        interface: "eth0".to_owned(),
        probe: Duration::from_millis(300),
        lease: None,
    }
}

fn local() -> Local {
    Local {
        name: "a".parse().unwrap(),
        root: "/".into(),
        state_dir: "/nonexistent".into(),
        run_dir: "/nonexistent".into(),
        pki_dir: "/nonexistent".into(),
        monitor_listen: "127.0.0.1:1".parse().unwrap(),
        kv_listen: "127.0.0.1:2".parse().unwrap(),
        address_interface: None,
    }
}

impl Node {
    pub(crate) fn new(network: &Network, machine: &str, ips: &[&str]) -> Self {
        Self::with(network, machine, config(ips), CapabilitySet::empty())
    }

    /// Returns a node whose daemon lacks some capabilities.
    pub(crate) fn with(
        network: &Network,
        machine: &str,
        config: understudy_config::Address,
        without: CapabilitySet,
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let events = Events::open(&folder.path().join("events")).unwrap();
        let (work, jobs) = mpsc::channel::<Work>();
        let shared = events.clone();
        let thread = network.on(machine, move || {
            // The threads that this one starts are in its namespace, and may do no more than it may.
            let mut sets = capabilities(None).unwrap();
            sets.effective -= without;
            sets.permitted -= without;
            sets.inheritable -= without;
            set_capabilities(None, sets).unwrap();
            let mut runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = runtime.enable_all().build().unwrap();
            let address = Arc::new(Address::new(&config, &local(), shared).unwrap());
            for job in jobs {
                job(&runtime, address.clone());
            }
        });
        Self {
            work: Some(work),
            thread: Some(thread),
            events,
            _folder: folder,
        }
    }

    pub(crate) fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Runtime, Arc<Address>) -> T + Send + 'static,
    ) -> T {
        let (answer, answered) = mpsc::channel();
        let job: Work = Box::new(move |runtime, address| {
            answer.send(job(runtime, address)).unwrap();
        });
        self.work.as_ref().unwrap().send(job).unwrap();
        answered.recv().unwrap()
    }

    pub(crate) fn take(&self) -> Result<Taken, AddressError> {
        self.run(|runtime, address| runtime.block_on(address.take()))
    }

    pub(crate) fn prepare(&self) -> Result<(), AddressError> {
        self.run(|runtime, address| runtime.block_on(address.prepare()))
    }

    pub(crate) fn give_up(&self) -> Result<bool, AddressError> {
        self.run(|runtime, address| runtime.block_on(address.give_up()))
    }

    /// Asks from this node who else has the address.
    pub(crate) fn holder(&self) -> Option<(String, Option<String>)> {
        let holder = self.run(|runtime, address| runtime.block_on(address.holder()));
        let holder = holder.unwrap()?;
        Some((holder.ip.to_string(), holder.mac.map(|mac| mac.to_string())))
    }

    pub(crate) fn state(&self) -> (AddressState, String) {
        let status = self.run(|_, address| address.status());
        (status.state, status.message)
    }

    /// Watches the address until that is ended. Meanwhile the node does nothing else.
    pub(crate) fn watch(&self) -> Watching {
        let (stopper, stop) = Stopper::new();
        let (ended, end) = mpsc::channel();
        let (tell, told) = mpsc::channel();
        let job: Work = Box::new(move |runtime, address| {
            tell.send(address.clone()).unwrap();
            runtime.block_on(address.watch(stop));
            // Where the test has failed, nobody waits for it.
            ended.send(()).unwrap_or_default();
        });
        self.work.as_ref().unwrap().send(job).unwrap();
        Watching {
            address: told.recv().unwrap(),
            stopper,
            end,
        }
    }

    /// Returns what the newest event of that kind tells.
    pub(crate) fn event(&self, kind: &str) -> Option<String> {
        let mut events = self.events.newest(1000).into_iter().rev();
        Some(events.find(|event| event.kind == kind)?.message)
    }

    pub(crate) fn count(&self, kind: &str) -> usize {
        let events = self.events.newest(1000);
        events.iter().filter(|event| event.kind == kind).count()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        drop(self.work.take());
        if let Some(thread) = self.thread.take() {
            // Who waited for it has failed already if it panicked.
            thread.join().unwrap_or_default();
        }
    }
}

pub(crate) struct Watching {
    address: Arc<Address>,
    stopper: Stopper,
    end: mpsc::Receiver<()>,
}

impl Watching {
    pub(crate) fn state(&self) -> (AddressState, String) {
        let status = self.address.status();
        (status.state, status.message)
    }

    /// Returns who else has the address.
    pub(crate) fn conflict(&self) -> Option<String> {
        self.address.status().conflict
    }

    pub(crate) fn end(self) {
        self.stopper.stop();
        self.end.recv().unwrap();
    }
}
