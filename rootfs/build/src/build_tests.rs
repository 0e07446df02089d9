//! Images are read back with Debian's tools, which `./setup` installs.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

use super::*;
use crate::entry_path::EntryPath;
use crate::tar_read::{self, Whiteouts};
use crate::tar_write::{self, RootEntry};
use crate::tree::{Content, Inode, Layer, Meta, Node};

/// Output of one of Debian's tools.
fn output(program: &str, args: &[&str]) -> String {
    let mut command = Command::new(program);
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    let output = command
        .args(args)
        .env("PATH", path)
        .env("LC_ALL", "C")
        .env("TZ", "UTC")
        .output();
    let output = output.unwrap_or_else(|error| panic!("{program} (see ./setup): {error}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {text}{said}");
    text
}

const MTIME: u64 = 1_000_000_000;

/// A tree in the making.
struct Sample(Tree);

impl Sample {
    fn add(&mut self, path: &str, (mode, uid, gid): (u16, u32, u32), node: Node) {
        let mut meta = Meta {
            mode,
            uid,
            gid,
            mtime: MTIME,
            ..Meta::default()
        };
        if path == "bin/ping" {
            // With a byte that ends a line elsewhere.
            let capability = [
                1, 0, 0, 2, 0, b'\n', 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            ];
            let name = b"security.capability".to_vec();
            meta.xattrs.insert(name, capability.to_vec());
            let name = b"user.note".to_vec();
            meta.xattrs.insert(name, b"two\nlines".to_vec());
        }
        let placed = self
            .0
            .place(&entry_path(path), Inode { meta, node }, Layer(1));
        placed.expect(path);
    }

    fn file(&mut self, path: &str, owner: (u16, u32, u32), bytes: Vec<u8>) {
        self.add(path, owner, Node::File(Content::Bytes(bytes.into())));
    }

    fn folder(&mut self, path: &str, owner: (u16, u32, u32)) {
        self.add(path, owner, Node::Folder(Default::default()));
    }
}

fn entry_path(path: &str) -> EntryPath {
    EntryPath::parse(path.as_bytes()).expect("a path")
}

/// A tar with one of everything.
fn tar_of_everything() -> Vec<u8> {
    let mut sample = Sample(Tree::new());
    sample.folder("", (0o755, 0, 0));
    sample.folder("bin", (0o755, 0, 0));
    sample.file("bin/su", (0o4755, 0, 7), vec![b's'; 3000]);
    let long_content = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
    sample.file("bin/ping", (0o755, 0, 0), long_content);
    sample.folder("srv/me", (0o700, 1000, 70_000));
    sample.file("srv/me/empty", (0o600, 1000, 70_000), Vec::new());
    let hello = b"hello\n".to_vec();
    sample.file("srv/me/note", (0o640, 3_000_000, 1000), hello);
    let target = b"bin".as_slice().into();
    sample.add("sbin", (0o777, 0, 0), Node::Symlink(target));
    let (major, minor) = (1, 3);
    sample.add("dev/null", (0o666, 0, 0), Node::Character { major, minor });
    let (major, minor) = (259, 9);
    sample.add("dev/big", (0o660, 0, 6), Node::Block { major, minor });
    sample.add("run/pipe", (0o622, 0, 0), Node::Fifo);
    for number in 0..600 {
        let path = format!("many/a rather long name {number:04}");
        sample.file(&path, (0o644, 0, 0), vec![b'm'; number]);
    }
    let long = format!("long/{}/{}/end", "l".repeat(120), "m".repeat(200));
    sample.file(&long, (0o600, 0, 0), b"end".to_vec());
    let mut tree = sample.0;
    let linked = tree.link(&entry_path("bin/again"), &entry_path("bin/su"), Layer(1));
    linked.expect("linked");
    let mut bytes = Vec::new();
    tar_write::write(&tree, RootEntry::Written, &mut bytes).expect("in memory");
    bytes
}

/// A folder with a source and a place for images.
struct Case {
    folder: tempfile::TempDir,
}

impl Case {
    fn new(source: &[u8]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join("source"), source).expect("written");
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn image(&self) -> String {
        self.path("image").to_str().expect("UTF-8").to_owned()
    }

    fn build(&self, format: Format, compression: Compression) -> Vec<u8> {
        let out = self.path("image");
        let source = Source::detect(&self.path("source")).expect("a source");
        let request = BuildRequest {
            source: &source,
            out: &out,
            format: Some(format),
            compression,
            size_mib: None,
            agent: b"agent",
            copies: &[],
        };
        let built = build(&request).unwrap_or_else(|error| panic!("{error:?}"));
        let image = fs::read(&out).expect("there");
        assert_eq!((built.bytes, built.format), (image.len() as u64, format));
        assert_eq!(self.names(), ["image", "source"], "something was left");
        image
    }

    fn names(&self) -> Vec<String> {
        let names = fs::read_dir(self.folder.path()).expect("readable");
        let mut names: Vec<String> = names
            .map(|entry| {
                entry
                    .expect("readable")
                    .file_name()
                    .to_string_lossy()
                    .into_owned()
            })
            .collect();
        names.sort();
        names
    }
}

/// What both readers that keep owners show of [`tar_of_everything`], as `unsquashfs -lln` shows it.
const LISTED: &[&str] = &[
    "-rwsr-xr-x 0/7 3000 2001-09-09 01:46 squashfs-root/bin/su",
    "-rwsr-xr-x 0/7 3000 2001-09-09 01:46 squashfs-root/bin/again",
    "-rwxr-xr-x 0/0 400000 2001-09-09 01:46 squashfs-root/bin/ping",
    "drwx------ 1000/70000",
    "-rw-r----- 3000000/1000 6 2001-09-09 01:46 squashfs-root/srv/me/note",
    "lrwxrwxrwx 0/0 3 2001-09-09 01:46 squashfs-root/sbin -> bin",
    "crw-rw-rw- 0/0 1, 3 2001-09-09 01:46 squashfs-root/dev/null",
    "brw-rw---- 0/6 259, 9 2001-09-09 01:46 squashfs-root/dev/big",
    "prw--w--w- 0/0 0 2001-09-09 01:46 squashfs-root/run/pipe",
    "-rwxr-xr-x 0/0 5 1970-01-01 00:00 squashfs-root/.lightv/init",
    "drwxrwxrwt 0/0",
];

#[test]
fn squashfs_holds_everything() {
    let case = Case::new(&tar_of_everything());
    for compression in [Compression::None, Compression::Lz4] {
        let image = case.build(Format::Squashfs, compression);
        let listed = output("unsquashfs", &["-lln", &case.image()]);
        let lines: Vec<String> = listed
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        for expected in LISTED {
            assert!(
                lines.iter().any(|line| line.starts_with(expected)),
                "{expected}: {lines:#?}"
            );
        }
        let root = lines.iter().find(|line| line.ends_with(" squashfs-root"));
        let root = root.map(String::as_str).unwrap_or_default();
        assert!(root.contains("2001-09-09 01:46"), "{root}");
        let cat = output("unsquashfs", &["-cat", &case.image(), "srv/me/note"]);
        assert_eq!(cat, "hello\n");
        assert!(
            image == case.build(Format::Squashfs, compression),
            "other bytes"
        );
    }
}

/// The same as `stat` shows it of what `fsck.erofs` extracts, which makes no devices.
const EROFS_LISTED: &[&str] = &[
    "-rwsr-xr-x 0:7 3000 1000000000 ./bin/su",
    "-rwsr-xr-x 0:7 3000 1000000000 ./bin/again",
    "-rwxr-xr-x 0:0 400000 1000000000 ./bin/ping",
    "drwx------ 1000:70000",
    "-rw------- 1000:70000 0 1000000000 ./srv/me/empty",
    "-rw-r----- 3000000:1000 6 1000000000 ./srv/me/note",
    "lrwxrwxrwx 0:0 3 1000000000 ./sbin",
    "-rwxr-xr-x 0:0 5 0 ./.lightv/init",
    "drwxrwxrwt 0:0",
];

fn stat_of(image: &str, path: &str) -> String {
    let stat = output("debugfs", &["-R", &format!("stat {path}"), image]);
    stat.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn ext4_holds_everything() {
    let case = Case::new(&tar_of_everything());
    let image = case.build(Format::Ext4, Compression::None);
    output("e2fsck", &["-fn", &case.image()]);
    let check = |path: &str, expected: &[&str]| {
        let stat = stat_of(&case.image(), path);
        for part in expected {
            assert!(stat.contains(part), "{path}: {part}: {stat}");
        }
    };
    check(
        "/",
        &[
            "Mode: 0755",
            "User: 0 Group: 0",
            "mtime: 0x3b9aca00",
            "ctime: 0x00000000",
        ],
    );
    check(
        "/bin/su",
        &[
            "Mode: 04755",
            "Group: 7",
            "Links: 2",
            "mtime: 0x3b9aca00",
            "ctime: 0x00000000",
            "atime: 0x00000000",
        ],
    );
    check(
        "/srv/me/note",
        &["Mode: 0640", "User: 3000000 Group: 1000", "Size: 6"],
    );
    check(
        "/srv/me",
        &["Type: directory Mode: 0700", "User: 1000 Group: 70000"],
    );
    check(
        "/dev/null",
        &[
            "Type: character special",
            "Device major/minor number: 01:03",
        ],
    );
    check("/dev/big", &["Type: block special", "259:09"]);
    check("/run/pipe", &["Type: FIFO"]);
    check("/sbin", &["Fast link dest: \"bin\""]);
    let attributes = output("debugfs", &["-R", "ea_list /bin/ping", &case.image()]);
    assert!(
        attributes.contains("security.capability (20)"),
        "{attributes}"
    );
    assert_eq!(
        output("debugfs", &["-R", "cat /srv/me/note", &case.image()]),
        "hello\n"
    );
    assert!(
        image == case.build(Format::Ext4, Compression::None),
        "other bytes"
    );
}

#[test]
fn erofs_is_whole_and_holds_the_contents() {
    let case = Case::new(&tar_of_everything());
    for compression in [Compression::None, Compression::Lz4] {
        let image = case.build(Format::Erofs, compression);
        // Reads every inode, folder and block.
        let out = tempfile::tempdir().expect("a folder");
        let script = format!(
            "fsck.erofs --force --extract=$1/all {} >&2 && cd $1/all && stat -c '%A %u:%g %s %Y %n' $(find . ! -name 'a *')",
            case.image()
        );
        let folder = out.path().to_str().expect("UTF-8");
        let listed = output("fakeroot", &["--", "sh", "-c", &script, "sh", folder]);
        for expected in EROFS_LISTED {
            assert!(
                listed.lines().any(|line| line.starts_with(expected)),
                "{expected}: {listed}"
            );
        }
        let read = |name: &str| fs::read(out.path().join("all").join(name)).expect(name);
        assert_eq!(read("srv/me/note"), b"hello\n");
        assert_eq!(read("bin/ping").len(), 400_000);
        assert_eq!(read("bin/again"), vec![b's'; 3000]);
        assert_eq!(read(".lightv/init"), b"agent");
        for number in 0..600 {
            assert_eq!(
                read(&format!("many/a rather long name {number:04}")),
                vec![b'm'; number]
            );
        }
        assert_eq!(
            fs::read_link(out.path().join("all/sbin")).expect("a link"),
            Path::new("bin")
        );
        assert!(
            image == case.build(Format::Erofs, compression),
            "other bytes"
        );
        check_erofs_inodes(&case.image());
    }
}

fn check_erofs_inodes(image: &str) {
    let check = |path: &str, expected: &[&str]| {
        let dump = output("dump.erofs", &[&format!("--path={path}"), image]);
        let dump = dump.split_whitespace().collect::<Vec<_>>().join(" ");
        for part in expected {
            assert!(dump.contains(part), "{path}: {part}: {dump}");
        }
    };
    check(
        "/bin/su",
        &["Uid: 0 Gid: 7", "Links: 2", "Size: 3000", "2001-09-09"],
    );
    check("/srv/me/note", &["Uid: 3000000 Gid: 1000", "Access: 0640/"]);
    check("/bin/ping", &["Xattr size: 68"]);
}

#[test]
fn the_stream_for_tools_reads_back_as_it_was() {
    let bytes = tar_of_everything();
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(&bytes).expect("written");
    let mut tree = Tree::new();
    let region = crate::region::Region::whole(file).expect("a region");
    tar_read::read_tar(&region, &mut tree, Layer(1), Whiteouts::AsFiles).expect("readable");
    let mut again = Vec::new();
    tar_write::write(&tree, RootEntry::Written, &mut again).expect("in memory");
    assert!(bytes == again);
}

#[test]
fn a_ready_image_is_copied_as_it_is() {
    let mut image = vec![7; 8192];
    image[..4].copy_from_slice(b"hsqs");
    let case = Case::new(&image);
    let source = Source::detect(&case.path("source")).expect("an image");
    let out = case.path("image");
    let copies = [CopySpec::default()];
    let mut request = BuildRequest {
        source: &source,
        out: &out,
        format: None,
        compression: Compression::None,
        size_mib: None,
        agent: b"agent",
        copies: &[],
    };
    let built = build(&request).expect("copied");
    assert_eq!(
        (built.format, built.agent),
        (Format::Squashfs, AgentState::Unknown)
    );
    assert_eq!(fs::read(&out).expect("there"), image);
    request.format = Some(Format::Erofs);
    let error = build(&request).expect_err("another format");
    assert!(matches!(error, BuildRootfsError::OtherFormat { .. }));
    (request.format, request.copies) = (None, &copies);
    let error = build(&request).expect_err("nothing can be added");
    assert!(matches!(error, BuildRootfsError::CopyIntoImage { .. }));
}

#[test]
fn a_failed_build_leaves_nothing_and_keeps_what_was_there() {
    let mut bytes = tar_of_everything();
    bytes.truncate(bytes.len() / 2);
    let case = Case::new(&bytes);
    fs::write(case.path("image"), "before").expect("written");
    let source = Source::detect(&case.path("source")).expect("a source");
    let out = case.path("image");
    let request = BuildRequest {
        source: &source,
        out: &out,
        format: None,
        compression: Compression::None,
        size_mib: None,
        agent: b"agent",
        copies: &[],
    };
    let error = build(&request).expect_err("it is truncated");
    assert_eq!(error.blame(), Blame::Input);
    assert_eq!(case.names(), ["image", "source"]);
    assert_eq!(fs::read(&out).expect("there"), b"before");
}

#[test]
fn options_that_mean_nothing_are_refused() {
    let case = Case::new(&tar_of_everything());
    let source = Source::detect(&case.path("source")).expect("a source");
    let out = case.path("image");
    let check = |format, compression, size_mib, expected: &str| {
        let request = BuildRequest {
            source: &source,
            out: &out,
            format: Some(format),
            compression,
            size_mib,
            agent: b"agent",
            copies: &[],
        };
        let error = build(&request).expect_err(expected);
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        let text = format!("{error} {}", cause.unwrap_or_default());
        assert!(text.contains(expected), "{text}");
        assert_eq!(error.blame(), Blame::Input);
    };
    check(
        Format::Ext4,
        Compression::Lz4,
        None,
        "ext4 has no compression",
    );
    check(
        Format::Erofs,
        Compression::None,
        Some(64),
        "A size is for ext4",
    );
    check(
        Format::Ext4,
        Compression::None,
        Some(1),
        "1 MiB are too few: the files need 8 MiB",
    );
    assert_eq!(case.names(), ["source"]);
}

#[test]
fn the_recipe_makes_an_oci_archive_of_the_same_files() {
    let case = Case::new(&tar_of_everything());
    let plain = case.build(Format::Erofs, Compression::None);
    let recipe = Path::new(env!("CARGO_MANIFEST_DIR")).join("../recipes/oci-from-tar");
    let [tar, archive] = ["source", "archive"].map(|name| case.path(name).display().to_string());
    let options = [
        "-e",
        "A=1",
        "-w",
        "/srv",
        "-u",
        "7:8",
        "--entrypoint",
        "/bin/su",
    ];
    let paths = ["-o", archive.as_str(), tar.as_str(), "--", "-c", "it"];
    output(
        recipe.to_str().expect("UTF-8"),
        &[&options[..], &paths].concat(),
    );
    fs::rename(&archive, &tar).expect("renamed");
    assert!(
        plain == case.build(Format::Erofs, Compression::None),
        "other bytes"
    );
    let source = Source::detect(&case.path("source")).expect("a source");
    let mut spool = Spool::new(case.folder.path());
    let settings = read::read(&source, &mut spool)
        .expect("valid")
        .map(|(_, settings)| settings);
    let expected = ProgramSettings {
        entrypoint: vec!["/bin/su".into()],
        cmd: vec!["-c".into(), "it".into()],
        env: [("A".into(), "1".into())].into(),
        workdir: Some("/srv".into()),
        user: Some("7:8".into()),
        ..ProgramSettings::default()
    };
    assert_eq!(settings, Some(expected));
}

#[test]
fn a_folder_becomes_an_image() {
    let case = Case::new(b"");
    fs::remove_file(case.path("source")).expect("there");
    fs::create_dir(case.path("source")).expect("made");
    fs::write(case.path("source/file"), "x").expect("written");
    symlink("/outside", case.path("source/link")).expect("linked");
    case.build(Format::Erofs, Compression::None);
    let dump = output("dump.erofs", &["--path=/file", &case.image()]);
    assert!(dump.contains("Uid: 0"), "{dump}");
}
