//! From what the user asked for to what can be built.
//!
//! [`lightv_api::config::VmSpec`] is what was typed; [`MachineConfig`] is the same, proved: private fields, no invalid
//! value. [`MachineConfig::prove`] reports every fault at once. Whether a path can be opened is known by opening it, later.

mod agent;
mod cpu;
pub mod limiter;
mod mmds;
mod net;
mod overlay;
pub mod tuning;

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

use lightv_api::config::{BootSource, DEFAULT_BOOT_ARGS, DriveSpec, ExecSpec, NetSpec, VmSpec};
use lightv_api::contract::balloon::BalloonSpec;
use lightv_api::contract::drive;
use lightv_api::contract::vsock::VsockSpec;
use lightv_api::offer;
use lightv_devices::limiter::LimiterOptions;
use lightv_devices::limits::BLOCK_QUEUES_MAX;
use lightv_devices::virtio::block::{CacheType, IoEngine};
use lightv_devices::virtio::net::MacAddress;
use lightv_devices::virtio::vsock::GUEST_CIDS;

pub use self::mmds::MmdsConfig;
pub use self::net::{BadPublish, NetHost, Protocol, Publish, UserNetConfig};
pub use self::overlay::OverlayConfig;
pub use self::tuning::{DISK_POLL_US, Tuning};

use crate::arch::host::cpu_template::CpuTemplate;
use crate::{limits, runtime_dir};

/// One rule that the configuration breaks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigFault {
    /// The field, as a path in the JSON: `drives[1].path_on_host`.
    pub field: String,
    /// What stands there.
    pub found: String,
    /// What may stand there.
    pub allowed: String,
}

impl fmt::Display for ConfigFault {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (field, found) = (&self.field, &self.found);
        write!(out, "{field} is {found}; allowed: {}", self.allowed)
    }
}

/// All rules that the configuration breaks, in field order; at least one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct ConfigFaults(pub Vec<ConfigFault>);

impl fmt::Display for ConfigFaults {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, fault) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "\n  " };
            write!(out, "{separator}{fault}")?;
        }
        Ok(())
    }
}

/// By which protocol a kernel is entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BootProtocol {
    /// PVH when an ELF offers it, else Linux 64-bit: what Firecracker does.
    Auto,
    /// Linux 64-bit (Documentation/arch/x86/boot.rst).
    Linux,
    /// PVH (xen/docs/misc/pvh.pandoc).
    Pvh,
}

/// What is booted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootConfig {
    /// Kernel file.
    pub kernel: PathBuf,
    /// Initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// The user's part of the command line.
    pub args: String,
    /// How the kernel is entered.
    pub protocol: BootProtocol,
    /// Whether a Linux kernel is given what it needs on software KVM.
    pub software_kvm_options: bool,
}

/// A disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DriveConfig {
    /// Its id.
    pub id: String,
    /// Image file or block device.
    pub path: PathBuf,
    /// Whether the guest may only read.
    pub read_only: bool,
    /// Whether the guest's flushes reach the disk.
    pub cache: CacheType,
    /// Its number in the configuration, if its bytes are, or become, part of an image.
    pub in_image: Option<u32>,
    /// Whether it is the root disk, and by which partition.
    pub root: Option<RootBy>,
    /// What may be transferred.
    pub limits: LimiterOptions,
    /// How the host reads and writes.
    pub engine: IoEngine,
    /// Whether the host's page cache is passed by.
    pub direct: bool,
    /// Whether what the guest discards is given back to the host.
    pub discard: bool,
    /// A private layer over it.
    pub overlay: Option<OverlayConfig>,
    /// Number of queues.
    pub queues: u16,
}

