//! Machines in the JSON of `lightv-vmm --config`, and guests made by hand.

use std::net::SocketAddr;

use serde_json::{Value, json};

/// Address of a guest, port 80.
///
/// # Panics
/// Never: the numbers are in range.
#[must_use]
pub fn guest_at(last: u8, port: u16) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, last], port))
}

/// A machine that runs `app` of the minimal guest `kernel`.
#[must_use]
pub fn config(kernel: &str, app: &str) -> Value {
    json!({"boot-source": {"kernel_image_path": kernel, "boot_args": format!("app={app}")}})
}

/// `base` with the keys of `more` in place of its own.
///
/// # Panics
/// When one of them is no object.
#[must_use]
pub fn with(base: &Value, more: &Value) -> Value {
    let mut merged = base.clone();
    let fields = merged.as_object_mut().expect("an object");
    fields.extend(more.as_object().expect("an object").clone());
    merged
}

/// What a disk of `config` is to the guest.
#[must_use]
pub fn disk(id: &str, path: &str, cache_type: &str) -> Value {
    json!({"drive_id": id, "path_on_host": path, "cache_type": cache_type})
}

/// An interface `eth0` on the tap `tap0`.
#[must_use]
pub fn net() -> Value {
    json!([{"iface_id": "eth0", "host_dev_name": "tap0"}])
}

/// Where the kernels below are loaded and entered.
pub(crate) const LOAD_ADDRESS: u64 = 0x10_0000;

/// An ELF64 whose only segment is `code`.
#[must_use]
pub fn elf(code: &[u8]) -> Vec<u8> {
    const CODE_AT: usize = 0x78;
    let mut elf = vec![0; CODE_AT];
    let mut put = |at: usize, bytes: &[u8]| elf[at..at + bytes.len()].copy_from_slice(bytes);
    // Class 64, little-endian, version 1; an executable for x86_64.
    put(0, b"\x7fELF\x02\x01\x01");
    put(0x10, &[2, 0, 62, 0, 1]);
    put(0x18, &LOAD_ADDRESS.to_le_bytes());
    // One program header of 56 bytes after the header of 64: PT_LOAD, readable and executable.
    put(0x20, &[64]);
    put(0x34, &[64, 0, 56, 0, 1]);
    put(0x40, &[1, 0, 0, 0, 5]);
    put(0x48, &(CODE_AT as u64).to_le_bytes());
    let length = (code.len() as u64).to_le_bytes();
    for (at, value) in [
        (0x50, LOAD_ADDRESS.to_le_bytes()),
        (0x58, LOAD_ADDRESS.to_le_bytes()),
        (0x60, length),
        (0x68, length),
    ] {
        put(at, &value);
    }
    elf.extend_from_slice(code);
    elf
}

/// A bzImage with `code` at its 64-bit entry (Documentation/arch/x86/boot.rst).
#[must_use]
pub fn bzimage(code: &[u8]) -> Vec<u8> {
    const SETUP_BYTES: usize = 5 * 512;
    const ENTRY_64_AT: usize = SETUP_BYTES + 0x200;
    let mut image = vec![0; ENTRY_64_AT];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[4]); // setup_sects
    put(0x1fe, &[0x55, 0xaa]);
    put(0x200, &[0xeb, 0x66]);
    put(0x202, b"HdrS");
    put(0x206, &[0x0f, 0x02]); // version 2.15
    put(0x211, &[1]); // loadflags: LOADED_HIGH
    put(0x214, &[0, 0, 0x10, 0]); // code32_start
    put(0x22c, &[0xff, 0xff, 0xff, 0x7f]); // initrd_addr_max
    put(0x230, &[0, 0, 0x20, 0]); // kernel_alignment
    put(0x234, &[1]); // relocatable_kernel
    put(0x236, &[1, 0]); // xloadflags: XLF_KERNEL_64
    put(0x238, &[0xff, 7, 0, 0]); // cmdline_size
    put(0x258, &LOAD_ADDRESS.to_le_bytes()); // pref_address
    put(0x260, &[0, 0, 1, 0]); // init_size
    image.extend_from_slice(code);
    image.resize(image.len().next_multiple_of(16), 0xf4);
    image
}

/// Rings `EXIT` with `status` (docs/control-device.md), and sleeps.
#[must_use]
pub fn code_that_exits(status: u8) -> Vec<u8> {
    let mut code = vec![0xb9, 0x18, 0x08, 0x00, 0xc0]; // mov ecx, 0xc0000818
    code.extend([0xc7, 0x01, status, 0, 0, 0]); // mov dword ptr [rcx], status
    code.extend([0xf4, 0xeb, 0xfd]); // hlt; jmp to it
    code
}

