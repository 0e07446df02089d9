//! From what was asked for to a machine: a configuration file, an image, a snapshot, or what the REST API was told.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lightv_api::config::VmSpec;
use lightv_api::contract::cpu::CpuConfig;
use lightv_api::contract::machine::HugePages;
use lightv_api::exit;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use crate::affinity;
use crate::args::Origin;
use crate::boot::{BuildError, Site, boot};
use crate::config::{BootConfig, ConfigFault, ConfigFaults, MachineConfig};
use crate::image::disk::take_disks;
use crate::image::manifest::MemoryRunV1;
use crate::image::read::{Image, OpenImageError};
use crate::image::write::WriteImageError;
use crate::kernel::{BootFiles, ReadFileError, read_file};
use crate::limits;
use crate::machine::Machine;
use crate::outputs::{OutputError, Outputs};
use crate::overrides::Overrides;
use crate::report;
use crate::restore::{MemorySource, prepare, restore};
use crate::save::ensure_target;
use crate::snapshot::memory_file::{self, MemoryLayer, OpenMemoryError};
use crate::snapshot::saved::{SavedMachine, take_boot_files};
use crate::stamps::Step;
use crate::sys::process;

/// Why there is no machine. Nothing is left behind.
#[derive(Debug, thiserror::Error)]
#[expect(
    missing_docs,
    reason = "each variant is the failure of the step that its source names"
)]
pub enum PrepareError {
    #[error("Configuration {path} is refused: {cause}")]
    Json {
        path: String,
        cause: serde_json::Error,
    },
    #[error("Cannot read configuration {path}")]
    ReadConfig {
        path: String,
        #[source]
        cause: io::Error,
    },
    #[error("Configuration is refused: {0}")]
    Config(ConfigFaults),
    #[error(
        "Configuration is refused: boot-source is missing; allowed: an object with kernel_image_path"
    )]
    NoBootSource,
    #[error(
        "Configuration is refused: console is missing; a run with a terminal needs one: allowed: {{}}"
    )]
    NoConsole,
    #[error("Cannot find out which CPUs this process may use")]
    Cpus(#[source] io::Error),
    #[error(transparent)]
    ReadFile(ReadFileError),
    #[error(transparent)]
    Image(OpenImageError),
    #[error(
        "Snapshot {} has its memory in a file of its own: load it by PUT /snapshot/load, or by `lightv snapshot load`",
        path.display()
    )]
    MemoryApart { path: PathBuf },
    #[error(
        "Image {} has its memory in itself: run it with `lightv run`, or --restore",
        path.display()
    )]
    MemoryInImage { path: PathBuf },
    #[error(transparent)]
    Memory(OpenMemoryError),
    #[error(transparent)]
    Build(BuildError),
    #[error(transparent)]
    SaveTarget(WriteImageError),
    #[error(transparent)]
    Outputs(OutputError),
}

impl PrepareError {
    /// The exit status of a process that ends by it.
    #[must_use]
    pub const fn exit_status(&self) -> u8 {
        match self {
            Self::Json { .. }
            | Self::ReadConfig { .. }
            | Self::Config(_)
            | Self::NoBootSource
            | Self::NoConsole
            | Self::ReadFile(_)
            | Self::Image(_)
            | Self::MemoryApart { .. }
            | Self::MemoryInImage { .. }
            | Self::Memory(_)
            | Self::Outputs(_) => exit::BAD_CONFIG,
            Self::Build(cause) if cause.is_bad_config() => exit::BAD_CONFIG,
            Self::Build(_) | Self::Cpus(_) => exit::HOST_FAILURE,
            Self::SaveTarget(_) => exit::SAVE_FAILED,
        }
    }
}

/// A snapshot of two files to restore.
#[derive(Debug, Clone, Copy)]
pub struct SnapshotFiles<'a> {
    /// The state.
    pub state: &'a Path,
    /// Guest memory.
    pub memory: MemoryFrom<'a>,
    /// Whether changed pages are tracked from now on.
    pub tracks: bool,
    /// The guest's clock is advanced by the time that has passed since the save.
    pub advance_clock: bool,
}

/// Where the memory of such a snapshot comes from.
#[derive(Debug, Clone, Copy)]
pub enum MemoryFrom<'a> {
    /// A memory file, and differences that are laid over it in order.
    Files {
        /// The file.
        base: &'a Path,
        /// The differences.
        diffs: &'a [PathBuf],
    },
    /// The process behind this socket.
    Served(&'a Path),
}

/// What all ways to a machine have in common.
#[derive(Debug)]
pub struct Builder<'a> {
    /// What it is connected to.
    pub site: Site<'a>,
    /// Name of the machine, for its log and metrics.
    pub id: &'a str,
    /// Where the machine is to be saved, with its kernel.
    pub save_as: Option<&'a Path>,
    /// Whether it is said what a preset has come to; else it is logged.
    pub is_verbose: bool,
}

