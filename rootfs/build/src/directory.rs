//! A folder of the host becomes the tree, or a part of it. Contents stay in their files until they are written.

use std::collections::HashMap;
use std::ffi::CString;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{lgetxattr, llistxattr};
use rustix::process::{getegid, geteuid};

use crate::entry_path::EntryPath;
use crate::limits::{XATTR_VALUE_BYTES_MAX, XATTRS_BYTES_MAX};
use crate::tree::{Content, Inode, InodeId, Layer, Meta, Node, PlaceError, Tree};

/// Why a folder could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadDirectoryError {
    /// The host refused.
    #[error("Cannot read {}", path.display())]
    Read {
        /// File or folder.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// It has no place in the root file system.
    #[error("{} has no place in the root file system", path.display())]
    Place {
        /// File or folder.
        path: PathBuf,
        /// Why.
        #[source]
        cause: PlaceError,
    },
}

/// Extended attributes that belong to a file, and not to the file system or the security policy of the host.
fn is_kept(name: &[u8]) -> bool {
    name.starts_with(b"user.")
        || name.starts_with(b"trusted.")
        || name.starts_with(b"system.posix_acl_")
        || name == b"security.capability"
}

/// Puts the file or folder `from`, with all that is below, at `to`. It stays on one file system: other ones mounted
/// below are empty folders.
pub(crate) fn read_directory(
    from: &Path,
    to: &[u8],
    tree: &mut Tree,
    layer: Layer,
) -> Result<(), ReadDirectoryError> {
    // The path as it is typed may be a symlink; those below it are kept.
    let top = fs::canonicalize(from).map_err(|cause| read_error(from, cause))?;
    let mut reader = Reader {
        tree,
        layer,
        device: stat(&top)?.dev(),
        linked: HashMap::new(),
        owner: Owner::caller(),
    };
    reader.add(&top, to)
}

/// Who owns what the caller owns: who is not root can make no file that root owns.
#[derive(Debug, Clone, Copy)]
struct Owner {
    uid: u32,
    gid: u32,
}

impl Owner {
    fn caller() -> Self {
        Self {
            uid: geteuid().as_raw(),
            gid: getegid().as_raw(),
        }
    }

    fn of(self, metadata: &Metadata) -> (u32, u32) {
        let root_for = |found: u32, own: u32| if found == own { 0 } else { found };
        (
            root_for(metadata.uid(), self.uid),
            root_for(metadata.gid(), self.gid),
        )
    }
}

struct Reader<'a> {
    tree: &'a mut Tree,
    layer: Layer,
    device: u64,
    /// Files with several names, by inode.
    linked: HashMap<u64, InodeId>,
    owner: Owner,
}

impl Reader<'_> {
    fn add(&mut self, path: &Path, to: &[u8]) -> Result<(), ReadDirectoryError> {
        let place_error = |cause| ReadDirectoryError::Place {
            path: path.to_owned(),
            cause,
        };
        let entry = EntryPath::parse(to).map_err(|fault| {
            let path = crate::entry_path::display(to);
            place_error(PlaceError::Path { path, fault })
        })?;
        let metadata = stat(path)?;
        if let Some(id) = self.linked.get(&metadata.ino())
            && metadata.dev() == self.device
        {
            let placed = self.tree.place_link(&entry, *id, self.layer);
            return placed.map_err(place_error);
        }
        let Some(inode) = self.inode(path, &metadata)? else {
            return Ok(());
        };
        let is_folder = matches!(inode.node, Node::Folder(_));
        let id = self.tree.place(&entry, inode, self.layer);
        let id = id.map_err(place_error)?;
        if !is_folder && metadata.nlink() > 1 && metadata.dev() == self.device {
            self.linked.insert(metadata.ino(), id);
        }
        if is_folder && metadata.dev() == self.device {
            return self.add_children(path, to);
        }
        Ok(())
    }

    fn add_children(&mut self, folder: &Path, to: &[u8]) -> Result<(), ReadDirectoryError> {
        let entries = fs::read_dir(folder).map_err(|cause| read_error(folder, cause))?;
        let names = entries.map(|entry| Ok(entry?.file_name().into_vec()));
        let names: io::Result<Vec<Vec<u8>>> = names.collect();
        let mut names = names.map_err(|cause| read_error(folder, cause))?;
        names.sort();
        for name in names {
            let path = folder.join(std::ffi::OsStr::from_bytes(&name));
            self.add(&path, &[to, b"/", &name].concat())?;
        }
        Ok(())
    }

    /// `None` for sockets: they mean nothing without the process that made them.
    fn inode(&self, path: &Path, metadata: &Metadata) -> Result<Option<Inode>, ReadDirectoryError> {
        let kind = metadata.file_type();
        let device = metadata.rdev();
        let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
        let node = if kind.is_dir() {
            Node::Folder(Default::default())
        } else if kind.is_file() {
            Node::File(Content::Path {
                path: path.to_owned(),
                len: metadata.len(),
            })
        } else if kind.is_symlink() {
            let target = fs::read_link(path).map_err(|cause| read_error(path, cause))?;
            Node::Symlink(target.into_os_string().into_vec().into())
        } else if kind.is_char_device() {
            Node::Character { major, minor }
        } else if kind.is_block_device() {
            Node::Block { major, minor }
        } else if kind.is_fifo() {
            Node::Fifo
        } else {
            return Ok(None);
        };
        let (uid, gid) = self.owner.of(metadata);
        let meta = Meta {
            mode: u16::try_from(metadata.mode() & 0o7777).unwrap_or_default(),
            uid,
            gid,
            mtime: u64::try_from(metadata.mtime()).unwrap_or(0),
            xattrs: xattrs(path).map_err(|cause| read_error(path, cause))?,
        };
        Ok(Some(Inode { meta, node }))
    }
}

