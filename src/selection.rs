//! Which stores a verb is about.

use serde::{Deserialize, Serialize};
use understudy_config::{Config, StoreName};
use understudy_replication::store::StoreId;

use crate::failure::Failure;

/// The stores that an operator has named; none means all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Selection(pub(crate) Vec<StoreName>);

impl Selection {
    /// Returns one store.
    pub(crate) fn one(store: StoreName) -> Self {
        Self(vec![store])
    }

    /// Returns whether `store` is one of them.
    pub(crate) fn has(&self, store: &StoreName) -> bool {
        self.0.is_empty() || self.0.contains(store)
    }

    /// Returns the stores of the configuration that are meant, in its order; a name that no store has is
    /// an error.
    pub(crate) fn of(&self, config: &Config) -> Result<Vec<StoreId>, Failure> {
        let all = crate::stores::ids(config);
        if let Some(unknown) = self
            .0
            .iter()
            .find(|name| !all.iter().any(|id| id.name == **name))
        {
            let names: Vec<&str> = all.iter().map(|id| id.name.as_str()).collect();
            return Err(Failure::usage(format!("there is no store {unknown}"))
                .hint(format!("the stores are: {}", names.join(", "))));
        }
        Ok(all.into_iter().filter(|id| self.has(&id.name)).collect())
    }
}
