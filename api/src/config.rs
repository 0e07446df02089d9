//! A microVM as the user asks for it: the JSON of `lightv-vmm --config FILE`.
//!
//! Keys, names and defaults are those of Firecracker's configuration file. What LightV does not offer yet is
//! decoded as [`Value`], so that it can be refused by name instead of being ignored. Nothing is checked
//! here beyond types and unknown fields; `lightv-vmm` proves the rest before it builds anything.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use lightv_contract::agent::{AgentSpec, InterfaceSpec, Ready, Writable};

/// Top level of the configuration file.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct VmSpec {
    /// What is booted. Required for a boot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub boot_source: Option<BootSource>,
    /// CPUs and memory.
    #[serde(default)]
    pub machine_config: MachineSpec,
    /// Disks, in the order in which the guest finds them; the root disk is moved to the front.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub drives: Vec<DriveSpec>,
    /// Network interfaces, in the order in which the guest finds them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub network_interfaces: Vec<NetSpec>,
    /// A source of random bytes for the guest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entropy: Option<EntropySpec>,
    /// LightV's own: a console for the guest's standard streams and terminal. Without it there is the serial port alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub console: Option<ConsoleSpec>,
    /// LightV's own: what the guest learns of this run from the control device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run: Option<RunSpec>,
    /// Refused by name: not offered yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vsock: Option<Value>,
    /// Refused by name: not offered yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub balloon: Option<Value>,
    /// Refused by name: not offered yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mmds_config: Option<Value>,
    /// Refused by name: not offered yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_config: Option<Value>,
    /// Refused by name: not offered yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logger: Option<Value>,
    /// Refused by name: not offered yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metrics: Option<Value>,
    /// Refused by name: not offered yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pmem: Option<Value>,
    /// Refused by name: not offered yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_hotplug: Option<Value>,
}

/// `boot-source`: kernel, initial RAM disk, command line.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootSource {
    /// An ELF64 (Linux 64-bit or PVH entry) or a bzImage.
    pub kernel_image_path: PathBuf,
    /// Initial RAM disk, loaded as it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initrd_path: Option<PathBuf>,
    /// Kernel command line. Default: [`DEFAULT_BOOT_ARGS`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub boot_args: Option<String>,
    /// LightV's own: `auto` (default: Linux's own entry for a Linux, else PVH where an ELF offers it), `linux`, `pvh`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub boot_protocol: Option<String>,
    /// LightV's own: whether a Linux kernel is given the options that it needs on software KVM, on such a host. Default:
    /// yes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub software_kvm_options: Option<bool>,
}

/// Kernel command line when none is given: Firecracker's default.
pub const DEFAULT_BOOT_ARGS: &str = "reboot=k panic=1 nomodule 8250.nr_uarts=0 i8042.noaux \
    i8042.nomux i8042.dumbkbd swiotlb=noforce";

/// `machine-config`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MachineSpec {
    /// Number of vCPUs, 1–32.
    pub vcpu_count: u64,
    /// Guest RAM in MiB.
    pub mem_size_mib: u64,
    /// Whether vCPUs are presented as hyper-threads of shared cores. Only `false` is offered.
    pub smt: bool,
    /// Firecracker's CPU templates; only `None` is offered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_template: Option<String>,
    /// Firecracker's dirty-page tracking; only `false` is offered.
    pub track_dirty_pages: bool,
    /// Firecracker's huge pages; only `None` is offered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub huge_pages: Option<String>,
}

impl Default for MachineSpec {
    fn default() -> Self {
        Self {
            vcpu_count: 1,
            mem_size_mib: 128,
            smt: false,
            cpu_template: None,
            track_dirty_pages: false,
            huge_pages: None,
        }
    }
}

/// One entry of `drives`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DriveSpec {
    /// Letters, digits and `_`, at most 64; unique.
    pub drive_id: String,
    /// Whether this is the root disk (`root=/dev/vda` is added to the command line).
    #[serde(default)]
    pub is_root_device: bool,
    /// A raw disk image or block device.
    pub path_on_host: PathBuf,
    /// Whether the guest may only read.
    #[serde(default)]
    pub is_read_only: bool,
    /// `Unsafe` (default; the guest is offered no flush) or `Writeback` (flush is `fdatasync`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_type: Option<String>,
    /// Partition that is the root file system: `root=PARTUUID=…` is added.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub partuuid: Option<String>,
    /// Only `Sync` is offered yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub io_engine: Option<String>,
    /// Not offered yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<Value>,
    /// LightV's own: whether the bytes of the disk become part of an image that is saved of the machine. Only for disks
    /// that are read-only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub in_image: Option<bool>,
    /// vhost-user: not offered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub socket: Option<Value>,
}

/// One entry of `network-interfaces`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetSpec {
    /// Letters, digits and `_`, at most 64; unique.
    pub iface_id: String,
    /// Name of a tap device: 1–15 bytes. Created if it is absent and the process may.
    pub host_dev_name: String,
    /// MAC address, `aa:bb:cc:dd:ee:ff`; not multicast. Default: made from the interface's id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guest_mac: Option<String>,
    /// Offered to the guest: 68–65,535 bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u64>,
    /// Not offered yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rx_rate_limiter: Option<Value>,
    /// Not offered yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tx_rate_limiter: Option<Value>,
}

/// `entropy`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EntropySpec {
    /// Not offered yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<Value>,
}

/// `console`: LightV's own addition. Nothing is to be chosen yet.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConsoleSpec {}

/// `run`: LightV's own addition. Arguments, environment and the agent's orders together are at most 61,440
/// bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RunSpec {
    /// Arguments of this run.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// Environment of this run.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// What LightV's agent in a Linux guest is to do. Without it, the guest's init gets arguments and environment and does
    /// with them what it likes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent: Option<AgentSpec>,
}
