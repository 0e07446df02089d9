//! The saved interrupt controllers and clock of a VM.

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_clock_data, kvm_irqchip,
};
use kvm_ioctls::VmFd;
use lightv_devices::state::Section;
use serde::{Deserialize, Serialize};

use crate::sys::bytes::{from_bytes, to_bytes};

/// Saved interrupt controllers and clock, version 1. Never edit: add a V2.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmStateV1 {
    /// `kvm_irqchip`: first PIC, second PIC, I/O APIC.
    pub irqchips: [Vec<u8>; 3],
    /// `kvm_clock_data.clock`: nanoseconds of kvm-clock.
    pub clock_ns: u64,
}

impl Section for VmStateV1 {
    const KIND: &'static str = "vm";
    const VERSION: u16 = 1;
}

const CHIPS: [u32; 3] = [
    KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE,
    KVM_IRQCHIP_IOAPIC,
];

/// Why it could not be saved or restored.
#[derive(Debug, thiserror::Error)]
pub enum VmStateError {
    /// KVM refused a call.
    #[error("KVM refused to {what}")]
    Kvm {
        /// Which call.
        what: &'static str,
        /// The kernel's reason.
        #[source]
        cause: kvm_ioctls::Error,
    },
    /// A structure has another length, or is for another chip.
    #[error("Saved interrupt controller {chip} has {found} bytes or another number")]
    Chip {
        /// Which one.
        chip: u32,
        /// Length in the image.
        found: usize,
    },
}

/// Reads the state; all vCPUs must be paused.
///
/// # Errors
/// [`VmStateError::Kvm`].
pub fn capture(vm: &VmFd) -> Result<VmStateV1, VmStateError> {
    let read = |chip_id| {
        let mut chip = kvm_irqchip {
            chip_id,
            ..Default::default()
        };
        vm.get_irqchip(&mut chip)
            .map(|()| to_bytes(&chip))
            .map_err(|cause| VmStateError::Kvm {
                what: "read an interrupt controller",
                cause,
            })
    };
    let clock = vm.get_clock().map_err(|cause| VmStateError::Kvm {
        what: "read the clock",
        cause,
    })?;
    let [first, second, ioapic] = CHIPS;
    Ok(VmStateV1 {
        irqchips: [read(first)?, read(second)?, read(ioapic)?],
        clock_ns: clock.clock,
    })
}

/// Offset of the I/O APIC's redirection table: in `kvm_irqchip` after the chip's number, in `kvm_ioapic_state` after
/// five registers.
const REDIRECTIONS: usize = 8 + 24;
/// Length of its entries, one a line.
const REDIRECTION_BYTES: usize = 8;
/// Bit of an entry (82093AA §3.2.4): interrupts of the line do not come through.
const MASKED: u64 = 1 << 16;

/// Whether the guest lets interrupts of line `gsi` in by the I/O APIC: then it has a driver for what is there.
#[must_use]
pub fn is_line_open(state: &VmStateV1, gsi: u32) -> bool {
    let [_, _, ioapic] = &state.irqchips;
    let entry = usize::try_from(gsi)
        .ok()
        .and_then(|line| line.checked_mul(REDIRECTION_BYTES))
        .and_then(|offset| ioapic.get(offset.checked_add(REDIRECTIONS)?..))
        .and_then(|bytes| bytes.first_chunk());
    entry.is_some_and(|entry| u64::from_le_bytes(*entry) & MASKED == 0)
}

/// Puts the state into a new VM. The guest's kvm-clock goes on from the moment of the save: the time that the image
/// lay on disk does not pass for the guest.
///
/// # Errors
/// [`VmStateError`].
pub fn apply(vm: &VmFd, state: &VmStateV1) -> Result<(), VmStateError> {
    for (chip_id, bytes) in CHIPS.into_iter().zip(&state.irqchips) {
        let chip: kvm_irqchip = from_bytes(bytes)
            .filter(|chip: &kvm_irqchip| chip.chip_id == chip_id)
            .ok_or(VmStateError::Chip {
                chip: chip_id,
                found: bytes.len(),
            })?;
        vm.set_irqchip(&chip).map_err(|cause| VmStateError::Kvm {
            what: "set an interrupt controller",
            cause,
        })?;
    }
    let clock = kvm_clock_data {
        clock: state.clock_ns,
        ..Default::default()
    };
    vm.set_clock(&clock).map_err(|cause| VmStateError::Kvm {
        what: "set the clock",
        cause,
    })
}

#[cfg(test)]
mod tests {
    use kvm_bindings::kvm_ioapic_state;

    use super::*;

    #[test]
    fn a_line_is_open_when_its_own_mask_bit_is_clear() {
        for open in 0..24_u32 {
            let mut ioapic = kvm_ioapic_state::default();
            for (line, entry) in (0_u32..).zip(&mut ioapic.redirtbl) {
                entry.bits = if line == open {
                    0x0000_0000_0000_0031
                } else {
                    MASKED | 0x31
                };
            }
            let mut chip = kvm_irqchip::default();
            chip.chip.ioapic = ioapic;
            let state = VmStateV1 {
                irqchips: [Vec::new(), Vec::new(), to_bytes(&chip)],
                clock_ns: 0,
            };
            for line in 0..24 {
                assert_eq!(is_line_open(&state, line), line == open, "{line}");
            }
        }
    }

    #[test]
    fn a_line_that_is_not_in_the_image_is_closed() {
        let state = |ioapic| VmStateV1 {
            irqchips: [Vec::new(), Vec::new(), ioapic],
            clock_ns: 0,
        };
        assert!(!is_line_open(&state(Vec::new()), 0));
        assert!(!is_line_open(&state(vec![0; 8 + 24 + 7]), 0));
        assert!(!is_line_open(&state(vec![0; 520]), u32::MAX));
    }
}