impl Builder<'_> {
    /// The machine that comes from `origin`, changed by `overrides`.
    ///
    /// # Errors
    /// [`PrepareError`].
    pub fn build(&self, origin: &Origin, overrides: Overrides) -> Result<Machine, PrepareError> {
        match origin {
            Origin::Config(path) => self.boot_config(path, overrides),
            Origin::Boot(path) => self.boot_image(path, overrides),
            Origin::Restore(path) => self.restore_image(path, overrides),
        }
    }

    fn boot_config(&self, path: &Path, overrides: Overrides) -> Result<Machine, PrepareError> {
        let mut spec = parse_spec(path, &read_config(path)?)?;
        if let Some(CpuConfig::File(path)) = &spec.cpu_config {
            let bytes = read_file("cpu-config", path, limits::CONFIG_FILE_BYTES_MAX)
                .map_err(PrepareError::ReadFile)?;
            spec.cpu_config = Some(CpuConfig::Spec(parse(path, &bytes)?));
        }
        Outputs::of(&spec)
            .open(self.id)
            .map_err(PrepareError::Outputs)?;
        overrides
            .apply(&mut spec, false)
            .map_err(PrepareError::Config)?;
        self.boot_spec(spec)
    }

    /// Boots what `spec` describes.
    ///
    /// # Errors
    /// [`PrepareError`].
    pub fn boot_spec(&self, spec: VmSpec) -> Result<Machine, PrepareError> {
        let config = self.prove(spec)?;
        let boot_config = config.boot().cloned().ok_or(PrepareError::NoBootSource)?;
        let kernel = read_file("kernel", &boot_config.kernel, limits::KERNEL_BYTES_MAX)
            .map_err(PrepareError::ReadFile)?;
        let initrd = boot_config
            .initrd
            .as_deref()
            .map(|initrd| read_file("initrd", initrd, limits::INITRD_BYTES_MAX));
        let initrd = initrd.transpose().map_err(PrepareError::ReadFile)?;
        let files = BootFiles {
            kernel: Some(kernel),
            initrd,
            disks: Vec::new(),
        };
        self.boot_loaded(config, &boot_config, files)
    }

    fn boot_image(&self, path: &Path, overrides: Overrides) -> Result<Machine, PrepareError> {
        let mut image = Image::open(path).map_err(PrepareError::Image)?;
        let mut spec = image.take_manifest().map_err(PrepareError::Image)?.config;
        let mut files = take_boot_files(&mut image).map_err(PrepareError::Image)?;
        files.disks = take_disks(&mut image, &spec).map_err(PrepareError::Image)?;
        overrides
            .apply(&mut spec, false)
            .map_err(PrepareError::Config)?;
        let config = self.prove(spec)?;
        let boot_config = config.boot().cloned().filter(|_| files.kernel.is_some());
        let missing = || {
            PrepareError::Image(image.missing(
                "kernel",
                0,
                "it can only be restored; leave --cold out",
            ))
        };
        let boot_config = boot_config.ok_or_else(missing)?;
        self.boot_loaded(config, &boot_config, files)
    }

    /// Boots what has been read and proved.
    fn boot_loaded(
        &self,
        config: MachineConfig,
        boot_config: &BootConfig,
        files: BootFiles,
    ) -> Result<Machine, PrepareError> {
        self.site.stamps.step(Step::ImageLoad);
        let machine = boot(config, boot_config, files, self.site.clone());
        Ok(self.keep_or_drop_files(machine.map_err(PrepareError::Build)?))
    }

    fn restore_image(&self, path: &Path, overrides: Overrides) -> Result<Machine, PrepareError> {
        let (mut image, saved) = self.decode(path)?;
        if saved.memory_file.is_some() {
            return Err(PrepareError::MemoryApart { path: path.into() });
        }
        let files = if self.save_as.is_some() {
            take_boot_files(&mut image).map_err(PrepareError::Image)?
        } else {
            BootFiles::default()
        };
        let layer = MemoryLayer {
            file: Arc::clone(image.file()),
            runs: saved.runs.clone(),
        };
        let mut machine =
            self.restore_saved(&image, &saved, MemorySource::Layers(&[layer]), overrides)?;
        machine.boot_files = files;
        Ok(machine)
    }

    /// Restores a snapshot of two files.
    ///
    /// # Errors
    /// [`PrepareError`].
    pub fn restore_files(
        &self,
        files: SnapshotFiles<'_>,
        overrides: Overrides,
    ) -> Result<Machine, PrepareError> {
        let (image, mut saved) = self.decode(files.state)?;
        let Some(known) = &saved.memory_file else {
            let path = files.state.into();
            return Err(PrepareError::MemoryInImage { path });
        };
        let layers = match files.memory {
            MemoryFrom::Files { base, diffs } => memory_file::open(base, diffs, known),
            MemoryFrom::Served(_) => Ok(Vec::new()),
        };
        let layers = layers.map_err(PrepareError::Memory)?;
        let memory = match files.memory {
            MemoryFrom::Files { .. } => MemorySource::Layers(&layers),
            MemoryFrom::Served(socket) => MemorySource::Served(socket),
        };
        if files.advance_clock {
            let passed = process::wall_clock_ns().saturating_sub(known.saved_unix_ns);
            saved.vm.clock_ns = saved.vm.clock_ns.saturating_add(passed);
        }
        saved.manifest.config.machine_config.track_dirty_pages = files.tracks;
        if let (MemoryFrom::Served(_), HugePages::Hugetlbfs2M) = (
            files.memory,
            overrides.pages_of(&saved.manifest.config.machine_config),
        ) {
            return Err(PrepareError::Config(ConfigFaults(vec![ConfigFault {
                field: "machine-config.huge_pages".to_owned(),
                found: "`2M`, with memory that another process serves".to_owned(),
                allowed: "huge_pages None or Transparent in the load".to_owned(),
            }])));
        }
        let machine = self.restore_saved(&image, &saved, memory, overrides)?;
        if files.advance_clock {
            // As after a pause: to a guest's watchdog the leap would be a CPU that is stuck.
            for vcpu in &machine.vcpus {
                // A guest that uses no kvm-clock has seen no leap, and KVM says so.
                let _ = vcpu.kvmclock_ctrl();
            }
        }
        Ok(machine)
    }

    fn decode(&self, path: &Path) -> Result<(Image, SavedMachine), PrepareError> {
        let mut image = Image::open(path).map_err(PrepareError::Image)?;
        self.site.stamps.mark("image proved");
        let saved = SavedMachine::decode(&mut image).map_err(PrepareError::Image)?;
        Ok((image, saved))
    }

    fn restore_saved(
        &self,
        image: &Image,
        saved: &SavedMachine,
        memory: MemorySource<'_>,
        overrides: Overrides,
    ) -> Result<Machine, PrepareError> {
        let config = restored_config(image, saved, overrides, |spec| self.prove(spec))?;
        self.site.stamps.step(Step::ImageLoad);
        restore(config, saved, memory, self.site.clone()).map_err(PrepareError::Build)
    }

    /// The kernel file is needed no more once it is in RAM, except for an image.
    fn keep_or_drop_files(&self, mut machine: Machine) -> Machine {
        if self.save_as.is_none() {
            machine.boot_files = BootFiles::default();
        }
        machine
    }

    /// A save that cannot succeed is refused before the guest runs.
    fn prove(&self, spec: VmSpec) -> Result<MachineConfig, PrepareError> {
        let config = prove_spec(spec)?;
        if let Some(text) = config.tuning().describe() {
            match self.is_verbose {
                true => report::say(&text),
                false => tracing::info!("{text}"),
            }
        }
        if self.site.host.is_tty && !config.console() {
            return Err(PrepareError::NoConsole);
        }
        if let Some(path) = self.save_as {
            ensure_target(&config, path).map_err(PrepareError::SaveTarget)?;
        }
        Ok(config)
    }
}

