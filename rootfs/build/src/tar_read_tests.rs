use std::io::Write as _;

use super::*;
use crate::tree::InodeId;

/// One entry, with headers before it.
struct Member {
    header: Header,
    content: Vec<u8>,
}

fn member(name: &str, kind: EntryType, content: &[u8]) -> Member {
    let mut header = Header::new_ustar();
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_uid(1);
    header.set_gid(2);
    header.set_mtime(3);
    header.set_size(content.len() as u64);
    let content = content.to_vec();
    Member { header, content }
}

fn file(name: &str) -> Member {
    member(name, EntryType::Regular, b"x")
}

fn link(name: &str, kind: EntryType, target: &str) -> Member {
    let mut member = member(name, kind, b"");
    member.header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
    member
}

fn pax(records: &[(&str, &[u8])]) -> Member {
    let mut bytes = Vec::new();
    for (name, value) in records {
        let rest = name.len() + value.len() + 3;
        let length = (rest..).find(|length| length.to_string().len() + rest == *length);
        bytes.extend(format!("{} {name}=", length.expect("there is one")).into_bytes());
        bytes.extend_from_slice(value);
        bytes.push(b'\n');
    }
    member("pax", EntryType::XHeader, &bytes)
}

fn archive(members: Vec<Member>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for mut member in members {
        member.header.set_cksum();
        bytes.extend_from_slice(member.header.as_bytes());
        bytes.extend_from_slice(&member.content);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
    }
    bytes.extend_from_slice(&[0; 1024]);
    bytes
}

fn region(bytes: &[u8]) -> Region {
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(bytes).expect("written");
    Region::whole(file).expect("a region")
}

fn read_bytes(bytes: &[u8]) -> Result<Tree, ReadTarError> {
    let mut tree = Tree::new();
    read_tar(&region(bytes), &mut tree, Layer(1), Whiteouts::AsFiles)?;
    Ok(tree)
}

fn read(members: Vec<Member>) -> Result<Tree, ReadTarError> {
    read_bytes(&archive(members))
}

fn find(tree: &Tree, path: &str) -> Option<InodeId> {
    tree.find(&EntryPath::parse(path.as_bytes()).expect("a path"))
}

fn inode<'a>(tree: &'a Tree, path: &str) -> &'a Inode {
    tree.inode(find(tree, path).unwrap_or_else(|| panic!("no {path}")))
}

fn check_refused(members: Vec<Member>, expected: &str) {
    let text = read(members).expect_err(expected).to_string();
    assert!(text.contains(expected), "{text}");
}

#[test]
fn entries_keep_their_metadata() {
    let mut setuid = file("a");
    setuid.header.set_mode(0o104_755);
    let xattr: &[u8] = b"a\nb\0c";
    let records: &[(&str, &[u8])] = &[
        ("path", b"b/long"),
        ("uid", b"3000000"),
        ("gid", b"4000000000"),
        ("mtime", b"1000.75"),
        ("SCHILY.xattr.user.x", xattr),
    ];
    let tree = read(vec![setuid, pax(records), file("short")]).expect("valid");
    let meta = &inode(&tree, "a").meta;
    assert_eq!(
        (meta.mode, meta.uid, meta.gid, meta.mtime),
        (0o4755, 1, 2, 3)
    );
    let meta = &inode(&tree, "b/long").meta;
    assert_eq!(
        (meta.uid, meta.gid, meta.mtime),
        (3_000_000, 4_000_000_000, 1000)
    );
    assert_eq!(
        meta.xattrs.get(&b"user.x"[..]).map(Vec::as_slice),
        Some(xattr)
    );
    assert_eq!(find(&tree, "short"), None);
}

#[test]
fn contents_are_found_where_they_are() {
    let tree = read(vec![
        member("a", EntryType::Regular, &[7; 700]),
        member("b", EntryType::Continuous, b"second"),
    ]);
    let tree = tree.expect("valid");
    let Node::File(Content::Region(content)) = &inode(&tree, "b").node else {
        panic!("b is a file in the archive");
    };
    let mut found = String::new();
    content
        .reader()
        .read_to_string(&mut found)
        .expect("readable");
    assert_eq!(found, "second");
}

#[test]
fn all_kinds_are_read() {
    let mut device = member("char", EntryType::Char, b"");
    device.header.set_device_major(4).expect("ustar");
    device.header.set_device_minor(64).expect("ustar");
    let long_target = [b't'; 300];
    let tree = read(vec![
        device,
        member("fifo", EntryType::Fifo, b""),
        member("old/", EntryType::Regular, b""),
        link("soft", EntryType::Symlink, "../../etc/passwd"),
        member(
            "x",
            EntryType::GNULongLink,
            &[&long_target[..], b"\0"].concat(),
        ),
        link("long", EntryType::Symlink, "short"),
        file("a"),
        link("hard", EntryType::Link, "./a"),
        member(
            "comment",
            EntryType::XGlobalHeader,
            b"18 comment=whatever\n",
        ),
    ]);
    let tree = tree.expect("valid");
    let check = |path: &str, is_right: fn(&Node) -> bool| {
        assert!(is_right(&inode(&tree, path).node), "{path}");
    };
    check("char", |node| {
        matches!(
            node,
            Node::Character {
                major: 4,
                minor: 64
            }
        )
    });
    check("fifo", |node| matches!(node, Node::Fifo));
    check("old", |node| matches!(node, Node::Folder(_)));
    check(
        "soft",
        |node| matches!(node, Node::Symlink(to) if **to == *b"../../etc/passwd"),
    );
    check(
        "long",
        |node| matches!(node, Node::Symlink(to) if **to == [b't'; 300]),
    );
    assert_eq!(find(&tree, "hard"), find(&tree, "a"));
}

