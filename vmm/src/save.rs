//! Saving a machine whose vCPUs are parked and have given their state.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use lightv_api::config::VmSpec;
use lightv_devices::state::DeviceState;

use crate::arch::host::rng_seed;
use crate::config::MachineConfig;
use crate::image::header::kind;
use crate::image::manifest::{Manifest, MemoryMapV1};
use crate::image::write::{ImageContents, Source, WriteImageError, check_target, write_image};
use crate::machine::Machine;
use crate::snapshot::irqchip_state::{self, VmStateError};
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
    let mut contents = ImageContents::default();
    contents.add_bytes(kind::MANIFEST, manifest(machine, devices)?);
    let vm = irqchip_state::capture(machine.vm.fd()).map_err(SaveError::Vm)?;
    add_state(&mut contents, machine, vcpus, devices, &vm).map_err(SaveError::Write)?;
    rng_seed::forget(machine.ram.mem());
    let runs = ram_scan::non_zero_runs(&machine.ram);
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
    for disk in machine.devices.stored_disks() {
        contents.add_disk(disk.clone()).map_err(SaveError::Write)?;
    }
    write_image(path, contents, Source::Ram(machine.ram.mem())).map_err(SaveError::Write)
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
            DeviceState::Net(state) => contents.add(index, state)?,
            DeviceState::Entropy(state) => contents.add(index, state)?,
            DeviceState::Console(state) => contents.add(index, state)?,
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
    let disks: Vec<&Path> = config
        .drives()
        .iter()
        .map(|drive| drive.path.as_path())
        .collect();
    check_target(path, &disks)
}
