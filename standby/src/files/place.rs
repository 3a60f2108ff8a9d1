//! Doing one planned batch in the tree.
//!
//! A batch that was begun before a crash is done again from its beginning, and whatever of it has been
//! done already is found to be so: what comes from the log is simply put again; what is moved is known
//! by its inode, wherever it is by then.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use understudy_replication::files::{
    Blocks, Content, Digest, Entry, Identity, Kind, Known, Local, Manifest, NodeId, OUTBOARD_FROM,
    Operation, Patch, RelPath, identity, stat_in,
};

use super::content;
use super::error::{FilesError, Setback};
use super::leftovers::Leftovers;
use super::patching::{Literal, Patching, may_be_in_place, may_be_lengthened};
use super::plan::{Before, Logged, Plan, staged_name};
use super::trash::{Trash, put_extra};
use super::tree::{Guarded, Tree, is_absent};

/// Up to this many files are synced one by one. Syncing the file system writes everybody's data.
pub(super) const SYNCED_SINGLY_MAX: usize = 16;

/// An entry that could not be brought up to date, and why.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) path: RelPath,
    pub(super) hash: Option<Digest>,
    pub(super) reason: String,
}

/// Does batches in the tree.
pub(super) struct Placing<'a> {
    pub(super) tree: &'a Tree,
    pub(super) blocks: &'a Blocks,
    /// Where what is deleted goes.
    pub(super) trash: &'a mut Trash,
    /// The batch may have been begun before.
    pub(super) is_redo: bool,
    /// What can be read is what is on the disk: not after the kernel has failed to write.
    pub(super) is_trusted: bool,
    pub(super) failed: Vec<Failed>,
    /// What could not be taken away.
    pub(super) leftovers: Leftovers,
    /// Outboards that nothing needs any more.
    pub(super) stale: Vec<(u64, Digest)>,
    /// Staged files that nothing needs any more.
    pub(super) used: Vec<String>,
    guarded: Guarded,
    parents: Parents,
    puts: Vec<(RelPath, Local)>,
    /// What cannot be told to be what it should be, with all beneath it.
    doubtful: Vec<RelPath>,
    /// Something failed, or was not where it should be: more than what is known of may be otherwise.
    pub(super) has_doubt: bool,
}

/// The directory that was acted in last: what follows often lies in the same.
#[derive(Default)]
struct Parents(Option<(Option<RelPath>, OwnedFd)>);

impl Parents {
    fn of(&mut self, tree: &Tree, path: &RelPath) -> std::io::Result<BorrowedFd<'_>> {
        let above = path.parent();
        if self.0.as_ref().is_none_or(|(held, _)| *held != above) {
            self.0 = Some((above, tree.root().parent(path)?));
        }
        let (_, fd) = self.0.as_ref().expect("it was just opened");
        Ok(fd.as_fd())
    }
}

impl<'a> Placing<'a> {
    pub(super) fn new(
        tree: &'a Tree,
        blocks: &'a Blocks,
        trash: &'a mut Trash,
        (is_redo, is_trusted): (bool, bool),
    ) -> Self {
        Self {
            tree,
            blocks,
            trash,
            is_redo,
            is_trusted,
            failed: Vec::new(),
            leftovers: Leftovers::default(),
            stale: Vec::new(),
            used: Vec::new(),
            guarded: Guarded::new(),
            parents: Parents::default(),
            puts: Vec::new(),
            doubtful: Vec::new(),
            has_doubt: false,
        }
    }

    fn place(&self, path: &RelPath) -> PathBuf {
        self.tree.root().path().join(path.as_path())
    }

