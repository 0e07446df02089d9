//! A snapshot, decoded and proved against its own manifest: all that `restore` needs, nothing built yet.

use lightv_api::config::VmSpec;
use lightv_devices::state::{
    BalloonStateV1, BlockStateV1, ConsoleStateV1, DeviceState, EntropyStateV1, NetStateV1,
    NetStateV2, Section, SerialStateV1, TransportStateV1, VsockStateV1,
};

use super::irqchip_state::VmStateV1;
use super::memory_file::{self, MemoryFileV1};
use super::vcpu_state::VcpuStateV1;
use super::working_set::WorkingSetV1;
use crate::arch::host::layout;
use crate::image::disk::{ImageDisk, ImageOverlay, take_disks, take_overlays};
use crate::image::header::kind;
use crate::image::manifest::{Manifest, MemoryMapV1, MemoryRunV1};
use crate::image::read::{Image, OpenImageError};
use crate::kernel::BootFiles;
use crate::limits;
use crate::memory::RamRun;
use crate::sys::mapping::PAGE_BYTES;
use crate::sys::process::host_memory_bytes;

/// A device as it was saved.
#[derive(Debug)]
pub struct SavedDevice {
    /// Its own state.
    pub state: DeviceState,
    /// Its register front's.
    pub transport: TransportStateV1,
}

/// What a snapshot keeps of all devices.
#[derive(Debug)]
pub struct SavedDevices {
    /// Devices in order.
    pub devices: Vec<SavedDevice>,
    /// Lengths of the disks in bytes.
    pub disk_bytes: Vec<u64>,
}

/// The whole snapshot.
#[derive(Debug)]
pub struct SavedMachine {
    /// What stands in the image in words.
    pub manifest: Manifest,
    /// Interrupt controllers and clock.
    pub vm: VmStateV1,
    /// vCPUs in order; as many as the manifest says.
    pub vcpus: Vec<VcpuStateV1>,
    /// Devices in the order of their pages.
    pub devices: Vec<SavedDevice>,
    /// The serial port.
    pub serial: SerialStateV1,
    /// Where in the image, or in the memory file, which stretch of RAM lies.
    pub runs: Vec<RamRun>,
    /// What is known of the memory file, if RAM is not in the image.
    pub memory_file: Option<MemoryFileV1>,
    /// Disks in the image.
    pub disks: Vec<ImageDisk>,
    /// Deltas in memory.
    pub overlays: Vec<ImageOverlay>,
    /// Pages that the guest wrote in a run that was watched.
    pub working_set: WorkingSetV1,
}

impl SavedMachine {
    /// Decodes all sections of `image`.
    ///
    /// # Errors
    /// [`OpenImageError`] names the section that is missing, unknown, or makes no sense.
    pub fn decode(image: &mut Image) -> Result<Self, OpenImageError> {
        let manifest = image.take_manifest()?;
        prove_ram(image, &manifest)?;
        if image.count(VcpuStateV1::KIND) == 0 {
            return Err(image.missing(
                VcpuStateV1::KIND,
                0,
                "it holds no snapshot; run it with --cold",
            ));
        }
        let vm = image.take_needed(0)?;
        let vcpus = take_vcpus(image, &manifest.config)?;
        let devices = take_devices(image)?;
        let serial = image.take_needed(0)?;
        let memory_file = take_memory_file(image, manifest.ram_bytes)?;
        let runs = match &memory_file {
            Some(known) => memory_file::runs(known.bytes),
            None => take_memory(image, manifest.ram_bytes)?,
        };
        let working_set = take_working_set(image, manifest.ram_bytes)?;
        let disks = take_disks(image, &manifest.config)?;
        let overlays = take_overlays(image, &manifest.config)?;
        for kind in [kind::KERNEL, kind::INITRD] {
            image.take_entry(kind, 0, kind::BYTES_VERSION)?;
        }
        image.ensure_all_taken()?;
        Ok(Self {
            manifest,
            vm,
            vcpus,
            devices,
            serial,
            runs,
            memory_file,
            disks,
            overlays,
            working_set,
        })
    }
}

/// Takes the kernel and initial RAM disk out of an image, for a boot or another save.
///
/// # Errors
/// [`OpenImageError`].
pub fn take_boot_files(image: &mut Image) -> Result<BootFiles, OpenImageError> {
    let mut take = |kind, bytes_max| match image.take_entry(kind, 0, kind::BYTES_VERSION)? {
        Some(entry) => image.bytes_of(&entry, bytes_max).map(Some),
        None => Ok(None),
    };
    let kernel = take(kind::KERNEL, limits::KERNEL_BYTES_MAX)?;
    let initrd = take(kind::INITRD, limits::INITRD_BYTES_MAX)?;
    Ok(BootFiles {
        kernel,
        initrd,
        disks: Vec::new(),
    })
}

/// The configuration's own rules are checked where it is proved; here only that the manifest does not contradict itself,
/// so that sizes can be counted with.
fn prove_ram(image: &Image, manifest: &Manifest) -> Result<(), OpenImageError> {
    let configured = manifest
        .config
        .machine_config
        .mem_size_mib
        .checked_mul(1 << 20);
    let is_possible = manifest.ram_bytes <= host_memory_bytes();
    if configured == Some(manifest.ram_bytes) && is_possible {
        return Ok(());
    }
    let what = format!(
        "names RAM of {} bytes; it must be what its configuration says, and at most the host's memory",
        manifest.ram_bytes
    );
    Err(image.contents_error(kind::MANIFEST, what))
}

