//! Uncompressed erofs images (Documentation/filesystems/erofs.rst and fs/erofs/erofs_fs.h of Linux), written directly.
//!
//! `mkfs.erofs` of Debian 12 reads folders alone, so it needs a staged copy of everything and a `fakeroot` for its
//! owners. The format without compression is small, and this way nothing is staged and the same tree always gives the
//! same bytes.
//!
//! Layout: the superblock at 1 KiB, then all inodes, each with its extended attributes and, when it is small, its
//! content; from the next block on the other contents, each from a block's start, so that a page of a file is a block of
//! the disk.

use std::io::{self, Write};

use crate::content::{self, CopyContentError};
use crate::tree::{Content, Folder, Inode, InodeId, Node, Tree};

const BLOCK: u64 = 4096;
const BLOCK_BITS: u8 = 12;
const SUPERBLOCK_AT: u64 = 1024;
const SUPERBLOCK_BYTES: usize = 128;
const MAGIC: u32 = 0xe0f5_e1e2;
/// The times of inodes are those of modification (`EROFS_FEATURE_COMPAT_MTIME`).
const FEATURE_COMPAT_MTIME: u32 = 2;
/// Any value; a fixed one, for the same bytes each time.
const UUID: &[u8; 16] = b"LightV root file";
/// Inodes are numbered by their place, in units of so many bytes.
const SLOT: u64 = 32;
/// Bytes of an extended inode: 32-bit owners, and a time.
const INODE_BYTES: usize = 64;
/// Bit 0 of `i_format`: the inode is extended.
const FORMAT_EXTENDED: u16 = 1;
/// `i_format`: content from a block's start.
const FORMAT_PLAIN: u16 = 0;
/// `i_format`: content after the inode.
const FORMAT_INLINE: u16 = 2 << 1;
/// A content up to this length stands with its inode and is read with it. A longer one is worth a block.
const INLINE_BYTES_MAX: u64 = 2048;
/// Bytes before the first extended attribute.
const XATTR_HEADER_BYTES: usize = 12;
const DIRENT_BYTES: usize = 12;

/// Why an image could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteErofsError {
    /// A content.
    #[error("Cannot copy {path:?} into the image")]
    Content {
        /// Path in the root file system.
        path: String,
        /// Why.
        #[source]
        cause: CopyContentError,
    },
    /// The image.
    #[error("Cannot write the image")]
    Write(#[source] io::Error),
    /// Block numbers have 32 bits.
    #[error("The image would be larger than erofs can be (16 TiB)")]
    Large,
}

/// Writes the whole image.
pub(crate) fn write(tree: &Tree, out: impl Write) -> Result<(), WriteErofsError> {
    let plan = Plan::of(tree)?;
    let mut out = Counted { out, position: 0 };
    out.pad_to(SUPERBLOCK_AT)?;
    out.bytes(&plan.superblock())?;
    for file in &plan.files {
        out.pad_to(file.position)?;
        out.bytes(&plan.inode(file))?;
        out.bytes(&xattr_bytes(tree.inode(file.id)))?;
        if file.is_inline() {
            plan.write_content(file, &mut out)?;
        }
    }
    for file in plan.files.iter().filter(|file| !file.is_inline()) {
        if file.len > 0 {
            out.pad_to(u64::from(file.block) * BLOCK)?;
            plan.write_content(file, &mut out)?;
        }
    }
    out.pad_to(u64::from(plan.blocks) * BLOCK)
}

/// Where everything is.
#[derive(Debug)]
struct Plan<'a> {
    tree: &'a Tree,
    /// In the order of their places.
    files: Vec<Placed>,
    /// By inode: index in `files`.
    index: Vec<Option<usize>>,
    blocks: u32,
}

/// An inode with its place.
#[derive(Debug)]
struct Placed {
    id: InodeId,
    /// The folder it was first met in, for `..`; the root's is the root.
    parent: InodeId,
    path: String,
    links: u32,
    /// Bytes of the content.
    len: u64,
    /// Byte of the inode in the image.
    position: u64,
    /// Block of the content; 0 when it is inline or empty.
    block: u32,
}

