//! Addresses that no other test uses, and a bound on how many tests run Postgres at once.

use std::net::TcpListener;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

/// Every node of a test has these ports on an address of its own.
pub(crate) const PEERS: u16 = 7400;
pub(crate) const MONITOR: u16 = 7480;
pub(crate) const KV: u16 = 7479;
pub(crate) const POSTGRES: u16 = 5432;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// Returns loopback addresses that are free, `127.x.y.1` to `127.x.y.3`.
pub(crate) fn free_ips() -> [String; 3] {
    loop {
        let number = NEXT.fetch_add(1, Ordering::Relaxed) + std::process::id() * 97;
        let (second, third) = (20 + number / 250 % 200, 1 + number % 250);
        let ips = [1, 2, 3].map(|last| format!("127.{second}.{third}.{last}"));
        let is_free = |ip: &String| {
            [PEERS, MONITOR, KV, POSTGRES]
                .iter()
                .all(|port| TcpListener::bind((ip.as_str(), *port)).is_ok())
        };
        if ips.iter().all(is_free) {
            return ips;
        }
    }
}

/// How many tests run Postgres at once.
const POSTGRES_TESTS_MAX: usize = 3;

static RUNNING: Mutex<usize> = Mutex::new(0);
static FREE: Condvar = Condvar::new();

/// The right to run Postgres.
pub(crate) struct Place;

impl Place {
    pub(crate) fn take() -> Self {
        let running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        let mut running = FREE
            .wait_while(running, |running| *running >= POSTGRES_TESTS_MAX)
            .unwrap_or_else(PoisonError::into_inner);
        *running += 1;
        Self
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        *RUNNING.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        FREE.notify_one();
    }
}
