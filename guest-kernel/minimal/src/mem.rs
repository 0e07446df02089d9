//! What the compiler expects of a C library: memcpy and its family (see the documentation of `core`).
//!
//! Written in assembly, because the compiler turns a copy loop into a call of memcpy. `rep movsb` and `rep stosb` are
//! fast from about 100 bytes on; below that a loop of 8 bytes is.

use core::arch::naked_asm;

/// Copies `n` bytes that do not overlap.
/// # Safety
/// As memcpy of C.
#[unsafe(no_mangle)]
#[unsafe(naked)]
#[unsafe(link_section = ".text.hot.memcpy")]
pub unsafe extern "C" fn memcpy(dest: *mut u8, src: *const u8, n: usize) -> *mut u8 {
    naked_asm!(
        "mov rax, rdi",
        "mov rcx, rdx",
        "cmp rdx, 128",
        "jae 3f",
        "2: cmp rcx, 8",
        "jb 3f",
        "mov rdx, [rsi]",
        "mov [rdi], rdx",
        "add rsi, 8",
        "add rdi, 8",
        "sub rcx, 8",
        "jmp 2b",
        "3: test ecx, ecx",
        "jz 5f",
        "cmp ecx, 8",
        "jae 6f",
        "4: mov dl, [rsi]",
        "mov [rdi], dl",
        "inc rsi",
        "inc rdi",
        "dec ecx",
        "jnz 4b",
        "5: ret",
        "6: rep movsb",
        "ret",
    )
}

/// Copies `n` bytes that may overlap.
/// # Safety
/// As memmove of C.
#[unsafe(no_mangle)]
#[unsafe(naked)]
pub unsafe extern "C" fn memmove(dest: *mut u8, src: *const u8, n: usize) -> *mut u8 {
    naked_asm!(
        // Forward is right unless dest lies in src..src + n.
        "mov rax, rdi",
        "sub rax, rsi",
        "cmp rax, rdx",
        "jae {memcpy}",
        "mov rax, rdi",
        "mov rcx, rdx",
        "2: cmp rcx, 8",
        "jb 3f",
        "mov rdx, [rsi + rcx - 8]",
        "mov [rdi + rcx - 8], rdx",
        "sub rcx, 8",
        "jmp 2b",
        "3: test ecx, ecx",
        "jz 5f",
        "4: mov dl, [rsi + rcx - 1]",
        "mov [rdi + rcx - 1], dl",
        "dec ecx",
        "jnz 4b",
        "5: ret",
        memcpy = sym memcpy,
    )
}

/// Sets `n` bytes to the low byte of `byte`.
/// # Safety
/// As memset of C.
#[unsafe(no_mangle)]
#[unsafe(naked)]
#[unsafe(link_section = ".text.hot.memset")]
pub unsafe extern "C" fn memset(dest: *mut u8, byte: i32, n: usize) -> *mut u8 {
    naked_asm!(
        "mov r8, rdi",
        "mov eax, esi",
        "mov rcx, rdx",
        "rep stosb",
        "mov rax, r8",
        "ret",
    )
}

/// Compares `n` bytes; the sign tells the order.
/// # Safety
/// As memcmp of C.
#[unsafe(no_mangle)]
#[unsafe(naked)]
#[unsafe(link_section = ".text.hot.memcmp")]
pub unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, n: usize) -> i32 {
    naked_asm!(
        "2: cmp rdx, 8",
        "jb 3f",
        "mov rax, [rdi]",
        "cmp rax, [rsi]",
        "jne 3f",
        "add rdi, 8",
        "add rsi, 8",
        "sub rdx, 8",
        "jmp 2b",
        "3: xor eax, eax",
        "4: test rdx, rdx",
        "jz 5f",
        "movzx eax, byte ptr [rdi]",
        "movzx ecx, byte ptr [rsi]",
        "sub eax, ecx",
        "jnz 5f",
        "inc rdi",
        "inc rsi",
        "dec rdx",
        "jmp 4b",
        "5: ret",
    )
}

/// Compares `n` bytes; 0 means equal.
/// # Safety
/// As bcmp of C.
#[unsafe(no_mangle)]
#[unsafe(naked)]
#[unsafe(link_section = ".text.hot.bcmp")]
pub unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, n: usize) -> i32 {
    naked_asm!("jmp {memcmp}", memcmp = sym memcmp)
}
