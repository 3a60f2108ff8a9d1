//! What the operator writes: `understudy.toml`, which is identical on every node, and `node.toml`,
//! which tells one machine who it is.
//!
//! ```text
//! text ──toml──▶ raw structs ──validate──▶ Config, Local
//!                   │              │
//!                   └── problems ──┴─────▶ Problems: every mistake, with its place
//! ```
//!
//! Read first: [`Config`] and [`Local`], which hold what was written, and [`Problems`], which holds
//! what was wrong with it. `raw` mirrors the files; its documentation is the operator's reference.

mod check;
mod config;
pub mod detached;
pub mod duration;
pub mod edit;
mod globs;
mod ip_prefix;
mod load;
mod local;
mod name;
mod problem;
mod raw;
pub mod reference;
mod render;
mod schedule;
mod section;
mod share;
pub mod size;
pub mod template;
mod validate;
mod value;

pub use check::{Amount, Check, CheckKind, CheckOn, CheckSeverity, ProcessName};
pub use config::{
    Address, AfterFailover, Cluster, Config, Drill, Elasticsearch, Engine, Fence, Files, Hooks,
    Index, Job, Kv, KvDurability, Node, On, Postgres, PostgresDurability, Rejoin, Rows,
    ServerCommands, Service, Settings, Warm,
};
pub use globs::{GlobError, Globs};
pub use ip_prefix::IpPrefix;
pub use load::{CONFIG_BYTES_MAX, LoadError, Loaded, load, load_local, parse_cluster, trees_named};
pub use local::Local;
pub use name::{NameError, NodeName, StoreName};
pub use problem::{Mistake, Place, Problem, Problems, Source};
pub use schedule::{Schedule, ScheduleError};
pub use share::Share;
