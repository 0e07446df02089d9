//! `lightv images`: which images there are.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use lightv_api::describe::ImageDescription;
use lightv_api::exit;

use super::{show, show_json};
use crate::failure::{Coded, Failure};
use crate::monitor::MonitorError;
use crate::table::Table;
use crate::{cache, monitor, text};

/// List images (.lv)
#[derive(Debug, Parser)]
#[command(after_help = "\
Examples:
  lightv images              here, and those of embedded apps
  lightv images /srv/images  in another folder
  lightv images --json       everything that is known of each")]
pub(crate) struct ImagesArgs {
    /// Folders to look in (default: the current one, and the cache of embedded apps)
    dirs: Vec<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Why images cannot be listed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ImagesError {
    #[error("Cannot read folder {}", folder.display())]
    Folder {
        folder: PathBuf,
        #[source]
        cause: io::Error,
    },
}

impl Coded for ImagesError {
    fn exit_code(&self) -> u8 {
        exit::FAILURE
    }
}

/// Prints a row an image. A file that is none is reported and does not end the list.
pub(crate) fn run(args: &ImagesArgs) -> Result<ExitCode, Failure> {
    let mut images = Vec::new();
    for path in files(&args.dirs)? {
        match monitor::query::<ImageDescription>(&["--describe".as_ref(), path.as_os_str()]) {
            Ok(image) => images.push(image),
            Err(MonitorError::Refused { message, .. }) => {
                eprintln!("lightv: {}: {message}", path.display());
            }
            Err(other) => return Err(other.into()),
        }
    }
    if args.json {
        return show_json(&images);
    }
    if images.is_empty() {
        eprintln!("lightv: no images here; lightv build hello-world -o hello-world.lv makes one");
    }
    let mut table = Table::new(&[
        "image",
        ">RAM",
        ">vCPUs",
        ">size",
        ">allocated",
        "starts by",
        "created",
        "LightV",
    ]);
    for image in images {
        table.row([
            image.path,
            text::bytes(image.ram_bytes),
            image.config.machine_config.vcpu_count.to_string(),
            text::bytes(image.file_bytes),
            text::bytes(image.allocated_bytes),
            if image.has_snapshot {
                "snapshot"
            } else {
                "boot"
            }
            .into(),
            text::utc(image.created_unix_s),
            image.written_by,
        ]);
    }
    show(|out| table.write(out))
}

/// Image files of `dirs`, in order; a folder that was named must exist.
fn files(dirs: &[PathBuf]) -> Result<Vec<PathBuf>, ImagesError> {
    let defaults: Vec<PathBuf> = cache::folder()
        .into_iter()
        .filter(|folder| folder.is_dir())
        .collect();
    let dirs = if dirs.is_empty() {
        [vec![".".into()], defaults].concat()
    } else {
        dirs.to_vec()
    };
    let mut files = Vec::new();
    for folder in dirs {
        let found = images_in(&folder);
        files.extend(found.map_err(|cause| ImagesError::Folder { folder, cause })?);
    }
    Ok(files)
}

fn images_in(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "lv") {
            files.push(path.strip_prefix(".").map_or(path.clone(), Path::to_owned));
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_images_are_listed_in_order() {
        let folder = tempfile::tempdir().expect("a folder");
        for name in ["b.lv", "a.lv", "c.txt", "lv"] {
            fs::write(folder.path().join(name), "").expect("a file");
        }
        let found = images_in(folder.path()).expect("readable");
        let names: Vec<_> = found.iter().filter_map(|path| path.file_name()).collect();
        assert_eq!(names, ["a.lv", "b.lv"]);
        assert!(files(&[folder.path().join("missing")]).is_err());
    }
}
