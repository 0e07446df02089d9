use super::*;
use crate::entry_path::EntryPath;
use crate::tree::{Layer, Meta};

fn tree(files: &[(&str, Node)]) -> Tree {
    let mut tree = Tree::new();
    for (path, node) in files {
        let path = EntryPath::parse(path.as_bytes()).expect("a path");
        let meta = Meta::ours(0o644);
        let node = node.clone();
        tree.place(&path, Inode { meta, node }, Layer(1))
            .expect("placed");
    }
    tree
}

fn file(length: usize) -> Node {
    Node::File(Content::Bytes(vec![1; length].into()))
}

fn image(tree: &Tree) -> Vec<u8> {
    let mut image = Vec::new();
    write(tree, &mut image).expect("in memory");
    image
}

#[test]
fn the_superblock_is_where_linux_looks() {
    let image = image(&Tree::new());
    assert_eq!(image[1024..1028], 0xe0f5_e1e2_u32.to_le_bytes());
    assert_eq!(image.len() % 4096, 0);
    // root_nid, inos, blocks.
    assert_eq!(image[1024 + 14..1024 + 16], 36_u16.to_le_bytes());
    assert_eq!(image[1024 + 16..1024 + 24], 1_u64.to_le_bytes());
    assert_eq!(image[1024 + 36..1024 + 40], 1_u32.to_le_bytes());
    // The root: extended, inline; a folder; two links.
    let root = &image[36 * 32..];
    assert_eq!(root[..2], 0b101_u16.to_le_bytes());
    assert_eq!(root[4..6], 0o040_755_u16.to_le_bytes());
    assert_eq!(root[44..48], 2_u32.to_le_bytes());
}

#[test]
fn no_inode_and_no_inline_content_lies_in_two_blocks() {
    let nodes: Vec<(String, Node)> = (0..3000_usize)
        .map(|number| (format!("{number:04}"), file(number * 7 % 2200)))
        .collect();
    let nodes: Vec<(&str, Node)> = nodes
        .iter()
        .map(|(name, node)| (name.as_str(), node.clone()))
        .collect();
    let tree = tree(&nodes);
    let plan = Plan::of(&tree).expect("small");
    let mut end = 0;
    for placed in &plan.files {
        let inline = if placed.is_inline() { placed.len } else { 0 };
        let last = placed.position + 64 + inline - 1;
        assert_eq!(placed.position / BLOCK, last / BLOCK, "{placed:?}");
        assert!(
            placed.position >= end && placed.position % SLOT == 0,
            "{placed:?}"
        );
        end = last + 1;
        assert_eq!(
            placed.is_inline(),
            placed.len > 0 && placed.len <= 2048,
            "{placed:?}"
        );
    }
}

#[test]
fn folders_are_sorted_over_all_their_blocks() {
    let names: Vec<String> = (0..500).map(|number| format!("!{number:0>30}")).collect();
    let nodes: Vec<(&str, Node)> = names.iter().map(|name| (name.as_str(), file(0))).collect();
    let tree = tree(&nodes);
    let Node::Folder(children) = &tree.inode(InodeId::ROOT).node else {
        panic!("the root is a folder");
    };
    let blocks = folder_blocks(children);
    assert!(blocks.iter().all(|names| names_bytes(names) <= 4096));
    let all = blocks.concat();
    assert!(all.is_sorted() && all.len() == 502);
    // `!` is before `.`.
    assert_eq!(all[500..], [b".".as_slice(), b".."]);
}

#[test]
fn devices_are_packed_as_linux_packs_them() {
    let node = Node::Block {
        major: 259,
        minor: 70_000,
    };
    let tree = tree(&[("big", node)]);
    let plan = Plan::of(&tree).expect("small");
    let bytes = plan.inode(&plan.files[1]);
    // new_encode_dev(MKDEV(259, 70000)).
    assert_eq!(bytes[16..20], 0x1111_0370_u32.to_le_bytes());
}

#[test]
fn attributes_that_erofs_has_no_name_for_are_left_out() {
    let names: [(&[u8], Option<u8>); 6] = [
        (b"user.a", Some(1)),
        (b"system.posix_acl_access", Some(2)),
        (b"trusted.b", Some(4)),
        (b"security.capability", Some(6)),
        (b"system.other", None),
        (b"user.", None),
    ];
    for (name, index) in names {
        assert_eq!(xattr_index(name).map(|(index, _)| index), index);
    }
    assert_eq!([0, 12, 16].map(xattr_count), [0, 1, 2]);
}