    /// Does what a planned batch says, and returns what was learned of how paths look.
    pub(super) fn perform(
        &mut self,
        manifest: &mut Manifest,
        logged: &mut Logged,
        plan: &Plan,
    ) -> Result<Vec<(RelPath, Local)>, FilesError> {
        self.guarded = plan.guarded();
        self.parents = Parents::default();
        self.puts.clear();
        let mut missing = BTreeSet::new();
        let copies = self.make_first(logged, plan)?;
        let operations = std::mem::take(&mut logged.batch.operations);
        for ((index, operation), before) in (0_u32..).zip(&operations).zip(&plan.before) {
            let done = self.perform_one(logged, (index, operation), before, &copies);
            self.leftovers.follow(operation);
            match done {
                Ok(Some(local)) => self.puts.push((operation.path().clone(), local)),
                Ok(None) => {}
                Err(Setback::Store(error)) => return Err(error),
                Err(Setback::Entry(reason)) => {
                    self.leftovers.left_by(operation);
                    let path = operation.path().clone();
                    let hash = match operation {
                        Operation::Put { entry, .. } => {
                            // Done again, it may lie in what is no directory by now, and rightly so.
                            self.has_doubt |= !self.is_redo;
                            self.puts.push((path.clone(), Local::Awaited));
                            entry.content().map(|(_, hash)| hash)
                        }
                        // It is left over, and nothing follows from that.
                        Operation::Delete { .. } => None,
                        Operation::Move { .. } | Operation::Swap { .. } => {
                            self.has_doubt = true;
                            None
                        }
                    };
                    missing.insert(path.clone());
                    self.failed.push(Failed { path, hash, reason });
                }
            }
        }
        logged.batch.operations = operations;
        let mut learned = Vec::new();
        for (path, local) in std::mem::take(&mut self.puts) {
            if let Some(id) = manifest.lookup(&path) {
                manifest.learn(id, local);
                learned.push((path, local));
            }
        }
        self.has_doubt |= !self.doubtful.is_empty();
        for path in std::mem::take(&mut self.doubtful) {
            if let Some(id) = manifest.lookup(&path) {
                lose(manifest, id, &mut learned);
            }
        }
        self.look_again(manifest, plan, &mut learned)?;
        await_unknown(manifest, logged, &mut learned);
        for path in missing {
            self.lose_parents(manifest, &path, &mut learned)?;
        }
        Ok(learned)
    }

    fn perform_one(
        &mut self,
        logged: &mut Logged,
        (index, operation): (u32, &Operation),
        before: &Before,
        copies: &BTreeMap<u32, String>,
    ) -> Result<Option<Local>, Setback> {
        match (operation, before) {
            (
                Operation::Put {
                    path,
                    entry,
                    content,
                },
                Before::Put { was, source },
            ) => {
                self.note_stale(entry, was.as_deref());
                let was_seen = was.as_ref().and_then(|was| was.local.seen());
                self.let_go(was_seen.map(|seen| seen.inode));
                let local = match (&entry.kind, content) {
                    (Kind::Directory, _) => self.put_shape(path, entry)?,
                    (Kind::Symlink { .. }, _) => self.put_shape(path, entry)?,
                    (Kind::File { .. }, _) if logged.awaited.contains(&index) => Local::Awaited,
                    (Kind::File { .. }, Content::Same) => {
                        self.put_same(path, entry, was.as_deref())?
                    }
                    (Kind::File { .. }, Content::Whole) => {
                        let literal = logged.contents.remove(&index);
                        let staged = staged_name(logged.batch.start, index);
                        self.put_whole(path, entry, literal, staged)?
                    }
                    (Kind::File { .. }, Content::Patch(patch)) => {
                        if copies.contains_key(&index) {
                            let made = self.put_copy(path, entry, copies.get(&index))?;
                            return Ok(Some(made));
                        }
                        let literal = logged.contents.remove(&index);
                        let staged = staged_name(logged.batch.start, index);
                        self.put_patch(path, entry, patch, literal, staged, was.as_deref())?
                    }
                    (Kind::File { .. }, Content::Copy(_)) => {
                        self.put_copy(path, entry, copies.get(&index))?
                    }
                    (Kind::File { .. }, Content::Link(from)) => {
                        self.put_link(path, entry, from, source.as_deref())?
                    }
                };
                Ok(Some(local))
            }
            (Operation::Delete { path }, Before::Delete { was }) => {
                self.delete(path, *was, index)?;
                Ok(None)
            }
            (Operation::Move { from, to }, Before::Move { inode, replaced }) => {
                self.let_go(*replaced);
                self.move_one(from, to, *inode)?;
                Ok(None)
            }
            (Operation::Swap { a, b }, Before::Swap { a: one, b: other }) => {
                self.swap(a, b, (*one, *other))?;
                Ok(None)
            }
            (
                Operation::Put { .. }
                | Operation::Delete { .. }
                | Operation::Move { .. }
                | Operation::Swap { .. },
                _,
            ) => Err(FilesError::Broken.into()),
        }
    }

