//! Disks whose bytes are sections of an image: `disk`, and `disk-sums` with a checksum for each chunk of it.

use std::fs::File;
use std::sync::Arc;

use lightv_api::config::VmSpec;
use lightv_devices::virtio::block::{DiskPart, chunk_count};

use super::header::kind;
use super::read::{Image, OpenImageError};

/// A disk in an image.
#[derive(Debug, Clone)]
pub struct ImageDisk {
    /// Number of the drive in the configuration.
    pub index: u32,
    /// Where its bytes are.
    pub part: DiskPart,
}

/// Takes the sections of all drives of `config` that are in the image.
///
/// # Errors
/// [`OpenImageError`]: a section is missing, or the two do not fit together.
pub fn take_disks(image: &mut Image, config: &VmSpec) -> Result<Vec<ImageDisk>, OpenImageError> {
    let mut disks = Vec::new();
    for (index, drive) in (0..).zip(&config.drives) {
        if drive.in_image == Some(true) {
            disks.push(take_disk(image, index)?);
        }
    }
    Ok(disks)
}

fn take_disk(image: &mut Image, index: u32) -> Result<ImageDisk, OpenImageError> {
    let advice = "build it anew with `lightv build`";
    let mut take = |kind| {
        image
            .take_entry(kind, index, kind::BYTES_VERSION)?
            .ok_or_else(|| image.missing(kind, index, advice))
    };
    let disk = take(kind::DISK)?;
    let sums_entry = take(kind::DISK_SUMS)?;
    let bytes = image.bytes_of(&sums_entry, bytes_of_sums(disk.bytes))?;
    let sums = bytes
        .as_chunks::<8>()
        .0
        .iter()
        .map(|sum| u64::from_le_bytes(*sum))
        .collect();
    if bytes.len() as u64 != bytes_of_sums(disk.bytes) {
        let what = format!("does not fit section {}", disk.name());
        return Err(image.contents_error(&sums_entry.name(), what));
    }
    Ok(ImageDisk {
        index,
        part: DiskPart {
            file: Arc::clone(image.file()),
            base: disk.offset,
            len_bytes: disk.bytes,
            sums,
        },
    })
}

/// Length of the section `disk-sums` of a disk of `disk_bytes`.
fn bytes_of_sums(disk_bytes: u64) -> u64 {
    chunk_count(disk_bytes).saturating_mul(8)
}

/// A disk that a save puts into an image.
#[derive(Debug, Clone)]
pub struct StoredDisk {
    /// Number of the drive in the configuration.
    pub index: u32,
    /// Where its bytes are now.
    pub file: Arc<File>,
    /// From where on.
    pub base: u64,
    /// How many.
    pub len_bytes: u64,
}
