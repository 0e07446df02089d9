//! What every root file system of ours has beside its source: the agent, its folders, and files that the user adds.

use std::path::PathBuf;

use lightv_contract::{AGENT_FOLDER, AGENT_PATH, OVERLAY_FOLDER};

use crate::directory::{self, ReadDirectoryError};
use crate::entry_path::{EntryPath, PathFault};
use crate::tree::{Content, Folder, Inode, InodeId, Layer, Meta, Node, PlaceError, Tree};

/// Above all layers of an image.
const COPIES: Layer = Layer(u32::MAX - 1);
const AGENT: Layer = Layer(u32::MAX);

/// Folders that a guest mounts something on, or programs expect, and their modes.
const FOLDERS: &[(&str, u16)] = &[
    ("/dev", 0o755),
    ("/etc", 0o755),
    ("/proc", 0o555),
    ("/root", 0o700),
    ("/run", 0o755),
    ("/sys", 0o555),
    ("/tmp", 0o1777),
];

/// A file or folder of the host that is put into the root file system.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CopySpec {
    /// File or folder of the host.
    pub from: PathBuf,
    /// Its path in the root file system. With a `/` at the end: the folder that it is put into under its own name.
    pub to: String,
    /// Permissions of the file, and of all files in a folder; as on the host if absent. At most `0o7777`.
    pub mode: Option<u16>,
    /// Who owns it and all below; root if absent.
    pub owner: Owner,
}

/// A user and a group, by number.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Owner {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// Why something could not be added.
#[derive(Debug, thiserror::Error)]
pub enum AddError {
    /// The source is a root file system of ours already.
    #[error("The source has a {AGENT_FOLDER} of its own; that place is for LightV's agent")]
    AgentFolder,
    /// A name that cannot be added to a folder.
    #[error("Cannot copy {} into {to:?}: it has no name of its own", from.display())]
    NoName {
        /// File or folder of the host.
        from: PathBuf,
        /// Where to.
        to: String,
    },
    /// Where a copy should go.
    #[error("Cannot copy {} to {to:?}: {fault}", from.display())]
    Path {
        /// File or folder of the host.
        from: PathBuf,
        /// Where to.
        to: String,
        /// What is wrong.
        fault: PathFault,
    },
    /// What should be copied.
    #[error("Cannot copy {} to {to:?}", from.display())]
    Read {
        /// File or folder of the host.
        from: PathBuf,
        /// Where to.
        to: String,
        /// Why.
        #[source]
        cause: Box<ReadDirectoryError>,
    },
    /// The agent or a folder has no place.
    #[error("Cannot add {path}")]
    Place {
        /// Which.
        path: &'static str,
        /// Why.
        #[source]
        cause: PlaceError,
    },
}

/// Adds the copies, then the agent and the folders.
pub(crate) fn add(tree: &mut Tree, agent: &[u8], copies: &[CopySpec]) -> Result<(), AddError> {
    for copy in copies {
        add_copy(tree, copy)?;
    }
    if find(tree, AGENT_FOLDER).is_some() {
        return Err(AddError::AgentFolder);
    }
    let content = Content::Bytes(agent.into());
    place(tree, AGENT_FOLDER, Inode::folder(Meta::ours(0o755)))?;
    place(tree, AGENT_PATH, Inode::file(Meta::ours(0o755), content))?;
    place(tree, OVERLAY_FOLDER, Inode::folder(Meta::ours(0o755)))?;
    for (path, mode) in FOLDERS {
        // A symlink may stand there (`/tmp -> var/tmp`): it is the source's business where it leads.
        if find(tree, path).is_none() {
            place(tree, path, Inode::folder(Meta::ours(*mode)))?;
        }
    }
    Ok(())
}

