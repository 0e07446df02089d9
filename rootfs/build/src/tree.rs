//! The root file system as it will be: names and metadata in memory, contents where they are.
//!
//! Paths are resolved in the tree, never in the host's file system: a symlink, wherever it points, leads to a place in
//! the tree.

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;

use crate::entry_path::{EntryPath, Name, PathFault, display};
use crate::limits::{
    DEPTH_MAX, ENTRIES_MAX, METADATA_BYTES_MAX, NAME_BYTES_MAX, PATH_BYTES_MAX, STEPS_MAX,
    SYMLINKS_MAX, XATTR_NAME_BYTES_MAX, XATTR_VALUE_BYTES_MAX, XATTRS_BYTES_MAX,
};
use crate::region::Region;

/// Why an entry has no place in the tree.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlaceError {
    /// Its path.
    #[error("{path:?} is no path for an entry: {fault}")]
    Path {
        /// As it was given.
        path: String,
        /// What is wrong.
        fault: PathFault,
    },
    /// A name on the way is a file or device.
    #[error("{path:?} lies below {name:?}, which is no folder")]
    NotAFolder {
        /// Path of the entry.
        path: String,
        /// The name.
        name: String,
    },
    /// Symlinks without an end.
    #[error("more than {SYMLINKS_MAX} symlinks on the way to {path:?}")]
    SymlinkLoop {
        /// Path of the entry.
        path: String,
    },
    /// Too deep, after symlinks were followed.
    #[error("{path:?} lies more than {DEPTH_MAX} folders or {PATH_BYTES_MAX} bytes deep")]
    Deep {
        /// Path of the entry.
        path: String,
    },
    /// The root can only be a folder.
    #[error("the root is given as something that is no folder")]
    RootIsNoFolder,
    /// A hard link without a file.
    #[error("{path:?} is a hard link to {target:?}, which is no file here")]
    NoLinkTarget {
        /// Path of the link.
        path: String,
        /// What it links to.
        target: String,
    },
    /// Extended attributes beyond what each of our file systems holds.
    #[error("{path:?} has the extended attribute {name:?}, which is too long, or one too many")]
    Xattr {
        /// Path of the entry.
        path: String,
        /// Name of the first that is too much.
        name: String,
    },
    /// Too many entries.
    #[error("more than {ENTRIES_MAX} entries")]
    Entries,
    /// Symlinks that cost more than they can be for.
    #[error("more than {STEPS_MAX} folders and symlinks on the ways to all entries")]
    Steps,
    /// Too much to be held in memory.
    #[error("more than {METADATA_BYTES_MAX} bytes of names and attributes")]
    Metadata,
}

/// Number of a layer. What is placed by one hides what lower ones placed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Layer(pub(crate) u32);

/// Index of an inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct InodeId(usize);

impl InodeId {
    pub(crate) const ROOT: Self = Self(0);

    /// Below [`Tree::inode_count`].
    pub(crate) const fn index(self) -> usize {
        self.0
    }
}

/// What all kinds of entries have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Meta {
    /// The twelve lowest bits: permissions, setuid, setgid, sticky.
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Seconds since 1970; earlier times are 0.
    pub(crate) mtime: u64,
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Meta {
    /// Root's, of 1970: the same in each build.
    pub(crate) fn ours(mode: u16) -> Self {
        Self {
            mode,
            ..Self::default()
        }
    }

    /// The first extended attribute that not each file system of ours can hold.
    fn xattr_without_room(&self) -> Option<&[u8]> {
        let mut bytes = 0;
        let mut names = self.xattrs.iter().filter_map(|(name, value)| {
            bytes += name.len() + value.len();
            let has_room = !name.is_empty()
                && !name.contains(&0)
                && name.len() <= XATTR_NAME_BYTES_MAX
                && value.len() <= XATTR_VALUE_BYTES_MAX
                && bytes <= XATTRS_BYTES_MAX;
            (!has_room).then_some(name.as_slice())
        });
        names.next()
    }
}

/// The bytes of a file.
#[derive(Debug, Clone)]
pub(crate) enum Content {
    /// In a file that is open.
    Region(Region),
    /// In a file that is opened when it is needed: there may be more than can be open.
    Path { path: PathBuf, len: u64 },
    /// In memory.
    Bytes(Arc<[u8]>),
}

