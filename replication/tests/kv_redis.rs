//! The answers of our server beside those of Redis' own, for the same commands.

mod kv_support;

use kv_support::{Client, Commits, Random, Redis, Running, Value, sorted, wait_until};
use understudy_replication::kv::server::ServerOptions;

/// How the answers to a command are compared.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Rule {
    /// They are equal.
    Equal,
    /// They have no order of their own.
    Sorted,
    /// Pairs, of which that is so, in one array.
    SortedPairs,
    /// They are numbers that go on with the time, in units of so many milliseconds.
    Time(i64),
    /// They differ as it is documented.
    Documented,
}

/// Where our answers differ from those of Redis, on purpose: each with a test of what ours is.
/// `docs/stores/kv-commands.md` has the same list under "Differences from Redis".
const DIFFERENCES: &[(&str, Value2)] = &[
    // There is one database.
    ("SELECT 1", Value2::Error("ERR DB index is out of range")),
    // What is for other kinds of values, for scripts, or for operating Redis is not there.
    (
        "LPUSH k v",
        Value2::Error("ERR unknown command 'LPUSH', with args beginning with: 'k' 'v' "),
    ),
    (
        "PUBLISH c m",
        Value2::Error("ERR unknown command 'PUBLISH', with args beginning with: 'c' 'm' "),
    ),
    (
        "CONFIG SET maxmemory 1",
        Value2::Error("ERR unknown subcommand 'SET'. Try CONFIG HELP."),
    ),
    (
        "CLIENT KILL 1.2.3.4:5",
        Value2::Error("ERR unknown subcommand 'KILL'. Try CLIENT HELP."),
    ),
    // What says how safe data is, says it of our log.
    ("CONFIG GET appendonly", Value2::Pair("appendonly", "yes")),
];

/// An answer that can stand in a constant.
#[derive(Clone, Copy, Debug)]
enum Value2 {
    Error(&'static str),
    Pair(&'static str, &'static str),
}

impl Value2 {
    fn value(self) -> Value {
        match self {
            Self::Error(text) => kv_support::error(text),
            Self::Pair(name, value) => {
                Value::Array(vec![kv_support::bulk(name), kv_support::bulk(value)])
            }
        }
    }
}

/// Random commands, and how their answers are compared.
struct Generator {
    random: Random,
}

const KEYS: &[&str] = &["a", "b", "c", "d", "e:1", "e:2", "f"];
const FIELDS: &[&str] = &["f", "g", "h", "", "i", "j"];
const VALUES: &[&str] = &[
    "",
    "0",
    "1",
    "-1",
    "41",
    "9223372036854775807",
    "-9223372036854775808",
    "9223372036854775808",
    "abc",
    "01",
    " 1",
    "1.5",
    "a b\r\nc",
    "\0\u{1}",
    "long long long long long long long long long long long",
];
const NUMBERS: &[&str] = &[
    "0",
    "1",
    "-1",
    "10",
    "-10",
    "9223372036854775807",
    "-9223372036854775808",
    "9223372036854775808",
    "x",
    "",
    "1.5",
    "+1",
    "01",
];
const SECONDS: &[&str] = &[
    "100",
    "1000",
    "5000",
    "0",
    "-1",
    "x",
    "9223372036854775807",
    "9223372036854776",
    "-9223372036854775808",
    "",
];
const PATTERNS: &[&str] = &[
    "*", "e:*", "?", "[a-c]", "[^a]", "\\a", "e[:]1", "", "x*", "*1", "[a", "a\\",
];

impl Generator {
    fn key(&mut self) -> String {
        self.random.pick(KEYS).to_owned()
    }

    fn words(&mut self, words: &[&str]) -> Vec<String> {
        words
            .iter()
            .map(|word| {
                match *word {
                    "<key>" => self.random.pick(KEYS),
                    "<field>" => self.random.pick(FIELDS),
                    "<value>" => self.random.pick(VALUES),
                    "<number>" => self.random.pick(NUMBERS),
                    "<seconds>" => self.random.pick(SECONDS),
                    "<pattern>" => self.random.pick(PATTERNS),
                    // What has expired already is deleted by Redis when it comes to it.
                    "<far>" => self
                        .random
                        .pick(&["99999999999", "9999999999", "0", "-1", "x"]),
                    "<farms>" => {
                        self.random
                            .pick(&["99999999999999", "9999999999999", "0", "-1", "x"])
                    }
                    "<future>" => {
                        self.random
                            .pick(&["99999999999", "9999999999", "0", "-1", "x", "1"])
                    }
                    "<futurems>" => {
                        self.random
                            .pick(&["99999999999999", "9999999999999", "0", "-1", "x", "1"])
                    }
                    other => other,
                }
                .to_owned()
            })
            .collect()
    }

