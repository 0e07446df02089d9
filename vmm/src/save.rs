//! Saving a machine whose vCPUs are parked and have given their state.

use std::io;
use std::os::fd::{AsRawFd as _, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use lightv_api::config::VmSpec;
use lightv_api::contract::snapshot::SnapshotType;
use lightv_api::contract::tuning::TuningSpec;
use lightv_devices::state::DeviceState;
use lightv_devices::virtio::block::{Overlay, StoredDelta};

use crate::arch::host::rng_seed;
use crate::config::{DriveConfig, MachineConfig};
use crate::frozen::FrozenMemory;
use crate::image::header::kind;
use crate::image::manifest::{Manifest, MemoryMapV1, MemoryRunV1};
use crate::image::write::{
    ImageContents, Source, WriteImageError, check_target, write_image, write_image_unsynced,
    write_unnamed,
};
use crate::limits;
use crate::machine::Machine;
use crate::orders::{ForkTarget, SnapshotTarget};
use crate::side_process::{SideProcess, SideProcessError, SideWork};
use crate::snapshot::irqchip_state::{self, VmStateError};
use crate::snapshot::memory_file::{self, WriteMemoryError};
use crate::snapshot::page_log;
use crate::snapshot::page_map::PageKinds;
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
    /// A drive is written while the snapshot is.
    #[error(
        "Drive {id} would be written while the snapshot is: pause the machine to save it, or give the drive an overlay in memory"
    )]
    Written {
        /// Id of the drive.
        id: String,
    },
    /// A delta is too much to be copied while the machine stands still.
    #[error(
        "The overlay of drive {id} has {bytes} bytes in memory, more than the {} that are copied while a machine stands still: pause it to save it",
        limits::LIVE_DELTA_BYTES_MAX
    )]
    DeltaTooLarge {
        /// Id of the drive.
        id: String,
        /// What all deltas up to this one have.
        bytes: u64,
    },
    /// A delta could not be copied.
    #[error("Cannot copy the overlay of drive {id}")]
    CopyDelta {
        /// Id of the drive.
        id: String,
        /// The kernel's reason.
        #[source]
        cause: io::Error,
    },
    /// Another process serves memory.
    #[error(
        "Some of guest memory is still with the process that serves it (userfaultfd), where a copy of the monitor cannot get it: a clone can be forked or saved live once it has all of its memory, a moment after its start; memory of another server than a fork's stays there, and such a machine is paused to be saved"
    )]
    Served,
    /// Only some of the memory was asked for.
    #[error(
        "A snapshot of a machine that runs is of the type Full: pause the machine to save a Diff"
    )]
    LiveDiff,
    /// Memory could not be given out any more.
    #[error("Cannot wait for machines that begin from frozen memory")]
    GiveOut(#[source] io::Error),
    /// As many as there may be.
    #[error(
        "The machine is frozen {} times already, for others to begin from it; ask again when they have",
        limits::FROZEN_MAX
    )]
    Frozen,
    /// The copy of this process was not told.
    #[error("Cannot tell the copy of the monitor which pages there are")]
    Tell(#[source] io::Error),
    /// Another one is being written.
    #[error("Another snapshot is being written while the machine runs: {}", path.display())]
    Busy {
        /// Its state.
        path: PathBuf,
    },
    /// A copy of this process was to write it.
    #[error("The snapshot was not written")]
    Aside(#[from] SideProcessError),
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
    add_disks(&mut contents, machine, deltas(machine))?;
    write_image(path, contents, Source::Ram(machine.ram.mem())).map_err(SaveError::Write)
}

/// Saves `machine` as two files: RAM, or what of it has changed, and the state, which knows it.
///
/// # Errors
/// [`SaveError`]. What had their names is as it was, unless it is a name itself, or its folder's sync, that fails.
pub fn save_apart(
    machine: &mut Machine,
    vcpus: &[VcpuStateV1],
    devices: &SavedDevices,
    target: &SnapshotTarget,
) -> Result<(), SaveError> {
    ensure_targets(&machine.config, target)?;
    let contents = state_of(machine, vcpus, devices)?;
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
    write_both(machine, contents, &runs, deltas(machine), target)?;
    if let Some(changes) = changes {
        machine.page_log = Some(changes.log);
    }
    Ok(())
}

/// Writes both files of a snapshot, and then names them, memory first: a state that cannot be written must not leave the memory of
/// an old one replaced.
fn write_both(
    machine: &Machine,
    mut contents: ImageContents,
    runs: &[MemoryRunV1],
    deltas: Vec<(u32, StoredDelta)>,
    target: &SnapshotTarget,
) -> Result<(), SaveError> {
    let written = memory_file::write(&machine.ram, runs, &target.memory);
    let (memory, known) = written.map_err(SaveError::Memory)?;
    if target.extent == SnapshotType::Diff {
        memory_file::prove_holes(&memory, runs).map_err(SaveError::Memory)?;
    }
    contents.add(0, &known).map_err(SaveError::Write)?;
    add_disks(&mut contents, machine, deltas)?;
    let written = write_unnamed(&target.state, contents, Source::Ram(machine.ram.mem()));
    let (state, _bytes) = written.map_err(SaveError::Write)?;
    let named = memory.publish();
    named.map_err(|cause| SaveError::Memory(cause.into()))?;
    let named = state.publish();
    named.map_err(|cause| SaveError::Write(cause.into()))
}

/// Proves that `machine` can be saved as `target` while it runs: nothing that belongs to the snapshot changes outside of guest
/// memory.
///
/// # Errors
/// [`SaveError`].
pub fn ensure_live(machine: &Machine, target: &SnapshotTarget) -> Result<(), SaveError> {
    if target.extent == SnapshotType::Diff {
        return Err(SaveError::LiveDiff);
    }
    ensure_still(machine)?;
    ensure_targets(&machine.config, target)
}

/// As [`ensure_live`], for a fork whose state goes to `state`.
///
/// # Errors
/// [`SaveError`].
pub fn ensure_fork(machine: &Machine, state: &Path) -> Result<(), SaveError> {
    ensure_still(machine)?;
    ensure_target(&machine.config, state).map_err(SaveError::Write)
}

fn ensure_still(machine: &Machine) -> Result<(), SaveError> {
    if machine.ram.is_served() {
        return Err(SaveError::Served);
    }
    let is_written = |drive: &&DriveConfig| match &drive.overlay {
        Some(overlay) => overlay.path.is_some(),
        None => true,
    };
    let mut drives = machine.config.drives().iter();
    if let Some(drive) = drives.find(|drive| !drive.read_only && is_written(drive)) {
        let id = drive.id.clone();
        return Err(SaveError::Written { id });
    }
    Ok(())
}

/// Has another process save `machine` as two files, as [`save_apart`] does, from memory as it is now: the machine may go on
/// when this comes back. [`ensure_live`] has been asked.
///
/// # Errors
/// [`SaveError`].
pub fn save_live(
    machine: &Machine,
    vcpus: &[VcpuStateV1],
    devices: &SavedDevices,
    target: &SnapshotTarget,
) -> Result<SideProcess, SaveError> {
    let contents = state_of(machine, vcpus, devices)?;
    let deltas = copied_deltas(machine)?;
    let kept = files_of(machine, &deltas);
    let started = SideProcess::start(SideWork::Write, kept, move |parent| {
        let pages = parent.hear().map_err(SaveError::Tell)?;
        PageKinds::from_bytes(&pages).stand_for_page_map();
        let runs = ram_scan::all_runs(&machine.ram).map_err(SaveError::PageMap)?;
        write_both(machine, contents, &runs, deltas, target)
    });
    Ok(started?)
}

/// Has another process give out the memory of `machine` as it is now, and write its state before. The machine may go on when this
/// comes back. [`ensure_live`] has been asked.
///
/// # Errors
/// [`SaveError`].
pub fn freeze(
    machine: &Machine,
    vcpus: &[VcpuStateV1],
    devices: &SavedDevices,
    target: &ForkTarget,
) -> Result<SideProcess, SaveError> {
    let mut contents = state_of(machine, vcpus, devices)?;
    let deltas = copied_deltas(machine)?;
    let mut kept = files_of(machine, &deltas);
    kept.push(target.listener.as_raw_fd());
    let started = SideProcess::start(SideWork::GiveOut, kept, move |parent| {
        let known = memory_file::unwritten(&machine.ram);
        contents.add(0, &known).map_err(SaveError::Write)?;
        add_disks(&mut contents, machine, deltas)?;
        let source = Source::Ram(machine.ram.mem());
        // Without the memory that is given out it means nothing: after a crash of the host, nobody wants it.
        let written = write_image_unsynced(&target.state, contents, source);
        written.map_err(SaveError::Write)?;
        // Who asked can be answered: until the first machine comes, the pages are known too.
        parent.ready();
        let heard = parent.hear().map(|pages| PageKinds::from_bytes(&pages));
        let memory = FrozenMemory {
            ram: &machine.ram,
            // A machine that is gone tells nothing any more: that costs memory, and no more.
            pages: &heard.unwrap_or_else(|_| PageKinds::all_held(&machine.ram)),
        };
        let given = memory.give_out(&target.listener, target.clones);
        target.socket.remove();
        given.map_err(SaveError::GiveOut)
    });
    Ok(started?)
}

/// Tells a process of [`save_live`] or [`freeze`] what it waits for: which pages there are, as of now, when the machine may go on
/// already. Pages that it has come to touch since are told of too, and hold in the other what they held before; none must have been
/// given back meanwhile: the loop does that, and this before.
///
/// # Errors
/// [`SaveError`]; the process is of no use then.
pub fn tell_pages(machine: &Machine, process: &SideProcess) -> Result<(), SaveError> {
    let pages = PageKinds::read(&machine.ram).map_err(SaveError::PageMap)?;
    process.tell(&pages.to_bytes()).map_err(SaveError::Tell)
}

/// Files that are read to save what drives hold.
fn files_of(machine: &Machine, deltas: &[(u32, StoredDelta)]) -> Vec<RawFd> {
    let stored = machine.devices.stored_disks().iter();
    let pieces = deltas.iter().flat_map(|(_, delta)| &delta.pieces);
    let drives = machine.config.drives().iter();
    let overlays = drives.filter_map(|drive| machine.devices.disk(&drive.id)?.overlay());
    let saved = overlays.filter_map(Overlay::saved_file);
    let files = stored
        .map(|disk| &disk.file)
        .chain(pieces.map(|piece| &piece.file))
        .chain(saved);
    files.map(|file| file.as_raw_fd()).collect()
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

/// The deltas in memory, by the numbers of their drives.
fn deltas(machine: &Machine) -> Vec<(u32, StoredDelta)> {
    let drives = machine.config.drives().iter();
    let delta = |drive: &DriveConfig| {
        let index = drive.overlay.as_ref()?.index;
        let disk = machine.devices.disk(&drive.id)?;
        let mut delta = disk.overlay()?.stored(disk.len_bytes())?;
        if drive.in_image.is_some() {
            // What the image holds itself need not be recognised.
            delta.map.base = None;
        }
        Some((index, delta))
    };
    drives.filter_map(delta).collect()
}

/// The same, with a copy of what the machine writes when it goes on.
fn copied_deltas(machine: &Machine) -> Result<Vec<(u32, StoredDelta)>, SaveError> {
    let id = |index: u32| {
        let mut drives = machine.config.drives().iter();
        let has_index = |drive: &&DriveConfig| {
            let overlay = drive.overlay.as_ref();
            overlay.is_some_and(|overlay| overlay.index == index)
        };
        let drive = drives.find(has_index);
        drive.map_or_else(String::new, |drive| drive.id.clone())
    };
    let mut bytes = 0_u64;
    let mut copies = Vec::new();
    for (index, delta) in deltas(machine) {
        bytes = bytes.saturating_add(delta.changing_bytes());
        if bytes > limits::LIVE_DELTA_BYTES_MAX {
            let id = id(index);
            return Err(SaveError::DeltaTooLarge { id, bytes });
        }
        let copy = delta.copied().map_err(|cause| SaveError::CopyDelta {
            id: id(index),
            cause,
        })?;
        copies.push((index, copy));
    }
    Ok(copies)
}

fn add_disks(
    contents: &mut ImageContents,
    machine: &Machine,
    deltas: Vec<(u32, StoredDelta)>,
) -> Result<(), SaveError> {
    for disk in machine.devices.stored_disks() {
        contents.add_disk(disk.clone()).map_err(SaveError::Write)?;
    }
    // What is damaged in the image that it came from must not get new checksums.
    for drive in machine.config.drives() {
        let disk = machine.devices.disk(&drive.id);
        let overlay = disk.and_then(|disk| disk.overlay());
        let (Some(config), Some(overlay)) = (&drive.overlay, overlay) else {
            continue;
        };
        let index = config.index;
        overlay
            .prove_saved()
            .map_err(|cause| SaveError::Write(WriteImageError::Disk { index, cause }))?;
    }
    for (index, delta) in deltas {
        let added = contents.add_overlay(index, delta);
        added.map_err(SaveError::Write)?;
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
    let tuning = spec.machine_config.tuning.take();
    spec.machine_config.tuning = tuning.and_then(TuningSpec::without_cpus);
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