impl Content {
    pub(crate) fn len(&self) -> u64 {
        match self {
            Self::Region(region) => region.len(),
            Self::Path { len, .. } => *len,
            Self::Bytes(bytes) => bytes.len() as u64,
        }
    }
}

/// Kinds of entries. Sockets are no part of a file system's image.
#[derive(Debug, Clone)]
pub(crate) enum Node {
    Folder(Folder),
    File(Content),
    Symlink(Box<[u8]>),
    Character { major: u32, minor: u32 },
    Block { major: u32, minor: u32 },
    Fifo,
}

/// Entries of a folder, sorted by the bytes of their names.
pub(crate) type Folder = BTreeMap<Name, Child>;

/// A name in a folder.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Child {
    pub(crate) id: InodeId,
    /// Who placed the name; the inode may be of a lower layer (hard links).
    layer: Layer,
}

/// An entry without its names.
#[derive(Debug, Clone)]
pub(crate) struct Inode {
    pub(crate) meta: Meta,
    pub(crate) node: Node,
}

impl Inode {
    pub(crate) fn folder(meta: Meta) -> Self {
        let node = Node::Folder(Folder::new());
        Self { meta, node }
    }

    pub(crate) fn file(meta: Meta, content: Content) -> Self {
        let node = Node::File(content);
        Self { meta, node }
    }

    fn metadata_bytes(&self) -> usize {
        let target = match &self.node {
            Node::Symlink(target) => target.len(),
            _ => 0,
        };
        let xattrs = self.meta.xattrs.iter();
        target
            + xattrs
                .map(|(name, value)| name.len() + value.len())
                .sum::<usize>()
    }
}

/// The tree. Inodes that no name leads to are left in it; nothing is written of them.
#[derive(Debug)]
pub(crate) struct Tree {
    inodes: Vec<Inode>,
    /// Placed so far, those that were replaced included: what bounds the work.
    entries: usize,
    metadata_bytes: usize,
    /// Folders and symlinks passed so far.
    steps: Cell<u64>,
    /// Folders from which a layer has taken all that is below it. It cannot come back: a folder is cleared once a layer.
    cleared: HashMap<InodeId, Layer>,
}

impl Tree {
    pub(crate) fn new() -> Self {
        Self {
            inodes: vec![Inode::folder(Meta::ours(0o755))],
            entries: 0,
            metadata_bytes: 0,
            steps: Cell::new(0),
            cleared: HashMap::new(),
        }
    }

    pub(crate) fn inode(&self, id: InodeId) -> &Inode {
        &self.inodes[id.0]
    }

    /// All inodes, also those that no name leads to.
    pub(crate) fn inodes(&self) -> impl Iterator<Item = &Inode> {
        self.inodes.iter()
    }

    pub(crate) fn inode_count(&self) -> usize {
        self.inodes.len()
    }

    /// Puts an entry in its place. A folder on a folder keeps the entries; all else replaces what was there.
    pub(crate) fn place(
        &mut self,
        path: &EntryPath,
        inode: Inode,
        layer: Layer,
    ) -> Result<InodeId, PlaceError> {
        self.count(path, inode.metadata_bytes())?;
        if let Some(name) = inode.meta.xattr_without_room() {
            return Err(PlaceError::Xattr {
                path: text(path),
                name: display(name),
            });
        }
        let Some((folders, name)) = path.split() else {
            return self.place_root(inode);
        };
        let parent = self.make_folders(path, folders, layer)?;
        let existing = self.child(parent, name);
        if let Some(child) = existing
            && let (Node::Folder(_), Node::Folder(_)) = (&self.inode(child.id).node, &inode.node)
        {
            self.inodes[child.id.0].meta = inode.meta;
            self.set_child(parent, name, Child { layer, ..child });
            return Ok(child.id);
        }
        let id = self.add(inode);
        self.set_child(parent, name, Child { id, layer });
        Ok(id)
    }

    fn place_root(&mut self, inode: Inode) -> Result<InodeId, PlaceError> {
        if !matches!(inode.node, Node::Folder(_)) {
            return Err(PlaceError::RootIsNoFolder);
        }
        self.inodes[InodeId::ROOT.0].meta = inode.meta;
        Ok(InodeId::ROOT)
    }

