//! What only this node has of the settings: revisions that the primary never had, and files that were edited
//! since. A rejoin sets it aside, and tells of it first.

use std::path::PathBuf;

use understudy_replication::event::Severity;
use understudy_replication::rejoin::{Foreseen, Method, Rejoined, Salvaged, Way};
use understudy_replication::settings::{
    CaptureError, Digest, InstallError, Revision, RevisionSummary, capture, only_here,
};
use understudy_replication::transport::{PeerClient, PeerError};

use super::pull::{PullError, Pulled};
use super::receiver::{Place, SettingsReceiver};

/// The list of a primary's revisions is no longer, in bytes.
const LIST_BYTES_MAX: usize = 4 << 20;

/// Returns which of `ours` a primary that has `theirs` never had: those behind the newest one that both have.
/// Both are in order, the oldest first. Content that it has under another number is not lost.
fn lone<'a>(ours: &'a [RevisionSummary], theirs: &[RevisionSummary]) -> Vec<&'a RevisionSummary> {
    // What is older than all that it keeps may have been let go.
    let Some(oldest) = theirs.first().map(|it| it.number) else {
        return ours.iter().collect();
    };
    let has = |digest: Digest| theirs.iter().any(|it| it.digest == digest);
    let is_common = |our: &&RevisionSummary| {
        theirs
            .iter()
            .any(|it| (it.number, it.digest) == (our.number, our.digest))
    };
    let common = ours.iter().rev().find(is_common).map(|it| it.number);
    ours.iter()
        .filter(|our| common.is_none_or(|common| our.number > common))
        .filter(|our| our.number >= oldest && !has(our.digest))
        .collect()
}

/// Returns a sentence's part on revisions, which are in order.
fn named(revisions: &[&RevisionSummary]) -> String {
    match revisions {
        [] => "no revision".to_owned(),
        [one] => format!("revision {} of epoch {}", one.number, one.epoch),
        [first, .., last] => format!(
            "{} revisions, {} to {}, the last of epoch {}",
            revisions.len(),
            first.number,
            last.number,
            last.epoch
        ),
    }
}