impl Placed {
    const fn is_inline(&self) -> bool {
        self.block == 0 && self.len > 0
    }

    const fn nid(&self) -> u64 {
        self.position / SLOT
    }
}

impl<'a> Plan<'a> {
    fn of(tree: &'a Tree) -> Result<Self, WriteErofsError> {
        let mut plan = Self {
            tree,
            files: Vec::new(),
            index: vec![None; tree.inode_count()],
            blocks: 0,
        };
        plan.collect(InodeId::ROOT, InodeId::ROOT, "");
        let end = plan.place_inodes();
        plan.place_contents(end.div_ceil(BLOCK))?;
        Ok(plan)
    }

    /// All inodes in the order of their paths; the root is the first, for its number has 16 bits in the superblock.
    fn collect(&mut self, id: InodeId, parent: InodeId, path: &str) {
        if let Some(known) = self.index[id.index()] {
            self.files[known].links += 1;
            return;
        }
        let node = &self.tree.inode(id).node;
        let mut links = 1;
        if let Node::Folder(children) = node {
            let is_folder = |id| matches!(self.tree.inode(id).node, Node::Folder(_));
            let folders = children
                .values()
                .filter(|child| is_folder(child.id))
                .count();
            links = u32::try_from(folders).map_or(u32::MAX, |folders| folders.saturating_add(2));
        }
        self.index[id.index()] = Some(self.files.len());
        self.files.push(Placed {
            id,
            parent,
            path: path.to_owned(),
            links,
            len: content_len(node),
            position: 0,
            block: 0,
        });
        if let Node::Folder(children) = node {
            for (name, child) in children {
                let name = String::from_utf8_lossy(name);
                self.collect(child.id, id, &format!("{path}/{name}"));
            }
        }
    }

    /// Gives inodes their places, and where the last one ends.
    fn place_inodes(&mut self) -> u64 {
        let mut position = SUPERBLOCK_AT + SUPERBLOCK_BYTES as u64;
        for file in &mut self.files {
            let xattrs = xattr_bytes(self.tree.inode(file.id)).len() as u64;
            let head = INODE_BYTES as u64 + xattrs;
            let is_inline = can_be_inline(file.len, head);
            position = position.next_multiple_of(SLOT);
            // Neither an inode nor an inline content may lie in two blocks.
            let together = if is_inline {
                head + file.len
            } else {
                INODE_BYTES as u64
            };
            if position % BLOCK + together > BLOCK {
                position = position.next_multiple_of(BLOCK);
            }
            file.position = position;
            position += head + if is_inline { file.len } else { 0 };
        }
        position
    }

    fn place_contents(&mut self, first: u64) -> Result<(), WriteErofsError> {
        let mut block = first;
        for file in &mut self.files {
            let xattrs = xattr_bytes(self.tree.inode(file.id)).len() as u64;
            if file.len > 0 && !can_be_inline(file.len, INODE_BYTES as u64 + xattrs) {
                file.block = u32::try_from(block).map_err(|_| WriteErofsError::Large)?;
                block += file.len.div_ceil(BLOCK);
            }
        }
        self.blocks = u32::try_from(block).map_err(|_| WriteErofsError::Large)?;
        Ok(())
    }

    fn superblock(&self) -> Vec<u8> {
        let mut bytes = Fields::new(SUPERBLOCK_BYTES);
        let root_nid = (SUPERBLOCK_AT + SUPERBLOCK_BYTES as u64) / SLOT;
        bytes.put(0, &MAGIC.to_le_bytes());
        bytes.put(8, &FEATURE_COMPAT_MTIME.to_le_bytes());
        bytes.put(12, &[BLOCK_BITS]);
        bytes.put(14, &root_nid.to_le_bytes()[..2]);
        bytes.put(16, &(self.files.len() as u64).to_le_bytes());
        bytes.put(36, &self.blocks.to_le_bytes());
        bytes.put(48, UUID);
        bytes.0
    }

