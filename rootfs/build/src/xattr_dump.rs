//! Extended attributes as `setfattr --restore` reads them.
//!
//! tar sets them through descriptors, which `fakeroot` 1.31 cannot do without forgetting what kind of file it is;
//! setfattr sets them by path.

use std::fmt::Write as _;

use crate::tree::{InodeId, Node, Tree};

/// Bytes of the longest attribute, name and value.
pub(crate) fn longest(tree: &Tree) -> usize {
    let xattrs = tree.inodes().flat_map(|inode| &inode.meta.xattrs);
    let lengths = xattrs.map(|(name, value)| name.len() + value.len());
    lengths.max().unwrap_or(0)
}

/// The dump; empty when nothing has attributes. Paths are relative to the root.
pub(crate) fn dump(tree: &Tree) -> String {
    let mut dump = Dump {
        tree,
        seen: vec![false; tree.inode_count()],
        text: String::new(),
    };
    dump.add(InodeId::ROOT, ".");
    dump.text
}

struct Dump<'a> {
    tree: &'a Tree,
    seen: Vec<bool>,
    text: String,
}

impl Dump<'_> {
    fn add(&mut self, id: InodeId, path: &str) {
        if std::mem::replace(&mut self.seen[id.index()], true) {
            return;
        }
        let inode = self.tree.inode(id);
        if !inode.meta.xattrs.is_empty() {
            // Writing into a String cannot fail.
            let _ = writeln!(self.text, "# file: {path}");
            for (name, value) in &inode.meta.xattrs {
                let value: String = value.iter().map(|byte| format!("{byte:02x}")).collect();
                let _ = writeln!(self.text, "{}=0x{value}", quoted(name));
            }
            self.text.push('\n');
        }
        if let Node::Folder(children) = &inode.node {
            for (name, child) in children {
                self.add(child.id, &format!("{path}/{}", quoted(name)));
            }
        }
    }
}

/// All but the plainest bytes as `\ooo`.
fn quoted(name: &[u8]) -> String {
    let mut text = String::new();
    for byte in name {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'_' | b'-' => {
                text.push(char::from(*byte));
            }
            byte => {
                let _ = write!(text, "\\{byte:03o}");
            }
        }
    }
    text
}