impl SettingsReceiver {
    /// Returns the revisions that the primary has, the oldest first; `None` from one that does not tell.
    async fn theirs(
        &self,
        primary: &PeerClient,
    ) -> Result<Option<Vec<RevisionSummary>>, PeerError> {
        match primary.get("/store/settings/history").await {
            Ok(answer) => Ok(Some(answer.json(LIST_BYTES_MAX).await?)),
            // An older version: what cannot be told stops nothing.
            Err(PeerError::Refused { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Tells what [`rejoin_from`](Self::rejoin_from) would do now, and changes nothing.
    pub(super) async fn outlook(&self, primary: &PeerClient) -> Result<Foreseen, PullError> {
        let theirs = self.theirs(primary).await?;
        let mut place = self.place().await;
        let applied = place.history.applied()?;
        let bytes = self.fetch(applied.as_ref(), primary).await?;
        let travelling = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        let (edited, edited_bytes) = edited(&mut place, bytes).await?;
        let ours = place.history.list()?;
        let read_bytes = self.told_bytes();
        let way = if travelling == 0 && edited.is_empty() {
            Way::Equal
        } else {
            Way::Replaced
        };
        let foreseen = |salvaged_bytes, basis| Foreseen {
            way,
            salvaged_bytes,
            travelling_bytes: Some(travelling),
            read_bytes,
            basis,
        };
        let mut basis = "the primary's newest revision".to_owned();
        if !edited.is_empty() {
            basis += &format!(
                ", and the files here, of which {} were edited since, such as {}",
                edited.len(),
                edited[0]
            );
        }
        let Some(theirs) = theirs else {
            basis += "; the primary does not tell which revisions it has";
            return Ok(foreseen(None, basis));
        };
        let lone = lone(&ours, &theirs);
        let mut salvaged = edited_bytes;
        for revision in &lone {
            let bytes = place.history.weigh(revision.number, revision.digest)?;
            salvaged = salvaged.saturating_add(bytes);
        }
        basis += &match lone.as_slice() {
            [] => ", and its history, which has all that is in this node's".to_owned(),
            lone => format!(", and its history, which never had {} here", named(lone)),
        };
        Ok(foreseen(Some(salvaged), basis))
    }

    /// Makes this node's files those of the primary's newest revision. What the primary never had is taken off
    /// the history first, and kept.
    pub(super) async fn rejoin_from(
        &self,
        primary: &PeerClient,
    ) -> Result<(Pulled, Rejoined), PullError> {
        let theirs = self.theirs(primary).await?;
        let mut paths: Vec<PathBuf> = Vec::new();
        let mut told: Vec<String> = Vec::new();
        let mut bytes = 0_u64;
        {
            let mut place = self.place().await;
            let ours = place.history.list()?;
            let lone = theirs.as_ref().map(|theirs| lone(&ours, theirs));
            let lone: Vec<RevisionSummary> = lone.into_iter().flatten().cloned().collect();
            for revision in &lone {
                let (number, digest) = (revision.number, revision.digest);
                let (path, length) = place
                    .work(move |_, history| Ok(history.set_aside(number, digest)?))
                    .await?;
                paths.push(path);
                bytes = bytes.saturating_add(length);
            }
            if !lone.is_empty() {
                let all: Vec<&RevisionSummary> = lone.iter().collect();
                told.push(format!("{}, which the primary never had", named(&all)));
            }
        }
        let pull = self.pull_whole(primary).await?;
        if let Some(first) = pull.applied.kept.first() {
            for path in &pull.applied.kept {
                bytes = bytes.saturating_add(path.metadata().map_or(0, |found| found.len()));
            }
            told.push(format!(
                "{} files that were edited here, such as {}",
                pull.applied.kept.len(),
                first.display()
            ));
        }
        let method = match &pull.pulled {
            Pulled::Current if pull.applied.changed.is_empty() => Method::Equal,
            Pulled::Current | Pulled::Applied { .. } | Pulled::Refused { .. } => Method::Replaced,
        };
        let mut rejoined = Rejoined {
            travelled: Some(pull.travelled),
            ..Rejoined::by(method)
        };
        if !told.is_empty() {
            let folder = self.history().folder().to_owned();
            let path = match paths.as_slice() {
                [one] if pull.applied.kept.is_empty() => one.clone(),
                _ => folder,
            };
            let summary = told.join("; ");
            self.events().record(
                Severity::Warning,
                "settings_kept",
                format!(
                    "what only this node had of the settings is kept in {}: {summary}",
                    path.display()
                ),
            );
            rejoined.salvaged = Some(Salvaged {
                path,
                bytes,
                summary,
                is_complete: true,
            });
        }
        Ok((pull.pulled, rejoined))
    }
}

/// Returns the files that only this node has, and how long they are together: what neither the revision that
/// it has applied nor the primary's newest knows. `newest` is as it came; nothing if the two are one.
async fn edited(place: &mut Place, newest: Vec<u8>) -> Result<(Vec<String>, u64), PullError> {
    place
        .work(move |scope, history| {
            let mut known = Vec::new();
            if let Some(applied) = history.applied()? {
                known.push(history.load(applied.number, applied.digest)?);
            }
            // One that is no revision is refused by the pull, which says why.
            if !newest.is_empty() {
                known.extend(Revision::decode(&newest).ok());
            }
            let captured = match capture(scope) {
                Ok(captured) => captured.entries,
                // Nothing is there that could be lost.
                Err(CaptureError::Vanished { .. }) => return Ok((Vec::new(), 0)),
                Err(source) => return Err(InstallError::from(source).into()),
            };
            let found = only_here(&captured, &known);
            let bytes = found.iter().map(|(_, entry)| entry.bytes()).sum();
            Ok((
                found.iter().map(|(path, _)| path.to_string()).collect(),
                bytes,
            ))
        })
        .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use understudy_replication::epoch::Epoch;
    use understudy_replication::wall_time::WallTime;

    /// Returns revisions of these numbers whose contents are told apart by a letter.
    fn history(of: &[(u64, char)]) -> Vec<RevisionSummary> {
        let summary = |(number, content): &(u64, char)| RevisionSummary {
            number: *number,
            epoch: Epoch::first("a".parse().unwrap()),
            time: WallTime(*number),
            digest: {
                let hash = blake3::hash(content.to_string().as_bytes()).to_hex();
                serde_json::from_str(&format!("\"blake3:{hash}\"")).unwrap()
            },
            entries: 1,
            bytes: 10,
        };
        of.iter().map(summary).collect()
    }

    fn numbers(ours: &[(u64, char)], theirs: &[(u64, char)]) -> Vec<u64> {
        let (ours, theirs) = (history(ours), history(theirs));
        lone(&ours, &theirs).iter().map(|it| it.number).collect()
    }

    #[test]
    fn what_the_primary_never_had_is_behind_the_newest_revision_that_both_have() {
        let ours = [(1, 'a'), (2, 'b')];
        assert_eq!(numbers(&ours, &[(1, 'a'), (2, 'x')]), [2]);
        // Its numbers went on: what lies below them has not become a part of its history.
        assert_eq!(numbers(&ours, &[(1, 'a'), (2, 'x'), (3, 'y')]), [2]);
        assert_eq!(numbers(&ours, &[(1, 'a')]), [2]);
        assert!(numbers(&ours, &[(1, 'a'), (2, 'b'), (3, 'c')]).is_empty());
        // A standby gets the newest only: what it never got lies before what both have.
        assert!(numbers(&[(1, 'a'), (2, 'b'), (3, 'c')], &[(1, 'a'), (3, 'c')]).is_empty());
    }

    #[test]
    fn what_the_primary_has_under_another_number_or_let_go_is_not_lost() {
        assert!(numbers(&[(1, 'a'), (2, 'b')], &[(1, 'a'), (2, 'x'), (3, 'b')]).is_empty());
        assert!(numbers(&[(1, 'a'), (2, 'b')], &[(900, 'x'), (901, 'y')]).is_empty());
        assert_eq!(numbers(&[(1, 'a')], &[]), [1]);
    }
}
