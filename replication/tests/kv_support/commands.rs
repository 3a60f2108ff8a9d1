//! Random commands.

/// How the answers to a command are compared.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Rule {
    /// They are equal.
    Equal,
    /// They have no order of their own.
    Sorted,
    /// Pairs, of which that is so, in one array.
    SortedPairs,
    /// They are numbers that go on with the time, in units of so many milliseconds.
    Time(i64),
}

/// Numbers that are the same for the same seed.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(bound).unwrap()).unwrap()
    }

    pub(crate) fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }

    pub(crate) fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[self.below(from.len())]
    }
}

/// Random commands, and how their answers are compared.
pub(crate) struct Generator {
    pub(crate) random: Random,
}

pub(crate) const KEYS: &[&str] = &["a", "b", "c", "d", "e:1", "e:2", "f"];
pub(crate) const FIELDS: &[&str] = &["f", "g", "h", "", "i", "j"];
pub(crate) const VALUES: &[&str] = &[
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
pub(crate) const NUMBERS: &[&str] = &[
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
pub(crate) const SECONDS: &[&str] = &[
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
pub(crate) const MILLIS: &[&str] = &[
    "100000",
    "5000000",
    "0",
    "-1",
    "x",
    "9223372036854775807",
    "-9223372036854775808",
    "",
];
pub(crate) const PATTERNS: &[&str] = &[
    "*", "e:*", "?", "[a-c]", "[^a]", "\\a", "e[:]1", "", "x*", "*1", "[a", "a\\",
];

impl Generator {
    pub(crate) fn key(&mut self) -> String {
        self.random.pick(KEYS).to_owned()
    }

    pub(crate) fn words(&mut self, words: &[&str]) -> Vec<String> {
        words
            .iter()
            .map(|word| {
                match *word {
                    "<key>" => self.random.pick(KEYS),
                    "<field>" => self.random.pick(FIELDS),
                    "<value>" => self.random.pick(VALUES),
                    "<number>" => self.random.pick(NUMBERS),
                    "<seconds>" => self.random.pick(SECONDS),
                    "<millis>" => self.random.pick(MILLIS),
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
    pub(crate) fn command(&mut self) -> (Vec<String>, Rule) {
        let (template, rule): (&[&str], Rule) = match self.random.below(62) {
            0 | 1 => (&["GET", "<key>"], Rule::Equal),
            2 => (&["SET", "<key>", "<value>"], Rule::Equal),
            3..=6 => return (self.set(), Rule::Equal),
            7 => (&["SETNX", "<key>", "<value>"], Rule::Equal),
            8 => (&["SETEX", "<key>", "<seconds>", "<value>"], Rule::Equal),
            9 => (&["PSETEX", "<key>", "<millis>", "<value>"], Rule::Equal),
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
                return (self.expire(&["PEXPIRE", "<key>", "<millis>"]), Rule::Equal);
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
                1 => &["PX", "<millis>"],
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
            let condition = self.random.pick(&["NX", "xx", "GT", "LT", "ZZ"]);
            if matches!(condition, "GT" | "LT") && !words[0].ends_with("AT") {
                // Never as much as there may be already: which of the two is later would depend on how much
                // time the server has taken in between.
                words[2] = (1_000_000 + self.random.below(1_000_000_000)).to_string();
            }
            words.push(condition.to_owned());
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
