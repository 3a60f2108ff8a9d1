//! The model of the settings that both sides share.
//!
//! ```text
//! configured paths ──capture──▶ Revision ──▶ History (one file per revision)
//!        ▲                          │
//!        └──install◀── validate ◀───┘     the marker `applied` is written last
//! ```
//! Read first: [`Revision`], [`History`], and [`Scope`], which says what a revision may touch.

mod apply;
mod beneath;
mod capture;
mod check;
mod codec;
mod due;
mod history;
mod install;
mod path;
mod revision;
mod scope;

pub use apply::{Applied, ApplyError, apply, only_here};
pub use capture::{Capture, CaptureError, Fingerprint, capture, fingerprint};

pub use check::{RefusedError, reload, validate};
pub use codec::{DecodeError, ENCODED_BYTES_MAX};
pub use due::wait_until_due;
pub use history::{
    HISTORY_BYTES_MAX, History, HistoryError, Marker, Origin, REVISIONS_MAX, Refusal,
};
pub use install::{InstallError, finish, install, restore};
pub use path::{PathError, SettingPath};
pub use revision::{
    Access, Change, Changes, Digest, ENTRIES_MAX, Entry, ParseDigestError, REVISION_BYTES_MAX,
    Revision, RevisionError, RevisionSummary,
};
pub use scope::{Scope, ScopeError};
