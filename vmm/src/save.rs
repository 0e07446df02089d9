//! Saving a machine whose vCPUs are parked and have given their state.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use lightv_api::config::VmSpec;
use lightv_api::contract::snapshot::SnapshotType;
use lightv_devices::state::DeviceState;

use crate::arch::host::rng_seed;
use crate::config::MachineConfig;
use crate::image::header::kind;
use crate::image::manifest::{Manifest, MemoryMapV1};
use crate::image::write::{ImageContents, Source, WriteImageError, check_target, write_image};
use crate::machine::Machine;
use crate::orders::SnapshotTarget;
use crate::snapshot::irqchip_state::{self, VmStateError};
use crate::snapshot::memory_file::{self, WriteMemoryError};
use crate::snapshot::page_log;
use crate::snapshot::ram_scan;
use crate::snapshot::saved::SavedDevices;
use crate::snapshot::vcpu_state::VcpuStateV1;

/// Why a machine could not be saved. No image was made, and the machine can go on.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// KVM's state could not be read.
    #[error("Cannot read the state of the VM")]
    Vm(#[source] VmStateError),
    /// The manifest could not be written; a bug in us.
    #[error("Cannot write the manifest")]
    Manifest(#[source] serde_json::Error),
    /// The file could not be written.
    #[error("The image was not saved")]
    Write(#[source] WriteImageError),
    /// The memory file could not be written.
    #[error("Guest memory was not saved")]
    Memory(#[source] WriteMemoryError),
    /// The page map could not be read.
    #[error("Cannot read the page map of the process")]
    PageMap(#[source] io::Error),
    /// One file for both.
    #[error("State and memory cannot be the same file: {}", .0.display())]
    SameFile(PathBuf),
}

impl SaveError {
    /// The signal that interrupted the save, if one did.
    #[must_use]
    pub const fn interrupted_by(&self) -> Option<u8> {
        match self {
            Self::Write(WriteImageError::Interrupted { signal, .. })
            | Self::Memory(WriteMemoryError::Interrupted { signal, .. }) => Some(*signal),
            _ => None,
        }
    }
}

/// Saves `machine`, with `vcpus` in order and `devices` idle, as the image `path`. Returns its length in bytes.
///
/// # Errors
/// [`SaveError`].
pub fn save(
    machine: &Machine,
    vcpus: &[VcpuStateV1],
    devices: &SavedDevices,
    path: &Path,
) -> Result<u64, SaveError> {
    ensure_target(&machine.config, path).map_err(SaveError::Write)?;
    let mut contents = state_of(machine, vcpus, devices)?;
    let runs = ram_scan::non_zero_runs(&machine.ram).map_err(SaveError::PageMap)?;
    contents
        .add(0, &MemoryMapV1 { runs: runs.clone() })
        .map_err(SaveError::Write)?;
    contents.add_memory(runs);
    if let Some(kernel) = &machine.boot_files.kernel {
        contents.add_bytes(kind::KERNEL, kernel.clone());
    }
    if let Some(initrd) = &machine.boot_files.initrd {
        contents.add_bytes(kind::INITRD, initrd.clone());
    }
    add_disks(&mut contents, machine)?;
    write_image(path, contents, Source::Ram(machine.ram.mem())).map_err(SaveError::Write)
}

/// Saves `machine` as two files: RAM, or what of it has changed, first; then the state, which knows it.
///
/// # Errors
/// [`SaveError`]. When the state could not be written, a new memory file may be there; an old state does not fit it.
pub fn save_apart(
    machine: &mut Machine,
    vcpus: &[VcpuStateV1],
    devices: &SavedDevices,
    target: &SnapshotTarget,
) -> Result<(), SaveError> {
    ensure_targets(&machine.config, target)?;
    let mut contents = state_of(machine, vcpus, devices)?;
    let changes = match &machine.page_log {
        Some(log) => Some(log.changes(&machine.ram).map_err(SaveError::PageMap)?),
        None => None,
    };
    let runs = match (target.extent, &changes) {
        (SnapshotType::Full, _) => ram_scan::all_runs(&machine.ram),
        (SnapshotType::Diff, Some(changes)) => Ok(changes.runs.clone()),
        (SnapshotType::Diff, None) => page_log::own_pages(&machine.ram),
    };
    let runs = runs.map_err(SaveError::PageMap)?;
    let known =
        memory_file::write(&machine.ram, &runs, &target.memory).map_err(SaveError::Memory)?;
    contents.add(0, &known).map_err(SaveError::Write)?;
    add_disks(&mut contents, machine)?;
    write_image(&target.state, contents, Source::Ram(machine.ram.mem()))
        .map_err(SaveError::Write)?;
    if let Some(changes) = changes {
        machine.page_log = Some(changes.log);
    }
    Ok(())
}

fn ensure_targets(config: &MachineConfig, target: &SnapshotTarget) -> Result<(), SaveError> {
    let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let is_same_file = || {
        let identity = |path: &Path| {
            let found = std::fs::metadata(path).ok()?;
            Some((found.dev(), found.ino()))
        };
        identity(&target.state).is_some_and(|state| identity(&target.memory) == Some(state))
    };
    if absolute(&target.state) == absolute(&target.memory) || is_same_file() {
        return Err(SaveError::SameFile(target.state.clone()));
    }
    ensure_target(config, &target.state).map_err(SaveError::Write)?;
    memory_file::check_target(&target.memory, &disk_paths(config)).map_err(SaveError::Memory)
}

/// All of the machine but memory, disks and what it was booted from.
fn state_of(
    machine: &Machine,
    vcpus: &[VcpuStateV1],
    devices: &SavedDevices,
) -> Result<ImageContents, SaveError> {
    let mut contents = ImageContents::default();
    contents.add_bytes(kind::MANIFEST, manifest(machine, devices)?);
    let vm = irqchip_state::capture(machine.vm.fd()).map_err(SaveError::Vm)?;
    add_state(&mut contents, machine, vcpus, devices, &vm).map_err(SaveError::Write)?;
    rng_seed::forget(machine.ram.mem());
    Ok(contents)
}

fn add_disks(contents: &mut ImageContents, machine: &Machine) -> Result<(), SaveError> {
    for disk in machine.devices.stored_disks() {
        contents.add_disk(disk.clone()).map_err(SaveError::Write)?;
    }
    for drive in machine.config.drives() {
        let disk = machine.devices.disk(&drive.id);
        let overlay = disk.and_then(|disk| Some((disk, disk.overlay()?)));
        let (Some(config), Some((disk, overlay))) = (&drive.overlay, overlay) else {
            continue;
        };
        let index = config.index;
        // What is damaged in the image that it came from must not get new checksums.
        overlay
            .prove_saved()
            .map_err(|cause| SaveError::Write(WriteImageError::Disk { index, cause }))?;
        if let Some(mut delta) = overlay.stored(disk.len_bytes()) {
            if drive.in_image.is_some() {
                // What the image holds itself need not be recognised.
                delta.map.base = None;
            }
            let added = contents.add_overlay(index, delta);
            added.map_err(SaveError::Write)?;
        }
    }
    Ok(())
}

fn add_state(
    contents: &mut ImageContents,
    machine: &Machine,
    vcpus: &[VcpuStateV1],
    devices: &SavedDevices,
    vm: &irqchip_state::VmStateV1,
) -> Result<(), WriteImageError> {
    contents.add(0, vm)?;
    for (index, vcpu) in (0..).zip(vcpus) {
        contents.add(index, vcpu)?;
    }
    contents.add(0, &machine.bus.serial().save())?;
    for (index, device) in (0..).zip(&devices.devices) {
        contents.add(index, &device.transport)?;
        match &device.state {
            DeviceState::Block(state) => contents.add(index, state)?,
            DeviceState::Net(state) => match state.as_v1() {
                // As it was before there was a version 2.
                Some(state) => contents.add(index, &state)?,
                None => contents.add(index, state)?,
            },
            DeviceState::Entropy(state) => contents.add(index, state)?,
            DeviceState::Console(state) => contents.add(index, state)?,
            DeviceState::Balloon(state) => contents.add(index, state)?,
            DeviceState::Vsock(state) => contents.add(index, state)?,
        }
    }
    Ok(())
}

fn manifest(machine: &Machine, devices: &SavedDevices) -> Result<Vec<u8>, SaveError> {
    let created = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| time.as_secs());
    let manifest = Manifest {
        written_by: env!("CARGO_PKG_VERSION").to_owned(),
        created_unix_s: created,
        restores: machine.restores,
        ram_bytes: machine.config.ram_bytes(),
        config: stored_config(machine),
        disk_bytes: devices.disk_bytes.clone(),
    };
    serde_json::to_vec_pretty(&manifest).map_err(SaveError::Manifest)
}

/// Stands for the path of a file that is a section of the image.
const IN_IMAGE: &str = "(in the image)";

/// The configuration, without the paths of what the image holds itself.
fn stored_config(machine: &Machine) -> VmSpec {
    let mut spec = machine.config.spec().clone();
    // The process's, not the machine's.
    spec.logger = None;
    spec.metrics = None;
    if let Some(boot) = &mut spec.boot_source {
        if machine.boot_files.kernel.is_some() {
            boot.kernel_image_path = IN_IMAGE.into();
        }
        if machine.boot_files.initrd.is_some() {
            boot.initrd_path = Some(IN_IMAGE.into());
        }
    }
    for drive in &mut spec.drives {
        if drive.in_image == Some(true) {
            drive.path_on_host = IN_IMAGE.into();
        }
    }
    spec
}

/// Proves that an image of a machine with this configuration can be saved as `path`.
///
/// # Errors
/// [`WriteImageError::Target`].
pub fn ensure_target(config: &MachineConfig, path: &Path) -> Result<(), WriteImageError> {
    check_target(path, &disk_paths(config))
}

/// Files that are disks of the machine, or deltas over them.
#[must_use]
pub fn disk_paths(config: &MachineConfig) -> Vec<&Path> {
    let drives = config.drives().iter();
    let deltas = drives.clone().filter_map(|drive| {
        let overlay = drive.overlay.as_ref()?;
        overlay.path.as_deref()
    });
    let disks = drives.map(|drive| drive.path.as_path());
    disks.chain(deltas).collect()
}
