use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use super::*;

fn source(files: &[(&str, Node)]) -> Tree {
    let mut tree = Tree::new();
    for (path, node) in files {
        let path = EntryPath::parse(path.as_bytes()).expect("a path");
        let meta = Meta::ours(0o700);
        let node = node.clone();
        tree.place(&path, Inode { meta, node }, Layer(1))
            .expect("placed");
    }
    tree
}

fn folder() -> Node {
    Node::Folder(Folder::new())
}

fn mode(tree: &Tree, path: &str) -> Option<u16> {
    Some(tree.inode(find(tree, path)?).meta.mode)
}

#[test]
fn the_agent_and_its_folders_are_added() {
    let mut tree = Tree::new();
    add(&mut tree, b"agent", &[]).expect("added");
    let expected = [
        ("/.lightv", 0o755),
        ("/.lightv/init", 0o755),
        ("/.lightv/overlay", 0o755),
        ("/dev", 0o755),
        ("/etc", 0o755),
        ("/proc", 0o555),
        ("/root", 0o700),
        ("/run", 0o755),
        ("/sys", 0o555),
        ("/tmp", 0o1777),
    ];
    for (path, expected) in expected {
        assert_eq!(mode(&tree, path), Some(expected), "{path}");
    }
    let agent = tree.inode(find(&tree, AGENT_PATH).expect("there"));
    assert!(matches!(&agent.node, Node::File(Content::Bytes(bytes)) if **bytes == *b"agent"));
}

#[test]
fn folders_and_links_of_the_source_stay() {
    let link = Node::Symlink(b"var/tmp".as_slice().into());
    let mut tree = source(&[("etc", folder()), ("tmp", link)]);
    add(&mut tree, b"agent", &[]).expect("added");
    assert_eq!(mode(&tree, "/etc"), Some(0o700));
    let tmp = tree.inode(find(&tree, "/tmp").expect("there"));
    assert!(matches!(tmp.node, Node::Symlink(_)));
}

#[test]
fn a_source_with_our_folder_is_refused() {
    let mut tree = source(&[(".lightv", folder())]);
    let error = add(&mut tree, b"agent", &[]);
    assert!(matches!(error, Err(AddError::AgentFolder)));
}

fn copy(from: &std::path::Path, to: &str) -> CopySpec {
    CopySpec {
        from: from.to_owned(),
        to: to.to_owned(),
        mode: None,
        owner: Owner { uid: 5, gid: 6 },
    }
}

#[test]
fn a_file_is_copied_with_mode_and_owner() {
    let host = tempfile::tempdir().expect("a folder");
    let app = host.path().join("app");
    fs::write(&app, "x").expect("written");
    fs::set_permissions(&app, fs::Permissions::from_mode(0o640)).expect("set");
    let with_mode = CopySpec {
        mode: Some(0o4755),
        ..copy(&app, "usr/bin/")
    };
    let mut tree = source(&[("usr", folder())]);
    add(&mut tree, b"agent", &[copy(&app, "/opt/it"), with_mode]).expect("added");
    assert_eq!(mode(&tree, "/opt/it"), Some(0o640));
    assert_eq!(mode(&tree, "/usr/bin/app"), Some(0o4755));
    let meta = &tree.inode(find(&tree, "/opt/it").expect("there")).meta;
    assert_eq!((meta.uid, meta.gid), (5, 6));
}

#[test]
fn a_folder_is_merged_into_folders_also_by_their_links() {
    let host = tempfile::tempdir().expect("a folder");
    let at = |name: &str| host.path().join(name);
    fs::create_dir_all(at("lib/sub")).expect("made");
    fs::write(at("lib/sub/new"), "x").expect("written");
    fs::hard_link(at("lib/sub/new"), at("lib/again")).expect("linked");
    symlink("new", at("lib/sub/link")).expect("linked");
    let lib = Node::Symlink(b"usr/lib".as_slice().into());
    let mut tree = source(&[("usr/lib", folder()), ("lib", lib)]);
    add(&mut tree, b"agent", &[copy(host.path(), "/.")]).expect("added");
    assert!(matches!(
        tree.inode(find(&tree, "/lib").expect("there")).node,
        Node::Symlink(_)
    ));
    assert_eq!(mode(&tree, "/usr/lib"), Some(0o700));
    assert_eq!(mode(&tree, ""), Some(0o755));
    let new = find(&tree, "/usr/lib/sub/new").expect("there");
    assert_eq!(find(&tree, "/usr/lib/again"), Some(new));
    assert!(find(&tree, "/usr/lib/sub/link").is_some());
}

#[test]
fn copies_that_cannot_be_are_named() {
    let mut tree = Tree::new();
    let mut refused = |from: &str, to: &str| {
        let error = add(&mut tree, b"", &[copy(from.as_ref(), to)]).expect_err(to);
        error.to_string()
    };
    assert_eq!(
        refused("/absent-file", "/a"),
        "Cannot copy /absent-file to \"/a\""
    );
    assert!(refused("/etc/hosts", "/a/../b").ends_with("it holds `..`"));
    assert!(refused("/", "/a/").ends_with("it has no name of its own"));
    assert!(refused("/etc/hosts", AGENT_PATH).contains("for LightV's agent"));
}
