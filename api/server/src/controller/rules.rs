//! Rules between the parts of a configuration: those that no type says and that are the same on every host. The words are
//! Firecracker's where it has the rule.

use std::net::Ipv4Addr;

use lightv_api::config::{MachineSpec, VmSpec};
use lightv_api::contract::drive::DriveSpec;
use lightv_api::contract::machine::HugePages;
use lightv_api::contract::memory_hotplug::MemoryHotplugSpec;
use lightv_api::contract::mmds::MmdsConfig;
use lightv_api::contract::net::{NetHost, NetSpec};

use crate::limits;

/// A rule that is broken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum RuleFault {
    #[error(
        "The number of vCPUs must be greater than 0, less than {} and must be 1 or an even number \
         if SMT is enabled.",
        limits::VCPUS_MAX
    )]
    Vcpus,
    #[error("The memory size (MiB) is either 0, or not a multiple of the configured page size.")]
    Memory,
    #[error(
        "Incompatible balloon size: the balloon takes {balloon_mib} MiB of {memory_mib} MiB of memory."
    )]
    BalloonOfMemory { balloon_mib: u32, memory_mib: u64 },
    #[error(
        "Amount of pages requested is too large: {balloon_mib} MiB; the machine has {memory_mib} MiB."
    )]
    BalloonTooLarge { balloon_mib: u32, memory_mib: u64 },
    #[error(
        "Unable to create the block device: Invalid block config. It needs either path_on_host or \
         socket."
    )]
    DriveBacking,
    #[error("A root block device already exists!")]
    TwoRoots,
    #[error("The MAC address is already in use: {0}")]
    MacInUse(String),
    #[error("The tap is already in use: {0}")]
    TapInUse(String),
    #[error("guest_cid is {0}; allowed: 3–4294967294")]
    GuestCid(u32),
    #[error("The list of network interface IDs that allow MMDS requests is empty.")]
    MmdsNoInterface,
    #[error(
        "The list of network interface IDs provided contains at least one ID that does not \
         correspond to any existing network interface: {0}"
    )]
    MmdsUnknownInterface(String),
    #[error("The MMDS IPv4 address is not link local: {0}")]
    MmdsAddress(Ipv4Addr),
    #[error(
        "total_size_mib {total}, slot_size_mib {slot}, block_size_mib {block}; allowed: blocks of a \
         power of two, 2 or more; slots of whole blocks, 128 or more; in all whole slots, 1 or more"
    )]
    Hotplug { total: u64, slot: u64, block: u64 },
}

pub(super) fn machine(machine: &MachineSpec) -> Result<(), RuleFault> {
    let vcpus = machine.vcpu_count;
    let is_even = vcpus == 1 || vcpus.is_multiple_of(2);
    if !(1..=limits::VCPUS_MAX).contains(&vcpus) || (machine.smt && !is_even) {
        return Err(RuleFault::Vcpus);
    }
    let is_whole = machine.huge_pages == HugePages::None || machine.mem_size_mib.is_multiple_of(2);
    if machine.mem_size_mib == 0 || !is_whole {
        return Err(RuleFault::Memory);
    }
    Ok(())
}

/// Memory that changes under a balloon.
pub(super) fn memory_with_balloon(spec: &VmSpec) -> Result<(), RuleFault> {
    match too_large_balloon(spec) {
        Some((balloon_mib, memory_mib)) => Err(RuleFault::BalloonOfMemory {
            balloon_mib,
            memory_mib,
        }),
        None => Ok(()),
    }
}

pub(super) fn balloon(spec: &VmSpec) -> Result<(), RuleFault> {
    match too_large_balloon(spec) {
        Some((balloon_mib, memory_mib)) => Err(RuleFault::BalloonTooLarge {
            balloon_mib,
            memory_mib,
        }),
        None => Ok(()),
    }
}

fn too_large_balloon(spec: &VmSpec) -> Option<(u32, u64)> {
    let balloon_mib = spec.balloon.as_ref()?.amount_mib;
    let memory_mib = spec.machine_config.mem_size_mib;
    (u64::from(balloon_mib) > memory_mib).then_some((balloon_mib, memory_mib))
}

/// A drive among the others.
pub(super) fn drive(spec: &VmSpec, drive: &DriveSpec) -> Result<(), RuleFault> {
    let has_path = !drive.path_on_host.as_os_str().is_empty();
    if has_path == drive.socket.is_some() {
        return Err(RuleFault::DriveBacking);
    }
    one_root(spec)
}

/// At most one drive or persistent memory is the root.
pub(super) fn one_root(spec: &VmSpec) -> Result<(), RuleFault> {
    let drives = spec.drives.iter().filter(|drive| drive.is_root_device);
    let pmem = spec.pmem.iter().flatten().filter(|pmem| pmem.root_device);
    if drives.count() + pmem.count() > 1 {
        return Err(RuleFault::TwoRoots);
    }
    Ok(())
}

/// An interface among the others.
pub(super) fn net(spec: &VmSpec, net: &NetSpec) -> Result<(), RuleFault> {
    let others = spec.network_interfaces.iter();
    for other in others.filter(|other| other.iface_id != net.iface_id) {
        if let (Some(mac), Some(taken)) = (&net.guest_mac, &other.guest_mac)
            && mac.eq_ignore_ascii_case(taken)
        {
            return Err(RuleFault::MacInUse(mac.clone()));
        }
        let host = net.host();
        if !matches!(host, NetHost::User(_)) && other.host() == host {
            return Err(RuleFault::TapInUse(host.to_string()));
        }
    }
    Ok(())
}

pub(super) fn mmds(spec: &VmSpec, config: &MmdsConfig) -> Result<(), RuleFault> {
    if config.network_interfaces.is_empty() {
        return Err(RuleFault::MmdsNoInterface);
    }
    let is_known = |id: &&String| {
        let mut nets = spec.network_interfaces.iter();
        nets.any(|net| net.iface_id == **id)
    };
    if let Some(unknown) = config.network_interfaces.iter().find(|id| !is_known(id)) {
        return Err(RuleFault::MmdsUnknownInterface(unknown.clone()));
    }
    if let Some(address) = config.ipv4_address {
        // RFC 3927 §2.1 keeps the first and the last 256 addresses for later.
        let third = address.octets()[2];
        if !address.is_link_local() || third == 0 || third == 255 {
            return Err(RuleFault::MmdsAddress(address));
        }
    }
    Ok(())
}

pub(super) fn memory_hotplug(hotplug: &MemoryHotplugSpec) -> Result<(), RuleFault> {
    let MemoryHotplugSpec {
        total_size_mib: total,
        slot_size_mib: slot,
        block_size_mib: block,
    } = *hotplug;
    let blocks = block >= 2 && block.is_power_of_two();
    let slots = slot >= 128 && slot.is_multiple_of(block);
    let whole = total > 0 && total.is_multiple_of(slot);
    if blocks && slots && whole {
        Ok(())
    } else {
        Err(RuleFault::Hotplug { total, slot, block })
    }
}
