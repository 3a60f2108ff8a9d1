//! What is said about files that are wrong: every problem at once, each with its place.

use insta::assert_snapshot;
use proptest::prelude::*;
use understudy_config::{LoadError, load, parse_cluster};

const VALID: &str = r#"[cluster]
name = "catalog"
[[node]]
name = "a"
address = "10.0.0.1:7400"
"#;

fn problems_of(text: &str) -> String {
    parse_cluster("understudy.toml", text)
        .expect_err("the text is wrong")
        .render(false)
}

fn problems_with(section: &str) -> String {
    problems_of(&format!("{VALID}{section}"))
}

/// Loads both files from a directory, which does not appear in the result.
fn problems_of_both(cluster: &str, node: &str) -> String {
    let directory = tempfile::tempdir().expect("a directory");
    let paths = ["understudy.toml", "node.toml"].map(|name| directory.path().join(name));
    std::fs::write(&paths[0], cluster).expect("it is written");
    std::fs::write(&paths[1], node).expect("it is written");
    match load(&paths[0], &paths[1]) {
        Err(LoadError::Invalid(problems)) => problems
            .render(false)
            .replace(&format!("{}/", directory.path().display()), ""),
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_unknown_key_is_named_with_the_one_that_was_meant() {
    assert_snapshot!(problems_with("[[files]]\nname = \"u\"\npaht = \"/srv/u\"\n[postgre]\nx = 1\n"), @r#"
    error: `[[files]]` lacks the key `path`
     --> understudy.toml:6:1
      |
    6 | [[files]]
      | ^^^^^^^^^ expected `path = "/srv/catalog/uploads"`, for example

    error: unknown key `paht` in `[[files]]`
     --> understudy.toml:8:1
      |
    8 | paht = "/srv/u"
      | ^^^^ expected one of `name`, `path`, `exclude`, `delete_guard`, `trash`, `bandwidth`, `scan`, `scrub`
      |
      = help: did you mean `path`?

    error: unknown key `postgre`
     --> understudy.toml:9:2
      |
    9 | [postgre]
      |  ^^^^^^^ expected one of `cluster`, `node`, `postgres`, `files`, `kv`, `settings`, `index`, `fence`, `service`, `job`, `hooks`, `address`, `check`, `drill`
      |
      = help: did you mean `postgres`?
    "#);
}

#[test]
fn an_unknown_key_that_is_like_none_gets_no_suggestion() {
    assert_snapshot!(problems_of(&VALID.replace("[cluster]", "[cluster]\nflavour = 1")), @r"
    error: unknown key `flavour` in `[cluster]`
     --> understudy.toml:2:1
      |
    2 | flavour = 1
      | ^^^^^^^ expected one of `name`, `promotion`, `rejoin`
    ");
}

#[test]
fn a_value_of_the_wrong_type_is_refused() {
    assert_snapshot!(problems_with("[node_]\n[postgres]\ndata_dir = [\"/pg\"]\nport = 70000\nuser = 1979-05-27\n[settings]\npaths = \"/etc\"\nexclude = [5]\n[service]\nname = \"web\"\n"), @r#"
    error: unknown key `node_`
     --> understudy.toml:6:2
      |
    6 | [node_]
      |  ^^^^^ expected one of `cluster`, `node`, `postgres`, `files`, `kv`, `settings`, `index`, `fence`, `service`, `job`, `hooks`, `address`, `check`, `drill`
      |
      = help: did you mean `node`?

    error: `data_dir` is an array
     --> understudy.toml:8:12
      |
    8 | data_dir = ["/pg"]
      |            ^^^^^^^ expected a string in quotes

    error: `70000` is out of range
     --> understudy.toml:9:8
      |
    9 | port = 70000
      |        ^^^^^ expected a whole number from 0 to 65535

    error: `user` is a datetime
      --> understudy.toml:10:8
       |
    10 | user = 1979-05-27
       |        ^^^^^^^^^^ expected a string in quotes

    error: `paths` is a string
      --> understudy.toml:12:9
       |
    12 | paths = "/etc"
       |         ^^^^^^ expected a list of strings, such as ["a", "b"]

    error: `exclude` holds an integer
      --> understudy.toml:13:12
       |
    13 | exclude = [5]
       |            ^ expected a string in quotes

    error: `service` is a table
      --> understudy.toml:14:1
       |
    14 | [service]
       | ^^^^^^^^^ expected tables: `[[service]]`, with two brackets
    "#);
}

#[test]
fn a_store_that_is_named_twice_is_shown_with_the_first() {
    assert_snapshot!(problems_with("[[files]]\nname = \"u\"\npath = \"/u\"\n\n[[files]]\nname = \"u\"\npath = \"/v\"\n\n[[files]]\nname = \"kv\"\npath = \"/w\"\n"), @r#"
    error: store `u` is named twice
      --> understudy.toml:11:8
       |
     7 | name = "u"
       |        --- it is named here first
    ...
    11 | name = "u"
       |        ^^^ expected a name that no other store has

    error: the name `kv` is taken by the section `[kv]`
      --> understudy.toml:15:8
       |
    15 | name = "kv"
       |        ^^^^ expected a name that no other store has
    "#);
}

#[test]
fn paths_that_overlap_are_shown_together() {
    assert_snapshot!(problems_with(r#"
[postgres]
data_dir = "/srv/pg/"
[[files]]
name = "u"
path = "/srv"
[[files]]
name = "v"
path = "/data/./v"
[settings]
paths = ["/etc/x", "/data/v/conf", "/etc/x"]
"#), @r#"
    error: store `postgres` lies inside store `u`
      --> understudy.toml:8:12
       |
     8 | data_dir = "/srv/pg/"
       |            ^^^^^^^^^^ expected paths of which none lies inside another
    ...
    11 | path = "/srv"
       |        ------ store `u` is here

    error: store `settings` lies inside store `v`
      --> understudy.toml:16:20
       |
    14 | path = "/data/./v"
       |        ----------- store `v` is here
    15 | [settings]
    16 | paths = ["/etc/x", "/data/v/conf", "/etc/x"]
       |                    ^^^^^^^^^^^^^^ expected paths of which none lies inside another

    error: store `settings` has the path of store `settings`
      --> understudy.toml:16:36
       |
    16 | paths = ["/etc/x", "/data/v/conf", "/etc/x"]
       |          --------                  ^^^^^^^^ expected paths of which none lies inside another
       |          |
       |          store `settings` is here
    "#);
}

#[test]
fn paths_that_lead_elsewhere_are_refused() {
    assert_snapshot!(problems_with("[settings]\npaths = [\"etc\", \"/etc/../root\", \"/\", \"/a\\u0000\"]\n"), @r#"
    error: `etc` is not an absolute path
     --> understudy.toml:7:10
      |
    7 | paths = ["etc", "/etc/../root", "/", "/a\u0000"]
      |          ^^^^^ expected a path that starts with `/` and has no `..`

    error: `/etc/../root` leads upwards with `..`
     --> understudy.toml:7:17
      |
    7 | paths = ["etc", "/etc/../root", "/", "/a\u0000"]
      |                 ^^^^^^^^^^^^^^ expected a path that starts with `/` and has no `..`

    error: `/` is the whole machine
     --> understudy.toml:7:33
      |
    7 | paths = ["etc", "/etc/../root", "/", "/a\u0000"]
      |                                 ^^^ expected a path below `/`

    error: `/a\u{0}` holds a NUL
     --> understudy.toml:7:38
      |
    7 | paths = ["etc", "/etc/../root", "/", "/a\u0000"]
      |                                      ^^^^^^^^^^ expected a path that starts with `/` and has no `..`
    "#);
}

#[test]
fn a_schedule_is_refused_at_the_field_that_is_wrong() {
    assert_snapshot!(problems_with("[settings]\npaths = [\"/etc/x\"]\nschedule = \"0 25 * * *\"\n"), @r#"
    error: `25` is not valid for the hour
     --> understudy.toml:8:15
      |
    8 | schedule = "0 25 * * *"
      |               ^^ expected `*`, or 0-23, with lists `a,b`, ranges `a-b` and steps `*/n`
    "#);
    assert_snapshot!(problems_with("[settings]\npaths = [\"/etc/x\"]\nschedule = '0 3 1 * mon'\n"), @r"
    error: the schedule restricts both the day of the month and the day of the week
     --> understudy.toml:8:21
      |
    8 | schedule = '0 3 1 * mon'
      |                     ^^^ expected one of the two to be `*`: Unix would run when either day matches, Quartz when both do, and a reader cannot tell which was meant
    ");
    assert_snapshot!(problems_with("[settings]\npaths = [\"/etc/x\"]\nschedule = \"0 3 30 2 *\"\n"), @r#"
    error: the schedule never comes due
     --> understudy.toml:8:12
      |
    8 | schedule = "0 3 30 2 *"
      |            ^^^^^^^^^^^^ expected a date that exists, between 1970 and 2100
    "#);
}

#[test]
fn what_is_not_toml_is_refused_at_its_place() {
    assert_snapshot!(problems_of("[cluster]\nname = \"catalog\n[[node]\n"), @r#"
    error: invalid basic string
     --> understudy.toml:2:16
      |
    2 | name = "catalog
      |                ^ expected `"`

    error: unclosed array table
     --> understudy.toml:3:8
      |
    3 | [[node]
      |        ^ expected `]`
    "#);
    assert_snapshot!(problems_of("[cluster]\nname = \"a\"\nname = \"b\"\n"), @r#"
    error: the key was given before
     --> understudy.toml:3:1
      |
    3 | name = "b"
      | ^^^^ expected each key once
    "#);
}

#[test]
fn what_this_version_does_not_have_is_said_precisely() {
    assert_snapshot!(problems_of(r#"
[cluster]
name = "catalog"
promotion = "automatic"
[[node]]
name = "a"
address = "10.0.0.1:7400"
[address]
ip = "10.0.0.100/24"
[postgres]
data_dir = "/pg"
durability = "snyc"
[witness]
"#), @r#"
    error: promotion `automatic` needs a witness, which this version does not have
     --> understudy.toml:4:13
      |
    4 | promotion = "automatic"
      |             ^^^^^^^^^^^ expected "manual"

    error: `[address]` lacks the key `interface`
     --> understudy.toml:8:1
      |
    8 | [address]
      | ^^^^^^^^^ expected `interface = "eth0"`, for example

    error: `snyc` is not a durability
      --> understudy.toml:12:14
       |
    12 | durability = "snyc"
       |              ^^^^^^ expected "async" or "sync"
       |
       = help: did you mean `sync`?

    error: section `[witness]` is not available in this version
      --> understudy.toml:13:1
       |
    13 | [witness]
       | ^^^^^^^^^ expected the section to be removed
    "#);
}

#[test]
fn nodes_that_nobody_could_reach_or_tell_apart_are_refused() {
    assert_snapshot!(problems_of(r#"
[cluster]
name = "Catalog"
[[node]]
name = "a"
address = "db1.example.com:7400"
[[node]]
name = "a"
address = "0.0.0.0:7400"
[[node]]
name = "c"
address = "10.0.0.1:7400"
[[node]]
name = "d"
address = "[::ffff:10.0.0.1]:7400"
[[node]]
name = "e"
address = "10.0.0.1:0"
"#), @r#"
    error: `Catalog` is not a name
     --> understudy.toml:3:8
      |
    3 | name = "Catalog"
      |        ^^^^^^^^^ expected 1 to 63 of the characters a-z, 0-9, `_` and `-`, of which the first is a letter or a digit

    error: `db1.example.com:7400` is not an IP address and a port
     --> understudy.toml:6:11
      |
    6 | address = "db1.example.com:7400"
      |           ^^^^^^^^^^^^^^^^^^^^^^ expected an address such as "10.0.0.1:7400" or "[fd00::1]:7400"

    error: node `a` is named twice
     --> understudy.toml:8:8
      |
    5 | name = "a"
      |        --- it is named here first
    ...
    8 | name = "a"
      |        ^^^ expected a name that no other node has

    error: `0.0.0.0:7400` is an address that nobody can connect to
     --> understudy.toml:9:11
      |
    9 | address = "0.0.0.0:7400"
      |           ^^^^^^^^^^^^^^ expected the address that the other nodes reach, such as "10.0.0.1:7400"

    error: address `[::ffff:10.0.0.1]:7400` is given twice
      --> understudy.toml:15:11
       |
    12 | address = "10.0.0.1:7400"
       |           --------------- it is given here first
    ...
    15 | address = "[::ffff:10.0.0.1]:7400"
       |           ^^^^^^^^^^^^^^^^^^^^^^^^ expected an address that no other node has

    error: `10.0.0.1:0` has no port
      --> understudy.toml:18:11
       |
    18 | address = "10.0.0.1:0"
       |           ^^^^^^^^^^^^ expected the address that the other nodes reach, such as "10.0.0.1:7400"
    "#);
}

#[test]
fn the_commands_of_postgres_come_all_three_or_not_at_all() {
    let section = "[postgres]\ndata_dir = \"/pg\"\nconfig_dir = \"/pg/conf\"\nstart = [\"up\"]\nstatus = []\n";
    assert_snapshot!(problems_with(section), @r#"
    error: the configuration of `postgres` lies inside store `postgres`
     --> understudy.toml:8:14
      |
    7 | data_dir = "/pg"
      |            ----- store `postgres` is here
    8 | config_dir = "/pg/conf"
      |              ^^^^^^^^^^ expected paths of which none lies inside another

    error: `start` is given without `stop`
     --> understudy.toml:9:9
      |
    9 | start = ["up"]
      |         ^^^^^^ expected `start`, `stop` and `status`, or none of them

    error: the command names no program
      --> understudy.toml:10:10
       |
    10 | status = []
       |          ^^ expected a program and its arguments, such as ["systemctl", "start", "web"]
    "#);
}

#[test]
fn a_warm_index_has_what_it_needs_and_no_more() {
    assert_snapshot!(problems_with(r#"
[postgres]
data_dir = "/pg"
[[index]]
name = "a"
engine = "tantivy"
source = "SELECT 1 AS id"
deleted = "is_deleted"
sweep = "2h"
[[index]]
name = "b"
engine = "tantivy"
source = "SELECT 1 AS id"
watermark = "updated at"
sweep = "never"
overlap = "0s"
[[index]]
name = "c"
engine = "command"
command = ["true"]
watermark = "updated_at"
url = "http://localhost"
shared = true
"#), @r#"
    error: `deleted` without a `watermark`, which it belongs to
      --> understudy.toml:13:11
       |
    13 | deleted = "is_deleted"
       |           ^^^^^^^^^^^^ expected `watermark`, a column that grows with every change

    error: `sweep` without a `watermark`, which it belongs to
      --> understudy.toml:14:9
       |
    14 | sweep = "2h"
       |         ^^^^ expected `watermark`, a column that grows with every change

    error: `updated at` is not the name of a column
      --> understudy.toml:19:13
       |
    19 | watermark = "updated at"
       |             ^^^^^^^^^^^^ expected letters, digits and `_`, beginning with a letter, as `source` names it

    error: `sweep` is `never`, and without `deleted` nothing else finds deletions
      --> understudy.toml:20:9
       |
    20 | sweep = "never"
       |         ^^^^^^^ expected a duration, or the column `deleted`

    error: `0s` is not a duration
      --> understudy.toml:21:11
       |
    21 | overlap = "0s"
       |           ^^^^ expected a whole number from 1 and a unit (ms, s, m, h or d), at most 30d, such as "30s"

    error: engine `command` takes no `watermark`
      --> understudy.toml:26:13
       |
    24 | engine = "command"
       |          --------- the engine is chosen here
    25 | command = ["true"]
    26 | watermark = "updated_at"
       |             ^^^^^^^^^^^^ expected `command`, a program and its arguments

    error: engine `command` takes no `url`
      --> understudy.toml:27:7
       |
    24 | engine = "command"
       |          --------- the engine is chosen here
    ...
    27 | url = "http://localhost"
       |       ^^^^^^^^^^^^^^^^^^ expected engine "elasticsearch"

    error: engine `command` takes no `shared`
      --> understudy.toml:28:10
       |
    24 | engine = "command"
       |          --------- the engine is chosen here
    ...
    28 | shared = true
       |          ^^^^ expected engine "elasticsearch"
    "#);
}

#[test]
fn an_elasticsearch_is_where_its_url_says() {
    assert_snapshot!(problems_with(r#"
[postgres]
data_dir = "/pg"
[[index]]
name = "a"
engine = "elasticsearch"
source = "SELECT 1 AS id"
[[index]]
name = "b"
engine = "elasticsearch"
source = "SELECT 1 AS id"
url = "localhost:9200"
alias = "Articles"
user = "understudy"
[[index]]
name = "c"
engine = "elasticsearch"
source = "SELECT 1 AS id"
url = "http://[::1]:9200/"
ca_file = "/ca.pem"
[[index]]
name = "d"
engine = "elasticsearch"
source = "SELECT 1 AS id"
url = "https://search:port"
"#), @r#"
    error: an index of engine `elasticsearch` lacks the key `url`
      --> understudy.toml:9:1
       |
     9 | [[index]]
       | ^^^^^^^^^ expected where Elasticsearch is, such as "http://10.0.0.5:9200"
    10 | name = "a"
    11 | engine = "elasticsearch"
       |          --------------- the engine is chosen here

    error: `localhost:9200` is not the URL of an Elasticsearch
      --> understudy.toml:17:7
       |
    17 | url = "localhost:9200"
       |       ^^^^^^^^^^^^^^^^ expected http:// or https://, a host and a port, such as "http://10.0.0.5:9200"

    error: `Articles` is not an alias that Elasticsearch takes
      --> understudy.toml:18:9
       |
    18 | alias = "Articles"
       |         ^^^^^^^^^^ expected at most 200 small letters, digits, `-`, `_` and `.`, beginning with a letter or a digit

    error: `user` without `password_file`
      --> understudy.toml:19:8
       |
    19 | user = "understudy"
       |        ^^^^^^^^^^^^ expected both, or none of them

    error: `ca_file`, and the `url` is not reached over TLS
      --> understudy.toml:25:11
       |
    25 | ca_file = "/ca.pem"
       |           ^^^^^^^^^ expected a `url` that begins with https://

    error: `https://search:port` is not the URL of an Elasticsearch
      --> understudy.toml:30:7
       |
    30 | url = "https://search:port"
       |       ^^^^^^^^^^^^^^^^^^^^^ expected http:// or https://, a host and a port, such as "http://10.0.0.5:9200"
    "#);
}

#[test]
fn an_index_has_what_its_engine_needs_and_no_more() {
    assert_snapshot!(problems_with(r#"
[[index]]
name = "a"
engine = "tantivy"
command = ["true"]
[[index]]
name = "b"
engine = "command"
source = "SELECT 1"
[[index]]
name = "c"
engine = "comand"
timeout = "0s"
"#), @r#"
    error: an index of engine `tantivy` lacks the key `source`
     --> understudy.toml:7:1
      |
    7 | [[index]]
      | ^^^^^^^^^ expected a query
    8 | name = "a"
    9 | engine = "tantivy"
      |          --------- the engine is chosen here

    error: engine `tantivy` reads from Postgres, and there is no section `[postgres]`
     --> understudy.toml:9:10
      |
    9 | engine = "tantivy"
      |          ^^^^^^^^^ expected a section `[postgres]`, or engine "command"

    error: engine `tantivy` takes no `command`
      --> understudy.toml:10:11
       |
     9 | engine = "tantivy"
       |          --------- the engine is chosen here
    10 | command = ["true"]
       |           ^^^^^^^^ expected `source`, a query

    error: an index of engine `command` lacks the key `command`
      --> understudy.toml:11:1
       |
    11 | [[index]]
       | ^^^^^^^^^ expected a program and its arguments
    12 | name = "b"
    13 | engine = "command"
       |          --------- the engine is chosen here

    error: engine `command` takes no `source`
      --> understudy.toml:14:10
       |
    13 | engine = "command"
       |          --------- the engine is chosen here
    14 | source = "SELECT 1"
       |          ^^^^^^^^^^ expected `command`, a program and its arguments

    error: `comand` is not an engine
      --> understudy.toml:17:10
       |
    17 | engine = "comand"
       |          ^^^^^^^^ expected "tantivy", "elasticsearch" or "command"
       |
       = help: did you mean `command`?

    error: `0s` is not a duration
      --> understudy.toml:18:11
       |
    18 | timeout = "0s"
       |           ^^^^ expected a whole number from 1 and a unit (ms, s, m, h or d), at most 30d, such as "30s"
    "#);
}

#[test]
fn commands_and_patterns_are_looked_into() {
    assert_snapshot!(problems_with(r#"
[[files]]
name = "u"
path = "/u"
exclude = ["*.tmp", "[a", "cache/"]
[[service]]
name = "web"
start = []
stop = [""]
timeout = "30"
"#), @r#"
    error: `[a` is not a pattern: unclosed character class; missing ']'
      --> understudy.toml:10:21
       |
    10 | exclude = ["*.tmp", "[a", "cache/"]
       |                     ^^^^ expected a pattern such as "*.tmp" or "cache/**"

    error: `cache/` can match nothing
      --> understudy.toml:10:27
       |
    10 | exclude = ["*.tmp", "[a", "cache/"]
       |                           ^^^^^^^^ expected a pattern without a `/` at its end, such as "cache"

    error: `[[service]]` lacks the key `status`
      --> understudy.toml:11:1
       |
    11 | [[service]]
       | ^^^^^^^^^^^ expected `status = ["systemctl", "is-active", "catalog"]`, for example

    error: the command names no program
      --> understudy.toml:13:9
       |
    13 | start = []
       |         ^^ expected a program and its arguments, such as ["systemctl", "start", "web"]

    error: the command names no program
      --> understudy.toml:14:9
       |
    14 | stop = [""]
       |         ^^ expected a program and its arguments, such as ["systemctl", "start", "web"]

    error: `30` is not a duration
      --> understudy.toml:15:11
       |
    15 | timeout = "30"
       |           ^^^^ expected a whole number from 1 and a unit (ms, s, m, h or d), at most 30d, such as "30s"
    "#);
}

#[test]
fn what_services_jobs_and_hooks_say_is_looked_into() {
    assert_snapshot!(problems_with(r#"
[[service]]
name = "web"
start = ["a"]
stop = ["a"]
status = ["a"]
user = "web server"
on = "secondary"
critical = "yes"
restarts = -1
interval = "10ms"
after_failover = "wait"
[[job]]
name = "web"
schedule = "* * *"
command = []
[hooks]
online = ["a\u0000"]
timeout = "0s"
"#), @r#"
    error: `web server` is not a name
      --> understudy.toml:12:8
       |
    12 | user = "web server"
       |        ^^^^^^^^^^^^ expected a name without spaces

    error: `secondary` is not where something runs
      --> understudy.toml:13:6
       |
    13 | on = "secondary"
       |      ^^^^^^^^^^^ expected "primary", "standby" or "both"

    error: `critical` is a string
      --> understudy.toml:14:12
       |
    14 | critical = "yes"
       |            ^^^^^ expected `true` or `false`, without quotes

    error: `-1` is out of range
      --> understudy.toml:15:12
       |
    15 | restarts = -1
       |            ^^ expected a whole number from 0 to 65535

    error: `10ms` is too often
      --> understudy.toml:16:12
       |
    16 | interval = "10ms"
       |            ^^^^^^ expected at least "100ms"

    error: `wait` is not what can be done after a failover
      --> understudy.toml:17:18
       |
    17 | after_failover = "wait"
       |                  ^^^^^^ expected "start" or "hold"

    error: job `web` has the name of a service
      --> understudy.toml:19:8
       |
     8 | name = "web"
       |        ----- the service is named here
    ...
    19 | name = "web"
       |        ^^^^^ expected a name that no service has

    error: a schedule cannot have 3 fields
      --> understudy.toml:20:12
       |
    20 | schedule = "* * *"
       |            ^^^^^^^ expected five fields as in Unix, such as "*/5 * * * *", or six with the seconds first

    error: the command names no program
      --> understudy.toml:21:11
       |
    21 | command = []
       |           ^^ expected a program and its arguments, such as ["systemctl", "start", "web"]

    error: the argument holds a NUL
      --> understudy.toml:23:11
       |
    23 | online = ["a\u0000"]
       |           ^^^^^^^^^ expected text without NUL

    error: `0s` is not a duration
      --> understudy.toml:24:11
       |
    24 | timeout = "0s"
       |           ^^^^ expected a whole number from 1 and a unit (ms, s, m, h or d), at most 30d, such as "30s"
    "#);
}

#[test]
fn services_that_wait_for_what_is_not_there_or_for_each_other_have_no_order() {
    let service = |name: &str, more: &str| {
        format!(
            "[[service]]\nname = \"{name}\"\nstart = [\"a\"]\nstop = [\"a\"]\nstatus = [\"a\"]\n{more}\n"
        )
    };
    let unknown = service("mount", "") + &service("web", "after = [\"moutn\", \"web\"]");
    assert_snapshot!(problems_with(&unknown), @r#"
    error: there is no service `moutn`
      --> understudy.toml:17:10
       |
    17 | after = ["moutn", "web"]
       |          ^^^^^^^ expected the name of a `[[service]]`
       |
       = help: did you mean `mount`?

    error: service `web` waits for itself
      --> understudy.toml:17:19
       |
    17 | after = ["moutn", "web"]
       |                   ^^^^^ expected the names of other services
    "#);
    let circle = service("web", "after = [\"engine\"]")
        + &service("mount", "after = []")
        + &service("engine", "");
    parse_cluster("understudy.toml", &format!("{VALID}{circle}")).expect("there is an order");
    let circle = service("web", "after = [\"engine\"]") + &service("engine", "");
    assert_snapshot!(problems_with(&circle), @r#"
    error: services wait for each other: `web` for `engine`, which waits for `web`
      --> understudy.toml:11:9
       |
    11 | after = ["engine"]
       |         ^^^^^^^^^^ expected an order; without `after` a service waits for the one before it in the file, with `after = []` for none
    "#);
}

#[test]
fn the_figures_of_a_files_store_are_looked_into() {
    assert_snapshot!(problems_with(r#"
[[files]]
name = "u"
path = "/u"
delete_guard = "half"
trash = "forever"
bandwidth = "50"
scan = "0 99 * * * *"
scrub = "0MB"
"#), @r#"
    error: `half` is not a share
      --> understudy.toml:10:16
       |
    10 | delete_guard = "half"
       |                ^^^^^^ expected a whole number from 0 to 100 and `%`, such as "50%"

    error: `forever` is not a duration
      --> understudy.toml:11:9
       |
    11 | trash = "forever"
       |         ^^^^^^^^^ expected a whole number and a unit (ms, s, m, h or d), at most 30d, such as "1d" or "0s"

    error: `50` is not a size
      --> understudy.toml:12:13
       |
    12 | bandwidth = "50"
       |             ^^^^ expected a whole number and a unit (kB, MB, GB or TB), such as "50MB", or "0" for no limit

    error: `99` is not valid for the minute
      --> understudy.toml:13:11
       |
    13 | scan = "0 99 * * * *"
       |           ^^ expected `*`, or 0-59, with lists `a,b`, ranges `a-b` and steps `*/n`

    error: `0MB` is nothing
      --> understudy.toml:14:9
       |
    14 | scrub = "0MB"
       |         ^^^^^ expected a whole number and a unit (kB, MB, GB or TB), such as "50MB"
    "#);
}

#[test]
fn the_write_ahead_log_is_not_within_the_data_directory() {
    assert_snapshot!(problems_with(r#"
[postgres]
data_dir = "/data/pg"
wal_dir = "/data/pg/wal"
"#), @r#"
    error: the WAL of store `postgres` lies inside store `postgres`
     --> understudy.toml:9:11
      |
    8 | data_dir = "/data/pg"
      |            ---------- store `postgres` is here
    9 | wal_dir = "/data/pg/wal"
      |           ^^^^^^^^^^^^^^ expected paths of which none lies inside another
    "#);
}

#[test]
fn an_empty_file_lacks_what_is_required() {
    assert_snapshot!(problems_of(""), @r"
    error: the file lacks the section `[cluster]`
     --> understudy.toml:1:1
      |
    1 |
      | ^ expected a table: `[cluster]`

    error: the cluster has no node
     --> understudy.toml:1:1
      |
    1 |
      | ^ expected at least one `[[node]]`
    ");
}

#[test]
fn a_node_that_the_cluster_does_not_have_is_refused_with_those_it_has() {
    assert_snapshot!(problems_of_both(VALID, "name = \"b\"\nroot = \"srv\"\n"), @r#"
    error: no `[[node]]` of the cluster is named `b`
     --> node.toml:1:8
      |
    1 | name = "b"
      |        ^^^ expected the name of one: `a`
      |
     ::: understudy.toml:4:8
      |
    4 | name = "a"
      |        --- the nodes are named here

    error: `srv` is not an absolute path
     --> node.toml:2:8
      |
    2 | root = "srv"
      |        ^^^^^ expected a path that starts with `/` and has no `..`
    "#);
}

#[test]
fn the_directories_of_the_node_lie_outside_of_its_stores() {
    let cluster = format!(
        "{VALID}[[files]]\nname = \"u\"\npath = \"/u\"\n[settings]\npaths = [\"/etc/understudy\"]\n"
    );
    let node = "name = \"a\"\nroot = \"/r\"\nstate_dir = \"/r/u/state\"\npki_dir = \"/r/etc/understudy/pki\"\nrun_dir = \"/r\"\n";
    assert_snapshot!(problems_of_both(&cluster, node), @r#"
    error: state_dir `/r/u/state` overlaps with store `u`, which is `/r/u` on this machine
     --> node.toml:3:13
      |
    3 | state_dir = "/r/u/state"
      |             ^^^^^^^^^^^^ expected a directory that no store lies in, nor it in a store
      |
     ::: understudy.toml:8:8
      |
    8 | path = "/u"
      |        ---- store `u` is here

    error: pki_dir `/r/etc/understudy/pki` overlaps with store `settings`, which is `/r/etc/understudy` on this machine
      --> node.toml:4:11
       |
     4 | pki_dir = "/r/etc/understudy/pki"
       |           ^^^^^^^^^^^^^^^^^^^^^^^ expected a directory that no store lies in, nor it in a store
       |
      ::: understudy.toml:10:10
       |
    10 | paths = ["/etc/understudy"]
       |          ----------------- store `settings` is here

    error: run_dir `/r` overlaps with store `u`, which is `/r/u` on this machine
     --> node.toml:5:11
      |
    5 | run_dir = "/r"
      |           ^^^^ expected a directory that no store lies in, nor it in a store
      |
     ::: understudy.toml:8:8
      |
    8 | path = "/u"
      |        ---- store `u` is here

    error: run_dir `/r` overlaps with store `settings`, which is `/r/etc/understudy` on this machine
      --> node.toml:5:11
       |
     5 | run_dir = "/r"
       |           ^^^^ expected a directory that no store lies in, nor it in a store
       |
      ::: understudy.toml:10:10
       |
    10 | paths = ["/etc/understudy"]
       |          ----------------- store `settings` is here
    "#);
}

#[test]
fn the_problems_of_both_files_come_together() {
    assert_snapshot!(problems_of_both(&VALID.replace("7400", "x"), "nam = \"a\"\n[monitor]\nlisten = 7480\n"), @r#"
    error: `10.0.0.1:x` is not an IP address and a port
     --> understudy.toml:5:11
      |
    5 | address = "10.0.0.1:x"
      |           ^^^^^^^^^^^^ expected an address such as "10.0.0.1:7400" or "[fd00::1]:7400"

    error: the file lacks the key `name`
     --> node.toml:1:1
      |
    1 | nam = "a"
      | ^ expected `name = "a"`, for example

    error: unknown key `nam`
     --> node.toml:1:1
      |
    1 | nam = "a"
      | ^^^ expected one of `name`, `root`, `state_dir`, `run_dir`, `pki_dir`, `monitor`, `kv`, `address`
      |
      = help: did you mean `name`?

    error: `listen` is an integer
     --> node.toml:3:10
      |
    3 | listen = 7480
      |          ^^^^ expected a string in quotes
    "#);
}

#[test]
fn a_key_value_store_that_could_not_keep_its_word_is_refused() {
    assert_snapshot!(problems_with(r#"[[node]]
name = "b"
address = "10.0.0.2:7400"
[kv]
durability = "standby_first"
degrade_after = "0s"
write_timeout = "never"
acknowledge = 2
standby_reads = "yes"
allow_flush = 1
memory = "1MB"
log = "lots"
password_file = "kv-password"
"#), @r#"
    error: `standby_first` is not a durability of the key-value store
      --> understudy.toml:10:14
       |
    10 | durability = "standby_first"
       |              ^^^^^^^^^^^^^^^ expected "standby-first" or "async"
       |
       = help: did you mean `standby-first`?

    error: `0s` is neither a duration nor `never`
      --> understudy.toml:11:17
       |
    11 | degrade_after = "0s"
       |                 ^^^^ expected a whole number from 1 and a unit (ms, s, m, h or d), at most 30d, such as "10s"; or "never"

    error: `never` is not a duration
      --> understudy.toml:12:17
       |
    12 | write_timeout = "never"
       |                 ^^^^^^^ expected a whole number from 1 and a unit (ms, s, m, h or d), at most 30d, such as "30s"

    error: `acknowledge` is 2, and there is 1 other node to wait for
      --> understudy.toml:13:15
       |
     3 | [[node]]
       | -------- the nodes are here
    ...
    13 | acknowledge = 2
       |               ^ expected at most 1, or more nodes

    error: `standby_reads` is a string
      --> understudy.toml:14:17
       |
    14 | standby_reads = "yes"
       |                 ^^^^^ expected `true` or `false`, without quotes

    error: `allow_flush` is an integer
      --> understudy.toml:15:15
       |
    15 | allow_flush = 1
       |               ^ expected `true` or `false`, without quotes

    error: `1MB` is too little
      --> understudy.toml:16:10
       |
    16 | memory = "1MB"
       |          ^^^^^ expected at least "16MB"

    error: `lots` is not a size
      --> understudy.toml:17:7
       |
    17 | log = "lots"
       |       ^^^^^^ expected a whole number and a unit (kB, MB, GB or TB), such as "50MB", and at least "64MB"

    error: `kv-password` is not an absolute path
      --> understudy.toml:18:17
       |
    18 | password_file = "kv-password"
       |                 ^^^^^^^^^^^^^ expected a path that starts with `/` and has no `..`
    "#);
    assert_snapshot!(problems_with("[kv]\nacknowledge = 0\nflush = true\n"), @r#"
    error: `acknowledge` is 0, which waits for no standby
     --> understudy.toml:7:15
      |
    7 | acknowledge = 0
      |               ^ expected at least 1; or durability = "async", which does not wait

    error: unknown key `flush` in `[kv]`
     --> understudy.toml:8:1
      |
    8 | flush = true
      | ^^^^^ expected one of `durability`, `degrade_after`, `write_timeout`, `acknowledge`, `standby_reads`, `allow_flush`, `view`, `memory`, `log`, `password_file`
    "#);
}

#[test]
fn a_key_value_store_that_others_could_reach_needs_a_password() {
    let cluster = format!("{VALID}[kv]\n");
    let node = "name = \"a\"\n[kv]\nlisten = \"0.0.0.0:7479\"\n";
    assert_snapshot!(problems_of_both(&cluster, node), @r#"
    error: `0.0.0.0:7479` can be reached from other machines, and `[kv]` has no `password_file`
     --> node.toml:3:10
      |
    3 | listen = "0.0.0.0:7479"
      |          ^^^^^^^^^^^^^^ expected a loopback address such as "127.0.0.1:7479", or a password_file
      |
     ::: understudy.toml:6:1
      |
    6 | [kv]
      | ---- the store is configured here
    "#);
}

#[test]
fn the_key_value_store_and_the_monitor_cannot_have_one_address() {
    let cluster = format!("{VALID}[kv]\n");
    let both =
        "name = \"a\"\n[kv]\nlisten = \"127.0.0.1:7480\"\n[monitor]\nlisten = \"0.0.0.0:7480\"\n";
    assert_snapshot!(problems_of_both(&cluster, both), @r#"
    error: the key-value store's `127.0.0.1:7480` and the monitor's `0.0.0.0:7480` collide
     --> node.toml:3:10
      |
    3 | listen = "127.0.0.1:7480"
      |          ^^^^^^^^^^^^^^^^ expected two addresses that differ
    4 | [monitor]
    5 | listen = "0.0.0.0:7480"
      |          -------------- the other is here
    "#);
    let of_one = "name = \"a\"\n[monitor]\nlisten = \"127.0.0.1:7479\"\n";
    assert_snapshot!(problems_of_both(&cluster, of_one), @r#"
    error: the key-value store's `127.0.0.1:7479` and the monitor's `127.0.0.1:7479` collide
     --> node.toml:3:10
      |
    3 | listen = "127.0.0.1:7479"
      |          ^^^^^^^^^^^^^^^^ expected two addresses that differ
    "#);
}

#[test]
fn where_a_store_that_is_not_there_would_listen_is_not_judged() {
    let directory = tempfile::tempdir().expect("a directory");
    let paths = ["understudy.toml", "node.toml"].map(|name| directory.path().join(name));
    std::fs::write(&paths[0], VALID).expect("it is written");
    let node = "name = \"a\"\n[kv]\nlisten = \"0.0.0.0:7480\"\n";
    std::fs::write(&paths[1], node).expect("it is written");
    load(&paths[0], &paths[1]).expect("nothing listens there");
}

#[test]
fn problems_for_machines_have_the_same_in_fields() {
    let text = format!(
        "{VALID}[[files]]\nname = \"u\"\npath = \"/u\"\n[[files]]\nname = \"u\"\npaths = \"/v\"\n"
    );
    let problems = parse_cluster("understudy.toml", &text).unwrap_err();
    assert_snapshot!(serde_json::to_string_pretty(&problems.to_json()).unwrap(), @r#"
    [
      {
        "column": 1,
        "expected": "`path = \"/srv/catalog/uploads\"`, for example",
        "file": "understudy.toml",
        "line": 9,
        "related": null,
        "suggestion": null,
        "text": "[[files]]",
        "what": "`[[files]]` lacks the key `path`"
      },
      {
        "column": 8,
        "expected": "a name that no other store has",
        "file": "understudy.toml",
        "line": 10,
        "related": {
          "column": 8,
          "file": "understudy.toml",
          "line": 7,
          "text": "\"u\"",
          "what": "it is named here first"
        },
        "suggestion": null,
        "text": "\"u\"",
        "what": "store `u` is named twice"
      },
      {
        "column": 1,
        "expected": "one of `name`, `path`, `exclude`, `delete_guard`, `trash`, `bandwidth`, `scan`, `scrub`",
        "file": "understudy.toml",
        "line": 11,
        "related": null,
        "suggestion": "path",
        "text": "paths",
        "what": "unknown key `paths` in `[[files]]`"
      }
    ]
    "#);
    assert_snapshot!(problems.to_string(), @r#"understudy.toml:9:1: `[[files]]` lacks the key `path`, expected `path = "/srv/catalog/uploads"`, for example (and 2 more)"#);
}

#[test]
fn columns_are_counted_in_characters_and_messages_stay_on_their_line() {
    let text = "cluster = { name = \"é\", flavour = 1 }
node = [{ name = \"a\", address = \"a\\nb\" }]
";
    let problems = parse_cluster("understudy.toml", text).unwrap_err();
    assert_snapshot!(problems.render(false), @r#"
    error: `é` is not a name
     --> understudy.toml:1:20
      |
    1 | cluster = { name = "é", flavour = 1 }
      |                    ^^^ expected 1 to 63 of the characters a-z, 0-9, `_` and `-`, of which the first is a letter or a digit

    error: unknown key `flavour` in `[cluster]`
     --> understudy.toml:1:25
      |
    1 | cluster = { name = "é", flavour = 1 }
      |                         ^^^^^^^ expected one of `name`, `promotion`, `rejoin`

    error: `a\nb` is not an IP address and a port
     --> understudy.toml:2:33
      |
    2 | node = [{ name = "a", address = "a\nb" }]
      |                                 ^^^^^^ expected an address such as "10.0.0.1:7400" or "[fd00::1]:7400"
    "#);
    assert_eq!(problems.to_json()[1]["column"], 25);
}

#[test]
fn a_file_that_is_too_large_is_not_parsed() {
    let text = "#".repeat(understudy_config::CONFIG_BYTES_MAX + 1);
    assert_eq!(
        parse_cluster("understudy.toml", &text)
            .unwrap_err()
            .to_string(),
        "understudy.toml:1:1: the file has 1048577 bytes, expected at most 1048576 bytes"
    );
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let error = load(
        "/nowhere/understudy.toml".as_ref(),
        "/nowhere/node.toml".as_ref(),
    )
    .unwrap_err();
    assert_eq!(error.to_string(), "cannot read /nowhere/understudy.toml");
}

#[test]
fn a_drill_has_an_age_a_schedule_and_a_limit() {
    assert_snapshot!(problems_with("[drill]\nschedule = \"0 25 * * *\"\nmax_age = \"401d\"\ntimeout = \"31d\"\nbandwidth = \"fast\"\nrehearse = true\n"), @r#"
    error: `25` is not valid for the hour
     --> understudy.toml:7:15
      |
    7 | schedule = "0 25 * * *"
      |               ^^ expected `*`, or 0-23, with lists `a,b`, ranges `a-b` and steps `*/n`

    error: `401d` is not an age
     --> understudy.toml:8:11
      |
    8 | max_age = "401d"
      |           ^^^^^^ expected a whole number from 1 and a unit (ms, s, m, h or d), at most 400d, such as "35d"

    error: `31d` is not a duration
     --> understudy.toml:9:11
      |
    9 | timeout = "31d"
      |           ^^^^^ expected a whole number from 1 and a unit (ms, s, m, h or d), at most 30d, such as "30s"

    error: `fast` is not a size
      --> understudy.toml:10:13
       |
    10 | bandwidth = "fast"
       |             ^^^^^^ expected a whole number and a unit (kB, MB, GB or TB), such as "50MB", or "0" for no limit

    error: unknown key `rehearse` in `[drill]`
      --> understudy.toml:11:1
       |
    11 | rehearse = true
       | ^^^^^^^^ expected one of `schedule`, `max_age`, `timeout`, `faults`, `bandwidth`
    "#);
}

/// Pieces of files, valid and not, to be joined at random.
const PIECES: &[&str] = &[
    "[cluster]\n",
    "[[node]]\n",
    "[node]\n",
    "[postgres]\n",
    "[[files]]\n",
    "[settings]\n",
    "[[index]]\n",
    "[[service]]\n",
    "[[job]]\n",
    "[hooks]\n",
    "online = [\"a\"]\n",
    "after = [\"a\", \"b\"]\n",
    "on = \"both\"\n",
    "after_failover = \"hold\"\n",
    "[kv]\n",
    "durability = \"async\"\n",
    "acknowledge = 0\n",
    "acknowledge = 9\n",
    "memory = \"1kB\"\n",
    "view = \"yes\"\n",
    "[a.b]\n",
    "[postgres.x]\n",
    "name = \"a\"\n",
    "name = 5\n",
    "address = \"10.0.0.1:1\"\n",
    "data_dir = '/ä'\n",
    "path = \"/a/b\"\n",
    "path = \"\"\"\n/a\\u0000\"\"\"\n",
    "paths = [\"/a\", {}, 1.5]\n",
    "paths.x = [[]]\n",
    "schedule = \"0 * 1 * ä\"\n",
    "schedule = \"0 25\\u0020* * *\"\n",
    "engine = \"tantivy\"\n",
    "engine = \"command\"\n",
    "exclude = [\"**\", \"{a\"]\n",
    "delete_guard = \"101%\"\n",
    "trash = \"0s\"\n",
    "bandwidth = \"0\"\n",
    "start = [\"a\"]\n",
    "timeout = \"1h\"\n",
    "[drill]\n",
    "max_age = \"1m\"\n",
    "port = 0x10000\n",
    "port = -1\n",
    "é = \n",
    "\r\n",
    "#",
];

proptest! {
    #[test]
    fn no_text_panics(text in any::<String>()) {
        if let Err(problems) = parse_cluster("understudy.toml", &text) {
            drop((problems.render(true), problems.to_json(), problems.to_string()));
        }
    }

    #[test]
    fn nothing_that_looks_like_a_file_panics(pieces in prop::collection::vec(prop::sample::select(PIECES), 0..24)) {
        if let Err(problems) = parse_cluster("understudy.toml", &pieces.concat()) {
            prop_assert!(!problems.problems().is_empty());
            drop((problems.render(true), problems.to_json(), problems.to_string()));
        }
    }
}

#[test]
fn an_address_that_no_host_could_have_is_refused_where_it_stands() {
    assert_snapshot!(problems_with(r#"[address]
ip = "10.0.0.1/24"
interface = "a-very-long-interface"
also = ["fd00::100", "10.0.0.255/24", "10.0.0.1/25", "10.0.0.1/33"]
probe = "20s"
lease = "5s"
[addres]
"#), @r#"
    error: `10.0.0.1` is the address of a node, which it has whatever its role
     --> understudy.toml:7:6
      |
    5 | address = "10.0.0.1:7400"
      |           --------------- the node has it here
    6 | [address]
    7 | ip = "10.0.0.1/24"
      |      ^^^^^^^^^^^^^ expected an address that no machine has for its own

    error: `a-very-long-interface` has 21 bytes, and no interface has more than 15
     --> understudy.toml:8:13
      |
    8 | interface = "a-very-long-interface"
      |             ^^^^^^^^^^^^^^^^^^^^^^^ expected the name of a network interface as `ip link` shows it, such as "eth0"

    error: `fd00::100` has no prefix, which says how large its network is
     --> understudy.toml:9:9
      |
    9 | also = ["fd00::100", "10.0.0.255/24", "10.0.0.1/25", "10.0.0.1/33"]
      |         ^^^^^^^^^^^ expected an address and its prefix, such as "10.0.0.100/24" or "fd00::100/64"

    error: `10.0.0.255/24` is the broadcast address of its network, not of a host in it
     --> understudy.toml:9:22
      |
    9 | also = ["fd00::100", "10.0.0.255/24", "10.0.0.1/25", "10.0.0.1/33"]
      |                      ^^^^^^^^^^^^^^^ expected an address and its prefix, such as "10.0.0.100/24" or "fd00::100/64"

    error: `10.0.0.1` is the address of a node, which it has whatever its role
     --> understudy.toml:9:39
      |
    5 | address = "10.0.0.1:7400"
      |           --------------- the node has it here
    ...
    9 | also = ["fd00::100", "10.0.0.255/24", "10.0.0.1/25", "10.0.0.1/33"]
      |                                       ^^^^^^^^^^^^^ expected an address that no machine has for its own

    error: address `10.0.0.1` is given twice
     --> understudy.toml:9:39
      |
    7 | ip = "10.0.0.1/24"
      |      ------------- it is given here first
    8 | interface = "a-very-long-interface"
    9 | also = ["fd00::100", "10.0.0.255/24", "10.0.0.1/25", "10.0.0.1/33"]
      |                                       ^^^^^^^^^^^^^ expected each address once

    error: `10.0.0.1/33` has no prefix from 1 to 32 after the `/`
     --> understudy.toml:9:54
      |
    9 | also = ["fd00::100", "10.0.0.255/24", "10.0.0.1/25", "10.0.0.1/33"]
      |                                                      ^^^^^^^^^^^^^ expected an address and its prefix, such as "10.0.0.100/24" or "fd00::100/64"

    error: `20s` is too long to wait for an answer
      --> understudy.toml:10:9
       |
    10 | probe = "20s"
       |         ^^^^^ expected from "100ms" to "10s"

    error: `5s` is so short that a restart of the daemon would take the address away
      --> understudy.toml:11:9
       |
    11 | lease = "5s"
       |         ^^^^ expected at least "30s", or "never"

    error: unknown key `addres`
      --> understudy.toml:12:2
       |
    12 | [addres]
       |  ^^^^^^ expected one of `cluster`, `node`, `postgres`, `files`, `kv`, `settings`, `index`, `fence`, `service`, `job`, `hooks`, `address`, `check`, `drill`
       |
       = help: did you mean `address`?
    "#);
}

#[test]
fn an_address_needs_an_interface_that_others_can_reach() {
    assert_snapshot!(problems_with("[address]\nip = \"10.0.0.9\"\n"), @r#"
    error: `[address]` lacks the key `interface`
     --> understudy.toml:6:1
      |
    6 | [address]
      | ^^^^^^^^^ expected `interface = "eth0"`, for example

    error: `10.0.0.9` has no prefix, which says how large its network is
     --> understudy.toml:7:6
      |
    7 | ip = "10.0.0.9"
      |      ^^^^^^^^^^ expected an address and its prefix, such as "10.0.0.100/24" or "fd00::100/64"
    "#);
    assert_snapshot!(problems_of_both(&format!("{VALID}[address]\nip = \"10.0.0.9/8\"\ninterface = \"lo\"\n"), "name = \"a\"\n[address]\ninterface = \"eth0:1\"\n"), @r#"
    error: `lo` is the loopback interface, which no other machine can reach
     --> understudy.toml:8:13
      |
    8 | interface = "lo"
      |             ^^^^ expected the name of a network interface as `ip link` shows it, such as "eth0"

    error: `eth0:1` holds ':', which no interface has in its name
     --> node.toml:3:13
      |
    3 | interface = "eth0:1"
      |             ^^^^^^^^ expected the name of a network interface as `ip link` shows it, such as "eth0"
    "#);
}

#[test]
fn a_check_has_what_its_kind_asks_for_and_nothing_else() {
    assert_snapshot!(problems_with(r#"[postgres]
data_dir = "/pg"
[[files]]
name = "u"
path = "/srv/u"
[[check]]
name = "c"
kind = "disc"
[[check]]
name = "c"
kind = "disk"
min_free = "ten"
url = "http://x/"
[[check]]
name = "d"
kind = "http"
url = "https://x/"
status = 7
severity = "bad"
on = "all"
interval = "10ms"
fail_after = 0
[[check]]
name = "e"
kind = "process"
process = "a"
pidfile = "/a"
[[check]]
name = "f"
kind = "mount"
path = "/srv/u/below"
[[check]]
name = "g"
kind = "tcp"
address = "nowhere"
[[check]]
name = "h"
kind = "command"
"#), @r#"
    error: `disc` is not a kind of check
      --> understudy.toml:13:8
       |
    13 | kind = "disc"
       |        ^^^^^^ expected one of "disk", "memory", "load", "link", "gateway", "process", "tcp", "http", "command", "mount", "postgres"
       |
       = help: did you mean `disk`?

    error: a check of kind `disk` lacks the key `path`
      --> understudy.toml:14:1
       |
    14 | [[check]]
       | ^^^^^^^^^ expected the key `path`

    error: check `c` is named twice
      --> understudy.toml:15:8
       |
    12 | name = "c"
       |        --- it is named here first
    ...
    15 | name = "c"
       |        ^^^ expected a name that no other check has

    error: `ten` is neither a share nor a size
      --> understudy.toml:17:12
       |
    17 | min_free = "ten"
       |            ^^^^^ expected a share such as "5%", or a size such as "10GB"

    error: a check of kind `disk` has no `url`
      --> understudy.toml:18:7
       |
    16 | kind = "disk"
       |        ------ the kind is chosen here
    17 | min_free = "ten"
    18 | url = "http://x/"
       |       ^^^^^^^^^^^ expected `path`, `min_free`, `recover`, `min_inodes`

    error: `https://x/` is encrypted, which a check of kind `http` does not do
      --> understudy.toml:22:7
       |
    22 | url = "https://x/"
       |       ^^^^^^^^^^^^ expected an `http` URL, or kind "command" with `curl`

    error: `7` is not a status of HTTP
      --> understudy.toml:23:10
       |
    23 | status = 7
       |          ^ expected a number from 100 to 599

    error: `bad` is not a severity
      --> understudy.toml:24:12
       |
    24 | severity = "bad"
       |            ^^^^^ expected one of "info", "warning", "error"

    error: `all` is not a place to look
      --> understudy.toml:25:6
       |
    25 | on = "all"
       |      ^^^^^ expected one of "any", "primary", "standby"

    error: `10ms` is too short between two looks
      --> understudy.toml:26:12
       |
    26 | interval = "10ms"
       |            ^^^^^^ expected at least "1s"

    error: `fail_after` is 0
      --> understudy.toml:27:14
       |
    27 | fail_after = 0
       |              ^ expected at least 1

    error: a process is found by `process` or by `pidfile`, not by both
      --> understudy.toml:32:11
       |
    31 | process = "a"
       |           --- the other is here
    32 | pidfile = "/a"
       |           ^^^^ expected one of the two

    error: the file that the check writes to `/srv/u/below` would be in store `u`
      --> understudy.toml:36:8
       |
    10 | path = "/srv/u"
       |        -------- store `u` is here
    ...
    36 | path = "/srv/u/below"
       |        ^^^^^^^^^^^^^^ expected write = false, which only asks whether it could be written

    error: `nowhere` is not a host and a port
      --> understudy.toml:40:11
       |
    40 | address = "nowhere"
       |           ^^^^^^^^^ expected a host and a port, such as "127.0.0.1:8080" or "[fd00::1]:8080"

    error: a check of kind `command` lacks the key `command`
      --> understudy.toml:41:1
       |
    41 | [[check]]
       | ^^^^^^^^^ expected the key `command`
    "#);
    assert_snapshot!(problems_with("[[check]]\nname = \"p\"\nkind = \"postgres\"\nquery = \" \"\n"), @r#"
    error: a check of kind `postgres` asks Postgres, and there is no section `[postgres]`
     --> understudy.toml:8:8
      |
    8 | kind = "postgres"
      |        ^^^^^^^^^^ expected a section `[postgres]`, or kind "command"

    error: the query is empty
     --> understudy.toml:9:9
      |
    9 | query = " "
      |         ^^^ expected a query, such as "SELECT 1"
    "#);
}
