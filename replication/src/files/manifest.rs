//! The manifest: every path of a store, under a Merkle hash per directory.
//!
//! Nodes lie in one vector and know their parent, so that moving a directory with all that it holds
//! changes one node, and a file takes some 150 bytes. What few nodes have (targets, extended
//! attributes, further names of a file) lies beside them.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use rustix::fs::FileType;

use super::batch::{Content, Operation};
use super::entry::{Digest, Entry, Identity, Kind, Known, Local, Xattrs, length};
use super::path::{PATH_BYTES_MAX, PathError, RESERVED, RelPath, check_name};

/// A node of a [`Manifest`]. Of no meaning once that node has been removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(u32);

/// The top of the tree, which has no entry.
pub const TOP: NodeId = NodeId(0);

/// No directory.
const NONE: u32 = u32::MAX;

/// A tree of entries whose [`Manifest::root`] is equal exactly when the trees are.
///
/// A change makes the hashes from it up to the top stale; `root` makes those anew and no others.
#[derive(Clone, Debug)]
pub struct Manifest {
    nodes: Vec<Node>,
    free: Vec<u32>,
    /// What each directory holds, by name.
    directories: Vec<Vec<NodeId>>,
    free_directories: Vec<u32>,
    owners: Vec<(u32, u32)>,
    owner_numbers: HashMap<(u32, u32), u32>,
    extras: BTreeMap<NodeId, Extra>,
    /// The names of each file that has several.
    links: BTreeMap<u64, BTreeSet<NodeId>>,
    /// The numbers of those files by inode; may be out of date.
    link_numbers: HashMap<u64, u64>,
    /// How a path looks here that does not look like its entry.
    odd: BTreeMap<NodeId, Identity>,
    awaited: BTreeSet<NodeId>,
    count: usize,
    bytes: u64,
}

