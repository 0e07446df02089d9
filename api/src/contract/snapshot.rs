//! `snapshot`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::machine::HugePages;
use super::net::NetworkOverride;
use super::tuning::TuningSpec;

/// `PUT /snapshot/create`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SnapshotCreate {
    /// File for the state.
    #[schema(value_type = String)]
    pub snapshot_path: PathBuf,
    /// File for guest memory.
    #[schema(value_type = String)]
    pub mem_file_path: PathBuf,
    /// How much of the memory.
    #[serde(default)]
    pub snapshot_type: SnapshotType,
    /// LightV's own: the machine may run, and stands still only while its state is taken; memory is written from a copy. Only
    /// with [`SnapshotType::Full`], and with disks that are not written, or that have an overlay in memory.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub live: bool,
}

/// LightV's own, `PUT /fork`: the machine goes on, and others can begin from where it stood, by a load of `snapshot_path` with
/// `mem_backend` of the type `Uffd` and `mem_socket_path`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ForkSpec {
    /// File for the state.
    #[schema(value_type = String)]
    pub snapshot_path: PathBuf,
    /// Socket at which guest memory is given out. It is there until all have come, or none for half a minute.
    #[schema(value_type = String)]
    pub mem_socket_path: PathBuf,
    /// How many will come: 1–1000.
    #[serde(default = "one")]
    #[schema(default = 1, minimum = 1, maximum = 1000)]
    pub clones: u32,
}

/// The number of clones unless it is said.
const fn one() -> u32 {
    1
}

/// How much of the memory a snapshot holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum SnapshotType {
    /// All.
    #[default]
    Full,
    /// What was written since the snapshot before.
    Diff,
}

// Proved, it is [`LoadParams`].
/// `PUT /snapshot/load`, as it is written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SnapshotLoad {
    /// File with the state.
    #[schema(value_type = String)]
    pub snapshot_path: PathBuf,
    /// Where guest memory comes from: this, or `mem_file_path`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mem_backend: Option<MemBackend>,
    /// Deprecated: a file with guest memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(deprecated, value_type = Option<String>)]
    pub mem_file_path: Option<PathBuf>,
    /// Whether pages that the guest writes are noted, for differential snapshots.
    #[serde(default)]
    pub track_dirty_pages: bool,
    /// Deprecated: the old name of `track_dirty_pages`.
    #[serde(default)]
    #[schema(deprecated)]
    pub enable_diff_snapshots: bool,
    /// Whether the machine goes on at once.
    #[serde(default)]
    pub resume_vm: bool,
    /// Other taps.
    #[serde(default)]
    pub network_overrides: Vec<NetworkOverride>,
    /// Another socket for vsock.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vsock_override: Option<VsockOverride>,
    /// Whether the guest's wall clock is advanced by the time that has passed.
    #[serde(default)]
    pub clock_realtime: bool,
    /// What guest memory is made of.
    #[serde(default)]
    pub huge_pages: LoadHugePages,
    /// LightV's own: other files for disks.
    #[serde(default)]
    pub drive_overrides: Vec<DriveOverride>,
    /// LightV's own: how the host runs the machine, over what the snapshot says of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tuning: Option<TuningSpec>,
}

/// Where guest memory comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MemBackend {
    /// What the path names.
    pub backend_type: MemBackendType,
    /// A file, or the socket of a process that serves page faults.
    #[schema(value_type = String)]
    pub backend_path: PathBuf,
    /// LightV's own: files of differential snapshots, laid over `backend_path` in this order. Only with
    /// [`MemBackendType::File`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>)]
    pub diffs: Vec<PathBuf>,
}

/// What gives guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum MemBackendType {
    /// A file, mapped.
    File,
    /// A process, by userfaultfd.
    Uffd,
}

/// Another socket for vsock. Unknown fields are passed over, as in Firecracker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VsockOverride {
    /// The socket.
    #[schema(value_type = String)]
    pub uds_path: PathBuf,
}

/// LightV's own: another file for a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DriveOverride {
    /// Which disk.
    pub drive_id: String,
    /// Its file; the base of one with an overlay. This, or `overlay_path`, or both.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub path_on_host: Option<PathBuf>,
    /// The file of its overlay, if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub overlay_path: Option<PathBuf>,
}

/// What guest memory is made of after a load. This version refuses `2M`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum LoadHugePages {
    /// As when the snapshot was made.
    #[default]
    Snapshot,
    /// Pages of 4 KiB.
    None,
    /// Pages of 4 KiB, which the kernel may join.
    Transparent,
    /// Pages of 2 MiB from the kernel's pool. This version refuses it.
    #[serde(rename = "2M")]
    Hugetlbfs2M,
}