/// How the kernel finds the root file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RootBy {
    /// `root=/dev/vda`.
    Device,
    /// `root=PARTUUID=…`.
    PartUuid(String),
}

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetConfig {
    /// Its id.
    pub id: String,
    /// What it is connected to.
    pub host: NetHost,
    /// Address that the guest is told.
    pub mac: MacAddress,
    /// MTU that the guest is told.
    pub mtu: Option<u16>,
    /// Number of queue pairs.
    pub pairs: u16,
    /// What the guest may receive.
    pub receive_limits: LimiterOptions,
    /// What it may send.
    pub transmit_limits: LimiterOptions,
}

/// Sockets between guest and host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VsockConfig {
    /// The guest's context id.
    pub guest_cid: u32,
    /// Where clients of the host connect.
    pub path: PathBuf,
    /// Whether that is in the runtime directory, because nobody has named it.
    pub is_in_runtime_dir: bool,
}

impl VsockConfig {
    /// For `exec` alone: each process has a socket of its own.
    fn of_exec() -> Self {
        Self {
            guest_cid: *GUEST_CIDS.start(),
            path: runtime_dir::folder().join(runtime_dir::vsock_name(std::process::id())),
            is_in_runtime_dir: true,
        }
    }
}

/// A machine that can be built.
#[derive(Debug, Clone)]
pub struct MachineConfig {
    spec: VmSpec,
    boot: Option<BootConfig>,
    vcpus: u8,
    ram_bytes: u64,
    cpu: Option<CpuTemplate>,
    tuning: Tuning,
    drives: Vec<DriveConfig>,
    nets: Vec<NetConfig>,
    vsock: Option<VsockConfig>,
    mmds: Option<MmdsConfig>,
}

impl MachineConfig {
    /// Proves `spec` on a host with `host_memory_bytes` of memory.
    ///
    /// # Errors
    /// All violated rules, in field order.
    pub fn prove(spec: VmSpec, host_memory_bytes: u64) -> Result<Self, ConfigFaults> {
        let mut faults = Faults::default();
        refuse_unsupported(&spec, &mut faults);
        let boot = spec
            .boot_source
            .as_ref()
            .and_then(|boot| prove_boot(boot, &mut faults));
        let vcpus = prove_machine(&spec, host_memory_bytes, &mut faults);
        let tuning = tuning::prove(&spec, &mut faults);
        let cpu = cpu::prove(&spec, &mut faults);
        let drives = prove_drives(&spec.drives, &mut faults);
        let nets = prove_nets(&spec.network_interfaces, &mut faults);
        let vsock = spec
            .vsock
            .as_ref()
            .map(|vsock| prove_vsock(vsock, &mut faults))
            .or_else(|| spec.exec.as_ref().map(|ExecSpec {}| VsockConfig::of_exec()));
        let mmds = spec.mmds_config.as_ref();
        let mmds = mmds.map(|mmds| mmds::prove(mmds, &nets, &mut faults));
        if let Some(agent) = spec.run.as_ref().and_then(|run| run.agent.as_ref()) {
            agent::prove(agent, nets.len(), &mut faults);
        }
        prove_balloon(&spec, &mut faults);
        let single = usize::from(spec.entropy.is_some())
            + usize::from(spec.console.is_some())
            + usize::from(spec.balloon.is_some())
            + usize::from(vsock.is_some());
        let devices = drives.len() + nets.len() + single;
        if devices > limits::DEVICES_MAX {
            faults.add(
                "drives and network-interfaces",
                devices,
                format!("at most {} devices in all", limits::DEVICES_MAX),
            );
        }
        if !faults.0.is_empty() {
            return Err(ConfigFaults(faults.0));
        }
        let ram_bytes = spec.machine_config.mem_size_mib << 20;
        Ok(Self {
            spec,
            boot,
            vcpus,
            ram_bytes,
            cpu,
            tuning,
            drives,
            nets,
            vsock,
            mmds,
        })
    }

    /// The text that was proved.
    #[must_use]
    pub const fn spec(&self) -> &VmSpec {
        &self.spec
    }

