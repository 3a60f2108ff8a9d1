//! The role machine, from seeds: two to four nodes that each run the real `Role::step` in a model of the daemon
//! around it, with crashes between any two actions, power cuts, records and fences that fail, a network that
//! parts, loses, doubles, delays and reorders, timers that fire at any time (so clocks may jump as they like), fence
//! commands that work, fail or lie, and operators who promote, force, switch over and rejoin at any moment.
//!
//! One seed is one history. `UNDERSTUDY_HISTORIES` sets how many are run, `UNDERSTUDY_SEED` the first; a failure
//! prints its seed and what happened in it. One million of them:
//!
//! ```text
//! cargo test -p understudy-replication --release --test role_simulation -- --ignored --nocapture million
//! ```

mod broken;
mod check;
mod comeback;
mod heal;
mod network;
mod node;
mod peer;
#[path = "../kv_simulation/random.rs"]
mod random;
mod seen;
mod shell;
mod work;
mod world;

use std::time::Instant;

use understudy_config::NodeName;

use crate::broken::Broken;
use crate::check::Violation;
use crate::seen::Seen;
use crate::world::World;

/// How many histories are run, unless told otherwise.
const HISTORIES: u64 = 5_000;

/// How many the long run has.
const MILLION: u64 = 1_000_000;

/// Within how many histories a broken rule has to be caught.
const CAUGHT_WITHIN: u64 = 100_000;

fn number(name: &str, otherwise: u64) -> u64 {
    let text = std::env::var(name).ok();
    text.and_then(|it| it.parse().ok()).unwrap_or(otherwise)
}

fn names() -> Vec<NodeName> {
    let names = ["a", "b", "c", "d"];
    names.iter().filter_map(|it| it.parse().ok()).collect()
}

fn history(
    seed: u64,
    names: &[NodeName],
    broken: Option<Broken>,
    seen: &mut Seen,
) -> Result<(), Violation> {
    let mut world = World::new(seed, names, broken, false);
    let result = world.run_history();
    seen.add(&world.seen);
    result
}

/// Runs a history again, and tells what happened in it.
fn story(seed: u64, names: &[NodeName], broken: Option<Broken>) -> String {
    let mut world = World::new(seed, names, broken, true);
    let result = world.run_history();
    let outcome = result.map_or_else(|it| it.to_string(), |()| "nothing".to_owned());
    let policy = world.policy.clone();
    let told = world.trace.unwrap_or_default().join("\n");
    // Epochs as people read them.
    format!("seed {seed}: {policy:?}\n{told}\n{outcome}")
        .replace("Epoch { number: ", "")
        .replace(", node: NodeName(\"", ".")
        .replace("\") }", "")
        .replace("NodeName(\"", "")
        .replace("\")", "")
}

fn run(count: u64) -> Seen {
    let (names, first) = (names(), number("UNDERSTUDY_SEED", 0));
    let count = number("UNDERSTUDY_HISTORIES", count);
    let began = Instant::now();
    let mut seen = Seen::default();
    for seed in first..first.saturating_add(count) {
        if let Err(violation) = history(seed, &names, None, &mut seen) {
            panic!(
                "{violation}\nrepeat with UNDERSTUDY_SEED={seed} UNDERSTUDY_HISTORIES=1\n{}",
                story(seed, &names, None),
            );
        }
        let done = seed + 1 - first;
        if done % 100_000 == 0 {
            let seconds = began.elapsed().as_secs_f64();
            eprintln!("{done} of {count} histories after {seconds:.0} s");
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    eprintln!(
        "{count} histories from seed {first} in {seconds:.1} s: every invariant held\n{seen}"
    );
    seen
}

#[test]
fn no_history_breaks_an_invariant() {
    let seen = run(HISTORIES);
    if number("UNDERSTUDY_HISTORIES", HISTORIES) >= HISTORIES {
        assert_eq!(seen.missing(), None, "this never happened");
    }
}

#[test]
#[ignore = "takes minutes: run with --release, see the top of this file"]
fn one_million_histories_break_no_invariant() {
    let seen = run(MILLION);
    if number("UNDERSTUDY_HISTORIES", MILLION) >= HISTORIES {
        assert_eq!(seen.missing(), None, "this never happened");
    }
}

#[test]
fn every_broken_rule_is_caught() {
    let names = names();
    let missed: Vec<Broken> = Broken::ALL
        .into_iter()
        .filter(|broken| {
            let within = number("UNDERSTUDY_HISTORIES", CAUGHT_WITHIN);
            let first = broken.first_seed();
            let caught = (first..first + within).find_map(|seed| {
                let violation = history(seed, &names, Some(*broken), &mut Seen::default()).err()?;
                Some((seed, violation))
            });
            match caught {
                Some((seed, violation)) => {
                    let rule = format!("{broken:?}");
                    eprintln!("{rule:<32} caught by seed {seed:>6}: {violation}");
                    false
                }
                None => true,
            }
        })
        .collect();
    assert!(missed.is_empty(), "nobody noticed {missed:?}");
}