/// An image whose snapshot is proved and decoded once, for machines that are made of it later. Its file is held: another one
/// by its name changes nothing.
#[derive(Debug)]
pub struct Restorable {
    saved: SavedMachine,
    memory: MemoryLayer,
    config: MachineConfig,
}

impl Restorable {
    /// Opens the image at `path`, whose configuration is changed by `overrides`.
    ///
    /// # Errors
    /// [`PrepareError`].
    pub fn open(path: &Path, overrides: Overrides) -> Result<Self, PrepareError> {
        let mut image = Image::open(path).map_err(PrepareError::Image)?;
        let saved = SavedMachine::decode(&mut image).map_err(PrepareError::Image)?;
        if saved.memory_file.is_some() {
            return Err(PrepareError::MemoryApart { path: path.into() });
        }
        let config = restored_config(&image, &saved, overrides, prove_spec)?;
        let memory = MemoryLayer {
            file: Arc::clone(image.file()),
            runs: saved.runs.clone(),
        };
        Ok(Self {
            saved,
            memory,
            config,
        })
    }

    /// What its machines are.
    #[must_use]
    pub const fn config(&self) -> &MachineConfig {
        &self.config
    }

    /// Pages that its guests are known to write.
    #[must_use]
    pub fn written(&self) -> &[MemoryRunV1] {
        &self.saved.working_set.written
    }

