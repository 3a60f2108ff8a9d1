//! Who writes to the indexes of an Elasticsearch: the node of the highest epoch, and nobody else.
//!
//! ```text
//! ALIAS-1763770000000-writer-1.a ──▶ ALIAS-1763770000000      every write goes through such an alias
//! ALIAS-1763770000000-writer-2.b ──▶                          which a higher epoch puts in its place
//! ```
//! Elasticsearch is told that what is written to must be an alias. So it is Elasticsearch that refuses who was
//! superseded, whatever that one still believes, from the moment on in which his alias is gone: there is no time
//! between a look and a write. A claim is announced first and looked at after; of two that claim at once each
//! sees the other, or was seen by it, and the lesser writes nothing.

use hyper::Method;
use serde_json::{Value, json};
use understudy_replication::epoch::Epoch;

use super::error::ElasticError;
use super::{Elastic, ElasticIndex};

/// How often a claim is looked at again that others change meanwhile.
const CLAIM_TRIES_MAX: u32 = 8;

/// Returns the alias through which an index is written in an epoch.
pub(super) fn writer(index: &str, epoch: &Epoch) -> String {
    format!("{index}-writer-{epoch}")
}

/// Returns the epoch of such an alias.
pub(super) fn epoch_of(index: &str, alias: &str) -> Option<Epoch> {
    let rest = alias.strip_prefix(index)?.strip_prefix("-writer-")?;
    rest.parse().ok()
}

/// Returns what makes a change of aliases fail as a whole unless the index is still claimed for this epoch.
fn while_claimed(index: &str, epoch: &Epoch) -> [Value; 2] {
    let alias = writer(index, epoch);
    [
        json!({ "remove": { "index": index, "alias": alias, "must_exist": true } }),
        json!({ "add": { "index": index, "alias": alias } }),
    ]
}

impl Elastic {
    /// Claims all indexes of ours for an epoch: from then on nobody writes to them in a lower one.
    pub(super) async fn claim(&self, epoch: &Epoch) -> Result<(), ElasticError> {
        for _ in 0..CLAIM_TRIES_MAX {
            let ours = self.list().await?;
            let claims = ours.iter().flat_map(|(name, meta)| {
                let claimed = meta.writers.iter();
                claimed.map(move |theirs| (theirs, name))
            });
            if let Some((theirs, index)) = claims.max().filter(|(theirs, _)| *theirs > epoch) {
                return Err(ElasticError::Superseded {
                    alias: writer(index, theirs),
                    theirs: theirs.clone(),
                    ours: epoch.clone(),
                });
            }
            let mut actions = Vec::new();
            for (name, meta) in &ours {
                for lower in meta.writers.iter().filter(|it| *it != epoch) {
                    let alias = writer(name, lower);
                    actions.push(json!({ "remove": { "index": name, "alias": alias } }));
                }
                if !meta.writers.contains(epoch) {
                    let alias = writer(name, epoch);
                    actions.push(json!({ "add": { "index": name, "alias": alias } }));
                }
            }
            if actions.is_empty() {
                return Ok(());
            }
            match self.change_aliases("claim its indexes", actions).await {
                // Others change them, too: it is looked at again.
                Ok(()) | Err(ElasticError::Unclaimed) => {}
                Err(error) => return Err(error),
            }
        }
        Err(ElasticError::Busy {
            what: "claim its indexes",
            tries: CLAIM_TRIES_MAX,
        })
    }

    /// Changes aliases, all of them or none, and makes sure that all of Elasticsearch knows.
    async fn change_aliases(
        &self,
        what: &'static str,
        actions: Vec<Value>,
    ) -> Result<(), ElasticError> {
        let body = json!({ "actions": actions });
        let asked = self.ask(what, Method::POST, "/_aliases", Some(body)).await;
        let answer = asked.map_err(ElasticError::of_writer)?;
        // A part of it that has not heard yet would still take what goes through the alias before.
        match answer["acknowledged"].as_bool() {
            Some(true) => Ok(()),
            Some(false) | None => Err(ElasticError::Unacknowledged { what }),
        }
    }

    /// Makes `new` what clients search instead of `before`, if all of them are still claimed.
    pub(super) async fn swap(
        &self,
        epoch: &Epoch,
        new: &str,
        before: &[String],
    ) -> Result<(), ElasticError> {
        let ours = self.list().await?;
        let mut actions = while_claimed(new, epoch).to_vec();
        for name in before.iter().filter(|name| *name != new) {
            if ours.contains_key(name) {
                actions.extend(while_claimed(name, epoch));
            }
            let alias = &self.alias;
            actions
                .push(json!({ "remove": { "index": name, "alias": alias, "must_exist": true } }));
        }
        actions.push(json!({ "add": { "index": new, "alias": self.alias } }));
        self.change_aliases("swap the alias", actions).await
    }

    /// Removes every index of ours but those to be kept, if these are still claimed.
    pub(super) async fn clean(&self, epoch: &Epoch, keep: &[String]) -> Result<(), ElasticError> {
        let ours = self.list().await?;
        let mut actions: Vec<Value> = ours
            .keys()
            .filter(|name| !keep.contains(name))
            .map(|name| json!({ "remove_index": { "index": name } }))
            .collect();
        if actions.is_empty() {
            return Ok(());
        }
        for name in keep.iter().filter(|name| ours.contains_key(*name)) {
            actions.extend(while_claimed(name, epoch));
        }
        self.change_aliases("remove an old index", actions).await
    }
}

impl ElasticIndex {
    /// Returns what is written to.
    pub(super) fn writer(&self) -> String {
        writer(&self.name, &self.epoch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_is_read_back_from_the_alias_of_its_index_alone() {
        let epoch: Epoch = "12.node-b".parse().unwrap();
        let alias = writer("articles-1", &epoch);
        assert_eq!(alias, "articles-1-writer-12.node-b");
        assert_eq!(epoch_of("articles-1", &alias), Some(epoch));
        for other in ["articles", "articles-1-writer-x", "articles-11-writer-1.a"] {
            assert_eq!(epoch_of("articles-1", other), None, "{other}");
        }
    }
}