    fn inode(&self, file: &Placed) -> Vec<u8> {
        let inode = self.tree.inode(file.id);
        let meta = &inode.meta;
        let layout = if file.is_inline() {
            FORMAT_INLINE
        } else {
            FORMAT_PLAIN
        };
        let mut bytes = Fields::new(INODE_BYTES);
        bytes.put(0, &(FORMAT_EXTENDED | layout).to_le_bytes());
        bytes.put(2, &xattr_count(xattr_bytes(inode).len()).to_le_bytes());
        bytes.put(4, &(mode_type(&inode.node) | meta.mode).to_le_bytes());
        bytes.put(8, &file.len.to_le_bytes());
        bytes.put(16, &self.place_or_device(file, &inode.node).to_le_bytes());
        let number = self.index[file.id.index()].unwrap_or_default() + 1;
        bytes.put(20, &(number as u64).to_le_bytes()[..4]);
        bytes.put(24, &meta.uid.to_le_bytes());
        bytes.put(28, &meta.gid.to_le_bytes());
        bytes.put(32, &meta.mtime.to_le_bytes());
        bytes.put(44, &file.links.to_le_bytes());
        bytes.0
    }

    /// `i_u`: a device's numbers as `new_encode_dev()` of Linux packs them, or the content's block.
    fn place_or_device(&self, file: &Placed, node: &Node) -> u32 {
        match node {
            Node::Character { major, minor } | Node::Block { major, minor } => {
                (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
            }
            _ => file.block,
        }
    }

    fn write_content<W: Write>(
        &self,
        file: &Placed,
        out: &mut Counted<W>,
    ) -> Result<(), WriteErofsError> {
        match &self.tree.inode(file.id).node {
            Node::File(content) => {
                content::copy(content, out).map_err(|cause| WriteErofsError::Content {
                    path: file.path.clone(),
                    cause,
                })
            }
            Node::Symlink(target) => out.bytes(target),
            Node::Folder(children) => out.bytes(&self.folder_bytes(file, children)),
            Node::Character { .. } | Node::Block { .. } | Node::Fifo => Ok(()),
        }
    }

    /// Blocks of entries: first the fixed parts of a block's entries, then their names, sorted over all blocks.
    fn folder_bytes(&self, file: &Placed, children: &Folder) -> Vec<u8> {
        let mut bytes = Vec::new();
        for block in folder_blocks(children) {
            bytes.resize(bytes.len().next_multiple_of(usize_block()), 0);
            let mut name_at = block.len() * DIRENT_BYTES;
            let mut names = Vec::new();
            for name in &block {
                let id = match *name {
                    b"." => file.id,
                    b".." => file.parent,
                    name => children.get(name).map_or(file.id, |child| child.id),
                };
                let nid = self.index[id.index()].map_or(0, |index| self.files[index].nid());
                bytes.extend_from_slice(&nid.to_le_bytes());
                bytes.extend_from_slice(&name_at.to_le_bytes()[..2]);
                bytes.extend_from_slice(&[entry_type(&self.tree.inode(id).node), 0]);
                names.extend_from_slice(name);
                name_at += name.len();
            }
            bytes.append(&mut names);
        }
        bytes
    }
}

const fn usize_block() -> usize {
    1 << BLOCK_BITS
}

const fn can_be_inline(len: u64, head: u64) -> bool {
    len > 0 && len <= INLINE_BYTES_MAX && head + len <= BLOCK
}

fn content_len(node: &Node) -> u64 {
    match node {
        Node::File(content) => Content::len(content),
        Node::Symlink(target) => target.len() as u64,
        Node::Folder(children) => {
            let blocks = folder_blocks(children);
            let last = blocks.last().map_or(0, |names| names_bytes(names));
            ((blocks.len() - 1) * usize_block() + last) as u64
        }
        Node::Character { .. } | Node::Block { .. } | Node::Fifo => 0,
    }
}

fn names_bytes(names: &[&[u8]]) -> usize {
    names.iter().map(|name| DIRENT_BYTES + name.len()).sum()
}

/// The names of a folder, `.` and `..` among them, in the order of their bytes, split into what fits into a block. At
/// least one block.
fn folder_blocks(children: &Folder) -> Vec<Vec<&[u8]>> {
    let mut names: Vec<&[u8]> = children.keys().map(AsRef::as_ref).collect();
    names.extend([&b"."[..], b".."]);
    names.sort_unstable();
    let mut blocks = vec![Vec::new()];
    let mut used = 0;
    for name in names {
        let needed = DIRENT_BYTES + name.len();
        if used + needed > usize_block() {
            blocks.push(Vec::new());
            used = 0;
        }
        used += needed;
        if let Some(block) = blocks.last_mut() {
            block.push(name);
        }
    }
    blocks
}

/// Index and rest of an attribute's name; `None` for names that erofs has no index for.
fn xattr_index(name: &[u8]) -> Option<(u8, &[u8])> {
    const PREFIXES: &[(&[u8], u8)] = &[(b"user.", 1), (b"trusted.", 4), (b"security.", 6)];
    match name {
        b"system.posix_acl_access" => Some((2, &[])),
        b"system.posix_acl_default" => Some((3, &[])),
        _ => PREFIXES.iter().find_map(|(prefix, index)| {
            let rest = name.strip_prefix(*prefix).filter(|rest| !rest.is_empty())?;
            Some((*index, rest))
        }),
    }
}

/// Header and attributes; nothing when there is none. The length is a multiple of 4.
fn xattr_bytes(inode: &Inode) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, value) in &inode.meta.xattrs {
        let Some((index, rest)) = xattr_index(name) else {
            continue;
        };
        if bytes.is_empty() {
            bytes.resize(XATTR_HEADER_BYTES, 0);
        }
        // Both lengths were checked when the entry was read (limits.rs).
        bytes.extend_from_slice(&[rest.len().to_le_bytes()[0], index]);
        bytes.extend_from_slice(&value.len().to_le_bytes()[..2]);
        bytes.extend_from_slice(rest);
        bytes.extend_from_slice(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}

/// `i_xattr_icount`: words after the header, and one for the header.
fn xattr_count(bytes: usize) -> u16 {
    match bytes.checked_sub(XATTR_HEADER_BYTES) {
        None => 0,
        Some(bytes) => u16::try_from(bytes / 4 + 1).unwrap_or(u16::MAX),
    }
}

/// Type bits of `st_mode`.
const fn mode_type(node: &Node) -> u16 {
    match node {
        Node::Fifo => 0o010_000,
        Node::Character { .. } => 0o020_000,
        Node::Folder(_) => 0o040_000,
        Node::Block { .. } => 0o060_000,
        Node::File(_) => 0o100_000,
        Node::Symlink(_) => 0o120_000,
    }
}

/// Type in a folder's entry: `FT_*` of include/linux/fs_types.h.
const fn entry_type(node: &Node) -> u8 {
    match node {
        Node::File(_) => 1,
        Node::Folder(_) => 2,
        Node::Character { .. } => 3,
        Node::Block { .. } => 4,
        Node::Fifo => 5,
        Node::Symlink(_) => 7,
    }
}

/// A structure whose fields are given by offset; the others are 0.
struct Fields(Vec<u8>);

impl Fields {
    fn new(bytes: usize) -> Self {
        Self(vec![0; bytes])
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }
}

/// Knows how much was written.
struct Counted<W> {
    out: W,
    position: u64,
}

impl<W: Write> Counted<W> {
    fn bytes(&mut self, bytes: &[u8]) -> Result<(), WriteErofsError> {
        self.write_all(bytes).map_err(WriteErofsError::Write)
    }

    /// Zeros up to `position`, which is not before what was written.
    fn pad_to(&mut self, position: u64) -> Result<(), WriteErofsError> {
        const ZEROS: [u8; 4096] = [0; 4096];
        while self.position < position {
            let left = usize::try_from(position - self.position).unwrap_or(ZEROS.len());
            self.bytes(&ZEROS[..left.min(ZEROS.len())])?;
        }
        Ok(())
    }
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.out.write(bytes)?;
        self.position += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
#[path = "erofs_tests.rs"]
mod tests;
