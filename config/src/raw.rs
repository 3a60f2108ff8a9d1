//! The files as they are written: what each key is called, holds and means.
//!
//! The documentation of these sections and keys is the operator's: [`crate::reference`] prints it.

use toml::de::DeTable;

use crate::load::CONFIG_BYTES_MAX;
use crate::problem::{Findings, Place, Placed};
use crate::section::section;
use crate::value::{Input, Unavailable, Value};

/// A command: a program and its arguments.
pub(crate) type Command = Vec<Placed<String>>;

section! {
    /// The cluster: identical on every node.
    ClusterFile "" {
        /// What is true of the cluster as a whole.
        cluster: Cluster as "table" = required, r#"{ name = "catalog" }"#;
        /// The machines.
        node: Vec<Placed<Node>> as "tables" = "[]", r#"[{ name = "a", address = "10.0.0.1:7400" }]"#;
        /// The Postgres cluster that is replicated.
        postgres: Postgres as "table" = optional, r#"{ data_dir = "/var/lib/postgresql/15/main" }"#;
        /// Trees of files that are replicated.
        files: Vec<Placed<Files>> as "tables" = "[]", r#"[{ name = "uploads", path = "/srv/uploads" }]"#;
        /// The key-value store.
        kv: Kv as "table" = optional, r#"{ durability = "standby-first" }"#;
        /// The configuration of the appliance.
        settings: Settings as "table" = optional, r#"{ paths = ["/etc/catalog"] }"#;
        /// What is rebuilt from the stores.
        index: Vec<Placed<Index>> as "tables" = "[]", r#"[{ name = "search", engine = "command", command = ["reindex"] }]"#;
        /// How an old primary that does not answer is switched off.
        fence: Fence as "table" = optional, r#"{ command = ["fence-machine"] }"#;
        /// What is started and stopped with the role of a node.
        service: Vec<Placed<Service>> as "tables" = "[]", r#"[{ name = "web", start = ["true"], stop = ["true"], status = ["true"] }]"#;
        /// What runs on a schedule where the role of a node allows it.
        job: Vec<Placed<Job>> as "tables" = "[]", r#"[{ name = "report", schedule = "@daily", command = ["true"] }]"#;
        /// What runs when the appliance goes online or offline on a node.
        hooks: Hooks as "table" = optional, r#"{ online = ["true"] }"#;
        /// The address that clients use.
        address: Address as "table" = optional, r#"{ ip = "10.0.0.100/24", interface = "eth0" }"#;
        /// What is looked at on every machine.
        check: Vec<Placed<Check>> as "tables" = "[]", r#"[{ name = "gateway", kind = "gateway" }]"#;
        /// Proving that a standby could take over.
        drill: Drill as "table" = "{}", r#"{ schedule = "0 3 * * 0" }"#;
        /// Not available in this version.
        witness: Unavailable as "table" = unavailable, "{}";
    }
}

section! {
    /// What is true of the cluster as a whole.
    Cluster "[cluster]" {
        /// Names the cluster, in certificates, reports and on the page.
        name: String as "name" = required, r#""catalog""#;
        /// Who promotes a standby when the primary has failed: `"manual"`, an operator.
        /// `"automatic"` needs a witness, which this version does not have.
        promotion: String as "string" = r#""manual""#, r#""manual""#;
        /// Who makes a standby of a primary that has been superseded: `"manual"`, an operator with
        /// `understudy rejoin`; or `"automatic"`, the node itself, as soon as the new primary serves. What
        /// only that node has is salvaged first, in either case. After a switchover the old primary follows
        /// by itself, whatever is said here, and so do the other standbys after any promotion.
        rejoin: String as "string" = r#""manual""#, r#""automatic""#;
    }
}