    /// What has come to its place may be replaced there.
    fn let_go(&mut self, inode: Option<u64>) {
        if let Some(inode) = inode {
            self.guarded.remove(&inode);
        }
    }

    fn note_stale(&mut self, entry: &Entry, was: Option<&Known>) {
        if let Some((size, hash)) = was.and_then(|was| was.entry.content())
            && size >= OUTBOARD_FROM
            && entry.content() != Some((size, hash))
        {
            self.stale.push((size, hash));
        }
    }

    /// Puts a directory or a link.
    pub(super) fn put_shape(&mut self, path: &RelPath, entry: &Entry) -> Result<Local, Setback> {
        let place = self.place(path);
        let parent = self
            .parents
            .of(self.tree, path)
            .map_err(Setback::at("find", &place))?;
        let placed = match &entry.kind {
            Kind::Directory => self
                .tree
                .place_directory(parent, path, entry, &self.guarded),
            Kind::Symlink { target } => {
                self.tree
                    .place_symlink(parent, path, entry, target, &self.guarded)
            }
            Kind::File { .. } => Err(std::io::ErrorKind::InvalidInput.into()),
        };
        Ok(Local::Seen(placed.map_err(Setback::at("make", &place))?))
    }

    /// The content stays; all else is set.
    fn put_same(
        &mut self,
        path: &RelPath,
        entry: &Entry,
        was: Option<&Known>,
    ) -> Result<Local, Setback> {
        let place = self.place(path);
        let found = self.tree.look(path).map_err(Setback::at("read", &place))?;
        let seen = was.and_then(|was| was.local.seen());
        let is_known = match (found, seen) {
            (Some(found), Some(seen)) => {
                found == seen
                    || self.is_redo
                        && found.inode == seen.inode
                        && found.size == seen.size
                        && [seen.mtime_ns, entry.mtime_ns].contains(&found.mtime_ns)
            }
            (Some(_) | None, _) => false,
        };
        if is_known {
            let dressed = self.tree.dress(path, entry);
            return Ok(Local::Seen(dressed.map_err(Setback::at("change", &place))?));
        }
        if was.is_some_and(|was| was.local.is_awaited()) {
            return Ok(Local::Awaited);
        }
        self.adopt(path, entry)
    }

    /// Uses the file that is there, if it holds what it should.
    pub(super) fn adopt(&self, path: &RelPath, entry: &Entry) -> Result<Local, Setback> {
        let Some((size, hash)) = entry.content() else {
            return Ok(Local::Awaited);
        };
        if !self.is_trusted {
            return Ok(Local::Awaited);
        }
        let place = self.place(path);
        let verified = self.tree.verify(path, size, hash);
        if verified.map_err(Setback::at("read", &place))?.is_none() {
            return Ok(Local::Awaited);
        }
        // Its attributes would be those of the other names, which are to be another file by now.
        let shared = self.tree.is_shared(path);
        if entry.link == 0 && shared.map_err(Setback::at("read", &place))? {
            return Ok(Local::Awaited);
        }
        let dressed = self.tree.dress(path, entry);
        Ok(Local::Seen(dressed.map_err(Setback::at("change", &place))?))
    }

    fn put_whole(
        &mut self,
        path: &RelPath,
        entry: &Entry,
        literal: Option<Vec<u8>>,
        staged: String,
    ) -> Result<Local, Setback> {
        let place = self.place(path);
        let size = entry.content().map_or(0, |(size, _)| size);
        let literal = literal.unwrap_or_default();
        let is_inline = u64::try_from(literal.len()) == Ok(size);
        let file = if is_inline {
            let file = self
                .tree
                .stage("put")
                .map_err(Setback::at("stage", &place))?;
            (&file)
                .write_all(&literal)
                .map_err(Setback::at("write", &place))?;
            file
        } else {
            match self
                .tree
                .staged(&staged)
                .map_err(Setback::at("open", &place))?
            {
                Some(file) => file,
                // It was renamed into its place by an attempt before.
                None => return self.adopt(path, entry),
            }
        };
        let name = if is_inline { "put" } else { staged.as_str() };
        self.put_staged(path, entry, name, &file)
    }

