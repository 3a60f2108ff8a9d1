//! What the server says of its streams, its slots and its settings, asked once.

use tokio_postgres::{Client, Row};
use understudy_replication::position::Lsn;
use understudy_replication::postgres::{Cluster, Need, PRESENT_QUERY, PostgresError, Present, lsn};

/// All of it, as of one moment.
#[derive(Debug)]
pub(super) struct Look {
    pub(super) streams: Vec<Stream>,
    pub(super) slots: Vec<Slot>,
    /// What replication needs of the settings, and cannot be before a restart of the server.
    pub(super) needs_restart: Vec<Need>,
    /// What is durable here.
    pub(super) flushed: Lsn,
    pub(super) waiting: WaitingSettings,
}

/// The stream of one standby.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) name: String,
    /// `streaming`, `catchup`, …; `None` where it is not to be seen.
    pub(super) state: Option<String>,
    pub(super) sent: Lsn,
    pub(super) flushed: Lsn,
    pub(super) applied: Lsn,
    /// Commits wait for it, or for one of several of which it is one.
    pub(super) is_synchronous: bool,
    /// When its last answer was sent, by its own clock: only that it changes means something.
    pub(super) answered: Option<String>,
}

/// A standby's slot.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) name: String,
    pub(super) is_lost: bool,
    pub(super) is_active: bool,
    /// How much write-ahead log it keeps back.
    pub(super) retained_bytes: u64,
    /// How much more may be written before it is lost.
    pub(super) room_bytes: Option<u64>,
}

/// What decides whether commits wait.
#[derive(Debug)]
pub(super) struct WaitingSettings {
    /// `synchronous_standby_names`, as it is in effect.
    pub(super) waits_for: String,
    /// Where each of the two settings is overridden, if it is not as it has to be.
    pub(super) overridden: Vec<String>,
}

/// Streams and slots, each in its own words.
const STREAMS: &str = "SELECT application_name, state, sent_lsn::text, flush_lsn::text, \
     replay_lsn::text, sync_state IN ('sync', 'quorum'), reply_time::text FROM pg_stat_replication";

/// Whether a slot is lost: what it has kept is gone, or nothing was ever kept for it. While it is being made
/// it is active, and nothing is kept yet.
pub(super) const IS_LOST: &str =
    "CASE WHEN wal_status IS NULL THEN NOT active ELSE wal_status = 'lost' END";

/// What follows [`IS_LOST`].
const SLOTS: &str = "active, \
     coalesce(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn), 0)::int8, safe_wal_size \
     FROM pg_replication_slots WHERE slot_name LIKE 'understudy\\_%'";

const FLUSHED: &str = "SELECT pg_current_wal_flush_lsn()::text, \
     current_setting('synchronous_standby_names')";

/// Where somebody has said that commits need not wait: for all, for a database, for a role.
const OVERRIDDEN: &str = "SELECT name || ' in ' || coalesce(sourcefile, source) FROM pg_settings \
     WHERE sourcefile IS DISTINCT FROM \
           regexp_replace(current_setting('config_file'), '[^/]*$', 'understudy.conf') \
       AND (name = 'synchronous_commit' AND setting IN ('off', 'local', 'remote_write') \
            OR name = 'synchronous_standby_names' AND setting <> '') \
     UNION ALL \
     SELECT split_part(item, '=', 1) || ' of ' || coalesce('role ' || rolname, 'every role') || ' in ' \
            || coalesce('database ' || datname, 'every database') \
     FROM pg_db_role_setting LEFT JOIN pg_roles r ON r.oid = setrole \
          LEFT JOIN pg_database d ON d.oid = setdatabase, unnest(setconfig) item \
     WHERE item ~* '^synchronous_commit=' AND item !~* '=\\W*(on|remote_apply|true|yes|1)\\W*$' ORDER BY 1";

impl Look {
    /// Asks the server of `cluster`.
    pub(super) async fn take(client: &Client, cluster: &Cluster) -> Result<Self, PostgresError> {
        let streams = ask(client, "tell its streams", STREAMS).await?;
        let slots = format!("SELECT slot_name::text, {IS_LOST}, {SLOTS}");
        let slots = ask(client, "tell its slots", &slots).await?;
        let present = client.query_one(PRESENT_QUERY, &[]).await;
        let present = present.map_err(|source| PostgresError::Query {
            what: "tell its settings",
            source,
        })?;
        let present =
            Present::parse(present.get(0)).map_err(|source| PostgresError::Settings { source })?;
        let overridden = ask(client, "tell what is overridden", OVERRIDDEN).await?;
        let here = client.query_one(FLUSHED, &[]).await;
        let here = here.map_err(|source| PostgresError::Query {
            what: "tell how far it is",
            source,
        })?;
        Ok(Self {
            streams: streams.iter().map(stream).collect::<Result<_, _>>()?,
            slots: slots.iter().map(slot).collect(),
            needs_restart: cluster.needs(&present),
            flushed: lsn(&here, 0)?.unwrap_or(Lsn(0)),
            waiting: WaitingSettings {
                waits_for: here.get(1),
                overridden: overridden.iter().map(|row| row.get(0)).collect(),
            },
        })
    }
}

async fn ask(client: &Client, what: &'static str, query: &str) -> Result<Vec<Row>, PostgresError> {
    let rows = client.query(query, &[]).await;
    rows.map_err(|source| PostgresError::Query { what, source })
}

fn stream(row: &Row) -> Result<Stream, PostgresError> {
    let position = |column| Ok::<_, PostgresError>(lsn(row, column)?.unwrap_or(Lsn(0)));
    Ok(Stream {
        name: row.get(0),
        state: row.get(1),
        sent: position(2)?,
        flushed: position(3)?,
        applied: position(4)?,
        is_synchronous: row.get::<_, Option<bool>>(5).unwrap_or(false),
        answered: row.get(6),
    })
}

fn slot(row: &Row) -> Slot {
    let bytes = |value: i64| u64::try_from(value).unwrap_or(0);
    Slot {
        name: row.get(0),
        is_lost: row.get(1),
        is_active: row.get(2),
        retained_bytes: bytes(row.get(3)),
        room_bytes: row.get::<_, Option<i64>>(4).map(bytes),
    }
}