section! {
    /// One machine of the cluster. The section is repeated for each; at least one is needed.
    Node "[[node]]" {
        /// Names the machine, as its own `node.toml` does. No two nodes have the same name.
        name: String as "name" = required, r#""a""#;
        /// Where the other nodes reach it: an IP address, since a failover must not wait for a name
        /// service, and a port. No two nodes have the same.
        address: String as "IP:PORT" = required, r#""10.0.0.1:7400""#;
        /// Another way to it, over another network: what cannot be said over the first goes over this one,
        /// and each is told to be up or not. Postgres' own stream takes the first only.
        second_address: String as "IP:PORT" = optional, r#""192.168.7.1:7400""#;
    }
}

section! {
    /// How `understudy promote` makes sure that an old primary is off which does not answer, or cannot stop
    /// all that it runs. Without this section only an operator can say so, with `--force`.
    Fence "[fence]" {
        /// The command that switches it off, or cuts its power, and succeeds only once that is certain. It
        /// finds the node's name in `UNDERSTUDY_FENCE_NODE` and its address in `UNDERSTUDY_FENCE_IP`. It runs
        /// as the daemon's user, on the node that is promoted, never in a switchover.
        command: Command as "command" = required, r#"["fence_ipmilan", "--action=off"]"#;
        /// How long it may take.
        timeout: String as "duration" = r#""1m""#, r#""30s""#;
    }
}

section! {
    /// The Postgres cluster that is replicated: the store `postgres`. Without this section, none is.
    Postgres "[postgres]" {
        /// Postgres' data directory.
        data_dir: String as "absolute path" = required, r#""/var/lib/postgresql/15/main""#;
        /// The port that Postgres listens on.
        port: u16 as "port" = "5432", "5432";
        /// The user of the operating system who owns the data directory.
        user: String as "string" = r#""postgres""#, r#""postgres""#;
        /// Where `pg_ctl` and its siblings are. Without it they are looked for in the usual places.
        bin_dir: String as "absolute path" = optional, r#""/usr/lib/postgresql/15/bin""#;
        /// The database that indexes read, unless they name one.
        database: String as "string" = r#""postgres""#, r#""catalog""#;
        /// Whether a commit waits until a standby has made it durable: `"async"`, it does not;
        /// `"sync"`, it does.
        durability: String as "string" = r#""async""#, r#""sync""#;
        /// With `"sync"`: how long commits wait for a standby that is away, before the primary goes on
        /// alone with an alarm. It waits for standbys again by itself once one has caught up.
        /// `"never"`: commits wait for as long as it takes.
        degrade_after: String as "duration or never" = r#""10s""#, r#""never""#;
        /// How much WAL the primary keeps for a standby that is away. Past that, the standby must be
        /// seeded again, and the primary's disk is safe. In units of 1024, as Postgres counts.
        max_slot_wal_keep_size: String as "size" = r#""10GB""#, r#""64GB""#;
        /// How much of a base backup is sent in a second at most, from 32 kB to 1 GB. `"0"` is no limit.
        bandwidth: String as "size" = r#""0""#, r#""50MB""#;
        /// Where a standby that is seeded puts its write-ahead log, as on a disk of its own: a directory
        /// that is empty or absent. Without it, in the data directory. A cluster that is there keeps its own.
        wal_dir: String as "absolute path" = optional, r#""/srv/wal/catalog""#;
        /// Where Postgres puts its Unix socket. Without it, where Postgres was built to.
        socket_dir: String as "absolute path" = optional, r#""/var/run/postgresql""#;
        /// Where `postgresql.conf`, `pg_hba.conf` and `pg_ident.conf` are, if not in `data_dir`: Debian has
        /// them in `/etc/postgresql`. A standby that has no such directory gets a copy of the primary's.
        config_dir: String as "absolute path" = optional, r#""/etc/postgresql/15/main""#;
        /// The command that starts the server, run as the daemon's user. Without it understudy starts the
        /// server itself. `start`, `stop` and `status` come all three or not at all.
        start: Command as "command" = optional, r#"["systemctl", "start", "postgresql@15-main"]"#;
        /// The command that stops the server. If it fails, or the server runs on, understudy stops the
        /// server itself.
        stop: Command as "command" = optional, r#"["systemctl", "stop", "postgresql@15-main"]"#;
        /// The command that succeeds while the server runs. What it says is compared with the process that
        /// runs on `data_dir`, and a difference is told.
        status: Command as "command" = optional, r#"["systemctl", "is-active", "postgresql@15-main"]"#;
    }
}

