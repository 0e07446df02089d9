//! KVM's VM: memory slots and interrupt controllers, made in the order that costs least.
//!
//! Order (docs/adr/0002-order-of-kvm-calls.md): VM, all memory slots, interrupt controllers, vCPUs, then ioeventfds
//! and irqfds. Since Linux 6.18 a device on KVM's I/O bus makes the next change of a memory slot wait for a grace
//! period of milliseconds. So the types let it be done in no other order: [`NewVm`] takes slots, [`NewVm::seal`] makes
//! the interrupt controllers and gives a [`Vm`], which takes vCPUs and events.

use std::path::{Path, PathBuf};

use kvm_bindings::{KVM_API_VERSION, KVM_CAP_HALT_POLL, kvm_enable_cap};
use kvm_ioctls::{IoEventAddress, Kvm, VcpuFd, VmFd};
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::EventFd;

use crate::arch::host::layout;
use crate::memory::GuestRam;
use crate::sys::kvm::{SlotAccess, set_slot};
use crate::sys::mapping::Mapping;

/// Where KVM is found.
pub const KVM_PATH: &str = "/dev/kvm";

/// Why a VM could not be made.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// The device could not be opened.
    #[error("Cannot open {}: {}", path.display(), open_advice(cause))]
    Open {
        /// Which device.
        path: PathBuf,
        /// The kernel's reason.
        #[source]
        cause: kvm_ioctls::Error,
    },
    /// Another KVM than any known.
    #[error("{} speaks version {found} of KVM's interface; only {KVM_API_VERSION} is known", path.display())]
    ApiVersion {
        /// Which device.
        path: PathBuf,
        /// What it said.
        found: i32,
    },
    /// A call was refused.
    #[error("KVM refused to {what}")]
    Call {
        /// Which call.
        what: &'static str,
        /// The kernel's reason.
        #[source]
        cause: kvm_ioctls::Error,
    },
}

fn open_advice(cause: &kvm_ioctls::Error) -> &'static str {
    match cause.errno() {
        libc::ENOENT | libc::ENODEV | libc::ENXIO => {
            "KVM is not available; enable virtualization in the firmware or the outer VM and load kvm_intel or kvm_amd"
        }
        libc::EACCES | libc::EPERM => {
            "no permission; add the user to the device's group, usually kvm"
        }
        _ => "see `lightv doctor`",
    }
}

/// Opens KVM.
///
/// # Errors
/// [`VmError::Open`], [`VmError::ApiVersion`].
pub fn open_kvm(path: &Path) -> Result<Kvm, VmError> {
    let c_path = std::ffi::CString::new(path.as_os_str().as_encoded_bytes()).unwrap_or_default();
    let kvm = Kvm::new_with_path(&c_path).map_err(|cause| VmError::Open {
        path: path.into(),
        cause,
    })?;
    let found = kvm.get_api_version();
    if u32::try_from(found) != Ok(KVM_API_VERSION) {
        return Err(VmError::ApiVersion {
            path: path.into(),
            found,
        });
    }
    Ok(kvm)
}

/// A VM that still takes memory slots.
#[derive(Debug)]
pub struct NewVm {
    fd: VmFd,
    slots: u32,
}

impl NewVm {
    /// Makes an empty VM. Early in the process's life: KVM's time for it grows with the process's mappings.
    ///
    /// # Errors
    /// [`VmError::Call`].
    pub fn create(kvm: &Kvm) -> Result<Self, VmError> {
        loop {
            match kvm.create_vm() {
                Ok(fd) => return Ok(Self { fd, slots: 0 }),
                // A signal came while KVM waited for its locks: nothing has been made.
                Err(cause) if cause.errno() == libc::EINTR => {}
                Err(cause) => {
                    return Err(VmError::Call {
                        what: "create a VM",
                        cause,
                    });
                }
            }
        }
    }

    /// Gives the guest its RAM.
    ///
    /// # Errors
    /// [`VmError::Call`].
    pub fn add_ram(&mut self, ram: &GuestRam) -> Result<(), VmError> {
        for part in ram.parts() {
            self.add_slot(part.base, &part.mapping, SlotAccess::ReadWrite)?;
        }
        Ok(())
    }

