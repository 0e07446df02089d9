//! `lightv.toml`: what a build is made of, in a file that can be kept with the program.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use lightv_contract::agent::Ready;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _};

use crate::additions::{CopySpec, Owner};
use crate::draft::folder_of;
use crate::format::{Compression, Format};
use crate::limits::BUILD_FILE_BYTES_MAX;

/// The name that the file has when none is given.
pub const FILE_NAME: &str = "lightv.toml";

/// The file. Absent values are for the caller to decide. Paths of the host are relative to the file's folder, and
/// complete when the file was read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BuildFile {
    /// What the root file system is made of (`Source::detect`).
    pub rootfs: Option<PathBuf>,
    /// File system of the image.
    pub format: Option<Format>,
    /// Its compression.
    pub compression: Option<Compression>,
    /// Room in memory for what the program writes, in MiB.
    pub size: Option<u32>,
    /// First words of the command line: an array, or text for `/bin/sh -c`.
    #[serde(deserialize_with = "words")]
    pub entrypoint: Option<Vec<String>>,
    /// The words that follow: an array, or text for `/bin/sh -c`.
    #[serde(deserialize_with = "words")]
    pub cmd: Option<Vec<String>>,
    /// Environment.
    pub env: BTreeMap<String, String>,
    /// Folder that the program starts in.
    pub workdir: Option<String>,
    /// `user`, `uid`, `user:group` or `uid:gid`.
    pub user: Option<String>,
    /// Host name.
    pub hostname: Option<String>,
    /// Whether programs can be started in it while it runs.
    pub exec: Option<bool>,
    /// Guest memory in MiB.
    pub memory: Option<u64>,
    /// Number of vCPUs.
    pub vcpus: Option<u64>,
    /// The kernel.
    pub kernel: Option<PathBuf>,
    /// When the guest is ready to be saved: `"exec"`, `"doorbell"`, `{ listen = 80 }`.
    pub ready: Option<Ready>,
    /// Network interfaces, as `lightv build --net` takes them.
    pub net: Vec<String>,
    /// Files that are added to the root file system.
    #[serde(deserialize_with = "copies")]
    pub copy: Vec<CopySpec>,
}

/// Why a build file was refused.
#[derive(Debug, thiserror::Error)]
pub enum ReadBuildFileError {
    /// The host refused.
    #[error("Cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// It is something else.
    #[error("{} has more than {BUILD_FILE_BYTES_MAX} bytes", path.display())]
    Long {
        /// The file.
        path: PathBuf,
    },
    /// It is no TOML, or says something that has no meaning.
    #[error("{}:{line}: {message}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// Line, from 1 on.
        line: usize,
        /// What is wrong there.
        message: String,
    },
}

impl BuildFile {
    /// Reads a file.
    ///
    /// # Errors
    /// [`ReadBuildFileError`], with the line for what stands in it.
    pub fn read(path: &Path) -> Result<Self, ReadBuildFileError> {
        let read_error = |cause| ReadBuildFileError::Read {
            path: path.to_owned(),
            cause,
        };
        let file = File::open(path).map_err(read_error)?;
        let mut text = String::new();
        let mut bounded = file.take(BUILD_FILE_BYTES_MAX + 1);
        bounded.read_to_string(&mut text).map_err(read_error)?;
        if text.len() as u64 > BUILD_FILE_BYTES_MAX {
            return Err(ReadBuildFileError::Long { path: path.into() });
        }
        let parsed: Result<Self, _> = toml::from_str(&text);
        let mut parsed = parsed.map_err(|error| content_error(path, &text, &error))?;
        parsed.complete(folder_of(path));
        Ok(parsed)
    }

    fn complete(&mut self, folder: &Path) {
        let own = self.rootfs.iter_mut().chain(&mut self.kernel);
        let copied = self.copy.iter_mut().map(|copy| &mut copy.from);
        for path in own.chain(copied) {
            *path = folder.join(&*path);
        }
    }
}

fn content_error(path: &Path, text: &str, error: &toml::de::Error) -> ReadBuildFileError {
    let at = error.span().map_or(0, |span| span.start);
    let before = text.get(..at).unwrap_or(text);
    ReadBuildFileError::Content {
        path: path.to_owned(),
        line: before.matches('\n').count() + 1,
        message: error.message().replace('\n', " "),
    }
}

/// Words of a command line.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected text, or an array of words")]
enum Words {
    Text(String),
    Array(Vec<String>),
}

fn words<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<String>>, D::Error> {
    Ok(Some(match Words::deserialize(deserializer)? {
        Words::Text(text) => vec!["/bin/sh".to_owned(), "-c".to_owned(), text],
        Words::Array(words) => words,
    }))
}

/// `[[copy]]`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CopyTable {
    from: PathBuf,
    to: String,
    #[serde(default, deserialize_with = "mode")]
    mode: Option<u16>,
    #[serde(default, deserialize_with = "owner")]
    owner: Owner,
}

fn copies<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<CopySpec>, D::Error> {
    let tables = Vec::<CopyTable>::deserialize(deserializer)?.into_iter();
    let copies = tables.map(|table| CopySpec {
        from: table.from,
        to: table.to,
        mode: table.mode,
        owner: table.owner,
    });
    Ok(copies.collect())
}

/// Octal digits as text; a TOML number would be decimal.
fn mode<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u16>, D::Error> {
    let text = String::deserialize(deserializer)?;
    let mode = u16::from_str_radix(&text, 8).ok();
    let mode = mode.filter(|mode| *mode <= 0o7777);
    mode.map(Some).ok_or_else(|| {
        D::Error::custom(format!("mode {text:?}: expected octal digits, as \"0755\""))
    })
}

fn owner<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Owner, D::Error> {
    let text = String::deserialize(deserializer)?;
    let (uid, gid) = text.split_once(':').unwrap_or((&text, &text));
    match (uid.parse(), gid.parse()) {
        (Ok(uid), Ok(gid)) => Ok(Owner { uid, gid }),
        _ => Err(D::Error::custom(format!(
            "owner {text:?}: expected numbers, as \"1000\" or \"1000:100\""
        ))),
    }
}

#[cfg(test)]
#[path = "build_file_tests.rs"]
mod tests;