section! {
    /// A tree of files that is replicated: a store of its own name. The section is repeated for each.
    Files "[[files]]" {
        /// Names the store. No two stores have the same name; `postgres`, `settings` and `kv` are
        /// taken.
        name: String as "name" = required, r#""uploads""#;
        /// The top of the tree. No store lies inside another.
        path: String as "absolute path" = required, r#""/srv/catalog/uploads""#;
        /// What is left out. A pattern without `/` is about names, at any depth; one with a `/` is
        /// about paths relative to `path`. `*` does not match a `/`, `**` does.
        exclude: Vec<Placed<String>> as "list of patterns" = "[]", r#"["*.tmp", "cache/**"]"#;
        /// How much of the store may go within ten minutes, in entries or in bytes, before deleting
        /// stops and asks. `"100%"` never asks. A store of fewer than 20 entries is not guarded.
        delete_guard: String as "share" = r#""50%""#, r#""20%""#;
        /// How long a standby keeps what was deleted. `"0s"` keeps nothing.
        trash: String as "duration" = r#""1d""#, r#""7d""#;
        /// How much is sent to each standby in a second at most. `"0"` is no limit.
        bandwidth: String as "size" = r#""0""#, r#""50MB""#;
        /// When everything in the tree is looked at, whatever the kernel has told of changes, in UTC.
        scan: String as "schedule" = r#""0 */3 * * * *""#, r#""*/30 * * * *""#;
        /// How much `understudy scrub` reads in a second, unless it is told.
        scrub: String as "size" = r#""50MB""#, r#""200MB""#;
    }
}

section! {
    /// The key-value store: the store `kv`, which clients reach with Redis' protocol. Without this section,
    /// there is none. Where it listens is said in `node.toml`.
    Kv "[kv]" {
        /// When a write is visible and acknowledged: `"standby-first"`, once it is durable on
        /// `acknowledge` standbys, too; `"async"`, once it is durable on the primary.
        durability: String as "string" = r#""standby-first""#, r#""async""#;
        /// With `"standby-first"`: how long a write waits, and no standby makes progress, before the primary
        /// goes on alone with an alarm. It waits for standbys again by itself once they have caught up.
        /// `"never"`: writes get `-NOREPLICAS` instead.
        degrade_after: String as "duration or never" = r#""5s""#, r#""never""#;
        /// With `degrade_after = "never"`: how long a write waits for standbys before its client gets
        /// `-NOREPLICAS`; it may still come to be. Later writes get that at once while one waits for so long.
        write_timeout: String as "duration" = r#""5s""#, r#""1s""#;
        /// With `"standby-first"`: how many standbys a write waits for, at most as many as there are other
        /// nodes.
        acknowledge: u16 as "whole number from 1" = "1", "2";
        /// Whether a standby answers reads; it may be behind. Writes it refuses in any case.
        standby_reads: bool as "boolean" = "false", "true";
        /// Whether `FLUSHDB` and `FLUSHALL` are allowed, which remove every key.
        allow_flush: bool as "boolean" = "false", "true";
        /// Whether the monitor shows keys and values to whoever can reach it. Figures it shows in any case.
        view: bool as "boolean" = "false", "true";
        /// How much memory the table may use, at least `"16MB"`.
        memory: String as "size" = r#""1GB""#, r#""4GB""#;
        /// How much of its log the primary keeps for a standby that is away, at least `"64MB"`. Past that,
        /// the standby gets a snapshot instead.
        log: String as "size" = r#""1GB""#, r#""10GB""#;
        /// A file with the password that clients need, which nobody else may read (mode 0600). Without it
        /// none is asked for, and the store listens on loopback only.
        password_file: String as "absolute path" = optional, r#""/etc/understudy/kv-password""#;
    }
}