    /// Puts a staged file whose content has been checked.
    pub(super) fn put_staged(
        &mut self,
        path: &RelPath,
        entry: &Entry,
        name: &str,
        file: &std::fs::File,
    ) -> Result<Local, Setback> {
        let place = self.place(path);
        let parent = self
            .parents
            .of(self.tree, path)
            .map_err(Setback::at("find", &place))?;
        let placed = self
            .tree
            .place_file((name, file), parent, path, entry, &self.guarded);
        Ok(Local::Seen(placed.map_err(Setback::at("write", &place))?))
    }

    fn put_patch(
        &mut self,
        path: &RelPath,
        entry: &Entry,
        patch: &Patch,
        literal: Option<Vec<u8>>,
        staged: String,
        was: Option<&Known>,
    ) -> Result<Local, Setback> {
        let place = self.place(path);
        let literal = literal.unwrap_or_default();
        let literal = if u64::try_from(literal.len()) == Ok(patch.literal_bytes()) {
            Literal::Memory(literal)
        } else {
            match self
                .tree
                .staged(&staged)
                .map_err(Setback::at("open", &place))?
            {
                Some(file) => {
                    self.used.push(staged);
                    Literal::Staged(file)
                }
                None => return self.adopt(path, entry),
            }
        };
        let patching = Patching {
            tree: self.tree,
            blocks: self.blocks,
            patch,
            literal,
            path,
            entry,
            was,
            is_redo: self.is_redo,
            is_trusted: self.is_trusted,
        };
        let parent = self
            .parents
            .of(self.tree, path)
            .map_err(Setback::at("find", &place))?;
        let placed = patching.place(parent, &self.guarded);
        let placed = placed.map_err(Setback::at("patch", &place))?;
        Ok(placed.map_or(Local::Awaited, Local::Seen))
    }

    /// Makes what the batch makes of files that are there, before it changes anything, and makes that
    /// durable, all at once: what it was made of may be gone when the batch has to be done again.
    fn make_first(
        &self,
        logged: &mut Logged,
        plan: &Plan,
    ) -> Result<BTreeMap<u32, String>, FilesError> {
        let mut made = BTreeMap::new();
        let mut files = Vec::new();
        let Logged {
            batch,
            contents,
            awaited,
        } = logged;
        for ((index, operation), before) in (0_u32..).zip(&batch.operations).zip(&plan.before) {
            let Operation::Put {
                path,
                entry,
                content: content @ (Content::Copy(_) | Content::Patch(_)),
            } = operation
            else {
                continue;
            };
            let Some((size, hash)) = entry.content().filter(|_| !awaited.contains(&index)) else {
                continue;
            };
            if self.is_redo
                && self.is_trusted
                && self
                    .tree
                    .verify(path, size, hash)
                    .is_ok_and(|held| held.is_some())
            {
                continue;
            }
            let name = format!("made-{index}");
            let done = match content {
                Content::Copy(from) => {
                    let staged = self.tree.stage(&name);
                    let staged = staged.map_err(FilesError::tree("stage", self.place(path)))?;
                    copy(self.tree, self.blocks, from, &staged, (size, hash))
                        .map(|is_right| is_right.then_some(staged))
                }
                // A change in place, or of much, is made when its turn comes.
                Content::Patch(patch)
                    if may_be_in_place(patch, size)
                        || may_be_lengthened(patch, entry, self.is_trusted)
                        || (patch.literal_bytes() > 0 && !contents.contains_key(&index)) =>
                {
                    continue;
                }
                Content::Patch(patch) => {
                    let was = match before {
                        Before::Put { was, .. } => was.as_deref(),
                        Before::Delete { .. } | Before::Move { .. } | Before::Swap { .. } => None,
                    };
                    let literal = contents.remove(&index).unwrap_or_default();
                    let patching = Patching {
                        tree: self.tree,
                        blocks: self.blocks,
                        patch,
                        literal: Literal::Memory(literal),
                        path,
                        entry,
                        was,
                        is_redo: self.is_redo,
                        is_trusted: self.is_trusted,
                    };
                    let staged = self.tree.stage(&name);
                    let staged = staged.map_err(FilesError::tree("stage", self.place(path)))?;
                    let built = patching.build_beside(&staged, (size, hash));
                    if !matches!(built, Ok(true))
                        && let Literal::Memory(literal) = patching.literal
                    {
                        // It may be there when its turn comes: a move can bring it.
                        contents.insert(index, literal);
                    }
                    built.map(|is_right| is_right.then_some(staged))
                }
                Content::Same | Content::Whole | Content::Link(_) => continue,
            };
            match done {
                Ok(Some(staged)) => {
                    made.insert(index, name);
                    if files.len() <= SYNCED_SINGLY_MAX {
                        files.push(staged);
                    }
                }
                Ok(None) => self.tree.unstage(&name),
                Err(error) if super::error::concerns_all(&error) => {
                    return Err(FilesError::tree("make", self.place(path))(error));
                }
                Err(error) => {
                    tracing::debug!(%path, %error, "cannot be made here, and is asked for");
                    self.tree.unstage(&name);
                }
            }
        }
        if made.len() > SYNCED_SINGLY_MAX {
            let synced = self.tree.sync();
            synced.map_err(FilesError::tree("sync", self.tree.root().path()))?;
        } else {
            for file in files {
                let synced = file.sync_data();
                synced.map_err(FilesError::tree("sync", self.tree.root().path()))?;
            }
        }
        Ok(made)
    }