/// Extended attributes; none on a file system that has none.
fn xattrs(path: &Path) -> io::Result<std::collections::BTreeMap<Vec<u8>, Vec<u8>>> {
    let mut names = vec![0; XATTRS_BYTES_MAX];
    let length = match llistxattr(path, &mut names[..]) {
        Ok(length) => length,
        Err(rustix::io::Errno::OPNOTSUPP) => 0,
        Err(errno) => return Err(errno.into()),
    };
    let names = names[..length].split(|byte| *byte == 0);
    let mut found = std::collections::BTreeMap::new();
    for name in names.filter(|name| is_kept(name)) {
        let mut value = vec![0; XATTR_VALUE_BYTES_MAX];
        let length = lgetxattr(path, CString::new(name)?, &mut value[..])?;
        value.truncate(length);
        found.insert(name.to_vec(), value);
    }
    Ok(found)
}

fn stat(path: &Path) -> Result<Metadata, ReadDirectoryError> {
    fs::symlink_metadata(path).map_err(|cause| read_error(path, cause))
}

fn read_error(path: &Path, cause: io::Error) -> ReadDirectoryError {
    ReadDirectoryError::Read {
        path: path.to_owned(),
        cause,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    use std::os::unix::net::UnixListener;

    use super::*;

    fn read(folder: &Path) -> Tree {
        let mut tree = Tree::new();
        read_directory(folder, b"", &mut tree, Layer(1)).expect("readable");
        tree
    }

    fn find(tree: &Tree, path: &str) -> Option<InodeId> {
        tree.find(&EntryPath::parse(path.as_bytes()).expect("a path"))
    }

    #[test]
    fn files_keep_their_modes_and_links() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("bin")).expect("made");
        fs::write(at("bin/su"), "x").expect("written");
        fs::set_permissions(at("bin/su"), fs::Permissions::from_mode(0o4755)).expect("set");
        fs::hard_link(at("bin/su"), at("again")).expect("linked");
        symlink("/etc/passwd", at("out")).expect("linked");
        let _socket = UnixListener::bind(at("socket")).expect("bound");
        let tree = read(folder.path());
        let su = find(&tree, "bin/su").expect("there");
        assert_eq!(tree.inode(su).meta.mode, 0o4755);
        assert_eq!(find(&tree, "again"), Some(su));
        let out = tree.inode(find(&tree, "out").expect("there"));
        assert!(matches!(&out.node, Node::Symlink(target) if target.as_ref() == b"/etc/passwd"));
        assert_eq!(find(&tree, "socket"), None);
    }

    #[test]
    fn what_the_caller_owns_is_roots() {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join("mine"), "").expect("written");
        let tree = read(folder.path());
        let meta = &tree.inode(find(&tree, "mine").expect("there")).meta;
        assert_eq!((meta.uid, meta.gid), (0, 0));
        let (uid, gid) = Owner {
            uid: 1000,
            gid: 1000,
        }
        .of(&fs::metadata("/proc/1").expect("readable"));
        assert_eq!((uid, gid), (0, 0));
    }

    #[test]
    fn a_folder_that_is_not_there_is_named() {
        let mut tree = Tree::new();
        let error = read_directory(Path::new("/nowhere/at-all"), b"", &mut tree, Layer(1));
        let text = error.expect_err("not there").to_string();
        assert_eq!(text, "Cannot read /nowhere/at-all");
    }
}