    /// Returns a command that runs at once, and on keys.
    fn command(&mut self) -> (Vec<String>, Rule) {
        let (template, rule): (&[&str], Rule) = match self.random.below(62) {
            0 | 1 => (&["GET", "<key>"], Rule::Equal),
            2 => (&["SET", "<key>", "<value>"], Rule::Equal),
            3..=6 => return (self.set(), Rule::Equal),
            7 => (&["SETNX", "<key>", "<value>"], Rule::Equal),
            8 => (&["SETEX", "<key>", "<seconds>", "<value>"], Rule::Equal),
            9 => (&["PSETEX", "<key>", "<seconds>", "<value>"], Rule::Equal),
            10 => (&["GETSET", "<key>", "<value>"], Rule::Equal),
            11 => (&["GETDEL", "<key>"], Rule::Equal),
            12 => return (self.repeated(&["MGET"], &["<key>"]), Rule::Equal),
            13 => return (self.repeated(&["MSET"], &["<key>", "<value>"]), Rule::Equal),
            14 => {
                return (
                    self.repeated(&["MSETNX"], &["<key>", "<value>"]),
                    Rule::Equal,
                );
            }
            15..=17 => return (self.repeated(&["DEL"], &["<key>"]), Rule::Equal),
            18 => return (self.repeated(&["UNLINK"], &["<key>"]), Rule::Equal),
            19 => return (self.repeated(&["EXISTS"], &["<key>"]), Rule::Equal),
            20 => (&["INCR", "<key>"], Rule::Equal),
            21 => (&["DECR", "<key>"], Rule::Equal),
            22 => (&["INCRBY", "<key>", "<number>"], Rule::Equal),
            23 => (&["DECRBY", "<key>", "<number>"], Rule::Equal),
            24 => (&["APPEND", "<key>", "<value>"], Rule::Equal),
            25 => (&["STRLEN", "<key>"], Rule::Equal),
            26 | 27 => return (self.expire(&["EXPIRE", "<key>", "<seconds>"]), Rule::Equal),
            28 => {
                return (
                    self.expire(&["PEXPIRE", "<key>", "<seconds>000"]),
                    Rule::Equal,
                );
            }
            29 => return (self.expire(&["EXPIREAT", "<key>", "<future>"]), Rule::Equal),
            30 => {
                return (
                    self.expire(&["PEXPIREAT", "<key>", "<futurems>"]),
                    Rule::Equal,
                );
            }
            31 => (&["PERSIST", "<key>"], Rule::Equal),
            32 => (&["TTL", "<key>"], Rule::Time(1000)),
            33 => (&["PTTL", "<key>"], Rule::Time(1)),
            34 => (&["EXPIRETIME", "<key>"], Rule::Time(1000)),
            35 => (&["PEXPIRETIME", "<key>"], Rule::Time(1)),
            36 => (&["TYPE", "<key>"], Rule::Equal),
            37 => (&["KEYS", "<pattern>"], Rule::Sorted),
            38 => (&["DBSIZE"], Rule::Equal),
            39..=42 => {
                return (
                    self.repeated(&["HSET", "<key>"], &["<field>", "<value>"]),
                    Rule::Equal,
                );
            }
            43 => {
                return (
                    self.repeated(&["HMSET", "<key>"], &["<field>", "<value>"]),
                    Rule::Equal,
                );
            }
            44 => (&["HGET", "<key>", "<field>"], Rule::Equal),
            45 => {
                return (
                    self.repeated(&["HMGET", "<key>"], &["<field>"]),
                    Rule::Equal,
                );
            }
            46 => (&["HGETALL", "<key>"], Rule::SortedPairs),
            47 | 48 => return (self.repeated(&["HDEL", "<key>"], &["<field>"]), Rule::Equal),
            49 => (&["HLEN", "<key>"], Rule::Equal),
            50 => (&["HEXISTS", "<key>", "<field>"], Rule::Equal),
            51 | 52 => (&["HINCRBY", "<key>", "<field>", "<number>"], Rule::Equal),
            53 => (&["HKEYS", "<key>"], Rule::Sorted),
            54 => (&["HVALS", "<key>"], Rule::Sorted),
            55 => (&["HSTRLEN", "<key>", "<field>"], Rule::Equal),
            56 => (&["HSETNX", "<key>", "<field>", "<value>"], Rule::Equal),
            57 => (&["ECHO", "<value>"], Rule::Equal),
            58 => (&["PING", "<value>"], Rule::Equal),
            59 => (&["SELECT", "0"], Rule::Equal),
            60 => (&["OBJECTION", "<value>", "<value>"], Rule::Equal),
            _ => return self.faulty(),
        };
        (self.words(template), rule)
    }