section! {
    /// The configuration of the appliance: the store `settings`, which the standby fetches on a
    /// schedule. Without this section, there is none.
    Settings "[settings]" {
        /// When it is fetched, in UTC: a cron line of five fields as in Unix, or of six or seven with
        /// the seconds first and the year last.
        schedule: String as "schedule" = r#""0 * * * * *""#, r#""*/5 * * * *""#;
        /// The files and directories, at least one.
        paths: Vec<Placed<String>> as "list of absolute paths" = required, r#"["/etc/catalog"]"#;
        /// What is local to a node and stays so. The patterns are those of `[[files]]`.
        exclude: Vec<Placed<String>> as "list of patterns" = "[]", r#"["local.conf"]"#;
        /// The command that must succeed before new settings are applied.
        validate: Command as "command" = optional, r#"["catalogctl", "check-config"]"#;
        /// The command that runs after they were applied.
        reload: Command as "command" = optional, r#"["systemctl", "reload", "catalog"]"#;
    }
}

section! {
    /// Derived data, rebuilt from the stores and never replicated. The section is repeated for each.
    Index "[[index]]" {
        /// Names the index. No two indexes have the same name.
        name: String as "name" = required, r#""search""#;
        /// What builds it: `"tantivy"`, understudy itself from the rows of `source`; `"elasticsearch"`,
        /// understudy from the same rows, in an Elasticsearch at `url`; or `"command"`, the `command`.
        engine: String as "string" = required, r#""tantivy""#;
        /// The query that yields the rows, the first column of which is the key: not null, and different in
        /// every row. Not with `"command"`; the others need it and `[postgres]`.
        source: String as "SQL" = optional, r#""SELECT id, title, body, updated_at FROM article""#;
        /// The database to ask. Not with `"command"`; without it, that of `[postgres]`.
        database: String as "string" = optional, r#""catalog""#;
        /// The column of `source` that grows whenever a row changes: a timestamp, or a number from a
        /// sequence. With it the index is kept warm, on the standby too, and a promotion only catches up.
        /// Without it a promotion reads every row.
        watermark: String as "column" = optional, r#""updated_at""#;
        /// The column of `source` that is true in a row that counts as deleted. Without it, deletions are
        /// found by comparing keys: every `sweep`, and at a promotion.
        deleted: String as "column" = optional, r#""is_deleted""#;
        /// How often the changes are read. With `watermark`.
        refresh: String as "duration" = r#""5s""#, r#""1s""#;
        /// The longest that a transaction takes that changes rows: so far back the watermark is read again,
        /// since transactions do not become visible in the order of their watermarks. With `watermark`.
        overlap: String as "duration" = r#""1m""#, r#""10m""#;
        /// How often the keys and watermarks of the index are compared with those of the rows, which finds
        /// deletions and what was written later than `overlap`. `"never"` only with `deleted`. With
        /// `watermark`.
        sweep: String as "duration or never" = r#""1h""#, r#""1d""#;
        /// Where Elasticsearch is. With `"elasticsearch"` only, which needs it.
        url: String as "URL" = optional, r#""http://10.0.0.5:9200""#;
        /// The alias that clients search; the indexes behind it are called `ALIAS-NUMBER`. With
        /// `"elasticsearch"` only; without it, the name of the index.
        alias: String as "string" = optional, r#""articles""#;
        /// Who Elasticsearch knows us as. With `"elasticsearch"` only, and with `password_file`.
        user: String as "string" = optional, r#""understudy""#;
        /// The file that holds the password of `user`.
        password_file: String as "absolute path" = optional, r#""/etc/understudy/elastic-password""#;
        /// The file of the authorities that may have signed the certificate of `url`, as PEM. Without it,
        /// those that the system trusts.
        ca_file: String as "absolute path" = optional, r#""/etc/understudy/elastic-ca.pem""#;
        /// Whether all nodes use one Elasticsearch, so that only the primary writes to it. With `false` each
        /// node keeps one of its own, as at `http://127.0.0.1:9200`. With `"elasticsearch"` only.
        shared: bool as "boolean" = "true", "false";
        /// The command that rebuilds the index. With `"command"` only, which needs it.
        command: Command as "command" = optional, r#"["catalogctl", "reindex"]"#;
        /// How long a rebuild may take. What it has done by then is kept, and the next goes on from there.
        timeout: String as "duration" = r#""1h""#, r#""30m""#;
    }
}

