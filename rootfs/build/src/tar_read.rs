//! A tar (ustar, GNU, PAX) becomes entries of the tree. Contents stay in the archive.

use std::io::{self, Read};

use tar::{EntryType, Header};

use crate::entry_path::{EntryPath, display};
use crate::limits::{FILE_BYTES_MAX, PATH_BYTES_MAX, TAR_EXTENSION_BYTES_MAX};
use crate::region::{Region, RegionReader};
use crate::tree::{Content, Inode, Layer, Meta, Node, PlaceError, Tree};

/// Name of the file that hides all that lower layers have in its folder (OCI image layer specification).
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Start of the name of a file that hides the one named after it.
const WHITEOUT: &[u8] = b".wh.";
/// What a tar is made of; one of zeros ends it.
const BLOCK_BYTES: u64 = 512;
/// Start of other names that AUFS keeps for itself.
const AUFS_OWN: &[u8] = b".wh..wh.";

/// Why a tar was refused.
#[derive(Debug, thiserror::Error)]
pub enum ReadTarError {
    /// No header where one must be.
    #[error("It is no tar, or a damaged one, at the entry after {after:?}")]
    Header {
        /// The last entry that was read; empty at the start.
        after: String,
        /// What is wrong.
        #[source]
        cause: io::Error,
    },
    /// It was cut off between two entries.
    #[error("It has no end: it was cut off, or is still being written")]
    NoEnd,
    /// One entry.
    #[error("Entry {entry:?}: {fault}")]
    Entry {
        /// Its path.
        entry: String,
        /// What is wrong.
        fault: EntryFault,
    },
}

/// What is wrong with an entry of a tar.
#[derive(Debug, thiserror::Error)]
pub enum EntryFault {
    /// The archive ends in its content.
    #[error("the archive ends within it")]
    Truncated,
    /// Its content.
    #[error("{bytes} bytes, more than {FILE_BYTES_MAX}")]
    Long {
        /// How many.
        bytes: u64,
    },
    /// Headers that do not fit together.
    #[error("its PAX header says that it has {pax} bytes, its own header says {header}")]
    TwoSizes {
        /// Bytes by the one.
        pax: u64,
        /// Bytes by the other.
        header: u64,
    },
    /// An extension header.
    #[error("its extension header has {bytes} bytes, more than {TAR_EXTENSION_BYTES_MAX}")]
    LongExtension {
        /// How many.
        bytes: u64,
    },
    /// A PAX record.
    #[error("a PAX record of it is no `LENGTH NAME=VALUE`")]
    PaxRecord,
    /// A PAX record whose value is no number of the range.
    #[error("its PAX record {name} is {value:?}, which is out of range")]
    PaxNumber {
        /// Name of the record.
        name: &'static str,
        /// As it stands there.
        value: String,
    },
    /// A field of the header.
    #[error("its header's {field} is out of range")]
    Field {
        /// Which.
        field: &'static str,
    },
    /// A kind that no file system has.
    #[error(
        "kind {kind:?} is not supported; make the tar without --sparse, --incremental and --multi-volume"
    )]
    Kind {
        /// The type flag.
        kind: char,
    },
    /// A symlink that no file system takes.
    #[error("its target has {bytes} bytes; 1–{PATH_BYTES_MAX} are possible")]
    SymlinkTarget {
        /// How many.
        bytes: usize,
    },
    /// It has no place.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// Reading failed.
    #[error("it cannot be read: {0}")]
    Read(io::Error),
}

/// What names that start with `.wh.` mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Whiteouts {
    /// Something below is hidden.
    Apply,
    /// Nothing: the tar is no layer.
    AsFiles,
}

/// Puts all entries of a tar into `tree`.
pub(crate) fn read_tar(
    region: &Region,
    tree: &mut Tree,
    layer: Layer,
    whiteouts: Whiteouts,
) -> Result<(), ReadTarError> {
    let end = walk(region, |record| {
        let result = place(&record, tree, layer, whiteouts);
        result.map_err(|fault| ReadTarError::Entry {
            entry: display(&record.path),
            fault,
        })
    })?;
    // A layer has a digest; a tar that was cut off between two entries is known by its end alone.
    let has_end = region.part(end, BLOCK_BYTES).is_some();
    match has_end || whiteouts == Whiteouts::Apply {
        true => Ok(()),
        false => Err(ReadTarError::NoEnd),
    }
}

