//! Images that Debian's tools make: squashfs from the tar stream; ext4 and compressed erofs from a staged folder, whose
//! owners, devices and attributes `fakeroot` keeps in mind.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::{NamedTempFile, TempDir};

use crate::format::Compression;
use crate::limits::STAGED_XATTR_BYTES_MAX;
use crate::tar_write::{self, RootEntry, WriteTarError};
use crate::tools::{
    DEBUGFS, FAKEROOT, MKE2FS, MKFS_EROFS, SETFATTR, SQFSTAR, TAR, Tool, ToolError,
};
use crate::tree::{Content, InodeId, Meta, Node, Tree};
use crate::xattr_dump;

/// Any value; a fixed one, for the same bytes each time. In text: `LightV root file`.
const UUID: &str = "4c696768-7456-2072-6f6f-742066696c65";

/// Unpacks the stream, sets extended attributes when there are any, then becomes the command that the other arguments
/// are.
const STAGE: &str = r#"set -e
folder=$1 attributes=$2; shift 2
tar --extract --file=- --directory="$folder" --numeric-owner --same-owner --same-permissions
if [ -s "$attributes" ]; then (cd "$folder"; setfattr -h --restore="$attributes"); fi
exec "$@""#;

/// Why no image could be made.
#[derive(Debug, thiserror::Error)]
pub enum MakeImageError {
    /// A tool.
    #[error(transparent)]
    Tool(ToolError),
    /// The stream for it.
    #[error("Cannot feed {program}")]
    Stream {
        /// The tool.
        program: &'static str,
        /// Why.
        #[source]
        cause: WriteTarError,
    },
    /// The folder that files are staged in, or the image in the making.
    #[error("Cannot use {}", path.display())]
    Stage {
        /// Folder or file.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// More than `fakeroot` carries.
    #[error(
        "An extended attribute has {bytes} bytes; ext4 and compressed erofs get at most {STAGED_XATTR_BYTES_MAX}, \
         uncompressed erofs takes it"
    )]
    LongXattr {
        /// Name and value.
        bytes: usize,
    },
    /// More than the file system takes.
    #[error("{size_mib} MiB are too few: the files need {needed_mib} MiB")]
    Small {
        /// What was asked for.
        size_mib: u32,
        /// What contents, inodes and journal take.
        needed_mib: u64,
    },
}

/// Writes a squashfs image to `out`. sqfstar takes no extended attributes of the root itself.
pub(crate) fn squashfs(
    tree: &Tree,
    compression: Compression,
    out: &Path,
) -> Result<(), MakeImageError> {
    let root = &tree.inode(InodeId::ROOT).meta;
    let mut command = SQFSTAR.command().map_err(MakeImageError::Tool)?;
    command.args(["-quiet", "-no-progress", "-exit-on-error", "-force"]);
    command.args(["-mkfs-time", "0", "-root-mode", &format!("{:o}", root.mode)]);
    command.args([
        "-root-uid",
        &root.uid.to_string(),
        "-root-gid",
        &root.gid.to_string(),
    ]);
    // Inodes are never compressed: the root's time has to be found.
    command.args(match compression {
        Compression::None => &["-noI", "-noD", "-noF", "-noX"][..],
        Compression::Lz4 => &["-comp", "lz4", "-noI"],
    });
    feed(SQFSTAR, command.arg(out), tree, RootEntry::Absent)?;
    set_squashfs_root_time(out, root.mtime).map_err(|cause| MakeImageError::Stage {
        path: out.to_owned(),
        cause,
    })
}

/// sqfstar 4.5.1 ignores its `-root-time`: the root's time is that of the build.
fn set_squashfs_root_time(image: &Path, mtime: u64) -> io::Result<()> {
    /// Bytes of a block of metadata, after a header of 2 bytes.
    const METADATA_BYTES: u64 = 8192;
    /// `mtime` in an inode (squashfs_fs.h of Linux).
    const MTIME_AT: u64 = 8;
    let image = File::options().read(true).write(true).open(image)?;
    let field = |at: u64| {
        let mut bytes = [0; 8];
        image.read_exact_at(&mut bytes, at)?;
        io::Result::Ok(u64::from_le_bytes(bytes))
    };
    // root_inode: block in the inode table, and 16 bits of offset in it; inode_table_start.
    let (root, table) = (field(32)?, field(64)?);
    let (block, offset) = (table.wrapping_add(root >> 16), root & 0xffff);
    let seconds = u32::try_from(mtime).unwrap_or(u32::MAX).to_le_bytes();
    for (at, byte) in (offset + MTIME_AT..).zip(seconds) {
        let block = block + at / METADATA_BYTES * (METADATA_BYTES + 2);
        image.write_all_at(&[byte], block + 2 + at % METADATA_BYTES)?;
    }
    Ok(())
}