    /// Drive `id` has another disk from now on, which is in no image. Gives the number of the one in an image, if it was.
    pub fn replace_disk(&mut self, id: &str, path: &Path) -> Option<u32> {
        let specs = self.spec.drives.iter_mut();
        for spec in specs.filter(|drive| drive.drive_id == id) {
            spec.path_on_host = path.to_owned();
            spec.in_image = None;
        }
        let drive = self.drives.iter_mut().find(|drive| drive.id == id)?;
        drive.path = path.to_owned();
        drive.in_image.take()
    }

    /// A device has other limits from now on.
    pub fn change_limits(&mut self, patch: &limiter::LimitsPatch) {
        limiter::patch(&mut self.spec, patch);
    }

    /// The balloon is `mib` large from now on.
    pub fn set_balloon_amount(&mut self, mib: u32) {
        if let Some(balloon) = &mut self.spec.balloon {
            balloon.amount_mib = mib;
        }
    }

    /// The balloon asks for statistics every `seconds` from now on.
    pub fn set_balloon_interval(&mut self, seconds: u16) {
        if let Some(balloon) = &mut self.spec.balloon {
            balloon.stats_polling_interval_s = seconds;
        }
    }

    /// This run has other arguments, if there are `args`, and `env` in its environment, added or replaced by name.
    pub fn set_run(&mut self, args: Option<Vec<String>>, env: Vec<(String, String)>) {
        if args.is_some() || !env.is_empty() {
            let run = self.spec.run.get_or_insert_default();
            run.env.extend(env);
            if let Some(args) = args {
                run.args = args;
            }
        }
    }

    /// What is booted, if the configuration says so.
    #[must_use]
    pub const fn boot(&self) -> Option<&BootConfig> {
        self.boot.as_ref()
    }

    /// Number of vCPUs, 1–32.
    #[must_use]
    pub const fn vcpus(&self) -> u8 {
        self.vcpus
    }

    /// Guest RAM in bytes: whole MiB.
    #[must_use]
    pub const fn ram_bytes(&self) -> u64 {
        self.ram_bytes
    }

    /// What is changed of the CPU, if anything is.
    #[must_use]
    pub const fn cpu(&self) -> Option<&CpuTemplate> {
        self.cpu.as_ref()
    }

    /// Numbers of the model-specific registers that are changed.
    #[must_use]
    pub fn cpu_msrs(&self) -> Vec<u32> {
        let template = self.cpu.as_ref();
        template.map(CpuTemplate::msr_indices).unwrap_or_default()
    }

    /// Disks, the root disk first.
    #[must_use]
    pub fn drives(&self) -> &[DriveConfig] {
        &self.drives
    }

    /// Network interfaces.
    #[must_use]
    pub fn nets(&self) -> &[NetConfig] {
        &self.nets
    }

    /// Sockets between guest and host, if there are any.
    #[must_use]
    pub const fn vsock(&self) -> Option<&VsockConfig> {
        self.vsock.as_ref()
    }

    /// The metadata service, if the guest reaches it.
    #[must_use]
    pub const fn mmds(&self) -> Option<&MmdsConfig> {
        self.mmds.as_ref()
    }

    /// Whether pages that change are tracked, for differential snapshots.
    #[must_use]
    pub const fn tracks_dirty_pages(&self) -> bool {
        self.spec.machine_config.track_dirty_pages
    }

    /// Whether the guest reads registers as memory.
    #[must_use]
    pub const fn has_register_pages(&self) -> bool {
        self.spec.machine_config.register_pages
    }

    /// Whether there is an entropy device.
    #[must_use]
    pub const fn entropy(&self) -> bool {
        self.spec.entropy.is_some()
    }

    /// What the entropy device may give.
    #[must_use]
    pub fn entropy_limits(&self) -> LimiterOptions {
        let entropy = self.spec.entropy.as_ref();
        limiter::options(entropy.and_then(|entropy| entropy.rate_limiter))
    }

