//! Disks whose bytes are sections of an image: `disk`, and `disk-sums` with a checksum for each chunk of it. And what lies over
//! disks: `overlay-map`, `overlay`, `overlay-sums`.

use std::fs::File;
use std::sync::Arc;

use lightv_api::config::VmSpec;
use lightv_api::contract::drive::OverlaySpec;
use lightv_devices::state::OverlayMapV1;
use lightv_devices::virtio::block::{DiskPart, SavedDelta, chunk_count};

use super::header::{SectionEntry, kind};
use super::read::{Image, OpenImageError};

/// What to do when a section is missing.
const ADVICE: &str = "build it anew with `lightv build`";

/// A delta in an image.
#[derive(Debug, Clone)]
pub struct ImageOverlay {
    /// Number of the drive in the configuration.
    pub index: u32,
    /// The delta.
    pub saved: SavedDelta,
}

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
    let disk = image
        .take_entry(kind::DISK, index, kind::BYTES_VERSION)?
        .ok_or_else(|| image.missing(kind::DISK, index, ADVICE))?;
    let part = take_part(image, &disk, kind::DISK_SUMS)?;
    Ok(ImageDisk { index, part })
}

/// Takes the deltas in memory that were saved with the machine.
///
/// # Errors
/// [`OpenImageError`]: a section is missing, or they do not fit together.
pub fn take_overlays(
    image: &mut Image,
    config: &VmSpec,
) -> Result<Vec<ImageOverlay>, OpenImageError> {
    let mut overlays = Vec::new();
    for (index, drive) in (0..).zip(&config.drives) {
        let is_in_memory = |overlay: &OverlaySpec| overlay.path.is_none();
        if drive.overlay.as_ref().is_some_and(is_in_memory) {
            let map: OverlayMapV1 = image.take_needed(index)?;
            let entry = image.take_entry(kind::OVERLAY, index, kind::BYTES_VERSION)?;
            let part = match entry {
                Some(entry) => Some(take_part(image, &entry, kind::OVERLAY_SUMS)?),
                None => None,
            };
            let saved = SavedDelta { map, part };
            overlays.push(ImageOverlay { index, saved });
        }
    }
    Ok(overlays)
}

/// The section `entry`, with the checksums of its chunks.
fn take_part(
    image: &mut Image,
    entry: &SectionEntry,
    sums_kind: &str,
) -> Result<DiskPart, OpenImageError> {
    let sums_entry = image
        .take_entry(sums_kind, entry.index, kind::BYTES_VERSION)?
        .ok_or_else(|| image.missing(sums_kind, entry.index, ADVICE))?;
    let bytes = image.bytes_of(&sums_entry, bytes_of_sums(entry.bytes))?;
    let sums = bytes
        .as_chunks::<8>()
        .0
        .iter()
        .map(|sum| u64::from_le_bytes(*sum))
        .collect();
    if bytes.len() as u64 != bytes_of_sums(entry.bytes) {
        let what = format!("does not fit section {}", entry.name());
        return Err(image.contents_error(&sums_entry.name(), what));
    }
    Ok(DiskPart {
        file: Arc::clone(image.file()),
        base: entry.offset,
        len_bytes: entry.bytes,
        sums,
    })
}

/// Length of the checksums of a section of `disk_bytes`.
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