/// Writes an erofs image, compressed by LZ4, to `out`. `work`: where files are staged.
pub(crate) fn erofs_lz4(tree: &Tree, out: &Path, work: &Path) -> Result<(), MakeImageError> {
    let mkfs = MKFS_EROFS.locate().map_err(MakeImageError::Tool)?;
    let stage = Stage::create(tree, work)?;
    let mut command = stage.command(&mkfs)?;
    command.args(["--quiet", "-zlz4", "-U", UUID]);
    // Time of the image, and the latest that files keep. `-T` would be the time of all files.
    command.env("SOURCE_DATE_EPOCH", u32::MAX.to_string());
    command.arg(out).arg(stage.folder.path());
    feed(FAKEROOT, &mut command, tree, RootEntry::Written)
}

/// Writes an ext4 image to `out`: of `size_mib`, or with a quarter and 64 MiB to spare.
pub(crate) fn ext4(
    tree: &Tree,
    size_mib: Option<u32>,
    out: &Path,
    work: &Path,
) -> Result<(), MakeImageError> {
    let needed = Needed::of(tree);
    let size_kib = match size_mib {
        Some(size_mib) if u64::from(size_mib) < needed.mib() => {
            let needed_mib = needed.mib();
            return Err(MakeImageError::Small {
                size_mib,
                needed_mib,
            });
        }
        Some(size_mib) => u64::from(size_mib) << 10,
        None => (needed.mib() + needed.mib() / 4 + 64) << 10,
    };
    let mke2fs = MKE2FS.locate().map_err(MakeImageError::Tool)?;
    DEBUGFS.locate().map_err(MakeImageError::Tool)?;
    let stage = Stage::create(tree, work)?;
    let mut command = stage.command(&mke2fs)?;
    // One inode for each 16 KiB is the default of e2fsprogs.
    let inodes = needed.inodes + needed.inodes / 4 + size_kib / 16 + 64;
    command.args([
        "-q", "-F", "-t", "ext4", "-b", "4096", "-I", "256", "-m", "0", "-L", "",
    ]);
    command.args(["-N", &inodes.to_string(), "-U", UUID]);
    command.args([
        "-E",
        &format!("hash_seed={UUID},lazy_itable_init=0,lazy_journal_init=0"),
    ]);
    command.arg("-d").arg(stage.folder.path()).arg(out);
    command.arg(format!("{size_kib}k"));
    feed(FAKEROOT, &mut command, tree, RootEntry::Written)?;
    set_times(&tree.inode(InodeId::ROOT).meta, out, work)
}

/// mke2fs takes change and access times from the staged files, and neither owner nor mode of the root: debugfs sets
/// them.
fn set_times(root: &Meta, image: &Path, work: &Path) -> Result<(), MakeImageError> {
    let stage_error = |path: &Path| {
        let path = path.to_owned();
        move |cause| MakeImageError::Stage { path, cause }
    };
    let inodes = used_inodes(image).map_err(stage_error(image))?;
    let Meta {
        mode,
        uid,
        gid,
        mtime,
        ..
    } = root;
    let mut script = format!(
        "sif <2> mode 04{mode:04o}\nsif <2> uid {uid}\nsif <2> gid {gid}\nsif <2> mtime @{mtime}\n"
    );
    for inode in [2].into_iter().chain(11..=inodes) {
        script.push_str(&format!("sif <{inode}> ctime @0\nsif <{inode}> atime @0\n"));
    }
    let file = NamedTempFile::new_in(work).map_err(stage_error(work))?;
    fs::write(file.path(), script).map_err(stage_error(file.path()))?;
    let mut command = DEBUGFS.command().map_err(MakeImageError::Tool)?;
    command.arg("-w").arg("-f").arg(file.path()).arg(image);
    let ran = DEBUGFS.run(&mut command, |_| Ok::<(), io::Error>(()));
    ran.map_err(MakeImageError::Tool)?
        .map_err(stage_error(image))
}