/// One entry with what its extension headers say.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) path: Vec<u8>,
    pub(crate) content: Region,
    link: Vec<u8>,
    header: Header,
    pax: Pax,
}

impl Record {
    /// Whether it is a regular file with a content.
    pub(crate) fn is_file(&self) -> bool {
        matches!(
            self.header.entry_type(),
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse
        ) && !self.path.ends_with(b"/")
    }
}

/// Calls `each` with the entries in their order, up to the first error. Where the last one ends.
pub(crate) fn walk(
    region: &Region,
    mut each: impl FnMut(Record) -> Result<(), ReadTarError>,
) -> Result<u64, ReadTarError> {
    let (mut after, mut end) = (String::new(), 0);
    let header_error = |after: &str, cause| ReadTarError::Header {
        after: after.to_owned(),
        cause,
    };
    let mut archive = tar::Archive::new(region.reader());
    let entries = archive.entries_with_seek();
    // Raw: extension headers come as entries, and their lengths are checked before they are read.
    let entries = entries.map_err(|cause| header_error("", cause))?.raw(true);
    let mut extensions = Extensions::default();
    for entry in entries {
        let mut entry = entry.map_err(|cause| header_error(&after, cause))?;
        let record = extensions.take(&mut entry, region);
        let record = record.map_err(|fault| ReadTarError::Entry {
            entry: display(&entry.path_bytes()),
            fault,
        })?;
        // The content lies within the archive, so its end has a number.
        let size = entry.header().entry_size().unwrap_or(0);
        end = (entry.raw_file_position() + size).next_multiple_of(BLOCK_BYTES);
        let Some(record) = record else {
            continue;
        };
        after = display(&record.path);
        each(record)?;
    }
    Ok(end)
}

/// What extension headers say of the entry that follows.
#[derive(Debug, Default)]
struct Extensions {
    long_path: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    pax: Pax,
}

impl Extensions {
    /// Keeps an extension header, or gives the entry that it was for.
    fn take(
        &mut self,
        entry: &mut tar::Entry<'_, RegionReader<'_>>,
        region: &Region,
    ) -> Result<Option<Record>, EntryFault> {
        let size = entry.header().entry_size();
        let size = size.map_err(|_| EntryFault::Field { field: "size" })?;
        let content = region.part(entry.raw_file_position(), size);
        let content = content.ok_or(EntryFault::Truncated)?;
        match entry.header().entry_type() {
            EntryType::GNULongName => self.long_path = Some(read_name(&content)?),
            EntryType::GNULongLink => self.long_link = Some(read_name(&content)?),
            EntryType::XHeader => self.pax = Pax::parse(&read_extension(&content)?)?,
            // Comments, as those of `git archive`.
            EntryType::XGlobalHeader => {}
            _ => return std::mem::take(self).finish(entry, content).map(Some),
        }
        Ok(None)
    }

    fn finish(
        self,
        entry: &tar::Entry<'_, RegionReader<'_>>,
        content: Region,
    ) -> Result<Record, EntryFault> {
        let header = entry.header().clone();
        let pax = self.pax;
        let bytes = pax.size.unwrap_or(content.len());
        if bytes > FILE_BYTES_MAX {
            return Err(EntryFault::Long { bytes });
        }
        // Readers that believe the one or the other would find other entries after it.
        if bytes != content.len() {
            return Err(EntryFault::TwoSizes {
                pax: bytes,
                header: content.len(),
            });
        }
        let path = pax.path.clone().or(self.long_path);
        let link = pax.link.clone().or(self.long_link);
        let header_link = || header.link_name_bytes().map(|link| link.to_vec());
        Ok(Record {
            path: path.unwrap_or_else(|| header.path_bytes().to_vec()),
            link: link.or_else(header_link).unwrap_or_default(),
            content,
            pax,
            header,
        })
    }
}