#[derive(Clone, Debug)]
struct Node {
    name: Box<[u8]>,
    /// Of a file's content, or of what a directory holds.
    hash: [u8; 32],
    size: u64,
    mtime_ns: i64,
    inode: u64,
    ctime_ns: i64,
    parent: NodeId,
    /// For a directory, where what it holds is listed.
    directory: u32,
    owner: u32,
    local_owner: u32,
    mode: u16,
    kind: NodeKind,
    seen: Seen,
    /// A directory's hash is not stale.
    is_hashed: bool,
    has_extra: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NodeKind {
    File,
    Directory,
    Symlink,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    Unknown,
    /// It looks like its entry: what the entry does not tell is in the node.
    Plain,
    /// It looks otherwise (a file system with coarse times): see [`Manifest::odd`].
    Odd,
    Awaited,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Extra {
    target: Vec<u8>,
    xattrs: Xattrs,
    link: u64,
}

/// A change does not fit: a path lies in something that is not a directory, or is not there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path} does not fit: {reason}")]
pub struct Misfit {
    /// The path.
    pub path: RelPath,
    /// Why not.
    pub reason: &'static str,
}

fn misfit(path: &RelPath, reason: &'static str) -> Misfit {
    Misfit {
        path: path.clone(),
        reason,
    }
}

impl Default for Manifest {
    fn default() -> Self {
        let mut manifest = Self {
            nodes: Vec::new(),
            free: Vec::new(),
            directories: Vec::new(),
            free_directories: Vec::new(),
            owners: Vec::new(),
            owner_numbers: HashMap::new(),
            extras: BTreeMap::new(),
            links: BTreeMap::new(),
            link_numbers: HashMap::new(),
            odd: BTreeMap::new(),
            awaited: BTreeSet::new(),
            count: 0,
            bytes: 0,
        };
        let mut top = Node::new(TOP, Box::default());
        top.kind = NodeKind::Directory;
        top.directory = 0;
        manifest.directories.push(Vec::new());
        manifest.nodes.push(top);
        manifest
    }
}

impl Node {
    fn new(parent: NodeId, name: Box<[u8]>) -> Self {
        Self {
            name,
            hash: [0; 32],
            size: 0,
            mtime_ns: 0,
            inode: 0,
            ctime_ns: 0,
            parent,
            directory: NONE,
            owner: 0,
            local_owner: 0,
            mode: 0,
            kind: NodeKind::File,
            seen: Seen::Unknown,
            is_hashed: false,
            has_extra: false,
        }
    }
}

fn at(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// Looking.
impl Manifest {
    fn node(&self, id: NodeId) -> &Node {
        self.nodes
            .get(at(id.0))
            .expect("a node id is one of this manifest")
    }

    fn node_mut(&mut self, id: NodeId) -> &mut Node {
        self.nodes
            .get_mut(at(id.0))
            .expect("a node id is one of this manifest")
    }

    /// Returns what a directory holds, by name; nothing for what is no directory.
    pub fn children(&self, id: NodeId) -> &[NodeId] {
        self.directories
            .get(at(self.node(id).directory))
            .map_or(&[], Vec::as_slice)
    }

    fn place_of(&self, directory: NodeId, name: &[u8]) -> Result<usize, usize> {
        self.children(directory)
            .binary_search_by(|id| (*self.node(*id).name).cmp(name))
    }

    /// Returns what is called `name` in a directory.
    pub fn child(&self, directory: NodeId, name: &[u8]) -> Option<NodeId> {
        let place = self.place_of(directory, name).ok()?;
        self.children(directory).get(place).copied()
    }

    /// Returns the node at `path`.
    pub fn lookup(&self, path: &RelPath) -> Option<NodeId> {
        path.names().try_fold(TOP, |at, name| self.child(at, name))
    }

    /// Returns the directory that `path` lies in, if it is one.
    pub fn directory_of(&self, path: &RelPath) -> Option<NodeId> {
        let parent = match path.parent() {
            None => TOP,
            Some(parent) => self.lookup(&parent)?,
        };
        self.is_directory(parent).then_some(parent)
    }

    /// Returns what is known of `path`.
    pub fn get(&self, path: &RelPath) -> Option<Known> {
        self.lookup(path).map(|id| self.known(id))
    }

    /// Returns what is known of a node.
    pub fn known(&self, id: NodeId) -> Known {
        Known {
            entry: self.entry(id),
            local: self.local(id),
        }
    }

    /// Returns a node's name.
    pub fn name(&self, id: NodeId) -> &[u8] {
        &self.node(id).name
    }

    /// Returns the directory that a node is in.
    pub fn parent(&self, id: NodeId) -> NodeId {
        self.node(id).parent
    }

    /// Returns the path of a node; `None` for the top.
    pub fn path(&self, id: NodeId) -> Option<RelPath> {
        let mut names = Vec::new();
        let mut at = id;
        while at != TOP {
            let node = self.node(at);
            names.push(&*node.name);
            at = node.parent;
        }
        names.reverse();
        // Names and depth were checked when the node was made; a moved directory may have grown too
        // deep, and is then told as such by whoever needs its path.
        RelPath::new(names.join(&b'/')).ok()
    }

    /// Returns whether a node is still there. One that took the place of a removed one is.
    pub fn is_listed(&self, id: NodeId) -> bool {
        id != TOP && self.child(self.parent(id), self.name(id)) == Some(id)
    }

    /// Returns whether a node's content is still to come.
    pub fn is_awaited(&self, id: NodeId) -> bool {
        self.node(id).seen == Seen::Awaited
    }

    /// Returns which file a node is a name of, where that has several; 0 where it has one.
    pub fn link(&self, id: NodeId) -> u64 {
        self.extra(id).map_or(0, |extra| extra.link)
    }

    /// Returns when a node was last changed, as its entry says.
    pub fn mtime_ns(&self, id: NodeId) -> i64 {
        self.node(id).mtime_ns
    }

    /// Returns whether a node is a directory.
    pub fn is_directory(&self, id: NodeId) -> bool {
        self.node(id).kind == NodeKind::Directory
    }

    /// Returns a file's size and hash.
    pub fn content(&self, id: NodeId) -> Option<(u64, Digest)> {
        let node = self.node(id);
        match node.kind {
            NodeKind::File => Some((node.size, Digest::Blake3(node.hash))),
            NodeKind::Directory | NodeKind::Symlink => None,
        }
    }

    /// Returns a node's entry. That of the top says nothing.
    pub fn entry(&self, id: NodeId) -> Entry {
        let node = self.node(id);
        let extra = self.extra(id);
        let (uid, gid) = self.owner(node.owner);
        Entry {
            kind: match node.kind {
                NodeKind::File => Kind::File {
                    size: node.size,
                    hash: Digest::Blake3(node.hash),
                },
                NodeKind::Directory => Kind::Directory,
                NodeKind::Symlink => Kind::Symlink {
                    target: extra.map(|extra| extra.target.clone()).unwrap_or_default(),
                },
            },
            mode: u32::from(node.mode),
            uid,
            gid,
            mtime_ns: node.mtime_ns,
            link: extra.map_or(0, |extra| extra.link),
            xattrs: extra.map(|extra| extra.xattrs.clone()).unwrap_or_default(),
        }
    }

    /// Returns how a node is here.
    pub fn local(&self, id: NodeId) -> Local {
        let node = self.node(id);
        match node.seen {
            Seen::Unknown => Local::Unknown,
            Seen::Awaited => Local::Awaited,
            Seen::Odd => self
                .odd
                .get(&id)
                .map_or(Local::Unknown, |odd| Local::Seen(*odd)),
            Seen::Plain => Local::Seen(self.plain(id)),
        }
    }

    /// How a node looks whose entry tells it, but for what only this machine knows.
    fn plain(&self, id: NodeId) -> Identity {
        let node = self.node(id);
        let (uid, gid) = self.owner(node.local_owner);
        let (kind, mode) = match node.kind {
            NodeKind::File => (FileType::RegularFile, node.mode),
            NodeKind::Directory => (FileType::Directory, node.mode),
            // Linux shows these permissions for every link.
            NodeKind::Symlink => (FileType::Symlink, 0o777),
        };
        Identity {
            inode: node.inode,
            size: match node.kind {
                NodeKind::File => node.size,
                NodeKind::Directory => 0,
                NodeKind::Symlink => length(self.extra(id).map_or(0, |extra| extra.target.len())),
            },
            mtime_ns: node.mtime_ns,
            ctime_ns: node.ctime_ns,
            mode: kind.as_raw_mode() | u32::from(mode),
            uid,
            gid,
        }
    }

    /// Returns whether a node is known to look like this.
    pub fn looks(&self, id: NodeId, found: &Identity) -> bool {
        let node = self.node(id);
        match node.seen {
            // The quick way out: this is asked for every path of a scan.
            Seen::Plain => {
                node.inode == found.inode
                    && node.ctime_ns == found.ctime_ns
                    && self.plain(id) == *found
            }
            Seen::Odd => self.odd.get(&id) == Some(found),
            Seen::Unknown | Seen::Awaited => false,
        }
    }

    /// Returns the inode that a node had when it was last seen.
    pub fn inode(&self, id: NodeId) -> Option<u64> {
        match self.node(id).seen {
            Seen::Plain => Some(self.node(id).inode),
            Seen::Odd => self.odd.get(&id).map(|odd| odd.inode),
            Seen::Unknown | Seen::Awaited => None,
        }
    }

    fn extra(&self, id: NodeId) -> Option<&Extra> {
        if self.node(id).has_extra {
            self.extras.get(&id)
        } else {
            None
        }
    }

    fn owner(&self, number: u32) -> (u32, u32) {
        self.owners.get(at(number)).copied().unwrap_or_default()
    }

    /// Returns the names of the file with this number.
    pub fn linked(&self, link: u64) -> impl Iterator<Item = NodeId> {
        self.links.get(&link).into_iter().flatten().copied()
    }

    /// Returns whether two nodes that are no directories have equal entries. Cheap: a file may have
    /// thousands of names.
    pub fn is_like(&self, one: NodeId, other: NodeId) -> bool {
        let (a, b) = (self.node(one), self.node(other));
        let parts = |node: &Node| {
            (
                node.kind,
                node.mode,
                node.owner,
                node.mtime_ns,
                node.size,
                node.hash,
            )
        };
        parts(a) == parts(b) && self.extra(one) == self.extra(other)
    }

    /// Returns the number of the file with this inode, among those that have several names.
    pub fn link_of_inode(&self, inode: u64) -> Option<u64> {
        let link = *self.link_numbers.get(&inode)?;
        let mut names = self.linked(link);
        names
            .any(|id| self.inode(id) == Some(inode))
            .then_some(link)
    }

    /// Returns the paths outside `id` of the files of which it holds a name.
    pub fn linked_outside(&self, id: NodeId) -> Vec<RelPath> {
        let mut outside = Vec::new();
        if self.links.is_empty() {
            return outside;
        }
        for (_, node) in self.walk(id) {
            let link = self.extra(node).map_or(0, |extra| extra.link);
            let others = self
                .linked(link)
                .filter(|other| !self.is_within(*other, id));
            outside.extend(others.filter_map(|other| self.path(other)));
        }
        outside
    }

    /// Returns the nodes whose content is still to come.
    pub fn awaited(&self) -> impl Iterator<Item = NodeId> {
        self.awaited.iter().copied()
    }

    /// Returns how many nodes' content is still to come.
    pub fn awaited_count(&self) -> usize {
        self.awaited.len()
    }

    /// Returns how many paths there are.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Returns whether there is no path.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Returns how many bytes its files have. A file with several names counts once for each.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Returns how many entries and bytes lie at `id` and beneath it.
    pub fn weigh(&self, id: NodeId) -> (usize, u64) {
        let (mut count, mut bytes) = (0_usize, 0_u64);
        for (_, id) in self.walk(id) {
            count = count.saturating_add(1);
            bytes = bytes.saturating_add(self.content(id).map_or(0, |(size, _)| size));
        }
        (count, bytes)
    }

    /// Returns `from`, unless that is the top, and all beneath it, each with its depth beneath the top: a
    /// directory before what it holds, and that by name.
    pub fn walk(&self, from: NodeId) -> impl Iterator<Item = (u32, NodeId)> {
        let mut depth = 0_u32;
        let mut up = from;
        while up != TOP {
            depth = depth.saturating_add(1);
            up = self.parent(up);
        }
        let mut open = vec![self.children(from).iter()];
        let beneath = std::iter::from_fn(move || {
            loop {
                let level = u32::try_from(open.len()).unwrap_or(u32::MAX);
                match open.last_mut()?.next() {
                    Some(child) => {
                        if self.is_directory(*child) {
                            open.push(self.children(*child).iter());
                        }
                        return Some((depth.saturating_add(level), *child));
                    }
                    None => {
                        open.pop();
                    }
                }
            }
        });
        let itself = (from != TOP).then_some((depth, from));
        itself.into_iter().chain(beneath)
    }

    /// Returns every path with what is known of it, in their order. For trees that are small.
    pub fn entries(&self) -> Vec<(RelPath, Known)> {
        self.walk(TOP)
            .filter_map(|(_, id)| Some((self.path(id)?, self.known(id))))
            .collect()
    }
}

/// Changing.
impl Manifest {
    /// Sets what is known of `path`. What a directory held goes when it is none any more.
    ///
    /// # Errors
    /// When the path does not lie in a directory; nothing is then changed.
    pub fn insert(&mut self, path: &RelPath, known: Known) -> Result<NodeId, Misfit> {
        let directory = self
            .directory_of(path)
            .ok_or_else(|| misfit(path, "it lies in what is not a directory of this store"))?;
        Ok(self.insert_in(directory, path.name(), known))
    }

    fn insert_in(&mut self, directory: NodeId, name: &[u8], known: Known) -> NodeId {
        let id = match self.place_of(directory, name) {
            Ok(place) => {
                let id = self.listed(directory, place);
                self.forget(id);
                if !known.entry.is_directory() {
                    self.close(id);
                }
                id
            }
            Err(place) => {
                let id = self.new_node(Node::new(directory, name.into()));
                self.list(directory).insert(place, id);
                self.count = self.count.saturating_add(1);
                id
            }
        };
        self.set(id, known.entry);
        self.learn(id, known.local);
        self.make_stale(id);
        id
    }

    fn listed(&self, directory: NodeId, place: usize) -> NodeId {
        *self
            .children(directory)
            .get(place)
            .expect("the place was found in this directory")
    }

    fn list(&mut self, directory: NodeId) -> &mut Vec<NodeId> {
        let number = at(self.node(directory).directory);
        self.directories
            .get_mut(number)
            .expect("the caller has found that it is a directory")
    }

    fn new_node(&mut self, node: Node) -> NodeId {
        match self.free.pop() {
            Some(number) => {
                let id = NodeId(number);
                *self.node_mut(id) = node;
                id
            }
            None => {
                let number = u32::try_from(self.nodes.len()).expect("fewer than 4 billion paths");
                self.nodes.push(node);
                NodeId(number)
            }
        }
    }

    fn owner_number(&mut self, owner: (u32, u32)) -> u32 {
        if let Some(number) = self.owner_numbers.get(&owner) {
            return *number;
        }
        let number = u32::try_from(self.owners.len()).unwrap_or(u32::MAX);
        self.owners.push(owner);
        self.owner_numbers.insert(owner, number);
        number
    }

    /// Sets what a node is. Its sizes have been taken off the sums by `forget`.
    fn set(&mut self, id: NodeId, entry: Entry) {
        let owner = self.owner_number((entry.uid, entry.gid));
        let (kind, size, hash, target) = match entry.kind {
            Kind::File {
                size,
                hash: Digest::Blake3(hash),
            } => (NodeKind::File, size, hash, Vec::new()),
            Kind::Directory => (NodeKind::Directory, 0, [0; 32], Vec::new()),
            Kind::Symlink { target } => (NodeKind::Symlink, 0, [0; 32], target),
        };
        if kind == NodeKind::Directory && self.node(id).directory == NONE {
            let number = match self.free_directories.pop() {
                Some(number) => number,
                None => {
                    self.directories.push(Vec::new());
                    u32::try_from(self.directories.len().saturating_sub(1))
                        .expect("fewer directories than nodes")
                }
            };
            self.node_mut(id).directory = number;
        }
        let has_extra = !target.is_empty() || !entry.xattrs.is_empty() || entry.link != 0;
        if has_extra {
            let extra = Extra {
                target,
                xattrs: entry.xattrs,
                link: entry.link,
            };
            self.extras.insert(id, extra);
        }
        if entry.link != 0 {
            self.links.entry(entry.link).or_default().insert(id);
        }
        self.bytes = self.bytes.saturating_add(size);
        let node = self.node_mut(id);
        node.kind = kind;
        node.size = size;
        node.hash = hash;
        node.is_hashed = false;
        // Entries have at most twelve bits there.
        node.mode = u16::try_from(entry.mode & 0o7777).unwrap_or_default();
        node.owner = owner;
        node.mtime_ns = entry.mtime_ns;
        node.has_extra = has_extra;
    }

    /// Takes away what lies beside a node.
    fn forget(&mut self, id: NodeId) {
        self.bytes = self.bytes.saturating_sub(self.node(id).size);
        if let Some(extra) = self.extras.remove(&id)
            && let Some(names) = self.links.get_mut(&extra.link)
        {
            names.remove(&id);
            if names.is_empty() {
                self.links.remove(&extra.link);
                if self.links.is_empty() {
                    self.link_numbers.clear();
                }
            }
        }
        self.odd.remove(&id);
        self.awaited.remove(&id);
        let node = self.node_mut(id);
        node.has_extra = false;
        node.seen = Seen::Unknown;
        node.size = 0;
    }

    /// Removes all that a node holds; it is no directory any more.
    fn close(&mut self, id: NodeId) {
        let mut closed = vec![id];
        while let Some(directory) = closed.pop() {
            let number = std::mem::replace(&mut self.node_mut(directory).directory, NONE);
            let Some(list) = self.directories.get_mut(at(number)) else {
                continue;
            };
            let list = std::mem::take(list);
            self.free_directories.push(number);
            for child in list {
                self.forget(child);
                self.count = self.count.saturating_sub(1);
                if self.node(child).directory != NONE {
                    closed.push(child);
                }
                // Its own list goes before its number is used again.
                self.free.push(child.0);
            }
        }
    }

    /// Sets how a node is here, which is no part of the hash.
    pub fn learn(&mut self, id: NodeId, local: Local) {
        if self.node(id).seen == Seen::Odd {
            self.odd.remove(&id);
        }
        if self.node(id).seen == Seen::Awaited {
            self.awaited.remove(&id);
        }
        match local {
            Local::Unknown => self.node_mut(id).seen = Seen::Unknown,
            Local::Awaited => {
                self.awaited.insert(id);
                self.node_mut(id).seen = Seen::Awaited;
            }
            Local::Seen(identity) => {
                let local_owner = self.owner_number((identity.uid, identity.gid));
                let node = self.node_mut(id);
                node.inode = identity.inode;
                node.ctime_ns = identity.ctime_ns;
                node.local_owner = local_owner;
                node.seen = Seen::Plain;
                if let Some(link) = self
                    .extra(id)
                    .map(|extra| extra.link)
                    .filter(|link| *link != 0)
                {
                    self.link_numbers.insert(identity.inode, link);
                }
                if self.plain(id) != identity {
                    self.node_mut(id).seen = Seen::Odd;
                    self.odd.insert(id, identity);
                }
            }
        }
    }

    /// Removes `path` and all beneath it; returns whether it was there.
    pub fn remove(&mut self, path: &RelPath) -> bool {
        let Some(id) = self.lookup(path) else {
            return false;
        };
        self.unlist(id);
        self.forget(id);
        self.close(id);
        self.free.push(id.0);
        self.count = self.count.saturating_sub(1);
        true
    }

    fn unlist(&mut self, id: NodeId) {
        let parent = self.parent(id);
        if let Ok(place) = self.place_of(parent, &self.node(id).name) {
            self.list(parent).remove(place);
        }
        self.make_stale(parent);
    }

    fn enlist(&mut self, id: NodeId, directory: NodeId, name: &[u8]) {
        let place = match self.place_of(directory, name) {
            Ok(place) | Err(place) => place,
        };
        let node = self.node_mut(id);
        node.parent = directory;
        node.name = name.into();
        self.list(directory).insert(place, id);
        self.make_stale(directory);
    }

    fn is_within(&self, id: NodeId, directory: NodeId) -> bool {
        let mut at = id;
        while at != TOP {
            if at == directory {
                return true;
            }
            at = self.parent(at);
        }
        directory == TOP
    }

    /// Gives what is at `from`, with all that it holds, the path `to`. What was there goes.
    ///
    /// # Errors
    /// When there is nothing, or it cannot be there; nothing is then changed.
    pub fn rename(&mut self, from: &RelPath, to: &RelPath) -> Result<(), Misfit> {
        let id = self
            .lookup(from)
            .ok_or_else(|| misfit(from, "it is to be moved, and is not there"))?;
        let directory = self
            .directory_of(to)
            .ok_or_else(|| misfit(to, "it lies in what is not a directory of this store"))?;
        if self.is_within(directory, id) {
            return Err(misfit(to, "it lies in what is moved there"));
        }
        if let Some(held) = self.child(directory, to.name()) {
            if held == id {
                return Ok(());
            }
            if self.is_within(id, held) {
                return Err(misfit(to, "what is moved there lies in it"));
            }
            self.remove(to);
        }
        self.unlist(id);
        self.enlist(id, directory, to.name());
        Ok(())
    }

    /// Exchanges what is at two paths.
    ///
    /// # Errors
    /// When one is not there, or lies in the other; nothing is then changed.
    pub fn swap(&mut self, a: &RelPath, b: &RelPath) -> Result<(), Misfit> {
        let absent = "it is to be exchanged, and is not there";
        let (one, other) = (
            self.lookup(a).ok_or_else(|| misfit(a, absent))?,
            self.lookup(b).ok_or_else(|| misfit(b, absent))?,
        );
        if self.is_within(one, other) || self.is_within(other, one) {
            return Err(misfit(b, "one of the two lies in the other"));
        }
        let (from, to) = (self.parent(one), self.parent(other));
        self.unlist(one);
        self.unlist(other);
        self.enlist(one, to, b.name());
        self.enlist(other, from, a.name());
        Ok(())
    }

    /// Makes the change that `operation` says. What is known of how the path looks here stays only
    /// where its content does.
    ///
    /// # Errors
    /// When it does not fit; nothing is then changed.
    pub fn fold(&mut self, operation: &Operation) -> Result<(), Misfit> {
        match operation {
            Operation::Put {
                path,
                entry,
                content,
            } => {
                let local = match (content, self.lookup(path)) {
                    (Content::Same, Some(id)) if self.is_same_content(id, entry) => self.local(id),
                    _ => Local::Unknown,
                };
                self.insert(
                    path,
                    Known {
                        entry: entry.clone(),
                        local,
                    },
                )?;
                Ok(())
            }
            Operation::Delete { path } => {
                self.remove(path);
                Ok(())
            }
            Operation::Move { from, to } => self.rename(from, to),
            Operation::Swap { a, b } => self.swap(a, b),
        }
    }

    fn is_same_content(&self, id: NodeId, entry: &Entry) -> bool {
        match (&entry.kind, self.node(id).kind) {
            (Kind::File { .. }, NodeKind::File) => self.content(id) == entry.content(),
            (Kind::Directory, NodeKind::Directory) => true,
            (Kind::Symlink { target }, NodeKind::Symlink) => {
                self.extra(id).is_some_and(|extra| extra.target == *target)
            }
            (Kind::File { .. } | Kind::Directory | Kind::Symlink { .. }, _) => false,
        }
    }
}

/// Hashing.
impl Manifest {
    /// Returns the Merkle hash of the whole.
    pub fn root(&mut self) -> Digest {
        let mut bytes = Vec::new();
        let mut open = vec![(TOP, 0_usize)];
        while let Some((id, next)) = open.last_mut() {
            let (id, from) = (*id, *next);
            let children = self.children(id);
            // A directory that is not stale holds none that is.
            let stale = children
                .iter()
                .skip(from)
                .position(|child| self.is_directory(*child) && !self.node(*child).is_hashed);
            match stale.filter(|_| !self.node(id).is_hashed) {
                Some(ahead) => {
                    let place = from.saturating_add(ahead);
                    let child = self.listed(id, place);
                    *next = place.saturating_add(1);
                    open.push((child, 0));
                }
                None => {
                    if !self.node(id).is_hashed {
                        let hash = self.hash_directory(id, &mut bytes);
                        let node = self.node_mut(id);
                        node.hash = hash;
                        node.is_hashed = true;
                    }
                    open.pop();
                }
            }
        }
        Digest::Blake3(self.node(TOP).hash)
    }

    /// Returns the Merkle hash of a directory; call [`Manifest::root`] before.
    pub fn directory_hash(&self, id: NodeId) -> Digest {
        Digest::Blake3(self.node(id).hash)
    }

    fn hash_directory(&self, id: NodeId, bytes: &mut Vec<u8>) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_derive_key("understudy 2026 files directory 2");
        bytes.clear();
        for child in self.children(id) {
            self.append_leaf(*child, bytes);
            if bytes.len() >= 64 << 10 {
                hasher.update(bytes);
                bytes.clear();
            }
        }
        hasher.update(bytes);
        *hasher.finalize().as_bytes()
    }

    /// Appends bytes that no other node of a directory has. Fixed fields first, and a length before
    /// everything that has one.
    fn append_leaf(&self, id: NodeId, bytes: &mut Vec<u8>) {
        let node = self.node(id);
        let extra = self.extra(id);
        let (uid, gid) = self.owner(node.owner);
        let tag = match node.kind {
            NodeKind::File => 0_u8,
            NodeKind::Directory => 1,
            NodeKind::Symlink => 2,
        };
        bytes.push(tag);
        bytes.push(u8::from(extra.is_some()));
        bytes.extend_from_slice(&node.mode.to_le_bytes());
        bytes.extend_from_slice(&uid.to_le_bytes());
        bytes.extend_from_slice(&gid.to_le_bytes());
        bytes.extend_from_slice(&node.mtime_ns.to_le_bytes());
        bytes.extend_from_slice(&node.size.to_le_bytes());
        // All zero for a link; of what it holds for a directory.
        bytes.extend_from_slice(&node.hash);
        bytes.extend_from_slice(&length(node.name.len()).to_le_bytes());
        bytes.extend_from_slice(&node.name);
        if let Some(extra) = extra {
            bytes.extend_from_slice(&extra.link.to_le_bytes());
            bytes.extend_from_slice(&length(extra.target.len()).to_le_bytes());
            bytes.extend_from_slice(&extra.target);
            bytes.extend_from_slice(&length(extra.xattrs.iter().count()).to_le_bytes());
            for part in extra.xattrs.iter().flat_map(|(name, value)| [name, value]) {
                bytes.extend_from_slice(&length(part.len()).to_le_bytes());
                bytes.extend_from_slice(part);
            }
        }
    }

    /// Makes the hashes stale from a node up. One that is stale has only stale ones above it.
    fn make_stale(&mut self, id: NodeId) {
        self.node_mut(id).is_hashed = false;
        let mut at = id;
        while at != TOP {
            at = self.parent(at);
            let node = self.node_mut(at);
            if !node.is_hashed {
                break;
            }
            node.is_hashed = false;
        }
    }
}

/// Why a list of entries is not a manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// A name that no directory has.
    #[error("a list of entries with {0}")]
    Name(#[from] PathError),
    /// A depth beneath what is not a directory, or too deep.
    #[error("a list of entries with one in what is not a directory")]
    Depth,
    /// Names that are not in their order, or twice.
    #[error("a list of entries that is out of order")]
    Order,
    /// Nothing that a file system can hold.
    #[error("a list of entries with an impossible one")]
    Entry,
}

/// Makes a manifest from the list that [`Manifest::walk`] gives.
#[derive(Debug, Default)]
pub struct Loader {
    manifest: Manifest,
    /// The directories on the way to the last entry, and that entry, with the length of each path.
    stack: Vec<(NodeId, usize)>,
}

impl Loader {
    /// Adds the next entry.
    ///
    /// # Errors
    /// When it cannot be the next.
    pub fn push(&mut self, depth: u32, name: &[u8], known: Known) -> Result<NodeId, LoadError> {
        check_name(name)?;
        if depth == 1 && name == RESERVED {
            return Err(PathError::Reserved.into());
        }
        if !known.entry.is_valid() {
            return Err(LoadError::Entry);
        }
        let above = at(depth).checked_sub(1).ok_or(LoadError::Depth)?;
        if above > self.stack.len() {
            return Err(LoadError::Depth);
        }
        self.stack.truncate(above);
        let (directory, bytes) = self.stack.last().copied().unwrap_or((TOP, 0));
        if !self.manifest.is_directory(directory) {
            return Err(LoadError::Depth);
        }
        let bytes = bytes.saturating_add(name.len()).saturating_add(1);
        if bytes > PATH_BYTES_MAX {
            return Err(PathError::TooLong.into());
        }
        let last = self.manifest.children(directory).last();
        if last.is_some_and(|last| self.manifest.name(*last) >= name) {
            return Err(LoadError::Order);
        }
        let id = self.manifest.insert_in(directory, name, known);
        self.stack.push((id, bytes));
        Ok(id)
    }

    /// Returns the manifest.
    pub fn finish(self) -> Manifest {
        self.manifest
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn path(text: &str) -> RelPath {
        RelPath::new(text).unwrap()
    }

    fn known(kind: Kind) -> Known {
        let entry = Entry {
            kind,
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime_ns: 1,
            link: 0,
            xattrs: Xattrs::default(),
        };
        Known {
            entry,
            local: Local::Unknown,
        }
    }

    fn file(content: &str) -> Known {
        let hash = Digest::of(content.as_bytes());
        known(Kind::File {
            size: content.len() as u64,
            hash,
        })
    }

    fn directory() -> Known {
        known(Kind::Directory)
    }

    fn seen(known: &Known, inode: u64) -> Local {
        Local::Seen(Identity {
            inode,
            size: known.entry.content().map_or(0, |(size, _)| size),
            mtime_ns: 1,
            ctime_ns: 5,
            mode: 0o100_644,
            uid: 0,
            gid: 0,
        })
    }

    #[test]
    fn equal_trees_have_equal_roots_whatever_their_history() {
        let mut one = Manifest::default();
        one.insert(&path("d"), directory()).unwrap();
        one.insert(&path("d/a"), file("1")).unwrap();
        let with_one = one.root();
        one.insert(&path("d/b"), file("2")).unwrap();
        assert_ne!(one.root(), with_one);
        assert!(one.remove(&path("d/b")));
        assert_eq!(one.root(), with_one);
        let mut moved = Manifest::default();
        moved.insert(&path("d"), directory()).unwrap();
        moved.insert(&path("a"), file("1")).unwrap();
        assert_ne!(moved.root(), with_one);
        moved.rename(&path("a"), &path("d/a")).unwrap();
        assert_eq!(moved.root(), with_one);
    }

    #[test]
    fn a_directory_that_becomes_a_file_takes_what_it_held_with_it() {
        let mut manifest = Manifest::default();
        for name in ["d", "d/e"] {
            manifest.insert(&path(name), directory()).unwrap();
        }
        manifest.insert(&path("d/e/f"), file("1")).unwrap();
        manifest.insert(&path("d"), file("22")).unwrap();
        assert_eq!((manifest.len(), manifest.bytes()), (1, 2));
        assert_eq!(manifest.get(&path("d/e/f")), None);
        let misfit = manifest.insert(&path("d/x"), file("3")).unwrap_err();
        assert_eq!(
            misfit.to_string(),
            "d/x does not fit: it lies in what is not a directory of this store"
        );
    }

    #[test]
    fn how_a_path_looks_here_is_no_part_of_the_hash() {
        let mut manifest = Manifest::default();
        let id = manifest.insert(&path("a"), file("1")).unwrap();
        let root = manifest.root();
        for inode in [7, 8] {
            let local = seen(&file("1"), inode);
            manifest.learn(id, local);
            assert_eq!(manifest.root(), root);
            assert_eq!(manifest.local(id), local);
            assert!(manifest.looks(id, &local.seen().unwrap()));
            assert_eq!(manifest.inode(id), Some(inode));
        }
        // A file system that keeps whole seconds.
        let mut odd = seen(&file("1"), 9).seen().unwrap();
        odd.mtime_ns = 0;
        manifest.learn(id, Local::Seen(odd));
        assert!(manifest.looks(id, &odd));
        assert_eq!(manifest.root(), root);
    }

    #[test]
    fn a_directory_cannot_be_moved_into_itself_nor_onto_what_holds_it() {
        let mut manifest = Manifest::default();
        for name in ["a", "a/b", "c"] {
            manifest.insert(&path(name), directory()).unwrap();
        }
        let before = manifest.root();
        for (from, to) in [
            ("a", "a/b/x"),
            ("a", "a/b"),
            ("a/b", "a"),
            ("x", "y"),
            ("a", "y/z"),
        ] {
            assert!(
                manifest.rename(&path(from), &path(to)).is_err(),
                "{from} {to}"
            );
        }
        for (a, b) in [("a", "a/b"), ("a/b", "a"), ("a", "x")] {
            assert!(manifest.swap(&path(a), &path(b)).is_err(), "{a} {b}");
        }
        assert_eq!(manifest.root(), before);
    }

    #[test]
    fn the_names_of_one_file_are_known_until_they_go() {
        let mut manifest = Manifest::default();
        let mut linked = file("1");
        linked.entry.link = 4;
        linked.local = seen(&linked, 77);
        for name in ["a", "b"] {
            manifest.insert(&path(name), linked.clone()).unwrap();
        }
        assert_eq!(manifest.linked(4).count(), 2);
        assert_eq!(manifest.link_of_inode(77), Some(4));
        manifest.remove(&path("a"));
        manifest.insert(&path("b"), file("1")).unwrap();
        assert_eq!(manifest.linked(4).count(), 0);
        assert_eq!(manifest.link_of_inode(77), None);
    }

    #[test]
    fn a_list_that_is_no_tree_is_refused() {
        type List<'a> = &'a [(u32, &'a [u8])];
        let table: [(List<'_>, LoadError); 7] = [
            (&[(0, b"a")], LoadError::Depth),
            (&[(2, b"a")], LoadError::Depth),
            (&[(1, b"d"), (3, b"a")], LoadError::Depth),
            (&[(1, b"b"), (1, b"a")], LoadError::Order),
            (&[(1, b"a"), (1, b"a")], LoadError::Order),
            (&[(1, b"..")], LoadError::Name(PathError::Dots)),
            (&[(1, b".understudy")], LoadError::Name(PathError::Reserved)),
        ];
        for (list, expected) in table {
            let mut loader = Loader::default();
            let pushed: Result<Vec<_>, _> = list
                .iter()
                .map(|(depth, name)| loader.push(*depth, name, directory()))
                .collect();
            assert_eq!(pushed.unwrap_err(), expected, "{list:?}");
        }
    }

    proptest! {
        #[test]
        fn any_history_has_the_root_of_what_is_left(
            history in prop::collection::vec(("[ab](/[ab]){0,2}", "[abc](/[ab]){0,2}", 0..6_u8), 0..60)
        ) {
            let mut manifest = Manifest::default();
            let mut model = BTreeMap::<RelPath, Known>::new();
            let moved = |path: &RelPath, from: &RelPath, to: &RelPath| {
                let rest = path.as_bytes().strip_prefix(from.as_bytes()).unwrap();
                RelPath::new([to.as_bytes(), rest].concat()).unwrap()
            };
            let within = |path: &RelPath, at: &RelPath| path == at || path.is_beneath(at);
            for (text, other, what) in history {
                let (at, to) = (path(&text), path(&other));
                match what {
                    0..=2 => {
                        let known = [directory(), file("1"), file("2")][usize::from(what)].clone();
                        let is_directory = known.entry.is_directory();
                        if manifest.insert(&at, known.clone()).is_ok() {
                            if !is_directory {
                                model.retain(|other, _| !other.is_beneath(&at));
                            }
                            model.insert(at, known);
                        }
                    }
                    3 => {
                        manifest.remove(&at);
                        model.retain(|path, _| !within(path, &at));
                    }
                    4 => if manifest.rename(&at, &to).is_ok() && at != to {
                        model.retain(|path, _| !within(path, &to));
                        model = model.into_iter().map(|(path, known)| {
                            if within(&path, &at) { (moved(&path, &at, &to), known) } else { (path, known) }
                        }).collect();
                    }
                    _ => if manifest.swap(&at, &to).is_ok() {
                        model = model.into_iter().map(|(path, known)| {
                            if within(&path, &at) {
                                (moved(&path, &at, &to), known)
                            } else if within(&path, &to) {
                                (moved(&path, &to, &at), known)
                            } else {
                                (path, known)
                            }
                        }).collect();
                    }
                }
                if what == 1 {
                    manifest.root();
                }
            }
            let left = manifest.entries();
            prop_assert_eq!(manifest.len(), left.len());
            let bytes: u64 = left.iter().filter_map(|(_, known)| known.entry.content()).map(|(size, _)| size).sum();
            prop_assert_eq!(manifest.bytes(), bytes);
            prop_assert_eq!(&left, &model.into_iter().collect::<Vec<_>>());
            let mut loader = Loader::default();
            manifest.walk(TOP).try_for_each(|(depth, id)| {
                loader.push(depth, manifest.name(id), manifest.known(id)).map(drop)
            }).unwrap();
            prop_assert_eq!(loader.finish().root(), manifest.root());
        }
    }
}
