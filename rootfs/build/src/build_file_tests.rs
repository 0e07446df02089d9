use std::fs;

use super::*;

fn read(text: &str) -> Result<BuildFile, ReadBuildFileError> {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join(FILE_NAME);
    fs::write(&path, text).expect("written");
    let mut file = BuildFile::read(&path)?;
    // The folder is another one each time.
    let own = file.rootfs.iter_mut().chain(&mut file.kernel);
    for path in own.chain(file.copy.iter_mut().map(|copy| &mut copy.from)) {
        *path = path.strip_prefix(folder.path()).unwrap_or(path).to_owned();
    }
    Ok(file)
}

#[test]
fn everything_can_be_said() {
    let file = read(
        r#"
rootfs = "base.tar"
format = "ext4"
compression = "none"
size = 512
entrypoint = ["/usr/bin/env"]
cmd = "echo hello"
workdir = "/srv"
user = "app"
hostname = "web"
exec = true
memory = 256
vcpus = 2
kernel = "/boot/vmlinux"
ready = { listen = 8080 }
net = ["tap0,ip=10.0.0.2/24"]
env = { PORT = "8080" }

[[copy]]
from = "app"
to = "/usr/bin/"
mode = "0755"
owner = "1000:100"

[[copy]]
from = "etc"
to = "/etc"
owner = "7"
"#,
    );
    let expected = BuildFile {
        rootfs: Some("base.tar".into()),
        format: Some(Format::Ext4),
        compression: Some(Compression::None),
        size: Some(512),
        entrypoint: Some(vec!["/usr/bin/env".into()]),
        cmd: Some(["/bin/sh", "-c", "echo hello"].map(String::from).into()),
        env: [("PORT".into(), "8080".into())].into(),
        workdir: Some("/srv".into()),
        user: Some("app".into()),
        hostname: Some("web".into()),
        exec: Some(true),
        memory: Some(256),
        vcpus: Some(2),
        kernel: Some("/boot/vmlinux".into()),
        ready: Some(Ready::Listen(8080)),
        net: vec!["tap0,ip=10.0.0.2/24".into()],
        copy: vec![
            CopySpec {
                from: "app".into(),
                to: "/usr/bin/".into(),
                mode: Some(0o755),
                owner: Owner {
                    uid: 1000,
                    gid: 100,
                },
            },
            CopySpec {
                from: "etc".into(),
                to: "/etc".into(),
                mode: None,
                owner: Owner { uid: 7, gid: 7 },
            },
        ],
    };
    assert_eq!(file.expect("valid"), expected);
}

#[test]
fn nothing_has_to_be_said() {
    assert_eq!(read("").expect("valid"), BuildFile::default());
    let ready = |text: &str| read(text).expect("valid").ready;
    assert_eq!(ready("ready = \"exec\""), Some(Ready::Exec));
    assert_eq!(ready("ready = \"doorbell\""), Some(Ready::Doorbell));
}

#[test]
fn faults_have_their_line() {
    let cases = [
        ("a = 1", 1, "unknown field `a`"),
        ("\nmemory = \"much\"", 2, "invalid type"),
        (
            "\n\nformat = \"xfs\"",
            3,
            "unknown variant `xfs`, expected one of `erofs`, `ext4`",
        ),
        ("cmd = 3", 1, "expected text, or an array of words"),
        (
            "[[copy]]\nfrom = \"a\"\nto = \"/\"\nmode = \"0999\"",
            4,
            "mode \"0999\": expected octal digits",
        ),
        (
            "[[copy]]\nfrom = \"a\"\nto = \"/\"\nowner = \"me\"",
            4,
            "owner \"me\": expected numbers",
        ),
        ("[[copy]]\nfrom = \"a\"", 1, "missing field `to`"),
        ("rootfs = \"a", 1, "string"),
    ];
    for (text, line, part) in cases {
        match read(text) {
            Err(ReadBuildFileError::Content {
                line: found,
                message,
                ..
            }) => {
                assert!(message.contains(part), "{text}: {message}");
                assert_eq!(found, line, "{text}: {message}");
            }
            other => panic!("{text}: {other:?}"),
        }
    }
}

#[test]
fn a_file_that_is_not_there_or_too_long_is_named() {
    let error = BuildFile::read(Path::new("/nowhere/lightv.toml")).expect_err("not there");
    assert_eq!(error.to_string(), "Cannot read /nowhere/lightv.toml");
    let long = "#".repeat(usize::try_from(BUILD_FILE_BYTES_MAX).expect("small") + 1);
    assert!(matches!(read(&long), Err(ReadBuildFileError::Long { .. })));
}