    /// A machine, as far as it is the same for all runs. `config` is [`Self::config`], with other paths.
    ///
    /// # Errors
    /// [`PrepareError`].
    pub fn prepare(&self, config: MachineConfig, site: Site<'_>) -> Result<Machine, PrepareError> {
        let memory = MemorySource::Layers(std::slice::from_ref(&self.memory));
        prepare(config, &self.saved, memory, site).map_err(PrepareError::Build)
    }
}

/// The configuration of a snapshot, changed by `overrides` and proved by `prove`.
fn restored_config(
    image: &Image,
    saved: &SavedMachine,
    overrides: Overrides,
    prove: impl FnOnce(VmSpec) -> Result<MachineConfig, PrepareError>,
) -> Result<MachineConfig, PrepareError> {
    let mut spec = saved.manifest.config.clone();
    overrides
        .apply(&mut spec, true)
        .map_err(PrepareError::Config)?;
    let config = prove(spec)?;
    if config.ram_bytes() != saved.manifest.ram_bytes {
        return Err(PrepareError::Image(
            image.contents_error("manifest[0]", "contradicts itself about RAM"),
        ));
    }
    Ok(config)
}

/// Proves `spec` on this host.
///
/// # Errors
/// [`PrepareError::Config`].
pub fn prove_spec(spec: VmSpec) -> Result<MachineConfig, PrepareError> {
    let config = MachineConfig::prove(spec, process::host_memory_bytes());
    let mut config = config.map_err(PrepareError::Config)?;
    if config.tuning().asks_for_cpus() {
        let own = affinity::own().map_err(PrepareError::Cpus)?;
        let placed = config.place(&own, affinity::online());
        placed.map_err(PrepareError::Config)?;
    }
    Ok(config)
}

/// What a machine that comes from `origin` is configured with, changed by `overrides`: for whoever has to know before it is
/// built. Of an image the manifest alone is proved.
///
/// # Errors
/// [`PrepareError`].
pub fn spec_of(origin: &Origin, overrides: Overrides) -> Result<VmSpec, PrepareError> {
    let mut spec = match origin {
        Origin::Config(path) => parse_spec(path, &read_config(path)?)?,
        Origin::Boot(path) | Origin::Restore(path) => {
            let mut image = Image::open_unproved(path).map_err(PrepareError::Image)?;
            image.take_manifest().map_err(PrepareError::Image)?.config
        }
    };
    let is_restore = matches!(origin, Origin::Restore(_));
    overrides
        .apply(&mut spec, is_restore)
        .map_err(PrepareError::Config)?;
    Ok(spec)
}

fn read_config(path: &Path) -> Result<Vec<u8>, PrepareError> {
    if path == Path::new("-") {
        read_stdin().map_err(|cause| PrepareError::ReadConfig {
            path: path.display().to_string(),
            cause,
        })
    } else {
        read_file("configuration", path, limits::CONFIG_FILE_BYTES_MAX)
            .map_err(PrepareError::ReadFile)
    }
}

fn parse<T: DeserializeOwned>(path: &Path, bytes: &[u8]) -> Result<T, PrepareError> {
    serde_json::from_slice(bytes).map_err(|cause| PrepareError::Json {
        path: path.display().to_string(),
        cause,
    })
}

/// A configuration. Top-level keys that nobody knows are refused, but for those that say nothing (`null`): clients write all that
/// they know, by names of their own, and Firecracker overlooks them.
fn parse_spec(path: &Path, bytes: &[u8]) -> Result<VmSpec, PrepareError> {
    parse(path, bytes).or_else(|refused| match without_unknown_nulls(bytes) {
        // The first refusal has the place in the file.
        Some(fewer) => parse(path, &fewer).map_err(|_| refused),
        None => Err(refused),
    })
}

fn without_unknown_nulls(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut object: Map<String, Value> = serde_json::from_slice(bytes).ok()?;
    let before = object.len();
    object.retain(|key, value| {
        let alone = json!({ key: value });
        let is_unknown = |error: serde_json::Error| error.to_string().contains("unknown field");
        !(value.is_null() && serde_json::from_value::<VmSpec>(alone).is_err_and(is_unknown))
    });
    let bytes = serde_json::to_vec(&object).ok()?;
    (object.len() < before).then_some(bytes)
}

/// All of standard input, as a configuration.
///
/// # Errors
/// The kernel's; `EFBIG` for more than a configuration can have.
pub fn read_stdin() -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    io::stdin()
        .lock()
        .take(limits::CONFIG_FILE_BYTES_MAX + 1)
        .read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limits::CONFIG_FILE_BYTES_MAX {
        return Err(io::Error::from_raw_os_error(libc::EFBIG));
    }
    Ok(bytes)
}
