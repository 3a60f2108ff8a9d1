//! Statuses of the cluster `catalog` for tests: nodes `a` and `b`; Postgres, two trees of files,
//! a key-value store, settings.

use std::collections::BTreeMap;

use understudy_replication::event::{Event, Severity};
use understudy_replication::position::{Lsn, Position};
use understudy_replication::status::*;
use understudy_replication::store::{AT_RISK_OPERATIONS, Durability, StoreId, StoreKind};
use understudy_replication::wall_time::WallTime;

/// The moment at which every status is told.
pub(crate) const NOW: WallTime = WallTime(1_700_000_000_000);

/// Tells the same status at any moment.
pub(crate) struct Told(pub(crate) Status);

impl StatusSource for Told {
    fn status(&self) -> Status {
        self.0.clone()
    }
}

/// Returns every state that a node can show, by name.
pub(crate) fn all() -> [(&'static str, Status); 15] {
    [
        ("primary", primary()),
        ("primary_alone", primary_alone()),
        ("primary_without_its_standby", primary_without_its_standby()),
        ("primary_degraded", primary_degraded()),
        (
            "primary_with_a_faulty_service",
            primary_with_a_faulty_service(),
        ),
        ("primary_without_its_address", primary_without_its_address()),
        ("standby", standby()),
        ("standby_link_down", standby_link_down()),
        ("standby_must_reseed", standby_must_reseed()),
        ("standby_of_nobody", standby_of_nobody()),
        ("promoting", promoting()),
        ("promotion_cut_short", promotion_cut_short()),
        (
            "promotion_cut_short_as_primary",
            promotion_cut_short_as_primary(),
        ),
        ("returning", returning()),
        ("fenced", fenced()),
    ]
}

/// Returns the moment `millis` after [`NOW`].
pub(crate) fn at(millis: i64) -> WallTime {
    WallTime(NOW.0.checked_add_signed(millis).unwrap())
}

pub(crate) fn unknown(reason: &str, since: WallTime) -> Unknown {
    Unknown {
        reason: reason.to_owned(),
        since,
    }
}

pub(crate) fn primary() -> Status {
    let current = [0x16_B374_D848, 1_073_741_824, 52_428_800, 90_210, 41];
    Status {
        version: STATUS_VERSION,
        software: "0.0.0".to_owned(),
        cluster: "catalog".to_owned(),
        node: "a".parse().unwrap(),
        role: RoleName::Primary,
        role_since: at(-7_500_000),
        replication_mode: ReplicationMode::Master,
        epoch: "1.a".parse().unwrap(),
        time: NOW,
        started: at(-7_503_000),
        primary: Some("a".parse().unwrap()),
        standbys: vec![StandbyStatus {
            node: "b".parse().unwrap(),
            ip: "10.0.0.2".to_owned(),
            seen: Some(at(-412)),
            is_connected: true,
            stores: lags(current),
            cut: Some(at(-2_050)),
            preflight: None,
            proof: None,
        }],
        upstream: None,
        stores: with_durability(stores(current), Durability::Held),
        services: vec![
            service("db-check", ServiceState::Online),
            service("web", ServiceState::Online),
        ],
        jobs: vec![job(JobState::Waiting, Some(at(5_400_000)))],
        indexes: vec![index(IndexState::Ready)],
        promotion: None,
        address: Some(address(AddressState::Held)),
        checks: vec![
            check("gateway", "gateway"),
            check("state-disk", "disk"),
            check("uploads-mount", "mount"),
        ],
        links: Vec::new(),
        pause: None,
        clone_of: None,
        preflight: None,
        proof: None,
        problems: Vec::new(),
        events: events(),
    }
}

pub(crate) fn primary_alone() -> Status {
    Status {
        replication_mode: ReplicationMode::Standalone,
        standbys: Vec::new(),
        ..primary()
    }
}

pub(crate) fn primary_without_its_standby() -> Status {
    let mut status = primary();
    let standby = &mut status.standbys[0];
    standby.is_connected = false;
    standby.seen = Some(at(-4_000));
    forget_lags(&mut standby.stores, "no report from b", at(-4_000));
    status.problems = vec![
        "standby b has not reported for 4 s; look whether it runs, and the network to it"
            .to_owned(),
    ];
    status
}

pub(crate) fn primary_degraded() -> Status {
    let mut status = primary_without_its_standby();
    let alone = Durability::Alone { seconds: Some(12) };
    status.stores = with_durability(status.stores, alone);
    let kv = &mut status.stores[3];
    kv.gauges.insert(AT_RISK_OPERATIONS.to_owned(), 345);
    kv.problems = vec![
        "writes wait for no standby: 345 operations are on this node only; they wait again once a standby \
         has caught up"
            .to_owned(),
    ];
    status
}

pub(crate) fn primary_with_a_faulty_service() -> Status {
    let mut status = primary();
    let web = &mut status.services[1];
    web.state = ServiceState::Fault;
    web.message = "bind: address in use\u{1b}[31m".to_owned();
    web.restarts = 3;
    web.restarts_total = 4;
    let report = &mut status.jobs[0];
    report.state = JobState::Held;
    report.hold = Some(Hold::Failover);
    report.next = None;
    report.last.as_mut().unwrap().outcome = JobOutcome::Failed;
    status
}

pub(crate) fn primary_without_its_address() -> Status {
    let mut status = primary();
    status.address = Some(AddressStatus {
        since: at(-9_000),
        message: "the machine with network card 02:00:00:00:00:0b has 10.0.0.100".to_owned(),
        ..address(AddressState::Fault)
    });
    let [gateway, disk, mount] = &mut status.checks[..] else {
        panic!("there are three checks");
    };
    (gateway.state, gateway.since) = (CheckState::Failed, at(-31_000));
    gateway.message = "10.0.0.254 did not answer within 2 s".to_owned();
    (disk.state, disk.severity) = (CheckState::Failed, Severity::Info);
    disk.message = "4 % of /var/lib/understudy is free\u{1b}[2J".to_owned();
    mount.state = CheckState::Unknown;
    status
}

pub(crate) fn standby() -> Status {
    let applied = [0x16_B374_A715, 1_070_596_096, 52_428_800, 90_207, 41];
    Status {
        node: "b".parse().unwrap(),
        role: RoleName::Standby,
        replication_mode: ReplicationMode::Slave,
        standbys: Vec::new(),
        upstream: Some(UpstreamStatus {
            primary: "a".parse().unwrap(),
            seen: Some(at(-412)),
            is_connected: true,
            stores: lags([0x16_B374_D848, 1_073_741_824, 52_428_800, 90_210, 41]),
            cut: Some(at(-2_050)),
            clock_ahead_ms: Some(3),
        }),
        stores: stores(applied),
        services: vec![
            service("db-check", ServiceState::Offline),
            service("web", ServiceState::Offline),
        ],
        jobs: vec![job(JobState::Elsewhere, None)],
        address: Some(address(AddressState::Absent)),
        indexes: vec![IndexStatus {
            documents: 120,
            documents_total: Some(400),
            percent: Some(30),
            is_warm: false,
            behind_seconds: None,
            ..index(IndexState::Rebuilding)
        }],
        proof: Some(proof()),
        ..primary()
    }
}

/// Three days ago a promotion took 41 seconds.
fn proof() -> ProofStatus {
    ProofStatus {
        proven: Some(at(-3 * 86_400_000)),
        seconds: Some(41.2),
        is_old: false,
        tried: Some(at(-3 * 86_400_000)),
        failure: None,
        report: Some("reports/drill-2023-11-11T22-12-39.000Z.json".to_owned()),
    }
}

pub(crate) fn standby_link_down() -> Status {
    let mut status = standby();
    let upstream = status.upstream.as_mut().unwrap();
    upstream.is_connected = false;
    upstream.seen = Some(at(-64_000));
    forget_lags(&mut upstream.stores, "no mark from a", at(-64_000));
    status.problems =
        vec!["no mark from a for 64 s; look whether it runs, or promote this node".to_owned()];
    status
}

pub(crate) fn standby_must_reseed() -> Status {
    let mut status = standby();
    let proof = status.proof.as_mut().unwrap();
    proof.is_old = true;
    proof.tried = Some(at(-7_200_000));
    proof.failure = Some("postgres: a page of index article_pkey is damaged".to_owned());
    let upstream = status.upstream.as_mut().unwrap();
    upstream.stores[1].must_reseed = true;
    upstream.stores[2].stalled = Some("no space left on device".to_owned());
    upstream.cut = None;
    status.stores[1].problems =
        vec!["the log of docs was cut on a; run `understudy join` again there".to_owned()];
    status
}

pub(crate) fn standby_of_nobody() -> Status {
    let never = ProofStatus {
        proven: None,
        seconds: None,
        is_old: true,
        tried: None,
        failure: None,
        report: None,
    };
    Status {
        proof: Some(never),
        primary: None,
        upstream: None,
        ..standby()
    }
}

pub(crate) fn promoting() -> Status {
    Status {
        role: RoleName::Promoting,
        epoch: "2.b".parse().unwrap(),
        upstream: None,
        promotion: Some(PromotionStatus {
            epoch: "2.b".parse().unwrap(),
            done: vec!["fence a".to_owned(), "record epoch 2.b".to_owned()],
            step: Some("promote postgres".to_owned()),
            is_running: true,
            error: None,
        }),
        ..standby()
    }
}

pub(crate) fn promotion_cut_short() -> Status {
    let mut status = promoting();
    let promotion = status.promotion.as_mut().unwrap();
    promotion.is_running = false;
    promotion.error = Some("cannot start postgres: no space left on device".to_owned());
    status
}

pub(crate) fn promotion_cut_short_as_primary() -> Status {
    let mut status = primary_alone();
    status.promotion = promotion_cut_short().promotion;
    status
}

pub(crate) fn returning() -> Status {
    Status {
        role: RoleName::Returning,
        replication_mode: ReplicationMode::Slave,
        primary: None,
        address: Some(address(AddressState::Absent)),
        standbys: Vec::new(),
        problems: vec![
            "a was primary before it was restarted, and has not heard b; start b, or run \
             `understudy promote --force`"
                .to_owned(),
        ],
        ..primary()
    }
}

pub(crate) fn fenced() -> Status {
    Status {
        role: RoleName::Fenced,
        replication_mode: ReplicationMode::Slave,
        epoch: "2.b".parse().unwrap(),
        primary: Some("b".parse().unwrap()),
        address: Some(address(AddressState::Absent)),
        standbys: Vec::new(),
        problems: vec!["epoch 2.b supersedes this node; see the operations guide".to_owned()],
        ..primary()
    }
}

fn ids() -> [StoreId; 5] {
    let id = |name: &str, kind| StoreId {
        name: name.parse().unwrap(),
        kind,
    };
    [
        id("postgres", StoreKind::Postgres),
        id("docs", StoreKind::Files),
        id("uploads", StoreKind::Files),
        id("kv", StoreKind::Kv),
        id("settings", StoreKind::Settings),
    ]
}

/// Postgres and docs are behind, and so is what kv shows of what it has; uploads and settings are not.
fn lags(current: [u64; 5]) -> Vec<StoreLag> {
    let applied = [12_595, 3_145_728, 0, 3, 0];
    let flushed = [8_192, 1_048_576, 0, 0, 0];
    let seconds = [0.412, 2.05, 0.412, 0.412, 0.4];
    let mut lags = Vec::new();
    for (n, id) in ids().into_iter().enumerate() {
        lags.push(StoreLag {
            unit: id.kind.unit().to_owned(),
            lag_bytes: id.kind.tells_bytes().then_some(384),
            id,
            current: Some(Position(current[n])),
            sent: Some(Position(current[n])),
            flushed: Some(Position(current[n] - flushed[n])),
            applied: Some(Position(current[n] - applied[n])),
            lag: Some(applied[n]),
            lag_flushed: Some(flushed[n]),
            lag_seconds: Some(seconds[n]),
            unknown: None,
            must_reseed: false,
            stalled: None,
            stall_reason: None,
        });
    }
    lags
}

fn forget_lags(lags: &mut [StoreLag], reason: &str, since: WallTime) {
    for lag in lags {
        (lag.lag, lag.lag_flushed, lag.lag_seconds) = (None, None, None);
        lag.lag_bytes = None;
        lag.unknown = Some(unknown(reason, since));
    }
}

fn stores(positions: [u64; 5]) -> Vec<StoreStatus> {
    let mut stores = Vec::new();
    for (id, position) in ids().into_iter().zip(positions) {
        let gauges = match id.kind {
            StoreKind::Postgres => BTreeMap::from([("slot_bytes".to_owned(), 16_777_216)]),
            StoreKind::Files => BTreeMap::from([("log_bytes".to_owned(), 4_194_304)]),
            StoreKind::Kv => BTreeMap::from([
                (AT_RISK_OPERATIONS.to_owned(), 0),
                ("keys".to_owned(), 12_000),
                ("log_bytes".to_owned(), 8_388_608),
            ]),
            StoreKind::Settings => BTreeMap::new(),
        };
        let is_postgres = id.kind == StoreKind::Postgres;
        stores.push(StoreStatus {
            position_text: is_postgres.then(|| Lsn(position).to_string()),
            id,
            position: Some(Position(position)),
            problems: Vec::new(),
            gauges,
            troubles: 0,
            durability: None,
            is_silent: false,
        });
    }
    stores
}

/// Returns the stores with this promise about writes to kv.
fn with_durability(mut stores: Vec<StoreStatus>, durability: Durability) -> Vec<StoreStatus> {
    stores[3].durability = Some(durability);
    stores
}

fn service(name: &str, state: ServiceState) -> ServiceStatus {
    ServiceStatus {
        name: name.parse().unwrap(),
        state,
        since: at(-7_400_000),
        message: "active".to_owned(),
        on: Default::default(),
        is_critical: true,
        is_wanted: state == ServiceState::Online,
        hold: None,
        stopped: None,
        after: Vec::new(),
        user: None,
        probed: Some(at(-1_200)),
        restarts: 0,
        restarts_max: 3,
        restarts_total: 0,
    }
}

fn job(state: JobState, next: Option<WallTime>) -> JobStatus {
    JobStatus {
        name: "report".parse().unwrap(),
        on: Default::default(),
        schedule: "30 2 * * *".to_owned(),
        state,
        since: at(-81_000_000),
        hold: None,
        last: Some(JobRun {
            started: at(-81_012_000),
            ended: at(-81_000_000),
            outcome: JobOutcome::Succeeded,
            message: "12 mails".to_owned(),
        }),
        next,
    }
}

fn address(state: AddressState) -> AddressStatus {
    AddressStatus {
        ips: vec!["10.0.0.100/24".to_owned()],
        interface: "eth0".to_owned(),
        state,
        since: at(-7_300_000),
        message: String::new(),
        conflict: None,
    }
}

fn check(name: &str, kind: &str) -> CheckStatus {
    CheckStatus {
        name: name.parse().unwrap(),
        kind: kind.to_owned(),
        state: CheckState::Ok,
        severity: Severity::Warning,
        since: at(-7_400_000),
        checked: Some(at(-2_000)),
        message: String::new(),
        blocks_promotion: name == "uploads-mount",
    }
}

fn index(state: IndexState) -> IndexStatus {
    IndexStatus {
        name: "search".parse().unwrap(),
        state,
        documents: 400,
        documents_total: None,
        percent: None,
        built: Some(at(-6_000_000)),
        message: None,
        engine: "tantivy".to_owned(),
        is_warm: true,
        behind_seconds: Some(3),
    }
}

fn events() -> Vec<Event> {
    let event = |seconds: i64, severity, kind: &str, message: &str| Event {
        time: at(-seconds * 1000),
        severity,
        kind: kind.to_owned(),
        message: message.to_owned(),
    };
    vec![
        event(7_503, Severity::Info, "started", "the daemon started"),
        event(7_500, Severity::Info, "role", "epoch 1.a was opened"),
        event(7_000, Severity::Info, "joined", "b joined as a standby"),
        event(
            900,
            Severity::Warning,
            "peer_refused",
            "a certificate of another cluster",
        ),
        event(600, Severity::Info, "seeded", "docs was seeded on b"),
        event(60, Severity::Info, "index_rebuilt", "search was built"),
    ]
}
