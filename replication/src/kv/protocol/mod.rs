//! What is committed, who has it, and how two logs become one: the rules, and nothing that does anything.
//!
//! ```text
//!  primary                                          standby
//!  Leader ◀── appended, synced                      Follower ◀── connect, synced, session_lost
//!    │                                                 │
//!    │ ◀────────── Hello {attempt, sketch} ─────────── │
//!    │  meet(sketch, own log) ⇒ shared point           │
//!    │ ─────────── Welcome {session, from, end} ─────▶ │   or NeedSnapshot: table and log at a point
//!    │ ─────────── EntryHead (and its operations) ───▶ │   skipped if equal, else cut, then appended
//!    │ ◀────────── Acknowledged {session, position} ── │   min(durable, verified in this session)
//!    │ ─────────── Committed {session, position} ────▶ │   applied to the table
//!    ▼
//!  committed(), durability(), at_risk(), is_open(), takes_writes()
//! ```
//! Each machine is a value with synchronous methods: events in, actions out, the time as an argument. The actions
//! are carried out in their order, and nothing else happens to the log in between. Read first: [`Leader`],
//! [`Follower`], [`meet`]; for promotions [`survey`]. The rules and their reasons:
//! `docs/decisions/0015-a-primary-opens-each-run-with-an-entry.md`.

mod durability;
mod follower;
mod leader;
mod meeting;
mod message;
mod survey;

pub use durability::{Durability, LeaderAction, Mode, Policy, Start};
pub use follower::{Follower, FollowerAction, Kept};
pub use leader::{FollowerSeen, Leader};
pub use meeting::{MEETING_POINTS_MAX, Meeting, Sketch, SketchError, meet};
pub use message::{Attempt, EntryHead, Session, Welcome};
pub use survey::{Outlook, Tail, survey};