fn read_extension(content: &Region) -> Result<Vec<u8>, EntryFault> {
    if content.len() > TAR_EXTENSION_BYTES_MAX {
        let bytes = content.len();
        return Err(EntryFault::LongExtension { bytes });
    }
    let mut bytes = Vec::new();
    let mut reader = content.reader();
    reader.read_to_end(&mut bytes).map_err(EntryFault::Read)?;
    Ok(bytes)
}

/// A name of GNU's headers ends at the first NUL.
fn read_name(content: &Region) -> Result<Vec<u8>, EntryFault> {
    let mut name = read_extension(content)?;
    let end = name.iter().position(|byte| *byte == 0);
    name.truncate(end.unwrap_or(name.len()));
    Ok(name)
}

/// The records of a PAX header that matter (POSIX.1-2017, pax, Extended Header).
#[derive(Debug, Default)]
struct Pax {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u32>,
    gid: Option<u32>,
    mtime: Option<u64>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Pax {
    fn parse(mut bytes: &[u8]) -> Result<Self, EntryFault> {
        let mut pax = Self::default();
        // Some writers pad with NUL bytes.
        while bytes.first().is_some_and(|byte| *byte != 0) {
            let (record, rest) = split_record(bytes).ok_or(EntryFault::PaxRecord)?;
            let equals = record.iter().position(|byte| *byte == b'=');
            let (name, value) = record.split_at(equals.ok_or(EntryFault::PaxRecord)?);
            pax.keep(name, &value[1..])?;
            bytes = rest;
        }
        Ok(pax)
    }

    fn keep(&mut self, name: &[u8], value: &[u8]) -> Result<(), EntryFault> {
        match name {
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.link = Some(value.to_vec()),
            b"size" => self.size = Some(number("size", value)?),
            b"uid" => self.uid = Some(number("uid", value)?),
            b"gid" => self.gid = Some(number("gid", value)?),
            b"mtime" => self.mtime = Some(seconds(value)?),
            _ if name.starts_with(b"GNU.sparse.") => return Err(EntryFault::Kind { kind: 'S' }),
            _ => {
                if let Some(name) = name.strip_prefix(b"SCHILY.xattr.") {
                    self.xattrs.push((name.to_vec(), value.to_vec()));
                }
            }
        }
        Ok(())
    }
}

/// `LENGTH NAME=VALUE\n`, where LENGTH counts all of it, and what follows. Values may hold any byte.
fn split_record(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let space = bytes.iter().position(|byte| *byte == b' ')?;
    let length: usize = std::str::from_utf8(&bytes[..space]).ok()?.parse().ok()?;
    let record = bytes.get(space + 1..length)?.strip_suffix(b"\n")?;
    Some((record, &bytes[length..]))
}

fn number<T: std::str::FromStr>(name: &'static str, value: &[u8]) -> Result<T, EntryFault> {
    let text = display(value);
    let parsed = text.parse();
    parsed.map_err(|_| EntryFault::PaxNumber { name, value: text })
}

/// Whole seconds of `SECONDS[.FRACTION]`; 0 for times before 1970.
fn seconds(value: &[u8]) -> Result<u64, EntryFault> {
    let whole = value.split(|byte| *byte == b'.').next().unwrap_or(value);
    let seconds: i64 = number("mtime", whole)?;
    Ok(u64::try_from(seconds).unwrap_or(0))
}

fn place(
    record: &Record,
    tree: &mut Tree,
    layer: Layer,
    whiteouts: Whiteouts,
) -> Result<(), EntryFault> {
    let path = parse_path(&record.path)?;
    if whiteouts == Whiteouts::Apply
        && let Some((_, name)) = path.split()
        && name.starts_with(WHITEOUT)
    {
        return Ok(hide(tree, &path, name, layer)?);
    }
    let header = &record.header;
    if header.entry_type() == EntryType::Link {
        let target = parse_path(&record.link)?;
        return Ok(tree.link(&path, &target, layer)?);
    }
    let meta = meta(record)?;
    let node = node(record)?;
    tree.place(&path, Inode { meta, node }, layer)?;
    Ok(())
}

fn hide(tree: &mut Tree, path: &EntryPath, name: &[u8], layer: Layer) -> Result<(), PlaceError> {
    if name == OPAQUE {
        tree.hide_below(&path.folder(), layer)
    } else if !name.starts_with(AUFS_OWN) && name.len() > WHITEOUT.len() {
        tree.hide(&path.with_name(&name[WHITEOUT.len()..]), layer)
    } else {
        Ok(())
    }
}

fn parse_path(path: &[u8]) -> Result<EntryPath, EntryFault> {
    EntryPath::parse(path).map_err(|fault| {
        let path = display(path);
        EntryFault::Place(PlaceError::Path { path, fault })
    })
}

fn node(record: &Record) -> Result<Node, EntryFault> {
    let header = &record.header;
    Ok(match header.entry_type() {
        EntryType::Directory => Node::Folder(Default::default()),
        // Before ustar a folder was a file with a slash.
        EntryType::Regular if record.path.ends_with(b"/") => Node::Folder(Default::default()),
        EntryType::Regular | EntryType::Continuous => {
            Node::File(Content::Region(record.content.clone()))
        }
        EntryType::Symlink => {
            let bytes = record.link.len();
            if bytes == 0 || bytes > PATH_BYTES_MAX || record.link.contains(&0) {
                return Err(EntryFault::SymlinkTarget { bytes });
            }
            Node::Symlink(record.link.as_slice().into())
        }
        EntryType::Char => {
            let (major, minor) = device(header)?;
            Node::Character { major, minor }
        }
        EntryType::Block => {
            let (major, minor) = device(header)?;
            Node::Block { major, minor }
        }
        EntryType::Fifo => Node::Fifo,
        other => {
            let kind = char::from(other.as_byte());
            return Err(EntryFault::Kind { kind });
        }
    })
}

/// Numbers of a device as Linux has them: 12 and 20 bits.
fn device(header: &Header) -> Result<(u32, u32), EntryFault> {
    let field = |value: io::Result<Option<u32>>, bits: u32| {
        let value = value.ok().map(Option::unwrap_or_default);
        value.filter(|value| *value < 1 << bits)
    };
    let major = field(header.device_major(), 12).ok_or(EntryFault::Field { field: "devmajor" })?;
    let minor = field(header.device_minor(), 20).ok_or(EntryFault::Field { field: "devminor" })?;
    Ok((major, minor))
}

fn meta(record: &Record) -> Result<Meta, EntryFault> {
    let Record { header, pax, .. } = record;
    let fields = header.as_old();
    let id = |of_pax: Option<u32>, bytes: &[u8], value: io::Result<u64>, field| match of_pax {
        Some(id) => Ok(id),
        None => u32::try_from(number_or_blank(bytes, value, field)?)
            .map_err(|_| EntryFault::Field { field }),
    };
    let mode = header.mode().map(u64::from);
    let mode = number_or_blank(&fields.mode, mode, "mode")? & 0o7777;
    let mtime = match pax.mtime {
        Some(mtime) => mtime,
        None => number_or_blank(&fields.mtime, header.mtime(), "mtime")?,
    };
    Ok(Meta {
        mode: u16::try_from(mode).map_err(|_| EntryFault::Field { field: "mode" })?,
        uid: id(pax.uid, &fields.uid, header.uid(), "uid")?,
        gid: id(pax.gid, &fields.gid, header.gid(), "gid")?,
        // A negative number in base 256 has its highest bit set.
        mtime: i64::try_from(mtime).map_or(0, |_| mtime),
        xattrs: pax.xattrs.iter().cloned().collect(),
    })
}

/// A number of the header. A field without digits, which some writers leave, is 0 for other readers too.
fn number_or_blank(
    bytes: &[u8],
    value: io::Result<u64>,
    field: &'static str,
) -> Result<u64, EntryFault> {
    let is_blank = bytes.iter().all(|byte| matches!(byte, 0 | b' '));
    value.or_else(|_| is_blank.then_some(0).ok_or(EntryFault::Field { field }))
}

#[cfg(test)]
#[path = "tar_read_tests.rs"]
mod tests;