    /// The balloon, if there is one.
    #[must_use]
    pub const fn balloon(&self) -> Option<&BalloonSpec> {
        self.spec.balloon.as_ref()
    }

    /// Whether there is a console.
    #[must_use]
    pub const fn console(&self) -> bool {
        self.spec.console.is_some()
    }

    /// Arguments of this run.
    #[must_use]
    pub fn args(&self) -> &[String] {
        self.spec
            .run
            .as_ref()
            .map_or(&[], |run| run.args.as_slice())
    }

    /// Whether LightV's agent is in the guest.
    #[must_use]
    pub fn has_agent(&self) -> bool {
        let run = self.spec.run.as_ref();
        run.is_some_and(|run| run.agent.is_some())
    }

    /// What the guest's agent is to do, as JSON; empty when there is no agent.
    #[must_use]
    pub fn agent_json(&self) -> String {
        let agent = self.spec.run.as_ref().and_then(|run| run.agent.as_ref());
        // Strings, numbers and lists of them: nothing that JSON cannot say.
        agent
            .and_then(|agent| serde_json::to_string(agent).ok())
            .unwrap_or_default()
    }

    /// Environment of this run.
    #[must_use]
    pub fn env(&self) -> Vec<(String, String)> {
        let run = self.spec.run.as_ref();
        run.map(|run| run.env.clone().into_iter().collect())
            .unwrap_or_default()
    }
}

#[derive(Default)]
struct Faults(Vec<ConfigFault>);

impl Faults {
    fn add(
        &mut self,
        field: impl Into<String>,
        found: impl fmt::Display,
        allowed: impl Into<String>,
    ) {
        self.0.push(ConfigFault {
            field: field.into(),
            found: found.to_string(),
            allowed: allowed.into(),
        });
    }
}

fn refuse_unsupported(spec: &VmSpec, faults: &mut Faults) {
    for asked in offer::missing(spec, offer::NOT_OFFERED) {
        faults.add(asked.field, asked.found, asked.allowed);
    }
}

fn prove_boot(boot: &BootSource, faults: &mut Faults) -> Option<BootConfig> {
    let before = faults.0.len();
    prove_path(
        "boot-source.kernel_image_path",
        &boot.kernel_image_path,
        faults,
    );
    if let Some(initrd) = &boot.initrd_path {
        prove_path("boot-source.initrd_path", initrd, faults);
    }
    let args = boot
        .boot_args
        .clone()
        .unwrap_or_else(|| DEFAULT_BOOT_ARGS.to_owned());
    if let Some(bad) = args
        .chars()
        .find(|c| !c.is_ascii() || (c.is_ascii_control() && *c != '\t'))
    {
        faults.add(
            "boot-source.boot_args",
            format!("text with the character {bad:?}"),
            "printable ASCII",
        );
    }
    let protocol = match boot.boot_protocol.as_deref() {
        None | Some("auto") => BootProtocol::Auto,
        Some("linux") => BootProtocol::Linux,
        Some("pvh") => BootProtocol::Pvh,
        Some(other) => {
            faults.add(
                "boot-source.boot_protocol",
                format!("`{other}`"),
                "auto, linux, pvh",
            );
            BootProtocol::Auto
        }
    };
    let (kernel, initrd) = (boot.kernel_image_path.clone(), boot.initrd_path.clone());
    (faults.0.len() == before).then_some(BootConfig {
        kernel,
        initrd,
        args,
        protocol,
        software_kvm_options: boot.software_kvm_options.unwrap_or(true),
    })
}

