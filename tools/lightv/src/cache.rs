//! Images of embedded apps, built once and kept.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use lightv_api::config::{BootSource, VmSpec};
use lightv_api::exit;

use crate::build::{self, BuildError, BuildPlan, Kernel, Overwrite, SaveAt, WorkingSet};
use crate::cache_folder;
use crate::embedded;
use crate::failure::Coded;

/// The embedded guest is ready within a second even where KVM is emulated.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Why there is no image of an embedded app.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CacheError {
    #[error("Neither XDG_CACHE_HOME nor HOME is set, so there is no place to keep {name}")]
    NoPlace { name: String },
    #[error("Cannot create {}", folder.display())]
    Folder {
        folder: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error("Cannot build the image of {name}")]
    Build {
        name: String,
        #[source]
        cause: BuildError,
    },
}

impl Coded for CacheError {
    fn exit_code(&self) -> u8 {
        match self {
            Self::NoPlace { .. } | Self::Folder { .. } => exit::HOST_FAILURE,
            Self::Build { cause, .. } => cause.exit_code(),
        }
    }
}

/// Where cached images lie.
pub(crate) fn folder() -> Option<PathBuf> {
    Some(cache_folder::base()?.join("images"))
}

/// An image belongs to the guest, the monitor and the CPU that made it; a home may be shared by several.
fn file_name(name: &str) -> String {
    let (guest, monitor) = (embedded::GUEST_HASH, env!("LIGHTV_MONITOR_HASH"));
    let cpu = lightv_vmm::job::cpu_signature();
    format!("{name}-{guest}-{monitor}-{cpu:x}.lv")
}

/// The image of the embedded app that users call `name`: the one that is kept, or else one built now.
pub(crate) fn image(name: &str, app: &str) -> Result<PathBuf, CacheError> {
    let folder = folder().ok_or_else(|| CacheError::NoPlace {
        name: name.to_owned(),
    })?;
    let path = folder.join(file_name(name));
    if path.is_file() {
        return Ok(path);
    }
    if let Err(cause) = fs::create_dir_all(&folder) {
        return Err(CacheError::Folder { folder, cause });
    }
    let boot_args = Some(format!("app={app}"));
    let plan = BuildPlan {
        spec: VmSpec {
            boot_source: Some(BootSource {
                boot_args,
                ..BootSource::default()
            }),
            ..VmSpec::default()
        },
        kernel: Kernel::Embedded,
        rootfs: None,
        out: path.clone(),
        // Another process may have built the same in the meantime.
        overwrite: Overwrite::Replace,
        save_at: SaveAt::Doorbell,
        timeout: TIMEOUT,
        working_set: WorkingSet::Unknown,
    };
    match build::build(plan) {
        Ok(_) => Ok(path),
        Err(cause) => Err(CacheError::Build {
            name: name.to_owned(),
            cause,
        }),
    }
}
