//! Guarantee 1 under fire: a former primary that returns takes no writes, in any store, however it returns,
//! while its application goes on trying.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use crate::world::{FILES, Machine, Network, Pair, Plan, holds, until};

/// How long the application rests between two writes to a store.
const PACE: Duration = Duration::from_millis(20);

/// The application of a node: it writes numbers into every store, and remembers which were acknowledged.
#[derive(Default)]
struct Application {
    is_over: AtomicBool,
    /// The number that is written next.
    next: AtomicU32,
    /// The numbers that were acknowledged, by store.
    acknowledged: Mutex<BTreeMap<&'static str, Vec<u32>>>,
}

/// Ends the application when a test fails, too.
struct Ending<'a>(&'a Application);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.is_over.store(true, Ordering::SeqCst);
    }
}

impl Application {
    /// Writes on `machine` until it is over. Numbers begin at 1000, which nobody else uses.
    fn write_always(&self, machine: &Machine, store: &'static str) {
        while !self.is_over.load(Ordering::SeqCst) {
            let number = 1000 + self.next.fetch_add(1, Ordering::SeqCst);
            let is_written = match store {
                "postgres" => machine
                    .try_sql(&format!("INSERT INTO change VALUES ({number})"))
                    .is_ok(),
                "docs" => {
                    fs::write(machine.at(FILES).join(format!("late-{number}")), "late").is_ok()
                }
                _ => {
                    let key = format!("late-{number}");
                    let put = machine.try_understudy(&["kv", "put", &key, "late"]);
                    put.status == Some(0)
                }
            };
            // A file is written so fast that little else would be.
            std::thread::sleep(PACE);
            if is_written {
                let mut acknowledged = self.acknowledged.lock().unwrap();
                acknowledged.entry(store).or_default().push(number);
            }
        }
    }

    /// Returns the number from which on nothing has been written yet.
    fn now(&self) -> u32 {
        1000 + self.next.load(Ordering::SeqCst)
    }

    /// Waits until `store` has acknowledged something from `number` on.
    fn wait_for(&self, store: &'static str, number: u32) {
        until(&format!("{store} takes writes"), Pair::PATIENCE, || {
            let newest = self.newest(store);
            holds(newest.is_some_and(|newest| newest >= number), newest)
        });
    }

    /// Waits until it has tried so often again.
    fn try_on(&self, tries: u32) {
        let from = self.now();
        until("the application tries on", Pair::PATIENCE, || {
            holds(self.now() >= from + tries, self.now())
        });
    }

    fn newest(&self, store: &'static str) -> Option<u32> {
        let acknowledged = self.acknowledged.lock().unwrap();
        acknowledged.get(store)?.iter().max().copied()
    }
}

/// Has `take_away` and `give_back` take a node away while its application writes, promotes the other one
/// meanwhile, and asserts what must hold afterwards.
fn supersede(mut pair: Pair, take_away: impl FnOnce(&mut Pair), give_back: impl FnOnce(&mut Pair)) {
    pair.write(1);
    pair.wait();
    let application = Application::default();
    // Before anything is started on b, and what a may have written without anybody hearing of it.
    let mut parted = 0;
    // The machines are handed around while threads write on one of them: its paths are all they need.
    let writer = pair.a.writer();
    std::thread::scope(|scope| {
        let _ending = Ending(&application);
        for store in ["postgres", "docs", "kv"] {
            let (application, writer) = (&application, &writer);
            scope.spawn(move || application.write_always(writer, store));
        }
        for store in ["postgres", "docs", "kv"] {
            application.wait_for(store, 1000);
        }
        take_away(&mut pair);
        until("b may be forced", Pair::PATIENCE, || {
            let ended = pair.b.try_understudy(&["promote", "--force"]);
            holds(ended.status == Some(0), &ended)
        });
        pair.assert_b_is_primary();
        parted = application.now();
        give_back(&mut pair);
        pair.assert_a_is_fenced();
        // From here on nothing may be acknowledged, and nothing is, however often it is tried.
        let fenced = application.now();
        application.try_on(30);
        for store in ["postgres", "kv"] {
            let newest = application.newest(store);
            assert!(
                newest.is_none_or(|newest| newest < fenced),
                "{store} of a took {newest:?} after the fence at {fenced}"
            );
        }
    });
    // A write of the key-value store needs its standby, which is another's primary: none after the parting.
    assert!(
        application
            .newest("kv")
            .is_none_or(|newest| newest < parted)
    );
    // Nothing of it has reached b.
    let sql = format!("SELECT count(*) FROM change WHERE number >= {parted}");
    assert_eq!(pair.b.sql(&sql), "0");
    let late = |name: &str| {
        let number = name.strip_prefix("late-")?.parse::<u32>().ok()?;
        (number >= parted).then_some(number)
    };
    let files = fs::read_dir(pair.b.at(FILES)).unwrap();
    let late: Vec<u32> = files
        .filter_map(|entry| late(entry.unwrap().file_name().to_str()?))
        .collect();
    assert_eq!(late, Vec::<u32>::new());
    // And it can be made a standby.
    pair.a.understudy(&["rejoin"]);
    until("a follows", Pair::PATIENCE, || {
        let ended = pair.b.try_understudy(&["wait", "--timeout", "5"]);
        holds(ended.status == Some(0), &ended)
    });
    pair.assert_equal_files();
}

fn plan() -> Plan {
    Plan {
        index: false,
        // A primary that has had a standby does not acknowledge alone for as long as this runs.
        kv: Some("degrade_after = \"10m\"".to_owned()),
        ..Plan::everything()
    }
}

#[test]
fn l14_a_primary_that_was_frozen_in_the_middle_of_a_write_fences_itself_when_it_wakes() {
    supersede(
        Pair::new(plan()),
        |pair| pair.a.freeze(),
        |pair| pair.a.thaw(),
    );
}

#[test]
fn l14_a_primary_on_the_other_side_of_a_partition_fences_itself_when_it_heals() {
    let test = "l14_a_primary_on_the_other_side_of_a_partition_fences_itself_when_it_heals";
    let Some(network) = Network::new(test) else {
        return;
    };
    supersede(
        Pair::on(network, plan()),
        |pair| pair.network.as_ref().unwrap().cut(),
        |pair| pair.network.as_ref().unwrap().mend(),
    );
}

#[test]
fn l14_a_primary_that_reboots_serves_nothing() {
    supersede(
        Pair::new(plan()),
        |pair| pair.a.power_off(),
        |pair| pair.a.serve(),
    );
}