    /// Gives what `target` names, which is no folder, a second name.
    pub(crate) fn link(
        &mut self,
        path: &EntryPath,
        target: &EntryPath,
        layer: Layer,
    ) -> Result<(), PlaceError> {
        self.count(path, 0)?;
        let no_target = || PlaceError::NoLinkTarget {
            path: text(path),
            target: text(target),
        };
        let id = self.find(target).ok_or_else(no_target)?;
        if matches!(self.inode(id).node, Node::Folder(_)) {
            return Err(no_target());
        }
        self.place_link(path, id, layer)
    }

    /// Gives an inode another name.
    pub(crate) fn place_link(
        &mut self,
        path: &EntryPath,
        id: InodeId,
        layer: Layer,
    ) -> Result<(), PlaceError> {
        let (folders, name) = path.split().ok_or(PlaceError::RootIsNoFolder)?;
        let parent = self.make_folders(path, folders, layer)?;
        self.set_child(parent, name, Child { id, layer });
        Ok(())
    }

    /// Takes away what layers below `layer` have at `path`.
    pub(crate) fn hide(&mut self, path: &EntryPath, layer: Layer) -> Result<(), PlaceError> {
        self.count(path, 0)?;
        let Some((folders, name)) = path.split() else {
            return Ok(());
        };
        let Some(parent) = self.walk_to(folders) else {
            return Ok(());
        };
        if let Some(child) = self.child(parent, name)
            && !self.keeps(child, layer)
            && let Node::Folder(children) = &mut self.inodes[parent.0].node
        {
            children.remove(name);
        }
        Ok(())
    }

    /// Takes away all that layers below `layer` have in the folder at `path`.
    pub(crate) fn hide_below(&mut self, path: &EntryPath, layer: Layer) -> Result<(), PlaceError> {
        self.count(path, 0)?;
        if let Some(id) = self.walk_to(path.names()) {
            self.clear(id, layer);
        }
        Ok(())
    }

    /// Clears what is below, and tells whether the name itself stays: it is of `layer`, or something below it is.
    fn keeps(&mut self, child: Child, layer: Layer) -> bool {
        match &self.inode(child.id).node {
            Node::Folder(_) => self.clear(child.id, layer) || child.layer == layer,
            _ => child.layer == layer,
        }
    }

    /// Whether anything is left in the folder.
    fn clear(&mut self, id: InodeId, layer: Layer) -> bool {
        let Node::Folder(children) = &mut self.inodes[id.0].node else {
            return false;
        };
        if self.cleared.insert(id, layer) == Some(layer) {
            return !children.is_empty();
        }
        let mut children = std::mem::take(children);
        children.retain(|_, child| self.keeps(*child, layer));
        let is_left = !children.is_empty();
        self.inodes[id.0].node = Node::Folder(children);
        is_left
    }

    /// What `path` names; symlinks on the way are followed, the last name is not.
    pub(crate) fn find(&self, path: &EntryPath) -> Option<InodeId> {
        match path.split() {
            None => Some(InodeId::ROOT),
            Some((folders, name)) => Some(self.child(self.walk_to(folders)?, name)?.id),
        }
    }

    /// The folder that `path` leads to; symlinks are followed, also the last one.
    pub(crate) fn find_folder(&self, path: &EntryPath) -> Option<InodeId> {
        self.walk_to(path.names())
    }

    /// The folder that `names` lead to, symlinks followed.
    fn walk_to(&self, names: &[Name]) -> Option<InodeId> {
        let mut walk = Walk::start(names);
        while let Some(name) = walk.next_name() {
            let child = self.child(walk.here(), &name)?;
            match &self.inode(child.id).node {
                Node::Folder(_) => walk.enter(child.id, name.len()).ok()?,
                Node::Symlink(target) => walk.follow(target).ok()?,
                _ => return None,
            }
            self.steps.update(|steps| steps + 1);
        }
        Some(walk.here())
    }