#[test]
fn paths_out_of_the_root_are_refused_or_taken_from_the_root() {
    for path in ["../evil", "a/../../evil"] {
        check_refused(vec![file(path)], "it holds `..`");
        check_refused(
            vec![pax(&[("path", path.as_bytes())]), file("x")],
            "it holds `..`",
        );
    }
    check_refused(
        vec![file("a"), link("b", EntryType::Link, "../a")],
        "it holds `..`",
    );
    check_refused(vec![pax(&[("path", b"a\0b")]), file("x")], "a NUL byte");
    let links = vec![
        file("/etc/shadow"),
        link("out", EntryType::Symlink, "/../../etc"),
        file("out/passwd"),
    ];
    let tree = read(links).expect("valid");
    assert!(find(&tree, "etc/shadow").is_some() && find(&tree, "etc/passwd").is_some());
}

#[test]
fn what_is_out_of_range_is_named() {
    let mut long = file("long");
    long.header.set_size(9 << 30);
    check_refused(vec![long], "\"long\": the archive ends within it");
    check_refused(
        vec![pax(&[("size", b"8589934592")]), file("x")],
        "8589934592 bytes, more than 8589934591",
    );
    check_refused(
        vec![pax(&[("size", b"2")]), file("x")],
        "it has 2 bytes, its own header says 1",
    );
    check_refused(
        vec![pax(&[("uid", b"4294967296")]), file("x")],
        "PAX record uid",
    );
    check_refused(
        vec![pax(&[("mtime", b"soon")]), file("x")],
        "PAX record mtime",
    );
    check_refused(
        vec![pax(&[("GNU.sparse.major", b"1")]), file("x")],
        "without --sparse",
    );
    check_refused(
        vec![member("x", EntryType::XHeader, b"99 a=b\n"), file("x")],
        "PAX record",
    );
    check_refused(
        vec![member("s", EntryType::GNUSparse, b"")],
        "without --sparse",
    );
    check_refused(
        vec![link("s", EntryType::Symlink, "")],
        "its target has 0 bytes",
    );
    check_refused(
        vec![member("x", EntryType::XHeader, &vec![0; (1 << 20) + 1])],
        "more than 1048576",
    );
    let value = vec![0; 0x1_0000];
    let xattr: &[(&str, &[u8])] = &[("SCHILY.xattr.user.x", &value)];
    check_refused(vec![pax(xattr), file("x")], "\"user.x\", which is too long");
}

#[test]
fn damaged_archives_are_refused() {
    let whole = archive(vec![file("a"), member("b", EntryType::Regular, &[1; 5000])]);
    for (length, expected) in [
        (1024 + 512 + 100, "\"b\": the archive ends within it"),
        (1024 + 100, "a damaged one, at the entry after \"a\""),
        (1024, "It has no end"),
    ] {
        let text = read_bytes(&whole[..length])
            .expect_err(expected)
            .to_string();
        assert!(text.contains(expected), "{text}");
    }
    let mut damaged = whole;
    damaged[1024] ^= 1;
    let text = read_bytes(&damaged)
        .expect_err("the checksum is wrong")
        .to_string();
    assert!(text.contains("at the entry after \"a\""), "{text}");
}

#[test]
fn whiteouts_mean_something_in_layers_only() {
    let lower = || vec![file("d/a"), file("d/b"), file("e/c")];
    let upper = || {
        vec![
            file("d/.wh.a"),
            file("e/.wh..wh..opq"),
            file("e/new"),
            file(".wh..wh.aufs"),
        ]
    };
    let mut tree = Tree::new();
    for (number, members) in [(1, lower()), (2, upper())] {
        let region = region(&archive(members));
        read_tar(&region, &mut tree, Layer(number), Whiteouts::Apply).expect("valid");
    }
    let is_there = |tree: &Tree, path| find(tree, path).is_some();
    let found =
        ["d/a", "d/b", "e/c", "e/new", "d/.wh.a", ".wh..wh.aufs"].map(|path| is_there(&tree, path));
    assert_eq!(found, [false, true, false, true, false, false]);
    let tree = read(upper()).expect("valid");
    assert!(is_there(&tree, "d/.wh.a") && is_there(&tree, "e/.wh..wh..opq"));
}