fn take_vcpus(image: &mut Image, config: &VmSpec) -> Result<Vec<VcpuStateV1>, OpenImageError> {
    let count = config.machine_config.vcpu_count;
    let count = u32::try_from(count)
        .ok()
        .filter(|count| u64::from(*count) <= limits::VCPUS_MAX);
    let count = count
        .ok_or_else(|| image.contents_error(kind::MANIFEST, "has an impossible number of vCPUs"))?;
    (0..count).map(|index| image.take_needed(index)).collect()
}

fn take_devices(image: &mut Image) -> Result<Vec<SavedDevice>, OpenImageError> {
    let count = image.count(TransportStateV1::KIND);
    let mut devices = Vec::with_capacity(count.min(limits::DEVICES_MAX));
    for index in 0..u32::try_from(count).unwrap_or(u32::MAX) {
        let transport = image.take_needed::<TransportStateV1>(index)?;
        let state = if let Some(state) = image.take::<BlockStateV1>(index)? {
            DeviceState::Block(state)
        } else if let Some(state) = image.take_either::<NetStateV1, NetStateV2>(index)? {
            DeviceState::Net(state)
        } else if let Some(state) = image.take::<EntropyStateV1>(index)? {
            DeviceState::Entropy(state)
        } else if let Some(state) = image.take::<ConsoleStateV1>(index)? {
            DeviceState::Console(state)
        } else if let Some(state) = image.take::<BalloonStateV1>(index)? {
            DeviceState::Balloon(state)
        } else if let Some(state) = image.take::<VsockStateV1>(index)? {
            DeviceState::Vsock(state)
        } else {
            let section = format!("{}[{index}]", TransportStateV1::KIND);
            return Err(image.contents_error(&section, "has no device behind it"));
        };
        devices.push(SavedDevice { state, transport });
    }
    Ok(devices)
}

fn take_memory_file(
    image: &mut Image,
    ram_bytes: u64,
) -> Result<Option<MemoryFileV1>, OpenImageError> {
    let Some(known) = image.take::<MemoryFileV1>(0)? else {
        return Ok(None);
    };
    let are_pages = known
        .samples
        .iter()
        .all(|sample| sample.offset % PAGE == 0 && sample.offset < ram_bytes);
    if known.bytes == ram_bytes && are_pages && known.samples.len() <= limits::MEMORY_SAMPLES {
        return Ok(Some(known));
    }
    let name = format!("{}[0]", MemoryFileV1::KIND);
    Err(image.contents_error(&name, "does not fit the machine's RAM"))
}

fn take_memory(image: &mut Image, ram_bytes: u64) -> Result<Vec<RamRun>, OpenImageError> {
    let map: MemoryMapV1 = image.take_needed(0)?;
    let memory = image.take_entry(kind::MEMORY, 0, kind::BYTES_VERSION)?;
    let name = format!("{}[0]", MemoryMapV1::KIND);
    prove_runs(&map.runs, limits::MEMORY_RUNS_MAX, ram_bytes)
        .map_err(|what| image.contents_error(&name, what))?;
    let (mut file_offset, bytes) = memory.map_or((0, 0), |entry| (entry.offset, entry.bytes));
    // Runs are disjoint and in RAM, so the sum does not wrap.
    if map.runs.iter().map(|run| run.bytes).sum::<u64>() != bytes || file_offset % PAGE != 0 {
        return Err(image.contents_error(&name, "does not fit section memory"));
    }
    let mut runs = Vec::with_capacity(map.runs.len());
    for run in map.runs {
        runs.push(RamRun {
            address: run.address,
            bytes: run.bytes,
            file_offset,
        });
        file_offset += run.bytes;
    }
    Ok(runs)
}

fn take_working_set(image: &mut Image, ram_bytes: u64) -> Result<WorkingSetV1, OpenImageError> {
    let working_set: WorkingSetV1 = image.take(0)?.unwrap_or_default();
    let name = format!("{}[0]", WorkingSetV1::KIND);
    let written = &working_set.written;
    prove_runs(written, limits::WORKING_SET_RUNS_MAX, ram_bytes)
        .map_err(|what| image.contents_error(&name, what))?;
    if written.iter().map(|run| run.bytes).sum::<u64>() > limits::WORKING_SET_BYTES_MAX {
        let what = format!("names more than {} bytes", limits::WORKING_SET_BYTES_MAX);
        return Err(image.contents_error(&name, what));
    }
    Ok(working_set)
}

const PAGE: u64 = PAGE_BYTES as u64;

/// Proves that `runs` are at most `max`, of whole pages, in order, disjoint, and in RAM.
fn prove_runs(runs: &[MemoryRunV1], max: usize, ram_bytes: u64) -> Result<(), String> {
    if runs.len() > max {
        return Err(format!("has {} runs, more than {max}", runs.len()));
    }
    let mut after = 0;
    for run in runs {
        let is_whole = run.bytes > 0 && run.bytes % PAGE == 0 && run.address % PAGE == 0;
        let end = run
            .address
            .checked_add(run.bytes)
            .filter(|end| is_whole && run.address >= after && is_ram(run.address, *end, ram_bytes));
        after = end.ok_or_else(|| format!("has an impossible run at {:#x}", run.address))?;
    }
    Ok(())
}

fn is_ram(start: u64, end: u64, ram_bytes: u64) -> bool {
    let (low, high) = layout::ram_ranges(ram_bytes);
    end <= low || (start >= layout::HOLE_END && end <= layout::HOLE_END + high)
}

#[cfg(test)]
#[path = "saved_tests.rs"]
mod tests;