fn prove_machine(spec: &VmSpec, host_memory_bytes: u64, faults: &mut Faults) -> u8 {
    let machine = &spec.machine_config;
    let vcpus = u8::try_from(machine.vcpu_count)
        .ok()
        .filter(|n| (1..=limits::VCPUS_MAX).contains(&u64::from(*n)));
    if vcpus.is_none() {
        faults.add(
            "machine-config.vcpu_count",
            machine.vcpu_count,
            format!("1–{}", limits::VCPUS_MAX),
        );
    }
    let host_mib = host_memory_bytes >> 20;
    if !(limits::RAM_MIB_MIN..=host_mib).contains(&machine.mem_size_mib) {
        let allowed = format!("{}–{host_mib} (the host's memory)", limits::RAM_MIB_MIN);
        faults.add("machine-config.mem_size_mib", machine.mem_size_mib, allowed);
    }
    vcpus.unwrap_or(1)
}

fn prove_balloon(spec: &VmSpec, faults: &mut Faults) {
    let Some(balloon) = &spec.balloon else {
        return;
    };
    let memory_mib = spec.machine_config.mem_size_mib;
    if u64::from(balloon.amount_mib) > memory_mib {
        let allowed = format!("0–{memory_mib} (machine-config.mem_size_mib)");
        faults.add("balloon.amount_mib", balloon.amount_mib, allowed);
    }
}

fn prove_drives(specs: &[DriveSpec], faults: &mut Faults) -> Vec<DriveConfig> {
    let mut ids = BTreeSet::new();
    let mut drives = Vec::with_capacity(specs.len());
    for (index, spec) in specs.iter().enumerate() {
        let field = |name: &str| format!("drives[{index}].{name}");
        prove_id(&field("drive_id"), &spec.drive_id, &mut ids, faults);
        prove_path(&field("path_on_host"), &spec.path_on_host, faults);
        let cache = match spec.cache_type {
            None | Some(drive::CacheType::Unsafe) => CacheType::Unsafe,
            Some(drive::CacheType::Writeback) => CacheType::Writeback,
        };
        if spec.is_root_device
            && drives
                .iter()
                .any(|drive: &DriveConfig| drive.root.is_some())
        {
            faults.add(
                field("is_root_device"),
                "true",
                "false: another drive is the root device",
            );
        }
        if spec.discard == Some(true) && spec.is_read_only {
            faults.add(
                field("discard"),
                "true",
                "false: the guest may not write to this drive",
            );
        }
        if spec.in_image == Some(true) {
            prove_in_image(&field, spec, faults);
        }
        let root = spec.is_root_device.then(|| {
            spec.partuuid
                .clone()
                .map_or(RootBy::Device, RootBy::PartUuid)
        });
        let (id, path) = (spec.drive_id.clone(), spec.path_on_host.clone());
        drives.push(DriveConfig {
            id,
            path,
            read_only: spec.is_read_only,
            cache,
            in_image: (spec.in_image == Some(true))
                .then(|| u32::try_from(index).unwrap_or(u32::MAX)),
            root,
            limits: limiter::options(spec.rate_limiter),
            engine: match spec.io_engine {
                None | Some(drive::IoEngine::Sync) => IoEngine::Sync,
                Some(drive::IoEngine::Async) => IoEngine::Async,
            },
            direct: spec.direct == Some(true),
            discard: spec.discard == Some(true),
            overlay: overlay::prove(index, spec, faults),
            queues: prove_queues(&field("num_queues"), spec.num_queues, faults),
        });
    }
    drives.sort_by_key(|drive| drive.root.is_none());
    drives
}

/// What does not go with a drive that is in the image.
fn prove_in_image(field: &dyn Fn(&str) -> String, spec: &DriveSpec, faults: &mut Faults) {
    let past_cache = [
        ("direct", spec.direct == Some(true)),
        ("io_engine", spec.io_engine == Some(drive::IoEngine::Async)),
    ];
    for (name, _) in past_cache.into_iter().filter(|(_, is_set)| *is_set) {
        // Each byte is proved before the guest has it, by the loop.
        faults.add(field(name), "set", "nothing for a drive that is in_image");
    }
    if !spec.is_read_only && spec.overlay.is_none() {
        faults.add(
            field("in_image"),
            "true",
            "false, or is_read_only, or an overlay: the guest cannot write into an image",
        );
    }
}