section! {
    /// Something that is started and stopped with the role of a node: on the primary, unless it says
    /// otherwise. The section is repeated for each. Without `after`, they are started in the order of the
    /// file; they are stopped in the exact reverse of the order in which they are started.
    Service "[[service]]" {
        /// Names the service. No two services or jobs have the same name.
        name: String as "name" = required, r#""web""#;
        /// The command that starts it. It has started when its `status` succeeds, too.
        start: Command as "command" = required, r#"["systemctl", "start", "catalog"]"#;
        /// The command that stops it. It has stopped when its `status` fails, too.
        stop: Command as "command" = required, r#"["systemctl", "stop", "catalog"]"#;
        /// The command that succeeds while it runs.
        status: Command as "command" = required, r#"["systemctl", "is-active", "catalog"]"#;
        /// The user of the operating system that the three commands run as, with that user's primary group
        /// and environment. Without it, the daemon's own. A daemon that is not root runs them as itself.
        user: String as "string" = optional, r#""catalog""#;
        /// Where it runs: `"primary"`; `"standby"`, on nodes that follow a primary; or `"both"`.
        on: String as "string" = r#""primary""#, r#""standby""#;
        /// The services that must be up before it is started. Without it, the one before it in the file;
        /// `[]` for none.
        after: Vec<Placed<String>> as "list of names" = optional, r#"["mount", "engine"]"#;
        /// Whether a promotion stops when it does not come up. One that is not critical is a fault, and the
        /// others go on.
        critical: bool as "boolean" = "true", "false";
        /// How often it is started again within `restart_window`, when it goes down or does not come up.
        /// Past that it is a fault until an operator clears it. 0 for not at all.
        restarts: u16 as "whole number" = "3", "0";
        /// The time in which `restarts` are counted.
        restart_window: String as "duration" = r#""1h""#, r#""15m""#;
        /// How often it is asked how it is, at least `"100ms"`.
        interval: String as "duration" = r#""5s""#, r#""1s""#;
        /// How long it may take to start, and to stop. Past that the command is killed.
        timeout: String as "duration" = r#""30s""#, r#""2m""#;
        /// How long `status` may take. Past that it is killed, and the service counts as down.
        status_timeout: String as "duration" = r#""10s""#, r#""3s""#;
        /// What becomes of it on a node on which `understudy promote` is run, whether the old primary has
        /// failed or fences itself in peace: `"start"`; or `"hold"`, nothing until an operator types
        /// `understudy services start NAME`. A `switchover` holds nothing, nor does a `promote` that goes on
        /// with a switchover that was cut short.
        after_failover: String as "string" = r#""start""#, r#""hold""#;
        /// Whether its start, status and stop may be run in a rehearsal: on a standby, on a copy of the
        /// stores, without a network. See [drills](drills.md#services) for what it must not do there.
        rehearse: bool as "boolean" = "false", "true";
    }
}

