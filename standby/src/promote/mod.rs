//! Promotion: first a plan, which is plain data made from what was observed; then its execution.
//!
//! After a crash nothing is resumed from a saved place: the plan is made again from what is then
//! observed, and every step can be repeated.

mod plan;

pub use plan::{
    Basis, Condition, Elsewhere, Front, Loss, Observation, Plan, Step, StoreSeen, plan,
};
