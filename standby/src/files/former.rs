//! A node that was primary: what a seeding would do to its tree, and what is kept of it.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use understudy_replication::epoch::Epoch;
use understudy_replication::files::{Manifest, Root};
use understudy_replication::position::Position;
use understudy_replication::rejoin::{Foreseen, Salvaged, Way};
use understudy_replication::transport::PeerClient;

use super::error::FilesError;
use super::foresee::{Foresight, Sums, deleted};
use super::kept::{Counts, Finding, Keeping};
use super::origin::Origin;
use super::seed::{holds_nothing, snapshot};
use super::{Inner, Wanted, blocking};

/// What a node that was primary keeps, and under which name.
#[derive(Clone)]
pub(super) struct Former {
    name: String,
    /// When it last changed the tree, and where it was then.
    was: (Epoch, Position),
}

impl Former {
    pub(super) fn new(name: String) -> Result<Self, FilesError> {
        Ok(Self {
            was: parse_kept(&name).ok_or(FilesError::Broken)?,
            name,
        })
    }

    /// Gives what was set aside its name, when nothing is moved any more.
    pub(super) fn finish(
        self,
        inner: &Inner,
        superseded_by: Epoch,
    ) -> Result<Option<Salvaged>, FilesError> {
        let keeping = self.keeping(inner);
        keeping.finish(&inner.id.name, self.was, superseded_by)
    }

    fn keeping(&self, inner: &Inner) -> Keeping {
        let kept = inner.root.join(".understudy/kept").join(&self.name);
        Keeping::new(&inner.state, &inner.id.name, &self.name, kept)
    }

    /// Writes down what is about to be set aside, or changed without that.
    pub(super) fn note(
        &self,
        inner: &Inner,
        target: &Manifest,
        is_left: &AtomicBool,
    ) -> Result<(), FilesError> {
        let keeping = self.keeping(inner);
        keeping.write_down(|told| compare(inner, target, is_left, told))?;
        Ok(())
    }
}

/// Compares the tree with the primary's list, and changes nothing.
fn compare(
    inner: &Inner,
    target: &Manifest,
    is_left: &AtomicBool,
    told: &mut dyn FnMut(Finding) -> Result<(), FilesError>,
) -> Result<Sums, FilesError> {
    let replica = inner.replica();
    let root = Root::open(&inner.root).map_err(FilesError::tree("open", &inner.root))?;
    let foresight = Foresight {
        root: &root,
        known: &replica.ledger.manifest,
        target,
        exclude: &inner.exclude,
        deleted: &deleted(&replica, target),
        is_left,
        sums: Sums::default(),
    };
    foresight.run(told)
}

/// Tells what a seeding would do; `None` while the copy is followed.
pub(super) async fn foresee(
    inner: &Arc<Inner>,
    primary: &PeerClient,
) -> Result<Option<Foreseen>, FilesError> {
    let Ok(work) = inner.work_lock.clone().try_lock_owned() else {
        return Ok(None);
    };
    let (_wanted, is_left) = Wanted::new();
    let (target, _, _) = snapshot(inner, primary).await?;
    let inner = inner.clone();
    let foreseen = blocking(move || {
        let _held = work;
        inner.reload_if_suspect()?;
        let origin = Origin::load(&inner.state)?;
        let was_held = inner.replica().ledger.head().is_some();
        let is_empty = holds_nothing(&inner.root)?;
        if !is_empty && origin.is_none() && !was_held {
            return Err(FilesError::NotEmpty {
                store: inner.id.name.clone(),
                path: inner.root.clone(),
            });
        }
        let was_primary = origin.map_or(was_held, |origin| origin.kept.is_some());
        if is_empty {
            let mut foreseen =
                Foreseen::follows(target.bytes(), "the primary's list: nothing is here");
            foreseen.way = Way::Seeded;
            return Ok(foreseen);
        }
        let mut counts = Counts::default();
        let sums = compare(&inner, &target, &is_left, &mut |finding| {
            counts.add(finding.what);
            Ok(())
        })?;
        Ok(Foreseen {
            way: Way::Compared,
            salvaged_bytes: Some(if was_primary { sums.aside } else { 0 }),
            travelling_bytes: Some(sums.travelling),
            read_bytes: sums.read,
            basis: format!(
                "the primary's list compared with this tree: {} files differ, {} are only here, {} were deleted \
                 here, {} have other attributes",
                counts.differing, counts.only_here, counts.deleted_here, counts.attributes
            ),
        })
    });
    Ok(Some(foreseen.await?))
}

/// Returns the epoch and the position of which the name of what is kept is made.
fn parse_kept(name: &str) -> Option<(Epoch, Position)> {
    let (epoch, position) = name.rsplit_once('-')?;
    Some((epoch.parse().ok()?, Position(position.parse().ok()?)))
}