section! {
    /// A command that runs on a schedule, on the primary unless it says otherwise, and never twice at a
    /// time. The section is repeated for each.
    Job "[[job]]" {
        /// Names the job. No two services or jobs have the same name.
        name: String as "name" = required, r#""report""#;
        /// When it runs, in UTC: a cron line of five fields as in Unix, or of six or seven with the seconds
        /// first and the year last. What was missed is not made up for.
        schedule: String as "schedule" = required, r#""30 2 * * *""#;
        /// The command.
        command: Command as "command" = required, r#"["catalogctl", "report"]"#;
        /// The user of the operating system that it runs as, as for `[[service]]`.
        user: String as "string" = optional, r#""catalog""#;
        /// How long it may take. Past that it is killed.
        timeout: String as "duration" = r#""1h""#, r#""10m""#;
        /// Where it runs: `"primary"`; `"standby"`, on nodes that follow a primary; or `"both"`.
        on: String as "string" = r#""primary""#, r#""both""#;
        /// What becomes of it on a node on which `understudy promote` is run, as for `[[service]]`:
        /// `"start"`, it runs on its schedule; or `"hold"`, it does not until an operator types
        /// `understudy services start NAME`.
        after_failover: String as "string" = r#""start""#, r#""hold""#;
    }
}

section! {
    /// Commands that tell others that the appliance goes online or offline on a node. Whatever becomes of
    /// them, the promotion or the stop goes on; what they print is an event.
    Hooks "[hooks]" {
        /// The command that runs once the appliance is online on a node.
        online: Command as "command" = optional, r#"["catalogctl", "announce", "online"]"#;
        /// The command that runs before the appliance goes offline on a node.
        offline: Command as "command" = optional, r#"["catalogctl", "announce", "offline"]"#;
        /// The user of the operating system that they run as, as for `[[service]]`.
        user: String as "string" = optional, r#""catalog""#;
        /// How long each may take. Past that it is killed.
        timeout: String as "duration" = r#""30s""#, r#""10s""#;
    }
}

section! {
    /// The address that clients use, which the primary has: taken last, given up first. Without this
    /// section, understudy moves none.
    Address "[address]" {
        /// The address, and how many of its bits say which network it is in. No node has it as its own.
        ip: String as "IP/BITS" = required, r#""10.0.0.100/24""#;
        /// The network interface that it is taken on. A machine that calls it otherwise says so in its
        /// `node.toml`.
        interface: String as "interface" = required, r#""eth0""#;
        /// Further addresses, IPv4 or IPv6, which are on the same interface and move with the first.
        also: Vec<Placed<String>> as "list of IP/BITS" = "[]", r#"["fd00::100/64"]"#;
        /// How long others have to answer that they have an address already, from 100 ms to 10 s. A promotion
        /// asks while it does other things, and asks once more, briefly, before it takes the address.
        probe: String as "duration" = r#""300ms""#, r#""1s""#;
        /// How long the kernel keeps the addresses without a running daemon that renews them, from 30 s.
        /// `"never"`: they stay until they are given up. With a lease, a primary whose daemon is down for
        /// longer loses its clients, though all else is well.
        lease: String as "duration or never" = r#""never""#, r#""2m""#;
    }
}

