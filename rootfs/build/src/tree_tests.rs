use super::*;

fn path(text: &str) -> EntryPath {
    EntryPath::parse(text.as_bytes()).expect("a path")
}

fn file(text: &str) -> Inode {
    Inode::file(Meta::ours(0o644), Content::Bytes(text.as_bytes().into()))
}

fn folder(mode: u16) -> Inode {
    Inode::folder(Meta::ours(mode))
}

fn symlink(target: &str) -> Inode {
    Inode {
        meta: Meta::ours(0o777),
        node: Node::Symlink(target.as_bytes().into()),
    }
}

/// Places files (`path`), folders (`path/`) and symlinks (`path -> target`), and does whiteouts (`-path`, `-path/*`).
fn apply(tree: &mut Tree, layer: u32, steps: &[&str]) {
    for step in steps {
        let layer = Layer(layer);
        if let Some(hidden) = step.strip_prefix('-') {
            match hidden.strip_suffix("/*") {
                Some(folder) => tree.hide_below(&path(folder), layer),
                None => tree.hide(&path(hidden), layer),
            }
            .expect(step);
            continue;
        }
        let placed = match step.split_once(" -> ") {
            Some((name, target)) => tree.place(&path(name), symlink(target), layer),
            None if step.ends_with('/') => tree.place(&path(step), folder(0o755), layer),
            None => tree.place(&path(step), file("x"), layer),
        };
        placed.expect(step);
    }
}

fn list(tree: &Tree) -> String {
    fn add(tree: &Tree, id: InodeId, prefix: &str, names: &mut Vec<String>) {
        if let Node::Folder(children) = &tree.inode(id).node {
            for (name, child) in children {
                let name = format!("{prefix}{}", display(name));
                let is_folder = matches!(tree.inode(child.id).node, Node::Folder(_));
                names.push(if is_folder {
                    format!("{name}/")
                } else {
                    name.clone()
                });
                add(tree, child.id, &format!("{name}/"), names);
            }
        }
    }
    let mut names = Vec::new();
    add(tree, InodeId::ROOT, "", &mut names);
    names.join(" ")
}

fn check(layers: &[&[&str]], expected: &str) {
    let mut tree = Tree::new();
    for (number, steps) in (1..).zip(layers) {
        apply(&mut tree, number, steps);
    }
    assert_eq!(list(&tree), expected, "{layers:?}");
}

#[test]
fn folders_on_the_way_are_made() {
    check(&[&["a/b/c"]], "a/ a/b/ a/b/c");
}

#[test]
fn a_folder_on_a_folder_keeps_the_entries_and_takes_the_metadata() {
    let mut tree = Tree::new();
    apply(&mut tree, 1, &["a/x"]);
    let id = tree
        .place(&path("a"), folder(0o700), Layer(2))
        .expect("placed");
    assert_eq!(
        (list(&tree).as_str(), tree.inode(id).meta.mode),
        ("a/ a/x", 0o700)
    );
}

#[test]
fn other_kinds_replace_each_other_whole() {
    check(&[&["a/x"], &["a"]], "a");
    check(&[&["a"], &["a/"]], "a/");
    check(&[&["a/x"], &["a -> b"]], "a");
    check(&[&["b/x", "a -> b"], &["a/"]], "a/ b/ b/x");
}

#[test]
fn a_whiteout_hides_what_is_below_alone() {
    check(&[&["a/x", "b"], &["-a"]], "b");
    check(&[&["a", "b"], &["-b", "b"]], "a b");
    check(&[&["b"], &["b", "-b"]], "b");
    check(&[&["a"], &["-nothing/here", "-nothing"]], "a");
    check(&[&["d/old"], &["d/new", "-d"]], "d/ d/new");
}

#[test]
fn an_opaque_folder_keeps_its_own_layer() {
    check(&[&["d/a", "d/b/c"], &["d/", "-d/*", "d/new"]], "d/ d/new");
    check(
        &[&["d/a", "d/e/old"], &["d/e/new", "-d/*"]],
        "d/ d/e/ d/e/new",
    );
    check(&[&["a", "b/c"], &["-/*"]], "");
    check(&[&["d/a"], &["-d/*"]], "d/");
    check(
        &[&["d/a"], &["-d/*", "d/b", "-d/*"], &["d/c", "-d/*"]],
        "d/ d/c",
    );
}