    fn repeated(&mut self, start: &[&str], item: &[&str]) -> Vec<String> {
        let mut words = self.words(start);
        for _ in 0..=self.random.below(3) {
            words.extend(self.words(item));
        }
        words
    }

    fn set(&mut self) -> Vec<String> {
        let mut words = self.words(&["SET", "<key>", "<value>"]);
        for _ in 0..self.random.below(4) {
            let option: &[&str] = match self.random.below(10) {
                0 => &["EX", "<seconds>"],
                1 => &["PX", "<seconds>000"],
                2 => &["EXAT", "<far>"],
                3 => &["pxat", "<farms>"],
                4 => &["NX"],
                5 => &["XX"],
                6 | 7 => &["GET"],
                8 => &["keepttl"],
                _ => &["<value>"],
            };
            words.extend(self.words(option));
        }
        words
    }

    fn expire(&mut self, words: &[&str]) -> Vec<String> {
        let mut words = self.words(words);
        for _ in 0..self.random.below(6) / 3 {
            words.push(self.random.pick(&["NX", "xx", "GT", "LT", "ZZ"]).to_owned());
        }
        words
    }

    /// Returns a command with too few arguments, or too many.
    fn faulty(&mut self) -> (Vec<String>, Rule) {
        const NAMES: &[&str] = &[
            "GET",
            "set",
            "SETNX",
            "SETEX",
            "PSETEX",
            "GETSET",
            "GETDEL",
            "MGET",
            "MSET",
            "MSETNX",
            "DEL",
            "UNLINK",
            "EXISTS",
            "INCR",
            "DECR",
            "INCRBY",
            "DECRBY",
            "APPEND",
            "STRLEN",
            "EXPIRE",
            "PEXPIRE",
            "EXPIREAT",
            "PEXPIREAT",
            "PERSIST",
            "TTL",
            "PTTL",
            "TYPE",
            "KEYS",
            "SCAN",
            "HSET",
            "HGET",
            "HMGET",
            "HMSET",
            "HGETALL",
            "HDEL",
            "HLEN",
            "HEXISTS",
            "HINCRBY",
            "HKEYS",
            "HVALS",
            "HSTRLEN",
            "HSETNX",
            "HSCAN",
            "ECHO",
            "SELECT",
            "WAIT",
            "AUTH",
            "CLIENT",
            "EXPIRETIME",
            "PEXPIRETIME",
            "WATCH",
            "config",
            "COMMAND|COUNT",
        ];
        let mut words = vec![self.random.pick(NAMES).to_owned()];
        let is_read = matches!(words[0].as_str(), "TTL" | "PTTL");
        let count = if self.random.one_in(2) {
            0
        } else {
            5 + self.random.below(3)
        };
        for _ in 0..count {
            let word = if is_read {
                "x"
            } else {
                self.random.pick(VALUES)
            };
            words.push(word.to_owned());
        }
        // With so many arguments some are in order, and their answers have none.
        let rule = match words[0].as_str() {
            "SCAN" | "HSCAN" if count > 0 => return (vec!["PING".to_owned()], Rule::Equal),
            "AUTH" | "CLIENT" | "config" | "WAIT" if count > 0 => {
                return (vec!["PING".to_owned()], Rule::Equal);
            }
            _ => Rule::Equal,
        };
        (words, rule)
    }
}

/// Both servers, each with a client.
struct Pair {
    ours: Client,
    theirs: Client,
    seed: u64,
    is_resp3: bool,
}

impl Pair {
    fn call(&mut self, command: &[String], rule: Rule) {
        let (ours, theirs) = (self.ours.call(command), self.theirs.call(command));
        self.compare(command, rule, ours, theirs);
    }