/// A snapshot to load: [`SnapshotLoad`] without what contradicts itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadParams {
    /// File with the state.
    pub snapshot_path: PathBuf,
    /// Where guest memory comes from.
    pub memory: MemBackend,
    /// Whether pages that the guest writes are noted.
    pub track_dirty_pages: bool,
    /// Whether the machine goes on at once.
    pub resume: bool,
    /// Other taps.
    pub network_overrides: Vec<NetworkOverride>,
    /// Another socket for vsock.
    pub vsock_override: Option<VsockOverride>,
    /// Whether the guest's wall clock is advanced.
    pub clock_realtime: bool,
    /// What guest memory is made of, if not as in the snapshot.
    pub huge_pages: Option<HugePages>,
    /// Other files for disks.
    pub drive_overrides: Vec<DriveOverride>,
    /// How the host runs the machine.
    pub tuning: Option<TuningSpec>,
}

/// Why [`SnapshotLoad`] is no snapshot to load. The texts are Firecracker's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LoadFieldsError {
    /// Memory comes from nowhere.
    #[error("missing field: either `mem_backend` or `mem_file_path` is required")]
    MemoryMissing,
    /// Memory comes from two places.
    #[error("too many fields: either `mem_backend` or `mem_file_path` exclusively is required")]
    MemoryTwice,
    /// Differences that a process serves.
    #[error("mem_backend.diffs needs `mem_backend` of the type `File`")]
    DiffsOfUffd,
    /// A drive that is to stay as it is.
    #[error("drive_overrides needs `path_on_host` or `overlay_path`")]
    NothingOverridden,
    /// Large pages.
    #[error(
        "huge_pages `2M`: this version of LightV does not offer it in a load; use `Transparent`"
    )]
    LargePages,
}

impl SnapshotLoad {
    /// A machine that begins from the state and the memory of a fork ([`ForkSpec`]), and goes on at once.
    #[must_use]
    pub const fn of_fork(state: PathBuf, memory_socket: PathBuf) -> Self {
        Self {
            snapshot_path: state,
            mem_backend: Some(MemBackend {
                backend_type: MemBackendType::Uffd,
                backend_path: memory_socket,
                diffs: Vec::new(),
            }),
            mem_file_path: None,
            track_dirty_pages: false,
            enable_diff_snapshots: false,
            resume_vm: true,
            network_overrides: Vec::new(),
            vsock_override: None,
            clock_realtime: false,
            huge_pages: LoadHugePages::Snapshot,
            drive_overrides: Vec::new(),
            tuning: None,
        }
    }

    /// Whether a field of the body is deprecated.
    #[must_use]
    pub const fn is_deprecated(&self) -> bool {
        self.mem_file_path.is_some() || self.enable_diff_snapshots
    }
}

impl TryFrom<SnapshotLoad> for LoadParams {
    type Error = LoadFieldsError;

    fn try_from(load: SnapshotLoad) -> Result<Self, LoadFieldsError> {
        let memory = match (load.mem_backend, load.mem_file_path) {
            (Some(_), Some(_)) => return Err(LoadFieldsError::MemoryTwice),
            (None, None) => return Err(LoadFieldsError::MemoryMissing),
            (Some(backend), None) => backend,
            (None, Some(backend_path)) => MemBackend {
                backend_type: MemBackendType::File,
                backend_path,
                diffs: Vec::new(),
            },
        };
        if !memory.diffs.is_empty() && memory.backend_type == MemBackendType::Uffd {
            return Err(LoadFieldsError::DiffsOfUffd);
        }
        let is_empty =
            |drive: &DriveOverride| drive.path_on_host.is_none() && drive.overlay_path.is_none();
        if load.drive_overrides.iter().any(is_empty) {
            return Err(LoadFieldsError::NothingOverridden);
        }
        let huge_pages = match load.huge_pages {
            LoadHugePages::Snapshot => None,
            LoadHugePages::None => Some(HugePages::None),
            LoadHugePages::Transparent => Some(HugePages::Transparent),
            LoadHugePages::Hugetlbfs2M => return Err(LoadFieldsError::LargePages),
        };
        Ok(Self {
            snapshot_path: load.snapshot_path,
            memory,
            track_dirty_pages: load.track_dirty_pages || load.enable_diff_snapshots,
            resume: load.resume_vm,
            network_overrides: load.network_overrides,
            vsock_override: load.vsock_override,
            clock_realtime: load.clock_realtime,
            huge_pages,
            drive_overrides: load.drive_overrides,
            tuning: load.tuning,
        })
    }
}