fn prove_queues(field: &str, count: Option<u16>, faults: &mut Faults) -> u16 {
    let count = count.unwrap_or(1);
    if !(1..=BLOCK_QUEUES_MAX).contains(&count) {
        faults.add(field, count, format!("1–{BLOCK_QUEUES_MAX}"));
    }
    count
}

fn prove_nets(specs: &[NetSpec], faults: &mut Faults) -> Vec<NetConfig> {
    let mut ids = BTreeSet::new();
    let mut nets: Vec<NetConfig> = Vec::with_capacity(specs.len());
    for (index, spec) in specs.iter().enumerate() {
        let field = |name: &str| format!("network-interfaces[{index}].{name}");
        prove_id(&field("iface_id"), &spec.iface_id, &mut ids, faults);
        let mtu = spec
            .mtu
            .and_then(|mtu| u16::try_from(mtu).ok().filter(|mtu| *mtu >= 68));
        if let (Some(asked), None) = (spec.mtu, mtu) {
            faults.add(field("mtu"), asked, "68–65535");
        }
        let mac = match spec.guest_mac.as_deref().map(str::parse::<MacAddress>) {
            None => MacAddress::from_id(&spec.iface_id),
            Some(Ok(mac)) => mac,
            Some(Err(reason)) => {
                let text = spec.guest_mac.as_deref().unwrap_or_default();
                faults.add(field("guest_mac"), format!("`{text}`"), reason.to_string());
                continue;
            }
        };
        if nets.iter().any(|net| net.mac == mac) {
            faults.add(
                field("guest_mac"),
                mac,
                "an address that no other interface has",
            );
        }
        let Some(host) = net::prove_host(index, spec, &nets, faults) else {
            continue;
        };
        nets.push(NetConfig {
            id: spec.iface_id.clone(),
            pairs: net::prove_pairs(index, spec, &host, faults),
            host,
            mac,
            mtu,
            receive_limits: limiter::options(spec.rx_rate_limiter),
            transmit_limits: limiter::options(spec.tx_rate_limiter),
        });
    }
    nets
}

fn prove_vsock(spec: &VsockSpec, faults: &mut Faults) -> VsockConfig {
    let (least, greatest) = (GUEST_CIDS.start(), GUEST_CIDS.end());
    if !GUEST_CIDS.contains(&spec.guest_cid) {
        let allowed = format!("{least}–{greatest}");
        faults.add("vsock.guest_cid", spec.guest_cid, allowed);
    }
    let bytes = spec.uds_path.as_os_str().len();
    if !(1..=limits::SOCKET_PATH_BYTES_MAX).contains(&bytes) {
        let allowed = format!(
            "1–{} bytes, as in every Unix socket's path",
            limits::SOCKET_PATH_BYTES_MAX
        );
        faults.add("vsock.uds_path", format!("{bytes} bytes long"), allowed);
    }
    VsockConfig {
        guest_cid: spec.guest_cid,
        path: spec.uds_path.clone(),
        is_in_runtime_dir: false,
    }
}

fn prove_path(field: &str, path: &Path, faults: &mut Faults) {
    if path.as_os_str().is_empty() {
        faults.add(field, "empty", "the path of a file");
    }
}

fn prove_id(field: &str, id: &str, seen: &mut BTreeSet<String>, faults: &mut Faults) {
    let letters = id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    if id.is_empty() || id.len() > limits::ID_BYTES_MAX || !letters {
        faults.add(
            field,
            format!("`{id}`"),
            format!("1–{} letters, digits and `_`", limits::ID_BYTES_MAX),
        );
    } else if !seen.insert(id.to_owned()) {
        faults.add(field, format!("`{id}`"), "an id that no other has");
    }
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