    fn say(&mut self, line: &str) {
        let command: Vec<_> = line.split(' ').map(str::to_owned).collect();
        self.call(&command, Rule::Equal);
    }

    fn compare(&self, command: &[String], rule: Rule, ours: Value, theirs: Value) {
        let is_equal = match (rule, &ours, &theirs) {
            (Rule::Documented, ..) => true,
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
    fn compare_all(&mut self) {
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
    fn compare_scan(&mut self, start: &[String], rest: &[String], has_pairs: bool) {
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
    match value {
        Value::Array(parts) => {
            let pairs = parts
                .chunks(2)
                .map(|pair| Value::Array(pair.to_vec()))
                .collect();
            sorted(Value::Array(pairs))
        }
        other => sorted(other),
    }
}

/// Runs `count` random commands on both, one in some of them in a transaction.
fn run(redis: &Redis, server: &Running, seed: u64, count: usize, is_resp3: bool) {
    let mut pair = Pair {
        ours: Client::connect(server.address),
        theirs: Client::connect(redis.address),
        seed,
        is_resp3,
    };
    if is_resp3 {
        pair.ours.say("HELLO 3");
        pair.theirs.say("HELLO 3");
    }
    pair.say("FLUSHALL");
    // Another client, which changes what is watched.
    let mut other = Pair {
        ours: Client::connect(server.address),
        theirs: Client::connect(redis.address),
        seed,
        is_resp3: false,
    };
    let mut generator = Generator {
        random: Random::new(seed),
    };
    let mut transaction: Option<Vec<(Vec<String>, Rule)>> = None;
    for round in 0..count {
        match (generator.random.below(60), &mut transaction) {
            (0, _) => {
                pair.say("MULTI");
                transaction.get_or_insert_default();
            }
            (1 | 2, _) => {
                // Every answer in the array by its own rule.
                let (ours, theirs) = (pair.ours.say("EXEC"), pair.theirs.say("EXEC"));
                match (transaction.take(), ours, theirs) {
                    (Some(queued), Value::Array(ours), Value::Array(theirs)) => {
                        assert_eq!(
                            (ours.len(), theirs.len()),
                            (queued.len(), queued.len()),
                            "seed {seed}"
                        );
                        for ((command, rule), (ours, theirs)) in
                            queued.iter().zip(ours.into_iter().zip(theirs))
                        {
                            pair.compare(command, *rule, ours, theirs);
                        }
                    }
                    (_, ours, theirs) => {
                        assert_eq!(ours, theirs, "EXEC (seed {seed}, round {round})")
                    }
                }
            }
            (3, _) if generator.random.one_in(3) => {
                pair.say("DISCARD");
                transaction = None;
            }
            (4 | 5, _) => {
                let key = generator.key();
                pair.say(&format!("WATCH {key}"));
            }
            (6, _) if generator.random.one_in(3) => {
                let (ours, theirs) = (pair.ours.say("UNWATCH"), pair.theirs.say("UNWATCH"));
                pair.compare(&["UNWATCH".to_owned()], Rule::Equal, ours.clone(), theirs);
                if let (Some(queued), Value::Simple(word)) = (&mut transaction, ours)
                    && word == "QUEUED"
                {
                    queued.push((vec!["UNWATCH".to_owned()], Rule::Equal));
                }
            }
            (7..=10, _) => {
                let (command, rule) = generator.command();
                // A fault of the other client says nothing that one of the first would not.
                other.call(&command, rule);
            }
            (11, None) => {
                let rest = generator.words(&["COUNT", "3", "MATCH", "<pattern>"]);
                pair.compare_scan(&["SCAN".to_owned()], &rest, false);
                let key = generator.key();
                pair.compare_scan(
                    &["SCAN".to_owned()],
                    &generator.words(&["TYPE", "hash"]),
                    false,
                );
                let start = ["HSCAN".to_owned(), key];
                pair.compare_scan(&start, &[], true);
            }
            (_, None) => {
                let (command, rule) = generator.command();
                pair.call(&command, rule);
            }
            (_, Some(queued)) => {
                let (command, rule) = generator.command();
                let (ours, theirs) = (pair.ours.call(&command), pair.theirs.call(&command));
                if ours == Value::Simple("QUEUED".to_owned()) {
                    queued.push((command.clone(), rule));
                }
                pair.compare(&command, Rule::Equal, ours, theirs);
            }
        }
        if round % 100 == 99 {
            other.compare_all();
        }
    }
}

#[test]
fn thousands_of_random_commands_are_answered_as_redis_answers_them() {
    let redis = Redis::start();
    for (commits, rounds, count) in [(Commits::AtOnce, 8, 2500), (Commits::Later, 2, 600)] {
        let server = Running::start(commits, ServerOptions::default());
        for seed in 0..rounds {
            run(&redis, &server, seed, count, seed % 2 == 1);
        }
    }
}

#[test]
fn what_is_asked_of_the_session_is_answered_as_redis_answers_it() {
    let redis = Redis::start();
    let server = Running::start(Commits::AtOnce, ServerOptions::default());
    for is_resp3 in [false, true] {
        let mut pair = Pair {
            ours: Client::connect(server.address),
            theirs: Client::connect(redis.address),
            seed: 0,
            is_resp3,
        };
        if is_resp3 {
            pair.ours.say("HELLO 3");
            pair.theirs.say("HELLO 3");
        }
        for line in [
            "PING",
            "PING a b",
            "ping x",
            "ECHO",
            "SELECT",
            "SELECT x",
            "SELECT 99999",
            "SELECT -1",
            "AUTH x",
            "AUTH default x",
            "AUTH someone x",
            "AUTH a b c",
            "HELLO x",
            "HELLO 4",
            "HELLO 3 FOO",
            "HELLO 3 AUTH a",
            "HELLO 2 SETNAME",
            "HELLO 3 AUTH someone x",
            "CLIENT",
            "CLIENT GETNAME",
            "CLIENT SETNAME some-name",
            "CLIENT GETNAME",
            "CLIENT SETNAME a\nb",
            "CLIENT SETNAME",
            "CLIENT NOPE",
            "CLIENT ID x",
            "CLIENT NO-EVICT on",
            "CLIENT NO-EVICT x",
            "CLIENT NO-EVICT",
            "EXEC",
            "DISCARD",
            "UNWATCH",
            "WATCH",
            "MULTI x",
            "MULTI",
            "MULTI",
            "WATCH a",
            "SET a",
            "EXEC",
            "MULTI",
            "NOPE",
            "EXEC",
            "MULTI",
            "EXEC x",
            "EXEC",
            "MULTI",
            "DISCARD x",
            "DISCARD",
            "MULTI",
            "GET a b",
            "DISCARD",
            "GET a",
            "MULTI",
            "SET a 1",
            "INCR a",
            "HSET a f v",
            "GET a",
            "PING",
            "WAIT 0 0",
            "SELECT 0",
            "CLIENT GETNAME",
            "UNWATCH",
            "EXEC",
            "MULTI",
            "EXEC",
            "WAIT 0 0",
            "WAIT -1 0",
            "WAIT x 0",
            "WAIT 0 x",
            "WAIT 0 -1",
            "WAIT 0",
            "COMMAND NOPE",
            "COMMAND COUNT x",
            "COMMAND GETKEYS",
            "COMMAND GETKEYS GET a",
            "COMMAND GETKEYS MSET a 1 b 2",
            "COMMAND GETKEYS DEL a b c",
            "COMMAND GETKEYS PING",
            "COMMAND GETKEYS PING x",
            "COMMAND GETKEYS NOPE a",
            "COMMAND GETKEYS GET a b",
            "COMMAND GETKEYS NOPE a",
            "COMMAND GETKEYS GET",
            "COMMAND INFO nope",
            "CONFIG GET databases-and-more",
            "CONFIG GET",
            "CONFIG NOPE",
            "CONFIG",
            "SCAN",
            "SCAN x",
            "SCAN 0 COUNT",
            "SCAN 0 COUNT 0",
            "SCAN 0 COUNT x",
            "SCAN 0 FOO x",
            "SCAN 0 TYPE nope",
            "SCAN -",
            "SCAN 1x",
            "HSCAN a",
            "HSCAN nope 0 FOO",
            "HSCAN nope x",
            "HSCAN a 0",
            "FLUSHALL x",
            "FLUSHDB SYNC ASYNC",
            "FLUSHDB ASYNC",
            "FLUSHALL sync",
            "nope",
            "nope a",
            "nope a b c d e f g h i j k l m n o p q r s t u v w x y z a b c d e f g h i j k l m n o p q r s t u v w x y z",
            "SET k v EX",
            "SET k v EX 1 PX 1",
            "SET k v NX XX",
            "SET k v KEEPTTL EX 1",
            "SET k v EX 1 KEEPTTL",
        ] {
            pair.say(line);
        }
        let long = "x".repeat(300);
        pair.say(&format!("{long} a"));
        pair.say(&format!("nope {long}"));
        pair.say(&format!("CLIENT {long}"));
        pair.say("RESET");
        pair.say("PING");
        pair.say("CLIENT GETNAME");
        pair.say("QUIT");
        assert_eq!(pair.ours.rest(), pair.theirs.rest());
    }
}

#[test]
fn what_is_no_resp_is_answered_as_redis_answers_it() {
    let redis = Redis::start();
    let server = Running::start(Commits::AtOnce, ServerOptions::default());
    let long = "x".repeat(70_000);
    for text in [
        "PING\r\nQUIT\r\n",
        "*1\r\n$4\r\nPING\r\n*1\r\n$4\r\nQUIT\r\n",
        "*0\r\n*-1\r\n\r\n   \r\nPING\nQUIT\n",
        "*x\r\n",
        "*1\r\nPING\r\n",
        "*1\r\n$x\r\n",
        "*1\r\n$-1\r\n",
        "*1\r\n\r\n",
        "*\r\n",
        "* 1\r\n",
        "*+1\r\n",
        "SET \"a b\" 'c\\'d'\r\nGET \"a\\x20b\"\r\nECHO \"\\n\\t\\\\\"\r\nQUIT\r\n",
        "ECHO \"a\r\n",
        "ECHO 'a'b\r\n",
        "ECHO a'b'\r\nQUIT\r\n",
        &long,
        &format!("*{long}"),
        &format!("*1\r\n${long}"),
        "*2\r\n$4\r\nECHO\r\n$3\r\na\r\n\r\n*1\r\n$4\r\nQUIT\r\n",
    ] {
        let answer = |address| {
            let mut client = Client::connect(address);
            client.send(text.as_bytes());
            client.rest()
        };
        let shown: String = text.chars().take(60).collect();
        assert_eq!(answer(server.address), answer(redis.address), "{shown:?}");
    }
}

#[test]
fn what_expires_is_gone_for_both() {
    let redis = Redis::start();
    let server = Running::start(Commits::AtOnce, ServerOptions::default());
    let mut pair = Pair {
        ours: Client::connect(server.address),
        theirs: Client::connect(redis.address),
        seed: 0,
        is_resp3: false,
    };
    for line in [
        "SET a v PX 150",
        "HSET h f v",
        "PEXPIRE h 150",
        "SET w v PX 150",
        "WATCH w",
        "SET past v PXAT 1",
        "GET past",
        "SET x v",
        "PEXPIREAT x 1",
        "GET x",
    ] {
        pair.say(line);
    }
    for key in ["a", "h", "w"] {
        for client in [&mut pair.ours, &mut pair.theirs] {
            wait_until("the end of a key", || {
                client.say(&format!("EXISTS {key}")) == Value::Integer(0)
            });
        }
    }
    for line in [
        "MULTI",
        "SET b v",
        "EXEC",
        "GET a",
        "TYPE h",
        "TTL a",
        "HSET h g v",
        "HGETALL h",
        "TTL h",
        "SETNX a new",
        "TTL a",
        "INCR w",
        "APPEND w 1",
        "PERSIST a",
        "SET a v XX GET",
        "KEYS w",
    ] {
        pair.say(line);
    }
}

#[test]
fn where_answers_differ_it_is_as_documented() {
    let redis = Redis::start();
    let server = Running::start(Commits::AtOnce, ServerOptions::default());
    let (mut ours, mut theirs) = (
        Client::connect(server.address),
        Client::connect(redis.address),
    );
    let docs = std::fs::read_to_string(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../docs/stores/kv-commands.md"
    ))
    .unwrap();
    let (_, documented) = docs.split_once("## Differences from Redis").unwrap();
    for (line, answer) in DIFFERENCES {
        let answer = answer.value();
        assert_eq!(ours.say(line), answer, "{line}");
        assert_ne!(
            theirs.say(line),
            answer,
            "{line}: it is no difference any more"
        );
        let shown = format!("`{line}`");
        assert!(documented.contains(&shown), "{shown} is not in the docs");
    }
}