fn add_copy(tree: &mut Tree, copy: &CopySpec) -> Result<(), AddError> {
    let CopySpec { from, to, .. } = copy;
    let target = target(copy)?;
    // Read into a tree of its own first: what is new gets the owner and mode, what was there before does not.
    let mut copied = Tree::new();
    let read = directory::read_directory(from, b"copy", &mut copied, COPIES);
    read.map_err(|cause| AddError::Read {
        from: from.clone(),
        to: to.clone(),
        cause: Box::new(cause),
    })?;
    let Some(id) = copied.find(&EntryPath::parse(b"copy").unwrap_or_else(|_| target.clone()))
    else {
        return Ok(());
    };
    let mut graft = Graft {
        copied: &copied,
        tree,
        copy,
        placed: vec![None; copied.inode_count()],
    };
    graft.add(id, &target)
}

/// Where the copy goes.
fn target(copy: &CopySpec) -> Result<EntryPath, AddError> {
    use std::os::unix::ffi::OsStrExt as _;
    let CopySpec { from, to, .. } = copy;
    let mut path = to.clone().into_bytes();
    if path.ends_with(b"/") {
        let name = from.file_name().ok_or_else(|| AddError::NoName {
            from: from.clone(),
            to: to.clone(),
        })?;
        path.extend_from_slice(name.as_bytes());
    }
    EntryPath::parse(&path).map_err(|fault| AddError::Path {
        from: from.clone(),
        to: to.clone(),
        fault,
    })
}

/// Entries on their way from one tree to another.
struct Graft<'a> {
    copied: &'a Tree,
    tree: &'a mut Tree,
    copy: &'a CopySpec,
    /// Where inodes of `copied` are in `tree`, for hard links.
    placed: Vec<Option<InodeId>>,
}

impl Graft<'_> {
    fn add(&mut self, id: InodeId, to: &EntryPath) -> Result<(), AddError> {
        let copied = self.copied;
        let Inode { meta, node } = copied.inode(id);
        // A folder that is there stays as it is, also when a symlink leads to it (`/lib` on most distributions).
        let is_there = matches!(node, Node::Folder(_)) && self.tree.find_folder(to).is_some();
        if !is_there {
            self.place(id, meta, node, to)?;
        }
        if let Node::Folder(children) = node {
            for (name, child) in children {
                self.add(child.id, &to.join(name))?;
            }
        }
        Ok(())
    }

    fn place(
        &mut self,
        id: InodeId,
        meta: &Meta,
        node: &Node,
        to: &EntryPath,
    ) -> Result<(), AddError> {
        let placed = match self.placed[id.index()] {
            Some(known) => self.tree.place_link(to, known, COPIES).map(|()| known),
            None => {
                let mut meta = meta.clone();
                (meta.uid, meta.gid) = (self.copy.owner.uid, self.copy.owner.gid);
                if let (Some(mode), Node::File(_)) = (self.copy.mode, node) {
                    meta.mode = mode;
                }
                let node = match node {
                    Node::Folder(_) => Node::Folder(Folder::new()),
                    node => node.clone(),
                };
                self.tree.place(to, Inode { meta, node }, COPIES)
            }
        };
        self.placed[id.index()] = Some(placed.map_err(|cause| AddError::Read {
            from: self.copy.from.clone(),
            to: self.copy.to.clone(),
            cause: Box::new(ReadDirectoryError::Place {
                path: self.copy.from.clone(),
                cause,
            }),
        })?);
        Ok(())
    }
}

fn find(tree: &Tree, path: &str) -> Option<InodeId> {
    tree.find(&EntryPath::parse(path.as_bytes()).ok()?)
}

fn place(tree: &mut Tree, path: &'static str, inode: Inode) -> Result<(), AddError> {
    let place_error = |cause| AddError::Place { path, cause };
    let entry = EntryPath::parse(path.as_bytes()).map_err(|fault| {
        let path = path.to_owned();
        place_error(PlaceError::Path { path, fault })
    })?;
    tree.place(&entry, inode, AGENT).map_err(place_error)?;
    Ok(())
}

#[cfg(test)]
#[path = "additions_tests.rs"]
mod tests;
