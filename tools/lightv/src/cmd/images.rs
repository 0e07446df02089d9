//! `lightv images`: which images there are, and those of the host agent.

use std::fs;
use std::io;
use std::path::{self, Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use lightv_api::agent::image::{ImageSpec, StoredImage};
use lightv_api::describe::ImageDescription;
use lightv_api::exit;

use super::{show, show_json};
use crate::agent::{self, AgentError};
use crate::failure::{Coded, Failure};
use crate::monitor::MonitorError;
use crate::table::Table;
use crate::{cache, monitor, text};

/// List images (.lv), and give them to the host agent
#[derive(Debug, Parser)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "\
Examples:
  lightv images              here, and those of embedded apps
  lightv images /srv/images  in another folder
  lightv images --json       everything that is known of each
  lightv images push web web.lv     the host agent copies it, and calls it web
  lightv images stored              what the host agent has
  lightv images rm web              it forgets the name; what runs goes on"
)]
pub(crate) struct ImagesArgs {
    /// Folders to look in (default: the current one, and the cache of embedded apps)
    dirs: Vec<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(subcommand)]
    command: Option<StoreCommand>,
}

/// What is done with the images of the host agent. A folder of such a name is `./push`.
#[derive(Debug, Subcommand)]
enum StoreCommand {
    /// Copy an image into the host agent's store
    Push {
        /// What it is called there: 1–64 letters, digits, `.`, `_` and `-`. A name that is there leads to this image from now on
        name: String,
        /// An image file (.lv)
        file: PathBuf,
    },
    /// List the host agent's images
    Stored {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Have the host agent forget images
    Rm {
        /// Their names
        #[arg(required = true)]
        names: Vec<String>,
    },
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
    #[error("Cannot tell where {} is", file.display())]
    File {
        file: PathBuf,
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
    match &args.command {
        Some(command) => run_store(command),
        None => list(args),
    }
}

fn run_store(command: &StoreCommand) -> Result<ExitCode, Failure> {
    let client = agent::client();
    match command {
        StoreCommand::Push { name, file } => {
            // The agent's working folder is another one.
            let path = path::absolute(file).map_err(|cause| ImagesError::File {
                file: file.clone(),
                cause,
            })?;
            let put = client.put(&format!("/images/{name}"), &ImageSpec { path });
            put.map_err(AgentError::from)?;
        }
        StoreCommand::Stored { json } => {
            let images: Vec<StoredImage> = client.get("/images").map_err(AgentError::from)?;
            if *json {
                return show_json(&images);
            }
            let mut table = Table::new(&["image", ">RAM", ">size", "set", "digest"]);
            for image in images {
                table.row([
                    image.name,
                    text::bytes(image.memory_mib << 20),
                    text::bytes(image.bytes),
                    text::utc(image.set_unix_ms / 1000),
                    image.digest,
                ]);
            }
            return show(|out| table.write(out));
        }
        StoreCommand::Rm { names } => return agent::delete_each("/images", names),
    }
    Ok(ExitCode::SUCCESS)
}

fn list(args: &ImagesArgs) -> Result<ExitCode, Failure> {
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