section! {
    /// Something that is looked at on every machine besides its stores and services. The section is repeated for
    /// each. What is told of checks is in `docs/checks.md`.
    Check "[[check]]" {
        /// Names the check. No two checks have the same name.
        name: String as "name" = required, r#""gateway""#;
        /// What is looked at: `"disk"`, `"memory"`, `"load"`, `"link"`, `"gateway"`, `"process"`, `"tcp"`,
        /// `"http"`, `"command"`, `"mount"` or `"postgres"`.
        kind: String as "string" = required, r#""gateway""#;
        /// How long between two looks, at least `"1s"`.
        interval: String as "duration" = r#""10s""#, r#""1m""#;
        /// How long a look may take; one that takes longer is bad.
        timeout: String as "duration" = r#""5s""#, r#""2s""#;
        /// How many looks in a row have to be bad before the check fails.
        fail_after: u16 as "whole number from 1" = "3", "5";
        /// How many looks in a row have to be good before it is well again.
        recover_after: u16 as "whole number from 1" = "2", "5";
        /// What its failure asks for: `"info"`, to be read the next day; `"warning"`, that somebody looks;
        /// `"error"`, that somebody comes, and `/health` fails.
        severity: String as "string" = r#""warning""#, r#""error""#;
        /// On which nodes it is looked at: `"any"`; `"primary"`; or `"standby"`.
        on: String as "string" = r#""any""#, r#""standby""#;
        /// Whether a node where it fails is promoted only with `--force`.
        blocks_promotion: bool as "boolean" = "false", "true";
        /// With `disk`: a path on the file system. With `mount`: where it is mounted.
        path: String as "absolute path" = optional, r#""/srv""#;
        /// With `disk` and `memory`: how much has to be free.
        min_free: String as "share or size" = optional, r#""10%""#;
        /// With `disk`, `memory` and `load`: how much has to be free again, or how much load there may be again,
        /// before a failure is over. Without it, the same as before it.
        recover: String as "as the other limit" = optional, r#""15%""#;
        /// With `disk`: how much of the inodes has to be free.
        min_inodes: String as "share" = optional, r#""5%""#;
        /// With `load`: how many threads may want to run, for each processor, as the average of a minute.
        max_load: String as "number" = optional, r#""4""#;
        /// With `link`: the network interface that is up and has a carrier.
        interface: String as "interface" = optional, r#""eth0""#;
        /// With `gateway`: the machine that answers an ICMP echo; without it, the gateway of the default
        /// route. With `tcp`, which needs it: the host and the port that take a connection.
        address: String as "IP, or HOST:PORT" = optional, r#""10.0.0.254""#;
        /// With `process`: the name of the program that runs.
        process: String as "string" = optional, r#""nginx""#;
        /// With `process`: a file with the number of the process, instead of its name.
        pidfile: String as "absolute path" = optional, r#""/run/nginx.pid""#;
        /// With `http`: the page.
        url: String as "http URL" = optional, r#""http://127.0.0.1:8080/health""#;
        /// With `http`: the status that is expected. Without it, any that is no error (200 to 399).
        status: u16 as "HTTP status" = optional, "204";
        /// With `http`: a text that is in the first 64 kB of the page.
        contains: String as "string" = optional, r#""ready""#;
        /// With `command`: the command that succeeds.
        command: Command as "command" = optional, r#"["catalogctl", "check"]"#;
        /// With `command`: the user of the operating system who runs it. Without it, the daemon's.
        user: String as "string" = optional, r#""catalog""#;
        /// With `mount`: what kind of file system is mounted there.
        fstype: String as "string" = optional, r#""ext4""#;
        /// With `mount`: whether a file is written there and removed again (the default). Not within a store.
        write: bool as "boolean" = optional, "false";
        /// With `postgres`: a query that is answered. Without it, `SELECT 1`.
        query: String as "SQL" = optional, r#""SELECT count(*) FROM article""#;
        /// With `postgres`: the database to ask. Without it, that of `[postgres]`.
        database: String as "string" = optional, r#""catalog""#;
    }
}

section! {
    /// Rehearsals, which prove that a standby could take over and how long that takes.
    Drill "[drill]" {
        /// When a standby rehearses by itself, in UTC. Without it, only when `understudy drill` is typed.
        schedule: String as "schedule" = optional, r#""0 3 * * 0""#;
        /// How old the newest rehearsal that succeeded may be before a standby says that it is too old, at
        /// most 400d.
        max_age: String as "duration" = r#""35d""#, r#""8d""#;
        /// How long a rehearsal may take before it is given up as failed.
        timeout: String as "duration" = r#""2h""#, r#""6h""#;
        /// Whether `understudy drill fault` may break things on purpose. Never where people work.
        faults: bool as "boolean" = "false", "true";
        /// How many bytes a rehearsal, or `understudy clone`, copies or reads again in a second at most.
        /// `"0"` is no limit.
        bandwidth: String as "size" = r#""0""#, r#""50MB""#;
    }
}

