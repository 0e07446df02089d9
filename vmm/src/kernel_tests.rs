use super::*;
use crate::memory::GuestRam;

fn load_bytes(bytes: &[u8]) -> Result<LoadedKernel, LoadKernelError> {
    let ram = GuestRam::allocate(16 << 20).unwrap();
    load(ram.mem(), bytes, Path::new("k"), BootProtocol::Auto)
}

fn elf(entry: u64, segment_address: u64, file_bytes: u64) -> Vec<u8> {
    let mut elf = vec![0_u8; 0x78];
    elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
    elf[6] = 1;
    elf[16] = 2;
    elf[18] = 62;
    elf[24..32].copy_from_slice(&entry.to_le_bytes());
    elf[32] = 64;
    elf[52] = 64;
    elf[54] = 56;
    elf[56] = 1;
    elf[64] = 1;
    elf[64 + 8..64 + 16].copy_from_slice(&0x78_u64.to_le_bytes());
    elf[64 + 24..64 + 32].copy_from_slice(&segment_address.to_le_bytes());
    elf[64 + 32..64 + 40].copy_from_slice(&file_bytes.to_le_bytes());
    elf[64 + 40..64 + 48].copy_from_slice(&file_bytes.to_le_bytes());
    elf.extend([0xf4; 16]);
    elf
}

#[test]
fn a_sound_elf_is_loaded_and_entered_by_the_linux_protocol() {
    let kernel = load_bytes(&elf(0x10_0000, 0x10_0000, 16)).unwrap();
    assert_eq!(kernel.entry, Entry::Linux64(GuestAddress(0x10_0000)));
    assert_eq!(kernel.end, 0x10_0010);
}

#[test]
fn other_formats_are_refused_by_name() {
    let mut elf_32 = elf(0x10_0000, 0x10_0000, 16);
    elf_32[4] = 1;
    let cases: [(&[u8], &str); 6] = [
        (b"\x1f\x8b\x08", "gzip"),
        (&elf_32, "32-bit"),
        (b"\x7fELF", "cut off"),
        (b"#!/bin/sh", "script"),
        (b"", "no format"),
        (&[0; 4096], "no format"),
    ];
    for (bytes, word) in cases {
        let text = load_bytes(bytes).unwrap_err().to_string();
        assert!(text.contains(word), "{word}: {text}");
    }
}

#[test]
fn a_kernel_that_is_cut_off_or_reaches_out_of_ram_is_refused() {
    let whole = elf(0x10_0000, 0x10_0000, 16);
    for bytes in [
        &whole[..64],
        &whole[..0x78],
        &whole[..0x80],
        &elf(0x10_0000, 0xffff_f000, 16),
        &elf(0x10_0000, u64::MAX - 4, 16),
        &elf(0x4000_0000, 0x10_0000, 16),
    ] {
        assert!(load_bytes(bytes).is_err(), "{} bytes", bytes.len());
    }
}

#[test]
fn an_initrd_lies_on_a_page_above_the_kernel_or_is_refused() {
    let ram_bytes = 16 << 20;
    let ram = GuestRam::allocate(ram_bytes).unwrap();
    let kernel_end = 0x20_0001;
    for length in [1, 4095, 4096, 4097, (14 << 20) - 4096] {
        let (address, bytes) =
            load_initrd(ram.mem(), &vec![1; length], kernel_end, ram_bytes).unwrap();
        assert_eq!((address % 4096, bytes), (0, length as u64));
        assert!(
            address >= kernel_end && address + bytes <= ram_bytes,
            "{length}"
        );
    }
    for length in [14 << 20, 16 << 20, 17 << 20] {
        assert!(
            load_initrd(ram.mem(), &vec![1; length], kernel_end, ram_bytes).is_err(),
            "{length}"
        );
    }
}

#[test]
fn directories_fifos_and_empty_files_are_refused_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let fifo = directory.path().join("fifo");
    let made = std::process::Command::new("mkfifo")
        .arg(&fifo)
        .status()
        .unwrap();
    assert!(made.success());
    let empty = directory.path().join("empty");
    std::fs::write(&empty, b"").unwrap();
    assert!(matches!(
        read_file("kernel", directory.path(), 10),
        Err(ReadFileError::NotAFile { .. })
    ));
    assert!(matches!(
        read_file("kernel", &fifo, 10),
        Err(ReadFileError::NotAFile { .. })
    ));
    assert!(matches!(
        read_file("kernel", &empty, 10),
        Err(ReadFileError::Length { .. })
    ));
    let missing = read_file("kernel", &directory.path().join("x"), 10);
    assert!(matches!(missing, Err(ReadFileError::Io { .. })));
}
