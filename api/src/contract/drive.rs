//! `drives`.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::limiter::RateLimiter;

/// A disk.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DriveSpec {
    /// Letters, digits and `_`, at most 64; unique.
    pub drive_id: String,
    /// Partition that is the root file system: `root=PARTUUID=…` is added.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub partuuid: Option<String>,
    /// Whether this is the root disk (`root=/dev/vda` is added to the command line). `PUT /drives/{id}` must say it, as in
    /// Firecracker; a configuration file may leave it out.
    #[serde(default)]
    #[schema(required = true)]
    pub is_root_device: bool,
    /// `Unsafe` (default; the guest is offered no flush) or `Writeback` (flush is `fdatasync`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_type: Option<CacheType>,
    /// Whether the guest may only read.
    #[serde(default)]
    pub is_read_only: bool,
    /// A raw disk image or block device. Empty when a socket is named in its place.
    #[serde(default, skip_serializing_if = "is_empty")]
    #[schema(value_type = String)]
    pub path_on_host: PathBuf,
    /// What the guest may transfer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RateLimiter>,
    /// How the host reads and writes: `Sync` (default) or `Async`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub io_engine: Option<IoEngine>,
    /// Socket of a vhost-user process that is the disk. This version refuses it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub socket: Option<PathBuf>,
    /// Whether what the guest discards is given back to the host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub discard: Option<bool>,
    /// LightV's own: whether reads and writes pass the host's page cache by (`O_DIRECT`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub direct: Option<bool>,
    /// LightV's own: whether the bytes of the disk become part of an image that is saved of the machine. Only for disks
    /// that are read-only or have an overlay.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub in_image: Option<bool>,
    /// LightV's own: number of request queues, 1–16, 1 unless said otherwise. Linux uses as many as it has vCPUs.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 16)]
    pub num_queues: Option<u16>,
    /// LightV's own: a private layer over the disk, which is opened for reading only and can be shared. The guest may write.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overlay: Option<OverlaySpec>,
}

/// LightV's own: what of a disk is a machine's own (docs/overlay.md).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct OverlaySpec {
    /// File with what the guest has written; made if it is not there. Without one that is kept in memory, and part of a
    /// snapshot.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub path: Option<PathBuf>,
    /// MiB that the guest may have written, 1 or more. Without it: as many as the disk has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_mib: Option<u64>,
}

// Proved, it is an [`OverlayOrder`].
/// LightV's own: `PUT /drives/{id}/overlay`, as it is written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct OverlayCall {
    /// What is to be done.
    pub action: OverlayAction,
    /// For `Export`: the file to be made. What is there is replaced.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub path: Option<PathBuf>,
}

/// What can be done with an overlay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum OverlayAction {
    /// Forget all that was written: the disk is its base again, also under a guest that runs.
    Reset,
    /// Write the disk as the guest sees it into a file of its own. While the machine is paused.
    Export,
}

/// An [`OverlayCall`] without what contradicts itself.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is named like its action")]
pub enum OverlayOrder {
    Reset,
    Export { path: PathBuf },
}

/// Why [`OverlayCall`] is no order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OverlayFieldsError {
    /// A file for nothing.
    #[error("`path` goes with the action `Export` alone")]
    PathOfReset,
    /// Nowhere to export to.
    #[error("missing field: the action `Export` needs `path`")]
    PathMissing,
}

impl TryFrom<OverlayCall> for OverlayOrder {
    type Error = OverlayFieldsError;

    fn try_from(call: OverlayCall) -> Result<Self, OverlayFieldsError> {
        let path = call.path.filter(|path| !is_empty(path));
        match (call.action, path) {
            (OverlayAction::Reset, None) => Ok(Self::Reset),
            (OverlayAction::Reset, Some(_)) => Err(OverlayFieldsError::PathOfReset),
            (OverlayAction::Export, Some(path)) => Ok(Self::Export { path }),
            (OverlayAction::Export, None) => Err(OverlayFieldsError::PathMissing),
        }
    }
}

fn is_empty(path: &Path) -> bool {
    path.as_os_str().is_empty()
}

/// What a guest's flush does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum CacheType {
    /// The guest is offered no flush.
    Unsafe,
    /// A flush reaches the disk.
    Writeback,
}

/// How the host reads and writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum IoEngine {
    /// By calls that wait.
    Sync,
    /// By io_uring.
    Async,
}

/// `PATCH /drives/{id}`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DrivePatch {
    /// The drive.
    pub drive_id: String,
    /// Another file. The same path again takes over a size that has changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub path_on_host: Option<PathBuf>,
    /// Other limits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RateLimiter>,
}