    fn put_copy(
        &mut self,
        path: &RelPath,
        entry: &Entry,
        copied: Option<&String>,
    ) -> Result<Local, Setback> {
        let place = self.place(path);
        let Some(name) = copied else {
            return self.adopt(path, entry);
        };
        let staged = self
            .tree
            .staged(name)
            .map_err(Setback::at("open", &place))?;
        let file = staged.ok_or(FilesError::Broken)?;
        self.put_staged(path, entry, name, &file)
    }

    /// One more name of a file.
    pub(super) fn put_link(
        &mut self,
        path: &RelPath,
        entry: &Entry,
        from: &RelPath,
        source: Option<&Known>,
    ) -> Result<Local, Setback> {
        // What the other name holds is believed to be what this one should hold.
        if source.is_none_or(|source| source.entry.content() != entry.content()) {
            return Ok(Local::Awaited);
        }
        let place = self.place(path);
        let just_put = self.puts.iter().rev().find(|(put, _)| put == from);
        let local = just_put
            .map(|(_, local)| *local)
            .or(source.map(|source| source.local));
        let expected = match local {
            Some(Local::Seen(identity)) => Some(identity.inode),
            Some(Local::Unknown) => None,
            Some(Local::Awaited) | None => return Ok(Local::Awaited),
        };
        let look = |path: &RelPath| self.tree.look(path).map_err(Setback::at("read", &place));
        let is_it = |found: Option<Identity>| {
            expected.is_some() && found.map(|found| found.inode) == expected
        };
        if !is_it(look(path)?) {
            if !is_it(look(from)?) {
                let (size, hash) = entry.content().ok_or(FilesError::Broken)?;
                let verified = self.tree.verify(from, size, hash);
                if verified.map_err(Setback::at("read", &place))?.is_none() {
                    return Ok(Local::Awaited);
                }
            }
            let parent = self
                .parents
                .of(self.tree, path)
                .map_err(Setback::at("find", &place))?;
            let linked = self.tree.place_link(from, parent, path, &self.guarded);
            linked.map_err(Setback::at("link", &place))?;
        }
        let dressed = self.tree.dress(path, entry);
        Ok(Local::Seen(dressed.map_err(Setback::at("change", &place))?))
    }

    fn delete(&mut self, path: &RelPath, was: Option<u64>, index: u32) -> Result<(), Setback> {
        let place = self.place(path);
        let parent = match self.parents.of(self.tree, path) {
            Ok(parent) => parent,
            Err(error) if is_absent(&error) => return Ok(()),
            Err(error) => return Err(Setback::at_leaving("find", &place)(error)),
        };
        let found = match stat_in(parent, path.name()) {
            Ok(found) => identity(&found),
            Err(error) if is_absent(&error) => return Ok(()),
            Err(error) => return Err(Setback::at_leaving("read", &place)(error)),
        };
        // What an operation further on has moved there is not what is to be deleted.
        if self.is_redo && was != Some(found.inode) && self.guarded.contains(&found.inode) {
            return Ok(());
        }
        let removed = self.trash.put(self.tree, parent, path, index);
        removed.map_err(Setback::at_leaving("remove", &place))?;
        // It may have been the directory that is held open.
        self.parents = Parents::default();
        Ok(())
    }