section! {
    /// This machine: its name, and what is local to it.
    NodeFile "" {
        /// Which `[[node]]` of `understudy.toml` this machine is.
        name: String as "name" = required, r#""a""#;
        /// The directory under which every path of `understudy.toml` is taken on this machine. Another
        /// one than `/` lets two nodes live on one machine. The directories below are not subject to it.
        root: String as "absolute path" = r#""/""#, r#""/srv/node-a""#;
        /// Where understudy keeps its state. Not within a store, nor a store within it.
        state_dir: String as "absolute path" = r#""/var/lib/understudy""#, r#""/var/lib/understudy""#;
        /// Where the socket is that the command line talks to.
        run_dir: String as "absolute path" = r#""/run/understudy""#, r#""/run/understudy""#;
        /// Where the certificates and the key are. Without it, `pki` beside this file.
        pki_dir: String as "absolute path" = optional, r#""/etc/understudy/pki""#;
        /// What tells how replication is doing.
        monitor: Monitor as "table" = "{}", r#"{ listen = "127.0.0.1:7480" }"#;
        /// Where the key-value store is reached.
        kv: KvLocal as "table" = "{}", r#"{ listen = "127.0.0.1:7479" }"#;
        /// Where the address that clients use is taken.
        address: AddressLocal as "table" = "{}", r#"{ interface = "ens3" }"#;
    }
}

section! {
    /// The monitor: `/monitor/replication`, health checks, metrics and the page.
    Monitor "[monitor]" {
        /// Where it listens.
        listen: String as "IP:PORT" = r#""0.0.0.0:7480""#, r#""127.0.0.1:7480""#;
    }
}

section! {
    /// The key-value store on this machine. It matters only where `understudy.toml` has a `[kv]`.
    KvLocal "[kv]" {
        /// Where clients reach it. Any address but a loopback one needs a `password_file` in
        /// `understudy.toml`; it is not encrypted.
        listen: String as "IP:PORT" = r#""127.0.0.1:7479""#, r#""10.0.0.1:7479""#;
    }
}

section! {
    /// The address that clients use on this machine. It matters only where `understudy.toml` has an
    /// `[address]`.
    AddressLocal "[address]" {
        /// The network interface that it is taken on. Without it, the one of `understudy.toml`.
        interface: String as "interface" = optional, r#""ens3""#;
    }
}

/// Reads a file, and reports what is not TOML, not known or of the wrong type.
///
/// `None` means that nothing could be read.
pub(crate) fn read<T: Value>(source: usize, text: &str, findings: &mut Findings) -> Option<T> {
    if text.len() > CONFIG_BYTES_MAX {
        let what = format!("the file has {} bytes", text.len());
        let expected = format!("at most {CONFIG_BYTES_MAX} bytes");
        findings.report(&Place::new(source, 0..0), what, expected);
        return None;
    }
    let (table, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        let span = error.span().unwrap_or_default();
        let (what, expected) = match error.message() {
            "duplicate key" => ("the key was given before", "each key once"),
            message => message
                .split_once(", expected ")
                .unwrap_or((message, "valid TOML")),
        };
        findings.report(&Place::new(source, span), what, expected);
    }
    if !errors.is_empty() {
        return None;
    }
    let value = toml::de::DeValue::Table(table.into_inner());
    // What the file as a whole lacks is reported at its start.
    T::read(
        &Input {
            source,
            key: "",
            is_element: false,
            value: &value,
            span: 0..0,
        },
        findings,
    )
}