/// Lets the keyboard's interrupt in, waits for a key, and exits with `status`.
#[must_use]
pub fn code_that_exits_at_a_key(status: u8) -> Vec<u8> {
    let mut code = KEYBOARD_OPEN.to_vec();
    code.extend(WAIT_FOR_KEY);
    code.extend(code_that_exits(status));
    code
}

/// Lets the keyboard's interrupt in at the I/O APIC.
const KEYBOARD_OPEN: &[u8] = &[
    0xbb, 0x00, 0x00, 0xc0, 0xfe, // mov ebx, 0xfec00000: I/O APIC
    0xc7, 0x03, 0x12, 0, 0, 0, // mov dword [rbx], 0x12: line 1, low half
    0xc7, 0x43, 0x10, 0x21, 0, 0, 0, // mov dword [rbx + 0x10], 0x21: open
];

/// `in al, 0x64; test al, 1; jz` to it.
const WAIT_FOR_KEY: &[u8] = &[0xe4, 0x64, 0xa8, 1, 0x74, 0xfa];

/// Lets the keyboard's interrupt in, says `listening`, waits for the beginning of Ctrl-Alt-Del in scan code set 2, and
/// asks for a reset; at another byte it exits with 1.
#[must_use]
pub fn code_that_waits_for_ctrl_alt_del() -> Vec<u8> {
    const KEYS: [u8; 4] = [0x14, 0x11, 0xe0, 0x71];
    const TEXT: &[u8] = b"listening\n";
    // Both lie after the code.
    const KEYS_AT: u64 = LOAD_ADDRESS + 0x100;
    const TEXT_AT: u64 = LOAD_ADDRESS + 0x110;
    let mut code = KEYBOARD_OPEN.to_vec();
    code.extend([0xba, 0x08, 0x08, 0x00, 0xc0]); // mov edx, 0xc0000808: PRINT
    code.extend([0x48, 0xb8]); // mov rax, length << 48 | address
    code.extend((TEXT_AT | (TEXT.len() as u64) << 48).to_le_bytes());
    code.extend([0x48, 0x89, 0x02]); // mov [rdx], rax
    code.extend([0x48, 0xbe]); // mov rsi, keys
    code.extend(KEYS_AT.to_le_bytes());
    code.extend([0xb9, 4, 0, 0, 0]); // mov ecx, 4
    code.extend(WAIT_FOR_KEY);
    code.extend([0xe4, 0x60, 0x3a, 0x06, 0x75, 0x0b]); // in al, 0x60; cmp al, [rsi]; jne to EXIT
    code.extend([0xff, 0xc6, 0xff, 0xc9, 0x75, 0xee]); // inc esi; dec ecx; jnz to in
    code.extend([0xb0, 0xfe, 0xe6, 0x64, 0xf4]); // mov al, 0xfe; out 0x64, al; hlt
    code.extend([0xc7, 0x42, 0x10, 1, 0, 0, 0, 0xf4]); // mov dword [rdx + 0x10], 1: EXIT; hlt
    code.resize(0x100, 0xf4);
    code.extend(KEYS);
    code.resize(0x110, 0);
    code.extend(TEXT);
    code
}

/// Prints the first and the last 64 bytes of the initial RAM disk that the zero page at `rsi` tells of, or all of a
/// shorter one twice; then exits: 0 if it began on a page, else 1.
pub const CODE_THAT_PRINTS_INITRD: &[u8] = &[
    0x8b, 0x86, 0x18, 0x02, 0x00, 0x00, // mov eax, [rsi + 0x218]: ramdisk_image
    0x8b, 0x8e, 0x1c, 0x02, 0x00, 0x00, // mov ecx, [rsi + 0x21c]: ramdisk_size
    0x89, 0xcf, 0x83, 0xff, 0x40, 0x76, 0x05, // edi = ecx; if edi > 64
    0xbf, 0x40, 0x00, 0x00, 0x00, // edi = 64
    0x49, 0x89, 0xf8, 0x49, 0xc1, 0xe0, 0x30, // r8 = rdi << 48
    0xa9, 0xff, 0x0f, 0x00, 0x00, 0x41, 0x0f, 0x95, 0xc2, // r10b = eax & 0xfff != 0
    0x45, 0x0f, 0xb6, 0xd2, // movzx r10d, r10b
    0xba, 0x08, 0x08, 0x00, 0xc0, // mov edx, 0xc0000808: PRINT
    0x48, 0x89, 0xc3, 0x4c, 0x09, 0xc3, // rbx = rax | r8
    0x48, 0x89, 0x1a, // mov [rdx], rbx
    0x48, 0x01, 0xc8, 0x48, 0x29, 0xf8, // rax = rax + rcx - rdi
    0x4c, 0x09, 0xc0, 0x48, 0x89, 0x02, // mov [rdx], rax | r8
    0x44, 0x89, 0x52, 0x10, // mov [rdx + 0x10], r10d: EXIT
    0xf4, 0xeb, 0xfd, // hlt; jmp to it
];