/// How many inodes a new file system has in use: numbers from 1 on, without gaps (s_inodes_count, s_free_inodes_count).
fn used_inodes(image: &Path) -> io::Result<u32> {
    let mut superblock = [0; 20];
    File::open(image)?.read_exact_at(&mut superblock, 1024)?;
    let field = |at: usize| {
        u32::from_le_bytes([
            superblock[at],
            superblock[at + 1],
            superblock[at + 2],
            superblock[at + 3],
        ])
    };
    Ok(field(0).saturating_sub(field(16)))
}

/// What an ext4 must hold.
#[derive(Debug, Default)]
struct Needed {
    blocks: u64,
    inodes: u64,
}

impl Needed {
    fn of(tree: &Tree) -> Self {
        let mut needed = Self::default();
        needed.add(tree, InodeId::ROOT, &mut vec![false; tree.inode_count()]);
        needed
    }

    fn add(&mut self, tree: &Tree, id: InodeId, seen: &mut [bool]) {
        if std::mem::replace(&mut seen[id.index()], true) {
            return;
        }
        self.inodes += 1;
        match &tree.inode(id).node {
            Node::File(content) => self.blocks += Content::len(content).div_ceil(4096),
            Node::Folder(children) => {
                // An entry has 8 bytes and its name, to 4 bytes; blocks are filled to three quarters at least.
                let names: usize = children.keys().map(|name| name.len() + 12).sum();
                self.blocks += 1 + (names as u64 * 4 / 3).div_ceil(4096);
                for child in children.values() {
                    self.add(tree, child.id, seen);
                }
            }
            Node::Symlink(target) if target.len() >= 60 => self.blocks += 1,
            _ => {}
        }
        if !tree.inode(id).meta.xattrs.is_empty() {
            self.blocks += 1;
        }
    }

    /// With inodes of 256 bytes, and a journal of 4 MiB, the smallest.
    fn mib(&self) -> u64 {
        (self.blocks + self.inodes.div_ceil(16)).div_ceil(256) + 4
    }
}

/// A folder for the files, and a file for their attributes. Dropped, both are gone.
#[derive(Debug)]
struct Stage {
    folder: TempDir,
    attributes: NamedTempFile,
}

impl Stage {
    fn create(tree: &Tree, work: &Path) -> Result<Self, MakeImageError> {
        let bytes = xattr_dump::longest(tree);
        if bytes > STAGED_XATTR_BYTES_MAX {
            return Err(MakeImageError::LongXattr { bytes });
        }
        let create = || {
            // setfattr runs in the folder itself.
            let work = std::path::absolute(work)?;
            let folder = tempfile::Builder::new()
                .prefix(".lightv-stage-")
                .tempdir_in(&work)?;
            let mut attributes = NamedTempFile::new_in(&work)?;
            attributes.write_all(xattr_dump::dump(tree).as_bytes())?;
            Ok(Self { folder, attributes })
        };
        create().map_err(|cause| MakeImageError::Stage {
            path: work.to_owned(),
            cause,
        })
    }

    /// `fakeroot`, which unpacks its input into the folder and then runs `program`.
    fn command(&self, program: &Path) -> Result<Command, MakeImageError> {
        TAR.locate().map_err(MakeImageError::Tool)?;
        if self
            .attributes
            .as_file()
            .metadata()
            .is_ok_and(|found| found.len() > 0)
        {
            SETFATTR.locate().map_err(MakeImageError::Tool)?;
        }
        let mut command = FAKEROOT.command().map_err(MakeImageError::Tool)?;
        command.args(["--", "sh", "-c", STAGE, "sh"]);
        command
            .arg(self.folder.path())
            .arg(self.attributes.path())
            .arg(program);
        Ok(command)
    }
}

fn feed(
    tool: Tool,
    command: &mut Command,
    tree: &Tree,
    root: RootEntry,
) -> Result<(), MakeImageError> {
    let fed = tool.run(command, |input| {
        tar_write::write(tree, root, io::BufWriter::with_capacity(1 << 16, input))
    });
    let stream_error = |cause| MakeImageError::Stream {
        program: tool.program,
        cause,
    };
    fed.map_err(MakeImageError::Tool)?.map_err(stream_error)
}
