//! Our server beside Redis'.

use super::client::{Client, Value, sorted};
use super::commands::{KEYS, Rule};

/// Both servers, each with a client.
pub(crate) struct Pair {
    pub(crate) ours: Client,
    pub(crate) theirs: Client,
    pub(crate) seed: u64,
    pub(crate) is_resp3: bool,
}

impl Pair {
    pub(crate) fn call(&mut self, command: &[String], rule: Rule) {
        let (ours, theirs) = (self.ours.call(command), self.theirs.call(command));
        self.compare(command, rule, ours, theirs);
    }

    pub(crate) fn say(&mut self, line: &str) {
        let command: Vec<_> = line.split(' ').map(str::to_owned).collect();
        self.call(&command, Rule::Equal);
    }

    pub(crate) fn compare(&self, command: &[String], rule: Rule, ours: Value, theirs: Value) {
        let is_equal = match (rule, &ours, &theirs) {
            (Rule::Time(unit), Value::Integer(ours), Value::Integer(theirs)) => {
                // Both clocks are read at moments of their own.
                let apart = (ours - theirs).abs() * unit;
                ours.signum() == theirs.signum() && apart <= 2000
            }
            (Rule::Equal | Rule::Time(_), ..) => ours == theirs,
            (Rule::Sorted, ..) => sorted(ours.clone()) == sorted(theirs.clone()),
            (Rule::SortedPairs, ..) => sorted_pairs(ours.clone()) == sorted_pairs(theirs.clone()),
        };
        assert!(
            is_equal,
            "{command:?} (seed {}, RESP{}):\n  ours   {ours:?}\n  theirs {theirs:?}",
            self.seed,
            if self.is_resp3 { 3 } else { 2 },
        );
    }

    /// Compares all that there is.
    pub(crate) fn compare_all(&mut self) {
        for key in KEYS {
            let words = |words: &[&str]| {
                words
                    .iter()
                    .map(|word| (*word).to_owned())
                    .collect::<Vec<_>>()
            };
            self.call(&words(&["TYPE", key]), Rule::Equal);
            self.call(&words(&["GET", key]), Rule::Equal);
            self.call(&words(&["HGETALL", key]), Rule::SortedPairs);
            self.call(&words(&["PTTL", key]), Rule::Time(1));
        }
        self.say("DBSIZE");
    }

    /// Compares what a scan finds in all.
    pub(crate) fn compare_scan(&mut self, start: &[String], rest: &[String], has_pairs: bool) {
        let find = |client: &mut Client| {
            let mut cursor = "0".to_owned();
            let mut found = Vec::new();
            loop {
                let command: Vec<_> = start.iter().chain([&cursor]).chain(rest).cloned().collect();
                let Value::Array(parts) = client.call(&command) else {
                    return (vec![client.call(&command)], true);
                };
                let [Value::Bulk(next), Value::Array(items)] = &parts[..] else {
                    panic!("{command:?}: {parts:?}");
                };
                if has_pairs {
                    found.extend(items.chunks(2).map(|pair| Value::Array(pair.to_vec())));
                } else {
                    found.extend(items.iter().cloned());
                }
                cursor = next.clone();
                if cursor == "0" {
                    found.sort_by(|a, b| a.partial_cmp(b).unwrap());
                    found.dedup();
                    return (found, false);
                }
            }
        };
        let (ours, theirs) = (find(&mut self.ours), find(&mut self.theirs));
        assert_eq!(ours, theirs, "{start:?} {rest:?} (seed {})", self.seed);
    }
}

fn sorted_pairs(value: Value) -> Value {
    let Value::Array(parts) = &value else {
        return sorted(value);
    };
    let pairs = parts.chunks(2).map(|pair| Value::Array(pair.to_vec()));
    sorted(Value::Array(pairs.collect()))
}
