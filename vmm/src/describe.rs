//! `--describe`: what an image holds, also when parts of it are damaged. And what is added to one afterwards.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use lightv_api::describe::{ImageDescription, SectionDescription};
use lightv_devices::state::Section;

use crate::image::header::{FORMAT_VERSION, kind};
use crate::image::read::{Image, OpenImageError};
use crate::image::write::{ImageContents, Source, WriteImageError, write_image};
use crate::memory::GuestRam;
use crate::snapshot::vcpu_state::VcpuStateV1;
use crate::snapshot::working_set::{WorkingSetV1, written_pages};

/// Blocks of `stat`.
const STAT_BLOCK_BYTES: u64 = 512;

/// Reads header, manifest and checksums of `path`.
///
/// # Errors
/// [`OpenImageError`] when header, table or manifest are damaged; another damaged section is shown as such.
pub fn describe(path: &Path) -> Result<ImageDescription, OpenImageError> {
    let mut image = Image::open_unproved(path)?;
    let manifest = image.take_manifest()?;
    let mut chunk = Vec::new();
    let mut sections = Vec::with_capacity(image.entries().len());
    for entry in image.entries() {
        sections.push(SectionDescription {
            kind: entry.kind.clone(),
            index: entry.index,
            version: entry.version,
            offset: entry.offset,
            length: entry.bytes,
            checksum: format!("{:016x}", entry.checksum),
            intact: image.is_intact(entry, &mut chunk)?,
        });
    }
    let metadata = fs::metadata(path).map_err(|cause| OpenImageError::Open {
        path: path.into(),
        cause,
    })?;
    Ok(ImageDescription {
        path: path.display().to_string(),
        file_bytes: metadata.size(),
        allocated_bytes: metadata.blocks() * STAT_BLOCK_BYTES,
        format_version: FORMAT_VERSION,
        architecture: "x86_64".to_owned(),
        written_by: manifest.written_by,
        created_unix_s: manifest.created_unix_s,
        restores: manifest.restores,
        ram_bytes: manifest.ram_bytes,
        has_snapshot: image.count(VcpuStateV1::KIND) > 0,
        config: manifest.config,
        sections,
    })
}

/// Whether the configuration in `path` has a console. Of what is no image, nothing is known: no.
#[must_use]
pub fn has_console(path: &Path) -> bool {
    let manifest = Image::open_unproved(path).and_then(|mut image| image.take_manifest());
    manifest.is_ok_and(|manifest| manifest.config.console.is_some())
}

/// Why the working set could not be added. The image is as it was.
#[derive(Debug, thiserror::Error)]
pub enum AddWorkingSetError {
    /// The page map could not be read.
    #[error("Cannot read the page map of the process")]
    PageMap(#[source] std::io::Error),
    /// The image could not be read.
    #[error("Cannot add the working set")]
    Read(#[source] OpenImageError),
    /// The image could not be written.
    #[error("Cannot add the working set")]
    Write(#[source] WriteImageError),
}

/// Adds the pages that the guest has written since it was restored from the image `path` to that image.
///
/// # Errors
/// [`AddWorkingSetError`].
pub fn add_working_set(path: &Path, ram: &GuestRam) -> Result<(), AddWorkingSetError> {
    let working_set = written_pages(ram).map_err(AddWorkingSetError::PageMap)?;
    let image = Image::open(path).map_err(AddWorkingSetError::Read)?;
    let mut contents = ImageContents::default();
    let old = |entry: &&_| is_working_set(entry);
    for entry in image.entries().iter().filter(|entry| !old(entry)) {
        if entry.kind == kind::MEMORY {
            contents
                .add(0, &working_set)
                .map_err(AddWorkingSetError::Write)?;
        }
        contents.add_copy(entry);
    }
    write_image(path, contents, Source::Image(&image))
        .map(|_bytes| ())
        .map_err(AddWorkingSetError::Write)
}

fn is_working_set(entry: &crate::image::header::SectionEntry) -> bool {
    entry.kind == WorkingSetV1::KIND
}
