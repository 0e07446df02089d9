//! The tree as one tar stream (PAX), for tools that read such: sorted, with all metadata.

use std::io::{self, Write};

use tar::{Builder, EntryType, Header};

use crate::content::{self, CopyContentError};
use crate::tree::{Content, Inode, InodeId, Node, Tree};

/// Why the stream ended early.
#[derive(Debug, thiserror::Error)]
pub enum WriteTarError {
    /// A content.
    #[error("Cannot copy {path:?}")]
    Content {
        /// Path in the root file system.
        path: String,
        /// Why.
        #[source]
        cause: CopyContentError,
    },
    /// The reader of the stream is gone, or refused it.
    #[error("Cannot write the tar stream")]
    Write(#[source] io::Error),
}

/// Whether the root itself has an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RootEntry {
    Written,
    /// For tools that take the root's metadata by options.
    Absent,
}

/// Writes the whole stream.
pub(crate) fn write(tree: &Tree, root: RootEntry, out: impl Write) -> Result<(), WriteTarError> {
    let mut writer = Writer {
        tree,
        first_paths: vec![None; tree.inode_count()],
        out: Builder::new(out),
    };
    if root == RootEntry::Written {
        writer.entry(InodeId::ROOT, b"./")?;
    }
    writer.children(InodeId::ROOT, b"")?;
    let mut out = writer.out.into_inner().map_err(WriteTarError::Write)?;
    out.flush().map_err(WriteTarError::Write)
}

struct Writer<'a, W: Write> {
    tree: &'a Tree,
    /// By inode: the path that was written; later names are hard links to it.
    first_paths: Vec<Option<Vec<u8>>>,
    out: Builder<W>,
}

impl<W: Write> Writer<'_, W> {
    fn children(&mut self, folder: InodeId, prefix: &[u8]) -> Result<(), WriteTarError> {
        let tree = self.tree;
        let Node::Folder(children) = &tree.inode(folder).node else {
            return Ok(());
        };
        for (name, child) in children {
            let path = [prefix, name].concat();
            if let Node::Folder(_) = &tree.inode(child.id).node {
                let path = [&path, &b"/"[..]].concat();
                self.entry(child.id, &path)?;
                self.children(child.id, &path)?;
            } else {
                self.entry(child.id, &path)?;
            }
        }
        Ok(())
    }

    fn entry(&mut self, id: InodeId, path: &[u8]) -> Result<(), WriteTarError> {
        let tree = self.tree;
        let inode = tree.inode(id);
        if let Some(first) = &self.first_paths[id.index()] {
            let link = Entry::new(path, EntryType::Link, first);
            return self.write(link, inode);
        }
        if !matches!(inode.node, Node::Folder(_)) {
            self.first_paths[id.index()] = Some(path.to_vec());
        }
        let (kind, link): (EntryType, &[u8]) = match &inode.node {
            Node::Folder(_) => (EntryType::Directory, b""),
            Node::File(_) => (EntryType::Regular, b""),
            Node::Symlink(target) => (EntryType::Symlink, target),
            Node::Character { .. } => (EntryType::Char, b""),
            Node::Block { .. } => (EntryType::Block, b""),
            Node::Fifo => (EntryType::Fifo, b""),
        };
        self.write(Entry::new(path, kind, link), inode)
    }

    fn write(&mut self, mut entry: Entry, inode: &Inode) -> Result<(), WriteTarError> {
        entry.describe(inode);
        if !entry.records.is_empty() {
            let records = entry.records.iter();
            let records = records.map(|(name, value)| (name.as_str(), value.as_slice()));
            let written = self.out.append_pax_extensions(records);
            written.map_err(WriteTarError::Write)?;
        }
        entry.header.set_cksum();
        let out = self.out.get_mut();
        let written = out.write_all(entry.header.as_bytes());
        written.map_err(WriteTarError::Write)?;
        if let (Node::File(content), EntryType::Regular) = (&inode.node, entry.header.entry_type())
        {
            content::copy(content, out).map_err(|cause| WriteTarError::Content {
                path: String::from_utf8_lossy(&entry.path).into_owned(),
                cause,
            })?;
            let padding = usize::try_from(content.len().wrapping_neg() % 512).unwrap_or(0);
            let written = out.write_all(&[0; 512][..padding]);
            written.map_err(WriteTarError::Write)?;
        }
        Ok(())
    }
}

/// A header, and what does not fit into it.
struct Entry {
    path: Vec<u8>,
    header: Header,
    records: Vec<(String, Vec<u8>)>,
}

impl Entry {
    fn new(path: &[u8], kind: EntryType, link: &[u8]) -> Self {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        let mut records = Vec::new();
        let fields = header.as_old_mut();
        let mut put = |field: &mut [u8; 100], name: &str, value: &[u8]| {
            let length = value.len().min(field.len());
            field[..length].copy_from_slice(&value[..length]);
            if value.len() > field.len() {
                records.push((name.to_owned(), value.to_vec()));
            }
        };
        put(&mut fields.name, "path", path);
        put(&mut fields.linkname, "linkpath", link);
        let path = path.to_vec();
        Self {
            path,
            header,
            records,
        }
    }

    fn describe(&mut self, inode: &Inode) {
        /// What seven octal digits hold.
        const ID_MAX: u32 = 0o7_777_777;
        let meta = &inode.meta;
        let header = &mut self.header;
        header.set_mode(u32::from(meta.mode));
        header.set_size(0);
        header.set_uid(u64::from(meta.uid.min(ID_MAX)));
        header.set_gid(u64::from(meta.gid.min(ID_MAX)));
        for (name, id) in [("uid", meta.uid), ("gid", meta.gid)] {
            if id > ID_MAX {
                self.records
                    .push((name.to_owned(), id.to_string().into_bytes()));
            }
        }
        // Eleven octal digits: until the year 2242.
        header.set_mtime(meta.mtime.min(0o77_777_777_777));
        match &inode.node {
            Node::File(content) if header.entry_type() == EntryType::Regular => {
                self.set_size(content);
            }
            Node::Character { major, minor } | Node::Block { major, minor } => {
                // Fails for headers other than ustar alone.
                let _ = header.set_device_major(*major);
                let _ = header.set_device_minor(*minor);
            }
            _ => {}
        }
        if self.header.entry_type() != EntryType::Link {
            for (name, value) in &meta.xattrs {
                // A record's name is text; what is not has no meaning to Linux either.
                if let Ok(name) = std::str::from_utf8(name) {
                    self.records
                        .push((format!("SCHILY.xattr.{name}"), value.clone()));
                }
            }
        }
    }

    fn set_size(&mut self, content: &Content) {
        let len = content.len();
        self.header.set_size(len);
        if len > crate::limits::FILE_BYTES_MAX {
            self.records
                .push(("size".to_owned(), len.to_string().into_bytes()));
        }
    }
}
