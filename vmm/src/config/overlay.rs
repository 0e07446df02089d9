//! `drives[].overlay`.

use std::path::PathBuf;

use lightv_api::config::DriveSpec;
use lightv_api::contract::drive::{IoEngine, OverlaySpec};

use super::{Faults, prove_path};

/// A private layer over a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OverlayConfig {
    /// Number of the drive in the configuration: of its sections in an image.
    pub index: u32,
    /// Its file; none for one in memory.
    pub path: Option<PathBuf>,
    /// Bytes of data that it may have.
    pub bytes_max: Option<u64>,
}

/// Proves the overlay of `drive`, which is number `index`.
pub(super) fn prove(index: usize, drive: &DriveSpec, faults: &mut Faults) -> Option<OverlayConfig> {
    let overlay = drive.overlay.as_ref()?;
    let OverlaySpec { path, size_mib } = overlay;
    let field = |name: &str| format!("drives[{index}].{name}");
    if drive.is_read_only {
        let allowed = "nothing for a drive with is_read_only: the guest writes nothing";
        faults.add(field("overlay"), "set", allowed);
    }
    for (name, is_set) in [
        ("io_engine", drive.io_engine == Some(IoEngine::Async)),
        ("direct", drive.direct == Some(true)),
        ("socket", drive.socket.is_some()),
    ] {
        if is_set {
            let allowed = match name {
                "io_engine" => "Sync for a drive with an overlay",
                _ => "nothing for a drive with an overlay",
            };
            let found = if name == "io_engine" { "Async" } else { "set" };
            faults.add(field(name), found, allowed);
        }
    }
    if let Some(path) = path {
        prove_path(&field("overlay.path"), path, faults);
    }
    let bytes_max = size_mib.map(|mib| mib.checked_mul(1 << 20).filter(|bytes| *bytes > 0));
    if bytes_max == Some(None) {
        let found = size_mib.unwrap_or_default();
        let allowed = format!("1–{}", u64::MAX >> 20);
        faults.add(field("overlay.size_mib"), found, allowed);
    }
    Some(OverlayConfig {
        index: u32::try_from(index).unwrap_or(u32::MAX),
        path: path.clone(),
        bytes_max: bytes_max.flatten(),
    })
}