    fn move_one(
        &mut self,
        from: &RelPath,
        to: &RelPath,
        inode: Option<u64>,
    ) -> Result<(), Setback> {
        let place = self.place(to);
        self.parents = Parents::default();
        let look = |path: &RelPath| {
            self.tree
                .look(path)
                .map_err(Setback::at_leaving("find", &place))
        };
        let (source, target) = (look(from)?, look(to)?);
        let is_it =
            |found: Option<Identity>| inode.is_some() && found.map(|found| found.inode) == inode;
        let is_to_do = match inode {
            Some(_) if is_it(target) => {
                let is_again = self.is_redo
                    && source.is_some_and(|found| !self.guarded.contains(&found.inode));
                if is_it(source) {
                    // Both are names of one file, which a rename would leave as they are.
                    let removed = self.tree.remove(from);
                    removed.map_err(Setback::at_leaving("remove", &place))?;
                } else if is_again {
                    // An operation before this one has put it there again; an empty directory at most,
                    // since what it held has been moved along.
                    self.tree
                        .remove_if_empty(from)
                        .map_err(Setback::at_leaving("remove", &place))?;
                }
                false
            }
            Some(_) => is_it(source),
            // Never seen here: it is known by its name alone. If something is at both, an attempt before may
            // have moved it, and an operation further on have put the other there, which it does again.
            None if self.is_redo && source.is_some() && target.is_some() => {
                if source.is_some_and(|found| !self.guarded.contains(&found.inode)) {
                    let parent = self.parents.of(self.tree, from);
                    let parent = parent.map_err(Setback::at_leaving("find", &place))?;
                    // Kept whatever is set: it may be all that is left of it.
                    let removed = put_extra(self.tree, parent, from);
                    removed.map_err(Setback::at_leaving("remove", &place))?;
                    self.parents = Parents::default();
                }
                self.doubtful.push(to.clone());
                false
            }
            None => source.is_some(),
        };
        if is_to_do {
            // What is moved is in nobody's way.
            let guarded = self
                .guarded
                .iter()
                .copied()
                .filter(|held| Some(*held) != inode)
                .collect();
            let moved = self.tree.rename(from, to, &guarded);
            moved.map_err(Setback::at_leaving("move", &place))?;
        }
        for (path, _) in &mut self.puts {
            if let Some(moved) = moved_with(path, from, to) {
                *path = moved;
            }
        }
        Ok(())
    }

    fn swap(
        &mut self,
        a: &RelPath,
        b: &RelPath,
        (one, other): (Option<u64>, Option<u64>),
    ) -> Result<(), Setback> {
        let place = self.place(a);
        self.parents = Parents::default();
        let look = |path: &RelPath| {
            let found = self
                .tree
                .look(path)
                .map_err(Setback::at_leaving("find", &place))?;
            Ok::<_, Setback>(found.map(|found| found.inode))
        };
        let (at_a, at_b) = (look(a)?, look(b)?);
        let is_to_do = match (one, other) {
            (None, None) => at_a.is_some() && at_b.is_some() && !self.is_redo,
            (one, other) => (one.is_none() || at_a == one) && (other.is_none() || at_b == other),
        };
        if is_to_do && at_a.is_some() && at_b.is_some() {
            let swapped = self.tree.exchange(a, b);
            swapped.map_err(Setback::at_leaving("exchange", &place))?;
        } else if (one, other) == (None, None) {
            // Known by their names alone, an attempt before may have exchanged them or not.
            self.doubtful.extend([a.clone(), b.clone()]);
        }
        for (path, _) in &mut self.puts {
            if let Some(moved) = moved_with(path, a, b).or_else(|| moved_with(path, b, a)) {
                *path = moved;
            }
        }
        Ok(())
    }