    /// The folder that `names` lead to, symlinks followed; folders that are absent are made.
    fn make_folders(
        &mut self,
        path: &EntryPath,
        names: &[Name],
        layer: Layer,
    ) -> Result<InodeId, PlaceError> {
        let mut walk = Walk::start(names);
        while let Some(name) = walk.next_name() {
            let step = match self.child(walk.here(), &name) {
                Some(child) => match &self.inode(child.id).node {
                    Node::Folder(_) => walk.enter(child.id, name.len()),
                    Node::Symlink(target) => walk.follow(target),
                    _ => {
                        return Err(PlaceError::NotAFolder {
                            path: text(path),
                            name: display(&name),
                        });
                    }
                },
                None => {
                    self.count(path, 0)?;
                    let id = self.add(Inode::folder(Meta::ours(0o755)));
                    self.set_child(walk.here(), &name, Child { id, layer });
                    walk.enter(id, name.len())
                }
            };
            step.map_err(|fault| fault.of(path))?;
            self.steps.update(|steps| steps + 1);
        }
        Ok(walk.here())
    }

    fn count(&mut self, path: &EntryPath, bytes: usize) -> Result<(), PlaceError> {
        self.entries += 1;
        let name = path.split().map_or(0, |(_, name)| name.len());
        self.metadata_bytes = self.metadata_bytes.saturating_add(name + bytes);
        if self.entries > ENTRIES_MAX {
            Err(PlaceError::Entries)
        } else if self.steps.get() > STEPS_MAX {
            Err(PlaceError::Steps)
        } else if self.metadata_bytes > METADATA_BYTES_MAX {
            Err(PlaceError::Metadata)
        } else {
            Ok(())
        }
    }

    fn add(&mut self, inode: Inode) -> InodeId {
        self.inodes.push(inode);
        InodeId(self.inodes.len() - 1)
    }

    fn child(&self, folder: InodeId, name: &[u8]) -> Option<Child> {
        match &self.inode(folder).node {
            Node::Folder(children) => children.get(name).copied(),
            _ => None,
        }
    }

    fn set_child(&mut self, folder: InodeId, name: &[u8], child: Child) {
        if let Node::Folder(children) = &mut self.inodes[folder.0].node {
            children.insert(name.into(), child);
        }
    }
}

/// A way from the root along names and the symlinks met on it.
#[derive(Debug)]
struct Walk {
    /// Names still to go, the next one last.
    ahead: Vec<Name>,
    /// Folders from the root to here, each with the bytes of its name.
    folders: Vec<(InodeId, usize)>,
    symlinks: usize,
}

/// Why a walk ends.
#[derive(Debug, Clone, Copy)]
enum WalkFault {
    SymlinkLoop,
    Deep,
}

impl WalkFault {
    fn of(self, path: &EntryPath) -> PlaceError {
        let path = text(path);
        match self {
            Self::SymlinkLoop => PlaceError::SymlinkLoop { path },
            Self::Deep => PlaceError::Deep { path },
        }
    }
}

impl Walk {
    fn start(names: &[Name]) -> Self {
        Self {
            ahead: names.iter().rev().cloned().collect(),
            folders: Vec::new(),
            symlinks: 0,
        }
    }

    fn here(&self) -> InodeId {
        self.folders.last().map_or(InodeId::ROOT, |(id, _)| *id)
    }

    /// The next name to look up. `..`, which only targets of symlinks hold, is gone here; it ends at the root.
    fn next_name(&mut self) -> Option<Name> {
        loop {
            let name = self.ahead.pop()?;
            if name.as_ref() != b".." {
                return Some(name);
            }
            self.folders.pop();
        }
    }

    fn enter(&mut self, id: InodeId, name_bytes: usize) -> Result<(), WalkFault> {
        self.folders.push((id, name_bytes));
        let path_bytes: usize = self.folders.iter().map(|(_, bytes)| bytes + 1).sum();
        if self.folders.len() >= DEPTH_MAX || path_bytes + NAME_BYTES_MAX > PATH_BYTES_MAX {
            return Err(WalkFault::Deep);
        }
        Ok(())
    }

    fn follow(&mut self, target: &[u8]) -> Result<(), WalkFault> {
        self.symlinks += 1;
        if self.symlinks > SYMLINKS_MAX {
            return Err(WalkFault::SymlinkLoop);
        }
        if target.starts_with(b"/") {
            self.folders.clear();
        }
        let names = target.split(|byte| *byte == b'/');
        let names = names.filter(|name| !matches!(*name, b"" | b"."));
        self.ahead.extend(names.rev().map(Box::from));
        Ok(())
    }
}

fn text(path: &EntryPath) -> String {
    display(&path.names().join(&b'/'))
}

#[cfg(test)]
#[path = "tree_tests.rs"]
mod tests;
