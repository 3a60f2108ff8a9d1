//! The copy: its tree, its ledger, and the log of what was received.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use understudy_config::StoreName;
use understudy_replication::files::{Blocks, Head, Ledger};
use understudy_replication::log::Log;
use understudy_replication::position::Position;

use super::doubt::Doubt;
use super::error::FilesError;
use super::leftovers::Leftovers;
use super::tree::{BULK, Tree};

pub(super) struct Replica {
    pub(super) path: PathBuf,
    state: PathBuf,
    pub(super) ledger: Ledger,
    /// Written by the logger, released by the applier.
    pub(super) log: SharedLog,
    /// What is to go and is still there.
    pub(super) leftovers: Leftovers,
    /// Opened when it is needed: a standby whose disk is missing still answers.
    pub(super) tree: Option<Tree>,
    blocks: Option<Arc<Blocks>>,
    pub(super) doubt: Doubt,
}

/// The log; locked for one call at a time.
#[derive(Clone)]
pub(super) struct SharedLog(Arc<Mutex<Log>>);

impl SharedLog {
    pub(super) fn lock(&self) -> MutexGuard<'_, Log> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Replica {
    pub(super) fn open(store: &StoreName, path: &Path, state: &Path) -> Result<Self, FilesError> {
        let mut ledger = Ledger::open(state, store)?;
        let (mut log, damage) = Ledger::open_log(state, store)?;
        if let Some(head) = ledger.head().map(|head| head.position) {
            if damage.is_some() {
                // What was acknowledged may be gone: the copy has to be compared.
                ledger.forget_head()?;
            } else if log.end() < head {
                // The log is emptied when a copy is made or taken over. A crash in the middle of that
                // leaves one that ends before the manifest, which has had everything that was in it.
                log.reset(head)?;
            }
        }
        ledger.damage.extend(damage);
        let leftovers = match Leftovers::load(state)? {
            Some(leftovers) => leftovers,
            None => {
                ledger.forget_head()?;
                let damage = "the list of what is to be removed from the copy is damaged, and the copy is compared \
                              whole";
                ledger.damage.push(damage.to_owned());
                Leftovers::default()
            }
        };
        Ok(Self {
            path: path.to_owned(),
            state: state.to_owned(),
            ledger,
            log: SharedLog(Arc::new(Mutex::new(log))),
            leftovers,
            tree: None,
            blocks: None,
            doubt: Doubt::open(state),
        })
    }

    /// Returns whether the copy is what the manifest says.
    pub(super) fn is_whole(&self) -> bool {
        self.awaited_count() == 0 && !self.doubt.is_there()
    }

    /// Doubts from now on that the copy is what the manifest says.
    pub(super) fn raise_doubt(&mut self) -> Result<(), FilesError> {
        let raised = self.doubt.raise();
        raised.map_err(FilesError::tree("keep a doubt in", &self.state))
    }

    /// Ends the doubt, unless there was a further reason for it since this one, and keeps that the copy is
    /// whole if it is. Returns whether it has ended.
    pub(super) fn end_doubt(&mut self, reasons: u64) -> Result<bool, FilesError> {
        let ended = self.doubt.end(reasons);
        let ended = ended.map_err(FilesError::tree("end a doubt in", &self.state))?;
        if ended {
            self.commit_learned(Vec::new())?;
        }
        Ok(ended)
    }

    /// Returns up to where the copy is whole.
    pub(super) fn complete(&self) -> Option<Position> {
        let head = self.ledger.head()?;
        if self.is_whole() {
            return Some(head.position);
        }
        (head.complete.0 > 0).then_some(head.complete)
    }

    /// Returns how many entries are not as they should be: to come, or to go.
    pub(super) fn awaited_count(&self) -> usize {
        let to_come = self.ledger.manifest.awaited_count();
        to_come.saturating_add(self.leftovers.count())
    }

    pub(super) fn store_leftovers(&mut self) -> Result<(), FilesError> {
        self.leftovers.store(&self.state)
    }

    pub(super) fn open_tree(&mut self) -> Result<(), FilesError> {
        if self
            .tree
            .as_ref()
            .is_some_and(|tree| tree.root().is_in_place())
        {
            return Ok(());
        }
        let tree = Tree::open(&self.path).map_err(FilesError::tree("open", &self.path))?;
        self.tree = Some(tree);
        Ok(())
    }

    pub(super) fn tree(&self) -> Result<&Tree, FilesError> {
        self.tree.as_ref().ok_or(FilesError::Broken)
    }

    /// Returns the outboards, which a node has open only while it works on the copy.
    pub(super) fn blocks(&mut self) -> Arc<Blocks> {
        let state = &self.state;
        let blocks = self
            .blocks
            .get_or_insert_with(|| Arc::new(Blocks::open(state)));
        blocks.clone()
    }

    /// Lets go of all that is open but the ledger.
    pub(super) fn close(&mut self) {
        self.tree = None;
        self.blocks = None;
    }

    /// Removes what earlier attempts have staged, but for what is still awaited.
    pub(super) fn clear_staging(&self) -> Result<(), FilesError> {
        let manifest = &self.ledger.manifest;
        let awaited: std::collections::BTreeSet<String> = manifest
            .awaited()
            .filter_map(|id| manifest.content(id))
            .map(|(_, hash)| bulk_name(hash))
            .collect();
        let cleared = self.tree()?.clear_staging(|name| awaited.contains(name));
        cleared.map_err(FilesError::tree("clear the staging of", &self.path))
    }

    /// Keeps what was learned of paths, and that nothing is awaited any more if that is so.
    pub(super) fn commit_learned(
        &mut self,
        learned: Vec<(
            understudy_replication::files::RelPath,
            understudy_replication::files::Local,
        )>,
    ) -> Result<(), FilesError> {
        let Some(head) = self.ledger.head().cloned() else {
            return Ok(());
        };
        self.ledger.learned(learned)?;
        if self.is_whole() && head.complete != head.position {
            let complete = head.position;
            self.ledger
                .commit(&[], Vec::new(), Head { complete, ..head })?;
        }
        Ok(self.ledger.sync()?)
    }
}

/// The name under which a content is staged that was asked for by itself.
pub(super) fn bulk_name(hash: understudy_replication::files::Digest) -> String {
    format!(
        "{BULK}{}",
        blake3::Hash::from_bytes(*hash.as_bytes()).to_hex()
    )
}