    /// Gives the guest what it reads of devices as memory: the control device and the registers after it.
    ///
    /// # Errors
    /// [`VmError::Call`].
    pub fn add_control_page(&mut self, page: &Mapping) -> Result<(), VmError> {
        self.add_slot(
            GuestAddress(layout::CONTROL_START),
            page,
            SlotAccess::ReadOnly,
        )
    }

    fn add_slot(
        &mut self,
        base: GuestAddress,
        mapping: &Mapping,
        access: SlotAccess,
    ) -> Result<(), VmError> {
        set_slot(&self.fd, self.slots, base, mapping, access).map_err(|cause| VmError::Call {
            what: "map guest memory",
            cause,
        })?;
        self.slots += 1;
        Ok(())
    }

    /// Makes the interrupt controllers; from here on memory slots stay as they are.
    ///
    /// # Errors
    /// [`VmError::Call`].
    pub fn seal(self) -> Result<Vm, VmError> {
        let call = |what| move |cause| VmError::Call { what, cause };
        self.fd
            .set_identity_map_address(layout::KVM_IDENTITY_MAP)
            .map_err(call("place its identity map"))?;
        self.fd
            .set_tss_address(layout::KVM_TSS)
            .map_err(call("place its task state segment"))?;
        self.fd
            .create_irq_chip()
            .map_err(call("create the interrupt controllers"))?;
        Ok(Vm { fd: self.fd })
    }
}

/// A VM with memory and interrupt controllers.
#[derive(Debug)]
pub struct Vm {
    fd: VmFd,
}

impl Vm {
    /// Has KVM poll for a vCPU that waits for at most `us` microseconds, before its CPU is let go (KVM_CAP_HALT_POLL,
    /// Documentation/virt/kvm/halt-polling.rst).
    ///
    /// # Errors
    /// [`VmError::Call`]: KVM cannot be told before Linux 5.10.
    pub fn limit_halt_poll(&self, us: u32) -> Result<(), VmError> {
        let ns = u64::from(us) * 1000;
        let capability = kvm_enable_cap {
            cap: KVM_CAP_HALT_POLL,
            args: [ns, 0, 0, 0],
            ..kvm_enable_cap::default()
        };
        self.fd.enable_cap(&capability).map_err(|cause| VmError::Call {
            what: "limit its polling for vCPUs that wait (halt_poll_us, KVM_CAP_HALT_POLL, Linux 5.10)",
            cause,
        })
    }

    /// Makes the first `count` vCPUs.
    ///
    /// # Errors
    /// [`VmError::Call`].
    pub fn create_vcpus(&self, count: u8) -> Result<Vec<VcpuFd>, VmError> {
        (0..count).map(|index| self.create_vcpu(index)).collect()
    }

    fn create_vcpu(&self, index: u8) -> Result<VcpuFd, VmError> {
        self.fd
            .create_vcpu(u64::from(index))
            .map_err(|cause| VmError::Call {
                what: "create a vCPU",
                cause,
            })
    }

    /// Makes every write of the 32-bit value `value` to `address` signal `event`, without leaving the kernel.
    ///
    /// # Errors
    /// [`VmError::Call`].
    pub fn signal_on_write(
        &self,
        event: &EventFd,
        address: u64,
        value: u32,
    ) -> Result<(), VmError> {
        self.fd
            .register_ioevent(event, &IoEventAddress::Mmio(address), value)
            .map_err(|cause| VmError::Call {
                what: "connect a register (ioeventfd)",
                cause,
            })
    }

    /// Makes every signal of `event` an edge of interrupt line `gsi`.
    ///
    /// # Errors
    /// [`VmError::Call`].
    pub fn interrupt_on_signal(&self, event: &EventFd, gsi: u32) -> Result<(), VmError> {
        self.fd
            .register_irqfd(event, gsi)
            .map_err(|cause| VmError::Call {
                what: "connect an interrupt (irqfd)",
                cause,
            })
    }

    /// Makes one edge of interrupt line `gsi`.
    ///
    /// # Errors
    /// [`VmError::Call`].
    pub fn interrupt_once(&self, gsi: u32) -> Result<(), VmError> {
        for active in [true, false] {
            self.fd
                .set_irq_line(gsi, active)
                .map_err(|cause| VmError::Call {
                    what: "raise an interrupt",
                    cause,
                })?;
        }
        Ok(())
    }

    /// KVM's handle, for the state of the interrupt controllers.
    #[must_use]
    pub const fn fd(&self) -> &VmFd {
        &self.fd
    }
}