#[test]
fn symlinked_folders_lead_to_places_in_the_tree() {
    check(
        &[&["usr/lib/", "lib -> usr/lib"], &["lib/x"]],
        "lib usr/ usr/lib/ usr/lib/x",
    );
    check(&[&["l -> /../../etc"], &["l/passwd"]], "etc/ etc/passwd l");
    check(
        &[&["a/b/", "a/l -> ../c"], &["a/l/x"]],
        "a/ a/b/ a/l c/ c/x",
    );
    check(
        &[&["usr/lib/x", "lib -> usr/lib"], &["-lib/x"]],
        "lib usr/ usr/lib/",
    );
}

#[test]
fn a_hard_link_is_another_name_of_a_lower_layers_file() {
    let mut tree = Tree::new();
    apply(&mut tree, 1, &["a/x"]);
    tree.link(&path("b/y"), &path("a/x"), Layer(2))
        .expect("linked");
    assert_eq!(tree.find(&path("a/x")), tree.find(&path("b/y")));
    tree.hide_below(&path("b"), Layer(2)).expect("few entries");
    tree.hide(&path("a"), Layer(2)).expect("few entries");
    assert_eq!(list(&tree), "b/ b/y");
}

#[test]
fn what_has_no_place_is_refused() {
    let mut tree = Tree::new();
    apply(&mut tree, 1, &["file", "folder/", "loop -> loop"]);
    let mut refused = |name: &str| tree.place(&path(name), file(""), Layer(1)).map(|_| ());
    assert!(matches!(
        refused("file/x"),
        Err(PlaceError::NotAFolder { .. })
    ));
    assert!(matches!(
        refused("loop/x"),
        Err(PlaceError::SymlinkLoop { .. })
    ));
    assert_eq!(refused("/"), Err(PlaceError::RootIsNoFolder));
    assert!(matches!(
        refused(&"d/".repeat(300)),
        Err(PlaceError::Deep { .. })
    ));
    for target in ["absent", "folder", "file/x"] {
        let linked = tree.link(&path("l"), &path(target), Layer(1));
        assert!(
            matches!(linked, Err(PlaceError::NoLinkTarget { .. })),
            "{target}"
        );
    }
}

#[test]
fn symlinks_do_not_make_the_tree_deeper_than_its_bound() {
    let mut tree = Tree::new();
    let mut result = Ok(());
    // Each link shortens the way to a folder that the next round makes deeper.
    for round in 0..SYMLINKS_MAX {
        let deep = format!("l{round}/{}", "d/".repeat(100));
        result = tree
            .place(&path(&deep), folder(0o755), Layer(1))
            .map(|_| ());
        let target = format!("{}l{round}", if round == 0 { "" } else { "/" });
        let next = format!("l{}", round + 1);
        if result.is_err() {
            break;
        }
        let target = format!("{target}/{}", "d/".repeat(100));
        tree.place(&path(&next), symlink(&target), Layer(1))
            .expect("a link");
    }
    assert!(matches!(result, Err(PlaceError::Deep { .. })), "{result:?}");
}

#[test]
fn entries_are_bounded() {
    let mut tree = Tree::new();
    tree.entries = ENTRIES_MAX - 1;
    assert!(tree.place(&path("a"), file(""), Layer(1)).is_ok());
    assert_eq!(
        tree.place(&path("a"), file(""), Layer(1)),
        Err(PlaceError::Entries)
    );
    let mut tree = Tree::new();
    tree.metadata_bytes = METADATA_BYTES_MAX;
    assert_eq!(
        tree.place(&path("a"), file(""), Layer(1)),
        Err(PlaceError::Metadata)
    );
    let mut tree = Tree::new();
    tree.steps.set(STEPS_MAX);
    assert!(tree.place(&path("a/b"), file(""), Layer(1)).is_ok());
    let steps = Err(PlaceError::Steps);
    assert_eq!(
        tree.place(&path("c"), file(""), Layer(1)).map(|_| ()),
        steps
    );
    assert_eq!(tree.hide(&path("c"), Layer(1)), steps);
}
