//! What can be told of a kernel by a look into its file.

use memchr::memmem;

/// By what a Linux kernel is known: its version banner, or the header of a bzImage (Documentation/arch/x86/boot.rst).
const BANNER: &[u8] = b"Linux version ";
const SETUP_HEADER: (usize, &[u8]) = (0x202, b"HdrS");
/// The name by which Linux's virtio-mmio driver looks for devices in ACPI's tables. A kernel without ACPI, or without
/// the driver, does not have it.
const VIRTIO_MMIO_ID: &[u8] = b"LNRO0005";

/// Whether it is a Linux.
#[must_use]
pub fn is_linux(kernel: &[u8]) -> bool {
    is_bzimage(kernel) || memmem::find(kernel, BANNER).is_some()
}

/// Whether `kernel`, with the command line `args`, finds its virtio devices by ACPI. In doubt it does not: a device that
/// is named on the command line as well is found once, and the kernel says of the other name that it is busy (-16); one
/// that is named nowhere is lost. A bzImage is in doubt: it is compressed.
#[must_use]
pub fn finds_devices_by_acpi(kernel: &[u8], args: &str) -> bool {
    !is_acpi_off(args) && !is_bzimage(kernel) && memmem::find(kernel, VIRTIO_MMIO_ID).is_some()
}

fn is_bzimage(kernel: &[u8]) -> bool {
    let (offset, magic) = SETUP_HEADER;
    let rest = kernel.get(offset..);
    rest.is_some_and(|rest| rest.starts_with(magic))
}

/// Whether the command line turns ACPI off, and not on again (Linux's `parse_acpi`).
fn is_acpi_off(args: &str) -> bool {
    let words = args.split_whitespace().take_while(|word| *word != "--");
    let last = words.filter(|word| matches!(*word, "acpi=off" | "acpi=force"));
    last.last() == Some("acpi=off")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bzimage() -> Vec<u8> {
        let mut bytes = vec![0; 0x300];
        bytes[0x202..0x206].copy_from_slice(b"HdrS");
        bytes
    }

    #[test]
    fn linux_is_known_as_an_elf_and_as_a_bzimage() {
        assert!(is_linux(&bzimage()) && is_linux(b"..Linux version 6.1.."));
        assert!(!is_linux(b"\x7fELF") && !is_linux(&[]));
    }

    #[test]
    fn devices_are_found_by_acpi_where_the_driver_and_acpi_are() {
        let has_both = b"\x7fELF Linux version 6.1 LNRO0005 ";
        for (args, expected) in [
            ("console=ttyS0", true),
            ("acpi=off", false),
            ("acpi=force", true),
            ("acpi=off acpi=force", true),
            ("acpi=force acpi=off quiet", false),
            ("acpi=offish", true),
            ("a -- acpi=off", true),
        ] {
            assert_eq!(finds_devices_by_acpi(has_both, args), expected, "{args}");
        }
        assert!(!finds_devices_by_acpi(b"\x7fELF Linux version 6.1", ""));
        let with_name = [bzimage(), VIRTIO_MMIO_ID.to_vec()].concat();
        assert!(!finds_devices_by_acpi(&with_name, ""));
    }
}