    /// Looks at what has moved, and at the other names of files that have changed. What is not where it
    /// should be is lost here, with all that it held.
    fn look_again(
        &mut self,
        manifest: &mut Manifest,
        plan: &Plan,
        learned: &mut Vec<(RelPath, Local)>,
    ) -> Result<(), FilesError> {
        let names = plan.names.iter().map(|id| (*id, manifest.inode(*id)));
        let names: Vec<_> = names.collect();
        if names.is_empty() && plan.moved.is_empty() {
            return Ok(());
        }
        let put: BTreeSet<RelPath> = learned.iter().map(|(path, _)| path.clone()).collect();
        let moved = plan.moved.iter().map(|(id, inode)| (*id, *inode, true));
        let names = names.into_iter().map(|(id, inode)| (id, inode, false));
        for (id, inode, is_moved) in moved.chain(names) {
            let is_known = inode.is_some() && manifest.is_listed(id);
            let path = if is_known { manifest.path(id) } else { None };
            let Some(path) = path else { continue };
            if is_moved && put.contains(&path) || manifest.inode(id) != inode {
                continue;
            }
            let found = self.tree.look(&path);
            let found = found.map_err(FilesError::tree("read", self.place(&path)))?;
            match found.filter(|found| Some(found.inode) == inode) {
                Some(found) => {
                    let local = Local::Seen(found);
                    manifest.learn(id, local);
                    learned.push((path, local));
                }
                None => {
                    // Of what was moved before it had come, nothing is lost.
                    self.has_doubt |= is_moved;
                    lose(manifest, id, learned);
                }
            }
        }
        Ok(())
    }

    /// A path whose directory is not there shows that all of that directory is lost.
    pub(super) fn lose_parents(
        &mut self,
        manifest: &mut Manifest,
        path: &RelPath,
        learned: &mut Vec<(RelPath, Local)>,
    ) -> Result<(), FilesError> {
        let mut above = path.parent();
        let mut lost = None;
        while let Some(directory) = above {
            let found = self.tree.look(&directory);
            let found = found.map_err(FilesError::tree("read", self.place(&directory)))?;
            if found.is_none_or(|found| found.file_type() != rustix::fs::FileType::Directory) {
                // In a batch that is done again it may be no directory by now, and rightly so.
                lost = manifest.directory_of(path).and(manifest.lookup(&directory));
            }
            above = directory.parent();
        }
        if let Some(id) = lost {
            self.has_doubt |= !self.is_redo;
            lose(manifest, id, learned);
        }
        Ok(())
    }
}

/// Invariant: of what a batch has put or moved, everything was seen, or is awaited. What was neither would
/// be missed by nobody.
fn await_unknown(manifest: &mut Manifest, logged: &Logged, learned: &mut Vec<(RelPath, Local)>) {
    for operation in &logged.batch.operations {
        let paths = match operation {
            Operation::Put { path, .. } => [Some(path), None],
            Operation::Move { to, .. } => [Some(to), None],
            Operation::Swap { a, b } => [Some(a), Some(b)],
            Operation::Delete { .. } => [None, None],
        };
        for path in paths.into_iter().flatten() {
            if let Some(id) = manifest.lookup(path)
                && manifest.local(id) == Local::Unknown
            {
                manifest.learn(id, Local::Awaited);
                learned.push((path.clone(), Local::Awaited));
            }
        }
    }
}

/// From now on a node is awaited, with all beneath it.
pub(super) fn lose(manifest: &mut Manifest, id: NodeId, learned: &mut Vec<(RelPath, Local)>) {
    let lost: Vec<NodeId> = manifest.walk(id).map(|(_, id)| id).collect();
    for id in lost {
        manifest.learn(id, Local::Awaited);
        learned.extend(manifest.path(id).map(|path| (path, Local::Awaited)));
    }
}

/// Copies the file at `from` if it holds what is asked for.
pub(super) fn copy(
    tree: &Tree,
    blocks: &Blocks,
    from: &RelPath,
    target: &std::fs::File,
    (size, hash): (u64, Digest),
) -> std::io::Result<bool> {
    let source = match tree.root().file(from) {
        Ok(source) => source,
        Err(error) if is_absent(&error) => return Ok(false),
        Err(error) => return Err(error),
    };
    let is_cloned = tree.clone_file(target, &source);
    let Some((found, outboard)) = content::copy(&source, target, size, is_cloned)? else {
        return Ok(false);
    };
    if found != hash {
        return Ok(false);
    }
    if let Some(outboard) = outboard {
        blocks.put(hash, &outboard);
    }
    Ok(true)
}

/// Returns where a path is when `from` has become `to`.
pub(super) fn moved_with(path: &RelPath, from: &RelPath, to: &RelPath) -> Option<RelPath> {
    if path == from {
        return Some(to.clone());
    }
    if !path.is_beneath(from) {
        return None;
    }
    let rest = path.as_bytes().strip_prefix(from.as_bytes())?;
    RelPath::new([to.as_bytes(), rest].concat()).ok()
}
